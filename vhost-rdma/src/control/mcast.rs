// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Multicast groups: which QPs are in them. The midlayer and the HCA count and check.

use rdma_midlayer::types::Gid;
use virtio_rdma_abi::control as abi;

use super::{Answer, Call, NO_OBJECT, UNSUPPORTED};

impl Call<'_> {
    /// ATTACH_MCAST and DETACH_MCAST.
    pub(super) fn change_group(mut self, attach: bool) -> Answer {
        let request: abi::McastRequest = self.request()?;
        let (cx, there) = (self.cx, self.capabilities() & abi::CAP_MCAST != 0);
        let session = self.session()?;
        if !there {
            return Err(UNSUPPORTED);
        }
        let qp = session.qps.get(&request.qpn.get()).ok_or(NO_OBJECT)?.path.qp();
        let gid = Gid(request.gid);
        match attach {
            true => qp.attach_mcast(cx, &gid, 0)?,
            false => qp.detach_mcast(cx, &gid, 0)?,
        }
        Ok(Vec::new())
    }
}
