// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! INIT, and the UARs and GIDs: what a driver sets up once.

use std::sync::Arc;

use rdma_midlayer::attr::GidEntry;
use rdma_midlayer::types::Gid;
use virtio_rdma_abi::config::{ABI_MAJOR, ABI_MINOR};
use virtio_rdma_abi::control as abi;
use virtio_rdma_abi::doorbell::{UAR_BITMAP_OFFSET, UAR_MAX_BYTES};

use super::memory::page_bytes;
use super::{Answer, BUSY, Call, INVALID, NO_OBJECT, NO_RESOURCES, Status, UNSUPPORTED};
use super::{bytes, number_answer};
use crate::ah::{AhTable, NO_VLAN};
use crate::device::limits;
use crate::door::{Door, Uar};
use crate::fast::FastMrs;
use crate::session::Session;

impl Call<'_> {
    pub(super) fn init(self) -> Answer {
        let request: abi::InitRequest = self.request()?;
        if let Some(left) = self.session.take() {
            left.end(self.cx);
        }
        self.device.forget_events();
        if u32::from(request.abi_major.get()) != ABI_MAJOR {
            log::error!(
                "{}: the guest's driver speaks version {} of the device, this daemon version {ABI_MAJOR}",
                self.device.name(),
                request.abi_major.get(),
            );
            return Err(UNSUPPORTED);
        }
        let vectors = request.num_comp_vectors.get();
        if vectors == 0 || vectors > u32::from(self.device.vectors()) {
            return Err(INVALID);
        }
        let memory = self.device.memory();
        let status = memory.page(request.status_page.get())?;
        let context = self.device.alloc_context(self.cx, vectors as u16)?;
        let capabilities = request.capabilities.get() & self.capabilities();
        let door = Door {
            gate: self.device.gate().clone(),
            status: Arc::new(status),
            vectors: vectors as u16,
            workers: self.device.workers().clone(),
            first: self.device.first_worker(),
            uars: Vec::new(),
            kicks: self.device.kicks().clone(),
            next: Default::default(),
        };
        if let Err(e) = context.set_dma_memory(self.cx, memory.all()) {
            log::debug!("{}: no key for all memory: {e}", self.device.name());
        }
        let fast = FastMrs::new(self.device.shared_memory().clone());
        *self.session = Some(Session::new(context, Arc::new(door), fast));
        Ok(bytes(&abi::InitAnswer {
            abi_major: (ABI_MAJOR as u16).into(),
            abi_minor: (ABI_MINOR as u16).into(),
            max_slots: limits::MAX_SLOTS.into(),
            capabilities: capabilities.into(),
        }))
    }

    /// What the HCA has beyond RC.
    pub(super) fn capabilities(&self) -> u64 {
        let Some(hca) = self.device.hca() else { return 0 };
        let Ok(attr) = hca.query_device(self.cx) else { return 0 };
        let has = |there: bool, cap: u64| if there { cap } else { 0 };
        abi::CAP_CQ_RESIZE
            | abi::CAP_CQ_MODERATION
            | abi::CAP_TIMESTAMP
            | has(attr.max_ah > 0, abi::CAP_UC | abi::CAP_UD)
            | has(attr.max_srq > 0, abi::CAP_SRQ)
            | has(attr.srq_resize, abi::CAP_SRQ_RESIZE)
            | has(attr.max_fast_reg_page_list_len > 0, abi::CAP_FAST_REG)
            | has(attr.max_mw > 0, abi::CAP_MW)
            | has(attr.local_dma_lkey, abi::CAP_LOCAL_DMA_LKEY)
            | has(attr.max_xrcd > 0, abi::CAP_XRC)
            | has(attr.atomic_write, abi::CAP_ATOMIC_WRITE)
            | has(attr.flush, abi::CAP_FLUSH)
            | has(attr.on_demand, abi::CAP_ON_DEMAND)
            | has(attr.max_mcast_grp > 0, abi::CAP_MCAST)
            | abi::CAP_REREG_MR
            | abi::CAP_DEVICE_MEMORY
    }

    pub(super) fn set_ah_table(mut self) -> Answer {
        let request: abi::SetAhTableRequest = self.request()?;
        let memory = self.device.memory();
        let session = self.session()?;
        let entries = request.entries.get();
        if entries == 0 || entries > limits::MAX_AH {
            return Err(INVALID);
        }
        if session.ahs.is_some() {
            return Err(BUSY);
        }
        let table = memory.resolve(&request.pages, 0, 0, page_bytes(&request.pages)?)?;
        if table.len() < u64::from(entries) * size_of::<abi::AhEntry>() as u64 {
            return Err(INVALID);
        }
        session.ahs = Some(AhTable::new(table, entries));
        Ok(Vec::new())
    }

    pub(super) fn create_uar(mut self) -> Answer {
        let request: abi::CreateUarRequest = self.request()?;
        let memory = self.device.memory();
        let cx = self.cx;
        let session = self.session()?;
        if session.uars.len() >= limits::MAX_UAR as usize {
            return Err(NO_RESOURCES);
        }
        let shift = u32::from(request.pages.page_shift);
        let length = u64::from(request.pages.num_pages.get()).checked_shl(shift).ok_or(INVALID)?;
        if length <= u64::from(UAR_BITMAP_OFFSET) || length > u64::from(UAR_MAX_BYTES) {
            return Err(INVALID);
        }
        let slots = (length - u64::from(UAR_BITMAP_OFFSET)) * 8;
        let all: u64 = session.uars.values().map(|uar| uar.num_slots()).sum();
        if all + slots > u64::from(limits::MAX_SLOTS) {
            return Err(NO_RESOURCES);
        }
        let region = memory.resolve(&request.pages, 0, 0, length)?;
        let number = session.new_uarn();
        session.uars.insert(number, Arc::new(Uar::new(region).ok_or(INVALID)?));
        session.change_door(cx);
        number_answer(number)
    }

    pub(super) fn destroy_uar(mut self) -> Answer {
        let number = self.number()?;
        let cx = self.cx;
        let session = self.session()?;
        let uar = session.uars.get(&number).ok_or(NO_OBJECT)?;
        let in_use = session.qps.values().any(|qp| Arc::ptr_eq(&qp.uar, uar))
            || session.srqs.values().any(|srq| Arc::ptr_eq(&srq.uar, uar));
        if in_use {
            return Err(BUSY);
        }
        session.uars.remove(&number);
        session.change_door(cx);
        Ok(Vec::new())
    }

    pub(super) fn add_gid(mut self) -> Answer {
        let request: abi::AddGidRequest = self.request()?;
        let (cx, device) = (self.cx, self.device);
        let session = self.session()?;
        if request.gid_type != abi::GID_TYPE_ROCE_V2 {
            return Err(UNSUPPORTED);
        }
        // The address of a group is nobody's own.
        if Gid(request.gid).is_multicast() {
            return Err(INVALID);
        }
        let vlan = request.vlan.get();
        let entry = GidEntry {
            gid: Gid(request.gid),
            mac: request.mac,
            vlan: (vlan != NO_VLAN).then_some(vlan),
        };
        session.context.add_gid(cx, request.index.get(), &entry).map_err(|e| {
            log::warn!("{}: GID {} is refused: {e}", device.name(), entry.gid);
            Status::from(e)
        })?;
        log::info!("{}: GID {} at index {}", device.name(), entry.gid, request.index.get());
        Ok(Vec::new())
    }

    pub(super) fn del_gid(mut self) -> Answer {
        let index = self.number()?;
        let cx = self.cx;
        self.session()?.context.del_gid(cx, index)?;
        Ok(Vec::new())
    }
}
