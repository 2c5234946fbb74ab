// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Address handles: the one kind of object whose verbs never sleep.

use std::sync::Arc;

use super::Pd;
use super::qp::check_path;
use crate::attr::AhAttr;
use crate::driver::AhDriver;
use crate::error::{Error, Result};
use crate::life::Life;
use crate::rcu;
use crate::types::Qpn;
use crate::work::UdDest;

/// An address handle. None of its verbs ever sleeps. It ends by `destroy`, or with its last handle.
pub struct Ah {
    driver: Arc<dyn AhDriver>,
    pd: Arc<Pd>,
    life: Life,
}

impl Ah {
    pub(super) fn create(pd: &Arc<Pd>, attr: &AhAttr) -> Result<Arc<Self>> {
        let _guard = pd.base().fast()?;
        check_path(&pd.base().device, attr)?;
        // The PD may close at this moment: then it is refused here, or the PD is busy.
        if !pd.base().life.add_dependent() {
            return Err(Error::Gone);
        }
        match pd.driver().create_ah(attr) {
            Ok(driver) => Ok(Arc::new(Self { driver, pd: pd.clone(), life: Life::new() })),
            Err(error) => {
                pd.base().life.drop_dependent();
                Err(error)
            }
        }
    }

    fn fast(&self) -> Result<rcu::Guard> {
        let guard = rcu::enter();
        if self.life.is_open() && !self.pd.base().device.is_gone() {
            Ok(guard)
        } else {
            Err(Error::Gone)
        }
    }

    /// Changes the path, for WRs posted from now on. Never sleeps.
    pub fn modify(&self, attr: &AhAttr) -> Result<()> {
        let _guard = self.fast()?;
        check_path(&self.pd.base().device, attr)?;
        self.driver.modify(attr)
    }

    /// The path. Never sleeps.
    pub fn query(&self) -> Result<AhAttr> {
        let _guard = self.fast()?;
        self.driver.query()
    }

    /// A destination for `SendWr::ud`: a QP at the end of the path. Never sleeps.
    ///
    /// # Errors
    /// `Gone` if it has ended.
    pub fn dest(&self, qpn: Qpn, qkey: u32) -> Result<UdDest<'_>> {
        let _guard = self.fast()?;
        Ok(UdDest { ah: &*self.driver, qpn, qkey })
    }

    /// Ends the AH; datagrams posted already may still use the path. Never sleeps.
    ///
    /// # Errors
    /// `Gone` if it has ended before.
    pub fn destroy(&self) -> Result<()> {
        self.life.close_now().map_err(|_| Error::Gone)?;
        let guard = rcu::enter();
        // On a device that has gone there is nothing to end but the handle.
        if !self.pd.base().device.is_gone() {
            self.driver.destroy().inspect_err(|_| self.life.reopen())?;
        }
        drop(guard);
        self.pd.base().life.drop_dependent();
        Ok(())
    }
}

impl Drop for Ah {
    fn drop(&mut self) {
        match self.destroy() {
            Ok(()) | Err(Error::Gone) => {}
            Err(error) => {
                // The PD stays busy, and the leak will be named.
                log::error!("{}: destroy_ah: {error}", self.pd.base().device.name);
            }
        }
    }
}
