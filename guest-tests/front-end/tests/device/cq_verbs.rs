// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! RESIZE_CQ, MODIFY_CQ and timestamps of completions.

use front_end::abi::control::ResizeCqRequest;
use front_end::abi::ring::{CQ_STATE_OVERFLOW, WC_OP_RESIZE, WC_SUCCESS};
use front_end::{PageTables, SendWr, Status};

use crate::harness::{Bystander, LONG, Pair, PairOptions, SHORT, TestResult, refused};

/// So many WRITEs of 8 bytes, all signalled.
fn writes(pair: &mut Pair, wr_ids: std::ops::Range<u64>) -> TestResult {
    let Pair { a, b, qa, .. } = pair;
    for wr_id in wr_ids {
        let sges = [a.mr.sge(0, 8)];
        qa.post_send(&SendWr::write(wr_id, &sges, b.mr.remote(8)).signaled())?;
    }
    Ok(())
}

fn options(cq_entries: u32) -> PairOptions {
    PairOptions { cq_entries, ..PairOptions::default() }
}

#[test]
fn a_cq_is_resized_under_traffic_and_no_completion_is_lost_or_doubled() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&options(64))?;
    let mut next = 0;
    for entries in [256, 64, 1024, 128, 64] {
        writes(&mut pair, next..next + 48)?;
        pair.a.driver.resize_cq(&mut pair.a.send_cq, entries)?;
        for wr_id in next..next + 48 {
            let wc = pair.a.send_cq.wait_one(LONG)?;
            assert_eq!((wc.wr_id, wc.status), (wr_id, WC_SUCCESS), "{entries} entries");
        }
        next += 48;
        assert_eq!(pair.a.send_cq.poll_one(), None);
        writes(&mut pair, next..next + 16)?;
        assert!(pair.a.send_cq.poll_for(16, LONG)?.iter().all(|wc| wc.wr_id >= next));
        next += 16;
    }
    Ok(())
}

#[test]
fn the_old_ring_ends_with_a_resize_cqe_unless_it_is_full() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&options(16))?;
    writes(&mut pair, 0..3)?;
    pair.a.send_cq.poll_for(3, LONG)?;
    assert_eq!(pair.a.driver.resize_cq(&mut pair.a.send_cq, 8)?, 3);
    let end = pair.a.send_cq.end_of_old_ring().expect("the slot is new");
    assert_eq!((end.opcode, end.wr_id, end.qpn), (WC_OP_RESIZE, 0, 0));
    // Eight completions fill the ring to the last slot; the CQ is of use all the same.
    writes(&mut pair, 10..18)?;
    while pair.a.driver.query_counters()?.completions.get() < 11 {
        std::thread::yield_now();
    }
    assert_eq!(pair.a.driver.resize_cq(&mut pair.a.send_cq, 64)?, 8);
    assert_eq!(pair.a.send_cq.end_of_old_ring(), None, "no room for a RESIZE CQE");
    writes(&mut pair, 18..30)?;
    let wcs = pair.a.send_cq.poll_for(20, LONG)?;
    assert!(wcs.iter().zip(10..).all(|(wc, wr_id)| wc.wr_id == wr_id && wc.is_success()));
    Ok(())
}

#[test]
fn an_armed_cq_that_is_resized_gets_its_event() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&options(16))?;
    pair.a.send_cq.arm(false);
    let word = pair.a.send_cq.arm_word();
    pair.a.driver.resize_cq(&mut pair.a.send_cq, 32)?;
    let event = pair.a.send_cq.wait_event(LONG)?.expect("an event");
    assert_eq!(event.arm.get(), word);
    // Unless it had it, or was not armed.
    pair.a.driver.resize_cq(&mut pair.a.send_cq, 64)?;
    assert!(pair.a.send_cq.wait_event(SHORT)?.is_none());
    // And it can be armed again where it is now.
    pair.a.send_cq.arm(false);
    writes(&mut pair, 0..1)?;
    assert!(pair.a.send_cq.wait_event(LONG)?.is_some());
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.wr_id, 0);
    Ok(())
}

#[test]
fn bad_resizes_are_refused_and_change_nothing() -> TestResult {
    let (daemon, mut pair) = Pair::start(&options(16))?;
    let _ = &daemon;
    let driver = pair.a.driver.clone();
    let buffer = driver.memory().alloc_scattered(8192)?;
    let pages = PageTables::of_buffer(driver.memory(), &buffer)?;
    let good = ResizeCqRequest {
        cqn: pair.a.send_cq.number().into(),
        entries: 32.into(),
        pages: pages.list,
    };
    let with = |entries: u32| ResizeCqRequest { entries: entries.into(), ..good };
    for entries in [0, 3, 33, 1 << 23, u32::MAX, 128] {
        refused(driver.resize_cq_request(&with(entries)), Status::Invalid);
    }
    for cqn in [0, 77, pair.b.send_cq.number() + 1000, u32::MAX] {
        let request = ResizeCqRequest { cqn: cqn.into(), ..good };
        refused(driver.resize_cq_request(&request), Status::NoObject);
    }
    let mut nowhere = good;
    nowhere.pages.root = driver.memory().unmapped_address().into();
    nowhere.pages.depth = 0;
    refused(driver.resize_cq_request(&nowhere), Status::BadAddress);
    let mut misaligned = nowhere;
    misaligned.pages.root = 0x1004.into();
    refused(driver.resize_cq_request(&misaligned), Status::Invalid);
    writes(&mut pair, 0..10)?;
    assert_eq!(pair.a.send_cq.poll_for(10, LONG)?.len(), 10);
    Ok(())
}

