// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory regions. The HCA reads and writes the consumer's pages itself: nothing is copied. An MR of
//! one range has the host's keys; one over all of a guest's memory has a key of its own, behind which
//! there is an MR of the host's for each region.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rdma_midlayer::driver::{MrChange, MrDriver, own_any};
use rdma_midlayer::memory::{Run, UserMemory};
use rdma_midlayer::types::{Access, LKey, RKey};
use rdma_midlayer::work::Sge;
use rdma_midlayer::{Error, MaySleep, Result};

use super::ffi::ibv_sge;
use super::hca::lock;
use super::host::{HostMr, HostPd};
use super::pd::Pd;
use super::range::Range;

/// Rights that the host's registration knows: relaxed ordering is a hint, and left out.
const HOST_RIGHTS: u32 = 0x3f;

/// Registers parts that follow each other under the address `start`. May sleep.
pub(crate) fn register(
    pd: &Arc<HostPd>,
    start: u64,
    parts: &[Run],
    access: Access,
) -> Result<HostMr> {
    let len = parts.iter().map(|part| part.len).sum();
    let range = Range::of(start, parts)?;
    pd.reg_mr(range.first(), len, start, access.0 & HOST_RIGHTS).map_err(|errno| match errno {
        libc::ENOMEM | libc::EAGAIN => Error::Limit(
            "memory that the daemon may lock, or MRs of the HCA: raise RLIMIT_MEMLOCK (ulimit -l, \
             systemd LimitMEMLOCK=infinity)",
        ),
        errno => pd.host().error(errno),
    })
}

/// An MR of one range.
pub(crate) struct Mr {
    state: Mutex<State>,
    lkey: AtomicU32,
    rkey: AtomicU32,
}

struct State {
    pd: Arc<Pd>,
    access: Access,
    host: Option<Arc<HostMr>>,
    /// What to register again when rights or PD change: place by place.
    start: u64,
    parts: Vec<Run>,
}

impl State {
    fn register(&mut self) -> Result<()> {
        let host = Arc::new(register(self.pd.host(), self.start, &self.parts, self.access)?);
        if self.access.contains(Access::MW_BIND) {
            self.pd.bindable().lock().insert(host.lkey(), host.clone());
        }
        self.forget();
        self.host = Some(host);
        Ok(())
    }

    fn forget(&mut self) {
        if let Some(old) = self.host.take() {
            self.pd.end_mr(old);
        }
    }
}

impl Mr {
    pub(crate) fn register(pd: &Arc<Pd>, memory: &UserMemory, access: Access) -> Result<Arc<Self>> {
        let parts = memory.places().into_iter().map(|(_, run)| run).collect();
        let mut state = State { pd: pd.clone(), access, host: None, start: memory.start(), parts };
        state.register()?;
        let mr =
            Self { state: Mutex::new(state), lkey: AtomicU32::new(0), rkey: AtomicU32::new(0) };
        mr.publish_keys();
        Ok(Arc::new(mr))
    }

    fn publish_keys(&self) {
        let state = lock(&self.state);
        if let Some(host) = &state.host {
            self.lkey.store(host.lkey(), Ordering::Release);
            self.rkey.store(host.rkey(), Ordering::Release);
        }
    }
}

impl MrDriver for Mr {
    fn lkey(&self) -> LKey {
        LKey(self.lkey.load(Ordering::Acquire))
    }

    fn rkey(&self) -> RKey {
        RKey(self.rkey.load(Ordering::Acquire))
    }

    /// The host's MR ends; its keys name nothing, until the HCA gives them to another MR: then the PD
    /// keeps others' memory apart.
    fn replace_memory(&self, _cx: &MaySleep, memory: Option<UserMemory>) -> Result<()> {
        let mut state = lock(&self.state);
        state.forget();
        match memory {
            None => {
                state.parts.clear();
                Ok(())
            }
            Some(_) => Err(Error::Unsupported("other memory under the keys of an HCA's MR")),
        }
    }

    fn rereg(&self, _cx: &MaySleep, change: MrChange) -> Result<()> {
        let pd = change.pd.map(|pd| own_any::<Pd>(pd)).transpose()?;
        {
            let mut state = lock(&self.state);
            let (start, parts) = match &change.memory {
                Some(memory) if memory.is_sparse() => {
                    return Err(Error::Invalid("memory with holes"));
                }
                Some(memory) => {
                    (memory.start(), memory.places().into_iter().map(|(_, run)| run).collect())
                }
                None if state.host.is_none() => return Err(Error::Gone),
                None => (state.start, state.parts.clone()),
            };
            let mut new = State {
                pd: pd.unwrap_or_else(|| state.pd.clone()),
                access: change.access.unwrap_or(state.access),
                host: None,
                start,
                parts,
            };
            new.register()?;
            state.forget();
            *state = new;
        }
        self.publish_keys();
        Ok(())
    }

    fn dereg(&self, _cx: &MaySleep) -> Result<()> {
        let mut state = lock(&self.state);
        state.forget();
        state.parts.clear();
        Ok(())
    }
}

/// A key to all memory, as the data path sees it.
pub(crate) struct DmaKey {
    key: u32,
    /// Sorted by address.
    parts: Vec<DmaPart>,
}

#[derive(Clone)]
struct DmaPart {
    start: u64,
    len: u64,
    mr: Arc<HostMr>,
    /// Where it came from: the same again need not be registered again.
    origin: Run,
}

