// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A completion handler that borrows the token of the thread that made it.
use rdma_midlayer::{CompletionHandler, Cq, MaySleep};
use std::sync::Arc;

fn handler(cx: &'static MaySleep, cq: Arc<Cq>) -> CompletionHandler {
    Box::new(move |_solicited| {
        let _ = cq.destroy(cx);
    })
}

fn main() {
    let _ = handler;
}
