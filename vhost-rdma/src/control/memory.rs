// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PDs and MRs.

use std::sync::Arc;

use rdma_midlayer::types::Access;
use rdma_midlayer::verbs::{Mr, Pd, Rereg};
use virtio_rdma_abi::control as abi;

use super::{
    Answer, Call, INVALID, NO_OBJECT, NO_RESOURCES, NOT_PERMITTED, Status, UNSUPPORTED, bytes,
    number_answer,
};
use crate::device::limits;
use crate::fast::FastMr;
use crate::memory::GuestMemory;
use crate::session::{Lies, MrObject, PdObject, Session};

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
        check_quota(session, &memory, pages, 0)?;
        let user = memory.resolve(
            &request.pages,
            start(request.iova.get(), access),
            request.offset.get(),
            request.length.get(),
        )?;
        let lies = Lies::In(memory.regions_of(&user));
        let mr = pd.reg_mr(cx, user, access)?;
        Ok(bytes(&insert(session, mr, lies, pages, access)))
    }

    pub(super) fn get_dma_mr(mut self) -> Answer {
        let request: abi::GetDmaMrRequest = self.request()?;
        let access = access(request.access.get())?;
        let (cx, memory) = (self.cx, self.device.memory());
        let session = self.session()?;
        let pd = kernel_pd(session, request.pdn.get())?;
        let mr = pd.reg_mr(cx, memory.all().ok_or(INVALID)?, access)?;
        Ok(bytes(&insert(session, mr, Lies::Everywhere, 0, access)))
    }

    pub(super) fn alloc_mr(mut self) -> Answer {
        let request: abi::AllocMrRequest = self.request()?;
        let (cx, device) = (self.cx, self.device);
        let memory = device.memory();
        let session = self.session()?;
        if !session.pds.contains_key(&request.pdn.get()) {
            return Err(NO_OBJECT);
        }
        let hca = device.hca().ok_or(Status(abi::STATUS_NO_HCA))?;
        let most = hca.query_device(cx)?.max_fast_reg_page_list_len;
        let max_pages = request.max_pages.get();
        if max_pages == 0 || max_pages > most {
            return Err(if most == 0 { UNSUPPORTED } else { INVALID });
        }
        check_quota(session, &memory, max_pages.into(), 0)?;
        let list = memory.resolve(&request.list, 0, 0, page_bytes(&request.list)?)?;
        if list.len() < u64::from(max_pages) * 8 {
            return Err(INVALID);
        }
        let pd = kernel_pd(session, request.pdn.get())?;
        let mr = pd.alloc_mr(cx, max_pages)?;
        let fast = Arc::new(FastMr::new(list, max_pages));
        session.fast.insert(mr.lkey().0, fast.clone());
        // Remote rights are the work requests' affair.
        let access = Access::REMOTE_READ;
        Ok(bytes(&insert(session, mr, Lies::Fast(fast), max_pages.into(), access)))
    }

    pub(super) fn rereg_mr(mut self) -> Answer {
        let request: abi::ReregMrRequest = self.request()?;
        let (cx, memory) = (self.cx, self.device.memory());
        let session = self.session()?;
        let mrn = request.mrn.get();
        let object = session.mrs.get(&mrn).ok_or(NO_OBJECT)?;
        let pages_then = object.pages;
        let flags = request.flags.get();
        let known = abi::REREG_TRANSLATION | abi::REREG_PD | abi::REREG_ACCESS;
        if flags == 0 || flags & !known != 0 || !matches!(object.lies, Lies::In(_)) {
            return Err(INVALID);
        }
        let has = |flag| flags & flag != 0;
        let rights = has(abi::REREG_ACCESS).then(|| access(request.access.get())).transpose()?;
        let rights_then = rights.unwrap_or(object.access);
        let pd = match has(abi::REREG_PD) {
            true => Some(session.pds.get(&request.pdn.get()).ok_or(NO_OBJECT)?.pd.clone()),
            false => None,
        };
        let pages = u64::from(request.pages.num_pages.get());
        let (mut user, mut lies) = (None, None);
        if has(abi::REREG_TRANSLATION) {
            check_quota(session, &memory, pages, pages_then)?;
            let new = memory.resolve(
                &request.pages,
                start(request.iova.get(), rights_then),
                request.offset.get(),
                request.length.get(),
            )?;
            lies = Some(Lies::In(memory.regions_of(&new)));
            user = Some(new);
        }
        object.mr.rereg(cx, Rereg { memory: user, access: rights, pd })?;
        let object = session.mrs.get_mut(&mrn).ok_or(NO_OBJECT)?;
        object.access = rights_then;
        if let Some(lies) = lies {
            (object.lies, object.pages) = (lies, pages);
            session.mr_pages = session.mr_pages - pages_then + pages;
        }
        Ok(bytes(&mr_answer(mrn, &object.mr)))
    }

    pub(super) fn dereg_mr(mut self) -> Answer {
        let number = self.number()?;
        let cx = self.cx;
        let session = self.session()?;
        let object = session.mrs.get(&number).ok_or(NO_OBJECT)?;
        if matches!(object.lies, Lies::Fast(_)) {
            session.fast.remove(object.key);
        }
        object.mr.dereg(cx)?;
        if let Some(MrObject { lies, pages, .. }) = session.mrs.remove(&number) {
            session.mr_pages -= pages;
            if let Lies::Device(dmn) = lies {
                session.dms.entry(dmn).and_modify(|dm| dm.forget(number));
            }
        }
        Ok(Vec::new())
    }
}

