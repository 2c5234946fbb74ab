// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requester side: send WRs, carried out one after the other. A small one on an idle QP is done
//! inside `post_send`; the rest is the poller's, in bounded pieces.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rdma_midlayer::attr::{QpAttr, QpAttrMask};
use rdma_midlayer::driver::{BadWr, MalformedWqe, SendReady};
use rdma_midlayer::rcu::{self, Guard};
use rdma_midlayer::types::{Gid, Psn, QpState, WcOpcode, WcStatus, WrOpcode};
use rdma_midlayer::work::{SendData, SendFlags, SendWr, ShortWr, WorkCompletion};
use rdma_midlayer::{Error, Result};
use smallvec::SmallVec;

use super::burst::BURST;
use super::counts::is_send;
use super::datagram::Dest;
use super::execute::{Link, Step};
use super::local::{self, is_local};
use super::queue::{Current, SendQueue};
use super::wire::{self, Sending};
use super::{FLUSH_A_TURN, PIECE, Qp};
use crate::soft::cq::Cq;
use crate::soft::poller::{SoftPoller, TimerKey};
use crate::soft::wire::timers::{ack_timeout, rnr_delay};

/// WRs held for a consumer that keeps them in a ring of its own.
const WINDOW: usize = 16;

/// WRs that one turn of the poller carries out for a QP.
const WRS_A_TURN: usize = 16;

/// The requester side of a QP.
pub(super) struct Requester {
    /// As set by modify; PSNs and state have moved on since.
    pub(super) attr: QpAttr,
    pub(super) link: Link,
    pub(super) cq: Option<Arc<Cq>>,
    pub(super) ready: Option<Arc<dyn SendReady>>,
    /// The consumer was told `QueueFull`.
    pub(super) ready_due: bool,
    queue: SendQueue,
    pub(super) current: Current,
    wait: Option<Wait>,
    rnr_left: u8,
    retries_left: u8,
    /// `SqDrained` is asked for.
    pub(super) drain_event: bool,
    /// What goes by packets.
    pub(super) wire: Option<Box<Sending>>,
}

/// What the current WR waits for.
struct Wait {
    why: Why,
    /// `None`: for ever. With the poller that has it: the QP may have another one by then.
    timer: Option<(TimerKey, Arc<SoftPoller>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// The peer had no receive WQE.
    Rnr,
    /// The request was lost: there is no such peer, or it is not connected to us.
    Ack,
    /// Pages are missing, of ours or of the peer's.
    Pages,
}

impl Requester {
    pub(super) fn new(cq: Arc<Cq>, ready: Option<Arc<dyn SendReady>>) -> Self {
        Self {
            attr: QpAttr::default(),
            link: Link::new(Psn::new(0)),
            cq: Some(cq),
            ready,
            ready_due: false,
            queue: SendQueue::default(),
            current: Current::default(),
            wait: None,
            rnr_left: 0,
            retries_left: 0,
            drain_event: false,
            wire: None,
        }
    }

    /// Takes over the attributes that count.
    pub(super) fn configure(&mut self, new: &QpAttr, mask: QpAttrMask) {
        macro_rules! take {
            ($($bit:ident: $field:ident,)*) => {
                $(if mask.contains(QpAttrMask::$bit) { self.attr.$field = new.$field; })*
            };
        }
        take! {
            PATH_MTU: path_mtu, PORT: port, QKEY: qkey, RQ_PSN: rq_psn, SQ_PSN: sq_psn,
            DEST_QPN: dest_qpn, ACCESS_FLAGS: access, AV: ah, PKEY_INDEX: pkey_index,
            MAX_QP_RD_ATOMIC: max_rd_atomic, MAX_DEST_RD_ATOMIC: max_dest_rd_atomic,
            MIN_RNR_TIMER: min_rnr_timer, TIMEOUT: timeout, RETRY_CNT: retry_cnt,
            RNR_RETRY: rnr_retry,
        }
        if mask.contains(QpAttrMask::SQ_PSN) {
            self.link.psn = new.sq_psn;
        }
        if mask.contains(QpAttrMask::AV) || mask.contains(QpAttrMask::DEST_QPN) {
            self.link.forget_peer();
        }
    }

    /// As new. No timer is running.
    pub(super) fn reset(&mut self) {
        self.attr = QpAttr::default();
        self.link = Link::new(Psn::new(0));
        self.ready_due = false;
        self.queue.clear();
        self.current = Current::default();
        self.drain_event = false;
    }

