// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Queue pairs: post, ring, and the way from RESET to RTS. Posting makes no system call unless the
//! device's worker sleeps, takes no lock and allocates nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_rdma_abi::control::{self, QpAttr};
use virtio_rdma_abi::ring::{QpDeviceLine, Sge};

use crate::driver::Driver;
use crate::error::{CommandError, Error, PostError};
use crate::mapping::full_fence;
use crate::memory::Buffer;
use crate::ring::WorkRing;
use crate::uar::{Doorbell, Freed, QpTable, Uar, is_polled};
use crate::wr::{SendWr, access};

const SQ_MODE: usize = std::mem::offset_of!(QpDeviceLine, sq_mode);
const RQ_MODE: usize = std::mem::offset_of!(QpDeviceLine, rq_mode);

/// What a QP is made with.
#[derive(Clone, Debug)]
pub struct QpOptions {
    /// Slots of the send queue, a power of two; 0 for none.
    pub sq_entries: u32,
    /// Slots of the receive queue, a power of two; 0 for none.
    pub rq_entries: u32,
    /// SGEs of a send WQE.
    pub max_send_sge: u32,
    /// SGEs of a receive WQE.
    pub max_recv_sge: u32,
    /// Bytes of inline data.
    pub max_inline: u32,
    /// `QP_TYPE_*`.
    pub qp_type: u8,
    /// `QP_FLAG_*`.
    pub flags: u8,
    /// XRC targets: number of the domain.
    pub xrcdn: u32,
    /// Number of the SRQ; then there is no receive queue of its own.
    pub srqn: Option<u32>,
    /// The UAR; the driver's own, if none is given.
    pub uar: Option<Uar>,
    /// Contiguous pages instead of scattered ones.
    pub contiguous: bool,
}

impl Default for QpOptions {
    fn default() -> Self {
        Self {
            sq_entries: 64,
            rq_entries: 64,
            max_send_sge: 4,
            max_recv_sge: 4,
            max_inline: 64,
            qp_type: control::QP_TYPE_RC,
            flags: 0,
            xrcdn: 0,
            srqn: None,
            uar: None,
            contiguous: false,
        }
    }
}

/// Where a peer finds a QP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpEndpoint {
    /// GID of the peer's port.
    pub gid: [u8; 16],
    /// MAC of the peer's port.
    pub mac: [u8; 6],
    /// QPN.
    pub qpn: u32,
}

/// Attributes of a reliable connection.
#[derive(Clone, Copy, Debug)]
pub struct RcOptions {
    /// Path MTU code: 1 = 256 to 5 = 4096.
    pub path_mtu: u8,
    /// PSN at which both sides start sending.
    pub psn: u32,
    /// 4.096 us * 2^n until a retry.
    pub timeout: u8,
    /// Retries after a time-out.
    pub retry_cnt: u8,
    /// Retries after RNR; 7 for no end.
    pub rnr_retry: u8,
    /// RNR timer code: 1 is 0.01 ms, 12 is 0.64 ms.
    pub min_rnr_timer: u8,
    /// READs outstanding, as requester and as responder.
    pub max_rd_atomic: u8,
    /// What the peer may do (`ACCESS_*`).
    pub access: u32,
    /// Entry of the GID table.
    pub sgid_index: u32,
}

impl Default for RcOptions {
    fn default() -> Self {
        Self {
            path_mtu: 5,
            psn: 0x00ff_fff0,
            timeout: 14,
            retry_cnt: 7,
            rnr_retry: 7,
            min_rnr_timer: 12,
            max_rd_atomic: 16,
            access: access::ALL,
            sgid_index: 0,
        }
    }
}

/// A queue pair. If it is dropped without `Driver::destroy_qp`, the device keeps it, and its memory
/// stays allocated, as after a crash of the process.
#[derive(Debug)]
pub struct Qp {
    qpn: u32,
    qp_type: u8,
    buffer: Buffer,
    send: WorkRing,
    recv: WorkRing,
    doorbell: Doorbell,
    table: Arc<QpTable>,
    driver: Driver,
    /// The state that the driver believes it to be in.
    state: u8,
    send_kicks: u64,
    recv_kicks: u64,
}

