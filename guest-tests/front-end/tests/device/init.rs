// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Config space, features, INIT, and the queries.

use front_end::abi::config::{ABI_MAJOR, ABI_MINOR, Config};
use front_end::abi::control::*;
use front_end::{Status, VmConfig};
use zerocopy::IntoBytes;

use crate::harness::{CAPABILITIES, TestDaemon, TestResult, refused, soft_alone};

#[test]
fn config_space_tells_the_truth_at_every_offset() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let config = vm.config()?;
    assert_eq!(u32::from(config.abi_major.get()), ABI_MAJOR);
    assert_eq!(u32::from(config.abi_minor.get()), ABI_MINOR);
    assert!((1..=31).contains(&config.num_comp_vectors.get()), "{config:?}");
    assert_eq!(config.hca_present, 1);
    assert_eq!(config.hca_generation.get() % 2, 1, "odd while there is an HCA");
    assert_eq!(config.port_state, 4);
    assert!((1..=5).contains(&config.active_mtu) && config.active_mtu <= config.max_mtu);
    assert_eq!(config.reserved, [0; 44]);
    let whole = config.as_bytes();
    for (offset, len) in [(0, 1), (0, 64), (4, 6), (10, 2), (63, 1), (32, 32)] {
        let part = vm.read_config(offset, len)?;
        assert_eq!(part, &whole[offset as usize..(offset + len) as usize]);
    }
    assert_eq!(size_of::<Config>(), 64);
    Ok(())
}

#[test]
fn a_driver_may_use_fewer_vectors_than_there_are() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm_with(0, VmConfig { vectors: 1, ..VmConfig::default() })?;
    let driver = vm.driver()?;
    assert_eq!(driver.queues().vectors(), 1);
    driver.create_cq(4, 0)?;
    refused(driver.create_cq(4, 1), Status::Invalid);
    Ok(())
}

#[test]
fn memory_comes_in_one_table_or_region_by_region() -> TestResult {
    for (memory_slots, regions) in [(true, 1), (true, 6), (false, 1), (false, 8)] {
        let daemon = TestDaemon::start(1)?;
        let config = VmConfig { memory_slots, regions, memory: 32 << 20, ..VmConfig::default() };
        let vm = daemon.vm_with(0, config)?;
        let driver = vm.driver()?;
        driver.create_cq(1024, 0)?;
    }
    Ok(())
}

#[test]
fn rings_work_with_and_without_features_and_at_any_size() -> TestResult {
    for (event_idx, indirect, queue_size) in
        [(false, false, 64), (false, true, 4), (true, false, 4), (true, true, 2), (true, true, 256)]
    {
        let daemon = TestDaemon::start(1)?;
        let config = VmConfig { event_idx, indirect, queue_size, ..VmConfig::default() };
        let vm = daemon.vm_with(0, config)?;
        let driver = vm.driver()?;
        for _ in 0..300 {
            let pd = driver.alloc_pd()?;
            driver.dealloc_pd(&pd)?;
        }
    }
    Ok(())
}

#[test]
fn init_answers_its_versions_and_the_capabilities_in_force() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let answer = driver.init_answer();
    assert_eq!(u32::from(answer.abi_major.get()), ABI_MAJOR);
    assert_eq!(u32::from(answer.abi_minor.get()), ABI_MINOR);
    assert_eq!(answer.capabilities.get() & !CAPABILITIES, 0);
    assert!(answer.max_slots.get() >= 65_536);
    Ok(())
}

