// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A port of a packet socket (AF_PACKET) on an interface of the host, with virtio's header and so with
//! segmentation offload where the kernel has it.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::FrameBatch;
use super::counts::Counts;
use super::gso;
use super::headers::VLAN;
use super::rx_buffer::RxBuffer;
use super::sys::{self, Messages, Received};
use super::{MAX_MTU, OpenError, Port, PortCounters};

/// Slots of the longest frames that one call may fill.
const SLOTS: usize = 16;
/// Room in a slot before the header, for a VLAN tag to be put back.
const TAG: usize = 4;
const SOCKET_BUFFER: i32 = 8 << 20;

/// A packet socket on an interface, which is made promiscuous: it also hears the frames that are for the
/// host itself, and passes over them.
pub struct Packet {
    socket: OwnedFd,
    vnet: bool,
    mtu: usize,
    counts: Counts,
}

impl Packet {
    /// Opens a packet socket on an interface.
    ///
    /// # Errors
    /// When there is no such interface, or the process may not.
    pub fn open(name: &str) -> Result<Self, OpenError> {
        let interface = sys::interface(name)?;
        if !interface.up {
            log::warn!("interface {name} is down: `ip link set {name} up`");
        }
        let (socket, vnet) = sys::open_packet(name, &interface)?;
        sys::set_buffers(socket.as_fd(), SOCKET_BUFFER);
        let mtu = interface.mtu.min(MAX_MTU);
        Ok(Self { socket, vnet, mtu, counts: Counts::default() })
    }

    /// The same with another MTU, which `limit` makes of its own.
    pub(super) fn limited(self, limit: impl FnOnce(usize) -> usize) -> Self {
        Self { mtu: limit(self.mtu), ..self }
    }

    /// The messages for frames of a range, of which some are joined.
    fn gather<'a>(
        &self,
        frames: &'a FrameBatch,
        range: &Range<usize>,
        joined: &'a [(usize, Vec<u8>, Option<super::headers::Layout>)],
    ) -> Messages<'a> {
        let (mut messages, mut next) = (Messages::with_capacity(2 * range.len()), range.start);
        for (count, headers, layout) in joined {
            match layout {
                Some(at) => {
                    messages.piece(headers);
                    for index in next..next + count {
                        messages.piece(&frames.frame(index)[at.l4 + 8..]);
                    }
                }
                None => {
                    if self.vnet {
                        messages.piece(&gso::PLAIN);
                    }
                    messages.piece(frames.frame(next));
                }
            }
            messages.end();
            next += count;
        }
        messages
    }
}

impl Packet {
    /// Sends a frame on its own, which costs less than a list of one. Returns how many went.
    fn send_one(&self, frame: &[u8]) -> usize {
        let pieces = [IoSlice::new(&gso::PLAIN), IoSlice::new(frame)];
        let pieces = if self.vnet { &pieces[..] } else { &pieces[1..] };
        loop {
            match sys::send_message(self.socket.as_fd(), pieces, None) {
                Ok(()) => self.counts.sent(1, frame.len()),
                Err(e) => match e.kind() {
                    io::ErrorKind::WouldBlock => return 0,
                    io::ErrorKind::Interrupted => continue,
                    // Down, gone, no room in the card's queue, or longer than the MTU.
                    _ => self.counts.send_dropped(1),
                },
            }
            return 1;
        }
    }
}

impl Port for Packet {
    fn send(&self, frames: &FrameBatch, range: Range<usize>) -> io::Result<usize> {
        if range.len() == 1 {
            return Ok(self.send_one(frames.frame(range.start)));
        }
        let (mut joined, mut next) = (Vec::new(), range.start);
        while next < range.end {
            let (count, at) = if self.vnet { gso::run(frames, next, range.end) } else { (1, None) };
            let headers =
                at.map_or_else(Vec::new, |at| gso::joined_headers(frames, next, count, at));
            joined.push((count, headers, at));
            next += count;
        }
        let messages = self.gather(frames, &range, &joined);
        let (mut passed, mut taken) = (0, 0);
        while passed < messages.len() {
            let sent = sys::send_messages(self.socket.as_fd(), &messages, passed, None);
            let (messages_gone, lost) = match sent {
                Ok(sent) => (sent, false),
                Err(e) => match e.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted => continue,
                    // As in `send_one`.
                    _ => (1, true),
                },
            };
            let count: usize =
                joined[passed..passed + messages_gone].iter().map(|(count, ..)| count).sum();
            if lost {
                self.counts.send_dropped(count);
            } else {
                let indices = range.start + taken..range.start + taken + count;
                self.counts.sent(count, indices.map(|i| frames.frame(i).len()).sum());
            }
            passed += messages_gone;
            taken += count;
        }
        Ok(taken)
    }

    fn receive(
        &self,
        buffer: &mut RxBuffer,
        max: usize,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<usize> {
        let (max, mut total) = (max.clamp(1, SLOTS), 0);
        let start = TAG + if self.vnet { gso::HEADER } else { 0 };
        let each = |slot: &mut [u8], received: Received| {
            let end = TAG + received.length;
            if received.truncated || end < start + 14 {
                self.counts.receive_dropped(1);
                total += 1;
                return;
            }
            let mut header = gso::PLAIN;
            if self.vnet {
                header.copy_from_slice(&slot[TAG..start]);
            }
            let frame = put_tag_back(&mut slot[..end], start, &mut header, received.vlan_tci);
            let bytes = frame.len();
            match gso::deliver(&header, frame, sink) {
                Some(pieces) => {
                    self.counts.received(pieces, bytes);
                    total += pieces;
                }
                None => {
                    self.counts.receive_dropped(1);
                    total += 1;
                }
            }
        };
        match sys::receive_messages(self.socket.as_fd(), buffer, max, TAG, true, each) {
            Ok(_) => Ok(total),
            // The interface went down: it may come up again.
            Err(e) if e.raw_os_error() == Some(libc::ENETDOWN) => Ok(0),
            Err(e) => Err(e),
        }
    }

    fn buffer(&self) -> RxBuffer {
        RxBuffer::new(SLOTS, TAG + gso::HEADER + gso::MAX_SUPER)
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

/// The frame in a slot, with the VLAN tag that the kernel took off. Its header then says where the
/// checksum has moved to.
fn put_tag_back<'a>(
    slot: &'a mut [u8],
    start: usize,
    header: &mut [u8; gso::HEADER],
    tci: Option<u16>,
) -> &'a mut [u8] {
    let Some(tci) = tci else { return &mut slot[start..] };
    slot.copy_within(start..start + 12, start - TAG);
    let tag = start - TAG + 12;
    slot[tag..tag + 2].copy_from_slice(&VLAN.to_be_bytes());
    slot[tag + 2..tag + 4].copy_from_slice(&tci.to_be_bytes());
    let sum_at = u16::from_ne_bytes([header[6], header[7]]).saturating_add(TAG as u16);
    header[6..8].copy_from_slice(&sum_at.to_ne_bytes());
    &mut slot[start - TAG..]
}
