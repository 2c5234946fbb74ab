// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two CPUs and who runs on them: the driver's thread on one; on the other the device's worker or,
//! in its place, a thread that shows what the machine itself can do. And windows of time in which
//! nobody else runs there.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use vhost_rdma::affinity::pin;

use crate::sys::ThreadId;

/// A thread on the worker's CPU that does what it is given, and sleeps otherwise.
pub struct Peer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    id: ThreadId,
}

type Job = Box<dyn FnOnce() + Send>;

impl Peer {
    /// Starts it.
    ///
    /// # Errors
    /// What the system answers.
    pub fn start(cpu: usize) -> Result<Self> {
        let (jobs, inbox) = channel::<Job>();
        let (told, id) = channel();
        let body = move || {
            let _ = told.send(pin(cpu).map(|()| ThreadId::current()));
            inbox.iter().for_each(|job| job());
        };
        let thread = std::thread::Builder::new().name("peer".to_owned()).spawn(body)?;
        let id = id.recv()?.with_context(|| format!("CPU {cpu}"))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), id })
    }

    /// Does it there, soon.
    pub fn begin(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(Box::new(job));
        }
    }

    /// Does it there, and brings back what came of it.
    ///
    /// # Errors
    /// If it panicked.
    pub fn run<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> Result<R> {
        let (told, answer) = channel();
        self.begin(move || {
            let _ = told.send(job());
        });
        answer.recv().context("the peer's thread ended")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How windows are kept free of neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiet {
    /// Both threads go before all others while a window lasts, 3 ms at the most of every 10.
    First,
    /// Not at all.
    Shared,
}

/// The threads.
pub struct Stage {
    /// On the worker's CPU.
    pub peer: Peer,
    /// One a daemon.
    workers: Vec<ThreadId>,
    quiet: Quiet,
}

/// How long a window should be: within the 3 ms that a real-time thread may take.
pub const WINDOW: Duration = Duration::from_micros(1500);
const PAUSE: Duration = Duration::from_millis(7);

impl Stage {
    /// The stage of the calling thread, which is kept on `driver`, and of the workers that run on
    /// `worker` already.
    ///
    /// # Errors
    /// If a CPU is not to be had, or there is no worker.
    pub fn new(driver: usize, worker: usize, quiet: Quiet) -> Result<Self> {
        pin(driver).with_context(|| format!("CPU {driver}"))?;
        let peer = Peer::start(worker)?;
        let workers = ThreadId::named("worker0");
        anyhow::ensure!(!workers.is_empty(), "the daemon's worker is not there");
        let stage = Self { peer, workers, quiet };
        if quiet == Quiet::First {
            stage.set_first(true).and_then(|()| stage.set_first(false)).context(
                "going before other threads (needs CAP_SYS_NICE; --shared does without)",
            )?;
        }
        Ok(stage)
    }

    fn set_first(&self, first: bool) -> std::io::Result<()> {
        // The caller last: it must not wait for a thread that others keep from running.
        self.workers.iter().try_for_each(|worker| worker.set_first(first))?;
        self.peer.id.set_first(first)?;
        ThreadId::SELF.set_first(first)
    }

    /// Runs something within a window.
    ///
    /// # Errors
    /// Those of `work`, or of the system.
    pub fn window<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        if self.quiet == Quiet::Shared {
            return work();
        }
        self.set_first(true)?;
        let result = work();
        self.set_first(false)?;
        std::thread::sleep(PAUSE);
        result
    }
}
