// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A port as the HCA sees it: frames in, frames out, time passed in. Finds the QP that a packet is for,
//! gives the QPs that have something to send their turns, and keeps their timers.
//!
//! Not here: who moves the frames, and what a packet does (`wire`, `qp::wire`).

mod group;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use rdma_midlayer::attr::GidEntry;
use rdma_midlayer::driver::Waker;
use rdma_midlayer::rcu::{self, Guard};
use rdma_midlayer::types::{Gid, Mtu, Qpn};

use super::context::Context;
use super::groups::Parcels;
use super::network::Network;
use super::port::{Core, Counted};
use super::qp::Qp;
use super::run_queue::RunQueue;
use super::spin::SpinLock;
use super::wire::counters::Counters;
use super::wire::frame::{Datagram, FrameBatch, NotRoce};
use super::wire::packet::{DEFAULT_PKEY, Packet};

/// Packets that a QP may send in one turn.
const PACKETS_A_TURN: usize = 64;
/// Turns of one call.
const TURNS: usize = 64;
/// Timers that expire in one call.
const TIMERS: usize = 256;
/// Ways that packets have come which are remembered.
const SEEN: usize = 64;
/// The line rate that is taken where none is known: 100 Gb/s, in bytes a second.
const DEFAULT_RATE: u64 = 12_500_000_000;

/// How to make a link.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// For the log.
    pub name: String,
    /// Largest path MTU that the port takes.
    pub mtu: Mtu,
    /// Bytes a second of the line, for congestion control; 0: not known.
    pub rate: u64,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// A RoCEv2 packet for a device behind the link: taken, or dropped and counted.
    Taken,
    /// One for a group that QPs of devices behind the link are in: they have it, as far as it was right,
    /// and others may want it too.
    Shared,
    /// Not RoCEv2, or for an address that no device here has.
    NotOurs,
}

/// What was counted of a QP's packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QpCounts {
    /// Its tenant's name.
    pub tenant: String,
    /// Its number.
    pub qpn: Qpn,
    /// Names, as rxe has them, and values.
    pub counts: Vec<(&'static str, u64)>,
}

/// A port as the HCA sees it, with the devices of one network behind it. Nothing here sleeps; any
/// thread may call anything, also at once.
pub struct Link {
    config: LinkConfig,
    /// And its epoch.
    network: OnceLock<(Weak<Network>, Arc<AtomicU64>)>,
    /// By source and destination.
    seen: [SpinLock<Option<Seen>>; SEEN],
    ready: RunQueue<Weak<Qp>>,
    timers: SpinLock<BTreeMap<TimerKey, Weak<Qp>>>,
    timer_count: AtomicUsize,
    waker: SpinLock<Option<Arc<dyn Waker>>>,
    identification: AtomicU16,
    counters: Counters,
    /// Packets to groups that have further members to reach.
    parcels: Parcels,
    spare: SpinLock<Vec<FrameBatch>>,
}

/// When, and whose.
type TimerKey = (Instant, u64);

/// Where a QP keeps which timer it has.
pub(crate) struct Armed(SpinLock<Option<Instant>>);

impl Link {
    /// A link that no network has yet (`SoftHca::set_link`).
    pub fn new(mut config: LinkConfig) -> Arc<Self> {
        if config.rate == 0 {
            config.rate = DEFAULT_RATE;
        }
        Arc::new(Self {
            config,
            network: OnceLock::new(),
            seen: std::array::from_fn(|_| SpinLock::new(None)),
            ready: RunQueue::new(),
            timers: SpinLock::new(BTreeMap::new()),
            timer_count: AtomicUsize::new(0),
            waker: SpinLock::new(None),
            identification: AtomicU16::new(0),
            counters: Counters::default(),
            parcels: Parcels::default(),
            spare: SpinLock::new(Vec::new()),
        })
    }

    /// The largest path MTU whose packets fit into IP packets of so many bytes.
    pub fn path_mtu(ip: usize) -> Mtu {
        // IPv6, UDP, the longest headers, ICRC.
        const HEADERS: usize = 40 + 8 + 12 + 32 + 4;
        let fits = |mtu: &Mtu| mtu.bytes() + HEADERS <= ip;
        let all = [Mtu::Mtu4096, Mtu::Mtu2048, Mtu::Mtu1024, Mtu::Mtu512];
        all.into_iter().find(fits).unwrap_or(Mtu::Mtu256)
    }

    /// Takes an Ethernet frame (without FCS), which may have a VLAN tag.
    pub fn handle_frame(&self, now: Instant, frame: &[u8]) -> Handled {
        self.take_in(now, frame, true, &rcu::enter())
    }

