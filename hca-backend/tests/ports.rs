// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ports carry frames: whole, in order, to whom they are for. TAP and packet sockets are tested in a
//! network namespace of the test's own, where the process may make one.

mod ports {
    pub mod exchange;
    pub mod host;
    pub mod tools;
}

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use hca_backend::soft::port::{Capture, Dgram, Fault, Faults, OpenError, PcapFile, Port, Switch};
use ports::tools::{batch, frame, readable, receive, receive_all};

#[test]
fn dgram_frames_arrive_whole_and_in_order_and_the_descriptor_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let left = Dgram::open(&a, &b, 9000).unwrap();
    let right = Dgram::open(&b, &a, 9000).unwrap();
    assert!(!readable(&right));
    let frames: Vec<Vec<u8>> = (0..7).map(|i| frame(1, 2, i, 14 + 1300 * i as usize)).collect();
    assert_eq!(left.send(&batch(&frames), 0..7).unwrap(), 7);
    assert!(readable(&right));
    assert_eq!(receive_all(&right, 7), frames);
    assert!(!readable(&right));
    assert_eq!(left.counters().sent, 7);
    assert_eq!(right.counters().received, 7);
    // Part of a batch.
    assert_eq!(right.send(&batch(&frames), 2..4).unwrap(), 2);
    assert_eq!(receive_all(&left, 2), frames[2..4]);
}

#[test]
fn dgram_loses_frames_while_nobody_is_there_and_goes_on_when_somebody_comes_again() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let port = Dgram::open(&a, &b, 1500).unwrap();
    let frames = [frame(1, 2, 0, 60), frame(1, 2, 1, 60)];
    assert_eq!(port.send(&batch(&frames), 0..2).unwrap(), 2);
    assert_eq!(port.counters().send_dropped, 2);
    for _ in 0..2 {
        let peer = UnixDatagram::bind(&b).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(port.send(&batch(&frames), 0..2).unwrap(), 2);
        let mut bytes = [0; 100];
        assert_eq!(peer.recv(&mut bytes).unwrap(), 60);
        assert_eq!(bytes[..60], frames[0]);
        peer.send_to(&frames[1], &a).unwrap();
        assert_eq!(receive_all(&port, 1), frames[1..]);
        drop(peer);
        fs::remove_file(&b).unwrap();
    }
    assert_eq!(port.counters().send_dropped, 2);
}

#[test]
fn dgram_that_is_full_takes_what_fits_and_the_rest_later() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let left = Dgram::open(&a, &b, 1500).unwrap();
    let right = Dgram::open(&b, &a, 1500).unwrap();
    let frames: Vec<Vec<u8>> = (0..20_000u32).map(|i| frame(1, 2, i, 1000)).collect();
    let batch = batch(&frames);
    let (mut sent, mut got) = (0, Vec::new());
    let mut was_full = false;
    while got.len() < frames.len() {
        let taken = left.send(&batch, sent..batch.len()).unwrap();
        sent += taken;
        was_full |= sent < batch.len();
        got.extend(receive(&right, 64));
    }
    assert!(was_full, "20,000 frames fit into a socket");
    assert_eq!(got, frames);
    assert_eq!(left.counters().send_dropped, 0);
}

#[test]
fn dgram_names_what_is_wrong_with_its_path_and_takes_over_a_stale_socket() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let open = |path: &Path| Dgram::open(path, &b, 1500).map(drop);
    let other = UnixDatagram::bind(&a).unwrap();
    assert!(matches!(open(&a), Err(OpenError::InUse { .. })));
    drop(other);
    assert!(a.exists());
    open(&a).unwrap();
    assert!(!a.exists(), "a port removes its socket");
    fs::write(&a, "text").unwrap();
    assert!(matches!(open(&a), Err(OpenError::NotASocket(_))));
    assert!(a.exists());
    let long = folder.path().join("x".repeat(200));
    assert!(matches!(open(&long), Err(OpenError::PathLength(_))));
    let nowhere = folder.path().join("no/such/folder");
    assert!(open(&nowhere).unwrap_err().to_string().contains("no/such/folder"));
}