#[test]
fn init_refuses_what_it_cannot_work_with() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let page = vm.memory().alloc_contiguous(4096)?;
    let good = InitRequest {
        abi_major: (ABI_MAJOR as u16).into(),
        abi_minor: 0.into(),
        num_comp_vectors: driver.queues().vectors().into(),
        status_page: page.guest_address(0).into(),
        capabilities: 0.into(),
    };
    let init = |request: &InitRequest| {
        driver.command::<InitAnswer>(CMD_INIT, request.as_bytes()).map(|_| ())
    };
    let nowhere = vm.memory().unmapped_address();
    for (bad, status) in [
        (InitRequest { abi_major: 2.into(), ..good }, Status::Unsupported),
        (InitRequest { num_comp_vectors: 0.into(), ..good }, Status::Invalid),
        (InitRequest { num_comp_vectors: 32.into(), ..good }, Status::Invalid),
        (InitRequest { status_page: (page.guest_address(0) + 64).into(), ..good }, Status::Invalid),
        (InitRequest { status_page: nowhere.into(), ..good }, Status::BadAddress),
        (InitRequest { status_page: (u64::MAX << 12).into(), ..good }, Status::BadAddress),
    ] {
        refused(init(&bad), status);
        refused(driver.alloc_pd(), Status::NotInitialized);
    }
    // A minor version that is not known yet, and capabilities likewise, are none of its business.
    init(&InitRequest { abi_minor: 9.into(), capabilities: u64::MAX.into(), ..good })?;
    driver.alloc_pd()?;
    Ok(())
}

#[test]
fn nothing_but_init_works_before_init() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver_without_init()?;
    refused(driver.query_device(), Status::NotInitialized);
    refused(driver.query_port(1), Status::NotInitialized);
    refused(driver.alloc_pd(), Status::NotInitialized);
    refused(driver.add_gid(vm.gid()), Status::NotInitialized);
    refused(driver.destroy(CMD_DESTROY_QP, 1), Status::NotInitialized);
    refused(driver.command::<[u8; 0]>(0x7777, &[]), Status::UnknownCommand);
    vm.driver()?.alloc_pd()?;
    Ok(())
}

#[test]
fn init_destroys_what_an_earlier_driver_left() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let old = vm.driver()?;
    let pd = old.alloc_pd()?;
    let cq = old.create_cq(16, 0)?;
    let qp = old.create_qp(&pd, &cq, &cq, &front_end::QpOptions::default())?;
    let new = vm.driver()?;
    refused(new.query_qp(qp.number()), Status::NoObject);
    refused(new.destroy_cq(&cq), Status::NoObject);
    refused(new.dealloc_pd(&pd), Status::NoObject);
    let pd = new.alloc_pd()?;
    new.dealloc_pd(&pd)?;
    Ok(())
}

#[test]
fn limits_are_at_least_those_of_the_design() -> TestResult {
    if !soft_alone("limits are those of the host's HCA") {
        return Ok(());
    }
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let attr = driver.query_device()?;
    assert!(attr.max_qp.get() >= 65_536);
    assert!(attr.max_cq.get() >= 65_536);
    assert!(attr.max_cqe.get() >= 65_536);
    assert!(attr.max_mr.get() >= 1_000_000);
    assert!(attr.max_qp_wr.get() >= 16_384);
    assert!(attr.max_send_sge.get() >= 30 && attr.max_recv_sge.get() >= 30);
    assert!(attr.max_inline.get() >= 1024);
    assert!(attr.page_size_cap.get() & 4096 != 0);
    assert!(attr.max_qp_rd_atom.get() >= 16);
    let port = driver.query_port(1)?;
    assert_eq!(port.state, 4);
    assert_eq!(port.max_msg_sz.get(), 1 << 31);
    assert!(port.gid_tbl_len.get() >= 16);
    assert_eq!(port.pkey_tbl_len.get(), 1);
    for bad in [0, 2, u32::MAX] {
        refused(driver.query_port(bad), Status::Invalid);
    }
    Ok(())
}

#[test]
fn two_devices_of_one_daemon_have_different_node_guids() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let guid = |n| -> TestResult<_> { Ok(daemon.vm(n)?.driver()?.query_device()?.node_guid) };
    let (a, b) = (guid(0)?, guid(1)?);
    assert_ne!(a, [0; 8]);
    assert_ne!(a, b);
    Ok(())
}
