// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The part of libibverbs' C interface that the verifier calls: structure layouts of
//! `infiniband/verbs.h` (stable since libibverbs 1.1) and the library's functions, found at run
//! time so that nothing of rdma-core is needed to build. What the calls mean is in `verbs`.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::NonNull;

use anyhow::{Result, bail};

/// `struct ibv_context`: only the operations that verbs.h calls through inline functions.
#[repr(C)]
pub struct Context {
    device: *mut c_void,
    // struct ibv_context_ops
    before_poll_cq: [*mut c_void; 11],
    pub poll_cq: unsafe extern "C" fn(*mut Cq, c_int, *mut WorkCompletion) -> c_int,
    pub req_notify_cq: unsafe extern "C" fn(*mut Cq, c_int) -> c_int,
    between: [*mut c_void; 12],
    pub post_send: unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int,
    pub post_recv: unsafe extern "C" fn(*mut Qp, *mut RecvWr, *mut *mut RecvWr) -> c_int,
}

/// `struct ibv_pd`, opaque.
#[repr(C)]
pub struct Pd {
    opaque: [u8; 0],
}

/// `struct ibv_comp_channel`.
#[repr(C)]
pub struct CompChannel {
    context: *mut Context,
    pub descriptor: c_int,
}

/// `struct ibv_cq`, its beginning.
#[repr(C)]
pub struct Cq {
    pub context: *mut Context,
}

