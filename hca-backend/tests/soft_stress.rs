// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Many threads at one soft HCA: data and completions stay whole, and what was taken away is not
//! touched any more.

mod common;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::*;
use rdma_midlayer::Error;
use rdma_midlayer::driver::*;
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

use WcStatus::{Success, WrFlushErr};

/// A small generator of numbers.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % n
    }
}

/// A slot holds one message; each direction has slots of its own in both memories.
const SLOT: u64 = 160 << 10;
const SLOTS: u64 = 3;

/// Posts operations from `a` to `b`, several at once, and checks every byte. `way` is 0 or 1.
fn drive(a: &End, b: &End, b_ring: &RecvRing, way: u64, seed: u64, count: u64) {
    let mut rng = Rng(seed);
    let mut pending: VecDeque<(u64, WrOpcode, Vec<u8>)> = VecDeque::new();
    let (mut posted, mut sends) = (0, 0);
    let slot = |id: u64| (way * SLOTS + id % SLOTS) * SLOT;
    let mut wait = 0;
    while posted < count || !pending.is_empty() {
        if posted < count && pending.len() < SLOTS as usize {
            let id = posted;
            let len = [rng.below(200), rng.below(70_000), rng.below(SLOT)][rng.below(3) as usize];
            let opcode =
                [WrOpcode::RdmaWrite, WrOpcode::RdmaRead, WrOpcode::Send][rng.below(3) as usize];
            let data = pattern(seed + id, len as usize);
            let at = slot(id);
            if opcode == WrOpcode::RdmaRead {
                b.fill(at, &data)
            } else {
                a.fill(at, &data)
            };
            let post_recv = || {
                if b_ring.post(id, &[b.sge(at, SLOT as u32)]) {
                    b.qp.recv_posted();
                }
            };
            let late = rng.below(4) == 0;
            if opcode == WrOpcode::Send {
                sends += 1;
                if !late {
                    post_recv();
                }
            }
            a.qp.post_send(&a.wr(id, opcode, &[a.sge(at, len as u32)], b, at)).unwrap();
            if opcode == WrOpcode::Send && late {
                post_recv();
            }
            pending.push_back((id, opcode, data));
            posted += 1;
        }
        let Some(wc) = a.send.take() else {
            thread::yield_now();
            wait += 1;
            assert!(wait < 20_000_000, "{} are pending", pending.len());
            continue;
        };
        wait = 0;
        let (id, opcode, data) = pending.pop_front().unwrap();
        assert_eq!((wc.wr_id, wc.status), (id, Success));
        let at = slot(id);
        let arrived = if opcode == WrOpcode::RdmaRead {
            a.bytes(at, data.len())
        } else {
            b.bytes(at, data.len())
        };
        assert!(arrived == data, "message {id} of {} bytes, {opcode:?}", data.len());
    }
    assert_eq!(b.recv.statuses().len(), sends);
}

fn ring_setup(poller: usize) -> (Arc<RecvRing>, Setup) {
    let ring = Arc::new(RecvRing::default());
    let memory = (2 * SLOTS * SLOT) as usize;
    (ring.clone(), Setup { ring: Some(ring), poller, memory, ..Setup::default() })
}

#[test]
fn both_directions_of_many_qps_keep_every_byte_while_other_objects_come_and_go() {
    let lab = Lab::with_pollers(2);
    let pairs: Vec<_> = (0..3u8)
        .map(|i| {
            let (ring_a, setup_a) = ring_setup(usize::from(i));
            let (ring_b, setup_b) = ring_setup(usize::from(i) + 1);
            let a = End::new(&lab, lab.tenant(1, 10 + i), &setup_a);
            let b = End::new(&lab, lab.tenant(1, 20 + i), &setup_b);
            lab.connect(&a, &b);
            ((a, ring_a), (b, ring_b))
        })
        .collect();
    let (own_ring, own_setup) = ring_setup(0);
    let own = End::new(&lab, lab.tenant(1, 30), &own_setup);
    lab.to_rts(&own, &own, 0, 0);
    let busy = AtomicUsize::new(7);
    lab.with_workers(|| {
        thread::scope(|scope| {
            for (i, ((a, ring_a), (b, ring_b))) in pairs.iter().enumerate() {
                let (seed, busy) = (1000 * (i as u64 + 1), &busy);
                scope.spawn(move || {
                    drive(a, b, ring_b, 0, seed, 300);
                    busy.fetch_sub(1, Ordering::SeqCst);
                });
                scope.spawn(move || {
                    drive(b, a, ring_a, 1, seed + 500, 300);
                    busy.fetch_sub(1, Ordering::SeqCst);
                });
            }
            scope.spawn(|| {
                // To itself, both ways in the same memory: one way is enough.
                drive(&own, &own, &own_ring, 0, 77, 100);
                busy.fetch_sub(1, Ordering::SeqCst);
            });
            let (a, _) = &pairs[0].0;
            let ram = Ram::mapping(4096);
            while busy.load(Ordering::SeqCst) > 0 && !thread::panicking() {
                let memory = window(&ram, 0, 0, 4096);
                let mr = a.tenant.pd.reg_mr(&lab.cx, memory, REMOTE_ALL).unwrap();
                a.tenant.context.add_gid(&lab.cx, 9, &gid_entry(99)).unwrap();
                mr.replace_memory(&lab.cx, None).unwrap();
                a.tenant.context.del_gid(&lab.cx, 9).unwrap();
                mr.dereg(&lab.cx).unwrap();
                let _ = a.qp.query(&lab.cx).unwrap();
                thread::sleep(Duration::from_micros(200));
            }
        });
    });
}

