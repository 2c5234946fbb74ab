// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Contexts and protection domains: a tenant's numbers, keys, GIDs and objects.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rdma_midlayer::attr::{AhAttr, GidEntry};
use rdma_midlayer::driver::{
    AhDriver, AsyncEvent, ContextDriver, ContextInit, CqDriver, CqInit, EventSink, FmrAttr,
    FmrDriver, MrDriver, MwDriver, PdDriver, QpDriver, QpInit, SrqDriver, SrqInit, Violations,
    XrcdDriver,
};
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::rcu::{self, Table};
use rdma_midlayer::types::{Access, Cqn, Gid, MwType, QpType, Qpn, Srqn};
use rdma_midlayer::{Error, MaySleep, Result};

use super::Limits;
use super::ah::Ah;
use super::cq::Cq;
use super::groups::Attachments;
use super::keys::{Memory, Mr, Mrs};
use super::link::QpCounts;
use super::network::Network;
use super::numbers::{NumberPool, Reuse};
use super::poller::SoftPoller;
use super::qp::{GSI_QPN, Qp};
use super::rebound::{FastMr, Fmr, Mw};
use super::spin::SpinLock;
use super::srq::Srq;
use super::wire::counters::Counters;
use super::xrc::Xrcd;

/// Numbers below are special or reserved (QP0, QP1).
const FIRST_QPN: u32 = 16;

/// A tenant of the HCA.
pub(crate) struct Context {
    this: Weak<Context>,
    name: String,
    limits: Limits,
    pollers: Vec<Arc<SoftPoller>>,
    events: Arc<dyn EventSink>,
    pub(crate) network: Arc<Network>,
    /// Neither its memory nor its queues may be touched.
    suspended: AtomicBool,
    gids: SpinLock<Vec<Option<GidEntry>>>,
    pub(crate) mrs: Mrs,
    qps: Table<Qp>,
    cqs: Table<Cq>,
    qpns: Mutex<NumberPool>,
    cqns: Mutex<NumberPool>,
    srqns: Mutex<NumberPool>,
    pds: Mutex<NumberPool>,
    xrcds: Mutex<NumberPool>,
    attachments: Mutex<Attachments>,
    pkey_violations: AtomicU64,
    qkey_violations: AtomicU64,
}

