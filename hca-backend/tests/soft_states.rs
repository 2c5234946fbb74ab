// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Life of the soft HCA's objects: QP states, flush, drain, stop of a tenant, destroy, GIDs, limits.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::*;
use hca_backend::soft::Limits;
use rdma_midlayer::Error;
use rdma_midlayer::attr::{QpAttr, QpAttrMask, QpCap};
use rdma_midlayer::driver::*;
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

use WcStatus::{Success, WrFlushErr};

/// WRITEs that only the poller can carry out.
const LONG: u32 = 200_000;

#[test]
fn posting_is_refused_in_the_states_that_do_not_allow_it() {
    let lab = Lab::new();
    let a = End::new(&lab, lab.tenant(1, 1), &Setup::default());
    let send = || a.qp.post_send(&a.wr(1, WrOpcode::Send, &[], &a, 0));
    let recv = || a.qp.post_recv(&RecvWr { wr_id: 1, ticket: 0, sges: &[] });
    let bad = |result| matches!(result, Err(Error::BadState(_)));
    assert!(bad(send()) && bad(recv()));
    lab.modify(&a, QpState::Init, a.attr, INIT);
    assert!(bad(send()) && recv().is_ok());
    lab.to_rtr(&a, &a, 0);
    assert!(bad(send()) && recv().is_ok());
    lab.modify(&a, QpState::Rts, a.attr, RTS);
    assert!(send().is_ok() && recv().is_ok());
    a.qp.destroy(&lab.cx).unwrap();
    assert_eq!((send(), recv()), (Err(Error::Gone), Err(Error::Gone)));
}

#[test]
fn work_posted_in_err_is_flushed_at_once_and_in_order() {
    if FORCE_WIRE {
        // Packets go before the poller runs.
        return;
    }
    let lab = Lab::new();
    let (a, b) = lab.pair();
    for i in 0..5 {
        a.qp.post_send(&a.wr(i, WrOpcode::RdmaWrite, &[a.sge(0, LONG)], &b, 0)).unwrap();
        a.post_recv(10 + i, &[]);
    }
    lab.move_to(&a, QpState::Err);
    for i in 5..8 {
        // An empty WRITE: how ib_drain_sq drains.
        a.qp.post_send(&a.wr(i, WrOpcode::RdmaWrite, &[], &b, 0)).unwrap();
        a.post_recv(10 + i, &[]);
    }
    assert_eq!(a.send.statuses(), (0..8).map(|i| (i, WrFlushErr)).collect::<Vec<_>>());
    assert_eq!(a.recv.statuses(), (10..18).map(|i| (i, WrFlushErr)).collect::<Vec<_>>());
    lab.run();
    assert_eq!(a.send.len() + a.recv.len() + b.recv.len(), 0);
}

#[test]
fn reset_forgets_the_work_and_the_qp_can_be_connected_again() {
    if FORCE_WIRE {
        // Packets go before the poller runs.
        return;
    }
    let lab = Lab::new();
    let (a, b) = lab.pair();
    a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &[a.sge(0, LONG)], &b, 0)).unwrap();
    a.qp.post_send(&a.wr(2, WrOpcode::Send, &[], &b, 0)).unwrap();
    a.post_recv(3, &[]);
    for end in [&a, &b] {
        lab.move_to(end, QpState::Reset);
    }
    lab.run();
    assert_eq!(a.send.len() + a.recv.len(), 0);
    lab.connect(&a, &b);
    b.post_recv(4, &[]);
    a.qp.post_send(&a.wr(5, WrOpcode::Send, &[], &b, 0)).unwrap();
    assert_eq!((a.send.statuses(), b.recv.statuses()), (vec![(5, Success)], vec![(4, Success)]));
}

