// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A run queue with one worker behind it. What is entered is run, or the worker is woken; nothing is
//! in the queue twice. No knowledge of QPs here: so it can be model-checked.

use std::collections::VecDeque;

use super::spin::SpinLock;
use super::sync::{AtomicBool, AtomicUsize, Ordering, fence};

/// Something that is entered in a run queue at most once at a time.
pub(crate) struct Queued(AtomicBool);

impl Queued {
    pub(crate) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Whether the caller has to enter it: what the caller did before is seen by the run to come.
    pub(crate) fn request(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// A run begins: requests from now on are for another one.
    pub(crate) fn begin(&self) {
        self.0.swap(false, Ordering::AcqRel);
    }
}

/// Tasks for one worker.
pub(crate) struct RunQueue<T> {
    tasks: SpinLock<VecDeque<T>>,
    /// How many there are, so that a turn without work takes no lock.
    count: AtomicUsize,
    /// The worker has found nothing to do and may be asleep.
    idle: AtomicBool,
}

impl<T> RunQueue<T> {
    /// An empty queue, whose worker is not there yet.
    pub(crate) fn new() -> Self {
        Self {
            tasks: SpinLock::new(VecDeque::new()),
            count: AtomicUsize::new(0),
            idle: AtomicBool::new(true),
        }
    }

    /// Enters a task. Whether the caller has to wake the worker. Never sleeps.
    pub(crate) fn enter(&self, task: T) -> bool {
        let mut tasks = self.tasks.lock();
        tasks.push_back(task);
        self.count.store(tasks.len(), Ordering::Relaxed);
        drop(tasks);
        self.must_wake()
    }

    /// Whether the caller, who has left something for the worker, has to wake it. Pairs with
    /// `fall_idle`: either the worker sees what was left, or it is seen to be idle.
    pub(crate) fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.idle.load(Ordering::Relaxed) && self.idle.swap(false, Ordering::AcqRel)
    }

    /// The oldest task. It may miss one that is being entered: whoever enters it wakes the worker if
    /// that was found idle.
    pub(crate) fn next(&self) -> Option<T> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut tasks = self.tasks.lock();
        let task = tasks.pop_front();
        self.count.store(tasks.len(), Ordering::Relaxed);
        task
    }

    /// Whether there are tasks.
    pub(crate) fn has_tasks(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Whether the worker found nothing when it last looked, and nobody has left anything since.
    pub(crate) fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Relaxed)
    }

    /// The worker is at work.
    pub(crate) fn awake(&self) {
        self.idle.store(false, Ordering::Relaxed);
    }

    /// The worker has found nothing; whether there really is no task, so that it may sleep. What else
    /// others leave for it, it looks at after this.
    pub(crate) fn fall_idle(&self) -> bool {
        self.idle.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !self.has_tasks() {
            return true;
        }
        self.idle.store(false, Ordering::Relaxed);
        false
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn a_task_is_run_or_its_worker_is_woken() {
        loom::model(|| {
            let queue = Arc::new(RunQueue::new());
            queue.awake();
            let other = queue.clone();
            let poster = thread::spawn(move || other.enter(7));
            // A turn, and then sleep if nothing was found.
            let ran = queue.next().is_some();
            let asleep = !ran && queue.fall_idle();
            let woken = poster.join().unwrap();
            assert!(ran || !asleep || woken, "the worker sleeps on a task");
            assert!(ran || queue.next() == Some(7));
        });
    }

    #[test]
    fn a_request_during_a_run_is_seen_by_that_run_or_makes_another() {
        loom::model(|| {
            let queue = Arc::new(RunQueue::new());
            let queued = Arc::new(Queued::new());
            let work = Arc::new(AtomicUsize::new(0));
            assert!(queued.request());
            let poster = {
                let (queue, queued, work) = (queue.clone(), queued.clone(), work.clone());
                thread::spawn(move || {
                    work.store(1, Ordering::Relaxed);
                    if queued.request() {
                        queue.enter(());
                    }
                })
            };
            queued.begin();
            let seen = work.load(Ordering::Relaxed) == 1;
            poster.join().unwrap();
            assert!(seen || queue.next().is_some(), "the request is lost");
        });
    }

    #[test]
    fn two_requests_enter_it_once() {
        loom::model(|| {
            let queue = Arc::new(RunQueue::new());
            let queued = Arc::new(Queued::new());
            let request = |queue: &RunQueue<()>, queued: &Queued| {
                if queued.request() {
                    queue.enter(());
                }
            };
            let other = {
                let (queue, queued) = (queue.clone(), queued.clone());
                thread::spawn(move || request(&queue, &queued))
            };
            request(&queue, &queued);
            other.join().unwrap();
            assert!(queue.next().is_some() && queue.next().is_none());
        });
    }

    #[test]
    fn the_spinlock_keeps_others_out() {
        loom::model(|| {
            let lock = Arc::new(SpinLock::new(0));
            let other = lock.clone();
            let add = |lock: &SpinLock<u32>| {
                let mut value = lock.lock();
                let seen = *value;
                thread::yield_now();
                *value = seen + 1;
            };
            let thread = thread::spawn(move || add(&other));
            add(&lock);
            thread.join().unwrap();
            assert_eq!(*lock.lock(), 2);
        });
    }
}
