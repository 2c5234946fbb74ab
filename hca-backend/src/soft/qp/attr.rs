// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Modify and query of a QP (IBA 10.3.1, 11.2.4.2, 11.2.4.3).

use std::sync::atomic::Ordering;

use rdma_midlayer::attr::{QpAttr, QpAttrMask};
use rdma_midlayer::driver::AsyncEvent;
use rdma_midlayer::rcu;
use rdma_midlayer::types::QpState;
use rdma_midlayer::{Error, Result};

use super::requester::Requester;
use super::responder::Responder;
use super::{FLUSH_A_TURN, Qp};

impl Qp {
    /// Changes attributes, and the state. In ERR it returns when what was outstanding is flushed.
    pub(super) fn modify_attr(&self, attr: &QpAttr, mask: QpAttrMask) -> Result<()> {
        self.check_values(attr, mask)?;
        let mut requester = self.requester.0.lock();
        let mut responder = self.responder.0.lock();
        if self.destroyed.load(Ordering::Acquire) {
            return Err(Error::Gone);
        }
        let from = self.state();
        let to = if mask.contains(QpAttrMask::STATE) { attr.state } else { from };
        // The QP may have gone to ERR since the midlayer looked.
        let as_seen = attr.cur_state == from || matches!(to, QpState::Reset | QpState::Err);
        if !as_seen || !allowed(from, to) {
            return Err(Error::BadState("the QP's state has changed"));
        }
        if to == QpState::Reset {
            self.reset(&mut requester, &mut responder);
            return Ok(());
        }
        requester.configure(attr, mask);
        responder.configure(&requester.attr, mask);
        self.configure_wire(&mut requester, &mut responder, mask);
        self.state.store(to.code(), Ordering::Release);
        if to == QpState::Err {
            responder.forget_answers();
        }
        drop(responder);
        match to {
            QpState::Rts => {
                if requester.has_work() {
                    self.schedule();
                }
                self.schedule_wire();
            }
            QpState::Sqd => {
                requester.drain_event =
                    mask.contains(QpAttrMask::EN_SQD_ASYNC_NOTIFY) && attr.sq_draining;
                self.drained(&mut requester);
            }
            _ => {}
        }
        drop(requester);
        if to == QpState::Err {
            if from != QpState::Err && self.created.srq {
                // As when it goes there by itself.
                self.context.dispatch(AsyncEvent::LastWqeReached(self.qpn));
            }
            self.flush_all();
        }
        Ok(())
    }

    /// The attributes as they are.
    pub(super) fn query_attr(&self) -> Result<QpAttr> {
        let requester = self.requester.0.lock();
        let responder = self.responder.0.lock();
        if self.destroyed.load(Ordering::Acquire) {
            return Err(Error::Gone);
        }
        let state = self.state();
        Ok(QpAttr {
            state,
            cur_state: state,
            sq_psn: requester.psn(),
            rq_psn: responder.epsn,
            sq_draining: state == QpState::Sqd && requester.is_busy(),
            ..requester.attr
        })
    }

    /// As new: work is forgotten without completions (IBA 10.3.1.1). Both sides are locked.
    pub(super) fn reset(&self, requester: &mut Requester, responder: &mut Responder) {
        self.state.store(QpState::Reset.code(), Ordering::Release);
        self.stop_waiting(requester);
        self.fault.forget();
        self.recv_fault.forget();
        requester.reset();
        responder.reset();
        self.reset_wire(requester, responder);
    }

    /// Announces that the send queue is drained, if that is asked for.
    pub(super) fn drained(&self, requester: &mut Requester) {
        if self.state() == QpState::Sqd
            && !requester.is_busy()
            && std::mem::take(&mut requester.drain_event)
        {
            self.context.dispatch(AsyncEvent::SqDrained(self.qpn));
        }
    }

    /// Flushes what is there; what a consumer keeps adding is the poller's.
    fn flush_all(&self) {
        let cap = &self.created.cap;
        let most = cap.max_send_wr.max(cap.max_recv_wr) as usize;
        for _ in 0..=most / FLUSH_A_TURN {
            if !self.flush(FLUSH_A_TURN, &rcu::enter()) {
                return;
            }
        }
        self.schedule();
    }

    fn check_values(&self, attr: &QpAttr, mask: QpAttrMask) -> Result<()> {
        let limits = self.context.limits();
        let has_gid = || self.context.gid(attr.ah.sgid_index).is_some();
        let wrong = [
            (QpAttrMask::PORT, attr.port != 1, "port"),
            (QpAttrMask::PKEY_INDEX, attr.pkey_index != 0, "P_Key index"),
            (QpAttrMask::AV, !has_gid(), "no GID at the source index"),
            (QpAttrMask::PATH_MTU, self.exceeds_port(attr), "path MTU over the port's"),
            (QpAttrMask::DEST_QPN, attr.dest_qpn.0 >= 1 << 24, "destination QPN"),
            (QpAttrMask::TIMEOUT, attr.timeout > 31, "time-out"),
            (QpAttrMask::RETRY_CNT, attr.retry_cnt > 7, "retry count"),
            (QpAttrMask::RNR_RETRY, attr.rnr_retry > 7, "RNR retry count"),
            (QpAttrMask::MIN_RNR_TIMER, attr.min_rnr_timer > 31, "RNR timer"),
            (
                QpAttrMask::MAX_QP_RD_ATOMIC,
                attr.max_rd_atomic > limits.max_rd_atomic,
                "outstanding READs and atomics",
            ),
            (
                QpAttrMask::MAX_DEST_RD_ATOMIC,
                attr.max_dest_rd_atomic > limits.max_rd_atomic,
                "READs and atomics of the peer",
            ),
        ];
        match wrong.iter().find(|(bit, wrong, _)| *wrong && mask.contains(*bit)) {
            Some((_, _, what)) => Err(Error::Invalid(what)),
            None => Ok(()),
        }
    }
}

/// The transitions of an RC QP (IBA 10.3.1).
fn allowed(from: QpState, to: QpState) -> bool {
    use QpState::{Err, Init, Reset, Rtr, Rts, Sqd};
    matches!(
        (from, to),
        (_, Reset | Err)
            | (Reset | Init, Init)
            | (Init, Rtr)
            | (Rtr | Rts | Sqd, Rts)
            | (Rts | Sqd, Sqd)
    )
}
