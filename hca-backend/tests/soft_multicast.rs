// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Multicast: who gets what is sent to a group, and who does not.

mod common;

use std::sync::Arc;

use common::*;
use hca_backend::soft::Limits;
use rdma_midlayer::Error;
use rdma_midlayer::attr::{AhAttr, GidEntry, QpAttr, QpAttrMask};
use rdma_midlayer::driver::{AhDriver, Violations};
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

const QKEY: u32 = 0x1111;
const ROOM: u32 = 1000;

fn gid(text: &str) -> Gid {
    Gid(text.parse::<std::net::Ipv6Addr>().unwrap().octets())
}

fn group() -> Gid {
    gid("::ffff:230.1.2.3")
}

/// A UD QP in RTS.
fn station_with(lab: &Lab, tenant: Tenant, setup: Setup) -> End {
    let end = End::new(lab, tenant, &Setup { qp_type: QpType::Ud, memory: 1 << 16, ..setup });
    let attr = QpAttr { qkey: QKEY, ..end.attr };
    let init = QpAttrMask::PKEY_INDEX | QpAttrMask::PORT | QpAttrMask::QKEY;
    lab.modify(&end, QpState::Init, attr, init);
    lab.modify(&end, QpState::Rtr, attr, QpAttrMask(0));
    lab.modify(&end, QpState::Rts, attr, QpAttrMask::SQ_PSN);
    end
}

fn station(lab: &Lab, tenant: Tenant) -> End {
    station_with(lab, tenant, Setup::default())
}

/// A QP more of a tenant's.
fn another(lab: &Lab, tenant: &Tenant) -> End {
    let tenant = Tenant {
        context: tenant.context.clone(),
        pd: tenant.pd.clone(),
        events: tenant.events.clone(),
        gid: tenant.gid,
    };
    station(lab, tenant)
}

fn join(lab: &Lab, end: &End, group: Gid) {
    end.qp.attach_mcast(&lab.cx, &group, 0).unwrap();
}

fn ah(from: &End, dgid: Gid) -> Arc<dyn AhDriver> {
    ah_in(from, dgid, None, 0)
}

fn ah_in(from: &End, dgid: Gid, vlan: Option<u16>, sgid_index: u32) -> Arc<dyn AhDriver> {
    let path = AhAttr { dgid, vlan, sgid_index, sl: 3, port: 1, hop_limit: 1, ..AhAttr::default() };
    from.tenant.pd.create_ah(&path).unwrap()
}

/// Posts a receive WQE for each of `count` datagrams, at places one behind the other.
fn receive(end: &End, count: u64) {
    for i in 0..count {
        end.post_recv(i, &[end.sge(i * u64::from(ROOM), ROOM)]);
    }
}

fn send_to(from: &End, ah: &Arc<dyn AhDriver>, qpn: Qpn, qkey: u32, data: &[u8]) {
    let wr = SendWr {
        wr_id: 7,
        ticket: 0,
        opcode: WrOpcode::Send,
        flags: SendFlags::SIGNALED,
        data: SendData::Inline(data),
        imm: 0,
        remote_addr: 0,
        rkey: RKey(0),
        compare_add: 0,
        swap: 0,
        ud: Some(UdDest { ah: &**ah, qpn, qkey }),
        srqn: None,
    };
    from.qp.post_send(&wr).unwrap();
}

fn send(from: &End, group: Gid, data: &[u8]) {
    send_to(from, &ah(from, group), Qpn::MULTICAST, QKEY, data);
}

/// What came, without the headers.
fn heard(end: &End) -> Vec<Vec<u8>> {
    let wcs = end.recv.drain();
    wcs.iter()
        .map(|wc| {
            assert_eq!(wc.status, WcStatus::Success);
            assert!(wc.flags.contains(WcFlags::GRH));
            end.bytes(wc.wr_id * u64::from(ROOM) + 40, wc.byte_len as usize - 40)
        })
        .collect()
}

