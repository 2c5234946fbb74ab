// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! RC of a soft HCA when something is wrong: who gets which status and which event, and what happens
//! to the work behind it.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::*;
use rdma_midlayer::Error;
use rdma_midlayer::attr::{QpAttr, QpAttrMask};
use rdma_midlayer::driver::AsyncEvent;
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

use WcStatus::*;

type Expected = (WcStatus, Option<WcStatus>, Option<fn(Qpn) -> AsyncEvent>);

/// A fault: how the request differs from a good one, and what it leads to: the requester's status,
/// the status of the responder's receive WQE (if one is consumed), the responder's event.
struct Fault {
    name: &'static str,
    opcode: WrOpcode,
    requester: fn(&mut QpAttr),
    responder: fn(&mut QpAttr),
    wr: fn(&mut SendWr<'_>, &End, &End, &Lab),
    sge: fn(&mut Sge, &End, &Lab),
    recv_sge: fn(&mut Sge, &End, &Lab),
    expected: Expected,
}

impl Fault {
    const fn new(name: &'static str, opcode: WrOpcode, expected: Expected) -> Self {
        Self {
            name,
            opcode,
            requester: |_| {},
            responder: |_| {},
            wr: |_, _, _, _| {},
            sge: |_, _, _| {},
            recv_sge: |_, _, _| {},
            expected,
        }
    }
}

const LOCAL: fn(WcStatus) -> Expected = |status| (status, None, None);
const ACCESS: Expected = (RemAccessErr, None, Some(AsyncEvent::QpAccessErr));
const INVALID: Expected = (RemInvReqErr, None, Some(AsyncEvent::QpReqErr));

/// An MR of the end's memory with other rights, or in another PD.
fn other_key(end: &End, lab: &Lab, access: Access, own_pd: bool) -> (LKey, RKey) {
    let memory = window(&end.ram, BASE, 0, 4096);
    let pd =
        if own_pd { end.tenant.pd.clone() } else { end.tenant.context.alloc_pd(&lab.cx).unwrap() };
    let mr = pd.reg_mr(&lab.cx, memory, access).unwrap();
    (mr.lkey(), mr.rkey())
}

fn faults() -> Vec<Fault> {
    use WrOpcode::*;
    let mut faults = vec![
        Fault {
            sge: |sge, _, _| sge.lkey = LKey(0xdead),
            ..Fault::new("an lkey that does not exist", RdmaWrite, LOCAL(LocProtErr))
        },
        Fault {
            sge: |sge, _, _| sge.lkey = LKey(0),
            ..Fault::new("lkey 0", Send, LOCAL(LocProtErr))
        },
        Fault {
            sge: |sge, _, _| sge.lkey = LKey(sge.lkey.0 ^ 1),
            ..Fault::new("an lkey with other random bits", Send, LOCAL(LocProtErr))
        },
        Fault {
            sge: |sge, _, _| sge.addr = BASE - 1,
            ..Fault::new("an SGE below its MR", Send, LOCAL(LocProtErr))
        },
        Fault {
            sge: |sge, _, _| sge.addr = BASE + (1 << 20) - 7,
            ..Fault::new("an SGE past its MR", RdmaWrite, LOCAL(LocProtErr))
        },
        Fault {
            sge: |sge, _, _| sge.addr = u64::MAX - 3,
            ..Fault::new("an SGE that wraps", RdmaWrite, LOCAL(LocProtErr))
        },
        Fault {
            sge: |sge, end, lab| sge.lkey = other_key(end, lab, REMOTE_ALL, false).0,
            ..Fault::new("an lkey of another PD", RdmaWrite, LOCAL(LocProtErr))
        },
        Fault {
            sge: |sge, end, lab| sge.lkey = other_key(end, lab, Access::REMOTE_READ, true).0,
            ..Fault::new("a READ into memory without local write", RdmaRead, LOCAL(LocProtErr))
        },
        Fault {
            requester: |attr| attr.max_rd_atomic = 0,
            ..Fault::new("a READ where none is outstanding", RdmaRead, LOCAL(LocQpOpErr))
        },
        Fault {
            sge: |sge, _, _| sge.length = 4,
            ..Fault::new("an atomic of 4 bytes", AtomicFetchAndAdd, LOCAL(LocLenErr))
        },
        Fault {
            wr: |wr, _, _, _| wr.rkey = RKey(77),
            ..Fault::new("an rkey that does not exist", RdmaWrite, ACCESS)
        },
        Fault {
            wr: |wr, a, _, _| wr.rkey = a.mr.rkey(),
            ..Fault::new("an rkey of the requester's own tenant", RdmaRead, ACCESS)
        },
        Fault {
            wr: |wr, _, _, _| wr.remote_addr = BASE + (1 << 20) - 7,
            ..Fault::new("a WRITE past the MR", RdmaWrite, ACCESS)
        },
        Fault {
            wr: |wr, _, _, _| wr.remote_addr = u64::MAX - 3,
            ..Fault::new("a READ of addresses that wrap", RdmaRead, ACCESS)
        },
        Fault {
            wr: |wr, _, _, _| wr.remote_addr += 4,
            ..Fault::new("an atomic that is not aligned", AtomicCmpAndSwp, INVALID)
        },
        Fault {
            responder: |attr| attr.max_dest_rd_atomic = 0,
            ..Fault::new("a READ where the responder takes none", RdmaRead, INVALID)
        },
        Fault {
            responder: |attr| attr.max_dest_rd_atomic = 0,
            ..Fault::new("an atomic where the responder takes none", AtomicFetchAndAdd, INVALID)
        },
        Fault {
            recv_sge: |sge, _, _| sge.length = 7,
            ..Fault::new(
                "a message longer than the receive WQE",
                Send,
                (RemInvReqErr, Some(LocLenErr), None),
            )
        },
        Fault {
            recv_sge: |sge, _, _| sge.lkey = LKey(3),
            ..Fault::new("a bad key in the receive WQE", Send, (RemOpErr, Some(LocProtErr), None))
        },
        Fault {
            recv_sge: |sge, end, lab| sge.lkey = other_key(end, lab, Access::NONE, true).0,
            ..Fault::new(
                "a receive WQE without local write",
                SendWithImm,
                (RemOpErr, Some(LocProtErr), None),
            )
        },
    ];
    for opcode in [RdmaWrite, RdmaWriteWithImm, RdmaRead, AtomicCmpAndSwp, AtomicFetchAndAdd] {
        faults.push(Fault {
            responder: |attr| attr.access = Access::LOCAL_WRITE,
            ..Fault::new("an operation that the responder QP does not allow", opcode, INVALID)
        });
        faults.push(Fault {
            wr: |wr, _, b, lab| wr.rkey = other_key(b, lab, Access::LOCAL_WRITE, true).1,
            ..Fault::new("an rkey without the right", opcode, ACCESS)
        });
        faults.push(Fault {
            wr: |wr, _, b, lab| wr.rkey = other_key(b, lab, REMOTE_ALL, false).1,
            ..Fault::new("an rkey of another PD", opcode, ACCESS)
        });
    }
    faults
}

#[test]
fn each_fault_has_its_statuses_and_events_and_flushes_what_is_behind_it() {
    let lab = Lab::new();
    for (i, fault) in faults().into_iter().enumerate() {
        let name = fault.name;
        let mut setups = [Setup::default(), Setup::default()];
        (fault.requester)(&mut setups[0].attr);
        (fault.responder)(&mut setups[1].attr);
        let a = End::new(&lab, lab.tenant(i as u64 + 10, 1), &setups[0]);
        let b = End::new(&lab, lab.tenant(i as u64 + 10, 2), &setups[1]);
        lab.connect(&a, &b);
        let mut recv = b.sge(0, 100);
        (fault.recv_sge)(&mut recv, &b, &lab);
        b.post_recv(1, &[recv]);
        b.post_recv(2, &[b.sge(0, 100)]);
        b.qp.post_send(&b.wr(7, WrOpcode::RdmaWrite, &[b.sge(0, 8)], &a, 0)).unwrap();
        assert_eq!(b.send.statuses(), [(7, Success)], "{name}: the way back works");
        let mut sges = [a.sge(0, 8)];
        (fault.sge)(&mut sges[0], &a, &lab);
        let mut wr = a.wr(1, fault.opcode, &sges, &b, 64);
        (fault.wr)(&mut wr, &a, &b, &lab);
        // The first error completes though unsignalled.
        a.qp.post_send(&SendWr { flags: SendFlags::default(), ..wr }).unwrap();
        a.qp.post_send(&a.wr(2, WrOpcode::RdmaWrite, &[a.sge(0, 8)], &b, 0)).unwrap();
        a.post_recv(3, &[]);
        lab.run();
        let (status, recv, event) = fault.expected;
        assert_eq!(a.send.statuses(), [(1, status), (2, WrFlushErr)], "{name}");
        assert_eq!(a.recv.statuses(), [(3, WrFlushErr)], "{name}");
        assert_eq!(lab.state(&a), QpState::Err, "{name}");
        assert_eq!(a.tenant.events.drain(), [], "{name}");
        let responder_failed = recv.is_some() || event.is_some();
        let recvs = match recv {
            Some(status) => vec![(1, status), (2, WrFlushErr)],
            None if responder_failed => vec![(1, WrFlushErr), (2, WrFlushErr)],
            None => vec![],
        };
        assert_eq!(b.recv.statuses(), recvs, "{name}");
        let events: Vec<_> = event.map(|event| event(b.qp.qpn())).into_iter().collect();
        assert_eq!(b.tenant.events.drain(), events, "{name}");
        let expected = if responder_failed { QpState::Err } else { QpState::Rts };
        assert_eq!(lab.state(&b), expected, "{name}");
        assert_eq!(b.bytes(0, 1 << 12), vec![0; 1 << 12], "{name}: nothing was written");
    }
}

#[test]
fn a_wr_that_no_transport_has_is_refused_at_once() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    let too_many = [a.sge(0, 1); 31];
    let inline = [0; 257];
    let good = a.wr(1, WrOpcode::Send, &[], &b, 0);
    for wr in [
        SendWr { opcode: WrOpcode::BindMw, ..good },
        SendWr { opcode: WrOpcode::LocalInv, data: SendData::Sges(&too_many[..1]), ..good },
        SendWr { data: SendData::Sges(&too_many), ..good },
        SendWr { data: SendData::Inline(&inline), ..good },
        SendWr { data: SendData::Inline(&inline[..8]), opcode: WrOpcode::RdmaRead, ..good },
    ] {
        assert!(matches!(a.qp.post_send(&wr), Err(Error::Invalid(_))), "{wr:?}");
    }
    assert!(matches!(
        a.qp.post_recv(&RecvWr { wr_id: 1, ticket: 0, sges: &too_many }),
        Err(Error::Invalid(_))
    ));
    lab.run();
    assert_eq!((a.send.len(), lab.state(&a)), (0, QpState::Rts));
}

