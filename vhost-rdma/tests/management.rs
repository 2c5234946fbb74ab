// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The management socket and `vhost-rdma-ctl` as an operator and a clumsy program meet them. What a
//! guest sees of an HCA that comes and goes is tested through the native front end and in VMs.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use vhost_rdma::management::{MAX_CLIENTS, MAX_REQUEST};

/// Longer than anything takes on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

struct TestDaemon {
    child: Child,
    control: PathBuf,
    folder: tempfile::TempDir,
}

impl TestDaemon {
    fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let control = folder.path().join("control.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-rdma"));
        command.env_remove("RUST_LOG").stdin(Stdio::null()).stderr(Stdio::piped());
        command.arg("--control").arg(&control).args(more);
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("waiting for vhost-rdma-ctl") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the daemon ended");
        }
        // So that it never waits for somebody to read its log.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, control, folder }
    }

    fn ctl(&self, args: &[&str]) -> Output {
        ctl(&self.control, args)
    }

    /// A command that succeeds, and what it printed.
    #[track_caller]
    fn done(&self, args: &[&str]) -> String {
        let out = self.ctl(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// A command that is refused, and why.
    #[track_caller]
    fn refused(&self, args: &[&str]) -> String {
        let out = self.ctl(args);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        String::from_utf8(out.stderr).unwrap()
    }

    fn connect(&self) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(&self.control).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        BufReader::new(stream)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        // SAFETY: a signal to our own child, which has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let ended = self.child.wait().unwrap();
        if !std::thread::panicking() {
            assert!(ended.success(), "{ended}");
            assert!(!self.control.exists(), "the socket is left behind");
        }
    }
}

#[test]
fn what_passed_on_the_wire_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let [here, there] = ["here", "there"].map(|n| folder.path().join(n).display().to_string());
    let daemon = TestDaemon::start(&["--port", &format!("dgram:{here},{there}")]);
    assert_eq!(daemon.done(&["wire"]), "WHO  COUNTER  VALUE\n", "nothing yet");
    // Something that nobody knows.
    let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
    socket.send_to(&[[0xff; 12].as_slice(), &[0x88, 0xb5], &[7; 50]].concat(), &here).unwrap();
    let until = Instant::now() + LONG;
    let mut told = String::new();
    while !told.contains("received_bytes") && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
        told = daemon.done(&["wire"]);
    }
    let line = |name: &str, n: u32| {
        told.lines().any(|line| {
            line.split_whitespace().collect::<Vec<_>>().join(" ")
                == format!("network 0, port 1 {name} {n}")
        })
    };
    assert!(line("received", 1) && line("received_bytes", 64), "{told}");
    let all: serde_json::Value = serde_json::from_str(&daemon.done(&["--json", "wire"])).unwrap();
    assert_eq!(all["soft0, network 0, RoCE"]["out_of_seq_request"], 0, "{all}");
}

fn ctl(control: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-rdma-ctl"));
    command.arg("--control").arg(control).args(args).output().unwrap()
}

fn answer(stream: &mut BufReader<UnixStream>, request: &str) -> String {
    stream.get_mut().write_all(request.as_bytes()).unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    line
}

#[test]
fn hcas_and_devices_come_and_go() {
    let daemon = TestDaemon::start(&[]);
    assert_eq!(
        daemon.done(&["hca", "list"]),
        "NAME   HCA         STATE    DEVICES\nsoft0  soft0=soft  present  -\n"
    );
    let one = daemon.path("one.sock");
    daemon.done(&["device", "add", &format!("{one},mac=52:54:00:00:00:01")]);
    assert!(Path::new(&one).exists());
    daemon.done(&["hca", "add", "second=soft"]);
    let two = daemon.path("two.sock");
    daemon.done(&["device", "add", &format!("{two},hca=second,net=3")]);
    let list = daemon.done(&["hca", "list"]);
    assert!(
        list.contains("soft0   soft0=soft   present  one\nsecond  second=soft  present  two\n"),
        "{list}"
    );

    daemon.done(&["hca", "remove", "soft0"]);
    let list = daemon.done(&["device", "list"]);
    let line = |word: &str| list.lines().find(|line| line.contains(word)).unwrap().to_owned();
    assert!(line("one.sock").contains("soft0 (gone)"), "{list}");
    assert!(!line("two.sock").contains("gone"), "{list}");
    daemon.done(&["hca", "add", "soft"]);
    assert!(!daemon.done(&["device", "list"]).contains("gone"));

    daemon.done(&["device", "remove", "one"]);
    assert!(!Path::new(&one).exists());
    daemon.done(&["device", "remove", &two]);
    assert_eq!(daemon.done(&["--json", "device", "list"]), "[]\n");
}

