// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Multicast in packets: Ethernet addresses, members on both sides of a port, nothing twice, and packets
//! that should not have been sent.

mod common;
mod net;

use std::net::Ipv6Addr;
use std::sync::Arc;

use common::{INIT, pattern};
use hca_backend::soft::Handled;
use net::{Addresses, Conditions, Net, Station, frame, gid_entry, transport};
use rdma_midlayer::attr::{AhAttr, GidEntry, QpAttr, QpAttrMask};
use rdma_midlayer::driver::AhDriver;
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

const QKEY: u32 = 77;
const SEND_ONLY: u8 = 4;
const UD_SEND_ONLY: u8 = 0x64;
const ROOM: u32 = 256;

fn gid(text: &str) -> Gid {
    Gid(text.parse::<Ipv6Addr>().unwrap().octets())
}

/// A group as a place to which test frames go.
fn group() -> GidEntry {
    GidEntry { gid: gid("::ffff:230.129.2.3"), mac: [1, 0, 0x5e, 1, 2, 3], vlan: None }
}

/// A UD QP in RTS with room for 16 datagrams.
fn station(net: &Net, node: usize) -> Station {
    let station = net.station(node, QpType::Ud, 16, &pattern(3, 16 << 10));
    let attr = QpAttr { qkey: QKEY, ..QpAttr::default() };
    net.modify(&station.qp, QpState::Init, attr, INIT | QpAttrMask::QKEY);
    net.modify(&station.qp, QpState::Rtr, attr, QpAttrMask(0));
    net.modify(&station.qp, QpState::Rts, attr, QpAttrMask::SQ_PSN);
    for i in 0..16 {
        let sges = [station.sge(i * u64::from(ROOM), ROOM)];
        station.qp.post_recv(&RecvWr { wr_id: i, ticket: 0, sges: &sges }).unwrap();
    }
    station
}

fn join(net: &Net, station: &Station, group: Gid) {
    station.qp.attach_mcast(&net.cx, &group, 0).unwrap();
}

fn ah(net: &Net, from: &Station, dgid: Gid) -> Arc<dyn AhDriver> {
    // The guest's kernel makes the Ethernet address of the group; it is not needed.
    let path = AhAttr { dgid, dmac: [0x66; 6], hop_limit: 9, port: 1, ..AhAttr::default() };
    net.nodes[from.node].pd.create_ah(&path).unwrap()
}

fn send(net: &Net, from: &Station, to: Gid, qpn: Qpn, data: &[u8]) {
    let ah = ah(net, from, to);
    let wr = SendWr {
        wr_id: 1,
        ticket: 0,
        opcode: WrOpcode::SendWithImm,
        flags: SendFlags::SIGNALED,
        data: SendData::Inline(data),
        imm: 0x1234,
        remote_addr: 0,
        rkey: RKey(0),
        compare_add: 0,
        swap: 0,
        ud: Some(UdDest { ah: &*ah, qpn, qkey: QKEY }),
        srqn: None,
    };
    from.qp.post_send(&wr).unwrap();
}

/// What came, without the headers.
fn heard(station: &Station) -> Vec<Vec<u8>> {
    let (wcs, bytes) = (station.recv.drain(), station.bytes());
    let data = |wc: &WorkCompletion| {
        assert_eq!(wc.status, WcStatus::Success);
        let at = wc.wr_id as usize * ROOM as usize;
        bytes[at + 40..at + wc.byte_len as usize].to_vec()
    };
    wcs.iter().map(data).collect()
}

/// A datagram as rxe would send it.
fn datagram(from: usize, to: &GidEntry, qpn: Qpn, qkey: u32, data: &[u8]) -> Vec<u8> {
    let deth = [qkey.to_be_bytes(), [0, 0, 0, 5]].concat();
    let rest = [&deth, data].concat();
    frame(
        &gid_entry(from, Addresses::default()),
        to,
        &transport(UD_SEND_ONLY, qpn, Psn::new(9), false, &rest),
    )
}

