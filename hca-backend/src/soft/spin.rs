// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A spinlock for the never-sleep verbs: it makes no blocking system call, and gives up on request.
//! What it protects is held for a bounded time (at the most one piece of a message).

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};

use super::sync::{AtomicBool, Ordering, pause, yield_now};

/// Tries before the holder is assumed to have lost its CPU.
const PATIENCE: u32 = if cfg!(loom) { 1 } else { 400 };

/// A value that one thread at a time may use.
#[derive(Default)]
pub(crate) struct SpinLock<T> {
    locked: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands the value to one thread at a time, so `T: Send` is enough.
unsafe impl<T: Send> Send for SpinLock<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { locked: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Takes the lock; spins while another thread has it, and lets the scheduler run that thread.
    #[inline]
    pub(crate) fn lock(&self) -> SpinGuard<'_, T> {
        if let Some(guard) = self.take() {
            return guard;
        }
        self.lock_contended()
    }

    /// Takes the lock unless another thread keeps it for longer than a short while.
    #[inline]
    pub(crate) fn try_lock_briefly(&self) -> Option<SpinGuard<'_, T>> {
        self.take().or_else(|| self.spin())
    }

    /// Takes the lock unless another thread has it.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<SpinGuard<'_, T>> {
        self.take()
    }

    #[inline]
    fn take(&self) -> Option<SpinGuard<'_, T>> {
        self.locked
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
            // Lazily: a guard that is made is one that unlocks.
            .then(|| SpinGuard { lock: self })
    }

    #[cold]
    fn spin(&self) -> Option<SpinGuard<'_, T>> {
        for _ in 0..PATIENCE {
            pause();
            if !self.locked.load(Ordering::Relaxed)
                && let Some(guard) = self.take()
            {
                return Some(guard);
            }
        }
        None
    }

    #[cold]
    fn lock_contended(&self) -> SpinGuard<'_, T> {
        loop {
            if let Some(guard) = self.spin() {
                return guard;
            }
            // Does not block: it only offers the CPU to a holder that was preempted.
            yield_now();
        }
    }
}

/// The value, while it is locked.
pub(crate) struct SpinGuard<'a, T> {
    lock: &'a SpinLock<T>,
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: a guard exists only while this thread holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the guard is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.locked.store(false, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn one_thread_at_a_time_has_the_value() {
        let lock = Arc::new(SpinLock::new(0u64));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let lock = lock.clone();
                std::thread::spawn(move || {
                    for i in 0..20_000 {
                        let mut value = lock.lock();
                        let seen = *value;
                        if i % 256 == 0 {
                            std::thread::yield_now();
                        }
                        *value = seen + 1;
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(*lock.lock(), 80_000);
    }

    #[test]
    fn a_short_try_gives_up_on_a_lock_that_is_held() {
        let lock = SpinLock::new(());
        let held = lock.lock();
        assert!(lock.try_lock_briefly().is_none());
        drop(held);
        assert!(lock.try_lock_briefly().is_some());
    }
}
