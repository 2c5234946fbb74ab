// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The receive queue: the HCA takes a WQE out of guest memory when a message comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rdma_midlayer::driver::{MalformedWqe, Taken};
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::work::{MAX_SGE, RecvWqe};
use virtio_rdma_abi::ring::{RecvWqe as Layout, WQE_RECV_DATA};
use zerocopy::FromBytes;

use super::{Count, Geometry, WorkRing, sges};

const DATA: usize = WQE_RECV_DATA as usize;
/// Bytes of a WQE with all the SGEs that there can be.
const MAX_BYTES: usize = DATA + MAX_SGE * 16;
const LINE: usize = 64;

/// A receive queue in guest memory. One thread at a time takes.
pub struct RecvRing {
    ring: WorkRing,
    max_sge: u8,
    next: AtomicU32,
    taken: Count,
}

impl RecvRing {
    /// A ring whose geometry was checked against the buffer.
    pub fn new(memory: Arc<UserMemory>, geometry: Geometry, max_sge: u32) -> Self {
        let fit = ((1u32 << geometry.stride_shift) - WQE_RECV_DATA) / 16;
        Self {
            ring: WorkRing { memory, geometry },
            max_sge: max_sge.min(fit).min(MAX_SGE as u32) as u8,
            next: AtomicU32::new(0),
            taken: Count::default(),
        }
    }

    /// Whether the next slot holds a WQE.
    pub fn has_work(&self) -> bool {
        self.ring.first_word(self.next.load(Ordering::Relaxed)).is_some()
    }

    /// Whether at least `count` WQEs are there to be taken; the driver posts them in order.
    pub fn has_posted(&self, count: u32) -> bool {
        let last = self.next().wrapping_add(count).wrapping_sub(1);
        self.ring.first_word(last).is_some()
    }

    /// Free-running count of the WQEs taken since the last reset.
    pub fn next(&self) -> u32 {
        self.next.load(Ordering::Relaxed)
    }

    /// Takes the next WQE out.
    ///
    /// # Errors
    /// `MalformedWqe` if it has more SGEs than the queue may.
    pub fn take(&self, wqe: &mut RecvWqe) -> Result<Taken, MalformedWqe> {
        let n = self.next.load(Ordering::Relaxed);
        let Some(first) = self.ring.first_word(n) else { return Ok(Taken::Empty) };
        let mut bytes = [0; MAX_BYTES];
        bytes[..8].copy_from_slice(&first.to_ne_bytes());
        self.ring.read(n, 8..LINE, &mut bytes);
        let layout = Layout::read_from_prefix(&bytes).map_or_else(|_| <_>::default(), |l| l.0);
        let ticket = n.wrapping_add(1);
        let wr_id = layout.wr_id.get();
        self.next.store(ticket, Ordering::Relaxed);
        self.taken.add(1);
        if layout.num_sge > self.max_sge {
            return Err(MalformedWqe { wr_id, ticket });
        }
        let count = usize::from(layout.num_sge);
        let end = DATA + count * 16;
        if end > LINE {
            self.ring.read(n, LINE..end, &mut bytes);
        }
        wqe.set(wr_id, ticket, sges(&bytes[DATA..end], count));
        Ok(Taken::Wqe)
    }

    /// Starts over, as after RESET. The driver zeroes the ring.
    pub fn reset(&self) {
        self.next.store(0, Ordering::Relaxed);
    }

    /// WQEs taken since creation.
    pub fn taken(&self) -> u64 {
        self.taken.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::phase_of;
    use crate::ring::test_memory::memory;
    use zerocopy::IntoBytes;

    fn ring() -> RecvRing {
        let geometry = Geometry { entries: 2, offset: 0, stride_shift: 7 };
        RecvRing::new(memory(4096), geometry, 30)
    }

    fn put(ring: &RecvRing, n: u32, num_sge: u8) {
        let slot = ring.ring.slot(n);
        let phase = phase_of(n, 2) as u8;
        let list = [1u8; 112];
        ring.ring.memory.write(slot + DATA as u64, &list).unwrap();
        let wqe = Layout { num_sge, phase, wr_id: u64::from(n + 10).into(), ..Default::default() };
        ring.ring.memory.write(slot, wqe.as_bytes()).unwrap();
    }

    #[test]
    fn wqes_come_out_in_order_and_once() {
        let ring = ring();
        let mut wqe = RecvWqe::default();
        for n in 0..9 {
            assert_eq!(ring.take(&mut wqe), Ok(Taken::Empty));
            put(&ring, n, (n % 8) as u8);
            assert!(ring.has_work());
            assert_eq!(ring.take(&mut wqe), Ok(Taken::Wqe));
            assert_eq!((wqe.wr_id, wqe.ticket), (u64::from(n + 10), n + 1));
            assert_eq!(wqe.sges().len(), (n % 8) as usize);
            assert!(wqe.sges().iter().all(|s| s.length == 0x0101_0101));
        }
    }

    #[test]
    fn more_sges_than_the_stride_holds_are_malformed() {
        let ring = ring();
        for (n, num_sge) in [(0, 8), (1, 31), (2, 255)] {
            put(&ring, n, num_sge);
            let found = ring.take(&mut RecvWqe::default()).unwrap_err();
            assert_eq!((found.wr_id, found.ticket), (u64::from(n + 10), n + 1));
        }
    }
}
