// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The layouts that the driver and the device of virtio-rdma share, and nothing else: no behaviour,
//! no I/O. `docs/virtio-rdma.md` is the specification that gives them their meaning; the C header of
//! the guest driver (`guest-driver/include/virtio_rdma_abi.h`) is generated from here.
//!
//! All integers are little-endian unless a member says otherwise.
#![forbid(unsafe_code)]

pub mod config;
pub mod control;
mod describe;
pub mod doorbell;
pub mod event;
mod header;
mod le;
pub mod ring;

pub use describe::{ConstDesc, FieldDesc, StructDesc};
pub use header::c_header;
pub use le::{Le16, Le32, Le64};
