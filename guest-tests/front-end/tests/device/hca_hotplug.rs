// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An HCA that goes and comes back while guests use it.

use std::time::Duration;

use front_end::abi::event::{EVENT_HCA_ADDED, EVENT_HCA_REMOVED};
use front_end::{QpOptions, RcOptions, SendWr, Status, connect_rc};

use crate::harness::{LONG, Pair, PairOptions, Side, TestResult, refused};

/// Gives up on a peer within milliseconds.
fn impatient() -> PairOptions {
    PairOptions {
        rc: RcOptions { timeout: 8, retry_cnt: 2, rnr_retry: 2, ..RcOptions::default() },
        ..PairOptions::default()
    }
}

#[test]
fn an_hca_that_goes_takes_everything_along_and_one_that_comes_is_used_anew() -> TestResult {
    let (daemon, mut pair) = Pair::start(&impatient())?;
    for _ in 0..3 {
        pair.ping()?;
        pair.b.recv_cq.arm(false);
        // Each device counts from a number of its own.
        let (of_a, of_b) = (pair.a.vm.config()?, pair.b.vm.config()?);
        let generations = [of_a.hca_generation.get(), of_b.hca_generation.get()];
        // With work in flight.
        for _ in 0..20 {
            let sges = [pair.a.mr.sge(0, 65_536)];
            pair.qa.post_send(&SendWr::write(1, &sges, pair.b.mr.remote(65_536)))?;
        }
        daemon.remove_hca()?;
        for (side, generation) in [&pair.a, &pair.b].into_iter().zip(generations) {
            let event = side.driver.next_async_event(LONG)?.ok_or("no event")?;
            assert_eq!(event.event.get(), EVENT_HCA_REMOVED);
            let config = side.vm.config()?;
            assert_eq!((config.hca_present, config.hca_generation.get()), (0, generation + 1));
            assert_eq!(event.hca_generation.get(), generation + 1);
            refused(side.driver.alloc_pd(), Status::NoHca);
            refused(side.driver.query_device(), Status::NoHca);
        }
        let before = pair.b.buffer.read(0, 256 << 10);
        pair.a.buffer.fill(0x3c);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(before, pair.b.buffer.read(0, 256 << 10), "stored into after it went");
        daemon.add_hca()?;
        for (side, generation) in [&pair.a, &pair.b].into_iter().zip(generations) {
            let event = side.driver.next_async_event(LONG)?.ok_or("no event")?;
            assert_eq!(event.event.get(), EVENT_HCA_ADDED);
            let config = side.vm.config()?;
            assert_eq!((config.hca_present, config.hca_generation.get()), (1, generation + 2));
        }
        pair.a = Side::new(pair.a.vm, 256 << 10, 256)?;
        pair.b = Side::new(pair.b.vm, 256 << 10, 256)?;
        pair.qa = pair.a.qp(&QpOptions::default())?;
        pair.qb = pair.b.qp(&QpOptions::default())?;
        connect_rc(&mut pair.qa, &mut pair.qb, &impatient().rc)?;
    }
    pair.ping()
}
