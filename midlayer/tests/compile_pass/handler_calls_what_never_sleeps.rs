// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A completion handler may call every verb that never sleeps.
use rdma_midlayer::attr::AhAttr;
use rdma_midlayer::driver::Notify;
use rdma_midlayer::work::{MwBind, RecvWr, SendWr};
use rdma_midlayer::{CompletionHandler, Cq, Fmr, Mw, Pd, Qp};
use std::sync::Arc;

type Objects = (Arc<Pd>, Arc<Cq>, Arc<Qp>, Arc<Mw>, Arc<Fmr>);

fn handler(
    (pd, cq, qp, mw, fmr): Objects,
    send: SendWr<'static>,
    recv: RecvWr<'static>,
    bind: MwBind,
    memory: Arc<rdma_midlayer::memory::UserMemory>,
) -> impl Fn(bool) {
    move |_solicited| {
        let _ = cq.poll_cq(&mut Vec::new(), 1);
        let _ = cq.req_notify_cq(Notify::Next);
        let _ = qp.post_send(&send);
        let _ = qp.post_recv(&recv);
        let _ = mw.bind_mw(&qp, 1, 0, &bind);
        let _ = fmr.map_phys_fmr(memory.clone());
        if let Ok(ah) = pd.create_ah(&AhAttr::default()) {
            let _ = (ah.modify(&AhAttr::default()), ah.query(), ah.destroy());
        }
    }
}

fn keeps(cq: Arc<Cq>) -> CompletionHandler {
    Box::new(move |_solicited| {
        let _ = cq.req_notify_cq(Notify::Next);
    })
}

fn main() {
    let _ = (handler, keeps);
}
