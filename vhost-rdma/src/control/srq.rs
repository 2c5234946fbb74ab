// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! SRQs.

use std::sync::Arc;

use rdma_midlayer::MaySleep;
use rdma_midlayer::verbs::SrqSpec;
use virtio_rdma_abi::control as abi;
use virtio_rdma_abi::event::EVENT_SRQ_LIMIT_REACHED;
use virtio_rdma_abi::ring::{QP_RINGS_OFFSET, Sge, WQE_RECV_DATA};

use super::memory::page_bytes;
use super::{Answer, BUSY, Call, INVALID, NO_OBJECT, Status, bytes, number_answer};
use crate::device::limits;
use crate::door::Slot;
use crate::ring::Geometry;
use crate::ring::recv::RecvRing;
use crate::session::SrqObject;
use crate::srq::{SrqPath, SrqRing};

impl Call<'_> {
    pub(super) fn create_srq(mut self) -> Answer {
        let r: abi::CreateSrqRequest = self.request()?;
        let (cx, device) = (self.cx, self.device);
        let memory = device.memory();
        let session = self.session()?;
        let pd = session.pds.get(&r.pdn.get()).ok_or(NO_OBJECT)?.pd.clone();
        let (uar, slot) = session.free_slot(r.uarn.get(), r.slot.get())?;
        let xrc = match Self::xrcd(session, r.xrcdn.get())? {
            Some(xrcd) => Some((xrcd, session.cqs.get(&r.cqn.get()).ok_or(NO_OBJECT)?.cq.clone())),
            None => None,
        };
        let buffer = Arc::new(memory.resolve(&r.pages, 0, 0, page_bytes(&r.pages)?)?);
        let (entries, max_sge) = (r.entries.get(), r.max_sge.get());
        let geometry = Geometry { entries, offset: r.offset.get(), stride_shift: r.stride_shift };
        let sound = geometry.is_sound(QP_RINGS_OFFSET, buffer.len(), limits::MAX_QP_WR)
            && max_sge <= limits::MAX_SGE
            && WQE_RECV_DATA + max_sge * size_of::<Sge>() as u32 <= 1 << r.stride_shift
            && r.limit.get() <= entries
            && r.flags & !abi::QP_FLAG_KERNEL == 0;
        if !sound {
            return Err(INVALID);
        }
        let ring = RecvRing::new(&buffer, geometry, max_sge).ok_or(INVALID)?;
        let number = Arc::new(std::sync::OnceLock::new());
        let limit_reached = {
            let (device, number) = (device.weak(), number.clone());
            move || {
                if let (Some(device), Some(srqn)) = (device.upgrade(), number.get()) {
                    device.raise(EVENT_SRQ_LIMIT_REACHED, *srqn);
                }
            }
        };
        let ring = SrqRing::new(
            buffer,
            ring,
            device.gate().clone(),
            (slot % u32::from(session.vectors)) as u16,
            0,
            Box::new(limit_reached),
        );
        let srq = pd.create_srq(
            cx,
            SrqSpec { max_wr: entries, max_sge, limit: 0, recv_source: Some(ring.clone()), xrc },
        )?;
        let srqn = srq.srqn().0;
        let _ = number.set(srqn);
        let path = SrqPath::new(ring, srq);
        if uar.slots().insert(slot as usize, Arc::new(Slot::Srq(path.clone()))).is_err() {
            let _ = path.srq().destroy(cx);
            return Err(BUSY);
        }
        arm_limit(cx, &path, r.limit.get())?;
        session.srqs.insert(srqn, SrqObject { path, entries, max_sge, uar, slot });
        number_answer(srqn)
    }

    pub(super) fn modify_srq(mut self) -> Answer {
        let r: abi::ModifySrqRequest = self.request()?;
        let cx = self.cx;
        let object = self.session()?.srqs.get(&r.srqn.get()).ok_or(NO_OBJECT)?;
        if r.limit.get() > object.entries {
            return Err(INVALID);
        }
        arm_limit(cx, &object.path, r.limit.get())?;
        Ok(Vec::new())
    }

    pub(super) fn resize_srq(mut self) -> Answer {
        let r: abi::ResizeSrqRequest = self.request()?;
        let (cx, memory) = (self.cx, self.device.memory());
        let object = self.session()?.srqs.get_mut(&r.srqn.get()).ok_or(NO_OBJECT)?;
        let buffer = Arc::new(memory.resolve(&r.pages, 0, 0, page_bytes(&r.pages)?)?);
        let entries = r.entries.get();
        let geometry = Geometry { entries, offset: r.offset.get(), stride_shift: r.stride_shift };
        let sound = geometry.is_sound(QP_RINGS_OFFSET, buffer.len(), limits::MAX_QP_WR)
            && WQE_RECV_DATA + object.max_sge * size_of::<Sge>() as u32 <= 1 << r.stride_shift
            && object.path.ring().limit() <= entries;
        if !sound {
            return Err(INVALID);
        }
        let ring = RecvRing::new(&buffer, geometry, object.max_sge).ok_or(INVALID)?;
        object.path.srq().resize(cx, entries)?;
        object.path.ring().move_to(buffer, ring);
        object.entries = entries;
        Ok(Vec::new())
    }

    pub(super) fn query_srq(mut self) -> Answer {
        let number = self.number()?;
        let cx = self.cx;
        let object = self.session()?.srqs.get(&number).ok_or(NO_OBJECT)?;
        let limit = match object.path.srq() {
            srq if srq.takes_ahead() => srq.query(cx)?.limit,
            _ => object.path.ring().limit(),
        };
        Ok(bytes(&abi::SrqAttr {
            entries: object.entries.into(),
            max_sge: object.max_sge.into(),
            limit: limit.into(),
            reserved: 0.into(),
        }))
    }

    pub(super) fn destroy_srq(mut self) -> Answer {
        let number = self.number()?;
        let cx = self.cx;
        self.session()?.end_srq(cx, number).ok_or(NO_OBJECT)??;
        Ok(Vec::new())
    }
}

/// Arms the limit where it is known how many WQEs are left: in the ring, or in the HCA.
fn arm_limit(cx: &MaySleep, path: &SrqPath, limit: u32) -> Result<(), Status> {
    if path.srq().takes_ahead() {
        path.srq().arm_limit(cx, limit)?;
    } else {
        path.ring().arm_limit(limit);
    }
    Ok(())
}
