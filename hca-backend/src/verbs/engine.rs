// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who runs the driver. A `Line` is a share of the CQs with one completion channel: a worker of the
//! daemon polls it, or, where the provider enters the kernel to post and to arm, the driver's own
//! thread. That thread also does what verbs that never sleep can't do themselves: it makes address
//! handles and moves QPs to ERR. A second thread waits for asynchronous events.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use rdma_midlayer::driver::{Poller, Turn, Waker};
use rdma_midlayer::types::Cqn;
use rdma_midlayer::{MaySleep, Result, rcu};

use super::ah::Path;
use super::cq::Cq;
use super::hca::Hca;
use super::host::{Host, HostChannel};
use super::on_use::OnUse;
use super::qp::Qp;
use super::srq::Srq;
use super::wait::{Event, wait};
use crate::soft::spin::SpinLock;

/// CQs looked at in one turn.
const CQS_A_TURN: usize = 64;
/// Completions taken from one CQ before the next one's turn.
const A_CQ_A_TURN: usize = 32;
/// Jobs done before the CQs' turn.
const JOBS_A_TURN: usize = 64;
/// How long the driver's thread looks for work before it sleeps.
const PATIENCE: Duration = Duration::from_micros(50);
/// The longest sleep: a lost wake-up, which is a bug, must not be for ever.
const LONGEST: Duration = Duration::from_secs(1);

/// Work for the driver's thread.
pub(crate) enum Job {
    /// Make the address handle.
    MakeAh(Arc<Path>),
    /// Move the QP to ERR, and say that it failed.
    Fail(Arc<Qp>),
    /// Post what the QP has staged.
    Post(Arc<Qp>),
    /// Post the QP's new receive requests.
    PostReceives(Arc<Qp>),
    /// Pin the MR.
    Pin(Arc<OnUse>),
    /// Post the SRQ's new receive requests.
    PostShared(Arc<Srq>),
}

/// A share of the CQs.
pub(crate) struct Line {
    channel: Arc<HostChannel>,
    cqs: SpinLock<Vec<Arc<Cq>>>,
    generation: AtomicU64,
    local: SpinLock<Local>,
    waker: SpinLock<Option<Arc<dyn Waker>>>,
    hca: OnceLock<Weak<Hca>>,
    /// The driver's thread runs it, and hears of events from the other thread.
    by_thread: bool,
}

#[derive(Default)]
struct Local {
    generation: u64,
    cqs: Vec<Arc<Cq>>,
    next: usize,
}

impl Line {
    fn new(host: &Arc<Host>, by_thread: bool) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            channel: HostChannel::create(host)?,
            cqs: SpinLock::new(Vec::new()),
            generation: AtomicU64::new(1),
            local: SpinLock::new(Local::default()),
            waker: SpinLock::new(None),
            hca: OnceLock::new(),
            by_thread,
        }))
    }

    pub(crate) fn channel(&self) -> &Arc<HostChannel> {
        &self.channel
    }

    /// Looks after a CQ from now on.
    pub(crate) fn add(&self, cq: Arc<Cq>) {
        self.change(|cqs| cqs.push(cq));
    }

    pub(crate) fn remove(&self, cqn: Cqn) {
        use rdma_midlayer::driver::CqDriver;
        self.change(|cqs| cqs.retain(|cq| cq.cqn() != cqn));
        // The copy too: it would keep the CQ, and with it the HCA, until the next poll.
        self.refresh(&mut self.local.lock());
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Cq>>)) {
        change(&mut self.cqs.lock());
        self.generation.fetch_add(1, Ordering::Release);
        self.wake();
    }

    /// Makes whoever polls it look again. Never sleeps.
    pub(crate) fn wake(&self) {
        if self.by_thread {
            if let Some(hca) = self.hca.get().and_then(Weak::upgrade) {
                hca.engine.wake();
            }
        } else if let Some(waker) = self.waker.lock().clone() {
            waker.wake();
        }
    }

    fn refresh(&self, local: &mut Local) {
        let generation = self.generation.load(Ordering::Acquire);
        if local.generation != generation {
            local.generation = generation;
            local.cqs.clone_from(&self.cqs.lock());
            local.next = 0;
        }
    }

    fn turn(&self) -> bool {
        let mut local = self.local.lock();
        self.refresh(&mut local);
        let count = local.cqs.len();
        let mut worked = false;
        let guard = rcu::enter();
        for _ in 0..count.min(CQS_A_TURN) {
            local.next = if local.next + 1 < count { local.next + 1 } else { 0 };
            worked |= local.cqs[local.next].drain(A_CQ_A_TURN, &guard) > 0;
        }
        worked
    }

    /// Reads what the channel says; CQs that fired are armed again before the next sleep.
    fn hear(&self) {
        let Some(hca) = self.hca.get().and_then(Weak::upgrade) else { return };
        while let Some(number) = self.channel.event() {
            let guard = rcu::enter();
            if let Some(cq) = hca.cqs.get(number, &guard) {
                cq.fired();
            }
        }
    }

    /// Arms every CQ, then looks once more: whether there was nothing.
    fn arm(&self) -> bool {
        let cqs = {
            let mut local = self.local.lock();
            self.refresh(&mut local);
            local.cqs.clone()
        };
        cqs.iter().for_each(|cq| cq.arm());
        let guard = rcu::enter();
        cqs.iter().all(|cq| cq.drain(A_CQ_A_TURN, &guard) == 0)
    }
}

