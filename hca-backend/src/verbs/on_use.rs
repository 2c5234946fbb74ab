// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MRs that are pinned on use: an MR without remote rights is registered with the host when a request
//! first names it, and let go of again when others need the room, but never while a request that names
//! it may be under way. Not here: MRs that peers reach, whose key the HCA must know from the start.
//!
//! A request that finds its MR not pinned waits where it is (the queue is full), as one whose address
//! handle is missing does; the driver's thread registers the MR and says so.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rdma_midlayer::driver::{MrChange, MrDriver, SendReady};
use rdma_midlayer::memory::{Run, UserMemory};
use rdma_midlayer::types::{Access, LKey, RKey};
use rdma_midlayer::{Error, MaySleep, Result, rcu};

use super::engine::Job;
use super::hca::{Hca, lock};
use super::host::HostMr;
use super::memory::{Anchor, register};
use super::pd::Pd;
use super::queue::WorkQueue;
use crate::soft::spin::SpinLock;

/// Queues whose use of an MR is remembered one by one; one that more queues use stays pinned.
const QUEUES: usize = 8;
/// MRs used last that are not let go of: more than the SGEs of a request, so that pinning one does not
/// take another away from it.
const KEPT: u64 = 32;

/// The MRs of an HCA that are pinned on use.
pub(crate) struct Pins {
    /// Bytes that may be pinned so, if others can be let go of.
    budget: u64,
    /// Counts uses that had to pin.
    clock: AtomicU64,
    pinned: Mutex<Vec<Weak<OnUse>>>,
}

impl Pins {
    pub(crate) fn new(budget: u64) -> Self {
        Self { budget, clock: AtomicU64::new(KEPT), pinned: Mutex::default() }
    }

    /// Lets go of the MR that was used least lately and is at rest; whether there was one. May sleep.
    fn let_one_go(&self, cx: &MaySleep, hca: &Hca) -> bool {
        let now = self.clock.load(Ordering::Relaxed);
        let mut all: Vec<_> = lock(&self.pinned).iter().filter_map(Weak::upgrade).collect();
        all.retain(|mr| mr.used.load(Ordering::Relaxed) + KEPT <= now);
        all.sort_by_key(|mr| mr.used.load(Ordering::Relaxed));
        let gone = all.into_iter().find(|mr| mr.let_go(cx, hca));
        if let Some(gone) = &gone {
            self.forget(gone);
        }
        gone.is_some()
    }

    fn forget(&self, gone: &Arc<OnUse>) {
        lock(&self.pinned).retain(|mr| !std::ptr::eq(mr.as_ptr(), Arc::as_ptr(gone)));
    }

    fn bytes(&self) -> u64 {
        lock(&self.pinned).iter().filter_map(Weak::upgrade).map(|mr| mr.len()).sum()
    }
}

/// What a request gets that names such an MR.
pub(crate) enum Use {
    /// The host's key, valid until the request is done.
    Key(u32),
    /// Not yet: the queue is told when.
    Later,
    /// It can't be pinned, or it has ended.
    Failed,
}

/// An MR that is pinned on use.
pub(crate) struct OnUse {
    pd: Weak<Pd>,
    start: u64,
    access: Access,
    key: u32,
    /// Gives the key its number; nobody reaches memory by it.
    anchor: Mutex<Option<Anchor>>,
    used: AtomicU64,
    /// Held while the host's MR is made or ended, which takes a while.
    changing: Mutex<()>,
    state: SpinLock<State>,
}

#[derive(Default)]
struct State {
    parts: Vec<Run>,
    host: Option<Arc<HostMr>>,
    /// Queues that have named it since it was pinned, and up to which request.
    uses: [Option<Seen>; QUEUES],
    /// More queues than that.
    overflowed: bool,
    ordered: bool,
    failed: bool,
    ended: bool,
    waiting: Vec<Arc<dyn SendReady>>,
}

#[derive(Clone, Copy)]
struct Seen {
    index: u32,
    generation: u32,
    position: u32,
}

impl OnUse {
    /// Whether MRs of these rights are pinned on use, if any are.
    pub(crate) fn suits(access: Access) -> bool {
        let remote = Access::REMOTE_WRITE.0 | Access::REMOTE_READ.0 | Access::REMOTE_ATOMIC.0;
        access.0 & (remote | Access::MW_BIND.0) == 0
    }

    pub(crate) fn register(
        pd: &Arc<Pd>,
        memory: &UserMemory,
        access: Access,
    ) -> Result<Arc<dyn MrDriver>> {
        let parts = memory.places().into_iter().map(|(_, run)| run).collect();
        let anchor = Anchor::new(pd.host())?;
        let mr = Arc::new(Self {
            pd: Arc::downgrade(pd),
            start: memory.start(),
            access,
            key: anchor.key(),
            anchor: Mutex::new(Some(anchor)),
            used: AtomicU64::new(0),
            changing: Mutex::new(()),
            state: SpinLock::new(State { parts, ..State::default() }),
        });
        pd.on_use().lock().insert(mr.key, mr.clone());
        Ok(Arc::new(OnUseMr { pd: pd.clone(), mr }))
    }

    fn len(&self) -> u64 {
        self.state.lock().parts.iter().map(|part| part.len as u64).sum()
    }

