// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The transports beside RC, and shared receive queues.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use rdma_midlayer::attr::{AhAttr, GidEntry, QpAttr, QpAttrMask};
use rdma_midlayer::driver::{AhDriver, AsyncEvent, SrqDriver, SrqInit};
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

const QKEY: u32 = 0x1111;
const GSI_QKEY: u32 = 0x8001_0000;

fn setup(qp_type: QpType) -> Setup {
    let privileged = qp_type == QpType::Gsi;
    Setup { qp_type, privileged, ..Setup::default() }
}

/// Two tenants with a QP each that sends and receives datagrams.
fn datagram_pair(lab: &Lab, qp_type: QpType) -> (End, End) {
    let ends = [1, 2].map(|n| End::new(lab, lab.tenant(1, n), &setup(qp_type)));
    for end in &ends {
        let attr = QpAttr { qkey: QKEY, ..end.attr };
        let init = QpAttrMask::PKEY_INDEX | QpAttrMask::PORT | QpAttrMask::QKEY;
        lab.modify(end, QpState::Init, attr, init);
        lab.modify(end, QpState::Rtr, attr, QpAttrMask(0));
        lab.modify(end, QpState::Rts, attr, QpAttrMask::SQ_PSN);
    }
    let [a, b] = ends;
    (a, b)
}

fn ah(from: &End, to: &End) -> Arc<dyn AhDriver> {
    let path = AhAttr { dgid: to.tenant.gid, port: 1, hop_limit: 64, ..AhAttr::default() };
    from.tenant.pd.create_ah(&path).unwrap()
}

fn datagram<'a>(
    wr_id: u64,
    sges: &'a [Sge],
    ah: &'a dyn AhDriver,
    to: Qpn,
    qkey: u32,
) -> SendWr<'a> {
    SendWr {
        wr_id,
        ticket: 0,
        opcode: WrOpcode::Send,
        flags: SendFlags::SIGNALED,
        data: SendData::Sges(sges),
        imm: 0,
        remote_addr: 0,
        rkey: RKey(0),
        compare_add: 0,
        swap: 0,
        ud: Some(UdDest { ah, qpn: to, qkey }),
        srqn: None,
    }
}

#[test]
fn a_datagram_arrives_behind_a_header_of_forty_bytes_with_its_sender() {
    let lab = Lab::new();
    let (a, b) = datagram_pair(&lab, QpType::Ud);
    let ah = ah(&a, &b);
    for (i, len) in [0usize, 1, 64, 1000, 4096].into_iter().enumerate() {
        let data = pattern(i as u64 + 1, len);
        a.fill(5, &data);
        b.post_recv(i as u64, &[b.sge(0, 30), b.sge(1000, 5000)]);
        let sges =
            [a.sge(5, (len / 2) as u32), a.sge(5 + (len / 2) as u64, (len - len / 2) as u32)];
        a.qp.post_send(&datagram(9, &sges, &*ah, b.qp.qpn(), QKEY)).unwrap();
        lab.run();
        assert_eq!(a.send.statuses(), [(9, WcStatus::Success)]);
        let wc = b.recv.take().unwrap();
        assert_eq!(
            (wc.status, wc.byte_len, wc.src_qpn),
            (WcStatus::Success, len as u32 + 40, a.qp.qpn())
        );
        assert!(wc.flags.contains(WcFlags::GRH));
        // 30 bytes of the header in the first SGE, 10 in the second.
        assert_eq!(b.bytes(1010, len), data);
    }
}

#[test]
fn a_datagram_that_nobody_can_take_is_lost_and_its_send_succeeds() {
    let lab = Lab::new();
    let (a, b) = datagram_pair(&lab, QpType::Ud);
    let to_b = ah(&a, &b);
    let nowhere = AhAttr { dgid: gid_entry(99).gid, port: 1, ..AhAttr::default() };
    let nowhere = a.tenant.pd.create_ah(&nowhere).unwrap();
    let sges = [a.sge(0, 100)];
    let qpn = b.qp.qpn();
    // No receive WQE.
    a.qp.post_send(&datagram(1, &sges, &*to_b, qpn, QKEY)).unwrap();
    b.post_recv(7, &[b.sge(0, 5000)]);
    for (wr_id, ah, to, qkey) in
        [(2, &to_b, qpn, QKEY + 1), (3, &to_b, Qpn(0x777), QKEY), (4, &nowhere, qpn, QKEY)]
    {
        a.qp.post_send(&datagram(wr_id, &sges, &**ah, to, qkey)).unwrap();
    }
    lab.run();
    assert_eq!(a.send.statuses().len(), 4);
    assert_eq!(b.recv.len(), 0);
    // The high bit asks for the sender's own Q_Key.
    a.qp.post_send(&datagram(5, &sges, &*to_b, qpn, 1 << 31)).unwrap();
    lab.run();
    assert_eq!(b.recv.statuses(), [(7, WcStatus::Success)]);
    assert_eq!(lab.state(&b), QpState::Rts);
}

