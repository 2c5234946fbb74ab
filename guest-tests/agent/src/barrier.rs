// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Barriers between the guests' scripts. `lab-barrier NAME` tells the agent over a Unix socket,
//! the agent tells the lab, and the lab answers all guests when the last one has come.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use crate::channel::Sender;
use crate::sys::Result;

const SOCKET: &str = "/run/lab.sock";

/// The commands that wait, by barrier.
#[derive(Clone, Default)]
pub struct Waiting(Arc<Mutex<HashMap<String, Vec<UnixStream>>>>);

impl Waiting {
    /// Begins to serve `lab-barrier` commands of this guest.
    pub fn serve(&self, lab: Sender) -> Result<()> {
        let listener = UnixListener::bind(SOCKET)?;
        let waiting = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut name = String::new();
                if BufReader::new(&stream).read_line(&mut name).is_err() {
                    continue;
                }
                let name = name.trim().to_owned();
                let mut all = waiting.0.lock().unwrap_or_else(PoisonError::into_inner);
                all.entry(name.clone()).or_default().push(stream);
                drop(all);
                lab.send(&format!("barrier {name}"));
            }
        });
        Ok(())
    }

    /// Passes the lab's answer (`go` or `broken`) on to the commands that wait at a barrier.
    pub fn answer(&self, name: &str, answer: &str) {
        let waiters = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        for mut stream in waiters.into_iter().flatten() {
            let _ = writeln!(stream, "{answer}");
        }
    }
}

/// The command `lab-barrier NAME`.
pub fn command(name: Option<&str>) -> ExitCode {
    let Some(name) = name.filter(|name| {
        !name.is_empty() && !name.starts_with('-') && !name.contains(char::is_whitespace)
    }) else {
        println!(
            "usage: lab-barrier NAME\n\
             Waits until the scripts of all guests have called it with this NAME (no white space).\n\
             A NAME may be used again. Fails when another guest's script ended before."
        );
        return ExitCode::from(2);
    };
    match wait(name) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("lab-barrier {name}: another guest's script has ended");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("lab-barrier {name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn wait(name: &str) -> Result<bool> {
    let mut stream = UnixStream::connect(SOCKET)?;
    writeln!(stream, "{name}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer.trim() == "go")
}
