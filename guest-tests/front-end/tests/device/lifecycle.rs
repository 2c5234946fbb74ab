// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Stop, resume, reset, reboot, disconnect, reconnect, and memory that comes and goes, with work in
//! flight.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use front_end::abi::event::{EVENT_HCA_ADDED, EVENT_HCA_REMOVED};
use front_end::abi::ring::{
    WC_REM_ACCESS_ERR, WC_RETRY_EXC_ERR, WC_RNR_RETRY_EXC_ERR, WC_SUCCESS, WC_WR_FLUSH_ERR,
};
use vhost::vhost_user::VhostUserFrontend;

use front_end::{Cq, Mr, Qp, QpOptions, RcOptions, SendWr, Status, access, connect_rc};

use crate::harness::{
    Bystander, LONG, Pair, PairOptions, Random, SHORT, Side, TestDaemon, TestResult, check, fill,
    refused, soft_alone,
};

/// Gives up on a peer within milliseconds.
fn impatient() -> PairOptions {
    PairOptions {
        rc: RcOptions { timeout: 8, retry_cnt: 2, rnr_retry: 2, ..RcOptions::default() },
        ..PairOptions::default()
    }
}

/// Never gives up on a peer that comes back within seconds.
fn patient() -> PairOptions {
    PairOptions {
        rc: RcOptions { timeout: 18, retry_cnt: 7, rnr_retry: 7, ..RcOptions::default() },
        ..PairOptions::default()
    }
}

