// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a `UserMemory` comes to be, part by part: of runs of any length, or of pages of one size, of
//! which there may be very many. What it is good for is in `memory`.

use std::sync::Arc;

use super::{Layout, Mapping, OutOfRange, RunInfo, UserMemory};

/// Makes a `UserMemory` run by run.
#[derive(Default)]
pub struct Builder {
    pub(super) mappings: Vec<Arc<dyn Mapping>>,
    pub(super) runs: Vec<RunInfo>,
    total: u64,
}

impl Builder {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next run: `len` bytes at `offset` of a mapping, which is counted once however many of its
    /// runs come.
    ///
    /// # Errors
    /// `OutOfRange` if the run exceeds its mapping.
    pub fn push(
        &mut self,
        mapping: &Arc<dyn Mapping>,
        offset: usize,
        len: usize,
    ) -> Result<(), OutOfRange> {
        let end = offset.checked_add(len).ok_or(OutOfRange)?;
        if end > mapping.len() {
            return Err(OutOfRange);
        }
        self.total = self.total.checked_add(len as u64).ok_or(OutOfRange)?;
        let same = |m: &Arc<dyn Mapping>| std::ptr::addr_eq(Arc::as_ptr(m), Arc::as_ptr(mapping));
        let mapping = match self.mappings.iter().rposition(same) {
            Some(i) => i,
            None => {
                self.mappings.push(mapping.clone());
                self.mappings.len() - 1
            }
        };
        match self.runs.last_mut() {
            Some(last) if last.mapping == mapping && last.offset + last.len == offset => {
                last.len += len;
            }
            _ => self.runs.push(RunInfo { mapping, offset, len }),
        }
        Ok(())
    }

    /// The memory: as `UserMemory::new` has it.
    ///
    /// # Errors
    /// `OutOfRange` if the runs are too short for `length`, or no multiples of the page.
    pub fn finish(
        self,
        start: u64,
        length: u64,
        offset: u64,
        page_shift: Option<u8>,
    ) -> Result<UserMemory, OutOfRange> {
        start.checked_add(length).ok_or(OutOfRange)?;
        if self.total < offset.checked_add(length).ok_or(OutOfRange)? {
            return Err(OutOfRange);
        }
        let layout = self.layout(offset, page_shift)?;
        let Self { mappings, mut runs, .. } = self;
        runs.shrink_to_fit();
        Ok(UserMemory { start, length, layout, sparse: false, mappings, runs })
    }

    fn host(&self, run: &RunInfo) -> *mut u8 {
        // SAFETY: `push` checked that the run lies inside its mapping.
        unsafe { self.mappings[run.mapping].base().add(run.offset) }
    }

    fn layout(&self, offset: u64, page_shift: Option<u8>) -> Result<Layout, OutOfRange> {
        if let [run] = self.runs.as_slice() {
            // SAFETY: the caller checked that `offset` lies inside the runs.
            return Ok(Layout::Contiguous(unsafe { self.host(run).add(offset as usize) }));
        }
        match page_shift {
            Some(shift) => {
                let page = 1usize << shift;
                let mut pages = Vec::with_capacity(self.total.div_ceil(page as u64) as usize);
                for (i, run) in self.runs.iter().enumerate() {
                    if !run.len.is_multiple_of(page) && i + 1 != self.runs.len() {
                        return Err(OutOfRange);
                    }
                    if run.len == page {
                        pages.push(self.host(run));
                        continue;
                    }
                    // SAFETY: steps inside the run.
                    pages.extend(
                        (0..run.len).step_by(page).map(|at| unsafe { self.host(run).add(at) }),
                    );
                }
                Ok(Layout::Paged { shift, offset, pages: pages.into() })
            }
            None => {
                let mut at = 0;
                let mut runs = Vec::with_capacity(self.runs.len());
                for run in &self.runs {
                    let len = run.len as u64;
                    if at + len > offset {
                        let skip = offset.saturating_sub(at);
                        // SAFETY: `skip < len`.
                        let host = unsafe { self.host(run).add(skip as usize) };
                        runs.push((at.saturating_sub(offset), len - skip, host));
                    }
                    at += len;
                }
                Ok(Layout::Runs(runs.into()))
            }
        }
    }
}

