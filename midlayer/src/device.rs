// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device as one client holds it.

use std::sync::Arc;

use crate::attr::{DeviceAttr, PortAttr};
use crate::context::MaySleep;
use crate::driver::Poller;
use crate::error::Result;
use crate::event::{DeviceEnd, DeviceEventHandler};
use crate::object::{self, Base, DeviceShared, Object};
use crate::verbs::{Context, ContextSpec};

/// A device, as the midlayer gave it to a client: objects made from it count as that client's.
#[derive(Clone)]
pub struct Device {
    pub(crate) shared: Arc<DeviceShared>,
    pub(crate) client: Arc<str>,
}

impl Device {
    /// Its name, unique among registered devices.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Whether two handles are of the same device.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Limits and capabilities. May sleep.
    pub fn query_device(&self, cx: &MaySleep) -> Result<DeviceAttr> {
        let _verb = self.shared.verb(cx)?;
        self.shared.driver.query_device(cx)
    }

    /// State of a port; ports count from 1. May sleep.
    pub fn query_port(&self, cx: &MaySleep, port: u8) -> Result<PortAttr> {
        let _verb = self.shared.verb(cx)?;
        self.shared.driver.query_port(cx, port)
    }

    /// The parts of the HCA that need CPU time; see `HcaDriver::pollers`. Never sleeps.
    pub fn pollers(&self) -> Vec<Arc<dyn Poller>> {
        self.shared.driver.pollers()
    }

    /// A context. May sleep.
    pub fn alloc_context(&self, cx: &MaySleep, spec: ContextSpec) -> Result<Arc<Context>> {
        Context::alloc(cx, &self.shared, &self.client, spec)
    }

    /// From now on the handler gets every event of the device, its objects included. May sleep.
    pub fn register_event_handler(
        &self,
        cx: &MaySleep,
        handler: DeviceEventHandler,
    ) -> Result<Arc<EventRegistration>> {
        let base = Base::new("event handler", &self.client, &self.shared);
        let add = || Ok(self.shared.events.add_handler(handler));
        object::create(cx, &self.shared, &[], add, |end| EventRegistration { base, end })
    }
}

/// An event handler of a device.
pub struct EventRegistration {
    base: Base,
    end: Arc<DeviceEnd>,
}

impl EventRegistration {
    /// Returns when the handler neither runs nor will run. May sleep.
    ///
    /// # Errors
    /// `Gone` if that has been done before.
    pub fn unregister(&self, cx: &MaySleep) -> Result<()> {
        object::destroy(cx, self)
    }
}

impl Object for EventRegistration {
    fn base(&self) -> &Base {
        &self.base
    }

    fn release_uses(&self) {}

    fn driver_destroy(&self, _cx: &MaySleep) -> Result<()> {
        Ok(())
    }

    fn quiesce(&self, cx: &MaySleep) {
        self.base.device.events.remove_handler(cx, &self.end);
    }
}
