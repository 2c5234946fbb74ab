// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! RoCEv2 without I/O: packets in, packets out, time passed in. Here: formats, the opcode table, and
//! the state machines of a QP (requester with completer, responder).
//!
//! Not here: where memory, work queues and completions are (the `Host` traits are the seam to that),
//! which QP a packet is for, and who moves frames. Nothing here sleeps, locks, or reads a clock, and
//! all that a packet from the network can cause is bounded.

pub mod counters;
pub mod dcqcn;
pub mod frame;
pub mod headers;
pub mod opcode;
pub mod packet;
pub mod requester;
pub mod responder;
pub mod timers;
