// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compare and swap, fetch and add: their results, their atomicity, their errors.

use front_end::abi::ring::{
    WC_LOC_LEN_ERR, WC_OP_COMP_SWAP, WC_OP_FETCH_ADD, WC_REM_ACCESS_ERR, WC_REM_INV_REQ_ERR,
    WC_SUCCESS,
};
use front_end::{QpOptions, RcOptions, SendWr, access, connect_rc};

use crate::harness::{LONG, Pair, PairOptions, Side, TestDaemon, TestResult};

const RIGHTS: u32 = access::ALL | access::REMOTE_ATOMIC;

fn options() -> PairOptions {
    PairOptions { rc: RcOptions { access: RIGHTS, ..RcOptions::default() }, ..Default::default() }
}

#[test]
pub fn atomics_give_the_old_value_and_store_the_new_one() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&options())?;
    let word = pair.b.driver.reg_mr(&pair.b.pd, &pair.b.buffer, RIGHTS)?;
    let Pair { a, b, qa, .. } = &mut pair;
    let old = a.mr.sge(64, 8);
    let mut value = 0x1122_3344_5566_7788_u64;
    b.buffer.store_u64(4088, value);
    for n in 0..50_u64 {
        let add = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        qa.post_send(&SendWr::fetch_add(n, &old, word.remote(4088), add).signaled())?;
        let wc = a.send_cq.wait_one(LONG)?;
        assert_eq!((wc.wr_id, wc.status, wc.opcode), (n, WC_SUCCESS, WC_OP_FETCH_ADD));
        assert_eq!((wc.byte_len, a.buffer.load_u64(64)), (8, value));
        value = value.wrapping_add(add);
        assert_eq!(b.buffer.load_u64(4088), value);
        // With the wrong value to compare nothing is stored, with the right one it is.
        for (compare, swap) in [(!value, 1), (value, !add)] {
            let wr = SendWr::compare_swap(n, &old, word.remote(4088), compare, swap).signaled();
            qa.post_send(&wr)?;
            let wc = a.send_cq.wait_one(LONG)?;
            assert_eq!((wc.status, wc.opcode), (WC_SUCCESS, WC_OP_COMP_SWAP));
            assert_eq!(a.buffer.load_u64(64), value);
            value = if compare == value { swap } else { value };
            assert_eq!(b.buffer.load_u64(4088), value);
        }
    }
    Ok(())
}

#[test]
fn three_vms_that_count_at_once_lose_no_count() -> TestResult {
    const EACH: u64 = 2000;
    let daemon = TestDaemon::start(4)?;
    let target = Side::new(daemon.vm(3)?, 4096, 64)?;
    let word = target.driver.reg_mr(&target.pd, &target.buffer, RIGHTS)?;
    std::thread::scope(|scope| -> TestResult {
        let mut threads = Vec::new();
        for n in 0..3 {
            let side = Side::new(daemon.vm(n)?, 4096, 64)?;
            let (mut qp, mut peer) =
                (side.qp(&QpOptions::default())?, target.qp(&QpOptions::default())?);
            connect_rc(&mut qp, &mut peer, &options().rc)?;
            threads.push(scope.spawn(move || -> TestResult<Vec<u64>> {
                // All of it: a closure would take the parts that it uses, and the VM would end.
                let mut side = side;
                let mut seen = Vec::new();
                for n in 0..EACH {
                    let old = side.mr.sge(0, 8);
                    qp.post_send(&SendWr::fetch_add(n, &old, word.remote(8), 1).signaled())?;
                    assert_eq!(side.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
                    seen.push(side.buffer.load_u64(0));
                }
                Ok(seen)
            }));
        }
        let mut all = Vec::new();
        for thread in threads {
            let seen = thread.join().map_err(|_| "a VM panicked")??;
            assert!(seen.windows(2).all(|two| two[0] < two[1]), "each sees it grow");
            all.extend(seen);
        }
        all.sort_unstable();
        assert_eq!(all, (0..3 * EACH).collect::<Vec<_>>(), "every value was seen once");
        assert_eq!(target.buffer.load_u64(8), 3 * EACH);
        Ok(())
    })
}

#[test]
fn atomics_that_are_not_allowed_or_misaligned_store_nothing() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&options())?;
    let allowed = pair.b.driver.reg_mr(&pair.b.pd, &pair.b.buffer, RIGHTS)?;
    let plain = pair.b.mr;
    let (old, short) = (pair.a.mr.sge(0, 8), pair.a.mr.sge(0, 4));
    pair.b.buffer.fill(0x44);
    for (what, sge, remote, status) in [
        ("misaligned", &old, allowed.remote(4), WC_REM_INV_REQ_ERR),
        ("an MR without the right", &old, plain.remote(0), WC_REM_ACCESS_ERR),
        (
            "behind the MR",
            &old,
            allowed.remote(allowed.length.next_multiple_of(8)),
            WC_REM_ACCESS_ERR,
        ),
        ("room for half of it", &short, allowed.remote(0), WC_LOC_LEN_ERR),
    ] {
        pair.qa.post_send(&SendWr::fetch_add(1, sge, remote, 1))?;
        assert_eq!(pair.a.send_cq.wait_one(LONG)?.status, status, "{what}");
        pair.renew_qps(&options())?;
    }
    assert!(pair.b.buffer.read(0, pair.b.buffer.len()).iter().all(|byte| *byte == 0x44));
    Ok(())
}
