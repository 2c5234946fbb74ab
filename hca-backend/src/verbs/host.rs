// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Objects of libibverbs that end when they are dropped, each holding on to those that it needs. The
//! only file, beside `library` and `range`, with unsafe code: what the others call is safe.

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rdma_midlayer::types::Gid;
use rdma_midlayer::{Error, Result};

use super::ffi::*;
use super::library::{Library, OpenError};

/// An open device.
pub(crate) struct Host {
    lib: Library,
    at: NonNull<ibv_context>,
    name: String,
    port: u8,
    dead: AtomicBool,
}

// SAFETY: libibverbs's objects may be used by any thread and by several at once (ibv_open_device(3));
// the structures that they point to are only read here, and don't change once made.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

// SAFETY: the pointers of a request are followed only in a post, by whoever has the request then; what
// they point to may be used by any thread.
unsafe impl Send for ibv_send_wr {}

/// The error of a function that answers an errno, or -1 with errno set.
fn errno_of(answer: c_int) -> i32 {
    match answer {
        0 => 0,
        ..0 => io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
        errno => errno,
    }
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Names of the devices, and what `visit` makes of the one that it wants.
fn devices<R>(
    lib: &Library,
    mut visit: impl FnMut(&str, *mut ibv_device) -> Option<R>,
) -> (Vec<String>, Option<R>) {
    let mut count = 0;
    // SAFETY: the list is an array of `count` devices until it is freed below; a null list has none.
    let list = unsafe { (lib.get_device_list)(&mut count) };
    let mut names = Vec::new();
    let mut found = None;
    if list.is_null() {
        return (names, found);
    }
    for nth in 0..count.max(0) as usize {
        // SAFETY: as above; a device's name is a string as long as the list lives.
        let (device, name) = unsafe {
            let device = *list.add(nth);
            (device, CStr::from_ptr((lib.get_device_name)(device)).to_string_lossy().into_owned())
        };
        if found.is_none() {
            found = visit(&name, device);
        }
        names.push(name);
    }
    // SAFETY: the list from above; an opened device keeps its own reference.
    unsafe { (lib.free_device_list)(list) };
    (names, found)
}

/// Names of the devices that the library sees.
pub(crate) fn list(lib: &Library) -> Vec<String> {
    devices(lib, |_, _| None::<()>).0
}

impl Host {
    /// Opens a device.
    pub(crate) fn open(
        lib: Library,
        name: &str,
        port: u8,
    ) -> std::result::Result<Arc<Self>, OpenError> {
        let (names, opened) = devices(&lib, |found, device| {
            if found != name {
                return None;
            }
            // SAFETY: a device of the living list.
            let opened = unsafe { (lib.open_device)(device) };
            Some(NonNull::new(opened).ok_or_else(io::Error::last_os_error))
        });
        match opened {
            None => Err(OpenError::NoDevice {
                name: name.to_owned(),
                present: if names.is_empty() { "none".to_owned() } else { names.join(", ") },
            }),
            Some(Err(error)) => Err(OpenError::System {
                name: name.to_owned(),
                what: "opening",
                error,
                remedy: "; the daemon needs read and write access to /dev/infiniband/uverbs*",
            }),
            Some(Ok(at)) => {
                let host =
                    Self { lib, at, name: name.to_owned(), port, dead: AtomicBool::new(false) };
                Ok(Arc::new(host))
            }
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn port(&self) -> u8 {
        self.port
    }

    /// The device is gone: nothing is asked of it any more.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Whether this is the first to say that it is gone.
    pub(crate) fn die(&self) -> bool {
        !self.dead.swap(true, Ordering::AcqRel)
    }

    /// What a consumer is told of a failed call.
    pub(crate) fn error(&self, errno: i32) -> Error {
        if self.is_dead() {
            return Error::Gone;
        }
        match errno {
            libc::EINVAL => Error::Invalid("refused by the HCA"),
            libc::ENOMEM | libc::EAGAIN | libc::ENOSPC => Error::Limit("resources of the HCA"),
            libc::EOPNOTSUPP | libc::ENOSYS => Error::Unsupported("by the HCA"),
            libc::EPERM | libc::EACCES => Error::NotPermitted("by the HCA"),
            libc::EBUSY => Error::Busy("in the HCA"),
            errno => Error::Host(errno),
        }
    }

    fn check(&self, answer: c_int) -> Result<()> {
        match errno_of(answer) {
            0 => Ok(()),
            errno => Err(self.error(errno)),
        }
    }

    fn alive(&self) -> Result<()> {
        if self.is_dead() { Err(Error::Gone) } else { Ok(()) }
    }

    fn made<T>(&self, at: *mut T) -> Result<NonNull<T>> {
        NonNull::new(at).ok_or_else(|| self.error(last_errno()))
    }

    pub(crate) fn query_device(&self) -> Result<ibv_device_attr> {
        self.alive()?;
        // SAFETY: integers alone: all zeros is a value.
        let mut attr: ibv_device_attr = unsafe { std::mem::zeroed() };
        // SAFETY: an open context; the function fills the structure.
        self.check(unsafe { (self.lib.query_device)(self.at.as_ptr(), &mut attr) })?;
        Ok(attr)
    }

    pub(crate) fn query_port(&self) -> Result<ibv_port_attr> {
        self.alive()?;
        // SAFETY: integers alone.
        let mut attr: ibv_port_attr = unsafe { std::mem::zeroed() };
        // SAFETY: an open context; the function fills as much of the structure as it knows.
        self.check(unsafe { (self.lib.query_port)(self.at.as_ptr(), self.port, &mut attr) })?;
        Ok(attr)
    }

    /// The port's GIDs: index, GID, and whether it is one for RoCEv2 as far as is known.
    pub(crate) fn gids(&self) -> Result<Vec<(u32, Gid, bool)>> {
        self.alive()?;
        let len = self.query_port()?.gid_tbl_len.clamp(0, 4096) as usize;
        let gid = |raw: [u64; 2]| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&raw[0].to_ne_bytes());
            bytes[8..].copy_from_slice(&raw[1].to_ne_bytes());
            Gid(bytes)
        };
        if let Some(query) = self.lib.query_gid_table {
            // The table is of all ports.
            let mut entries = vec![ibv_gid_entry::default(); 4096];
            // SAFETY: an open context, and room for as many entries of this size as it says.
            let count = unsafe {
                query(
                    self.at.as_ptr(),
                    entries.as_mut_ptr(),
                    entries.len(),
                    0,
                    size_of::<ibv_gid_entry>(),
                )
            };
            if let Ok(count) = usize::try_from(count) {
                entries.truncate(count);
                let ours = entries.iter().filter(|e| e.port_num == u32::from(self.port));
                return Ok(ours
                    .map(|e| (e.gid_index, gid(e.gid), e.gid_type == GID_TYPE_ROCE_V2))
                    .collect());
            }
        }
        let mut found = Vec::new();
        for index in 0..len {
            let mut raw = [0; 2];
            // SAFETY: an open context; the function fills 16 bytes.
            let answer = unsafe {
                (self.lib.query_gid)(self.at.as_ptr(), self.port, index as c_int, &mut raw)
            };
            if answer == 0 && raw != [0; 2] {
                let path = format!(
                    "/sys/class/infiniband/{}/ports/{}/gid_attrs/types/{index}",
                    self.name, self.port
                );
                let v2 = std::fs::read_to_string(path).map_or(true, |t| t.contains("v2"));
                found.push((index as u32, gid(raw), v2));
            }
        }
        Ok(found)
    }

    fn context(&self) -> &ibv_context {
        // SAFETY: made by `open_device`, alive until `close_device` in `drop`.
        unsafe { self.at.as_ref() }
    }

    /// Descriptor of the asynchronous events.
    pub(crate) fn async_fd(&self) -> RawFd {
        self.context().async_fd
    }

    /// Waits for an asynchronous event, hands it to `handle`, and only then tells the library that it
    /// is done with: until then its object lives. May sleep.
    pub(crate) fn async_event(&self, handle: impl FnOnce(HostEvent)) -> io::Result<()> {
        let mut event = ibv_async_event { element: 0, event_type: 0 };
        // SAFETY: an open context; the function fills the structure.
        if unsafe { (self.lib.get_async_event)(self.at.as_ptr(), &mut event) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let what = match event.event_type {
            EVENT_CQ_ERR => {
                // SAFETY: an event of a CQ names a CQ, which lives until the event is acknowledged.
                HostEvent::Cq(unsafe { (*(event.element as *const ibv_cq)).cq_context } as usize)
            }
            code @ (EVENT_QP_FATAL
            | EVENT_QP_REQ_ERR
            | EVENT_QP_ACCESS_ERR
            | EVENT_COMM_EST
            | EVENT_SQ_DRAINED
            | EVENT_QP_LAST_WQE_REACHED) => {
                // SAFETY: as above, of a QP.
                HostEvent::Qp(code, unsafe { (*(event.element as *const ibv_qp)).qp_context }
                    as usize)
            }
            code @ (EVENT_SRQ_ERR | EVENT_SRQ_LIMIT_REACHED) => {
                // SAFETY: as above, of an SRQ, whose second member is the context that was given.
                HostEvent::Srq(code, unsafe { *(event.element as *const usize).add(1) })
            }
            code => HostEvent::Device(code, event.element as u32 as u8),
        };
        handle(what);
        // SAFETY: the event that was got above.
        unsafe { (self.lib.ack_async_event)(&mut event) };
        Ok(())
    }
}

/// An asynchronous event; objects are named by the number that they were created with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HostEvent {
    Cq(usize),
    Qp(c_uint, usize),
    Srq(c_uint, usize),
    /// Of the device, or of a port.
    Device(c_uint, u8),
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: every object of the device holds on to it, so none is left.
        let answer = unsafe { (self.lib.close_device)(self.at.as_ptr()) };
        if answer != 0 && !self.is_dead() {
            log::warn!("{}: close: {}", self.name, io::Error::last_os_error());
        }
    }
}

