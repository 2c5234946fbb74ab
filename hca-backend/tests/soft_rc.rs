// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! RC between two tenants of a soft HCA: what each operation does when all goes well.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::*;
use rdma_midlayer::driver::{AsyncEvent, CqInit};
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

const SIZES: [usize; 9] = [0, 1, 7, 8, 64, 4096, 65536, 65537, 300_000];

#[test]
fn rdma_write_puts_every_byte_at_every_size() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    for (i, len) in SIZES.into_iter().enumerate() {
        let data = pattern(i as u64 + 1, len);
        a.fill(3, &data);
        let sges = [a.sge(3, len as u32)];
        a.qp.post_send(&a.wr(i as u64, WrOpcode::RdmaWrite, &sges, &b, 1005)).unwrap();
        lab.run();
        let wc = a.send.take().unwrap();
        assert_eq!((wc.wr_id, wc.status), (i as u64, WcStatus::Success));
        assert_eq!((wc.opcode, wc.ticket, wc.qpn), (WcOpcode::RdmaWrite, i as u32, a.qp.qpn()));
        assert_eq!(b.bytes(1005, len), data);
        assert_eq!(b.recv.len(), 0);
    }
}

#[test]
fn rdma_read_gets_every_byte_at_every_size() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    for (i, len) in SIZES.into_iter().enumerate() {
        let data = pattern(i as u64 + 1, len);
        b.fill(9, &data);
        let sges = [a.sge(2, len as u32)];
        a.qp.post_send(&a.wr(i as u64, WrOpcode::RdmaRead, &sges, &b, 9)).unwrap();
        lab.run();
        let wc = a.send.take().unwrap();
        assert_eq!(
            (wc.status, wc.opcode, wc.byte_len),
            (WcStatus::Success, WcOpcode::RdmaRead, len as u32)
        );
        assert_eq!(a.bytes(2, len), data);
    }
}

#[test]
fn send_fills_the_receive_wqe_at_every_size() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    for (i, len) in SIZES.into_iter().enumerate() {
        let data = pattern(i as u64 + 1, len);
        a.fill(0, &data);
        b.post_recv(77, &[b.sge(11, 400_000)]);
        let sges = [a.sge(0, len as u32)];
        a.qp.post_send(&a.wr(5, WrOpcode::Send, &sges, &b, 0)).unwrap();
        lab.run();
        let wc = b.recv.take().unwrap();
        assert_eq!((wc.wr_id, wc.status, wc.opcode), (77, WcStatus::Success, WcOpcode::Recv));
        assert_eq!((wc.byte_len, wc.flags, wc.qpn), (len as u32, WcFlags::default(), b.qp.qpn()));
        assert_eq!(a.send.take().unwrap().opcode, WcOpcode::Send);
        assert_eq!(b.bytes(11, len), data);
    }
}

#[test]
fn receive_wqes_come_from_the_consumers_ring() {
    let lab = Lab::new();
    let ring = Arc::new(RecvRing::default());
    let setup = Setup { ring: Some(ring.clone()), ..Setup::default() };
    let (a, b) = lab.pair_with(&Setup::default(), &setup);
    for i in 0..10 {
        ring.post(i, &[b.sge(i * 100, 100)]);
    }
    for i in 0..10u64 {
        let data = pattern(i + 1, 100);
        a.fill(0, &data);
        a.qp.post_send(&a.wr(i, WrOpcode::Send, &[a.sge(0, 100)], &b, 0)).unwrap();
        assert_eq!(b.bytes(i * 100, 100), data);
    }
    assert_eq!(b.recv.statuses(), (0..10).map(|i| (i, WcStatus::Success)).collect::<Vec<_>>());
    assert!(b.qp.post_recv(&RecvWr { wr_id: 0, ticket: 0, sges: &[] }).is_err());
}

#[test]
fn immediate_data_arrives_with_send_and_with_write() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    a.fill(0, &pattern(3, 50));
    b.post_recv(1, &[b.sge(0, 50)]);
    b.post_recv(2, &[]);
    for (opcode, imm) in [(WrOpcode::SendWithImm, 0xdead), (WrOpcode::RdmaWriteWithImm, 0xbeef)] {
        let sges = [a.sge(0, 50)];
        a.qp.post_send(&SendWr { imm, ..a.wr(0, opcode, &sges, &b, 500) }).unwrap();
    }
    let (first, second) = (b.recv.take().unwrap(), b.recv.take().unwrap());
    assert_eq!((first.wr_id, first.imm, first.byte_len), (1, 0xdead, 50));
    assert_eq!((first.opcode, first.flags), (WcOpcode::Recv, WcFlags::WITH_IMM));
    assert_eq!((second.wr_id, second.imm, second.byte_len), (2, 0xbeef, 50));
    assert_eq!((second.opcode, second.flags), (WcOpcode::RecvRdmaWithImm, WcFlags::WITH_IMM));
    assert_eq!(b.bytes(500, 50), pattern(3, 50));
}

