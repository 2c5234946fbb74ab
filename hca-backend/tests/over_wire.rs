// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tests of the soft HCA once more, with every message in packets that go through the link and back:
//! the same semantics whichever way is taken. Those that are about how the direct way gets on return at
//! once.

// Each of them has the common parts of its own.
#![allow(clippy::duplicate_mod)]

#[path = "soft_errors.rs"]
mod soft_errors;
#[path = "soft_memory.rs"]
mod soft_memory;
#[path = "soft_model.rs"]
mod soft_model;
#[path = "soft_multicast.rs"]
mod soft_multicast;
#[path = "soft_placement.rs"]
mod soft_placement;
#[path = "soft_rc.rs"]
mod soft_rc;
#[path = "soft_states.rs"]
mod soft_states;
#[path = "soft_stress.rs"]
mod soft_stress;
#[path = "soft_transports.rs"]
mod soft_transports;
