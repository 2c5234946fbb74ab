// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which worker has a QP: none, or exactly one, in whose list or inbox it then is. So no two workers are
//! ever at one QP, and a QP that moves to another worker takes with it whatever its rings' state is: who
//! puts it into an inbox releases it, who takes it out acquires it.
//!
//! Generic over the atomics, so that the same code runs under loom (tests below). Not here: when a QP is
//! to move (`balance`).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A flag that threads share.
pub trait Flag {
    /// Replaces it.
    fn swap(&self, value: bool, order: Ordering) -> bool;
}

/// A number that threads share.
pub trait Number {
    /// Reads it.
    fn load(&self, order: Ordering) -> u32;
    /// Writes it.
    fn store(&self, value: u32, order: Ordering);
}

impl Flag for AtomicBool {
    fn swap(&self, value: bool, order: Ordering) -> bool {
        AtomicBool::swap(self, value, order)
    }
}

impl Number for AtomicU32 {
    fn load(&self, order: Ordering) -> u32 {
        AtomicU32::load(self, order)
    }
    fn store(&self, value: u32, order: Ordering) {
        AtomicU32::store(self, value, order);
    }
}

/// The seat of a QP.
pub struct Seat<F = AtomicBool, N = AtomicU32> {
    /// A worker has the QP, or it is in an inbox.
    taken: F,
    /// The worker whose inbox it goes into when somebody asks for attention.
    home: N,
}

impl Seat {
    /// Of a QP that nobody has, with its home.
    pub fn new(home: u32) -> Self {
        Self { taken: AtomicBool::new(false), home: AtomicU32::new(home) }
    }
}

impl<F: Flag, N: Number> Seat<F, N> {
    /// Somebody asks for attention. If it is the caller's to see to that: the worker into whose inbox
    /// the QP has to be put.
    #[inline]
    pub fn request(&self) -> Option<u32> {
        // Who lets go of the QP released what it left.
        (!self.taken.swap(true, Ordering::AcqRel)).then(|| self.home.load(Ordering::Relaxed))
    }

    /// The worker that has the QP lets go. From here on a request puts it into an inbox.
    #[inline]
    pub fn leave(&self) {
        // A read-modify-write, so that it sees what came before a request that did nothing.
        self.taken.swap(false, Ordering::AcqRel);
    }

    /// The worker that has let go finds work all the same: whether it has the QP again. If not, it is in
    /// an inbox.
    #[inline]
    pub fn take_again(&self) -> bool {
        !self.taken.swap(true, Ordering::AcqRel)
    }

    /// The worker that is to have it.
    #[inline]
    pub fn home(&self) -> u32 {
        self.home.load(Ordering::Relaxed)
    }

    /// Another one is, from now on. Only the one that was, or who has the QP, says so. If the caller has
    /// it, it puts it into the other's inbox; a worker that gets it later, by a request that came
    /// before, does so too.
    pub fn move_to(&self, home: u32) {
        self.home.store(home, Ordering::Relaxed);
    }
}

