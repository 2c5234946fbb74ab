// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's command line for a guest.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guest::Wiring;
use crate::guest_root::GuestRoot;
use crate::host;
use crate::kernels::Kernel;
use crate::network::{MTU, mac, mac_text};

/// Modules without which a Debian kernel finds neither its root nor the lab.
pub const BOOT_MODULES: &[&str] =
    &["virtio_pci", "virtio_blk", "erofs", "overlay", "virtio_net", "virtio_console"];
/// Those that some kernels have and others don't: erofs wants a crc32c, which no list of
/// dependencies says, and which newer kernels have built in.
pub const OPTIONAL_BOOT_MODULES: &[&str] = &["crc32c_generic"];
/// The name of the virtio-serial port that is the line to the lab.
pub const LINE: &str = "lab";

/// QEMU's name for the RDMA device.
pub const RDMA_DEVICE: &str = "vhost-user-rdma-pci";
/// The name of a guest's RDMA device that can be unplugged.
pub const RDMA_ID: &str = "rdma0";

/// The machine's size and looks.
#[derive(Debug, Clone)]
pub struct Machine {
    /// QEMU itself.
    pub program: PathBuf,
    /// Virtual processors.
    pub processors: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Completion vectors of the RDMA device.
    pub vectors: u32,
    /// What a host of guests needs, as a third disk.
    pub nested_image: Option<PathBuf>,
}

/// The command that boots guest `index`.
pub fn command(
    machine: &Machine,
    kernel: &Kernel,
    root: &GuestRoot,
    ramdisk: &Path,
    index: usize,
    wiring: &Wiring,
) -> Command {
    let mut command = Command::new(&machine.program);
    let mut add = |words: &[&str]| {
        command.args(words);
    };
    let processors = machine.processors.to_string();
    add(&["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    add(&["-machine", "q35,memory-backend=mem0", "-accel", "tcg,thread=multi", "-cpu", "max"]);
    add(&["-smp", &processors]);
    // The daemon maps the guest's memory, so it must be a file that can be shared.
    let size = machine.memory_mib;
    add(&["-m", &size.to_string()]);
    add(&["-object", &format!("memory-backend-memfd,id=mem0,size={size}M,share=on")]);
    let nested = machine.nested_image.iter().map(|image| ("nested", image));
    for (id, image) in
        [("root", &root.image), ("modules", &kernel.modules_image)].into_iter().chain(nested)
    {
        let file = image.display();
        add(&["-drive", &format!("if=none,id={id},format=raw,readonly=on,file={file}")]);
        add(&["-device", &format!("virtio-blk-pci,drive={id}")]);
    }
    let network = wiring.network.as_raw_fd();
    let address = mac_text(mac(index));
    add(&["-netdev", &format!("dgram,id=net0,local.type=fd,local.str={network}")]);
    add(&["-device", &format!("virtio-net-pci,netdev=net0,mac={address},host_mtu={MTU}")]);
    let line = wiring.line.as_raw_fd();
    add(&["-device", "virtio-serial-pci"]);
    add(&["-chardev", &format!("socket,id=line,fd={line}")]);
    add(&["-device", &format!("virtserialport,chardev=line,name={LINE}")]);
    for (index, line) in &wiring.inner_lines {
        add(&["-chardev", &format!("socket,id=inner{index},fd={}", line.as_raw_fd())]);
        add(&["-device", &format!("virtserialport,chardev=inner{index},name=inner{index}")]);
    }
    if let Some(socket) = &wiring.rdma_socket {
        let vectors = machine.vectors;
        add(&["-chardev", &format!("socket,id=rdma,path={},reconnect-ms=500", socket.display())]);
        let device = format!(
            "{RDMA_DEVICE},chardev=rdma,num-comp-vectors={vectors},mac={address},page-per-vq=on"
        );
        match &wiring.qmp_socket {
            None => add(&["-device", &device]),
            Some(qmp) => {
                // Its doorbells are pages of a large BAR.
                add(&["-device", "pcie-root-port,id=hp0,chassis=1,slot=1,pref64-reserve=32M"]);
                add(&["-device", &format!("{device},id={RDMA_ID},bus=hp0")]);
                add(&["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())]);
            }
        }
    }
    match &wiring.console {
        Some(console) => add(&["-serial", &format!("file:{}", console.display())]),
        // Ctrl-C is for the guest's shell.
        None => add(&["-chardev", "stdio,id=tty,signal=off", "-serial", "chardev:tty"]),
    }
    add(&["-kernel", &kernel.image.display().to_string()]);
    add(&["-initrd", &ramdisk.display().to_string()]);
    add(&["-append", &kernel_arguments(wiring.console.is_none())]);
    command
}

/// The arguments of QMP's `device_add` that bring back what `command` had plugged in.
pub fn device_to_plug(vectors: u32, index: usize) -> serde_json::Value {
    serde_json::json!({
        "driver": RDMA_DEVICE, "id": RDMA_ID, "bus": "hp0", "chardev": "rdma",
        "num-comp-vectors": vectors, "mac": mac_text(mac(index)), "page-per-vq": true,
    })
}

/// What makes a kernel boot quickly and surely under emulation on a loaded host: no timer checks,
/// a given clock rate instead of a calibrated one, no mitigations, no self tests.
pub fn kernel_arguments(interactive: bool) -> String {
    let mut arguments = String::from(
        "console=ttyS0 rdinit=/init panic=-1 no_timer_check tsc=reliable mitigations=off \
         random.trust_cpu=on cryptomgr.notests net.ifnames=0",
    );
    if let Some(khz) = host::tsc_khz() {
        arguments.push_str(&format!(" tsc_early_khz={khz}"));
    }
    arguments.push_str(if interactive { " quiet loglevel=1" } else { " loglevel=6" });
    arguments
}
