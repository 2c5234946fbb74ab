// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Completion queues: in the consumer's memory, or in a ring of the driver's own for `poll_cq`.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rdma_midlayer::driver::{AsyncEvent, CqDriver, CqEvents, CqInit, CqMemory, Notify, Overflow};
use rdma_midlayer::types::{Cqn, Qpn, WcOpcode};
use rdma_midlayer::work::WorkCompletion;
use rdma_midlayer::{Error, MaySleep, Result};

use super::context::Context;
use super::spin::{SpinGuard, SpinLock};

/// A completion queue.
pub(crate) struct Cq {
    context: Arc<Context>,
    cqn: Cqn,
    cqe: AtomicU32,
    events: Arc<dyn CqEvents>,
    store: SpinLock<Store>,
    /// The QPs that complete here.
    users: SpinLock<HashSet<Qpn>>,
    gone: Mutex<bool>,
}

struct Store {
    place: Place,
    /// It overflowed: takes nothing any more (IBA 11.6.3.2).
    failed: bool,
}

// With a tag of its own, which is looked at for each completion.
#[repr(u8)]
enum Place {
    Consumer(Arc<dyn CqMemory>),
    Own(VecDeque<WorkCompletion>),
    /// Destroyed.
    None,
}

impl Cq {
    /// A CQ with a number that the context has given it.
    pub(crate) fn new(context: Arc<Context>, cqn: Cqn, init: CqInit) -> Self {
        let place = match init.memory {
            Some(memory) => Place::Consumer(memory),
            None => Place::Own(VecDeque::new()),
        };
        Self {
            context,
            cqn,
            cqe: AtomicU32::new(init.cqe),
            events: init.events,
            store: SpinLock::new(Store { place, failed: false }),
            users: SpinLock::new(HashSet::new()),
            gone: Mutex::new(false),
        }
    }

    /// Whether the CQ belongs to the context.
    pub(crate) fn is_of(&self, context: &Arc<Context>) -> bool {
        Arc::ptr_eq(&self.context, context)
    }

    /// A QP completes here from now on. One whose send and receive queue both do is entered once.
    pub(crate) fn attach(&self, qpn: Qpn) {
        self.users.lock().insert(qpn);
    }

    pub(crate) fn detach(&self, qpn: Qpn) {
        self.users.lock().remove(&qpn);
    }

    /// The QPs that complete here.
    pub(crate) fn users(&self) -> Vec<Qpn> {
        self.users.lock().iter().copied().collect()
    }

    /// Begins to add completions: nobody else adds any until `Burst::end`. Never sleeps. The caller
    /// waits for no other lock meanwhile.
    #[inline]
    pub(crate) fn begin(&self) -> Burst<'_> {
        Burst { cq: self, store: self.store.lock(), any: false, failed: None }
    }

    /// As `begin`, unless somebody else is at it.
    #[inline]
    pub(crate) fn try_begin(&self) -> Option<Burst<'_>> {
        let store = self.store.try_lock()?;
        Some(Burst { cq: self, store, any: false, failed: None })
    }

    /// Adds completions in order and reports them. `solicited` if one of them is that, or an error.
    /// Never sleeps.
    ///
    /// # Errors
    /// As for `Burst::end`.
    pub(crate) fn push(
        &self,
        wcs: &[WorkCompletion],
        solicited: bool,
    ) -> std::result::Result<(), Overflowed> {
        let mut burst = self.begin();
        let _ = wcs.iter().try_for_each(|wc| burst.push(wc));
        burst.end(solicited)
    }
}

/// Completions that are added together. Each can be polled at once; they are reported at the end.
pub(crate) struct Burst<'a> {
    cq: &'a Cq,
    store: SpinGuard<'a, Store>,
    any: bool,
    failed: Option<Overflowed>,
}

