// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A RoCEv2 packet from BTH to payload: read as a whole and checked, or written.

use rdma_midlayer::types::{Psn, Srqn};

use super::headers::{Aeth, AtomicEth, Bth, Deth, Feth, Reth};
use super::opcode::{Kind, Op, Transport};

/// The P_Key of the default partition; the table has no other.
pub const DEFAULT_PKEY: u16 = 0xffff;

/// A packet. Made by `parse`, so a header that its opcode has is there.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Its base header.
    pub bth: Bth,
    /// What its opcode means.
    pub op: &'static Op,
    /// FLUSH: how.
    pub feth: Feth,
    /// WRITE, READ, FLUSH and atomic write: where, and how much.
    pub reth: Reth,
    /// Atomics: where, and what.
    pub atomic: AtomicEth,
    /// Responses.
    pub aeth: Option<Aeth>,
    /// Answers to atomics: the value that was there.
    pub original: u64,
    /// Datagrams.
    pub deth: Deth,
    /// XRC requests: the SRQ.
    pub srqn: Srqn,
    /// Immediate data, its bytes as they stand in the packet (and in the consumer's memory), or the key
    /// to invalidate, a number.
    pub imm: u32,
    /// Without padding.
    pub payload: &'a [u8],
}

/// Why there is no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Too short for its headers, or padding longer than the payload.
    Length,
    /// No such opcode, or another version of the transport.
    Opcode,
}

/// Takes `N` bytes off the front.
fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Result<&'a [u8; N], Malformed> {
    let (head, rest) = bytes.split_first_chunk().ok_or(Malformed::Length)?;
    *bytes = rest;
    Ok(head)
}

impl<'a> Packet<'a> {
    /// Reads a packet, BTH to padding.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut rest = bytes;
        let bth = Bth::parse(take(&mut rest)?);
        let op = Op::of(bth.opcode).ok_or(Malformed::Opcode)?;
        if bth.version != 0 {
            return Err(Malformed::Opcode);
        }
        let mut packet = Self {
            bth,
            op,
            feth: Feth::default(),
            reth: Reth::default(),
            atomic: AtomicEth::default(),
            aeth: None,
            original: 0,
            deth: Deth::default(),
            srqn: Srqn(0),
            imm: 0,
            payload: &[],
        };
        if op.transport == Transport::Ud {
            packet.deth = Deth::parse(take(&mut rest)?);
        }
        if op.transport == Transport::Xrc && !op.is_response() {
            packet.srqn = Srqn(u32::from_be_bytes(*take(&mut rest)?) & 0xff_ffff);
        }
        if op.kind == Kind::Flush {
            packet.feth = Feth::parse(take(&mut rest)?);
        }
        if op.reth() {
            packet.reth = Reth::parse(take(&mut rest)?);
        }
        if op.atomic_eth() {
            packet.atomic = AtomicEth::parse(take(&mut rest)?);
        }
        if op.aeth() {
            packet.aeth = Some(Aeth::parse(take(&mut rest)?));
        }
        if op.kind == Kind::AtomicAck {
            packet.original = u64::from_be_bytes(*take(&mut rest)?);
        }
        if op.imm {
            packet.imm = u32::from_le_bytes(*take(&mut rest)?);
        }
        if op.inv {
            packet.imm = u32::from_be_bytes(*take(&mut rest)?);
        }
        let len = rest.len().checked_sub(bth.pad.into()).ok_or(Malformed::Length)?;
        if len > 0 && !op.payload() {
            return Err(Malformed::Length);
        }
        packet.payload = &rest[..len];
        Ok(packet)
    }
}

/// BTH and the headers behind it, as they are written.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; 48],
    len: usize,
}

impl Head {
    /// Begins with a BTH; `payload` is what its padding comes from.
    pub fn new(bth: Bth, payload: usize) -> Self {
        let mut bytes = [0; 48];
        let bth = Bth { pad: (payload.wrapping_neg() & 3) as u8, ..bth };
        if let Some(head) = bytes.first_chunk_mut() {
            bth.emit(head);
        }
        Self { bytes, len: Bth::LEN }
    }

    /// A header more. At most 36 bytes of them.
    pub fn with(mut self, header: &[u8]) -> Self {
        let end = self.len + header.len();
        if let Some(to) = self.bytes.get_mut(self.len..end) {
            to.copy_from_slice(header);
            self.len = end;
        }
        self
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Packets of a message: one at least.
#[inline]
pub fn packets(len: u64, mtu: usize) -> u32 {
    let mtu = mtu as u64;
    if len <= mtu { 1 } else { len.div_ceil(mtu) as u32 }
}

/// Whether `psn` lies in the `count` PSNs from `first` on.
#[inline]
pub fn within(psn: Psn, first: Psn, count: u32) -> bool {
    // Not by signed distance: a message may have 2^23 packets.
    Psn::new(psn.get().wrapping_sub(first.get())).get() < count
}

#[cfg(test)]
mod tests {
    use super::super::opcode::code;
    use super::*;
    use rdma_midlayer::types::Qpn;

    #[test]
    fn a_packet_of_each_opcode_needs_its_headers_and_no_more() {
        for number in 0..=255u8 {
            let Some(op) = Op::of(number) else {
                assert_eq!(bare(number, 64).err(), Some(Malformed::Opcode));
                continue;
            };
            let need = op.header_len();
            if need > 0 {
                assert_eq!(bare(number, need - 1).err(), Some(Malformed::Length), "{number:#x}");
            }
            assert!(bare(number, need).is_ok(), "{number:#x}");
            assert_eq!(bare(number, need + 4).is_ok(), op.payload(), "{number:#x}");
        }
    }

    fn bare(opcode: u8, after: usize) -> Result<usize, Malformed> {
        let bth = Bth { opcode, dest: Qpn(17), ..Bth::default() };
        let mut bytes = Head::new(bth, 0).bytes().to_vec();
        bytes.resize(Bth::LEN + after, 0);
        Packet::parse(&bytes).map(|p| p.payload.len())
    }

    #[test]
    fn padding_longer_than_the_payload_is_refused() {
        let bth = Bth { opcode: code::SEND_ONLY, ..Bth::default() };
        let mut bytes = Head::new(bth, 1).bytes().to_vec();
        assert_eq!(Packet::parse(&bytes).err(), Some(Malformed::Length));
        bytes.extend([7, 0, 0, 0]);
        assert_eq!(Packet::parse(&bytes).unwrap().payload, [7]);
    }

    #[test]
    fn a_range_of_psns_may_wrap_and_be_half_of_all() {
        let first = Psn::new(0xff_fff0);
        assert!(within(Psn::new(0xff_fff0), first, 1));
        assert!(within(Psn::new(5), first, 0x20));
        assert!(!within(Psn::new(0x10), first, 0x20));
        assert!(!within(Psn::new(0xff_ffef), first, 1 << 23));
        assert!(within(first.plus((1 << 23) - 1), first, 1 << 23));
    }
}
