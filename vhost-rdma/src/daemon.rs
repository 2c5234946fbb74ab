// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon: the midlayer with its HCA, the workers, and the devices, which come and go while it
//! runs. `main.rs` is one way to start it; tests start it in their own process.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rdma_midlayer::driver::Poller;
use rdma_midlayer::{ClientRegistration, MaySleep, Midlayer, Registration, rcu};

use crate::connection::Connection;
use crate::device::{Device, DeviceConfig};
use crate::hca::{self, GidMap, OpenError, Surroundings};
use crate::hotplug::{self, Died};
use crate::spec::HcaSpec;
use crate::wire::{self, Core, Counted, GuestNet, Joined, WireConfig, Wires};
use crate::worker::{Worker, WorkerConfig, Workers};

/// How to start a daemon.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// The workers.
    pub workers: WorkerConfig,
    /// The HCAs; none: the soft HCA.
    pub hcas: Vec<HcaSpec>,
    /// The ports of the soft HCAs.
    pub wire: WireConfig,
}

/// How to add a device.
#[derive(Clone, Debug)]
pub struct SocketConfig {
    /// Where its front end connects.
    pub path: PathBuf,
    /// The device.
    pub device: DeviceConfig,
    /// Its guest's virtio-net, if that comes to the daemon too.
    pub net: Option<GuestNet>,
    /// Whether the daemon answers ARP and ND for a device whose virtio-net does not come to it.
    pub answer_arp: bool,
}

impl SocketConfig {
    /// A device whose guest's virtio-net goes other ways.
    pub fn new(path: PathBuf, device: DeviceConfig) -> Self {
        Self { path, device, net: None, answer_arp: true }
    }
}

