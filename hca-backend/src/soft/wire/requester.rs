// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requester of a QP, with its completer (IBA 9.7.3 to 9.7.7, 9.8): work requests in order become
//! packets; responses complete them. Go-back-N: what is not acknowledged is sent again from the oldest
//! packet, a READ from the first byte that is missing.
//!
//! Which packets a work request becomes is in `send`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rdma_midlayer::attr::AhAttr;
use rdma_midlayer::types::{Psn, Qpn, RKey, Srqn, WcStatus, WrOpcode};
use rdma_midlayer::work::{Flush, MwBind, RegMr, SendFlags, Sge};

use smallvec::SmallVec;

use super::counters::Both;
use super::dcqcn::{Notifier, Rate};
use super::frame::{FrameBatch, Path, Reach};
use super::headers::{Nak, Syndrome};
use super::opcode::Kind;
use super::packet::{Packet, within};
use super::responder::Pages;
use super::timers;

mod send;
pub(crate) use send::push_cnp;

/// Bytes of the longest message.
pub const MAX_MESSAGE: u64 = 1 << 31;
/// Bytes that may be unacknowledged, at most packets, at least packets.
const WINDOW_BYTES: usize = 256 << 10;
const MAX_WINDOW: u32 = 256;
const MIN_WINDOW: u32 = 8;
/// The shortest time-out: clocks and threads are no finer.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);

/// Local memory may not be used so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// The requester's surroundings: local memory and the completion queue. Nothing here sleeps.
pub trait Host {
    /// Whether all of a WR's memory may be used as the WR wants.
    fn check(&mut self, wqe: &SendWqe) -> Result<(), Fault>;
    /// Reads data to send, `offset` bytes into the message.
    fn read(&mut self, wqe: &SendWqe, offset: u64, to: &mut [u8]) -> Result<(), Fault>;
    /// Writes what a READ or an atomic brought.
    fn write(&mut self, wqe: &SendWqe, offset: u64, from: &[u8]) -> Result<(), Fault>;
    /// Whether the pages of `len` bytes are there, `offset` bytes into the message. If they are not, the
    /// requester gets a turn when they are.
    fn pages(&mut self, _wqe: &SendWqe, _offset: u64, _len: u64) -> Pages {
        Pages::Here
    }
    /// The way of a datagram, the QP it is for, and the Q_Key it carries.
    fn datagram(&mut self, wqe: &SendWqe) -> Option<(Path, Qpn, u32)>;
    /// Carries out a WR that sends nothing. `None`: it is not done yet; the host gives the requester
    /// another turn.
    fn local(&mut self, wqe: &SendWqe) -> Option<WcStatus>;
    /// A WR has come to its end. They come in order.
    fn complete(&mut self, wqe: &SendWqe, status: WcStatus);
    /// The QP is to go to ERR: a WR ended with an error.
    fn fail(&mut self);
}

/// A send work request as the requester holds it.
#[derive(Clone, Debug)]
pub struct SendWqe {
    /// For the completion.
    pub wr_id: u64,
    /// For the completion.
    pub ticket: u32,
    /// What to do.
    pub opcode: WrOpcode,
    /// How.
    pub flags: SendFlags,
    /// Immediate data, or the key to invalidate.
    pub imm: u32,
    /// Address at the peer.
    pub remote_addr: u64,
    /// Key at the peer.
    pub rkey: RKey,
    /// XRC: the SRQ at the peer.
    pub srqn: Srqn,
    /// Compare and swap: what to compare; fetch and add: what to add.
    pub compare_add: u64,
    /// Compare and swap: what to store.
    pub swap: u64,
    /// Local data.
    pub data: Data,
    /// Bytes of it.
    pub len: u64,
    /// Datagrams: the path, the QP at the peer, its Q_Key.
    pub datagram: Option<(AhAttr, Qpn, u32)>,
    /// Known to fail before it is begun.
    pub error: Option<WcStatus>,
    /// How far it has come.
    pub progress: Progress,
}

