// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Protection domains.

use std::sync::Arc;

use super::{Context, Mr, Qp, QpSpec};
use crate::context::MaySleep;
use crate::driver::PdDriver;
use crate::error::Result;
use crate::memory::UserMemory;
use crate::object::{self, Base, Object};
use crate::types::Access;

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

    fn uses(&self) -> Vec<&Base> {
        vec![self.context.base()]
    }

    fn driver_destroy(&self, cx: &MaySleep) -> Result<()> {
        self.driver.dealloc(cx)
    }
}