/// An object that is ended by a function of the library.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident, $raw:ident, $end:ident { $($member:ident: $type:ty),* }) => {
        $(#[$doc])*
        pub(crate) struct $name {
            at: NonNull<$raw>,
            $(#[allow(dead_code, reason = "kept for as long as this object needs it")] $member: $type,)*
            host: Arc<Host>,
        }

        // SAFETY: as for `Host`.
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the object is this value's, which nobody else has any more; what depends on it
                // held on to it.
                let errno = errno_of(unsafe { (self.host.lib.$end)(self.at.as_ptr()) });
                if errno != 0 && !self.host.is_dead() {
                    log::warn!("{}: {}: errno {errno}", self.host.name, stringify!($end));
                }
            }
        }
    };
}

object!(
    /// A protection domain.
    HostPd, ibv_pd, dealloc_pd {}
);
object!(
    /// A memory region.
    HostMr, ibv_mr, dereg_mr { pd: Arc<HostPd> }
);
object!(
    /// A completion channel, whose descriptor does not block.
    HostChannel, ibv_comp_channel, destroy_comp_channel {}
);
object!(
    /// A completion queue.
    HostCq, ibv_cq, destroy_cq { channel: Arc<HostChannel> }
);
object!(
    /// A shared receive queue.
    HostSrq, ibv_srq, destroy_srq { pd: Arc<HostPd> }
);
object!(
    /// An address handle.
    HostAh, ibv_ah, destroy_ah { pd: Arc<HostPd> }
);
object!(
    /// A queue pair.
    HostQp, ibv_qp, destroy_qp { pd: Arc<HostPd>, cqs: [Arc<HostCq>; 2], srq: Option<Arc<HostSrq>> }
);

