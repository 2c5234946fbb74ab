// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The channel by which a back end asks something of the VMM: a thread that answers, and counts what
//! it is told.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler,
};

use crate::error::Error;
use crate::mapping::clone_socket;

/// What a back end may ask.
#[derive(Debug, Default)]
struct Answers {
    config_changes: AtomicU64,
}

impl VhostUserFrontendReqHandler for Answers {
    fn handle_config_change(&self) -> HandlerResult<u64> {
        self.config_changes.fetch_add(1, Ordering::Release);
        Ok(0)
    }
}

/// An open channel; closed, and its thread ended, when dropped.
#[derive(Debug)]
pub(crate) struct BackendRequests {
    answers: Arc<Answers>,
    /// The thread's end of the channel.
    socket: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl BackendRequests {
    /// Hands the back end its end of a new channel.
    pub(crate) fn open(frontend: &mut Frontend, acked: bool) -> Result<Self, Error> {
        let answers = Arc::new(Answers::default());
        let wrong = |error| Error::Vhost(vhost::Error::VhostUserProtocol(error));
        let mut handler = FrontendReqHandler::new(Arc::clone(&answers)).map_err(wrong)?;
        handler.set_reply_ack_flag(acked);
        frontend.set_backend_request_fd(&handler.get_tx_raw_fd())?;
        let socket = clone_socket(&handler).map_err(Error::io("duplicating a socket"))?;
        let thread = std::thread::spawn(move || while handler.handle_request().is_ok() {});
        Ok(Self { answers, socket, thread: Some(thread) })
    }

    /// CONFIG_CHANGE messages so far.
    pub(crate) fn config_changes(&self) -> u64 {
        self.answers.config_changes.load(Ordering::Acquire)
    }
}

impl Drop for BackendRequests {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        // The thread's read ends; if the channel is down already, it has.
        let _ = self.socket.shutdown(Shutdown::Both);
        // It only answers messages, and cannot panic on one.
        let _ = thread.join();
    }
}
