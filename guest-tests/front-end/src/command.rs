// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control virtqueue: status codes, and sending a command's bytes and waiting for the answer's.
//!
//! What the commands mean is said in `driver.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use virtio_rdma_abi::control::{self, ControlHeader, ControlStatus};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{CommandError, Error};
use crate::memory::{Buffer, GuestMemory, PAGE};
use crate::virtqueue::{Piece, SplitRing};

/// How long a command may take before the driver gives the device up.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Buffers that are kept for further commands.
const SPARE: usize = 256;

/// The status of a command (`STATUS_*` of the interface).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the interface's, and documented there
pub enum Status {
    Ok,
    UnknownCommand,
    BadLength,
    Invalid,
    NoObject,
    Busy,
    NoResources,
    BadAddress,
    BadState,
    NotPermitted,
    NoHca,
    NotInitialized,
    Unsupported,
    DeviceError,
    /// A number that the interface does not define.
    Undefined(u32),
}

impl From<u32> for Status {
    fn from(number: u32) -> Self {
        match number {
            control::STATUS_OK => Self::Ok,
            control::STATUS_UNKNOWN_COMMAND => Self::UnknownCommand,
            control::STATUS_BAD_LENGTH => Self::BadLength,
            control::STATUS_INVALID => Self::Invalid,
            control::STATUS_NO_OBJECT => Self::NoObject,
            control::STATUS_BUSY => Self::Busy,
            control::STATUS_NO_RESOURCES => Self::NoResources,
            control::STATUS_BAD_ADDRESS => Self::BadAddress,
            control::STATUS_BAD_STATE => Self::BadState,
            control::STATUS_NOT_PERMITTED => Self::NotPermitted,
            control::STATUS_NO_HCA => Self::NoHca,
            control::STATUS_NOT_INITIALIZED => Self::NotInitialized,
            control::STATUS_UNSUPPORTED => Self::Unsupported,
            control::STATUS_DEVICE_ERROR => Self::DeviceError,
            other => Self::Undefined(other),
        }
    }
}

/// A command that is with the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Token(u16);

/// The driver's end of the control virtqueue.
#[derive(Debug)]
pub(crate) struct ControlQueue {
    ring: SplitRing,
    /// Commands are indirect descriptors, as Linux has them.
    indirect: bool,
    memory: Arc<GuestMemory>,
    /// Of the last command sent.
    sequence: u32,
    /// For the next commands of ordinary size.
    spare: Vec<Buffer>,
    with_device: HashMap<Token, InFlight>,
    /// Heads in the order in which the device returned them, with the bytes it wrote.
    done: Vec<(Token, u32)>,
}

#[derive(Debug)]
struct InFlight {
    buffer: Buffer,
    answer_at: usize,
    writable: usize,
}

impl ControlQueue {
    pub(crate) fn new(ring: SplitRing, indirect: bool, memory: Arc<GuestMemory>) -> Self {
        Self {
            ring,
            indirect,
            memory,
            sequence: 0,
            spare: Vec::new(),
            with_device: HashMap::new(),
            done: Vec::new(),
        }
    }

    /// Sends bytes as they are: `readable` for the device to read, and room for `writable` bytes of
    /// answer. Either may be empty.
    pub(crate) fn submit(&mut self, readable: &[u8], writable: usize) -> Result<Token, Error> {
        let token = self.put(readable, writable)?;
        self.ring.notify(1);
        Ok(token)
    }

    /// As `submit`, of several, and the device is notified once.
    pub(crate) fn submit_all(
        &mut self,
        requests: &[(Vec<u8>, usize)],
    ) -> Result<Vec<Token>, Error> {
        let mut tokens = Vec::with_capacity(requests.len());
        let put = requests.iter().try_for_each(|(readable, writable)| {
            tokens.push(self.put(readable, *writable)?);
            Ok(())
        });
        self.ring.notify(tokens.len() as u16);
        put.map(|()| tokens)
    }

