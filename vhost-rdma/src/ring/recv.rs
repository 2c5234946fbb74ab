// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The receive queue: the HCA takes a WQE out of guest memory when a message comes.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rdma_midlayer::driver::{MalformedWqe, Taken};
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::work::{MAX_SGE, RecvWqe, ShortRecv};
use virtio_rdma_abi::ring::{RecvWqe as Layout, WQE_RECV_DATA};

use super::{Count, Geometry, LINE, LINE_WORDS, WorkRing, put_words, sge, sges};

const DATA: usize = WQE_RECV_DATA as usize;
/// Bytes of a WQE with all the SGEs that there can be.
const MAX_BYTES: usize = DATA + MAX_SGE * 16;

// The words of the first line, as `take` reads them.
const _: () = assert!(offset_of!(Layout, num_sge) == 2 && offset_of!(Layout, wr_id) == 8);

/// A receive queue in guest memory. One thread at a time takes.
pub struct RecvRing {
    ring: WorkRing,
    max_sge: u8,
    next: AtomicU32,
    taken: Count,
}

impl RecvRing {
    /// A ring whose geometry was checked against the buffer. `None` if it is not in the memory.
    pub fn new(memory: &Arc<UserMemory>, geometry: Geometry, max_sge: u32) -> Option<Self> {
        let fit = ((1u32 << geometry.stride_shift) - WQE_RECV_DATA) / 16;
        Some(Self {
            ring: WorkRing::new(memory, geometry)?,
            max_sge: max_sge.min(fit).min(MAX_SGE as u32) as u8,
            next: AtomicU32::new(0),
            taken: Count::default(),
        })
    }

    /// Whether the next slot holds a WQE.
    pub fn has_work(&self) -> bool {
        self.ring.is_new(self.next.load(Ordering::Relaxed))
    }

    /// Whether at least `count` WQEs are there to be taken; the driver posts them in order.
    pub fn has_posted(&self, count: u32) -> bool {
        let last = self.next().wrapping_add(count).wrapping_sub(1);
        self.ring.is_new(last)
    }

    /// Free-running count of the WQEs taken since the last reset.
    pub fn next(&self) -> u32 {
        self.next.load(Ordering::Relaxed)
    }

    /// Shows the next WQEs, up to the first that is not there or not of one SGE; how many.
    #[inline]
    pub fn peek_short(&self, list: &mut [ShortRecv]) -> usize {
        let mut n = self.next();
        let mut count = 0;
        if self.max_sge == 0 {
            return count;
        }
        let slots = self.ring.slots();
        for to in list {
            let Some((line, first)) = slots.new_slot(n) else { break };
            if (first >> 16) as u8 != 1 {
                break;
            }
            let word = |n: usize| u64::from_le(line[n].load(Ordering::Relaxed));
            n = n.wrapping_add(1);
            let sge = sge(word(DATA / 8), word(DATA / 8 + 1));
            *to = ShortRecv { wr_id: word(1), ticket: n, sge };
            count += 1;
        }
        count
    }

    /// Takes out `count` WQEs that were shown.
    #[inline]
    pub fn advance(&self, count: usize) {
        self.next.store(self.next().wrapping_add(count as u32), Ordering::Relaxed);
        self.taken.add(count as u64);
    }

    /// Takes the next WQE out.
    ///
    /// # Errors
    /// `MalformedWqe` if it has more SGEs than the queue may.
    pub fn take(&self, wqe: &mut RecvWqe) -> Result<Taken, MalformedWqe> {
        let n = self.next.load(Ordering::Relaxed);
        let Some(line) = self.ring.first_line(n) else { return Ok(Taken::Empty) };
        let ticket = n.wrapping_add(1);
        let (num_sge, wr_id) = ((line[0] >> 16) as u8, line[1]);
        self.next.store(ticket, Ordering::Relaxed);
        self.taken.add(1);
        if num_sge > self.max_sge {
            return Err(MalformedWqe { wr_id, ticket });
        }
        let count = usize::from(num_sge);
        let end = DATA + count * 16;
        if end <= LINE {
            let pairs = line[DATA / 8..].as_chunks::<2>().0;
            wqe.set(wr_id, ticket, pairs.iter().take(count).map(|pair| sge(pair[0], pair[1])));
        } else {
            self.take_long(&line, n, end, wqe);
        }
        Ok(Taken::Wqe)
    }

    /// Takes a WQE of more than a line.
    #[cold]
    fn take_long(&self, line: &[u64; LINE_WORDS], n: u32, end: usize, wqe: &mut RecvWqe) {
        let mut bytes = [0; MAX_BYTES];
        put_words(line, 0, &mut bytes);
        self.ring.read(n, LINE..end, &mut bytes);
        let count = (end - DATA) / 16;
        wqe.set(line[1], n.wrapping_add(1), sges(&bytes[DATA..end], count));
    }

    /// Starts over, as after RESET. The driver zeroes the ring.
    pub fn reset(&self) {
        self.next.store(0, Ordering::Relaxed);
    }

    /// Goes on where another ring stopped.
    pub fn follow(&self, before: &Self) {
        self.next.store(before.next(), Ordering::Relaxed);
        self.taken.add(before.taken());
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
        RecvRing::new(&memory(4096), geometry, 30).unwrap()
    }

    fn put(ring: &RecvRing, n: u32, num_sge: u8) {
        let slot = ring.ring.slot(n);
        let phase = phase_of(n, 2) as u8;
        let list = [1u8; 112];
        ring.ring.memory().write(slot + DATA as u64, &list).unwrap();
        let wqe = Layout { num_sge, phase, wr_id: u64::from(n + 10).into(), ..Default::default() };
        ring.ring.memory().write(slot, wqe.as_bytes()).unwrap();
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
    fn wqes_of_one_sge_are_shown_before_they_are_taken() {
        let geometry = Geometry { entries: 8, offset: 0, stride_shift: 6 };
        let ring = RecvRing::new(&memory(4096), geometry, 3).unwrap();
        let mut list = [ShortRecv::default(); 5];
        for n in 0..8u32 {
            let slot = ring.ring.slot(n);
            let num_sge = if n == 6 { 2 } else { 1 };
            let wr_id = u64::from(n).into();
            let wqe = Layout { num_sge, phase: phase_of(n, 8) as u8, wr_id, ..Default::default() };
            ring.ring.memory().write(slot + DATA as u64, &[n as u8; 16]).unwrap();
            ring.ring.memory().write(slot, wqe.as_bytes()).unwrap();
        }
        assert_eq!((ring.peek_short(&mut list), ring.peek_short(&mut list[..2])), (5, 2));
        for (n, wqe) in (0..).zip(&list) {
            let sge =
                sge(0x0101_0101_0101_0101 * u64::from(n), 0x0101_0101_0101_0101 * u64::from(n));
            assert_eq!((wqe.wr_id, wqe.ticket, wqe.sge), (n.into(), n + 1, sge));
        }
        ring.advance(4);
        assert_eq!((ring.peek_short(&mut list), list[0].wr_id), (2, 4), "up to one of two SGEs");
        let mut wqe = RecvWqe::default();
        for n in 4..8 {
            assert_eq!((ring.take(&mut wqe), wqe.wr_id), (Ok(Taken::Wqe), n));
        }
        assert_eq!((ring.peek_short(&mut list), ring.taken(), ring.next()), (0, 8, 8));
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
