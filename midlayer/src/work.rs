// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work requests and completions. A work request borrows what it points to: a driver that can't
//! carry it out at once copies what it needs.

use std::fmt;
use std::sync::Arc;

use crate::driver::AhDriver;
use crate::memory::UserMemory;
use crate::types::{Access, LKey, Qpn, RKey, Srqn, WcOpcode, WcStatus, WrOpcode};

/// Most SGEs in any work request.
pub const MAX_SGE: usize = 30;

/// Scatter/gather element: a piece of an MR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sge {
    /// Address in the MR's own address space.
    pub addr: u64,
    /// Bytes.
    pub length: u32,
    /// Key of the MR.
    pub lkey: LKey,
}

/// Flags of a send work request, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendFlags(pub u8);

impl SendFlags {
    /// Begin only when all READs and atomics before it are done.
    pub const FENCE: Self = Self(1);
    /// Make a completion also on success.
    pub const SIGNALED: Self = Self(2);
    /// The completion at the peer is a solicited one.
    pub const SOLICITED: Self = Self(4);

    /// Whether all of `other` are in the set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Where the data of a send work request is.
#[derive(Clone, Copy, Debug)]
pub enum SendData<'a> {
    /// In memory that MRs cover.
    Sges(&'a [Sge]),
    /// Here; read before `post_send` returns.
    Inline(&'a [u8]),
    /// REG_MR: what to put behind the key of an MR of `alloc_mr`. With no SGEs instead of this, it fails
    /// in its turn: the consumer could not make out the memory.
    Reg(&'a RegMr),
    /// BIND_MW: what a memory window of type 2 shows.
    Bind(&'a MwBind),
    /// FLUSH: what is to be flushed.
    Flush(Flush),
}

/// What an RDMA FLUSH waits for (IBA annex A19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    /// Bytes from the work request's `remote_addr` on; of no meaning if `whole_mr`.
    pub length: u64,
    /// Of `Access`: `FLUSH_GLOBAL`, `FLUSH_PERSISTENT`, or both.
    pub placement: Access,
    /// All of the MR.
    pub whole_mr: bool,
}

/// A fast registration (IBA 10.6.3.3, 11.4.1.1): the work request REG_MR.
#[derive(Clone)]
pub struct RegMr {
    /// The MR's key: its index, and the tag that the consumer chooses (low 8 bits).
    pub key: LKey,
    /// Rights of the memory under that key.
    pub access: Access,
    /// The memory; `start()` is the address of its first byte under the key.
    pub memory: Arc<UserMemory>,
}

impl fmt::Debug for RegMr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, len) = (self.memory.start(), self.memory.len());
        write!(f, "RegMr {{ key: {}, access: {:?}, {start:#x} + {len:#x} }}", self.key, self.access)
    }
}

/// What a memory window shows (IBA 10.6.7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MwBind {
    /// Type 2: the window's key, with the tag that the consumer chooses. Type 1: the window's key as
    /// it is; the bind changes it.
    pub rkey: RKey,
    /// The MR that holds the memory.
    pub lkey: LKey,
    /// First byte, in the MR's address space.
    pub addr: u64,
    /// Bytes; 0 takes everything away.
    pub length: u64,
    /// Rights: remote ones, and `ZERO_BASED`.
    pub access: Access,
}

/// Where a datagram goes (UD).
#[derive(Clone, Copy)]
pub struct UdDest<'a> {
    /// The path.
    pub ah: &'a dyn AhDriver,
    /// The QP at the peer.
    pub qpn: Qpn,
    /// Its Q_Key; with bit 31 set the sending QP's own is taken (IBA 10.2.5).
    pub qkey: u32,
}

