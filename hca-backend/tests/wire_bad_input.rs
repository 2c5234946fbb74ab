// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packets that should not have been sent: each is dropped or refused as IBA says, counted, and changes
//! no memory.

mod common;
mod net;

use common::{BASE, pattern};
use net::{Addresses, Conditions, Net, Station, feth_reth, frame, gid_entry, reth, transport};
use rdma_midlayer::attr::QpAttr;
use rdma_midlayer::driver::AsyncEvent;
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

const SEND_FIRST: u8 = 0;
const SEND_MIDDLE: u8 = 1;
const SEND_LAST: u8 = 2;
const SEND_ONLY: u8 = 4;
const WRITE_FIRST: u8 = 6;
const WRITE_ONLY: u8 = 0x0a;
const READ_REQUEST: u8 = 0x0c;
const READ_RESPONSE_ONLY: u8 = 0x10;
const ACK: u8 = 0x11;
const FETCH_ADD: u8 = 0x14;
const FLUSH: u8 = 0x1c;
const ATOMIC_WRITE: u8 = 0x1d;
const XRC: u8 = 0xa0;
const UD_SEND_ONLY: u8 = 0x64;
const MTU: usize = 1024;
const QKEY: u32 = 77;
const EPSN: Psn = Psn::new(1000);

/// What the victim answers: PSN and syndrome.
const NAK_SEQUENCE: u8 = 0x60;
const NAK_INVALID: u8 = 0x61;
const NAK_ACCESS: u8 = 0x62;

/// Node 0 talks to node 1; node 2 is a stranger.
struct Scene {
    net: Net,
    peer: Station,
    victim: Station,
    before: Vec<u8>,
    /// Bits of the victim's opcodes.
    transport: u8,
}

impl Scene {
    fn new(qp_type: QpType) -> Self {
        let mut net = Net::new(1, 3, Addresses::default(), Conditions::default());
        let memory = pattern(3, 16 << 10);
        let peers = if qp_type == QpType::XrcTgt { QpType::XrcIni } else { qp_type };
        let peer = net.station(0, peers, 16, &memory);
        let victim = net.station(1, qp_type, 16, &memory);
        let attr = QpAttr {
            access: net::ALL | Access::FLUSH_PERSISTENT,
            path_mtu: Mtu::Mtu1024,
            max_rd_atomic: 4,
            max_dest_rd_atomic: 4,
            min_rnr_timer: 12,
            qkey: QKEY,
            rq_psn: EPSN,
            sq_psn: EPSN,
            ..QpAttr::default()
        };
        net.connect(&peer, &victim, attr);
        net.connect(&victim, &peer, attr);
        if qp_type != QpType::XrcIni {
            victim.post_recv(&RecvWr { wr_id: 9, ticket: 9, sges: &[victim.sge(0, 2048)] });
        }
        net.tap = Some(Vec::new());
        let transport = if qp_type == QpType::XrcTgt { XRC } else { 0 };
        Self { net, peer, victim, before: memory, transport }
    }

    /// A packet of the peer's.
    fn packet(&self, opcode: u8, psn: Psn, rest: &[u8]) -> Vec<u8> {
        frame(
            &gid_entry(0, Addresses::default()),
            &gid_entry(1, Addresses::default()),
            &transport(opcode, self.victim.qp.qpn(), psn, true, rest),
        )
    }

    /// Hands the victim a frame; the answers: opcode, PSN, syndrome.
    fn give(&mut self, frame: &[u8]) -> Vec<(u8, Psn, u8)> {
        let now = self.net.now();
        self.net.nodes[1].link.handle_frame(now, frame);
        self.net.tap = Some(Vec::new());
        self.net.settle();
        let sent = self.net.tap.take().unwrap();
        let of_victim = sent.iter().filter(|f| f[11] == 2);
        let answer = |f: &Vec<u8>| {
            let psn = u32::from_be_bytes([0, f[51], f[52], f[53]]);
            (f[42], Psn::new(psn), f[54])
        };
        of_victim.map(answer).collect()
    }

    fn count(&self, name: &str) -> u64 {
        self.net.nodes[1].count(name)
    }

