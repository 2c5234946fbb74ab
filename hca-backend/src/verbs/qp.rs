// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Queue pairs: the host's own. Here: the object, its states and its verbs. Its attributes are in
//! `attr`; how send requests get to the HCA is in `send`.

mod attr;
mod send;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rdma_midlayer::attr::{QpAttr, QpAttrMask, QpCap};
use rdma_midlayer::driver::{
    AsyncEvent, BadWr, MalformedWqe, MwDriver, QpDriver, QpInit, SendReady, own, own_any,
};
use rdma_midlayer::rcu;
use rdma_midlayer::types::{Gid, Mtu, Psn, QpState, QpType, Qpn, RKey, WcOpcode, WrOpcode};
use rdma_midlayer::work::{MwBind, RecvWr, SendData, SendWr, WcFlags, WorkCompletion};
use rdma_midlayer::{Error, MaySleep, Result};

use super::context::Context;
use super::cq::{Cq, RECV, failure};
use super::engine::Job;
use super::feed::Feed;
use super::ffi::*;
use super::hca::lock;
use super::host::{HostAh, HostQp, HostQpSpec};
use super::pd::{Bound, Mw, Pd};
use super::post::{HOST_SGE, Stage, Staged, empty_wr, prepare, resolve, resolve_bind};
use super::queue::{Name, Request, WorkQueue};
use super::srq::Srq;
use crate::soft::spin::SpinLock;

/// Requests of a consumer's ring that wait for the driver's thread.
const STAGED: u32 = 64;
/// Requests that the thread posts in one go.
const CHAIN: usize = 16;

/// A queue pair.
pub(crate) struct Qp {
    this: Weak<Qp>,
    context: Arc<Context>,
    pd: Arc<Pd>,
    host: Mutex<Option<Arc<HostQp>>>,
    /// The same, for verbs that never sleep; taken out by `destroy`, when no verb is inside.
    fast: SpinLock<Option<Arc<HostQp>>>,
    number: u32,
    qpn: Qpn,
    qp_type: QpType,
    cap: QpCap,
    host_sge: usize,
    send_cq: Arc<Cq>,
    recv_cq: Arc<Cq>,
    send: Arc<WorkQueue>,
    feed: Option<Feed>,
    send_ready: Option<Arc<dyn SendReady>>,
    stage: Option<Stage>,
    /// What the thread has taken off the stage and could not post yet.
    held: Mutex<VecDeque<Box<Staged>>>,
    queued: AtomicBool,
    /// The same for receive requests.
    receives_queued: AtomicBool,
    /// Held while the driver's thread posts receive requests.
    receiving: Mutex<()>,
    state: AtomicU8,
    attr: Mutex<QpAttr>,
    /// It was moved to ERR while the tenant was stopped.
    cut: AtomicBool,
    /// Where a datagram that makes no sense would go.
    nowhere: Mutex<Option<HostAh>>,
}

