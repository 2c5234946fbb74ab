// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory regions.

use std::sync::Arc;

use super::Pd;
use crate::context::MaySleep;
use crate::driver::{MrChange, MrDriver, PageFault};
use crate::error::{Error, Result};
use crate::memory::{PageRange, UserMemory};
use crate::object::{self, Base, Object, hold, release};
use crate::sync::{AtomicBool, Mutex, Ordering, lock};
use crate::types::{Access, LKey, RKey};

/// A memory region.
pub struct Mr {
    base: Base,
    driver: Arc<dyn MrDriver>,
    /// `rereg` may change it; the lock is never held across a call of the driver.
    pd: Mutex<Arc<Pd>>,
    changing_pd: AtomicBool,
}

/// What `Mr::rereg` changes; what is `None` stays.
#[derive(Default)]
pub struct Rereg {
    /// New memory.
    pub memory: Option<UserMemory>,
    /// New rights.
    pub access: Option<Access>,
    /// New PD, of the same device.
    pub pd: Option<Arc<Pd>>,
}

impl Mr {
    pub(super) fn reg(
        cx: &MaySleep,
        pd: &Arc<Pd>,
        memory: UserMemory,
        access: Access,
    ) -> Result<Arc<Self>> {
        check_access(access)?;
        let attr = &pd.base().device.attr;
        let on_demand = memory.paging().is_some();
        if on_demand && !attr.on_demand {
            return Err(Error::Unsupported("memory on demand"));
        }
        // Memory on demand may be all of an address space.
        if memory.len() > attr.max_mr_size && !on_demand {
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
            pd: Mutex::new(pd.clone()),
            changing_pd: AtomicBool::new(false),
        })
    }

    pub(super) fn reg_dma(
        cx: &MaySleep,
        pd: &Arc<Pd>,
        regions: Vec<UserMemory>,
        access: Access,
    ) -> Result<Arc<Self>> {
        check_access(access)?;
        let mut ranges: Vec<_> = regions.iter().map(|r| (r.start(), r.len())).collect();
        ranges.sort_unstable();
        if ranges.windows(2).any(|w| w[1].0 - w[0].0 < w[0].1) {
            return Err(Error::Invalid("DMA regions that overlap"));
        }
        Self::wrap(cx, pd, || pd.driver().reg_dma_mr(cx, regions, access))
    }

    pub(super) fn alloc(cx: &MaySleep, pd: &Arc<Pd>, max_pages: u32) -> Result<Arc<Self>> {
        if max_pages > pd.base().device.attr.max_fast_reg_page_list_len {
            return Err(Error::Limit("max_fast_reg_page_list_len"));
        }
        Self::wrap(cx, pd, || pd.driver().alloc_mr(cx, max_pages))
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

    /// Changes memory, rights or PD; the keys may change. Returns when nothing touches the old memory
    /// any more. May sleep.
    ///
    /// # Errors
    /// As `reg_mr`; `Busy` if another `rereg` changes the PD at the same time; `Unsupported` where the
    /// device can't. On an error the MR is as it was.
    pub fn rereg(&self, cx: &MaySleep, change: Rereg) -> Result<()> {
        let _verb = self.base.verb(cx)?;
        if let Some(access) = change.access {
            check_access(access)?;
        }
        if change.memory.as_ref().is_some_and(|m| m.paging().is_some()) {
            return Err(Error::Unsupported("re-registration as memory on demand"));
        }
        if change.memory.as_ref().is_some_and(|m| m.len() > self.base.device.attr.max_mr_size) {
            return Err(Error::Limit("max_mr_size"));
        }
        let Some(new) = change.pd else {
            let change = MrChange { memory: change.memory, access: change.access, pd: None };
            return self.driver.rereg(cx, change);
        };
        self.base.same_device(new.base())?;
        if self.changing_pd.swap(true, Ordering::AcqRel) {
            return Err(Error::Busy("the MR's PD"));
        }
        let (memory, access) = (change.memory, change.access);
        let change = MrChange { memory, access, pd: Some(new.driver().clone()) };
        let result = hold(&[new.base()]).and_then(|()| {
            self.driver.rereg(cx, change).inspect_err(|_| release(&[new.base()]))?;
            let old = std::mem::replace(&mut *lock(&self.pd), new);
            release(&[old.base()]);
            Ok(())
        });
        self.changing_pd.store(false, Ordering::Release);
        result
    }

    /// Memory on demand: pages that are wanted (`MrDriver::take_page_fault`).
    ///
    /// # Errors
    /// `Gone`.
    pub fn take_page_fault(&self, cx: &MaySleep) -> Result<Option<PageFault>> {
        let _verb = self.base.verb(cx)?;
        Ok(self.driver.take_page_fault())
    }

    /// Memory on demand: pages are there, or refused (`MrDriver::answer_page_faults`).
    ///
    /// # Errors
    /// `Gone`.
    pub fn answer_page_faults(&self, cx: &MaySleep, pages: PageRange, refused: bool) -> Result<()> {
        let _verb = self.base.verb(cx)?;
        self.driver.answer_page_faults(pages, refused);
        Ok(())
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

    fn release_uses(&self) {
        release(&[lock(&self.pd).base()]);
    }

    fn driver_destroy(&self, cx: &MaySleep) -> Result<()> {
        self.driver.dereg(cx)
    }
}
