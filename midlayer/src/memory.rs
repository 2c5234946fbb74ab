// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Consumer memory that an HCA reads and writes: resolved once into host addresses, so that an access
//! is a bounds check and an index. The only place where data moves; all stores pass through here.
//!
//! The memory is shared with others that write it at any time (a guest, a process): what is read is a
//! copy, and no reference into it ever exists.

use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

mod builder;
mod copy;
mod lines;
mod on_demand;

pub use on_demand::{PageRange, Paging};

pub use builder::{Builder, PageBuilder};
use copy::{Bulk, LONG, copy, copy_tail, tail};
pub use lines::{Lines, LinesView, Stretch};

/// A range of this process's address space that holds consumer memory.
///
/// # Safety
/// From `base` on, `len` bytes are mapped readable and writable for as long as the value lives.
pub unsafe trait Mapping: Send + Sync {
    /// The first byte.
    fn base(&self) -> *mut u8;
    /// Bytes.
    fn len(&self) -> usize;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The file behind it, and where in that the mapping begins: for drivers that map it again.
    fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        None
    }
}

/// An access beyond what was registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("outside the registered memory")]
pub struct OutOfRange;

/// Part of a mapping.
#[derive(Clone)]
pub struct Run {
    /// The mapping.
    pub mapping: Arc<dyn Mapping>,
    /// Bytes from its start.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

/// Memory under one address range of the consumer's: what an MR covers, or a ring lies in.
pub struct UserMemory {
    start: u64,
    length: u64,
    layout: Layout,
    sparse: bool,
    /// Keeps every mapping that `layout` points into.
    mappings: Vec<Arc<dyn Mapping>>,
    runs: Vec<RunInfo>,
}

/// Where a run came from, for drivers that map the memory again.
#[derive(Clone, Copy, Debug)]
struct RunInfo {
    mapping: usize,
    offset: usize,
    len: usize,
}

enum Layout {
    /// One run of host addresses.
    Contiguous(*mut u8),
    /// Pages of `1 << shift` bytes; the first byte lies `offset` into the first.
    Paged { shift: u8, offset: u64, pages: Box<[*mut u8]> },
    /// Few runs of any length, with or without holes between them: offset of the first byte, bytes,
    /// host address.
    Runs(Box<[(u64, u64, *mut u8)]>),
    /// Pages that come and go; the first byte lies `offset` into the first.
    OnDemand { offset: u64, paging: Arc<Paging> },
}

// SAFETY: the pointers point into mappings that are `Send + Sync` and are kept alive; all access
// through them is by copies that tolerate concurrent writers.
unsafe impl Send for UserMemory {}
// SAFETY: as above.
unsafe impl Sync for UserMemory {}

impl UserMemory {
    /// Memory that appears at `start`, `length` bytes long, made of `runs` in order, the first byte
    /// `offset` bytes into the first run. If `page_shift` is given, every run is a multiple of such
    /// pages long (the last may be cut) and look-up takes constant time however many there are.
    ///
    /// # Errors
    /// `OutOfRange` if a run exceeds its mapping, or the runs are too short for `length`.
    pub fn new(
        start: u64,
        length: u64,
        offset: u64,
        page_shift: Option<u8>,
        runs: impl IntoIterator<Item = Run>,
    ) -> Result<Self, OutOfRange> {
        let mut builder = Builder::new();
        for run in runs {
            builder.push(&run.mapping, run.offset, run.len)?;
        }
        builder.finish(start, length, offset, page_shift)
    }

