// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's memory: regions of memfds at guest-physical addresses, a page allocator that
//! scatters on purpose, and buffers that are contiguous to the driver but not to the device.
//!
//! Nothing here knows of the device.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::error::Error;
use crate::mapping::{Mapping, memfd};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// Distance of guest-physical addresses between regions: there are holes between them.
const REGION_SPACING: u64 = 1 << 32;

/// A region of guest memory.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) guest_address: u64,
    pub(crate) len: u64,
    pub(crate) file: File,
    /// The region as the VMM sees it: addresses in it are what vhost-user calls user addresses.
    pub(crate) map: Mapping,
    free: Mutex<FreePages>,
}

/// Free pages, by number in the region. The lower half is given out in extents, the upper half page
/// by page in random order.
#[derive(Debug)]
struct FreePages {
    /// First page → number of pages.
    extents: BTreeMap<u32, u32>,
    /// Shuffled.
    singles: Vec<u32>,
    first_single: u32,
}

impl FreePages {
    fn new(pages: u32, seed: u64) -> Self {
        let first_single = pages / 2;
        let mut singles: Vec<u32> = (first_single..pages).collect();
        let mut random = seed | 1;
        for n in (1..singles.len()).rev() {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            singles.swap(n, (random % (n as u64 + 1)) as usize);
        }
        Self { extents: BTreeMap::from([(0, first_single)]), singles, first_single }
    }

    fn take_extent(&mut self, pages: u32) -> Option<u32> {
        let (&start, &len) = self.extents.iter().find(|(_, len)| **len >= pages)?;
        self.extents.remove(&start);
        if len > pages {
            self.extents.insert(start + pages, len - pages);
        }
        Some(start)
    }

    fn give_back(&mut self, page: u32) {
        if page >= self.first_single {
            self.singles.push(page);
            return;
        }
        let mut start = page;
        let mut len = 1;
        if let Some((&before, &n)) = self.extents.range(..page).next_back()
            && before + n == page
        {
            self.extents.remove(&before);
            start = before;
            len += n;
        }
        if let Some(n) = self.extents.remove(&(page + 1)) {
            len += n;
        }
        self.extents.insert(start, len);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Region {
    fn new(guest_address: u64, len: u64, seal: bool) -> Result<Self, Error> {
        let file = memfd(len, seal).map_err(Error::io("making a memfd"))?;
        let bytes = usize::try_from(len).map_err(|_| Error::OutOfGuestMemory { wanted: 0 })?;
        let map =
            Mapping::of_pieces(&[(&file, 0, bytes)]).map_err(Error::io("mapping guest memory"))?;
        let pages =
            u32::try_from(bytes / PAGE).map_err(|_| Error::OutOfGuestMemory { wanted: bytes })?;
        let free = Mutex::new(FreePages::new(pages, guest_address ^ 0x9e37_79b9_7f4a_7c15));
        Ok(Self { guest_address, len, file, map, free })
    }
}

/// All memory of a guest. Shared by the VM, its driver and every buffer.
#[derive(Debug)]
pub struct GuestMemory {
    /// By index; a removed region leaves `None`, so indices stay.
    regions: RwLock<Vec<Option<Arc<Region>>>>,
    seal: bool,
    /// Counts scattered pages, to take turns between the regions.
    turn: Mutex<usize>,
}

impl GuestMemory {
    /// Memory of `bytes` in all, in `regions` memfds of equal size.
    pub fn new(bytes: u64, regions: usize, seal: bool) -> Result<Self, Error> {
        let memory = Self { regions: RwLock::default(), seal, turn: Mutex::new(0) };
        let regions = regions.max(1);
        let each = (bytes / regions as u64).next_multiple_of(PAGE as u64).max(16 * PAGE as u64);
        for _ in 0..regions {
            memory.add_region(each)?;
        }
        Ok(memory)
    }

    /// Adds a region; the VM must tell the daemon (`Vm::add_memory`). Returns its index.
    pub(crate) fn add_region(&self, bytes: u64) -> Result<usize, Error> {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        let index = regions.len();
        let guest_address = (index as u64 + 1) * REGION_SPACING;
        regions.push(Some(Arc::new(Region::new(guest_address, bytes, self.seal)?)));
        Ok(index)
    }

    /// Takes a region out. Buffers in it stay mapped in this process until they are dropped.
    pub(crate) fn remove_region(&self, index: usize) -> Result<Arc<Region>, Error> {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        regions.get_mut(index).and_then(Option::take).ok_or(Error::NoRegion(index))
    }

    pub(crate) fn regions(&self) -> Vec<Arc<Region>> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        regions.iter().flatten().cloned().collect()
    }

    pub(crate) fn region(&self, index: usize) -> Result<Arc<Region>, Error> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        regions.get(index).and_then(Clone::clone).ok_or(Error::NoRegion(index))
    }

