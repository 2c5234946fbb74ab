// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the machine itself can do between two cores: the yardsticks that the device is held against.
//! Each runs between the driver's thread and the peer on the worker's CPU.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use front_end::{Buffer, full_fence};

use crate::stage::Peer;
use crate::sys;
use crate::work::Patience;

#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU64);

/// Waits until the peer has begun.
fn wait_for(flag: &AtomicBool) -> Result<()> {
    let mut patience = Patience::default();
    while !flag.load(Ordering::Acquire) {
        patience.spin("the peer's thread")?;
    }
    Ok(())
}

/// A cache line that goes to and fro: `ops` round trips; two ways each.
///
/// # Errors
/// If the peer does not answer.
pub fn ping_pong(peer: &Peer, ops: u64) -> Result<Duration> {
    let line = Arc::new(Line::default());
    let started = Arc::new(AtomicBool::new(false));
    let (its_line, its_started) = (line.clone(), started.clone());
    peer.begin(move || {
        its_started.store(true, Ordering::Release);
        for n in 0..ops {
            while its_line.0.load(Ordering::Acquire) != 2 * n + 1 {
                std::hint::spin_loop();
            }
            its_line.0.store(2 * n + 2, Ordering::Release);
        }
    });
    wait_for(&started)?;
    let begin = Instant::now();
    let mut patience = Patience::default();
    for n in 0..ops {
        line.0.store(2 * n + 1, Ordering::Release);
        while line.0.load(Ordering::Acquire) != 2 * n + 2 {
            patience.spin("the peer's answer")?;
        }
    }
    Ok(begin.elapsed())
}

const SLOTS: usize = 256;
const SLOT_MASK: u64 = SLOTS as u64 - 1;
/// Places of 64 bytes that the mock ring copies from and to, in turn.
pub const PLACES: usize = 64;

#[repr(align(128))]
#[derive(Default)]
struct Slot([AtomicU64; 8]);

/// Rings like the device's, with a peer that copies 64 bytes and completes, and checks nothing.
pub struct Echo {
    rings: Arc<Rings>,
    posted: u64,
    polled: u64,
}

struct Rings {
    wqes: Vec<[AtomicU64; 8]>,
    cqes: Vec<[AtomicU64; 8]>,
    from: Vec<Slot>,
    to: Vec<Slot>,
    stop: AtomicBool,
    running: AtomicBool,
    taken: AtomicU64,
}

fn phase(n: u64) -> u64 {
    ((n / SLOTS as u64) & 1) ^ 1
}

impl Rings {
    /// What the peer does until it is stopped.
    fn serve(&self) {
        let mut n = self.taken.load(Ordering::Relaxed);
        self.running.store(true, Ordering::Release);
        loop {
            let slot = &self.wqes[(n & SLOT_MASK) as usize];
            let first = slot[0].load(Ordering::Acquire);
            if first & 1 != phase(n) {
                if self.stop.load(Ordering::Relaxed) {
                    break;
                }
                std::hint::spin_loop();
                continue;
            }
            let wqe: [u64; 8] = std::array::from_fn(|i| slot[i].load(Ordering::Relaxed));
            let (from, to) =
                (&self.from[wqe[2] as usize % PLACES], &self.to[wqe[4] as usize % PLACES]);
            for (to, from) in to.0.iter().zip(&from.0) {
                to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            let cqe = &self.cqes[(n & SLOT_MASK) as usize];
            cqe[0].store(wqe[1], Ordering::Relaxed);
            (1..7).for_each(|i| cqe[i].store(n, Ordering::Relaxed));
            cqe[7].store(phase(n), Ordering::Release);
            n += 1;
        }
        self.taken.store(n, Ordering::Relaxed);
        self.running.store(false, Ordering::Release);
    }
}

impl Default for Echo {
    fn default() -> Self {
        let lines = |count| (0..count).map(|_| Default::default()).collect();
        let places = || (0..PLACES).map(|_| Slot::default()).collect();
        let rings = Rings {
            wqes: lines(SLOTS),
            cqes: lines(SLOTS),
            from: places(),
            to: places(),
            stop: AtomicBool::new(false),
            running: AtomicBool::new(false),
            taken: AtomicU64::new(0),
        };
        Self { rings: Arc::new(rings), posted: 0, polled: 0 }
    }
}

impl Echo {
    /// `ops` operations, at the most `depth` outstanding, `batch` between two fences.
    ///
    /// # Errors
    /// If the peer does not answer.
    pub fn run(&mut self, peer: &Peer, ops: u64, batch: u64, depth: u64) -> Result<Duration> {
        let its_rings = self.rings.clone();
        self.rings.stop.store(false, Ordering::Relaxed);
        peer.begin(move || its_rings.serve());
        wait_for(&self.rings.running)?;
        let begin = Instant::now();
        let last = self.posted + ops;
        let mut patience = Patience::default();
        while self.polled < last {
            let batch = batch.min(last - self.posted);
            if batch > 0 && self.posted - self.polled + batch <= depth {
                (0..batch).for_each(|_| self.post());
                full_fence();
            }
            let mut came = 0;
            while came < 16 && self.poll() {
                came += 1;
            }
            if came == 0 {
                patience.spin("an echo")?;
            }
        }
        let elapsed = begin.elapsed();
        self.rings.stop.store(true, Ordering::Relaxed);
        while self.rings.running.load(Ordering::Acquire) {
            patience.spin("the end of the echo")?;
        }
        Ok(elapsed)
    }

