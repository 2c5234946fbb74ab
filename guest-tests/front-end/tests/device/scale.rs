// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! As many objects as one device may have, made by a driver as any other. How fast that is and what an
//! object costs, the benchmark tells.

use front_end::abi::control::*;
use front_end::abi::ring::WC_SUCCESS;
use front_end::{Driver, PAGE, QpOptions, RcOptions, SendWr, VmConfig, connect_rc};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::harness::{Bystander, LONG, Side, TestDaemon, TestResult, check, fill};

/// QPs and CQs of a device.
const QPS: usize = 65_536;
/// MRs of a device.
const MRS: usize = 1_000_000;
/// Commands in the control virtqueue at once.
const AT_ONCE: usize = 64;

/// So many commands, a ringful at a time: their answers, in order.
fn all<R: IntoBytes + Immutable, A: FromBytes>(
    driver: &Driver,
    command: u16,
    count: usize,
    request: impl Fn(usize) -> R,
) -> TestResult<Vec<A>> {
    let head = size_of::<ControlStatus>();
    let mut answers = Vec::with_capacity(count);
    let mut next = 0;
    while next < count {
        let end = count.min(next + AT_ONCE);
        let raw: Vec<_> = (next..end)
            .map(|n| {
                let header = driver.next_header(command);
                ([header.as_bytes(), request(n).as_bytes()].concat(), head + size_of::<A>())
            })
            .collect();
        for bytes in driver.commands_at_once(&raw)?.0 {
            let (status, rest) = ControlStatus::read_from_prefix(&bytes)
                .map_err(|_| "an answer without a status")?;
            if status.status.get() != STATUS_OK {
                return Err(format!("{command:#x}, after {}: {status:?}", answers.len()).into());
            }
            answers.push(A::read_from_prefix(rest).map_err(|_| "an answer that is too short")?.0);
        }
        next = end;
    }
    Ok(answers)
}

/// One page.
fn page(address: u64) -> PageList {
    PageList {
        root: address.into(),
        num_pages: 1.into(),
        page_shift: 12,
        depth: 0,
        reserved: 0.into(),
    }
}

#[test]
#[ignore = "long: more than a million commands; `cargo lab test --full` runs it"]
fn a_device_has_65536_qps_and_cqs_and_a_million_mrs_and_still_works() -> TestResult {
    let daemon = TestDaemon::start(3)?;
    let mut neighbours = Bystander::new(&daemon, 1)?;
    // A page for each QP in the half of the memory that is given out in one piece.
    let config = VmConfig { memory: 640 << 20, regions: 1, queue_size: 256, ..VmConfig::default() };
    let mut side = Side::new(daemon.vm_with(0, config)?, 64 << 10, 256)?;
    let driver = side.driver.clone();
    let pages = driver.memory().alloc_contiguous(QPS * PAGE)?;

    // Two QPs, two CQs and an MR are there, which are to work in the end.
    let (mut one, mut other) = (side.qp(&QpOptions::default())?, side.qp(&QpOptions::default())?);
    connect_rc(&mut one, &mut other, &RcOptions::default())?;

    let cq = driver.prepare_cq(16, 0)?;
    let cqs: Vec<NumberAnswer> = all(&driver, CMD_CREATE_CQ, QPS - 2, |n| CreateCqRequest {
        pages: page(pages.guest_address(n * PAGE)),
        ..cq.request
    })?;
    assert!(driver.create_cq(16, 0).is_err(), "one more");

    let small = QpOptions {
        sq_entries: 16,
        rq_entries: 16,
        max_send_sge: 1,
        max_recv_sge: 1,
        max_inline: 0,
        ..QpOptions::default()
    };
    let template = driver.prepare_qp(&side.pd, &side.send_cq, &side.recv_cq, &small)?;
    // Slots: 32,256 in a UAR.
    let mut places = Vec::with_capacity(QPS - 2);
    while places.len() < QPS - 2 {
        let uar = driver.create_uar(PAGE)?;
        let slots = std::iter::from_fn(|| uar.take_slot());
        places.extend(slots.take(QPS - 2 - places.len()).map(|slot| (uar.number(), slot)));
    }
    let qps: Vec<NumberAnswer> = all(&driver, CMD_CREATE_QP, QPS - 2, |n| CreateQpRequest {
        uarn: places[n].0.into(),
        slot: places[n].1.into(),
        send_cqn: cqs[n].number,
        recv_cqn: cqs[n].number,
        pages: page(pages.guest_address(n * PAGE)),
        ..template.request
    })?;
    assert!(side.qp(&QpOptions::default()).is_err(), "one more");

    let mrs: Vec<MrAnswer> = all(&driver, CMD_REG_MR, MRS - 1, |n| RegMrRequest {
        pdn: side.pd.number.into(),
        access: front_end::access::ALL.into(),
        iova: 0.into(),
        length: (PAGE as u64).into(),
        offset: 0.into(),
        pages: page(pages.guest_address(n % QPS * PAGE)),
    })?;
    assert!(driver.reg_mr(&side.pd, &side.buffer, front_end::access::ALL).is_err(), "one more");

    // What was there first, and the last of the keys.
    fill(&side.buffer, 0, 4000, 3);
    let last = mrs[MRS - 2];
    let sges = [side.mr.sge(0, 4000)];
    one.post_send(&SendWr::write(5, &sges, (0, last.rkey.get())).signaled())?;
    let wc = side.send_cq.wait_one(LONG)?;
    assert_eq!((wc.wr_id, wc.status), (5, WC_SUCCESS));
    check(&pages, (MRS - 2) % QPS * PAGE, 4000, 3);
    neighbours.check()?;

    // Some go, and others take their places.
    for n in [0, QPS / 2, QPS - 3] {
        let _: [u8; 0] = driver.command(
            CMD_DESTROY_QP,
            NumberRequest { number: qps[n].number, ..NumberRequest::default() }.as_bytes(),
        )?;
    }
    side.qp(&QpOptions::default())?;
    // The rest goes at once, with the driver's new beginning; others work meanwhile, and then it does.
    side.vm.reboot()?;
    neighbours.check()?;
    let again = side.vm.driver()?;
    let pd = again.alloc_pd()?;
    let buffer = again.memory().alloc_scattered(PAGE)?;
    again.reg_mr(&pd, &buffer, front_end::access::ALL)?;
    Ok(())
}
