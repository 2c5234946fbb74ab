// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What all objects of a verbs HCA share: the host's device, its limits, the tables by which
//! completions and events find their objects, and what tells that the device is gone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use rdma_midlayer::driver::{AsyncEvent, EventSink};
use rdma_midlayer::rcu::{Guard, Table};
use rdma_midlayer::types::Gid;
use rdma_midlayer::{Error, MaySleep, Result};

use super::context::Context;
use super::engine::Engine;
use super::ffi::{self, ibv_sge};
use super::gids::GidMap;
use super::host::{Host, HostEvent, HostMr, HostPd};
use super::on_use::Pins;
use super::queue::{INDEX_BITS, WorkQueue};
use super::{Died, cq, qp, srq};
use crate::soft::numbers::{NumberPool, Reuse};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Objects by numbers of their own.
pub(crate) struct Numbered<T> {
    table: Table<T>,
    pool: Mutex<NumberPool>,
}

impl<T> Numbered<T> {
    fn new(max: u32) -> Self {
        let pool = NumberPool::new(1, max - 1, Reuse::Late);
        Self { table: Table::new(max as usize), pool: Mutex::new(pool) }
    }

    pub(crate) fn take_number(&self) -> Result<u32> {
        lock(&self.pool).take().ok_or(Error::Limit("objects of an HCA"))
    }

    pub(crate) fn give_back(&self, number: u32) {
        lock(&self.pool).give_back(number);
    }

    pub(crate) fn insert(&self, number: u32, object: Arc<T>) -> Result<()> {
        self.table.insert(number as usize, object).map_err(|_| Error::Limit("objects of an HCA"))
    }

    /// Returns when nobody finds it any more. May sleep.
    pub(crate) fn remove(&self, cx: &MaySleep, number: u32) {
        drop(self.table.remove(cx, number as usize));
        self.give_back(number);
    }

    #[inline]
    pub(crate) fn get<'g>(&self, number: usize, guard: &'g Guard) -> Option<&'g T> {
        self.table.get(number, guard)
    }

    pub(crate) fn get_arc(&self, number: usize) -> Option<Arc<T>> {
        self.table.get_arc(number)
    }
}

/// Limits of the host that tenants don't see.
pub(crate) struct HostLimits {
    /// CQEs of a CQ: a tenant's may have more, since they move on at once.
    pub(crate) host_cqe: u32,
    /// SGEs of a send request.
    pub(crate) host_sge: u32,
    pub(crate) gid_tbl_len: u32,
}

/// Memory that no tenant has a right to: a request that names it fails with a protection error, in its
/// turn, and takes its QP to ERR. That is how requests are completed that make no sense.
pub(crate) struct Poison {
    mr: HostMr,
    page: Box<[u8; 8192]>,
}

impl Poison {
    fn new(host: &Arc<Host>) -> Result<Self> {
        let mut page = Box::new([0; 8192]);
        let at = page.as_mut_ptr();
        let aligned = at.wrapping_add(at.align_offset(4096));
        let pd = HostPd::alloc(host)?;
        let mr = pd.reg_mr(aligned, 4096, aligned as u64, 0).map_err(|errno| host.error(errno))?;
        Ok(Self { mr, page })
    }

    pub(crate) fn sge(&self) -> ibv_sge {
        let at = self.page.as_ptr();
        let aligned = at.wrapping_add(at.align_offset(4096));
        ibv_sge { addr: aligned as u64, length: 1, lkey: self.mr.lkey() }
    }
}

/// The shared part of an HCA.
pub(crate) struct Hca {
    // The order counts: objects of the host end before it is closed, which its own counts see to.
    pub(crate) poison: Poison,
    pub(crate) engine: Engine,
    pub(crate) host: Arc<Host>,
    pub(crate) limits: HostLimits,
    pub(crate) queues: Numbered<WorkQueue>,
    pub(crate) cqs: Numbered<cq::Cq>,
    pub(crate) qps: Numbered<qp::Qp>,
    pub(crate) srqs: Numbered<srq::Srq>,
    pub(crate) gids: Arc<GidMap>,
    /// MRs that are pinned on use, if any are.
    pub(crate) pins: Option<Pins>,
    owners: Mutex<HashMap<(u64, Gid), Weak<Context>>>,
    sink: OnceLock<Arc<dyn EventSink>>,
    died: Option<Died>,
    /// Host's address handles made, for tests and logs.
    pub(crate) ahs_made: AtomicU64,
}

