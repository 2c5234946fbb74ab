// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests together: everything they need is built, the daemon is started, they boot. What goes into
//! their RAM disks is in `contents`, the course of a run in `run`, how one guest is started in `guest`.

mod contents;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::daemon::{Daemon, Service};
use crate::guest::qemu::{self, Machine};
use crate::guest::{Guest, Kind, Said, Wiring, uml};
use crate::guest_root::{GuestRoot, guest_root};
use crate::host_side::{self, HostSide};
use crate::kernels::{self, Kernel, Release};
use crate::nested::{self, Nested};
use crate::network;
use crate::programs::{self, Module, ModuleFor};
use crate::progress;

use run::{BootFailed, Run, State};

/// Virtual processors of a guest, unless told otherwise.
pub const DEFAULT_PROCESSORS: u32 = 2;
/// Memory of a guest in MiB, unless told otherwise.
pub const DEFAULT_MEMORY_MIB: u32 = 1024;
/// Completion vectors of a device, unless told otherwise.
pub const DEFAULT_VECTORS: u32 = 2;

/// Which guests, and how big.
#[derive(Debug, Clone)]
pub struct Shape {
    /// What they run on.
    pub kind: Kind,
    /// Which Debian kernel QEMU guests boot.
    pub release: Release,
    /// How many (1 to 200).
    pub guests: usize,
    /// Virtual processors of each.
    pub processors: u32,
    /// Memory of each in MiB.
    pub memory_mib: u32,
    /// Completion vectors of each RDMA device.
    pub vectors: u32,
    /// Debian packages on top of the usual ones.
    pub packages: Vec<String>,
    /// Whether they have the RDMA device, and a daemon serves it.
    pub rdma: bool,
    /// How many of them, from the first on, have no RDMA device, but are outside of the daemon: their
    /// network is one of its ports. If there are any, everybody's network goes through the daemon.
    pub outside: usize,
    /// Whether each guest (there are two) has a daemon of its own, so that their devices, too, reach
    /// each other by a wire. Their network goes through the daemons.
    pub apart: bool,
    /// Frames in a million that the ports lose, in each direction.
    pub loss: u32,
    /// Whether the guests' RDMA devices reach each other by packets only, though one daemon serves them.
    pub packets: bool,
    /// Whether the RDMA device can be unplugged and plugged (QEMU only).
    pub hot_plug: bool,
    /// How many of the guests, the first ones, are hosts to the others, which run in the first one; 0:
    /// none, all run on this host. Guests inside are QEMU's.
    pub hosts: usize,
}

impl Shape {
    /// Two guests of a kind, otherwise as usual.
    pub fn of_kind(kind: Kind) -> Self {
        Self {
            kind,
            release: Release::V6_12,
            guests: 2,
            processors: DEFAULT_PROCESSORS,
            memory_mib: DEFAULT_MEMORY_MIB,
            vectors: DEFAULT_VECTORS,
            packages: Vec::new(),
            rdma: true,
            outside: 0,
            apart: false,
            loss: 0,
            packets: false,
            hot_plug: false,
            hosts: 0,
        }
    }
}

impl Shape {
    /// Whether guest `index` runs inside of another.
    pub fn is_inner(&self, index: usize) -> bool {
        self.hosts > 0 && index >= self.hosts
    }

    /// How many guests run on this host.
    fn outer(&self) -> usize {
        if self.hosts > 0 { self.hosts } else { self.guests }
    }
}

/// What the guests do.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// The program that every guest runs, with an interpreter line.
    pub script: Vec<u8>,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Host files for the guests' `/root`.
    pub files: Vec<PathBuf>,
}

impl Job {
    /// The job of running a script of `guest-tests/scripts`, with the functions that they share.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn of_script(name: &str) -> Result<Self> {
        let path = programs::checkout().join("guest-tests/scripts").join(name);
        let script = fs::read(path).with_context(|| format!("reading {name}"))?;
        Ok(Self { script, files: programs::shared_scripts(), ..Self::default() })
    }
}

/// Everything guests of a shape are made of, built.
pub struct Parts {
    shape: Shape,
    root: GuestRoot,
    agent: PathBuf,
    verifier: PathBuf,
    engine: Engine,
    /// For guests inside of others: their kernel, and what their hosts need.
    inner: Option<(Kernel, Nested)>,
    module: Option<Module>,
    provider: Vec<(PathBuf, String)>,
    daemon: Option<PathBuf>,
    ctl: Option<PathBuf>,
}

enum Engine {
    Qemu { program: PathBuf, kernel: Kernel },
    Uml { kernel: PathBuf },
}

/// How a run of all guests ended.
#[derive(Debug)]
pub struct Outcome {
    /// Each guest's exit status.
    pub statuses: Vec<i32>,
    /// Each guest's output.
    pub lines: Vec<Vec<String>>,
}

impl Outcome {
    /// Whether every script ended with success.
    pub fn success(&self) -> bool {
        self.statuses.iter().all(|status| *status == 0)
    }
}

