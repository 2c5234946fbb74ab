// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One RC queue pair with its CQ, memory region and completion channel, over any verbs device.
//! What is done with it is in `roles`.

use std::ffi::{CStr, c_int, c_uint};
use std::fs;
use std::io;
use std::ptr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::ffi::{
    self, AhAttr, CompChannel, Cq, Library, Mr, Pd, Qp, QpAttr, QpCap, QpInitAttr, RecvWr, SendWr,
    Sge, WorkCompletion,
};

/// Work requests a queue has room for.
pub const DEPTH: u32 = 64;
/// SGEs of a work request.
pub const MAX_SGE: u32 = 4;
/// How long a completion may take before something must be wrong.
const PATIENCE: Duration = Duration::from_secs(30);

const PORT: u8 = 1;
const ACCESS_LOCAL_REMOTE_WRITE_READ: c_int = 1 | 2 | 4;
const QPT_RC: c_uint = 2;

/// Opcodes of `enum ibv_wr_opcode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Opcode {
    Write = 0,
    WriteWithImm = 1,
    Send = 2,
    SendWithImm = 3,
    Read = 4,
}

/// Of `enum ibv_send_flags`.
pub const SIGNALED: c_uint = 2;
/// Of `enum ibv_send_flags`.
pub const INLINE: c_uint = 8;

/// Of `enum ibv_wc_status`.
pub const STATUS_SUCCESS: c_uint = 0;
/// Of `enum ibv_wc_status`.
pub const STATUS_REMOTE_ACCESS_ERROR: c_uint = 10;
/// IBV_WC_RETRY_EXC_ERR.
pub const STATUS_RETRIES_EXCEEDED: c_uint = 12;
/// Of `enum ibv_wc_flags`.
pub const WITH_IMM: c_uint = 2;

/// What a requester does when no answer comes.
#[derive(Debug, Clone, Copy)]
pub struct Retries {
    /// It waits for 4.096 us * 2^timeout.
    pub timeout: u8,
    /// And sends again so often.
    pub count: u8,
}

/// What a peer needs to know of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub qp_number: u32,
    pub psn: u32,
    pub gid: [u8; 16],
    pub path_mtu: u32,
    pub memory: u64,
    pub rkey: u32,
}

/// The endpoint. `memory` is mapped and registered from an odd address on.
pub struct Endpoint {
    library: Library,
    context: *mut ffi::Context,
    pd: *mut Pd,
    channel: *mut CompChannel,
    cq: *mut Cq,
    qp: *mut Qp,
    mr: *mut Mr,
    mapping: *mut u8,
    mapping_length: usize,
    memory_length: usize,
    events: bool,
    gid_index: u8,
    /// Bytes that can be sent inline.
    pub max_inline: u32,
    /// This side's address.
    pub address: Address,
}

/// How far into the mapping the registered memory begins: not on a page, not on a word.
const SKEW: usize = 4096 + 13;

