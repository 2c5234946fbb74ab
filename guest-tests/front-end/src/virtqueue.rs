// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver side of a split virtqueue (virtio 1.3, section 2.7), with or without event indices.
//!
//! What travels in the buffers is the business of `queues.rs`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::error::Error;
use crate::mapping::{Mapping, full_fence, wait_readable};
use crate::memory::{Buffer, GuestMemory};

const DESC_BYTES: usize = 16;
const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;
const DESC_F_INDIRECT: u16 = 4;
const USED_F_NO_NOTIFY: u16 = 1;

/// The parts of a virtqueue that both sides and the VMM see. Hostile tests scribble on it.
#[derive(Debug)]
pub struct RingMemory {
    index: u16,
    size: u16,
    buffer: Buffer,
    kick: EventFd,
    call: EventFd,
}

impl RingMemory {
    /// A zeroed ring of `size` descriptors, a power of two.
    pub fn new(memory: &GuestMemory, index: u16, size: u16) -> Result<Self, Error> {
        let n = usize::from(size);
        let bytes = (DESC_BYTES * n + 6 + 2 * n).next_multiple_of(4) + 6 + 8 * n;
        // The rings lie in region 0, which a test never removes.
        let buffer = memory.alloc_contiguous_in(0, bytes)?;
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::io("eventfd"));
        Ok(Self { index, size, buffer, kick: event()?, call: event()? })
    }

    /// Number of the virtqueue.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Bytes from the start of the memory to the available ring; the descriptors come first.
    pub fn avail_offset(&self) -> usize {
        DESC_BYTES * usize::from(self.size)
    }

    /// Bytes from the start of the memory to the used ring.
    pub fn used_offset(&self) -> usize {
        (self.avail_offset() + 6 + 2 * usize::from(self.size)).next_multiple_of(4)
    }

    /// The memory itself.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Guest-physical address of the descriptor table.
    pub fn guest_address(&self) -> u64 {
        self.buffer.guest_address(0)
    }

    /// The index that the device will use next: where a daemon that is started anew resumes.
    pub fn used_index(&self) -> u16 {
        self.buffer.map().u16(self.used_offset() + 2).load(Ordering::Acquire)
    }

    /// Notifies the device, whether it wants it or not.
    pub fn kick(&self) {
        // The counter of an eventfd can overflow only after 2^64 kicks that nobody read.
        let _ = self.kick.write(1);
    }

    pub(crate) fn kick_event(&self) -> &EventFd {
        &self.kick
    }

    pub(crate) fn call_event(&self) -> &EventFd {
        &self.call
    }

    /// Waits for an interrupt of this queue, and takes it; false at the time-out.
    pub fn wait_interrupt(&self, timeout: Duration) -> Result<bool, Error> {
        let ready = wait_readable(&self.call, timeout).map_err(Error::io("ppoll"))?;
        Ok(ready && self.call.read().is_ok())
    }
}

/// A piece of a descriptor chain: guest-physical address, bytes, and whether the device writes it.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Written by the device, rather than read.
    pub device_writes: bool,
}

/// The driver's end of a virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    memory: Arc<RingMemory>,
    event_idx: bool,
    /// Free descriptors.
    free: Vec<u16>,
    /// Descriptors of the chain that starts at each, 0 if none does.
    chain: Vec<u16>,
    /// The next descriptor of a chain: our own copy, for the table may be scribbled on.
    next: Vec<u16>,
    avail: u16,
    used: u16,
}

impl SplitRing {
    /// Takes over a zeroed ring.
    pub fn new(memory: Arc<RingMemory>, event_idx: bool) -> Self {
        let size = memory.size();
        Self {
            free: (0..size).rev().collect(),
            chain: vec![0; usize::from(size)],
            next: vec![0; usize::from(size)],
            memory,
            event_idx,
            avail: 0,
            used: 0,
        }
    }

    /// What both sides see of it.
    pub fn memory(&self) -> &Arc<RingMemory> {
        &self.memory
    }

    /// Makes a chain available and returns its head. The device is not notified.
    pub fn add(&mut self, pieces: &[Piece]) -> Result<u16, Error> {
        let queue = self.memory.index;
        if pieces.is_empty() || pieces.len() > self.free.len() {
            return Err(Error::RingFull { queue });
        }
        let taken = self.free.split_off(self.free.len() - pieces.len());
        let map = self.memory.buffer.map();
        for (n, (piece, &desc)) in pieces.iter().zip(&taken).enumerate() {
            let next = taken.get(n + 1).copied();
            self.next[usize::from(desc)] = next.unwrap_or(0);
            put_descriptor(map, usize::from(desc) * DESC_BYTES, piece, next, 0);
        }
        Ok(self.make_available(taken[0], pieces.len() as u16))
    }

