// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Queue pairs. The state machine is in `qp_state`.

use std::sync::Arc;

use super::{Cq, Pd, Srq, Xrcd};
use crate::attr::{AhAttr, QpAttr, QpAttrMask, QpCap};
use crate::context::MaySleep;
use crate::driver::{
    BadWr, MalformedWqe, QpDriver, QpInit, RecvSource, SendReady, TransportCounts,
};
use crate::error::{Error, Result};
use crate::object::{self, Base, DeviceShared, Object, release};
use crate::qp_state;
use crate::sync::{Mutex, lock};
use crate::types::{Gid, QpType, Qpn};
use crate::work::{RecvWr, SHORT_INLINE, SendData, SendWr, ShortWr};

/// What a consumer wants of a QP. The members that `QpInit` has too mean the same.
pub struct QpSpec {
    /// Transport.
    pub qp_type: QpType,
    /// CQ of the send queue, of this device.
    pub send_cq: Arc<Cq>,
    /// CQ of the receive queue, of this device.
    pub recv_cq: Arc<Cq>,
    /// Wanted sizes.
    pub cap: QpCap,
    /// Every send WR makes a completion.
    pub signal_all: bool,
    /// May use what processes may not.
    pub privileged: bool,
    /// Which of the HCA's pollers works on this QP (modulo their number).
    pub poller: usize,
    /// The receive WQEs. Without it they come by `post_recv`.
    pub recv_source: Option<Arc<dyn RecvSource>>,
    /// See `QpInit`.
    pub send_ready: Option<Arc<dyn SendReady>>,
    /// Receive WQEs come from this SRQ, of this device.
    pub srq: Option<Arc<Srq>>,
    /// XRC target: the domain, of this device.
    pub xrcd: Option<Arc<Xrcd>>,
    /// See `QpInit`.
    pub block_self_mcast: bool,
}

impl QpSpec {
    /// A QP of a transport with one CQ for both queues.
    pub fn new(qp_type: QpType, cq: &Arc<Cq>, cap: QpCap) -> Self {
        Self {
            qp_type,
            send_cq: cq.clone(),
            recv_cq: cq.clone(),
            cap,
            signal_all: false,
            privileged: false,
            poller: 0,
            recv_source: None,
            send_ready: None,
            srq: None,
            xrcd: None,
            block_self_mcast: false,
        }
    }
}

/// A queue pair.
pub struct Qp {
    base: Base,
    driver: Arc<dyn QpDriver>,
    pd: Arc<Pd>,
    send_cq: Arc<Cq>,
    recv_cq: Arc<Cq>,
    srq: Option<Arc<Srq>>,
    xrcd: Option<Arc<Xrcd>>,
    /// Groups that are attached: while there are any, the QP is busy.
    groups: Mutex<Vec<(Gid, u16)>>,
    qp_type: QpType,
    cap: QpCap,
}

impl Qp {
    pub(super) fn create(cx: &MaySleep, pd: &Arc<Pd>, spec: QpSpec) -> Result<Arc<Self>> {
        let base = pd.base().child("QP");
        check_cap(&base.device, &spec.cap)?;
        if spec.xrcd.is_some() != (spec.qp_type == QpType::XrcTgt) {
            return Err(Error::Invalid("XRC targets have an XRC domain, other QPs have none"));
        }
        if spec.srq.is_some() && (spec.recv_source.is_some() || is_xrc(spec.qp_type)) {
            return Err(Error::Invalid("an SRQ beside another source of receive WQEs"));
        }
        if spec.block_self_mcast && spec.qp_type != QpType::Ud {
            return Err(Error::Invalid("multicast is for UD QPs"));
        }
        let QpSpec { qp_type, send_cq, recv_cq, srq, xrcd, .. } = spec;
        let mut uses = vec![pd.base(), send_cq.base(), recv_cq.base()];
        uses.extend(srq.iter().map(|srq| srq.base()));
        uses.extend(xrcd.iter().map(|xrcd| xrcd.base()));
        uses.iter().try_for_each(|used| base.same_device(used))?;
        let init = QpInit {
            qp_type,
            send_cq: send_cq.driver().clone(),
            recv_cq: recv_cq.driver().clone(),
            cap: spec.cap,
            signal_all: spec.signal_all,
            privileged: spec.privileged,
            poller: spec.poller,
            recv_source: spec.recv_source,
            send_ready: spec.send_ready,
            srq: srq.as_ref().map(|srq| srq.driver().clone()),
            xrcd: xrcd.as_ref().map(|xrcd| xrcd.driver().clone()),
            block_self_mcast: spec.block_self_mcast,
        };
        object::create(
            cx,
            &pd.base().device,
            &uses,
            || pd.driver().create_qp(cx, init),
            |driver| Self {
                base,
                cap: driver.cap(),
                driver,
                pd: pd.clone(),
                send_cq: send_cq.clone(),
                recv_cq: recv_cq.clone(),
                srq: srq.clone(),
                xrcd: xrcd.clone(),
                groups: Mutex::new(Vec::new()),
                qp_type,
            },
        )
    }