impl DmaKey {
    pub(crate) fn key(&self) -> u32 {
        self.key
    }

    /// An SGE in the host's terms; none if a byte of it is not in memory, or `to` is too short.
    pub(crate) fn split(&self, sge: &Sge, to: &mut [ibv_sge]) -> Option<usize> {
        let (mut addr, mut left) = (sge.addr, sge.length);
        let mut count = 0;
        loop {
            let after = self.parts.partition_point(|part| part.start <= addr);
            let part = self.parts.get(after.checked_sub(1)?)?;
            let room = part.len.checked_sub(addr - part.start)?;
            if room == 0 && left != 0 {
                return None;
            }
            let length = room.min(u64::from(left)) as u32;
            *to.get_mut(count)? = ibv_sge { addr, length, lkey: part.mr.lkey() };
            count += 1;
            left -= length;
            if left == 0 {
                return Some(count);
            }
            addr += u64::from(length);
        }
    }
}

/// An MR over all memory.
pub(crate) struct DmaMr {
    pd: Arc<Pd>,
    number: usize,
    access: Access,
    /// Gives the key its number: memory that nobody reaches.
    anchor: Mutex<Option<Anchor>>,
    key: u32,
    rkey: AtomicU32,
}

/// A registered page that nobody reaches: its key is no other MR's of the HCA.
pub(crate) struct Anchor {
    mr: HostMr,
    _page: Box<[u8; 8192]>,
}

impl Anchor {
    pub(crate) fn new(pd: &Arc<HostPd>) -> Result<Self> {
        let mut page = Box::new([0u8; 8192]);
        let at = page.as_mut_ptr();
        let at = at.wrapping_add(at.align_offset(4096));
        let mr = pd.reg_mr(at, 4096, 0, 0).map_err(|errno| pd.host().error(errno))?;
        Ok(Self { mr, _page: page })
    }

    pub(crate) fn key(&self) -> u32 {
        self.mr.lkey()
    }
}

impl DmaMr {
    pub(crate) fn register(
        pd: &Arc<Pd>,
        regions: &[UserMemory],
        access: Access,
    ) -> Result<Arc<Self>> {
        let anchor = Anchor::new(pd.host())?;
        let key = anchor.key();
        let parts = dma_parts(pd, regions, access, &[])?;
        let rkey = sole_rkey(&parts);
        let number = pd.take_dma()?;
        pd.dma()
            .insert(number, Arc::new(DmaKey { key, parts }))
            .map_err(|_| Error::Limit("DMA MRs of a PD"))?;
        Ok(Arc::new(Self {
            pd: pd.clone(),
            number,
            access,
            anchor: Mutex::new(Some(anchor)),
            key,
            rkey: AtomicU32::new(rkey),
        }))
    }
}

/// The host's MR for each region; those of `old` that are the same are kept. May sleep.
fn dma_parts(
    pd: &Arc<Pd>,
    regions: &[UserMemory],
    access: Access,
    old: &[DmaPart],
) -> Result<Vec<DmaPart>> {
    let mut parts = Vec::new();
    for (start, run) in regions.iter().flat_map(UserMemory::places) {
        let len = run.len as u64;
        let same = |part: &&DmaPart| {
            part.start == start
                && part.len == len
                && part.origin.offset == run.offset
                && std::ptr::addr_eq(Arc::as_ptr(&part.origin.mapping), Arc::as_ptr(&run.mapping))
        };
        parts.push(match old.iter().find(same) {
            Some(part) => part.clone(),
            None => {
                let mr = register(pd.host(), start, std::slice::from_ref(&run), access)?;
                DmaPart { start, len, mr: Arc::new(mr), origin: run }
            }
        });
    }
    parts.sort_by_key(|part| part.start);
    Ok(parts)
}

/// A peer reaches memory by the HCA's own key: of one region alone.
fn sole_rkey(parts: &[DmaPart]) -> u32 {
    match parts {
        [part] => part.mr.rkey(),
        _ => 0,
    }
}

impl MrDriver for DmaMr {
    fn lkey(&self) -> LKey {
        LKey(self.key)
    }

    fn rkey(&self) -> RKey {
        RKey(self.rkey.load(Ordering::Acquire))
    }

    fn replace_memory(&self, cx: &MaySleep, memory: Option<UserMemory>) -> Result<()> {
        let anchor = lock(&self.anchor);
        if anchor.is_none() {
            return Err(Error::Gone);
        }
        let old: Vec<_> = {
            let guard = rdma_midlayer::rcu::enter();
            self.pd.dma().get(self.number, &guard).map_or(Vec::new(), |key| key.parts.clone())
        };
        let regions: Vec<_> = memory.into_iter().collect();
        let parts = dma_parts(&self.pd, &regions, self.access, &old)?;
        drop(old);
        self.rkey.store(sole_rkey(&parts), Ordering::Release);
        let new = Arc::new(DmaKey { key: self.key, parts });
        drop(self.pd.dma().replace(cx, self.number, new));
        Ok(())
    }

    fn dereg(&self, cx: &MaySleep) -> Result<()> {
        let anchor = lock(&self.anchor).take().ok_or(Error::Gone)?;
        self.pd.end_dma(cx, self.number);
        drop(anchor);
        Ok(())
    }
}
