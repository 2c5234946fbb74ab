// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The commonest requests in a straight line, many under one hold of the locks: RDMA WRITEs and READs
//! of one range or of inline bytes, and SENDs of such into one range, at a peer that answered before.
//! Nothing here fails: what is in any way unusual is left, untouched, to `execute`, which finds out.

use rdma_midlayer::memory::Span;
use rdma_midlayer::rcu::Guard;
use rdma_midlayer::types::{Access, QpState, QpType, WcOpcode, WcStatus, WrOpcode};
use rdma_midlayer::work::{SendData, SendFlags, SendWr, WcFlags, WorkCompletion};
use smallvec::SmallVec;

use super::execute::packets;
use super::requester::Requester;
use super::responder::Responder;
use super::{PIECE, Qp};
use crate::soft::keys::Mrs;

/// Most WRs that the locks are held for.
pub(super) const BURST: usize = 16;

/// Bytes of messages after which their completions at the peer no longer wait for more messages.
const PROMPT: u64 = 2048;

/// What a burst came to.
pub(super) struct Done {
    /// WRs carried out.
    pub(super) count: usize,
    /// Bytes moved.
    pub(super) bytes: u64,
    /// The next WR is not for here.
    pub(super) unusual: bool,
}

impl Done {
    const NOTHING: Self = Self { count: 0, bytes: 0, unusual: true };
}

/// Completions of the peer's, which wait for the end of the burst: its CQ may be ours, or another's
/// whose burst waits for ours.
struct Received {
    wcs: SmallVec<[WorkCompletion; BURST]>,
    solicited: bool,
}

/// Where the bytes of a WR come from.
enum Source<'a> {
    Span(Span<'a>),
    Bytes(&'a [u8]),
}

impl Source<'_> {
    #[inline]
    fn copy_to(&self, to: &Span<'_>) {
        match self {
            Self::Span(from) => to.copy_from(from),
            Self::Bytes(bytes) => to.write(bytes),
        }
    }
}

/// What the peer of a burst lets us do.
#[derive(Clone, Copy)]
struct Allowed {
    writes: bool,
    reads: bool,
    sends: bool,
}

