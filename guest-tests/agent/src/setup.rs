// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's life in its root: file systems, network, our driver, then the script, whose output
//! goes to the lab line by line.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::barrier::Waiting;
use crate::channel::{self, Sender};
use crate::host;
use crate::job::{FOLDER, Job};
use crate::root::{copy_tree, sorted_files};
use crate::sys::{self, Result};

/// How long an RDMA device may take from its driver's loading to an active port with a GID.
const DEVICE_PATIENCE: Duration = Duration::from_secs(90);
/// The exit status of a guest that could not be set up.
const SETUP_FAILED: i32 = 125;

/// Sets the guest up, runs the job and switches the guest off.
pub fn run() -> Result<()> {
    let job = Job::read()?;
    mount_all()?;
    // SAFETY: no other thread exists yet that could read the environment.
    unsafe {
        std::env::set_var(
            "PATH",
            "/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        std::env::set_var("HOME", "/root");
    }
    symlink("lab-barrier", format!("{FOLDER}/bin/lab-host"))?;
    let (lab, from_lab) = channel::open(job.get("channel")?)?;
    let status = match prepare(&job) {
        Ok(device) => run_job(&job, &device, &lab, from_lab)?,
        Err(error) => {
            lab.send("ready");
            lab.send(&format!("out could not set the guest up: {error}"));
            for line in kernel_log_tail() {
                lab.send(&format!("out   {line}"));
            }
            SETUP_FAILED
        }
    };
    lab.send(&format!("exit {status}"));
    // Let the last line leave a buffered serial line before the machine stops.
    std::thread::sleep(Duration::from_millis(100));
    sys::power_off();
    Err("the machine does not switch itself off".into())
}

fn mount_all() -> Result<()> {
    sys::mount("sys", "/sys", "sysfs", 0, "")?;
    sys::mount("pts", "/dev/pts", "devpts", 0, "ptmxmode=0666")?;
    for place in ["/dev/shm", "/run", "/tmp"] {
        sys::mount("tmpfs", place, "tmpfs", 0, "mode=1777")?;
    }
    let _ = sys::mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, "");
    let _ = sys::mount("debugfs", "/sys/kernel/debug", "debugfs", 0, "");
    for (place, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "fd/0"),
        ("/dev/stdout", "fd/1"),
        ("/dev/stderr", "fd/2"),
    ] {
        let _ = symlink(target, place);
    }
    Ok(())
}

/// Network and driver. Returns the RDMA device's name, empty without one.
fn prepare(job: &Job) -> Result<String> {
    let index = job.get("index")?;
    sys::set_host_name(&format!("guest{index}"))?;
    if let Some(cpuinfo) = job.find("cpuinfo") {
        sys::mount(cpuinfo, "/proc/cpuinfo", "", libc::MS_BIND, "")?;
    }
    fs::write("/etc/hosts", hosts_file(job))?;
    for scope in ["all", "default"] {
        // Duplicate detection would hold the link-local address, and its GID, back for a second.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad"), "0");
    }
    let netdev = job.get("netdev")?;
    ip(&["link", "set", "lo", "up"])?;
    if netdev != "eth0" {
        ip(&["link", "set", netdev, "name", "eth0"])?;
    }
    ip(&["link", "set", "eth0", "mtu", job.get("mtu")?, "up"])?;
    ip(&["address", "add", &format!("{}/24", job.get("address")?), "dev", "eth0"])?;
    for (folder, target) in [("overlay", "/"), ("files", "/root")] {
        let folder = format!("{FOLDER}/{folder}");
        if Path::new(&folder).exists() {
            copy_tree(Path::new(&folder), Path::new(target))?;
        }
    }
    if job.find("rdma") != Some("yes") {
        return Ok(String::new());
    }
    // Built into the UML kernel, modules elsewhere.
    let _ = Command::new("modprobe").args(["-aq", "ib_uverbs", "rdma_ucm", "ib_umad"]).status();
    for module in sorted_files(&format!("{FOLDER}/modules")) {
        sys::load_module(&module)?;
    }
    wait_for_device()
}

fn hosts_file(job: &Job) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
    for index in 0.. {
        let Some(address) = job.find(&format!("env.ADDR_{index}")) else { break };
        text.push_str(&format!("{address} guest{index}\n"));
    }
    text
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(format!("ip {}: {}", arguments.join(" "), why.trim()).into());
    }
    Ok(())
}

