// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests that were carried out before and come again: each is answered as it was.

use super::{Reply, Resource, Responder};
use crate::soft::wire::counters::Both;
use crate::soft::wire::headers::Syndrome;
use crate::soft::wire::opcode::Kind;
use crate::soft::wire::packet::{Packet, within};

impl Responder {
    /// A request that was carried out before (IBA 9.7.5.1.5).
    pub(super) fn repeat(&mut self, packet: &Packet<'_>, counters: Both<'_>) {
        let psn = packet.bth.psn;
        match packet.op.kind {
            Kind::Send | Kind::Write => {
                let done = self.epsn.plus(0xff_ffff);
                let says_it =
                    |r: &Reply| matches!(r, Reply::Answer { psn, .. } if psn.since(done) >= 0);
                if !self.replies.back().is_some_and(says_it) {
                    self.answer(done, Syndrome::Ack, counters);
                }
            }
            Kind::ReadRequest => self.repeat_read(packet),
            Kind::CmpSwap | Kind::FetchAdd => {
                let found = self.resources.iter().find_map(|r| match r {
                    Resource::Atomic { psn: at, original } if *at == psn => Some(*original),
                    _ => None,
                });
                if let Some(original) = found {
                    self.insert(Reply::Atomic { psn, original, msn: self.msn });
                }
            }
            Kind::AtomicWrite | Kind::Flush => {
                let is_it = |r: &Resource| matches!(r, Resource::Placed { psn: at } if *at == psn);
                if self.resources.iter().any(is_it) {
                    self.insert(Reply::Placed { psn, msn: self.msn });
                }
            }
            Kind::ReadResponse | Kind::Ack | Kind::AtomicAck | Kind::Cnp => {}
        }
    }

    /// Part or all of a READ that was carried out: its responses are made again from there.
    fn repeat_read(&mut self, packet: &Packet<'_>) {
        let (psn, reth, mtu) = (packet.bth.psn, packet.reth, self.config.mtu as u64);
        let same = |r: &&Resource| match **r {
            Resource::Read { first, packets, addr, rkey, len, srqn } => {
                let skip = u64::from(psn.plus(first.get().wrapping_neg()).get()) * mtu;
                within(psn, first, packets)
                    && (packet.srqn, reth.rkey) == (srqn, rkey)
                    && reth.addr == addr.wrapping_add(skip)
                    && skip + u64::from(reth.len) == len
            }
            Resource::Atomic { .. } | Resource::Placed { .. } => false,
        };
        let Some(Resource::Read { first, packets, .. }) = self.resources.iter().find(same).copied()
        else {
            return;
        };
        let of_it =
            |r: &Reply| matches!(r, Reply::Read { psn, .. } if within(*psn, first, packets));
        self.replies.retain(|reply| !of_it(reply));
        self.insert(Reply::Read {
            psn,
            addr: reth.addr,
            rkey: reth.rkey,
            srqn: packet.srqn,
            left: reth.len.into(),
            started: false,
            msn: self.msn,
        });
    }

    /// Queues an answer before those of later requests. One of the same request is there once.
    fn insert(&mut self, reply: Reply) {
        let psn = reply.psn();
        let at = self.replies.iter().position(|r| r.psn().since(psn) >= 0);
        let at = at.unwrap_or(self.replies.len());
        if self
            .replies
            .get(at)
            .is_some_and(|r| r.psn() == psn && !matches!(r, Reply::Answer { .. }))
        {
            return;
        }
        self.replies.insert(at, reply);
    }
}
