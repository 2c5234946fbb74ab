// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest as a process of the host: what all kinds have in common. What differs between QEMU and
//! UML is in the modules below; what guests do together is in `fleet`.

pub mod qemu;
pub mod ramdisk;
pub mod uml;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// What a guest runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// QEMU, a whole machine under emulation
    Qemu,
    /// User-Mode Linux: a kernel as a process, at native speed
    Uml,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Qemu => "qemu",
            Self::Uml => "uml",
        })
    }
}

/// The host's side of one guest's connections.
pub struct Wiring {
    /// The guest's end of its Ethernet.
    pub network: OwnedFd,
    /// The guest's end of its line to the lab.
    pub line: OwnedFd,
    /// The lines of guests inside of this one, with their numbers.
    pub inner_lines: Vec<(usize, OwnedFd)>,
    /// The daemon's socket for this guest, if it has an RDMA device.
    pub rdma_socket: Option<PathBuf>,
    /// Where QEMU takes commands, for guests whose device is plugged and unplugged.
    pub qmp_socket: Option<PathBuf>,
    /// Where the kernel's console goes; None: the lab's own terminal.
    pub console: Option<PathBuf>,
}

/// What a guest says over its line.
#[derive(Debug)]
pub enum Said {
    /// Its script can be started.
    Ready,
    /// A line of its script's output.
    Output(String),
    /// Its script waits at a barrier: the barrier's name, and the guest's value.
    Barrier(String),
    /// Its script wants something done on the host.
    Host(String),
    /// Its script has ended.
    Exit(i32),
    /// The line is closed: the guest is gone.
    Gone,
}

/// A running guest. Dropping it ends its processes.
pub struct Guest {
    /// None for one that runs inside of another.
    child: Option<Child>,
    line: UnixStream,
}

impl Guest {
    /// Starts `command`, which inherits `wiring`'s descriptors, in a process group of its own.
    /// What the guest says goes to `events` as (index, said).
    ///
    /// # Errors
    /// When the program can't be started.
    pub fn start(
        mut command: Command,
        wiring: Wiring,
        line: UnixStream,
        index: usize,
        events: Sender<(usize, Said)>,
    ) -> Result<Self> {
        let inner = wiring.inner_lines.iter().map(|(_, line)| line);
        let inherited: Vec<_> = [&wiring.network, &wiring.line]
            .into_iter()
            .chain(inner)
            .map(AsRawFd::as_raw_fd)
            .collect();
        if let Some(console) = &wiring.console {
            let file = File::options().create(true).append(true).open(console)?;
            command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
            command.process_group(0);
        }
        // SAFETY: between fork and exec only prctl and fcntl are called, both async-signal-safe;
        // the descriptors are open until `wiring` is dropped, after the child was started.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                for descriptor in &inherited {
                    libc::fcntl(*descriptor, libc::F_SETFD, 0);
                }
                Ok(())
            });
        }
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        drop(wiring);
        let mut guest = Self::inside(line, index, events)?;
        guest.child = Some(child);
        Ok(guest)
    }

    /// A guest that another one starts; `line` is all that there is of it here.
    ///
    /// # Errors
    /// When the line can't be read.
    pub fn inside(line: UnixStream, index: usize, events: Sender<(usize, Said)>) -> Result<Self> {
        let reader = BufReader::new(line.try_clone()?);
        std::thread::spawn(move || {
            listen(reader, |said| events.send((index, said)).is_ok());
            let _ = events.send((index, Said::Gone));
        });
        Ok(Self { child: None, line })
    }

    /// Sends the guest a line.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn tell(&mut self, text: &str) -> Result<()> {
        writeln!(self.line, "{text}").context("speaking to a guest")
    }

    /// Waits until the guest has switched itself off, at most `patience`.
    pub fn wait_off(&mut self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let Some(child) = &mut self.child else { return true };
        loop {
            match child.try_wait() {
                Ok(None) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ok(None) => return false,
                _ => return true,
            }
        }
    }

    /// Waits until the guest's process has ended, however long it takes.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn wait(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child {
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.wait_off(Duration::ZERO) {
            return;
        }
        let Some(child) = &mut self.child else { return };
        if let Ok(pid) = libc::pid_t::try_from(child.id()) {
            // UML has helper processes in the same group. A guest on the lab's own terminal
            // leads no group, and the second call is for it.
            // SAFETY: kill touches no memory; the child is not reaped yet, so the ids are its own.
            unsafe {
                libc::kill(-pid, libc::SIGKILL);
                libc::kill(pid, libc::SIGKILL);
            }
        }
        let _ = child.wait();
    }
}

fn listen(mut reader: BufReader<UnixStream>, mut pass_on: impl FnMut(Said) -> bool) {
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
        let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
        bytes.clear();
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        let said = match word {
            "ready" => Said::Ready,
            "out" => Said::Output(rest.to_owned()),
            "barrier" => Said::Barrier(rest.to_owned()),
            "host" => Said::Host(rest.to_owned()),
            "exit" => Said::Exit(rest.parse().unwrap_or(-1)),
            // A serial line may carry noise before the guest has set it up.
            _ => continue,
        };
        if !pass_on(said) {
            return;
        }
    }
}
