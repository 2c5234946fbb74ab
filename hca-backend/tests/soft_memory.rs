// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MRs and CQs of the soft HCA that change while they are in use.

mod common;

use common::*;
use rdma_midlayer::Error;
use rdma_midlayer::driver::*;
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

use WcStatus::{LocProtErr, RemAccessErr, Success};

/// One WRITE of 8 bytes from `lkey` to `rkey`; the QPs are connected anew if it failed.
fn write(lab: &Lab, a: &End, b: &End, lkey: LKey, (rkey, addr): (RKey, u64)) -> WcStatus {
    let sges = [Sge { lkey, ..a.sge(0, 8) }];
    let wr = a.wr(1, WrOpcode::RdmaWrite, &sges, b, 0);
    a.qp.post_send(&SendWr { rkey, remote_addr: addr, ..wr }).unwrap();
    lab.run();
    let status = a.send.take().unwrap().status;
    if status != Success {
        for end in [a, b] {
            lab.move_to(end, QpState::Reset);
        }
        lab.connect(a, b);
    }
    status
}

#[test]
fn memory_behind_a_key_can_be_taken_away_and_put_back() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    let try_it = || write(&lab, &a, &b, a.mr.lkey(), (b.mr.rkey(), BASE));
    a.fill(0, &pattern(5, 8));
    let other = Ram::mapping(1 << 20);
    b.mr.replace_memory(&lab.cx, Some(window(&other, BASE, 0, 1 << 20))).unwrap();
    assert_eq!(try_it(), Success);
    assert_eq!(b.bytes(0, 8), [0; 8]);
    let mut bytes = [0; 8];
    window(&other, BASE, 0, 8).read(BASE, &mut bytes).unwrap();
    assert_eq!(bytes, *pattern(5, 8));
    b.mr.replace_memory(&lab.cx, None).unwrap();
    assert_eq!(try_it(), RemAccessErr);
    b.mr.replace_memory(&lab.cx, Some(window(&b.ram, BASE, 0, 1 << 20))).unwrap();
    assert_eq!(try_it(), Success);
    assert_eq!(b.bytes(0, 8), *pattern(5, 8));
    b.mr.dereg(&lab.cx).unwrap();
    assert_eq!(try_it(), RemAccessErr);
    assert_eq!(b.mr.dereg(&lab.cx), Err(Error::Gone));
    assert_eq!(b.mr.replace_memory(&lab.cx, None), Err(Error::Gone));
    assert_eq!(b.mr.rereg(&lab.cx, MrChange::default()), Err(Error::Gone));
}

#[test]
fn re_registration_changes_rights_pd_and_memory_and_keeps_the_rest() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    let try_it = || write(&lab, &a, &b, a.mr.lkey(), (b.mr.rkey(), BASE));
    let rights = |access| MrChange { access: Some(access), ..MrChange::default() };
    b.mr.rereg(&lab.cx, rights(Access::REMOTE_READ)).unwrap();
    assert_eq!(try_it(), RemAccessErr);
    assert!(b.mr.rereg(&lab.cx, rights(Access::REMOTE_WRITE)).is_err(), "needs local write");
    b.mr.rereg(&lab.cx, rights(REMOTE_ALL)).unwrap();
    assert_eq!(try_it(), Success);
    let pd = |pd| MrChange { pd: Some(pd), ..MrChange::default() };
    b.mr.rereg(&lab.cx, pd(b.tenant.context.alloc_pd(&lab.cx).unwrap())).unwrap();
    assert_eq!(try_it(), RemAccessErr);
    assert!(b.mr.rereg(&lab.cx, pd(a.tenant.pd.clone())).is_err(), "a PD of another tenant");
    b.mr.rereg(&lab.cx, pd(b.tenant.pd.clone())).unwrap();
    assert_eq!(try_it(), Success);
    let other = Ram::mapping(4096);
    let memory = Some(window(&other, 0x5000, 0, 4096));
    b.mr.rereg(&lab.cx, MrChange { memory, ..MrChange::default() }).unwrap();
    assert_eq!(try_it(), RemAccessErr, "the old addresses are gone");
    assert_eq!(write(&lab, &a, &b, a.mr.lkey(), (b.mr.rkey(), 0x5000)), Success);
}

