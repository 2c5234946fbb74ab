// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A daemon and a QEMU under qtest for one check: started, killed, and cleaned up after.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::net;
use serde_json::{Value, json};

use crate::driver::Driver;
use crate::pci::{Function, RootPort};
use crate::{Error, Qmp, Qtest};

/// Starting a program on a loaded machine.
const START_TIME: Duration = Duration::from_secs(60);
/// Ending it.
const END_TIME: Duration = Duration::from_secs(30);
/// Slot of the root port on the root bus.
const ROOT_PORT_SLOT: u8 = 3;

/// The MAC address that the checks give the device.
pub(crate) const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x42, 0x00, 0x01];

/// What is checked.
#[derive(Clone, Debug)]
pub struct Env {
    /// `qemu-system-x86_64` with the device.
    pub qemu: PathBuf,
    /// The daemon: it is called with `--socket-path PATH`.
    pub daemon: PathBuf,
}

/// The machine that a check needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    /// PCI Express with one root port in which nothing is plugged.
    Q35,
    /// virtio-mmio, with the device.
    Microvm,
}

/// A socket on which nobody gets a connection, until this is dropped.
#[derive(Debug)]
pub(crate) struct Stall {
    _listener: OwnedFd,
    _filler: UnixStream,
}

/// One check's processes. Dropping it kills them.
#[derive(Debug)]
pub struct Bench {
    env: Env,
    dir: tempfile::TempDir,
    daemon: Option<Child>,
    qemu: Child,
    pub(crate) qmp: Qmp,
    pub(crate) qtest: Qtest,
}

impl Bench {
    /// Starts the daemon and a QEMU.
    ///
    /// # Errors
    /// [`Error::Start`], or what the first words with QEMU gave.
    pub(crate) fn start(env: &Env, machine: Machine) -> Result<Self, Error> {
        let dir = tempfile::tempdir().map_err(Error::io("making a temporary directory"))?;
        let daemon = start_daemon(env, dir.path())?;
        let qemu = match start_qemu(env, dir.path(), machine) {
            Ok(qemu) => qemu,
            Err(error) => {
                end(daemon);
                return Err(error);
            }
        };
        let sessions = Qmp::connect(&dir.path().join("qmp"), START_TIME).and_then(|qmp| {
            Qtest::connect(&dir.path().join("qtest"), START_TIME).map(|qtest| (qmp, qtest))
        });
        let (qmp, qtest) = match sessions {
            Ok(sessions) => sessions,
            Err(error) => {
                end(daemon);
                end(qemu);
                return Err(with_log(error, &dir.path().join("qemu.log")));
            }
        };
        let mut bench = Self { env: env.clone(), dir, daemon: Some(daemon), qemu, qmp, qtest };
        if machine == Machine::Q35 {
            bench.root_port()?;
        }
        Ok(bench)
    }

    /// Plugs the device in, with `more` properties beside the chardev, the bus and the MAC.
    pub(crate) fn plug(&mut self, more: Value) -> Result<(), Error> {
        let mut arguments = json!({
            "driver": "vhost-user-rdma-pci", "id": "rdma0", "bus": "rp0", "chardev": "c0",
            "page-per-vq": true,
            "mac": MAC.map(|byte| format!("{byte:02x}")).join(":"),
        });
        if let (Some(all), Some(more)) = (arguments.as_object_mut(), more.as_object()) {
            all.extend(more.clone());
        }
        self.qmp.execute("device_add", arguments)?;
        self.root_port()?.power(&mut self.qtest, true)
    }

    /// Plugs the device in and starts its driver, as far as INIT.
    pub(crate) fn plug_and_start(&mut self) -> Result<Driver, Error> {
        self.plug(json!({}))?;
        let mut driver = Driver::probe(&mut self.qtest)?;
        driver.start(&mut self.qtest)?;
        driver.init(&mut self.qtest)?;
        Ok(driver)
    }

    /// Asks for the device to be unplugged, does what the guest does then, and waits for the end.
    pub(crate) fn unplug(&mut self) -> Result<(), Error> {
        self.qmp.execute("device_del", json!({"id": "rdma0"}))?;
        self.root_port()?.power(&mut self.qtest, false)?;
        self.qmp.wait_event("DEVICE_DELETED", END_TIME).map(drop)
    }

    /// Opens the root port's windows, and switches its slot on; again after a system reset.
    pub(crate) fn root_port(&mut self) -> Result<RootPort, Error> {
        RootPort::set_up(&mut self.qtest, ROOT_PORT_SLOT)
    }

    /// Vendor and device ID of what is behind the root port; all ones when there is nothing.
    pub(crate) fn plugged_id(&mut self) -> Result<u32, Error> {
        Function::new(1, 0).id(&mut self.qtest)
    }

    /// Kills the daemon with SIGKILL, and waits until QEMU has noticed.
    pub(crate) fn kill_daemon(&mut self) -> Result<(), Error> {
        self.kill_daemon_unnoticed();
        self.wait_chardev("disconnected:")
    }