#[test]
fn sqd_finishes_the_message_that_has_begun_says_so_and_keeps_the_rest() {
    if FORCE_WIRE {
        // Packets go before the poller runs.
        return;
    }
    let lab = Lab::new();
    let (a, b) = lab.pair();
    for i in 0..3 {
        a.qp.post_send(&a.wr(i, WrOpcode::RdmaWrite, &[a.sge(0, LONG)], &b, 0)).unwrap();
    }
    lab.pollers[0].poll(lab.now(), 1);
    let attr = QpAttr { sq_draining: true, ..a.attr };
    lab.modify(&a, QpState::Sqd, attr, QpAttrMask::EN_SQD_ASYNC_NOTIFY);
    assert!(a.qp.query(&lab.cx).unwrap().sq_draining);
    assert_eq!(a.tenant.events.drain(), []);
    lab.run();
    assert_eq!(a.send.statuses(), [(0, Success)]);
    assert_eq!(a.tenant.events.drain(), [AsyncEvent::SqDrained(a.qp.qpn())]);
    assert!(!a.qp.query(&lab.cx).unwrap().sq_draining);
    a.qp.post_send(&a.wr(3, WrOpcode::RdmaWrite, &[], &b, 0)).unwrap();
    lab.run();
    assert_eq!(a.send.len(), 0);
    lab.modify(&a, QpState::Rts, a.attr, QpAttrMask::MIN_RNR_TIMER);
    lab.run();
    assert_eq!(a.send.statuses(), [(1, Success), (2, Success), (3, Success)]);
    // Drained already: at once.
    lab.modify(&a, QpState::Sqd, attr, QpAttrMask::EN_SQD_ASYNC_NOTIFY);
    assert_eq!(a.tenant.events.drain(), [AsyncEvent::SqDrained(a.qp.qpn())]);
}

#[test]
fn a_modify_that_saw_another_state_is_refused_and_changes_nothing() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    let stale = QpAttr { state: QpState::Rts, cur_state: QpState::Sqd, timeout: 3, ..a.attr };
    let mask = QpAttrMask::STATE | QpAttrMask::TIMEOUT;
    assert!(matches!(a.qp.modify(&lab.cx, &stale, mask), Err(Error::BadState(_))));
    assert_eq!(a.qp.query(&lab.cx).unwrap().timeout, 14);
    let good = QpAttr { cur_state: QpState::Rts, ..stale };
    for (bad, mask) in [
        (QpAttr { timeout: 32, ..good }, QpAttrMask::TIMEOUT),
        (QpAttr { retry_cnt: 8, ..good }, QpAttrMask::RETRY_CNT),
        (QpAttr { rnr_retry: 8, ..good }, QpAttrMask::RNR_RETRY),
        (QpAttr { min_rnr_timer: 32, ..good }, QpAttrMask::MIN_RNR_TIMER),
        (QpAttr { port: 2, ..good }, QpAttrMask::PORT),
        (QpAttr { pkey_index: 1, ..good }, QpAttrMask::PKEY_INDEX),
        (QpAttr { dest_qpn: Qpn(1 << 24), ..good }, QpAttrMask::DEST_QPN),
        (QpAttr { max_rd_atomic: 200, ..good }, QpAttrMask::MAX_QP_RD_ATOMIC),
        (QpAttr { max_dest_rd_atomic: 200, ..good }, QpAttrMask::MAX_DEST_RD_ATOMIC),
    ] {
        assert!(matches!(a.qp.modify(&lab.cx, &bad, mask), Err(Error::Invalid(_))), "{mask:?}");
    }
    let mut no_gid = good;
    no_gid.ah.sgid_index = 7;
    assert!(matches!(a.qp.modify(&lab.cx, &no_gid, QpAttrMask::AV), Err(Error::Invalid(_))));
    a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &[], &b, 0)).unwrap();
    assert_eq!(a.send.statuses(), [(1, Success)]);
}

