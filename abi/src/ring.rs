// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rings in guest memory: work queue elements, completion queue elements, and the lines before
//! them.
//!
//! Every ring has a power of two of slots. A slot's phase bit, written last, says whether it is
//! new: counting slots from 0 without end, slot `n` of a ring of `2^k` is written with phase
//! `1 - (n >> k & 1)`, so a zeroed ring is empty. The word that holds the phase is 8 bytes, aligned,
//! written with one store (release), and read with one load (acquire).

use crate::describe::{abi_consts, abi_structs};
use crate::le::{Le16, Le32, Le64};

abi_structs! {
    /// A scatter/gather element.
    pub struct Sge {
        /// Address in the address space of the MR that `lkey` names.
        pub addr: Le64,
        /// Bytes.
        pub length: Le32,
        /// The local key.
        pub lkey: Le32,
    }

    /// The first 32 bytes of a send WQE. At `WQE_SEND_DATA` follow the SGEs, or the inline data, up
    /// to the stride of the queue. An atomic has one SGE, and its operands after that (`AtomicArgs`
    /// at `WQE_ATOMIC_ARGS`).
    pub struct SendWqe {
        /// `WR_*`.
        pub opcode: u8,
        /// `SEND_*` flags.
        pub flags: u8,
        /// SGEs that follow; 0 with `SEND_INLINE`.
        pub num_sge: u8,
        /// Bit 0 is the phase; the rest is zero.
        pub phase: u8,
        /// Immediate data, as it stands in the packet (big-endian), or the rkey to invalidate.
        pub imm: Le32,
        /// Comes back in the CQE.
        pub wr_id: Le64,
        /// RDMA and atomics: address at the peer. UD: the number of the address handle in the low
        /// half, the peer's QPN in the high half.
        pub remote_addr: Le64,
        /// RDMA and atomics: the peer's key. UD: the Q_Key. Local invalidate: the key.
        pub rkey: Le32,
        /// Bytes of inline data; 0 without `SEND_INLINE`.
        pub inline_length: Le32,
    }

    /// The operands of an atomic.
    pub struct AtomicArgs {
        /// COMPARE_SWAP: the value to compare. FETCH_ADD: the value to add.
        pub compare_add: Le64,
        /// COMPARE_SWAP: the value to store.
        pub swap: Le64,
    }

    /// `WR_REG_MR`, at `WQE_SEND_DATA`. The header's `rkey` is the MR's key with its new tag, the
    /// header's `remote_addr` the address of the first byte under that key.
    pub struct RegMrArgs {
        /// Bytes: at least 1.
        pub length: Le64,
        /// `ACCESS_*`.
        pub access: Le32,
        /// Addresses in the MR's list that count: exactly what offset and length need.
        pub num_pages: Le32,
        /// Bytes from the start of the first page to the first byte.
        pub offset: Le32,
        /// A page is `2^page_shift` bytes and aligned to that: 12 to 30.
        pub page_shift: u8,
        /// Zero.
        pub reserved: [u8; 11],
    }

    /// `WR_BIND_MW`, at `WQE_SEND_DATA`. The header's `rkey` is the window's key with its new tag.
    pub struct BindMwArgs {
        /// First byte, in the MR's addresses; 0 with `length` 0.
        pub addr: Le64,
        /// Bytes; 0 takes everything away (type 1 only).
        pub length: Le64,
        /// The MR.
        pub lkey: Le32,
        /// Remote rights, and `ACCESS_ZERO_BASED` (type 2 only).
        pub access: Le32,
        /// Zero.
        pub reserved: Le64,
    }

    /// `WR_FLUSH`, at `WQE_SEND_DATA`.
    pub struct FlushArgs {
        /// Bytes from `remote_addr` on; of no meaning with `FLUSH_MR`.
        pub length: Le64,
        /// `FLUSH_GLOBAL`, `FLUSH_PERSISTENT`, or both.
        pub placement: u8,
        /// `FLUSH_RANGE` or `FLUSH_MR`.
        pub selectivity: u8,
        /// Zero.
        pub reserved: [u8; 6],
    }

    /// The last 8 bytes of each slot in the send queue of an XRC initiator.
    pub struct XrcArgs {
        /// The SRQ at the peer.
        pub remote_srqn: Le32,
        /// Zero.
        pub reserved: Le32,
    }

    /// The first 16 bytes of a receive WQE; the SGEs follow it.
    pub struct RecvWqe {
        /// Zero.
        pub reserved0: u8,
        /// Zero.
        pub flags: u8,
        /// SGEs that follow.
        pub num_sge: u8,
        /// Bit 0 is the phase; the rest is zero.
        pub phase: u8,
        /// Zero.
        pub reserved1: Le32,
        /// Comes back in the CQE.
        pub wr_id: Le64,
    }

    /// A completion: one slot of a CQ's ring.
    pub struct Cqe {
        /// Of the work request.
        pub wr_id: Le64,
        /// Free-running count of the WQEs of that send or receive queue which are free when this
        /// completion has been polled (this one and all before it).
        pub wqe_count: Le32,
        /// Bytes of the message received, or read.
        pub byte_len: Le32,
        /// Immediate data (big-endian), or the rkey that was invalidated.
        pub imm: Le32,
        /// UD: the sender's QPN.
        pub src_qpn: Le32,
        /// The device's clock (see `DeviceAttr::hca_core_clock`), or 0 when the CQ has no timestamps.
        pub timestamp: Le64,
        /// More about an error, for people; 0 otherwise.
        pub vendor_err: Le32,
        /// UD, with `CQE_WITH_VLAN`: the VLAN of the datagram.
        pub vlan: Le16,
        /// UD: service level of the datagram.
        pub sl: u8,
        /// Zero.
        pub reserved0: u8,
        /// Nanoseconds since the beginning of 1970 (UTC) by the host's clock, or 0 when the CQ has no
        /// timestamps.
        pub wall_clock: Le64,
        /// Zero.
        pub reserved: Le64,
        /// The QP of the work request.
        pub qpn: Le32,
        /// `WC_*` status.
        pub status: u8,
        /// `WC_OP_*`.
        pub opcode: u8,
        /// `CQE_*` flags.
        pub flags: u8,
        /// Bit 0 is the phase; the rest is zero.
        pub phase: u8,
    }

    /// First line of a CQ's buffer: written by the driver only.
    pub struct CqGuestLine {
        /// Free-running count of the CQEs polled. Stored at least once a call of poll.
        pub consumer: Le32,
        /// `2 * sequence + solicited_only`. The driver arms the CQ by storing a new sequence (last
        /// plus one), executes a full fence, and polls once more. Zero at first: not armed.
        pub arm: Le32,
        /// Zero.
        pub reserved: [u8; 56],
    }

    /// Second line of a CQ's buffer: written by the device only. The ring follows it.
    pub struct CqDeviceLine {
        /// The last value of `arm` that got its event.
        pub fired: Le32,
        /// `CQ_STATE_*`.
        pub state: Le32,
        /// Zero.
        pub reserved: [u8; 56],
    }

    /// First line of an SRQ's buffer: written by the device only. Its WQEs are receive WQEs; one is
    /// free as soon as the device has taken it.
    pub struct SrqDeviceLine {
        /// Mode word (`MODE_*`).
        pub mode: Le32,
        /// Free-running count of the WQEs taken.
        pub consumer: Le32,
        /// Zero.
        pub reserved: [u8; 56],
    }

    /// First line of a QP's buffer: written by the device only. The rings lie behind it, where the
    /// driver said at CREATE_QP.
    pub struct QpDeviceLine {
        /// Mode word of the send queue (`MODE_*`).
        pub sq_mode: Le32,
        /// Mode word of the receive queue.
        pub rq_mode: Le32,
        /// Zero.
        pub reserved: [u8; 56],
    }
}

