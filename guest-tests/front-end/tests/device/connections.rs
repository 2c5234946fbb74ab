// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a connection does when the peer is slow, or not there: RNR, retries, flushes; and many
//! connections at once.

use std::time::{Duration, Instant};

use front_end::abi::control::{QP_STATE_ERR, QP_STATE_RESET, QP_STATE_RTS, QP_STATE_SQD};
use front_end::abi::ring::{WC_RETRY_EXC_ERR, WC_RNR_RETRY_EXC_ERR, WC_SUCCESS, WC_WR_FLUSH_ERR};
use front_end::{PostError, QpOptions, RcOptions, SendWr, VmConfig, connect_rc};

use crate::harness::{
    LONG, Pair, PairOptions, SHORT, Side, TestDaemon, TestResult, check, fill, flushed, soft_alone,
};

/// Options of a connection that gives up within milliseconds.
fn impatient() -> RcOptions {
    RcOptions { timeout: 8, retry_cnt: 2, rnr_retry: 2, min_rnr_timer: 1, ..RcOptions::default() }
}

#[test]
fn a_message_waits_for_a_late_receive_wqe() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let Pair { a, b, qa, qb } = &mut pair;
    for round in 0..10_u8 {
        fill(&a.buffer, 0, 9000, round);
        qa.post_send(&SendWr::send(1, &[a.mr.sge(0, 9000)]).signaled())?;
        qa.post_send(&SendWr::write(2, &[a.mr.sge(0, 100)], b.mr.remote(50_000)).signaled())?;
        std::thread::sleep(Duration::from_millis(3 * u64::from(round)));
        assert_eq!(a.send_cq.poll_one(), None, "nothing overtakes the SEND");
        qb.post_recv(3, &[b.mr.sge(0, 9000)])?;
        assert_eq!(b.recv_cq.wait_one(LONG)?.status, WC_SUCCESS);
        check(&b.buffer, 0, 9000, round);
        for wr_id in [1, 2] {
            let wc = a.send_cq.wait_one(LONG)?;
            assert_eq!((wc.wr_id, wc.status), (wr_id, WC_SUCCESS));
        }
    }
    Ok(())
}

#[test]
fn rnr_retries_come_to_an_end() -> TestResult {
    if !soft_alone("how often RNR is retried is the host's HCA's") {
        return Ok(());
    }
    let (_daemon, mut pair) =
        Pair::start(&PairOptions { rc: impatient(), ..PairOptions::default() })?;
    let Pair { a, qa, qb, b } = &mut pair;
    let sges = [a.mr.sge(0, 64)];
    qa.post_sends(&[SendWr::send(1, &sges), SendWr::send(2, &sges), SendWr::send(3, &sges)])?;
    let wcs = a.send_cq.poll_for(3, LONG)?;
    assert_eq!((wcs[0].wr_id, wcs[0].status), (1, WC_RNR_RETRY_EXC_ERR));
    flushed(&wcs[1..], &[2, 3]);
    assert_eq!(a.driver.query_qp(qa.number())?.qp_state, QP_STATE_ERR);
    assert_eq!(b.driver.query_qp(qb.number())?.qp_state, QP_STATE_RTS, "no fault of the peer's");
    Ok(())
}

#[test]
fn a_missing_peer_is_retried_and_given_up() -> TestResult {
    if !soft_alone("how long it takes is the host's HCA's") {
        return Ok(());
    }
    let daemon = TestDaemon::start(2)?;
    let mut a = Side::new(daemon.vm(0)?, 4096, 64)?;
    let b = Side::new(daemon.vm(1)?, 4096, 64)?;
    let silent = b.qp(&QpOptions::default())?;
    let mut init_only = b.qp(&QpOptions::default())?;
    init_only.to_init(&impatient())?;
    let mut failed = b.qp(&QpOptions::default())?;
    failed.to_init(&impatient())?;
    failed.modify_state(QP_STATE_ERR)?;
    let mut elsewhere = b.qp(&QpOptions::default())?;
    let mut third = b.qp(&QpOptions::default())?;
    connect_rc(&mut elsewhere, &mut third, &impatient())?;
    let mut nobody = silent.endpoint();
    nobody.qpn = 0x00ff_fff0;
    let mut nowhere = silent.endpoint();
    nowhere.gid[15] ^= 0x55;
    nowhere.gid[14] ^= 0x55;
    for (what, peer) in [
        ("no such QPN", nobody),
        ("no such GID", nowhere),
        ("a QP in RESET", silent.endpoint()),
        ("a QP in INIT", init_only.endpoint()),
        ("a QP in ERR", failed.endpoint()),
        ("a QP that is connected to another", elsewhere.endpoint()),
    ] {
        let mut qp = a.qp(&QpOptions::default())?;
        qp.connect(&peer, &impatient())?;
        let began = Instant::now();
        qp.post_send(&SendWr::write(1, &[a.mr.sge(0, 8)], b.mr.remote(0)))?;
        let wc = a.send_cq.wait_one(LONG)?;
        assert_eq!((wc.wr_id, wc.status), (1, WC_RETRY_EXC_ERR), "{what}");
        // 4.096 us * 2^8 is about 1 ms, times the first try and two more.
        assert!(began.elapsed() >= Duration::from_millis(2), "{what}: {:?}", began.elapsed());
        a.driver.destroy_qp(&qp)?;
    }
    Ok(())
}

