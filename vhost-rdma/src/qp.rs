// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver's QP on the data path: from its rings to the HCA. Its home worker takes turns with
//! it while it is busy; any thread may ask for attention. What creates and destroys it is `control`; which
//! worker has it, `seat`.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use rdma_midlayer::driver::{MalformedWqe, RecvSource, SendReady, Taken};
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::types::{Qpn, RKey, WrOpcode};
use rdma_midlayer::verbs::Qp;
use rdma_midlayer::work::{RecvWqe, SendData, SendWr, ShortRecv, ShortWr};
use rdma_midlayer::{Error, Result};

use crate::ah::AhCache;
use crate::device::Gate;
use crate::doorbell::{self, Machine};
use crate::fast::{self, FastMrs};
use crate::ring::recv::RecvRing;
use crate::ring::send::{BURST, Ended, SendBuffer, SendRing, ShortList};
use crate::seat::Seat;
use crate::share::{COST_BYTES, Queue};
use crate::worker::Homes;

const SQ_MODE: u64 = std::mem::offset_of!(virtio_rdma_abi::ring::QpDeviceLine, sq_mode) as u64;
const RQ_MODE: u64 = std::mem::offset_of!(virtio_rdma_abi::ring::QpDeviceLine, rq_mode) as u64;

/// `attention`: the driver posted receive WQEs while the HCA waits for them.
const RECV: u8 = 1;

/// A QP on the data path: its rings, and the midlayer's handle.
pub struct QpPath {
    rings: Arc<QpRings>,
    qp: Arc<Qp>,
}

/// The rings of a QP: what the HCA too holds on to.
pub struct QpRings {
    memory: Arc<UserMemory>,
    send: Option<SendRing>,
    recv: Option<RecvRing>,
    gate: Arc<Gate>,
    homes: Arc<Homes>,
    seat: Seat,
    /// The vector whose doorbell the driver rings for this QP, while that is its worker's.
    vector: u16,
    /// For its worker: the last period in which it had news, and what it had done by then.
    period: AtomicU32,
    done: AtomicU64,
    /// The rings may be read: not in RESET, not destroyed.
    open: AtomicBool,
    attention: AtomicU8,
    recv_doorbell: AtomicBool,
    empty_takes: AtomicU64,
    path: OnceLock<Weak<QpPath>>,
    names: Names,
}

/// Where a QP finds what its WQEs name, other than by keys.
#[derive(Default)]
pub struct Names {
    /// Of a QP that sends datagrams.
    pub ahs: Option<AhCache>,
    /// Of a kernel's QP.
    pub fast: Option<Arc<FastMrs>>,
    /// An XRC initiator: WQEs name an SRQ.
    pub xrc: bool,
}

/// What a turn with a QP came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// WQEs were taken, worth so much (`share`); there may be more.
    Worked(usize),
    /// Nothing to do now.
    Idle,
    /// It is no longer this worker's to look at, until somebody asks for attention.
    Left,
}

/// What a turn needs room for.
pub struct TurnRoom {
    list: ShortList,
    buffer: SendBuffer,
}

impl Default for TurnRoom {
    fn default() -> Self {
        Self { list: [ShortWr::NOTHING; BURST], buffer: SendBuffer::default() }
    }
}

/// What became of the next WQE.
enum Next {
    /// The HCA has it; its bytes.
    Taken(u64),
    /// There is none.
    Empty,
    /// As `Turn::Left`.
    Left,
}

impl QpRings {
    /// Rings whose geometry was checked; closed at first. `QpPath::new` puts them to use.
    pub fn new(
        memory: Arc<UserMemory>,
        send: Option<SendRing>,
        recv: Option<RecvRing>,
        gate: Arc<Gate>,
        homes: Arc<Homes>,
        vector: u16,
        names: Names,
    ) -> Arc<Self> {
        Arc::new(Self {
            memory,
            send,
            recv,
            gate,
            seat: Seat::new(homes.of_vector(vector).index() as u32),
            homes,
            vector,
            period: AtomicU32::new(0),
            done: AtomicU64::new(0),
            open: AtomicBool::new(false),
            attention: AtomicU8::new(0),
            recv_doorbell: AtomicBool::new(false),
            empty_takes: AtomicU64::new(0),
            path: OnceLock::new(),
            names,
        })
    }

