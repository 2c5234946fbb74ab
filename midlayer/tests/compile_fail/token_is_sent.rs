// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A token that is sent to another thread.
use rdma_midlayer::MaySleep;

fn main() {
    let cx = MaySleep::claim().unwrap();
    std::thread::spawn(move || drop(cx));
}
