// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A region of guest memory, mapped by us: it lives as long as somebody holds it, whatever the
//! front end does to its table. Not here: which regions there are (`memory.rs`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use rdma_midlayer::memory::Mapping;

use crate::sigbus::Watch;

/// What makes two regions the same memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    guest_start: u64,
    len: u64,
    device: u64,
    inode: u64,
    offset: u64,
}

impl Identity {
    /// That of no region.
    pub const NOWHERE: Self = Self { guest_start: 0, len: 0, device: 0, inode: 0, offset: 0 };
}

/// A region of guest-physical memory, mapped shared, readable and writable.
pub struct GuestRegion {
    identity: Identity,
    file: Arc<File>,
    map: NonNull<u8>,
    map_len: usize,
    base: NonNull<u8>,
    watch: Option<Watch>,
}

// SAFETY: the addresses point to a shared mapping that the value owns and that no reference is made
// into; who reads and writes through them tolerates other writers (`rdma_midlayer::memory`).
unsafe impl Send for GuestRegion {}
// SAFETY: as above.
unsafe impl Sync for GuestRegion {}

/// Bytes by which each mapping is shifted against the one before it: two that lie exactly a power of
/// two apart make copies between equal offsets two to three times slower (same sets of the cache).
const STAGGER: usize = 0x11_000;
const ALIGN: usize = 2 << 20;

impl GuestRegion {
    /// What the region would be identified by.
    ///
    /// # Errors
    /// What `fstat` answers.
    pub fn identify(file: &File, offset: u64, guest_start: u64, len: u64) -> io::Result<Identity> {
        let meta = file.metadata()?;
        Ok(Identity { guest_start, len, device: meta.dev(), inode: meta.ino(), offset })
    }

    /// Maps `len` bytes of `file` from `offset`. `nth` counts regions, to stagger them.
    ///
    /// # Errors
    /// If the file is too short (an access would be a SIGBUS), or what `mmap` answers.
    pub fn map(
        file: Arc<File>,
        offset: u64,
        guest_start: u64,
        len: u64,
        nth: usize,
    ) -> io::Result<Self> {
        let identity = Self::identify(&file, offset, guest_start, len)?;
        let file_len = file.metadata()?.len();
        let end = offset.checked_add(len).filter(|end| *end <= file_len && len > 0);
        let (Some(_), Some(_)) = (end, guest_start.checked_add(len)) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "memory region of {len} bytes at offset {offset} of a file of {file_len} bytes"
                ),
            ));
        };
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        // Huge pages want their own alignment; then the stagger has to go.
        let page = block_size(&file)?.max(4096) as usize;
        let huge = page >= ALIGN;
        let pad = if len >= ALIGN { ALIGN + (nth % 16) * STAGGER } else { 0 };
        // Reserve, then put the file at a huge-page boundary plus the stagger, if it is large.
        let map_len = len.checked_add(pad).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh private reservation; nothing is replaced.
        let map = unsafe {
            libc::mmap(
                null_mut(),
                map_len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = if pad == 0 {
            map
        } else {
            // A multiple of the page size that a file of huge pages may have.
            let start = map as usize;
            let aligned = start.next_multiple_of(ALIGN) - start;
            let at = if huge { aligned } else { aligned + (nth % 16) * STAGGER };
            // SAFETY: `at < ALIGN + stagger <= pad`, so it stays in the reservation.
            unsafe { map.byte_add(at) }
        };
        // SAFETY: the target lies in the reservation just made, which nobody else knows of.
        let base = unsafe {
            libc::mmap(
                at,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if base == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            // SAFETY: the reservation made above.
            unsafe { libc::munmap(map, map_len) };
            return Err(error);
        }
        let (Some(map), Some(base)) =
            (NonNull::new(map.cast::<u8>()), NonNull::new(base.cast::<u8>()))
        else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        let watch = Some(watch(&file, base.as_ptr(), len)?);
        Ok(Self { identity, file, map, map_len, base, watch })
    }

    /// What makes it the same memory as another.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Guest-physical address of the first byte.
    pub fn guest_start(&self) -> u64 {
        self.identity.guest_start
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.identity.len
    }

    /// Whether the file can be made shorter under us (see `sigbus.rs`).
    pub fn may_shrink(&self) -> bool {
        // SAFETY: fcntl on a descriptor that we own, without pointers.
        let seals = unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_GET_SEALS) };
        seals < 0 || seals & libc::F_SEAL_SHRINK == 0
    }
}

/// Saves the daemon from a SIGBUS in a mapping of a VM's memory file, ours or a crate's, while the
/// result lives.
///
/// # Errors
/// What `fstat` answers.
pub fn watch(file: &File, base: *mut u8, len: usize) -> io::Result<Watch> {
    let page = block_size(file)?.max(4096) as usize;
    // Ordinary file systems call more than a page a block.
    Ok(Watch::new(base, len, if page >= ALIGN { page } else { 4096 }))
}

/// The page size of the file system that the file is on: that of the huge pages on hugetlbfs.
fn block_size(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blksize())
}

impl GuestRegion {
    /// Whether the file was made shorter and pages of it are lost.
    pub fn is_broken(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::is_broken)
    }
}

impl Drop for GuestRegion {
    fn drop(&mut self) {
        // Before the addresses can belong to somebody else.
        drop(self.watch.take());
        // SAFETY: the whole reservation, ours alone; `Mapping` holders keep the value alive.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.map_len) };
    }
}

// SAFETY: `map` made `len` bytes from `base` readable and writable, and they are unmapped on drop only.
unsafe impl Mapping for GuestRegion {
    fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    fn len(&self) -> usize {
        self.identity.len as usize
    }

    fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        Some((self.file.as_fd(), self.identity.offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    #[test]
    fn a_file_that_shrinks_spoils_its_own_pages_and_ends_nothing() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let shared = Arc::new(file.try_clone().unwrap());
        let region = GuestRegion::map(shared, 0, 0, 8192, 0).unwrap();
        file.set_len(4096).unwrap();
        // SAFETY: inside the mapping; the second page has lost its file.
        unsafe {
            region.base().write_volatile(1);
            assert!(!region.is_broken());
            region.base().add(5000).write_volatile(2);
            assert_eq!(region.base().add(5000).read_volatile(), 2);
            assert_eq!(region.base().read_volatile(), 1);
        }
        assert!(region.is_broken());
    }

    #[test]
    fn a_region_is_the_files_own_memory_and_no_longer_than_it() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 3 << 20]).unwrap();
        let shared = Arc::new(file.try_clone().unwrap());
        for nth in 0..3 {
            let region = GuestRegion::map(shared.clone(), 4096, 0, 2 << 20, nth).unwrap();
            // SAFETY: inside the mapping just made; nobody else writes it.
            unsafe {
                assert_eq!(region.base().read_volatile(), 7);
                region.base().write_volatile(9);
            }
            let mut byte = [0];
            file.seek(io::SeekFrom::Start(4096)).unwrap();
            file.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [9]);
            file.seek(io::SeekFrom::Start(4096)).unwrap();
            file.write_all(&[7]).unwrap();
            assert!(region.may_shrink(), "a plain file has no seals");
        }
        assert!(GuestRegion::map(shared.clone(), 4096, 0, 3 << 20, 0).is_err(), "beyond the end");
        assert!(GuestRegion::map(shared, 0, u64::MAX, 4096, 0).is_err(), "wraps");
    }
}
