// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Datagrams (UD, and QP1): each goes on its own, and one that can't be delivered is lost without a
//! word (IBA 9.8.3). Two copies instead of one: the receiver gets a header before the data.

use std::net::Ipv6Addr;
use std::sync::atomic::Ordering;

use rdma_midlayer::attr::{AhAttr, QpAttr};
use rdma_midlayer::driver::AsyncEvent;
use rdma_midlayer::rcu::Guard;
use rdma_midlayer::types::{Access, Gid, QpState, QpType, Qpn, WcOpcode, WcStatus, WrOpcode};
use rdma_midlayer::work::{SendFlags, SendWr, WcFlags, WorkCompletion};

use super::Qp;
use super::execute::Step;
use super::paging::{Bytes, Lack, Waiting};
use super::responder::Responder;
use crate::soft::place::{Place, copy};

/// Bytes of a GRH, which stands before the data of every datagram received (IBA 11.4.1.2).
const GRH: usize = 40;
/// Bytes of the longest datagram: the largest path MTU.
pub(super) const MAX_DATAGRAM: u64 = 4096;
/// The Q_Key of every QP1 (IBA 3.5.3).
pub(super) const GSI_QKEY: u32 = 0x8001_0000;
/// QP1.
pub(crate) const GSI_QPN: Qpn = Qpn(1);
/// UDP port of RoCEv2 and next-header number of UDP.
const PROTOCOL_UDP: u8 = 17;
/// Bytes that RoCEv2 adds to a datagram's data: UDP, BTH, DETH, ICRC.
const HEADERS: usize = 8 + 12 + 8 + 4;

/// Where a datagram goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dest {
    pub(super) path: AhAttr,
    pub(super) qpn: Qpn,
    pub(super) qkey: u32,
}

/// A datagram as it arrives.
pub(super) struct Arrival<'a> {
    /// What was posted, or what stands in its place for a packet.
    pub(super) wr: &'a SendWr<'a>,
    pub(super) from: Qpn,
    pub(super) qkey: u32,
    /// Header and data.
    pub(super) packet: &'a [u8],
    pub(super) vlan: Option<u16>,
    pub(super) sl: u8,
}

impl Dest {
    /// Of a work request; `None` if it has none.
    pub(super) fn of(wr: &SendWr<'_>) -> Option<Self> {
        let ud = wr.ud?;
        Some(Self { path: ud.ah.query().ok()?, qpn: ud.qpn, qkey: ud.qkey })
    }

    /// Whether it is a multicast group.
    pub(super) fn is_group(&self) -> bool {
        self.path.dgid.is_multicast()
    }
}

impl Qp {
    /// Whether the QP sends datagrams.
    #[inline]
    pub(super) fn is_datagram(&self) -> bool {
        matches!(self.created.qp_type, QpType::Ud | QpType::Gsi)
    }

    /// Carries out the send of a datagram, to a group as far as one step gets from the member `reached`.
    /// Never sleeps.
    pub(super) fn execute_datagram(
        &self,
        attr: &QpAttr,
        wr: &SendWr<'_>,
        dest: &Dest,
        len: u64,
        reached: &mut u64,
        guard: &Guard,
    ) -> Step {
        if len > MAX_DATAGRAM {
            return Step::Fail(WcStatus::LocLenErr);
        }
        let view = self.view(Access::NONE, guard);
        let Ok(data) = Place::of_data(wr.data, len, view) else {
            return Step::Fail(WcStatus::LocProtErr);
        };
        let refused = self.fault.take_answer();
        match self.lacks(
            &data,
            Bytes { offset: 0, len, rest: len },
            false,
            Some(Waiting::Requester(self)),
            refused,
        ) {
            Lack::Nothing => {}
            Lack::Asked => return Step::Absent,
            Lack::Refused => return Step::Fail(WcStatus::LocProtErr),
        }
        let mut packet = [0; GRH + MAX_DATAGRAM as usize];
        let packet = &mut packet[..GRH + len as usize];
        if data.read(&mut packet[GRH..]).is_err() {
            return Step::Fail(WcStatus::LocProtErr);
        }
        let Some(source) = self.context.gid_entry(dest.path.sgid_index) else {
            return Step::Fail(WcStatus::LocQpOpErr);
        };
        write_grh(packet, &dest.path, source.gid);
        // With the high bit set it is the sender's own that counts (IBA 10.2.5).
        let qkey = if dest.qkey & 1 << 31 != 0 { self.qkey(attr) } else { dest.qkey };
        let vlan = dest.path.vlan.or(source.vlan);
        let it = Arrival { wr, from: self.qpn, qkey, packet, vlan, sl: dest.path.sl };
        if dest.is_group() {
            return self.send_to_group(dest, &it, reached, guard);
        }
        let context = self.context.network.find(dest.path.dgid);
        let Some(context) = context.filter(|c| c.answers_to(dest.path.dgid, vlan)) else {
            return Step::Done;
        };
        let Some(peer) = context.qp(dest.qpn) else { return Step::Done };
        match peer.responder.0.try_lock_briefly() {
            Some(mut responder) => peer.receive(&mut responder, &it, guard),
            None => return Step::Busy,
        }
        Step::Done
    }

    pub(super) fn qkey(&self, attr: &QpAttr) -> u32 {
        if self.created.qp_type == QpType::Gsi { GSI_QKEY } else { attr.qkey }
    }

