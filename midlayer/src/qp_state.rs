// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The QP's state machine (IBA 10.3.1) and which attributes each transition needs and takes
//! (IBA 11.2.4.2), as one table. What is not in the table does not exist. Two things differ from what
//! the kernel accepts: RC and XRC QPs can't be asked to leave SQE, where they never are, and RoCE has
//! no alternate paths (`Qp::modify` answers `Unsupported`).

use crate::attr::QpAttrMask;
use crate::error::{Error, Result};
use crate::types::QpState::{Err as Error_, Init, Reset, Rtr, Rts, Sqd, Sqe};
use crate::types::{QpState, QpType};

use QpType::{Gsi, Rc, Uc, Ud, XrcIni, XrcTgt};

const NONE: u32 = 0;
const CUR: u32 = QpAttrMask::CUR_STATE.0;
const SQD_EVENT: u32 = QpAttrMask::EN_SQD_ASYNC_NOTIFY.0;
const ACCESS: u32 = QpAttrMask::ACCESS_FLAGS.0;
const PKEY: u32 = QpAttrMask::PKEY_INDEX.0;
const PORT: u32 = QpAttrMask::PORT.0;
const QKEY: u32 = QpAttrMask::QKEY.0;
const AV: u32 = QpAttrMask::AV.0;
const MTU: u32 = QpAttrMask::PATH_MTU.0;
const TIMEOUT: u32 = QpAttrMask::TIMEOUT.0;
const RETRY: u32 = QpAttrMask::RETRY_CNT.0;
const RNR_RETRY: u32 = QpAttrMask::RNR_RETRY.0;
const RQ_PSN: u32 = QpAttrMask::RQ_PSN.0;
const RD_ATOMIC: u32 = QpAttrMask::MAX_QP_RD_ATOMIC.0;
const ALT: u32 = QpAttrMask::ALT_PATH.0;
const RNR_TIMER: u32 = QpAttrMask::MIN_RNR_TIMER.0;
const SQ_PSN: u32 = QpAttrMask::SQ_PSN.0;
const DEST_RD_ATOMIC: u32 = QpAttrMask::MAX_DEST_RD_ATOMIC.0;
const MIG: u32 = QpAttrMask::PATH_MIG_STATE.0;
const DEST_QPN: u32 = QpAttrMask::DEST_QPN.0;

/// A transition of the QPs of some transports: attributes that must be given, and that may be.
struct Row {
    from: &'static [QpState],
    to: QpState,
    transports: &'static [QpType],
    required: u32,
    optional: u32,
}

const ALL: &[QpType] = &[Gsi, Rc, Uc, Ud, XrcIni, XrcTgt];
const DATAGRAM: &[QpType] = &[Ud, Gsi];
const CONNECTED: &[QpType] = &[Rc, Uc, XrcIni, XrcTgt];

const fn row(
    from: &'static [QpState],
    to: QpState,
    transports: &'static [QpType],
    required: u32,
    optional: u32,
) -> Row {
    Row { from, to, transports, required, optional }
}

const AFTER_RESET: &[QpState] = &[Init, Rtr, Rts, Sqd, Sqe, Error_];
const ANY: &[QpState] = &[Reset, Init, Rtr, Rts, Sqd, Sqe, Error_];
/// What a connected QP may change while it can send; an XRC initiator receives nothing, so it has no
/// RNR timer.
const LIVE: u32 = CUR | ACCESS | ALT | MIG;
const CONNECT: u32 = AV | MTU | DEST_QPN | RQ_PSN;
const REQUESTER: u32 = TIMEOUT | RETRY | RNR_RETRY | RD_ATOMIC;
const RESPONDER: u32 = DEST_RD_ATOMIC | RNR_TIMER;
const REPATH: u32 = PORT | AV | TIMEOUT | ALT | ACCESS | PKEY | MIG;

