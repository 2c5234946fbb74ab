// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rings of a driver, from the device's side: each turns bytes in guest memory into plain values
//! of the midlayer, or the other way. What they mean is `docs/virtio-rdma.md`, "Rings".
//!
//! Everything is read once, into memory of ours, and checked there.

pub mod cq;
pub mod recv;
pub mod send;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rdma_midlayer::memory::{Lines, LinesView, UserMemory};
use rdma_midlayer::types::LKey;
use rdma_midlayer::work::{MAX_SGE, Sge};
use virtio_rdma_abi::ring::{WQE_STRIDE_SHIFT_MAX, WQE_STRIDE_SHIFT_MIN};
use zerocopy::FromBytes;

/// Words of 64 bits in a line, the first of which holds the phase.
const LINE_WORDS: usize = 8;
/// Bytes of a line.
const LINE: usize = 1 << LINE_SHIFT;
const LINE_SHIFT: u8 = 6;

/// Bytes of the largest WQE.
pub const MAX_STRIDE: usize = 1 << WQE_STRIDE_SHIFT_MAX;

/// Where a work queue lies, as CREATE_QP gives it.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Slots: a power of two.
    pub entries: u32,
    /// Bytes from the start of the buffer.
    pub offset: u32,
    /// A slot is `2^shift` bytes.
    pub stride_shift: u8,
}

impl Geometry {
    /// Whether it is sound, and lies within `first..end` of the buffer.
    pub fn is_sound(&self, first: u32, end: u64, max_entries: u32) -> bool {
        self.entries.is_power_of_two()
            && self.entries <= max_entries
            && (WQE_STRIDE_SHIFT_MIN..=WQE_STRIDE_SHIFT_MAX).contains(&u32::from(self.stride_shift))
            && self.offset.is_multiple_of(64)
            && self.offset >= first
            && self.range().end <= end
    }

    /// The bytes that it takes in the buffer.
    pub fn range(&self) -> std::ops::Range<u64> {
        let start = u64::from(self.offset);
        start..start + (u64::from(self.entries) << self.stride_shift)
    }
}

/// A ring of WQEs in the buffer of a QP.
struct WorkRing {
    lines: Lines,
    geometry: Geometry,
}

impl WorkRing {
    /// Where the geometry says. `None` if that is not in the memory.
    fn new(memory: &Arc<UserMemory>, geometry: Geometry) -> Option<Self> {
        let count = geometry.entries << (geometry.stride_shift.checked_sub(LINE_SHIFT)?);
        Some(Self { lines: Lines::new(memory, geometry.offset.into(), count)?, geometry })
    }

    fn slot(&self, n: u32) -> u64 {
        let index = n & (self.geometry.entries - 1);
        u64::from(self.geometry.offset) + (u64::from(index) << self.geometry.stride_shift)
    }

    /// Whether the phase of slot `n` says that it is new.
    fn is_new(&self, n: u32) -> bool {
        self.slots().new_slot(n).is_some()
    }

    /// The slots, for loops.
    #[inline(always)]
    fn slots(&self) -> Slots<'_> {
        let Geometry { entries, stride_shift, .. } = self.geometry;
        Slots { lines: self.lines.view(), entries, lines_shift: stride_shift - LINE_SHIFT }
    }

    /// The first line of slot `n`, each word read once, if it is new.
    #[inline]
    fn first_line(&self, n: u32) -> Option<[u64; LINE_WORDS]> {
        let (line, first) = self.slots().new_slot(n)?;
        // Without a loop: this is the path of every post.
        let word = |n: usize| u64::from_le(line[n].load(Ordering::Relaxed));
        Some([first, word(1), word(2), word(3), word(4), word(5), word(6), word(7)])
    }

    /// Copies `range` of slot `n`. The ring was checked to lie in its memory.
    fn read(&self, n: u32, range: std::ops::Range<usize>, to: &mut [u8]) {
        let at = self.slot(n) + range.start as u64;
        let _ = self.memory().read(at, &mut to[range]);
    }

    fn memory(&self) -> &UserMemory {
        self.lines.memory()
    }

    fn stride(&self) -> usize {
        1 << self.geometry.stride_shift
    }
}

/// The slots of a ring.
#[derive(Clone, Copy)]
struct Slots<'a> {
    lines: LinesView<'a>,
    entries: u32,
    /// A slot is `2^shift` lines.
    lines_shift: u8,
}

impl<'a> Slots<'a> {
    /// Slot `n`'s first line and the line's first word, if its phase says that it is new.
    #[inline(always)]
    fn new_slot(&self, n: u32) -> Option<(&'a [AtomicU64; LINE_WORDS], u64)> {
        let line = self.lines.get((n & (self.entries - 1)) << self.lines_shift)?;
        let first = u64::from_le(line[0].load(Ordering::Acquire));
        (first >> 24 & 1 == phase_of(n, self.entries)).then_some((line, first))
    }
}

/// The bytes of a line's words from number `first` on, to where they belong in a WQE.
fn put_words(line: &[u64; LINE_WORDS], first: usize, to: &mut [u8]) {
    for (to, word) in to.as_chunks_mut::<8>().0.iter_mut().zip(line).skip(first) {
        *to = word.to_le_bytes();
    }
}

/// The phase that marks slot `n` (counted without end) of a ring as new.
#[inline]
fn phase_of(n: u32, entries: u32) -> u64 {
    u64::from(1 ^ (n >> entries.trailing_zeros() & 1))
}

/// An SGE as two words.
#[inline]
fn sge(addr: u64, rest: u64) -> Sge {
    Sge { addr, length: rest as u32, lkey: LKey((rest >> 32) as u32) }
}

/// The SGEs in WQE bytes.
fn sges(bytes: &[u8], count: usize) -> impl Iterator<Item = Sge> {
    bytes.as_chunks::<16>().0.iter().take(count.min(MAX_SGE)).map(|chunk| {
        // 16 bytes are an `Sge`, whatever they hold.
        let sge = virtio_rdma_abi::ring::Sge::read_from_bytes(chunk).unwrap_or_default();
        Sge { addr: sge.addr.get(), length: sge.length.get(), lkey: LKey(sge.lkey.get()) }
    })
}

/// A count that one thread at a time advances and any may read.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds, wrapping, without an atomic read-modify-write: there is one writer.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
pub(crate) mod test_memory {
    use super::*;
    use rdma_midlayer::memory::{Mapping, Run};

    struct Owned(Box<[AtomicU64]>);

    // SAFETY: the box lives as long as the value; atomics may be written through a shared pointer.
    unsafe impl Mapping for Owned {
        fn base(&self) -> *mut u8 {
            let start = self.0.as_ptr().cast_mut().cast::<u8>();
            start.wrapping_add(start.align_offset(4096))
        }
        fn len(&self) -> usize {
            self.0.len() * 8 - 4096
        }
    }

    /// Zeroed memory under the addresses 0 to `bytes - 1`, of pages in reverse order.
    pub fn memory(bytes: usize) -> Arc<UserMemory> {
        let mapping: Arc<dyn Mapping> =
            Arc::new(Owned((0..bytes / 8 + 512).map(|_| AtomicU64::new(0)).collect()));
        let runs = (0..bytes / 4096).rev().map(|page| Run {
            mapping: mapping.clone(),
            offset: page * 4096,
            len: 4096,
        });
        Arc::new(UserMemory::new(0, bytes as u64, 0, Some(12), runs).unwrap())
    }
}
