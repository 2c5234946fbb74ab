// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands of keys whose memory changes: REREG_MR, MRs for fast registration, memory windows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_rdma_abi::control::*;
use virtio_rdma_abi::ring::{BindMwArgs, RegMrArgs};
use zerocopy::IntoBytes;

use super::{Driver, Mr, Pd, mr};
use crate::error::CommandError;
use crate::memory::{Buffer, PAGE};
use crate::pages::PageTables;

/// An MR for WR_REG_MR, with the array of addresses that it shares with the device.
#[derive(Debug)]
pub struct FastMr {
    /// Its number, for DEREG_MR.
    pub number: u32,
    /// Its key with the first tag.
    pub key: u32,
    list: Buffer,
}

impl FastMr {
    /// The array, for hostile tests.
    pub fn list(&self) -> &Buffer {
        &self.list
    }

    /// The key with another tag.
    pub fn with_tag(&self, tag: u8) -> u32 {
        self.key & !KEY_TAG_MASK | u32::from(tag)
    }

    /// Writes a range of a buffer into the array; what `SendWr::reg_mr` is to say of it.
    pub fn list_range(
        &self,
        buffer: &Buffer,
        range: std::ops::Range<usize>,
        access: u32,
    ) -> RegMrArgs {
        let pages = buffer.pages();
        let pages = &pages[range.start / PAGE..range.end.div_ceil(PAGE)];
        for (n, page) in pages.iter().enumerate() {
            self.list.store_u64(8 * n, *page);
        }
        RegMrArgs {
            length: (range.len() as u64).into(),
            access: access.into(),
            num_pages: (pages.len() as u32).into(),
            offset: ((range.start % PAGE) as u32).into(),
            page_shift: 12,
            ..RegMrArgs::default()
        }
    }
}

/// A memory window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mw {
    /// Its number, for DEALLOC_MW.
    pub number: u32,
    /// Its key at first.
    pub rkey: u32,
}

impl Mw {
    /// The key with another tag.
    pub fn with_tag(&self, tag: u8) -> u32 {
        self.rkey & !KEY_TAG_MASK | u32::from(tag)
    }
}

/// What a WR_BIND_MW says of a part of an MR.
pub fn bind_args(mr: &Mr, offset: u64, length: u64, access: u32) -> BindMwArgs {
    BindMwArgs {
        addr: mr.iova.wrapping_add(offset).into(),
        length: length.into(),
        lkey: mr.lkey.into(),
        access: access.into(),
        reserved: 0.into(),
    }
}

impl Driver {
    /// ALLOC_MR, with room for `max_pages` addresses.
    pub fn alloc_mr(&self, pd: &Pd, max_pages: u32) -> Result<FastMr, CommandError> {
        let list = self.memory().alloc_scattered((max_pages as usize * 8).max(1))?;
        let tables = PageTables::of_buffer(self.memory(), &list)?;
        let request = AllocMrRequest {
            pdn: pd.number.into(),
            max_pages: max_pages.into(),
            list: tables.list,
        };
        let answer = self.alloc_mr_request(&request)?;
        list.set_with_device(true);
        Ok(FastMr { number: answer.mrn.get(), key: answer.lkey.get(), list })
    }

    /// ALLOC_MR with a request of the caller's.
    pub fn alloc_mr_request(&self, request: &AllocMrRequest) -> Result<MrAnswer, CommandError> {
        self.command(CMD_ALLOC_MR, request.as_bytes())
    }

    /// DEREG_MR of an MR of ALLOC_MR.
    pub fn dereg_fast_mr(&self, mr: &FastMr) -> Result<(), CommandError> {
        self.destroy(CMD_DEREG_MR, mr.number)?;
        mr.list.set_with_device(false);
        Ok(())
    }

    /// REREG_MR of all that is given: other memory, another PD, other rights.
    pub fn rereg_mr(
        &self,
        old: &Mr,
        memory: Option<&Buffer>,
        pd: Option<&Pd>,
        access: Option<u32>,
    ) -> Result<Mr, CommandError> {
        let mut request = ReregMrRequest { mrn: old.number.into(), ..ReregMrRequest::default() };
        let (mut iova, mut length) = (old.iova, old.length);
        let mut flags = 0;
        let tables = match memory {
            Some(buffer) => Some(PageTables::of_buffer(self.memory(), buffer)?),
            None => None,
        };
        if let (Some(buffer), Some(tables)) = (memory, &tables) {
            flags |= REREG_TRANSLATION;
            (iova, length) = (buffer.address(), buffer.len() as u64);
            (request.iova, request.length) = (iova.into(), length.into());
            request.pages = tables.list;
        }
        if let Some(pd) = pd {
            flags |= REREG_PD;
            request.pdn = pd.number.into();
        }
        if let Some(access) = access {
            flags |= REREG_ACCESS;
            request.access = access.into();
        }
        request.flags = flags.into();
        let answer = self.rereg_mr_request(&request)?;
        if let Some(buffer) = memory {
            buffer.users().fetch_add(1, Ordering::AcqRel);
            let before = self.registered().insert(old.number, Arc::clone(buffer.users()));
            if let Some(users) = before {
                users.fetch_sub(1, Ordering::AcqRel);
            }
        }
        Ok(mr(&answer, iova, length))
    }

    /// REREG_MR with a request of the caller's.
    pub fn rereg_mr_request(&self, request: &ReregMrRequest) -> Result<MrAnswer, CommandError> {
        self.command(CMD_REREG_MR, request.as_bytes())
    }

    /// ALLOC_MW.
    pub fn alloc_mw(&self, pd: &Pd, mw_type: u32) -> Result<Mw, CommandError> {
        let request = AllocMwRequest { pdn: pd.number.into(), mw_type: mw_type.into() };
        let answer: MwAnswer = self.command(CMD_ALLOC_MW, request.as_bytes())?;
        Ok(Mw { number: answer.mwn.get(), rkey: answer.rkey.get() })
    }

    /// DEALLOC_MW.
    pub fn dealloc_mw(&self, mw: &Mw) -> Result<(), CommandError> {
        self.destroy(CMD_DEALLOC_MW, mw.number)
    }
}
