// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The verbs as consumers call them: a handle for each kind of object.
//!
//! Handles are shared by `Arc` and end by an explicit verb, not by being dropped: what a client has
//! not ended when its `remove` returns, `unregister_device` names. A handle whose object has ended, or
//! whose device has gone, answers `Error::Gone`; ending an object of a device that has gone succeeds.

mod ah;
mod context;
mod cq;
mod mr;
mod mw;
mod pd;
mod qp;
mod srq;

pub use ah::Ah;
pub use context::{Context, ContextSpec};
pub use cq::{Cq, CqSpec};
pub use mr::{Mr, Rereg};
pub use mw::{Fmr, Mw};
pub use pd::Pd;
pub use qp::{Qp, QpSpec};
pub use srq::{Srq, SrqSpec, Xrcd};
