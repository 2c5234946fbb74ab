// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices and clients find each other (`core_locking`, "Hot-plug"). What a device is made of is in
//! `object`, `device` and `verbs`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::context::MaySleep;
use crate::device::Device;
use crate::driver::{EventSink, HcaDriver};
use crate::error::{Error, Result};
use crate::event::{Events, Sink};
use crate::object::DeviceShared;
use crate::run_queue::Dispatcher;
use crate::sync::{Condvar, Mutex, MutexGuard, lock, wait};

/// A consumer of the midlayer (`struct ib_client`).
///
/// Both callbacks may sleep, are called without any lock held, and may call back into the midlayer:
/// verbs, and registration of devices and of other clients. They don't run at once for one device.
pub trait Client: Send + Sync + 'static {
    /// Its name, for errors and logs.
    fn name(&self) -> &str;

    /// There is a device, usable from now until `remove` has returned.
    fn add(&self, cx: &MaySleep, device: &Device);

    /// The device leaves, or the client does. Until the return the device works, unless the hardware
    /// was lost; what the client has made of it must have ended when this returns.
    fn remove(&self, cx: &MaySleep, device: &Device);
}

/// The midlayer: devices below, clients above.
#[derive(Clone)]
pub struct Midlayer {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// A pair has changed, or a device or client has left.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    next_id: u64,
    devices: BTreeMap<DeviceId, Arc<DeviceShared>>,
    /// In the order of registration.
    clients: BTreeMap<ClientId, Arc<ClientEntry>>,
    /// A client and a device that know each other, or will.
    pairs: BTreeMap<PairId, Pair>,
    dispatcher: Option<Arc<Dispatcher>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct DeviceId(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ClientId(u64);

type PairId = (DeviceId, ClientId);

struct ClientEntry {
    client: Arc<dyn Client>,
    name: Arc<str>,
}

struct Pair {
    stage: Stage,
    device: Arc<DeviceShared>,
    client: Arc<ClientEntry>,
}

/// How far a client has come with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// `add` will be called, by whoever made the pair.
    Due,
    /// `add` runs.
    Adding,
    /// `add` has returned.
    Added,
    /// `remove` runs.
    Removing,
}

/// A registered device. To be given back to `unregister_device`.
#[must_use = "the device stays registered until unregister_device"]
pub struct Registration {
    id: DeviceId,
    device: Arc<DeviceShared>,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registration({})", self.device.name)
    }
}

impl Registration {
    /// Where the driver may report events of the device as a whole; the same as
    /// `HcaDriver::set_event_sink` got.
    pub fn events(&self) -> Arc<dyn EventSink> {
        device_sink(&self.device)
    }

    /// The hardware has gone without a warning. From the return on no method of the driver is called
    /// any more but to end objects, and verbs answer `Gone`; `unregister_device` comes next. May
    /// sleep.
    ///
    /// # Errors
    /// `NotPermitted` inside a handler.
    pub fn lost(&self, cx: &MaySleep) -> Result<()> {
        cx.check()?;
        self.device.shut(cx);
        Ok(())
    }
}

/// A registered client. To be given back to `unregister_client`.
#[must_use = "the client stays registered until unregister_client"]
#[derive(Debug)]
pub struct ClientRegistration {
    id: ClientId,
}

/// What a client had not ended when its `remove` returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The client's name.
    pub client: String,
    /// The kinds of the objects, and how many of each.
    pub objects: BTreeMap<&'static str, usize>,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.client)?;
        for (n, (kind, count)) in self.objects.iter().enumerate() {
            write!(f, "{}{count} {kind}", if n == 0 { ": " } else { ", " })?;
        }
        Ok(())
    }
}

/// Nothing was done: the caller may not, here. The registration comes back.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused<R> {
    /// Why.
    pub error: Error,
    /// As it was given.
    pub registration: R,
}

/// What was wrong when a device was unregistered.
#[derive(Debug, thiserror::Error)]
pub enum UnregisterError {
    /// Clients left objects behind. The device is unregistered; the objects were ended in the driver,
    /// and their handles answer `Gone`.
    #[error("{device}: objects left behind by {}", list(leaks))]
    Leaked {
        /// The device's name.
        device: String,
        /// By client.
        leaks: Vec<Leak>,
    },
    /// Nothing was done.
    #[error("{0}")]
    Refused(Refused<Registration>),
}