    #[inline]
    fn post(&mut self) {
        let n = self.posted;
        let slot = &self.rings.wqes[(n & SLOT_MASK) as usize];
        (1..7).for_each(|i| slot[i].store(n, Ordering::Relaxed));
        slot[0].store(phase(n), Ordering::Release);
        self.posted += 1;
    }

    #[inline]
    fn poll(&mut self) -> bool {
        let n = self.polled;
        let cqe = &self.rings.cqes[(n & SLOT_MASK) as usize];
        if cqe[7].load(Ordering::Acquire) & 1 != phase(n) {
            return false;
        }
        std::hint::black_box((0..7).fold(0, |sum, i| sum ^ cqe[i].load(Ordering::Relaxed)));
        self.polled += 1;
        true
    }
}

/// `libc`'s memcpy of `len` bytes, `ops` times, on the worker's CPU; the places of the buffers in
/// turn.
///
/// # Errors
/// If the peer has ended.
pub fn memcpy(
    peer: &Peer,
    to: &Arc<Buffer>,
    from: &Arc<Buffer>,
    len: usize,
    first: u64,
    ops: u64,
) -> Result<Duration> {
    let (to, from) = (to.clone(), from.clone());
    let places = (to.len().min(from.len()) / len) as u64;
    peer.run(move || {
        let begin = Instant::now();
        for n in first..first + ops {
            let at = (n % places) as usize * len;
            sys::memcpy((&to, at), (&from, at), len);
        }
        begin.elapsed()
    })
}

/// As the device's cycle of `work::Dirty`, with a bare memcpy on the worker's CPU in the device's
/// place: one core writes, the other copies, the first reads.
///
/// # Errors
/// If the peer does not answer.
pub fn dirty_memcpy(
    peer: &Peer,
    to: &Arc<Buffer>,
    from: &Arc<Buffer>,
    len: usize,
    ops: u64,
) -> Result<Duration> {
    let line = Arc::new(Line::default());
    let (its_line, its_to, its_from) = (line.clone(), to.clone(), from.clone());
    let started = Arc::new(AtomicBool::new(false));
    let its_started = started.clone();
    peer.begin(move || {
        its_started.store(true, Ordering::Release);
        for n in 0..ops {
            while its_line.0.load(Ordering::Acquire) != 2 * n + 1 {
                std::hint::spin_loop();
            }
            sys::memcpy((&its_to, 0), (&its_from, 0), len);
            its_line.0.store(2 * n + 2, Ordering::Release);
        }
    });
    wait_for(&started)?;
    let mut patience = Patience::default();
    let begin = Instant::now();
    for n in 0..ops {
        sys::fill(from, 0, n as u8, len);
        line.0.store(2 * n + 1, Ordering::Release);
        while line.0.load(Ordering::Acquire) != 2 * n + 2 {
            patience.spin("the peer's copy")?;
        }
        std::hint::black_box(sys::read_all(to, 0, len));
    }
    Ok(begin.elapsed())
}

/// Two eventfds between two threads that both sleep.
pub struct EventFds {
    there: Arc<File>,
    back: Arc<File>,
}

impl EventFds {
    /// Makes them.
    ///
    /// # Errors
    /// What the system answers.
    pub fn new() -> Result<Self> {
        Ok(Self { there: Arc::new(event_fd()?), back: Arc::new(event_fd()?) })
    }

    /// `ops` round trips: write, wake, write, wake.
    ///
    /// # Errors
    /// What the system answers.
    pub fn run(&self, peer: &Peer, ops: u64) -> Result<Duration> {
        let (there, back) = (self.there.clone(), self.back.clone());
        peer.begin(move || {
            for _ in 0..ops {
                if (&*there).read(&mut [0; 8]).is_err() {
                    break;
                }
                let _ = (&*back).write(&1u64.to_ne_bytes());
            }
        });
        let mut total = Duration::ZERO;
        for _ in 0..ops {
            // The peer is to be asleep, as the worker is in the device's case.
            std::thread::sleep(Duration::from_micros(100));
            let begin = Instant::now();
            (&*self.there).write_all(&1u64.to_ne_bytes())?;
            (&*self.back).read_exact(&mut [0; 8])?;
            total += begin.elapsed();
        }
        Ok(total)
    }
}

fn event_fd() -> Result<File> {
    // SAFETY: no pointers; a descriptor that comes back belongs to nobody else.
    unsafe {
        match libc::eventfd(0, libc::EFD_CLOEXEC) {
            fd if fd >= 0 => Ok(File::from_raw_fd(fd)),
            _ => bail!(std::io::Error::last_os_error()),
        }
    }
}
