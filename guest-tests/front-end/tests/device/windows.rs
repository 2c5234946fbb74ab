// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory windows of both types: bound, used, taken away; and what may not be bound.

use front_end::abi::control::*;
use front_end::abi::ring::*;
use front_end::{Mr, Mw, SendWr, Status, access, bind_args};

use crate::harness::{
    Bystander, LONG, Pair, PairOptions, TestDaemon, TestResult, check, fill, refused,
};

const REMOTE: u32 = access::REMOTE_WRITE | access::REMOTE_READ;

/// The status of a work request of `a`.
fn done(pair: &mut Pair, wr: &SendWr<'_>) -> TestResult<u8> {
    pair.qa.post_send(&wr.signaled())?;
    Ok(pair.a.send_cq.wait_one(LONG)?.status)
}

/// The status of a work request of `b`.
fn at_b(pair: &mut Pair, wr: &SendWr<'_>) -> TestResult<u8> {
    pair.qb.post_send(&wr.signaled())?;
    Ok(pair.b.send_cq.wait_one(LONG)?.status)
}

/// An MR of `b`'s buffer that windows may be bound to.
fn bindable(pair: &Pair) -> TestResult<Mr> {
    Ok(pair.b.driver.reg_mr(&pair.b.pd, &pair.b.buffer, access::LOCAL_WRITE | access::MW_BIND)?)
}

fn window(pair: &Pair, mw_type: u32) -> TestResult<Mw> {
    Ok(pair.b.driver.alloc_mw(&pair.b.pd, mw_type)?)
}

#[test]
fn a_window_shows_its_part_of_an_mr_and_nothing_else() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    for mw_type in [MW_TYPE_1, MW_TYPE_2] {
        let mut pair = Pair::new(&daemon, 0, &PairOptions::default())?;
        let (mr, mw) = (bindable(&pair)?, window(&pair, mw_type)?);
        let key = mw.with_tag(mw.rkey as u8 + 1);
        let bind = SendWr::bind_mw(1, key, bind_args(&mr, 5000, 3000, REMOTE));
        pair.qb.post_send(&bind.signaled())?;
        let wc = pair.b.send_cq.wait_one(LONG)?;
        assert_eq!((wc.status, wc.opcode), (WC_SUCCESS, WC_OP_BIND_MW));
        fill(&pair.a.buffer, 0, 3000, 3);
        let from = [pair.a.mr.sge(0, 3000)];
        let at = mr.iova + 5000;
        assert_eq!(done(&mut pair, &SendWr::write(2, &from, (at, key)))?, WC_SUCCESS);
        check(&pair.b.buffer, 5000, 3000, 3);
        let back = [pair.a.mr.sge(8000, 3000)];
        assert_eq!(done(&mut pair, &SendWr::read(3, &back, (at, key)))?, WC_SUCCESS);
        check(&pair.a.buffer, 8000, 3000, 3);
        // A byte before it, a byte behind it, the old key, and the right it does not have.
        for (addr, rkey) in [(at - 1, key), (at + 1, key), (at, mw.rkey)] {
            let status = done(&mut pair, &SendWr::write(4, &from, (addr, rkey)))?;
            assert_eq!(status, WC_REM_ACCESS_ERR, "type {mw_type}, {addr:#x}, {rkey:#x}");
            // A window of type 2 is the QP's, and another QP has none.
            pair.renew_qps(&PairOptions::default())?;
            if mw_type == MW_TYPE_2 {
                let status = done(&mut pair, &SendWr::write(5, &from, (at, key)))?;
                assert_eq!(status, WC_REM_ACCESS_ERR);
                break;
            }
        }
        pair.b.driver.dealloc_mw(&mw)?;
        pair.b.driver.dereg_mr(&mr)?;
    }
    Ok(())
}

#[test]
fn a_window_of_type_1_is_bound_anew_and_to_nothing() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let mut pair = Pair::new(&daemon, 0, &PairOptions::default())?;
    let (mr, mw) = (bindable(&pair)?, window(&pair, MW_TYPE_1)?);
    let from = [pair.a.mr.sge(0, 100)];
    let mut key = mw.rkey;
    for n in 0..300_u64 {
        let new = key & !KEY_TAG_MASK | (key + 1) & KEY_TAG_MASK;
        let bind = SendWr::bind_mw(1, new, bind_args(&mr, 100 * n, 100, REMOTE));
        assert_eq!(at_b(&mut pair, &bind)?, WC_SUCCESS);
        key = new;
        let at = (mr.iova + 100 * n, key);
        assert_eq!(done(&mut pair, &SendWr::write(2, &from, at))?, WC_SUCCESS);
    }
    let nothing = SendWr::bind_mw(1, mw.with_tag(0), BindMwArgs::default());
    assert_eq!(at_b(&mut pair, &nothing)?, WC_SUCCESS);
    let gone = SendWr::write(3, &from, (mr.iova, mw.with_tag(0)));
    assert_eq!(done(&mut pair, &gone)?, WC_REM_ACCESS_ERR);
    Ok(())
}

