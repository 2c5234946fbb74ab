// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where handlers run (`core_locking`, "Callbacks"): tasks that never run twice at once and never
//! lose a wake-up, the queues they wait in, and the threads that drain queues nobody else drains.
//! What the handlers are for is not known here.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};

use crate::context::{InHandler, MaySleep};
use crate::driver::Waker;
use crate::error::{Error, Result};
use crate::rcu;
use crate::sync::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Mutex, Ordering, full_fence, this_thread,
};

/// In a queue, or to be put there again by whoever runs it.
const QUEUED: u8 = 1;
/// Its handler runs.
const RUNNING: u8 = 2;
/// Its handler runs never again.
const DEAD: u8 = 4;
/// One of the reasons since the handler's last start was a solicited one.
const SOLICITED: u8 = 8;

/// A handler that can be scheduled from any context.
pub(crate) struct Task {
    state: AtomicU8,
    next: AtomicPtr<Task>,
    queue: Arc<RunQueue>,
    handler: Box<dyn Fn(bool) + Send + Sync>,
}

impl Task {
    pub(crate) fn new(queue: Arc<RunQueue>, handler: Box<dyn Fn(bool) + Send + Sync>) -> Arc<Self> {
        Arc::new(Self { state: AtomicU8::new(0), next: AtomicPtr::new(null_mut()), queue, handler })
    }

    /// The handler will be started after this call. Never sleeps, calls nothing of the consumer's but
    /// the queue's waker.
    pub(crate) fn schedule(self: &Arc<Self>, solicited: bool) {
        let reason = if solicited { QUEUED | SOLICITED } else { QUEUED };
        // Where the handler runs in this very thread, it has not started since it was queued, and will
        // see all that this thread wrote.
        if self.queue.is_here() && self.state.load(Ordering::Relaxed) & reason == reason {
            return;
        }
        // Whoever starts the handler next clears QUEUED with a read-modify-write, so it sees all that
        // was written before this one.
        let before = self.state.fetch_or(reason, Ordering::AcqRel);
        if before & (QUEUED | RUNNING | DEAD) == 0 {
            self.queue.push(self.clone());
        }
    }

    /// Neither queued nor running. For one that nobody else schedules.
    pub(crate) fn is_idle(&self) -> bool {
        self.state.load(Ordering::Acquire) == 0
    }

    /// Runs the handler once. The caller took the task out of its queue.
    fn run(self: Arc<Self>) {
        // `kill` waits for this guard: after it no handler runs.
        let _guard = rcu::enter();
        let start =
            |state| (state & DEAD == 0).then_some((state & !(QUEUED | SOLICITED)) | RUNNING);
        let Ok(before) = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, start) else {
            return;
        };
        let _finish = Finish(&self);
        let _inside = InHandler::enter();
        (self.handler)(before & SOLICITED != 0);
    }

    /// Returns when the handler neither runs nor will run. May sleep.
    pub(crate) fn kill(&self, cx: &MaySleep) {
        self.state.fetch_or(DEAD, Ordering::AcqRel);
        rcu::synchronize(cx);
    }
}

/// Ends a run, also of a handler that panics.
struct Finish<'a>(&'a Arc<Task>);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let before = self.0.state.fetch_and(!RUNNING, Ordering::AcqRel);
        if before & (QUEUED | DEAD) == QUEUED {
            self.0.queue.push(self.0.clone());
        }
    }
}

/// Handlers that wait to be run, first in, first out.
///
/// Whoever owns the queue drains it: a worker after the verb that scheduled them has returned, or a
/// dispatcher's thread. Handlers of one queue run one after the other, those of different queues in
/// parallel. After its last CQ is destroyed the owner drains it once more.
pub struct RunQueue {
    /// The newest; each points to the one before it.
    head: AtomicPtr<Task>,
    /// Taken from `head`, oldest first. Only ever tried to lock.
    backlog: Mutex<VecDeque<Arc<Task>>>,
    /// `backlog` is not empty.
    left_over: AtomicBool,
    asleep: AtomicBool,
    /// The only thread that drains it, if that is certain; or 0.
    owner: AtomicU64,
    waker: Arc<dyn Waker>,
}

/// What a call of `RunQueue::drain` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Handlers run.
    pub ran: usize,
    /// There may be more: drain again soon.
    pub more: bool,
}

impl RunQueue {
    /// An empty queue. `waker` is called, in any context, when something is queued while the owner
    /// sleeps (see `sleep`); it never sleeps itself.
    pub fn new(waker: Arc<dyn Waker>) -> Arc<Self> {
        Arc::new(Self {
            head: AtomicPtr::new(null_mut()),
            backlog: Mutex::new(VecDeque::new()),
            left_over: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            owner: AtomicU64::new(0),
            waker,
        })
    }

