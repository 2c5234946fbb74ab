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

/// Result of a verb.
pub type Result<T> = std::result::Result<T, Error>;