#[test]
fn refusals_say_why() {
    let daemon = TestDaemon::start(&["--hca", "soft", "--hca", "x=soft"]);
    let (a, b) = (daemon.path("a/vm.sock"), daemon.path("b/vm.sock"));
    for path in [&a, &b] {
        std::fs::create_dir(Path::new(path).parent().unwrap()).unwrap();
        daemon.done(&["device", "add", path]);
    }
    for (args, word) in [
        (&["hca", "remove", "y"][..], "there is no HCA 'y'; there are 'soft0', 'x'"),
        (&["hca", "add", "x=soft"], "there is an HCA 'x' already"),
        (&["hca", "add", "magic"], "no HCA driver 'magic'"),
        (&["hca", "add", "z=soft,fast=yes"], "takes wire=always only"),
        (&["hca", "add", "verbs"], "the device is missing"),
        (&["hca", "add", "a=verbs:b"], "keeps its name"),
        (&["hca", "add", "verbs:a,port=0"], "a number from 1"),
        (&["hca", "add", "verbs:a,library=/none.so"], "/none.so can't be loaded"),
        (&["gid", "list", "y"], "there is no HCA 'y'"),
        (&["gid", "list", "x"], "maps no GIDs"),
        (&["device", "add", &a], "already the socket"),
        (&["device", "add", "/no/such/place.sock"], "can't listen"),
        (&["device", "add", "x,mac=1"], "mac="),
        (&["device", "remove", "nobody"], "no device 'nobody'"),
        (&["device", "remove", "vm"], "several devices are named 'vm'"),
        (&["counters", "nobody"], "no device 'nobody'"),
    ] {
        let error = daemon.refused(args);
        assert!(error.contains(word), "{args:?}: {error}");
    }
}

#[test]
fn an_rdma_device_of_the_host_is_used_or_waited_for_and_its_gids_are_mapped() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "0 10.0.0.1 192.0.2.1\n").unwrap();
    let (library, gids) = (verbs_stub::PATH, file.path().display().to_string());
    let stub = format!("verbs:stub0,library={library},gids={gids}");
    let daemon = TestDaemon::start(&["--hca", &stub]);
    daemon.done(&["hca", "add", &format!("verbs:absent,library={library}")]);
    let list = daemon.done(&["hca", "list"]);
    let state = |name: &str| {
        let line = list.lines().find(|line| line.starts_with(name)).unwrap_or(&list);
        line.split_whitespace().nth(2).unwrap_or_default().to_owned()
    };
    assert_eq!((state("stub0"), state("absent")), ("present".to_owned(), "waiting".to_owned()));
    daemon.done(&["device", "add", &format!("{},hca=stub0", daemon.path("vm.sock"))]);
    assert!(!daemon.done(&["device", "list"]).contains("gone"));

    daemon.done(&["gid", "map", "stub0", "fd00::1", "192.0.2.7", "--net", "3"]);
    daemon.done(&["gid", "map", "absent", "10.0.0.2", "192.0.2.2"]);
    let list = daemon.done(&["gid", "list", "stub0"]);
    let wanted = "NET  GUEST     WIRE\n0    10.0.0.1  192.0.2.1\n3    fd00::1   192.0.2.7\n";
    assert_eq!(list, wanted);
    daemon.done(&["gid", "unmap", "stub0", "10.0.0.1"]);
    assert!(daemon.refused(&["gid", "unmap", "stub0", "10.0.0.1"]).contains("not mapped"));
    assert!(daemon.refused(&["gid", "map", "stub0", "ten", "192.0.2.1"]).contains("no GID"));

    daemon.done(&["hca", "remove", "absent"]);
    daemon.done(&["hca", "remove", "stub0"]);
    assert!(daemon.done(&["device", "list"]).contains("stub0 (gone)"));
}

#[test]
fn counters_are_given_for_all_or_one_as_text_and_as_json() {
    let daemon = TestDaemon::start(&[]);
    let path = daemon.path("vm.sock");
    daemon.done(&["device", "add", &path]);
    daemon.done(&["device", "add", &daemon.path("other.sock")]);
    let all = daemon.done(&["counters"]);
    assert!(all.contains("doorbell_kicks") && all.contains("other.sock"), "{all}");
    let one = daemon.done(&["--json", "counters", "vm"]);
    let value: serde_json::Value = serde_json::from_str(&one).unwrap();
    assert_eq!(value.as_object().unwrap().len(), 1);
    assert_eq!(value[&path]["send_wqes"], 0);
}