#[test]
fn a_dma_mr_reaches_each_region_and_nothing_between_them() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    let ram = Ram::mapping(8192);
    let regions = || vec![window(&ram, BASE, 0, 4096), window(&ram, BASE + 0x8000, 4096, 4096)];
    let mr = b.tenant.pd.reg_dma_mr(&lab.cx, regions(), REMOTE_ALL).unwrap();
    let local = a.tenant.pd.reg_dma_mr(&lab.cx, regions(), Access::NONE).unwrap();
    for (addr, status) in [
        (BASE, Success),
        (BASE + 4088, Success),
        (BASE + 4089, RemAccessErr),
        (BASE + 0x7ff8, RemAccessErr),
        (BASE + 0x8000, Success),
        (BASE + 0x8ff8, Success),
        (BASE + 0x9000, RemAccessErr),
        (BASE - 8, RemAccessErr),
    ] {
        assert_eq!(write(&lab, &a, &b, local.lkey(), (mr.rkey(), addr)), status, "{addr:#x}");
    }
    local.dereg(&lab.cx).unwrap();
    assert_eq!(write(&lab, &a, &b, local.lkey(), (mr.rkey(), BASE)), LocProtErr);
}

#[test]
fn a_resized_cq_goes_on_in_its_new_memory() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    let new = CqSink::new(10);
    assert_eq!(write(&lab, &a, &b, a.mr.lkey(), (b.mr.rkey(), BASE)), Success);
    assert!(a.cqs[0].resize(&lab.cx, 10, None).is_err(), "it lies in the consumer's memory");
    assert!(a.cqs[0].resize(&lab.cx, 0, Some(new.clone())).is_err());
    a.cqs[0].resize(&lab.cx, 10, Some(new.clone())).unwrap();
    assert_eq!(a.cqs[0].cqe(), 10);
    a.qp.post_send(&a.wr(7, WrOpcode::RdmaWrite, &[], &b, 0)).unwrap();
    assert_eq!((a.send.len(), new.statuses()), (0, vec![(7, Success)]));
    let sink = CqSink::new(1);
    let init = CqInit { cqe: 1, vector: 0, memory: None, events: sink };
    let own = a.tenant.context.create_cq(&lab.cx, init).unwrap();
    own.resize(&lab.cx, 100, None).unwrap();
    assert_eq!(own.cqe(), 100);
    assert!(own.resize(&lab.cx, 100, Some(new)).is_err(), "it is the driver's");
    own.destroy(&lab.cx).unwrap();
    assert_eq!(own.resize(&lab.cx, 100, None), Err(Error::Gone));
}

#[test]
fn keys_differ_and_cannot_be_told_from_each_other() {
    let lab = Lab::new();
    let tenant = lab.tenant(1, 1);
    let ram = Ram::mapping(4096);
    let reg = || tenant.pd.reg_mr(&lab.cx, window(&ram, 0, 0, 4096), REMOTE_ALL).unwrap();
    let mrs: Vec<_> = (0..1000).map(|_| reg()).collect();
    let keys: std::collections::HashSet<_> = mrs.iter().map(|mr| mr.rkey().0).collect();
    assert_eq!(keys.len(), 1000);
    assert!(!keys.contains(&0));
    let low: std::collections::HashSet<_> = keys.iter().map(|key| key & 0xfff).collect();
    assert!(low.len() > 500, "{} different low parts", low.len());
    // The same slot has another key afterwards (1 in 4096 would be the same by chance).
    let again: Vec<_> = (0..4)
        .map(|_| {
            let mr = reg();
            let key = mr.rkey();
            mr.dereg(&lab.cx).unwrap();
            key
        })
        .collect();
    assert!(again.windows(2).any(|pair| pair[0] != pair[1]), "{again:?}");
    for access in [Access::REMOTE_WRITE, Access::REMOTE_ATOMIC] {
        let mr = tenant.pd.reg_mr(&lab.cx, window(&ram, 0, 0, 4096), access);
        assert!(matches!(mr, Err(Error::Invalid(_))), "needs local write");
    }
}
