// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What kernels register memory with: ALLOC_MR, REG_MR, LOCAL_INV, SEND_WITH_INV, LOCAL_DMA_LKEY; and
//! REREG_MR, zero-based MRs.

use front_end::abi::control::*;
use front_end::abi::ring::*;
use front_end::{FastMr, Mr, PageTables, QpOptions, SendWr, Status, access};

use crate::harness::{
    Bystander, LONG, Pair, PairOptions, TestDaemon, TestResult, check, fill, refused,
};

fn kernel() -> PairOptions {
    PairOptions {
        qp: QpOptions { flags: QP_FLAG_KERNEL, ..QpOptions::default() },
        ..PairOptions::default()
    }
}

/// The status of a work request of `a`.
fn done(pair: &mut Pair, wr: &SendWr<'_>) -> TestResult<u8> {
    pair.qa.post_send(&wr.signaled())?;
    let wc = pair.a.send_cq.wait_one(LONG)?;
    assert_eq!(wc.wr_id, wr.wr_id);
    Ok(wc.status)
}

/// Registers bytes 1000 to 20000 of `b`'s buffer by a work request of `b`, with tag 7.
fn registered(pair: &mut Pair) -> TestResult<(FastMr, Mr)> {
    let fast = pair.b.driver.alloc_mr(&pair.b.pd, 16)?;
    let args = fast.list_range(&pair.b.buffer, 1000..20_000, access::ALL);
    let (key, iova) = (fast.with_tag(7), 0x1234_5678_9000);
    pair.qb.post_send(&SendWr::reg_mr(1, key, iova, args).signaled())?;
    let wc = pair.b.send_cq.wait_one(LONG)?;
    assert_eq!((wc.status, wc.opcode), (WC_SUCCESS, WC_OP_REG_MR));
    let mr = Mr { number: fast.number, lkey: key, rkey: key, iova, length: 19_000 };
    Ok((fast, mr))
}

#[test]
fn memory_comes_behind_a_key_by_a_work_request_and_goes_by_another() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&kernel())?;
    let (fast, mr) = registered(&mut pair)?;
    fill(&pair.a.buffer, 0, 19_000, 3);
    let from = [pair.a.mr.sge(0, 19_000)];
    assert_eq!(done(&mut pair, &SendWr::write(2, &from, mr.remote(0)))?, WC_SUCCESS);
    check(&pair.b.buffer, 1000, 19_000, 3);
    let back = [pair.a.mr.sge(50_000, 19_000)];
    assert_eq!(done(&mut pair, &SendWr::read(3, &back, mr.remote(0)))?, WC_SUCCESS);
    check(&pair.a.buffer, 50_000, 19_000, 3);
    // As a local key, in a SEND of `b`'s.
    pair.qa.post_recv(4, &[pair.a.mr.sge(100_000, 500)])?;
    pair.qb.post_send(&SendWr::send(5, &[mr.sge(0, 500)]).signaled())?;
    assert_eq!(pair.b.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    assert_eq!(pair.a.recv_cq.wait_one(LONG)?.byte_len, 500);
    // Gone, and there again under another tag.
    for tag in 8..30 {
        let before = fast.with_tag(tag - 1);
        pair.qb.post_send(&SendWr::local_inv(6, before).signaled())?;
        let args = fast.list_range(&pair.b.buffer, 0..4096, access::ALL);
        pair.qb.post_send(&SendWr::reg_mr(7, fast.with_tag(tag), 0, args).signaled())?;
        let wcs = pair.b.send_cq.poll_for(2, LONG)?;
        assert!(wcs.iter().all(|wc| wc.is_success()), "{wcs:?}");
        assert_eq!(wcs[0].opcode, WC_OP_LOCAL_INV);
        let now = (10, fast.with_tag(tag));
        assert_eq!(done(&mut pair, &SendWr::write(8, &from[..0], now))?, WC_SUCCESS);
        let few = [pair.a.mr.sge(0, 64)];
        assert_eq!(done(&mut pair, &SendWr::write(9, &few, now))?, WC_SUCCESS);
    }
    let few = [pair.a.mr.sge(0, 64)];
    let old = SendWr::write(10, &few, (10, fast.with_tag(28)));
    assert_eq!(done(&mut pair, &old)?, WC_REM_ACCESS_ERR);
    pair.b.driver.dereg_fast_mr(&fast)?;
    Ok(())
}

