// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory regions.

use std::sync::Arc;

use super::Pd;
use crate::context::MaySleep;
use crate::driver::MrDriver;
use crate::error::{Error, Result};
use crate::memory::UserMemory;
use crate::object::{self, Base, Object};
use crate::types::{Access, LKey, RKey};

/// A memory region.
pub struct Mr {
    base: Base,
    driver: Arc<dyn MrDriver>,
    pd: Arc<Pd>,
}

impl Mr {
    pub(super) fn reg(
        cx: &MaySleep,
        pd: &Arc<Pd>,
        memory: UserMemory,
        access: Access,
    ) -> Result<Arc<Self>> {
        check_access(access)?;
        if memory.len() > pd.base().device.attr.max_mr_size {
            return Err(Error::Limit("max_mr_size"));
        }
        Self::wrap(cx, pd, || pd.driver().reg_mr(cx, memory, access))
    }

    pub(super) fn wrap(
        cx: &MaySleep,
        pd: &Arc<Pd>,
        make: impl FnOnce() -> Result<Arc<dyn MrDriver>>,
    ) -> Result<Arc<Self>> {
        object::create(cx, &pd.base().device, &[pd.base()], make, |driver| Self {
            base: pd.base().child("MR"),
            driver,
            pd: pd.clone(),
        })
    }

    /// Local key.
    pub fn lkey(&self) -> LKey {
        self.driver.lkey()
    }

    /// Remote key.
    pub fn rkey(&self) -> RKey {
        self.driver.rkey()
    }

    /// Puts other memory behind the keys, or none: then every access fails with a protection or
    /// access error. Returns when nothing touches the old memory any more. May sleep.
    pub fn replace_memory(&self, cx: &MaySleep, memory: Option<UserMemory>) -> Result<()> {
        let _verb = self.base.verb(cx)?;
        self.driver.replace_memory(cx, memory)
    }

    /// Ends the MR. Returns when nothing touches its memory any more. May sleep.
    ///
    /// # Errors
    /// `Gone` if it has ended before.
    pub fn dereg(&self, cx: &MaySleep) -> Result<()> {
        object::destroy(cx, self)
    }
}

/// Remote write and atomics need local write (IBA 11.2.8.2).
pub(super) fn check_access(access: Access) -> Result<()> {
    let writes = Access::REMOTE_WRITE.0 | Access::REMOTE_ATOMIC.0;
    if access.0 & writes != 0 && !access.contains(Access::LOCAL_WRITE) {
        return Err(Error::Invalid("remote write or atomics without local write"));
    }
    Ok(())
}

impl Object for Mr {
    fn base(&self) -> &Base {
        &self.base
    }

    fn uses(&self) -> Vec<&Base> {
        vec![self.pd.base()]
    }

    fn driver_destroy(&self, cx: &MaySleep) -> Result<()> {
        self.driver.dereg(cx)
    }
}
