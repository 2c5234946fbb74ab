// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device tells the driver through the completion virtqueues and the event virtqueue. What
//! finds no buffer waits, each thing once, so a driver that gives no buffers costs no memory.

use std::collections::{HashSet, VecDeque};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_queue::SegQueue;
use vhost_user_backend::VringT;
use virtio_queue::{QueueOwnedT, QueueT};
use virtio_rdma_abi::event::{AsyncEvent, CompEvent};
use vm_memory::{Bytes, GuestAddressSpace};
use zerocopy::IntoBytes;

use crate::cq::CqPath;
use crate::device::Gate;
use crate::vring::{Memory, Vring};

/// A virtqueue into whose buffers the device writes.
#[derive(Clone)]
pub struct InQueue {
    /// The ring.
    pub vring: Vring,
    /// The memory that its addresses are in.
    pub memory: Memory,
}

impl InQueue {
    /// Asks for an interrupt, if the driver wants one. Returns whether it does.
    fn notify(&self) -> bool {
        let wanted = self.vring.needs_notification().unwrap_or(true);
        wanted && self.vring.signal_used_queue().is_ok()
    }
}

/// Puts one value into the next buffer of a ring; false if there is none, or the ring does not run.
fn put(InQueue { vring, memory }: &InQueue, bytes: &[u8]) -> bool {
    if !vring.is_running() {
        return false;
    }
    let memory = memory.memory();
    let head = {
        let mut state = vring.get_mut();
        let queue = state.get_queue_mut();
        let mut next = queue.iter(memory.clone()).ok().and_then(|mut chains| chains.next());
        // A driver that goes by event indices tells of new buffers only if it was asked to.
        if next.is_none() && queue.enable_notification(memory.deref()).unwrap_or(false) {
            next = queue.iter(memory.clone()).ok().and_then(|mut chains| chains.next());
        }
        let Some(mut chain) = next else { return false };
        let head = chain.head_index();
        let room = chain.find(|d| d.is_write_only() && d.len() as usize >= bytes.len());
        // A buffer that is too small or not writable is returned empty: the driver sees it.
        let written = room.is_some_and(|d| memory.deref().write_slice(bytes, d.addr()).is_ok());
        (head, if written { bytes.len() as u32 } else { 0 })
    };
    vring.add_used(head.0, head.1).is_ok()
}

/// One completion virtqueue.
pub struct CompQueue {
    queue: Mutex<Option<InQueue>>,
    pending: SegQueue<Arc<CqPath>>,
    busy: AtomicBool,
    gate: Arc<Gate>,
}

impl CompQueue {
    /// Of the device behind `gate`.
    pub fn new(gate: Arc<Gate>) -> Self {
        Self {
            queue: Mutex::default(),
            pending: SegQueue::new(),
            busy: AtomicBool::new(false),
            gate,
        }
    }

    /// The ring, once the front end has one.
    pub fn set_queue(&self, queue: Option<InQueue>) {
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = queue;
    }

    /// A CQ has an event: tells the driver, or keeps it until there is a buffer. Never sleeps.
    pub fn raise(&self, cq: Arc<CqPath>) {
        if cq.queue_event() {
            self.pending.push(cq);
        }
        // Pairs with the one in `flush`: whoever is at it sees what was pushed, or we see it done.
        fence(Ordering::SeqCst);
        self.flush();
    }

    /// Forgets all that waits.
    pub fn clear(&self) {
        while self.pending.pop().is_some() {}
    }

    /// Tells the driver what waits. Never sleeps: if another thread is at it, that one goes on.
    pub fn flush(&self) {
        while !self.pending.is_empty() {
            if self.busy.swap(true, Ordering::Acquire) {
                return;
            }
            let went_on = self.flush_some();
            self.busy.store(false, Ordering::Release);
            // Who raises: push, fence, look at `busy`. We: `busy`, fence, look for more.
            fence(Ordering::SeqCst);
            if !went_on {
                return;
            }
        }
    }

    fn flush_some(&self) -> bool {
        let Ok(queue) = self.queue.try_lock() else { return false };
        let Some(queue) = queue.as_ref().filter(|_| self.gate.is_open()) else { return false };
        let mut put_any = false;
        let mut out_of_buffers = false;
        while let Some(cq) = self.pending.pop() {
            let Some(arm) = cq.take_event() else { continue };
            let event = CompEvent { cqn: cq.cqn().into(), arm: arm.into() };
            if !put(queue, event.as_bytes()) {
                cq.return_event(arm);
                if cq.queue_event() {
                    self.pending.push(cq);
                }
                out_of_buffers = true;
                break;
            }
            put_any = true;
            self.gate.counters().cq_events.fetch_add(1, Ordering::Relaxed);
        }
        if put_any && queue.notify() {
            self.gate.counters().cq_interrupts.fetch_add(1, Ordering::Relaxed);
        }
        !out_of_buffers
    }
}

/// The event virtqueue.
pub struct EventQueue {
    inner: Mutex<Pending>,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Pending {
    queue: Option<InQueue>,
    events: VecDeque<AsyncEvent>,
    /// The kind and number of each event that waits.
    waiting: HashSet<(u32, u32)>,
}

impl EventQueue {
    /// Of the device behind `gate`.
    pub fn new(gate: Arc<Gate>) -> Self {
        Self { inner: Mutex::default(), gate }
    }

    fn inner(&self) -> MutexGuard<'_, Pending> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ring, once the front end has one.
    pub fn set_queue(&self, queue: Option<InQueue>) {
        self.inner().queue = queue;
    }

    /// Forgets all that waits.
    pub fn clear(&self) {
        let mut inner = self.inner();
        inner.events.clear();
        inner.waiting.clear();
    }

    /// Tells the driver, in order, or keeps it until there is a buffer; the same event waits once,
    /// where it came last.
    pub fn raise(&self, event: AsyncEvent) {
        let mut inner = self.inner();
        let name = |event: &AsyncEvent| (event.event.get(), event.number.get());
        if !inner.waiting.insert(name(&event)) {
            // The news is what happened last: an HCA that went and came again is there.
            inner.events.retain(|waiting| name(waiting) != name(&event));
        }
        inner.events.push_back(event);
        self.flush_inner(&mut inner);
    }

    /// Returns when no event is being written; one that comes later looks at the gate first.
    pub fn finish(&self) {
        drop(self.inner());
    }

    /// Tells the driver what waits.
    pub fn flush(&self) {
        self.flush_inner(&mut self.inner());
    }

    fn flush_inner(&self, inner: &mut Pending) {
        let Some(queue) = inner.queue.clone().filter(|_| self.gate.is_open()) else { return };
        let mut put_any = false;
        while let Some(event) = inner.events.front() {
            if !put(&queue, event.as_bytes()) {
                break;
            }
            inner.waiting.remove(&(event.event.get(), event.number.get()));
            inner.events.pop_front();
            put_any = true;
        }
        if put_any {
            queue.notify();
        }
    }
}
