// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Extended reliable connections: one initiator reaches all SRQs of the peer's domain.

use front_end::abi::control::*;
use front_end::abi::event::EVENT_QP_REQ_ERR;
use front_end::abi::ring::*;
use front_end::{Pd, Qp, QpOptions, RcOptions, SendWr, Srq, Status, access, connect_rc};

use crate::harness::{Bystander, LONG, Side, TestDaemon, TestResult, check, fill, refused};

/// An initiator at `a`, a target at `b` with a domain and two SRQs.
struct Xrc {
    a: Side,
    b: Side,
    ini: Qp,
    tgt: Qp,
    xrcdn: u32,
    srqs: [Srq; 2],
    pds: [Pd; 2],
}

fn options(qp_type: u8, xrcdn: u32) -> QpOptions {
    let sq_entries = if qp_type == QP_TYPE_XRC_INI { 64 } else { 0 };
    QpOptions { qp_type, xrcdn, sq_entries, rq_entries: 0, ..QpOptions::default() }
}

impl Xrc {
    fn new(daemon: &TestDaemon, rc: &RcOptions) -> TestResult<Self> {
        let a = Side::new(daemon.vm(0)?, 65_536, 256)?;
        let b = Side::new(daemon.vm(1)?, 65_536, 256)?;
        let xrcdn = b.driver.alloc_xrcd()?;
        let other = b.driver.alloc_pd()?;
        let srq = |pd: &Pd| b.driver.create_srq_of(pd, (64, 4, 0), (xrcdn, b.recv_cq.number()));
        let srqs = [srq(&b.pd)?, srq(&other)?];
        let pds = [b.pd, other];
        let mut ini = a.qp(&options(QP_TYPE_XRC_INI, 0))?;
        let mut tgt = b.qp(&options(QP_TYPE_XRC_TGT, xrcdn))?;
        connect_rc(&mut ini, &mut tgt, rc)?;
        Ok(Self { a, b, ini, tgt, xrcdn, srqs, pds })
    }

    fn start() -> TestResult<(TestDaemon, Self)> {
        let daemon = TestDaemon::start(2)?;
        let xrc = Self::new(&daemon, &RcOptions::default())?;
        Ok((daemon, xrc))
    }

    fn done(&mut self, wr: &SendWr<'_>) -> TestResult<u8> {
        self.ini.post_send(&wr.signaled())?;
        Ok(self.a.send_cq.wait_one(LONG)?.status)
    }
}

#[test]
fn messages_go_to_the_srq_that_they_name() -> TestResult {
    let (_daemon, mut xrc) = Xrc::start()?;
    let other_mr = xrc.b.driver.reg_mr(&xrc.pds[1], &xrc.b.buffer, access::ALL)?;
    let srqns = [xrc.srqs[0].number(), xrc.srqs[1].number()];
    for round in 0..100_u64 {
        let which = (round % 2) as usize;
        let mr = [xrc.b.mr, other_mr][which];
        let at = 1000 + 10 * round;
        xrc.srqs[which].post_recv(round, &[mr.sge(at, 900)])?;
        fill(&xrc.a.buffer, 0, 800, round as u8);
        let from = [xrc.a.mr.sge(0, 800)];
        let wr = SendWr::send(7, &from).with_imm(round as u32).to_srq(srqns[which]);
        assert_eq!(xrc.done(&wr)?, WC_SUCCESS);
        let wc = xrc.b.recv_cq.wait_one(LONG)?;
        assert_eq!((wc.wr_id, wc.status, wc.byte_len, wc.imm), (round, 0, 800, round as u32));
        assert_eq!((wc.opcode, wc.qpn), (WC_OP_RECV, xrc.tgt.number()));
        check(&xrc.b.buffer, at as usize, 800, round as u8);
    }
    Ok(())
}

#[test]
fn keys_are_those_of_the_srqs_pd() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let rc = RcOptions { access: access::ALL | access::REMOTE_ATOMIC, ..RcOptions::default() };
    let mut xrc = Xrc::new(&daemon, &rc)?;
    let rights = access::ALL | access::REMOTE_ATOMIC;
    let other = xrc.b.driver.reg_mr(&xrc.pds[1], &xrc.b.buffer, rights)?;
    let srqns = [xrc.srqs[0].number(), xrc.srqs[1].number()];
    fill(&xrc.a.buffer, 0, 4000, 3);
    let from = [xrc.a.mr.sge(0, 4000)];
    let back = [xrc.a.mr.sge(8000, 4000)];
    for (mr, srqn) in [(xrc.b.mr, srqns[0]), (other, srqns[1])] {
        let write = SendWr::write(1, &from, mr.remote(128)).to_srq(srqn);
        assert_eq!(xrc.done(&write)?, WC_SUCCESS);
        let read = SendWr::read(2, &back, mr.remote(128)).to_srq(srqn);
        assert_eq!(xrc.done(&read)?, WC_SUCCESS);
        check(&xrc.a.buffer, 8000, 4000, 3);
    }
    let old = xrc.a.mr.sge(16_000, 8);
    xrc.b.buffer.store_u64(0, 40);
    let add = SendWr::fetch_add(3, &old, other.remote(0), 2).to_srq(srqns[1]);
    assert_eq!(xrc.done(&add)?, WC_SUCCESS);
    assert_eq!((xrc.a.buffer.load_u64(16_000), xrc.b.buffer.load_u64(0)), (40, 42));
    let wrong = SendWr::write(4, &from, xrc.b.mr.remote(0)).to_srq(srqns[1]);
    assert_eq!(xrc.done(&wrong)?, WC_REM_ACCESS_ERR);
    Ok(())
}