impl HostPd {
    pub(crate) fn alloc(host: &Arc<Host>) -> Result<Arc<Self>> {
        host.alive()?;
        // SAFETY: an open context.
        let at = host.made(unsafe { (host.lib.alloc_pd)(host.at.as_ptr()) })?;
        Ok(Arc::new(Self { at, host: host.clone() }))
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Registers `len` bytes at an address of this process under the address `iova`; errno if not.
    /// The pages stay pinned, the mapping is no longer needed afterwards.
    pub(crate) fn reg_mr(
        self: &Arc<Self>,
        addr: *mut u8,
        len: usize,
        iova: u64,
        access: u32,
    ) -> std::result::Result<HostMr, i32> {
        if self.host.is_dead() {
            return Err(libc::EIO);
        }
        // SAFETY: the library pins what is mapped there, or answers an error.
        let at = unsafe {
            (self.host.lib.reg_mr_iova)(self.at.as_ptr(), addr.cast(), len, iova, access as c_int)
        };
        let at = NonNull::new(at).ok_or_else(last_errno)?;
        Ok(HostMr { at, pd: self.clone(), host: self.host.clone() })
    }

    pub(crate) fn create_ah(self: &Arc<Self>, attr: &ibv_ah_attr) -> Result<HostAh> {
        self.host.alive()?;
        let mut attr = *attr;
        // SAFETY: a living PD; the attributes are read.
        let at =
            self.host.made(unsafe { (self.host.lib.create_ah)(self.at.as_ptr(), &mut attr) })?;
        Ok(HostAh { at, pd: self.clone(), host: self.host.clone() })
    }

    pub(crate) fn create_srq(
        self: &Arc<Self>,
        attr: ibv_srq_attr,
        number: usize,
    ) -> Result<HostSrq> {
        self.host.alive()?;
        let mut init = ibv_srq_init_attr { srq_context: number as *mut c_void, attr };
        // SAFETY: a living PD; the attributes are read and what was given is written back.
        let at =
            self.host.made(unsafe { (self.host.lib.create_srq)(self.at.as_ptr(), &mut init) })?;
        Ok(HostSrq { at, pd: self.clone(), host: self.host.clone() })
    }

    /// A QP, and the sizes that it got.
    pub(crate) fn create_qp(self: &Arc<Self>, spec: HostQpSpec) -> Result<(HostQp, ibv_qp_cap)> {
        self.host.alive()?;
        let HostQpSpec { cqs, srq, cap, qp_type, signal_all, number } = spec;
        let mut init = ibv_qp_init_attr {
            qp_context: number as *mut c_void,
            send_cq: cqs[0].at.as_ptr(),
            recv_cq: cqs[1].at.as_ptr(),
            srq: srq.as_ref().map_or(null_mut(), |srq| srq.at.as_ptr()),
            cap,
            qp_type,
            sq_sig_all: c_int::from(signal_all),
        };
        // SAFETY: living objects of one device; the sizes that were given are written back.
        let at =
            self.host.made(unsafe { (self.host.lib.create_qp)(self.at.as_ptr(), &mut init) })?;
        Ok((HostQp { at, pd: self.clone(), cqs, srq, host: self.host.clone() }, init.cap))
    }

    /// A memory window.
    pub(crate) fn alloc_mw(self: &Arc<Self>, mw_type: u8) -> Result<HostMw> {
        self.host.alive()?;
        let ops = &self.host.context().ops;
        let (Some(alloc), Some(end)) = (ops.alloc_mw, ops.dealloc_mw) else {
            return Err(Error::Unsupported("memory windows"));
        };
        // SAFETY: a living PD, and a function of its device.
        let at = self.host.made(unsafe { alloc(self.at.as_ptr(), c_int::from(mw_type)) })?;
        Ok(HostMw { at, end, _pd: self.clone(), host: self.host.clone() })
    }
}

/// How to make a host's QP.
pub(crate) struct HostQpSpec {
    /// Of the send and of the receive queue.
    pub(crate) cqs: [Arc<HostCq>; 2],
    pub(crate) srq: Option<Arc<HostSrq>>,
    pub(crate) cap: ibv_qp_cap,
    pub(crate) qp_type: c_uint,
    pub(crate) signal_all: bool,
    /// Events name it.
    pub(crate) number: usize,
}

impl HostMr {
    pub(crate) fn lkey(&self) -> u32 {
        // SAFETY: alive until `drop`, and its members never change.
        unsafe { self.at.as_ref().lkey }
    }

