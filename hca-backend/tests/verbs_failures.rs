// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The verbs HCA when something goes wrong: requests that make no sense, errors of the peer's and of the
//! host's, tenants that are stopped.

mod common;
mod verbs;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::*;
use hca_backend::verbs::{GidMap, Options, open};
use rdma_midlayer::attr::{AhAttr, QpAttr, QpAttrMask as M};
use rdma_midlayer::driver::{AsyncEvent, MalformedWqe};
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;
use rdma_midlayer::{Error, MaySleep};
use verbs::{both, local_error, opened, opened_with, options, scattered, stub};

#[test]
fn a_request_that_makes_no_sense_fails_in_its_turn_and_ends_the_connection() {
    both(|lab| {
        let (a, b) = lab.pair();
        let sges = [a.sge(0, 8)];
        let good = a.wr(1, WrOpcode::RdmaWrite, &sges, &b, 0);
        a.qp.post_send(&good).unwrap();
        a.qp.post_malformed_send(MalformedWqe { wr_id: 2, ticket: 22 }).unwrap();
        let status = lab.next(&a.send).status;
        assert!(local_error(status, WcStatus::Success), "{status:?}");
        let wc = lab.next(&a.send);
        assert_eq!((wc.wr_id, wc.ticket, wc.status), (2, 22, WcStatus::LocQpOpErr));
        assert_eq!(lab.state(&a), QpState::Err);
        a.qp.post_send(&SendWr { wr_id: 3, ..good }).unwrap();
        let wc = lab.next(&a.send);
        assert_eq!((wc.wr_id, wc.status, wc.byte_len), (3, WcStatus::WrFlushErr, 0));
        assert_eq!(wc.opcode, WcOpcode::RdmaWrite, "known although the HCA doesn't say it");
    });
}

#[test]
fn a_receive_request_that_makes_no_sense_fails_when_its_message_comes() {
    both(|lab| {
        let ring = Arc::new(RecvRing::default());
        let setup = Setup { ring: Some(ring.clone()), ..Setup::default() };
        let (a, b) = lab.pair_with(&Setup::default(), &setup);
        ring.wqes.lock().unwrap().push_back(Err(9));
        b.qp.recv_posted();
        a.qp.post_send(&a.wr(1, WrOpcode::Send, &[a.sge(0, 8)], &b, 0)).unwrap();
        let wc = lab.next(&b.recv);
        assert_eq!((wc.wr_id, wc.status, wc.opcode), (9, WcStatus::LocQpOpErr, WcOpcode::Recv));
        assert_ne!(lab.next(&a.send).status, WcStatus::Success);
    });
}

#[test]
fn errors_of_keys_and_places_are_those_of_the_hca() {
    both(|lab| {
        let cases = [
            (WrOpcode::RdmaWrite, 0u64, 1u32, 0x0bad_0bad, WcStatus::RemAccessErr),
            (WrOpcode::RdmaRead, 1 << 20, 8, 0, WcStatus::RemAccessErr),
        ];
        for (opcode, offset, len, key, status) in cases {
            let (a, b) = lab.pair();
            let sges = [a.sge(0, len)];
            let mut wr = a.wr(1, opcode, &sges, &b, offset);
            if key != 0 {
                wr.rkey = RKey(key);
            }
            a.qp.post_send(&wr).unwrap();
            assert_eq!(lab.next(&a.send).status, status, "{opcode:?}");
            for end in [a, b] {
                end.qp.destroy(&lab.cx).unwrap();
                end.tenant.context.del_gid(&lab.cx, 0).unwrap();
            }
        }
        let (a, b) = lab.pair();
        let sges = [Sge { lkey: LKey(0x0bad_0bad), ..a.sge(0, 8) }];
        a.qp.post_send(&a.wr(1, WrOpcode::Send, &sges, &b, 0)).unwrap();
        let status = lab.next(&a.send).status;
        assert!(local_error(status, WcStatus::LocProtErr), "{status:?}");
    });
}