#[test]
fn a_datagram_says_in_which_vlan_it_came_and_one_in_another_than_its_addresses_is_lost() {
    let lab = Lab::new();
    let (a, b) = datagram_pair(&lab, QpType::Ud);
    let there = GidEntry { vlan: Some(5), ..gid_entry(12) };
    let here = GidEntry { vlan: Some(5), ..gid_entry(11) };
    a.tenant.context.add_gid(&lab.cx, 1, &here).unwrap();
    b.tenant.context.add_gid(&lab.cx, 1, &there).unwrap();
    let sges = [a.sge(0, 100)];
    for wr_id in 0..3 {
        b.post_recv(wr_id, &[b.sge(0, 5000)]);
    }
    // VLAN of the handle, its source, and whether it comes.
    for (vlan, sgid_index, dgid, comes) in [
        (Some(5), 1, there.gid, true),
        (None, 1, there.gid, true),
        (None, 0, there.gid, false),
        (Some(6), 0, b.tenant.gid, false),
        (None, 0, b.tenant.gid, true),
    ] {
        let path = AhAttr { dgid, vlan, sgid_index, sl: 2, port: 1, ..AhAttr::default() };
        let ah = a.tenant.pd.create_ah(&path).unwrap();
        a.qp.post_send(&datagram(9, &sges, &*ah, b.qp.qpn(), QKEY)).unwrap();
        lab.run();
        assert_eq!(a.send.statuses(), [(9, WcStatus::Success)]);
        let Some(wc) = b.recv.take() else {
            assert!(!comes, "{vlan:?} {sgid_index} {dgid}");
            continue;
        };
        assert!(comes, "{vlan:?} {sgid_index} {dgid}");
        let tagged = dgid == there.gid;
        assert_eq!(
            (wc.flags.contains(WcFlags::VLAN), wc.vlan),
            (tagged, if tagged { 5 } else { 0 })
        );
        assert!(!tagged || wc.sl == 2);
    }
}

#[test]
fn a_datagram_has_a_destination_and_no_more_than_a_path_mtu() {
    let lab = Lab::new();
    let (a, b) = datagram_pair(&lab, QpType::Ud);
    let ah = ah(&a, &b);
    let sges = [a.sge(0, 4097)];
    let without = SendWr { ud: None, ..datagram(1, &sges, &*ah, b.qp.qpn(), QKEY) };
    assert!(a.qp.post_send(&without).is_err());
    let write =
        SendWr { opcode: WrOpcode::RdmaWrite, ..datagram(1, &sges, &*ah, b.qp.qpn(), QKEY) };
    assert!(a.qp.post_send(&write).is_err());
    a.qp.post_send(&datagram(2, &sges, &*ah, b.qp.qpn(), QKEY)).unwrap();
    lab.run();
    assert_eq!(a.send.statuses(), [(2, WcStatus::LocLenErr)]);
    assert_eq!(lab.state(&a), QpState::Err);
}

#[test]
fn a_datagram_longer_than_its_receive_wqe_fails_the_receiver() {
    let lab = Lab::new();
    let (a, b) = datagram_pair(&lab, QpType::Ud);
    let ah = ah(&a, &b);
    b.post_recv(7, &[b.sge(0, 40 + 99)]);
    b.post_recv(8, &[b.sge(0, 4000)]);
    a.qp.post_send(&datagram(1, &[a.sge(0, 100)], &*ah, b.qp.qpn(), QKEY)).unwrap();
    lab.run();
    assert_eq!(a.send.statuses(), [(1, WcStatus::Success)]);
    assert_eq!(b.recv.statuses(), [(7, WcStatus::LocLenErr), (8, WcStatus::WrFlushErr)]);
}