    fn put(&mut self, readable: &[u8], writable: usize) -> Result<Token, Error> {
        // A page or more for the request, the same for the answer, and one for an indirect table.
        let answer_at = readable.len().next_multiple_of(PAGE).max(PAGE);
        let table_at = answer_at + writable.next_multiple_of(PAGE).max(PAGE);
        let buffer = match self.spare.pop() {
            Some(buffer) if table_at + PAGE <= buffer.len() => buffer,
            _ => self.memory.alloc_contiguous(table_at + PAGE)?,
        };
        buffer.write(0, readable);
        let mut pieces = Vec::with_capacity(2);
        if !readable.is_empty() {
            pieces.push(Piece {
                address: buffer.guest_address(0),
                len: readable.len() as u32,
                device_writes: false,
            });
        }
        if writable > 0 {
            buffer.write(answer_at, &[0xee; 8][..writable.min(8)]);
            pieces.push(Piece {
                address: buffer.guest_address(answer_at),
                len: writable as u32,
                device_writes: true,
            });
        }
        let head = if self.indirect && !pieces.is_empty() {
            self.ring.add_indirect(&pieces, &buffer, table_at)?
        } else {
            self.ring.add(&pieces)?
        };
        let token = Token(head);
        self.with_device.insert(token, InFlight { buffer, answer_at, writable });
        Ok(token)
    }

    /// Waits for the answer: the bytes that the device says it wrote.
    pub(crate) fn wait(&mut self, token: Token, timeout: Duration) -> Result<Vec<u8>, Error> {
        let written = loop {
            if let Some(n) = self.done.iter().position(|(done, _)| *done == token) {
                break self.done.remove(n).1 as usize;
            }
            match self.ring.pop_wait(timeout)? {
                Some((head, written)) => self.done.push((Token(head), written)),
                None => return Err(Error::Timeout { what: "a command's answer", waited: timeout }),
            }
        };
        let queue = self.ring.memory().index();
        let Some(InFlight { buffer, answer_at, writable }) = self.with_device.remove(&token) else {
            return Err(Error::BadRing { queue, what: "an answer without a command" });
        };
        if written > writable {
            return Err(Error::BadRing { queue, what: "the answer is longer than its buffer" });
        }
        let answer = buffer.read(answer_at, written);
        if buffer.len() == 3 * PAGE && self.spare.len() < SPARE {
            self.spare.push(buffer);
        }
        Ok(answer)
    }

    /// Waits until all those commands have their answers, which `wait` then gives without waiting.
    /// Returns their positions in `tokens` in the order in which they came.
    pub(crate) fn wait_all(
        &mut self,
        tokens: &[Token],
        timeout: Duration,
    ) -> Result<Vec<usize>, Error> {
        let positions: HashMap<Token, usize> =
            tokens.iter().enumerate().map(|(n, token)| (*token, n)).collect();
        let mut order: Vec<usize> =
            self.done.iter().filter_map(|(token, _)| positions.get(token).copied()).collect();
        while order.len() < tokens.len() {
            // One interrupt, when the last of them is there; not after each.
            let left = (tokens.len() - order.len()) as u16;
            match self.ring.pop_wait_for(left, timeout)? {
                Some((head, written)) => {
                    order.extend(positions.get(&Token(head)));
                    self.done.push((Token(head), written));
                }
                None => return Err(Error::Timeout { what: "a command's answer", waited: timeout }),
            }
        }
        Ok(order)
    }

    /// Sends bytes and waits for the answer.
    pub(crate) fn transact(&mut self, readable: &[u8], writable: usize) -> Result<Vec<u8>, Error> {
        let token = self.submit(readable, writable)?;
        self.wait(token, COMMAND_TIMEOUT)
    }

    /// The header of the next command.
    pub(crate) fn next_header(&mut self, command: u16) -> ControlHeader {
        self.sequence = self.sequence.wrapping_add(1);
        ControlHeader { command: command.into(), flags: 0.into(), sequence: self.sequence.into() }
    }

    /// A whole command: header and `request` out, status checked, `A` in.
    pub(crate) fn command<A: FromBytes>(
        &mut self,
        command: u16,
        request: &[u8],
    ) -> Result<A, CommandError> {
        let header = self.next_header(command);
        let bytes = [header.as_bytes(), request].concat();
        let head = size_of::<ControlStatus>();
        let answer = self.transact(&bytes, head + size_of::<A>())?;
        let (status, rest) = ControlStatus::read_from_prefix(&answer)
            .map_err(|_| CommandError::Malformed("no room for the status"))?;
        if status.sequence != header.sequence {
            return Err(CommandError::Malformed("another command's sequence number"));
        }
        match Status::from(status.status.get()) {
            Status::Ok => {}
            refused => return Err(CommandError::Refused(refused)),
        }
        let (answer, _) = A::read_from_prefix(rest)
            .map_err(|_| CommandError::Malformed("shorter than the command's answer"))?;
        Ok(answer)
    }
}
