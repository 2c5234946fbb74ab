// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The doorbell: user access regions, the status page, and the slow half of a post; and the counts
//! of free WQEs that a poll hands to the QPs.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use virtio_rdma_abi::doorbell::{MODE_POLLED, MODE_VECTOR_SHIFT, UAR_BITMAP_OFFSET, VectorStatus};

use crate::mapping::full_fence;
use crate::memory::Buffer;
use crate::queues::Queues;

/// A user access region: where a process shows the device which of its QPs have work. Cheap to
/// clone; dropping it does not destroy it (`Driver::destroy_uar`).
#[derive(Clone, Debug)]
pub struct Uar(Arc<UarInner>);

#[derive(Debug)]
struct UarInner {
    number: u32,
    buffer: Buffer,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    next: u32,
    free: Vec<u32>,
}

impl Uar {
    pub(crate) fn new(number: u32, buffer: Buffer) -> Self {
        Self(Arc::new(UarInner { number, buffer, slots: Mutex::default() }))
    }

    /// The device's number of it.
    pub fn number(&self) -> u32 {
        self.0.number
    }

    /// Its memory.
    pub fn buffer(&self) -> &Buffer {
        &self.0.buffer
    }

    /// Slots in it.
    pub fn slots(&self) -> u32 {
        (self.0.buffer.len() as u32 - UAR_BITMAP_OFFSET) / 8 * 64
    }

    /// A slot that no QP uses; `None` when there is none left.
    pub fn take_slot(&self) -> Option<u32> {
        let mut slots = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.free.pop() {
            return Some(slot);
        }
        let slot = slots.next;
        (slot < self.slots()).then(|| {
            slots.next += 1;
            slot
        })
    }

    /// Gives a slot back.
    pub fn free_slot(&self, slot: u32) {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner).free.push(slot);
    }
}

/// What a QP rings.
#[derive(Debug)]
pub(crate) struct Doorbell {
    pub(crate) uar: Uar,
    pub(crate) slot: u32,
    pub(crate) status_page: Arc<Buffer>,
    pub(crate) queues: Arc<Queues>,
}

impl Doorbell {
    /// What follows a post when the mode word is not POLLED: shows the slot, and notifies the
    /// vector's worker if it sleeps. True if it was notified.
    #[cold]
    pub(crate) fn ring(&self, mode: u32) -> bool {
        let map = self.uar.0.buffer.map();
        let word = self.slot as usize / 64;
        let bitmap = UAR_BITMAP_OFFSET as usize;
        map.u64(bitmap + 8 * word).fetch_or(1 << (self.slot % 64), Ordering::SeqCst);
        map.u64(0).fetch_or(1 << (word % 64), Ordering::SeqCst);
        full_fence();
        let vector = mode >> MODE_VECTOR_SHIFT;
        let Some(doorbell) = self.queues.doorbell(vector) else { return false };
        let line = vector as usize * size_of::<VectorStatus>();
        if self.status_page.map().u32(line).load(Ordering::Acquire) == 0 {
            return false;
        }
        doorbell.kick();
        true
    }
}

/// Whether the device polls the queue by itself.
#[inline(always)]
pub(crate) fn is_polled(mode: u32) -> bool {
    mode & MODE_POLLED != 0
}

/// WQEs of each QP that polled completions have freed, found by QPN without a lock.
#[derive(Debug)]
pub(crate) struct QpTable {
    top: Box<[OnceLock<Box<[Freed]>>]>,
}

const LEAF_BITS: u32 = 10;

/// Free-running counts of one QP.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    pub(crate) sq: AtomicU32,
    pub(crate) rq: AtomicU32,
}

impl QpTable {
    pub(crate) fn new() -> Self {
        Self { top: (0..1 << (24 - LEAF_BITS)).map(|_| OnceLock::new()).collect() }
    }

    /// Counts of a new QP, from zero; `None` if the QPN has more than 24 bits.
    pub(crate) fn start(&self, qpn: u32) -> Option<&Freed> {
        let leaf = self.top.get((qpn >> LEAF_BITS) as usize)?;
        let leaf = leaf.get_or_init(|| (0..1 << LEAF_BITS).map(|_| Freed::default()).collect());
        let freed = &leaf[(qpn & ((1 << LEAF_BITS) - 1)) as usize];
        freed.sq.store(0, Ordering::Release);
        freed.rq.store(0, Ordering::Release);
        Some(freed)
    }

    /// Counts of a QP; `None` if there was never one in that part of the table.
    #[inline]
    pub(crate) fn get(&self, qpn: u32) -> Option<&Freed> {
        let leaf = self.top.get((qpn >> LEAF_BITS) as usize)?.get()?;
        leaf.get((qpn & ((1 << LEAF_BITS) - 1)) as usize)
    }
}
