// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory for `ibv_reg_mr_iova`: one range of this process's addresses that shows the pages of
//! an MR in order, for as long as registering takes. Memory that lies together already is taken where
//! it is.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;
use std::sync::Arc;

use rdma_midlayer::memory::{Mapping, Run};
use rdma_midlayer::{Error, Result};

const PAGE: u64 = 4096;

/// An address range that shows runs of memory one after the other.
pub(crate) struct Range {
    first: *mut u8,
    /// What to unmap, if it was made for this.
    made: Option<(*mut u8, usize)>,
    _held: Option<Arc<dyn Mapping>>,
}

impl Range {
    /// A range that shows the parts, the first byte at an address that is congruent to `start` modulo
    /// the page. Only the first part may begin, and only the last may end, inside a page. May sleep.
    ///
    /// # Errors
    /// `Limit` names `vm.max_map_count` when that is what was reached; `Invalid` for memory that can't
    /// be shown so: without a file, of huge pages cut in pieces, of another offset in its page.
    pub(crate) fn of(start: u64, parts: &[Run]) -> Result<Self> {
        let [first, rest @ ..] = parts else { return Err(Error::Invalid("no memory")) };
        if rest.is_empty() {
            // SAFETY: `UserMemory` checked that the run lies inside its mapping.
            let at = unsafe { first.mapping.base().add(first.offset) };
            if at as u64 % PAGE != start % PAGE {
                return Err(Error::Invalid(
                    "the address and the memory differ in their offset in a page",
                ));
            }
            return Ok(Self { first: at, made: None, _held: Some(first.mapping.clone()) });
        }
        Self::joined(start, parts, parts.iter().map(page_of).max().unwrap_or(PAGE))
    }

