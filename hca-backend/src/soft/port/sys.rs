// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls of the ports: all of the `unsafe` of this module, each call behind a safe function.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::mem::{MaybeUninit, size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use super::rx_buffer::RxBuffer;
use super::{BURST, OpenError};

const PACKET_AUXDATA: c_int = 8;
const PACKET_VNET_HDR: c_int = 15;
const PACKET_QDISC_BYPASS: c_int = 20;
const PACKET_IGNORE_OUTGOING: c_int = 23;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;

/// The system's structure that goes with PACKET_AUXDATA (linux/if_packet.h).
#[repr(C)]
struct AuxData {
    status: u32,
    len: u32,
    snaplen: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

/// Where a Unix socket is, for `sendto`.
pub(super) struct UnixAddress {
    address: libc::sockaddr_un,
    length: libc::socklen_t,
}

impl UnixAddress {
    pub(super) fn new(path: &Path) -> Result<Self, OpenError> {
        // SAFETY: all zeros is a valid sockaddr_un.
        let mut address: libc::sockaddr_un = unsafe { zeroed() };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() || bytes.len() >= address.sun_path.len() {
            return Err(OpenError::PathLength(path.to_owned()));
        }
        for (to, from) in address.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        let start = size_of::<libc::sockaddr_un>() - address.sun_path.len();
        Ok(Self { address, length: (start + bytes.len() + 1) as libc::socklen_t })
    }
}

/// Messages for one `sendmmsg`, each gathered from some pieces.
pub(super) struct Messages<'a> {
    pieces: Vec<IoSlice<'a>>,
    ends: Vec<usize>,
}

impl<'a> Messages<'a> {
    pub(super) fn with_capacity(pieces: usize) -> Self {
        Self { pieces: Vec::with_capacity(pieces), ends: Vec::with_capacity(pieces) }
    }

    pub(super) fn piece(&mut self, bytes: &'a [u8]) {
        self.pieces.push(IoSlice::new(bytes));
    }

