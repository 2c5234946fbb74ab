// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Unit tests of `completion`.

use std::sync::Arc;

use crate::completion::*;
use crate::driver::Waker;
use crate::driver::{CqEvents, Notify};
use crate::run_queue::RunQueue;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

struct Nobody;

impl Waker for Nobody {
    fn wake(&self) {}
}

fn counting(gated: bool) -> (Arc<RunQueue>, Arc<AtomicUsize>, Arc<Notifier>) {
    let queue = RunQueue::new(Arc::new(Nobody));
    let count = Arc::new(AtomicUsize::new(0));
    let handler = {
        let count = count.clone();
        move |_| {
            count.fetch_add(1, SeqCst);
        }
    };
    let notifier = Notifier::new(Some(Box::new(handler)), &queue, gated);
    (queue, count, notifier)
}

#[test]
fn an_armed_cq_makes_one_event_and_an_unarmed_one_none() {
    let (queue, count, notifier) = counting(true);
    notifier.completed(true);
    assert!(!notifier.wanted());
    notifier.arm(Notify::Next);
    assert!(notifier.wanted());
    notifier.completed(false);
    queue.drain(9);
    notifier.completed(false);
    queue.drain(9);
    assert_eq!(count.load(SeqCst), 1);
}

#[test]
fn a_cq_armed_for_solicited_events_waits_for_one() {
    let (queue, count, notifier) = counting(true);
    notifier.arm(Notify::Solicited);
    notifier.completed(false);
    assert_eq!(queue.drain(9).ran, 0);
    notifier.completed(true);
    assert_eq!((queue.drain(9).ran, count.load(SeqCst)), (1, 1));
    notifier.arm(Notify::Next);
    notifier.arm(Notify::Solicited);
    notifier.completed(false);
    assert_eq!(queue.drain(9).ran, 1, "the wish for any completion stays");
}

#[test]
fn a_cq_in_consumer_memory_makes_an_event_of_every_burst() {
    let (queue, count, notifier) = counting(false);
    for _ in 0..3 {
        notifier.completed(false);
        queue.drain(9);
    }
    assert_eq!(count.load(SeqCst), 3);
}