#[test]
fn a_message_over_2_gib_is_a_length_error() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    let sges = [a.sge(0, 1 << 31), a.sge(0, 1)];
    a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &sges, &b, 0)).unwrap();
    lab.run();
    assert_eq!(a.send.statuses(), [(1, LocLenErr)]);
}

#[test]
fn a_malformed_wqe_fails_in_order_behind_those_before_it() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &[a.sge(0, 300_000)], &b, 0)).unwrap();
    let wqe = rdma_midlayer::driver::MalformedWqe { wr_id: 2, ticket: 22 };
    a.qp.post_malformed_send(wqe).unwrap();
    a.qp.post_send(&a.wr(3, WrOpcode::RdmaWrite, &[a.sge(0, 8)], &b, 0)).unwrap();
    lab.run();
    let wcs = a.send.drain();
    let statuses: Vec<_> = wcs.iter().map(|wc| (wc.wr_id, wc.status)).collect();
    assert_eq!(statuses, [(1, Success), (2, LocQpOpErr), (3, WrFlushErr)]);
    assert_eq!(wcs[1].ticket, 22);
}

#[test]
fn a_malformed_receive_wqe_fails_both_sides() {
    let lab = Lab::new();
    let ring = Arc::new(RecvRing::default());
    let setup = Setup { ring: Some(ring.clone()), ..Setup::default() };
    let (a, b) = lab.pair_with(&Setup::default(), &setup);
    ring.wqes.lock().unwrap().push_back(Err(9));
    ring.post(10, &[]);
    a.qp.post_send(&a.wr(1, WrOpcode::Send, &[a.sge(0, 8)], &b, 0)).unwrap();
    lab.run();
    assert_eq!(a.send.statuses(), [(1, RemOpErr)]);
    assert_eq!(b.recv.statuses(), [(9, LocQpOpErr), (10, WrFlushErr)]);
    assert_eq!((lab.state(&a), lab.state(&b)), (QpState::Err, QpState::Err));
}