impl Qp {
    pub(crate) fn new(
        driver: &Driver,
        (qpn, qp_type): (u32, u8),
        buffer: Buffer,
        rings: (WorkRing, WorkRing),
        doorbell: Doorbell,
        table: Arc<QpTable>,
    ) -> Self {
        buffer.set_with_device(true);
        let (send, recv) = rings;
        Self {
            qpn,
            qp_type,
            buffer,
            send,
            recv,
            doorbell,
            table,
            driver: driver.clone(),
            state: control::QP_STATE_RESET,
            send_kicks: 0,
            recv_kicks: 0,
        }
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.qpn
    }

    /// Its memory, for hostile tests.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// The UAR and the slot in which it shows its work.
    pub fn uar_slot(&self) -> (&Uar, u32) {
        (&self.doorbell.uar, self.doorbell.slot)
    }

    /// The driver that made it.
    pub fn driver(&self) -> &Driver {
        &self.driver
    }

    #[inline(always)]
    fn freed(&self) -> Option<&Freed> {
        self.table.get(self.qpn)
    }

    #[inline(always)]
    fn sq_freed(&self) -> u32 {
        self.freed().map_or(0, |freed| freed.sq.load(Ordering::Acquire))
    }

    #[inline(always)]
    fn rq_freed(&self) -> u32 {
        self.freed().map_or(0, |freed| freed.rq.load(Ordering::Acquire))
    }

    /// Posts a send work request (`ibv_post_send` of one).
    #[inline]
    pub fn post_send(&mut self, wr: &SendWr<'_>) -> Result<(), PostError> {
        self.put_send(wr)?;
        self.ring_send();
        Ok(())
    }

