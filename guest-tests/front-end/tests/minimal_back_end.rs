// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The front end against a back end that is somebody else's code but for a page: crate
//! `vhost-user-backend`, with a device that says OK to every command. So a fault in the front end
//! shows here, before it is looked for in the daemon.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use front_end::abi::config::{Config, QUEUE_CONTROL};
use front_end::{Vm, VmConfig};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Listener, message::VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};
use zerocopy::IntoBytes;

type TestResult = Result<(), Box<dyn std::error::Error>>;

struct YesDevice {
    slots: bool,
    memory: Mutex<Option<GuestMemoryAtomic<GuestMemoryMmap>>>,
    commands: AtomicU64,
    resets: AtomicU64,
    exit: Mutex<Option<(EventConsumer, EventNotifier)>>,
}

impl YesDevice {
    fn new(slots: bool) -> std::io::Result<Self> {
        Ok(Self {
            slots,
            memory: Mutex::default(),
            commands: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            exit: Mutex::new(Some(new_event_consumer_and_notifier(EventFlag::NONBLOCK)?)),
        })
    }

    fn regions(&self) -> usize {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.as_ref().map_or(0, |memory| memory.memory().num_regions())
    }

    /// Copies the sequence number into the answer; everything else in it is zero: OK.
    fn answer(&self, vring: &VringRwLock) -> std::io::Result<()> {
        let guard = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(memory) = guard.as_ref().map(GuestAddressSpace::memory) else { return Ok(()) };
        let mut state = vring.get_mut();
        let other = |error: virtio_queue::Error| std::io::Error::other(error.to_string());
        while let Some(chain) = state.get_queue_mut().pop_descriptor_chain(&*memory) {
            let head = chain.head_index();
            let mut header = [0; 8];
            for desc in chain.clone().readable() {
                memory.read_slice(&mut header, desc.addr()).map_err(std::io::Error::other)?;
            }
            let mut written = 0;
            for desc in chain.writable() {
                let mut bytes = vec![0; desc.len() as usize];
                bytes[4..8].copy_from_slice(&header[4..8]);
                memory.write_slice(&bytes, desc.addr()).map_err(std::io::Error::other)?;
                written = desc.len();
            }
            self.commands.fetch_add(1, Ordering::Relaxed);
            state.get_queue_mut().add_used(&*memory, head, written).map_err(other)?;
        }
        if state.get_queue_mut().enable_notification(&*memory).map_err(other)? {
            return Ok(());
        }
        drop(state);
        vring.signal_used_queue()
    }
}

impl VhostUserBackend for YesDevice {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        6
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        1 << 32 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::RESET_DEVICE;
        features.set(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS, self.slots);
        features
    }

    fn reset_device(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config =
            Config { num_comp_vectors: 2.into(), abi_major: 1.into(), ..Config::default() };
        let range = offset as usize..(offset + size) as usize;
        config.as_bytes().get(range).map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> std::io::Result<()> {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn handle_event(
        &self,
        queue: u16,
        _events: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> std::io::Result<()> {
        match vrings.get(usize::from(queue)) {
            Some(vring) if u32::from(queue) == QUEUE_CONTROL => self.answer(vring),
            _ => Ok(()),
        }
    }
}

type Started = (tempfile::TempDir, PathBuf, Vec<Arc<YesDevice>>);

/// Serves so many connections, one after the other, each with a device of its own.
fn start(slots: bool, lives: usize) -> Result<Started, Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("yes.sock");
    let devices = (0..lives)
        .map(|_| YesDevice::new(slots).map(Arc::new))
        .collect::<std::io::Result<Vec<_>>>()?;
    let mut listener = Listener::new(&path, true)?;
    let served = devices.clone();
    std::thread::spawn(move || -> Result<(), vhost_user_backend::Error> {
        for device in served {
            let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
            let mut daemon = VhostUserDaemon::new("yes".into(), device, memory)?;
            daemon.start(&mut listener)?;
            // An error is how a connection ends.
            let _ = daemon.wait();
        }
        Ok(())
    });
    Ok((folder, path, devices))
}

#[test]
fn the_handshake_ends_with_a_driver_that_can_command() -> TestResult {
    for (slots, regions) in [(true, 3), (false, 3), (true, 1), (false, 1)] {
        let (_folder, path, devices) = start(slots, 1)?;
        let device = &devices[0];
        let vm = Vm::connect(&path, VmConfig { regions, ..VmConfig::default() })?;
        assert_eq!(device.regions(), regions);
        assert_eq!(vm.config()?.num_comp_vectors.get(), 2);
        assert_eq!(vm.read_config(10, 2)?, [2, 0]);
        let driver = vm.driver()?;
        assert_eq!(driver.queues().vectors(), 2);
        for _ in 0..500 {
            driver.alloc_pd()?;
        }
        // INIT and ADD_GID come first.
        assert_eq!(device.commands.load(Ordering::Relaxed), 502);
        let index = vm.add_memory(1 << 20)?;
        assert_eq!(device.regions(), regions + 1);
        vm.remove_memory(index)?;
        assert_eq!(device.regions(), regions);
    }
    Ok(())
}

#[test]
fn rings_stop_resume_and_start_anew() -> TestResult {
    let (_folder, path, devices) = start(true, 1)?;
    let device = &devices[0];
    let vm = Vm::connect(&path, VmConfig::default())?;
    let driver = vm.driver()?;
    let bases = vm.stop()?;
    assert_eq!(bases[0], 2, "two commands were executed");
    vm.start()?;
    driver.alloc_pd()?;
    vm.reboot()?;
    let driver = vm.driver()?;
    driver.alloc_pd()?;
    assert_eq!(vm.stop()?[0], 3, "counted from zero again");
    vm.start()?;
    vm.reset_device()?;
    assert_eq!(device.resets.load(Ordering::Relaxed), 1);
    vm.driver()?.alloc_pd()?;
    Ok(())
}

#[test]
fn a_connection_can_be_lost_and_made_again() -> TestResult {
    let (_folder, path, devices) = start(true, 2)?;
    let vm = Vm::connect(&path, VmConfig::default())?;
    let driver = vm.driver()?;
    driver.alloc_pd()?;
    vm.disconnect();
    assert!(vm.config().is_err());
    // Another life of the back end; the driver goes on where it was.
    vm.reconnect()?;
    driver.alloc_pd()?;
    assert_eq!(devices[1].commands.load(Ordering::Relaxed), 1);
    assert_eq!(devices[0].commands.load(Ordering::Relaxed), 3);
    Ok(())
}
