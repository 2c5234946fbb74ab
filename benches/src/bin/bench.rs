// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Measures the device beside the machine's limits, all in one run on the same two CPUs, and
//! prints a table. What a row does is in `benches::work`, what the limits are in `benches::limits`.

use std::cell::RefCell;
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use benches::limits::{self, Echo, EventFds};
use benches::pair::{Connection, Pair, Region};
use benches::setup;
use benches::stage::{Quiet, Stage};
use benches::table::{self, Goal, Line, Measure, Row};
use benches::work::{self, Asleep, Dirty, Latency, Messages, Stream};
use clap::Parser;

/// Measures the device through the native front end, beside the limits of the machine.
///
/// One thread is the driver of two VMs, one is the daemon's worker; each has a CPU. Every figure
/// is the median of many short windows, every ratio that of a window to one of its yardstick right
/// before it. pp is a cache line's way from one core to the other.
#[derive(Parser)]
struct Cli {
    /// The driver's CPU and the worker's
    #[arg(long, value_delimiter = ',', num_args = 1, default_values_t = [0, 1])]
    cpus: Vec<usize>,
    /// Windows of each row
    #[arg(long, default_value_t = 60)]
    rounds: usize,
    /// Only rows with this in their names
    #[arg(long)]
    only: Option<String>,
    /// Do not go before other threads of the machine while a window lasts (that needs CAP_SYS_NICE)
    #[arg(long)]
    shared: bool,
    /// Open QPs beside the one in use, and how fast they come; 0 leaves that out
    #[arg(long, default_value_t = 65_400)]
    qps: usize,
    /// Where to write the table as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What fits into a core's own cache with room to spare.
const HOT: usize = 256 << 10;
/// What fits into no cache.
const COLD: usize = 96 << 20;
const MEMORY: u64 = 5 << 28;

fn main() -> Result<()> {
    let cli = Cli::parse();
    let [driver_cpu, worker_cpu] = cli.cpus[..] else {
        anyhow::bail!("--cpus wants two: the driver's and the worker's");
    };
    let pair = Pair::start(worker_cpu, [MEMORY; 2])?;
    let quiet = if cli.shared { Quiet::Shared } else { Quiet::First };
    let stage = Stage::new(driver_cpu, worker_cpu, quiet)?;
    let wanted = |name: &str| cli.only.as_ref().is_none_or(|part| name.contains(part.as_str()));

    let stream = Rc::new(RefCell::new(Kicked::new(stream(&pair, 64)?)));
    let mut rows = rows(&pair, &stage, &stream)?;
    rows.retain(|row| wanted(&row.name));
    let show = |round| {
        eprint!("\rround {round} of {}", cli.rounds);
        let _ = std::io::stderr().flush();
    };
    let (mut lines, pp) = table::measure(&stage, cli.rounds, ping_pong(&stage), rows, show)?;
    eprintln!();
    let stream = stream.borrow();
    if stream.ops > 0 {
        let kicks = stream.stream.connection.a.qp.kicks().0;
        let every = stream.ops as f64 / kicks.max(1) as f64;
        let value = format!("1 in {every:.0}");
        lines.push(table::figure("doorbells in the stream", value, ">= 64", Some(every >= 64.0)));
    }
    once(&cli, &pair, &stage, &wanted, &mut lines)?;
    let regime = format!(
        "{}, {} windows a row, {}, pp {:.0} ns ({:.0} to {:.0})",
        cpu_name(),
        cli.rounds,
        if cli.shared { "not alone on the CPUs" } else { "alone on the CPUs in each window" },
        pp[1],
        pp[0],
        pp[2]
    );
    print!("{}", table::print(&regime, &lines));
    if let Some(path) = &cli.json {
        std::fs::write(path, table::json(&regime, &lines))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find(|line| line.starts_with("model name"));
    name.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown CPU").to_owned()
}

fn ping_pong(stage: &Stage) -> Measure<'_> {
    Measure::new(|ops| limits::ping_pong(&stage.peer, ops))
}

/// A stream whose doorbells are counted.
struct Kicked {
    stream: Stream,
    ops: u64,
}

impl Kicked {
    fn new(stream: Stream) -> Self {
        Self { stream, ops: 0 }
    }

