// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is beyond RC with receive queues: UC, datagrams with address handles, SRQs.

use std::time::Duration;

use front_end::abi::control::{
    QP_FLAG_KERNEL, QP_STATE_ERR, QP_STATE_RTS, QP_TYPE_GSI, QP_TYPE_UC, QP_TYPE_UD,
};
use front_end::abi::event::{EVENT_QP_LAST_WQE_REACHED, EVENT_SRQ_LIMIT_REACHED};
use front_end::abi::ring::{
    CQE_GRH, CQE_WITH_IMM, WC_LOC_LEN_ERR, WC_LOC_QP_OP_ERR, WC_REM_OP_ERR, WC_SUCCESS,
    WR_RDMA_READ,
};
use front_end::{PostError, Qp, QpOptions, RcOptions, SendWr, Status, connect_rc};

use crate::harness::{
    Bystander, CAPABILITIES, LONG, Pair, PairOptions, SHORT, Side, TestDaemon, TestResult, check,
    fill, pattern, refused, soft_alone, wait_for,
};

const QKEY: u32 = 0x1111_2222;
const GRH: usize = 40;

fn ud() -> QpOptions {
    QpOptions { qp_type: QP_TYPE_UD, ..QpOptions::default() }
}

/// Two VMs, with a datagram QP in RTS each.
fn datagram_pair() -> TestResult<(TestDaemon, Side, Side, Qp, Qp)> {
    let daemon = TestDaemon::start(2)?;
    let a = Side::new(daemon.vm(0)?, 65_536, 64)?;
    let b = Side::new(daemon.vm(1)?, 65_536, 64)?;
    // The first handle brings the table, without which there is no such QP.
    refused(a.driver.create_qp(&a.pd, &a.send_cq, &a.recv_cq, &ud()), Status::BadState);
    for side in [&a, &b] {
        side.driver.create_ah(&side.pd, &nobody(side))?;
    }
    let (mut qa, mut qb) = (a.qp(&ud())?, b.qp(&ud())?);
    qa.to_rts_datagram(QKEY, 1)?;
    qb.to_rts_datagram(QKEY, 1)?;
    Ok((daemon, a, b, qa, qb))
}

fn nobody(side: &Side) -> front_end::QpEndpoint {
    let mut gid = side.vm.gid().gid;
    gid[12] = 99;
    front_end::QpEndpoint { gid, mac: [2, 0, 0, 0, 0, 9], qpn: 5 }
}

#[test]
fn all_kinds_are_capabilities() -> TestResult {
    if !soft_alone("capabilities are those of the host's HCA") {
        return Ok(());
    }
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    assert_eq!(vm.driver()?.init_answer().capabilities.get(), CAPABILITIES);
    Ok(())
}

#[test]
fn datagrams_arrive_behind_a_header_that_says_from_whom() -> TestResult {
    if !soft_alone("a receive WQE reaches the host's HCA later than it was posted") {
        return Ok(());
    }
    let (_daemon, mut a, mut b, mut qa, mut qb) = datagram_pair()?;
    let to_b = a.driver.create_ah(&a.pd, &qb.endpoint())?;
    let to_a = b.driver.create_ah(&b.pd, &qa.endpoint())?;
    for len in [0_usize, 1, 40, 63, 64, 65, 1000, 1024] {
        fill(&a.buffer, 0, len, len as u8);
        qb.post_recv(7, &[b.mr.sge(4096, 8), b.mr.sge(4104, 5000)])?;
        let sges = [a.mr.sge(0, len as u32)];
        let dest = (to_b, qb.number(), QKEY);
        qa.post_send(&SendWr::datagram(1, &sges, dest).with_imm(len as u32).signaled())?;
        assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS, "{len} bytes");
        let wc = b.recv_cq.wait_one(LONG)?;
        assert_eq!((wc.wr_id, wc.status, wc.src_qpn), (7, WC_SUCCESS, qa.number()));
        assert_eq!(wc.byte_len as usize, GRH + len);
        assert_eq!(wc.flags & (CQE_GRH | CQE_WITH_IMM), CQE_GRH | CQE_WITH_IMM);
        assert_eq!(wc.imm, len as u32);
        check(&b.buffer, 4096 + GRH, len, len as u8);
        // And an answer to where it came from.
        qa.post_recv(8, &[a.mr.sge(8192, 2048)])?;
        let back = (to_a, wc.src_qpn, QKEY);
        qb.post_send(&SendWr::datagram(2, &[b.mr.sge(0, 8)], back).signaled())?;
        assert_eq!(b.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        assert_eq!(a.recv_cq.wait_one(LONG)?.byte_len as usize, GRH + 8);
    }
    Ok(())
}