#[test]
fn scattered_and_inline_data_arrive_whole() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    let data = pattern(9, 150_000);
    a.fill(0, &data);
    let from: Vec<_> = [(0, 10), (10, 0), (10, 99_990), (100_000, 49_999), (149_999, 1)]
        .map(|(at, len)| a.sge(at, len))
        .to_vec();
    let to: Vec<_> =
        [(0, 1), (1, 0), (1, 70_000), (70_001, 200_000)].map(|(at, len)| b.sge(at, len)).to_vec();
    b.post_recv(1, &to);
    a.qp.post_send(&a.wr(1, WrOpcode::Send, &from, &b, 0)).unwrap();
    a.qp.post_send(&a.wr(2, WrOpcode::RdmaWrite, &from, &b, 400_000)).unwrap();
    a.qp.post_send(&a.wr(3, WrOpcode::RdmaRead, &from, &b, 400_000)).unwrap();
    lab.run();
    assert_eq!(b.bytes(0, 150_000), data);
    assert_eq!(b.bytes(400_000, 150_000), data);
    assert_eq!(b.recv.take().unwrap().byte_len, 150_000);
    let inline = pattern(4, 256);
    b.post_recv(2, &[b.sge(0, 100), b.sge(200, 156)]);
    for opcode in [WrOpcode::Send, WrOpcode::RdmaWrite] {
        let wr = a.wr(4, opcode, &[], &b, 1000);
        a.qp.post_send(&SendWr { data: SendData::Inline(&inline), ..wr }).unwrap();
    }
    assert_eq!([b.bytes(0, 100), b.bytes(200, 156)].concat(), inline);
    assert_eq!(b.bytes(1000, 256), inline);
    assert_eq!(a.send.statuses().len(), 5);
}

#[test]
fn atomics_return_the_old_value_and_change_the_new() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    b.fill(64, &5u64.to_ne_bytes());
    let sges = [a.sge(8, 8)];
    let faa = a.wr(1, WrOpcode::AtomicFetchAndAdd, &sges, &b, 64);
    a.qp.post_send(&SendWr { compare_add: 7, ..faa }).unwrap();
    assert_eq!(
        (a.bytes(8, 8), b.bytes(64, 8)),
        (5u64.to_ne_bytes().into(), 12u64.to_ne_bytes().into())
    );
    for (compare, old, new) in [(11u64, 12u64, 12u64), (12, 12, 99)] {
        let cas = a.wr(2, WrOpcode::AtomicCmpAndSwp, &sges, &b, 64);
        a.qp.post_send(&SendWr { compare_add: compare, swap: 99, ..cas }).unwrap();
        assert_eq!(a.bytes(8, 8), old.to_ne_bytes());
        assert_eq!(b.bytes(64, 8), new.to_ne_bytes());
    }
    let wcs = a.send.drain();
    assert_eq!(
        wcs.iter().map(|w| w.opcode).collect::<Vec<_>>(),
        [WcOpcode::FetchAdd, WcOpcode::CompSwap, WcOpcode::CompSwap]
    );
    assert!(wcs.iter().all(|wc| wc.byte_len == 8 && wc.status == WcStatus::Success));
}

#[test]
fn an_unsignalled_wr_makes_no_completion_unless_the_qp_signals_all() {
    let lab = Lab::new();
    for (signal_all, expected) in [(false, 1), (true, 2)] {
        let setup = Setup { signal_all, ..Setup::default() };
        let a = End::new(&lab, lab.tenant(7 + expected, 1), &setup);
        let b = End::new(&lab, lab.tenant(7 + expected, 2), &setup);
        lab.connect(&a, &b);
        let sges = [a.sge(0, 4)];
        let wr = a.wr(1, WrOpcode::RdmaWrite, &sges, &b, 0);
        a.qp.post_send(&SendWr { flags: SendFlags::default(), ..wr }).unwrap();
        a.qp.post_send(&SendWr { wr_id: 2, ..wr }).unwrap();
        assert_eq!(a.send.len(), expected as usize);
    }
}

