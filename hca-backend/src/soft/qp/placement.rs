// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The responder's side of ATOMIC WRITE and RDMA FLUSH (IBA annex A19). Memory that is written here is
//! visible to its consumer in the order of the stores, so a FLUSH has nothing to wait for: it checks what
//! it names, and fences.

use std::sync::atomic::{Ordering, fence};

use rdma_midlayer::rcu::Guard;
use rdma_midlayer::types::{Access, RKey, WcStatus};
use rdma_midlayer::work::{Flush, SendData};

use super::Qp;
use super::execute::Step;
use super::responder::{Request, Responder};

/// Why one was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotPlaced {
    /// The memory behind the address is not aligned to 8 bytes.
    Misaligned,
    /// The key does not allow it.
    Access,
}

impl Qp {
    pub(super) fn on_atomic_write(&self, responder: &mut Responder, request: &Request<'_>) -> Step {
        let wr = request.wr;
        if !responder.places(Access::REMOTE_WRITE) || !wr.remote_addr.is_multiple_of(8) {
            return self.refuse_invalid(responder);
        }
        let Some(place) = self.remote_place(request, Access::REMOTE_WRITE) else {
            return self.refuse_access(responder);
        };
        if let Some(step) = self.put_off(responder, request, &place, true) {
            return step;
        }
        let mut word = [0; 8];
        if request.local.read(&mut word).is_err() {
            return Step::Fail(WcStatus::LocProtErr);
        }
        match self.write_whole(wr.rkey, wr.remote_addr, word, request.guard) {
            Ok(()) => Step::Done,
            Err(NotPlaced::Misaligned) => self.refuse_invalid(responder),
            Err(NotPlaced::Access) => self.refuse_access(responder),
        }
    }

    pub(super) fn on_flush(&self, responder: &mut Responder, request: &Request<'_>) -> Step {
        let SendData::Flush(flush) = request.wr.data else { return self.refuse_invalid(responder) };
        if !responder.places(flush.placement) {
            return self.refuse_invalid(responder);
        }
        if self.flush_memory(request.wr.rkey, request.wr.remote_addr, &flush, request.guard) {
            Step::Done
        } else {
            self.refuse_access(responder)
        }
    }

    /// Writes 8 bytes for a peer, all at once.
    pub(super) fn write_whole(
        &self,
        rkey: RKey,
        addr: u64,
        word: [u8; 8],
        guard: &Guard,
    ) -> Result<(), NotPlaced> {
        let of = self.usage(Access::REMOTE_WRITE);
        let found = self.context.mrs.remote(rkey, addr, 8, &of, guard);
        let (memory, addr) = found.ok_or(NotPlaced::Access)?;
        let value = u64::from_ne_bytes(word);
        memory
            .with_atomic(addr, |at| at.store(value, Ordering::SeqCst))
            .ok_or(NotPlaced::Misaligned)
    }

    /// Whether a peer may flush so; if it may, what came before is visible. Unlike other requests, one
    /// for no bytes names its key all the same.
    pub(super) fn flush_memory(&self, rkey: RKey, addr: u64, flush: &Flush, guard: &Guard) -> bool {
        let (mrs, of) = (&self.context.mrs, self.usage(flush.placement));
        let allowed = match flush.whole_mr {
            true => mrs.allows(rkey, &of, guard),
            false => mrs.remote(rkey, addr, flush.length, &of, guard).is_some(),
        };
        if allowed {
            fence(Ordering::SeqCst);
        }
        allowed
    }
}
