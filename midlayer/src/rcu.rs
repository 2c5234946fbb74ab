// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Read-copy-update: how the never-sleep verbs look objects up without a lock or a shared reference
//! count, and how destroy waits until nobody can still be using what it frees.
//!
//! There is one domain for the process. A reader enters it for a bounded time and never sleeps in
//! it; entering again inside is nearly free, so a worker enters once a turn.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::Arc;

use crate::context::MaySleep;
use crate::sync::{
    AtomicBool, AtomicPtr, AtomicU64, CHUNK, Ordering, can_fence_all_threads, compiler_fence,
    fence, fence_all_threads, global, own, pause,
};

/// What readers and writers share.
struct Domain {
    /// Steps by 2, so that a slot can hold it with bit 0 set for "inside".
    epoch: AtomicU64,
    slots: AtomicPtr<Slot>,
    /// Writers fence for the readers too: readers only keep the compiler in order.
    asymmetric: AtomicBool,
}

global! {
    static DOMAIN: Domain = Domain {
        epoch: AtomicU64::new(2),
        slots: AtomicPtr::new(null_mut()),
        asymmetric: AtomicBool::new(false),
    };
}

own! {
    /// Without a destructor, so that entering looks at nothing but the variable itself.
    static LOCAL: Local = Local { slot: Cell::new(None), depth: Cell::new(0) };
}

own! {
    static LEASE: Lease = Lease(Cell::new(None));
}

/// Where a thread says since when it is inside. Never freed; taken over by later threads.
#[repr(align(128))]
struct Slot {
    inside_since: AtomicU64,
    taken: AtomicBool,
    next: AtomicPtr<Slot>,
}

struct Local {
    /// Since the thread first entered.
    slot: Cell<Option<&'static Slot>>,
    depth: Cell<usize>,
}

impl Local {
    #[inline]
    fn slot(&self) -> &'static Slot {
        match self.slot.get() {
            Some(slot) => slot,
            None => self.lease(),
        }
    }

    #[cold]
    fn lease(&self) -> &'static Slot {
        let slot = take_slot();
        self.slot.set(Some(slot));
        // In a thread that has given its slot back already, this one stays taken.
        let _ = LEASE.try_with(|lease| lease.0.set(Some(slot)));
        slot
    }
}

/// Gives a thread's slot back when it ends.
struct Lease(Cell<Option<&'static Slot>>);

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(slot) = self.0.get() else { return };
        let _ = LOCAL.try_with(|local| local.slot.set(None));
        slot.inside_since.store(0, Ordering::Release);
        slot.taken.store(false, Ordering::Release);
    }
}

fn slots() -> impl Iterator<Item = &'static Slot> {
    let mut at = DOMAIN.slots.load(Ordering::Acquire);
    std::iter::from_fn(move || {
        // SAFETY: slots are leaked boxes that are published with release and never freed.
        let slot = unsafe { at.as_ref()? };
        at = slot.next.load(Ordering::Acquire);
        Some(slot)
    })
}

fn take_slot() -> &'static Slot {
    let free = |slot: &&Slot| {
        slot.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    if let Some(slot) = slots().find(free) {
        return slot;
    }
    let slot: &'static Slot = Box::leak(Box::new(Slot {
        inside_since: AtomicU64::new(0),
        taken: AtomicBool::new(true),
        next: AtomicPtr::new(null_mut()),
    }));
    let mut head = DOMAIN.slots.load(Ordering::Acquire);
    loop {
        slot.next.store(head, Ordering::Relaxed);
        let new = std::ptr::from_ref(slot).cast_mut();
        match DOMAIN.slots.compare_exchange_weak(head, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return slot,
            Err(now) => head = now,
        }
    }
}

/// While it lives, nothing that the thread looks up is freed. Not to be held across a sleep.
pub struct Guard {
    _of_this_thread: PhantomData<*mut ()>,
}

/// Enters the domain. Never sleeps; a thread's first call allocates.
#[inline]
pub fn enter() -> Guard {
    LOCAL.with(|local| {
        let depth = local.depth.get();
        local.depth.set(depth + 1);
        if depth == 0 {
            let since = DOMAIN.epoch.load(Ordering::Relaxed) | 1;
            // Release: whoever sees that this thread has come in again, after its last visit, sees
            // that visit's end too.
            local.slot().inside_since.store(since, Ordering::Release);
            light_fence();
        }
    });
    Guard { _of_this_thread: PhantomData }
}

impl Drop for Guard {
    #[inline]
    fn drop(&mut self) {
        LOCAL.with(|local| {
            let depth = local.depth.get() - 1;
            local.depth.set(depth);
            if depth == 0 {
                local.slot().inside_since.store(0, Ordering::Release);
            }
        });
    }
}

/// Returns when every reader that was inside at the call has left. May sleep.
pub fn synchronize(_cx: &MaySleep) {
    debug_assert_eq!(LOCAL.with(|l| l.depth.get()), 0, "a reader would wait for itself");
    heavy_fence();
    let epoch = DOMAIN.epoch.fetch_add(2, Ordering::SeqCst) + 2;
    for slot in slots() {
        let mut tries = 0;
        loop {
            let since = slot.inside_since.load(Ordering::Acquire);
            if since == 0 || since >= epoch {
                break;
            }
            tries += 1;
            pause(tries);
        }
    }
}