impl Qp {
    pub(crate) fn create(pd: &Arc<Pd>, init: QpInit) -> Result<Arc<Self>> {
        let context = pd.context();
        let hca = context.hca();
        if !matches!(init.qp_type, QpType::Rc | QpType::Uc | QpType::Ud) {
            return Err(Error::Unsupported("QP1 and XRC, through verbs"));
        }
        let send_cq: Arc<Cq> = own(init.send_cq)?;
        let recv_cq: Arc<Cq> = own(init.recv_cq)?;
        let srq = init.srq.map(|srq| own_any::<Srq>(srq)).transpose()?;
        if !send_cq.is_of(context)
            || !recv_cq.is_of(context)
            || srq.as_ref().is_some_and(|s| !s.is_of(context))
        {
            return Err(Error::Invalid("an object of another context"));
        }
        let cap = init.cap;
        // A kernel's requests may cross from one region of memory into the next.
        let more = if init.privileged { 2 } else { 0 };
        let host_sge =
            (cap.max_send_sge.max(1) + more).min(hca.limits.host_sge.max(cap.max_send_sge).max(1));
        let wanted = ibv_qp_cap {
            max_send_wr: cap.max_send_wr.max(1),
            max_recv_wr: if srq.is_some() { 0 } else { cap.max_recv_wr.max(1) },
            max_send_sge: host_sge,
            max_recv_sge: if srq.is_some() { 0 } else { cap.max_recv_sge.max(1) },
            max_inline_data: cap.max_inline,
        };
        if init.block_self_mcast {
            return Err(Error::Unsupported("to keep a QP's own multicast from it"));
        }
        let number = hca.qps.take_number()?;
        let (send, recv) = (hca.queues.take_number()?, hca.queues.take_number()?);
        let spec = HostQpSpec {
            cqs: [send_cq.host()?, recv_cq.host()?],
            srq: srq.as_ref().map(|srq| srq.host()).transpose()?,
            cap: wanted,
            qp_type: init.qp_type.code().into(),
            signal_all: init.signal_all,
            number: number as usize,
        };
        let (host, given) = pd.host().create_qp(spec).inspect_err(|_| {
            hca.qps.give_back(number);
            [send, recv].iter().for_each(|index| hca.queues.give_back(*index));
        })?;
        let host = Arc::new(host);
        let send = WorkQueue::ordered(send, wanted.max_send_wr);
        if let Some(ready) = &init.send_ready {
            send.tell(ready.clone());
        }
        let recv_queue = WorkQueue::ordered(recv, wanted.max_recv_wr.max(1));
        if init.qp_type == QpType::Ud {
            recv_queue.set_datagrams();
            srq.iter().for_each(|srq| srq.set_datagrams());
        }
        let feed = srq
            .is_none()
            .then(|| Feed::new(pd, recv_queue.clone(), init.recv_source, wanted.max_recv_wr));
        let stage = hca.engine.has_thread().then(|| {
            let ring = init.send_ready.is_some();
            let count = if ring { wanted.max_send_wr.min(STAGED) } else { wanted.max_send_wr };
            Stage::new(count as usize, cap.max_inline as usize)
        });
        let qp = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            context: context.clone(),
            pd: pd.clone(),
            fast: SpinLock::new(Some(host.clone())),
            number,
            qpn: Qpn(host.qpn()),
            host: Mutex::new(Some(host)),
            qp_type: init.qp_type,
            cap: QpCap {
                max_inline: cap.max_inline.max(given.max_inline_data.min(cap.max_inline)),
                ..cap
            },
            host_sge: host_sge as usize,
            send_cq,
            recv_cq,
            send: send.clone(),
            feed,
            send_ready: init.send_ready,
            stage,
            held: Mutex::default(),
            queued: AtomicBool::new(false),
            receives_queued: AtomicBool::new(false),
            receiving: Mutex::new(()),
            state: AtomicU8::new(QpState::Reset.code()),
            attr: Mutex::new(QpAttr::default()),
            cut: AtomicBool::new(false),
            nowhere: Mutex::new(None),
        });
        hca.queues.insert(send.index(), send.clone())?;
        hca.queues.insert(recv_queue.index(), recv_queue)?;
        hca.qps.insert(number, qp.clone())?;
        if let Some(feed) = &qp.feed {
            feed.queue().tell(Arc::new(Again(Arc::downgrade(&qp))));
        }
        qp.send_cq.attach(&qp);
        qp.recv_cq.attach(&qp);
        context.add_qp(&qp);
        Ok(qp)
    }

    fn state(&self) -> QpState {
        QpState::from_code(self.state.load(Ordering::Acquire)).unwrap_or(QpState::Err)
    }

    fn host(&self) -> Result<Arc<HostQp>> {
        lock(&self.host).clone().ok_or(Error::Gone)
    }

    fn may_send(&self) -> Result<()> {
        match self.state() {
            QpState::Reset | QpState::Init | QpState::Rtr => Err(Error::BadState("post_send")),
            _ => Ok(()),
        }
    }

    /// Has the driver's thread post what waits.
    fn call_thread(&self) {
        if !self.queued.swap(true, Ordering::AcqRel)
            && let Some(this) = self.this.upgrade()
        {
            self.context.hca().engine.submit(Job::Post(this));
        }
    }

    fn complete_here(&self, cq: &Cq, request: Request) {
        let opcode = match request.opcode {
            RECV => WcOpcode::Recv,
            code => WrOpcode::from_code(code).map_or(WcOpcode::Send, WcOpcode::from),
        };
        cq.complete_here(&WorkCompletion {
            wr_id: request.wr_id,
            ticket: request.ticket,
            status: failure(request.opcode),
            opcode,
            flags: WcFlags::default(),
            qpn: self.qpn,
            byte_len: 0,
            imm: 0,
            src_qpn: Qpn(0),
            vendor_err: 0,
            vlan: 0,
            sl: 0,
        });
    }

    /// Posts new receive requests to the HCA.
    fn post_new(&self) {
        let Some(feed) = &self.feed else { return };
        if self.state() == QpState::Reset {
            return;
        }
        let Some(host) = self.fast.lock().clone() else { return };
        let posted = feed.pump(
            |wrs| host.post_recv(wrs),
            |request| {
                self.complete_here(&self.recv_cq, request);
                if let Some(this) = self.this.upgrade() {
                    self.context.hca().engine.submit(Job::Fail(this));
                }
            },
        );
        // rxe's provider tells nobody of a receive request, and in ERR nobody looks: it would never be
        // flushed. To enter ERR once more makes it look.
        let ended = || self.send.has_ended() || feed.queue().has_ended();
        if posted && self.stage.is_some() && (self.state() == QpState::Err || ended()) {
            let attr = ibv_qp_attr { qp_state: QpState::Err.code().into(), ..Default::default() };
            let _ = host.modify(&attr, QpAttrMask::STATE.0);
        }
    }

    /// Sees to new receive requests. Never sleeps.
    fn look(&self) {
        if self.stage.is_some() { self.call_for_receives() } else { self.post_new() }
    }

    fn call_for_receives(&self) {
        if !self.receives_queued.swap(true, Ordering::AcqRel)
            && let Some(this) = self.this.upgrade()
        {
            self.context.hca().engine.submit(Job::PostReceives(this));
        }
    }

    /// The driver's thread: posts new receive requests.
    pub(crate) fn post_receives(&self) {
        self.receives_queued.swap(false, Ordering::AcqRel);
        let _receiving = lock(&self.receiving);
        self.post_new();
    }

    /// Moves the QP to ERR, and says that it failed. May sleep.
    pub(crate) fn fail(&self, _cx: &MaySleep) {
        if self.to_error() {
            self.context.dispatch(AsyncEvent::QpFatal(self.qpn));
        }
    }

    /// To ERR, unless it is there or in RESET; whether it was not.
    fn to_error(&self) -> bool {
        let Ok(host) = self.host() else { return false };
        if matches!(self.state(), QpState::Reset | QpState::Err) {
            return false;
        }
        let attr = ibv_qp_attr { qp_state: QpState::Err.code().into(), ..Default::default() };
        if let Err(e) = host.modify(&attr, QpAttrMask::STATE.0)
            && e != Error::Gone
        {
            log::warn!("QP {} can't be moved to ERR: {e}", self.qpn);
        }
        self.state.store(QpState::Err.code(), Ordering::Release);
        true
    }

    /// The tenant is stopped: nothing of the QP's touches its memory after the return. May sleep.
    pub(crate) fn cut(&self, _cx: &MaySleep) {
        // In INIT no message comes and none goes.
        if self.state() != QpState::Init && self.to_error() {
            self.cut.store(true, Ordering::Release);
        }
    }

    /// The tenant goes on: hears of its QP's end, and gets what waits. May sleep.
    pub(crate) fn go_on(&self, _cx: &MaySleep) {
        if self.cut.swap(false, Ordering::AcqRel) {
            self.context.dispatch(AsyncEvent::QpFatal(self.qpn));
        }
        self.look();
    }

    /// An event of the host's.
    pub(crate) fn event(&self, code: u32) {
        let event = match code {
            EVENT_QP_FATAL => AsyncEvent::QpFatal(self.qpn),
            EVENT_QP_REQ_ERR => AsyncEvent::QpReqErr(self.qpn),
            EVENT_QP_ACCESS_ERR => AsyncEvent::QpAccessErr(self.qpn),
            EVENT_COMM_EST => AsyncEvent::CommEst(self.qpn),
            EVENT_SQ_DRAINED => AsyncEvent::SqDrained(self.qpn),
            EVENT_QP_LAST_WQE_REACHED => AsyncEvent::LastWqeReached(self.qpn),
            _ => return,
        };
        self.context.dispatch(event);
    }

    fn reset(&self, cx: &MaySleep) {
        // Names of the old life are stale first; when the polls that had begun are over, nobody counts
        // by them any more.
        self.send.end_life();
        self.feed.iter().for_each(|feed| feed.queue().end_life());
        rcu::synchronize(cx);
        let mut held = lock(&self.held);
        let _receiving = lock(&self.receiving);
        if let Some(stage) = &self.stage {
            held.drain(..).for_each(|staged| stage.give_back(staged));
            while let Some(staged) = stage.pop() {
                stage.give_back(staged);
            }
        }
        self.send.reset();
        self.feed.iter().for_each(Feed::reset);
    }
}

