// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The soft HCA: an HCA in software that needs nothing from the host. Two QPs of one daemon talk by
//! one copy from memory to memory.
//!
//! Here: the HCA itself and its limits. A QP's work is in `qp`; who runs it, in `poller`.
//!
//! Locks. Those of the data path are spinlocks, taken in this order: a QP's requester side, a QP's
//! responder side (its own or its peer's, one at a time), then any of the leaves (CQ, GIDs, network,
//! run queue), one at a time; who has a CQ may try for another one, and never waits for it. No thread that holds a responder side ever waits for a requester side,
//! so two QPs that send to each other cannot lock each other out.

mod ah;
mod context;
mod cq;
mod faults;
mod groups;
mod keys;
mod link;
mod network;
pub(crate) mod numbers;
mod place;
mod poller;
pub mod port;
mod qp;
mod rebind;
mod rebound;
mod run_queue;
pub(crate) mod spin;
mod srq;
mod sync;
pub mod wire;
mod xrc;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rdma_midlayer::attr::{DeviceAttr, PortAttr};
use rdma_midlayer::driver::{ContextDriver, ContextInit, HcaDriver, Poller};
use rdma_midlayer::types::{Mtu, PortState};
use rdma_midlayer::work::MAX_SGE;
use rdma_midlayer::{Error, MaySleep, Result};

use context::Context;
pub use link::{Handled, Link, LinkConfig, QpCounts};
use network::Network;
use poller::SoftPoller;

/// Bytes of the longest message (IBA 9.7.7).
pub(crate) const MAX_MESSAGE: u64 = 1 << 31;

/// Pages of one fast registration: the memory is the consumer's, this bounds one work request's time.
const MAX_FAST_REG_PAGES: u32 = 512;

/// How to make a soft HCA.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Its name, unique among registered devices.
    pub name: String,
    /// Parts that need CPU time: one for each worker. At least 1.
    pub pollers: usize,
    /// Limits, per context.
    pub limits: Limits,
    /// QPs of the same daemon, too, talk by packets: for tests.
    pub force_wire: bool,
}

/// What a context may have. None of it costs memory before it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// QPs: up to 2^23.
    pub max_qp: u32,
    /// CQs.
    pub max_cq: u32,
    /// CQEs in a CQ.
    pub max_cqe: u32,
    /// MRs: up to 2^20 - 1.
    pub max_mr: u32,
    /// Bytes in an MR.
    pub max_mr_size: u64,
    /// PDs.
    pub max_pd: u32,
    /// WRs in a queue.
    pub max_qp_wr: u32,
    /// SGEs in a WR: up to 30.
    pub max_sge: u32,
    /// Bytes of inline data.
    pub max_inline: u32,
    /// READs and atomics outstanding at a QP, in either role: up to 255.
    pub max_rd_atomic: u8,
    /// Address handles. They cost nothing here; the number is what a consumer may count on.
    pub max_ah: u32,
    /// SRQs.
    pub max_srq: u32,
    /// Entries of the GID table.
    pub max_gids: u32,
    /// Multicast groups.
    pub max_mcast_grp: u32,
    /// QPs in one of them.
    pub max_mcast_qp_attach: u32,
    /// QPs in all of them, each as often as it is in one.
    pub max_total_mcast_qp_attach: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_qp: 65_536,
            max_cq: 65_536,
            max_cqe: 1 << 22,
            max_mr: 1_000_000,
            max_mr_size: 1 << 48,
            max_pd: 65_536,
            max_qp_wr: 16_384,
            max_sge: MAX_SGE as u32,
            max_inline: 1024,
            max_rd_atomic: 128,
            max_ah: 65_536,
            max_srq: 65_536,
            max_gids: 256,
            max_mcast_grp: 4096,
            max_mcast_qp_attach: 64,
            max_total_mcast_qp_attach: 65_536,
        }
    }
}

/// The soft HCA.
pub struct SoftHca {
    config: Config,
    pollers: Vec<Arc<SoftPoller>>,
    networks: Mutex<Networks>,
    links: Mutex<HashMap<u64, Arc<Link>>>,
}

/// The networks that contexts are in.
#[derive(Default)]
struct Networks {
    by_id: HashMap<u64, Weak<Network>>,
    /// Those with a link, which knows one network for as long as it lives.
    linked: Vec<Arc<Network>>,
}

impl SoftHca {
    /// An HCA without contexts.
    pub fn new(mut config: Config) -> Self {
        let limits = &mut config.limits;
        limits.max_sge = limits.max_sge.min(MAX_SGE as u32);
        limits.max_mr = limits.max_mr.min(keys::MAX_MRS);
        limits.max_qp = limits.max_qp.min(1 << 23);
        let pollers = (0..config.pollers.max(1)).map(|_| Arc::new(SoftPoller::new())).collect();
        let (networks, links) = (Mutex::default(), Mutex::default());
        Self { config, pollers, networks, links }
    }