/// `struct ibv_mr`.
#[repr(C)]
pub struct Mr {
    context: *mut Context,
    pd: *mut Pd,
    address: *mut c_void,
    length: usize,
    handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

/// `struct ibv_qp`, its beginning.
#[repr(C)]
pub struct Qp {
    pub context: *mut Context,
    qp_context: *mut c_void,
    pd: *mut Pd,
    send_cq: *mut Cq,
    recv_cq: *mut Cq,
    srq: *mut c_void,
    handle: u32,
    pub number: u32,
}

/// `struct ibv_qp_cap`.
#[repr(C)]
#[derive(Default, Clone, Copy)]
pub struct QpCap {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

/// `struct ibv_qp_init_attr`.
#[repr(C)]
pub struct QpInitAttr {
    pub context: *mut c_void,
    pub send_cq: *mut Cq,
    pub recv_cq: *mut Cq,
    pub srq: *mut c_void,
    pub cap: QpCap,
    pub kind: c_uint,
    pub signal_all: c_int,
}

/// `struct ibv_ah_attr` with its `struct ibv_global_route`.
#[repr(C, align(8))]
#[derive(Default, Clone, Copy)]
pub struct AhAttr {
    pub dgid: [u8; 16],
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
    pub padding: u8,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

/// `struct ibv_qp_attr`.
#[repr(C)]
#[derive(Default, Clone, Copy)]
pub struct QpAttr {
    pub state: c_uint,
    pub current_state: c_uint,
    pub path_mtu: c_uint,
    pub path_mig_state: c_uint,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub access_flags: c_uint,
    pub cap: QpCap,
    pub ah: AhAttr,
    pub alt_ah: AhAttr,
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

/// `struct ibv_sge`.
#[repr(C)]
#[derive(Default, Clone, Copy)]
pub struct Sge {
    pub address: u64,
    pub length: u32,
    pub lkey: u32,
}

/// `struct ibv_send_wr`; of the unions only the RDMA member.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SendWr {
    pub wr_id: u64,
    pub next: *mut SendWr,
    pub sg_list: *mut Sge,
    pub num_sge: c_int,
    pub opcode: c_uint,
    pub flags: c_uint,
    /// In network byte order.
    pub immediate: u32,
    pub remote_address: u64,
    pub rkey: u32,
    rest_of_unions: [u64; 9],
}

impl SendWr {
    /// A work request of which the caller fills what its opcode needs.
    pub fn new(wr_id: u64) -> Self {
        Self {
            wr_id,
            next: std::ptr::null_mut(),
            sg_list: std::ptr::null_mut(),
            num_sge: 0,
            opcode: 0,
            flags: 0,
            immediate: 0,
            remote_address: 0,
            rkey: 0,
            rest_of_unions: [0; 9],
        }
    }
}

/// `struct ibv_recv_wr`.
#[repr(C)]
pub struct RecvWr {
    pub wr_id: u64,
    pub next: *mut RecvWr,
    pub sg_list: *mut Sge,
    pub num_sge: c_int,
}

/// `struct ibv_wc`.
#[repr(C)]
#[derive(Default, Clone, Copy, Debug)]
pub struct WorkCompletion {
    pub wr_id: u64,
    pub status: c_uint,
    pub opcode: c_uint,
    pub vendor_error: u32,
    pub byte_length: u32,
    /// In network byte order.
    pub immediate: u32,
    pub qp_number: u32,
    pub source_qp: u32,
    pub flags: c_uint,
    pub pkey_index: u16,
    pub slid: u16,
    pub sl: u8,
    pub dlid_path_bits: u8,
}

// As the C compiler lays them out on x86_64 (pahole of libibverbs 56).
const _: () = {
    assert!(size_of::<AhAttr>() == 32);
    assert!(size_of::<QpAttr>() == 144);
    assert!(size_of::<SendWr>() == 128);
    assert!(size_of::<RecvWr>() == 32);
    assert!(size_of::<WorkCompletion>() == 48);
    assert!(size_of::<QpInitAttr>() == 64);
    assert!(std::mem::offset_of!(Context, poll_cq) == 8 + 11 * 8);
    assert!(std::mem::offset_of!(Context, post_send) == 8 + 25 * 8);
    assert!(std::mem::offset_of!(Qp, number) == 52);
};

macro_rules! library {
    ($($name:ident: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// libibverbs' functions.
        pub struct Library { $(pub $name: unsafe extern "C" fn($($argument),*) -> $result,)* }

        impl Library {
            /// Loads libibverbs, which stays loaded.
            ///
            /// # Errors
            /// When the library, or one of the functions in it, isn't there.
            pub fn load() -> Result<Self> {
                let handle = open(c"libibverbs.so.1")?;
                Ok(Self { $($name: {
                    let name = concat!(stringify!($name), "\0");
                    let found = symbol(handle, name)?;
                    // SAFETY: verbs.h declares the function of this name with this signature.
                    unsafe {
                        std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> $result>(
                            found.as_ptr(),
                        )
                    }
                },)* })
            }
        }
    };
}

library! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut c_void;
    ibv_free_device_list: fn(*mut *mut c_void) -> ();
    ibv_get_device_name: fn(*mut c_void) -> *const c_char;
    ibv_open_device: fn(*mut c_void) -> *mut Context;
    ibv_close_device: fn(*mut Context) -> c_int;
    ibv_query_port: fn(*mut Context, u8, *mut [u32; 16]) -> c_int;
    ibv_alloc_pd: fn(*mut Context) -> *mut Pd;
    ibv_dealloc_pd: fn(*mut Pd) -> c_int;
    ibv_reg_mr: fn(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
    ibv_dereg_mr: fn(*mut Mr) -> c_int;
    ibv_create_comp_channel: fn(*mut Context) -> *mut CompChannel;
    ibv_destroy_comp_channel: fn(*mut CompChannel) -> c_int;
    ibv_create_cq: fn(*mut Context, c_int, *mut c_void, *mut CompChannel, c_int) -> *mut Cq;
    ibv_destroy_cq: fn(*mut Cq) -> c_int;
    ibv_get_cq_event: fn(*mut CompChannel, *mut *mut Cq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut Cq, c_uint) -> ();
    ibv_create_qp: fn(*mut Pd, *mut QpInitAttr) -> *mut Qp;
    ibv_modify_qp: fn(*mut Qp, *mut QpAttr, c_int) -> c_int;
    ibv_destroy_qp: fn(*mut Qp) -> c_int;
}

fn open(name: &CStr) -> Result<NonNull<c_void>> {
    // SAFETY: a C string; libibverbs' initialisers may run at any time.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    match NonNull::new(handle) {
        Some(handle) => Ok(handle),
        None => bail!("there is no libibverbs here (Debian: libibverbs1, ibverbs-providers)"),
    }
}

/// `name` ends with a NUL.
fn symbol(library: NonNull<c_void>, name: &str) -> Result<NonNull<c_void>> {
    let text = CStr::from_bytes_with_nul(name.as_bytes())?;
    // SAFETY: a handle from dlopen that is never closed, and a C string.
    let found = unsafe { libc::dlsym(library.as_ptr(), text.as_ptr()) };
    match NonNull::new(found) {
        Some(found) => Ok(found),
        None => bail!("libibverbs has no {}", name.trim_end_matches('\0')),
    }
}
