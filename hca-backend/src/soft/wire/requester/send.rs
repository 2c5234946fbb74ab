// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which packets a work request becomes, and when they may go.

use std::time::Instant;

use rdma_midlayer::types::{Access, WcStatus, WrOpcode};
use rdma_midlayer::work::SendFlags;

use crate::soft::wire::responder::Pages;

use super::{Data, Host, MAX_MESSAGE, Out, Requester, Service};
use crate::soft::wire::frame::Path;
use crate::soft::wire::headers::{AtomicEth, Bth, Deth, Feth, Reth};
use crate::soft::wire::opcode::code;
use crate::soft::wire::packet::{DEFAULT_PKEY, Head, packets, within};

/// Bytes of a READ whose pages must be there before it is asked for.
const READ_AHEAD: u64 = 64 << 20;
/// Packets of one READ request; a longer READ becomes several, so that PSNs stay in order.
const READ_CHUNK: u32 = 1 << 20;
/// PSNs that may be under way.
const MAX_PSNS: i32 = 1 << 22;
/// Bytes of the body of a CNP.
const CNP_BODY: [u8; 16] = [0; 16];

/// What became of an attempt to send.
enum Sent {
    /// A packet went, or a WR was dealt with without one.
    Yes,
    /// Nothing can go now.
    No,
}

impl Requester {
    /// Makes packets until nothing may go, or `out` is full: then true. Unless `begin`, no WR is begun
    /// that is not yet.
    pub fn transmit(
        &mut self,
        now: Instant,
        begin: bool,
        host: &mut impl Host,
        out: &mut Out<'_>,
    ) -> bool {
        self.notify_congestion(out);
        if self.rnr_until.is_some_and(|until| now < until) {
            return false;
        }
        self.rnr_until = None;
        loop {
            if out.is_full() {
                return true;
            }
            self.paced_until = self.rate.wait(now);
            if self.paced_until.is_some() {
                return false;
            }
            if let Sent::No = self.send_next(now, begin, host, out) {
                return false;
            }
        }
    }

    /// A CNP, if one is due (annex A17.9.3).
    fn notify_congestion(&mut self, out: &mut Out<'_>) {
        if let Some(path) = self.path.filter(|_| !out.is_full() && self.notifier.is_due()) {
            self.notifier.take();
            push_cnp(&path, self.config.dest, out);
        }
    }

    fn send_next(
        &mut self,
        now: Instant,
        begin: bool,
        host: &mut impl Host,
        out: &mut Out<'_>,
    ) -> Sent {
        let Some(wqe) = self.queue.get(self.at) else { return Sent::No };
        if !wqe.progress.begun {
            let fenced = wqe.flags.contains(SendFlags::FENCE) || wqe.is_local();
            if !begin || fenced && self.reads > 0 {
                return Sent::No;
            }
            if let Some(status) = self.unfit(host) {
                return self.hold_back(status, host);
            }
            let Some(wqe) = self.queue.get(self.at) else { return Sent::No };
            if wqe.is_local() {
                return self.do_local(host);
            }
            if wqe.is_answered() && self.reads >= self.config.max_rd_atomic.into() {
                return Sent::No;
            }
            self.begin_next();
        }
        let Some(wqe) = self.queue.get(self.at) else { return Sent::No };
        if let Some(status) = wqe.error {
            return self.hold_back(status, host);
        }
        if wqe.is_local() {
            self.at += 1;
            return Sent::Yes;
        }
        match self.config.service {
            Service::Datagram => self.send_datagram(now, host, out),
            _ if wqe.opcode == WrOpcode::Flush => self.send_flush(now, out),
            _ if wqe.is_read() => self.send_read(now, host, out),
            _ => self.send_data(now, host, out),
        }
    }

    /// Why the next WR can't be carried out.
    fn unfit(&mut self, host: &mut impl Host) -> Option<WcStatus> {
        let wqe = self.queue.get(self.at)?;
        if wqe.error.is_some() || wqe.is_local() {
            return wqe.error;
        }
        let longest = match self.config.service {
            Service::Datagram => self.config.mtu as u64,
            _ => MAX_MESSAGE,
        };
        let long_flush =
            matches!(&wqe.data, Data::Flush(f) if !f.whole_mr && f.length > MAX_MESSAGE);
        if wqe.len > longest || long_flush || wqe.is_one_word() && wqe.len != 8 {
            return Some(WcStatus::LocLenErr);
        }
        if wqe.is_answered() && self.config.max_rd_atomic == 0 {
            return Some(WcStatus::LocQpOpErr);
        }
        host.check(wqe).is_err().then_some(WcStatus::LocProtErr)
    }

