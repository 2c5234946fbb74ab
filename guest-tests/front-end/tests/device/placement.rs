// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! WR_ATOMIC_WRITE and WR_FLUSH: what they do, and every way to get them wrong.

use front_end::abi::control::*;
use front_end::abi::ring::*;
use front_end::abi::{Le32, Le64};
use front_end::{Mr, RcOptions, SendWr, Status, access};

use crate::harness::{
    Bystander, LONG, Pair, PairOptions, TestDaemon, TestResult, check, fill, refused,
};

const RIGHTS: u32 = access::ALL | access::FLUSH_GLOBAL | access::FLUSH_PERSISTENT;

fn options() -> PairOptions {
    PairOptions { rc: RcOptions { access: RIGHTS, ..RcOptions::default() }, ..Default::default() }
}

/// An MR of `b`'s buffer that may be flushed.
fn flushable(pair: &Pair) -> TestResult<Mr> {
    let rights = access::ALL | access::FLUSH_GLOBAL;
    Ok(pair.b.driver.reg_mr(&pair.b.pd, &pair.b.buffer, rights)?)
}

fn args(length: u64) -> FlushArgs {
    FlushArgs { length: length.into(), placement: FLUSH_GLOBAL, ..FlushArgs::default() }
}

#[test]
fn words_are_written_and_what_was_written_is_flushed() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&options())?;
    let mr = flushable(&pair)?;
    fill(&pair.a.buffer, 0, 100_000, 5);
    for n in 0..50_u64 {
        let value = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        pair.a.buffer.store_u64(200_000, value);
        let (bytes, from) = ([pair.a.mr.sge(0, 100_000)], [pair.a.mr.sge(200_000, 8)]);
        let whole = FlushArgs { selectivity: FLUSH_MR, ..args(n) };
        let (inline, at) = ((!value).to_le_bytes(), mr.remote(200_000));
        for (wr, opcode) in [
            (SendWr::write(n, &bytes, mr.remote(0)), WC_OP_RDMA_WRITE),
            (SendWr::flush(n, mr.remote(0), args(100_000)), WC_OP_FLUSH),
            (SendWr::atomic_write(n, &[], mr.remote(200_008)).inline(&inline), WC_OP_ATOMIC_WRITE),
            (SendWr::atomic_write(n, &from, at), WC_OP_ATOMIC_WRITE),
            (SendWr::flush(n, (3, mr.rkey), whole), WC_OP_FLUSH),
        ] {
            pair.qa.post_send(&wr.signaled())?;
            let wc = pair.a.send_cq.wait_one(LONG)?;
            assert_eq!((wc.wr_id, wc.status, wc.opcode), (n, WC_SUCCESS, opcode));
            assert_eq!(wc.byte_len, 0);
        }
        let got = [200_000, 200_008].map(|offset| pair.b.buffer.load_u64(offset));
        assert_eq!(got, [value, !value]);
    }
    check(&pair.b.buffer, 0, 100_000, 5);
    Ok(())
}

/// What is wrong with a request, the request, and its status.
type Fault = (&'static str, fn(&Pair, &Mr, &mut SendWr<'_>), u8);

const WRITES: &[Fault] = &[
    ("no data", |_, _, wr| wr.data = front_end::Data::Sges(&[]), WC_LOC_LEN_ERR),
    ("seven bytes", |_, _, wr| *wr = wr.inline(&[0; 7]), WC_LOC_LEN_ERR),
    ("sixteen bytes", |_, _, wr| *wr = wr.inline(&[0; 16]), WC_LOC_LEN_ERR),
    ("misaligned", |_, _, wr| wr.remote_addr += 4, WC_REM_INV_REQ_ERR),
    ("behind the MR", |_, mr, wr| wr.remote_addr = mr.iova + (1 << 30), WC_REM_ACCESS_ERR),
    ("a key of nothing", |_, _, wr| wr.rkey = 0x7777_7777, WC_REM_ACCESS_ERR),
    ("unknown flags", |_, _, wr| wr.flags |= 0x40, WC_LOC_QP_OP_ERR),
];