#[test]
fn a_send_takes_a_key_of_the_peer_away_before_its_completion_there() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&kernel())?;
    for round in 0..20 {
        let (fast, mr) = registered(&mut pair)?;
        pair.qb.post_recv(11, &[pair.b.mr.sge(100_000, 200)])?;
        let from = [pair.a.mr.sge(0, 100)];
        let write = SendWr::write(1, &from, mr.remote(0));
        assert_eq!(done(&mut pair, &write)?, WC_SUCCESS);
        assert_eq!(done(&mut pair, &SendWr::send_with_inv(2, &from, mr.rkey))?, WC_SUCCESS);
        let wc = pair.b.recv_cq.wait_one(LONG)?;
        assert_eq!((wc.status, wc.flags & CQE_WITH_INV), (WC_SUCCESS, CQE_WITH_INV));
        assert_eq!((wc.byte_len, wc.invalidated()), (100, mr.rkey));
        if round == 19 {
            assert_eq!(done(&mut pair, &write)?, WC_REM_ACCESS_ERR);
        }
        pair.b.driver.dereg_fast_mr(&fast)?;
    }
    Ok(())
}

#[test]
fn a_send_that_may_not_take_a_key_away_fails_at_both_ends() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    for which in 0..3 {
        let mut pair = Pair::new(&daemon, 0, &kernel())?;
        let (fast, mr) = registered(&mut pair)?;
        let key = match which {
            0 => 0xdead_beef,
            // With another tag than it has; of an MR that is not for this.
            1 => fast.with_tag(9),
            _ => pair.b.mr.rkey,
        };
        pair.qb.post_recv(11, &[pair.b.mr.sge(100_000, 200)])?;
        let from = [pair.a.mr.sge(0, 100)];
        let status = done(&mut pair, &SendWr::send_with_inv(2, &from, key))?;
        assert_eq!(status, WC_REM_ACCESS_ERR, "case {which}");
        assert_eq!(pair.b.recv_cq.wait_one(LONG)?.status, WC_LOC_ACCESS_ERR);
        let _ = mr;
        bystander.check()?;
    }
    Ok(())
}

#[test]
fn bad_registrations_end_in_a_bind_error_and_touch_nothing() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    type Spoil = fn(&mut RegMrArgs, &FastMr, &Pair) -> Option<u32>;
    let cases: &[(&str, Spoil)] = &[
        ("no bytes", |a, _, _| {
            a.length = 0.into();
            None
        }),
        ("more bytes than pages", |a, _, _| {
            a.length = 9000.into();
            None
        }),
        ("fewer bytes than pages", |a, _, _| {
            a.length = 100.into();
            None
        }),
        ("bytes without end", |a, _, _| {
            a.length = u64::MAX.into();
            None
        }),
        ("no pages", |a, _, _| {
            a.num_pages = 0.into();
            None
        }),
        ("pages without end", |a, _, _| {
            a.num_pages = u32::MAX.into();
            None
        }),
        ("more pages than the MR takes", |a, _, _| {
            (a.num_pages, a.length) = (17.into(), (17 * 4096).into());
            None
        }),
        ("an offset beyond the first page", |a, _, _| {
            a.offset = 4096.into();
            None
        }),
        ("pages of a byte", |a, _, _| {
            a.page_shift = 0;
            None
        }),
        ("pages of 2^255 bytes", |a, _, _| {
            a.page_shift = 255;
            None
        }),
        ("unknown rights", |a, _, _| {
            a.access = 0x4000_0000.into();
            None
        }),
        ("remote write without local write", |a, _, _| {
            a.access = ACCESS_REMOTE_WRITE.into();
            None
        }),
        ("a page outside guest memory", |_, fast, pair| {
            fast.list().store_u64(0, pair.b.vm.memory().unmapped_address());
            None
        }),
        ("a page that is not aligned", |_, fast, _| {
            fast.list().store_u64(0, fast.list().load_u64(0) + 8);
            None
        }),
        ("a key of nothing", |_, _, _| Some(0xffff_ff00)),
        ("the key of another MR", |_, _, pair| Some(pair.b.mr.lkey)),
        ("LOCAL_DMA_LKEY", |_, _, _| Some(LOCAL_DMA_LKEY)),
    ];
    for (what, spoil) in cases {
        let mut pair = Pair::new(&daemon, 0, &kernel())?;
        let fast = pair.b.driver.alloc_mr(&pair.b.pd, 16)?;
        let mut args = fast.list_range(&pair.b.buffer, 0..8192, access::ALL);
        let key = spoil(&mut args, &fast, &pair).unwrap_or(fast.with_tag(1));
        pair.qb.post_send(&SendWr::reg_mr(1, key, 0, args).signaled())?;
        pair.qb.post_send(&SendWr::send(2, &[]))?;
        let wcs = pair.b.send_cq.poll_for(2, LONG)?;
        let found: Vec<_> = wcs.iter().map(|wc| (wc.wr_id, wc.status)).collect();
        assert_eq!(found, [(1, WC_MW_BIND_ERR), (2, WC_WR_FLUSH_ERR)], "{what}");
        assert_eq!(wcs[0].opcode, WC_OP_REG_MR, "{what}");
    }
    bystander.check()
}

