// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The commonest requests in a straight line, many under one hold of the locks: RDMA WRITEs and READs
//! of one SGE or of inline bytes, and SENDs of such into one SGE, at a peer that answered before.
//! Nothing here fails: what is in any way unusual is left, untouched, to `execute`, which finds out.

use std::sync::Arc;

use rdma_midlayer::attr::QpCap;
use rdma_midlayer::memory::Span;
use rdma_midlayer::rcu::Guard;
use rdma_midlayer::types::{Access, Psn, QpState, QpType, Qpn, WcOpcode, WcStatus, WrOpcode};
use rdma_midlayer::work::{
    SHORT_INLINE, SendFlags, Sge, ShortData, ShortRecv, ShortWr, WcFlags, WorkCompletion,
};

use super::execute::packets;
use super::requester::Requester;
use super::responder::Receive;
use super::{PIECE, Qp};
use crate::soft::cq::{self, Cq};
use crate::soft::keys::Finder;

/// Most WRs that the locks are held for.
pub(super) const BURST: usize = 16;

/// Bytes after which a burst ends: what the locks are held for at the most. Of long WRs a few are done
/// together, since a lock waits for the completion before it to reach the other core.
const LIMIT: u64 = 4 * PIECE;

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

/// The peer's receive queue during a burst.
struct Incoming<'a> {
    receive: Receive<'a>,
    /// The next WQEs, which are still in the queue.
    wqes: [ShortRecv; BURST],
    shown: usize,
    used: usize,
    /// Where their completions go.
    told: Told<'a>,
    solicited: bool,
}

enum Told<'a> {
    /// Into the CQ that the burst has for its own.
    Shared,
    /// Into another one, held as well.
    Held(cq::Burst<'a>),
}

/// Which forms of WRs are dealt with here.
#[derive(Clone, Copy)]
struct Usual {
    sge: bool,
    max_inline: u32,
}

impl Usual {
    fn of(cap: &QpCap) -> Self {
        Self { sge: cap.max_send_sge > 0, max_inline: cap.max_inline }
    }

    /// The bytes of a WR, if it has such a form.
    #[inline(always)]
    fn length(self, data: &ShortData) -> Option<u64> {
        let fits = match data {
            ShortData::Sge(_) => self.sge,
            ShortData::Inline(_, len) => u32::from(*len) <= self.max_inline,
        };
        let len = data.len().into();
        (fits && len > 0 && len <= PIECE).then_some(len)
    }
}

/// A burst under way.
struct Run<'a> {
    wrs: &'a [ShortWr],
    usual: Usual,
    /// The requester's QPN and its peer's.
    ends: (Qpn, Qpn),
    mtu: u64,
    signal_all: bool,
    /// The requester's memory and its peer's.
    ours: Finder<'a>,
    theirs: Finder<'a>,
    /// The requester's CQ. Each completion can be polled at once. To write them all at the end was tried: the
    /// next lock then waits until the last of them has left the store buffer.
    sent: Option<cq::Burst<'a>>,
    psn: Psn,
    done: Done,
    /// It is to end.
    full: bool,
}

