// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Control commands that are short, unknown, or name what is not there; and chains that make no
//! sense.

use front_end::abi::control::on_demand::*;
use front_end::abi::control::*;
use front_end::{Piece, QpOptions, SplitRing, Status, VmConfig, access};
use zerocopy::IntoBytes;

use crate::harness::{Bystander, TestDaemon, TestResult, refused};

const STATUS_BYTES: usize = size_of::<ControlStatus>();

/// Every command but INIT: number, bytes of its request, bytes of its answer.
const COMMANDS: &[(u16, usize, usize)] = &[
    (CMD_QUERY_DEVICE, 0, size_of::<DeviceAttr>()),
    (CMD_QUERY_PORT, size_of::<NumberRequest>(), size_of::<PortAttr>()),
    (CMD_QUERY_COUNTERS, 0, size_of::<Counters>()),
    (CMD_QUERY_CLOCK, 0, size_of::<ClockAnswer>()),
    (CMD_ADD_GID, size_of::<AddGidRequest>(), 0),
    (CMD_DEL_GID, size_of::<NumberRequest>(), 0),
    (CMD_CREATE_UAR, size_of::<CreateUarRequest>(), size_of::<NumberAnswer>()),
    (CMD_DESTROY_UAR, size_of::<NumberRequest>(), 0),
    (CMD_ALLOC_PD, 0, size_of::<NumberAnswer>()),
    (CMD_DEALLOC_PD, size_of::<NumberRequest>(), 0),
    (CMD_ALLOC_XRCD, 0, size_of::<NumberAnswer>()),
    (CMD_DEALLOC_XRCD, size_of::<NumberRequest>(), 0),
    (CMD_REG_MR, size_of::<RegMrRequest>(), size_of::<MrAnswer>()),
    (CMD_DEREG_MR, size_of::<NumberRequest>(), 0),
    (CMD_GET_DMA_MR, size_of::<GetDmaMrRequest>(), size_of::<MrAnswer>()),
    (CMD_ALLOC_MR, size_of::<AllocMrRequest>(), size_of::<MrAnswer>()),
    (CMD_REREG_MR, size_of::<ReregMrRequest>(), size_of::<MrAnswer>()),
    (CMD_ALLOC_MW, size_of::<AllocMwRequest>(), size_of::<MwAnswer>()),
    (CMD_DEALLOC_MW, size_of::<NumberRequest>(), 0),
    (CMD_ALLOC_DM, size_of::<AllocDmRequest>(), size_of::<NumberAnswer>()),
    (CMD_FREE_DM, size_of::<NumberRequest>(), 0),
    (CMD_COPY_DM, size_of::<CopyDmRequest>(), 0),
    (CMD_REG_DM_MR, size_of::<RegDmMrRequest>(), size_of::<MrAnswer>()),
    (CMD_CREATE_CQ, size_of::<CreateCqRequest>(), size_of::<NumberAnswer>()),
    (CMD_DESTROY_CQ, size_of::<NumberRequest>(), 0),
    (CMD_RESIZE_CQ, size_of::<ResizeCqRequest>(), size_of::<NumberAnswer>()),
    (CMD_MODIFY_CQ, size_of::<ModifyCqRequest>(), 0),
    (CMD_CREATE_QP, size_of::<CreateQpRequest>(), size_of::<NumberAnswer>()),
    (CMD_MODIFY_QP, size_of::<ModifyQpRequest>(), 0),
    (CMD_QUERY_QP, size_of::<NumberRequest>(), size_of::<QpAttr>()),
    (CMD_DESTROY_QP, size_of::<NumberRequest>(), 0),
    (CMD_CREATE_SRQ, size_of::<CreateSrqRequest>(), size_of::<NumberAnswer>()),
    (CMD_MODIFY_SRQ, size_of::<ModifySrqRequest>(), 0),
    (CMD_QUERY_SRQ, size_of::<NumberRequest>(), size_of::<SrqAttr>()),
    (CMD_DESTROY_SRQ, size_of::<NumberRequest>(), 0),
    (CMD_RESIZE_SRQ, size_of::<ResizeSrqRequest>(), 0),
    (CMD_SET_AH_TABLE, size_of::<SetAhTableRequest>(), 0),
    (CMD_ATTACH_MCAST, size_of::<McastRequest>(), 0),
    (CMD_DETACH_MCAST, size_of::<McastRequest>(), 0),
    (CMD_REG_ODP_MR, size_of::<RegOdpMrRequest>(), size_of::<MrAnswer>()),
    (CMD_MAP_PAGES, size_of::<MapPagesRequest>(), 0),
    (CMD_UNMAP_PAGES, size_of::<PagesRequest>(), 0),
    (CMD_TAKE_PAGE_FAULT, size_of::<NumberRequest>(), size_of::<PageFaultAnswer>()),
    (CMD_REFUSE_PAGES, size_of::<PagesRequest>(), 0),
];