#[test]
fn qp1_is_number_one_of_its_tenant_and_there_is_one() {
    let lab = Lab::new();
    let (a, b) = datagram_pair(&lab, QpType::Gsi);
    assert_eq!((a.qp.qpn(), b.qp.qpn()), (Qpn(1), Qpn(1)));
    let ah = ah(&a, &b);
    b.post_recv(7, &[b.sge(0, 5000)]);
    let sges = [a.sge(0, 256)];
    a.qp.post_send(&datagram(1, &sges, &*ah, Qpn(1), GSI_QKEY)).unwrap();
    lab.run();
    let wc = b.recv.take().unwrap();
    assert_eq!((wc.status, wc.src_qpn, wc.byte_len), (WcStatus::Success, Qpn(1), 296));
}

#[test]
fn unreliable_connections_carry_messages_and_lose_what_can_not_be_taken() {
    let lab = Lab::new();
    let uc = Setup { attr: QpAttr { retry_cnt: 1, ..Setup::default().attr }, ..setup(QpType::Uc) };
    let (a, b) = lab.pair_with(&uc, &uc);
    let data = pattern(3, 200_000);
    a.fill(0, &data);
    b.post_recv(7, &[b.sge(0, 200_000)]);
    let sges = [a.sge(0, 200_000)];
    let wr = |wr_id, opcode| a.wr(wr_id, opcode, &sges, &b, 300_000);
    a.qp.post_send(&wr(1, WrOpcode::Send)).unwrap();
    a.qp.post_send(&wr(2, WrOpcode::RdmaWrite)).unwrap();
    lab.run();
    assert_eq!(b.recv.statuses(), [(7, WcStatus::Success)]);
    assert_eq!(b.bytes(0, 200_000), data);
    assert_eq!(b.bytes(300_000, 200_000), data);
    // No receive WQE; a key that is not there; then one that arrives again.
    a.qp.post_send(&wr(3, WrOpcode::Send)).unwrap();
    a.qp.post_send(&SendWr { rkey: RKey(1), ..wr(4, WrOpcode::RdmaWrite) }).unwrap();
    b.post_recv(8, &[b.sge(0, 200_000)]);
    a.qp.post_send(&wr(5, WrOpcode::SendWithImm)).unwrap();
    assert!(a.qp.post_send(&wr(6, WrOpcode::RdmaRead)).is_err());
    lab.run();
    let all: Vec<_> = (1..=5).map(|n| (n, WcStatus::Success)).collect();
    assert_eq!(a.send.statuses(), all);
    assert_eq!(b.recv.statuses(), [(8, WcStatus::Success)]);
    assert_eq!((lab.state(&a), lab.state(&b)), (QpState::Rts, QpState::Rts));
    // A peer that is gone is not missed.
    b.qp.destroy(&lab.cx).unwrap();
    a.qp.post_send(&wr(7, WrOpcode::RdmaWrite)).unwrap();
    lab.run_for(Duration::from_secs(5));
    assert_eq!(a.send.statuses(), [(7, WcStatus::Success)]);
}

fn srq(lab: &Lab, tenant: &Tenant, limit: u32) -> Arc<dyn SrqDriver> {
    let init = SrqInit { max_wr: 8, max_sge: 2, limit, recv_source: None, xrc: None };
    tenant.pd.create_srq(&lab.cx, init).unwrap()
}

#[test]
fn two_qps_take_their_receive_wqes_from_one_srq_in_order() {
    let lab = Lab::new();
    let tenant = lab.tenant(1, 2);
    let shared = srq(&lab, &tenant, 0);
    let with_srq = Setup { srq: Some(shared.clone()), ..Setup::default() };
    let one = End::new(&lab, tenant, &with_srq);
    // A second QP of the same tenant.
    let tenant = Tenant {
        context: one.tenant.context.clone(),
        pd: one.tenant.pd.clone(),
        events: one.tenant.events.clone(),
        gid: one.tenant.gid,
    };
    let two = End::new(&lab, tenant, &with_srq);
    let senders = [3, 4].map(|n| End::new(&lab, lab.tenant(1, n), &Setup::default()));
    lab.connect(&senders[0], &one);
    lab.connect(&senders[1], &two);
    assert!(one.qp.post_recv(&RecvWr { wr_id: 1, ticket: 0, sges: &[] }).is_err());
    for wr_id in 0..8 {
        shared.post_recv(&RecvWr { wr_id, ticket: 0, sges: &[one.sge(wr_id * 100, 100)] }).unwrap();
    }
    let ninth = RecvWr { wr_id: 9, ticket: 0, sges: &[] };
    assert_eq!(shared.post_recv(&ninth), Err(rdma_midlayer::Error::QueueFull));
    for wr_id in 0..8u64 {
        let from = &senders[(wr_id % 2) as usize];
        let to = if wr_id % 2 == 0 { &one } else { &two };
        from.qp.post_send(&from.wr(wr_id, WrOpcode::Send, &[from.sge(0, 50)], to, 0)).unwrap();
    }
    lab.run();
    let taken = |end: &End| end.recv.drain().iter().map(|wc| wc.wr_id).collect::<Vec<_>>();
    assert_eq!((taken(&one), taken(&two)), (vec![0, 2, 4, 6], vec![1, 3, 5, 7]));
}

