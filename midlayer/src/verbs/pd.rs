// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Protection domains.

use std::sync::Arc;

use super::{Ah, Context, Fmr, Mr, Mw, Qp, QpSpec, Srq, SrqSpec};
use crate::attr::AhAttr;
use crate::context::MaySleep;
use crate::driver::{FmrAttr, PdDriver};
use crate::error::Result;
use crate::memory::UserMemory;
use crate::object::{self, Base, Object, release};
use crate::types::{Access, MwType};

/// A protection domain.
pub struct Pd {
    base: Base,
    driver: Arc<dyn PdDriver>,
    context: Arc<Context>,
}

impl Pd {
    pub(super) fn alloc(cx: &MaySleep, context: &Arc<Context>) -> Result<Arc<Self>> {
        object::create(
            cx,
            &context.base().device,
            &[context.base()],
            || context.driver().alloc_pd(cx),
            |driver| Self { base: context.base().child("PD"), driver, context: context.clone() },
        )
    }

    pub(super) fn driver(&self) -> &Arc<dyn PdDriver> {
        &self.driver
    }

    pub(super) fn base(&self) -> &Base {
        &self.base
    }

    /// The context that it is of.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Registers memory; `memory.start()` is the address by which work requests name its first byte.
    /// May sleep.
    ///
    /// # Errors
    /// `Invalid` for remote write or atomics without local write (IBA 11.2.8.2); `Limit` beyond
    /// `max_mr_size`.
    pub fn reg_mr(
        self: &Arc<Self>,
        cx: &MaySleep,
        memory: UserMemory,
        access: Access,
    ) -> Result<Arc<Mr>> {
        Mr::reg(cx, self, memory, access)
    }

    /// An MR over all memory that the consumer uses for DMA: each region appears at its `start()`, with
    /// holes between them. May sleep.
    ///
    /// # Errors
    /// `Invalid` as `reg_mr`, and for regions that overlap.
    pub fn reg_dma_mr(
        self: &Arc<Self>,
        cx: &MaySleep,
        regions: Vec<UserMemory>,
        access: Access,
    ) -> Result<Arc<Mr>> {
        Mr::reg_dma(cx, self, regions, access)
    }

    /// An MR without memory, for REG_MR work requests of up to `max_pages` pages. May sleep.
    ///
    /// # Errors
    /// `Limit` beyond `max_fast_reg_page_list_len`.
    pub fn alloc_mr(self: &Arc<Self>, cx: &MaySleep, max_pages: u32) -> Result<Arc<Mr>> {
        Mr::alloc(cx, self, max_pages)
    }

    /// A memory window. May sleep.
    pub fn alloc_mw(self: &Arc<Self>, cx: &MaySleep, mw_type: MwType) -> Result<Arc<Mw>> {
        Mw::alloc(cx, self, mw_type)
    }

    /// A fast memory region. May sleep.
    pub fn alloc_fmr(
        self: &Arc<Self>,
        cx: &MaySleep,
        attr: FmrAttr,
        access: Access,
    ) -> Result<Arc<Fmr>> {
        Fmr::alloc(cx, self, attr, access)
    }

    /// A shared receive queue. May sleep.
    ///
    /// # Errors
    /// `Limit` for sizes beyond the device's; `Invalid` for none, or a limit above the size.
    pub fn create_srq(self: &Arc<Self>, cx: &MaySleep, spec: SrqSpec) -> Result<Arc<Srq>> {
        Srq::create(cx, self, spec)
    }

    /// An address handle. Never sleeps.
    ///
    /// # Errors
    /// `Invalid` for a path out of range.
    pub fn create_ah(self: &Arc<Self>, attr: &AhAttr) -> Result<Arc<Ah>> {
        Ah::create(self, attr)
    }

    /// A QP. May sleep.
    ///
    /// # Errors
    /// `Limit` for sizes beyond the device's; `Invalid` for a CQ of another device.
    pub fn create_qp(self: &Arc<Self>, cx: &MaySleep, spec: QpSpec) -> Result<Arc<Qp>> {
        Qp::create(cx, self, spec)
    }

    /// Ends the PD. May sleep.
    ///
    /// # Errors
    /// `Busy` while it has objects; `Gone` if it has ended before.
    pub fn dealloc(&self, cx: &MaySleep) -> Result<()> {
        object::destroy(cx, self)
    }
}

impl Object for Pd {
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