abi_consts! { RING_CONSTS, "Rings", u32;
    /// Bytes from the start of a send WQE to its SGEs or its inline data.
    WQE_SEND_DATA = 32;
    /// Bytes from the start of a send WQE to the `AtomicArgs`.
    WQE_ATOMIC_ARGS = 48;
    /// Bytes from the start of a receive WQE to its SGEs.
    WQE_RECV_DATA = 16;
    /// The smallest stride of a send or receive queue: 2^6 bytes.
    WQE_STRIDE_SHIFT_MIN = 6;
    /// The largest: 2^11 bytes.
    WQE_STRIDE_SHIFT_MAX = 11;
    /// Bytes of a CQE.
    CQE_BYTES = 64;
    /// Bytes from the start of a CQ's buffer to its ring.
    CQ_RING_OFFSET = 128;
    /// Bytes from the start of a QP's buffer to the first place where a ring may lie.
    QP_RINGS_OFFSET = 64;
}

abi_consts! { WR_CONSTS, "Opcodes of send WQEs", u8;
    /// RDMA WRITE.
    WR_RDMA_WRITE = 0;
    /// RDMA WRITE with immediate data.
    WR_RDMA_WRITE_WITH_IMM = 1;
    /// SEND.
    WR_SEND = 2;
    /// SEND with immediate data.
    WR_SEND_WITH_IMM = 3;
    /// RDMA READ.
    WR_RDMA_READ = 4;
    /// Compare and swap of 64 bits.
    WR_ATOMIC_CMP_AND_SWP = 5;
    /// Fetch and add of 64 bits.
    WR_ATOMIC_FETCH_AND_ADD = 6;
    /// Local invalidate.
    WR_LOCAL_INV = 7;
    /// Bind a memory window.
    WR_BIND_MW = 8;
    /// SEND with invalidate.
    WR_SEND_WITH_INV = 9;
    /// Waits until what was written is visible at the peer.
    WR_FLUSH = 14;
    /// Writes 8 bytes whole.
    WR_ATOMIC_WRITE = 15;
    /// Fast registration (kernel QPs only).
    WR_REG_MR = 32;
}