#[test]
fn a_datagram_comes_once_to_each_member_on_both_sides_of_the_port() {
    let mut net = Net::new(1, 3, Addresses::default(), Conditions::default());
    let [sender, beside, far, stranger] = [0, 0, 1, 2].map(|node| station(&net, node));
    for member in [&sender, &beside, &far] {
        join(&net, member, group().gid);
    }
    net.tap = Some(Vec::new());
    send(&net, &sender, group().gid, Qpn::MULTICAST, b"to both sides");
    net.settle();
    let frames = net.tap.take().unwrap();
    assert_eq!(frames.len(), 1, "one frame, however many members");
    assert_eq!(frames[0][..6], group().mac);
    assert_eq!(frames[0][22], 9, "the hop limit of the handle");
    assert_eq!(sender.send.statuses(), [(1, WcStatus::Success)]);
    for member in [&sender, &beside, &far] {
        let wc = member.recv.wcs.lock().unwrap()[0];
        assert_eq!((wc.src_qpn, wc.imm), (sender.qp.qpn(), 0x1234));
        assert_eq!(heard(member), [b"to both sides"]);
    }
    assert_eq!(heard(&stranger).len(), 0);
    // A network that sends a frame back to where it came from delivers nothing twice.
    let now = net.now();
    assert_eq!(net.nodes[0].link.handle_frame(now, &frames[0]), Handled::Taken);
    net.settle();
    assert_eq!(net.nodes[0].count("spoofed"), 1);
    assert_eq!((heard(&sender).len(), heard(&beside).len()), (0, 0));
}

#[test]
fn a_group_of_ipv6_has_its_own_ethernet_address() {
    let mut net = Net::new(1, 2, Addresses { v6: true, vlan: None }, Conditions::default());
    let [sender, member] = [0, 1].map(|node| station(&net, node));
    let all = gid("ff0e::1:2345:6789");
    join(&net, &member, all);
    net.tap = Some(Vec::new());
    send(&net, &sender, all, Qpn::MULTICAST, b"six");
    net.settle();
    assert_eq!(net.tap.take().unwrap()[0][..6], [0x33, 0x33, 0x23, 0x45, 0x67, 0x89]);
    assert_eq!(heard(&member), [b"six"]);
}

#[test]
fn frames_of_groups_are_others_too_and_unknown_ones_are_nobodys() {
    let mut net = Net::new(1, 2, Addresses::default(), Conditions::default());
    let member = station(&net, 1);
    let now = net.now();
    let good = datagram(0, &group(), Qpn::MULTICAST, QKEY, b"data");
    assert_eq!(net.nodes[1].link.handle_frame(now, &good), Handled::NotOurs, "no member yet");
    join(&net, &member, group().gid);
    assert_eq!(net.nodes[1].link.handle_frame(now, &good), Handled::Shared);
    let other = GidEntry { gid: gid("::ffff:230.1.2.4"), ..group() };
    let other = datagram(0, &other, Qpn::MULTICAST, QKEY, b"data");
    assert_eq!(net.nodes[1].link.handle_frame(now, &other), Handled::NotOurs);
    net.settle();
    assert_eq!(heard(&member), [b"data"]);
    assert_eq!(net.nodes[1].count("rcvd_pkts"), 1);
}

