// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Models, checked by loom for every interleaving: the dispatcher's tasks, arming against completion,
//! destroy against a running handler, RCU. The files under test are the crate's own, compiled again
//! here with loom's primitives in place of `sync`.
#![allow(dead_code, unreachable_pub, reason = "the files are used in part")]

#[path = "../src/completion.rs"]
mod completion;
#[path = "../src/context.rs"]
mod context;
#[path = "../src/life.rs"]
mod life;
#[path = "../src/rcu.rs"]
mod rcu;
#[path = "../src/run_queue.rs"]
mod run_queue;

use rdma_midlayer::{driver, error};

/// What the crate's `sync` offers, made of loom's primitives.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, fence};
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::sync::atomic::{Ordering, compiler_fence};

    pub(crate) const CHUNK: usize = 2;

    macro_rules! global {
        (static $name:ident: $type:ty = $value:expr;) => {
            loom::lazy_static! { static ref $name: $type = $value; }
        };
    }
    pub(crate) use global;

    macro_rules! own {
        ($(#[$doc:meta])* static $name:ident: $type:ty = $value:expr;) => {
            loom::thread_local! { $(#[$doc])* static $name: $type = $value; }
        };
    }
    pub(crate) use own;

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }

    pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        condvar.wait(guard).unwrap()
    }

    pub(crate) fn pause(_tries: u32) {
        loom::thread::yield_now();
    }

    pub(crate) fn can_fence_all_threads() -> bool {
        false
    }

    pub(crate) fn fence_all_threads() {}

    pub(crate) fn full_fence() {
        fence(Ordering::SeqCst);
    }

    pub(crate) fn this_thread() -> u64 {
        loom::thread_local! {
            static HERE: u8 = 0;
        }
        HERE.with(|here| std::ptr::from_ref(here).addr() as u64)
    }
}

use std::sync::Arc;

use completion::Notifier;
use context::MaySleep;
use driver::{CqEvents, Notify, Waker};
use life::{Life, NotClosed};
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use loom::thread;
use run_queue::{RunQueue, Task};

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // More preemptions find nothing new in code this small, and take hours.
    builder.preemption_bound = Some(3);
    builder.check(f);
}

/// A token for a thread of a model.
fn token() -> MaySleep {
    MaySleep::claim().unwrap()
}

struct Nobody;

impl Waker for Nobody {
    fn wake(&self) {}
}

/// Sleeps as a dispatcher's thread does: until woken, and a wake before counts.
struct Bed {
    woken: loom::sync::Mutex<bool>,
    bell: loom::sync::Condvar,
}

impl Bed {
    fn new() -> Arc<Self> {
        Arc::new(Self { woken: loom::sync::Mutex::new(false), bell: loom::sync::Condvar::new() })
    }

    fn sleep(&self) {
        let mut woken = self.woken.lock().unwrap();
        while !*woken {
            woken = self.bell.wait(woken).unwrap();
        }
        *woken = false;
    }
}

impl Waker for Bed {
    fn wake(&self) {
        *self.woken.lock().unwrap() = true;
        self.bell.notify_one();
    }
}

#[test]
fn a_handler_never_runs_twice_at_once_and_sees_what_was_done_before_each_schedule() {
    model(|| {
        let queue = RunQueue::new(Arc::new(Nobody));
        let running = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicUsize::new(0));
        let seen = Arc::new(AtomicUsize::new(0));
        let task = {
            let (running, done, seen) = (running.clone(), done.clone(), seen.clone());
            Task::new(
                queue.clone(),
                Box::new(move |_| {
                    assert!(!running.swap(true, Ordering::Relaxed), "twice at once");
                    seen.store(done.load(Ordering::Relaxed), Ordering::Relaxed);
                    running.store(false, Ordering::Relaxed);
                }),
            )
        };
        let producer = {
            let (task, done) = (task.clone(), done.clone());
            thread::spawn(move || {
                done.fetch_add(1, Ordering::Relaxed);
                task.schedule(false);
            })
        };
        // Two threads drain, which is allowed.
        let other = {
            let queue = queue.clone();
            thread::spawn(move || {
                queue.drain(2);
            })
        };
        done.fetch_add(1, Ordering::Relaxed);
        task.schedule(true);
        producer.join().unwrap();
        other.join().unwrap();
        while queue.drain(2).more {}
        assert_eq!(seen.load(Ordering::Relaxed), 2, "the last run saw everything");
    });
}

#[test]
fn an_owner_that_goes_to_sleep_is_woken_for_what_comes() {
    model(|| {
        let bed = Bed::new();
        let queue = RunQueue::new(bed.clone());
        let ran = Arc::new(AtomicUsize::new(0));
        let task = {
            let ran = ran.clone();
            let count = move |_| {
                ran.fetch_add(1, Ordering::Relaxed);
            };
            Task::new(queue.clone(), Box::new(count))
        };
        let producer = thread::spawn(move || task.schedule(false));
        // A lost wake-up leaves this thread asleep for ever, which loom reports as a deadlock.
        while ran.load(Ordering::Relaxed) == 0 {
            if queue.drain(1).ran == 0 && queue.sleep() {
                bed.sleep();
                queue.awake();
            }
        }
        producer.join().unwrap();
    });
}