/// Waits for the first RDMA device with an active port and a GID made of an address of ours.
fn wait_for_device() -> Result<String> {
    let begun = Instant::now();
    let mut seen = String::from("no RDMA device appeared");
    while begun.elapsed() < DEVICE_PATIENCE {
        if let Some(entry) = sorted_files("/sys/class/infiniband").first() {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let read = |file: &str| {
                fs::read_to_string(entry.join("ports/1").join(file)).unwrap_or_default()
            };
            let active = read("state").contains("ACTIVE");
            let gids = sorted_files(&entry.join("ports/1/gids").to_string_lossy());
            let has_gid = gids.iter().any(|gid| {
                let text = fs::read_to_string(gid).unwrap_or_default();
                text.starts_with("0000:0000:0000:0000:0000:ffff:")
            });
            if active && has_gid {
                return Ok(name);
            }
            seen = format!(
                "RDMA device {name}: port state {}, {} GID for the guest's address",
                read("state").trim(),
                if has_gid { "a" } else { "no" }
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(seen.into())
}

/// Says that the guest is ready, waits for the lab to start all guests, runs the job to its end
/// and returns its exit status.
fn run_job(job: &Job, device: &str, lab: &Sender, from_lab: BufReader<File>) -> Result<i32> {
    let waiting = Waiting::default();
    waiting.serve(lab.clone())?;
    let (start, started) = mpsc::channel();
    std::thread::spawn(move || {
        for line in from_lab.lines().map_while(|line| line.ok()) {
            match line.trim().split_once(' ') {
                None if line.trim() == "start" => drop(start.send(())),
                Some(("go", rest)) => {
                    let (name, values) = rest.split_once(' ').unwrap_or((rest, ""));
                    waiting.answer(name, &format!("go {values}"));
                }
                Some(("broken", name)) => waiting.answer(name, "broken"),
                Some(("did", rest)) => waiting.answer(host::NAME, rest),
                _ => {}
            }
        }
    });
    lab.send("ready");
    started.recv().map_err(|_| "the lab is gone")?;

    let mut command;
    let terminal = job.find("terminal");
    if terminal.is_some() {
        command = Command::new("setsid");
        command.args(["--ctty", "--wait", "bash", "--login", "-i"]);
    } else {
        command = Command::new(format!("{FOLDER}/script"));
        let arguments = fs::read_to_string(format!("{FOLDER}/arguments")).unwrap_or_default();
        command.args(arguments.lines());
    }
    command.current_dir("/root").envs(job.environment()).env("RDMA_DEVICE", device);
    // SAFETY: setrlimit only reads the structure and is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            let unlimited =
                libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &unlimited);
            Ok(())
        });
    }
    let (closed, all_closed) = mpsc::channel::<()>();
    let script;
    if let Some(terminal) = terminal {
        let file = File::options().read(true).write(true).open(terminal)?;
        command.stdin(file.try_clone()?).stdout(file.try_clone()?).stderr(file);
        script = command.spawn()?;
        drop(closed);
    } else {
        let (reader, writer) = std::io::pipe()?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        script = command.spawn()?;
        // The command holds the pipe's ends for the child; keep none here.
        drop(command);
        let lab = lab.clone();
        std::thread::spawn(move || {
            let _closed = closed;
            forward(BufReader::new(reader), &lab);
        });
    }
    // As the first process, this one also gets everybody's orphans.
    loop {
        match sys::wait_any() {
            Some((pid, status)) if pid == script.id() => {
                // What the script left running may hold its output open for ever.
                let _ = all_closed.recv_timeout(Duration::from_secs(1));
                return Ok(status);
            }
            Some(_) => {}
            None => return Err("the script's process was lost".into()),
        }
    }
}

fn forward(mut reader: BufReader<std::io::PipeReader>, lab: &Sender) {
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        lab.send(&format!("out {}", String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r'])));
        line.clear();
    }
}

fn kernel_log_tail() -> Vec<String> {
    let text = Command::new("dmesg").output().map(|output| output.stdout).unwrap_or_default();
    let lines: Vec<String> = String::from_utf8_lossy(&text).lines().map(str::to_owned).collect();
    lines[lines.len().saturating_sub(15)..].to_vec()
}
