// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Queue pairs. Here: the object, its state, and the verbs. When a send WR is carried out is in
//! `requester`, how in `burst` and, if anything is unusual, in `execute`; how the peer's side answers is
//! in `responder`, modify and query are in `attr`, datagrams in `datagram`, those to groups in `group`.

mod attr;
mod burst;
mod counts;
mod datagram;
mod execute;
mod group;
mod local;
mod paging;
mod placement;
mod queue;
mod requester;
mod responder;
mod wire;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rdma_midlayer::attr::{QpAttr, QpAttrMask, QpCap};
use rdma_midlayer::driver::{
    AsyncEvent, BadWr, MalformedWqe, MwDriver, QpDriver, QpInit, TransportCounts, own, own_any,
};
use rdma_midlayer::rcu::Guard;
use rdma_midlayer::types::{Gid, QpState, QpType, Qpn, RKey, WcStatus, WrOpcode};
use rdma_midlayer::work::{MwBind, RecvWr, SendData, SendFlags, SendWr, ShortWr, WorkCompletion};
use rdma_midlayer::{Error, MaySleep, Result};

use super::context::Context;
use super::cq::{Cq, Overflowed};
use super::poller::SoftPoller;
use super::rebind::Draining;
use super::rebound::Mw;
use super::run_queue::Queued;
use super::spin::SpinLock;
use super::srq::Srq;
use super::xrc::Xrcd;
use counts::Counts;
pub(crate) use datagram::GSI_QPN;
use paging::PageFault;
pub(crate) use queue::RecvQueue;
use requester::Requester;
use responder::Responder;
use wire::{OnWire, Receiving, Sending};

/// Bytes that are moved in one go: what a lock is held for, and what another QP has to wait for.
const PIECE: u64 = 64 << 10;

/// Flushed completions made in one go.
const FLUSH_A_TURN: usize = 256;

/// Tells QPs apart for ever, unlike numbers, which come back.
static NEXT_UID: AtomicU64 = AtomicU64::new(1);

/// On a cache line of its own: one side belongs to this QP's worker, the other to the peer's.
#[repr(align(128))]
struct Side<T>(SpinLock<T>);

/// What a QP was created with.
#[derive(Clone, Copy, Debug)]
struct Creation {
    qp_type: QpType,
    pd: u32,
    cap: QpCap,
    signal_all: bool,
    /// Of a kernel.
    privileged: bool,
    /// The send WQEs stay in the consumer's ring; few are held here.
    consumer_ring: bool,
    /// The receive WQEs are fetched from the consumer, or from an SRQ.
    recv_source: bool,
    /// They come from an SRQ.
    srq: bool,
    /// One half of an extended reliable connection.
    xrc: bool,
    /// What it sends to a group does not come back to it.
    block_self_mcast: bool,
}

/// A queue pair.
pub(crate) struct Qp {
    this: Weak<Qp>,
    uid: u64,
    qpn: Qpn,
    created: Creation,
    context: Arc<Context>,
    /// The number of the poller that runs it.
    poller: AtomicU32,
    /// Written with both sides locked, but for the step to ERR, for which either will do.
    state: AtomicU8,
    destroyed: AtomicBool,
    queued: Queued,
    /// The peer has posted a receive WR for which this QP waits.
    recv_came: AtomicBool,
    /// The last page faults of the requester side and of the responder side's packets.
    fault: PageFault,
    recv_fault: PageFault,
    /// What a WR that goes by packets took away, until nobody uses it. Locked with the requester.
    draining: SpinLock<Option<Draining>>,
    /// XRC target: the domain.
    xrcd: Option<Arc<Xrcd>>,
    /// XRC target: the PD of the SRQ that the last message named. Locked with the responder.
    xrc_pd: AtomicU32,
    requester: Side<Requester>,
    responder: Side<Responder>,
    counts: Counts,
    /// Where peers of other daemons are.
    wire: Option<Box<OnWire>>,
    /// The multicast groups that it is in.
    groups: Mutex<Vec<Gid>>,
}

