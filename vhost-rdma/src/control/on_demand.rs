// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory on demand: MRs whose pages the driver puts there when work wants them, and takes away.

use std::sync::Arc;

use rdma_midlayer::memory::{PageRange, Paging};
use rdma_midlayer::verbs::Mr;
use virtio_rdma_abi::control as abi;
use virtio_rdma_abi::control::on_demand as odp;

use super::memory::{access, mr_answer, page_bytes, quota_left, start};
use super::{Answer, Call, INVALID, NO_OBJECT, NO_RESOURCES, Status, UNSUPPORTED, bytes};
use crate::session::{Lies, MrObject, OnDemand, Session};

/// Pages for which the table of an MR's pages grows at once.
const NODE: u64 = 512;

/// What can use memory on demand.
#[derive(Default)]
pub(super) struct OdpCaps {
    pub(super) general: u32,
    pub(super) rc: u32,
    pub(super) uc: u32,
    pub(super) ud: u32,
    pub(super) xrc: u32,
}

impl OdpCaps {
    /// Of an HCA that has memory on demand, as `DeviceAttr::on_demand` of the midlayer says it, or not.
    pub(super) fn of(there: bool) -> Self {
        if !there {
            return Self::default();
        }
        let connected = odp::ODP_SUPPORT_SEND
            | odp::ODP_SUPPORT_WRITE
            | odp::ODP_SUPPORT_READ
            | odp::ODP_SUPPORT_ATOMIC
            | odp::ODP_SUPPORT_SRQ_RECV;
        Self {
            general: odp::ODP_SUPPORT | odp::ODP_SUPPORT_IMPLICIT,
            rc: connected | odp::ODP_SUPPORT_RECV,
            uc: odp::ODP_SUPPORT_SEND,
            ud: odp::ODP_SUPPORT_SEND,
            xrc: connected,
        }
    }
}

impl Call<'_> {
    pub(super) fn reg_odp_mr(mut self) -> Answer {
        let request: odp::RegOdpMrRequest = self.request()?;
        let access = access(request.access.get())?;
        let (cx, device) = (self.cx, self.device);
        let memory = device.memory();
        let session = self.session()?;
        let pd = session.pds.get(&request.pdn.get()).ok_or(NO_OBJECT)?.pd.clone();
        let attr = device.hca().ok_or(Status(abi::STATUS_NO_HCA))?.query_device(cx)?;
        if !attr.on_demand {
            return Err(UNSUPPORTED);
        }
        let (offset, length) = (request.offset.get(), request.length.get());
        let start = start(request.iova.get(), access);
        let shift = u32::from(request.page_shift);
        let sound = match length {
            odp::ODP_ALL => start == 0 && offset == 0,
            _ => length > 0 && length <= attr.max_mr_size,
        };
        if !sound || !(12..=30).contains(&shift) || offset >> shift != 0 {
            return Err(INVALID);
        }
        let mrn = session.new_mrn();
        let paging = memory.paging(mrn, shift, offset, length)?;
        let on_demand = OnDemand { paging, start, length, offset };
        let mr = pd.reg_mr(cx, on_demand.memory().map_err(|_| INVALID)?, access)?;
        let answer = mr_answer(mrn, &mr);
        let (lies, key) = (Lies::OnDemand(on_demand), mr.lkey().0);
        session.mrs.insert(mrn, MrObject { mr, lies, key, access, pages: 0 });
        Ok(bytes(&answer))
    }

    pub(super) fn map_pages(mut self) -> Answer {
        let request: odp::MapPagesRequest = self.request()?;
        let (cx, memory) = (self.cx, self.device.memory());
        let session = self.session()?;
        let mrn = request.mrn.get();
        let (_, paging) = on_demand(session, mrn)?;
        let flags = request.flags.get();
        let range =
            PageRange { first: request.first.get(), count: request.pages.num_pages.get().into() };
        if flags & !odp::PAGES_WRITABLE != 0
            || u32::from(request.pages.page_shift) != paging.shift()
            || !inside(&paging, range)
        {
            return Err(INVALID);
        }
        let pages = memory.resolve(&request.pages, 0, 0, page_bytes(&request.pages)?)?;
        let most_new = quota_left(session, &memory, 0) / NODE;
        let writable = flags & odp::PAGES_WRITABLE != 0;
        let mapped = paging.map(cx, range.first, pages.runs(), writable, most_new);
        let object = session.mrs.get_mut(&mrn).ok_or(NO_OBJECT)?;
        let room = paging.room();
        session.mr_pages = session.mr_pages + room - object.pages;
        object.pages = room;
        match mapped {
            Ok(true) => {}
            // What is there of them by now is not more than was asked for; the driver does not know.
            other => {
                paging.unmap(cx, range);
                return Err(if other.is_ok() { NO_RESOURCES } else { INVALID });
            }
        }
        object.mr.answer_page_faults(cx, range, false)?;
        Ok(Vec::new())
    }

    pub(super) fn unmap_pages(mut self) -> Answer {
        let request: odp::PagesRequest = self.request()?;
        let cx = self.cx;
        let (_, paging) = on_demand(self.session()?, request.mrn.get())?;
        let range = range(&request, &paging)?;
        paging.unmap(cx, range);
        Ok(Vec::new())
    }

    pub(super) fn take_page_fault(mut self) -> Answer {
        let number = self.number()?;
        let cx = self.cx;
        let (mr, _) = on_demand(self.session()?, number)?;
        let answer = match mr.take_page_fault(cx)? {
            None => odp::PageFaultAnswer::default(),
            Some(fault) => odp::PageFaultAnswer {
                first: fault.pages.first.into(),
                count: fault.pages.count.into(),
                flags: if fault.write { odp::PAGES_WRITABLE } else { 0 }.into(),
                reserved: 0.into(),
            },
        };
        Ok(bytes(&answer))
    }

    pub(super) fn refuse_pages(mut self) -> Answer {
        let request: odp::PagesRequest = self.request()?;
        let cx = self.cx;
        let (mr, paging) = on_demand(self.session()?, request.mrn.get())?;
        mr.answer_page_faults(cx, range(&request, &paging)?, true)?;
        Ok(Vec::new())
    }
}

/// An MR of memory on demand.
fn on_demand(session: &Session, mrn: u32) -> Result<(Arc<Mr>, Arc<Paging>), Status> {
    match session.mrs.get(&mrn) {
        Some(MrObject { mr, lies: Lies::OnDemand(on_demand), .. }) => {
            Ok((mr.clone(), on_demand.paging.clone()))
        }
        _ => Err(NO_OBJECT),
    }
}

/// The pages of a request, if the MR has as many.
fn range(request: &odp::PagesRequest, paging: &Paging) -> Result<PageRange, Status> {
    let range = PageRange { first: request.first.get(), count: request.count.get() };
    inside(paging, range).then_some(range).ok_or(INVALID)
}

fn inside(paging: &Paging, range: PageRange) -> bool {
    let end = range.first.checked_add(range.count);
    range.count > 0 && end.is_some_and(|end| end <= paging.pages())
}
