// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The objects of a device: PDs, MRs, CQs, QPs and so on, each ended when it is dropped.

use super::*;

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
        Ok(HostMr { at, live: true, _pd: self.clone(), host: self.host.clone() })
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

/// A memory region.
pub(crate) struct HostMr {
    at: NonNull<ibv_mr>,
    live: bool,
    _pd: Arc<HostPd>,
    host: Arc<Host>,
}

// SAFETY: as for `Host`.
unsafe impl Send for HostMr {}
// SAFETY: as above.
unsafe impl Sync for HostMr {}

impl Drop for HostMr {
    fn drop(&mut self) {
        let errno = self.dereg();
        if errno != 0 {
            log::warn!("{}: dereg_mr: errno {errno}", self.host.name);
        }
    }
}

impl HostMr {
    /// Ends it, unless it has ended; 0, or an errno. With a dead device it has.
    fn dereg(&mut self) -> i32 {
        if !std::mem::take(&mut self.live) {
            return 0;
        }
        // SAFETY: the MR is this value's, and it has not been ended.
        let errno = errno_of(unsafe { (self.host.lib.dereg_mr)(self.at.as_ptr()) });
        if self.host.is_dead() { 0 } else { errno }
    }

    /// Ends it now.
    ///
    /// # Errors
    /// The MR, and the errno: a window is bound to it.
    pub(crate) fn end(mut self) -> std::result::Result<(), (Self, i32)> {
        match self.dereg() {
            0 => Ok(()),
            errno => {
                self.live = true;
                Err((self, errno))
            }
        }
    }

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
