// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work requests that are malformed, or name memory that they may not touch: the completion error
//! that IBA names, the QP in ERR, and nobody else disturbed.

use front_end::abi::control::{
    QP_ATTR_ACCESS_FLAGS, QP_FLAG_KERNEL, QP_STATE_ERR, QP_STATE_RTS, QpAttr,
};
use front_end::abi::event::{EVENT_QP_ACCESS_ERR, EVENT_QP_REQ_ERR};
use front_end::abi::ring::*;
use front_end::{QpOptions, RcOptions, SendWr, Status, access};
use zerocopy::IntoBytes;

use crate::harness::{
    Bystander, LONG, Pair, PairOptions, Side, TestDaemon, TestResult, check, fill, flushed, refused,
};

/// A WRITE of 64 bytes as it stands in a slot.
fn wqe(pair: &Pair) -> Vec<u8> {
    let (remote_addr, rkey) = pair.b.mr.remote(0);
    let head = SendWqe {
        opcode: WR_RDMA_WRITE,
        flags: SEND_SIGNALED,
        num_sge: 1,
        wr_id: 7.into(),
        remote_addr: remote_addr.into(),
        rkey: rkey.into(),
        ..SendWqe::default()
    };
    [head.as_bytes(), pair.a.mr.sge(0, 64).as_bytes()].concat()
}