fn list(leaks: &[Leak]) -> String {
    leaks.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Ports beyond are not looked for.
const MAX_PORTS: u8 = 16;

thread_local! {
    /// The callbacks that the thread is in: they can't be waited for here.
    static CALLBACKS: RefCell<Vec<PairId>> = const { RefCell::new(Vec::new()) };
}

impl Default for Midlayer {
    fn default() -> Self {
        Self::new()
    }
}

impl Midlayer {
    /// A midlayer without devices or clients.
    pub fn new() -> Self {
        let state = Mutex::new(State::default());
        Self { inner: Arc::new(Inner { state, changed: Condvar::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.inner.state)
    }

    /// A device is ready: all its initialisation is done. Returns when every client has been told.
    /// May sleep; no lock is held while clients' `add` runs.
    ///
    /// # Errors
    /// `Busy` if the name is taken; the driver's error if it can't say what it is.
    pub fn register_device(
        &self,
        cx: &MaySleep,
        driver: Arc<dyn HcaDriver>,
    ) -> Result<Registration> {
        cx.check()?;
        let attr = driver.query_device(cx)?;
        let mut ports = Vec::new();
        for port in 1..=MAX_PORTS {
            match driver.query_port(cx, port) {
                Ok(attr) => ports.push(attr),
                Err(error) if port == 1 => return Err(error),
                Err(_) => break,
            }
        }
        let dispatcher = self.dispatcher()?;
        let events = Events::new(dispatcher.queues()[0].clone());
        let device = DeviceShared::new(driver, attr, ports, events, dispatcher);
        device.driver.set_event_sink(device_sink(&device));

        let mut state = self.lock();
        if state.devices.values().any(|other| other.name == device.name) {
            return Err(Error::Busy("a device of this name"));
        }
        let id = DeviceId(state.new_id());
        state.devices.insert(id, device.clone());
        let clients: Vec<_> = state.clients.iter().map(|(&id, c)| (id, c.clone())).collect();
        let due: Vec<_> = clients
            .into_iter()
            .map(|(client, entry)| state.pair((id, client), &device, &entry))
            .collect();
        drop(state);
        log::info!("{}: registered", device.name);
        due.into_iter().for_each(|pair| self.add(cx, pair));
        Ok(Registration { id, device })
    }

    /// A device leaves. Every client's `remove` is called, the client registered last first; until
    /// they have returned the device works. Returns when no verb is in the driver and none will be,
    /// and all objects are gone. May sleep; no lock is held while `remove` runs.
    ///
    /// # Errors
    /// `Leaked` names clients that left objects behind; the device is unregistered all the same.
    /// `Refused` from inside a callback about this device: it would wait for itself.
    pub fn unregister_device(
        &self,
        cx: &MaySleep,
        registration: Registration,
    ) -> std::result::Result<(), UnregisterError> {
        let id = registration.id;
        if let Err(error) = may_wait(cx, |(inside, _)| inside == id) {
            return Err(UnregisterError::Refused(Refused { error, registration }));
        }
        let device = registration.device;
        // Clients registered from now on don't see it.
        self.lock().devices.remove(&id);
        self.part(cx, |(device, _)| device == id);
        device.shut(cx);
        let left = device.reclaim(cx);
        device.events.flush(cx);
        log::info!("{}: unregistered", device.name);
        match leaks(left) {
            leaks if leaks.is_empty() => Ok(()),
            leaks => Err(UnregisterError::Leaked { device: device.name.clone(), leaks }),
        }
    }

    /// A client comes. Returns when it has been told of every device there is; later ones follow. May
    /// sleep; no lock is held while `add` runs.
    ///
    /// # Errors
    /// `NotPermitted` inside a handler.
    pub fn register_client(
        &self,
        cx: &MaySleep,
        client: Arc<dyn Client>,
    ) -> Result<ClientRegistration> {
        cx.check()?;
        let name = client.name().into();
        let entry = Arc::new(ClientEntry { client, name });
        let mut state = self.lock();
        let id = ClientId(state.new_id());
        state.clients.insert(id, entry.clone());
        let devices: Vec<_> = state.devices.iter().map(|(&id, d)| (id, d.clone())).collect();
        let due: Vec<_> = devices
            .into_iter()
            .map(|(device, shared)| state.pair((device, id), &shared, &entry))
            .collect();
        drop(state);
        due.into_iter().for_each(|pair| self.add(cx, pair));
        Ok(ClientRegistration { id })
    }

    /// A client leaves: its `remove` is called for every device it was told of. From the return on it
    /// is not called any more. May sleep; no lock is held while `remove` runs.
    ///
    /// # Errors
    /// `Refused` from inside a callback of this client: it would wait for itself.
    pub fn unregister_client(
        &self,
        cx: &MaySleep,
        registration: ClientRegistration,
    ) -> std::result::Result<(), Refused<ClientRegistration>> {
        let id = registration.id;
        if let Err(error) = may_wait(cx, |(_, inside)| inside == id) {
            return Err(Refused { error, registration });
        }
        // Devices registered from now on don't see it.
        self.lock().clients.remove(&id);
        self.part(cx, |(_, client)| client == id);
        Ok(())
    }

    /// Calls `add`, unless device or client has left since the pair was made.
    fn add(&self, cx: &MaySleep, id: PairId) {
        let mut state = self.lock();
        let Some(pair) = state.pairs.get_mut(&id).filter(|p| p.stage == Stage::Due) else { return };
        pair.stage = Stage::Adding;
        let (device, client) = (pair.handle(), pair.client.clone());
        drop(state);
        let _callback = Callback::enter(self, id, Some(Stage::Added));
        client.client.add(cx, &device);
    }

    /// Ends all pairs that are meant, the youngest first.
    fn part(&self, cx: &MaySleep, meant: impl Fn(PairId) -> bool) {
        let mut state = self.lock();
        loop {
            let Some((&id, pair)) = state.pairs.iter_mut().rfind(|(id, _)| meant(**id)) else {
                return;
            };
            match pair.stage {
                Stage::Due => {
                    state.pairs.remove(&id);
                }
                Stage::Adding | Stage::Removing => state = wait(&self.inner.changed, state),
                Stage::Added => {
                    pair.stage = Stage::Removing;
                    let (device, client) = (pair.handle(), pair.client.clone());
                    drop(state);
                    let callback = Callback::enter(self, id, None);
                    client.client.remove(cx, &device);
                    drop(callback);
                    state = self.lock();
                }
            }
        }
    }

    /// Starts the dispatcher's threads when they are first needed.
    fn dispatcher(&self) -> Result<Arc<Dispatcher>> {
        let mut state = self.lock();
        if let Some(dispatcher) = &state.dispatcher {
            return Ok(dispatcher.clone());
        }
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let dispatcher = Arc::new(Dispatcher::start(cpus.clamp(2, 4))?);
        state.dispatcher = Some(dispatcher.clone());
        Ok(dispatcher)
    }
}

impl State {
    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn pair(
        &mut self,
        id: PairId,
        device: &Arc<DeviceShared>,
        client: &Arc<ClientEntry>,
    ) -> PairId {
        let (device, client) = (device.clone(), client.clone());
        self.pairs.insert(id, Pair { stage: Stage::Due, device, client });
        id
    }
}

impl Pair {
    fn handle(&self) -> Device {
        Device { shared: self.device.clone(), client: self.client.name.clone() }
    }
}

/// The thread is in a callback of a client. At the end, panic or not, the pair gets its next stage, or
/// goes.
struct Callback<'a> {
    midlayer: &'a Midlayer,
    id: PairId,
    then: Option<Stage>,
}

impl<'a> Callback<'a> {
    fn enter(midlayer: &'a Midlayer, id: PairId, then: Option<Stage>) -> Self {
        CALLBACKS.with_borrow_mut(|inside| inside.push(id));
        Self { midlayer, id, then }
    }
}

impl Drop for Callback<'_> {
    fn drop(&mut self) {
        CALLBACKS.with_borrow_mut(|inside| inside.pop());
        let mut state = self.midlayer.lock();
        match self.then {
            Some(stage) => {
                if let Some(pair) = state.pairs.get_mut(&self.id) {
                    pair.stage = stage;
                }
            }
            None => {
                state.pairs.remove(&self.id);
            }
        }
        drop(state);
        self.midlayer.inner.changed.notify_all();
    }
}

/// Whether the caller may wait for the callbacks that are meant.
fn may_wait(cx: &MaySleep, meant: impl Fn(PairId) -> bool) -> Result<()> {
    cx.check()?;
    match CALLBACKS.with_borrow(|inside| inside.iter().any(|id| meant(*id))) {
        true => Err(Error::Busy("inside the callback that it would wait for")),
        false => Ok(()),
    }
}

fn device_sink(device: &DeviceShared) -> Arc<dyn EventSink> {
    Arc::new(Sink { events: device.events.clone(), context: None })
}

fn leaks(left: Vec<(Arc<str>, &'static str)>) -> Vec<Leak> {
    let mut by_client: BTreeMap<Arc<str>, BTreeMap<&'static str, usize>> = BTreeMap::new();
    for (client, kind) in left {
        *by_client.entry(client).or_default().entry(kind).or_default() += 1;
    }
    by_client
        .into_iter()
        .map(|(client, objects)| Leak { client: client.to_string(), objects })
        .collect()
}
