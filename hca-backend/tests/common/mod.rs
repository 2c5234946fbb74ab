// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests of the soft HCA share: memory, sinks for completions and events, pairs of QPs, and
//! a clock that can be put forward. No tests here.

#![allow(dead_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hca_backend::soft::{Config, Limits, SoftHca};
use rdma_midlayer::MaySleep;
use rdma_midlayer::attr::{AhAttr, GidEntry, QpAttr, QpAttrMask, QpCap};
use rdma_midlayer::driver::*;
use rdma_midlayer::memory::{Mapping, Run, UserMemory};
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

/// Memory that looks like a guest's.
pub struct Ram(Box<[AtomicU64]>);

// SAFETY: the words live as long as the value and are atomics, so writes through a shared pointer are
// allowed.
unsafe impl Mapping for Ram {
    fn base(&self) -> *mut u8 {
        let start = self.0.as_ptr().cast_mut().cast::<u8>();
        start.wrapping_add(start.align_offset(PAGE))
    }
    fn len(&self) -> usize {
        self.0.len() * 8 - PAGE
    }
}

/// An HCA of the host's wants memory at a page's start, as a guest's is.
const PAGE: usize = 4096;

impl Ram {
    pub fn mapping(bytes: usize) -> Arc<dyn Mapping> {
        Arc::new(Self((0..(bytes + PAGE).div_ceil(8)).map(|_| AtomicU64::new(0)).collect()))
    }
}

/// `len` bytes of `ram` at `offset`, under the address `start`.
pub fn window(ram: &Arc<dyn Mapping>, start: u64, offset: usize, len: usize) -> UserMemory {
    let run = Run { mapping: ram.clone(), offset, len };
    UserMemory::new(start, len as u64, 0, None, [run]).unwrap()
}

/// Completions in the consumer's memory.
pub struct CqSink {
    pub room: usize,
    pub wcs: Mutex<VecDeque<WorkCompletion>>,
    pub events: AtomicUsize,
    pub solicited: AtomicUsize,
    /// From now on nobody may write here.
    pub closed: AtomicBool,
    /// Set while a call is inside: calls must not overlap.
    inside: AtomicBool,
}

impl CqSink {
    pub fn new(room: usize) -> Arc<Self> {
        Arc::new(Self {
            room,
            wcs: Mutex::new(VecDeque::new()),
            events: AtomicUsize::new(0),
            solicited: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            inside: AtomicBool::new(false),
        })
    }

    pub fn take(&self) -> Option<WorkCompletion> {
        self.wcs.lock().unwrap().pop_front()
    }

    pub fn len(&self) -> usize {
        self.wcs.lock().unwrap().len()
    }

    pub fn drain(&self) -> Vec<WorkCompletion> {
        self.wcs.lock().unwrap().drain(..).collect()
    }

    /// (wr_id, status) of all.
    pub fn statuses(&self) -> Vec<(u64, WcStatus)> {
        self.drain().iter().map(|wc| (wc.wr_id, wc.status)).collect()
    }
}

impl CqMemory for CqSink {
    fn push(&self, wc: &WorkCompletion) -> Result<(), Overflow> {
        assert!(!self.inside.swap(true, Ordering::SeqCst), "two calls at once");
        assert!(!self.closed.load(Ordering::SeqCst), "nobody may write here any more");
        let mut wcs = self.wcs.lock().unwrap();
        let room = wcs.len() < self.room;
        if room {
            wcs.push_back(*wc);
        }
        self.inside.store(false, Ordering::SeqCst);
        if room { Ok(()) } else { Err(Overflow) }
    }
}

impl CqEvents for CqSink {
    fn completed(&self, solicited: bool) {
        assert!(!self.wcs.lock().unwrap().is_empty() || self.room > 0);
        self.events.fetch_add(1, Ordering::SeqCst);
        self.solicited.fetch_add(usize::from(solicited), Ordering::SeqCst);
    }
}

/// Asynchronous events.
#[derive(Default)]
pub struct EventLog(pub Mutex<Vec<AsyncEvent>>);

impl EventSink for EventLog {
    fn dispatch(&self, event: AsyncEvent) {
        self.0.lock().unwrap().push(event);
    }
}

impl EventLog {
    pub fn drain(&self) -> Vec<AsyncEvent> {
        self.0.lock().unwrap().drain(..).collect()
    }
}

/// wr_id and SGEs, or the wr_id of one that makes no sense.
type RingWqe = Result<(u64, Vec<Sge>), u64>;