    pub(super) fn base(&self) -> &Base {
        &self.base
    }

    pub(super) fn driver(&self) -> &Arc<dyn QpDriver> {
        &self.driver
    }

    pub(super) fn pd(&self) -> &Arc<Pd> {
        &self.pd
    }

    /// Its number.
    pub fn qpn(&self) -> Qpn {
        self.driver.qpn()
    }

    /// Its transport.
    pub fn qp_type(&self) -> QpType {
        self.qp_type
    }

    /// Sizes given: at least what was wanted.
    pub fn cap(&self) -> QpCap {
        self.cap
    }

    /// Changes state and attributes; without `STATE` in the mask the state stays. May sleep.
    ///
    /// # Errors
    /// `BadState` if the QP's state has no such transition (IBA 10.3.1); `Invalid` if attributes are
    /// missing or don't belong to it (IBA 11.2.4.2) or are out of range; `Unsupported` for alternate
    /// paths and for new queue sizes. On an error nothing has changed.
    pub fn modify(&self, cx: &MaySleep, attr: &QpAttr, mask: QpAttrMask) -> Result<()> {
        let _verb = self.base.verb(cx)?;
        let found = self.driver.query(cx)?.state;
        if mask.contains(QpAttrMask::CUR_STATE) && attr.cur_state != found {
            return Err(Error::BadState("the QP is not in the state that the consumer named"));
        }
        let to = if mask.contains(QpAttrMask::STATE) { attr.state } else { found };
        qp_state::check(self.qp_type, found, to, mask)?;
        check_attr(&self.base.device, attr, mask)?;
        self.driver.modify(cx, &QpAttr { state: to, cur_state: found, ..*attr }, mask)
    }

    /// The attributes as they are. May sleep.
    pub fn query(&self, cx: &MaySleep) -> Result<QpAttr> {
        let _verb = self.base.verb(cx)?;
        self.driver.query(cx)
    }

    /// What its transport has met with since it was made; also after its end. Never sleeps.
    pub fn counts(&self) -> TransportCounts {
        self.driver.counts()
    }

    /// Receives what is sent to a multicast group. May sleep.
    ///
    /// # Errors
    /// `Invalid` for a QP that is not UD, for a GID that is not a multicast one (of IPv6, or of IPv4 as a
    /// mapped address), and for a group that is attached already; `Limit`.
    pub fn attach_mcast(&self, cx: &MaySleep, gid: &Gid, lid: u16) -> Result<()> {
        let _verb = self.base.verb(cx)?;
        if self.qp_type != QpType::Ud || !gid.is_multicast() {
            return Err(Error::Invalid("multicast is for UD QPs and multicast GIDs"));
        }
        let group = (*gid, lid);
        {
            let mut groups = lock(&self.groups);
            if groups.contains(&group) {
                return Err(Error::Invalid("the group is attached already"));
            }
            // A destroy that has begun is waiting for this verb.
            if !self.base.life.add_dependent() {
                return Err(Error::Gone);
            }
            groups.push(group);
        }
        self.driver.attach_mcast(cx, gid, lid).inspect_err(|_| self.forget(group))
    }

    /// Undoes `attach_mcast`; on a device that has gone there is nothing to undo but the count. May sleep.
    ///
    /// # Errors
    /// `Invalid` for a group that is not attached.
    pub fn detach_mcast(&self, cx: &MaySleep, gid: &Gid, lid: u16) -> Result<()> {
        let verb = self.base.verb(cx);
        let group = (*gid, lid);
        match &verb {
            Err(error) if *error != Error::Gone || !self.base.life.is_open() => {
                return Err(*error);
            }
            _ if !lock(&self.groups).contains(&group) => {
                return Err(Error::Invalid("the group is not attached"));
            }
            Ok(_) => self.driver.detach_mcast(cx, gid, lid)?,
            Err(_) => {}
        }
        self.forget(group);
        Ok(())
    }

    /// The groups that are attached, with their LIDs.
    pub fn mcast_groups(&self) -> Vec<(Gid, u16)> {
        lock(&self.groups).clone()
    }

