// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The workers: threads that carry the data path of all devices. A worker polls the QPs that were
//! active lately, the HCAs' pollers, and its completion handlers; when nothing has come for a while it
//! arms what it polled and sleeps until a doorbell, a waker or a deadline. One with too much to do gives
//! a QP to another.
//!
//! Not here: what a turn with a QP does (`qp.rs`), the protocol's words (`doorbell.rs`), and who is to
//! have a QP (`balance.rs`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_queue::SegQueue;
use rdma_midlayer::driver::{Poller, Waker};
use rdma_midlayer::{RunQueue, full_fence, rcu};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::affinity::{self, Cpus};
use crate::balance::{self, Giver, Meter};
use crate::door::Door;
use crate::qp::{QpPath, TurnRoom};
use crate::share::Shares;

/// Packets or pieces that a poller may do in one turn.
const POLLER_BUDGET: usize = 32;
/// Completion handlers that run in one turn.
const HANDLER_BUDGET: usize = 256;
/// Turns between two looks at the clock while no timer runs.
const TURNS_A_LOOK: u32 = 16;
/// The system's clock for sleep ticks in milliseconds.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);

/// How the workers behave.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Threads.
    pub count: usize,
    /// Each is kept on one of these, in turn; none: wherever the system puts it.
    pub cpus: Cpus,
    /// How long a worker without work goes on polling before it sleeps. Zero: not at all.
    pub poll: Duration,
    /// How often the workers compare what they have to do. Zero: never; QPs then stay where they are.
    pub balance: Duration,
}

impl WorkerConfig {
    /// Workers that compare their loads as often as is usual.
    pub fn new(count: usize, cpus: Cpus, poll: Duration) -> Self {
        Self { count, cpus, poll, balance: Duration::from_millis(10) }
    }
}

/// Wakes a worker that sleeps; costs one store and one load while it is awake.
pub struct WorkerWaker {
    notified: AtomicBool,
    asleep: AtomicBool,
    event: EventFd,
}

impl Waker for WorkerWaker {
    fn wake(&self) {
        self.notified.store(true, Ordering::Relaxed);
        // Pairs with the fence in `Worker::sleep`.
        full_fence();
        if self.asleep.load(Ordering::Relaxed) {
            let _ = self.event.write(1);
        }
    }
}

/// What all threads may change about a worker; the worker copies it when `generation` has changed.
#[derive(Default, Clone)]
struct Shared {
    doors: Vec<Arc<Door>>,
    pollers: Vec<Arc<dyn Poller>>,
}

/// One worker, as others see it.
pub struct Worker {
    index: usize,
    waker: Arc<WorkerWaker>,
    run_queue: Arc<RunQueue>,
    inbox: SegQueue<Arc<QpPath>>,
    /// Of its last period (`balance`).
    load: AtomicU32,
    epoll: Epoll,
    shared: Mutex<Shared>,
    generation: AtomicU64,
    stop: AtomicBool,
}

/// The running workers. They end when this is dropped.
pub struct Workers {
    list: Vec<Arc<Worker>>,
    threads: Vec<JoinHandle<()>>,
}

const WAKE: u64 = u64::MAX;
/// The descriptor of a poller: the poller itself looks what there is.
const WAKE_POLLER: u64 = u64::MAX - 1;

