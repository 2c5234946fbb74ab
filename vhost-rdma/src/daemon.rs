// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon: the midlayer with its HCA, the workers, and the devices, which come and go while it
//! runs. `main.rs` is one way to start it; tests start it in their own process.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hca_backend::soft::{Config as SoftConfig, SoftHca};
use rdma_midlayer::driver::Poller;
use rdma_midlayer::{ClientRegistration, MaySleep, Midlayer, Registration, rcu};

use crate::connection::Connection;
use crate::device::{Device, DeviceConfig};
use crate::worker::{Worker, WorkerConfig, Workers};

/// How to start a daemon.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// The workers.
    pub workers: WorkerConfig,
}

/// How to add a device.
#[derive(Clone, Debug)]
pub struct SocketConfig {
    /// Where its front end connects.
    pub path: PathBuf,
    /// The device.
    pub device: DeviceConfig,
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
}

/// A running daemon. `stop` ends it.
pub struct Daemon {
    midlayer: Midlayer,
    workers: Workers,
    hca: Option<Plugged>,
    sockets: Vec<Socket>,
    next_first: usize,
}

struct Plugged {
    registration: Registration,
    pollers: Vec<(Arc<Worker>, Arc<dyn Poller>)>,
}

struct Socket {
    connection: Connection,
    device: Arc<Device>,
    registration: ClientRegistration,
}

impl Daemon {
    /// Starts workers and the soft HCA, without devices. May sleep.
    ///
    /// # Errors
    /// What the system or the HCA answers.
    pub fn start(cx: &MaySleep, config: &DaemonConfig) -> Result<Self, StartError> {
        Self::with_workers(cx, Workers::start(&config.workers)?)
    }

    /// As `start`, with workers of the caller's.
    ///
    /// # Errors
    /// As `start`.
    pub fn with_workers(cx: &MaySleep, workers: Workers) -> Result<Self, StartError> {
        let mut daemon = Self {
            midlayer: Midlayer::new(),
            workers,
            hca: None,
            sockets: Vec::new(),
            next_first: 0,
        };
        // The first of all makes entering cheap for those who read.
        rcu::synchronize(cx);
        daemon.add_hca(cx)?;
        Ok(daemon)
    }

    /// Plugs the soft HCA in: every device's driver sees it come. May sleep. No-op if it is there.
    ///
    /// # Errors
    /// What the midlayer answers.
    pub fn add_hca(&mut self, cx: &MaySleep) -> Result<(), StartError> {
        if self.hca.is_some() {
            return Ok(());
        }
        let workers = self.workers.list();
        let config = SoftConfig {
            name: "soft0".to_owned(),
            pollers: workers.len(),
            limits: Default::default(),
        };
        let hca = Arc::new(SoftHca::new(config));
        let driver: Arc<dyn rdma_midlayer::driver::HcaDriver> = hca;
        let pollers: Vec<_> = driver
            .pollers()
            .into_iter()
            .enumerate()
            .map(|(i, poller)| (workers[i % workers.len()].clone(), poller))
            .collect();
        pollers.iter().for_each(|(worker, poller)| worker.add_poller(poller.clone()));
        let registration = self.midlayer.register_device(cx, driver)?;
        self.hca = Some(Plugged { registration, pollers });
        Ok(())
    }

    /// Unplugs the HCA: every device's driver sees it go, all its objects end. May sleep.
    pub fn remove_hca(&mut self, cx: &MaySleep) {
        let Some(plugged) = self.hca.take() else { return };
        if let Err(e) = self.midlayer.unregister_device(cx, plugged.registration) {
            log::error!("{e}");
        }
        for (worker, poller) in &plugged.pollers {
            worker.remove_poller(poller);
        }
    }

    /// Adds a device, which waits for its front end from now on. May sleep.
    ///
    /// # Errors
    /// `PathTaken`, or what keeps the socket from being made.
    pub fn add_device(&mut self, cx: &MaySleep, config: SocketConfig) -> Result<(), StartError> {
        if self.sockets.iter().any(|s| s.connection.path() == config.path) {
            return Err(StartError::PathTaken(config.path));
        }
        let first = self.next_first;
        let workers: Arc<[Arc<Worker>]> = self.workers.list().into();
        let device = Device::new(config.device, workers, first);
        let connection = Connection::listen(&config.path, device.clone())?;
        let registration = self.midlayer.register_client(cx, device.clone())?;
        self.next_first += 1;
        self.sockets.push(Socket { connection, device, registration });
        Ok(())
    }

    /// Removes the device of a socket: its front end is disconnected. Returns whether there was one.
    /// May sleep.
    pub fn remove_device(&mut self, cx: &MaySleep, path: &Path) -> bool {
        let Some(i) = self.sockets.iter().position(|s| s.connection.path() == path) else {
            return false;
        };
        let socket = self.sockets.remove(i);
        self.end(cx, socket);
        true
    }

    /// The devices.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.sockets.iter().map(|s| &s.device)
    }

    /// Ends everything in order: front ends are disconnected, devices leave, the HCA leaves. May sleep.
    pub fn stop(mut self, cx: &MaySleep) {
        for socket in std::mem::take(&mut self.sockets) {
            self.end(cx, socket);
        }
        self.remove_hca(cx);
    }

    fn end(&self, cx: &MaySleep, socket: Socket) {
        drop(socket.connection);
        if let Err(e) = self.midlayer.unregister_client(cx, socket.registration) {
            log::error!("{}: {e}", socket.device.name());
        }
    }
}
