// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QUERY_COUNTERS: what the transport met with is counted where it was met, and stays counted.

use front_end::abi::control::Counters;
use front_end::abi::ring::*;
use front_end::{RcOptions, SendWr};

use crate::harness::{LONG, Pair, PairOptions, TestDaemon, TestResult};

/// (SENDs, messages received, RNR NAKs received, RNR retries exceeded, retries exceeded).
fn counts(counters: &Counters) -> [u64; 5] {
    [
        counters.rdma_sends.get(),
        counters.rdma_recvs.get(),
        counters.rcvd_rnr_err.get(),
        counters.retry_rnr_exceeded_err.get(),
        counters.retry_exceeded_err.get(),
    ]
}

fn of_both(pair: &Pair) -> TestResult<[[u64; 5]; 2]> {
    let of = |side: &crate::harness::Side| side.driver.query_counters();
    Ok([counts(&of(&pair.a)?), counts(&of(&pair.b)?)])
}

#[test]
fn messages_and_what_went_wrong_with_them_are_counted_and_outlive_their_qps() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let mut pair = Pair::new(&daemon, 0, &PairOptions::default())?;
    for _ in 0..5 {
        pair.ping()?;
    }
    let word = [pair.a.mr.sge(0, 8)];
    pair.qb.post_recv(1, &[])?;
    let with_imm = SendWr::write(1, &word, pair.b.mr.remote(0)).with_imm(3);
    pair.qa.post_send(&with_imm.signaled())?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    assert_eq!(pair.b.recv_cq.wait_one(LONG)?.status, WC_SUCCESS);
    assert_eq!(of_both(&pair)?, [[5, 0, 0, 0, 0], [0, 6, 0, 0, 0]]);

    // Nobody has posted a receive WQE.
    let impatient = RcOptions { rnr_retry: 2, min_rnr_timer: 1, ..RcOptions::default() };
    pair.renew_qps(&PairOptions { rc: impatient, ..PairOptions::default() })?;
    pair.qa.post_send(&SendWr::send(2, &word))?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_RNR_RETRY_EXC_ERR);
    assert_eq!(of_both(&pair)?, [[5, 0, 3, 1, 0], [0, 6, 0, 0, 0]]);

    // Nobody answers.
    let deaf = RcOptions { retry_cnt: 1, timeout: 8, ..RcOptions::default() };
    pair.renew_qps(&PairOptions { rc: deaf, ..PairOptions::default() })?;
    pair.b.driver.destroy_qp(&pair.qb)?;
    pair.qa.post_send(&SendWr::send(3, &word))?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_RETRY_EXC_ERR);
    pair.a.driver.destroy_qp(&pair.qa)?;
    assert_eq!(of_both(&pair)?, [[5, 0, 3, 1, 1], [0, 6, 0, 0, 0]]);
    Ok(())
}
