// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ATOMIC WRITE and RDMA FLUSH (IBA annex A19): what they do, and what they may not.

mod common;

use common::*;
use rdma_midlayer::Error;
use rdma_midlayer::driver::{AsyncEvent, MrChange};
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

use WcStatus::{LocLenErr, LocProtErr, LocQpOpErr, RemAccessErr, RemInvReqErr, Success};

const GLOBAL: Access = Access::FLUSH_GLOBAL;
const PERSISTENT: Access = Access::FLUSH_PERSISTENT;

/// A pair whose QPs allow everything that a peer can ask for, and whose MRs all that memory here can do.
fn pair(lab: &Lab) -> (End, End) {
    let mut setup = Setup::default();
    setup.attr.access = REMOTE_ALL | GLOBAL | PERSISTENT;
    let (a, b) = lab.pair_with(&setup, &setup);
    let access = Some(REMOTE_ALL | GLOBAL);
    b.mr.rereg(&lab.cx, MrChange { access, ..MrChange::default() }).unwrap();
    (a, b)
}

fn flush(length: u64, placement: Access, whole_mr: bool) -> SendData<'static> {
    SendData::Flush(Flush { length, placement, whole_mr })
}

/// Posts a WR that ends with `status`; if that is an error, what the peer hears, and both are as new
/// afterwards.
fn ends_with(lab: &Lab, a: &End, b: &End, wr: &SendWr<'_>, status: WcStatus) -> Vec<AsyncEvent> {
    a.qp.post_send(wr).unwrap();
    lab.run();
    let wc = a.send.take().unwrap();
    assert_eq!((wc.status, wc.opcode), (status, WcOpcode::from(wr.opcode)), "{wr:?}");
    assert_eq!(wc.byte_len, 0);
    let events = b.tenant.events.drain();
    if status != Success {
        assert_eq!(lab.state(a), QpState::Err);
        [a, b].iter().for_each(|end| lab.move_to(end, QpState::Reset));
        lab.connect(a, b);
    }
    events.into_iter().filter(|event| !matches!(event, AsyncEvent::CommEst(_))).collect()
}

#[test]
fn an_atomic_write_puts_eight_bytes_from_sges_or_from_the_request_itself() {
    let lab = Lab::new();
    let (a, b) = pair(&lab);
    let data = pattern(7, 16);
    a.fill(3, &data);
    let sges = [a.sge(3, 5), a.sge(8, 3)];
    let wr = a.wr(1, WrOpcode::AtomicWrite, &sges, &b, 64);
    ends_with(&lab, &a, &b, &wr, Success);
    ends_with(&lab, &a, &b, &SendWr { data: SendData::Sges(&[a.sge(3, 8)]), ..wr }, Success);
    assert_eq!(b.bytes(56, 24), [&[0; 8], &data[..8], &[0; 8]].concat());
    let inline = SendWr { data: SendData::Inline(&data[8..]), remote_addr: BASE + 72, ..wr };
    ends_with(&lab, &a, &b, &inline, Success);
    assert_eq!(b.bytes(64, 16), data);
}

#[test]
fn atomic_writes_and_flushes_are_in_order_with_what_is_before_and_behind_them() {
    let lab = Lab::new();
    let (a, b) = pair(&lab);
    let big = pattern(1, 200_000);
    a.fill(0, &big);
    let (write, read) = ([a.sge(0, 200_000)], [a.sge(300_000, 200_000)]);
    let mark = 0x0123_4567_89ab_cdef_u64.to_ne_bytes();
    let wrs = [
        a.wr(1, WrOpcode::RdmaWrite, &write, &b, 0),
        SendWr { data: flush(200_000, GLOBAL, false), ..a.wr(2, WrOpcode::Flush, &[], &b, 0) },
        SendWr { data: SendData::Inline(&mark), ..a.wr(3, WrOpcode::AtomicWrite, &[], &b, 8) },
        a.wr(4, WrOpcode::RdmaRead, &read, &b, 0),
        SendWr { data: flush(0, GLOBAL, true), ..a.wr(5, WrOpcode::Flush, &[], &b, 0) },
    ];
    a.qp.post_send_list(&wrs).unwrap();
    lab.run();
    let all = (1..=5).map(|id| (id, Success)).collect::<Vec<_>>();
    assert_eq!(a.send.statuses(), all);
    let expected = [&big[..8], &mark, &big[16..]].concat();
    assert!(a.bytes(300_000, 200_000) == expected && b.bytes(0, 200_000) == expected);
}

