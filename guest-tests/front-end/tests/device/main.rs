// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whole-device tests: the real daemon in this process, VMs that are native front ends. One binary,
//! so that the daemon is linked once.

mod addresses;
mod atomics;
mod bad_commands;
mod bad_memory;
mod bad_work;
mod balance;
mod commands;
mod completions;
mod connections;
mod counters;
mod cq_verbs;
mod device_memory;
mod fast_reg;
mod harness;
mod hca_hotplug;
mod init;
mod kinds;
mod lifecycle;
mod local;
mod multicast;
mod on_demand;
mod on_demand_hostile;
mod placement;
mod rage;
mod scale;
mod scribble;
mod solicited;
mod srq_resize;
mod stress;
mod transfers;
mod windows;
mod xrc;

/// The HCA that the daemon has.
fn hca() -> vhost_rdma::HcaSpec {
    vhost_rdma::HcaSpec::default()
}

/// Whether the VMs of a test are at two daemons.
const APART: bool = false;

/// There is one daemon.
fn wire(_folder: &std::path::Path) -> harness::Wire {
    harness::Wire::none()
}
