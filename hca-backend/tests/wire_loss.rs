// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a stream loses when the network does: throughput under loss, and under congestion that
//! switches mark, in the virtual time of a simulated network.

mod common;
mod net;

use std::sync::Arc;

use common::{BASE, Lab, pattern};
use hca_backend::soft::wire::frame::FrameBatch;
use hca_backend::soft::{Config, Link, LinkConfig, SoftHca};
use net::{Addresses, Conditions, Net, Station};
use rdma_midlayer::MaySleep;
use rdma_midlayer::attr::QpAttr;
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

const MEMORY: usize = 1 << 20;
const MESSAGE: u32 = 64 << 10;

/// 1 GB/s, 20 us there and back.
fn good() -> Conditions {
    Conditions { delay: 10_000, byte_time: 1, ..Conditions::default() }
}

/// Streams messages of 64 KiB, 16 outstanding; nanoseconds until all are complete, and the network.
fn stream(opcode: WrOpcode, messages: u64, conditions: Conditions) -> (u64, Net, [Station; 2]) {
    let mut net = Net::new(5, 2, Addresses::default(), conditions);
    let memories = [pattern(1, MEMORY), pattern(2, MEMORY)];
    let [a, b] = [0, 1].map(|node| net.station(node, QpType::Rc, 16, &memories[node]));
    let attr = QpAttr {
        access: common::REMOTE_ALL,
        path_mtu: Mtu::Mtu1024,
        timeout: 14,
        retry_cnt: 7,
        rnr_retry: 7,
        max_rd_atomic: 16,
        max_dest_rd_atomic: 16,
        ..QpAttr::default()
    };
    net.connect(&a, &b, attr);
    net.connect(&b, &a, attr);
    let (mut posted, mut done) = (0, 0);
    while done < messages {
        while posted < messages && posted - done < 16 {
            let offset = posted * u64::from(MESSAGE) % MEMORY as u64;
            let sges = [a.sge(offset, MESSAGE)];
            let wr = SendWr {
                wr_id: posted,
                ticket: 0,
                opcode,
                flags: SendFlags::SIGNALED,
                data: SendData::Sges(&sges),
                imm: 0,
                remote_addr: BASE + offset,
                rkey: b.mr.rkey(),
                compare_add: 0,
                swap: 0,
                srqn: None,
                ud: None,
            };
            a.qp.post_send(&wr).unwrap();
            posted += 1;
        }
        net.settle();
        for wc in a.send.drain() {
            assert_eq!((wc.wr_id, wc.status), (done, WcStatus::Success));
            done += 1;
        }
        if done < messages && (posted == messages || posted - done == 16) {
            let next = net.next_time().expect("it hangs");
            net.time = next.max(net.time + 1);
        }
    }
    (net.time, net, [a, b])
}

#[test]
fn one_lost_packet_in_a_thousand_costs_less_than_half_of_the_throughput() {
    for opcode in [WrOpcode::RdmaWrite, WrOpcode::RdmaRead] {
        let (quiet, ..) = stream(opcode, 300, good());
        // Of 1 GB/s, most is used.
        let bytes = 300 * u64::from(MESSAGE);
        assert!(quiet < bytes * 3 / 2, "{opcode:?}: {quiet} ns for {bytes} bytes");
        let (lossy, net, _) = stream(opcode, 300, Conditions { loss: 1, ..good() });
        assert!(net.nodes[0].count("completer_retry_err") > 0, "something was lost");
        assert!(lossy < 2 * quiet, "{opcode:?}: {lossy} ns instead of {quiet}");
    }
}

#[test]
fn at_a_tenth_of_all_packets_lost_every_byte_is_right() {
    for opcode in [WrOpcode::RdmaWrite, WrOpcode::RdmaRead] {
        let (_, net, [a, b]) = stream(opcode, 40, Conditions { loss: 100, ..good() });
        assert!(a.bytes() == b.bytes(), "{opcode:?}");
        assert!(net.nodes[0].count("completer_retry_err") > 10);
    }
}

#[test]
fn a_marked_queue_makes_the_sender_slower_and_no_packet_is_dropped() {
    let congested = Conditions { byte_time: 20, mark_above: 400_000, ..good() };
    let (time, net, _) = stream(WrOpcode::RdmaWrite, 100, congested);
    let [a, b] = [&net.nodes[0], &net.nodes[1]];
    assert!(b.count("ecn_marked") > 0 && b.count("send_cnp") > 0 && a.count("rcvd_cnp") > 0);
    assert_eq!(b.count("out_of_seq_request"), 0, "nothing was dropped");
    // The line is used well all the same: 50 MB/s.
    let bytes = 100 * u64::from(MESSAGE);
    assert!(time < bytes * 20 * 2, "{time} ns for {bytes} bytes");
}

#[test]
fn a_port_that_gives_a_qp_its_turn_late_does_not_touch_what_the_direct_way_has_sent() {
    let config = Config { name: "soft0".into(), pollers: 1, ..Config::default() };
    let hca = Arc::new(SoftHca::new(config));
    let link = Link::new(LinkConfig { name: "port".into(), mtu: Mtu::Mtu4096, rate: 0 });
    hca.set_link(1, link.clone());
    let lab = Lab::of(MaySleep::claim().unwrap(), hca);
    let (a, b) = lab.pair();
    let data = pattern(1, 64);
    a.fill(0, &data);
    let write = |n: u64| {
        let sges = [a.sge(0, 64)];
        a.qp.post_send(&a.wr(n, WrOpcode::RdmaWrite, &sges, &b, 64 * n)).unwrap();
        lab.run();
        assert_eq!(a.send.take().map(|wc| wc.status), Some(WcStatus::Success));
        assert_eq!(b.bytes(64 * n, 64), data);
    };
    write(1);
    // The transition to RTS asked for this turn.
    assert!(link.has_frames());
    assert_eq!(link.transmit(lab.now(), &mut FrameBatch::new(8)), 0);
    write(2);
}