    /// Appends frames until the batch is full, or nothing is to be sent now. Returns how many. Whoever
    /// drives the link calls it again while the batch comes back full: otherwise the next frame wakes.
    pub fn transmit(&self, now: Instant, batch: &mut FrameBatch) -> usize {
        // As it was left by the last call, mostly.
        let nothing = !self.ready.has_tasks();
        if nothing && (self.ready.is_idle() || self.ready.fall_idle()) {
            return 0;
        }
        let before = batch.len();
        let guard = rcu::enter();
        self.ready.awake();
        let mut local = self.spare.lock().pop().unwrap_or_else(|| FrameBatch::new(PACKETS_A_TURN));
        for _ in 0..TURNS {
            if batch.is_full() {
                break;
            }
            let Some(qp) = self.ready.next() else {
                if self.ready.fall_idle() {
                    break;
                }
                continue;
            };
            let Some(qp) = qp.upgrade() else { continue };
            let mut identification = || self.identification.fetch_add(1, Ordering::Relaxed);
            let out = (&mut *batch, &mut local, &mut identification as &mut dyn FnMut() -> u16);
            qp.wire_transmit(now, self, out, PACKETS_A_TURN, &guard);
            for frame in local.iter() {
                self.take_in(now, frame, false, &guard);
            }
            local.clear();
        }
        self.spare.lock().push(local);
        batch.len() - before
    }

    /// Does what is due.
    pub fn handle_timer(&self, now: Instant) {
        self.forward_parcels(now);
        for _ in 0..TIMERS {
            if self.timer_count.load(Ordering::Relaxed) == 0 {
                return;
            }
            let mut timers = self.timers.lock();
            let Some(first) = timers.first_entry().filter(|t| t.key().0 <= now) else { return };
            let qp = first.remove();
            self.timer_count.store(timers.len(), Ordering::Relaxed);
            drop(timers);
            if let Some(qp) = qp.upgrade() {
                qp.wire_expire(now, self, &rcu::enter());
            }
        }
    }

