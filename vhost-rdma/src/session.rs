// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What one driver has made of its device since INIT: the objects by their numbers. It ends when the
//! driver inits again, the device is reset, the front end leaves, or the HCA goes. The commands that
//! make the objects are in `control`.

use std::collections::HashMap;
use std::sync::Arc;

use rdma_midlayer::attr::{QpAttr, QpAttrMask};
use rdma_midlayer::driver::Poller;
use rdma_midlayer::memory::{OutOfRange, Paging, UserMemory};
use rdma_midlayer::types::{Access, QpState};
use rdma_midlayer::verbs::{Context, Cq, Mr, Mw, Pd, Qp, Xrcd};
use rdma_midlayer::{MaySleep, rcu};

use crate::ah::AhTable;
use crate::control::{self, DmObject, Status};
use crate::cq::CqPath;
use crate::device::Device;
use crate::door::{Door, Uar};
use crate::fast::{FastMr, FastMrs};
use crate::mapping::Identity;
use crate::memory::GuestMemory;
use crate::moderation::Moderator;
use crate::qp::QpPath;
use crate::srq::SrqPath;
use crate::worker::{Homes, Worker};

/// A protection domain.
pub struct PdObject {
    /// The midlayer's handle.
    pub pd: Arc<Pd>,
    /// It has had a key to all memory: QPs of processes are not for it.
    pub kernel_only: bool,
}

/// A memory region.
pub struct MrObject {
    /// The midlayer's handle.
    pub mr: Arc<Mr>,
    /// Where its memory is.
    pub lies: Lies,
    /// Its key at first.
    pub key: u32,
    /// Its rights.
    pub access: Access,
    /// Pages that it lists, for the quota.
    pub pages: u64,
}

/// Where the memory of an MR is.
pub enum Lies {
    /// In these regions of guest memory.
    In(Box<[Identity]>),
    /// In all that there are (a DMA MR).
    Everywhere,
    /// In this device memory.
    Device(u32),
    /// Where the last WR_REG_MR said.
    Fast(Arc<FastMr>),
    /// Where MAP_PAGES says, page by page.
    OnDemand(OnDemand),
}

/// An MR of memory on demand, without its pages.
pub struct OnDemand {
    /// The table of its pages.
    pub paging: Arc<Paging>,
    /// The address of its first byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Of the first byte in page 0.
    pub offset: u64,
}

impl OnDemand {
    /// Its memory, for the HCA.
    ///
    /// # Errors
    /// `OutOfRange` if it wraps round, or is more than the table has.
    pub fn memory(&self) -> Result<UserMemory, OutOfRange> {
        UserMemory::on_demand(self.start, self.length, self.offset, self.paging.clone())
    }

    /// It loses its pages, for the VM's memory has changed: those that work needs fault anew. May sleep.
    fn begin_anew(
        &mut self,
        cx: &MaySleep,
        mr: &Mr,
        memory: &GuestMemory,
    ) -> rdma_midlayer::Result<()> {
        let old = &self.paging;
        let wrong = rdma_midlayer::Error::Invalid("the table of an MR's pages");
        self.paging = memory
            .paging(old.number(), old.shift(), self.offset, self.length)
            .map_err(|_| wrong)?;
        mr.replace_memory(cx, Some(self.memory().map_err(|_| wrong)?))
    }
}

/// A completion queue.
pub struct CqObject {
    /// The midlayer's handle.
    pub cq: Arc<Cq>,
    /// Its data path.
    pub path: Arc<CqPath>,
}

/// A shared receive queue.
pub struct SrqObject {
    /// Its data path, with the midlayer's handle.
    pub path: Arc<SrqPath>,
    /// Slots of its ring.
    pub entries: u32,
    /// Most SGEs of a WQE.
    pub max_sge: u32,
    /// The UAR in which its pending bit is, and the bit.
    pub uar: Arc<Uar>,
    /// See `uar`.
    pub slot: u32,
}

/// A queue pair.
pub struct QpObject {
    /// Its data path, with the midlayer's handle.
    pub path: Arc<QpPath>,
    /// The UAR in which its pending bit is, and the bit.
    pub uar: Arc<Uar>,
    /// See `uar`.
    pub slot: u32,
    /// Its PD, if it is a process's QP: that PD gets no key to all memory.
    pub process_pdn: Option<u32>,
}