fn status_of(answer: &[u8]) -> Option<Status> {
    let bytes = answer.get(..4)?;
    Some(Status::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])))
}

#[test]
fn a_short_request_or_a_short_answer_is_a_bad_length() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let all = COMMANDS.iter().copied();
    let init = (CMD_INIT, size_of::<InitRequest>(), size_of::<InitAnswer>());
    for (command, request, answer) in all.chain([init]) {
        let send = |request: usize, room: usize| -> TestResult<Vec<u8>> {
            let header = driver.next_header(command);
            let bytes = [header.as_bytes(), &vec![0; request]].concat();
            let answer = driver.command_raw(&bytes, room)?;
            assert_eq!(answer.len(), STATUS_BYTES, "command {command:#x}: nothing but the status");
            assert_eq!(answer[4..8], header.as_bytes()[4..8], "command {command:#x}: sequence");
            Ok(answer)
        };
        if request > 0 {
            for short in [0, 1, request / 2, request - 1] {
                let status = status_of(&send(short, STATUS_BYTES + answer)?);
                assert_eq!(status, Some(Status::BadLength), "command {command:#x}, {short} bytes");
            }
        }
        if answer > 0 {
            for room in [0, 1, answer - 1] {
                let status = status_of(&send(request, STATUS_BYTES + room)?);
                assert_eq!(
                    status,
                    Some(Status::BadLength),
                    "command {command:#x}, room for {room}"
                );
            }
        }
    }
    driver.alloc_pd()?;
    Ok(())
}

#[test]
fn a_header_that_is_cut_short_is_a_bad_length() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    for len in 0..size_of::<ControlHeader>() {
        let answer = driver.command_raw(&vec![0xff; len], 64)?;
        assert_eq!(status_of(&answer), Some(Status::BadLength), "{len} bytes");
        assert_eq!(answer.len(), STATUS_BYTES);
    }
    driver.alloc_pd()?;
    Ok(())
}

#[test]
fn a_command_without_room_for_a_status_is_not_executed() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let pd = driver.alloc_pd()?;
    let request = NumberRequest { number: pd.number.into(), reserved: 0.into() };
    for room in [0, 1, STATUS_BYTES - 1] {
        let header = driver.next_header(CMD_DEALLOC_PD);
        let bytes = [header.as_bytes(), request.as_bytes()].concat();
        assert_eq!(driver.command_raw(&bytes, room)?, [0_u8; 0]);
    }
    driver.dealloc_pd(&pd)?;
    Ok(())
}

#[test]
fn unknown_commands_are_said_to_be_unknown() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let known = |n: &u16| *n == CMD_INIT || COMMANDS.iter().any(|(command, ..)| command == n);
    let numbers = (0..0x200).chain([0x7fff, 0x8000, 0xffff]).filter(|n| !known(n));
    for command in numbers {
        refused(driver.command::<[u8; 0]>(command, &[0; 200]), Status::UnknownCommand);
    }
    Ok(())
}

#[test]
fn requests_may_be_longer_than_they_must() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let header = driver.next_header(CMD_ALLOC_PD);
    let bytes = [header.as_bytes(), &[0xab; 3000]].concat();
    let answer = driver.command_raw(&bytes, 4000)?;
    assert_eq!(status_of(&answer), Some(Status::Ok));
    assert_eq!(answer.len(), STATUS_BYTES + size_of::<NumberAnswer>());
    Ok(())
}

#[test]
fn a_megabyte_of_nonsense_is_only_one_bad_command() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let answer = driver.command_raw(&vec![0xff; 1 << 20], 1 << 20)?;
    assert_eq!(status_of(&answer), Some(Status::UnknownCommand));
    driver.alloc_pd()?;
    Ok(())
}