#[test]
fn no_completion_is_lost_between_arming_and_the_look_that_follows() {
    model(|| {
        let queue = RunQueue::new(Arc::new(Nobody));
        let calls = Arc::new(AtomicUsize::new(0));
        let handler = {
            let calls = calls.clone();
            move |_| {
                calls.fetch_add(1, Ordering::Relaxed);
            }
        };
        let notifier = Notifier::new(Some(Box::new(handler)), &queue, true);
        let completions = Arc::new(AtomicUsize::new(0));
        let driver = {
            let (notifier, completions) = (notifier.clone(), completions.clone());
            thread::spawn(move || {
                completions.store(1, Ordering::Relaxed);
                notifier.completed(false);
            })
        };
        // As `Cq::req_notify_cq`: arm, then the driver's look.
        notifier.arm(Notify::Next);
        let missed = completions.load(Ordering::Relaxed) == 1;
        driver.join().unwrap();
        queue.drain(9);
        assert!(missed || calls.load(Ordering::Relaxed) == 1, "lost");
        assert!(calls.load(Ordering::Relaxed) <= 1, "one event for one arming");
    });
}

#[test]
fn a_driver_that_asks_whether_a_report_is_wanted_loses_none_either() {
    model(|| {
        let queue = RunQueue::new(Arc::new(Nobody));
        let notifier = Notifier::new(Some(Box::new(|_| ())), &queue, true);
        let completions = Arc::new(AtomicUsize::new(0));
        let driver = {
            let (notifier, completions) = (notifier.clone(), completions.clone());
            thread::spawn(move || {
                completions.store(1, Ordering::Relaxed);
                let wanted = notifier.wanted();
                if wanted {
                    notifier.completed(false);
                }
                wanted
            })
        };
        notifier.arm(Notify::Next);
        let missed = completions.load(Ordering::Relaxed) == 1;
        let wanted = driver.join().unwrap();
        assert!(missed || wanted, "lost");
        assert_eq!(queue.drain(9).ran, usize::from(wanted));
    });
}

