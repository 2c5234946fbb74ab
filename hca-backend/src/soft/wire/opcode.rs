// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The opcodes (IBA table 38) as one table: which transport, what it does, where in the message it
//! stands, and which headers follow the BTH.

/// Transport, the top three bits of an opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Reliable connection.
    Rc,
    /// Unreliable connection.
    Uc,
    /// Unreliable datagram.
    Ud,
    /// Extended reliable connection.
    Xrc,
    /// Congestion notification.
    Cnp,
}

/// What a packet does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SEND.
    Send,
    /// RDMA WRITE.
    Write,
    /// RDMA READ request.
    ReadRequest,
    /// RDMA READ response.
    ReadResponse,
    /// Acknowledgement.
    Ack,
    /// Answer to an atomic.
    AtomicAck,
    /// Compare and swap.
    CmpSwap,
    /// Fetch and add.
    FetchAdd,
    /// RDMA FLUSH (annex A19).
    Flush,
    /// Atomic write of 8 bytes (annex A19).
    AtomicWrite,
    /// Congestion notification packet (RoCEv2, annex A17.9.3).
    Cnp,
}

/// An opcode's properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Its number.
    pub code: u8,
    /// Transport.
    pub transport: Transport,
    /// What it does.
    pub kind: Kind,
    /// It begins a message.
    pub first: bool,
    /// It ends one.
    pub last: bool,
    /// Immediate data follows.
    pub imm: bool,
    /// A key to invalidate follows.
    pub inv: bool,
}

impl Op {
    /// The properties of a number, if it is one of the table's.
    #[inline]
    pub fn of(code: u8) -> Option<&'static Op> {
        TABLE[code as usize].as_ref()
    }

    /// Whether it is for a requester.
    #[inline]
    pub const fn is_response(&self) -> bool {
        matches!(self.kind, Kind::ReadResponse | Kind::Ack | Kind::AtomicAck)
    }

    /// Whether an RETH follows.
    pub const fn reth(&self) -> bool {
        self.first
            && matches!(
                self.kind,
                Kind::Write | Kind::ReadRequest | Kind::Flush | Kind::AtomicWrite
            )
    }

    /// Whether an AtomicETH follows.
    pub const fn atomic_eth(&self) -> bool {
        matches!(self.kind, Kind::CmpSwap | Kind::FetchAdd)
    }

    /// Whether an AETH follows.
    pub const fn aeth(&self) -> bool {
        match self.kind {
            Kind::Ack | Kind::AtomicAck => true,
            Kind::ReadResponse => self.first || self.last,
            _ => false,
        }
    }

    /// Whether payload may follow.
    pub const fn payload(&self) -> bool {
        matches!(
            self.kind,
            Kind::Send | Kind::Write | Kind::AtomicWrite | Kind::ReadResponse | Kind::Cnp
        )
    }

    /// Bytes of the headers between BTH and payload.
    pub const fn header_len(&self) -> usize {
        let mut len = 0;
        if matches!(self.transport, Transport::Ud) {
            len += 8;
        }
        if matches!(self.transport, Transport::Xrc) && !self.is_response() {
            len += 4;
        }
        if matches!(self.kind, Kind::Flush) {
            len += 4;
        }
        if self.reth() {
            len += 16;
        }
        if self.atomic_eth() {
            len += 28;
        }
        if self.aeth() {
            len += 4;
        }
        if matches!(self.kind, Kind::AtomicAck) {
            len += 8;
        }
        if self.imm || self.inv {
            len += 4;
        }
        len
    }
}

/// Names of the opcodes that are sent from here, without the transport's bits.
pub mod code {
    #![allow(missing_docs)]
    pub const SEND_FIRST: u8 = 0x00;
    pub const SEND_MIDDLE: u8 = 0x01;
    pub const SEND_LAST: u8 = 0x02;
    pub const SEND_LAST_IMM: u8 = 0x03;
    pub const SEND_ONLY: u8 = 0x04;
    pub const SEND_ONLY_IMM: u8 = 0x05;
    pub const WRITE_FIRST: u8 = 0x06;
    pub const WRITE_MIDDLE: u8 = 0x07;
    pub const WRITE_LAST: u8 = 0x08;
    pub const WRITE_LAST_IMM: u8 = 0x09;
    pub const WRITE_ONLY: u8 = 0x0a;
    pub const WRITE_ONLY_IMM: u8 = 0x0b;
    pub const READ_REQUEST: u8 = 0x0c;
    pub const READ_RESPONSE_FIRST: u8 = 0x0d;
    pub const READ_RESPONSE_MIDDLE: u8 = 0x0e;
    pub const READ_RESPONSE_LAST: u8 = 0x0f;
    pub const READ_RESPONSE_ONLY: u8 = 0x10;
    pub const ACK: u8 = 0x11;
    pub const ATOMIC_ACK: u8 = 0x12;
    pub const CMP_SWAP: u8 = 0x13;
    pub const FETCH_ADD: u8 = 0x14;
    pub const SEND_LAST_INV: u8 = 0x16;
    pub const SEND_ONLY_INV: u8 = 0x17;
    pub const FLUSH: u8 = 0x1c;
    pub const ATOMIC_WRITE: u8 = 0x1d;
    pub const UC: u8 = 0x20;
    pub const UD: u8 = 0x60;
    pub const XRC: u8 = 0xa0;
    pub const CNP: u8 = 0x81;
}

