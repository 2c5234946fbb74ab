// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the command line accepts, and what it says about itself.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use log::LevelFilter;
use vhost_rdma::{Cpus, DaemonConfig, HcaSpec, PortSpec, SocketConfig, WireConfig, WorkerConfig};

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

A way out, and a guest whose virtio-net shares it (MAC and IP address are those of both):

  vhost-rdma --port packet:eth1 --socket-path \\
    /run/vm1.sock,mac=52:54:00:00:00:01,net-local=/run/vm1.net,net-remote=/run/vm1.qemu
  qemu-system-x86_64 … \\
    -netdev dgram,id=n0,local.type=unix,local.path=/run/vm1.qemu,\\
  remote.type=unix,remote.path=/run/vm1.net -device virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01

With --control /run/vhost-rdma.sock it can be changed while it runs: see vhost-rdma-ctl --help.

Signals: SIGTERM and SIGINT end the daemon in order; SIGUSR1 writes every device's counters to the log.";

/// RDMA for virtual machines: a vhost-user back end that gives each VM a virtio-rdma device.
#[derive(Parser, Debug)]
#[command(version, after_help = AFTER)]
pub struct Cli {
    /// Socket of a VM's device; give it once for each VM.
    ///
    /// PATH[,mac=MAC][,net=N][,vectors=N][,name=NAME][,hca=NAME]: mac is that of the guest's network
    /// device, for front ends that do not give it themselves; net is the network, 0 to start with;
    /// vectors is the number of completion vectors, 1 to 31 (4); name is for the log and for
    /// vhost-rdma-ctl; hca is the HCA behind it, by its name: the first one, if not given.
    ///
    /// [,net-local=PATH,net-remote=PATH]: the guest's virtio-net comes to the daemon too, by QEMU's
    /// -netdev dgram (net-remote is its local.path, net-local its remote.path), and shares the ports
    /// of the network: RoCE goes to the device, everything else to the guest. [,arp=off]: without
    /// it the daemon answers ARP and ND for devices whose virtio-net does not come to it; switch that
    /// off where the guest answers on the same wire by another way. Both need mac=.
    #[arg(
        long = "socket-path",
        value_name = "PATH[,KEY=VALUE…]",
        required_unless_present_any = ["print_capabilities", "control"]
    )]
    sockets: Vec<SocketConfig>,

    /// An HCA; may be given several times. Without it there is the soft HCA, `soft0=soft`.
    ///
    /// [NAME=]DRIVER[:DEVICE][,KEY=VALUE…]: NAME is what hca= of --socket-path and vhost-rdma-ctl call
    /// it. Drivers: soft, an HCA in software (with wire=always its QPs talk by
    /// packets even to each other, for tests); verbs:DEVICE, an RDMA device of the host, by libibverbs,
    /// with port=N (1), gids=FILE (lines NETWORK GUEST-GID WIRE-GID), post=auto|direct|thread,
    /// library=PATH. One whose device the host does not have is waited for.
    #[arg(long = "hca", value_name = "[NAME=]DRIVER[:DEVICE][,KEY=VALUE…]")]
    hcas: Vec<HcaSpec>,

    /// A port to the outside; may be given several times. Without it, devices reach each other only.
    ///
    /// tap:NAME (a TAP device, made if need be), packet:IFNAME (an interface of the host, by packet
    /// socket) or dgram:LOCAL,REMOTE (Unix datagrams of one Ethernet frame, as QEMU's -netdev dgram
    /// speaks); [,net=N]: the network whose devices are behind it (0); [,mtu=N]: if smaller than the
    /// interface's, or for dgram (1500). The path MTU of RoCE follows from it: 1024 with 1500, 4096 from
    /// 4192 on. Several ports of a network are joined by a switch. For tests,
    /// [,loss=N][,duplicate=N][,reorder=N] in a million frames, [,delay-us=N][,seed=N].
    #[arg(long = "port", value_name = "PORT[,KEY=VALUE…]", value_parser = port)]
    ports: Vec<Option<PortSpec>>,

    /// Write all frames of the ports to this file, for Wireshark.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,

    /// Management socket, for vhost-rdma-ctl: HCAs and devices come and go at run time.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

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

    /// Milliseconds after which workers compare what they have to do; one with much more to do than
    /// another gives it a busy QP. 0: QPs stay where they are.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    balance_ms: u32,

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
                balance: Duration::from_millis(self.balance_ms.into()),
            },
            hcas: self.hcas.clone(),
            wire: WireConfig {
                ports: self.ports.iter().flatten().cloned().collect(),
                pcap: self.pcap.clone(),
            },
        }
    }

    /// The devices to add.
    pub fn socket_configs(&self) -> impl Iterator<Item = SocketConfig> + '_ {
        self.sockets.iter().cloned()
    }
}

/// A port, or `none`, which is none.
fn port(text: &str) -> Result<Option<PortSpec>, String> {
    if text == "none" { Ok(None) } else { text.parse().map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
