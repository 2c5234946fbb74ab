// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a QP counts of what its transport meets with. That of packets is counted in `wire::counters`.

use std::sync::atomic::{AtomicU64, Ordering};

use rdma_midlayer::driver::TransportCounts;
use rdma_midlayer::types::WrOpcode;

use super::Qp;

/// Counts of one QP. Each is of one of its sides, and written with that side locked.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) sends: Count,
    pub(super) recvs: Count,
    pub(super) rnr: Count,
    pub(super) retries_exceeded: Count,
    pub(super) rnr_retries_exceeded: Count,
}

/// A count that has one writer at a time.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    /// So many more.
    #[inline]
    pub(super) fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    #[inline]
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether a work request is a SEND of any kind.
#[inline]
pub(super) fn is_send(opcode: WrOpcode) -> bool {
    matches!(opcode, WrOpcode::Send | WrOpcode::SendWithImm | WrOpcode::SendWithInv)
}

impl Qp {
    /// What was counted, whichever way messages took.
    pub(super) fn transport_counts(&self) -> TransportCounts {
        let counts = &self.counts;
        let mut all = TransportCounts {
            rcvd_rnr_err: counts.rnr.get(),
            retry_exceeded_err: counts.retries_exceeded.get(),
            retry_rnr_exceeded_err: counts.rnr_retries_exceeded.get(),
            rdma_sends: counts.sends.get(),
            rdma_recvs: counts.recvs.get(),
            ..TransportCounts::default()
        };
        if let Some(packets) = self.wire_counters() {
            all.duplicate_request += packets.duplicate_request.get();
            all.out_of_seq_request += packets.out_of_seq_request.get();
            all.rcvd_seq_err += packets.rcvd_seq_err.get();
            all.rcvd_rnr_err += packets.rcvd_rnr_err.get();
            all.retry_exceeded_err += packets.retry_exceeded_err.get();
            all.retry_rnr_exceeded_err += packets.retry_rnr_exceeded_err.get();
        }
        all
    }
}
