// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A QP that talks to its peer by packets: which work requests go that way, who runs the state machines
//! of `soft::wire`, and when. What those find round them is in `host`.
//!
//! PSNs are shared with the direct path, so that a QP may change its way between two messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rdma_midlayer::attr::{AhAttr, QpAttr, QpAttrMask};
use rdma_midlayer::rcu::Guard;
use rdma_midlayer::types::{Gid, QpState, QpType, Qpn, RKey, WcStatus, WrOpcode};
use rdma_midlayer::work::{SendData, SendFlags, SendWr};
use rdma_midlayer::{Error, Result};

use super::datagram::{Arrival, Dest};
use super::local::KeyChange;
use super::queue::Current;
use super::requester::Requester;
use super::responder::Responder;
use super::{FLUSH_A_TURN, Qp};
use crate::soft::link::{Armed, Link};
use crate::soft::run_queue::Queued;
use crate::soft::wire::counters::{Both, Counters};
use crate::soft::wire::frame::{
    Datagram, FrameBatch, GRH_LEN, Path, Reach, group_mac, source_port,
};
use crate::soft::wire::opcode::{Kind, Transport};
use crate::soft::wire::packet::Packet;
use crate::soft::wire::requester::{
    Config as SendConfig, Data, Out, Progress, Requester as WireRequester, SendWqe, Service,
};
use crate::soft::wire::responder::{Config as RecvConfig, Responder as WireResponder};

mod host;

use host::{Receiver, Sender};

/// WRs held for a consumer that keeps them in a ring of its own.
pub(super) const WINDOW: usize = 128;

/// A QP's hold of its link.
pub(super) struct OnWire {
    pub(super) link: Arc<Link>,
    queued: Queued,
    armed: Armed,
    counters: Counters,
}

impl OnWire {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link, queued: Queued::new(), armed: Armed::new(), counters: Counters::default() }
    }

    fn both<'a>(&'a self, link: &'a Link) -> Both<'a> {
        Both { port: link.port_counters(), qp: &self.counters }
    }
}

/// A QP's packets on their way: the requester's half.
pub(super) struct Sending {
    pub(super) state: WireRequester,
    /// The way was found in this epoch of the network.
    epoch: u64,
}

impl Sending {
    pub(super) fn new(qp_type: QpType, qpn: Qpn, link: &Link) -> Self {
        let config = send_config(qp_type, qpn, &QpAttr::default(), link);
        Self { state: WireRequester::new(config, link.config().rate), epoch: 0 }
    }
}

/// The responder's half.
pub(super) struct Receiving {
    state: WireResponder,
    epoch: u64,
}

impl Receiving {
    /// What is to be sent is forgotten.
    pub(super) fn drop_replies(&mut self) {
        self.state.drop_replies();
    }

    pub(super) fn new(qp_type: QpType) -> Self {
        Self { state: WireResponder::new(recv_config(qp_type, &QpAttr::default())), epoch: 0 }
    }
}

fn send_config(qp_type: QpType, qpn: Qpn, attr: &QpAttr, link: &Link) -> SendConfig {
    let service = match qp_type {
        QpType::Uc => Service::Unreliable,
        QpType::Ud | QpType::Gsi => Service::Datagram,
        _ => Service::Reliable,
    };
    let mtu = match service {
        Service::Datagram => link.config().mtu,
        _ => attr.path_mtu,
    };
    SendConfig {
        service,
        xrc: qp_type == QpType::XrcIni,
        qpn,
        dest: attr.dest_qpn,
        mtu: mtu.bytes(),
        timeout: attr.timeout,
        retry_cnt: attr.retry_cnt,
        rnr_retry: attr.rnr_retry,
        max_rd_atomic: attr.max_rd_atomic,
    }
}

fn recv_config(qp_type: QpType, attr: &QpAttr) -> RecvConfig {
    RecvConfig {
        reliable: matches!(qp_type, QpType::Rc | QpType::XrcTgt),
        xrc: qp_type == QpType::XrcTgt,
        dest: attr.dest_qpn,
        mtu: attr.path_mtu.bytes(),
        access: attr.access,
        max_rd_atomic: attr.max_dest_rd_atomic,
        min_rnr_timer: attr.min_rnr_timer,
    }
}

/// Takes the packets' half in hand. While nothing is on its way by packets the direct path may have used
/// PSNs: `after_wire` must not bring back what was there before.
fn take_wire(r: &mut Requester) -> Option<Box<Sending>> {
    let mut wire = r.wire.take()?;
    if wire.state.is_empty() {
        wire.state.set_psn(r.link.psn);
    }
    Some(wire)
}