#[test]
fn a_datagram_to_a_group_comes_to_every_member_of_its_network_and_to_nobody_else() {
    let lab = Lab::new();
    let [sender, member, idle] = [1, 2, 3].map(|n| station(&lab, lab.tenant(1, n)));
    let second = another(&lab, &member.tenant);
    let elsewhere = station(&lab, lab.tenant(2, 1));
    for end in [&member, &second, &elsewhere] {
        join(&lab, end, group());
    }
    join(&lab, &idle, gid("::ffff:230.1.2.4"));
    for end in [&sender, &member, &second, &idle, &elsewhere] {
        receive(end, 2);
    }
    send(&sender, group(), b"to all");
    lab.run();
    assert_eq!(sender.send.statuses(), [(7, WcStatus::Success)]);
    for end in [&member, &second] {
        let wc = end.recv.wcs.lock().unwrap()[0];
        assert_eq!((wc.src_qpn, wc.byte_len), (sender.qp.qpn(), 46));
        // Nothing before an IPv4 header: version, sender, group.
        let header = end.bytes(0, 40);
        assert_eq!((&header[..20], header[20]), (&[0; 20][..], 0x45));
        assert_eq!(header[32..], [10, 0, 0, 1, 230, 1, 2, 3]);
        assert_eq!(heard(end), [b"to all"]);
    }
    for end in [&sender, &idle, &elsewhere] {
        assert_eq!(heard(end).len(), 0);
    }
}

#[test]
fn a_group_of_ipv6_is_one_too_and_its_header_has_forty_bytes() {
    let lab = Lab::new();
    let all = gid("ff0e::1:2");
    let ends = [1, 2].map(|n| station(&lab, lab.tenant(1, n)));
    let [sender, member] = &ends;
    for (n, end) in ends.iter().enumerate() {
        let entry = GidEntry { gid: gid(&format!("fd00::{n}")), mac: [2; 6], vlan: None };
        end.tenant.context.add_gid(&lab.cx, 1, &entry).unwrap();
    }
    join(&lab, member, all);
    receive(member, 1);
    send_to(sender, &ah_in(sender, all, None, 1), Qpn::MULTICAST, QKEY, b"six");
    lab.run();
    let header = member.bytes(0, 40);
    assert_eq!((header[0] >> 4, &header[24..40]), (6, &all.0[..]));
    assert_eq!(heard(member), [b"six"]);
}

#[test]
fn a_member_hears_itself_unless_it_was_made_not_to() {
    let lab = Lab::new();
    let deaf = Setup { block_self_mcast: true, ..Setup::default() };
    let a = station_with(&lab, lab.tenant(1, 1), deaf);
    let b = station(&lab, lab.tenant(1, 2));
    let beside = another(&lab, &a.tenant);
    for end in [&a, &b, &beside] {
        join(&lab, end, group());
        receive(end, 4);
    }
    send(&a, group(), b"from a");
    send(&b, group(), b"from b");
    lab.run();
    assert_eq!(heard(&a), [b"from b"], "not what it sent itself");
    assert_eq!(heard(&b), [b"from a", b"from b"]);
    assert_eq!(heard(&beside), [b"from a", b"from b"], "another QP of the same device");
}

#[test]
fn a_wrong_q_key_is_counted_and_a_member_without_a_receive_wqe_holds_up_nobody() {
    let lab = Lab::new();
    let [sender, empty, member] = [1, 2, 3].map(|n| station(&lab, lab.tenant(1, n)));
    for end in [&empty, &member] {
        join(&lab, end, group());
    }
    receive(&member, 4);
    let to = ah(&sender, group());
    send_to(&sender, &to, Qpn::MULTICAST, QKEY + 1, b"wrong");
    send_to(&sender, &to, Qpn::MULTICAST, QKEY, b"right");
    // The high bit asks for the sender's own.
    send_to(&sender, &to, Qpn::MULTICAST, 1 << 31, b"own");
    lab.run();
    assert_eq!(sender.send.statuses(), [(7, WcStatus::Success); 3]);
    assert_eq!(heard(&member), [&b"right"[..], b"own"]);
    for end in [&empty, &member] {
        assert_eq!(end.tenant.context.violations(), Violations { pkey: 0, qkey: 1 });
        assert_eq!(lab.state(end), QpState::Rts);
    }
    assert_eq!(empty.recv.len(), 0);
}

