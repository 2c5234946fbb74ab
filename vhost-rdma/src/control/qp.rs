// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QPs: their rings' geometry, their attributes, their states.

use std::sync::Arc;

use rdma_midlayer::attr::{QpAttr, QpAttrMask, QpCap};
use rdma_midlayer::driver::RecvSource;
use rdma_midlayer::rcu;
use rdma_midlayer::types::{Access, Mtu, Psn, QpState, QpType, Qpn};
use rdma_midlayer::verbs::QpSpec;
use virtio_rdma_abi::control as abi;
use virtio_rdma_abi::ring::{QP_RINGS_OFFSET, Sge, WQE_RECV_DATA, WQE_SEND_DATA, XrcArgs};

use super::memory::page_bytes;
use super::{
    Answer, BUSY, Call, INVALID, NO_OBJECT, NO_RESOURCES, NOT_PERMITTED, Status, UNSUPPORTED,
};
use super::{bytes, number_answer};
use crate::ah::{self, AhCache, NO_VLAN};
use crate::device::limits;
use crate::door::Slot;
use crate::qp::{Names, QpPath, QpRings};
use crate::ring::Geometry;
use crate::ring::recv::RecvRing;
use crate::ring::send::SendRing;
use crate::session::{PdObject, QpObject};

const SGE_BYTES: u32 = size_of::<Sge>() as u32;
const XRC_BYTES: u32 = size_of::<XrcArgs>() as u32;

