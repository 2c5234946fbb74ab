// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line of `cargo lab`. What the commands do is elsewhere.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::fleet::{DEFAULT_MEMORY_MIB, DEFAULT_PROCESSORS, DEFAULT_VECTORS, Shape};
use crate::guest::Kind;
use crate::kernels::Release;

/// Boots virtual machines with the RDMA device and runs programs in them.
///
/// The lab needs a Debian 12 host and root. It installs what it needs from Debian by package
/// name, and keeps what it builds (guest root file system, QEMU, kernels, module, provider)
/// outside the checkout in /var/cache/vhost-rdma, or where VHOST_RDMA_CACHE says; remove that
/// directory to begin anew. A first run takes 20 to 40 minutes on two cores, later ones little.
/// VHOST_RDMA_QEMU names a QEMU to use instead of building one.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the device at work: standard RDMA programs between two guests, beside rxe
    ///
    /// Two guests with a virtio-net link between them and an RDMA device each, one daemon. Runs
    /// ibv_devinfo, ibv_rc_pingpong and perftest, polled and with events, each also over rxe
    /// between the same two guests, and ends with a table of both.
    Demo(DemoArguments),
    /// Run a script in N guests
    ///
    /// Every guest runs SCRIPT as root. Its environment has GUEST_INDEX (from 0), GUEST_COUNT,
    /// GUEST_KIND, ADDR (its own address), ADDR_0, ADDR_1 …, PEER_ADDR (the next guest's),
    /// PEER_ADDRS (all others'), and RDMA_DEVICE (empty with --no-rdma). `lab-barrier NAME` waits
    /// until all guests' scripts have called it; `lab-barrier NAME VALUE` also prints what
    /// each of them gave. `lab-host WORD…` has the host do something: `lab-host ctl hca remove
    /// soft0` calls vhost-rdma-ctl for the daemon. `verifier --help` tells of the byte checker.
    /// Each line of output is printed with its guest's name. The exit status is not zero if any
    /// script fails or the time-out passes.
    Run(RunArguments),
    /// A guest to type in; leave with `exit` or Ctrl-D
    Shell(ShellArguments),
    /// Run everything that CI runs, or some of it
    ///
    /// Formatting, lints, unit tests, the header check, module and provider builds, and whole-
    /// system tests in guests. Ends with a line `N passed, N failed`.
    Test(TestArguments),
    /// Show the device at work across a wire, beside rxe
    ///
    /// perftest between two guests whose network is Unix datagrams: both with rxe; one with rxe and one
    /// with our device, either as client; both with our device, each served by a daemon of its own. Ends
    /// with a table of medians.
    Wire(WireArguments),
    /// Measure the device beside the limits of this machine
    ///
    /// Measures in two UML guests, then builds and runs the program `bench`, which drives the daemon
    /// through the native front end, and takes its options after `--` (`cargo lab bench -- --help`; with
    /// its --only there are no guests). Prints one table, and writes it as JSON to bench.json in cargo's
    /// target folder unless --json names another file.
    Bench(BenchArguments),
}

/// Which guests to boot.
#[derive(Debug, Clone, Args)]
pub struct GuestArguments {
    /// What the guests run on
    #[arg(long, value_enum, default_value = "qemu")]
    pub kind: Kind,
    /// Which kernel QEMU guests boot
    #[arg(long, value_enum, default_value = "6.12")]
    pub kernel: Release,
    /// Debian packages to add to the guests, with commas
    #[arg(long, value_delimiter = ',')]
    pub packages: Vec<String>,
    /// No RDMA device, no daemon: guests with just a network (rxe can be loaded in them)
    #[arg(long)]
    pub no_rdma: bool,
    /// The first N guests have no RDMA device: their network is a port of the daemon, with the other
    /// guests' devices behind it (rxe in the ones and our device in the others reach each other)
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "no_rdma")]
    pub outside: usize,
    /// Frames in a million that these ports lose, in each direction
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub loss: u32,
    /// Messages between the guests' RDMA devices go by packets, as between two hosts
    #[arg(long)]
    pub packets: bool,
    /// The RDMA device can be unplugged: `lab-host unplug` and `lab-host plug` (QEMU only)
    #[arg(long)]
    pub hot_plug: bool,
    /// Virtual processors of each guest
    #[arg(long, default_value_t = DEFAULT_PROCESSORS, value_parser = clap::value_parser!(u32).range(1..=4))]
    pub smp: u32,
    /// Memory of each guest in MiB
    #[arg(long, default_value_t = DEFAULT_MEMORY_MIB, value_parser = clap::value_parser!(u32).range(256..))]
    pub memory: u32,
    /// Completion vectors of each RDMA device (QEMU only)
    #[arg(long, default_value_t = DEFAULT_VECTORS, value_parser = clap::value_parser!(u32).range(1..=30))]
    pub vectors: u32,
}

impl GuestArguments {
    /// The shape of `guests` guests as asked for.
    pub fn shape(&self, guests: usize) -> Shape {
        Shape {
            kind: self.kind,
            release: self.kernel,
            guests,
            processors: self.smp,
            memory_mib: self.memory,
            vectors: self.vectors,
            packages: self.packages.clone(),
            rdma: !self.no_rdma,
            outside: self.outside.min(guests),
            apart: false,
            loss: self.loss,
            packets: self.packets,
            hot_plug: self.hot_plug,
            hosts: 0,
        }
    }
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// What the guests run on
    #[arg(long, value_enum, default_value = "qemu")]
    pub kind: Kind,
}

/// Options of `wire`.
#[derive(Debug, Args)]
pub struct WireArguments {
    /// What the guests run on
    #[arg(long, value_enum, default_value = "uml")]
    pub kind: Kind,
    /// How often everything is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    #[command(flatten)]
    pub guest: GuestArguments,
    /// How many guests
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub guests: u16,
    /// The first N guests are hosts to the others, which the script boots in the first one with
    /// what guest-tests/scripts/nested-host.sh has
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = ["no_rdma", "outside"])]
    pub hosts: usize,
    /// Seconds the scripts may take, from the moment when all guests are up
    #[arg(long, default_value_t = 300)]
    pub timeout: u64,
    /// A file to lay into the guests' /root (may be given more than once)
    #[arg(long = "file", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Take SCRIPT as shell commands instead of as a file's name
    #[arg(long, short)]
    pub command: bool,
    /// A file with an interpreter line, run as root in every guest
    pub script: String,
    /// Arguments for the script
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

/// Options of `shell`.
#[derive(Debug, Args)]
pub struct ShellArguments {
    #[command(flatten)]
    pub guest: GuestArguments,
    /// How many guests; the shell is in the first one, the others idle
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub guests: u16,
}

/// Options of `bench`.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// No rows of UML guests
    #[arg(long)]
    pub no_guests: bool,
    /// Two QEMU guests as well, beside rxe: the demonstration's figures
    #[arg(long)]
    pub vms: bool,
    /// Options of the program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<String>,
}

/// Options of `test`.
#[derive(Debug, Args)]
pub struct TestArguments {
    /// Only name the tests
    #[arg(long)]
    pub list: bool,
    /// The long ones too
    #[arg(long)]
    pub full: bool,
    /// Only tests with this in their name
    pub filter: Option<String>,
}
