// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VM that does everything wrong at once and without pause, beside two that work: theirs comes to its
//! end, and is right. How fast that is, the benchmark tells.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use front_end::{Buffer, Qp, QpOptions, RcOptions, SendWr, Vm, VmConfig, connect_rc};

use crate::harness::{Bystander, Random, Side, TestDaemon, TestResult};

/// Rounds of transfers that the neighbours make, before and after the rings lose their memory.
const ROUNDS: usize = 20;

fn config() -> VmConfig {
    VmConfig { memory: 64 << 20, regions: 3, vectors: 2, ..VmConfig::default() }
}

/// QPs of a VM that talk to each other, and have work.
fn busy_qps(side: &mut Side) -> TestResult<Vec<Qp>> {
    let mut qps = Vec::new();
    for _ in 0..4 {
        let (mut one, mut other) =
            (side.qp(&QpOptions::default())?, side.qp(&QpOptions::default())?);
        connect_rc(&mut one, &mut other, &RcOptions::default())?;
        for n in 0..32 {
            one.post_send(&SendWr::write(n, &[side.mr.sge(0, 60_000)], side.mr.remote(64 << 10)))?;
            other.post_recv(n, &[side.mr.sge(0, 100)])?;
        }
        qps.extend([one, other]);
    }
    Ok(qps)
}

/// Until it is told to stop: indices that jump, mode words, arm words and phases of random bits,
/// bitmaps full of ones, doorbells of all vectors. Counts its rounds.
fn rage(side: &Side, qps: &[Qp], stop: &AtomicBool, rounds: &AtomicU64) {
    let mut random = Random(0x5eed);
    let queues = side.driver.queues();
    let mut targets: Vec<&Buffer> = qps.iter().map(Qp::buffer).collect();
    targets.extend([side.send_cq.buffer(), side.recv_cq.buffer(), side.driver.status_page()]);
    let uar = qps[0].uar_slot().0.buffer();
    while !stop.load(Ordering::Relaxed) {
        for n in 0..400 {
            let target = targets[random.below(targets.len())];
            // Half of them where indices and mode words are: in the first lines.
            let len = if n % 2 == 0 { 128 } else { target.len() };
            target.store_u64(random.below(len / 8) * 8, random.next());
            uar.store_u64(random.below(uar.len() / 8) * 8, u64::MAX);
            uar.store_u64(0, u64::MAX);
        }
        for vector in 0..queues.vectors() {
            queues.doorbell(vector).into_iter().for_each(|bell| bell.kick());
        }
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// The VM is as good as new once its driver begins anew.
fn works_after_a_reboot(vm: Vm) -> TestResult {
    vm.reboot()?;
    let mut side = Side::new(vm, 256 << 10, 256)?;
    let mut qps = busy_qps(&mut side)?;
    let sges = [side.mr.sge(0, 64)];
    qps[0].post_send(&SendWr::write(77, &sges, side.mr.remote(4096)).signaled())?;
    assert_eq!(side.send_cq.wait_one(crate::harness::LONG)?.wr_id, 77);
    Ok(())
}

#[test]
fn neighbours_of_a_vm_that_rages_come_to_the_end_of_their_work_and_it_is_right() -> TestResult {
    let daemon = TestDaemon::start(3)?;
    let mut neighbours = Bystander::new(&daemon, 1)?;
    let vm = daemon.vm_with(0, config())?;
    let mut side = Side::new(vm, 256 << 10, 256)?;
    let qps = busy_qps(&mut side)?;
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| -> TestResult {
        let raging = scope.spawn(|| rage(&side, &qps, &stop, &rounds));
        let mut checks = || -> TestResult {
            while rounds.load(Ordering::Relaxed) < 10 && !raging.is_finished() {
                std::thread::yield_now();
            }
            for _ in 0..ROUNDS {
                neighbours.check()?;
            }
            // Memory under rings and MRs goes while the device is at them.
            side.vm.remove_memory(1)?;
            for _ in 0..ROUNDS {
                neighbours.check()?;
            }
            Ok(())
        };
        let checked = checks();
        stop.store(true, Ordering::Relaxed);
        assert!(raging.join().is_ok());
        checked
    })?;
    drop(qps);
    works_after_a_reboot(side.vm)?;
    neighbours.check()
}
