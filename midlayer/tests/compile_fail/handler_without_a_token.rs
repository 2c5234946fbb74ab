// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A handler that calls a verb that may sleep without any token.
use rdma_midlayer::{CompletionHandler, Context};
use std::sync::Arc;

fn handler(context: Arc<Context>) -> CompletionHandler {
    Box::new(move |_solicited| {
        let _ = context.alloc_pd();
    })
}

fn main() {
    let _ = handler;
}
