// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! CQs: their rings, their size, and when they tell the driver.

use std::sync::Arc;

use rdma_midlayer::rcu;
use rdma_midlayer::verbs::CqSpec;
use virtio_rdma_abi::control as abi;

use super::memory::page_bytes;
use super::{Answer, Call, INVALID, NO_OBJECT, Status, number_answer};
use crate::cq::{CqPath, ResizedCq};
use crate::device::limits;
use crate::memory::GuestMemory;
use crate::ring::cq::CqRing;
use crate::session::CqObject;

impl Call<'_> {
    pub(super) fn create_cq(mut self) -> Answer {
        let request: abi::CreateCqRequest = self.request()?;
        let (cx, device) = (self.cx, self.device);
        let memory = device.memory();
        let session = self.session()?;
        let entries = request.entries.get();
        let vector = request.vector.get();
        let flags = request.flags.get();
        if vector >= u32::from(session.vectors) || flags & !abi::CQ_FLAG_TIMESTAMP != 0 {
            return Err(INVALID);
        }
        let ring = ring(&memory, &request.pages, entries, flags & abi::CQ_FLAG_TIMESTAMP != 0)?;
        let path = CqPath::new(ring, device.gate().clone(), vector as u16);
        let queue = device.comp_queue(vector as usize).ok_or(INVALID)?.clone();
        let handler = {
            let path = path.clone();
            move |solicited| {
                if path.check_arm_moderated(solicited) {
                    queue.raise(path.clone());
                }
            }
        };
        let cq = session.context.create_cq(
            cx,
            CqSpec {
                cqe: entries,
                vector,
                memory: Some(path.clone()),
                handler: Some(Box::new(handler)),
            },
        )?;
        let cqn = cq.cqn().0;
        path.name(cqn);
        session.cqs.insert(cqn, CqObject { cq, path });
        number_answer(cqn)
    }

    pub(super) fn resize_cq(mut self) -> Answer {
        let request: abi::ResizeCqRequest = self.request()?;
        let (cx, device) = (self.cx, self.device);
        let memory = device.memory();
        let session = self.session()?;
        let CqObject { cq, path } = session.cqs.get(&request.cqn.get()).ok_or(NO_OBJECT)?;
        let entries = request.entries.get();
        let stamps = path.with_ring(CqRing::stamps);
        let new = Arc::new(ring(&memory, &request.pages, entries, stamps)?);
        let pushes = ResizedCq { path: path.clone(), ring: new.clone() };
        cq.resize_cq(cx, entries, Some(Arc::new(pushes)))?;
        let last = path.with_ring(|old| {
            session.door.gate.counters().retire_ring(old);
            path.moderation().restart();
            // Nobody pushes here any more, so nobody would see that it is armed.
            if path.check_arm_of(old, true)
                && let Some(queue) = device.comp_queue(path.vector().into())
            {
                queue.raise(path.clone());
            }
            old.produced()
        });
        path.move_to(new);
        // Handlers that still look at the old ring.
        rcu::synchronize(cx);
        number_answer(last)
    }

    pub(super) fn modify_cq(mut self) -> Answer {
        let request: abi::ModifyCqRequest = self.request()?;
        let device = self.device;
        let session = self.session()?;
        let path = session.cqs.get(&request.cqn.get()).ok_or(NO_OBJECT)?.path.clone();
        let (count, period) = (request.count.get(), request.period.get());
        if count > limits::MAX_CQ_COUNT || period > limits::MAX_CQ_PERIOD {
            return Err(INVALID);
        }
        let holder = session.moderator(device, path.vector()).ok_or(INVALID)?;
        path.moderation().set(count, period, &holder);
        Ok(Vec::new())
    }

    pub(super) fn destroy_cq(mut self) -> Answer {
        let number = self.number()?;
        let cx = self.cx;
        self.session()?.end_cq(cx, number).ok_or(NO_OBJECT)??;
        Ok(Vec::new())
    }
}

/// The ring of a request, in its buffer.
fn ring(
    memory: &GuestMemory,
    pages: &abi::PageList,
    entries: u32,
    stamps: bool,
) -> Result<CqRing, Status> {
    if !entries.is_power_of_two() || entries > limits::MAX_CQE {
        return Err(INVALID);
    }
    let buffer = Arc::new(memory.resolve(pages, 0, 0, page_bytes(pages)?)?);
    CqRing::new(&buffer, entries, stamps).ok_or(INVALID)
}
