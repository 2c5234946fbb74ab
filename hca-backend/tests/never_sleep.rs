// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The soft HCA's never-sleep methods make no system call that may block, under contention too. They
//! are called through the midlayer, as consumers call them, on a thread where such a call is trapped.

#[path = "../../midlayer/tests/common/mod.rs"]
mod midlayer;
#[path = "../../midlayer/tests/common/trap.rs"]
mod trap;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Instant;

use hca_backend::soft::{Config, Limits, SoftHca};
use midlayer::{CAP, Stage, memory, send};
use rdma_midlayer::attr::{AhAttr, GidEntry, QpAttr, QpAttrMask as M};
use rdma_midlayer::driver::{FmrAttr, MalformedWqe, Notify, Waker};
use rdma_midlayer::types::{Access, Gid, MwType, QpState, QpType, Qpn, WcStatus, WrOpcode};
use rdma_midlayer::work::{MwBind, RecvWr, SendData, SendWr, Sge, WorkCompletion};
use rdma_midlayer::{ContextSpec, CqSpec, MaySleep, Qp, QpSpec, RunQueue, SrqSpec};
use trap::trapped;

const GID: Gid = Gid([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);

struct Nobody;

impl Waker for Nobody {
    fn wake(&self) {}
}

fn connect(cx: &MaySleep, qp: &Qp, peer: &Qp) {
    let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ;
    let attr = |state| QpAttr {
        state,
        access,
        dest_qpn: peer.qpn(),
        ah: AhAttr { dgid: GID, port: 1, ..AhAttr::default() },
        max_rd_atomic: 1,
        max_dest_rd_atomic: 1,
        timeout: 14,
        retry_cnt: 7,
        rnr_retry: 7,
        ..QpAttr::default()
    };
    let path = M::AV | M::PATH_MTU | M::DEST_QPN | M::RQ_PSN;
    let retry = M::TIMEOUT | M::RETRY_CNT | M::RNR_RETRY | M::MAX_QP_RD_ATOMIC;
    let steps = [
        (QpState::Init, M::PKEY_INDEX | M::PORT | M::ACCESS_FLAGS),
        (QpState::Rtr, path | M::MAX_DEST_RD_ATOMIC | M::MIN_RNR_TIMER),
        (QpState::Rts, M::SQ_PSN | retry),
    ];
    for (state, mask) in steps {
        qp.modify(cx, &attr(state), mask | M::STATE).unwrap();
    }
}

/// Runs `once` on the trapped thread, which alone polls, and on two others, `most` times each at the most.
/// Answers the calls that were trapped.
fn contended(most: usize, once: impl Fn() + Sync, poll: impl Fn() + Sync) -> Vec<i64> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..most).take_while(|_| !stop.load(SeqCst)).for_each(|_| once()));
        }
        let work = || {
            once();
            poll();
        };
        let calls = trapped(work, |()| (0..3000).for_each(|_| work()));
        stop.store(true, SeqCst);
        calls
    })
}

