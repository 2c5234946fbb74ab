// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The completion queue: writes CQEs where the driver polls them, and tells whether it armed the CQ.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rdma_midlayer::driver::Overflow;
use rdma_midlayer::memory::{Lines, UserMemory};
use rdma_midlayer::types::{Qpn, WcOpcode, WcStatus};
use rdma_midlayer::work::WorkCompletion;
use virtio_rdma_abi::ring::{
    CQ_RING_OFFSET, CQ_STATE_OVERFLOW, CQE_BYTES, CQE_SEND_QUEUE, CqDeviceLine, CqGuestLine, Cqe,
    WC_OP_RESIZE,
};

use super::{Count, phase_of};
use crate::clock;
use crate::doorbell::{self, Machine};

// Lines of the buffer.
const GUEST_LINE: u32 = 0;
const DEVICE_LINE: u32 = 1;
const FIRST_CQE: u32 = CQ_RING_OFFSET / CQE_BYTES;
// Words of 32 bits in their lines.
const CONSUMER: usize = offset_of!(CqGuestLine, consumer) / 4;
const ARM: usize = offset_of!(CqGuestLine, arm) / 4;
const FIRED: usize = offset_of!(CqDeviceLine, fired) / 4;
const STATE: usize = offset_of!(CqDeviceLine, state) / 4;

// The words of a CQE, as `push` writes them; each is a line.
const _: () = {
    assert!(CQE_BYTES == 64);
    assert!(offset_of!(Cqe, wqe_count) == 8 && offset_of!(Cqe, byte_len) == 12);
    assert!(offset_of!(Cqe, imm) == 16 && offset_of!(Cqe, src_qpn) == 20);
    assert!(offset_of!(Cqe, timestamp) == 24 && offset_of!(Cqe, wall_clock) == 40);
    assert!(offset_of!(Cqe, vendor_err) == 32 && offset_of!(Cqe, qpn) == 56);
    assert!(offset_of!(Cqe, status) == 60 && offset_of!(Cqe, opcode) == 61);
    assert!(offset_of!(Cqe, flags) == 62 && offset_of!(Cqe, phase) == 63);
};

/// A completion queue in guest memory.
pub struct CqRing {
    /// Of the whole buffer.
    lines: Lines,
    entries: u32,
    produced: AtomicU32,
    /// The driver's consumer count when last looked at; it is read again only when the ring seems
    /// full.
    consumed: AtomicU32,
    fired: AtomicU32,
    /// CQEs say when they were written.
    stamps: bool,
    counts: Counts,
}

/// What went into a CQ since it was created.
#[derive(Default)]
pub struct Counts {
    /// CQEs.
    pub completions: Count,
    /// CQEs with an error other than a flush.
    pub errors: Count,
    /// Bytes received.
    pub rx_bytes: Count,
}

impl CqRing {
    /// Bytes of the buffer of a ring of `entries` slots.
    pub fn bytes(entries: u32) -> u64 {
        u64::from(CQ_RING_OFFSET) + u64::from(entries) * u64::from(CQE_BYTES)
    }

    /// A ring of a power of two of slots; `stamps`: its CQEs say when they were written. `None` if the
    /// memory is less than `bytes(entries)`.
    pub fn new(memory: &Arc<UserMemory>, entries: u32, stamps: bool) -> Option<Self> {
        Some(Self {
            lines: Lines::new(memory, 0, FIRST_CQE + entries)?,
            entries,
            produced: AtomicU32::new(0),
            consumed: AtomicU32::new(0),
            fired: AtomicU32::new(0),
            stamps,
            counts: Counts::default(),
        })
    }

