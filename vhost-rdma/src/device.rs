// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One VM's device: a client of the midlayer on one side, a vhost-user back end's state on the other.
//! It knows when the front end lets it touch the VM's memory (`Gate`), and which HCA there is.
//! Not here: vhost-user messages (`backend.rs`), commands (`control`), the data path.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use rdma_midlayer::driver::AsyncEvent as HcaEvent;
use rdma_midlayer::types::{Mtu, PortState};
use rdma_midlayer::verbs::{Context, ContextSpec};
use rdma_midlayer::{Client, Device as Hca, MaySleep, rcu};
use virtio_rdma_abi::config::{
    ABI_MAJOR, ABI_MINOR, Config, QUEUE_COMP_FIRST, QUEUE_CONTROL, QUEUE_EVENT,
};
use virtio_rdma_abi::event::{self, AsyncEvent};
use vm_memory::GuestMemoryMmap;
use zerocopy::IntoBytes;

use crate::control::ControlState;
use crate::counters::Counters;
use crate::door::Kicks;
use crate::events::{CompQueue, EventQueue, InQueue};
use crate::memory::{GuestMemory, RegionSpec};
use crate::vring::{Memory, RingHooks, Vring};
use crate::worker::{self, Worker};

/// What a device has at the most.
pub mod limits {
    /// UARs: one a process.
    pub const MAX_UAR: u32 = 4096;
    /// Bits in all UARs.
    pub const MAX_SLOTS: u32 = MAX_UAR * 32_256;
    /// QPs.
    pub const MAX_QP: u32 = 65_536;
    /// Slots of a work queue.
    pub const MAX_QP_WR: u32 = 16_384;
    /// Slots of a completion queue.
    pub const MAX_CQE: u32 = 1 << 22;
    /// CQEs that an event may wait for.
    pub const MAX_CQ_COUNT: u16 = 32_767;
    /// Microseconds that an event may wait.
    pub const MAX_CQ_PERIOD: u16 = 32_767;
    /// Entries of the table of address handles.
    pub const MAX_AH: u32 = 65_536;
    /// SGEs of a WQE.
    pub const MAX_SGE: u32 = rdma_midlayer::work::MAX_SGE as u32;
    /// Bytes of device memory.
    pub const MAX_DM: u64 = 128 << 10;
    /// How many pages all MRs may list, for each page of guest memory.
    pub const MR_PAGES_PER_PAGE: u64 = 16;
    /// Pages that MRs may list in the smallest VM.
    pub const MIN_MR_PAGES: u64 = 1 << 20;
}

/// How to make a device.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// For logs.
    pub name: String,
    /// MAC of the guest's network device to which the RDMA device belongs; zeros if the front end
    /// gives it.
    pub mac: [u8; 6],
    /// The network whose other devices it can reach.
    pub network: u64,
    /// Completion vectors.
    pub vectors: u16,
    /// The HCA that it belongs to, by name; none: the daemon's first.
    pub hca: Option<String>,
}

/// Whether the front end lets the device touch the VM's memory. Everything that reads or writes it
/// looks here, inside an RCU guard or under the device's lock; who closes it then waits for those.
#[derive(Default)]
pub struct Gate {
    open: AtomicBool,
    counters: Counters,
}

