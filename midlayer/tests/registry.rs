// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hot-plug: devices and clients that come and go, in every order that matters.

mod common;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{CAP, Hooks, LedgerHca, Loopback, recorder};
use rdma_midlayer::registry::UnregisterError;
use rdma_midlayer::types::{Gid, QpType};
use rdma_midlayer::{Client, ContextSpec, CqSpec, Device, Error, MaySleep, Midlayer, QpSpec};

const GROUP: Gid = Gid([0xff; 16]);

#[test]
fn clients_get_add_for_present_and_future_devices_and_remove_in_reverse_order() {
    let cx = MaySleep::claim().unwrap();
    let midlayer = Midlayer::new();
    let (log, client) = recorder();
    let a = midlayer.register_client(&cx, client("a")).unwrap();
    let first = midlayer.register_device(&cx, Loopback::new("first")).unwrap();
    let b = midlayer.register_client(&cx, client("b")).unwrap();
    let second = midlayer.register_device(&cx, Loopback::new("second")).unwrap();
    midlayer.unregister_device(&cx, first).unwrap();
    midlayer.unregister_client(&cx, a).unwrap();
    midlayer.unregister_device(&cx, second).unwrap();
    midlayer.unregister_client(&cx, b).unwrap();
    let log = log.lock().unwrap();
    assert_eq!(
        log.join(" "),
        "+a:first +b:first +a:second +b:second -b:first -a:first -a:second -b:second"
    );
}

#[test]
fn two_devices_of_one_name_are_refused() {
    let cx = MaySleep::claim().unwrap();
    let midlayer = Midlayer::new();
    let one = midlayer.register_device(&cx, Loopback::new("hca")).unwrap();
    let again = midlayer.register_device(&cx, Loopback::new("hca"));
    assert!(matches!(again, Err(Error::Busy(_))));
    midlayer.unregister_device(&cx, one).unwrap();
    let one = midlayer.register_device(&cx, Loopback::new("hca")).unwrap();
    midlayer.unregister_device(&cx, one).unwrap();
}

/// Makes a context and a PD in `add`, keeps them, and ends nothing in `remove`.
struct Leaky(Mutex<Vec<(Arc<rdma_midlayer::Context>, Arc<rdma_midlayer::Pd>)>>);

impl Client for Leaky {
    fn name(&self) -> &str {
        "leaky"
    }

    fn add(&self, cx: &MaySleep, device: &Device) {
        let context = device.alloc_context(cx, ContextSpec::default()).unwrap();
        let pd = context.alloc_pd(cx).unwrap();
        self.0.lock().unwrap().push((context, pd));
    }

    fn remove(&self, _cx: &MaySleep, _device: &Device) {}
}

#[test]
fn a_client_that_leaves_objects_behind_is_named_and_its_handles_answer_gone() {
    let cx = MaySleep::claim().unwrap();
    let midlayer = Midlayer::new();
    let leaky = Arc::new(Leaky(Mutex::new(Vec::new())));
    let client = midlayer.register_client(&cx, leaky.clone()).unwrap();
    let device = midlayer.register_device(&cx, Loopback::new("hca")).unwrap();
    let error = midlayer.unregister_device(&cx, device).unwrap_err();
    assert_eq!(error.to_string(), "hca: objects left behind by leaky: 1 PD, 1 context");
    assert!(matches!(error, UnregisterError::Leaked { .. }));
    let (context, pd) = leaky.0.lock().unwrap().pop().unwrap();
    assert_eq!(context.alloc_pd(&cx).err(), Some(Error::Gone));
    assert_eq!(context.dealloc(&cx), Err(Error::Busy("context")), "the order still counts");
    assert_eq!(pd.dealloc(&cx), Ok(()), "ends locally");
    assert_eq!(pd.dealloc(&cx), Err(Error::Gone));
    assert_eq!(context.dealloc(&cx), Ok(()));
    midlayer.unregister_client(&cx, client).unwrap();
}

/// Waits until a flag is set.
fn await_flag(flag: &AtomicBool) {
    common::until("the flag is set", || flag.load(SeqCst));
}