/// Writes the count of its WRITEs to the peer until it is told to stop or fails; returns the last
/// status.
fn write_without_end(
    qp: &mut Qp,
    cq: &mut Cq,
    mr: Mr,
    remote: (u64, u32),
    stop: &AtomicBool,
    done: &AtomicU64,
) -> TestResult<u8> {
    while !stop.load(Ordering::Relaxed) {
        let sges = [mr.sge(0, 4096)];
        qp.post_send(&SendWr::write(1, &sges, remote).signaled())?;
        let wc = cq.wait_one(LONG)?;
        if wc.status != WC_SUCCESS {
            return Ok(wc.status);
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(WC_SUCCESS)
}

#[test]
fn a_device_that_was_stopped_resumes_with_its_objects() -> TestResult {
    if !soft_alone("an HCA of the host's can't be held still: QPs of a stopped VM end") {
        return Ok(());
    }
    let (_daemon, mut pair) = Pair::start(&patient())?;
    for round in 0..5 {
        pair.ping()?;
        let bases = pair.a.vm.stop()?;
        assert!(bases[0] > 0, "commands were executed");
        if round % 2 == 0 {
            pair.b.vm.stop()?;
            pair.b.vm.start()?;
        }
        pair.a.vm.start()?;
        pair.ping()?;
        let pd = pair.a.driver.alloc_pd()?;
        pair.a.driver.dealloc_pd(&pd)?;
    }
    Ok(())
}

#[test]
fn work_posted_to_a_stopped_device_is_done_when_it_resumes() -> TestResult {
    if !soft_alone("an HCA of the host's can't be held still: QPs of a stopped VM end") {
        return Ok(());
    }
    let (_daemon, mut pair) = Pair::start(&patient())?;
    pair.ping()?;
    let Pair { a, b, qa, qb } = &mut pair;
    a.vm.stop()?;
    fill(&a.buffer, 0, 5000, 9);
    qb.post_recv(1, &[b.mr.sge(0, 5000)])?;
    qa.post_send(&SendWr::send(2, &[a.mr.sge(0, 5000)]).signaled())?;
    std::thread::sleep(SHORT);
    assert_eq!(a.send_cq.poll_one(), None, "stopped");
    assert_eq!(b.recv_cq.poll_one(), None);
    a.vm.start()?;
    assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    assert_eq!(b.recv_cq.wait_one(LONG)?.status, WC_SUCCESS);
    check(&b.buffer, 0, 5000, 9);
    Ok(())
}

#[test]
fn a_single_ring_that_is_disabled_stops_the_device() -> TestResult {
    if !soft_alone("an HCA of the host's can't be held still: QPs of a stopped VM end") {
        return Ok(());
    }
    let mut options = patient();
    options.rc.timeout = 16;
    let (_daemon, mut pair) = Pair::start(&options)?;
    let rings = pair.b.vm.queues().rings().len();
    for ring in 0..rings {
        pair.ping()?;
        let mut frontend = pair.b.vm.frontend()?;
        frontend.set_vring_enable(ring, false)?;
        pair.b.buffer.fill(0x21);
        let sges = [pair.a.mr.sge(0, 4096)];
        pair.a.buffer.fill(0x42);
        pair.qa.post_send(&SendWr::write(1, &sges, pair.b.mr.remote(0)).signaled())?;
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(pair.a.send_cq.poll_one(), None, "ring {ring}");
        assert_eq!(pair.b.buffer.read(0, 4096), [0x21; 4096], "ring {ring}");
        frontend.set_vring_enable(ring, true)?;
        assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS, "ring {ring}");
        assert_eq!(pair.b.buffer.read(0, 4096), [0x42; 4096], "ring {ring}");
    }
    pair.ping()
}

#[test]
fn nothing_is_stored_into_a_vm_after_it_was_stopped() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let mut pair = Pair::new(&daemon, 0, &impatient())?;
    for reset in [false, true, false, true, false, true] {
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let remote = pair.b.mr.remote(0);
        std::thread::scope(|scope| -> TestResult {
            let Pair { a, b, qa, qb: _ } = &mut pair;
            let mr = a.mr;
            let (send_cq, stop_ref, done_ref) = (&mut a.send_cq, &stop, &done);
            let writer =
                scope.spawn(move || write_without_end(qa, send_cq, mr, remote, stop_ref, done_ref));
            // The source changes all the time, so that each store shows.
            let mut seed = 0_u8;
            while done.load(Ordering::Relaxed) < 200 {
                seed = seed.wrapping_add(1);
                fill(&a.buffer, 0, 4096, seed);
                assert!(!writer.is_finished(), "the writer failed early");
            }
            b.vm.stop()?;
            b.buffer.write(0, &[0x11; 4096]);
            for _ in 0..20 {
                seed = seed.wrapping_add(1);
                fill(&a.buffer, 0, 4096, seed);
                std::thread::sleep(Duration::from_millis(1));
            }
            let seen = b.buffer.read(0, 4096);
            assert!(seen.iter().all(|byte| *byte == 0x11), "stored into after the stop");
            // Reboot: everything is gone, and the peer finds out.
            if reset {
                b.vm.reset_device()?
            } else {
                b.vm.reboot()?
            }
            let status = writer.join().map_err(|_| "the writer panicked")??;
            assert_eq!(status, WC_RETRY_EXC_ERR);
            Ok(())
        })?;
        bystander.check()?;
        // A new kernel in B, and a new connection.
        let vm = pair.b.vm;
        pair.b = Side::new(vm, 256 << 10, 256)?;
        pair.a.send_cq.clean(pair.qa.number());
        pair.a.driver.destroy_qp(&pair.qa)?;
        pair.a.send_cq.clean(pair.qa.number());
        pair.qa = pair.a.qp(&QpOptions::default())?;
        pair.qb = pair.b.qp(&QpOptions::default())?;
        connect_rc(&mut pair.qa, &mut pair.qb, &impatient().rc)?;
        pair.ping()?;
    }
    Ok(())
}

#[test]
fn a_reboot_drops_every_object() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&impatient())?;
    pair.ping()?;
    pair.a.vm.reboot()?;
    let driver = pair.a.vm.driver()?;
    refused(driver.query_qp(pair.qa.number()), Status::NoObject);
    refused(driver.destroy_cq(&pair.a.send_cq), Status::NoObject);
    refused(driver.dealloc_pd(&pair.a.pd), Status::NoObject);
    refused(driver.dereg_mr(&pair.a.mr), Status::NoObject);
    Ok(())
}