    /// As `add`, with one descriptor, that of a table which is written into `table` at `offset`.
    pub fn add_indirect(
        &mut self,
        pieces: &[Piece],
        table: &Buffer,
        offset: usize,
    ) -> Result<u16, Error> {
        let desc = self.free.pop().ok_or(Error::RingFull { queue: self.memory.index })?;
        for (n, piece) in pieces.iter().enumerate() {
            let next = (n + 1 < pieces.len()).then_some(n as u16 + 1);
            put_descriptor(table.map(), offset + n * DESC_BYTES, piece, next, 0);
        }
        let whole = Piece {
            address: table.guest_address(offset),
            len: (pieces.len() * DESC_BYTES) as u32,
            device_writes: false,
        };
        let at = usize::from(desc) * DESC_BYTES;
        put_descriptor(self.memory.buffer.map(), at, &whole, None, DESC_F_INDIRECT);
        Ok(self.make_available(desc, 1))
    }

    fn make_available(&mut self, head: u16, descriptors: u16) -> u16 {
        let map = self.memory.buffer.map();
        self.chain[usize::from(head)] = descriptors;
        let avail = self.memory.avail_offset();
        let slot = usize::from(self.avail % self.memory.size);
        map.u16(avail + 4 + 2 * slot).store(head, Ordering::Relaxed);
        self.avail = self.avail.wrapping_add(1);
        map.u16(avail + 2).store(self.avail, Ordering::Release);
        head
    }

    /// Notifies the device if it wants to be, after `added` chains since the last call.
    pub fn notify(&self, added: u16) {
        full_fence();
        let map = self.memory.buffer.map();
        let used = self.memory.used_offset();
        let wanted = if self.event_idx {
            let at = used + 4 + 8 * usize::from(self.memory.size);
            let event = map.u16(at).load(Ordering::Acquire);
            let old = self.avail.wrapping_sub(added);
            self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(old)
        } else {
            map.u16(used).load(Ordering::Acquire) & USED_F_NO_NOTIFY == 0
        };
        if wanted {
            self.memory.kick();
        }
    }

    /// The next chain that the device has used: its head, and the bytes it wrote.
    pub fn pop(&mut self) -> Result<Option<(u16, u32)>, Error> {
        if self.memory.used_index() == self.used {
            return Ok(None);
        }
        let bad = |what| Error::BadRing { queue: self.memory.index, what };
        let map = self.memory.buffer.map();
        let slot = usize::from(self.used % self.memory.size);
        let at = self.memory.used_offset() + 4 + 8 * slot;
        let id = map.u32(at).load(Ordering::Relaxed);
        let len = map.u32(at + 4).load(Ordering::Relaxed);
        let head = u16::try_from(id).map_err(|_| bad("a used element names no descriptor"))?;
        let count = self.chain.get_mut(usize::from(head));
        let count = count.map(std::mem::take).unwrap_or(0);
        if count == 0 {
            return Err(bad("a used element names a chain that is not with the device"));
        }
        let mut desc = head;
        for n in 0..count {
            self.free.push(desc);
            if n + 1 < count {
                desc = self.next[usize::from(desc)];
            }
        }
        self.used = self.used.wrapping_add(1);
        Ok(Some((head, len)))
    }

    /// Asks for an interrupt at the next used chain. The caller looks again before it waits.
    pub fn enable_interrupt(&self) {
        self.enable_interrupt_after(1);
    }

    /// Asks for one when so many chains have been used, if the device goes by event indices.
    fn enable_interrupt_after(&self, chains: u16) {
        if self.event_idx {
            let at = self.memory.avail_offset() + 4 + 2 * usize::from(self.memory.size);
            let event = self.used.wrapping_add(chains - 1);
            self.memory.buffer.map().u16(at).store(event, Ordering::Release);
        }
        full_fence();
    }

    /// The next used chain, waiting for its interrupt if it is not there yet. `None` at the
    /// time-out. An error if the chain is there then, but no interrupt came.
    pub fn pop_wait(&mut self, timeout: Duration) -> Result<Option<(u16, u32)>, Error> {
        self.pop_wait_for(1, timeout)
    }

    /// As `pop_wait`; if it must wait, then until so many more have come, for one interrupt. They are
    /// with the device.
    pub fn pop_wait_for(
        &mut self,
        chains: u16,
        timeout: Duration,
    ) -> Result<Option<(u16, u32)>, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(done) = self.pop()? {
                return Ok(Some(done));
            }
            self.enable_interrupt_after(chains.max(1));
            if let Some(done) = self.pop()? {
                return Ok(Some(done));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            if !self.memory.wait_interrupt(left)? && Instant::now() >= deadline {
                // Here is where an interrupt that never came shows.
                return match self.pop()? {
                    None => Ok(None),
                    Some(_) => Err(Error::LostInterrupt { queue: self.memory.index }),
                };
            }
        }
    }

    /// Descriptors that are free.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }
}