impl Gate {
    /// Whether memory may be touched.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// The device's counters, which all that touches memory may count in.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[derive(Default)]
struct Rings {
    running: u64,
    /// Stopped while the control virtqueue went on.
    stopped: u64,
    /// Where the control virtqueue stood when the front end stopped it.
    control_stopped_at: Option<u16>,
    control_starts_at: u16,
    control: Option<Vring>,
    control_kick: Option<File>,
}

/// A virtio-rdma device.
pub struct Device {
    config: DeviceConfig,
    workers: Arc<[Arc<Worker>]>,
    first_worker: usize,
    gate: Arc<Gate>,
    kicks: Arc<Kicks>,
    /// Locked for the time of a copy only.
    memory: Arc<RwLock<GuestMemory>>,
    hca: Mutex<HcaState>,
    control: Mutex<ControlState>,
    rings: Mutex<Rings>,
    events: Arc<EventQueue>,
    comp: Vec<Arc<CompQueue>>,
    /// `check_memory` has told.
    broken: AtomicBool,
    me: Weak<Device>,
}

struct HcaState {
    hca: Option<Hca>,
    /// Odd with an HCA, even without.
    generation: u32,
    port: Option<(PortState, Mtu, Mtu)>,
}

impl Default for HcaState {
    /// Without an HCA. The count begins anywhere: a driver that outlives a daemon must not find with the
    /// next one the number that it knows.
    fn default() -> Self {
        let random = RandomState::new().hash_one(std::process::id()) as u32;
        Self { hca: None, generation: random >> 1 & !1, port: None }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// A device whose vector 0 is served by worker `first_worker`.
    pub fn new(
        config: DeviceConfig,
        workers: Arc<[Arc<Worker>]>,
        first_worker: usize,
    ) -> Arc<Self> {
        let gate = Arc::new(Gate::default());
        let comp = (0..config.vectors).map(|_| Arc::new(CompQueue::new(gate.clone()))).collect();
        Arc::new_cyclic(|me| Self {
            config,
            workers,
            first_worker,
            events: Arc::new(EventQueue::new(gate.clone())),
            gate,
            kicks: Arc::default(),
            memory: Arc::default(),
            hca: Mutex::default(),
            control: Mutex::default(),
            rings: Mutex::default(),
            comp,
            broken: AtomicBool::new(false),
            me: me.clone(),
        })
    }

    /// For logs.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// How it was made.
    pub fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// Completion vectors.
    pub fn vectors(&self) -> u16 {
        self.config.vectors
    }

    /// Virtqueues.
    pub fn num_queues(&self) -> usize {
        QUEUE_COMP_FIRST as usize + 2 * usize::from(self.config.vectors)
    }

    /// Whether memory may be touched, and the counters.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The doorbells' descriptors.
    pub fn kicks(&self) -> &Arc<Kicks> {
        &self.kicks
    }

    /// All workers.
    pub fn workers(&self) -> &Arc<[Arc<Worker>]> {
        &self.workers
    }

    /// The number of the worker of vector 0.
    pub fn first_worker(&self) -> usize {
        self.first_worker
    }

    /// The worker of a vector.
    pub fn worker_of(&self, vector: u16) -> &Arc<Worker> {
        worker::of_vector(&self.workers, self.first_worker, vector)
    }

    /// The VM's memory as it is now.
    pub fn memory(&self) -> GuestMemory {
        self.memory.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The VM's memory as it is at any time.
    pub fn shared_memory(&self) -> &Arc<RwLock<GuestMemory>> {
        &self.memory
    }

    fn replace_memory(&self, new: GuestMemory) {
        let mut now = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *now, new);
        // To unmap takes time: workers that look meanwhile need not wait.
        drop(now);
        drop(old);
    }

    /// The HCA, while there is one.
    pub fn hca(&self) -> Option<Hca> {
        lock(&self.hca).hca.clone()
    }

    /// The completion virtqueue of a vector.
    pub fn comp_queue(&self, vector: usize) -> Option<&Arc<CompQueue>> {
        self.comp.get(vector)
    }

    /// EUI-64 made of the MAC; without one, of the device's name.
    pub fn node_guid(&self) -> [u8; 8] {
        let m = if self.config.mac == [0; 6] {
            let hash = self.config.name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
                (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
            });
            let [a, b, c, d, e, ..] = hash.to_be_bytes();
            [2, a, b, c, d, e]
        } else {
            self.config.mac
        };
        [m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]]
    }

    /// The counters as they are now. May sleep.
    pub fn counters(&self) -> virtio_rdma_abi::control::Counters {
        let control = lock(&self.control);
        match &control.session {
            Some(session) => session.counters(),
            None => self.gate.counters().of_the_past(),
        }
    }

    /// The counters in one line, for the log. May sleep.
    pub fn report(&self) -> String {
        format!("{}: {:?}", self.name(), self.counters())
    }

    /// Configuration space as it is now.
    pub fn config_space(&self) -> Vec<u8> {
        let hca = lock(&self.hca);
        let (state, max_mtu, active_mtu) =
            hca.port.unwrap_or((PortState::Down, Mtu::Mtu4096, Mtu::Mtu1024));
        let config = Config {
            abi_major: (ABI_MAJOR as u16).into(),
            abi_minor: (ABI_MINOR as u16).into(),
            mac: self.config.mac,
            num_comp_vectors: self.config.vectors.into(),
            hca_generation: hca.generation.into(),
            hca_present: u8::from(hca.hca.is_some()),
            port_state: state.code(),
            max_mtu: max_mtu.code(),
            active_mtu: active_mtu.code(),
            reserved: [0; 44],
        };
        config.as_bytes().to_vec()
    }

