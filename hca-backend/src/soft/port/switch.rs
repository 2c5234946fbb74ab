// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A switch inside the process: ports that know each other's addresses by what they send.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::FrameBatch;
use super::counts::Counts;
use super::headers::{Mac, destination, is_group, source};
use super::rx_buffer::RxBuffer;
use super::sys::Bell;
use super::{MAX_MTU, Port, PortCounters};

/// Frames that wait at one port; more are lost.
const QUEUE: usize = 4096;
/// Addresses that the switch knows; when there are more it learns anew.
pub(super) const MAX_ADDRESSES: usize = 4096;

/// A switch; its ports keep it.
#[derive(Default)]
pub struct Switch {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ports: Vec<Weak<Inlet>>,
    places: HashMap<Mac, usize>,
}

/// What waits at a port.
struct Inlet {
    queue: Mutex<VecDeque<Vec<u8>>>,
    bell: Bell,
    counts: Counts,
}

/// One port of a switch.
pub struct SwitchPort {
    switch: Arc<Switch>,
    index: usize,
    inlet: Arc<Inlet>,
    mtu: usize,
}

impl Switch {
    /// A switch without ports.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A new port.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn port(self: &Arc<Self>, mtu: usize) -> io::Result<SwitchPort> {
        let inlet = Arc::new(Inlet {
            queue: Mutex::default(),
            bell: Bell::new()?,
            counts: Counts::default(),
        });
        let mut state = self.state();
        state.ports.push(Arc::downgrade(&inlet));
        let index = state.ports.len() - 1;
        let mtu = mtu.min(MAX_MTU);
        Ok(SwitchPort { switch: self.clone(), index, inlet, mtu })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inlet {
    fn put(&self, frame: &[u8]) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= QUEUE {
            return self.counts.receive_dropped(1);
        }
        queue.push_back(frame.to_vec());
        if queue.len() == 1 {
            self.bell.ring();
        }
    }

    fn take(&self, max: usize) -> VecDeque<Vec<u8>> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let count = max.min(queue.len());
        let rest = queue.split_off(count);
        let taken = std::mem::replace(&mut *queue, rest);
        if queue.is_empty() && !taken.is_empty() {
            self.bell.quiet();
        }
        taken
    }
}

impl Port for SwitchPort {
    fn send(&self, frames: &FrameBatch, range: Range<usize>) -> io::Result<usize> {
        let mut state = self.switch.state();
        for frame in range.clone().map(|i| frames.frame(i)) {
            let (Some(to), Some(from)) = (destination(frame), source(frame)) else {
                self.inlet.counts.send_dropped(1);
                continue;
            };
            if !is_group(from) {
                if state.places.len() >= MAX_ADDRESSES {
                    state.places.clear();
                }
                state.places.insert(from, self.index);
            }
            let place = if is_group(to) { None } else { state.places.get(&to).copied() };
            let others = state.ports.iter().enumerate().filter(|(i, _)| *i != self.index);
            others
                .filter(|(i, _)| place.is_none_or(|place| place == *i))
                .filter_map(|(_, port)| port.upgrade())
                .for_each(|port| port.put(frame));
            self.inlet.counts.sent(1, frame.len());
        }
        Ok(range.len())
    }

    fn receive(
        &self,
        _buffer: &mut RxBuffer,
        max: usize,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<usize> {
        let frames = self.inlet.take(max);
        self.inlet.counts.received(frames.len(), frames.iter().map(Vec::len).sum());
        frames.iter().for_each(|frame| sink(frame));
        Ok(frames.len())
    }

    fn buffer(&self) -> RxBuffer {
        RxBuffer::default()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.inlet.bell.fd()
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn counters(&self) -> PortCounters {
        self.inlet.counts.get()
    }
}