#[test]
fn a_peer_that_is_destroyed_is_missing_too() -> TestResult {
    let (_daemon, mut pair) =
        Pair::start(&PairOptions { rc: impatient(), ..PairOptions::default() })?;
    pair.ping()?;
    let Pair { a, b, qa, qb } = &mut pair;
    b.driver.destroy_qp(qb)?;
    qa.post_send(&SendWr::send(1, &[a.mr.sge(0, 8)]))?;
    assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_RETRY_EXC_ERR);
    Ok(())
}

#[test]
fn a_qp_in_error_flushes_what_it_has_and_what_comes() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let Pair { a, b: _, qa, qb: _ } = &mut pair;
    for wr_id in 0..5 {
        qa.post_recv(wr_id, &[a.mr.sge(0, 64)])?;
    }
    // The peer has no receive WQE, so these wait.
    let sges = [a.mr.sge(0, 64)];
    qa.post_sends(&[SendWr::send(10, &sges), SendWr::send(11, &sges).signaled()])?;
    qa.modify_state(QP_STATE_ERR)?;
    flushed(&a.recv_cq.poll_for(5, LONG)?, &[0, 1, 2, 3, 4]);
    let sends = a.send_cq.poll_for(2, LONG)?;
    flushed(&sends, &[10, 11]);
    assert!(sends.iter().all(|wc| wc.is_send() && wc.qpn == qa.number()));
    for round in 0..100 {
        qa.post_recv(round, &[])?;
        flushed(&a.recv_cq.poll_for(1, LONG)?, &[round]);
        qa.post_send(&SendWr::send(round, &[]))?;
        flushed(&a.send_cq.poll_for(1, LONG)?, &[round]);
        if round % 10 == 0 {
            // Long enough for a worker to sleep.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

#[test]
fn a_qp_that_never_connected_flushes_its_receives() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let mut side = Side::new(daemon.vm(0)?, 4096, 64)?;
    let mut qp = side.qp(&QpOptions::default())?;
    assert_eq!(qp.post_recv(0, &[]), Err(PostError::State));
    qp.to_init(&RcOptions::default())?;
    assert_eq!(qp.post_send(&SendWr::send(1, &[])), Err(PostError::State));
    qp.post_recv(1, &[])?;
    qp.post_recv(2, &[])?;
    qp.modify_state(QP_STATE_ERR)?;
    flushed(&side.recv_cq.poll_for(2, LONG)?, &[1, 2]);
    Ok(())
}

#[test]
fn reset_drops_work_without_completions_and_starts_over() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    for round in 0..20 {
        pair.ping()?;
        let Pair { a, b, qa, qb } = &mut pair;
        for wr_id in 0..7 {
            qa.post_recv(wr_id, &[a.mr.sge(0, 64)])?;
            qb.post_recv(wr_id, &[b.mr.sge(0, 64)])?;
        }
        qa.modify_state(QP_STATE_RESET)?;
        qb.modify_state(QP_STATE_RESET)?;
        assert_eq!(qa.modes(), (0, 0), "ARMED, vector 0 or any: not POLLED");
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(a.recv_cq.poll_one(), None, "round {round}");
        assert_eq!(b.recv_cq.poll_one(), None);
        assert_eq!(a.driver.query_qp(qa.number())?.qp_state, QP_STATE_RESET);
        connect_rc(qa, qb, &RcOptions::default())?;
    }
    pair.ping()
}