    /// What was added since the last call is a message.
    pub(super) fn end(&mut self) {
        self.ends.push(self.pieces.len());
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    fn message(&self, index: usize) -> &[IoSlice<'a>] {
        let start = index.checked_sub(1).map_or(0, |i| self.ends[i]);
        &self.pieces[start..self.ends[index]]
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sends messages from index `from` on, `BURST` at most, without waiting. Returns how many went.
pub(super) fn send_messages(
    fd: BorrowedFd<'_>,
    messages: &Messages<'_>,
    from: usize,
    to: Option<&UnixAddress>,
) -> io::Result<usize> {
    let count = messages.len().saturating_sub(from).min(BURST);
    let mut headers: [MaybeUninit<libc::mmsghdr>; BURST] = [const { MaybeUninit::uninit() }; BURST];
    for (i, header) in headers.iter_mut().take(count).enumerate() {
        header.write(libc::mmsghdr {
            msg_hdr: header_of(messages.message(from + i), to),
            msg_len: 0,
        });
    }
    // SAFETY: the first `count` headers are initialised; an IoSlice is an iovec (std's promise), and the
    // pieces and the address, which the kernel only reads, are borrowed until the call has returned.
    let sent = unsafe {
        libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr().cast(), count as u32, SEND_FLAGS)
    };
    check(sent).map(|n| n as usize)
}

/// Sends one message, without waiting.
pub(super) fn send_message(
    fd: BorrowedFd<'_>,
    pieces: &[IoSlice<'_>],
    to: Option<&UnixAddress>,
) -> io::Result<()> {
    let header = header_of(pieces, to);
    // SAFETY: the header is initialised, and what it points to is borrowed, as above.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, SEND_FLAGS) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const SEND_FLAGS: c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

fn header_of(pieces: &[IoSlice<'_>], to: Option<&UnixAddress>) -> libc::msghdr {
    // SAFETY: all zeros is a valid msghdr.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = pieces.as_ptr().cast_mut().cast();
    header.msg_iovlen = pieces.len();
    if let Some(to) = to {
        header.msg_name = (&raw const to.address).cast_mut().cast();
        header.msg_namelen = to.length;
    }
    header
}

/// What came with a message.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Received {
    pub length: usize,
    /// It was longer than its slot.
    pub truncated: bool,
    /// The VLAN tag that the kernel took off.
    pub vlan_tci: Option<u16>,
}

/// Room for the ancillary data of one message, aligned as its header wants.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Receives up to `max` messages into slots, from `offset` in each on, without waiting, and hands each slot
/// with what came in it to `each`. Returns how many came.
pub(super) fn receive_messages(
    fd: BorrowedFd<'_>,
    buffer: &mut RxBuffer,
    max: usize,
    offset: usize,
    with_control: bool,
    mut each: impl FnMut(&mut [u8], Received),
) -> io::Result<usize> {
    if max == 1 {
        return receive_message(fd, buffer, offset, with_control, each);
    }
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; BURST];
    let mut pieces = [const { MaybeUninit::<libc::iovec>::uninit() }; BURST];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BURST];
    let mut count = 0;
    for slot in buffer.slots().take(max.min(BURST)) {
        let piece = pieces[count].write(room(slot, offset));
        let control = with_control.then(|| controls[count].as_mut_ptr());
        headers[count].write(libc::mmsghdr { msg_hdr: empty_header(piece, control), msg_len: 0 });
        count += 1;
    }
    // SAFETY: the first `count` headers are initialised and point to slots, pieces and controls, which are
    // borrowed mutably or owned here and outlive the call.
    let result = unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count as u32,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    };
    let got = match check(result) {
        Ok(got) => got as usize,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
        Err(e) => return Err(e),
    };
    for (slot, header) in buffer.slots().zip(&headers[..got.min(count)]) {
        // SAFETY: initialised above, and filled in by the kernel since its index is below `got`.
        let message = unsafe { header.assume_init_ref() };
        each(slot, came(&message.msg_hdr, message.msg_len as usize, with_control));
    }
    Ok(got)
}

/// The same for one message, which costs less than an array of one.
fn receive_message(
    fd: BorrowedFd<'_>,
    buffer: &mut RxBuffer,
    offset: usize,
    with_control: bool,
    mut each: impl FnMut(&mut [u8], Received),
) -> io::Result<usize> {
    let Some(slot) = buffer.slots().next() else { return Ok(0) };
    let mut control = MaybeUninit::<Control>::uninit();
    let mut piece = room(slot, offset);
    let mut header = empty_header(&mut piece, with_control.then_some(control.as_mut_ptr()));
    // SAFETY: the header points to a slot, a piece and a control, borrowed mutably or owned here.
    let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
    if length < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(0) } else { Err(error) };
    }
    each(slot, came(&header, length as usize, with_control));
    Ok(1)
}

fn room(slot: &mut [u8], offset: usize) -> libc::iovec {
    let slot = slot.get_mut(offset..).unwrap_or_default();
    libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() }
}

fn empty_header(piece: &mut libc::iovec, control: Option<*mut Control>) -> libc::msghdr {
    // SAFETY: all zeros is a valid msghdr.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = piece;
    header.msg_iovlen = 1;
    if let Some(control) = control {
        header.msg_control = control.cast();
        header.msg_controllen = size_of::<Control>();
    }
    header
}

fn came(header: &libc::msghdr, length: usize, with_control: bool) -> Received {
    Received {
        length,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        vlan_tci: if with_control { vlan_tci(header) } else { None },
    }
}

