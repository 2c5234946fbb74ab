// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the standard library does not have: scheduling, clocks, bare copies. The only `unsafe` code
//! of this crate.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// A thread, by the system's number; 0 is the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadId(libc::pid_t);

impl ThreadId {
    /// The calling thread.
    pub const SELF: Self = Self(0);

    /// The calling thread, by a number that others can use.
    pub fn current() -> Self {
        // SAFETY: no arguments, and it can't fail.
        Self(unsafe { libc::gettid() })
    }

    /// The threads of this process with a name.
    pub fn named(name: &str) -> Vec<Self> {
        let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Vec::new() };
        let has_name = |entry: &fs::DirEntry| {
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            comm.trim_end() == name
        };
        let found = tasks.flatten().filter(has_name);
        found.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Self)).collect()
    }

    /// Puts it before all ordinary threads, or back among them.
    ///
    /// # Errors
    /// What the system answers: `PermissionDenied` without CAP_SYS_NICE.
    pub fn set_first(self, first: bool) -> io::Result<()> {
        let policy = if first { libc::SCHED_FIFO } else { libc::SCHED_OTHER };
        let parameter = libc::sched_param { sched_priority: i32::from(first) };
        // SAFETY: a valid parameter; the number is a thread's or unknown to the system.
        match unsafe { libc::sched_setscheduler(self.0, policy, &parameter) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Sleeps until a descriptor is readable, for some time at most.
pub fn wait_readable(fd: BorrowedFd<'_>, time: Duration) {
    let mut wait = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live structure; the descriptor is open.
    unsafe { libc::poll(&raw mut wait, 1, time.as_millis() as i32) };
}

/// Nanoseconds of CPU time that the threads of this process other than the caller have used.
pub fn cpu_time_of_others() -> u64 {
    let own = ThreadId::current().0.to_string();
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return 0 };
    tasks
        .flatten()
        .filter(|task| task.file_name().to_str() != Some(&own))
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|line| line.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// `libc`'s memcpy between two ranges of guest memory as this process sees them.
///
/// # Panics
/// If a range does not lie in its buffer.
pub fn memcpy(to: (&front_end::Buffer, usize), from: (&front_end::Buffer, usize), len: usize) {
    let at = |(buffer, offset): (&front_end::Buffer, usize)| {
        assert!(offset <= buffer.len() && len <= buffer.len() - offset, "outside the buffer");
        buffer.address() as usize + offset
    };
    let (to, from) = (at(to), at(from));
    // SAFETY: both ranges lie in mappings that outlive the borrow of their buffers. The device
    // writes there at the same time in no measurement; if it did, bytes would be mixed.
    unsafe { libc::memcpy(to as *mut libc::c_void, from as *const libc::c_void, len) };
}

/// Writes every byte of a range, as a sender's processor does.
///
/// # Panics
/// If the range does not lie in the buffer.
pub fn fill(to: &front_end::Buffer, offset: usize, byte: u8, len: usize) {
    assert!(offset <= to.len() && len <= to.len() - offset, "outside the buffer");
    // SAFETY: as in `memcpy`.
    unsafe {
        libc::memset((to.address() as usize + offset) as *mut libc::c_void, byte.into(), len)
    };
}

/// Reads every line of a range, as a receiver's processor does.
///
/// # Panics
/// If the range does not lie in the buffer.
pub fn read_all(from: &front_end::Buffer, offset: usize, len: usize) -> u64 {
    assert!(offset <= from.len() && len <= from.len() - offset, "outside the buffer");
    let first = from.address() as usize + offset;
    let mut sum = 0u64;
    for at in (0..len).step_by(8) {
        // SAFETY: as in `memcpy`; the address is aligned, since pages and `at` are.
        sum = sum.wrapping_add(unsafe { ((first + at) as *const u64).read_volatile() });
    }
    sum
}
