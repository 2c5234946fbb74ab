// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who runs the QPs that couldn't finish in the call that posted: for each worker a run queue (in
//! `run_queue`) and a timer table.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use rdma_midlayer::driver::{Poller, Turn, Waker};
use rdma_midlayer::rcu;
use rdma_midlayer::types::Qpn;

use super::context::Context;
use super::cq::Cq;
use super::link::Link;
use super::qp::Qp;
use super::run_queue::RunQueue;
use super::spin::SpinLock;
use super::wire::frame::FrameBatch;

/// QPs that one turn moves to ERR when their CQ failed.
const CQ_USERS_A_TURN: usize = 64;

/// Something to run.
enum Task {
    /// A QP with work to do.
    Qp(Arc<Qp>),
    /// A CQ overflowed: these QPs complete to it.
    CqFailed { context: Arc<Context>, users: Vec<Qpn> },
}

/// Frames of a turn that lead nowhere.
const LOST_A_TURN: usize = 64;

/// Wakes the poller of a link without a port.
struct LinkWaker(Weak<SoftPoller>);

impl Waker for LinkWaker {
    fn wake(&self) {
        if let Some(poller) = self.0.upgrade() {
            poller.wake_if_idle();
        }
    }
}

/// A worker's share of the QPs.
pub(crate) struct SoftPoller {
    tasks: RunQueue<Task>,
    timers: SpinLock<BTreeMap<TimerKey, Arc<Qp>>>,
    /// How many timers there are, so that a turn without any takes no lock.
    timer_count: AtomicUsize,
    waker: SpinLock<Option<Arc<dyn Waker>>>,
    /// Links without a port, which this poller drives.
    links: SpinLock<Vec<Arc<Link>>>,
    link_count: AtomicUsize,
}

/// A timer: when, and of which QP. A QP has one at a time.
pub(crate) type TimerKey = (Instant, usize);

impl SoftPoller {
    pub(crate) fn new() -> Self {
        Self {
            tasks: RunQueue::new(),
            timers: SpinLock::new(BTreeMap::new()),
            timer_count: AtomicUsize::new(0),
            waker: SpinLock::new(None),
            links: SpinLock::new(Vec::new()),
            link_count: AtomicUsize::new(0),
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
        self.wake_if_idle();
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

    /// Drives a link that has no port: its frames go from one QP of the daemon to another.
    pub(crate) fn drive(self: &Arc<Self>, link: &Arc<Link>) {
        let mut links = self.links.lock();
        links.push(link.clone());
        self.link_count.store(links.len(), Ordering::Release);
        drop(links);
        link.set_waker(Arc::new(LinkWaker(Arc::downgrade(self))));
    }

    fn links(&self) -> Vec<Arc<Link>> {
        match self.link_count.load(Ordering::Acquire) {
            0 => Vec::new(),
            _ => self.links.lock().clone(),
        }
    }

    /// A turn of the links that have no port.
    fn turn_of_links(&self, now: Instant) -> bool {
        let mut worked = false;
        for link in self.links() {
            worked |= link.has_frames();
            link.handle_timer(now);
            // What leads elsewhere is lost, as where nothing is plugged in.
            worked |= link.has_frames();
            link.transmit(now, &mut FrameBatch::new(LOST_A_TURN));
        }
        worked
    }

    fn enter(&self, task: Task) {
        if self.tasks.enter(task) {
            self.wake();
        }
    }

    /// The worker has to look at something else than tasks.
    fn wake_if_idle(&self) {
        if self.tasks.must_wake() {
            self.wake();
        }
    }

    fn wake(&self) {
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
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
        let of_links = self.links().iter().filter_map(|link| link.next_deadline()).min();
        if self.timer_count.load(Ordering::Relaxed) == 0 {
            return of_links;
        }
        let own = self.timers.lock().first_key_value().map(|(key, _)| key.0);
        own.into_iter().chain(of_links).min()
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
        if self.tasks.is_idle()
            && self.timer_count.load(Ordering::Relaxed) == 0
            && self.link_count.load(Ordering::Relaxed) == 0
        {
            return Turn { worked: false, deadline: None };
        }
        let guard = rcu::enter();
        self.tasks.awake();
        let mut worked = self.expire(now) | self.turn_of_links(now);
        let mut used = 0;
        while used < budget.max(1) {
            let Some(task) = self.tasks.next() else { break };
            used += self.run(task, now, &guard).max(1);
            worked = true;
        }
        if !worked {
            // After falling idle, since a link wakes an idle worker only.
            worked = !self.tasks.fall_idle() || self.links().iter().any(|link| link.has_frames());
        }
        // After falling idle: a timer that starts later wakes the worker.
        Turn { worked, deadline: self.deadline() }
    }

    fn set_waker(&self, waker: Arc<dyn Waker>) {
        let old = self.waker.lock().replace(waker);
        drop(old);
        // What came before the waker was there.
        if self.tasks.has_tasks() || self.deadline().is_some() {
            self.wake();
        }
    }
}
