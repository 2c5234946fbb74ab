// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's half of the doorbell protocol (docs/virtio-rdma.md, "Doorbells"): how a queue goes
//! from POLLED to ARMED, how a worker falls asleep, and how it finds what is pending, so that no post
//! is ever missed. The words are in guest memory; a guest that scribbles on them misses its own
//! doorbells and nobody else's.
//!
//! Generic over the atomics, so that the same code runs under loom (tests below).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use virtio_rdma_abi::doorbell::{MODE_POLLED, MODE_VECTOR_SHIFT};

/// A 32-bit word shared with the driver, little-endian.
pub trait Word32 {
    /// Reads it.
    fn load(&self, order: Ordering) -> u32;
    /// Writes it.
    fn store(&self, value: u32, order: Ordering);
}

/// A 64-bit word shared with the driver, little-endian.
pub trait Word64 {
    /// Reads it.
    fn load(&self, order: Ordering) -> u64;
    /// Replaces it.
    fn swap(&self, value: u64, order: Ordering) -> u64;
    /// Sets bits.
    fn set(&self, bits: u64, order: Ordering);
}

/// The full fence that goes with the words.
pub trait Fence {
    /// Sequentially consistent fence.
    fn full();
}

/// The machine's own.
pub struct Machine;

impl Fence for Machine {
    fn full() {
        rdma_midlayer::full_fence();
    }
}

impl Word32 for AtomicU32 {
    fn load(&self, order: Ordering) -> u32 {
        u32::from_le(AtomicU32::load(self, order))
    }
    fn store(&self, value: u32, order: Ordering) {
        AtomicU32::store(self, value.to_le(), order);
    }
}

impl Word64 for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        u64::from_le(AtomicU64::load(self, order))
    }
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        u64::from_le(AtomicU64::swap(self, value.to_le(), order))
    }
    fn set(&self, bits: u64, order: Ordering) {
        self.fetch_or(bits.to_le(), order);
    }
}

/// The mode word of a queue whose doorbell is that of `vector`.
pub fn mode(polled: bool, vector: u16) -> u32 {
    u32::from(vector) << MODE_VECTOR_SHIFT | if polled { MODE_POLLED } else { 0 }
}

/// Makes a queue ARMED: from here on the driver rings. Returns whether there is work all the same,
/// posted before the driver could know; then the queue is POLLED again.
pub fn arm<F: Fence>(word: &impl Word32, vector: u16, has_work: impl FnOnce() -> bool) -> bool {
    word.store(mode(false, vector), Ordering::Relaxed);
    // The driver: post, fence, read the mode. We: write the mode, fence, look for a post. One of the
    // two sees the other.
    F::full();
    let found = has_work();
    if found {
        poll(word, vector);
    }
    found
}

/// Makes a queue POLLED.
pub fn poll(word: &impl Word32, vector: u16) {
    word.store(mode(true, vector), Ordering::Relaxed);
}

/// Announces sleep in the vectors' status words, and looks once more for what is pending. Returns
/// whether the worker may sleep; if not, it is awake again.
pub fn fall_asleep<'w, F: Fence, W: Word32 + 'w>(
    status: impl Iterator<Item = &'w W> + Clone,
    pending: impl FnOnce() -> bool,
) -> bool {
    status.clone().for_each(|word| word.store(1, Ordering::Relaxed));
    // The driver: set the bit, fence, read the status. We: write the status, fence, look for bits.
    F::full();
    if pending() {
        wake_up(status);
        return false;
    }
    true
}

/// Announces that the worker looks by itself again.
pub fn wake_up<'w, W: Word32 + 'w>(status: impl Iterator<Item = &'w W>) {
    status.for_each(|word| word.store(0, Ordering::Relaxed));
}

/// After CQEs were written: the arm sequence, if the driver has armed since `fired` and these CQEs are
/// what it waits for. The low bit asks for solicited ones only.
pub fn armed<F: Fence>(arm: &impl Word32, fired: u32, solicited: bool) -> Option<u32> {
    // The driver: arm, fence, poll. We: write CQEs, fence, look at the arming.
    F::full();
    let arm = arm.load(Ordering::Acquire);
    (arm != fired && (arm & 1 == 0 || solicited)).then_some(arm)
}

