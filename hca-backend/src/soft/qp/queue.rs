// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The work requests that a QP holds itself. Headers, SGEs and inline bytes lie in queues of their
//! own, so a request costs what it needs, and taking one out frees nothing.

use std::collections::VecDeque;

use super::datagram::Dest;
use super::local::{KeyChange, is_local};
use crate::soft::rebind::Draining;
use rdma_midlayer::driver::MalformedWqe;
use rdma_midlayer::types::{RKey, Srqn, WrOpcode};
use rdma_midlayer::work::{Flush, RecvWqe, RecvWr, SendData, SendFlags, SendWr, Sge, ShortRecv};

/// A send WR without its data.
#[derive(Clone, Copy, Debug)]
struct SendHeader {
    wr_id: u64,
    ticket: u32,
    opcode: WrOpcode,
    flags: SendFlags,
    kind: Kind,
    imm: u32,
    remote_addr: u64,
    rkey: RKey,
    compare_add: u64,
    swap: u64,
    dest: Option<Dest>,
    srqn: Option<Srqn>,
}

/// What data follows a header.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Sges(u8),
    Inline(u16),
    /// No data: all of it is here.
    Flush(Flush),
    /// A change of a key follows.
    Key,
    Malformed,
}

impl SendHeader {
    fn of(wr: &SendWr<'_>) -> Self {
        Self {
            wr_id: wr.wr_id,
            ticket: wr.ticket,
            opcode: wr.opcode,
            flags: wr.flags,
            kind: match wr.data {
                _ if is_local(wr.opcode) => Kind::Key,
                SendData::Sges(sges) => Kind::Sges(sges.len() as u8),
                SendData::Inline(bytes) => Kind::Inline(bytes.len() as u16),
                SendData::Flush(flush) => Kind::Flush(flush),
                SendData::Reg(_) | SendData::Bind(_) => Kind::Key,
            },
            imm: wr.imm,
            remote_addr: wr.remote_addr,
            rkey: wr.rkey,
            compare_add: wr.compare_add,
            swap: wr.swap,
            dest: Dest::of(wr),
            srqn: wr.srqn,
        }
    }

    fn of_malformed(wqe: MalformedWqe) -> Self {
        Self {
            wr_id: wqe.wr_id,
            ticket: wqe.ticket,
            opcode: WrOpcode::Send,
            flags: SendFlags::SIGNALED,
            kind: Kind::Malformed,
            imm: 0,
            remote_addr: 0,
            rkey: RKey(0),
            compare_add: 0,
            swap: 0,
            dest: None,
            srqn: None,
        }
    }
}

/// Send WRs in order.
#[derive(Default)]
pub(super) struct SendQueue {
    headers: VecDeque<SendHeader>,
    sges: VecDeque<Sge>,
    inline: VecDeque<u8>,
    keys: VecDeque<KeyChange>,
}

impl SendQueue {
    pub(super) fn len(&self) -> usize {
        self.headers.len()
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }

    /// Appends a WR whose sizes were checked.
    pub(super) fn push(&mut self, wr: &SendWr<'_>) {
        self.headers.push_back(SendHeader::of(wr));
        match wr.data {
            SendData::Sges(sges) => self.sges.extend(sges),
            SendData::Inline(bytes) => self.inline.extend(bytes),
            SendData::Reg(_) | SendData::Bind(_) | SendData::Flush(_) => {}
        }
        self.keys.extend(KeyChange::of(wr));
    }

    pub(super) fn push_malformed(&mut self, wqe: MalformedWqe) {
        self.headers.push_back(SendHeader::of_malformed(wqe));
    }

    /// Makes the oldest WR the current one. False if there is none.
    pub(super) fn pop_into(&mut self, current: &mut Current) -> bool {
        let Some(header) = self.headers.pop_front() else { return false };
        current.begin(header);
        match header.kind {
            Kind::Sges(count) => current.sges.extend(self.sges.drain(..usize::from(count))),
            Kind::Inline(len) => current.inline.extend(self.inline.drain(..usize::from(len))),
            Kind::Key => current.key = self.keys.pop_front(),
            Kind::Flush(_) | Kind::Malformed => {}
        }
        true
    }

