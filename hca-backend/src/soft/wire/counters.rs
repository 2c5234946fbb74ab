// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is counted of packets, for a port and for each QP, under the names that rxe gives them where
//! it has them.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts; they only grow.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: Counter,)* }

        impl Counters {
            /// Names and values.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    /// Packets sent.
    sent_pkts,
    /// Packets received that were for a QP.
    rcvd_pkts,
    /// Bytes of payload sent.
    sent_bytes,
    /// Bytes of payload received.
    rcvd_bytes,
    /// Requests received again.
    duplicate_request,
    /// Requests ahead of what was expected.
    out_of_seq_request,
    /// RNR NAKs received.
    rcvd_rnr_err,
    /// RNR NAKs sent.
    send_rnr_err,
    /// NAKs for the sequence received.
    rcvd_seq_err,
    /// NAKs for the sequence sent.
    send_seq_err,
    /// Other NAKs received.
    rcvd_nak,
    /// Other NAKs sent.
    send_nak,
    /// Acknowledgements that went with a later one.
    ack_deferred,
    /// WRs that ended because nobody answered.
    retry_exceeded_err,
    /// WRs that ended because the peer was never ready.
    retry_rnr_exceeded_err,
    /// Times that something was sent again.
    completer_retry_err,
    /// Packets that could not be made: no such source address, or local memory was gone.
    send_err,
    /// Wrong ICRC.
    icrc_err,
    /// Wrong P_Key.
    pkey_err,
    /// Wrong Q_Key.
    qkey_err,
    /// No such QP, or not in a state to receive, or not from its peer.
    unknown_qp,
    /// To a group, and lost to some of its members: too many waited for theirs.
    group_dropped,
    /// From outside, with the address of a device that is not outside.
    spoofed,
    /// Lengths, opcodes and headers that make no sense.
    malformed,
    /// Congestion notifications received.
    rcvd_cnp,
    /// Congestion notifications sent.
    send_cnp,
    /// Packets received that had met congestion.
    ecn_marked,
}

/// One count.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// So many more.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The two places where something is counted: at the port and at the QP.
#[derive(Clone, Copy)]
pub struct Both<'a> {
    /// Of the port.
    pub port: &'a Counters,
    /// Of the QP.
    pub qp: &'a Counters,
}

impl Both<'_> {
    /// Counts one in both.
    #[inline]
    pub fn inc(&self, which: impl Fn(&Counters) -> &Counter) {
        self.add(1, which);
    }

    /// Counts `n` in both.
    #[inline]
    pub fn add(&self, n: u64, which: impl Fn(&Counters) -> &Counter) {
        if n > 0 {
            which(self.port).add(n);
            which(self.qp).add(n);
        }
    }
}
