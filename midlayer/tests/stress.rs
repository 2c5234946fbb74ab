// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reentrancy: the same objects from many threads at once.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use common::{CAP, LONG, LedgerHca, Loopback, Stage, connect, memory, send};
use rdma_midlayer::attr::AhAttr;
use rdma_midlayer::driver::Notify;
use rdma_midlayer::types::{Access, QpType};
use rdma_midlayer::work::{RecvWr, SendData};
use rdma_midlayer::{Ah, ContextSpec, Cq, CqSpec, Error, MaySleep, Qp, QpSpec};

#[test]
fn several_threads_poll_one_cq_and_no_completion_is_lost_or_doubled() {
    const MESSAGES: u64 = 20_000;
    let cx = MaySleep::claim().unwrap();
    let (stage, context, pd) = Stage::open(&cx, Loopback::new("hca"));
    let cq = context.create_cq(&cx, CqSpec { cqe: 4096, ..CqSpec::default() }).unwrap();
    let [a, b] = [0, 1].map(|_| pd.create_qp(&cx, QpSpec::new(QpType::Rc, &cq, CAP)).unwrap());
    connect(&cx, &a, &b);
    connect(&cx, &b, &a);
    let got = AtomicU64::new(0);
    let seen: Vec<AtomicU64> = (0..2 * MESSAGES).map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut wcs = Vec::with_capacity(16);
                while got.load(SeqCst) < 2 * MESSAGES {
                    wcs.clear();
                    let n = cq.poll_cq(&mut wcs, 16).unwrap();
                    got.fetch_add(n as u64, SeqCst);
                    for wc in &wcs {
                        seen[wc.wr_id as usize].fetch_add(1, SeqCst);
                    }
                    if n == 0 {
                        thread::yield_now();
                    }
                }
            });
        }
        for n in 0..MESSAGES {
            b.post_recv(&RecvWr { wr_id: n, ticket: 0, sges: &[] }).unwrap();
            a.post_send(&send(MESSAGES + n, SendData::Sges(&[]))).unwrap();
            // The CQ must not overflow.
            while 2 * n > got.load(SeqCst) + 3000 {
                thread::yield_now();
            }
        }
    });
    assert!(seen.iter().all(|count| count.load(SeqCst) == 1));
    a.destroy(&cx).unwrap();
    b.destroy(&cx).unwrap();
    cq.destroy(&cx).unwrap();
    stage.close(&cx, context, pd);
}

#[test]
fn a_consumer_that_arms_polls_and_waits_for_its_handler_misses_no_completion() {
    const MESSAGES: usize = 20_000;
    let cx = MaySleep::claim().unwrap();
    let (stage, context, pd) = Stage::open(&cx, Loopback::new("hca"));
    let (ring, bell) = std::sync::mpsc::channel();
    let ring = Mutex::new(ring);
    let inside = AtomicBool::new(false);
    let handler = move |_| {
        assert!(!inside.swap(true, SeqCst), "twice at once");
        ring.lock().unwrap().send(()).unwrap();
        inside.store(false, SeqCst);
    };
    let send_cq = context.create_cq(&cx, CqSpec { cqe: 64, ..CqSpec::default() }).unwrap();
    let spec = CqSpec { cqe: 4096, handler: Some(Box::new(handler)), ..CqSpec::default() };
    let recv_cq = context.create_cq(&cx, spec).unwrap();
    let [a, b] = [0, 1].map(|_| {
        let spec = QpSpec { recv_cq: recv_cq.clone(), ..QpSpec::new(QpType::Rc, &send_cq, CAP) };
        pd.create_qp(&cx, spec).unwrap()
    });
    connect(&cx, &a, &b);
    connect(&cx, &b, &a);
    let received = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..MESSAGES {
                b.post_recv(&RecvWr { wr_id: 0, ticket: 0, sges: &[] }).unwrap();
                let mut wr = send(0, SendData::Sges(&[]));
                wr.flags = Default::default();
                a.post_send(&wr).unwrap();
                // Small bursts, so that the other side often finds nothing and sleeps.
                while n > received.load(SeqCst) + 3 {
                    thread::yield_now();
                }
            }
        });
        let mut wcs = Vec::new();
        while received.load(SeqCst) < MESSAGES {
            let missed = recv_cq.req_notify_cq(Notify::Next).unwrap();
            wcs.clear();
            let n = recv_cq.poll_cq(&mut wcs, 64).unwrap();
            received.fetch_add(n, SeqCst);
            if n == 0 && !missed && received.load(SeqCst) < MESSAGES {
                bell.recv_timeout(LONG).expect("a lost wake-up");
            }
        }
    });
    a.destroy(&cx).unwrap();
    b.destroy(&cx).unwrap();
    send_cq.destroy(&cx).unwrap();
    recv_cq.destroy(&cx).unwrap();
    stage.close(&cx, context, pd);
}