impl<'a> Run<'a> {
    /// The next WR.
    #[inline(always)]
    fn next(&self) -> Option<&'a ShortWr> {
        let more = !self.full && !self.done.unusual;
        self.wrs.get(self.done.count).filter(|_| more)
    }

    /// A WR is carried out.
    #[inline(always)]
    fn finish(&mut self, wr: &ShortWr, len: u64, read: u32) {
        self.psn = self.psn.plus(packets(len, self.mtu));
        self.done.count += 1;
        self.done.bytes += len;
        self.full |= self.done.bytes >= LIMIT;
        if (self.signal_all || wr.flags.contains(SendFlags::SIGNALED))
            && let Some(sent) = &mut self.sent
        {
            let (wr_id, ticket, opcode) = (wr.wr_id, wr.ticket, WcOpcode::from(wr.opcode));
            self.full |= sent.push_sent(wr_id, ticket, opcode, self.ends.0, read).is_err();
        }
    }

    /// The requester's bytes go to `to`. False: they can't, so.
    #[inline(always)]
    fn send(&mut self, data: &ShortData, to: &Span<'_>) -> bool {
        match data {
            ShortData::Sge(sge) => {
                let from = self.ours.span(sge.lkey.0, sge.addr, sge.length.into(), Access::NONE);
                from.map(|from| to.copy_from(&from)).is_some()
            }
            ShortData::Inline(bytes, len) => {
                to.write(&bytes[..usize::from(*len).min(SHORT_INLINE)]);
                true
            }
        }
    }

    /// `send` to what a key of the peer's names, where host pages part one of the ranges.
    #[inline(never)]
    fn send_parted(&mut self, data: &ShortData, (key, addr): (u32, u64), access: Access) -> bool {
        let len = data.len().into();
        let Some(to) = self.theirs.memory(key, addr, len, access) else { return false };
        match data {
            ShortData::Sge(sge) => {
                let from = self.ours.memory(sge.lkey.0, sge.addr, len, Access::NONE);
                from.is_some_and(|from| to.copy_from(addr, from, sge.addr, len).is_ok())
            }
            ShortData::Inline(bytes, len) => {
                to.write(addr, &bytes[..usize::from(*len).min(SHORT_INLINE)]).is_ok()
            }
        }
    }

    /// A READ where host pages part one of the ranges.
    #[inline(never)]
    fn read_parted(&mut self, wr: &ShortWr, sge: &Sge) -> bool {
        let (key, addr, len) = (wr.rkey.0, wr.remote_addr, sge.length.into());
        let Some(from) = self.theirs.memory(key, addr, len, Access::REMOTE_READ) else {
            return false;
        };
        let to = self.ours.memory(sge.lkey.0, sge.addr, len, Access::LOCAL_WRITE);
        to.is_some_and(|to| to.copy_from(sge.addr, from, addr, len).is_ok())
    }

    /// WRITEs, as many as follow each other.
    #[inline(never)]
    fn writes(&mut self) {
        while let Some(wr) = self.next().filter(|wr| wr.opcode == WrOpcode::RdmaWrite) {
            let (key, addr) = (wr.rkey.0, wr.remote_addr);
            let done = self.usual.length(&wr.data).filter(|&len| {
                let to = self.theirs.span(key, addr, len, Access::REMOTE_WRITE);
                to.is_some_and(|to| self.send(&wr.data, &to))
                    || self.send_parted(&wr.data, (key, addr), Access::REMOTE_WRITE)
            });
            match done {
                Some(len) => self.finish(wr, len, 0),
                None => self.done.unusual = true,
            }
        }
    }

    /// READs, as many as follow each other.
    #[inline(never)]
    fn reads(&mut self) {
        while let Some(wr) = self.next().filter(|wr| wr.opcode == WrOpcode::RdmaRead) {
            let done = self.usual.length(&wr.data).filter(|&len| {
                let ShortData::Sge(sge) = &wr.data else { return false };
                let from = self.theirs.span(wr.rkey.0, wr.remote_addr, len, Access::REMOTE_READ);
                let to = self.ours.span(sge.lkey.0, sge.addr, len, Access::LOCAL_WRITE);
                to.zip(from).map(|(to, from)| to.copy_from(&from)).is_some()
                    || self.read_parted(wr, sge)
            });
            match done {
                Some(len) => self.finish(wr, len, wr.data.len()),
                None => self.done.unusual = true,
            }
        }
    }

    /// SENDs, as many as follow each other.
    #[inline(never)]
    fn sends(&mut self, incoming: &mut Incoming<'_>) {
        let is_send = |wr: &&ShortWr| matches!(wr.opcode, WrOpcode::Send | WrOpcode::SendWithImm);
        while let Some(wr) = self.next().filter(is_send) {
            let len = self.usual.length(&wr.data).filter(|len| incoming.deliver(self, wr, *len));
            match len {
                Some(len) => self.finish(wr, len, 0),
                None => self.done.unusual = true,
            }
        }
    }
}

impl<'a> Incoming<'a> {
    /// Looks at the WQEs of up to `max` messages. `cq` is held by the burst. `None` while somebody else has the
    /// peer's CQ, whose burst may want ours.
    #[inline]
    fn begin(receive: Receive<'a>, cq: Option<&Arc<Cq>>, max: usize) -> Option<Self> {
        let told = match (receive.cq(), cq) {
            (theirs, Some(ours)) if Arc::ptr_eq(theirs, ours) => Told::Shared,
            (theirs, _) => Told::Held(theirs.try_begin()?),
        };
        let mut wqes = [ShortRecv::default(); BURST];
        let shown = receive.peek(&mut wqes[..max.min(BURST)]);
        Some(Self { receive, wqes, shown, used: 0, told, solicited: false })
    }

    /// A message arrives for a WQE of one range. False: nothing was done, and the WQE is the next one still.
    #[inline(always)]
    fn deliver(&mut self, run: &mut Run<'_>, wr: &ShortWr, len: u64) -> bool {
        let Some(wqe) = self.wqes[..self.shown].get(self.used) else { return false };
        if u64::from(wqe.sge.length) < len {
            return false;
        }
        let (key, addr) = (wqe.sge.lkey.0, wqe.sge.addr);
        let place = run.theirs.span(key, addr, len, Access::LOCAL_WRITE);
        if !place.is_some_and(|place| run.send(&wr.data, &place))
            && !run.send_parted(&wr.data, (key, addr), Access::LOCAL_WRITE)
        {
            return false;
        }
        self.used += 1;
        let with_imm = wr.opcode == WrOpcode::SendWithImm;
        let wc = WorkCompletion {
            wr_id: wqe.wr_id,
            ticket: wqe.ticket,
            status: WcStatus::Success,
            opcode: WcOpcode::Recv,
            flags: if with_imm { WcFlags::WITH_IMM } else { WcFlags::default() },
            qpn: run.ends.1,
            byte_len: len as u32,
            imm: if with_imm { wr.imm } else { 0 },
            src_qpn: run.ends.0,
            vendor_err: 0,
            vlan: 0,
            sl: 0,
        };
        self.solicited |= wr.flags.contains(SendFlags::SOLICITED);
        // One that has no room is missed at the end.
        match (&mut self.told, &mut run.sent) {
            (Told::Shared, Some(sent)) => drop(sent.push(&wc)),
            (Told::Held(held), _) => drop(held.push(&wc)),
            (Told::Shared, None) => {}
        }
        true
    }

