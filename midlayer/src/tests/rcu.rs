// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Unit tests of `rcu`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::MaySleep;
use crate::rcu::*;
use std::sync::Barrier;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

#[test]
fn synchronize_waits_for_a_reader_that_is_inside() {
    let order = Arc::new(AtomicUsize::new(0));
    let barrier = Arc::new(Barrier::new(2));
    let reader = std::thread::spawn({
        let (order, barrier) = (order.clone(), barrier.clone());
        move || {
            let _outer = enter();
            let inner = enter();
            barrier.wait();
            drop(inner);
            std::thread::sleep(Duration::from_millis(50));
            order.store(1, Ordering::SeqCst);
        }
    });
    barrier.wait();
    std::thread::spawn(move || {
        synchronize(&MaySleep::claim().unwrap());
        assert_eq!(order.load(Ordering::SeqCst), 1);
    })
    .join()
    .unwrap();
    reader.join().unwrap();
}

#[test]
fn a_table_gives_objects_by_number_until_they_are_removed() {
    std::thread::spawn(|| {
        let cx = MaySleep::claim().unwrap();
        let table = Table::new(3000);
        assert!(table.insert(2500, Arc::new(7)).is_ok());
        assert!(table.insert(2500, Arc::new(8)).is_err(), "taken");
        assert!(table.insert(5000, Arc::new(8)).is_err(), "out of range");
        assert_eq!(table.get(2500, &enter()), Some(&7));
        assert_eq!(table.get(1, &enter()), None);
        assert_eq!(table.replace(&cx, 2500, Arc::new(9)).as_deref(), Ok(&7));
        assert_eq!(table.replace(&cx, 2501, Arc::new(9)).as_deref(), Err(&Arc::new(9)));
        assert_eq!(table.remove(&cx, 2500).as_deref(), Some(&9));
        assert_eq!(table.get(2500, &enter()), None);
        assert!(table.remove(&cx, 2500).is_none());
    })
    .join()
    .unwrap();
}

#[test]
fn readers_never_see_a_freed_object() {
    struct Canary(AtomicU64);
    impl Drop for Canary {
        fn drop(&mut self) {
            self.0.store(0xdead, Ordering::Relaxed);
        }
    }
    let table = Arc::new(Table::new(16));
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (table, stop) = (table.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let guard = enter();
                    if let Some(c) = table.get(3, &guard) {
                        let c: &Canary = c;
                        assert_eq!(c.0.load(Ordering::Relaxed), 1);
                    }
                }
            })
        })
        .collect();
    std::thread::spawn({
        let table = table.clone();
        move || {
            let cx = MaySleep::claim().unwrap();
            for _ in 0..500 {
                assert!(table.insert(3, Arc::new(Canary(AtomicU64::new(1)))).is_ok());
                drop(table.remove(&cx, 3));
            }
        }
    })
    .join()
    .unwrap();
    stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|r| r.join().unwrap());
}