    pub(crate) fn rkey(&self) -> u32 {
        // SAFETY: as above.
        unsafe { self.at.as_ref().rkey }
    }

    pub(crate) fn as_ptr(&self) -> *mut ibv_mr {
        self.at.as_ptr()
    }
}

/// A memory window.
pub(crate) struct HostMw {
    at: NonNull<ibv_mw>,
    end: unsafe extern "C" fn(*mut ibv_mw) -> c_int,
    _pd: Arc<HostPd>,
    host: Arc<Host>,
}

// SAFETY: as for `Host`.
unsafe impl Send for HostMw {}
// SAFETY: as above.
unsafe impl Sync for HostMw {}

impl HostMw {
    /// The key as it is now: binding changes it.
    pub(crate) fn rkey(&self) -> u32 {
        // SAFETY: alive until `drop`; the provider writes the aligned word inside a post of this
        // driver's, and a stale value is one of the keys that it has had.
        unsafe { std::ptr::addr_of!((*self.at.as_ptr()).rkey).read_volatile() }
    }

    pub(crate) fn as_ptr(&self) -> *mut ibv_mw {
        self.at.as_ptr()
    }
}

impl Drop for HostMw {
    fn drop(&mut self) {
        // SAFETY: the window is this value's; the function is its device's.
        let errno = errno_of(unsafe { (self.end)(self.at.as_ptr()) });
        if errno != 0 && !self.host.is_dead() {
            log::warn!("{}: dealloc_mw: errno {errno}", self.host.name);
        }
    }
}

impl HostChannel {
    pub(crate) fn create(host: &Arc<Host>) -> Result<Arc<Self>> {
        host.alive()?;
        // SAFETY: an open context.
        let at = host.made(unsafe { (host.lib.create_comp_channel)(host.at.as_ptr()) })?;
        let channel = Arc::new(Self { at, host: host.clone() });
        // SAFETY: a descriptor of the channel's; its flags are only added to.
        let answer = unsafe {
            let flags = libc::fcntl(channel.raw_fd(), libc::F_GETFL);
            libc::fcntl(channel.raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
        };
        if answer < 0 { Err(Error::Host(last_errno())) } else { Ok(channel) }
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        // SAFETY: alive until `drop`.
        unsafe { self.at.as_ref().fd }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open until `drop`, which the borrow keeps away.
        unsafe { BorrowedFd::borrow_raw(self.raw_fd()) }
    }

    /// The number of a CQ that has fired; none if none has. Does not wait.
    pub(crate) fn event(&self) -> Option<usize> {
        if self.host.is_dead() {
            return None;
        }
        let (mut cq, mut number) = (null_mut(), null_mut());
        // SAFETY: a living channel that does not block; a CQ lives until its event is acknowledged.
        unsafe {
            if (self.host.lib.get_cq_event)(self.at.as_ptr(), &mut cq, &mut number) != 0 {
                return None;
            }
            (self.host.lib.ack_cq_events)(cq, 1);
        }
        Some(number as usize)
    }
}

impl HostCq {
    pub(crate) fn create(channel: &Arc<HostChannel>, cqe: u32, number: usize) -> Result<Arc<Self>> {
        let host = &channel.host;
        host.alive()?;
        let vector = number as c_int % host.context().num_comp_vectors.max(1);
        // SAFETY: an open context and its channel.
        let at = host.made(unsafe {
            (host.lib.create_cq)(
                host.at.as_ptr(),
                cqe as c_int,
                number as *mut c_void,
                channel.at.as_ptr(),
                vector,
            )
        })?;
        Ok(Arc::new(Self { at, channel: channel.clone(), host: host.clone() }))
    }

