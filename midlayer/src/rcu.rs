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
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering, fence};
use std::time::Duration;

use crate::context::MaySleep;

/// Steps by 2, so that a slot can hold it with bit 0 set for "inside".
static EPOCH: AtomicU64 = AtomicU64::new(2);
static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(null_mut());

/// Where a thread says since when it is inside. Never freed; taken over by later threads.
#[repr(align(128))]
struct Slot {
    inside_since: AtomicU64,
    taken: AtomicBool,
    next: AtomicPtr<Slot>,
}

struct Local {
    slot: &'static Slot,
    depth: Cell<usize>,
}

impl Local {
    fn new() -> Self {
        Self { slot: take_slot(), depth: Cell::new(0) }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.slot.inside_since.store(0, Ordering::Release);
        self.slot.taken.store(false, Ordering::Release);
    }
}

thread_local! {
    static LOCAL: Local = Local::new();
}

fn slots() -> impl Iterator<Item = &'static Slot> {
    let mut at = SLOTS.load(Ordering::Acquire);
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
    let mut head = SLOTS.load(Ordering::Acquire);
    loop {
        slot.next.store(head, Ordering::Relaxed);
        let new = std::ptr::from_ref(slot).cast_mut();
        match SLOTS.compare_exchange_weak(head, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return slot,
            Err(now) => head = now,
        }
    }
}

/// While it lives, nothing that the thread looks up is freed. Not to be held across a sleep.
pub struct Guard {
    _of_this_thread: PhantomData<*mut ()>,
}

/// Enters the domain. Never sleeps.
pub fn enter() -> Guard {
    LOCAL.with(|local| {
        let depth = local.depth.get();
        local.depth.set(depth + 1);
        if depth == 0 {
            local.slot.inside_since.store(EPOCH.load(Ordering::Relaxed) | 1, Ordering::Relaxed);
            // Pairs with the fence in `synchronize`: either it sees this slot, or we see what it
            // unpublished before.
            fence(Ordering::SeqCst);
        }
    });
    Guard { _of_this_thread: PhantomData }
}

impl Drop for Guard {
    fn drop(&mut self) {
        LOCAL.with(|local| {
            let depth = local.depth.get() - 1;
            local.depth.set(depth);
            if depth == 0 {
                local.slot.inside_since.store(0, Ordering::Release);
            }
        });
    }
}

/// Returns when every reader that was inside at the call has left. May sleep.
pub fn synchronize(_cx: &MaySleep) {
    debug_assert_eq!(LOCAL.with(|l| l.depth.get()), 0, "a reader would wait for itself");
    fence(Ordering::SeqCst);
    let epoch = EPOCH.fetch_add(2, Ordering::SeqCst) + 2;
    for slot in slots() {
        let mut tries = 0u32;
        loop {
            let since = slot.inside_since.load(Ordering::Acquire);
            if since == 0 || since >= epoch {
                break;
            }
            tries += 1;
            if tries < 200 {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }
}

const CHUNK: usize = 1024;
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
            let new: Box<Chunk<T>> = Box::new([const { AtomicPtr::new(null_mut()) }; CHUNK]);
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
        for chunk in &mut self.chunks {
            let chunk = *chunk.get_mut();
            if chunk.is_null() {
                continue;
            }
            // SAFETY: exclusive access; the chunk came from a box, the objects from `Arc`s.
            unsafe {
                for cell in Box::from_raw(chunk).iter_mut() {
                    if !cell.get_mut().is_null() {
                        drop(Arc::from_raw(*cell.get_mut()));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn synchronize_waits_for_a_reader_that_is_inside() {
        let order = Arc::new(AtomicUsize::new(0));
        let barrier = Arc::new(Barrier::new(2));
        let reader = std::thread::spawn({
            let (order, barrier) = (order.clone(), barrier.clone());
            move || {
                let _outer = enter();
                let inner = enter();
                barrier.wait();
                drop(inner);
                std::thread::sleep(Duration::from_millis(50));
                order.store(1, Ordering::SeqCst);
            }
        });
        barrier.wait();
        std::thread::spawn(move || {
            synchronize(&MaySleep::claim().unwrap());
            assert_eq!(order.load(Ordering::SeqCst), 1);
        })
        .join()
        .unwrap();
        reader.join().unwrap();
    }

    #[test]
    fn a_table_gives_objects_by_number_until_they_are_removed() {
        std::thread::spawn(|| {
            let cx = MaySleep::claim().unwrap();
            let table = Table::new(3000);
            assert!(table.insert(2500, Arc::new(7)).is_ok());
            assert!(table.insert(2500, Arc::new(8)).is_err(), "taken");
            assert!(table.insert(5000, Arc::new(8)).is_err(), "out of range");
            assert_eq!(table.get(2500, &enter()), Some(&7));
            assert_eq!(table.get(1, &enter()), None);
            assert_eq!(table.replace(&cx, 2500, Arc::new(9)).as_deref(), Ok(&7));
            assert_eq!(table.replace(&cx, 2501, Arc::new(9)).as_deref(), Err(&Arc::new(9)));
            assert_eq!(table.remove(&cx, 2500).as_deref(), Some(&9));
            assert_eq!(table.get(2500, &enter()), None);
            assert!(table.remove(&cx, 2500).is_none());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn readers_never_see_a_freed_object() {
        struct Canary(AtomicU64);
        impl Drop for Canary {
            fn drop(&mut self) {
                self.0.store(0xdead, Ordering::Relaxed);
            }
        }
        let table = Arc::new(Table::new(16));
        let stop = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (table, stop) = (table.clone(), stop.clone());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let guard = enter();
                        if let Some(c) = table.get(3, &guard) {
                            let c: &Canary = c;
                            assert_eq!(c.0.load(Ordering::Relaxed), 1);
                        }
                    }
                })
            })
            .collect();
        std::thread::spawn({
            let table = table.clone();
            move || {
                let cx = MaySleep::claim().unwrap();
                for _ in 0..500 {
                    assert!(table.insert(3, Arc::new(Canary(AtomicU64::new(1)))).is_ok());
                    drop(table.remove(&cx, 3));
                }
            }
        })
        .join()
        .unwrap();
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|r| r.join().unwrap());
    }
}
