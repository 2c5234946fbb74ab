// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A token that another thread borrows.
use rdma_midlayer::MaySleep;

fn main() {
    let cx = MaySleep::claim().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = &cx;
        });
    });
}
