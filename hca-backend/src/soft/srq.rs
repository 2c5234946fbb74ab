// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shared receive queues: receive WQEs that several QPs take from.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rdma_midlayer::driver::{
    AsyncEvent, MalformedWqe, RecvSource, SrqAttr, SrqDriver, SrqInit, Taken, own, own_any,
};
use rdma_midlayer::types::Srqn;
use rdma_midlayer::work::{RecvWqe, RecvWr};
use rdma_midlayer::{Error, MaySleep, Result};

use super::context::Context;
use super::cq::Cq;
use super::qp::{Qp, RecvQueue};
use super::spin::SpinLock;
use super::xrc::Xrcd;

/// A shared receive queue.
pub(crate) struct Srq {
    context: Arc<Context>,
    srqn: Srqn,
    max_sge: u32,
    from_source: bool,
    pd: u32,
    /// Of an SRQ of an XRC domain: the domain, and the CQ of its messages.
    xrc: Option<(Arc<Xrcd>, Arc<Cq>)>,
    inner: SpinLock<Inner>,
    gone: Mutex<bool>,
}

struct Inner {
    max_wr: u32,
    source: Option<Arc<dyn RecvSource>>,
    queue: RecvQueue,
    limit: u32,
    /// The source was asked to report new WQEs.
    doorbell: bool,
    /// Requesters that wait for a WQE, by their own number.
    waiters: HashMap<u64, Weak<Qp>>,
}

impl Inner {
    fn take(&mut self, wqe: &mut RecvWqe) -> std::result::Result<Taken, MalformedWqe> {
        match &self.source {
            Some(source) => source.take(wqe),
            None if self.queue.pop_into(wqe) => Ok(Taken::Wqe),
            None => Ok(Taken::Empty),
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
}

impl Srq {
    /// An SRQ with a number that the context has given it.
    pub(crate) fn new(
        context: Arc<Context>,
        pd: u32,
        srqn: Srqn,
        init: SrqInit,
    ) -> Result<Arc<Self>> {
        let xrc = match init.xrc {
            None => None,
            Some(target) => {
                let (domain, cq) = (own_any::<Xrcd>(target.domain)?, own::<Cq>(target.cq)?);
                if !domain.is_of(&context) || !cq.is_of(&context) {
                    return Err(Error::Invalid("an XRC domain or CQ of another context"));
                }
                Some((domain, cq))
            }
        };
        let limits = context.limits();
        if init.max_wr == 0 || init.max_wr > limits.max_qp_wr || init.max_sge > limits.max_sge {
            return Err(Error::Invalid("sizes of the SRQ"));
        }
        let srq = Arc::new(Self {
            context,
            srqn,
            pd,
            xrc,
            max_sge: init.max_sge,
            from_source: init.recv_source.is_some(),
            inner: SpinLock::new(Inner {
                max_wr: init.max_wr,
                source: init.recv_source,
                queue: RecvQueue::default(),
                limit: init.limit,
                doorbell: false,
                waiters: HashMap::new(),
            }),
            gone: Mutex::new(false),
        });
        if let Some((domain, _)) = &srq.xrc {
            domain.enter(srqn, &srq);
        }
        Ok(srq)
    }

    /// The PD that counts for messages to an SRQ of an XRC domain.
    pub(crate) fn pd(&self) -> u32 {
        self.pd
    }

    /// The CQ of such messages.
    pub(crate) fn cq(&self) -> Option<&Arc<Cq>> {
        self.xrc.as_ref().map(|(_, cq)| cq)
    }

    /// Whether the SRQ belongs to the context.
    pub(crate) fn is_of(&self, context: &Arc<Context>) -> bool {
        Arc::ptr_eq(&self.context, context)
    }

    /// Takes the oldest WQE. If there is none, the waiter, if given, hears of the next one. Never
    /// sleeps.
    pub(crate) fn take(
        &self,
        wqe: &mut RecvWqe,
        waiter: Option<(u64, Weak<Qp>)>,
    ) -> std::result::Result<Taken, MalformedWqe> {
        let mut inner = self.inner.lock();
        let mut taken = inner.take(wqe);
        if taken == Ok(Taken::Empty)
            && let Some((uid, waiter)) = waiter
        {
            inner.waiters.insert(uid, waiter);
            // The source arms its doorbell; what came before that is found by looking once more.
            inner.want_doorbell(true);
            taken = inner.take(wqe);
        }
        // A source watches its limit itself: only it knows what is left.
        let low = inner.source.is_none() && (inner.queue.len() as u32) < inner.limit;
        if taken == Ok(Taken::Wqe) && low {
            inner.limit = 0;
            drop(inner);
            self.context.dispatch(AsyncEvent::SrqLimitReached(self.srqn));
        }
        taken
    }

    /// WQEs have come: those who wait may try again.
    fn wqes_came(&self) {
        let mut inner = self.inner.lock();
        inner.want_doorbell(false);
        let waiters = std::mem::take(&mut inner.waiters);
        drop(inner);
        waiters.into_values().filter_map(|w| w.upgrade()).for_each(|qp| qp.recv_has_come());
    }
}

impl SrqDriver for Srq {
    fn srqn(&self) -> Srqn {
        self.srqn
    }

    fn arm_limit(&self, _cx: &MaySleep, limit: u32) -> Result<()> {
        let mut inner = self.inner.lock();
        if limit > inner.max_wr {
            return Err(Error::Invalid("limit of the SRQ"));
        }
        inner.limit = limit;
        Ok(())
    }

    fn resize(&self, _cx: &MaySleep, max_wr: u32) -> Result<()> {
        if max_wr == 0 || max_wr > self.context.limits().max_qp_wr {
            return Err(Error::Invalid("size of the SRQ"));
        }
        let mut inner = self.inner.lock();
        if inner.limit > max_wr || inner.queue.len() > max_wr as usize {
            return Err(Error::Invalid("size of the SRQ: there is more in it"));
        }
        inner.max_wr = max_wr;
        Ok(())
    }

    fn query(&self, _cx: &MaySleep) -> Result<SrqAttr> {
        let inner = self.inner.lock();
        Ok(SrqAttr { max_wr: inner.max_wr, max_sge: self.max_sge, limit: inner.limit })
    }

    fn post_recv(&self, wr: &RecvWr<'_>) -> Result<()> {
        if self.from_source {
            return Err(Error::Unsupported("post_recv where the consumer keeps the WQEs"));
        }
        if wr.sges.len() > self.max_sge as usize {
            return Err(Error::Invalid("number of SGEs"));
        }
        let mut inner = self.inner.lock();
        if inner.queue.len() >= inner.max_wr as usize {
            return Err(Error::QueueFull);
        }
        inner.queue.push(wr);
        drop(inner);
        self.wqes_came();
        Ok(())
    }

    fn recv_posted(&self) {
        self.wqes_came();
    }

    fn destroy(&self, cx: &MaySleep) -> Result<()> {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *gone, true) {
            return Err(Error::Gone);
        }
        drop(gone);
        if let Some((domain, _)) = &self.xrc {
            domain.leave(self.srqn);
        }
        let mut inner = self.inner.lock();
        let source = inner.source.take();
        inner.queue.clear();
        inner.waiters.clear();
        drop(inner);
        drop(source);
        self.context.remove_srq(cx, self.srqn);
        Ok(())
    }
}
