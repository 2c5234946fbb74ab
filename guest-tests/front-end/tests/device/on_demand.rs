// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory on demand: work waits for its pages, is done once when they come, and fails when they are
//! refused; a page that was taken away is not touched. What hostile drivers do is in `on_demand_hostile`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use front_end::abi::control::on_demand::*;
use front_end::abi::control::*;
use front_end::abi::event::EVENT_PAGE_FAULT;
use front_end::abi::ring::*;
use front_end::{
    Buffer, Driver, Mr, PAGE, QpOptions, RcOptions, SendWr, access, bind_args, connect_rc,
};

use crate::harness::{LONG, Pair, PairOptions, Side, TestDaemon, TestResult, check, fill};

/// What an MR and a QP may.
const RIGHTS: u32 = access::ALL | access::REMOTE_ATOMIC;

/// An MR of memory on demand over a side's buffer, and who serves its faults.
pub struct Pager {
    pub mr: Mr,
    driver: Driver,
    buffer: Buffer,
}

impl Pager {
    /// Over as much as a new buffer has, the first byte 300 bytes into page 0.
    pub fn new(side: &Side, bytes: usize) -> TestResult<Self> {
        let buffer = side.vm.memory().alloc_scattered(bytes + PAGE)?;
        let (driver, iova) = (side.driver.clone(), 0x7000_0000_0000 + 300);
        let mr = driver.reg_odp_mr(&side.pd, iova, bytes as u64, 300, RIGHTS | access::MW_BIND)?;
        Ok(Self { mr, driver, buffer })
    }

    /// The bytes at an offset of the MR.
    pub fn fill(&self, offset: usize, len: usize, seed: u8) {
        fill(&self.buffer, 300 + offset, len, seed);
    }

    /// Checks them.
    #[track_caller]
    pub fn check(&self, offset: usize, len: usize, seed: u8) {
        check(&self.buffer, 300 + offset, len, seed);
    }

    /// The next fault: waits for the event.
    pub fn fault(&self) -> TestResult<(u64, u64, bool)> {
        loop {
            if let Some(fault) = self.driver.take_page_fault(&self.mr)? {
                return Ok(fault);
            }
            let event = self.driver.next_async_event(LONG)?.ok_or("no event")?;
            if event.event.get() == EVENT_PAGE_FAULT {
                assert_eq!(event.number.get(), self.mr.number);
            }
        }
    }

    /// Puts pages there.
    pub fn map(&self, first: u64, count: u64, write: bool) -> TestResult {
        let pages = first as usize..(first + count) as usize;
        Ok(self.driver.map_pages(&self.mr, first, &self.buffer, pages, write)?)
    }

    /// Answers the next fault.
    pub fn serve(&self) -> TestResult<(u64, u64, bool)> {
        let (first, count, write) = self.fault()?;
        self.map(first, count, write)?;
        Ok((first, count, write))
    }

    pub fn unmap_all(&self) -> TestResult {
        let pages = (300 + self.mr.length).div_ceil(PAGE as u64);
        Ok(self.driver.unmap_pages(&self.mr, 0, pages)?)
    }

    pub fn refuse(&self) -> TestResult {
        let (first, count, _) = self.fault()?;
        Ok(self.driver.refuse_pages(&self.mr, first, count)?)
    }
}

fn options(bytes: usize) -> PairOptions {
    let rc = RcOptions { access: RIGHTS, ..RcOptions::default() };
    PairOptions { bytes, rc, ..PairOptions::default() }
}

/// Long enough for several pieces, each of several pages.
const LEN: usize = 200_000;

