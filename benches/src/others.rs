// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Other people's programs on the same two CPUs, where they are installed: UCX (Debian's ucx-utils) and
//! libfabric (libfabric-bin), between two processes over shared memory.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::table::{self, Line};

/// Runs of each program: they are short, and the machine has neighbours.
const RUNS: usize = 7;
const PATIENCE: Duration = Duration::from_secs(20);

/// What a program tells.
#[derive(Clone, Copy)]
enum Tells {
    /// Microseconds of one way, in this column.
    Micros(usize),
    /// Messages a second, in this column.
    Rate(usize),
}

struct Program {
    name: &'static str,
    package: &'static str,
    command: &'static [&'static str],
    /// Of the side that is started first.
    server: &'static [&'static str],
    client: &'static [&'static str],
    tells: Tells,
}

/// ucx_perftest -f prints: iterations, median, average and overall microseconds, average and overall
/// MB/s, average and overall messages a second.
const MEDIAN: Tells = Tells::Micros(1);
const OVERALL: Tells = Tells::Rate(7);
const UCX: &[&str] = &["env", "UCX_TLS=posix,self", "UCX_LOG_LEVEL=error", "ucx_perftest"];

const PROGRAMS: &[Program] = &[
    Program {
        name: "UCX posix, tag, 64 B, one way",
        package: "ucx-utils",
        command: UCX,
        server: &[],
        client: &["127.0.0.1", "-f", "-t", "tag_lat", "-s", "64", "-n", "20000"],
        tells: MEDIAN,
    },
    Program {
        name: "UCX posix, active message, 64 B, one way",
        package: "ucx-utils",
        command: UCX,
        server: &[],
        client: &["127.0.0.1", "-f", "-t", "ucp_am_lat", "-s", "64", "-n", "20000"],
        tells: MEDIAN,
    },
    Program {
        name: "UCX posix, tags, 64 B, stream",
        package: "ucx-utils",
        command: UCX,
        server: &[],
        client: &["127.0.0.1", "-f", "-t", "tag_bw", "-s", "64", "-n", "100000"],
        tells: OVERALL,
    },
    Program {
        name: "UCX posix, put, 64 KB, stream",
        package: "ucx-utils",
        command: UCX,
        server: &[],
        client: &["127.0.0.1", "-f", "-t", "ucp_put_bw", "-s", "65536", "-n", "4000"],
        tells: OVERALL,
    },
    // bytes, #sent, #ack, total, time, MB/sec, usec/xfer, Mxfers/sec
    Program {
        name: "libfabric shm, 64 B, one way",
        package: "libfabric-bin",
        command: &["fi_pingpong"],
        server: &["-p", "shm", "-e", "rdm", "-S", "64", "-I", "20000"],
        client: &["-p", "shm", "-e", "rdm", "-S", "64", "-I", "20000", "127.0.0.1"],
        tells: Tells::Micros(6),
    },
];

/// Runs all of them on the two CPUs, before others of the machine if `first`. Beside a cache line's way of
/// `pp` nanoseconds.
pub fn lines(cpus: [usize; 2], first: bool, pp: f64) -> Vec<Line> {
    PROGRAMS.iter().map(|program| line(program, cpus, first, pp)).collect()
}

fn line(program: &Program, cpus: [usize; 2], first: bool, pp: f64) -> Line {
    let installed = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", program.package])
        .output()
        .is_ok_and(|output| output.stdout.starts_with(b"installed"));
    if !installed {
        return Line::missing(program.name, &format!("{} is not installed", program.package));
    }
    let mut times = Vec::new();
    let mut failed = None;
    for _ in 0..RUNS {
        match run(program, cpus, first) {
            Ok(time) => times.push(time),
            // Some end badly now and then.
            Err(error) if failed.is_none() => failed = Some(error),
            Err(error) => return Line::missing(program.name, &format!("{error:#}, twice")),
        }
    }
    let [low, mid, high] = table::quartiles(&times);
    let (ratio, of) = match program.tells {
        Tells::Micros(_) => ([low / pp, mid / pp, high / pp], "x pp"),
        Tells::Rate(_) => ([pp / high, pp / mid, pp / low], "ops per pp"),
    };
    let note = "apart from the windows; beside the median of pp".to_owned();
    let line = table::figure(program.name, table::nanoseconds(mid), "", None);
    Line { ratio: Some(ratio), of: of.to_owned(), note, ..line }
}

/// Nanoseconds a way or a message.
fn run(program: &Program, cpus: [usize; 2], first: bool) -> Result<f64> {
    let start = |cpu: usize, arguments: &[&str]| {
        let mut command = Command::new("taskset");
        command.args(["-c", &cpu.to_string()]);
        if first {
            command.args(["chrt", "-f", "1"]);
        }
        command.args(program.command).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().with_context(|| format!("starting {}", program.command.join(" ")))
    };
    let server = start(cpus[1], program.server)?;
    // Until it listens; neither program says when.
    std::thread::sleep(Duration::from_millis(700));
    let text = finish(start(cpus[0], program.client)?);
    let ended = finish(server);
    let text = text.and_then(|text| ended.map(|_| text))?;
    let last = text.lines().rev().find(|line| line.trim_start().starts_with(char::is_numeric));
    let column = match program.tells {
        Tells::Micros(column) | Tells::Rate(column) => column,
    };
    let word = last.and_then(|line| line.split_whitespace().nth(column));
    let value: f64 = word.and_then(|word| word.parse().ok()).context("no figure")?;
    Ok(match program.tells {
        Tells::Micros(_) => value * 1e3,
        Tells::Rate(_) => 1e9 / value,
    })
}

fn finish(mut child: Child) -> Result<String> {
    let begin = Instant::now();
    while child.try_wait()?.is_none() {
        if begin.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            bail!("it did not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", output.status, said.lines().last().unwrap_or_default());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
