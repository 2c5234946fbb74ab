// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How an operator names an HCA or a device, in one line: the same grammar on the daemon's command
//! line and on the management socket. What the names mean to a driver is `hca.rs`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::daemon::SocketConfig;
use crate::device::DeviceConfig;
use crate::wire::GuestNet;

/// The name of the soft HCA, unless the operator gives it another.
pub const SOFT_NAME: &str = "soft0";

/// An HCA: `[NAME=]DRIVER[:DEVICE][,KEY=VALUE…]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HcaSpec {
    /// By which devices and commands name it; unique in a daemon.
    pub name: String,
    /// Which driver: `soft`, `verbs`.
    pub driver: String,
    /// Which of the host's devices, for drivers of such.
    pub device: Option<String>,
    /// The driver's own options.
    pub options: Vec<(String, String)>,
}

impl Default for HcaSpec {
    /// The soft HCA.
    fn default() -> Self {
        Self {
            name: SOFT_NAME.to_owned(),
            driver: "soft".to_owned(),
            device: None,
            options: Vec::new(),
        }
    }
}

impl FromStr for HcaSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (head, rest) = text.split_once(',').unwrap_or((text, ""));
        let (name, driver) = match head.split_once('=') {
            Some((name, driver)) => (Some(name), driver),
            None => (None, head),
        };
        let (driver, device) = match driver.split_once(':') {
            Some((_, "")) => return Err(format!("'{head}': the device's name is missing")),
            Some((driver, device)) => (driver, Some(device.to_owned())),
            None => (driver, None),
        };
        if driver.is_empty() {
            return Err(format!("'{text}': the driver is missing: [NAME=]DRIVER[:DEVICE]"));
        }
        let name = match (name, &device) {
            (Some(name), _) => name,
            (None, Some(device)) => device,
            (None, None) if driver == "soft" => SOFT_NAME,
            (None, None) => driver,
        };
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
            return Err(format!("'{name}': a name is 1 to 64 letters, digits, '-', '_', '.'"));
        }
        let options = rest.split(',').filter(|part| !part.is_empty()).map(pair);
        Ok(Self {
            name: name.to_owned(),
            driver: driver.to_owned(),
            device,
            options: options.collect::<Result<_, _>>()?,
        })
    }
}

impl fmt::Display for HcaSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.driver)?;
        if let Some(device) = &self.device {
            write!(f, ":{device}")?;
        }
        self.options.iter().try_for_each(|(key, value)| write!(f, ",{key}={value}"))
    }
}

fn pair(part: &str) -> Result<(String, String), String> {
    let (key, value) = part.split_once('=').ok_or(format!("'{part}' is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A device: `PATH[,mac=MAC][,net=N][,vectors=N][,name=NAME][,hca=NAME][,net-local=PATH,net-remote=PATH]
/// [,arp=on|off]`.
impl FromStr for SocketConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let path = parts.next().filter(|p| !p.is_empty()).ok_or("the path is missing")?;
        let path = PathBuf::from(path);
        let stem = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let mut device =
            DeviceConfig { name: stem, mac: [0; 6], network: 0, vectors: 4, hca: None };
        let (mut local, mut remote, mut answer_arp) = (None, None, true);
        for part in parts {
            let (key, value) = pair(part)?;
            match key.as_str() {
                "mac" => device.mac = mac(&value)?,
                "net" => device.network = value.parse().map_err(|e| format!("net={value}: {e}"))?,
                "name" => device.name = value,
                "hca" => device.hca = Some(value),
                "net-local" => local = Some(PathBuf::from(value)),
                "net-remote" => remote = Some(PathBuf::from(value)),
                "arp" => {
                    answer_arp = match value.as_str() {
                        "on" => true,
                        "off" => false,
                        _ => return Err(format!("arp={value}: on or off")),
                    }
                }
                "vectors" => {
                    device.vectors = match value.parse() {
                        Ok(n @ 1..=31) => n,
                        _ => return Err(format!("vectors={value}: 1 to 31")),
                    }
                }
                _ => {
                    return Err(format!(
                        "unknown key '{key}': mac, net, vectors, name, hca, net-local, net-remote, arp"
                    ));
                }
            }
        }
        let net = match (local, remote) {
            (None, None) => None,
            (Some(local), Some(remote)) => Some(GuestNet { local, remote }),
            _ => return Err("net-local= and net-remote= go together".to_owned()),
        };
        if device.mac == [0; 6] && (net.is_some() || !answer_arp) {
            return Err("net-local= and arp= need the MAC address of the guest: mac=".to_owned());
        }
        Ok(Self { path, device, net, answer_arp })
    }
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|b| u8::from_str_radix(b, 16).ok()).collect();
    match bytes.as_deref() {
        Some(&[first, b, c, d, e, f]) if first & 1 == 0 => Ok([first, b, c, d, e, f]),
        Some([_, _, _, _, _, _]) => Err(format!("mac={text}: a multicast address")),
        _ => Err(format!("mac={text}: six bytes in hexadecimal, like 52:54:00:12:34:56")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_takes_its_options_and_names_what_is_wrong() {
        let all: SocketConfig =
            "/a/b.sock,mac=52:54:00:00:00:01,net=7,vectors=2,name=x,hca=rxe".parse().unwrap();
        assert_eq!(all.path, PathBuf::from("/a/b.sock"));
        assert_eq!((all.device.network, all.device.vectors), (7, 2));
        assert_eq!(all.device.mac, [0x52, 0x54, 0, 0, 0, 1]);
        assert_eq!(all.device.hca.as_deref(), Some("rxe"));
        let net: SocketConfig =
            "/a,mac=52:54:00:00:00:01,net-local=/b,net-remote=/c".parse().unwrap();
        assert_eq!(net.net, Some(GuestNet { local: "/b".into(), remote: "/c".into() }));
        let plain: SocketConfig = "/a/b.sock".parse().unwrap();
        assert!(plain.net.is_none() && plain.answer_arp);
        assert_eq!((plain.device.name.as_str(), plain.device.hca), ("b", None));
        for (bad, word) in [
            (",mac=1", "path"),
            ("a,mac=1", "mac="),
            ("a,mac=01:00:00:00:00:00", "multicast"),
            ("a,vectors=32", "1 to 31"),
            ("a,b", "KEY=VALUE"),
            ("a,b=c", "unknown key"),
            ("a,mac=52:54:00:00:00:01,net-local=b", "go together"),
            ("a,net-local=b,net-remote=c", "mac="),
            ("a,arp=off", "mac="),
            ("a,arp=x", "on or off"),
        ] {
            let error = bad.parse::<SocketConfig>().unwrap_err();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }

    #[test]
    fn an_hca_has_a_name_a_driver_and_options_and_is_written_as_it_is_read() {
        for (text, written) in [
            ("soft", "soft0=soft"),
            ("s=soft", "s=soft"),
            ("verbs:rxe0,port=1", "rxe0=verbs:rxe0,port=1"),
            ("uplink=verbs:mlx5_0", "uplink=verbs:mlx5_0"),
        ] {
            let spec: HcaSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), written);
            assert_eq!(written.parse(), Ok(spec));
        }
        assert_eq!("soft".parse(), Ok(HcaSpec::default()));
        for (bad, word) in [
            ("", "driver is missing"),
            ("a=", "driver is missing"),
            ("verbs:", "device's name"),
            ("=soft", "a name is"),
            ("a b=soft", "a name is"),
            ("soft,port", "KEY=VALUE"),
        ] {
            let error = bad.parse::<HcaSpec>().unwrap_err();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