#[test]
fn an_atomic_write_that_may_not_be_is_refused_as_iba_says() {
    let lab = Lab::new();
    let (a, b) = pair(&lab);
    let word = [a.sge(0, 8)];
    let wr = a.wr(1, WrOpcode::AtomicWrite, &word, &b, 0);
    let invalid = [AsyncEvent::QpReqErr(b.qp.qpn())];
    let access = [AsyncEvent::QpAccessErr(b.qp.qpn())];
    for length in [0, 7, 9, 16] {
        let sges = [a.sge(0, length)];
        let heard =
            ends_with(&lab, &a, &b, &SendWr { data: SendData::Sges(&sges), ..wr }, LocLenErr);
        assert_eq!(heard, [], "the peer has not heard of it");
    }
    let misaligned = SendWr { remote_addr: BASE + 4, ..wr };
    assert_eq!(ends_with(&lab, &a, &b, &misaligned, RemInvReqErr), invalid);
    let outside = SendWr { remote_addr: BASE + (1 << 20), ..wr };
    assert_eq!(ends_with(&lab, &a, &b, &outside, RemAccessErr), access);
    assert_eq!(ends_with(&lab, &a, &b, &SendWr { rkey: RKey(5), ..wr }, RemAccessErr), access);
    let foreign = [Sge { lkey: LKey(5), ..a.sge(0, 8) }];
    ends_with(&lab, &a, &b, &SendWr { data: SendData::Sges(&foreign), ..wr }, LocProtErr);
    let read_only = MrChange { access: Some(Access::REMOTE_READ), ..MrChange::default() };
    b.mr.rereg(&lab.cx, read_only).unwrap();
    assert_eq!(ends_with(&lab, &a, &b, &wr, RemAccessErr), access);
    assert_eq!(b.bytes(0, 16), [0; 16]);
}

#[test]
fn a_flush_needs_the_right_of_the_qp_and_of_the_memory_for_each_placement() {
    let lab = Lab::new();
    let (a, b) = pair(&lab);
    let wr = |data| SendWr { data, ..a.wr(1, WrOpcode::Flush, &[], &b, 0) };
    let invalid = [AsyncEvent::QpReqErr(b.qp.qpn())];
    let access = [AsyncEvent::QpAccessErr(b.qp.qpn())];
    let whole = 1 << 20;
    for data in
        [flush(whole, GLOBAL, false), flush(0, GLOBAL, false), flush(77 << 40, GLOBAL, true)]
    {
        ends_with(&lab, &a, &b, &wr(data), Success);
    }
    let anywhere = SendWr { remote_addr: 3, ..wr(flush(1, GLOBAL, true)) };
    ends_with(&lab, &a, &b, &anywhere, Success);
    for data in [
        flush(whole + 1, GLOBAL, false),
        flush(8, PERSISTENT, false),
        flush(8, GLOBAL | PERSISTENT, false),
        flush(0, PERSISTENT, true),
    ] {
        assert_eq!(ends_with(&lab, &a, &b, &wr(data), RemAccessErr), access, "{data:?}");
    }
    // Unlike a WRITE, one of no bytes names its key.
    for data in [flush(0, GLOBAL, false), flush(0, GLOBAL, true)] {
        let bad = SendWr { rkey: RKey(5), ..wr(data) };
        assert_eq!(ends_with(&lab, &a, &b, &bad, RemAccessErr), access);
    }
    let heard = ends_with(&lab, &a, &b, &wr(flush((1 << 31) + 1, GLOBAL, false)), LocLenErr);
    assert_eq!(heard, []);
    let without = MrChange { access: Some(REMOTE_ALL), ..MrChange::default() };
    b.mr.rereg(&lab.cx, without).unwrap();
    assert_eq!(ends_with(&lab, &a, &b, &wr(flush(8, GLOBAL, false)), RemAccessErr), access);
    let (a, b) = lab.pair_with_tenants(lab.tenant(2, 1), lab.tenant(2, 2));
    let wr = SendWr { data: flush(8, GLOBAL, false), ..a.wr(1, WrOpcode::Flush, &[], &b, 0) };
    let heard = ends_with(&lab, &a, &b, &wr, RemInvReqErr);
    assert_eq!((heard, invalid.len()), (vec![AsyncEvent::QpReqErr(b.qp.qpn())], 1));
}

