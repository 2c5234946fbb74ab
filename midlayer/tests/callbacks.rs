// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Callbacks: completion handlers and event handlers run later and elsewhere, one at a time, in order,
//! and not after their object has ended.

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use common::{CAP, LONG, LedgerHca, Loopback, Stage, connect, memory, send, until};
use rdma_midlayer::driver::{AsyncEvent, CqMemory, Notify, Overflow, Waker};
use rdma_midlayer::types::{Access, Cqn, QpType, Qpn};
use rdma_midlayer::work::{RecvWr, SendData, SendFlags, WorkCompletion};
use rdma_midlayer::{
    Context, ContextSpec, Cq, CqSpec, Error, MaySleep, Mr, Pd, Qp, QpSpec, RunQueue,
};

struct Nobody;

impl Waker for Nobody {
    fn wake(&self) {}
}

/// Two connected QPs, a CQ for what is sent and one for what is received.
struct Pair {
    context: Arc<Context>,
    pd: Arc<Pd>,
    send_cq: Arc<Cq>,
    recv_cq: Arc<Cq>,
    qps: [Arc<Qp>; 2],
    mr: Arc<Mr>,
}

impl Pair {
    fn new(cx: &MaySleep, stage: &Stage, context: ContextSpec, recv_cq: CqSpec) -> Self {
        let context = stage.device.alloc_context(cx, context).unwrap();
        let pd = context.alloc_pd(cx).unwrap();
        let send_cq = context.create_cq(cx, CqSpec { cqe: 64, ..CqSpec::default() }).unwrap();
        let recv_cq = context.create_cq(cx, recv_cq).unwrap();
        let qps = [0, 1].map(|_| {
            let spec =
                QpSpec { recv_cq: recv_cq.clone(), ..QpSpec::new(QpType::Rc, &send_cq, CAP) };
            pd.create_qp(cx, spec).unwrap()
        });
        connect(cx, &qps[0], &qps[1]);
        connect(cx, &qps[1], &qps[0]);
        let mr = pd.reg_mr(cx, memory(0, 64), Access::LOCAL_WRITE).unwrap();
        Self { context, pd, send_cq, recv_cq, qps, mr }
    }

    /// One message, whose receive completion comes from inside `post_send`.
    fn message(&self, solicited: bool) {
        self.qps[1].post_recv(&RecvWr { wr_id: 1, ticket: 0, sges: &[] }).unwrap();
        let mut wr = send(2, SendData::Sges(&[]));
        wr.flags = if solicited { SendFlags::SOLICITED } else { SendFlags::default() };
        self.qps[0].post_send(&wr).unwrap();
    }

    fn end(self, cx: &MaySleep) {
        self.mr.dereg(cx).unwrap();
        self.qps.iter().for_each(|qp| qp.destroy(cx).unwrap());
        self.send_cq.destroy(cx).unwrap();
        match self.recv_cq.destroy(cx) {
            Ok(()) | Err(Error::Gone) => {}
            Err(error) => panic!("{error}"),
        }
        self.pd.dealloc(cx).unwrap();
        self.context.dealloc(cx).unwrap();
    }
}

fn on(queue: &Arc<RunQueue>) -> ContextSpec {
    ContextSpec { run_queues: vec![queue.clone()], ..ContextSpec::default() }
}

fn cq(handler: impl Fn(bool) + Send + Sync + 'static) -> CqSpec {
    CqSpec { cqe: 64, handler: Some(Box::new(handler)), ..CqSpec::default() }
}

#[test]
fn no_handler_runs_inside_a_verb_but_when_the_worker_drains() {
    let cx = MaySleep::claim().unwrap();
    let stage = Stage::new(&cx, Loopback::new("hca"));
    let queue = RunQueue::new(Arc::new(Nobody));
    let calls = Arc::new(AtomicUsize::new(0));
    let handler = {
        let calls = calls.clone();
        move |_| {
            calls.fetch_add(1, SeqCst);
        }
    };
    let pair = Pair::new(&cx, &stage, on(&queue), cq(handler));
    assert!(!pair.recv_cq.req_notify_cq(Notify::Next).unwrap());
    pair.message(false);
    assert_eq!(calls.load(SeqCst), 0, "in the call chain of post_send");
    assert_eq!(queue.drain(9).ran, 1);
    pair.message(false);
    assert_eq!((queue.drain(9).ran, calls.load(SeqCst)), (0, 1), "not armed again");
    assert!(pair.recv_cq.req_notify_cq(Notify::Next).unwrap(), "missed events are told");
    pair.end(&cx);
    stage.end(&cx);
}

