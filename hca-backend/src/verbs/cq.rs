// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Completion queues: completions go from the HCA's into the consumer's memory, or into a ring of the
//! driver's for `poll_cq`.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use crossbeam_queue::ArrayQueue;
use rdma_midlayer::driver::{AsyncEvent, CqDriver, CqEvents, CqInit, CqMemory, Notify, Overflow};
use rdma_midlayer::rcu::{self, Guard};
use rdma_midlayer::types::{Cqn, Qpn, WcOpcode, WcStatus, WrOpcode};
use rdma_midlayer::work::{WcFlags, WorkCompletion};
use rdma_midlayer::{Error, MaySleep, Result};

use super::context::Context;
use super::engine::{Job, Line};
use super::ffi::{self, ibv_wc};
use super::hca::Hca;
use super::host::HostCq;
use super::qp::Qp;
use super::queue::Name;
use crate::soft::spin::SpinLock;

/// Completions taken from the HCA in one go.
const BATCH: usize = 16;

/// A completion queue.
pub(crate) struct Cq {
    context: Arc<Context>,
    line: Arc<Line>,
    cqn: Cqn,
    cqe: AtomicU32,
    events: Arc<dyn CqEvents>,
    place: SpinLock<Place>,
    /// Without consumer memory.
    own: Option<ArrayQueue<WorkCompletion>>,
    failed: AtomicBool,
    /// The HCA will say when a completion comes.
    armed: AtomicBool,
    users: SpinLock<Vec<Weak<Qp>>>,
}

struct Place {
    host: Option<Arc<HostCq>>,
    memory: Option<Arc<dyn CqMemory>>,
    batch: [ibv_wc; BATCH],
}

impl Cq {
    pub(crate) fn create(context: &Arc<Context>, init: CqInit) -> Result<Arc<Self>> {
        let hca = context.hca();
        let cqe = init.cqe.min(hca.limits.host_cqe);
        let number = hca.cqs.take_number()?;
        let line = hca.engine.line(init.vector as usize);
        let made = HostCq::create(line.channel(), cqe, number as usize)
            .inspect_err(|_| hca.cqs.give_back(number))?;
        let own = init.memory.is_none().then(|| ArrayQueue::new(init.cqe as usize));
        let cq = Arc::new(Self {
            context: context.clone(),
            line: line.clone(),
            cqn: Cqn(number),
            cqe: AtomicU32::new(init.cqe),
            events: init.events,
            place: SpinLock::new(Place {
                host: Some(made),
                memory: init.memory,
                batch: [ibv_wc::default(); BATCH],
            }),
            own,
            failed: AtomicBool::new(false),
            armed: AtomicBool::new(false),
            users: SpinLock::new(Vec::new()),
        });
        hca.cqs.insert(number, cq.clone())?;
        line.add(cq.clone());
        Ok(cq)
    }

    pub(crate) fn is_of(&self, context: &Arc<Context>) -> bool {
        Arc::ptr_eq(&self.context, context)
    }

    pub(crate) fn host(&self) -> Result<Arc<HostCq>> {
        self.place.lock().host.clone().ok_or(Error::Gone)
    }

    /// A QP completes here from now on.
    pub(crate) fn attach(&self, qp: &Arc<Qp>) {
        let mut users = self.users.lock();
        users.retain(|user| user.strong_count() > 0);
        users.push(Arc::downgrade(qp));
    }

    /// Moves up to `budget` completions from the HCA to the consumer; how many there were. Somebody
    /// else who is at it counts as one. Never sleeps.
    pub(crate) fn drain(&self, budget: usize, guard: &Guard) -> usize {
        let Some(mut place) = self.place.try_lock_briefly() else { return 1 };
        if self.context.is_suspended() {
            return 0;
        }
        let Place { host: Some(host), memory, batch } = &mut *place else { return 0 };
        let (mut done, mut pushed, mut solicited) = (0, false, false);
        while done < budget {
            let count = host.poll(&mut batch[..BATCH.min(budget - done)]);
            for wc in &batch[..count] {
                let Some(wc) = translate(self.context.hca(), wc, guard) else { continue };
                // The HCA does not say which were solicited: every message counts as one.
                solicited |= wc.opcode.is_recv() || wc.status != WcStatus::Success;
                pushed = true;
                self.push(memory.as_deref(), &wc);
            }
            done += count;
            if count < BATCH {
                break;
            }
        }
        drop(place);
        if pushed && self.events.wanted() {
            self.events.completed(solicited);
        }
        done
    }