    /// Writes a CQE. One thread at a time.
    ///
    /// # Errors
    /// `Overflow` if the driver has not polled enough; it can read that in the CQ's state too.
    pub fn push(&self, wc: &WorkCompletion) -> Result<(), Overflow> {
        let n = self.produced();
        if !self.has_room(n) {
            return self.overflow();
        }
        let recv = wc.opcode.is_recv();
        let flags = wc.flags.0 | if recv { 0 } else { CQE_SEND_QUEUE };
        let last = u64::from(wc.qpn.0)
            | u64::from(wc.status.code()) << 32
            | u64::from(wc.opcode.code()) << 40
            | u64::from(flags) << 48
            | phase_of(n, self.entries) << 56;
        let (timestamp, wall_clock) = if self.stamps { clock::both() } else { (0, 0) };
        let body = [
            wc.wr_id,
            u64::from(wc.ticket) | u64::from(wc.byte_len) << 32,
            u64::from(wc.imm) | u64::from(wc.src_qpn.0) << 32,
            timestamp,
            u64::from(wc.vendor_err) | u64::from(wc.vlan) << 32 | u64::from(wc.sl) << 48,
            wall_clock,
            0,
        ];
        self.put(n, body, last).ok_or(Overflow)?;
        self.produced.store(n.wrapping_add(1), Ordering::Relaxed);
        match wc.status {
            WcStatus::Success if recv => self.counts.rx_bytes.add(wc.byte_len.into()),
            WcStatus::Success | WcStatus::WrFlushErr => {}
            _ => self.counts.errors.add(1),
        }
        self.counts.completions.add(1);
        Ok(())
    }

    /// As `push`, of a send WQE that went well.
    ///
    /// # Errors
    /// As `push`.
    #[inline(always)]
    pub fn push_sent(
        &self,
        wr_id: u64,
        ticket: u32,
        opcode: WcOpcode,
        qpn: Qpn,
        byte_len: u32,
    ) -> Result<(), Overflow> {
        let n = self.produced();
        if self.stamps || !self.has_room(n) {
            return self.push(&WorkCompletion::sent(wr_id, ticket, opcode, qpn, byte_len));
        }
        let last = u64::from(qpn.0)
            | u64::from(opcode.code()) << 40
            | u64::from(CQE_SEND_QUEUE) << 48
            | phase_of(n, self.entries) << 56;
        let counts = u64::from(ticket) | u64::from(byte_len) << 32;
        let body = [wr_id, counts, u64::from(qpn.0) << 32, 0, 0, 0, 0];
        self.put(n, body, last).ok_or(Overflow)?;
        self.produced.store(n.wrapping_add(1), Ordering::Relaxed);
        self.counts.completions.add(1);
        Ok(())
    }

    #[cold]
    fn overflow(&self) -> Result<(), Overflow> {
        self.mark_overflowed();
        Err(Overflow)
    }

    /// Tells the driver that the CQ has overflowed.
    pub fn mark_overflowed(&self) {
        if let Some(state) = self.word(DEVICE_LINE, STATE) {
            state.store(CQ_STATE_OVERFLOW.to_le(), Ordering::Release);
        }
    }

    /// Writes slot `n`, its last word last.
    #[inline(always)]
    fn put(&self, n: u32, body: [u64; 7], last: u64) -> Option<()> {
        let line = self.lines.get(FIRST_CQE + (n & (self.entries - 1)))?;
        for (to, word) in line.iter().zip(body) {
            to.store(word.to_le(), Ordering::Relaxed);
        }
        line[7].store(last.to_le(), Ordering::Release);
        Some(())
    }

    /// The ring ends here: what follows is in another one. As `push`: one thread at a time.
    pub fn end(&self) {
        let n = self.produced();
        if self.has_room(n) {
            let last = u64::from(WC_OP_RESIZE) << 40 | phase_of(n, self.entries) << 56;
            let _ = self.put(n, [0; 7], last);
        }
    }

    /// A word of one of the first lines.
    #[inline]
    fn word(&self, line: u32, word: usize) -> Option<&AtomicU32> {
        self.lines.get32(line)?.get(word)
    }

    /// Free-running count of the CQEs written.
    pub fn produced(&self) -> u32 {
        self.produced.load(Ordering::Relaxed)
    }

    /// Whether CQEs say when they were written.
    pub fn stamps(&self) -> bool {
        self.stamps
    }

    /// A driver that lets its count jump has a full ring, or overwrites its own CQEs.
    #[inline]
    fn has_room(&self, n: u32) -> bool {
        n.wrapping_sub(self.consumed.load(Ordering::Relaxed)) < self.entries || self.look(n)
    }

