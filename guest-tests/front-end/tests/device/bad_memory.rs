// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page lists, MRs, and ring geometry that are out of range, contradict themselves, or lie outside
//! the VM's memory.

use front_end::abi::control::*;
use front_end::{Driver, PageTables, Pd, QpOptions, Status, Vm, access};

use crate::harness::{Bystander, LONG, TestDaemon, TestResult, refused};

/// A REG_MR of `length` bytes with that page list.
fn reg(
    driver: &Driver,
    pd: &Pd,
    pages: PageList,
    length: u64,
) -> Result<(), front_end::CommandError> {
    let request = RegMrRequest {
        pdn: pd.number.into(),
        access: access::ALL.into(),
        iova: 0x10_0000.into(),
        length: length.into(),
        offset: 0.into(),
        pages,
    };
    let mr = driver.reg_mr_request(&request)?;
    driver.dereg_mr(&mr)
}

fn list(root: u64, num_pages: u32, page_shift: u8, depth: u8) -> PageList {
    PageList {
        root: root.into(),
        num_pages: num_pages.into(),
        page_shift,
        depth,
        reserved: 0.into(),
    }
}

fn one_vm() -> TestResult<(TestDaemon, Vm, Driver, Pd)> {
    let daemon = TestDaemon::start(3)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let pd = driver.alloc_pd()?;
    Ok((daemon, vm, driver, pd))
}

#[test]
fn page_lists_of_every_depth_and_page_size_work() -> TestResult {
    let (_daemon, vm, driver, pd) = one_vm()?;
    let large = vm.memory().alloc_contiguous(8 << 20)?;
    let base = large.guest_address(0).next_multiple_of(4 << 20);
    reg(&driver, &pd, list(base, 2, 21, 0), 4 << 20)?;
    reg(&driver, &pd, list(base, 1, 22, 0), 4 << 20)?;
    let two = PageTables::with_tables(vm.memory(), &[base + (2 << 20), base], 21)?;
    reg(&driver, &pd, two.list, 4 << 20)?;
    for pages in [1, 2, 511, 512, 513, 1025] {
        let buffer = vm.memory().alloc_scattered(pages * 4096)?;
        let tables = PageTables::with_tables(vm.memory(), &buffer.pages(), 12)?;
        assert_eq!(tables.list.depth, if pages > 512 { 2 } else { 1 });
        reg(&driver, &pd, tables.list, pages as u64 * 4096)?;
        reg(&driver, &pd, tables.list, pages as u64 * 4096 - 4095)?;
    }
    Ok(())
}

#[test]
fn malformed_page_lists_are_invalid() -> TestResult {
    let (_daemon, vm, driver, pd) = one_vm()?;
    let buffer = vm.memory().alloc_contiguous(2 << 20)?;
    let page = buffer.guest_address(0).next_multiple_of(8192);
    let table = vm.memory().alloc_contiguous(4096)?;
    table.store_u64(0, page);
    let top = table.guest_address(0);
    for (what, pages, length) in [
        ("no pages", list(page, 0, 12, 0), 4096),
        ("fewer pages than bytes", list(page, 1, 12, 0), 4097),
        ("more pages than bytes", list(page, 2, 12, 0), 4096),
        ("pages that are too small", list(page, 2, 11, 0), 4096),
        ("pages that are too large", list(0, 1, 31, 0), 4096),
        ("a page size that is none", list(page, 1, 255, 0), 4096),
        ("a page that is misaligned", list(page + 8, 1, 12, 0), 4096),
        ("a large page that is misaligned", list(page + 4096, 1, 13, 0), 8192),
        ("too deep", list(top, 1, 12, 4), 4096),
        ("much too deep", list(top, 1, 12, 255), 4096),
        ("a table that is misaligned", list(top + 8, 1, 12, 1), 4096),
        ("more pages than the depth holds", list(top, 513, 12, 1), 513 * 4096),
    ] {
        match reg(&driver, &pd, pages, length) {
            Err(error) => assert_eq!(error.status(), Some(Status::Invalid), "{what}"),
            Ok(()) => return Err(format!("{what} was accepted").into()),
        }
    }
    let endless = list(page, u32::MAX, 12, 0);
    refused(reg(&driver, &pd, endless, u64::from(u32::MAX) << 12), Status::NoResources);
    for entry in [page + 1, page + 2048] {
        table.store_u64(0, entry);
        refused(reg(&driver, &pd, list(top, 1, 12, 1), 4096), Status::Invalid);
    }
    Ok(())
}

