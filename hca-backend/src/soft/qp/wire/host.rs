// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the protocol's state machines find round them in a QP: keys, memory, work queues, completions.
//! When they run is in `wire`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rdma_midlayer::attr::QpAttr;
use rdma_midlayer::driver::AsyncEvent;
use rdma_midlayer::rcu::Guard;
use rdma_midlayer::types::{Access, QpState, QpType, Qpn, RKey, Srqn, WcOpcode, WcStatus};
use rdma_midlayer::work::{Flush, SendData, SendWr, WcFlags, WorkCompletion};

use super::super::Qp;
use super::super::execute::Step;
use super::super::local::{self, KeyChange};
use super::super::paging::{Bytes, Lack, Waiting};
use super::super::placement::NotPlaced;
use super::super::responder::{NoWqe as NoRecv, Responder};
use crate::soft::cq::Cq;
use crate::soft::keys::Use;
use crate::soft::place::Place;
use crate::soft::rebind::BindFault;
use crate::soft::wire::frame::Path;
use crate::soft::wire::requester::{Data, Fault, Host as SendHost, SendWqe};
use crate::soft::wire::responder::{
    AHEAD, Atomic, Host as RecvHost, NoWqe, Pages, Received, Refusal,
};

impl From<Lack> for Pages {
    fn from(lack: Lack) -> Self {
        match lack {
            Lack::Nothing => Self::Here,
            Lack::Asked => Self::Asked,
            Lack::Refused => Self::Refused,
        }
    }
}

/// What a wire's requester finds round it.
pub(super) struct Sender<'a> {
    pub(super) qp: &'a Qp,
    pub(super) attr: &'a QpAttr,
    pub(super) cq: Option<&'a Arc<Cq>>,
    pub(super) guard: &'a Guard,
}

impl Sender<'_> {
    fn place<'w>(&'w self, wqe: &'w SendWqe, upto: u64) -> std::result::Result<Place<'w>, Fault> {
        let access = if wqe.is_read() { Access::LOCAL_WRITE } else { Access::NONE };
        match &wqe.data {
            Data::Inline(bytes) => Ok(Place::Bytes(bytes)),
            Data::Sges(sges) => {
                Place::of_sges(sges, upto, self.qp.view(access, self.guard)).map_err(|_| Fault)
            }
            Data::Flush(_) => Ok(Place::Bytes(&[])),
            Data::Reg(_) | Data::Bind(_) => Err(Fault),
        }
    }
}

impl SendHost for Sender<'_> {
    fn check(&mut self, wqe: &SendWqe) -> std::result::Result<(), Fault> {
        self.place(wqe, wqe.len).map(drop)
    }

    fn read(
        &mut self,
        wqe: &SendWqe,
        offset: u64,
        to: &mut [u8],
    ) -> std::result::Result<(), Fault> {
        let place = self.place(wqe, offset + to.len() as u64)?;
        place.read_at(offset, to).map_err(|_| Fault)
    }

    fn write(&mut self, wqe: &SendWqe, offset: u64, from: &[u8]) -> std::result::Result<(), Fault> {
        let place = self.place(wqe, offset + from.len() as u64)?;
        place.write_at(offset, from).map_err(|_| Fault)
    }

    fn pages(&mut self, wqe: &SendWqe, offset: u64, len: u64) -> Pages {
        if !self.qp.context.mrs.has_on_demand() {
            return Pages::Here;
        }
        let Ok(place) = self.place(wqe, wqe.len) else { return Pages::Here };
        let bytes = Bytes { offset, len, rest: wqe.len - offset };
        let refused = self.qp.fault.take_answer();
        let waiter = Some(Waiting::Requester(self.qp));
        self.qp.lacks(&place, bytes, wqe.is_read(), waiter, refused).into()
    }

    fn datagram(&mut self, wqe: &SendWqe) -> Option<(Path, Qpn, u32)> {
        let (ah, qpn, qkey) = wqe.datagram?;
        let path = self.qp.way(&ah, qpn, false)?;
        // With the high bit set it is the sender's own that counts (IBA 10.2.5).
        let qkey = if qkey & 1 << 31 != 0 { self.qp.qkey(self.attr) } else { qkey };
        Some((path, qpn, qkey))
    }

    fn local(&mut self, wqe: &SendWqe) -> Option<WcStatus> {
        let change = match &wqe.data {
            Data::Reg(reg) => KeyChange::Reg(reg.clone()),
            Data::Bind(bind) => KeyChange::Bind(*bind),
            Data::Sges(_) | Data::Inline(_) | Data::Flush(_) => KeyChange::Invalidate(wqe.rkey.0),
        };
        let mut draining = self.qp.draining.lock();
        let step = match *draining {
            Some(_) => local::go_on(&mut draining),
            None => self.qp.change_key(&change, &mut draining, self.guard),
        };
        match step {
            Step::Done => Some(WcStatus::Success),
            Step::Fail(status) => Some(status),
            _ => {
                self.qp.schedule_wire();
                None
            }
        }
    }

    fn complete(&mut self, wqe: &SendWqe, status: WcStatus) {
        let wr = SendWr {
            wr_id: wqe.wr_id,
            ticket: wqe.ticket,
            opcode: wqe.opcode,
            flags: wqe.flags,
            data: SendData::Inline(&[]),
            imm: wqe.imm,
            remote_addr: wqe.remote_addr,
            rkey: wqe.rkey,
            compare_add: wqe.compare_add,
            swap: wqe.swap,
            ud: None,
            srqn: None,
        };
        self.qp.complete(self.cq, &wr, wqe.len, status);
    }

    fn fail(&mut self) {
        self.qp.enter_error();
    }
}

