// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Contexts: tenants of a device. What they hold is in the files beside this one.

use std::sync::Arc;

use super::{Cq, CqSpec, Pd, Xrcd};
use crate::attr::GidEntry;
use crate::context::MaySleep;
use crate::driver::{ContextDriver, ContextInit, Violations};
use crate::error::{Error, Result};
use crate::event::{ContextEnd, ContextId, EventHandler, Sink};
use crate::memory::UserMemory;
use crate::object::{self, Base, DeviceShared, Object};
use crate::run_queue::RunQueue;

/// What a consumer wants of a context.
#[derive(Default)]
pub struct ContextSpec {
    /// The network that its GIDs belong to: peers are found within one network only.
    pub network: u64,
    /// Name of the tenant, for logs.
    pub name: String,
    /// Hears of the events of the context's objects, and of the device.
    pub events: Option<EventHandler>,
    /// Where the completion handlers of each vector run: vector `n` in queue `n`, modulo their number.
    /// None: in threads of the midlayer.
    pub run_queues: Vec<Arc<RunQueue>>,
}

/// A context: a tenant of a device with numbers, keys and GIDs of its own.
pub struct Context {
    base: Base,
    driver: Arc<dyn ContextDriver>,
    end: Arc<ContextEnd>,
    run_queues: Vec<Arc<RunQueue>>,
}

impl Context {
    pub(crate) fn alloc(
        cx: &MaySleep,
        device: &Arc<DeviceShared>,
        client: &Arc<str>,
        spec: ContextSpec,
    ) -> Result<Arc<Self>> {
        let base = Base::new("context", client, device);
        let end = ContextEnd::new(ContextId(base.id()), spec.events);
        let sink = Arc::new(Sink { events: device.events.clone(), context: Some(end.clone()) });
        let run_queues = if spec.run_queues.is_empty() {
            device.dispatcher.queues().to_vec()
        } else {
            spec.run_queues
        };
        let init = ContextInit { network: spec.network, name: spec.name, events: sink };
        let context = object::create(
            cx,
            device,
            &[],
            || device.driver.alloc_context(cx, init),
            |driver| Self { base, driver, end, run_queues },
        )?;
        device.events.add_context(&context.end);
        Ok(context)
    }

    pub(super) fn driver(&self) -> &Arc<dyn ContextDriver> {
        &self.driver
    }

    pub(super) fn base(&self) -> &Base {
        &self.base
    }

    /// Its number, as handlers of device events get it.
    pub fn id(&self) -> ContextId {
        self.end.id
    }

    /// The run queue of a completion vector.
    pub fn run_queue(&self, vector: u32) -> &Arc<RunQueue> {
        &self.run_queues[vector as usize % self.run_queues.len()]
    }

    /// Enters a GID. May sleep.
    ///
    /// # Errors
    /// `Busy` if another context of the network has it, `Invalid` for an index out of range.
    pub fn add_gid(&self, cx: &MaySleep, index: u32, entry: &GidEntry) -> Result<()> {
        let _verb = self.base.verb(cx)?;
        self.check_gid_index(index)?;
        self.driver.add_gid(cx, index, entry)
    }

    /// Deletes a GID; a no-op if there is none. May sleep.
    pub fn del_gid(&self, cx: &MaySleep, index: u32) -> Result<()> {
        let _verb = self.base.verb(cx)?;
        self.check_gid_index(index)?;
        self.driver.del_gid(cx, index)
    }

    fn check_gid_index(&self, index: u32) -> Result<()> {
        match self.base.device.ports.first() {
            Some(port) if index < port.gid_tbl_len => Ok(()),
            _ => Err(Error::Invalid("GID index")),
        }
    }

    /// A protection domain. May sleep.
    pub fn alloc_pd(self: &Arc<Self>, cx: &MaySleep) -> Result<Arc<Pd>> {
        Pd::alloc(cx, self)
    }

    /// A completion queue. May sleep.
    ///
    /// # Errors
    /// `Limit` beyond `max_cqe`, `Invalid` for no CQE at all.
    pub fn create_cq(self: &Arc<Self>, cx: &MaySleep, spec: CqSpec) -> Result<Arc<Cq>> {
        Cq::create(cx, self, spec)
    }

    /// An XRC domain. May sleep.
    ///
    /// # Errors
    /// `Unsupported` where the device has none.
    pub fn alloc_xrcd(self: &Arc<Self>, cx: &MaySleep) -> Result<Arc<Xrcd>> {
        Xrcd::alloc(cx, self)
    }

    /// What `LKey::LOCAL_DMA` stands for in the work requests of privileged QPs; at first, and for
    /// `None`, nothing. Returns when nothing touches what it stood for before. May sleep.
    ///
    /// # Errors
    /// `Unsupported` where the device has no such key.
    pub fn set_dma_memory(&self, cx: &MaySleep, memory: Option<UserMemory>) -> Result<()> {
        let _verb = self.base.verb(cx)?;
        self.driver.set_dma_memory(cx, memory)
    }

    /// How many packets and datagrams with a wrong key came for the tenant. Never sleeps.
    pub fn violations(&self) -> Violations {
        self.driver.violations()
    }

    /// Stops the tenant: after the return no memory of its consumer's is touched any more, by its own
    /// work or by a peer's, and none of its CQs or receive sources is called. Work stays queued; peers
    /// see packets lost. May sleep.
    pub fn suspend(&self, cx: &MaySleep) -> Result<()> {
        let _verb = self.base.verb(cx)?;
        self.driver.suspend(cx)
    }

    /// Lets a stopped tenant go on. May sleep.
    pub fn resume(&self, cx: &MaySleep) -> Result<()> {
        let _verb = self.base.verb(cx)?;
        self.driver.resume(cx)
    }

    /// Ends the context. May sleep.
    ///
    /// # Errors
    /// `Busy` while it has objects; `Gone` if it has ended before.
    pub fn dealloc(&self, cx: &MaySleep) -> Result<()> {
        object::destroy(cx, self)
    }
}

impl Object for Context {
    fn base(&self) -> &Base {
        &self.base
    }

    fn release_uses(&self) {}

    fn driver_destroy(&self, cx: &MaySleep) -> Result<()> {
        self.driver.dealloc(cx)
    }

    fn quiesce(&self, cx: &MaySleep) {
        self.base.device.events.remove_context(cx, &self.end);
    }
}