#[test]
fn a_list_is_carried_out_up_to_the_receive_wqe_that_makes_no_sense() {
    let lab = Lab::new();
    let ring = Arc::new(RecvRing::default());
    let setup = Setup { ring: Some(ring.clone()), ..Setup::default() };
    let (a, b) = lab.pair_with(&Setup::default(), &setup);
    // The first message makes the two known to each other: what follows goes the short way.
    (0..3).for_each(|n| assert!(!ring.post(n, &[b.sge(0, 8)])));
    ring.wqes.lock().unwrap().push_back(Err(3));
    ring.post(4, &[b.sge(0, 8)]);
    let sges = [a.sge(0, 8)];
    let wrs: Vec<_> = (0..6).map(|n| a.wr(n, WrOpcode::Send, &sges, &b, 0)).collect();
    a.qp.post_send_list(&wrs).unwrap();
    lab.run();
    let flushed = [(4, WrFlushErr), (5, WrFlushErr)];
    let sent = [(0, Success), (1, Success), (2, Success), (3, RemOpErr)];
    assert_eq!(a.send.statuses(), [&sent[..], &flushed[..]].concat());
    let received = [(0, Success), (1, Success), (2, Success), (3, LocQpOpErr), (4, WrFlushErr)];
    assert_eq!(b.recv.statuses(), received);
}

