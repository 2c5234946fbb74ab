// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests that scribble on what they share with the device: they harm themselves, and nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use front_end::abi::ring::{WC_LOC_QP_OP_ERR, WC_SUCCESS};
use front_end::{Buffer, SendWr};

use crate::harness::{Bystander, LONG, Pair, PairOptions, Random, TestDaemon, TestResult, flushed};

fn start() -> TestResult<(TestDaemon, Bystander, Pair)> {
    let daemon = TestDaemon::start(4)?;
    let bystander = Bystander::new(&daemon, 2)?;
    let pair = Pair::new(&daemon, 0, &PairOptions::default())?;
    Ok((daemon, bystander, pair))
}

/// Objects of a pair can still be destroyed, and new ones made on the same driver.
fn can_be_cleared_up(pair: &mut Pair) -> TestResult {
    for (side, qp) in [(&mut pair.a, &mut pair.qa), (&mut pair.b, &mut pair.qb)] {
        side.driver.destroy_qp(qp)?;
        side.driver.destroy_cq(&side.send_cq)?;
        side.driver.destroy_cq(&side.recv_cq)?;
        side.send_cq = side.driver.create_cq(256, 0)?;
        side.recv_cq = side.driver.create_cq(256, 0)?;
    }
    let options = PairOptions::default();
    pair.qa = pair.a.qp(&options.qp)?;
    pair.qb = pair.b.qp(&options.qp)?;
    front_end::connect_rc(&mut pair.qa, &mut pair.qb, &options.rc)?;
    pair.ping()
}

/// Writes random words over a buffer again and again.
fn scribble(buffer: &Buffer, random: &mut Random, until: Instant) {
    while Instant::now() < until {
        for _ in 0..200 {
            let at = random.below(buffer.len() / 8) * 8;
            buffer.store_u64(at, random.next());
        }
    }
}

#[test]
fn a_consumer_index_may_be_anything() -> TestResult {
    let (_daemon, mut bystander, mut pair) = start()?;
    for value in [u32::MAX, 1, 255, 256, 257, 1 << 31, (1 << 31) + 1, 0x1234_5678] {
        let Pair { a, b, qa, qb: _ } = &mut pair;
        for _ in 0..20 {
            a.send_cq.buffer().store_u32(0, value);
            let sges = [a.mr.sge(0, 8)];
            qa.post_send(&SendWr::write(1, &sges, b.mr.remote(0)).signaled())?;
            // It may come, or the CQ is over; both are right.
            let deadline = Instant::now() + Duration::from_millis(20);
            while a.send_cq.poll_silently().is_none() && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
        bystander.check()?;
        can_be_cleared_up(&mut pair)?;
    }
    Ok(())
}

#[test]
fn an_arm_word_may_be_anything() -> TestResult {
    let (_daemon, mut bystander, mut pair) = start()?;
    let mut random = Random(0xa);
    for round in 0..300 {
        let word = if round % 3 == 0 { 0 } else { random.next() as u32 };
        pair.b.recv_cq.buffer().store_u32(4, word);
        pair.ping()?;
    }
    let mut events = 0;
    while pair.b.recv_cq.wait_event(Duration::from_millis(100))?.is_some() {
        events += 1;
    }
    assert!(events <= 300, "{events} events for 300 arm words");
    bystander.check()?;
    can_be_cleared_up(&mut pair)
}

#[test]
fn a_send_queue_full_of_ones_is_one_error_and_flushes() -> TestResult {
    let (_daemon, mut bystander, mut pair) = start()?;
    let Pair { a, qa, .. } = &mut pair;
    let (start, stride) = qa.send_slot(0);
    qa.buffer().write(start, &vec![0xff; 64 * stride]);
    qa.ring_send();
    let wcs = a.send_cq.poll_for(64, LONG)?;
    assert_eq!((wcs[0].wr_id, wcs[0].status), (u64::MAX, WC_LOC_QP_OP_ERR));
    flushed(&wcs[1..], &[u64::MAX; 63]);
    // The next lap would want phase 0: the ring is empty now.
    assert_eq!(a.send_cq.poll_one(), None);
    bystander.check()?;
    can_be_cleared_up(&mut pair)
}

#[test]
fn phases_that_flip_all_the_time_stop_nobody_else() -> TestResult {
    let (_daemon, mut bystander, mut pair) = start()?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> TestResult {
        let (qa, stop_ref) = (&mut pair.qa, &stop);
        let flipper = scope.spawn(move || {
            let mut lap = 0_u64;
            while !stop_ref.load(Ordering::Relaxed) {
                for n in 0..64 {
                    // A WRITE of nothing, signalled: all phases of a lap, then of the next.
                    let phase = (lap & 1) ^ 1;
                    qa.buffer().store_u64(qa.send_slot(n).0, 2 << 8 | phase << 24);
                }
                qa.ring_send();
                lap += 1;
                std::thread::yield_now();
            }
        });
        let result = (0..10).try_for_each(|_| bystander.check());
        stop.store(true, Ordering::Relaxed);
        flipper.join().map_err(|_| "the flipper panicked")?;
        result
    })?;
    can_be_cleared_up(&mut pair)
}

