// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Does what a request of the management socket asks for.

use std::net::Ipv6Addr;

use rdma_midlayer::MaySleep;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Answer, DeviceStatus, Gid, HcaStatus, Request};
use crate::counters;
use crate::daemon::Daemon;
use crate::device::Device;
use crate::hca::{GidMapping, parse_gid};

/// Executes one request. May sleep.
pub fn execute(cx: &MaySleep, daemon: &mut Daemon, request: Request) -> Answer {
    match try_execute(cx, daemon, request) {
        Ok(value) => Answer::Ok(value),
        Err(why) => Answer::Error(why),
    }
}

fn try_execute(cx: &MaySleep, daemon: &mut Daemon, request: Request) -> Result<Value, String> {
    match request {
        Request::HcaAdd { hca } => {
            daemon.add_hca(cx, hca.parse()?).map_err(|e| e.to_string())?;
            log::info!("management: added HCA {hca}");
            Ok(Value::Null)
        }
        Request::HcaRemove { name } => {
            daemon.remove_hca(cx, &name).map_err(|e| e.to_string())?;
            log::info!("management: removed HCA {name}");
            Ok(Value::Null)
        }
        Request::HcaList => hcas(daemon),
        Request::DeviceAdd { device } => {
            daemon.add_device(cx, device.parse()?).map_err(|e| e.to_string())?;
            log::info!("management: added device {device}");
            Ok(Value::Null)
        }
        Request::DeviceRemove { name } => {
            daemon.remove_device(cx, &name).map_err(|e| e.to_string())?;
            log::info!("management: removed device {name}");
            Ok(Value::Null)
        }
        Request::DeviceList => devices(daemon),
        Request::GidList { hca } => gids(daemon, &hca),
        Request::GidMap { hca, network, guest, wire } => {
            let (virtual_gid, physical) = (gid(&guest)?, gid(&wire)?);
            let map = daemon.gids(&hca).map_err(|e| e.to_string())?;
            map.set(GidMapping { network, virtual_gid, physical });
            log::info!("management: {hca}: {guest} of network {network} is {wire} on the wire");
            Ok(Value::Null)
        }
        Request::GidUnmap { hca, network, guest } => {
            let map = daemon.gids(&hca).map_err(|e| e.to_string())?;
            if !map.remove(network, gid(&guest)?) {
                return Err(format!("{guest} of network {network} is not mapped"));
            }
            log::info!("management: {hca}: {guest} of network {network} is itself on the wire");
            Ok(Value::Null)
        }
        Request::WireCounters => Ok(wire_counters(daemon)),
        Request::Counters { name } => all_counters(daemon, name.as_deref()),
    }
}

fn hcas(daemon: &Daemon) -> Result<Value, String> {
    let status = daemon.hcas().map(|(spec, present)| HcaStatus {
        name: spec.name.clone(),
        hca: spec.to_string(),
        present,
        devices: daemon
            .devices()
            .filter(|device| hca_of(device) == spec.name)
            .map(|device| device.name().to_owned())
            .collect(),
    });
    to_value(&status.collect::<Vec<_>>())
}

fn devices(daemon: &Daemon) -> Result<Value, String> {
    let status = daemon.sockets().map(|(path, device, connected)| {
        let config = device.config();
        let mac = config.mac.map(|byte| format!("{byte:02x}")).join(":");
        DeviceStatus {
            name: config.name.clone(),
            socket: path.display().to_string(),
            mac: (config.mac != [0; 6]).then_some(mac),
            network: config.network,
            vectors: config.vectors,
            hca: hca_of(device).to_owned(),
            hca_present: device.hca().is_some(),
            connected,
            running: device.gate().is_open(),
        }
    });
    to_value(&status.collect::<Vec<_>>())
}

fn gids(daemon: &Daemon, hca: &str) -> Result<Value, String> {
    let map = daemon.gids(hca).map_err(|e| e.to_string())?;
    let list = map.list().into_iter().map(|mapping| Gid {
        network: mapping.network,
        guest: address(mapping.virtual_gid.0),
        wire: address(mapping.physical.0),
    });
    to_value(&list.collect::<Vec<_>>())
}

fn gid(text: &str) -> Result<rdma_midlayer::types::Gid, String> {
    parse_gid(text).ok_or_else(|| format!("'{text}' is no GID: an IPv4 or IPv6 address"))
}

/// A GID as people write it.
fn address(gid: [u8; 16]) -> String {
    let v6 = Ipv6Addr::from(gid);
    v6.to_ipv4_mapped().map_or_else(|| v6.to_string(), |v4| v4.to_string())
}

fn all_counters(daemon: &Daemon, name: Option<&str>) -> Result<Value, String> {
    let only = name.map(|name| daemon.device(name)).transpose().map_err(|e| e.to_string())?;
    let wanted = |device: &&Device| only.is_none_or(|only| std::ptr::eq(&**only, *device));
    let all = daemon
        .sockets()
        .filter(|(_, device, _)| wanted(&&***device))
        .map(|(path, device, _)| {
            let counts = device.counters();
            let counts = counters::named(&counts).map(|(name, n)| (name.to_owned(), n.into()));
            (path.display().to_string(), Value::Object(counts.collect()))
        })
        .collect::<Map<_, _>>();
    Ok(Value::Object(all))
}

fn wire_counters(daemon: &Daemon) -> Value {
    let all = daemon.wire_counts().into_iter().map(|counted| {
        let counts = counted.counts.into_iter().map(|(name, n)| (name.to_owned(), n.into()));
        (counted.who, Value::Object(counts.collect()))
    });
    Value::Object(all.collect())
}

fn hca_of(device: &Device) -> &str {
    device.config().hca.as_deref().unwrap_or_default()
}

fn to_value(value: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|e| e.to_string())
}