/// Makes a `UserMemory` of pages of one size, page by page. It costs 8 bytes a page, and nothing while
/// they are contiguous.
pub struct PageBuilder {
    shift: u8,
    /// Pages that are to come.
    expected: usize,
    mappings: Vec<Arc<dyn Mapping>>,
    /// The mapping of the last page.
    last: Option<Last>,
    /// Where the first page begins, and how many there are.
    first: RunInfo,
    count: usize,
    /// All of them, once they are not contiguous.
    pages: Vec<*mut u8>,
}

/// What is asked of a mapping for each of its pages.
#[derive(Clone, Copy)]
struct Last {
    mapping: usize,
    base: *mut u8,
    len: usize,
    /// Where the page behind the last one begins.
    next: usize,
}

impl PageBuilder {
    /// For pages of `1 << shift` bytes, so many.
    pub fn new(shift: u8, expected: usize) -> Self {
        Self {
            shift,
            expected,
            mappings: Vec::new(),
            last: None,
            first: RunInfo { mapping: 0, offset: 0, len: 0 },
            count: 0,
            pages: Vec::new(),
        }
    }

    /// The next page: at `offset` of a mapping, which is counted once however many of its pages come.
    ///
    /// # Errors
    /// `OutOfRange` if it exceeds its mapping.
    pub fn push(&mut self, mapping: &Arc<dyn Mapping>, offset: usize) -> Result<(), OutOfRange> {
        let is = |m: &Arc<dyn Mapping>| std::ptr::addr_eq(Arc::as_ptr(m), Arc::as_ptr(mapping));
        let last = match self.last.filter(|last| is(&self.mappings[last.mapping])) {
            Some(last) => last,
            None => {
                let number = self.mappings.iter().position(is).unwrap_or_else(|| {
                    self.mappings.push(mapping.clone());
                    self.mappings.len() - 1
                });
                // No page of it can follow the last one.
                let next = usize::MAX;
                Last { mapping: number, base: mapping.base(), len: mapping.len(), next }
            }
        };
        let page = 1usize << self.shift;
        let end = offset.checked_add(page).filter(|end| *end <= last.len).ok_or(OutOfRange)?;
        if self.count == 0 {
            self.first = RunInfo { mapping: last.mapping, offset, len: 0 };
        } else if self.pages.is_empty() && last.next != offset {
            let first = self.host(&self.first);
            self.pages.reserve_exact(self.expected.max(self.count));
            // SAFETY: they were contiguous, each inside the mapping.
            self.pages.extend((0..self.count).map(|n| unsafe { first.add(n * page) }));
        }
        if !self.pages.is_empty() {
            // SAFETY: checked above to lie inside the mapping.
            self.pages.push(unsafe { last.base.add(offset) });
        }
        self.count += 1;
        self.last = Some(Last { next: end, ..last });
        Ok(())
    }

    /// The memory: as `UserMemory::new` has it.
    ///
    /// # Errors
    /// `OutOfRange` if the pages are too few for `length`.
    pub fn finish(self, start: u64, length: u64, offset: u64) -> Result<UserMemory, OutOfRange> {
        start.checked_add(length).ok_or(OutOfRange)?;
        let total = (self.count as u64).checked_mul(1 << self.shift).ok_or(OutOfRange)?;
        if self.count == 0 || total < offset.checked_add(length).ok_or(OutOfRange)? {
            return Err(OutOfRange);
        }
        let (layout, runs) = if self.pages.is_empty() {
            // SAFETY: `offset` lies inside the pages, which are contiguous.
            let at = unsafe { self.host(&self.first).add(offset as usize) };
            let run = RunInfo { len: total as usize, ..self.first };
            (Layout::Contiguous(at), vec![run])
        } else {
            let pages = self.pages.into_boxed_slice();
            (Layout::Paged { shift: self.shift, offset, pages }, Vec::new())
        };
        Ok(UserMemory { start, length, layout, sparse: false, mappings: self.mappings, runs })
    }

    fn host(&self, run: &RunInfo) -> *mut u8 {
        // SAFETY: `push` checked that the run lies inside its mapping.
        unsafe { self.mappings[run.mapping].base().add(run.offset) }
    }
}
