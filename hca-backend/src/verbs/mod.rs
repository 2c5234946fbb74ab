// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The verbs HCA: an RDMA device of the host (or rxe) through libibverbs, which is loaded when it is
//! asked for. The HCA reads and writes the consumer's pages itself.
//!
//! Here: how it is opened, and what it can do. What all its objects share is in `hca`, who runs it in
//! `engine`; the library's objects are in `host`, its binary interface in `ffi`.
//!
//! Two ways to post. Where the provider posts from user space, a consumer's request goes straight to
//! `ibv_post_send`, and the daemon's workers poll the CQs. Where it enters the kernel to post and to arm
//! (rxe, siw), requests wait on a stage for the driver's own thread, so that verbs that must not sleep
//! don't.
//!
//! Locks. Those of the data path are spinlocks: a QP's own while it posts, a CQ's own while it is
//! polled. Neither is held while the other is taken, but for a completion that the driver makes itself,
//! which takes the CQ's alone.

mod ah;
mod context;
mod cq;
mod engine;
mod feed;
#[allow(unsafe_code, reason = "the library's functions by their addresses")]
pub mod ffi;
mod gids;
mod hca;
#[allow(unsafe_code, reason = "calls the library")]
mod host;
#[allow(unsafe_code, reason = "loads the library")]
mod library;
mod memory;
mod on_use;
mod pd;
mod post;
mod qp;
mod queue;
#[allow(unsafe_code, reason = "maps memory")]
mod range;
mod srq;
#[allow(unsafe_code, reason = "system calls")]
mod wait;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rdma_midlayer::attr::{DeviceAttr, PortAttr};
use rdma_midlayer::driver::{ContextDriver, ContextInit, EventSink, HcaDriver, Poller};
use rdma_midlayer::types::{Mtu, PortState};
use rdma_midlayer::work::MAX_SGE;
use rdma_midlayer::{Error, MaySleep, Result};

use context::Context;
use engine::{Engine, Threads};
use ffi::{ibv_device_attr, ibv_qp_cap};
use hca::{Hca, HostLimits};
use host::{Host, HostChannel, HostCq, HostPd, HostQpSpec};
use library::Library;
use on_use::Pins;

pub use gids::{GidMap, GidMapError, GidMapping, parse_gid};
pub use library::OpenError;

/// Says that a device is gone; gets its name.
pub type Died = Box<dyn Fn(&str) + Send + Sync>;

/// How requests reach the HCA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Post {
    /// As the device's vendor demands.
    #[default]
    Auto,
    /// From whoever posts: the provider does it in user space.
    Direct,
    /// From a thread of the driver's: the provider enters the kernel.
    Thread,
}

/// When the memory of an MR without remote rights is pinned. That of others always is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pin {
    /// When it is registered.
    #[default]
    AtOnce,
    /// When a request names it first. It is let go of again when the limit of locked memory, or a budget,
    /// is reached, and no request that names it may be under way.
    OnUse {
        /// Bytes to be pinned so. More are, if none can be let go of.
        budget: u64,
    },
}

/// How to open a verbs HCA.
pub struct Options {
    /// Port, from 1. It is the tenants' port 1.
    pub port: u8,
    /// libibverbs; without it "libibverbs.so.1", where the system's loader finds it.
    pub library: Option<PathBuf>,
    /// Parts that need CPU time: one for each worker.
    pub pollers: usize,
    /// How requests reach the HCA.
    pub post: Post,
    /// When memory is pinned.
    pub pin: Pin,
    /// What the tenants' GIDs are on the wire.
    pub gids: Arc<GidMap>,
    /// Told once, from a thread of the driver's, when the device is gone. It leaves a note: it calls no
    /// verb, and does not drop the HCA.
    pub died: Option<Died>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 1,
            library: None,
            pollers: 1,
            post: Post::Auto,
            pin: Pin::AtOnce,
            gids: Arc::default(),
            died: None,
        }
    }
}

/// Most of anything that tenants may have, whatever the device could.
mod bounds {
    pub(super) const OBJECTS: i32 = 65_536;
    pub(super) const QP_WR: i32 = 16_384;
    pub(super) const CQE: u32 = 1 << 22;
    pub(super) const MRS: i32 = 1_000_000;
    pub(super) const GIDS: u32 = 256;
    pub(super) const RD_ATOMIC: i32 = 255;
}

/// Sizes of inline data that are tried: the device doesn't say what it can do.
const INLINE: [u32; 7] = [1024, 512, 256, 128, 64, 32, 0];

