// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One CQ of a driver on the data path: the HCA pushes completions into its ring, the dispatcher asks
//! afterwards whether the driver wants an event. Holding events back is in `moderation`.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rdma_midlayer::driver::{CqMemory, Overflow};
use rdma_midlayer::types::{Qpn, WcOpcode};
use rdma_midlayer::work::WorkCompletion;

use crate::device::Gate;
use crate::moderation::Moderation;
use crate::ring::cq::CqRing;

/// The data path of a CQ.
pub struct CqPath {
    /// The ring that the CQ was created with.
    first: CqRing,
    /// There is another one: `later` counts.
    resized: AtomicBool,
    /// The ring of the last resize. Locked for the time of a copy.
    later: Mutex<Option<Arc<CqRing>>>,
    gate: Arc<Gate>,
    vector: u16,
    cqn: OnceLock<u32>,
    /// The memory behind the ring is gone.
    lost: AtomicBool,
    /// Waits in its completion virtqueue.
    queued: AtomicBool,
    /// The arming whose event is due, or 0.
    due: AtomicU32,
    /// When an armed CQ gets its event.
    moderation: Moderation,
}

impl CqPath {
    /// The path of a CQ whose ring was checked. `name` gives it the number.
    pub fn new(ring: CqRing, gate: Arc<Gate>, vector: u16) -> Arc<Self> {
        Arc::new(Self {
            first: ring,
            resized: AtomicBool::new(false),
            later: Mutex::new(None),
            gate,
            vector,
            cqn: OnceLock::new(),
            lost: AtomicBool::new(false),
            queued: AtomicBool::new(false),
            due: AtomicU32::new(0),
            moderation: Moderation::default(),
        })
    }

    /// Gives the path the number of its CQ.
    pub fn name(&self, cqn: u32) {
        let _ = self.cqn.set(cqn);
    }

    /// The CQ's number; 0 before `name`.
    pub fn cqn(&self) -> u32 {
        self.cqn.get().copied().unwrap_or(0)
    }

    /// The vector whose completion virtqueue gets its events.
    pub fn vector(&self) -> u16 {
        self.vector
    }

    /// When the driver wants its events.
    pub fn moderation(&self) -> &Moderation {
        &self.moderation
    }

    /// Looks at the ring in use.
    #[inline]
    pub fn with_ring<R>(&self, look: impl FnOnce(&CqRing) -> R) -> R {
        if self.resized.load(Ordering::Acquire)
            && let Some(ring) = self.later().clone()
        {
            return look(&ring);
        }
        look(&self.first)
    }

    fn later(&self) -> MutexGuard<'_, Option<Arc<CqRing>>> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The HCA pushes to `ring` from here on, and so this is where the driver arms. Who looked at the
    /// ring before may do so until it leaves its RCU section.
    pub fn move_to(&self, ring: Arc<CqRing>) {
        *self.later() = Some(ring);
        self.resized.store(true, Ordering::Release);
    }

    /// The memory behind the ring is gone: from here on a completion is an overflow.
    pub fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }

    fn may_touch(&self) -> bool {
        !self.lost.load(Ordering::Acquire) && self.gate.is_open()
    }

    /// Whether the driver wants an event now; if so it is due. Never sleeps.
    pub fn check_arm(&self, solicited: bool) -> bool {
        self.may_touch() && self.with_ring(|ring| self.check_arm_of(ring, solicited))
    }

    /// As `check_arm`, of a ring that this CQ had.
    pub fn check_arm_of(&self, ring: &CqRing, solicited: bool) -> bool {
        match ring.take_arm(solicited) {
            Some(arm) => {
                self.due.store(arm, Ordering::Release);
                true
            }
            None => false,
        }
    }

    /// Whether it has to be put into the completion virtqueue's list, where it is at most once.
    pub fn queue_event(&self) -> bool {
        !self.queued.swap(true, Ordering::AcqRel)
    }

    /// Out of the list: the arming whose event is due.
    pub fn take_event(&self) -> Option<u32> {
        self.queued.store(false, Ordering::Release);
        Some(self.due.swap(0, Ordering::AcqRel)).filter(|arm| *arm != 0)
    }

    /// The event could not be told: it stays due, unless a newer one is.
    pub fn return_event(&self, arm: u32) {
        let _ = self.due.compare_exchange(0, arm, Ordering::AcqRel, Ordering::Relaxed);
    }
}

impl CqMemory for CqPath {
    fn push(&self, wc: &WorkCompletion) -> Result<(), Overflow> {
        if !self.may_touch() {
            return Err(Overflow);
        }
        self.first.push(wc)
    }

    fn push_sent(
        &self,
        wr_id: u64,
        ticket: u32,
        opcode: WcOpcode,
        qpn: Qpn,
        byte_len: u32,
    ) -> Result<(), Overflow> {
        if !self.may_touch() {
            return Err(Overflow);
        }
        self.first.push_sent(wr_id, ticket, opcode, qpn, byte_len)
    }

    fn is_armed(&self) -> bool {
        self.may_touch() && self.first.is_armed()
    }

    fn overflowed(&self) {
        if self.may_touch() {
            self.first.mark_overflowed();
        }
    }

    fn moved(&self) {
        if self.may_touch() {
            self.first.end();
        }
    }
}

/// The ring of a resize, as the HCA pushes to it.
pub struct ResizedCq {
    /// The CQ.
    pub path: Arc<CqPath>,
    /// Its new ring.
    pub ring: Arc<CqRing>,
}

impl CqMemory for ResizedCq {
    fn push(&self, wc: &WorkCompletion) -> Result<(), Overflow> {
        if !self.path.may_touch() {
            return Err(Overflow);
        }
        self.ring.push(wc)
    }

    fn push_sent(
        &self,
        wr_id: u64,
        ticket: u32,
        opcode: WcOpcode,
        qpn: Qpn,
        byte_len: u32,
    ) -> Result<(), Overflow> {
        if !self.path.may_touch() {
            return Err(Overflow);
        }
        self.ring.push_sent(wr_id, ticket, opcode, qpn, byte_len)
    }

    fn is_armed(&self) -> bool {
        self.path.may_touch() && self.ring.is_armed()
    }

    fn overflowed(&self) {
        if self.path.may_touch() {
            self.ring.mark_overflowed();
        }
    }

    fn moved(&self) {
        if self.path.may_touch() {
            self.ring.end();
        }
    }
}
