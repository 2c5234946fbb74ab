// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device is given to do: each a number of operations, and how long they took.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use front_end::{Driver, Mr, QpOptions, RcOptions, SendWr, Wc, connect_rc};

use crate::pair::{Connection, DEPTH, End, Guest, POLL, Region};
use crate::sys;

/// Ends a wait that takes too long.
#[derive(Default)]
pub struct Patience {
    spins: u32,
    since: Option<Instant>,
}

impl Patience {
    /// Once round a waiting loop.
    ///
    /// # Errors
    /// When it has gone on for seconds.
    #[inline(always)]
    pub fn spin(&mut self, what: &str) -> Result<()> {
        std::hint::spin_loop();
        self.spins = self.spins.wrapping_add(1);
        if self.spins.is_multiple_of(1 << 20) { self.look(what) } else { Ok(()) }
    }

    #[cold]
    fn look(&mut self, what: &str) -> Result<()> {
        // Longer than it could take at 2^20 spins of successful work between two looks.
        let since = *self.since.get_or_insert_with(Instant::now);
        ensure!(since.elapsed() < Duration::from_secs(60), "{what} did not come");
        Ok(())
    }
}

#[inline]
fn check(wc: &Wc) -> Result<()> {
    if wc.is_success() {
        return Ok(());
    }
    bail!("a completion with status {} (QP {:#x}, opcode {})", wc.status, wc.qpn, wc.opcode)
}

/// WRITEs from one region into another, or READs, one after the other.
pub struct Latency {
    /// The connection.
    pub connection: Connection,
    /// Pairs of MRs, taken in random order.
    pub mrs: Vec<(Mr, Mr)>,
    /// Bytes of each.
    pub len: u32,
    /// READs, from the second MR of a pair.
    pub read: bool,
    random: u64,
}

