// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The verbs HCA: datagrams and address handles, shared receive queues, memory windows, keys to all
//! memory, batches.

mod common;
mod verbs;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::*;
use rdma_midlayer::Error;
use rdma_midlayer::attr::{AhAttr, QpAttr, QpAttrMask as M};
use rdma_midlayer::driver::{AsyncEvent, RecvSource, SrqInit};
use rdma_midlayer::memory::{Run, UserMemory};
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;
use verbs::{Memfd, VerbsLab, both, local_error, opened, stub};

/// Two UD QPs of two tenants, in RTS, whose senders keep their requests in rings.
fn datagrams(lab: &VerbsLab, setup: &Setup) -> [End; 2] {
    [1, 2].map(|last| {
        let attr = QpAttr { qkey: 0x1234, ..setup.attr };
        let setup = Setup { qp_type: QpType::Ud, attr, ..setup.clone() };
        let end = End::new(lab, lab.tenant(1, last), &setup);
        lab.modify(&end, QpState::Init, end.attr, M::PKEY_INDEX | M::PORT | M::QKEY);
        lab.modify(&end, QpState::Rtr, end.attr, M(0));
        lab.modify(&end, QpState::Rts, end.attr, M::SQ_PSN);
        end
    })
}

#[test]
fn datagrams_wait_for_their_address_handle_and_arrive_behind_a_grh() {
    both(|lab| {
        let ready = Arc::new(Bell::default());
        let setup = Setup { ready: Some(ready.clone()), ..Setup::default() };
        let [a, b] = datagrams(lab, &setup);
        let path = AhAttr { dgid: b.tenant.gid, port: 1, hop_limit: 5, ..AhAttr::default() };
        let ah = a.tenant.pd.create_ah(&path).unwrap();
        assert_eq!(ah.query().unwrap(), path);
        for (n, len) in [0, 1, 900].into_iter().enumerate() {
            b.post_recv(7, &[b.sge(0, 1024)]);
            let data = pattern(n as u64, len);
            a.fill(0, &data);
            let sges = [a.sge(0, len as u32)];
            let ud = Some(UdDest { ah: &*ah, qpn: b.qp.qpn(), qkey: 0x1234 });
            let wr = SendWr { ud, ..a.wr(3, WrOpcode::Send, &sges, &b, 0) };
            // A full queue, until the host's handle is made.
            lab.wait("a datagram is taken", || match a.qp.post_send(&wr) {
                Ok(()) => Some(()),
                Err(Error::QueueFull) => None,
                Err(e) => panic!("{e}"),
            });
            let wc = lab.next(&b.recv);
            assert_eq!(
                (wc.status, wc.byte_len, wc.src_qpn),
                (WcStatus::Success, 40 + len as u32, a.qp.qpn())
            );
            assert_eq!(wc.flags, WcFlags::GRH);
            assert_eq!(b.bytes(40, len), data);
            assert_eq!(lab.next(&a.send).wr_id, 3);
        }
        ah.modify(&AhAttr { dgid: a.tenant.gid, ..path }).unwrap();
        ah.destroy().unwrap();
    });
}

#[test]
fn a_sender_that_found_no_address_handle_is_told_when_it_is_there() {
    let lab = opened(&verbs::devices()[0]);
    let ready = Arc::new(Bell::default());
    let setup = Setup { ready: Some(ready.clone()), ..Setup::default() };
    let [a, b] = datagrams(&lab, &setup);
    let mut waited = 0;
    for n in 0..64u8 {
        // A path of its own each: each needs a handle.
        let path = AhAttr { dgid: b.tenant.gid, port: 1, traffic_class: n, ..AhAttr::default() };
        let ah = a.tenant.pd.create_ah(&path).unwrap();
        let sges = [a.sge(0, 1)];
        let ud = Some(UdDest { ah: &*ah, qpn: b.qp.qpn(), qkey: 0x1234 });
        let wr = SendWr { ud, ..a.wr(3, WrOpcode::Send, &sges, &b, 0) };
        let before = ready.0.load(Ordering::SeqCst);
        if a.qp.post_send(&wr) == Err(Error::QueueFull) {
            waited += 1;
            lab.wait("send_ready", || (ready.0.load(Ordering::SeqCst) > before).then_some(()));
            a.qp.post_send(&wr).unwrap();
        }
        assert_eq!(lab.next(&a.send).status, WcStatus::Success);
    }
    eprintln!("{waited} of 64 datagrams came before their handle");
}

