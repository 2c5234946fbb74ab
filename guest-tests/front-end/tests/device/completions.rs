// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Completions: signalled or not, rings that wrap, arming and events, solicited events, overflow.

use std::time::Duration;

use front_end::abi::control::{QP_FLAG_SIGNAL_ALL, QP_STATE_ERR};
use front_end::abi::event::EVENT_CQ_ERR;
use front_end::abi::ring::{CQ_STATE_OK, CQ_STATE_OVERFLOW, WC_SUCCESS};
use front_end::{PostError, QpOptions, SendWr, access, connect_rc};

use crate::harness::{
    Bystander, LONG, Pair, PairOptions, SHORT, Side, TestDaemon, TestResult, check, fill,
};

#[test]
fn unsignalled_work_makes_no_completion_and_is_freed_by_the_next_that_does() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let Pair { a, b, qa, qb: _ } = &mut pair;
    for batch in 1..100_u32 {
        let sges = [a.mr.sge(0, 64)];
        for _ in 0..7 {
            qa.post_send(&SendWr::write(5, &sges, b.mr.remote(0)))?;
        }
        qa.post_send(&SendWr::write(6, &sges, b.mr.remote(0)).signaled())?;
        let wc = a.send_cq.wait_one(LONG)?;
        assert_eq!((wc.wr_id, wc.status, wc.wqe_count), (6, WC_SUCCESS, 8 * batch));
        assert_eq!(a.send_cq.poll_one(), None);
    }
    Ok(())
}

#[test]
fn a_qp_with_signal_all_completes_everything() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions {
        qp: QpOptions { flags: QP_FLAG_SIGNAL_ALL, ..QpOptions::default() },
        ..PairOptions::default()
    })?;
    let Pair { a, b, qa, qb: _ } = &mut pair;
    let sges = [a.mr.sge(0, 64)];
    for wr_id in 0..10 {
        qa.post_send(&SendWr::write(wr_id, &sges, b.mr.remote(0)))?;
    }
    let wcs = a.send_cq.poll_for(10, LONG)?;
    assert!(wcs.iter().enumerate().all(|(n, wc)| wc.wr_id == n as u64 && wc.status == WC_SUCCESS));
    Ok(())
}

#[test]
fn rings_wrap_round_at_every_size() -> TestResult {
    for entries in [1, 2, 4, 32] {
        let (_daemon, mut pair) = Pair::start(&PairOptions {
            qp: QpOptions { sq_entries: entries, rq_entries: entries, ..QpOptions::default() },
            cq_entries: entries,
            ..PairOptions::default()
        })?;
        let Pair { a, b, qa, qb } = &mut pair;
        for lap in 0..100_u64 {
            for n in 0..u64::from(entries) {
                let id = lap * 1000 + n;
                a.buffer.store_u64(8 * n as usize, id);
                qb.post_recv(id, &[b.mr.sge(8 * n, 8)])?;
                qa.post_send(&SendWr::send(id, &[a.mr.sge(8 * n, 8)]).signaled())?;
            }
            assert_eq!(qa.post_send(&SendWr::send(0, &[])), Err(PostError::Full));
            assert_eq!(qb.post_recv(0, &[]), Err(PostError::Full));
            for n in 0..u64::from(entries) {
                let id = lap * 1000 + n;
                let (sent, received) = (a.send_cq.wait_one(LONG)?, b.recv_cq.wait_one(LONG)?);
                assert_eq!((sent.wr_id, sent.status), (id, WC_SUCCESS), "{entries} entries");
                assert_eq!((received.wr_id, received.status), (id, WC_SUCCESS));
                assert_eq!(b.buffer.load_u64(8 * n as usize), id);
            }
        }
    }
    Ok(())
}

#[test]
fn a_deep_queue_is_worked_off_in_order() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions {
        qp: QpOptions { sq_entries: 4096, rq_entries: 4096, ..QpOptions::default() },
        cq_entries: 8192,
        ..PairOptions::default()
    })?;
    let Pair { a, b, qa, qb } = &mut pair;
    for n in 0..4096 {
        qb.post_recv(n, &[b.mr.sge(16 * n, 16)])?;
    }
    fill(&a.buffer, 0, 65_536, 1);
    for n in 0..4096 {
        qa.post_send(&SendWr::send(n, &[a.mr.sge(16 * n, 16)]).signaled())?;
    }
    for n in 0..4096 {
        assert_eq!(b.recv_cq.wait_one(LONG)?.wr_id, n);
        assert_eq!(a.send_cq.wait_one(LONG)?.wr_id, n);
    }
    check(&b.buffer, 0, 65_536, 1);
    Ok(())
}

#[test]
fn an_armed_cq_gets_one_event_and_one_that_is_not_armed_gets_none() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    pair.ping()?;
    assert!(pair.b.recv_cq.wait_event(SHORT)?.is_none(), "never armed");
    for _ in 0..50 {
        pair.b.recv_cq.arm(false);
        let armed = pair.b.recv_cq.arm_word();
        pair.ping()?;
        let event = pair.b.recv_cq.wait_event(LONG)?.ok_or("no event")?;
        assert_eq!((event.cqn.get(), event.arm.get()), (pair.b.recv_cq.number(), armed));
        assert_eq!(pair.b.recv_cq.fired(), armed);
    }
    pair.ping()?;
    assert!(pair.b.recv_cq.wait_event(SHORT)?.is_none(), "armed once, fired once");
    Ok(())
}