fn locked(pool: &Mutex<NumberPool>) -> std::sync::MutexGuard<'_, NumberPool> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Context {
    pub(crate) fn new(
        init: ContextInit,
        limits: Limits,
        pollers: Vec<Arc<SoftPoller>>,
        network: Arc<Network>,
    ) -> Arc<Self> {
        let pool = |first, count, reuse| Mutex::new(NumberPool::new(first, count, reuse));
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            name: init.name,
            pollers,
            events: init.events,
            network,
            suspended: AtomicBool::new(false),
            gids: SpinLock::new(Vec::new()),
            mrs: Mrs::new(limits.max_mr),
            qps: Table::new((FIRST_QPN + limits.max_qp) as usize),
            cqs: Table::new(limits.max_cq as usize + 1),
            qpns: pool(FIRST_QPN, limits.max_qp, Reuse::Late),
            cqns: pool(1, limits.max_cq, Reuse::Early),
            srqns: pool(1, limits.max_srq, Reuse::Early),
            pds: pool(1, limits.max_pd, Reuse::Early),
            xrcds: pool(1, limits.max_pd, Reuse::Early),
            attachments: Mutex::default(),
            pkey_violations: AtomicU64::new(0),
            qkey_violations: AtomicU64::new(0),
            limits,
        })
    }

    /// One of the HCA's pollers, modulo their number.
    pub(crate) fn poller(&self, number: usize) -> &Arc<SoftPoller> {
        &self.pollers[number % self.pollers.len()]
    }

    /// Reports an event of one of the context's objects. Never sleeps.
    pub(crate) fn dispatch(&self, event: AsyncEvent) {
        self.events.dispatch(event);
    }

    /// The GID at an index of the table. Never sleeps.
    pub(crate) fn gid(&self, index: u32) -> Option<Gid> {
        Some(self.gid_entry(index)?.gid)
    }

    /// What belongs to the GID at an index of the table. Never sleeps.
    pub(crate) fn gid_entry(&self, index: u32) -> Option<GidEntry> {
        *self.gids.lock().get(index as usize)?
    }

    /// What was counted of each QP that has talked by packets.
    pub(crate) fn wire_counters(&self) -> Vec<QpCounts> {
        let all = self.each_qp().map(|qp| {
            let counts = qp.wire_counters().map_or(Vec::new(), Counters::list);
            QpCounts { tenant: self.name.clone(), qpn: qp.qpn(), counts }
        });
        all.filter(|qp| qp.counts.iter().any(|(_, count)| *count > 0)).collect()
    }

    fn each_qp(&self) -> impl Iterator<Item = Arc<Qp>> {
        let numbers = [GSI_QPN.0].into_iter().chain(FIRST_QPN..FIRST_QPN + self.limits.max_qp);
        numbers.filter_map(|qpn| self.qp(Qpn(qpn)))
    }

    /// Whether a packet for a GID, in a VLAN or none, is for this context. Never sleeps.
    pub(crate) fn answers_to(&self, gid: Gid, vlan: Option<u16>) -> bool {
        self.gids.lock().iter().flatten().any(|entry| entry.gid == gid && entry.vlan == vlan)
    }

    /// Whether one of the context's addresses is in a VLAN, or in none. Never sleeps.
    pub(crate) fn is_in_vlan(&self, vlan: Option<u16>) -> bool {
        self.gids.lock().iter().flatten().any(|entry| entry.vlan == vlan)
    }

    /// One of the context's QPs comes into a group.
    ///
    /// # Errors
    /// `Limit` if no more may.
    pub(crate) fn take_attachment(&self, gid: Gid) -> Result<()> {
        let mut attachments = self.attachments.lock().unwrap_or_else(PoisonError::into_inner);
        attachments.take(gid, &self.limits)
    }

    /// It goes.
    pub(crate) fn give_attachment_back(&self, gid: Gid) {
        self.attachments.lock().unwrap_or_else(PoisonError::into_inner).give_back(gid);
    }

    /// A packet came with a wrong P_Key.
    pub(crate) fn count_pkey_violation(&self) {
        self.pkey_violations.fetch_add(1, Ordering::Relaxed);
    }

    /// A datagram came with a wrong Q_Key.
    pub(crate) fn count_qkey_violation(&self) {
        self.qkey_violations.fetch_add(1, Ordering::Relaxed);
    }

    /// All of the table.
    pub(crate) fn gid_entries(&self) -> Vec<GidEntry> {
        self.gids.lock().iter().flatten().copied().collect()
    }

    /// The QP with a number. Never sleeps.
    pub(crate) fn qp(&self, qpn: Qpn) -> Option<Arc<Qp>> {
        self.qps.get_arc(qpn.0 as usize)
    }

    /// Whether the tenant is stopped. Whoever finds that it is not may go on until it leaves the RCU
    /// section in which it asked.
    #[inline]
    pub(crate) fn suspended(&self, _guard: &rcu::Guard) -> bool {
        self.suspended.load(Ordering::Acquire)
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Unpublishes a QP; returns when nobody can be finding it any more.
    pub(crate) fn remove_qp(&self, cx: &MaySleep, qpn: Qpn) {
        drop(self.qps.remove(cx, qpn.0 as usize));
        // QP1 is not of the pool, which takes no notice of it.
        locked(&self.qpns).give_back(qpn.0);
    }

    pub(crate) fn remove_srq(&self, _cx: &MaySleep, srqn: Srqn) {
        locked(&self.srqns).give_back(srqn.0);
    }

    pub(crate) fn remove_xrcd(&self, number: u32) {
        locked(&self.xrcds).give_back(number);
    }

    pub(crate) fn remove_cq(&self, cx: &MaySleep, cqn: Cqn) {
        drop(self.cqs.remove(cx, cqn.0 as usize));
        locked(&self.cqns).give_back(cqn.0);
    }

    fn this(&self) -> Result<Arc<Self>> {
        self.this.upgrade().ok_or(Error::Gone)
    }
}

