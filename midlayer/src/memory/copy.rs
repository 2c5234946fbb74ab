// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The copies themselves: by words, by the C library, or past the caches, as length and place of the
//! data suggest. Which addresses are copied is `memory.rs`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

/// Bytes up to which a call of memmove costs more than it saves.
const SHORT: usize = 256;

/// Bytes from which on it pays to find out where the data is.
pub(super) const LONG: usize = 16 << 10;

/// Bytes that are copied to find out.
const PROBE: usize = 2048;

/// A copy slower than this (bytes a microsecond) fetches its lines from memory or from another core:
/// then stores past the caches save the fetch of the destination.
const SLOW: u64 = 18_000;

/// `copy` of some aligned words.
///
/// # Safety
/// As for `copy`; `to` is aligned to 8 bytes, and there is a word at least.
#[inline]
unsafe fn copy_words(to: *mut u8, from: *const u8, words: usize) {
    let (to, from) = (to.cast::<u64>(), from.cast::<u64>());
    let last = words - 1;
    // SAFETY: the caller's promise; `[u64; 2]` is moved as two aligned words.
    unsafe {
        let mut at = 0;
        while at + 2 <= last {
            let two = from.add(at).cast::<[u64; 2]>().read_unaligned();
            to.add(at).cast::<[u64; 2]>().write(two);
            at += 2;
        }
        if at < last {
            to.add(at).write(from.add(at).read_unaligned());
        }
        let word = from.add(last).read_unaligned();
        AtomicU64::from_ptr(to.add(last)).store(word, Ordering::Release);
    }
}

/// `copy` of 64 bytes.
///
/// # Safety
/// As for `copy`; `to` is aligned to 8 bytes.
#[inline]
unsafe fn copy_line(to: *mut u8, from: *const u8) {
    let (to, from) = (to.cast::<u64>(), from.cast::<u64>());
    // SAFETY: the caller's promise; the array is moved as aligned words or more.
    unsafe {
        let first = from.cast::<[u64; 7]>().read_unaligned();
        let last = from.add(7).read_unaligned();
        to.cast::<[u64; 7]>().write(first);
        AtomicU64::from_ptr(to.add(7)).store(last, Ordering::Release);
    }
}

/// Bytes of the tail of `len` bytes at `to`: those that are to become visible last. From the last
/// 8-byte boundary of the destination on, so an aligned word is whole.
#[inline]
pub(super) fn tail(to: usize, len: usize) -> usize {
    if len == 0 { 0 } else { ((to.wrapping_add(len - 1) & 7) + 1).min(len) }
}

/// Copies memory that others may be writing; the last (up to 8) bytes are stored last, with release.
///
/// # Safety
/// `len` bytes are readable at `from` and writable at `to`, and stay mapped during the call.
#[inline]
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    if len == 0 {
        return;
    }
    if len <= SHORT && (to as usize | len) & 7 == 0 {
        // SAFETY: the caller's promise.
        return unsafe {
            if len == 64 { copy_line(to, from) } else { copy_words(to, from, len / 8) }
        };
    }
    let tail = tail(to as usize, len);
    let head = len - tail;
    // SAFETY: the caller's promise. `copy` and not `copy_nonoverlapping`: a QP may be connected to
    // another on the same memory. Racing writers can tear what they race for, and nothing else.
    unsafe {
        if head > 0 {
            std::ptr::copy(from, to, head);
        }
        copy_tail(to.add(head), from.add(head), tail);
    }
}

/// The end of a copy: what was stored before is visible before it.
///
/// # Safety
/// As for `copy`, and `len` is what `tail` says of a range that ends there.
pub(super) unsafe fn copy_tail(to: *mut u8, from: *const u8, len: usize) {
    fence(Ordering::Release);
    // SAFETY: the caller's promise; a tail of 8 bytes is aligned.
    unsafe {
        if len == 8 {
            let word = from.cast::<u64>().read_unaligned();
            AtomicU64::from_ptr(to.cast()).store(word, Ordering::Release);
        } else {
            for i in 0..len {
                to.add(i).write_volatile(from.add(i).read_volatile());
            }
        }
    }
}

/// A long copy in pieces, none of which is its end.
pub(super) struct Bulk {
    /// `None`: not known yet.
    past_caches: Option<bool>,
}

impl Bulk {
    /// One that has yet to find out where the data is.
    pub(super) fn new() -> Self {
        Self { past_caches: None }
    }

    /// Copies a piece; in which order its bytes become visible is not defined.
    ///
    /// # Safety
    /// As for `copy`.
    pub(super) unsafe fn copy(&mut self, to: *mut u8, from: *const u8, len: usize) {
        let (to, from, len) = match self.past_caches {
            None if len >= PROBE => {
                let begin = ticks();
                // SAFETY: the caller's promise.
                unsafe { std::ptr::copy(from, to, PROBE) };
                self.past_caches = Some(ticks().wrapping_sub(begin) > slow_ticks());
                // SAFETY: `len` is no less.
                unsafe { (to.add(PROBE), from.add(PROBE), len - PROBE) }
            }
            _ => (to, from, len),
        };
        // SAFETY: the caller's promise.
        unsafe {
            if self.past_caches == Some(true) {
                copy_past_caches(to, from, len);
            } else {
                std::ptr::copy(from, to, len);
            }
        }
    }

