// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A send or receive queue in a QP's buffer: where its slots are, and writing a WQE into one so
//! that its phase comes last.

use std::sync::atomic::Ordering;

use virtio_rdma_abi::ring::{Sge, WQE_ATOMIC_ARGS, WQE_RECV_DATA, WQE_SEND_DATA};

use crate::error::PostError;
use crate::memory::Buffer;
use crate::wr::{Data, SendWr};

/// Byte of the first word that holds the phase, as a shift.
const PHASE_SHIFT: u32 = 24;
const SEND_INLINE: u8 = virtio_rdma_abi::ring::SEND_INLINE;

/// A work queue.
#[derive(Debug)]
pub(crate) struct WorkRing {
    /// Bytes from the start of the buffer.
    offset: usize,
    stride_shift: u32,
    /// Slots are `2^shift`; 0 slots if `entries` is 0.
    shift: u32,
    entries: u32,
    max_sge: usize,
    max_inline: usize,
    /// Free-running count of WQEs posted.
    pub(crate) posted: u32,
}

impl WorkRing {
    pub(crate) fn new(
        offset: usize,
        stride_shift: u8,
        entries: u32,
        max_sge: u32,
        max_inline: u32,
    ) -> Self {
        Self {
            offset,
            stride_shift: stride_shift.into(),
            shift: entries.checked_ilog2().unwrap_or(0),
            entries,
            max_sge: max_sge as usize,
            max_inline: max_inline as usize,
            posted: 0,
        }
    }

    /// Bytes from the start of the buffer to the slot of WQE number `n`.
    pub(crate) fn slot_offset(&self, n: u32) -> usize {
        let slot = n & ((1 << self.shift) - 1);
        self.offset + ((slot as usize) << self.stride_shift)
    }

    /// Fills the slots of a ring that follows this one: those from `taken` on are copied, and all others
    /// look as if nothing were posted there yet.
    pub(crate) fn follow(&self, buffer: &Buffer, taken: u32, new: &mut Self, to: &Buffer) {
        new.posted = self.posted;
        for n in 0..new.entries {
            let n = taken.wrapping_add(n);
            let posted = self.posted.wrapping_sub(n) as i32 > 0;
            let at = new.slot_offset(n);
            let mut phase = new.phase(n) as u8;
            if posted {
                to.write(at, &buffer.read(self.slot_offset(n), self.stride().min(new.stride())));
            } else {
                phase ^= 1;
            }
            to.write(at + PHASE_SHIFT as usize / 8, &[phase]);
        }
    }

    pub(crate) fn stride(&self) -> usize {
        1 << self.stride_shift
    }

    /// The phase of WQE number `n`.
    #[inline(always)]
    pub(crate) fn phase(&self, n: u32) -> u64 {
        u64::from(n >> self.shift & 1 ^ 1)
    }

    #[inline(always)]
    fn check_room(&self, freed: u32) -> Result<(), PostError> {
        if self.posted.wrapping_sub(freed) < self.entries { Ok(()) } else { Err(PostError::Full) }
    }