#[test]
fn the_switch_sends_to_whom_it_knows_and_to_all_others_else() {
    let switch = Switch::new();
    let ports: Vec<_> = (0..3).map(|_| switch.port(1500).unwrap()).collect();
    let send = |from: usize, frame: &[u8]| {
        assert_eq!(ports[from].send(&batch(&[frame]), 0..1).unwrap(), 1);
    };
    // Nobody knows 2 yet.
    send(0, &frame(1, 2, 0, 60));
    assert!(readable(&ports[1]) && readable(&ports[2]) && !readable(&ports[0]));
    assert_eq!(receive_all(&ports[1], 1), receive_all(&ports[2], 1));
    send(1, &frame(2, 1, 1, 60));
    assert_eq!(receive_all(&ports[0], 1), [frame(2, 1, 1, 60)]);
    send(0, &frame(1, 2, 2, 60));
    assert_eq!(receive_all(&ports[1], 1), [frame(1, 2, 2, 60)]);
    assert!(!readable(&ports[2]));
    // To everybody, known or not.
    let mut all = frame(1, 2, 3, 60);
    all[..6].fill(0xff);
    send(0, &all);
    assert_eq!(receive_all(&ports[1], 1), receive_all(&ports[2], 1));
    // A port that has left takes nothing with it.
    let mut ports = ports;
    drop(ports.remove(1));
    assert_eq!(ports[0].send(&batch(&[frame(1, 2, 4, 60)]), 0..1).unwrap(), 1);
    assert!(!readable(&ports[1]));
}

#[test]
fn faults_are_the_same_for_the_same_seed_and_as_many_as_asked_for() {
    let run = |seed| {
        let switch = Switch::new();
        let faults =
            Faults { seed, loss: 100_000, duplicate: 50_000, reorder: 50_000, ..Faults::default() };
        let from = Fault::new(switch.port(1500).unwrap(), faults).unwrap();
        let to = switch.port(1500).unwrap();
        let frames: Vec<Vec<u8>> = (0..4000u32).map(|i| frame(1, 2, i, 60)).collect();
        assert_eq!(from.send(&batch(&frames), 0..4000).unwrap(), 4000);
        let lost = from.counters().send_dropped;
        let got = receive(&to, usize::MAX);
        let numbers: Vec<u32> =
            got.iter().map(|f| u32::from_be_bytes(f[14..18].try_into().unwrap())).collect();
        (lost, numbers)
    };
    let (lost, numbers) = run(7);
    assert_eq!((lost, &numbers), (run(7).0, &run(7).1));
    assert_ne!(numbers, run(8).1);
    assert!((300..500).contains(&lost), "{lost} of 4000 lost, where 400 are to be expected");
    let different: BTreeSet<_> = numbers.iter().collect();
    // The last ones may be held back still.
    assert!(different.len() as u64 + lost + 10 >= 4000);
    assert!(numbers.len() > different.len() + 100, "some come twice");
    let swapped = numbers.windows(2).filter(|w| w[1] < w[0]).count();
    assert!((100..400).contains(&swapped), "{swapped} swaps");
}

#[test]
fn what_a_fault_holds_back_comes_in_the_end_and_the_descriptor_wakes_for_it() {
    let switch = Switch::new();
    let faults = Faults { delay: Duration::from_millis(5), ..Faults::default() };
    let from = Fault::new(switch.port(1500).unwrap(), faults).unwrap();
    let to = Fault::new(switch.port(1500).unwrap(), faults).unwrap();
    let frames = [frame(1, 2, 0, 60), frame(1, 2, 1, 60)];
    assert_eq!(from.send(&batch(&frames), 0..2).unwrap(), 2);
    let mut got = Vec::new();
    while got.len() < 2 {
        // Both ends: one holds frames on their way out, the other on their way in.
        ports::tools::wait_any(&[from.fd().as_raw_fd(), to.fd().as_raw_fd()]);
        assert!(receive(&from, 64).is_empty());
        got.extend(receive(&to, 64));
    }
    assert_eq!(got, frames);
}

#[test]
fn a_capture_file_has_what_passed_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wire.pcap");
    let switch = Switch::new();
    let file = PcapFile::create(&path).unwrap();
    let port = Capture::new(switch.port(1500).unwrap(), file);
    let peer = switch.port(1500).unwrap();
    let (out, back) = (frame(1, 2, 0, 70), frame(2, 1, 1, 61));
    port.send(&batch(&[&out]), 0..1).unwrap();
    peer.send(&batch(&[&back]), 0..1).unwrap();
    assert_eq!(receive_all(&port, 1), [&back[..]]);
    assert!(receive(&port, 1).is_empty());
    // On demand: whole while the port is still open.
    let bytes = fs::read(&path).unwrap();
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(20)), (0xa1b2_3c4d, 1));
    assert_eq!((word(24 + 8), word(24 + 12)), (70, 70));
    assert_eq!(bytes[40..110], out);
    assert_eq!(word(110 + 8), 61);
    assert_eq!(bytes[126..], back);
    let nowhere = PcapFile::create(&folder.path().join("no/file"));
    assert!(nowhere.err().unwrap().to_string().contains("no/file"));
}
