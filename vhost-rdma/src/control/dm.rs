// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Device memory: a little memory of the daemon's own, which the guest's processes reach by copies and,
//! once it is registered, by work requests.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rdma_midlayer::memory::{Mapping, Run, UserMemory};
use virtio_rdma_abi::control as abi;

use super::memory::{access, insert};
use super::{Answer, BUSY, Call, INVALID, NO_OBJECT, NO_RESOURCES, bytes, number_answer};
use crate::device::limits;
use crate::session::Lies;

/// A piece of device memory.
pub struct DmObject {
    words: Arc<dyn Mapping>,
    bytes: u64,
    /// The MRs that lie in it.
    mrs: HashSet<u32>,
}

struct Words(Box<[AtomicU64]>);

// SAFETY: the box lives as long as the value and does not move; atomics may be written through a shared
// pointer.
unsafe impl Mapping for Words {
    fn base(&self) -> *mut u8 {
        self.0.as_ptr().cast_mut().cast()
    }

    fn len(&self) -> usize {
        self.0.len() * 8
    }
}

impl DmObject {
    /// Zeroed, so that nothing of its last owner's is in it.
    fn new(bytes: u64) -> Self {
        let words = (0..bytes.div_ceil(8)).map(|_| AtomicU64::new(0)).collect();
        Self { words: Arc::new(Words(words)), bytes, mrs: HashSet::new() }
    }

    /// One of its MRs is no more.
    pub fn forget(&mut self, mrn: u32) {
        self.mrs.remove(&mrn);
    }

    /// The part that begins `offset` bytes in, under addresses from 0 on.
    fn part(&self, offset: u64, length: u64) -> Result<UserMemory, super::Status> {
        let end = offset.checked_add(length).ok_or(INVALID)?;
        if end > self.bytes {
            return Err(INVALID);
        }
        let run =
            Run { mapping: self.words.clone(), offset: offset as usize, len: length as usize };
        UserMemory::new(0, length, 0, None, [run]).map_err(|_| INVALID)
    }
}

impl Call<'_> {
    pub(super) fn alloc_dm(mut self) -> Answer {
        let request: abi::AllocDmRequest = self.request()?;
        let length = request.length.get();
        let session = self.session()?;
        if length == 0 || length > limits::MAX_DM {
            return Err(INVALID);
        }
        let taken: u64 = session.dms.values().map(|dm| dm.bytes).sum();
        if taken + length > limits::MAX_DM {
            return Err(NO_RESOURCES);
        }
        let number = session.new_dmn();
        session.dms.insert(number, DmObject::new(length));
        number_answer(number)
    }

    pub(super) fn free_dm(mut self) -> Answer {
        let number = self.number()?;
        let session = self.session()?;
        if !session.dms.get(&number).ok_or(NO_OBJECT)?.mrs.is_empty() {
            return Err(BUSY);
        }
        session.dms.remove(&number);
        Ok(Vec::new())
    }

    pub(super) fn copy_dm(mut self) -> Answer {
        let request: abi::CopyDmRequest = self.request()?;
        let (length, memory) = (request.length.get(), self.device.memory());
        let session = self.session()?;
        let dm = session.dms.get(&request.dmn.get()).ok_or(NO_OBJECT)?;
        let theirs = memory.resolve(&request.pages, 0, 0, length)?;
        let ours = dm.part(request.dm_offset.get(), length)?;
        let done = match request.write {
            0 => theirs.copy_from(0, &ours, 0, length),
            1 => ours.copy_from(0, &theirs, 0, length),
            _ => return Err(INVALID),
        };
        done.map_err(|_| INVALID)?;
        Ok(Vec::new())
    }

    pub(super) fn reg_dm_mr(mut self) -> Answer {
        let request: abi::RegDmMrRequest = self.request()?;
        let access = access(request.access.get())?;
        let cx = self.cx;
        let session = self.session()?;
        let pd = &session.pds.get(&request.pdn.get()).ok_or(NO_OBJECT)?.pd;
        let dm = session.dms.get(&request.dmn.get()).ok_or(NO_OBJECT)?;
        let part = dm.part(request.offset.get(), request.length.get())?;
        let mr = pd.reg_mr(cx, part, access)?;
        let dmn = request.dmn.get();
        let answer = insert(session, mr, Lies::Device(dmn), 0, access);
        session.dms.entry(dmn).and_modify(|dm| _ = dm.mrs.insert(answer.mrn.get()));
        Ok(bytes(&answer))
    }
}
