// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One network of the daemon: ports to the outside, the guests' own virtio-net, and the HCA, which shares
//! MAC and IP addresses with them. RoCE goes to the HCA, everything else where its address says.
//!
//! Driven by one thread at a time; nothing here sleeps.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdma_midlayer::attr::GidEntry;

use super::FrameBatch;
use super::headers::{Mac, destination, is_group, source};
use super::rx_buffer::RxBuffer;
use super::switch::MAX_ADDRESSES;
use super::sys::{Alarm, Ready};
use super::{MAX_MTU, Port, PortCounters, arp};
use crate::soft::link::Handled;

/// Frames that wait because a port is full; more are lost. The HCA is told to wait at half of it.
const QUEUE: usize = 512;
/// When a port that was full is tried again.
const AGAIN: Duration = Duration::from_micros(200);

/// The HCA as an exchange sees it.
pub trait Station: Send + Sync {
    /// A frame came from outside.
    fn take(&self, now: Instant, frame: &[u8]) -> Handled;

    /// The addresses of all devices of the network.
    fn addresses(&self) -> Vec<GidEntry>;
}

/// What is connected to an exchange.
pub enum Member {
    /// A way out.
    Outside(Box<dyn Port>),
    /// The virtio-net of the guest whose device has this MAC address. It answers ARP itself.
    Guest(Box<dyn Port>, Mac),
}

/// Names a member for as long as it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemberId(u64);

/// Whom a frame to a group of stations may be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Towards {
    /// All.
    All,
    /// Those beyond the ways out: it is RoCE, which goes to the guests' devices and not to their virtio-net.
    Outside,
}

struct Connected {
    id: MemberId,
    port: Box<dyn Port>,
    guest: Option<Mac>,
    buffer: RxBuffer,
    /// What the port did not take, but for the first `gone`, which it has taken since.
    waiting: FrameBatch,
    gone: usize,
    lost: u64,
}

/// A network's exchange.
pub struct Exchange {
    ready: Ready,
    alarm: Alarm,
    /// The alarm is set, or rings.
    rings: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    members: Vec<Connected>,
    next_id: u64,
    /// Where addresses are that frames came from.
    learned: HashMap<Mac, MemberId>,
    /// Devices whose guest answers ARP on another way.
    silent: HashSet<Mac>,
    /// Frames that came and are not the HCA's; empty between two calls, and kept for its memory.
    foreign: FrameBatch,
    /// Likewise those that are the HCA's and others'.
    shared: FrameBatch,
}