    /// Memory that appears at several places, sorted by address, with holes between them that belong
    /// to nothing: (address, where it is).
    ///
    /// # Errors
    /// `OutOfRange` if a run exceeds its mapping, they overlap, or there are none.
    pub fn sparse(places: impl IntoIterator<Item = (u64, Run)>) -> Result<Self, OutOfRange> {
        let mut builder = Builder::new();
        let mut found: Vec<(u64, u64, *mut u8)> = Vec::new();
        for (address, run) in places {
            let len = run.len as u64;
            let free = found.last().map_or(0, |(first, len, _)| first + len);
            if address < free || address.checked_add(len).is_none() {
                return Err(OutOfRange);
            }
            builder.push(&run.mapping, run.offset, run.len)?;
            // SAFETY: `push` checked that the run lies inside its mapping.
            found.push((address, len, unsafe { run.mapping.base().add(run.offset) }));
        }
        let (Some((start, ..)), Some((last, last_len, _))) = (found.first(), found.last()) else {
            return Err(OutOfRange);
        };
        let (start, length) = (*start, last + last_len - start);
        found.iter_mut().for_each(|(first, ..)| *first -= start);
        let layout = Layout::Runs(found.into());
        let Builder { mappings, runs, .. } = builder;
        Ok(Self { start, length, layout, sparse: true, mappings, runs })
    }

    /// Memory on demand that appears at `start`, `length` bytes long; the first byte lies `offset` into
    /// page 0 of `paging`. What reads and writes it must be inside an `rcu` guard from the moment on that
    /// `missing` found the pages there; else they may be used after they were taken away.
    ///
    /// # Errors
    /// `OutOfRange` if the bytes are more than the pages.
    pub fn on_demand(
        start: u64,
        length: u64,
        offset: u64,
        paging: Arc<Paging>,
    ) -> Result<Self, OutOfRange> {
        let last =
            offset.checked_add(length.checked_sub(1).ok_or(OutOfRange)?).ok_or(OutOfRange)?;
        if start.checked_add(length).is_none() || last >> paging.shift() >= paging.pages() {
            return Err(OutOfRange);
        }
        let layout = Layout::OnDemand { offset, paging };
        Ok(Self { start, length, layout, sparse: false, mappings: Vec::new(), runs: Vec::new() })
    }

    /// The table of its pages, if it is memory on demand.
    pub fn paging(&self) -> Option<&Arc<Paging>> {
        match &self.layout {
            Layout::OnDemand { paging, .. } => Some(paging),
            _ => None,
        }
    }

    /// Which pages are missing under some bytes that lie inside: `None` if all are there, or it is not
    /// memory on demand. Never sleeps; takes time in proportion to the pages.
    #[inline]
    pub fn missing(&self, addr: u64, len: u64, write: bool) -> Option<PageRange> {
        match &self.layout {
            Layout::OnDemand { offset, paging } if len > 0 && self.contains(addr, len) => {
                paging.missing(addr - self.start + offset, len, write)
            }
            _ => None,
        }
    }

    /// Whether some bytes lie inside and their pages are there.
    #[inline]
    fn permits(&self, addr: u64, len: u64, write: bool) -> bool {
        self.contains(addr, len)
            && match &self.layout {
                Layout::OnDemand { offset, paging } => {
                    paging.permits(addr - self.start + offset, len, write)
                }
                _ => true,
            }
    }

    /// The consumer's address of the first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether `len` bytes at `addr` lie inside.
    #[inline]
    pub fn contains(&self, addr: u64, len: u64) -> bool {
        let Some(at) = addr.checked_sub(self.start) else { return false };
        match at.checked_add(len) {
            Some(end) if end <= self.length => match &self.layout {
                Layout::Runs(runs) => covered(runs, at, end),
                _ => true,
            },
            _ => false,
        }
    }

