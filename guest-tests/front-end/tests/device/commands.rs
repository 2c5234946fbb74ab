// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The good path of each control command, what depends on what, and the order of commands.

use front_end::abi::control::*;
use front_end::{GidEntry, QpOptions, RcOptions, Status, access};
use zerocopy::IntoBytes;

use crate::harness::{TestDaemon, TestResult, refused, soft_alone};

#[test]
fn objects_are_made_queried_and_destroyed() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let pd = driver.alloc_pd()?;
    let buffer = vm.memory().alloc_scattered(100_000)?;
    let mr = driver.reg_mr(&pd, &buffer, access::ALL)?;
    let local = driver.reg_mr(&pd, &buffer, access::LOCAL_WRITE)?;
    assert_ne!(mr.rkey, 0);
    assert_ne!(local.rkey, 0, "REREG_MR may give it a use");
    assert_ne!(mr.lkey, local.lkey);
    let kernel_pd = driver.alloc_pd()?;
    let dma = driver.get_dma_mr(&kernel_pd, access::LOCAL_WRITE)?;
    let (send_cq, recv_cq) = (driver.create_cq(16, 0)?, driver.create_cq(1024, 1)?);
    assert_ne!(send_cq.number(), recv_cq.number());
    let uar = driver.create_uar(4096)?;
    let options = QpOptions { uar: Some(uar.clone()), ..QpOptions::default() };
    let qp = driver.create_qp(&pd, &send_cq, &recv_cq, &options)?;
    assert_eq!(driver.query_qp(qp.number())?.qp_state, QP_STATE_RESET);
    driver.destroy_qp(&qp)?;
    refused(driver.destroy_qp(&qp), Status::NoObject);
    driver.destroy_uar(&uar)?;
    driver.destroy_cq(&send_cq)?;
    driver.destroy_cq(&recv_cq)?;
    for mr in [mr, local, dma] {
        driver.dereg_mr(&mr)?;
        refused(driver.dereg_mr(&mr), Status::NoObject);
    }
    for pd in [pd, kernel_pd] {
        driver.dealloc_pd(&pd)?;
        refused(driver.dealloc_pd(&pd), Status::NoObject);
    }
    Ok(())
}

#[test]
fn what_is_in_use_is_not_destroyed() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let pd = driver.alloc_pd()?;
    let buffer = vm.memory().alloc_scattered(4096)?;
    let mr = driver.reg_mr(&pd, &buffer, access::ALL)?;
    refused(driver.dealloc_pd(&pd), Status::Busy);
    driver.dereg_mr(&mr)?;
    let (send_cq, recv_cq) = (driver.create_cq(16, 0)?, driver.create_cq(16, 0)?);
    let uar = driver.create_uar(4096)?;
    let options = QpOptions { uar: Some(uar.clone()), ..QpOptions::default() };
    let qp = driver.create_qp(&pd, &send_cq, &recv_cq, &options)?;
    refused(driver.dealloc_pd(&pd), Status::Busy);
    refused(driver.destroy_cq(&send_cq), Status::Busy);
    refused(driver.destroy_cq(&recv_cq), Status::Busy);
    refused(driver.destroy_uar(&uar), Status::Busy);
    driver.destroy_qp(&qp)?;
    driver.destroy_uar(&uar)?;
    let srq = driver.create_srq(&pd, 16, 1, 0)?;
    refused(driver.destroy_uar(&driver.own_uar()?), Status::Busy);
    driver.destroy_srq(&srq)?;
    driver.destroy_cq(&send_cq)?;
    driver.destroy_cq(&recv_cq)?;
    driver.dealloc_pd(&pd)?;
    Ok(())
}

#[test]
fn a_limit_that_is_reached_is_said_and_can_be_left_again() -> TestResult {
    if !soft_alone("an HCA of the host's counts what all its users have") {
        return Ok(());
    }
    let daemon = TestDaemon::start(3)?;
    let mut bystander = crate::harness::Bystander::new(&daemon, 1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let limit = driver.query_device()?.max_pd.get();
    let mut pds = Vec::new();
    for _ in 0..limit {
        pds.push(driver.alloc_pd()?);
    }
    refused(driver.alloc_pd(), Status::NoResources);
    let mut numbers: Vec<_> = pds.iter().map(|pd| pd.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), pds.len(), "each has its own number");
    bystander.check()?;
    driver.dealloc_pd(&pds[100])?;
    pds[100] = driver.alloc_pd()?;
    refused(driver.alloc_pd(), Status::NoResources);
    // A new driver finds all of them gone.
    let driver = vm.driver()?;
    driver.alloc_pd()?;
    Ok(())
}

