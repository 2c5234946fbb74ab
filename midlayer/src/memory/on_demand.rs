// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory on demand: pages that its consumer puts behind an address range and takes away again, while an
//! HCA uses it. Here: the table of pages. What a copy does with it is in `memory`; how an HCA asks for
//! pages is its own affair.
//!
//! Readers take no lock. A page that is taken away stays whole until every reader inside an `rcu` guard
//! has left: so who has found pages present (`UserMemory::missing`) may use them until the end of its
//! guard. Without a guard all is memory-safe still, but a page may be used after `unmap` has returned.

use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Mapping, OutOfRange, Run};
use crate::context::MaySleep;
use crate::rcu;

/// Entries of a node of the table, and their bits.
const ENTRIES: usize = 512;
const BITS: u32 = 9;
/// Most levels: for 2^52 pages.
const LEVELS: usize = 6;

/// In a slot beside the page's address, which is aligned to 4096 bytes: it may be read.
const PRESENT: usize = 1;
/// It may be written.
const WRITABLE: usize = 2;
const FLAGS: usize = PRESENT | WRITABLE;

/// Some of the pages of memory on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// The first; page 0 holds the memory's first byte.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl PageRange {
    /// Whether a page is in both.
    pub fn meets(&self, other: &Self) -> bool {
        self.first < other.first.saturating_add(other.count)
            && other.first < self.first.saturating_add(self.count)
    }
}

/// A node: of the lowest level, slots of pages; else pointers to nodes.
struct Node {
    entries: [AtomicUsize; ENTRIES],
    /// Slots with a page; changed under `change` only.
    used: AtomicU32,
}

impl Node {
    fn make() -> *mut Self {
        Box::into_raw(Box::new(Self {
            entries: [const { AtomicUsize::new(0) }; ENTRIES],
            used: AtomicU32::new(0),
        }))
    }
}

/// Nodes that the table has, and those that wait for another place in it.
#[derive(Default)]
struct Change {
    /// Made by `Node::make`; freed with the table.
    nodes: Vec<*mut Node>,
    /// Of `nodes`, by level, those that are empty and no reader inside a guard sees. Each serves at its
    /// level again, so that a reader without a guard takes nothing in it for something else.
    spare: [Vec<*mut Node>; LEVELS],
}

/// The table of the pages behind an address range.
pub struct Paging {
    number: u32,
    shift: u32,
    pages: u64,
    /// Levels of nodes.
    depth: u32,
    root: AtomicPtr<Node>,
    /// What pages may lie in: kept, so that no slot ever points to nothing.
    mappings: Box<[Arc<dyn Mapping>]>,
    change: Mutex<Change>,
}

// SAFETY: the pointers are to nodes that the value owns until it is dropped, all of whose parts are
// atomics; slots point into mappings that are `Send + Sync` and are kept.
unsafe impl Send for Paging {}
// SAFETY: as above.
unsafe impl Sync for Paging {}