/// Vendors whose providers post and arm in user space.
const USER_SPACE: [u32; 10] =
    [0x02c9, 0x15b3, 0x14e4, 0x8086, 0x1d0f, 0x19e5, 0x1ded, 0x1414, 0x1077, 0x1425];

/// A device of the host.
pub struct VerbsHca {
    _threads: Threads,
    hca: Arc<Hca>,
    attr: DeviceAttr,
}

/// The RDMA devices that libibverbs sees. May sleep.
///
/// # Errors
/// If the library can't be loaded.
pub fn list(library: Option<&Path>) -> std::result::Result<Vec<String>, OpenError> {
    Ok(host::list(&Library::load(library)?))
}

/// Opens a device. May sleep.
///
/// # Errors
/// What stands in the way, with the remedy where one is known.
pub fn open(
    _cx: &MaySleep,
    name: &str,
    options: Options,
) -> std::result::Result<Arc<VerbsHca>, OpenError> {
    let host = Host::open(Library::load(options.library.as_deref())?, name, options.port)?;
    let failed = |what, remedy| {
        move |e: Error| OpenError::System {
            name: name.to_owned(),
            what,
            error: std::io::Error::from_raw_os_error(e.errno()),
            remedy,
        }
    };
    const LOCKED: &str = "; is the limit of locked memory too low (ulimit -l)?";
    let found = host.query_device().map_err(failed("query", ""))?;
    const INFINIBAND: u8 = 1;
    let port =
        (options.port >= 1 && options.port <= found.phys_port_cnt).then(|| host.query_port());
    match port {
        Some(Ok(port)) if port.link_layer != INFINIBAND => {}
        _ => return Err(OpenError::Port(name.to_owned(), options.port)),
    }
    let max_inline = probe_inline(&host).map_err(failed("trial of a QP", LOCKED))?;
    let by_thread = match options.post {
        Post::Auto => !USER_SPACE.contains(&found.vendor_id),
        Post::Direct => false,
        Post::Thread => true,
    };
    let engine =
        Engine::new(&host, options.pollers, by_thread).map_err(failed("completion channel", ""))?;
    let limits = HostLimits {
        host_cqe: found.max_cqe.max(1) as u32,
        host_sge: found.max_sge.max(1) as u32,
        gid_tbl_len: bounds::GIDS,
    };
    let attr = device_attr(&found, max_inline);
    let pins = match options.pin {
        Pin::AtOnce => None,
        Pin::OnUse { budget } => Some(Pins::new(budget)),
    };
    let hca = Hca::new(host, engine, limits, options.gids, pins, options.died)
        .map_err(failed("memory for the driver's own use", LOCKED))?;
    let threads = Threads::start(&hca).map_err(|error| OpenError::System {
        name: name.to_owned(),
        what: "threads",
        error,
        remedy: "",
    })?;
    let way = if by_thread { "a thread of the driver's" } else { "the workers" };
    log::info!("{name}: port {}, served by {way}, {max_inline} bytes inline", options.port);
    Ok(Arc::new(VerbsHca { _threads: threads, hca, attr }))
}