impl Poller for Line {
    fn poll(&self, _now: Instant, _budget: usize) -> Turn {
        Turn { worked: self.turn(), deadline: None }
    }

    fn set_waker(&self, waker: Arc<dyn Waker>) {
        let old = self.waker.lock().replace(waker);
        drop(old);
        self.wake();
    }

    fn before_sleep(&self) -> bool {
        self.hear();
        self.arm()
    }

    fn sleep_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.channel.fd())
    }

    fn after_sleep(&self) {
        self.hear();
    }
}

/// The lines of an HCA and its thread's jobs.
pub(crate) struct Engine {
    lines: Vec<Arc<Line>>,
    has_thread: bool,
    jobs: SpinLock<VecDeque<Job>>,
    /// Those that post receive requests: before any request is sent that was posted after them.
    receives: SpinLock<VecDeque<Job>>,
    waiting: AtomicUsize,
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
    stop: AtomicBool,
}

impl Engine {
    /// With `lines` shares of the CQs for the daemon's workers, or one for the driver's own thread.
    pub(crate) fn new(host: &Arc<Host>, lines: usize, by_thread: bool) -> Result<Self> {
        let count = if by_thread { 1 } else { lines.max(1) };
        Ok(Self {
            lines: (0..count).map(|_| Line::new(host, by_thread)).collect::<Result<_>>()?,
            has_thread: by_thread,
            jobs: SpinLock::new(VecDeque::with_capacity(256)),
            receives: SpinLock::new(VecDeque::with_capacity(256)),
            waiting: AtomicUsize::new(0),
            thread: OnceLock::new(),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        })
    }

    /// The driver's own thread posts and polls.
    pub(crate) fn has_thread(&self) -> bool {
        self.has_thread
    }

    pub(crate) fn line(&self, vector: usize) -> &Arc<Line> {
        &self.lines[vector % self.lines.len()]
    }

    pub(crate) fn lines(&self) -> &[Arc<Line>] {
        &self.lines
    }