#[test]
fn a_cq_that_overflowed_is_not_resized() -> TestResult {
    let daemon = crate::harness::TestDaemon::start(4)?;
    let mut pair = Pair::new(&daemon, 0, &options(4))?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    writes(&mut pair, 0..6)?;
    while pair.a.send_cq.state() != CQ_STATE_OVERFLOW {
        std::thread::yield_now();
    }
    let result = pair.a.driver.resize_cq(&mut pair.a.send_cq, 64);
    refused(result, Status::BadState);
    bystander.check()
}

#[test]
fn moderated_events_wait_for_the_count() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&options(64))?;
    let cqn = pair.a.send_cq.number();
    let period = std::time::Duration::from_micros(32_767);
    pair.a.driver.modify_cq(cqn, 8, 32_767)?;
    pair.a.send_cq.arm(false);
    let begin = std::time::Instant::now();
    writes(&mut pair, 0..8)?;
    assert!(pair.a.send_cq.wait_event(LONG)?.is_some());
    let count = std::iter::from_fn(|| pair.a.send_cq.poll_one()).count();
    assert!(count == 8 || begin.elapsed() >= period, "an event after {count} completions");
    pair.a.send_cq.poll_for(8 - count, LONG)?;
    // Off again: each arming has its event at once.
    pair.a.driver.modify_cq(cqn, 0, 0)?;
    for wr_id in 0..3 {
        pair.a.send_cq.arm(false);
        writes(&mut pair, wr_id..wr_id + 1)?;
        assert!(pair.a.send_cq.wait_event(LONG)?.is_some());
        pair.a.send_cq.wait_one(LONG)?;
    }
    Ok(())
}

#[test]
fn a_moderated_event_comes_after_the_period_if_the_count_is_not_reached() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&options(64))?;
    pair.a.driver.modify_cq(pair.a.send_cq.number(), 32_767, 20_000)?;
    for round in 0..3 {
        pair.a.send_cq.arm(false);
        let begin = std::time::Instant::now();
        writes(&mut pair, round..round + 1)?;
        assert!(pair.a.send_cq.wait_event(LONG)?.is_some());
        // Never too early, whatever the machine does.
        assert!(begin.elapsed() >= std::time::Duration::from_micros(20_000));
        pair.a.send_cq.wait_one(LONG)?;
    }
    // A CQ that goes while its event is held back leaves nothing behind.
    pair.a.send_cq.arm(false);
    writes(&mut pair, 9..10)?;
    let extra = pair.a.driver.create_cq(16, 0)?;
    pair.a.driver.modify_cq(extra.number(), 100, 100)?;
    pair.a.driver.destroy_cq(&extra)?;
    assert!(pair.a.send_cq.wait_event(LONG)?.is_some());
    Ok(())
}

#[test]
fn moderation_of_no_cq_is_refused() -> TestResult {
    let (_daemon, pair) = Pair::start(&options(16))?;
    for cqn in [0, 4711, u32::MAX] {
        refused(pair.a.driver.modify_cq(cqn, 1, 1), Status::NoObject);
    }
    for (count, period) in [(32_768, 1), (1, 32_768), (u16::MAX, u16::MAX)] {
        let result = pair.a.driver.modify_cq(pair.a.send_cq.number(), count, period);
        refused(result, Status::Invalid);
    }
    Ok(())
}

#[test]
fn completions_of_a_cq_with_timestamps_lie_between_two_readings_of_the_clock() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&options(16))?;
    let driver = pair.a.driver.clone();
    assert_eq!(driver.query_device()?.hca_core_clock.get(), 1_000_000);
    let mut cq = driver.create_cq_with_timestamps(16, 0)?;
    let mut qp = driver.create_qp(&pair.a.pd, &cq, &cq, &Default::default())?;
    let mut peer = pair.b.qp(&Default::default())?;
    front_end::connect_rc(&mut qp, &mut peer, &Default::default())?;
    let before = driver.query_clock()?;
    let mut last = before.timestamp.get();
    let post = |qp: &mut front_end::Qp, cq: &mut front_end::Cq| -> TestResult<front_end::Wc> {
        let sges = [pair.a.mr.sge(0, 8)];
        qp.post_send(&SendWr::write(1, &sges, pair.b.mr.remote(0)).signaled())?;
        Ok(cq.wait_one(LONG)?)
    };
    for _ in 0..5 {
        let wc = post(&mut qp, &mut cq)?;
        assert!(wc.timestamp >= last && wc.wall_clock > 1_600_000_000_000_000_000);
        last = wc.timestamp;
    }
    // A resize does not make them go.
    driver.resize_cq(&mut cq, 64)?;
    let wc = post(&mut qp, &mut cq)?;
    assert!(wc.timestamp >= last);
    assert!(driver.query_clock()?.timestamp.get() >= wc.timestamp);
    // Other CQs have none.
    writes(&mut pair, 0..1)?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.timestamp, 0);
    // Unknown flags are refused.
    let mut prepared = driver.prepare_cq(16, 0)?;
    prepared.request.flags = 2.into();
    refused(driver.create_cq_from(prepared), Status::Invalid);
    Ok(())
}
