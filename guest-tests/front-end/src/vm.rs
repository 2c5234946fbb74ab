// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a VMM does: the vhost-user connection, the memory table, the rings, config space, reset,
//! reboot, reconnection.
//!
//! What the guest does with the device is in `driver.rs`.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_rdma_abi::config::{Config, MAX_COMP_VECTORS};
use zerocopy::FromBytes;

use crate::driver::{Driver, GidEntry};
use crate::error::{CommandError, Error};
use crate::memory::{GuestMemory, Region};
use crate::queues::Queues;
use crate::requests::BackendRequests;

const F_VERSION_1: u64 = 1 << 32;
const F_INDIRECT_DESC: u64 = 1 << 28;
const F_EVENT_IDX: u64 = 1 << 29;
const SET_STATUS: u32 = 39;
/// ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK.
const STATUS_RUNNING: u64 = 0xf;

/// What kind of VM it is.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// Bytes of guest memory.
    pub memory: u64,
    /// Regions that it consists of.
    pub regions: usize,
    /// Completion vectors that the driver uses; no more than the device has.
    pub vectors: u16,
    /// Descriptors of each virtqueue.
    pub queue_size: u16,
    /// Whether to take VIRTIO_F_EVENT_IDX, if it is offered.
    pub event_idx: bool,
    /// Whether to send commands by indirect descriptors, if they are offered.
    pub indirect: bool,
    /// Whether the memfds are sealed against growing and shrinking.
    pub sealed: bool,
    /// Whether to add memory region by region (CONFIGURE_MEM_SLOTS), if that is offered.
    pub memory_slots: bool,
    /// The GID that the driver adds at its start; one of its own, if none is given.
    pub gid: Option<[u8; 16]>,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            memory: 256 << 20,
            regions: 2,
            vectors: 2,
            queue_size: 64,
            event_idx: true,
            indirect: true,
            sealed: true,
            memory_slots: true,
            gid: None,
        }
    }
}

/// A VM with a virtio-rdma device of a daemon.
#[derive(Debug)]
pub struct Vm {
    path: PathBuf,
    settings: VmConfig,
    memory: Arc<GuestMemory>,
    link: Mutex<Option<Link>>,
    queues: Mutex<Arc<Queues>>,
    gid: GidEntry,
}

/// An open connection to the daemon.
struct Link {
    frontend: Frontend,
    /// The same socket, for messages that the crate does not have.
    stream: UnixStream,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    queues: u64,
    /// If the daemon offers it.
    requests: Option<BackendRequests>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("features", &self.features)
            .field("protocol", &self.protocol)
            .finish()
    }
}

impl Vm {
    /// Connects to the daemon's socket, and starts the device as far as a VMM does: features,
    /// memory, rings. Waits up to 5 s for the socket.
    pub fn connect(socket: impl AsRef<Path>, settings: VmConfig) -> Result<Self, Error> {
        let path = socket.as_ref().to_path_buf();
        let memory =
            Arc::new(GuestMemory::new(settings.memory, settings.regions, settings.sealed)?);
        let mut link = Link::open(&path, &settings)?;
        let config = link.config()?;
        let gid = own_address(&settings, &config);
        let queues = Self::new_queues(&memory, &settings, &link, &config)?;
        let vm = Self {
            path,
            settings,
            memory,
            link: Mutex::new(None),
            queues: Mutex::new(Arc::new(queues)),
            gid,
        };
        vm.begin(&mut link)?;
        *vm.link() = Some(link);
        Ok(vm)
    }

    /// The guest's kernel: a driver that does INIT and adds the GID. One at a time.
    pub fn driver(&self) -> Result<Driver, CommandError> {
        let driver = self.driver_without_gid()?;
        driver.add_gid(self.gid)?;
        Ok(driver)
    }

    /// A driver that has done INIT only.
    pub fn driver_without_gid(&self) -> Result<Driver, CommandError> {
        Driver::init(Arc::clone(&self.memory), self.queues(), self.config()?)
    }