#[test]
fn an_mr_that_has_memory_takes_no_other_and_one_without_has_none_to_lose() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let mut pair = Pair::new(&daemon, 0, &kernel())?;
    let (fast, _) = registered(&mut pair)?;
    let args = fast.list_range(&pair.b.buffer, 0..4096, access::ALL);
    pair.qb.post_send(&SendWr::reg_mr(1, fast.with_tag(8), 0, args))?;
    assert_eq!(pair.b.send_cq.wait_one(LONG)?.status, WC_MW_BIND_ERR);
    for key in [0, 1, u32::MAX] {
        pair.renew_qps(&kernel())?;
        let fast = pair.b.driver.alloc_mr(&pair.b.pd, 4)?;
        let key = if key == 1 { fast.key } else { key };
        pair.qb.post_send(&SendWr::local_inv(1, key))?;
        assert_eq!(pair.b.send_cq.wait_one(LONG)?.status, WC_MW_BIND_ERR);
    }
    // An MR of REG_MR is not for this.
    pair.renew_qps(&kernel())?;
    pair.qa.post_send(&SendWr::local_inv(1, pair.a.mr.lkey))?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_MW_BIND_ERR);
    Ok(())
}

#[test]
fn processes_have_neither_reg_mr_nor_the_key_of_all_memory() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let mut pair = Pair::new(&daemon, 0, &PairOptions::default())?;
    let kernel_pd = pair.a.driver.alloc_pd()?;
    let fast = pair.a.driver.alloc_mr(&kernel_pd, 4)?;
    let args = fast.list_range(&pair.a.buffer, 0..4096, access::ALL);
    let status = done(&mut pair, &SendWr::reg_mr(1, fast.with_tag(1), 0, args))?;
    assert_eq!(status, WC_LOC_QP_OP_ERR);
    // The PD of a process's QP takes no such MR, and that of one no such QP.
    refused(pair.a.driver.alloc_mr(&pair.a.pd, 4), Status::NotPermitted);
    let a = &pair.a;
    let options = QpOptions::default();
    let qp = a.driver.create_qp(&kernel_pd, &a.send_cq, &a.recv_cq, &options);
    refused(qp.map(|qp| qp.number()), Status::NotPermitted);
    pair.renew_qps(&PairOptions::default())?;
    let mut sge = pair.a.mr.sge(0, 64);
    sge.addr = pair.a.buffer.guest_address(0).into();
    sge.lkey = LOCAL_DMA_LKEY.into();
    let remote = pair.b.mr.remote(0);
    assert_eq!(done(&mut pair, &SendWr::write(1, &[sge], remote))?, WC_LOC_PROT_ERR);
    Ok(())
}

#[test]
fn a_kernel_names_all_memory_by_the_local_dma_lkey_and_no_peer_does() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&kernel())?;
    fill(&pair.a.buffer, 0, 4096, 9);
    let mut sge = pair.a.mr.sge(0, 4096);
    sge.addr = pair.a.buffer.guest_address(0).into();
    sge.lkey = LOCAL_DMA_LKEY.into();
    let remote = pair.b.mr.remote(8192);
    assert_eq!(done(&mut pair, &SendWr::write(1, &[sge], remote))?, WC_SUCCESS);
    check(&pair.b.buffer, 8192, 4096, 9);
    let mut into = sge;
    into.addr = pair.a.buffer.guest_address(16_384).into();
    assert_eq!(done(&mut pair, &SendWr::read(2, &[into], remote))?, WC_SUCCESS);
    check(&pair.a.buffer, 16_384, 4096, 9);
    let everywhere = (pair.b.buffer.guest_address(0), LOCAL_DMA_LKEY);
    let status = done(&mut pair, &SendWr::write(3, &[sge], everywhere))?;
    assert_eq!(status, WC_REM_ACCESS_ERR);
    Ok(())
}

