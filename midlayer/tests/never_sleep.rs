// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What may not sleep makes no system call that may block, under contention too. A trapped thread
//! calls every verb of the never-sleep set while others call the same ones on the same objects.

mod common;
#[path = "common/trap.rs"]
mod trap;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{CAP, LedgerHca, Loopback, Stage, connect, memory, send};
use rdma_midlayer::attr::AhAttr;
use rdma_midlayer::driver::{AsyncEvent, FmrAttr, Notify};
use rdma_midlayer::types::{Access, LKey, MwType, QpType, Qpn, RKey};
use rdma_midlayer::work::{MwBind, RecvWr, SendData};
use rdma_midlayer::{ContextSpec, CqSpec, MaySleep, QpSpec, rcu};
use trap::trapped;

/// Runs `f` on the trapped thread while two other threads run it as well.
fn contended(f: impl Fn() + Sync) -> Vec<i64> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    f();
                }
            });
        }
        // The first run allocates what a thread needs once.
        let calls = trapped(&f, |()| (0..2000).for_each(|_| f()));
        stop.store(true, SeqCst);
        calls
    })
}

#[test]
fn the_trap_catches_a_sleep_a_lock_that_waits_and_a_read() {
    let nap = |()| {
        // SAFETY: no memory is involved. Not `thread::sleep`, which panics if it can't.
        unsafe { libc::usleep(1000) };
    };
    let slept = trapped(|| (), nap);
    assert_eq!(slept, [libc::SYS_clock_nanosleep]);
    let lock = Arc::new(Mutex::new(()));
    let (held, wait) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let _guard = lock.lock().unwrap();
            held.store(true, SeqCst);
            while !wait.load(SeqCst) {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(20));
        });
        while !held.load(SeqCst) {
            thread::yield_now();
        }
        wait.store(true, SeqCst);
        let waited = trapped(|| (), |()| drop(lock.lock().unwrap()));
        assert!(waited.contains(&libc::SYS_futex), "{waited:?}");
    });
    let read = trapped(
        || std::fs::File::open("/dev/null").unwrap(),
        |mut file| {
            let _ = std::io::Read::read(&mut file, &mut [0]);
        },
    );
    assert!(read.contains(&libc::SYS_read), "{read:?}");
}

#[test]
fn the_data_path_makes_no_call_that_may_block() {
    let cx = MaySleep::claim().unwrap();
    let (stage, context, pd) = Stage::open(&cx, Loopback::new("hca"));
    let handler: rdma_midlayer::CompletionHandler = Box::new(|_| ());
    let spec = CqSpec { cqe: 4096, handler: Some(handler), ..CqSpec::default() };
    let cq = context.create_cq(&cx, spec).unwrap();
    let [a, b] = [0, 1].map(|_| pd.create_qp(&cx, QpSpec::new(QpType::Rc, &cq, CAP)).unwrap());
    connect(&cx, &a, &b);
    connect(&cx, &b, &a);
    let calls = contended(|| {
        let mut wcs = Vec::with_capacity(8);
        let _ = b.post_recv(&RecvWr { wr_id: 0, ticket: 0, sges: &[] });
        let _ = b.recv_posted();
        let _ = cq.req_notify_cq(Notify::Next);
        let _ = a.post_send(&send(0, SendData::Sges(&[])));
        let _ = a.post_send_list(&[send(1, SendData::Sges(&[])); 3]);
        let _ = cq.req_notify_cq(Notify::Solicited);
        let _ = cq.poll_cq(&mut wcs, 8);
    });
    assert_eq!(calls, []);
    a.destroy(&cx).unwrap();
    b.destroy(&cx).unwrap();
    cq.destroy(&cx).unwrap();
    stage.close(&cx, context, pd);
}

#[test]
fn address_handles_windows_and_fast_regions_make_no_call_that_may_block() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    let (stage, context, pd) = Stage::open(&cx, hca.clone());
    let cq = context.create_cq(&cx, CqSpec { cqe: 64, ..CqSpec::default() }).unwrap();
    let qp = pd.create_qp(&cx, QpSpec::new(QpType::Ud, &cq, CAP)).unwrap();
    let mw = pd.alloc_mw(&cx, MwType::Type1).unwrap();
    let attr = FmrAttr { max_pages: 4, max_maps: 2, page_shift: 12 };
    let fmr = pd.alloc_fmr(&cx, attr, Access::NONE).unwrap();
    let shared = pd.create_ah(&AhAttr::default()).unwrap();
    let pages = Arc::new(memory(0, 4096));
    let bind =
        MwBind { rkey: RKey(0), lkey: LKey(0), addr: 0, length: 8, access: Access::REMOTE_READ };
    let calls = contended(|| {
        let ah = pd.create_ah(&AhAttr::default()).unwrap();
        ah.modify(&AhAttr::default()).unwrap();
        shared.modify(&AhAttr::default()).unwrap();
        shared.query().unwrap();
        let wr = rdma_midlayer::work::SendWr {
            ud: Some(shared.dest(Qpn(1), 1).unwrap()),
            ..send(1, SendData::Sges(&[]))
        };
        qp.post_send(&wr).unwrap();
        mw.bind_mw(&qp, 1, 0, &bind).unwrap();
        fmr.map_phys_fmr(pages.clone()).unwrap();
        ah.destroy().unwrap();
    });
    assert_eq!(calls, []);
    drop(shared);
    mw.dealloc(&cx).unwrap();
    fmr.dealloc(&cx).unwrap();
    qp.destroy(&cx).unwrap();
    cq.destroy(&cx).unwrap();
    stage.close(&cx, context, pd);
}

#[test]
fn dispatch_event_and_completion_reports_make_no_call_that_may_block() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    let stage = Stage::new(&cx, hca.clone());
    let spec = ContextSpec { events: Some(Box::new(|_| ())), ..ContextSpec::default() };
    let context = stage.device.alloc_context(&cx, spec).unwrap();
    let handler: rdma_midlayer::CompletionHandler = Box::new(|_| ());
    let spec = CqSpec { cqe: 64, handler: Some(handler), ..CqSpec::default() };
    let cq = context.create_cq(&cx, spec).unwrap();
    let sink = hca.ledger.events.get().unwrap().clone();
    let events = hca.ledger.cqs.lock().unwrap()[0].clone();
    let stop = AtomicBool::new(false);
    let calls = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                sink.dispatch(AsyncEvent::PortErr(1));
                events.completed(true);
                thread::sleep(Duration::from_micros(200));
            }
        });
        let calls = trapped(
            || (),
            |()| {
                for _ in 0..200 {
                    sink.dispatch(AsyncEvent::PortActive(1));
                    cq.req_notify_cq(Notify::Next).unwrap();
                    if events.wanted() {
                        events.completed(false);
                    }
                }
            },
        );
        stop.store(true, SeqCst);
        calls
    });
    assert_eq!(calls, []);
    cq.destroy(&cx).unwrap();
    context.dealloc(&cx).unwrap();
    stage.end(&cx);
}

#[test]
fn entering_rcu_makes_no_call_that_may_block() {
    let calls = contended(|| drop(rcu::enter()));
    assert_eq!(calls, []);
}