    /// Whether there is a receive queue.
    pub fn has_recv(&self) -> bool {
        self.recv.is_some()
    }

    fn may_touch(&self) -> bool {
        self.open.load(Ordering::Acquire) && self.gate.is_open()
    }

    /// Makes the home worker look at the QP. Never sleeps.
    pub fn attend(&self) {
        if let Some(home) = self.seat.request() {
            match self.path.get().and_then(Weak::upgrade) {
                Some(path) => self.homes.worker(home).take_in(path),
                // Not in use yet, or destroyed.
                None => self.seat.leave(),
            }
        }
    }

    /// The vector whose doorbell wakes the QP's worker; that of another worker, which then hands over
    /// what it finds, if none is its.
    fn vector(&self) -> u16 {
        self.homes.vector_of(self.seat.home(), self.vector)
    }

    fn set_recv_mode(&self, polled: bool) {
        if let Some(word) = self.memory.atomic_u32(RQ_MODE) {
            doorbell::Word32::store(word, doorbell::mode(polled, self.vector()), Ordering::Release);
        }
    }
}

impl QpPath {
    /// Puts the rings of a new QP to use.
    pub fn new(rings: Arc<QpRings>, qp: Arc<Qp>) -> Arc<Self> {
        let path = Arc::new(Self { rings, qp });
        let _ = path.rings.path.set(Arc::downgrade(&path));
        path
    }

    /// Forgets address handles, which would keep the PD.
    pub fn forget_ahs(&self) {
        self.rings.names.ahs.iter().for_each(AhCache::clear);
    }

    /// The midlayer's handle.
    pub fn qp(&self) -> &Arc<Qp> {
        &self.qp
    }

    /// Its buffer in guest memory.
    pub fn memory(&self) -> &UserMemory {
        &self.rings.memory
    }

    /// WQEs sent, bytes sent, WQEs received, and times that a message found no receive WQE.
    pub fn counts(&self) -> [u64; 4] {
        let (wqes, bytes) = self.rings.send.as_ref().map_or((0, 0), SendRing::counts);
        let received = self.rings.recv.as_ref().map_or(0, RecvRing::taken);
        [wqes, bytes, received, self.rings.empty_takes.load(Ordering::Relaxed)]
    }

    /// From here on the rings are read: the QP left RESET.
    pub fn open(&self) {
        self.rings.open.store(true, Ordering::Release);
        self.rings.set_recv_mode(!self.rings.recv_doorbell.load(Ordering::Relaxed));
    }

    /// No turn that begins after this reads the rings. The caller then waits for the turns that have
    /// begun (`rcu::synchronize`), and may call `reset`.
    pub fn close(&self) {
        self.rings.open.store(false, Ordering::Release);
    }

    /// Starts the rings over and arms both queues. Only while closed, and when no turn goes on.
    pub fn reset(&self) {
        self.rings.send.iter().for_each(SendRing::reset);
        self.rings.recv.iter().for_each(RecvRing::reset);
        self.rings.recv_doorbell.store(false, Ordering::Relaxed);
        self.rings.attention.store(0, Ordering::Relaxed);
        for at in [SQ_MODE, RQ_MODE] {
            if let Some(word) = self.rings.memory.atomic_u32(at) {
                doorbell::Word32::store(
                    word,
                    doorbell::mode(false, self.rings.vector()),
                    Ordering::Release,
                );
            }
        }
    }

    /// The driver rang: a worker found the QP's bit. Never sleeps.
    pub fn rang(&self) {
        if self.rings.recv_doorbell.load(Ordering::Relaxed) {
            self.rings.attention.fetch_or(RECV, Ordering::AcqRel);
        }
        self.attend();
    }