#[test]
fn pages_and_tables_outside_guest_memory_are_bad_addresses() -> TestResult {
    let (_daemon, vm, driver, pd) = one_vm()?;
    let nowhere = vm.memory().unmapped_address();
    let buffer = vm.memory().alloc_contiguous(4096)?;
    let table = vm.memory().alloc_contiguous(4096)?;
    let top = table.guest_address(0);
    // The last page of the first region: the one behind it is in no region.
    let last = (1 << 32) + (32 << 20) - 4096;
    for root in [nowhere, 0, u64::MAX - 4095, 1 << 63, last + 4096] {
        refused(reg(&driver, &pd, list(root, 1, 12, 0), 4096), Status::BadAddress);
        for depth in 1..=3 {
            refused(reg(&driver, &pd, list(root, 1, 12, depth), 4096), Status::BadAddress);
        }
        table.store_u64(0, root);
        for depth in 1..=3 {
            // At a depth over 1 the entry is a table.
            refused(reg(&driver, &pd, list(top, 1, 12, depth), 4096), Status::BadAddress);
        }
        table.store_u64(0, buffer.guest_address(0));
        table.store_u64(8, root);
        refused(reg(&driver, &pd, list(top, 2, 12, 1), 8192), Status::BadAddress);
    }
    reg(&driver, &pd, list(last, 1, 12, 0), 4096)?;
    refused(reg(&driver, &pd, list(last, 2, 12, 0), 8192), Status::BadAddress);
    Ok(())
}

#[test]
fn tables_that_lead_to_themselves_are_read_no_longer_than_they_must() -> TestResult {
    let (daemon, vm, driver, pd) = one_vm()?;
    let mut bystander = Bystander::new(&daemon, 1)?;
    let table = vm.memory().alloc_contiguous(4096)?;
    let top = table.guest_address(0);
    for n in 0..512 {
        table.store_u64(8 * n, top);
    }
    let began = std::time::Instant::now();
    // As many pages as the VM has: the same page over and over is no crime.
    for (depth, pages) in [(1, 512), (2, 8192), (3, 16_384)] {
        reg(&driver, &pd, list(top, pages, 12, depth), u64::from(pages) * 4096)?;
    }
    refused(reg(&driver, &pd, list(top, 1 << 27, 12, 3), 1 << 39), Status::NoResources);
    assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
    bystander.check()
}

#[test]
fn registrations_that_make_no_sense_are_invalid() -> TestResult {
    let (_daemon, vm, driver, pd) = one_vm()?;
    let buffer = vm.memory().alloc_contiguous(8192)?;
    let good = RegMrRequest {
        pdn: pd.number.into(),
        access: access::ALL.into(),
        iova: 0x1000.into(),
        length: 4096.into(),
        offset: 0.into(),
        pages: list(buffer.guest_address(0), 1, 12, 0),
    };
    driver.reg_mr_request(&good)?;
    for (what, bad) in [
        ("no bytes", RegMrRequest { length: 0.into(), ..good }),
        ("all bytes", RegMrRequest { length: u64::MAX.into(), ..good }),
        ("wraps", RegMrRequest { iova: (u64::MAX - 100).into(), ..good }),
        ("an offset beyond the page", RegMrRequest { offset: 4096.into(), ..good }),
        ("an offset beyond everything", RegMrRequest { offset: u64::MAX.into(), ..good }),
        ("unknown rights", RegMrRequest { access: (1 << 30).into(), ..good }),
        (
            "remote write without local write",
            RegMrRequest { access: access::REMOTE_WRITE.into(), ..good },
        ),
    ] {
        match driver.reg_mr_request(&bad) {
            Err(error) => assert_eq!(error.status(), Some(Status::Invalid), "{what}"),
            Ok(mr) => return Err(format!("{what} was accepted: {mr:?}").into()),
        }
    }
    Ok(())
}

#[test]
fn cqs_of_impossible_geometry_are_refused() -> TestResult {
    let (_daemon, vm, driver, _pd) = one_vm()?;
    let nowhere = vm.memory().unmapped_address();
    let vectors = driver.queues().vectors();
    type Change = fn(&mut CreateCqRequest);
    let change: &[(&str, Change)] = &[
        ("no slots", |r| r.entries = 0.into()),
        ("no power of two", |r| r.entries = 62.into()),
        ("too many slots", |r| r.entries = (1 << 31).into()),
        ("more slots than pages", |r| r.entries = 128.into()),
        ("an endless vector", |r| r.vector = u32::MAX.into()),
        ("no pages", |r| r.pages.num_pages = 0.into()),
        ("small pages", |r| r.pages.page_shift = 6),
        ("too deep", |r| r.pages.depth = 4),
        ("a misaligned root", |r| r.pages.root = (r.pages.root.get() + 64).into()),
    ];
    for (what, change) in change {
        let mut prepared = driver.prepare_cq(32, 0)?;
        change(&mut prepared.request);
        match driver.create_cq_from(prepared) {
            Err(error) => assert_eq!(error.status(), Some(Status::Invalid), "{what}"),
            Ok(_) => return Err(format!("{what} was accepted").into()),
        }
    }
    let mut prepared = driver.prepare_cq(32, vectors)?;
    refused(driver.create_cq_from(prepared), Status::Invalid);
    prepared = driver.prepare_cq(32, 0)?;
    prepared.request.pages.root = nowhere.into();
    refused(driver.create_cq_from(prepared), Status::BadAddress);
    driver.create_cq(32, vectors - 1)?;
    Ok(())
}

