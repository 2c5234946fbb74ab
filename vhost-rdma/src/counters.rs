// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device counts about itself. Counts of the data path are kept by the rings, where they cost
//! nothing, and summed up when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};

use rdma_midlayer::driver::Violations;
use virtio_rdma_abi::control::{self, Counters as Answer};
use zerocopy::IntoBytes;

use crate::cq::CqPath;
use crate::qp::QpPath;
use crate::ring::cq::CqRing;
use crate::srq::SrqPath;

/// An answer's counts with their names.
pub fn named(answer: &Answer) -> impl Iterator<Item = (&'static str, u64)> {
    let description = control::STRUCTS.iter().find(|s| s.name == "Counters");
    let fields = description.map_or(&[][..], |description| description.fields);
    fields.iter().filter_map(|field| {
        let bytes = answer.as_bytes().get(field.offset..field.offset + 8)?;
        Some((field.name, u64::from_le_bytes(bytes.try_into().ok()?)))
    })
}

/// Counts of rare things, and of objects that are gone.
#[derive(Default)]
#[allow(missing_docs, reason = "named and described in virtio_rdma_abi::control::Counters")]
pub struct Counters {
    pub doorbell_kicks: AtomicU64,
    pub cq_events: AtomicU64,
    pub cq_interrupts: AtomicU64,
    pub worker_sleeps: AtomicU64,
    pub guest_errors: AtomicU64,
    pub qp_moves: AtomicU64,
    send_wqes: AtomicU64,
    recv_wqes: AtomicU64,
    completions: AtomicU64,
    tx_bytes: AtomicU64,
    rx_bytes: AtomicU64,
    rnr_naks: AtomicU64,
    duplicate_request: AtomicU64,
    out_of_seq_request: AtomicU64,
    rcvd_seq_err: AtomicU64,
    rcvd_rnr_err: AtomicU64,
    retry_exceeded_err: AtomicU64,
    retry_rnr_exceeded_err: AtomicU64,
    rdma_sends: AtomicU64,
    rdma_recvs: AtomicU64,
    error_completions: AtomicU64,
    bad_pkey: AtomicU64,
    qkey_viol: AtomicU64,
}

impl Counters {
    /// Keeps the counts of a QP that goes.
    pub fn retire_qp(&self, qp: &QpPath) {
        let [send, bytes, recv, empty] = qp.counts();
        let transport = qp.qp().counts();
        for (to, n) in [
            (&self.send_wqes, send),
            (&self.tx_bytes, bytes),
            (&self.recv_wqes, recv),
            (&self.rnr_naks, empty),
            (&self.duplicate_request, transport.duplicate_request),
            (&self.out_of_seq_request, transport.out_of_seq_request),
            (&self.rcvd_seq_err, transport.rcvd_seq_err),
            (&self.rcvd_rnr_err, transport.rcvd_rnr_err),
            (&self.retry_exceeded_err, transport.retry_exceeded_err),
            (&self.retry_rnr_exceeded_err, transport.retry_rnr_exceeded_err),
            (&self.rdma_sends, transport.rdma_sends),
            (&self.rdma_recvs, transport.rdma_recvs),
        ] {
            to.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Keeps the counts of a tenant of the HCA that goes.
    pub fn retire_violations(&self, violations: Violations) {
        self.bad_pkey.fetch_add(violations.pkey, Ordering::Relaxed);
        self.qkey_viol.fetch_add(violations.qkey, Ordering::Relaxed);
    }

    /// What was not let in, with what a living tenant of the HCA has counted.
    pub fn violations(&self, living: Violations) -> Violations {
        Violations {
            pkey: self.bad_pkey.load(Ordering::Relaxed) + living.pkey,
            qkey: self.qkey_viol.load(Ordering::Relaxed) + living.qkey,
        }
    }

    /// Keeps the counts of an SRQ that goes.
    pub fn retire_srq(&self, srq: &SrqPath) {
        self.recv_wqes.fetch_add(srq.taken(), Ordering::Relaxed);
    }

    /// Keeps the counts of a CQ that goes.
    pub fn retire_cq(&self, cq: &CqPath) {
        cq.with_ring(|ring| self.retire_ring(ring));
    }

    /// Keeps the counts of a CQ's ring that goes.
    pub fn retire_ring(&self, ring: &CqRing) {
        let counts = ring.counts();
        self.completions.fetch_add(counts.completions.get(), Ordering::Relaxed);
        self.error_completions.fetch_add(counts.errors.get(), Ordering::Relaxed);
        self.rx_bytes.fetch_add(counts.rx_bytes.get(), Ordering::Relaxed);
    }

    /// All counts, when there are no living objects.
    pub fn of_the_past(&self) -> Answer {
        self.answer(Violations::default(), [].into_iter(), [].into_iter(), [].into_iter())
    }

    /// All counts, with those of the living objects.
    pub fn answer<'a>(
        &self,
        violations: Violations,
        qps: impl Iterator<Item = &'a QpPath>,
        cqs: impl Iterator<Item = &'a CqPath>,
        srqs: impl Iterator<Item = &'a SrqPath>,
    ) -> Answer {
        let violations = self.violations(violations);
        let living = Counters::default();
        qps.for_each(|qp| living.retire_qp(qp));
        cqs.for_each(|cq| living.retire_cq(cq));
        srqs.for_each(|srq| living.retire_srq(srq));
        let sum = |of: fn(&Counters) -> &AtomicU64| {
            let n = of(self).load(Ordering::Relaxed) + of(&living).load(Ordering::Relaxed);
            n.into()
        };
        Answer {
            doorbell_kicks: sum(|c| &c.doorbell_kicks),
            send_wqes: sum(|c| &c.send_wqes),
            recv_wqes: sum(|c| &c.recv_wqes),
            completions: sum(|c| &c.completions),
            cq_events: sum(|c| &c.cq_events),
            cq_interrupts: sum(|c| &c.cq_interrupts),
            worker_sleeps: sum(|c| &c.worker_sleeps),
            tx_bytes: sum(|c| &c.tx_bytes),
            rx_bytes: sum(|c| &c.rx_bytes),
            rnr_naks: sum(|c| &c.rnr_naks),
            error_completions: sum(|c| &c.error_completions),
            guest_errors: sum(|c| &c.guest_errors),
            duplicate_request: sum(|c| &c.duplicate_request),
            out_of_seq_request: sum(|c| &c.out_of_seq_request),
            rcvd_seq_err: sum(|c| &c.rcvd_seq_err),
            rcvd_rnr_err: sum(|c| &c.rcvd_rnr_err),
            retry_exceeded_err: sum(|c| &c.retry_exceeded_err),
            retry_rnr_exceeded_err: sum(|c| &c.retry_rnr_exceeded_err),
            rdma_sends: sum(|c| &c.rdma_sends),
            rdma_recvs: sum(|c| &c.rdma_recvs),
            bad_pkey: violations.pkey.into(),
            qkey_viol: violations.qkey.into(),
            qp_moves: sum(|c| &c.qp_moves),
        }
    }
}