#[test]
fn a_device_that_leaves_during_a_clients_add_waits_for_it_and_then_calls_remove() {
    let cx = MaySleep::claim().unwrap();
    let midlayer = Midlayer::new();
    let device = midlayer.register_device(&cx, Loopback::new("hca")).unwrap();
    let (adding, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let log = Arc::new(Mutex::new(Vec::new()));
    let client = {
        let (adding, go, log, log2) = (adding.clone(), go.clone(), log.clone(), log.clone());
        Arc::new(Hooks {
            name: "slow",
            add: move |cx: &MaySleep, device: &Device| {
                adding.store(true, SeqCst);
                await_flag(&go);
                // The device works although it is leaving.
                let context = device.alloc_context(cx, ContextSpec::default()).unwrap();
                context.dealloc(cx).unwrap();
                log.lock().unwrap().push("added");
            },
            remove: move |_: &MaySleep, _: &Device| log2.lock().unwrap().push("removed"),
        })
    };
    let registering = thread::spawn({
        let midlayer = midlayer.clone();
        move || {
            let cx = MaySleep::claim().unwrap();
            let registration = midlayer.register_client(&cx, client).unwrap();
            midlayer.unregister_client(&cx, registration).unwrap();
        }
    });
    await_flag(&adding);
    let leaving = thread::spawn({
        let midlayer = midlayer.clone();
        move || midlayer.unregister_device(&MaySleep::claim().unwrap(), device).unwrap()
    });
    thread::sleep(Duration::from_millis(30));
    assert!(!leaving.is_finished(), "add has not returned");
    go.store(true, SeqCst);
    leaving.join().unwrap();
    registering.join().unwrap();
    assert_eq!(*log.lock().unwrap(), ["added", "removed"]);
}

#[test]
fn a_client_that_leaves_during_its_add_gets_remove_after_it_and_one_that_is_due_gets_nothing() {
    let cx = MaySleep::claim().unwrap();
    let midlayer = Midlayer::new();
    let (adding, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let log = Arc::new(Mutex::new(Vec::new()));
    let slow = {
        let (adding, go, log, log2) = (adding.clone(), go.clone(), log.clone(), log.clone());
        Arc::new(Hooks {
            name: "slow",
            add: move |_: &MaySleep, _: &Device| {
                adding.store(true, SeqCst);
                await_flag(&go);
                log.lock().unwrap().push("+slow");
            },
            remove: move |_: &MaySleep, _: &Device| log2.lock().unwrap().push("-slow"),
        })
    };
    let due = {
        let (log, log2) = (log.clone(), log.clone());
        Arc::new(Hooks {
            name: "due",
            add: move |_: &MaySleep, _: &Device| log.lock().unwrap().push("+due"),
            remove: move |_: &MaySleep, _: &Device| log2.lock().unwrap().push("-due"),
        })
    };
    let slow = midlayer.register_client(&cx, slow).unwrap();
    let due = midlayer.register_client(&cx, due).unwrap();
    let registering = thread::spawn({
        let midlayer = midlayer.clone();
        move || {
            let cx = MaySleep::claim().unwrap();
            midlayer.register_device(&cx, Loopback::new("hca")).unwrap()
        }
    });
    await_flag(&adding);
    midlayer.unregister_client(&cx, due).unwrap();
    let leaving = thread::spawn({
        let midlayer = midlayer.clone();
        move || midlayer.unregister_client(&MaySleep::claim().unwrap(), slow).unwrap()
    });
    thread::sleep(Duration::from_millis(30));
    assert!(!leaving.is_finished(), "add has not returned");
    go.store(true, SeqCst);
    leaving.join().unwrap();
    let device = registering.join().unwrap();
    midlayer.unregister_device(&cx, device).unwrap();
    assert_eq!(*log.lock().unwrap(), ["+slow", "-slow"]);
}

#[test]
fn callbacks_hold_no_lock_they_may_register_and_unregister_others() {
    let cx = MaySleep::claim().unwrap();
    let midlayer = Midlayer::new();
    let (log, client) = recorder();
    let inner = Arc::new(Mutex::new(None));
    let nested = {
        let (midlayer, inner, late) = (midlayer.clone(), inner.clone(), client("late"));
        let (midlayer2, inner2) = (midlayer.clone(), inner.clone());
        Arc::new(Hooks {
            name: "nested",
            add: move |cx: &MaySleep, device: &Device| {
                if device.name() == "outer" {
                    let below = midlayer.register_device(cx, Loopback::new("below")).unwrap();
                    let late = midlayer.register_client(cx, late.clone()).unwrap();
                    *inner.lock().unwrap() = Some((below, late));
                }
            },
            remove: move |cx: &MaySleep, device: &Device| {
                if device.name() == "outer" {
                    let (below, late) = inner2.lock().unwrap().take().unwrap();
                    midlayer2.unregister_device(cx, below).unwrap();
                    midlayer2.unregister_client(cx, late).unwrap();
                }
            },
        })
    };
    let nested = midlayer.register_client(&cx, nested).unwrap();
    let outer = midlayer.register_device(&cx, Loopback::new("outer")).unwrap();
    midlayer.unregister_device(&cx, outer).unwrap();
    midlayer.unregister_client(&cx, nested).unwrap();
    let mut log = log.lock().unwrap().clone();
    log.sort();
    assert_eq!(log.join(" "), "+late:below +late:outer -late:below -late:outer");
}

#[test]
fn a_callback_that_would_wait_for_itself_is_refused_and_keeps_the_registration() {
    let cx = MaySleep::claim().unwrap();
    let midlayer = Midlayer::new();
    let own = Arc::new(Mutex::new(None::<rdma_midlayer::ClientRegistration>));
    let refused = Arc::new(AtomicBool::new(false));
    let client = {
        let (midlayer, own, refused) = (midlayer.clone(), own.clone(), refused.clone());
        Arc::new(Hooks {
            name: "suicidal",
            add: move |cx: &MaySleep, _: &Device| {
                let registration = own.lock().unwrap().take().unwrap();
                let answer = midlayer.unregister_client(cx, registration).unwrap_err();
                refused.store(matches!(answer.error, Error::Busy(_)), SeqCst);
                *own.lock().unwrap() = Some(answer.registration);
            },
            remove: |_: &MaySleep, _: &Device| {},
        })
    };
    let registration = midlayer.register_client(&cx, client).unwrap();
    *own.lock().unwrap() = Some(registration);
    let device = midlayer.register_device(&cx, Loopback::new("hca")).unwrap();
    assert!(refused.load(SeqCst));
    midlayer.unregister_device(&cx, device).unwrap();
    midlayer.unregister_client(&cx, own.lock().unwrap().take().unwrap()).unwrap();
}

#[test]
fn two_devices_come_and_go_at_once_and_every_add_has_its_remove() {
    let midlayer = Midlayer::new();
    let (log, client) = recorder();
    let cx = MaySleep::claim().unwrap();
    let first = midlayer.register_client(&cx, client("first")).unwrap();
    let movers: Vec<_> = ["one", "two"]
        .map(|name| {
            let midlayer = midlayer.clone();
            thread::spawn(move || {
                let cx = MaySleep::claim().unwrap();
                for _ in 0..100 {
                    let device = midlayer.register_device(&cx, Loopback::new(name)).unwrap();
                    midlayer.unregister_device(&cx, device).unwrap();
                }
            })
        })
        .into_iter()
        .collect();
    for _ in 0..100 {
        let second = midlayer.register_client(&cx, client("second")).unwrap();
        midlayer.unregister_client(&cx, second).unwrap();
    }
    movers.into_iter().for_each(|mover| mover.join().unwrap());
    midlayer.unregister_client(&cx, first).unwrap();
    // For each client and device, adds and removes take turns and end with a remove.
    let log = log.lock().unwrap();
    for pair in ["first:one", "first:two", "second:one", "second:two"] {
        let signs: Vec<_> = log.iter().filter(|l| &l[1..] == pair).map(|l| &l[..1]).collect();
        let turns = signs.chunks(2).all(|turn| turn == ["+", "-"]);
        assert!(turns, "{pair}: {signs:?}");
        if pair.starts_with("first") {
            assert_eq!(signs.len(), 200, "{pair}");
        }
    }
}

#[test]
fn a_device_whose_hardware_is_lost_answers_gone_and_remove_can_still_clean_up() {
    let cx = MaySleep::claim().unwrap();
    let midlayer = Midlayer::new();
    let hca = LedgerHca::new("hca");
    let kept = Arc::new(Mutex::new(None));
    let cleaned = Arc::new(AtomicBool::new(false));
    let client = {
        let (kept, kept2, cleaned) = (kept.clone(), kept.clone(), cleaned.clone());
        Arc::new(Hooks {
            name: "tidy",
            add: move |cx: &MaySleep, device: &Device| {
                let context = device.alloc_context(cx, ContextSpec::default()).unwrap();
                let pd = context.alloc_pd(cx).unwrap();
                let ah = pd.create_ah(&Default::default()).unwrap();
                let cq = context.create_cq(cx, CqSpec { cqe: 4, ..CqSpec::default() }).unwrap();
                let qp = pd.create_qp(cx, QpSpec::new(QpType::Ud, &cq, CAP)).unwrap();
                qp.attach_mcast(cx, &GROUP, 0).unwrap();
                *kept.lock().unwrap() = Some((context, pd, ah, cq, qp));
            },
            remove: move |cx: &MaySleep, device: &Device| {
                let (context, pd, ah, cq, qp) = kept2.lock().unwrap().take().unwrap();
                assert_eq!(device.query_device(cx).err(), Some(Error::Gone));
                assert_eq!(context.alloc_pd(cx).err(), Some(Error::Gone));
                assert_eq!(ah.query().err(), Some(Error::Gone));
                ah.destroy().unwrap();
                qp.detach_mcast(cx, &GROUP, 0).unwrap();
                qp.destroy(cx).unwrap();
                cq.destroy(cx).unwrap();
                pd.dealloc(cx).unwrap();
                context.dealloc(cx).unwrap();
                cleaned.store(true, SeqCst);
            },
        })
    };
    let client = midlayer.register_client(&cx, client).unwrap();
    let device = midlayer.register_device(&cx, hca.clone()).unwrap();
    device.lost(&cx).unwrap();
    midlayer.unregister_device(&cx, device).unwrap();
    assert!(cleaned.load(SeqCst));
    midlayer.unregister_client(&cx, client).unwrap();
    hca.ledger.assert_kept();
}

#[test]
fn an_unregistered_device_has_ended_what_was_left_behind_in_the_driver() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    let stage = common::Stage::new(&cx, hca.clone());
    let context = stage.device.alloc_context(&cx, ContextSpec::default()).unwrap();
    let cq = context.create_cq(&cx, CqSpec { cqe: 4, ..CqSpec::default() }).unwrap();
    let _handler = stage.device.register_event_handler(&cx, Box::new(|_, _| ())).unwrap();
    let told = stage.tear(&cx);
    assert_eq!(told, "hca: objects left behind by keeper: 1 CQ, 1 context, 1 event handler");
    assert_eq!(hca.ledger.all_live(), 0);
    assert_eq!(cq.poll_cq(&mut Vec::new(), 1), Err(Error::Gone));
    assert_eq!(cq.destroy(&cx), Ok(()));
    hca.ledger.assert_kept();
}

#[test]
fn unregister_device_waits_for_a_verb_that_is_inside() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    hca.ledger.linger.store(20_000_000, SeqCst);
    let stage = common::Stage::new(&cx, hca.clone());
    let context = stage.device.alloc_context(&cx, ContextSpec::default()).unwrap();
    let started = Arc::new(AtomicBool::new(false));
    let user = thread::spawn({
        let (context, started) = (context.clone(), started.clone());
        move || {
            let cx = MaySleep::claim().unwrap();
            started.store(true, SeqCst);
            context.suspend(&cx)
        }
    });
    await_flag(&started);
    while hca.ledger.calls.load(SeqCst) == 0 {
        thread::yield_now();
    }
    stage.tear(&cx);
    assert_eq!(user.join().unwrap(), Ok(()));
    // The context was ended after the verb, or the ledger would say so.
    hca.ledger.assert_kept();
    assert_eq!(hca.ledger.all_live(), 0);
}