#[test]
fn a_solicited_arm_lets_only_a_solicited_completion_through() {
    let cx = MaySleep::claim().unwrap();
    let stage = Stage::new(&cx, Loopback::new("hca"));
    let queue = RunQueue::new(Arc::new(Nobody));
    let pair = Pair::new(&cx, &stage, on(&queue), cq(|solicited| assert!(solicited)));
    pair.recv_cq.req_notify_cq(Notify::Solicited).unwrap();
    pair.message(false);
    assert_eq!(queue.drain(9).ran, 0);
    pair.message(true);
    assert_eq!(queue.drain(9).ran, 1);
    pair.end(&cx);
    stage.end(&cx);
}

#[test]
fn a_handler_may_call_every_verb_that_never_sleeps_and_none_that_may() {
    let cx = MaySleep::claim().unwrap();
    let stage = Stage::new(&cx, Loopback::new("hca"));
    let (sender, receiver) = channel();
    let me: Arc<OnceLock<Arc<Cq>>> = Arc::default();
    let handler = {
        let me = me.clone();
        let sender = Mutex::new(sender);
        move |_| {
            let cq = me.get().unwrap();
            let mut wcs = Vec::new();
            let polled = cq.poll_cq(&mut wcs, 9).unwrap();
            let missed = cq.req_notify_cq(Notify::Next).unwrap();
            let token = MaySleep::claim().is_some();
            sender.lock().unwrap().send((polled, missed, token)).unwrap();
        }
    };
    let pair = Pair::new(&cx, &stage, ContextSpec::default(), cq(handler));
    me.set(pair.recv_cq.clone()).ok().unwrap();
    pair.recv_cq.req_notify_cq(Notify::Next).unwrap();
    for _ in 0..3 {
        pair.message(false);
        let told = receiver.recv_timeout(LONG).unwrap();
        assert_eq!(told, (1, false, false));
    }
    pair.end(&cx);
    stage.end(&cx);
}

#[test]
fn a_token_smuggled_into_a_handler_is_refused_by_every_verb_that_may_sleep() {
    thread_local! {
        static SMUGGLED: std::cell::RefCell<Option<MaySleep>> = const { std::cell::RefCell::new(None) };
    }
    // This thread drains, so its token is at hand in the handler.
    let cx = MaySleep::claim().unwrap();
    let stage = Stage::new(&cx, Loopback::new("hca"));
    let queue = RunQueue::new(Arc::new(Nobody));
    let answer = Arc::new(Mutex::new(None));
    let me: Arc<OnceLock<Arc<Context>>> = Arc::default();
    let handler = {
        let (me, answer) = (me.clone(), answer.clone());
        move |_| {
            SMUGGLED.with_borrow(|token| {
                let created = me.get().unwrap().alloc_pd(token.as_ref().unwrap()).err();
                *answer.lock().unwrap() = created;
            });
        }
    };
    let pair = Pair::new(&cx, &stage, on(&queue), cq(handler));
    me.set(pair.context.clone()).ok().unwrap();
    pair.recv_cq.req_notify_cq(Notify::Next).unwrap();
    pair.message(false);
    SMUGGLED.set(Some(cx));
    queue.drain(1);
    let cx = SMUGGLED.take().unwrap();
    assert!(matches!(*answer.lock().unwrap(), Some(Error::NotPermitted(_))));
    pair.end(&cx);
    stage.end(&cx);
}

