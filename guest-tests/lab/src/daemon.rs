// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon under test as a child process of the lab.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{TAIL_LINES, tail};
use crate::network::{self, mac, mac_text};

/// How long the daemon may take to make its sockets, or to end when told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running daemon. Dropping it ends it.
pub struct Daemon {
    child: Child,
    /// Its output.
    pub log: PathBuf,
    /// One socket a guest; none for one without an RDMA device.
    pub sockets: Vec<Option<PathBuf>>,
    /// Its management socket.
    pub control: PathBuf,
}

/// What the daemon serves.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// How many guests there are.
    pub guests: usize,
    /// How many of them, from the first on, have no RDMA device, but a port of the daemon as their
    /// network. If there are any, everybody's network goes through the daemon.
    pub outside: usize,
    /// Completion vectors of each device.
    pub vectors: u32,
    /// Frames in a million that ports lose, in each direction.
    pub loss: u32,
    /// Whether devices reach each other by packets only.
    pub packets: bool,
}

impl Daemon {
    /// Starts the daemon with its sockets and log in `folder`.
    ///
    /// # Errors
    /// When it doesn't start, or its sockets don't appear.
    pub fn start(program: &Path, service: &Service, folder: &Path) -> Result<Self> {
        let outside = service.outside;
        let sockets: Vec<Option<PathBuf>> = (0..service.guests)
            .map(|index| (index >= outside).then(|| folder.join(format!("rdma{index}.sock"))))
            .collect();
        let log = folder.join("daemon.log");
        let output = File::options().create(true).append(true).open(&log)?;
        let control = folder.join("control.sock");
        let mut command = Command::new(program);
        command.arg("--control").arg(&control);
        let mut awaited = vec![control.clone()];
        for (index, socket) in sockets.iter().enumerate() {
            let [local, remote] = [network::daemon_socket, network::guest_socket]
                .map(|path| path(folder, index).display().to_string());
            let Some(socket) = socket else {
                let (loss, mtu) = (service.loss, network::MTU);
                let port = format!("dgram:{local},{remote},mtu={mtu},loss={loss},seed={index}");
                command.arg("--port").arg(port);
                awaited.push(PathBuf::from(local));
                continue;
            };
            awaited.push(socket.clone());
            let address = mac_text(mac(index));
            let vectors = service.vectors;
            let mut device = format!("{},mac={address},vectors={vectors}", socket.display());
            if outside > 0 {
                device.push_str(&format!(",net-local={local},net-remote={remote}"));
                awaited.push(PathBuf::from(local));
            }
            command.arg("--socket-path").arg(device);
        }
        if service.packets {
            command.args(["--hca", "soft,wire=always"]);
        }
        if outside > 0 {
            command.arg("--pcap").arg(folder.join("wire.pcap"));
        }
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        command.process_group(0);
        // SAFETY: prctl is async-signal-safe and touches no memory; long_queues says the same.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                if outside > 0 {
                    network::long_queues();
                }
                Ok(())
            });
        }
        let child = command.spawn().context("starting the daemon")?;
        let mut daemon = Self { child, log, sockets, control };
        let until = Instant::now() + PATIENCE;
        while !awaited.iter().all(|socket| socket.exists()) {
            daemon.check()?;
            if Instant::now() > until {
                bail!("the daemon made no sockets:\n{}", tail(&daemon.log, TAIL_LINES));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(daemon)
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When it has ended; the message carries the end of its log.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the daemon ended ({status}):\n{}", tail(&self.log, TAIL_LINES));
        }
        Ok(())
    }

    /// Tells it to end (SIGTERM) and waits for that.
    ///
    /// # Errors
    /// When it doesn't end in time, or not successfully.
    pub fn stop(mut self) -> Result<()> {
        self.check()?;
        self.signal(libc::SIGTERM);
        match self.wait(PATIENCE)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                bail!("the daemon ended with {status}:\n{}", tail(&self.log, TAIL_LINES))
            }
            None => bail!("the daemon did not end on SIGTERM:\n{}", tail(&self.log, TAIL_LINES)),
        }
    }

    fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let until = Instant::now() + patience;
        loop {
            let status = self.child.try_wait()?;
            if status.is_some() || Instant::now() > until {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: libc::c_int) {
        if let Ok(pid) = libc::pid_t::try_from(self.child.id()) {
            // SAFETY: kill touches no memory; the child is not reaped yet, so the id is its own.
            unsafe { libc::kill(pid, signal) };
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(libc::SIGTERM);
            if !matches!(self.wait(Duration::from_secs(3)), Ok(Some(_))) {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}