    fn forget(&self, group: (Gid, u16)) {
        let mut groups = lock(&self.groups);
        let before = groups.len();
        groups.retain(|other| *other != group);
        if groups.len() < before {
            self.base.life.drop_dependent();
        }
    }

    /// Ends the QP. Outstanding work makes no completions; no event of the QP comes after the return.
    /// May sleep.
    ///
    /// # Errors
    /// `Busy` while multicast groups are attached; `Gone` if it has ended before.
    pub fn destroy(&self, cx: &MaySleep) -> Result<()> {
        object::destroy(cx, self)
    }

    /// Posts a send WR. Never sleeps.
    ///
    /// # Errors
    /// `QueueFull`; `BadState` in RESET, INIT and RTR; `Invalid` for a WR that the transport does not
    /// have, or with more SGEs or inline data than the QP takes. In ERR it is taken and flushed.
    #[inline]
    pub fn post_send(&self, wr: &SendWr<'_>) -> Result<()> {
        let _guard = self.base.fast()?;
        self.check_sizes(wr)?;
        self.driver.post_send(wr)
    }

    /// Posts send WRs in order, up to the first that is not taken. Never sleeps. One call for many costs
    /// far less than many for one.
    ///
    /// # Errors
    /// Those of `post_send`, and how many WRs were taken before.
    #[inline]
    pub fn post_send_list(&self, wrs: &[SendWr<'_>]) -> std::result::Result<(), BadWr> {
        let _guard = self.base.fast().map_err(|error| BadWr { taken: 0, error })?;
        let bad = wrs
            .iter()
            .enumerate()
            .find_map(|(taken, wr)| self.check_sizes(wr).err().map(|error| BadWr { taken, error }));
        match bad {
            None => self.driver.post_send_list(wrs),
            Some(bad) => self.driver.post_send_list(&wrs[..bad.taken]).and(Err(bad)),
        }
    }

    /// As `post_send_list`, of requests in their short form: what a consumer with a ring of its own does
    /// best with most of them.
    ///
    /// # Errors
    /// As `post_send_list`.
    #[inline]
    pub fn post_short_list(&self, wrs: &[ShortWr]) -> std::result::Result<(), BadWr> {
        let _guard = self.base.fast().map_err(|error| BadWr { taken: 0, error })?;
        // Every short one fits into most QPs.
        if self.cap.max_send_sge > 0 && self.cap.max_inline as usize >= SHORT_INLINE {
            return self.driver.post_short_list(wrs);
        }
        let fits = |wr: &ShortWr| self.check_sizes(&wr.wr());
        let bad = wrs.iter().enumerate().find_map(|(n, wr)| fits(wr).err().map(|error| (n, error)));
        let Some((taken, error)) = bad else { return self.driver.post_short_list(wrs) };
        self.driver.post_short_list(&wrs[..taken]).and(Err(BadWr { taken, error }))
    }

    #[inline]
    fn check_sizes(&self, wr: &SendWr<'_>) -> Result<()> {
        match wr.data {
            SendData::Sges(sges) if sges.len() > self.cap.max_send_sge as usize => {
                Err(Error::Invalid("too many SGEs"))
            }
            SendData::Inline(data) if data.len() > self.cap.max_inline as usize => {
                Err(Error::Invalid("too much inline data"))
            }
            _ => Ok(()),
        }
    }

    /// Completes with an error a WR that the consumer found malformed in its ring, in order behind
    /// those posted before, and puts the QP into ERR. Never sleeps.
    pub fn post_malformed_send(&self, wqe: MalformedWqe) -> Result<()> {
        let _guard = self.base.fast()?;
        self.driver.post_malformed_send(wqe)
    }

    /// Posts a receive WR. Never sleeps.
    ///
    /// # Errors
    /// `QueueFull`; `BadState` in RESET; `Invalid` for more SGEs than the QP takes; `Unsupported` for a
    /// QP with a `RecvSource` or an SRQ.
    #[inline]
    pub fn post_recv(&self, wr: &RecvWr<'_>) -> Result<()> {
        let _guard = self.base.fast()?;
        if wr.sges.len() > self.cap.max_recv_sge as usize {
            return Err(Error::Invalid("too many SGEs"));
        }
        self.driver.post_recv(wr)
    }

    /// The `RecvSource` has new WQEs. Never sleeps.
    #[inline]
    pub fn recv_posted(&self) -> Result<()> {
        let _guard = self.base.fast()?;
        self.driver.recv_posted();
        Ok(())
    }

    /// Another one of the HCA's pollers is to work on the QP (modulo their number), since another thread
    /// posts to it. Never sleeps.
    pub fn set_poller(&self, poller: usize) {
        if let Ok(_guard) = self.base.fast() {
            self.driver.set_poller(poller);
        }
    }
}

impl Object for Qp {
    fn base(&self) -> &Base {
        &self.base
    }

