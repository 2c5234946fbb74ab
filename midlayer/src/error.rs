// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a verb answers when it can't do what it is asked.

use thiserror::Error;

/// Error of a verb. Data-path faults of the consumer or the peer are completions, not errors.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The consumer: a parameter is out of range or does not fit another.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// The consumer: the QP's state does not allow it (IBA 10.3.1).
    #[error("not allowed in this state of the QP: {0}")]
    BadState(&'static str),
    /// The consumer: other objects still use this one.
    #[error("in use: {0}")]
    Busy(&'static str),
    /// The consumer: a right is missing.
    #[error("not permitted: {0}")]
    NotPermitted(&'static str),
    /// The queue holds all the work requests that it can; poll completions and post again.
    #[error("the queue is full")]
    QueueFull,
    /// A limit of the device is reached.
    #[error("limit reached: {0}")]
    Limit(&'static str),
    /// The device has no such verb or feature.
    #[error("not supported by this device: {0}")]
    Unsupported(&'static str),
    /// The device has gone (`unregister_device`).
    #[error("the device is gone")]
    Gone,
    /// The host failed; the number is the system's (`errno`).
    #[error("the host failed: errno {0}")]
    Host(i32),
}

impl Error {
    /// The number by which libibverbs reports it (`errno`). IBA's words for them are in 11.2: "invalid
    /// QP state", "CQ in use", "too many work requests posted", "insufficient resources" and so on.
    pub const fn errno(self) -> i32 {
        match self {
            Self::Invalid(_) | Self::BadState(_) => libc::EINVAL,
            Self::Busy(_) => libc::EBUSY,
            Self::NotPermitted(_) => libc::EPERM,
            Self::QueueFull | Self::Limit(_) => libc::ENOMEM,
            Self::Unsupported(_) => libc::EOPNOTSUPP,
            // What the kernel's uverbs answer on a device that was disassociated.
            Self::Gone => libc::EIO,
            Self::Host(errno) => errno,
        }
    }
}

/// Result of a verb.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_numbers_of_libibverbs() {
        let errors = [
            (Error::Invalid(""), 22),
            (Error::BadState(""), 22),
            (Error::Busy(""), 16),
            (Error::NotPermitted(""), 1),
            (Error::QueueFull, 12),
            (Error::Limit(""), 12),
            (Error::Unsupported(""), 95),
            (Error::Gone, 5),
            (Error::Host(7), 7),
        ];
        for (error, errno) in errors {
            assert_eq!(error.errno(), errno, "{error}");
        }
    }
}