/// Where the data is.
#[derive(Clone, Debug)]
pub enum Data {
    /// In MRs.
    Sges(SmallVec<[Sge; 2]>),
    /// Here.
    Inline(Vec<u8>),
    /// None: what is to be put behind a key, or `None` if that can't be made out.
    Reg(Option<RegMr>),
    /// None: what a window is to show.
    Bind(MwBind),
    /// None: what is to be flushed.
    Flush(Flush),
}

/// How far a WR has come. New ones are `default()`.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Its PSNs are given.
    begun: bool,
    first: Psn,
    /// PSNs.
    packets: u32,
    /// Of those with responses: how many were received.
    received: u32,
}

impl SendWqe {
    /// READs and atomics: the response brings something.
    pub fn is_read(&self) -> bool {
        self.is_atomic() || self.opcode == WrOpcode::RdmaRead
    }

    fn is_atomic(&self) -> bool {
        matches!(self.opcode, WrOpcode::AtomicCmpAndSwp | WrOpcode::AtomicFetchAndAdd)
    }

    /// It has responses of its own, and the peer takes only so many of them at once.
    fn is_answered(&self) -> bool {
        self.is_read() || matches!(self.opcode, WrOpcode::Flush | WrOpcode::AtomicWrite)
    }

    /// It has 8 bytes of data.
    fn is_one_word(&self) -> bool {
        self.is_atomic() || self.opcode == WrOpcode::AtomicWrite
    }

    /// It sends nothing.
    pub fn is_local(&self) -> bool {
        matches!(self.opcode, WrOpcode::LocalInv | WrOpcode::BindMw | WrOpcode::RegMr)
    }

    fn end(&self) -> Psn {
        self.progress.first.plus(self.progress.packets)
    }
}

/// Which transport a QP has, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Acknowledged.
    Reliable,
    /// A connection, unacknowledged.
    Unreliable,
    /// No connection.
    Datagram,
}

/// What modify has set.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Transport.
    pub service: Service,
    /// Of a reliable one: an extended reliable connection.
    pub xrc: bool,
    /// Own number.
    pub qpn: Qpn,
    /// The peer's.
    pub dest: Qpn,
    /// Bytes of payload in a packet.
    pub mtu: usize,
    /// IBA code; 0 is never.
    pub timeout: u8,
    /// Retries.
    pub retry_cnt: u8,
    /// RNR retries; 7 is without end.
    pub rnr_retry: u8,
    /// READs and others with responses of their own outstanding.
    pub max_rd_atomic: u8,
}

/// Where packets go.
pub struct Out<'a> {
    /// To the port.
    pub batch: &'a mut FrameBatch,
    /// To devices behind the same link.
    pub local: &'a mut FrameBatch,
    /// Identification of the next IPv4 packet.
    pub identification: &'a mut dyn FnMut() -> u16,
    /// Packets that may still be made in this turn.
    pub budget: usize,
    /// What is counted.
    pub counters: Both<'a>,
}

impl Out<'_> {
    /// Whether nothing more can be made now.
    pub fn is_full(&self) -> bool {
        self.budget == 0 || self.batch.is_full() || self.local.is_full()
    }

    /// Makes a packet.
    ///
    /// # Errors
    /// What `fill` says; then there is none.
    pub fn push<E>(
        &mut self,
        path: &Path,
        head: &[u8],
        payload: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let inside = path.reach == Reach::Inside;
        let batch = if inside { &mut *self.local } else { &mut *self.batch };
        batch.push_packet(path, (self.identification)(), head, payload, fill)?;
        if path.reach == Reach::Both {
            self.local.push(self.batch.frame(self.batch.len() - 1));
        }
        self.budget = self.budget.saturating_sub(1);
        self.counters.inc(|c| &c.sent_pkts);
        self.counters.add(payload as u64, |c| &c.sent_bytes);
        Ok(())
    }
}

/// The requester of a QP.
pub struct Requester {
    config: Config,
    path: Option<Path>,
    queue: VecDeque<SendWqe>,
    /// Index in the queue of what is sent next, and its PSN.
    at: usize,
    next: Psn,
    /// Oldest PSN that is not acknowledged.
    una: Psn,
    /// First PSN that was never sent.
    sent: Psn,
    /// First PSN that no WR has.
    free: Psn,
    /// WRs with responses of their own begun and not complete.
    reads: u32,
    /// Responses that READs have asked for and not got: they are no load on the way there.
    read_psns: u32,
    window: u32,
    since_ack_req: u32,
    retries_left: u8,
    rnr_left: u8,
    retry_at: Option<Instant>,
    rnr_until: Option<Instant>,
    paced_until: Option<Instant>,
    /// A lost response was noticed by a later one; once is enough.
    noticed_loss: bool,
    rate: Rate,
    notifier: Notifier,
}

