// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Completion queues: poll, arm, wait. Poll makes no system call, takes no lock and allocates
//! nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_rdma_abi::event::CompEvent;
use virtio_rdma_abi::ring::{CQ_RING_OFFSET, CQE_BYTES, CqDeviceLine, CqGuestLine};

use crate::error::Error;
use crate::mapping::full_fence;
use crate::memory::Buffer;
use crate::queues::Queues;
use crate::uar::QpTable;
use crate::wr::Wc;

const GUEST_LINE: usize = 0;
const DEVICE_LINE: usize = size_of::<CqGuestLine>();
const CONSUMER: usize = GUEST_LINE + std::mem::offset_of!(CqGuestLine, consumer);
const ARM: usize = GUEST_LINE + std::mem::offset_of!(CqGuestLine, arm);
const FIRED: usize = DEVICE_LINE + std::mem::offset_of!(CqDeviceLine, fired);
const STATE: usize = DEVICE_LINE + std::mem::offset_of!(CqDeviceLine, state);

/// A completion queue. If it is dropped without `Driver::destroy_cq`, the device keeps it, and its
/// memory stays allocated, as after a crash of the process.
#[derive(Debug)]
pub struct Cq {
    cqn: u32,
    vector: u32,
    buffer: Buffer,
    /// Slots are `2^shift`.
    shift: u32,
    /// Free-running count of CQEs polled.
    polled: u32,
    /// Of a ring that was resized away: what is still to be polled there.
    old: Option<OldRing>,
    arm_sequence: u32,
    qps: Arc<QpTable>,
    queues: Arc<Queues>,
}

/// A ring that a resize ended: `last` completions were written into it.
#[derive(Debug)]
struct OldRing {
    buffer: Buffer,
    shift: u32,
    polled: u32,
    last: u32,
}

impl Cq {
    pub(crate) fn new(
        cqn: u32,
        vector: u32,
        entries: u32,
        buffer: Buffer,
        qps: Arc<QpTable>,
        queues: Arc<Queues>,
    ) -> Self {
        buffer.set_with_device(true);
        Self {
            cqn,
            vector,
            buffer,
            shift: entries.trailing_zeros(),
            polled: 0,
            old: None,
            arm_sequence: 0,
            qps,
            queues,
        }
    }

    /// Bytes of a CQ's buffer.
    pub(crate) fn bytes(entries: u32) -> usize {
        CQ_RING_OFFSET as usize + CQE_BYTES as usize * entries as usize
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.cqn
    }

    /// Its slots.
    pub fn entries(&self) -> u32 {
        1 << self.shift
    }

    /// Its memory, for hostile tests.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// `CQ_STATE_*`, as the device says.
    pub fn state(&self) -> u32 {
        self.buffer.load_u32(STATE)
    }

    /// The last arm word that got its event, as the device says.
    pub fn fired(&self) -> u32 {
        self.buffer.load_u32(FIRED)
    }

    /// Takes completions off the ring, as many as there are and `out` has room for.
    #[inline]
    pub fn poll(&mut self, out: &mut [Wc]) -> usize {
        let mut count = 0;
        while count < out.len() {
            let Some(wc) = self.next() else { break };
            out[count] = wc;
            count += 1;
        }
        if count > 0 {
            self.store_consumer();
            out[..count].iter().for_each(|wc| self.free_wqes(wc));
        }
        count
    }

    /// Takes one completion off the ring.
    #[inline]
    pub fn poll_one(&mut self) -> Option<Wc> {
        let wc = self.next()?;
        self.store_consumer();
        self.free_wqes(&wc);
        Some(wc)
    }

    /// Takes one completion and does not tell the device: the ring fills up, for tests of overflow.
    pub fn poll_silently(&mut self) -> Option<Wc> {
        let wc = self.next()?;
        self.free_wqes(&wc);
        Some(wc)
    }

    #[inline]
    fn store_consumer(&self) {
        self.buffer.map().u32(CONSUMER).store(self.polled, Ordering::Release);
    }

    /// After RESIZE_CQ: the old ring got `last` completions, the rest comes to the new one. All of an
    /// older ring must have been polled.
    pub(crate) fn move_to(&mut self, buffer: Buffer, entries: u32, last: u32) {
        buffer.set_with_device(true);
        self.buffer.set_with_device(false);
        let buffer = std::mem::replace(&mut self.buffer, buffer);
        self.old = Some(OldRing { buffer, shift: self.shift, polled: self.polled, last });
        (self.shift, self.polled, self.arm_sequence) = (entries.trailing_zeros(), 0, 0);
    }