    fn push(&self, memory: Option<&dyn CqMemory>, wc: &WorkCompletion) {
        if self.failed.load(Ordering::Relaxed) {
            return;
        }
        let pushed = match (memory, &self.own) {
            (Some(memory), _) => memory.push(wc),
            (None, Some(own)) => own.push(*wc).map_err(|_| Overflow),
            (None, None) => Ok(()),
        };
        if pushed.is_err() {
            self.fail();
        }
    }

    /// A completion that the driver makes itself, for a request that the HCA refused.
    pub(crate) fn complete_here(&self, wc: &WorkCompletion) {
        let place = self.place.lock();
        if place.host.is_some() {
            self.push(place.memory.as_deref(), wc);
        }
        drop(place);
        self.events.completed(true);
    }

    /// The HCA's CQ has overflowed. Never sleeps.
    pub(crate) fn overflowed(&self) {
        self.fail();
        let _guard = rcu::enter();
        let place = self.place.lock();
        if !self.context.is_suspended() {
            place.memory.iter().for_each(|memory| memory.overflowed());
        }
    }

    /// It has overflowed (IBA 11.6.3.2): says so, and its QPs go to ERR. Never sleeps.
    fn fail(&self) {
        if self.failed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.context.dispatch(AsyncEvent::CqErr(self.cqn));
        let users: Vec<_> = self.users.lock().iter().filter_map(Weak::upgrade).collect();
        for qp in users {
            self.context.hca().engine.submit(Job::Fail(qp));
        }
    }

    /// The HCA has fired it.
    pub(crate) fn fired(&self) {
        self.armed.store(false, Ordering::Release);
    }

    /// Makes the HCA say when the next completion comes, unless it will already.
    pub(crate) fn arm(&self) {
        if self.armed.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Ok(host) = self.host()
            && let Err(e) = host.arm()
        {
            self.armed.store(false, Ordering::Release);
            if e != Error::Gone {
                log::warn!("CQ {}: {e}", self.cqn);
            }
        }
    }
}

/// A completion in the consumer's terms; none for a request that is nobody's any more.
#[inline]
fn translate(hca: &Hca, wc: &ibv_wc, guard: &Guard) -> Option<WorkCompletion> {
    let name = Name::decode(wc.wr_id);
    let queue = hca.queues.get(name.index as usize, guard)?;
    let request = queue.complete(name)?;
    queue.unblock();
    let mut status =
        u8::try_from(wc.status).ok().and_then(WcStatus::from_code).unwrap_or(WcStatus::GeneralErr);
    if status != WcStatus::Success {
        // Some providers (rxe) report the request that failed as flushed, like those around it.
        if request.malformed && (status != WcStatus::WrFlushErr || !queue.has_failed()) {
            status = failure(request.opcode);
        }
        queue.note_failure(status == WcStatus::WrFlushErr);
    }
    let opcode = match (request.opcode, status) {
        (RECV, WcStatus::Success) if wc.opcode == WcOpcode::RecvRdmaWithImm as u32 => {
            WcOpcode::RecvRdmaWithImm
        }
        (RECV, _) => WcOpcode::Recv,
        (code, _) => WrOpcode::from_code(code).map_or(WcOpcode::Send, WcOpcode::from),
    };
    let ok = status == WcStatus::Success;
    let mut flags = 0;
    if ok {
        let bits = [
            (ffi::WC_WITH_IMM, WcFlags::WITH_IMM),
            (ffi::WC_WITH_INV, WcFlags::WITH_INV),
            (ffi::WC_GRH, WcFlags::GRH),
        ];
        flags = bits
            .iter()
            .fold(0, |flags, (bit, flag)| flags | if wc.wc_flags & bit != 0 { flag.0 } else { 0 });
    }
    // Some providers (rxe) say so of every message that had one on the wire.
    if !queue.has_datagrams() {
        flags &= !WcFlags::GRH.0;
    }
    Some(WorkCompletion {
        wr_id: request.wr_id,
        ticket: request.ticket,
        status,
        opcode,
        flags: WcFlags(flags),
        qpn: Qpn(wc.qp_num),
        byte_len: if ok { wc.byte_len } else { 0 },
        imm: if flags & (WcFlags::WITH_IMM.0 | WcFlags::WITH_INV.0) != 0 { wc.imm_data } else { 0 },
        src_qpn: Qpn(if ok && opcode.is_recv() { wc.src_qp } else { 0 }),
        vendor_err: wc.vendor_err,
        vlan: 0,
        sl: 0,
    })
}

