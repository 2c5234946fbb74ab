// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The soft HCA at its limits: many objects, what they cost, and the longest message. One test at a
//! time: memory is counted for the process.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use rdma_midlayer::driver::*;
use rdma_midlayer::memory::{Run, UserMemory};
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

/// The system's allocator, counting bytes in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that `make` leaves in use.
fn cost<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let before = IN_USE.load(Ordering::Relaxed);
    let made = make();
    (made, IN_USE.load(Ordering::Relaxed).saturating_sub(before))
}

#[test]
fn the_limits_can_be_reached_and_idle_objects_cost_little() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    let qp = |_| {
        let init = QpInit {
            qp_type: QpType::Rc,
            send_cq: a.cqs[0].clone(),
            recv_cq: a.cqs[1].clone(),
            cap: rdma_midlayer::attr::QpCap { max_send_wr: 16_384, ..Setup::default().cap },
            signal_all: false,
            privileged: false,
            poller: 0,
            recv_source: None,
            send_ready: None,
            srq: None,
            xrcd: None,
            block_self_mcast: false,
        };
        a.tenant.pd.create_qp(&lab.cx, init)
    };
    // One is there already.
    let (qps, bytes) = cost(|| (1..65_536).map(qp).collect::<Result<Vec<_>, _>>().unwrap());
    assert!(qp(0).is_err());
    println!("{} bytes a QP", bytes / qps.len());
    assert!(bytes / qps.len() < 2300);

    let sink = CqSink::new(1);
    let cq = |_| {
        let events = sink.clone();
        let init = CqInit { cqe: 1 << 16, vector: 0, memory: Some(sink.clone()), events };
        a.tenant.context.create_cq(&lab.cx, init)
    };
    let (cqs, bytes) = cost(|| (2..65_536).map(cq).collect::<Result<Vec<_>, _>>().unwrap());
    assert!(cq(0).is_err());
    println!("{} bytes a CQ", bytes / cqs.len());
    assert!(bytes / cqs.len() < 512);

    let mr = |_| a.tenant.pd.reg_mr(&lab.cx, window(&a.ram, BASE, 0, 4096), REMOTE_ALL);
    let (mrs, bytes) = cost(|| (1..1_000_000).map(mr).collect::<Result<Vec<_>, _>>().unwrap());
    assert!(mr(0).is_err());
    println!("{} bytes an MR", bytes / mrs.len());
    assert!(bytes / mrs.len() < 512);

    // It still works, with the last of the keys.
    let sges = [Sge { lkey: mrs[mrs.len() - 1].lkey(), ..a.sge(0, 64) }];
    a.fill(0, &pattern(1, 64));
    a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &sges, &b, 0)).unwrap();
    assert_eq!(a.send.statuses(), [(1, WcStatus::Success)]);
    assert_eq!(b.bytes(0, 64), pattern(1, 64));

    longest_message(&lab, &a, &b);
    nothing_is_allocated(&lab);
}

/// What is carried out inside post_send allocates nothing; nor does what is queued where as much was
/// queued before.
fn nothing_is_allocated(lab: &Lab) {
    let ring = std::sync::Arc::new(RecvRing::default());
    let setup = Setup { ring: Some(ring.clone()), ..Setup::default() };
    let a = End::new(lab, lab.tenant(2, 1), &Setup::default());
    let b = End::new(lab, lab.tenant(2, 2), &setup);
    lab.connect(&a, &b);
    let ops = [
        (WrOpcode::RdmaWrite, 64),
        (WrOpcode::RdmaRead, 5000),
        (WrOpcode::Send, 65_536),
        (WrOpcode::AtomicFetchAndAdd, 8),
        (WrOpcode::RdmaWrite, 150_000),
    ];
    let sges = [b.sge(0, 1 << 20)];
    let round = |warm: bool| {
        for (i, (opcode, len)) in ops.into_iter().enumerate() {
            if opcode == WrOpcode::Send {
                ring.post(1, &sges);
            }
            let before = CALLS.load(Ordering::Relaxed);
            a.qp.post_send(&a.wr(i as u64, opcode, &[a.sge(0, len)], &b, 0)).unwrap();
            lab.run();
            // The test's own receive ring frees and never allocates here.
            assert_eq!((a.send.take().map(|wc| wc.status)), Some(WcStatus::Success));
            b.recv.take();
            let calls = CALLS.load(Ordering::Relaxed) - before;
            assert!(!warm || calls == 0, "{opcode:?} of {len} bytes");
        }
    };
    round(false);
    round(false);
    round(true);
}

/// 2 GiB of address space over little memory.
fn longest_message(lab: &Lab, a: &End, b: &End) {
    const PAGE: usize = 1 << 20;
    let long = |end: &End| {
        let run = |_| Run { mapping: end.ram.clone(), offset: 0, len: PAGE };
        let memory = UserMemory::new(BASE, 1 << 31, 0, Some(20), (0..2048).map(run)).unwrap();
        end.mr.replace_memory(&lab.cx, Some(memory)).unwrap();
    };
    long(a);
    long(b);
    a.fill(0, &pattern(7, PAGE));
    let sges = [a.sge(0, 1 << 31)];
    a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &sges, b, 0)).unwrap();
    lab.run();
    assert_eq!(a.send.statuses(), [(1, WcStatus::Success)]);
    assert!(b.bytes(0, PAGE) == pattern(7, PAGE));
    b.fill(0, &pattern(8, PAGE));
    a.qp.post_send(&a.wr(2, WrOpcode::RdmaRead, &sges, b, 0)).unwrap();
    lab.run();
    assert_eq!(a.send.take().unwrap().byte_len, 1 << 31);
    assert!(a.bytes(0, PAGE) == pattern(8, PAGE));
    // One byte more than there is.
    let sges = [a.sge(1, 1 << 31)];
    a.qp.post_send(&a.wr(3, WrOpcode::RdmaWrite, &sges, b, 0)).unwrap();
    lab.run();
    assert_eq!(a.send.statuses(), [(3, WcStatus::LocProtErr)]);
}
