// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control virtqueue: commands, their answers, and the status of each.
//!
//! A command is one descriptor chain: `ControlHeader` and the request structure in the readable
//! part, `ControlStatus` and the answer structure in the writable part. The device executes commands
//! in order and returns them in order.

mod codes;
pub mod on_demand;

pub use codes::*;

use crate::describe::abi_structs;
use crate::le::{Le16, Le32, Le64};

abi_structs! {
    /// Starts every command.
    pub struct ControlHeader {
        /// `CMD_*`.
        pub command: Le16,
        /// Zero.
        pub flags: Le16,
        /// Counts the driver's commands: last plus one. INIT may have any. A command that repeats
        /// the number of the one before is not executed again: it gets that one's answer.
        pub sequence: Le32,
    }

    /// Starts every answer.
    pub struct ControlStatus {
        /// `STATUS_*`.
        pub status: Le32,
        /// The command's sequence number.
        pub sequence: Le32,
    }

    /// Pages of guest memory, as a tree like that of a page table, so that a driver needs no
    /// contiguous memory for it. Every table is one 4096-byte page of 512 little-endian addresses,
    /// filled from the start.
    pub struct PageList {
        /// Depth 0: guest-physical address of the only page, or of the first of contiguous ones.
        /// Otherwise that of the topmost table.
        pub root: Le64,
        /// Pages listed: at least 1.
        pub num_pages: Le32,
        /// A page is `2^page_shift` bytes and aligned to that: 12 to 30.
        pub page_shift: u8,
        /// Levels of tables between `root` and the pages: 0 to 3. `num_pages <= 512^depth` for a
        /// depth over 0.
        pub depth: u8,
        /// Zero.
        pub reserved: Le16,
    }

    /// INIT: the first command. Destroys whatever an earlier driver left.
    pub struct InitRequest {
        /// `ABI_MAJOR` of the driver.
        pub abi_major: Le16,
        /// `ABI_MINOR` of the driver.
        pub abi_minor: Le16,
        /// Completion vectors that the driver will use: 1 to `Config::num_comp_vectors`.
        pub num_comp_vectors: Le32,
        /// Guest-physical address of the status page (4096 bytes, aligned): one `VectorStatus`
        /// a vector.
        pub status_page: Le64,
        /// Capabilities (`CAP_*`) that the driver wants to use.
        pub capabilities: Le64,
    }

    /// Answer to INIT.
    pub struct InitAnswer {
        /// `ABI_MAJOR` of the device.
        pub abi_major: Le16,
        /// `ABI_MINOR` of the device.
        pub abi_minor: Le16,
        /// Slots of all UARs together that the device accepts.
        pub max_slots: Le32,
        /// Capabilities in force: those wanted that the device has.
        pub capabilities: Le64,
    }

    /// Answer to QUERY_DEVICE (IBA 11.2.1.2). It may change when another HCA comes.
    pub struct DeviceAttr {
        /// EUI-64 of the node, big-endian.
        pub node_guid: [u8; 8],
        /// Of the system.
        pub sys_image_guid: [u8; 8],
        /// Version of the device's software: major in bits 32 to 47, minor in 16 to 31, patch below.
        pub fw_ver: Le64,
        /// Bytes of the largest MR.
        pub max_mr_size: Le64,
        /// Bit `n`: pages of `2^n` bytes are accepted in page lists of MRs.
        pub page_size_cap: Le64,
        /// `DEVICE_CAP_*`.
        pub device_caps: Le64,
        /// IEEE vendor number.
        pub vendor_id: Le32,
        /// The vendor's part number.
        pub vendor_part_id: Le32,
        /// Hardware version.
        pub hw_ver: Le32,
        /// QPs.
        pub max_qp: Le32,
        /// WRs in one send or receive queue.
        pub max_qp_wr: Le32,
        /// SGEs in a send WQE.
        pub max_send_sge: Le32,
        /// SGEs in a receive WQE.
        pub max_recv_sge: Le32,
        /// SGEs in an RDMA READ.
        pub max_sge_rd: Le32,
        /// Bytes of inline data.
        pub max_inline: Le32,
        /// CQs.
        pub max_cq: Le32,
        /// CQEs in one CQ.
        pub max_cqe: Le32,
        /// MRs.
        pub max_mr: Le32,
        /// PDs.
        pub max_pd: Le32,
        /// READs and atomics that a QP may have outstanding as responder.
        pub max_qp_rd_atom: Le32,
        /// As requester.
        pub max_qp_init_rd_atom: Le32,
        /// Of all QPs together.
        pub max_res_rd_atom: Le32,
        /// SRQs.
        pub max_srq: Le32,
        /// WRs in one SRQ.
        pub max_srq_wr: Le32,
        /// SGEs in an SRQ's WQE.
        pub max_srq_sge: Le32,
        /// Memory windows.
        pub max_mw: Le32,
        /// Address handles.
        pub max_ah: Le32,
        /// Multicast groups.
        pub max_mcast_grp: Le32,
        /// QPs in one multicast group.
        pub max_mcast_qp_attach: Le32,
        /// Pages in one fast registration.
        pub max_fast_reg_page_list_len: Le32,
        /// 0: no atomics; 1: atomic within the device; 2: with the whole system.
        pub atomic_cap: Le32,
        /// UARs.
        pub max_uar: Le32,
        /// P_Keys of the port.
        pub max_pkeys: Le16,
        /// 4.096 us * 2^n is the longest that an acknowledgement takes.
        pub local_ca_ack_delay: u8,
        /// Zero.
        pub reserved: [u8; 5],
        /// kHz of the clock of CQEs' `timestamp`.
        pub hca_core_clock: Le64,
        /// XRC domains.
        pub max_xrcd: Le32,
        /// Multicast attachments, of all groups together.
        pub max_total_mcast_qp_attach: Le32,
        /// Largest `ModifyCqRequest::count`.
        pub max_cq_count: Le16,
        /// Largest `ModifyCqRequest::period`.
        pub max_cq_period: Le16,
        /// Zero.
        pub reserved1: Le32,
        /// Bytes of device memory, of all pieces together.
        pub max_dm_size: Le64,
        /// Memory on demand: `ODP_SUPPORT`, `ODP_SUPPORT_IMPLICIT`.
        pub odp_caps: Le32,
        /// What RC QPs can use it for (`ODP_SUPPORT_*`).
        pub odp_rc: Le32,
        /// UC QPs.
        pub odp_uc: Le32,
        /// UD QPs.
        pub odp_ud: Le32,
        /// XRC QPs.
        pub odp_xrc: Le32,
        /// Zero.
        pub reserved2: Le32,
    }

    /// Answer to QUERY_CLOCK: both clocks, read together.
    pub struct ClockAnswer {
        /// The device's clock, in units of `hca_core_clock`.
        pub timestamp: Le64,
        /// Nanoseconds since the beginning of 1970 (UTC) by the host's clock.
        pub wall_clock: Le64,
    }

    /// Answer to QUERY_PORT (IBA 11.2.1.3).
    pub struct PortAttr {
        /// Bytes of the largest message.
        pub max_msg_sz: Le32,
        /// Entries in the GID table.
        pub gid_tbl_len: Le32,
        /// IBA capability mask.
        pub port_cap_flags: Le32,
        /// Packets with a bad P_Key.
        pub bad_pkey_cntr: Le32,
        /// Packets with a bad Q_Key.
        pub qkey_viol_cntr: Le32,
        /// P_Keys: entry 0 is 0xffff.
        pub pkey_tbl_len: Le16,
        /// Zero.
        pub reserved0: Le16,
        /// IBA port state: 1 down, 4 active.
        pub state: u8,
        /// IBA physical state: 3 disabled, 5 link up.
        pub phys_state: u8,
        /// Path MTU code (see `Config::max_mtu`).
        pub max_mtu: u8,
        /// Path MTU code in force.
        pub active_mtu: u8,
        /// IBA link width code: 1 = 1x, 2 = 4x.
        pub active_width: u8,
        /// Zero.
        pub reserved1: [u8; 3],
        /// IBA link speed code: 32 = EDR (25 Gb/s a lane).
        pub active_speed: Le32,
        /// Zero.
        pub reserved2: Le32,
    }

    /// Answer to QUERY_COUNTERS: counts since the device came to be, wrapping.
    pub struct Counters {
        /// Notifications that arrived on doorbell virtqueues.
        pub doorbell_kicks: Le64,
        /// Send WQEs taken.
        pub send_wqes: Le64,
        /// Receive WQEs taken.
        pub recv_wqes: Le64,
        /// CQEs written.
        pub completions: Le64,
        /// Events put into completion virtqueues.
        pub cq_events: Le64,
        /// Interrupts asked for on completion virtqueues.
        pub cq_interrupts: Le64,
        /// Times that a worker went to sleep.
        pub worker_sleeps: Le64,
        /// Bytes of messages sent and of READs answered.
        pub tx_bytes: Le64,
        /// Bytes of messages received.
        pub rx_bytes: Le64,
        /// RNR conditions that this device's responders found.
        pub rnr_naks: Le64,
        /// CQEs with an error other than a flush.
        pub error_completions: Le64,
        /// Malformed commands, rings and WQEs.
        pub guest_errors: Le64,
        /// Requests that came a second time.
        pub duplicate_request: Le64,
        /// Requests that came too early: one before was lost.
        pub out_of_seq_request: Le64,
        /// NAKs for the sequence that this device's requesters got.
        pub rcvd_seq_err: Le64,
        /// RNR NAKs that this device's requesters got.
        pub rcvd_rnr_err: Le64,
        /// WQEs that ended with `WC_RETRY_EXC_ERR`.
        pub retry_exceeded_err: Le64,
        /// WQEs that ended with `WC_RNR_RETRY_EXC_ERR`.
        pub retry_rnr_exceeded_err: Le64,
        /// SENDs that ended well.
        pub rdma_sends: Le64,
        /// Messages that a receive WQE was completed for.
        pub rdma_recvs: Le64,
        /// Datagrams with a bad P_Key.
        pub bad_pkey: Le64,
        /// Datagrams with a bad Q_Key.
        pub qkey_viol: Le64,
        /// Times that a busy QP moved from one worker to another.
        pub qp_moves: Le64,
    }

    /// ADD_GID: the guest's network device has a new address.
    pub struct AddGidRequest {
        /// Entry of the GID table.
        pub index: Le32,
        /// `GID_TYPE_*`.
        pub gid_type: u8,
        /// Zero.
        pub reserved: u8,
        /// VLAN, or 0xffff for none.
        pub vlan: Le16,
        /// The GID, big-endian.
        pub gid: [u8; 16],
        /// MAC of the network device that has the address.
        pub mac: [u8; 6],
        /// Zero.
        pub reserved1: Le16,
    }

    /// DEL_GID, and every other command whose request is one number.
    pub struct NumberRequest {
        /// What to destroy or query.
        pub number: Le32,
        /// Zero.
        pub reserved: Le32,
    }

    /// Answer of every command that creates something and answers with its number only.
    pub struct NumberAnswer {
        /// The object's number.
        pub number: Le32,
        /// Zero.
        pub reserved: Le32,
    }

    /// CREATE_UAR.
    pub struct CreateUarRequest {
        /// The region: zeroed; at most `UAR_MAX_BYTES`.
        pub pages: PageList,
    }

    /// REG_MR: registers guest memory (IBA 11.2.8.2).
    pub struct RegMrRequest {
        /// The PD.
        pub pdn: Le32,
        /// `ACCESS_*`.
        pub access: Le32,
        /// Address by which work requests name the first byte.
        pub iova: Le64,
        /// Bytes: 1 to `max_mr_size`.
        pub length: Le64,
        /// Bytes from the start of the first page to the first byte.
        pub offset: Le64,
        /// The memory.
        pub pages: PageList,
    }

    /// GET_DMA_MR: an MR that covers all guest-physical memory; for the driver's own kernel
    /// consumers only, never for a process.
    pub struct GetDmaMrRequest {
        /// The PD.
        pub pdn: Le32,
        /// `ACCESS_*`.
        pub access: Le32,
    }

    /// ALLOC_MR: an MR without memory, for `WR_REG_MR`. Only for the driver's own kernel consumers.
    pub struct AllocMrRequest {
        /// The PD.
        pub pdn: Le32,
        /// Addresses that the list holds: 1 to `max_fast_reg_page_list_len`.
        pub max_pages: Le32,
        /// The memory of the list: `max_pages` addresses (le64). Shared with the device, which reads
        /// it when it carries out a `WR_REG_MR`.
        pub list: PageList,
    }

    /// REREG_MR: changes an MR of REG_MR.
    pub struct ReregMrRequest {
        /// The MR.
        pub mrn: Le32,
        /// `REREG_*`: which of the members below count.
        pub flags: Le32,
        /// The new PD.
        pub pdn: Le32,
        /// The new rights.
        pub access: Le32,
        /// As in REG_MR.
        pub iova: Le64,
        /// As in REG_MR.
        pub length: Le64,
        /// As in REG_MR.
        pub offset: Le64,
        /// As in REG_MR.
        pub pages: PageList,
    }

    /// ALLOC_MW.
    pub struct AllocMwRequest {
        /// The PD.
        pub pdn: Le32,
        /// `MW_TYPE_*`.
        pub mw_type: Le32,
    }

    /// ALLOC_DM: memory of the device's own.
    pub struct AllocDmRequest {
        /// Bytes: 1 to `max_dm_size`.
        pub length: Le64,
    }

    /// COPY_DM: between device memory and memory of the driver.
    pub struct CopyDmRequest {
        /// The device memory.
        pub dmn: Le32,
        /// 0: out of the device memory; 1: into it.
        pub write: u8,
        /// Zero.
        pub reserved: [u8; 3],
        /// Of the first byte in the device memory.
        pub dm_offset: Le64,
        /// Bytes: 1 to `max_dm_size`.
        pub length: Le64,
        /// The driver's memory, in which the bytes begin with the first page.
        pub pages: PageList,
    }

    /// REG_DM_MR: an MR of device memory, whose first byte has the address 0.
    pub struct RegDmMrRequest {
        /// The PD.
        pub pdn: Le32,
        /// `ACCESS_*`.
        pub access: Le32,
        /// The device memory.
        pub dmn: Le32,
        /// Zero.
        pub reserved: Le32,
        /// Of the first byte in the device memory.
        pub offset: Le64,
        /// Bytes: 0 to the end of the device memory.
        pub length: Le64,
    }

    /// Answer to ALLOC_MW.
    pub struct MwAnswer {
        /// The window's number, for DEALLOC_MW.
        pub mwn: Le32,
        /// Its key; no memory is behind it before the first bind.
        pub rkey: Le32,
    }

    /// Answer to REG_MR, GET_DMA_MR, ALLOC_MR and REREG_MR.
    pub struct MrAnswer {
        /// The MR's number, for DEREG_MR.
        pub mrn: Le32,
        /// Local key.
        pub lkey: Le32,
        /// Remote key; also where no remote access is allowed, for REREG_MR may allow it.
        pub rkey: Le32,
        /// Zero.
        pub reserved: Le32,
    }

    /// CREATE_CQ.
    pub struct CreateCqRequest {
        /// Slots of the ring: a power of two, up to `max_cqe`.
        pub entries: Le32,
        /// The vector whose completion virtqueue gets its events.
        pub vector: Le32,
        /// The buffer: `CqGuestLine`, `CqDeviceLine`, and the ring at `CQ_RING_OFFSET`; zeroed.
        pub pages: PageList,
        /// `CQ_FLAG_*`.
        pub flags: Le32,
        /// Zero.
        pub reserved: Le32,
    }

    /// RESIZE_CQ: gives the CQ another buffer. The answer's number is the free-running count of the
    /// CQEs in the old ring, without the RESIZE CQE.
    pub struct ResizeCqRequest {
        /// The CQ.
        pub cqn: Le32,
        /// Slots of the new ring: a power of two, up to `max_cqe`.
        pub entries: Le32,
        /// The new buffer, as in CREATE_CQ.
        pub pages: PageList,
    }

    /// MODIFY_CQ: when an armed CQ gets its event (moderation).
    pub struct ModifyCqRequest {
        /// The CQ.
        pub cqn: Le32,
        /// After this many CQEs since the last event; 0 and 1: at once.
        pub count: Le16,
        /// Or this many microseconds after the first of them; 0: at once.
        pub period: Le16,
    }

    /// CREATE_QP.
    pub struct CreateQpRequest {
        /// The PD.
        pub pdn: Le32,
        /// CQ of the send queue.
        pub send_cqn: Le32,
        /// CQ of the receive queue.
        pub recv_cqn: Le32,
        /// SRQ, or `NO_SRQ`.
        pub srqn: Le32,
        /// UAR in which pending work of this QP is shown.
        pub uarn: Le32,
        /// Bit in that UAR: no other QP may use it.
        pub slot: Le32,
        /// `QP_TYPE_*`.
        pub qp_type: u8,
        /// `QP_FLAG_*`.
        pub flags: u8,
        /// Stride of the send queue: `2^n` bytes, `WQE_STRIDE_SHIFT_MIN` to `WQE_STRIDE_SHIFT_MAX`.
        pub sq_stride_shift: u8,
        /// Stride of the receive queue.
        pub rq_stride_shift: u8,
        /// Slots of the send queue: a power of two, up to `max_qp_wr`; 0 for none.
        pub sq_entries: Le32,
        /// Slots of the receive queue; 0 for none.
        pub rq_entries: Le32,
        /// Bytes from the start of the buffer to the send queue: a multiple of 64.
        pub sq_offset: Le32,
        /// Bytes from the start of the buffer to the receive queue.
        pub rq_offset: Le32,
        /// Most SGEs of a send WQE; they fit in the stride.
        pub max_send_sge: Le32,
        /// Most SGEs of a receive WQE; they fit in the stride.
        pub max_recv_sge: Le32,
        /// Most bytes of inline data; they fit in the stride.
        pub max_inline: Le32,
        /// The buffer: `QpDeviceLine` first; zeroed.
        pub pages: PageList,
        /// The XRC domain of an XRC target; 0 for other types.
        pub xrcdn: Le32,
        /// Zero.
        pub reserved: Le32,
    }

    /// The path of a QP or of an address handle (IBA address vector).
    pub struct AddressVector {
        /// GID of the peer, big-endian.
        pub dgid: [u8; 16],
        /// Entry of the own GID table.
        pub sgid_index: Le32,
        /// IPv6 flow label, 20 bits.
        pub flow_label: Le32,
        /// MAC of the next hop.
        pub dmac: [u8; 6],
        /// VLAN, or 0xffff for none.
        pub vlan: Le16,
        /// IPv6 hop limit.
        pub hop_limit: u8,
        /// IPv6 traffic class.
        pub traffic_class: u8,
        /// Service level.
        pub sl: u8,
        /// IBA static rate code; 0 is the port's.
        pub static_rate: u8,
        /// The port: 1.
        pub port: u8,
        /// Zero.
        pub reserved: [u8; 3],
    }

    /// SET_AH_TABLE: where the driver keeps its address handles. Once after INIT.
    pub struct SetAhTableRequest {
        /// Entries: 1 to `max_ah`.
        pub entries: Le32,
        /// Zero.
        pub reserved: Le32,
        /// The table, an `AhEntry` each; zeroed.
        pub pages: PageList,
    }

    /// One address handle. The driver fills it in, `flags` last; user space can't write it.
    pub struct AhEntry {
        /// `AH_VALID`, or 0.
        pub flags: Le32,
        /// The PD; a QP of another one may not use the handle.
        pub pdn: Le32,
        /// The path.
        pub av: AddressVector,
        /// Zero.
        pub reserved: [u8; 16],
    }

    /// CREATE_SRQ.
    pub struct CreateSrqRequest {
        /// The PD.
        pub pdn: Le32,
        /// UAR in which pending work is shown while the device asks for it.
        pub uarn: Le32,
        /// Bit in that UAR: nothing else may use it.
        pub slot: Le32,
        /// Slots of the ring: a power of two, up to `max_srq_wr`.
        pub entries: Le32,
        /// Bytes from the start of the buffer to the ring: a multiple of 64, at least 64.
        pub offset: Le32,
        /// Most SGEs of a WQE; they fit in the stride.
        pub max_sge: Le32,
        /// Event when fewer WQEs than this are left; 0 for none.
        pub limit: Le32,
        /// A WQE takes `2^n` bytes.
        pub stride_shift: u8,
        /// `QP_FLAG_KERNEL`, or 0.
        pub flags: u8,
        /// Zero.
        pub reserved: Le16,
        /// The buffer: `SrqDeviceLine` first; zeroed.
        pub pages: PageList,
        /// The XRC domain of an XRC SRQ; 0 for another.
        pub xrcdn: Le32,
        /// XRC: the CQ of the messages that come by this SRQ.
        pub cqn: Le32,
    }

    /// MODIFY_SRQ: arms the limit.
    pub struct ModifySrqRequest {
        /// The SRQ.
        pub srqn: Le32,
        /// Event when fewer WQEs than this are left; 0 for none.
        pub limit: Le32,
    }

    /// RESIZE_SRQ: another ring, which holds the WQEs that are posted.
    pub struct ResizeSrqRequest {
        /// The SRQ.
        pub srqn: Le32,
        /// Slots of the new ring: a power of two, up to `max_srq_wr`.
        pub entries: Le32,
        /// Bytes from the start of the buffer to the ring: a multiple of 64, at least 64.
        pub offset: Le32,
        /// A WQE takes `2^n` bytes.
        pub stride_shift: u8,
        /// Zero.
        pub reserved: [u8; 3],
        /// The new buffer: `SrqDeviceLine` first, zeroed.
        pub pages: PageList,
    }

    /// Answer to QUERY_SRQ.
    pub struct SrqAttr {
        /// Slots of the ring.
        pub entries: Le32,
        /// Most SGEs of a WQE.
        pub max_sge: Le32,
        /// The limit that is armed; 0 for none.
        pub limit: Le32,
        /// Zero.
        pub reserved: Le32,
    }

    /// The attributes of a QP (IBA 11.2.4.2). Which ones count says a mask of `QP_ATTR_*`.
    pub struct QpAttr {
        /// `QP_STATE_*`.
        pub qp_state: u8,
        /// The state that the driver believes the QP to be in.
        pub cur_qp_state: u8,
        /// Path MTU code.
        pub path_mtu: u8,
        /// Port: 1.
        pub port: u8,
        /// Q_Key of a UD QP.
        pub qkey: Le32,
        /// PSN of the first packet received, 24 bits.
        pub rq_psn: Le32,
        /// PSN of the first packet sent, 24 bits.
        pub sq_psn: Le32,
        /// The peer's QPN.
        pub dest_qpn: Le32,
        /// What the peer may do (`ACCESS_*`).
        pub access: Le32,
        /// The path to the peer.
        pub av: AddressVector,
        /// Entry of the P_Key table.
        pub pkey_index: Le16,
        /// READs and atomics outstanding as requester.
        pub max_rd_atomic: u8,
        /// As responder.
        pub max_dest_rd_atomic: u8,
        /// IBA RNR timer code, 5 bits: how long a peer waits after an RNR NAK from this QP.
        pub min_rnr_timer: u8,
        /// 4.096 us * 2^n until a retry; 0 for never.
        pub timeout: u8,
        /// Retries after a time-out or a NAK, 0 to 7.
        pub retry_cnt: u8,
        /// Retries after an RNR NAK, 0 to 6; 7 for no end.
        pub rnr_retry: u8,
        /// QUERY_QP: 1 while an SQD drain goes on. MODIFY_QP to SQD: 1 for an event when drained.
        pub sq_draining: u8,
        /// Zero.
        pub reserved: [u8; 7],
    }

    /// ATTACH_MCAST and DETACH_MCAST.
    pub struct McastRequest {
        /// The QP, of type UD.
        pub qpn: Le32,
        /// Zero.
        pub reserved: Le32,
        /// The group, big-endian: ff00::/8, or an IPv4 multicast address as a mapped one.
        pub gid: [u8; 16],
    }

    /// MODIFY_QP.
    pub struct ModifyQpRequest {
        /// The QP.
        pub qpn: Le32,
        /// Which of the attributes count (`QP_ATTR_*`).
        pub attr_mask: Le32,
        /// The attributes.
        pub attr: QpAttr,
    }
}
