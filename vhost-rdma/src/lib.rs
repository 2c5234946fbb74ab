// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vhost-user daemon that gives each VM a virtio-rdma device.

pub mod doorbell;
pub mod mapping;
pub mod memory;
pub mod ring;