/// A WR as the wire's requester holds it.
fn wqe_of(wr: &SendWr<'_>, dest: Option<Dest>, error: Option<WcStatus>) -> SendWqe {
    let (data, len) = match wr.data {
        _ if wr.opcode == WrOpcode::RegMr && matches!(wr.data, SendData::Sges(_)) => {
            (Data::Reg(None), 0)
        }
        SendData::Inline(bytes) => (Data::Inline(bytes.to_vec()), bytes.len() as u64),
        SendData::Sges(sges) => (
            Data::Sges(sges.iter().copied().collect()),
            sges.iter().map(|sge| u64::from(sge.length)).sum(),
        ),
        SendData::Reg(reg) => (Data::Reg(Some(reg.clone())), 0),
        SendData::Bind(bind) => (Data::Bind(*bind), 0),
        SendData::Flush(flush) => (Data::Flush(flush), 0),
    };
    SendWqe {
        wr_id: wr.wr_id,
        ticket: wr.ticket,
        opcode: wr.opcode,
        flags: wr.flags,
        imm: wr.imm,
        remote_addr: wr.remote_addr,
        rkey: wr.rkey,
        srqn: wr.srqn.unwrap_or_default(),
        compare_add: wr.compare_add,
        swap: wr.swap,
        data,
        len,
        datagram: dest.map(|dest| (dest.path, dest.qpn, dest.qkey)),
        error,
        progress: Progress::default(),
    }
}

impl Qp {
    /// Whether the next WR of a QP goes by packets: behind others that do, or to a peer that is not of
    /// this daemon. Never for one behind which others wait for their turn by the direct way.
    #[cold]
    pub(super) fn goes_by_wire(&self, r: &Requester, dest: Option<Gid>) -> bool {
        let Some(wire) = &r.wire else { return false };
        !wire.state.is_empty() || self.is_remote(dest.unwrap_or(r.attr.ah.dgid))
    }

    /// Whether packets of a path MTU are too long for the port that they would go through.
    pub(super) fn exceeds_port(&self, attr: &QpAttr) -> bool {
        let longest = self.wire.as_ref().map(|wire| wire.link.config().mtu.code());
        longest
            .is_some_and(|longest| attr.path_mtu.code() > longest && self.is_remote(attr.ah.dgid))
    }

    fn is_remote(&self, gid: Gid) -> bool {
        let network = &self.context.network;
        network.force_wire() || network.find(gid).is_none()
    }

    /// post_send of a WR that goes by packets.
    #[cold]
    pub(super) fn send_by_wire(
        &self,
        r: &mut Requester,
        wr: &SendWr<'_>,
        guard: &Guard,
    ) -> Result<()> {
        if self.destroyed.load(Ordering::Acquire) {
            return Err(Error::Gone);
        }
        let state = self.state();
        if matches!(state, QpState::Reset | QpState::Init | QpState::Rtr) {
            return Err(Error::BadState("post_send"));
        }
        let room =
            if self.created.consumer_ring { WINDOW } else { self.created.cap.max_send_wr as usize };
        if r.wire.as_ref().is_none_or(|wire| wire.state.len() >= room) {
            r.ready_due = true;
            return Err(Error::QueueFull);
        }
        self.enter_wire(r, wqe_of(wr, Dest::of(wr), None));
        if state == QpState::Err && self.flush_sends(r, FLUSH_A_TURN, guard) {
            self.schedule();
        }
        Ok(())
    }

    /// The current WR goes by packets.
    pub(super) fn current_to_wire(&self, r: &mut Requester) {
        let Some(wr) = r.current.wr() else { return };
        let error = r.current.is_malformed().then_some(WcStatus::LocQpOpErr);
        let mut wqe = wqe_of(&wr, r.current.dest(), error);
        match r.current.key() {
            Some(KeyChange::Reg(reg)) => wqe.data = Data::Reg(reg.clone()),
            Some(KeyChange::Bind(bind)) => wqe.data = Data::Bind(*bind),
            Some(KeyChange::Invalidate(_)) | None => {}
        }
        r.current = Current::default();
        self.enter_wire(r, wqe);
    }

