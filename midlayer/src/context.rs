// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The token that allows a call to sleep (`core_locking`, "Sleeping and interrupt context").

use std::cell::Cell;
use std::marker::PhantomData;

thread_local! {
    static CLAIMED: Cell<bool> = const { Cell::new(false) };
}

/// Proof that the caller runs in a process context, where it may sleep.
///
/// Every verb that may sleep takes a reference to one. A thread can make one only once, at its entry
/// point, and it can be neither sent nor shared: a completion or event handler, which runs on a
/// dispatcher's thread and must be `Send + Sync + 'static`, has no way to hold one.
pub struct MaySleep {
    _neither_send_nor_sync: PhantomData<*mut ()>,
}

impl MaySleep {
    /// The token of the calling thread; `None` if the thread has made it before. To be called at the
    /// entry point of a thread.
    pub fn claim() -> Option<Self> {
        CLAIMED.with(|claimed| {
            (!claimed.replace(true)).then_some(Self { _neither_send_nor_sync: PhantomData })
        })
    }
}

impl Drop for MaySleep {
    fn drop(&mut self) {
        // The token's end leaves the thread where it began. A handler still cannot claim: a
        // dispatcher's thread holds its own token, or has barred itself, while handlers run.
        let _ = CLAIMED.try_with(|claimed| claimed.set(false));
    }
}