#[test]
fn qps_of_impossible_geometry_are_refused() -> TestResult {
    let (_daemon, vm, driver, pd) = one_vm()?;
    let nowhere = vm.memory().unmapped_address();
    let cq = driver.create_cq(16, 0)?;
    type Change = fn(&mut CreateQpRequest);
    let change: &[(&str, Status, Change)] = &[
        ("a send queue of no power of two", Status::Invalid, |r| r.sq_entries = 63.into()),
        ("a receive queue of no power of two", Status::Invalid, |r| r.rq_entries = 3.into()),
        ("an endless send queue", Status::Invalid, |r| r.sq_entries = (1 << 31).into()),
        ("an endless receive queue", Status::Invalid, |r| r.rq_entries = (1 << 31).into()),
        ("a small stride", Status::Invalid, |r| r.sq_stride_shift = 5),
        ("a large stride", Status::Invalid, |r| r.rq_stride_shift = 12),
        ("an endless stride", Status::Invalid, |r| r.sq_stride_shift = 255),
        ("rings over the device's line", Status::Invalid, |r| r.sq_offset = 0.into()),
        ("a misaligned send queue", Status::Invalid, |r| r.sq_offset = 72.into()),
        ("a send queue outside", Status::Invalid, |r| r.sq_offset = (1 << 20).into()),
        ("a receive queue at the end of all", Status::Invalid, |r| {
            r.rq_offset = 0xffff_ffc0.into()
        }),
        ("queues that overlap", Status::Invalid, |r| r.rq_offset = r.sq_offset),
        ("SGEs beyond the stride", Status::Invalid, |r| r.max_send_sge = 30.into()),
        ("SGEs beyond the device", Status::Invalid, |r| r.max_recv_sge = u32::MAX.into()),
        ("inline data beyond the stride", Status::Invalid, |r| r.max_inline = 1024.into()),
        ("inline data beyond reason", Status::Invalid, |r| r.max_inline = u32::MAX.into()),
        ("a slot outside the UAR", Status::Invalid, |r| r.slot = u32::MAX.into()),
        ("unknown flags", Status::Invalid, |r| r.flags = 0x80),
        ("an unknown type", Status::Invalid, |r| r.qp_type = 0xff),
        ("an XRC initiator that receives", Status::Invalid, |r| r.qp_type = 9),
        ("QP1 for a process", Status::NotPermitted, |r| {
            r.qp_type = QP_TYPE_GSI;
            r.flags = 0;
        }),
        ("datagrams without handles", Status::BadState, |r| r.qp_type = QP_TYPE_UD),
        ("an SRQ that is not", Status::NoObject, |r| r.srqn = 5.into()),
        ("no pages", Status::Invalid, |r| r.pages.num_pages = 0.into()),
        ("too few pages", Status::Invalid, |r| r.pages.num_pages = 1.into()),
        ("too deep", Status::Invalid, |r| r.pages.depth = 9),
    ];
    for (what, status, change) in change {
        let mut prepared = driver.prepare_qp(&pd, &cq, &cq, &QpOptions::default())?;
        change(&mut prepared.request);
        match driver.create_qp_from(prepared) {
            Err(error) => assert_eq!(error.status(), Some(*status), "{what}"),
            Ok(_) => return Err(format!("{what} was accepted").into()),
        }
    }
    let mut prepared = driver.prepare_qp(&pd, &cq, &cq, &QpOptions::default())?;
    prepared.request.pages.root = nowhere.into();
    refused(driver.create_qp_from(prepared), Status::BadAddress);
    // Two QPs in one slot.
    let first = driver.create_qp(&pd, &cq, &cq, &QpOptions::default())?;
    let mut prepared = driver.prepare_qp(&pd, &cq, &cq, &QpOptions::default())?;
    prepared.request.slot = first.uar_slot().1.into();
    refused(driver.create_qp_from(prepared), Status::Busy);
    Ok(())
}

#[test]
fn uars_of_impossible_size_are_refused() -> TestResult {
    let (_daemon, vm, driver, _pd) = one_vm()?;
    driver.create_uar(16_384)?;
    refused(driver.create_uar(20_480), Status::Invalid);
    let nowhere = CreateUarRequest { pages: list(vm.memory().unmapped_address(), 1, 12, 0) };
    let answer =
        driver.command::<NumberAnswer>(CMD_CREATE_UAR, zerocopy::IntoBytes::as_bytes(&nowhere));
    refused(answer, Status::BadAddress);
    Ok(())
}