    /// The mappings and byte ranges that it is made of, coalesced, in order.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let run = |r: RunInfo| Run {
            mapping: self.mappings[r.mapping].clone(),
            offset: r.offset,
            len: r.len,
        };
        self.runs.iter().copied().chain(self.runs_of_pages()).map(run)
    }

    /// The mappings that it is made of, each once.
    pub fn mappings(&self) -> &[Arc<dyn Mapping>] {
        &self.mappings
    }

    /// The runs of a page list that `PageBuilder` made: it keeps the pages only.
    fn runs_of_pages(&self) -> impl Iterator<Item = RunInfo> + '_ {
        let (pages, page): (&[*mut u8], usize) = match &self.layout {
            Layout::Paged { pages, shift, .. } if self.runs.is_empty() => (pages, 1 << shift),
            _ => (&[], 0),
        };
        let found = move |at: *mut u8| {
            self.mappings.iter().enumerate().find_map(|(mapping, m)| {
                let offset = (at as usize).checked_sub(m.base() as usize)?;
                (offset < m.len()).then_some(RunInfo { mapping, offset, len: page })
            })
        };
        let mut pages = pages.iter().filter_map(move |at| found(*at)).peekable();
        std::iter::from_fn(move || {
            let mut run = pages.next()?;
            let follows = |run: RunInfo, next: &RunInfo| {
                next.mapping == run.mapping && next.offset == run.offset + run.len
            };
            while pages.next_if(|next| follows(run, next)).is_some() {
                run.len += page;
            }
            Some(run)
        })
    }

    /// Where its bytes are: each part's address in the consumer's terms, and the part, in order. Parts
    /// are as long as they can be, and cover what `contains` allows and no more. For drivers that give
    /// the memory to an HCA.
    pub fn places(&self) -> Vec<(u64, Run)> {
        if let Layout::Runs(found) = &self.layout {
            let place = |(first, len, at): &(u64, u64, *mut u8)| {
                let mapping = self.mappings.iter().find_map(|mapping| {
                    let offset = (*at as usize).checked_sub(mapping.base() as usize)?;
                    (offset < mapping.len()).then_some((mapping, offset))
                });
                let len = (*len).min(self.length - first) as usize;
                mapping.map(|(mapping, offset)| {
                    (self.start + first, Run { mapping: mapping.clone(), offset, len })
                })
            };
            return found
                .iter()
                .filter(|(first, ..)| *first < self.length)
                .filter_map(place)
                .collect();
        }
        let mut skip = match &self.layout {
            Layout::Paged { offset, .. } => *offset,
            Layout::Contiguous(at) => {
                let run = self
                    .runs
                    .first()
                    .map(|r| self.mappings[r.mapping].base().wrapping_add(r.offset));
                run.map_or(0, |run| *at as u64 - run as u64)
            }
            Layout::Runs(_) | Layout::OnDemand { .. } => 0,
        };
        let mut places = Vec::new();
        let mut done = 0;
        for mut run in self.runs() {
            let skipped = skip.min(run.len as u64);
            skip -= skipped;
            run.offset += skipped as usize;
            run.len = (run.len as u64 - skipped).min(self.length - done) as usize;
            if run.len > 0 {
                let len = run.len as u64;
                places.push((self.start + done, run));
                done += len;
            }
        }
        places
    }

    /// Whether it was made with `sparse`: it may have holes, and keys to it are keys to several parts.
    pub fn is_sparse(&self) -> bool {
        self.sparse
    }

    /// Reads bytes. Never sleeps.
    #[inline]
    pub fn read(&self, addr: u64, to: &mut [u8]) -> Result<(), OutOfRange> {
        if let Some(from) = self.host_address(addr, to.len() as u64) {
            // SAFETY: `host_address` gives as many bytes of a live mapping; `to` is ours.
            unsafe { copy(to.as_mut_ptr(), from, to.len()) };
            return Ok(());
        }
        self.read_pieces(addr, to)
    }

    fn read_pieces(&self, addr: u64, to: &mut [u8]) -> Result<(), OutOfRange> {
        let mut done = 0;
        self.pieces(addr, to.len() as u64, false, |from, len| {
            // SAFETY: `pieces` gives addresses inside live mappings; `to` is ours and long enough.
            unsafe { copy(to.as_mut_ptr().add(done), from, len) };
            done += len;
        })
    }

    /// Writes bytes; the last ones become visible last. Never sleeps.
    #[inline]
    pub fn write(&self, addr: u64, from: &[u8]) -> Result<(), OutOfRange> {
        if let Some(to) = self.host_address(addr, from.len() as u64) {
            // SAFETY: as in `read`, the other way round.
            unsafe { copy(to, from.as_ptr(), from.len()) };
            return Ok(());
        }
        self.write_pieces(addr, from)
    }

    fn write_pieces(&self, addr: u64, from: &[u8]) -> Result<(), OutOfRange> {
        let mut done = 0;
        self.pieces(addr, from.len() as u64, true, |to, len| {
            // SAFETY: as in `read`, the other way round.
            unsafe { copy(to, from.as_ptr().add(done), len) };
            done += len;
        })
    }

    /// Copies `len` bytes from `from` to here: one copy, the last bytes visible last. Never sleeps;
    /// the caller bounds `len`.
    pub fn copy_from(
        &self,
        addr: u64,
        from: &UserMemory,
        from_addr: u64,
        len: u64,
    ) -> Result<(), OutOfRange> {
        if !from.permits(from_addr, len, false) || !self.permits(addr, len, true) {
            return Err(OutOfRange);
        }
        if len == 0 {
            return Ok(());
        }
        let (to, to_contiguous) = self.locate(addr - self.start);
        let (source, contiguous) = from.locate(from_addr - from.start);
        if len <= to_contiguous.min(contiguous) && len < LONG as u64 {
            // SAFETY: `locate` gives addresses inside live mappings, and how much lies behind them.
            unsafe { copy(to, source, len as usize) };
            return Ok(());
        }
        self.copy_pieces(addr, from, from_addr, len);
        Ok(())
    }

    /// `copy_from` where host pages part the range, or it is long. Both ranges were checked.
    fn copy_pieces(&self, addr: u64, from: &UserMemory, from_addr: u64, len: u64) {
        let (last, _) = self.locate(addr - self.start + len - 1);
        let tail = ((last as u64 & 7) + 1).min(len);
        let mut bulk = Bulk::new();
        self.pieces_of_both(addr, from, from_addr, len - tail, |to, from, len| {
            // SAFETY: `pieces_of_both` gives addresses inside live mappings, for as many bytes.
            unsafe { bulk.copy(to, from, len) };
        });
        bulk.end();
        let head = len - tail;
        self.pieces_of_both(addr + head, from, from_addr + head, tail, |to, from, len| {
            // SAFETY: as above; the tail lies in one aligned word of the destination.
            unsafe { copy_tail(to, from, len) };
        });
    }

    /// Calls `f` with each piece of two ranges that is contiguous in both. The caller has checked that
    /// both ranges lie inside.
    #[inline]
    fn pieces_of_both(
        &self,
        addr: u64,
        from: &UserMemory,
        from_addr: u64,
        len: u64,
        mut f: impl FnMut(*mut u8, *const u8, usize),
    ) {
        let (to_at, from_at) = (addr - self.start, from_addr - from.start);
        let mut done = 0;
        while done < len {
            let (to, to_contiguous) = self.locate(to_at + done);
            let (from, contiguous) = from.locate(from_at + done);
            let piece = to_contiguous.min(contiguous).min(len - done);
            f(to, from, piece as usize);
            done += piece;
        }
    }

    /// The 64-bit word at `addr`, for atomic operations by the HCA. `None` if it is not aligned to 8
    /// bytes or out of range. The word is in the host's byte order.
    pub fn with_atomic<R>(&self, addr: u64, f: impl FnOnce(&AtomicU64) -> R) -> Option<R> {
        self.atomic_u64(addr).map(f)
    }

    /// The aligned 64-bit word at `addr`, for rings that the consumer shares: valid while `self` lives,
    /// written by others at any time. In the consumer's byte order. Never sleeps.
    #[inline]
    pub fn atomic_u64(&self, addr: u64) -> Option<&AtomicU64> {
        let at = self.aligned(addr, 8)?;
        // SAFETY: 8 aligned bytes of a mapping that lives as long as `self`.
        Some(unsafe { AtomicU64::from_ptr(at.cast()) })
    }

    /// As `atomic_u64`, of 32 bits.
    #[inline]
    pub fn atomic_u32(&self, addr: u64) -> Option<&AtomicU32> {
        let at = self.aligned(addr, 4)?;
        // SAFETY: 4 aligned bytes of a mapping that lives as long as `self`.
        Some(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    /// The aligned 64-byte line `at` bytes from the start, for rings that the consumer shares: valid
    /// while `self` lives, written by others at any time. `None` if it is not aligned, out of range, or
    /// in memory with holes. Never sleeps.
    #[inline]
    pub fn line(&self, at: u64) -> Option<&[AtomicU64; 8]> {
        let at = self.aligned_at(at, 64)?;
        // SAFETY: 64 aligned bytes of a mapping that lives as long as `self`; atomics may be shared with
        // whoever else writes there.
        Some(unsafe { &*at.cast() })
    }

    /// The host address of some bytes that lie together in a page and are aligned to their number.
    #[inline]
    fn aligned(&self, addr: u64, bytes: u64) -> Option<*mut u8> {
        let found = match &self.layout {
            Layout::Runs(_) => self.host_address(addr, bytes)?,
            Layout::OnDemand { .. } if self.permits(addr, bytes, true) => {
                let (at, together) = self.locate(addr - self.start);
                Some(at).filter(|_| together >= bytes)?
            }
            _ => return self.aligned_at(addr.checked_sub(self.start)?, bytes),
        };
        (found as usize).is_multiple_of(bytes as usize).then_some(found)
    }

    /// As `aligned`, `at` bytes from the start; `None` in memory with holes.
    #[inline]
    fn aligned_at(&self, at: u64, bytes: u64) -> Option<*mut u8> {
        if at >= self.length || self.length - at < bytes {
            return None;
        }
        let host = match &self.layout {
            Layout::Contiguous(base) => base.wrapping_add(at as usize),
            Layout::Paged { shift, offset, pages } => {
                let at = at + offset;
                let within = at & ((1 << shift) - 1);
                if within > (1 << shift) - bytes {
                    return None;
                }
                pages.get((at >> shift) as usize)?.wrapping_add(within as usize)
            }
            Layout::Runs(_) | Layout::OnDemand { .. } => return None,
        };
        (host as usize).is_multiple_of(bytes as usize).then_some(host)
    }

    /// The host address of `len` bytes that are contiguous in the host, for rings. It is valid while
    /// `self` lives. `None` if out of range or not contiguous.
    #[inline]
    pub fn host_address(&self, addr: u64, len: u64) -> Option<*mut u8> {
        // Wraps to more than any length if `addr` lies before the start.
        let at = addr.wrapping_sub(self.start);
        // No bytes have no address: behind the last one there may be no page.
        if len == 0 || at >= self.length || len > self.length - at {
            return None;
        }
        match &self.layout {
            Layout::Contiguous(base) => Some(base.wrapping_add(at as usize)),
            Layout::Paged { shift, offset, pages } => {
                let at = at + offset;
                let within = at & ((1 << shift) - 1);
                let page = pages.get((at >> shift) as usize)?;
                (len <= (1 << shift) - within).then(|| page.wrapping_add(within as usize))
            }
            Layout::Runs(_) => self.host_address_in_runs(at, len),
            // A page may be gone in the next moment: each access looks at its own.
            Layout::OnDemand { .. } => None,
        }
    }

    /// `host_address` in memory that may have holes.
    fn host_address_in_runs(&self, at: u64, len: u64) -> Option<*mut u8> {
        if !self.contains(self.start + at, len) {
            return None;
        }
        let (at, contiguous) = self.locate(at);
        (contiguous >= len).then_some(at)
    }

    /// `len` bytes at `addr`, if they lie together in the host: checked here once, so that a copy need
    /// not check again. Never sleeps.
    #[inline]
    pub fn span(&self, addr: u64, len: u64) -> Option<Span<'_>> {
        let at = self.host_address(addr, len)?;
        Some(Span { at, len: len as usize, memory: PhantomData })
    }

    /// Calls `f` with each host-contiguous piece of a range.
    fn pieces(
        &self,
        addr: u64,
        len: u64,
        write: bool,
        mut f: impl FnMut(*mut u8, usize),
    ) -> Result<(), OutOfRange> {
        if !self.permits(addr, len, write) {
            return Err(OutOfRange);
        }
        let mut at = addr - self.start;
        let end = at + len;
        while at < end {
            let (ptr, contiguous) = self.locate(at);
            let len = contiguous.min(end - at);
            f(ptr, len as usize);
            at += len;
        }
        Ok(())
    }

    /// Host address of an offset inside, and how many bytes from there are contiguous.
    #[inline]
    fn locate(&self, at: u64) -> (*mut u8, u64) {
        let (base, skip, contiguous) = match &self.layout {
            Layout::Contiguous(base) => (*base, at, self.length - at),
            Layout::Paged { shift, offset, pages } => {
                let at = at + offset;
                let within = at & ((1 << shift) - 1);
                (pages[(at >> shift) as usize], within, (1 << shift) - within)
            }
            Layout::Runs(runs) => {
                // `contains` found a run here.
                let i = runs.partition_point(|(first, ..)| *first <= at) - 1;
                let (first, len, base) = runs[i];
                (base, at - first, first + len - at)
            }
            Layout::OnDemand { offset, paging } => return paging.locate(at + offset),
        };
        // SAFETY: callers pass offsets that `contains` allowed, and the constructors checked that
        // there is memory at each of those, so the sum stays inside the mapping.
        (unsafe { base.add(skip as usize) }, contiguous)
    }
}

