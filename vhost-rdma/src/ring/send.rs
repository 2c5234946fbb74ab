// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The send queue: takes WQEs out of guest memory. One thread at a time, the QP's worker.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rdma_midlayer::driver::MalformedWqe;
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::types::{Access, RKey, Srqn, WrOpcode};
use rdma_midlayer::work::{
    Flush, MAX_SGE, SHORT_INLINE, SendData, SendFlags, SendWr, Sge, ShortData, ShortWr,
};
use virtio_rdma_abi::ring::{
    AtomicArgs, FLUSH_GLOBAL, FLUSH_MR, FLUSH_PERSISTENT, FLUSH_RANGE, FlushArgs, SEND_FENCE,
    SEND_INLINE, SEND_SIGNALED, SEND_SOLICITED, SendWqe, WQE_ATOMIC_ARGS, WQE_SEND_DATA, XrcArgs,
};
use zerocopy::FromBytes;

use super::{
    Count, Geometry, LINE, LINE_WORDS, MAX_STRIDE, WorkRing, phase_of, put_words, sge, sges,
};

const DATA: usize = WQE_SEND_DATA as usize;

// The words of the first line, as `parse` and `short` read them.
const _: () = {
    assert!(offset_of!(SendWqe, flags) == 1 && offset_of!(SendWqe, num_sge) == 2);
    assert!(offset_of!(SendWqe, imm) == 4 && offset_of!(SendWqe, wr_id) == 8);
    assert!(offset_of!(SendWqe, remote_addr) == 16 && offset_of!(SendWqe, rkey) == 24);
    assert!(offset_of!(SendWqe, inline_length) == 28 && DATA == 32);
};

/// Others are for later versions: a WQE with one of them would not be carried out as meant.
const KNOWN_FLAGS: u8 = SEND_FENCE | SEND_SIGNALED | SEND_SOLICITED | SEND_INLINE;

/// A send queue in guest memory.
pub struct SendRing {
    ring: WorkRing,
    max_sge: u8,
    max_inline: u32,
    next: AtomicU32,
    taken: Count,
    bytes: Count,
}

/// Most WQEs that are taken together.
pub const BURST: usize = 16;

/// WQEs that were taken together.
pub type ShortList = [ShortWr; BURST];

/// Room for what a request borrows.
pub struct SendBuffer {
    bytes: [u8; MAX_STRIDE],
    sges: [Sge; MAX_SGE],
}

impl Default for SendBuffer {
    fn default() -> Self {
        Self { bytes: [0; MAX_STRIDE], sges: [Sge::default(); MAX_SGE] }
    }
}

/// Why a list of WQEs ends where it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// There are no more for now.
    Empty,
    /// There may be more.
    Full,
    /// The next one is not for a list: it has no short form.
    Apart,
}

impl SendRing {
    /// A ring whose geometry was checked against the buffer. `None` if it is not in the memory.
    pub fn new(
        memory: &Arc<UserMemory>,
        geometry: Geometry,
        max_sge: u32,
        max_inline: u32,
    ) -> Option<Self> {
        Some(Self {
            ring: WorkRing::new(memory, geometry)?,
            max_sge: max_sge.min(MAX_SGE as u32) as u8,
            max_inline: max_inline.min((1u32 << geometry.stride_shift) - WQE_SEND_DATA),
            next: AtomicU32::new(0),
            taken: Count::default(),
            bytes: Count::default(),
        })
    }

    /// Whether the next slot holds a WQE.
    pub fn has_work(&self) -> bool {
        self.ring.is_new(self.next.load(Ordering::Relaxed))
    }

