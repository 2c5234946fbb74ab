// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The token that allows a call to sleep (`core_locking`, "Sleeping and interrupt context"), and the
//! bar that keeps a thread from making or using one while it runs handlers.

use std::cell::Cell;
use std::marker::PhantomData;

use crate::error::{Error, Result};
use crate::sync::own;

own! {
    static CLAIMED: Cell<bool> = Cell::new(false);
}

own! {
    static HANDLERS: Cell<u32> = Cell::new(0);
}

/// Proof that the caller runs in a process context, where it may sleep.
///
/// Every verb that may sleep takes a reference to one. A thread can make one only once, at its entry
/// point, and it can be neither sent nor shared: a completion or event handler, which must be
/// `Send + Sync + 'static`, can't hold one; nor can it claim one, since the thread is barred while
/// handlers run. What types can't see (a token in a thread-local of the dispatching thread) the verbs
/// catch: with a token used inside a handler they answer `Error::NotPermitted`.
///
/// A token stays on its thread:
///
/// ```compile_fail,E0277
/// let cx = rdma_midlayer::MaySleep::claim().unwrap();
/// std::thread::spawn(move || drop(cx));
/// ```
pub struct MaySleep {
    _neither_send_nor_sync: PhantomData<*mut ()>,
}

impl MaySleep {
    /// The token of the calling thread; `None` if the thread has made it before, or is inside a
    /// handler. To be called at the entry point of a thread.
    pub fn claim() -> Option<Self> {
        if in_handler() {
            return None;
        }
        CLAIMED.with(|claimed| {
            (!claimed.replace(true)).then_some(Self { _neither_send_nor_sync: PhantomData })
        })
    }

    /// Refuses a token that is used where its thread may not sleep.
    pub(crate) fn check(&self) -> Result<()> {
        if in_handler() {
            return Err(Error::NotPermitted("a verb that may sleep, inside a handler"));
        }
        Ok(())
    }
}

impl Drop for MaySleep {
    fn drop(&mut self) {
        // The token's end leaves the thread where it began.
        let _ = CLAIMED.try_with(|claimed| claimed.set(false));
    }
}

/// Whether the calling thread is inside a completion or event handler.
pub fn in_handler() -> bool {
    HANDLERS.with(|depth| depth.get() > 0)
}

/// While it lives, the thread is inside a handler.
pub(crate) struct InHandler {
    _of_this_thread: PhantomData<*mut ()>,
}

impl InHandler {
    pub(crate) fn enter() -> Self {
        HANDLERS.with(|depth| depth.set(depth.get() + 1));
        Self { _of_this_thread: PhantomData }
    }
}

impl Drop for InHandler {
    fn drop(&mut self) {
        HANDLERS.with(|depth| depth.set(depth.get() - 1));
    }
}
