// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Protection domains, and the keys in them: MRs of one range, which are the host's own, MRs over all
//! of a guest's memory, whose key stands for one of the host's a region, and memory windows.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rdma_midlayer::attr::AhAttr;
use rdma_midlayer::driver::{
    AhDriver, MrDriver, MwDriver, PdDriver, QpDriver, QpInit, SrqDriver, SrqInit,
};
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::rcu::{Guard, Table};
use rdma_midlayer::types::{Access, MwType, RKey};
use rdma_midlayer::work::Sge;
use rdma_midlayer::{Error, MaySleep, Result};

use super::ah::{self, Ah, Path};
use super::context::Context;
use super::ffi::ibv_sge;
use super::hca::lock;
use super::host::{HostMr, HostMw, HostPd};
use super::memory::{DmaKey, DmaMr, Mr};
use super::qp::Qp;
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
    /// By local key: what windows may be bound to.
    bindable: SpinLock<HashMap<u32, Arc<HostMr>>>,
    /// By the index in their key.
    windows: SpinLock<HashMap<u32, Arc<HostMw>>>,
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

    pub(crate) fn bindable(&self) -> &SpinLock<HashMap<u32, Arc<HostMr>>> {
        &self.bindable
    }

    /// The MR and the window that a bind names.
    pub(crate) fn bound(&self, lkey: u32, rkey: u32) -> Result<(Arc<HostMr>, Arc<HostMw>)> {
        let mr = self.bindable.lock().get(&lkey).cloned();
        let mw = self.windows.lock().get(&(rkey >> 8)).cloned();
        mr.zip(mw).ok_or(Error::Invalid("memory window, or MR to bind it to"))
    }

    /// The SGEs in the host's terms: keys to all memory are translated, and what crosses a region is
    /// split. How many they are; none if they are too many or not in memory, which is for the HCA to
    /// fail. Never sleeps.
    #[inline]
    pub(crate) fn translate(
        &self,
        sges: &[Sge],
        to: &mut [ibv_sge],
        guard: &Guard,
    ) -> Option<usize> {
        let keys = self.dma_end.load(Ordering::Acquire);
        if keys == 0 {
            if sges.len() > to.len() {
                return None;
            }
            for (to, sge) in to.iter_mut().zip(sges) {
                *to = ibv_sge { addr: sge.addr, length: sge.length, lkey: sge.lkey.0 };
            }
            return Some(sges.len());
        }
        let mut count = 0;
        for sge in sges {
            let key =
                (0..keys).filter_map(|n| self.dma.get(n, guard)).find(|k| k.key() == sge.lkey.0);
            match key {
                Some(key) => count += key.split(sge, &mut to[count..])?,
                None => {
                    *to.get_mut(count)? =
                        ibv_sge { addr: sge.addr, length: sge.length, lkey: sge.lkey.0 };
                    count += 1;
                }
            }
        }
        Some(count)
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
        let mw = Arc::new(self.host.alloc_mw(mw_type.code())?);
        self.windows.lock().insert(mw.rkey() >> 8, mw.clone());
        Ok(Arc::new(Mw { pd: self.this()?, host: Mutex::new(Some(mw)) }))
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

/// A memory window.
pub(crate) struct Mw {
    pd: Arc<Pd>,
    host: Mutex<Option<Arc<HostMw>>>,
}

impl Mw {
    pub(crate) fn host(&self) -> Result<Arc<HostMw>> {
        lock(&self.host).clone().ok_or(Error::Gone)
    }
}

impl MwDriver for Mw {
    fn rkey(&self) -> RKey {
        RKey(lock(&self.host).as_ref().map_or(0, |mw| mw.rkey()))
    }

    fn dealloc(&self, _cx: &MaySleep) -> Result<()> {
        let mw = lock(&self.host).take().ok_or(Error::Gone)?;
        self.pd.windows.lock().remove(&(mw.rkey() >> 8));
        Ok(())
    }
}
