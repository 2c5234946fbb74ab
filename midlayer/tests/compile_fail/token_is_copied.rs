// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A token that is copied.
use rdma_midlayer::MaySleep;

fn main() {
    let cx = MaySleep::claim().unwrap();
    let _: MaySleep = cx.clone();
}
