// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vhost-user side of a device: what the crates ask of a back end, one object a connection. The
//! only file, beside `vring.rs` and `connection.rs`, that knows vhost-user.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use rdma_midlayer::rcu;
use vhost::vhost_user::Backend as RequestChannel;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use vhost_user_backend::{VhostUserBackend, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueOwnedT;
use virtio_rdma_abi::config::{QUEUE_COMP_FIRST, QUEUE_CONTROL};
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::control::{self, MAX_REQUEST};
use crate::device::{Device, in_process_context};
use crate::mapping;
use crate::memory::RegionSpec;
use crate::sigbus::Watch;
use crate::vring::{Memory, Vring};

/// Slots of a virtqueue at the most.
const MAX_QUEUE_SIZE: usize = 1024;
/// `VHOST_USER_F_PROTOCOL_FEATURES`, a feature bit of vhost-user's own.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// The virtio and vhost-user features that a device offers.
pub const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | F_PROTOCOL_FEATURES;

/// One connection of a front end to a device.
pub struct Backend {
    device: Arc<Device>,
    memory: Memory,
    /// The channel for requests of our own. Nothing is sent yet, but it stays open: User-Mode Linux
    /// takes its end for the end of the device.
    requests: Mutex<Option<RequestChannel>>,
    /// What the crate's thread waits for to end.
    exit: Mutex<Option<RawFd>>,
    /// For the crate's mappings of guest memory.
    watches: Mutex<Vec<Watch>>,
}

impl Backend {
    /// The back end of a new connection; `memory` is what its virtqueues lie in.
    pub fn new(device: Arc<Device>, memory: Memory) -> Self {
        Self {
            device,
            memory,
            requests: Mutex::default(),
            exit: Mutex::default(),
            watches: Mutex::default(),
        }
    }

    /// Closes what `exit_event` opened: the crate gives up its ownership and never closes it, which
    /// would cost a descriptor a connection. To be called once the crate's thread has ended.
    pub fn close_exit_event(&self) {
        let exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(fd) = exit {
            // SAFETY: `exit_event` opened it; the crate took it over (`into_raw_fd`), and of its two
            // users the event loop has ended and its epoll descriptor is closed.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }

    /// Commands, until there are none. The crate's thread.
    fn control(&self, vring: &Vring) {
        let done = in_process_context(|cx| {
            self.device.with_control(|state| {
                if !vring.is_running() {
                    return Ok(());
                }
                loop {
                    vring.disable_notification()?;
                    while self.next_command(vring, |request, room| {
                        control::execute(cx, &self.device, state, request, room)
                    })? {}
                    if !vring.enable_notification()? {
                        return Ok(());
                    }
                }
            })
        });
        self.device.check_memory();
        if let Some(Some(Err(e))) = done {
            let e: virtio_queue::Error = e;
            log::error!("{}: the control virtqueue is broken: {e}", self.device.name());
        }
    }

    /// Takes one command out of the ring and puts its answer back; false if there was none.
    fn next_command(
        &self,
        vring: &Vring,
        execute: impl FnOnce(&[u8], usize) -> Option<Vec<u8>>,
    ) -> Result<bool, virtio_queue::Error> {
        let memory = self.memory.memory();
        let chain = {
            let mut state = vring.get_mut();
            state.get_queue_mut().iter(memory.clone())?.next()
        };
        let Some(chain) = chain else { return Ok(false) };
        let head = chain.head_index();
        let mut request = Vec::new();
        let mut places = Vec::new();
        let mut room = 0;
        for descriptor in chain {
            let len = descriptor.len() as usize;
            if descriptor.is_write_only() {
                room += len;
                places.push(descriptor);
            } else if request.len() < MAX_REQUEST {
                let start = request.len();
                request.resize((start + len).min(MAX_REQUEST), 0);
                if memory.read_slice(&mut request[start..], descriptor.addr()).is_err() {
                    request.truncate(start);
                }
            }
        }
        let answer = execute(&request, room).unwrap_or_default();
        let mut left = answer.as_slice();
        for place in places {
            let (now, later) = left.split_at(left.len().min(place.len() as usize));
            if memory.write_slice(now, place.addr()).is_err() {
                break;
            }
            left = later;
        }
        vring.add_used(head, (answer.len() - left.len()) as u32)?;
        if vring.needs_notification()? {
            let _ = vring.signal_used_queue();
        }
        Ok(true)
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.device.num_queues()
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn protocol_features(&self) -> Protocol {
        Protocol::CONFIG
            | Protocol::MQ
            | Protocol::REPLY_ACK
            | Protocol::BACKEND_REQ
            | Protocol::RESET_DEVICE
            | Protocol::CONFIGURE_MEM_SLOTS
    }

    fn reset_device(&self) {
        in_process_context(|cx| self.device.reset_device(cx));
    }

    fn set_backend_req_fd(&self, channel: RequestChannel) {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel);
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The rings know it themselves.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.device.config_space();
        let from = (offset as usize).min(config.len());
        let mut part = config[from..].to_vec();
        // A front end may read past the end of what this version has.
        part.resize((size as usize).min(256), 0);
        part
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let snapshot = memory.memory();
        let (mut table, mut watches) = (Vec::new(), Vec::new());
        for region in snapshot.iter() {
            let file = region.file_offset().ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "guest memory without a file: start the VM with memory-backend-memfd,share=on",
                )
            })?;
            // The crate has a mapping of its own, in which the virtqueues are.
            watches.push(mapping::watch(file.file(), region.as_ptr(), region.len() as usize)?);
            table.push(RegionSpec {
                file: file.arc().clone(),
                offset: file.start(),
                guest_start: region.start_addr().0,
                len: region.len(),
            });
        }
        *self.watches.lock().unwrap_or_else(PoisonError::into_inner) = watches;
        in_process_context(|cx| self.device.update_memory(cx, table)).unwrap_or(Ok(()))
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        // One thread for all but the doorbells, which the workers wait for themselves.
        let comp = (0..u64::from(self.device.vectors()))
            .fold(0, |mask, v| mask | 1 << (u64::from(QUEUE_COMP_FIRST) + 2 * v));
        vec![0b11 | comp]
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let event = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)
            .map_err(|e| log::error!("{}: no exit event: {e}", self.device.name()))
            .ok()?;
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        *exit = Some(event.0.as_raw_fd());
        Some(event)
    }

    fn handle_event(
        &self,
        device_event: u16,
        _events: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        // The thread's queues in order: control, event, then the completion virtqueues.
        if device_event == QUEUE_CONTROL as u16 {
            if let Some(vring) = vrings.first() {
                self.control(vring);
            }
        } else {
            let queue = match usize::from(device_event) {
                event @ 0..=1 => event,
                nth => QUEUE_COMP_FIRST as usize + 2 * (nth - 2),
            };
            let _guard = rcu::enter();
            self.device.flush(queue);
        }
        Ok(())
    }
}