#[test]
fn a_shared_queue_feeds_two_qps_and_says_when_it_runs_low() {
    both(|lab| {
        let ring = Arc::new(RecvRing::default());
        let tenant = lab.tenant(1, 2);
        let init = SrqInit {
            max_wr: 32,
            max_sge: 2,
            limit: 0,
            recv_source: Some(ring.clone() as Arc<dyn RecvSource>),
            xrc: None,
        };
        let srq = tenant.pd.create_srq(&lab.cx, init).unwrap();
        assert!(srq.takes_ahead());
        let setup = Setup { srq: Some(srq.clone()), ..Setup::default() };
        let b = End::new(lab, tenant, &setup);
        let a = End::new(lab, lab.tenant(1, 1), &Setup::default());
        lab.connect(&a, &b);
        for n in 0..16 {
            ring.post(n, &[b.sge(n * 64, 64)]);
        }
        srq.recv_posted();
        let mut seen = Vec::new();
        for n in 0..8u64 {
            a.fill(0, &[n as u8; 64]);
            a.qp.post_send(&a.wr(n, WrOpcode::Send, &[a.sge(0, 64)], &b, 0)).unwrap();
            let wc = lab.next(&b.recv);
            assert_eq!((wc.status, wc.byte_len, wc.qpn), (WcStatus::Success, 64, b.qp.qpn()));
            assert_eq!(b.bytes(wc.wr_id * 64, 64), [n as u8; 64]);
            seen.push(wc.wr_id);
            lab.next(&a.send);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..8).collect::<Vec<_>>(), "each request was used once");
        assert_eq!(b.tenant.events.drain(), []);
        srq.arm_limit(&lab.cx, 6).unwrap();
        for n in 8..12u64 {
            a.qp.post_send(&a.wr(n, WrOpcode::Send, &[a.sge(0, 64)], &b, 0)).unwrap();
            lab.next(&b.recv);
        }
        lab.wait("the limit's event", || {
            b.tenant.events.drain().contains(&AsyncEvent::SrqLimitReached(srq.srqn())).then_some(())
        });
        assert_eq!(srq.query(&lab.cx).unwrap().limit, 0, "used up");
    });
}

#[test]
fn a_window_of_type_2_shows_a_part_until_it_is_invalidated() {
    both(|lab| {
        let (a, b) = lab.pair();
        let all = Access(REMOTE_ALL.0 | Access::MW_BIND.0);
        let memory = || window(&b.ram, BASE, 0, 1 << 20);
        let mr = b.tenant.pd.reg_mr(&lab.cx, memory(), all).unwrap();
        let mw = b.tenant.pd.alloc_mw(&lab.cx, MwType::Type2).unwrap();
        let key = RKey(mw.rkey().0 & !0xff | 0x42);
        let bind = MwBind {
            rkey: key,
            lkey: mr.lkey(),
            addr: BASE + 4096,
            length: 64,
            access: Access::REMOTE_WRITE,
        };
        let wr = SendWr { data: SendData::Bind(&bind), ..b.wr(1, WrOpcode::BindMw, &[], &a, 0) };
        b.qp.post_send(&wr).unwrap();
        let wc = lab.next(&b.send);
        assert_eq!((wc.status, wc.opcode), (WcStatus::Success, WcOpcode::BindMw));
        a.fill(0, b"through the window");
        let sges = [a.sge(0, 18)];
        let write = SendWr { rkey: key, ..a.wr(2, WrOpcode::RdmaWrite, &sges, &b, 4096) };
        a.qp.post_send(&write).unwrap();
        assert_eq!(lab.next(&a.send).status, WcStatus::Success);
        assert_eq!(b.bytes(4096, 18), b"through the window");
        let inv = SendWr { rkey: key, ..b.wr(3, WrOpcode::LocalInv, &[], &a, 0) };
        b.qp.post_send(&inv).unwrap();
        assert_eq!(lab.next(&b.send).opcode, WcOpcode::LocalInv);
        a.qp.post_send(&write).unwrap();
        assert_eq!(lab.next(&a.send).status, WcStatus::RemAccessErr);
        mw.dealloc(&lab.cx).unwrap();
        mr.dereg(&lab.cx).unwrap();
    });
}

