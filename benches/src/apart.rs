// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is measured apart from the windows: events, and two workers, which a machine of two CPUs can
//! only run while the driver sleeps.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use front_end::{Mr, SendWr, Wc};
use vhost_rdma::{Cpus, WorkerConfig};

use crate::pair::{Connection, End, POLL, Pair};

/// Completions that a moderated CQ holds its event back for.
pub const MODERATED: u16 = 32;
/// So long at the most, in microseconds.
const PERIOD: u16 = 32_000;
/// Completions that are waited for.
const COMPLETIONS: u64 = 1024;
const LONG: Duration = Duration::from_secs(60);

/// Completions for each event, which would be an interrupt if the driver slept: it posts one 64-byte WRITE
/// after the other, and arms the CQ anew after each event; with the CQ moderated or not.
///
/// # Errors
/// If a completion does not come.
pub fn completions_an_event(pair: &Pair, moderated: bool) -> Result<f64> {
    let (from, to) = (pair.a.register(4096)?.mr, pair.b.register(4096)?.mr);
    let Connection { mut a, b: _b } = pair.connect()?;
    let driver = &pair.a.driver;
    if moderated {
        driver.modify_cq(a.cq.number(), MODERATED, PERIOD)?;
    }
    let before = driver.query_counters()?.cq_events.get();
    a.cq.arm(false);
    for n in 0..COMPLETIONS {
        a.qp.post_send(&SendWr::write(n, &[from.sge(0, 64)], to.remote(0)).signaled())?;
        ensure!(a.cq.wait_one(LONG)?.is_success(), "a WRITE failed");
        if a.cq.wait_event(Duration::ZERO)?.is_some() {
            a.cq.arm(false);
        }
    }
    let events = driver.query_counters()?.cq_events.get() - before;
    Ok(COMPLETIONS as f64 / events.max(1) as f64)
}

/// Bytes of the WRITEs that two workers share, and how many are outstanding on each QP.
const LARGE: u32 = 1 << 20;
const WINDOW: u64 = 32;

/// Two QPs with much to do, and the workers that they have.
pub struct TwoQps {
    _pair: Pair,
    ends: [(End, Mr, Mr, u64, u64); 2],
    _peers: [End; 2],
}

impl TwoQps {
    /// Beside another pair, with so many workers.
    ///
    /// # Errors
    /// What the daemon or the device answers.
    pub fn new(beside: &Pair, workers: usize) -> Result<Self> {
        let mut config = WorkerConfig::new(workers, Cpus::default(), POLL);
        // They begin where they are to be.
        config.balance = Duration::ZERO;
        let pair = beside.another(config, [64 << 20; 2])?;
        let end = || -> Result<_> {
            let Connection { a, b } = pair.connect()?;
            let (from, to) = (pair.a.register(LARGE as usize)?, pair.b.register(LARGE as usize)?);
            Ok(((a, from.mr, to.mr, 0, 0), b))
        };
        let ((one, its_peer), (other, other_peer)) = (end()?, end()?);
        Ok(Self { _pair: pair, ends: [one, other], _peers: [its_peer, other_peer] })
    }

    /// `ops` WRITEs on each, by a driver that looks at its CQs now and then.
    ///
    /// # Errors
    /// If a completion tells of an error or does not come.
    pub fn run(&mut self, ops: u64) -> Result<Duration> {
        let begin = Instant::now();
        let mut wcs = [Wc::default(); 32];
        let last = self.ends.each_ref().map(|end| end.4 + ops);
        loop {
            let mut all = true;
            for ((end, from, to, posted, done), last) in self.ends.iter_mut().zip(last) {
                while *posted < last && *posted - *done < WINDOW {
                    let sges = [from.sge(0, LARGE)];
                    end.qp.post_send(&SendWr::write(*posted, &sges, to.remote(0)).signaled())?;
                    *posted += 1;
                }
                let came = end.cq.poll(&mut wcs);
                ensure!(wcs[..came].iter().all(Wc::is_success), "a WRITE failed");
                *done += came as u64;
                all &= *done == last;
            }
            if all {
                return Ok(begin.elapsed());
            }
            ensure!(begin.elapsed() < LONG, "a completion did not come");
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