#[test]
fn datagrams_that_cannot_be_delivered_vanish() -> TestResult {
    let (_daemon, mut a, mut b, mut qa, mut qb) = datagram_pair()?;
    let to_b = a.driver.create_ah(&a.pd, &qb.endpoint())?;
    let nowhere = a.driver.create_ah(&a.pd, &nobody(&a))?;
    let sges = [a.mr.sge(0, 100)];
    // Nobody there, nobody of that number, the wrong key, no receive WQE: across a wire nobody knows when
    // the last one has found none.
    let all = [
        (nowhere, qb.number(), QKEY),
        (to_b, 0x00ab_cdef, QKEY),
        (to_b, qb.number(), QKEY + 1),
        (to_b, qb.number(), QKEY),
    ];
    for dest in all.into_iter().take(if crate::APART { 3 } else { 4 }) {
        qa.post_send(&SendWr::datagram(1, &sges, dest).signaled())?;
        assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS, "{dest:?}");
    }
    qb.post_recv(1, &[b.mr.sge(0, 2048)])?;
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(b.recv_cq.poll_one(), None);
    // The QPs are as good as before.
    qa.post_send(&SendWr::datagram(2, &sges, (to_b, qb.number(), QKEY)).signaled())?;
    assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    assert_eq!(b.recv_cq.wait_one(LONG)?.status, WC_SUCCESS);
    assert_eq!(b.driver.query_qp(qb.number())?.qp_state, QP_STATE_RTS);
    Ok(())
}

#[test]
fn bad_datagram_work_requests_fail_where_they_are_posted() -> TestResult {
    if !soft_alone("how a datagram fails is the host's HCA's") {
        return Ok(());
    }
    let (daemon, mut a, b, qa, qb) = datagram_pair()?;
    drop(qa);
    let _ = &daemon;
    let to_b = a.driver.create_ah(&a.pd, &qb.endpoint())?;
    let foreign = a.driver.create_ah(&a.driver.alloc_pd()?, &qb.endpoint())?;
    let sges = [a.mr.sge(0, 100)];
    let long = [a.mr.sge(0, 4097)];
    let good = SendWr::datagram(1, &sges, (to_b, qb.number(), QKEY));
    for (what, status, wr) in [
        ("a handle of another PD", WC_LOC_QP_OP_ERR, SendWr::datagram(1, &sges, (foreign, 1, 1))),
        ("an empty handle", WC_LOC_QP_OP_ERR, SendWr::datagram(1, &sges, (1000, 1, 1))),
        (
            "a handle beyond the table",
            WC_LOC_QP_OP_ERR,
            SendWr::datagram(1, &sges, (u32::MAX, 1, 1)),
        ),
        ("a READ", WC_LOC_QP_OP_ERR, SendWr { opcode: WR_RDMA_READ, ..good }),
        ("a long one", WC_LOC_LEN_ERR, SendWr::datagram(1, &long, (to_b, qb.number(), QKEY))),
    ] {
        let mut qp = a.qp(&ud())?;
        qp.to_rts_datagram(QKEY, 1)?;
        qp.post_send(&wr)?;
        assert_eq!(a.send_cq.wait_one(LONG)?.status, status, "{what}");
        a.driver.destroy_qp(&qp)?;
    }
    drop(b);
    Ok(())
}