#[test]
fn work_waits_for_pages_of_either_side_and_moves_every_byte_once_they_come() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&options(1 << 20))?;
    let (here, there) = (Pager::new(&pair.a, LEN)?, Pager::new(&pair.b, LEN)?);
    let len = LEN as u32;
    for round in 0..3_u8 {
        // WRITE: the source first, then the target, each of which may have more than one fault.
        here.fill(0, LEN, round);
        let (own, peer) = (here.mr.sge(0, len), there.mr.remote(0));
        pair.qa.post_send(&SendWr::write(1, &[own], peer).signaled())?;
        assert!(!here.serve()?.2, "the source is read");
        assert!(there.serve()?.2, "the target is written");
        assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        there.check(0, LEN, round);
        // Nothing is missing any more.
        here.fill(0, LEN, round + 40);
        pair.qa.post_send(&SendWr::write(2, &[own], peer).signaled())?;
        assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        there.check(0, LEN, round + 40);
        assert_eq!(there.driver.take_page_fault(&there.mr)?, None);

        // READ: what was only read is written now, and faults for that.
        there.unmap_all()?;
        there.fill(0, LEN, round + 80);
        pair.qa.post_send(&SendWr::read(3, &[own], peer).signaled())?;
        assert!(here.serve()?.2, "the target is written");
        assert!(!there.serve()?.2, "the source is read");
        assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        here.check(0, LEN, round + 80);

        // SEND: the receive WQE in hand is that of the message that waits, not of the next.
        there.unmap_all()?;
        pair.qb.post_recv(4, &[there.mr.sge(0, 1000), there.mr.sge(1000, len - 1000)])?;
        pair.qb.post_recv(5, &[pair.b.mr.sge(0, 100)])?;
        pair.qa.post_send(&SendWr::send(6, &[own]).signaled())?;
        pair.qa.post_send(&SendWr::send(7, &[pair.a.mr.sge(0, 100)]).signaled())?;
        while pair.b.recv_cq.poll_one().is_none_or(|wc| {
            assert_eq!((wc.wr_id, wc.status, wc.byte_len), (4, WC_SUCCESS, len));
            false
        }) {
            if let Some((first, count, write)) = there.driver.take_page_fault(&there.mr)? {
                there.map(first, count, write)?;
            }
        }
        assert_eq!(pair.b.recv_cq.wait_one(LONG)?.wr_id, 5);
        for wr_id in [6, 7] {
            let wc = pair.a.send_cq.wait_one(LONG)?;
            assert_eq!((wc.wr_id, wc.status), (wr_id, WC_SUCCESS));
        }
        there.check(0, LEN, round + 80);
        here.unmap_all()?;
        there.unmap_all()?;
    }
    pair.ping()
}

#[test]
fn an_atomic_whose_word_or_answer_has_no_page_is_carried_out_once() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&options(64 << 10))?;
    let (here, there) = (Pager::new(&pair.a, PAGE)?, Pager::new(&pair.b, PAGE)?);
    // 300 bytes into a page, so 4 are aligned.
    let (own, word) = (here.mr.sge(4, 8), there.mr.remote(4));
    there.buffer.store_u64(304, 100);
    for round in 0..20 {
        pair.qa.post_send(&SendWr::fetch_add(1, &own, word, 3).signaled())?;
        assert!(here.serve()?.2);
        assert!(there.serve()?.2);
        assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        assert_eq!(here.buffer.load_u64(304), 100 + 3 * round);
        here.unmap_all()?;
        there.unmap_all()?;
    }
    assert_eq!(there.buffer.load_u64(304), 160);
    Ok(())
}

#[test]
fn a_page_that_was_taken_away_is_not_written_and_the_new_one_is() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&options(1 << 20))?;
    let there = Pager::new(&pair.b, 16 * PAGE)?;
    let other = pair.b.vm.memory().alloc_scattered(17 * PAGE)?;
    let len = (16 * PAGE - 300) as u32;
    let wr = [pair.a.mr.sge(0, len)];
    for round in 0..40_u8 {
        fill(&pair.a.buffer, 0, len as usize, round);
        there.map(0, 17, true)?;
        // Some are done when the pages go, some wait.
        for n in 0..8 {
            pair.qa.post_send(&SendWr::write(n, &wr, there.mr.remote(0)).signaled())?;
        }
        there.unmap_all()?;
        // As a kernel that gives the pages to somebody else.
        there.fill(0, len as usize, round + 100);
        other.fill(0);
        there.driver.map_pages(&there.mr, 0, &other, 0..17, true)?;
        for n in 0..8 {
            let wc = pair.a.send_cq.wait_one(LONG)?;
            assert_eq!((wc.wr_id, wc.status), (n, WC_SUCCESS));
        }
        there.check(0, len as usize, round + 100);
        fill(&pair.a.buffer, 0, len as usize, round + 50);
        pair.qa.post_send(&SendWr::write(9, &wr, there.mr.remote(0)).signaled())?;
        assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        check(&other, 300, len as usize, round + 50);
        // Whatever was asked for meanwhile is there.
        while there.driver.take_page_fault(&there.mr)?.is_some() {}
    }
    Ok(())
}