#[test]
fn query_tells_what_modify_set_and_the_psns_as_they_are_now() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    let before = a.qp.query(&lab.cx).unwrap();
    assert_eq!((before.sq_psn.get(), before.rq_psn.get()), (100, 200));
    assert_eq!((before.dest_qpn, before.ah.dgid), (b.qp.qpn(), b.tenant.gid));
    assert_eq!((before.rnr_retry, before.timeout, before.retry_cnt), (7, 14, 7));
    // MTU 1024: 10 packets, and 1 for the empty message.
    a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &[a.sge(0, 9217)], &b, 0)).unwrap();
    a.qp.post_send(&a.wr(2, WrOpcode::RdmaWrite, &[], &b, 0)).unwrap();
    assert_eq!(a.qp.query(&lab.cx).unwrap().sq_psn.get(), 111);
    assert_eq!(b.qp.query(&lab.cx).unwrap().rq_psn.get(), 111);
}

#[test]
fn psns_wrap() {
    let lab = Lab::new();
    let a = End::new(&lab, lab.tenant(1, 1), &Setup::default());
    let b = End::new(&lab, lab.tenant(1, 2), &Setup::default());
    lab.to_rts(&a, &b, 0xff_fffe, 0);
    lab.to_rts(&b, &a, 0, 0xff_fffe);
    for i in 0..5 {
        a.qp.post_send(&a.wr(i, WrOpcode::RdmaWrite, &[a.sge(0, 1000)], &b, 0)).unwrap();
    }
    assert_eq!(a.send.len(), 5);
    assert_eq!(a.qp.query(&lab.cx).unwrap().sq_psn.get(), 3);
}

#[test]
fn a_full_send_queue_says_so_and_a_consumer_with_its_own_ring_is_told_of_room() {
    if FORCE_WIRE {
        // Packets go before the poller runs.
        return;
    }
    let lab = Lab::new();
    let bell = Arc::new(Bell::default());
    let ring = Setup { ready: Some(bell.clone()), ..Setup::default() };
    for (setup, room) in [(Setup::default(), 64), (ring, 16)] {
        let a = End::new(&lab, lab.tenant(room as u64, 1), &setup);
        let b = End::new(&lab, lab.tenant(room as u64, 2), &Setup::default());
        lab.connect(&a, &b);
        let post = |i| a.qp.post_send(&a.wr(i, WrOpcode::RdmaWrite, &[a.sge(0, LONG)], &b, 0));
        let taken = (0..1000).take_while(|i| post(*i).is_ok()).count();
        assert_eq!(taken, room);
        assert_eq!(post(1000), Err(Error::QueueFull));
        assert_eq!(bell.0.load(Ordering::SeqCst), 0);
        lab.run();
        assert_eq!(a.send.drain().len(), room);
        assert_eq!(bell.0.swap(0, Ordering::SeqCst), usize::from(room == 16));
        assert_eq!(post(1001), Ok(()));
        // In ERR too, so that the rest of the ring is flushed.
        while post(1002).is_ok() {}
        lab.move_to(&a, QpState::Err);
        assert_eq!(bell.0.swap(0, Ordering::SeqCst), usize::from(room == 16));
    }
}

#[test]
fn a_full_receive_queue_says_so() {
    let lab = Lab::new();
    let (a, _b) = lab.pair();
    for i in 0..64 {
        a.post_recv(i, &[]);
    }
    assert_eq!(a.qp.post_recv(&RecvWr { wr_id: 64, ticket: 0, sges: &[] }), Err(Error::QueueFull));
}