fn vlan_tci(message: &libc::msghdr) -> Option<u16> {
    // SAFETY: the kernel filled in the control buffer, which `message` points to, and its length.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !control.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return whole headers inside the buffer, or null.
        let header = unsafe { &*control };
        // SAFETY: CMSG_LEN only computes.
        let needed = unsafe { libc::CMSG_LEN(size_of::<AuxData>() as u32) } as usize;
        if header.cmsg_level == libc::SOL_PACKET
            && header.cmsg_type == PACKET_AUXDATA
            && header.cmsg_len >= needed
        {
            // SAFETY: its data are an AuxData, whole by its length; they may lie unaligned.
            let data =
                unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(control).cast::<AuxData>()) };
            return (data.status & TP_STATUS_VLAN_VALID != 0).then_some(data.vlan_tci);
        }
        // SAFETY: `control` is a header inside the buffer of `message`.
        control = unsafe { libc::CMSG_NXTHDR(message, control) };
    }
    None
}

fn set_option(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: pointer and length of a live integer, which the kernel reads.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Asks for socket buffers of some bytes: as much as the system gives.
pub(super) fn set_buffers(fd: BorrowedFd<'_>, bytes: c_int) {
    for (force, ask) in
        [(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF), (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)]
    {
        if set_option(fd, libc::SOL_SOCKET, force, bytes).is_err() {
            let _ = set_option(fd, libc::SOL_SOCKET, ask, bytes);
        }
    }
}

/// An interface's name as the system's requests have it.
fn interface_request(name: &str) -> Result<libc::ifreq, OpenError> {
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(OpenError::BadName(name.to_owned()));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// What there is to know of an interface.
pub(super) struct Interface {
    pub index: c_int,
    pub mtu: usize,
    pub up: bool,
}

/// Looks an interface up.
pub(super) fn interface(name: &str) -> Result<Interface, OpenError> {
    let mut request = interface_request(name)?;
    // SAFETY: socket touches no memory.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    let socket = check(socket).map_err(OpenError::system("making a socket"))?;
    // SAFETY: a descriptor that was just made and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let mut ask = |what| {
        // SAFETY: the three requests used here read and write one ifreq.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), what, &raw mut request) };
        match check(result) {
            Ok(_) => Ok(request),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {
                Err(OpenError::NoInterface(name.to_owned()))
            }
            Err(e) => Err(OpenError::system(format!("interface {name}"))(e)),
        }
    };
    // SAFETY: SIOCGIFINDEX, SIOCGIFMTU and SIOCGIFFLAGS each fill in the member that is read; all of them
    // are plain integers.
    unsafe {
        Ok(Interface {
            index: ask(libc::SIOCGIFINDEX)?.ifr_ifru.ifru_ifindex,
            mtu: usize::try_from(ask(libc::SIOCGIFMTU)?.ifr_ifru.ifru_mtu).unwrap_or(0),
            up: c_int::from(ask(libc::SIOCGIFFLAGS)?.ifr_ifru.ifru_flags) & libc::IFF_UP != 0,
        })
    }
}

/// Opens a TAP device with virtio's header, making it if need be. Whether it also takes and gives long
/// frames of UDP.
pub(super) fn open_tap(name: &str) -> Result<(File, bool), OpenError> {
    let mut request = interface_request(name)?;
    let what = format!("TAP device {name}");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => OpenError::NoTun,
            io::ErrorKind::PermissionDenied => {
                OpenError::NotPermitted { what: what.clone(), needs: "access to /dev/net/tun" }
            }
            _ => OpenError::system("/dev/net/tun")(e),
        })?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    check(result).map_err(|e| match e.raw_os_error() {
        Some(libc::EPERM) => OpenError::NotPermitted {
            what: what.clone(),
            needs: "CAP_NET_ADMIN, or a device made for its user (`ip tuntap add … user NAME`)",
        },
        Some(libc::EBUSY) => OpenError::InUse {
            what: what.clone(),
            remedy: "give each process a TAP device of its own",
        },
        Some(libc::EINVAL) => OpenError::System {
            what: format!("{what}: it exists and is no TAP device, or one with several queues"),
            error: e,
        },
        _ => OpenError::system(what.clone())(e),
    })?;
    let offload = |flags: u32| {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe {
            libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags))
        })
        .is_ok()
    };
    let long = offload(libc::TUN_F_CSUM | libc::TUN_F_USO4 | libc::TUN_F_USO6);
    if !long {
        offload(libc::TUN_F_CSUM);
    }
    Ok((file, long))
}

