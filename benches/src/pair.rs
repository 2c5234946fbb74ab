// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A daemon in this process with two VMs, and connections between them.

use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use front_end::{
    Buffer, Cq, Driver, Mr, Pd, Qp, QpOptions, RcOptions, Vm, VmConfig, access, connect_rc,
};
use rdma_midlayer::MaySleep;
use vhost_rdma::worker::{Loop, Workers};
use vhost_rdma::{Cpus, Daemon, DaemonConfig, DeviceConfig, SocketConfig, WorkerConfig};

/// Slots of the work queues.
pub const DEPTH: u64 = 256;
/// Slots of the completion queues.
const CQ_ENTRIES: u32 = 1024;
/// Memory of the third VM.
const NEIGHBOUR: u64 = 64 << 20;
/// How long the worker polls before it sleeps.
pub const POLL: Duration = Duration::from_micros(50);

/// A VM with its driver.
pub struct Guest {
    /// The driver.
    pub driver: Driver,
    /// Its PD.
    pub pd: Pd,
    vm: Vm,
}

impl Guest {
    /// With a vector for each worker: the slots of its QPs then fall to them in turn.
    fn new(path: &std::path::Path, memory: u64, vectors: u16) -> Result<Self> {
        let settings =
            VmConfig { memory, regions: 1, vectors, queue_size: 256, ..VmConfig::default() };
        let vm = Vm::connect(path, settings)?;
        let driver = vm.driver()?;
        let pd = driver.alloc_pd()?;
        Ok(Self { driver, pd, vm })
    }

    /// An MR of pages in no order.
    ///
    /// # Errors
    /// What the device answers.
    pub fn register(&self, len: usize) -> Result<Region> {
        let buffer = self.driver.memory().alloc_scattered(len)?;
        let mr = self.driver.reg_mr(&self.pd, &buffer, access::ALL)?;
        Ok(Region { buffer: Arc::new(buffer), mr })
    }

    /// The VMM's side.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }
}

/// Memory and its MR.
pub struct Region {
    /// The memory.
    pub buffer: Arc<Buffer>,
    /// The MR of all of it.
    pub mr: Mr,
}

/// A daemon and two VMs, and perhaps a third one beside them.
pub struct Pair {
    /// One.
    pub a: Guest,
    /// The other.
    pub b: Guest,
    /// Their neighbour.
    pub neighbour: Option<Guest>,
    daemon: Option<Daemon>,
    cx: Rc<MaySleep>,
    _sockets: tempfile::TempDir,
}

impl Pair {
    /// Starts them, with a worker that is kept on a CPU.
    ///
    /// # Errors
    /// What the daemon or the system answers.
    pub fn start(worker_cpu: usize, memory: [u64; 2]) -> Result<Self> {
        let cx = MaySleep::claim().context("a pair has been started in this thread before")?;
        let workers = WorkerConfig::new(1, Cpus::from(worker_cpu), POLL);
        Self::of_workers(Rc::new(cx), workers, &[memory[0], memory[1], NEIGHBOUR])
    }

    /// Another daemon with two VMs, beside this one.
    ///
    /// # Errors
    /// What the daemon or the system answers.
    pub fn another(&self, workers: WorkerConfig, memory: [u64; 2]) -> Result<Self> {
        Self::of_workers(self.cx.clone(), workers, &memory)
    }

    fn of_workers(cx: Rc<MaySleep>, workers: WorkerConfig, memory: &[u64]) -> Result<Self> {
        let vectors = workers.count as u16;
        let config = DaemonConfig { workers, hcas: Vec::new(), wire: Default::default() };
        let daemon = Daemon::start(&cx, &config)?;
        Self::with(cx, daemon, memory, vectors)
    }

    /// Starts two VMs above the device "stub0" of a libibverbs at `library`.
    ///
    /// # Errors
    /// As `start`.
    pub fn over_verbs(worker_cpu: usize, memory: [u64; 2], library: &str) -> Result<Self> {
        let workers = WorkerConfig::new(1, Cpus::from(worker_cpu), POLL);
        // Every VM's address is the device's on the wire.
        let [.., p0] = std::process::id().to_be_bytes();
        let mut gids = tempfile::NamedTempFile::new()?;
        for n in 1..=memory.len() {
            writeln!(gids, "0 10.{p0}.0.{n} 10.0.0.1")?;
        }
        let hca = format!("verbs:stub0,library={library},gids={}", gids.path().display());
        let hcas = vec![hca.parse().map_err(anyhow::Error::msg)?];
        let cx = MaySleep::claim().context("a pair has been started in this thread before")?;
        let config = DaemonConfig { workers, hcas, wire: Default::default() };
        let daemon = Daemon::start(&cx, &config)?;
        Self::with(Rc::new(cx), daemon, &memory, 1)
    }

    /// Starts them, with a worker whose turns are the caller's to take.
    ///
    /// # Errors
    /// As `start`.
    pub fn stepped(memory: [u64; 2]) -> Result<(Self, Loop)> {
        let (workers, turns) = Workers::stepped()?;
        let cx = MaySleep::claim().context("a pair has been started in this thread before")?;
        let daemon = Daemon::with_workers(&cx, workers)?;
        Ok((Self::with(Rc::new(cx), daemon, &memory, 1)?, turns))
    }

    fn with(cx: Rc<MaySleep>, mut daemon: Daemon, memory: &[u64], vectors: u16) -> Result<Self> {
        let sockets = tempfile::tempdir()?;
        let mut guests = Vec::new();
        for (n, memory) in memory.iter().enumerate() {
            let path = sockets.path().join(format!("{n}.sock"));
            let device = DeviceConfig {
                name: format!("vm{n}"),
                mac: [0x52, 0x54, 0, 0, 0, n as u8 + 1],
                network: 0,
                vectors,
                hca: None,
            };
            daemon.add_device(&cx, SocketConfig::new(path.clone(), device))?;
            guests.push(Guest::new(&path, *memory, vectors)?);
        }
        let mut guests = guests.into_iter();
        let (a, b) = (guests.next().context("a VM")?, guests.next().context("a second VM")?);
        Ok(Self { a, b, neighbour: guests.next(), daemon: Some(daemon), cx, _sockets: sockets })
    }

    /// A connection with CQs of its own.
    ///
    /// # Errors
    /// What the device answers.
    pub fn connect(&self) -> Result<Connection> {
        let options = QpOptions {
            sq_entries: DEPTH as u32,
            rq_entries: DEPTH as u32,
            max_send_sge: 2,
            max_recv_sge: 2,
            max_inline: 32,
            ..QpOptions::default()
        };
        let end = |guest: &Guest| -> Result<End> {
            let cq = guest.driver.create_cq(CQ_ENTRIES, 0)?;
            let qp = guest.driver.create_qp(&guest.pd, &cq, &cq, &options)?;
            Ok(End { qp, cq })
        };
        let (mut a, mut b) = (end(&self.a)?, end(&self.b)?);
        connect_rc(&mut a.qp, &mut b.qp, &RcOptions::default())?;
        Ok(Connection { a, b })
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.a.vm.disconnect();
        self.b.vm.disconnect();
        self.neighbour.iter().for_each(|guest| guest.vm.disconnect());
        if let Some(daemon) = self.daemon.take() {
            daemon.stop(&self.cx);
        }
    }
}

/// One end of a connection.
pub struct End {
    /// The QP.
    pub qp: Qp,
    /// Where both its queues complete.
    pub cq: Cq,
}

/// Two connected QPs of two VMs.
pub struct Connection {
    /// The end that sends.
    pub a: End,
    /// The end that receives.
    pub b: End,
}