#[test]
fn solicited_messages_and_errors_make_solicited_events() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    b.post_recv(1, &[]);
    b.post_recv(2, &[]);
    b.post_recv(3, &[]);
    let wr = a.wr(1, WrOpcode::Send, &[], &b, 0);
    a.qp.post_send(&wr).unwrap();
    assert_eq!(
        (b.recv.events.load(Ordering::SeqCst), b.recv.solicited.load(Ordering::SeqCst)),
        (1, 0)
    );
    let flags = SendFlags(SendFlags::SIGNALED.0 | SendFlags::SOLICITED.0);
    a.qp.post_send(&SendWr { flags, ..wr }).unwrap();
    assert_eq!(
        (b.recv.events.load(Ordering::SeqCst), b.recv.solicited.load(Ordering::SeqCst)),
        (2, 1)
    );
    assert_eq!(a.send.solicited.load(Ordering::SeqCst), 0);
    lab.move_to(&b, QpState::Err);
    assert_eq!(b.recv.solicited.load(Ordering::SeqCst), 2);
}

#[test]
fn a_qp_connected_to_itself_and_two_of_one_tenant_work() {
    let lab = Lab::new();
    let a = End::new(&lab, lab.tenant(1, 1), &Setup::default());
    lab.to_rts(&a, &a, 5, 5);
    a.fill(0, &pattern(1, 100));
    a.post_recv(1, &[a.sge(1000, 100)]);
    a.qp.post_send(&a.wr(1, WrOpcode::Send, &[a.sge(0, 100)], &a, 0)).unwrap();
    a.qp.post_send(&a.wr(2, WrOpcode::RdmaWrite, &[a.sge(0, 100)], &a, 2000)).unwrap();
    a.qp.post_send(&a.wr(3, WrOpcode::RdmaWrite, &[a.sge(2000, 100)], &a, 2201)).unwrap();
    assert_eq!(a.send.statuses().len(), 3);
    assert_eq!(a.recv.len(), 1);
    assert_eq!(a.bytes(1000, 100), pattern(1, 100));
    assert_eq!(a.bytes(2201, 100), pattern(1, 100));
}

#[test]
fn the_first_message_in_rtr_is_an_event() {
    let lab = Lab::new();
    let a = End::new(&lab, lab.tenant(1, 1), &Setup::default());
    let b = End::new(&lab, lab.tenant(1, 2), &Setup::default());
    lab.to_rts(&a, &b, 1, 2);
    lab.to_rtr(&b, &a, 1);
    a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &[a.sge(0, 8)], &b, 0)).unwrap();
    a.qp.post_send(&a.wr(2, WrOpcode::RdmaWrite, &[a.sge(0, 8)], &b, 0)).unwrap();
    assert_eq!(a.send.statuses(), [(1, WcStatus::Success), (2, WcStatus::Success)]);
    assert_eq!(b.tenant.events.drain(), [AsyncEvent::CommEst(b.qp.qpn())]);
}

#[test]
fn completions_of_a_cq_in_the_drivers_own_ring_are_polled_in_order() {
    if FORCE_WIRE {
        // Makes a QP of its own, whose packets do not go by themselves.
        return;
    }
    let lab = Lab::new();
    let (a, b) = lab.pair();
    let sink = CqSink::new(1);
    let init = CqInit { cqe: 100, vector: 0, memory: None, events: sink.clone() };
    let cq = a.tenant.context.create_cq(&lab.cx, init).unwrap();
    let mut wcs = Vec::new();
    assert_eq!(cq.poll_cq(&mut wcs, 10), Ok(0));
    assert!(a.cqs[0].poll_cq(&mut wcs, 10).is_err());
    let init = rdma_midlayer::driver::QpInit {
        qp_type: QpType::Rc,
        send_cq: cq.clone(),
        recv_cq: cq.clone(),
        cap: Setup::default().cap,
        signal_all: true,
        privileged: false,
        poller: 0,
        recv_source: None,
        send_ready: None,
        srq: None,
        xrcd: None,
        block_self_mcast: false,
    };
    let qp = a.tenant.pd.create_qp(&lab.cx, init).unwrap();
    let own = End { qp, ..a };
    lab.move_to(&b, QpState::Reset);
    lab.connect(&own, &b);
    for i in 0..5 {
        own.qp.post_send(&own.wr(i, WrOpcode::RdmaWrite, &[own.sge(0, 8)], &b, 0)).unwrap();
    }
    assert_eq!(cq.req_notify_cq(rdma_midlayer::driver::Notify::Next), Ok(true));
    assert_eq!(cq.poll_cq(&mut wcs, 3), Ok(3));
    assert_eq!(cq.poll_cq(&mut wcs, 3), Ok(2));
    assert_eq!(wcs.iter().map(|wc| wc.wr_id).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!(cq.req_notify_cq(rdma_midlayer::driver::Notify::Next), Ok(false));
    assert_eq!(sink.events.load(Ordering::SeqCst), 5);
    assert!(cq.destroy(&lab.cx).is_err(), "a QP completes to it");
    own.qp.destroy(&lab.cx).unwrap();
    cq.destroy(&lab.cx).unwrap();
    assert!(cq.poll_cq(&mut wcs, 1).is_err());
}
