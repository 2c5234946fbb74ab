// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands of CQs beyond creating them, and the device's clock.

use virtio_rdma_abi::control::*;
use zerocopy::IntoBytes;

use super::{Driver, Nothing};
use crate::cq::Cq;
use crate::error::CommandError;
use crate::pages::PageTables;

impl Driver {
    /// QUERY_CLOCK.
    pub fn query_clock(&self) -> Result<ClockAnswer, CommandError> {
        self.command(CMD_QUERY_CLOCK, &[])
    }

    /// MODIFY_CQ: events after so many completions, or microseconds.
    pub fn modify_cq(&self, cqn: u32, count: u16, period: u16) -> Result<(), CommandError> {
        let request =
            ModifyCqRequest { cqn: cqn.into(), count: count.into(), period: period.into() };
        let _: Nothing = self.command(CMD_MODIFY_CQ, request.as_bytes())?;
        Ok(())
    }

    /// RESIZE_CQ on scattered pages. What is in the old ring is polled first; answers the count of
    /// completions that the old ring got.
    pub fn resize_cq(&self, cq: &mut Cq, entries: u32) -> Result<u32, CommandError> {
        let buffer = self.memory().alloc_scattered(Cq::bytes(entries))?;
        let tables = PageTables::of_buffer(self.memory(), &buffer)?;
        let request = ResizeCqRequest {
            cqn: cq.number().into(),
            entries: entries.into(),
            pages: tables.list,
        };
        let last = self.resize_cq_request(&request)?;
        cq.move_to(buffer, entries, last);
        Ok(last)
    }

    /// RESIZE_CQ with a request of the caller's.
    pub fn resize_cq_request(&self, request: &ResizeCqRequest) -> Result<u32, CommandError> {
        let answer: NumberAnswer = self.command(CMD_RESIZE_CQ, request.as_bytes())?;
        Ok(answer.number.get())
    }

    /// CREATE_CQ whose completions say when they were written.
    pub fn create_cq_with_timestamps(&self, entries: u32, vector: u32) -> Result<Cq, CommandError> {
        let mut prepared = self.prepare_cq(entries, vector)?;
        prepared.request.flags = CQ_FLAG_TIMESTAMP.into();
        self.create_cq_from(prepared)
    }
}
