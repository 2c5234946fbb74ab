// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong when QEMU is driven from outside.

use std::path::PathBuf;
use std::time::Duration;

/// Why a command to QEMU, or a check of its device, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The other side closed the connection, or the host failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// How it failed.
        source: std::io::Error,
    },
    /// Something did not happen in time.
    #[error("no {what} within {after:?}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// For how long.
        after: Duration,
    },
    /// QEMU refused a QMP command: the class and the description that it gave.
    #[error("QEMU refuses {command}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's description of the error.
        description: String,
    },
    /// QEMU said something that its protocols don't have.
    #[error("QEMU said {0:?}")]
    Protocol(String),
    /// A check found something else than it must find.
    #[error("{0}")]
    Check(String),
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn check(message: impl Into<String>) -> Self {
        Self::Check(message.into())
    }
}

/// Fails a check unless `condition` holds.
pub(crate) fn ensure(condition: bool, message: impl FnOnce() -> String) -> Result<(), Error> {
    if condition { Ok(()) } else { Err(Error::Check(message())) }
}

/// Fails a check unless both are the same.
pub(crate) fn ensure_eq<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: T,
    wanted: T,
) -> Result<(), Error> {
    ensure(found == wanted, || format!("{what} is {found:?}, not {wanted:?}"))
}
