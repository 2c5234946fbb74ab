// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Measures RDMA over the wire between two daemons beside the bare ports that join them, in turns in one
//! run, and prints a table.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use benches::wire::{Across, BURST_BYTES, Kind, Raw, first, own_network};
use clap::Parser;
use rdma_midlayer::MaySleep;
use vhost_rdma::affinity;

/// Measures RDMA between two daemons over a pair of ports, beside the ports themselves.
///
/// One core a side. Every figure is the median of some rounds; a ratio is that of two neighbours in
/// time. Needs root, for a network of its own.
#[derive(Parser)]
struct Cli {
    /// The sender's CPU and the receiver's
    #[arg(long, value_delimiter = ',', num_args = 1, default_values_t = [0, 1])]
    cpus: Vec<usize>,
    /// Rounds
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Windows of each round, in which nothing else runs on the two CPUs
    #[arg(long, default_value_t = 20)]
    windows: usize,
    /// Milliseconds of a stream
    #[arg(long, default_value_t = 20)]
    stream: u64,
    /// Only this kind of port
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// Only this
    #[arg(long, value_enum)]
    only: Option<Only>,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    /// Bursts of long messages.
    Throughput,
    /// Short messages, one at a time.
    Latency,
    /// Streams, with losses and without.
    Loss,
}

impl Cli {
    fn wants(&self, what: Only) -> bool {
        self.only.is_none_or(|only| only == what)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The figures of one kind of port.
#[derive(Default)]
struct Figures {
    raw: Vec<f64>,
    ours: Vec<f64>,
    raw_trip: Vec<f64>,
    latency: Vec<f64>,
    lossless: Vec<f64>,
    lossy: Vec<f64>,
}

impl Figures {
    fn print(&self, kind: Kind) {
        let ratio = |a: &[f64], b: &[f64]| median(a.iter().zip(b).map(|(a, b)| a / b).collect());
        let mb = |values: &[f64]| median(values.to_vec()) / 1e6;
        let us = |values: &[f64]| median(values.to_vec()) * 1e6;
        let kind = format!("{kind:?}").to_lowercase();
        if !self.ours.is_empty() {
            println!(
                "{kind}: 4 KB MTU WRITE {:.0} MB/s, raw {:.0} MB/s: {:.2} (goal >= 0.5)",
                mb(&self.ours),
                mb(&self.raw),
                ratio(&self.ours, &self.raw)
            );
        }
        if !self.latency.is_empty() {
            println!(
                "{kind}: 64 B WRITE post to CQE {:.2} us, raw round trip {:.2} us: {:.3} (goal <= 1.35)",
                us(&self.latency),
                us(&self.raw_trip),
                ratio(&self.latency, &self.raw_trip)
            );
        }
        if !self.lossy.is_empty() {
            println!(
                "{kind}: with 0.1 % loss {:.0} MB/s, without {:.0} MB/s: {:.2} (goal >= 0.5)",
                mb(&self.lossy),
                mb(&self.lossless),
                ratio(&self.lossy, &self.lossless)
            );
        }
    }
}

/// Bytes a second of streams, on average over all windows: what a loss costs is in some of them only.
fn streams(across: &mut Across, cli: &Cli) -> Result<f64> {
    let mut slowness = 0.0;
    for _ in 0..cli.windows {
        slowness += 1.0 / first(|| across.stream(Duration::from_millis(cli.stream)))?;
        std::thread::sleep(Duration::from_millis(2 * cli.stream));
    }
    Ok(cli.windows as f64 / slowness)
}

/// Windows of a burst and of some round trips: bytes a second, and seconds.
fn windows<T>(
    cli: &Cli,
    side: &mut T,
    burst: fn(&mut T) -> Result<Duration>,
    trips: fn(&mut T, u32) -> Result<Duration>,
) -> Result<[Option<f64>; 2]> {
    let (mut bursts, mut all_trips) = (Vec::new(), Vec::new());
    for _ in 0..cli.windows {
        if cli.wants(Only::Throughput) {
            bursts.push(first(|| burst(side))?.as_secs_f64());
        }
        if cli.wants(Only::Latency) {
            all_trips.push(first(|| trips(side, 50))?.as_secs_f64());
        }
    }
    let speed = (!bursts.is_empty()).then(|| BURST_BYTES as f64 / median(bursts));
    Ok([speed, (!all_trips.is_empty()).then(|| median(all_trips))])
}

/// One figure of everything, the bare ports' first.
fn round(
    cx: MaySleep,
    cli: &Cli,
    kind: Kind,
    folder: &Path,
    figures: &mut Figures,
) -> Result<MaySleep> {
    let there = cli.cpus.get(1).copied().context("--cpus wants two")?;
    let ports = kind.ports(folder, 0)?;
    let mut raw = Raw::open(&ports, there)?;
    let [speed, trip] = windows(cli, &mut raw, Raw::burst, Raw::round_trips)?;
    figures.raw.extend(speed);
    figures.raw_trip.extend(trip);
    drop(raw);
    let mut across = Across::start(cx, &ports, there)?;
    let [speed, trip] = windows(cli, &mut across, Across::burst, Across::latency)?;
    figures.ours.extend(speed);
    figures.latency.extend(trip);
    if !cli.wants(Only::Loss) {
        return Ok(across.end());
    }
    figures.lossless.push(streams(&mut across, cli)?);
    let cx = across.end();
    let mut across = Across::start(cx, &kind.ports(folder, 1000)?, there)?;
    figures.lossy.push(streams(&mut across, cli)?);
    Ok(across.end())
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let [here, there] = cli.cpus[..] else { anyhow::bail!("--cpus wants two") };
    own_network()?;
    affinity::pin(here)?;
    let mut cx = MaySleep::claim().context("the first thread")?;
    let folder = tempfile::tempdir()?;
    for kind in [Kind::Dgram, Kind::Packet] {
        if cli.kind.is_some_and(|only| only != kind) {
            continue;
        }
        let mut figures = Figures::default();
        for _ in 0..cli.rounds {
            cx = round(cx, &cli, kind, folder.path(), &mut figures)?;
        }
        figures.print(kind);
        if !cli.wants(Only::Loss) {
            continue;
        }
        let mut across = Across::start(cx, &kind.ports(folder.path(), 100_000)?, there)?;
        across.verify(0x5a)?;
        cx = across.end();
        println!("{kind:?}: with 10 % loss every byte of 8 MiB is right");
    }
    Ok(())
}
