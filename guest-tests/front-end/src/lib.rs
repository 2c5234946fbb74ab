// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver side of the virtio-rdma device in a host process: what a VM's VMM, kernel driver and
//! user-space provider do, in Rust over memfds, for tests, fuzzing and benchmarks without a VM.
//!
//! No assertions and no test cases live here: those are in `tests/`.
//!
//! ```no_run
//! use front_end::{connect_rc, QpOptions, RcOptions, SendWr, Vm, VmConfig, access};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vm = Vm::connect("/run/rdma/a.sock", VmConfig::default())?;
//! let driver = vm.driver()?;
//! let pd = driver.alloc_pd()?;
//! let mut cq = driver.create_cq(256, 0)?;
//! let mut a = driver.create_qp(&pd, &cq, &cq, &QpOptions::default())?;
//! let mut b = driver.create_qp(&pd, &cq, &cq, &QpOptions::default())?;
//! connect_rc(&mut a, &mut b, &RcOptions::default())?;
//! let memory = driver.memory().alloc_scattered(8192)?;
//! let mr = driver.reg_mr(&pd, &memory, access::ALL)?;
//! b.post_recv(7, &[mr.sge(4096, 4096)])?;
//! a.post_send(&SendWr::send(1, &[mr.sge(0, 4096)]).signaled())?;
//! let completions = cq.poll_for(2, std::time::Duration::from_secs(1))?;
//! # let _ = completions;
//! # Ok(())
//! # }
//! ```

#![deny(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("the front end stores native integers where the device wants little-endian ones");

mod command;
mod cq;
mod driver;
mod error;
#[allow(unsafe_code)]
mod mapping;
mod memory;
mod pages;
mod qp;
mod queues;
mod requests;
mod ring;
mod srq;
mod uar;
mod virtqueue;
mod vm;
mod wr;

pub use command::Status;
pub use cq::Cq;
pub use driver::{CqBuffer, Driver, FastMr, GidEntry, Mr, Mw, Pd, QpBuffer, bind_args};
pub use error::{CommandError, Error, PostError};
pub use mapping::full_fence;
pub use memory::{Buffer, GuestMemory, PAGE};
pub use pages::PageTables;
pub use qp::{Qp, QpEndpoint, QpOptions, RcOptions, connect_rc};
pub use queues::Queues;
pub use srq::Srq;
pub use uar::Uar;
pub use virtqueue::{Piece, RingMemory, SplitRing};
pub use vm::{Vm, VmConfig};
pub use wr::{Data, SendWr, Wc, access};

pub use virtio_rdma_abi as abi;
