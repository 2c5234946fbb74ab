// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device writes into the buffers of the event and completion virtqueues.

use crate::describe::{abi_consts, abi_structs};
use crate::le::Le32;

abi_structs! {
    /// A buffer of a completion virtqueue: "this CQ was armed and has an event". One entry an
    /// event. Without a buffer the event waits in the device and is not lost.
    pub struct CompEvent {
        /// The CQ.
        pub cqn: Le32,
        /// The arm sequence that this event answers (see `CqGuestLine::arm`).
        pub arm: Le32,
    }

    /// A buffer of the event virtqueue.
    pub struct AsyncEvent {
        /// `EVENT_*`.
        pub event: Le32,
        /// What it is about: a QPN, CQN, SRQN, or port number; 0 for the device itself.
        pub number: Le32,
        /// `Config::hca_generation` at the event.
        pub hca_generation: Le32,
        /// Zero.
        pub reserved: Le32,
    }
}

abi_consts! { EVENT_CONSTS, "Asynchronous events (IBA 11.6.3)", u32;
    /// A CQ overflowed or can no longer be written.
    EVENT_CQ_ERR = 0;
    /// A QP is in error for a reason of the device's own.
    EVENT_QP_FATAL = 1;
    /// The responder of a QP saw an invalid request.
    EVENT_QP_REQ_ERR = 2;
    /// The responder of a QP saw an access that is not allowed.
    EVENT_QP_ACCESS_ERR = 3;
    /// A QP in RTR received its first message.
    EVENT_COMM_EST = 4;
    /// A QP in SQD has completed what it had begun.
    EVENT_SQ_DRAINED = 5;
    /// The device is in error: destroy everything.
    EVENT_DEVICE_FATAL = 8;
    /// The port became active.
    EVENT_PORT_ACTIVE = 9;
    /// The port went down.
    EVENT_PORT_ERR = 10;
    /// An SRQ is in error.
    EVENT_SRQ_ERR = 14;
    /// An SRQ holds fewer WQEs than its limit.
    EVENT_SRQ_LIMIT_REACHED = 15;
    /// A QP of an SRQ in ERR has taken its last WQE.
    EVENT_QP_LAST_WQE_REACHED = 16;
    /// The GID table changed.
    EVENT_GID_CHANGE = 18;
    /// An HCA appeared: the RDMA device can be registered.
    EVENT_HCA_ADDED = 0x100;
    /// The HCA is gone: every object of the driver answers `STATUS_NO_HCA` from here.
    EVENT_HCA_REMOVED = 0x101;
    /// Work waits for pages of an MR of memory on demand; the number is the MR's.
    EVENT_PAGE_FAULT = 0x102;
}