/// The most inline data that a QP of one SGE gets.
fn probe_inline(host: &Arc<Host>) -> Result<u32> {
    let pd = HostPd::alloc(host)?;
    let channel = HostChannel::create(host)?;
    let cq = HostCq::create(&channel, 16, 0)?;
    let mut last = Error::Unsupported("QPs");
    for max_inline_data in INLINE {
        let cap = ibv_qp_cap {
            max_send_wr: 4,
            max_recv_wr: 4,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data,
        };
        let cqs = [cq.clone(), cq.clone()];
        const RC: u32 = 2;
        let spec = HostQpSpec { cqs, srq: None, cap, qp_type: RC, signal_all: false, number: 0 };
        match pd.create_qp(spec) {
            Ok(_) => return Ok(max_inline_data),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// The device's limits, bounded by what tenants may have.
fn device_attr(found: &ibv_device_attr, max_inline: u32) -> DeviceAttr {
    let bound = |n: i32, most: i32| n.clamp(0, most) as u32;
    let max_sge = bound(found.max_sge, MAX_SGE as i32);
    // Versions are "major.minor.patch", as far as they are numbers.
    let version = found.fw_ver.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect::<Vec<_>>();
    let fw_ver = String::from_utf8_lossy(&version)
        .split('.')
        .take(3)
        .zip([32, 16, 0])
        .fold(0, |sum, (part, shift)| sum | (part.parse::<u64>().unwrap_or(0) & 0xffff) << shift);
    const WINDOWS: u32 = ffi::DEVICE_MEM_WINDOW | ffi::DEVICE_MEM_WINDOW_TYPE_2B;
    DeviceAttr {
        node_guid: found.node_guid,
        fw_ver,
        max_mr_size: found.max_mr_size,
        page_size_cap: found.page_size_cap,
        vendor_id: found.vendor_id,
        vendor_part_id: found.vendor_part_id,
        hw_ver: found.hw_ver,
        max_qp: bound(found.max_qp, bounds::OBJECTS),
        max_qp_wr: bound(found.max_qp_wr, bounds::QP_WR),
        max_send_sge: max_sge,
        max_recv_sge: max_sge,
        max_sge_rd: bound(
            if found.max_sge_rd > 0 { found.max_sge_rd } else { found.max_sge },
            MAX_SGE as i32,
        ),
        max_inline,
        max_cq: bound(found.max_cq, bounds::OBJECTS),
        // Rings of tenants are powers of two. The host's CQ may be a little smaller: its completions
        // move on at once.
        max_cqe: (found.max_cqe.max(1) as u32)
            .saturating_add(1)
            .next_power_of_two()
            .min(bounds::CQE)
            / if (found.max_cqe.max(1) as u32 + 1).is_power_of_two() { 1 } else { 2 },
        max_mr: bound(found.max_mr, bounds::MRS),
        max_pd: bound(found.max_pd, bounds::OBJECTS),
        max_qp_rd_atom: bound(found.max_qp_rd_atom, bounds::RD_ATOMIC),
        max_qp_init_rd_atom: bound(found.max_qp_init_rd_atom, bounds::RD_ATOMIC),
        max_srq: bound(found.max_srq, bounds::OBJECTS),
        max_srq_wr: bound(found.max_srq_wr, bounds::QP_WR),
        max_srq_sge: bound(found.max_srq_sge, MAX_SGE as i32),
        max_mw: if found.device_cap_flags & WINDOWS != 0 {
            bound(found.max_mw, bounds::MRS)
        } else {
            0
        },
        max_ah: bound(found.max_ah, bounds::OBJECTS),
        // REG_MR can't be posted through verbs.
        max_fast_reg_page_list_len: 0,
        atomic_cap: found.atomic_cap,
        max_pkeys: found.max_pkeys.min(1),
        local_ca_ack_delay: found.local_ca_ack_delay,
        ..DeviceAttr::default()
    }
}

impl VerbsHca {
    /// Whether the device is gone.
    pub fn is_dead(&self) -> bool {
        self.hca.host.is_dead()
    }

    /// What the tenants' GIDs are on the wire; a change counts for QPs connected later.
    pub fn gids(&self) -> &Arc<GidMap> {
        &self.hca.gids
    }
}

impl HcaDriver for VerbsHca {
    fn name(&self) -> &str {
        self.hca.host.name()
    }

    fn query_device(&self, _cx: &MaySleep) -> Result<DeviceAttr> {
        Ok(self.attr.clone())
    }

    fn query_port(&self, _cx: &MaySleep, port: u8) -> Result<PortAttr> {
        if port != 1 {
            return Err(Error::Invalid("tenants have one port"));
        }
        let found = self.hca.host.query_port()?;
        let mtu =
            |code: u32| u8::try_from(code).ok().and_then(Mtu::from_code).unwrap_or(Mtu::Mtu1024);
        Ok(PortAttr {
            state: u8::try_from(found.state)
                .ok()
                .and_then(PortState::from_code)
                .unwrap_or(PortState::Down),
            max_mtu: mtu(found.max_mtu),
            active_mtu: mtu(found.active_mtu),
            max_msg_sz: found.max_msg_sz,
            gid_tbl_len: bounds::GIDS,
            pkey_tbl_len: found.pkey_tbl_len.min(1),
            active_width: found.active_width,
            active_speed: found.active_speed.into(),
        })
    }

    fn alloc_context(&self, _cx: &MaySleep, init: ContextInit) -> Result<Arc<dyn ContextDriver>> {
        if self.is_dead() {
            return Err(Error::Gone);
        }
        Ok(Context::new(&self.hca, init))
    }

    fn pollers(&self) -> Vec<Arc<dyn Poller>> {
        if self.hca.engine.has_thread() {
            return Vec::new();
        }
        self.hca.engine.lines().iter().map(|line| line.clone() as Arc<dyn Poller>).collect()
    }

    fn set_event_sink(&self, events: Arc<dyn EventSink>) {
        self.hca.set_sink(events);
    }
}
