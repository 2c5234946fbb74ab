// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest-physical memory of one VM, and the page lists by which its driver names parts of it.
//! A list is resolved once, into host addresses (`UserMemory`).

use std::fs::File;
use std::io;
use std::sync::Arc;

use rdma_midlayer::memory::{Mapping, PageBuilder, Paging, Run, UserMemory};
use virtio_rdma_abi::control::PageList;

use crate::mapping::{GuestRegion, Identity};

/// Bytes of a table of a page list, and entries in it.
const TABLE_BYTES: u64 = 4096;
const TABLE_ENTRIES: u64 = 512;

/// Why a page list can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageListError {
    /// A member is out of range or contradicts another.
    #[error("malformed page list")]
    Malformed,
    /// A page or a table is not in guest memory, or crosses the end of a region.
    #[error("guest-physical address {0:#x} is not in guest memory")]
    BadAddress(u64),
}

/// The regions of a VM's memory, sorted by address. Immutable: a change makes a new one.
#[derive(Clone, Default)]
pub struct GuestMemory {
    regions: Vec<Arc<GuestRegion>>,
}

/// A region as the front end's table has it.
pub struct RegionSpec {
    /// The file.
    pub file: Arc<File>,
    /// Offset of the region in it.
    pub offset: u64,
    /// Guest-physical address of the first byte.
    pub guest_start: u64,
    /// Bytes.
    pub len: u64,
}

