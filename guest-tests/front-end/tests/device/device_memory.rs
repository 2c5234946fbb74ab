// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Device memory: copies, MRs in it, and what is refused.

use front_end::abi::control::ACCESS_ZERO_BASED;
use front_end::abi::ring::{WC_LOC_PROT_ERR, WC_REM_ACCESS_ERR, WC_SUCCESS};
use front_end::{SendWr, Status, access};

use crate::harness::{LONG, Pair, PairOptions, TestResult, check, fill, refused};

const ZERO_BASED: u32 = access::ALL | ACCESS_ZERO_BASED;

#[test]
fn what_is_copied_into_device_memory_comes_out_of_it_and_of_its_mrs() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let Pair { a, b, qa, .. } = &mut pair;
    let most = a.driver.query_device()?.max_dm_size.get();
    let page = b.vm.memory().alloc_contiguous(4096)?;
    let dm = b.driver.alloc_dm(most)?;

    page.fill(0xff);
    b.driver.copy_dm(dm, false, 8192, &page, 4096)?;
    assert!(page.read(0, 4096).iter().all(|byte| *byte == 0), "new memory is zero");
    fill(&page, 0, 4096, 7);
    b.driver.copy_dm(dm, true, most - 4096, &page, 4096)?;
    page.fill(0);
    b.driver.copy_dm(dm, false, most - 4096, &page, 4096)?;
    check(&page, 0, 4096, 7);

    // A peer reads and writes it through an MR of its end, whose first byte has the address 0.
    let mr = b.driver.reg_dm_mr(&b.pd, dm, most - 4096, 4096, ZERO_BASED)?;
    qa.post_send(&SendWr::read(1, &[a.mr.sge(0, 4096)], mr.remote(0)).signaled())?;
    assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    check(&a.buffer, 0, 4096, 7);
    fill(&a.buffer, 0, 1000, 8);
    qa.post_send(&SendWr::write(2, &[a.mr.sge(0, 1000)], mr.remote(3000)).signaled())?;
    assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    b.driver.copy_dm(dm, false, most - 1096, &page, 1000)?;
    check(&page, 0, 1000, 8);

    // It ends after its MR.
    refused(b.driver.free_dm(dm), Status::Busy);
    b.driver.dereg_mr(&mr)?;
    b.driver.free_dm(dm)?;
    refused(b.driver.free_dm(dm), Status::NoObject);
    Ok(())
}

#[test]
fn device_memory_ends_where_it_ends() -> TestResult {
    let options = PairOptions::default();
    let (_daemon, mut pair) = Pair::start(&options)?;
    let most = pair.a.driver.query_device()?.max_dm_size.get();
    let driver = &pair.b.driver;
    refused(driver.alloc_dm(0), Status::Invalid);
    refused(driver.alloc_dm(most + 1), Status::Invalid);
    refused(driver.alloc_dm(u64::MAX), Status::Invalid);
    let (one, other) = (driver.alloc_dm(100)?, driver.alloc_dm(most - 100)?);
    refused(driver.alloc_dm(4), Status::NoResources);

    let page = pair.b.vm.memory().alloc_contiguous(4096)?;
    for (offset, length) in [(97, 4), (0, 101), (u64::MAX, 8), (101, 1)] {
        refused(driver.copy_dm(one, true, offset, &page, length), Status::Invalid);
        refused(driver.copy_dm(one, false, offset, &page, length), Status::Invalid);
        refused(driver.reg_dm_mr(&pair.b.pd, one, offset, length, ZERO_BASED), Status::Invalid);
    }
    refused(driver.copy_dm(one, true, 0, &page, 0), Status::Invalid);
    refused(driver.copy_dm(one + other, true, 0, &page, 4), Status::NoObject);
    refused(driver.reg_dm_mr(&pair.b.pd, one, 0, 4, 1 << 19), Status::Invalid);
    let nothing = driver.reg_dm_mr(&pair.b.pd, one, 40, 0, ZERO_BASED)?;

    let mr = driver.reg_dm_mr(&pair.b.pd, one, 0, 100, ZERO_BASED)?;
    let own = pair.a.driver.reg_dm_mr(
        &pair.a.pd,
        pair.a.driver.alloc_dm(8)?,
        0,
        8,
        access::LOCAL_WRITE,
    )?;
    let sge = pair.a.mr.sge(0, 4);
    for (wr, status) in [
        (SendWr::write(1, &[sge], mr.remote(97)), WC_REM_ACCESS_ERR),
        (SendWr::write(2, &[sge], nothing.remote(0)), WC_REM_ACCESS_ERR),
        (SendWr::read(3, &[own.sge(5, 4)], mr.remote(0)), WC_LOC_PROT_ERR),
    ] {
        pair.qa.post_send(&wr)?;
        assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, status);
        pair.renew_qps(&options)?;
    }
    pair.ping()
}
