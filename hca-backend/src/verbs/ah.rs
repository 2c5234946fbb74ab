// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Address handles. A tenant's is plain data; the host's, which may take a system call, is made by the
//! driver's thread. Requests that come before it is there wait where they are: the queue is full.

use std::sync::{Arc, OnceLock, Weak};

use rdma_midlayer::attr::AhAttr;
use rdma_midlayer::driver::{AhDriver, SendReady};
use rdma_midlayer::{Error, MaySleep, Result};

use super::context::Context;
use super::engine::Job;
use super::ffi::{ibv_ah, ibv_ah_attr, ibv_global_route};
use super::host::{HostAh, HostPd, raw_gid};
use super::pd::Pd;
use crate::soft::spin::SpinLock;

/// What makes two paths the same.
pub(crate) type Key = ([u8; 16], [u32; 2], [u8; 6], Option<u16>, [u8; 4]);

pub(crate) fn key(a: &AhAttr) -> Key {
    let bytes = [a.hop_limit, a.traffic_class, a.sl, a.static_rate];
    (a.dgid.0, [a.sgid_index, a.flow_label], a.dmac, a.vlan, bytes)
}

/// A path, and the host's address handle for it once there is one. It lives as long as its PD, since
/// the HCA may still use it for requests that it has.
pub(crate) struct Path {
    attr: AhAttr,
    context: Weak<Context>,
    pd: Weak<HostPd>,
    host: OnceLock<Result<HostAh>>,
    waiting: SpinLock<Vec<Arc<dyn SendReady>>>,
}

impl Path {
    /// A path whose handle is still to be made.
    pub(crate) fn new(attr: AhAttr, context: &Arc<Context>, pd: &Arc<HostPd>) -> Arc<Self> {
        Arc::new(Self {
            attr,
            context: Arc::downgrade(context),
            pd: Arc::downgrade(pd),
            host: OnceLock::new(),
            waiting: SpinLock::new(Vec::new()),
        })
    }

    /// The host's handle. None: not yet; `waiter` is told when to try again.
    pub(crate) fn host(&self, waiter: Option<&Arc<dyn SendReady>>) -> Option<Result<*mut ibv_ah>> {
        let made = |made: &Result<HostAh>| made.as_ref().map(HostAh::as_ptr).map_err(|e| *e);
        if let Some(host) = self.host.get() {
            return Some(made(host));
        }
        let mut waiting = self.waiting.lock();
        if let Some(host) = self.host.get() {
            return Some(made(host));
        }
        if let Some(waiter) = waiter
            && !waiting.iter().any(|w| Arc::ptr_eq(w, waiter))
        {
            waiting.push(waiter.clone());
        }
        None
    }

    /// Makes the host's handle, unless it is there. May sleep.
    pub(crate) fn make(&self, _cx: &MaySleep) {
        if self.host.get().is_none() {
            let made = self.try_make();
            if let Err(e) = &made {
                log::warn!("address handle to {}: {e}", self.attr.dgid);
            }
            let _ = self.host.set(made);
        }
        let waiting = std::mem::take(&mut *self.waiting.lock());
        waiting.iter().for_each(|waiter| waiter.send_ready());
    }

    fn try_make(&self) -> Result<HostAh> {
        let (context, pd) = self.context.upgrade().zip(self.pd.upgrade()).ok_or(Error::Gone)?;
        context.hca().count_ah();
        pd.create_ah(&host_path(&context, &self.attr)?)
    }
}

/// A path in the host's terms: its own GID table, and the peer as the wire knows it. May sleep.
pub(crate) fn host_path(context: &Context, attr: &AhAttr) -> Result<ibv_ah_attr> {
    let hca = context.hca();
    let own = context.gid(attr.sgid_index).ok_or(Error::Invalid("no GID at this index"))?;
    let peer = hca.gids.physical(context.network(), attr.dgid);
    Ok(ibv_ah_attr {
        grh: ibv_global_route {
            dgid: raw_gid(&peer),
            flow_label: attr.flow_label,
            sgid_index: hca.gid_index(context.network(), own)?,
            hop_limit: if attr.hop_limit == 0 { 64 } else { attr.hop_limit },
            traffic_class: attr.traffic_class,
        },
        dlid: 0,
        sl: attr.sl,
        src_path_bits: 0,
        static_rate: attr.static_rate,
        is_global: 1,
        port_num: hca.host.port(),
    })
}

/// A tenant's address handle.
pub(crate) struct Ah {
    pd: Arc<Pd>,
    path: SpinLock<Arc<Path>>,
}

impl Ah {
    pub(crate) fn create(pd: &Arc<Pd>, attr: &AhAttr) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { path: SpinLock::new(pd.path(attr)?), pd: pd.clone() }))
    }

    pub(crate) fn path(&self) -> Arc<Path> {
        self.path.lock().clone()
    }
}

/// Has the driver's thread make a new path's handle.
pub(crate) fn order(context: &Context, path: &Arc<Path>) {
    context.hca().engine.submit(Job::MakeAh(path.clone()));
}

impl AhDriver for Ah {
    fn modify(&self, attr: &AhAttr) -> Result<()> {
        let new = self.pd.path(attr)?;
        let old = std::mem::replace(&mut *self.path.lock(), new);
        drop(old);
        Ok(())
    }

    fn query(&self) -> Result<AhAttr> {
        Ok(self.path.lock().attr)
    }

    fn destroy(&self) -> Result<()> {
        Ok(())
    }
}
