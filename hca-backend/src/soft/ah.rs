// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Address handles: a path, and nothing else. None of the methods sleeps.

use rdma_midlayer::Result;
use rdma_midlayer::attr::AhAttr;
use rdma_midlayer::driver::AhDriver;

use super::spin::SpinLock;

/// An address handle.
pub(crate) struct Ah {
    path: SpinLock<AhAttr>,
}

impl Ah {
    pub(crate) fn new(path: AhAttr) -> Self {
        Self { path: SpinLock::new(path) }
    }
}

impl AhDriver for Ah {
    fn modify(&self, attr: &AhAttr) -> Result<()> {
        *self.path.lock() = *attr;
        Ok(())
    }

    fn query(&self) -> Result<AhAttr> {
        Ok(*self.path.lock())
    }

    fn destroy(&self) -> Result<()> {
        Ok(())
    }
}
