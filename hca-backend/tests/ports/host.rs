// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! TAP devices and packet sockets, in a network namespace of the test's own. Where the process may not
//! make one, or the kernel lacks the devices, there is nothing to test, and the tests say so.

use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use hca_backend::soft::port::{OpenError, Packet, Port, Tap};

use super::tools::{batch, frame, receive, wait_any};

/// Runs a test in a thread with a network namespace of its own, if that can be had.
fn in_own_network(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: unshare touches no memory; it moves only this thread.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            eprintln!("not run: no network namespace ({})", std::io::Error::last_os_error());
            return;
        }
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Whether a command of iproute2 succeeded. It runs in the namespace of the thread.
fn ip(arguments: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(arguments.split(' ')).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// RoCE packets of one flow as an HCA sends them, `count` of them, with `bytes` of payload each.
fn flow(count: u16, bytes: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|i| {
            let length = 28 + bytes;
            let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
            frame.extend((length as u16).to_be_bytes());
            frame.extend((0xfff0u16.wrapping_add(i)).to_be_bytes());
            frame.extend([0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let sum: u32 =
                frame[14..34].chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
            let folded = (sum & 0xffff) + (sum >> 16);
            let checksum = !(((folded & 0xffff) + (folded >> 16)) as u16);
            frame[24..26].copy_from_slice(&checksum.to_be_bytes());
            frame.extend(50_000u16.to_be_bytes());
            frame.extend(4791u16.to_be_bytes());
            frame.extend(((8 + bytes) as u16).to_be_bytes());
            frame.extend([0, 0]);
            frame.extend((0..bytes).map(|b| (b as u16).wrapping_mul(7).wrapping_add(i) as u8));
            frame
        })
        .collect()
}

/// Frames that came, but for what the system itself says on a new link (IPv6), and without UDP's
/// checksum, which the kernel may make or leave out.
fn receive_ours(port: &dyn Port, count: usize) -> Vec<Vec<u8>> {
    let mut got = Vec::new();
    while got.len() < count {
        wait_any(&[port.fd().as_raw_fd()]);
        let ours = receive(port, 64).into_iter().filter(|frame| frame[6..11] == [2, 0, 0, 0, 0]);
        got.extend(ours.map(|mut frame| {
            if frame[12..14] == [8, 0] {
                frame[40..42].fill(0);
            }
            frame
        }));
    }
    got
}

/// Waits until a link that has just come up carries frames: before, the system loses them.
fn wait_for_link(from: &dyn Port, to: &dyn Port) {
    // Frames that `receive_ours` passes over.
    let knock = vec![2, 1, 0, 0, 0, 2, 2, 1, 0, 0, 0, 1, 0x88, 0xb5, 0, 0, 0, 0, 0, 0, 0];
    for _ in 0..3000 {
        assert_eq!(from.send(&batch(&[&knock]), 0..1).unwrap(), 1);
        std::thread::sleep(Duration::from_millis(10));
        if receive(to, 64).iter().any(|frame| frame[..12] == knock[..12]) {
            return;
        }
    }
    panic!("the link carries nothing");
}

/// Sends all and takes in all.
fn carry(from: &dyn Port, to: &dyn Port, frames: &[Vec<u8>]) {
    wait_for_link(from, to);
    let batch = batch(frames);
    assert_eq!(from.send(&batch, 0..frames.len()).unwrap(), frames.len());
    let got = receive_ours(to, frames.len());
    assert!(got == frames, "the frames differ");
}

#[test]
fn packet_sockets_carry_frames_over_a_veth_pair_tagged_plain_and_in_bursts() {
    in_own_network(|| {
        if !ip("link add v0 mtu 9000 type veth peer name v1 mtu 9000") {
            return eprintln!("not run: no veth devices here");
        }
        assert!(ip("link set v0 up") && ip("link set v1 up"));
        let (left, right) = (Packet::open("v0").unwrap(), Packet::open("v1").unwrap());
        assert_eq!(left.mtu(), 9000);
        let plain: Vec<Vec<u8>> = (0..5).map(|i| frame(1, 2, i, 60 + 1700 * i as usize)).collect();
        carry(&left, &right, &plain);
        carry(&right, &left, &plain);
        // A run of one flow: one long frame on its way, if the kernel can.
        carry(&left, &right, &flow(16, 4096));
        let mut tagged = frame(1, 2, 7, 100);
        tagged.splice(12..12, [0x81, 0, 0x20, 5]);
        carry(&left, &right, &[tagged]);
    });
}

#[test]
fn a_tap_device_carries_frames_to_and_from_a_packet_socket() {
    in_own_network(|| {
        let tap = match Tap::open("vr-tap0") {
            Ok(tap) => tap,
            Err(e) => return eprintln!("not run: {e}"),
        };
        assert!(matches!(Tap::open("vr-tap0"), Err(OpenError::InUse { .. })));
        assert!(ip("link set vr-tap0 mtu 9000 up"));
        drop(tap);
        // A device that a process made goes with it: make it anew, with the MTU that it then has.
        assert!(ip("tuntap add dev vr-tap0 mode tap vnet_hdr"));
        assert!(ip("link set vr-tap0 mtu 9000 up"));
        let tap = Tap::open("vr-tap0").unwrap();
        assert_eq!(tap.mtu(), 9000);
        let packet = Packet::open("vr-tap0").unwrap();
        let plain: Vec<Vec<u8>> = (0..5).map(|i| frame(1, 2, i, 60 + 1700 * i as usize)).collect();
        carry(&tap, &packet, &plain);
        carry(&packet, &tap, &plain);
        carry(&tap, &packet, &flow(16, 4096));
        carry(&packet, &tap, &flow(16, 4096));
    });
}

#[test]
fn an_interface_that_is_missing_or_misnamed_is_named() {
    for name in ["vr-none", "", "a-name-of-16-byte"] {
        let error = Packet::open(name).err().unwrap();
        match name {
            "vr-none" => assert!(matches!(error, OpenError::NoInterface(_)), "{error}"),
            _ => assert!(matches!(error, OpenError::BadName(_)), "{error}"),
        }
        assert!(error.to_string().contains(name));
    }
}
