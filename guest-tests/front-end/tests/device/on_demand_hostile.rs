// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory on demand in hostile hands: faults that nobody answers, answers that nobody asked for, and
//! commands that make no sense.

use front_end::abi::control::on_demand::*;
use front_end::abi::control::*;
use front_end::abi::event::EVENT_PAGE_FAULT;
use front_end::abi::ring::*;
use front_end::{PAGE, QpOptions, RcOptions, SendWr, Status, access, connect_rc};

use crate::harness::{
    Bystander, LONG, Pair, PairOptions, SHORT, TestDaemon, TestResult, check, fill, refused,
};
use crate::on_demand::Pager;

#[test]
fn faults_that_nobody_answers_end_by_the_peers_retries_and_stop_nobody_else() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let rc = RcOptions { rnr_retry: 2, ..RcOptions::default() };
    let options = PairOptions { rc, ..PairOptions::default() };
    let mut pair = Pair::new(&daemon, 0, &options)?;
    let (here, there) = (Pager::new(&pair.a, PAGE)?, Pager::new(&pair.b, PAGE)?);
    let own = [pair.a.mr.sge(0, 100)];

    pair.qa.post_send(&SendWr::write(1, &own, there.mr.remote(0)))?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_RNR_RETRY_EXC_ERR);
    pair.renew_qps(&options)?;
    pair.qb.post_recv(2, &[there.mr.sge(0, 100)])?;
    pair.qa.post_send(&SendWr::send(3, &own))?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_RNR_RETRY_EXC_ERR);
    // The WQE in hand is flushed with its QP.
    pair.qb.modify_state(QP_STATE_ERR)?;
    let wc = pair.b.recv_cq.wait_one(LONG)?;
    assert_eq!((wc.wr_id, wc.status), (2, WC_WR_FLUSH_ERR));

    // Without end: many QPs wait, on either side, and end when their owner wants.
    let endless = PairOptions::default();
    pair.renew_qps(&endless)?;
    let mut waiting = Vec::new();
    for n in 0..20 {
        let (mut qa, mut qb) =
            (pair.a.qp(&QpOptions::default())?, pair.b.qp(&QpOptions::default())?);
        connect_rc(&mut qa, &mut qb, &endless.rc)?;
        let from = [here.mr.sge(0, 100)];
        let sges = if n % 2 == 0 { &own } else { &from };
        qa.post_send(&SendWr::write(n, sges, there.mr.remote(0)).signaled())?;
        waiting.push((qa, qb));
    }
    bystander.check()?;
    pair.ping()?;
    for (n, (qa, qb)) in waiting.iter_mut().enumerate() {
        match n % 4 {
            0 => {
                qa.modify_state(QP_STATE_ERR)?;
                let wc = pair.a.send_cq.wait_one(LONG)?;
                assert_eq!((wc.wr_id, wc.status), (n as u64, WC_WR_FLUSH_ERR));
            }
            1 => qa.modify_state(QP_STATE_RESET)?,
            2 => pair.b.driver.destroy_qp(qb)?,
            _ => {}
        }
        pair.a.driver.destroy_qp(qa)?;
    }
    assert_eq!(pair.a.send_cq.poll_one(), None);
    // Answers to who is gone are nobody's.
    there.map(0, 1, true)?;
    here.map(0, 1, true)?;
    bystander.check()?;
    pair.ping()
}

#[test]
fn a_fault_is_told_of_once_however_many_wait_and_however_often_it_is_tried() -> TestResult {
    let options = PairOptions::default();
    let (_daemon, mut pair) = Pair::start(&options)?;
    let there = Pager::new(&pair.b, 4 * PAGE)?;
    let own = [pair.a.mr.sge(0, 100)];
    let mut qps = Vec::new();
    for n in 0..8 {
        let (mut qa, mut qb) =
            (pair.a.qp(&QpOptions::default())?, pair.b.qp(&QpOptions::default())?);
        connect_rc(&mut qa, &mut qb, &options.rc)?;
        qa.post_send(&SendWr::write(n, &own, there.mr.remote(0)).signaled())?;
        qps.push((qa, qb));
    }
    let event = pair.b.driver.next_async_event(LONG)?.ok_or("no event")?;
    assert_eq!((event.event.get(), event.number.get()), (EVENT_PAGE_FAULT, there.mr.number));
    // Far more than one retry of each.
    std::thread::sleep(SHORT);
    assert_eq!(pair.b.driver.next_async_event(SHORT)?, None);
    let mut faults = 0;
    while let Some(fault) = pair.b.driver.take_page_fault(&there.mr)? {
        assert_eq!(fault, (0, 1, true));
        faults += 1;
    }
    assert!((1..=8).contains(&faults), "{faults} faults of 8 QPs");
    there.map(0, 1, true)?;
    for _ in 0..8 {
        assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    }
    Ok(())
}