    fn run(&mut self, ops: u64) -> Result<Duration> {
        self.ops += ops;
        self.stream.run(ops)
    }
}

/// A stream of small operations between as many places as the mock ring has.
fn stream(pair: &Pair, len: u32) -> Result<Stream> {
    let mut stream =
        Stream::new(pair.connect()?, &pair.a.register(4096)?, &pair.b.register(4096)?, len);
    stream.places = stream.places.min(limits::PLACES as u64);
    Ok(stream)
}

fn latency(pair: &Pair, mrs: usize) -> Result<Latency> {
    let mrs: Result<Vec<_>> =
        (0..mrs).map(|_| Ok((pair.a.register(4096)?.mr, pair.b.register(4096)?.mr))).collect();
    Ok(Latency::new(pair.connect()?, mrs?, 64))
}

fn rows<'r>(pair: &Pair, stage: &'r Stage, kicked: &Rc<RefCell<Kicked>>) -> Result<Vec<Row<'r>>> {
    let peer = &stage.peer;
    let mut rows = Vec::new();
    let mut row = |name: &str, measure, yardstick, goal| {
        rows.push(Row { name: name.to_owned(), measure, yardstick, goal });
    };
    let echo = |batch: u64, depth: u64| {
        let mut echo = Echo::default();
        Measure::new(move |ops| echo.run(peer, ops, batch, depth))
    };

    row("mock ring, 1 outstanding", echo(1, 1), None, Goal::Beside("pp"));
    let mut one = latency(pair, 1)?;
    row(
        "64 B WRITE, 1 outstanding",
        Measure::new(move |n| one.run(n)),
        None,
        Goal::AtMost("pp", 4.5),
    );
    let mut beside = latency(pair, 1)?;
    row(
        "64 B WRITE beside the mock ring",
        Measure::new(move |n| beside.run(n)),
        Some(echo(1, 1)),
        Goal::Beside("mock"),
    );
    let mut many = latency(pair, 1024)?;
    row(
        "64 B WRITE, 1,024 MRs at random",
        Measure::new(move |n| many.run(n)).at_most(1024).after(2048),
        None,
        Goal::AtMost("pp", 5.5),
    );
    let mut further = Further { one: latency(pair, 1)?, others: others(pair)? };
    row(
        "each further active QP",
        Measure::new(move |n| further.run(n)).at_most(1000),
        None,
        Goal::AtMost("pp", 0.02),
    );
    row("mock ring, posting 16", echo(16, 256), None, Goal::AtLeast("pp", 0.0));
    let kicked = kicked.clone();
    row(
        "64 B WRITEs, posting 16",
        Measure::new(move |n| kicked.borrow_mut().run(n)),
        None,
        Goal::AtLeast("pp", 1.0),
    );
    row("mock ring, posting 1", echo(1, 256), None, Goal::AtLeast("pp", 0.0));
    let mut single = stream(pair, 64)?;
    single.batch = 1;
    row(
        "64 B WRITEs, posting 1",
        Measure::new(move |n| single.run(n)),
        None,
        Goal::AtLeast("pp", 0.55),
    );
    let mut quiet = stream(pair, 64)?;
    quiet.signal_every = 64;
    row(
        "64 B WRITEs, one CQE in 64",
        Measure::new(move |n| quiet.run(n)),
        None,
        Goal::AtLeast("pp", 1.5),
    );
    let (from, to) = (pair.a.register(4096)?.mr, pair.b.register(4096)?.mr);
    let mut messages = Messages { connection: pair.connect()?, from, to, len: 64, batch: 16 };
    row("64 B SEND/RECV", Measure::new(move |n| messages.run(n)), None, Goal::AtLeast("pp", 0.5));

    if let Some(neighbour) = &pair.neighbour {
        let (mut beside, mut alone) = (stream(pair, 64)?, stream(pair, 64)?);
        beside.between = Some(work::rage(neighbour, false, 16)?);
        alone.between = Some(work::rage(neighbour, true, 16)?);
        row(
            "64 B WRITEs beside a VM that rages",
            Measure::new(move |n| beside.run(n)),
            Some(Measure::new(move |n| alone.run(n))),
            Goal::AtLeast("the same without", 0.9),
        );
    }

    for (name, len, batch, goal) in [
        ("64 KB WRITE, window 16, hot", 64 << 10, 1, 0.9),
        ("4 KB WRITE, window 16, posting 4, hot", 4 << 10, 4, 0.6),
        ("4 KB WRITE, window 16, posting 1, hot", 4 << 10, 1, 0.6),
    ] {
        let (measure, yardstick) = beside_memcpy(pair, stage, len, HOT, (16, batch))?;
        row(name, measure, Some(yardstick), Goal::AtLeast("memcpy", goal));
    }
    let (from, to) = (pair.a.register(64 << 10)?, pair.b.register(64 << 10)?);
    let (its_from, its_to) = (from.buffer.clone(), to.buffer.clone());
    let latency = Latency::new(pair.connect()?, vec![(from.mr, to.mr)], 64 << 10);
    let mut dirty = Dirty { latency, from, to };
    row(
        "64 KB WRITE, dirty in the other core",
        Measure::new(move |n| dirty.run(n)),
        Some(Measure::new(move |n| limits::dirty_memcpy(peer, &its_to, &its_from, 64 << 10, n))),
        Goal::AtLeast("memcpy", 1.25),
    );
    let (measure, yardstick) = beside_memcpy(pair, stage, 1 << 20, COLD, (4, 1))?;
    row("1 MB WRITE, cold", measure, Some(yardstick), Goal::AtLeast("memcpy", 1.5));

    let mrs = (pair.a.register(4096)?.mr, pair.b.register(4096)?.mr);
    let driver = pair.a.driver.clone();
    let mut asleep = Asleep { connection: pair.connect()?, driver, mrs };
    let event_fds = EventFds::new()?;
    row(
        "worker asleep, post to event",
        Measure::new(move |n| asleep.run(n)).at_most(4),
        Some(Measure::new(move |n| event_fds.run(peer, n)).at_most(4)),
        Goal::AtMost("eventfd", 1.3),
    );
    Ok(rows)
}