#[test]
fn qp1_is_for_kernels() -> TestResult {
    if !soft_alone("there is no QP1 through verbs") {
        return Ok(());
    }
    let daemon = TestDaemon::start(1)?;
    let side = Side::new(daemon.vm(0)?, 4096, 64)?;
    side.driver.create_ah(&side.pd, &nobody(&side))?;
    let options = QpOptions { qp_type: QP_TYPE_GSI, ..QpOptions::default() };
    let answer = side.driver.create_qp(&side.pd, &side.send_cq, &side.recv_cq, &options);
    refused(answer.map(|qp| qp.number()), Status::NotPermitted);
    side.qp(&QpOptions { flags: QP_FLAG_KERNEL, ..options })?;
    Ok(())
}

#[test]
fn unreliable_connections_send_and_write_and_do_not_wait() -> TestResult {
    if !soft_alone("a receive WQE reaches the host's HCA later than it was posted") {
        return Ok(());
    }
    let options = PairOptions {
        qp: QpOptions { qp_type: QP_TYPE_UC, ..QpOptions::default() },
        ..PairOptions::default()
    };
    let (_daemon, mut pair) = Pair::start(&options)?;
    for _ in 0..20 {
        pair.ping()?;
    }
    let Pair { a, b, qa, qb } = &mut pair;
    for (seed, len) in [(9, 0), (10, 1), (11, 4096), (12, 100_000)] {
        fill(&a.buffer, 0, len, seed);
        b.buffer.fill(!pattern(seed, len.max(1) - 1));
        let sges = [a.mr.sge(0, len as u32)];
        qa.post_send(&SendWr::write(1, &sges, b.mr.remote(0)).signaled())?;
        assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        wait_for(&b.buffer, 0, len, seed);
    }
    // Without a receive WQE a message is lost, and nobody is the worse for it. When what follows it has
    // come, it has too.
    qa.post_send(&SendWr::send(2, &[a.mr.sge(0, 64)]).signaled())?;
    assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    fill(&a.buffer, 0, 64, 13);
    b.buffer.fill(!pattern(13, 63));
    qa.post_send(&SendWr::write(1, &[a.mr.sge(0, 64)], b.mr.remote(0)).signaled())?;
    assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    wait_for(&b.buffer, 0, 64, 13);
    assert_eq!(qb.state(), QP_STATE_RTS);
    pair.ping()?;
    pair.qa.post_send(&SendWr::read(3, &[pair.a.mr.sge(0, 8)], pair.b.mr.remote(0)))?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_LOC_QP_OP_ERR, "a READ");
    Ok(())
}

#[test]
fn an_srq_serves_many_qps_and_wraps_round() -> TestResult {
    if !soft_alone("WQEs of an SRQ are taken ahead") {
        return Ok(());
    }
    const QPS: usize = 20;
    let daemon = TestDaemon::start(2)?;
    let mut a = Side::new(daemon.vm(0)?, 65_536, 1024)?;
    let mut b = Side::new(daemon.vm(1)?, 65_536, 1024)?;
    let mut srq = b.driver.create_srq(&b.pd, 16, 2, 0)?;
    let attr = b.driver.query_srq(srq.number())?;
    assert_eq!((attr.entries.get(), attr.max_sge.get(), attr.limit.get()), (16, 2, 0));
    let shared = QpOptions { srqn: Some(srq.number()), ..QpOptions::default() };
    let mut qps = Vec::new();
    for _ in 0..QPS {
        let (mut qa, mut qb) = (a.qp(&QpOptions::default())?, b.qp(&shared)?);
        connect_rc(&mut qa, &mut qb, &RcOptions::default())?;
        qps.push((qa, qb));
    }
    refused(b.driver.destroy_srq(&srq), Status::Busy);
    for n in 0..16 {
        srq.post_recv(n, &[b.mr.sge(1024 * n, 512), b.mr.sge(1024 * n + 512, 512)])?;
    }
    assert_eq!(srq.post_recv(0, &[]), Err(PostError::Full));
    for round in 0..300_u64 {
        let (qa, qb) = &mut qps[(round * 7) as usize % QPS];
        let len = 1 + (round as usize * 37) % 1024;
        fill(&a.buffer, 0, len, round as u8);
        qa.post_send(&SendWr::send(round, &[a.mr.sge(0, len as u32)]).signaled())?;
        assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        let wc = b.recv_cq.wait_one(LONG)?;
        assert_eq!((wc.wr_id, wc.status), (round % 16, WC_SUCCESS), "in the SRQ's order");
        assert_eq!((wc.qpn, wc.byte_len as usize), (qb.number(), len));
        check(&b.buffer, 1024 * wc.wr_id as usize, len, round as u8);
        let at = 1024 * wc.wr_id;
        srq.post_recv(wc.wr_id, &[b.mr.sge(at, 512), b.mr.sge(at + 512, 512)])?;
        assert_eq!(srq.taken(), round as u32 + 1);
    }
    for (_, qb) in &qps {
        b.driver.destroy_qp(qb)?;
    }
    b.driver.destroy_srq(&srq)?;
    refused(b.driver.query_srq(srq.number()), Status::NoObject);
    Ok(())
}

