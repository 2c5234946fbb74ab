// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PDs and MRs.

use rdma_midlayer::types::Access;
use rdma_midlayer::verbs::Mr;
use virtio_rdma_abi::control as abi;

use super::{Answer, Call, INVALID, NO_OBJECT, NO_RESOURCES, NOT_PERMITTED, bytes, number_answer};
use crate::device::limits;
use crate::session::{MrObject, PdObject};

impl Call<'_> {
    pub(super) fn alloc_pd(mut self) -> Answer {
        let cx = self.cx;
        let session = self.session()?;
        let pd = session.context.alloc_pd(cx)?;
        let number = session.new_pdn();
        session.pds.insert(number, PdObject { pd, kernel_only: false });
        number_answer(number)
    }

    pub(super) fn dealloc_pd(mut self) -> Answer {
        let number = self.number()?;
        let cx = self.cx;
        let session = self.session()?;
        session.pds.get(&number).ok_or(NO_OBJECT)?.pd.dealloc(cx)?;
        session.pds.remove(&number);
        Ok(Vec::new())
    }

    pub(super) fn reg_mr(mut self) -> Answer {
        let request: abi::RegMrRequest = self.request()?;
        let access = access(request.access.get())?;
        let (cx, memory) = (self.cx, self.device.memory());
        let session = self.session()?;
        let pd = &session.pds.get(&request.pdn.get()).ok_or(NO_OBJECT)?.pd;
        let pages = u64::from(request.pages.num_pages.get());
        let listed: u64 = session.mrs.values().map(|mr| mr.pages).sum();
        // A driver may list its memory several times over, but not without end: each page costs 8
        // bytes of ours.
        let quota = (memory.bytes() >> 12).saturating_mul(limits::MR_PAGES_PER_PAGE);
        if listed.saturating_add(pages) > quota.max(limits::MIN_MR_PAGES) {
            return Err(NO_RESOURCES);
        }
        let user = memory.resolve(
            &request.pages,
            request.iova.get(),
            request.offset.get(),
            request.length.get(),
        )?;
        let regions = Some(memory.regions_of(&user));
        let mr = pd.reg_mr(cx, user, access)?;
        let answer = mr_answer(session.new_mrn(), &mr, access);
        session.mrs.insert(answer.mrn.get(), MrObject { mr, regions, pages });
        Ok(bytes(&answer))
    }

    pub(super) fn get_dma_mr(mut self) -> Answer {
        let request: abi::GetDmaMrRequest = self.request()?;
        let access = access(request.access.get())?;
        let (cx, memory) = (self.cx, self.device.memory());
        let session = self.session()?;
        let pdn = request.pdn.get();
        let object = session.pds.get_mut(&pdn).ok_or(NO_OBJECT)?;
        if session.qps.values().any(|qp| qp.process_pdn == Some(pdn)) {
            return Err(NOT_PERMITTED);
        }
        object.kernel_only = true;
        let pd = &object.pd;
        let mr = pd.reg_mr(cx, memory.all().ok_or(INVALID)?, access)?;
        let answer = mr_answer(session.new_mrn(), &mr, access);
        session.mrs.insert(answer.mrn.get(), MrObject { mr, regions: None, pages: 0 });
        Ok(bytes(&answer))
    }

    pub(super) fn dereg_mr(mut self) -> Answer {
        let number = self.number()?;
        let cx = self.cx;
        let session = self.session()?;
        session.mrs.get(&number).ok_or(NO_OBJECT)?.mr.dereg(cx)?;
        session.mrs.remove(&number);
        Ok(Vec::new())
    }
}

/// Rights that the interface knows.
fn access(bits: u32) -> Result<Access, super::Status> {
    let known = abi::ACCESS_LOCAL_WRITE
        | abi::ACCESS_REMOTE_WRITE
        | abi::ACCESS_REMOTE_READ
        | abi::ACCESS_REMOTE_ATOMIC
        | abi::ACCESS_MW_BIND
        | abi::ACCESS_ZERO_BASED
        | abi::ACCESS_RELAXED_ORDERING;
    (bits & !known == 0).then_some(Access(bits)).ok_or(INVALID)
}

/// An MR without remote rights has no remote key.
fn mr_answer(number: u32, mr: &Mr, access: Access) -> abi::MrAnswer {
    abi::MrAnswer {
        mrn: number.into(),
        lkey: mr.lkey().0.into(),
        rkey: if access.is_remote() { mr.rkey().0 } else { 0 }.into(),
        reserved: 0.into(),
    }
}

/// Bytes of all pages of a list.
pub(super) fn page_bytes(list: &abi::PageList) -> Result<u64, super::Status> {
    let pages = u64::from(list.num_pages.get());
    pages.checked_shl(list.page_shift.into()).filter(|_| list.page_shift <= 30).ok_or(INVALID)
}
