// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two system calls by which a thread of the driver waits and is told to end.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Something that happens once.
pub(crate) struct Event(OwnedFd);

impl Event {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: a new descriptor, which is nobody else's.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(Self(OwnedFd::from_raw_fd(fd)))
            }
        }
    }

    /// It happens: from here on the descriptor is readable.
    pub(crate) fn set(&self) {
        let one = 1u64;
        // SAFETY: 8 readable bytes, and an open descriptor. Its counter can't be full.
        let _ = unsafe { libc::write(self.fd(), (&raw const one).cast(), 8) };
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits until a descriptor has something, or for a second; false if the wait was cut short.
pub(crate) fn wait(fds: &mut [libc::pollfd]) -> bool {
    fds.iter_mut().for_each(|fd| fd.revents = 0);
    // SAFETY: as many structures as it says.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 1000) >= 0 }
}