impl Workers {
    /// Starts the threads.
    ///
    /// # Errors
    /// What the system answers.
    pub fn start(config: &WorkerConfig) -> io::Result<Self> {
        let list: io::Result<Vec<_>> =
            (0..config.count.max(1)).map(|index| Worker::new(index).map(Arc::new)).collect();
        let mut workers = Self { list: list?, threads: Vec::new() };
        let all: Arc<[Arc<Worker>]> = workers.list.clone().into();
        for index in 0..all.len() {
            let mut work = Loop::new(all.clone(), index, config);
            let cpu = config.cpus.of_thread(index);
            let thread =
                std::thread::Builder::new().name(format!("worker{index}")).spawn(move || {
                    if let Some(Err(e)) = cpu.map(affinity::pin) {
                        log::error!("worker {index} can't be kept on one CPU: {e}");
                    }
                    work.run();
                })?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// One worker without a thread: its turns are the caller's to take. For measurements of what a
    /// turn costs, with the driver in the same thread.
    ///
    /// # Errors
    /// What the system answers.
    pub fn stepped() -> io::Result<(Self, Loop)> {
        let list = vec![Arc::new(Worker::new(0)?)];
        let config = WorkerConfig::new(1, Cpus::default(), Duration::ZERO);
        let work = Loop::new(list.clone().into(), 0, &config);
        Ok((Self { list, threads: Vec::new() }, work))
    }

    /// All of them.
    pub fn list(&self) -> &[Arc<Worker>] {
        &self.list
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &self.list {
            worker.stop.store(true, Ordering::Release);
            worker.waker.wake();
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a worker panicked");
            }
        }
    }
}

impl Worker {
    fn new(index: usize) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, event.as_raw_fd(), EpollEvent::new(EventSet::IN, WAKE))?;
        let waker = Arc::new(WorkerWaker {
            notified: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            event,
        });
        Ok(Self {
            index,
            run_queue: RunQueue::new(waker.clone()),
            waker,
            inbox: SegQueue::new(),
            load: AtomicU32::new(0),
            epoll,
            shared: Mutex::default(),
            generation: AtomicU64::new(1),
            stop: AtomicBool::new(false),
        })
    }

    /// Its number, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Where completion handlers that it should run are queued.
    pub fn run_queue(&self) -> &Arc<RunQueue> {
        &self.run_queue
    }

    /// How to wake it.
    pub fn waker(&self) -> &Arc<WorkerWaker> {
        &self.waker
    }

    /// A QP of this worker asks for attention. Never sleeps.
    pub fn take_in(&self, qp: Arc<QpPath>) {
        self.inbox.push(qp);
        self.waker.wake();
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Shared)) {
        change(&mut self.shared());
        self.generation.fetch_add(1, Ordering::Release);
        self.waker.wake();
    }

    /// Looks after a device's doorbells from now on. May sleep.
    pub fn add_door(&self, door: Arc<Door>) {
        self.change(|shared| shared.doors.push(door));
    }

    /// No longer. Turns that have begun may still use it: wait with `rcu::synchronize`. May sleep.
    pub fn remove_door(&self, door: &Arc<Door>) {
        self.change(|shared| shared.doors.retain(|d| !Arc::ptr_eq(d, door)));
    }

    /// Looks after `new` instead of `old`. May sleep.
    pub fn replace_door(&self, old: &Arc<Door>, new: Arc<Door>) {
        self.change(|shared| {
            shared.doors.retain(|d| !Arc::ptr_eq(d, old));
            shared.doors.push(new);
        });
    }

    /// Makes it look at everything soon. Never sleeps.
    pub fn rouse(&self) {
        self.waker.wake();
    }

    /// Polls this part of an HCA from now on. May sleep.
    pub fn add_poller(&self, poller: Arc<dyn Poller>) {
        poller.set_waker(self.waker.clone());
        if let Some(fd) = poller.sleep_fd() {
            let event = EpollEvent::new(EventSet::IN, WAKE_POLLER);
            if let Err(e) = self.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event) {
                log::error!("worker {} can't wait for its HCA: {e}", self.index);
            }
        }
        self.change(|shared| shared.pollers.push(poller));
    }

    /// No longer, as with doors. May sleep.
    pub fn remove_poller(&self, poller: &Arc<dyn Poller>) {
        let gone = Arc::as_ptr(poller);
        if let Some(fd) = poller.sleep_fd() {
            let event = EpollEvent::new(EventSet::IN, 0);
            let _ = self.epoll.ctl(ControlOperation::Delete, fd.as_raw_fd(), event);
        }
        self.change(|shared| shared.pollers.retain(|p| !std::ptr::addr_eq(Arc::as_ptr(p), gone)));
    }

    /// Wakes from sleep when `kick` becomes readable. May sleep.
    ///
    /// # Errors
    /// What the system answers.
    pub fn watch(&self, kick: &File) -> io::Result<()> {
        // The descriptor's number is enough: the event only wakes, and says where to read.
        let event = EpollEvent::new(EventSet::IN, kick.as_raw_fd() as u64);
        self.epoll.ctl(ControlOperation::Add, kick.as_raw_fd(), event)
    }

    /// No longer.
    pub fn unwatch(&self, kick: &File) {
        let event = EpollEvent::new(EventSet::IN, 0);
        let _ = self.epoll.ctl(ControlOperation::Delete, kick.as_raw_fd(), event);
    }
}

/// QPs that came from the inbox in a period, of which a worker remembers so many.
const CAME: usize = 64;

/// What a worker's thread does.
pub struct Loop {
    worker: Arc<Worker>,
    /// All workers.
    all: Arc<[Arc<Worker>]>,
    poll: Duration,
    generation: u64,
    shared: Shared,
    active: Shares<Arc<QpPath>>,
    room: Box<TurnRoom>,
    deadline: Option<Instant>,
    balance: Option<Balance>,
}