    fn untouched(&self) {
        assert!(self.victim.bytes() == self.before, "the victim's memory has changed");
    }

    fn state(&self) -> QpState {
        self.victim.qp.query(&self.net.cx).unwrap().state
    }

    /// It is dropped, counted under this name, and the QP goes on.
    fn is_dropped(&mut self, frame: &[u8], counter: &str) {
        let before = self.count(counter);
        assert_eq!(self.give(frame), [], "no answer");
        assert_eq!(self.count(counter), before + 1, "{counter}");
        self.untouched();
        assert_eq!(self.state(), QpState::Rts);
    }

    /// It is refused with this syndrome, and the QP fails.
    fn is_refused(&mut self, frame: &[u8], syndrome: u8, event: fn(Qpn) -> AsyncEvent) {
        let answers = self.give(frame);
        assert_eq!(answers, [(self.transport | ACK, EPSN, syndrome)]);
        self.untouched();
        assert_eq!(self.state(), QpState::Err);
        let events = self.net.nodes[1].events.drain();
        assert!(
            events.contains(&event(self.victim.qp.qpn())) || !self.victim.recv.drain().is_empty()
        );
        assert_eq!(self.count("send_nak"), 1);
    }
}

#[test]
fn a_packet_for_a_qp_that_does_not_exist_is_dropped() {
    let mut scene = Scene::new(QpType::Rc);
    let (a, b) = (gid_entry(0, Addresses::default()), gid_entry(1, Addresses::default()));
    for qpn in [0, 1, 2, 0xff_ffff, scene.victim.qp.qpn().0 + 1] {
        let bad = frame(&a, &b, &transport(SEND_ONLY, Qpn(qpn), EPSN, true, b"gone"));
        scene.is_dropped(&bad, "unknown_qp");
    }
}

#[test]
fn a_packet_from_another_address_than_the_peers_is_dropped() {
    let mut scene = Scene::new(QpType::Rc);
    let (stranger, b) = (gid_entry(2, Addresses::default()), gid_entry(1, Addresses::default()));
    let qpn = scene.victim.qp.qpn();
    let bad = frame(&stranger, &b, &transport(SEND_ONLY, qpn, EPSN, true, b"mine"));
    scene.is_dropped(&bad, "unknown_qp");
}

#[test]
fn a_packet_from_outside_with_the_address_of_a_device_inside_is_dropped() {
    // QPs of one daemon: what they say to each other never comes from outside.
    let mut scene = Scene::new(QpType::Rc);
    let node = &scene.net.nodes[1];
    let inside = gid_entry(0, Addresses::default());
    node.context.add_gid(&scene.net.cx, 1, &inside).unwrap();
    let bad = scene.packet(SEND_ONLY, EPSN, b"mine");
    scene.is_dropped(&bad, "spoofed");
}

#[test]
fn a_packet_in_another_vlan_is_not_for_the_device() {
    let mut scene = Scene::new(QpType::Rc);
    let mut tagged = scene.packet(SEND_ONLY, EPSN, b"tagged");
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    let before = scene.count("rcvd_pkts");
    assert_eq!(scene.give(&tagged), []);
    assert_eq!(scene.count("rcvd_pkts"), before);
    scene.untouched();
    // A tag without a VLAN carries a priority only.
    let mut priority = scene.packet(SEND_ONLY, EPSN, b"first");
    priority.splice(12..12, [0x81, 0, 0xe0, 0]);
    assert_eq!(scene.give(&priority), [(ACK, EPSN, 0x1f)]);
}

#[test]
fn a_packet_of_another_transport_is_dropped() {
    let mut scene = Scene::new(QpType::Rc);
    let bad = scene.packet(0x20 | SEND_ONLY, EPSN, b"of UC");
    scene.is_dropped(&bad, "unknown_qp");
    let bad = scene.packet(UD_SEND_ONLY, EPSN, &[0; 12]);
    scene.is_dropped(&bad, "unknown_qp");
}

