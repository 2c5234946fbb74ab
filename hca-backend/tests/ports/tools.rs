// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What tests of ports share: frames, and ways to take them in.

use std::os::fd::{AsRawFd, RawFd};

use hca_backend::soft::port::{FrameBatch, Port};

/// A frame between stations that are numbers, with a number in it, of a type that nobody uses.
pub fn frame(from: u8, to: u8, number: u32, length: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5];
    frame.extend(number.to_be_bytes());
    for i in frame.len()..length {
        frame.push((i as u32 * 31 + number) as u8);
    }
    frame.truncate(length);
    frame
}

pub fn batch<F: AsRef<[u8]>>(frames: &[F]) -> FrameBatch {
    let mut batch = FrameBatch::new(frames.len());
    frames.iter().for_each(|frame| batch.push(frame.as_ref()));
    batch
}

/// What is there now.
pub fn receive(port: &dyn Port, max: usize) -> Vec<Vec<u8>> {
    let (mut buffer, mut got) = (port.buffer(), Vec::new());
    port.receive(&mut buffer, max, &mut |frame| got.push(frame.to_vec())).unwrap();
    got
}

/// So many frames; sleeps until they are there.
pub fn receive_all(port: &dyn Port, count: usize) -> Vec<Vec<u8>> {
    let mut got = Vec::new();
    while got.len() < count {
        wait_any(&[port.fd().as_raw_fd()]);
        got.extend(receive(port, count));
    }
    got
}

pub fn readable(port: &dyn Port) -> bool {
    poll(&[port.fd().as_raw_fd()], 0)
}

/// Sleeps until one of the descriptors is readable; panics after a minute.
pub fn wait_any(fds: &[RawFd]) {
    assert!(poll(fds, 60_000), "nothing came for a minute");
}

fn poll(fds: &[RawFd], timeout: i32) -> bool {
    let mut fds: Vec<_> =
        fds.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: pointer and length of one live vector.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) > 0 }
}