#[test]
fn bad_requests_for_fast_mrs_are_refused() -> TestResult {
    let (_daemon, pair) = Pair::start(&kernel())?;
    let driver = &pair.a.driver;
    let most = driver.query_device()?.max_fast_reg_page_list_len.get();
    assert!(most >= 256);
    let list = driver.memory().alloc_scattered(4096)?;
    let good = AllocMrRequest {
        pdn: pair.a.pd.number.into(),
        max_pages: 512.into(),
        list: PageTables::of_buffer(driver.memory(), &list)?.list,
    };
    for max_pages in [0, most + 1, u32::MAX] {
        let request = AllocMrRequest { max_pages: max_pages.into(), ..good };
        refused(driver.alloc_mr_request(&request), Status::Invalid);
    }
    refused(driver.alloc_mr_request(&AllocMrRequest { pdn: 999.into(), ..good }), Status::NoObject);
    let mut nowhere = good;
    nowhere.list.root = driver.memory().unmapped_address().into();
    refused(driver.alloc_mr_request(&nowhere), Status::BadAddress);
    let mut odd = good;
    odd.list.root = 0x1001.into();
    refused(driver.alloc_mr_request(&odd), Status::Invalid);
    let answer = driver.alloc_mr_request(&good)?;
    driver.destroy(CMD_DEREG_MR, answer.mrn.get())?;
    refused(driver.destroy(CMD_DEREG_MR, answer.mrn.get()), Status::NoObject);
    Ok(())
}

#[test]
fn the_array_may_be_scribbled_on_at_any_time() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let mut pair = Pair::new(&daemon, 0, &kernel())?;
    let fast = pair.b.driver.alloc_mr(&pair.b.pd, 16)?;
    let args = fast.list_range(&pair.b.buffer, 0..65_536, access::ALL);
    let pages: Vec<u64> = (0..16).map(|n| fast.list().load_u64(8 * n)).collect();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| -> TestResult {
        let list = fast.list();
        scope.spawn(|| {
            let mut random = crate::harness::Random(77);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let n = random.below(16);
                let value = if random.below(2) == 0 { pages[n] } else { random.next() };
                list.store_u64(8 * n, value);
            }
        });
        let result = (|| -> TestResult {
            for tag in 0..60 {
                let key = fast.with_tag(tag);
                pair.qb.post_send(&SendWr::reg_mr(1, key, 0, args).signaled())?;
                let wc = pair.b.send_cq.wait_one(LONG)?;
                if wc.status == WC_SUCCESS {
                    pair.qb.post_send(&SendWr::local_inv(2, key).signaled())?;
                    assert_eq!(pair.b.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
                } else {
                    assert_eq!(wc.status, WC_MW_BIND_ERR);
                    pair.renew_qps(&kernel())?;
                }
            }
            Ok(())
        })();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        result
    })?;
    bystander.check()
}