    /// Makes the home worker look at the QP. Never sleeps.
    pub fn attend(&self) {
        self.rings.attend();
    }

    /// The number of the worker that is to have the QP.
    pub fn home(&self) -> usize {
        self.rings.seat.home() as usize
    }

    /// Another worker is, from now on; see `Seat::move_to`. Never sleeps.
    pub fn move_to(&self, worker: usize) {
        self.rings.seat.move_to(worker as u32);
        self.qp.set_poller(worker);
        self.rings.gate.counters().qp_moves.fetch_add(1, Ordering::Relaxed);
    }

    /// For the QP's worker: whether this is the first news of the QP in its period of this number.
    pub fn first_in(&self, period: u32) -> bool {
        self.rings.period.swap(period, Ordering::Relaxed) != period
    }

    /// For the QP's worker: what was done since it last asked (`share`).
    pub fn progress(&self) -> u64 {
        let [wqes, bytes, ..] = self.counts();
        let done = wqes.wrapping_add(bytes / COST_BYTES);
        done.wrapping_sub(self.rings.done.swap(done, Ordering::Relaxed))
    }

    /// A turn of the home worker: takes WQEs worth about `budget` to the HCA. Never sleeps.
    fn take_turn(&self, room: &mut TurnRoom, budget: usize) -> Turn {
        if !self.rings.may_touch() {
            return self.leave_closed();
        }
        if self.rings.attention.load(Ordering::Relaxed) != 0
            && self.rings.attention.swap(0, Ordering::AcqRel) & RECV != 0
        {
            let _ = self.qp.recv_posted();
        }
        let Some(ring) = &self.rings.send else { return Turn::Idle };
        let mut cost = 0;
        while cost < budget {
            let (taken, bytes, ended) = self.post_list(ring, &mut room.list, budget - cost);
            cost += worth(taken, bytes);
            match ended {
                Some(Ended::Empty) => break,
                Some(Ended::Full) => continue,
                // One that is not for a list: its place is next.
                Some(Ended::Apart) | None => {}
            }
            match self.post_next(ring, &mut room.buffer) {
                Next::Taken(bytes) => cost += worth(1, bytes),
                Next::Empty => break,
                Next::Left => return Turn::Left,
            }
        }
        if cost == 0 { Turn::Idle } else { Turn::Worked(cost) }
    }

    /// Takes WQEs to the HCA together: how many, their bytes, and why no more; `None`: the next one was
    /// not taken, or can't be taken so.
    #[inline]
    fn post_list(
        &self,
        ring: &SendRing,
        list: &mut ShortList,
        max: usize,
    ) -> (usize, u64, Option<Ended>) {
        if self.rings.names.ahs.is_some() || self.rings.names.xrc {
            return (0, 0, None);
        }
        let (count, bytes, ended) = ring.peek_short(list, max);
        let list = &list[..count];
        if list.is_empty() {
            return (0, 0, Some(ended));
        }
        let (taken, bytes, ended) = match self.qp.post_short_list(list) {
            Ok(()) => (count, bytes, Some(ended)),
            Err(bad) => {
                let bytes = list.iter().take(bad.taken).map(|wr| u64::from(wr.data.len())).sum();
                (bad.taken, bytes, None)
            }
        };
        ring.advance(taken as u32, bytes);
        (taken, bytes, ended)
    }

