// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The responder of a QP (IBA 9.7.4, 9.7.5, 9.8, 9.9.3): requests in order are carried out, and what is
//! to be answered is queued. A request that came before is answered again; one that comes too early
//! makes one NAK.
//!
//! Requests with responses of their own are in `answered`, those that come again in `repeat`; how answers become
//! packets is in `reply`.

use std::collections::VecDeque;
use std::time::Instant;

use rdma_midlayer::types::{Access, Psn, Qpn, RKey, Srqn};
use rdma_midlayer::work::Flush;

use super::counters::Both;
use super::dcqcn::Notifier;
use super::frame::Path;
use super::headers::{Nak, Syndrome};
use super::opcode::Kind;
use super::packet::Packet;
use super::requester::MAX_MESSAGE;
use super::timers;

mod answered;
mod repeat;
mod reply;

/// Bytes of a message whose pages must be there before it is begun.
pub(crate) const AHEAD: u64 = 1 << 20;

/// An atomic, as a responder does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomic {
    /// Stores `swap` if `compare` is there.
    CmpSwap {
        /// What must be there.
        compare: u64,
        /// What is stored.
        swap: u64,
    },
    /// Adds.
    FetchAdd {
        /// What is added.
        add: u64,
    },
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Invalid request.
    Invalid,
    /// The message is longer than the receive WQE.
    TooLong,
    /// The key does not allow it.
    Access,
    /// The receive WQE makes no sense, or its memory may not be written.
    Receive,
}

/// Why there is no receive WQE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWqe {
    /// None is posted.
    Empty,
    /// The one that is there makes no sense; it is in hand.
    Malformed,
}

/// What is known of the pages under some memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// All are there.
    Here,
    /// Some are missing, and asked for: later.
    Asked,
    /// Some are missing, and can't be had.
    Refused,
}

/// What a receive completion says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes of the message.
    pub len: u32,
    /// It was a WRITE.
    pub write: bool,
    /// Immediate data.
    pub imm: Option<u32>,
    /// The key that was invalidated.
    pub inv: Option<u32>,
    /// It is a solicited one.
    pub solicited: bool,
}

/// The responder's surroundings: remote keys, receive WQEs and their completions. Nothing here sleeps.
pub trait Host {
    /// Whether a peer may use some memory so.
    fn check(&mut self, rkey: RKey, addr: u64, len: u64, access: Access) -> bool;
    /// Writes for a peer: all of it, or nothing and false.
    fn write(&mut self, rkey: RKey, addr: u64, from: &[u8]) -> bool;
    /// XRC: the SRQ that a message names becomes the one whose WQEs and keys count. False if there is none.
    fn select(&mut self, srqn: Srqn) -> bool;
    /// Reads for a peer: all of it, or false. XRC: with the keys of that SRQ.
    fn read(&mut self, srqn: Srqn, rkey: RKey, addr: u64, to: &mut [u8]) -> bool;
    /// Whether the pages of memory are there that a peer may use, as `read` and `write` would: of the first
    /// bytes, with those up to the second number of bytes wanted soon. Only where memory comes on demand
    /// are any missing.
    fn pages(&mut self, _srqn: Srqn, _at: (RKey, u64), _len: (u64, u64), _write: bool) -> Pages {
        Pages::Here
    }
    /// The same of bytes of the WQE in hand.
    fn pages_in_hand(&mut self, _offset: u64, _len: u64) -> Pages {
        Pages::Here
    }
    /// Does an atomic; answers what was there.
    fn atomic(&mut self, rkey: RKey, addr: u64, atomic: Atomic) -> Result<u64, Refusal>;
    /// Writes 8 bytes all at once.
    fn atomic_write(&mut self, rkey: RKey, addr: u64, word: [u8; 8]) -> Result<(), Refusal>;
    /// Returns when what was written is where a FLUSH wants it. False: the key does not allow it.
    fn flush(&mut self, rkey: RKey, addr: u64, flush: &Flush) -> bool;
    /// Takes the next receive WQE in hand; answers its bytes. If one is in hand, that.
    fn take_wqe(&mut self) -> Result<u64, NoWqe>;
    /// Writes into the WQE in hand.
    fn receive(&mut self, offset: u64, from: &[u8]) -> bool;
    /// Takes a key out of use for a SEND with invalidate. `None`: it is not done yet, and the packet has
    /// to come again.
    fn invalidate(&mut self, key: u32) -> Option<bool>;
    /// Completes the WQE in hand.
    fn complete(&mut self, received: &Received);
    /// A request is refused. The WQE in hand tells why, without one an event does; a reliable QP goes to
    /// ERR.
    fn refuse(&mut self, why: Refusal);
    /// The first request has come.
    fn established(&mut self);
}