/// How a request fails that makes no sense.
pub(crate) fn failure(opcode: u8) -> WcStatus {
    if opcode == WrOpcode::BindMw.code() { WcStatus::MwBindErr } else { WcStatus::LocQpOpErr }
}

/// `Request::opcode` of a receive request.
pub(crate) const RECV: u8 = 0xff;

impl CqDriver for Cq {
    fn cqn(&self) -> Cqn {
        self.cqn
    }

    fn cqe(&self) -> u32 {
        self.cqe.load(Ordering::Relaxed)
    }

    fn poll_cq(&self, wcs: &mut Vec<WorkCompletion>, max: usize) -> Result<usize> {
        let own =
            self.own.as_ref().ok_or(Error::Unsupported("polling a CQ in the consumer's memory"))?;
        // With a thread of the driver's that looks after the CQ, nobody else asks the HCA.
        if !self.context.hca().engine.has_thread() {
            self.drain(max, &rcu::enter());
        }
        let mut count = 0;
        while count < max
            && let Some(wc) = own.pop()
        {
            wcs.push(wc);
            count += 1;
        }
        Ok(count)
    }

    /// Every completion is reported, so there is nothing to ask of the HCA here.
    fn req_notify_cq(&self, _notify: Notify) -> Result<bool> {
        if !self.context.hca().engine.has_thread() {
            self.drain(BATCH, &rcu::enter());
        }
        Ok(self.own.as_ref().is_some_and(|own| !own.is_empty()))
    }

    fn resize(&self, _cx: &MaySleep, cqe: u32, memory: Option<Arc<dyn CqMemory>>) -> Result<()> {
        let Some(memory) = memory else {
            return Err(Error::Unsupported("resizing a CQ of the driver's"));
        };
        let has_failed = {
            let _place = self.place.lock();
            self.failed.load(Ordering::Acquire)
        };
        if has_failed {
            return Err(Error::BadState("resize of a CQ that has overflowed"));
        }
        let hca = self.context.hca();
        if cqe > self.cqe() && cqe.min(hca.limits.host_cqe) > self.cqe().min(hca.limits.host_cqe) {
            self.host()?.resize(cqe.min(hca.limits.host_cqe))?;
        }
        let old = {
            let mut place = self.place.lock();
            place.memory.iter().for_each(|old| old.moved());
            place.memory.replace(memory)
        };
        self.cqe.store(cqe, Ordering::Relaxed);
        drop(old);
        Ok(())
    }

    fn destroy(&self, cx: &MaySleep) -> Result<()> {
        // Whoever pushes holds the lock: afterwards nobody touches the consumer's memory.
        let taken = {
            let mut place = self.place.lock();
            (place.host.take(), place.memory.take())
        };
        if taken.0.is_none() {
            return Err(Error::Gone);
        }
        self.line.remove(self.cqn);
        self.context.hca().cqs.remove(cx, self.cqn.0);
        Ok(())
    }
}
