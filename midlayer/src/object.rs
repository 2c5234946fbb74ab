// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What all objects of a device have in common: their place in the device's list, who made them, and
//! how they are made and ended. The device's side of that too.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::attr::{DeviceAttr, PortAttr};
use crate::context::MaySleep;
use crate::driver::HcaDriver;
use crate::error::{Error, Result};
use crate::event::Events;
use crate::life::{Life, NotClosed};
use crate::rcu;
use crate::run_queue::Dispatcher;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, lock};

/// A registered device, as its objects see it.
pub(crate) struct DeviceShared {
    pub(crate) name: String,
    pub(crate) driver: Arc<dyn HcaDriver>,
    pub(crate) attr: DeviceAttr,
    /// Port 1 first. What doesn't change of them counts.
    pub(crate) ports: Vec<PortAttr>,
    pub(crate) events: Arc<Events>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    /// Verbs that may sleep are inside it.
    gate: Life,
    /// For verbs that never sleep, which look at it inside an RCU guard.
    gone: AtomicBool,
    /// By age: dependents come after what they depend on.
    objects: Mutex<BTreeMap<u64, Arc<dyn Object>>>,
    next_id: AtomicU64,
}

impl DeviceShared {
    pub(crate) fn new(
        driver: Arc<dyn HcaDriver>,
        attr: DeviceAttr,
        ports: Vec<PortAttr>,
        events: Arc<Events>,
        dispatcher: Arc<Dispatcher>,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: driver.name().to_owned(),
            driver,
            attr,
            ports,
            events,
            dispatcher,
            gate: Life::new(),
            gone: AtomicBool::new(false),
            objects: Mutex::new(BTreeMap::new()),
            next_id: AtomicU64::new(1),
        })
    }

    /// A verb that may sleep goes in.
    pub(crate) fn verb(&self, cx: &MaySleep) -> Result<DeviceVerb<'_>> {
        cx.check()?;
        if self.gate.enter() { Ok(DeviceVerb(self)) } else { Err(Error::Gone) }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// From the return on, no verb is in the driver and none will be. May sleep.
    pub(crate) fn shut(&self, cx: &MaySleep) {
        self.gone.store(true, Ordering::Release);
        // Closed already if the driver has reported the hardware lost.
        let _ = self.gate.force_close(cx);
        rcu::synchronize(cx);
    }

    /// Names what is left, and ends it in the driver, dependents first; the consumers' handles stay
    /// and answer `Gone`. The device is shut. May sleep.
    pub(crate) fn reclaim(&self, cx: &MaySleep) -> Vec<(Arc<str>, &'static str)> {
        let left = std::mem::take(&mut *lock(&self.objects));
        let mut names = Vec::new();
        for object in left.into_values().rev() {
            if let Err(error) = object.driver_destroy(cx) {
                log::error!("{}: destroying a leaked {}: {error}", self.name, object.base().kind);
            }
            object.quiesce(cx);
            // What a consumer has ended since the device was shut is not left behind.
            if object.base().life.is_open() {
                names.push((object.base().client.clone(), object.base().kind));
            }
        }
        names
    }
}

/// A verb that may sleep is inside the device.
pub(crate) struct DeviceVerb<'a>(&'a DeviceShared);

impl Drop for DeviceVerb<'_> {
    fn drop(&mut self) {
        self.0.gate.leave();
    }
}

/// An object that the device keeps in its list.
pub(crate) trait Object: Send + Sync + 'static {
    fn base(&self) -> &Base;

    /// Undoes the `hold` on what it depends on.
    fn release_uses(&self);

    /// Ends it in the driver.
    fn driver_destroy(&self, cx: &MaySleep) -> Result<()>;

    /// Returns when none of its handlers runs or will run. Called after `driver_destroy`.
    fn quiesce(&self, _cx: &MaySleep) {}
}

/// What each object begins with.
pub(crate) struct Base {
    id: u64,
    /// As a person would call it: "QP".
    pub(crate) kind: &'static str,
    /// Who made it.
    pub(crate) client: Arc<str>,
    pub(crate) device: Arc<DeviceShared>,
    pub(crate) life: Life,
}