/// There is room for receive requests again. It is said where a CQ is locked, so the driver's thread
/// sees to it.
struct Again(Weak<Qp>);

impl SendReady for Again {
    fn send_ready(&self) {
        if let Some(qp) = self.0.upgrade() {
            qp.call_for_receives();
        }
    }
}

impl QpDriver for Qp {
    fn qpn(&self) -> Qpn {
        self.qpn
    }

    fn cap(&self) -> QpCap {
        self.cap
    }

    fn modify(&self, cx: &MaySleep, attr: &QpAttr, mask: QpAttrMask) -> Result<()> {
        let host = self.host()?;
        // What the midlayer checked against goes along only if the consumer named it: not every
        // provider takes it at every transition.
        let host_attr = self.host_attr(attr, mask)?;
        let changes = mask.contains(QpAttrMask::STATE) && attr.state != attr.cur_state;
        if changes && attr.state == QpState::Init {
            self.make_nowhere()?;
        }
        if changes && attr.state == QpState::Reset {
            self.state.store(QpState::Reset.code(), Ordering::Release);
            // Before the HCA is told: what some providers (rxe) flush on the way is nobody's already.
            self.reset(cx);
        }
        if let Err(e) = host.modify(&host_attr, mask.0) {
            if changes {
                self.state.store(attr.cur_state.code(), Ordering::Release);
            }
            return Err(e);
        }
        if mask.contains(QpAttrMask::STATE) {
            self.state.store(attr.state.code(), Ordering::Release);
        }
        self.remember(attr, mask);
        if attr.state == QpState::Init && changes {
            self.feed.iter().for_each(Feed::want_doorbell);
        }
        self.look();
        Ok(())
    }