#[test]
fn after_reset_a_qp_begins_anew_and_old_completions_are_nobodys() {
    both(|lab| {
        let (a, b) = lab.pair();
        let sges = [a.sge(0, 8)];
        // Sends that stay, since nobody receives them.
        (0..5).for_each(|n| a.qp.post_send(&a.wr(n, WrOpcode::Send, &sges, &b, 0)).unwrap());
        lab.move_to(&a, QpState::Reset);
        lab.move_to(&b, QpState::Reset);
        assert_eq!(
            a.qp.post_send(&a.wr(9, WrOpcode::Send, &sges, &b, 0)).unwrap_err(),
            Error::BadState("post_send")
        );
        lab.connect(&a, &b);
        b.post_recv(1, &[b.sge(0, 8)]);
        a.qp.post_send(&a.wr(10, WrOpcode::Send, &sges, &b, 0)).unwrap();
        assert_eq!(lab.next(&b.recv).wr_id, 1);
        assert_eq!(lab.next(&a.send).wr_id, 10);
        assert_eq!(a.send.len(), 0);
    });
}

#[test]
fn a_tenant_that_is_stopped_is_touched_by_nobody_and_finds_its_qps_in_err() {
    both(|lab| {
        let ring = Arc::new(RecvRing::default());
        let setup = Setup { ring: Some(ring.clone()), ..Setup::default() };
        // rxe takes 7 retries for no end of them.
        let attr = QpAttr { retry_cnt: 2, timeout: 10, ..Setup::default().attr };
        let (a, b) = lab.pair_with(&Setup { attr, ..Setup::default() }, &setup);
        for n in 0..4 {
            ring.post(n, &[b.sge(0, 64)]);
        }
        b.qp.recv_posted();
        b.tenant.context.suspend(&lab.cx).unwrap();
        [&b.send, &b.recv].iter().for_each(|sink| sink.closed.store(true, Ordering::SeqCst));
        let before = b.bytes(0, 4096);
        a.fill(0, &[0x55; 64]);
        a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &[a.sge(0, 64)], &b, 0)).unwrap();
        assert_ne!(lab.next(&a.send).status, WcStatus::Success);
        (0..100).for_each(|_| lab.run());
        assert_eq!(b.bytes(0, 4096), before);
        [&b.send, &b.recv].iter().for_each(|sink| sink.closed.store(false, Ordering::SeqCst));
        b.tenant.context.resume(&lab.cx).unwrap();
        // What it had posted is flushed: as much as the HCA had.
        let wc = lab.next(&b.recv);
        assert_eq!((wc.wr_id, wc.status), (0, WcStatus::WrFlushErr));
        assert_eq!(lab.state(&b), QpState::Err);
        assert!(b.tenant.events.drain().contains(&AsyncEvent::QpFatal(b.qp.qpn())));
    });
}

#[test]
fn a_cq_that_overflows_ends_its_qps_and_says_so() {
    both(|lab| {
        let setup = Setup { cq_room: 4, ..Setup::default() };
        let (a, b) = lab.pair_with(&setup, &Setup::default());
        let sges = [a.sge(0, 8)];
        (0..8).for_each(|n| {
            let _ = a.qp.post_send(&a.wr(n, WrOpcode::RdmaWrite, &sges, &b, 0));
        });
        lab.wait("the CQ's event", || {
            a.tenant
                .events
                .0
                .lock()
                .unwrap()
                .iter()
                .any(|e| matches!(e, AsyncEvent::CqErr(_)))
                .then_some(())
        });
        lab.wait("ERR", || (lab.state(&a) == QpState::Err).then_some(()));
        assert_eq!(a.send.len(), 4);
    });
}