/// A reader's half: either the writer sees the reader inside, or the reader sees what the writer
/// unpublished before.
#[inline]
fn light_fence() {
    if DOMAIN.asymmetric.load(Ordering::Relaxed) {
        // `heavy_fence` of any writer makes this one a full fence.
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// A writer's half.
fn heavy_fence() {
    let all = can_fence_all_threads();
    if all && !DOMAIN.asymmetric.load(Ordering::Relaxed) {
        // Every writer asks before it relies on anything, so from the first one on all of them fence
        // for the readers.
        DOMAIN.asymmetric.store(true, Ordering::SeqCst);
    }
    fence(Ordering::SeqCst);
    if all {
        fence_all_threads();
    }
}

type Chunk<T> = [AtomicPtr<T>; CHUNK];

/// Objects by a small number. Look-up takes no lock; memory is paid by the chunk.
pub struct Table<T> {
    chunks: Box<[AtomicPtr<Chunk<T>>]>,
}

// SAFETY: it owns `Arc<T>`s as raw pointers; whoever holds one may send and share it if `T` allows.
unsafe impl<T: Send + Sync> Send for Table<T> {}
// SAFETY: as above; all access is atomic.
unsafe impl<T: Send + Sync> Sync for Table<T> {}

impl<T> Table<T> {
    /// A table for the numbers 0 to `max - 1`.
    pub fn new(max: usize) -> Self {
        Self { chunks: (0..max.div_ceil(CHUNK)).map(|_| AtomicPtr::new(null_mut())).collect() }
    }

    fn cell(&self, index: usize) -> Option<&AtomicPtr<T>> {
        let chunk = self.chunks.get(index / CHUNK)?.load(Ordering::Acquire);
        // SAFETY: a chunk is published whole and lives until the table is dropped.
        let chunk = unsafe { chunk.as_ref()? };
        Some(&chunk[index % CHUNK])
    }

    /// The object, for as long as the reader stays inside. Never sleeps.
    pub fn get<'g>(&self, index: usize, _guard: &'g Guard) -> Option<&'g T> {
        let at = self.cell(index)?.load(Ordering::Acquire);
        // SAFETY: `remove` frees only after `synchronize`, which waits for the guard.
        unsafe { at.as_ref() }
    }

    /// A counted reference to the object. Never sleeps.
    pub fn get_arc(&self, index: usize) -> Option<Arc<T>> {
        let _guard = enter();
        let at = self.cell(index)?.load(Ordering::Acquire);
        if at.is_null() {
            return None;
        }
        // SAFETY: the pointer is an `Arc`'s, whose own count is held until after the guard.
        unsafe {
            Arc::increment_strong_count(at);
            Some(Arc::from_raw(at))
        }
    }

    /// Publishes an object. Gives it back if the number is out of range or taken.
    pub fn insert(&self, index: usize, object: Arc<T>) -> Result<(), Arc<T>> {
        let Some(slot) = self.chunks.get(index / CHUNK) else { return Err(object) };
        if slot.load(Ordering::Acquire).is_null() {
            let new: Box<Chunk<T>> = Box::new(std::array::from_fn(|_| AtomicPtr::new(null_mut())));
            let new = Box::into_raw(new);
            if slot.compare_exchange(null_mut(), new, Ordering::AcqRel, Ordering::Acquire).is_err()
            {
                // SAFETY: another thread was first; ours was never published.
                drop(unsafe { Box::from_raw(new) });
            }
        }
        let raw = Arc::into_raw(object).cast_mut();
        // SAFETY: taken from an `Arc` just above, and given back as one.
        let back = || unsafe { Arc::from_raw(raw) };
        let Some(cell) = self.cell(index) else { return Err(back()) };
        cell.compare_exchange(null_mut(), raw, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
            .map_err(|_| back())
    }

    /// Publishes another object under a number that is taken: readers see the one or the other,
    /// never none. Returns the old one when no reader can be using it. If the number is free or out
    /// of range, nothing is published, and the object comes back as the error. May sleep.
    pub fn replace(&self, cx: &MaySleep, index: usize, object: Arc<T>) -> Result<Arc<T>, Arc<T>> {
        let Some(cell) = self.cell(index) else { return Err(object) };
        let raw = Arc::into_raw(object).cast_mut();
        let mut old = cell.load(Ordering::Acquire);
        while !old.is_null() {
            match cell.compare_exchange(old, raw, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    synchronize(cx);
                    // SAFETY: it was published as an `Arc`, it is unpublished now, and no reader is
                    // left.
                    return Ok(unsafe { Arc::from_raw(old) });
                }
                Err(now) => old = now,
            }
        }
        // SAFETY: taken from an `Arc` above and never published.
        Err(unsafe { Arc::from_raw(raw) })
    }

    /// Unpublishes the object, and returns it when no reader can be using it. May sleep.
    pub fn remove(&self, cx: &MaySleep, index: usize) -> Option<Arc<T>> {
        let at = self.cell(index)?.swap(null_mut(), Ordering::AcqRel);
        if at.is_null() {
            return None;
        }
        synchronize(cx);
        // SAFETY: it was published as an `Arc`, it is unpublished now, and no reader is left.
        Some(unsafe { Arc::from_raw(at) })
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        for chunk in &self.chunks {
            let chunk = chunk.load(Ordering::Relaxed);
            if chunk.is_null() {
                continue;
            }
            // SAFETY: exclusive access; the chunk came from a box, the objects from `Arc`s.
            unsafe {
                for cell in Box::from_raw(chunk).iter() {
                    let at = cell.load(Ordering::Relaxed);
                    if !at.is_null() {
                        drop(Arc::from_raw(at));
                    }
                }
            }
        }
    }
}
