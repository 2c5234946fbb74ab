// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory on demand: what becomes of a QP's work whose pages are missing. It is put off until they are
//! there or refused, on the own side for as long as that takes, at the peer as if that were not ready
//! (RNR). Which pages are wanted, and by whom, is kept in `soft::faults`.

use std::sync::atomic::Ordering;

use rdma_midlayer::driver::AsyncEvent;

use super::Qp;
use crate::soft::faults::Asked;
use crate::soft::place::Place;

/// Bytes of a message that are asked for at once, beyond the piece that is wanted now.
const AHEAD: u64 = 1 << 20;

/// The RNR timer of pages that are missing, at the least: 20.48 ms (IBA table 45).
pub(super) const PAGE_TIMER: u8 = 22;

/// In the low bits of `Qp::fault`, below the number of the fault: its pages have come.
const CAME: u64 = 1;
/// They can't be had.
const REFUSED: u64 = 2;
const ANSWER: u64 = CAME | REFUSED;

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
    /// `waiter`, whose requester is locked, if there is one. Never sleeps.
    #[inline]
    pub(super) fn lacks(
        &self,
        place: &Place<'_>,
        bytes: Bytes,
        write: bool,
        waiter: Option<&Qp>,
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
        waiter: Option<&Qp>,
        refused: bool,
    ) -> Lack {
        let Bytes { offset, len, rest } = bytes;
        if !place.lacks(offset, len, write) {
            return Lack::Nothing;
        }
        if refused {
            return Lack::Refused;
        }
        let waiter = waiter.map(|qp| (qp.this.clone(), qp.uid, qp.next_fault()));
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

    /// The number of a new fault: answers to older ones are ignored from here on.
    fn next_fault(&self) -> u64 {
        let number = (self.fault.load(Ordering::Relaxed) >> 2) + 1;
        self.fault.store(number << 2, Ordering::Release);
        number
    }

    /// The consumer has answered a fault.
    pub(crate) fn pages_answered(&self, number: u64, refused: bool) {
        let answer = number << 2 | if refused { REFUSED } else { CAME };
        let asked = number << 2;
        if self.fault.compare_exchange(asked, answer, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.schedule();
        }
    }

    /// Whether the fault that the QP's requester waits for is answered.
    pub(super) fn has_answer(&self) -> bool {
        self.fault.load(Ordering::Acquire) & ANSWER != 0
    }

    /// Takes the answer to the last fault: whether its pages are refused. Its requester is locked.
    #[inline]
    pub(super) fn take_answer(&self) -> bool {
        let word = self.fault.load(Ordering::Acquire);
        if word & ANSWER != 0 {
            self.fault.store(word & !ANSWER, Ordering::Relaxed);
        }
        word & ANSWER == REFUSED
    }

    /// The fault that the QP waited for is its affair no more.
    pub(super) fn forget_fault(&self) {
        self.next_fault();
    }
}
