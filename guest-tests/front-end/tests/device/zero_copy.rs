// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A verbs HCA moves data by itself: the daemon does not as much as look at it.

use std::fs;

use front_end::abi::ring::WC_SUCCESS;
use front_end::{SendWr, access};

use crate::harness::{LONG, Pair, PairOptions, TestResult, check, fill};

/// All mappings in this process of the memory behind a range of its addresses, whosever they are: the
/// front end's and the daemon's. They can be closed, and are open again when this is dropped.
struct Mappings(Vec<(usize, usize)>);

/// A line of /proc/self/maps: first address and end, offset in the file, device and inode.
fn mapped(line: &str) -> Option<(usize, usize, usize, [&str; 2])> {
    let [range, _, offset, device, inode, ..] = line.split_whitespace().collect::<Vec<_>>()[..]
    else {
        return None;
    };
    let (from, to) = range.split_once('-')?;
    let hex = |text| usize::from_str_radix(text, 16).ok();
    Some((hex(from)?, hex(to)?, hex(offset)?, [device, inode]))
}

impl Mappings {
    /// Finds them.
    fn of(address: usize, len: usize) -> TestResult<Self> {
        let text = fs::read_to_string("/proc/self/maps")?;
        let all: Vec<_> = text.lines().filter_map(mapped).collect();
        let (from, _, offset, file) = all
            .iter()
            .find(|(from, to, ..)| *from <= address && address + len <= *to)
            .ok_or("no mapping")?;
        let place = offset + (address - from);
        let same = all.iter().filter(|(from, to, offset, its_file)| {
            its_file == file && *offset <= place && place + len <= offset + (to - from)
        });
        Ok(Self(same.map(|(from, _, offset, _)| (from + (place - offset), len)).collect()))
    }

    fn protect(&self, protection: i32) {
        for (start, len) in &self.0 {
            // SAFETY: whole pages of mappings that live as long as the test; whoever touches them while
            // they are closed ends the process, which is the test.
            assert_eq!(unsafe { libc::mprotect(*start as *mut _, *len, protection) }, 0);
        }
    }
}

impl Drop for Mappings {
    fn drop(&mut self) {
        self.protect(libc::PROT_READ | libc::PROT_WRITE);
    }
}

#[test]
fn the_daemon_can_not_even_read_what_the_hca_moves() -> TestResult {
    const LEN: usize = 64 << 10;
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let Pair { a, b, qa, qb } = &mut pair;
    let mut closed = Vec::new();
    let mut sides = Vec::new();
    for side in [&*a, &*b] {
        let buffer = side.vm.memory().alloc_contiguous(LEN)?;
        closed.push(Mappings::of(buffer.address() as usize, LEN)?);
        // The stub's mapping of these pages comes with the MR, after the others were found.
        let mr = side.driver.reg_mr(&side.pd, &buffer, access::ALL)?;
        sides.push((buffer, mr));
    }
    assert!(closed.iter().all(|found| found.0.len() >= 2), "the front end's and the daemon's");
    let ((from, from_mr), (to, to_mr)) = (&sides[0], &sides[1]);
    fill(from, 0, LEN, 5);
    closed.iter().for_each(|found| found.protect(libc::PROT_NONE));
    let (half, len) = (LEN as u64 / 2, LEN as u32 / 4);
    qb.post_recv(1, &[to_mr.sge(0, len)])?;
    qa.post_send(&SendWr::send(2, &[from_mr.sge(0, len)]).signaled())?;
    let sges = [from_mr.sge(u64::from(len), len)];
    qa.post_send(&SendWr::write(3, &sges, to_mr.remote(u64::from(len))).signaled())?;
    for wr_id in [2, 3] {
        let wc = a.send_cq.wait_one(LONG)?;
        assert_eq!((wc.wr_id, wc.status), (wr_id, WC_SUCCESS));
    }
    assert_eq!(b.recv_cq.wait_one(LONG)?.status, WC_SUCCESS);
    qa.post_send(&SendWr::read(4, &[from_mr.sge(half, 2 * len)], to_mr.remote(0)).signaled())?;
    assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    drop(closed);
    check(to, 0, LEN / 2, 5);
    check(from, LEN / 2, LEN / 2, 5);
    Ok(())
}
