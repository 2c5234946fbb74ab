// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attributes of devices, ports, QPs and paths. Plain data.

use crate::types::{Access, Gid, Mtu, PortState, Psn, QpState, Qpn};

/// What a device can do (IBA 11.2.1.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceAttr {
    /// EUI-64 of the node.
    pub node_guid: [u8; 8],
    /// Firmware (software) version: major << 32 | minor << 16 | patch.
    pub fw_ver: u64,
    /// Bytes of the largest MR.
    pub max_mr_size: u64,
    /// Bit `n`: MR pages of `2^n` bytes are accepted.
    pub page_size_cap: u64,
    /// IEEE vendor number.
    pub vendor_id: u32,
    /// The vendor's part number.
    pub vendor_part_id: u32,
    /// Hardware version.
    pub hw_ver: u32,
    /// QPs of a context.
    pub max_qp: u32,
    /// WRs in one queue.
    pub max_qp_wr: u32,
    /// SGEs in a send WR.
    pub max_send_sge: u32,
    /// SGEs in a receive WR.
    pub max_recv_sge: u32,
    /// SGEs in an RDMA READ.
    pub max_sge_rd: u32,
    /// Bytes of inline data.
    pub max_inline: u32,
    /// CQs of a context.
    pub max_cq: u32,
    /// CQEs of a CQ.
    pub max_cqe: u32,
    /// MRs of a context.
    pub max_mr: u32,
    /// PDs of a context.
    pub max_pd: u32,
    /// READs and atomics outstanding at a responder QP.
    pub max_qp_rd_atom: u32,
    /// The same at a requester QP.
    pub max_qp_init_rd_atom: u32,
    /// SRQs of a context.
    pub max_srq: u32,
    /// WRs in an SRQ.
    pub max_srq_wr: u32,
    /// SGEs in a WR of an SRQ.
    pub max_srq_sge: u32,
    /// Memory windows of a context.
    pub max_mw: u32,
    /// Address handles of a context.
    pub max_ah: u32,
    /// Pages in a fast registration.
    pub max_fast_reg_page_list_len: u32,
    /// Multicast groups.
    pub max_mcast_grp: u32,
    /// QPs in one group.
    pub max_mcast_qp_attach: u32,
    /// QPs in all groups together.
    pub max_total_mcast_qp_attach: u32,
    /// SRQs can be resized.
    pub srq_resize: bool,
    /// XRC domains of a context.
    pub max_xrcd: u32,
    /// `LKey::LOCAL_DMA` is a key.
    pub local_dma_lkey: bool,
    /// Memory on demand: RC and XRC use it for everything, UC and UD for what they send.
    pub on_demand: bool,
    /// 0: no atomics; 1: atomic among the QPs of this device; 2: with the whole system.
    pub atomic_cap: u32,
    /// There is `WrOpcode::AtomicWrite`.
    pub atomic_write: bool,
    /// There is `WrOpcode::Flush`, with `Access::FLUSH_GLOBAL`.
    pub flush: bool,
    /// P_Keys of the port.
    pub max_pkeys: u16,
    /// 4.096 us * 2^n is the longest that an acknowledgement takes.
    pub local_ca_ack_delay: u8,
}

/// State and limits of a port (IBA 11.2.1.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortAttr {
    /// State.
    pub state: PortState,
    /// Largest path MTU.
    pub max_mtu: Mtu,
    /// Path MTU in force.
    pub active_mtu: Mtu,
    /// Bytes of the largest message.
    pub max_msg_sz: u32,
    /// GIDs of a context.
    pub gid_tbl_len: u32,
    /// P_Keys.
    pub pkey_tbl_len: u16,
    /// IBA link width code.
    pub active_width: u8,
    /// IBA link speed code.
    pub active_speed: u32,
}

/// One entry of a context's GID table (RoCEv2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GidEntry {
    /// The GID.
    pub gid: Gid,
    /// MAC of the network device that has it.
    pub mac: [u8; 6],
    /// VLAN of that device.
    pub vlan: Option<u16>,
}

/// A path to a peer: what an AH, or a connected QP, sends along (IBA address vector).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AhAttr {
    /// GID of the peer.
    pub dgid: Gid,
    /// Entry of the context's own GID table.
    pub sgid_index: u32,
    /// MAC of the next hop.
    pub dmac: [u8; 6],
    /// VLAN.
    pub vlan: Option<u16>,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Hop limit.
    pub hop_limit: u8,
    /// Traffic class.
    pub traffic_class: u8,
    /// Service level.
    pub sl: u8,
    /// IBA static rate code; 0 is the port's.
    pub static_rate: u8,
    /// Port, from 1.
    pub port: u8,
}