impl Requester {
    /// Without work, on a line of so many bytes a second.
    pub fn new(config: Config, line_rate: u64) -> Self {
        let zero = Psn::new(0);
        let mut new = Self {
            config,
            path: None,
            queue: VecDeque::new(),
            at: 0,
            next: zero,
            una: zero,
            sent: zero,
            free: zero,
            reads: 0,
            read_psns: 0,
            window: 0,
            since_ack_req: 0,
            retries_left: 0,
            rnr_left: 0,
            retry_at: None,
            rnr_until: None,
            paced_until: None,
            noticed_loss: false,
            rate: Rate::new(line_rate),
            notifier: Notifier::default(),
        };
        new.configure(config);
        new
    }

    /// Takes over what modify has set.
    pub fn configure(&mut self, config: Config) {
        self.config = config;
        self.window = self.max_window();
        self.refill_retries();
    }

    /// Where packets go from now on; `None`: nowhere.
    pub fn set_path(&mut self, path: Option<Path>) {
        self.path = path;
    }

    /// Where packets go.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_ref()
    }

    /// The PSN of the next new packet.
    pub fn psn(&self) -> Psn {
        self.free
    }

    /// The next new packet has this PSN. Only while nothing is outstanding.
    pub fn set_psn(&mut self, psn: Psn) {
        (self.next, self.una, self.sent, self.free) = (psn, psn, psn, psn);
    }

    /// WRs held.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether a WR is begun and not complete.
    pub fn is_busy(&self) -> bool {
        self.queue.front().is_some_and(|wqe| wqe.progress.begun)
    }

    /// A WR more.
    pub fn post(&mut self, wqe: SendWqe) {
        self.queue.push_back(wqe);
    }

    /// Ends up to `max` WRs with `WrFlushErr`, and all timers. Whether there are more.
    pub fn flush(&mut self, max: usize, host: &mut impl Host) -> bool {
        for _ in 0..max {
            let Some(wqe) = self.queue.pop_front() else { break };
            host.complete(&wqe, WcStatus::WrFlushErr);
        }
        (self.at, self.reads, self.read_psns) = (0, 0, 0);
        (self.retry_at, self.rnr_until, self.paced_until) = (None, None, None);
        !self.queue.is_empty()
    }

    /// When `expire` is due.
    pub fn deadline(&self) -> Option<Instant> {
        [self.retry_at, self.rnr_until, self.paced_until].into_iter().flatten().min()
    }

    /// Time has passed. Whether there may be something to send.
    pub fn expire(&mut self, now: Instant, host: &mut impl Host, counters: Both<'_>) -> bool {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry(host, counters);
        }
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let wait_is_over = due(self.rnr_until) || due(self.paced_until);
        if due(self.rnr_until) {
            self.rnr_until = None;
        }
        if due(self.paced_until) {
            self.paced_until = None;
        }
        wait_is_over || self.next != self.sent || self.at < self.queue.len()
    }

    /// The peer tells of congestion.
    pub fn congestion(&mut self, now: Instant) {
        self.rate.congestion(now);
    }

    /// A packet for this requester had met congestion. Whether the peer is to be told.
    pub fn marked(&mut self, now: Instant) -> bool {
        self.notifier.marked(now)
    }

    /// A response. Whether there may be something to send.
    pub fn receive(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        host: &mut impl Host,
        counters: Both<'_>,
    ) -> bool {
        let psn = packet.bth.psn;
        let outstanding = self.sent.since(self.una).max(0) as u32;
        if !within(psn, self.una, outstanding) {
            return false;
        }
        match packet.op.kind {
            Kind::ReadResponse => self.on_read_response(now, packet, host, counters),
            Kind::AtomicAck => self.on_atomic_ack(now, packet, host, counters),
            _ => match packet.aeth.map(|aeth| aeth.syndrome) {
                Some(Syndrome::Ack) => self.acknowledge(now, psn.plus(1), host, counters),
                Some(Syndrome::Rnr(code)) => self.on_rnr(now, psn, code, host, counters),
                Some(Syndrome::Nak(nak)) => self.on_nak(now, psn, nak, host, counters),
                Some(Syndrome::Reserved(_)) | None => {}
            },
        }
        true
    }

    fn max_window(&self) -> u32 {
        (WINDOW_BYTES / self.config.mtu.max(1)).clamp(64, MAX_WINDOW as usize) as u32
    }

    fn refill_retries(&mut self) {
        self.retries_left = self.config.retry_cnt;
        self.rnr_left = self.config.rnr_retry;
    }

    fn start_timer(&mut self, now: Instant) {
        // Up to four times the time-out is allowed (IBA 9.7.6.1.3): a peer that was not heard of may be
        // slow, and to repeat all of it soon would not help.
        let unheard = self.config.retry_cnt.saturating_sub(self.retries_left).min(2);
        let timeout =
            timers::ack_timeout(self.config.timeout).max(SHORTEST_TIMEOUT) * (1 << unheard);
        self.retry_at = (self.config.timeout != 0).then_some(now + timeout);
    }

    /// The peer has answered something new.
    fn progressed(&mut self, now: Instant) {
        self.refill_retries();
        self.noticed_loss = false;
        self.window = (self.window + 1).min(self.max_window());
        if self.una.since(self.next) > 0 {
            self.seek(self.una);
        }
        if self.next == self.una {
            self.retry_at = None;
        } else {
            self.start_timer(now);
        }
    }

    /// All before `upto` has arrived, says the peer. It stops at a READ whose responses are missing.
    fn acknowledge(&mut self, now: Instant, upto: Psn, host: &mut impl Host, counters: Both<'_>) {
        let before = self.una;
        let mut lost = false;
        while let Some(front) = self.queue.front() {
            if !front.progress.begun {
                break;
            }
            if front.is_answered() {
                lost = upto.since(self.una) > 0;
                break;
            }
            if !front.is_local() {
                if upto.since(front.end()) < 0 {
                    if upto.since(self.una) > 0 {
                        self.una = upto;
                    }
                    break;
                }
                self.una = front.end();
            }
            self.end_front(host, WcStatus::Success);
        }
        if self.una != before {
            self.progressed(now);
        }
        if lost && !self.noticed_loss {
            self.noticed_loss = true;
            self.retry(host, counters);
        }
    }

    /// The oldest WR is done.
    fn end_front(&mut self, host: &mut impl Host, status: WcStatus) {
        let Some(wqe) = self.queue.pop_front() else { return };
        self.at = self.at.saturating_sub(1);
        if wqe.is_answered() && wqe.progress.begun {
            self.reads = self.reads.saturating_sub(1);
        }
        host.complete(&wqe, status);
        if status != WcStatus::Success {
            (self.retry_at, self.rnr_until) = (None, None);
            host.fail();
        }
    }

    /// Sends again from the oldest packet that is not acknowledged, if retries are left.
    fn retry(&mut self, host: &mut impl Host, counters: Both<'_>) {
        self.retry_at = None;
        if self.queue.is_empty() {
            return;
        }
        let Some(left) = self.retries_left.checked_sub(1) else {
            counters.inc(|c| &c.retry_exceeded_err);
            return self.end_front(host, WcStatus::RetryExcErr);
        };
        self.retries_left = left;
        self.go_back(counters);
    }

    fn go_back(&mut self, counters: Both<'_>) {
        counters.inc(|c| &c.completer_retry_err);
        self.window = (self.window / 2).max(MIN_WINDOW);
        self.read_psns = 0;
        self.since_ack_req = 0;
        self.seek(self.una);
    }

    /// What is sent next is the packet with this PSN.
    fn seek(&mut self, psn: Psn) {
        self.next = psn;
        self.at = self
            .queue
            .iter()
            .position(|wqe| {
                let p = &wqe.progress;
                !p.begun || within(psn, p.first, p.packets)
            })
            .unwrap_or(self.queue.len());
    }

    fn on_rnr(
        &mut self,
        now: Instant,
        psn: Psn,
        code: u8,
        host: &mut impl Host,
        counters: Both<'_>,
    ) {
        self.acknowledge(now, psn, host, counters);
        if psn != self.una || self.rnr_until.is_some() || self.next == self.una {
            return;
        }
        counters.inc(|c| &c.rcvd_rnr_err);
        if self.rnr_left == 0 {
            counters.inc(|c| &c.retry_rnr_exceeded_err);
            return self.end_front(host, WcStatus::RnrRetryExcErr);
        }
        if self.rnr_left < 7 {
            self.rnr_left -= 1;
        }
        self.retry_at = None;
        self.read_psns = 0;
        self.seek(psn);
        self.rnr_until = Some(now + timers::rnr_delay(code));
    }

    fn on_nak(
        &mut self,
        now: Instant,
        psn: Psn,
        nak: Nak,
        host: &mut impl Host,
        counters: Both<'_>,
    ) {
        self.acknowledge(now, psn, host, counters);
        // Not of the oldest packet, or that is on its way again already.
        if psn != self.una || nak == Nak::Sequence && self.next == self.una {
            return;
        }
        let status = match nak {
            Nak::Sequence => {
                counters.inc(|c| &c.rcvd_seq_err);
                return self.retry(host, counters);
            }
            Nak::InvalidRequest => WcStatus::RemInvReqErr,
            Nak::RemoteAccess => WcStatus::RemAccessErr,
            Nak::RemoteOperational => WcStatus::RemOpErr,
        };
        counters.inc(|c| &c.rcvd_nak);
        self.end_front(host, status);
    }

    /// The WR that a response is of: everything before it has arrived.
    fn expects(
        &mut self,
        now: Instant,
        psn: Psn,
        atomic: bool,
        host: &mut impl Host,
        counters: Both<'_>,
    ) -> bool {
        self.acknowledge(now, psn, host, counters);
        let front = self.queue.front();
        psn == self.una
            && front.is_some_and(|wqe| {
                wqe.progress.begun && wqe.is_answered() && wqe.is_atomic() == atomic
            })
    }

    fn on_read_response(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        host: &mut impl Host,
        counters: Both<'_>,
    ) {
        if !self.expects(now, packet.bth.psn, false, host, counters) {
            return;
        }
        let Some(front) = self.queue.front_mut() else { return };
        let offset = u64::from(front.progress.received) * self.config.mtu as u64;
        // To a FLUSH or an atomic write it brings nothing.
        let read = front.is_read();
        let expected = if read { (front.len - offset).min(self.config.mtu as u64) } else { 0 };
        if packet.payload.len() as u64 != expected {
            return self.end_front(host, WcStatus::BadRespErr);
        }
        if read {
            // Taken away since it was asked for: as if it had been lost.
            if host.pages(front, offset, expected) == Pages::Asked {
                return;
            }
            if host.write(front, offset, packet.payload).is_err() {
                return self.end_front(host, WcStatus::LocProtErr);
            }
            self.read_psns = self.read_psns.saturating_sub(1);
        }
        self.response_taken(now, host, counters);
    }

    fn on_atomic_ack(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        host: &mut impl Host,
        counters: Both<'_>,
    ) {
        if !self.expects(now, packet.bth.psn, true, host, counters) {
            return;
        }
        let Some(front) = self.queue.front() else { return };
        if host.pages(front, 0, 8) == Pages::Asked {
            return;
        }
        if host.write(front, 0, &packet.original.to_ne_bytes()).is_err() {
            return self.end_front(host, WcStatus::LocProtErr);
        }
        self.response_taken(now, host, counters);
    }

    fn response_taken(&mut self, now: Instant, host: &mut impl Host, counters: Both<'_>) {
        self.una = self.una.plus(1);
        let Some(front) = self.queue.front_mut() else { return };
        front.progress.received += 1;
        if front.progress.received == front.progress.packets {
            self.end_front(host, WcStatus::Success);
        }
        self.progressed(now);
        // Local work behind it may be done.
        self.acknowledge(now, self.una, host, counters);
    }
}