impl Burst<'_> {
    /// Adds one.
    ///
    /// # Errors
    /// If the CQ has no room, now or earlier: time to `end`.
    pub(crate) fn push(&mut self, wc: &WorkCompletion) -> std::result::Result<(), Overflow> {
        if self.store.failed {
            return self.fail(false);
        }
        let pushed = match &mut self.store.place {
            Place::Consumer(memory) => memory.push(wc),
            Place::Own(ring) if ring.len() >= self.cq.cqe() as usize => Err(Overflow),
            Place::Own(ring) => {
                ring.push_back(*wc);
                Ok(())
            }
            Place::None => return self.fail(false),
        };
        if pushed.is_err() {
            return self.fail(true);
        }
        self.any = true;
        Ok(())
    }

    /// As `push`, of a send WR that went well.
    #[inline(always)]
    pub(crate) fn push_sent(
        &mut self,
        wr_id: u64,
        ticket: u32,
        opcode: WcOpcode,
        qpn: Qpn,
        byte_len: u32,
    ) -> std::result::Result<(), Overflow> {
        let Store { place: Place::Consumer(memory), failed: false } = &*self.store else {
            return self.push(&WorkCompletion::sent(wr_id, ticket, opcode, qpn, byte_len));
        };
        if memory.push_sent(wr_id, ticket, opcode, qpn, byte_len).is_err() {
            return self.fail(true);
        }
        self.any = true;
        Ok(())
    }

    #[cold]
    fn fail(&mut self, first: bool) -> std::result::Result<(), Overflow> {
        self.store.failed |= first;
        self.failed.get_or_insert(Overflowed { first });
        Err(Overflow)
    }

    /// Reports what was added; `solicited` if one of them is that, or an error.
    ///
    /// # Errors
    /// `Overflowed` if one was lost: the QP goes to ERR. The first time the event is dispatched, and
    /// the caller sees to the CQ's other QPs (`Overflowed::first`).
    #[inline]
    pub(crate) fn end(self, solicited: bool) -> std::result::Result<(), Overflowed> {
        let Self { cq, store, any, failed } = self;
        let heard = any
            && match &store.place {
                Place::Consumer(memory) => memory.is_armed(),
                Place::Own(_) | Place::None => true,
            };
        drop(store);
        if heard && cq.events.wanted() {
            cq.events.completed(solicited);
        }
        match failed {
            None => Ok(()),
            Some(overflowed) => {
                if overflowed.first {
                    cq.context.dispatch(AsyncEvent::CqErr(cq.cqn));
                }
                Err(overflowed)
            }
        }
    }
}

/// A completion was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overflowed {
    /// It is the first that this CQ lost.
    pub(crate) first: bool,
}

impl CqDriver for Cq {
    fn cqn(&self) -> Cqn {
        self.cqn
    }

    fn cqe(&self) -> u32 {
        self.cqe.load(Ordering::Relaxed)
    }

    fn poll_cq(&self, wcs: &mut Vec<WorkCompletion>, max: usize) -> Result<usize> {
        let mut store = self.store.lock();
        match &mut store.place {
            Place::Own(ring) => {
                let count = ring.len().min(max);
                wcs.extend(ring.drain(..count));
                Ok(count)
            }
            Place::Consumer(_) => Err(Error::Unsupported("polling a CQ in the consumer's memory")),
            Place::None => Err(Error::Gone),
        }
    }

    /// All completions are reported anyway; whose memory they are in knows whether there are any.
    fn req_notify_cq(&self, _notify: Notify) -> Result<bool> {
        match &self.store.lock().place {
            Place::Own(ring) => Ok(!ring.is_empty()),
            Place::Consumer(_) => Ok(false),
            Place::None => Err(Error::Gone),
        }
    }

    fn resize(&self, _cx: &MaySleep, cqe: u32, memory: Option<Arc<dyn CqMemory>>) -> Result<()> {
        if cqe == 0 || cqe > self.context.limits().max_cqe {
            return Err(Error::Invalid("number of CQEs"));
        }
        let mut store = self.store.lock();
        if store.failed {
            return Err(Error::BadState("the CQ has overflowed"));
        }
        let old = match (&mut store.place, memory) {
            (Place::Own(ring), None) if ring.len() > cqe as usize => {
                return Err(Error::Invalid("more completions than that are in the CQ"));
            }
            (Place::Own(_), None) => None,
            (place @ Place::Consumer(_), Some(memory)) => {
                let old = std::mem::replace(place, Place::Consumer(memory));
                if let Place::Consumer(old) = &old {
                    old.moved();
                }
                Some(old)
            }
            (Place::None, _) => return Err(Error::Gone),
            _ => return Err(Error::Invalid("a CQ stays in the memory that it is in")),
        };
        self.cqe.store(cqe, Ordering::Relaxed);
        drop(store);
        drop(old);
        Ok(())
    }

    fn destroy(&self, cx: &MaySleep) -> Result<()> {
        if !self.users.lock().is_empty() {
            return Err(Error::Busy("QPs complete to this CQ"));
        }
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *gone, true) {
            return Err(Error::Gone);
        }
        // Whoever pushes holds the lock: afterwards nobody touches the consumer's memory.
        let place = std::mem::replace(&mut self.store.lock().place, Place::None);
        drop(place);
        self.context.remove_cq(cx, self.cqn);
        Ok(())
    }
}
