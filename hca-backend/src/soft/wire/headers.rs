// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The transport headers (IBA 9.2 to 9.6, 9.3.x): each is read from and written to as many bytes as it
//! has, so no access can be out of range.

use rdma_midlayer::types::{Psn, Qpn, RKey};

fn be16(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([b[at], b[at + 1]])
}

fn be24(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([0, b[at], b[at + 1], b[at + 2]])
}

fn be32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn be64(b: &[u8], at: usize) -> u64 {
    u64::from(be32(b, at)) << 32 | u64::from(be32(b, at + 4))
}

fn put24(b: &mut [u8], at: usize, value: u32) {
    b[at..at + 3].copy_from_slice(&value.to_be_bytes()[1..]);
}

/// Base transport header (IBA 9.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bth {
    /// What the packet is.
    pub opcode: u8,
    /// The receiver's completion is a solicited one.
    pub solicited: bool,
    /// Migration state; always set where paths do not migrate.
    pub migreq: bool,
    /// Bytes of padding after the payload: 0 to 3.
    pub pad: u8,
    /// Version of the transport: 0.
    pub version: u8,
    /// Partition key.
    pub pkey: u16,
    /// Congestion was met on the way.
    pub fecn: bool,
    /// The peer tells of congestion.
    pub becn: bool,
    /// The QP that it is for.
    pub dest: Qpn,
    /// An acknowledgement is asked for.
    pub ack_req: bool,
    /// Packet sequence number.
    pub psn: Psn,
}

impl Bth {
    /// Bytes.
    pub const LEN: usize = 12;

    /// Reads it.
    pub fn parse(b: &[u8; 12]) -> Self {
        Self {
            opcode: b[0],
            solicited: b[1] & 0x80 != 0,
            migreq: b[1] & 0x40 != 0,
            pad: b[1] >> 4 & 3,
            version: b[1] & 15,
            pkey: be16(b, 2),
            fecn: b[4] & 0x80 != 0,
            becn: b[4] & 0x40 != 0,
            dest: Qpn(be24(b, 5)),
            ack_req: b[8] & 0x80 != 0,
            psn: Psn::new(be24(b, 9)),
        }
    }

    /// Writes it.
    pub fn emit(&self, b: &mut [u8; 12]) {
        b[0] = self.opcode;
        b[1] = u8::from(self.solicited) << 7
            | u8::from(self.migreq) << 6
            | (self.pad & 3) << 4
            | self.version & 15;
        b[2..4].copy_from_slice(&self.pkey.to_be_bytes());
        b[4] = u8::from(self.fecn) << 7 | u8::from(self.becn) << 6;
        put24(b, 5, self.dest.0);
        b[8] = u8::from(self.ack_req) << 7;
        put24(b, 9, self.psn.get());
    }
}

/// RDMA extended transport header (IBA 9.3.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reth {
    /// Address at the peer.
    pub addr: u64,
    /// Key at the peer.
    pub rkey: RKey,
    /// Bytes of the message.
    pub len: u32,
}

impl Reth {
    /// Bytes.
    pub const LEN: usize = 16;

    /// Reads it.
    pub fn parse(b: &[u8; 16]) -> Self {
        Self { addr: be64(b, 0), rkey: RKey(be32(b, 8)), len: be32(b, 12) }
    }

    /// Writes it.
    pub fn emit(&self) -> [u8; 16] {
        let mut b = [0; 16];
        b[..8].copy_from_slice(&self.addr.to_be_bytes());
        b[8..12].copy_from_slice(&self.rkey.0.to_be_bytes());
        b[12..].copy_from_slice(&self.len.to_be_bytes());
        b
    }
}

/// FLUSH extended transport header (IBA annex A19).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Feth {
    /// Placement type: a set of `GLOBAL` and `PERSISTENT` (4 bits).
    pub placement: u8,
    /// Selectivity level: `RANGE` or `WHOLE_MR` (2 bits).
    pub selectivity: u8,
}

impl Feth {
    /// Bytes.
    pub const LEN: usize = 4;
    /// Placement: visible to all.
    pub const GLOBAL: u8 = 1;
    /// Placement: outlives a loss of power.
    pub const PERSISTENT: u8 = 2;
    /// Selectivity: the bytes that the RETH names.
    pub const RANGE: u8 = 0;
    /// Selectivity: all of the MR.
    pub const WHOLE_MR: u8 = 1;

    /// Reads it; reserved bits are not looked at.
    pub fn parse(b: &[u8; 4]) -> Self {
        Self { placement: b[3] & 15, selectivity: b[3] >> 4 & 3 }
    }

    /// Writes it.
    pub fn emit(&self) -> [u8; 4] {
        [0, 0, 0, (self.selectivity & 3) << 4 | self.placement & 15]
    }
}

/// Atomic extended transport header (IBA 9.3.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtomicEth {
    /// Address at the peer.
    pub addr: u64,
    /// Key at the peer.
    pub rkey: RKey,
    /// To store, or to add.
    pub swap_add: u64,
    /// To compare with.
    pub compare: u64,
}

impl AtomicEth {
    /// Bytes.
    pub const LEN: usize = 28;

    /// Reads it.
    pub fn parse(b: &[u8; 28]) -> Self {
        Self {
            addr: be64(b, 0),
            rkey: RKey(be32(b, 8)),
            swap_add: be64(b, 12),
            compare: be64(b, 20),
        }
    }

