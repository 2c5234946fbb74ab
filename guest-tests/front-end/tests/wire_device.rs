// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whole-device tests with every message in packets, which go through the HCA's link and back: what
//! `device` says of work requests holds whichever way they take.
#![allow(dead_code, reason = "a part of what the tests share is for others of them")]

#[path = "device/atomics.rs"]
mod atomics;
#[path = "device/bad_work.rs"]
mod bad_work;
#[path = "device/counters.rs"]
mod counters;
#[path = "device/fast_reg.rs"]
mod fast_reg;
#[path = "device/harness.rs"]
mod harness;
#[path = "device/on_demand.rs"]
mod on_demand;
#[path = "device/on_demand_hostile.rs"]
mod on_demand_hostile;
#[path = "device/placement.rs"]
mod placement;
#[path = "device/transfers.rs"]
mod transfers;
#[path = "device/windows.rs"]
mod windows;
#[path = "device/xrc.rs"]
mod xrc;

/// The soft HCA, by packets even between devices of one daemon.
fn hca() -> vhost_rdma::HcaSpec {
    "soft,wire=always".parse().expect("a specification")
}

/// There is one daemon.
fn wire(_folder: &std::path::Path) -> harness::Wire {
    harness::Wire::none()
}