    /// Reads the driver's count.
    #[cold]
    fn look(&self, n: u32) -> bool {
        let Some(word) = self.word(GUEST_LINE, CONSUMER) else { return false };
        let consumed = u32::from_le(word.load(Ordering::Acquire));
        self.consumed.store(consumed, Ordering::Relaxed);
        n.wrapping_sub(consumed) < self.entries
    }

    /// After CQEs were written: whether the driver wants an event for them, which this uses up.
    /// Returns the arm sequence that the event answers.
    pub fn take_arm(&self, solicited: bool) -> Option<u32> {
        let fired = self.fired.load(Ordering::Relaxed);
        let arm = doorbell::armed::<Machine>(self.word(GUEST_LINE, ARM)?, fired, solicited)?;
        // The thread of a resize may be at it too: one of them tells.
        self.fired.compare_exchange(fired, arm, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        self.word(DEVICE_LINE, FIRED)?.store(arm.to_le(), Ordering::Release);
        Some(arm)
    }

    /// After CQEs were written: whether the driver may want an event for them.
    #[inline]
    pub fn is_armed(&self) -> bool {
        let Some(arm) = self.word(GUEST_LINE, ARM) else { return false };
        let fired = self.fired.load(Ordering::Relaxed);
        doorbell::armed::<Machine>(arm, fired, true).is_some()
    }

    /// What went into it.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Its memory.
    pub fn memory(&self) -> &UserMemory {
        self.lines.memory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::test_memory::memory;
    use rdma_midlayer::work::WcFlags;
    use virtio_rdma_abi::ring::{CQE_GRH, CQE_WITH_VLAN};
    use zerocopy::FromBytes;

    fn ring() -> CqRing {
        CqRing::new(&memory(4096), 4, false).unwrap()
    }

    fn wc(wr_id: u64, opcode: WcOpcode) -> WorkCompletion {
        WorkCompletion {
            wr_id,
            ticket: 9,
            status: WcStatus::Success,
            opcode,
            flags: WcFlags::WITH_IMM,
            qpn: Qpn(17),
            byte_len: 100,
            imm: 5,
            src_qpn: Qpn(0),
            vendor_err: 0,
            vlan: 0,
            sl: 0,
        }
    }

    fn cqe(ring: &CqRing, n: u32) -> Option<Cqe> {
        let mut bytes = [0; 64];
        ring.memory().read(128 + u64::from(n % 4) * 64, &mut bytes).unwrap();
        let cqe = Cqe::read_from_bytes(&bytes).unwrap();
        (u64::from(cqe.phase) == phase_of(n, 4)).then_some(cqe)
    }

    fn consume(ring: &CqRing, count: u32) {
        ring.word(GUEST_LINE, CONSUMER).unwrap().store(count, Ordering::Release);
    }

    #[test]
    fn a_send_that_went_well_makes_the_same_cqe_either_way() {
        for stamps in [false, true] {
            let [a, b] = [(); 2].map(|()| CqRing::new(&memory(4096), 4, stamps).unwrap());
            let sent = (7, 9, WcOpcode::RdmaRead, Qpn(17), 100);
            let word = |ring: &CqRing, n: u64, word: u64| {
                ring.memory().atomic_u64(128 + n * 64 + word * 8).unwrap().load(Ordering::Acquire)
            };
            for n in 0..4 {
                let (wr_id, ticket, opcode, qpn, len) = sent;
                a.push(&WorkCompletion::sent(wr_id, ticket, opcode, qpn, len)).unwrap();
                b.push_sent(wr_id, ticket, opcode, qpn, len).unwrap();
                // All but the two times.
                for at in [0, 1, 2, 4, 6, 7] {
                    assert_eq!(word(&a, n, at), word(&b, n, at), "word {at} of CQE {n}");
                }
                assert_eq!(word(&b, n, 3) != 0, stamps);
            }
            assert_eq!(b.push_sent(1, 1, WcOpcode::Send, Qpn(1), 0), Err(Overflow));
            assert_eq!(b.word(DEVICE_LINE, STATE).unwrap().load(Ordering::Relaxed), 1);
            assert_eq!(b.counts().completions.get(), 4);
        }
    }

    #[test]
    fn completions_can_be_polled_in_order_over_many_rounds() {
        let ring = ring();
        for n in 0..23 {
            assert_eq!(cqe(&ring, n), None);
            ring.push(&wc(n.into(), WcOpcode::Recv)).unwrap();
            let found = cqe(&ring, n).unwrap();
            assert_eq!((found.wr_id.get(), found.qpn.get(), found.flags), (n.into(), 17, 1));
            assert_eq!((found.byte_len.get(), found.wqe_count.get()), (100, 9));
            consume(&ring, n + 1);
        }
        assert_eq!(ring.counts().rx_bytes.get(), 2300);
    }

    #[test]
    fn a_datagrams_vlan_and_service_level_have_their_places() {
        let ring = ring();
        let flags = WcFlags(WcFlags::GRH.0 | WcFlags::VLAN.0);
        ring.push(&WorkCompletion { flags, vlan: 0xfff, sl: 7, ..wc(1, WcOpcode::Recv) }).unwrap();
        let found = cqe(&ring, 0).unwrap();
        let expected = (CQE_GRH | CQE_WITH_VLAN, 0xfff, 7, 0);
        assert_eq!((found.flags, found.vlan.get(), found.sl, found.vendor_err.get()), expected);
    }

    #[test]
    fn a_full_ring_overflows_and_says_so() {
        let ring = ring();
        for n in 0..4 {
            ring.push(&wc(n, WcOpcode::Send)).unwrap();
        }
        assert_eq!(ring.push(&wc(4, WcOpcode::Send)), Err(Overflow));
        assert_eq!(ring.word(DEVICE_LINE, STATE).unwrap().load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_ring_that_ends_says_so_unless_it_is_full() {
        let ring = ring();
        ring.push(&wc(1, WcOpcode::Send)).unwrap();
        ring.end();
        assert_eq!(cqe(&ring, 1).unwrap().opcode, WC_OP_RESIZE);
        assert_eq!(ring.produced(), 1, "it is no completion");
        let full = self::ring();
        (0..4).for_each(|n| full.push(&wc(n, WcOpcode::Send)).unwrap());
        full.end();
        assert_eq!(cqe(&full, 0).unwrap().wr_id.get(), 0, "nothing is overwritten");
        assert_ne!(cqe(&full, 0).unwrap().opcode, WC_OP_RESIZE);
    }

    #[test]
    fn cqes_say_when_they_were_written_if_they_shall() {
        let stamped = CqRing::new(&memory(4096), 4, true).unwrap();
        stamped.push(&wc(1, WcOpcode::Send)).unwrap();
        stamped.push(&wc(2, WcOpcode::Send)).unwrap();
        let (a, b) = (cqe(&stamped, 0).unwrap(), cqe(&stamped, 1).unwrap());
        assert!(a.timestamp.get() > 0 && b.timestamp.get() >= a.timestamp.get());
        assert!(a.wall_clock.get() > 1_600_000_000_000_000_000, "after 2020");
        let plain = ring();
        plain.push(&wc(1, WcOpcode::Send)).unwrap();
        assert_eq!(cqe(&plain, 0).unwrap().timestamp.get(), 0);
    }

    #[test]
    fn a_consumer_count_that_jumps_hurts_only_its_own_ring() {
        let ring = ring();
        for (n, jump) in [0, 4, 1000, u32::MAX, 0x8000_0000].into_iter().enumerate() {
            consume(&ring, jump);
            let _ = ring.push(&wc(n as u64, WcOpcode::Send));
        }
    }

    #[test]
    fn one_event_for_each_arming_and_only_a_solicited_one_if_asked_so() {
        let ring = ring();
        let arm = |value: u32| ring.word(GUEST_LINE, ARM).unwrap().store(value, Ordering::Release);
        assert_eq!(ring.take_arm(true), None, "not armed at first");
        arm(2);
        assert_eq!(ring.take_arm(false), Some(2));
        assert_eq!(ring.take_arm(true), None, "used up");
        arm(5);
        assert_eq!(ring.take_arm(false), None, "solicited only");
        assert_eq!(ring.take_arm(true), Some(5));
        arm(6);
        assert_eq!(ring.take_arm(false), Some(6));
    }
}