/// What is wrong with it: a name, the status that must come, and the change to a good WQE.
type Fault = (&'static str, u8, fn(&mut Vec<u8>, &Pair));

fn put_sge(wqe: &mut Vec<u8>, sge: Sge) {
    wqe.truncate(WQE_SEND_DATA as usize);
    wqe.extend_from_slice(sge.as_bytes());
}

const LOCAL_FAULTS: &[Fault] = &[
    ("an unknown opcode", WC_LOC_QP_OP_ERR, |w, _| w[0] = 0x77),
    ("the last opcode", WC_LOC_QP_OP_ERR, |w, _| w[0] = 0xff),
    ("an opcode of a later version", WC_LOC_QP_OP_ERR, |w, _| w[0] = 10),
    ("a window of nothing", WC_LOC_QP_OP_ERR, |w, _| w[0] = WR_BIND_MW),
    ("REG_MR from a process", WC_LOC_QP_OP_ERR, |w, _| w[0] = WR_REG_MR),
    ("unknown flags", WC_LOC_QP_OP_ERR, |w, _| w[1] |= 0xf0),
    ("more SGEs than the QP has", WC_LOC_QP_OP_ERR, |w, _| w[2] = 5),
    ("255 SGEs", WC_LOC_QP_OP_ERR, |w, _| w[2] = 255),
    ("an inline length without inline data", WC_LOC_QP_OP_ERR, |w, _| w[28] = 8),
    ("SGEs beside inline data", WC_LOC_QP_OP_ERR, |w, _| {
        w[1] |= SEND_INLINE;
        w[28] = 8;
    }),
    ("too much inline data", WC_LOC_QP_OP_ERR, |w, _| {
        w[1] |= SEND_INLINE;
        w[2] = 0;
        w[28..32].copy_from_slice(&65_u32.to_le_bytes());
    }),
    ("endless inline data", WC_LOC_QP_OP_ERR, |w, _| {
        w[1] |= SEND_INLINE;
        w[2] = 0;
        w[28..32].copy_from_slice(&u32::MAX.to_le_bytes());
    }),
    ("a READ inline", WC_LOC_QP_OP_ERR, |w, _| {
        w[0] = WR_RDMA_READ;
        w[1] |= SEND_INLINE;
        w[2] = 0;
        w[28] = 8;
    }),
    ("a message that is too long", WC_LOC_LEN_ERR, |w, pair| {
        w.truncate(WQE_SEND_DATA as usize);
        w[2] = 4;
        for _ in 0..4 {
            w.extend_from_slice(pair.a.mr.sge(0, u32::MAX).as_bytes());
        }
    }),
    ("an lkey of nothing", WC_LOC_PROT_ERR, |w, _| w[44..48].fill(0xff)),
    ("lkey 0", WC_LOC_PROT_ERR, |w, _| w[44..48].fill(0)),
    ("the lkey with another tag", WC_LOC_PROT_ERR, |w, _| w[44] ^= 1),
    ("bytes before the MR", WC_LOC_PROT_ERR, |w, p| put_sge(w, p.a.mr.sge(u64::MAX, 64))),
    ("bytes behind the MR", WC_LOC_PROT_ERR, |w, p| {
        put_sge(w, p.a.mr.sge(p.a.mr.length - 63, 64));
    }),
    ("an address that wraps", WC_LOC_PROT_ERR, |w, p| {
        let mut sge = p.a.mr.sge(0, 64);
        sge.addr = (u64::MAX - 10).into();
        put_sge(w, sge);
    }),
    ("a length beyond the MR", WC_LOC_PROT_ERR, |w, p| {
        put_sge(w, p.a.mr.sge(0, p.a.mr.length as u32 + 1));
    }),
    ("the second SGE bad", WC_LOC_PROT_ERR, |w, p| {
        w[2] = 2;
        let mut sge = p.a.mr.sge(0, 64);
        sge.lkey = 0x7777_7777.into();
        w.extend_from_slice(sge.as_bytes());
    }),
];

const REMOTE_FAULTS: &[Fault] = &[
    ("an rkey of nothing", WC_REM_ACCESS_ERR, |w, _| w[24..28].fill(0xff)),
    ("rkey 0", WC_REM_ACCESS_ERR, |w, _| w[24..28].fill(0)),
    ("the rkey with another tag", WC_REM_ACCESS_ERR, |w, _| w[24] ^= 1),
    ("our own rkey", WC_REM_ACCESS_ERR, |w, p| {
        // Unless the peer has the same number for another MR, in which case the address differs.
        w[24..28].copy_from_slice(&p.a.mr.rkey.to_le_bytes());
        w[16..24].copy_from_slice(&0x10_u64.to_le_bytes());
    }),
    ("bytes before the peer's MR", WC_REM_ACCESS_ERR, |w, p| {
        w[16..24].copy_from_slice(&(p.b.mr.iova - 1).to_le_bytes());
    }),
    ("bytes behind the peer's MR", WC_REM_ACCESS_ERR, |w, p| {
        let end = p.b.mr.iova + p.b.mr.length;
        w[16..24].copy_from_slice(&(end - 63).to_le_bytes());
    }),
    ("a remote address that wraps", WC_REM_ACCESS_ERR, |w, _| {
        w[16..24].copy_from_slice(&(u64::MAX - 8).to_le_bytes());
    }),
    ("a READ from nothing", WC_REM_ACCESS_ERR, |w, _| {
        w[0] = WR_RDMA_READ;
        w[24..28].fill(0xee);
    }),
];

/// Posts a bad WQE between a good one and two more, and checks all that follows from it.
fn fails_as_it_should(pair: &mut Pair, fault: &Fault) -> TestResult {
    let (what, status, change) = fault;
    let mut bad = wqe(pair);
    change(&mut bad, pair);
    let Pair { a, b, qa, qb: _ } = pair;
    let sges = [a.mr.sge(0, 64)];
    let good = SendWr::write(1, &sges, b.mr.remote(0)).signaled();
    qa.post_send(&good)?;
    qa.post_send_raw(&bad);
    qa.post_send(&SendWr { wr_id: 8, ..good })?;
    qa.post_send(&SendWr { wr_id: 9, flags: 0, ..good })?;
    let wcs = a.send_cq.poll_for(4, LONG).map_err(|error| format!("{what}: {error}"))?;
    assert_eq!((wcs[0].wr_id, wcs[0].status), (1, WC_SUCCESS), "{what}");
    assert_eq!((wcs[1].wr_id, wcs[1].status), (7, *status), "{what}");
    assert!(wcs[1].is_send() && wcs[1].qpn == qa.number(), "{what}");
    flushed(&wcs[2..], &[8, 9]);
    assert_eq!(a.driver.query_qp(qa.number())?.qp_state, QP_STATE_ERR, "{what}");
    // What is posted now is flushed too.
    qa.post_send(&SendWr { wr_id: 10, ..good })?;
    flushed(&a.send_cq.poll_for(1, LONG)?, &[10]);
    Ok(())
}

#[test]
fn bad_send_work_requests_fail_where_they_are_posted() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let options = PairOptions::default();
    let mut pair = Pair::new(&daemon, 0, &options)?;
    for fault in LOCAL_FAULTS {
        fails_as_it_should(&mut pair, fault)?;
        let state = pair.b.driver.query_qp(pair.qb.number())?.qp_state;
        assert_eq!(state, QP_STATE_RTS, "{}: the peer saw nothing of it", fault.0);
        pair.renew_qps(&options)?;
        pair.ping()?;
    }
    bystander.check()
}

