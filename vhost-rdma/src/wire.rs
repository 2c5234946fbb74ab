// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The wires of the daemon: one for each network that has a port to the outside, or guests whose
//! virtio-net comes to the daemon. What a wire does is in `hca_backend::soft::port`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use hca_backend::soft::port::{Dgram, MAX_MTU, Member, MemberId, PcapFile, Wire};
use rdma_midlayer::driver::Poller;

pub use hca_backend::soft::port::{Core, Counted, OpenError, PortSpec};

use crate::worker::Worker;

/// Which ports there are.
#[derive(Clone, Debug, Default)]
pub struct WireConfig {
    /// The ports.
    pub ports: Vec<PortSpec>,
    /// A file for all that passes through them.
    pub pcap: Option<PathBuf>,
}

/// How a guest's virtio-net comes to the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestNet {
    /// Socket at which the daemon receives.
    pub local: PathBuf,
    /// Socket at which the front end receives.
    pub remote: PathBuf,
}

/// The wires by their networks. Dropping it closes all ports.
#[derive(Default)]
pub struct Wires {
    list: BTreeMap<u64, OnWorker>,
}

struct OnWorker {
    wire: Arc<Wire>,
    worker: Arc<Worker>,
    /// It has ways out of the daemon.
    outside: bool,
}

/// A device's place on its wire.
#[derive(Debug)]
pub struct Joined {
    network: u64,
    member: Option<MemberId>,
    mac: [u8; 6],
}

impl Wires {
    /// Opens the ports; each wire is polled by one of the workers. May sleep.
    ///
    /// # Errors
    /// What keeps a port from being opened, or the capture file from being made.
    pub fn open(config: &WireConfig, workers: &[Arc<Worker>]) -> Result<Self, OpenError> {
        let capture = config.pcap.as_deref().map(PcapFile::create).transpose()?;
        let mut wires = Self::default();
        for spec in &config.ports {
            let port = spec.open(capture.as_ref())?;
            let failed = |error| OpenError::System { what: format!("port {spec}"), error };
            log::info!("port {spec}: network {}, MTU {}", spec.network, port.mtu());
            let place = wires.of(spec.network, workers).map_err(failed)?;
            place.outside = true;
            place.wire.exchange().connect(Member::Outside(port)).map_err(failed)?;
        }
        Ok(wires)
    }

    fn of(&mut self, network: u64, workers: &[Arc<Worker>]) -> io::Result<&mut OnWorker> {
        let index = self.list.len();
        match self.list.entry(network) {
            Entry::Occupied(place) => Ok(place.into_mut()),
            Entry::Vacant(place) => {
                let wire = Arc::new(Wire::new()?);
                let worker = workers[index % workers.len()].clone();
                worker.add_poller(wire.clone());
                Ok(place.insert(OnWorker { wire, worker, outside: false }))
            }
        }
    }

    /// Connects a device's virtio-net, if it comes to the daemon, and says who answers ARP for it. May
    /// sleep.
    ///
    /// # Errors
    /// What keeps the socket from being made.
    pub fn join(
        &mut self,
        network: u64,
        mac: [u8; 6],
        net: Option<&GuestNet>,
        answer_arp: bool,
        workers: &[Arc<Worker>],
    ) -> Result<Joined, OpenError> {
        let mut joined = Joined { network, member: None, mac };
        if net.is_none() && answer_arp {
            return Ok(joined);
        }
        let port = net.map(|net| Dgram::open(&net.local, &net.remote, MAX_MTU)).transpose()?;
        let failed = |error| OpenError::System { what: format!("network {network}"), error };
        let exchange = self.of(network, workers).map_err(failed)?.wire.exchange();
        exchange.answer_for(mac, answer_arp);
        if let Some(port) = port {
            let member = Member::Guest(Box::new(port), mac);
            joined.member = Some(exchange.connect(member).map_err(failed)?);
        }
        Ok(joined)
    }

    /// The device has gone.
    pub fn leave(&self, joined: &Joined) {
        if let Some(place) = self.list.get(&joined.network) {
            let exchange = place.wire.exchange();
            exchange.answer_for(joined.mac, true);
            joined.member.into_iter().for_each(|member| exchange.disconnect(member));
        }
    }

    /// The networks with a way out of the daemon, and the MTU of that.
    pub fn outside(&self) -> impl Iterator<Item = (u64, usize)> {
        let outside = self.list.iter().filter(|(_, place)| place.outside);
        outside.map(|(network, place)| (*network, place.wire.exchange().mtu()))
    }

    /// Connects an HCA to a network's wire.
    pub fn add_core(&self, network: u64, core: Arc<dyn Core>) {
        if let Some(place) = self.list.get(&network) {
            place.wire.add_core(core);
        }
    }

    /// Disconnects it.
    pub fn remove_core(&self, network: u64, core: &Arc<dyn Core>) {
        if let Some(place) = self.list.get(&network) {
            place.wire.remove_core(core);
        }
    }

    /// What was counted: of every port in frames, of every HCA in packets, and of every QP.
    pub fn counts(&self) -> Vec<Counted> {
        let mut all = Vec::new();
        for (network, place) in &self.list {
            let mut ports = 0;
            for (guest, counters) in place.wire.exchange().counters() {
                let who = match guest {
                    None => {
                        ports += 1;
                        format!("port {ports}")
                    }
                    Some(mac) => {
                        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
                        format!("virtio-net of {mac}")
                    }
                };
                all.push(Counted {
                    who: format!("network {network}, {who}"),
                    counts: counters.list(),
                });
            }
            all.extend(place.wire.counts());
        }
        all
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        for place in self.list.values() {
            let poller: Arc<dyn Poller> = place.wire.clone();
            place.worker.remove_poller(&poller);
        }
    }
}