#[test]
fn a_front_end_that_goes_with_work_in_flight_is_a_peer_that_does_not_answer() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let mut pair = Pair::new(&daemon, 0, &impatient())?;
    for _ in 0..5 {
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let remote = pair.b.mr.remote(0);
        let Pair { a, b, qa, qb } = &mut pair;
        // Work of B's own is in flight, too.
        for _ in 0..20 {
            let sges = [b.mr.sge(0, 65_536)];
            qb.post_send(&SendWr::write(1, &sges, a.mr.remote(65_536)))?;
        }
        std::thread::scope(|scope| -> TestResult {
            let mr = a.mr;
            let (send_cq, stop, done_ref) = (&mut a.send_cq, &stop, &done);
            let writer =
                scope.spawn(move || write_without_end(qa, send_cq, mr, remote, stop, done_ref));
            while done.load(Ordering::Relaxed) < 50 && !writer.is_finished() {
                std::thread::yield_now();
            }
            b.vm.disconnect();
            let status = writer.join().map_err(|_| "the writer panicked")??;
            assert_eq!(status, WC_RETRY_EXC_ERR);
            Ok(())
        })?;
        bystander.check()?;
        pair.b.vm.reconnect_anew()?;
        let vm = pair.b.vm;
        pair.b = Side::new(vm, 256 << 10, 256)?;
        pair.a.driver.destroy_qp(&pair.qa)?;
        pair.a.send_cq.clean(pair.qa.number());
        pair.qa = pair.a.qp(&QpOptions::default())?;
        pair.qb = pair.b.qp(&QpOptions::default())?;
        connect_rc(&mut pair.qa, &mut pair.qb, &impatient().rc)?;
        pair.ping()?;
    }
    bystander.check()
}

#[test]
fn a_daemon_counts_its_hcas_from_another_number_than_the_one_before() -> TestResult {
    let generation = || -> TestResult<u32> {
        let (_daemon, pair) = Pair::start(&impatient())?;
        Ok(pair.a.vm.config()?.hca_generation.get())
    };
    // Else a driver whose daemon was killed would find the number that it knows, and notice nothing.
    assert_ne!(generation()?, generation()?);
    Ok(())
}

#[test]
fn a_front_end_that_comes_back_to_its_rings_is_told_to_begin_anew() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&impatient())?;
    for _ in 0..5 {
        pair.ping()?;
        let before = pair.a.vm.config()?.hca_generation.get();
        pair.a.vm.disconnect();
        std::thread::sleep(Duration::from_millis(20));
        pair.a.vm.reconnect()?;
        // What the driver had is gone, and this is how it hears of it.
        for kind in [EVENT_HCA_REMOVED, EVENT_HCA_ADDED] {
            let event = pair.a.driver.next_async_event(LONG)?.ok_or("no event")?;
            assert_eq!(event.event.get(), kind);
        }
        let after = pair.a.vm.config()?.hca_generation.get();
        assert!(after > before && after % 2 == 1, "generation {before}, then {after}");
        refused(pair.a.driver.alloc_pd(), Status::NotInitialized);
        refused(pair.a.driver.query_qp(pair.qa.number()), Status::NotInitialized);
        // INIT on the same rings, and all over again.
        let vm = pair.a.vm;
        pair.a = Side::new(vm, 256 << 10, 256)?;
        pair.b.driver.destroy_qp(&pair.qb)?;
        pair.qa = pair.a.qp(&QpOptions::default())?;
        pair.qb = pair.b.qp(&QpOptions::default())?;
        connect_rc(&mut pair.qa, &mut pair.qb, &impatient().rc)?;
    }
    pair.ping()
}