#[test]
fn without_a_daemon_ctl_says_how_to_get_one() {
    let folder = tempfile::tempdir().unwrap();
    let out = ctl(&folder.path().join("none"), &["hca", "list"]);
    assert_eq!(out.status.code(), Some(3));
    let error = String::from_utf8(out.stderr).unwrap();
    assert!(error.contains("started with --control"), "{error}");
    let out = ctl(&folder.path().join("none"), &["--help"]);
    let help = String::from_utf8(out.stdout).unwrap();
    for word in ["hca", "device", "counters", "--json", "hca remove soft0", "Exit status"] {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn the_socket_is_for_the_daemons_user_only() {
    let daemon = TestDaemon::start(&[]);
    let mode = std::fs::metadata(&daemon.control).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // What it was made in is gone.
    assert_eq!(std::fs::read_dir(daemon.folder.path()).unwrap().count(), 1);
}

#[test]
fn many_requests_may_come_in_one_piece_or_in_many() {
    let daemon = TestDaemon::start(&[]);
    let mut client = daemon.connect();
    let request = r#"{"command":"hca-list","id":"#;
    let all: String = (0..500).map(|n| format!("{request}{n}}}\n\n")).collect();
    client.get_mut().write_all(all.as_bytes()).unwrap();
    for n in 0..500 {
        let mut line = String::new();
        client.read_line(&mut line).unwrap();
        assert!(line.contains(&format!(r#""id":{n}"#)), "{line}");
    }
    for byte in format!("{request}1}}\n").bytes() {
        client.get_mut().write_all(&[byte]).unwrap();
    }
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    assert!(line.starts_with(r#"{"id":1,"ok":["#) || line.starts_with(r#"{"ok":["#), "{line}");
    // The last one without an end of line.
    client.get_mut().write_all(format!("{request}2}}").as_bytes()).unwrap();
    client.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(r#""id":2"#), "{rest}");
}

#[test]
fn bad_input_is_answered_and_harms_nobody() {
    let daemon = TestDaemon::start(&[]);
    let mut client = daemon.connect();
    for bad in ["\u{0}\n", "{\n", "[[[[[[\n", "{\"command\":\"hca-remove\"}\n", "{\"command\":7}\n"]
    {
        let line = answer(&mut client, bad);
        assert!(line.contains("error"), "{bad}: {line}");
    }
    client.get_mut().write_all(b"\xff\xfe\n").unwrap();
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    assert!(line.contains("error"), "{line}");
    // The same client is still served.
    assert!(answer(&mut client, "{\"command\":\"hca-list\"}\n").contains("soft0"));

    // A request without end: an answer, and the end of the connection.
    let mut endless = daemon.connect();
    let mut sent = 0;
    while sent < 16 * MAX_REQUEST && endless.get_mut().write_all(&[b'['; 4096]).is_ok() {
        sent += 4096;
    }
    let mut line = String::new();
    // The daemon may be gone from this connection before everything was read.
    match endless.read_line(&mut line) {
        Ok(_) => assert!(line.contains("bytes at the most"), "{line}"),
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
    }
    daemon.done(&["hca", "list"]);
}

#[test]
fn clients_that_never_read_or_never_go_are_bounded() {
    let daemon = TestDaemon::start(&[]);
    // Sends until nothing fits any more, and reads nothing.
    let deaf = UnixStream::connect(&daemon.control).unwrap();
    deaf.set_nonblocking(true).unwrap();
    let requests = "{\"command\":\"counters\"}\n".repeat(1000);
    let mut sent = 0;
    while sent < 256 << 20 {
        match (&deaf).write(requests.as_bytes()) {
            Ok(n) => sent += n,
            Err(_) => break,
        }
    }
    daemon.done(&["hca", "list"]);

    let mut idle: Vec<_> = (1..MAX_CLIENTS).map(|_| daemon.connect()).collect();
    // All of them have been accepted when the last one is answered.
    assert!(answer(idle.last_mut().unwrap(), "{\"command\":\"hca-list\"}\n").contains("ok"));
    let mut one_more = daemon.connect();
    let mut line = String::new();
    one_more.read_line(&mut line).unwrap();
    assert!(line.contains("try again later"), "{line}");
    assert_eq!(one_more.read_line(&mut line).unwrap(), 0);
    // One that is answered is known to be there; so is one that has gone, when its place is free.
    drop(idle.pop());
    let again = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        daemon.ctl(&["hca", "list"]).status.success()
    });
    assert!(again, "the place of a client that left stays taken");
}