impl Parts {
    /// Builds, or finds in the cache, what guests of this shape need.
    ///
    /// # Errors
    /// When something can't be built; what, and the end of the build's output, is in the message.
    pub fn prepare(cache: &Cache, shape: &Shape) -> Result<Self> {
        let root = guest_root(cache, &shape.packages)?;
        let (engine, mut module_for) = match shape.kind {
            Kind::Qemu => {
                let kernel = kernels::debian_kernel(cache, shape.release)?;
                let program = programs::qemu(cache)?;
                (Engine::Qemu { program, kernel }, ModuleFor::Debian(shape.release))
            }
            Kind::Uml => {
                let kernel = kernels::uml_tree(cache)?.join("build/linux");
                (Engine::Uml { kernel }, ModuleFor::Uml)
            }
        };
        let mut inner = None;
        if shape.hosts > 0 {
            let kernel = kernels::debian_kernel(cache, shape.release)?;
            let nested = Nested::make(cache, &programs::qemu(cache)?, &kernel)?;
            inner = Some((kernel, nested));
            module_for = ModuleFor::Debian(shape.release);
        }
        let agent = programs::agent()?;
        let verifier = programs::verifier()?;
        let (mut module, mut provider, mut daemon, mut ctl) = (None, Vec::new(), None, None);
        if shape.rdma {
            module = Some(programs::module(cache, module_for)?);
            provider = programs::provider_files(&programs::provider(cache)?)?;
            daemon = Some(programs::daemon()?);
            ctl = Some(programs::ctl()?);
        }
        let shape = shape.clone();
        Ok(Self { shape, root, agent, verifier, engine, inner, module, provider, daemon, ctl })
    }

    /// Boots the guests, runs `job` in each, and hands every line of output to `on_line` with the
    /// guest's index. A boot that fails is tried once more, and that is said.
    ///
    /// # Errors
    /// When guests don't boot, the daemon ends, or `limit` passes after the scripts' start. Scripts
    /// that fail are no error here: see [`Outcome`].
    pub fn run(
        &self,
        job: &Job,
        limit: Duration,
        on_line: &mut dyn FnMut(usize, &str),
    ) -> Result<Outcome> {
        match self.run_once(job, limit, on_line) {
            Err(error) if error.is::<BootFailed>() => {
                progress::say(format_args!("{error:#}"));
                progress::say("a guest did not boot: trying all of them once more");
                self.run_once(job, limit, on_line)
            }
            result => result,
        }
    }

    fn run_once(
        &self,
        job: &Job,
        limit: Duration,
        on_line: &mut dyn FnMut(usize, &str),
    ) -> Result<Outcome> {
        let folder = RunFolder::make()?;
        let mut daemon = self.start_daemon(&folder.path)?;
        let (sender, events) = mpsc::channel();
        let consoles: Vec<PathBuf> = (0..self.shape.outer())
            .map(|index| folder.path.join(format!("console{index}.log")))
            .collect();
        let guests = self.boot(&folder.path, daemon.as_ref(), Some(job), &consoles, &sender)?;
        drop(sender);
        let mut run = Run {
            hosts: self.shape.hosts,
            states: guests.iter().map(|_| State::Booting).collect(),
            lines: vec![Vec::new(); guests.len()],
            guests,
            barriers: BTreeMap::new(),
            host: HostSide {
                ctl: self.ctl.clone().zip(daemon.as_ref().map(|daemon| daemon.control.clone())),
                folder: folder.path.clone(),
                vectors: self.shape.vectors,
            },
            daemon: daemon.as_mut(),
            consoles: &consoles,
            on_line,
        };
        let result = run.boot_and_finish(&events, self.boot_patience(), limit);
        let (guests, lines, states) = (run.guests, run.lines, run.states);
        drop(guests);
        let outcome = match result {
            Ok(()) => Outcome { statuses: states.iter().map(State::status).collect(), lines },
            Err(error) => return Err(folder.keep(error)),
        };
        if let Some(daemon) = daemon
            && let Err(error) = daemon.stop()
        {
            return Err(folder.keep(error));
        }
        if !outcome.success() {
            progress::say(format_args!("consoles and logs are kept in {}", folder.keep_path()));
        }
        Ok(outcome)
    }

    /// Boots the guests with the first one on the lab's own terminal, and waits for it to end.
    ///
    /// # Errors
    /// When guests can't be started.
    pub fn shell(&self) -> Result<()> {
        let folder = RunFolder::make()?;
        let daemon = self.start_daemon(&folder.path)?;
        let (sender, events) = mpsc::channel();
        let consoles: Vec<PathBuf> = (1..self.shape.guests)
            .map(|index| folder.path.join(format!("console{index}.log")))
            .collect();
        let mut guests = self.boot(&folder.path, daemon.as_ref(), None, &consoles, &sender)?;
        let mut ready = BTreeSet::new();
        while let Ok((index, said)) = events.recv() {
            match said {
                Said::Ready => {
                    ready.insert(index);
                    if ready.len() == guests.len() {
                        for guest in &mut guests {
                            guest.tell("start")?;
                        }
                    }
                }
                Said::Output(line) => eprint!("[guest{index}] {line}\r\n"),
                Said::Gone if index == 0 => break,
                _ => {}
            }
        }
        if let Some(first) = guests.first_mut() {
            first.wait()?;
        }
        Ok(())
    }

