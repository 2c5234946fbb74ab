// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Measures the whole device: a daemon and two VMs in one process, whose driver side is one thread
//! and whose data path is one worker. `bin/bench.rs` measures time beside the machine's limits,
//! `bin/instructions.rs` counts instructions.

pub mod apart;
pub mod beside;
pub mod limits;
pub mod others;
pub mod pair;
pub mod setup;
pub mod stage;
pub mod sys;
pub mod table;
pub mod wire;
pub mod work;