#[test]
fn a_list_that_is_cut_off_says_where_and_why() {
    let lab = Lab::new();
    let (a, b) = lab.pair();
    let sges = [a.sge(0, 8)];
    let write = |n| a.wr(n, WrOpcode::RdmaWrite, &sges, &b, 0);
    let wrs = [write(0), write(1), SendWr { data: SendData::Inline(&[0; 257]), ..write(2) }];
    let bad = a.qp.post_send_list(&[&wrs[..], &[write(3)]].concat()).unwrap_err();
    assert_eq!((bad.taken, bad.error), (2, Error::Invalid("length of inline data")));
    assert_eq!(a.send.statuses(), [(0, Success), (1, Success)]);
    lab.move_to(&a, QpState::Reset);
    let bad = a.qp.post_send_list(&wrs[..2]).unwrap_err();
    assert_eq!((bad.taken, bad.error), (0, Error::BadState("post_send")));
}

#[test]
fn a_cq_that_overflows_within_a_burst_fails_the_qp_and_keeps_what_fits() {
    let lab = Lab::new();
    let setup = Setup { cq_room: 5, ..Setup::default() };
    let (a, b) = lab.pair_with(&setup, &Setup::default());
    let sges = [a.sge(0, 8)];
    let wrs: Vec<_> = (0..12).map(|n| a.wr(n, WrOpcode::RdmaWrite, &sges, &b, 0)).collect();
    a.qp.post_send_list(&wrs).unwrap();
    lab.run();
    assert_eq!(a.send.statuses(), (0..5).map(|n| (n, Success)).collect::<Vec<_>>());
    assert_eq!(lab.state(&a), QpState::Err);
    let qpn = a.qp.qpn();
    let events = a.tenant.events.drain();
    assert_eq!(events.iter().filter(|e| matches!(e, AsyncEvent::CqErr(_))).count(), 1);
    assert!(events.contains(&AsyncEvent::QpFatal(qpn)));
}