#[test]
fn handlers_of_different_vectors_run_in_parallel() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    let stage = Stage::new(&cx, hca.clone());
    let context = stage.device.alloc_context(&cx, ContextSpec::default()).unwrap();
    // Each handler waits for the other one: one after the other they'd never end.
    let meeting = Arc::new(Barrier::new(2));
    let (sender, receiver) = channel();
    let cqs = [0, 1].map(|vector| {
        let (meeting, sender) = (meeting.clone(), Mutex::new(sender.clone()));
        let handler = move |_| {
            meeting.wait();
            sender.lock().unwrap().send(()).unwrap();
        };
        let cq = context.create_cq(&cx, CqSpec { vector, ..cq(handler) }).unwrap();
        cq.req_notify_cq(Notify::Next).unwrap();
        cq
    });
    hca.ledger.cqs.lock().unwrap().iter().for_each(|cq| cq.completed(false));
    for _ in 0..2 {
        receiver.recv_timeout(LONG).unwrap();
    }
    cqs.iter().for_each(|cq| cq.destroy(&cx).unwrap());
    context.dealloc(&cx).unwrap();
    stage.end(&cx);
}

#[test]
fn destroy_cq_returns_after_the_handler_that_runs_and_no_other_starts() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    let stage = Stage::new(&cx, hca.clone());
    let context = stage.device.alloc_context(&cx, ContextSpec::default()).unwrap();
    let (entered, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (entered, ended) = (entered.clone(), ended.clone());
        move |_| {
            entered.store(true, SeqCst);
            // Long for a handler: the other thread must be waiting in destroy.
            thread::sleep(Duration::from_millis(50));
            ended.fetch_add(1, SeqCst);
        }
    };
    let cq = context.create_cq(&cx, cq(handler)).unwrap();
    let events = hca.ledger.cqs.lock().unwrap()[0].clone();
    cq.req_notify_cq(Notify::Next).unwrap();
    events.completed(false);
    until("the handler runs", || entered.load(SeqCst));
    cq.req_notify_cq(Notify::Next).unwrap();
    events.completed(false);
    cq.destroy(&cx).unwrap();
    let then = ended.load(SeqCst);
    assert!(then >= 1, "destroy did not wait");
    // A driver that reports late does no harm.
    events.completed(false);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(ended.load(SeqCst), then);
    context.dealloc(&cx).unwrap();
    stage.end(&cx);
}

/// A CQ of four completions in consumer memory.
#[derive(Default)]
struct Ring(Mutex<Vec<u64>>);

impl CqMemory for Ring {
    fn push(&self, wc: &WorkCompletion) -> Result<(), Overflow> {
        let mut ring = self.0.lock().unwrap();
        if ring.len() == 4 {
            return Err(Overflow);
        }
        ring.push(wc.wr_id);
        Ok(())
    }
}

#[test]
fn a_cq_in_consumer_memory_calls_its_handler_after_each_burst_and_overflows_into_an_event() {
    let cx = MaySleep::claim().unwrap();
    let stage = Stage::new(&cx, Loopback::new("hca"));
    let queue = RunQueue::new(Arc::new(Nobody));
    let (sender, receiver) = channel();
    let ring = Arc::new(Ring::default());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let (ring, seen) = (ring.clone(), seen.clone());
        move |solicited| seen.lock().unwrap().push((ring.0.lock().unwrap().len(), solicited))
    };
    let context = ContextSpec { events: Some(to(sender)), ..on(&queue) };
    let spec = CqSpec { memory: Some(ring.clone()), ..cq(handler) };
    let pair = Pair::new(&cx, &stage, context, spec);
    pair.message(false);
    pair.message(true);
    queue.drain(9);
    pair.message(false);
    queue.drain(9);
    assert_eq!(*seen.lock().unwrap(), [(2, true), (3, false)]);
    assert!(matches!(pair.recv_cq.poll_cq(&mut Vec::new(), 1), Err(Error::Unsupported(_))));
    assert!(matches!(pair.recv_cq.req_notify_cq(Notify::Next), Err(Error::Unsupported(_))));
    pair.message(false);
    pair.message(false);
    let event = receiver.recv_timeout(LONG).unwrap();
    assert_eq!(event, AsyncEvent::CqErr(pair.recv_cq.cqn()));
    pair.end(&cx);
    stage.end(&cx);
}

fn to(sender: Sender<AsyncEvent>) -> rdma_midlayer::EventHandler {
    let sender = Mutex::new(sender);
    Box::new(move |event| sender.lock().unwrap().send(event).unwrap())
}

