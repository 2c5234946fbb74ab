// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program as an operator meets it: options, errors, signals, sockets. What a device does is
//! tested through the native front end.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-rdma"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

/// A daemon that listens on `path`, and its log as far as that says so.
fn start(path: &Path, more: &[&str]) -> (Child, BufReader<std::process::ChildStderr>) {
    let mut child =
        program().arg("--socket-path").arg(path).args(more).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("waiting for a front end") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "the daemon ended");
    }
    (child, log)
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: a signal to our own child, which has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

#[test]
fn help_teaches_how_to_start_it_with_qemu() {
    let out = String::from_utf8(run(&["--help"]).stdout).unwrap();
    for word in ["--socket-path", "vhost-user-rdma-pci", "share=on", "SIGTERM", "--poll-us"] {
        assert!(out.contains(word), "{word}");
    }
}

#[test]
fn capabilities_are_those_of_an_rdma_back_end() {
    let out = run(&["--print-capabilities"]);
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains(r#""type": "rdma""#), "{text}");
}

#[test]
fn errors_name_the_cause() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let live = dir.path().join("live.sock");
    let _listener = UnixListener::bind(&live).unwrap();
    let missing = dir.path().join("no/such/dir.sock");
    for (path, word) in [
        (file.to_str().unwrap(), "not a socket"),
        (live.to_str().unwrap(), "another program listens"),
        (missing.to_str().unwrap(), "can't listen"),
        ("x.sock,mac=zz", "mac="),
    ] {
        let out = run(&["--socket-path", path]);
        assert!(!out.status.success());
        let error = String::from_utf8(out.stderr).unwrap();
        assert!(error.contains(word), "{path}: {error}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    assert!(!run(&[]).status.success(), "a daemon without a device");
}

#[test]
fn errors_of_ports_name_cause_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vm.sock");
    let (taken, other) = (dir.path().join("taken"), dir.path().join("other"));
    let _socket = UnixDatagram::bind(&taken).unwrap();
    let in_use = format!("dgram:{},{}", taken.display(), other.display());
    let pcap = dir.path().join("no/wire.pcap");
    for (arguments, words) in [
        (["--port", "packet:vr-none"], ["vr-none", "ip link"]),
        (["--port", in_use.as_str()], ["taken", "in use"]),
        (["--port", "eth0"], ["eth0", "tap:NAME"]),
        (["--pcap", pcap.to_str().unwrap()], ["wire.pcap", "No such file"]),
    ] {
        let socket = socket.to_str().unwrap();
        let out = run(&[&["--socket-path", socket][..], &arguments].concat());
        assert!(!out.status.success());
        let error = String::from_utf8(out.stderr).unwrap();
        assert!(words.iter().all(|word| error.contains(word)), "{arguments:?}: {error}");
    }
}

#[test]
fn a_guests_virtio_net_reaches_the_port_and_back_and_the_capture_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let bind = |name| {
        let socket = UnixDatagram::bind(path(name)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket
    };
    let (guest, outside) = (bind("guest"), bind("outside"));
    let port = format!("dgram:{},{},mtu=9000", path("port"), path("outside"));
    let socket = format!(
        "{},mac=52:54:00:00:00:01,net-local={},net-remote={}",
        path("vm.sock"),
        path("net"),
        path("guest")
    );
    let (mut child, _log) =
        start(Path::new(&socket), &["--port", &port, "--pcap", &path("wire.pcap")]);
    let mine = [0x52, 0x54, 0, 0, 0, 1];
    let mut frame = [0; 80];
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame[6..12].copy_from_slice(&mine);
    let mut buffer = [0; 100];
    guest.send_to(&frame, path("net")).unwrap();
    assert_eq!(outside.recv(&mut buffer).unwrap(), 80);
    assert_eq!(buffer[..80], frame);
    frame[..6].copy_from_slice(&mine);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    outside.send_to(&frame, path("port")).unwrap();
    assert_eq!(guest.recv(&mut buffer).unwrap(), 80);
    assert_eq!(buffer[..80], frame);
    signal(&child, libc::SIGTERM);
    assert!(child.wait().unwrap().success());
    assert_eq!(std::fs::metadata(path("wire.pcap")).unwrap().len(), 24 + 2 * (16 + 80));
    assert!(!Path::new(&path("port")).exists() && !Path::new(&path("net")).exists());
}

#[test]
fn sigterm_ends_it_in_order_and_takes_the_socket_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.sock");
    // A socket that a killed daemon left behind.
    drop(UnixListener::bind(&path).unwrap());
    let (mut child, _log) = start(&path, &[]);
    signal(&child, libc::SIGTERM);
    assert!(child.wait().unwrap().success());
    assert!(!path.exists());
}

#[test]
fn sigterm_ends_it_when_its_socket_is_gone_and_leaves_what_took_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.sock");
    let (mut child, _log) = start(&path, &[]);
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    signal(&child, libc::SIGTERM);
    assert!(child.wait().unwrap().success());
    assert!(path.exists());
}

#[test]
fn sigterm_ends_it_also_while_a_front_end_is_connected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.sock");
    let (mut child, _log) = start(&path, &["--workers", "2", "--poll-us", "0"]);
    let mut front_end = UnixStream::connect(&path).unwrap();
    signal(&child, libc::SIGTERM);
    assert!(child.wait().unwrap().success());
    assert_eq!(front_end.read(&mut [0]).unwrap_or(0), 0, "disconnected");
}

#[test]
fn sigusr1_logs_the_counters_and_front_ends_may_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.sock");
    let (mut child, mut log) = start(&path, &[]);
    for _ in 0..3 {
        drop(UnixStream::connect(&path).unwrap());
    }
    signal(&child, libc::SIGUSR1);
    let mut line = String::new();
    while !line.contains("doorbell_kicks") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "the daemon ended");
    }
    signal(&child, libc::SIGINT);
    assert!(child.wait().unwrap().success());
}
