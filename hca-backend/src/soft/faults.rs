// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page faults of memory on demand: which pages are wanted, by whom, and how who waits goes on. Nobody
//! waits here: a QP that finds pages missing leaves its name and puts its work off.
//!
//! What a fault costs is its owner's: a QP has one at a time, a tenant who answers none makes none but the
//! QPs wait that work in its memory.

use std::collections::{HashMap, VecDeque};
use std::sync::Weak;

use rdma_midlayer::memory::{PageRange, UserMemory};

use super::qp::Qp;
use super::spin::SpinLock;

/// Faults without a QP that waits (of messages that were lost) that are kept for an MR.
const MOST_LOST: usize = 64;

/// Pages that are missing, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) pages: PageRange,
    pub(crate) write: bool,
}

/// Who waits: a QP, and which of its faults it is. Answers to others are not for it.
pub(crate) type Waiter = (Weak<Qp>, u64, u64);

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The pages have come meanwhile.
    Here,
    /// It waits; the consumer knows that there are faults.
    Waits,
    /// It waits, and the consumer is to be told.
    Tell,
}

struct Wait {
    qp: Weak<Qp>,
    fault: u64,
    missing: Missing,
    /// The consumer has not taken it.
    fresh: bool,
}

#[derive(Default)]
struct OfMr {
    /// By the QP's number for ever.
    waiting: HashMap<u64, Wait>,
    /// QPs in the order of their faults, some of which may be answered or taken by now.
    fresh: VecDeque<u64>,
    lost: VecDeque<Missing>,
    /// The consumer was told, and has not found all taken since.
    told: bool,
    /// How many may wait before the QPs among them that are gone are forgotten.
    sweep: usize,
}

/// The faults of a context, by the consumer's numbers of its tables of pages.
pub(crate) struct Faults {
    mrs: SpinLock<HashMap<u32, OfMr>>,
}

impl Default for Faults {
    fn default() -> Self {
        Self { mrs: SpinLock::new(HashMap::new()) }
    }
}

impl Faults {
    /// Pages of `len` bytes at `addr` were missing. Never sleeps.
    pub(crate) fn ask(
        &self,
        memory: &UserMemory,
        (addr, len, write): (u64, u64, bool),
        waiter: Option<Waiter>,
    ) -> Asked {
        let Some(paging) = memory.paging() else { return Asked::Here };
        let mut mrs = self.mrs.lock();
        // Under the lock: who puts pages there answers with it locked, afterwards.
        let Some(pages) = memory.missing(addr, len, write) else { return Asked::Here };
        let mr = mrs.entry(paging.number()).or_default();
        let missing = Missing { pages, write };
        match waiter {
            Some((qp, uid, fault)) => {
                if mr.waiting.len() >= mr.sweep {
                    mr.waiting.retain(|_, wait| wait.qp.strong_count() > 0);
                    let OfMr { waiting, fresh, .. } = mr;
                    fresh.retain(|uid| waiting.contains_key(uid));
                    mr.sweep = 2 * mr.waiting.len() + 64;
                }
                let new = Wait { qp, fault, missing, fresh: true };
                let old = mr.waiting.insert(uid, new);
                // One that is tried anew is not asked for anew.
                match old {
                    Some(old) if old.missing == missing && !old.fresh => {
                        mr.waiting.entry(uid).and_modify(|wait| wait.fresh = false);
                        return Asked::Waits;
                    }
                    Some(old) if old.fresh => {}
                    _ => mr.fresh.push_back(uid),
                }
            }
            None if mr.lost.contains(&missing) || mr.lost.len() >= MOST_LOST => {}
            None => mr.lost.push_back(missing),
        }
        if std::mem::replace(&mut mr.told, true) { Asked::Waits } else { Asked::Tell }
    }

    /// The oldest fault that the consumer has not taken; `None` tells it to wait for the next event.
    pub(crate) fn take(&self, number: u32) -> Option<Missing> {
        let mut mrs = self.mrs.lock();
        let mr = mrs.get_mut(&number)?;
        while let Some(uid) = mr.fresh.pop_front() {
            if let Some(wait) = mr.waiting.get_mut(&uid).filter(|wait| wait.fresh) {
                wait.fresh = false;
                return Some(wait.missing);
            }
        }
        let lost = mr.lost.pop_front();
        mr.told = lost.is_some();
        lost
    }

    /// The pages are there, or are refused: who waits for any of them goes on.
    pub(crate) fn answer(&self, number: u32, pages: PageRange, refused: bool) {
        let mut mrs = self.mrs.lock();
        let Some(mr) = mrs.get_mut(&number) else { return };
        let mut answered = Vec::new();
        mr.waiting.retain(|_, wait| {
            let other = !wait.missing.pages.meets(&pages);
            if !other {
                answered.push((wait.qp.clone(), wait.fault));
            }
            other
        });
        mr.lost.retain(|missing| !missing.pages.meets(&pages));
        drop(mrs);
        go_on(answered, refused);
    }

    /// The MR has other memory, or ends: who waits looks again.
    pub(crate) fn forget(&self, number: u32) {
        let Some(mr) = self.mrs.lock().remove(&number) else { return };
        go_on(mr.waiting.into_values().map(|wait| (wait.qp, wait.fault)), false);
    }
}

fn go_on(waiters: impl IntoIterator<Item = (Weak<Qp>, u64)>, refused: bool) {
    for (qp, fault) in waiters {
        if let Some(qp) = qp.upgrade() {
            qp.pages_answered(fault, refused);
        }
    }
}
