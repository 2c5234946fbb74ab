// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shared receive queues: the host's own, fed from the consumer's ring.

use std::sync::{Arc, Mutex};

use rdma_midlayer::driver::{AsyncEvent, SendReady, SrqAttr, SrqDriver, SrqInit};
use rdma_midlayer::types::Srqn;
use rdma_midlayer::work::RecvWr;
use rdma_midlayer::{Error, MaySleep, Result};

use super::context::Context;
use super::engine::Job;
use super::feed::Feed;
use super::ffi::{self, ibv_srq_attr};
use super::hca::lock;
use super::host::HostSrq;
use super::pd::Pd;
use super::queue::{Request, WorkQueue};

/// A shared receive queue.
pub(crate) struct Srq {
    this: std::sync::Weak<Srq>,
    context: Arc<Context>,
    srqn: Srqn,
    host: Mutex<Option<Arc<HostSrq>>>,
    feed: Feed,
    max_wr: u32,
    max_sge: u32,
}

impl Srq {
    pub(crate) fn create(pd: &Arc<Pd>, init: SrqInit) -> Result<Arc<Self>> {
        if init.xrc.is_some() {
            return Err(Error::Unsupported("XRC"));
        }
        let context = pd.context();
        let hca = context.hca();
        let attr = ibv_srq_attr { max_wr: init.max_wr, max_sge: init.max_sge.max(1), srq_limit: 0 };
        let number = hca.srqs.take_number()?;
        let index = hca.queues.take_number().inspect_err(|_| hca.srqs.give_back(number))?;
        let host = pd.host().create_srq(attr, number as usize).inspect_err(|_| {
            hca.srqs.give_back(number);
            hca.queues.give_back(index);
        })?;
        let queue = WorkQueue::shared(index, init.max_wr);
        let srq = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            context: context.clone(),
            srqn: Srqn(number),
            host: Mutex::new(Some(Arc::new(host))),
            feed: Feed::new(pd, queue.clone(), init.recv_source, init.max_wr),
            max_wr: init.max_wr,
            max_sge: init.max_sge,
        });
        queue.tell(Arc::new(Again(Arc::downgrade(&srq))));
        hca.queues.insert(index, queue)?;
        hca.srqs.insert(number, srq.clone())?;
        context.add_srq(&srq);
        if init.limit != 0 {
            srq.host()?.arm_limit(init.limit)?;
        }
        srq.feed.want_doorbell();
        srq.look();
        Ok(srq)
    }

    pub(crate) fn is_of(&self, context: &Arc<Context>) -> bool {
        Arc::ptr_eq(&self.context, context)
    }

    /// A QP for datagrams receives from it.
    pub(crate) fn set_datagrams(&self) {
        self.feed.queue().set_datagrams();
    }

    pub(crate) fn host(&self) -> Result<Arc<HostSrq>> {
        lock(&self.host).clone().ok_or(Error::Gone)
    }

    /// Sees to new requests. Never sleeps.
    pub(crate) fn look(&self) {
        let engine = &self.context.hca().engine;
        if !engine.has_thread() {
            self.post_new();
        } else if let Some(this) = self.this.upgrade() {
            engine.submit(Job::PostShared(this));
        }
    }

    /// Posts new requests to the HCA.
    pub(crate) fn post_new(&self) {
        let Ok(host) = self.host() else { return };
        let refused = |request: Request| {
            log::warn!("SRQ {}: the HCA refuses a request (wr_id {:#x})", self.srqn, request.wr_id);
            self.context.dispatch(AsyncEvent::SrqErr(self.srqn));
        };
        self.feed.pump(|wrs| host.post_recv(wrs), refused);
    }

    pub(crate) fn event(&self, code: u32) {
        match code {
            ffi::EVENT_SRQ_LIMIT_REACHED => {
                self.context.dispatch(AsyncEvent::SrqLimitReached(self.srqn))
            }
            _ => self.context.dispatch(AsyncEvent::SrqErr(self.srqn)),
        }
    }
}

/// As for a QP: there is room again.
struct Again(std::sync::Weak<Srq>);

impl SendReady for Again {
    fn send_ready(&self) {
        if let Some(srq) = self.0.upgrade() {
            let engine = &srq.context.hca().engine;
            engine.submit(Job::PostShared(srq.clone()));
        }
    }
}

impl SrqDriver for Srq {
    fn srqn(&self) -> Srqn {
        self.srqn
    }

    fn takes_ahead(&self) -> bool {
        true
    }

    fn arm_limit(&self, _cx: &MaySleep, limit: u32) -> Result<()> {
        if limit > self.max_wr {
            return Err(Error::Invalid("limit of the SRQ"));
        }
        self.host()?.arm_limit(limit)
    }

    fn query(&self, _cx: &MaySleep) -> Result<SrqAttr> {
        let attr = self.host()?.query()?;
        Ok(SrqAttr { max_wr: self.max_wr, max_sge: self.max_sge, limit: attr.srq_limit })
    }

    fn post_recv(&self, wr: &RecvWr<'_>) -> Result<()> {
        self.feed.push(wr)?;
        self.look();
        Ok(())
    }

    fn recv_posted(&self) {
        self.look();
    }

    fn destroy(&self, cx: &MaySleep) -> Result<()> {
        let host = lock(&self.host).take().ok_or(Error::Gone)?;
        let hca = self.context.hca();
        hca.queues.remove(cx, self.feed.queue().index());
        hca.srqs.remove(cx, self.srqn.0);
        drop(host);
        Ok(())
    }
}