#[test]
fn a_handler_that_arms_again_itself_gets_every_completion() {
    model(|| {
        let queue = RunQueue::new(Arc::new(Nobody));
        let completions = Arc::new(AtomicUsize::new(0));
        let polled = Arc::new(AtomicUsize::new(0));
        let notifier: Arc<std::sync::OnceLock<Arc<Notifier>>> = Arc::default();
        let handler = {
            let (completions, polled) = (completions.clone(), polled.clone());
            let notifier = Arc::downgrade(&notifier);
            move |_| {
                // Poll, arm, and poll once more if something came: what every consumer does.
                loop {
                    polled.store(completions.load(Ordering::Relaxed), Ordering::Relaxed);
                    let notifier = notifier.upgrade().unwrap();
                    notifier.get().unwrap().arm(Notify::Next);
                    if completions.load(Ordering::Relaxed) == polled.load(Ordering::Relaxed) {
                        return;
                    }
                }
            }
        };
        let made = Notifier::new(Some(Box::new(handler)), &queue, true);
        notifier.set(made.clone()).ok().unwrap();
        made.arm(Notify::Next);
        let complete = {
            let (made, completions) = (made.clone(), completions.clone());
            move || {
                completions.fetch_add(1, Ordering::Relaxed);
                made.completed(false);
            }
        };
        // One runs already when the other comes.
        complete();
        let driver = thread::spawn(complete);
        queue.drain(2);
        driver.join().unwrap();
        while queue.drain(2).more {}
        assert_eq!(polled.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn a_solicited_burst_is_told_as_one_to_a_cq_in_consumer_memory() {
    model(|| {
        let queue = RunQueue::new(Arc::new(Nobody));
        let told = Arc::new(AtomicUsize::new(0));
        let written = Arc::new(AtomicUsize::new(0));
        let seen = Arc::new(AtomicUsize::new(0));
        let handler = {
            let (told, written, seen) = (told.clone(), written.clone(), seen.clone());
            move |solicited| {
                told.fetch_add(usize::from(solicited), Ordering::Relaxed);
                seen.store(written.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        };
        let notifier = Notifier::new(Some(Box::new(handler)), &queue, false);
        let driver = {
            let (notifier, written) = (notifier.clone(), written.clone());
            thread::spawn(move || {
                written.store(1, Ordering::Relaxed);
                notifier.completed(true);
                written.store(2, Ordering::Relaxed);
                notifier.completed(false);
            })
        };
        queue.drain(1);
        driver.join().unwrap();
        while queue.drain(2).more {}
        assert_eq!((told.load(Ordering::Relaxed), seen.load(Ordering::Relaxed)), (1, 2));
    });
}

#[test]
fn destroy_returns_only_when_no_handler_runs_or_will_run() {
    model(|| {
        let queue = RunQueue::new(Arc::new(Nobody));
        let ended = Arc::new(AtomicBool::new(false));
        let handler = {
            let ended = ended.clone();
            move |_| {
                assert!(!ended.load(Ordering::Relaxed), "after destroy");
                thread::yield_now();
                assert!(!ended.load(Ordering::Relaxed), "destroy did not wait");
            }
        };
        let notifier = Notifier::new(Some(Box::new(handler)), &queue, false);
        notifier.completed(false);
        let worker = {
            let (queue, notifier) = (queue.clone(), notifier.clone());
            thread::spawn(move || {
                queue.drain(1);
                notifier.completed(false);
                queue.drain(1);
            })
        };
        let cx = token();
        notifier.kill(&cx);
        ended.store(true, Ordering::Relaxed);
        worker.join().unwrap();
    });
}

#[test]
fn a_reader_never_sees_what_was_freed() {
    struct Canary(Arc<AtomicBool>);
    impl Drop for Canary {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    model(|| {
        let table = Arc::new(rcu::Table::new(2));
        let freed = Arc::new(AtomicBool::new(false));
        assert!(table.insert(1, Arc::new(Canary(freed.clone()))).is_ok());
        let reader = {
            let (table, freed) = (table.clone(), freed.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    let guard = rcu::enter();
                    if table.get(1, &guard).is_some() {
                        thread::yield_now();
                        assert!(!freed.load(Ordering::Relaxed), "freed while in use");
                    }
                }
            })
        };
        let cx = token();
        drop(table.remove(&cx, 1));
        reader.join().unwrap();
    });
}

#[test]
fn a_count_taken_from_the_table_keeps_the_object() {
    model(|| {
        let table = Arc::new(rcu::Table::new(2));
        assert!(table.insert(0, Arc::new(7)).is_ok());
        let reader = {
            let table = table.clone();
            thread::spawn(move || table.get_arc(0))
        };
        let cx = token();
        let removed = table.remove(&cx, 0).unwrap();
        let got = reader.join().unwrap();
        assert!(got.is_none_or(|got| Arc::ptr_eq(&got, &removed)));
    });
}

#[test]
fn an_object_closes_only_without_dependents_and_with_no_verb_inside() {
    model(|| {
        let life = Arc::new(Life::new());
        let inside = Arc::new(AtomicBool::new(false));
        let user = {
            let (life, inside) = (life.clone(), inside.clone());
            thread::spawn(move || {
                if life.enter() {
                    inside.store(true, Ordering::Relaxed);
                    thread::yield_now();
                    inside.store(false, Ordering::Relaxed);
                    life.leave();
                }
            })
        };
        let maker = {
            let life = life.clone();
            thread::spawn(move || life.add_dependent())
        };
        let cx = token();
        let closed = life.close(&cx);
        if closed.is_ok() {
            assert!(!inside.load(Ordering::Relaxed), "a verb is inside");
        }
        let made = maker.join().unwrap();
        assert_eq!(closed, if made && closed.is_err() { Err(NotClosed::Used) } else { Ok(()) });
        assert!(!(made && closed.is_ok()), "both");
        user.join().unwrap();
    });
}

#[test]
fn an_object_that_nobody_can_wait_for_is_ended_once_by_the_last_one_out() {
    // The pattern of address handles.
    model(|| {
        let life = Arc::new(Life::new());
        let ended = Arc::new(AtomicUsize::new(0));
        let user = {
            let (life, ended) = (life.clone(), ended.clone());
            thread::spawn(move || {
                if life.enter() {
                    assert_eq!(ended.load(Ordering::Relaxed), 0, "used after its end");
                    if life.leave_as_last() {
                        ended.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        };
        if life.close_now() == Some(true) {
            ended.fetch_add(1, Ordering::Relaxed);
        }
        assert_eq!(life.close_now(), None);
        user.join().unwrap();
        assert_eq!(ended.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_verb_that_never_sleeps_is_out_before_the_object_is_destroyed() {
    // The pattern of every fast verb: guard, look, use; against close, synchronize, destroy.
    model(|| {
        let life = Arc::new(Life::new());
        let destroyed = Arc::new(AtomicBool::new(false));
        let user = {
            let (life, destroyed) = (life.clone(), destroyed.clone());
            thread::spawn(move || {
                let _guard = rcu::enter();
                if life.is_open() {
                    thread::yield_now();
                    assert!(!destroyed.load(Ordering::Relaxed), "used after destroy");
                }
            })
        };
        let cx = token();
        life.close(&cx).unwrap();
        rcu::synchronize(&cx);
        destroyed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        user.join().unwrap();
    });
}