    /// Takes the next WQE to the HCA, whatever it is.
    fn post_next(&self, ring: &SendRing, buffer: &mut SendBuffer) -> Next {
        let (posted, bytes) = match ring.peek(buffer) {
            None => return Next::Empty,
            Some(Ok(wr)) => (self.post(&wr), length(&wr)),
            Some(Err(malformed)) => (post_malformed(&self.qp, malformed, &self.rings.gate), 0),
        };
        match posted {
            Ok(()) => {
                ring.advance(1, bytes);
                Next::Taken(bytes)
            }
            // The HCA takes no more for now. It calls `send_ready`, perhaps already: then we are
            // active again, and in the inbox.
            Err(Error::QueueFull) => {
                self.rings.seat.leave();
                let again = match ring.peek(buffer) {
                    Some(Ok(wr)) => self.post(&wr).map(|()| length(&wr)),
                    Some(Err(malformed)) => {
                        post_malformed(&self.qp, malformed, &self.rings.gate).map(|()| 0)
                    }
                    // Taken back by a driver that may not do that.
                    None if !self.rings.seat.take_again() => return Next::Left,
                    None => return Next::Empty,
                };
                let Ok(bytes) = again else { return self.left() };
                ring.advance(1, bytes);
                if !self.rings.seat.take_again() {
                    return Next::Left;
                }
                Next::Taken(bytes)
            }
            // Not in a state to send, or gone: a change of state asks for attention.
            Err(_) => {
                self.rings.seat.leave();
                self.left()
            }
        }
    }

    fn post(&self, wr: &SendWr<'_>) -> Result<()> {
        let xrc;
        let wr = match &self.rings.send {
            Some(ring) if self.rings.names.xrc => {
                xrc = SendWr { srqn: Some(ring.remote_srqn()), ..*wr };
                &xrc
            }
            _ => wr,
        };
        let posted = match &self.rings.names.ahs {
            _ if matches!(wr.opcode, WrOpcode::RegMr | WrOpcode::BindMw) => self.post_key(wr),
            None => self.qp.post_send(wr),
            Some(ahs) => self.post_datagram(ahs, wr),
        };
        match posted {
            // What the HCA refuses to take is the driver's fault: it becomes a completion.
            Err(
                Error::Invalid(_)
                | Error::Unsupported(_)
                | Error::NotPermitted(_)
                | Error::Limit(_),
            ) => {
                let malformed = MalformedWqe { wr_id: wr.wr_id, ticket: wr.ticket };
                post_malformed(&self.qp, malformed, &self.rings.gate)
            }
            other => other,
        }
    }

    /// A WQE that changes a key: its arguments name keys and, in a kernel's QP, an array of pages.
    #[cold]
    fn post_key(&self, wr: &SendWr<'_>) -> Result<()> {
        let args = match wr.data {
            SendData::Inline(args) => args,
            _ => &[],
        };
        // What makes no sense is left to the HCA to refuse, in order.
        if wr.opcode == WrOpcode::BindMw {
            let bind = fast::bind_request(wr.rkey.0, args).ok_or(Error::Invalid("window"))?;
            return self.qp.post_send(&SendWr { data: SendData::Bind(&bind), ..*wr });
        }
        let fast = self.rings.names.fast.as_ref().ok_or(Error::NotPermitted("REG_MR"))?;
        let request = fast.request(wr.rkey.0, wr.remote_addr, args);
        let data = request.as_ref().map_or(SendData::Sges(&[]), SendData::Reg);
        self.qp.post_send(&SendWr { data, ..*wr })
    }

    /// A datagram's WQE has the address handle, the peer and its Q_Key where others have the remote
    /// address and key.
    fn post_datagram(&self, ahs: &AhCache, wr: &SendWr<'_>) -> Result<()> {
        let (index, qpn) = (wr.remote_addr as u32, (wr.remote_addr >> 32) as u32);
        let ah = ahs.get(index).ok_or(Error::Invalid("address handle"))?;
        let ud = Some(ah.dest(Qpn(qpn), wr.rkey.0)?);
        self.qp.post_send(&SendWr { remote_addr: 0, rkey: RKey(0), ud, ..*wr })
    }

    /// The QP was let go of; it is taken again if somebody rang for receive WQEs before, and left it at
    /// that since the seat was taken.
    fn left(&self) -> Next {
        let rung = self.rings.attention.load(Ordering::Acquire) != 0;
        if rung && self.rings.seat.take_again() { Next::Empty } else { Next::Left }
    }

