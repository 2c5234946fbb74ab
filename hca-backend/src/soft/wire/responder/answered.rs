// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests with responses of their own: READs, atomics, atomic writes, FLUSHes. What comes again is in
//! `repeat`.

use rdma_midlayer::types::{Access, Psn};
use rdma_midlayer::work::Flush;

use super::{AHEAD, Atomic, Host, MAX_MESSAGE, No, Refusal, Reply, Resource, Responder};
use crate::soft::wire::headers::Feth;
use crate::soft::wire::opcode::Kind;
use crate::soft::wire::packet::{Packet, packets};

impl Responder {
    pub(super) fn on_read(&mut self, packet: &Packet<'_>, host: &mut impl Host) -> Result<Psn, No> {
        let reth = packet.reth;
        let len = u64::from(reth.len);
        if !self.config.access.contains(Access::REMOTE_READ)
            || len > MAX_MESSAGE
            || !self.may_read_more()
        {
            return Err(Refusal::Invalid.into());
        }
        if len > 0 && !host.check(reth.rkey, reth.addr, len, Access::REMOTE_READ) {
            return Err(Refusal::Access.into());
        }
        let ahead = len.min(AHEAD);
        self.find_pages(host, (reth.rkey, reth.addr), (ahead, ahead), false)?;
        let psn = packet.bth.psn;
        let count = packets(len, self.config.mtu);
        self.count_message();
        self.keep(Resource::Read {
            first: psn,
            packets: count,
            addr: reth.addr,
            rkey: reth.rkey,
            len,
            srqn: packet.srqn,
        });
        self.replies.push_back(Reply::Read {
            psn,
            addr: reth.addr,
            rkey: reth.rkey,
            srqn: packet.srqn,
            left: len,
            started: false,
            msn: self.msn,
        });
        Ok(psn.plus(count))
    }

    pub(super) fn on_atomic(
        &mut self,
        packet: &Packet<'_>,
        host: &mut impl Host,
    ) -> Result<Psn, No> {
        let eth = packet.atomic;
        if !self.config.access.contains(Access::REMOTE_ATOMIC)
            || !eth.addr.is_multiple_of(8)
            || !self.may_read_more()
        {
            return Err(Refusal::Invalid.into());
        }
        let atomic = match packet.op.kind {
            Kind::CmpSwap => Atomic::CmpSwap { compare: eth.compare, swap: eth.swap_add },
            _ => Atomic::FetchAdd { add: eth.swap_add },
        };
        self.find_pages(host, (eth.rkey, eth.addr), (8, 8), true)?;
        let original = host.atomic(eth.rkey, eth.addr, atomic)?;
        let psn = packet.bth.psn;
        self.count_message();
        self.keep(Resource::Atomic { psn, original });
        self.replies.push_back(Reply::Atomic { psn, original, msn: self.msn });
        Ok(psn.plus(1))
    }

    pub(super) fn on_atomic_write(
        &mut self,
        packet: &Packet<'_>,
        host: &mut impl Host,
    ) -> Result<Psn, No> {
        let reth = packet.reth;
        let word = <[u8; 8]>::try_from(packet.payload).map_err(|_| Refusal::Invalid)?;
        if !self.config.access.contains(Access::REMOTE_WRITE)
            || reth.len != 8
            || !reth.addr.is_multiple_of(8)
            || !self.may_read_more()
        {
            return Err(Refusal::Invalid.into());
        }
        self.find_pages(host, (reth.rkey, reth.addr), (8, 8), true)?;
        host.atomic_write(reth.rkey, reth.addr, word)?;
        Ok(self.placed(packet.bth.psn))
    }

    pub(super) fn on_flush(
        &mut self,
        packet: &Packet<'_>,
        host: &mut impl Host,
    ) -> Result<Psn, No> {
        let (feth, reth) = (packet.feth, packet.reth);
        let length = u64::from(reth.len);
        let right = |bit, right| if feth.placement & bit != 0 { right } else { Access::NONE };
        let placement = right(Feth::GLOBAL, Access::FLUSH_GLOBAL)
            | right(Feth::PERSISTENT, Access::FLUSH_PERSISTENT);
        let sound = (1..=Feth::GLOBAL | Feth::PERSISTENT).contains(&feth.placement)
            && feth.selectivity <= Feth::WHOLE_MR
            && length <= MAX_MESSAGE;
        if !sound || !self.config.access.contains(placement) || !self.may_read_more() {
            return Err(Refusal::Invalid.into());
        }
        let whole_mr = feth.selectivity == Feth::WHOLE_MR;
        if !host.flush(reth.rkey, reth.addr, &Flush { length, placement, whole_mr }) {
            return Err(Refusal::Access.into());
        }
        Ok(self.placed(packet.bth.psn))
    }

    /// A FLUSH or an atomic write is done: it is answered like a READ of nothing (annex A19).
    fn placed(&mut self, psn: Psn) -> Psn {
        self.count_message();
        self.keep(Resource::Placed { psn });
        self.replies.push_back(Reply::Placed { psn, msn: self.msn });
        psn.plus(1)
    }
}
