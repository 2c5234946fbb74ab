// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page lists as control commands carry them: the tree of tables, built from page addresses.

use virtio_rdma_abi::control::PageList;

use crate::error::Error;
use crate::memory::{Buffer, GuestMemory, PAGE};

const ENTRIES: usize = 512;

/// The tables of a page list. The device reads them while it executes the command, so they can be
/// dropped when that has been answered.
#[derive(Debug)]
pub struct PageTables {
    /// What goes into the command.
    pub list: PageList,
    /// The tables, for hostile tests to scribble on: the top table is the last page.
    pub tables: Option<Buffer>,
}

impl PageTables {
    /// Lists a whole buffer, in pages of 4096 bytes. Contiguous pages need no table.
    pub fn of_buffer(memory: &GuestMemory, buffer: &Buffer) -> Result<Self, Error> {
        Self::new(memory, &buffer.pages(), 12)
    }

    /// Lists pages of `2^page_shift` bytes.
    pub fn new(memory: &GuestMemory, pages: &[u64], page_shift: u8) -> Result<Self, Error> {
        let step = 1 << page_shift;
        if pages.windows(2).all(|two| two[1] == two[0] + step) {
            let root = pages.first().copied().unwrap_or(0);
            return Ok(Self { list: page_list(root, pages.len(), page_shift, 0), tables: None });
        }
        Self::with_tables(memory, pages, page_shift)
    }

    /// As `new`, with tables even where they are not needed.
    pub fn with_tables(memory: &GuestMemory, pages: &[u64], page_shift: u8) -> Result<Self, Error> {
        let mut count = 0;
        let mut level = pages.len().max(1);
        loop {
            level = level.div_ceil(ENTRIES);
            count += level;
            if level == 1 {
                break;
            }
        }
        let tables = memory.alloc_scattered(count * PAGE)?;
        let mut entries = pages.to_vec();
        let mut next = 0;
        let mut depth = 0;
        loop {
            let first = next;
            for chunk in entries.chunks(ENTRIES) {
                for (n, entry) in chunk.iter().enumerate() {
                    tables.store_u64(next * PAGE + 8 * n, *entry);
                }
                next += 1;
            }
            depth += 1;
            entries = (first..next).map(|table| tables.guest_address(table * PAGE)).collect();
            if entries.len() <= 1 {
                break;
            }
        }
        let root = entries.first().copied().unwrap_or(0);
        Ok(Self { list: page_list(root, pages.len(), page_shift, depth), tables: Some(tables) })
    }
}

fn page_list(root: u64, pages: usize, page_shift: u8, depth: u8) -> PageList {
    PageList {
        root: root.into(),
        num_pages: (pages as u32).into(),
        page_shift,
        depth,
        reserved: 0.into(),
    }
}
