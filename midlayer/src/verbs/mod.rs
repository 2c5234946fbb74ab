// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The verbs as consumers call them: a handle for each kind of object.
//!
//! Handles are shared by `Arc` and end by an explicit verb, not by being dropped: what a client has
//! not ended when its `remove` returns, `unregister_device` names. A handle whose object has ended, or
//! whose device has gone, answers `Error::Gone`; ending an object of a device that has gone succeeds.

mod context;
mod cq;
mod mr;
mod pd;
mod qp;

pub use context::{Context, ContextSpec};
pub use cq::{Cq, CqSpec};
pub use mr::Mr;
pub use pd::Pd;
pub use qp::{Qp, QpSpec};
