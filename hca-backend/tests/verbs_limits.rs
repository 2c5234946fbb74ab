// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Limits of the host that stop a registration. In a program of its own: for a moment it has as many
//! mappings as a process may.

mod common;
mod verbs;

use common::*;
use rdma_midlayer::Error;
use rdma_midlayer::memory::{Run, UserMemory};
use verbs::{Memfd, opened, scattered, stub};

#[test]
fn a_limit_that_stops_a_registration_is_named_with_the_remedy() {
    let Some(stub) = stub() else { return };
    let lab = opened("stub0");
    let tenant = lab.tenant(1, 1);
    // More pieces than a process may have mappings: two pages in turn, with one between them.
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let pieces = limit.trim().parse::<usize>().unwrap() + 10;
    let file = Memfd::mapping(3);
    let runs = (0..pieces).map(|n| Run { mapping: file.clone(), offset: n % 2 * 8192, len: 4096 });
    let memory = UserMemory::new(0x100_0000, pieces as u64 * 4096, 0, Some(12), runs).unwrap();
    let refused = tenant.pd.reg_mr(&lab.cx, memory, REMOTE_ALL).err().unwrap();
    assert!(matches!(refused, Error::Limit(why) if why.contains("vm.max_map_count")), "{refused}");
    // Less locked memory than the MR needs; there is enough when another MR has gone.
    let memory = || scattered(8, 0x10_0000, 8 * 4096);
    stub.limit_pinned(stub.pinned() + 10 * 4096);
    let mr = tenant.pd.reg_mr(&lab.cx, memory().user(), REMOTE_ALL).unwrap();
    let refused = tenant.pd.reg_mr(&lab.cx, memory().user(), REMOTE_ALL).err().unwrap();
    assert!(matches!(refused, Error::Limit(why) if why.contains("RLIMIT_MEMLOCK")), "{refused}");
    mr.dereg(&lab.cx).unwrap();
    tenant.pd.reg_mr(&lab.cx, memory().user(), REMOTE_ALL).unwrap();
    stub.limit_pinned(0);
}
