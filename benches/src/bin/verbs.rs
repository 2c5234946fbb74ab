// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Measures what the daemon adds to a device of the host's, by a libibverbs whose post completes at
//! once: the same WRITE through the daemon and straight at the library, in one window; and what it
//! costs to register memory that lies in many pieces.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use benches::limits;
use benches::pair::Pair;
use benches::setup;
use benches::stage::{Quiet, Stage};
use benches::table::{self, Goal, Measure, Row};
use benches::work::Latency;
use clap::Parser;
use verbs_stub::Stub;

/// Measures the verbs HCA over a stub of libibverbs. pp is a cache line's way from one core to the other.
#[derive(Parser)]
struct Cli {
    /// The driver's CPU and the worker's
    #[arg(long, value_delimiter = ',', num_args = 1, default_values_t = [0, 1])]
    cpus: Vec<usize>,
    /// Windows of each row
    #[arg(long, default_value_t = 60)]
    rounds: usize,
    /// Do not go before other threads of the machine while a window lasts (that needs CAP_SYS_NICE)
    #[arg(long)]
    shared: bool,
}

const MEMORY: u64 = 5 << 28;

fn main() -> Result<()> {
    let cli = Cli::parse();
    let [driver_cpu, worker_cpu] = cli.cpus[..] else {
        anyhow::bail!("--cpus wants two: the driver's and the worker's");
    };
    let pair = Pair::over_verbs(worker_cpu, [MEMORY; 2], verbs_stub::PATH)?;
    let quiet = if cli.shared { Quiet::Shared } else { Quiet::First };
    let stage = Stage::new(driver_cpu, worker_cpu, quiet)?;
    let latency = || -> Result<Latency> {
        let mrs = (pair.a.register(4096)?.mr, pair.b.register(4096)?.mr);
        Ok(Latency::new(pair.connect()?, vec![mrs], 64))
    };
    let alone = |ops| {
        // Where the worker runs: the driver's core only waits.
        let took = stage.peer.run(move || Stub::load().post_and_poll(ops))?;
        took.context("the stub's WRITEs failed")
    };
    let (mut through, mut added) = (latency()?, latency()?);
    let row =
        |name: &str, measure, goal| Row { name: name.to_owned(), measure, yardstick: None, goal };
    let rows = vec![
        row("64 B WRITE at the stub alone", Measure::new(alone), Goal::Beside("pp")),
        row(
            "64 B WRITE through the daemon",
            Measure::new(move |ops| through.run(ops)),
            Goal::Beside("pp"),
        ),
        row(
            "what the daemon adds",
            Measure::new(move |ops| Ok(added.run(ops)?.saturating_sub(alone(ops)?))),
            Goal::AtMost("pp", 8.0),
        ),
    ];
    let show = |round| {
        eprint!("\rround {round} of {}", cli.rounds);
        let _ = std::io::stderr().flush();
    };
    let ping_pong = Measure::new(|ops| limits::ping_pong(&stage.peer, ops));
    let (mut lines, pp) = table::measure(&stage, cli.rounds, ping_pong, rows, show)?;
    eprintln!();
    for (name, shift) in [("register 1 GiB, 64 KiB runs", 16), ("register 1 GiB, 2 MiB runs", 21)] {
        let times = setup::register_gib(&pair.b, shift, 7, false)?;
        let times: Vec<f64> = times.iter().map(|t| Duration::as_nanos(t) as f64).collect();
        let median = table::quartiles(&times)[1];
        let runs = f64::from(1u32 << (30 - shift));
        let value = table::nanoseconds(median);
        lines.push(table::figure(name, value, "", None));
        lines.push(table::figure("  of it for a run", table::nanoseconds(median / runs), "", None));
    }
    let regime =
        format!("{} windows a row, pp {:.0} ns ({:.0} to {:.0})", cli.rounds, pp[1], pp[0], pp[2]);
    print!("{}", table::print(&regime, &lines));
    Ok(())
}
