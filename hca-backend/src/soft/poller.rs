// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who runs the QPs that couldn't finish in the call that posted: a run queue and a timer table for
//! each worker. A QP is in the run queue at most once, and no request to run it is lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::time::Instant;

use rdma_midlayer::driver::{Poller, Turn, Waker};
use rdma_midlayer::rcu;
use rdma_midlayer::types::Qpn;

use super::context::Context;
use super::cq::Cq;
use super::qp::Qp;
use super::spin::SpinLock;

/// QPs that one turn moves to ERR when their CQ failed.
const CQ_USERS_A_TURN: usize = 64;

/// Something to run.
enum Task {
    /// A QP with work to do.
    Qp(Arc<Qp>),
    /// A CQ overflowed: these QPs complete to it.
    CqFailed { context: Arc<Context>, users: Vec<Qpn> },
}

/// Something that is entered in a run queue at most once at a time.
pub(crate) struct Queued(AtomicBool);

impl Queued {
    pub(crate) const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Whether the caller has to enter it: what the caller did before is seen by the run to come.
    fn request(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// A run begins: requests from now on are for another one.
    fn begin(&self) {
        self.0.swap(false, Ordering::AcqRel);
    }
}

/// A worker's share of the QPs.
pub(crate) struct SoftPoller {
    tasks: SpinLock<VecDeque<Task>>,
    timers: SpinLock<BTreeMap<TimerKey, Arc<Qp>>>,
    /// How many there are of either, so that a turn without work takes no lock.
    task_count: AtomicUsize,
    timer_count: AtomicUsize,
    /// The worker has found nothing to do and may be asleep.
    idle: AtomicBool,
    waker: SpinLock<Option<Arc<dyn Waker>>>,
}

/// A timer: when, and of which QP. A QP has one at a time.
pub(crate) type TimerKey = (Instant, usize);

impl SoftPoller {
    pub(crate) fn new() -> Self {
        Self {
            tasks: SpinLock::new(VecDeque::new()),
            timers: SpinLock::new(BTreeMap::new()),
            task_count: AtomicUsize::new(0),
            timer_count: AtomicUsize::new(0),
            idle: AtomicBool::new(true),
            waker: SpinLock::new(None),
        }
    }

    /// Has a QP run soon. Never sleeps.
    pub(crate) fn schedule(&self, qp: &Arc<Qp>) {
        if qp.queued().request() {
            self.enter(Task::Qp(qp.clone()));
        }
    }

    /// Has the QPs of a CQ that overflowed go to ERR. Never sleeps.
    pub(crate) fn cq_failed(&self, context: Arc<Context>, cq: &Cq) {
        self.enter(Task::CqFailed { context, users: cq.users() });
    }

    /// Has a QP run at a time. Never sleeps.
    pub(crate) fn arm(&self, at: Instant, qp: &Arc<Qp>) -> TimerKey {
        let key = (at, Arc::as_ptr(qp).addr());
        let mut timers = self.timers.lock();
        timers.insert(key, qp.clone());
        self.timer_count.store(timers.len(), Ordering::Relaxed);
        drop(timers);
        self.wake();
        key
    }

    /// Forgets a timer. Never sleeps.
    pub(crate) fn cancel(&self, key: TimerKey) {
        let mut timers = self.timers.lock();
        let timer = timers.remove(&key);
        self.timer_count.store(timers.len(), Ordering::Relaxed);
        drop(timers);
        // After the lock: it may be the last reference.
        drop(timer);
    }

    fn enter(&self, task: Task) {
        let mut tasks = self.tasks.lock();
        tasks.push_back(task);
        self.task_count.store(tasks.len(), Ordering::Relaxed);
        drop(tasks);
        self.wake();
    }

    /// The oldest task. A count that lags behind a task just entered is harmless: whoever enters one
    /// wakes the worker if it was found idle.
    fn next_task(&self) -> Option<Task> {
        if self.task_count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut tasks = self.tasks.lock();
        let task = tasks.pop_front();
        self.task_count.store(tasks.len(), Ordering::Relaxed);
        task
    }

    /// Wakes the worker if it may be asleep. Pairs with the fence in `poll`: either the worker sees
    /// what was entered, or we see that it is idle.
    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.idle.load(Ordering::Relaxed) && self.idle.swap(false, Ordering::AcqRel) {
            let waker = self.waker.lock().clone();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn expire(&self, now: Instant) -> bool {
        let mut any = false;
        while self.timer_count.load(Ordering::Relaxed) > 0 {
            let mut timers = self.timers.lock();
            let Some(first) = timers.first_entry().filter(|t| t.key().0 <= now) else { break };
            let qp = first.remove();
            self.timer_count.store(timers.len(), Ordering::Relaxed);
            drop(timers);
            self.schedule(&qp);
            any = true;
        }
        any
    }

    fn deadline(&self) -> Option<Instant> {
        if self.timer_count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.timers.lock().first_key_value().map(|(key, _)| key.0)
    }

    fn run(&self, task: Task, now: Instant, guard: &rcu::Guard) -> usize {
        match task {
            Task::Qp(qp) => {
                qp.queued().begin();
                qp.run(now, guard)
            }
            Task::CqFailed { context, mut users } => {
                let rest = users.split_off(users.len().min(CQ_USERS_A_TURN));
                users.iter().filter_map(|qpn| context.qp(*qpn)).for_each(|qp| qp.fatal());
                if !rest.is_empty() {
                    self.enter(Task::CqFailed { context, users: rest });
                }
                1
            }
        }
    }
}

impl Poller for SoftPoller {
    fn poll(&self, now: Instant, budget: usize) -> Turn {
        let guard = rcu::enter();
        self.idle.store(false, Ordering::Relaxed);
        let mut worked = self.expire(now);
        let mut used = 0;
        while used < budget.max(1) {
            let Some(task) = self.next_task() else { break };
            used += self.run(task, now, &guard).max(1);
            worked = true;
        }
        let mut deadline = self.deadline();
        if !worked {
            self.idle.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.task_count.load(Ordering::Relaxed) > 0 {
                self.idle.store(false, Ordering::Relaxed);
                worked = true;
            }
            deadline = self.deadline();
        }
        Turn { worked, deadline }
    }

    fn set_waker(&self, waker: Arc<dyn Waker>) {
        let old = self.waker.lock().replace(waker);
        drop(old);
        // What came before the waker was there.
        if !self.tasks.lock().is_empty() || self.deadline().is_some() {
            self.wake();
        }
    }
}
