// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The responder side: what a request of the peer does here. It runs in the requester's call, with
//! this side locked. A request that is in order with neither state, peer nor PSN vanishes, as on the
//! wire; one that asks for what is not allowed is refused, and this QP goes to ERR (IBA 9.9.3).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use rdma_midlayer::attr::{AhAttr, QpAttr, QpAttrMask};
use rdma_midlayer::driver::{AsyncEvent, MalformedWqe, RecvSource, Taken};
use rdma_midlayer::rcu::{self, Guard};
use rdma_midlayer::types::{
    Access, Gid, Psn, QpState, QpType, Qpn, Srqn, WcOpcode, WcStatus, WrOpcode,
};
use rdma_midlayer::work::{RecvWqe, RecvWr, SendFlags, SendWr, ShortRecv, WcFlags, WorkCompletion};
use rdma_midlayer::{Error, Result};

use super::execute::Step;
use super::paging::{Bytes, Lack, Waiting};
use super::queue::RecvQueue;
use super::wire::Receiving;
use super::{FLUSH_A_TURN, PIECE, Qp};
use crate::soft::cq::Cq;
use crate::soft::keys::Use;
use crate::soft::place::{CopyFault, Place, View, copy};
use crate::soft::rebind::Draining;
use crate::soft::srq::Srq;
use crate::soft::wire::timers::page_timer;

/// The responder side of a QP.
pub(super) struct Responder {
    /// The PSN expected next.
    pub(super) epsn: Psn,
    /// What the peer may do.
    access: Access,
    max_dest_rd_atomic: u8,
    min_rnr_timer: u8,
    pub(super) dest_qpn: Qpn,
    pub(super) dgid: Gid,
    pub(super) sgid_index: u32,
    /// The whole path, for answers by packets.
    pub(super) ah: AhAttr,
    /// The requester that was found to be the peer, and in which epoch of the network.
    bound: Option<(u64, u64)>,
    pub(super) cq: Option<Arc<Cq>>,
    pub(super) source: Option<Arc<dyn RecvSource>>,
    pub(super) srq: Option<Arc<Srq>>,
    qkey: u32,
    queue: RecvQueue,
    /// The WQE of a message that is coming in, if `held`.
    pub(super) wqe: RecvWqe,
    pub(super) held: bool,
    /// The message in hand begins anew: pages for its first bytes were missing.
    paused: bool,
    /// The source was asked to report new WQEs.
    doorbell: bool,
    /// The requester that waits for a WQE.
    waiter: Option<Weak<Qp>>,
    /// What a SEND_WITH_INV has taken away, until nobody uses it any more.
    pub(super) draining: Option<Draining>,
    pub(super) established: bool,
    /// What comes by packets.
    pub(super) wire: Option<Box<Receiving>>,
}

/// A request, or a piece of one.
pub(super) struct Request<'a> {
    pub(super) from: &'a Qp,
    pub(super) attr: &'a QpAttr,
    pub(super) wr: &'a SendWr<'a>,
    /// Bytes of the whole message.
    pub(super) len: u64,
    /// Bytes that are done.
    pub(super) offset: u64,
    /// The requester's memory.
    pub(super) local: &'a Place<'a>,
    /// Pages that it waited for can't be had.
    pub(super) refused: bool,
    pub(super) guard: &'a Guard,
}

impl Request<'_> {
    /// Bytes to move now.
    #[inline]
    fn piece(&self) -> u64 {
        (self.len - self.offset).min(PIECE)
    }

    /// The bytes to move now.
    #[inline]
    fn bytes(&self) -> Bytes {
        let rest = self.len - self.offset;
        Bytes { offset: self.offset, len: self.piece(), rest }
    }

    #[inline]
    fn is_last(&self) -> bool {
        self.len - self.offset <= PIECE
    }

    #[inline]
    fn step(&self) -> Step {
        if self.is_last() { Step::Done } else { Step::More }
    }
}