impl Qp {
    /// A QP in RESET, with a number that the context has given it.
    pub(crate) fn new(context: Arc<Context>, pd: u32, qpn: Qpn, init: QpInit) -> Result<Arc<Self>> {
        let xrc = matches!(init.qp_type, QpType::XrcIni | QpType::XrcTgt);
        let xrcd = init.xrcd.map(|xrcd| own_any::<Xrcd>(xrcd)).transpose()?;
        if xrcd.is_some() != (init.qp_type == QpType::XrcTgt) {
            return Err(Error::Invalid("XRC targets have a domain, other QPs have none"));
        }
        if xrcd.as_ref().is_some_and(|xrcd| !xrcd.is_of(&context)) {
            return Err(Error::Invalid("an XRC domain of another context"));
        }
        let srq = init.srq.map(|srq| own_any::<Srq>(srq)).transpose()?;
        if srq.as_ref().is_some_and(|srq| !srq.is_of(&context)) {
            return Err(Error::Invalid("an SRQ of another context"));
        }
        let (cap, limits) = (init.cap, context.limits());
        if cap.max_send_wr > limits.max_qp_wr
            || cap.max_recv_wr > limits.max_qp_wr
            || cap.max_send_sge > limits.max_sge
            || cap.max_recv_sge > limits.max_sge
            || cap.max_inline > limits.max_inline
        {
            return Err(Error::Invalid("sizes of the QP's queues"));
        }
        let send_cq: Arc<Cq> = own(init.send_cq)?;
        let recv_cq: Arc<Cq> = own(init.recv_cq)?;
        if !send_cq.is_of(&context) || !recv_cq.is_of(&context) {
            return Err(Error::Invalid("a CQ of another context"));
        }
        let created = Creation {
            qp_type: init.qp_type,
            pd,
            cap,
            signal_all: init.signal_all,
            privileged: init.privileged,
            consumer_ring: init.send_ready.is_some(),
            srq: srq.is_some(),
            recv_source: init.recv_source.is_some() || srq.is_some() || xrc,
            xrc,
            block_self_mcast: init.block_self_mcast,
        };
        let link = context.network.link().cloned();
        let mut requester = Requester::new(send_cq, init.send_ready);
        let mut responder = Responder::new(recv_cq, init.recv_source, srq);
        if let Some(link) = &link {
            requester.wire = Some(Box::new(Sending::new(created.qp_type, qpn, link)));
            responder.wire = Some(Box::new(Receiving::new(created.qp_type)));
        }
        Ok(Arc::new_cyclic(|this| Self {
            this: this.clone(),
            uid: NEXT_UID.fetch_add(1, Ordering::Relaxed),
            qpn,
            created,
            context,
            poller: AtomicU32::new(init.poller as u32),
            state: AtomicU8::new(QpState::Reset.code()),
            destroyed: AtomicBool::new(false),
            queued: Queued::new(),
            recv_came: AtomicBool::new(false),
            fault: PageFault::default(),
            recv_fault: PageFault::default(),
            draining: SpinLock::new(None),
            xrcd,
            xrc_pd: AtomicU32::new(0),
            requester: Side(SpinLock::new(requester)),
            responder: Side(SpinLock::new(responder)),
            counts: Counts::default(),
            wire: link.map(|link| Box::new(OnWire::new(link))),
            groups: Mutex::default(),
        }))
    }

    /// Enters the QP with its CQs, once it can be found by number.
    pub(crate) fn attach(&self) {
        let cqs = [self.requester.0.lock().cq.clone(), self.responder.0.lock().cq.clone()];
        cqs.iter().flatten().for_each(|cq| cq.attach(self.qpn));
    }

    pub(crate) fn queued(&self) -> &Queued {
        &self.queued
    }

    #[inline]
    fn state(&self) -> QpState {
        QpState::from_code(self.state.load(Ordering::Acquire)).unwrap_or(QpState::Err)
    }

    /// The poller that runs it now.
    fn poller(&self) -> &Arc<SoftPoller> {
        self.context.poller(self.poller.load(Ordering::Relaxed) as usize)
    }

    /// Has the QP's poller run it.
    fn schedule(&self) {
        if let Some(this) = self.this.upgrade() {
            self.poller().schedule(&this);
        }
    }

    /// Goes to ERR, unless it is there; whether it was not. The poller flushes what is outstanding.
    /// The caller has locked one side and knows that the QP is not in RESET.
    fn enter_error(&self) -> bool {
        let old = self.state.swap(QpState::Err.code(), Ordering::AcqRel);
        self.schedule();
        let entered = old != QpState::Err.code();
        if entered && self.created.srq {
            // Nothing is flushed of an SRQ: no further WQE is this QP's (IBA 10.2.9.3).
            self.context.dispatch(AsyncEvent::LastWqeReached(self.qpn));
        }
        entered
    }

    /// The QP's CQ failed (IBA 11.6.3.2): goes to ERR, and says so.
    pub(crate) fn fatal(&self) {
        let _responder = self.responder.0.lock();
        self.fatal_locked();
    }

    fn fatal_locked(&self) {
        if self.state() != QpState::Reset && self.enter_error() {
            self.context.dispatch(AsyncEvent::QpFatal(self.qpn));
        }
    }

    /// Adds a completion. If the CQ has no room the QP fails. The caller has locked one side.
    #[inline]
    fn push(&self, cq: Option<&Arc<Cq>>, wc: &WorkCompletion, solicited: bool) {
        let solicited = solicited || wc.status != WcStatus::Success;
        self.push_list(cq, std::slice::from_ref(wc), solicited);
    }

    /// As `push`, of several.
    #[inline]
    fn push_list(&self, cq: Option<&Arc<Cq>>, wcs: &[WorkCompletion], solicited: bool) {
        let Some(cq) = cq else { return };
        if let Err(overflowed) = cq.push(wcs, solicited) {
            self.overflowed(cq, overflowed);
        }
    }