#[test]
fn no_event_is_lost_when_both_ends_sleep_between_messages() -> TestResult {
    let (_daemon, pair) = Pair::start(&PairOptions::default())?;
    let Pair { a, b, qa, qb } = pair;
    // Each end answers a message with one, and sleeps in between, if there is nothing to poll.
    let player = |mut side: Side, mut qp: front_end::Qp, starts: bool| -> TestResult<Side> {
        for n in 0..4 {
            qp.post_recv(n, &[side.mr.sge(64 * n, 64)])?;
        }
        if starts {
            std::thread::sleep(Duration::from_millis(100));
            qp.post_send(&SendWr::send(9, &[side.mr.sge(4096, 64)]))?;
        }
        for n in 0..1500 {
            let received = loop {
                if let Some(wc) = side.recv_cq.poll_one() {
                    break wc;
                }
                side.recv_cq.arm(false);
                if let Some(wc) = side.recv_cq.poll_one() {
                    break wc;
                }
                side.recv_cq.wait_event(LONG)?.ok_or_else(|| format!("no event in round {n}"))?;
            };
            assert_eq!(received.status, WC_SUCCESS);
            qp.post_recv(n, &[side.mr.sge(0, 64)])?;
            let wr = SendWr::send(9, &[]).signaled();
            qp.post_send(&wr)?;
            side.send_cq.wait_one(LONG)?;
        }
        Ok(side)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| player(b, qb, false));
        // The one that begins is a message ahead; its last one goes unanswered.
        let first = player(a, qa, true);
        let second = other.join().map_err(|_| "a player panicked")?;
        // Only now may either VM go.
        drop((first?, second?));
        Ok(())
    })
}

#[test]
fn events_wait_while_the_driver_gives_no_buffers() -> TestResult {
    let mut options = PairOptions::default();
    options.vm.queue_size = 4;
    options.vm.vectors = 1;
    let (_daemon, mut pair) = Pair::start(&options)?;
    pair.a.driver.starve_comp_queue(0, true)?;
    let Pair { a, b, .. } = &mut pair;
    // More CQs fire than there are buffers.
    let mut extra = Vec::new();
    for _ in 0..10 {
        let cq = a.driver.create_cq(16, 0)?;
        let mut qp = a.driver.create_qp(&a.pd, &cq, &cq, &QpOptions::default())?;
        let mut peer = b.qp(&QpOptions::default())?;
        connect_rc(&mut qp, &mut peer, &Default::default())?;
        extra.push((cq, qp, peer));
    }
    for (cq, qp, _) in &mut extra {
        cq.arm(false);
        qp.post_send(&SendWr::write(1, &[a.mr.sge(0, 8)], b.mr.remote(0)).signaled())?;
        cq.wait_one(LONG)?;
    }
    let mut waiting = 0;
    for (cq, ..) in &extra {
        waiting += u32::from(cq.wait_event(Duration::from_millis(50))?.is_none());
    }
    assert_eq!(waiting, 6, "four buffers, ten events");
    a.driver.starve_comp_queue(0, false)?;
    let mut late = 0;
    while a.driver.next_comp_event(0, Duration::from_millis(500))?.is_some() {
        late += 1;
    }
    assert_eq!(late, 6);
    Ok(())
}

#[test]
fn an_overflowing_cq_is_an_event_and_the_end_of_that_cq_only() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let options = PairOptions { cq_entries: 4, ..PairOptions::default() };
    let mut pair = Pair::new(&daemon, 0, &options)?;
    let Pair { a, b, qa, qb: _ } = &mut pair;
    let sges = [a.mr.sge(0, 8)];
    for n in 0..4 {
        qa.post_send(&SendWr::write(n, &sges, b.mr.remote(0)).signaled())?;
    }
    // The CQ is full and not over: four completions, none told to the device as polled.
    for n in 0..4 {
        let deadline = std::time::Instant::now() + LONG;
        let wc = loop {
            if let Some(wc) = a.send_cq.poll_silently() {
                break wc;
            }
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        };
        assert_eq!((wc.wr_id, wc.status), (n, WC_SUCCESS));
    }
    assert_eq!(a.send_cq.state(), CQ_STATE_OK);
    assert!(a.driver.next_async_event(SHORT)?.is_none());
    qa.post_send(&SendWr::write(4, &sges, b.mr.remote(0)).signaled())?;
    let mut found = false;
    while let Some(event) = a.driver.next_async_event(if found { SHORT } else { LONG })? {
        found |= event.event.get() == EVENT_CQ_ERR && event.number.get() == a.send_cq.number();
    }
    assert!(found, "EVENT_CQ_ERR");
    assert_eq!(a.send_cq.state(), CQ_STATE_OVERFLOW);
    assert_eq!(a.send_cq.poll_silently(), None);
    assert_eq!(a.driver.query_qp(qa.number())?.qp_state, QP_STATE_ERR);
    bystander.check()?;
    // All of it can be taken down and made anew.
    a.driver.destroy_qp(qa)?;
    a.driver.destroy_cq(&a.send_cq)?;
    a.driver.destroy_cq(&a.recv_cq)?;
    let mr = a.driver.reg_mr(&a.pd, &a.buffer, access::ALL)?;
    a.driver.dereg_mr(&mr)?;
    a.send_cq = a.driver.create_cq(64, 0)?;
    a.recv_cq = a.driver.create_cq(64, 0)?;
    b.send_cq = b.driver.create_cq(64, 0)?;
    b.recv_cq = b.driver.create_cq(64, 0)?;
    pair.qa = pair.a.qp(&options.qp)?;
    pair.qb = pair.b.qp(&options.qp)?;
    connect_rc(&mut pair.qa, &mut pair.qb, &options.rc)?;
    pair.ping()
}