    /// A tenant of the HCA for a driver that uses `vectors` vectors. May sleep.
    ///
    /// # Errors
    /// `Gone` without an HCA, or what the HCA answers.
    pub fn alloc_context(
        &self,
        cx: &MaySleep,
        vectors: u16,
    ) -> rdma_midlayer::Result<Arc<Context>> {
        let hca = self.hca().ok_or(rdma_midlayer::Error::Gone)?;
        let me = self.me.clone();
        let spec = ContextSpec {
            network: self.config.network,
            name: self.config.name.clone(),
            events: Some(Box::new(move |event| {
                if let Some(device) = me.upgrade() {
                    device.hca_event(event);
                }
            })),
            run_queues: (0..vectors).map(|v| self.worker_of(v).run_queue().clone()).collect(),
        };
        hca.alloc_context(cx, spec)
    }

    /// An asynchronous event of the HCA, for the driver.
    fn hca_event(&self, event: HcaEvent) {
        let (kind, number) = match event {
            HcaEvent::CqErr(n) => (event::EVENT_CQ_ERR, n.0),
            HcaEvent::QpFatal(n) => (event::EVENT_QP_FATAL, n.0),
            HcaEvent::QpReqErr(n) => (event::EVENT_QP_REQ_ERR, n.0),
            HcaEvent::QpAccessErr(n) => (event::EVENT_QP_ACCESS_ERR, n.0),
            HcaEvent::CommEst(n) => (event::EVENT_COMM_EST, n.0),
            HcaEvent::SqDrained(n) => (event::EVENT_SQ_DRAINED, n.0),
            HcaEvent::LastWqeReached(n) => (event::EVENT_QP_LAST_WQE_REACHED, n.0),
            HcaEvent::SrqErr(n) => (event::EVENT_SRQ_ERR, n.0),
            HcaEvent::SrqLimitReached(n) => (event::EVENT_SRQ_LIMIT_REACHED, n.0),
            HcaEvent::PortActive(n) => (event::EVENT_PORT_ACTIVE, n.into()),
            HcaEvent::PortErr(n) => (event::EVENT_PORT_ERR, n.into()),
            HcaEvent::GidChange(n) => (event::EVENT_GID_CHANGE, n.into()),
            HcaEvent::PagesMissing(n) => (event::EVENT_PAGE_FAULT, n),
            HcaEvent::DeviceFatal => (event::EVENT_DEVICE_FATAL, 0),
        };
        self.raise(kind, number);
    }

    /// A reference that does not keep the device.
    pub fn weak(&self) -> Weak<Self> {
        self.me.clone()
    }

    /// Tells the driver of an asynchronous event (`EVENT_*`).
    pub fn raise(&self, kind: u32, number: u32) {
        let generation = lock(&self.hca).generation;
        self.events.raise(AsyncEvent {
            event: kind.into(),
            number: number.into(),
            hca_generation: generation.into(),
            reserved: 0.into(),
        });
    }

    /// A new driver: what waits for the old one is forgotten.
    pub fn forget_events(&self) {
        self.events.clear();
        self.comp.iter().for_each(|queue| queue.clear());
    }

    /// The virtqueues of a new connection.
    pub fn set_vrings(&self, vrings: &[Vring], memory: &Memory) {
        let queue = |i: usize| {
            vrings.get(i).map(|vring| InQueue { vring: vring.clone(), memory: memory.clone() })
        };
        lock(&self.rings).control = vrings.get(QUEUE_CONTROL as usize).cloned();
        self.events.set_queue(queue(QUEUE_EVENT as usize));
        for (v, comp) in self.comp.iter().enumerate() {
            comp.set_queue(queue(QUEUE_COMP_FIRST as usize + 2 * v));
        }
    }

    /// The driver gave buffers, or the ring started: tells it what waits.
    pub fn flush(&self, queue: usize) {
        if queue == QUEUE_EVENT as usize {
            self.events.flush();
        } else if let Some(comp) = queue
            .checked_sub(QUEUE_COMP_FIRST as usize)
            .filter(|i| i.is_multiple_of(2))
            .and_then(|i| self.comp.get(i / 2))
        {
            comp.flush();
        }
    }

    /// With the control virtqueue's state locked, and only if memory may be touched: commands.
    pub fn with_control<R>(&self, f: impl FnOnce(&mut ControlState) -> R) -> Option<R> {
        let mut control = lock(&self.control);
        self.gate.is_open().then(|| f(&mut control))
    }

