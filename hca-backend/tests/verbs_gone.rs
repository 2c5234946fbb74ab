// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The verbs HCA when its device goes and comes back. In a program of its own: the stub's devices are
//! the process's, and no other test is to miss one.

mod common;
mod verbs;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::*;
use hca_backend::verbs::{OpenError, Options, list, open};
use rdma_midlayer::attr::{QpAttr, QpAttrMask as M};
use rdma_midlayer::driver::{AsyncEvent, EventSink, HcaDriver};
use rdma_midlayer::types::*;
use rdma_midlayer::{Error, MaySleep};
use verbs::{devices, gids, opened, opened_with, options, stub};

/// Events of the device.
struct Heard(Mutex<Vec<AsyncEvent>>);

impl EventSink for Heard {
    fn dispatch(&self, event: AsyncEvent) {
        self.0.lock().unwrap().push(event);
    }
}

#[test]
fn a_device_that_goes_is_told_of_once_and_everything_ends_without_it() {
    let Some(stub) = stub() else { return };
    for device in devices() {
        let told = Arc::new(AtomicUsize::new(0));
        let died = {
            let (told, device) = (told.clone(), device.clone());
            move |name: &str| {
                assert_eq!(name, device);
                told.fetch_add(1, Ordering::SeqCst);
            }
        };
        let options = Options { gids: gids(&device), died: Some(Box::new(died)), ..options() };
        let lab = opened_with(&device, options);
        let heard = Arc::new(Heard(Mutex::default()));
        lab.verbs.set_event_sink(heard.clone());
        let (a, b) = lab.pair();
        let sges = [a.sge(0, 8)];
        let wr = a.wr(1, WrOpcode::RdmaWrite, &sges, &b, 0);
        a.qp.post_send(&wr).unwrap();
        lab.next(&a.send);
        stub.port_event(&device, verbs_stub::PortEvent::Err);
        stub.port_event(&device, verbs_stub::PortEvent::Active);
        stub.kill(&device, true);
        lab.wait("the news", || lab.verbs.is_dead().then_some(()));
        lab.wait("the callback", || (told.load(Ordering::SeqCst) == 1).then_some(()));
        assert_eq!(
            heard.0.lock().unwrap().drain(..).collect::<Vec<_>>(),
            [AsyncEvent::PortErr(1), AsyncEvent::PortActive(1), AsyncEvent::DeviceFatal]
        );
        let attr = QpAttr { state: QpState::Err, cur_state: QpState::Rts, ..a.attr };
        assert_eq!(a.qp.modify(&lab.cx, &attr, M::STATE), Err(Error::Gone));
        let refused = a.tenant.pd.reg_mr(&lab.cx, window(&a.ram, BASE, 0, 4096), REMOTE_ALL);
        assert!(refused.is_err());
        if device == "stub0" {
            assert_eq!(a.qp.post_send(&wr), Err(Error::Gone));
        }
        // Destroys succeed, and the driver lets go of everything.
        lab.end([a, b]);
        assert_eq!(told.load(Ordering::SeqCst), 1);
        let cx = MaySleep::claim().unwrap();
        let gone = open(&cx, &device, self::options()).err().unwrap();
        assert!(matches!(gone, OpenError::NoDevice { .. }), "{gone}");
        assert!(!list(Some(verbs_stub::Stub::path())).unwrap().contains(&device));
        // Back again, it works.
        stub.kill(&device, false);
        drop(cx);
        let lab = opened(&device);
        let (a, b) = lab.pair();
        a.qp.post_send(&a.wr(1, WrOpcode::RdmaWrite, &[a.sge(0, 8)], &b, 0)).unwrap();
        assert_eq!(lab.next(&a.send).status, WcStatus::Success);
        lab.end([a, b]);
    }
}
