// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory regions and their keys. A key is the MR's number and random bits; look-up is an index and a
//! comparison, without a lock.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rdma_midlayer::driver::MrDriver;
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::rcu::{Guard, Table};
use rdma_midlayer::types::{Access, LKey, RKey};
use rdma_midlayer::work::Sge;
use rdma_midlayer::{Error, MaySleep, Result};

use super::context::Context;
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
    memory: Option<UserMemory>,
}

impl Entry {
    /// The memory, if the access is allowed.
    #[inline]
    fn check(&self, pd: u32, access: Access, addr: u64, len: u64) -> Option<&UserMemory> {
        if self.pd != pd || !self.access.contains(access) {
            return None;
        }
        self.memory.as_ref().filter(|m| m.contains(addr, len))
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

    fn register(&self, pd: u32, access: Access, memory: UserMemory) -> Result<u32> {
        let number = self.take_number().ok_or(Error::Limit("memory regions"))?;
        let key = number << RANDOM_BITS | self.random_bits(number);
        let entry = Arc::new(Entry { key, pd, access, memory: Some(memory) });
        if self.table.insert(number as usize, entry).is_err() {
            self.give_back(number);
            return Err(Error::Limit("memory regions"));
        }
        Ok(key)
    }

    fn replace(&self, cx: &MaySleep, key: u32, entry: Entry) -> Result<()> {
        let number = (key >> RANDOM_BITS) as usize;
        match self.table.replace(cx, number, Arc::new(entry)) {
            Ok(_old) => Ok(()),
            Err(_unused) => Err(Error::Gone),
        }
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
    pd: u32,
    access: Access,
    /// Held while the entry is exchanged, so that no late exchange hits the next owner of the number.
    gone: Mutex<bool>,
}

impl Mr {
    pub(crate) fn register(
        context: Arc<Context>,
        pd: u32,
        memory: UserMemory,
        access: Access,
    ) -> Result<Self> {
        let remote_store = Access(access.0 & (Access::REMOTE_WRITE | Access::REMOTE_ATOMIC).0);
        if remote_store != Access::NONE && !access.contains(Access::LOCAL_WRITE) {
            return Err(Error::Invalid("remote write and atomics need local write"));
        }
        let key = context.mrs.register(pd, access, memory)?;
        Ok(Self { context, key, pd, access, gone: Mutex::new(false) })
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
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if *gone {
            return Err(Error::Gone);
        }
        let entry = Entry { key: self.key, pd: self.pd, access: self.access, memory };
        self.context.mrs.replace(cx, self.key, entry)
    }

    fn dereg(&self, cx: &MaySleep) -> Result<()> {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *gone, true) {
            return Err(Error::Gone);
        }
        self.context.mrs.deregister(cx, self.key);
        Ok(())
    }
}