/// Receive WQEs in the consumer's memory.
#[derive(Default)]
pub struct RecvRing {
    pub wqes: Mutex<VecDeque<RingWqe>>,
    pub doorbell: AtomicBool,
    inside: AtomicBool,
}

impl RecvRing {
    pub fn post(&self, wr_id: u64, sges: &[Sge]) -> bool {
        self.wqes.lock().unwrap().push_back(Ok((wr_id, sges.to_vec())));
        self.doorbell.load(Ordering::SeqCst)
    }
}

impl RecvSource for RecvRing {
    fn take(&self, wqe: &mut RecvWqe) -> Result<Taken, MalformedWqe> {
        assert!(!self.inside.swap(true, Ordering::SeqCst), "two calls at once");
        let taken = match self.wqes.lock().unwrap().pop_front() {
            Some(Ok((wr_id, sges))) => {
                wqe.set(wr_id, wr_id as u32, sges.into_iter());
                Ok(Taken::Wqe)
            }
            Some(Err(wr_id)) => Err(MalformedWqe { wr_id, ticket: wr_id as u32 }),
            None => Ok(Taken::Empty),
        };
        self.inside.store(false, Ordering::SeqCst);
        taken
    }

    fn peek_short(&self, to: &mut [ShortRecv]) -> usize {
        assert!(!self.inside.swap(true, Ordering::SeqCst), "two calls at once");
        let wqes = self.wqes.lock().unwrap();
        let shorts = wqes.iter().map_while(|wqe| match wqe {
            Ok((wr_id, sges)) if sges.len() == 1 => {
                Some(ShortRecv { wr_id: *wr_id, ticket: *wr_id as u32, sge: sges[0] })
            }
            _ => None,
        });
        let shown = to.iter_mut().zip(shorts).map(|(to, short)| *to = short).count();
        self.inside.store(false, Ordering::SeqCst);
        shown
    }

    fn advance(&self, count: usize) {
        assert!(!self.inside.swap(true, Ordering::SeqCst), "two calls at once");
        self.wqes.lock().unwrap().drain(..count);
        self.inside.store(false, Ordering::SeqCst);
    }

    fn want_doorbell(&self, wanted: bool) {
        self.doorbell.store(wanted, Ordering::SeqCst);
    }
}

/// Counts what a driver says.
#[derive(Default)]
pub struct Bell(pub AtomicUsize);

