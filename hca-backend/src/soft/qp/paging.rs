// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory on demand: what becomes of a QP's work whose pages are missing. It is put off until they are
//! there or refused, on the own side for as long as that takes, at the peer as if that were not ready
//! (RNR). Which pages are wanted, and by whom, is kept in `soft::faults`.

use std::sync::atomic::{AtomicU64, Ordering};

use rdma_midlayer::driver::AsyncEvent;

use super::Qp;
use crate::soft::faults::{Asked, Waiter};
use crate::soft::place::Place;
use crate::soft::wire::responder::AHEAD;

/// In the low bits of a `PageFault`, below its number: its pages have come.
const CAME: u64 = 1;
/// They can't be had.
const REFUSED: u64 = 2;
const ANSWER: u64 = CAME | REFUSED;

/// In the numbers that the faults of a QP's responder side have outside.
const RESPONDER: u64 = 1 << 63;

/// One side's last page fault: its number, and its answer. Changed by whoever has that side locked; but
/// for the answer, which comes from elsewhere.
#[derive(Default)]
pub(super) struct PageFault(AtomicU64);

/// Who waits for pages.
#[derive(Clone, Copy)]
pub(super) enum Waiting<'a> {
    /// A QP's requester, which is locked.
    Requester(&'a Qp),
    /// Packets to a QP's responder, which is locked.
    Responder(&'a Qp),
}

impl Waiting<'_> {
    /// For its new fault.
    fn waiter(&self) -> Waiter {
        match self {
            Self::Requester(qp) => (qp.this.clone(), qp.uid, qp.fault.next()),
            Self::Responder(qp) => {
                let number = qp.recv_fault.next() | RESPONDER;
                (qp.this.clone(), qp.uid | RESPONDER, number)
            }
        }
    }
}

/// Some bytes of a message.
#[derive(Clone, Copy)]
pub(super) struct Bytes {
    pub(super) offset: u64,
    /// Those that are used now.
    pub(super) len: u64,
    /// Those up to the end of the message.
    pub(super) rest: u64,
}

/// Which pages a piece of work lacks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    Nothing,
    /// Some, which the consumer has been asked for.
    Asked,
    /// Some that it can't give.
    Refused,
}

impl Qp {
    /// Whether pages of a place in this QP's memory are missing; then they are asked for, for
    /// `waiter`, if there is one. Never sleeps.
    #[inline]
    pub(super) fn lacks(
        &self,
        place: &Place<'_>,
        bytes: Bytes,
        write: bool,
        waiter: Option<Waiting<'_>>,
        refused: bool,
    ) -> Lack {
        if !self.context.mrs.has_on_demand() {
            return Lack::Nothing;
        }
        self.ask_for_pages(place, bytes, write, waiter, refused)
    }

    #[cold]
    fn ask_for_pages(
        &self,
        place: &Place<'_>,
        bytes: Bytes,
        write: bool,
        waiter: Option<Waiting<'_>>,
        refused: bool,
    ) -> Lack {
        let Bytes { offset, len, rest } = bytes;
        if !place.lacks(offset, len, write) {
            return Lack::Nothing;
        }
        if refused {
            return Lack::Refused;
        }
        let waiter = waiter.map(|waiting| waiting.waiter());
        let faults = &self.context.mrs.faults;
        match place.ask(offset, rest.min(len.max(AHEAD)), write, faults, waiter) {
            None => Lack::Nothing,
            Some((number, asked)) => {
                if asked == Asked::Tell {
                    self.context.dispatch(AsyncEvent::PagesMissing(number));
                }
                Lack::Asked
            }
        }
    }

    /// The consumer has answered a fault.
    pub(crate) fn pages_answered(&self, number: u64, refused: bool) {
        let fault = if number & RESPONDER == 0 { &self.fault } else { &self.recv_fault };
        if fault.answer(number & !RESPONDER, refused) {
            self.schedule();
            self.schedule_wire();
        }
    }
}

impl PageFault {
    /// The number of a new fault: answers to older ones are ignored from here on.
    fn next(&self) -> u64 {
        let number = (self.0.load(Ordering::Relaxed) >> 2) + 1;
        self.0.store(number << 2, Ordering::Release);
        number
    }

    /// Whether the answer is to this fault.
    fn answer(&self, number: u64, refused: bool) -> bool {
        let answer = number << 2 | if refused { REFUSED } else { CAME };
        self.0.compare_exchange(number << 2, answer, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Whether it is answered.
    pub(super) fn has_answer(&self) -> bool {
        self.0.load(Ordering::Acquire) & ANSWER != 0
    }

    /// Takes the answer, if there is one: whether the pages are refused.
    #[inline]
    pub(super) fn take_answer(&self) -> bool {
        let word = self.0.load(Ordering::Acquire);
        if word & ANSWER != 0 {
            self.0.store(word & !ANSWER, Ordering::Relaxed);
        }
        word & ANSWER == REFUSED
    }

    /// What it was for is done with.
    pub(super) fn forget(&self) {
        self.next();
    }
}