impl Call<'_> {
    pub(super) fn create_qp(mut self) -> Answer {
        let r: abi::CreateQpRequest = self.request()?;
        let (cx, device) = (self.cx, self.device);
        let memory = device.memory();
        let qp_type = QpType::from_code(r.qp_type).ok_or(INVALID)?;
        let target = match qp_type {
            QpType::XrcTgt => Some(self.nobodys()?),
            _ => None,
        };
        let session = self.session()?;
        let (pd, kernel_only, send_cq, recv_cq) = match target {
            Some((pd, cq)) => (pd, false, cq.clone(), cq),
            None => {
                let PdObject { pd, kernel_only } =
                    session.pds.get(&r.pdn.get()).ok_or(NO_OBJECT)?;
                let cq = |cqn| session.cqs.get(&cqn).map(|found| found.cq.clone()).ok_or(NO_OBJECT);
                let send_cq = cq(r.send_cqn.get())?;
                let recv_cq = match qp_type {
                    QpType::XrcIni => send_cq.clone(),
                    _ => cq(r.recv_cqn.get())?,
                };
                (pd.clone(), *kernel_only, send_cq, recv_cq)
            }
        };
        let xrcd = Self::xrcd(session, r.xrcdn.get())?;
        let (uar, slot) = session.free_slot(r.uarn.get(), r.slot.get())?;
        let srq = match r.srqn.get() {
            abi::NO_SRQ => None,
            srqn => Some(session.srqs.get(&srqn).ok_or(NO_OBJECT)?.path.srq().clone()),
        };
        let xrc = matches!(qp_type, QpType::XrcIni | QpType::XrcTgt);
        let privileged = r.flags & abi::QP_FLAG_KERNEL != 0;
        let block_self_mcast = r.flags & abi::QP_FLAG_BLOCK_SELF_MCAST != 0;
        const FLAGS: u8 =
            abi::QP_FLAG_KERNEL | abi::QP_FLAG_SIGNAL_ALL | abi::QP_FLAG_BLOCK_SELF_MCAST;
        if r.flags & !FLAGS != 0
            || (block_self_mcast && qp_type != QpType::Ud)
            || (srq.is_some() && r.rq_entries.get() != 0)
            || !is_xrc_sound(&r, qp_type)
        {
            return Err(INVALID);
        }
        if (kernel_only || qp_type == QpType::Gsi) && !privileged {
            return Err(NOT_PERMITTED);
        }
        if session.qps.len() >= limits::MAX_QP as usize {
            return Err(NO_RESOURCES);
        }
        let datagrams = matches!(qp_type, QpType::Ud | QpType::Gsi);
        let ahs = match (&session.ahs, datagrams) {
            (_, false) => None,
            (Some(table), true) => Some(AhCache::new(table.clone(), pd.clone(), r.pdn.get())),
            (None, true) => return Err(Status(abi::STATUS_BAD_STATE)),
        };
        let buffer = Arc::new(memory.resolve(&r.pages, 0, 0, page_bytes(&r.pages)?)?);
        let (send, recv) = rings(&r, buffer.len())?;
        let (max_send_sge, max_inline) = (r.max_send_sge.get(), r.max_inline.get());
        let send = send.map(|g| SendRing::new(&buffer, g, max_send_sge, max_inline).ok_or(INVALID));
        let recv = recv.map(|g| RecvRing::new(&buffer, g, r.max_recv_sge.get()).ok_or(INVALID));
        let (send, recv) = (send.transpose()?, recv.transpose()?);
        let vector = (slot % u32::from(session.vectors)) as u16;
        let poller = session.homes.of_vector(vector).index();
        let rings = QpRings::new(
            buffer.clone(),
            send,
            recv,
            device.gate().clone(),
            session.homes.clone(),
            vector,
            Names {
                ahs,
                fast: privileged.then(|| session.fast.clone()),
                xrc: qp_type == QpType::XrcIni,
            },
        );
        let qp = pd.create_qp(
            cx,
            QpSpec {
                qp_type,
                cap: QpCap {
                    max_send_wr: r.sq_entries.get(),
                    max_recv_wr: r.rq_entries.get(),
                    max_send_sge: r.max_send_sge.get(),
                    max_recv_sge: r.max_recv_sge.get(),
                    max_inline: r.max_inline.get(),
                },
                signal_all: r.flags & abi::QP_FLAG_SIGNAL_ALL != 0,
                privileged,
                poller,
                recv_source: (srq.is_none() && !xrc).then(|| rings.clone() as Arc<dyn RecvSource>),
                send_ready: Some(rings.clone()),
                send_cq,
                recv_cq,
                srq,
                xrcd,
                block_self_mcast,
            },
        )?;
        let qpn = qp.qpn().0;
        let path = QpPath::new(rings, qp);
        path.reset();
        if uar.slots().insert(slot as usize, Arc::new(Slot::Qp(path.clone()))).is_err() {
            let _ = path.qp().destroy(cx);
            return Err(BUSY);
        }
        let process_pdn = (!privileged && qp_type != QpType::XrcTgt).then_some(r.pdn.get());
        session.qps.insert(qpn, QpObject { path, uar, slot, process_pdn });
        number_answer(qpn)
    }

    pub(super) fn modify_qp(mut self) -> Answer {
        let request: abi::ModifyQpRequest = self.request()?;
        let cx = self.cx;
        let session = self.session()?;
        let path = &session.qps.get(&request.qpn.get()).ok_or(NO_OBJECT)?.path;
        let mask = QpAttrMask(request.attr_mask.get());
        let attr = from_abi(&request.attr, mask)?;
        let to_reset = mask.contains(QpAttrMask::STATE) && attr.state == QpState::Reset;
        if to_reset {
            path.close();
            rcu::synchronize(cx);
        }
        let modified = path.qp().modify(cx, &attr, mask);
        match (&modified, to_reset) {
            (Ok(()), true) => path.reset(),
            _ => path.open(),
        }
        // What was posted in a state that did not take it, or must be flushed now, is looked at. In INIT
        // and RTR there is nothing to be sent.
        let stays = mask.contains(QpAttrMask::STATE)
            && matches!(attr.state, QpState::Init | QpState::Rtr | QpState::Reset);
        if modified.is_err() || !stays {
            path.attend();
        }
        modified.map(|()| Vec::new()).map_err(|e| {
            log::debug!("QP {:#x}: {e}", request.qpn.get());
            Status::from(e)
        })
    }

    pub(super) fn query_qp(mut self) -> Answer {
        let number = self.number()?;
        let cx = self.cx;
        let session = self.session()?;
        let attr = session.qps.get(&number).ok_or(NO_OBJECT)?.path.qp().query(cx)?;
        Ok(bytes(&to_abi(&attr)))
    }

    pub(super) fn destroy_qp(mut self) -> Answer {
        let number = self.number()?;
        let cx = self.cx;
        self.session()?.end_qp(cx, number).ok_or(NO_OBJECT)??;
        Ok(Vec::new())
    }
}

/// What the halves of an extended reliable connection have and have not.
fn is_xrc_sound(r: &abi::CreateQpRequest, qp_type: QpType) -> bool {
    let (sends, receives) = (r.sq_entries.get() > 0, r.rq_entries.get() > 0);
    match qp_type {
        QpType::XrcIni => !receives && r.srqn.get() == abi::NO_SRQ && r.xrcdn.get() == 0,
        QpType::XrcTgt => !sends && !receives && r.srqn.get() == abi::NO_SRQ && r.xrcdn.get() != 0,
        _ => r.xrcdn.get() == 0,
    }
}