impl fmt::Debug for UdDest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UdDest {{ qpn: {}, qkey: {:#x} }}", self.qpn, self.qkey)
    }
}

/// A send work request (IBA 11.4.1.1).
#[derive(Clone, Copy, Debug)]
pub struct SendWr<'a> {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// Opaque to the HCA: comes back in the completion. A consumer whose ring holds the WQEs puts
    /// the count of slots there that this completion frees.
    pub ticket: u32,
    /// What to do.
    pub opcode: WrOpcode,
    /// How.
    pub flags: SendFlags,
    /// The data to send, or the place for what is read.
    pub data: SendData<'a>,
    /// Immediate data (as it stands in the packet), or the key of the peer's to invalidate.
    pub imm: u32,
    /// RDMA and atomics: the address at the peer.
    pub remote_addr: u64,
    /// RDMA and atomics: the key at the peer. `LocalInv`: the own key to invalidate.
    pub rkey: RKey,
    /// Compare and swap: the value to compare; fetch and add: the value to add.
    pub compare_add: u64,
    /// Compare and swap: the value to store.
    pub swap: u64,
    /// UD: the destination.
    pub ud: Option<UdDest<'a>>,
    /// XRC: the SRQ at the peer.
    pub srqn: Option<Srqn>,
}

/// Bytes of inline data that a `ShortWr` holds.
pub const SHORT_INLINE: usize = 32;

/// A send work request of the commonest forms: RDMA WRITE, RDMA READ or SEND, of one SGE or few inline
/// bytes, on a connection. Holds what it is made of. The members are those of `SendWr`.
#[derive(Clone, Copy, Debug)]
pub struct ShortWr {
    /// See `SendWr`.
    pub wr_id: u64,
    /// See `SendWr`.
    pub remote_addr: u64,
    /// See `SendWr`.
    pub rkey: RKey,
    /// See `SendWr`.
    pub ticket: u32,
    /// See `SendWr`.
    pub imm: u32,
    /// See `SendWr`; one that `is_short` allows.
    pub opcode: WrOpcode,
    /// See `SendWr`.
    pub flags: SendFlags,
    /// The data to send, or the place for what is read.
    pub data: ShortData,
}

/// Where the data of a `ShortWr` is.
#[derive(Clone, Copy, Debug)]
pub enum ShortData {
    /// In memory that an MR covers.
    Sge(Sge),
    /// Here: bytes, and how many of them count.
    Inline([u8; SHORT_INLINE], u8),
}

impl ShortData {
    /// Bytes.
    #[inline]
    pub fn len(&self) -> u32 {
        match self {
            Self::Sge(sge) => sge.length,
            Self::Inline(_, len) => (*len).into(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl ShortWr {
    /// One that does nothing, to be overwritten.
    pub const NOTHING: Self = Self {
        wr_id: 0,
        remote_addr: 0,
        rkey: RKey(0),
        ticket: 0,
        imm: 0,
        opcode: WrOpcode::RdmaWrite,
        flags: SendFlags(0),
        data: ShortData::Inline([0; SHORT_INLINE], 0),
    };

    /// Whether a request with this opcode may be a short one.
    #[inline]
    pub fn is_short(opcode: WrOpcode) -> bool {
        matches!(
            opcode,
            WrOpcode::RdmaWrite
                | WrOpcode::RdmaWriteWithImm
                | WrOpcode::Send
                | WrOpcode::SendWithImm
                | WrOpcode::SendWithInv
                | WrOpcode::RdmaRead
        )
    }

    /// The short form of a request, if it has one.
    pub fn of(wr: &SendWr<'_>) -> Option<Self> {
        let data = match wr.data {
            SendData::Sges([sge]) => ShortData::Sge(*sge),
            SendData::Inline(bytes) if bytes.len() <= SHORT_INLINE => {
                let mut inline = [0; SHORT_INLINE];
                inline[..bytes.len()].copy_from_slice(bytes);
                ShortData::Inline(inline, bytes.len() as u8)
            }
            _ => return None,
        };
        let short = Self::is_short(wr.opcode) && wr.ud.is_none() && wr.srqn.is_none();
        short.then_some(Self {
            wr_id: wr.wr_id,
            remote_addr: wr.remote_addr,
            rkey: wr.rkey,
            ticket: wr.ticket,
            imm: wr.imm,
            opcode: wr.opcode,
            flags: wr.flags,
            data,
        })
    }

    /// The same request in the form that every one has.
    pub fn wr(&self) -> SendWr<'_> {
        SendWr {
            wr_id: self.wr_id,
            ticket: self.ticket,
            opcode: self.opcode,
            flags: self.flags,
            data: match &self.data {
                ShortData::Sge(sge) => SendData::Sges(std::slice::from_ref(sge)),
                ShortData::Inline(bytes, len) => {
                    SendData::Inline(&bytes[..usize::from(*len).min(SHORT_INLINE)])
                }
            },
            imm: self.imm,
            remote_addr: self.remote_addr,
            rkey: self.rkey,
            compare_add: 0,
            swap: 0,
            ud: None,
            srqn: None,
        }
    }
}

/// A receive work request (IBA 11.4.1.2).
#[derive(Clone, Copy, Debug)]
pub struct RecvWr<'a> {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// As in `SendWr`.
    pub ticket: u32,
    /// Where the message goes.
    pub sges: &'a [Sge],
}

/// A receive work request of one SGE. The members are those of `RecvWr`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShortRecv {
    /// See `RecvWr`.
    pub wr_id: u64,
    /// See `RecvWr`.
    pub ticket: u32,
    /// Where the message goes.
    pub sge: Sge,
}

/// A receive work request that a driver owns.
#[derive(Clone, Copy, Debug)]
pub struct RecvWqe {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// As in `SendWr`.
    pub ticket: u32,
    num_sge: u8,
    sges: [Sge; MAX_SGE],
}

impl Default for RecvWqe {
    fn default() -> Self {
        Self { wr_id: 0, ticket: 0, num_sge: 0, sges: [Sge::default(); MAX_SGE] }
    }
}

impl RecvWqe {
    /// Takes the request over; SGEs past `MAX_SGE` are dropped (a driver checks `max_recv_sge`
    /// before).
    pub fn set(&mut self, wr_id: u64, ticket: u32, sges: impl Iterator<Item = Sge>) {
        self.wr_id = wr_id;
        self.ticket = ticket;
        self.num_sge = 0;
        for (to, from) in self.sges.iter_mut().zip(sges) {
            *to = from;
            self.num_sge += 1;
        }
    }