    /// Posts send work requests with one look at the mode word. On an error, those before the bad
    /// one are posted.
    #[inline]
    pub fn post_sends(&mut self, wrs: &[SendWr<'_>]) -> Result<(), PostError> {
        let result = wrs.iter().try_for_each(|wr| self.put_send(wr));
        self.ring_send();
        result
    }

    /// Writes a send WQE and does not look whether the device wants to be told (`ring_send`).
    #[inline]
    pub fn put_send(&mut self, wr: &SendWr<'_>) -> Result<(), PostError> {
        if self.state < control::QP_STATE_RTS {
            return Err(PostError::State);
        }
        let freed = self.sq_freed();
        self.send.put_send(&self.buffer, freed, wr)
    }

    /// Posts a receive work request.
    #[inline]
    pub fn post_recv(&mut self, wr_id: u64, sges: &[Sge]) -> Result<(), PostError> {
        self.put_recv(wr_id, sges)?;
        self.ring_recv();
        Ok(())
    }

    /// Writes a receive WQE and does not look whether the device wants to be told (`ring_recv`).
    #[inline]
    pub fn put_recv(&mut self, wr_id: u64, sges: &[Sge]) -> Result<(), PostError> {
        if self.state == control::QP_STATE_RESET {
            return Err(PostError::State);
        }
        let freed = self.rq_freed();
        self.recv.put_recv(&self.buffer, freed, wr_id, sges)
    }

    /// The end of a post: fence, mode word, and the doorbell if it must be.
    #[inline]
    pub fn ring_send(&mut self) {
        full_fence();
        let mode = self.buffer.map().u32(SQ_MODE).load(Ordering::Relaxed);
        if !is_polled(mode) && self.doorbell.ring(mode) {
            self.send_kicks += 1;
        }
    }

    /// As `ring_send`, for the receive queue.
    #[inline]
    pub fn ring_recv(&mut self) {
        full_fence();
        let mode = self.buffer.map().u32(RQ_MODE).load(Ordering::Relaxed);
        if !is_polled(mode) && self.doorbell.ring(mode) {
            self.recv_kicks += 1;
        }
    }

    /// Writes the bytes of a send WQE as they are (the phase apart) and rings. Whether there is
    /// room, and what state the QP is in, is not checked.
    pub fn post_send_raw(&mut self, wqe: &[u8]) {
        self.send.put_raw(&self.buffer, wqe);
        self.ring_send();
    }

    /// As `post_send_raw`, for the receive queue.
    pub fn post_recv_raw(&mut self, wqe: &[u8]) {
        self.recv.put_raw(&self.buffer, wqe);
        self.ring_recv();
    }

    /// Bytes from the start of the buffer to the slot of send WQE number `n`, and its stride.
    pub fn send_slot(&self, n: u32) -> (usize, usize) {
        (self.send.slot_offset(n), self.send.stride())
    }

    /// Bytes from the start of the buffer to the slot of receive WQE number `n`, and its stride.
    pub fn recv_slot(&self, n: u32) -> (usize, usize) {
        (self.recv.slot_offset(n), self.recv.stride())
    }

    /// Free-running counts of WQEs posted: send, receive.
    pub fn posted(&self) -> (u32, u32) {
        (self.send.posted, self.recv.posted)
    }

    /// Doorbells written so far: by posts of sends, of receives.
    pub fn kicks(&self) -> (u64, u64) {
        (self.send_kicks, self.recv_kicks)
    }

    /// The mode words: send queue, receive queue.
    pub fn modes(&self) -> (u32, u32) {
        (self.buffer.load_u32(SQ_MODE), self.buffer.load_u32(RQ_MODE))
    }

    /// The state that the driver believes it to be in (`Driver::query_qp` asks the device).
    pub fn state(&self) -> u8 {
        self.state
    }

    /// Lets posts through as if the QP were in that state, for hostile tests.
    pub fn pretend_state(&mut self, state: u8) {
        self.state = state;
    }

    /// MODIFY_QP. A change to RESET zeroes the rings and starts the counts over; the caller has
    /// taken this QP's completions out of its CQs (`Cq::clean`).
    pub fn modify(&mut self, mask: u32, attr: &QpAttr) -> Result<(), CommandError> {
        self.driver.modify_qp(self.qpn, mask, attr)?;
        if mask & control::QP_ATTR_STATE != 0 {
            self.state = attr.qp_state;
            if self.state == control::QP_STATE_RESET {
                self.send.restart(&self.buffer);
                self.recv.restart(&self.buffer);
                self.table.start(self.qpn);
            }
        }
        Ok(())
    }

    /// MODIFY_QP of the state alone: to ERR, RESET, SQD, or from SQD to RTS.
    pub fn modify_state(&mut self, state: u8) -> Result<(), CommandError> {
        self.modify(control::QP_ATTR_STATE, &QpAttr { qp_state: state, ..QpAttr::default() })
    }

    /// RESET to INIT.
    pub fn to_init(&mut self, options: &RcOptions) -> Result<(), CommandError> {
        let attr = QpAttr {
            qp_state: control::QP_STATE_INIT,
            port: 1,
            access: options.access.into(),
            ..QpAttr::default()
        };
        let mask = control::QP_ATTR_STATE
            | control::QP_ATTR_PKEY_INDEX
            | control::QP_ATTR_PORT
            | control::QP_ATTR_ACCESS_FLAGS;
        self.modify(mask, &attr)
    }

    /// INIT to RTR.
    pub fn to_rtr(&mut self, peer: &QpEndpoint, options: &RcOptions) -> Result<(), CommandError> {
        let mut attr = QpAttr {
            qp_state: control::QP_STATE_RTR,
            path_mtu: options.path_mtu,
            dest_qpn: peer.qpn.into(),
            rq_psn: options.psn.into(),
            max_dest_rd_atomic: options.max_rd_atomic,
            min_rnr_timer: options.min_rnr_timer,
            ..QpAttr::default()
        };
        attr.av.dgid = peer.gid;
        attr.av.dmac = peer.mac;
        attr.av.sgid_index = options.sgid_index.into();
        attr.av.vlan = 0xffff.into();
        attr.av.hop_limit = 64;
        attr.av.port = 1;
        let mut mask = control::QP_ATTR_STATE
            | control::QP_ATTR_AV
            | control::QP_ATTR_PATH_MTU
            | control::QP_ATTR_DEST_QPN
            | control::QP_ATTR_RQ_PSN;
        if matches!(self.qp_type, control::QP_TYPE_RC | control::QP_TYPE_XRC_TGT) {
            mask |= control::QP_ATTR_MAX_DEST_RD_ATOMIC | control::QP_ATTR_MIN_RNR_TIMER;
        }
        self.modify(mask, &attr)
    }

    /// RTR to RTS.
    pub fn to_rts(&mut self, options: &RcOptions) -> Result<(), CommandError> {
        let attr = QpAttr {
            qp_state: control::QP_STATE_RTS,
            timeout: options.timeout,
            retry_cnt: options.retry_cnt,
            rnr_retry: options.rnr_retry,
            sq_psn: options.psn.into(),
            max_rd_atomic: options.max_rd_atomic,
            ..QpAttr::default()
        };
        let mut mask = control::QP_ATTR_STATE | control::QP_ATTR_SQ_PSN;
        if self.qp_type == control::QP_TYPE_XRC_TGT {
            mask |= control::QP_ATTR_TIMEOUT;
        }
        if matches!(self.qp_type, control::QP_TYPE_RC | control::QP_TYPE_XRC_INI) {
            mask |= control::QP_ATTR_TIMEOUT
                | control::QP_ATTR_RETRY_CNT
                | control::QP_ATTR_RNR_RETRY
                | control::QP_ATTR_MAX_QP_RD_ATOMIC;
        }
        self.modify(mask, &attr)
    }

    /// From RESET to RTS, connected to a peer.
    pub fn connect(&mut self, peer: &QpEndpoint, options: &RcOptions) -> Result<(), CommandError> {
        self.to_init(options)?;
        self.to_rtr(peer, options)?;
        self.to_rts(options)
    }

    /// A UD QP from RESET to RTS.
    pub fn to_rts_datagram(&mut self, qkey: u32, psn: u32) -> Result<(), CommandError> {
        let attr = QpAttr {
            qp_state: control::QP_STATE_INIT,
            port: 1,
            qkey: qkey.into(),
            ..QpAttr::default()
        };
        let mask = control::QP_ATTR_STATE
            | control::QP_ATTR_PKEY_INDEX
            | control::QP_ATTR_PORT
            | control::QP_ATTR_QKEY;
        self.modify(mask, &attr)?;
        self.modify_state(control::QP_STATE_RTR)?;
        let attr =
            QpAttr { qp_state: control::QP_STATE_RTS, sq_psn: psn.into(), ..QpAttr::default() };
        self.modify(control::QP_ATTR_STATE | control::QP_ATTR_SQ_PSN, &attr)
    }

    /// Where a peer finds it.
    pub fn endpoint(&self) -> QpEndpoint {
        let gid = self.driver.gid();
        QpEndpoint { gid: gid.gid, mac: gid.mac, qpn: self.qpn }
    }
}

/// Connects two QPs, of one VM or of two, from RESET to RTS.
pub fn connect_rc(a: &mut Qp, b: &mut Qp, options: &RcOptions) -> Result<(), Error> {
    let (at_a, at_b) = (a.endpoint(), b.endpoint());
    a.to_init(options)?;
    b.to_init(options)?;
    a.to_rtr(&at_b, options)?;
    b.to_rtr(&at_a, options)?;
    a.to_rts(options)?;
    b.to_rts(options)?;
    Ok(())
}