    /// The next WQE, if there is one. It stays the next until `advance`.
    pub fn peek<'b>(&self, buffer: &'b mut SendBuffer) -> Option<Result<SendWr<'b>, MalformedWqe>> {
        let n = self.next.load(Ordering::Relaxed);
        let line = self.ring.first_line(n)?;
        let malformed = MalformedWqe { wr_id: line[1], ticket: n.wrapping_add(1) };
        Some(self.parse(n, &line, buffer).ok_or(malformed))
    }

    /// Fills `list` with the next WQEs, up to `max` and to the first that has no short form. They stay the
    /// next until `advance`. How many, their bytes, and why there are no more.
    #[inline(never)]
    pub fn peek_short(&self, list: &mut ShortList, max: usize) -> (usize, u64, Ended) {
        let mut n = self.next.load(Ordering::Relaxed);
        let (mut count, mut bytes) = (0, 0);
        let (slots, limits) = (self.ring.slots(), (self.max_sge, self.max_inline));
        for to in list.iter_mut().take(max) {
            let Some((line, first)) = slots.new_slot(n) else {
                return (count, bytes, Ended::Empty);
            };
            n = n.wrapping_add(1);
            if !short(n, line, first, limits, to) {
                return (count, bytes, Ended::Apart);
            }
            count += 1;
            bytes += u64::from(to.data.len());
        }
        (count, bytes, Ended::Full)
    }

    fn parse<'b>(
        &self,
        n: u32,
        line: &[u64; LINE_WORDS],
        buffer: &'b mut SendBuffer,
    ) -> Option<SendWr<'b>> {
        let opcode = WrOpcode::from_code(line[0] as u8)?;
        let (flags, num_sge) = ((line[0] >> 8) as u8, (line[0] >> 16) as u8);
        if flags & !KNOWN_FLAGS != 0 {
            return None;
        }
        let inline_length = (line[3] >> 32) as u32;
        let mut wr = SendWr {
            wr_id: line[1],
            ticket: n.wrapping_add(1),
            opcode,
            flags: SendFlags(flags & !SEND_INLINE),
            data: SendData::Sges(&[]),
            imm: (line[0] >> 32) as u32,
            remote_addr: line[2],
            rkey: RKey(line[3] as u32),
            compare_add: 0,
            swap: 0,
            ud: None,
            srqn: None,
        };
        let SendBuffer { bytes, sges: list } = buffer;
        put_words(line, DATA / 8, bytes);
        if is_local(opcode) || opcode == WrOpcode::Flush {
            if flags & SEND_INLINE != 0 || num_sge != 0 || inline_length != 0 {
                return None;
            }
            if opcode == WrOpcode::Flush {
                wr.data = SendData::Flush(flush(line)?);
            } else if opcode != WrOpcode::LocalInv {
                wr.data = SendData::Inline(&bytes[DATA..LINE]);
            }
            return Some(wr);
        }
        let atomic = matches!(opcode, WrOpcode::AtomicCmpAndSwp | WrOpcode::AtomicFetchAndAdd);
        let inline = flags & SEND_INLINE != 0;
        let length = if inline {
            let length = inline_length;
            let takes_data = matches!(
                opcode,
                WrOpcode::Send
                    | WrOpcode::SendWithImm
                    | WrOpcode::SendWithInv
                    | WrOpcode::RdmaWrite
                    | WrOpcode::RdmaWriteWithImm
                    | WrOpcode::AtomicWrite
            );
            if length > self.max_inline || num_sge != 0 || !takes_data {
                return None;
            }
            length as usize
        } else {
            if num_sge > self.max_sge || inline_length != 0 {
                return None;
            }
            usize::from(num_sge) * size_of::<virtio_rdma_abi::ring::Sge>()
        };
        let end = DATA + length;
        if end > self.ring.stride() {
            return None;
        }
        if end > LINE {
            self.ring.read(n, LINE..end, bytes);
        }
        let bytes = &*bytes;
        if atomic {
            let args = AtomicArgs::read_from_prefix(&bytes[WQE_ATOMIC_ARGS as usize..]).ok()?.0;
            (wr.compare_add, wr.swap) = (args.compare_add.get(), args.swap.get());
        }
        wr.data = if inline {
            SendData::Inline(&bytes[DATA..end])
        } else {
            let list = list.get_mut(..usize::from(num_sge))?;
            for (to, from) in list.iter_mut().zip(sges(&bytes[DATA..end], num_sge.into())) {
                *to = from;
            }
            SendData::Sges(list)
        };
        Some(wr)
    }

    /// The SRQ that the next WQE of an XRC initiator names: at the end of its slot.
    pub fn remote_srqn(&self) -> Srqn {
        let end = self.ring.slot(self.next.load(Ordering::Relaxed)) + self.ring.stride() as u64;
        let mut bytes = [0; size_of::<XrcArgs>()];
        // The ring was checked to lie in its memory.
        let _ = self.ring.memory().read(end - bytes.len() as u64, &mut bytes);
        Srqn(XrcArgs::read_from_bytes(&bytes).map_or(0, |args| args.remote_srqn.get()))
    }

    /// Goes on by `count` slots; `bytes` were sent by those just left.
    #[inline]
    pub fn advance(&self, count: u32, bytes: u64) {
        self.next.store(self.next.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
        self.taken.add(count.into());
        self.bytes.add(bytes);
    }

    /// Starts over, as after RESET. The driver zeroes the ring.
    pub fn reset(&self) {
        self.next.store(0, Ordering::Relaxed);
    }

    /// WQEs and bytes taken since creation.
    pub fn counts(&self) -> (u64, u64) {
        (self.taken.get(), self.bytes.get())
    }

    /// The phase that the driver writes into slot `n`.
    pub fn phase(n: u32, entries: u32) -> u8 {
        phase_of(n, entries) as u8
    }
}

