// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Unit tests of `run_queue`.

use std::sync::{Arc, Mutex, OnceLock};

use crate::MaySleep;
use crate::driver::Waker;
use crate::run_queue::*;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

struct Count(AtomicUsize);

impl Waker for Count {
    fn wake(&self) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn queue() -> (Arc<RunQueue>, Arc<Count>) {
    let waker = Arc::new(Count(AtomicUsize::new(0)));
    (RunQueue::new(waker.clone()), waker)
}

#[test]
fn tasks_run_first_in_first_out_and_within_the_budget() {
    let (queue, _) = queue();
    let log = Arc::new(Mutex::new(Vec::new()));
    let tasks: Vec<_> = (0..5)
        .map(|n| {
            let log = log.clone();
            Task::new(queue.clone(), Box::new(move |_| log.lock().unwrap().push(n)))
        })
        .collect();
    tasks.iter().for_each(|t| t.schedule(false));
    assert_eq!(queue.drain(3), Drained { ran: 3, more: true });
    tasks[0].schedule(false);
    assert_eq!(queue.drain(3), Drained { ran: 3, more: false });
    assert_eq!(*log.lock().unwrap(), [0, 1, 2, 3, 4, 0]);
}

#[test]
fn a_task_scheduled_many_times_runs_once_with_the_reasons_added_up() {
    let (queue, _) = queue();
    let log = Arc::new(Mutex::new(Vec::new()));
    let task = {
        let log = log.clone();
        Task::new(queue.clone(), Box::new(move |solicited| log.lock().unwrap().push(solicited)))
    };
    task.schedule(false);
    task.schedule(true);
    task.schedule(false);
    queue.drain(10);
    task.schedule(false);
    queue.drain(10);
    assert_eq!(*log.lock().unwrap(), [true, false]);
}

#[test]
fn a_task_scheduled_by_its_own_handler_runs_again_and_not_inside() {
    let (queue, _) = queue();
    let runs = Arc::new(AtomicUsize::new(0));
    let task: Arc<OnceLock<Arc<Task>>> = Arc::new(OnceLock::new());
    let handler = {
        let (queue, runs, task) = (queue.clone(), runs.clone(), Arc::downgrade(&task));
        move |_| {
            if runs.fetch_add(1, SeqCst) < 2 {
                task.upgrade().unwrap().get().unwrap().schedule(false);
                assert_eq!(queue.drain(9), Drained { ran: 0, more: true });
            }
        }
    };
    task.set(Task::new(queue.clone(), Box::new(handler))).ok().unwrap();
    task.get().unwrap().schedule(false);
    assert_eq!(queue.drain(10).ran, 3);
    assert_eq!(runs.load(SeqCst), 3);
}

#[test]
fn the_waker_is_called_only_while_the_owner_sleeps() {
    let (queue, waker) = queue();
    let task = Task::new(queue.clone(), Box::new(|_| ()));
    task.schedule(false);
    assert_eq!(waker.0.load(SeqCst), 0);
    assert!(!queue.sleep(), "something waits");
    queue.drain(10);
    assert!(queue.sleep());
    task.schedule(false);
    task.schedule(false);
    assert_eq!(waker.0.load(SeqCst), 1);
}

#[test]
fn a_killed_task_runs_never_again() {
    let (queue, _) = queue();
    let task = Task::new(queue.clone(), Box::new(|_| panic!("killed")));
    task.schedule(false);
    std::thread::spawn({
        let task = task.clone();
        move || task.kill(&MaySleep::claim().unwrap())
    })
    .join()
    .unwrap();
    queue.drain(10);
    task.schedule(false);
    queue.drain(10);
}

#[test]
fn a_dispatcher_survives_a_handler_that_panics() {
    let dispatcher = Dispatcher::start(1).unwrap();
    let queue = dispatcher.queues()[0].clone();
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let bad = Task::new(queue.clone(), Box::new(|_| panic!("on purpose")));
    let good = Task::new(queue, Box::new(move |_| sender.send(()).unwrap()));
    bad.schedule(false);
    good.schedule(false);
    receiver.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
}