/// Whether the runs cover `at` to `end` without a hole.
fn covered(runs: &[(u64, u64, *mut u8)], at: u64, end: u64) -> bool {
    let mut next = at;
    let from = runs.partition_point(|(first, ..)| *first <= at).saturating_sub(1);
    for (first, len, _) in &runs[from..] {
        if next >= end || *first > next || first + len <= next {
            break;
        }
        next = first + len;
    }
    next >= end
}

/// Consumer memory that lies together in the host.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    at: *mut u8,
    len: usize,
    memory: PhantomData<&'a UserMemory>,
}

impl Span<'_> {
    /// Copies as much as both hold; the last bytes become visible last. Never sleeps.
    #[inline(always)]
    pub fn copy_from(&self, from: &Span<'_>) {
        let len = self.len.min(from.len);
        if len >= LONG {
            return self.copy_long(from, len);
        }
        // SAFETY: `span` found as many bytes in live mappings, which the borrows keep.
        unsafe { copy(self.at, from.at, len) }
    }

    /// `copy_from` of what both hold, and more than a word.
    #[inline(never)]
    fn copy_long(&self, from: &Span<'_>, len: usize) {
        let head = len - tail(self.at as usize, len);
        let mut bulk = Bulk::new();
        // SAFETY: as in `copy_from`; the tail lies in one aligned word of the destination.
        unsafe {
            bulk.copy(self.at, from.at, head);
            bulk.end();
            copy_tail(self.at.add(head), from.at.add(head), len - head);
        }
    }

    /// As `copy_from`, of bytes at hand.
    #[inline]
    pub fn write(&self, from: &[u8]) {
        // SAFETY: as above; `from` is ours and long enough.
        unsafe { copy(self.at, from.as_ptr(), self.len.min(from.len())) }
    }
}

#[cfg(test)]
mod tests;
