// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that is looked at again and again, found with little more than an index: the lines of a ring,
//! and the part of an MR where the last request pointed. How memory is laid out is `memory.rs`.

use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::{Layout, Span, UserMemory};

/// Bytes of a line.
const LINE: u64 = 64;
/// Lines that lie together for certain: those of a page of 4 KiB.
const TOGETHER: u64 = 64;

/// Lines of 64 bytes, one behind the other in the consumer's memory, written by others at any time: a
/// ring's. Where each page of them is was found out beforehand.
pub struct Lines {
    /// Keeps what `pages` points into.
    memory: Arc<UserMemory>,
    /// The first byte of each page of 4 KiB.
    pages: Box<[*mut u8]>,
    /// Lines of the first page that are before ours.
    skip: u32,
    count: u32,
}

// SAFETY: the pointers point into mappings that are `Send + Sync` and are kept alive by `memory`; what is
// behind them is only lent as atomics.
unsafe impl Send for Lines {}
// SAFETY: as above.
unsafe impl Sync for Lines {}

impl Lines {
    /// `count` lines of `memory`, the first of them `at` bytes from its start. `None` if they are out of
    /// range, not aligned, or in memory that has holes, or whose pages are smaller or were not told.
    pub fn new(memory: &Arc<UserMemory>, at: u64, count: u32) -> Option<Self> {
        let offset = match &memory.layout {
            Layout::Contiguous(_) => 0,
            Layout::Paged { shift, offset, .. } if *shift >= 12 => *offset,
            _ => return None,
        };
        let skip = (offset.checked_add(at)? / LINE) % TOGETHER;
        let mut pages = Vec::new();
        let mut line = 0;
        while line < u64::from(count) {
            // Within one page from here on, since pages are multiples of 4 KiB.
            let before = (skip + line) % TOGETHER;
            let together = (TOGETHER - before).min(u64::from(count) - line);
            let first = memory.aligned_at(at + line * LINE, LINE)?;
            memory.aligned_at(at + (line + together - 1) * LINE, LINE)?;
            pages.push(first.wrapping_sub((before * LINE) as usize));
            line += together;
        }
        Some(Self { memory: memory.clone(), pages: pages.into(), skip: skip as u32, count })
    }

    /// Line number `n`, which is valid while `self` lives. Never sleeps.
    #[inline(always)]
    pub fn get(&self, n: u32) -> Option<&[AtomicU64; 8]> {
        self.view().get(n)
    }

    /// Line number `n` as words of 32 bits.
    #[inline(always)]
    pub fn get32(&self, n: u32) -> Option<&[AtomicU32; 16]> {
        let line = std::ptr::from_ref(self.view().get(n)?);
        // SAFETY: the same 64 bytes, which are aligned for either.
        Some(unsafe { &*line.cast() })
    }

    /// The same lines, for loops: what they look at stays in registers, whatever is read in between.
    #[inline(always)]
    pub fn view(&self) -> LinesView<'_> {
        LinesView {
            pages: self.pages.as_ptr(),
            skip: self.skip,
            count: self.count,
            of: PhantomData,
        }
    }

    /// The memory that they are in.
    pub fn memory(&self) -> &Arc<UserMemory> {
        &self.memory
    }
}

/// See `Lines::view`.
#[derive(Clone, Copy)]
pub struct LinesView<'a> {
    pages: *const *mut u8,
    skip: u32,
    count: u32,
    of: PhantomData<&'a Lines>,
}

impl<'a> LinesView<'a> {
    /// As `Lines::get`.
    #[inline(always)]
    pub fn get(&self, n: u32) -> Option<&'a [AtomicU64; 8]> {
        if n >= self.count {
            return None;
        }
        let at = (self.skip + n) as usize;
        // SAFETY: `Lines::new` entered a page for each of `count` lines, in a box that the borrow keeps.
        let page = unsafe { *self.pages.add(at / TOGETHER as usize) };
        let line = page.wrapping_add(at % TOGETHER as usize * LINE as usize);
        // SAFETY: `Lines::new` found 64 aligned bytes there, in mappings that the borrow keeps; atomics may
        // be shared with whoever else writes there.
        Some(unsafe { &*line.cast() })
    }
}

/// A part of memory that lies together in the host, under the consumer's addresses.
#[derive(Clone, Copy)]
pub struct Stretch<'a> {
    start: u64,
    len: u64,
    at: *mut u8,
    memory: PhantomData<&'a UserMemory>,
}

impl<'a> Stretch<'a> {
    /// One without any bytes.
    pub const EMPTY: Self = Self { start: 0, len: 0, at: null_mut(), memory: PhantomData };

    /// `len` bytes at `addr`, if all of them are in it.
    #[inline(always)]
    pub fn span(&self, addr: u64, len: u64) -> Option<Span<'a>> {
        // Wraps to more than any length if `addr` lies before the start.
        let skip = addr.wrapping_sub(self.start);
        if len == 0 || skip >= self.len || len > self.len - skip {
            return None;
        }
        let at = self.at.wrapping_add(skip as usize);
        Some(Span { at, len: len as usize, memory: PhantomData })
    }
}

impl UserMemory {
    /// The page round `addr`, or what else of the memory is certain to lie together with it in the host.
    /// `None` if `addr` is not in it, and in memory on demand. Never sleeps.
    #[inline]
    pub fn stretch(&self, addr: u64) -> Option<Stretch<'_>> {
        let at = addr.wrapping_sub(self.start);
        if at >= self.length {
            return None;
        }
        // Offsets of the first byte and of the end, and where the first byte is.
        let (first, end, host) = match &self.layout {
            Layout::Contiguous(base) => (0, self.length, *base),
            Layout::Paged { shift, offset, pages } => {
                let page = (at + offset) >> shift << shift;
                let first = page.max(*offset) - offset;
                let end = (page + (1 << shift)).min(offset + self.length) - offset;
                let base = pages.get((page >> shift) as usize)?;
                (first, end, base.wrapping_add((first + offset - page) as usize))
            }
            Layout::Runs(runs) => {
                let run = runs.partition_point(|(first, ..)| *first <= at).checked_sub(1)?;
                let (first, len, base) = runs[run];
                (first, (first + len).min(self.length), base)
            }
            // A page may be gone in the next moment.
            Layout::OnDemand { .. } => return None,
        };
        // Behind a run there may be a hole.
        (at < end).then_some(Stretch {
            start: self.start + first,
            len: end - first,
            at: host,
            memory: PhantomData,
        })
    }
}
