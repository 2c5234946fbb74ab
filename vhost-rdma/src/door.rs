// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The doorbells of one device, as the workers see them: its UARs, its status page, its kicks.
//! A `Door` does not change: another set of UARs is another door.

use std::fs::File;
use std::io::Read;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdma_midlayer::memory::{Lines, UserMemory};
use rdma_midlayer::rcu;
use virtio_rdma_abi::doorbell::{UAR_BITMAP_OFFSET, UarHeader, VectorStatus};

use crate::device::Gate;
use crate::doorbell::{self, Machine, Word64};
use crate::qp::QpPath;
use crate::srq::SrqPath;
use crate::worker::{self, Worker};

const LINE: u64 = 64;
/// Words of 64 bits in a UAR.
const SUMMARY: usize = offset_of!(UarHeader, summary) / 8;
const BITMAP: usize = UAR_BITMAP_OFFSET as usize / 8;
const STATUS_BYTES: u64 = size_of::<VectorStatus>() as u64;

/// Who rings with a slot of a UAR.
pub enum Slot {
    /// A QP, for both of its queues.
    Qp(Arc<QpPath>),
    /// An SRQ.
    Srq(Arc<SrqPath>),
}

/// A user access region.
pub struct Uar {
    /// The header, and the bitmap behind it.
    lines: Lines,
    slots: rcu::Table<Slot>,
}

impl Uar {
    /// A region in `memory`, under the addresses from 0. `None` if it can't be one.
    pub fn new(memory: UserMemory) -> Option<Self> {
        let bitmap = memory.len().checked_sub(UAR_BITMAP_OFFSET.into())?;
        let lines = u32::try_from(memory.len() / LINE).ok()?;
        let lines = Lines::new(&Arc::new(memory), 0, lines)?;
        Some(Self { lines, slots: rcu::Table::new(bitmap as usize * 8) })
    }

    /// Slots that the region has.
    pub fn num_slots(&self) -> u64 {
        (self.memory().len() - u64::from(UAR_BITMAP_OFFSET)) * 8
    }

    /// Who rings, by slot.
    pub fn slots(&self) -> &rcu::Table<Slot> {
        &self.slots
    }

    /// Its memory.
    pub fn memory(&self) -> &UserMemory {
        self.lines.memory()
    }

    /// Word number `n` of the region.
    #[inline]
    fn word(&self, n: usize) -> Option<&AtomicU64> {
        Some(&self.lines.get((n / 8) as u32)?[n % 8])
    }

    fn is_pending(&self) -> bool {
        self.word(SUMMARY).is_some_and(|s| Word64::load(s, Ordering::Relaxed) != 0)
    }

    #[inline]
    fn take_pending(&self, budget: &mut u32) {
        let Some(summary) = self.word(SUMMARY) else { return };
        let word = |i: usize| self.word(BITMAP + i);
        doorbell::take_pending(summary, word, budget, |slot| {
            let guard = rcu::enter();
            match self.slots.get(slot as usize, &guard) {
                Some(Slot::Qp(qp)) => qp.rang(),
                Some(Slot::Srq(srq)) => srq.rang(),
                None => {}
            }
        });
    }
}

/// The kick descriptors of a device's doorbell virtqueues, by vector.
#[derive(Default)]
pub struct Kicks {
    files: Mutex<Vec<Option<Arc<File>>>>,
}

impl Kicks {
    fn files(&self) -> MutexGuard<'_, Vec<Option<Arc<File>>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts another descriptor behind a vector's doorbell, which `worker` waits for. May sleep.
    pub fn set(&self, vector: usize, kick: Option<File>, worker: &Worker) {
        let mut files = self.files();
        if files.len() <= vector {
            files.resize(vector + 1, None);
        }
        let kick = kick.map(Arc::new);
        if let Some(kick) = &kick
            && let Err(e) = worker.watch(kick)
        {
            log::error!("a doorbell of vector {vector} can't be watched: {e}");
        }
        if let Some(old) = std::mem::replace(&mut files[vector], kick) {
            worker.unwatch(&old);
        }
    }

    /// Whether the descriptor is one of these; if so, its count is read away.
    fn consume(&self, descriptor: i32) -> bool {
        let kick = self.files().iter().flatten().find(|f| f.as_raw_fd() == descriptor).cloned();
        kick.is_some_and(|kick| matches!((&*kick).read(&mut [0; 8]), Ok(8)))
    }
}

/// What the doorbells of a VM may cost in one turn: 16 of them, say. A storm of them must not hold up
/// other VMs.
const RINGS_BUDGET: u32 = 128;

/// UARs of a VM that are looked at in one turn.
const UARS_A_TURN: usize = 32;

/// What the workers need of a device.
pub struct Door {
    /// Closed: not to be touched.
    pub gate: Arc<Gate>,
    /// The status page, under the addresses from 0.
    pub status: Arc<UserMemory>,
    /// Vectors in use.
    pub vectors: u16,
    /// All workers; vector `v` belongs to number `first + v`, modulo their count.
    pub workers: Arc<[Arc<Worker>]>,
    /// See `workers`.
    pub first: usize,
    /// All UARs.
    pub uars: Vec<Arc<Uar>>,
    /// The doorbells.
    pub kicks: Arc<Kicks>,
    /// The UAR that was looked at last.
    pub next: AtomicUsize,
}

impl Door {
    /// Hands QPs that rang to their workers: all, unless there are very many. Never sleeps.
    pub fn take_pending(&self) {
        if !self.gate.is_open() || self.uars.is_empty() {
            return;
        }
        let mut budget = RINGS_BUDGET;
        let (count, mut at) = (self.uars.len(), self.next.load(Ordering::Relaxed));
        for _ in 0..count.min(UARS_A_TURN) {
            if budget == 0 {
                break;
            }
            at = if at + 1 < count { at + 1 } else { 0 };
            self.uars[at].take_pending(&mut budget);
        }
        // One process's storm leaves the next turn to the next process.
        if count > 1 {
            self.next.store(at, Ordering::Relaxed);
        }
    }

    /// Announces that a worker sleeps; false, and not announced, if something is pending.
    pub fn fall_asleep(&self, worker: usize) -> bool {
        if !self.gate.is_open() {
            return true;
        }
        let words = self.status_words(worker);
        let pending = || self.uars.iter().any(|uar| uar.is_pending());
        let asleep = doorbell::fall_asleep::<Machine, AtomicU32>(words, pending);
        if asleep {
            self.gate.counters().worker_sleeps.fetch_add(1, Ordering::Relaxed);
        }
        asleep
    }

    /// Announces that the worker is awake.
    pub fn wake_up(&self, worker: usize) {
        if self.gate.is_open() {
            doorbell::wake_up(self.status_words(worker));
        }
    }

    /// A descriptor became readable: reads it, and counts it if it is one of this device's.
    pub fn kicked(&self, descriptor: i32) {
        if self.kicks.consume(descriptor) {
            self.gate.counters().doorbell_kicks.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn status_words(&self, worker: usize) -> impl Iterator<Item = &AtomicU32> + Clone {
        (0..self.vectors)
            .filter(move |v| worker::of_vector(&self.workers, self.first, *v).index() == worker)
            .filter_map(|v| self.status.atomic_u32(u64::from(v) * STATUS_BYTES))
    }
}