    /// What was used is taken out, and reported.
    fn end(self, peer: &Qp) {
        let Self { mut receive, used, told, solicited, .. } = self;
        receive.take_out(used);
        if let Told::Held(held) = told
            && let Err(overflowed) = held.end(solicited)
        {
            peer.overflowed(receive.cq(), overflowed);
        }
    }
}

impl Qp {
    /// Carries out as many of `wrs` as are as usual, in order. The QP was in RTS and had nothing else to
    /// do; its requester is locked. Never sleeps; bounded by `BURST` WRs and `LIMIT` bytes, and what a
    /// single WR may have.
    pub(super) fn burst(&self, r: &mut Requester, wrs: &[ShortWr], guard: &Guard) -> Done {
        let Requester { attr, link, cq, .. } = r;
        let (next_psn, Some((peer, epoch))) = link.parts() else { return Done::NOTHING };
        let usual = Usual::of(&self.created.cap);
        if self.created.xrc
            || wrs.first().is_none_or(|wr| usual.length(&wr.data).is_none())
            || epoch != self.context.network.epoch()
        {
            return Done::NOTHING;
        }
        let Some(mut responder) = peer.responder.0.try_lock_briefly() else {
            return Done::NOTHING;
        };
        let responder = &mut *responder;
        let psn = *next_psn;
        // Looked at once: with these locks neither side is modified, and an error that another thread finds
        // meanwhile comes after this burst.
        if !peer.as_usual(responder, (self.uid, epoch), psn, guard) || !peer.is_ready() {
            return Done::NOTHING;
        }
        let rc = self.created.qp_type == QpType::Rc;
        let writes = responder.allows(Access::REMOTE_WRITE);
        let reads = rc && attr.max_rd_atomic > 0 && responder.allows(Access::REMOTE_READ);
        let (epsn, mut receive) = responder.parts();
        let mut incoming = None;
        let mut run = Run {
            wrs: &wrs[..wrs.len().min(BURST)],
            usual,
            ends: (self.qpn, peer.qpn),
            mtu: attr.path_mtu.bytes() as u64,
            signal_all: self.created.signal_all,
            ours: Finder::new(&self.context.mrs, self.created.pd, guard),
            theirs: Finder::new(&peer.context.mrs, peer.created.pd, guard),
            sent: cq.as_ref().map(|cq| cq.begin()),
            psn,
            done: Done { count: 0, bytes: 0, unusual: false },
            full: false,
        };
        while let Some(wr) = run.next() {
            match wr.opcode {
                WrOpcode::RdmaWrite if writes => run.writes(),
                WrOpcode::RdmaRead if reads => run.reads(),
                WrOpcode::Send | WrOpcode::SendWithImm => {
                    if let Some(receive) = receive.take() {
                        let left = run.wrs.len() - run.done.count;
                        incoming = Incoming::begin(receive, cq.as_ref(), left);
                    }
                    match &mut incoming {
                        Some(incoming) => run.sends(incoming),
                        None => run.done.unusual = true,
                    }
                }
                _ => run.done.unusual = true,
            }
        }
        let Run { psn, sent, done, .. } = run;
        (*epsn, *next_psn) = (psn, psn);
        let shared = incoming.as_ref().filter(|incoming| matches!(incoming.told, Told::Shared));
        let (shared, solicited) = (shared.is_some(), shared.is_some_and(|i| i.solicited));
        if let (Some(Err(overflowed)), Some(cq)) = (sent.map(|sent| sent.end(solicited)), &*cq) {
            if shared {
                peer.fatal_locked();
            }
            self.overflowed(cq, overflowed);
        }
        // With our own CQ no longer held.
        if let Some(incoming) = incoming {
            let messages = incoming.used as u64;
            self.counts.sends.add(messages);
            peer.counts.recvs.add(messages);
            incoming.end(peer);
        }
        done
    }

    /// Whether a requester's bytes may come here.
    #[inline]
    fn is_ready(&self) -> bool {
        matches!(self.state(), QpState::Rtr | QpState::Rts)
    }
}
