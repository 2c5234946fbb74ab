// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The verbs HCA's never-sleep methods make no system call that may block, neither where the provider
//! posts in user space nor where it enters the kernel: there the driver's thread does it for them. They
//! are called through the midlayer, as consumers call them, on a thread where such a call is trapped.

mod common;
#[path = "../../midlayer/tests/common/trap.rs"]
mod trap;
mod verbs;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::{INIT, REMOTE_ALL, RTR, RTS, gid_entry};
use hca_backend::verbs::{Options, open};
use rdma_midlayer::attr::{AhAttr, QpAttr, QpAttrMask as M, QpCap};
use rdma_midlayer::driver::{HcaDriver, MalformedWqe, Notify, Waker};
use rdma_midlayer::memory::{Run, UserMemory};
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;
use rdma_midlayer::{
    Client, ContextSpec, CqSpec, Device, MaySleep, Midlayer, Qp, QpSpec, RunQueue, SrqSpec,
};
use std::sync::Mutex;
use trap::trapped;
use verbs::{Memfd, gids, options};

struct Nobody;

impl Waker for Nobody {
    fn wake(&self) {}
}

/// A client that keeps the device it was told of.
#[derive(Default)]
struct Keeper(Mutex<Option<Device>>);

impl Client for Keeper {
    fn name(&self) -> &str {
        "keeper"
    }
    fn add(&self, _cx: &MaySleep, device: &Device) {
        *self.0.lock().unwrap() = Some(device.clone());
    }
    fn remove(&self, _cx: &MaySleep, _device: &Device) {
        *self.0.lock().unwrap() = None;
    }
}

const CAP: QpCap =
    QpCap { max_send_wr: 64, max_recv_wr: 64, max_send_sge: 2, max_recv_sge: 2, max_inline: 64 };

fn to_rts(cx: &MaySleep, qp: &Qp, dest: Qpn) {
    let attr = |state| QpAttr {
        state,
        access: REMOTE_ALL,
        dest_qpn: dest,
        qkey: 7,
        ah: AhAttr { dgid: gid_entry(1).gid, port: 1, ..AhAttr::default() },
        max_rd_atomic: 1,
        max_dest_rd_atomic: 1,
        timeout: 14,
        retry_cnt: 7,
        rnr_retry: 7,
        ..QpAttr::default()
    };
    let masks = match qp.qp_type() {
        QpType::Ud => [M::PKEY_INDEX | M::PORT | M::QKEY, M(0), M::SQ_PSN],
        _ => [INIT, RTR, RTS],
    };
    for (state, mask) in [QpState::Init, QpState::Rtr, QpState::Rts].into_iter().zip(masks) {
        qp.modify(cx, &attr(state), mask | M::STATE).unwrap();
    }
}

