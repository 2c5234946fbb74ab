// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Networks: which context has which GID. Peers find each other here once, and then ask only whether
//! anything has changed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use rdma_midlayer::attr::GidEntry;
use rdma_midlayer::types::Gid;
use rdma_midlayer::{Error, Result};

use super::context::Context;
use super::groups::Groups;
use super::link::Link;
use super::spin::SpinLock;

/// One network: GIDs are unique in it, and QPs reach no further.
pub(crate) struct Network {
    id: u64,
    /// Changes whenever a GID comes or goes.
    epoch: Arc<AtomicU64>,
    holders: SpinLock<HashMap<Gid, Holder>>,
    groups: Groups,
    /// The way to peers of other daemons.
    link: Option<Arc<Link>>,
    /// QPs of this network, too, talk by packets.
    force_wire: bool,
}

struct Holder {
    context: Weak<Context>,
    /// A context may enter a GID at several indices (one per VLAN, say).
    entries: u32,
}

impl Network {
    pub(crate) fn new(id: u64, link: Option<Arc<Link>>, force_wire: bool) -> Arc<Self> {
        let network = Arc::new(Self {
            id,
            epoch: Arc::new(AtomicU64::new(1)),
            holders: SpinLock::new(HashMap::new()),
            groups: Groups::default(),
            link,
            force_wire,
        });
        network.link.iter().for_each(|link| link.attach(&network));
        network
    }

    /// The way to peers of other daemons.
    pub(crate) fn link(&self) -> Option<&Arc<Link>> {
        self.link.as_ref()
    }

    /// Whether QPs of this network, too, talk by packets.
    pub(crate) fn force_wire(&self) -> bool {
        self.force_wire
    }

    /// All GIDs with what belongs to them.
    pub(crate) fn addresses(&self) -> Vec<GidEntry> {
        self.contexts().iter().flat_map(|context| context.gid_entries()).collect()
    }

    /// All contexts that have a GID.
    pub(crate) fn contexts(&self) -> Vec<Arc<Context>> {
        let mut contexts: Vec<Arc<Context>> = Vec::new();
        for holder in self.holders.lock().values() {
            if let Some(context) = holder.context.upgrade()
                && !contexts.iter().any(|c| Arc::ptr_eq(c, &context))
            {
                contexts.push(context);
            }
        }
        contexts
    }

    /// Its multicast groups.
    pub(crate) fn groups(&self) -> &Groups {
        &self.groups
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// What was found stays right while this does not change.
    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The epoch for those who outlive the network.
    pub(crate) fn shared_epoch(&self) -> Arc<AtomicU64> {
        self.epoch.clone()
    }

    /// Gives a GID to a context.
    ///
    /// # Errors
    /// `Busy` if another context has it.
    pub(crate) fn enter(&self, gid: Gid, context: &Arc<Context>) -> Result<()> {
        let mut holders = self.holders.lock();
        let holder = holders
            .entry(gid)
            .or_insert_with(|| Holder { context: Arc::downgrade(context), entries: 0 });
        if holder.context.as_ptr() != Arc::as_ptr(context) {
            if holder.context.strong_count() > 0 {
                return Err(Error::Busy("another context of the network has this GID"));
            }
            *holder = Holder { context: Arc::downgrade(context), entries: 0 };
        }
        holder.entries += 1;
        self.epoch.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Takes a GID from the context that has it.
    pub(crate) fn leave(&self, gid: Gid, context: &Context) {
        let mut holders = self.holders.lock();
        if let Some(holder) = holders.get_mut(&gid)
            && std::ptr::eq(holder.context.as_ptr(), context)
        {
            holder.entries -= 1;
            if holder.entries == 0 {
                holders.remove(&gid);
            }
        }
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// The context that has a GID. Never sleeps.
    pub(crate) fn find(&self, gid: Gid) -> Option<Arc<Context>> {
        self.holders.lock().get(&gid)?.context.upgrade()
    }
}
