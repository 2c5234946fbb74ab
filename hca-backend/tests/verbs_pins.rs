// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MRs that are pinned when a request names them first, and let go of when room is wanted. In a program
//! of its own: it counts and limits what the stub has pinned.

mod common;
mod verbs;

use std::sync::Arc;

use common::*;
use hca_backend::verbs::{Options, Pin};
use rdma_midlayer::driver::{MrDriver, QpDriver};
use rdma_midlayer::types::*;
use rdma_midlayer::work::{RecvWr, SendWr, Sge};
use rdma_midlayer::{Error, Result};
use verbs::{VerbsLab, devices, gids, opened_with, options, scattered, stub};

const PAGES: usize = 4;
const BYTES: u64 = PAGES as u64 * 4096;
/// More than are kept whatever the limit.
const MRS: usize = 80;

/// An MR of memory of its own.
fn local(lab: &VerbsLab, end: &End, n: usize) -> (Arc<dyn MrDriver>, Sge) {
    let start = 0x100_0000 * (n as u64 + 1);
    let memory = scattered(PAGES, start, BYTES).user();
    let mr = end.tenant.pd.reg_mr(&lab.cx, memory, Access::LOCAL_WRITE).unwrap();
    let sge = Sge { addr: start, length: 64, lkey: mr.lkey() };
    (mr, sge)
}

/// Posts it, as a consumer does that is told to wait.
fn post(lab: &VerbsLab, qp: &Arc<dyn QpDriver>, wr: &SendWr<'_>) {
    lab.wait("room", || match qp.post_send(wr) {
        Err(Error::QueueFull) => None,
        other => {
            other.unwrap();
            Some(())
        }
    });
}

fn in_turn(test: impl Fn(&VerbsLab, &verbs_stub::Stub), budget: u64) {
    let Some(stub) = stub() else { return };
    for device in devices() {
        let pin = Pin::OnUse { budget };
        let lab = opened_with(&device, Options { gids: gids(&device), pin, ..options() });
        test(&lab, &stub);
    }
}

#[test]
fn memory_is_pinned_by_its_first_use_and_gives_way_to_other_memory() {
    in_turn(
        |lab, stub| {
            let (a, b) = lab.pair();
            let before = stub.pinned();
            let mrs: Vec<_> = (0..MRS).map(|n| local(lab, &a, n)).collect();
            let registered = stub.pinned() - before;
            assert_eq!(registered, MRS as u64 * 4096, "a page each, for the key");
            // A receive request that waits has its memory to itself all the time.
            let waiting = local(lab, &a, MRS);
            let sges = [waiting.1];
            a.qp.post_recv(&RecvWr { wr_id: 1, ticket: 1, sges: &sges }).unwrap();
            lab.wait("the receive's memory", || {
                (stub.pinned() >= before + registered + 4096 + BYTES).then_some(())
            });
            for round in 0..2 {
                for (n, (_, sge)) in mrs.iter().enumerate() {
                    post(lab, &a.qp, &a.wr(n as u64, WrOpcode::RdmaWrite, &[*sge], &b, 0));
                    let wc = lab.next(&a.send);
                    assert_eq!(
                        (wc.wr_id, wc.status),
                        (n as u64, WcStatus::Success),
                        "round {round}"
                    );
                }
            }
            let used = stub.pinned() - before - registered - 4096;
            assert!(used <= 42 * BYTES, "{used} bytes pinned: 40 MRs' is the budget");
            let hello = [b.sge(0, 64)];
            post(lab, &b.qp, &b.wr(9, WrOpcode::Send, &hello, &a, 0));
            assert_eq!(lab.next(&b.send).status, WcStatus::Success);
            assert_eq!(lab.next(&a.recv).status, WcStatus::Success);
            let ended: Result<Vec<_>> =
                mrs.iter().chain([&waiting]).map(|(mr, _)| mr.dereg(&lab.cx)).collect();
            ended.unwrap();
            assert_eq!(stub.pinned(), before);
        },
        40 * BYTES,
    );
}

#[test]
fn the_limit_of_locked_memory_makes_room_and_what_does_not_fit_at_all_fails_by_itself() {
    in_turn(
        |lab, stub| {
            let (a, b) = lab.pair();
            let mrs: Vec<_> = (0..MRS).map(|n| local(lab, &a, n)).collect();
            stub.limit_pinned(stub.pinned() + 40 * BYTES);
            for (n, (_, sge)) in mrs.iter().enumerate() {
                post(lab, &a.qp, &a.wr(n as u64, WrOpcode::RdmaWrite, &[*sge], &b, 0));
                assert_eq!(lab.next(&a.send).status, WcStatus::Success, "MR {n}");
            }
            // Nothing can be let go of that would be enough.
            stub.limit_pinned(1);
            post(lab, &a.qp, &a.wr(1000, WrOpcode::RdmaWrite, &[mrs[0].1], &b, 0));
            let wc = lab.next(&a.send);
            stub.limit_pinned(0);
            assert_eq!((wc.wr_id, wc.status), (1000, WcStatus::LocProtErr));
            mrs.iter().for_each(|(mr, _)| mr.dereg(&lab.cx).unwrap());
        },
        u64::MAX,
    );
}