    #[cold]
    fn overflowed(&self, cq: &Cq, overflowed: Overflowed) {
        self.fatal_locked();
        if overflowed.first {
            self.poller().cq_failed(self.context.clone(), cq);
        }
    }

    /// Completes in order with `WrFlushErr` what is outstanding, up to `max` of either queue. Whether
    /// there is more. Does nothing unless the QP is in ERR.
    fn flush(&self, max: usize, guard: &Guard) -> bool {
        let failed = || self.state() == QpState::Err;
        let mut requester = self.requester.0.lock();
        let more_sends = failed() && self.flush_sends(&mut requester, max, guard);
        drop(requester);
        let mut responder = self.responder.0.lock();
        let more_recvs = failed() && self.flush_recvs(&mut responder, max, guard);
        more_sends || more_recvs
    }

    /// There is a receive WQE at the peer, for which this requester waited.
    pub(crate) fn recv_has_come(&self) {
        self.recv_came.store(true, Ordering::Release);
        self.schedule();
    }

    /// The tenant goes on after a stop.
    pub(crate) fn go_on(&self) {
        self.schedule();
        self.schedule_wire();
    }
}

impl QpDriver for Qp {
    fn qpn(&self) -> Qpn {
        self.qpn
    }

    fn cap(&self) -> QpCap {
        self.created.cap
    }

    fn modify(&self, _cx: &MaySleep, attr: &QpAttr, mask: QpAttrMask) -> Result<()> {
        self.modify_attr(attr, mask)
    }

    fn query(&self, _cx: &MaySleep) -> Result<QpAttr> {
        self.query_attr()
    }

    fn counts(&self) -> TransportCounts {
        self.transport_counts()
    }

    fn attach_mcast(&self, _cx: &MaySleep, gid: &Gid, _lid: u16) -> Result<()> {
        self.join_group(gid)
    }

    fn detach_mcast(&self, _cx: &MaySleep, gid: &Gid, _lid: u16) -> Result<()> {
        self.leave_group(gid)
    }

    fn destroy(&self, cx: &MaySleep) -> Result<()> {
        // Whoever works for this QP, as requester or as the peer of one, has one of its sides locked:
        // with both locked nobody does, and afterwards there is nothing left to touch.
        let mut requester = self.requester.0.lock();
        let mut responder = self.responder.0.lock();
        if self.destroyed.swap(true, Ordering::AcqRel) {
            return Err(Error::Gone);
        }
        self.reset(&mut requester, &mut responder);
        let ready = requester.ready.take();
        let source = (responder.source.take(), responder.srq.take());
        let cqs = [requester.cq.take(), responder.cq.take()];
        drop(responder);
        drop(requester);
        self.leave_all_groups();
        self.context.remove_qp(cx, self.qpn);
        cqs.iter().flatten().for_each(|cq| cq.detach(self.qpn));
        drop((ready, source));
        Ok(())
    }

    fn post_send(&self, wr: &SendWr<'_>) -> Result<()> {
        self.send(wr)
    }

    fn post_send_list(&self, wrs: &[SendWr<'_>]) -> std::result::Result<(), BadWr> {
        self.send_list(wrs)
    }

    fn bind_mw(
        &self,
        mw: &Arc<dyn MwDriver>,
        wr_id: u64,
        ticket: u32,
        bind: &MwBind,
    ) -> Result<RKey> {
        let mw: Arc<Mw> = own_any(mw.clone())?;
        if !mw.is(&self.context, bind.rkey) {
            return Err(Error::Invalid("the window's key"));
        }
        let rkey = Mw::next_key(bind.rkey);
        self.send(&SendWr {
            wr_id,
            ticket,
            opcode: WrOpcode::BindMw,
            flags: SendFlags::SIGNALED,
            data: SendData::Bind(&MwBind { rkey, ..*bind }),
            imm: 0,
            remote_addr: 0,
            rkey,
            compare_add: 0,
            swap: 0,
            ud: None,
            srqn: None,
        })?;
        Ok(rkey)
    }

    fn post_short_list(&self, wrs: &[ShortWr]) -> std::result::Result<(), BadWr> {
        self.send_short_list(wrs)
    }

    fn post_malformed_send(&self, wqe: MalformedWqe) -> Result<()> {
        self.send_malformed(wqe)
    }

    fn post_recv(&self, wr: &RecvWr<'_>) -> Result<()> {
        self.recv(wr)
    }

    fn recv_posted(&self) {
        self.recv_arrived();
    }

    fn set_poller(&self, poller: usize) {
        self.poller.store(poller as u32, Ordering::Relaxed);
    }
}

impl Drop for Qp {
    fn drop(&mut self) {
        log::trace!("QP {} is freed", self.qpn);
    }
}
