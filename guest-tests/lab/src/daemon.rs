// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon under test as a child process of the lab.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{TAIL_LINES, tail};
use crate::network::{mac, mac_text};

/// How long the daemon may take to make its sockets, or to end when told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running daemon. Dropping it ends it.
pub struct Daemon {
    child: Child,
    /// Its output.
    pub log: PathBuf,
    /// One socket a guest.
    pub sockets: Vec<PathBuf>,
}

impl Daemon {
    /// Starts the daemon with a device of `vectors` completion vectors for each of `guests`, its
    /// sockets and log in `folder`.
    ///
    /// # Errors
    /// When it doesn't start, or its sockets don't appear.
    pub fn start(program: &Path, guests: usize, vectors: u32, folder: &Path) -> Result<Self> {
        let sockets: Vec<PathBuf> =
            (0..guests).map(|index| folder.join(format!("rdma{index}.sock"))).collect();
        let log = folder.join("daemon.log");
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(program);
        for (index, socket) in sockets.iter().enumerate() {
            let address = mac_text(mac(index));
            let socket = format!("{},mac={address},vectors={vectors}", socket.display());
            command.arg("--socket-path").arg(socket);
        }
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        command.process_group(0);
        // SAFETY: prctl is async-signal-safe and touches no memory.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let child = command.spawn().context("starting the daemon")?;
        let mut daemon = Self { child, log, sockets };
        let until = Instant::now() + PATIENCE;
        while !daemon.sockets.iter().all(|socket| socket.exists()) {
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
