// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QPs that move from one worker to another: the daemon of these tests has two.

use std::time::Instant;

use front_end::abi::doorbell::{MODE_POLLED, MODE_VECTOR_SHIFT};
use front_end::abi::ring::WC_SUCCESS;
use front_end::{Qp, QpOptions, RcOptions, SendWr, VmConfig, connect_rc};

use crate::harness::{LONG, Pair, PairOptions, TestResult, check, fill};

/// Bytes of a WRITE: so many that the worker never waits for the driver.
const LARGE: usize = 2 << 20;
/// WRITEs that a QP has outstanding.
const WINDOW: u64 = 60;
/// WRITEs between two looks at the counters.
const LOOK: u64 = 64;

/// The vector that a QP's mode word names, once its send queue is armed.
fn armed_vector(qp: &Qp) -> u32 {
    let begin = Instant::now();
    loop {
        let mode = qp.modes().0;
        if mode & MODE_POLLED == 0 {
            return mode >> MODE_VECTOR_SHIFT;
        }
        assert!(begin.elapsed() < LONG, "the queue is not armed");
        std::thread::yield_now();
    }
}

#[test]
fn two_busy_qps_that_begin_on_one_worker_end_on_two_and_keep_their_order() -> TestResult {
    let options = PairOptions {
        bytes: 3 * LARGE,
        vm: VmConfig { memory: 64 << 20, vectors: 2, ..VmConfig::default() },
        ..PairOptions::default()
    };
    let (_daemon, pair) = Pair::start(&options)?;
    let Pair { mut a, b, qa, qb: _qb } = pair;
    // Each slot's doorbell is another vector's, and each vector another worker's: the third QP is
    // with the first one's.
    let _between = a.qp(&QpOptions::default())?;
    let (mut qc, mut qd) = (a.qp(&options.qp)?, b.qp(&options.qp)?);
    connect_rc(&mut qc, &mut qd, &RcOptions::default())?;
    let mut qps = [qa, qc];
    assert_eq!(qps.each_ref().map(armed_vector), [0, 0]);

    fill(&a.buffer, 0, LARGE, 7);
    let (mut posted, mut done) = ([0_u64; 2], [0_u64; 2]);
    let moves = || a.driver.query_counters().map(|counters| counters.qp_moves.get());
    let begin = Instant::now();
    let (mut moved, mut since, mut looked) = (0, 0, 0);
    // Some further time, in which nothing is to move back.
    while since < 20 {
        for (qp, (posted, done)) in qps.iter_mut().zip(posted.iter_mut().zip(&done)) {
            while *posted - done < WINDOW {
                let sges = [a.mr.sge(0, LARGE as u32)];
                let place = (1 + u64::from(qp.uar_slot().1 > 0)) * LARGE as u64;
                qp.post_send(&SendWr::write(*posted, &sges, b.mr.remote(place)).signaled())?;
                *posted += 1;
            }
        }
        let wc = a.send_cq.wait_one(LONG)?;
        let which = usize::from(wc.qpn != qps[0].number());
        assert_eq!((wc.status, wc.wr_id), (WC_SUCCESS, done[which]), "of QP {which}");
        done[which] += 1;
        if done[0] + done[1] >= looked + LOOK {
            looked = done[0] + done[1];
            moved = moves()?;
            since += u32::from(moved > 0);
        }
        assert!(begin.elapsed() < LONG * 2, "no QP has moved");
    }
    assert_eq!(moved, 1);
    for wc in a.send_cq.poll_for((2 * WINDOW) as usize - 1, LONG)? {
        let which = usize::from(wc.qpn != qps[0].number());
        assert_eq!((wc.status, wc.wr_id), (WC_SUCCESS, done[which]), "of QP {which}");
        done[which] += 1;
        if done == posted {
            break;
        }
    }
    (1..3).for_each(|place| check(&b.buffer, place * LARGE, LARGE, 7));

    // Each now rings at its own worker's door, and finds it.
    let mut vectors = qps.each_ref().map(armed_vector);
    vectors.sort_unstable();
    assert_eq!(vectors, [0, 1]);
    for (n, qp) in qps.iter_mut().enumerate() {
        fill(&a.buffer, 0, 64, n as u8);
        let sges = [a.mr.sge(0, 64)];
        qp.post_send(&SendWr::write(5, &sges, b.mr.remote(100)).signaled())?;
        assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        check(&b.buffer, 100, 64, n as u8);
    }
    assert_eq!(moves()?, 1);
    Ok(())
}