    /// The SGEs.
    pub fn sges(&self) -> &[Sge] {
        &self.sges[..usize::from(self.num_sge)]
    }
}

/// Flags of a completion, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WcFlags(pub u8);

impl WcFlags {
    /// `imm` holds immediate data.
    pub const WITH_IMM: Self = Self(1);
    /// `imm` holds a key that was invalidated.
    pub const WITH_INV: Self = Self(2);
    /// The first 40 bytes received are a GRH.
    pub const GRH: Self = Self(4);
    /// `vlan` holds a VLAN.
    pub const VLAN: Self = Self(8);

    /// Whether all of `other` are in the set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A work completion (IBA 11.4.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkCompletion {
    /// Of the work request.
    pub wr_id: u64,
    /// Of the work request.
    pub ticket: u32,
    /// Success, or why not.
    pub status: WcStatus,
    /// Of what. Valid with an error too.
    pub opcode: WcOpcode,
    /// Which of the members below hold something.
    pub flags: WcFlags,
    /// The QP.
    pub qpn: Qpn,
    /// Bytes received or read.
    pub byte_len: u32,
    /// Immediate data, or the key invalidated.
    pub imm: u32,
    // Between two that a consumer may read as one: that would wait for the two stores that wrote them.
    /// More about an error, for people.
    pub vendor_err: u32,
    /// UD: the sender.
    pub src_qpn: Qpn,
    /// UD: the VLAN in which it came.
    pub vlan: u16,
    /// UD: its service level.
    pub sl: u8,
}

impl WorkCompletion {
    /// That of a send work request that went well; `byte_len`: bytes read.
    #[inline]
    pub fn sent(wr_id: u64, ticket: u32, opcode: WcOpcode, qpn: Qpn, byte_len: u32) -> Self {
        Self {
            wr_id,
            ticket,
            status: WcStatus::Success,
            opcode,
            flags: WcFlags::default(),
            qpn,
            byte_len,
            imm: 0,
            vendor_err: 0,
            vlan: 0,
            sl: 0,
            src_qpn: qpn,
        }
    }
}