#[test]
fn a_stopped_tenant_is_left_alone_and_goes_on_where_it_was() {
    if FORCE_WIRE {
        // Packets go before the poller runs.
        return;
    }
    let lab = Lab::new();
    let ring = Arc::new(RecvRing::default());
    let setup = Setup { ring: Some(ring.clone()), ..Setup::default() };
    let (a, b) = lab.pair_with(&setup, &Setup::default());
    a.fill(0, &pattern(1, LONG as usize));
    a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &[a.sge(0, LONG)], &b, 0)).unwrap();
    a.tenant.context.suspend(&lab.cx).unwrap();
    a.qp.post_send(&a.wr(2, WrOpcode::RdmaWrite, &[a.sge(0, 8)], &b, 0)).unwrap();
    b.qp.post_send(&b.wr(3, WrOpcode::RdmaWrite, &[b.sge(0, 8)], &a, 1000)).unwrap();
    ring.post(4, &[]);
    a.qp.recv_posted();
    lab.run();
    lab.run_for(Duration::from_millis(50));
    assert_eq!((a.send.len(), a.recv.len(), b.send.len()), (0, 0, 0));
    assert_eq!(ring.wqes.lock().unwrap().len(), 1);
    a.tenant.context.resume(&lab.cx).unwrap();
    lab.run_for(Duration::from_millis(50));
    assert_eq!(a.send.statuses(), [(1, Success), (2, Success)]);
    assert_eq!(b.send.statuses(), [(3, Success)]);
    assert_eq!(b.bytes(0, LONG as usize), pattern(1, LONG as usize));
    // Also one that went to ERR while it was stopped.
    a.tenant.context.suspend(&lab.cx).unwrap();
    a.qp.post_send(&a.wr(5, WrOpcode::RdmaWrite, &[a.sge(0, 8)], &b, 0)).unwrap();
    lab.move_to(&a, QpState::Err);
    lab.run();
    assert_eq!((a.send.len(), a.recv.len()), (0, 0));
    a.tenant.context.resume(&lab.cx).unwrap();
    lab.run();
    assert_eq!(
        (a.send.statuses(), a.recv.statuses()),
        (vec![(5, WrFlushErr)], vec![(4, WrFlushErr)])
    );
}

#[test]
fn a_destroyed_qp_makes_no_completions_and_lets_go_of_the_consumer() {
    if FORCE_WIRE {
        // Packets go before the poller runs.
        return;
    }
    let lab = Lab::new();
    let (ring, bell) = (Arc::new(RecvRing::default()), Arc::new(Bell::default()));
    let setup = Setup { ring: Some(ring.clone()), ready: Some(bell.clone()), ..Setup::default() };
    let (a, b) = lab.pair_with(&setup, &Setup::default());
    ring.post(1, &[]);
    a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &[a.sge(0, LONG)], &b, 0)).unwrap();
    b.qp.post_send(&b.wr(1, WrOpcode::RdmaWrite, &[b.sge(0, LONG)], &a, 0)).unwrap();
    a.qp.destroy(&lab.cx).unwrap();
    lab.run();
    drop(setup);
    assert_eq!((a.send.len(), a.recv.len(), ring.wqes.lock().unwrap().len()), (0, 0, 1));
    assert_eq!((Arc::strong_count(&ring), Arc::strong_count(&bell)), (1, 1));
    a.cqs.iter().for_each(|cq| cq.destroy(&lab.cx).unwrap());
    assert_eq!(a.qp.destroy(&lab.cx), Err(Error::Gone));
    assert_eq!(a.cqs[0].destroy(&lab.cx), Err(Error::Gone));
    let End { cqs, send, .. } = a;
    drop(cqs);
    assert_eq!(Arc::strong_count(&send), 1);
}