#[test]
fn what_the_host_refuses_is_said_with_the_remedy() {
    let Some(stub) = stub() else { return };
    let lab = opened("stub0");
    let tenant = lab.tenant(1, 1);
    let memory = scattered(8, 0x10_0000, 8 * 4096);
    stub.fail("reg_mr", libc::ENOMEM);
    let refused = tenant.pd.reg_mr(&lab.cx, memory.user(), REMOTE_ALL).err().unwrap();
    assert!(matches!(refused, Error::Limit(why) if why.contains("RLIMIT_MEMLOCK")), "{refused}");
    stub.fail("reg_mr", libc::EPERM);
    let refused = tenant.pd.reg_mr(&lab.cx, memory.user(), REMOTE_ALL).err().unwrap();
    assert!(matches!(refused, Error::NotPermitted(_)), "{refused}");
    // An address in another place of its page than the memory.
    let ram = Ram::mapping(8192);
    let odd = window(&ram, 0x1001, 0, 4096);
    assert!(matches!(tenant.pd.reg_mr(&lab.cx, odd, REMOTE_ALL), Err(Error::Invalid(_))));
    // A post that the host refuses is an answer; the queue goes on.
    let (a, b) = lab.pair_with_tenants(tenant, lab.tenant(1, 2));
    let sges = [a.sge(0, 8)];
    let wr = a.wr(1, WrOpcode::RdmaWrite, &sges, &b, 0);
    stub.fail("post_send", libc::EINVAL);
    assert!(matches!(a.qp.post_send(&wr), Err(Error::Invalid(_))));
    stub.fail("post_send", libc::ENOMEM);
    assert_eq!(a.qp.post_send(&wr), Err(Error::QueueFull));
    a.qp.post_send(&wr).unwrap();
    assert_eq!(lab.next(&a.send).status, WcStatus::Success);
    stub.fail("modify_qp", libc::ENOMEM);
    let attr = QpAttr { state: QpState::Err, cur_state: QpState::Rts, ..a.attr };
    assert!(matches!(a.qp.modify(&lab.cx, &attr, M::STATE), Err(Error::Limit(_))));
    assert_eq!(lab.state(&a), QpState::Rts, "nothing has changed");
}

#[test]
fn a_post_that_the_host_refuses_to_the_drivers_thread_is_a_completion() {
    let Some(stub) = stub() else { return };
    let lab = opened("slow0");
    let (a, b) = lab.pair();
    let sges = [a.sge(0, 8)];
    a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &sges, &b, 0)).unwrap();
    assert_eq!(lab.next(&a.send).status, WcStatus::Success);
    stub.fail("post_send", libc::EINVAL);
    a.qp.post_send(&a.wr(2, WrOpcode::RdmaWrite, &sges, &b, 0)).unwrap();
    let wc = lab.next(&a.send);
    assert_eq!((wc.wr_id, wc.status), (2, WcStatus::LocQpOpErr));
    assert_eq!(lab.state(&a), QpState::Err);
}

#[test]
fn tenants_of_different_networks_may_overlap_and_reach_whom_the_map_says() {
    let map = Arc::new(GidMap::default());
    // In network 1, 10.0.0.7 is this device's; in network 2 it is nobody's.
    map.add_text("1 10.0.0.7 10.0.0.1\n1 10.0.0.8 10.0.0.1\n2 10.0.0.8 10.0.0.1").unwrap();
    if stub().is_none() {
        return;
    }
    let lab = opened_with("stub0", Options { gids: map.clone(), ..options() });
    let setup = Setup::default();
    let (a, b) =
        (End::new(&lab, lab.tenant(1, 8), &setup), End::new(&lab, lab.tenant(1, 7), &setup));
    lab.connect(&a, &b);
    a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &[a.sge(0, 8)], &b, 0)).unwrap();
    assert_eq!(lab.next(&a.send).status, WcStatus::Success);
    // The same GID in another network is another tenant's.
    let other = End::new(&lab, lab.tenant(2, 7), &setup);
    lab.modify(&other, QpState::Init, other.attr, INIT);
    let attr = QpAttr {
        state: QpState::Rtr,
        cur_state: QpState::Init,
        ah: AhAttr { dgid: gid_entry(8).gid, port: 1, ..AhAttr::default() },
        ..other.attr
    };
    let refused = other.qp.modify(&lab.cx, &attr, RTR | M::STATE);
    assert!(matches!(refused, Err(Error::Invalid(why)) if why.contains("map")), "{refused:?}");
    map.add_text("2 10.0.0.7 10.0.0.1").unwrap();
    other.qp.modify(&lab.cx, &attr, RTR | M::STATE).unwrap();
    // Within a network a GID has one owner.
    let events = Arc::new(EventLog::default());
    let init = rdma_midlayer::driver::ContextInit { network: 1, name: "thief".into(), events };
    let thief = lab.hca.alloc_context(&lab.cx, init).unwrap();
    assert_eq!(
        thief.add_gid(&lab.cx, 0, &gid_entry(7)),
        Err(Error::Busy("the GID is another tenant's"))
    );
}