#[test]
fn the_memory_table_may_change_while_peers_write() -> TestResult {
    for memory_slots in [true, false] {
        let mut options = patient();
        options.vm.memory_slots = memory_slots;
        let (_daemon, mut pair) = Pair::start(&options)?;
        let Pair { a, b, qa, qb: _ } = &mut pair;
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let (remote, mr) = (b.mr.remote(0), a.mr);
        fill(&a.buffer, 0, 4096, 42);
        std::thread::scope(|scope| -> TestResult {
            let (send_cq, stop_ref, done_ref) = (&mut a.send_cq, &stop, &done);
            let writer =
                scope.spawn(move || write_without_end(qa, send_cq, mr, remote, stop_ref, done_ref));
            // Not before the writer has begun.
            while done.load(Ordering::Relaxed) == 0 && !writer.is_finished() {
                std::thread::yield_now();
            }
            let result = (0..30).try_for_each(|_| -> TestResult {
                let extra = b.vm.add_memory(4 << 20)?;
                // What is registered in it works.
                let buffer = b.vm.memory().alloc_scattered_in(extra, 65_536)?;
                let mr = b.driver.reg_mr(&b.pd, &buffer, access::ALL)?;
                b.driver.dereg_mr(&mr)?;
                drop(buffer);
                b.vm.remove_memory(extra)?;
                if !memory_slots {
                    b.vm.resend_memory_table()?;
                }
                Ok(())
            });
            stop.store(true, Ordering::Relaxed);
            let status = writer.join().map_err(|_| "the writer panicked")??;
            result?;
            assert_eq!(status, WC_SUCCESS);
            Ok(())
        })?;
        check(&b.buffer, 0, 4096, 42);
        pair.ping()?;
    }
    Ok(())
}

#[test]
fn an_mr_whose_memory_is_unplugged_answers_no_more() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let mut pair = Pair::new(&daemon, 0, &impatient())?;
    for _ in 0..5 {
        let Pair { a, b, qa, qb: _ } = &mut pair;
        let extra = b.vm.add_memory(8 << 20)?;
        let buffer = b.vm.memory().alloc_scattered_in(extra, 65_536)?;
        let mr = b.driver.reg_mr(&b.pd, &buffer, access::ALL)?;
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let (local, remote) = (a.mr, mr.remote(0));
        std::thread::scope(|scope| -> TestResult {
            let (send_cq, stop, done_ref) = (&mut a.send_cq, &stop, &done);
            let writer =
                scope.spawn(move || write_without_end(qa, send_cq, local, remote, stop, done_ref));
            while done.load(Ordering::Relaxed) < 50 && !writer.is_finished() {
                std::thread::yield_now();
            }
            b.vm.remove_memory(extra)?;
            // The pages are still mapped here, so a late store would show.
            buffer.fill(0x77);
            let status = writer.join().map_err(|_| "the writer panicked")??;
            assert_eq!(status, WC_REM_ACCESS_ERR);
            assert!(buffer.read(0, 65_536).iter().all(|byte| *byte == 0x77));
            Ok(())
        })?;
        b.driver.dereg_mr(&mr)?;
        pair.renew_qps(&impatient())?;
        pair.ping()?;
    }
    bystander.check()
}

#[test]
fn rings_whose_memory_is_unplugged_are_the_guest_s_loss_only() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let mut pair = Pair::new(&daemon, 0, &impatient())?;
    pair.ping()?;
    // Move B's QP and receive CQ into a region of their own: by making all other memory unavailable
    // is not possible, so the request is made by hand.
    let extra = pair.b.vm.add_memory(8 << 20)?;
    let memory = pair.b.vm.memory().clone();
    let mut prepared_cq = pair.b.driver.prepare_cq(64, 0)?;
    prepared_cq.buffer = memory.alloc_contiguous_in(extra, prepared_cq.buffer.len())?;
    prepared_cq.tables = front_end::PageTables::of_buffer(&memory, &prepared_cq.buffer)?;
    prepared_cq.request.pages = prepared_cq.tables.list;
    let mut cq = pair.b.driver.create_cq_from(prepared_cq)?;
    let options = QpOptions::default();
    let mut prepared = pair.b.driver.prepare_qp(&pair.b.pd, &cq, &cq, &options)?;
    prepared.buffer = memory.alloc_contiguous_in(extra, prepared.buffer.len())?;
    prepared.tables = front_end::PageTables::of_buffer(&memory, &prepared.buffer)?;
    prepared.request.pages = prepared.tables.list;
    let mut qb = pair.b.driver.create_qp_from(prepared)?;
    let mut qa = pair.a.qp(&options)?;
    connect_rc(&mut qa, &mut qb, &impatient().rc)?;
    qb.post_recv(1, &[pair.b.mr.sge(0, 64)])?;
    qa.post_send(&SendWr::send(2, &[pair.a.mr.sge(0, 64)]).signaled())?;
    assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    assert_eq!(cq.wait_one(LONG)?.status, WC_SUCCESS);

    pair.b.vm.remove_memory(extra)?;
    let before = (qb.buffer().read(0, 4096), cq.buffer().read(0, 4096));
    qa.post_send(&SendWr::send(3, &[pair.a.mr.sge(0, 64)]).signaled())?;
    let status = pair.a.send_cq.wait_one(LONG)?.status;
    assert!([WC_RETRY_EXC_ERR, WC_RNR_RETRY_EXC_ERR].contains(&status), "status {status}");
    assert_eq!(before, (qb.buffer().read(0, 4096), cq.buffer().read(0, 4096)), "not touched");
    pair.ping()?;
    pair.b.driver.destroy_qp(&qb)?;
    pair.b.driver.destroy_cq(&cq)?;
    bystander.check()
}

