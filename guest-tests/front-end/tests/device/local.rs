// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MRs without remote rights, which an HCA may pin when they are used: more of them than it keeps.

use front_end::abi::ring::{WC_REM_ACCESS_ERR, WC_SUCCESS};
use front_end::{SendWr, access};

use crate::harness::{LONG, Pair, PairOptions, TestResult, check, fill};

#[test]
fn mrs_without_remote_rights_carry_messages_and_no_peer_reaches_them() -> TestResult {
    const MRS: u64 = 100;
    const LEN: usize = 4096;
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let Pair { a, b, qa, qb } = &mut pair;
    let make = |side: &crate::harness::Side| -> TestResult<Vec<_>> {
        (0..MRS)
            .map(|_| {
                let buffer = side.vm.memory().alloc_scattered(2 * LEN)?;
                let mr = side.driver.reg_mr(&side.pd, &buffer, access::LOCAL_WRITE)?;
                Ok((buffer, mr))
            })
            .collect()
    };
    let (from, to) = (make(a)?, make(b)?);
    for round in 0..2 {
        for (n, ((source, mr), (target, place))) in from.iter().zip(&to).enumerate() {
            let (n, seed) = (n as u64, (n * 2 + round) as u8);
            fill(source, 0, LEN, seed);
            target.fill(0);
            qb.post_recv(n, &[place.sge(100, LEN as u32)])?;
            qa.post_send(&SendWr::send(n, &[mr.sge(0, LEN as u32)]).signaled())?;
            let sent = a.send_cq.wait_one(LONG)?;
            assert_eq!((sent.wr_id, sent.status), (n, WC_SUCCESS), "round {round}");
            let received = b.recv_cq.wait_one(LONG)?;
            assert_eq!((received.wr_id, received.status), (n, WC_SUCCESS), "round {round}");
            check(target, 100, LEN, seed);
        }
    }
    let (_, place) = &to[0];
    let sges = [from[0].1.sge(0, 8)];
    qa.post_send(&SendWr::write(1, &sges, (place.iova, place.lkey)).signaled())?;
    assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_REM_ACCESS_ERR);
    for ((_, source), (_, target)) in from.iter().zip(&to) {
        a.driver.dereg_mr(source)?;
        b.driver.dereg_mr(target)?;
    }
    Ok(())
}