/// Opens a packet socket on an interface. Whether it has virtio's header.
pub(super) fn open_packet(name: &str, interface: &Interface) -> Result<(OwnedFd, bool), OpenError> {
    let what = format!("a packet socket on {name}");
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Protocol 0: nothing comes before it is bound.
    // SAFETY: socket touches no memory.
    let socket = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) }).map_err(|e| {
        match e.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                OpenError::NotPermitted { what: what.clone(), needs: "CAP_NET_RAW" }
            }
            _ => OpenError::system(what.clone())(e),
        }
    })?;
    // SAFETY: a descriptor that was just made and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let fd = std::os::fd::AsFd::as_fd(&socket);
    let set = |name, value| set_option(fd, libc::SOL_PACKET, name, value);
    set(PACKET_IGNORE_OUTGOING, 1).map_err(OpenError::system(what.clone()))?;
    set(PACKET_AUXDATA, 1).map_err(OpenError::system(what.clone()))?;
    let vnet = set(PACKET_VNET_HDR, 1).is_ok();
    if !vnet {
        let _ = set(PACKET_QDISC_BYPASS, 1);
    }
    // Frames for the devices' MAC addresses are not for the interface's own.
    // SAFETY: all zeros is a valid packet_mreq.
    let mut membership: libc::packet_mreq = unsafe { zeroed() };
    membership.mr_ifindex = interface.index;
    membership.mr_type = libc::PACKET_MR_PROMISC as libc::c_ushort;
    // SAFETY: pointer and length of a live structure, which the kernel reads.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const membership).cast(),
            size_of::<libc::packet_mreq>() as libc::socklen_t,
        )
    })
    .map_err(OpenError::system(what.clone()))?;
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = interface.index;
    // SAFETY: pointer and length of a live structure, which the kernel reads.
    check(unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    })
    .map_err(OpenError::system(what))?;
    Ok((socket, vnet))
}

/// A descriptor that is readable while any of some others is.
pub(super) struct Ready(OwnedFd);

impl Ready {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1 touches no memory.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: a descriptor that was just made and is nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn add(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: the kernel reads one live event.
        check(unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event)
        })
        .map(drop)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }
}

/// A counter that is readable while it is not 0.
pub(super) struct Bell(File);

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: eventfd touches no memory.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: a descriptor that was just made and is nobody else's.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    pub(super) fn ring(&self) {
        let _ = io::Write::write(&mut &self.0, &1u64.to_ne_bytes());
    }

    pub(super) fn quiet(&self) {
        let _ = io::Read::read(&mut &self.0, &mut [0; 8]);
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }
}

/// Readable some time after it was set.
pub(super) struct Alarm(File);

impl Alarm {
    pub(super) fn new() -> io::Result<Self> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: timerfd_create touches no memory.
        let fd = check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })?;
        // SAFETY: a descriptor that was just made and is nobody else's.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    pub(super) fn set(&self, after: Duration) {
        // Zero would switch it off.
        self.program(after.max(Duration::from_nanos(1)));
    }

    /// Neither rings nor will.
    pub(super) fn quiet(&self) {
        self.program(Duration::ZERO);
    }

    fn program(&self, after: Duration) {
        let value = libc::timespec {
            tv_sec: after.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(after.subsec_nanos() as i32),
        };
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = libc::itimerspec { it_interval: never, it_value: value };
        // SAFETY: the kernel reads one live itimerspec, and is told not to write the old one.
        unsafe {
            libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const setting, std::ptr::null_mut());
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }
}
