// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The InfiniBand midlayer of the Linux kernel, with its locking rules, as a Rust library.
//!
//! Drivers of HCAs implement `driver`; consumers use the handles of the verbs. The contract is the
//! kernel's `core_locking`.

#![deny(missing_docs)]

pub mod attr;
mod completion;
pub mod context;
mod device;
pub mod driver;
pub mod error;
mod event;
mod life;
pub mod memory;
mod object;
pub mod qp_state;
pub mod rcu;
pub mod registry;
mod run_queue;
mod sync;
#[cfg(test)]
mod tests;
pub mod types;
pub mod verbs;
pub mod work;

pub use completion::CompletionHandler;
pub use context::MaySleep;
pub use device::{Device, EventRegistration};
pub use error::{Error, Result};
pub use event::{ContextId, DeviceEventHandler, EventHandler};
pub use registry::{Client, ClientRegistration, Midlayer, Registration};
pub use run_queue::{Drained, RunQueue};
pub use verbs::{
    Ah, Context, ContextSpec, Cq, CqSpec, Fmr, Mr, Mw, Pd, Qp, QpSpec, Rereg, Srq, SrqSpec, Xrcd,
};