#[test]
fn names_of_nothing_are_no_objects() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let pd = driver.alloc_pd()?;
    let cq = driver.create_cq(16, 0)?;
    for number in [0x00ff_ffff, 0x7fff_ffff, 0xffff_ffff, 0x1234_5678] {
        for command in
            [CMD_DESTROY_UAR, CMD_DEALLOC_PD, CMD_DEREG_MR, CMD_DESTROY_CQ, CMD_DESTROY_QP]
        {
            refused(driver.destroy(command, number), Status::NoObject);
        }
        refused(driver.query_qp(number), Status::NoObject);
        refused(driver.modify_qp(number, QP_ATTR_STATE, &QpAttr::default()), Status::NoObject);
        let stranger = front_end::Pd { number };
        let buffer = vm.memory().alloc_scattered(8192)?;
        refused(driver.reg_mr(&stranger, &buffer, access::ALL), Status::NoObject);
        refused(driver.get_dma_mr(&stranger, access::ALL), Status::NoObject);
        let change: [fn(&mut CreateQpRequest, u32); 4] = [
            |request, number| request.pdn = number.into(),
            |request, number| request.send_cqn = number.into(),
            |request, number| request.recv_cqn = number.into(),
            |request, number| request.uarn = number.into(),
        ];
        for change in change {
            let mut prepared = driver.prepare_qp(&pd, &cq, &cq, &QpOptions::default())?;
            change(&mut prepared.request, number);
            refused(driver.create_qp_from(prepared), Status::NoObject);
        }
    }
    Ok(())
}

#[test]
fn an_object_s_number_is_not_another_device_s_nor_another_kind_s() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let (vm_a, vm_b) = (daemon.vm(0)?, daemon.vm(1)?);
    let (a, b) = (vm_a.driver()?, vm_b.driver()?);
    let pd = a.alloc_pd()?;
    let cq = a.create_cq(16, 0)?;
    let qp = a.create_qp(&pd, &cq, &cq, &QpOptions::default())?;
    // The other device has nothing at all.
    refused(b.dealloc_pd(&pd), Status::NoObject);
    refused(b.destroy(CMD_DESTROY_CQ, cq.number()), Status::NoObject);
    refused(b.destroy(CMD_DESTROY_QP, qp.number()), Status::NoObject);
    // With one QP, one CQ and no MR, every number is wrong as one of an MR.
    for number in [pd.number, cq.number(), qp.number()] {
        refused(a.destroy(CMD_DEREG_MR, number), Status::NoObject);
    }
    a.destroy_qp(&qp)?;
    Ok(())
}

#[test]
fn chains_that_make_no_sense_do_not_stop_the_device() -> TestResult {
    let daemon = TestDaemon::start(3)?;
    let mut bystander = Bystander::new(&daemon, 1)?;
    let config = VmConfig { queue_size: 8, memory: 32 << 20, ..VmConfig::default() };
    let vm = daemon.vm_with(0, config)?;
    let ring = std::sync::Arc::clone(&vm.queues().rings()[0]);
    let page = vm.memory().alloc_contiguous(4096)?;
    let nowhere = vm.memory().unmapped_address();
    let piece = |address, len, device_writes| Piece { address, len, device_writes };
    let here = page.guest_address(0);
    let chains: &[&[Piece]] = &[
        &[piece(here, 64, true), piece(here + 64, 64, false)],
        &[piece(nowhere, 64, false), piece(here, 64, true)],
        &[piece(here, 64, false), piece(nowhere, 64, true)],
        &[piece(here, 0, false), piece(here, 0, true)],
        &[piece(here, u32::MAX, false), piece(here, u32::MAX, true)],
        &[piece(u64::MAX - 8, 64, false), piece(here, 64, true)],
        &[piece(here, 64, true)],
    ];
    for (n, chain) in chains.iter().enumerate() {
        // Each on a ring of its own, since the device may keep what it cannot return.
        vm.reboot()?;
        let ring = std::sync::Arc::clone(&vm.queues().rings()[0]);
        let mut driver_side = SplitRing::new(ring, false);
        driver_side.add(chain)?;
        driver_side.notify(1);
        let done = driver_side.pop_wait(std::time::Duration::from_secs(60))?;
        assert!(done.is_some(), "chain {n} is returned");
        bystander.check()?;
    }
    // A loop: descriptor 0 leads to itself.
    vm.reboot()?;
    let looping = std::sync::Arc::clone(&vm.queues().rings()[0]);
    looping.buffer().store_u64(0, here);
    looping.buffer().store_u64(8, 64 | 1 << 32);
    looping.buffer().store_u32(looping.avail_offset() + 4, 0);
    looping.buffer().store_u32(looping.avail_offset(), 1 << 16);
    looping.kick();
    bystander.check()?;
    // An available index that is far ahead, and heads that are no descriptors.
    vm.reboot()?;
    let ahead = std::sync::Arc::clone(&vm.queues().rings()[0]);
    ahead.buffer().fill(0xff);
    ahead.kick();
    bystander.check()?;
    drop(ring);
    // The device itself is as new after a reset.
    vm.reboot()?;
    vm.driver()?.alloc_pd()?;
    Ok(())
}
