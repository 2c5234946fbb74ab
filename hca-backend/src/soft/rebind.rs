// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keys whose memory changes while they are in use, by work requests: MRs for fast registration,
//! memory windows, FMRs. Their memory is counted by who uses it, so that taking it away waits for
//! nobody: who took it away looks again later whether it is alone.
//!
//! Not here: plain MRs, and the look-up of a key (`keys`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rdma_midlayer::MaySleep;
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::types::{Access, MwType};

use super::spin::SpinLock;

/// The bits of such a key that its consumer chooses.
pub(crate) const TAG_MASK: u32 = 0xff;

/// Numbers what is behind a key, so that a window knows its MR again.
static NEXT_GENERATION: AtomicU64 = AtomicU64::new(1);

/// A number that was never given before.
pub(crate) fn new_generation() -> u64 {
    NEXT_GENERATION.fetch_add(1, Ordering::Relaxed)
}

/// What kind of object the key belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An MR for REG_MR.
    Fast,
    /// A memory window.
    Window(MwType),
    /// A fast memory region.
    Fmr,
}

/// A key and what is behind it now.
pub(crate) struct Rebind {
    pub(crate) kind: Kind,
    pub(crate) pd: u32,
    /// The key without its tag.
    base: u32,
    state: SpinLock<State>,
}

struct State {
    tag: u32,
    bound: Option<Bound>,
    /// Takes no memory any more.
    ended: bool,
}

/// Memory behind a key, counted by those who use it through the key: whoever gave it may go on holding it.
pub(crate) type Used = Arc<Arc<UserMemory>>;

/// What a key shows.
struct Bound {
    access: Access,
    shows: Shows,
    /// The QP that alone may use it and take it away (windows of type 2).
    owner: Option<u64>,
    generation: u64,
}

enum Shows {
    Memory(Used),
    Part(Arc<Part>),
}

/// A part of an MR, as a window shows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// The MR's key.
    pub(crate) lkey: u32,
    /// What was behind it.
    pub(crate) generation: u64,
    /// First byte, in the MR's addresses.
    pub(crate) addr: u64,
    pub(crate) length: u64,
    /// Address of the first byte as peers name it.
    pub(crate) base: u64,
}

/// What a look-up found: its user while it lives.
pub(crate) enum Found {
    Memory(Used),
    /// The part, and the address in the MR.
    Part(Arc<Part>, u64),
}

/// What is no longer behind a key, while somebody may still be using it.
pub(crate) enum Draining {
    Memory(Used),
    Part(Arc<Part>),
}

impl Draining {
    /// Whether nobody uses it any more.
    pub(crate) fn is_done(&mut self) -> bool {
        match self {
            Self::Memory(memory) => Arc::get_mut(memory).is_some(),
            Self::Part(part) => Arc::get_mut(part).is_some(),
        }
    }

    /// Returns when nobody uses it any more: a piece of a message at the most. May sleep.
    pub(crate) fn wait(mut self, _cx: &MaySleep) {
        while !self.is_done() {
            std::thread::yield_now();
        }
    }
}

/// The object does not allow it (IBA: memory management operation error).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BindFault;

/// Who asks: whose keys count.
#[derive(Clone, Copy)]
pub(crate) struct User {
    pub(crate) pd: u32,
    /// The QP's number for ever.
    pub(crate) qp: u64,
}

impl Rebind {
    /// Nothing is behind the key yet; `key` has its first tag.
    pub(crate) fn new(kind: Kind, pd: u32, key: u32) -> Self {
        let state = State { tag: key & TAG_MASK, bound: None, ended: false };
        Self { kind, pd, base: key & !TAG_MASK, state: SpinLock::new(state) }
    }

    /// Whether a key is this one, with any tag.
    pub(crate) fn is(&self, key: u32) -> bool {
        key & !TAG_MASK == self.base
    }

    /// The key as it is now.
    pub(crate) fn key(&self) -> u32 {
        self.base | self.state.lock().tag
    }

    /// What is behind `key`, if the access is allowed. Never sleeps.
    pub(crate) fn find(
        &self,
        key: u32,
        user: User,
        access: Access,
        addr: u64,
        len: u64,
    ) -> Option<Found> {
        if self.pd != user.pd {
            return None;
        }
        let state = self.state.lock();
        let bound = state.bound.as_ref().filter(|_| key == self.base | state.tag)?;
        let mine = bound.owner.is_none_or(|owner| owner == user.qp);
        if !mine || !bound.access.contains(access) {
            return None;
        }
        match &bound.shows {
            Shows::Memory(memory) => {
                memory.contains(addr, len).then(|| Found::Memory(memory.clone()))
            }
            Shows::Part(part) => {
                let at = addr.checked_sub(part.base)?;
                let inside = at.checked_add(len).is_some_and(|end| end <= part.length);
                inside.then(|| Found::Part(part.clone(), part.addr.wrapping_add(at)))
            }
        }
    }