#[test]
fn answers_that_nobody_asked_for_and_pages_that_are_mapped_twice_do_no_harm() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let there = Pager::new(&pair.b, 4 * PAGE)?;
    let driver = pair.b.driver.clone();
    assert_eq!(driver.take_page_fault(&there.mr)?, None);
    driver.unmap_pages(&there.mr, 0, 5)?;
    driver.refuse_pages(&there.mr, 0, 5)?;
    there.map(0, 5, true)?;
    driver.refuse_pages(&there.mr, 0, 5)?;
    there.map(1, 3, false)?;
    there.map(0, 5, true)?;
    fill(&pair.a.buffer, 0, 4 * PAGE, 1);
    let own = [pair.a.mr.sge(0, 4 * PAGE as u32)];
    pair.qa.post_send(&SendWr::write(1, &own, there.mr.remote(0)).signaled())?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    there.check(0, 4 * PAGE, 1);
    // One page of the guest's in every place of the MR.
    let page = pair.b.vm.memory().alloc_contiguous(PAGE)?;
    for n in 0..5 {
        driver.map_pages(&there.mr, n, &page, 0..1, true)?;
    }
    pair.qa.post_send(&SendWr::write(2, &own, there.mr.remote(0)).signaled())?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    there.check(0, 4 * PAGE, 1);
    driver.dereg_mr(&there.mr)?;
    refused(driver.take_page_fault(&there.mr), Status::NoObject);
    refused(driver.unmap_pages(&there.mr, 0, 5), Status::NoObject);
    pair.ping()
}

