// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The HCA drivers that there are, and how one is made from an operator's words. The only place of
//! this crate that names drivers of `hca-backend`.

use std::path::Path;
use std::sync::Arc;

use hca_backend::soft::{Config as SoftConfig, Link, LinkConfig, SoftHca};
use hca_backend::verbs;
pub use hca_backend::verbs::{GidMap, GidMapping, parse_gid};
use rdma_midlayer::MaySleep;
use rdma_midlayer::driver::HcaDriver;

use crate::hotplug::Died;
use crate::spec::HcaSpec;
use crate::wire::{Core, Wires};

/// Why an HCA can't be made.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct OpenError {
    text: String,
    absent: bool,
}

impl OpenError {
    fn new(text: String) -> Self {
        Self { text, absent: false }
    }

    /// Whether all would be well if the host had the device.
    pub fn is_absent(&self) -> bool {
        self.absent
    }
}

/// An HCA, and its ends of the wires of networks.
pub struct Opened {
    /// The HCA.
    pub driver: Arc<dyn HcaDriver>,
    /// Its ends, to be connected once it is registered.
    pub cores: Vec<(u64, Arc<dyn Core>)>,
}

/// What an HCA is made with, beside its specification.
pub struct Surroundings<'a> {
    /// How many workers do its work.
    pub pollers: usize,
    /// By which the soft HCA reaches the outside.
    pub wires: &'a Wires,
    /// What its tenants' GIDs are on the wire; see `gid_map`.
    pub gids: &'a Arc<GidMap>,
    /// Where a driver notes that its device died.
    pub died: &'a Arc<Died>,
}

/// Makes an HCA. May sleep.
///
/// # Errors
/// What is wrong with the specification, or what the driver answers, in words for an operator.
pub fn open(cx: &MaySleep, spec: &HcaSpec, with: &Surroundings<'_>) -> Result<Opened, OpenError> {
    match spec.driver.as_str() {
        "soft" => {
            if let Some(device) = &spec.device {
                return Err(OpenError::new(format!("soft:{device}: the soft HCA needs no device")));
            }
            let force_wire = match spec.options.as_slice() {
                [] => false,
                [(key, value)] if key == "wire" && value == "always" => true,
                [(key, value), ..] => {
                    let text = format!("'{key}={value}': the soft HCA takes wire=always only");
                    return Err(OpenError::new(text));
                }
            };
            let (name, pollers) = (spec.name.clone(), with.pollers);
            let config = SoftConfig { name, pollers, force_wire, ..Default::default() };
            let hca = SoftHca::new(config);
            let outside = with.wires.outside();
            let cores = outside.map(|(network, mtu)| (network, core(&hca, network, mtu))).collect();
            Ok(Opened { driver: Arc::new(hca), cores })
        }
        "verbs" => {
            let device = verbs_device(spec)?;
            let driver = verbs::open(cx, device, verbs_options(spec, with)?).map_err(|e| {
                let absent = matches!(e, verbs::OpenError::NoDevice { .. });
                OpenError { text: e.to_string(), absent }
            })?;
            Ok(Opened { driver, cores: Vec::new() })
        }
        other => Err(OpenError::new(format!("there is no HCA driver '{other}': soft, verbs"))),
    }
}

/// The map from the tenants' GIDs to those of the wire that an HCA begins with: that of its file, if it
/// names one. None for drivers without such a map.
///
/// # Errors
/// What is wrong with the file.
pub fn gid_map(spec: &HcaSpec) -> Result<Option<Arc<GidMap>>, OpenError> {
    if spec.driver != "verbs" {
        return Ok(None);
    }
    let map = GidMap::default();
    for (_, file) in spec.options.iter().filter(|(key, _)| key == "gids") {
        map.add_file(Path::new(file)).map_err(|e| OpenError::new(format!("{file}: {e}")))?;
    }
    Ok(Some(Arc::new(map)))
}

fn verbs_device(spec: &HcaSpec) -> Result<&str, OpenError> {
    match spec.device.as_deref() {
        Some(device) if device == spec.name => Ok(device),
        Some(device) => Err(OpenError::new(format!("an RDMA device keeps its name, '{device}'"))),
        None => {
            Err(OpenError::new("the device is missing: verbs:DEVICE, like verbs:mlx5_0".into()))
        }
    }
}

fn verbs_options(spec: &HcaSpec, with: &Surroundings<'_>) -> Result<verbs::Options, OpenError> {
    let died = with.died.clone();
    let mut options = verbs::Options {
        pollers: with.pollers,
        gids: with.gids.clone(),
        died: Some(Box::new(move |name| died.note(name))),
        ..Default::default()
    };
    for (key, value) in &spec.options {
        match (key.as_str(), value.as_str()) {
            ("port", _) => {
                options.port = match value.parse() {
                    Ok(port @ 1..) => port,
                    _ => return Err(OpenError::new(format!("port={value}: a number from 1"))),
                }
            }
            ("post", "auto") => options.post = verbs::Post::Auto,
            ("post", "direct") => options.post = verbs::Post::Direct,
            ("post", "thread") => options.post = verbs::Post::Thread,
            ("post", _) => {
                return Err(OpenError::new(format!("post={value}: auto, direct, thread")));
            }
            ("pin", "at-once") => options.pin = verbs::Pin::AtOnce,
            ("pin", "on-use") => options.pin = verbs::Pin::OnUse { budget: u64::MAX },
            ("pin", value) => match value.strip_prefix("on-use:").and_then(bytes) {
                Some(budget) => options.pin = verbs::Pin::OnUse { budget },
                None => {
                    let text =
                        format!("pin={value}: at-once, on-use, on-use:BYTES (like on-use:4G)");
                    return Err(OpenError::new(text));
                }
            },
            // Read by `gid_map`.
            ("gids", _) => {}
            ("library", path) => options.library = Some(path.into()),
            _ => {
                return Err(OpenError::new(format!(
                    "unknown key '{key}': port, post, pin, gids, library"
                )));
            }
        }
    }
    Ok(options)
}

/// A number of bytes, with K, M or G behind it or nothing.
fn bytes(text: &str) -> Option<u64> {
    let (number, shift) = match text.char_indices().last()? {
        (at, 'K') => (&text[..at], 10),
        (at, 'M') => (&text[..at], 20),
        (at, 'G') => (&text[..at], 30),
        _ => (text, 0),
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A network's wire as the soft HCA sees it: the path MTU is what fits into `mtu` bytes of IP.
fn core(hca: &SoftHca, network: u64, mtu: usize) -> Arc<dyn Core> {
    let name = format!("{}, network {network}", hca.name());
    let link = Link::new(LinkConfig { name, mtu: Link::path_mtu(mtu), rate: 0 });
    hca.set_link(network, link.clone());
    link
}