#[test]
fn pages_that_may_only_be_read_are_not_written() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&options(64 << 10))?;
    let there = Pager::new(&pair.b, 4 * PAGE)?;
    there.fill(0, 4000, 5);
    there.map(0, 4, false)?;
    let (own, peer) = ([pair.a.mr.sge(0, 4000)], there.mr.remote(0));
    pair.qa.post_send(&SendWr::read(1, &own, peer).signaled())?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    check(&pair.a.buffer, 0, 4000, 5);
    fill(&pair.a.buffer, 0, 4000, 6);
    pair.qa.post_send(&SendWr::write(2, &own, peer).signaled())?;
    let (first, count, write) = there.fault()?;
    assert_eq!((first, count, write), (0, 2, true));
    there.check(0, 4000, 5);
    there.map(first, count, true)?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    there.check(0, 4000, 6);
    Ok(())
}

#[test]
fn what_waits_for_refused_pages_fails_as_with_memory_that_is_not_there() -> TestResult {
    let options = options(64 << 10);
    let (_daemon, mut pair) = Pair::start(&options)?;
    let (here, there) = (Pager::new(&pair.a, PAGE)?, Pager::new(&pair.b, PAGE)?);
    let plain = [pair.a.mr.sge(0, 8)];
    let own = [here.mr.sge(0, 100)];

    pair.qa.post_send(&SendWr::write(1, &own, pair.b.mr.remote(0)))?;
    here.refuse()?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_LOC_PROT_ERR);
    pair.renew_qps(&options)?;

    let word = there.mr.remote(4);
    for wr in [
        SendWr::write(2, &plain, there.mr.remote(0)),
        SendWr::read(3, &plain, there.mr.remote(0)),
        SendWr::fetch_add(4, &plain[0], word, 1),
    ] {
        pair.qa.post_send(&wr)?;
        there.refuse()?;
        assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_REM_ACCESS_ERR);
        pair.renew_qps(&options)?;
    }

    pair.qb.post_recv(5, &[there.mr.sge(0, 100)])?;
    pair.qa.post_send(&SendWr::send(6, &plain))?;
    there.refuse()?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_REM_OP_ERR);
    let wc = pair.b.recv_cq.wait_one(LONG)?;
    assert_eq!((wc.wr_id, wc.status), (5, WC_LOC_PROT_ERR));
    pair.renew_qps(&options)?;

    // The MR itself is as it was.
    pair.qa.post_send(&SendWr::write(7, &plain, there.mr.remote(0)).signaled())?;
    there.serve()?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    pair.ping()
}

#[test]
fn an_mr_of_every_address_takes_pages_anywhere() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&options(64 << 10))?;
    let b = &pair.b;
    let mr = b.driver.reg_odp_mr(&b.pd, 0, ODP_ALL, 0, access::ALL)?;
    let page = b.vm.memory().alloc_contiguous(2 * PAGE)?;
    fill(&pair.a.buffer, 0, 5000, 9);
    let own = [pair.a.mr.sge(0, 5000)];
    for at in [0, 0x1000, 0x7fff_ffff_e000, 1 << 55, u64::MAX - 8191] {
        page.fill(0);
        pair.qa.post_send(&SendWr::write(1, &own, (at, mr.rkey)).signaled())?;
        let (first, count, write) = loop {
            if let Some(fault) = pair.b.driver.take_page_fault(&mr)? {
                break fault;
            }
        };
        assert_eq!((first, count, write), (at >> 12, 2, true));
        pair.b.driver.map_pages(&mr, first, &page, 0..2, true)?;
        assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS, "at {at:#x}");
        check(&page, 0, 5000, 9);
        pair.b.driver.unmap_pages(&mr, first, count)?;
    }
    // All at once, whatever is there.
    pair.b.driver.map_pages(&mr, 77, &page, 0..2, true)?;
    pair.b.driver.unmap_pages(&mr, 0, 1 << 52)?;
    pair.qa.post_send(&SendWr::write(2, &own, (77 << 12, mr.rkey)).signaled())?;
    assert_eq!(pair.a.send_cq.poll_one(), None);
    let event = || pair.b.driver.next_async_event(LONG);
    while event()?.ok_or("no event")?.number.get() != mr.number {}
    pair.b.driver.dereg_mr(&mr)?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_REM_ACCESS_ERR, "its MR is gone");
    Ok(())
}