#[test]
fn bad_remote_addresses_and_keys_fail_at_the_peer() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let options = PairOptions::default();
    let mut pair = Pair::new(&daemon, 0, &options)?;
    for fault in REMOTE_FAULTS {
        fails_as_it_should(&mut pair, fault)?;
        let (b, qb) = (&pair.b, &pair.qb);
        let event = b.driver.next_async_event(LONG)?.ok_or("no event")?;
        let got = (event.event.get(), event.number.get());
        assert_eq!(got, (EVENT_QP_ACCESS_ERR, qb.number()), "{}", fault.0);
        assert_eq!(b.driver.query_qp(qb.number())?.qp_state, QP_STATE_ERR, "{}", fault.0);
        pair.renew_qps(&options)?;
        pair.ping()?;
    }
    bystander.check()
}

#[test]
fn rights_are_those_of_the_mr_and_of_the_qp() -> TestResult {
    let options = PairOptions::default();
    let (_daemon, mut pair) = Pair::start(&options)?;
    let none = access::LOCAL_WRITE;
    let all = access::ALL;
    // What the QP does not allow is an invalid request; what the MR does not, a bad access.
    let (ok, invalid, access_error) = (WC_SUCCESS, WC_REM_INV_REQ_ERR, WC_REM_ACCESS_ERR);
    for (mr_access, qp_access, write, read) in [
        (all, all, ok, ok),
        (none | access::REMOTE_WRITE, all, ok, access_error),
        (none | access::REMOTE_READ, all, access_error, ok),
        (none, all, access_error, access_error),
        (all, none, invalid, invalid),
        (all, access::REMOTE_READ, invalid, ok),
        (all, access::REMOTE_WRITE, ok, invalid),
    ] {
        let mr = pair.b.driver.reg_mr(&pair.b.pd, &pair.b.buffer, mr_access)?;
        // An MR without remote rights has no rkey, but somebody may guess it.
        let remote = (mr.iova, mr.lkey);
        for (is_read, wanted) in [(false, write), (true, read)] {
            let attr = QpAttr { access: qp_access.into(), ..QpAttr::default() };
            pair.qb.modify(QP_ATTR_ACCESS_FLAGS, &attr)?;
            let sges = [pair.a.mr.sge(0, 64)];
            let wr = if is_read {
                SendWr::read(1, &sges, remote)
            } else {
                SendWr::write(1, &sges, remote)
            };
            pair.qa.post_send(&wr.signaled())?;
            let status = pair.a.send_cq.wait_one(LONG)?.status;
            assert_eq!(status, wanted, "read {is_read}, MR {mr_access}, QP {qp_access}");
            if wanted != ok {
                let event = pair.b.driver.next_async_event(LONG)?.ok_or("no event")?;
                let kind = if wanted == invalid { EVENT_QP_REQ_ERR } else { EVENT_QP_ACCESS_ERR };
                let got = (event.event.get(), event.number.get());
                assert_eq!(got, (kind, pair.qb.number()));
                pair.renew_qps(&options)?;
            }
        }
        pair.b.driver.dereg_mr(&mr)?;
    }
    // A READ needs a local place that may be written.
    let read_only = pair.a.driver.reg_mr(&pair.a.pd, &pair.a.buffer, 0)?;
    let sges = [read_only.sge(0, 64)];
    pair.qa.post_send(&SendWr::write(1, &sges, pair.b.mr.remote(0)).signaled())?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    pair.qa.post_send(&SendWr::read(2, &sges, pair.b.mr.remote(0)))?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_LOC_PROT_ERR);
    Ok(())
}