    /// Zeroed memory whose pages lie anywhere, in no order, in all regions.
    pub fn alloc_scattered(&self, bytes: usize) -> Result<Buffer, Error> {
        self.scattered_in(&self.regions(), bytes)
    }

    /// As `alloc_scattered`, in one region.
    pub fn alloc_scattered_in(&self, region: usize, bytes: usize) -> Result<Buffer, Error> {
        self.scattered_in(&[self.region(region)?], bytes)
    }

    /// Zeroed memory of contiguous guest-physical addresses, in any one region.
    pub fn alloc_contiguous(&self, bytes: usize) -> Result<Buffer, Error> {
        self.contiguous_in(&self.regions(), bytes)
    }

    /// As `alloc_contiguous`, in one region.
    pub fn alloc_contiguous_in(&self, region: usize, bytes: usize) -> Result<Buffer, Error> {
        self.contiguous_in(&[self.region(region)?], bytes)
    }

    fn scattered_in(&self, regions: &[Arc<Region>], bytes: usize) -> Result<Buffer, Error> {
        let count = bytes.div_ceil(PAGE).max(1);
        let mut pages = Pages::default();
        let mut turn = lock(&self.turn);
        for _ in 0..count {
            // Each region in its turn; one that is used up is passed over.
            let found = (0..regions.len()).find_map(|_| {
                *turn = turn.wrapping_add(1);
                let region = regions.get(*turn % regions.len())?;
                Some((Arc::clone(region), lock(&region.free).singles.pop()?))
            });
            pages.list.push(found.ok_or(Error::OutOfGuestMemory { wanted: bytes })?);
        }
        drop(turn);
        Buffer::new(pages, bytes)
    }

    fn contiguous_in(&self, regions: &[Arc<Region>], bytes: usize) -> Result<Buffer, Error> {
        let error = Error::OutOfGuestMemory { wanted: bytes };
        let Ok(count) = u32::try_from(bytes.div_ceil(PAGE).max(1)) else { return Err(error) };
        for region in regions {
            let start = lock(&region.free).take_extent(count);
            if let Some(start) = start {
                let list = (start..start + count).map(|page| (Arc::clone(region), page)).collect();
                return Buffer::new(Pages { list, users: Arc::default() }, bytes);
            }
        }
        Err(error)
    }

    /// Where guest-physical memory is seen in this process (vhost-user's user address).
    pub(crate) fn user_address(&self, guest_address: u64) -> Option<u64> {
        self.regions().iter().find_map(|region| {
            let offset = guest_address.checked_sub(region.guest_address)?;
            (offset < region.len).then(|| region.map.address() + offset)
        })
    }

    /// Cuts the file of a region short, as only a hostile VMM would, if it is not sealed. Whoever
    /// touches the memory behind the cut gets SIGBUS, this process too.
    pub fn truncate_file(&self, region: usize, bytes: u64) -> Result<(), Error> {
        self.region(region)?.file.set_len(bytes).map_err(Error::io("truncating guest memory"))
    }

    /// A guest-physical address that lies in no region.
    pub fn unmapped_address(&self) -> u64 {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        (regions.len() as u64 + 16) * REGION_SPACING
    }
}

/// Pages that go back to their regions when dropped.
#[derive(Debug, Default)]
struct Pages {
    list: Vec<(Arc<Region>, u32)>,
    /// Objects of the device that use them: while there are any, they are not to be given to others.
    users: Arc<AtomicU32>,
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.users.load(Ordering::Acquire) > 0 {
            return;
        }
        for (region, page) in self.list.drain(..) {
            lock(&region.free).give_back(page);
        }
    }
}

/// Guest memory as a guest process (or `vmalloc`) sees it: contiguous, whatever the pages under it.
/// The pages are free for others when it is dropped. The device may change it at any time.
#[derive(Debug)]
pub struct Buffer {
    map: Mapping,
    pages: Pages,
    len: usize,
}

impl Buffer {
    fn new(pages: Pages, len: usize) -> Result<Self, Error> {
        // Neighbours in guest memory are mapped in one go.
        let mut pieces: Vec<(&File, u64, usize)> = Vec::new();
        let mut last: Option<(&Arc<Region>, u32)> = None;
        for (region, page) in &pages.list {
            match (last, pieces.last_mut()) {
                (Some((before, number)), Some(piece))
                    if Arc::ptr_eq(before, region) && number + 1 == *page =>
                {
                    piece.2 += PAGE;
                }
                _ => pieces.push((&region.file, u64::from(*page) * PAGE as u64, PAGE)),
            }
            last = Some((region, *page));
        }
        let map = Mapping::of_pieces(&pieces).map_err(Error::io("mapping a buffer"))?;
        let buffer = Self { map, pages, len };
        buffer.fill(0);
        Ok(buffer)
    }