    /// Writes a send WQE; `freed` counts the WQEs that polled completions have freed.
    #[inline(always)]
    pub(crate) fn put_send(
        &mut self,
        buffer: &Buffer,
        freed: u32,
        wr: &SendWr<'_>,
    ) -> Result<(), PostError> {
        self.check_room(freed)?;
        let map = buffer.map();
        let at = self.slot_offset(self.posted);
        let (flags, num_sge, inline_length) = match wr.data {
            Data::Sges(sges) => {
                if sges.len() > self.max_sge {
                    return Err(PostError::TooLarge);
                }
                self.put_sges(buffer, at + WQE_SEND_DATA as usize, sges);
                (wr.flags, sges.len() as u64, 0)
            }
            Data::Inline(bytes) => {
                if bytes.len() > self.max_inline {
                    return Err(PostError::TooLarge);
                }
                map.write(at + WQE_SEND_DATA as usize, bytes);
                (wr.flags | SEND_INLINE, 0, bytes.len() as u64)
            }
            Data::Atomic(old, compare_add, swap) => {
                self.put_sges(buffer, at + WQE_SEND_DATA as usize, std::slice::from_ref(old));
                let args = at + WQE_ATOMIC_ARGS as usize;
                map.u64(args).store(compare_add, Ordering::Relaxed);
                map.u64(args + 8).store(swap, Ordering::Relaxed);
                (wr.flags, 1, 0)
            }
            Data::Args(args) => {
                for (n, word) in args.into_iter().enumerate() {
                    let word_at = at + WQE_SEND_DATA as usize + 8 * n;
                    map.u64(word_at).store(word, Ordering::Relaxed);
                }
                (wr.flags, 0, 0)
            }
        };
        if let Some(srqn) = wr.remote_srqn {
            // The end of an XRC initiator's slot.
            map.u64(at + self.stride() - 8).store(srqn.into(), Ordering::Relaxed);
        }
        map.u64(at + 8).store(wr.wr_id, Ordering::Relaxed);
        map.u64(at + 16).store(wr.remote_addr, Ordering::Relaxed);
        map.u64(at + 24).store(u64::from(wr.rkey) | inline_length << 32, Ordering::Relaxed);
        let first = u64::from(wr.opcode)
            | u64::from(flags) << 8
            | num_sge << 16
            | self.phase(self.posted) << PHASE_SHIFT
            | u64::from(wr.imm.swap_bytes()) << 32;
        map.u64(at).store(first, Ordering::Release);
        self.posted = self.posted.wrapping_add(1);
        Ok(())
    }

    /// Writes a receive WQE.
    #[inline(always)]
    pub(crate) fn put_recv(
        &mut self,
        buffer: &Buffer,
        freed: u32,
        wr_id: u64,
        sges: &[Sge],
    ) -> Result<(), PostError> {
        self.check_room(freed)?;
        if sges.len() > self.max_sge {
            return Err(PostError::TooLarge);
        }
        let map = buffer.map();
        let at = self.slot_offset(self.posted);
        self.put_sges(buffer, at + WQE_RECV_DATA as usize, sges);
        map.u64(at + 8).store(wr_id, Ordering::Relaxed);
        let first = (sges.len() as u64) << 16 | self.phase(self.posted) << PHASE_SHIFT;
        map.u64(at).store(first, Ordering::Release);
        self.posted = self.posted.wrapping_add(1);
        Ok(())
    }

    #[inline(always)]
    fn put_sges(&self, buffer: &Buffer, mut at: usize, sges: &[Sge]) {
        let map = buffer.map();
        for sge in sges {
            map.u64(at).store(sge.addr.get(), Ordering::Relaxed);
            let second = u64::from(sge.length.get()) | u64::from(sge.lkey.get()) << 32;
            map.u64(at + 8).store(second, Ordering::Relaxed);
            at += size_of::<Sge>();
        }
    }

    /// Writes a WQE's bytes as they are, of any number up to the stride, but with the right phase.
    /// Whether there is room is not checked.
    pub(crate) fn put_raw(&mut self, buffer: &Buffer, bytes: &[u8]) {
        let at = self.slot_offset(self.posted);
        let mut wqe = bytes.to_vec();
        wqe.truncate(self.stride());
        wqe.resize(wqe.len().max(8), 0);
        wqe[3] = wqe[3] & !1 | self.phase(self.posted) as u8;
        buffer.write(at + 8, &wqe[8..]);
        let mut first = [0; 8];
        first.copy_from_slice(&wqe[..8]);
        buffer.store_u64(at, u64::from_le_bytes(first));
        self.posted = self.posted.wrapping_add(1);
    }

    /// Zeroes the slots and starts over, as after a change to RESET.
    pub(crate) fn restart(&mut self, buffer: &Buffer) {
        buffer.write(self.offset, &vec![0; (self.entries as usize) << self.stride_shift]);
        self.posted = 0;
    }
}
