// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests share: a daemon, connected pairs, patterns, and a bystander who must not notice
//! what happens to others.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use front_end::abi::control::*;
use front_end::abi::ring::{WC_SUCCESS, WC_WR_FLUSH_ERR};
use front_end::{
    Buffer, CommandError, Cq, Driver, Mr, Pd, Qp, QpOptions, RcOptions, SendWr, Status, Vm,
    VmConfig, Wc, access, connect_rc,
};
use rdma_midlayer::MaySleep;
use vhost_rdma::{
    Cpus, Daemon, DaemonConfig, DeviceConfig, SocketConfig, WireConfig, WorkerConfig,
};

pub type TestResult<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What the device can do.
pub const CAPABILITIES: u64 = CAP_UC
    | CAP_UD
    | CAP_SRQ
    | CAP_SRQ_RESIZE
    | CAP_CQ_RESIZE
    | CAP_CQ_MODERATION
    | CAP_TIMESTAMP
    | CAP_FAST_REG
    | CAP_MW
    | CAP_REREG_MR
    | CAP_MCAST
    | CAP_XRC
    | CAP_ATOMIC_WRITE
    | CAP_FLUSH
    | CAP_LOCAL_DMA_LKEY
    | CAP_DEVICE_MEMORY
    | CAP_ON_DEMAND;

/// Longer than anything takes on a loaded machine.
pub const LONG: Duration = Duration::from_secs(60);

/// In which nothing is expected to happen.
pub const SHORT: Duration = Duration::from_millis(150);

/// Whether the HCA is the soft one. If not, says why the test is not about others.
pub fn soft_alone(why: &str) -> bool {
    let soft = crate::hca() == vhost_rdma::HcaSpec::default();
    if !soft {
        eprintln!("not over this HCA: {why}");
    }
    soft
}

/// A daemon with its sockets in a folder of its own, or two that a wire joins, which then serve every
/// other device. They live in a thread, which holds the token that lets them sleep.
pub struct TestDaemon {
    orders: mpsc::Sender<Order>,
    done: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
    folder: tempfile::TempDir,
}

enum Order {
    RemoveHca,
    AddHca,
}

impl TestDaemon {
    /// A daemon for `devices` VMs.
    pub fn start(devices: usize) -> TestResult<Self> {
        static LOGS: std::sync::Once = std::sync::Once::new();
        LOGS.call_once(|| env_logger::Builder::from_default_env().is_test(true).init());
        let folder = tempfile::tempdir()?;
        let sockets: Vec<PathBuf> = (0..devices).map(|n| socket(folder.path(), n)).collect();
        let (orders, inbox) = mpsc::channel();
        let (outbox, done) = mpsc::channel();
        let wire = crate::wire(folder.path());
        let thread = std::thread::spawn(move || run_daemons(&sockets, &wire, &inbox, &outbox));
        let daemon = Self { orders, done, thread: Some(thread), folder };
        daemon.done.recv_timeout(LONG)?;
        Ok(daemon)
    }

    /// Unplugs the HCA.
    pub fn remove_hca(&self) -> TestResult {
        self.orders.send(Order::RemoveHca)?;
        Ok(self.done.recv_timeout(LONG)?)
    }

    /// Plugs it in again.
    pub fn add_hca(&self) -> TestResult {
        self.orders.send(Order::AddHca)?;
        Ok(self.done.recv_timeout(LONG)?)
    }

    /// The socket of device `n`.
    pub fn socket(&self, n: usize) -> PathBuf {
        socket(self.folder.path(), n)
    }

    /// A VM with device `n`.
    pub fn vm(&self, n: usize) -> TestResult<Vm> {
        self.vm_with(n, VmConfig { memory: 64 << 20, ..VmConfig::default() })
    }

    /// A VM with device `n`, of a kind.
    pub fn vm_with(&self, n: usize, config: VmConfig) -> TestResult<Vm> {
        Ok(Vm::connect(self.socket(n), config)?)
    }
}

fn socket(folder: &Path, n: usize) -> PathBuf {
    folder.join(format!("vm{n}.sock"))
}

/// How many daemons there are, and what joins them.
pub struct Wire {
    /// The ports of each daemon.
    pub ports: Vec<WireConfig>,
    /// What the daemons' thread does first.
    pub prepare: fn(),
}

impl Wire {
    /// One daemon without ports.
    pub fn none() -> Self {
        Self { ports: vec![WireConfig::default()], prepare: || {} }
    }
}