/// What a look at a word of a bitmap counts against a budget, and what a bit that was found does.
const LOOK_COST: u32 = 1;
const BIT_COST: u32 = 8;

/// Takes pending bits out of a UAR: calls `slot` for each, until all are taken or `budget` is used up;
/// then the rest stays pending. `words` are the bitmap's; bit `i` of the summary stands for the words
/// `i`, `i + 64`, and so on.
pub fn take_pending<'w, W: Word64 + 'w>(
    summary: &W,
    words: impl Fn(usize) -> Option<&'w W>,
    budget: &mut u32,
    mut slot: impl FnMut(u32),
) {
    if summary.load(Ordering::Relaxed) == 0 {
        return;
    }
    // Before the bits: a driver sets the bit first and the summary last, so whatever is set after
    // this swap shows in the summary again.
    let mut groups = summary.swap(0, Ordering::AcqRel);
    while groups != 0 {
        let group = groups.trailing_zeros() as usize;
        for index in (group..).step_by(64) {
            if *budget == 0 {
                // This group and those behind it: as their driver left them.
                summary.set(groups, Ordering::AcqRel);
                return;
            }
            let Some(word) = words(index) else { break };
            *budget = budget.saturating_sub(LOOK_COST);
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::AcqRel);
            *budget = budget.saturating_sub(BIT_COST * bits.count_ones());
            while bits != 0 {
                slot(index as u32 * 64 + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
        groups &= groups - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pending_slot_is_taken_once() {
        let summary = AtomicU64::new(0);
        let words: Vec<AtomicU64> = (0..200).map(|_| AtomicU64::new(0)).collect();
        for slot in [0usize, 63, 64, 64 * 64 + 1, 199 * 64 + 63] {
            words[slot / 64].fetch_or(1 << (slot % 64), Ordering::Relaxed);
            summary.fetch_or(1 << (slot / 64 % 64), Ordering::Relaxed);
        }
        let mut taken = Vec::new();
        take_pending(&summary, |i| words.get(i), &mut 10_000, |s| taken.push(s));
        taken.sort_unstable();
        assert_eq!(taken, [0, 63, 64, 4097, 12799]);
        take_pending(&summary, |i| words.get(i), &mut 10_000, |_| panic!("nothing is left"));
    }

    #[test]
    fn a_storm_of_doorbells_is_taken_in_bounded_parts_and_none_is_lost() {
        let summary = AtomicU64::new(u64::MAX);
        let words: Vec<AtomicU64> = (0..504).map(|_| AtomicU64::new(u64::MAX)).collect();
        let mut taken = std::collections::HashSet::new();
        let mut turns = 0;
        while summary.load(Ordering::Relaxed) != 0 {
            let before = taken.len();
            take_pending(&summary, |i| words.get(i), &mut 128, |slot| assert!(taken.insert(slot)));
            assert!(taken.len() - before <= 64, "one word at the most beyond the budget");
            turns += 1;
            assert!(turns < 10_000);
        }
        assert_eq!(taken.len(), 504 * 64);
    }

    /// The protocol itself, every interleaving: a driver posts twice; the worker polls, arms, falls
    /// asleep. If the worker ends up asleep without a kick, it has seen both posts.
    mod model {
        use super::*;
        use loom::sync::Arc;
        use loom::sync::atomic::{AtomicU32 as LoomU32, AtomicU64 as LoomU64, fence};

        struct LoomFence;
        impl Fence for LoomFence {
            fn full() {
                fence(Ordering::SeqCst);
            }
        }
        impl Word32 for LoomU32 {
            fn load(&self, order: Ordering) -> u32 {
                LoomU32::load(self, order)
            }
            fn store(&self, value: u32, order: Ordering) {
                LoomU32::store(self, value, order);
            }
        }
        impl Word64 for LoomU64 {
            fn load(&self, order: Ordering) -> u64 {
                LoomU64::load(self, order)
            }
            fn swap(&self, value: u64, order: Ordering) -> u64 {
                LoomU64::swap(self, value, order)
            }
            fn set(&self, bits: u64, order: Ordering) {
                self.fetch_or(bits, order);
            }
        }

        /// What driver and device share.
        struct Shared {
            posted: LoomU32,
            mode: LoomU32,
            bitmap: LoomU64,
            summary: LoomU64,
            asleep: LoomU32,
            kicks: LoomU32,
        }

        /// The driver's half, as the provider has it.
        fn post(s: &Shared, count: u32) {
            s.posted.store(count, Ordering::Release);
            fence(Ordering::SeqCst);
            if Word32::load(&s.mode, Ordering::Relaxed) & MODE_POLLED != 0 {
                return;
            }
            s.bitmap.fetch_or(1, Ordering::AcqRel);
            s.summary.fetch_or(1, Ordering::AcqRel);
            fence(Ordering::SeqCst);
            if Word32::load(&s.asleep, Ordering::Relaxed) == 1 {
                s.kicks.store(1, Ordering::Relaxed);
            }
        }

        fn check(start_polled: bool, posts: u32, preemption_bound: Option<usize>) {
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = preemption_bound;
            builder.check(move || {
                let shared = Arc::new(Shared {
                    posted: LoomU32::new(0),
                    mode: LoomU32::new(mode(start_polled, 0)),
                    bitmap: LoomU64::new(0),
                    summary: LoomU64::new(0),
                    asleep: LoomU32::new(0),
                    kicks: LoomU32::new(0),
                });
                let driver = {
                    let s = shared.clone();
                    loom::thread::spawn(move || (1..=posts).for_each(|n| post(&s, n)))
                };
                let s = &*shared;
                let mut seen = 0;
                let mut active = start_polled;
                // More turns than posts can cause: each turn either sees something new or sleeps.
                let mut slept = false;
                for _ in 0..=2 * posts {
                    let bitmap = |i| (i == 0).then_some(&s.bitmap);
                    take_pending(&s.summary, bitmap, &mut 100, |_| active = true);
                    if active {
                        poll(&s.mode, 0);
                        seen = s.posted.load(Ordering::Acquire);
                        let more = || s.posted.load(Ordering::Acquire) != seen;
                        active = arm::<LoomFence>(&s.mode, 0, more);
                    }
                    let pending = || Word64::load(&s.summary, Ordering::Relaxed) != 0;
                    if !active && fall_asleep::<LoomFence, _>([&s.asleep].into_iter(), pending) {
                        slept = true;
                        break;
                    }
                }
                driver.join().unwrap();
                if slept && s.kicks.load(Ordering::Relaxed) == 0 {
                    assert_eq!(seen, posts, "asleep, not kicked, and a post unseen");
                }
            });
        }

        #[test]
        fn a_cqe_is_polled_or_its_event_comes() {
            loom::model(|| {
                // CQEs written, and the arm sequence.
                let words = Arc::new((LoomU32::new(0), LoomU32::new(0)));
                let device = {
                    let words = words.clone();
                    loom::thread::spawn(move || {
                        let (cqes, arm) = &*words;
                        let mut fired = 0;
                        for n in 1..=2 {
                            cqes.store(n, Ordering::Release);
                            if let Some(arm) = armed::<LoomFence>(arm, fired, false) {
                                fired = arm;
                            }
                        }
                        fired
                    })
                };
                let (cqes, arm) = &*words;
                // The driver polls, finds too little, arms, polls again, and sleeps.
                let mut polled = cqes.load(Ordering::Acquire);
                if polled < 2 {
                    Word32::store(arm, 2, Ordering::Relaxed);
                    fence(Ordering::SeqCst);
                    polled = cqes.load(Ordering::Acquire);
                }
                let fired = device.join().unwrap();
                assert!(polled == 2 || fired == 2, "asleep, with CQEs that no event told of");
            });
        }

        #[test]
        fn no_post_is_missed_when_a_polled_queue_is_armed_and_the_worker_sleeps() {
            check(true, 1, None);
        }

        #[test]
        fn no_post_is_missed_when_an_armed_queue_is_posted_to() {
            check(false, 1, None);
        }

        #[test]
        fn no_post_is_missed_of_two_in_a_row() {
            // Without a bound this takes hours.
            check(true, 2, Some(2));
        }
    }
}