/// Posts in both directions until told to stop, whatever the QPs say to it; returns how much of it
/// succeeded.
fn hammer(a: &End, b: &End, stop: &AtomicBool) -> usize {
    let mut succeeded = 0;
    let mut rng = Rng(0x1234_5678_9abc);
    while !stop.load(Ordering::SeqCst) {
        let len = [8, 5000, 150_000][rng.below(3) as usize];
        for (from, to) in [(a, b), (b, a)] {
            let _ =
                from.qp.post_recv(&RecvWr { wr_id: 0, ticket: 0, sges: &[from.sge(0, 150_000)] });
            let opcode =
                [WrOpcode::Send, WrOpcode::RdmaWrite, WrOpcode::RdmaRead][rng.below(3) as usize];
            let _ = from.qp.post_send(&from.wr(0, opcode, &[from.sge(0, len)], to, 0));
            let done = from.send.drain();
            succeeded += done.iter().filter(|wc| wc.status == Success).count();
            from.recv.drain();
        }
    }
    succeeded
}

#[test]
fn when_destroy_has_returned_nothing_touches_the_consumers_memory() {
    for round in 0..60 {
        let lab = Lab::with_pollers(2);
        let a = End::new(&lab, lab.tenant(1, 1), &Setup::default());
        let b = End::new(&lab, lab.tenant(1, 2), &Setup { poller: 1, ..Setup::default() });
        lab.connect(&a, &b);
        let stop = AtomicBool::new(false);
        lab.with_workers(|| {
            thread::scope(|scope| {
                let posters = [(); 2].map(|()| scope.spawn(|| hammer(&a, &b, &stop)));
                thread::sleep(Duration::from_micros(50 * (round % 20)));
                a.qp.destroy(&lab.cx).unwrap();
                a.send.closed.store(true, Ordering::SeqCst);
                a.recv.closed.store(true, Ordering::SeqCst);
                a.cqs.iter().for_each(|cq| cq.destroy(&lab.cx).unwrap());
                a.mr.dereg(&lab.cx).unwrap();
                let before = a.bytes(0, 150_000);
                thread::sleep(Duration::from_micros(300));
                assert!(a.bytes(0, 150_000) == before, "a peer still writes");
                stop.store(true, Ordering::SeqCst);
                posters.into_iter().for_each(|t| assert!(t.join().is_ok()));
            });
        });
    }
}

#[test]
fn when_a_tenant_is_stopped_nothing_touches_its_memory_or_its_queues() {
    let lab = Lab::with_pollers(2);
    let a = End::new(&lab, lab.tenant(1, 1), &Setup::default());
    let b = End::new(&lab, lab.tenant(1, 2), &Setup { poller: 1, ..Setup::default() });
    lab.connect(&a, &b);
    let stop = AtomicBool::new(false);
    lab.with_workers(|| {
        thread::scope(|scope| {
            let posters = [(); 2].map(|()| scope.spawn(|| hammer(&a, &b, &stop)));
            for _ in 0..60 {
                a.tenant.context.suspend(&lab.cx).unwrap();
                a.send.closed.store(true, Ordering::SeqCst);
                a.recv.closed.store(true, Ordering::SeqCst);
                let before = a.bytes(0, 150_000);
                thread::sleep(Duration::from_micros(300));
                assert!(a.bytes(0, 150_000) == before, "a peer still writes");
                a.send.closed.store(false, Ordering::SeqCst);
                a.recv.closed.store(false, Ordering::SeqCst);
                a.tenant.context.resume(&lab.cx).unwrap();
                thread::sleep(Duration::from_millis(1));
                // On a busy machine a message may lose all its retries to stops.
                if [&a, &b].iter().any(|end| lab.state(end) == QpState::Err) {
                    [&a, &b].iter().for_each(|end| lab.move_to(end, QpState::Reset));
                    lab.connect(&a, &b);
                }
            }
            stop.store(true, Ordering::SeqCst);
            let succeeded: usize = posters.into_iter().map(|t| t.join().unwrap()).sum();
            assert!(succeeded > 60, "{succeeded} requests succeeded between the stops");
        });
    });
}