#[test]
fn a_gid_belongs_to_one_tenant_of_a_network_and_networks_do_not_meet() {
    let lab = Lab::new();
    let (a, b) = (lab.tenant(1, 1), lab.tenant(1, 2));
    let elsewhere = lab.tenant(2, 1);
    let cx = &lab.cx;
    let taken = b.context.add_gid(cx, 1, &gid_entry(1));
    assert!(matches!(taken, Err(Error::Busy(_))));
    a.context.add_gid(cx, 5, &gid_entry(1)).unwrap();
    a.context.del_gid(cx, 0).unwrap();
    assert!(b.context.add_gid(cx, 1, &gid_entry(1)).is_err(), "still at another index");
    a.context.add_gid(cx, 5, &gid_entry(9)).unwrap();
    b.context.add_gid(cx, 1, &gid_entry(1)).unwrap();
    assert!(matches!(a.context.add_gid(cx, 256, &gid_entry(7)), Err(Error::Invalid(_))));
    let zero = rdma_midlayer::attr::GidEntry { gid: Gid::default(), ..gid_entry(1) };
    assert!(matches!(a.context.add_gid(cx, 0, &zero), Err(Error::Invalid(_))));
    a.context.del_gid(cx, 17).unwrap();
    b.context.dealloc(cx).unwrap();
    a.context.add_gid(cx, 0, &gid_entry(1)).unwrap();
    elsewhere.context.del_gid(cx, 0).unwrap();
    assert!(b.context.add_gid(cx, 1, &gid_entry(1)).is_err(), "another network's is another");
}

#[test]
fn numbers_of_one_tenant_do_not_depend_on_another() {
    let lab = Lab::new();
    let numbers = |tenant: Tenant| {
        let end = End::new(&lab, tenant, &Setup::default());
        (end.qp.qpn(), end.cqs[0].cqn())
    };
    assert_eq!(numbers(lab.tenant(1, 1)), numbers(lab.tenant(1, 2)));
}

#[test]
fn sizes_beyond_the_limits_are_refused() {
    let lab = Lab::with_limits(Limits {
        max_qp: 2,
        max_cq: 3,
        max_mr: 1,
        max_pd: 2,
        ..Limits::default()
    });
    let a = End::new(&lab, lab.tenant(1, 1), &Setup::default());
    let cx = &lab.cx;
    let init = |cap| QpInit {
        qp_type: QpType::Rc,
        send_cq: a.cqs[0].clone(),
        recv_cq: a.cqs[1].clone(),
        cap,
        signal_all: false,
        privileged: false,
        poller: 7,
        recv_source: None,
        send_ready: None,
        srq: None,
        xrcd: None,
        block_self_mcast: false,
    };
    let cap = Setup::default().cap;
    for bad in [
        QpCap { max_send_wr: 16_385, ..cap },
        QpCap { max_recv_wr: 16_385, ..cap },
        QpCap { max_send_sge: 31, ..cap },
        QpCap { max_recv_sge: 31, ..cap },
        QpCap { max_inline: 1025, ..cap },
    ] {
        assert!(a.tenant.pd.create_qp(cx, init(bad)).is_err(), "{bad:?}");
    }
    let other = lab.tenant(1, 2);
    assert!(other.pd.create_qp(cx, init(cap)).is_err(), "CQs of another tenant");
    let gsi = QpInit { qp_type: QpType::Gsi, ..init(cap) };
    assert!(matches!(a.tenant.pd.create_qp(cx, gsi), Err(Error::NotPermitted(_))));
    let xrc = QpInit { qp_type: QpType::XrcTgt, ..init(cap) };
    assert!(matches!(a.tenant.pd.create_qp(cx, xrc), Err(Error::Invalid(_))), "without a domain");
    let second = a.tenant.pd.create_qp(cx, init(cap)).unwrap();
    assert!(matches!(a.tenant.pd.create_qp(cx, init(cap)), Err(Error::Limit(_))));
    second.destroy(cx).unwrap();
    assert!(a.tenant.pd.create_qp(cx, init(cap)).is_ok());
    let memory = window(&a.ram, 0, 0, 8);
    assert!(matches!(a.tenant.pd.reg_mr(cx, memory, REMOTE_ALL), Err(Error::Limit(_))));
    assert!(a.tenant.context.alloc_pd(cx).is_ok());
    assert!(matches!(a.tenant.context.alloc_pd(cx), Err(Error::Limit(_))));
    let sink = CqSink::new(1);
    let cq = |cqe| CqInit { cqe, vector: 0, memory: None, events: sink.clone() };
    assert!(matches!(a.tenant.context.create_cq(cx, cq(0)), Err(Error::Invalid(_))));
    assert!(matches!(a.tenant.context.create_cq(cx, cq(u32::MAX)), Err(Error::Invalid(_))));
    assert!(a.tenant.context.create_cq(cx, cq(1)).is_ok());
    assert!(matches!(a.tenant.context.create_cq(cx, cq(1)), Err(Error::Limit(_))));
}