/// The receive queue of a QP's own and its CQ, apart from the rest of the responder.
pub(super) struct Receive<'a> {
    cq: &'a Arc<Cq>,
    source: Option<&'a dyn RecvSource>,
    queue: &'a mut RecvQueue,
}

impl<'a> Receive<'a> {
    /// Where it completes.
    #[inline]
    pub(super) fn cq(&self) -> &'a Arc<Cq> {
        self.cq
    }

    /// Shows the oldest WQEs, in order, up to the first that is not of one SGE; how many.
    #[inline]
    pub(super) fn peek(&self, to: &mut [ShortRecv]) -> usize {
        match self.source {
            Some(source) => source.peek_short(to),
            None => self.queue.peek_short(to),
        }
    }

    /// Takes out some of those that were shown.
    #[inline]
    pub(super) fn take_out(&mut self, count: usize) {
        match self.source {
            Some(source) => source.advance(count),
            None => self.queue.advance(count),
        }
    }
}

/// Why a WQE could not be had.
pub(super) enum NoWqe {
    Empty,
    Malformed,
}

impl Responder {
    pub(super) fn new(
        cq: Arc<Cq>,
        source: Option<Arc<dyn RecvSource>>,
        srq: Option<Arc<Srq>>,
    ) -> Self {
        Self {
            epsn: Psn::new(0),
            access: Access::NONE,
            max_dest_rd_atomic: 0,
            min_rnr_timer: 0,
            dest_qpn: Qpn(0),
            dgid: Gid::default(),
            sgid_index: 0,
            ah: AhAttr::default(),
            bound: None,
            cq: Some(cq),
            source,
            srq,
            qkey: 0,
            queue: RecvQueue::default(),
            wqe: RecvWqe::default(),
            held: false,
            paused: false,
            doorbell: false,
            waiter: None,
            draining: None,
            established: false,
            wire: None,
        }
    }

    /// Takes over what modify has set.
    pub(super) fn configure(&mut self, attr: &QpAttr, mask: QpAttrMask) {
        self.access = attr.access;
        self.qkey = attr.qkey;
        self.max_dest_rd_atomic = attr.max_dest_rd_atomic;
        self.min_rnr_timer = attr.min_rnr_timer;
        self.dest_qpn = attr.dest_qpn;
        self.dgid = attr.ah.dgid;
        self.sgid_index = attr.ah.sgid_index;
        self.ah = attr.ah;
        self.bound = None;
        if mask.contains(QpAttrMask::RQ_PSN) {
            self.epsn = attr.rq_psn;
        }
    }

    /// As new.
    pub(super) fn reset(&mut self) {
        self.configure(&QpAttr::default(), QpAttrMask::RQ_PSN);
        self.queue.clear();
        self.held = false;
        self.paused = false;
        self.waiter = None;
        self.draining = None;
        self.established = false;
        self.want_doorbell(false);
    }

    /// The Q_Key that a datagram must have.
    pub(super) fn qkey(&self) -> u32 {
        self.qkey
    }

    /// Takes the WQE for a datagram, which nobody waits for.
    pub(super) fn take_datagram(&mut self) -> std::result::Result<(), ()> {
        self.take(None).map_err(|_| ())
    }

    /// Whether the peer may access memory so.
    #[inline]
    pub(super) fn allows(&self, access: Access) -> bool {
        self.access.contains(access)
            && (access != Access::REMOTE_READ || self.max_dest_rd_atomic > 0)
    }

    /// Whether the peer may use rights that its requests need which are answered like READs.
    pub(super) fn places(&self, access: Access) -> bool {
        self.access.contains(access) && self.max_dest_rd_atomic > 0
    }

    /// The PSN expected next; and the receive queue, if messages find their WQEs in the QP's own and
    /// nobody has waited for one.
    #[inline]
    pub(super) fn parts(&mut self) -> (&mut Psn, Option<Receive<'_>>) {
        let own = self.srq.is_none() && !self.held && !self.doorbell && self.waiter.is_none();
        let receive = self.cq.as_ref().filter(|_| own).map(|cq| Receive {
            cq,
            source: self.source.as_deref(),
            queue: &mut self.queue,
        });
        (&mut self.epsn, receive)
    }

