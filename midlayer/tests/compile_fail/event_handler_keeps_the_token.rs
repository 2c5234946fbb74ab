// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An event handler that was given the token of the thread that made it.
use rdma_midlayer::{EventHandler, MaySleep, Qp};
use std::sync::Arc;

fn handler(cx: MaySleep, qp: Arc<Qp>) -> EventHandler {
    Box::new(move |_event| {
        let _ = qp.query(&cx);
    })
}

fn main() {
    let _ = handler;
}