#[test]
fn the_attributes_of_device_and_port_are_the_limits() {
    let lab = Lab::new();
    let device = lab.hca.query_device(&lab.cx).unwrap();
    assert_eq!((device.max_qp, device.max_cq, device.max_mr), (65_536, 65_536, 1_000_000));
    assert_eq!((device.max_qp_wr, device.max_send_sge, device.max_inline), (16_384, 30, 1024));
    let port = lab.hca.query_port(&lab.cx, 1).unwrap();
    assert_eq!((port.state, port.max_msg_sz), (PortState::Active, 1 << 31));
    assert!(lab.hca.query_port(&lab.cx, 2).is_err());
}

#[test]
fn a_qp_with_deep_queues_does_not_starve_another_and_a_turn_is_bounded() {
    if FORCE_WIRE {
        // Of the poller; a link has turns of its own.
        return;
    }
    let lab = Lab::new();
    let (a, b) = lab.pair();
    let (c, d) = {
        let ends = [3, 4].map(|n| End::new(&lab, lab.tenant(1, n), &Setup::default()));
        lab.connect(&ends[0], &ends[1]);
        let [c, d] = ends;
        (c, d)
    };
    for i in 0..60 {
        a.qp.post_send(&a.wr(i, WrOpcode::RdmaWrite, &[a.sge(0, 1 << 20)], &b, 0)).unwrap();
    }
    c.qp.post_send(&c.wr(1, WrOpcode::RdmaWrite, &[c.sge(0, 100_000)], &d, 0)).unwrap();
    // Two pieces of its own, and as many of the other's.
    for _ in 0..4 {
        lab.pollers[0].poll(lab.now(), 1);
    }
    assert_eq!((c.send.statuses(), a.send.len()), (vec![(1, Success)], 0));
    // 4 MiB a turn at the most, though there are 60.
    lab.pollers[0].poll(lab.now(), 64);
    assert!(a.send.len() <= 5, "{} messages of 1 MiB in one turn", a.send.len());
    lab.run();
    assert_eq!(a.send.len(), 60);
}

#[test]
fn a_worker_that_may_sleep_is_woken_once_for_work_that_others_queue() {
    if FORCE_WIRE {
        // Of the poller; a link wakes for itself.
        return;
    }
    let lab = Lab::new();
    let (a, b) = lab.pair();
    let bell = Arc::new(Bell::default());
    lab.pollers[0].set_waker(bell.clone());
    let rings = || bell.0.swap(0, Ordering::SeqCst);
    lab.run();
    rings();
    for i in 0..3 {
        a.qp.post_send(&a.wr(i, WrOpcode::RdmaWrite, &[a.sge(0, LONG)], &b, 0)).unwrap();
    }
    assert_eq!(rings(), 1);
    lab.run();
    assert_eq!(rings(), 0);
    // A small WR on an idle QP is done in the call: nobody need wake.
    a.qp.post_send(&a.wr(9, WrOpcode::RdmaWrite, &[a.sge(0, 8)], &b, 0)).unwrap();
    assert_eq!((rings(), a.send.drain().len()), (0, 4));
    // A timer that others start wakes too, and is the deadline.
    a.qp.post_send(&a.wr(10, WrOpcode::Send, &[], &b, 0)).unwrap();
    assert_eq!(rings(), 1);
    let turn = lab.pollers[0].poll(lab.now(), 1);
    let deadline = turn.deadline.expect("the RNR timer runs");
    assert!(
        !turn.worked && deadline > lab.now() && deadline < lab.now() + Duration::from_millis(1)
    );
}
