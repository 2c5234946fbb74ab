// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How an operator names a port: `tap:NAME`, `packet:IFNAME`, `dgram:LOCAL,REMOTE`, and what may follow.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::{Capture, Dgram, Fault, Faults, MAX_MTU, OpenError, Packet, PcapFile, Port, Tap};

/// Ethernet's MTU, where nothing else is known.
const ETHERNET_MTU: usize = 1500;
/// The smallest MTU of IPv6, and enough for a path MTU of 1024.
const MIN_MTU: usize = 1280;

/// What a port is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A TAP device.
    Tap(String),
    /// A packet socket on an interface.
    Packet(String),
    /// Unix datagrams: received at the first path, sent to the second.
    Dgram(PathBuf, PathBuf),
}

/// A port as an operator names it.
#[derive(Clone, Debug, PartialEq)]
pub struct PortSpec {
    /// What it is made of.
    pub kind: PortKind,
    /// The network of devices that it belongs to.
    pub network: u64,
    /// The MTU, if it is to be smaller than the interface's, or for Unix datagrams, which have none.
    pub mtu: Option<usize>,
    /// What happens to its frames.
    pub faults: Faults,
}

impl PortSpec {
    /// A port with the usual settings.
    pub fn of(kind: PortKind) -> Self {
        Self { kind, network: 0, mtu: None, faults: Faults::default() }
    }

    /// Opens it. What passes through goes to `capture` too.
    ///
    /// # Errors
    /// What keeps it from being opened.
    pub fn open(&self, capture: Option<&Arc<PcapFile>>) -> Result<Box<dyn Port>, OpenError> {
        let limit = |mtu: usize| self.mtu.map_or(mtu, |wanted| wanted.min(mtu));
        let port: Box<dyn Port> = match &self.kind {
            PortKind::Tap(name) => Box::new(Tap::open(name)?.limited(limit)),
            PortKind::Packet(name) => Box::new(Packet::open(name)?.limited(limit)),
            PortKind::Dgram(local, remote) => {
                Box::new(Dgram::open(local, remote, self.mtu.unwrap_or(ETHERNET_MTU))?)
            }
        };
        let port: Box<dyn Port> = match capture {
            Some(file) => Box::new(Capture::new(port, file.clone())),
            None => port,
        };
        let none = Faults { seed: self.faults.seed, ..Faults::default() };
        if self.faults == none {
            return Ok(port);
        }
        log::warn!("port {self}: frames are lost, doubled, swapped or delayed on purpose");
        let fault = Fault::new(port, self.faults).map_err(OpenError::system(self.to_string()))?;
        Ok(Box::new(fault))
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            PortKind::Tap(name) => write!(f, "tap:{name}"),
            PortKind::Packet(name) => write!(f, "packet:{name}"),
            PortKind::Dgram(local, remote) => {
                write!(f, "dgram:{},{}", local.display(), remote.display())
            }
        }
    }
}

impl FromStr for PortSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let usage = "tap:NAME, packet:IFNAME or dgram:LOCAL,REMOTE";
        let (kind, name) =
            first.split_once(':').ok_or_else(|| format!("'{first}' is no port: {usage}"))?;
        if name.is_empty() {
            return Err(format!("the name after '{kind}:' is missing"));
        }
        let kind = match kind {
            "tap" => PortKind::Tap(name.to_owned()),
            "packet" => PortKind::Packet(name.to_owned()),
            "dgram" => {
                let remote = parts
                    .next()
                    .filter(|remote| !remote.is_empty())
                    .ok_or("dgram:LOCAL,REMOTE: the remote path is missing")?;
                PortKind::Dgram(name.into(), remote.into())
            }
            _ => return Err(format!("'{kind}' is no kind of port: {usage}")),
        };
        let mut spec = Self::of(kind);
        for part in parts {
            let (key, value) =
                part.split_once('=').ok_or_else(|| format!("'{part}' is not KEY=VALUE"))?;
            spec.set(key, value)?;
        }
        Ok(spec)
    }
}

impl PortSpec {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let number = || value.parse::<u64>().map_err(|e| format!("{key}={value}: {e}"));
        let millionth = || match number()? {
            n @ 0..=1_000_000 => Ok(n as u32),
            _ => Err(format!("{key}={value}: in a million, 0 to 1000000")),
        };
        match key {
            "net" => self.network = number()?,
            "mtu" => {
                self.mtu = match value.parse() {
                    Ok(mtu @ MIN_MTU..=MAX_MTU) => Some(mtu),
                    _ => return Err(format!("mtu={value}: {MIN_MTU} to {MAX_MTU}")),
                }
            }
            "loss" => self.faults.loss = millionth()?,
            "duplicate" => self.faults.duplicate = millionth()?,
            "reorder" => self.faults.reorder = millionth()?,
            "delay-us" => self.faults.delay = Duration::from_micros(number()?.min(1_000_000)),
            "seed" => self.faults.seed = number()?,
            _ => {
                return Err(format!(
                    "unknown key '{key}': net, mtu; for tests loss, duplicate, reorder, delay-us, seed"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_named_as_the_manual_says() {
        let tap: PortSpec = "tap:vr0".parse().unwrap();
        assert_eq!(tap, PortSpec::of(PortKind::Tap("vr0".to_owned())));
        let spec: PortSpec = "dgram:/run/a,/run/b,net=3,mtu=9000,loss=1000,seed=5".parse().unwrap();
        assert_eq!(spec.kind, PortKind::Dgram("/run/a".into(), "/run/b".into()));
        assert_eq!((spec.network, spec.mtu), (3, Some(9000)));
        assert_eq!((spec.faults.loss, spec.faults.seed), (1000, 5));
        assert_eq!(spec.to_string(), "dgram:/run/a,/run/b");
    }

    #[test]
    fn what_is_wrong_with_a_name_is_said() {
        for (bad, word) in [
            ("eth0", "tap:NAME"),
            ("tap:", "missing"),
            ("vde:x", "no kind"),
            ("dgram:/a", "remote"),
            ("tap:a,mtu=100", "1280 to 9216"),
            ("tap:a,b", "KEY=VALUE"),
            ("tap:a,speed=1", "unknown key"),
            ("tap:a,loss=1000001", "in a million"),
            ("tap:a,net=x", "net=x"),
        ] {
            let error = bad.parse::<PortSpec>().unwrap_err();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