    /// Leaves, unless the rings were opened since they were found closed: whoever opened them may have
    /// asked for attention while we were still active, which did nothing.
    fn leave_closed(&self) -> Turn {
        self.rings.seat.leave();
        if self.rings.may_touch() && self.rings.seat.take_again() {
            return Turn::Idle;
        }
        Turn::Left
    }

    /// The send queue has been idle: from here on the driver rings. Returns false if the QP stays
    /// with the worker, since there is work all the same.
    pub fn arm_send(&self) -> bool {
        // First, so that a ring that comes after the arming finds a QP that it must take in.
        self.rings.seat.leave();
        let Some(word) = self.rings.memory.atomic_u32(SQ_MODE) else { return true };
        let open = self.rings.may_touch();
        // Who rang for receive WQEs while the seat was taken left it at that: it is seen from here.
        let has_work = || {
            self.rings.attention.load(Ordering::Acquire) != 0
                || self.rings.send.as_ref().is_some_and(SendRing::has_work)
        };
        if !open || !doorbell::arm::<Machine>(word, self.rings.vector(), has_work) {
            return true;
        }
        // If somebody else was first, the QP is in the inbox.
        !self.rings.seat.take_again()
    }

    /// The worker looks at the send queue by itself.
    pub fn poll_send(&self) {
        if self.rings.may_touch()
            && let Some(word) = self.rings.memory.atomic_u32(SQ_MODE)
        {
            doorbell::poll(word, self.rings.vector());
        }
    }
}

/// What WQEs count against a budget.
fn worth(wqes: usize, bytes: u64) -> usize {
    wqes + (bytes / COST_BYTES) as usize
}

fn post_malformed(qp: &Qp, malformed: MalformedWqe, gate: &Gate) -> Result<()> {
    gate.counters().guest_errors.fetch_add(1, Ordering::Relaxed);
    qp.post_malformed_send(malformed)
}

fn length(wr: &SendWr<'_>) -> u64 {
    match wr.data {
        SendData::Inline(bytes) => bytes.len() as u64,
        SendData::Sges(sges) => sges.iter().map(|s| u64::from(s.length)).sum(),
        SendData::Reg(_) | SendData::Bind(_) | SendData::Flush(_) => 0,
    }
}

impl Queue for Arc<QpPath> {
    type Room = TurnRoom;

    fn vm(&self) -> usize {
        Arc::as_ptr(&self.rings.gate).addr()
    }

    #[inline]
    fn turn(&self, room: &mut TurnRoom, budget: usize) -> Turn {
        self.take_turn(room, budget)
    }

    fn arm(&self) -> bool {
        self.arm_send()
    }
}

impl RecvSource for QpRings {
    fn take(&self, wqe: &mut RecvWqe) -> std::result::Result<Taken, MalformedWqe> {
        if !self.may_touch() {
            return Ok(Taken::Empty);
        }
        let Some(ring) = &self.recv else { return Ok(Taken::Empty) };
        let taken = ring.take(wqe);
        match taken {
            Ok(Taken::Wqe) => {}
            Ok(Taken::Empty) => {
                self.empty_takes.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                self.gate.counters().guest_errors.fetch_add(1, Ordering::Relaxed);
            }
        }
        taken
    }

    #[inline]
    fn peek_short(&self, to: &mut [ShortRecv]) -> usize {
        if !self.may_touch() {
            return 0;
        }
        self.recv.as_ref().map_or(0, |ring| ring.peek_short(to))
    }

    fn advance(&self, count: usize) {
        self.recv.iter().for_each(|ring| ring.advance(count));
    }

    fn want_doorbell(&self, wanted: bool) {
        self.recv_doorbell.store(wanted, Ordering::Relaxed);
        if self.may_touch() {
            self.set_recv_mode(!wanted);
        }
        // The driver: post, fence, read the mode. The HCA looks at the ring after this.
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

impl SendReady for QpRings {
    fn send_ready(&self) {
        self.attend();
    }
}
