// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work requests that change keys (IBA 10.6): REG_MR, LOCAL_INV and BIND_MW here, and the end of a
//! SEND_WITH_INV at the peer. What they take away may still be in use by another thread: then the
//! work request ends later, and no thread waits.

use rdma_midlayer::rcu::Guard;
use rdma_midlayer::types::{WcOpcode, WcStatus, WrOpcode};
use rdma_midlayer::work::{MwBind, RegMr, SendData, SendWr};

use super::Qp;
use super::execute::Step;
use super::responder::{Request, Responder};
use crate::soft::rebind::{BindFault, Draining, User};

/// A work request that changes a key, which a QP holds until its turn comes.
#[derive(Clone, Debug)]
pub(super) enum KeyChange {
    /// Of `None` it is known that it fails.
    Reg(Option<RegMr>),
    Bind(MwBind),
    Invalidate(u32),
}

impl KeyChange {
    /// Of a work request; `None` if it is another kind.
    pub(super) fn of(wr: &SendWr<'_>) -> Option<Self> {
        match (wr.opcode, wr.data) {
            (WrOpcode::RegMr, SendData::Reg(reg)) => Some(Self::Reg(Some(reg.clone()))),
            (WrOpcode::RegMr, _) => Some(Self::Reg(None)),
            (WrOpcode::BindMw, SendData::Bind(bind)) => Some(Self::Bind(*bind)),
            (WrOpcode::LocalInv, _) => Some(Self::Invalidate(wr.rkey.0)),
            _ => None,
        }
    }
}

/// Whether a work request changes a key of this side, and sends nothing.
#[inline]
pub(super) fn is_local(opcode: WrOpcode) -> bool {
    matches!(opcode, WrOpcode::LocalInv | WrOpcode::BindMw | WrOpcode::RegMr)
}

impl Qp {
    /// Carries out a change of a key. What it took away goes into `draining`, and the work request is
    /// done when that is. Never sleeps.
    pub(super) fn change_key(
        &self,
        change: &KeyChange,
        draining: &mut Option<Draining>,
        guard: &Guard,
    ) -> Step {
        let mrs = &self.context.mrs;
        let done = match change {
            KeyChange::Reg(None) => Err(BindFault),
            KeyChange::Reg(Some(reg)) => {
                mrs.register_fast(reg, self.created.pd, guard).map(|()| None)
            }
            KeyChange::Bind(bind) => mrs.bind(bind, self.user(), guard),
            KeyChange::Invalidate(key) => mrs.invalidate(*key, self.user(), guard).map(Some),
        };
        match done {
            Err(BindFault) => Step::Fail(WcStatus::MwBindErr),
            Ok(taken) => {
                *draining = taken;
                go_on(draining)
            }
        }
    }

    /// Takes away what is behind a key, at the wish of the peer.
    pub(super) fn take_key_away(&self, key: u32, guard: &Guard) -> Result<Draining, BindFault> {
        self.context.mrs.invalidate(key, self.user(), guard)
    }

    fn user(&self) -> User {
        User { pd: self.pd(), qp: self.uid }
    }

    /// All of a SEND_WITH_INV has arrived: takes the key away, and completes when nobody uses what was
    /// behind it.
    #[cold]
    pub(super) fn invalidate_for(&self, responder: &mut Responder, request: &Request<'_>) -> Step {
        match self.take_key_away(request.wr.imm, request.guard) {
            Err(BindFault) => self.refuse_access(responder),
            Ok(draining) => {
                responder.draining = Some(draining);
                self.go_on_invalidating(responder, request)
            }
        }
    }

    #[cold]
    pub(super) fn go_on_invalidating(
        &self,
        responder: &mut Responder,
        request: &Request<'_>,
    ) -> Step {
        let step = go_on(&mut responder.draining);
        if step == Step::Done {
            self.complete_recv(responder, request, WcOpcode::Recv);
        }
        step
    }
}

/// Whether nobody uses any more what was taken away.
pub(super) fn go_on(draining: &mut Option<Draining>) -> Step {
    if draining.as_mut().is_some_and(|taken| !taken.is_done()) {
        return Step::Busy;
    }
    *draining = None;
    Step::Done
}
