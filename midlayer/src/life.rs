// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of an object: how many others depend on it, which verbs are inside it, and that both are
//! over before it is destroyed. No lock is held while a verb runs.

use crate::context::MaySleep;
use crate::sync::{AtomicU64, Condvar, Mutex, Ordering, lock, wait};

/// Closed: no verb and no dependent comes in.
const CLOSED: u64 = 1 << 63;
/// One dependent object; they are counted in the bits from here to CLOSED.
const DEPENDENT: u64 = 1 << 32;
/// Where verbs that may sleep are counted.
const INSIDE: u64 = DEPENDENT - 1;

pub(crate) struct Life {
    word: AtomicU64,
    waiting: Mutex<()>,
    left: Condvar,
}

/// Why an object can't be closed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotClosed {
    /// Others depend on it.
    Used,
    /// It is closed already.
    Closed,
}

impl Life {
    pub(crate) fn new() -> Self {
        Self { word: AtomicU64::new(0), waiting: Mutex::new(()), left: Condvar::new() }
    }

    /// Whether it is open. For verbs that never sleep, inside an RCU guard.
    pub(crate) fn is_open(&self) -> bool {
        self.word.load(Ordering::Acquire) & CLOSED == 0
    }

    fn add(&self, what: u64) -> bool {
        let add = |word| (word & CLOSED == 0).then_some(word + what);
        self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).is_ok()
    }

    /// Counts a dependent object; false if closed. Never sleeps.
    pub(crate) fn add_dependent(&self) -> bool {
        self.add(DEPENDENT)
    }

    /// Undoes `add_dependent`. Never sleeps.
    pub(crate) fn drop_dependent(&self) {
        self.word.fetch_sub(DEPENDENT, Ordering::AcqRel);
    }

    /// A verb that may sleep goes in; false if closed.
    pub(crate) fn enter(&self) -> bool {
        self.add(1)
    }

    /// It comes out.
    pub(crate) fn leave(&self) {
        let before = self.word.fetch_sub(1, Ordering::AcqRel);
        if before & CLOSED != 0 && before & INSIDE == 1 {
            // With the lock, so that whoever closes is not between its look and its wait.
            drop(lock(&self.waiting));
            self.left.notify_all();
        }
    }

    /// Closes, and returns when no verb that may sleep is inside. May sleep.
    pub(crate) fn close(&self, _cx: &MaySleep) -> Result<(), NotClosed> {
        self.close_if(|word| word & !INSIDE == 0)
    }

    /// Closes whatever depends on it. May sleep.
    pub(crate) fn force_close(&self, _cx: &MaySleep) -> Result<(), NotClosed> {
        self.close_if(|word| word & CLOSED == 0)
    }

    fn close_if(&self, may: impl Fn(u64) -> bool) -> Result<(), NotClosed> {
        self.word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |w| may(w).then_some(w | CLOSED))
            .map_err(|w| if w & CLOSED != 0 { NotClosed::Closed } else { NotClosed::Used })?;
        let mut guard = lock(&self.waiting);
        while self.word.load(Ordering::Acquire) & INSIDE != 0 {
            guard = wait(&self.left, guard);
        }
        Ok(())
    }

    /// As `leave`, for objects whose verbs never sleep: whether it was the last one to leave an object
    /// that is closed, and so has to end it.
    pub(crate) fn leave_as_last(&self) -> bool {
        let before = self.word.fetch_sub(1, Ordering::AcqRel);
        before & CLOSED != 0 && before & INSIDE == 1
    }

    /// Closes without waiting, for objects whose verbs never sleep and which nothing depends on. Answers
    /// whether nobody was inside, so that the caller has to end it. `None` if it was closed before.
    pub(crate) fn close_now(&self) -> Option<bool> {
        let before = self.word.fetch_or(CLOSED, Ordering::AcqRel);
        (before & CLOSED == 0).then_some(before & INSIDE == 0)
    }

    /// Opens again what could not be destroyed.
    pub(crate) fn reopen(&self) {
        self.word.fetch_and(!CLOSED, Ordering::AcqRel);
    }
}
