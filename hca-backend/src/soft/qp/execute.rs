// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a send WR of a connected QP is carried out against its peer, or a piece of it. When that
//! happens, and what becomes of the WR then, is in `requester`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rdma_midlayer::attr::QpAttr;
use rdma_midlayer::rcu::Guard;
use rdma_midlayer::types::{Access, Gid, Psn, QpType, WcStatus, WrOpcode};
use rdma_midlayer::work::{SendData, SendWr};
use rdma_midlayer::{Error, Result};

use super::local::is_local;
use super::paging::{Bytes, Lack, Waiting};
use super::responder::Request;
use super::{PIECE, Qp};
use crate::soft::MAX_MESSAGE;
use crate::soft::place::Place;

/// How a step of a WR ended. Small enough for a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The WR is carried out.
    Done,
    /// One more `PIECE` of it is.
    More,
    /// The peer has no receive WQE; its timer code.
    Rnr(u8),
    /// Nobody answers.
    Lost,
    /// Another thread is at the peer: later.
    Busy,
    /// Pages of our memory are missing, and asked for.
    Absent,
    /// Pages of the peer's are; its timer code.
    AbsentThere(u8),
    /// The WR ends with an error.
    Fail(WcStatus),
}

/// The way to the peer.
pub(super) struct Link {
    /// Of the next packet.
    pub(super) psn: Psn,
    peer: Option<Peer>,
}

/// The peer, as found by GID and number.
struct Peer {
    qp: Arc<Qp>,
    /// Right while the network has this epoch.
    epoch: u64,
    source: Gid,
}

impl Link {
    /// To a peer that is still to be found.
    pub(super) fn new(psn: Psn) -> Self {
        Self { psn, peer: None }
    }

    /// The next PSN; and the peer, if it was found before, with the network's epoch then.
    #[inline]
    pub(super) fn parts(&mut self) -> (&mut Psn, Option<(&Qp, u64)>) {
        (&mut self.psn, self.peer.as_ref().map(|peer| (&*peer.qp, peer.epoch)))
    }

    /// The peer may be another from now on.
    pub(super) fn forget_peer(&mut self) {
        self.peer = None;
    }

    /// The peer, its proof of identity looked up only when GIDs have changed.
    #[inline]
    fn resolve(&mut self, qp: &Qp, attr: &QpAttr) -> Option<&Peer> {
        let epoch = qp.context.network.epoch();
        if self.peer.as_ref().is_none_or(|peer| peer.epoch != epoch) {
            self.peer = None;
            let source = qp.context.gid(attr.ah.sgid_index)?;
            let context = qp.context.network.find(attr.ah.dgid)?;
            let found = context.qp(attr.dest_qpn)?;
            self.peer = Some(Peer { qp: found, epoch, source });
        }
        self.peer.as_ref()
    }
}

/// What a WR's opcode says of it.
#[derive(Clone, Copy)]
struct Form {
    /// It brings something into local memory.
    reads: bool,
    /// It has 8 bytes of data.
    one_word: bool,
    /// It is of those of which the peer takes `max_dest_rd_atomic` at once.
    answered: bool,
}

impl Form {
    #[inline]
    fn of(opcode: WrOpcode) -> Self {
        let (reads, one_word, answered) = match opcode {
            WrOpcode::RdmaRead => (true, false, true),
            WrOpcode::AtomicCmpAndSwp | WrOpcode::AtomicFetchAndAdd => (true, true, true),
            WrOpcode::AtomicWrite => (false, true, true),
            WrOpcode::Flush => (false, false, true),
            _ => (false, false, false),
        };
        Self { reads, one_word, answered }
    }
}

/// Whether a FLUSH names more bytes than a message may have.
#[inline]
pub(super) fn is_long_flush(data: SendData<'_>) -> bool {
    matches!(data, SendData::Flush(flush) if !flush.whole_mr && flush.length > MAX_MESSAGE)
}