impl GuestMemory {
    /// The memory after a change of the front end's table: regions that stay keep their mapping.
    ///
    /// # Errors
    /// What mapping a new region answers; the old memory is then still good.
    pub fn update(&self, table: impl IntoIterator<Item = RegionSpec>) -> io::Result<Self> {
        let mut regions = Vec::new();
        for (nth, spec) in table.into_iter().enumerate() {
            let identity =
                GuestRegion::identify(&spec.file, spec.offset, spec.guest_start, spec.len)?;
            regions.push(match self.regions.iter().find(|r| r.identity() == identity) {
                Some(region) => region.clone(),
                None => Arc::new(GuestRegion::map(
                    spec.file,
                    spec.offset,
                    spec.guest_start,
                    spec.len,
                    nth,
                )?),
            });
        }
        regions.sort_by_key(|r| r.guest_start());
        if regions.windows(2).any(|w| w[0].guest_start() + w[0].size() > w[1].guest_start()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "memory regions overlap"));
        }
        Ok(Self { regions })
    }

    /// The regions.
    pub fn regions(&self) -> &[Arc<GuestRegion>] {
        &self.regions
    }

    /// The regions that `memory` lies in, each once; `Identity::NOWHERE`, which nobody holds, if a part
    /// of it is no longer ours.
    pub fn regions_of(&self, memory: &UserMemory) -> Box<[Identity]> {
        let mut found = Vec::new();
        for mapping in memory.mappings() {
            let at = Arc::as_ptr(mapping);
            match self.regions.iter().find(|r| std::ptr::addr_eq(Arc::as_ptr(r), at)) {
                Some(region) => found.push(region.identity()),
                None => return Box::new([Identity::NOWHERE]),
            }
        }
        found.into()
    }

    /// Whether all these regions are ours.
    pub fn holds(&self, regions: &[Identity]) -> bool {
        regions.iter().all(|id| self.regions.iter().any(|r| r.identity() == *id))
    }

    /// Bytes of all regions.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.size()).sum()
    }

    fn find(&self, address: u64) -> Option<&Arc<GuestRegion>> {
        let after = self.regions.partition_point(|r| r.guest_start() <= address);
        let region = self.regions.get(after.checked_sub(1)?)?;
        (address - region.guest_start() < region.size()).then_some(region)
    }

    /// `len` bytes from a guest-physical address, in one region.
    fn run(&self, address: u64, len: u64) -> Result<Run, PageListError> {
        let region = self.find(address).ok_or(PageListError::BadAddress(address))?;
        let offset = address - region.guest_start();
        if len > region.size() - offset {
            return Err(PageListError::BadAddress(region.guest_start() + region.size()));
        }
        let mapping: Arc<dyn Mapping> = region.clone();
        Ok(Run { mapping, offset: offset as usize, len: len as usize })
    }

    /// One page of 4096 bytes, under the addresses 0 to 4095.
    pub fn page(&self, address: u64) -> Result<UserMemory, PageListError> {
        if !address.is_multiple_of(TABLE_BYTES) {
            return Err(PageListError::Malformed);
        }
        UserMemory::new(0, TABLE_BYTES, 0, None, [self.run(address, TABLE_BYTES)?])
            .map_err(|_| PageListError::BadAddress(address))
    }

    /// As `resolve`, of addresses that are at hand: exactly the pages that `offset` and `length` need.
    pub fn resolve_array(
        &self,
        pages: impl ExactSizeIterator<Item = u64>,
        page_shift: u8,
        start: u64,
        offset: u64,
        length: u64,
    ) -> Result<UserMemory, PageListError> {
        let shift = u32::from(page_shift);
        let count = pages.len() as u64;
        let page = 1u64.checked_shl(shift).ok_or(PageListError::Malformed)?;
        let end = offset.checked_add(length).ok_or(PageListError::Malformed)?;
        let sound = (12..=30).contains(&shift)
            && length > 0
            && offset < page
            && end.div_ceil(page) == count;
        if !sound {
            return Err(PageListError::Malformed);
        }
        let mut found = PageBuilder::new(page_shift, pages.len());
        let mut walk = Walk { memory: self, shift, left: count, region: None, found: &mut found };
        pages.into_iter().try_for_each(|address| walk.page(address))?;
        found.finish(start, length, offset).map_err(|_| PageListError::Malformed)
    }

    /// All of guest memory under its guest-physical addresses, for a DMA MR. `None` if there is none.
    pub fn all(&self) -> Option<UserMemory> {
        let places = self.regions.iter().map(|region| {
            let mapping: Arc<dyn Mapping> = region.clone();
            (region.guest_start(), Run { offset: 0, len: mapping.len(), mapping })
        });
        UserMemory::sparse(places).ok()
    }

    /// A table for `length` bytes of memory on demand, the first of which lies `offset` into page 0, of
    /// pages in this memory, none of which is there.
    ///
    /// # Errors
    /// `Malformed` if `shift` is not 12 to 30, there are no bytes, or they wrap round.
    pub fn paging(
        &self,
        number: u32,
        shift: u32,
        offset: u64,
        length: u64,
    ) -> Result<Arc<Paging>, PageListError> {
        let mappings = self.regions.iter().map(|region| region.clone() as Arc<dyn Mapping>);
        let bytes = offset.checked_add(length).ok_or(PageListError::Malformed)?;
        Paging::new(number, shift, bytes, mappings).map_err(|_| PageListError::Malformed)
    }

    /// The memory that a page list names, from `offset` in its first page on, under the addresses
    /// `start` to `start + length - 1`. Takes time and memory in proportion to the pages; a list of
    /// more pages than the VM has is refused, and so is one that is too short for `length`.
    pub fn resolve(
        &self,
        list: &PageList,
        start: u64,
        offset: u64,
        length: u64,
    ) -> Result<UserMemory, PageListError> {
        let shift = u32::from(list.page_shift);
        let count = u64::from(list.num_pages.get());
        let depth = u32::from(list.depth);
        let root = list.root.get();
        let page = 1u64.checked_shl(shift).ok_or(PageListError::Malformed)?;
        let end = offset.checked_add(length).ok_or(PageListError::Malformed)?;
        let sound = (12..=30).contains(&shift)
            && depth <= 3
            && count > 0
            && length > 0
            && offset < page
            && end.div_ceil(page) == count
            && count <= self.bytes() >> 12
            && (depth == 0 || count <= TABLE_ENTRIES.pow(depth))
            && root.is_multiple_of(if depth == 0 { page } else { TABLE_BYTES });
        if !sound {
            return Err(PageListError::Malformed);
        }
        let memory = if depth == 0 {
            let run = self.run(root, count << shift)?;
            UserMemory::new(start, length, offset, Some(list.page_shift), [run])
        } else {
            // No more than the VM has pages, as was checked.
            let mut found = PageBuilder::new(list.page_shift, count as usize);
            let mut walk =
                Walk { memory: self, shift, left: count, region: None, found: &mut found };
            walk.table(root, depth)?;
            found.finish(start, length, offset)
        };
        memory.map_err(|_| PageListError::Malformed)
    }
}