#[test]
fn an_rnr_nak_makes_the_requester_wait_the_responders_timer_as_often_as_it_may() {
    for (opcode, len) in [
        (WrOpcode::Send, 8),
        (WrOpcode::RdmaWriteWithImm, 8),
        (WrOpcode::RdmaWriteWithImm, 200_000),
    ] {
        // 491.52 ms a wait (code 31), 3 retries.
        let lab = Lab::new();
        let mut setup = Setup::default();
        (setup.attr.rnr_retry, setup.attr.min_rnr_timer) = (3, 31);
        let a = End::new(&lab, lab.tenant(1, 1), &setup);
        let b = End::new(&lab, lab.tenant(1, 2), &setup);
        lab.connect(&a, &b);
        a.qp.post_send(&a.wr(1, opcode, &[a.sge(0, len)], &b, 0)).unwrap();
        lab.run_for(Duration::from_millis(1300));
        assert_eq!(a.send.len(), 0, "still waiting");
        lab.run_for(Duration::from_millis(200));
        assert_eq!(a.send.statuses(), [(1, RnrRetryExcErr)]);
        assert_eq!((lab.state(&a), lab.state(&b)), (QpState::Err, QpState::Rts));
    }
}

#[test]
fn with_rnr_retry_7_the_requester_waits_until_a_wqe_comes_and_need_not_sit_the_timer_out() {
    if FORCE_WIRE {
        // Nobody tells a peer elsewhere that a WQE has come.
        return;
    }
    let lab = Lab::new();
    let (a, b) = lab.pair();
    a.fill(0, &pattern(1, 64));
    a.qp.post_send(&a.wr(1, WrOpcode::Send, &[a.sge(0, 64)], &b, 0)).unwrap();
    a.qp.post_send(&a.wr(2, WrOpcode::RdmaWrite, &[a.sge(0, 64)], &b, 1000)).unwrap();
    lab.run_for(Duration::from_secs(3));
    assert_eq!(a.send.len(), 0);
    assert_eq!(b.bytes(1000, 64), vec![0; 64], "order is kept");
    b.post_recv(5, &[b.sge(0, 64)]);
    lab.run();
    assert_eq!(a.send.statuses(), [(1, Success), (2, Success)]);
    assert_eq!(b.recv.statuses(), [(5, Success)]);
    assert_eq!(b.bytes(0, 64), pattern(1, 64));
}

#[test]
fn a_peer_that_waits_turns_the_receive_doorbell_on_and_off_again() {
    if FORCE_WIRE {
        // A peer elsewhere asks again by itself.
        return;
    }
    let lab = Lab::new();
    let ring = Arc::new(RecvRing::default());
    let setup = Setup { ring: Some(ring.clone()), ..Setup::default() };
    let (a, b) = lab.pair_with(&Setup::default(), &setup);
    assert!(!ring.doorbell.load(Ordering::SeqCst));
    a.qp.post_send(&a.wr(1, WrOpcode::Send, &[], &b, 0)).unwrap();
    assert!(ring.post(1, &[]), "the doorbell is wanted");
    b.qp.recv_posted();
    lab.run();
    assert_eq!(a.send.statuses(), [(1, Success)]);
    assert!(!ring.doorbell.load(Ordering::SeqCst));
    lab.move_to(&b, QpState::Err);
    assert!(ring.post(2, &[]), "wanted in ERR");
    b.qp.recv_posted();
    assert_eq!(b.recv.statuses(), [(1, Success), (2, WrFlushErr)]);
}

/// What makes requests vanish.
#[derive(Clone, Copy, Debug)]
enum Loss {
    NoSuchGid,
    NoSuchQp,
    OtherNetwork,
    PeerInInit,
    PeerInErr,
    PeerReset,
    PeerDestroyed,
    PeerConnectedToAnother,
    PeerKnowsUsByAnotherGid,
    WrongPsn,
    TenantSuspended,
    GidDeleted,
}