    fn start_daemon(&self, folder: &Path) -> Result<Option<Daemon>> {
        self.daemon
            .as_ref()
            .filter(|_| self.shape.hosts == 0)
            .map(|program| {
                let Shape { guests, outside, apart, vectors, loss, packets, .. } = self.shape;
                let service = Service { guests, outside, apart, vectors, loss, packets };
                Daemon::start(program, &service, folder)
            })
            .transpose()
    }

    fn boot_patience(&self) -> Duration {
        match self.shape.kind {
            _ if self.shape.hosts > 0 => Duration::from_secs(400),
            Kind::Qemu => Duration::from_secs(150),
            Kind::Uml => Duration::from_secs(60),
        }
    }

    /// Starts all guests. Those without a console of their own are on the lab's terminal.
    fn boot(
        &self,
        folder: &Path,
        daemon: Option<&Daemon>,
        job: Option<&Job>,
        consoles: &[PathBuf],
        events: &mpsc::Sender<(usize, Said)>,
    ) -> Result<Vec<Guest>> {
        let outer = self.shape.outer();
        let on_terminal = outer - consoles.len();
        let (mut inner_guests, mut inner_lines, mut inner_disks) = (vec![], vec![], vec![]);
        for index in outer..self.shape.guests {
            let (ours, theirs) = UnixStream::pair().context("making a line to a guest")?;
            inner_lines.push((index, OwnedFd::from(theirs)));
            inner_guests.push(Guest::inside(ours, index, events.clone())?);
            inner_disks.push(self.write_ramdisk(folder, index, job, false, &[])?);
        }
        let mut guests = Vec::new();
        let networks = if self.shape.outside > 0 || self.shape.apart {
            network::join_by_daemon(folder, self.shape.guests)?
        } else {
            network::join(outer)?
        };
        for (index, network) in networks.into_iter().enumerate() {
            let (ours, theirs) = UnixStream::pair().context("making a line to a guest")?;
            let wiring = Wiring {
                network,
                line: theirs.into(),
                rdma_socket: daemon.and_then(|daemon| daemon.sockets[index].clone()),
                inner_lines: std::mem::take(&mut inner_lines),
                qmp_socket: self.shape.hot_plug.then(|| host_side::qmp_socket(folder, index)),
                console: index.checked_sub(on_terminal).map(|place| consoles[place].clone()),
            };
            let terminal = wiring.console.is_none();
            let image = self.write_ramdisk(folder, index, job, terminal, &inner_disks)?;
            inner_disks.clear();
            let command = match &self.engine {
                Engine::Qemu { program, kernel } => {
                    let machine = Machine {
                        program: program.clone(),
                        processors: self.shape.processors,
                        memory_mib: self.memory_of(index),
                        vectors: self.shape.vectors,
                        nested_image: self.inner.as_ref().map(|(_, nested)| nested.image.clone()),
                    };
                    qemu::command(&machine, kernel, &self.root, &image, index, &wiring)
                }
                Engine::Uml { kernel } => uml::command(
                    kernel,
                    self.shape.processors,
                    self.memory_of(index),
                    &image,
                    folder,
                    index,
                    &wiring,
                ),
            };
            guests.push(Guest::start(command, wiring, ours, index, events.clone())?);
        }
        guests.extend(inner_guests);
        Ok(guests)
    }

    /// Memory of a guest that runs on this host, in MiB.
    fn memory_of(&self, index: usize) -> u32 {
        match (self.shape.hosts, self.shape.guests) {
            (0, _) => self.shape.memory_mib,
            (hosts, all) if index == 0 => {
                let inner = u32::try_from(all - hosts).unwrap_or(u32::MAX);
                nested::OUTER_MEMORY_MIB + nested::INNER_MEMORY_MIB * inner
            }
            _ => nested::OUTER_MEMORY_MIB,
        }
    }
}

/// A folder for one run's sockets, consoles and logs; short-named, for Unix sockets' sake.
struct RunFolder {
    guard: Option<tempfile::TempDir>,
    path: PathBuf,
}

impl RunFolder {
    fn make() -> Result<Self> {
        let guard = tempfile::Builder::new().prefix("vhost-rdma-").tempdir()?;
        let path = guard.path().to_owned();
        Ok(Self { guard: Some(guard), path })
    }

    fn keep_path(mut self) -> String {
        if let Some(guard) = self.guard.take() {
            let path = guard.keep();
            // What helps later is text; RAM disks are many megabytes.
            for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with("ramdisk") {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        self.path.display().to_string()
    }

    fn keep(self, error: anyhow::Error) -> anyhow::Error {
        // BootFailed must stay findable in the chain, so the place goes behind it.
        if error.is::<BootFailed>() {
            return BootFailed(format!("{error:#}(logs: {})", self.keep_path())).into();
        }
        error.context(format!("the run failed; its logs are in {}", self.keep_path()))
    }
}