    /// When `handle_timer`, and then `transmit`, is to be called at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.timer_count.load(Ordering::Relaxed) == 0 {
            return self.parcels.since();
        }
        let first = self.timers.lock().first_key_value().map(|(key, _)| key.0);
        first.into_iter().chain(self.parcels.since()).min()
    }

    /// Whether `transmit` or `handle_timer` may find something to do now.
    pub fn has_frames(&self) -> bool {
        self.ready.has_tasks() || !self.parcels.is_empty()
    }

    /// Where to say that there is something to send, or a nearer deadline, when `transmit` last found
    /// nothing.
    pub fn set_waker(&self, waker: Arc<dyn Waker>) {
        let old = self.waker.lock().replace(waker);
        drop(old);
        if self.has_frames() || self.next_deadline().is_some() {
            self.wake();
        }
    }

    /// What was counted: names, as rxe has them, and values.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.list()
    }

    /// What was counted of each QP that has sent or received packets.
    pub fn qp_counters(&self) -> Vec<QpCounts> {
        let contexts = self.network().map_or(Vec::new(), |network| network.contexts());
        contexts.iter().flat_map(|context| context.wire_counters()).collect()
    }

    /// How it was made.
    pub fn config(&self) -> &LinkConfig {
        &self.config
    }

    /// The addresses of all devices behind the link.
    pub fn addresses(&self) -> Vec<GidEntry> {
        self.network().map_or(Vec::new(), |network| network.addresses())
    }

    /// The network whose devices are behind the link. The first one stays.
    pub(crate) fn attach(&self, network: &Arc<Network>) {
        if self.network.set((Arc::downgrade(network), network.shared_epoch())).is_err() {
            log::error!("{}: a link has one network", self.config.name);
        }
    }

    pub(crate) fn port_counters(&self) -> &Counters {
        &self.counters
    }

    /// Gives a QP a turn.
    pub(crate) fn schedule(&self, qp: Weak<Qp>) {
        if self.ready.enter(qp) {
            self.wake();
        }
    }

    /// Has a QP looked after at a time, at the latest.
    pub(crate) fn arm(&self, at: Instant, uid: u64, armed: &Armed, qp: &Weak<Qp>) {
        let mut armed = armed.0.lock();
        if armed.is_some_and(|before| before <= at) {
            return;
        }
        let mut timers = self.timers.lock();
        if let Some(before) = armed.replace(at) {
            timers.remove(&(before, uid));
        }
        timers.insert((at, uid), qp.clone());
        self.timer_count.store(timers.len(), Ordering::Relaxed);
        drop(timers);
        drop(armed);
        if self.ready.must_wake() {
            self.wake();
        }
    }

    /// No longer.
    pub(crate) fn disarm(&self, uid: u64, armed: &Armed) {
        if let Some(at) = armed.0.lock().take() {
            let mut timers = self.timers.lock();
            timers.remove(&(at, uid));
            self.timer_count.store(timers.len(), Ordering::Relaxed);
        }
    }

    fn network(&self) -> Option<Arc<Network>> {
        self.network.get()?.0.upgrade()
    }

    fn wake(&self) {
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The device that a datagram is for, or what becomes of the datagram.
    fn context_of(
        &self,
        datagram: &Datagram<'_>,
        from_outside: bool,
    ) -> Result<Arc<Context>, Handled> {
        let Datagram { source, dest, vlan, .. } = *datagram;
        let seen = &self.seen[usize::from(source.0[15] ^ dest.0[15]) % SEEN];
        let epoch = self.network.get().map(|(_, epoch)| epoch.load(Ordering::Acquire));
        if from_outside
            && let Some(seen) = &*seen.lock()
            && (Some(seen.epoch), seen.source, seen.dest, seen.vlan) == (epoch, source, dest, vlan)
            && let Some(context) = seen.context.upgrade()
        {
            return Ok(context);
        }
        let (Some(network), Some(epoch)) = (self.network(), epoch) else {
            return Err(Handled::NotOurs);
        };
        let context = network.find(dest).filter(|c| c.answers_to(dest, vlan));
        let context = context.ok_or(Handled::NotOurs)?;
        if from_outside {
            // The devices behind the link send no packets by way of the port.
            if network.find(source).is_some() {
                self.counters.spoofed.inc();
                return Err(Handled::Taken);
            }
            let now = Seen { epoch, source, dest, vlan, context: Arc::downgrade(&context) };
            let old = seen.lock().replace(now);
            drop(old);
        }
        Ok(context)
    }

    fn take_in(&self, now: Instant, frame: &[u8], from_outside: bool, guard: &Guard) -> Handled {
        let datagram = match Datagram::parse(frame) {
            Ok(datagram) => datagram,
            Err(NotRoce::Other) => return Handled::NotOurs,
            Err(NotRoce::Malformed) => {
                self.counters.malformed.inc();
                return Handled::Taken;
            }
        };
        if datagram.dest.is_multicast() {
            return self.take_for_group(now, frame, &datagram, from_outside, guard);
        }
        let context = match self.context_of(&datagram, from_outside) {
            Ok(context) => context,
            Err(handled) => return handled,
        };
        let Some(packet) = self.open(&datagram, Some(&context)) else { return Handled::Taken };
        let known = context
            .qp(packet.bth.dest)
            .is_some_and(|qp| qp.wire_receive(now, self, &datagram, &packet, guard));
        if !known {
            self.counters.unknown_qp.inc();
        }
        Handled::Taken
    }

    /// The packet in a datagram that is for a device here, if it is right; else it is counted.
    fn open<'d>(&self, datagram: &Datagram<'d>, context: Option<&Context>) -> Option<Packet<'d>> {
        if !datagram.icrc_is_right() {
            self.counters.icrc_err.inc();
            return None;
        }
        let Ok(packet) = Packet::parse(datagram.transport) else {
            self.counters.malformed.inc();
            return None;
        };
        // The top bit is the membership; one of two limited members would not be heard.
        if (packet.bth.pkey ^ DEFAULT_PKEY) & 0x7fff != 0 {
            self.counters.pkey_err.inc();
            context.iter().for_each(|context| context.count_pkey_violation());
            return None;
        }
        self.counters.rcvd_pkts.inc();
        self.counters.rcvd_bytes.add(packet.payload.len() as u64);
        if datagram.congested {
            self.counters.ecn_marked.inc();
        }
        Some(packet)
    }
}

/// A way that packets have come before, and to whom it leads while the network's epoch is the same.
struct Seen {
    epoch: u64,
    source: Gid,
    dest: Gid,
    vlan: Option<u16>,
    context: Weak<Context>,
}

impl Core for Link {
    fn take(&self, now: Instant, frame: &[u8]) -> Handled {
        self.handle_frame(now, frame)
    }

    fn addresses(&self) -> Vec<GidEntry> {
        self.addresses()
    }

    fn handle_timer(&self, now: Instant) {
        self.handle_timer(now);
    }

    fn has_frames(&self) -> bool {
        self.has_frames()
    }

    fn transmit(&self, now: Instant, batch: &mut FrameBatch) {
        self.transmit(now, batch);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline()
    }

    fn counts(&self) -> Vec<Counted> {
        let name = &self.config.name;
        let port = Counted { who: format!("{name}, RoCE"), counts: self.counters() };
        let of_qp = |qp: QpCounts| Counted {
            who: format!("{name}, {}, QP {}", qp.tenant, qp.qpn),
            counts: qp.counts,
        };
        std::iter::once(port).chain(self.qp_counters().into_iter().map(of_qp)).collect()
    }

    fn set_waker(&self, waker: Arc<dyn Waker>) {
        self.set_waker(waker);
    }
}

impl Armed {
    /// No timer.
    pub(crate) fn new() -> Self {
        Self(SpinLock::new(None))
    }

    /// The timer has run out.
    pub(crate) fn expired(&self) {
        self.0.lock().take();
    }
}
