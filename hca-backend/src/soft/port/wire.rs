// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What drives a network's exchange and the HCAs on it: a part that one worker polls.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Instant;

use rdma_midlayer::attr::GidEntry;
use rdma_midlayer::driver::{Poller, Turn, Waker};

use super::exchange::{Exchange, Station};
use super::{BURST, FrameBatch};
use crate::soft::link::Handled;

/// Batches that one turn sends, at most.
const BATCHES: usize = 4;
/// Frames that a port is asked for when they come one at a time: to look for one costs the least, and it
/// is answered before the next look.
const ONE: usize = 1;
/// Frames that it is asked for after one has come.
const FEW: usize = 4;
/// Turns without a frame after which ports are not looked at in every turn: that is a system call, and
/// a worker's other work is shorter.
const QUIET: u32 = 256;
/// From then on, one look in so many turns. A worker that sleeps is woken by the port's descriptor.
const TURNS_A_LOOK: u32 = 32;

/// An HCA's end of a network's wire: its sans-I/O core.
pub trait Core: Send + Sync {
    /// A frame came from outside.
    fn take(&self, now: Instant, frame: &[u8]) -> Handled;

    /// The addresses of the HCA's devices.
    fn addresses(&self) -> Vec<GidEntry>;

    /// Runs what is due.
    fn handle_timer(&self, now: Instant);

    /// Whether `transmit` may find something.
    fn has_frames(&self) -> bool;

    /// Appends frames that are to be sent, until the batch is full: then, and only then, there may be more.
    /// What is to be sent from now on is said to the waker.
    fn transmit(&self, now: Instant, batch: &mut FrameBatch);

    /// When it is to be asked again at the latest.
    fn next_deadline(&self) -> Option<Instant>;

    /// What it counted, of the port and of each QP.
    fn counts(&self) -> Vec<Counted>;

    /// Whom to tell when there is something to send, or a nearer deadline, while nobody asks.
    fn set_waker(&self, waker: Arc<dyn Waker>);
}

/// What was counted of somebody: names and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Of whom, in words for an operator.
    pub who: String,
    /// Names, as rxe has them where it has them, and values.
    pub counts: Vec<(&'static str, u64)>,
}

/// A network's wire. A worker polls it; threads may connect and disconnect meanwhile.
pub struct Wire {
    exchange: Exchange,
    cores: Mutex<Arc<[Arc<dyn Core>]>>,
    /// Changes with `cores`, so that a turn needs neither their lock nor a count.
    generation: AtomicU64,
    waker: Mutex<Option<Arc<dyn Waker>>>,
    work: Mutex<Work>,
}