/// The daemons' thread: says when they have started, and when each order is carried out.
fn run_daemons(
    sockets: &[PathBuf],
    wire: &Wire,
    inbox: &mpsc::Receiver<Order>,
    outbox: &mpsc::Sender<()>,
) {
    let cx = MaySleep::claim().expect("a new thread");
    (wire.prepare)();
    let start = |wire: &WireConfig| {
        let config = DaemonConfig {
            workers: WorkerConfig::new(2, Cpus::default(), Duration::from_micros(50)),
            hcas: vec![crate::hca()],
            wire: wire.clone(),
        };
        Daemon::start(&cx, &config).expect("the daemon starts")
    };
    let mut daemons: Vec<Daemon> = wire.ports.iter().map(start).collect();
    let count = daemons.len();
    for (n, path) in sockets.iter().enumerate() {
        let device =
            DeviceConfig { name: format!("vm{n}"), mac: [0; 6], network: 0, vectors: 4, hca: None };
        let config = SocketConfig::new(path.clone(), device);
        daemons[n % count].add_device(&cx, config).expect("the device is added");
    }
    // The test may have ended before; then there is nobody to tell.
    let _ = outbox.send(());
    while let Ok(order) = inbox.recv() {
        for daemon in &mut daemons {
            match order {
                Order::RemoveHca => {
                    daemon.remove_hca(&cx, &crate::hca().name).expect("the HCA is removed");
                }
                Order::AddHca => {
                    daemon.add_hca(&cx, crate::hca()).expect("the HCA is added");
                }
            }
        }
        let _ = outbox.send(());
    }
    daemons.into_iter().for_each(|daemon| daemon.stop(&cx));
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        // Without a sender the thread ends.
        self.orders = mpsc::channel().0;
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(ended.is_none_or(|ended| ended.is_ok()), "the daemon panicked");
        }
    }
}

/// A VM's side: driver, PD, CQs, memory with a key.
pub struct Side {
    pub vm: Vm,
    pub driver: Driver,
    pub pd: Pd,
    pub send_cq: Cq,
    pub recv_cq: Cq,
    pub buffer: Buffer,
    pub mr: Mr,
}

impl Side {
    /// On a VM without a driver yet.
    pub fn new(vm: Vm, bytes: usize, cq_entries: u32) -> TestResult<Self> {
        let driver = vm.driver()?;
        let pd = driver.alloc_pd()?;
        let buffer = vm.memory().alloc_scattered(bytes)?;
        Ok(Self {
            send_cq: driver.create_cq(cq_entries, 0)?,
            recv_cq: driver.create_cq(cq_entries, driver.queues().vectors() - 1)?,
            mr: driver.reg_mr(&pd, &buffer, access::ALL)?,
            vm,
            driver,
            pd,
            buffer,
        })
    }

    /// A QP on this side's CQs.
    pub fn qp(&self, options: &QpOptions) -> TestResult<Qp> {
        Ok(self.driver.create_qp(&self.pd, &self.send_cq, &self.recv_cq, options)?)
    }
}

/// Two VMs of one daemon, with connected QPs.
pub struct Pair {
    pub a: Side,
    pub b: Side,
    pub qa: Qp,
    pub qb: Qp,
}

/// What a pair is made with.
#[derive(Clone)]
pub struct PairOptions {
    pub qp: QpOptions,
    pub rc: RcOptions,
    pub cq_entries: u32,
    /// Of each side's MR.
    pub bytes: usize,
    pub vm: VmConfig,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            qp: QpOptions::default(),
            rc: RcOptions::default(),
            cq_entries: 256,
            bytes: 256 << 10,
            vm: VmConfig { memory: 64 << 20, ..VmConfig::default() },
        }
    }
}

impl Pair {
    /// Devices `first` and `first + 1` of a daemon.
    pub fn new(daemon: &TestDaemon, first: usize, options: &PairOptions) -> TestResult<Self> {
        let side = |n| {
            Side::new(daemon.vm_with(n, options.vm.clone())?, options.bytes, options.cq_entries)
        };
        let (a, b) = (side(first)?, side(first + 1)?);
        let (mut qa, mut qb) = (a.qp(&options.qp)?, b.qp(&options.qp)?);
        connect_rc(&mut qa, &mut qb, &options.rc)?;
        Ok(Self { a, b, qa, qb })
    }

    /// A daemon of two devices, and a pair on them.
    pub fn start(options: &PairOptions) -> TestResult<(TestDaemon, Self)> {
        let daemon = TestDaemon::start(2)?;
        let pair = Self::new(&daemon, 0, options)?;
        Ok((daemon, pair))
    }

    /// One SEND, checked at both ends.
    pub fn ping(&mut self) -> TestResult {
        let seed = self.qa.posted().0 as u8;
        fill(&self.a.buffer, 0, 3000, seed);
        self.qb.post_recv(21, &[self.b.mr.sge(100, 3000)])?;
        self.qa.post_send(&SendWr::send(22, &[self.a.mr.sge(0, 3000)]).signaled())?;
        let sent = self.a.send_cq.wait_one(LONG)?;
        assert_eq!((sent.wr_id, sent.status), (22, WC_SUCCESS));
        let received = self.b.recv_cq.wait_one(LONG)?;
        assert_eq!((received.wr_id, received.status, received.byte_len), (21, WC_SUCCESS, 3000));
        check(&self.b.buffer, 100, 3000, seed);
        Ok(())
    }