#[test]
fn a_window_of_type_1_gets_a_new_key_with_each_bind() {
    if stub().is_none() {
        return;
    }
    let lab = opened("stub0");
    let (a, b) = lab.pair();
    let all = Access(REMOTE_ALL.0 | Access::MW_BIND.0);
    let mr = b.tenant.pd.reg_mr(&lab.cx, window(&b.ram, BASE, 0, 1 << 20), all).unwrap();
    let mw = b.tenant.pd.alloc_mw(&lab.cx, MwType::Type1).unwrap();
    let before = mw.rkey();
    let bind = MwBind {
        rkey: before,
        lkey: mr.lkey(),
        addr: BASE,
        length: 8,
        access: Access::REMOTE_WRITE,
    };
    let key = b.qp.bind_mw(&mw, 5, 6, &bind).unwrap();
    assert!(key != before && mw.rkey() == key);
    let wc = lab.next(&b.send);
    assert_eq!((wc.wr_id, wc.ticket, wc.opcode), (5, 6, WcOpcode::BindMw));
    let sges = [a.sge(0, 8)];
    a.qp.post_send(&SendWr { rkey: key, ..a.wr(2, WrOpcode::RdmaWrite, &sges, &b, 0) }).unwrap();
    assert_eq!(lab.next(&a.send).status, WcStatus::Success);
}

#[test]
fn an_mr_goes_with_the_windows_that_are_bound_to_it() {
    both(|lab| {
        let (a, b) = lab.pair();
        let all = Access(REMOTE_ALL.0 | Access::MW_BIND.0);
        let mr = b.tenant.pd.reg_mr(&lab.cx, window(&b.ram, BASE, 0, 1 << 20), all).unwrap();
        let mw = b.tenant.pd.alloc_mw(&lab.cx, MwType::Type2).unwrap();
        let key = RKey(mw.rkey().0 & !0xff | 0x17);
        let bind = MwBind {
            rkey: key,
            lkey: mr.lkey(),
            addr: BASE,
            length: 64,
            access: Access::REMOTE_WRITE,
        };
        let post = || {
            let wr =
                SendWr { data: SendData::Bind(&bind), ..b.wr(1, WrOpcode::BindMw, &[], &a, 0) };
            b.qp.post_send(&wr).unwrap();
            lab.next(&b.send).status
        };
        assert_eq!(post(), WcStatus::Success);
        mr.dereg(&lab.cx).unwrap();
        let sges = [a.sge(0, 8)];
        a.qp.post_send(&SendWr { rkey: key, ..a.wr(2, WrOpcode::RdmaWrite, &sges, &b, 0) })
            .unwrap();
        assert_eq!(lab.next(&a.send).status, WcStatus::RemAccessErr);
        mw.dealloc(&lab.cx).unwrap();
    });
}

/// Two regions with a hole between them, as a guest's memory has, of a file each.
fn regions(
    first: &Arc<dyn rdma_midlayer::memory::Mapping>,
    second: &Arc<dyn rdma_midlayer::memory::Mapping>,
) -> UserMemory {
    let run = |mapping: &Arc<dyn rdma_midlayer::memory::Mapping>| Run {
        mapping: mapping.clone(),
        offset: 0,
        len: 16 * 4096,
    };
    UserMemory::sparse([(0, run(first)), (16 * 4096, run(second)), (1 << 32, run(first))]).unwrap()
}

