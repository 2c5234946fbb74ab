// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's RDMA devices as they come and go, for HCAs that are one of them: the kernel's uevents
//! (on every kernel; RDMA netlink tells of devices from 6.13 on only), and the notes of drivers whose
//! device died. A part of the control thread. What then happens to the HCA is `daemon.rs`.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rdma_midlayer::MaySleep;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::daemon::Daemon;

/// What the host's kernel says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// An RDMA device has come.
    Came(String),
    /// An RDMA device has gone.
    Gone(String),
    /// The character device of an RDMA device has gone: the kernel may be waiting for us to close it,
    /// before the device itself goes.
    CloseUverbs(String),
}

impl HostEvent {
    /// From a uevent, if it is about RDMA: `ACTION@DEVPATH`, then `KEY=VALUE`, each with a zero behind.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let field = |key: &str| {
            message.split(|byte| *byte == 0).find_map(|field| {
                std::str::from_utf8(field.strip_prefix(key.as_bytes())?.strip_prefix(b"=")?).ok()
            })
        };
        let name = field("DEVPATH")?.rsplit('/').next().filter(|name| !name.is_empty())?.to_owned();
        match (field("SUBSYSTEM")?, field("ACTION")?) {
            ("infiniband", "add") => Some(Self::Came(name)),
            ("infiniband", "remove") => Some(Self::Gone(name)),
            ("infiniband_verbs", "remove") => Some(Self::CloseUverbs(name)),
            _ => None,
        }
    }
}

/// The character device by which processes use an RDMA device: `uverbs0` of `rxe0`.
pub fn uverbs_of(device: &str) -> Option<String> {
    let entries = fs::read_dir("/sys/class/infiniband_verbs").ok()?.flatten();
    entries.into_iter().find_map(|entry| {
        let of = fs::read_to_string(entry.path().join("ibdev")).ok()?;
        (of.trim() == device).then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

/// Where drivers leave the names of HCAs that died. Never sleeps, takes nothing but its own lock.
pub struct Died {
    wake: EventFd,
    names: Mutex<Vec<String>>,
}

impl Died {
    /// Nobody has died yet.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { wake: EventFd::new(EFD_NONBLOCK)?, names: Mutex::default() }))
    }

    /// The HCA `name` died.
    pub fn note(&self, name: &str) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
        let _ = self.wake.write(1);
    }

    fn take(&self) -> Vec<String> {
        let _ = self.wake.read();
        std::mem::take(&mut *self.names.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Follows the host's devices, for the control thread's event manager.
pub struct HostDevices<'a> {
    cx: &'a MaySleep,
    daemon: Rc<RefCell<Daemon>>,
    died: Arc<Died>,
    /// None where uevents can't be had.
    uevents: Option<OwnedFd>,
}

impl<'a> HostDevices<'a> {
    /// For a daemon. Without uevents, as in some containers, only what drivers say is followed.
    pub fn new(cx: &'a MaySleep, daemon: Rc<RefCell<Daemon>>) -> Self {
        let died = daemon.borrow().died().clone();
        let uevents = uevent_socket()
            .inspect_err(|e| log::warn!("the host's RDMA devices are not followed: {e}"))
            .ok();
        Self { cx, daemon, died, uevents }
    }

    fn follow_uevents(&mut self) {
        let Some(socket) = &self.uevents else { return };
        let mut buffer = [0; 16 << 10];
        loop {
            let mut daemon = self.daemon.borrow_mut();
            match receive(socket, &mut buffer) {
                Ok(Some(n)) => match HostEvent::parse(&buffer[..n]) {
                    Some(HostEvent::Came(name)) => daemon.device_came(self.cx, &name),
                    Some(HostEvent::Gone(name)) => daemon.device_gone(self.cx, &name),
                    Some(HostEvent::CloseUverbs(name)) => daemon.uverbs_gone(self.cx, &name),
                    None => {}
                },
                // Of a process, not of the kernel.
                Ok(None) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Some were lost.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => daemon.look_again(self.cx),
                Err(e) => return log::warn!("uevents: {e}"),
            }
        }
    }
}

impl MutEventSubscriber for HostDevices<'_> {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() == self.died.wake.as_raw_fd() {
            for name in self.died.take() {
                self.daemon.borrow_mut().hca_died(self.cx, &name);
            }
        } else {
            self.follow_uevents();
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let mut watch = |events| {
            if let Err(e) = ops.add(events) {
                log::error!("the host's RDMA devices can't be watched: {e}");
            }
        };
        watch(Events::new(&self.died.wake, EventSet::IN));
        if let Some(socket) = &self.uevents {
            watch(Events::new(socket, EventSet::IN));
        }
    }
}

/// The group of the kernel's own uevents; 2 is udev's.
const KERNEL_GROUP: u32 = 1;

fn uevent_socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            libc::NETLINK_KOBJECT_UEVENT,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeros are a valid sockaddr_nl.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = KERNEL_GROUP;
    // SAFETY: the pointer is to `address`, of the length given.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_nl>() as libc::socklen_t,
        )
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// One message of the kernel: its length; None for one of somebody else.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: all zeros are a valid sockaddr_nl.
    let mut from: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: pointers and lengths are those of `buffer` and `from`, which live through the call.
    let n = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
            (&raw mut from).cast(),
            &raw mut length,
        )
    };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    Ok((from.nl_pid == 0).then_some(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uevents_of_rdma_devices_are_understood_and_others_are_not() {
        let of = |action: &str, path: &str, subsystem: &str| {
            let text = format!(
                "{action}@{path}\0ACTION={action}\0DEVPATH={path}\0SUBSYSTEM={subsystem}\0SEQNUM=7\0"
            );
            HostEvent::parse(text.as_bytes())
        };
        let rxe = "/devices/virtual/infiniband/rxe0";
        assert_eq!(of("add", rxe, "infiniband"), Some(HostEvent::Came("rxe0".to_owned())));
        assert_eq!(of("remove", rxe, "infiniband"), Some(HostEvent::Gone("rxe0".to_owned())));
        let uverbs = "/devices/virtual/infiniband_verbs/uverbs3";
        let close = HostEvent::CloseUverbs("uverbs3".to_owned());
        assert_eq!(of("remove", uverbs, "infiniband_verbs"), Some(close));
        assert_eq!(of("add", uverbs, "infiniband_verbs"), None);
        assert_eq!(of("add", "/devices/virtual/net/eth0", "net"), None);
        assert_eq!(of("add", "/", "infiniband"), None);
        for bad in [&b""[..], b"add@", b"\0\0\0", b"\xff=\xff\0DEVPATH=\xff\0"] {
            assert_eq!(HostEvent::parse(bad), None);
        }
    }

    #[test]
    fn who_died_is_told_once() {
        let died = Died::new().unwrap();
        died.note("a");
        died.note("b");
        assert_eq!(died.take(), ["a", "b"]);
        assert!(died.take().is_empty());
    }
}
