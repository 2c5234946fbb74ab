// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! RESIZE_SRQ: what is posted goes along, whoever takes it meanwhile, and bad requests change nothing.

use front_end::abi::control::*;
use front_end::abi::ring::*;
use front_end::{PageTables, PostError, QpOptions, RcOptions, SendWr, Srq, Status, connect_rc};

use crate::harness::{LONG, Side, TestDaemon, TestResult, refused};

const MAX_SGE: u32 = 2;

/// Two sides, and an SRQ at the second.
fn start(entries: u32) -> TestResult<(TestDaemon, Side, Side, Srq)> {
    let daemon = TestDaemon::start(2)?;
    let a = Side::new(daemon.vm(0)?, 65_536, 1024)?;
    let b = Side::new(daemon.vm(1)?, 65_536, 1024)?;
    let srq = b.driver.create_srq(&b.pd, entries, MAX_SGE, 0)?;
    Ok((daemon, a, b, srq))
}

#[test]
fn posted_requests_keep_their_order_through_larger_and_smaller_rings() -> TestResult {
    let (_daemon, mut a, mut b, mut srq) = start(16)?;
    let shared = QpOptions { srqn: Some(srq.number()), ..QpOptions::default() };
    let (mut qa, mut qb) = (a.qp(&QpOptions::default())?, b.qp(&shared)?);
    connect_rc(&mut qa, &mut qb, &RcOptions::default())?;
    let (mut posted, mut taken) = (0, 0);
    for entries in [16, 64, 8, 8, 256, 16, 1024, 4, 16] {
        // Full before, or nearly empty; what is left fits into the next one.
        while srq.post_recv(posted, &[b.mr.sge(64 * (posted % 512), 64)]).is_ok() {
            posted += 1;
        }
        assert_eq!(srq.post_recv(0, &[]), Err(PostError::Full));
        let keep = u64::from(entries).min(posted - taken);
        while posted - taken > keep {
            let from = [a.mr.sge(0, 8)];
            qa.post_send(&SendWr::send(1, &from).signaled())?;
            assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
            assert_eq!(b.recv_cq.wait_one(LONG)?.wr_id, taken, "in order");
            taken += 1;
        }
        b.driver.resize_srq(&mut srq, entries, MAX_SGE)?;
        assert_eq!(srq.taken(), taken as u32, "the count goes on");
        assert_eq!(b.driver.query_srq(srq.number())?.entries.get(), entries);
    }
    while taken < posted {
        qa.post_send(&SendWr::send(1, &[a.mr.sge(0, 8)]).signaled())?;
        assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        assert_eq!(b.recv_cq.wait_one(LONG)?.wr_id, taken, "in order");
        taken += 1;
    }
    Ok(())
}

#[test]
fn rings_change_under_messages_and_none_is_lost_or_taken_twice() -> TestResult {
    const MESSAGES: u64 = 4000;
    let (_daemon, a, mut b, mut srq) = start(32)?;
    let shared = QpOptions { srqn: Some(srq.number()), ..QpOptions::default() };
    let (mut qa, mut qb) = (a.qp(&QpOptions::default())?, b.qp(&shared)?);
    connect_rc(&mut qa, &mut qb, &RcOptions::default())?;
    std::thread::scope(|scope| -> TestResult {
        let sender = scope.spawn(move || -> TestResult {
            let mut a = a;
            for n in 0..MESSAGES {
                qa.post_send(&SendWr::send(n, &[a.mr.sge(0, 8)]).signaled())?;
                assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
            }
            Ok(())
        });
        let (mut posted, mut received) = (0, 0);
        while received < MESSAGES {
            while posted < MESSAGES && posted - received < 30 {
                srq.post_recv(posted, &[b.mr.sge(0, 64)])?;
                posted += 1;
            }
            assert_eq!(b.recv_cq.wait_one(LONG)?.wr_id, received);
            received += 1;
            if received % 40 == 0 {
                let entries = [32, 64, 512][(received / 40 % 3) as usize];
                b.driver.resize_srq(&mut srq, entries, MAX_SGE)?;
            }
        }
        sender.join().map_err(|_| "the sender panicked")?
    })
}

#[test]
fn bad_requests_change_nothing() -> TestResult {
    let (_daemon, a, mut b, mut srq) = start(16)?;
    let stride = WQE_STRIDE_SHIFT_MIN as u8;
    let offset = QP_RINGS_OFFSET;
    let buffer = b.vm.memory().alloc_scattered((offset + (32 << stride)) as usize)?;
    let tables = PageTables::of_buffer(b.vm.memory(), &buffer)?;
    let good = ResizeSrqRequest {
        srqn: srq.number().into(),
        entries: 32.into(),
        offset: offset.into(),
        stride_shift: stride,
        reserved: [0; 3],
        pages: tables.list,
    };
    b.driver.modify_srq(srq.number(), 0)?;
    for n in 0..9 {
        srq.post_recv(n, &[b.mr.sge(0, 64)])?;
    }
    b.driver.modify_srq(srq.number(), 9)?;
    let bad = |change: fn(&mut ResizeSrqRequest)| {
        let mut request = good;
        change(&mut request);
        request
    };
    for (request, status) in [
        (bad(|r| r.srqn = 0x7777.into()), Status::NoObject),
        (bad(|r| r.entries = 0.into()), Status::Invalid),
        (bad(|r| r.entries = 24.into()), Status::Invalid),
        (bad(|r| r.entries = (1 << 31).into()), Status::Invalid),
        (bad(|r| r.entries = 64.into()), Status::Invalid),
        (bad(|r| r.entries = 8.into()), Status::Invalid),
        (bad(|r| r.offset = 0.into()), Status::Invalid),
        (bad(|r| r.offset = 65.into()), Status::Invalid),
        (bad(|r| r.stride_shift = 5), Status::Invalid),
        (bad(|r| r.stride_shift = 12), Status::Invalid),
        (bad(|r| r.pages.depth = 9), Status::Invalid),
        (bad(|r| (r.pages.root, r.pages.depth) = ((1 << 60).into(), 0)), Status::BadAddress),
    ] {
        refused(b.driver.resize_srq_request(&request), status);
    }
    let attr = b.driver.query_srq(srq.number())?;
    assert_eq!((attr.entries.get(), attr.limit.get()), (16, 9));
    let shared = QpOptions { srqn: Some(srq.number()), ..QpOptions::default() };
    let (mut qa, mut qb) = (a.qp(&QpOptions::default())?, b.qp(&shared)?);
    connect_rc(&mut qa, &mut qb, &RcOptions::default())?;
    for n in 0..9 {
        qa.post_send(&SendWr::send(n, &[a.mr.sge(0, 8)]))?;
        assert_eq!(b.recv_cq.wait_one(LONG)?.wr_id, n);
    }
    // A ring whose slots all look posted is the guest's own mistake.
    buffer.fill(1);
    b.driver.resize_srq_request(&good)?;
    qa.post_send(&SendWr::send(9, &[a.mr.sge(0, 8)]))?;
    assert_ne!(b.recv_cq.wait_one(LONG)?.status, WC_SUCCESS);
    Ok(())
}