#[test]
fn windows_datagrams_and_unreliable_connections_use_memory_on_demand() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let mut pair = Pair::new(&daemon, 0, &options(64 << 10))?;
    let (here, there) = (Pager::new(&pair.a, PAGE)?, Pager::new(&pair.b, 4 * PAGE)?);
    let mw = pair.b.driver.alloc_mw(&pair.b.pd, MW_TYPE_1)?;
    let key = mw.with_tag(mw.rkey as u8 + 1);
    let args = bind_args(&there.mr, 5000, 3000, access::REMOTE_WRITE);
    pair.qb.post_send(&SendWr::bind_mw(1, key, args).signaled())?;
    assert_eq!(pair.b.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    fill(&pair.a.buffer, 0, 3000, 3);
    let peer = (there.mr.iova + 5000, key);
    pair.qa.post_send(&SendWr::write(2, &[pair.a.mr.sge(0, 3000)], peer).signaled())?;
    there.serve()?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    there.check(5000, 3000, 3);

    // What a UC QP sends may wait; what it has no page for at the peer is lost, and asked for.
    let uc = QpOptions { qp_type: QP_TYPE_UC, ..QpOptions::default() };
    let (mut qa, mut qb) = (pair.a.qp(&uc)?, pair.b.qp(&uc)?);
    connect_rc(&mut qa, &mut qb, &RcOptions::default())?;
    here.fill(0, 2000, 4);
    let own = [here.mr.sge(0, 2000)];
    let wr = SendWr::write(3, &own, there.mr.remote(12_000)).signaled();
    qa.post_send(&wr)?;
    here.serve()?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    there.serve()?;
    qa.post_send(&wr)?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    there.check(12_000, 2000, 4);
    Ok(())
}

#[test]
fn pages_come_and_go_under_traffic_and_every_message_arrives() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&options(64 << 10))?;
    let there = Pager::new(&pair.b, 8 * PAGE)?;
    let (ended, arrived) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| -> TestResult {
        let pager = scope.spawn(|| -> TestResult {
            let (mut round, mut served_at) = (0, u64::MAX);
            while !ended.load(Ordering::Acquire) {
                let now = arrived.load(Ordering::Acquire);
                if let Some((first, count, write)) = there.driver.take_page_fault(&there.mr)? {
                    there.map(first, count, write)?;
                    served_at = now;
                }
                // The message that waited has its chance first.
                if served_at != now {
                    round += 1;
                    there.driver.unmap_pages(&there.mr, round % 8, 1)?;
                }
            }
            Ok(())
        });
        let traffic = || -> TestResult {
            for round in 0..200_u8 {
                fill(&pair.a.buffer, 0, 30_000, round);
                let sges = [pair.a.mr.sge(0, 30_000)];
                pair.qa.post_send(&SendWr::write(1, &sges, there.mr.remote(0)).signaled())?;
                let wc = pair.a.send_cq.wait_one(LONG)?;
                assert_eq!((wc.wr_id, wc.status), (1, WC_SUCCESS));
                // The pages are the same ones each time.
                there.check(0, 30_000, round);
                arrived.fetch_add(1, Ordering::Release);
            }
            Ok(())
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(traffic));
        ended.store(true, Ordering::Release);
        pager.join().map_err(|_| "the pager panicked")??;
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    assert_eq!(pair.a.send_cq.poll_one(), None);
    Ok(())
}