/// Everything that a driver has made.
pub struct Session {
    /// The tenant of the HCA.
    pub context: Arc<Context>,
    /// Vectors that the driver uses.
    pub vectors: u16,
    /// The doorbells as the workers have them.
    pub door: Arc<Door>,
    /// The workers that its QPs may be with.
    pub homes: Arc<Homes>,
    /// UARs by number.
    pub uars: HashMap<u32, Arc<Uar>>,
    /// PDs by number.
    pub pds: HashMap<u32, PdObject>,
    /// MRs by number.
    pub mrs: HashMap<u32, MrObject>,
    /// Pages that they list, in all.
    pub mr_pages: u64,
    /// Device memory by number.
    pub dms: HashMap<u32, DmObject>,
    /// Memory windows by number.
    pub mws: HashMap<u32, Arc<Mw>>,
    /// The MRs among them that WR_REG_MR is for.
    pub fast: Arc<FastMrs>,
    /// XRC domains by number.
    pub xrcds: HashMap<u32, Arc<Xrcd>>,
    /// What XRC targets have in place of a PD and CQs of their own.
    pub nobodys: Option<(Arc<Pd>, Arc<Cq>)>,
    /// CQs by number.
    pub cqs: HashMap<u32, CqObject>,
    /// QPs by number.
    pub qps: HashMap<u32, QpObject>,
    /// SRQs by number.
    pub srqs: HashMap<u32, SrqObject>,
    /// The driver's address handles, once it has given the table.
    pub ahs: Option<AhTable>,
    /// By vector, once a CQ of it wants its events held back.
    moderators: HashMap<u16, Arc<Moderator>>,
    next_number: u32,
}

impl Session {
    /// A driver's new beginning; the door has no UARs yet.
    pub fn new(context: Arc<Context>, door: Arc<Door>, fast: Arc<FastMrs>) -> Self {
        door.workers.iter().for_each(|w| w.add_door(door.clone()));
        Self {
            context,
            vectors: door.vectors,
            homes: Arc::new(Homes {
                workers: door.workers.clone(),
                first: door.first,
                vectors: door.vectors,
            }),
            door,
            uars: HashMap::new(),
            pds: HashMap::new(),
            mrs: HashMap::new(),
            mr_pages: 0,
            dms: HashMap::new(),
            mws: HashMap::new(),
            xrcds: HashMap::new(),
            nobodys: None,
            fast,
            cqs: HashMap::new(),
            qps: HashMap::new(),
            srqs: HashMap::new(),
            ahs: None,
            moderators: HashMap::new(),
            next_number: 1,
        }
    }

    /// The counters, with those of the living objects.
    pub fn counters(&self) -> virtio_rdma_abi::control::Counters {
        self.door.gate.counters().answer(
            self.context.violations(),
            self.qps.values().map(|qp| &*qp.path),
            self.cqs.values().map(|cq| &*cq.path),
            self.srqs.values().map(|srq| &*srq.path),
        )
    }

    /// A number that is free in the given map.
    pub fn free_number<T>(next: &mut u32, taken: &HashMap<u32, T>) -> u32 {
        loop {
            let number = *next;
            // 24 bits are enough for every limit, and 0 is nothing.
            *next = if number >= 0x00ff_ffff { 1 } else { number + 1 };
            if !taken.contains_key(&number) {
                return number;
            }
        }
    }

    /// A number for a new PD.
    pub fn new_pdn(&mut self) -> u32 {
        Self::free_number(&mut self.next_number, &self.pds)
    }

    /// A number for a new MR.
    pub fn new_mrn(&mut self) -> u32 {
        Self::free_number(&mut self.next_number, &self.mrs)
    }

    /// A number for new device memory.
    pub fn new_dmn(&mut self) -> u32 {
        Self::free_number(&mut self.next_number, &self.dms)
    }

    /// A number for a new memory window.
    pub fn new_mwn(&mut self) -> u32 {
        Self::free_number(&mut self.next_number, &self.mws)
    }

    /// A number for a new XRC domain.
    pub fn new_xrcdn(&mut self) -> u32 {
        Self::free_number(&mut self.next_number, &self.xrcds)
    }

    /// A number for a new UAR.
    pub fn new_uarn(&mut self) -> u32 {
        Self::free_number(&mut self.next_number, &self.uars)
    }

