// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Protection domains, and the keys in them: MRs of one range, which are the host's own, MRs over all
//! of a guest's memory, whose key stands for one of the host's a region, and memory windows.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rdma_midlayer::attr::AhAttr;
use rdma_midlayer::driver::{
    AhDriver, MrDriver, MwDriver, PdDriver, QpDriver, QpInit, SrqDriver, SrqInit,
};
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::rcu::{Guard, Table};
use rdma_midlayer::types::{Access, MwType, RKey};
use rdma_midlayer::work::{MwBind, Sge};
use rdma_midlayer::{Error, MaySleep, Result};

use super::ah::{self, Ah, Path};
use super::context::Context;
use super::ffi::{ibv_mw_bind_info, ibv_sge};
use super::hca::lock;
use super::host::{HostMr, HostMw, HostPd};
use super::memory::{DmaKey, DmaMr, Mr};
use super::on_use::{OnUse, Use};
use super::qp::Qp;
use super::queue::WorkQueue;
use super::srq::Srq;
use crate::soft::spin::SpinLock;

/// MRs over all memory in one PD.
const MAX_DMA: usize = 64;
/// Paths of a PD: an address handle of the host's each, kept until the PD ends.
const MAX_PATHS: usize = 16_384;

/// A protection domain.
pub(crate) struct Pd {
    this: Weak<Pd>,
    context: Arc<Context>,
    host: Arc<HostPd>,
    dma: Table<DmaKey>,
    /// One past the highest number of `dma` that was ever in use.
    dma_end: AtomicUsize,
    dma_numbers: Mutex<[bool; MAX_DMA]>,
    paths: SpinLock<HashMap<ah::Key, Arc<Path>>>,
    /// MRs that are pinned on use, by local key.
    on_use: SpinLock<HashMap<u32, Arc<OnUse>>>,
    /// By local key: what windows may be bound to.
    bindable: SpinLock<HashMap<u32, Arc<HostMr>>>,
    /// By the index in their key.
    windows: SpinLock<HashMap<u32, Window>>,
}

/// A window, and the local key of the MR that it was bound to last.
struct Window {
    host: Arc<HostMw>,
    of: u32,
}

/// The value alone, when those who were using it have finished: they hold on to it for the length of a
/// post, and nobody finds it any more.
pub(crate) fn sole<T>(mut shared: Arc<T>) -> T {
    loop {
        match Arc::try_unwrap(shared) {
            Ok(value) => return value,
            Err(still) => shared = still,
        }
        std::thread::yield_now();
    }
}