impl Hca {
    pub(crate) fn new(
        host: Arc<Host>,
        engine: Engine,
        limits: HostLimits,
        gids: Arc<GidMap>,
        pins: Option<Pins>,
        died: Option<Died>,
    ) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            poison: Poison::new(&host)?,
            engine,
            host,
            limits,
            queues: Numbered::new(1 << INDEX_BITS),
            cqs: Numbered::new(1 << 20),
            qps: Numbered::new(1 << 20),
            srqs: Numbered::new(1 << 20),
            gids,
            pins,
            owners: Mutex::default(),
            sink: OnceLock::new(),
            died,
            ahs_made: AtomicU64::new(0),
        }))
    }

    pub(crate) fn set_sink(&self, sink: Arc<dyn EventSink>) {
        let _ = self.sink.set(sink);
    }

    fn dispatch(&self, event: AsyncEvent) {
        if let Some(sink) = self.sink.get() {
            sink.dispatch(event);
        }
    }

    /// The device is gone: says so, once.
    pub(crate) fn died(&self) {
        if !self.host.die() {
            return;
        }
        log::warn!("{}: the device is gone", self.host.name());
        self.dispatch(AsyncEvent::DeviceFatal);
        if let Some(died) = &self.died {
            died(self.host.name());
        }
    }

    /// An event of the host's, for whom it concerns.
    pub(crate) fn event(&self, event: HostEvent) {
        match event {
            HostEvent::Cq(number) => {
                if let Some(cq) = self.cqs.get_arc(number) {
                    cq.overflowed();
                }
            }
            HostEvent::Qp(code, number) => {
                if let Some(qp) = self.qps.get_arc(number) {
                    qp.event(code);
                }
            }
            HostEvent::Srq(code, number) => {
                if let Some(srq) = self.srqs.get_arc(number) {
                    srq.event(code);
                }
            }
            HostEvent::Device(ffi::EVENT_DEVICE_FATAL, _) => self.died(),
            HostEvent::Device(code, port) if port == self.host.port() => match code {
                // The tenant's only port is its port 1.
                ffi::EVENT_PORT_ACTIVE => self.dispatch(AsyncEvent::PortActive(1)),
                ffi::EVENT_PORT_ERR => self.dispatch(AsyncEvent::PortErr(1)),
                ffi::EVENT_GID_CHANGE => self.dispatch(AsyncEvent::GidChange(1)),
                code => log::debug!("{}: event {code}", self.host.name()),
            },
            HostEvent::Device(..) => {}
        }
    }

    /// Enters a tenant's GID.
    ///
    /// # Errors
    /// `Busy` if another tenant of the network has it.
    pub(crate) fn own_gid(&self, network: u64, gid: Gid, context: &Arc<Context>) -> Result<()> {
        let mut owners = lock(&self.owners);
        let other = owners.get(&(network, gid)).and_then(Weak::upgrade);
        if other.is_some_and(|other| !Arc::ptr_eq(&other, context)) {
            return Err(Error::Busy("the GID is another tenant's"));
        }
        owners.insert((network, gid), Arc::downgrade(context));
        Ok(())
    }

    pub(crate) fn disown_gid(&self, network: u64, gid: Gid) {
        lock(&self.owners).remove(&(network, gid));
    }

    /// Where the host has a tenant's GID. May sleep.
    pub(crate) fn gid_index(&self, network: u64, gid: Gid) -> Result<u8> {
        let physical = self.gids.physical(network, gid);
        let table = self.host.gids()?;
        let found = table
            .iter()
            .filter(|(index, gid, _)| *gid == physical && *index <= u32::from(u8::MAX))
            // An entry for RoCEv2 before one for RoCEv1 with the same address.
            .max_by_key(|(index, _, v2)| (*v2, u32::MAX - index));
        match found {
            Some((index, ..)) => Ok(*index as u8),
            None => {
                log::warn!(
                    "{}: the host has no GID {physical} (the tenant's {gid} of network {network}): give \
                     the address to the host's network device, or map the GID",
                    self.host.name()
                );
                Err(Error::Invalid("the host does not have the GID: map it"))
            }
        }
    }

    /// How many AHs the host was asked for.
    pub(crate) fn count_ah(&self) {
        self.ahs_made.fetch_add(1, Ordering::Relaxed);
    }
}