#[test]
fn a_packet_with_a_wrong_icrc_is_dropped() {
    let mut scene = Scene::new(QpType::Rc);
    let good = scene.packet(
        WRITE_ONLY,
        EPSN,
        &[reth(BASE, scene.victim.mr.rkey(), 4), vec![1; 4]].concat(),
    );
    for at in [good.len() - 1, good.len() - 5, 50] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        scene.is_dropped(&bad, "icrc_err");
    }
}

#[test]
fn a_packet_with_a_wrong_p_key_is_dropped() {
    let mut scene = Scene::new(QpType::Rc);
    let qpn = scene.victim.qp.qpn();
    let mut bytes = transport(SEND_ONLY, qpn, EPSN, true, b"part");
    bytes[2..4].copy_from_slice(&[0x80, 1]);
    let bad =
        frame(&gid_entry(0, Addresses::default()), &gid_entry(1, Addresses::default()), &bytes);
    scene.is_dropped(&bad, "pkey_err");
}

#[test]
fn a_datagram_with_a_wrong_q_key_is_dropped_and_one_with_the_right_one_is_not() {
    let mut scene = Scene::new(QpType::Ud);
    let datagram = |scene: &Scene, qkey: u32| {
        let deth = [qkey.to_be_bytes(), [0, 0, 0, 5]].concat();
        scene.packet(UD_SEND_ONLY, EPSN, &[deth, b"datagram".to_vec()].concat())
    };
    let bad = datagram(&scene, QKEY + 1);
    scene.is_dropped(&bad, "qkey_err");
    let good = datagram(&scene, QKEY);
    assert_eq!(scene.give(&good), []);
    let wc = scene.victim.recv.drain()[0];
    assert_eq!((wc.status, wc.byte_len, wc.src_qpn), (WcStatus::Success, 48, Qpn(5)));
    assert_eq!(scene.victim.bytes()[40..48], *b"datagram");
}

#[test]
fn a_packet_whose_lengths_are_wrong_is_dropped() {
    let mut scene = Scene::new(QpType::Rc);
    // No room for the RETH; padding that is longer than the payload; no such opcode; another version.
    let mut padded = transport(SEND_ONLY, scene.victim.qp.qpn(), EPSN, true, b"");
    padded[1] |= 0x30;
    let mut version = transport(SEND_ONLY, scene.victim.qp.qpn(), EPSN, true, b"");
    version[1] |= 1;
    let (a, b) = (gid_entry(0, Addresses::default()), gid_entry(1, Addresses::default()));
    for bad in [
        scene.packet(WRITE_ONLY, EPSN, &[0; 12]),
        frame(&a, &b, &padded),
        frame(&a, &b, &version),
        scene.packet(0x1f, EPSN, &[0; 12]),
        scene.packet(ACK, EPSN, &[0; 8]),
    ] {
        scene.is_dropped(&bad, "malformed");
    }
}

#[test]
fn an_opcode_out_of_sequence_is_an_invalid_request() {
    for opcode in [SEND_MIDDLE, SEND_LAST] {
        let mut scene = Scene::new(QpType::Rc);
        let bad = scene.packet(opcode, EPSN, &[5; MTU]);
        scene.is_refused(&bad, NAK_INVALID, AsyncEvent::QpReqErr);
    }
}

#[test]
fn a_first_packet_shorter_than_the_path_mtu_is_an_invalid_request() {
    let mut scene = Scene::new(QpType::Rc);
    let rest = [reth(BASE, scene.victim.mr.rkey(), 2048), vec![1; MTU - 4]].concat();
    let bad = scene.packet(WRITE_FIRST, EPSN, &rest);
    scene.is_refused(&bad, NAK_INVALID, AsyncEvent::QpReqErr);
}

#[test]
fn a_packet_longer_than_the_path_mtu_is_an_invalid_request() {
    let mut scene = Scene::new(QpType::Rc);
    let bad = scene.packet(SEND_ONLY, EPSN, &[1; MTU + 4]);
    scene.is_refused(&bad, NAK_INVALID, AsyncEvent::QpReqErr);
}

