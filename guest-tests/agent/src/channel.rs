// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The line to the lab: text lines over a virtio-serial port (QEMU) or a serial line (UML). To
//! the lab: `ready`, `out TEXT`, `barrier NAME VALUE`, `host WORD…`, `exit STATUS`. From it: `start`,
//! `go NAME VALUES…`, `broken NAME`, `did STATUS TEXT`.

use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::sys::{self, Result};

/// The sending side, for every thread that has something to say.
#[derive(Clone)]
pub struct Sender(Arc<Mutex<File>>);

impl Sender {
    /// Sends one line. A lab that is gone is nothing to report to, so errors are dropped.
    pub fn send(&self, line: &str) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}

/// Opens the line that the job names: a device, or `virtio:NAME` for a virtio-serial port.
pub fn open(name: &str) -> Result<(Sender, BufReader<File>)> {
    let begun = Instant::now();
    let path = loop {
        let found = match name.strip_prefix("virtio:") {
            Some(port) => virtio_port(port),
            None => Some(name.to_owned()),
        };
        if let Some(path) = found.filter(|path| fs::exists(path).unwrap_or(false)) {
            break path;
        }
        if begun.elapsed() > Duration::from_secs(30) {
            return Err(format!("no line to the lab: {name}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let file = File::options().read(true).write(true).open(&path)?;
    sys::make_raw(&file);
    let reader = BufReader::new(file.try_clone()?);
    Ok((Sender(Arc::new(Mutex::new(file))), reader))
}

fn virtio_port(wanted: &str) -> Option<String> {
    fs::read_dir("/sys/class/virtio-ports").ok()?.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        (name.trim() == wanted).then(|| format!("/dev/{}", entry.file_name().to_string_lossy()))
    })
}