#[test]
fn only_the_multicast_qpn_is_for_a_group_and_only_a_group_has_it() {
    let lab = Lab::new();
    let [sender, member] = [1, 2].map(|n| station(&lab, lab.tenant(1, n)));
    join(&lab, &member, group());
    receive(&member, 4);
    send_to(&sender, &ah(&sender, group()), member.qp.qpn(), QKEY, b"its number");
    send_to(&sender, &ah(&sender, member.tenant.gid), Qpn::MULTICAST, QKEY, b"its address");
    send(&sender, gid("::ffff:230.9.9.9"), b"a group without members");
    lab.run();
    assert_eq!(sender.send.statuses(), [(7, WcStatus::Success); 3], "lost without a word");
    assert_eq!(heard(&member).len(), 0);
}

#[test]
fn a_vlan_is_heard_by_devices_that_are_in_it() {
    let lab = Lab::new();
    let [sender, inside, outside] = [1, 2, 3].map(|n| station(&lab, lab.tenant(1, n)));
    for (end, last) in [(&sender, 11), (&inside, 12)] {
        let entry = GidEntry { vlan: Some(5), ..gid_entry(last) };
        end.tenant.context.add_gid(&lab.cx, 1, &entry).unwrap();
    }
    for end in [&inside, &outside] {
        join(&lab, end, group());
        receive(end, 4);
    }
    // The VLAN of the handle, or of the address that it is sent from.
    for to in [ah_in(&sender, group(), Some(5), 1), ah_in(&sender, group(), None, 1)] {
        send_to(&sender, &to, Qpn::MULTICAST, QKEY, b"tagged");
    }
    send(&sender, group(), b"untagged");
    lab.run();
    let vlans: Vec<_> = {
        let wcs = inside.recv.wcs.lock().unwrap();
        wcs.iter().map(|wc| wc.flags.contains(WcFlags::VLAN).then_some((wc.vlan, wc.sl))).collect()
    };
    assert_eq!(vlans, [Some((5, 3)), Some((5, 3)), None], "and so it says");
    assert_eq!(heard(&inside), [&b"tagged"[..], b"tagged", b"untagged"]);
    assert_eq!(heard(&outside), [b"untagged"]);
}

#[test]
fn a_qp_that_leaves_or_ends_or_stops_to_receive_hears_nothing_more() {
    let lab = Lab::new();
    let [sender, leaves, ends, stops, stays] = [1, 2, 3, 4, 5].map(|n| {
        let end = station(&lab, lab.tenant(1, n));
        join(&lab, &end, group());
        receive(&end, 4);
        end
    });
    send(&sender, group(), b"one");
    lab.run();
    leaves.qp.detach_mcast(&lab.cx, &group(), 0).unwrap();
    assert!(leaves.qp.detach_mcast(&lab.cx, &group(), 0).is_err(), "twice");
    ends.qp.destroy(&lab.cx).unwrap();
    ends.recv.closed.store(true, std::sync::atomic::Ordering::SeqCst);
    stops.tenant.context.suspend(&lab.cx).unwrap();
    send(&sender, group(), b"two");
    lab.run();
    for end in [&leaves, &ends, &stops] {
        assert_eq!(heard(end), [b"one"]);
    }
    assert_eq!(heard(&stays), [b"one", b"two"]);
    // Still in the group: in RESET too (IBA 10.5.2).
    stops.tenant.context.resume(&lab.cx).unwrap();
    lab.move_to(&stays, QpState::Reset);
    send(&sender, group(), b"three");
    lab.run();
    assert_eq!(heard(&stops), [b"three"]);
    assert_eq!(heard(&stays).len(), 0);
}

