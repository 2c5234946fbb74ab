// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! User-Mode Linux's command line for a guest.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use crate::guest::Wiring;
use crate::network::{MTU, mac, mac_text};

/// The guest's device that is the line to the lab.
pub const LINE: &str = "/dev/ttyS0";
/// The name UML gives to its network device.
pub const NETDEV: &str = "vec0";

/// The command that boots guest `index`, with its files in `run_directory`.
pub fn command(
    kernel: &Path,
    processors: u32,
    memory_mib: u32,
    ramdisk: &Path,
    run_directory: &Path,
    index: usize,
    wiring: &Wiring,
) -> Command {
    let mut command = Command::new(kernel);
    let network = wiring.network.as_raw_fd();
    let line = wiring.line.as_raw_fd();
    let address = mac_text(mac(index));
    // SMP needs the seccomp way of running guest processes.
    command.arg(format!("mem={memory_mib}M")).arg("seccomp=on").arg(format!("ncpus={processors}"));
    // An idle processor of UML misses an interrupt that comes just before it sleeps
    // (os_idle_sleep looks at the timer's signal only). A tick that goes on makes up for it after
    // 10 ms; without one, a guest that waits for a completion event can wait for ever.
    command.arg("nohz=off");
    command.arg(format!("initrd={}", ramdisk.display())).arg("rdinit=/init").arg("panic=-1");
    command.arg(format!("uml_dir={}", run_directory.display())).arg(format!("umid=guest{index}"));
    command.args(["con=null", "ssl=null"]);
    match &wiring.console {
        Some(_) => command.args(["con0=null,fd:1", "loglevel=6"]),
        None => command.args(["con0=fd:0,fd:1", "quiet", "loglevel=1"]),
    };
    command.arg(format!("ssl0=fd:{line}"));
    for (inner, line) in &wiring.inner_lines {
        command.arg(format!("ssl{inner}=fd:{}", line.as_raw_fd()));
    }
    command.arg(format!("vec0:transport=fd,fd={network},mac={address},mtu={MTU}"));
    if let Some(socket) = &wiring.rdma_socket {
        command.arg(format!("virtio_uml.device={}:42", socket.display()));
    }
    // UML keeps guest memory in a file of this directory, mapped by the daemon too.
    command.env("TMPDIR", "/dev/shm");
    command
}