#[test]
fn receives_posted_before_the_connection_are_used_by_it() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let mut a = Side::new(daemon.vm(0)?, 4096, 64)?;
    let mut b = Side::new(daemon.vm(1)?, 4096, 64)?;
    let (mut qa, mut qb) = (a.qp(&QpOptions::default())?, b.qp(&QpOptions::default())?);
    qb.to_init(&RcOptions::default())?;
    for wr_id in 0..20 {
        qb.post_recv(wr_id, &[b.mr.sge(0, 64)])?;
    }
    qb.to_rtr(&qa.endpoint(), &RcOptions::default())?;
    qa.connect(&qb.endpoint(), &RcOptions::default())?;
    // RTR is enough to receive.
    for wr_id in 0..20 {
        qa.post_send(&SendWr::send(wr_id, &[a.mr.sge(0, 64)]).signaled())?;
    }
    for wr_id in 0..20 {
        assert_eq!(b.recv_cq.wait_one(LONG)?.wr_id, wr_id);
        assert_eq!(a.send_cq.wait_one(LONG)?.wr_id, wr_id);
    }
    qb.to_rts(&RcOptions::default())?;
    Ok(())
}

#[test]
fn a_drained_send_queue_holds_its_work_until_it_goes_on() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let Pair { a, b, qa, qb: _ } = &mut pair;
    qa.modify_state(QP_STATE_SQD)?;
    for wr_id in 0..5 {
        qa.post_send(&SendWr::write(wr_id, &[a.mr.sge(0, 64)], b.mr.remote(0)).signaled())?;
    }
    std::thread::sleep(SHORT);
    assert_eq!(a.send_cq.poll_one(), None);
    qa.modify_state(QP_STATE_RTS)?;
    for wr_id in 0..5 {
        let wc = a.send_cq.wait_one(LONG)?;
        assert_eq!((wc.wr_id, wc.status), (wr_id, WC_SUCCESS));
    }
    Ok(())
}

#[test]
fn a_qp_may_lack_one_queue_or_both() -> TestResult {
    if !soft_alone("how often RNR is retried is the host's HCA's") {
        return Ok(());
    }
    let daemon = TestDaemon::start(2)?;
    let mut a = Side::new(daemon.vm(0)?, 65_536, 64)?;
    let b = Side::new(daemon.vm(1)?, 65_536, 64)?;
    let sends_only = QpOptions { rq_entries: 0, ..QpOptions::default() };
    let neither = QpOptions { sq_entries: 0, rq_entries: 0, ..QpOptions::default() };
    for peer in [sends_only.clone(), neither] {
        let (mut qa, mut qb) = (a.qp(&sends_only)?, b.qp(&peer)?);
        connect_rc(&mut qa, &mut qb, &impatient())?;
        fill(&a.buffer, 0, 5000, 4);
        qa.post_send(&SendWr::write(1, &[a.mr.sge(0, 5000)], b.mr.remote(0)).signaled())?;
        assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        check(&b.buffer, 0, 5000, 4);
        assert_eq!(qb.post_recv(1, &[]), Err(PostError::Full));
        qa.post_send(&SendWr::send(2, &[a.mr.sge(0, 64)]))?;
        assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_RNR_RETRY_EXC_ERR);
        a.driver.destroy_qp(&qa)?;
        b.driver.destroy_qp(&qb)?;
    }
    Ok(())
}

#[test]
fn a_gid_that_is_taken_out_is_nobody_s_until_it_comes_back() -> TestResult {
    if !soft_alone("an address of the host's stays there") {
        return Ok(());
    }
    let options = PairOptions { rc: impatient(), ..PairOptions::default() };
    let (_daemon, mut pair) = Pair::start(&options)?;
    pair.ping()?;
    let theirs = pair.b.vm.gid();
    pair.b.driver.del_gid(0)?;
    assert_eq!(pair.b.driver.query_qp(pair.qb.number())?.qp_state, QP_STATE_RTS);
    pair.qa.post_send(&SendWr::write(1, &[pair.a.mr.sge(0, 8)], pair.b.mr.remote(0)))?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_RETRY_EXC_ERR);
    pair.b.driver.add_gid(theirs)?;
    pair.renew_qps(&options)?;
    pair.ping()
}

