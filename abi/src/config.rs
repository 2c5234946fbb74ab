// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Device configuration space, the virtqueues and the feature bits.

use crate::describe::{abi_consts, abi_structs};
use crate::le::{Le16, Le32};

abi_consts! { DEVICE_CONSTS, "The device", u32;
    /// The virtio device ID of an RDMA device.
    DEVICE_ID = 42;
    /// Version of this interface: a driver and a device with different majors do not work together.
    ABI_MAJOR = 1;
    /// Minor version: counts additions; a higher one is always usable by a lower one.
    ABI_MINOR = 0;
    /// The control virtqueue.
    QUEUE_CONTROL = 0;
    /// The event virtqueue: asynchronous events and hot-plug.
    QUEUE_EVENT = 1;
    /// Completion virtqueue of vector 0; that of vector `v` is this plus `2 * v`.
    QUEUE_COMP_FIRST = 2;
    /// Doorbell virtqueue of vector 0; that of vector `v` is this plus `2 * v`. It never carries a
    /// buffer: its notify address is the doorbell of the worker that serves the vector.
    QUEUE_DOORBELL_FIRST = 3;
    /// Completion vectors at the most (64 virtqueues in all).
    MAX_COMP_VECTORS = 31;
}

abi_structs! {
    /// Configuration space: read-only for the driver, always current (each read asks the device).
    pub struct Config {
        /// `ABI_MAJOR` of the device.
        pub abi_major: Le16,
        /// `ABI_MINOR` of the device.
        pub abi_minor: Le16,
        /// MAC address of the paired network device, to which the driver binds its RDMA device.
        /// All zero: no pairing is given, and the driver reports the lack of it.
        pub mac: [u8; 6],
        /// Completion vectors that the device has: 1 to `MAX_COMP_VECTORS`.
        pub num_comp_vectors: Le16,
        /// Counts the HCAs that have come and gone: odd while one is there, even while none is.
        pub hca_generation: Le32,
        /// 1 while an HCA is there, else 0; every command but INIT answers `STATUS_NO_HCA` then.
        pub hca_present: u8,
        /// State of port 1 as IBA names it: 1 down, 2 init, 3 armed, 4 active.
        pub port_state: u8,
        /// Largest path MTU: 1 = 256, 2 = 512, 3 = 1024, 4 = 2048, 5 = 4096 bytes.
        pub max_mtu: u8,
        /// Path MTU in force, in the same code.
        pub active_mtu: u8,
        /// Zero.
        pub reserved: [u8; 44],
    }
}
