// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! XRC domains, and what XRC targets have in place of a PD and CQs.

use std::sync::Arc;

use rdma_midlayer::verbs::{Cq, CqSpec, Pd, Xrcd};

use super::{Answer, Call, NO_OBJECT, Status, number_answer};
use crate::session::Session;

impl Call<'_> {
    pub(super) fn alloc_xrcd(mut self) -> Answer {
        let cx = self.cx;
        let session = self.session()?;
        let xrcd = session.context.alloc_xrcd(cx)?;
        let number = session.new_xrcdn();
        session.xrcds.insert(number, xrcd);
        number_answer(number)
    }

    pub(super) fn dealloc_xrcd(mut self) -> Answer {
        let number = self.number()?;
        let cx = self.cx;
        let session = self.session()?;
        session.xrcds.get(&number).ok_or(NO_OBJECT)?.dealloc(cx)?;
        session.xrcds.remove(&number);
        Ok(Vec::new())
    }

    /// The XRC domain that a request names; 0 is none.
    pub(super) fn xrcd(session: &Session, number: u32) -> Result<Option<Arc<Xrcd>>, Status> {
        match number {
            0 => Ok(None),
            number => Ok(Some(session.xrcds.get(&number).ok_or(NO_OBJECT)?.clone())),
        }
    }

    /// A PD and a CQ that no driver knows, for XRC targets, which use those of SRQs.
    pub(super) fn nobodys(&mut self) -> Result<(Arc<Pd>, Arc<Cq>), Status> {
        let cx = self.cx;
        let session = self.session()?;
        if let Some((pd, cq)) = &session.nobodys {
            return Ok((pd.clone(), cq.clone()));
        }
        let pd = session.context.alloc_pd(cx)?;
        let cq = session.context.create_cq(cx, CqSpec { cqe: 1, ..CqSpec::default() })?;
        session.nobodys = Some((pd.clone(), cq.clone()));
        Ok((pd, cq))
    }
}
