// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hot-plug: devices and clients that come and go, in every order that matters.

mod common;

use std::sync::{Arc, Mutex};

use common::{Loopback, recorder};
use rdma_midlayer::registry::UnregisterError;
use rdma_midlayer::{Client, ContextSpec, Device, Error, MaySleep, Midlayer};

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