#[test]
fn a_window_of_type_2_goes_by_either_invalidate_and_may_count_from_zero() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let mut pair = Pair::new(&daemon, 0, &PairOptions::default())?;
    let (mr, mw) = (bindable(&pair)?, window(&pair, MW_TYPE_2)?);
    let from = [pair.a.mr.sge(0, 100)];
    for n in 1..20_u8 {
        let key = mw.with_tag(n);
        let args = bind_args(&mr, 4096, 200, REMOTE | access::ZERO_BASED);
        assert_eq!(at_b(&mut pair, &SendWr::bind_mw(1, key, args))?, WC_SUCCESS);
        assert_eq!(done(&mut pair, &SendWr::write(2, &from, (100, key)))?, WC_SUCCESS);
        if n % 2 == 0 {
            assert_eq!(at_b(&mut pair, &SendWr::local_inv(3, key))?, WC_SUCCESS);
        } else {
            pair.qb.post_recv(4, &[])?;
            assert_eq!(done(&mut pair, &SendWr::send_with_inv(5, &[], key))?, WC_SUCCESS);
            let wc = pair.b.recv_cq.wait_one(LONG)?;
            assert_eq!((wc.flags & CQE_WITH_INV, wc.invalidated()), (CQE_WITH_INV, key));
        }
    }
    let old = SendWr::write(6, &from, (100, mw.with_tag(19)));
    assert_eq!(done(&mut pair, &old)?, WC_REM_ACCESS_ERR);
    Ok(())
}

#[test]
fn windows_of_an_mr_that_goes_or_changes_show_nothing() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let mut pair = Pair::new(&daemon, 0, &PairOptions::default())?;
    let driver = pair.b.driver.clone();
    let from = [pair.a.mr.sge(0, 100)];
    for dereg in [true, false] {
        let (mr, mw) = (bindable(&pair)?, window(&pair, MW_TYPE_1)?);
        let key = mw.with_tag(9);
        let bind = SendWr::bind_mw(1, key, bind_args(&mr, 0, 4096, REMOTE));
        assert_eq!(at_b(&mut pair, &bind)?, WC_SUCCESS);
        let write = SendWr::write(2, &from, (mr.iova, key));
        assert_eq!(done(&mut pair, &write)?, WC_SUCCESS);
        if dereg {
            driver.dereg_mr(&mr)?;
        } else {
            driver.rereg_mr(&mr, Some(&pair.b.buffer), None, None)?;
        }
        assert_eq!(done(&mut pair, &write)?, WC_REM_ACCESS_ERR, "dereg: {dereg}");
        pair.renew_qps(&PairOptions::default())?;
        driver.dealloc_mw(&mw)?;
    }
    Ok(())
}

/// What is wrong with a bind: the window's type, and the change to a good one.
type Fault = (&'static str, u32, fn(&mut BindMwArgs, &mut u32, &Pair));

const FAULTS: &[Fault] = &[
    ("a key of nothing", MW_TYPE_1, |_, key, _| *key = 0x7777_7700),
    ("the key of an MR", MW_TYPE_1, |_, key, p| *key = p.b.mr.rkey),
    ("key 0", MW_TYPE_2, |_, key, _| *key = 0),
    ("an lkey of nothing", MW_TYPE_1, |a, _, _| a.lkey = 0x7777_7777.into()),
    ("an MR that windows may not be bound to", MW_TYPE_2, |a, _, p| {
        (a.lkey, a.addr) = (p.b.mr.lkey.into(), p.b.mr.iova.into());
    }),
    ("bytes before the MR", MW_TYPE_1, |a, _, _| a.addr = (a.addr.get() - 4097).into()),
    ("more bytes than the MR has", MW_TYPE_2, |a, _, _| a.length = (1 << 40).into()),
    ("an end that wraps", MW_TYPE_1, |a, _, _| a.length = u64::MAX.into()),
    ("local rights", MW_TYPE_1, |a, _, _| a.access = access::LOCAL_WRITE.into()),
    ("unknown rights", MW_TYPE_2, |a, _, _| a.access = (1 << 29).into()),
    ("type 1 counting from zero", MW_TYPE_1, |a, _, _| {
        a.access = (REMOTE | access::ZERO_BASED).into();
    }),
    ("type 2 to nothing", MW_TYPE_2, |a, _, _| a.length = 0.into()),
    ("a window as the MR", MW_TYPE_2, |a, key, _| a.lkey = (*key).into()),
    ("all memory", MW_TYPE_2, |a, _, _| a.lkey = LOCAL_DMA_LKEY.into()),
];

#[test]
fn bad_binds_end_in_a_bind_error() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    for (what, mw_type, spoil) in FAULTS {
        let mut pair = Pair::new(&daemon, 0, &PairOptions::default())?;
        let (mr, mw) = (bindable(&pair)?, window(&pair, *mw_type)?);
        let mut key = mw.with_tag(1);
        let mut args = bind_args(&mr, 4096, 4096, REMOTE);
        spoil(&mut args, &mut key, &pair);
        assert_eq!(at_b(&mut pair, &SendWr::bind_mw(1, key, args))?, WC_MW_BIND_ERR, "{what}");
    }
    bystander.check()
}

