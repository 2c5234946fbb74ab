// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Solicited events: of the soft HCA alone, since an HCA of the host's does not say which message was
//! solicited.

use front_end::SendWr;
use front_end::abi::control::QP_STATE_ERR;

use crate::harness::{LONG, Pair, PairOptions, SHORT, TestResult};

#[test]
fn solicited_only_ignores_what_is_not_solicited() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let Pair { a, b, qa, qb } = &mut pair;
    for round in 0..5 {
        for wr_id in 0..4 {
            qb.post_recv(wr_id, &[b.mr.sge(0, 64)])?;
        }
        b.recv_cq.arm(true);
        let sges = [a.mr.sge(0, 64)];
        for _ in 0..3 {
            qa.post_send(&SendWr::send(1, &sges).signaled())?;
        }
        b.recv_cq.poll_for(3, LONG)?;
        assert!(b.recv_cq.wait_event(SHORT)?.is_none(), "round {round}");
        qa.post_send(&SendWr::send(1, &sges).signaled().solicited())?;
        assert!(b.recv_cq.wait_event(LONG)?.is_some(), "round {round}");
        b.recv_cq.poll_for(1, LONG)?;
        a.send_cq.poll_for(4, LONG)?;
    }
    // WRITE with immediate can be solicited too, and an error always is.
    qb.post_recv(1, &[])?;
    b.recv_cq.arm(true);
    let wr = SendWr::write(1, &[], b.mr.remote(0)).with_imm(1).solicited();
    qa.post_send(&wr)?;
    assert!(b.recv_cq.wait_event(LONG)?.is_some());
    b.recv_cq.poll_for(1, LONG)?;
    qb.post_recv(2, &[])?;
    b.recv_cq.arm(true);
    qb.modify_state(QP_STATE_ERR)?;
    assert!(b.recv_cq.wait_event(LONG)?.is_some());
    Ok(())
}