impl Base {
    pub(crate) fn new(kind: &'static str, client: &Arc<str>, device: &Arc<DeviceShared>) -> Self {
        let id = device.next_id.fetch_add(1, Ordering::Relaxed);
        Self { id, kind, client: client.clone(), device: device.clone(), life: Life::new() }
    }

    /// A base for an object made from this one.
    pub(crate) fn child(&self, kind: &'static str) -> Self {
        Self::new(kind, &self.client, &self.device)
    }

    /// Number within the device, never used again.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// A verb that may sleep goes into the object.
    pub(crate) fn verb(&self, cx: &MaySleep) -> Result<Verb<'_>> {
        let device = self.device.verb(cx)?;
        if self.life.enter() { Ok(Verb { base: self, _device: device }) } else { Err(Error::Gone) }
    }

    /// A verb that never sleeps goes into the object; it is inside while the guard lives.
    #[inline]
    pub(crate) fn fast(&self) -> Result<rcu::Guard> {
        let guard = rcu::enter();
        if self.life.is_open() && !self.device.is_gone() { Ok(guard) } else { Err(Error::Gone) }
    }

    /// Checks that an object given as a parameter is of the same device.
    pub(crate) fn same_device(&self, other: &Base) -> Result<()> {
        if Arc::ptr_eq(&self.device, &other.device) {
            Ok(())
        } else {
            Err(Error::Invalid("an object of another device"))
        }
    }
}

/// A verb that may sleep is inside an object.
pub(crate) struct Verb<'a> {
    base: &'a Base,
    _device: DeviceVerb<'a>,
}

impl Drop for Verb<'_> {
    fn drop(&mut self) {
        self.base.life.leave();
    }
}

/// Counts a dependent on each of `uses`, or on none.
pub(crate) fn hold(uses: &[&Base]) -> Result<()> {
    for (n, used) in uses.iter().enumerate() {
        if !used.life.add_dependent() {
            release(&uses[..n]);
            return Err(Error::Gone);
        }
    }
    Ok(())
}

/// Undoes `hold`.
pub(crate) fn release(uses: &[&Base]) {
    uses.iter().for_each(|used| used.life.drop_dependent());
}

/// Makes an object: `make` calls the driver, `wrap` makes the handle, which releases the same `uses`.
pub(crate) fn create<D, T: Object>(
    cx: &MaySleep,
    device: &Arc<DeviceShared>,
    uses: &[&Base],
    make: impl FnOnce() -> Result<D>,
    wrap: impl FnOnce(D) -> T,
) -> Result<Arc<T>> {
    let _verb = device.verb(cx)?;
    // While it is made, it counts already: what it is made from can't be destroyed meanwhile.
    hold(uses)?;
    let made = make().inspect_err(|_| release(uses))?;
    let object = Arc::new(wrap(made));
    lock(&device.objects).insert(object.base().id, object.clone());
    Ok(object)
}

/// Ends an object. On an error it is as it was.
pub(crate) fn destroy(cx: &MaySleep, object: &dyn Object) -> Result<()> {
    cx.check()?;
    let base = object.base();
    base.life.close(cx).map_err(|e| match e {
        NotClosed::Used => Error::Busy(base.kind),
        NotClosed::Closed => Error::Gone,
    })?;
    // On a device that has gone there is nothing to end but the handle: the object stays on the list,
    // and `reclaim` ends it in the driver. Else the device can't go before it is off the list.
    let verb = base.device.verb(cx);
    if verb.is_ok() {
        // Verbs that never sleep, and saw the object open, are out after this.
        rcu::synchronize(cx);
        object.driver_destroy(cx).inspect_err(|_| base.life.reopen())?;
        object.quiesce(cx);
        lock(&base.device.objects).remove(&base.id);
    } else {
        object.quiesce(cx);
    }
    object.release_uses();
    Ok(())
}