#[test]
fn events_reach_every_handler_in_the_order_of_dispatch() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    let stage = Stage::new(&cx, hca.clone());
    let (sender, receiver) = channel();
    let spec = ContextSpec { events: Some(to(sender)), ..ContextSpec::default() };
    let context = stage.device.alloc_context(&cx, spec).unwrap();
    let (all_sender, all) = channel();
    let all_sender = Mutex::new(all_sender);
    let (go, wait) = channel();
    let (wait, held_up) = (Mutex::new(wait), Mutex::new(false));
    let handler = stage
        .device
        .register_event_handler(
            &cx,
            Box::new(move |from, event| {
                if !std::mem::replace(&mut *held_up.lock().unwrap(), true) {
                    wait.lock().unwrap().recv().unwrap();
                }
                all_sender.lock().unwrap().send((from, event)).unwrap();
            }),
        )
        .unwrap();
    let sink = hca.ledger.events.get().unwrap().clone();
    let events = [
        AsyncEvent::QpFatal(Qpn(1)),
        AsyncEvent::CqErr(Cqn(2)),
        AsyncEvent::SrqLimitReached(rdma_midlayer::types::Srqn(3)),
        AsyncEvent::PortErr(1),
        AsyncEvent::GidChange(1),
        AsyncEvent::DeviceFatal,
    ];
    // More than the pool holds, while the first one holds the others up.
    for n in 0..1000 {
        sink.dispatch(events[n % events.len()]);
    }
    go.send(()).unwrap();
    for n in 0..1000 {
        let want = events[n % events.len()];
        assert_eq!(receiver.recv_timeout(LONG).unwrap(), want);
        let got = all.recv_timeout(LONG).unwrap();
        assert_eq!(got, (Some(context.id()), want));
    }
    handler.unregister(&cx).unwrap();
    sink.dispatch(AsyncEvent::DeviceFatal);
    receiver.recv_timeout(LONG).unwrap();
    assert!(all.try_recv().is_err(), "after unregister");
    context.dealloc(&cx).unwrap();
    sink.dispatch(AsyncEvent::DeviceFatal);
    assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err(), "after dealloc");
    stage.end(&cx);
}

#[test]
fn an_event_of_the_device_reaches_every_context() {
    let cx = MaySleep::claim().unwrap();
    let hca = Loopback::new("hca");
    let stage = Stage::new(&cx, hca.clone());
    let contexts = [0, 1].map(|_| {
        let (sender, receiver) = channel();
        let spec = ContextSpec { events: Some(to(sender)), ..ContextSpec::default() };
        (stage.device.alloc_context(&cx, spec).unwrap(), receiver)
    });
    hca.events.get().unwrap().dispatch(AsyncEvent::PortActive(1));
    for (context, receiver) in contexts {
        let event = receiver.recv_timeout(LONG).unwrap();
        assert_eq!(event, AsyncEvent::PortActive(1));
        context.dealloc(&cx).unwrap();
    }
    stage.end(&cx);
}

#[test]
fn an_event_is_not_delivered_in_the_call_chain_of_dispatch_nor_after_its_object_has_ended() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    let stage = Stage::new(&cx, hca.clone());
    let delivered = Arc::new(AtomicUsize::new(0));
    let handler = {
        let (delivered, me) = (delivered.clone(), thread::current().id());
        move |_| {
            assert_ne!(thread::current().id(), me, "in the call chain");
            thread::sleep(Duration::from_millis(20));
            delivered.fetch_add(1, SeqCst);
        }
    };
    let spec = ContextSpec { events: Some(Box::new(handler)), ..ContextSpec::default() };
    let context = stage.device.alloc_context(&cx, spec).unwrap();
    let cq = context.create_cq(&cx, CqSpec { cqe: 1, ..CqSpec::default() }).unwrap();
    for _ in 0..3 {
        hca.ledger.events.get().unwrap().dispatch(AsyncEvent::CqErr(cq.cqn()));
    }
    cq.destroy(&cx).unwrap();
    assert_eq!(delivered.load(SeqCst), 3, "all its events came before destroy returned");
    context.dealloc(&cx).unwrap();
    stage.end(&cx);
}