static TABLE: [Option<Op>; 256] = table();

const fn table() -> [Option<Op>; 256] {
    let mut table = [None; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = entry(code as u8);
        code += 1;
    }
    table
}

const fn entry(number: u8) -> Option<Op> {
    use code::*;
    if number == CNP {
        return Some(op(number, Transport::Cnp, Kind::Cnp, true, true));
    }
    let transport = match number & 0xe0 {
        0 => Transport::Rc,
        UC => Transport::Uc,
        UD => Transport::Ud,
        XRC => Transport::Xrc,
        _ => return None,
    };
    let (kind, first, last) = match number & 0x1f {
        SEND_FIRST => (Kind::Send, true, false),
        SEND_MIDDLE => (Kind::Send, false, false),
        SEND_LAST | SEND_LAST_IMM | SEND_LAST_INV => (Kind::Send, false, true),
        SEND_ONLY | SEND_ONLY_IMM | SEND_ONLY_INV => (Kind::Send, true, true),
        WRITE_FIRST => (Kind::Write, true, false),
        WRITE_MIDDLE => (Kind::Write, false, false),
        WRITE_LAST | WRITE_LAST_IMM => (Kind::Write, false, true),
        WRITE_ONLY | WRITE_ONLY_IMM => (Kind::Write, true, true),
        READ_REQUEST => (Kind::ReadRequest, true, true),
        READ_RESPONSE_FIRST => (Kind::ReadResponse, true, false),
        READ_RESPONSE_MIDDLE => (Kind::ReadResponse, false, false),
        READ_RESPONSE_LAST => (Kind::ReadResponse, false, true),
        READ_RESPONSE_ONLY => (Kind::ReadResponse, true, true),
        ACK => (Kind::Ack, true, true),
        ATOMIC_ACK => (Kind::AtomicAck, true, true),
        CMP_SWAP => (Kind::CmpSwap, true, true),
        FETCH_ADD => (Kind::FetchAdd, true, true),
        FLUSH => (Kind::Flush, true, true),
        ATOMIC_WRITE => (Kind::AtomicWrite, true, true),
        _ => return None,
    };
    let mut op = op(number, transport, kind, first, last);
    op.imm =
        matches!(number & 0x1f, SEND_LAST_IMM | SEND_ONLY_IMM | WRITE_LAST_IMM | WRITE_ONLY_IMM);
    op.inv = matches!(number & 0x1f, SEND_LAST_INV | SEND_ONLY_INV);
    let exists = match transport {
        Transport::Ud => matches!(kind, Kind::Send) && first && last && !op.inv,
        Transport::Uc => matches!(kind, Kind::Send | Kind::Write) && !op.inv,
        _ => true,
    };
    if exists { Some(op) } else { None }
}

const fn op(code: u8, transport: Transport, kind: Kind, first: bool, last: bool) -> Op {
    Op { code, transport, kind, first, last, imm: false, inv: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_opcodes_of_each_transport_and_no_others() {
        let count = |t| (0..=255).filter_map(Op::of).filter(|op| op.transport == t).count();
        assert_eq!(count(Transport::Rc), 25);
        assert_eq!(count(Transport::Xrc), 25);
        assert_eq!(count(Transport::Uc), 12);
        assert_eq!(count(Transport::Ud), 2);
        assert_eq!(count(Transport::Cnp), 1);
    }

    #[test]
    fn headers_have_the_lengths_of_the_standard() {
        use code::*;
        let len = |code| Op::of(code).unwrap().header_len();
        assert_eq!(len(SEND_MIDDLE), 0);
        assert_eq!(len(WRITE_FIRST), 16);
        assert_eq!(len(WRITE_ONLY_IMM), 20);
        assert_eq!(len(CMP_SWAP), 28);
        assert_eq!(len(ATOMIC_ACK), 12);
        assert_eq!(len(READ_RESPONSE_MIDDLE), 0);
        assert_eq!(len(READ_RESPONSE_LAST), 4);
        assert_eq!(len(UD | SEND_ONLY_IMM), 12);
        assert_eq!(len(FLUSH), 20);
        assert_eq!(len(XRC | ATOMIC_WRITE), 20);
        assert_eq!(len(XRC | SEND_ONLY), 4);
    }
}
