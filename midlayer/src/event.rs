// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Asynchronous events on their way from drivers to consumers (`ib_dispatch_event`): posted from any
//! context, delivered in order, later and elsewhere.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::context::MaySleep;
use crate::driver::{AsyncEvent, EventSink};
use crate::run_queue::{RunQueue, Task};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, lock};

/// What a consumer gives to hear of the events of its context's objects, and of the device.
///
/// Called from a dispatcher's thread, one event after the other; must not sleep, nor take a lock that
/// is held while an object is destroyed: that waits until its events are delivered.
pub type EventHandler = Box<dyn Fn(AsyncEvent) + Send + Sync>;

/// What a consumer gives to hear of all events of a device: whose context it comes from, if it is of
/// an object, and the event. Called as an `EventHandler` is.
pub type DeviceEventHandler = Box<dyn Fn(Option<ContextId>, AsyncEvent) + Send + Sync>;

/// Number of a context within its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextId(pub u64);

/// The end of a context where its events arrive.
pub(crate) struct ContextEnd {
    pub(crate) id: ContextId,
    handler: Option<EventHandler>,
    gone: AtomicBool,
}

impl ContextEnd {
    pub(crate) fn new(id: ContextId, handler: Option<EventHandler>) -> Arc<Self> {
        Arc::new(Self { id, handler, gone: AtomicBool::new(false) })
    }

    fn deliver(&self, event: AsyncEvent) {
        if let Some(handler) = &self.handler
            && !self.gone.load(Ordering::Acquire)
        {
            handler(event);
        }
    }
}

pub(crate) struct DeviceEnd {
    pub(crate) handler: DeviceEventHandler,
    gone: AtomicBool,
}

/// Events that can be on their way without an allocation.
const SLOTS: usize = 256;

/// What a posted event is: whose, and which.
type Posted = (Option<Arc<ContextEnd>>, AsyncEvent);

/// A task for one event at a time; made beforehand, since `dispatch_event` may be called anywhere.
struct Slot {
    taken: AtomicBool,
    /// Never contended: whoever has taken the slot writes it, the task reads it.
    posted: Mutex<Option<Posted>>,
    task: Arc<Task>,
}

impl Slot {
    fn take(&self) -> bool {
        let free = || {
            self.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        if !free() {
            return false;
        }
        // The task that gave it back may not have ended yet; to schedule it now would put the event
        // behind later ones.
        if !self.task.is_idle() {
            self.taken.store(false, Ordering::Release);
            return false;
        }
        true
    }
}

/// The events of one device.
pub(crate) struct Events {
    queue: Arc<RunQueue>,
    slots: Vec<Slot>,
    next_slot: AtomicU64,
    posted: AtomicU64,
    delivered: AtomicU64,
    contexts: Mutex<Vec<Arc<ContextEnd>>>,
    handlers: Mutex<Vec<Arc<DeviceEnd>>>,
}

impl Events {
    pub(crate) fn new(queue: Arc<RunQueue>) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let slot = |n| {
                let this = this.clone();
                let deliver = move |_| {
                    if let Some(this) = this.upgrade() {
                        this.deliver_slot(n);
                    }
                };
                Slot {
                    taken: AtomicBool::new(false),
                    posted: Mutex::new(None),
                    task: Task::new(queue.clone(), Box::new(deliver)),
                }
            };
            Self {
                slots: (0..SLOTS).map(slot).collect(),
                queue,
                next_slot: AtomicU64::new(0),
                posted: AtomicU64::new(0),
                delivered: AtomicU64::new(0),
                contexts: Mutex::new(Vec::new()),
                handlers: Mutex::new(Vec::new()),
            }
        })
    }

    /// Never sleeps, takes no lock that others take; allocates only when `SLOTS` events are on their
    /// way already.
    fn post(self: &Arc<Self>, from: Option<Arc<ContextEnd>>, event: AsyncEvent) {
        self.posted.fetch_add(1, Ordering::AcqRel);
        for _ in 0..SLOTS {
            let n = self.next_slot.fetch_add(1, Ordering::Relaxed) as usize % SLOTS;
            let slot = &self.slots[n];
            if slot.take() {
                *lock(&slot.posted) = Some((from, event));
                // Each event is a task of its own: the queue keeps them in order.
                return slot.task.schedule(false);
            }
        }
        let this = self.clone();
        let deliver = move |_| {
            let _done = Delivered(&this);
            this.deliver(from.as_deref(), event);
        };
        Task::new(self.queue.clone(), Box::new(deliver)).schedule(false);
    }

    fn deliver_slot(&self, n: usize) {
        let slot = &self.slots[n];
        let posted = lock(&slot.posted).take();
        slot.taken.store(false, Ordering::Release);
        let Some((from, event)) = posted else { return };
        // Counted also when a handler panics, or `flush` would wait for ever.
        let _done = Delivered(self);
        self.deliver(from.as_deref(), event);
    }

    fn deliver(&self, from: Option<&ContextEnd>, event: AsyncEvent) {
        match from {
            Some(end) => end.deliver(event),
            None => {
                let ends = lock(&self.contexts).clone();
                ends.iter().for_each(|end| end.deliver(event));
            }
        }
        let handlers = lock(&self.handlers).clone();
        for end in handlers.iter().filter(|end| !end.gone.load(Ordering::Acquire)) {
            (end.handler)(from.map(|end| end.id), event);
        }
    }

    /// Returns when all that was posted before is delivered. May sleep.
    pub(crate) fn flush(&self, _cx: &MaySleep) {
        let posted = self.posted.load(Ordering::Acquire);
        while (self.delivered.load(Ordering::Acquire).wrapping_sub(posted) as i64) < 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    pub(crate) fn add_context(&self, end: &Arc<ContextEnd>) {
        lock(&self.contexts).push(end.clone());
    }

    /// Returns when its handler neither runs nor will run. May sleep.
    pub(crate) fn remove_context(&self, cx: &MaySleep, end: &Arc<ContextEnd>) {
        lock(&self.contexts).retain(|other| !Arc::ptr_eq(other, end));
        end.gone.store(true, Ordering::Release);
        // Handlers run inside a guard.
        crate::rcu::synchronize(cx);
    }

    pub(crate) fn add_handler(&self, handler: DeviceEventHandler) -> Arc<DeviceEnd> {
        let end = Arc::new(DeviceEnd { handler, gone: AtomicBool::new(false) });
        lock(&self.handlers).push(end.clone());
        end
    }

    /// As `remove_context`. May sleep.
    pub(crate) fn remove_handler(&self, cx: &MaySleep, end: &Arc<DeviceEnd>) {
        lock(&self.handlers).retain(|other| !Arc::ptr_eq(other, end));
        end.gone.store(true, Ordering::Release);
        crate::rcu::synchronize(cx);
    }
}

struct Delivered<'a>(&'a Events);

impl Drop for Delivered<'_> {
    fn drop(&mut self) {
        self.0.delivered.fetch_add(1, Ordering::AcqRel);
    }
}

/// Where a driver reports; for one context, or for the device as a whole.
pub(crate) struct Sink {
    pub(crate) events: Arc<Events>,
    pub(crate) context: Option<Arc<ContextEnd>>,
}

impl EventSink for Sink {
    fn dispatch(&self, event: AsyncEvent) {
        self.events.post(self.context.clone(), event);
    }
}