    /// The front end changed the VM's memory. When this returns nothing that is gone is touched. May
    /// sleep.
    ///
    /// # Errors
    /// What mapping answers; nothing has changed then.
    pub fn update_memory(&self, cx: &MaySleep, table: Vec<RegionSpec>) -> std::io::Result<()> {
        self.check_memory();
        let mut control = lock(&self.control);
        let new = self.memory().update(table)?;
        for region in new.regions().iter().filter(|r| r.may_shrink()) {
            log::debug!(
                "{}: memory at {:#x} is not sealed against shrinking",
                self.name(),
                region.guest_start()
            );
        }
        self.replace_memory(new.clone());
        if let Some(session) = &mut control.session {
            session.memory_changed(cx, &new);
        }
        Ok(())
    }

    /// Tells operator and driver, once, if the VM's memory has lost pages because the front end made
    /// its file shorter.
    pub fn check_memory(&self) {
        let broken = self.memory().regions().iter().any(|region| region.is_broken());
        if broken && !self.broken.swap(true, Ordering::Relaxed) {
            log::error!(
                "{}: the front end made the file of the VM's memory shorter: its data is spoilt; \
                 use a memory backend that is sealed (memory-backend-memfd,seal=on)",
                self.name()
            );
            self.raise(event::EVENT_DEVICE_FATAL, 0);
        }
    }

    /// Ends all that the driver made and forgets what it was told or not. May sleep.
    pub fn reset(&self, cx: &MaySleep) {
        let session = std::mem::take(&mut *lock(&self.control)).session;
        if let Some(session) = session {
            log::info!("{}: reset", self.name());
            session.end(cx);
        }
        self.forget_events();
    }

    /// The front end has gone: memory is no longer touched, objects end. May sleep.
    pub fn disconnected(&self, cx: &MaySleep) {
        self.close_gate(cx);
        self.reset(cx);
        *lock(&self.rings) = Rings::default();
        self.set_vrings(&[], &Memory::new(GuestMemoryMmap::new()));
        for vector in 0..usize::from(self.config.vectors) {
            self.set_kick(vector, None);
        }
        self.replace_memory(GuestMemory::default());
        self.broken.store(false, Ordering::Relaxed);
    }

    fn set_kick(&self, vector: usize, kick: Option<File>) {
        self.kicks.set(vector, kick, self.worker_of(vector as u16));
    }

    fn open_gate(&self, cx: &MaySleep) {
        let control = lock(&self.control);
        self.gate.open.store(true, Ordering::Release);
        if let Some(session) = &control.session {
            if let Err(e) = session.context.resume(cx) {
                log::warn!("{}: {e}", self.name());
            }
            session.resume();
            for object in session.cqs.values() {
                if object.path.check_arm(true)
                    && let Some(queue) = self.comp.get(usize::from(object.path.vector()))
                {
                    queue.raise(object.path.clone());
                }
            }
        }
    }

    /// When it returns, nothing touches the VM's memory, not even for a peer. May sleep.
    fn close_gate(&self, cx: &MaySleep) {
        // A command in progress ends first; one that begins later sees the gate.
        let control = lock(&self.control);
        if !self.gate.is_open() {
            return;
        }
        // The HCA first: a completion that found the gate closed would be lost.
        if let Some(session) = &control.session
            && let Err(e) = session.context.suspend(cx)
        {
            log::warn!("{}: {e}", self.name());
        }
        self.gate.open.store(false, Ordering::Release);
        self.events.finish();
        rcu::synchronize(cx);
    }

    /// A front end that resumes rings of which this daemon knows nothing: the driver must begin anew.
    fn lost_state(&self) {
        {
            let mut hca = lock(&self.hca);
            hca.generation = hca.generation.wrapping_add(2);
        }
        log::warn!(
            "{}: the rings go on, but the driver's objects are lost: it is told to begin anew",
            self.name()
        );
        self.raise(event::EVENT_HCA_REMOVED, 0);
        self.raise(event::EVENT_HCA_ADDED, 0);
    }

    fn control_started(&self, cx: &MaySleep, rings: &Rings) -> bool {
        let fresh = rings.control_starts_at == 0 && rings.control_stopped_at != Some(0);
        if fresh {
            self.reset(cx);
        }
        !fresh && lock(&self.control).session.is_none()
    }