#[test]
fn keys_of_another_pd_are_no_keys() -> TestResult {
    let options = PairOptions::default();
    let (_daemon, mut pair) = Pair::start(&options)?;
    let foreign_pd = pair.a.driver.alloc_pd()?;
    let foreign = pair.a.driver.reg_mr(&foreign_pd, &pair.a.buffer, access::ALL)?;
    let sges = [foreign.sge(0, 64)];
    pair.qa.post_send(&SendWr::write(1, &sges, pair.b.mr.remote(0)))?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_LOC_PROT_ERR);
    pair.renew_qps(&options)?;
    let foreign_pd = pair.b.driver.alloc_pd()?;
    let foreign = pair.b.driver.reg_mr(&foreign_pd, &pair.b.buffer, access::ALL)?;
    let sges = [pair.a.mr.sge(0, 64)];
    pair.qa.post_send(&SendWr::write(2, &sges, foreign.remote(0)))?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_REM_ACCESS_ERR);
    Ok(())
}

#[test]
fn a_deregistered_key_is_no_key() -> TestResult {
    let options = PairOptions::default();
    let (_daemon, mut pair) = Pair::start(&options)?;
    let old = pair.b.driver.reg_mr(&pair.b.pd, &pair.b.buffer, access::ALL)?;
    pair.b.driver.dereg_mr(&old)?;
    let sges = [pair.a.mr.sge(0, 64)];
    pair.qa.post_send(&SendWr::write(1, &sges, old.remote(0)))?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_REM_ACCESS_ERR);
    // A new MR does not get the old one's keys at once.
    let new = pair.b.driver.reg_mr(&pair.b.pd, &pair.b.buffer, access::ALL)?;
    assert_ne!((new.lkey, new.rkey), (old.lkey, old.rkey));
    Ok(())
}

#[test]
fn the_key_to_all_memory_is_for_kernel_qps_only() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let mut side = Side::new(daemon.vm(0)?, 8192, 64)?;
    let kernel = QpOptions { flags: QP_FLAG_KERNEL, ..QpOptions::default() };
    let (mut qa, mut qb) = (side.qp(&kernel)?, side.qp(&kernel)?);
    let dma = side.driver.get_dma_mr(&side.pd, access::ALL)?;
    front_end::connect_rc(&mut qa, &mut qb, &RcOptions::default())?;
    fill(&side.buffer, 0, 2000, 5);
    let mut sge = dma.sge(0, 2000);
    sge.addr = side.buffer.guest_address(0).into();
    qa.post_send(&SendWr::write(1, &[sge], side.mr.remote(4096)).signaled())?;
    assert_eq!(side.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    check(&side.buffer, 4096, 2000, 5);
    // Holes between the regions are no memory, even so.
    sge.addr = side.vm.memory().unmapped_address().into();
    qa.post_send(&SendWr::write(2, &[sge], side.mr.remote(4096)).signaled())?;
    assert_eq!(side.send_cq.wait_one(LONG)?.status, WC_LOC_PROT_ERR);

    // A process's QP does not come near it: not into its PD, nor it into a process's PD.
    let process = QpOptions::default();
    let answer = side.driver.create_qp(&side.pd, &side.send_cq, &side.recv_cq, &process);
    refused(answer.map(|qp| qp.number()), Status::NotPermitted);
    let pd = side.driver.alloc_pd()?;
    let qp = side.driver.create_qp(&pd, &side.send_cq, &side.recv_cq, &process)?;
    refused(side.driver.get_dma_mr(&pd, access::ALL), Status::NotPermitted);
    side.driver.destroy_qp(&qp)?;
    side.driver.get_dma_mr(&pd, access::ALL)?;
    Ok(())
}

#[test]
fn a_message_longer_than_the_receive_wqe_fails_at_both_ends() -> TestResult {
    let options = PairOptions::default();
    let (_daemon, mut pair) = Pair::start(&options)?;
    for (room, len) in [(0, 1), (63, 64), (4096, 4097), (10, 100_000)] {
        pair.b.buffer.fill(0x33);
        pair.qb.post_recv(1, &[pair.b.mr.sge(8192, room)])?;
        pair.qb.post_recv(2, &[pair.b.mr.sge(0, 64)])?;
        pair.qa.post_send(&SendWr::send(3, &[pair.a.mr.sge(0, len)]))?;
        assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_REM_INV_REQ_ERR, "{len} in {room}");
        let wcs = pair.b.recv_cq.poll_for(2, LONG)?;
        assert_eq!((wcs[0].wr_id, wcs[0].status), (1, WC_LOC_LEN_ERR));
        flushed(&wcs[1..], &[2]);
        let beyond = pair.b.buffer.read(8192 + room as usize, 4096);
        assert!(beyond.iter().all(|byte| *byte == 0x33), "beyond the receive WQE");
        assert_eq!(pair.b.driver.query_qp(pair.qb.number())?.qp_state, QP_STATE_ERR);
        pair.renew_qps(&options)?;
    }
    Ok(())
}

