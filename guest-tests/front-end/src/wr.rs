// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work requests and work completions, as a consumer of verbs sees them.

use virtio_rdma_abi::ring::{self, BindMwArgs, Cqe, FlushArgs, RegMrArgs, Sge};
use zerocopy::transmute;

/// Access rights of MRs and QPs.
pub mod access {
    pub use virtio_rdma_abi::control::{
        ACCESS_FLUSH_GLOBAL as FLUSH_GLOBAL, ACCESS_FLUSH_PERSISTENT as FLUSH_PERSISTENT,
        ACCESS_LOCAL_WRITE as LOCAL_WRITE, ACCESS_MW_BIND as MW_BIND,
        ACCESS_REMOTE_ATOMIC as REMOTE_ATOMIC, ACCESS_REMOTE_READ as REMOTE_READ,
        ACCESS_REMOTE_WRITE as REMOTE_WRITE, ACCESS_ZERO_BASED as ZERO_BASED,
    };
    /// Everything that a READ, WRITE or SEND may need.
    pub const ALL: u32 = LOCAL_WRITE | REMOTE_WRITE | REMOTE_READ;
}

/// Where the data of a send work request is.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// In MRs.
    Sges(&'a [Sge]),
    /// In the WQE.
    Inline(&'a [u8]),
    /// An atomic: where the old value goes, and the operands (compare or add, swap).
    Atomic(&'a Sge, u64, u64),
    /// No data: the arguments of a change of a key, or of a flush.
    Args([u64; 4]),
}

/// A send work request: `ibv_send_wr`.
#[derive(Clone, Copy, Debug)]
pub struct SendWr<'a> {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// `WR_*`.
    pub opcode: u8,
    /// `SEND_*` without `SEND_INLINE`, which `data` says.
    pub flags: u8,
    /// Immediate data, as a number.
    pub imm: u32,
    /// Address at the peer.
    pub remote_addr: u64,
    /// Key at the peer.
    pub rkey: u32,
    /// XRC: the SRQ at the peer.
    pub remote_srqn: Option<u32>,
    /// The local side.
    pub data: Data<'a>,
}

impl<'a> SendWr<'a> {
    fn new(wr_id: u64, opcode: u8, sges: &'a [Sge]) -> Self {
        let data = Data::Sges(sges);
        let (flags, imm, remote_addr, rkey, remote_srqn) = (0, 0, 0, 0, None);
        Self { wr_id, opcode, flags, imm, remote_addr, rkey, remote_srqn, data }
    }

    /// SEND.
    pub fn send(wr_id: u64, sges: &'a [Sge]) -> Self {
        Self::new(wr_id, ring::WR_SEND, sges)
    }

    /// RDMA WRITE to (address, rkey).
    pub fn write(wr_id: u64, sges: &'a [Sge], remote: (u64, u32)) -> Self {
        Self::new(wr_id, ring::WR_RDMA_WRITE, sges).remote(remote)
    }

    /// RDMA READ from (address, rkey).
    pub fn read(wr_id: u64, sges: &'a [Sge], remote: (u64, u32)) -> Self {
        Self::new(wr_id, ring::WR_RDMA_READ, sges).remote(remote)
    }

    /// FETCH_ADD of a 64-bit word at (address, rkey); the old value goes to `old`.
    pub fn fetch_add(wr_id: u64, old: &'a Sge, remote: (u64, u32), add: u64) -> Self {
        let wr = Self::new(wr_id, ring::WR_ATOMIC_FETCH_AND_ADD, &[]).remote(remote);
        Self { data: Data::Atomic(old, add, 0), ..wr }
    }

    /// COMPARE_SWAP of a 64-bit word at (address, rkey); the old value goes to `old`.
    pub fn compare_swap(
        wr_id: u64,
        old: &'a Sge,
        remote: (u64, u32),
        compare: u64,
        swap: u64,
    ) -> Self {
        let wr = Self::new(wr_id, ring::WR_ATOMIC_CMP_AND_SWP, &[]).remote(remote);
        Self { data: Data::Atomic(old, compare, swap), ..wr }
    }

    /// A datagram to (address handle, QPN, Q_Key).
    pub fn datagram(wr_id: u64, sges: &'a [Sge], (ah, qpn, qkey): (u32, u32, u32)) -> Self {
        let wr = Self::new(wr_id, ring::WR_SEND, sges);
        wr.remote((u64::from(ah) | u64::from(qpn) << 32, qkey))
    }

    /// REG_MR: memory behind a key, from the address `iova` on.
    pub fn reg_mr(wr_id: u64, key: u32, iova: u64, args: RegMrArgs) -> Self {
        let wr = Self::new(wr_id, ring::WR_REG_MR, &[]).remote((iova, key));
        Self { data: Data::Args(transmute!(args)), ..wr }
    }

    /// BIND_MW: a window gets the key `rkey`.
    pub fn bind_mw(wr_id: u64, rkey: u32, args: BindMwArgs) -> Self {
        let wr = Self::new(wr_id, ring::WR_BIND_MW, &[]).remote((0, rkey));
        Self { data: Data::Args(transmute!(args)), ..wr }
    }

    /// Atomic write of 8 bytes to (address, rkey).
    pub fn atomic_write(wr_id: u64, sges: &'a [Sge], remote: (u64, u32)) -> Self {
        Self::new(wr_id, ring::WR_ATOMIC_WRITE, sges).remote(remote)
    }

    /// FLUSH of what was written from (address, rkey) on.
    pub fn flush(wr_id: u64, remote: (u64, u32), args: FlushArgs) -> Self {
        let wr = Self::new(wr_id, ring::WR_FLUSH, &[]).remote(remote);
        let words: [u64; 2] = transmute!(args);
        Self { data: Data::Args([words[0], words[1], 0, 0]), ..wr }
    }

    /// LOCAL_INV of a key.
    pub fn local_inv(wr_id: u64, key: u32) -> Self {
        Self::new(wr_id, ring::WR_LOCAL_INV, &[]).remote((0, key))
    }

    /// SEND that takes away a key of the peer's.
    pub fn send_with_inv(wr_id: u64, sges: &'a [Sge], rkey: u32) -> Self {
        // `imm` is kept as a number of immediate data, a key is none.
        Self { imm: rkey.swap_bytes(), ..Self::new(wr_id, ring::WR_SEND_WITH_INV, sges) }
    }

    /// With immediate data: a SEND or RDMA WRITE becomes one with immediate.
    pub fn with_imm(mut self, imm: u32) -> Self {
        self.opcode = match self.opcode {
            ring::WR_RDMA_WRITE => ring::WR_RDMA_WRITE_WITH_IMM,
            ring::WR_SEND => ring::WR_SEND_WITH_IMM,
            other => other,
        };
        self.imm = imm;
        self
    }

    /// To an SRQ of an XRC target.
    pub fn to_srq(mut self, srqn: u32) -> Self {
        self.remote_srqn = Some(srqn);
        self
    }

    /// With the data in the WQE, instead of SGEs.
    pub fn inline(mut self, bytes: &'a [u8]) -> Self {
        self.data = Data::Inline(bytes);
        self
    }

    /// With a completion on success too.
    pub fn signaled(mut self) -> Self {
        self.flags |= ring::SEND_SIGNALED;
        self
    }

    /// With a solicited event at the peer.
    pub fn solicited(mut self) -> Self {
        self.flags |= ring::SEND_SOLICITED;
        self
    }

    /// After all READs before it.
    pub fn fenced(mut self) -> Self {
        self.flags |= ring::SEND_FENCE;
        self
    }

    fn remote(mut self, (address, rkey): (u64, u32)) -> Self {
        self.remote_addr = address;
        self.rkey = rkey;
        self
    }
}

/// A work completion: `ibv_wc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wc {
    /// Of the work request.
    pub wr_id: u64,
    /// `WC_*` status.
    pub status: u8,
    /// `WC_OP_*`.
    pub opcode: u8,
    /// `CQE_*` flags.
    pub flags: u8,
    /// Bytes received or read.
    pub byte_len: u32,
    /// Immediate data as a number; valid with `CQE_WITH_IMM`.
    pub imm: u32,
    /// The QP.
    pub qpn: u32,
    /// Free-running count of WQEs of that queue that are free now.
    pub wqe_count: u32,
    /// UD: the sender.
    pub src_qpn: u32,
    /// The device's own word about an error.
    pub vendor_err: u32,
    /// When it was written, by the device's clock; 0 if the CQ does not say.
    pub timestamp: u64,
    /// The same by the wall clock.
    pub wall_clock: u64,
}

impl Wc {
    #[inline]
    pub(crate) fn from_line(line: [u64; 8]) -> Self {
        let cqe: Cqe = transmute!(line);
        Self {
            wr_id: cqe.wr_id.get(),
            status: cqe.status,
            opcode: cqe.opcode,
            flags: cqe.flags,
            byte_len: cqe.byte_len.get(),
            imm: cqe.imm.get().swap_bytes(),
            qpn: cqe.qpn.get(),
            wqe_count: cqe.wqe_count.get(),
            src_qpn: cqe.src_qpn.get(),
            vendor_err: cqe.vendor_err.get(),
            timestamp: cqe.timestamp.get(),
            wall_clock: cqe.wall_clock.get(),
        }
    }

    /// The key that was invalidated; valid with `CQE_WITH_INV`.
    pub fn invalidated(&self) -> u32 {
        self.imm.swap_bytes()
    }

    /// Of a send queue; else of a receive queue.
    pub fn is_send(&self) -> bool {
        self.flags & ring::CQE_SEND_QUEUE != 0
    }

    /// Whether it succeeded.
    pub fn is_success(&self) -> bool {
        self.status == ring::WC_SUCCESS
    }
}
