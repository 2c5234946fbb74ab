// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The HCA drivers that there are, and how one is made from an operator's words. The only place of
//! this crate that names `hca-backend`.

use std::sync::Arc;

use hca_backend::soft::{Config as SoftConfig, SoftHca};
use rdma_midlayer::driver::HcaDriver;

use crate::spec::HcaSpec;

/// Why an HCA can't be made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(String);

/// Makes an HCA whose work `pollers` workers do.
///
/// # Errors
/// What is wrong with the specification, or what the driver answers, in words for an operator.
pub fn open(spec: &HcaSpec, pollers: usize) -> Result<Arc<dyn HcaDriver>, OpenError> {
    match spec.driver.as_str() {
        "soft" => {
            if let Some(device) = &spec.device {
                return Err(OpenError(format!("soft:{device}: the soft HCA needs no device")));
            }
            if let Some((key, _)) = spec.options.first() {
                return Err(OpenError(format!("unknown key '{key}': the soft HCA has no options")));
            }
            let name = spec.name.clone();
            Ok(Arc::new(SoftHca::new(SoftConfig { name, pollers, limits: Default::default() })))
        }
        other => Err(OpenError(format!("there is no HCA driver '{other}': soft"))),
    }
}