    fn enter_wire(&self, r: &mut Requester, wqe: SendWqe) {
        let Some(wire) = &mut r.wire else { return };
        if wire.state.is_empty() {
            wire.state.set_psn(r.link.psn);
            // What is sent in one go now is not known as the usual way.
            r.link.forget_peer();
        }
        wire.state.post(wqe);
        self.schedule_wire();
    }

    /// Gives the QP a turn at its link.
    pub(super) fn schedule_wire(&self) {
        if let Some(wire) = &self.wire
            && wire.queued.request()
        {
            wire.link.schedule(self.this.clone());
        }
    }

    /// Takes over what modify has set. Both sides are locked.
    pub(super) fn configure_wire(
        &self,
        r: &mut Requester,
        responder: &mut Responder,
        mask: QpAttrMask,
    ) {
        let Some(on_wire) = &self.wire else { return };
        let qp_type = self.created.qp_type;
        if let Some(wire) = &mut r.wire {
            wire.state.configure(send_config(qp_type, self.qpn, &r.attr, &on_wire.link));
            if mask.contains(QpAttrMask::SQ_PSN) {
                wire.state.set_psn(r.attr.sq_psn);
            }
            wire.epoch = 0;
        }
        if let Some(wire) = &mut responder.wire {
            wire.state.configure(recv_config(qp_type, &r.attr));
            wire.epoch = 0;
        }
    }

    /// As new. Both sides are locked.
    pub(super) fn reset_wire(&self, r: &mut Requester, responder: &mut Responder) {
        let Some(on_wire) = &self.wire else { return };
        on_wire.link.disarm(self.uid, &on_wire.armed);
        let qp_type = self.created.qp_type;
        r.wire = Some(Box::new(Sending::new(qp_type, self.qpn, &on_wire.link)));
        responder.wire = Some(Box::new(Receiving::new(qp_type)));
    }

    /// Flushes what goes by packets. Whether there is more.
    pub(super) fn flush_wire(&self, r: &mut Requester, max: usize, guard: &Guard) -> bool {
        let Some(mut wire) = r.wire.take() else { return false };
        let more = wire.state.flush(max, &mut self.send_host(r, guard));
        r.wire = Some(wire);
        more
    }

    /// Sends what may be sent now: answers first.
    pub(crate) fn wire_transmit(
        &self,
        now: Instant,
        link: &Link,
        out: (&mut FrameBatch, &mut FrameBatch, &mut dyn FnMut() -> u16),
        budget: usize,
        guard: &Guard,
    ) {
        let Some(on_wire) = &self.wire else { return };
        on_wire.queued.begin();
        if self.context.suspended(guard) {
            return;
        }
        let (batch, local, identification) = out;
        let counters = on_wire.both(link);
        let mut out = Out { batch, local, identification, budget, counters };
        let mut more = self.transmit_answers(&mut out, guard);
        let Some(mut requester) = self.requester.0.try_lock_briefly() else {
            return self.schedule_wire();
        };
        let r = &mut *requester;
        let state = self.state();
        if matches!(state, QpState::Rts | QpState::Sqd)
            && let Some(mut wire) = take_wire(r)
        {
            self.find_way(&mut wire.epoch, r.attr.ah, r.attr.dest_qpn, |path| {
                wire.state.set_path(path);
            });
            let begin = state == QpState::Rts;
            more |= wire.state.transmit(now, begin, &mut self.send_host(r, guard), &mut out);
            self.after_wire(r, wire);
        }
        drop(requester);
        if more {
            self.schedule_wire();
        }
    }

    /// Sends the answers that are queued. Whether there are more.
    fn transmit_answers(&self, out: &mut Out<'_>, guard: &Guard) -> bool {
        let Some(mut responder) = self.responder.0.try_lock_briefly() else { return true };
        let responder = &mut *responder;
        let due = responder.wire.as_ref().is_some_and(|wire| wire.state.has_replies());
        if !due || self.state() == QpState::Reset {
            return false;
        }
        let Some(mut wire) = responder.wire.take() else { return false };
        let path =
            AhAttr { dgid: responder.dgid, sgid_index: responder.sgid_index, ..responder.ah };
        self.find_way(&mut wire.epoch, path, responder.dest_qpn, |path| wire.state.set_path(path));
        let more = wire.state.transmit(&mut self.recv_host(responder, guard), out);
        responder.wire = Some(wire);
        more
    }