#[test]
fn packets_that_are_wrong_reach_no_member_and_are_counted() {
    let mut net = Net::new(1, 2, Addresses::default(), Conditions::default());
    let member = station(&net, 1);
    join(&net, &member, group().gid);
    let before = member.bytes();
    let good = datagram(0, &group(), Qpn::MULTICAST, QKEY, b"data");
    let mut damaged = good.clone();
    damaged[60] ^= 1;
    let mut pkey = transport(UD_SEND_ONLY, Qpn::MULTICAST, Psn::new(9), false, &[0; 12]);
    pkey[2..4].copy_from_slice(&[0x80, 1]);
    let connected = transport(SEND_ONLY, Qpn::MULTICAST, Psn::new(9), true, b"of RC");
    let short = transport(UD_SEND_ONLY, Qpn::MULTICAST, Psn::new(9), false, &[0; 4]);
    let from = gid_entry(0, Addresses::default());
    for (bad, counter) in [
        (damaged, "icrc_err"),
        (frame(&from, &group(), &pkey), "pkey_err"),
        (frame(&from, &group(), &connected), "unknown_qp"),
        (frame(&from, &group(), &short), "malformed"),
        (datagram(0, &group(), member.qp.qpn(), QKEY, b"its number"), "unknown_qp"),
        (
            datagram(0, &gid_entry(1, Addresses::default()), Qpn::MULTICAST, QKEY, b"its address"),
            "unknown_qp",
        ),
        (datagram(0, &group(), Qpn::MULTICAST, QKEY + 1, b"wrong key"), "qkey_err"),
    ] {
        let count = net.nodes[1].count(counter);
        let now = net.now();
        assert_ne!(net.nodes[1].link.handle_frame(now, &bad), Handled::NotOurs);
        net.settle();
        assert_eq!(net.nodes[1].count(counter), count + 1, "{counter}");
        assert!(member.recv.drain().is_empty() && member.bytes() == before, "{counter}");
    }
    assert_eq!(net.nodes[1].context.violations().qkey, 1);
    // In another VLAN than the device is in.
    let mut tagged = good.clone();
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    let now = net.now();
    net.nodes[1].link.handle_frame(now, &tagged);
    assert_eq!(member.recv.len(), 0);
    net.nodes[1].link.handle_frame(now, &good);
    assert_eq!(heard(&member), [b"data"], "and the one that is right");
}

#[test]
fn one_that_is_not_for_a_groups_members_goes_out_and_is_dropped_there() {
    let mut net = Net::new(1, 2, Addresses::default(), Conditions::default());
    let [sender, member] = [0, 1].map(|node| station(&net, node));
    join(&net, &member, group().gid);
    send(&net, &sender, group().gid, member.qp.qpn(), b"its number");
    net.settle();
    assert_eq!(sender.send.statuses(), [(1, WcStatus::Success)]);
    assert_eq!(net.nodes[1].count("unknown_qp"), 1);
    assert_eq!(heard(&member).len(), 0);
}

#[test]
fn a_large_group_is_reached_in_steps_and_a_flood_loses_what_there_is_no_room_for() {
    const MEMBERS: usize = 40;
    const FLOOD: u32 = 3000;
    let mut net = Net::new(1, 2, Addresses::default(), Conditions::default());
    let members: Vec<_> = (0..MEMBERS).map(|_| station(&net, 1)).collect();
    members.iter().for_each(|member| join(&net, member, group().gid));
    let count = || members.iter().map(|member| member.recv.len()).sum::<usize>();
    let link = net.nodes[1].link.clone();
    let now = net.now();
    for i in 0..FLOOD {
        let frame = datagram(0, &group(), Qpn::MULTICAST, QKEY, &i.to_be_bytes());
        link.handle_frame(now, &frame);
        assert_eq!(count(), 16, "the first goes on later, and none overtakes it");
    }
    // The first waits, and 1023 more; there are 16 receive WQEs.
    assert_eq!(net.nodes[1].count("group_dropped"), u64::from(FLOOD) - 1024);
    assert_eq!(link.next_deadline(), Some(now), "whoever drives the link comes back at once");
    while link.next_deadline().is_some() {
        let before = count();
        link.handle_timer(now);
        assert!(count() - before <= 4 * 16, "so much in one turn");
    }
    net.settle();
    let first: Vec<_> = (0..16u32).map(|i| i.to_be_bytes().to_vec()).collect();
    assert!(members.iter().all(|member| heard(member) == first), "each once, and in order");
}