    /// The next WR fails, but not before those that came before it are complete.
    fn hold_back(&mut self, status: WcStatus, host: &mut impl Host) -> Sent {
        match self.at {
            0 => {
                self.end_front(host, status);
                Sent::No
            }
            at => {
                self.queue[at].error = Some(status);
                Sent::No
            }
        }
    }

    fn do_local(&mut self, host: &mut impl Host) -> Sent {
        let at = self.at;
        let Some(status) = host.local(&self.queue[at]) else { return Sent::No };
        if status != WcStatus::Success {
            return self.hold_back(status, host);
        }
        let progress = &mut self.queue[at].progress;
        (progress.begun, progress.first, progress.packets) = (true, self.free, 0);
        self.at += 1;
        if at == 0 {
            self.end_front(host, WcStatus::Success);
        }
        Sent::Yes
    }

    fn begin_next(&mut self) {
        let mtu = self.config.mtu;
        let first = self.free;
        let Some(wqe) = self.queue.get_mut(self.at) else { return };
        let count = packets(wqe.len, mtu);
        wqe.progress.begun = true;
        wqe.progress.first = first;
        wqe.progress.packets = count;
        wqe.progress.received = 0;
        self.reads += u32::from(wqe.is_answered());
        self.free = first.plus(count);
        self.next = first;
        if self.at == 0 {
            self.refill_retries();
        }
    }

    /// A packet went.
    fn went(&mut self, now: Instant, psns: u32, bytes: usize) {
        self.next = self.next.plus(psns);
        if self.next.since(self.sent) > 0 {
            self.sent = self.next;
        }
        self.rate.sent(now, bytes);
        let Some(wqe) = self.queue.get(self.at) else { return };
        if !within(self.next, wqe.progress.first, wqe.progress.packets) {
            self.at += 1;
            // What was sent before and is not acknowledged goes again.
            if self.at < self.queue.len() && self.queue[self.at].progress.begun {
                self.seek(self.next);
            }
        }
    }

    /// Whether a packet more may be under way.
    fn window_is_open(&self) -> bool {
        let under_way = self.next.since(self.una);
        let load = (under_way as u32).saturating_sub(self.read_psns);
        under_way < MAX_PSNS && load < self.window
    }

    /// A packet of a SEND, WRITE or atomic write.
    fn send_data(&mut self, now: Instant, host: &mut impl Host, out: &mut Out<'_>) -> Sent {
        let reliable = self.config.service == Service::Reliable;
        if reliable && !self.window_is_open() {
            return Sent::No;
        }
        let Some(path) = self.path else { return self.no_path(now, out) };
        let load = (self.next.since(self.una) as u32).saturating_sub(self.read_psns);
        let wqe = &self.queue[self.at];
        let index = self.next.plus(wqe.progress.first.get().wrapping_neg()).get();
        let (first, last) = (index == 0, index + 1 == wqe.progress.packets);
        let offset = u64::from(index) * self.config.mtu as u64;
        let len = (wqe.len - offset).min(self.config.mtu as u64) as usize;
        match host.pages(wqe, offset, len as u64) {
            Pages::Here => {}
            Pages::Asked => return Sent::No,
            Pages::Refused => return self.hold_back(WcStatus::LocProtErr, host),
        }
        let write = matches!(
            wqe.opcode,
            WrOpcode::RdmaWrite | WrOpcode::RdmaWriteWithImm | WrOpcode::AtomicWrite
        );
        let ack_req = reliable
            && (last || self.since_ack_req + 1 >= self.window / 4 || load + 1 >= self.window);
        let (opcode, imm) = data_opcode(wqe.opcode, first, last);
        let bth = Bth {
            opcode: self.transport() | opcode,
            solicited: last && wqe.flags.contains(SendFlags::SOLICITED),
            ack_req,
            ..self.bth()
        };
        let mut head = self.head(bth, len);
        if first && write {
            let reth = Reth { addr: wqe.remote_addr, rkey: wqe.rkey, len: wqe.len as u32 };
            head = head.with(&reth.emit());
        }
        if last && imm {
            let bytes = match wqe.opcode {
                WrOpcode::SendWithInv => wqe.imm.to_be_bytes(),
                _ => wqe.imm.to_le_bytes(),
            };
            head = head.with(&bytes);
        }
        if out.push(&path, head.bytes(), len, |to| host.read(wqe, offset, to)).is_err() {
            out.counters.inc(|c| &c.send_err);
            return self.hold_back(WcStatus::LocProtErr, host);
        }
        self.since_ack_req = if ack_req { 0 } else { self.since_ack_req + 1 };
        self.went(now, 1, head.bytes().len() + len);
        if reliable {
            self.arm(now);
        } else {
            self.una = self.next;
            if last {
                self.end_front(host, WcStatus::Success);
            }
        }
        Sent::Yes
    }