#[test]
fn a_memory_file_that_is_cut_short_is_its_own_vm_s_loss() -> TestResult {
    if !soft_alone("pages that the host's HCA has pinned stay") {
        return Ok(());
    }
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let mut options = impatient();
    options.vm.sealed = false;
    options.vm.memory = 32 << 20;
    let sealed = Pair::new(&daemon, 0, &PairOptions::default())?;
    sealed.a.vm.memory().truncate_file(1, 0).expect_err("sealed");
    drop(sealed);
    let mut pair = Pair::new(&daemon, 0, &options)?;
    pair.ping()?;
    // From here on nothing of B's is touched by this process.
    pair.b.vm.memory().truncate_file(0, 0)?;
    pair.b.vm.memory().truncate_file(1, 0)?;
    // Its virtqueues are gone as well, and it kicks.
    for ring in pair.b.vm.queues().rings() {
        ring.kick();
    }
    let mut errors = 0;
    for wr_id in 0..30 {
        let sges = [pair.a.mr.sge(0, 4096)];
        let wr = match wr_id % 3 {
            0 => SendWr::write(wr_id, &sges, pair.b.mr.remote(4096 * wr_id)),
            1 => SendWr::read(wr_id, &sges, pair.b.mr.remote(4096 * wr_id)),
            _ => SendWr::send(wr_id, &sges),
        };
        pair.qa.post_send(&wr.signaled())?;
        errors += u32::from(pair.a.send_cq.wait_one(LONG)?.status != WC_SUCCESS);
        bystander.check()?;
    }
    assert!(errors > 0, "there is no memory to reach");
    pair.b.vm.disconnect();
    bystander.check()
}

#[test]
fn nonsense_on_the_vhost_user_socket_ends_that_connection_only() -> TestResult {
    let daemon = TestDaemon::start(3)?;
    let mut bystander = Bystander::new(&daemon, 1)?;
    let mut random = Random(0xbad);
    let vm = daemon.vm(0)?;
    vm.driver()?;
    for round in 0..20 {
        let len = [1, 11, 12, 13, 40, 300, 5000][round % 7];
        let mut bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        if round % 3 == 0 && len >= 12 {
            // A header that is right, with a request that is not known or a body that is not right.
            bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
            bytes[8..12].copy_from_slice(&(len as u32 - 12).to_le_bytes());
            bytes[1..4].fill(0);
        }
        vm.send_raw(&bytes)?;
        vm.disconnect();
        bystander.check()?;
        vm.reconnect_anew()?;
        vm.driver()?.alloc_pd()?;
    }
    Ok(())
}

