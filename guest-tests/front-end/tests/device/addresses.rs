// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MRs that begin anywhere in a page, and those whose address has another place in its page than their
//! memory.

use front_end::abi::ring::WC_SUCCESS;
use front_end::{SendWr, Status, access};

use crate::harness::{LONG, Pair, PairOptions, TestResult, check, fill, refused, soft_alone};

#[test]
fn an_mr_may_start_anywhere() -> TestResult {
    written_through(&[
        (1, 1, 1),
        (4095, 2, 0x1fff),
        (100, 20_000, 0xffff_8000_0000_0064),
        (8192, 4096, 0x7000),
        (12_288 + 17, 33_333, 0x10_0011),
    ])
}

/// No HCA of the host's can do that: its kernel takes no MR whose address and memory differ in their
/// place in a page, and neither does a guest's for its processes.
#[test]
fn an_mr_may_be_named_by_any_address() -> TestResult {
    if !soft_alone("such an MR is refused") {
        let (_daemon, pair) = Pair::start(&PairOptions::default())?;
        let b = &pair.b;
        let mr = b.driver.reg_mr_part(&b.pd, &b.buffer, 100..300, 0x1000, access::ALL);
        refused(mr.map(|mr| mr.lkey), Status::Invalid);
        return Ok(());
    }
    written_through(&[
        (1, 1, 0),
        (4095, 2, 0x1000),
        (100, 20_000, 0xffff_8000_0000_0123),
        (8192, 4096, 7),
        (12_288 + 17, 33_333, u64::MAX - 40_000),
    ])
}

/// Bytes go through MRs that begin there in a buffer, are so long, and have that address.
fn written_through(mrs: &[(usize, usize, u64)]) -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let Pair { a, b, qa, qb: _ } = &mut pair;
    for &(start, len, iova) in mrs {
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