    /// Makes the workers see the UARs as they are now. When it returns no worker uses one that is no
    /// longer there. May sleep.
    pub fn change_door(&mut self, cx: &MaySleep) {
        let new = Arc::new(Door {
            gate: self.door.gate.clone(),
            status: self.door.status.clone(),
            vectors: self.door.vectors,
            workers: self.door.workers.clone(),
            first: self.door.first,
            uars: self.uars.values().cloned().collect(),
            kicks: self.door.kicks.clone(),
            next: Default::default(),
        });
        let workers: &[Arc<Worker>] = &new.workers;
        workers.iter().for_each(|w| w.replace_door(&self.door, new.clone()));
        self.door = new;
        rcu::synchronize(cx);
    }

    /// The device may be touched again: every worker looks at every QP and every arming.
    pub fn resume(&self) {
        self.door.workers.iter().for_each(|w| w.rouse());
        self.qps.values().for_each(|qp| qp.path.attend());
    }

    /// Who holds back events of a vector's CQs.
    pub fn moderator(&mut self, device: &Device, vector: u16) -> Option<Arc<Moderator>> {
        if let Some(there) = self.moderators.get(&vector) {
            return Some(there.clone());
        }
        let new = Moderator::new(device.comp_queue(vector.into())?.clone());
        device.worker_of(vector).add_poller(new.clone());
        self.moderators.insert(vector, new.clone());
        Some(new)
    }

    /// Ends a CQ; it stays if QPs use it. When it returns, nothing of the device touches its ring.
    /// May sleep.
    pub fn end_cq(&mut self, cx: &MaySleep, cqn: u32) -> Option<rdma_midlayer::Result<()>> {
        // Busy while a QP uses it: the midlayer keeps count.
        let object = self.cqs.get(&cqn)?;
        if let Err(e) = object.cq.destroy(cx) {
            return Some(Err(e));
        }
        if let Some(holder) = self.moderators.get(&object.path.vector()) {
            object.path.lose();
            holder.forget(cqn);
            rcu::synchronize(cx);
        }
        self.door.gate.counters().retire_cq(&object.path);
        self.cqs.remove(&cqn);
        Some(Ok(()))
    }

    /// A UAR and a slot of it that nobody rings with.
    pub fn free_slot(&self, uarn: u32, slot: u32) -> Result<(Arc<Uar>, u32), Status> {
        let uar = self.uars.get(&uarn).ok_or(control::NO_OBJECT)?;
        if u64::from(slot) >= uar.num_slots() {
            return Err(control::INVALID);
        }
        if uar.slots().get(slot as usize, &rcu::enter()).is_some() {
            return Err(control::BUSY);
        }
        Ok((uar.clone(), slot))
    }

    /// Ends an SRQ; it stays if QPs use it. May sleep.
    pub fn end_srq(&mut self, cx: &MaySleep, srqn: u32) -> Option<rdma_midlayer::Result<()>> {
        let object = self.srqs.get(&srqn)?;
        if let Err(e) = object.path.srq().destroy(cx) {
            return Some(Err(e));
        }
        object.uar.slots().remove(cx, object.slot as usize);
        self.door.gate.counters().retire_srq(&object.path);
        self.srqs.remove(&srqn);
        Some(Ok(()))
    }

    /// Ends a QP: when it returns, nothing of the device touches its rings. May sleep.
    pub fn end_qp(&mut self, cx: &MaySleep, qpn: u32) -> Option<rdma_midlayer::Result<()>> {
        let object = self.qps.remove(&qpn)?;
        object.path.close();
        object.uar.slots().remove(cx, object.slot as usize);
        self.door.gate.counters().retire_qp(&object.path);
        let qp: &Qp = object.path.qp();
        for (gid, lid) in qp.mcast_groups() {
            if let Err(e) = qp.detach_mcast(cx, &gid, lid) {
                log::warn!("QP {qpn} stays in group {gid}: {e}");
            }
        }
        let result = qp.destroy(cx);
        object.path.forget_ahs();
        Some(result)
    }