    /// All pieces are done: what is stored from here on is visible after them.
    pub(super) fn end(self) {
        #[cfg(target_arch = "x86_64")]
        if self.past_caches == Some(true) {
            // SAFETY: every x86-64 processor has it.
            unsafe {
                std::arch::x86_64::_mm_sfence();
            }
        }
    }
}

/// Ticks of a clock that costs little to read.
#[inline]
fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has it.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    0
}

/// Ticks that a probe takes at the speed of `SLOW`.
fn slow_ticks() -> u64 {
    static TICKS: OnceLock<u64> = OnceLock::new();
    *TICKS.get_or_init(|| {
        let (begin, first) = (Instant::now(), ticks());
        let elapsed = loop {
            let elapsed = begin.elapsed();
            if elapsed >= Duration::from_micros(50) {
                break elapsed;
            }
        };
        let a_microsecond = ticks().wrapping_sub(first) * 1000 / elapsed.as_nanos() as u64;
        a_microsecond * PROBE as u64 / SLOW
    })
}

/// Copies with stores that leave the caches alone.
///
/// # Safety
/// As for `copy`. A store fence must come before a store that announces the data.
#[cfg(target_arch = "x86_64")]
unsafe fn copy_past_caches(to: *mut u8, from: *const u8, len: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_stream_si128};
    const LINE: usize = 64;
    /// Bytes that are fetched ahead.
    const AHEAD: usize = 512;
    let head = (to as usize).wrapping_neg() % LINE;
    if len < head + LINE {
        // SAFETY: the caller's promise.
        return unsafe { std::ptr::copy(from, to, len) };
    }
    let lines = (len - head) / LINE;
    let done = head + lines * LINE;
    // SAFETY: the caller's promise; `to + head` is aligned to a line, and prefetches may point anywhere.
    unsafe {
        std::ptr::copy(from, to, head);
        for line in 0..lines {
            let at = head + line * LINE;
            let (to, from) = (to.add(at).cast(), from.add(at));
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD).cast());
            let from = from.cast();
            let four = [
                _mm_loadu_si128(from),
                _mm_loadu_si128(from.add(1)),
                _mm_loadu_si128(from.add(2)),
                _mm_loadu_si128(from.add(3)),
            ];
            _mm_stream_si128(to, four[0]);
            _mm_stream_si128(to.add(1), four[1]);
            _mm_stream_si128(to.add(2), four[2]);
            _mm_stream_si128(to.add(3), four[3]);
        }
        std::ptr::copy(from.add(done), to.add(done), len - done);
    }
}

/// # Safety
/// As for `copy`.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_past_caches(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy(from, to, len) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_copy_moves_every_byte_and_no_other() {
        let from: Vec<u8> = (0..6000u32).map(|n| (n * 7 % 251) as u8).collect();
        for len in [0, 1, 7, 8, 63, 64, 65, 200, 256, 257, 4095, 4096, 5000] {
            for (skip_to, skip_from) in [(0, 0), (1, 0), (0, 3), (8, 8), (13, 64), (63, 61)] {
                for way in 0..3 {
                    let mut to = vec![0u8; 6000];
                    let (at, source) = (to[skip_to..].as_mut_ptr(), from[skip_from..].as_ptr());
                    // SAFETY: both are longer than what is copied.
                    unsafe {
                        match way {
                            0 => copy(at, source, len),
                            1 => {
                                let mut bulk = Bulk { past_caches: Some(true) };
                                bulk.copy(at, source, len);
                                bulk.end();
                            }
                            _ => {
                                let mut bulk = Bulk::new();
                                bulk.copy(at, source, len);
                                bulk.end();
                            }
                        }
                    }
                    let what = format!("{len} bytes from {skip_from} to {skip_to}, way {way}");
                    assert_eq!(
                        to[skip_to..skip_to + len],
                        from[skip_from..skip_from + len],
                        "{what}"
                    );
                    assert!(to[..skip_to].iter().all(|b| *b == 0), "{what}");
                    assert!(to[skip_to + len..].iter().all(|b| *b == 0), "{what}");
                }
            }
        }
    }

    #[test]
    fn a_tail_is_a_word_that_is_whole_or_less() {
        assert_eq!(tail(0x1000, 64), 8);
        assert_eq!(tail(0x1001, 64), 1);
        assert_eq!(tail(0x1004, 3), 3);
        assert_eq!(tail(0x1000, 0), 0);
    }
}
