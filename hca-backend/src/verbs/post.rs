// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Send requests in the host's form: how one is made of the consumer's, and the stage where they wait
//! for the driver's thread if the provider's post enters the kernel.

use std::ptr::null_mut;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use rdma_midlayer::driver::{AhDriver, SendReady};
use rdma_midlayer::rcu::Guard;
use rdma_midlayer::types::{QpType, WrOpcode};
use rdma_midlayer::work::{MAX_SGE, MwBind, SendData, SendFlags, SendWr};
use rdma_midlayer::{Error, Result};

use super::ah::{Ah, Path};
use super::ffi::*;
use super::pd::{Bound, Pd};
use super::queue::WorkQueue;

/// SGEs of a host's request: those of a consumer's, some of them split where regions of memory meet.
pub(crate) const HOST_SGE: usize = MAX_SGE + 2;

/// A request in the host's form. Its list is beside it.
pub(crate) struct Prepared {
    pub(crate) wr: ibv_send_wr,
    /// SGEs in the list; with inline data, one that points to the consumer's bytes.
    pub(crate) num_sge: usize,
    pub(crate) path: Option<Arc<Path>>,
    /// Of a datagram: the peer's QPN, and its Q_Key.
    pub(crate) peer: (u32, u32),
    /// What a bind names: looked up when it is posted.
    pub(crate) bind: Option<MwBind>,
}

/// A request of nothing.
pub(crate) fn empty_wr() -> ibv_send_wr {
    ibv_send_wr {
        wr_id: 0,
        next: null_mut(),
        sg_list: null_mut(),
        num_sge: 0,
        opcode: WrOpcode::Send.code().into(),
        send_flags: 0,
        imm_data: 0,
        wr: wr_target { atomic: wr_atomic { remote_addr: 0, compare_add: 0, swap: 0, rkey: 0 } },
        xrc_remote_srqn: 0,
        bind_mw: wr_bind_mw {
            mw: null_mut(),
            rkey: 0,
            bind_info: ibv_mw_bind_info { mr: null_mut(), addr: 0, length: 0, mw_access_flags: 0 },
        },
    }
}

/// Puts a request into the host's form; `sges` has room for `HOST_SGE`, `max_sge` is what the host's QP
/// takes, `queue` where it is about to be posted. Never sleeps.
///
/// # Errors
/// `QueueFull` if it has to wait for memory to be pinned; `Invalid` or `Unsupported` for what makes no sense.
#[inline]
pub(crate) fn prepare(
    pd: &Pd,
    qp_type: QpType,
    queue: &WorkQueue,
    wr: &SendWr<'_>,
    sges: &mut [ibv_sge],
    max_sge: usize,
    guard: &Guard,
) -> Result<Prepared> {
    let mut host = empty_wr();
    host.opcode = wr.opcode.code().into();
    // Which of the peer's keys to invalidate comes where immediate data would; which of our own, where
    // the peer's key would.
    host.imm_data = if wr.opcode == WrOpcode::LocalInv { wr.rkey.0 } else { wr.imm };
    // The first three flags are the library's.
    let known = SendFlags::FENCE.0 | SendFlags::SIGNALED.0 | SendFlags::SOLICITED.0;
    host.send_flags = u32::from(wr.flags.0 & known);
    let mut bind = None;
    let num_sge = match wr.data {
        SendData::Sges(list) => {
            let room = &mut sges[..max_sge.min(HOST_SGE)];
            let translated = pd.translate(list, room, queue, guard)?;
            translated.unwrap_or_else(|| {
                sges[0] = pd.context().hca().poison.sge();
                1
            })
        }
        SendData::Inline([]) => 0,
        SendData::Inline(bytes) => {
            host.send_flags |= SEND_INLINE;
            sges[0] = ibv_sge { addr: bytes.as_ptr() as u64, length: bytes.len() as u32, lkey: 0 };
            1
        }
        SendData::Bind(wanted) => {
            bind = Some(*wanted);
            0
        }
        SendData::Reg(_) => return Err(Error::Unsupported("fast registration through verbs")),
        SendData::Flush(_) => return Err(Error::Unsupported("FLUSH through verbs")),
    };
    if (wr.opcode == WrOpcode::BindMw) != bind.is_some() {
        return Err(Error::Invalid("a bind without a window"));
    }
    let (mut path, mut peer) = (None, (0, 0));
    match wr.opcode {
        WrOpcode::RegMr => return Err(Error::Unsupported("fast registration through verbs")),
        WrOpcode::Flush | WrOpcode::AtomicWrite => {
            return Err(Error::Unsupported("FLUSH and atomic write through verbs"));
        }
        WrOpcode::AtomicCmpAndSwp | WrOpcode::AtomicFetchAndAdd => {
            host.wr.atomic = wr_atomic {
                remote_addr: wr.remote_addr,
                compare_add: wr.compare_add,
                swap: wr.swap,
                rkey: wr.rkey.0,
            };
        }
        _ if qp_type == QpType::Ud => {
            let ud = wr.ud.ok_or(Error::Invalid("a datagram without a destination"))?;
            let ah: &dyn AhDriver = ud.ah;
            let ah: &dyn std::any::Any = ah;
            let ah = ah.downcast_ref::<Ah>().ok_or(Error::Invalid("an AH of another driver"))?;
            peer = (ud.qpn.0, ud.qkey);
            path = Some(ah.path());
        }
        _ => host.wr.rdma = wr_rdma { remote_addr: wr.remote_addr, rkey: wr.rkey.0 },
    }
    Ok(Prepared { wr: host, num_sge, path, peer, bind })
}