impl SendReady for Bell {
    fn send_ready(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Waker for Bell {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The binary that runs the tests of the others over packets instead of by direct copy.
pub const FORCE_WIRE: bool = starts_with(module_path!(), "over_wire");

const fn starts_with(text: &str, start: &str) -> bool {
    let (text, start) = (text.as_bytes(), start.as_bytes());
    let mut i = 0;
    while i < start.len() && i < text.len() && text[i] == start[i] {
        i += 1;
    }
    i == start.len()
}

/// An HCA, the thread's right to sleep, and a clock.
pub struct Lab {
    pub cx: MaySleep,
    pub hca: Arc<dyn HcaDriver>,
    pub pollers: Vec<Arc<dyn Poller>>,
    ahead: Arc<Mutex<Duration>>,
    /// Threads run the pollers.
    workers: Arc<AtomicBool>,
}

impl Lab {
    pub fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub fn with_limits(limits: Limits) -> Self {
        Self::with(limits, 1)
    }

    pub fn with_pollers(pollers: usize) -> Self {
        Self::with(Limits::default(), pollers)
    }

    fn with(limits: Limits, pollers: usize) -> Self {
        let force_wire = FORCE_WIRE;
        let config = Config { name: "soft0".into(), pollers, limits, force_wire };
        Self::of(MaySleep::claim().unwrap(), Arc::new(SoftHca::new(config)))
    }

    /// With any HCA.
    pub fn of(cx: MaySleep, hca: Arc<dyn HcaDriver>) -> Self {
        let pollers = hca.pollers();
        Self { cx, hca, pollers, ahead: Arc::default(), workers: Arc::default() }
    }

    /// The QP, over the wire one that does not wait for `run`.
    pub fn eager(&self, qp: Arc<dyn QpDriver>) -> Arc<dyn QpDriver> {
        if !FORCE_WIRE {
            return qp;
        }
        let (pollers, ahead, workers) =
            (self.pollers.clone(), self.ahead.clone(), self.workers.clone());
        Arc::new(Eager { qp, pollers, ahead, workers })
    }

    pub fn now(&self) -> Instant {
        Instant::now() + *self.ahead.lock().unwrap()
    }

    /// Puts the clock forward.
    pub fn sleep(&self, time: Duration) {
        *self.ahead.lock().unwrap() += time;
    }

    /// Polls each poller from a thread of its own while `work` runs.
    pub fn with_workers<R>(&self, work: impl FnOnce() -> R) -> R {
        let stop = AtomicBool::new(false);
        self.workers.store(true, Ordering::SeqCst);
        /// The workers are gone.
        struct Rest<'a>(&'a AtomicBool);
        impl Drop for Rest<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::SeqCst);
            }
        }
        /// Stops the workers even if the work panics.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        std::thread::scope(|scope| {
            let _stop = (Stop(&stop), Rest(&self.workers));
            for poller in &self.pollers {
                scope.spawn(|| {
                    while !stop.load(Ordering::SeqCst) {
                        if !poller.poll(Instant::now(), 8).worked {
                            std::thread::sleep(Duration::from_micros(20));
                        }
                    }
                });
            }
            work()
        })
    }

    /// Runs the pollers until there is nothing to do now.
    pub fn run(&self) {
        while self.pollers.iter().map(|p| p.poll(self.now(), 16)).any(|turn| turn.worked) {}
    }

    /// Runs the pollers, and puts the clock forward to each deadline within `time`.
    pub fn run_for(&self, time: Duration) {
        let end = self.now() + time;
        loop {
            self.run();
            let next = self.pollers.iter().filter_map(|p| p.poll(self.now(), 1).deadline).min();
            match next {
                Some(at) if at <= end => self.sleep(at.saturating_duration_since(self.now())),
                _ => break,
            }
        }
        self.sleep(end.saturating_duration_since(self.now()));
        self.run();
    }

    pub fn tenant(&self, network: u64, last: u8) -> Tenant {
        let events = Arc::new(EventLog::default());
        let init = ContextInit { network, name: format!("t{last}"), events: events.clone() };
        let context = self.hca.alloc_context(&self.cx, init).unwrap();
        context.add_gid(&self.cx, 0, &gid_entry(last)).unwrap();
        let pd = context.alloc_pd(&self.cx).unwrap();
        Tenant { context, pd, events, gid: gid_entry(last).gid }
    }

    /// Two tenants with a connected QP each.
    pub fn pair(&self) -> (End, End) {
        self.pair_with(&Setup::default(), &Setup::default())
    }

    pub fn pair_with(&self, a: &Setup, b: &Setup) -> (End, End) {
        let a = End::new(self, self.tenant(1, 1), a);
        let b = End::new(self, self.tenant(1, 2), b);
        self.connect(&a, &b);
        (a, b)
    }

    pub fn pair_with_tenants(&self, a: Tenant, b: Tenant) -> (End, End) {
        let setup = Setup::default();
        let (a, b) = (End::new(self, a, &setup), End::new(self, b, &setup));
        self.connect(&a, &b);
        (a, b)
    }

    pub fn connect(&self, a: &End, b: &End) {
        self.to_rts(a, b, 100, 200);
        self.to_rts(b, a, 200, 100);
    }

    pub fn to_rts(&self, end: &End, peer: &End, sq_psn: u32, rq_psn: u32) {
        self.to_rtr(end, peer, rq_psn);
        let attr = QpAttr { sq_psn: Psn::new(sq_psn), ..end.attr };
        self.modify(end, QpState::Rts, attr, RTS);
    }

    pub fn to_rtr(&self, end: &End, peer: &End, rq_psn: u32) {
        self.modify(end, QpState::Init, end.attr, INIT);
        let attr = QpAttr {
            dest_qpn: peer.qp.qpn(),
            rq_psn: Psn::new(rq_psn),
            ah: AhAttr { dgid: peer.tenant.gid, port: 1, ..AhAttr::default() },
            ..end.attr
        };
        self.modify(end, QpState::Rtr, attr, RTR);
    }

    pub fn modify(&self, end: &End, state: QpState, attr: QpAttr, mask: QpAttrMask) {
        let cur_state = end.qp.query(&self.cx).unwrap().state;
        let attr = QpAttr { state, cur_state, ..attr };
        end.qp.modify(&self.cx, &attr, mask | QpAttrMask::STATE).unwrap();
    }

    pub fn move_to(&self, end: &End, state: QpState) {
        self.modify(end, state, end.attr, QpAttrMask::STATE);
    }

    pub fn state(&self, end: &End) -> QpState {
        end.qp.query(&self.cx).unwrap().state
    }
}