#[test]
fn an_empty_srq_makes_peers_wait_and_its_limit_is_an_event() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let mut a = Side::new(daemon.vm(0)?, 65_536, 64)?;
    let mut b = Side::new(daemon.vm(1)?, 65_536, 64)?;
    let mut srq = b.driver.create_srq(&b.pd, 8, 1, 0)?;
    let shared = QpOptions { srqn: Some(srq.number()), ..QpOptions::default() };
    let (mut qa, mut qb) = (a.qp(&QpOptions::default())?, b.qp(&shared)?);
    connect_rc(&mut qa, &mut qb, &RcOptions::default())?;
    for n in 0..20 {
        qa.post_send(&SendWr::send(n, &[]).signaled())?;
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(a.send_cq.poll_one(), None);
        srq.post_recv(n, &[])?;
        assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        assert_eq!(b.recv_cq.wait_one(LONG)?.wr_id, n);
    }
    for n in 0..6 {
        srq.post_recv(n, &[])?;
    }
    refused(b.driver.modify_srq(srq.number(), 9), Status::Invalid);
    b.driver.modify_srq(srq.number(), 4)?;
    assert!(b.driver.next_async_event(SHORT)?.is_none());
    for n in 0..3 {
        qa.post_send(&SendWr::send(n, &[]).signaled())?;
        a.send_cq.wait_one(LONG)?;
    }
    let event = b.driver.next_async_event(LONG)?.ok_or("no event of the SRQ")?;
    assert_eq!((event.event.get(), event.number.get()), (EVENT_SRQ_LIMIT_REACHED, srq.number()));
    assert_eq!(b.driver.query_srq(srq.number())?.limit.get(), 0, "once");
    // A QP in ERR takes no more of them; they stay for others.
    b.recv_cq.poll_for(3, LONG)?;
    qb.modify_state(QP_STATE_ERR)?;
    let event = b.driver.next_async_event(LONG)?.ok_or("no event of the QP")?;
    assert_eq!((event.event.get(), event.number.get()), (EVENT_QP_LAST_WQE_REACHED, qb.number()));
    assert_eq!(b.recv_cq.poll_one(), None);
    let (mut qa, mut qb) = (a.qp(&QpOptions::default())?, b.qp(&shared)?);
    connect_rc(&mut qa, &mut qb, &RcOptions::default())?;
    qa.post_send(&SendWr::send(1, &[]).signaled())?;
    assert_eq!(b.recv_cq.wait_one(LONG)?.wr_id, 3, "the next of those that were left");
    // Garbage behind the two that are left is an error of the QP that meets it.
    for _ in 0..4 {
        srq.post_recv_raw(&[0xff; 64]);
    }
    for _ in 0..3 {
        qa.post_send(&SendWr::send(2, &[]).signaled())?;
    }
    let statuses: Vec<_> = a.send_cq.poll_for(4, LONG)?.iter().map(|wc| wc.status).collect();
    assert_eq!(statuses, [WC_SUCCESS, WC_SUCCESS, WC_SUCCESS, WC_REM_OP_ERR]);
    bystander.check()
}