    /// Whether a WR waits to be begun or to be gone on with.
    pub(super) fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.current.is_none()
    }

    /// Whether a WR is begun and not at its end.
    pub(super) fn is_busy(&self) -> bool {
        !self.current.is_none() || self.wire.as_ref().is_some_and(|wire| wire.state.is_busy())
    }

    /// The PSN of the next packet that is not a repeated one.
    pub(super) fn psn(&self) -> Psn {
        match &self.wire {
            Some(wire) if !wire.state.is_empty() => wire.state.psn(),
            _ => self.link.psn,
        }
    }

    /// A WR makes a first attempt, or progress: all retries are there again.
    #[inline]
    fn refill_retries(&mut self) {
        self.rnr_left = self.attr.rnr_retry;
        self.retries_left = self.attr.retry_cnt;
    }

    /// Tells a consumer that was told `QueueFull` that there is room.
    pub(super) fn announce_room(&mut self) {
        let by_wire = self.wire.as_ref().map_or(0, |wire| wire.state.len());
        if self.ready_due && self.queue.len() <= WINDOW / 2 && by_wire <= wire::WINDOW / 2 {
            self.ready_due = false;
            if let Some(ready) = &self.ready {
                ready.send_ready();
            }
        }
    }
}

impl Qp {
    /// post_send.
    #[inline]
    pub(super) fn send(&self, wr: &SendWr<'_>) -> Result<()> {
        let short = match ShortWr::of(wr) {
            Some(short) => self.send_short_list(std::slice::from_ref(&short)),
            None => return self.send_long(wr),
        };
        short.map_err(|bad| bad.error)
    }