pub const INIT: QpAttrMask =
    QpAttrMask(QpAttrMask::PKEY_INDEX.0 | QpAttrMask::PORT.0 | QpAttrMask::ACCESS_FLAGS.0);
pub const RTR: QpAttrMask = QpAttrMask(
    QpAttrMask::AV.0
        | QpAttrMask::PATH_MTU.0
        | QpAttrMask::DEST_QPN.0
        | QpAttrMask::RQ_PSN.0
        | QpAttrMask::MAX_DEST_RD_ATOMIC.0
        | QpAttrMask::MIN_RNR_TIMER.0,
);
pub const RTS: QpAttrMask = QpAttrMask(
    QpAttrMask::TIMEOUT.0
        | QpAttrMask::RETRY_CNT.0
        | QpAttrMask::RNR_RETRY.0
        | QpAttrMask::SQ_PSN.0
        | QpAttrMask::MAX_QP_RD_ATOMIC.0,
);

pub fn gid_entry(last: u8) -> GidEntry {
    let gid = Gid(std::net::Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets());
    GidEntry { gid, mac: [2, 0, 0, 0, 0, last], vlan: None }
}

pub const REMOTE_ALL: Access = Access(
    Access::LOCAL_WRITE.0
        | Access::REMOTE_WRITE.0
        | Access::REMOTE_READ.0
        | Access::REMOTE_ATOMIC.0,
);

pub struct Tenant {
    pub context: Arc<dyn ContextDriver>,
    pub pd: Arc<dyn PdDriver>,
    pub events: Arc<EventLog>,
    pub gid: Gid,
}

/// How to make an end.
#[derive(Clone)]
pub struct Setup {
    pub qp_type: QpType,
    pub privileged: bool,
    pub srq: Option<Arc<dyn SrqDriver>>,
    pub attr: QpAttr,
    pub cap: QpCap,
    pub signal_all: bool,
    pub ring: Option<Arc<RecvRing>>,
    pub ready: Option<Arc<Bell>>,
    pub cq_room: usize,
    pub memory: usize,
    pub poller: usize,
    pub block_self_mcast: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            qp_type: QpType::Rc,
            privileged: false,
            srq: None,
            attr: QpAttr {
                access: REMOTE_ALL,
                timeout: 14,
                retry_cnt: 7,
                rnr_retry: 7,
                min_rnr_timer: 12,
                max_rd_atomic: 16,
                max_dest_rd_atomic: 16,
                ..QpAttr::default()
            },
            cap: QpCap {
                max_send_wr: 64,
                max_recv_wr: 64,
                max_send_sge: 30,
                max_recv_sge: 30,
                max_inline: 256,
            },
            signal_all: false,
            ring: None,
            ready: None,
            cq_room: 1 << 20,
            memory: 1 << 20,
            poller: 0,
            block_self_mcast: false,
        }
    }
}

/// The address under which an end's memory begins.
pub const BASE: u64 = 0x10_0000;

/// A QP with its CQs and an MR.
pub struct End {
    pub tenant: Tenant,
    pub attr: QpAttr,
    pub send: Arc<CqSink>,
    pub recv: Arc<CqSink>,
    pub cqs: [Arc<dyn CqDriver>; 2],
    pub qp: Arc<dyn QpDriver>,
    pub memory: UserMemory,
    pub ram: Arc<dyn Mapping>,
    pub mr: Arc<dyn MrDriver>,
}

impl End {
    pub fn new(lab: &Lab, tenant: Tenant, setup: &Setup) -> Self {
        let sinks = [CqSink::new(setup.cq_room), CqSink::new(setup.cq_room)];
        let cqs = sinks.clone().map(|sink| {
            let init = CqInit { cqe: 1 << 20, vector: 0, memory: Some(sink.clone()), events: sink };
            tenant.context.create_cq(&lab.cx, init).unwrap()
        });
        let ram = Ram::mapping(setup.memory);
        let whole = || window(&ram, BASE, 0, setup.memory);
        let mr = tenant.pd.reg_mr(&lab.cx, whole(), REMOTE_ALL).unwrap();
        let [send, recv] = sinks;
        let init = QpInit {
            qp_type: setup.qp_type,
            send_cq: cqs[0].clone(),
            recv_cq: cqs[1].clone(),
            cap: setup.cap,
            signal_all: setup.signal_all,
            privileged: setup.privileged,
            poller: setup.poller,
            recv_source: setup.ring.clone().map(|r| r as Arc<dyn RecvSource>),
            send_ready: setup.ready.clone().map(|r| r as Arc<dyn SendReady>),
            srq: setup.srq.clone(),
            xrcd: None,
            block_self_mcast: setup.block_self_mcast,
        };
        let qp = lab.eager(tenant.pd.create_qp(&lab.cx, init).unwrap());
        let memory = whole();
        Self { tenant, attr: setup.attr, send, recv, cqs, qp, memory, ram, mr }
    }

