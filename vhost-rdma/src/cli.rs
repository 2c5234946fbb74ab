// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the command line accepts, and what it says about itself.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use log::LevelFilter;
use vhost_rdma::{Cpus, DaemonConfig, DeviceConfig, SocketConfig, WorkerConfig};

/// Printed by `--print-capabilities`, for management software (vhost-user specification, "Backend
/// program conventions").
pub const CAPABILITIES: &str = r#"{
  "type": "rdma",
  "features": []
}"#;

const AFTER: &str = "\
Start the daemon, then QEMU with one device a socket:

  vhost-rdma --socket-path /run/vm1.sock --socket-path /run/vm2.sock
  qemu-system-x86_64 … \\
    -object memory-backend-memfd,id=mem,size=2G,share=on -machine q35,memory-backend=mem \\
    -chardev socket,id=rdma,path=/run/vm1.sock,reconnect-ms=1000 \\
    -device vhost-user-rdma-pci,chardev=rdma,mac=52:54:00:00:00:01,page-per-vq=on

The device belongs to the guest's network device with the same MAC address (usually its virtio-net).
Devices of one daemon reach each other, unless net= puts them into different networks.

Signals: SIGTERM and SIGINT end the daemon in order; SIGUSR1 writes every device's counters to the log.";

/// RDMA for virtual machines: a vhost-user back end that gives each VM a virtio-rdma device.
#[derive(Parser, Debug)]
#[command(version, after_help = AFTER)]
pub struct Cli {
    /// Socket of a VM's device; give it once for each VM.
    ///
    /// PATH[,mac=MAC][,net=N][,vectors=N][,name=NAME]: mac is that of the guest's network device, for
    /// front ends that do not give it themselves; net is the network, 0 to start with; vectors is the
    /// number of completion vectors, 1 to 31 (4); name is for the log.
    #[arg(
        long = "socket-path",
        value_name = "PATH[,KEY=VALUE…]",
        required_unless_present = "print_capabilities"
    )]
    sockets: Vec<SocketArg>,

    /// Threads that carry the data path; as many as --cpus lists, else half of the CPUs, and at least
    /// 1, if not given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,

    /// CPUs for these threads, one each in turn: numbers and ranges, like 2,4-7.
    #[arg(long, value_name = "LIST")]
    cpus: Option<Cpus>,

    /// Microseconds that a worker without work goes on polling before it sleeps; 0: it sleeps at once.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    poll_us: u32,

    /// How much to log: off, error, warn, info, debug, trace. RUST_LOG can say more.
    #[arg(long, default_value = "info")]
    pub log_level: LevelFilter,

    /// Print what this back end can do, as JSON, and exit.
    #[arg(long)]
    pub print_capabilities: bool,
}

impl Cli {
    /// The daemon to start.
    pub fn daemon_config(&self) -> DaemonConfig {
        let half = std::thread::available_parallelism().map_or(1, usize::from) / 2;
        let default = self.cpus.as_ref().map_or(half, Cpus::count);
        DaemonConfig {
            workers: WorkerConfig {
                count: self.workers.map_or(default.max(1), usize::from),
                cpus: self.cpus.clone().unwrap_or_default(),
                poll: Duration::from_micros(self.poll_us.into()),
            },
        }
    }

    /// The devices to add.
    pub fn socket_configs(&self) -> impl Iterator<Item = SocketConfig> + '_ {
        self.sockets.iter().map(|s| s.0.clone())
    }
}

/// One `--socket-path`.
#[derive(Clone, Debug)]
struct SocketArg(SocketConfig);

impl FromStr for SocketArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let path = parts.next().filter(|p| !p.is_empty()).ok_or("the path is missing")?;
        let path = PathBuf::from(path);
        let stem = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let mut device = DeviceConfig { name: stem, mac: [0; 6], network: 0, vectors: 4 };
        for part in parts {
            let (key, value) =
                part.split_once('=').ok_or_else(|| format!("'{part}' is not KEY=VALUE"))?;
            match key {
                "mac" => device.mac = mac(value)?,
                "net" => device.network = value.parse().map_err(|e| format!("net={value}: {e}"))?,
                "name" => device.name = value.to_owned(),
                "vectors" => {
                    device.vectors = match value.parse() {
                        Ok(n @ 1..=31) => n,
                        _ => return Err(format!("vectors={value}: 1 to 31")),
                    }
                }
                _ => return Err(format!("unknown key '{key}': mac, net, vectors, name")),
            }
        }
        Ok(Self(SocketConfig { path, device }))
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
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_socket_takes_its_options_and_names_what_is_wrong() {
        let all: SocketArg =
            "/a/b.sock,mac=52:54:00:00:00:01,net=7,vectors=2,name=x".parse().unwrap();
        assert_eq!(all.0.path, PathBuf::from("/a/b.sock"));
        assert_eq!((all.0.device.network, all.0.device.vectors), (7, 2));
        assert_eq!(all.0.device.mac, [0x52, 0x54, 0, 0, 0, 1]);
        let plain: SocketArg = "/a/b.sock".parse().unwrap();
        assert_eq!(plain.0.device.name, "b");
        for (bad, word) in [
            (",mac=1", "path"),
            ("a,mac=1", "mac="),
            ("a,mac=01:00:00:00:00:00", "multicast"),
            ("a,vectors=32", "1 to 31"),
            ("a,b", "KEY=VALUE"),
            ("a,b=c", "unknown key"),
        ] {
            let error = bad.parse::<SocketArg>().unwrap_err();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