/// WRITEs of `len` bytes, so many outstanding and so many posted together, and `libc`'s memcpy, between
/// the same buffers of `bytes` in all.
fn beside_memcpy<'r>(
    pair: &Pair,
    stage: &'r Stage,
    len: usize,
    bytes: usize,
    window: (u64, u64),
) -> Result<(Measure<'r>, Measure<'r>)> {
    let cold = bytes > HOT;
    let region = |guest: &benches::pair::Guest| {
        if cold { contiguous(guest, bytes) } else { guest.register(bytes) }
    };
    let (from, to) = (region(&pair.a)?, region(&pair.b)?);
    let mut stream = Stream::new(pair.connect()?, &from, &to, len as u32);
    (stream.depth, stream.batch) = window;
    // The daemon's mapping of the guests' memory gets its pages when they are touched first.
    stream.run((bytes / len) as u64)?;
    let mut next = 0;
    let yardstick = move |ops| {
        let took = limits::memcpy(&stage.peer, &to.buffer, &from.buffer, len, next, ops);
        next += ops;
        took
    };
    Ok((Measure::new(move |n| stream.run(n)), Measure::new(yardstick)))
}

/// An MR of contiguous pages: a buffer of very many scattered ones would need too many mappings here.
fn contiguous(guest: &benches::pair::Guest, bytes: usize) -> Result<Region> {
    let buffer = guest.driver.memory().alloc_contiguous(bytes)?;
    let mr = guest.driver.reg_mr(&guest.pd, &buffer, front_end::access::ALL)?;
    Ok(Region { buffer: buffer.into(), mr })
}