impl Qp {
    /// Carries out as many of `wrs` as are as usual, in order. The QP was in RTS and had nothing else to
    /// do; its requester is locked. Never sleeps; bounded by `BURST` WRs and `PIECE` bytes, and what a
    /// single WR may have.
    pub(super) fn burst(&self, r: &mut Requester, wrs: &[SendWr<'_>], guard: &Guard) -> Done {
        let Requester { attr, link, cq, .. } = r;
        let (next_psn, Some((peer, epoch))) = link.parts() else { return Done::NOTHING };
        let first = wrs.first();
        if self.created.xrc
            || first.is_none_or(|wr| self.length_if_usual(wr).is_none())
            || epoch != self.context.network.epoch()
        {
            return Done::NOTHING;
        }
        let Some(mut responder) = peer.responder.0.try_lock_briefly() else {
            return Done::NOTHING;
        };
        let responder = &mut *responder;
        let mut psn = *next_psn;
        if !peer.as_usual(responder, (self.uid, epoch), psn, guard) {
            return Done::NOTHING;
        }
        let rc = self.created.qp_type == QpType::Rc;
        let allowed = Allowed {
            writes: responder.allows(Access::REMOTE_WRITE),
            reads: rc && attr.max_rd_atomic > 0 && responder.allows(Access::REMOTE_READ),
            sends: responder.takes_messages(),
        };
        let mtu = attr.path_mtu.bytes() as u64;
        let mut received = Received { wcs: SmallVec::new(), solicited: false };
        // Each can be polled at once. To write them all at the end was tried: the next lock then waits
        // until the last of them has left the store buffer.
        let mut sent = cq.as_ref().map(|cq| cq.begin());
        let mut done = Done { count: 0, bytes: 0, unusual: false };
        for wr in wrs.iter().take(BURST) {
            let len = if self.state() == QpState::Rts && peer.is_ready() {
                self.length_if_usual(wr)
            } else {
                None
            };
            let moved = len.filter(|&len| {
                self.move_bytes(peer, responder, wr, len, allowed, &mut received, guard)
            });
            let Some(len) = moved else {
                done.unusual = true;
                break;
            };
            psn = psn.plus(packets(len, mtu));
            done.count += 1;
            done.bytes += len;
            if let Some(wc) = self.send_completion(wr, len, WcStatus::Success)
                && let Some(sent) = &mut sent
                && sent.push(&wc).is_err()
            {
                break;
            }
            // What waits must not wait for long.
            if done.bytes >= if received.wcs.is_empty() { PIECE } else { PROMPT } {
                break;
            }
        }
        responder.advance(psn);
        *next_psn = psn;
        let told = sent.map(|sent| sent.end(false));
        if let (Some(Err(overflowed)), Some(cq)) = (told, cq) {
            self.overflowed(cq, overflowed);
        }
        if !received.wcs.is_empty() {
            peer.push_list(responder.cq.as_ref(), &received.wcs, received.solicited);
        }
        done
    }

    /// The bytes of a WR of a form that is dealt with here.
    #[inline]
    fn length_if_usual(&self, wr: &SendWr<'_>) -> Option<u64> {
        let cap = &self.created.cap;
        let len = match wr.data {
            SendData::Sges([sge]) if cap.max_send_sge > 0 => u64::from(sge.length),
            SendData::Inline(bytes) if bytes.len() <= cap.max_inline as usize => bytes.len() as u64,
            _ => return None,
        };
        (len > 0 && len <= PIECE && wr.ud.is_none()).then_some(len)
    }

    /// Whether a requester's bytes may come here.
    #[inline]
    fn is_ready(&self) -> bool {
        matches!(self.state(), QpState::Rtr | QpState::Rts)
    }

    /// Moves the bytes of a WR. False: nothing was done.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "one step of a loop, apart for its length")]
    fn move_bytes(
        &self,
        peer: &Qp,
        responder: &mut Responder,
        wr: &SendWr<'_>,
        len: u64,
        allowed: Allowed,
        received: &mut Received,
        guard: &Guard,
    ) -> bool {
        let mrs = &self.context.mrs;
        match wr.opcode {
            WrOpcode::RdmaWrite if allowed.writes => {
                let Some(to) = peer.remote_span(wr, len, Access::REMOTE_WRITE, guard) else {
                    return false;
                };
                let Some(from) = self.source(mrs, wr, len, guard) else { return false };
                from.copy_to(&to);
                true
            }
            WrOpcode::RdmaRead if allowed.reads => {
                let SendData::Sges([sge]) = wr.data else { return false };
                let Some(from) = peer.remote_span(wr, len, Access::REMOTE_READ, guard) else {
                    return false;
                };
                let (pd, access) = (self.created.pd, Access::LOCAL_WRITE);
                let to = mrs.span(sge.lkey.0, sge.addr, len, pd, access, guard);
                to.is_some_and(|to| {
                    to.copy_from(&from);
                    true
                })
            }
            WrOpcode::Send | WrOpcode::SendWithImm if allowed.sends => {
                let Some(from) = self.source(mrs, wr, len, guard) else { return false };
                peer.deliver(self, responder, wr, len, &from, received, guard)
            }
            _ => false,
        }
    }

    #[inline]
    fn source<'a>(
        &self,
        mrs: &Mrs,
        wr: &SendWr<'a>,
        len: u64,
        guard: &'a Guard,
    ) -> Option<Source<'a>> {
        match wr.data {
            SendData::Sges([sge]) => {
                let pd = self.created.pd;
                mrs.span(sge.lkey.0, sge.addr, len, pd, Access::NONE, guard).map(Source::Span)
            }
            SendData::Inline(bytes) => Some(Source::Bytes(bytes)),
            _ => None,
        }
    }

    /// What a request names here.
    #[inline]
    fn remote_span<'g>(
        &self,
        wr: &SendWr<'_>,
        len: u64,
        access: Access,
        guard: &'g Guard,
    ) -> Option<Span<'g>> {
        self.context.mrs.span(wr.rkey.0, wr.remote_addr, len, self.created.pd, access, guard)
    }

    /// A message arrives here, for a receive WQE of one range. False: nothing was done, and the WQE is
    /// the next one still.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "one step of a loop, apart for its length")]
    fn deliver(
        &self,
        from: &Qp,
        responder: &mut Responder,
        wr: &SendWr<'_>,
        len: u64,
        data: &Source<'_>,
        received: &mut Received,
        guard: &Guard,
    ) -> bool {
        if !responder.take_ahead() {
            return false;
        }
        let span = match responder.wqe.sges() {
            [sge] if u64::from(sge.length) >= len => {
                let (pd, access) = (self.created.pd, Access::LOCAL_WRITE);
                self.context.mrs.span(sge.lkey.0, sge.addr, len, pd, access, guard)
            }
            _ => None,
        };
        let Some(to) = span else { return false };
        data.copy_to(&to);
        responder.use_up();
        let with_imm = wr.opcode == WrOpcode::SendWithImm;
        received.wcs.push(WorkCompletion {
            wr_id: responder.wqe.wr_id,
            ticket: responder.wqe.ticket,
            status: WcStatus::Success,
            opcode: WcOpcode::Recv,
            flags: if with_imm { WcFlags::WITH_IMM } else { WcFlags::default() },
            qpn: self.qpn,
            byte_len: len as u32,
            imm: if with_imm { wr.imm } else { 0 },
            src_qpn: from.qpn,
            vendor_err: 0,
        });
        received.solicited |= wr.flags.contains(SendFlags::SOLICITED);
        true
    }
}
