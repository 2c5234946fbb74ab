// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A port of Unix datagrams, one Ethernet frame each: what QEMU's `-netdev dgram` speaks.

use std::fs;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use super::FrameBatch;
use super::counts::Counts;
use super::rx_buffer::RxBuffer;
use super::sys::{self, Messages, Received, UnixAddress};
use super::{BURST, ETHERNET_OVERHEAD, MAX_MTU, OpenError, Port, PortCounters};

/// Bytes in flight to one peer.
const SOCKET_BUFFER: i32 = 4 << 20;

/// Datagrams between two Unix sockets. The peer may come and go: without one, frames are lost, as on a
/// cable that nobody has plugged in.
pub struct Dgram {
    socket: UnixDatagram,
    /// The socket's file and its inode: at the end it is removed, if it is still ours.
    local: Option<(PathBuf, u64)>,
    remote: Option<UnixAddress>,
    mtu: usize,
    counts: Counts,
}

impl Dgram {
    /// Receives at `local`, which must not be in use, and sends to `remote`, which need not be there yet.
    ///
    /// # Errors
    /// When `local` can't be bound.
    pub fn open(local: &Path, remote: &Path, mtu: usize) -> Result<Self, OpenError> {
        let remote = UnixAddress::new(remote)?;
        UnixAddress::new(local)?;
        remove_stale(local)?;
        let what = || format!("socket {}", local.display());
        let socket = UnixDatagram::bind(local).map_err(|e| match e.kind() {
            io::ErrorKind::PermissionDenied => OpenError::NotPermitted {
                what: what(),
                needs: "the right to write to the directory",
            },
            _ => OpenError::system(what())(e),
        })?;
        let inode = fs::metadata(local).map_err(OpenError::system(what()))?.ino();
        let mut port = Self::of(socket, mtu).map_err(OpenError::system(what()))?;
        port.local = Some((local.to_owned(), inode));
        port.remote = Some(remote);
        Ok(port)
    }

    /// A socket that is connected already.
    ///
    /// # Errors
    /// What the system answers.
    pub fn of(socket: UnixDatagram, mtu: usize) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        sys::set_buffers(socket.as_fd(), SOCKET_BUFFER);
        let mtu = mtu.min(MAX_MTU);
        Ok(Self { socket, local: None, remote: None, mtu, counts: Counts::default() })
    }
}

impl Dgram {
    /// Sends a frame on its own, which costs less than a list of one. Returns how many went.
    fn send_one(&self, frame: &[u8]) -> usize {
        let pieces = [IoSlice::new(frame)];
        loop {
            match sys::send_message(self.socket.as_fd(), &pieces, self.remote.as_ref()) {
                Ok(()) => self.counts.sent(1, frame.len()),
                Err(e) => match e.kind() {
                    io::ErrorKind::WouldBlock => return 0,
                    io::ErrorKind::Interrupted => continue,
                    // Nobody is there (any more), or the datagram is longer than the socket takes.
                    _ => self.counts.send_dropped(1),
                },
            }
            return 1;
        }
    }
}

/// Removes a socket that a process has left behind.
fn remove_stale(path: &Path) -> Result<(), OpenError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(OpenError::NotASocket(path.to_owned()));
    }
    let probe = UnixDatagram::unbound().map_err(OpenError::system("making a socket"))?;
    match probe.connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(OpenError::system(format!("removing {}", path.display())))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(OpenError::InUse {
            what: format!("socket {}", path.display()),
            remedy: "end it, or choose another path",
        }),
    }
}

impl Port for Dgram {
    fn send(&self, frames: &FrameBatch, range: Range<usize>) -> io::Result<usize> {
        if range.len() == 1 {
            return Ok(self.send_one(frames.frame(range.start)));
        }
        let mut messages = Messages::with_capacity(range.len());
        for index in range.clone() {
            messages.piece(frames.frame(index));
            messages.end();
        }
        let (mut taken, fd) = (0, self.socket.as_fd());
        while taken < messages.len() {
            match sys::send_messages(fd, &messages, taken, self.remote.as_ref()) {
                Ok(sent) => {
                    let passed = range.start + taken..range.start + taken + sent;
                    self.counts.sent(sent, passed.map(|i| frames.frame(i).len()).sum());
                    taken += sent;
                }
                Err(e) => match e.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted => {}
                    // As in `send_one`.
                    _ => {
                        self.counts.send_dropped(1);
                        taken += 1;
                    }
                },
            }
        }
        Ok(taken)
    }

    fn receive(
        &self,
        buffer: &mut RxBuffer,
        max: usize,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<usize> {
        let (max, mut bytes, mut cut) = (max.clamp(1, BURST), 0, 0);
        let each = |slot: &mut [u8], received: Received| {
            if received.truncated {
                cut += 1;
            } else {
                bytes += received.length;
                sink(&slot[..received.length]);
            }
        };
        let got = match sys::receive_messages(self.socket.as_fd(), buffer, max, 0, false, each) {
            Ok(got) => got,
            // A peer that is gone is no reason to stop listening.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(e) => return Err(e),
        };
        if got > 0 {
            self.counts.received(got - cut, bytes);
            self.counts.receive_dropped(cut);
        }
        Ok(got)
    }

    fn buffer(&self) -> RxBuffer {
        RxBuffer::new(BURST, MAX_MTU + ETHERNET_OVERHEAD)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn counters(&self) -> PortCounters {
        self.counts.get()
    }
}

impl Drop for Dgram {
    fn drop(&mut self) {
        if let Some((path, inode)) = &self.local
            && fs::symlink_metadata(path).is_ok_and(|found| found.ino() == *inode)
        {
            let _ = fs::remove_file(path);
        }
    }
}
