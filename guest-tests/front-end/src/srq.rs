// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shared receive queues: one ring of receive WQEs for many QPs.

use std::sync::atomic::Ordering;

use virtio_rdma_abi::ring::{Sge, SrqDeviceLine};

use crate::error::PostError;
use crate::mapping::full_fence;
use crate::memory::Buffer;
use crate::ring::WorkRing;
use crate::uar::{Doorbell, Uar, is_polled};

const MODE: usize = std::mem::offset_of!(SrqDeviceLine, mode);
const CONSUMER: usize = std::mem::offset_of!(SrqDeviceLine, consumer);

/// A shared receive queue. If it is dropped without `Driver::destroy_srq`, the device keeps it.
#[derive(Debug)]
pub struct Srq {
    srqn: u32,
    buffer: Buffer,
    ring: WorkRing,
    doorbell: Doorbell,
}

impl Srq {
    pub(crate) fn new(srqn: u32, buffer: Buffer, ring: WorkRing, doorbell: Doorbell) -> Self {
        buffer.set_with_device(true);
        Self { srqn, buffer, ring, doorbell }
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.srqn
    }

    /// Its memory, for hostile tests.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// What is posted, in a ring of `new` in `buffer`, for the device to go on with.
    pub(crate) fn copy_to(&self, new: &mut WorkRing, buffer: &Buffer) {
        self.ring.follow(&self.buffer, self.taken(), new, buffer);
    }

    /// The device goes on there.
    pub(crate) fn move_to(&mut self, ring: WorkRing, buffer: Buffer) {
        buffer.set_with_device(true);
        self.buffer.set_with_device(false);
        (self.ring, self.buffer) = (ring, buffer);
        self.ring_if_armed();
    }

    pub(crate) fn uar_slot(&self) -> (&Uar, u32) {
        (&self.doorbell.uar, self.doorbell.slot)
    }

    /// Free-running count of the WQEs that the device has taken.
    pub fn taken(&self) -> u32 {
        self.buffer.map().u32(CONSUMER).load(Ordering::Acquire)
    }

    /// Posts a receive work request for whichever QP needs one.
    #[inline]
    pub fn post_recv(&mut self, wr_id: u64, sges: &[Sge]) -> Result<(), PostError> {
        self.ring.put_recv(&self.buffer, self.taken(), wr_id, sges)?;
        self.ring_if_armed();
        Ok(())
    }

    #[inline]
    fn ring_if_armed(&self) {
        full_fence();
        let mode = self.buffer.map().u32(MODE).load(Ordering::Relaxed);
        if !is_polled(mode) {
            self.doorbell.ring(mode);
        }
    }

    /// Writes the bytes of a WQE as they are (the phase apart) and rings.
    pub fn post_recv_raw(&mut self, wqe: &[u8]) {
        self.ring.put_raw(&self.buffer, wqe);
        self.ring_if_armed();
    }
}