    fn query(&self, _cx: &MaySleep) -> Result<QpAttr> {
        let host = self.host()?.query()?;
        let state = u8::try_from(host.qp_state).ok().and_then(QpState::from_code);
        let state = state.ok_or(Error::Host(libc::EPROTO))?;
        // The HCA may have left the state by itself.
        self.state.store(state.code(), Ordering::Release);
        let known = *lock(&self.attr);
        Ok(QpAttr {
            state,
            cur_state: state,
            sq_draining: host.sq_draining != 0,
            rq_psn: if state == QpState::Reset { known.rq_psn } else { Psn::new(host.rq_psn) },
            sq_psn: if state == QpState::Reset { known.sq_psn } else { Psn::new(host.sq_psn) },
            path_mtu: if known.path_mtu.code() == 0 { Mtu::Mtu1024 } else { known.path_mtu },
            ..known
        })
    }

    fn destroy(&self, cx: &MaySleep) -> Result<()> {
        let host = {
            let _held = lock(&self.held);
            let _receiving = lock(&self.receiving);
            let fast = self.fast.lock().take();
            drop(fast);
            lock(&self.host).take().ok_or(Error::Gone)?
        };
        let hca = self.context.hca();
        hca.queues.remove(cx, self.send.index());
        if let Some(feed) = &self.feed {
            hca.queues.remove(cx, feed.queue().index());
        }
        // The HCA stops before the number may come back.
        drop(host);
        drop(lock(&self.nowhere).take());
        hca.qps.remove(cx, self.number);
        Ok(())
    }

