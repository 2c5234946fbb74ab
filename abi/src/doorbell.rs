// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The words by which a driver learns whether it must ring, and says what for.
//!
//! After it has posted (see `ring.rs`), the driver executes a full fence, reads the queue's mode
//! word, and stops there if it says POLLED. Otherwise it sets the bit of the QP's slot in the
//! bitmap of its UAR, sets the bit of that bitmap word in the summary, executes a full fence, reads
//! the sleep word of the vector that the mode word names, and, only if it reads 1, writes the
//! notify address of that vector's doorbell virtqueue.

use crate::describe::{abi_consts, abi_structs};
use crate::le::{Le32, Le64};

abi_structs! {
    /// First line of a user access region (UAR); the bitmap of pending slots follows it, a
    /// little-endian 64-bit word for 64 slots, up to the end of the region. Written by driver
    /// (sets bits) and device (clears them), with atomic read-modify-write operations only.
    pub struct UarHeader {
        /// Bit `(slot / 64) % 64` is set after the bit of the slot.
        pub summary: Le64,
        /// Zero.
        pub reserved: [u8; 56],
    }

    /// One line of the status page, for one vector. Written by the device only; the driver maps the
    /// page read-only into processes.
    pub struct VectorStatus {
        /// 0 while the worker that serves this vector looks at the summaries by itself, 1 while it
        /// sleeps and must be notified.
        pub sleeping: Le32,
        /// Zero.
        pub reserved: [u8; 60],
    }
}

abi_consts! { MODE_CONSTS, "The mode word of a send or receive queue", u32;
    /// Set: the device polls the phase of the next WQE by itself. Clear: ring after posting.
    MODE_POLLED = 1;
    /// The number of the vector whose doorbell to ring stands in the bits from here up.
    MODE_VECTOR_SHIFT = 16;
}

abi_consts! { UAR_CONSTS, "User access regions", u32;
    /// Bytes from the start of the UAR to the bitmap.
    UAR_BITMAP_OFFSET = 64;
    /// Bytes of a UAR at the most: room for 130,560 slots.
    UAR_MAX_BYTES = 16384;
}
