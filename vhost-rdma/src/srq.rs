// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver's SRQ on the data path: the HCA takes receive WQEs out of it for many QPs.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use rdma_midlayer::driver::{MalformedWqe, RecvSource, Taken};
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::verbs::Srq;
use rdma_midlayer::work::RecvWqe;
use virtio_rdma_abi::ring::SrqDeviceLine;

use crate::device::Gate;
use crate::doorbell::{self, Word32};
use crate::ring::recv::RecvRing;

const MODE: u64 = offset_of!(SrqDeviceLine, mode) as u64;
const CONSUMER: u64 = offset_of!(SrqDeviceLine, consumer) as u64;

/// An SRQ on the data path: its ring, and the midlayer's handle.
pub struct SrqPath {
    ring: Arc<SrqRing>,
    srq: Arc<Srq>,
}

/// The ring of an SRQ: what the HCA too holds on to.
pub struct SrqRing {
    memory: Arc<UserMemory>,
    ring: RecvRing,
    gate: Arc<Gate>,
    vector: u16,
    /// 0: not armed.
    limit: AtomicU32,
    limit_reached: Box<dyn Fn() + Send + Sync>,
    doorbell: AtomicBool,
    lost: AtomicBool,
}

impl SrqRing {
    /// A ring whose geometry was checked. `limit_reached` is called when fewer WQEs than the limit are
    /// left; it never sleeps.
    pub fn new(
        memory: Arc<UserMemory>,
        ring: RecvRing,
        gate: Arc<Gate>,
        vector: u16,
        limit: u32,
        limit_reached: Box<dyn Fn() + Send + Sync>,
    ) -> Arc<Self> {
        let ring = Self {
            memory,
            ring,
            gate,
            vector,
            limit: AtomicU32::new(limit),
            limit_reached,
            doorbell: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        };
        ring.set_mode(true);
        Arc::new(ring)
    }

    /// Arms the limit, or disarms it with 0. The event may follow at once.
    pub fn arm_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Release);
        self.check_limit();
    }

    /// The limit that is armed; 0 for none.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Acquire)
    }

    fn check_limit(&self) {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit != 0 && !self.ring.has_posted(limit) && self.limit.swap(0, Ordering::AcqRel) != 0 {
            (self.limit_reached)();
        }
    }

    fn may_touch(&self) -> bool {
        self.gate.is_open() && !self.lost.load(Ordering::Acquire)
    }

    fn set_mode(&self, polled: bool) {
        if let Some(word) = self.memory.atomic_u32(MODE) {
            word.store(doorbell::mode(polled, self.vector).to_le(), Ordering::Release);
        }
    }
}

impl RecvSource for SrqRing {
    fn take(&self, wqe: &mut RecvWqe) -> Result<Taken, MalformedWqe> {
        if !self.may_touch() {
            return Ok(Taken::Empty);
        }
        let taken = self.ring.take(wqe);
        if taken != Ok(Taken::Empty) {
            if let Some(word) = self.memory.atomic_u32(CONSUMER) {
                Word32::store(word, self.ring.next(), Ordering::Release);
            }
            self.check_limit();
        }
        taken
    }

    fn want_doorbell(&self, wanted: bool) {
        self.doorbell.store(wanted, Ordering::Relaxed);
        if self.may_touch() {
            self.set_mode(!wanted);
        }
        // The driver: post, fence, read the mode. The HCA looks at the ring after this.
        fence(Ordering::SeqCst);
    }
}

impl SrqPath {
    /// Puts the ring of a new SRQ to use.
    pub fn new(ring: Arc<SrqRing>, srq: Arc<Srq>) -> Arc<Self> {
        Arc::new(Self { ring, srq })
    }

    /// The midlayer's handle.
    pub fn srq(&self) -> &Arc<Srq> {
        &self.srq
    }

    /// The ring.
    pub fn ring(&self) -> &SrqRing {
        &self.ring
    }

    /// Its buffer in guest memory.
    pub fn memory(&self) -> &UserMemory {
        &self.ring.memory
    }

    /// The memory behind the ring is gone: from here on it is empty.
    pub fn lose(&self) {
        self.ring.lost.store(true, Ordering::Release);
    }

    /// The driver rang: a worker found the SRQ's bit. Never sleeps.
    pub fn rang(&self) {
        if self.ring.doorbell.load(Ordering::Relaxed) {
            let _ = self.srq.recv_posted();
        }
    }

    /// WQEs taken since creation.
    pub fn taken(&self) -> u64 {
        self.ring.ring.taken()
    }
}
