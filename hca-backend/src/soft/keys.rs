// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory regions and their keys. A key is the MR's number and random bits; look-up is an index and a
//! comparison, without a lock.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdma_midlayer::driver::{MrChange, MrDriver, own_any};
use rdma_midlayer::memory::{Span, UserMemory};
use rdma_midlayer::rcu::{Guard, Table};
use rdma_midlayer::types::{Access, LKey, RKey};
use rdma_midlayer::work::Sge;
use rdma_midlayer::{Error, MaySleep, Result};

use super::context::{Context, Pd};
use super::numbers::{NumberPool, Reuse};

/// Low bits of a key that can't be guessed from other keys; the number is above them.
const RANDOM_BITS: u32 = 12;

/// Most MRs that a key can number: number 0 is not used, so that no key is 0.
pub(crate) const MAX_MRS: u32 = (1 << (32 - RANDOM_BITS)) - 1;

/// An MR as the data path sees it: never changed, only replaced.
struct Entry {
    key: u32,
    pd: u32,
    access: Access,
    memory: Memory,
}

/// What is behind a key.
pub(crate) enum Memory {
    /// Nothing, for now.
    None,
    /// One range.
    One(UserMemory),
    /// Several, with holes between them: all that a consumer can use for DMA.
    Regions(Box<[UserMemory]>),
}

impl Entry {
    /// The memory, if the access is allowed.
    #[inline]
    fn check(&self, pd: u32, access: Access, addr: u64, len: u64) -> Option<&UserMemory> {
        if self.pd != pd || !self.access.contains(access) {
            return None;
        }
        match &self.memory {
            Memory::One(memory) => Some(memory).filter(|memory| memory.contains(addr, len)),
            Memory::Regions(regions) => regions.iter().find(|memory| memory.contains(addr, len)),
            Memory::None => None,
        }
    }
}

/// The MRs of a context.
pub(crate) struct Mrs {
    table: Table<Entry>,
    numbers: Mutex<NumberPool>,
    random: RandomState,
    count: AtomicU64,
}

impl Mrs {
    pub(crate) fn new(max: u32) -> Self {
        let max = max.min(MAX_MRS);
        Self {
            table: Table::new(max as usize + 1),
            numbers: Mutex::new(NumberPool::new(1, max, Reuse::Early)),
            random: RandomState::new(),
            count: AtomicU64::new(0),
        }
    }

    #[inline]
    fn entry<'g>(&self, key: u32, guard: &'g Guard) -> Option<&'g Entry> {
        self.table.get((key >> RANDOM_BITS) as usize, guard).filter(|e| e.key == key)
    }

    /// As `local` and `remote`, of memory that lies together in the host. `None` also if it does not.
    #[inline]
    pub(crate) fn span<'g>(
        &self,
        key: u32,
        addr: u64,
        len: u64,
        pd: u32,
        access: Access,
        guard: &'g Guard,
    ) -> Option<Span<'g>> {
        let entry = self.entry(key, guard)?;
        if entry.pd != pd || !entry.access.contains(access) {
            return None;
        }
        match &entry.memory {
            Memory::One(memory) => memory.span(addr, len),
            _ => None,
        }
    }

    /// The memory that an SGE names, if its first `len` bytes may be used so. Never sleeps.
    #[inline]
    pub(crate) fn local<'g>(
        &self,
        sge: &Sge,
        len: u64,
        pd: u32,
        access: Access,
        guard: &'g Guard,
    ) -> Option<&'g UserMemory> {
        self.entry(sge.lkey.0, guard)?.check(pd, access, sge.addr, len)
    }

    /// The memory that a peer names, if it may use it so. Never sleeps.
    #[inline]
    pub(crate) fn remote<'g>(
        &self,
        rkey: RKey,
        addr: u64,
        len: u64,
        pd: u32,
        access: Access,
        guard: &'g Guard,
    ) -> Option<&'g UserMemory> {
        self.entry(rkey.0, guard)?.check(pd, access, addr, len)
    }

    /// Bits that nobody who knows other keys can tell.
    fn random_bits(&self, number: u32) -> u32 {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        self.random.hash_one((count, number)) as u32 & ((1 << RANDOM_BITS) - 1)
    }

    fn register(&self, pd: u32, access: Access, memory: Memory) -> Result<u32> {
        let number = self.take_number().ok_or(Error::Limit("memory regions"))?;
        let key = number << RANDOM_BITS | self.random_bits(number);
        let entry = Arc::new(Entry { key, pd, access, memory });
        if self.table.insert(number as usize, entry).is_err() {
            self.give_back(number);
            return Err(Error::Limit("memory regions"));
        }
        Ok(key)
    }

    /// Puts another entry behind its key; the old one when nobody uses it any more.
    fn replace(&self, cx: &MaySleep, entry: Entry) -> Result<Arc<Entry>> {
        let number = (entry.key >> RANDOM_BITS) as usize;
        self.table.replace(cx, number, Arc::new(entry)).map_err(|_unused| Error::Gone)
    }

    fn deregister(&self, cx: &MaySleep, key: u32) {
        let number = key >> RANDOM_BITS;
        drop(self.table.remove(cx, number as usize));
        self.give_back(number);
    }

    fn take_number(&self) -> Option<u32> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn give_back(&self, number: u32) {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner).give_back(number);
    }
}