impl Exchange {
    /// An exchange without members.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let (ready, alarm) = (Ready::new()?, Alarm::new()?);
        ready.add(alarm.fd())?;
        let (foreign, shared) = (FrameBatch::new(64), FrameBatch::new(64));
        let state = State { foreign, shared, ..State::default() };
        Ok(Self { ready, alarm, rings: AtomicBool::new(false), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects a port.
    ///
    /// # Errors
    /// What the system answers.
    pub fn connect(&self, member: Member) -> io::Result<MemberId> {
        let (port, guest) = match member {
            Member::Outside(port) => (port, None),
            Member::Guest(port, mac) => (port, Some(mac)),
        };
        self.ready.add(port.fd())?;
        let mut state = self.state();
        state.next_id += 1;
        let id = MemberId(state.next_id);
        let (buffer, waiting) = (port.buffer(), FrameBatch::new(QUEUE));
        state.members.push(Connected { id, port, guest, buffer, waiting, gone: 0, lost: 0 });
        Ok(id)
    }

    /// Disconnects a port, which is closed. A no-op if it is not there.
    pub fn disconnect(&self, id: MemberId) {
        let mut state = self.state();
        state.members.retain(|member| member.id != id);
        state.learned.retain(|_, place| *place != id);
    }

    /// Whether ARP and ND are answered for a device that has no virtio-net here. They are, to begin with.
    pub fn answer_for(&self, mac: Mac, yes: bool) {
        let mut state = self.state();
        if yes {
            state.silent.remove(&mac);
        } else {
            state.silent.insert(mac);
        }
    }

    /// Readable while there is something to receive, or to send that had to wait.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ready.fd()
    }

    /// Bytes of the largest IP packet that every way out takes.
    pub fn mtu(&self) -> usize {
        let state = self.state();
        let outside = state.members.iter().filter(|member| member.guest.is_none());
        outside.map(|member| member.port.mtu()).min().unwrap_or(MAX_MTU)
    }

    /// The counters of every way out, and of every guest's virtio-net, by its MAC address.
    pub fn counters(&self) -> Vec<(Option<[u8; 6]>, PortCounters)> {
        let state = self.state();
        let of = |member: &Connected| {
            let mut counters = member.port.counters();
            counters.send_dropped += member.lost;
            (member.guest, counters)
        };
        state.members.iter().map(of).collect()
    }

    /// Sends frames of the HCA, as `Port::send` does.
    pub fn send(&self, frames: &FrameBatch, range: Range<usize>) -> usize {
        let mut state = self.state();
        let mut next = range.start;
        while next < range.end {
            let Some(to) = destination(frames.frame(next)) else {
                next += 1;
                continue;
            };
            // Neighbours in a batch mostly go the same way: together, so that the port can join them.
            let same = |i: &usize| destination(frames.frame(*i)) == Some(to);
            let end = (next..range.end).find(|i| !same(i)).unwrap_or(range.end);
            if let Some(place) = state.place(to)
                && state.members[place].waiting.is_empty()
            {
                // An error shows again when the member is next received from.
                let port = &state.members[place].port;
                let sent = port.send(frames, next..end).unwrap_or(end - next);
                next += sent;
                if next < end {
                    self.again();
                    break;
                }
                continue;
            }
            let places = state.places(to, None, Towards::Outside);
            if places.iter().any(|i| state.members[*i].waiting.len() >= QUEUE / 2) {
                self.again();
                break;
            }
            for place in places {
                self.pass(&mut state.members[place], frames, next..end);
            }
            next = end;
        }
        next - range.start
    }

    /// Receives from every member, about `max` frames from each, hands the HCA its own, and passes the
    /// others on. Returns how many came. A member that has failed is disconnected.
    pub fn receive(&self, now: Instant, max: usize, station: &dyn Station) -> usize {
        let mut state = self.state();
        if self.rings.load(Ordering::Relaxed) && self.rings.swap(false, Ordering::Relaxed) {
            self.alarm.quiet();
        }
        for member in &mut state.members {
            if !member.waiting.is_empty() {
                self.flush(member);
            }
        }
        let mut total = 0;
        let mut foreign = std::mem::take(&mut state.foreign);
        let mut shared = std::mem::take(&mut state.shared);
        let mut failed = Vec::new();
        for place in 0..state.members.len() {
            let member = &mut state.members[place];
            let (id, silent) = (member.id, member.guest);
            let sink = &mut |frame: &[u8]| match station.take(now, frame) {
                Handled::Taken => {}
                Handled::Shared => shared.push(frame),
                Handled::NotOurs => foreign.push(frame),
            };
            match member.port.receive(&mut member.buffer, max, sink) {
                Ok(got) => total += got,
                Err(e) => {
                    log::error!("a port failed: {e}; it is no longer used");
                    failed.push(id);
                }
            }
            for frame in foreign.iter().chain(shared.iter()) {
                state.learn(frame, id, silent);
            }
            for (frames, towards) in [(&mut foreign, Towards::All), (&mut shared, Towards::Outside)]
            {
                if !frames.is_empty() {
                    self.forward(&mut state, place, (frames, towards), station);
                    frames.clear();
                }
            }
        }
        (state.foreign, state.shared) = (foreign, shared);
        if !failed.is_empty() {
            state.members.retain(|member| !failed.contains(&member.id));
        }
        total
    }

    /// Makes the descriptor readable after a while.
    fn again(&self) {
        if !self.rings.swap(true, Ordering::Relaxed) {
            self.alarm.set(AGAIN);
        }
    }

    fn forward(
        &self,
        state: &mut State,
        from: usize,
        (frames, towards): (&FrameBatch, Towards),
        station: &dyn Station,
    ) {
        for (i, frame) in frames.iter().enumerate() {
            let Some(to) = destination(frame) else { continue };
            if let Some(reply) = state.answer(frame, station) {
                let mut one = FrameBatch::new(1);
                one.push(&reply);
                self.pass(&mut state.members[from], &one, 0..1);
                continue;
            }
            for place in state.places(to, Some(from), towards) {
                self.pass(&mut state.members[place], frames, i..i + 1);
            }
        }
    }

    /// Sends to one member, or lets wait, or loses.
    fn pass(&self, member: &mut Connected, frames: &FrameBatch, range: Range<usize>) {
        let mut next = range.start;
        if member.waiting.is_empty() {
            // An error shows again when the member is next received from.
            next += member.port.send(frames, range.clone()).unwrap_or(range.len());
        }
        for i in next..range.end {
            if member.waiting.is_full() {
                member.lost += 1;
            } else {
                member.waiting.push(frames.frame(i));
            }
        }
        if !member.waiting.is_empty() {
            self.again();
        }
    }

    fn flush(&self, member: &mut Connected) {
        let rest = member.gone..member.waiting.len();
        member.gone += member.port.send(&member.waiting, rest.clone()).unwrap_or(rest.len());
        if member.gone == member.waiting.len() {
            member.waiting.clear();
            member.gone = 0;
            return;
        }
        if member.gone >= QUEUE / 2 {
            let mut rest = FrameBatch::new(QUEUE);
            (member.gone..member.waiting.len()).for_each(|i| rest.push(member.waiting.frame(i)));
            member.waiting = rest;
            member.gone = 0;
        }
        self.again();
    }
}

impl State {
    /// The one member that a frame of the HCA for `to` goes to, if it is one.
    fn place(&self, to: Mac) -> Option<usize> {
        let members = || self.members.iter();
        if is_group(to) {
            return None;
        }
        if let Some(guest) = members().position(|member| member.guest == Some(to)) {
            return Some(guest);
        }
        if let Some(id) = self.learned.get(&to) {
            return members().position(|member| member.id == *id);
        }
        let first = members().position(|member| member.guest.is_none())?;
        let another = members().skip(first + 1).any(|member| member.guest.is_none());
        (!another).then_some(first)
    }