    /// Promises that from now on only the calling thread drains the queue: what is scheduled there
    /// costs less.
    pub fn drain_only_here(&self) {
        self.owner.store(this_thread(), Ordering::Relaxed);
    }

    #[inline]
    fn is_here(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == this_thread()
    }

    /// Runs up to `budget` handlers. Never sleeps. Not to be called from inside a verb's call chain,
    /// as drivers and pollers are; called inside a handler it does nothing.
    pub fn drain(&self, budget: usize) -> Drained {
        if crate::context::in_handler() {
            return Drained { ran: 0, more: true };
        }
        if self.head.load(Ordering::Relaxed).is_null() && !self.left_over.load(Ordering::Relaxed) {
            return Drained { ran: 0, more: false };
        }
        for ran in 0..budget {
            match self.pop() {
                Some(task) => task.run(),
                None => return Drained { ran, more: false },
            }
        }
        Drained { ran: budget, more: !self.is_empty() }
    }

    /// Whether nothing waits, as far as one can know.
    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::Acquire).is_null()
            && self.backlog.try_lock().is_ok_and(|backlog| backlog.is_empty())
    }

    /// The owner is about to sleep. `false`: something waits, it must not. `true`: from now on the
    /// waker is called, once, when something comes.
    pub fn sleep(&self) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence in `push`: either it sees that the owner sleeps, or we see what it
        // pushed.
        full_fence();
        if self.is_empty() {
            return true;
        }
        self.awake();
        false
    }

    /// The owner is awake again, whatever woke it.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    fn push(&self, task: Arc<Task>) {
        let task = Arc::into_raw(task).cast_mut();
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // SAFETY: `task` came from an `Arc` whose count we hold until the exchange succeeds. Only
            // the one pusher of a task touches `next`: QUEUED keeps others away.
            unsafe { &*task }.next.store(head, Ordering::Relaxed);
            match self.head.compare_exchange_weak(head, task, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        // In this thread the owner is awake.
        if self.is_here() {
            return;
        }
        full_fence();
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.waker.wake();
        }
    }

    fn pop(&self) -> Option<Arc<Task>> {
        // Contended only if two threads drain: the other one goes on.
        let mut backlog = self.backlog.try_lock().ok()?;
        if backlog.is_empty() {
            let mut at = self.head.swap(null_mut(), Ordering::Acquire);
            while !at.is_null() {
                // SAFETY: each pointer in the list came from `Arc::into_raw` in `push`, and the swap
                // made the list ours.
                let task = unsafe { Arc::from_raw(at) };
                at = task.next.load(Ordering::Relaxed);
                backlog.push_front(task);
            }
        }
        let task = backlog.pop_front();
        self.left_over.store(!backlog.is_empty(), Ordering::Relaxed);
        task
    }
}

impl Drop for RunQueue {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

/// Threads that drain queues, one each. They sleep while nothing waits.
pub(crate) struct Dispatcher {
    queues: Vec<Arc<RunQueue>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Handlers run between two looks at `stop`.
const BUDGET: usize = 64;

impl Dispatcher {
    /// Starts `threads` of them.
    pub(crate) fn start(threads: usize) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut this = Self { queues: Vec::new(), stop: stop.clone(), threads: Vec::new() };
        for n in 0..threads.max(1) {
            let waker = Arc::new(ThreadWaker(OnceLock::new()));
            let queue = RunQueue::new(waker.clone());
            this.queues.push(queue.clone());
            let stop = stop.clone();
            let thread = std::thread::Builder::new()
                .name(format!("rdma-dispatch-{n}"))
                .spawn(move || {
                    let _ = waker.0.set(std::thread::current());
                    dispatch(&queue, &stop);
                })
                .map_err(|e| Error::Host(e.raw_os_error().unwrap_or(0)))?;
            this.threads.push(thread);
        }
        Ok(this)
    }

    pub(crate) fn queues(&self) -> &[Arc<RunQueue>] {
        &self.queues
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // The last reference may be dropped by a handler.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

fn dispatch(queue: &RunQueue, stop: &AtomicBool) {
    loop {
        // A consumer's bug must not stop the handlers of others.
        match catch_unwind(AssertUnwindSafe(|| queue.drain(BUDGET))) {
            Ok(Drained { more: false, .. }) => {}
            Ok(Drained { more: true, .. }) => continue,
            Err(_) => {
                log::error!("a completion or event handler panicked");
                continue;
            }
        }
        if stop.load(Ordering::Acquire) {
            return;
        }
        if queue.sleep() {
            std::thread::park();
            queue.awake();
        }
    }
}

struct ThreadWaker(OnceLock<Thread>);

impl Waker for ThreadWaker {
    fn wake(&self) {
        // Before the thread has set itself it has not slept either.
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }
}
