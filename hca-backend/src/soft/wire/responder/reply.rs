// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a responder's answers become packets.

use rdma_midlayer::types::Psn;

use super::{AHEAD, Host, Pages, Reply, Responder};
use crate::soft::wire::frame::Path;
use crate::soft::wire::headers::{Aeth, Bth, Nak, Syndrome};
use crate::soft::wire::opcode::code;
use crate::soft::wire::packet::{DEFAULT_PKEY, Head};
use crate::soft::wire::requester::{Out, push_cnp};

/// Why a READ gets no response now.
enum No {
    /// Its memory is gone.
    Gone,
    /// Pages of it are missing: the host gives the responder a turn when they are there.
    Pages,
}

impl Responder {
    /// Makes packets of what is queued, until nothing is or `out` is full: then true.
    pub fn transmit(&mut self, host: &mut impl Host, out: &mut Out<'_>) -> bool {
        let Some(path) = self.path else {
            self.drop_replies();
            out.counters.inc(|c| &c.send_err);
            return false;
        };
        if self.notifier.is_due() && !out.is_full() {
            self.notifier.take();
            push_cnp(&path, self.config.dest, out);
        }
        while let Some(reply) = self.replies.front().copied() {
            if out.is_full() {
                return true;
            }
            match reply {
                Reply::Answer { psn, syndrome, msn } => {
                    let aeth = Aeth { syndrome, msn }.emit();
                    self.push(&path, code::ACK, psn, &[&aeth], out);
                    self.replies.pop_front();
                }
                Reply::Atomic { psn, original, msn } => {
                    let aeth = Aeth { syndrome: Syndrome::Ack, msn }.emit();
                    self.push(&path, code::ATOMIC_ACK, psn, &[&aeth, &original.to_be_bytes()], out);
                    self.replies.pop_front();
                }
                Reply::Placed { psn, msn } => {
                    let aeth = Aeth { syndrome: Syndrome::Ack, msn }.emit();
                    self.push(&path, code::READ_RESPONSE_ONLY, psn, &[&aeth], out);
                    self.replies.pop_front();
                }
                Reply::Read { .. } => match self.send_response(&path, host, out) {
                    Ok(()) => {}
                    Err(No::Pages) => return false,
                    Err(No::Gone) => self.refuse_rest(reply.psn(), host, out),
                },
            }
        }
        false
    }

    fn push(&self, path: &Path, opcode: u8, psn: Psn, headers: &[&[u8]], out: &mut Out<'_>) {
        let head = headers.iter().fold(Head::new(self.bth(opcode, psn), 0), |h, b| h.with(b));
        let _ = out.push(path, head.bytes(), 0, |_| Ok::<(), ()>(()));
    }

    fn bth(&self, opcode: u8, psn: Psn) -> Bth {
        let transport = if self.config.xrc { code::XRC } else { 0 };
        Bth {
            opcode: transport | opcode,
            migreq: true,
            pkey: DEFAULT_PKEY,
            dest: self.config.dest,
            psn,
            ..Bth::default()
        }
    }

    /// The next response of the READ in front.
    fn send_response(
        &mut self,
        path: &Path,
        host: &mut impl Host,
        out: &mut Out<'_>,
    ) -> Result<(), No> {
        let Some(Reply::Read { psn, addr, rkey, srqn, left, started, msn }) =
            self.replies.front().copied()
        else {
            return Ok(());
        };
        let len = left.min(self.config.mtu as u64);
        let last = len == left;
        let opcode = match (started, last) {
            (false, false) => code::READ_RESPONSE_FIRST,
            (true, false) => code::READ_RESPONSE_MIDDLE,
            (true, true) => code::READ_RESPONSE_LAST,
            (false, true) => code::READ_RESPONSE_ONLY,
        };
        match host.pages(srqn, (rkey, addr), (len, left.min(AHEAD)), false) {
            Pages::Here => {}
            Pages::Asked => return Err(No::Pages),
            Pages::Refused => return Err(No::Gone),
        }
        let mut head = Head::new(self.bth(opcode, psn), len as usize);
        if opcode != code::READ_RESPONSE_MIDDLE {
            head = head.with(&Aeth { syndrome: Syndrome::Ack, msn }.emit());
        }
        out.push(path, head.bytes(), len as usize, |to| {
            let there = to.is_empty() || host.read(srqn, rkey, addr, to);
            if there { Ok(()) } else { Err(No::Gone) }
        })?;
        if last {
            self.replies.pop_front();
        } else if let Some(front) = self.replies.front_mut() {
            *front = Reply::Read {
                psn: psn.plus(1),
                addr: addr.wrapping_add(len),
                rkey,
                srqn,
                left: left - len,
                started: true,
                msn,
            };
        }
        Ok(())
    }

    /// The memory that a READ was allowed is no longer there: this READ fails, and what came after it
    /// is not answered.
    fn refuse_rest(&mut self, psn: Psn, host: &mut impl Host, out: &Out<'_>) {
        self.replies.clear();
        out.counters.inc(|c| &c.send_nak);
        let syndrome = Syndrome::Nak(Nak::RemoteAccess);
        self.replies.push_back(Reply::Answer { psn, syndrome, msn: self.msn });
        host.refuse(super::Refusal::Access);
    }
}