#[test]
fn requests_to_nobody_are_retried_and_then_given_up() {
    if FORCE_WIRE {
        // A wrong PSN is answered by a NAK, and the retries are gone at once.
        return;
    }
    use Loss::*;
    for loss in [
        NoSuchGid,
        NoSuchQp,
        OtherNetwork,
        PeerInInit,
        PeerInErr,
        PeerReset,
        PeerDestroyed,
        PeerConnectedToAnother,
        PeerKnowsUsByAnotherGid,
        WrongPsn,
        TenantSuspended,
        GidDeleted,
    ] {
        let lab = Lab::new();
        let network = 1;
        let other = network + u64::from(matches!(loss, OtherNetwork)) * 1000;
        let mut setup = Setup::default();
        // 1.07 s each, 1 + 2 tries.
        (setup.attr.timeout, setup.attr.retry_cnt) = (18, 2);
        let a = End::new(&lab, lab.tenant(network, 1), &setup);
        let b = End::new(&lab, lab.tenant(other, 2), &Setup::default());
        lab.to_rts(&a, &b, 100, 200);
        if matches!(loss, PeerInInit) {
            lab.modify(&b, QpState::Init, b.attr, INIT);
        } else {
            lab.to_rts(&b, &a, 200, 100 + u32::from(matches!(loss, WrongPsn)));
        }
        let (cx, context) = (&lab.cx, &b.tenant.context);
        match loss {
            NoSuchGid => context.del_gid(cx, 0).unwrap(),
            GidDeleted => {
                a.qp.post_send(&a.wr(9, WrOpcode::RdmaWrite, &[a.sge(0, 8)], &b, 0)).unwrap();
                assert_eq!(a.send.statuses(), [(9, Success)]);
                context.del_gid(cx, 0).unwrap();
            }
            PeerInErr => lab.move_to(&b, QpState::Err),
            PeerReset => lab.move_to(&b, QpState::Reset),
            PeerDestroyed => b.qp.destroy(cx).unwrap(),
            TenantSuspended => context.suspend(cx).unwrap(),
            NoSuchQp => {
                let attr = QpAttr { dest_qpn: Qpn(0xffff), ..a.attr };
                lab.move_to(&a, QpState::Reset);
                lab.modify(&a, QpState::Init, a.attr, INIT);
                lab.to_rtr(&a, &b, 200);
                lab.modify(&a, QpState::Rts, attr, RTS | QpAttrMask::DEST_QPN);
            }
            PeerConnectedToAnother => {
                lab.move_to(&b, QpState::Reset);
                lab.to_rts(&b, &b, 200, 100);
            }
            PeerKnowsUsByAnotherGid => {
                a.tenant.context.add_gid(cx, 1, &gid_entry(3)).unwrap();
                let mut attr = a.attr;
                (attr.ah.dgid, attr.ah.sgid_index) = (b.tenant.gid, 1);
                lab.modify(&a, QpState::Rts, attr, QpAttrMask::AV);
            }
            OtherNetwork | PeerInInit | WrongPsn => {}
        }
        a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &[a.sge(0, 8)], &b, 0)).unwrap();
        a.qp.post_send(&a.wr(2, WrOpcode::Send, &[], &b, 0)).unwrap();
        lab.run_for(Duration::from_millis(2800));
        assert_eq!(a.send.len(), 0, "{loss:?}: still trying");
        lab.run_for(Duration::from_millis(450));
        assert_eq!(a.send.statuses(), [(1, RetryExcErr), (2, WrFlushErr)], "{loss:?}");
        assert_eq!(lab.state(&a), QpState::Err, "{loss:?}");
        assert_eq!(b.tenant.events.drain(), [], "{loss:?}");
        assert_eq!(b.bytes(0, 8), vec![0; 8], "{loss:?}");
    }
}

#[test]
fn a_peer_that_comes_up_during_the_retries_gets_the_request() {
    let lab = Lab::new();
    let a = End::new(&lab, lab.tenant(1, 1), &Setup::default());
    let b = End::new(&lab, lab.tenant(1, 2), &Setup::default());
    lab.to_rts(&a, &b, 100, 200);
    a.fill(0, &pattern(2, 8));
    a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &[a.sge(0, 8)], &b, 0)).unwrap();
    lab.run_for(Duration::from_millis(100));
    lab.to_rtr(&b, &a, 100);
    // By packets the second time-out is twice as long as the first.
    lab.run_for(Duration::from_millis(if FORCE_WIRE { 140 } else { 70 }));
    assert_eq!(a.send.statuses(), [(1, Success)]);
    assert_eq!(b.bytes(0, 8), pattern(2, 8));
}