#[test]
fn commands_of_memory_on_demand_that_make_no_sense_are_refused() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let driver = pair.b.driver.clone();
    let pd = pair.b.pd;
    let good = RegOdpMrRequest {
        pdn: pd.number.into(),
        access: access::ALL.into(),
        iova: 4096.into(),
        length: 8192.into(),
        offset: 0.into(),
        page_shift: 12,
        reserved: [0; 7],
    };
    let max = driver.query_device()?.max_mr_size.get();
    for (wrong, status) in [
        (RegOdpMrRequest { pdn: 0xff_ffff.into(), ..good }, Status::NoObject),
        (RegOdpMrRequest { access: (1 << 19).into(), ..good }, Status::Invalid),
        (RegOdpMrRequest { access: access::REMOTE_WRITE.into(), ..good }, Status::Invalid),
        (RegOdpMrRequest { length: 0.into(), ..good }, Status::Invalid),
        (RegOdpMrRequest { length: (max + 1).into(), ..good }, Status::Invalid),
        (RegOdpMrRequest { length: ODP_ALL.into(), ..good }, Status::Invalid),
        (RegOdpMrRequest { iova: (u64::MAX - 100).into(), ..good }, Status::Invalid),
        (RegOdpMrRequest { offset: 4096.into(), ..good }, Status::Invalid),
        (RegOdpMrRequest { offset: u64::MAX.into(), ..good }, Status::Invalid),
        (RegOdpMrRequest { page_shift: 11, ..good }, Status::Invalid),
        (RegOdpMrRequest { page_shift: 31, ..good }, Status::Invalid),
        (RegOdpMrRequest { page_shift: 200, ..good }, Status::Invalid),
    ] {
        refused(driver.reg_odp_mr_request(&wrong), status);
    }

    let mr = driver.reg_odp_mr_request(&good)?;
    let buffer = pair.b.vm.memory().alloc_contiguous(3 * PAGE)?;
    let list = PageList {
        root: buffer.guest_address(0).into(),
        num_pages: 1.into(),
        page_shift: 12,
        depth: 0,
        reserved: 0.into(),
    };
    let good = MapPagesRequest {
        mrn: mr.number.into(),
        flags: PAGES_WRITABLE.into(),
        first: 0.into(),
        pages: list,
    };
    let outside = pair.b.vm.memory().unmapped_address();
    let pages = |root: u64, num_pages: u32, page_shift| PageList {
        root: root.into(),
        num_pages: num_pages.into(),
        page_shift,
        ..list
    };
    let at = buffer.guest_address(0);
    for (wrong, status) in [
        (MapPagesRequest { mrn: pair.b.mr.number.into(), ..good }, Status::NoObject),
        (MapPagesRequest { mrn: 0xff_ffff.into(), ..good }, Status::NoObject),
        (MapPagesRequest { flags: 2.into(), ..good }, Status::Invalid),
        (MapPagesRequest { first: 2.into(), ..good }, Status::Invalid),
        (MapPagesRequest { first: u64::MAX.into(), ..good }, Status::Invalid),
        (MapPagesRequest { pages: pages(at, 3, 12), ..good }, Status::Invalid),
        (MapPagesRequest { pages: pages(at, 0, 12), ..good }, Status::Invalid),
        (MapPagesRequest { pages: pages(at, u32::MAX, 12), ..good }, Status::Invalid),
        (MapPagesRequest { pages: pages(at, 1, 13), ..good }, Status::Invalid),
        (MapPagesRequest { pages: pages(at + 8, 1, 12), ..good }, Status::Invalid),
        (MapPagesRequest { pages: pages(outside, 1, 12), ..good }, Status::BadAddress),
    ] {
        refused(driver.map_pages_request(&wrong), status);
    }
    for (first, count) in [(0, 0), (0, 3), (2, 1), (u64::MAX, 1), (1, u64::MAX)] {
        refused(driver.unmap_pages(&mr, first, count), Status::Invalid);
        refused(driver.refuse_pages(&mr, first, count), Status::Invalid);
    }
    refused(driver.unmap_pages(&pair.b.mr, 0, 1), Status::NoObject);
    refused(driver.take_page_fault(&pair.b.mr), Status::NoObject);
    refused(driver.rereg_mr(&mr, None, None, Some(access::LOCAL_WRITE)), Status::Invalid);

    // After all that it works.
    driver.map_pages_request(&good)?;
    fill(&pair.a.buffer, 0, 100, 8);
    let own = [pair.a.mr.sge(0, 100)];
    pair.qa.post_send(&SendWr::write(1, &own, mr.remote(0)).signaled())?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    check(&buffer, 0, 100, 8);
    // Beyond its end is beyond its end, whatever pages there are.
    pair.qa.post_send(&SendWr::write(2, &own, mr.remote(8100)))?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_REM_ACCESS_ERR);
    Ok(())
}

#[test]
fn a_table_of_pages_grows_no_further_than_the_guests_share() -> TestResult {
    let (_daemon, pair) = Pair::start(&PairOptions::default())?;
    let driver = &pair.b.driver;
    let mr = driver.reg_odp_mr(&pair.b.pd, 0, ODP_ALL, 0, access::ALL)?;
    let page = pair.b.vm.memory().alloc_contiguous(PAGE)?;
    let far = |n: u64| n << 30;
    let mut there = 0;
    let end = loop {
        match driver.map_pages(&mr, far(there), &page, 0..1, true) {
            Ok(()) => there += 1,
            Err(error) => break error,
        }
        assert!(there < 4096, "the table has no end");
    };
    refused::<()>(Err(end), Status::NoResources);
    assert!(there > 500, "{there} places of one page");
    // What is taken away makes room for its neighbours.
    driver.unmap_pages(&mr, far(0), 1)?;
    driver.map_pages(&mr, far(1) + 512, &page, 0..1, true)?;
    driver.dereg_mr(&mr)?;
    Ok(())
}

#[test]
fn a_device_that_is_reset_forgets_its_faults() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let there = Pager::new(&pair.b, PAGE)?;
    let own = [pair.a.mr.sge(0, 100)];
    pair.qa.post_send(&SendWr::write(1, &own, there.mr.remote(0)))?;
    there.fault()?;
    pair.b.vm.reset_device()?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_RETRY_EXC_ERR);
    let driver = pair.b.vm.driver()?;
    refused(driver.take_page_fault(&there.mr), Status::NoObject);
    Ok(())
}
