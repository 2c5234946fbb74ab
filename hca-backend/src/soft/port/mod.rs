// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ports: where Ethernet frames leave the process and come in. Here: what a port is, and how an operator
//! names one. Each kind of port is a module; `exchange` joins several to one, `fault` and `pcap` wrap one.
//!
//! Nothing here knows RDMA, but that UDP port 4791 is RoCEv2's.

mod arp;
mod capture;
mod counts;
mod dgram;
mod exchange;
mod fault;
mod gso;
mod headers;
mod packet;
mod rx_buffer;
mod spec;
mod switch;
mod sys;
mod tap;
mod wire;

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

pub use super::wire::frame::FrameBatch;
pub use capture::{Capture, PcapFile};
pub use dgram::Dgram;
pub use exchange::{Exchange, Member, MemberId, Station};
pub use fault::{Fault, Faults};
pub use packet::Packet;
pub use rx_buffer::RxBuffer;
pub use spec::{PortKind, PortSpec};
pub use switch::{Switch, SwitchPort};
pub use tap::Tap;
pub use wire::{Core, Counted, Wire};

/// Ethernet header and one VLAN tag: what a frame has beside the bytes that an MTU counts.
pub const ETHERNET_OVERHEAD: usize = 18;

/// The largest MTU (bytes of an IP packet) of any port.
pub const MAX_MTU: usize = 9216;

/// Frames a port sends or receives in one system call, at most.
pub(crate) const BURST: usize = 64;

/// A way in and out for whole Ethernet frames, without preamble and FCS. No method sleeps.
///
/// Threads may send and receive at once; two that receive at once share out the frames.
pub trait Port: Send + Sync {
    /// Sends the frames of a range of indices, in order. Returns how many were taken: with fewer than
    /// offered the way is full, and the rest is to be offered again later. A frame that is lost on the
    /// way (nobody is there, the link is down, it is longer than the MTU allows) counts as taken.
    ///
    /// # Errors
    /// When the port can't be used any more.
    fn send(&self, frames: &FrameBatch, range: Range<usize>) -> io::Result<usize>;

    /// Hands frames that came to `sink`, in order and about `max` of them at most. Returns how many: 0 if
    /// there are none. `buffer` is one that `buffer` of the same port made.
    ///
    /// # Errors
    /// When the port can't be used any more.
    fn receive(
        &self,
        buffer: &mut RxBuffer,
        max: usize,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<usize>;

    /// Memory for `receive`.
    fn buffer(&self) -> RxBuffer;

    /// Readable while there may be something to receive.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Bytes of the largest IP packet.
    fn mtu(&self) -> usize;

    /// What has passed so far.
    fn counters(&self) -> PortCounters;
}

/// What has passed through a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Frames sent.
    pub sent: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Frames received.
    pub received: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// Frames that should have been sent and were lost here.
    pub send_dropped: u64,
    /// Frames that came and were lost here.
    pub receive_dropped: u64,
}

impl PortCounters {
    /// Names and values.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("sent", self.sent),
            ("sent_bytes", self.sent_bytes),
            ("received", self.received),
            ("received_bytes", self.received_bytes),
            ("send_dropped", self.send_dropped),
            ("receive_dropped", self.receive_dropped),
        ]
    }
}

/// Why a port can't be opened: the cause, and what the operator can do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No such interface.
    #[error("there is no network interface {0}: `ip link` lists them")]
    NoInterface(String),
    /// The name is too long.
    #[error("{0} is no name of an interface: at most 15 bytes, not empty")]
    BadName(String),
    /// The process may not.
    #[error("{what}: not permitted; the daemon needs {needs}")]
    NotPermitted {
        /// What it tried.
        what: String,
        /// What it lacks.
        needs: &'static str,
    },
    /// Another process has it.
    #[error("{what} is in use by another process; {remedy}")]
    InUse {
        /// What is in use.
        what: String,
        /// What helps.
        remedy: &'static str,
    },
    /// The path is no socket.
    #[error("{0} exists and is no socket: remove it, or choose another path")]
    NotASocket(PathBuf),
    /// Unix sockets have short paths.
    #[error("{0}: the path of a Unix socket has 1 to 107 bytes")]
    PathLength(PathBuf),
    /// TAP devices are not there.
    #[error("/dev/net/tun is missing: `modprobe tun`, or give the container this device")]
    NoTun,
    /// Anything else the system says.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: String,
        /// What the system says.
        error: io::Error,
    },
}

impl OpenError {
    fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::System { what, error }
    }
}

/// Boxed ports are ports, so that those that wrap one take any.
impl<P: Port + ?Sized> Port for Box<P> {
    fn send(&self, frames: &FrameBatch, range: Range<usize>) -> io::Result<usize> {
        (**self).send(frames, range)
    }

    fn receive(
        &self,
        buffer: &mut RxBuffer,
        max: usize,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<usize> {
        (**self).receive(buffer, max, sink)
    }

    fn buffer(&self) -> RxBuffer {
        (**self).buffer()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        (**self).fd()
    }

    fn mtu(&self) -> usize {
        (**self).mtu()
    }

    fn counters(&self) -> PortCounters {
        (**self).counters()
    }
}
