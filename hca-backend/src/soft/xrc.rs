// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! XRC domains (IBA annex A14): where the messages to an XRC target find the SRQ that they name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rdma_midlayer::driver::XrcdDriver;
use rdma_midlayer::types::Srqn;
use rdma_midlayer::{Error, MaySleep, Result};

use super::context::Context;
use super::spin::SpinLock;
use super::srq::Srq;

/// An XRC domain.
pub(crate) struct Xrcd {
    context: Arc<Context>,
    number: u32,
    srqs: SpinLock<HashMap<Srqn, Weak<Srq>>>,
    gone: Mutex<bool>,
}

impl Xrcd {
    /// A domain without SRQs, with a number that the context has given it.
    pub(crate) fn new(context: Arc<Context>, number: u32) -> Self {
        Self { context, number, srqs: SpinLock::new(HashMap::new()), gone: Mutex::new(false) }
    }

    /// Whether the domain belongs to the context.
    pub(crate) fn is_of(&self, context: &Arc<Context>) -> bool {
        Arc::ptr_eq(&self.context, context)
    }

    /// An SRQ that messages may name from now on.
    pub(crate) fn enter(&self, srqn: Srqn, srq: &Arc<Srq>) {
        self.srqs.lock().insert(srqn, Arc::downgrade(srq));
    }

    /// No longer.
    pub(crate) fn leave(&self, srqn: Srqn) {
        let left = self.srqs.lock().remove(&srqn);
        drop(left);
    }

    /// The SRQ that a message names. Never sleeps.
    pub(crate) fn find(&self, srqn: Srqn) -> Option<Arc<Srq>> {
        self.srqs.lock().get(&srqn)?.upgrade()
    }
}

impl XrcdDriver for Xrcd {
    fn dealloc(&self, _cx: &MaySleep) -> Result<()> {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *gone, true) {
            return Err(Error::Gone);
        }
        self.context.remove_xrcd(self.number);
        Ok(())
    }
}
