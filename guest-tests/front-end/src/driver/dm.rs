// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver's commands for device memory.

use virtio_rdma_abi::control::*;
use zerocopy::IntoBytes;

use super::{Driver, Mr, Nothing, Pd, mr, number};
use crate::error::CommandError;
use crate::memory::Buffer;
use crate::pages::PageTables;

impl Driver {
    /// ALLOC_DM. Its number.
    pub fn alloc_dm(&self, length: u64) -> Result<u32, CommandError> {
        let request = AllocDmRequest { length: length.into() };
        let answer: NumberAnswer = self.command(CMD_ALLOC_DM, request.as_bytes())?;
        Ok(answer.number.get())
    }

    /// FREE_DM.
    pub fn free_dm(&self, dm: u32) -> Result<(), CommandError> {
        let _: Nothing = self.command(CMD_FREE_DM, number(dm).as_bytes())?;
        Ok(())
    }

    /// COPY_DM of `buffer`, from its beginning on: into the device memory or out of it.
    pub fn copy_dm(
        &self,
        dm: u32,
        write: bool,
        offset: u64,
        buffer: &Buffer,
        length: u64,
    ) -> Result<(), CommandError> {
        let tables = PageTables::of_buffer(&self.0.memory, buffer)?;
        let request = CopyDmRequest {
            dmn: dm.into(),
            write: write.into(),
            dm_offset: offset.into(),
            length: length.into(),
            pages: tables.list,
            ..Default::default()
        };
        let _: Nothing = self.command(CMD_COPY_DM, request.as_bytes())?;
        Ok(())
    }

    /// REG_DM_MR.
    pub fn reg_dm_mr(
        &self,
        pd: &Pd,
        dm: u32,
        offset: u64,
        length: u64,
        access: u32,
    ) -> Result<Mr, CommandError> {
        let request = RegDmMrRequest {
            pdn: pd.number.into(),
            access: access.into(),
            dmn: dm.into(),
            offset: offset.into(),
            length: length.into(),
            ..Default::default()
        };
        let answer = self.command(CMD_REG_DM_MR, request.as_bytes())?;
        Ok(mr(&answer, 0, length))
    }
}
