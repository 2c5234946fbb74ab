// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vhost-rdma-ctl`: asks and changes a running daemon over its management socket. What requests mean
//! is in `vhost_rdma::management`; here are words for them, and tables for the answers.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use vhost_rdma::management::{Answer, DeviceStatus, Gid, HcaStatus, Request};

/// Where the daemon's socket is, unless it is said.
const DEFAULT_SOCKET: &str = "/run/vhost-rdma.sock";

const AFTER: &str = "\
The daemon must have been started with --control, by the same user:

  vhost-rdma --control /run/vhost-rdma.sock --socket-path /run/vm1.sock

  vhost-rdma-ctl device add /run/vm2.sock,mac=52:54:00:00:00:02    one more VM may connect
  vhost-rdma-ctl device list                                       which there are, and who is connected
  vhost-rdma-ctl hca remove soft0                                  guests see the HCA go …
  vhost-rdma-ctl hca add soft                                      … and come back, without a reboot
  vhost-rdma-ctl wire                                              retransmits, NAKs, lost frames, by QP
  vhost-rdma-ctl --json counters vm1 | jq                          for programs

Programs may speak to the socket themselves: a line of JSON is a request, a line its answer:
  {\"command\": \"hca-remove\", \"name\": \"soft0\"}   {\"ok\": null} or {\"error\": \"why\"}

Exit status: 0 done; 1 the daemon refused, and said why; 2 the command line is wrong; 3 no daemon.";

/// Changes a running vhost-rdma: HCAs and devices come and go while guests run.
#[derive(Parser, Debug)]
#[command(version, after_help = AFTER)]
struct Cli {
    /// The daemon's management socket.
    #[arg(long, short, value_name = "PATH", env = "VHOST_RDMA_CONTROL",
          default_value = DEFAULT_SOCKET, global = true)]
    control: PathBuf,

    /// Print the daemon's answer as it is, one line of JSON.
    #[arg(long, global = true)]
    json: bool,

    /// Seconds to wait for the daemon's answer.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..), global = true)]
    timeout: u32,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// HCAs: what does the devices' work.
    #[command(subcommand)]
    Hca(HcaCommand),
    /// Devices: one for each VM.
    #[command(subcommand)]
    Device(DeviceCommand),
    /// GIDs of guests, and what stands for them on the wire (verbs HCAs).
    #[command(subcommand)]
    Gid(GidCommand),
    /// What has passed on the wire and what went wrong there: of ports, HCAs and QPs.
    ///
    /// Counters that are 0 are left out, unless --json is given.
    Wire,
    /// What devices have counted: messages, bytes, doorbells, interrupts, errors.
    Counters {
        /// Only this device: its name, or its socket's path.
        device: Option<String>,
    },
}

#[derive(Subcommand, Debug)]
enum HcaCommand {
    /// Plug an HCA in; guests whose device belongs to it see it come.
    Add {
        /// [NAME=]DRIVER[:DEVICE][,KEY=VALUE…], as after the daemon's --hca.
        hca: String,
    },
    /// Unplug an HCA.
    ///
    /// Guests whose device belongs to it see their RDMA device fail and go: open contexts are
    /// disassociated, work in flight is flushed. They wait for an HCA of the same name.
    Remove {
        /// Its name.
        name: String,
    },
    /// All HCAs, and which devices belong to each.
    List,
}

#[derive(Subcommand, Debug)]
enum DeviceCommand {
    /// Add a device; the daemon waits for a front end on its socket.
    Add {
        /// PATH[,mac=MAC][,net=N][,vectors=N][,name=NAME][,hca=NAME], as after the daemon's
        /// --socket-path.
        device: String,
    },
    /// Remove a device; its front end is disconnected, its socket goes.
    Remove {
        /// Its name, or its socket's path.
        name: String,
    },
    /// All devices, their HCAs, and whether a VM is there.
    List,
}

