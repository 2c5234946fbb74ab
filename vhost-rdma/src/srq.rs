// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver's SRQ on the data path: the HCA takes receive WQEs out of it for many QPs.

use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Where an SRQ's ring lies.
struct Place {
    memory: Arc<UserMemory>,
    ring: RecvRing,
}

impl Place {
    fn set_mode(&self, polled: bool, vector: u16) {
        if let Some(word) = self.memory.atomic_u32(MODE) {
            word.store(doorbell::mode(polled, vector).to_le(), Ordering::Release);
        }
    }

    fn set_consumer(&self) {
        if let Some(word) = self.memory.atomic_u32(CONSUMER) {
            Word32::store(word, self.ring.next(), Ordering::Release);
        }
    }
}

/// The ring of an SRQ: what the HCA too holds on to.
pub struct SrqRing {
    /// Locked for the time of a few stores: to take a WQE, or to move.
    place: Mutex<Place>,
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
        let place = Place { memory, ring };
        place.set_mode(true, vector);
        Arc::new(Self {
            place: Mutex::new(place),
            gate,
            vector,
            limit: AtomicU32::new(limit),
            limit_reached,
            doorbell: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        })
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on WQEs are taken from another ring, which holds those that were not taken yet, each at
    /// the place of its count. The ring before is not touched any more.
    pub fn move_to(&self, memory: Arc<UserMemory>, ring: RecvRing) {
        let mut place = self.place();
        ring.follow(&place.ring);
        *place = Place { memory, ring };
        if self.may_touch() {
            place.set_consumer();
            place.set_mode(!self.doorbell.load(Ordering::Relaxed), self.vector);
        }
    }

    /// Arms the limit, or disarms it with 0. The event may follow at once.
    pub fn arm_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Release);
        if self.is_low(&self.place()) {
            (self.limit_reached)();
        }
    }

    /// The limit that is armed; 0 for none.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Acquire)
    }

    /// Whether fewer WQEs than the armed limit are left; it is armed no more then.
    fn is_low(&self, place: &Place) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        limit != 0 && !place.ring.has_posted(limit) && self.limit.swap(0, Ordering::AcqRel) != 0
    }

    fn may_touch(&self) -> bool {
        self.gate.is_open() && !self.lost.load(Ordering::Acquire)
    }
}

impl RecvSource for SrqRing {
    fn take(&self, wqe: &mut RecvWqe) -> Result<Taken, MalformedWqe> {
        if !self.may_touch() {
            return Ok(Taken::Empty);
        }
        let place = self.place();
        let taken = place.ring.take(wqe);
        if taken != Ok(Taken::Empty) {
            place.set_consumer();
            let low = self.is_low(&place);
            drop(place);
            if low {
                (self.limit_reached)();
            }
        }
        taken
    }

    fn want_doorbell(&self, wanted: bool) {
        let place = self.place();
        self.doorbell.store(wanted, Ordering::Relaxed);
        if self.may_touch() {
            place.set_mode(!wanted, self.vector);
        }
        drop(place);
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
    pub fn memory(&self) -> Arc<UserMemory> {
        self.ring.place().memory.clone()
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
        self.ring.place().ring.taken()
    }
}
