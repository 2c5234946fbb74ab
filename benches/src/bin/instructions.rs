// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Counts the instructions that the worker executes from post to CQE, with valgrind's callgrind:
//! the same number on every run, on a busy machine too. One thread is driver and worker in turn, and
//! only the worker's turns are counted. `instructions` compares with `benches/instructions.txt`.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use benches::pair::{Connection, Pair, Region};
use clap::Parser;
use front_end::{SendWr, Wc};
use vhost_rdma::worker::Loop;

/// Counts the worker's instructions from post to CQE and compares them with the budget.
///
/// Needs valgrind. Fails if a figure is more than 5 % over its budget, or 5 % under it: then the
/// budget is to follow (--update).
#[derive(Parser)]
struct Cli {
    /// Write the figures into the budget file
    #[arg(long)]
    update: bool,
    /// The budget file
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.txt"))]
    budget: PathBuf,
    /// Only do the work of one scenario, as it is counted
    #[arg(long, hide = true)]
    scenario: Option<String>,
    /// Keep what callgrind wrote in this folder
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// Operations counted of each scenario.
const OPS: u64 = 6400;

/// (name, what is posted before a turn).
const SCENARIOS: [(&str, Work); 6] = [
    ("write_64_one", Work { batch: 1, len: 64, kind: Kind::Write, signal_every: 1 }),
    ("write_64_burst_16", Work { batch: 16, len: 64, kind: Kind::Write, signal_every: 1 }),
    ("write_64_one_cqe_in_64", Work { batch: 64, len: 64, kind: Kind::Write, signal_every: 64 }),
    ("write_8_inline_burst_16", Work { batch: 16, len: 8, kind: Kind::Inline, signal_every: 1 }),
    ("read_64_burst_16", Work { batch: 16, len: 64, kind: Kind::Read, signal_every: 1 }),
    ("send_recv_64_burst_16", Work { batch: 16, len: 64, kind: Kind::Send, signal_every: 1 }),
];

#[derive(Clone, Copy)]
struct Work {
    batch: u64,
    len: u32,
    kind: Kind,
    signal_every: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    Inline,
    Read,
    Send,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    if let Some(name) = &cli.scenario {
        let found = SCENARIOS.iter().find(|(known, _)| known == name);
        found.context("an unknown scenario")?.1.run()?;
        return Ok(ExitCode::SUCCESS);
    }
    let budget = std::fs::read_to_string(&cli.budget).unwrap_or_default();
    let mut text = String::from(
        "# Instructions of the worker for one operation, from post to CQE, as callgrind counts them.\n\
         # `cargo run --release -p benches --bin instructions -- --update` writes this file.\n",
    );
    let mut within = true;
    for (name, _) in &SCENARIOS {
        let count = count(name, cli.keep.as_deref())?;
        let _ = writeln!(text, "{name} {count:.0}");
        let allowed = budget_of(&budget, name);
        let verdict = match allowed {
            _ if cli.update => "written",
            Some(allowed) if count > allowed * 1.05 => "MORE than 5 % over the budget",
            Some(allowed) if count < allowed * 0.95 => "more than 5 % under: update the budget",
            Some(_) => "within the budget",
            None => "no budget",
        };
        within &= matches!(verdict, "written" | "within the budget");
        let allowed = allowed.map_or("-".to_owned(), |allowed| format!("{allowed:.0}"));
        println!("{name:26} {count:7.1} budget {allowed:>5}  {verdict}");
    }
    if cli.update {
        std::fs::write(&cli.budget, text)?;
    }
    Ok(if within { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn budget_of(budget: &str, name: &str) -> Option<f64> {
    let line = budget.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|count| count.trim().parse().ok())
}

/// Instructions an operation.
fn count(scenario: &str, keep: Option<&Path>) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let out = keep.unwrap_or(dir.path()).join(format!("{scenario}.callgrind"));
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--collect-atstart=no"])
        .arg("--toggle-collect=worker_turn_to_be_counted")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["--scenario", scenario])
        .output()
        .context("running valgrind (Debian package valgrind)")?;
    if !run.status.success() {
        bail!("{scenario} under valgrind: {}", String::from_utf8_lossy(&run.stderr));
    }
    let text = std::fs::read_to_string(&out)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total: u64 = total.and_then(|t| t.trim().parse().ok()).context("callgrind's total")?;
    ensure!(total > OPS, "{scenario}: nothing was counted");
    Ok(total as f64 / OPS as f64)
}

/// The name is callgrind's handle.
#[unsafe(no_mangle)]
#[inline(never)]
fn worker_turn_to_be_counted(turns: &mut Loop, now: Instant) -> bool {
    turns.turn(now)
}

impl Work {
    fn run(self) -> Result<()> {
        let (pair, mut turns) = Pair::stepped([16 << 20; 2])?;
        let mut connection = pair.connect()?;
        let (from, to) = (pair.a.register(8192)?, pair.b.register(8192)?);
        let now = Instant::now();
        // Everything is in caches and tables, and the QP is polled.
        for _ in 0..4 {
            self.post(&mut connection, &from, &to)?;
            while turns.turn(now) {}
            self.poll(&mut connection)?;
        }
        for _ in 0..OPS / self.batch {
            self.post(&mut connection, &from, &to)?;
            let mut worked = true;
            // A turn takes so many WQEs at the most; the one that finds nothing is not counted.
            let mut left = self.batch;
            while left > 0 && worked {
                worked = worker_turn_to_be_counted(&mut turns, now);
                left = left.saturating_sub(32);
            }
            self.poll(&mut connection)?;
        }
        Ok(())
    }

    fn post(self, connection: &mut Connection, from: &Region, to: &Region) -> Result<()> {
        if self.kind == Kind::Send {
            let sges = [to.mr.sge(0, self.len)];
            (0..self.batch).try_for_each(|n| connection.b.qp.put_recv(n, &sges))?;
            connection.b.qp.ring_recv();
        }
        let sges = [from.mr.sge(0, self.len)];
        let bytes = [7; 64];
        for n in 0..self.batch {
            let wr = match self.kind {
                Kind::Write => SendWr::write(n, &sges, to.mr.remote(0)),
                Kind::Inline => {
                    SendWr::write(n, &[], to.mr.remote(0)).inline(&bytes[..self.len as usize])
                }
                Kind::Read => SendWr::read(n, &sges, to.mr.remote(0)),
                Kind::Send => SendWr::send(n, &sges),
            };
            let last = (n + 1).is_multiple_of(self.signal_every);
            connection.a.qp.put_send(&if last { wr.signaled() } else { wr })?;
        }
        connection.a.qp.ring_send();
        Ok(())
    }

    fn poll(self, connection: &mut Connection) -> Result<()> {
        let mut wcs = [Wc::default(); 64];
        let count = connection.a.cq.poll(&mut wcs);
        let wanted = self.batch / self.signal_every;
        ensure!(count as u64 == wanted, "{count} completions instead of {wanted}");
        ensure!(wcs[..count].iter().all(Wc::is_success), "{:?}", wcs[0]);
        if self.kind == Kind::Send {
            let count = connection.b.cq.poll(&mut wcs);
            ensure!(count as u64 == self.batch, "{count} messages instead of {}", self.batch);
        }
        Ok(())
    }
}