#[test]
fn an_srq_that_the_domain_does_not_have_is_an_invalid_request() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    for case in 0..4 {
        let mut xrc = Xrc::new(&daemon, &RcOptions::default())?;
        let stranger = xrc.b.driver.create_srq(&xrc.b.pd, 16, 1, 0)?;
        let foreign_domain = xrc.b.driver.alloc_xrcd()?;
        let cqn = xrc.b.recv_cq.number();
        let foreign = xrc.b.driver.create_srq_of(&xrc.b.pd, (16, 1, 0), (foreign_domain, cqn))?;
        let srqn = [0, u32::MAX, stranger.number(), foreign.number()][case];
        assert_eq!(xrc.done(&SendWr::send(1, &[]).to_srq(srqn))?, WC_REM_INV_REQ_ERR);
        let event = xrc.b.driver.next_async_event(LONG)?.expect("an event");
        let wanted = (EVENT_QP_REQ_ERR, xrc.tgt.number());
        assert_eq!((event.event.get(), event.number.get()), wanted, "case {case}");
        assert_eq!(xrc.b.driver.query_qp(xrc.tgt.number())?.qp_state, QP_STATE_ERR);
    }
    bystander.check()
}

#[test]
fn an_empty_srq_makes_the_initiator_wait_until_there_is_a_wqe() -> TestResult {
    let (_daemon, mut xrc) = Xrc::start()?;
    let srqn = xrc.srqs[0].number();
    for wr_id in 0..10 {
        xrc.ini.post_send(&SendWr::send(wr_id, &[]).signaled().to_srq(srqn))?;
        assert_eq!(xrc.a.send_cq.poll_one(), None);
        xrc.srqs[0].post_recv(wr_id, &[])?;
        assert_eq!(xrc.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        assert_eq!(xrc.b.recv_cq.wait_one(LONG)?.wr_id, wr_id);
    }
    Ok(())
}

#[test]
fn domains_end_when_nothing_is_in_them_and_srqs_leave_them() -> TestResult {
    let (_daemon, mut xrc) = Xrc::start()?;
    let driver = xrc.b.driver.clone();
    refused(driver.dealloc_xrcd(xrc.xrcdn), Status::Busy);
    refused(driver.dealloc_xrcd(4711), Status::NoObject);
    let gone = xrc.srqs[0].number();
    driver.destroy_srq(&xrc.srqs[0])?;
    assert_eq!(xrc.done(&SendWr::send(1, &[]).to_srq(gone))?, WC_REM_INV_REQ_ERR);
    driver.destroy_qp(&xrc.tgt)?;
    refused(driver.dealloc_xrcd(xrc.xrcdn), Status::Busy);
    driver.destroy_srq(&xrc.srqs[1])?;
    driver.dealloc_xrcd(xrc.xrcdn)?;
    assert!(driver.query_device()?.max_xrcd.get() > 0);
    Ok(())
}

#[test]
fn requests_that_mix_up_the_halves_are_refused() -> TestResult {
    let (_daemon, xrc) = Xrc::start()?;
    let b = &xrc.b;
    let try_it = |change: fn(&mut CreateQpRequest, u32), qp_type: u8, xrcdn: u32| {
        let options = options(qp_type, xrcdn);
        let mut prepared = b.driver.prepare_qp(&b.pd, &b.send_cq, &b.recv_cq, &options)?;
        change(&mut prepared.request, xrc.srqs[0].number());
        b.driver.create_qp_from(prepared).map(|qp| qp.number())
    };
    let (ini, tgt, d) = (QP_TYPE_XRC_INI, QP_TYPE_XRC_TGT, xrc.xrcdn);
    refused(try_it(|_, _| {}, tgt, 0), Status::Invalid);
    refused(try_it(|_, _| {}, tgt, 4711), Status::NoObject);
    refused(try_it(|_, _| {}, ini, d), Status::Invalid);
    refused(try_it(|_, _| {}, QP_TYPE_RC, d), Status::Invalid);
    refused(try_it(|r, n| r.srqn = n.into(), tgt, d), Status::Invalid);
    refused(try_it(|r, n| r.srqn = n.into(), ini, 0), Status::Invalid);
    refused(try_it(|r, _| r.sq_entries = 1.into(), tgt, d), Status::Invalid);
    refused(try_it(|r, _| r.rq_entries = 1.into(), ini, 0), Status::Invalid);
    // No room for the SRQ's number behind what else is in a slot.
    refused(try_it(|r, _| r.max_inline = 96.into(), ini, 0), Status::Invalid);
    // Targets need no CQ and no PD, initiators no receive CQ.
    let free = try_it(|r, _| (r.pdn, r.send_cqn, r.recv_cqn) = Default::default(), tgt, d)?;
    assert_ne!(free, 0);
    try_it(|r, _| r.recv_cqn = 0.into(), ini, 0)?;
    let cqn = xrc.b.recv_cq.number();
    let srq = |xrcdn, cqn| {
        xrc.b.driver.create_srq_of(&xrc.b.pd, (16, 1, 0), (xrcdn, cqn)).map(|srq| srq.number())
    };
    refused(srq(4711, cqn), Status::NoObject);
    refused(srq(d, 4711), Status::NoObject);
    Ok(())
}