#[test]
fn a_missing_library_device_or_port_is_named_with_the_remedy() {
    let cx = MaySleep::claim().unwrap();
    let missing =
        Options { library: Some("/nonexistent/libibverbs.so.1".into()), ..Options::default() };
    let error = open(&cx, "mlx5_0", missing).err().unwrap().to_string();
    assert!(error.contains("install rdma-core"), "{error}");
    // A library, but not that one.
    let other = Options { library: Some("libc.so.6".into()), ..Options::default() };
    let error = open(&cx, "mlx5_0", other).err().unwrap().to_string();
    assert!(error.contains("ibv_get_device_list"), "{error}");
    if stub().is_some() {
        let error = open(&cx, "mlx5_0", options()).err().unwrap().to_string();
        assert!(error.contains("mlx5_0") && error.contains("stub1"), "{error}");
        let error = open(&cx, "stub1", Options { port: 2, ..options() }).err().unwrap().to_string();
        assert!(error.contains("port 2"), "{error}");
    }
}

#[test]
fn the_limits_are_the_devices_bounded_by_the_daemons() {
    if stub().is_none() {
        return;
    }
    let lab = opened("stub0");
    let attr = lab.hca.query_device(&lab.cx).unwrap();
    assert_eq!((attr.max_inline, attr.max_send_sge, attr.max_qp_wr), (1024, 30, 16_384));
    assert_eq!(
        (attr.max_cqe, attr.vendor_id, attr.fw_ver),
        (32_768, 0x02c9, 12 << 32 | 34 << 16 | 56)
    );
    assert_eq!((attr.max_fast_reg_page_list_len, attr.atomic_cap), (0, 1));
    let port = lab.hca.query_port(&lab.cx, 1).unwrap();
    assert_eq!(
        (port.state, port.active_mtu, port.gid_tbl_len),
        (PortState::Active, Mtu::Mtu4096, 256)
    );
    assert!(lab.hca.query_port(&lab.cx, 2).is_err());
}

#[test]
fn what_is_posted_in_err_is_flushed() {
    both(|lab| {
        let ring = Arc::new(RecvRing::default());
        let setup = Setup { ring: Some(ring.clone()), ..Setup::default() };
        let (a, b) = lab.pair_with(&Setup::default(), &setup);
        lab.move_to(&b, QpState::Err);
        for n in 0..3u64 {
            // As a kernel does to drain a QP.
            ring.post(n, &[]);
            b.qp.recv_posted();
            let wc = lab.next(&b.recv);
            assert_eq!((wc.wr_id, wc.status, wc.opcode), (n, WcStatus::WrFlushErr, WcOpcode::Recv));
            b.qp.post_send(&b.wr(n, WrOpcode::RdmaWrite, &[], &a, 0)).unwrap();
            assert_eq!(lab.next(&b.send).status, WcStatus::WrFlushErr);
        }
    });
}