    /// The request of a READ, from the first byte that is missing, or of an atomic.
    fn send_read(&mut self, now: Instant, host: &mut impl Host, out: &mut Out<'_>) -> Sent {
        // A loss asks for all of the responses again that are to come: no more than a window of them.
        if !self.window_is_open() || self.read_psns >= self.window {
            return Sent::No;
        }
        let Some(path) = self.path else { return self.no_path(now, out) };
        let wqe = &self.queue[self.at];
        let index = self.next.plus(wqe.progress.first.get().wrapping_neg()).get();
        let left = wqe.progress.packets - index;
        // Always cut at the same places, so that a repeated request is part of one that was made.
        let chunk = left.min(READ_CHUNK - index % READ_CHUNK);
        let offset = u64::from(index) * self.config.mtu as u64;
        let len = (wqe.len - offset).min(u64::from(chunk) * self.config.mtu as u64) as u32;
        match host.pages(wqe, offset, u64::from(len).min(READ_AHEAD)) {
            Pages::Here => {}
            Pages::Asked => return Sent::No,
            Pages::Refused => return self.hold_back(WcStatus::LocProtErr, host),
        }
        let opcode = match wqe.opcode {
            WrOpcode::AtomicCmpAndSwp => code::CMP_SWAP,
            WrOpcode::AtomicFetchAndAdd => code::FETCH_ADD,
            _ => code::READ_REQUEST,
        };
        let opcode = self.transport() | opcode;
        let head = self.head(Bth { opcode, ack_req: true, ..self.bth() }, 0);
        let head = if wqe.is_atomic() {
            let swapping = wqe.opcode == WrOpcode::AtomicCmpAndSwp;
            let atomic = AtomicEth {
                addr: wqe.remote_addr,
                rkey: wqe.rkey,
                swap_add: if swapping { wqe.swap } else { wqe.compare_add },
                compare: if swapping { wqe.compare_add } else { 0 },
            };
            head.with(&atomic.emit())
        } else {
            let addr = wqe.remote_addr.wrapping_add(offset);
            head.with(&Reth { addr, rkey: wqe.rkey, len }.emit())
        };
        let atomic = wqe.is_atomic();
        let _ = out.push(&path, head.bytes(), 0, |_| Ok::<(), ()>(()));
        if !atomic {
            self.read_psns += chunk;
        }
        self.went(now, chunk, head.bytes().len());
        self.arm(now);
        Sent::Yes
    }

    /// A FLUSH: there is no data, whatever length it names.
    fn send_flush(&mut self, now: Instant, out: &mut Out<'_>) -> Sent {
        if !self.window_is_open() {
            return Sent::No;
        }
        let Some(path) = self.path else { return self.no_path(now, out) };
        let wqe = &self.queue[self.at];
        let Data::Flush(flush) = &wqe.data else { return Sent::No };
        let has = |right, bit| if flush.placement.contains(right) { bit } else { 0 };
        let placement = has(Access::FLUSH_GLOBAL, Feth::GLOBAL)
            | has(Access::FLUSH_PERSISTENT, Feth::PERSISTENT);
        let (selectivity, len) = match flush.whole_mr {
            true => (Feth::WHOLE_MR, 0),
            false => (Feth::RANGE, flush.length as u32),
        };
        let opcode = self.transport() | code::FLUSH;
        let bth = Bth { opcode, ack_req: true, ..self.bth() };
        let reth = Reth { addr: wqe.remote_addr, rkey: wqe.rkey, len };
        let head =
            self.head(bth, 0).with(&Feth { placement, selectivity }.emit()).with(&reth.emit());
        let _ = out.push(&path, head.bytes(), 0, |_| Ok::<(), ()>(()));
        self.went(now, 1, head.bytes().len());
        self.arm(now);
        Sent::Yes
    }

    /// The transport's bits of an opcode.
    fn transport(&self) -> u8 {
        match self.config.service {
            Service::Reliable if self.config.xrc => code::XRC,
            Service::Reliable => 0,
            Service::Unreliable => code::UC,
            Service::Datagram => code::UD,
        }
    }

    /// The headers that packets of the WR which is being sent begin with (IBA annex A14: each request of
    /// an extended connection names its SRQ).
    fn head(&self, bth: Bth, payload: usize) -> Head {
        let head = Head::new(bth, payload);
        match self.queue.get(self.at) {
            Some(wqe) if self.config.xrc => head.with(&(wqe.srqn.0 & 0xff_ffff).to_be_bytes()),
            _ => head,
        }
    }