/// What a worker needs to compare itself with others.
struct Balance {
    period: Duration,
    meter: Meter,
    giver: Giver,
    /// Turns since the last look at the clock, and how many of them had work.
    turns: u32,
    worked: u32,
    /// Number of the period, and the last round before it.
    number: u32,
    since: u64,
    /// QPs that came from the inbox in it: those that wait for the HCA now and then are not always here.
    came: Vec<Arc<QpPath>>,
}

impl Balance {
    fn new(period: Duration) -> Self {
        Self {
            period,
            meter: Meter::new(Instant::now()),
            giver: Giver::default(),
            turns: 0,
            worked: 0,
            number: 1,
            since: 0,
            came: Vec::new(),
        }
    }
}

impl Loop {
    fn new(all: Arc<[Arc<Worker>]>, index: usize, config: &WorkerConfig) -> Self {
        let balances = all.len() > 1 && !config.balance.is_zero();
        Self {
            worker: all[index].clone(),
            all,
            poll: config.poll,
            generation: 0,
            shared: Shared::default(),
            active: Shares::default(),
            room: Box::default(),
            deadline: None,
            balance: balances.then(|| Balance::new(config.balance)),
        }
    }

    fn run(&mut self) {
        self.worker.run_queue.drain_only_here();
        let mut idle_since: Option<Instant> = None;
        let mut now = Instant::now();
        let mut turns = 0u32;
        while !self.worker.stop.load(Ordering::Acquire) {
            // The clock costs as much as a turn without work.
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(TURNS_A_LOOK) || self.deadline.is_some() {
                now = Instant::now();
                self.compare(now);
            }
            let worked = self.turn(now);
            if let Some(balance) = &mut self.balance {
                balance.turns += 1;
                balance.worked += u32::from(worked);
            }
            if worked {
                idle_since = None;
                continue;
            }
            let since = *idle_since.get_or_insert(now);
            if now.duration_since(since) < self.poll {
                continue;
            }
            // A timer that is due before the system would wake us is waited for awake.
            if self.deadline.is_some_and(|at| at < now + SHORTEST_SLEEP) {
                continue;
            }
            if let Some(balance) = &mut self.balance {
                balance.came.clear();
            }
            self.sleep();
            idle_since = None;
            now = Instant::now();
            if let Some(balance) = &mut self.balance {
                balance.meter.slept(now);
            }
        }
    }

    /// The clock was looked at. At the end of a period: says how much there was to do, and gives a QP
    /// away if others had much less. Never sleeps.
    fn compare(&mut self, now: Instant) {
        let Some(balance) = &mut self.balance else { return };
        let (turns, worked) = (balance.turns, balance.worked);
        (balance.turns, balance.worked) = (0, 0);
        balance.meter.look(now, turns, worked);
        let Some(share) = balance.meter.period(now, balance.period) else { return };
        let me = self.worker.index;
        let (mut busy, mut most) = (0, None);
        if balance::is_full(share) {
            let news = self.active.busy_since(balance.since);
            let news = news.filter(|qp| qp.first_in(balance.number));
            for qp in balance.came.iter().chain(news).filter(|qp| qp.home() == me) {
                let done = qp.progress();
                busy += usize::from(done > 0);
                if most.as_ref().is_none_or(|(least, _)| done > *least) {
                    most = Some((done, qp.clone()));
                }
            }
        }
        balance.came.clear();
        balance.number = balance.number.wrapping_add(1);
        balance.since = self.active.now();
        self.worker.load.store(balance::load(share, busy), Ordering::Relaxed);
        let loads: Vec<u32> = self.all.iter().map(|w| w.load.load(Ordering::Relaxed)).collect();
        if let Some(to) = balance.giver.period(me, &loads)
            && let Some((1.., qp)) = most
        {
            balance.giver.gave();
            self.give(&qp, to);
        }
    }

    /// Gives a QP of this worker's to another one.
    fn give(&mut self, qp: &Arc<QpPath>, to: usize) {
        let other = &self.all[to];
        // Before its next period tells: two workers should not give to the same one.
        other.load.fetch_add(balance::MOVED, Ordering::Relaxed);
        qp.move_to(to);
        // One that is not here now goes there with the next request, or out of the inbox.
        if let Some(qp) = self.active.take_out(|held| Arc::ptr_eq(held, qp)) {
            other.take_in(qp);
        }
    }