    /// An SGE of this end's memory.
    pub fn sge(&self, offset: u64, length: u32) -> Sge {
        Sge { addr: BASE + offset, length, lkey: self.mr.lkey() }
    }

    /// A signalled WR against this end's peer.
    pub fn wr<'a>(
        &self,
        wr_id: u64,
        opcode: WrOpcode,
        sges: &'a [Sge],
        peer: &End,
        offset: u64,
    ) -> SendWr<'a> {
        SendWr {
            wr_id,
            ticket: wr_id as u32,
            opcode,
            flags: SendFlags::SIGNALED,
            data: SendData::Sges(sges),
            imm: 0,
            remote_addr: BASE + offset,
            rkey: peer.mr.rkey(),
            compare_add: 0,
            swap: 0,
            ud: None,
            srqn: None,
        }
    }

    pub fn post_recv(&self, wr_id: u64, sges: &[Sge]) {
        self.qp.post_recv(&RecvWr { wr_id, ticket: wr_id as u32, sges }).unwrap();
    }

    pub fn fill(&self, offset: u64, bytes: &[u8]) {
        self.memory.write(BASE + offset, bytes).unwrap();
    }

    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(BASE + offset, &mut bytes).unwrap();
        bytes
    }
}

/// A QP whose packets are moved as soon as there is something to do: over the wire a call of `post_send`
/// has then done as much as by the direct way.
struct Eager {
    qp: Arc<dyn QpDriver>,
    pollers: Vec<Arc<dyn Poller>>,
    ahead: Arc<Mutex<Duration>>,
    workers: Arc<AtomicBool>,
}

impl Eager {
    fn run<T>(&self, result: T) -> T {
        if !self.workers.load(Ordering::SeqCst) {
            let now = || Instant::now() + *self.ahead.lock().unwrap();
            while self.pollers.iter().map(|p| p.poll(now(), 16)).any(|turn| turn.worked) {}
        }
        result
    }
}

impl QpDriver for Eager {
    fn qpn(&self) -> Qpn {
        self.qp.qpn()
    }
    fn cap(&self) -> QpCap {
        self.qp.cap()
    }
    fn modify(&self, cx: &MaySleep, attr: &QpAttr, mask: QpAttrMask) -> rdma_midlayer::Result<()> {
        self.qp.modify(cx, attr, mask)
    }
    fn query(&self, cx: &MaySleep) -> rdma_midlayer::Result<QpAttr> {
        self.qp.query(cx)
    }
    fn destroy(&self, cx: &MaySleep) -> rdma_midlayer::Result<()> {
        self.qp.destroy(cx)
    }
    fn post_send(&self, wr: &SendWr<'_>) -> rdma_midlayer::Result<()> {
        self.run(self.qp.post_send(wr))
    }
    fn post_send_list(&self, wrs: &[SendWr<'_>]) -> Result<(), BadWr> {
        self.run(self.qp.post_send_list(wrs))
    }
    fn post_short_list(&self, wrs: &[ShortWr]) -> Result<(), BadWr> {
        self.run(self.qp.post_short_list(wrs))
    }
    fn post_malformed_send(&self, wqe: MalformedWqe) -> rdma_midlayer::Result<()> {
        self.run(self.qp.post_malformed_send(wqe))
    }
    fn post_recv(&self, wr: &RecvWr<'_>) -> rdma_midlayer::Result<()> {
        self.qp.post_recv(wr)
    }
    fn recv_posted(&self) {
        self.qp.recv_posted();
    }
    fn attach_mcast(&self, cx: &MaySleep, gid: &Gid, lid: u16) -> rdma_midlayer::Result<()> {
        self.qp.attach_mcast(cx, gid, lid)
    }
    fn detach_mcast(&self, cx: &MaySleep, gid: &Gid, lid: u16) -> rdma_midlayer::Result<()> {
        self.qp.detach_mcast(cx, gid, lid)
    }
}

/// Bytes that differ from place to place.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 24) as u8
        })
        .collect()
}
