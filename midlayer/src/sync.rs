// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The primitives that the lock-free parts (`rcu`, `run_queue`, `completion`, `life`) are built on.
//! `tests/models.rs` compiles those files again with loom's in place of this one.

pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering, compiler_fence, fence,
};
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

/// A full fence. On x86 a locked instruction orders all that this project's memory needs (write-back
/// memory, no non-temporal stores without a fence of their own) in half the time of `mfence`.
#[inline(always)]
pub fn full_fence() {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a locked `or` of 0 changes nothing; it orders all accesses of this thread, and the block
    // is not declared free of memory effects, so the compiler moves none across it.
    unsafe {
        std::arch::asm!("lock or dword ptr [rsp], 0");
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    fence(Ordering::SeqCst);
}

/// A number that no other running thread has.
#[inline]
pub(crate) fn this_thread() -> u64 {
    std::thread_local! {
        static HERE: u8 = const { 0 };
    }
    HERE.with(|here| std::ptr::from_ref(here).addr() as u64)
}

/// Objects in a chunk of an `rcu::Table`.
pub(crate) const CHUNK: usize = 1024;

/// A static variable; under loom it is made anew for each execution.
macro_rules! global {
    (static $name:ident: $type:ty = $value:expr;) => {
        static $name: $type = $value;
    };
}
pub(crate) use global;

/// A variable of each thread's own. If it has nothing to drop, it is no more to get at than a static one.
macro_rules! own {
    ($(#[$doc:meta])* static $name:ident: $type:ty = $value:expr;) => {
        std::thread_local! { $(#[$doc])* static $name: $type = const { $value }; }
    };
}
pub(crate) use own;

/// Locks; what a panicking thread left behind is still whole here, since no invariant of ours spans
/// a call that may panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Waits on a condition variable.
pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Lets others go on: the `tries`th time.
pub(crate) fn pause(tries: u32) {
    if tries < 200 {
        std::hint::spin_loop();
    } else {
        std::thread::sleep(std::time::Duration::from_micros(50));
    }
}

/// Whether the process may use `fence_all_threads`.
#[cfg(all(target_os = "linux", not(miri)))]
pub(crate) fn can_fence_all_threads() -> bool {
    static REGISTERED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *REGISTERED.get_or_init(|| membarrier(1 << 4))
}

/// A full fence on every running thread of the process (`membarrier`, private expedited).
#[cfg(all(target_os = "linux", not(miri)))]
pub(crate) fn fence_all_threads() {
    if !membarrier(1 << 3) {
        // The kernel doesn't refuse a process that has registered. If one does: stores reach the
        // other CPUs within nanoseconds, fence or not.
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: the call has no arguments in memory.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Whether the process may use `fence_all_threads`: not on this system.
#[cfg(not(all(target_os = "linux", not(miri))))]
pub(crate) fn can_fence_all_threads() -> bool {
    false
}

/// Never called here.
#[cfg(not(all(target_os = "linux", not(miri))))]
pub(crate) fn fence_all_threads() {}