const FLUSHES: &[Fault] = &[
    ("no placement", |_, _, wr| with_args(wr, 8, 0, 0, 0), WC_LOC_QP_OP_ERR),
    ("an unknown placement", |_, _, wr| with_args(wr, 8, 5, 0, 0), WC_LOC_QP_OP_ERR),
    ("an unknown selectivity", |_, _, wr| with_args(wr, 8, 1, 2, 0), WC_LOC_QP_OP_ERR),
    ("SGEs", |_, _, wr| wr.data = front_end::Data::Sges(&[ONE]), WC_LOC_QP_OP_ERR),
    ("inline data", |_, _, wr| *wr = wr.inline(&[0; 8]), WC_LOC_QP_OP_ERR),
    ("too many bytes", |_, _, wr| with_args(wr, (1 << 31) + 1, 1, 0, 0), WC_LOC_LEN_ERR),
    ("persistence", |_, _, wr| with_args(wr, 8, 2, 0, 0), WC_REM_ACCESS_ERR),
    ("both, of the MR", |_, _, wr| with_args(wr, 8, 3, 1, 0), WC_REM_ACCESS_ERR),
    ("behind the MR", |_, mr, wr| wr.remote_addr = mr.iova + (1 << 30), WC_REM_ACCESS_ERR),
    ("a key of nothing", |_, _, wr| wr.rkey = 0x7777_7777, WC_REM_ACCESS_ERR),
    ("an MR without the right", |p, _, wr| wr.rkey = p.b.mr.rkey, WC_REM_ACCESS_ERR),
];

/// It stands where an SGE would, with arguments that make no sense.
const ONE: Sge = Sge { addr: Le64::new(0), length: Le32::new(0), lkey: Le32::new(0) };

fn with_args(wr: &mut SendWr<'_>, length: u64, placement: u8, selectivity: u8, last: u8) {
    let reserved = [0, 0, 0, 0, 0, last];
    let args = FlushArgs { length: length.into(), placement, selectivity, reserved };
    *wr = SendWr::flush(wr.wr_id, (wr.remote_addr, wr.rkey), args);
}

#[test]
fn faults_end_as_the_specification_says_and_harm_nobody() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let mut pair = Pair::new(&daemon, 0, &options())?;
    let mr = flushable(&pair)?;
    pair.b.buffer.fill(0x44);
    let word = [7; 8];
    let faults = WRITES.iter().map(|fault| (true, fault));
    for (write, (what, spoil, status)) in faults.chain(FLUSHES.iter().map(|fault| (false, fault))) {
        let mut wr = match write {
            true => SendWr::atomic_write(1, &[], mr.remote(0)).inline(&word),
            false => SendWr::flush(1, mr.remote(0), args(8)),
        };
        spoil(&pair, &mr, &mut wr);
        pair.qa.post_send(&wr)?;
        assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, *status, "{what}");
        pair.renew_qps(&options())?;
    }
    assert!(pair.b.buffer.read(0, pair.b.buffer.len()).iter().all(|byte| *byte == 0x44));
    bystander.check()
}

#[test]
fn rights_of_the_qp_and_room_for_requests_are_needed() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let mut pair = Pair::new(&daemon, 0, &options())?;
    let mr = flushable(&pair)?;
    let good = RcOptions { access: RIGHTS, ..RcOptions::default() };
    let word = [7; 8];
    for (rc, write, flush) in [
        (RcOptions { max_rd_atomic: 0, ..good }, WC_LOC_QP_OP_ERR, WC_LOC_QP_OP_ERR),
        (RcOptions { access: access::LOCAL_WRITE, ..good }, WC_REM_INV_REQ_ERR, WC_REM_INV_REQ_ERR),
        (RcOptions { access: access::ALL, ..good }, WC_SUCCESS, WC_REM_INV_REQ_ERR),
    ] {
        let options = PairOptions { rc, ..options() };
        for (wr, status) in [
            (SendWr::atomic_write(1, &[], mr.remote(0)).inline(&word), write),
            (SendWr::flush(1, mr.remote(0), args(8)), flush),
        ] {
            pair.renew_qps(&options)?;
            pair.qa.post_send(&wr.signaled())?;
            assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, status);
        }
    }
    Ok(())
}

#[test]
fn memory_cannot_be_registered_as_one_that_outlives_the_guests_power() -> TestResult {
    let (_daemon, pair) = Pair::start(&options())?;
    let rights = access::ALL | access::FLUSH_PERSISTENT;
    refused(pair.b.driver.reg_mr(&pair.b.pd, &pair.b.buffer, rights), Status::Unsupported);
    let wanted = CAP_ATOMIC_WRITE | CAP_FLUSH;
    assert_eq!(pair.b.driver.init_answer().capabilities.get() & wanted, wanted);
    Ok(())
}