abi_consts! { FLUSH_CONSTS, "Members of `FlushArgs`", u8;
    /// Placement: visible to the peer's driver.
    FLUSH_GLOBAL = 1;
    /// Placement: outlives a loss of power.
    FLUSH_PERSISTENT = 2;
    /// Selectivity: the bytes that are named.
    FLUSH_RANGE = 0;
    /// Selectivity: all of the MR.
    FLUSH_MR = 1;
}

abi_consts! { SEND_FLAG_CONSTS, "Flags of send WQEs", u8;
    /// Begin only when all READs and atomics before it are done.
    SEND_FENCE = 1;
    /// Make a completion also on success.
    SEND_SIGNALED = 2;
    /// The completion at the peer is a solicited one.
    SEND_SOLICITED = 4;
    /// The data stands in the WQE.
    SEND_INLINE = 8;
}

abi_consts! { CQE_FLAG_CONSTS, "Flags of CQEs", u8;
    /// `imm` holds immediate data.
    CQE_WITH_IMM = 1;
    /// `imm` holds an rkey that was invalidated.
    CQE_WITH_INV = 2;
    /// The first 40 bytes received are a GRH.
    CQE_GRH = 4;
    /// `vlan` holds a VLAN.
    CQE_WITH_VLAN = 8;
    /// Of the send queue (clear: of the receive queue). Valid in errors too.
    CQE_SEND_QUEUE = 128;
}

abi_consts! { CQ_STATE_CONSTS, "State of a CQ", u32;
    /// In use.
    CQ_STATE_OK = 0;
    /// It overflowed; no CQE will follow.
    CQ_STATE_OVERFLOW = 1;
}