/// Sizes of a QP's queues. At creation what is wanted, afterwards what was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QpCap {
    /// Send WRs outstanding.
    pub max_send_wr: u32,
    /// Receive WRs outstanding.
    pub max_recv_wr: u32,
    /// SGEs in a send WR.
    pub max_send_sge: u32,
    /// SGEs in a receive WR.
    pub max_recv_sge: u32,
    /// Bytes of inline data.
    pub max_inline: u32,
}

/// Attributes of a QP (IBA 11.2.4.2); `QpAttrMask` says which count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpAttr {
    /// State (to move to).
    pub state: QpState,
    /// State that the consumer believes the QP to be in. To a driver: the one that the midlayer found
    /// and checked against.
    pub cur_state: QpState,
    /// Path MTU.
    pub path_mtu: Mtu,
    /// Port, from 1.
    pub port: u8,
    /// Q_Key (UD).
    pub qkey: u32,
    /// First PSN received.
    pub rq_psn: Psn,
    /// First PSN sent.
    pub sq_psn: Psn,
    /// The peer.
    pub dest_qpn: Qpn,
    /// What the peer may do.
    pub access: Access,
    /// Path to the peer.
    pub ah: AhAttr,
    /// Entry of the P_Key table.
    pub pkey_index: u16,
    /// READs and atomics outstanding as requester.
    pub max_rd_atomic: u8,
    /// READs and atomics outstanding as responder.
    pub max_dest_rd_atomic: u8,
    /// IBA RNR timer code (5 bits) that this QP's RNR NAKs carry.
    pub min_rnr_timer: u8,
    /// 4.096 us * 2^n until a retry; 0 for never (5 bits).
    pub timeout: u8,
    /// Retries after a time-out or NAK: 0 to 7.
    pub retry_cnt: u8,
    /// Retries after an RNR NAK: 0 to 6, 7 without end.
    pub rnr_retry: u8,
    /// Modify: event when drained. Query: draining.
    pub sq_draining: bool,
}

impl Default for QpAttr {
    fn default() -> Self {
        Self {
            state: QpState::Reset,
            cur_state: QpState::Reset,
            path_mtu: Mtu::Mtu1024,
            port: 1,
            qkey: 0,
            rq_psn: Psn::new(0),
            sq_psn: Psn::new(0),
            dest_qpn: Qpn(0),
            access: Access::NONE,
            ah: AhAttr::default(),
            pkey_index: 0,
            max_rd_atomic: 0,
            max_dest_rd_atomic: 0,
            min_rnr_timer: 0,
            timeout: 0,
            retry_cnt: 0,
            rnr_retry: 0,
            sq_draining: false,
        }
    }
}

/// Which attributes of a `QpAttr` count; bits as in ib_verbs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QpAttrMask(pub u32);

impl QpAttrMask {
    /// `state`.
    pub const STATE: Self = Self(0x1);
    /// `cur_state`.
    pub const CUR_STATE: Self = Self(0x2);
    /// Event when the send queue is drained.
    pub const EN_SQD_ASYNC_NOTIFY: Self = Self(0x4);
    /// `access`.
    pub const ACCESS_FLAGS: Self = Self(0x8);
    /// `pkey_index`.
    pub const PKEY_INDEX: Self = Self(0x10);
    /// `port`.
    pub const PORT: Self = Self(0x20);
    /// `qkey`.
    pub const QKEY: Self = Self(0x40);
    /// `ah`.
    pub const AV: Self = Self(0x80);
    /// `path_mtu`.
    pub const PATH_MTU: Self = Self(0x100);
    /// `timeout`.
    pub const TIMEOUT: Self = Self(0x200);
    /// `retry_cnt`.
    pub const RETRY_CNT: Self = Self(0x400);
    /// `rnr_retry`.
    pub const RNR_RETRY: Self = Self(0x800);
    /// `rq_psn`.
    pub const RQ_PSN: Self = Self(0x1000);
    /// `max_rd_atomic`.
    pub const MAX_QP_RD_ATOMIC: Self = Self(0x2000);
    /// Alternate path. RoCE has none; no `QpAttr` member.
    pub const ALT_PATH: Self = Self(0x4000);
    /// `min_rnr_timer`.
    pub const MIN_RNR_TIMER: Self = Self(0x8000);
    /// `sq_psn`.
    pub const SQ_PSN: Self = Self(0x1_0000);
    /// `max_dest_rd_atomic`.
    pub const MAX_DEST_RD_ATOMIC: Self = Self(0x2_0000);
    /// Path migration state. RoCE has none; no `QpAttr` member.
    pub const PATH_MIG_STATE: Self = Self(0x4_0000);
    /// Sizes of the queues. No `QpAttr` member: QPs keep their sizes.
    pub const CAP: Self = Self(0x8_0000);
    /// `dest_qpn`.
    pub const DEST_QPN: Self = Self(0x10_0000);

    /// Whether all of `other` are in the set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those of both.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::ops::BitOr for QpAttrMask {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}