/// Why a daemon or a device can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operating system.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The midlayer or the HCA.
    #[error("{0}")]
    Verbs(#[from] rdma_midlayer::Error),
    /// The path is in use by another device of this daemon.
    #[error("{0} is already the socket of a device")]
    PathTaken(PathBuf),
    /// The name is another HCA's.
    #[error("there is an HCA '{0}' already")]
    HcaTaken(String),
    /// There is no such HCA.
    #[error("there is no HCA '{0}'; there {list}", list = list(.1))]
    NoHca(String, Vec<String>),
    /// The HCA maps no GIDs.
    #[error("HCA '{0}' maps no GIDs: those of its guests are those on the wire")]
    NoGids(String),
    /// An HCA can't be made.
    #[error("HCA '{0}': {1}")]
    Hca(String, OpenError),
    /// A port can't be opened.
    #[error("{0}")]
    Port(#[from] wire::OpenError),
    /// No device goes by this name or path.
    #[error("there is no device '{0}'")]
    NoDevice(String),
    /// Several devices have this name.
    #[error("several devices are named '{0}': give the socket's path")]
    Ambiguous(String),
}

fn list(names: &[String]) -> String {
    match names {
        [] => "is none".to_owned(),
        [one] => format!("is '{one}'"),
        many => format!("are '{}'", many.join("', '")),
    }
}

/// A running daemon. `stop` ends it.
pub struct Daemon {
    midlayer: Midlayer,
    workers: Workers,
    /// In the order in which they came.
    hcas: Vec<Plugged>,
    /// Those whose device the host does not have now.
    waiting: Vec<Wanted>,
    died: Arc<Died>,
    /// That of devices which name none: the first that there was.
    default_hca: String,
    sockets: Vec<Socket>,
    next_first: usize,
    wires: Wires,
}

/// An HCA that is asked for.
#[derive(Clone)]
struct Wanted {
    spec: HcaSpec,
    /// For drivers that map GIDs. It outlives the device.
    gids: Option<Arc<GidMap>>,
}

struct Plugged {
    wanted: Wanted,
    /// Of a device of the host: the character device by which we use it.
    uverbs: Option<String>,
    /// Its ends of wires, by network.
    cores: Vec<(u64, Arc<dyn Core>)>,
    registration: Registration,
    pollers: Vec<(Arc<Worker>, Arc<dyn Poller>)>,
}

struct Socket {
    connection: Connection,
    device: Arc<Device>,
    registration: ClientRegistration,
    joined: Joined,
}

impl Daemon {
    /// Starts workers and HCAs, without devices. May sleep.
    ///
    /// # Errors
    /// What the system or the HCA answers.
    pub fn start(cx: &MaySleep, config: &DaemonConfig) -> Result<Self, StartError> {
        Self::start_with(cx, Workers::start(&config.workers)?, &config.hcas, &config.wire)
    }

    /// With workers of the caller's, and the soft HCA.
    ///
    /// # Errors
    /// As `start`.
    pub fn with_workers(cx: &MaySleep, workers: Workers) -> Result<Self, StartError> {
        Self::with_ports(cx, workers, &WireConfig::default())
    }

    /// With workers of the caller's, and the soft HCA behind some ports.
    ///
    /// # Errors
    /// As `start`.
    pub fn with_ports(
        cx: &MaySleep,
        workers: Workers,
        wire: &WireConfig,
    ) -> Result<Self, StartError> {
        Self::start_with(cx, workers, &[], wire)
    }

    fn start_with(
        cx: &MaySleep,
        workers: Workers,
        hcas: &[HcaSpec],
        wire: &WireConfig,
    ) -> Result<Self, StartError> {
        let wires = Wires::open(wire, workers.list())?;
        let soft = [HcaSpec::default()];
        let hcas = if hcas.is_empty() { &soft } else { hcas };
        let mut daemon = Self {
            midlayer: Midlayer::new(),
            workers,
            hcas: Vec::new(),
            waiting: Vec::new(),
            died: Died::new()?,
            default_hca: hcas.first().map(|hca| hca.name.clone()).unwrap_or_default(),
            sockets: Vec::new(),
            next_first: 0,
            wires,
        };
        // The first of all makes entering cheap for those who read.
        rcu::synchronize(cx);
        for hca in hcas {
            daemon.add_hca(cx, hca.clone())?;
        }
        Ok(daemon)
    }

    /// Plugs an HCA in: the driver of every device that belongs to it sees it come. If it is a device
    /// that the host does not have now, that is so as soon as the host has it. May sleep.
    ///
    /// # Errors
    /// `HcaTaken`, or what keeps the HCA from being made or registered.
    pub fn add_hca(&mut self, cx: &MaySleep, spec: HcaSpec) -> Result<(), StartError> {
        if self.hcas().any(|(hca, _)| hca.name == spec.name) {
            return Err(StartError::HcaTaken(spec.name));
        }
        let gids = hca::gid_map(&spec).map_err(|e| StartError::Hca(spec.name.clone(), e))?;
        let wanted = Wanted { spec, gids };
        match self.plug(cx, wanted.clone()) {
            Err(StartError::Hca(name, error)) if error.is_absent() => {
                log::warn!("HCA '{name}': {error}: waiting for it");
                self.waiting.push(wanted);
                Ok(())
            }
            result => result,
        }
    }

    fn plug(&mut self, cx: &MaySleep, wanted: Wanted) -> Result<(), StartError> {
        let workers = self.workers.list();
        let spec = &wanted.spec;
        let with = Surroundings {
            pollers: workers.len(),
            wires: &self.wires,
            gids: &wanted.gids.clone().unwrap_or_default(),
            died: &self.died,
        };
        let hca::Opened { driver, cores } = hca::open(cx, spec, &with)
            .map_err(|error| StartError::Hca(spec.name.clone(), error))?;
        let uverbs = spec.device.as_deref().and_then(hotplug::uverbs_of);
        let pollers: Vec<_> = driver
            .pollers()
            .into_iter()
            .enumerate()
            .map(|(i, poller)| (workers[i % workers.len()].clone(), poller))
            .collect();
        pollers.iter().for_each(|(worker, poller)| worker.add_poller(poller.clone()));
        match self.midlayer.register_device(cx, driver) {
            Ok(registration) => {
                cores.iter().for_each(|(net, core)| self.wires.add_core(*net, core.clone()));
                self.hcas.push(Plugged { wanted, uverbs, cores, registration, pollers });
                Ok(())
            }
            Err(error) => {
                pollers.iter().for_each(|(worker, poller)| worker.remove_poller(poller));
                Err(error.into())
            }
        }
    }

    /// Unplugs an HCA: the drivers of its devices see it go, all their objects end. They wait for an
    /// HCA of this name to come. May sleep.
    ///
    /// # Errors
    /// `NoHca`.
    pub fn remove_hca(&mut self, cx: &MaySleep, name: &str) -> Result<(), StartError> {
        if let Some(i) = self.hcas.iter().position(|hca| hca.wanted.spec.name == name) {
            let hca = self.hcas.remove(i);
            self.unplug(cx, hca);
        } else if let Some(i) = self.waiting.iter().position(|wanted| wanted.spec.name == name) {
            self.waiting.remove(i);
        } else {
            return Err(self.no_hca(name));
        }
        Ok(())
    }

    /// The host has an RDMA device: HCAs that wait for it are plugged in. May sleep.
    pub fn device_came(&mut self, cx: &MaySleep, device: &str) {
        let is_it = |wanted: &mut Wanted| wanted.spec.device.as_deref() == Some(device);
        for wanted in self.waiting.extract_if(.., is_it).collect::<Vec<_>>() {
            match self.plug(cx, wanted.clone()) {
                Ok(()) => log::info!("HCA '{}': {device} has come", wanted.spec.name),
                Err(e) => {
                    log::warn!("{e}: waiting for another {device}");
                    self.waiting.push(wanted);
                }
            }
        }
    }

    /// The host has lost an RDMA device: HCAs that are made of it go, and wait for it. May sleep.
    pub fn device_gone(&mut self, cx: &MaySleep, device: &str) {
        self.lose(cx, |hca| hca.wanted.spec.device.as_deref() == Some(device));
    }

    /// The character device of an RDMA device has gone; the host may wait for us to let go of it. May
    /// sleep.
    pub fn uverbs_gone(&mut self, cx: &MaySleep, uverbs: &str) {
        self.lose(cx, |hca| hca.uverbs.as_deref() == Some(uverbs));
    }

    /// The driver of an HCA says that its device died. May sleep.
    pub fn hca_died(&mut self, cx: &MaySleep, name: &str) {
        self.lose(cx, |hca| hca.wanted.spec.name == name);
        self.look_again(cx);
    }

    /// Compares what there is with what the host has. May sleep.
    pub fn look_again(&mut self, cx: &MaySleep) {
        let has = |device: &str| Path::new("/sys/class/infiniband").join(device).exists();
        self.lose(cx, |hca| hca.wanted.spec.device.as_deref().is_some_and(|device| !has(device)));
        let waiting: Vec<_> =
            self.waiting.iter().filter_map(|wanted| wanted.spec.device.clone()).collect();
        waiting.iter().filter(|device| has(device)).for_each(|device| self.device_came(cx, device));
    }

    fn lose(&mut self, cx: &MaySleep, is_it: impl Fn(&Plugged) -> bool) {
        for hca in self.hcas.extract_if(.., |hca| is_it(hca)).collect::<Vec<_>>() {
            log::warn!("HCA '{}': the host takes its device away", hca.wanted.spec.name);
            if let Err(e) = hca.registration.lost(cx) {
                log::error!("{e}");
            }
            self.waiting.push(hca.wanted.clone());
            self.unplug(cx, hca);
        }
    }

    /// Where drivers tell that their device died.
    pub fn died(&self) -> &Arc<Died> {
        &self.died
    }

    fn unplug(&self, cx: &MaySleep, hca: Plugged) {
        if let Err(e) = self.midlayer.unregister_device(cx, hca.registration) {
            log::error!("{e}");
        }
        hca.cores.iter().for_each(|(net, core)| self.wires.remove_core(*net, core));
        for (worker, poller) in &hca.pollers {
            worker.remove_poller(poller);
        }
    }

    /// The HCAs, and whether each is plugged in, or waits for its device.
    pub fn hcas(&self) -> impl Iterator<Item = (&HcaSpec, bool)> {
        let waiting = self.waiting.iter().map(|wanted| (&wanted.spec, false));
        self.hcas.iter().map(|hca| (&hca.wanted.spec, true)).chain(waiting)
    }

    /// What the GIDs of an HCA's tenants are on the wire. A change counts for QPs connected later.
    ///
    /// # Errors
    /// `NoHca`, `NoGids`.
    pub fn gids(&self, name: &str) -> Result<&Arc<GidMap>, StartError> {
        let mut all = self.hcas.iter().map(|hca| &hca.wanted).chain(&self.waiting);
        match all.find(|wanted| wanted.spec.name == name) {
            Some(wanted) => wanted.gids.as_ref().ok_or_else(|| StartError::NoGids(name.to_owned())),
            None => Err(self.no_hca(name)),
        }
    }

    fn no_hca(&self, name: &str) -> StartError {
        let names = self.hcas().map(|(hca, _)| hca.name.clone()).collect();
        StartError::NoHca(name.to_owned(), names)
    }

    /// Adds a device, which waits for its front end from now on. May sleep.
    ///
    /// # Errors
    /// `PathTaken`, or what keeps the socket from being made.
    pub fn add_device(&mut self, cx: &MaySleep, config: SocketConfig) -> Result<(), StartError> {
        let mut config = config;
        config.device.hca.get_or_insert_with(|| self.default_hca.clone());
        if self.sockets.iter().any(|s| s.connection.path() == config.path) {
            return Err(StartError::PathTaken(config.path));
        }
        let first = self.next_first;
        let workers: Arc<[Arc<Worker>]> = self.workers.list().into();
        let (network, mac) = (config.device.network, config.device.mac);
        let device = Device::new(config.device, workers.clone(), first);
        let connection = Connection::listen(&config.path, device.clone())?;
        let (net, arp) = (config.net.as_ref(), config.answer_arp);
        let joined = self.wires.join(network, mac, net, arp, &workers)?;
        let registration = self
            .midlayer
            .register_client(cx, device.clone())
            .inspect_err(|_| self.wires.leave(&joined))?;
        self.next_first += 1;
        self.sockets.push(Socket { connection, device, registration, joined });
        Ok(())
    }

    /// Removes a device, named by its socket's path or its own name: its front end is disconnected.
    /// May sleep.
    ///
    /// # Errors
    /// `NoDevice`, `Ambiguous`.
    pub fn remove_device(&mut self, cx: &MaySleep, name: &str) -> Result<(), StartError> {
        let i = self.find_device(name)?;
        let socket = self.sockets.remove(i);
        self.end(cx, socket);
        Ok(())
    }

    fn find_device(&self, name: &str) -> Result<usize, StartError> {
        if let Some(i) = self.sockets.iter().position(|s| s.connection.path() == Path::new(name)) {
            return Ok(i);
        }
        let mut named = (0..self.sockets.len()).filter(|i| self.sockets[*i].device.name() == name);
        match (named.next(), named.next()) {
            (Some(i), None) => Ok(i),
            (None, _) => Err(StartError::NoDevice(name.to_owned())),
            (Some(_), Some(_)) => Err(StartError::Ambiguous(name.to_owned())),
        }
    }

    /// The device of that name or socket.
    ///
    /// # Errors
    /// `NoDevice`, `Ambiguous`.
    pub fn device(&self, name: &str) -> Result<&Arc<Device>, StartError> {
        Ok(&self.sockets[self.find_device(name)?].device)
    }

    /// The devices.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.sockets.iter().map(|s| &s.device)
    }

    /// The counters of ports and of what is connected to them.
    pub fn wire_counts(&self) -> Vec<Counted> {
        self.wires.counts()
    }

    /// The devices with their sockets, and whether a front end is connected there.
    pub fn sockets(&self) -> impl Iterator<Item = (&Path, &Arc<Device>, bool)> {
        self.sockets.iter().map(|s| (s.connection.path(), &s.device, s.connection.is_connected()))
    }

    /// Ends everything in order: front ends are disconnected, devices leave, HCAs leave. May sleep.
    pub fn stop(mut self, cx: &MaySleep) {
        for socket in std::mem::take(&mut self.sockets) {
            self.end(cx, socket);
        }
        for hca in std::mem::take(&mut self.hcas).into_iter().rev() {
            self.unplug(cx, hca);
        }
    }

    fn end(&self, cx: &MaySleep, socket: Socket) {
        drop(socket.connection);
        self.wires.leave(&socket.joined);
        if let Err(e) = self.midlayer.unregister_client(cx, socket.registration) {
            log::error!("{}: {e}", socket.device.name());
        }
    }
}
