// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver's commands for SRQs, and its table of address handles.

use std::sync::PoisonError;

use virtio_rdma_abi::control::*;
use virtio_rdma_abi::ring::{QP_RINGS_OFFSET, Sge, WQE_RECV_DATA};
use zerocopy::IntoBytes;

use super::{Driver, Nothing, Pd, number, stride_shift};
use crate::error::{CommandError, Error};
use crate::pages::PageTables;
use crate::qp::QpEndpoint;
use crate::ring::WorkRing;
use crate::srq::Srq;

/// Address handles of a driver.
const AH_ENTRIES: usize = 1024;

impl Driver {
    /// CREATE_SRQ on scattered pages.
    pub fn create_srq(
        &self,
        pd: &Pd,
        entries: u32,
        max_sge: u32,
        limit: u32,
    ) -> Result<Srq, CommandError> {
        self.create_srq_of(pd, (entries, max_sge, limit), (0, 0))
    }

    /// CREATE_SRQ of (entries, SGEs, limit) in an XRC domain: (domain, CQ).
    pub fn create_srq_of(
        &self,
        pd: &Pd,
        (entries, max_sge, limit): (u32, u32, u32),
        (xrcdn, cqn): (u32, u32),
    ) -> Result<Srq, CommandError> {
        let uar = self.own_uar()?;
        let slot = uar.take_slot().ok_or(Error::OutOfGuestMemory { wanted: 1 })?;
        let stride = stride_shift(WQE_RECV_DATA + max_sge * size_of::<Sge>() as u32);
        let offset = QP_RINGS_OFFSET;
        let buffer = self.0.memory.alloc_scattered((offset + (entries << stride)) as usize)?;
        let tables = PageTables::of_buffer(&self.0.memory, &buffer)?;
        let request = CreateSrqRequest {
            pdn: pd.number.into(),
            uarn: uar.number().into(),
            slot: slot.into(),
            entries: entries.into(),
            offset: offset.into(),
            max_sge: max_sge.into(),
            limit: limit.into(),
            stride_shift: stride,
            flags: 0,
            reserved: 0.into(),
            pages: tables.list,
            xrcdn: xrcdn.into(),
            cqn: cqn.into(),
        };
        let answer: Result<NumberAnswer, _> = self.command(CMD_CREATE_SRQ, request.as_bytes());
        let answer = answer.inspect_err(|_| uar.free_slot(slot))?;
        let ring = WorkRing::new(offset as usize, stride, entries, max_sge, 0);
        Ok(Srq::new(answer.number.get(), buffer, ring, self.doorbell(uar, slot)))
    }

    /// ALLOC_XRCD.
    pub fn alloc_xrcd(&self) -> Result<u32, CommandError> {
        let answer: NumberAnswer = self.command(CMD_ALLOC_XRCD, &[])?;
        Ok(answer.number.get())
    }

    /// DEALLOC_XRCD.
    pub fn dealloc_xrcd(&self, xrcdn: u32) -> Result<(), CommandError> {
        self.destroy(CMD_DEALLOC_XRCD, xrcdn)
    }

    /// MODIFY_SRQ: arms the limit.
    pub fn modify_srq(&self, srqn: u32, limit: u32) -> Result<(), CommandError> {
        let request = ModifySrqRequest { srqn: srqn.into(), limit: limit.into() };
        let _: Nothing = self.command(CMD_MODIFY_SRQ, request.as_bytes())?;
        Ok(())
    }

    /// RESIZE_SRQ: the WQEs that are posted go along.
    pub fn resize_srq(
        &self,
        srq: &mut Srq,
        entries: u32,
        max_sge: u32,
    ) -> Result<(), CommandError> {
        let stride = stride_shift(WQE_RECV_DATA + max_sge * size_of::<Sge>() as u32);
        let offset = QP_RINGS_OFFSET;
        let buffer = self.0.memory.alloc_scattered((offset + (entries << stride)) as usize)?;
        let tables = PageTables::of_buffer(&self.0.memory, &buffer)?;
        let mut ring = WorkRing::new(offset as usize, stride, entries, max_sge, 0);
        srq.copy_to(&mut ring, &buffer);
        self.resize_srq_request(&ResizeSrqRequest {
            srqn: srq.number().into(),
            entries: entries.into(),
            offset: offset.into(),
            stride_shift: stride,
            reserved: [0; 3],
            pages: tables.list,
        })?;
        srq.move_to(ring, buffer);
        Ok(())
    }

    /// RESIZE_SRQ as it is.
    pub fn resize_srq_request(&self, request: &ResizeSrqRequest) -> Result<(), CommandError> {
        let _: Nothing = self.command(CMD_RESIZE_SRQ, request.as_bytes())?;
        Ok(())
    }

    /// QUERY_SRQ.
    pub fn query_srq(&self, srqn: u32) -> Result<SrqAttr, CommandError> {
        self.command(CMD_QUERY_SRQ, number(srqn).as_bytes())
    }

    /// DESTROY_SRQ.
    pub fn destroy_srq(&self, srq: &Srq) -> Result<(), CommandError> {
        self.destroy(CMD_DESTROY_SRQ, srq.number())?;
        srq.buffer().set_with_device(false);
        let (uar, slot) = srq.uar_slot();
        uar.free_slot(slot);
        Ok(())
    }

    /// Fills in an address handle, without a command but for the first, which brings SET_AH_TABLE.
    pub fn create_ah(&self, pd: &Pd, peer: &QpEndpoint) -> Result<u32, CommandError> {
        let mut table = self.0.ahs.lock().unwrap_or_else(PoisonError::into_inner);
        let (buffer, used) = match &mut *table {
            Some(table) => table,
            None => {
                let buffer = self.0.memory.alloc_scattered(AH_ENTRIES * size_of::<AhEntry>())?;
                let tables = PageTables::of_buffer(&self.0.memory, &buffer)?;
                let request = SetAhTableRequest {
                    entries: (AH_ENTRIES as u32).into(),
                    reserved: 0.into(),
                    pages: tables.list,
                };
                let _: Nothing = self.command(CMD_SET_AH_TABLE, request.as_bytes())?;
                buffer.set_with_device(true);
                table.insert((buffer, 0))
            }
        };
        if *used >= AH_ENTRIES {
            return Err(Error::OutOfGuestMemory { wanted: size_of::<AhEntry>() }.into());
        }
        let mut entry = AhEntry { pdn: pd.number.into(), ..AhEntry::default() };
        entry.av.dgid = peer.gid;
        entry.av.dmac = peer.mac;
        entry.av.sgid_index = self.gid().index.into();
        entry.av.vlan = 0xffff.into();
        entry.av.hop_limit = 64;
        entry.av.port = 1;
        let at = *used * size_of::<AhEntry>();
        buffer.write(at + 4, &entry.as_bytes()[4..]);
        buffer.store_u32(at, AH_VALID);
        *used += 1;
        Ok(*used as u32 - 1)
    }
}