#[test]
fn gids_are_added_and_taken_out() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let (vm, other) = (daemon.vm(0)?, daemon.vm(1)?);
    let driver = vm.driver()?;
    let mine = vm.gid();
    driver.add_gid(mine)?;
    let mut second = GidEntry { index: 1, ..mine };
    second.gid[12] = 172;
    driver.add_gid(second)?;
    driver.del_gid(1)?;
    driver.del_gid(1)?;
    refused(driver.del_gid(u32::MAX), Status::Invalid);
    refused(driver.add_gid(GidEntry { index: 1 << 20, ..mine }), Status::Invalid);
    refused(driver.add_gid(GidEntry { index: 2, gid: [0; 16], ..mine }), Status::Invalid);
    refused(driver.add_gid(GidEntry { index: 2, gid: [0xff; 16], ..mine }), Status::Invalid);
    // An entry that is taken is replaced.
    driver.add_gid(GidEntry { index: 0, ..second })?;
    driver.add_gid(mine)?;
    // Somebody else's address is not to be had, until that VM lets go of it.
    let thief = other.driver()?;
    refused(thief.add_gid(GidEntry { index: 3, ..mine }), Status::Busy);
    driver.del_gid(0)?;
    thief.add_gid(GidEntry { index: 3, ..mine })?;
    Ok(())
}

#[test]
fn a_qp_remembers_its_attributes() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let pd = driver.alloc_pd()?;
    let cq = driver.create_cq(16, 0)?;
    let mut qp = driver.create_qp(&pd, &cq, &cq, &QpOptions::default())?;
    let options = RcOptions {
        path_mtu: 3,
        psn: 0x123456,
        timeout: 9,
        retry_cnt: 5,
        rnr_retry: 4,
        min_rnr_timer: 7,
        max_rd_atomic: 3,
        access: access::REMOTE_READ,
        sgid_index: 0,
    };
    let mut peer = qp.endpoint();
    peer.qpn = 0x00ab_cdef;
    qp.connect(&peer, &options)?;
    let attr = driver.query_qp(qp.number())?;
    assert_eq!((attr.qp_state, attr.cur_qp_state), (QP_STATE_RTS, QP_STATE_RTS));
    assert_eq!(attr.path_mtu, 3);
    assert_eq!(attr.dest_qpn.get(), 0x00ab_cdef);
    assert_eq!((attr.sq_psn.get(), attr.rq_psn.get()), (0x123456, 0x123456));
    assert_eq!((attr.timeout, attr.retry_cnt, attr.rnr_retry), (9, 5, 4));
    assert_eq!((attr.min_rnr_timer, attr.max_rd_atomic, attr.max_dest_rd_atomic), (7, 3, 3));
    assert_eq!(attr.access.get(), access::REMOTE_READ);
    assert_eq!((attr.av.dgid, attr.av.dmac, attr.av.hop_limit), (peer.gid, peer.mac, 64));
    assert_eq!(attr.port, 1);
    Ok(())
}

#[test]
fn the_state_machine_of_a_qp_is_iba_s() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let pd = driver.alloc_pd()?;
    let cq = driver.create_cq(16, 0)?;
    let mut qp = driver.create_qp(&pd, &cq, &cq, &QpOptions::default())?;
    let options = RcOptions::default();
    let peer = qp.endpoint();
    // From RESET, only to INIT, ERR and RESET.
    refused(qp.to_rtr(&peer, &options), Status::BadState);
    refused(qp.to_rts(&options), Status::BadState);
    refused(qp.modify_state(QP_STATE_SQD), Status::BadState);
    qp.modify_state(QP_STATE_RESET)?;
    qp.to_init(&options)?;
    qp.to_init(&options)?;
    refused(qp.to_rts(&options), Status::BadState);
    qp.to_rtr(&peer, &options)?;
    refused(qp.to_rtr(&peer, &options), Status::BadState);
    refused(qp.to_init(&options), Status::BadState);
    qp.to_rts(&options)?;
    refused(qp.to_rtr(&peer, &options), Status::BadState);
    qp.modify_state(QP_STATE_SQD)?;
    qp.modify_state(QP_STATE_RTS)?;
    qp.modify_state(QP_STATE_ERR)?;
    refused(qp.modify_state(QP_STATE_RTS), Status::BadState);
    refused(qp.to_init(&options), Status::BadState);
    qp.modify_state(QP_STATE_ERR)?;
    qp.modify_state(QP_STATE_RESET)?;
    qp.connect(&peer, &options)?;
    refused(qp.modify_state(9), Status::Invalid);
    assert_eq!(driver.query_qp(qp.number())?.qp_state, QP_STATE_RTS);
    Ok(())
}