/// What modify has set.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Requests are acknowledged.
    pub reliable: bool,
    /// They are those of an extended reliable connection, which name SRQs.
    pub xrc: bool,
    /// The peer's number.
    pub dest: Qpn,
    /// Bytes of payload in a packet.
    pub mtu: usize,
    /// What the peer may do.
    pub access: Access,
    /// READs and others with responses of their own that the peer may have outstanding.
    pub max_rd_atomic: u8,
    /// Timer code of RNR NAKs.
    pub min_rnr_timer: u8,
}

/// A message that is coming in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    None,
    Send { done: u64, room: u64 },
    Write { addr: u64, rkey: RKey, len: u64, done: u64 },
}

/// A request with responses of its own that was carried out, and may be asked for again.
#[derive(Clone, Copy, Debug)]
enum Resource {
    Read {
        first: Psn,
        packets: u32,
        addr: u64,
        rkey: RKey,
        len: u64,
        srqn: Srqn,
    },
    Atomic {
        psn: Psn,
        original: u64,
    },
    /// A FLUSH or an atomic write.
    Placed {
        psn: Psn,
    },
}

/// Something to answer.
#[derive(Clone, Copy, Debug)]
enum Reply {
    Answer {
        psn: Psn,
        syndrome: Syndrome,
        msn: u32,
    },
    Atomic {
        psn: Psn,
        original: u64,
        msn: u32,
    },
    /// Of a FLUSH or an atomic write.
    Placed {
        psn: Psn,
        msn: u32,
    },
    /// A READ's responses from `psn` on.
    Read {
        psn: Psn,
        addr: u64,
        rkey: RKey,
        srqn: Srqn,
        left: u64,
        started: bool,
        msn: u32,
    },
}

impl Reply {
    fn psn(&self) -> Psn {
        match self {
            Reply::Answer { psn, .. }
            | Reply::Atomic { psn, .. }
            | Reply::Placed { psn, .. }
            | Reply::Read { psn, .. } => *psn,
        }
    }
}

/// How a request ended.
type Outcome = Result<(), No>;

/// Why a request was not carried out.
enum No {
    Rnr,
    /// Pages are missing: the peer is to try again.
    Pages,
    Refused(Refusal),
}

impl From<Refusal> for No {
    fn from(why: Refusal) -> Self {
        Self::Refused(why)
    }
}

/// The responder of a QP.
pub struct Responder {
    config: Config,
    path: Option<Path>,
    epsn: Psn,
    msn: u32,
    message: Message,
    /// XRC: the SRQ that the message names.
    srqn: Srqn,
    /// A NAK for the sequence, or for want of a WQE, is out: what comes too early is dropped.
    nak_sent: bool,
    established: bool,
    resources: VecDeque<Resource>,
    replies: VecDeque<Reply>,
    notifier: Notifier,
}