    /// After a change of guest memory: objects that lie in memory which is gone lose it. MRs answer
    /// with protection errors, QPs go to ERR, CQs overflow. When it returns nothing touches the old
    /// memory. May sleep.
    pub fn memory_changed(&mut self, cx: &MaySleep, memory: &GuestMemory) {
        // Turns that began with the memory as it was have told by then what they registered.
        rcu::synchronize(cx);
        if let Err(e) = self.context.set_dma_memory(cx, memory.all()) {
            log::debug!("no key for all memory: {e}");
        }
        for (mrn, object) in &mut self.mrs {
            if let Lies::OnDemand(on_demand) = &mut object.lies {
                self.mr_pages -= std::mem::take(&mut object.pages);
                if let Err(e) = on_demand.begin_anew(cx, &object.mr, memory) {
                    log::warn!("MR {mrn}: {e}");
                }
                continue;
            }
            let kept = match &object.lies {
                Lies::In(regions) if memory.holds(regions) => continue,
                Lies::Fast(fast) if fast.is_held_by(memory) => continue,
                Lies::Device(_) | Lies::OnDemand(_) => continue,
                Lies::In(_) | Lies::Fast(_) => None,
                Lies::Everywhere => memory.all(),
            };
            if !matches!(object.lies, Lies::Everywhere) {
                log::warn!("memory of MR {mrn} was removed from the VM");
            }
            if let Err(e) = object.mr.replace_memory(cx, kept) {
                log::warn!("MR {mrn}: {e}");
            }
        }
        for (cqn, object) in &self.cqs {
            let held =
                object.path.with_ring(|ring| memory.holds(&memory.regions_of(ring.memory())));
            if !held {
                log::warn!("the ring of CQ {cqn} was removed from the VM");
                object.path.lose();
            }
        }
        for (qpn, object) in &self.qps {
            if memory.holds(&memory.regions_of(object.path.memory())) {
                continue;
            }
            log::warn!("the rings of QP {qpn} were removed from the VM");
            object.path.close();
            let attr = QpAttr { state: QpState::Err, ..QpAttr::default() };
            if let Err(e) = object.path.qp().modify(cx, &attr, QpAttrMask::STATE) {
                log::warn!("QP {qpn}: {e}");
            }
        }
        for (srqn, object) in &self.srqs {
            if !memory.holds(&memory.regions_of(&object.path.memory())) {
                log::warn!("the ring of SRQ {srqn} was removed from the VM");
                object.path.lose();
            }
        }
        let uars = self.uars.len();
        self.uars.retain(|_, uar| memory.holds(&memory.regions_of(uar.memory())));
        if self.uars.len() != uars {
            self.change_door(cx);
        }
        rcu::synchronize(cx);
    }

    /// Ends everything. When it returns, nothing of the device touches the driver's memory. May sleep.
    pub fn end(mut self, cx: &MaySleep) {
        let log = |what: &str, number: u32, result: rdma_midlayer::Result<()>| {
            if let Err(e) = result {
                log::warn!("{what} {number} ends with: {e}");
            }
        };
        self.qps.values().for_each(|qp| qp.path.close());
        let door = &self.door;
        door.workers.iter().for_each(|w| w.remove_door(door));
        rcu::synchronize(cx);
        for qpn in self.qps.keys().copied().collect::<Vec<_>>() {
            if let Some(result) = self.end_qp(cx, qpn) {
                log("QP", qpn, result);
            }
        }
        for srqn in self.srqs.keys().copied().collect::<Vec<_>>() {
            if let Some(result) = self.end_srq(cx, srqn) {
                log("SRQ", srqn, result);
            }
        }
        for (xrcdn, xrcd) in self.xrcds.drain() {
            log("XRC domain", xrcdn, xrcd.dealloc(cx));
        }
        if let Some((pd, cq)) = self.nobodys.take() {
            log("XRC targets' CQ", 0, cq.destroy(cx));
            log("XRC targets' PD", 0, pd.dealloc(cx));
        }
        for cqn in self.cqs.keys().copied().collect::<Vec<_>>() {
            if let Some(result) = self.end_cq(cx, cqn) {
                log("CQ", cqn, result);
            }
        }
        for moderator in self.moderators.values() {
            let poller = moderator.clone() as Arc<dyn Poller>;
            self.door.workers.iter().for_each(|w| w.remove_poller(&poller));
        }
        for (mwn, mw) in self.mws.drain() {
            log("memory window", mwn, mw.dealloc(cx));
        }
        for (mrn, object) in self.mrs.drain() {
            log("MR", mrn, object.mr.dereg(cx));
        }
        for (pdn, object) in self.pds.drain() {
            log("PD", pdn, object.pd.dealloc(cx));
        }
        self.door.gate.counters().retire_violations(self.context.violations());
        log("context", 0, self.context.dealloc(cx));
    }
}