impl Qp {
    /// Checks what the transport has (IBA table 58).
    #[inline]
    pub(super) fn check_transport(&self, wr: &SendWr<'_>) -> Result<()> {
        use WrOpcode::{RdmaWrite, RdmaWriteWithImm, Send, SendWithImm};
        let opcode = wr.opcode;
        let fits = match self.created.qp_type {
            QpType::Rc => true,
            QpType::Uc => {
                matches!(opcode, Send | SendWithImm | RdmaWrite | RdmaWriteWithImm)
                    || is_local(opcode)
            }
            QpType::Ud | QpType::Gsi => matches!(opcode, Send | SendWithImm),
            QpType::XrcIni => wr.srqn.is_some() || is_local(opcode),
            QpType::XrcTgt => false,
        };
        if !fits {
            return Err(Error::Invalid("opcode for the transport"));
        }
        if wr.ud.is_some() != self.is_datagram() {
            return Err(Error::Invalid("destination"));
        }
        Ok(())
    }

    /// Carries out the next piece of a WR of a connected QP. Never sleeps.
    #[inline]
    pub(super) fn execute(
        &self,
        attr: &QpAttr,
        link: &mut Link,
        wr: &SendWr<'_>,
        len: u64,
        offset: u64,
        guard: &Guard,
    ) -> Step {
        let form = Form::of(wr.opcode);
        if len > MAX_MESSAGE || form.one_word && len != 8 || is_long_flush(wr.data) {
            return Step::Fail(WcStatus::LocLenErr);
        }
        if form.answered && attr.max_rd_atomic == 0 {
            return Step::Fail(WcStatus::LocQpOpErr);
        }
        let access = if form.reads { Access::LOCAL_WRITE } else { Access::NONE };
        let view = self.view(access, guard);
        let Ok(local) = Place::of_data(wr.data, len, view) else {
            return Step::Fail(WcStatus::LocProtErr);
        };
        if self.recv_came.load(Ordering::Relaxed) {
            self.recv_came.store(false, Ordering::Relaxed);
        }
        let refused = self.fault.take_answer();
        let bytes = Bytes { offset, len: (len - offset).min(PIECE), rest: len - offset };
        match self.lacks(&local, bytes, form.reads, Some(Waiting::Requester(self)), refused) {
            Lack::Nothing => {}
            Lack::Asked => return Step::Absent,
            Lack::Refused => return Step::Fail(WcStatus::LocProtErr),
        }
        let psn = link.psn;
        // On an unreliable connection a message that is lost is done (IBA 9.7.8, 9.8.2).
        let unreliable = self.created.qp_type == QpType::Uc;
        let lost = if unreliable { Step::Done } else { Step::Lost };
        let Some(peer) = link.resolve(self, attr) else { return lost };
        let Some(mut responder) = peer.qp.responder.0.try_lock_briefly() else {
            return Step::Busy;
        };
        let request = Request { from: self, attr, wr, len, offset, local: &local, refused, guard };
        if !peer.qp.accepts(&mut responder, &request, psn, peer.epoch, peer.source) {
            drop(responder);
            link.peer = None;
            return lost;
        }
        let step = peer.qp.respond(&mut responder, &request);
        if step == Step::Done {
            let next = psn.plus(packets(len, attr.path_mtu.bytes() as u64));
            responder.advance(next);
            drop(responder);
            link.psn = next;
        }
        match step {
            // What is wrong over there is never heard of.
            Step::Rnr(_) | Step::Lost | Step::AbsentThere(_) if unreliable => Step::Done,
            Step::Fail(status) if unreliable && is_remote(status) => Step::Done,
            step => step,
        }
    }
}

/// Whether it is the peer that tells of the error.
fn is_remote(status: WcStatus) -> bool {
    matches!(status, WcStatus::RemInvReqErr | WcStatus::RemAccessErr | WcStatus::RemOpErr)
}

/// PSNs that a message takes: for a READ, those of its responses.
#[inline]
pub(super) fn packets(len: u64, mtu: u64) -> u32 {
    if len <= mtu { 1 } else { len.div_ceil(mtu) as u32 }
}