impl ContextDriver for Context {
    fn add_gid(&self, _cx: &MaySleep, index: u32, entry: &GidEntry) -> Result<()> {
        if index >= self.limits.max_gids {
            return Err(Error::Invalid("GID index"));
        }
        if entry.gid == Gid::default() {
            return Err(Error::Invalid("the GID is all zeros"));
        }
        self.network.enter(entry.gid, &self.this()?)?;
        let index = index as usize;
        let mut gids = self.gids.lock();
        if gids.len() <= index {
            gids.resize(index + 1, None);
        }
        let old = gids[index].replace(*entry);
        drop(gids);
        if let Some(old) = old {
            self.network.leave(old.gid, self);
        }
        let network = self.network.id();
        log::debug!("{}: GID {index} is {} on network {network}", self.name, entry.gid);
        Ok(())
    }

    fn del_gid(&self, _cx: &MaySleep, index: u32) -> Result<()> {
        if index >= self.limits.max_gids {
            return Err(Error::Invalid("GID index"));
        }
        let old = self.gids.lock().get_mut(index as usize).and_then(Option::take);
        if let Some(old) = old {
            self.network.leave(old.gid, self);
        }
        Ok(())
    }

    fn alloc_pd(&self, _cx: &MaySleep) -> Result<Arc<dyn PdDriver>> {
        let context = self.this()?;
        let number = locked(&self.pds).take().ok_or(Error::Limit("protection domains"))?;
        Ok(Arc::new(Pd { context, number, gone: Mutex::new(false) }))
    }

    fn create_cq(&self, _cx: &MaySleep, init: CqInit) -> Result<Arc<dyn CqDriver>> {
        if init.cqe == 0 || init.cqe > self.limits.max_cqe {
            return Err(Error::Invalid("number of CQEs"));
        }
        let context = self.this()?;
        let number = locked(&self.cqns).take().ok_or(Error::Limit("completion queues"))?;
        let cq = Arc::new(Cq::new(context, Cqn(number), init));
        if self.cqs.insert(number as usize, cq.clone()).is_err() {
            locked(&self.cqns).give_back(number);
            return Err(Error::Limit("completion queues"));
        }
        Ok(cq)
    }

    fn alloc_xrcd(&self, _cx: &MaySleep) -> Result<Arc<dyn XrcdDriver>> {
        let context = self.this()?;
        let number = locked(&self.xrcds).take().ok_or(Error::Limit("XRC domains"))?;
        Ok(Arc::new(Xrcd::new(context, number)))
    }

    fn set_dma_memory(&self, cx: &MaySleep, memory: Option<UserMemory>) -> Result<()> {
        self.mrs.set_dma(cx, memory);
        Ok(())
    }

    fn violations(&self) -> Violations {
        Violations {
            pkey: self.pkey_violations.load(Ordering::Relaxed),
            qkey: self.qkey_violations.load(Ordering::Relaxed),
        }
    }

    fn suspend(&self, cx: &MaySleep) -> Result<()> {
        self.suspended.store(true, Ordering::Release);
        rcu::synchronize(cx);
        Ok(())
    }

    fn resume(&self, _cx: &MaySleep) -> Result<()> {
        self.suspended.store(false, Ordering::Release);
        let numbers = FIRST_QPN..FIRST_QPN + self.limits.max_qp;
        let numbers = [GSI_QPN.0].into_iter().chain(numbers);
        numbers.filter_map(|qpn| self.qp(Qpn(qpn))).for_each(|qp| qp.go_on());
        Ok(())
    }

