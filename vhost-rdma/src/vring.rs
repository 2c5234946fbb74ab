// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtqueue that tells its device when the front end starts or stops it: the crate's own type
//! keeps that to itself, and the device must stop touching memory before the front end is answered.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost_user_backend::{VringRwLock, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// The guest memory of the crates' own queue code.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Who hears of the front end's changes. The calls come from the connection's thread, one at a time,
/// before the front end gets its answer; they may sleep.
pub trait RingHooks: Send + Sync {
    /// The ring is about to start at this index of its available ring.
    fn base(&self, index: usize, next_avail: u16);
    /// The ring runs from here on, or no longer.
    fn running(&self, index: usize, running: bool);
    /// Another kick descriptor, or none.
    fn kick(&self, index: usize, kick: Option<File>);
}

thread_local! {
    /// The crate makes the rings of a device itself, without a word about which device.
    static MAKING: RefCell<Option<Making>> = const { RefCell::new(None) };
}

struct Making {
    hooks: Arc<dyn RingHooks>,
    made: Vec<Vring>,
}

/// Rings that `make` creates belong to the device behind `hooks`, numbered from 0. Returns them too.
pub fn with_hooks<R>(hooks: Arc<dyn RingHooks>, make: impl FnOnce() -> R) -> (R, Vec<Vring>) {
    MAKING.with(|making| *making.borrow_mut() = Some(Making { hooks, made: Vec::new() }));
    let result = make();
    let making = MAKING.with(|making| making.borrow_mut().take());
    (result, making.map(|making| making.made).unwrap_or_default())
}

/// A virtqueue with hooks.
#[derive(Clone)]
pub struct Vring {
    inner: VringRwLock<Memory>,
    hooks: Option<Arc<dyn RingHooks>>,
    index: usize,
}

impl Vring {
    /// Whether the device may use it.
    pub fn is_running(&self) -> bool {
        let state = self.inner.get_ref();
        state.is_enabled() && state.get_queue().ready()
    }

    fn changing(&self, change: impl FnOnce(&VringRwLock<Memory>)) {
        let before = self.is_running();
        change(&self.inner);
        let after = self.is_running();
        if let Some(hooks) = self.hooks.as_ref().filter(|_| before != after) {
            hooks.running(self.index, after);
        }
    }
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = <VringRwLock<Memory> as VringStateGuard<'a, Memory>>::G;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = <VringRwLock<Memory> as VringStateMutGuard<'a, Memory>>::G;
}

impl VringT<Memory> for Vring {
    fn new(mem: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        let inner = VringRwLock::new(mem, max_queue_size)?;
        Ok(MAKING.with(|making| match making.borrow_mut().as_mut() {
            Some(making) => {
                let hooks = Some(making.hooks.clone());
                let ring = Self { inner, hooks, index: making.made.len() };
                making.made.push(ring.clone());
                ring
            }
            None => Self { inner, hooks: None, index: 0 },
        }))
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.inner.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.inner.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.inner.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.inner.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.inner.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.changing(|ring| ring.set_enabled(enabled));
    }

    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), QueueError> {
        self.inner.set_queue_info(desc, avail, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.inner.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        if let Some(hooks) = &self.hooks {
            hooks.base(self.index, base);
        }
        self.inner.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.inner.set_queue_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.inner.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        self.inner.set_queue_size(num);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.changing(|ring| ring.set_queue_ready(ready));
    }

    fn set_kick(&self, file: Option<File>) {
        if let Some(hooks) = &self.hooks {
            hooks.kick(self.index, file.as_ref().and_then(|f| f.try_clone().ok()));
        }
        self.inner.set_kick(file);
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.inner.read_kick()
    }

    fn set_call(&self, file: Option<File>) {
        self.inner.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        self.inner.set_err(file);
    }
}