    /// Whether what is behind `key` may be used so. Never sleeps.
    pub(crate) fn gives(&self, key: u32, user: User, access: Access) -> bool {
        let state = self.state.lock();
        let bound = state.bound.as_ref().filter(|_| key == self.base | state.tag);
        self.pd == user.pd
            && bound.is_some_and(|bound| {
                bound.owner.is_none_or(|owner| owner == user.qp) && bound.access.contains(access)
            })
    }

    /// The generation of the memory behind `key`, if a window may show `len` bytes of it.
    pub(crate) fn windowed(
        &self,
        key: u32,
        pd: u32,
        wanted: Access,
        addr: u64,
        len: u64,
    ) -> Option<u64> {
        let state = self.state.lock();
        let bound = state.bound.as_ref().filter(|_| key == self.base | state.tag)?;
        let fits = self.pd == pd && self.kind == Kind::Fast && bound.access.contains(wanted);
        let Shows::Memory(memory) = &bound.shows else { return None };
        (fits && memory.contains(addr, len)).then_some(bound.generation)
    }

    /// The generation of what is behind `key` now.
    pub(crate) fn generation(&self, key: u32) -> Option<u64> {
        let state = self.state.lock();
        state.bound.as_ref().filter(|_| key == self.base | state.tag).map(|b| b.generation)
    }

    /// Puts memory behind the key of an MR that has none, with the tag of `key`. Never sleeps.
    pub(crate) fn register(
        &self,
        key: u32,
        access: Access,
        memory: Arc<UserMemory>,
    ) -> Result<(), BindFault> {
        // Allocated outside the lock, here and below.
        let memory = Arc::new(memory);
        let mut state = self.state.lock();
        if self.kind != Kind::Fast || state.bound.is_some() || state.ended {
            return Err(BindFault);
        }
        state.tag = key & TAG_MASK;
        state.bound = Some(Bound {
            access,
            shows: Shows::Memory(memory),
            owner: None,
            generation: new_generation(),
        });
        Ok(())
    }

    /// Makes a window show a part of an MR, with the tag of `key`, or nothing (type 1). What it showed
    /// before is the answer. Never sleeps.
    pub(crate) fn bind(
        &self,
        key: u32,
        access: Access,
        part: Option<Part>,
        by: u64,
    ) -> Result<Option<Draining>, BindFault> {
        let Kind::Window(mw_type) = self.kind else { return Err(BindFault) };
        let part = part.map(Arc::new);
        let mut state = self.state.lock();
        let type2 = mw_type == MwType::Type2;
        if state.ended || type2 && (state.bound.is_some() || part.is_none()) {
            return Err(BindFault);
        }
        state.tag = key & TAG_MASK;
        let new = part.map(|part| Bound {
            access,
            shows: Shows::Part(part),
            owner: type2.then_some(by),
            generation: new_generation(),
        });
        let old = std::mem::replace(&mut state.bound, new);
        drop(state);
        Ok(old.map(Bound::drain))
    }

    /// Takes away what is behind `key`, as a work request of a QP may. Never sleeps.
    pub(crate) fn invalidate(&self, key: u32, user: User) -> Result<Draining, BindFault> {
        if self.pd != user.pd || matches!(self.kind, Kind::Fmr | Kind::Window(MwType::Type1)) {
            return Err(BindFault);
        }
        let mut state = self.state.lock();
        let tag = state.tag;
        let valid = state.bound.as_ref().is_some_and(|bound| {
            key == self.base | tag && bound.owner.is_none_or(|owner| owner == user.qp)
        });
        if !valid {
            return Err(BindFault);
        }
        let old = state.bound.take();
        drop(state);
        old.map(Bound::drain).ok_or(BindFault)
    }

    /// Puts memory behind the next key of an FMR. What was there before is the answer. Never sleeps.
    pub(crate) fn map(&self, access: Access, memory: Arc<UserMemory>) -> Option<Draining> {
        let memory = Arc::new(memory);
        let mut state = self.state.lock();
        state.tag = state.tag.wrapping_add(1) & TAG_MASK;
        let new = Bound {
            access,
            shows: Shows::Memory(memory),
            owner: None,
            generation: new_generation(),
        };
        let old = state.bound.replace(new);
        drop(state);
        old.map(Bound::drain)
    }

    /// Takes away whatever is there; with `end`, for ever. Never sleeps.
    pub(crate) fn clear(&self, end: bool) -> Option<Draining> {
        let mut state = self.state.lock();
        state.ended |= end;
        let old = state.bound.take();
        drop(state);
        old.map(Bound::drain)
    }
}

impl Bound {
    fn drain(self) -> Draining {
        match self.shows {
            Shows::Memory(memory) => Draining::Memory(memory),
            Shows::Part(part) => Draining::Part(part),
        }
    }
}