    /// A driver that has not done INIT: for tests of what a device answers to such a one.
    pub fn driver_without_init(&self) -> Result<Driver, Error> {
        Driver::without_init(Arc::clone(&self.memory), self.queues(), self.config()?)
    }

    /// The GID and MAC that `driver` adds.
    pub fn gid(&self) -> GidEntry {
        self.gid
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The rings now in use; new ones come with a reboot or reset.
    pub fn queues(&self) -> Arc<Queues> {
        Arc::clone(&self.queues.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Configuration space, as a guest's read of it.
    pub fn config(&self) -> Result<Config, Error> {
        self.with_link(Link::config)
    }

    /// Bytes of configuration space.
    pub fn read_config(&self, offset: u32, len: u32) -> Result<Vec<u8>, Error> {
        self.with_link(|link| link.read_config(offset, len))
    }

    /// Configuration change messages that this connection has brought.
    pub fn config_changes(&self) -> Result<u64, Error> {
        self.with_link(|link| Ok(link.requests.as_ref().map_or(0, BackendRequests::config_changes)))
    }

    /// Virtio and vhost-user feature bits in force, and protocol feature bits.
    pub fn features(&self) -> Result<(u64, VhostUserProtocolFeatures), Error> {
        self.with_link(|link| Ok((link.features, link.protocol)))
    }

    /// The vhost-user connection itself.
    pub fn frontend(&self) -> Result<Frontend, Error> {
        self.with_link(|link| Ok(link.frontend.clone()))
    }

    /// Sends bytes as they are over the vhost-user socket.
    pub fn send_raw(&self, bytes: &[u8]) -> Result<(), Error> {
        self.with_link(|link| link.stream.write_all(bytes).map_err(Error::io("sending")))
    }

    /// Stops all rings, as a VMM does before a reset, a reboot or migration. Returns where each
    /// stopped.
    pub fn stop(&self) -> Result<Vec<u16>, Error> {
        let queues = self.queues();
        self.with_link(|link| link.stop_rings(&queues))
    }

    /// Starts the rings again where they stopped.
    pub fn start(&self) -> Result<(), Error> {
        let queues = self.queues();
        self.with_link(|link| link.start_rings(&self.memory, &queues))
    }

    /// What a reboot of the guest's kernel looks like from here: rings stopped, new rings in zeroed
    /// memory, all bases 0. The old driver is of no more use.
    pub fn reboot(&self) -> Result<(), Error> {
        self.stop()?;
        self.renew()
    }

    /// A reset with the RESET_DEVICE message.
    pub fn reset_device(&self) -> Result<(), Error> {
        self.stop()?;
        self.with_link(|link| {
            if !link.protocol.contains(VhostUserProtocolFeatures::RESET_DEVICE) {
                return Err(Error::NotOffered("RESET_DEVICE"));
            }
            Ok(link.frontend.reset_device()?)
        })?;
        self.renew()
    }

    /// Sets the virtio device status, if the daemon takes that message.
    pub fn set_status(&self, status: u64) -> Result<(), Error> {
        self.with_link(|link| link.set_status(status))
    }

    /// Closes the connection with everything in flight, as a VMM that is killed.
    pub fn disconnect(&self) {
        *self.link() = None;
    }

    /// Connects again and resumes the same rings, as QEMU does when a daemon comes back. The driver
    /// goes on.
    pub fn reconnect(&self) -> Result<(), Error> {
        let mut link = Link::open(&self.path, &self.settings)?;
        self.begin(&mut link)?;
        *self.link() = Some(link);
        self.queues().kick_all();
        Ok(())
    }

    /// Connects again with new rings, as a VMM that is started anew.
    pub fn reconnect_anew(&self) -> Result<(), Error> {
        let mut link = Link::open(&self.path, &self.settings)?;
        let config = link.config()?;
        let queues = Self::new_queues(&self.memory, &self.settings, &link, &config)?;
        *self.queues.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(queues);
        self.begin(&mut link)?;
        *self.link() = Some(link);
        Ok(())
    }

    /// Plugs in a memory region; returns its index.
    pub fn add_memory(&self, bytes: u64) -> Result<usize, Error> {
        let index = self.memory.add_region(bytes)?;
        self.with_link(|link| {
            if link.has_slots() {
                let region = self.memory.region(index)?;
                link.frontend.add_mem_region(&region_info(&region))?;
                Ok(())
            } else {
                link.set_mem_table(&self.memory)
            }
        })?;
        Ok(index)
    }

    /// Takes a memory region out, whatever is in it.
    pub fn remove_memory(&self, index: usize) -> Result<(), Error> {
        let region = self.memory.remove_region(index)?;
        self.with_link(|link| {
            if link.has_slots() {
                Ok(link.frontend.remove_mem_region(&region_info(&region))?)
            } else {
                link.set_mem_table(&self.memory)
            }
        })
    }

    /// Sends the whole memory table again (SET_MEM_TABLE), as QEMU does at any change.
    pub fn resend_memory_table(&self) -> Result<(), Error> {
        self.with_link(|link| link.set_mem_table(&self.memory))
    }

    fn new_queues(
        memory: &Arc<GuestMemory>,
        settings: &VmConfig,
        link: &Link,
        config: &Config,
    ) -> Result<Queues, Error> {
        let offered = u64::from(config.num_comp_vectors.get()).min(u64::from(MAX_COMP_VECTORS));
        let vectors = offered.min(settings.vectors.into()).min(link.queues.saturating_sub(2) / 2);
        if vectors == 0 {
            return Err(Error::NotOffered("a completion vector"));
        }
        let event_idx = link.features & F_EVENT_IDX != 0;
        let indirect = link.features & F_INDIRECT_DESC != 0;
        Queues::new(memory, vectors as u16, settings.queue_size, event_idx, indirect)
    }

    fn renew(&self) -> Result<(), Error> {
        let queues = self.with_link(|link| {
            let config = link.config()?;
            Self::new_queues(&self.memory, &self.settings, link, &config)
        })?;
        *self.queues.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(queues);
        self.start()
    }

    /// Memory and rings over a new connection.
    fn begin(&self, link: &mut Link) -> Result<(), Error> {
        if link.has_slots() {
            for region in self.memory.regions() {
                link.frontend.add_mem_region(&region_info(&region))?;
            }
        } else {
            link.set_mem_table(&self.memory)?;
        }
        link.start_rings(&self.memory, &self.queues())
    }

    fn link(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_link<T>(&self, f: impl FnOnce(&mut Link) -> Result<T, Error>) -> Result<T, Error> {
        f(self.link().as_mut().ok_or(Error::Disconnected)?)
    }
}

impl Link {
    fn open(path: &Path, settings: &VmConfig) -> Result<Self, Error> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(source) if Instant::now() > deadline => {
                    return Err(Error::Io { what: "connecting to the daemon", source });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let clone = stream.try_clone().map_err(Error::io("duplicating the socket"))?;
        let mut frontend = Frontend::from_stream(stream, 2 + 2 * u64::from(MAX_COMP_VECTORS));
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        let wanted_always = F_VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if offered & wanted_always != wanted_always {
            return Err(Error::NotOffered("VIRTIO_F_VERSION_1 and protocol features"));
        }
        let event_idx = if settings.event_idx { F_EVENT_IDX } else { 0 };
        let indirect = if settings.indirect { F_INDIRECT_DESC } else { 0 };
        let features = offered & (wanted_always | event_idx | indirect);

        let mut wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::STATUS;
        if settings.memory_slots {
            wanted |= VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        }
        let protocol = frontend.get_protocol_features()? & wanted;
        frontend.set_protocol_features(protocol)?;
        let acked = protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        if acked {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if !protocol.contains(VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG) {
            return Err(Error::NotOffered("MQ and CONFIG"));
        }
        let queues = frontend.get_queue_num()?;
        let requests = protocol
            .contains(VhostUserProtocolFeatures::BACKEND_REQ)
            .then(|| BackendRequests::open(&mut frontend, acked))
            .transpose()?;
        Ok(Self { frontend, stream: clone, features, protocol, queues, requests })
    }

    fn config(&mut self) -> Result<Config, Error> {
        let bytes = self.read_config(0, size_of::<Config>() as u32)?;
        Config::read_from_bytes(&bytes).map_err(|_| Error::NotOffered("a whole config space"))
    }

    fn read_config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>, Error> {
        let room = vec![0; len as usize];
        Ok(self.frontend.get_config(offset, len, VhostUserConfigFlags::empty(), &room)?.1)
    }

    fn has_slots(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_mem_table(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        let regions: Vec<_> = memory.regions().iter().map(|region| region_info(region)).collect();
        self.frontend.set_mem_table(&regions)?;
        Ok(())
    }

    fn start_rings(&mut self, memory: &GuestMemory, queues: &Queues) -> Result<(), Error> {
        // Each time, as VMMs do: a reset forgets them.
        self.frontend.set_features(self.features)?;
        for ring in queues.rings() {
            let index = usize::from(ring.index());
            let base = memory.user_address(ring.guest_address()).ok_or(Error::NoRegion(0))?;
            self.frontend.set_vring_num(index, ring.size())?;
            let addresses = VringConfigData {
                queue_max_size: ring.size(),
                queue_size: ring.size(),
                flags: 0,
                desc_table_addr: base,
                used_ring_addr: base + ring.used_offset() as u64,
                avail_ring_addr: base + ring.avail_offset() as u64,
                log_addr: None,
            };
            self.frontend.set_vring_addr(index, &addresses)?;
            self.frontend.set_vring_base(index, ring.used_index())?;
            self.frontend.set_vring_call(index, ring.call_event())?;
            self.frontend.set_vring_kick(index, ring.kick_event())?;
        }
        for ring in queues.rings() {
            self.frontend.set_vring_enable(ring.index().into(), true)?;
        }
        self.set_status(STATUS_RUNNING)
    }

    fn stop_rings(&mut self, queues: &Queues) -> Result<Vec<u16>, Error> {
        for ring in queues.rings() {
            self.frontend.set_vring_enable(ring.index().into(), false)?;
        }
        let mut bases = Vec::new();
        for ring in queues.rings() {
            bases.push(self.frontend.get_vring_base(ring.index().into())? as u16);
        }
        self.set_status(0)?;
        Ok(bases)
    }

    /// A message that crate `vhost` does not have: header (request, flags, length), then a number.
    fn set_status(&mut self, status: u64) -> Result<(), Error> {
        if !self.protocol.contains(VhostUserProtocolFeatures::STATUS) {
            return Ok(());
        }
        let acked = self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        let flags: u32 = if acked { 0x1 | 0x8 } else { 0x1 };
        let mut message = [SET_STATUS, flags, 8].map(u32::to_le_bytes).concat();
        message.extend_from_slice(&status.to_le_bytes());
        self.stream.write_all(&message).map_err(Error::io("SET_STATUS"))?;
        if acked {
            let mut reply = [0; 20];
            self.stream.read_exact(&mut reply).map_err(Error::io("SET_STATUS"))?;
            if reply[12..] != [0; 8] {
                return Err(Error::NotOffered("SET_STATUS, though it said so"));
            }
        }
        Ok(())
    }
}

fn region_info(region: &Region) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.guest_address,
        memory_size: region.len,
        userspace_addr: region.map.address(),
        mmap_offset: 0,
        mmap_handle: region.file.as_raw_fd(),
    }
}

/// The address of a VM: the MAC from config space or, without one, one of its own; and a GID that
/// maps an IPv4 address in 10.0.0.0/8.
fn own_address(settings: &VmConfig, config: &Config) -> GidEntry {
    static COUNT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let [_, _, p1, p0] = std::process::id().to_be_bytes();
    let own_gid = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, p0, high, low];
    let own_mac = [0x02, 0, p1, p0, high, low];
    GidEntry {
        index: 0,
        gid: settings.gid.unwrap_or(own_gid),
        mac: if config.mac == [0; 6] { own_mac } else { config.mac },
    }
}