    /// A request was carried out.
    #[inline]
    pub(super) fn advance(&mut self, next: Psn) {
        self.epsn = next;
    }

    /// Answers by packets that have not gone are not sent any more.
    pub(super) fn forget_answers(&mut self) {
        if let Some(wire) = &mut self.wire {
            wire.drop_replies();
        }
    }

    fn want_doorbell(&mut self, wanted: bool) {
        if self.doorbell != wanted {
            self.doorbell = wanted;
            if let Some(source) = &self.source {
                source.want_doorbell(wanted);
            }
        }
    }

    /// Takes the oldest WQE out of the receive queue, or the SRQ, where a requester may wait for it.
    #[inline]
    pub(super) fn take(&mut self, waiter: Option<&Qp>) -> std::result::Result<(), NoWqe> {
        let taken = match (&self.source, &self.srq) {
            (None, None) => Ok(match self.queue.pop_into(&mut self.wqe) {
                true => Taken::Wqe,
                false => Taken::Empty,
            }),
            (Some(source), _) => source.take(&mut self.wqe),
            (None, Some(srq)) => {
                srq.take(&mut self.wqe, waiter.map(|qp| (qp.uid, qp.this.clone())))
            }
        };
        self.held = taken != Ok(Taken::Empty);
        match taken {
            Ok(Taken::Wqe) => Ok(()),
            Ok(Taken::Empty) => Err(NoWqe::Empty),
            Err(MalformedWqe { wr_id, ticket }) => {
                self.wqe.set(wr_id, ticket, std::iter::empty());
                Err(NoWqe::Malformed)
            }
        }
    }

    /// As `take`; if there is nothing, new WQEs will be reported, and it looks once more.
    #[inline]
    fn take_or_ask(&mut self, waiter: Option<&Qp>) -> std::result::Result<(), NoWqe> {
        let mut taken = self.take(waiter);
        if matches!(taken, Err(NoWqe::Empty)) && !self.doorbell && self.srq.is_none() {
            self.want_doorbell(true);
            taken = self.take(None);
        }
        taken
    }
}

impl Qp {
    /// Whether requests of a QP of that type are for one of this.
    fn talks_to(&self, from: QpType) -> bool {
        match self.created.qp_type {
            QpType::XrcTgt => from == QpType::XrcIni,
            QpType::XrcIni => false,
            same => same == from,
        }
    }

    /// Whether a request comes from the peer of this QP and is the one expected.
    #[inline]
    pub(super) fn accepts(
        &self,
        responder: &mut Responder,
        request: &Request<'_>,
        psn: Psn,
        epoch: u64,
        source: Gid,
    ) -> bool {
        let answers =
            matches!(self.state(), QpState::Rtr | QpState::Rts | QpState::Sqd | QpState::Sqe);
        if !answers || self.context.suspended(request.guard) {
            return false;
        }
        let bound = Some((request.from.uid, epoch));
        if responder.bound != bound {
            let ours = responder.dest_qpn == request.from.qpn
                && responder.dgid == source
                && self.context.gid(responder.sgid_index) == Some(request.attr.ah.dgid)
                && self.talks_to(request.from.created.qp_type);
            if !ours {
                return false;
            }
            responder.bound = bound;
        }
        // An unreliable connection takes up where the next message begins.
        responder.epsn == psn || self.created.qp_type == QpType::Uc && request.offset == 0
    }

    /// Whether the next request of a requester that is known (`uid` and epoch) can be carried out, as
    /// far as this side's state goes, without another look at it.
    #[inline]
    pub(super) fn as_usual(
        &self,
        responder: &Responder,
        known: (u64, u64),
        psn: Psn,
        guard: &Guard,
    ) -> bool {
        responder.bound == Some(known)
            && responder.established
            && responder.epsn == psn
            && !self.context.suspended(guard)
    }

