// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the driver must remember of a work request while the HCA has it: the consumer's wr_id and
//! ticket, and what it was, which a completion with an error doesn't say. The HCA's wr_id names the
//! place where that is kept. No lock, no allocation.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};

use crossbeam_queue::ArrayQueue;
use rdma_midlayer::driver::SendReady;

/// Work queues that an HCA's driver can have: bits of their number in a `Name`.
pub(crate) const INDEX_BITS: u32 = 20;
/// Slots of a work queue.
pub(crate) const MAX_SLOTS: u32 = 1 << 16;
const GENERATION_MASK: u32 = (1 << 28) - 1;

/// One that no queue has had: so neither a reset nor another queue under the same number revives names.
fn next_generation() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed) & GENERATION_MASK
}

/// The HCA's wr_id: which slot of which queue, in which of the queue's lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) slot: u32,
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl Name {
    pub(crate) fn encode(self) -> u64 {
        u64::from(self.slot) | u64::from(self.index) << 16 | u64::from(self.generation) << 36
    }

    pub(crate) fn decode(wr_id: u64) -> Self {
        Self {
            slot: wr_id as u32 & (MAX_SLOTS - 1),
            index: (wr_id >> 16) as u32 & ((1 << INDEX_BITS) - 1),
            generation: (wr_id >> 36) as u32,
        }
    }
}

/// What is remembered of a work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) wr_id: u64,
    pub(crate) ticket: u32,
    /// `WrOpcode`, of a send request.
    pub(crate) opcode: u8,
    /// It makes no sense: in its place the HCA has one that must fail. A bind then fails as a bind.
    pub(crate) malformed: bool,
}

#[derive(Default)]
struct Slot {
    wr_id: AtomicU64,
    /// ticket | opcode << 32 | malformed << 40.
    rest: AtomicU64,
}

/// The requests of one queue that the HCA has.
pub(crate) struct WorkQueue {
    index: u32,
    generation: AtomicU32,
    capacity: u32,
    slots: Box<[Slot]>,
    /// Requests that came in, counted without end. Written by whoever posts, one at a time.
    head: AtomicU32,
    /// Requests that are done. Written by whoever polls the queue's CQ, one at a time.
    tail: AtomicU32,
    /// Of an SRQ, whose requests are done in any order: the free slots.
    free: Option<ArrayQueue<u32>>,
    /// Whoever posts found it full.
    blocked: AtomicBool,
    ready: OnceLock<Arc<dyn SendReady>>,
    /// Messages that complete here have a GRH in front: of datagrams.
    datagrams: AtomicBool,
    /// A request has failed or been flushed in this life of the queue: its QP is in ERR, or about to be.
    ended: AtomicBool,
    /// A request has failed in this life of the queue, not only been flushed.
    failed: AtomicBool,
}

impl WorkQueue {
    /// A queue that holds `capacity` requests, done in order.
    pub(crate) fn ordered(index: u32, capacity: u32) -> Arc<Self> {
        Arc::new(Self::new(index, capacity, None))
    }

    /// An SRQ's.
    pub(crate) fn shared(index: u32, capacity: u32) -> Arc<Self> {
        let capacity = capacity.clamp(1, MAX_SLOTS);
        let free = ArrayQueue::new(capacity as usize);
        for slot in 0..capacity {
            let _ = free.push(slot);
        }
        Arc::new(Self::new(index, capacity, Some(free)))
    }

    fn new(index: u32, capacity: u32, free: Option<ArrayQueue<u32>>) -> Self {
        let capacity = capacity.clamp(1, MAX_SLOTS);
        Self {
            index,
            generation: AtomicU32::new(next_generation()),
            capacity,
            slots: (0..capacity.next_power_of_two()).map(|_| Slot::default()).collect(),
            head: AtomicU32::new(0),
            tail: AtomicU32::new(0),
            free,
            blocked: AtomicBool::new(false),
            ready: OnceLock::new(),
            datagrams: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        }
    }

    /// Who is told when a full queue has room again.
    pub(crate) fn tell(&self, ready: Arc<dyn SendReady>) {
        let _ = self.ready.set(ready);
    }

    /// Messages that complete here are datagrams.
    pub(crate) fn set_datagrams(&self) {
        self.datagrams.store(true, Ordering::Release);
    }

