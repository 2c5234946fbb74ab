// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The exchange: RoCE to the HCA, the rest to the guest's virtio-net or the outside, ARP for those who
//! can't answer.

use std::sync::Mutex;
use std::time::Instant;

use hca_backend::soft::Handled;
use hca_backend::soft::port::{Exchange, Member, Port, Station, Switch, SwitchPort};
use rdma_midlayer::attr::GidEntry;
use rdma_midlayer::types::Gid;

use super::tools::{batch, frame, readable, receive_all};

/// An HCA that takes frames with number 4791, and remembers them; those to groups are others' too.
struct Hca {
    taken: Mutex<Vec<Vec<u8>>>,
    addresses: Vec<GidEntry>,
}

impl Station for Hca {
    fn take(&self, _now: Instant, frame: &[u8]) -> Handled {
        if frame[14..18] != 4791u32.to_be_bytes() {
            return Handled::NotOurs;
        }
        self.taken.lock().unwrap().push(frame.to_vec());
        if frame[0] & 1 == 0 { Handled::Taken } else { Handled::Shared }
    }

    fn addresses(&self) -> Vec<GidEntry> {
        self.addresses.clone()
    }
}

fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

fn address(last: u8) -> GidEntry {
    let mut gid = [0; 16];
    gid[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, last]);
    GidEntry { gid: Gid(gid), mac: mac(last), vlan: None }
}

fn hca(devices: &[u8]) -> Hca {
    let addresses = devices.iter().map(|last| address(*last)).collect();
    Hca { taken: Mutex::default(), addresses }
}

/// Both ends of a cable.
fn cable() -> (Box<SwitchPort>, SwitchPort) {
    let switch = Switch::new();
    (Box::new(switch.port(1500).unwrap()), switch.port(9000).unwrap())
}

fn arp_request(from: u8, target: u8) -> Vec<u8> {
    let mut request = vec![0xff; 6];
    request.extend(mac(from));
    request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(mac(from));
    request.extend([10, 0, 0, from, 0, 0, 0, 0, 0, 0, 10, 0, 0, target]);
    request
}

fn put(port: &SwitchPort, frame: &[u8]) {
    assert_eq!(port.send(&batch(&[frame]), 0..1).unwrap(), 1);
}

#[test]
fn roce_goes_to_the_hca_and_the_rest_between_guest_and_outside() {
    let exchange = Exchange::new().unwrap();
    let ((inner_out, outside), (inner_guest, guest)) = (cable(), cable());
    exchange.connect(Member::Outside(inner_out)).unwrap();
    exchange.connect(Member::Guest(inner_guest, mac(9))).unwrap();
    assert_eq!(exchange.mtu(), 1500);
    let hca = hca(&[9]);
    let turn = || exchange.receive(Instant::now(), 64, &hca);

    put(&outside, &frame(1, 9, 4791, 100));
    put(&outside, &frame(1, 9, 5, 100));
    assert_eq!(turn(), 2);
    assert_eq!(hca.taken.lock().unwrap()[..], [frame(1, 9, 4791, 100)]);
    assert_eq!(receive_all(&guest, 1), [frame(1, 9, 5, 100)]);
    put(&guest, &frame(9, 1, 6, 100));
    turn();
    assert_eq!(receive_all(&outside, 1), [frame(9, 1, 6, 100)]);
    // The guest answers ARP itself: the question reaches it, and nobody else replies.
    put(&outside, &arp_request(1, 9));
    turn();
    assert_eq!(receive_all(&guest, 1), [arp_request(1, 9)]);
    assert!(!readable(&outside));
    // What the HCA sends.
    let frames = [frame(9, 1, 1, 80), frame(9, 1, 2, 80), frame(9, 7, 3, 80)];
    assert_eq!(exchange.send(&batch(&frames), 0..3), 3);
    assert_eq!(receive_all(&outside, 3), frames);
    assert!(!readable(&guest), "only what is for the guest goes to it");
}

