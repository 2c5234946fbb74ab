// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vhost-user daemon that gives each VM a virtio-rdma device, as a library: `main.rs` adds the
//! command line.
//!
//! From the outside in: `daemon` has devices; `connection` serves a device's socket through `backend`
//! and `vring`; `device` is a client of the midlayer and keeps the gate to the VM's memory (`memory`,
//! `mapping`); `control` executes a driver's commands on its `session`. The data path: `worker` polls
//! `door`s by the protocol of `doorbell`, takes turns with each `qp`, which reads and writes `ring`s,
//! and tells the driver through `events`. An operator names HCAs and devices as `spec` reads them, and
//! changes them at run time through `management`; `hca` makes HCAs.

pub mod affinity;
pub mod ah;
pub mod backend;
pub mod balance;
mod clock;
pub mod connection;
pub mod control;
pub mod counters;
pub mod cq;
pub mod daemon;
pub mod device;
pub mod door;
pub mod doorbell;
pub mod events;
pub mod fast;
pub mod hca;
pub mod hotplug;
pub mod management;
pub mod mapping;
pub mod memory;
pub mod moderation;
pub mod qp;
pub mod ring;
pub mod seat;
pub mod session;
pub mod share;
mod sigbus;
pub mod spec;
pub mod srq;
pub mod vring;
pub mod wire;
pub mod worker;

pub use affinity::Cpus;
pub use daemon::{Daemon, DaemonConfig, SocketConfig, StartError};
pub use device::DeviceConfig;
pub use management::Management;
pub use spec::HcaSpec;
pub use wire::{GuestNet, PortSpec, WireConfig};
pub use worker::WorkerConfig;