    /// What is the same in all packets to a connected peer.
    fn bth(&self) -> Bth {
        Bth {
            migreq: true,
            pkey: DEFAULT_PKEY,
            dest: self.config.dest,
            psn: self.next,
            ..Bth::default()
        }
    }

    fn send_datagram(&mut self, now: Instant, host: &mut impl Host, out: &mut Out<'_>) -> Sent {
        let wqe = &self.queue[self.at];
        let Some((path, dest, qkey)) = host.datagram(wqe) else {
            out.counters.inc(|c| &c.send_err);
            return self.hold_back(WcStatus::LocQpOpErr, host);
        };
        let with_imm = wqe.opcode == WrOpcode::SendWithImm;
        let bth = Bth {
            opcode: code::UD | if with_imm { code::SEND_ONLY_IMM } else { code::SEND_ONLY },
            solicited: wqe.flags.contains(SendFlags::SOLICITED),
            migreq: true,
            pkey: DEFAULT_PKEY,
            dest,
            psn: self.next,
            ..Bth::default()
        };
        let len = wqe.len as usize;
        match host.pages(wqe, 0, wqe.len) {
            Pages::Here => {}
            Pages::Asked => return Sent::No,
            Pages::Refused => return self.hold_back(WcStatus::LocProtErr, host),
        }
        let mut head = Head::new(bth, len).with(&Deth { qkey, src: self.config.qpn }.emit());
        if with_imm {
            head = head.with(&wqe.imm.to_le_bytes());
        }
        if out.push(&path, head.bytes(), len, |to| host.read(wqe, 0, to)).is_err() {
            out.counters.inc(|c| &c.send_err);
            return self.hold_back(WcStatus::LocProtErr, host);
        }
        self.went(now, 1, len);
        self.una = self.next;
        self.end_front(host, WcStatus::Success);
        Sent::Yes
    }

    /// There is no source address (any more): as if the packet were lost.
    fn no_path(&mut self, now: Instant, out: &Out<'_>) -> Sent {
        out.counters.inc(|c| &c.send_err);
        self.arm(now);
        Sent::No
    }

    fn arm(&mut self, now: Instant) {
        if self.retry_at.is_none() {
            self.start_timer(now);
        }
    }
}

/// The opcode of a packet of a message, and whether a word of immediate data or a key goes with it.
fn data_opcode(opcode: WrOpcode, first: bool, last: bool) -> (u8, bool) {
    use code::*;
    if opcode == WrOpcode::AtomicWrite {
        return (ATOMIC_WRITE, false);
    }
    let write = matches!(opcode, WrOpcode::RdmaWrite | WrOpcode::RdmaWriteWithImm);
    let word = matches!(
        opcode,
        WrOpcode::RdmaWriteWithImm | WrOpcode::SendWithImm | WrOpcode::SendWithInv
    );
    let inv = opcode == WrOpcode::SendWithInv;
    let number = match (write, first, last) {
        (false, true, false) => SEND_FIRST,
        (false, false, false) => SEND_MIDDLE,
        (false, false, true) if inv => SEND_LAST_INV,
        (false, false, true) if word => SEND_LAST_IMM,
        (false, false, true) => SEND_LAST,
        (false, true, true) if inv => SEND_ONLY_INV,
        (false, true, true) if word => SEND_ONLY_IMM,
        (false, true, true) => SEND_ONLY,
        (true, true, false) => WRITE_FIRST,
        (true, false, false) => WRITE_MIDDLE,
        (true, false, true) if word => WRITE_LAST_IMM,
        (true, false, true) => WRITE_LAST,
        (true, true, true) if word => WRITE_ONLY_IMM,
        (true, true, true) => WRITE_ONLY,
    };
    (number, word)
}

/// Tells a peer of congestion.
pub(crate) fn push_cnp(path: &Path, dest: rdma_midlayer::types::Qpn, out: &mut Out<'_>) {
    let bth = Bth {
        opcode: code::CNP,
        becn: true,
        migreq: true,
        pkey: DEFAULT_PKEY,
        dest,
        ..Bth::default()
    };
    let head = Head::new(bth, CNP_BODY.len());
    let fill = |to: &mut [u8]| {
        to.copy_from_slice(&CNP_BODY);
        Ok::<(), ()>(())
    };
    if out.push(path, head.bytes(), CNP_BODY.len(), fill).is_ok() {
        out.counters.inc(|c| &c.send_cnp);
    }
}