#[test]
fn the_data_path_of_the_soft_hca_makes_no_call_that_may_block() {
    let cx = MaySleep::claim().unwrap();
    let limits = Limits::default();
    let hca = Arc::new(SoftHca::new(Config {
        name: "soft0".into(),
        pollers: 1,
        limits,
        ..Config::default()
    }));
    let stage = Stage::new(&cx, hca);
    let pollers = stage.device.pollers();
    let queue = RunQueue::new(Arc::new(Nobody));
    let spec = ContextSpec { run_queues: vec![queue.clone()], ..ContextSpec::default() };
    let context = stage.device.alloc_context(&cx, spec).unwrap();
    context.add_gid(&cx, 0, &GidEntry { gid: GID, mac: [2; 6], vlan: None }).unwrap();
    let pd = context.alloc_pd(&cx).unwrap();
    let heard = Arc::new(AtomicU64::new(0));
    let handler = {
        let heard = heard.clone();
        move |_| {
            heard.fetch_add(1, SeqCst);
        }
    };
    let spec = CqSpec { cqe: 8192, handler: Some(Box::new(handler)), ..CqSpec::default() };
    let cq = context.create_cq(&cx, spec).unwrap();
    let [a, b] = [0, 1].map(|_| pd.create_qp(&cx, QpSpec::new(QpType::Rc, &cq, CAP)).unwrap());
    connect(&cx, &a, &b);
    connect(&cx, &b, &a);
    let all = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ;
    let mr = pd.reg_mr(&cx, memory(0x1000, 1 << 16), all).unwrap();
    let sge = [Sge { addr: 0x1000, length: 4096, lkey: mr.lkey() }];
    let write = SendWr {
        opcode: WrOpcode::RdmaWrite,
        remote_addr: 0x8000,
        rkey: mr.rkey(),
        ..send(2, SendData::Sges(&sge))
    };
    let read = SendWr { opcode: WrOpcode::RdmaRead, ..write };
    let done = AtomicU64::new(0);
    let once = || {
        let mut wcs = Vec::with_capacity(32);
        // Full queues are part of the game: all three threads post to the same two QPs.
        let _ = b.post_recv(&RecvWr { wr_id: 1, ticket: 0, sges: &sge });
        let _ = a.post_send(&send(1, SendData::Inline(b"hello")));
        let _ = a.post_send(&write);
        let _ = a.post_send_list(&[write; 3]);
        let _ = b.post_send(&read);
        let _ = b.recv_posted();
        let _ = cq.req_notify_cq(Notify::Next);
        while cq.poll_cq(&mut wcs, 32).unwrap() == 32 {}
        done.fetch_add(wcs.len() as u64, SeqCst);
    };
    let calls = contended(usize::MAX, once, || {
        pollers.iter().for_each(|poller| {
            poller.poll(Instant::now(), 8);
        });
        queue.drain(8);
    });
    assert_eq!(calls, []);
    assert!(done.load(SeqCst) > 1000, "only {} completions", done.load(SeqCst));
    assert!(heard.load(SeqCst) > 0);

    // The way of a WR that makes no sense, into ERR and the flush, doesn't sleep either.
    let malformed = MalformedWqe { wr_id: 9, ticket: 0 };
    let calls = trapped(
        || drop(stage.device.pollers()),
        |()| {
            a.post_malformed_send(malformed).unwrap();
            let _ = a.post_send(&write);
            let _ = a.post_recv(&RecvWr { wr_id: 1, ticket: 0, sges: &sge });
            pollers.iter().for_each(|poller| {
                poller.poll(Instant::now(), 8);
            });
        },
    );
    assert_eq!(calls, []);

    a.destroy(&cx).unwrap();
    b.destroy(&cx).unwrap();
    mr.dereg(&cx).unwrap();
    cq.destroy(&cx).unwrap();
    pd.dealloc(&cx).unwrap();
    context.dealloc(&cx).unwrap();
    stage.end(&cx);
}

#[test]
fn address_handles_datagrams_and_shared_queues_make_no_call_that_may_block() {
    let cx = MaySleep::claim().unwrap();
    let limits = Limits::default();
    let hca = Arc::new(SoftHca::new(Config {
        name: "soft0".into(),
        pollers: 1,
        limits,
        ..Config::default()
    }));
    let stage = Stage::new(&cx, hca);
    let pollers = stage.device.pollers();
    let context = stage.device.alloc_context(&cx, ContextSpec::default()).unwrap();
    context.add_gid(&cx, 0, &GidEntry { gid: GID, mac: [2; 6], vlan: None }).unwrap();
    let pd = context.alloc_pd(&cx).unwrap();
    let cq = context.create_cq(&cx, CqSpec { cqe: 8192, ..CqSpec::default() }).unwrap();
    let spec = SrqSpec { max_wr: 64, max_sge: 1, ..SrqSpec::default() };
    let srq = pd.create_srq(&cx, spec).unwrap();
    let [a, b] = [0, 1].map(|_| {
        let spec = QpSpec { srq: Some(srq.clone()), ..QpSpec::new(QpType::Ud, &cq, CAP) };
        let qp = pd.create_qp(&cx, spec).unwrap();
        let attr = |state| QpAttr { state, qkey: 7, ..QpAttr::default() };
        let init = M::STATE | M::PKEY_INDEX | M::PORT | M::QKEY;
        qp.modify(&cx, &attr(QpState::Init), init).unwrap();
        qp.modify(&cx, &attr(QpState::Rtr), M::STATE).unwrap();
        qp.modify(&cx, &attr(QpState::Rts), M::STATE | M::SQ_PSN).unwrap();
        qp
    });
    let mr = pd.reg_mr(&cx, memory(0x1000, 4096), Access::LOCAL_WRITE).unwrap();
    let sge = [Sge { addr: 0x1000, length: 1024, lkey: mr.lkey() }];
    let path = AhAttr { dgid: GID, port: 1, ..AhAttr::default() };
    let shared = pd.create_ah(&path).unwrap();
    let group = Gid([0xff; 16]);
    b.attach_mcast(&cx, &group, 0).unwrap();
    let to_group = pd.create_ah(&AhAttr { dgid: group, ..path }).unwrap();
    let received = AtomicU64::new(0);
    let once = || {
        let mut wcs = Vec::with_capacity(32);
        let ah = pd.create_ah(&path).unwrap();
        ah.modify(&path).unwrap();
        shared.modify(&path).unwrap();
        assert_eq!(shared.query().unwrap().dgid, GID);
        let _ = srq.post_recv(&RecvWr { wr_id: 1, ticket: 0, sges: &sge });
        let _ = srq.recv_posted();
        for ah in [&ah, &shared] {
            let ud = Some(ah.dest(b.qpn(), 7).unwrap());
            let _ = a.post_send(&SendWr { ud, ..send(2, SendData::Inline(b"hello")) });
        }
        let ud = Some(to_group.dest(Qpn::MULTICAST, 7).unwrap());
        let _ = a.post_send(&SendWr { ud, ..send(2, SendData::Inline(b"hello, all")) });
        ah.destroy().unwrap();
        while cq.poll_cq(&mut wcs, 32).unwrap() == 32 {}
        let came = |wc: &&WorkCompletion| wc.opcode.is_recv() && wc.status == WcStatus::Success;
        received.fetch_add(wcs.iter().filter(came).count() as u64, SeqCst);
    };
    let calls = contended(usize::MAX, once, || {
        pollers.iter().for_each(|poller| {
            poller.poll(Instant::now(), 8);
        });
    });
    assert_eq!(calls, []);
    assert!(received.load(SeqCst) > 100, "only {} datagrams", received.load(SeqCst));
    drop((shared, to_group));
    b.detach_mcast(&cx, &group, 0).unwrap();
    a.destroy(&cx).unwrap();
    b.destroy(&cx).unwrap();
    srq.destroy(&cx).unwrap();
    mr.dereg(&cx).unwrap();
    cq.destroy(&cx).unwrap();
    pd.dealloc(&cx).unwrap();
    context.dealloc(&cx).unwrap();
    stage.end(&cx);
}