#[test]
fn bad_receive_work_requests_fail_at_both_ends() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let options = PairOptions::default();
    let mut pair = Pair::new(&daemon, 0, &options)?;
    let read_only = pair.b.driver.reg_mr(&pair.b.pd, &pair.b.buffer, 0)?;
    let recv = |num_sge: u8, sge: Sge| {
        let head = RecvWqe { num_sge, wr_id: 5.into(), ..RecvWqe::default() };
        [head.as_bytes(), sge.as_bytes()].concat()
    };
    let mut unknown = pair.b.mr.sge(0, 64);
    unknown.lkey = 0x5555_5555.into();
    let outside = pair.b.mr.sge(pair.b.mr.length - 10, 64);
    for (what, status, bad) in [
        ("too many SGEs", WC_LOC_QP_OP_ERR, recv(5, pair.b.mr.sge(0, 64))),
        ("255 SGEs", WC_LOC_QP_OP_ERR, recv(255, pair.b.mr.sge(0, 64))),
        ("an lkey of nothing", WC_LOC_PROT_ERR, recv(1, unknown)),
        ("bytes behind the MR", WC_LOC_PROT_ERR, recv(1, outside)),
        ("an MR that may not be written", WC_LOC_PROT_ERR, recv(1, read_only.sge(0, 64))),
    ] {
        pair.qb.post_recv_raw(&bad);
        pair.qb.post_recv(6, &[pair.b.mr.sge(0, 64)])?;
        pair.qa.post_send(&SendWr::send(3, &[pair.a.mr.sge(0, 64)]))?;
        assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_REM_OP_ERR, "{what}");
        let wcs = pair.b.recv_cq.poll_for(2, LONG)?;
        assert_eq!((wcs[0].wr_id, wcs[0].status), (5, status), "{what}");
        flushed(&wcs[1..], &[6]);
        assert_eq!(pair.b.driver.query_qp(pair.qb.number())?.qp_state, QP_STATE_ERR, "{what}");
        pair.renew_qps(&options)?;
        pair.ping()?;
    }
    bystander.check()
}

#[test]
fn random_bytes_as_work_requests_end_in_an_error_and_no_worse() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let options = PairOptions {
        rc: RcOptions { timeout: 6, retry_cnt: 1, rnr_retry: 1, ..RcOptions::default() },
        ..PairOptions::default()
    };
    let mut pair = Pair::new(&daemon, 0, &options)?;
    let mut random = crate::harness::Random(0xfeed);
    for round in 0..300 {
        let stride = pair.qa.send_slot(0).1;
        let mut bytes: Vec<u8> = (0..stride).map(|_| random.next() as u8).collect();
        if round % 2 == 0 {
            // Half of them with an opcode, flags and SGE count that are right, to get further.
            bytes[..3].copy_from_slice(&[(random.next() % 5) as u8, SEND_SIGNALED, 1]);
            bytes[28..32].fill(0);
        }
        pair.qa.post_send_raw(&bytes);
        let wc = pair.a.send_cq.wait_one(LONG)?;
        let wr_id = u64::from_le_bytes(bytes[8..16].try_into()?);
        assert_eq!(wc.wr_id, wr_id, "round {round}: {bytes:x?}");
        // A zero-length message is the only one that can work by chance.
        if wc.status != WC_SUCCESS {
            assert_eq!(pair.a.driver.query_qp(pair.qa.number())?.qp_state, QP_STATE_ERR);
            pair.renew_qps(&options)?;
        }
        pair.qb.post_recv_raw(&bytes);
        pair.renew_qps(&options)?;
    }
    pair.ping()?;
    bystander.check()
}

#[test]
fn a_thousand_errors_in_a_row_cost_nothing_lasting() -> TestResult {
    let options = PairOptions::default();
    let (_daemon, mut pair) = Pair::start(&options)?;
    for _ in 0..300 {
        let mut bad = wqe(&pair);
        bad[0] = 0xff;
        pair.qa.post_send_raw(&bad);
        assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_LOC_QP_OP_ERR);
        pair.renew_qps(&options)?;
    }
    pair.ping()
}