    /// Leaves work for the driver's thread. Never sleeps.
    pub(crate) fn submit(&self, job: Job) {
        match job {
            Job::PostReceives(_) | Job::PostShared(_) => self.receives.lock().push_back(job),
            _ => self.jobs.lock().push_back(job),
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.wake();
    }

    /// The driver's thread: posts all receive requests that were left for it.
    pub(crate) fn post_receives(&self) {
        loop {
            let job = self.receives.lock().pop_front();
            match job {
                Some(Job::PostReceives(qp)) => qp.post_receives(),
                Some(Job::PostShared(srq)) => srq.post_new(),
                _ => return,
            }
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Pairs with the fence before the thread sleeps.
    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed)
            && self.asleep.swap(false, Ordering::AcqRel)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    fn next(&self) -> Option<Job> {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let job = self.receives.lock().pop_front().or_else(|| self.jobs.lock().pop_front());
        self.waiting.fetch_sub(usize::from(job.is_some()), Ordering::Relaxed);
        job
    }

    fn sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let quiet = self.waiting.load(Ordering::Relaxed) == 0
            && !self.stop.load(Ordering::Acquire)
            && (!self.has_thread || self.lines[0].arm());
        if quiet && self.asleep.load(Ordering::Relaxed) {
            std::thread::park_timeout(LONGEST);
        }
        self.asleep.store(false, Ordering::Relaxed);
    }

    fn run(&self, cx: &MaySleep) {
        let mut since: Option<Instant> = None;
        while !self.stop.load(Ordering::Acquire) {
            let mut worked = false;
            for _ in 0..JOBS_A_TURN {
                let Some(job) = self.next() else { break };
                worked = true;
                match job {
                    Job::MakeAh(path) => path.make(cx),
                    Job::Fail(qp) => qp.fail(cx),
                    Job::Post(qp) => qp.post_staged(cx),
                    Job::PostReceives(qp) => qp.post_receives(),
                    Job::PostShared(srq) => srq.post_new(),
                    Job::Pin(mr) => mr.pin(cx),
                }
            }
            worked |= self.has_thread && self.lines[0].turn();
            if worked {
                since = None;
            } else if self.has_thread && since.get_or_insert_with(Instant::now).elapsed() < PATIENCE
            {
                std::hint::spin_loop();
            } else {
                self.sleep();
                since = None;
            }
        }
        // Objects that jobs hold on to end here, while everything they need is there.
        while self.next().is_some() {}
    }
}

/// The two threads of an HCA; they end when this is dropped.
pub(crate) struct Threads {
    hca: Arc<Hca>,
    stop: Arc<Event>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(crate) fn start(hca: &Arc<Hca>) -> std::io::Result<Self> {
        let weak = Arc::downgrade(hca);
        hca.engine.lines.iter().for_each(|line| drop(line.hca.set(weak.clone())));
        let stop = Arc::new(Event::new()?);
        let mut threads = Self { hca: hca.clone(), stop, handles: Vec::new() };
        let name = hca.host.name().chars().take(8).collect::<String>();
        let driver = {
            let hca = hca.clone();
            std::thread::Builder::new().name(format!("{name}-hca")).spawn(move || {
                let _ = hca.engine.thread.set(std::thread::current());
                if let Some(cx) = MaySleep::claim() {
                    hca.engine.run(&cx);
                }
            })?
        };
        threads.handles.push(driver);
        let stop = threads.stop.clone();
        let hca = hca.clone();
        let events = std::thread::Builder::new()
            .name(format!("{name}-ev"))
            .spawn(move || listen(&hca, &stop))?;
        threads.handles.push(events);
        Ok(threads)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.hca.engine.stop.store(true, Ordering::Release);
        // The thread may be about to sleep: its token makes that sleep short.
        if let Some(driver) = self.handles.first() {
            driver.thread().unpark();
        }
        self.stop.set();
        let me = std::thread::current().id();
        for handle in self.handles.drain(..) {
            if handle.thread().id() != me && handle.join().is_err() {
                log::error!("{}: a thread of the driver panicked", self.hca.host.name());
            }
        }
    }
}

/// Waits for events of the device and, for the driver's thread, of its completion channel.
fn listen(hca: &Arc<Hca>, stop: &Event) {
    let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let line = &hca.engine.lines[0];
    let mut fds = vec![poll(stop.fd()), poll(hca.host.async_fd())];
    if hca.engine.has_thread {
        fds.push(poll(line.channel.raw_fd()));
    }
    loop {
        if !wait(&mut fds) {
            continue;
        }
        if fds[0].revents != 0 {
            return;
        }
        if fds[1].revents & libc::POLLIN != 0 {
            if let Err(e) = hca.host.async_event(|event| hca.event(event)) {
                log::debug!("{}: asynchronous events: {e}", hca.host.name());
                hca.died();
            }
        } else if fds[1].revents != 0 {
            hca.died();
        }
        if let Some(channel) = fds.get(2).map(|fd| fd.revents)
            && channel != 0
        {
            line.hear();
            hca.engine.wake();
        }
        if hca.host.is_dead() {
            // Nothing more comes; what is left is to be told to end.
            fds.truncate(1);
        }
    }
}
