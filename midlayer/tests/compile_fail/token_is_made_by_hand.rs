// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A token that nobody claimed.
use rdma_midlayer::MaySleep;

fn main() {
    let _ = MaySleep {};
}
