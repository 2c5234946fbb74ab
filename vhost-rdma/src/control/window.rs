// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory windows.

use rdma_midlayer::types::MwType;
use virtio_rdma_abi::control as abi;

use super::{Answer, Call, INVALID, NO_OBJECT, bytes};

impl Call<'_> {
    pub(super) fn alloc_mw(mut self) -> Answer {
        let request: abi::AllocMwRequest = self.request()?;
        let cx = self.cx;
        let session = self.session()?;
        let pd = &session.pds.get(&request.pdn.get()).ok_or(NO_OBJECT)?.pd;
        let mw_type = match request.mw_type.get() {
            abi::MW_TYPE_1 => MwType::Type1,
            abi::MW_TYPE_2 => MwType::Type2,
            _ => return Err(INVALID),
        };
        let mw = pd.alloc_mw(cx, mw_type)?;
        let rkey = mw.rkey().0;
        let number = session.new_mwn();
        session.mws.insert(number, mw);
        Ok(bytes(&abi::MwAnswer { mwn: number.into(), rkey: rkey.into() }))
    }

    pub(super) fn dealloc_mw(mut self) -> Answer {
        let number = self.number()?;
        let cx = self.cx;
        let session = self.session()?;
        session.mws.get(&number).ok_or(NO_OBJECT)?.dealloc(cx)?;
        session.mws.remove(&number);
        Ok(Vec::new())
    }
}