#[test]
fn a_write_whose_data_is_not_as_long_as_it_says_is_an_invalid_request() {
    for len in [3, 5, u32::MAX] {
        let mut scene = Scene::new(QpType::Rc);
        let rest = [reth(BASE, scene.victim.mr.rkey(), len), vec![1; 4]].concat();
        let bad = scene.packet(WRITE_ONLY, EPSN, &rest);
        scene.is_refused(&bad, NAK_INVALID, AsyncEvent::QpReqErr);
    }
}

#[test]
fn the_rkey_of_another_vm_and_addresses_outside_an_mr_are_access_errors() {
    let end = BASE + (16 << 10);
    for (addr, len) in [(BASE, 0), (end - 3, 4), (BASE - 1, 4), (u64::MAX - 1, 4), (end, 4)] {
        for opcode in [WRITE_ONLY, READ_REQUEST] {
            let mut scene = Scene::new(QpType::Rc);
            // Length 0 stands for the case of the other VM's key.
            let rkey = if len == 0 {
                let other = scene.net.station(2, QpType::Rc, 4, &[0; 4096]);
                other.mr.rkey()
            } else {
                scene.victim.mr.rkey()
            };
            let data = if opcode == WRITE_ONLY { vec![1; 4] } else { Vec::new() };
            let bad = scene.packet(opcode, EPSN, &[reth(addr, rkey, 4), data].concat());
            scene.is_refused(&bad, NAK_ACCESS, AsyncEvent::QpAccessErr);
        }
    }
}

#[test]
fn an_atomic_that_is_not_aligned_is_an_invalid_request() {
    let mut scene = Scene::new(QpType::Rc);
    let rkey = scene.victim.mr.rkey();
    let rest = [&(BASE + 4).to_be_bytes()[..], &rkey.0.to_be_bytes(), &[0; 16]].concat();
    let bad = scene.packet(FETCH_ADD, EPSN, &rest);
    scene.is_refused(&bad, NAK_INVALID, AsyncEvent::QpReqErr);
}

#[test]
fn an_atomic_write_of_another_length_or_place_than_a_word_is_an_invalid_request() {
    let word = [0x77; 8];
    for (addr, len, payload) in [
        (BASE + 4, 8, &word[..]),
        (BASE, 8, &word[..4]),
        (BASE, 4, &word[..4]),
        (BASE, 16, &[word, word].concat()),
        (BASE, 8, &[word, word].concat()),
        (BASE, 0, &[]),
    ] {
        let mut scene = Scene::new(QpType::Rc);
        let rest = [&reth(addr, scene.victim.mr.rkey(), len)[..], payload].concat();
        let bad = scene.packet(ATOMIC_WRITE, EPSN, &rest);
        scene.is_refused(&bad, NAK_INVALID, AsyncEvent::QpReqErr);
    }
    let mut scene = Scene::new(QpType::Rc);
    let end = BASE + scene.victim.len as u64;
    let rest = [&reth(end, scene.victim.mr.rkey(), 8)[..], &word].concat();
    let bad = scene.packet(ATOMIC_WRITE, EPSN, &rest);
    scene.is_refused(&bad, NAK_ACCESS, AsyncEvent::QpAccessErr);
}

#[test]
fn an_atomic_write_that_is_repeated_is_answered_again_and_not_carried_out() {
    let mut scene = Scene::new(QpType::Rc);
    let rkey = scene.victim.mr.rkey();
    let word = |byte: u8| [&reth(BASE, rkey, 8)[..], &[byte; 8]].concat();
    let first = scene.packet(ATOMIC_WRITE, EPSN, &word(1));
    let second = scene.packet(ATOMIC_WRITE, EPSN.plus(1), &word(2));
    let answer = |psn| (READ_RESPONSE_ONLY, psn, 0x1f);
    assert_eq!(scene.give(&first), [answer(EPSN)]);
    assert_eq!(scene.give(&second), [answer(EPSN.plus(1))]);
    assert_eq!(scene.give(&first), [answer(EPSN)]);
    assert_eq!(scene.victim.bytes()[..8], [2; 8]);
    assert_eq!(scene.count("duplicate_request"), 1);
}