    /// Takes completions out; how many. Two threads may call at once. Never sleeps.
    #[inline]
    pub(crate) fn poll(&self, wcs: &mut [ibv_wc]) -> usize {
        if self.host.is_dead() {
            return 0;
        }
        let Some(poll) = self.host.context().ops.poll_cq else { return 0 };
        // SAFETY: a living CQ, its device's function, and room for as many completions as it says.
        let count = unsafe { poll(self.at.as_ptr(), wcs.len() as c_int, wcs.as_mut_ptr()) };
        usize::try_from(count).unwrap_or(0)
    }

    /// Asks for one event at the next completion. With some providers a system call.
    pub(crate) fn arm(&self) -> Result<()> {
        self.host.alive()?;
        let Some(arm) = self.host.context().ops.req_notify_cq else {
            return Err(Error::Unsupported("completion events"));
        };
        // SAFETY: a living CQ and its device's function.
        self.host.check(unsafe { arm(self.at.as_ptr(), 0) })
    }

    pub(crate) fn resize(&self, cqe: u32) -> Result<()> {
        self.host.alive()?;
        // SAFETY: a living CQ.
        self.host.check(unsafe { (self.host.lib.resize_cq)(self.at.as_ptr(), cqe as c_int) })
    }
}

impl HostSrq {
    pub(crate) fn arm_limit(&self, limit: u32) -> Result<()> {
        self.host.alive()?;
        let mut attr = ibv_srq_attr { srq_limit: limit, ..Default::default() };
        const LIMIT: c_int = 2;
        // SAFETY: a living SRQ; the attributes are read.
        self.host.check(unsafe { (self.host.lib.modify_srq)(self.at.as_ptr(), &mut attr, LIMIT) })
    }

