// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MRs whose address has another place in its page than their memory: of the soft HCA alone, since the
//! host's kernel registers no such MR with an HCA of its own.

use front_end::abi::ring::WC_SUCCESS;
use front_end::{SendWr, access};

use crate::harness::{LONG, Pair, PairOptions, TestResult, check, fill};

#[test]
fn an_mr_may_start_anywhere_and_be_named_by_any_address() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let Pair { a, b, qa, qb: _ } = &mut pair;
    for (start, len, iova) in [
        (1, 1, 0),
        (4095, 2, 0x1000),
        (100, 20_000, 0xffff_8000_0000_0123),
        (8192, 4096, 7),
        (12_288 + 17, 33_333, u64::MAX - 40_000),
    ] {
        let mr = b.driver.reg_mr_part(&b.pd, &b.buffer, start..start + len, iova, access::ALL)?;
        fill(&a.buffer, 0, len, start as u8);
        let sges = [a.mr.sge(0, len as u32)];
        qa.post_send(&SendWr::write(1, &sges, mr.remote(0)).signaled())?;
        let wc = a.send_cq.wait_one(LONG)?;
        assert_eq!(wc.status, WC_SUCCESS, "{len} bytes from {start} as {iova:#x}");
        check(&b.buffer, start, len, start as u8);
        b.driver.dereg_mr(&mr)?;
    }
    Ok(())
}