/// Puts the WQE of a line into its short form; each word is read once. `limits`: of SGEs and inline bytes.
/// False if it makes no sense, or has no such form.
#[inline(always)]
fn short(
    ticket: u32,
    line: &[AtomicU64; LINE_WORDS],
    first: u64,
    (max_sge, max_inline): (u8, u32),
    to: &mut ShortWr,
) -> bool {
    let word = |n: usize| u64::from_le(line[n].load(Ordering::Relaxed));
    let Some(opcode) = WrOpcode::from_code(first as u8) else { return false };
    let (flags, num_sge) = ((first >> 8) as u8, (first >> 16) as u8);
    let keys = word(3);
    let inline_length = (keys >> 32) as u32;
    if !ShortWr::is_short(opcode) {
        return false;
    }
    if flags & !(KNOWN_FLAGS & !SEND_INLINE) == 0 {
        if num_sge != 1 || inline_length != 0 || max_sge == 0 {
            return false;
        }
        to.data = ShortData::Sge(sge(word(4), word(5)));
    } else {
        let fits = inline_length <= max_inline.min(SHORT_INLINE as u32);
        let known = flags & !KNOWN_FLAGS == 0;
        if !known || num_sge != 0 || !fits || opcode == WrOpcode::RdmaRead {
            return false;
        }
        let mut bytes = [0; SHORT_INLINE];
        for (n, to) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *to = word(DATA / 8 + n).to_le_bytes();
        }
        to.data = ShortData::Inline(bytes, inline_length as u8);
    }
    (to.wr_id, to.remote_addr) = (word(1), word(2));
    (to.rkey, to.imm) = (RKey(keys as u32), (first >> 32) as u32);
    (to.ticket, to.opcode, to.flags) = (ticket, opcode, SendFlags(flags & !SEND_INLINE));
    true
}

/// Whether the WQE changes a key and moves no data: then its arguments stand where SGEs would, and
/// are passed on as bytes.
#[inline]
fn is_local(opcode: WrOpcode) -> bool {
    matches!(opcode, WrOpcode::LocalInv | WrOpcode::BindMw | WrOpcode::RegMr)
}