#[test]
fn thousands_of_connections_work_at_once() -> TestResult {
    const QPS: usize = 3000;
    let daemon = TestDaemon::start(2)?;
    let vm = VmConfig { memory: 192 << 20, ..VmConfig::default() };
    let mut a = Side::new(daemon.vm_with(0, vm.clone())?, 64 * QPS, 4096)?;
    let mut b = Side::new(daemon.vm_with(1, vm)?, 64 * QPS, 4096)?;
    let small = QpOptions {
        sq_entries: 4,
        rq_entries: 4,
        max_send_sge: 1,
        max_recv_sge: 1,
        max_inline: 0,
        contiguous: true,
        ..QpOptions::default()
    };
    let mut pairs = Vec::new();
    for _ in 0..QPS {
        let (mut qa, mut qb) = (a.qp(&small)?, b.qp(&small)?);
        connect_rc(&mut qa, &mut qb, &RcOptions::default())?;
        pairs.push((qa, qb));
    }
    let mut numbers: Vec<_> = pairs.iter().map(|(qa, _)| qa.number()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), QPS, "QPNs are unique");
    for round in 0..2_u8 {
        fill(&a.buffer, 0, 64 * QPS, round);
        for (n, (qa, qb)) in pairs.iter_mut().enumerate() {
            let at = 64 * n as u64;
            qb.post_recv(n as u64, &[b.mr.sge(at, 64)])?;
            qa.post_send(&SendWr::send(n as u64, &[a.mr.sge(at, 64)]).signaled())?;
        }
        let mut seen = vec![0; QPS];
        for wc in a.send_cq.poll_for(QPS, LONG)? {
            assert_eq!(wc.status, WC_SUCCESS);
            assert_eq!(wc.qpn, pairs[wc.wr_id as usize].0.number());
            seen[wc.wr_id as usize] += 1;
        }
        for wc in b.recv_cq.poll_for(QPS, LONG)? {
            assert_eq!((wc.status, wc.byte_len), (WC_SUCCESS, 64));
            seen[wc.wr_id as usize] += 1;
        }
        assert!(seen.iter().all(|n| *n == 2));
        check(&b.buffer, 0, 64 * QPS, round);
    }
    for (qa, qb) in &pairs {
        a.driver.destroy_qp(qa)?;
        b.driver.destroy_qp(qb)?;
    }
    a.driver.destroy_cq(&a.send_cq)?;
    Ok(())
}

#[test]
fn a_qp_destroyed_with_work_in_flight_leaves_its_peer_and_memory_alone() -> TestResult {
    let options = PairOptions { rc: impatient(), bytes: 1 << 20, ..PairOptions::default() };
    let (_daemon, mut pair) = Pair::start(&options)?;
    for _ in 0..20 {
        let Pair { a, b, qa, qb } = &mut pair;
        let sges = [a.mr.sge(0, 900_000)];
        for wr_id in 0..8 {
            qa.post_send(&SendWr::write(wr_id, &sges, b.mr.remote(0)).signaled())?;
        }
        b.driver.destroy_qp(qb)?;
        // From here on nothing may arrive.
        b.buffer.write(0, &vec![0x5a; 900_000]);
        let statuses: Vec<_> =
            a.send_cq.poll_for(8, LONG)?.iter().map(|wc| (wc.wr_id, wc.status)).collect();
        let done = statuses.iter().take_while(|(_, status)| *status == WC_SUCCESS).count();
        for (n, (wr_id, status)) in statuses.iter().enumerate() {
            let wanted = match n {
                _ if n < done => WC_SUCCESS,
                _ if n == done => WC_RETRY_EXC_ERR,
                _ => WC_WR_FLUSH_ERR,
            };
            assert_eq!((*wr_id, *status), (n as u64, wanted), "{statuses:?}");
        }
        assert!(b.buffer.read(0, 900_000).iter().all(|byte| *byte == 0x5a));
        a.driver.destroy_qp(qa)?;
        a.send_cq.clean(qa.number());
        pair.qa = pair.a.qp(&options.qp)?;
        pair.qb = pair.b.qp(&options.qp)?;
        connect_rc(&mut pair.qa, &mut pair.qb, &options.rc)?;
    }
    Ok(())
}