    /// Whether a datagram has the Q_Key that it must have; if not it is counted.
    pub(super) fn qkey_is_right(&self, responder: &Responder, qkey: u32) -> bool {
        let gsi = self.created.qp_type == QpType::Gsi;
        let right = qkey == if gsi { GSI_QKEY } else { responder.qkey() };
        if !right {
            self.context.count_qkey_violation();
        }
        right
    }

    /// A datagram arrives here.
    pub(super) fn receive(&self, responder: &mut Responder, it: &Arrival<'_>, guard: &Guard) {
        let Arrival { wr, packet, .. } = *it;
        let listens = matches!(self.state(), QpState::Rtr | QpState::Rts | QpState::Sqd)
            && self.is_datagram()
            && !self.destroyed.load(Ordering::Acquire)
            && !self.context.suspended(guard);
        if !listens || !self.qkey_is_right(responder, it.qkey) || responder.take_datagram().is_err()
        {
            return;
        }
        let sges = responder.wqe.sges();
        let room: u64 = sges.iter().map(|sge| u64::from(sge.length)).sum();
        let len = packet.len() as u64;
        let view = self.view(Access::LOCAL_WRITE, guard);
        let status = if len > room {
            WcStatus::LocLenErr
        } else {
            match Place::of_sges(sges, len, view) {
                Ok(to) if copy(&to, &Place::Bytes(packet), 0, len).is_ok() => WcStatus::Success,
                _ => WcStatus::LocProtErr,
            }
        };
        if status != WcStatus::Success {
            self.fail_recv(responder, status);
            if self.enter_error() {
                self.context.dispatch(AsyncEvent::QpReqErr(self.qpn));
            }
            return;
        }
        let with_imm = wr.opcode == WrOpcode::SendWithImm;
        let flag = |there: bool, flag: WcFlags| if there { flag.0 } else { 0 };
        let flags = WcFlags::GRH.0
            | flag(with_imm, WcFlags::WITH_IMM)
            | flag(it.vlan.is_some(), WcFlags::VLAN);
        let wc = WorkCompletion {
            wr_id: responder.wqe.wr_id,
            ticket: responder.wqe.ticket,
            status,
            opcode: WcOpcode::Recv,
            flags: WcFlags(flags),
            qpn: self.qpn,
            byte_len: len as u32,
            imm: if with_imm { wr.imm } else { 0 },
            src_qpn: it.from,
            vendor_err: 0,
            vlan: it.vlan.unwrap_or(0),
            sl: it.sl,
        };
        responder.held = false;
        self.counts.recvs.add(1);
        self.push(responder.cq.as_ref(), &wc, wr.flags.contains(SendFlags::SOLICITED));
    }
}

/// The header as RoCEv2 has it: that of IPv6, or zeros and that of IPv4 behind them.
fn write_grh(packet: &mut [u8], path: &AhAttr, source: Gid) {
    let data = packet.len() - GRH;
    let v4 = |gid: Gid| Ipv6Addr::from(gid.0).to_ipv4_mapped();
    match (v4(source), v4(path.dgid)) {
        (Some(from), Some(to)) => {
            let ip = &mut packet[20..GRH];
            ip[0] = 0x45;
            ip[1] = path.traffic_class;
            ip[2..4].copy_from_slice(&((20 + HEADERS + data) as u16).to_be_bytes());
            ip[6] = 0x40; // Don't fragment.
            ip[8] = path.hop_limit;
            ip[9] = PROTOCOL_UDP;
            ip[12..16].copy_from_slice(&from.octets());
            ip[16..20].copy_from_slice(&to.octets());
            let checksum = checksum(ip);
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        _ => {
            let first = 6 << 28 | u32::from(path.traffic_class) << 20 | path.flow_label & 0xf_ffff;
            packet[..4].copy_from_slice(&first.to_be_bytes());
            packet[4..6].copy_from_slice(&((HEADERS + data) as u16).to_be_bytes());
            packet[6] = PROTOCOL_UDP;
            packet[7] = path.hop_limit;
            packet[8..24].copy_from_slice(&source.0);
            packet[24..40].copy_from_slice(&path.dgid.0);
        }
    }
}

/// The checksum of an IPv4 header whose own is zero.
fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 =
        header.as_chunks::<2>().0.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ipv4_header_before_a_datagram_has_a_right_checksum_and_stands_last() {
        let gid = |n: u8| Gid(std::net::Ipv4Addr::new(10, 0, 0, n).to_ipv6_mapped().octets());
        let mut packet = [0; GRH + 100];
        let path = AhAttr { dgid: gid(2), hop_limit: 64, ..AhAttr::default() };
        write_grh(&mut packet, &path, gid(1));
        assert_eq!(packet[..20], [0; 20]);
        assert_eq!(checksum(&packet[20..40]), 0, "the sum over all of it is -0");
        assert_eq!(packet[32..40], [10, 0, 0, 1, 10, 0, 0, 2]);
        assert_eq!(u16::from_be_bytes([packet[22], packet[23]]), 20 + 32 + 100);
    }

    #[test]
    fn the_ipv6_header_names_both_gids() {
        let (a, b) = (Gid([0xfd; 16]), Gid([0xfc; 16]));
        let mut packet = [0; GRH];
        let path =
            AhAttr { dgid: b, flow_label: 0x12345, traffic_class: 0xab, ..AhAttr::default() };
        write_grh(&mut packet, &path, a);
        assert_eq!(packet[..4], [0x6a, 0xb1, 0x23, 0x45]);
        assert_eq!(packet[8..24], a.0);
        assert_eq!(packet[24..40], b.0);
    }
}
