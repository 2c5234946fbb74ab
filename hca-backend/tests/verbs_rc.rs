// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The verbs HCA over the stub library: what each operation does between two tenants, where the
//! provider posts in user space and where it enters the kernel.

mod common;
mod verbs;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::*;
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;
use verbs::{both, devices, opened, scattered, stub};

#[test]
fn every_transfer_puts_every_byte_at_every_size() {
    both(|lab| {
        let (a, b) = lab.pair();
        let sizes = [0, 1, 7, 64, 4096, 65537, 300_000];
        for (i, len) in sizes.into_iter().enumerate() {
            let data = pattern(i as u64 + 1, len);
            a.fill(3, &data);
            let sges = [a.sge(3, len as u32)];
            a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &sges, &b, 1005)).unwrap();
            let wc = lab.next(&a.send);
            assert_eq!((wc.wr_id, wc.status, wc.ticket), (1, WcStatus::Success, 1));
            assert_eq!((wc.opcode, wc.qpn), (WcOpcode::RdmaWrite, a.qp.qpn()));
            assert_eq!(b.bytes(1005, len), data);

            let sges = [a.sge(400_000, len as u32)];
            a.qp.post_send(&a.wr(2, WrOpcode::RdmaRead, &sges, &b, 1005)).unwrap();
            let wc = lab.next(&a.send);
            assert_eq!((wc.opcode, wc.status), (WcOpcode::RdmaRead, WcStatus::Success));
            assert_eq!(a.bytes(400_000, len), data);

            b.post_recv(3, &[b.sge(500_000, 400_000)]);
            let send = SendWr { imm: 0xdead_beef, ..a.wr(4, WrOpcode::SendWithImm, &sges, &b, 0) };
            a.qp.post_send(&send).unwrap();
            let wc = lab.next(&b.recv);
            assert_eq!((wc.wr_id, wc.opcode, wc.byte_len), (3, WcOpcode::Recv, len as u32));
            assert_eq!((wc.flags, wc.imm), (WcFlags::WITH_IMM, 0xdead_beef));
            assert_eq!(lab.next(&a.send).opcode, WcOpcode::Send);
            assert_eq!(b.bytes(500_000, len), data);
        }
    });
}

#[test]
fn inline_data_is_read_before_the_post_returns() {
    both(|lab| {
        let (a, b) = lab.pair();
        b.post_recv(1, &[b.sge(0, 256)]);
        let mut bytes = *b"what the post found";
        let sges: [Sge; 0] = [];
        let wr = SendWr { data: SendData::Inline(&bytes), ..a.wr(2, WrOpcode::Send, &sges, &b, 0) };
        a.qp.post_send(&wr).unwrap();
        bytes.fill(0);
        assert_eq!(lab.next(&b.recv).byte_len, 19);
        assert_eq!(b.bytes(0, 19), b"what the post found");
    });
}

#[test]
fn atomics_work_on_the_peers_word() {
    both(|lab| {
        let (a, b) = lab.pair();
        b.fill(64, &7u64.to_ne_bytes());
        let sges = [a.sge(0, 8)];
        let add = SendWr { compare_add: 5, ..a.wr(1, WrOpcode::AtomicFetchAndAdd, &sges, &b, 64) };
        a.qp.post_send(&add).unwrap();
        let wc = lab.next(&a.send);
        assert_eq!((wc.status, wc.opcode, wc.byte_len), (WcStatus::Success, WcOpcode::FetchAdd, 8));
        assert_eq!(
            (a.bytes(0, 8), b.bytes(64, 8)),
            (7u64.to_ne_bytes().into(), 12u64.to_ne_bytes().into())
        );
        let swap = SendWr {
            compare_add: 12,
            swap: 99,
            ..a.wr(1, WrOpcode::AtomicCmpAndSwp, &sges, &b, 64)
        };
        a.qp.post_send(&swap).unwrap();
        assert_eq!(lab.next(&a.send).opcode, WcOpcode::CompSwap);
        assert_eq!(
            (a.bytes(0, 8), b.bytes(64, 8)),
            (12u64.to_ne_bytes().into(), 99u64.to_ne_bytes().into())
        );
    });
}

#[test]
fn receive_requests_come_from_the_consumers_ring_before_any_message() {
    both(|lab| {
        let ring = Arc::new(RecvRing::default());
        let setup = Setup { ring: Some(ring.clone()), ..Setup::default() };
        let (a, b) = lab.pair_with(&Setup::default(), &setup);
        assert!(ring.doorbell.load(Ordering::SeqCst), "the consumer is asked to ring");
        for i in 0..100u64 {
            ring.post(i, &[b.sge(i * 100, 100)]);
            b.qp.recv_posted();
        }
        for i in 0..100 {
            let data = pattern(i, 100);
            a.fill(0, &data);
            a.qp.post_send(&a.wr(i, WrOpcode::Send, &[a.sge(0, 100)], &b, 0)).unwrap();
            let wc = lab.next(&b.recv);
            assert_eq!((wc.wr_id, wc.ticket, wc.byte_len), (i, i as u32, 100));
            assert_eq!(b.bytes(i * 100, 100), data);
            lab.next(&a.send);
        }
    });
}

#[test]
fn only_signalled_requests_complete_and_free_those_before_them() {
    both(|lab| {
        let (a, b) = lab.pair();
        for round in 0..20u64 {
            for i in 0..32 {
                let flags = SendFlags(if i == 31 { SendFlags::SIGNALED.0 } else { 0 });
                let sges = [a.sge(i * 8, 8)];
                let wr =
                    SendWr { flags, ..a.wr(round * 32 + i, WrOpcode::RdmaWrite, &sges, &b, i * 8) };
                a.qp.post_send(&wr).unwrap();
            }
            assert_eq!(lab.next(&a.send).wr_id, round * 32 + 31);
        }
        assert_eq!(a.send.len(), 0);
    });
}

#[test]
fn scattered_pages_of_a_file_are_one_region_for_the_hca_and_are_copied_by_nobody_else() {
    both(|lab| {
        let stub = stub();
        let (a, b) = lab.pair();
        let memory = scattered(64, 0x7f00_0000_0123, 40 * 4096);
        let mr = b.tenant.pd.reg_mr(&lab.cx, memory.user(), REMOTE_ALL).unwrap();
        let data = pattern(3, 30 * 4096);
        a.fill(0, &data);
        let before = stub.as_ref().map_or(0, |stub| stub.copied());
        let sges = [a.sge(0, data.len() as u32)];
        let wr = SendWr {
            remote_addr: 0x7f00_0000_0123 + 77,
            rkey: mr.rkey(),
            ..a.wr(1, WrOpcode::RdmaWrite, &sges, &b, 0)
        };
        a.qp.post_send(&wr).unwrap();
        assert_eq!(lab.next(&a.send).status, WcStatus::Success);
        let mut found = vec![0; data.len()];
        memory.user().read(0x7f00_0000_0123 + 77, &mut found).unwrap();
        assert!(found == data);
        if let Some(stub) = &stub {
            assert_eq!(stub.copied() - before, data.len() as u64, "each byte once, by the device");
        }
        mr.dereg(&lab.cx).unwrap();
        a.qp.post_send(&wr).unwrap();
        assert_eq!(lab.next(&a.send).status, WcStatus::RemAccessErr, "its key is dead");
    });
}

#[test]
fn when_all_is_ended_the_library_has_nothing_left() {
    for device in devices() {
        let lab = opened(&device);
        let (a, b) = lab.pair();
        a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &[a.sge(0, 8)], &b, 0)).unwrap();
        lab.next(&a.send);
        lab.end([a, b]);
    }
}
