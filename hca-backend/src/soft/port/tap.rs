// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A port of a TAP device: the host's own network, a bridge, or whatever the operator connects it to.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use super::FrameBatch;
use super::counts::Counts;
use super::gso;
use super::rx_buffer::RxBuffer;
use super::sys;
use super::{MAX_MTU, OpenError, Port, PortCounters};

/// Slots that one call may fill: a system call each.
const SLOTS: usize = 1;

/// A TAP device.
pub struct Tap {
    file: File,
    /// It takes long frames.
    long: bool,
    mtu: usize,
    counts: Counts,
}

impl Tap {
    /// Opens a TAP device, and makes it if there is none of this name. Bringing it up, and an MTU above
    /// 1500, are the operator's.
    ///
    /// # Errors
    /// When the process may not, or another one has the device.
    pub fn open(name: &str) -> Result<Self, OpenError> {
        let (file, long) = sys::open_tap(name)?;
        let interface = sys::interface(name)?;
        if !interface.up {
            log::warn!("interface {name} is down: `ip link set {name} up`");
        }
        let mtu = interface.mtu.min(MAX_MTU);
        Ok(Self { file, long, mtu, counts: Counts::default() })
    }

    /// The same with another MTU, which `limit` makes of its own.
    pub(super) fn limited(self, limit: impl FnOnce(usize) -> usize) -> Self {
        Self { mtu: limit(self.mtu), ..self }
    }

    fn write(&self, frames: &FrameBatch, first: usize, end: usize) -> (usize, io::Result<usize>) {
        let (count, layout) = if self.long { gso::run(frames, first, end) } else { (1, None) };
        let Some(at) = layout else {
            let pieces = [IoSlice::new(&gso::PLAIN), IoSlice::new(frames.frame(first))];
            return (1, (&self.file).write_vectored(&pieces));
        };
        let headers = gso::joined_headers(frames, first, count, at);
        let mut pieces = vec![IoSlice::new(&headers)];
        pieces.extend(gso::payloads(frames, first, count, at));
        (count, (&self.file).write_vectored(&pieces))
    }
}

impl Port for Tap {
    fn send(&self, frames: &FrameBatch, range: Range<usize>) -> io::Result<usize> {
        let mut next = range.start;
        while next < range.end {
            let (count, result) = self.write(frames, next, range.end);
            match result {
                Ok(_) => {
                    let passed = next..next + count;
                    self.counts.sent(count, passed.map(|i| frames.frame(i).len()).sum());
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // The interface is down, or the frame is not one.
                Err(_) => self.counts.send_dropped(count),
            }
            next += count;
        }
        Ok(next - range.start)
    }

    fn receive(
        &self,
        buffer: &mut RxBuffer,
        max: usize,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<usize> {
        let mut total = 0;
        while total < max {
            let Some(slot) = buffer.slots().next() else { break };
            let length = match (&self.file).read(slot) {
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // WouldBlock, or a device that is down or gone: the system says so again and again.
                Err(_) => break,
            };
            let Some((header, frame)) = slot[..length].split_at_mut_checked(gso::HEADER) else {
                self.counts.receive_dropped(1);
                continue;
            };
            let bytes = frame.len();
            match gso::deliver(header, frame, sink) {
                Some(pieces) => {
                    self.counts.received(pieces, bytes);
                    total += pieces;
                }
                None => {
                    self.counts.receive_dropped(1);
                    total += 1;
                }
            }
        }
        Ok(total)
    }

    fn buffer(&self) -> RxBuffer {
        RxBuffer::new(SLOTS, gso::HEADER + gso::MAX_SUPER)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn counters(&self) -> PortCounters {
        self.counts.get()
    }
}
