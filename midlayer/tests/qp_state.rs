// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The QP's state machine against a second description of it, written from IBA 10.3.1 and table 91 of
//! 11.2.4.2 one transport at a time, and compared with what the kernel's `ib_modify_qp_is_ok` accepts.

use rdma_midlayer::Error;
use rdma_midlayer::attr::QpAttrMask;
use rdma_midlayer::qp_state::{check, transition};
use rdma_midlayer::types::{QpState, QpType};

/// `transport: from>to required | optional`. To RESET from everywhere, and to ERR from everywhere but
/// RESET, without attributes, for all: those aren't listed.
const SPECIFIED: &str = "
RC: RESET>INIT pkey port access |
RC: INIT>INIT | pkey port access
RC: INIT>RTR av mtu dest rqpsn destrd rnrtimer | alt access pkey
RC: RTR>RTS sqpsn timeout retry rnrretry rd | cur alt access rnrtimer mig
RC: RTS>RTS | cur alt access rnrtimer mig
RC: RTS>SQD | sqd
RC: SQD>RTS | cur alt access rnrtimer mig
RC: SQD>SQD | port av timeout retry rnrretry rd destrd alt access pkey rnrtimer mig

UC: RESET>INIT pkey port access |
UC: INIT>INIT | pkey port access
UC: INIT>RTR av mtu dest rqpsn | alt access pkey
UC: RTR>RTS sqpsn | cur alt access mig
UC: RTS>RTS | cur alt access mig
UC: RTS>SQD | sqd
UC: SQD>RTS | cur alt access mig
UC: SQD>SQD | av alt access pkey mig
UC: SQE>RTS | cur access

UD: RESET>INIT pkey port qkey |
UD: INIT>INIT | pkey port qkey
UD: INIT>RTR | pkey qkey
UD: RTR>RTS sqpsn | cur qkey
UD: RTS>RTS | cur qkey
UD: RTS>SQD | sqd
UD: SQD>RTS | cur qkey
UD: SQD>SQD | pkey qkey
UD: SQE>RTS | cur qkey

GSI: RESET>INIT pkey qkey |
GSI: INIT>INIT | pkey qkey
GSI: INIT>RTR | pkey qkey
GSI: RTR>RTS sqpsn | cur qkey
GSI: RTS>RTS | cur qkey
GSI: RTS>SQD | sqd
GSI: SQD>RTS | cur qkey
GSI: SQD>SQD | pkey qkey
GSI: SQE>RTS | cur qkey

INI: RESET>INIT pkey port access |
INI: INIT>INIT | pkey port access
INI: INIT>RTR av mtu dest rqpsn | alt access pkey
INI: RTR>RTS sqpsn timeout retry rnrretry rd | cur alt access mig
INI: RTS>RTS | cur alt access mig
INI: RTS>SQD | sqd
INI: SQD>RTS | cur alt access mig
INI: SQD>SQD | port av timeout retry rnrretry rd alt access pkey mig

TGT: RESET>INIT pkey port access |
TGT: INIT>INIT | pkey port access
TGT: INIT>RTR av mtu dest rqpsn destrd rnrtimer | alt access pkey
TGT: RTR>RTS sqpsn timeout | cur alt access rnrtimer mig
TGT: RTS>RTS | cur alt access rnrtimer mig
TGT: RTS>SQD | sqd
TGT: SQD>RTS | cur alt access rnrtimer mig
TGT: SQD>SQD | port av timeout destrd alt access pkey rnrtimer mig
";