#[test]
fn a_flush_of_a_kind_that_there_is_not_is_an_invalid_request() {
    // Neither placement, both with an unknown one, and selectivities that are reserved.
    for (placement, selectivity) in [(0, 0), (4, 0), (9, 1), (1, 2), (1, 3)] {
        let mut scene = Scene::new(QpType::Rc);
        let reth = reth(BASE, scene.victim.mr.rkey(), 8);
        let bad = scene.packet(FLUSH, EPSN, &feth_reth(placement, selectivity, &reth));
        scene.is_refused(&bad, NAK_INVALID, AsyncEvent::QpReqErr);
    }
    let mut scene = Scene::new(QpType::Rc);
    let long = reth(BASE, scene.victim.mr.rkey(), u32::MAX);
    let bad = scene.packet(FLUSH, EPSN, &feth_reth(1, 0, &long));
    scene.is_refused(&bad, NAK_INVALID, AsyncEvent::QpReqErr);
}

#[test]
fn a_flush_that_the_key_does_not_allow_is_an_access_error() {
    let outside = BASE + (16 << 10);
    // Persistence, which memory here does not have; another key; behind the MR.
    for (placement, whole, other_key, addr) in [
        (2, 0, false, BASE),
        (3, 1, false, BASE),
        (1, 0, true, BASE),
        (1, 1, true, BASE),
        (1, 0, false, outside),
    ] {
        let mut scene = Scene::new(QpType::Rc);
        let rkey = scene.victim.mr.rkey();
        let rkey = if other_key { RKey(rkey.0 ^ 1) } else { rkey };
        let bad = scene.packet(FLUSH, EPSN, &feth_reth(placement, whole, &reth(addr, rkey, 8)));
        scene.is_refused(&bad, NAK_ACCESS, AsyncEvent::QpAccessErr);
    }
    let mut scene = Scene::new(QpType::Rc);
    let rkey = scene.victim.mr.rkey();
    let good = scene.packet(FLUSH, EPSN, &feth_reth(1, 1, &reth(outside, rkey, 0)));
    assert_eq!(scene.give(&good), [(READ_RESPONSE_ONLY, EPSN, 0x1f)]);
}

#[test]
fn a_message_to_an_srq_that_the_domain_does_not_have_is_an_invalid_request() {
    for opcode in [SEND_ONLY, WRITE_ONLY, READ_REQUEST, ATOMIC_WRITE, FETCH_ADD] {
        let mut scene = Scene::new(QpType::XrcTgt);
        let rest = match opcode {
            SEND_ONLY => b"data".to_vec(),
            FETCH_ADD => [&BASE.to_be_bytes()[..], &[0; 20]].concat(),
            READ_REQUEST => reth(BASE, scene.victim.mr.rkey(), 8),
            _ => [&reth(BASE, scene.victim.mr.rkey(), 8)[..], &[1; 8]].concat(),
        };
        let other = scene.victim.srqn().unwrap().0 + 1;
        let bad = scene.packet(XRC | opcode, EPSN, &[&other.to_be_bytes()[..], &rest].concat());
        scene.is_refused(&bad, NAK_INVALID, AsyncEvent::QpReqErr);
    }
}

#[test]
fn a_message_whose_packets_name_two_srqs_is_an_invalid_request() {
    let mut scene = Scene::new(QpType::XrcTgt);
    let srqn = scene.victim.srqn().unwrap().0;
    let send = |srqn: u32, data: &[u8]| [&srqn.to_be_bytes()[..], data].concat();
    let first = scene.packet(XRC | SEND_FIRST, EPSN, &send(srqn, &[7; MTU]));
    assert_eq!(scene.give(&first), [(XRC | ACK, EPSN, 0x1f)]);
    let last = scene.packet(XRC | SEND_LAST, EPSN.plus(1), &send(srqn + 1, b"end"));
    assert_eq!(scene.give(&last), [(XRC | ACK, EPSN.plus(1), NAK_INVALID)]);
    assert_eq!(scene.state(), QpState::Err);
    let wcs = scene.victim.recv.drain();
    assert_eq!((wcs.len(), wcs[0].status), (1, WcStatus::LocQpOpErr));
}

