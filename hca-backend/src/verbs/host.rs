// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Objects of libibverbs that end when they are dropped, each holding on to those that it needs. The
//! only file, beside `library` and `range`, with unsafe code: what the others call is safe.

mod object;

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

pub(crate) use object::*;

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