/// What a wire's responder finds round it.
pub(super) struct Receiver<'a> {
    pub(super) qp: &'a Qp,
    pub(super) responder: &'a mut Responder,
    pub(super) guard: &'a Guard,
    /// The WQE in hand makes no sense.
    pub(super) malformed: bool,
}

impl Receiver<'_> {
    /// How memory is used by a message that named an SRQ, if it has one: a later one may have named another.
    fn use_by_read(&self, srqn: Srqn, access: Access) -> Option<Use> {
        let mut of = self.qp.usage(access);
        if self.qp.created.xrc {
            of.pd = self.qp.srq_of_domain(srqn)?.pd();
        }
        Some(of)
    }

    /// Asks for the pages of a place here that are missing.
    fn ask(&self, place: &Place<'_>, bytes: Bytes, write: bool) -> Pages {
        // What is lost on an unreliable connection is not tried again.
        let reliable = self.qp.created.qp_type != QpType::Uc;
        let waiter = reliable.then_some(Waiting::Responder(self.qp));
        let refused = self.qp.recv_fault.take_answer();
        self.qp.lacks(place, bytes, write, waiter, refused).into()
    }

    fn room(&self) -> u64 {
        self.responder.wqe.sges().iter().map(|sge| u64::from(sge.length)).sum()
    }
}

