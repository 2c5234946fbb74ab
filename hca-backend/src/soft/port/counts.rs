// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A port's counters as its threads count.

use std::sync::atomic::{AtomicU64, Ordering};

use super::PortCounters;

#[derive(Debug, Default)]
pub(super) struct Counts {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    received: AtomicU64,
    received_bytes: AtomicU64,
    send_dropped: AtomicU64,
    receive_dropped: AtomicU64,
}

impl Counts {
    pub(super) fn sent(&self, frames: usize, bytes: usize) {
        self.sent.fetch_add(frames as u64, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn received(&self, frames: usize, bytes: usize) {
        self.received.fetch_add(frames as u64, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn send_dropped(&self, frames: usize) {
        self.send_dropped.fetch_add(frames as u64, Ordering::Relaxed);
    }

    pub(super) fn receive_dropped(&self, frames: usize) {
        self.receive_dropped.fetch_add(frames as u64, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> PortCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PortCounters {
            sent: read(&self.sent),
            sent_bytes: read(&self.sent_bytes),
            received: read(&self.received),
            received_bytes: read(&self.received_bytes),
            send_dropped: read(&self.send_dropped),
            receive_dropped: read(&self.receive_dropped),
        }
    }
}
