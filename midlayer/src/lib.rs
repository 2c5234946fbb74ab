// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The InfiniBand midlayer of the Linux kernel, with its locking rules, as a Rust library.
//!
//! Drivers of HCAs implement [`driver`]; consumers register a [`Client`] and use the handles of
//! [`verbs`]. Between them stands the contract of the kernel's `core_locking` text. Where Rust can say
//! a rule, a type says it; where it can't, a model or a test does. `docs/midlayer.md` has the same
//! list in full, with advice for those who write drivers and consumers.
//!
//! # The contract
//!
//! **Sleeping.** What may sleep takes a [`MaySleep`], which a thread makes at its entry point and which
//! can't leave it: a handler has none (`tests/compile_fail.rs`), can't make one, and if one is smuggled
//! in, the verb answers `NotPermitted` (`tests/callbacks.rs`). Without a token, and so callable from any
//! context: `create_ah`, `modify_ah`, `query_ah`, `destroy_ah`, `bind_mw`, `post_send`, `post_recv`,
//! `poll_cq`, `req_notify_cq`, `map_phys_fmr`, and for drivers `dispatch_event`. They make no system
//! call that may block: `tests/never_sleep.rs` traps them, on the soft HCA too (`hca-backend/tests/`
//! `never_sleep.rs`).
//!
//! **Reentrancy.** No lock is held across a method of a driver. Any number of threads may call verbs on
//! one object; ending an object waits for the verbs inside it, and later ones answer `Gone`
//! (`tests/stress.rs`; `tests/models.rs` with loom).
//!
//! **Callbacks.** Handlers run from a [`RunQueue`], drained by a worker between two verbs or by a thread
//! of the midlayer, never in the call chain of a verb; one handler of a CQ at a time, those of different
//! vectors in parallel; no wake-up is lost; after `destroy` none runs (`tests/callbacks.rs`,
//! `tests/models.rs`).
//!
//! **Events.** `dispatch_event` delivers in order, later and elsewhere, to the context's handler and to
//! every handler of the device (`tests/callbacks.rs`).
//!
//! **Hot-plug.** [`Midlayer::register_device`](registry::Midlayer::register_device) when all
//! initialisation is done; the device works until every client's `remove` has returned; `add` for every
//! present and future device, `remove` in reverse order; no lock is held across either; who leaves
//! objects behind is named (`tests/registry.rs`).
//!
//! **Objects** know what depends on them (`Busy`), and the QP's states come from one table
//! ([`qp_state`], IBA 10.3.1; `tests/objects.rs`, `tests/qp_state.rs`, `tests/reference.rs`).
//!
//! # Cost
//!
//! `post_send` and `poll_cq` cost a direct call and a look whether the object is alive, inside an
//! [`rcu`] guard: no lock, no allocation, no shared count. `benches/direct_call.rs` measures it, and
//! fails beyond 5 ns.
//!
//! # Unsafe code
//!
//! Denied, but in four files: `memory` (moves bytes of memory that others write), `rcu` (frees what
//! readers may have seen), `run_queue` (an intrusive list, since reporting a completion may not
//! allocate), `sync` (one system call).

#![deny(missing_docs, unsafe_code)]

pub mod attr;
mod completion;
pub mod context;
mod device;
pub mod driver;
pub mod error;
mod event;
mod life;
#[allow(unsafe_code, reason = "moves bytes of memory that others write")]
pub mod memory;
mod object;
pub mod qp_state;
#[allow(unsafe_code, reason = "frees what readers may have seen, after the last of them")]
pub mod rcu;
pub mod registry;
#[allow(unsafe_code, reason = "an intrusive list: a completion may not allocate")]
mod run_queue;
#[allow(unsafe_code, reason = "the system call membarrier")]
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
pub use sync::full_fence;
pub use verbs::{
    Ah, Context, ContextSpec, Cq, CqSpec, Fmr, Mr, Mw, Pd, Qp, QpSpec, Rereg, Srq, SrqSpec, Xrcd,
};