/// Whether a verb on an object that others destroy answered as it may.
fn fine<T>(answer: Result<T, Error>) -> bool {
    matches!(answer, Ok(_) | Err(Error::Gone))
}

#[test]
fn create_and_destroy_race_with_use_and_the_driver_never_sees_a_dead_object() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    hca.ledger.linger.store(100, SeqCst);
    let (stage, context, pd) = Stage::open(&cx, hca.clone());
    let objects = |cx: &MaySleep| {
        let cq = context.create_cq(cx, CqSpec { cqe: 4, ..CqSpec::default() }).unwrap();
        let qp = pd.create_qp(cx, QpSpec::new(QpType::Ud, &cq, CAP)).unwrap();
        let ah = pd.create_ah(&AhAttr::default()).unwrap();
        (cq, qp, ah)
    };
    let shared: RwLock<(Arc<Cq>, Arc<Qp>, Arc<Ah>)> = RwLock::new(objects(&cx));
    let end = Instant::now() + Duration::from_secs(2);
    let (mut rounds, stop) = (0, AtomicBool::new(false));
    thread::scope(|scope| {
        for sleeper in [false, false, true] {
            let (shared, stop) = (&shared, &stop);
            scope.spawn(move || {
                let cx = MaySleep::claim().unwrap();
                let mut wcs = Vec::with_capacity(4);
                while !stop.load(SeqCst) {
                    let (cq, qp, ah) = shared.read().unwrap().clone();
                    for _ in 0..50 {
                        assert!(fine(qp.post_send(&send(1, SendData::Sges(&[])))));
                        assert!(fine(qp.post_recv(&RecvWr { wr_id: 1, ticket: 0, sges: &[] })));
                        assert!(fine(cq.poll_cq(&mut wcs, 4)));
                        assert!(fine(cq.req_notify_cq(Notify::Next)));
                        assert!(fine(ah.modify(&AhAttr::default())));
                        assert!(fine(ah.query()));
                        if sleeper {
                            assert!(fine(qp.query(&cx)));
                            assert!(fine(cq.resize_cq(&cx, 8, None)));
                        }
                    }
                }
            });
        }
        // Some rounds there must be, however slow the machine.
        while (Instant::now() < end || rounds < 10) && hca.ledger.broken.lock().unwrap().is_empty()
        {
            let old = std::mem::replace(&mut *shared.write().unwrap(), objects(&cx));
            thread::sleep(Duration::from_micros(200));
            old.2.destroy().unwrap();
            old.1.destroy(&cx).unwrap();
            old.0.destroy(&cx).unwrap();
            rounds += 1;
        }
        stop.store(true, SeqCst);
    });
    hca.ledger.assert_kept();
    let (cq, qp, ah) = shared.into_inner().unwrap();
    ah.destroy().unwrap();
    qp.destroy(&cx).unwrap();
    cq.destroy(&cx).unwrap();
    stage.close(&cx, context, pd);
}