/// A consumer's hold of an MR.
pub(crate) struct Mr {
    context: Arc<Context>,
    key: u32,
    /// Held while the entry is exchanged, so that no late exchange hits the next owner of the number.
    now: Mutex<Now>,
}

/// What an MR is now.
struct Now {
    pd: u32,
    access: Access,
    gone: bool,
}

/// Remote stores need the right to local ones (IBA 10.6.3.1).
fn check_access(access: Access) -> Result<()> {
    let stores = access.0 & (Access::REMOTE_WRITE | Access::REMOTE_ATOMIC).0;
    if stores != 0 && !access.contains(Access::LOCAL_WRITE) {
        return Err(Error::Invalid("remote write and atomics need local write"));
    }
    Ok(())
}

impl Mr {
    pub(crate) fn register(
        context: Arc<Context>,
        pd: u32,
        memory: Memory,
        access: Access,
    ) -> Result<Self> {
        check_access(access)?;
        let key = context.mrs.register(pd, access, memory)?;
        Ok(Self { context, key, now: Mutex::new(Now { pd, access, gone: false }) })
    }

    fn now(&self) -> Result<MutexGuard<'_, Now>> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.gone { Err(Error::Gone) } else { Ok(now) }
    }
}

impl MrDriver for Mr {
    fn lkey(&self) -> LKey {
        LKey(self.key)
    }

    fn rkey(&self) -> RKey {
        RKey(self.key)
    }

    fn replace_memory(&self, cx: &MaySleep, memory: Option<UserMemory>) -> Result<()> {
        let now = self.now()?;
        let memory = memory.map_or(Memory::None, Memory::One);
        let entry = Entry { key: self.key, pd: now.pd, access: now.access, memory };
        self.context.mrs.replace(cx, entry).map(drop)
    }

    fn rereg(&self, cx: &MaySleep, change: MrChange) -> Result<()> {
        let mut now = self.now()?;
        let access = change.access.unwrap_or(now.access);
        check_access(access)?;
        let pd = match change.pd {
            Some(pd) => own_any::<Pd>(pd)?.number_in(&self.context)?,
            None => now.pd,
        };
        let mrs = &self.context.mrs;
        let entry = |memory| Entry { key: self.key, pd, access, memory };
        match change.memory {
            Some(memory) => drop(mrs.replace(cx, entry(Memory::One(memory)))?),
            // An entry is shared with readers: its memory can be had only when they have left. For
            // that moment the key names nothing (IBA 11.2.8.4: the consumer has no work under way).
            None => {
                let old = mrs.replace(cx, entry(Memory::None))?;
                let memory = Arc::into_inner(old).map_or(Memory::None, |old| old.memory);
                mrs.replace(cx, entry(memory))?;
            }
        }
        (now.pd, now.access) = (pd, access);
        Ok(())
    }

    fn dereg(&self, cx: &MaySleep) -> Result<()> {
        self.now()?.gone = true;
        self.context.mrs.deregister(cx, self.key);
        Ok(())
    }
}
