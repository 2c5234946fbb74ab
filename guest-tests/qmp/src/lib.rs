// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU from outside: a QMP client, QEMU's own test protocol (qtest), and the checks of the device
//! `vhost-user-rdma-pci` that need no guest. The lab runs them, and uses the QMP client.
//!
//! With `-accel qtest` no CPU runs: the test itself reads and writes ports, memory and PCI registers,
//! so it can be the guest's driver, one register at a time, and knows when each step happens.
//!
//! Not here: guests that boot (the lab), the device's semantics (`front-end` and its tests).
#![forbid(unsafe_code)]

mod bench;
mod checks;
mod driver;
mod error;
mod pci;
mod qmp;
mod qtest;

pub use bench::{Bench, Env};
pub use checks::{Check, checks};
pub use error::Error;
pub use qmp::Qmp;
pub use qtest::Qtest;
