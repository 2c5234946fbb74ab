// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The HCA drivers that there are, and how one is made from an operator's words. The only place of
//! this crate that names drivers of `hca-backend`.

use std::sync::Arc;

use hca_backend::soft::{Config as SoftConfig, Link, LinkConfig, SoftHca};
use rdma_midlayer::driver::HcaDriver;

use crate::spec::HcaSpec;
use crate::wire::{Core, Wires};

/// Why an HCA can't be made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(String);

/// An HCA, and its ends of the wires of networks.
pub struct Opened {
    /// The HCA.
    pub driver: Arc<dyn HcaDriver>,
    /// Its ends, to be connected once it is registered.
    pub cores: Vec<(u64, Arc<dyn Core>)>,
}

/// Makes an HCA whose work `pollers` workers do. The soft HCA reaches the outside by `wires`.
///
/// # Errors
/// What is wrong with the specification, or what the driver answers, in words for an operator.
pub fn open(spec: &HcaSpec, pollers: usize, wires: &Wires) -> Result<Opened, OpenError> {
    match spec.driver.as_str() {
        "soft" => {
            if let Some(device) = &spec.device {
                return Err(OpenError(format!("soft:{device}: the soft HCA needs no device")));
            }
            let force_wire = match spec.options.as_slice() {
                [] => false,
                [(key, value)] if key == "wire" && value == "always" => true,
                [(key, value), ..] => {
                    let text = format!("'{key}={value}': the soft HCA takes wire=always only");
                    return Err(OpenError(text));
                }
            };
            let name = spec.name.clone();
            let config = SoftConfig { name, pollers, force_wire, ..Default::default() };
            let hca = SoftHca::new(config);
            let cores = wires.outside().map(|(network, mtu)| (network, core(&hca, network, mtu)));
            let cores = cores.collect();
            Ok(Opened { driver: Arc::new(hca), cores })
        }
        other => Err(OpenError(format!("there is no HCA driver '{other}': soft"))),
    }
}

/// A network's wire as the soft HCA sees it: the path MTU is what fits into `mtu` bytes of IP.
fn core(hca: &SoftHca, network: u64, mtu: usize) -> Arc<dyn Core> {
    let name = format!("network {network}");
    let link = Link::new(LinkConfig { name, mtu: Link::path_mtu(mtu), rate: 0 });
    hca.set_link(network, link.clone());
    link
}
