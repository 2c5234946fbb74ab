// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon under test as a child process of the lab, or one for each guest, joined by a wire.

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

/// A running daemon, or several. Dropping it ends them.
pub struct Daemon {
    children: Vec<Child>,
    /// Their output.
    pub log: PathBuf,
    /// One socket a guest; none for one without an RDMA device.
    pub sockets: Vec<Option<PathBuf>>,
    /// The management socket of the first one.
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
    /// Whether each of two guests has a daemon of its own; their ports of Unix datagrams join them.
    pub apart: bool,
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
        let log = folder.join("daemon.log");
        let control = folder.join("control.sock");
        let sockets = (0..service.guests)
            .map(|index| (index >= service.outside).then(|| socket(folder, index)))
            .collect();
        let mut daemon = Self { children: Vec::new(), log, sockets, control: control.clone() };
        let mut awaited = vec![control.clone()];
        let all: Vec<usize> = (0..service.guests).collect();
        let parts = if service.apart { all.chunks(1) } else { all.chunks(all.len().max(1)) };
        for (part, guests) in parts.enumerate() {
            let mut command = Command::new(program);
            if part == 0 {
                command.arg("--control").arg(&control);
            }
            if service.apart {
                let [local, remote] =
                    [part, 1 - part].map(|n| folder.join(format!("wire{n}")).display().to_string());
                command.arg("--port").arg(service.port(&local, &remote, part));
                awaited.push(PathBuf::from(local));
            }
            for index in guests {
                awaited.extend(service.serve(&mut command, *index, folder));
            }
            if service.packets {
                command.args(["--hca", "soft,wire=always"]);
            }
            if service.outside > 0 {
                command.arg("--pcap").arg(folder.join("wire.pcap"));
            }
            daemon.spawn(command, service.has_network())?;
        }
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

    fn spawn(&mut self, mut command: Command, has_network: bool) -> Result<()> {
        let output = File::options().create(true).append(true).open(&self.log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        command.process_group(0);
        // SAFETY: prctl is async-signal-safe and touches no memory; long_queues says the same.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                if has_network {
                    network::long_queues();
                }
                Ok(())
            });
        }
        self.children.push(command.spawn().context("starting the daemon")?);
        Ok(())
    }

    /// Whether all still run.
    ///
    /// # Errors
    /// When one has ended; the message carries the end of its log.
    pub fn check(&mut self) -> Result<()> {
        for child in &mut self.children {
            if let Some(status) = child.try_wait()? {
                bail!("the daemon ended ({status}):\n{}", tail(&self.log, TAIL_LINES));
            }
        }
        Ok(())
    }

    /// Tells them to end (SIGTERM) and waits for that.
    ///
    /// # Errors
    /// When one doesn't end in time, or not successfully.
    pub fn stop(mut self) -> Result<()> {
        self.check()?;
        self.children.iter().for_each(terminate);
        for child in &mut self.children {
            match wait(child, PATIENCE)? {
                Some(status) if status.success() => {}
                Some(status) => {
                    bail!("the daemon ended with {status}:\n{}", tail(&self.log, TAIL_LINES))
                }
                None => {
                    bail!("the daemon did not end on SIGTERM:\n{}", tail(&self.log, TAIL_LINES))
                }
            }
        }
        Ok(())
    }
}

impl Service {
    /// Whether the guests' network goes through the daemon.
    pub fn has_network(&self) -> bool {
        self.outside > 0 || self.apart
    }

    /// Adds what serves a guest to a daemon's command line. Returns the sockets that will appear.
    fn serve(&self, command: &mut Command, index: usize, folder: &Path) -> Vec<PathBuf> {
        let [local, remote] = [network::daemon_socket, network::guest_socket]
            .map(|path| path(folder, index).display().to_string());
        if index < self.outside {
            command.arg("--port").arg(self.port(&local, &remote, index));
            return vec![PathBuf::from(local)];
        }
        let socket = socket(folder, index);
        let (address, vectors) = (mac_text(mac(index)), self.vectors);
        let mut device = format!("{},mac={address},vectors={vectors}", socket.display());
        let mut awaited = vec![socket];
        if self.has_network() {
            device.push_str(&format!(",net-local={local},net-remote={remote}"));
            awaited.push(PathBuf::from(local));
        }
        command.arg("--socket-path").arg(device);
        awaited
    }

    fn port(&self, local: &str, remote: &str, seed: usize) -> String {
        let (loss, mtu) = (self.loss, network::MTU);
        format!("dgram:{local},{remote},mtu={mtu},loss={loss},seed={seed}")
    }
}

fn socket(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("rdma{index}.sock"))
}

fn wait(child: &mut Child, patience: Duration) -> Result<Option<ExitStatus>> {
    let until = Instant::now() + patience;
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() > until {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Tells a child that has not been waited for to end.
fn terminate(child: &Child) {
    if let Ok(pid) = libc::pid_t::try_from(child.id()) {
        // SAFETY: kill touches no memory; the child is not reaped yet, so the id is its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for child in &mut self.children {
            if matches!(child.try_wait(), Ok(None)) {
                terminate(child);
                if !matches!(wait(child, Duration::from_secs(3)), Ok(Some(_))) {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        }
    }
}