fn put_descriptor(map: &Mapping, at: usize, piece: &Piece, next: Option<u16>, more: u16) {
    let flags = if piece.device_writes { DESC_F_WRITE } else { 0 }
        | if next.is_some() { DESC_F_NEXT } else { 0 }
        | more;
    map.u64(at).store(piece.address, Ordering::Relaxed);
    map.u32(at + 8).store(piece.len, Ordering::Relaxed);
    map.u16(at + 12).store(flags, Ordering::Relaxed);
    map.u16(at + 14).store(next.unwrap_or(0), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use virtio_queue::{Queue, QueueT};
    use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

    use super::*;

    type AnyError = Box<dyn std::error::Error + Send + Sync>;

    /// Somebody else's device side: adds one to every byte it reads and writes it back. Returns
    /// how often it was woken.
    fn device(
        memory: &GuestMemoryMmap,
        ring: &RingMemory,
        event_idx: bool,
        stop: &AtomicBool,
    ) -> Result<u64, AnyError> {
        let mut queue = Queue::new(ring.size())?;
        let base = ring.guest_address();
        queue.try_set_size(ring.size())?;
        queue.try_set_desc_table_address(GuestAddress(base))?;
        queue.try_set_avail_ring_address(GuestAddress(base + ring.avail_offset() as u64))?;
        queue.try_set_used_ring_address(GuestAddress(base + ring.used_offset() as u64))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(memory));
        let mut woken = 0;
        while !stop.load(Ordering::Acquire) {
            if !wait_readable(&ring.kick, Duration::from_millis(20))? {
                continue;
            }
            ring.kick.read()?;
            woken += 1;
            loop {
                queue.disable_notification(memory)?;
                while let Some(chain) = queue.pop_descriptor_chain(memory) {
                    let head = chain.head_index();
                    let mut bytes = Vec::new();
                    for desc in chain.clone().readable() {
                        let mut piece = vec![0; desc.len() as usize];
                        memory.read_slice(&mut piece, desc.addr())?;
                        bytes.extend(piece.iter().map(|byte| byte.wrapping_add(1)));
                    }
                    let mut written = 0;
                    for desc in chain.writable() {
                        let n = (bytes.len() - written).min(desc.len() as usize);
                        memory.write_slice(&bytes[written..written + n], desc.addr())?;
                        written += n;
                    }
                    queue.add_used(memory, head, written as u32)?;
                    if queue.needs_notification(memory)? {
                        ring.call.write(1)?;
                    }
                }
                if !queue.enable_notification(memory)? {
                    break;
                }
            }
        }
        Ok(woken)
    }

    fn chains_go_round(event_idx: bool) -> Result<u64, AnyError> {
        let memory = GuestMemory::new(4 << 20, 1, true)?;
        let region = memory.region(0)?;
        let file = FileOffset::new(region.file.try_clone()?, 0);
        let range = (GuestAddress(region.guest_address), region.len as usize, Some(file));
        let seen = GuestMemoryMmap::<()>::from_ranges_with_files([range])?;
        let shared = Arc::new(RingMemory::new(&memory, 0, 16)?);
        let mut ring = SplitRing::new(Arc::clone(&shared), event_idx);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let device = scope.spawn(|| device(&seen, &shared, event_idx, &stop));
            let buffer = memory.alloc_contiguous(2 << 10)?;
            let driver = (|| -> Result<(), AnyError> {
                for round in 0..3000_u32 {
                    // Three descriptors a chain: two to read, one to write; 1 to 5 chains at once.
                    let batch = (1 + round % 5) as usize;
                    let mut heads = Vec::new();
                    for n in 0..batch {
                        let at = n * 256;
                        buffer.write(at, &round.to_le_bytes());
                        buffer.write(at + 4, &(n as u32).to_le_bytes());
                        let piece = |offset, len, device_writes| Piece {
                            address: buffer.guest_address(at + offset),
                            len,
                            device_writes,
                        };
                        let chain = [piece(0, 4, false), piece(4, 4, false), piece(128, 64, true)];
                        heads.push(ring.add(&chain)?);
                    }
                    ring.notify(batch as u16);
                    for (n, head) in heads.iter().enumerate() {
                        let done = ring.pop_wait(Duration::from_secs(60))?;
                        assert_eq!(done, Some((*head, 8)), "round {round}, chain {n}");
                        let mut wanted = round.to_le_bytes().to_vec();
                        wanted.extend((n as u32).to_le_bytes());
                        wanted.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
                        assert_eq!(buffer.read(n * 256 + 128, 8), wanted);
                    }
                    assert_eq!(ring.free_descriptors(), 16);
                }
                assert!(
                    ring.add(&[Piece { address: 0, len: 1, device_writes: false }; 17]).is_err()
                );
                Ok(())
            })();
            stop.store(true, Ordering::Release);
            let woken = device.join().map_err(|_| "the device side panicked")??;
            driver?;
            Ok(woken)
        })
    }

    #[test]
    fn chains_go_round_with_event_indices() -> Result<(), AnyError> {
        let woken = chains_go_round(true)?;
        assert!(woken <= 3000, "{woken} notifications for 3000 batches");
        Ok(())
    }

    #[test]
    fn chains_go_round_with_notification_flags() -> Result<(), AnyError> {
        assert!(chains_go_round(false)? > 0);
        Ok(())
    }
}