    #[inline]
    fn post_send(&self, wr: &SendWr<'_>) -> Result<()> {
        self.may_send()?;
        let request = Request {
            wr_id: wr.wr_id,
            ticket: wr.ticket,
            opcode: wr.opcode.code(),
            malformed: false,
        };
        let guard = rcu::enter();
        if let Some(stage) = &self.stage {
            let mut place = self.place(stage)?;
            let Staged { prepared, sges, inline } = &mut *place;
            match prepare(&self.pd, self.qp_type, &self.send, wr, sges, self.host_sge, &guard) {
                Ok(made) => *prepared = made,
                Err(e) => {
                    stage.give_back(place);
                    return Err(e);
                }
            }
            if let SendData::Inline(bytes) = wr.data {
                inline.clear();
                inline.extend_from_slice(bytes);
            }
            return self.stage(stage, request, place);
        }
        let mut sges = [ibv_sge::default(); HOST_SGE];
        let mut prepared =
            prepare(&self.pd, self.qp_type, &self.send, wr, &mut sges, self.host_sge, &guard)?;
        if let Some(bind) = &prepared.bind {
            return self.post_bind(request, &mut prepared.wr, bind);
        }
        match resolve(&mut prepared, self.send_ready.as_ref()) {
            Some(resolved) => resolved?,
            None => return Err(Error::QueueFull),
        }
        self.post_now(request, &mut prepared.wr, &mut sges, prepared.num_sge)
    }

    fn post_send_list(&self, wrs: &[SendWr<'_>]) -> std::result::Result<(), BadWr> {
        let guard = rcu::enter();
        let mut taken = 0;
        while taken < wrs.len() {
            let (count, error) = match (&self.stage, &wrs[taken..]) {
                (None, rest @ [first, _, ..]) if !matches!(first.data, SendData::Bind(_)) => {
                    self.post_burst(rest, &guard)
                }
                (_, rest) => match self.post_send(&rest[0]) {
                    Ok(()) => (1, None),
                    Err(error) => (0, Some(error)),
                },
            };
            taken += count;
            if let Some(error) = error {
                return Err(BadWr { taken, error });
            }
        }
        Ok(())
    }

    fn post_malformed_send(&self, wqe: MalformedWqe) -> Result<()> {
        self.may_send()?;
        let request = Request {
            wr_id: wqe.wr_id,
            ticket: wqe.ticket,
            opcode: WrOpcode::Send.code(),
            malformed: true,
        };
        let mut sges = [ibv_sge::default(); HOST_SGE];
        let mut wr = self.poison(&mut sges);
        let Some(stage) = &self.stage else { return self.post_now(request, &mut wr, &mut sges, 1) };
        let mut place = self.place(stage)?;
        place.prepared.wr = wr;
        place.prepared.num_sge = 1;
        place.prepared.path = None;
        place.sges = sges;
        self.stage(stage, request, place)
    }

    fn post_recv(&self, wr: &RecvWr<'_>) -> Result<()> {
        let feed = self.feed.as_ref().ok_or(Error::Unsupported("post_recv beside an SRQ"))?;
        if self.state() == QpState::Reset {
            return Err(Error::BadState("post_recv"));
        }
        feed.push(wr)?;
        self.look();
        Ok(())
    }

    fn recv_posted(&self) {
        self.look();
    }

    fn bind_mw(
        &self,
        mw: &Arc<dyn MwDriver>,
        wr_id: u64,
        ticket: u32,
        bind: &MwBind,
    ) -> Result<RKey> {
        if self.stage.is_some() {
            return Err(Error::Unsupported(
                "bind_mw where the provider enters the kernel: use type 2",
            ));
        }
        self.may_send()?;
        let mw = own_any::<Mw>(mw.clone())?;
        let bound = self.pd.bound(bind)?;
        let host = self.fast.lock();
        let host = host.as_ref().ok_or(Error::Gone)?;
        let request = Request { wr_id, ticket, opcode: WrOpcode::BindMw.code(), malformed: false };
        let name = self.send.reserve(request).ok_or(Error::QueueFull)?;
        let mut host_bind =
            ibv_mw_bind { wr_id: name, send_flags: SEND_SIGNALED, bind_info: bound.info(bind) };
        host.bind_mw(&bound.mw, &mut host_bind).map_err(|errno| {
            self.send.take_back(name);
            self.refuse(errno)
        })?;
        Ok(mw.bound(bound.mw.rkey()))
    }

    fn attach_mcast(&self, _cx: &MaySleep, gid: &Gid, lid: u16) -> Result<()> {
        self.host()?.attach_mcast(gid, lid, true)
    }

    fn detach_mcast(&self, _cx: &MaySleep, gid: &Gid, lid: u16) -> Result<()> {
        self.host()?.attach_mcast(gid, lid, false)
    }
}