    /// post_send_list.
    pub(super) fn send_list(&self, wrs: &[SendWr<'_>]) -> std::result::Result<(), BadWr> {
        let mut taken = 0;
        while let Some(wr) = wrs.get(taken) {
            let shorts = wrs[taken..].iter().map_while(ShortWr::of).take(BURST);
            let shorts: SmallVec<[ShortWr; BURST]> = shorts.collect();
            let (count, sent) = match &*shorts {
                [] => (1, self.send_long(wr).map_err(|error| BadWr { taken: 0, error })),
                shorts => (shorts.len(), self.send_short_list(shorts)),
            };
            sent.map_err(|bad| BadWr { taken: taken + bad.taken, ..bad })?;
            taken += count;
        }
        Ok(())
    }

    /// Of a WR that has no short form.
    fn send_long(&self, wr: &SendWr<'_>) -> Result<()> {
        let guard = rcu::enter();
        let mut requester = self.requester.0.lock();
        self.send_one(&mut requester, wr, &guard).map(drop)
    }

    /// post_short_list.
    pub(super) fn send_short_list(&self, wrs: &[ShortWr]) -> std::result::Result<(), BadWr> {
        let guard = rcu::enter();
        let mut taken = 0;
        while taken < wrs.len() {
            let mut requester = self.requester.0.lock();
            let r = &mut *requester;
            let mut bytes = 0;
            // For as long as another thread may be made to wait.
            while bytes < PIECE && taken < wrs.len() {
                let at_once = self.state() == QpState::Rts
                    && !r.has_work()
                    && !self.context.suspended(&guard);
                let mut unusual = true;
                if at_once {
                    let done = self.burst(r, &wrs[taken..], &guard);
                    taken += done.count;
                    bytes += done.bytes;
                    unusual = done.unusual;
                }
                if unusual && let Some(wr) = wrs.get(taken) {
                    let sent = self.send_one(r, &wr.wr(), &guard);
                    bytes += sent.map_err(|error| BadWr { taken, error })?;
                    taken += 1;
                }
            }
        }
        Ok(())
    }

    /// Posts a WR that is not for a burst; its length.
    fn send_one(&self, r: &mut Requester, wr: &SendWr<'_>, guard: &Guard) -> Result<u64> {
        let len = self.check_send(wr)?;
        if self.wire.is_some() && !r.has_work() && self.goes_by_wire(r, dest_gid(wr)) {
            return self.send_by_wire(r, wr, guard).map(|()| 0);
        }
        let dest = Dest::of(wr);
        // What goes to a group may be more than its sender's turn is for.
        let at_once = self.state() == QpState::Rts
            && len <= PIECE
            && !dest.is_some_and(|dest| dest.is_group())
            && !r.has_work()
            && !self.context.suspended(guard);
        if !at_once {
            return self.send_later(r, guard, |queue| queue.push(wr)).map(|()| 0);
        }
        r.refill_retries();
        if is_local(wr.opcode) {
            r.current.load(wr, 0);
            let step = self.step_of_key(r, guard);
            self.suspend(r, step, Instant::now());
            return Ok(0);
        }
        let step = match dest {
            Some(dest) => self.execute_datagram(&r.attr, wr, &dest, len, &mut 0, guard),
            None => self.execute(&r.attr, &mut r.link, wr, len, 0, guard),
        };
        match step {
            Step::Done => self.complete(r.cq.as_ref(), wr, len, WcStatus::Success),
            step => {
                r.current.load(wr, 0);
                self.suspend(r, step, Instant::now());
            }
        }
        Ok(len)
    }

    /// post_malformed_send.
    pub(super) fn send_malformed(&self, wqe: MalformedWqe) -> Result<()> {
        let guard = rcu::enter();
        let mut requester = self.requester.0.lock();
        self.send_later(&mut requester, &guard, |queue| queue.push_malformed(wqe))
    }

    fn send_later(
        &self,
        r: &mut Requester,
        guard: &Guard,
        push: impl FnOnce(&mut SendQueue),
    ) -> Result<()> {
        if self.destroyed.load(Ordering::Acquire) {
            return Err(Error::Gone);
        }
        let state = self.state();
        if matches!(state, QpState::Reset | QpState::Init | QpState::Rtr) {
            return Err(Error::BadState("post_send"));
        }
        let room =
            if self.created.consumer_ring { WINDOW } else { self.created.cap.max_send_wr as usize };
        if r.queue.len() + usize::from(!r.current.is_none()) >= room {
            r.ready_due = true;
            return Err(Error::QueueFull);
        }
        push(&mut r.queue);
        let run_it = match state {
            // In place if nothing is before it: a consumer that drains need not wait for a turn.
            QpState::Err => self.flush_sends(r, FLUSH_A_TURN, guard),
            QpState::Sqd => false,
            _ => r.wait.is_none(),
        };
        if run_it {
            self.schedule();
        }
        Ok(())
    }

    /// Checks what a WR may not have in any state; returns its length.
    #[inline]
    fn check_send(&self, wr: &SendWr<'_>) -> Result<u64> {
        let inline_allowed = match wr.opcode {
            WrOpcode::Send
            | WrOpcode::SendWithImm
            | WrOpcode::RdmaWrite
            | WrOpcode::RdmaWriteWithImm
            | WrOpcode::SendWithInv
            | WrOpcode::AtomicWrite => true,
            WrOpcode::Flush => {
                self.check_transport(wr)?;
                return match wr.data {
                    SendData::Flush(_) => Ok(0),
                    _ => Err(Error::Invalid("data of the opcode")),
                };
            }
            WrOpcode::RdmaRead | WrOpcode::AtomicCmpAndSwp | WrOpcode::AtomicFetchAndAdd => false,
            WrOpcode::LocalInv | WrOpcode::BindMw | WrOpcode::RegMr => {
                self.check_transport(wr)?;
                return self.check_local(wr).map(|()| 0);
            }
        };
        self.check_transport(wr)?;
        match wr.data {
            SendData::Sges(sges) if sges.len() > self.created.cap.max_send_sge as usize => {
                Err(Error::Invalid("number of SGEs"))
            }
            SendData::Inline(_) if !inline_allowed => Err(Error::Invalid("inline data")),
            SendData::Inline(bytes) if bytes.len() > self.created.cap.max_inline as usize => {
                Err(Error::Invalid("length of inline data"))
            }
            SendData::Reg(_) | SendData::Bind(_) | SendData::Flush(_) => {
                Err(Error::Invalid("data of the opcode"))
            }
            data => Ok(length(data)),
        }
    }

    /// What a WR that changes a key must carry.
    #[cold]
    fn check_local(&self, wr: &SendWr<'_>) -> Result<()> {
        match (wr.opcode, wr.data) {
            (WrOpcode::RegMr, _) if !self.created.privileged => {
                Err(Error::NotPermitted("REG_MR of a QP that is not a kernel's"))
            }
            (WrOpcode::RegMr, SendData::Reg(_) | SendData::Sges([]))
            | (WrOpcode::BindMw, SendData::Bind(_))
            | (WrOpcode::LocalInv, SendData::Sges([])) => Ok(()),
            _ => Err(Error::Invalid("data of the opcode")),
        }
    }

    /// Makes the completion of a WR, if it wants one.
    pub(super) fn complete(
        &self,
        cq: Option<&Arc<Cq>>,
        wr: &SendWr<'_>,
        len: u64,
        status: WcStatus,
    ) {
        if status == WcStatus::Success && is_send(wr.opcode) {
            self.counts.sends.add(1);
        }
        if let Some(wc) = self.send_completion(wr, len, status) {
            self.push(cq, &wc, false);
        }
    }

    /// The completion of a WR, if it wants one.
    #[inline]
    pub(super) fn send_completion(
        &self,
        wr: &SendWr<'_>,
        len: u64,
        status: WcStatus,
    ) -> Option<WorkCompletion> {
        let signaled = self.created.signal_all || wr.flags.contains(SendFlags::SIGNALED);
        if status == WcStatus::Success && !signaled {
            return None;
        }
        let opcode = WcOpcode::from(wr.opcode);
        let read = matches!(opcode, WcOpcode::RdmaRead | WcOpcode::CompSwap | WcOpcode::FetchAdd);
        let byte_len = if read && status == WcStatus::Success { len as u32 } else { 0 };
        let wc = WorkCompletion::sent(wr.wr_id, wr.ticket, opcode, self.qpn, byte_len);
        Some(WorkCompletion { status, ..wc })
    }

    /// The next step of the current WR, which changes a key.
    #[cold]
    fn step_of_key(&self, r: &mut Requester, guard: &Guard) -> Step {
        if r.current.draining.is_some() {
            return local::go_on(&mut r.current.draining);
        }
        let mut draining = None;
        let step = match r.current.key() {
            Some(change) => self.change_key(change, &mut draining, guard),
            None => Step::Fail(WcStatus::LocQpOpErr),
        };
        r.current.draining = draining;
        step
    }

    /// The current WR has come to an end.
    fn end_current(&self, r: &mut Requester, status: WcStatus) {
        if let Some(wr) = r.current.wr() {
            self.complete(r.cq.as_ref(), &wr, length(wr.data), status);
        }
        r.current.end();
        if status == WcStatus::Success {
            self.drained(r);
        } else {
            self.enter_error();
        }
    }

    /// Deals with a step of the current WR that did not end it well.
    #[cold]
    fn suspend(&self, r: &mut Requester, step: Step, now: Instant) {
        match step {
            Step::Done => self.end_current(r, WcStatus::Success),
            Step::Fail(status) => self.end_current(r, status),
            Step::Busy => self.schedule(),
            Step::More => {
                r.current.offset += PIECE;
                r.refill_retries();
                self.schedule();
            }
            Step::Rnr(code) => {
                self.counts.rnr.add(1);
                if r.rnr_left == 0 {
                    return self.give_up_waiting(r);
                }
                if r.rnr_left < 7 {
                    r.rnr_left -= 1;
                }
                self.wait(r, Why::Rnr, Some(now + rnr_delay(code)));
            }
            Step::Absent => self.wait(r, Why::Pages, None),
            Step::AbsentThere(_) if r.rnr_left == 0 => self.give_up_waiting(r),
            Step::AbsentThere(code) => {
                if r.rnr_left < 7 {
                    r.rnr_left -= 1;
                }
                self.wait(r, Why::Pages, Some(now + rnr_delay(code)));
            }
            Step::Lost => {
                let until = (r.attr.timeout != 0).then(|| now + ack_timeout(r.attr.timeout));
                self.wait(r, Why::Ack, until);
            }
        }
    }

    /// The peer was not ready as often as the consumer allows.
    fn give_up_waiting(&self, r: &mut Requester) {
        self.counts.rnr_retries_exceeded.add(1);
        self.end_current(r, WcStatus::RnrRetryExcErr);
    }

    fn wait(&self, r: &mut Requester, why: Why, until: Option<Instant>) {
        let this = self.this.upgrade();
        let timer = until.zip(this).map(|(at, this)| {
            let poller = self.poller().clone();
            (poller.arm(at, &this), poller)
        });
        r.wait = Some(Wait { why, timer });
    }

    /// Ends a wait, without a word about what comes next.
    pub(super) fn stop_waiting(&self, r: &mut Requester) {
        if let Some(Wait { timer: Some((timer, poller)), .. }) = r.wait.take() {
            poller.cancel(timer);
        }
    }

    /// Ends the wait if what it waits for has come. Whether it has.
    fn stop_wait_if_due(&self, r: &mut Requester, now: Instant) -> bool {
        let Some(wait) = &r.wait else { return true };
        let why = wait.why;
        let came = match why {
            Why::Rnr => self.recv_came.swap(false, Ordering::AcqRel),
            Why::Pages => self.fault.has_answer(),
            Why::Ack => false,
        };
        if !came && wait.timer.as_ref().is_none_or(|((at, _), _)| *at > now) {
            return false;
        }
        self.stop_waiting(r);
        if why == Why::Ack {
            match r.retries_left.checked_sub(1) {
                Some(left) => r.retries_left = left,
                None => {
                    self.counts.retries_exceeded.add(1);
                    self.end_current(r, WcStatus::RetryExcErr);
                }
            }
        }
        true
    }

    /// Works on the QP for a bounded time; returns how many pieces or WRs. Never sleeps.
    pub(crate) fn run(&self, now: Instant, guard: &Guard) -> usize {
        let mut requester = self.requester.0.lock();
        let r = &mut *requester;
        let (mut used, mut bytes) = (0, 0);
        if self.context.suspended(guard) {
            return 0;
        }
        let again = loop {
            match self.state() {
                QpState::Rts => {}
                QpState::Sqd if !r.current.is_none() => {}
                QpState::Err => {
                    drop(requester);
                    break self.flush(FLUSH_A_TURN, guard);
                }
                _ => break false,
            }
            if used >= WRS_A_TURN || bytes >= PIECE {
                break true;
            }
            if r.wait.is_some() {
                if self.stop_wait_if_due(r, now) {
                    continue;
                }
                break false;
            }
            if r.current.is_none() {
                if !r.queue.pop_into(&mut r.current) {
                    break false;
                }
                r.refill_retries();
                r.announce_room();
                let dest = r.current.dest().map(|dest| dest.path.dgid);
                if self.wire.is_some() && self.goes_by_wire(r, dest) {
                    self.current_to_wire(r);
                    used += 1;
                    continue;
                }
            }
            used += 1;
            if r.current.key().is_some() {
                let step = self.step_of_key(r, guard);
                self.suspend(r, step, now);
                if step == Step::Busy {
                    break false;
                }
                continue;
            }
            let mut reached = r.current.reached;
            let Some(wr) = r.current.wr() else { break false };
            let (len, offset) = (length(wr.data), r.current.offset);
            let step = if r.current.is_malformed() {
                Step::Fail(WcStatus::LocQpOpErr)
            } else if let Some(dest) = r.current.dest() {
                self.execute_datagram(&r.attr, &wr, &dest, len, &mut reached, guard)
            } else {
                self.execute(&r.attr, &mut r.link, &wr, len, offset, guard)
            };
            let group = r.current.dest().is_some_and(|dest| dest.is_group());
            bytes += if group { PIECE } else { len.saturating_sub(offset).min(PIECE) };
            r.current.reached = reached;
            if step == Step::More {
                r.current.offset += PIECE;
                r.refill_retries();
                continue;
            }
            self.suspend(r, step, now);
            if step == Step::Busy {
                break false;
            }
        };
        if again {
            self.schedule();
        }
        used
    }

    /// Flushes send WRs in order. Whether there are more. A stopped tenant's stay.
    pub(super) fn flush_sends(&self, r: &mut Requester, max: usize, guard: &Guard) -> bool {
        if self.context.suspended(guard) {
            return false;
        }
        self.stop_waiting(r);
        // They were posted before those that wait for the direct way.
        if self.flush_wire(r, max, guard) {
            return true;
        }
        for _ in 0..max {
            if r.current.is_none() && !r.queue.pop_into(&mut r.current) {
                break;
            }
            if let Some(wr) = r.current.wr() {
                self.complete(r.cq.as_ref(), &wr, 0, WcStatus::WrFlushErr);
            }
            r.current.end();
        }
        r.announce_room();
        !r.queue.is_empty()
    }
}

/// Where a datagram goes.
#[cold]
fn dest_gid(wr: &SendWr<'_>) -> Option<Gid> {
    Dest::of(wr).map(|dest| dest.path.dgid)
}

/// Bytes of a WR's data.
#[inline]
fn length(data: SendData<'_>) -> u64 {
    match data {
        SendData::Sges(sges) => sges.iter().map(|sge| u64::from(sge.length)).sum(),
        SendData::Inline(bytes) => bytes.len() as u64,
        SendData::Reg(_) | SendData::Bind(_) | SendData::Flush(_) => 0,
    }
}