#[test]
fn attributes_that_are_missing_or_out_of_range_are_refused() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let pd = driver.alloc_pd()?;
    let cq = driver.create_cq(16, 0)?;
    let mut qp = driver.create_qp(&pd, &cq, &cq, &QpOptions::default())?;
    refused(qp.modify_state(QP_STATE_INIT), Status::Invalid);
    let init = QpAttr {
        qp_state: QP_STATE_INIT,
        port: 1,
        access: access::ALL.into(),
        ..QpAttr::default()
    };
    let mask = QP_ATTR_STATE | QP_ATTR_PKEY_INDEX | QP_ATTR_PORT | QP_ATTR_ACCESS_FLAGS;
    refused(qp.modify(mask, &QpAttr { port: 2, ..init }), Status::Invalid);
    refused(qp.modify(mask, &QpAttr { pkey_index: 1.into(), ..init }), Status::Invalid);
    refused(qp.modify(mask | QP_ATTR_SQ_PSN, &init), Status::Invalid);
    refused(qp.modify(mask | 1 << 31, &init), Status::Invalid);
    qp.modify(mask, &init)?;

    let good = RcOptions::default();
    let peer = qp.endpoint();
    for bad in [
        RcOptions { path_mtu: 0, ..good },
        RcOptions { path_mtu: 6, ..good },
        RcOptions { min_rnr_timer: 32, ..good },
        RcOptions { max_rd_atomic: 255, ..good },
        RcOptions { sgid_index: 5, ..good },
        RcOptions { sgid_index: u32::MAX, ..good },
    ] {
        refused(qp.to_rtr(&peer, &bad), Status::Invalid);
        assert_eq!(driver.query_qp(qp.number())?.qp_state, QP_STATE_INIT);
    }
    let mut far = peer;
    far.qpn = 1 << 24;
    refused(qp.to_rtr(&far, &good), Status::Invalid);
    qp.to_rtr(&peer, &good)?;
    for bad in [
        RcOptions { timeout: 32, ..good },
        RcOptions { retry_cnt: 8, ..good },
        RcOptions { rnr_retry: 8, ..good },
        RcOptions { max_rd_atomic: 255, ..good },
    ] {
        refused(qp.to_rts(&bad), Status::Invalid);
    }
    qp.to_rts(&good)?;
    Ok(())
}

#[test]
fn commands_in_the_ring_together_are_answered_in_order() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    for _ in 0..20 {
        let requests: Vec<_> = (0..16)
            .map(|n| {
                let command = if n % 3 == 0 { CMD_QUERY_DEVICE } else { CMD_ALLOC_PD };
                (driver.next_header(command).as_bytes().to_vec(), 300)
            })
            .collect();
        let (answers, order) = driver.commands_at_once(&requests)?;
        assert_eq!(order, (0..16).collect::<Vec<_>>());
        for ((request, _), answer) in requests.iter().zip(&answers) {
            assert_eq!(&answer[..4], &[0; 4], "OK");
            assert_eq!(&answer[4..8], &request[4..8], "the sequence number");
        }
    }
    Ok(())
}

#[test]
fn a_repeated_sequence_number_gets_the_stored_answer() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let room = size_of::<ControlStatus>() + size_of::<NumberAnswer>();
    let header = driver.next_header(CMD_ALLOC_PD);
    let first = driver.command_raw(header.as_bytes(), room)?;
    assert_eq!(&first[..4], &[0; 4]);
    for _ in 0..3 {
        assert_eq!(driver.command_raw(header.as_bytes(), room)?, first);
    }
    let second = driver.command_raw(driver.next_header(CMD_ALLOC_PD).as_bytes(), room)?;
    assert_ne!(second[8..12], first[8..12], "another PD");
    // A repeated destruction says what the first one said.
    let pd = u32::from_le_bytes([second[8], second[9], second[10], second[11]]);
    let request = NumberRequest { number: pd.into(), reserved: 0.into() };
    let header = driver.next_header(CMD_DEALLOC_PD);
    let bytes = [header.as_bytes(), request.as_bytes()].concat();
    for _ in 0..3 {
        let answer = driver.command_raw(&bytes, 8)?;
        assert_eq!(answer[..4], [0; 4]);
    }
    Ok(())
}

#[test]
fn counters_count() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let mut pair = crate::harness::Pair::new(&daemon, 0, &Default::default())?;
    let before = pair.a.driver.query_counters()?;
    for _ in 0..10 {
        pair.ping()?;
    }
    let after = pair.a.driver.query_counters()?;
    assert_eq!(after.send_wqes.get() - before.send_wqes.get(), 10);
    assert_eq!(after.completions.get() - before.completions.get(), 10);
    assert_eq!(after.tx_bytes.get() - before.tx_bytes.get(), 30_000);
    let peer = pair.b.driver.query_counters()?;
    assert_eq!((peer.recv_wqes.get(), peer.rx_bytes.get()), (10, 30_000));
    assert_eq!(after.guest_errors.get(), before.guest_errors.get());
    Ok(())
}