    pub(crate) fn query(&self) -> Result<ibv_srq_attr> {
        self.host.alive()?;
        let mut attr = ibv_srq_attr::default();
        // SAFETY: a living SRQ; the function fills the structure.
        self.host.check(unsafe { (self.host.lib.query_srq)(self.at.as_ptr(), &mut attr) })?;
        Ok(attr)
    }

    /// As `HostQp::post_recv`.
    pub(crate) fn post_recv(
        &self,
        wrs: &mut [ibv_recv_wr],
    ) -> std::result::Result<(), (usize, i32)> {
        let Some(post) = self.host.context().ops.post_srq_recv else {
            return Err((0, libc::EOPNOTSUPP));
        };
        post_chain(
            &self.host,
            wrs,
            |wr, next| wr.next = next,
            // SAFETY: a living SRQ, its device's function, and a chain of requests of this driver's.
            |first, bad| unsafe { post(self.at.as_ptr(), first, bad) },
        )
    }
}

impl HostAh {
    pub(crate) fn as_ptr(&self) -> *mut ibv_ah {
        self.at.as_ptr()
    }
}

impl HostQp {
    pub(crate) fn qpn(&self) -> u32 {
        // SAFETY: alive until `drop`; the number never changes.
        unsafe { self.at.as_ref().qp_num }
    }

    pub(crate) fn modify(&self, attr: &ibv_qp_attr, mask: u32) -> Result<()> {
        self.host.alive()?;
        let mut attr = *attr;
        // SAFETY: a living QP; the attributes are read.
        self.host
            .check(unsafe { (self.host.lib.modify_qp)(self.at.as_ptr(), &mut attr, mask as c_int) })
    }

