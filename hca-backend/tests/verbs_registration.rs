// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The verbs HCA: what it costs to register memory that lies in pieces. VERBS_TEST_MIB says how much
//! memory. Each piece is a mapping of the process for a while (`vm.max_map_count`).

mod common;
mod verbs;

use std::time::Instant;

use common::*;
use rdma_midlayer::memory::{Run, UserMemory};
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;
use verbs::{Memfd, both};

const PAGE: usize = 4096;
/// The most pieces that are tried.
const MOST: usize = 1 << 16;
const START: u64 = 0x7e00_0000_0000;

#[test]
fn memory_in_few_and_in_many_pieces_is_registered_whole() {
    let mib = std::env::var("VERBS_TEST_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(16);
    let pages = mib << 8;
    both(|lab| {
        let (a, b) = lab.pair();
        let mapping = Memfd::mapping(pages);
        // What a guest has touched is there already; so that no size pays for the others.
        for page in 0..pages {
            // SAFETY: inside the mapping, of which nobody else knows yet.
            unsafe { mapping.base().add(page * PAGE).write_volatile(1) };
        }
        for piece in [pages, 512, 16, pages.div_ceil(MOST)].map(|piece| piece.min(pages)) {
            let count = pages / piece;
            // 5 and a power of two have no common divisor: each piece once, and no two that follow each
            // other in the file.
            let runs = (0..count).map(|n| Run {
                mapping: mapping.clone(),
                offset: n * 5 % count * piece * PAGE,
                len: piece * PAGE,
            });
            let memory = UserMemory::new(START, (pages * PAGE) as u64, 0, Some(12), runs).unwrap();
            let begun = Instant::now();
            let mr = b.tenant.pd.reg_mr(&lab.cx, memory, REMOTE_ALL).unwrap();
            let registered = begun.elapsed();
            // The last byte is the last one of the last piece.
            a.fill(0, &[piece as u8 ^ 0x5a]);
            let last = (count - 1) * 5 % count * piece * PAGE + piece * PAGE - 1;
            let sges = [a.sge(0, 1)];
            let wr = SendWr {
                remote_addr: START + (pages * PAGE - 1) as u64,
                rkey: mr.rkey(),
                ..a.wr(1, WrOpcode::RdmaWrite, &sges, &b, 0)
            };
            a.qp.post_send(&wr).unwrap();
            assert_eq!(lab.next(&a.send).status, WcStatus::Success);
            // SAFETY: inside the mapping; the device has said that it is done.
            assert_eq!(unsafe { mapping.base().add(last).read_volatile() }, piece as u8 ^ 0x5a);
            let begun = Instant::now();
            mr.dereg(&lab.cx).unwrap();
            println!(
                "{mib} MiB in {count} pieces of {} KiB: registered in {:.1} ms, {:.2} us a piece; \
                 deregistered in {:.1} ms",
                piece * PAGE / 1024,
                registered.as_secs_f64() * 1e3,
                registered.as_secs_f64() * 1e6 / count as f64,
                begun.elapsed().as_secs_f64() * 1e3,
            );
        }
    });
}