#[test]
fn a_group_takes_ud_qps_once_and_each_tenant_has_three_limits() {
    let limits = Limits {
        max_mcast_grp: 2,
        max_mcast_qp_attach: 2,
        max_total_mcast_qp_attach: 3,
        ..Limits::default()
    };
    let lab = Lab::with_limits(limits);
    let [a, other] = [1, 2].map(|n| station(&lab, lab.tenant(1, n)));
    let [b, c] = [0, 1].map(|_| another(&lab, &a.tenant));
    let groups = [1, 2, 3].map(|n| gid(&format!("ff0e::{n}")));
    let attach = |end: &End, n: usize| end.qp.attach_mcast(&lab.cx, &groups[n], 0);
    attach(&a, 0).unwrap();
    assert!(matches!(attach(&a, 0), Err(Error::Invalid(_))), "twice");
    attach(&b, 0).unwrap();
    assert_eq!(attach(&c, 0), Err(Error::Limit("max_mcast_qp_attach")));
    attach(&c, 1).unwrap();
    assert_eq!(attach(&c, 2), Err(Error::Limit("max_total_mcast_qp_attach")));
    b.qp.destroy(&lab.cx).unwrap();
    assert_eq!(attach(&c, 2), Err(Error::Limit("max_mcast_grp")));
    attach(&c, 0).unwrap();
    attach(&other, 2).unwrap();
    let rc = End::new(&lab, lab.tenant(1, 3), &Setup::default());
    assert!(matches!(rc.qp.attach_mcast(&lab.cx, &group(), 0), Err(Error::Invalid(_))), "RC");
    let unicast = other.tenant.gid;
    assert!(matches!(other.qp.attach_mcast(&lab.cx, &unicast, 0), Err(Error::Invalid(_))));
}

#[test]
fn a_large_group_is_reached_step_by_step_each_member_once_and_in_order() {
    const MEMBERS: usize = 50;
    const MESSAGES: u64 = 8;
    let limits = Limits { max_mcast_qp_attach: MEMBERS as u32, ..Limits::default() };
    let lab = Lab::with_limits(limits);
    let sender = station(&lab, lab.tenant(1, 1));
    let first = station(&lab, lab.tenant(1, 2));
    let members: Vec<_> = (0..MEMBERS).map(|_| another(&lab, &first.tenant)).collect();
    for end in &members {
        join(&lab, end, group());
        receive(end, MESSAGES);
    }
    let count = || members.iter().map(|end| end.recv.len()).sum::<usize>();
    let message = |i: u64| i.to_le_bytes().to_vec();
    let to = ah(&sender, group());
    for i in 0..MESSAGES {
        send_to(&sender, &to, Qpn::MULTICAST, QKEY, &message(i));
    }
    if !FORCE_WIRE {
        while count() < MEMBERS * MESSAGES as usize {
            let before = count();
            assert!(lab.pollers[0].poll(lab.now(), 1).worked);
            assert!(count() - before <= 16, "so much in one turn");
        }
    }
    lab.run();
    let all: Vec<_> = (0..MESSAGES).map(message).collect();
    assert!(members.iter().all(|end| heard(end) == all));
    assert_eq!(sender.send.statuses().len(), MESSAGES as usize);
}

#[test]
fn members_come_and_go_while_datagrams_are_under_way_and_none_comes_twice() {
    const ROUNDS: u64 = 300;
    let lab = Lab::new();
    let [sender, stays] = [1, 2].map(|n| station(&lab, lab.tenant(1, n)));
    let comes_and_goes: Vec<_> = (0..20).map(|_| another(&lab, &stays.tenant)).collect();
    join(&lab, &stays, group());
    let to = ah(&sender, group());
    lab.with_workers(|| {
        for i in 0..ROUNDS {
            receive(&stays, 1);
            send_to(&sender, &to, Qpn::MULTICAST, QKEY, &i.to_le_bytes());
            let end = &comes_and_goes[i as usize % 20];
            receive(end, 1);
            join(&lab, end, group());
            // With few under way no queue is ever full.
            let begin = std::time::Instant::now();
            while stays.recv.len() as u64 <= i {
                assert!(begin.elapsed().as_secs() < 60, "datagram {i} never came");
                std::thread::yield_now();
            }
            if i % 3 == 0 {
                end.qp.detach_mcast(&lab.cx, &group(), 0).unwrap();
            } else {
                let next = &comes_and_goes[(i as usize + 7) % 20];
                let _ = next.qp.detach_mcast(&lab.cx, &group(), 0);
                let _ = end.qp.detach_mcast(&lab.cx, &group(), 0);
            }
        }
    });
    lab.run();
    assert_eq!(stays.recv.len() as u64, ROUNDS);
    assert!(comes_and_goes.iter().all(|end| end.recv.len() as u64 <= ROUNDS / 20));
}
