// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whole-device tests over the verbs HCA: the real daemon with a device of the stub's, VMs that are
//! native front ends. The tests are those of `device`, as far as they are about what all HCAs do.
#![allow(dead_code, reason = "a part of what the tests share is for others of them")]

#[path = "device/addresses.rs"]
mod addresses;
#[path = "device/atomics.rs"]
mod atomics;
#[path = "device/bad_commands.rs"]
mod bad_commands;
#[path = "device/bad_memory.rs"]
mod bad_memory;
#[path = "device/bad_work.rs"]
mod bad_work;
#[path = "device/commands.rs"]
mod commands;
#[path = "device/completions.rs"]
mod completions;
#[path = "device/connections.rs"]
mod connections;
#[path = "device/cq_verbs.rs"]
mod cq_verbs;
#[path = "device/harness.rs"]
mod harness;
#[path = "device/hca_hotplug.rs"]
mod hca_hotplug;
#[path = "device/init.rs"]
mod init;
#[path = "device/kinds.rs"]
mod kinds;
#[path = "device/lifecycle.rs"]
mod lifecycle;
#[path = "device/local.rs"]
mod local;
#[path = "device/scribble.rs"]
mod scribble;
#[path = "device/stress.rs"]
mod stress;
#[path = "device/transfers.rs"]
mod transfers;
#[path = "device/windows.rs"]
mod windows;
#[path = "device/zero_copy.rs"]
mod zero_copy;

/// A device of the stub's that posts in user space. Every VM's address is the device's on the wire.
fn hca() -> vhost_rdma::HcaSpec {
    static MAP: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();
    let map = MAP.get_or_init(|| {
        let [.., p0] = std::process::id().to_be_bytes();
        let lines = (1..=2000).map(|n| format!("0 10.{p0}.{}.{} 10.0.0.1\n", n >> 8, n & 0xff));
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("gids-{}", std::process::id()));
        std::fs::write(&path, lines.collect::<String>()).expect("the folder is there");
        path
    });
    // The few MRs without remote rights are pinned on use: all others are as without that.
    let text =
        format!("verbs:stub0,library={},gids={},pin=on-use:64K", verbs_stub::PATH, map.display());
    text.parse().expect("a specification")
}

/// Whether the VMs of a test are at two daemons.
const APART: bool = false;

/// There is one daemon.
fn wire(_folder: &std::path::Path) -> harness::Wire {
    harness::Wire::none()
}
