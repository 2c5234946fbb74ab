// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The binary interface of libibverbs.so.1, as far as the driver uses it: layouts, codes and the
//! signatures of its functions. Names are the library's. `tests/verbs_abi.rs` compares all of it with
//! the real header where that is installed. Of the structures that the library makes, only the members
//! up to the last one used are here: they are never moved or copied.

#![allow(non_camel_case_types, missing_docs, reason = "the library's own names and meanings")]

use std::ffi::{c_char, c_int, c_uint, c_void};

macro_rules! opaque {
    ($($name:ident)*) => { $(
        #[repr(C)]
        pub struct $name {
            _private: [u8; 0],
        }
    )* };
}

opaque!(ibv_device ibv_srq ibv_ah);

#[repr(C)]
pub struct ibv_context_ops {
    pub compat_query: [*mut c_void; 7],
    pub alloc_mw: Option<unsafe extern "C" fn(*mut ibv_pd, c_int) -> *mut ibv_mw>,
    pub bind_mw: Option<unsafe extern "C" fn(*mut ibv_qp, *mut ibv_mw, *mut ibv_mw_bind) -> c_int>,
    pub dealloc_mw: Option<unsafe extern "C" fn(*mut ibv_mw) -> c_int>,
    pub compat_create_cq: *mut c_void,
    pub poll_cq: Option<unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int>,
    pub req_notify_cq: Option<unsafe extern "C" fn(*mut ibv_cq, c_int) -> c_int>,
    pub compat_cq_srq: [*mut c_void; 7],
    pub post_srq_recv: Option<
        unsafe extern "C" fn(*mut ibv_srq, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int,
    >,
    pub compat_qp: [*mut c_void; 4],
    pub post_send:
        Option<unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int>,
    pub post_recv:
        Option<unsafe extern "C" fn(*mut ibv_qp, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int>,
    pub compat_ah: [*mut c_void; 5],
}

#[repr(C)]
pub struct ibv_context {
    pub device: *mut ibv_device,
    pub ops: ibv_context_ops,
    pub cmd_fd: c_int,
    pub async_fd: c_int,
    pub num_comp_vectors: c_int,
}

#[repr(C)]
pub struct ibv_pd {
    pub context: *mut ibv_context,
    pub handle: u32,
}

#[repr(C)]
pub struct ibv_mr {
    pub context: *mut ibv_context,
    pub pd: *mut ibv_pd,
    pub addr: *mut c_void,
    pub length: usize,
    pub handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

#[repr(C)]
pub struct ibv_mw {
    pub context: *mut ibv_context,
    pub pd: *mut ibv_pd,
    pub rkey: u32,
    pub handle: u32,
    pub mw_type: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ibv_mw_bind_info {
    pub mr: *mut ibv_mr,
    pub addr: u64,
    pub length: u64,
    pub mw_access_flags: c_uint,
}

#[repr(C)]
pub struct ibv_mw_bind {
    pub wr_id: u64,
    pub send_flags: c_uint,
    pub bind_info: ibv_mw_bind_info,
}

#[repr(C)]
pub struct ibv_qp {
    pub context: *mut ibv_context,
    pub qp_context: *mut c_void,
    pub pd: *mut ibv_pd,
    pub send_cq: *mut ibv_cq,
    pub recv_cq: *mut ibv_cq,
    pub srq: *mut ibv_srq,
    pub handle: u32,
    pub qp_num: u32,
}

#[repr(C)]
pub struct ibv_cq {
    pub context: *mut ibv_context,
    pub channel: *mut ibv_comp_channel,
    pub cq_context: *mut c_void,
    pub handle: u32,
    pub cqe: c_int,
}

#[repr(C)]
pub struct ibv_comp_channel {
    pub context: *mut ibv_context,
    pub fd: c_int,
}

#[repr(C)]
pub struct ibv_device_attr {
    pub fw_ver: [c_char; 64],
    pub node_guid: [u8; 8],
    pub sys_image_guid: [u8; 8],
    pub max_mr_size: u64,
    pub page_size_cap: u64,
    pub vendor_id: u32,
    pub vendor_part_id: u32,
    pub hw_ver: u32,
    pub max_qp: c_int,
    pub max_qp_wr: c_int,
    pub device_cap_flags: c_uint,
    pub max_sge: c_int,
    pub max_sge_rd: c_int,
    pub max_cq: c_int,
    pub max_cqe: c_int,
    pub max_mr: c_int,
    pub max_pd: c_int,
    pub max_qp_rd_atom: c_int,
    pub max_ee_rd_atom: c_int,
    pub max_res_rd_atom: c_int,
    pub max_qp_init_rd_atom: c_int,
    pub max_ee_init_rd_atom: c_int,
    pub atomic_cap: c_uint,
    pub max_ee: c_int,
    pub max_rdd: c_int,
    pub max_mw: c_int,
    pub max_raw_ipv6_qp: c_int,
    pub max_raw_ethy_qp: c_int,
    pub max_mcast_grp: c_int,
    pub max_mcast_qp_attach: c_int,
    pub max_total_mcast_qp_attach: c_int,
    pub max_ah: c_int,
    pub max_fmr: c_int,
    pub max_map_per_fmr: c_int,
    pub max_srq: c_int,
    pub max_srq_wr: c_int,
    pub max_srq_sge: c_int,
    pub max_pkeys: u16,
    pub local_ca_ack_delay: u8,
    pub phys_port_cnt: u8,
}

/// Newer headers have one member more; the exported function fills an older, shorter form.
#[repr(C)]
pub struct ibv_port_attr {
    pub state: c_uint,
    pub max_mtu: c_uint,
    pub active_mtu: c_uint,
    pub gid_tbl_len: c_int,
    pub port_cap_flags: u32,
    pub max_msg_sz: u32,
    pub bad_pkey_cntr: u32,
    pub qkey_viol_cntr: u32,
    pub pkey_tbl_len: u16,
    pub lid: u16,
    pub sm_lid: u16,
    pub lmc: u8,
    pub max_vl_num: u8,
    pub sm_sl: u8,
    pub subnet_timeout: u8,
    pub init_type_reply: u8,
    pub active_width: u8,
    pub active_speed: u8,
    pub phys_state: u8,
    pub link_layer: u8,
    pub flags: u8,
    pub port_cap_flags2: u16,
    pub active_speed_ex: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct ibv_gid_entry {
    pub gid: [u64; 2],
    pub gid_index: u32,
    pub port_num: u32,
    pub gid_type: u32,
    pub ndev_ifindex: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct ibv_sge {
    pub addr: u64,
    pub length: u32,
    pub lkey: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct wr_rdma {
    pub remote_addr: u64,
    pub rkey: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct wr_atomic {
    pub remote_addr: u64,
    pub compare_add: u64,
    pub swap: u64,
    pub rkey: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct wr_ud {
    pub ah: *mut ibv_ah,
    pub remote_qpn: u32,
    pub remote_qkey: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub union wr_target {
    pub rdma: wr_rdma,
    pub atomic: wr_atomic,
    pub ud: wr_ud,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct wr_bind_mw {
    pub mw: *mut ibv_mw,
    pub rkey: u32,
    pub bind_info: ibv_mw_bind_info,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ibv_send_wr {
    pub wr_id: u64,
    pub next: *mut ibv_send_wr,
    pub sg_list: *mut ibv_sge,
    pub num_sge: c_int,
    pub opcode: c_uint,
    pub send_flags: c_uint,
    /// Immediate data as it stands in the packet, or the key to invalidate.
    pub imm_data: u32,
    pub wr: wr_target,
    pub xrc_remote_srqn: u32,
    pub bind_mw: wr_bind_mw,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ibv_recv_wr {
    pub wr_id: u64,
    pub next: *mut ibv_recv_wr,
    pub sg_list: *mut ibv_sge,
    pub num_sge: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct ibv_wc {
    pub wr_id: u64,
    pub status: c_uint,
    pub opcode: c_uint,
    pub vendor_err: u32,
    pub byte_len: u32,
    pub imm_data: u32,
    pub qp_num: u32,
    pub src_qp: u32,
    pub wc_flags: c_uint,
    pub pkey_index: u16,
    pub slid: u16,
    pub sl: u8,
    pub dlid_path_bits: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct ibv_global_route {
    pub dgid: [u64; 2],
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct ibv_ah_attr {
    pub grh: ibv_global_route,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct ibv_qp_cap {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

#[repr(C)]
pub struct ibv_qp_init_attr {
    pub qp_context: *mut c_void,
    pub send_cq: *mut ibv_cq,
    pub recv_cq: *mut ibv_cq,
    pub srq: *mut ibv_srq,
    pub cap: ibv_qp_cap,
    pub qp_type: c_uint,
    pub sq_sig_all: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct ibv_qp_attr {
    pub qp_state: c_uint,
    pub cur_qp_state: c_uint,
    pub path_mtu: c_uint,
    pub path_mig_state: c_uint,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: c_uint,
    pub cap: ibv_qp_cap,
    pub ah_attr: ibv_ah_attr,
    pub alt_ah_attr: ibv_ah_attr,
    pub pkey_index: u16,
    pub alt_pkey_index: u16,
    pub en_sqd_async_notify: u8,
    pub sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub alt_port_num: u8,
    pub alt_timeout: u8,
    pub rate_limit: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct ibv_srq_attr {
    pub max_wr: u32,
    pub max_sge: u32,
    pub srq_limit: u32,
}

#[repr(C)]
pub struct ibv_srq_init_attr {
    pub srq_context: *mut c_void,
    pub attr: ibv_srq_attr,
}

/// The element is a pointer to a CQ, QP or SRQ, or a port number in its low half.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ibv_async_event {
    pub element: u64,
    pub event_type: c_uint,
}

// enum ibv_send_flags
pub const SEND_FENCE: c_uint = 1;
pub const SEND_SIGNALED: c_uint = 2;
pub const SEND_SOLICITED: c_uint = 4;
pub const SEND_INLINE: c_uint = 8;

// enum ibv_wc_flags
pub const WC_GRH: c_uint = 1;
pub const WC_WITH_IMM: c_uint = 2;
pub const WC_WITH_INV: c_uint = 8;

// enum ibv_device_cap_flags
pub const DEVICE_MEM_WINDOW: c_uint = 1 << 17;
pub const DEVICE_MEM_WINDOW_TYPE_2B: c_uint = 1 << 24;

// enum ibv_gid_type
pub const GID_TYPE_ROCE_V2: u32 = 2;

// enum ibv_event_type
pub const EVENT_CQ_ERR: c_uint = 0;
pub const EVENT_QP_FATAL: c_uint = 1;
pub const EVENT_QP_REQ_ERR: c_uint = 2;
pub const EVENT_QP_ACCESS_ERR: c_uint = 3;
pub const EVENT_COMM_EST: c_uint = 4;
pub const EVENT_SQ_DRAINED: c_uint = 5;
pub const EVENT_DEVICE_FATAL: c_uint = 8;
pub const EVENT_PORT_ACTIVE: c_uint = 9;
pub const EVENT_PORT_ERR: c_uint = 10;
pub const EVENT_SRQ_ERR: c_uint = 14;
pub const EVENT_SRQ_LIMIT_REACHED: c_uint = 15;
pub const EVENT_QP_LAST_WQE_REACHED: c_uint = 16;
pub const EVENT_GID_CHANGE: c_uint = 18;

macro_rules! functions {
    ($( $name:ident: ($($arg:ty),*) -> $ret:ty, $version:literal; )*) => {
        /// The library's functions, by their names.
        pub struct Functions {
            $( pub $name: unsafe extern "C" fn($($arg),*) -> $ret, )*
            /// Since rdma-core 31.
            pub query_gid_table:
                Option<unsafe extern "C" fn(*mut ibv_context, *mut ibv_gid_entry, usize, u32, usize) -> isize>,
        }

        impl Functions {
            /// Looks all of them up.
            ///
            /// # Errors
            /// The name of the first that is missing.
            ///
            /// # Safety
            /// What `symbol` answers for a name and a version is that function of libibverbs.so.1, for
            /// as long as the result is used.
            pub unsafe fn load(
                symbol: impl Fn(&str, &str) -> *mut c_void,
            ) -> Result<Self, &'static str> {
                $(
                    let $name = symbol(concat!("ibv_", stringify!($name)), $version);
                    if $name.is_null() {
                        return Err(concat!("ibv_", stringify!($name)));
                    }
                )*
                let table = symbol("_ibv_query_gid_table", "IBVERBS_1.11");
                Ok(Self {
                    // SAFETY: by the caller's promise the address is that function's, of this type.
                    $( $name: unsafe {
                        std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) -> $ret>($name)
                    }, )*
                    // SAFETY: as above; a null address becomes `None`.
                    query_gid_table: unsafe { std::mem::transmute::<*mut c_void, Option<_>>(table) },
                })
            }
        }
    };
}

functions! {
    get_device_list: (*mut c_int) -> *mut *mut ibv_device, "IBVERBS_1.1";
    free_device_list: (*mut *mut ibv_device) -> (), "IBVERBS_1.1";
    get_device_name: (*mut ibv_device) -> *const c_char, "IBVERBS_1.1";
    open_device: (*mut ibv_device) -> *mut ibv_context, "IBVERBS_1.1";
    close_device: (*mut ibv_context) -> c_int, "IBVERBS_1.1";
    query_device: (*mut ibv_context, *mut ibv_device_attr) -> c_int, "IBVERBS_1.1";
    query_port: (*mut ibv_context, u8, *mut ibv_port_attr) -> c_int, "IBVERBS_1.1";
    query_gid: (*mut ibv_context, u8, c_int, *mut [u64; 2]) -> c_int, "IBVERBS_1.1";
    alloc_pd: (*mut ibv_context) -> *mut ibv_pd, "IBVERBS_1.1";
    dealloc_pd: (*mut ibv_pd) -> c_int, "IBVERBS_1.1";
    reg_mr_iova: (*mut ibv_pd, *mut c_void, usize, u64, c_int) -> *mut ibv_mr, "IBVERBS_1.7";
    dereg_mr: (*mut ibv_mr) -> c_int, "IBVERBS_1.1";
    create_comp_channel: (*mut ibv_context) -> *mut ibv_comp_channel, "IBVERBS_1.0";
    destroy_comp_channel: (*mut ibv_comp_channel) -> c_int, "IBVERBS_1.0";
    create_cq: (*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq, "IBVERBS_1.1";
    resize_cq: (*mut ibv_cq, c_int) -> c_int, "IBVERBS_1.1";
    destroy_cq: (*mut ibv_cq) -> c_int, "IBVERBS_1.1";
    get_cq_event: (*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int, "IBVERBS_1.1";
    ack_cq_events: (*mut ibv_cq, c_uint) -> (), "IBVERBS_1.1";
    create_srq: (*mut ibv_pd, *mut ibv_srq_init_attr) -> *mut ibv_srq, "IBVERBS_1.1";
    modify_srq: (*mut ibv_srq, *mut ibv_srq_attr, c_int) -> c_int, "IBVERBS_1.1";
    query_srq: (*mut ibv_srq, *mut ibv_srq_attr) -> c_int, "IBVERBS_1.1";
    destroy_srq: (*mut ibv_srq) -> c_int, "IBVERBS_1.1";
    create_qp: (*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp, "IBVERBS_1.1";
    modify_qp: (*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int, "IBVERBS_1.1";
    query_qp: (*mut ibv_qp, *mut ibv_qp_attr, c_int, *mut ibv_qp_init_attr) -> c_int, "IBVERBS_1.1";
    destroy_qp: (*mut ibv_qp) -> c_int, "IBVERBS_1.1";
    create_ah: (*mut ibv_pd, *mut ibv_ah_attr) -> *mut ibv_ah, "IBVERBS_1.1";
    destroy_ah: (*mut ibv_ah) -> c_int, "IBVERBS_1.1";
    attach_mcast: (*mut ibv_qp, *const [u64; 2], u16) -> c_int, "IBVERBS_1.1";
    detach_mcast: (*mut ibv_qp, *const [u64; 2], u16) -> c_int, "IBVERBS_1.1";
    get_async_event: (*mut ibv_context, *mut ibv_async_event) -> c_int, "IBVERBS_1.1";
    ack_async_event: (*mut ibv_async_event) -> (), "IBVERBS_1.1";
}