/// Where a copy goes whose page was taken away under it because it held no guard.
#[repr(align(4096))]
struct Nowhere(#[allow(dead_code, reason = "only its address is used")] [AtomicU8; 4096]);
static NOWHERE: Nowhere = Nowhere([const { AtomicU8::new(0) }; 4096]);

impl Paging {
    /// A table of `bytes` bytes in pages of `1 << shift`, none of which is there. `number` is the
    /// consumer's name for it, by which the HCA tells that pages are missing; pages lie in `mappings`.
    ///
    /// # Errors
    /// `OutOfRange` if `shift` is not 12 to 30, or there are no bytes.
    pub fn new(
        number: u32,
        shift: u32,
        bytes: u64,
        mappings: impl IntoIterator<Item = Arc<dyn Mapping>>,
    ) -> Result<Arc<Self>, OutOfRange> {
        if !(12..=30).contains(&shift) || bytes == 0 {
            return Err(OutOfRange);
        }
        let pages = ((bytes - 1) >> shift) + 1;
        let mut depth = 1;
        while pages > 1 << (depth * BITS) {
            depth += 1;
        }
        Ok(Arc::new(Self {
            number,
            shift,
            pages,
            depth,
            root: AtomicPtr::default(),
            mappings: mappings.into_iter().collect(),
            change: Mutex::default(),
        }))
    }

    /// The consumer's name for it.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// A page is `1 << shift` bytes.
    pub fn shift(&self) -> u32 {
        self.shift
    }

    /// Pages, there or not.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Pages that the memory of the table itself has room for: what it costs, 8 bytes each.
    pub fn room(&self) -> u64 {
        self.change().nodes.len() as u64 * ENTRIES as u64
    }

    fn change(&self) -> MutexGuard<'_, Change> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts pages there, from page `first` on: `runs`, each of some pages, to be read and, if `writable`,
    /// written. What was there before is taken away as by `unmap`. At most `most_new` nodes, each of
    /// room for 512 pages, are added to the table. May sleep.
    ///
    /// # Errors
    /// `OutOfRange` if they are not pages of its mappings, or there are more than it has; `false` if the
    /// table would have to grow by more. Some pages may be there then.
    pub fn map(
        &self,
        cx: &MaySleep,
        first: u64,
        runs: impl IntoIterator<Item = Run>,
        writable: bool,
        most_new: u64,
    ) -> Result<bool, OutOfRange> {
        let bytes = 1usize << self.shift;
        let flags = if writable { FLAGS } else { PRESENT };
        let mut change = self.change();
        let most = change.nodes.len() as u64 + most_new;
        let (mut page, mut replaced) = (first, false);
        let mut result = Ok(true);
        'runs: for run in runs {
            let ours = |m: &&Arc<dyn Mapping>| {
                std::ptr::addr_eq(Arc::as_ptr(m), Arc::as_ptr(&run.mapping))
            };
            let inside =
                run.offset.checked_add(run.len).is_some_and(|end| end <= run.mapping.len());
            if !inside
                || !run.len.is_multiple_of(bytes)
                || self.mappings.iter().find(ours).is_none()
            {
                result = Err(OutOfRange);
                break;
            }
            for at in (0..run.len).step_by(bytes) {
                // SAFETY: the run lies inside its mapping.
                let host = unsafe { run.mapping.base().add(run.offset + at) } as usize;
                if page >= self.pages || host & 4095 != 0 {
                    result = Err(OutOfRange);
                    break 'runs;
                }
                let Some(node) = self.leaf_to_fill(&mut change, page, most) else {
                    result = Ok(false);
                    break 'runs;
                };
                let old = node.entries[entry(page, 0)].swap(host | flags, Ordering::AcqRel);
                if old == 0 {
                    node.used.fetch_add(1, Ordering::Relaxed);
                }
                replaced |= old & !(host | flags) != 0;
                page += 1;
            }
        }
        if replaced {
            rcu::synchronize(cx);
        }
        result
    }

    /// Takes pages away. When it returns, nobody inside a guard uses them any more. May sleep.
    pub fn unmap(&self, cx: &MaySleep, range: PageRange) {
        let end = range.first.saturating_add(range.count).min(self.pages);
        let mut change = self.change();
        let mut leaves: Vec<(u64, *mut Node)> = Vec::new();
        let mut page = range.first;
        while page < end {
            let next = (page | (ENTRIES as u64 - 1)) + 1;
            match self.leaf(page) {
                Ok(leaf) => {
                    // SAFETY: a node lives as long as `self`.
                    let node = unsafe { &*leaf };
                    for at in page..next.min(end) {
                        node.entries[entry(at, 0)].fetch_and(!FLAGS, Ordering::AcqRel);
                    }
                    leaves.push((page, leaf));
                    page = next;
                }
                // Nothing is there up to the end of what the absent node would have held.
                Err(level) => {
                    let bits = (level * BITS).min(63);
                    page = ((page >> bits) + 1).saturating_mul(1 << bits);
                }
            }
        }
        if leaves.is_empty() {
            return;
        }
        rcu::synchronize(cx);
        // Nobody uses what they point to: each that found a page has left, others found none.
        let mut empty = Vec::new();
        for (page, leaf) in leaves {
            // SAFETY: as above.
            let node = unsafe { &*leaf };
            for at in page..((page | (ENTRIES as u64 - 1)) + 1).min(end) {
                if node.entries[entry(at, 0)].swap(0, Ordering::AcqRel) != 0 {
                    node.used.fetch_sub(1, Ordering::Relaxed);
                }
            }
            if node.used.load(Ordering::Relaxed) == 0 && self.depth > 1 {
                self.unlink(page, &mut empty);
            }
        }
        if !empty.is_empty() {
            // Readers may still be on their way through them; then they are for other pages.
            rcu::synchronize(cx);
            empty.into_iter().for_each(|(level, node)| change.spare[level].push(node));
        }
    }

    /// Takes all pages away. May sleep.
    pub fn unmap_all(&self, cx: &MaySleep) {
        self.unmap(cx, PageRange { first: 0, count: self.pages });
    }

    /// The pages between the first and the last that is missing of those under some bytes, counted from
    /// the start of page 0: not there, or not to be written. Never sleeps.
    pub(super) fn missing(&self, at: u64, len: u64, write: bool) -> Option<PageRange> {
        let wanted = if write { FLAGS } else { PRESENT };
        let last = (at + (len - 1)) >> self.shift;
        let mut found: Option<PageRange> = None;
        for page in at >> self.shift..=last {
            if self.slot(page) & wanted != wanted {
                let first = found.map_or(page, |found| found.first);
                found = Some(PageRange { first, count: page - first + 1 });
            }
        }
        found
    }

    /// Whether all of some bytes, counted from the start of page 0, are there. Never sleeps.
    #[inline]
    pub(super) fn permits(&self, at: u64, len: u64, write: bool) -> bool {
        len == 0 || self.missing(at, len, write).is_none()
    }

    /// Where a byte is that was found to be there, and how many bytes lie together from it on.
    #[inline]
    pub(super) fn locate(&self, at: u64) -> (*mut u8, u64) {
        let within = at & ((1 << self.shift) - 1);
        match self.slot(at >> self.shift) & !FLAGS {
            // For callers without a guard only.
            0 => {
                let base = std::ptr::from_ref(&NOWHERE).cast::<u8>().cast_mut();
                (base.wrapping_add((at & 4095) as usize), 4096 - (at & 4095))
            }
            page => ((page as *mut u8).wrapping_add(within as usize), (1 << self.shift) - within),
        }
    }

    #[inline]
    fn slot(&self, page: u64) -> usize {
        match self.leaf(page) {
            // SAFETY: a node lives as long as `self`.
            Ok(leaf) => unsafe { &*leaf }.entries[entry(page, 0)].load(Ordering::Acquire),
            Err(_) => 0,
        }
    }

    /// The node that has the slot of a page; or the level at which there is none.
    #[inline]
    fn leaf(&self, page: u64) -> Result<*mut Node, u32> {
        let mut node = self.root.load(Ordering::Acquire);
        for level in (1..self.depth).rev() {
            if node.is_null() {
                return Err(level + 1);
            }
            // SAFETY: a node lives as long as `self`.
            node =
                unsafe { &*node }.entries[entry(page, level)].load(Ordering::Acquire) as *mut Node;
        }
        if node.is_null() { Err(1) } else { Ok(node) }
    }

    /// As `leaf`; makes what is missing, unless there were more than `most` nodes then.
    fn leaf_to_fill(&self, change: &mut Change, page: u64, most: u64) -> Option<&Node> {
        let mut make = |level: u32| {
            if let Some(spare) = change.spare[level as usize].pop() {
                return Some(spare);
            }
            if change.nodes.len() as u64 >= most {
                return None;
            }
            let node = Node::make();
            change.nodes.push(node);
            Some(node)
        };
        let mut node = self.root.load(Ordering::Relaxed);
        if node.is_null() {
            node = make(self.depth - 1)?;
            self.root.store(node, Ordering::Release);
        }
        for level in (1..self.depth).rev() {
            // SAFETY: a node lives as long as `self`.
            let place = &unsafe { &*node }.entries[entry(page, level)];
            node = place.load(Ordering::Relaxed) as *mut Node;
            if node.is_null() {
                node = make(level - 1)?;
                place.store(node as usize, Ordering::Release);
            }
        }
        // SAFETY: as above.
        Some(unsafe { &*node })
    }

    /// Takes the empty leaf of a page out of the table, and what is above it and empty then, but for the
    /// root. They are told by their levels.
    fn unlink(&self, page: u64, removed: &mut Vec<(usize, *mut Node)>) {
        let mut way = [std::ptr::null_mut::<Node>(); LEVELS];
        let mut node = self.root.load(Ordering::Relaxed);
        for level in (0..self.depth).rev() {
            way[level as usize] = node;
            if level > 0 {
                // SAFETY: a node lives as long as `self`; the leaf was found by this way.
                let place = &unsafe { &*node }.entries[entry(page, level)];
                node = place.load(Ordering::Relaxed) as *mut Node;
            }
        }
        for level in 1..self.depth {
            // SAFETY: as above.
            let above = unsafe { &*way[level as usize] };
            above.entries[entry(page, level)].store(0, Ordering::Release);
            removed.push((level as usize - 1, way[level as usize - 1]));
            if above.entries.iter().any(|e| e.load(Ordering::Relaxed) != 0) {
                break;
            }
        }
    }
}

impl Drop for Paging {
    fn drop(&mut self) {
        for node in std::mem::take(&mut self.change().nodes) {
            // SAFETY: from `Node::make`, each once; nobody has a reference to `self` any more.
            drop(unsafe { Box::from_raw(node) });
        }
    }
}

/// Which entry leads to a page in a node `level` levels above the lowest.
#[inline]
fn entry(page: u64, level: u32) -> usize {
    (page >> (level * BITS)) as usize & (ENTRIES - 1)
}
