// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packets to multicast groups: who behind the link gets them, in steps of which none is long. Who the
//! members are is in `groups`.

use std::time::Instant;

use rdma_midlayer::rcu::{self, Guard};
use rdma_midlayer::types::Qpn;

use super::{Handled, Link};
use crate::soft::groups::{MEMBERS_A_STEP, Member, Parcel, behind};
use crate::soft::network::Network;
use crate::soft::wire::frame::Datagram;
use crate::soft::wire::opcode::Transport;
use crate::soft::wire::packet::Packet;

/// Packets that get on by `MEMBERS_A_STEP` in one call.
const PARCELS: usize = 4;

impl Link {
    /// A packet for a group: for those of its members that are behind the link.
    pub(super) fn take_for_group(
        &self,
        now: Instant,
        frame: &[u8],
        datagram: &Datagram<'_>,
        from_outside: bool,
        guard: &Guard,
    ) -> Handled {
        let Some(network) = self.network() else { return Handled::NotOurs };
        let Some(members) = network.groups().members(datagram.dest) else {
            return Handled::NotOurs;
        };
        // What devices behind the link send to a group has come to its members here by another way.
        if from_outside && network.find(datagram.source).is_some() {
            self.counters.spoofed.inc();
            return Handled::Taken;
        }
        let Some(packet) = self.open(datagram, None) else { return Handled::Shared };
        if packet.bth.dest != Qpn::MULTICAST || packet.op.transport != Transport::Ud {
            self.counters.unknown_qp.inc();
            return Handled::Shared;
        }
        let mut reached = 0;
        if self.parcels.is_empty()
            && self.hand_out(now, datagram, &packet, (&network, &members), &mut reached, guard)
        {
            return Handled::Shared;
        }
        if !self.parcels.push(Parcel { since: now, frame: frame.to_vec(), reached }) {
            self.counters.group_dropped.inc();
        } else if self.ready.must_wake() {
            self.wake();
        }
        Handled::Shared
    }

    /// Gives a packet to the members behind `reached` that one step reaches. Whether those were all.
    fn hand_out(
        &self,
        now: Instant,
        datagram: &Datagram<'_>,
        packet: &Packet<'_>,
        (network, members): (&Network, &[Member]),
        reached: &mut u64,
        guard: &Guard,
    ) -> bool {
        let from = network.find(datagram.source);
        let from = from.as_ref().map(|context| (context, packet.deth.src));
        let rest = behind(members, *reached);
        for member in rest.iter().take(MEMBERS_A_STEP) {
            if let Some(qp) = member.qp.upgrade()
                && qp.hears_group(datagram.vlan, from)
            {
                qp.wire_receive(now, self, datagram, packet, guard);
            }
            *reached = member.uid;
        }
        rest.len() <= MEMBERS_A_STEP
    }

    /// Goes on with packets that have further members to reach.
    pub(super) fn forward_parcels(&self, now: Instant) {
        for _ in 0..PARCELS {
            let Some(mut parcel) = self.parcels.pop() else { return };
            let Some(network) = self.network() else { continue };
            let Ok(datagram) = Datagram::parse(&parcel.frame) else { continue };
            let Ok(packet) = Packet::parse(datagram.transport) else { continue };
            let Some(members) = network.groups().members(datagram.dest) else { continue };
            let (guard, mut reached) = (rcu::enter(), parcel.reached);
            let to = (&*network, &*members);
            if !self.hand_out(now, &datagram, &packet, to, &mut reached, &guard) {
                parcel.reached = reached;
                self.parcels.put_back(parcel);
            }
        }
    }
}