#[test]
fn a_requester_waits_for_an_srq_and_goes_on_when_it_is_filled() {
    if FORCE_WIRE {
        // Nobody tells a peer elsewhere that a WQE has come.
        return;
    }
    let lab = Lab::new();
    let tenant = lab.tenant(1, 2);
    let shared = srq(&lab, &tenant, 0);
    let b = End::new(&lab, tenant, &Setup { srq: Some(shared.clone()), ..Setup::default() });
    let a = End::new(&lab, lab.tenant(1, 1), &Setup::default());
    lab.connect(&a, &b);
    a.qp.post_send(&a.wr(1, WrOpcode::Send, &[a.sge(0, 50)], &b, 0)).unwrap();
    lab.run();
    assert_eq!((a.send.len(), b.recv.len()), (0, 0));
    shared.post_recv(&RecvWr { wr_id: 5, ticket: 0, sges: &[b.sge(0, 100)] }).unwrap();
    lab.run();
    assert_eq!(a.send.statuses(), [(1, WcStatus::Success)]);
    assert_eq!(b.recv.statuses(), [(5, WcStatus::Success)]);
}

#[test]
fn an_srq_tells_once_when_it_runs_low_and_a_failed_qp_that_it_takes_no_more() {
    let lab = Lab::new();
    let tenant = lab.tenant(1, 2);
    let shared = srq(&lab, &tenant, 2);
    let b = End::new(&lab, tenant, &Setup { srq: Some(shared.clone()), ..Setup::default() });
    let a = End::new(&lab, lab.tenant(1, 1), &Setup::default());
    lab.connect(&a, &b);
    for wr_id in 0..4 {
        shared.post_recv(&RecvWr { wr_id, ticket: 0, sges: &[b.sge(0, 100)] }).unwrap();
    }
    let send =
        |wr_id| a.qp.post_send(&a.wr(wr_id, WrOpcode::Send, &[a.sge(0, 50)], &b, 0)).unwrap();
    let limit = AsyncEvent::SrqLimitReached(shared.srqn());
    (0..2).for_each(send);
    lab.run();
    assert!(!b.tenant.events.drain().contains(&limit));
    (2..4).for_each(send);
    lab.run();
    assert_eq!(b.tenant.events.drain().iter().filter(|e| **e == limit).count(), 1);
    shared.post_recv(&RecvWr { wr_id: 9, ticket: 0, sges: &[b.sge(0, 1)] }).unwrap();
    send(7);
    lab.run();
    assert!(b.tenant.events.drain().contains(&AsyncEvent::LastWqeReached(b.qp.qpn())));
    assert_eq!(b.recv.drain().last().map(|wc| wc.status), Some(WcStatus::LocLenErr));
    shared.destroy(&lab.cx).unwrap();
}

#[test]
fn an_srq_grows_and_shrinks_but_not_below_what_is_in_it() {
    let lab = Lab::new();
    let tenant = lab.tenant(1, 2);
    let shared = srq(&lab, &tenant, 3);
    let post = |wr_id| shared.post_recv(&RecvWr { wr_id, ticket: 0, sges: &[] });
    (0..8).for_each(|n| post(n).unwrap());
    assert_eq!(post(8), Err(rdma_midlayer::Error::QueueFull));
    for (max_wr, fits) in [(7, false), (0, false), (1 << 30, false), (9, true), (8, true)] {
        assert_eq!(shared.resize(&lab.cx, max_wr).is_ok(), fits, "{max_wr}");
    }
    shared.resize(&lab.cx, 9).unwrap();
    post(8).unwrap();
    assert_eq!(post(9), Err(rdma_midlayer::Error::QueueFull));
    let attr = shared.query(&lab.cx).unwrap();
    assert_eq!((attr.max_wr, attr.limit), (9, 3));
    assert!(shared.arm_limit(&lab.cx, 10).is_err());
    shared.arm_limit(&lab.cx, 9).unwrap();
    shared.destroy(&lab.cx).unwrap();
}