fn push(
    found: &mut PageBuilder,
    mapping: &Arc<dyn Mapping>,
    offset: usize,
) -> Result<(), PageListError> {
    found.push(mapping, offset).map_err(|_| PageListError::Malformed)
}

/// The way through a page list's tables.
struct Walk<'a> {
    memory: &'a GuestMemory,
    shift: u32,
    /// Pages that are still to come.
    left: u64,
    /// The region of the last page: the next one is mostly in it too.
    region: Option<(std::ops::Range<u64>, Arc<dyn Mapping>)>,
    found: &'a mut PageBuilder,
}

impl Walk<'_> {
    /// Collects the pages under one table. A table's used entries follow from the pages that are
    /// left, so a list that points to itself is read no more often than a sound one.
    fn table(&mut self, table: u64, depth: u32) -> Result<(), PageListError> {
        let per_entry = TABLE_ENTRIES.pow(depth - 1);
        let used = self.left.div_ceil(per_entry).min(TABLE_ENTRIES);
        let memory = self.memory.page(table)?;
        let mut bytes = [0; TABLE_BYTES as usize];
        let bytes = &mut bytes[..used as usize * 8];
        memory.read(0, bytes).map_err(|_| PageListError::BadAddress(table))?;
        for entry in bytes.as_chunks::<8>().0 {
            let address = u64::from_le_bytes(*entry);
            if depth > 1 {
                self.table(address, depth - 1)?;
                continue;
            }
            self.page(address)?;
            self.left -= 1;
        }
        Ok(())
    }

    fn page(&mut self, address: u64) -> Result<(), PageListError> {
        let page = 1u64 << self.shift;
        if !address.is_multiple_of(page) {
            return Err(PageListError::Malformed);
        }
        if let Some((range, mapping)) = &self.region
            && range.contains(&address)
            && page <= range.end - address
        {
            return push(self.found, mapping, (address - range.start) as usize);
        }
        let run = self.memory.run(address, page)?;
        let start = address - run.offset as u64;
        push(self.found, &run.mapping, run.offset)?;
        self.region = Some((start..start + run.mapping.len() as u64, run.mapping));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn file(len: u64) -> Arc<File> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        Arc::new(file)
    }

    fn spec(file: &Arc<File>, offset: u64, guest_start: u64, len: u64) -> RegionSpec {
        RegionSpec { file: file.clone(), offset, guest_start, len }
    }

    fn memory() -> GuestMemory {
        let file = file(8 * MIB);
        GuestMemory::default()
            .update([spec(&file, 0, 0, 4 * MIB), spec(&file, 4 * MIB, 1 << 32, 4 * MIB)])
            .unwrap()
    }

    fn list(root: u64, num_pages: u32, depth: u8) -> PageList {
        PageList {
            root: root.into(),
            num_pages: num_pages.into(),
            page_shift: 12,
            depth,
            reserved: 0.into(),
        }
    }

    fn write_table(memory: &GuestMemory, at: u64, entries: &[u64]) {
        let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_le_bytes()).collect();
        memory.page(at).unwrap().write(0, &bytes).unwrap();
    }

    #[test]
    fn a_list_of_scattered_pages_reads_in_its_order() {
        let memory = memory();
        let pages = [0x5000, (1 << 32) + 0x2000, 0x1000];
        write_table(&memory, 0x10000, &pages);
        for (i, page) in pages.iter().enumerate() {
            memory.page(*page).unwrap().write(0, &[i as u8 + 1]).unwrap();
        }
        let user = memory.resolve(&list(0x10000, 3, 1), 0x7000_0000, 0, 3 * 4096).unwrap();
        for i in 0..3 {
            let mut byte = [0];
            user.read(0x7000_0000 + i * 4096, &mut byte).unwrap();
            assert_eq!(u64::from(byte[0]), i + 1);
        }
        assert!(memory.holds(&memory.regions_of(&user)));
    }

    #[test]
    fn deeper_lists_and_contiguous_ones_resolve_too() {
        let memory = memory();
        let pages: Vec<u64> = (0..700).map(|i| MIB + i * 4096).collect();
        write_table(&memory, 0x10000, &pages[..512]);
        write_table(&memory, 0x11000, &pages[512..]);
        write_table(&memory, 0x12000, &[0x10000, 0x11000]);
        let user = memory.resolve(&list(0x12000, 700, 2), 0, 5, 700 * 4096 - 5).unwrap();
        assert_eq!(user.runs().count(), 1, "contiguous pages coalesce");
        assert!(memory.resolve(&list(MIB, 700, 0), 0, 0, 700 * 4096).is_ok());
    }

    #[test]
    fn malformed_lists_are_refused_and_end() {
        let memory = memory();
        let refused = |l: &PageList, offset, length| memory.resolve(l, 0, offset, length).err();
        let bad = Some(PageListError::Malformed);
        assert_eq!(refused(&list(0x10000, 0, 1), 0, 1), bad, "no pages");
        assert_eq!(refused(&list(0x10000, 513, 1), 0, 513 * 4096), bad, "too many for the depth");
        assert_eq!(refused(&list(0x10000, 1, 4), 0, 4096), bad, "too deep");
        assert_eq!(refused(&list(0x10008, 1, 1), 0, 4096), bad, "misaligned table");
        assert_eq!(refused(&list(0x10000, 2, 1), 0, 4096), bad, "more pages than length");
        assert_eq!(refused(&list(0x10000, 1, 1), 4096, 1), bad, "offset beyond the first page");
        assert_eq!(refused(&list(0x10000, 1, 1), u64::MAX, 2), bad, "wraps");
        let shift = PageList { page_shift: 64, ..list(0, 1, 0) };
        assert_eq!(refused(&shift, 0, 4096), bad, "page size");
        write_table(&memory, 0x10000, &[0x5001]);
        assert_eq!(refused(&list(0x10000, 1, 1), 0, 4096), bad, "misaligned page");
        // A table that points to itself: as many reads as pages, then done.
        write_table(&memory, 0x10000, &[0x10000; 512]);
        let user = memory.resolve(&list(0x10000, 1000, 3), 0, 0, 1000 * 4096).unwrap();
        assert_eq!(user.len(), 1000 * 4096);
    }

    #[test]
    fn pages_outside_guest_memory_are_refused() {
        let memory = memory();
        for root in [4 * MIB, (1 << 32) + 4 * MIB, u64::MAX - 4095] {
            assert!(memory.resolve(&list(root, 1, 0), 0, 0, 4096).is_err());
            assert!(memory.resolve(&list(root, 1, 1), 0, 0, 4096).is_err());
        }
        assert!(
            memory.resolve(&list(4 * MIB - 4096, 2, 0), 0, 0, 8192).is_err(),
            "crosses the end"
        );
    }

    #[test]
    fn a_region_that_stays_keeps_its_mapping_and_one_that_goes_is_missed() {
        let file = file(8 * MIB);
        let one = || spec(&file, 0, 0, 4 * MIB);
        let two = || spec(&file, 4 * MIB, 1 << 32, 4 * MIB);
        let before = GuestMemory::default().update([one(), two()]).unwrap();
        let in_one = before.resolve(&list(0, 1, 0), 0, 0, 4096).unwrap();
        let in_two = before.resolve(&list(1 << 32, 1, 0), 0, 0, 4096).unwrap();
        let after = before.update([one()]).unwrap();
        assert!(after.holds(&after.regions_of(&in_one)));
        assert!(!after.holds(&after.regions_of(&in_two)));
        assert!(!after.holds(&before.regions_of(&in_two)));
        assert!(before.update([one(), one()]).is_err(), "overlap");
    }
}