#[test]
fn windows_and_qps_of_different_pds_do_not_meet() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let mut pair = Pair::new(&daemon, 0, &PairOptions::default())?;
    let driver = pair.b.driver.clone();
    let other = driver.alloc_pd()?;
    let mr = bindable(&pair)?;
    // A window of another PD.
    let mw = driver.alloc_mw(&other, MW_TYPE_2)?;
    let bind = SendWr::bind_mw(1, mw.with_tag(1), bind_args(&mr, 0, 10, REMOTE));
    assert_eq!(at_b(&mut pair, &bind)?, WC_MW_BIND_ERR);
    refused(driver.dealloc_pd(&other), Status::Busy);
    driver.dealloc_mw(&mw)?;
    // An MR of another PD.
    pair.renew_qps(&PairOptions::default())?;
    let foreign = driver.reg_mr(&other, &pair.b.buffer, access::LOCAL_WRITE | access::MW_BIND)?;
    let mw = window(&pair, MW_TYPE_2)?;
    let bind = SendWr::bind_mw(1, mw.with_tag(1), bind_args(&foreign, 0, 10, REMOTE));
    assert_eq!(at_b(&mut pair, &bind)?, WC_MW_BIND_ERR);
    // Stores through an MR without local write.
    pair.renew_qps(&PairOptions::default())?;
    let readable = driver.reg_mr(&pair.b.pd, &pair.b.buffer, access::MW_BIND)?;
    let bind = SendWr::bind_mw(1, mw.with_tag(2), bind_args(&readable, 0, 10, REMOTE));
    assert_eq!(at_b(&mut pair, &bind)?, WC_MW_BIND_ERR);
    pair.renew_qps(&PairOptions::default())?;
    let read = bind_args(&readable, 0, 10, access::REMOTE_READ);
    assert_eq!(at_b(&mut pair, &SendWr::bind_mw(1, mw.with_tag(3), read))?, WC_SUCCESS);
    // A window of type 2 that is bound is not bound anew.
    let again = SendWr::bind_mw(1, mw.with_tag(4), read);
    assert_eq!(at_b(&mut pair, &again)?, WC_MW_BIND_ERR);
    // A window is no local key.
    pair.renew_qps(&PairOptions::default())?;
    let mut sge = pair.b.mr.sge(0, 8);
    sge.lkey = mw.with_tag(3).into();
    let remote = pair.a.mr.remote(0);
    assert_eq!(at_b(&mut pair, &SendWr::write(1, &[sge], remote))?, WC_LOC_PROT_ERR);
    Ok(())
}

#[test]
fn bad_requests_for_windows_are_refused() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let pd = driver.alloc_pd()?;
    for mw_type in [0, 3, u32::MAX] {
        refused(driver.alloc_mw(&pd, mw_type), Status::Invalid);
    }
    let no_pd = front_end::Pd { number: pd.number + 5 };
    refused(driver.alloc_mw(&no_pd, MW_TYPE_1), Status::NoObject);
    let mw = driver.alloc_mw(&pd, MW_TYPE_1)?;
    driver.dealloc_mw(&mw)?;
    refused(driver.dealloc_mw(&mw), Status::NoObject);
    assert!(driver.query_device()?.max_mw.get() > 0);
    Ok(())
}