    /// Writes it.
    pub fn emit(&self) -> [u8; 28] {
        let mut b = [0; 28];
        b[..8].copy_from_slice(&self.addr.to_be_bytes());
        b[8..12].copy_from_slice(&self.rkey.0.to_be_bytes());
        b[12..20].copy_from_slice(&self.swap_add.to_be_bytes());
        b[20..].copy_from_slice(&self.compare.to_be_bytes());
        b
    }
}

/// ACK extended transport header (IBA 9.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aeth {
    /// What it says.
    pub syndrome: Syndrome,
    /// Message sequence number, 24 bits.
    pub msn: u32,
}

/// Syndrome of an AETH (IBA 9.7.5.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syndrome {
    /// ACK; end-to-end credits are not used here (31: none given).
    Ack,
    /// No receive WQE; the timer code (5 bits).
    Rnr(u8),
    /// NAK.
    Nak(Nak),
    /// Reserved code: to be ignored.
    Reserved(u8),
}

/// NAK codes (IBA table 44).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nak {
    /// PSN sequence error.
    Sequence,
    /// Invalid request.
    InvalidRequest,
    /// Remote access error.
    RemoteAccess,
    /// Remote operational error.
    RemoteOperational,
}

impl Aeth {
    /// Bytes.
    pub const LEN: usize = 4;

    /// Reads it.
    pub fn parse(b: &[u8; 4]) -> Self {
        let syndrome = match (b[0] >> 5 & 3, b[0] & 31) {
            (0, _) => Syndrome::Ack,
            (1, code) => Syndrome::Rnr(code),
            (3, 0) => Syndrome::Nak(Nak::Sequence),
            (3, 1) => Syndrome::Nak(Nak::InvalidRequest),
            (3, 2) => Syndrome::Nak(Nak::RemoteAccess),
            (3, 3) => Syndrome::Nak(Nak::RemoteOperational),
            _ => Syndrome::Reserved(b[0]),
        };
        Self { syndrome, msn: be24(b, 1) }
    }

    /// Writes it.
    pub fn emit(&self) -> [u8; 4] {
        let code = match self.syndrome {
            Syndrome::Ack => 31,
            Syndrome::Rnr(code) => 1 << 5 | code & 31,
            Syndrome::Nak(nak) => 3 << 5 | nak as u8,
            Syndrome::Reserved(code) => code,
        };
        let mut b = [code, 0, 0, 0];
        put24(&mut b, 1, self.msn);
        b
    }
}

/// Datagram extended transport header (IBA 9.3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deth {
    /// Q_Key.
    pub qkey: u32,
    /// The sender.
    pub src: Qpn,
}

impl Deth {
    /// Bytes.
    pub const LEN: usize = 8;

    /// Reads it.
    pub fn parse(b: &[u8; 8]) -> Self {
        Self { qkey: be32(b, 0), src: Qpn(be24(b, 5)) }
    }

    /// Writes it.
    pub fn emit(&self) -> [u8; 8] {
        let mut b = [0; 8];
        b[..4].copy_from_slice(&self.qkey.to_be_bytes());
        put24(&mut b, 5, self.src.0);
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_reads_what_it_wrote() {
        let bth = Bth {
            opcode: 0x0a,
            solicited: true,
            migreq: true,
            pad: 3,
            version: 0,
            pkey: 0xffff,
            fecn: true,
            becn: false,
            dest: Qpn(0x12_3456),
            ack_req: true,
            psn: Psn::new(0xab_cdef),
        };
        let mut b = [0; 12];
        bth.emit(&mut b);
        assert_eq!(b, [0x0a, 0xf0, 0xff, 0xff, 0x80, 0x12, 0x34, 0x56, 0x80, 0xab, 0xcd, 0xef]);
        assert_eq!(Bth::parse(&b), bth);
        let reth = Reth { addr: 0x0102_0304_0506_0708, rkey: RKey(9), len: 10 };
        assert_eq!(Reth::parse(&reth.emit()), reth);
        let feth = Feth { placement: Feth::PERSISTENT, selectivity: Feth::WHOLE_MR };
        assert_eq!((feth.emit(), Feth::parse(&feth.emit())), ([0, 0, 0, 0x12], feth));
        let atomic = AtomicEth { addr: 1, rkey: RKey(2), swap_add: 3, compare: u64::MAX - 4 };
        assert_eq!(AtomicEth::parse(&atomic.emit()), atomic);
        let deth = Deth { qkey: 0x8001_0000, src: Qpn(1) };
        assert_eq!(Deth::parse(&deth.emit()), deth);
    }

    #[test]
    fn syndromes_are_those_of_the_tables() {
        for (syndrome, code) in [
            (Syndrome::Ack, 0x1f),
            (Syndrome::Rnr(12), 0x2c),
            (Syndrome::Nak(Nak::Sequence), 0x60),
            (Syndrome::Nak(Nak::InvalidRequest), 0x61),
            (Syndrome::Nak(Nak::RemoteAccess), 0x62),
            (Syndrome::Nak(Nak::RemoteOperational), 0x63),
        ] {
            let aeth = Aeth { syndrome, msn: 0x01_0203 };
            assert_eq!(aeth.emit(), [code, 1, 2, 3]);
            assert_eq!(Aeth::parse(&aeth.emit()), aeth);
        }
        assert_eq!(Aeth::parse(&[0x05, 0, 0, 0]).syndrome, Syndrome::Ack, "any credit count");
        assert_eq!(Aeth::parse(&[0x64, 0, 0, 0]).syndrome, Syndrome::Reserved(0x64));
    }
}