/// Bits as `ib_verbs.h` numbers them.
const BITS: [(&str, u32); 19] = [
    ("cur", 1 << 1),
    ("sqd", 1 << 2),
    ("access", 1 << 3),
    ("pkey", 1 << 4),
    ("port", 1 << 5),
    ("qkey", 1 << 6),
    ("av", 1 << 7),
    ("mtu", 1 << 8),
    ("timeout", 1 << 9),
    ("retry", 1 << 10),
    ("rnrretry", 1 << 11),
    ("rqpsn", 1 << 12),
    ("rd", 1 << 13),
    ("alt", 1 << 14),
    ("rnrtimer", 1 << 15),
    ("sqpsn", 1 << 16),
    ("destrd", 1 << 17),
    ("mig", 1 << 18),
    ("dest", 1 << 20),
];

const TYPES: [(&str, QpType); 6] = [
    ("RC", QpType::Rc),
    ("UC", QpType::Uc),
    ("UD", QpType::Ud),
    ("GSI", QpType::Gsi),
    ("INI", QpType::XrcIni),
    ("TGT", QpType::XrcTgt),
];

const STATES: [(&str, QpState); 7] = [
    ("RESET", QpState::Reset),
    ("INIT", QpState::Init),
    ("RTR", QpState::Rtr),
    ("RTS", QpState::Rts),
    ("SQD", QpState::Sqd),
    ("SQE", QpState::Sqe),
    ("ERR", QpState::Err),
];

fn bits(words: &str) -> u32 {
    words
        .split_whitespace()
        .map(|word| BITS.iter().find(|(name, _)| *name == word).unwrap().1)
        .fold(0, |all, bit| all | bit)
}

/// What the text above says of a transition.
fn specified(qp_type: &str, from: &str, to: &str) -> Option<(u32, u32)> {
    if to == "RESET" || (to == "ERR" && from != "RESET") {
        return Some((0, 0));
    }
    let head = format!("{qp_type}: {from}>{to} ");
    let line = SPECIFIED.lines().find(|line| format!("{line} ").starts_with(&head))?;
    let (required, optional) = line[head.len() - 1..].split_once('|').unwrap();
    Some((bits(required), bits(optional)))
}

type Named<T> = (&'static str, T);

fn all() -> impl Iterator<Item = (Named<QpType>, Named<QpState>, Named<QpState>)> {
    TYPES.into_iter().flat_map(|t| {
        STATES.into_iter().flat_map(move |f| STATES.into_iter().map(move |to| (t, f, to)))
    })
}

#[test]
fn every_transition_of_every_transport_is_as_specified() {
    for ((type_name, qp_type), (from_name, from), (to_name, to)) in all() {
        let got =
            transition(qp_type, from, to).map(|(required, optional)| (required.0, optional.0));
        let want = specified(type_name, from_name, to_name);
        assert_eq!(got, want, "{type_name}: {from_name} to {to_name}");
    }
}

#[test]
fn each_required_attribute_must_be_there_and_no_other_may() {
    for ((_, qp_type), (from_name, from), (to_name, to)) in all() {
        let Some((required, optional)) = transition(qp_type, from, to) else {
            let refused = check(qp_type, from, to, QpAttrMask::STATE);
            assert!(matches!(refused, Err(Error::BadState(_))), "{from_name} to {to_name}");
            continue;
        };
        let base = required | QpAttrMask::STATE;
        assert_eq!(check(qp_type, from, to, base), Ok(()));
        assert_eq!(check(qp_type, from, to, base | optional), Ok(()));
        for (name, bit) in BITS {
            let without = check(qp_type, from, to, QpAttrMask(base.0 & !bit));
            assert_eq!(
                without.is_ok(),
                required.0 & bit == 0,
                "{from_name} to {to_name}, no {name}"
            );
            let with = check(qp_type, from, to, QpAttrMask(base.0 | bit));
            let fits = (required.0 | optional.0) & bit != 0;
            assert_eq!(with.is_ok(), fits, "{from_name} to {to_name} with {name}");
        }
    }
}

#[test]
fn from_every_state_a_qp_can_be_reset_and_used_again() {
    for (_, from) in STATES {
        assert_eq!(check(QpType::Rc, from, QpState::Reset, QpAttrMask::STATE), Ok(()));
    }
}