#[test]
fn a_verb_that_takes_long_in_the_driver_holds_up_no_other() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    let stage = Stage::new(&cx, hca.clone());
    let context = stage.device.alloc_context(&cx, ContextSpec::default()).unwrap();
    hca.ledger.hold_alloc_pd.store(true, SeqCst);
    let pd = thread::scope(|scope| {
        let slow = scope.spawn(|| context.alloc_pd(&MaySleep::claim().unwrap()).unwrap());
        common::until("alloc_pd is inside", || hca.ledger.in_alloc_pd.load(SeqCst));
        // On the same context, the same device, and the midlayer itself.
        let cq = context.create_cq(&cx, CqSpec { cqe: 4, ..CqSpec::default() }).unwrap();
        context.resume(&cx).unwrap();
        cq.destroy(&cx).unwrap();
        let other = stage.device.alloc_context(&cx, ContextSpec::default()).unwrap();
        other.dealloc(&cx).unwrap();
        stage.device.query_port(&cx, 1).unwrap();
        let second = stage.midlayer.register_device(&cx, LedgerHca::new("second")).unwrap();
        stage.midlayer.unregister_device(&cx, second).unwrap();
        assert_eq!(context.dealloc(&cx), Err(Error::Busy("context")), "what is made counts");
        assert!(!slow.is_finished());
        hca.ledger.hold_alloc_pd.store(false, SeqCst);
        slow.join().unwrap()
    });
    stage.close(&cx, context, pd);
}

#[test]
fn a_pd_is_destroyed_by_one_of_many_and_never_under_what_is_made_from_it() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    hca.ledger.linger.store(200, SeqCst);
    let stage = Stage::new(&cx, hca.clone());
    let context = stage.device.alloc_context(&cx, ContextSpec::default()).unwrap();
    for _ in 0..200 {
        let pd = context.alloc_pd(&cx).unwrap();
        let ended = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let cx = MaySleep::claim().unwrap();
                    loop {
                        match pd.dealloc(&cx) {
                            Ok(()) => {
                                ended.fetch_add(1, SeqCst);
                                return;
                            }
                            Err(Error::Gone) => return,
                            Err(Error::Busy(_)) => thread::yield_now(),
                            Err(other) => panic!("{other}"),
                        }
                    }
                });
            }
            scope.spawn(|| {
                let cx = MaySleep::claim().unwrap();
                while let Ok(mr) = pd.reg_mr(&cx, memory(0, 8), Access::NONE) {
                    let _ah = pd.create_ah(&AhAttr::default());
                    mr.dereg(&cx).unwrap();
                    thread::yield_now();
                }
            });
        });
        assert_eq!(ended.load(SeqCst), 1);
    }
    hca.ledger.assert_kept();
    context.dealloc(&cx).unwrap();
    stage.end(&cx);
    assert_eq!(hca.ledger.all_live(), 0);
}

#[test]
fn a_device_leaves_while_its_objects_are_in_use_and_nobody_hangs() {
    for _ in 0..50 {
        let cx = MaySleep::claim().unwrap();
        let hca = LedgerHca::new("hca");
        let stage = Stage::new(&cx, hca.clone());
        let context = stage.device.alloc_context(&cx, ContextSpec::default()).unwrap();
        let pd = context.alloc_pd(&cx).unwrap();
        let cq = context.create_cq(&cx, CqSpec { cqe: 4, ..CqSpec::default() }).unwrap();
        let qp = pd.create_qp(&cx, QpSpec::new(QpType::Ud, &cq, CAP)).unwrap();
        let users: Vec<_> = (0..2)
            .map(|_| {
                let (pd, qp, cq) = (pd.clone(), qp.clone(), cq.clone());
                thread::spawn(move || {
                    let cx = MaySleep::claim().unwrap();
                    while qp.post_send(&send(1, SendData::Sges(&[]))).is_ok() {
                        let _ = cq.poll_cq(&mut Vec::new(), 1);
                        if let Ok(mr) = pd.reg_mr(&cx, memory(0, 8), Access::NONE) {
                            mr.dereg(&cx).unwrap();
                        }
                    }
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(2));
        stage.tear(&cx);
        users.into_iter().for_each(|user| user.join().unwrap());
        hca.ledger.assert_kept();
        assert_eq!(hca.ledger.all_live(), 0);
    }
}