    /// Time has passed.
    pub(crate) fn wire_expire(&self, now: Instant, link: &Link, guard: &Guard) {
        let Some(on_wire) = &self.wire else { return };
        on_wire.armed.expired();
        // `go_on` gives the QP a turn, which starts the timer anew.
        if self.context.suspended(guard) {
            return;
        }
        let mut requester = self.requester.0.lock();
        let r = &mut *requester;
        if !matches!(self.state(), QpState::Rts | QpState::Sqd) {
            return;
        }
        let Some(mut wire) = take_wire(r) else { return };
        let counters = on_wire.both(link);
        let send = wire.state.expire(now, &mut self.send_host(r, guard), counters);
        self.after_wire(r, wire);
        drop(requester);
        if send {
            self.schedule_wire();
        }
    }

    /// A packet for this QP. False if it is not for it after all. Never sleeps.
    pub(crate) fn wire_receive(
        &self,
        now: Instant,
        link: &Link,
        datagram: &Datagram<'_>,
        packet: &Packet<'_>,
        guard: &Guard,
    ) -> bool {
        let Some(on_wire) = &self.wire else { return false };
        if self.context.suspended(guard) || self.destroyed.load(Ordering::Acquire) {
            return true;
        }
        on_wire.counters.rcvd_pkts.inc();
        on_wire.counters.rcvd_bytes.add(packet.payload.len() as u64);
        let transport = match self.created.qp_type {
            QpType::Rc => Transport::Rc,
            QpType::Uc => Transport::Uc,
            QpType::Ud | QpType::Gsi => Transport::Ud,
            QpType::XrcIni | QpType::XrcTgt => Transport::Xrc,
        };
        let op = packet.op;
        if op.kind == Kind::Cnp {
            return self.receive_cnp(now, on_wire, link, datagram);
        }
        if op.transport != transport {
            return false;
        }
        if transport == Transport::Ud {
            return self.receive_datagram(on_wire, link, datagram, packet, guard);
        }
        // One half of an extended connection has nothing to be answered, the other nothing to be asked.
        let of_other_half = match self.created.qp_type {
            QpType::XrcTgt => op.is_response(),
            QpType::XrcIni => !op.is_response(),
            _ => false,
        };
        if of_other_half {
            return false;
        }
        if op.is_response() {
            return self.receive_response(now, on_wire, link, (datagram, packet), guard);
        }
        self.receive_request(now, on_wire, link, (datagram, packet), guard)
    }

    fn receive_cnp(
        &self,
        now: Instant,
        on_wire: &OnWire,
        link: &Link,
        datagram: &Datagram<'_>,
    ) -> bool {
        let mut requester = self.requester.0.lock();
        let ours = requester.attr.ah.dgid == datagram.source;
        if let Some(wire) = requester.wire.as_mut().filter(|_| ours) {
            on_wire.both(link).inc(|c| &c.rcvd_cnp);
            wire.state.congestion(now);
        }
        ours
    }

    fn receive_response(
        &self,
        now: Instant,
        on_wire: &OnWire,
        link: &Link,
        (datagram, packet): (&Datagram<'_>, &Packet<'_>),
        guard: &Guard,
    ) -> bool {
        let mut requester = self.requester.0.lock();
        let r = &mut *requester;
        if !matches!(self.state(), QpState::Rts | QpState::Sqd)
            || r.attr.ah.dgid != datagram.source
            || self.context.gid(r.attr.ah.sgid_index) != Some(datagram.dest)
        {
            return false;
        }
        let Some(mut wire) = take_wire(r) else { return false };
        let mut send = datagram.congested && wire.state.marked(now);
        let counters = on_wire.both(link);
        send |= wire.state.receive(now, packet, &mut self.send_host(r, guard), counters);
        self.after_wire(r, wire);
        drop(requester);
        if send {
            self.schedule_wire();
        }
        true
    }

    fn receive_request(
        &self,
        now: Instant,
        on_wire: &OnWire,
        link: &Link,
        (datagram, packet): (&Datagram<'_>, &Packet<'_>),
        guard: &Guard,
    ) -> bool {
        let mut responder = self.responder.0.lock();
        let responder = &mut *responder;
        let answers =
            matches!(self.state(), QpState::Rtr | QpState::Rts | QpState::Sqd | QpState::Sqe);
        if !answers
            || responder.dgid != datagram.source
            || self.context.gid(responder.sgid_index) != Some(datagram.dest)
        {
            return false;
        }
        let Some(mut wire) = responder.wire.take() else { return false };
        if datagram.congested {
            wire.state.marked(now);
        }
        wire.state.set_epsn(responder.epsn);
        let counters = on_wire.both(link);
        wire.state.receive(packet, &mut self.recv_host(responder, guard), counters);
        responder.epsn = wire.state.epsn();
        let send = wire.state.has_replies();
        responder.wire = Some(wire);
        if send {
            self.schedule_wire();
        }
        true
    }

