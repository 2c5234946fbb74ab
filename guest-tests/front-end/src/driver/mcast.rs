// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver's commands for multicast groups.

use virtio_rdma_abi::control::*;
use zerocopy::IntoBytes;

use super::{Driver, Nothing};
use crate::error::CommandError;

impl Driver {
    /// ATTACH_MCAST.
    pub fn attach_mcast(&self, qpn: u32, gid: [u8; 16]) -> Result<(), CommandError> {
        self.mcast(CMD_ATTACH_MCAST, qpn, gid)
    }

    /// DETACH_MCAST.
    pub fn detach_mcast(&self, qpn: u32, gid: [u8; 16]) -> Result<(), CommandError> {
        self.mcast(CMD_DETACH_MCAST, qpn, gid)
    }

    fn mcast(&self, command: u16, qpn: u32, gid: [u8; 16]) -> Result<(), CommandError> {
        let request = McastRequest { qpn: qpn.into(), reserved: 0.into(), gid };
        let _: Nothing = self.command(command, request.as_bytes())?;
        Ok(())
    }
}