#[test]
fn a_key_to_all_memory_works_in_every_region_and_across_them() {
    both(|lab| {
        let setup = Setup { privileged: true, ..Setup::default() };
        let (a, b) = lab.pair_with(&setup, &Setup::default());
        let (first, second) = (Memfd::mapping(16), Memfd::mapping(16));
        let all = regions(&first, &second);
        let mr =
            a.tenant.pd.reg_mr(&lab.cx, regions(&first, &second), Access::LOCAL_WRITE).unwrap();
        let sge = |addr, length| Sge { addr, length, lkey: mr.lkey() };
        let border = 16 * 4096;
        let places = [
            (100, 50, WcStatus::Success),
            (border + 8, 4096, WcStatus::Success),
            ((1 << 32) + 4096, 77, WcStatus::Success),
            (border - 1000, 3000, WcStatus::Success),
        ];
        for (n, (addr, len, status)) in places.into_iter().enumerate() {
            let data = pattern(n as u64, len as usize);
            all.write(addr, &data).unwrap();
            let sges = [sge(addr, len)];
            a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &sges, &b, 0)).unwrap();
            assert_eq!(lab.next(&a.send).status, status);
            assert_eq!(b.bytes(0, len as usize), data);
            // And the other way, into it.
            b.fill(0, &pattern(n as u64 + 90, len as usize));
            a.qp.post_send(&a.wr(1, WrOpcode::RdmaRead, &sges, &b, 0)).unwrap();
            assert_eq!(lab.next(&a.send).status, status);
            let mut found = vec![0; len as usize];
            all.read(addr, &mut found).unwrap();
            assert_eq!(found, pattern(n as u64 + 90, len as usize));
        }
        // The second region goes, another key of the PD stays.
        let less =
            UserMemory::sparse([(0, Run { mapping: first.clone(), offset: 0, len: 16 * 4096 })])
                .unwrap();
        mr.replace_memory(&lab.cx, Some(less)).unwrap();
        let sges = [sge(100, 50)];
        a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &sges, &b, 0)).unwrap();
        assert_eq!(lab.next(&a.send).status, WcStatus::Success);
        let sges = [sge(border - 4, 8)];
        a.qp.post_send(&a.wr(2, WrOpcode::RdmaWrite, &sges, &b, 0)).unwrap();
        let status = lab.next(&a.send).status;
        assert!(local_error(status, WcStatus::LocProtErr), "into the hole: {status:?}");
        mr.dereg(&lab.cx).unwrap();
    });
}

#[test]
fn a_burst_is_one_post() {
    for device in verbs::devices() {
        let lab = opened(&device);
        let (a, b) = lab.pair();
        let before = stub().map_or(0, |stub| stub.chains());
        let sges: Vec<_> = (0..16).map(|n| [a.sge(n * 8, 8)]).collect();
        let wrs: Vec<_> = sges
            .iter()
            .enumerate()
            .map(|(n, s)| a.wr(n as u64, WrOpcode::RdmaWrite, s, &b, 64))
            .collect();
        a.qp.post_send_list(&wrs).unwrap();
        for n in 0..16 {
            assert_eq!(lab.next(&a.send).wr_id, n);
        }
        let chains = stub().map_or(0, |stub| stub.chains()) - before;
        // The driver's thread may have begun before the last one was staged.
        assert!(chains <= if device == "stub0" { 1 } else { 16 }, "{chains} posts on {device}");
        // A list ends at the first that makes no sense, and those before it are carried out.
        let bad = SendWr { ud: None, opcode: WrOpcode::RegMr, ..wrs[0] };
        let stop = a.qp.post_send_list(&[wrs[0], wrs[1], bad, wrs[2]]).unwrap_err();
        assert_eq!(stop.taken, 2);
        assert_eq!([lab.next(&a.send).wr_id, lab.next(&a.send).wr_id], [0, 1]);
    }
}

#[test]
fn a_full_queue_says_so_and_its_sender_is_told_when_there_is_room() {
    both(|lab| {
        let ready = Arc::new(Bell::default());
        let cap = rdma_midlayer::attr::QpCap { max_send_wr: 4, ..Setup::default().cap };
        let setup = Setup { ready: Some(ready.clone()), cap, ..Setup::default() };
        let (a, b) = lab.pair_with(&setup, &Setup::default());
        // Nothing is posted at the peer: sends stay.
        let sges = [a.sge(0, 8)];
        let wr = a.wr(1, WrOpcode::Send, &sges, &b, 0);
        (0..4).for_each(|_| a.qp.post_send(&wr).unwrap());
        assert_eq!(a.qp.post_send(&wr), Err(Error::QueueFull));
        assert_eq!(ready.0.load(Ordering::SeqCst), 0);
        b.post_recv(1, &[b.sge(0, 8)]);
        lab.next(&a.send);
        lab.wait("send_ready", || (ready.0.load(Ordering::SeqCst) > 0).then_some(()));
        a.qp.post_send(&wr).unwrap();
    });
}
