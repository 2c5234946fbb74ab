// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The HCA drivers that there are, and how one is made from an operator's words. The only place of
//! this crate that names drivers of `hca-backend`.

use std::sync::Arc;

use hca_backend::soft::{Config as SoftConfig, SoftHca};
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
pub fn open(spec: &HcaSpec, pollers: usize, _wires: &Wires) -> Result<Opened, OpenError> {
    match spec.driver.as_str() {
        "soft" => {
            if let Some(device) = &spec.device {
                return Err(OpenError(format!("soft:{device}: the soft HCA needs no device")));
            }
            if let Some((key, _)) = spec.options.first() {
                return Err(OpenError(format!("unknown key '{key}': the soft HCA has no options")));
            }
            let name = spec.name.clone();
            let config = SoftConfig { name, pollers, limits: Default::default() };
            Ok(Opened { driver: Arc::new(SoftHca::new(config)), cores: Vec::new() })
        }
        other => Err(OpenError(format!("there is no HCA driver '{other}': soft"))),
    }
}