#[test]
fn mode_words_are_the_device_s_and_may_be_overwritten() -> TestResult {
    let (_daemon, mut bystander, mut pair) = start()?;
    for word in [0, 1, u32::MAX, 0xffff_0000, 0x0001_0001] {
        let Pair { a, b, qa, qb: _ } = &mut pair;
        qa.buffer().store_u32(0, word);
        qa.buffer().store_u32(4, word);
        let sges = [a.mr.sge(0, 8)];
        qa.post_send(&SendWr::write(1, &sges, b.mr.remote(0)).signaled())?;
        // Whether the device hears of it is the guest's own doing.
        std::thread::sleep(Duration::from_millis(20));
        bystander.check()?;
        can_be_cleared_up(&mut pair)?;
    }
    Ok(())
}

#[test]
fn bits_of_no_qp_in_a_uar_cost_a_look() -> TestResult {
    let (_daemon, mut bystander, mut pair) = start()?;
    let uar = pair.a.driver.own_uar()?;
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        uar.buffer().fill(0xff);
        for ring in pair.a.driver.queues().rings() {
            ring.kick();
        }
        pair.ping()?;
    }
    bystander.check()?;
    // Another UAR, full of bits, with no QP at all.
    let empty = pair.a.driver.create_uar(16_384)?;
    empty.buffer().fill(0xff);
    pair.ping()?;
    pair.a.driver.destroy_uar(&empty)?;
    bystander.check()?;
    can_be_cleared_up(&mut pair)
}

#[test]
fn the_device_s_own_lines_and_completions_may_be_overwritten() -> TestResult {
    let (_daemon, mut bystander, mut pair) = start()?;
    let Pair { a, b, qa, qb: _ } = &mut pair;
    let buffer = a.send_cq.buffer();
    buffer.store_u64(64, u64::MAX);
    buffer.write(128, &vec![0xff; 4096]);
    a.driver.status_page().fill(0xff);
    let sges = [a.mr.sge(0, 8)];
    for _ in 0..10 {
        qa.post_send(&SendWr::write(1, &sges, b.mr.remote(0)).signaled())?;
    }
    std::thread::sleep(Duration::from_millis(20));
    a.driver.status_page().fill(0);
    bystander.check()?;
    can_be_cleared_up(&mut pair)
}

#[test]
fn a_guest_that_scribbles_on_everything_at_random_harms_itself_only() -> TestResult {
    let (_daemon, mut bystander, mut pair) = start()?;
    for seed in 1..=6 {
        let until = Instant::now() + Duration::from_millis(300);
        std::thread::scope(|scope| -> TestResult {
            let pair_ref = &pair;
            let vandal = scope.spawn(move || {
                let mut random = Random(seed * 0x1234_5678_9abc_def1);
                while Instant::now() < until {
                    let soon = Instant::now() + Duration::from_millis(2);
                    let buffers = [
                        pair_ref.qa.buffer(),
                        pair_ref.a.send_cq.buffer(),
                        pair_ref.a.recv_cq.buffer(),
                        pair_ref.qa.uar_slot().0.buffer(),
                        pair_ref.a.driver.status_page(),
                    ];
                    scribble(buffers[random.below(buffers.len())], &mut random, soon);
                    for ring in pair_ref.a.driver.queues().rings() {
                        ring.kick();
                    }
                }
            });
            let mut result = Ok(());
            while Instant::now() < until && result.is_ok() {
                result = bystander.check();
            }
            vandal.join().map_err(|_| "the vandal panicked")?;
            result
        })?;
        pair.a.driver.status_page().fill(0);
        can_be_cleared_up(&mut pair)?;
    }
    Ok(())
}

#[test]
fn virtqueues_that_are_scribbled_on_are_healed_by_a_reset() -> TestResult {
    let (_daemon, mut bystander, pair) = start()?;
    let mut random = Random(7);
    for _ in 0..10 {
        let queues = pair.a.vm.queues();
        for ring in queues.rings() {
            let ring = Arc::clone(ring);
            for _ in 0..100 {
                let at = random.below(ring.buffer().len() / 8) * 8;
                ring.buffer().store_u64(at, random.next());
            }
            ring.kick();
        }
        bystander.check()?;
        pair.a.vm.reboot()?;
        let driver = pair.a.vm.driver()?;
        driver.alloc_pd()?;
    }
    Ok(())
}

#[test]
fn the_scribbler_s_peer_gets_an_error_and_not_his_bytes() -> TestResult {
    let (_daemon, mut bystander, mut pair) = start()?;
    // B's memory outside the MR it gives to A stays as it is, whatever A posts.
    let secret = pair.b.vm.memory().alloc_scattered(64 << 10)?;
    secret.fill(0x5c);
    let mut random = Random(99);
    let options = PairOptions {
        rc: front_end::RcOptions { timeout: 6, retry_cnt: 1, rnr_retry: 0, ..Default::default() },
        ..PairOptions::default()
    };
    for _ in 0..200 {
        let (address, rkey) = (random.next(), random.next() as u32);
        let sges = [pair.a.mr.sge(0, 4096)];
        let mut wr = SendWr::write(1, &sges, (address, rkey)).signaled();
        if random.next() & 1 == 0 {
            // The right key, an address near the right one.
            wr.rkey = pair.b.mr.rkey;
            wr.remote_addr =
                pair.b.mr.iova.wrapping_add(pair.b.mr.length).wrapping_add(address & 0xffff);
        }
        pair.qa.post_send(&wr)?;
        assert_ne!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        pair.renew_qps(&options)?;
    }
    assert!(secret.read(0, secret.len()).iter().all(|byte| *byte == 0x5c));
    bystander.check()
}