    fn receive_datagram(
        &self,
        on_wire: &OnWire,
        link: &Link,
        datagram: &Datagram<'_>,
        packet: &Packet<'_>,
        guard: &Guard,
    ) -> bool {
        let mut responder = self.responder.0.lock();
        if !matches!(self.state(), QpState::Rtr | QpState::Rts | QpState::Sqd) {
            return false;
        }
        if !self.qkey_is_right(&responder, packet.deth.qkey) {
            on_wire.both(link).inc(|c| &c.qkey_err);
            return true;
        }
        let mut bytes = Vec::with_capacity(GRH_LEN + packet.payload.len());
        bytes.extend_from_slice(&datagram.grh());
        bytes.extend_from_slice(packet.payload);
        let wr = SendWr {
            wr_id: 0,
            ticket: 0,
            opcode: if packet.op.imm { WrOpcode::SendWithImm } else { WrOpcode::Send },
            flags: if packet.bth.solicited { SendFlags::SOLICITED } else { SendFlags::default() },
            data: SendData::Inline(&[]),
            imm: packet.imm,
            remote_addr: 0,
            rkey: RKey(0),
            compare_add: 0,
            swap: 0,
            ud: None,
            srqn: None,
        };
        let arrival = Arrival {
            wr: &wr,
            from: packet.deth.src,
            qkey: packet.deth.qkey,
            packet: &bytes,
            vlan: datagram.vlan,
            sl: datagram.priority,
        };
        self.receive(&mut responder, &arrival, guard);
        true
    }

    /// What becomes of a QP when its packets have got on.
    fn after_wire(&self, r: &mut Requester, wire: Box<Sending>) {
        let deadline = wire.state.deadline();
        if wire.state.is_empty() {
            r.link.psn = wire.state.psn();
        }
        r.wire = Some(wire);
        r.announce_room();
        self.drained(r);
        if let (Some(at), Some(on_wire)) = (deadline, &self.wire) {
            on_wire.link.arm(at, self.uid, &on_wire.armed, &self.this);
        }
    }

    /// Finds the way to a peer anew if addresses have changed.
    fn find_way(&self, seen: &mut u64, ah: AhAttr, dest: Qpn, set: impl FnOnce(Option<Path>)) {
        let epoch = self.context.network.epoch();
        if *seen != epoch {
            *seen = epoch;
            set(self.way(&ah, dest, self.created.qp_type != QpType::Ud));
        }
    }

    /// The way to a peer.
    fn way(&self, ah: &AhAttr, dest: Qpn, mark: bool) -> Option<Path> {
        let own = self.context.gid_entry(ah.sgid_index)?;
        // Routers may tell of congestion, where the consumer has not said anything about it.
        let ecn = u8::from(mark && ah.traffic_class & 3 == 0) << 1;
        let network = &self.context.network;
        let reach = match ah.dgid.is_multicast() {
            true => Reach::Both,
            false if network.find(ah.dgid).is_some() => Reach::Inside,
            false => Reach::Outside,
        };
        Some(Path {
            smac: own.mac,
            dmac: group_mac(ah.dgid).unwrap_or(ah.dmac),
            vlan: ah.vlan.or(own.vlan).map(|id| u16::from(ah.sl & 7) << 13 | id & 0xfff),
            sgid: own.gid,
            dgid: ah.dgid,
            flow_label: ah.flow_label & 0xf_ffff,
            traffic_class: ah.traffic_class | ecn,
            hop_limit: if ah.hop_limit == 0 { 64 } else { ah.hop_limit },
            source_port: source_port(ah.flow_label, self.qpn, dest),
            reach,
        })
    }

    fn send_host<'a>(&'a self, r: &'a Requester, guard: &'a Guard) -> Sender<'a> {
        Sender { qp: self, attr: &r.attr, cq: r.cq.as_ref(), guard }
    }

    fn recv_host<'a>(&'a self, responder: &'a mut Responder, guard: &'a Guard) -> Receiver<'a> {
        Receiver { qp: self, responder, guard, malformed: false }
    }

    /// What was counted of the QP's packets.
    pub(crate) fn wire_counters(&self) -> Option<&Counters> {
        self.wire.as_ref().map(|wire| &wire.counters)
    }
}