    /// Kills the daemon with SIGKILL; QEMU may notice only when it speaks to it.
    pub(crate) fn kill_daemon_unnoticed(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            end(daemon);
        }
    }

    /// Puts a socket in the daemon's place where connecting goes on and on: its backlog is full.
    pub(crate) fn stall(&self) -> Result<Stall, Error> {
        let path = self.dir.path().join("rdma.sock");
        let failed = || Error::io("stalling the daemon's socket");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed()(error));
            }
            _ => (),
        }
        let listen = || -> rustix::io::Result<OwnedFd> {
            let socket = net::socket(net::AddressFamily::UNIX, net::SocketType::STREAM, None)?;
            net::bind(&socket, &net::SocketAddrUnix::new(&path)?)?;
            net::listen(&socket, 0)?;
            Ok(socket)
        };
        let listener = listen().map_err(|error| failed()(error.into()))?;
        let filler = UnixStream::connect(&path).map_err(failed())?;
        Ok(Stall { _listener: listener, _filler: filler })
    }

    /// Starts the daemon again, and waits until QEMU has connected to it.
    pub(crate) fn restart_daemon(&mut self) -> Result<(), Error> {
        self.daemon = Some(start_daemon(&self.env, self.dir.path())?);
        self.wait_chardev("unix:")
    }

    fn wait_chardev(&mut self, prefix: &str) -> Result<(), Error> {
        let deadline = Instant::now() + START_TIME;
        loop {
            let chardevs = self.qmp.execute("query-chardev", json!({}))?;
            let found = chardevs.as_array().and_then(|all| all.iter().find(|c| c["label"] == "c0"));
            let name = found.and_then(|chardev| chardev["filename"].as_str()).unwrap_or_default();
            if name.starts_with(prefix) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::TimedOut {
                    what: format!("chardev that is {prefix:?} (it is {name:?})"),
                    after: START_TIME,
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What `x-query-virtio-status` says of the device on PCI.
    pub(crate) fn virtio_status(&mut self) -> Result<Value, Error> {
        let path = "/machine/peripheral/rdma0/virtio-backend";
        self.qmp.execute("x-query-virtio-status", json!({"path": path}))
    }

    /// What it says of the device on virtio-mmio.
    pub(crate) fn virtio_mmio_status(&mut self) -> Result<Value, Error> {
        self.qmp.execute("x-query-virtio-status", json!({"path": "/machine/peripheral/rdma0"}))
    }

    /// Ends QEMU by QMP, which must work, and then the daemon.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        self.qmp.execute("quit", json!({}))?;
        let status = wait(&mut self.qemu, END_TIME)?;
        if !status.success() {
            return Err(Error::check(format!("QEMU ended with {status}")));
        }
        Ok(())
    }

    /// Whether QEMU still runs, and the end of what both programs wrote to their standard error.
    pub(crate) fn logs(&mut self) -> String {
        let qemu = match wait(&mut self.qemu, Duration::from_secs(1)) {
            Ok(status) => format!("QEMU ended with {status}"),
            Err(_) => "QEMU still runs".to_owned(),
        };
        let logs = ["daemon.log", "qemu.log"]
            .map(|name| format!("{name}:\n{}", tail(&self.dir.path().join(name))));
        format!("{qemu}\n{}", logs.join("\n"))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Either may have ended by itself.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn start_daemon(env: &Env, dir: &Path) -> Result<Child, Error> {
    start(
        Command::new(&env.daemon).arg("--socket-path").arg(dir.join("rdma.sock")),
        &dir.join("daemon.log"),
    )
}

fn start_qemu(env: &Env, dir: &Path, machine: Machine) -> Result<Child, Error> {
    let path = |name: &str| dir.join(name).display().to_string();
    let mut command = Command::new(&env.qemu);
    command
        .args(["-nodefaults", "-display", "none", "-accel", "qtest", "-m", "64M"])
        .args(["-object", "memory-backend-memfd,id=mem0,size=64M,share=on"])
        .arg("-chardev")
        .arg(format!("socket,id=c0,path={},reconnect-ms=100", path("rdma.sock")))
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", path("qmp")))
        .arg("-qtest")
        .arg(format!("unix:{},server=on,wait=off", path("qtest")))
        .args(["-qtest-log", "/dev/null"]);
    let port = format!("pcie-root-port,id=rp0,slot=1,addr={ROOT_PORT_SLOT:#x},pref64-reserve=32M");
    match machine {
        Machine::Q35 => command
            .args(["-machine", "q35,memory-backend=mem0"])
            // The root port's own hot-plug instead of ACPI's: it needs no ACPI interpreter.
            .args(["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"])
            .args(["-device", &port]),
        Machine::Microvm => command
            .args(["-machine", "microvm,memory-backend=mem0"])
            .args(["-global", "virtio-mmio.force-legacy=false"])
            .args(["-device", "vhost-user-rdma,id=rdma0,chardev=c0,num-comp-vectors=2"]),
    };
    start(&mut command, &dir.join("qemu.log"))
}

fn start(command: &mut Command, log: &Path) -> Result<Child, Error> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(Error::io(format!("opening {}", log.display())))?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|source| Error::Start { program: PathBuf::from(command.get_program()), source })
}

fn end(mut child: Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

fn wait(child: &mut Child, patience: Duration) -> Result<ExitStatus, Error> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().map_err(Error::io("waiting for QEMU"))? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            return Err(Error::TimedOut { what: "end of QEMU".to_owned(), after: patience });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn with_log(error: Error, log: &Path) -> Error {
    Error::Check(format!("{error}\n{}", tail(log)))
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
