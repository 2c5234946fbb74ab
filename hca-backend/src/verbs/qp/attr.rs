// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A QP's attributes: the consumer's in the host's terms, and as they are remembered.

use super::*;
use crate::verbs::ah::host_path;
use crate::verbs::host::raw_gid;

impl Qp {
    /// The attributes in the host's terms. May sleep.
    pub(super) fn host_attr(&self, attr: &QpAttr, mask: QpAttrMask) -> Result<ibv_qp_attr> {
        let ah_attr = if mask.contains(QpAttrMask::AV) {
            host_path(&self.context, &attr.ah)?
        } else {
            ibv_ah_attr::default()
        };
        Ok(ibv_qp_attr {
            qp_state: attr.state.code().into(),
            cur_qp_state: attr.cur_state.code().into(),
            path_mtu: attr.path_mtu.code().into(),
            path_mig_state: 0,
            qkey: attr.qkey,
            rq_psn: attr.rq_psn.get(),
            sq_psn: attr.sq_psn.get(),
            dest_qp_num: attr.dest_qpn.0,
            qp_access_flags: attr.access.0 & 0x1f,
            cap: ibv_qp_cap::default(),
            ah_attr,
            alt_ah_attr: ibv_ah_attr::default(),
            pkey_index: attr.pkey_index,
            alt_pkey_index: 0,
            en_sqd_async_notify: u8::from(attr.sq_draining),
            sq_draining: 0,
            max_rd_atomic: attr.max_rd_atomic,
            max_dest_rd_atomic: attr.max_dest_rd_atomic,
            min_rnr_timer: attr.min_rnr_timer,
            port_num: self.context.hca().host.port(),
            timeout: attr.timeout,
            retry_cnt: attr.retry_cnt,
            rnr_retry: attr.rnr_retry,
            alt_port_num: 0,
            alt_timeout: 0,
            rate_limit: 0,
        })
    }

    /// Remembers the attributes that the mask selects, as the consumer sees them.
    pub(super) fn remember(&self, attr: &QpAttr, mask: QpAttrMask) {
        use QpAttrMask as M;
        let mut known = lock(&self.attr);
        if attr.state == QpState::Reset && mask.contains(M::STATE) {
            *known = QpAttr::default();
        }
        macro_rules! take {
            ($($bit:ident: $member:ident),*) => { $(
                if mask.contains(M::$bit) {
                    known.$member = attr.$member;
                }
            )* };
        }
        take!(STATE: state, ACCESS_FLAGS: access, PKEY_INDEX: pkey_index, PORT: port, QKEY: qkey, AV: ah,
            PATH_MTU: path_mtu, TIMEOUT: timeout, RETRY_CNT: retry_cnt, RNR_RETRY: rnr_retry,
            RQ_PSN: rq_psn, MAX_QP_RD_ATOMIC: max_rd_atomic, MIN_RNR_TIMER: min_rnr_timer,
            SQ_PSN: sq_psn, MAX_DEST_RD_ATOMIC: max_dest_rd_atomic, DEST_QPN: dest_qpn);
    }

    /// An address handle for datagrams that must fail.
    pub(super) fn make_nowhere(&self) -> Result<()> {
        let mut nowhere = lock(&self.nowhere);
        if self.qp_type != QpType::Ud || nowhere.is_some() {
            return Ok(());
        }
        let hca = self.context.hca();
        let gids = hca.host.gids()?;
        let (index, gid, _) = gids.first().ok_or(Error::Invalid("the host's port has no GID"))?;
        let attr = ibv_ah_attr {
            grh: ibv_global_route {
                dgid: raw_gid(gid),
                sgid_index: *index as u8,
                hop_limit: 1,
                ..Default::default()
            },
            is_global: 1,
            port_num: hca.host.port(),
            ..Default::default()
        };
        *nowhere = Some(self.pd.host().create_ah(&attr)?);
        Ok(())
    }
}
