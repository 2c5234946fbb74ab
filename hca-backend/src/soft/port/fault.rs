// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A port that does to frames what bad networks do: loses, doubles, swaps and delays them, the same way
//! each time for the same seed and the same frames.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::FrameBatch;
use super::rx_buffer::RxBuffer;
use super::sys::{Alarm, Ready};
use super::{Port, PortCounters};

/// How a frame that is to be swapped with later ones is held back, if none come.
const HELD_FOR: Duration = Duration::from_millis(1);
/// Frames that a swapped one lets pass, at most.
const DEPTH: u64 = 8;
/// Frames that are held back in one direction; more are lost.
const MAX_HELD: usize = 4096;

/// What happens to frames, in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Where the random numbers begin.
    pub seed: u64,
    /// Frames that are lost, in a million.
    pub loss: u32,
    /// Frames that come twice, in a million.
    pub duplicate: u32,
    /// Frames that let up to eight later ones pass, in a million.
    pub reorder: u32,
    /// How long each frame takes.
    pub delay: Duration,
}

/// A port with faults.
pub struct Fault<P> {
    inner: P,
    ready: Ready,
    alarm: Alarm,
    /// The alarm is set, or rings.
    rings: AtomicBool,
    out: Mutex<Lane>,
    into: Mutex<Lane>,
}

/// One direction.
struct Lane {
    faults: Faults,
    random: u64,
    held: VecDeque<Held>,
    lost: u64,
}

struct Held {
    until: Instant,
    /// Frames that it lets pass before.
    behind: u64,
    frame: Vec<u8>,
}

impl Lane {
    fn new(faults: Faults, lane: u64) -> Self {
        let random = (faults.seed << 1 | lane).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { faults, random, held: VecDeque::new(), lost: 0 }
    }

    /// A number below `below` (xorshift64*).
    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below.max(1)
    }

    fn happens(&mut self, in_a_million: u32) -> bool {
        in_a_million > 0 && self.random(1_000_000) < u64::from(in_a_million)
    }

    fn put(&mut self, now: Instant, frame: &[u8], emit: &mut dyn FnMut(&[u8])) {
        if self.happens(self.faults.loss) {
            self.lost += 1;
            return;
        }
        let copies = 1 + u32::from(self.happens(self.faults.duplicate));
        for _ in 0..copies {
            let swapped = self.happens(self.faults.reorder);
            let behind = if swapped { 1 + self.random(DEPTH) } else { 0 };
            let wait = self.faults.delay + if swapped { HELD_FOR } else { Duration::ZERO };
            if wait.is_zero() {
                emit(frame);
            } else if self.held.len() < MAX_HELD {
                self.held.push_back(Held { until: now + wait, behind, frame: frame.to_vec() });
            } else {
                self.lost += 1;
            }
        }
        // Those that were swapped have let one pass.
        for held in &mut self.held {
            held.behind = held.behind.saturating_sub(1);
        }
        self.due(now, emit);
    }

    /// Emits what has waited long enough. When the next is due.
    fn due(&mut self, now: Instant, emit: &mut dyn FnMut(&[u8])) -> Option<Instant> {
        let no_delay = self.faults.delay.is_zero();
        let mut i = 0;
        while i < self.held.len() {
            let held = &self.held[i];
            if held.until <= now || no_delay && held.behind == 0 {
                if let Some(held) = self.held.remove(i) {
                    emit(&held.frame);
                }
            } else {
                i += 1;
            }
        }
        self.held.iter().map(|held| held.until).min()
    }
}

impl<P: Port> Fault<P> {
    /// Faults for what passes through `inner`.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new(inner: P, faults: Faults) -> io::Result<Self> {
        let (ready, alarm) = (Ready::new()?, Alarm::new()?);
        ready.add(inner.fd())?;
        ready.add(alarm.fd())?;
        let lane = |i| Mutex::new(Lane::new(faults, i));
        let rings = AtomicBool::new(false);
        Ok(Self { inner, ready, alarm, rings, out: lane(0), into: lane(1) })
    }

    fn send_now(&self, lane: &mut Lane, frames: &FrameBatch) -> io::Result<()> {
        // A queue that is full loses frames: that is one more fault.
        let sent = self.inner.send(frames, 0..frames.len())?;
        lane.lost += (frames.len() - sent) as u64;
        Ok(())
    }

    fn wake_at(&self, now: Instant, at: Option<Instant>) {
        if let Some(at) = at {
            self.alarm.set(at.saturating_duration_since(now));
            self.rings.store(true, Ordering::Relaxed);
        }
    }
}

fn locked(lane: &Mutex<Lane>) -> MutexGuard<'_, Lane> {
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<P: Port> Port for Fault<P> {
    fn send(&self, frames: &FrameBatch, range: Range<usize>) -> io::Result<usize> {
        let (now, mut lane) = (Instant::now(), locked(&self.out));
        let mut passed = FrameBatch::new(64);
        for i in range.clone() {
            lane.put(now, frames.frame(i), &mut |frame| passed.push(frame));
        }
        let next = lane.due(now, &mut |frame| passed.push(frame));
        self.send_now(&mut lane, &passed)?;
        self.wake_at(now, next);
        Ok(range.len())
    }

    fn receive(
        &self,
        buffer: &mut RxBuffer,
        max: usize,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<usize> {
        if self.rings.swap(false, Ordering::Relaxed) {
            self.alarm.quiet();
        }
        let now = Instant::now();
        let mut out = locked(&self.out);
        let mut late = FrameBatch::new(64);
        let next_out = out.due(now, &mut |frame| late.push(frame));
        self.send_now(&mut out, &late)?;
        drop(out);
        let mut lane = locked(&self.into);
        let mut emitted = 0;
        let mut emit = |frame: &[u8]| {
            emitted += 1;
            sink(frame);
        };
        let got = self.inner.receive(buffer, max, &mut |frame| lane.put(now, frame, &mut emit))?;
        let next_in = lane.due(now, &mut emit);
        drop(lane);
        let next = [next_out, next_in].into_iter().flatten().min();
        self.wake_at(now, next);
        // Frames that were all lost are progress too.
        Ok(emitted.max(got))
    }

    fn buffer(&self) -> RxBuffer {
        self.inner.buffer()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.ready.fd()
    }

    fn mtu(&self) -> usize {
        self.inner.mtu()
    }

    fn counters(&self) -> PortCounters {
        let mut counters = self.inner.counters();
        counters.send_dropped += locked(&self.out).lost;
        counters.receive_dropped += locked(&self.into).lost;
        counters
    }
}