#[test]
fn roce_to_a_group_goes_to_the_hca_and_to_the_other_ways_out_but_to_no_virtio_net() {
    let exchange = Exchange::new().unwrap();
    let ((a, out_a), (b, out_b), (inner_guest, guest)) = (cable(), cable(), cable());
    exchange.connect(Member::Outside(a)).unwrap();
    exchange.connect(Member::Outside(b)).unwrap();
    exchange.connect(Member::Guest(inner_guest, mac(9))).unwrap();
    let hca = hca(&[9]);
    let group = |number| {
        let mut frame = frame(1, 1, number, 100);
        frame[..6].copy_from_slice(&[1, 0, 0x5e, 1, 2, 3]);
        frame
    };
    put(&out_a, &group(4791));
    exchange.receive(Instant::now(), 64, &hca);
    assert_eq!(hca.taken.lock().unwrap()[..], [group(4791)]);
    assert_eq!(receive_all(&out_b, 1), [group(4791)]);
    // What the HCA itself sends has come to the devices here already.
    assert_eq!(exchange.send(&batch(&[group(1)]), 0..1), 1);
    assert_eq!(receive_all(&out_a, 1), [group(1)]);
    assert_eq!(receive_all(&out_b, 1), [group(1)]);
    assert!(!readable(&guest));
    // Other multicast is the guest's too.
    put(&out_a, &group(2));
    exchange.receive(Instant::now(), 64, &hca);
    assert_eq!(receive_all(&guest, 1), [group(2)]);
}

#[test]
fn the_exchange_answers_arp_for_devices_without_a_network_and_only_those() {
    let exchange = Exchange::new().unwrap();
    let (inner, outside) = cable();
    exchange.connect(Member::Outside(inner)).unwrap();
    let hca = hca(&[8, 9]);
    exchange.answer_for(mac(8), false);
    for target in [8, 9, 10] {
        put(&outside, &arp_request(1, target));
    }
    exchange.receive(Instant::now(), 64, &hca);
    let replies = receive_all(&outside, 1);
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0][..12], [mac(1), mac(9)].concat()[..]);
    assert_eq!(replies[0][28..32], [10, 0, 0, 9]);
}

#[test]
fn nobody_takes_a_guests_address_from_it() {
    let exchange = Exchange::new().unwrap();
    let ((a, guest_a), (b, guest_b)) = (cable(), cable());
    exchange.connect(Member::Guest(a, mac(1))).unwrap();
    exchange.connect(Member::Guest(b, mac(2))).unwrap();
    let hca = hca(&[]);
    // Guest 2 says that it is guest 1.
    put(&guest_b, &frame(1, 5, 0, 60));
    exchange.receive(Instant::now(), 64, &hca);
    assert_eq!(exchange.send(&batch(&[frame(7, 1, 1, 60)]), 0..1), 1);
    assert_eq!(receive_all(&guest_a, 1), [frame(7, 1, 1, 60)]);
    assert!(!readable(&guest_b));
}

#[test]
fn ways_out_are_learned_and_a_member_that_leaves_is_forgotten() {
    let exchange = Exchange::new().unwrap();
    let ((a, out_a), (b, out_b)) = (cable(), cable());
    let first = exchange.connect(Member::Outside(a)).unwrap();
    exchange.connect(Member::Outside(b)).unwrap();
    let hca = hca(&[]);
    put(&out_a, &frame(1, 2, 0, 60));
    exchange.receive(Instant::now(), 64, &hca);
    assert_eq!(receive_all(&out_b, 1), [frame(1, 2, 0, 60)]);
    exchange.send(&batch(&[frame(9, 1, 1, 60)]), 0..1);
    assert_eq!(receive_all(&out_a, 1), [frame(9, 1, 1, 60)]);
    assert!(!readable(&out_b));
    exchange.disconnect(first);
    put(&out_b, &frame(1, 2, 2, 60));
    exchange.receive(Instant::now(), 64, &hca);
    exchange.send(&batch(&[frame(9, 1, 3, 60)]), 0..1);
    assert_eq!(receive_all(&out_b, 1), [frame(9, 1, 3, 60)]);
    assert!(!readable(&out_a));
    assert_eq!(exchange.counters().len(), 1);
}