impl Latency {
    /// `len` bytes each, between any of the pairs of MRs.
    pub fn new(connection: Connection, mrs: Vec<(Mr, Mr)>, len: u32) -> Self {
        Self { connection, mrs, len, read: false, random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Post, poll until it has come, `ops` times.
    ///
    /// # Errors
    /// If a completion tells of an error or does not come.
    pub fn run(&mut self, ops: u64) -> Result<Duration> {
        let a = &mut self.connection.a;
        let mut patience = Patience::default();
        let begin = Instant::now();
        for n in 0..ops {
            let at = (next(&mut self.random) % self.mrs.len() as u64) as usize;
            let (from, to) = &self.mrs[at];
            let sges = [from.sge(0, self.len)];
            let wr = match self.read {
                true => SendWr::read(n, &sges, to.remote(0)),
                false => SendWr::write(n, &sges, to.remote(0)),
            };
            a.qp.post_send(&wr.signaled())?;
            wait(a, &mut patience)?;
        }
        Ok(begin.elapsed())
    }
}

/// A generator of numbers.
fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

#[inline]
fn wait(end: &mut End, patience: &mut Patience) -> Result<()> {
    let wc = loop {
        match end.cq.poll_one() {
            Some(wc) => break wc,
            None => patience.spin("a completion")?,
        }
    };
    check(&wc)
}

/// WRITEs of 64 bytes, one after the other, each by another one of very many remote keys.
pub struct ManyKeys {
    /// The connection.
    pub connection: Connection,
    /// Where from.
    pub from: Mr,
    /// The keys; address 0 of each is written to.
    pub rkeys: Vec<u32>,
    random: u64,
}

impl ManyKeys {
    /// By any of these keys.
    pub fn new(connection: Connection, from: Mr, rkeys: Vec<u32>) -> Self {
        Self { connection, from, rkeys, random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Post, poll until it has come, `ops` times.
    ///
    /// # Errors
    /// If a completion tells of an error or does not come.
    pub fn run(&mut self, ops: u64) -> Result<Duration> {
        let a = &mut self.connection.a;
        let mut patience = Patience::default();
        let sges = [self.from.sge(0, 64)];
        let begin = Instant::now();
        for n in 0..ops {
            let at = (next(&mut self.random) % self.rkeys.len() as u64) as usize;
            a.qp.post_send(&SendWr::write(n, &sges, (0, self.rkeys[at])).signaled())?;
            wait(a, &mut patience)?;
        }
        Ok(begin.elapsed())
    }
}

/// WRITEs or READs, many outstanding.
pub struct Stream {
    /// The connection.
    pub connection: Connection,
    /// Where from.
    pub from: Mr,
    /// Where to.
    pub to: Mr,
    /// Bytes of each.
    pub len: u32,
    /// Places in the MRs that are used in turn.
    pub places: u64,
    /// Outstanding at the most.
    pub depth: u64,
    /// Posted between two looks at the mode word.
    pub batch: u64,
    /// One completion for so many.
    pub signal_every: u64,
    /// READs, the other way.
    pub read: bool,
    /// Called once a batch.
    pub between: Option<Box<dyn FnMut()>>,
    next: u64,
}

impl Stream {
    /// Signalled WRITEs of `len` bytes, as many places in turn as the smaller MR has.
    pub fn new(connection: Connection, from: &Region, to: &Region, len: u32) -> Self {
        let (from, to) = (from.mr, to.mr);
        let places = from.length.min(to.length) / u64::from(len);
        Self {
            connection,
            from,
            to,
            len,
            places,
            depth: DEPTH,
            batch: 16,
            signal_every: 1,
            read: false,
            between: None,
            next: 0,
        }
    }

    /// `ops` operations.
    ///
    /// # Errors
    /// If a completion tells of an error or does not come.
    pub fn run(&mut self, ops: u64) -> Result<Duration> {
        let a = &mut self.connection.a;
        let ops = ops.next_multiple_of(self.signal_every);
        let first = self.next;
        let last = first + ops;
        let mut polled = first;
        let mut wcs = [Wc::default(); 16];
        let mut patience = Patience::default();
        let begin = Instant::now();
        while polled < last {
            let batch = self.batch.min(last - self.next);
            if batch > 0 && self.next - polled + batch <= self.depth {
                for n in self.next..self.next + batch {
                    let offset = n % self.places * u64::from(self.len);
                    let sges = [self.from.sge(offset, self.len)];
                    let mut wr = match self.read {
                        true => SendWr::read(n, &sges, self.to.remote(offset)),
                        false => SendWr::write(n, &sges, self.to.remote(offset)),
                    };
                    if (n + 1).is_multiple_of(self.signal_every) {
                        wr = wr.signaled();
                    }
                    a.qp.put_send(&wr)?;
                }
                a.qp.ring_send();
                self.next += batch;
                if let Some(between) = &mut self.between {
                    between();
                }
            }
            match a.cq.poll(&mut wcs) {
                0 => patience.spin("a completion")?,
                count => {
                    wcs[..count].iter().try_for_each(check)?;
                    polled = wcs[count - 1].wr_id + 1;
                }
            }
        }
        Ok(begin.elapsed())
    }
}

/// A guest that rages: rings every bell it has, real ones and others, flips phases and indices, and
/// scribbles on the words that are the device's, with so many stores at a time. The harmless one's
/// stores go elsewhere.
///
/// # Errors
/// What the device answers while the guest still behaves.
pub fn rage(guest: &Guest, harmless: bool, stores: usize) -> Result<Box<dyn FnMut()>> {
    let options = QpOptions { sq_entries: 64, rq_entries: 64, ..QpOptions::default() };
    let cq = guest.driver.create_cq(64, 0)?;
    let mut qps = Vec::new();
    for _ in 0..4 {
        let make = || guest.driver.create_qp(&guest.pd, &cq, &cq, &options);
        let (mut one, mut other) = (make()?, make()?);
        connect_rc(&mut one, &mut other, &RcOptions::default())?;
        qps.extend([one, other]);
    }
    let plain = guest.driver.memory().alloc_contiguous(64 << 10)?;
    let mut random = 0x1234_5678_9abc_def1_u64;
    Ok(Box::new(move || {
        for n in 0..stores {
            next(&mut random);
            let target = match n % 4 {
                0 => qps[0].uar_slot().0.buffer(),
                1 => cq.buffer(),
                _ => qps[random as usize % qps.len()].buffer(),
            };
            let at = (random >> 32) as usize % (target.len() / 8) * 8;
            match (harmless, n % 8) {
                (true, _) => plain.store_u64(at % plain.len(), random),
                // The summary of the bits: whatever there are, they are to be looked for.
                (false, 0) => target.store_u64(0, u64::MAX),
                (false, 4) => target.store_u64(at, u64::MAX),
                (false, _) => target.store_u64(at, random),
            }
        }
    }))
}

/// SENDs into receive WQEs that are posted as fast.
pub struct Messages {
    /// The connection.
    pub connection: Connection,
    /// Where from.
    pub from: Mr,
    /// Where to.
    pub to: Mr,
    /// Bytes of each.
    pub len: u32,
    /// Posted between two looks at the mode word, on both sides.
    pub batch: u64,
}

impl Messages {
    /// `ops` messages, received and completed on both sides.
    ///
    /// # Errors
    /// If a completion tells of an error or does not come.
    pub fn run(&mut self, ops: u64) -> Result<Duration> {
        let Connection { a, b } = &mut self.connection;
        let (mut posted, mut sent, mut received) = (0, 0, 0);
        let from = [self.from.sge(0, self.len)];
        let to = [self.to.sge(0, self.len)];
        let mut wcs = [Wc::default(); 16];
        let mut patience = Patience::default();
        let begin = Instant::now();
        while sent < ops || received < ops {
            let batch = self.batch.min(ops - posted);
            if batch > 0 && posted - sent.min(received) + batch <= DEPTH {
                (posted..posted + batch).try_for_each(|n| b.qp.put_recv(n, &to))?;
                b.qp.ring_recv();
                for n in posted..posted + batch {
                    a.qp.put_send(&SendWr::send(n, &from).signaled())?;
                }
                a.qp.ring_send();
                posted += batch;
            }
            let count = a.cq.poll(&mut wcs);
            wcs[..count].iter().try_for_each(check)?;
            sent += count as u64;
            let came = b.cq.poll(&mut wcs);
            wcs[..came].iter().try_for_each(check)?;
            received += came as u64;
            if count + came == 0 {
                patience.spin("a completion")?;
            }
        }
        Ok(begin.elapsed())
    }
}

/// WRITEs of data that one core has just written and then reads: the sender's and the receiver's
/// core is the driver's.
pub struct Dirty {
    /// The WRITEs.
    pub latency: Latency,
    /// Where from.
    pub from: Region,
    /// Where to.
    pub to: Region,
}

impl Dirty {
    /// `ops` cycles: write, post, poll, read.
    ///
    /// # Errors
    /// If a completion tells of an error or does not come.
    pub fn run(&mut self, ops: u64) -> Result<Duration> {
        let len = self.latency.len as usize;
        let begin = Instant::now();
        for n in 0..ops {
            sys::fill(&self.from.buffer, 0, n as u8, len);
            self.latency.run(1)?;
            std::hint::black_box(sys::read_all(&self.to.buffer, 0, len));
        }
        Ok(begin.elapsed())
    }
}

/// A post that finds the worker asleep, and the event of its completion.
pub struct Asleep {
    /// The connection.
    pub connection: Connection,
    /// Whose the sending end is.
    pub driver: Driver,
    /// Where from and to.
    pub mrs: (Mr, Mr),
}

impl Asleep {
    /// `ops` times: wait until the worker sleeps; then post, sleep, and be woken.
    ///
    /// # Errors
    /// If an event or a completion does not come.
    pub fn run(&mut self, ops: u64) -> Result<Duration> {
        let a = &mut self.connection.a;
        let (from, to) = &self.mrs;
        let mut total = Duration::ZERO;
        for n in 0..ops {
            let since = Instant::now();
            loop {
                std::thread::sleep(POLL);
                if self.driver.status_page().load_u32(0) != 0 {
                    break;
                }
                ensure!(since.elapsed() < Duration::from_secs(60), "the worker does not sleep");
            }
            a.cq.arm(false);
            let sges = [from.sge(0, 64)];
            let begin = Instant::now();
            a.qp.post_send(&SendWr::write(n, &sges, to.remote(0)).signaled())?;
            let event = a.cq.wait_event(Duration::from_secs(60))?;
            total += begin.elapsed();
            ensure!(event.is_some(), "the event did not come");
            check(&a.cq.wait_one(Duration::from_secs(60))?)?;
        }
        Ok(total)
    }
}
