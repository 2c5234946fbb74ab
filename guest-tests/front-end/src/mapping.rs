// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mapped guest memory and the fence: the only `unsafe` code of this crate. Everything here is
//! checked against the mapping's bounds; what the bytes mean is decided elsewhere.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use vm_memory::VolatileSlice;

/// A range of this process' address space that shows guest memory, unmapped when dropped. The
/// device may change the bytes at any time, so they are only copied or accessed atomically.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a `Mapping` owns its address range, and all access through it is atomic or volatile, so
// any thread may use it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps pieces of files, one behind the other, as a process sees scattered physical pages.
    /// Each is (file, offset, bytes), in whole pages.
    pub fn of_pieces(pieces: &[(&File, u64, usize)]) -> io::Result<Self> {
        let len: usize = pieces.iter().map(|piece| piece.2).sum();
        // SAFETY: without MAP_FIXED, a new anonymous mapping touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        let mapping = Self { base, len };
        let mut at = 0;
        for &(file, offset, bytes) in pieces {
            let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
            // SAFETY: `at + bytes <= len`, so MAP_FIXED replaces only pages that the reservation
            // above made, which nobody else knows of.
            let placed = unsafe {
                libc::mmap(
                    base.as_ptr().add(at).cast(),
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    file.as_raw_fd(),
                    offset,
                )
            };
            if placed == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            at += bytes;
        }
        Ok(mapping)
    }

    /// Address of the first byte in this process.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The 16-bit word at a byte offset. Panics out of bounds or unaligned, as indexing does.
    #[inline(always)]
    pub fn u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `word` checked bounds and alignment, and the mapping lives as long as `self`.
        unsafe { AtomicU16::from_ptr(self.word::<u16>(offset)) }
    }

    /// The 32-bit word at a byte offset. Panics out of bounds or unaligned.
    #[inline(always)]
    pub fn u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as in `u16`.
        unsafe { AtomicU32::from_ptr(self.word::<u32>(offset)) }
    }

    /// The 64-bit word at a byte offset. Panics out of bounds or unaligned.
    #[inline(always)]
    pub fn u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `u16`.
        unsafe { AtomicU64::from_ptr(self.word::<u64>(offset)) }
    }

    /// Eight words of a 64-byte line, the last with acquire order and only if `ready` says so of
    /// it. Panics out of bounds or unaligned.
    #[inline(always)]
    pub fn load_line(&self, offset: usize, ready: impl FnOnce(u64) -> bool) -> Option<[u64; 8]> {
        assert!(offset.is_multiple_of(64) && offset < self.len && self.len - offset >= 64);
        let first = self.base.as_ptr().wrapping_add(offset).cast::<u64>();
        let word = |n: usize| {
            // SAFETY: 64 bytes from the aligned `offset` were checked to lie in the mapping.
            unsafe { AtomicU64::from_ptr(first.add(n)) }
        };
        let last = word(7).load(Ordering::Acquire);
        if !ready(last) {
            return None;
        }
        let mut line = [0; 8];
        for (n, slot) in line.iter_mut().enumerate().take(7) {
            *slot = word(n).load(Ordering::Relaxed);
        }
        line[7] = last;
        Some(line)
    }

    /// Copies bytes out. Panics out of bounds.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        self.slice(offset, out.len()).copy_to(out);
    }

    /// Copies bytes in. Panics out of bounds.
    #[inline]
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.slice(offset, bytes.len()).copy_from(bytes);
    }

    #[inline]
    fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_> {
        assert!(offset <= self.len && len <= self.len - offset, "outside the mapping");
        // SAFETY: the range lies in the mapping, which outlives the borrow of `self`.
        unsafe { VolatileSlice::new(self.base.as_ptr().add(offset), len) }
    }

    #[inline(always)]
    fn word<T>(&self, offset: usize) -> *mut T {
        let size = size_of::<T>();
        assert!(offset < self.len && self.len - offset >= size && offset.is_multiple_of(size));
        self.base.as_ptr().wrapping_add(offset).cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this object's own, and no borrow of it is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A full fence, as the doorbell protocol wants between storing and looking. On x86 a locked
/// instruction does it in half the time of `mfence`.
#[inline(always)]
pub fn full_fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a locked `or` of 0 changes nothing; it orders all memory accesses, and the block is
    // not declared free of memory effects, so the compiler does not move any across it.
    unsafe {
        std::arch::asm!("lock or dword ptr [rsp], 0");
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// Makes a memfd of `len` bytes; sealed against growing and shrinking if asked.
pub fn memfd(len: u64, seal: bool) -> io::Result<File> {
    use std::os::fd::FromRawFd;
    // SAFETY: the name is a terminated string, and no other memory is passed.
    let fd = unsafe {
        libc::memfd_create(c"guest-memory".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and belongs to nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    if seal {
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: F_ADD_SEALS takes an integer.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(file)
}

/// Waits until the file descriptor is readable; false at the time-out.
pub fn wait_readable(fd: &impl AsRawFd, timeout: std::time::Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: one valid pollfd, and a valid timespec.
    let ready = unsafe { libc::ppoll(&mut poll, 1, &timeout, std::ptr::null()) };
    match ready {
        -1 => {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) }
        }
        n => Ok(n > 0),
    }
}

/// Another handle of the socket behind a value that lends only its number.
pub fn clone_socket(of: &impl AsRawFd) -> io::Result<std::os::unix::net::UnixStream> {
    // SAFETY: `of` keeps its file descriptor open for as long as it is borrowed here.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(of.as_raw_fd()) };
    Ok(fd.try_clone_to_owned()?.into())
}