#[test]
fn every_vhost_user_request_with_a_random_body_is_survived() -> TestResult {
    let daemon = TestDaemon::start(3)?;
    let mut bystander = Bystander::new(&daemon, 1)?;
    let mut random = Random(0x5e7);
    let vm = daemon.vm(0)?;
    vm.driver()?;
    for request in 0..=46_u32 {
        for body in [0, 8, 12, 40] {
            // Version 1, and every second time with a reply wanted.
            let flags = if random.next() & 1 == 0 { 1_u32 } else { 9 };
            let mut bytes = [request, flags, body].map(u32::to_le_bytes).concat();
            for _ in 0..body / 4 {
                let word = match random.below(3) {
                    0 => random.next() as u32,
                    1 => random.below(8) as u32,
                    _ => 1 << random.below(32),
                };
                bytes.extend(word.to_le_bytes());
            }
            // The daemon may have hung up over the one before.
            if vm.send_raw(&bytes).is_err() || random.below(4) == 0 {
                vm.disconnect();
                vm.reconnect_anew()?;
            }
        }
        bystander.check()?;
    }
    vm.disconnect();
    vm.reconnect_anew()?;
    vm.driver()?.alloc_pd()?;
    bystander.check()
}

#[test]
fn a_hundred_lives_of_a_vm_leave_nothing_behind() -> TestResult {
    // Other tests of this process open and close files too, so it counts in one of its own.
    if std::env::var_os("ALONE").is_none() {
        let name = "lifecycle::a_hundred_lives_of_a_vm_leave_nothing_behind";
        let status = std::process::Command::new(std::env::current_exe()?)
            .args(["--exact", name, "--nocapture"])
            .env("ALONE", "1")
            .status()?;
        assert!(status.success());
        return Ok(());
    }
    let daemon = TestDaemon::start(2)?;
    let files = || -> TestResult<usize> { Ok(std::fs::read_dir("/proc/self/fd")?.count()) };
    let mappings =
        || -> TestResult<usize> { Ok(std::fs::read_to_string("/proc/self/maps")?.lines().count()) };
    let life = |n: usize| -> TestResult {
        let mut side = Side::new(daemon.vm(n % 2)?, 65_536, 64)?;
        let mut qp = side.qp(&QpOptions::default())?;
        let own = qp.endpoint();
        qp.connect(&own, &RcOptions::default())?;
        qp.post_send(&SendWr::write(1, &[side.mr.sge(0, 64)], side.mr.remote(4096)).signaled())?;
        assert_eq!(side.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        Ok(())
    };
    for n in 0..10 {
        life(n)?;
    }
    std::thread::sleep(Duration::from_millis(300));
    let before = (files()?, mappings()?);
    for n in 0..100 {
        life(n)?;
    }
    // What the daemon lets go of, it lets go of soon.
    let deadline = Instant::now() + LONG;
    loop {
        let after = (files()?, mappings()?);
        if after.0 <= before.0 + 4 && after.1 <= before.1 + 40 {
            return Ok(());
        }
        assert!(
            Instant::now() < deadline,
            "files and mappings: {before:?} before, {after:?} after"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn deregistration_ends_all_access() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&impatient())?;
    for round in 0..20_u8 {
        let Pair { a, b, qa, qb: _ } = &mut pair;
        let target = b.vm.memory().alloc_scattered(65_536)?;
        let mr = b.driver.reg_mr(&b.pd, &target, access::ALL)?;
        let sges = [a.mr.sge(0, 65_536)];
        for wr_id in 0..16 {
            qa.post_send(&SendWr::write(wr_id, &sges, mr.remote(0)).signaled())?;
        }
        b.driver.dereg_mr(&mr)?;
        target.fill(round);
        let wcs = a.send_cq.poll_for(16, LONG)?;
        let done = wcs.iter().take_while(|wc| wc.status == WC_SUCCESS).count();
        if let Some(first) = wcs.get(done) {
            assert_eq!(first.status, WC_REM_ACCESS_ERR);
            assert!(wcs[done + 1..].iter().all(|wc| wc.status == WC_WR_FLUSH_ERR));
        }
        assert!(target.read(0, 65_536).iter().all(|byte| *byte == round), "stored into later");
        pair.renew_qps(&impatient())?;
    }
    Ok(())
}