impl Pd {
    pub(crate) fn alloc(context: &Arc<Context>) -> Result<Arc<Self>> {
        let host = HostPd::alloc(&context.hca().host)?;
        Ok(Arc::new_cyclic(|this| Self {
            this: this.clone(),
            context: context.clone(),
            host,
            dma: Table::new(MAX_DMA),
            dma_end: AtomicUsize::new(0),
            dma_numbers: Mutex::new([false; MAX_DMA]),
            paths: SpinLock::new(HashMap::new()),
            on_use: SpinLock::new(HashMap::new()),
            bindable: SpinLock::new(HashMap::new()),
            windows: SpinLock::new(HashMap::new()),
        }))
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn host(&self) -> &Arc<HostPd> {
        &self.host
    }

    fn this(&self) -> Result<Arc<Self>> {
        self.this.upgrade().ok_or(Error::Gone)
    }

    /// The path with these attributes. Never sleeps.
    pub(crate) fn path(&self, attr: &AhAttr) -> Result<Arc<Path>> {
        let mut paths = self.paths.lock();
        if let Some(path) = paths.get(&ah::key(attr)) {
            return Ok(path.clone());
        }
        if paths.len() >= MAX_PATHS {
            return Err(Error::Limit("paths of a PD"));
        }
        let path = Path::new(*attr, &self.context, &self.host);
        paths.insert(ah::key(attr), path.clone());
        drop(paths);
        ah::order(&self.context, &path);
        Ok(path)
    }

    /// A number for an MR over all memory.
    pub(crate) fn take_dma(&self) -> Result<usize> {
        let mut numbers = lock(&self.dma_numbers);
        let free = numbers.iter().position(|used| !used).ok_or(Error::Limit("DMA MRs of a PD"))?;
        numbers[free] = true;
        self.dma_end.fetch_max(free + 1, Ordering::AcqRel);
        Ok(free)
    }

    pub(crate) fn dma(&self) -> &Table<DmaKey> {
        &self.dma
    }

    /// Ends the use of a number, whose key nobody finds any more after the return. May sleep.
    pub(crate) fn end_dma(&self, cx: &MaySleep, number: usize) {
        drop(self.dma.remove(cx, number));
        lock(&self.dma_numbers)[number] = false;
    }

    pub(crate) fn on_use(&self) -> &SpinLock<HashMap<u32, Arc<OnUse>>> {
        &self.on_use
    }

    pub(crate) fn bindable(&self) -> &SpinLock<HashMap<u32, Arc<HostMr>>> {
        &self.bindable
    }

    /// The MR and the window that a bind names; no MR for a bind to nothing. To be kept during the post
    /// and no longer. Never sleeps.
    pub(crate) fn bound(&self, bind: &MwBind) -> Result<Bound> {
        const RIGHTS: u32 = Access::REMOTE_WRITE.0
            | Access::REMOTE_READ.0
            | Access::REMOTE_ATOMIC.0
            | Access::ZERO_BASED.0;
        if bind.access.0 & !RIGHTS != 0 {
            return Err(Error::Invalid("rights of a memory window"));
        }
        let mr = self.bindable.lock().get(&bind.lkey.0).cloned();
        if mr.is_none() && bind.length != 0 {
            return Err(Error::Invalid("MR to bind a window to"));
        }
        let mut windows = self.windows.lock();
        let window = windows.get_mut(&(bind.rkey.0 >> 8)).ok_or(Error::Invalid("memory window"))?;
        window.of = bind.lkey.0;
        Ok(Bound { mr, mw: window.host.clone() })
    }

    /// Ends an MR. Windows that are bound to it show nothing from here on: the HCA does not let the MR
    /// go before them, so they end with it, and can't be bound again. May sleep.
    pub(crate) fn end_mr(&self, mr: Arc<HostMr>) {
        self.bindable.lock().remove(&mr.lkey());
        let lkey = mr.lkey();
        let Err((mr, _)) = sole(mr).end() else { return };
        self.end_windows(|window| window.of == lkey);
        let Err((mr, errno)) = mr.end() else { return };
        // A bind that failed left its window with an MR that it was bound to before.
        log::debug!("MR {lkey:#x} is held by a window: errno {errno}");
        self.end_windows(|_| true);
        drop(mr);
    }

    fn end_windows(&self, which: impl Fn(&Window) -> bool) {
        let ended: Vec<_> = {
            let mut windows = self.windows.lock();
            let keys: Vec<_> =
                windows.iter().filter(|(_, w)| which(w)).map(|(key, _)| *key).collect();
            keys.iter().filter_map(|key| windows.remove(key)).collect()
        };
        ended.into_iter().for_each(|window| drop(sole(window.host)));
    }

    /// The SGEs of a request that is about to be posted to `queue`, in the host's terms: keys to all memory
    /// and to MRs that are pinned on use are translated, and what crosses a region is split. How many they
    /// are; none if they are too many or not in memory, which is for the HCA to fail. Never sleeps.
    ///
    /// # Errors
    /// `QueueFull`: an MR is being pinned; the queue is told when to try again.
    #[inline]
    pub(crate) fn translate(
        &self,
        sges: &[Sge],
        to: &mut [ibv_sge],
        queue: &WorkQueue,
        guard: &Guard,
    ) -> Result<Option<usize>> {
        let keys = self.dma_end.load(Ordering::Acquire);
        if keys == 0 && self.context.hca().pins.is_none() {
            if sges.len() > to.len() {
                return Ok(None);
            }
            for (to, sge) in to.iter_mut().zip(sges) {
                *to = ibv_sge { addr: sge.addr, length: sge.length, lkey: sge.lkey.0 };
            }
            return Ok(Some(sges.len()));
        }
        let mut count = 0;
        for sge in sges {
            let key =
                (0..keys).filter_map(|n| self.dma.get(n, guard)).find(|k| k.key() == sge.lkey.0);
            if let Some(key) = key {
                let Some(split) = key.split(sge, &mut to[count..]) else { return Ok(None) };
                count += split;
                continue;
            }
            let Some(place) = to.get_mut(count) else { return Ok(None) };
            let Some(lkey) = self.pinned(sge.lkey.0, queue)? else { return Ok(None) };
            *place = ibv_sge { addr: sge.addr, length: sge.length, lkey };
            count += 1;
        }
        Ok(Some(count))
    }

    /// The host's key for a key that may be of an MR that is pinned on use; none if that can't be used.
    fn pinned(&self, lkey: u32, queue: &WorkQueue) -> Result<Option<u32>> {
        let hca = self.context.hca();
        if hca.pins.is_none() {
            return Ok(Some(lkey));
        }
        let Some(mr) = self.on_use.lock().get(&lkey).cloned() else { return Ok(Some(lkey)) };
        match mr.request(hca, queue) {
            Use::Key(lkey) => Ok(Some(lkey)),
            Use::Later => Err(Error::QueueFull),
            Use::Failed => Ok(None),
        }
    }
}

impl PdDriver for Pd {
    fn reg_mr(
        &self,
        cx: &MaySleep,
        memory: UserMemory,
        access: Access,
    ) -> Result<Arc<dyn MrDriver>> {
        if memory.is_sparse() {
            return self.reg_dma_mr(cx, vec![memory], access);
        }
        if self.context.hca().pins.is_some() && OnUse::suits(access) {
            return OnUse::register(&self.this()?, &memory, access);
        }
        Ok(Mr::register(&self.this()?, &memory, access)?)
    }