/// The rings of a request, if they are sound and do not overlap each other or the device's line.
fn rings(
    r: &abi::CreateQpRequest,
    bytes: u64,
) -> Result<(Option<Geometry>, Option<Geometry>), Status> {
    let ring = |entries: u32, offset: u32, stride_shift: u8, fixed: u32, payload: u32| {
        if entries == 0 {
            return Ok(None);
        }
        let geometry = Geometry { entries, offset, stride_shift };
        let fits = geometry.is_sound(QP_RINGS_OFFSET, bytes, limits::MAX_QP_WR)
            && fixed.saturating_add(payload) <= 1 << stride_shift;
        fits.then_some(Some(geometry)).ok_or(INVALID)
    };
    let send_sge = r.max_send_sge.get();
    let recv_sge = r.max_recv_sge.get();
    if send_sge > limits::MAX_SGE || recv_sge > limits::MAX_SGE {
        return Err(INVALID);
    }
    let payload = (send_sge * SGE_BYTES).max(r.max_inline.get());
    // The last bytes of a slot name the SRQ.
    let payload = match r.qp_type {
        abi::QP_TYPE_XRC_INI => payload.saturating_add(XRC_BYTES),
        _ => payload,
    };
    let send =
        ring(r.sq_entries.get(), r.sq_offset.get(), r.sq_stride_shift, WQE_SEND_DATA, payload)?;
    let recv = ring(
        r.rq_entries.get(),
        r.rq_offset.get(),
        r.rq_stride_shift,
        WQE_RECV_DATA,
        recv_sge * SGE_BYTES,
    )?;
    if let (Some(s), Some(r)) = (send, recv) {
        let (s, r) = (s.range(), r.range());
        if s.start < r.end && r.start < s.end {
            return Err(INVALID);
        }
    }
    Ok((send, recv))
}

fn from_abi(a: &abi::QpAttr, mask: QpAttrMask) -> Result<QpAttr, Status> {
    // A code that the mask does not select may be anything.
    let state = |code: u8, bit: QpAttrMask| match QpState::from_code(code) {
        Some(state) => Ok(state),
        None if !mask.contains(bit) => Ok(QpState::Reset),
        None => Err(INVALID),
    };
    let path_mtu = match Mtu::from_code(a.path_mtu) {
        Some(mtu) => mtu,
        None if !mask.contains(QpAttrMask::PATH_MTU) => Mtu::Mtu1024,
        None => return Err(INVALID),
    };
    if mask.0 & (0x4000 | 0x4_0000 | 0x8_0000) != 0 {
        return Err(UNSUPPORTED);
    }
    Ok(QpAttr {
        state: state(a.qp_state, QpAttrMask::STATE)?,
        cur_state: state(a.cur_qp_state, QpAttrMask::CUR_STATE)?,
        path_mtu,
        port: a.port,
        qkey: a.qkey.get(),
        rq_psn: Psn::new(a.rq_psn.get()),
        sq_psn: Psn::new(a.sq_psn.get()),
        dest_qpn: Qpn(a.dest_qpn.get()),
        access: Access(a.access.get()),
        ah: ah::path(&a.av),
        pkey_index: a.pkey_index.get(),
        max_rd_atomic: a.max_rd_atomic,
        max_dest_rd_atomic: a.max_dest_rd_atomic,
        min_rnr_timer: a.min_rnr_timer,
        timeout: a.timeout,
        retry_cnt: a.retry_cnt,
        rnr_retry: a.rnr_retry,
        sq_draining: a.sq_draining != 0,
    })
}

fn to_abi(a: &QpAttr) -> abi::QpAttr {
    abi::QpAttr {
        qp_state: a.state.code(),
        cur_qp_state: a.cur_state.code(),
        path_mtu: a.path_mtu.code(),
        port: a.port,
        qkey: a.qkey.into(),
        rq_psn: a.rq_psn.get().into(),
        sq_psn: a.sq_psn.get().into(),
        dest_qpn: a.dest_qpn.0.into(),
        access: a.access.0.into(),
        av: abi::AddressVector {
            dgid: a.ah.dgid.0,
            sgid_index: a.ah.sgid_index.into(),
            flow_label: a.ah.flow_label.into(),
            dmac: a.ah.dmac,
            vlan: a.ah.vlan.unwrap_or(NO_VLAN).into(),
            hop_limit: a.ah.hop_limit,
            traffic_class: a.ah.traffic_class,
            sl: a.ah.sl,
            static_rate: a.ah.static_rate,
            port: a.ah.port,
            reserved: [0; 3],
        },
        pkey_index: a.pkey_index.into(),
        max_rd_atomic: a.max_rd_atomic,
        max_dest_rd_atomic: a.max_dest_rd_atomic,
        min_rnr_timer: a.min_rnr_timer,
        timeout: a.timeout,
        retry_cnt: a.retry_cnt,
        rnr_retry: a.rnr_retry,
        sq_draining: u8::from(a.sq_draining),
        reserved: [0; 7],
    }
}
