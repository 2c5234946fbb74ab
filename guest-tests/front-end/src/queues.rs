// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All virtqueues of a device from the driver's side: what a driver posts into them and gets back.
//!
//! The VM (`vm.rs`) tells the daemon where they are.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use virtio_rdma_abi::config::{QUEUE_COMP_FIRST, QUEUE_CONTROL, QUEUE_DOORBELL_FIRST, QUEUE_EVENT};
use virtio_rdma_abi::event::{AsyncEvent, CompEvent};
use zerocopy::FromBytes;

use crate::command::ControlQueue;
use crate::error::Error;
use crate::memory::{Buffer, GuestMemory};
use crate::virtqueue::{Piece, RingMemory, SplitRing};

/// The virtqueues of one life of the device: from reset to reset.
#[derive(Debug)]
pub struct Queues {
    rings: Vec<Arc<RingMemory>>,
    control: Mutex<ControlQueue>,
    event: Mutex<Mailbox>,
    comp: Vec<Mutex<Mailbox>>,
}

impl Queues {
    /// New, zeroed rings for a driver that uses `vectors` completion vectors, with buffers in the
    /// event and completion virtqueues.
    pub(crate) fn new(
        memory: &Arc<GuestMemory>,
        vectors: u16,
        size: u16,
        event_idx: bool,
        indirect: bool,
    ) -> Result<Self, Error> {
        let rings = (0..QUEUE_COMP_FIRST as u16 + 2 * vectors)
            .map(|index| RingMemory::new(memory, index, size).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let ring = |index: u32| SplitRing::new(Arc::clone(&rings[index as usize]), event_idx);
        let control = ControlQueue::new(ring(QUEUE_CONTROL), indirect, Arc::clone(memory));
        let event = Mailbox::new(ring(QUEUE_EVENT), memory, size_of::<AsyncEvent>())?;
        let comp = (0..u32::from(vectors))
            .map(|v| Mailbox::new(ring(QUEUE_COMP_FIRST + 2 * v), memory, size_of::<CompEvent>()))
            .map(|mailbox| mailbox.map(Mutex::new))
            .collect::<Result<_, _>>()?;
        Ok(Self { control: Mutex::new(control), event: Mutex::new(event), comp, rings })
    }

    /// What both sides see of each virtqueue, by its number.
    pub fn rings(&self) -> &[Arc<RingMemory>] {
        &self.rings
    }

    /// Completion vectors in use.
    pub fn vectors(&self) -> u32 {
        self.comp.len() as u32
    }

    /// The ring whose notify address is the doorbell of a vector.
    pub fn doorbell(&self, vector: u32) -> Option<&RingMemory> {
        self.rings.get((QUEUE_DOORBELL_FIRST + 2 * vector) as usize).map(Arc::as_ref)
    }

    pub(crate) fn control(&self) -> MutexGuard<'_, ControlQueue> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next asynchronous event; `None` at the time-out.
    pub(crate) fn next_async_event(&self, timeout: Duration) -> Result<Option<AsyncEvent>, Error> {
        let mut event = self.event.lock().unwrap_or_else(PoisonError::into_inner);
        event.receive(timeout, |_| true)
    }

    /// The next completion event of a vector that `wanted` likes; others wait for their callers.
    pub(crate) fn next_comp_event(
        &self,
        vector: u32,
        timeout: Duration,
        wanted: impl Fn(&CompEvent) -> bool,
    ) -> Result<Option<CompEvent>, Error> {
        let Some(mailbox) = self.comp.get(vector as usize) else { return Ok(None) };
        let mut mailbox = mailbox.lock().unwrap_or_else(PoisonError::into_inner);
        mailbox.receive(timeout, |event: &CompEvent| wanted(event))
    }

    /// Takes all buffers of a completion virtqueue away from (true) or back to (false) the device
    /// as far as it has not used them: only a reset can; so this only stops giving them back.
    pub(crate) fn starve_comp(&self, vector: u32, starve: bool) -> Result<(), Error> {
        let Some(mailbox) = self.comp.get(vector as usize) else { return Ok(()) };
        let mut mailbox = mailbox.lock().unwrap_or_else(PoisonError::into_inner);
        mailbox.starve(starve)
    }

    /// Kicks every queue: a kick may have fallen into the gap when a daemon was replaced.
    pub(crate) fn kick_all(&self) {
        for ring in &self.rings {
            ring.kick();
        }
    }
}

/// A virtqueue whose buffers the device fills with one message each.
#[derive(Debug)]
struct Mailbox {
    ring: SplitRing,
    buffer: Buffer,
    message: usize,
    /// Which message buffer each chain head stands for.
    slot_of: Vec<usize>,
    /// Taken from the ring, wanted by nobody yet.
    stash: VecDeque<Vec<u8>>,
    starving: bool,
    withheld: Vec<usize>,
}

impl Mailbox {
    fn new(ring: SplitRing, memory: &GuestMemory, message: usize) -> Result<Self, Error> {
        let size = usize::from(ring.memory().size());
        let buffer = memory.alloc_contiguous_in(0, message * size)?;
        let mut mailbox = Self {
            ring,
            buffer,
            message,
            slot_of: vec![0; size],
            stash: VecDeque::new(),
            starving: false,
            withheld: Vec::new(),
        };
        for slot in 0..size {
            mailbox.give(slot)?;
        }
        Ok(mailbox)
    }

    fn give(&mut self, slot: usize) -> Result<(), Error> {
        let address = self.buffer.guest_address(slot * self.message);
        let piece = Piece { address, len: self.message as u32, device_writes: true };
        let head = self.ring.add(&[piece])?;
        self.slot_of[usize::from(head)] = slot;
        Ok(())
    }

    fn starve(&mut self, starve: bool) -> Result<(), Error> {
        self.starving = starve;
        if !starve {
            let slots = std::mem::take(&mut self.withheld);
            for slot in &slots {
                self.give(*slot)?;
            }
            self.ring.notify(slots.len() as u16);
        }
        Ok(())
    }

    fn receive<M: FromBytes>(
        &mut self,
        timeout: Duration,
        wanted: impl Fn(&M) -> bool,
    ) -> Result<Option<M>, Error> {
        let parse = |bytes: &[u8]| M::read_from_prefix(bytes).ok().map(|(message, _)| message);
        let fits = |bytes: &Vec<u8>| parse(bytes).is_some_and(|message| wanted(&message));
        if let Some(n) = self.stash.iter().position(fits) {
            return Ok(self.stash.remove(n).and_then(|bytes| parse(&bytes)));
        }
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some((head, written)) = self.ring.pop_wait(left)? else { return Ok(None) };
            if written as usize != self.message {
                let queue = self.ring.memory().index();
                return Err(Error::BadRing { queue, what: "a message of the wrong length" });
            }
            let slot = self.slot_of[usize::from(head)];
            let bytes = self.buffer.read(slot * self.message, self.message);
            if self.starving {
                self.withheld.push(slot);
            } else {
                self.give(slot)?;
                self.ring.notify(1);
            }
            if fits(&bytes) {
                return Ok(parse(&bytes));
            }
            self.stash.push_back(bytes);
        }
    }
}
