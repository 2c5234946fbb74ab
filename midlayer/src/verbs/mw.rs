// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory windows, and fast memory regions.

use std::sync::Arc;

use super::mr::check_access;
use super::{Pd, Qp};
use crate::context::MaySleep;
use crate::driver::{FmrAttr, FmrDriver, MwDriver};
use crate::error::{Error, Result};
use crate::memory::UserMemory;
use crate::object::{self, Base, Object, release};
use crate::types::{Access, LKey, MwType, RKey};
use crate::work::MwBind;

/// A memory window.
pub struct Mw {
    base: Base,
    driver: Arc<dyn MwDriver>,
    pd: Arc<Pd>,
    mw_type: MwType,
}

impl Mw {
    pub(super) fn alloc(cx: &MaySleep, pd: &Arc<Pd>, mw_type: MwType) -> Result<Arc<Self>> {
        object::create(
            cx,
            &pd.base().device,
            &[pd.base()],
            || pd.driver().alloc_mw(cx, mw_type),
            |driver| Self { base: pd.base().child("MW"), driver, pd: pd.clone(), mw_type },
        )
    }

    /// Its key as it is now.
    pub fn rkey(&self) -> RKey {
        self.driver.rkey()
    }

    /// Its type.
    pub fn mw_type(&self) -> MwType {
        self.mw_type
    }

    /// Binds a window of type 1 by a QP of its PD; answers the new key, which works once the work
    /// requests posted to the QP before are done. The completion has `wr_id` and `ticket`. Never
    /// sleeps.
    ///
    /// # Errors
    /// `Invalid` for a window of type 2, which is bound by a BIND_MW work request, for a QP of another
    /// PD, and for rights that are not remote ones.
    pub fn bind_mw(&self, qp: &Qp, wr_id: u64, ticket: u32, bind: &MwBind) -> Result<RKey> {
        let _guard = self.base.fast()?;
        let _same_guard = qp.base().fast()?;
        if self.mw_type != MwType::Type1 || !Arc::ptr_eq(&self.pd, qp.pd()) {
            return Err(Error::Invalid("bind_mw takes a window of type 1 and a QP of its PD"));
        }
        let remote = Access::REMOTE_READ.0 | Access::REMOTE_WRITE.0 | Access::REMOTE_ATOMIC.0;
        if bind.access.0 & !(remote | Access::ZERO_BASED.0) != 0 {
            return Err(Error::Invalid("rights of a memory window"));
        }
        qp.driver().bind_mw(&self.driver, wr_id, ticket, bind)
    }

    /// Ends the window. Returns when nothing reaches memory through it any more. May sleep.
    ///
    /// # Errors
    /// `Gone` if it has ended before.
    pub fn dealloc(&self, cx: &MaySleep) -> Result<()> {
        object::destroy(cx, self)
    }
}

impl Object for Mw {
    fn base(&self) -> &Base {
        &self.base
    }

    fn release_uses(&self) {
        release(&[self.pd.base()]);
    }

    fn driver_destroy(&self, cx: &MaySleep) -> Result<()> {
        self.driver.dealloc(cx)
    }
}

/// A fast memory region.
pub struct Fmr {
    base: Base,
    driver: Arc<dyn FmrDriver>,
    pd: Arc<Pd>,
    attr: FmrAttr,
}

impl Fmr {
    pub(super) fn alloc(
        cx: &MaySleep,
        pd: &Arc<Pd>,
        attr: FmrAttr,
        access: Access,
    ) -> Result<Arc<Self>> {
        check_access(access)?;
        if attr.max_pages == 0 || attr.max_maps == 0 || !(12..32).contains(&attr.page_shift) {
            return Err(Error::Invalid("limits of an FMR"));
        }
        object::create(
            cx,
            &pd.base().device,
            &[pd.base()],
            || pd.driver().alloc_fmr(cx, attr, access),
            |driver| Self { base: pd.base().child("FMR"), driver, pd: pd.clone(), attr },
        )
    }

    /// Local key as it is now.
    pub fn lkey(&self) -> LKey {
        self.driver.lkey()
    }

    /// Remote key as it is now.
    pub fn rkey(&self) -> RKey {
        self.driver.rkey()
    }

    /// Puts memory behind new keys (see `lkey`, `rkey`). The keys before may go on working until
    /// `unmap_fmr`. Never sleeps.
    ///
    /// # Errors
    /// `Limit` for more pages than the FMR takes, or after `max_maps` mappings.
    pub fn map_phys_fmr(&self, memory: Arc<UserMemory>) -> Result<()> {
        let _guard = self.base.fast()?;
        if memory.len() > u64::from(self.attr.max_pages) << self.attr.page_shift {
            return Err(Error::Limit("max_pages of the FMR"));
        }
        self.driver.map_phys_fmr(memory)
    }

    /// Takes all mappings away. Returns when nothing touches their memory any more. May sleep.
    pub fn unmap_fmr(&self, cx: &MaySleep) -> Result<()> {
        let _verb = self.base.verb(cx)?;
        self.driver.unmap(cx)
    }

    /// Ends the FMR. May sleep.
    ///
    /// # Errors
    /// `Gone` if it has ended before.
    pub fn dealloc(&self, cx: &MaySleep) -> Result<()> {
        object::destroy(cx, self)
    }
}

impl Object for Fmr {
    fn base(&self) -> &Base {
        &self.base
    }

    fn release_uses(&self) {
        release(&[self.pd.base()]);
    }

    fn driver_destroy(&self, cx: &MaySleep) -> Result<()> {
        self.driver.dealloc(cx)
    }
}
