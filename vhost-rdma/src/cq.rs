// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One CQ of a driver on the data path: the HCA pushes completions into its ring, the dispatcher asks
//! afterwards whether the driver wants an event.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use rdma_midlayer::driver::{CqMemory, Overflow};
use rdma_midlayer::work::WorkCompletion;

use crate::device::Gate;
use crate::ring::cq::CqRing;

/// The data path of a CQ.
pub struct CqPath {
    ring: CqRing,
    gate: Arc<Gate>,
    vector: u16,
    cqn: OnceLock<u32>,
    /// The memory behind the ring is gone.
    lost: AtomicBool,
    /// Waits in its completion virtqueue.
    queued: AtomicBool,
    /// The arming whose event is due, or 0.
    due: AtomicU32,
}

impl CqPath {
    /// The path of a CQ whose ring was checked. `name` gives it the number.
    pub fn new(ring: CqRing, gate: Arc<Gate>, vector: u16) -> Arc<Self> {
        Arc::new(Self {
            ring,
            gate,
            vector,
            cqn: OnceLock::new(),
            lost: AtomicBool::new(false),
            queued: AtomicBool::new(false),
            due: AtomicU32::new(0),
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

    /// The ring.
    pub fn ring(&self) -> &CqRing {
        &self.ring
    }

    /// The memory behind the ring is gone: from here on a completion is an overflow.
    pub fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// Whether the driver wants an event now; if so it is due. Never sleeps.
    pub fn check_arm(&self, solicited: bool) -> bool {
        if self.lost.load(Ordering::Acquire) || !self.gate.is_open() {
            return false;
        }
        match self.ring.take_arm(solicited) {
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
        if self.lost.load(Ordering::Acquire) || !self.gate.is_open() {
            return Err(Overflow);
        }
        self.ring.push(wc)
    }
}
