// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Contexts: tenants of the HCA. Their GIDs are names that the map or the host's table gives a meaning;
//! their objects are the host's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rdma_midlayer::attr::GidEntry;
use rdma_midlayer::driver::{
    AsyncEvent, ContextDriver, ContextInit, CqDriver, CqInit, EventSink, PdDriver,
};
use rdma_midlayer::rcu;
use rdma_midlayer::types::Gid;
use rdma_midlayer::{Error, MaySleep, Result};

use super::cq::Cq;
use super::hca::{Hca, lock};
use super::pd::Pd;
use super::qp::Qp;
use super::srq::Srq;

/// A tenant.
pub(crate) struct Context {
    this: Weak<Context>,
    hca: Arc<Hca>,
    name: String,
    network: u64,
    events: Arc<dyn EventSink>,
    suspended: AtomicBool,
    gids: Mutex<Vec<Option<GidEntry>>>,
    qps: Mutex<Vec<Weak<Qp>>>,
    srqs: Mutex<Vec<Weak<Srq>>>,
}

impl Context {
    pub(crate) fn new(hca: &Arc<Hca>, init: ContextInit) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            hca: hca.clone(),
            name: init.name,
            network: init.network,
            events: init.events,
            suspended: AtomicBool::new(false),
            gids: Mutex::default(),
            qps: Mutex::default(),
            srqs: Mutex::default(),
        })
    }

    pub(crate) fn hca(&self) -> &Arc<Hca> {
        &self.hca
    }

    pub(crate) fn network(&self) -> u64 {
        self.network
    }

    pub(crate) fn dispatch(&self, event: AsyncEvent) {
        self.events.dispatch(event);
    }

    /// The tenant's own GID at an index.
    pub(crate) fn gid(&self, index: u32) -> Option<Gid> {
        Some(lock(&self.gids).get(index as usize)?.as_ref()?.gid)
    }

    /// Whether the tenant's memory and queues may not be touched. Asked inside an RCU section.
    #[inline]
    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Acquire)
    }

    pub(crate) fn add_qp(&self, qp: &Arc<Qp>) {
        let mut qps = lock(&self.qps);
        qps.retain(|qp| qp.strong_count() > 0);
        qps.push(Arc::downgrade(qp));
    }

    pub(crate) fn add_srq(&self, srq: &Arc<Srq>) {
        let mut srqs = lock(&self.srqs);
        srqs.retain(|srq| srq.strong_count() > 0);
        srqs.push(Arc::downgrade(srq));
    }

    fn qps(&self) -> Vec<Arc<Qp>> {
        lock(&self.qps).iter().filter_map(Weak::upgrade).collect()
    }

    fn this(&self) -> Result<Arc<Self>> {
        self.this.upgrade().ok_or(Error::Gone)
    }
}

impl ContextDriver for Context {
    fn add_gid(&self, _cx: &MaySleep, index: u32, entry: &GidEntry) -> Result<()> {
        if index >= self.hca.limits.gid_tbl_len || entry.gid == Gid::default() {
            return Err(Error::Invalid("GID or its index"));
        }
        self.hca.own_gid(self.network, entry.gid, &self.this()?)?;
        let old = {
            let mut gids = lock(&self.gids);
            if gids.len() <= index as usize {
                gids.resize(index as usize + 1, None);
            }
            gids[index as usize].replace(*entry)
        };
        if let Some(old) = old.filter(|old| old.gid != entry.gid) {
            self.hca.disown_gid(self.network, old.gid);
        }
        let physical = self.hca.gids.physical(self.network, entry.gid);
        log::debug!("{}: GID {index} is {}, on the wire {physical}", self.name, entry.gid);
        Ok(())
    }

    fn del_gid(&self, _cx: &MaySleep, index: u32) -> Result<()> {
        let old = lock(&self.gids).get_mut(index as usize).and_then(Option::take);
        if let Some(old) = old
            && !lock(&self.gids).iter().flatten().any(|entry| entry.gid == old.gid)
        {
            self.hca.disown_gid(self.network, old.gid);
        }
        Ok(())
    }

    fn alloc_pd(&self, _cx: &MaySleep) -> Result<Arc<dyn PdDriver>> {
        Ok(Pd::alloc(&self.this()?)?)
    }

    fn create_cq(&self, _cx: &MaySleep, init: CqInit) -> Result<Arc<dyn CqDriver>> {
        Ok(Cq::create(&self.this()?, init)?)
    }

    /// An HCA can't hold a connection still: what could move data ends in ERR, and its consumer finds
    /// it there when the tenant goes on.
    fn suspend(&self, cx: &MaySleep) -> Result<()> {
        self.suspended.store(true, Ordering::Release);
        rcu::synchronize(cx);
        self.qps().iter().for_each(|qp| qp.cut(cx));
        Ok(())
    }

    fn resume(&self, cx: &MaySleep) -> Result<()> {
        self.suspended.store(false, Ordering::Release);
        self.qps().iter().for_each(|qp| qp.go_on(cx));
        let srqs: Vec<_> = lock(&self.srqs).iter().filter_map(Weak::upgrade).collect();
        srqs.iter().for_each(|srq| srq.look());
        self.hca.engine.lines().iter().for_each(|line| line.wake());
        Ok(())
    }

    fn dealloc(&self, _cx: &MaySleep) -> Result<()> {
        for entry in std::mem::take(&mut *lock(&self.gids)).into_iter().flatten() {
            self.hca.disown_gid(self.network, entry.gid);
        }
        Ok(())
    }
}