    /// Which members a frame for `to` goes to, when it comes from member `from` or from the HCA.
    fn places(&self, to: Mac, from: Option<usize>, towards: Towards) -> Vec<usize> {
        let others = || (0..self.members.len()).filter(|i| Some(*i) != from);
        if is_group(to) {
            let wants = |i: &usize| towards == Towards::All || self.members[*i].guest.is_none();
            return others().filter(wants).collect();
        }
        if let Some(guest) = others().find(|i| self.members[*i].guest == Some(to)) {
            return vec![guest];
        }
        if let Some(id) = self.learned.get(&to) {
            return others().filter(|i| self.members[*i].id == *id).collect();
        }
        // A guest says what addresses it has before anybody can want them.
        others().filter(|i| self.members[*i].guest.is_none()).collect()
    }

    /// Learns where a frame's sender is. Nobody can take a guest's address from it.
    fn learn(&mut self, frame: &[u8], id: MemberId, guest: Option<Mac>) {
        let Some(mac) = source(frame).filter(|mac| !is_group(*mac)) else { return };
        let someones = self.members.iter().any(|member| member.guest == Some(mac));
        if Some(mac) == guest || someones {
            return;
        }
        if self.learned.len() >= MAX_ADDRESSES && !self.learned.contains_key(&mac) {
            self.learned.clear();
        }
        self.learned.insert(mac, id);
    }

    /// The answer to an ARP or ND question for a device that can't answer itself.
    fn answer(&self, frame: &[u8], station: &dyn Station) -> Option<Vec<u8>> {
        let (gid, vlan) = arp::question(frame)?;
        let entries = station.addresses();
        let entry = entries.iter().find(|entry| arp::matches(entry, gid, vlan))?;
        let answers_itself = self.silent.contains(&entry.mac)
            || self.members.iter().any(|member| member.guest == Some(entry.mac));
        if answers_itself { None } else { arp::answer(frame, entry) }
    }
}
