// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands of memory on demand.

use virtio_rdma_abi::control::on_demand::{
    MapPagesRequest, PAGES_WRITABLE, PageFaultAnswer, PagesRequest, RegOdpMrRequest,
};
use virtio_rdma_abi::control::*;
use zerocopy::IntoBytes;

use super::{Driver, Mr, Nothing, Pd, mr, number};
use crate::error::CommandError;
use crate::memory::Buffer;
use crate::pages::PageTables;

impl Driver {
    /// REG_ODP_MR of `length` bytes at `iova`, the first `offset` bytes into page 0, of 4096 bytes a page.
    pub fn reg_odp_mr(
        &self,
        pd: &Pd,
        iova: u64,
        length: u64,
        offset: u64,
        access: u32,
    ) -> Result<Mr, CommandError> {
        self.reg_odp_mr_request(&RegOdpMrRequest {
            pdn: pd.number.into(),
            access: access.into(),
            iova: iova.into(),
            length: length.into(),
            offset: offset.into(),
            page_shift: 12,
            reserved: [0; 7],
        })
    }

    /// REG_ODP_MR with a request of the caller's.
    pub fn reg_odp_mr_request(&self, request: &RegOdpMrRequest) -> Result<Mr, CommandError> {
        let answer: MrAnswer = self.command(CMD_REG_ODP_MR, request.as_bytes())?;
        Ok(mr(&answer, request.iova.get(), request.length.get()))
    }

    /// MAP_PAGES: a buffer's pages from page `first` on.
    pub fn map_pages(
        &self,
        mr: &Mr,
        first: u64,
        buffer: &Buffer,
        pages: std::ops::Range<usize>,
        writable: bool,
    ) -> Result<(), CommandError> {
        let tables = PageTables::new(self.memory(), &buffer.pages()[pages], 12)?;
        self.map_pages_request(&MapPagesRequest {
            mrn: mr.number.into(),
            flags: if writable { PAGES_WRITABLE } else { 0 }.into(),
            first: first.into(),
            pages: tables.list,
        })
    }

    /// MAP_PAGES with a request of the caller's.
    pub fn map_pages_request(&self, request: &MapPagesRequest) -> Result<(), CommandError> {
        let _: Nothing = self.command(CMD_MAP_PAGES, request.as_bytes())?;
        Ok(())
    }

    /// UNMAP_PAGES.
    pub fn unmap_pages(&self, mr: &Mr, first: u64, count: u64) -> Result<(), CommandError> {
        let _: Nothing = self.command(CMD_UNMAP_PAGES, pages(mr, first, count).as_bytes())?;
        Ok(())
    }

    /// TAKE_PAGE_FAULT: the first page, how many, and whether they are to be written.
    pub fn take_page_fault(&self, mr: &Mr) -> Result<Option<(u64, u64, bool)>, CommandError> {
        let fault: PageFaultAnswer =
            self.command(CMD_TAKE_PAGE_FAULT, number(mr.number).as_bytes())?;
        let write = fault.flags.get() & PAGES_WRITABLE != 0;
        let (first, count) = (fault.first.get(), fault.count.get());
        Ok((count > 0).then_some((first, count, write)))
    }

    /// REFUSE_PAGES.
    pub fn refuse_pages(&self, mr: &Mr, first: u64, count: u64) -> Result<(), CommandError> {
        let _: Nothing = self.command(CMD_REFUSE_PAGES, pages(mr, first, count).as_bytes())?;
        Ok(())
    }
}

fn pages(mr: &Mr, first: u64, count: u64) -> PagesRequest {
    PagesRequest {
        mrn: mr.number.into(),
        reserved: 0.into(),
        first: first.into(),
        count: count.into(),
    }
}