    pub(crate) fn has_datagrams(&self) -> bool {
        self.datagrams.load(Ordering::Relaxed)
    }

    /// A request failed, or was flushed.
    pub(crate) fn note_failure(&self, flushed: bool) {
        self.ended.store(true, Ordering::Release);
        if !flushed {
            self.failed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a request has failed or been flushed.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Its number.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Requests that the HCA has, or had when it was last asked.
    pub(crate) fn outstanding(&self) -> u32 {
        match &self.free {
            Some(free) => self.capacity - free.len() as u32,
            None => {
                self.head.load(Ordering::Relaxed).wrapping_sub(self.tail.load(Ordering::Acquire))
            }
        }
    }

    /// Whether there is room for another.
    pub(crate) fn has_room(&self) -> bool {
        self.outstanding() < self.capacity
    }

    /// Remembers a request; the name under which to post it. None if the queue is full. One thread at
    /// a time.
    #[inline]
    pub(crate) fn reserve(&self, request: Request) -> Option<u64> {
        let slot = match &self.free {
            Some(free) => free.pop()?,
            None => {
                let head = self.head.load(Ordering::Relaxed);
                if head.wrapping_sub(self.tail.load(Ordering::Acquire)) >= self.capacity {
                    return None;
                }
                self.head.store(head.wrapping_add(1), Ordering::Release);
                head & (self.slots.len() as u32 - 1)
            }
        };
        let place = &self.slots[slot as usize];
        place.wr_id.store(request.wr_id, Ordering::Relaxed);
        let rest = u64::from(request.ticket)
            | u64::from(request.opcode) << 32
            | u64::from(request.malformed) << 40;
        // The HCA's own barriers lie between this and the completion; release is for those in software.
        place.rest.store(rest, Ordering::Release);
        let generation = self.generation.load(Ordering::Relaxed);
        Some(Name { slot, index: self.index, generation }.encode())
    }

    /// Forgets the request reserved last, which was not posted.
    pub(crate) fn take_back(&self, name: u64) {
        match &self.free {
            Some(free) => {
                let _ = free.push(Name::decode(name).slot);
            }
            None => {
                let head = self.head.load(Ordering::Relaxed);
                self.head.store(head.wrapping_sub(1), Ordering::Release);
            }
        }
    }

    /// What was reserved under a name.
    pub(crate) fn peek(&self, name: Name) -> Request {
        let place = &self.slots[name.slot as usize];
        let rest = place.rest.load(Ordering::Acquire);
        Request {
            wr_id: place.wr_id.load(Ordering::Relaxed),
            ticket: rest as u32,
            opcode: (rest >> 32) as u8,
            malformed: rest >> 40 & 1 != 0,
        }
    }

    /// Who is told when there is room.
    pub(crate) fn waiter(&self) -> Option<&Arc<dyn SendReady>> {
        self.ready.get()
    }

    /// Number and life of the queue, and a place behind the requests that are about to be reserved.
    pub(crate) fn mark(&self) -> (u32, u32, u32) {
        const A_BURST: u32 = 16;
        let behind = self.head.load(Ordering::Relaxed).wrapping_add(A_BURST);
        (self.index, self.generation.load(Ordering::Relaxed), behind)
    }

    /// Whether the requests before such a place are done.
    pub(crate) fn has_passed(&self, generation: u32, place: u32) -> bool {
        let in_order = self.free.is_none();
        let tail = self.tail.load(Ordering::Acquire);
        self.outstanding() == 0
            || generation != self.generation.load(Ordering::Acquire)
            || (in_order && tail.wrapping_sub(place) as i32 >= 0)
    }

    /// Marks a reserved request: what is posted in its place must fail.
    pub(crate) fn mark_malformed(&self, name: u64) {
        let place = &self.slots[Name::decode(name).slot as usize];
        place.rest.fetch_or(1 << 40, Ordering::Release);
    }

    /// A request is done, and with it those before it: what it was. None for a stale name.
    #[inline]
    pub(crate) fn complete(&self, name: Name) -> Option<Request> {
        if name.generation != self.generation.load(Ordering::Acquire) {
            return None;
        }
        if name.slot as usize >= self.slots.len() {
            return None;
        }
        let request = self.peek(name);
        match &self.free {
            Some(free) => {
                let _ = free.push(name.slot);
            }
            None => {
                let tail = self.tail.load(Ordering::Relaxed);
                let ahead = name.slot.wrapping_sub(tail) & (self.slots.len() as u32 - 1);
                self.tail.store(tail.wrapping_add(ahead).wrapping_add(1), Ordering::Release);
            }
        }
        Some(request)
    }

    /// Whoever posts found no room: it is told when there is. To be followed by another try.
    pub(crate) fn block(&self) {
        self.blocked.store(true, Ordering::Relaxed);
        // Pairs with the fence in `unblock`: either the sender sees the room, or it is seen to wait.
        fence(Ordering::SeqCst);
    }

    /// There may be room: tells whoever found none. Never sleeps.
    #[inline]
    pub(crate) fn unblock(&self) {
        fence(Ordering::SeqCst);
        if self.blocked.load(Ordering::Relaxed)
            && self.blocked.swap(false, Ordering::AcqRel)
            && let Some(ready) = self.ready.get()
        {
            ready.send_ready();
        }
    }

    /// From here on completions of what was posted are nobody's.
    pub(crate) fn end_life(&self) {
        self.generation.store(next_generation(), Ordering::Release);
    }

    /// Forgets everything, as for RESET. Nobody posts meanwhile, and whoever polls began after
    /// `end_life`.
    pub(crate) fn reset(&self) {
        self.head.store(0, Ordering::Relaxed);
        self.tail.store(0, Ordering::Release);
        self.blocked.store(false, Ordering::Relaxed);
        self.failed.store(false, Ordering::Relaxed);
        self.ended.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(wr_id: u64) -> Request {
        Request { wr_id, ticket: wr_id as u32, opcode: 2, malformed: false }
    }

    #[test]
    fn a_name_says_queue_slot_and_life() {
        let name = Name { slot: 0xfffe, index: 0xf_fff1, generation: 0x0fff_fff3 };
        assert_eq!(Name::decode(name.encode()), name);
    }

    #[test]
    fn a_completion_frees_those_before_it_too() {
        let queue = WorkQueue::ordered(3, 4);
        let names: Vec<_> = (0..4).map(|n| queue.reserve(request(n)).unwrap()).collect();
        assert_eq!(queue.reserve(request(9)), None, "full");
        let done = queue.complete(Name::decode(names[2])).unwrap();
        assert_eq!((done, queue.outstanding()), (request(2), 1));
        for n in 10..13 {
            assert!(queue.reserve(request(n)).is_some());
        }
        assert_eq!(queue.reserve(request(13)), None);
        assert_eq!(queue.complete(Name::decode(names[3])).unwrap().wr_id, 3);
    }

    #[test]
    fn after_a_reset_old_completions_are_nobodys() {
        let queue = WorkQueue::ordered(3, 4);
        let old = queue.reserve(request(1)).unwrap();
        queue.end_life();
        queue.reset();
        let new = queue.reserve(request(2)).unwrap();
        assert_eq!(queue.complete(Name::decode(old)), None);
        assert_eq!(queue.complete(Name::decode(new)).unwrap().wr_id, 2);
    }

    #[test]
    fn requests_of_a_shared_queue_are_done_in_any_order() {
        let queue = WorkQueue::shared(1, 3);
        let names: Vec<_> = (0..3).map(|n| queue.reserve(request(n)).unwrap()).collect();
        assert!(!queue.has_room());
        assert_eq!(queue.complete(Name::decode(names[1])).unwrap().wr_id, 1);
        assert!(queue.reserve(request(7)).is_some());
        assert_eq!(queue.complete(Name::decode(names[0])).unwrap().wr_id, 0);
        assert_eq!(queue.complete(Name::decode(names[2])).unwrap().wr_id, 2);
    }

    #[test]
    fn a_request_that_was_not_posted_leaves_no_trace() {
        let queue = WorkQueue::ordered(3, 1);
        let name = queue.reserve(request(1)).unwrap();
        queue.take_back(name);
        let name = queue.reserve(request(2)).unwrap();
        assert_eq!(queue.complete(Name::decode(name)).unwrap().wr_id, 2);
    }
}