#[test]
fn both_count_among_the_requests_that_a_peer_takes_few_of() {
    let lab = Lab::new();
    let word = 5u64.to_ne_bytes();
    for (mine, peers, status) in [(0, 1, LocQpOpErr), (1, 0, RemInvReqErr), (1, 1, Success)] {
        let mut setup = Setup::default();
        setup.attr.access = REMOTE_ALL | GLOBAL;
        setup.attr.max_rd_atomic = mine;
        let mut other = setup.clone();
        other.attr.max_dest_rd_atomic = peers;
        let network = u64::from(2 * mine + peers) + 10;
        let a = End::new(&lab, lab.tenant(network, 1), &setup);
        let b = End::new(&lab, lab.tenant(network, 2), &other);
        let access = Some(REMOTE_ALL | GLOBAL);
        b.mr.rereg(&lab.cx, MrChange { access, ..MrChange::default() }).unwrap();
        for (opcode, data) in [
            (WrOpcode::AtomicWrite, SendData::Inline(&word)),
            (WrOpcode::Flush, flush(8, GLOBAL, false)),
        ] {
            lab.connect(&a, &b);
            ends_with(&lab, &a, &b, &SendWr { data, ..a.wr(1, opcode, &[], &b, 0) }, status);
            [&a, &b].iter().for_each(|end| lab.move_to(end, QpState::Reset));
        }
        // More than the peer takes at once wait for their turn.
        if status == Success {
            lab.connect(&a, &b);
            let wr = SendWr {
                data: SendData::Inline(&word),
                ..a.wr(7, WrOpcode::AtomicWrite, &[], &b, 0)
            };
            a.qp.post_send_list(&[wr; 20]).unwrap();
            lab.run();
            assert_eq!(a.send.statuses(), [(7, Success); 20]);
        }
    }
}

#[test]
fn transports_without_answers_have_neither_and_data_must_be_the_opcodes() {
    let lab = Lab::new();
    let (a, b) = pair(&lab);
    let (word, sges) = (5u64.to_ne_bytes(), [a.sge(0, 8)]);
    let write =
        SendWr { data: SendData::Inline(&word), ..a.wr(1, WrOpcode::AtomicWrite, &[], &b, 0) };
    let good = flush(8, GLOBAL, false);
    let refused = |end: &End, wr: SendWr<'_>| {
        assert!(matches!(end.qp.post_send(&wr), Err(Error::Invalid(_))), "{wr:?}");
    };
    refused(&a, SendWr { data: good, ..write });
    refused(&a, SendWr { data: good, opcode: WrOpcode::RdmaWrite, ..write });
    refused(&a, SendWr { opcode: WrOpcode::Flush, ..write });
    refused(&a, SendWr { opcode: WrOpcode::Flush, data: SendData::Sges(&sges), ..write });
    let setup = Setup { qp_type: QpType::Uc, ..Setup::default() };
    let (a, b) =
        (End::new(&lab, lab.tenant(2, 1), &setup), End::new(&lab, lab.tenant(2, 2), &setup));
    refused(&a, SendWr { rkey: b.mr.rkey(), ..write });
    refused(&a, SendWr { opcode: WrOpcode::Flush, data: good, ..write });
}