    fn reg_dma_mr(
        &self,
        _cx: &MaySleep,
        regions: Vec<UserMemory>,
        access: Access,
    ) -> Result<Arc<dyn MrDriver>> {
        Ok(DmaMr::register(&self.this()?, &regions, access)?)
    }

    fn create_qp(&self, _cx: &MaySleep, init: QpInit) -> Result<Arc<dyn QpDriver>> {
        Ok(Qp::create(&self.this()?, init)?)
    }

    fn alloc_mw(&self, _cx: &MaySleep, mw_type: MwType) -> Result<Arc<dyn MwDriver>> {
        let host = Arc::new(self.host.alloc_mw(mw_type.code())?);
        let rkey = host.rkey();
        self.windows.lock().insert(rkey >> 8, Window { host, of: 0 });
        Ok(Arc::new(Mw { pd: self.this()?, rkey: AtomicU32::new(rkey) }))
    }

    fn create_srq(&self, _cx: &MaySleep, init: SrqInit) -> Result<Arc<dyn SrqDriver>> {
        Ok(Srq::create(&self.this()?, init)?)
    }

    fn create_ah(&self, attr: &AhAttr) -> Result<Arc<dyn AhDriver>> {
        Ok(Ah::create(&self.this()?, attr)?)
    }

    fn dealloc(&self, _cx: &MaySleep) -> Result<()> {
        let paths = std::mem::take(&mut *self.paths.lock());
        drop(paths);
        Ok(())
    }
}

/// What a bind names.
pub(crate) struct Bound {
    mr: Option<Arc<HostMr>>,
    pub(crate) mw: Arc<HostMw>,
}

impl Bound {
    /// The bind in the host's terms, for as long as this is kept.
    pub(crate) fn info(&self, bind: &MwBind) -> ibv_mw_bind_info {
        ibv_mw_bind_info {
            mr: self.mr.as_ref().map_or(std::ptr::null_mut(), |mr| mr.as_ptr()),
            addr: bind.addr,
            length: bind.length,
            mw_access_flags: bind.access.0,
        }
    }
}

/// A memory window. The host's is its PD's.
pub(crate) struct Mw {
    pd: Arc<Pd>,
    rkey: AtomicU32,
}

impl Mw {
    /// It was bound by a verb of its own: the key that it has now.
    pub(crate) fn bound(&self, rkey: u32) -> RKey {
        self.rkey.store(rkey, Ordering::Release);
        RKey(rkey)
    }
}

impl MwDriver for Mw {
    fn rkey(&self) -> RKey {
        RKey(self.rkey.load(Ordering::Acquire))
    }

    fn dealloc(&self, _cx: &MaySleep) -> Result<()> {
        // With its MR it may have ended before.
        let window = self.pd.windows.lock().remove(&(self.rkey().0 >> 8));
        window.into_iter().for_each(|window| drop(sole(window.host)));
        Ok(())
    }
}
