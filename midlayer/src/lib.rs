// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The InfiniBand midlayer of the Linux kernel, with its locking rules, as a Rust library.
//!
//! Drivers of HCAs implement `driver`; consumers use the handles of the verbs. The contract is the
//! kernel's `core_locking`.

pub mod attr;
pub mod context;
pub mod driver;
pub mod error;
pub mod memory;
pub mod rcu;
pub mod types;
pub mod work;

pub use context::MaySleep;
pub use error::{Error, Result};