#[test]
fn re_registration_changes_memory_rights_and_pd() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let mut pair = Pair::new(&daemon, 0, &PairOptions::default())?;
    let driver = pair.b.driver.clone();
    let other = driver.memory().alloc_scattered(65_536)?;
    let mr = driver.reg_mr(&pair.b.pd, &other, access::ALL)?;
    fill(&pair.a.buffer, 0, 5000, 1);
    let from = [pair.a.mr.sge(0, 5000)];
    // Other memory.
    let third = driver.memory().alloc_scattered(32_768)?;
    let mr = driver.rereg_mr(&mr, Some(&third), None, None)?;
    assert_eq!(done(&mut pair, &SendWr::write(1, &from, mr.remote(100)))?, WC_SUCCESS);
    check(&third, 100, 5000, 1);
    assert!(other.read(0, 65_536).iter().all(|byte| *byte == 0));
    // Fewer rights.
    let mr = driver.rereg_mr(&mr, None, None, Some(access::REMOTE_READ))?;
    let back = [pair.a.mr.sge(10_000, 5000)];
    assert_eq!(done(&mut pair, &SendWr::read(2, &back, mr.remote(100)))?, WC_SUCCESS);
    check(&pair.a.buffer, 10_000, 5000, 1);
    assert_eq!(done(&mut pair, &SendWr::write(3, &from, mr.remote(0)))?, WC_REM_ACCESS_ERR);
    // Another PD, and all of it together.
    pair.renew_qps(&PairOptions::default())?;
    let pd = driver.alloc_pd()?;
    let mr = driver.rereg_mr(&mr, Some(&other), Some(&pd), Some(access::ALL))?;
    assert_eq!(done(&mut pair, &SendWr::write(4, &from, mr.remote(0)))?, WC_REM_ACCESS_ERR);
    refused(driver.dealloc_pd(&pd), Status::Busy);
    pair.renew_qps(&PairOptions::default())?;
    let mr = driver.rereg_mr(&mr, None, Some(&pair.b.pd), None)?;
    driver.dealloc_pd(&pd)?;
    assert_eq!(done(&mut pair, &SendWr::write(5, &from, mr.remote(7)))?, WC_SUCCESS);
    check(&other, 7, 5000, 1);
    driver.dereg_mr(&mr)?;
    Ok(())
}

#[test]
fn bad_re_registrations_are_refused_and_leave_the_mr_as_it_was() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&kernel())?;
    let driver = pair.b.driver.clone();
    let pages = PageTables::of_buffer(driver.memory(), &pair.b.buffer)?;
    let good = ReregMrRequest {
        mrn: pair.b.mr.number.into(),
        flags: (REREG_TRANSLATION | REREG_ACCESS).into(),
        access: access::ALL.into(),
        length: (pair.b.buffer.len() as u64).into(),
        pages: pages.list,
        ..ReregMrRequest::default()
    };
    let fast = driver.alloc_mr(&pair.b.pd, 4)?;
    let dma = driver.get_dma_mr(&pair.b.pd, access::ALL)?;
    let mut odd = good;
    odd.pages.page_shift = 11;
    for (bad, status) in [
        (ReregMrRequest { flags: 0.into(), ..good }, Status::Invalid),
        (ReregMrRequest { flags: 8.into(), ..good }, Status::Invalid),
        (ReregMrRequest { flags: u32::MAX.into(), ..good }, Status::Invalid),
        (ReregMrRequest { mrn: 4711.into(), ..good }, Status::NoObject),
        (ReregMrRequest { mrn: fast.number.into(), ..good }, Status::Invalid),
        (ReregMrRequest { mrn: dma.number.into(), ..good }, Status::Invalid),
        (ReregMrRequest { flags: REREG_PD.into(), pdn: 999.into(), ..good }, Status::NoObject),
        (ReregMrRequest { access: (1 << 30).into(), ..good }, Status::Invalid),
        (ReregMrRequest { access: ACCESS_REMOTE_ATOMIC.into(), ..good }, Status::Invalid),
        (ReregMrRequest { length: 0.into(), ..good }, Status::Invalid),
        (ReregMrRequest { length: u64::MAX.into(), ..good }, Status::Invalid),
        (ReregMrRequest { offset: 4096.into(), ..good }, Status::Invalid),
        (odd, Status::Invalid),
    ] {
        refused(driver.rereg_mr_request(&bad), status);
    }
    pair.ping()
}

#[test]
fn addresses_of_a_zero_based_mr_count_from_zero() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let rights = access::ALL | access::ZERO_BASED;
    let mr =
        pair.b.driver.reg_mr_part(&pair.b.pd, &pair.b.buffer, 100..9000, 0xdead_0000, rights)?;
    fill(&pair.a.buffer, 0, 300, 5);
    let from = [pair.a.mr.sge(0, 300)];
    assert_eq!(done(&mut pair, &SendWr::write(1, &from, (50, mr.rkey)))?, WC_SUCCESS);
    check(&pair.b.buffer, 150, 300, 5);
    let beyond = SendWr::write(2, &from, (8700, mr.rkey));
    assert_eq!(done(&mut pair, &beyond)?, WC_REM_ACCESS_ERR);
    Ok(())
}
