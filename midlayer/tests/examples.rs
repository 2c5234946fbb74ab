// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The examples do what they say.
#![allow(dead_code, reason = "the example has a main of its own")]

#[path = "../examples/consumer.rs"]
mod consumer;

#[test]
fn the_example_consumer_pings_over_the_example_hca_and_leaves_nothing_behind() {
    let cx = rdma_midlayer::MaySleep::claim().unwrap();
    let lines = consumer::run(&cx).unwrap();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[2], "loop0: message 2, 4 bytes: Success");
}