#[test]
fn with_timeout_0_a_lost_request_waits_for_ever_and_is_flushed_by_modify() {
    let lab = Lab::new();
    let mut setup = Setup::default();
    setup.attr.timeout = 0;
    let a = End::new(&lab, lab.tenant(1, 1), &setup);
    let b = End::new(&lab, lab.tenant(1, 2), &Setup::default());
    lab.to_rts(&a, &b, 100, 200);
    a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &[a.sge(0, 8)], &b, 0)).unwrap();
    lab.run_for(Duration::from_secs(100_000));
    assert_eq!(a.send.len(), 0);
    lab.move_to(&a, QpState::Err);
    assert_eq!(a.send.statuses(), [(1, WrFlushErr)]);
}

#[test]
fn a_cq_without_room_fails_with_its_qps() {
    let lab = Lab::new();
    let setup = Setup { cq_room: 2, ..Setup::default() };
    let (a, b) = lab.pair_with(&setup, &Setup::default());
    // A second QP on the same CQ, idle.
    let init = |cq: &Arc<dyn rdma_midlayer::driver::CqDriver>| rdma_midlayer::driver::QpInit {
        qp_type: QpType::Rc,
        send_cq: cq.clone(),
        recv_cq: a.cqs[1].clone(),
        cap: setup.cap,
        signal_all: false,
        privileged: false,
        poller: 0,
        recv_source: None,
        send_ready: None,
        srq: None,
        xrcd: None,
        block_self_mcast: false,
    };
    let idle = a.tenant.pd.create_qp(&lab.cx, init(&a.cqs[0])).unwrap();
    let attr = QpAttr { state: QpState::Init, ..a.attr };
    idle.modify(&lab.cx, &attr, INIT | QpAttrMask::STATE).unwrap();
    let in_reset = a.tenant.pd.create_qp(&lab.cx, init(&a.cqs[0])).unwrap();
    for i in 0..4 {
        a.qp.post_send(&a.wr(i, WrOpcode::RdmaWrite, &[a.sge(0, 8)], &b, 0)).unwrap();
    }
    lab.run();
    assert_eq!(a.send.statuses(), [(0, Success), (1, Success)]);
    assert_eq!(lab.state(&a), QpState::Err);
    assert_eq!(idle.query(&lab.cx).unwrap().state, QpState::Err);
    assert_eq!(in_reset.query(&lab.cx).unwrap().state, QpState::Reset);
    let mut events = a.tenant.events.drain();
    events.sort_by_key(|event| format!("{event:?}"));
    let mut fatal = [AsyncEvent::QpFatal(a.qp.qpn()), AsyncEvent::QpFatal(idle.qpn())];
    fatal.sort_by_key(|event| format!("{event:?}"));
    assert_eq!(events, [AsyncEvent::CqErr(a.cqs[0].cqn()), fatal[0], fatal[1]]);
}

#[test]
fn a_requester_that_gives_up_in_the_middle_of_a_message_leaves_the_responders_wqe_to_its_flush() {
    if FORCE_WIRE {
        // Packets do not stop where the direct way takes a breath.
        return;
    }
    let lab = Lab::new();
    let (a, b) = lab.pair();
    b.post_recv(1, &[b.sge(0, 1 << 20)]);
    b.post_recv(2, &[]);
    a.qp.post_send(&a.wr(1, WrOpcode::Send, &[a.sge(0, 1 << 20)], &b, 0)).unwrap();
    // One turn: one piece.
    lab.pollers[0].poll(lab.now(), 1);
    lab.move_to(&a, QpState::Err);
    assert_eq!(a.send.statuses(), [(1, WrFlushErr)]);
    assert_eq!(b.recv.len(), 0);
    lab.move_to(&b, QpState::Err);
    assert_eq!(b.recv.statuses(), [(1, WrFlushErr), (2, WrFlushErr)]);
}