    /// A request that is about to be posted to `queue` names the MR. Between this and the post the caller
    /// stays in one section of `rcu`. Never sleeps.
    pub(crate) fn request(self: &Arc<Self>, hca: &Hca, queue: &WorkQueue) -> Use {
        let now = hca.pins.as_ref().map_or(0, |pins| pins.clock.load(Ordering::Relaxed));
        self.used.store(now, Ordering::Relaxed);
        let mut state = self.state.lock();
        if let Some(host) = &state.host {
            let lkey = host.lkey();
            state.note(queue);
            return Use::Key(lkey);
        }
        if state.ended || std::mem::take(&mut state.failed) {
            return Use::Failed;
        }
        if let Some(waiter) = queue.waiter()
            && !state.waiting.iter().any(|other| Arc::ptr_eq(other, waiter))
        {
            state.waiting.push(waiter.clone());
        }
        if !std::mem::replace(&mut state.ordered, true) {
            drop(state);
            hca.engine.submit(Job::Pin(self.clone()));
        }
        Use::Later
    }

    /// The driver's thread: pins it, for those who wait.
    pub(crate) fn pin(self: &Arc<Self>, cx: &MaySleep) {
        // Without its PD it has ended.
        let Some(pd) = self.pd.upgrade() else { return };
        let hca = pd.context().hca();
        let _changing = lock(&self.changing);
        let made = self.make(cx, &pd);
        let mut state = self.state.lock();
        state.ordered = false;
        match made {
            Ok(Some(made)) => {
                state.uses = Default::default();
                state.overflowed = false;
                state.host = Some(Arc::new(made));
            }
            Ok(None) => {}
            Err(e) => {
                log::warn!("{}: an MR can't be pinned on use: {e}", hca.host.name());
                state.failed = true;
            }
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.iter().for_each(|waiter| waiter.send_ready());
    }

    /// Registers it, and lets go of others if that takes their room; none if that is done already.
    fn make(self: &Arc<Self>, cx: &MaySleep, pd: &Arc<Pd>) -> Result<Option<HostMr>> {
        let hca = pd.context().hca();
        let pins = hca.pins.as_ref().ok_or(Error::Gone)?;
        let parts = {
            let state = self.state.lock();
            if state.host.is_some() || state.ended {
                return Ok(None);
            }
            state.parts.clone()
        };
        self.used.store(pins.clock.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        while pins.bytes() + self.len() > pins.budget && pins.let_one_go(cx, hca) {}
        loop {
            match register(pd.host(), self.start, &parts, self.access) {
                Err(Error::Limit(_)) if pins.let_one_go(cx, hca) => {}
                Err(e) => return Err(e),
                Ok(made) => {
                    lock(&pins.pinned).push(Arc::downgrade(self));
                    return Ok(Some(made));
                }
            }
        }
    }

    /// Ends the host's MR if no request that names it may be under way; whether it did. May sleep.
    fn let_go(&self, cx: &MaySleep, hca: &Hca) -> bool {
        let _changing = lock(&self.changing);
        let host = {
            let mut state = self.state.lock();
            if state.is_busy(hca) {
                return false;
            }
            let Some(host) = state.host.take() else { return false };
            host
        };
        // Who found it before has posted by now, and is seen to be under way.
        rcu::synchronize(cx);
        let mut state = self.state.lock();
        if state.is_busy(hca) {
            state.host = Some(host);
            return false;
        }
        drop(state);
        drop(host);
        true
    }

    /// The memory is no longer the MR's. When this returns, the HCA does not reach it.
    fn end(self: &Arc<Self>, cx: &MaySleep, hca: &Hca) {
        let _changing = lock(&self.changing);
        let (host, waiting) = {
            let mut state = self.state.lock();
            state.ended = true;
            (state.host.take(), std::mem::take(&mut state.waiting))
        };
        rcu::synchronize(cx);
        drop(host);
        self.state.lock().parts.clear();
        hca.pins.iter().for_each(|pins| pins.forget(self));
        waiting.iter().for_each(|waiter| waiter.send_ready());
    }
}

impl State {
    fn note(&mut self, queue: &WorkQueue) {
        let seen = queue.mark();
        let same = |old: &Option<Seen>| old.is_none_or(|old| old.index == seen.0);
        match self.uses.iter_mut().find(|old| same(old)) {
            Some(place) => {
                *place = Some(Seen { index: seen.0, generation: seen.1, position: seen.2 });
            }
            None => self.overflowed = true,
        }
    }

    /// Whether a request that names the MR may be under way.
    fn is_busy(&self, hca: &Hca) -> bool {
        let runs = |seen: &Seen| {
            hca.queues
                .get_arc(seen.index as usize)
                .is_some_and(|queue| !queue.has_passed(seen.generation, seen.position))
        };
        self.overflowed || self.uses.iter().flatten().any(runs)
    }
}

/// A consumer's hold on it.
struct OnUseMr {
    pd: Arc<Pd>,
    mr: Arc<OnUse>,
}

impl MrDriver for OnUseMr {
    fn lkey(&self) -> LKey {
        LKey(self.mr.key)
    }

    /// No peer reaches anything by it.
    fn rkey(&self) -> RKey {
        RKey(self.mr.key)
    }

    fn replace_memory(&self, cx: &MaySleep, memory: Option<UserMemory>) -> Result<()> {
        self.mr.end(cx, self.pd.context().hca());
        match memory {
            None => Ok(()),
            Some(_) => Err(Error::Unsupported("other memory under the key of an MR of the HCA's")),
        }
    }

    fn rereg(&self, _cx: &MaySleep, _change: MrChange) -> Result<()> {
        Err(Error::Unsupported("re-registering an MR that is pinned on use"))
    }

    fn dereg(&self, cx: &MaySleep) -> Result<()> {
        let known = self.pd.on_use().lock().remove(&self.mr.key);
        known.ok_or(Error::Gone)?;
        self.mr.end(cx, self.pd.context().hca());
        // Last: until here the key is nobody else's.
        drop(lock(&self.mr.anchor).take());
        Ok(())
    }
}