    /// The same of several parts, in files whose largest page has `page` bytes.
    fn joined(start: u64, parts: &[Run], page: u64) -> Result<Self> {
        let [first, ..] = parts else { return Err(Error::Invalid("no memory")) };
        let (_, file_start) =
            first.mapping.file().ok_or(Error::Invalid("scattered memory without a file"))?;
        let head = (file_start + first.offset as u64) % page;
        if head % PAGE != start % PAGE {
            return Err(Error::Invalid(
                "the address and the memory differ in their offset in a page",
            ));
        }
        let bytes: u64 = parts.iter().map(|p| p.len as u64).sum();
        // Room to begin where a page of the files may.
        let span = ((head + bytes).next_multiple_of(page) + (page - PAGE)) as usize;
        // SAFETY: a fresh private reservation; nothing is replaced.
        let reserved = unsafe {
            libc::mmap(
                null_mut(),
                span,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if reserved == libc::MAP_FAILED {
            return Err(map_error());
        }
        let reserved = reserved.cast::<u8>();
        let base = reserved.wrapping_add((reserved as u64).wrapping_neg() as usize % page as usize);
        // From here on it is unmapped whatever happens.
        let first = base.wrapping_add(head as usize);
        let range = Self { first, made: Some((reserved, span)), _held: None };
        let mut at = head;
        for (nth, part) in parts.iter().enumerate() {
            let (fd, file_start) =
                part.mapping.file().ok_or(Error::Invalid("scattered memory without a file"))?;
            let offset = file_start + part.offset as u64;
            let end = at + part.len as u64;
            if offset % page != at % page || (nth + 1 < parts.len() && !end.is_multiple_of(page)) {
                return Err(Error::Invalid(if page == PAGE {
                    "pieces of memory that are not pages"
                } else {
                    "pieces of huge pages: an MR of scattered small pages needs guest memory of small pages"
                }));
            }
            let within = at % page;
            // SAFETY: the target lies in the reservation above, which only this function knows of.
            let mapped = unsafe {
                libc::mmap(
                    base.add((at - within) as usize).cast(),
                    (within + part.len as u64).next_multiple_of(page) as usize,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    fd.as_raw_fd(),
                    (offset - within) as libc::off_t,
                )
            };
            if mapped == libc::MAP_FAILED {
                return Err(map_error());
            }
            at = end;
        }
        Ok(range)
    }

    /// Address of the first byte.
    pub(crate) fn first(&self) -> *mut u8 {
        self.first
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Some((base, len)) = self.made {
            // SAFETY: the reservation of `of`, which nobody else knows of.
            unsafe { libc::munmap(base.cast(), len) };
        }
    }
}

/// Bytes of a page of the file that a run lies in.
fn page_of(run: &Run) -> u64 {
    let Some((fd, _)) = run.mapping.file() else { return PAGE };
    // SAFETY: integers alone: all zeros is a value.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor; the call fills the structure.
    let answer = unsafe { libc::fstatfs(fd.as_raw_fd(), &mut about) };
    let huge = answer == 0 && about.f_type == libc::HUGETLBFS_MAGIC;
    let page = u64::try_from(about.f_bsize).unwrap_or(PAGE);
    if huge && page.is_power_of_two() { page.max(PAGE) } else { PAGE }
}

fn map_error() -> Error {
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::ENOMEM) => Error::Limit(
            "maps of the daemon: the MR lies in too many pieces; raise sysctl vm.max_map_count, or give \
             the guest huge pages",
        ),
        errno => Error::Host(errno.unwrap_or(libc::EIO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsFd, BorrowedFd, FromRawFd};

    struct Memfd {
        file: File,
        base: *mut u8,
        len: usize,
    }

    // SAFETY: a shared mapping that lives as long as the value.
    unsafe impl Send for Memfd {}
    // SAFETY: as above.
    unsafe impl Sync for Memfd {}
    // SAFETY: `new` mapped `len` bytes, which are never unmapped.
    unsafe impl Mapping for Memfd {
        fn base(&self) -> *mut u8 {
            self.base
        }
        fn len(&self) -> usize {
            self.len
        }
        fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
            Some((self.file.as_fd(), 0))
        }
    }

    fn memfd(pages: usize) -> Arc<Memfd> {
        let len = pages * 4096;
        // SAFETY: a new descriptor, then a new mapping of it; each page gets its number.
        unsafe {
            let fd = libc::memfd_create(c"range".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0);
            let file = File::from_raw_fd(fd);
            file.set_len(len as u64).unwrap();
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let base = libc::mmap(null_mut(), len, prot, libc::MAP_SHARED, fd, 0).cast::<u8>();
            for page in 0..pages {
                base.add(page * 4096).write_bytes(page as u8, 4096);
            }
            Arc::new(Memfd { file, base, len })
        }
    }

    fn run(memory: &Arc<Memfd>, offset: usize, len: usize) -> Run {
        Run { mapping: memory.clone(), offset, len }
    }

    #[test]
    fn scattered_pages_appear_in_order_and_as_themselves() {
        let memory = memfd(8);
        let parts = [
            run(&memory, 6 * 4096 + 100, 3996),
            run(&memory, 2 * 4096, 8192),
            run(&memory, 4096, 10),
        ];
        let range = Range::of(0x5_0064, &parts).unwrap();
        assert_eq!(range.first() as usize % 4096, 100);
        let byte = |at: usize| {
            // SAFETY: inside what the range shows.
            unsafe { range.first().add(at).read_volatile() }
        };
        assert_eq!(
            [byte(0), byte(3995), byte(3996), byte(3996 + 4096), byte(3996 + 8192)],
            [6, 6, 2, 3, 1]
        );
        // SAFETY: as above; the page is the file's own.
        unsafe { range.first().write_volatile(99) };
        // SAFETY: inside the mapping of the whole.
        assert_eq!(unsafe { memory.base.add(6 * 4096 + 100).read_volatile() }, 99);
    }

    #[test]
    fn huge_pages_appear_in_order_whole() {
        // As if pages had four times their size: what is mapped begins and ends with them.
        let memory = memfd(16);
        let huge = 4 * PAGE;
        let parts = [
            run(&memory, 9 * 4096 + 50, 3 * 4096 - 50),
            run(&memory, 0, 4 * 4096),
            run(&memory, 4 * 4096, 5000),
        ];
        let range = Range::joined(0x7000_0032, &parts, huge).unwrap();
        assert_eq!(range.first() as u64 % huge, PAGE + 50);
        let byte = |at: usize| {
            // SAFETY: inside what the range shows.
            unsafe { range.first().add(at).read_volatile() }
        };
        let second = 3 * 4096 - 50;
        assert_eq!(
            [byte(0), byte(second - 1), byte(second), byte(second + 16384 + 4999)],
            [9, 11, 0, 5]
        );
        // A piece of such a page, or pieces of two of them.
        for wrong in [
            [run(&memory, 0, 4096), run(&memory, 4 * 4096, 4096)],
            [run(&memory, 0, 4 * 4096), run(&memory, 5 * 4096, 4096)],
        ] {
            assert!(matches!(Range::joined(0, &wrong, huge), Err(Error::Invalid(_))));
        }
    }

    #[test]
    fn memory_that_lies_together_is_taken_where_it_is() {
        let memory = memfd(3);
        let range = Range::of(0x7000_0010, &[run(&memory, 4096 + 16, 5000)]).unwrap();
        assert_eq!(range.first(), memory.base.wrapping_add(4096 + 16));
        assert!(Range::of(0x7000_0011, &[run(&memory, 4096 + 16, 5000)]).is_err());
    }

    #[test]
    fn pieces_that_are_not_pages_are_refused() {
        let memory = memfd(3);
        assert!(Range::of(0, &[run(&memory, 0, 100), run(&memory, 4096, 100)]).is_err());
        assert!(Range::of(0, &[run(&memory, 0, 4096), run(&memory, 4100, 100)]).is_err());
        assert!(Range::of(0, &[]).is_err());
    }
}