    fn dealloc(&self, cx: &MaySleep) -> Result<()> {
        let count = self.gids.lock().len() as u32;
        (0..count).try_for_each(|index| self.del_gid(cx, index))
    }
}

/// A protection domain: a number that MRs and QPs must share.
pub(crate) struct Pd {
    context: Arc<Context>,
    number: u32,
    gone: Mutex<bool>,
}

impl Pd {
    /// Its number, for objects of the same context.
    pub(crate) fn number_in(&self, context: &Arc<Context>) -> Result<u32> {
        if !Arc::ptr_eq(&self.context, context) {
            return Err(Error::Invalid("a PD of another context"));
        }
        Ok(self.number)
    }

    fn register(&self, memory: Memory, access: Access) -> Result<Arc<dyn MrDriver>> {
        Ok(Arc::new(Mr::register(self.context.clone(), self.number, memory, access)?))
    }
}

impl PdDriver for Pd {
    fn reg_mr(
        &self,
        _cx: &MaySleep,
        memory: UserMemory,
        access: Access,
    ) -> Result<Arc<dyn MrDriver>> {
        // Memory on demand may be all of an address space.
        if memory.len() > self.context.limits.max_mr_size && memory.paging().is_none() {
            return Err(Error::Invalid("length of the memory region"));
        }
        self.register(Memory::One(memory), access)
    }

    fn reg_dma_mr(
        &self,
        _cx: &MaySleep,
        regions: Vec<UserMemory>,
        access: Access,
    ) -> Result<Arc<dyn MrDriver>> {
        self.register(Memory::Regions(regions.into()), access)
    }

    fn create_qp(&self, _cx: &MaySleep, init: QpInit) -> Result<Arc<dyn QpDriver>> {
        let context = &self.context;
        let number = match init.qp_type {
            QpType::Gsi if !init.privileged => return Err(Error::NotPermitted("QP1")),
            QpType::Gsi => GSI_QPN.0,
            _ => locked(&context.qpns).take().ok_or(Error::Limit("queue pairs"))?,
        };
        let give_back = || locked(&context.qpns).give_back(number);
        let qp = Qp::new(context.clone(), self.number, Qpn(number), init)
            .inspect_err(|_| give_back())?;
        if context.qps.insert(number as usize, qp.clone()).is_err() {
            give_back();
            return Err(Error::Busy("the QP's number"));
        }
        qp.attach();
        Ok(qp)
    }

    fn alloc_mr(&self, _cx: &MaySleep, _max_pages: u32) -> Result<Arc<dyn MrDriver>> {
        Ok(Arc::new(FastMr::new(self.context.clone(), self.number)?))
    }

    fn alloc_mw(&self, _cx: &MaySleep, mw_type: MwType) -> Result<Arc<dyn MwDriver>> {
        Ok(Arc::new(Mw::new(self.context.clone(), self.number, mw_type)?))
    }

    fn alloc_fmr(
        &self,
        _cx: &MaySleep,
        attr: FmrAttr,
        access: Access,
    ) -> Result<Arc<dyn FmrDriver>> {
        Ok(Arc::new(Fmr::new(self.context.clone(), self.number, attr, access)?))
    }

    fn create_ah(&self, attr: &AhAttr) -> Result<Arc<dyn AhDriver>> {
        Ok(Arc::new(Ah::new(*attr)))
    }

    fn create_srq(&self, _cx: &MaySleep, init: SrqInit) -> Result<Arc<dyn SrqDriver>> {
        let context = &self.context;
        let number = locked(&context.srqns).take().ok_or(Error::Limit("SRQs"))?;
        let srq = Srq::new(context.clone(), self.number, Srqn(number), init)
            .inspect_err(|_| locked(&context.srqns).give_back(number))?;
        Ok(srq)
    }

    fn dealloc(&self, _cx: &MaySleep) -> Result<()> {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *gone, true) {
            return Err(Error::Gone);
        }
        locked(&self.context.pds).give_back(self.number);
        Ok(())
    }
}
