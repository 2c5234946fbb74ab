// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Multicast (IBA 10.5): a UD QP in its groups, and a datagram on its way from memory to all members.
//! Who the members are is in `groups`.

use std::sync::{Arc, PoisonError};

use rdma_midlayer::rcu::Guard;
use rdma_midlayer::types::{Gid, QpType, Qpn};
use rdma_midlayer::{Error, Result};

use super::Qp;
use super::datagram::{Arrival, Dest};
use super::execute::Step;
use crate::soft::context::Context;
use crate::soft::groups::{MEMBERS_A_STEP, behind};

impl Qp {
    /// Has the QP get what is sent to a group.
    ///
    /// # Errors
    /// `Invalid` for a QP that is not UD, a GID that is not a multicast one, or a group that it is in.
    pub(super) fn join_group(&self, gid: &Gid) -> Result<()> {
        if self.created.qp_type != QpType::Ud || !gid.is_multicast() {
            return Err(Error::Invalid("multicast is for UD QPs and multicast GIDs"));
        }
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if groups.contains(gid) {
            return Err(Error::Invalid("the group is attached already"));
        }
        self.context.take_attachment(*gid)?;
        groups.push(*gid);
        self.context.network.groups().join(*gid, self.uid, self.this.clone());
        Ok(())
    }

    /// Undoes `join_group`.
    ///
    /// # Errors
    /// `Invalid` for a group that it is not in.
    pub(super) fn leave_group(&self, gid: &Gid) -> Result<()> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let at = groups.iter().position(|group| group == gid);
        groups.swap_remove(at.ok_or(Error::Invalid("the group is not attached"))?);
        self.context.network.groups().leave(*gid, self.uid);
        self.context.give_attachment_back(*gid);
        Ok(())
    }

    /// The QP ends.
    pub(super) fn leave_all_groups(&self) {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for gid in &groups {
            // Somebody else may have been quicker.
            let _ = self.leave_group(gid);
        }
    }

    /// Whether a datagram to a group that the QP is in is for it, coming in this VLAN or none, from QP
    /// `from.1` of the device `from.0` of this network, or from outside. Never sleeps.
    pub(crate) fn hears_group(
        &self,
        vlan: Option<u16>,
        from: Option<(&Arc<Context>, Qpn)>,
    ) -> bool {
        let own = |(context, qpn)| Arc::ptr_eq(context, &self.context) && qpn == self.qpn;
        self.context.is_in_vlan(vlan) && !(self.created.block_self_mcast && from.is_some_and(own))
    }

    /// Gives a datagram to the members behind `reached` that one step reaches. Never sleeps.
    pub(super) fn send_to_group(
        &self,
        dest: &Dest,
        it: &Arrival<'_>,
        reached: &mut u64,
        guard: &Guard,
    ) -> Step {
        // A group is for its members only, who are called so.
        if dest.qpn != Qpn::MULTICAST {
            return Step::Done;
        }
        let network = &self.context.network;
        let Some(members) = network.groups().members(dest.path.dgid) else { return Step::Done };
        for (done, member) in behind(&members, *reached).iter().enumerate() {
            if done == MEMBERS_A_STEP {
                return Step::More;
            }
            if let Some(qp) = member.qp.upgrade()
                && qp.hears_group(it.vlan, Some((&self.context, self.qpn)))
            {
                let Some(mut responder) = qp.responder.0.try_lock_briefly() else {
                    return Step::Busy;
                };
                qp.receive(&mut responder, it, guard);
            }
            *reached = member.uid;
        }
        Step::Done
    }
}