/// The arguments of a WR_FLUSH; `None` if they make no sense.
#[cold]
fn flush(line: &[u64; LINE_WORDS]) -> Option<Flush> {
    let mut bytes = [0; LINE];
    put_words(line, DATA / 8, &mut bytes);
    let args = FlushArgs::read_from_prefix(&bytes[DATA..]).ok()?.0;
    let (global, persistent) = (args.placement & FLUSH_GLOBAL, args.placement & FLUSH_PERSISTENT);
    let whole_mr = match args.selectivity {
        FLUSH_RANGE => false,
        FLUSH_MR => true,
        _ => return None,
    };
    if args.placement == 0 || args.placement != global | persistent {
        return None;
    }
    let right = |there: bool, right| if there { right } else { Access::NONE };
    let placement =
        right(global != 0, Access::FLUSH_GLOBAL) | right(persistent != 0, Access::FLUSH_PERSISTENT);
    Some(Flush { length: args.length.get(), placement, whole_mr })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::test_memory::memory;
    use rdma_midlayer::types::LKey;
    use virtio_rdma_abi::ring::{WR_ATOMIC_FETCH_AND_ADD, WR_RDMA_READ, WR_SEND};
    use zerocopy::IntoBytes;

    const GEOMETRY: Geometry = Geometry { entries: 4, offset: 64, stride_shift: 7 };

    fn ring() -> SendRing {
        SendRing::new(&memory(8192), GEOMETRY, 5, 96).unwrap()
    }

    fn put(ring: &SendRing, n: u32, wqe: &SendWqe, rest: &[u8]) {
        let slot = ring.ring.slot(n);
        let wqe = SendWqe { phase: SendRing::phase(n, 4), ..*wqe };
        ring.ring.memory().write(slot + DATA as u64, rest).unwrap();
        ring.ring.memory().write(slot, wqe.as_bytes()).unwrap();
    }

    fn wqe(opcode: u8) -> SendWqe {
        SendWqe { opcode, wr_id: 77.into(), flags: SEND_SIGNALED, ..Default::default() }
    }

    #[test]
    fn a_zeroed_ring_is_empty_and_phases_alternate() {
        let ring = ring();
        let mut buffer = SendBuffer::default();
        assert!(!ring.has_work());
        for n in 0..20 {
            assert!(ring.peek(&mut buffer).is_none(), "slot {n} is old");
            put(&ring, n, &SendWqe { wr_id: u64::from(n).into(), ..wqe(WR_SEND) }, &[]);
            assert!(ring.has_work());
            let wr = ring.peek(&mut buffer).unwrap().unwrap();
            assert_eq!((wr.wr_id, wr.ticket), (u64::from(n), n + 1));
            ring.advance(1, 0);
        }
    }

    #[test]
    fn sges_inline_data_and_atomic_operands_are_read() {
        let ring = ring();
        let mut buffer = SendBuffer::default();
        let sge = |i: u32| virtio_rdma_abi::ring::Sge {
            addr: u64::from(i).into(),
            length: (i * 10).into(),
            lkey: 5.into(),
        };
        let list: Vec<u8> = (1..=5).flat_map(|i| sge(i).as_bytes().to_vec()).collect();
        put(&ring, 0, &SendWqe { num_sge: 5, ..wqe(WR_RDMA_READ) }, &list);
        let wr = ring.peek(&mut buffer).unwrap().unwrap();
        let SendData::Sges(sges) = wr.data else { panic!("SGEs") };
        assert_eq!(sges.iter().map(|s| s.length).collect::<Vec<_>>(), [10, 20, 30, 40, 50]);
        ring.advance(1, 150);

        let data: Vec<u8> = (0..96).collect();
        let inline = SendWqe { flags: SEND_INLINE, inline_length: 96.into(), ..wqe(WR_SEND) };
        put(&ring, 1, &inline, &data);
        let wr = ring.peek(&mut buffer).unwrap().unwrap();
        assert!(matches!(wr.data, SendData::Inline(bytes) if bytes == data));
        ring.advance(1, 96);

        let mut operands = sge(1).as_bytes().to_vec();
        operands.extend(3u64.to_le_bytes());
        put(&ring, 2, &SendWqe { num_sge: 1, ..wqe(WR_ATOMIC_FETCH_AND_ADD) }, &operands);
        assert_eq!(ring.peek(&mut buffer).unwrap().unwrap().compare_add, 3);
        ring.advance(1, 8);
        assert_eq!(ring.counts(), (3, 254));
    }

    #[test]
    fn a_list_holds_what_is_there_up_to_a_wqe_that_has_no_short_form() {
        let geometry = Geometry { entries: 32, offset: 64, stride_shift: 7 };
        let ring = SendRing::new(&memory(8192), geometry, 5, 96).unwrap();
        let mut list = [ShortWr::NOTHING; BURST];
        let put = |n: u32, wqe: &SendWqe, rest: &[u8]| {
            let slot = ring.ring.slot(n);
            let phase = SendRing::phase(n, 32);
            let wqe = SendWqe { phase, wr_id: u64::from(n).into(), ..*wqe };
            ring.ring.memory().write(slot + DATA as u64, rest).unwrap();
            ring.ring.memory().write(slot, wqe.as_bytes()).unwrap();
        };
        let inline = SendWqe { flags: SEND_INLINE, inline_length: 30.into(), ..wqe(WR_SEND) };
        let sge = SendWqe { num_sge: 1, ..wqe(WR_SEND) };
        for n in 0..20 {
            put(n, if n % 2 == 0 { &inline } else { &sge }, &[n as u8; 90]);
        }
        let mut taken = 0;
        while taken < 20 {
            let (count, bytes, ended) = ring.peek_short(&mut list, BURST);
            let mut sum = 0;
            for wr in &list[..count] {
                assert_eq!((wr.wr_id, wr.ticket), (taken.into(), taken + 1));
                match &wr.data {
                    ShortData::Inline(bytes, 30) => assert_eq!(bytes[..30], [taken as u8; 30]),
                    ShortData::Sge(sge) => {
                        let word = u32::from_ne_bytes([taken as u8; 4]);
                        assert_eq!(
                            (sge.length, sge.lkey, sge.addr as u32),
                            (word, LKey(word), word)
                        );
                    }
                    other => panic!("{other:?}"),
                }
                sum += u64::from(wr.data.len());
                taken += 1;
            }
            assert!(count > 0 && sum == bytes);
            assert_eq!(ended, if taken < 20 { Ended::Full } else { Ended::Empty });
            ring.advance(count as u32, 0);
        }
        put(20, &sge, &[]);
        put(21, &inline, &[]);
        assert_eq!(ring.peek_short(&mut list, 1).2, Ended::Full);
        let no_short_form = [
            wqe(99),
            wqe(WR_SEND),
            SendWqe { num_sge: 2, ..wqe(WR_SEND) },
            SendWqe { num_sge: 1, ..wqe(WR_ATOMIC_FETCH_AND_ADD) },
            SendWqe { num_sge: 1, flags: 0x10, ..wqe(WR_SEND) },
            SendWqe { num_sge: 1, inline_length: 1.into(), ..wqe(WR_SEND) },
            SendWqe { num_sge: 1, ..inline },
            SendWqe { inline_length: 33.into(), ..inline },
            SendWqe { flags: SEND_INLINE | 0x80, ..inline },
            SendWqe { opcode: WR_RDMA_READ, ..inline },
        ];
        for wqe in no_short_form {
            put(22, &wqe, &[]);
            let (count, _, ended) = ring.peek_short(&mut list, BURST);
            assert_eq!((count, ended), (2, Ended::Apart), "{wqe:?}");
        }
        put(22, &inline, &[]);
        assert_eq!(ring.peek_short(&mut list, BURST).0, 3);
    }

    #[test]
    fn malformed_wqes_are_reported_with_their_wr_id() {
        let bad = [
            wqe(99),
            SendWqe { flags: 0x10, ..wqe(WR_SEND) },
            SendWqe { flags: 0x80, ..wqe(WR_SEND) },
            SendWqe { num_sge: 6, ..wqe(WR_SEND) },
            SendWqe { num_sge: 255, ..wqe(WR_SEND) },
            SendWqe { inline_length: 1.into(), ..wqe(WR_SEND) },
            SendWqe { flags: SEND_INLINE, inline_length: 97.into(), ..wqe(WR_SEND) },
            SendWqe { flags: SEND_INLINE, inline_length: u32::MAX.into(), ..wqe(WR_SEND) },
            SendWqe { flags: SEND_INLINE, num_sge: 1, ..wqe(WR_SEND) },
            SendWqe { flags: SEND_INLINE, inline_length: 8.into(), ..wqe(WR_RDMA_READ) },
        ];
        for wqe in bad {
            let ring = ring();
            put(&ring, 0, &wqe, &[]);
            let found = ring.peek(&mut SendBuffer::default()).unwrap().unwrap_err();
            assert_eq!((found.wr_id, found.ticket), (77, 1), "{wqe:?}");
        }
    }
}
