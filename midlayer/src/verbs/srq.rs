// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shared receive queues, and the XRC domains that some of them belong to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Context, Cq, Pd};
use crate::context::MaySleep;
use crate::driver::{RecvSource, SrqAttr, SrqDriver, SrqInit, XrcTarget, XrcdDriver};
use crate::error::{Error, Result};
use crate::object::{self, Base, Object, release};
use crate::types::Srqn;
use crate::work::RecvWr;

/// What a consumer wants of an SRQ. The members that `SrqInit` has too mean the same.
#[derive(Default)]
pub struct SrqSpec {
    /// Receive WRs it must hold.
    pub max_wr: u32,
    /// SGEs in a WR.
    pub max_sge: u32,
    /// Event when fewer WRs than this are left; 0 for none.
    pub limit: u32,
    /// The receive WQEs. Without it they come by `post_recv`.
    pub recv_source: Option<Arc<dyn RecvSource>>,
    /// For an SRQ of an XRC domain: the domain, and the CQ of its messages, both of this device.
    pub xrc: Option<(Arc<Xrcd>, Arc<Cq>)>,
}

/// A shared receive queue.
pub struct Srq {
    base: Base,
    driver: Arc<dyn SrqDriver>,
    pd: Arc<Pd>,
    xrc: Option<(Arc<Xrcd>, Arc<Cq>)>,
    max_sge: u32,
    max_wr: AtomicU32,
}

impl Srq {
    pub(super) fn create(cx: &MaySleep, pd: &Arc<Pd>, spec: SrqSpec) -> Result<Arc<Self>> {
        let base = pd.base().child("SRQ");
        let device = &pd.base().device;
        let (max_wr, max_sge) = (spec.max_wr, spec.max_sge);
        if max_wr == 0 || spec.limit > max_wr {
            return Err(Error::Invalid("size or limit of an SRQ"));
        }
        if max_wr > device.attr.max_srq_wr {
            return Err(Error::Limit("max_srq_wr"));
        }
        if max_sge > device.attr.max_srq_sge {
            return Err(Error::Limit("max_srq_sge"));
        }
        let mut uses = vec![pd.base()];
        if let Some((domain, cq)) = &spec.xrc {
            base.same_device(&domain.base)?;
            base.same_device(cq.base())?;
            uses.extend([&domain.base, cq.base()]);
        }
        let target = spec.xrc.as_ref().map(|(domain, cq)| XrcTarget {
            domain: domain.driver.clone(),
            cq: cq.driver().clone(),
        });
        let init = SrqInit {
            max_wr,
            max_sge,
            limit: spec.limit,
            recv_source: spec.recv_source,
            xrc: target,
        };
        let max_wr = AtomicU32::new(max_wr);
        object::create(
            cx,
            device,
            &uses,
            || pd.driver().create_srq(cx, init),
            |driver| Self { base, driver, pd: pd.clone(), xrc: spec.xrc.clone(), max_sge, max_wr },
        )
    }

    pub(super) fn base(&self) -> &Base {
        &self.base
    }

    pub(super) fn driver(&self) -> &Arc<dyn SrqDriver> {
        &self.driver
    }

    /// Its number.
    pub fn srqn(&self) -> Srqn {
        self.driver.srqn()
    }

    /// Whether the HCA takes receive WQEs before messages come: see `SrqDriver::takes_ahead`.
    pub fn takes_ahead(&self) -> bool {
        self.driver.takes_ahead()
    }

    /// Arms the limit event, or disarms it with 0. May sleep.
    ///
    /// # Errors
    /// `Invalid` for a limit above the size.
    pub fn arm_limit(&self, cx: &MaySleep, limit: u32) -> Result<()> {
        let _verb = self.base.verb(cx)?;
        if limit > self.max_wr.load(Ordering::Relaxed) {
            return Err(Error::Invalid("limit of an SRQ"));
        }
        self.driver.arm_limit(cx, limit)
    }

    /// Changes how many WRs it holds (`IBV_SRQ_MAX_WR`). With a `RecvSource` the consumer moves its WQEs
    /// itself. May sleep.
    ///
    /// # Errors
    /// `Invalid` for 0, and if more are posted or the limit is larger; `Limit`; `Unsupported` if the HCA
    /// can't.
    pub fn resize(&self, cx: &MaySleep, max_wr: u32) -> Result<()> {
        let _verb = self.base.verb(cx)?;
        if max_wr == 0 {
            return Err(Error::Invalid("size of an SRQ"));
        }
        if max_wr > self.base.device.attr.max_srq_wr {
            return Err(Error::Limit("max_srq_wr"));
        }
        self.driver.resize(cx, max_wr)?;
        self.max_wr.store(max_wr, Ordering::Relaxed);
        Ok(())
    }

    /// The attributes as they are. May sleep.
    pub fn query(&self, cx: &MaySleep) -> Result<SrqAttr> {
        let _verb = self.base.verb(cx)?;
        self.driver.query(cx)
    }

    /// Posts a receive WR. Never sleeps.
    ///
    /// # Errors
    /// `QueueFull`; `Invalid` for too many SGEs; `Unsupported` with a `RecvSource`.
    #[inline]
    pub fn post_recv(&self, wr: &RecvWr<'_>) -> Result<()> {
        let _guard = self.base.fast()?;
        if wr.sges.len() > self.max_sge as usize {
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

    /// Ends the SRQ; no event of it comes after the return. May sleep.
    ///
    /// # Errors
    /// `Busy` while QPs use it; `Gone` if it has ended before.
    pub fn destroy(&self, cx: &MaySleep) -> Result<()> {
        object::destroy(cx, self)
    }
}

impl Object for Srq {
    fn base(&self) -> &Base {
        &self.base
    }

    fn release_uses(&self) {
        release(&[self.pd.base()]);
        if let Some((domain, cq)) = &self.xrc {
            release(&[&domain.base, cq.base()]);
        }
    }

    fn driver_destroy(&self, cx: &MaySleep) -> Result<()> {
        self.driver.destroy(cx)
    }

    fn quiesce(&self, cx: &MaySleep) {
        self.base.device.events.flush(cx);
    }
}

/// An XRC domain: SRQs and XRC targets meet in it.
pub struct Xrcd {
    base: Base,
    driver: Arc<dyn XrcdDriver>,
    context: Arc<Context>,
}

impl Xrcd {
    pub(super) fn alloc(cx: &MaySleep, context: &Arc<Context>) -> Result<Arc<Self>> {
        object::create(
            cx,
            &context.base().device,
            &[context.base()],
            || context.driver().alloc_xrcd(cx),
            |driver| Self {
                base: context.base().child("XRC domain"),
                driver,
                context: context.clone(),
            },
        )
    }

    pub(super) fn base(&self) -> &Base {
        &self.base
    }

    pub(super) fn driver(&self) -> &Arc<dyn XrcdDriver> {
        &self.driver
    }

    /// Ends the domain. May sleep.
    ///
    /// # Errors
    /// `Busy` while SRQs or QPs are in it; `Gone` if it has ended before.
    pub fn dealloc(&self, cx: &MaySleep) -> Result<()> {
        object::destroy(cx, self)
    }
}

impl Object for Xrcd {
    fn base(&self) -> &Base {
        &self.base
    }

    fn release_uses(&self) {
        release(&[self.context.base()]);
    }

    fn driver_destroy(&self, cx: &MaySleep) -> Result<()> {
        self.driver.dealloc(cx)
    }
}
