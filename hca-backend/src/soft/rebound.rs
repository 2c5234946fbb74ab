// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What consumers hold of keys that work requests change: MRs for fast registration, memory windows,
//! FMRs. What such a key is: `rebind`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rdma_midlayer::driver::{FmrAttr, FmrDriver, MrDriver, MwDriver};
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::types::{Access, LKey, MwType, RKey};
use rdma_midlayer::{Error, MaySleep, Result};

use super::context::Context;
use super::keys::check_access;
use super::rebind::{Draining, Kind, Rebind, TAG_MASK};
use super::spin::SpinLock;

/// A consumer's hold of an MR for fast registration.
pub(crate) struct FastMr(Rebound);

/// A consumer's hold of a memory window.
pub(crate) struct Mw(Rebound);

/// A consumer's hold of a key that work requests change.
struct Rebound {
    context: Arc<Context>,
    rebind: Arc<Rebind>,
    gone: Mutex<bool>,
}

impl Rebound {
    fn new(context: Arc<Context>, pd: u32, kind: Kind) -> Result<Self> {
        let rebind = context.mrs.allocate(pd, kind)?;
        Ok(Self { context, rebind, gone: Mutex::new(false) })
    }

    /// Ends it: when it returns nobody uses what was behind the key. May sleep.
    fn end(&self, cx: &MaySleep) -> Result<()> {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *gone, true) {
            return Err(Error::Gone);
        }
        if let Some(draining) = self.rebind.clear(true) {
            draining.wait(cx);
        }
        self.context.mrs.deregister(cx, self.rebind.key());
        Ok(())
    }
}

impl FastMr {
    pub(crate) fn new(context: Arc<Context>, pd: u32) -> Result<Self> {
        Ok(Self(Rebound::new(context, pd, Kind::Fast)?))
    }
}

impl MrDriver for FastMr {
    fn lkey(&self) -> LKey {
        LKey(self.0.rebind.key())
    }

    fn rkey(&self) -> RKey {
        RKey(self.0.rebind.key())
    }

    /// Memory comes by work requests only; without memory, none comes any more.
    fn replace_memory(&self, cx: &MaySleep, memory: Option<UserMemory>) -> Result<()> {
        if memory.is_some() {
            return Err(Error::Invalid("memory of an MR for fast registration"));
        }
        if let Some(draining) = self.0.rebind.clear(true) {
            draining.wait(cx);
        }
        Ok(())
    }

    fn dereg(&self, cx: &MaySleep) -> Result<()> {
        self.0.end(cx)
    }
}

impl Mw {
    pub(crate) fn new(context: Arc<Context>, pd: u32, mw_type: MwType) -> Result<Self> {
        Ok(Self(Rebound::new(context, pd, Kind::Window(mw_type))?))
    }
}

impl Mw {
    /// The key that the window gets when it is bound by one who knows it as `rkey`.
    pub(crate) fn next_key(rkey: RKey) -> RKey {
        RKey(rkey.0 & !TAG_MASK | rkey.0.wrapping_add(1) & TAG_MASK)
    }

    /// Whether the window belongs to the context, and `rkey` is a key of it.
    pub(crate) fn is(&self, context: &Arc<Context>, rkey: RKey) -> bool {
        Arc::ptr_eq(&self.0.context, context) && self.0.rebind.is(rkey.0)
    }
}

impl MwDriver for Mw {
    fn rkey(&self) -> RKey {
        RKey(self.0.rebind.key())
    }

    fn dealloc(&self, cx: &MaySleep) -> Result<()> {
        self.0.end(cx)
    }
}

/// A consumer's hold of a fast memory region.
pub(crate) struct Fmr {
    rebound: Rebound,
    access: Access,
    max_maps: usize,
    /// What was there before, since the last `unmap`; with room for `max_maps` from the start.
    before: SpinLock<Vec<Draining>>,
    maps: AtomicUsize,
}

impl Fmr {
    pub(crate) fn new(
        context: Arc<Context>,
        pd: u32,
        attr: FmrAttr,
        access: Access,
    ) -> Result<Self> {
        check_access(access)?;
        // A key must not come again while an older mapping of it may be meant.
        if attr.max_maps > TAG_MASK {
            return Err(Error::Limit("max_maps of an FMR"));
        }
        let max_maps = attr.max_maps as usize;
        Ok(Self {
            rebound: Rebound::new(context, pd, Kind::Fmr)?,
            access,
            max_maps,
            before: SpinLock::new(Vec::with_capacity(max_maps)),
            maps: AtomicUsize::new(0),
        })
    }
}

impl FmrDriver for Fmr {
    fn lkey(&self) -> LKey {
        LKey(self.rebound.rebind.key())
    }

    fn rkey(&self) -> RKey {
        RKey(self.rebound.rebind.key())
    }

    fn map_phys_fmr(&self, memory: Arc<UserMemory>) -> Result<()> {
        let take = |maps| (maps < self.max_maps).then_some(maps + 1);
        self.maps
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, take)
            .map_err(|_| Error::Limit("max_maps of the FMR"))?;
        if let Some(old) = self.rebound.rebind.map(self.access, memory) {
            self.before.lock().push(old);
        }
        Ok(())
    }

    fn unmap(&self, cx: &MaySleep) -> Result<()> {
        let now = self.rebound.rebind.clear(false);
        let room = Vec::with_capacity(self.max_maps);
        let before = std::mem::replace(&mut *self.before.lock(), room);
        before.into_iter().chain(now).for_each(|old| old.wait(cx));
        self.maps.store(0, Ordering::Release);
        Ok(())
    }

    fn dealloc(&self, cx: &MaySleep) -> Result<()> {
        self.unmap(cx)?;
        self.rebound.end(cx)
    }
}
