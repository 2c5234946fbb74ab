// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Unit tests of the files that `tests/models.rs` compiles a second time: beside them, so that they
//! aren't in there.

mod completion;
mod context;
mod life;
mod rcu;
mod run_queue;
