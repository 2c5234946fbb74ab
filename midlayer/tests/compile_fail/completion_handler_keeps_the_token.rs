// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A completion handler that was given the token of the thread that made it.
use rdma_midlayer::{CompletionHandler, Context, MaySleep};
use std::sync::Arc;

fn handler(cx: MaySleep, context: Arc<Context>) -> CompletionHandler {
    Box::new(move |_solicited| {
        let _ = context.alloc_pd(&cx);
    })
}

fn main() {
    let _ = handler;
}