#[derive(Subcommand, Debug)]
enum GidCommand {
    /// Have a guest's GID stand for another one on the wire.
    ///
    /// Counts for QPs that are connected from now on. GIDs are written as addresses, IPv4 or IPv6. By
    /// this, networks of guests may overlap, and guests' addresses need not be the host's.
    Map {
        /// The HCA's name.
        hca: String,
        /// The GID as the guests know it.
        guest: String,
        /// The GID on the wire.
        wire: String,
        /// The guests' network.
        #[arg(long, value_name = "N", default_value_t = 0)]
        net: u64,
    },
    /// Have a guest's GID stand for itself again.
    Unmap {
        /// The HCA's name.
        hca: String,
        /// The GID as the guests know it.
        guest: String,
        /// The guests' network.
        #[arg(long, value_name = "N", default_value_t = 0)]
        net: u64,
    },
    /// All GIDs of an HCA's guests that stand for others.
    List {
        /// The HCA's name.
        hca: String,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error(
        "can't connect to {path}: {error}; is a daemon running that was started with \
         --control {path}?"
    )]
    Connect { path: String, error: std::io::Error },
    #[error("the daemon did not answer: {0}")]
    Talk(#[from] std::io::Error),
    #[error("the daemon closed the connection")]
    Closed,
    #[error("what answered is no vhost-rdma: {0}")]
    Json(#[from] serde_json::Error),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let request = request(&cli.command);
    let answer = match ask(&cli.control, Duration::from_secs(cli.timeout.into()), &request) {
        Ok(answer) => answer,
        Err(e) => {
            eprintln!("vhost-rdma-ctl: {e}");
            return ExitCode::from(3);
        }
    };
    match answer {
        Answer::Ok(value) => {
            let text = if cli.json { format!("{value}\n") } else { show(&cli.command, value) };
            // Who reads may have gone.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Answer::Error(why) => {
            eprintln!("vhost-rdma-ctl: {why}");
            ExitCode::FAILURE
        }
    }
}

fn request(command: &Command) -> Request {
    match command {
        Command::Hca(HcaCommand::Add { hca }) => Request::HcaAdd { hca: hca.clone() },
        Command::Hca(HcaCommand::Remove { name }) => Request::HcaRemove { name: name.clone() },
        Command::Hca(HcaCommand::List) => Request::HcaList,
        Command::Device(DeviceCommand::Add { device }) => {
            Request::DeviceAdd { device: device.clone() }
        }
        Command::Device(DeviceCommand::Remove { name }) => {
            Request::DeviceRemove { name: name.clone() }
        }
        Command::Device(DeviceCommand::List) => Request::DeviceList,
        Command::Gid(GidCommand::Map { hca, guest, wire, net }) => Request::GidMap {
            hca: hca.clone(),
            network: *net,
            guest: guest.clone(),
            wire: wire.clone(),
        },
        Command::Gid(GidCommand::Unmap { hca, guest, net }) => {
            Request::GidUnmap { hca: hca.clone(), network: *net, guest: guest.clone() }
        }
        Command::Gid(GidCommand::List { hca }) => Request::GidList { hca: hca.clone() },
        Command::Wire => Request::WireCounters,
        Command::Counters { device } => Request::Counters { name: device.clone() },
    }
}

fn ask(path: &Path, timeout: Duration, request: &Request) -> Result<Answer, NoAnswer> {
    let mut stream = UnixStream::connect(path)
        .map_err(|error| NoAnswer::Connect { path: path.display().to_string(), error })?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let line = serde_json::to_string(request)?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    if BufReader::new(stream).read_line(&mut answer)? == 0 {
        return Err(NoAnswer::Closed);
    }
    Ok(serde_json::from_str(&answer)?)
}

/// An answer for people. One that is not as expected, as from a later daemon, is shown as it is.
fn show(command: &Command, value: Value) -> String {
    let table = match command {
        Command::Hca(HcaCommand::List) => read(&value).map(hca_table),
        Command::Device(DeviceCommand::List) => read(&value).map(device_table),
        Command::Gid(GidCommand::List { .. }) => read(&value).map(gid_table),
        Command::Wire => read(&value).map(|all| counter_table("WHO", all, |n| n != 0)),
        Command::Counters { .. } => read(&value).map(|all| counter_table("SOCKET", all, |_| true)),
        _ if value.is_null() => return String::new(),
        _ => None,
    };
    table.unwrap_or_else(|| format!("{value}\n"))
}

fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}

fn hca_table(hcas: Vec<HcaStatus>) -> String {
    let rows = hcas.into_iter().map(|hca| {
        let devices = if hca.devices.is_empty() { "-".into() } else { hca.devices.join(",") };
        let state = if hca.present { "present" } else { "waiting" };
        vec![hca.name, hca.hca, state.to_owned(), devices]
    });
    table(&["NAME", "HCA", "STATE", "DEVICES"], rows.collect())
}

fn device_table(devices: Vec<DeviceStatus>) -> String {
    let rows = devices.into_iter().map(|device| {
        let hca = if device.hca_present { device.hca } else { format!("{} (gone)", device.hca) };
        let vm = match (device.connected, device.running) {
            (_, true) => "running",
            (true, false) => "connected",
            (false, false) => "-",
        };
        let mac = device.mac.unwrap_or_else(|| "-".to_owned());
        let (network, vectors) = (device.network.to_string(), device.vectors.to_string());
        vec![device.name, mac, network, vectors, hca, vm.to_owned(), device.socket]
    });
    table(&["NAME", "MAC", "NET", "VECTORS", "HCA", "VM", "SOCKET"], rows.collect())
}

fn gid_table(gids: Vec<Gid>) -> String {
    let rows = gids.into_iter().map(|gid| vec![gid.network.to_string(), gid.guest, gid.wire]);
    table(&["NET", "GUEST", "WIRE"], rows.collect())
}

fn counter_table(whose: &str, all: Map<String, Value>, shown: fn(u64) -> bool) -> String {
    let rows = all.iter().flat_map(|(who, counts)| {
        let counts = counts.as_object().into_iter().flatten();
        let counts = counts.filter(|(_, n)| n.as_u64().is_none_or(shown));
        counts.map(move |(name, n)| vec![who.clone(), name.clone(), n.to_string()])
    });
    table(&[whose, "COUNTER", "VALUE"], rows.collect())
}

/// Columns as wide as what is in them; the last one ends where it ends.
fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let head: Vec<String> = head.iter().map(|word| (*word).to_owned()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&head).chain(&rows).collect();
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|word| word.chars().count()).max()
    };
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        let words = line.iter().zip(&widths).map(|(word, width)| format!("{word:width$}"));
        text.push_str(words.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn tables_are_aligned_and_unknown_answers_are_shown_as_they_are() {
        let hca = HcaStatus {
            name: "soft0".to_owned(),
            hca: "soft0=soft".to_owned(),
            present: true,
            devices: vec!["a".to_owned(), "b".to_owned()],
        };
        let list = Command::Hca(HcaCommand::List);
        let value = serde_json::to_value([hca]).unwrap();
        assert_eq!(
            show(&list, value),
            "NAME   HCA         STATE    DEVICES\nsoft0  soft0=soft  present  a,b\n"
        );
        assert_eq!(show(&list, serde_json::json!({"new": 1})), "{\"new\":1}\n");
    }
}