impl RecvHost for Receiver<'_> {
    fn check(&mut self, rkey: RKey, addr: u64, len: u64, access: Access) -> bool {
        let of = self.qp.usage(access);
        self.qp.context.mrs.remote(rkey, addr, len, &of, self.guard).is_some()
    }

    fn write(&mut self, rkey: RKey, addr: u64, from: &[u8]) -> bool {
        let (mrs, len) = (&self.qp.context.mrs, from.len() as u64);
        mrs.remote(rkey, addr, len, &self.qp.usage(Access::REMOTE_WRITE), self.guard)
            .is_some_and(|(memory, addr)| memory.write(addr, from).is_ok())
    }

    fn select(&mut self, srqn: Srqn) -> bool {
        self.qp.select_srq(self.responder, srqn)
    }

    fn read(&mut self, srqn: Srqn, rkey: RKey, addr: u64, to: &mut [u8]) -> bool {
        let (mrs, len) = (&self.qp.context.mrs, to.len() as u64);
        let Some(of) = self.use_by_read(srqn, Access::REMOTE_READ) else { return false };
        mrs.remote(rkey, addr, len, &of, self.guard)
            .is_some_and(|(memory, addr)| memory.read(addr, to).is_ok())
    }

    fn pages(&mut self, srqn: Srqn, at: (RKey, u64), len: (u64, u64), write: bool) -> Pages {
        let ((rkey, addr), (len, rest)) = (at, len);
        if len == 0 || !self.qp.context.mrs.has_on_demand() {
            return Pages::Here;
        }
        // Whether the memory may be used so is looked at by who uses it.
        let Some(of) = self.use_by_read(srqn, Access::NONE) else { return Pages::Here };
        let found = self.qp.context.mrs.remote(rkey, addr, rest, &of, self.guard);
        let Some((memory, addr)) = found else { return Pages::Here };
        self.ask(&Place::One { memory, addr }, Bytes { offset: 0, len, rest }, write)
    }

    fn pages_in_hand(&mut self, offset: u64, len: u64) -> Pages {
        if len == 0 || !self.qp.context.mrs.has_on_demand() {
            return Pages::Here;
        }
        // The message may be as long as the WQE, all of whose memory need not be sound.
        let soon = self.room().saturating_sub(offset).min(AHEAD);
        for rest in [soon.max(len), len] {
            let view = self.qp.view(Access::LOCAL_WRITE, self.guard);
            let place = Place::of_sges(self.responder.wqe.sges(), offset + rest, view);
            if let Ok(place) = place {
                return self.ask(&place, Bytes { offset, len, rest }, true);
            }
        }
        Pages::Here
    }

    fn atomic(
        &mut self,
        rkey: RKey,
        addr: u64,
        atomic: Atomic,
    ) -> std::result::Result<u64, Refusal> {
        let of = self.qp.usage(Access::REMOTE_ATOMIC);
        let found = self.qp.context.mrs.remote(rkey, addr, 8, &of, self.guard);
        let (memory, addr) = found.ok_or(Refusal::Access)?;
        let old = memory.with_atomic(addr, |word| match atomic {
            Atomic::CmpSwap { compare, swap } => word
                .compare_exchange(compare, swap, Ordering::SeqCst, Ordering::SeqCst)
                .unwrap_or_else(|other| other),
            Atomic::FetchAdd { add } => word.fetch_add(add, Ordering::SeqCst),
        });
        // The consumer's address was aligned; the memory behind it is not.
        old.ok_or(Refusal::Invalid)
    }

    fn atomic_write(
        &mut self,
        rkey: RKey,
        addr: u64,
        word: [u8; 8],
    ) -> std::result::Result<(), Refusal> {
        self.qp.write_whole(rkey, addr, word, self.guard).map_err(|not| match not {
            NotPlaced::Misaligned => Refusal::Invalid,
            NotPlaced::Access => Refusal::Access,
        })
    }

    fn flush(&mut self, rkey: RKey, addr: u64, flush: &Flush) -> bool {
        self.qp.flush_memory(rkey, addr, flush, self.guard)
    }

    fn take_wqe(&mut self) -> std::result::Result<u64, NoWqe> {
        if !self.responder.held {
            self.responder.take(None).map_err(|no| match no {
                NoRecv::Empty => NoWqe::Empty,
                NoRecv::Malformed => {
                    self.malformed = true;
                    NoWqe::Malformed
                }
            })?;
        }
        Ok(self.room())
    }

    fn receive(&mut self, offset: u64, from: &[u8]) -> bool {
        let view = self.qp.view(Access::LOCAL_WRITE, self.guard);
        let end = offset + from.len() as u64;
        Place::of_sges(self.responder.wqe.sges(), end, view)
            .is_ok_and(|place| place.write_at(offset, from).is_ok())
    }

    fn invalidate(&mut self, key: u32) -> Option<bool> {
        let draining = &mut self.responder.draining;
        if draining.is_none() {
            match self.qp.take_key_away(key, self.guard) {
                Ok(taken) => *draining = Some(taken),
                Err(BindFault) => return Some(false),
            }
        }
        (local::go_on(draining) == Step::Done).then_some(true)
    }

    fn complete(&mut self, received: &Received) {
        let responder = &mut *self.responder;
        let word = received.imm.or(received.inv);
        let flags = match (received.imm, received.inv) {
            (Some(_), _) => WcFlags::WITH_IMM,
            (None, Some(_)) => WcFlags::WITH_INV,
            (None, None) => WcFlags::default(),
        };
        let wc = WorkCompletion {
            wr_id: responder.wqe.wr_id,
            ticket: responder.wqe.ticket,
            status: WcStatus::Success,
            opcode: if received.write { WcOpcode::RecvRdmaWithImm } else { WcOpcode::Recv },
            flags,
            qpn: self.qp.qpn,
            byte_len: received.len,
            imm: word.unwrap_or(0),
            src_qpn: responder.dest_qpn,
            vendor_err: 0,
            vlan: 0,
            sl: 0,
        };
        responder.held = false;
        self.qp.counts.recvs.add(1);
        self.qp.push(responder.cq.as_ref(), &wc, received.solicited);
    }

    fn refuse(&mut self, why: Refusal) {
        let (qp, responder) = (self.qp, &mut *self.responder);
        let event = AsyncEvent::QpReqErr(qp.qpn);
        match why {
            Refusal::Invalid => qp.refuse_invalid(responder),
            Refusal::Access => qp.refuse_access(responder),
            Refusal::TooLong => {
                qp.refuse(responder, WcStatus::LocLenErr, event, WcStatus::RemInvReqErr)
            }
            Refusal::Receive if self.malformed => {
                qp.refuse(responder, WcStatus::LocQpOpErr, event, WcStatus::RemOpErr)
            }
            Refusal::Receive => {
                qp.refuse(responder, WcStatus::LocProtErr, event, WcStatus::RemOpErr)
            }
        };
    }

    fn established(&mut self) {
        if !std::mem::replace(&mut self.responder.established, true)
            && self.qp.state() == QpState::Rtr
        {
            self.qp.context.dispatch(AsyncEvent::CommEst(self.qp.qpn));
        }
    }
}