    /// QPs of this network reach peers that no device here has through `link`, and hear from them. To be
    /// called before the network's first context is made.
    pub fn set_link(&self, network: u64, link: Arc<Link>) {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).insert(network, link);
    }

    /// The link of a network. If packets are forced where there is no port, one of its own, which leads
    /// nowhere else.
    fn link_of(&self, network: u64) -> Option<Arc<Link>> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&network) {
            return Some(link.clone());
        }
        let poller = self.pollers.first().filter(|_| self.config.force_wire)?;
        let name = format!("{} network {network}", self.config.name);
        let link = Link::new(LinkConfig { name, mtu: Mtu::Mtu4096, rate: 0 });
        links.insert(network, link.clone());
        poller.drive(&link);
        Some(link)
    }

    fn network(&self, id: u64) -> Arc<Network> {
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        networks.by_id.retain(|_, network| network.strong_count() > 0);
        match networks.by_id.get(&id).and_then(Weak::upgrade) {
            Some(network) => network,
            None => {
                let network = Network::new(id, self.link_of(id), self.config.force_wire);
                networks.by_id.insert(id, Arc::downgrade(&network));
                if network.link().is_some() {
                    networks.linked.push(network.clone());
                }
                network
            }
        }
    }
}

impl HcaDriver for SoftHca {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn query_device(&self, _cx: &MaySleep) -> Result<DeviceAttr> {
        let limits = &self.config.limits;
        Ok(DeviceAttr {
            node_guid: node_guid(&self.config.name),
            fw_ver: firmware_version(),
            max_mr_size: limits.max_mr_size,
            page_size_cap: !0xfff,
            // An OUI (IBA 11.2.1.2). We have none; this is what other software HCAs say.
            vendor_id: 0xff_ffff,
            vendor_part_id: 0,
            hw_ver: 0,
            max_qp: limits.max_qp,
            max_qp_wr: limits.max_qp_wr,
            max_send_sge: limits.max_sge,
            max_recv_sge: limits.max_sge,
            max_sge_rd: limits.max_sge,
            max_inline: limits.max_inline,
            max_cq: limits.max_cq,
            max_cqe: limits.max_cqe,
            max_mr: limits.max_mr,
            max_pd: limits.max_pd,
            max_ah: limits.max_ah,
            max_srq: limits.max_srq,
            max_srq_wr: limits.max_qp_wr,
            max_srq_sge: limits.max_sge,
            srq_resize: true,
            max_mw: limits.max_mr,
            max_fast_reg_page_list_len: MAX_FAST_REG_PAGES,
            max_xrcd: limits.max_pd,
            local_dma_lkey: true,
            on_demand: true,
            max_qp_rd_atom: u32::from(limits.max_rd_atomic),
            max_qp_init_rd_atom: u32::from(limits.max_rd_atomic),
            atomic_cap: 2,
            atomic_write: true,
            flush: true,
            max_mcast_grp: limits.max_mcast_grp,
            max_mcast_qp_attach: limits.max_mcast_qp_attach,
            max_total_mcast_qp_attach: limits.max_total_mcast_qp_attach,
            max_pkeys: 1,
            local_ca_ack_delay: 15,
        })
    }

    fn query_port(&self, _cx: &MaySleep, port: u8) -> Result<PortAttr> {
        if port != 1 {
            return Err(Error::Invalid("there is one port"));
        }
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let least = links.values().map(|link| link.config().mtu).min_by_key(|mtu| mtu.code());
        Ok(PortAttr {
            state: PortState::Active,
            max_mtu: Mtu::Mtu4096,
            // What fits everywhere: a consumer does not know which way its packets go.
            active_mtu: least.unwrap_or(Mtu::Mtu4096),
            max_msg_sz: MAX_MESSAGE as u32,
            gid_tbl_len: self.config.limits.max_gids,
            pkey_tbl_len: 1,
            // 4X of 25 Gb/s: there is no code for a memory bus.
            active_width: 2,
            active_speed: 32,
        })
    }

    fn alloc_context(&self, _cx: &MaySleep, init: ContextInit) -> Result<Arc<dyn ContextDriver>> {
        let network = self.network(init.network);
        Ok(Context::new(init, self.config.limits.clone(), self.pollers.clone(), network))
    }

    fn pollers(&self) -> Vec<Arc<dyn Poller>> {
        self.pollers.iter().map(|p| p.clone() as Arc<dyn Poller>).collect()
    }
}

/// The same for the same name, and marked as locally administered.
fn node_guid(name: &str) -> [u8; 8] {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let mut guid = hasher.finish().to_be_bytes();
    guid[0] = guid[0] & 0xfc | 2;
    guid
}

fn firmware_version() -> u64 {
    let part = |text: &str| text.parse::<u64>().unwrap_or(0);
    part(env!("CARGO_PKG_VERSION_MAJOR")) << 32
        | part(env!("CARGO_PKG_VERSION_MINOR")) << 16
        | part(env!("CARGO_PKG_VERSION_PATCH"))
}