/// QPs that are polled beside the one that is measured.
const OTHERS: u32 = 64;

fn others(pair: &Pair) -> Result<Vec<Latency>> {
    (0..OTHERS).map(|_| latency(pair, 1)).collect()
}

struct Further {
    one: Latency,
    others: Vec<Latency>,
}

impl Further {
    /// What one further active QP adds to `ops` operations of another.
    fn run(&mut self, ops: u64) -> Result<Duration> {
        let alone = self.one.run(ops)?;
        for other in &mut self.others {
            other.run(1)?;
        }
        Ok(self.one.run(ops)?.saturating_sub(alone) / OTHERS)
    }
}

/// What is measured once, after the rest.
fn once(
    cli: &Cli,
    pair: &Pair,
    stage: &Stage,
    wanted: &impl Fn(&str) -> bool,
    lines: &mut Vec<Line>,
) -> Result<()> {
    let idle = "idle daemon";
    if wanted(idle) {
        let share = setup::idle(Duration::from_secs(3));
        let value = format!("{:.3} % CPU", share * 100.0);
        lines.push(table::figure(idle, value, "none", Some(share < 0.001)));
    }
    for (name, shift) in [("register 1 GiB, 4 KiB pages", 12), ("register 1 GiB, 2 MiB pages", 21)]
    {
        if wanted(name) {
            let times = setup::register_gib(&pair.b, shift, 15)?;
            let times: Vec<f64> = times.iter().map(|t| t.as_nanos() as f64).collect();
            let median = table::quartiles(&times)[1];
            let value = table::nanoseconds(median);
            lines.push(table::figure(name, value, "<= 5 ms", Some(median <= 5e6)));
        }
    }
    let name = "64 B WRITE, many open QPs";
    if cli.qps == 0 || !wanted(name) {
        return Ok(());
    }
    let ratio = |rounds| -> Result<f64> {
        let mut latency = latency(pair, 1)?;
        let row = Row {
            name: name.to_owned(),
            measure: Measure::new(move |n| latency.run(n)),
            yardstick: None,
            goal: Goal::Beside("pp"),
        };
        let (measured, _) = table::measure(stage, rounds, ping_pong(stage), vec![row], |_| ())?;
        measured.first().and_then(|line| line.ratio).map(|r| r[1]).context("a ratio")
    };
    let few = ratio(cli.rounds)?;
    let connection: Connection = pair.connect()?;
    let opened = setup::open_qps(&pair.a, connection.b.qp.endpoint(), cli.qps)?;
    let rate = cli.qps as f64 / opened.took.as_secs_f64();
    let value = format!("{rate:.0} QP/s");
    lines.push(table::figure("create to RTS", value, ">= 20000", Some(rate >= 20_000.0)));
    let value = format!("{:.0} B", opened.bytes_each);
    let met = Some(opened.bytes_each <= 4096.0);
    lines.push(table::figure("memory of an idle QP", value, "<= 4096", met));
    // They are armed one by one, and then let be.
    std::thread::sleep(Duration::from_millis(500));
    let more = ratio(cli.rounds)? / few;
    let value = format!("{more:.2} x");
    let name = format!("64 B WRITE, {} open QPs beside one", cli.qps + 100);
    lines.push(table::figure(&name, value, "<= 1.1", Some(more <= 1.1)));
    let share = setup::idle(Duration::from_secs(3));
    let value = format!("{:.3} % CPU", share * 100.0);
    lines.push(table::figure("idle daemon, all QPs open", value, "none", Some(share < 0.001)));
    Ok(())
}