    /// A new connected QP at each end, in place of the old ones, which are destroyed.
    pub fn renew_qps(&mut self, options: &PairOptions) -> TestResult {
        let qa = self.a.qp(&options.qp)?;
        let qb = self.b.qp(&options.qp)?;
        let old = [std::mem::replace(&mut self.qa, qa), std::mem::replace(&mut self.qb, qb)];
        self.a.driver.destroy_qp(&old[0])?;
        self.b.driver.destroy_qp(&old[1])?;
        for cq in [&mut self.a.send_cq, &mut self.a.recv_cq] {
            cq.clean(old[0].number());
        }
        for cq in [&mut self.b.send_cq, &mut self.b.recv_cq] {
            cq.clean(old[1].number());
        }
        connect_rc(&mut self.qa, &mut self.qb, &options.rc)?;
        Ok(())
    }
}

/// A pair on devices of its own, which works whatever happens to the other VMs.
pub struct Bystander(Pair);

impl Bystander {
    pub fn new(daemon: &TestDaemon, first: usize) -> TestResult<Self> {
        Ok(Self(Pair::new(daemon, first, &PairOptions::default())?))
    }

    /// Transfers of each kind still work.
    pub fn check(&mut self) -> TestResult {
        for _ in 0..3 {
            self.0.ping()?;
        }
        let Pair { a, b, qa, qb: _ } = &mut self.0;
        fill(&a.buffer, 0, 9000, 77);
        qa.post_send(&SendWr::write(1, &[a.mr.sge(0, 9000)], b.mr.remote(20_000)).signaled())?;
        qa.post_send(&SendWr::read(2, &[a.mr.sge(40_000, 9000)], b.mr.remote(20_000)).signaled())?;
        for wr_id in [1, 2] {
            let wc = a.send_cq.wait_one(LONG)?;
            assert_eq!((wc.wr_id, wc.status), (wr_id, WC_SUCCESS));
        }
        check(&b.buffer, 20_000, 9000, 77);
        check(&a.buffer, 40_000, 9000, 77);
        Ok(())
    }
}

/// After so many bytes a pattern repeats: a prime, so no two pages are alike.
const PERIOD: usize = 65_521;

/// Byte `n` of the pattern of a seed: its neighbours, and the same place on another page, differ.
pub fn pattern(seed: u8, n: usize) -> u8 {
    let n = (n % PERIOD) as u32;
    (n.wrapping_mul(0x9e37_79b1) >> 24) as u8 ^ seed
}

fn period(seed: u8, len: usize) -> Vec<u8> {
    (0..len.min(PERIOD)).map(|n| pattern(seed, n)).collect()
}

/// Writes the pattern of a seed.
pub fn fill(buffer: &Buffer, offset: usize, len: usize, seed: u8) {
    let period = period(seed, len);
    for at in (0..len).step_by(PERIOD) {
        buffer.write(offset + at, &period[..period.len().min(len - at)]);
    }
}

/// Checks every byte of the pattern of a seed.
#[track_caller]
pub fn check(buffer: &Buffer, offset: usize, len: usize, seed: u8) {
    let bytes = buffer.read(offset, len);
    let period = period(seed, len);
    let same = |chunk: &[u8]| chunk == &period[..chunk.len()];
    if bytes.chunks(PERIOD).all(same) {
        return;
    }
    if let Some(n) = (0..len).find(|n| bytes[*n] != pattern(seed, *n)) {
        let wanted = pattern(seed, n);
        panic!("byte {n} of {len} at offset {offset} is {:#x}, not {wanted:#x}", bytes[n]);
    }
}

/// Waits until every byte of the pattern of a seed is there: of what nobody acknowledges.
pub fn wait_for(buffer: &Buffer, offset: usize, len: usize, seed: u8) {
    let until = Instant::now() + LONG;
    let last = |n: usize| buffer.read(offset + n - 1, 1)[0] == pattern(seed, n - 1);
    while len > 0 && !last(len) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    check(buffer, offset, len, seed);
}

/// Checks that a command was refused with that status.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, CommandError>, status: Status) {
    match result {
        Err(CommandError::Refused(got)) => assert_eq!(got, status),
        other => panic!("{status:?} was expected, not {other:?}"),
    }
}

/// Checks that completions are flushes of those work requests, in order.
#[track_caller]
pub fn flushed(wcs: &[Wc], wr_ids: &[u64]) {
    let got: Vec<_> = wcs.iter().map(|wc| (wc.wr_id, wc.status)).collect();
    let wanted: Vec<_> = wr_ids.iter().map(|wr_id| (*wr_id, WC_WR_FLUSH_ERR)).collect();
    assert_eq!(got, wanted);
}

/// A generator of test numbers, the same in each run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