    /// The slot behind the last completion of the ring that the last resize ended, as it stands there.
    pub fn end_of_old_ring(&self) -> Option<Wc> {
        let OldRing { buffer, shift, last, .. } = self.old.as_ref()?;
        read_slot(buffer, *shift, *last)
    }

    #[cold]
    fn next_of_old(&mut self) -> Option<Wc> {
        let old = self.old.as_mut()?;
        if old.polled == old.last {
            return None;
        }
        let wc = read_slot(&old.buffer, old.shift, old.polled)?;
        old.polled = old.polled.wrapping_add(1);
        Some(wc)
    }

    #[inline]
    fn next(&mut self) -> Option<Wc> {
        if self.old.is_some()
            && let Some(wc) = self.next_of_old()
        {
            return Some(wc);
        }
        let wc = read_slot(&self.buffer, self.shift, self.polled)?;
        self.polled = self.polled.wrapping_add(1);
        Some(wc)
    }

    /// Lets the QP post again. After the consumer count is stored: in a CQ that is just large enough,
    /// there is no room before for what is posted then.
    #[inline]
    fn free_wqes(&self, wc: &Wc) {
        if let Some(freed) = self.qps.get(wc.qpn) {
            let count = if wc.is_send() { &freed.sq } else { &freed.rq };
            count.store(wc.wqe_count, Ordering::Release);
        }
    }

    /// Polls until `count` completions are there. An error, if the time-out comes first.
    pub fn poll_for(&mut self, count: usize, timeout: Duration) -> Result<Vec<Wc>, Error> {
        let mut found = Vec::with_capacity(count);
        let deadline = Instant::now() + timeout;
        let mut idle = 0_u32;
        while found.len() < count {
            if let Some(wc) = self.poll_one() {
                found.push(wc);
                idle = 0;
                continue;
            }
            idle += 1;
            if idle > 2000 {
                if Instant::now() > deadline {
                    return Err(Error::Timeout { what: "a completion", waited: timeout });
                }
                std::thread::sleep(Duration::from_micros(50));
            } else {
                std::hint::spin_loop();
            }
        }
        Ok(found)
    }

    /// The next completion. An error, if the time-out comes first.
    pub fn wait_one(&mut self, timeout: Duration) -> Result<Wc, Error> {
        Ok(self.poll_for(1, timeout)?[0])
    }

    /// Asks for an event at the next completion (`req_notify_cq`). The caller polls once more
    /// before it waits.
    #[inline]
    pub fn arm(&mut self, solicited_only: bool) {
        self.arm_sequence = self.arm_sequence.wrapping_add(1);
        let word = self.arm_sequence << 1 | u32::from(solicited_only);
        self.buffer.map().u32(ARM).store(word, Ordering::Release);
        full_fence();
    }

    /// The arm word now in force.
    pub fn arm_word(&self) -> u32 {
        self.buffer.load_u32(ARM)
    }

    /// Waits for an event of this CQ; `None` at the time-out.
    pub fn wait_event(&self, timeout: Duration) -> Result<Option<CompEvent>, Error> {
        self.queues.next_comp_event(self.vector, timeout, |event| event.cqn.get() == self.cqn)
    }

    /// Drops the completions of a QP that are in the ring, as a driver does when it destroys or
    /// resets one, and returns the others.
    pub fn clean(&mut self, qpn: u32) -> Vec<Wc> {
        std::iter::from_fn(|| self.poll_one()).filter(|wc| wc.qpn != qpn).collect()
    }
}

/// Completion number `n` of a ring of `2^shift` slots, if it is there.
#[inline]
fn read_slot(buffer: &Buffer, shift: u32, n: u32) -> Option<Wc> {
    let slot = n & ((1 << shift) - 1);
    let at = CQ_RING_OFFSET as usize + slot as usize * CQE_BYTES as usize;
    let lap = u64::from(n >> shift);
    // The phase is bit 0 of the line's last byte.
    let line = buffer.map().load_line(at, |last| (last >> 56) & 1 == (lap & 1) ^ 1)?;
    Some(Wc::from_line(line))
}