    fn release_uses(&self) {
        release(&[self.pd.base(), self.send_cq.base(), self.recv_cq.base()]);
        self.srq.iter().for_each(|srq| release(&[srq.base()]));
        self.xrcd.iter().for_each(|xrcd| release(&[xrcd.base()]));
    }

    fn driver_destroy(&self, cx: &MaySleep) -> Result<()> {
        self.driver.destroy(cx)
    }

    fn quiesce(&self, cx: &MaySleep) {
        self.base.device.events.flush(cx);
    }
}

fn is_xrc(qp_type: QpType) -> bool {
    matches!(qp_type, QpType::XrcIni | QpType::XrcTgt)
}

fn check_cap(device: &DeviceShared, cap: &QpCap) -> Result<()> {
    let limits = [
        (cap.max_send_wr, device.attr.max_qp_wr, "max_qp_wr"),
        (cap.max_recv_wr, device.attr.max_qp_wr, "max_qp_wr"),
        (cap.max_send_sge, device.attr.max_send_sge, "max_send_sge"),
        (cap.max_recv_sge, device.attr.max_recv_sge, "max_recv_sge"),
        (cap.max_inline, device.attr.max_inline, "max_inline"),
    ];
    match limits.iter().find(|(wanted, limit, _)| wanted > limit) {
        Some((_, _, name)) => Err(Error::Limit(name)),
        None => Ok(()),
    }
}

/// Ranges of the attributes that count (IBA 11.2.4.2).
fn check_attr(device: &DeviceShared, attr: &QpAttr, mask: QpAttrMask) -> Result<()> {
    let unsupported = QpAttrMask::ALT_PATH | QpAttrMask::PATH_MIG_STATE | QpAttrMask::CAP;
    if mask.0 & unsupported.0 != 0 {
        return Err(Error::Unsupported("alternate paths, new queue sizes"));
    }
    let port = |n: u8| device.ports.get(usize::from(n).wrapping_sub(1));
    let pkeys = device.ports.first().map_or(0, |p| p.pkey_tbl_len);
    let rules = [
        (QpAttrMask::PORT, port(attr.port).is_some(), "port"),
        (QpAttrMask::PKEY_INDEX, attr.pkey_index < pkeys, "P_Key index"),
        // A group is no peer of a connection, and UD QPs have no such attribute.
        (
            QpAttrMask::AV,
            check_path(device, &attr.ah).is_ok() && !attr.ah.dgid.is_multicast(),
            "path",
        ),
        (
            QpAttrMask::PATH_MTU,
            device.ports.iter().any(|p| attr.path_mtu.bytes() <= p.max_mtu.bytes()),
            "path MTU",
        ),
        (QpAttrMask::DEST_QPN, attr.dest_qpn.0 <= 0x00ff_ffff, "QPN"),
        (QpAttrMask::TIMEOUT, attr.timeout < 32, "timeout"),
        (QpAttrMask::RETRY_CNT, attr.retry_cnt < 8, "retry_cnt"),
        (QpAttrMask::RNR_RETRY, attr.rnr_retry < 8, "rnr_retry"),
        (QpAttrMask::MIN_RNR_TIMER, attr.min_rnr_timer < 32, "min_rnr_timer"),
        (
            QpAttrMask::MAX_QP_RD_ATOMIC,
            u32::from(attr.max_rd_atomic) <= device.attr.max_qp_init_rd_atom,
            "max_rd_atomic",
        ),
        (
            QpAttrMask::MAX_DEST_RD_ATOMIC,
            u32::from(attr.max_dest_rd_atomic) <= device.attr.max_qp_rd_atom,
            "max_dest_rd_atomic",
        ),
    ];
    match rules.iter().find(|(which, holds, _)| mask.contains(*which) && !holds) {
        Some((_, _, name)) => Err(Error::Invalid(name)),
        None => Ok(()),
    }
}

/// Ranges of a path's members.
pub(super) fn check_path(device: &DeviceShared, ah: &AhAttr) -> Result<()> {
    // A path's port may be left out where the QP's own counts.
    let port = device.ports.get(usize::from(ah.port.max(1)) - 1);
    match port {
        Some(port) if ah.sgid_index < port.gid_tbl_len && ah.flow_label < 1 << 20 && ah.sl < 16 => {
            Ok(())
        }
        _ => Err(Error::Invalid("path")),
    }
}
