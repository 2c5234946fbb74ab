// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QUERY_DEVICE, QUERY_PORT, QUERY_COUNTERS: what the device is, and what it has counted.

use virtio_rdma_abi::control as abi;

use super::on_demand::OdpCaps;
use super::{Answer, Call, INVALID, Status, bytes};
use crate::clock;
use crate::device::limits;

/// IBA port physical states.
const PHYS_LINK_UP: u8 = 5;
const PHYS_DISABLED: u8 = 3;

impl Call<'_> {
    pub(super) fn query_device(mut self) -> Answer {
        self.session()?;
        let hca = self.device.hca().ok_or(Status(abi::STATUS_NO_HCA))?;
        let a = hca.query_device(self.cx)?;
        let guid = self.device.node_guid();
        let caps = match a.local_dma_lkey {
            true => abi::DEVICE_CAP_RC_RNR_NAK_GEN | abi::DEVICE_CAP_LOCAL_DMA_LKEY,
            false => abi::DEVICE_CAP_RC_RNR_NAK_GEN,
        };
        let odp = OdpCaps::of(a.on_demand);
        Ok(bytes(&abi::DeviceAttr {
            node_guid: guid,
            sys_image_guid: guid,
            fw_ver: a.fw_ver.into(),
            max_mr_size: a.max_mr_size.into(),
            page_size_cap: a.page_size_cap.into(),
            device_caps: caps.into(),
            vendor_id: a.vendor_id.into(),
            vendor_part_id: a.vendor_part_id.into(),
            hw_ver: a.hw_ver.into(),
            max_qp: a.max_qp.into(),
            max_qp_wr: a.max_qp_wr.into(),
            max_send_sge: a.max_send_sge.into(),
            max_recv_sge: a.max_recv_sge.into(),
            max_sge_rd: a.max_sge_rd.into(),
            max_inline: a.max_inline.into(),
            max_cq: a.max_cq.into(),
            max_cqe: a.max_cqe.into(),
            max_mr: a.max_mr.into(),
            max_pd: a.max_pd.into(),
            max_qp_rd_atom: a.max_qp_rd_atom.into(),
            max_qp_init_rd_atom: a.max_qp_init_rd_atom.into(),
            max_srq: a.max_srq.into(),
            max_srq_wr: a.max_srq_wr.min(limits::MAX_QP_WR).into(),
            max_srq_sge: a.max_srq_sge.into(),
            max_mw: a.max_mw.into(),
            max_xrcd: a.max_xrcd.into(),
            max_mcast_grp: a.max_mcast_grp.into(),
            max_mcast_qp_attach: a.max_mcast_qp_attach.into(),
            max_total_mcast_qp_attach: a.max_total_mcast_qp_attach.into(),
            max_fast_reg_page_list_len: a.max_fast_reg_page_list_len.into(),
            max_ah: a.max_ah.min(limits::MAX_AH).into(),
            max_res_rd_atom: a.max_qp_rd_atom.saturating_mul(a.max_qp).into(),
            atomic_cap: a.atomic_cap.into(),
            max_uar: limits::MAX_UAR.into(),
            max_pkeys: a.max_pkeys.into(),
            local_ca_ack_delay: a.local_ca_ack_delay,
            hca_core_clock: clock::KHZ.into(),
            max_cq_count: limits::MAX_CQ_COUNT.into(),
            max_cq_period: limits::MAX_CQ_PERIOD.into(),
            max_dm_size: limits::MAX_DM.into(),
            odp_caps: odp.general.into(),
            odp_rc: odp.rc.into(),
            odp_uc: odp.uc.into(),
            odp_ud: odp.ud.into(),
            odp_xrc: odp.xrc.into(),
            ..Default::default()
        }))
    }

    pub(super) fn query_port(mut self) -> Answer {
        let port = self.number()?;
        let living = self.session()?.context.violations();
        let violations = self.device.gate().counters().violations(living);
        let hca = self.device.hca().ok_or(Status(abi::STATUS_NO_HCA))?;
        let port = u8::try_from(port).map_err(|_| INVALID)?;
        let a = hca.query_port(self.cx, port)?;
        let active = a.state == rdma_midlayer::types::PortState::Active;
        Ok(bytes(&abi::PortAttr {
            max_msg_sz: a.max_msg_sz.into(),
            gid_tbl_len: a.gid_tbl_len.into(),
            // They wrap, as all counters here do.
            bad_pkey_cntr: (violations.pkey as u32).into(),
            qkey_viol_cntr: (violations.qkey as u32).into(),
            pkey_tbl_len: a.pkey_tbl_len.into(),
            state: a.state.code(),
            phys_state: if active { PHYS_LINK_UP } else { PHYS_DISABLED },
            max_mtu: a.max_mtu.code(),
            active_mtu: a.active_mtu.code(),
            active_width: a.active_width,
            active_speed: a.active_speed.into(),
            ..Default::default()
        }))
    }

    pub(super) fn query_clock(mut self) -> Answer {
        self.session()?;
        let (timestamp, wall_clock) = clock::both();
        Ok(bytes(&abi::ClockAnswer { timestamp: timestamp.into(), wall_clock: wall_clock.into() }))
    }

    pub(super) fn query_counters(self) -> Answer {
        let answer = match self.session {
            Some(session) => session.counters(),
            None => self.device.gate().counters().of_the_past(),
        };
        Ok(bytes(&answer))
    }
}