    /// The guest reset the device. May sleep.
    pub fn reset_device(&self, cx: &MaySleep) {
        self.close_gate(cx);
        self.reset(cx);
        let mut rings = lock(&self.rings);
        rings.control_stopped_at = None;
        rings.stopped = 0;
    }
}

/// Runs `f` with the token of the calling thread, which is the crate's: each of its calls into us is
/// an entry point.
pub fn in_process_context<R>(f: impl FnOnce(&MaySleep) -> R) -> Option<R> {
    let cx = MaySleep::claim();
    if cx.is_none() {
        log::error!("a call that may sleep, from a thread that may not");
    }
    cx.map(|cx| f(&cx))
}

impl RingHooks for Device {
    fn base(&self, index: usize, next_avail: u16) {
        if index == QUEUE_CONTROL as usize {
            lock(&self.rings).control_starts_at = next_avail;
        }
    }

    fn running(&self, index: usize, running: bool) {
        in_process_context(|cx| {
            let control = index == QUEUE_CONTROL as usize;
            let bit = 1u64.checked_shl(index as u32).unwrap_or(0);
            let mut rings = lock(&self.rings);
            let mut lost = false;
            if running {
                rings.running |= bit;
                rings.stopped &= !bit;
                if control {
                    rings.stopped = 0;
                    lost = self.control_started(cx, &rings);
                }
            } else {
                rings.running &= !bit;
                rings.stopped |= bit;
                if control {
                    rings.control_stopped_at =
                        rings.control.as_ref().map(vhost_user_backend::VringT::queue_next_avail);
                    // Enabled again without a new base, it goes on where it is.
                    if let Some(at) = rings.control_stopped_at {
                        rings.control_starts_at = at;
                    }
                }
            }
            let open = rings.running & 1 << QUEUE_CONTROL != 0 && rings.stopped == 0;
            match (open, self.gate.is_open()) {
                (true, false) => {
                    self.open_gate(cx);
                    // A kick that came while the gate was closed was read away, and led to nothing.
                    if let Some(mut kick) = rings.control_kick.as_ref() {
                        let _ = kick.write(&1u64.to_ne_bytes());
                    }
                }
                (false, true) => self.close_gate(cx),
                _ => {}
            }
            drop(rings);
            if lost {
                self.lost_state();
            }
            if running {
                self.flush(index);
            }
        });
    }

    fn kick(&self, index: usize, kick: Option<File>) {
        if index == QUEUE_CONTROL as usize {
            lock(&self.rings).control_kick = kick;
            return;
        }
        let first = QUEUE_COMP_FIRST as usize + 1;
        if let Some(i) = index.checked_sub(first)
            && i.is_multiple_of(2)
            && i / 2 < self.comp.len()
        {
            self.set_kick(i / 2, kick);
            // A ring that came before the descriptor is found in the bitmaps.
            self.worker_of((i / 2) as u16).rouse();
        }
    }
}

impl Client for Device {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn add(&self, cx: &MaySleep, device: &Hca) {
        // Another's HCA is none of ours.
        if self.config.hca.as_deref().is_some_and(|hca| hca != device.name()) {
            return;
        }
        let port = device.query_port(cx, 1).map_err(|e| log::warn!("{}: {e}", device.name())).ok();
        {
            let mut hca = lock(&self.hca);
            if hca.hca.is_some() {
                return;
            }
            hca.hca = Some(device.clone());
            hca.port = port.map(|p| (p.state, p.max_mtu, p.active_mtu));
            hca.generation = hca.generation.wrapping_add(1);
        }
        log::info!("{}: HCA {}", self.name(), device.name());
        self.raise(event::EVENT_HCA_ADDED, 0);
    }

    fn remove(&self, cx: &MaySleep, device: &Hca) {
        // A command that the driver sends once it knows is answered when all has ended.
        let mut control = lock(&self.control);
        {
            let mut hca = lock(&self.hca);
            if !hca.hca.as_ref().is_some_and(|mine| mine.same(device)) {
                return;
            }
            hca.hca = None;
            hca.port = None;
            hca.generation = hca.generation.wrapping_add(1);
        }
        log::info!("{}: HCA {} goes", self.name(), device.name());
        // Told first: the driver stops using names that are about to end.
        self.raise(event::EVENT_HCA_REMOVED, 0);
        if let Some(session) = control.session.take() {
            session.end(cx);
        }
    }
}
