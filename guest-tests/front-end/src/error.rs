// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong: at the vhost-user connection, in a control command, in a post.

use std::time::Duration;

use crate::command::Status;

/// A failure of the connection, of the host, or of a command in a helper that does several things.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The daemon broke the vhost-user protocol, refused a message, or is gone.
    #[error("vhost-user: {0}")]
    Vhost(#[from] vhost::Error),
    /// The daemon lacks something that the front end cannot do without.
    #[error("the daemon does not offer {0}")]
    NotOffered(&'static str),
    /// The guest has no memory left of the kind asked for.
    #[error("guest memory is used up: {wanted} bytes wanted")]
    OutOfGuestMemory {
        /// Bytes.
        wanted: usize,
    },
    /// There is no such region of guest memory.
    #[error("no memory region {0}")]
    NoRegion(usize),
    /// The VM is not connected (`Vm::disconnect`).
    #[error("not connected to the daemon")]
    Disconnected,
    /// Something that was waited for did not happen.
    #[error("{what} did not come within {waited:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// The device put a buffer into the used ring and did not interrupt, though it had to.
    #[error("virtqueue {queue}: a used buffer came without its interrupt")]
    LostInterrupt {
        /// The virtqueue.
        queue: u16,
    },
    /// The device wrote something into a virtqueue that the virtio specification does not allow.
    #[error("virtqueue {queue}: {what}")]
    BadRing {
        /// The virtqueue.
        queue: u16,
        /// What it did.
        what: &'static str,
    },
    /// A virtqueue has no free descriptors.
    #[error("virtqueue {queue} is full")]
    RingFull {
        /// The virtqueue.
        queue: u16,
    },
    /// A control command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
}

impl Error {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// Why a control command gave no answer of use.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The device answered with a status other than OK.
    #[error("the device answered {0:?}")]
    Refused(Status),
    /// The answer is shorter than the command's, or has another sequence number.
    #[error("malformed answer: {0}")]
    Malformed(&'static str),
    /// The command could not be sent, or no answer came.
    #[error("{0}")]
    Transport(#[source] Box<Error>),
}

impl CommandError {
    /// The status, if the device gave one.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Refused(status) => Some(*status),
            _ => None,
        }
    }
}

impl From<Error> for CommandError {
    fn from(error: Error) -> Self {
        match error {
            Error::Command(inner) => inner,
            other => Self::Transport(Box::new(other)),
        }
    }
}

/// Why a work request was not posted, as libibverbs' `ibv_post_send` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// ENOMEM: every slot of the queue is in use.
    #[error("the work queue is full")]
    Full,
    /// EINVAL: more SGEs or inline bytes than the queue was made for.
    #[error("too many SGEs or inline bytes for this queue")]
    TooLarge,
    /// EINVAL: the QP's state does not allow posting (IBA 10.3.1).
    #[error("the QP's state does not allow posting")]
    State,
}