#[test]
fn each_half_of_an_extended_connection_drops_what_is_the_others() {
    let mut target = Scene::new(QpType::XrcTgt);
    for opcode in [ACK, READ_RESPONSE_ONLY, XRC | ACK, XRC | READ_RESPONSE_ONLY] {
        let bad = target.packet(opcode, EPSN, &[0x1f, 0, 0, 1]);
        target.is_dropped(&bad, "unknown_qp");
    }
    let bad = target.packet(SEND_ONLY, EPSN, b"data");
    target.is_dropped(&bad, "unknown_qp");
    drop(target);
    let mut initiator = Scene::new(QpType::XrcIni);
    for opcode in [SEND_ONLY, XRC | SEND_ONLY, ACK] {
        let bad = initiator.packet(opcode, EPSN, &[0, 0, 0, 1]);
        initiator.is_dropped(&bad, "unknown_qp");
    }
}

#[test]
fn a_request_that_comes_too_early_is_answered_once() {
    let mut scene = Scene::new(QpType::Rc);
    let early = |scene: &Scene, n: u32| scene.packet(SEND_ONLY, EPSN.plus(n), b"early");
    let first = early(&scene, 1);
    assert_eq!(scene.give(&first), [(ACK, EPSN, NAK_SEQUENCE)]);
    for n in 2..200 {
        let more = early(&scene, n);
        assert_eq!(scene.give(&more), [], "one NAK is enough");
    }
    assert_eq!(scene.count("out_of_seq_request"), 199);
    assert_eq!(scene.victim.qp.counts().out_of_seq_request, 199);
    scene.untouched();
    // What was expected is still taken.
    let good = scene.packet(SEND_ONLY, EPSN, b"now");
    assert_eq!(scene.give(&good), [(ACK, EPSN, 0x1f)]);
    assert_eq!(scene.victim.recv.drain()[0].status, WcStatus::Success);
}

#[test]
fn answers_to_nothing_are_ignored() {
    let mut scene = Scene::new(QpType::Rc);
    for syndrome in 0..=255u8 {
        let bad = scene.packet(ACK, EPSN.plus(3), &[syndrome, 0, 0, 1]);
        assert_eq!(scene.give(&bad), []);
    }
    for opcode in 0x0d..=0x12u8 {
        let bad = scene.packet(opcode, EPSN, &[0x1f; 12]);
        assert_eq!(scene.give(&bad), []);
    }
    scene.untouched();
    assert_eq!(scene.state(), QpState::Rts);
    assert_eq!(scene.victim.send.drain(), []);
}

#[test]
fn more_reads_than_a_responder_takes_are_an_invalid_request() {
    let mut scene = Scene::new(QpType::Rc);
    let rkey = scene.victim.mr.rkey();
    let now = scene.net.now();
    for n in 0..4 {
        let read = scene.packet(READ_REQUEST, EPSN.plus(n), &reth(BASE, rkey, 8));
        scene.net.nodes[1].link.handle_frame(now, &read);
    }
    let fifth = scene.packet(READ_REQUEST, EPSN.plus(4), &reth(BASE, rkey, 8));
    let answers = scene.give(&fifth);
    let codes: Vec<_> = answers.iter().map(|(opcode, _, syndrome)| (*opcode, *syndrome)).collect();
    assert_eq!(codes[..4], [(0x10, 0x1f); 4]);
    assert_eq!(codes[4..], [(ACK, NAK_INVALID)]);
}

#[test]
fn a_read_that_is_repeated_for_ever_never_makes_more_than_one_answer_a_request() {
    let mut scene = Scene::new(QpType::Rc);
    let read = scene.packet(READ_REQUEST, EPSN, &reth(BASE, scene.victim.mr.rkey(), 8192));
    assert_eq!(scene.give(&read).len(), 8);
    let now = scene.net.now();
    for _ in 0..1000 {
        scene.net.nodes[1].link.handle_frame(now, &read);
    }
    // All of them before the responder had a turn: they are one.
    assert_eq!(scene.give(&read).len(), 8);
    assert_eq!(scene.count("duplicate_request"), 1001);
    assert_eq!(scene.victim.qp.counts().duplicate_request, 1001);
    assert_eq!(scene.peer.node, 0);
}