    /// Looks at everything once. Returns whether anything was done. Never sleeps.
    pub fn turn(&mut self, now: Instant) -> bool {
        let _guard = rcu::enter();
        // Inside the guard: who removed something waits for this turn if it began before.
        let generation = self.worker.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.generation = generation;
            self.shared = self.worker.shared().clone();
        }
        let mut worked = false;
        for door in &self.shared.doors {
            door.take_pending();
        }
        // To find it empty by `pop` takes a fence.
        while !self.worker.inbox.is_empty()
            && let Some(qp) = self.worker.inbox.pop()
        {
            worked = true;
            if qp.home() != self.worker.index {
                // It moved before it got here.
                self.all[qp.home()].take_in(qp);
                continue;
            }
            if let Some(balance) = &mut self.balance
                && balance.came.len() < CAME
                && qp.first_in(balance.number)
            {
                balance.came.push(qp.clone());
            }
            qp.poll_send();
            self.active.add(qp);
        }
        worked |= self.active.round(&mut self.room) || self.active.look_again(&mut self.room);
        self.deadline = None;
        for poller in &self.shared.pollers {
            let turn = poller.poll(now, POLLER_BUDGET);
            worked |= turn.worked;
            self.deadline = match (self.deadline, turn.deadline) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        let drained = self.worker.run_queue.drain(HANDLER_BUDGET);
        worked | (drained.ran > 0) | drained.more
    }

    fn sleep(&mut self) {
        {
            let _guard = rcu::enter();
            if !self.active.arm_all() {
                return;
            }
        }
        let waker = &self.worker.waker;
        waker.asleep.store(true, Ordering::Relaxed);
        full_fence();
        let may_sleep = !waker.notified.swap(false, Ordering::Relaxed)
            && self.worker.inbox.is_empty()
            && self.shared.pollers.iter().all(|poller| poller.before_sleep())
            && self.worker.run_queue.sleep()
            && self.close_doors();
        if may_sleep {
            self.worker.load.store(0, Ordering::Relaxed);
            self.wait();
            self.shared.pollers.iter().for_each(|poller| poller.after_sleep());
            let _guard = rcu::enter();
            for door in &self.shared.doors {
                door.wake_up(self.worker.index);
            }
        }
        waker.asleep.store(false, Ordering::Relaxed);
        self.worker.run_queue.awake();
    }

    /// Announces sleep at every door; false, and awake everywhere, if something is pending.
    fn close_doors(&self) -> bool {
        let _guard = rcu::enter();
        let index = self.worker.index;
        for (i, door) in self.shared.doors.iter().enumerate() {
            if !door.fall_asleep(index) {
                self.shared.doors[..i].iter().for_each(|door| door.wake_up(index));
                return false;
            }
        }
        true
    }

    fn wait(&self) {
        // Without a timer for as long as it takes: every way to leave work here wakes (`doorbell`,
        // `WorkerWaker`, `RunQueue::sleep`), and an idle worker costs nothing.
        let timeout = self.deadline.map_or(-1, |at| {
            let left = at.saturating_duration_since(Instant::now());
            i32::try_from(left.as_millis()).unwrap_or(i32::MAX)
        });
        let mut events = [EpollEvent::default(); 16];
        let found = match self.worker.epoll.wait(timeout, &mut events) {
            Ok(count) => &events[..count],
            Err(_) => &[],
        };
        for event in found {
            match event.data() {
                WAKE => {
                    let _ = self.worker.waker.event.read();
                }
                WAKE_POLLER => {}
                kick => {
                    for door in &self.shared.doors {
                        door.kicked(kick as i32);
                    }
                }
            }
        }
    }
}

/// The worker that serves a vector of a device, and looks after the QPs that ring there.
pub fn of_vector(workers: &[Arc<Worker>], first: usize, vector: u16) -> &Arc<Worker> {
    &workers[(first + usize::from(vector)) % workers.len()]
}

/// The workers of a device, and which vectors they serve.
pub struct Homes {
    /// All of them.
    pub workers: Arc<[Arc<Worker>]>,
    /// The number of that which serves vector 0.
    pub first: usize,
    /// Vectors in use.
    pub vectors: u16,
}

impl Homes {
    /// The worker that serves a vector.
    pub fn of_vector(&self, vector: u16) -> &Arc<Worker> {
        of_vector(&self.workers, self.first, vector)
    }

    /// The worker of a number.
    pub fn worker(&self, number: u32) -> &Arc<Worker> {
        &self.workers[number as usize % self.workers.len()]
    }

    /// A vector of a worker: `own` if it is one of its, or if it has none.
    pub fn vector_of(&self, worker: u32, own: u16) -> u16 {
        let (count, worker) = (self.workers.len(), worker as usize);
        if (self.first + usize::from(own)) % count == worker {
            return own;
        }
        let lowest = (worker + count - self.first % count) % count;
        u16::try_from(lowest).ok().filter(|v| *v < self.vectors).unwrap_or(own)
    }
}