/// A request on the stage: all that it needs is its own.
pub(crate) struct Staged {
    pub(crate) prepared: Prepared,
    pub(crate) sges: [ibv_sge; HOST_SGE],
    pub(crate) inline: Vec<u8>,
}

/// Requests that wait for the driver's thread, in order; made beforehand, so that staging allocates
/// nothing.
pub(crate) struct Stage {
    free: ArrayQueue<Box<Staged>>,
    ready: ArrayQueue<Box<Staged>>,
}

impl Stage {
    pub(crate) fn new(count: usize, max_inline: usize) -> Self {
        let stage = Self { free: ArrayQueue::new(count), ready: ArrayQueue::new(count) };
        for _ in 0..count {
            let prepared =
                Prepared { wr: empty_wr(), num_sge: 0, path: None, peer: (0, 0), bind: None };
            let staged = Staged {
                prepared,
                sges: [ibv_sge::default(); HOST_SGE],
                inline: Vec::with_capacity(max_inline),
            };
            let _ = stage.free.push(Box::new(staged));
        }
        stage
    }

    /// An empty place; none if all are taken.
    pub(crate) fn place(&self) -> Option<Box<Staged>> {
        self.free.pop()
    }

    /// Gives a place back.
    pub(crate) fn give_back(&self, mut staged: Box<Staged>) {
        staged.prepared.path = None;
        staged.prepared.bind = None;
        let _ = self.free.push(staged);
    }

    /// Next in line for the thread. One caller at a time.
    pub(crate) fn push(&self, staged: Box<Staged>) {
        let _ = self.ready.push(staged);
    }

    pub(crate) fn pop(&self) -> Option<Box<Staged>> {
        self.ready.pop()
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}

/// Names a bind's objects in the request. They are to be kept during the post and no longer.
///
/// # Errors
/// There are none of these names, or they don't go together.
pub(crate) fn resolve_bind(pd: &Pd, wr: &mut ibv_send_wr, bind: &MwBind) -> Result<Bound> {
    let bound = pd.bound(bind)?;
    wr.bind_mw =
        wr_bind_mw { mw: bound.mw.as_ptr(), rkey: bind.rkey.0, bind_info: bound.info(bind) };
    Ok(bound)
}

/// The host's address handle of a path. None: not yet.
pub(crate) fn resolve(
    prepared: &mut Prepared,
    waiter: Option<&Arc<dyn SendReady>>,
) -> Option<Result<()>> {
    let Some(path) = &prepared.path else { return Some(Ok(())) };
    match path.host(waiter)? {
        Ok(ah) => {
            let (remote_qpn, remote_qkey) = prepared.peer;
            prepared.wr.wr.ud = wr_ud { ah, remote_qpn, remote_qkey };
            Some(Ok(()))
        }
        Err(e) => Some(Err(e)),
    }
}