    /// Forgets all, and gives the memory back.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The send WR that is being carried out.
#[derive(Default)]
pub(super) struct Current {
    header: Option<SendHeader>,
    sges: Vec<Sge>,
    inline: Vec<u8>,
    key: Option<KeyChange>,
    /// What it took away, until nobody uses it any more.
    pub(super) draining: Option<Draining>,
    /// Bytes done.
    pub(super) offset: u64,
    /// Of a datagram to a group: the member that it reached last.
    pub(super) reached: u64,
}

impl Current {
    #[inline]
    pub(super) fn is_none(&self) -> bool {
        self.header.is_none()
    }

    /// Takes over a WR that was begun in place.
    pub(super) fn load(&mut self, wr: &SendWr<'_>, offset: u64) {
        self.begin(SendHeader::of(wr));
        match wr.data {
            SendData::Sges(sges) => self.sges.extend_from_slice(sges),
            SendData::Inline(bytes) => self.inline.extend_from_slice(bytes),
            SendData::Reg(_) | SendData::Bind(_) | SendData::Flush(_) => {}
        }
        self.key = KeyChange::of(wr);
        self.offset = offset;
    }

    fn begin(&mut self, header: SendHeader) {
        self.header = Some(header);
        self.sges.clear();
        self.inline.clear();
        self.key = None;
        self.draining = None;
        self.offset = 0;
        self.reached = 0;
    }

    /// The WR; `None` if there is none. A malformed one looks like an empty SEND.
    pub(super) fn wr(&self) -> Option<SendWr<'_>> {
        let header = self.header.as_ref()?;
        Some(SendWr {
            wr_id: header.wr_id,
            ticket: header.ticket,
            opcode: header.opcode,
            flags: header.flags,
            data: match header.kind {
                Kind::Inline(_) => SendData::Inline(&self.inline),
                Kind::Flush(flush) => SendData::Flush(flush),
                _ => SendData::Sges(&self.sges),
            },
            imm: header.imm,
            remote_addr: header.remote_addr,
            rkey: header.rkey,
            compare_add: header.compare_add,
            swap: header.swap,
            ud: None,
            srqn: header.srqn,
        })
    }

    /// Where the WR goes, if it is a datagram.
    pub(super) fn dest(&self) -> Option<Dest> {
        self.header.as_ref()?.dest
    }

    /// The key that it changes, if it is of that kind.
    pub(super) fn key(&self) -> Option<&KeyChange> {
        self.key.as_ref()
    }

    pub(super) fn is_malformed(&self) -> bool {
        matches!(self.header, Some(SendHeader { kind: Kind::Malformed, .. }))
    }

    /// Done with it.
    pub(super) fn end(&mut self) {
        self.header = None;
        self.key = None;
        self.draining = None;
    }
}

/// Receive WRs in order.
#[derive(Default)]
pub(crate) struct RecvQueue {
    headers: VecDeque<(u64, u32, u8)>,
    sges: VecDeque<Sge>,
}

impl RecvQueue {
    pub(crate) fn len(&self) -> usize {
        self.headers.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }

    /// Appends a WR whose sizes were checked.
    pub(crate) fn push(&mut self, wr: &RecvWr<'_>) {
        self.headers.push_back((wr.wr_id, wr.ticket, wr.sges.len() as u8));
        self.sges.extend(wr.sges);
    }

    /// Takes the oldest one out. False if there is none.
    pub(crate) fn pop_into(&mut self, wqe: &mut RecvWqe) -> bool {
        let Some((wr_id, ticket, count)) = self.headers.pop_front() else { return false };
        wqe.set(wr_id, ticket, self.sges.drain(..usize::from(count)));
        true
    }

    /// Shows the oldest WRs, in order, up to the first that is not of one SGE; how many.
    pub(crate) fn peek_short(&self, to: &mut [ShortRecv]) -> usize {
        // All before one that is shown have one SGE too.
        let wqes = self.headers.iter().zip(&self.sges).take_while(|((.., count), _)| *count == 1);
        let mut shown = 0;
        for (to, (&(wr_id, ticket, _), &sge)) in to.iter_mut().zip(wqes) {
            *to = ShortRecv { wr_id, ticket, sge };
            shown += 1;
        }
        shown
    }

    /// Takes out some of those that were shown.
    pub(crate) fn advance(&mut self, count: usize) {
        self.headers.drain(..count.min(self.headers.len()));
        self.sges.drain(..count.min(self.sges.len()));
    }

    /// Forgets all, and gives the memory back.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}