#[test]
fn windows_and_fast_memory_regions_make_no_call_that_may_block() {
    const FMRS: usize = 128;
    const MAPS: u32 = 250;
    let cx = MaySleep::claim().unwrap();
    let hca = Arc::new(SoftHca::new(Config {
        name: "soft0".into(),
        pollers: 1,
        limits: Limits::default(),
        ..Config::default()
    }));
    let (stage, context, pd) = Stage::open(&cx, hca);
    let pollers = stage.device.pollers();
    context.add_gid(&cx, 0, &GidEntry { gid: GID, mac: [2; 6], vlan: None }).unwrap();
    let cq = context.create_cq(&cx, CqSpec { cqe: 4096, ..CqSpec::default() }).unwrap();
    let [a, b] = [0, 1].map(|_| pd.create_qp(&cx, QpSpec::new(QpType::Rc, &cq, CAP)).unwrap());
    connect(&cx, &a, &b);
    connect(&cx, &b, &a);
    let rights = Access::LOCAL_WRITE | Access::MW_BIND;
    let mr = pd.reg_mr(&cx, memory(0x1000, 4096), rights).unwrap();
    let mw = pd.alloc_mw(&cx, MwType::Type1).unwrap();
    let attr = FmrAttr { max_pages: 4, max_maps: MAPS, page_shift: 12 };
    let fmrs: Vec<_> =
        (0..FMRS).map(|_| pd.alloc_fmr(&cx, attr, Access::REMOTE_READ).unwrap()).collect();
    let pages = Arc::new(memory(0, 4096));
    let (bound, mapped) = (AtomicU64::new(0), AtomicU64::new(0));
    let once = || {
        let mut wcs = Vec::with_capacity(32);
        let bind = MwBind {
            rkey: mw.rkey(),
            lkey: mr.lkey(),
            addr: 0x1000,
            length: 64,
            access: Access::REMOTE_READ,
        };
        // The queue may be full of the others' requests.
        let _ = mw.bind_mw(&a, 1, 0, &bind);
        let n = mapped.fetch_add(1, SeqCst);
        fmrs[n as usize % FMRS].map_phys_fmr(pages.clone()).unwrap();
        while cq.poll_cq(&mut wcs, 32).unwrap() == 32 {}
        let done = wcs.iter().inspect(|wc| assert_eq!(wc.status, WcStatus::Success));
        bound.fetch_add(done.count() as u64, SeqCst);
    };
    // No more than the FMRs can be mapped.
    let calls = contended(10_000, once, || {
        pollers.iter().for_each(|poller| {
            poller.poll(Instant::now(), 8);
        });
    });
    assert_eq!(calls, []);
    assert!(bound.load(SeqCst) > 0);
    fmrs.iter().for_each(|fmr| fmr.dealloc(&cx).unwrap());
    a.destroy(&cx).unwrap();
    b.destroy(&cx).unwrap();
    mw.dealloc(&cx).unwrap();
    mr.dereg(&cx).unwrap();
    cq.destroy(&cx).unwrap();
    stage.close(&cx, context, pd);
}