/// A driver may list its memory several times over, but not without end: each page costs 8 bytes of
/// ours. Of those that are listed, `instead` are given up.
fn check_quota(
    session: &Session,
    memory: &GuestMemory,
    pages: u64,
    instead: u64,
) -> Result<(), Status> {
    (pages <= quota_left(session, memory, instead)).then_some(()).ok_or(NO_RESOURCES)
}

/// Pages that MRs may list beside those that they do, if `instead` of those are given up.
pub(super) fn quota_left(session: &Session, memory: &GuestMemory, instead: u64) -> u64 {
    let listed = session.mr_pages.saturating_sub(instead);
    let quota = (memory.bytes() >> 12).saturating_mul(limits::MR_PAGES_PER_PAGE);
    quota.max(limits::MIN_MR_PAGES).saturating_sub(listed)
}

/// A PD for keys that no process may have; from here on it is one.
fn kernel_pd(session: &mut Session, pdn: u32) -> Result<Arc<Pd>, Status> {
    let object = session.pds.get_mut(&pdn).ok_or(NO_OBJECT)?;
    if session.qps.values().any(|qp| qp.process_pdn == Some(pdn)) {
        return Err(NOT_PERMITTED);
    }
    object.kernel_only = true;
    Ok(object.pd.clone())
}

pub(super) fn insert(
    session: &mut Session,
    mr: Arc<Mr>,
    lies: Lies,
    pages: u64,
    access: Access,
) -> abi::MrAnswer {
    let answer = mr_answer(session.new_mrn(), &mr);
    let key = mr.lkey().0;
    session.mr_pages += pages;
    session.mrs.insert(answer.mrn.get(), MrObject { mr, lies, key, access, pages });
    answer
}

/// The address of an MR's first byte.
pub(super) fn start(iova: u64, access: Access) -> u64 {
    if access.contains(Access::ZERO_BASED) { 0 } else { iova }
}

/// Rights that the interface knows.
pub(crate) fn access(bits: u32) -> Result<Access, Status> {
    let known = abi::ACCESS_LOCAL_WRITE
        | abi::ACCESS_REMOTE_WRITE
        | abi::ACCESS_REMOTE_READ
        | abi::ACCESS_REMOTE_ATOMIC
        | abi::ACCESS_MW_BIND
        | abi::ACCESS_ZERO_BASED
        | abi::ACCESS_FLUSH_GLOBAL
        | abi::ACCESS_RELAXED_ORDERING;
    match bits {
        // A guest's memory is gone with its power.
        _ if bits & abi::ACCESS_FLUSH_PERSISTENT != 0 => Err(UNSUPPORTED),
        _ if bits & !known != 0 => Err(INVALID),
        _ => Ok(Access(bits)),
    }
}

/// Both keys, whatever the rights: those may change.
pub(super) fn mr_answer(number: u32, mr: &Mr) -> abi::MrAnswer {
    abi::MrAnswer {
        mrn: number.into(),
        lkey: mr.lkey().0.into(),
        rkey: mr.rkey().0.into(),
        reserved: 0.into(),
    }
}

/// Bytes of all pages of a list.
pub(super) fn page_bytes(list: &abi::PageList) -> Result<u64, Status> {
    let pages = u64::from(list.num_pages.get());
    pages.checked_shl(list.page_shift.into()).filter(|_| list.page_shift <= 30).ok_or(INVALID)
}