    /// Carries out a request, or a piece of one. Never sleeps.
    #[inline]
    pub(super) fn respond(&self, responder: &mut Responder, request: &Request<'_>) -> Step {
        if !responder.established {
            responder.established = true;
            if self.state() == QpState::Rtr {
                self.context.dispatch(AsyncEvent::CommEst(self.qpn));
            }
        }
        if self.created.xrc && request.offset == 0 && !responder.held {
            // Else it is the message for which it was found.
            if !request.wr.srqn.is_some_and(|srqn| self.select_srq(responder, srqn)) {
                return self.refuse_invalid(responder);
            }
        }
        match request.wr.opcode {
            WrOpcode::RdmaWrite | WrOpcode::RdmaWriteWithImm => self.on_write(responder, request),
            WrOpcode::RdmaRead => self.on_read(responder, request),
            WrOpcode::Send | WrOpcode::SendWithImm | WrOpcode::SendWithInv => {
                self.on_send(responder, request)
            }
            WrOpcode::AtomicCmpAndSwp | WrOpcode::AtomicFetchAndAdd => {
                self.on_atomic(responder, request)
            }
            WrOpcode::AtomicWrite => self.on_atomic_write(responder, request),
            WrOpcode::Flush => self.on_flush(responder, request),
            _ => self.refuse_invalid(responder),
        }
    }

    fn on_send(&self, responder: &mut Responder, request: &Request<'_>) -> Step {
        if responder.draining.is_some() {
            return self.go_on_invalidating(responder, request);
        }
        let paused = std::mem::take(&mut responder.paused);
        match (request.offset, responder.held) {
            (0, true) if paused => {}
            (0, false) => {
                if let Err(step) = self.take_for(responder, request) {
                    return step;
                }
            }
            // An unreliable connection: what was cut off leaves its WQE to this message.
            (0, true) if self.created.qp_type == QpType::Uc => {}
            // A message begins inside another one, whose requester gave it up.
            (0, true) => return self.refuse_invalid(responder),
            (_, true) => {}
            // We have been reset since the message began.
            (_, false) => return Step::Lost,
        }
        let sges = responder.wqe.sges();
        let room: u64 = sges.iter().map(|sge| u64::from(sge.length)).sum();
        if request.len > room {
            return self.refuse(
                responder,
                WcStatus::LocLenErr,
                AsyncEvent::QpReqErr(self.qpn),
                WcStatus::RemInvReqErr,
            );
        }
        let view = self.view(Access::LOCAL_WRITE, request.guard);
        let copied = match Place::of_sges(sges, request.len, view) {
            Ok(to) => match self.lacks_for(request, &to, true) {
                Lack::Nothing => copy(&to, request.local, request.offset, request.piece()),
                Lack::Asked => {
                    responder.paused = true;
                    return Step::AbsentThere(page_timer(responder.min_rnr_timer));
                }
                Lack::Refused => Err(CopyFault::To),
            },
            Err(_) => Err(CopyFault::To),
        };
        match copied {
            Err(CopyFault::From) => Step::Fail(WcStatus::LocProtErr),
            Err(CopyFault::To) => self.refuse(
                responder,
                WcStatus::LocProtErr,
                AsyncEvent::QpReqErr(self.qpn),
                WcStatus::RemOpErr,
            ),
            Ok(()) => {
                if !request.is_last() {
                    return Step::More;
                }
                if request.wr.opcode == WrOpcode::SendWithInv {
                    return self.invalidate_for(responder, request);
                }
                self.complete_recv(responder, request, WcOpcode::Recv);
                Step::Done
            }
        }
    }