struct Work {
    cores: Arc<[Arc<dyn Core>]>,
    generation: u64,
    /// The nearest, at the end of the last turn.
    deadline: Option<Instant>,
    batch: FrameBatch,
    /// How many of the batch are gone.
    sent: usize,
    quiet: u32,
    /// Frames to ask a port for: few, until they come in bursts, since asking for many costs more.
    want: usize,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wire {
    /// A wire to which nothing is connected.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let work = Work {
            cores: Arc::new([]),
            generation: 0,
            deadline: None,
            batch: FrameBatch::new(BURST),
            sent: 0,
            quiet: 0,
            want: ONE,
        };
        Ok(Self {
            exchange: Exchange::new()?,
            cores: Mutex::new(Arc::new([])),
            generation: AtomicU64::new(0),
            waker: Mutex::default(),
            work: Mutex::new(work),
        })
    }

    /// The ports' side.
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Connects an HCA.
    pub fn add_core(&self, core: Arc<dyn Core>) {
        let waker = locked(&self.waker).clone();
        waker.iter().for_each(|waker| core.set_waker(waker.clone()));
        self.change(|cores| cores.iter().cloned().chain([core]).collect());
        waker.iter().for_each(|waker| waker.wake());
    }

    /// Disconnects an HCA.
    pub fn remove_core(&self, core: &Arc<dyn Core>) {
        self.change(|cores| cores.iter().filter(|c| !Arc::ptr_eq(c, core)).cloned().collect());
    }

    fn change(&self, change: impl FnOnce(&[Arc<dyn Core>]) -> Arc<[Arc<dyn Core>]>) {
        let mut cores = locked(&self.cores);
        *cores = change(&cores);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// What the HCAs counted.
    pub fn counts(&self) -> Vec<Counted> {
        let cores = locked(&self.cores).clone();
        cores.iter().flat_map(|core| core.counts()).collect()
    }

    /// Sends what the HCAs have to send. Whether there was anything.
    fn transmit(&self, now: Instant, work: &mut Work, cores: &[Arc<dyn Core>]) -> bool {
        let mut worked = false;
        for core in cores {
            for _ in 0..BATCHES {
                if !self.flush(work) {
                    return worked;
                }
                core.transmit(now, &mut work.batch);
                worked |= !work.batch.is_empty() || core.has_frames();
                if !work.batch.is_full() {
                    break;
                }
            }
        }
        self.flush(work);
        worked
    }

    /// Sends the batch. False if the way is full; the exchange's descriptor says when to try again.
    fn flush(&self, work: &mut Work) -> bool {
        if work.sent < work.batch.len() {
            let rest = work.sent..work.batch.len();
            work.sent += self.exchange.send(&work.batch, rest);
            if work.sent < work.batch.len() {
                return false;
            }
        }
        work.batch.clear();
        work.sent = 0;
        true
    }
}

/// The HCAs of a wire as one station.
struct Stations<'a>(&'a [Arc<dyn Core>]);

impl Station for Stations<'_> {
    fn take(&self, now: Instant, frame: &[u8]) -> Handled {
        let mut handled = Handled::NotOurs;
        for core in self.0 {
            match core.take(now, frame) {
                Handled::Taken => return Handled::Taken,
                Handled::Shared => handled = Handled::Shared,
                Handled::NotOurs => {}
            }
        }
        handled
    }

    fn addresses(&self) -> Vec<GidEntry> {
        self.0.iter().flat_map(|core| core.addresses()).collect()
    }
}

impl Poller for Wire {
    fn poll(&self, now: Instant, budget: usize) -> Turn {
        let mut work = match self.work.try_lock() {
            Ok(work) => work,
            Err(TryLockError::Poisoned(work)) => work.into_inner(),
            // Somebody else is at it.
            Err(TryLockError::WouldBlock) => return Turn::default(),
        };
        let work = &mut *work;
        if work.generation != self.generation.load(Ordering::Acquire) {
            let cores = locked(&self.cores);
            work.generation = self.generation.load(Ordering::Acquire);
            work.cores = cores.clone();
        }
        let cores = work.cores.clone();
        // What was posted in this turn goes first: to look for what came takes a system call.
        let mut worked = false;
        if cores.iter().any(|core| core.has_frames()) {
            worked = self.transmit(now, work, &cores);
        }
        // While a timer runs an answer is expected.
        let expects = work.deadline.is_some();
        if work.quiet < QUIET || work.quiet.is_multiple_of(TURNS_A_LOOK) || expects {
            let want = work.want.min(budget.max(FEW));
            let got = self.exchange.receive(now, want, &Stations(&cores));
            work.want = match got {
                0 => ONE,
                _ if got < work.want => FEW,
                _ if work.want == ONE => FEW,
                _ => BURST,
            };
            worked |= got > 0;
        }
        cores.iter().for_each(|core| core.handle_timer(now));
        worked |= self.transmit(now, work, &cores);
        work.quiet = if worked { 0 } else { work.quiet.wrapping_add(1).max(1) };
        work.deadline = cores.iter().filter_map(|core| core.next_deadline()).min();
        Turn { worked, deadline: work.deadline }
    }

    fn set_waker(&self, waker: Arc<dyn Waker>) {
        let cores = locked(&self.cores).clone();
        cores.iter().for_each(|core| core.set_waker(waker.clone()));
        *locked(&self.waker) = Some(waker);
    }

    fn sleep_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.exchange.fd())
    }
}
