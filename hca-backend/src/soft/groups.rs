// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Multicast groups of a network: which QPs get what is sent to a group, how many of them a tenant may
//! have, and the packets that have not reached all members yet. How a member is given a datagram is in
//! `qp::group`, how a link does it in `link`.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use rdma_midlayer::types::Gid;
use rdma_midlayer::{Error, Result};

use super::Limits;
use super::qp::Qp;
use super::spin::SpinLock;

/// Members that one datagram reaches in one go: as many bytes as a piece of another work request has.
pub(crate) const MEMBERS_A_STEP: usize = 16;

/// Packets that wait for their further members; more are lost.
const WAITING: usize = 1024;

/// A QP in a group.
#[derive(Clone)]
pub(crate) struct Member {
    /// Tells QPs apart for ever; members are in its order.
    pub(crate) uid: u64,
    pub(crate) qp: Weak<Qp>,
}

/// The groups of a network.
#[derive(Default)]
pub(crate) struct Groups {
    /// Held by who changes a group.
    changes: Mutex<()>,
    members: SpinLock<HashMap<Gid, Arc<[Member]>>>,
}

impl Groups {
    /// The members of a group as they are now. Never sleeps.
    pub(crate) fn members(&self, gid: Gid) -> Option<Arc<[Member]>> {
        self.members.lock().get(&gid).cloned()
    }

    /// Adds a QP that is not in the group.
    pub(crate) fn join(&self, gid: Gid, uid: u64, qp: Weak<Qp>) {
        self.change(gid, |members| {
            let at = members.partition_point(|member| member.uid < uid);
            members.insert(at, Member { uid, qp });
        });
    }

    /// Takes a QP out. Who has asked for the members before may still find it.
    pub(crate) fn leave(&self, gid: Gid, uid: u64) {
        self.change(gid, |members| members.retain(|member| member.uid != uid));
    }

    /// The copy is made, and the old one freed, while nobody waits.
    fn change(&self, gid: Gid, change: impl FnOnce(&mut Vec<Member>)) {
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut members = self.members(gid).map_or(Vec::new(), |members| members.to_vec());
        change(&mut members);
        let new = (!members.is_empty()).then(|| Arc::from(members));
        let mut all = self.members.lock();
        let old = match new {
            Some(new) => all.insert(gid, new),
            None => all.remove(&gid),
        };
        drop(all);
        drop(old);
    }
}

/// The members behind the one that was reached last.
pub(crate) fn behind(members: &[Member], reached: u64) -> &[Member] {
    &members[members.partition_point(|member| member.uid <= reached)..]
}

/// How many attachments a tenant has, of each group.
#[derive(Default)]
pub(crate) struct Attachments {
    of_group: HashMap<Gid, u32>,
    total: u32,
}

impl Attachments {
    /// One more.
    ///
    /// # Errors
    /// `Limit` if there may be no more.
    pub(crate) fn take(&mut self, gid: Gid, limits: &Limits) -> Result<()> {
        let groups = self.of_group.len();
        let entry = self.of_group.entry(gid);
        if self.total >= limits.max_total_mcast_qp_attach {
            return Err(Error::Limit("max_total_mcast_qp_attach"));
        }
        match entry {
            Entry::Vacant(_) if groups >= limits.max_mcast_grp as usize => {
                return Err(Error::Limit("max_mcast_grp"));
            }
            Entry::Occupied(there) if *there.get() >= limits.max_mcast_qp_attach => {
                return Err(Error::Limit("max_mcast_qp_attach"));
            }
            entry => *entry.or_insert(0) += 1,
        }
        self.total += 1;
        Ok(())
    }

    /// One less.
    pub(crate) fn give_back(&mut self, gid: Gid) {
        let Entry::Occupied(mut there) = self.of_group.entry(gid) else { return };
        self.total -= 1;
        *there.get_mut() -= 1;
        if *there.get() == 0 {
            there.remove();
        }
    }
}

/// A packet that has not reached all members of its group.
pub(crate) struct Parcel {
    /// Since when it waits.
    pub(crate) since: Instant,
    /// All of the frame, which was found right.
    pub(crate) frame: Vec<u8>,
    /// The member that it reached last; 0: none.
    pub(crate) reached: u64,
}

/// Such packets, in order: none overtakes another.
#[derive(Default)]
pub(crate) struct Parcels {
    queue: SpinLock<VecDeque<Parcel>>,
    count: AtomicUsize,
}

impl Parcels {
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Since when the first one waits.
    pub(crate) fn since(&self) -> Option<Instant> {
        if self.is_empty() { None } else { self.queue.lock().front().map(|first| first.since) }
    }

    /// Adds a packet at the end. False if there are too many.
    pub(crate) fn push(&self, parcel: Parcel) -> bool {
        let mut queue = self.queue.lock();
        let room = queue.len() < WAITING;
        if room {
            queue.push_back(parcel);
            self.count.store(queue.len(), Ordering::Release);
        }
        room
    }

    /// Takes the first one out.
    pub(crate) fn pop(&self) -> Option<Parcel> {
        if self.is_empty() {
            return None;
        }
        let mut queue = self.queue.lock();
        let first = queue.pop_front();
        self.count.store(queue.len(), Ordering::Release);
        first
    }

    /// Puts it back: it has more members to reach.
    pub(crate) fn put_back(&self, parcel: Parcel) {
        let mut queue = self.queue.lock();
        queue.push_front(parcel);
        self.count.store(queue.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Gid = Gid([0xff; 16]);

    #[test]
    fn members_are_in_order_and_a_group_without_any_is_none() {
        let groups = Groups::default();
        for uid in [5, 2, 9] {
            groups.join(GROUP, uid, Weak::new());
        }
        let members = groups.members(GROUP).unwrap();
        let uids = |members: &[Member]| members.iter().map(|m| m.uid).collect::<Vec<_>>();
        assert_eq!(uids(&members), [2, 5, 9]);
        assert_eq!(uids(behind(&members, 0)), [2, 5, 9]);
        // The one that was reached last has left since.
        assert_eq!(uids(behind(&members, 4)), [5, 9]);
        assert_eq!(uids(behind(&members, 9)), [0; 0]);
        for uid in [2, 5, 9] {
            groups.leave(GROUP, uid);
        }
        assert!(groups.members(GROUP).is_none());
        assert_eq!(members.len(), 3, "a copy stays as it is");
    }

    #[test]
    fn each_of_the_three_limits_is_kept_and_what_is_given_back_is_there_again() {
        let limits = Limits {
            max_mcast_grp: 2,
            max_mcast_qp_attach: 2,
            max_total_mcast_qp_attach: 3,
            ..Limits::default()
        };
        let group = |n: u8| Gid([n; 16]);
        let mut attachments = Attachments::default();
        let mut take = |n| attachments.take(group(n), &limits);
        assert_eq!((take(1), take(1)), (Ok(()), Ok(())));
        assert_eq!(take(1), Err(Error::Limit("max_mcast_qp_attach")));
        assert_eq!(take(2), Ok(()));
        assert_eq!(take(2), Err(Error::Limit("max_total_mcast_qp_attach")));
        attachments.give_back(group(1));
        assert_eq!(attachments.take(group(3), &limits), Err(Error::Limit("max_mcast_grp")));
        attachments.give_back(group(1));
        attachments.take(group(3), &limits).unwrap();
        assert_eq!(attachments.total, 2);
    }
}