/// Every interleaving of a post with a QP's way from one worker to another.
#[cfg(test)]
mod model {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool as LoomBool, AtomicU32 as LoomU32, fence};

    impl Flag for LoomBool {
        fn swap(&self, value: bool, order: Ordering) -> bool {
            LoomBool::swap(self, value, order)
        }
    }

    impl Number for LoomU32 {
        fn load(&self, order: Ordering) -> u32 {
            LoomU32::load(self, order)
        }
        fn store(&self, value: u32, order: Ordering) {
            LoomU32::store(self, value, order);
        }
    }

    const POLLED: u32 = 1;

    /// A QP, what its driver shares with the device, and two workers' inboxes.
    struct Shared {
        posted: LoomU32,
        mode: LoomU32,
        pending: LoomU32,
        seat: Seat<LoomBool, LoomU32>,
        /// At most one entry: the QP.
        inboxes: [LoomBool; 2],
        /// The consumer index: whoever has the QP reads and writes it, without atomics.
        taken: UnsafeCell<u32>,
    }

    impl Shared {
        fn put(&self, worker: u32) {
            let full = self.inboxes[worker as usize].swap(true, Ordering::AcqRel);
            assert!(!full, "twice in an inbox");
        }

        fn request(&self) {
            if let Some(worker) = self.seat.request() {
                self.put(worker);
            }
        }

        /// The driver's half of a post.
        fn post(&self) {
            self.posted.fetch_add(1, Ordering::Release);
            fence(Ordering::SeqCst);
            if self.mode.load(Ordering::Acquire) != POLLED {
                self.pending.fetch_or(1, Ordering::AcqRel);
            }
        }

        /// What the holder does in a turn.
        fn turn(&self) {
            let posted = self.posted.load(Ordering::Acquire);
            self.taken.with_mut(|taken| {
                // SAFETY: loom fails if another thread is at it.
                unsafe { *taken = posted }
            });
        }

        /// A worker's turn: bits, inbox, and the QP, of which it lets go if it has no work.
        fn work(&self, me: u32) {
            if self.pending.swap(0, Ordering::AcqRel) != 0 {
                self.request();
            }
            if !self.inboxes[me as usize].swap(false, Ordering::AcqRel) {
                return;
            }
            if self.seat.home() != me {
                self.put(self.seat.home());
                return;
            }
            self.mode.store(POLLED, Ordering::Relaxed);
            self.turn();
            // Lets go, as `QpPath::arm_send` does.
            let seen = self.taken.with(|taken| {
                // SAFETY: as in `turn`.
                unsafe { *taken }
            });
            self.seat.leave();
            self.mode.store(0, Ordering::Release);
            fence(Ordering::SeqCst);
            if self.posted.load(Ordering::Acquire) != seen {
                self.mode.store(POLLED, Ordering::Relaxed);
                if self.seat.take_again() {
                    self.put(me);
                }
            }
        }
    }

    /// So many posts. `held`: the first worker has the QP, and hands it over; else nobody has it.
    fn check(held: bool, posts: u32) {
        let mut builder = loom::model::Builder::new();
        // Without a bound this takes hours.
        builder.preemption_bound = Some(2);
        builder.check(move || {
            let shared = Arc::new(Shared {
                posted: LoomU32::new(0),
                mode: LoomU32::new(u32::from(held)),
                pending: LoomU32::new(0),
                seat: Seat { taken: LoomBool::new(held), home: LoomU32::new(0) },
                inboxes: [LoomBool::new(false), LoomBool::new(false)],
                taken: UnsafeCell::new(0),
            });
            let driver = {
                let s = shared.clone();
                loom::thread::spawn(move || (0..posts).for_each(|_| s.post()))
            };
            let other = {
                let s = shared.clone();
                loom::thread::spawn(move || (0..2).for_each(|_| s.work(1)))
            };
            if held {
                shared.turn();
                shared.seat.move_to(1);
                shared.put(1);
            } else {
                shared.seat.move_to(1);
            }
            shared.work(0);
            driver.join().unwrap();
            other.join().unwrap();
            // Both workers go on until there is nothing for them to do; then they would sleep.
            for _ in 0..4 {
                shared.work(0);
                shared.work(1);
            }
            assert!(shared.seat.request().is_some(), "taken, and in nobody's inbox");
            let taken = shared.taken.with(|taken| {
                // SAFETY: the other threads have ended.
                unsafe { *taken }
            });
            assert_eq!(taken, posts, "a post that nobody will see");
            assert_ne!(shared.mode.load(Ordering::Relaxed), POLLED, "polled by nobody");
        });
    }

    #[test]
    fn a_qp_that_is_handed_over_is_with_one_worker_at_a_time_and_misses_no_post() {
        check(true, 2);
    }

    #[test]
    fn a_qp_that_nobody_has_when_its_home_changes_misses_no_post() {
        check(false, 2);
    }
}