    pub(crate) fn query(&self) -> Result<ibv_qp_attr> {
        self.host.alive()?;
        let mut attr = ibv_qp_attr::default();
        // SAFETY: integers and pointers: all zeros is a value.
        let mut init: ibv_qp_init_attr = unsafe { std::mem::zeroed() };
        const STATE_PSN_DRAINING: c_int = 0x1 | 0x1000 | 0x1_0000;
        // SAFETY: a living QP; the function fills both structures.
        self.host.check(unsafe {
            (self.host.lib.query_qp)(self.at.as_ptr(), &mut attr, STATE_PSN_DRAINING, &mut init)
        })?;
        Ok(attr)
    }

    /// Posts requests, which are chained here; those before the index in the error were taken. Never
    /// sleeps, unless the provider's does.
    #[inline]
    pub(crate) fn post_send(
        &self,
        wrs: &mut [ibv_send_wr],
    ) -> std::result::Result<(), (usize, i32)> {
        let Some(post) = self.host.context().ops.post_send else {
            return Err((0, libc::EOPNOTSUPP));
        };
        post_chain(
            &self.host,
            wrs,
            |wr, next| wr.next = next,
            // SAFETY: a living QP, its device's function, and a chain of requests whose lists and address
            // handles the caller keeps during the call.
            |first, bad| unsafe { post(self.at.as_ptr(), first, bad) },
        )
    }

    /// As `post_send`.
    pub(crate) fn post_recv(
        &self,
        wrs: &mut [ibv_recv_wr],
    ) -> std::result::Result<(), (usize, i32)> {
        let Some(post) = self.host.context().ops.post_recv else {
            return Err((0, libc::EOPNOTSUPP));
        };
        post_chain(
            &self.host,
            wrs,
            |wr, next| wr.next = next,
            // SAFETY: as in `post_send`.
            |first, bad| unsafe { post(self.at.as_ptr(), first, bad) },
        )
    }

    /// Binds a window of type 1; errno if not.
    pub(crate) fn bind_mw(
        &self,
        mw: &HostMw,
        bind: &mut ibv_mw_bind,
    ) -> std::result::Result<(), i32> {
        let Some(post) = self.host.context().ops.bind_mw else { return Err(libc::EOPNOTSUPP) };
        // SAFETY: living objects of one device and its function.
        match errno_of(unsafe { post(self.at.as_ptr(), mw.at.as_ptr(), bind) }) {
            0 => Ok(()),
            errno => Err(errno),
        }
    }

    pub(crate) fn attach_mcast(&self, gid: &Gid, lid: u16, attach: bool) -> Result<()> {
        self.host.alive()?;
        let lib = &self.host.lib;
        let call = if attach { lib.attach_mcast } else { lib.detach_mcast };
        let raw = raw_gid(gid);
        // SAFETY: a living QP; the GID is read.
        self.host.check(unsafe { call(self.at.as_ptr(), &raw, lid) })
    }
}

/// A GID as the library has it.
pub(crate) fn raw_gid(gid: &Gid) -> [u64; 2] {
    let (halves, _) = gid.0.as_chunks::<8>();
    [u64::from_ne_bytes(halves[0]), u64::from_ne_bytes(halves[1])]
}

/// Chains requests and posts them.
#[inline]
fn post_chain<W>(
    host: &Host,
    wrs: &mut [W],
    link: impl Fn(&mut W, *mut W),
    post: impl FnOnce(*mut W, *mut *mut W) -> c_int,
) -> std::result::Result<(), (usize, i32)> {
    if host.is_dead() {
        return Err((0, libc::EIO));
    }
    let first = wrs.as_mut_ptr();
    let count = wrs.len();
    for (n, wr) in wrs.iter_mut().enumerate() {
        let next = if n + 1 < count { first.wrapping_add(n + 1) } else { null_mut() };
        link(wr, next);
    }
    if count == 0 {
        return Ok(());
    }
    let mut bad = null_mut();
    match errno_of(post(first, &mut bad)) {
        0 => Ok(()),
        errno => {
            let at = (bad as usize).wrapping_sub(first as usize) / size_of::<W>();
            Err((if at < count { at } else { 0 }, errno))
        }
    }
}