#[test]
fn when_memory_is_replaced_the_old_is_left_alone() {
    let lab = Lab::with_pollers(1);
    let (a, b) = lab.pair();
    let stop = AtomicBool::new(false);
    lab.with_workers(|| {
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut n = 0u64;
                while !stop.load(Ordering::SeqCst) {
                    n += 1;
                    a.fill(0, &pattern(n, 1000));
                    let _ =
                        a.qp.post_send(&a.wr(n, WrOpcode::RdmaWrite, &[a.sge(0, 120_000)], &b, 0));
                    assert!(a.send.drain().iter().all(|wc| wc.status == Success));
                }
            });
            let mut old = b.ram.clone();
            for _ in 0..200 {
                let new = Ram::mapping(1 << 20);
                b.mr.replace_memory(&lab.cx, Some(window(&new, BASE, 0, 1 << 20))).unwrap();
                let read = || {
                    let mut bytes = vec![0; 120_000];
                    window(&old, 0, 0, 1 << 20).read(0, &mut bytes).unwrap();
                    bytes
                };
                let before = read();
                thread::sleep(Duration::from_micros(200));
                assert!(read() == before, "the old memory is written");
                old = new;
            }
            stop.store(true, Ordering::SeqCst);
        });
    });
}

#[test]
fn whatever_was_posted_completes_once_and_in_order_when_the_qp_fails_meanwhile() {
    for round in 0..60 {
        let lab = Lab::with_pollers(2);
        let bell = Arc::new(Bell::default());
        let setup = Setup { ready: Some(bell), ..Setup::default() };
        let a = End::new(&lab, lab.tenant(1, 1), &setup);
        let b = End::new(&lab, lab.tenant(1, 2), &Setup { poller: 1, ..Setup::default() });
        lab.connect(&a, &b);
        let posted = AtomicUsize::new(0);
        lab.with_workers(|| {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let mut id = 0;
                    while id < 2000 {
                        let len = if id % 7 == 0 { 100_000 } else { 16 };
                        match a.qp.post_send(&a.wr(
                            id,
                            WrOpcode::RdmaWrite,
                            &[a.sge(0, len)],
                            &b,
                            0,
                        )) {
                            Ok(()) => {
                                id += 1;
                                posted.store(id as usize, Ordering::SeqCst);
                            }
                            Err(error) => assert_eq!(error, Error::QueueFull),
                        }
                    }
                });
                thread::sleep(Duration::from_micros(37 * (round % 30)));
                let end = if round % 2 == 0 { &a } else { &b };
                if round % 2 == 1 {
                    // The responder refuses what comes next.
                    b.mr.dereg(&lab.cx).unwrap();
                } else {
                    lab.move_to(end, QpState::Err);
                }
            });
            for _ in 0..5000 {
                if a.send.len() == 2000 {
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        let statuses = a.send.statuses();
        let ids: Vec<_> = statuses.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, (0..2000).collect::<Vec<_>>(), "round {round}");
        let failed = statuses.iter().position(|(_, status)| *status != Success).unwrap_or(2000);
        let behind = statuses.get(failed + 1..).unwrap_or(&[]);
        assert!(behind.iter().all(|(_, status)| *status == WrFlushErr), "round {round}");
    }
}

#[test]
fn two_threads_that_poll_one_cq_get_each_completion_once() {
    let lab = Lab::new();
    let tenant = lab.tenant(1, 1);
    let sink = CqSink::new(1);
    let init = CqInit { cqe: 1 << 16, vector: 0, memory: None, events: sink };
    let cq = tenant.context.create_cq(&lab.cx, init).unwrap();
    let init = QpInit {
        qp_type: QpType::Rc,
        send_cq: cq.clone(),
        recv_cq: cq.clone(),
        cap: Setup::default().cap,
        signal_all: true,
        privileged: false,
        poller: 0,
        recv_source: None,
        send_ready: None,
        srq: None,
        xrcd: None,
        block_self_mcast: false,
    };
    let qp = lab.eager(tenant.pd.create_qp(&lab.cx, init).unwrap());
    let own = End { qp, ..End::new(&lab, tenant, &Setup::default()) };
    lab.to_rts(&own, &own, 0, 0);
    let seen: Vec<AtomicUsize> = (0..20_000).map(|_| AtomicUsize::new(0)).collect();
    let count = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut wcs = Vec::new();
                while count.load(Ordering::SeqCst) < seen.len() {
                    wcs.clear();
                    let polled = cq.poll_cq(&mut wcs, 5).unwrap();
                    assert_eq!(polled, wcs.len());
                    wcs.iter().for_each(|wc| {
                        seen[wc.wr_id as usize].fetch_add(1, Ordering::SeqCst);
                    });
                    count.fetch_add(polled, Ordering::SeqCst);
                    if polled == 0 {
                        thread::yield_now();
                    }
                }
            });
        }
        for id in 0..seen.len() as u64 {
            own.qp.post_send(&own.wr(id, WrOpcode::RdmaWrite, &[own.sge(0, 8)], &own, 64)).unwrap();
        }
    });
    assert!(seen.iter().all(|n| n.load(Ordering::SeqCst) == 1));
}
