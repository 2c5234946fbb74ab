// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! CQ moderation: events of armed CQs that are held back until enough CQEs are there or time is up.
//! A CQ that asks for none of it pays one load.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use rdma_midlayer::driver::{Poller, Turn, Waker};

use crate::cq::CqPath;
use crate::events::CompQueue;

/// What a CQ's driver has asked for, and where its CQ stands. Everything but `set` is for the thread
/// of the CQ's vector.
#[derive(Default)]
pub struct Moderation {
    /// Period in microseconds in the high half, CQEs in the low; 0: at once.
    wanted: AtomicU64,
    holder: OnceLock<Weak<Moderator>>,
    /// CQEs that the ring had at the last event.
    seen: AtomicU32,
    /// One of those since was a solicited one.
    solicited: AtomicBool,
    /// The moderator will look.
    held: AtomicBool,
}

impl Moderation {
    /// MODIFY_CQ. `holder` is the moderator of the CQ's vector, always the same.
    pub fn set(&self, count: u16, period: u16, holder: &Arc<Moderator>) {
        let _ = self.holder.set(Arc::downgrade(holder));
        let off = count <= 1 || period == 0;
        let wanted = if off { 0 } else { u64::from(period) << 32 | u64::from(count) };
        self.wanted.store(wanted, Ordering::Release);
    }

    /// Counts start anew: the CQ has another ring.
    pub fn restart(&self) {
        self.seen.store(0, Ordering::Relaxed);
    }
}

impl CqPath {
    /// As `check_arm`, after a burst of CQEs, if the driver does not want to wait for more of them.
    #[inline]
    pub fn check_arm_moderated(self: &Arc<Self>, solicited: bool) -> bool {
        match self.moderation().wanted.load(Ordering::Acquire) {
            0 => self.check_arm(solicited),
            wanted => self.hold_back(wanted, solicited),
        }
    }

    #[cold]
    fn hold_back(self: &Arc<Self>, wanted: u64, solicited: bool) -> bool {
        let m = self.moderation();
        let solicited = m.solicited.load(Ordering::Relaxed) || solicited;
        m.solicited.store(solicited, Ordering::Relaxed);
        let produced = self.with_ring(|ring| ring.produced());
        let since = produced.wrapping_sub(m.seen.load(Ordering::Relaxed));
        if u64::from(since) >= wanted & 0xffff_ffff {
            return self.fire();
        }
        let Some(holder) = m.holder.get().and_then(Weak::upgrade) else { return self.fire() };
        if !m.held.swap(true, Ordering::AcqRel) {
            holder.hold(self.clone(), Duration::from_micros(wanted >> 32));
        }
        false
    }

    fn fire(&self) -> bool {
        let m = self.moderation();
        let fires = self.check_arm(m.solicited.load(Ordering::Relaxed));
        if fires {
            let produced = self.with_ring(|ring| ring.produced());
            m.seen.store(produced, Ordering::Relaxed);
            m.solicited.store(false, Ordering::Relaxed);
        }
        fires
    }
}

/// The CQs of one vector whose events are held back; polled by the vector's worker.
pub struct Moderator {
    queue: Arc<CompQueue>,
    held: Mutex<BTreeMap<(Instant, u32), Arc<CqPath>>>,
    /// How many, so that a turn without any takes no lock.
    count: AtomicUsize,
    waker: OnceLock<Arc<dyn Waker>>,
}

impl Moderator {
    /// For the vector with this completion virtqueue.
    pub fn new(queue: Arc<CompQueue>) -> Arc<Self> {
        Arc::new(Self {
            queue,
            held: Mutex::default(),
            count: AtomicUsize::new(0),
            waker: OnceLock::new(),
        })
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<(Instant, u32), Arc<CqPath>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, cq: Arc<CqPath>, period: Duration) {
        let mut held = self.held();
        held.insert((Instant::now() + period, cq.cqn()), cq);
        self.count.store(held.len(), Ordering::Relaxed);
        drop(held);
        self.waker.get().iter().for_each(|waker| waker.wake());
    }

    /// Forgets a CQ that has ended. May be called while the worker polls.
    pub fn forget(&self, cqn: u32) {
        let mut held = self.held();
        held.retain(|(_, other), _| *other != cqn);
        self.count.store(held.len(), Ordering::Relaxed);
    }
}

impl Poller for Moderator {
    fn poll(&self, now: Instant, budget: usize) -> Turn {
        let mut worked = false;
        for _ in 0..budget.max(1) {
            if self.count.load(Ordering::Relaxed) == 0 {
                return Turn { worked, deadline: None };
            }
            let mut held = self.held();
            let due = match held.first_entry() {
                Some(first) if first.key().0 <= now => first.remove(),
                Some(first) => return Turn { worked, deadline: Some(first.key().0) },
                None => break,
            };
            self.count.store(held.len(), Ordering::Relaxed);
            drop(held);
            // Before the look: a burst that comes now is held anew.
            due.moderation().held.store(false, Ordering::Release);
            if due.fire() {
                self.queue.raise(due);
            }
            worked = true;
        }
        Turn { worked: true, deadline: Some(now) }
    }

    fn set_waker(&self, waker: Arc<dyn Waker>) {
        let _ = self.waker.set(waker);
    }
}