    #[inline]
    fn on_write(&self, responder: &mut Responder, request: &Request<'_>) -> Step {
        if !responder.access.contains(Access::REMOTE_WRITE) {
            return self.refuse_invalid(responder);
        }
        let Some(to) = self.remote_place(request, Access::REMOTE_WRITE) else {
            return self.refuse_access(responder);
        };
        if let Some(step) = self.put_off(responder, request, &to, true) {
            return step;
        }
        let with_imm = request.wr.opcode == WrOpcode::RdmaWriteWithImm;
        // The WQE is the last packet's affair.
        if with_imm
            && request.is_last()
            && let Err(step) = self.take_for(responder, request)
        {
            return step;
        }
        match copy(&to, request.local, request.offset, request.piece()) {
            Err(CopyFault::From) => Step::Fail(WcStatus::LocProtErr),
            Err(CopyFault::To) => self.refuse_access(responder),
            Ok(()) => {
                if with_imm && request.is_last() {
                    self.complete_recv(responder, request, WcOpcode::RecvRdmaWithImm);
                }
                request.step()
            }
        }
    }

    fn on_read(&self, responder: &mut Responder, request: &Request<'_>) -> Step {
        if !responder.access.contains(Access::REMOTE_READ) || responder.max_dest_rd_atomic == 0 {
            return self.refuse_invalid(responder);
        }
        let Some(from) = self.remote_place(request, Access::REMOTE_READ) else {
            return self.refuse_access(responder);
        };
        if let Some(step) = self.put_off(responder, request, &from, false) {
            return step;
        }
        match copy(request.local, &from, request.offset, request.piece()) {
            Err(CopyFault::From) => self.refuse_access(responder),
            Err(CopyFault::To) => Step::Fail(WcStatus::LocProtErr),
            Ok(()) => request.step(),
        }
    }

    fn on_atomic(&self, responder: &mut Responder, request: &Request<'_>) -> Step {
        let wr = request.wr;
        if !responder.access.contains(Access::REMOTE_ATOMIC)
            || responder.max_dest_rd_atomic == 0
            || !wr.remote_addr.is_multiple_of(8)
        {
            return self.refuse_invalid(responder);
        }
        let Some(place) = self.remote_place(request, Access::REMOTE_ATOMIC) else {
            return self.refuse_access(responder);
        };
        if let Some(step) = self.put_off(responder, request, &place, true) {
            return step;
        }
        let Place::One { memory, addr } = place else { return self.refuse_access(responder) };
        let old = memory.with_atomic(addr, |word| match wr.opcode {
            WrOpcode::AtomicCmpAndSwp => {
                let (compare, swap) = (wr.compare_add, wr.swap);
                word.compare_exchange(compare, swap, Ordering::SeqCst, Ordering::SeqCst)
                    .unwrap_or_else(|other| other)
            }
            _ => word.fetch_add(wr.compare_add, Ordering::SeqCst),
        });
        // The consumer's address was aligned; the memory behind it is not.
        let Some(old) = old else { return self.refuse_invalid(responder) };
        match copy(request.local, &Place::Bytes(&old.to_ne_bytes()), 0, 8) {
            Ok(()) => Step::Done,
            Err(_) => Step::Fail(WcStatus::LocProtErr),
        }
    }

    /// Whether pages of a place here are missing that a request needs now.
    #[inline]
    fn lacks_for(&self, request: &Request<'_>, place: &Place<'_>, write: bool) -> Lack {
        // What is lost on an unreliable connection is not tried again.
        let waiter =
            (self.created.qp_type != QpType::Uc).then_some(Waiting::Requester(request.from));
        self.lacks(place, request.bytes(), write, waiter, request.refused)
    }

    /// How a request ends for now whose pages here are missing.
    #[inline]
    pub(super) fn put_off(
        &self,
        responder: &mut Responder,
        request: &Request<'_>,
        place: &Place<'_>,
        write: bool,
    ) -> Option<Step> {
        match self.lacks_for(request, place, write) {
            Lack::Nothing => None,
            Lack::Asked => Some(Step::AbsentThere(page_timer(responder.min_rnr_timer))),
            Lack::Refused => Some(self.refuse_access(responder)),
        }
    }

    #[inline]
    pub(super) fn view<'a>(&'a self, access: Access, guard: &'a Guard) -> View<'a> {
        View { mrs: &self.context.mrs, of: self.usage(access), guard }
    }