#[rustfmt::skip]
const TABLE: &[Row] = &[
    row(ANY, Reset, ALL, NONE, NONE),
    row(AFTER_RESET, Error_, ALL, NONE, NONE),

    row(&[Reset], Init, CONNECTED, PKEY | PORT | ACCESS, NONE),
    row(&[Reset], Init, &[Ud], PKEY | PORT | QKEY, NONE),
    row(&[Reset], Init, &[Gsi], PKEY | QKEY, NONE),

    row(&[Init], Init, CONNECTED, NONE, PKEY | PORT | ACCESS),
    row(&[Init], Init, &[Ud], NONE, PKEY | PORT | QKEY),
    row(&[Init], Init, &[Gsi], NONE, PKEY | QKEY),

    row(&[Init], Rtr, &[Rc, XrcTgt], CONNECT | RESPONDER, ALT | ACCESS | PKEY),
    row(&[Init], Rtr, &[Uc, XrcIni], CONNECT, ALT | ACCESS | PKEY),
    row(&[Init], Rtr, DATAGRAM, NONE, PKEY | QKEY),

    row(&[Rtr], Rts, &[Rc], SQ_PSN | REQUESTER, LIVE | RNR_TIMER),
    row(&[Rtr], Rts, &[XrcIni], SQ_PSN | REQUESTER, LIVE),
    row(&[Rtr], Rts, &[XrcTgt], SQ_PSN | TIMEOUT, LIVE | RNR_TIMER),
    row(&[Rtr], Rts, &[Uc], SQ_PSN, LIVE),
    row(&[Rtr], Rts, DATAGRAM, SQ_PSN, CUR | QKEY),

    row(&[Rts, Sqd], Rts, &[Rc, XrcTgt], NONE, LIVE | RNR_TIMER),
    row(&[Rts, Sqd], Rts, &[Uc, XrcIni], NONE, LIVE),
    row(&[Rts, Sqd, Sqe], Rts, DATAGRAM, NONE, CUR | QKEY),
    // RC has no SQE: its errors end the connection (IBA 10.3.1.6).
    row(&[Sqe], Rts, &[Uc], NONE, CUR | ACCESS),

    row(&[Rts], Sqd, ALL, NONE, SQD_EVENT),
    row(&[Sqd], Sqd, &[Rc], NONE, REPATH | REQUESTER | RESPONDER),
    row(&[Sqd], Sqd, &[XrcIni], NONE, REPATH | REQUESTER),
    row(&[Sqd], Sqd, &[XrcTgt], NONE, REPATH | RESPONDER),
    row(&[Sqd], Sqd, &[Uc], NONE, AV | ALT | ACCESS | PKEY | MIG),
    row(&[Sqd], Sqd, DATAGRAM, NONE, PKEY | QKEY),
];

/// Attributes of a transition, as (required, optional). `None` if there is no such transition.
pub fn transition(qp_type: QpType, from: QpState, to: QpState) -> Option<(QpAttrMask, QpAttrMask)> {
    TABLE
        .iter()
        .find(|r| r.to == to && r.from.contains(&from) && r.transports.contains(&qp_type))
        .map(|r| (QpAttrMask(r.required), QpAttrMask(r.optional)))
}

/// Checks a modification of a QP that is in state `from`.
///
/// # Errors
/// `BadState` if there is no such transition, `Invalid` if the attributes are not those it takes.
pub fn check(qp_type: QpType, from: QpState, to: QpState, mask: QpAttrMask) -> Result<()> {
    let (required, optional) = transition(qp_type, from, to)
        .ok_or(Error::BadState("there is no such transition (IBA 10.3.1)"))?;
    if !mask.contains(required) {
        return Err(Error::Invalid("the transition needs more attributes (IBA 11.2.4.2)"));
    }
    let allowed = required | optional | QpAttrMask::STATE;
    if !allowed.contains(mask) {
        return Err(Error::Invalid("the transition does not take these attributes (IBA 11.2.4.2)"));
    }
    Ok(())
}