    /// Bytes asked for; the pages under it may have more.
    #[allow(clippy::len_without_is_empty)] // it has a page at least
    pub fn len(&self) -> usize {
        self.len
    }

    /// Address in this process: what a guest process would call its virtual address.
    pub fn address(&self) -> u64 {
        self.map.address()
    }

    /// Guest-physical addresses of the pages, in order.
    pub fn pages(&self) -> Vec<u64> {
        self.pages
            .list
            .iter()
            .map(|(r, page)| r.guest_address + u64::from(*page) * PAGE as u64)
            .collect()
    }

    /// Guest-physical address of a byte. Panics out of bounds.
    pub fn guest_address(&self, offset: usize) -> u64 {
        let (region, page) = &self.pages.list[offset / PAGE];
        region.guest_address + u64::from(*page) * PAGE as u64 + (offset % PAGE) as u64
    }

    /// An object of the device lives in it, or does not any more. While one does, dropping the buffer
    /// does not free its pages for others.
    pub fn set_with_device(&self, with_device: bool) {
        self.pages.users.store(u32::from(with_device), Ordering::Release);
    }

    /// Counts the objects of the device that use the pages.
    pub(crate) fn users(&self) -> &Arc<AtomicU32> {
        &self.pages.users
    }

    /// The memory itself, for atomic access.
    pub(crate) fn map(&self) -> &Mapping {
        &self.map
    }

    /// Copies bytes in. Panics out of bounds.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.map.write(offset, bytes);
    }

    /// Copies bytes out. Panics out of bounds.
    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.map.read(offset, &mut out);
        out
    }

    /// Copies bytes out into memory of the caller. Panics out of bounds.
    pub fn read_into(&self, offset: usize, out: &mut [u8]) {
        self.map.read(offset, out);
    }

    /// Sets every byte, those behind `len` on the last page too.
    pub fn fill(&self, byte: u8) {
        let page = [byte; PAGE];
        for offset in (0..self.map.len()).step_by(PAGE) {
            self.map.write(offset, &page);
        }
    }

    /// Reads a 32-bit word (acquire). Panics out of bounds or unaligned.
    pub fn load_u32(&self, offset: usize) -> u32 {
        self.map.u32(offset).load(Ordering::Acquire)
    }

    /// Writes a 32-bit word (release). Panics out of bounds or unaligned.
    pub fn store_u32(&self, offset: usize, value: u32) {
        self.map.u32(offset).store(value, Ordering::Release);
    }

    /// Reads a 64-bit word (acquire). Panics out of bounds or unaligned.
    #[inline]
    pub fn load_u64(&self, offset: usize) -> u64 {
        self.map.u64(offset).load(Ordering::Acquire)
    }

    /// Writes a 64-bit word (release). Panics out of bounds or unaligned.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64) {
        self.map.u64(offset).store(value, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_pages_are_contiguous_to_the_driver_only() -> Result<(), Error> {
        let memory = GuestMemory::new(8 << 20, 2, true)?;
        let buffer = memory.alloc_scattered(64 * PAGE)?;
        let pages = buffer.pages();
        let neighbours = pages.windows(2).filter(|two| two[0] + PAGE as u64 == two[1]).count();
        assert!(neighbours < 4, "{neighbours} of 63 pages follow one another");
        let bytes: Vec<u8> = (0..64 * PAGE).map(|n| (n % 251) as u8).collect();
        buffer.write(0, &bytes);
        for (n, page) in pages.iter().enumerate() {
            let region = (*page / REGION_SPACING) as usize - 1;
            let offset = (*page % REGION_SPACING) as usize;
            let mut seen = vec![0; PAGE];
            memory.region(region)?.map.read(offset, &mut seen);
            assert_eq!(seen, bytes[n * PAGE..(n + 1) * PAGE], "page {n}");
        }
        Ok(())
    }

    #[test]
    fn pages_come_back_when_a_buffer_is_dropped() -> Result<(), Error> {
        let memory = GuestMemory::new(1 << 20, 1, true)?;
        for round in 0..8 {
            let all = memory.alloc_contiguous(512 << 10)?;
            assert!(memory.alloc_contiguous(PAGE).is_err(), "round {round}");
            assert_eq!(all.read(0, all.len()), vec![0; all.len()], "round {round}");
            all.fill(0xaa);
            drop(all);
            let half = memory.alloc_scattered(512 << 10)?;
            assert!(memory.alloc_scattered(1).is_err(), "round {round}");
            drop(half);
            // In pieces and out of order, the extents join again.
            let one = memory.alloc_contiguous(100 << 10)?;
            let two = memory.alloc_contiguous(200 << 10)?;
            drop(one);
            drop(two);
        }
        Ok(())
    }
}