impl Responder {
    /// That expects PSN 0.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            path: None,
            epsn: Psn::new(0),
            msn: 0,
            message: Message::None,
            srqn: Srqn(0),
            nak_sent: false,
            established: false,
            resources: VecDeque::new(),
            replies: VecDeque::new(),
            notifier: Notifier::default(),
        }
    }

    /// Takes over what modify has set.
    pub fn configure(&mut self, config: Config) {
        self.config = config;
    }

    /// Where answers go from now on; `None`: nowhere.
    pub fn set_path(&mut self, path: Option<Path>) {
        self.path = path;
    }

    /// The PSN expected next.
    pub fn epsn(&self) -> Psn {
        self.epsn
    }

    /// Another PSN is expected: requests came another way, or modify said so.
    pub fn set_epsn(&mut self, psn: Psn) {
        if psn != self.epsn {
            self.epsn = psn;
            self.nak_sent = false;
        }
    }

    /// Whether something is to be sent.
    pub fn has_replies(&self) -> bool {
        !self.replies.is_empty() || self.notifier.is_due()
    }

    /// What is to be sent is forgotten.
    pub fn drop_replies(&mut self) {
        self.replies.clear();
        self.notifier.take();
    }

    /// A packet for this responder had met congestion.
    pub fn marked(&mut self, now: Instant) {
        self.notifier.marked(now);
    }

    /// A request of the peer.
    pub fn receive(&mut self, packet: &Packet<'_>, host: &mut impl Host, counters: Both<'_>) {
        if !std::mem::replace(&mut self.established, true) {
            host.established();
        }
        if self.config.reliable {
            self.receive_reliable(packet, host, counters);
        } else {
            self.receive_unreliable(packet, host, counters);
        }
    }

    fn receive_reliable(&mut self, packet: &Packet<'_>, host: &mut impl Host, counters: Both<'_>) {
        let psn = packet.bth.psn;
        let ahead = psn.since(self.epsn);
        if ahead > 0 {
            counters.inc(|c| &c.out_of_seq_request);
            if !std::mem::replace(&mut self.nak_sent, true) {
                counters.inc(|c| &c.send_seq_err);
                self.answer(self.epsn, Syndrome::Nak(Nak::Sequence), counters);
            }
            return;
        }
        if ahead < 0 {
            counters.inc(|c| &c.duplicate_request);
            return self.repeat(packet, counters);
        }
        match self.carry_out(packet, host) {
            Ok(()) => {
                self.nak_sent = false;
                if packet.bth.ack_req && matches!(packet.op.kind, Kind::Send | Kind::Write) {
                    self.answer(psn, Syndrome::Ack, counters);
                }
            }
            Err(no @ (No::Rnr | No::Pages)) => {
                let code = match no {
                    No::Pages => timers::page_timer(self.config.min_rnr_timer),
                    _ => self.config.min_rnr_timer,
                };
                counters.inc(|c| &c.send_rnr_err);
                self.nak_sent = true;
                self.answer(psn, Syndrome::Rnr(code), counters);
            }
            Err(No::Refused(why)) => {
                let nak = match why {
                    Refusal::Invalid | Refusal::TooLong => Nak::InvalidRequest,
                    Refusal::Access => Nak::RemoteAccess,
                    Refusal::Receive => Nak::RemoteOperational,
                };
                counters.inc(|c| &c.send_nak);
                self.message = Message::None;
                self.answer(psn, Syndrome::Nak(nak), counters);
                host.refuse(why);
            }
        }
    }

    /// An unreliable connection takes up where a message begins, and loses what is not in order.
    fn receive_unreliable(
        &mut self,
        packet: &Packet<'_>,
        host: &mut impl Host,
        counters: Both<'_>,
    ) {
        let psn = packet.bth.psn;
        if psn != self.epsn {
            counters.inc(|c| &c.out_of_seq_request);
            self.message = Message::None;
        } else if packet.op.first {
            // What was cut off leaves its WQE to this message.
            self.message = Message::None;
        }
        if packet.op.first {
            self.epsn = psn;
        } else if self.message == Message::None {
            return;
        }
        match self.carry_out(packet, host) {
            Ok(()) => {}
            Err(No::Rnr | No::Pages) => self.message = Message::None,
            Err(No::Refused(why)) => {
                self.message = Message::None;
                host.refuse(why);
            }
        }
        self.epsn = psn.plus(1);
    }

    /// A request that is in order. On success the PSN has moved on.
    fn carry_out(&mut self, packet: &Packet<'_>, host: &mut impl Host) -> Outcome {
        self.check_order(packet)?;
        self.select_srq(packet, host)?;
        let next = match packet.op.kind {
            Kind::Send => self.on_send(packet, host)?,
            Kind::Write => self.on_write(packet, host)?,
            Kind::ReadRequest => self.on_read(packet, host)?,
            Kind::CmpSwap | Kind::FetchAdd => self.on_atomic(packet, host)?,
            Kind::AtomicWrite => self.on_atomic_write(packet, host)?,
            Kind::Flush => self.on_flush(packet, host)?,
            Kind::ReadResponse | Kind::Ack | Kind::AtomicAck | Kind::Cnp => {
                return Err(Refusal::Invalid.into());
            }
        };
        self.epsn = next;
        Ok(())
    }

    /// XRC: finds the SRQ that a message names, and checks that all of it names the same.
    fn select_srq(&mut self, packet: &Packet<'_>, host: &mut impl Host) -> Result<(), Refusal> {
        if !self.config.xrc {
            return Ok(());
        }
        let found = match packet.op.first {
            true => host.select(packet.srqn),
            false => self.srqn == packet.srqn,
        };
        self.srqn = packet.srqn;
        if found { Ok(()) } else { Err(Refusal::Invalid) }
    }

    /// Whether the opcode may come after what came before, with as much payload (IBA 9.7.4.1.2 to .6).
    fn check_order(&self, packet: &Packet<'_>) -> Result<(), Refusal> {
        let op = packet.op;
        let in_order = match (self.message, op.kind, op.first) {
            (Message::None, _, first) => first,
            (Message::Send { .. }, Kind::Send, false) => true,
            (Message::Write { .. }, Kind::Write, false) => true,
            _ => false,
        };
        let len = packet.payload.len();
        let fits = match (op.payload(), op.last) {
            (false, _) => len == 0,
            (true, false) => len == self.config.mtu && packet.bth.pad == 0,
            // A last packet that is not an only one has something in it.
            (true, true) => len <= self.config.mtu && (op.first || len > 0),
        };
        if in_order && fits { Ok(()) } else { Err(Refusal::Invalid) }
    }

    fn on_send(&mut self, packet: &Packet<'_>, host: &mut impl Host) -> Result<Psn, No> {
        let (done, room) = match self.message {
            Message::Send { done, room } => (done, room),
            _ => (0, take_wqe(host)?),
        };
        let total = done + packet.payload.len() as u64;
        if total > room || total > MAX_MESSAGE {
            return Err(Refusal::TooLong.into());
        }
        let len = packet.payload.len() as u64;
        found(host.pages_in_hand(done, len), Refusal::Receive)?;
        if !host.receive(done, packet.payload) {
            return Err(Refusal::Receive.into());
        }
        if !packet.op.last {
            self.message = Message::Send { done: total, room };
            return Ok(packet.bth.psn.plus(1));
        }
        if packet.op.inv {
            match host.invalidate(packet.imm) {
                Some(true) => {}
                Some(false) => return Err(Refusal::Access.into()),
                None => return Err(No::Rnr),
            }
        }
        self.message = Message::None;
        self.count_message();
        host.complete(&Received {
            len: total as u32,
            write: false,
            imm: packet.op.imm.then_some(packet.imm),
            inv: packet.op.inv.then_some(packet.imm),
            solicited: packet.bth.solicited,
        });
        Ok(packet.bth.psn.plus(1))
    }

    fn on_write(&mut self, packet: &Packet<'_>, host: &mut impl Host) -> Result<Psn, No> {
        if !self.config.access.contains(Access::REMOTE_WRITE) {
            return Err(Refusal::Invalid.into());
        }
        let (addr, rkey, len, done) = match self.message {
            Message::Write { addr, rkey, len, done } => (addr, rkey, len, done),
            _ => {
                let reth = packet.reth;
                let len = u64::from(reth.len);
                if len > MAX_MESSAGE {
                    return Err(Refusal::Invalid.into());
                }
                // A request without data names nothing (IBA 9.7.4.1.6).
                if len > 0 && !host.check(reth.rkey, reth.addr, len, Access::REMOTE_WRITE) {
                    return Err(Refusal::Access.into());
                }
                (reth.addr, reth.rkey, len, 0)
            }
        };
        let total = done + packet.payload.len() as u64;
        if total > len || packet.op.last && total != len || !packet.op.last && total == len {
            return Err(Refusal::Invalid.into());
        }
        // Of a whole message at first: to begin it and stop inside would help nobody.
        let rest = (len - done).min(AHEAD);
        let now = if done == 0 { rest } else { total - done };
        self.find_pages(host, (rkey, addr.wrapping_add(done)), (now, rest), true)?;
        if packet.op.imm {
            take_wqe(host)?;
        }
        if !packet.payload.is_empty() && !host.write(rkey, addr.wrapping_add(done), packet.payload)
        {
            return Err(Refusal::Access.into());
        }
        if !packet.op.last {
            self.message = Message::Write { addr, rkey, len, done: total };
            return Ok(packet.bth.psn.plus(1));
        }
        self.message = Message::None;
        self.count_message();
        if packet.op.imm {
            host.complete(&Received {
                len: total as u32,
                write: true,
                imm: Some(packet.imm),
                inv: None,
                solicited: packet.bth.solicited,
            });
        }
        Ok(packet.bth.psn.plus(1))
    }

    /// Whether the pages under some memory that a peer names are there.
    fn find_pages(
        &self,
        host: &mut impl Host,
        at: (RKey, u64),
        len: (u64, u64),
        write: bool,
    ) -> Outcome {
        found(host.pages(self.srqn, at, len, write), Refusal::Access)
    }

    /// Whether the peer may have one more request with responses outstanding.
    fn may_read_more(&self) -> bool {
        let waiting = self.replies.iter().filter(|r| !matches!(r, Reply::Answer { .. })).count();
        waiting < usize::from(self.config.max_rd_atomic)
    }

    fn keep(&mut self, resource: Resource) {
        if self.resources.len() >= usize::from(self.config.max_rd_atomic) {
            self.resources.pop_front();
        }
        self.resources.push_back(resource);
    }

    fn count_message(&mut self) {
        self.msn = self.msn.wrapping_add(1) & 0xff_ffff;
    }

    /// Queues an acknowledgement or a NAK; one that waits already says less.
    fn answer(&mut self, psn: Psn, syndrome: Syndrome, counters: Both<'_>) {
        if let Some(Reply::Answer { syndrome: Syndrome::Ack, .. }) = self.replies.back() {
            self.replies.pop_back();
            counters.inc(|c| &c.ack_deferred);
        }
        self.replies.push_back(Reply::Answer { psn, syndrome, msn: self.msn });
    }
}

fn found(pages: Pages, refusal: Refusal) -> Outcome {
    match pages {
        Pages::Here => Ok(()),
        Pages::Asked => Err(No::Pages),
        Pages::Refused => Err(refusal.into()),
    }
}

fn take_wqe(host: &mut impl Host) -> Result<u64, No> {
    host.take_wqe().map_err(|no| match no {
        NoWqe::Empty => No::Rnr,
        NoWqe::Malformed => No::Refused(Refusal::Receive),
    })
}