impl Endpoint {
    /// Opens `device` and makes an endpoint with `memory_length` bytes of memory, in INIT.
    ///
    /// # Errors
    /// When a call of libibverbs fails; the message names it.
    pub fn open(
        device: &str,
        gid_index: Option<u8>,
        memory_length: usize,
        events: bool,
        psn: u32,
    ) -> Result<Self> {
        let library = Library::load()?;
        let context = open_device(&library, device)?;
        let (gid_index, gid) = find_gid(device, gid_index)?;
        let mut port = [0_u32; 16];
        // SAFETY: an open context, and room for more than the structure of any version.
        let failed = unsafe { (library.ibv_query_port)(context, PORT, &mut port) };
        check("ibv_query_port", failed)?;
        let path_mtu = port[2];
        // SAFETY: objects are made from those made before, each checked; structures are live.
        unsafe {
            let pd = not_null("ibv_alloc_pd", (library.ibv_alloc_pd)(context))?;
            let channel = if events {
                not_null("ibv_create_comp_channel", (library.ibv_create_comp_channel)(context))?
            } else {
                ptr::null_mut()
            };
            let cq = not_null(
                "ibv_create_cq",
                (library.ibv_create_cq)(context, 4 * DEPTH as c_int, ptr::null_mut(), channel, 0),
            )?;
            let mut qp = ptr::null_mut();
            let mut max_inline = 0;
            for inline in [64, 0] {
                let mut attributes = QpInitAttr {
                    context: ptr::null_mut(),
                    send_cq: cq,
                    recv_cq: cq,
                    srq: ptr::null_mut(),
                    cap: QpCap {
                        max_send_wr: DEPTH,
                        max_recv_wr: DEPTH,
                        max_send_sge: MAX_SGE,
                        max_recv_sge: MAX_SGE,
                        max_inline_data: inline,
                    },
                    kind: QPT_RC,
                    signal_all: 0,
                };
                qp = (library.ibv_create_qp)(pd, &mut attributes);
                if !qp.is_null() {
                    max_inline = inline.min(attributes.cap.max_inline_data);
                    break;
                }
            }
            let qp = not_null("ibv_create_qp", qp)?;
            let mapping_length = (SKEW + memory_length).next_multiple_of(4096);
            let mapping = libc::mmap(
                ptr::null_mut(),
                mapping_length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if mapping == libc::MAP_FAILED {
                bail!("mmap: {}", io::Error::last_os_error());
            }
            let memory = mapping.cast::<u8>().add(SKEW);
            let mr = not_null(
                "ibv_reg_mr",
                (library.ibv_reg_mr)(
                    pd,
                    memory.cast(),
                    memory_length,
                    ACCESS_LOCAL_REMOTE_WRITE_READ,
                ),
            )?;
            let address = Address {
                qp_number: (*qp).number,
                psn: psn & 0xff_ffff,
                gid,
                path_mtu,
                memory: memory as u64,
                rkey: (*mr).rkey,
            };
            let mapping = mapping.cast();
            let mut endpoint = Self {
                library,
                context,
                pd,
                channel,
                cq,
                qp,
                mr,
                mapping,
                mapping_length,
                memory_length,
                events,
                gid_index,
                max_inline,
                address,
            };
            endpoint.initialise()?;
            Ok(endpoint)
        }
    }

    fn initialise(&mut self) -> Result<()> {
        let mut attributes = QpAttr {
            state: 1,
            port_num: PORT,
            access_flags: ACCESS_LOCAL_REMOTE_WRITE_READ as c_uint,
            ..QpAttr::default()
        };
        // STATE | ACCESS_FLAGS | PKEY_INDEX | PORT
        self.modify("INIT", &mut attributes, 1 | 1 << 3 | 1 << 4 | 1 << 5)
    }

    /// Connects to `peer`: to RTR and RTS.
    ///
    /// # Errors
    /// When a transition fails.
    pub fn connect(&mut self, peer: &Address, retries: Retries) -> Result<()> {
        let mut attributes = QpAttr {
            state: 2,
            path_mtu: self.address.path_mtu.min(peer.path_mtu),
            dest_qp_num: peer.qp_number,
            rq_psn: peer.psn,
            max_dest_rd_atomic: 1,
            min_rnr_timer: 12,
            ah: AhAttr {
                dgid: peer.gid,
                sgid_index: self.gid_index,
                hop_limit: 64,
                is_global: 1,
                port_num: PORT,
                ..AhAttr::default()
            },
            ..QpAttr::default()
        };
        // STATE | AV | PATH_MTU | RQ_PSN | MAX_DEST_RD_ATOMIC | MIN_RNR_TIMER | DEST_QPN
        let mask = 1 | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 17 | 1 << 15 | 1 << 20;
        self.modify("RTR", &mut attributes, mask)?;
        let mut attributes = QpAttr {
            state: 3,
            sq_psn: self.address.psn,
            timeout: retries.timeout,
            retry_cnt: retries.count,
            rnr_retry: 7,
            max_rd_atomic: 1,
            ..QpAttr::default()
        };
        // STATE | TIMEOUT | RETRY_CNT | RNR_RETRY | MAX_QP_RD_ATOMIC | SQ_PSN
        let mask = 1 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 16;
        self.modify("RTS", &mut attributes, mask)
    }

    fn modify(&mut self, state: &str, attributes: &mut QpAttr, mask: c_int) -> Result<()> {
        // SAFETY: the QP lives until drop; the structure lives across the call.
        let failed = unsafe { (self.library.ibv_modify_qp)(self.qp, attributes, mask) };
        check(&format!("ibv_modify_qp to {state}"), failed)
    }

    /// The registered memory. The device may write to it at any time after a receive was posted
    /// or its key was given away: callers look only when the protocol says that it is quiet.
    pub fn memory(&mut self) -> &mut [u8] {
        // SAFETY: `memory_length` bytes from SKEW on are inside the mapping, which lives until
        // drop; the borrow of self keeps other slices of ours away.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.add(SKEW), self.memory_length) }
    }

    /// An SGE for `length` bytes of the memory from `offset` on.
    pub fn sge(&self, offset: usize, length: usize) -> Sge {
        // SAFETY: the MR lives until drop.
        let lkey = unsafe { (*self.mr).lkey };
        // The verifier's lengths are a few MiB.
        Sge { address: self.address.memory + offset as u64, length: length as u32, lkey }
    }

    /// Posts send work requests, linked in their order.
    ///
    /// # Errors
    /// When the queue refuses one.
    pub fn post_send(&mut self, requests: &mut [SendWr]) -> Result<()> {
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        let base = requests.as_mut_ptr();
        for index in 0..last {
            // SAFETY: index + 1 is in the slice, and both pointers come from one borrow of it.
            unsafe { (*base.add(index)).next = base.add(index + 1) };
        }
        let mut bad = ptr::null_mut();
        // SAFETY: a live QP and a list of live requests whose SGE lists the caller keeps.
        let failed = unsafe { ((*(*self.qp).context).post_send)(self.qp, base, &mut bad) };
        check("ibv_post_send", failed)
    }

    /// Posts one receive.
    ///
    /// # Errors
    /// When the queue refuses it.
    pub fn post_recv(&mut self, wr_id: u64, sges: &mut [Sge]) -> Result<()> {
        let mut request = RecvWr {
            wr_id,
            next: ptr::null_mut(),
            sg_list: sges.as_mut_ptr(),
            num_sge: sges.len() as c_int,
        };
        let mut bad = ptr::null_mut();
        // SAFETY: a live QP, a live request, a live list of SGEs.
        let failed = unsafe { ((*(*self.qp).context).post_recv)(self.qp, &mut request, &mut bad) };
        check("ibv_post_recv", failed)
    }

    /// Waits for one completion, by polling or by an event, as the endpoint was opened.
    ///
    /// # Errors
    /// When none comes in time, or a call fails.
    pub fn completion(&mut self) -> Result<WorkCompletion> {
        let begun = Instant::now();
        let mut armed = false;
        loop {
            if let Some(completion) = self.poll()? {
                return Ok(completion);
            }
            if begun.elapsed() > PATIENCE {
                let how = if self.events { "event or completion" } else { "completion" };
                bail!("no {how} within {} s", PATIENCE.as_secs());
            }
            if !self.events {
                std::hint::spin_loop();
            } else if armed {
                self.wait_event(PATIENCE.saturating_sub(begun.elapsed()))?;
                armed = false;
            } else {
                // Arm, then look once more: what came before the arming makes no event.
                // SAFETY: a live CQ.
                let failed = unsafe { ((*(*self.cq).context).req_notify_cq)(self.cq, 0) };
                check("ibv_req_notify_cq", failed)?;
                armed = true;
            }
        }
    }

    fn poll(&mut self) -> Result<Option<WorkCompletion>> {
        let mut completion = WorkCompletion::default();
        // SAFETY: a live CQ and room for one completion.
        let count = unsafe { ((*(*self.cq).context).poll_cq)(self.cq, 1, &mut completion) };
        match count {
            0 => Ok(None),
            1 => Ok(Some(completion)),
            _ => bail!("ibv_poll_cq failed ({count})"),
        }
    }

    fn wait_event(&mut self, patience: Duration) -> Result<()> {
        // SAFETY: the channel lives until drop.
        let descriptor = unsafe { (*self.channel).descriptor };
        let mut wait = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
        let milliseconds = c_int::try_from(patience.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: one live structure.
        if unsafe { libc::poll(&mut wait, 1, milliseconds) } == 0 {
            bail!("no completion event within {} s", PATIENCE.as_secs());
        }
        let (mut cq, mut context) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: a live channel with an event waiting, and room for the answers; the CQ of the
        // event is this endpoint's only one.
        unsafe {
            let failed = (self.library.ibv_get_cq_event)(self.channel, &mut cq, &mut context);
            check("ibv_get_cq_event", failed)?;
            (self.library.ibv_ack_cq_events)(cq, 1);
        }
        Ok(())
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // SAFETY: each object is destroyed once, users before what they use, memory last.
        unsafe {
            (self.library.ibv_destroy_qp)(self.qp);
            (self.library.ibv_destroy_cq)(self.cq);
            if !self.channel.is_null() {
                (self.library.ibv_destroy_comp_channel)(self.channel);
            }
            (self.library.ibv_dereg_mr)(self.mr);
            (self.library.ibv_dealloc_pd)(self.pd);
            (self.library.ibv_close_device)(self.context);
            libc::munmap(self.mapping.cast(), self.mapping_length);
        }
    }
}

fn open_device(library: &Library, wanted: &str) -> Result<*mut ffi::Context> {
    let mut count = 0;
    // SAFETY: the list has `count` devices and is freed once, after the last use of its entries.
    unsafe {
        let list = (library.ibv_get_device_list)(&mut count);
        if list.is_null() {
            bail!("ibv_get_device_list: {}", io::Error::last_os_error());
        }
        let mut context = ptr::null_mut();
        let mut names = Vec::new();
        for index in 0..usize::try_from(count).unwrap_or(0) {
            let device = *list.add(index);
            let name = CStr::from_ptr((library.ibv_get_device_name)(device)).to_string_lossy();
            if name == wanted {
                context = (library.ibv_open_device)(device);
            }
            names.push(name.into_owned());
        }
        (library.ibv_free_device_list)(list);
        if !names.iter().any(|name| name == wanted) {
            bail!("there is no device {wanted}; there are: {}", names.join(" "));
        }
        not_null("ibv_open_device", context)
    }
}

/// The GID of an index, or the first RoCEv2 one that is made of an IPv4 address.
fn find_gid(device: &str, index: Option<u8>) -> Result<(u8, [u8; 16])> {
    let port = format!("/sys/class/infiniband/{device}/ports/{PORT}");
    let read = |index: u8| -> Option<[u8; 16]> {
        let text = fs::read_to_string(format!("{port}/gids/{index}")).ok()?;
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        Some(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes())
    };
    if let Some(index) = index {
        let gid = read(index).with_context(|| format!("{device} has no GID {index}"))?;
        return Ok((index, gid));
    }
    (0..=255)
        .find_map(|index| {
            let kind = fs::read_to_string(format!("{port}/gid_attrs/types/{index}")).ok()?;
            let gid = read(index)?;
            (kind.trim() == "RoCE v2" && gid[..12] == *b"\0\0\0\0\0\0\0\0\0\0\xff\xff")
                .then_some((index, gid))
        })
        .with_context(|| format!("{device} has no RoCEv2 GID of an IPv4 address"))
}

fn not_null<T>(what: &str, pointer: *mut T) -> Result<*mut T> {
    if pointer.is_null() {
        bail!("{what}: {}", io::Error::last_os_error());
    }
    Ok(pointer)
}

/// Calls of libibverbs return 0, an error number, or -1 with errno.
fn check(what: &str, failed: c_int) -> Result<()> {
    match failed {
        0 => Ok(()),
        -1 => bail!("{what}: {}", io::Error::last_os_error()),
        number => bail!("{what}: {}", io::Error::from_raw_os_error(number)),
    }
}