fn send(wr_id: u64, data: SendData<'_>) -> SendWr<'_> {
    SendWr {
        wr_id,
        ticket: 0,
        opcode: WrOpcode::Send,
        flags: SendFlags::SIGNALED,
        data,
        imm: 0,
        remote_addr: 0,
        rkey: RKey(0),
        compare_add: 0,
        swap: 0,
        ud: None,
        srqn: None,
    }
}

#[test]
fn the_data_path_of_the_verbs_hca_makes_no_call_that_may_block() {
    for device in ["stub0", "slow0"] {
        data_path(device);
    }
}

fn data_path(name: &str) {
    let cx = MaySleep::claim().unwrap();
    let hca = open(&cx, name, Options { gids: gids(name), ..options() }).unwrap();
    let pollers = hca.pollers();
    assert_eq!(pollers.is_empty(), name == "slow0");
    let midlayer = Midlayer::new();
    let keeper = Arc::new(Keeper::default());
    let client = midlayer.register_client(&cx, keeper.clone()).unwrap();
    let registration = midlayer.register_device(&cx, hca.clone()).unwrap();
    let device = keeper.0.lock().unwrap().clone().unwrap();
    let queue = RunQueue::new(Arc::new(Nobody));
    let spec =
        ContextSpec { network: 1, run_queues: vec![queue.clone()], ..ContextSpec::default() };
    let context = device.alloc_context(&cx, spec).unwrap();
    context.add_gid(&cx, 0, &gid_entry(1)).unwrap();
    let pd = context.alloc_pd(&cx).unwrap();
    let heard = Arc::new(AtomicU64::new(0));
    let handler = {
        let heard = heard.clone();
        move |_| {
            heard.fetch_add(1, SeqCst);
        }
    };
    let spec = CqSpec { cqe: 8192, handler: Some(Box::new(handler)), ..CqSpec::default() };
    let cq = context.create_cq(&cx, spec).unwrap();
    let srq = pd.create_srq(&cx, SrqSpec { max_wr: 64, max_sge: 2, ..SrqSpec::default() }).unwrap();
    let qp =
        |qp_type, srq| pd.create_qp(&cx, QpSpec { srq, ..QpSpec::new(qp_type, &cq, CAP) }).unwrap();
    let [a, b] = [0, 1].map(|_| qp(QpType::Rc, None));
    let [c, d] = [0, 1].map(|_| qp(QpType::Ud, Some(srq.clone())));
    to_rts(&cx, &a, b.qpn());
    to_rts(&cx, &b, a.qpn());
    to_rts(&cx, &c, Qpn(0));
    to_rts(&cx, &d, Qpn(0));
    let mapping = Memfd::mapping(32);
    let whole = Run { mapping, offset: 0, len: 32 * 4096 };
    let memory = UserMemory::new(0x1000, 32 * 4096, 0, None, [whole]).unwrap();
    let mr = pd.reg_mr(&cx, memory, REMOTE_ALL).unwrap();
    let sge = [Sge { addr: 0x1000, length: 1024, lkey: mr.lkey() }];
    let write = SendWr {
        opcode: WrOpcode::RdmaWrite,
        remote_addr: 0x8000,
        rkey: mr.rkey(),
        ..send(2, SendData::Sges(&sge))
    };
    let read = SendWr { opcode: WrOpcode::RdmaRead, ..write };
    let path = AhAttr { dgid: gid_entry(1).gid, port: 1, ..AhAttr::default() };
    let shared = pd.create_ah(&path).unwrap();
    let (done, received) = (AtomicU64::new(0), AtomicU64::new(0));
    let once = || {
        let mut wcs = Vec::with_capacity(32);
        // Full queues are part of the game: several threads post to the same QPs.
        let recv = RecvWr { wr_id: 1, ticket: 0, sges: &sge };
        let _ = b.post_recv(&recv);
        let _ = a.post_send(&send(1, SendData::Inline(b"hello")));
        let _ = a.post_send_list(&[write, write, read]);
        let _ = b.post_send(&read);
        let _ = b.recv_posted();
        let ah = pd.create_ah(&path).unwrap();
        ah.modify(&path).unwrap();
        assert_eq!(ah.query().unwrap(), path);
        let _ = srq.post_recv(&recv);
        let _ = srq.recv_posted();
        for ah in [&ah, &shared] {
            let ud = Some(ah.dest(d.qpn(), 7).unwrap());
            let _ = c.post_send(&SendWr { ud, ..send(2, SendData::Inline(b"hello")) });
        }
        ah.destroy().unwrap();
        let _ = cq.req_notify_cq(Notify::Next);
        while cq.poll_cq(&mut wcs, 32).unwrap() == 32 {}
        let good = wcs.iter().filter(|wc| wc.status == WcStatus::Success);
        done.fetch_add(good.clone().count() as u64, SeqCst);
        received.fetch_add(good.filter(|wc| wc.opcode.is_recv()).count() as u64, SeqCst);
    };
    let stop = AtomicBool::new(false);
    let calls = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    once();
                }
            });
        }
        let work = || {
            once();
            pollers.iter().for_each(|poller| {
                poller.poll(Instant::now(), 8);
            });
            queue.drain(8);
        };
        let calls = trapped(work, |()| (0..2000).for_each(|_| work()));
        let end = Instant::now() + Duration::from_secs(60);
        while (done.load(SeqCst) < 1000 || received.load(SeqCst) < 100) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, SeqCst);
        calls
    });
    assert_eq!(calls, [], "{name}");
    assert!(done.load(SeqCst) >= 1000, "only {} completions", done.load(SeqCst));
    assert!(received.load(SeqCst) >= 100, "only {} messages", received.load(SeqCst));
    assert!(heard.load(SeqCst) > 0);

    // The way of a WR that makes no sense, into ERR and the flush, doesn't sleep either.
    let calls = trapped(
        || drop(hca.pollers()),
        |()| {
            let malformed = MalformedWqe { wr_id: 9, ticket: 0 };
            // Not of a QP with an SRQ: there the stub's device itself writes an event.
            let _ = a.post_malformed_send(malformed);
            let _ = a.post_send(&write);
            let _ = a.post_recv(&RecvWr { wr_id: 1, ticket: 0, sges: &sge });
            pollers.iter().for_each(|poller| {
                poller.poll(Instant::now(), 8);
            });
        },
    );
    assert_eq!(calls, [], "{name}");

    drop(shared);
    [a, b, c, d].iter().for_each(|qp| qp.destroy(&cx).unwrap());
    srq.destroy(&cx).unwrap();
    mr.dereg(&cx).unwrap();
    cq.destroy(&cx).unwrap();
    pd.dealloc(&cx).unwrap();
    context.dealloc(&cx).unwrap();
    midlayer.unregister_device(&cx, registration).unwrap();
    midlayer.unregister_client(&cx, client).unwrap();
}