    /// The PD that counts for what this QP does.
    #[inline]
    pub(super) fn pd(&self) -> u32 {
        match self.created.qp_type {
            QpType::XrcTgt => self.xrc_pd.load(Ordering::Relaxed),
            _ => self.created.pd,
        }
    }

    /// XRC target: an SRQ of its domain.
    pub(super) fn srq_of_domain(&self, srqn: Srqn) -> Option<Arc<Srq>> {
        self.xrcd.as_ref()?.find(srqn)
    }

    /// XRC target: the SRQ that a message names is the one that counts. False if there is none.
    #[cold]
    pub(super) fn select_srq(&self, responder: &mut Responder, srqn: Srqn) -> bool {
        let Some(srq) = self.srq_of_domain(srqn) else { return false };
        self.xrc_pd.store(srq.pd(), Ordering::Relaxed);
        responder.cq = srq.cq().cloned();
        responder.srq = Some(srq);
        true
    }

    /// How this QP uses memory.
    #[inline]
    pub(super) fn usage(&self, access: Access) -> Use {
        let privileged = self.created.privileged;
        Use { pd: self.pd(), qp: self.uid, privileged, access }
    }

    /// What a request names here. A request without data names nothing (IBA 9.7.4.1.6).
    #[inline]
    pub(super) fn remote_place<'a>(
        &'a self,
        request: &Request<'a>,
        access: Access,
    ) -> Option<Place<'a>> {
        let (wr, len) = (request.wr, request.len);
        if len == 0 {
            return Some(Place::Bytes(&[]));
        }
        let (mrs, of) = (&self.context.mrs, self.usage(access));
        let (memory, addr) = mrs.remote(wr.rkey, wr.remote_addr, len, &of, request.guard)?;
        Some(Place::One { memory, addr })
    }

    /// Takes the WQE for a message.
    #[inline]
    fn take_for(
        &self,
        responder: &mut Responder,
        request: &Request<'_>,
    ) -> std::result::Result<(), Step> {
        match responder.take_or_ask(Some(request.from)) {
            Ok(()) => {
                if responder.doorbell || responder.waiter.is_some() {
                    responder.waiter = None;
                    responder.want_doorbell(false);
                }
                Ok(())
            }
            Err(NoWqe::Empty) => {
                responder.waiter = Some(request.from.this.clone());
                Err(Step::Rnr(responder.min_rnr_timer))
            }
            Err(NoWqe::Malformed) => Err(self.refuse(
                responder,
                WcStatus::LocQpOpErr,
                AsyncEvent::QpReqErr(self.qpn),
                WcStatus::RemOpErr,
            )),
        }
    }

    /// Completes the WQE in hand.
    pub(super) fn complete_recv(
        &self,
        responder: &mut Responder,
        request: &Request<'_>,
        opcode: WcOpcode,
    ) {
        let wr = request.wr;
        let flags = match wr.opcode {
            WrOpcode::SendWithImm | WrOpcode::RdmaWriteWithImm => WcFlags::WITH_IMM,
            WrOpcode::SendWithInv => WcFlags::WITH_INV,
            _ => WcFlags::default(),
        };
        let wc = WorkCompletion {
            wr_id: responder.wqe.wr_id,
            ticket: responder.wqe.ticket,
            status: WcStatus::Success,
            opcode,
            flags,
            qpn: self.qpn,
            byte_len: request.len as u32,
            imm: if flags == WcFlags::default() { 0 } else { wr.imm },
            src_qpn: request.from.qpn,
            vendor_err: 0,
            vlan: 0,
            sl: 0,
        };
        responder.held = false;
        self.counts.recvs.add(1);
        self.push(responder.cq.as_ref(), &wc, wr.flags.contains(SendFlags::SOLICITED));
    }

    /// Completes the WQE in hand with an error.
    pub(super) fn fail_recv(&self, responder: &mut Responder, status: WcStatus) {
        let wc = WorkCompletion {
            wr_id: responder.wqe.wr_id,
            ticket: responder.wqe.ticket,
            status,
            opcode: WcOpcode::Recv,
            flags: WcFlags::default(),
            qpn: self.qpn,
            byte_len: 0,
            imm: 0,
            src_qpn: responder.dest_qpn,
            vendor_err: 0,
            vlan: 0,
            sl: 0,
        };
        responder.held = false;
        responder.draining = None;
        self.push(responder.cq.as_ref(), &wc, false);
    }

    /// Refuses a request: the WQE in hand tells why; without one the event does.
    #[cold]
    pub(super) fn refuse(
        &self,
        responder: &mut Responder,
        recv: WcStatus,
        event: AsyncEvent,
        answer: WcStatus,
    ) -> Step {
        if responder.held {
            self.fail_recv(responder, recv);
        } else if self.created.qp_type == QpType::Uc {
            // An unreliable connection loses the message, and that is all (IBA 9.9.3, class D).
            return Step::Fail(answer);
        } else {
            self.context.dispatch(event);
        }
        self.enter_error();
        Step::Fail(answer)
    }

    /// The QP does not do what is asked.
    #[cold]
    pub(super) fn refuse_invalid(&self, responder: &mut Responder) -> Step {
        let event = AsyncEvent::QpReqErr(self.qpn);
        self.refuse(responder, WcStatus::LocQpOpErr, event, WcStatus::RemInvReqErr)
    }

    /// The key does not allow what is asked.
    #[cold]
    pub(super) fn refuse_access(&self, responder: &mut Responder) -> Step {
        if responder.held {
            self.fail_recv(responder, WcStatus::LocAccessErr);
        }
        let event = AsyncEvent::QpAccessErr(self.qpn);
        self.refuse(responder, WcStatus::LocAccessErr, event, WcStatus::RemAccessErr)
    }

    /// post_recv.
    pub(super) fn recv(&self, wr: &RecvWr<'_>) -> Result<()> {
        if self.created.recv_source {
            return Err(Error::Unsupported("post_recv where the consumer keeps the WQEs"));
        }
        if wr.sges.len() > self.created.cap.max_recv_sge as usize {
            return Err(Error::Invalid("number of SGEs"));
        }
        let guard = rcu::enter();
        let mut responder = self.responder.0.lock();
        if self.destroyed.load(Ordering::Acquire) {
            return Err(Error::Gone);
        }
        let state = self.state();
        if state == QpState::Reset {
            return Err(Error::BadState("post_recv"));
        }
        if responder.queue.len() + usize::from(responder.held)
            >= self.created.cap.max_recv_wr as usize
        {
            return Err(Error::QueueFull);
        }
        responder.queue.push(wr);
        self.wqe_came(&mut responder, &guard);
        Ok(())
    }

    /// The source has WQEs.
    pub(super) fn recv_arrived(&self) {
        let guard = rcu::enter();
        self.wqe_came(&mut self.responder.0.lock(), &guard);
    }

    /// Gives new WQEs to whoever waits for them.
    fn wqe_came(&self, responder: &mut Responder, guard: &Guard) {
        if self.state() == QpState::Err && self.flush_recvs(responder, FLUSH_A_TURN, guard) {
            self.schedule();
        }
        // The waiter need not sit its timer out: it may try again at once.
        if let Some(waiter) = responder.waiter.take().and_then(|waiter| waiter.upgrade()) {
            waiter.recv_has_come();
        }
    }

    /// Flushes receive WRs in order. Whether there may be more. A stopped tenant's stay.
    pub(super) fn flush_recvs(&self, responder: &mut Responder, max: usize, guard: &Guard) -> bool {
        if self.context.suspended(guard) {
            return false;
        }
        for _ in 0..max {
            if !responder.held
                && (responder.srq.is_some()
                    || matches!(responder.take_or_ask(None), Err(NoWqe::Empty)))
            {
                return false;
            }
            self.fail_recv(responder, WcStatus::WrFlushErr);
        }
        responder.srq.is_none() && (responder.source.is_some() || !responder.queue.is_empty())
    }
}
