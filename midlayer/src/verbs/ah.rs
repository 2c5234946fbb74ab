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

    /// A verb goes in.
    fn enter(&self) -> Result<Inside<'_>> {
        if !self.life.enter() {
            return Err(Error::Gone);
        }
        let inside = Inside { ah: self, _guard: rcu::enter() };
        if self.pd.base().device.is_gone() { Err(Error::Gone) } else { Ok(inside) }
    }

    /// Changes the path, for WRs posted from now on. Never sleeps.
    pub fn modify(&self, attr: &AhAttr) -> Result<()> {
        let _inside = self.enter()?;
        check_path(&self.pd.base().device, attr)?;
        self.driver.modify(attr)
    }

    /// The path. Never sleeps.
    pub fn query(&self) -> Result<AhAttr> {
        let _inside = self.enter()?;
        self.driver.query()
    }

    /// A destination for `SendWr::ud`: a QP at the end of the path. Never sleeps. To be used before the
    /// AH is destroyed.
    ///
    /// # Errors
    /// `Gone` if it has ended.
    pub fn dest(&self, qpn: Qpn, qkey: u32) -> Result<UdDest<'_>> {
        let _inside = self.enter()?;
        Ok(UdDest { ah: &*self.driver, qpn, qkey })
    }

    /// Ends the AH; datagrams posted already may still use the path. Never sleeps: a verb that is
    /// inside on another thread ends it in the driver when it leaves.
    ///
    /// # Errors
    /// `Gone` if it has ended before.
    pub fn destroy(&self) -> Result<()> {
        match self.life.close_now() {
            None => Err(Error::Gone),
            Some(false) => Ok(()),
            Some(true) => self.finish().inspect_err(|_| self.life.reopen()),
        }
    }

    /// Ends it in the driver, when nobody is inside and nobody will be.
    fn finish(&self) -> Result<()> {
        let _guard = rcu::enter();
        // On a device that has gone there is nothing to end but the handle.
        if !self.pd.base().device.is_gone() {
            self.driver.destroy()?;
        }
        self.pd.base().life.drop_dependent();
        Ok(())
    }

    /// The PD stays busy, and the leak will be named.
    fn complain(&self, error: Error) {
        log::error!("{}: destroy_ah: {error}", self.pd.base().device.name);
    }
}

/// A verb is inside.
struct Inside<'a> {
    ah: &'a Ah,
    _guard: rcu::Guard,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if self.ah.life.leave_as_last()
            && let Err(error) = self.ah.finish()
        {
            self.ah.complain(error);
        }
    }
}

impl Drop for Ah {
    fn drop(&mut self) {
        match self.destroy() {
            Ok(()) | Err(Error::Gone) => {}
            Err(error) => self.complain(error),
        }
    }
}