abi_consts! { WC_OP_CONSTS, "Opcodes of CQEs", u8;
    /// SEND of any kind.
    WC_OP_SEND = 0;
    /// RDMA WRITE of any kind.
    WC_OP_RDMA_WRITE = 1;
    /// RDMA READ.
    WC_OP_RDMA_READ = 2;
    /// Compare and swap.
    WC_OP_COMP_SWAP = 3;
    /// Fetch and add.
    WC_OP_FETCH_ADD = 4;
    /// Bind of a memory window.
    WC_OP_BIND_MW = 5;
    /// Local invalidate.
    WC_OP_LOCAL_INV = 6;
    /// Fast registration.
    WC_OP_REG_MR = 7;
    /// Flush.
    WC_OP_FLUSH = 8;
    /// Atomic write.
    WC_OP_ATOMIC_WRITE = 9;
    /// A message received.
    WC_OP_RECV = 128;
    /// Immediate data received after an RDMA WRITE.
    WC_OP_RECV_RDMA_WITH_IMM = 129;
    /// No completion: the ring ends here, and the next CQE is in the buffer of RESIZE_CQ. Its other
    /// members are zero.
    WC_OP_RESIZE = 255;
}

abi_consts! { WC_STATUS_CONSTS, "Status of CQEs (IBA 10.10.3, numbered as libibverbs numbers them)", u8;
    /// Success.
    WC_SUCCESS = 0;
    /// Local length error.
    WC_LOC_LEN_ERR = 1;
    /// Local QP operation error: a malformed WQE.
    WC_LOC_QP_OP_ERR = 2;
    /// Local protection error: a bad lkey, or bounds, or rights of an SGE.
    WC_LOC_PROT_ERR = 4;
    /// The QP went to ERR before this request was carried out.
    WC_WR_FLUSH_ERR = 5;
    /// Memory window bind error.
    WC_MW_BIND_ERR = 6;
    /// An answer that does not fit.
    WC_BAD_RESP_ERR = 7;
    /// Local access error.
    WC_LOC_ACCESS_ERR = 8;
    /// The peer found the request invalid.
    WC_REM_INV_REQ_ERR = 9;
    /// The peer's memory may not be accessed so.
    WC_REM_ACCESS_ERR = 10;
    /// The peer could not carry it out.
    WC_REM_OP_ERR = 11;
    /// No answer after all retries.
    WC_RETRY_EXC_ERR = 12;
    /// The peer had no receive WQE after all retries.
    WC_RNR_RETRY_EXC_ERR = 13;
    /// The operation was aborted by the peer.
    WC_REM_ABORT_ERR = 16;
    /// An error of the device.
    WC_FATAL_ERR = 19;
    /// Another error.
    WC_GENERAL_ERR = 21;
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn a_small_wqe_with_one_sge_fits_in_a_cache_line() {
        assert_eq!(size_of::<SendWqe>(), WQE_SEND_DATA as usize);
        assert!(size_of::<SendWqe>() + size_of::<Sge>() <= 64);
        assert_eq!(WQE_ATOMIC_ARGS as usize, size_of::<SendWqe>() + size_of::<Sge>());
        assert_eq!(WQE_ATOMIC_ARGS as usize + size_of::<AtomicArgs>(), 64);
        assert_eq!(size_of::<RecvWqe>(), WQE_RECV_DATA as usize);
        assert_eq!(WQE_SEND_DATA as usize + size_of::<RegMrArgs>(), 64);
        assert_eq!(WQE_SEND_DATA as usize + size_of::<BindMwArgs>(), 64);
    }

    #[test]
    fn the_phase_lies_in_an_aligned_word_of_eight_bytes() {
        assert_eq!(offset_of!(SendWqe, phase), 3);
        assert_eq!(offset_of!(RecvWqe, phase), 3);
        assert_eq!(offset_of!(Cqe, phase), 63);
        assert_eq!(offset_of!(Cqe, qpn), 56);
        assert_eq!(offset_of!(Cqe, wall_clock), 40);
        assert_eq!(size_of::<Cqe>(), CQE_BYTES as usize);
    }

    #[test]
    fn guest_and_device_lines_do_not_share_a_cache_line() {
        assert_eq!(size_of::<CqGuestLine>(), 64);
        assert_eq!(size_of::<CqDeviceLine>(), 64);
        assert_eq!(CQ_RING_OFFSET as usize, 128);
        assert_eq!(size_of::<QpDeviceLine>(), QP_RINGS_OFFSET as usize);
    }
}
