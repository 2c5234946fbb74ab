// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Measures the device beside the machine's limits, all in one run on the same two CPUs, and
//! prints a table. What a row does is in `benches::work`, what the limits are in `benches::limits`.

use std::cell::RefCell;
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use benches::apart::{self, TwoQps};
use benches::limits::{self, Echo, EventFds};
use benches::pair::{POLL, Pair, Region};
use benches::setup::{self, IdleQps, Keys};
use benches::stage::{Quiet, Stage};
use benches::table::{self, Goal, Line, Measure, Row};
use benches::work::{self, Asleep, Dirty, Latency, ManyKeys, Messages, Stream};
use benches::{beside, others};
use clap::Parser;
use vhost_rdma::{Cpus, WorkerConfig};

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
    /// QPs that a second daemon has open, and how fast they come; 0 leaves that out
    #[arg(long, default_value_t = 65_400)]
    qps: usize,
    /// MRs that one of its VMs has; 0 leaves that out
    #[arg(long, default_value_t = 999_000)]
    mrs: usize,
    /// Rows that were measured in guests, for the same table (as `cargo lab bench` writes them)
    #[arg(long, value_name = "FILE")]
    beside: Option<PathBuf>,
    /// Where to write the table as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What fits into a core's own cache with room to spare.
const HOT: usize = 256 << 10;
/// What fits into no cache.
const COLD: usize = 96 << 20;
const MEMORY: u64 = 5 << 28;
/// Memory of the VM with very many QPs: a page for each, in the half that is given out in one piece.
const CROWDED: u64 = 5 << 27;

fn main() -> Result<()> {
    let cli = Cli::parse();
    let [driver_cpu, worker_cpu] = cli.cpus[..] else {
        anyhow::bail!("--cpus wants two: the driver's and the worker's");
    };
    let wanted = |name: &str| cli.only.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let pair = Pair::start(worker_cpu, [MEMORY; 2])?;
    let crowd = Crowd::open(&cli, &pair, worker_cpu, &wanted)?;
    let quiet = if cli.shared { Quiet::Shared } else { Quiet::First };
    let stage = Stage::new(driver_cpu, worker_cpu, quiet)?;

    let stream = Rc::new(RefCell::new(Kicked::new(stream(&pair, 64)?)));
    let mut rows = rows(&pair, &stage, &stream)?;
    if let Some(crowd) = &crowd {
        rows.extend(crowd.rows(&pair)?);
    }
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
    once(&cli, &pair, &wanted, &mut lines)?;
    if let Some(crowd) = &crowd {
        lines.extend(crowd.lines().into_iter().filter(|line| wanted(&line.name)));
    }
    lines.extend(apart_lines(&cli, &pair, &wanted)?);
    if cli.only.is_none() {
        lines.extend(others::lines([driver_cpu, worker_cpu], !cli.shared, pp[1]));
    }
    if let Some(path) = &cli.beside {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        lines.extend(beside::lines(&text)?);
    }
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

    for row in as_perftest(pair)? {
        rows.push(row);
    }
    let mut row = |name: &str, measure, yardstick, goal| {
        rows.push(Row { name: name.to_owned(), measure, yardstick, goal });
    };
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

/// What guests do with perftest, for their rows: one buffer, and as much outstanding as perftest has.
fn as_perftest<'r>(pair: &Pair) -> Result<Vec<Row<'r>>> {
    let mut read = latency(pair, 1)?;
    read.read = true;
    let mut rows = vec![Row {
        name: "as perftest: 64 B READ, 1 outstanding".to_owned(),
        measure: Measure::new(move |n| read.run(n)),
        yardstick: None,
        goal: Goal::Beside("pp"),
    }];
    for (name, read) in [
        ("as perftest: 64 KB WRITE, window 128", false),
        ("as perftest: 64 KB READ, window 128", true),
    ] {
        let (from, to) = (pair.a.register(64 << 10)?, pair.b.register(64 << 10)?);
        let mut stream = Stream::new(pair.connect()?, &from, &to, 64 << 10);
        (stream.depth, stream.batch, stream.read) = (128, 1, read);
        rows.push(Row {
            name: name.to_owned(),
            measure: Measure::new(move |n| stream.run(n)),
            yardstick: None,
            goal: Goal::Beside("pp"),
        });
    }
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
            let times = setup::register_gib(&pair.b, shift, 15, !cli.shared)?;
            let times: Vec<f64> = times.iter().map(|t| t.as_nanos() as f64).collect();
            let median = table::quartiles(&times)[1];
            let value = table::nanoseconds(median);
            lines.push(table::figure(name, value, "<= 5 ms", Some(median <= 5e6)));
        }
    }
    Ok(())
}

/// A second daemon, of which one VM has very many QPs and the other very many MRs. Its worker shares the
/// first one's CPU, and sleeps while that works.
struct Crowd {
    pair: Pair,
    opened: Option<IdleQps>,
    keys: Option<Keys>,
    counts: [usize; 2],
}

/// Names of its rows.
const LATENCY: &str = "64 B WRITE, very many open QPs";
const KEYS: &str = "64 B WRITE, a million MRs at random";
const SETUP: &str = "create to RTS";
const IDLE_QP: &str = "memory of an idle QP";
const MR_RATE: &str = "register one page, pipelined";
const MR_BYTES: &str = "memory of an MR of one page";
const IDLE: &str = "idle daemons, all of that open";

impl Crowd {
    fn open(
        cli: &Cli,
        beside: &Pair,
        cpu: usize,
        wanted: &impl Fn(&str) -> bool,
    ) -> Result<Option<Self>> {
        let any = |names: &[&str]| names.iter().any(|name| wanted(name));
        let qps = if any(&[LATENCY, SETUP, IDLE_QP, IDLE]) { cli.qps } else { 0 };
        let mrs = if any(&[KEYS, MR_RATE, MR_BYTES, IDLE]) { cli.mrs } else { 0 };
        if qps + mrs == 0 {
            return Ok(None);
        }
        let workers = WorkerConfig::new(1, Cpus::from(cpu), POLL);
        let pair = beside.another(workers, [CROWDED, 64 << 20])?;
        let mut crowd = Self { pair, opened: None, keys: None, counts: [qps, mrs] };
        if qps > 0 {
            let peer = crowd.pair.connect()?.b.qp.endpoint();
            crowd.opened = Some(setup::open_qps(&crowd.pair.a, peer, qps)?);
        }
        if mrs > 0 {
            crowd.keys = Some(setup::register_many(&crowd.pair.b, mrs)?);
        }
        Ok(Some(crowd))
    }

    fn rows<'r>(&self, beside: &Pair) -> Result<Vec<Row<'r>>> {
        let mut rows = Vec::new();
        if self.opened.is_some() {
            let (mut many, mut one) = (latency(&self.pair, 1)?, latency(beside, 1)?);
            rows.push(Row {
                name: LATENCY.to_owned(),
                measure: Measure::new(move |n| many.run(n)),
                yardstick: Some(Measure::new(move |n| one.run(n))),
                goal: Goal::AtMost("the same with few", 1.1),
            });
        }
        if let Some(keys) = &self.keys {
            let from = self.pair.a.register(4096)?.mr;
            let mut work = ManyKeys::new(self.pair.connect()?, from, keys.rkeys.clone());
            rows.push(Row {
                name: KEYS.to_owned(),
                measure: Measure::new(move |n| work.run(n)).at_most(1024).after(2048),
                yardstick: None,
                goal: Goal::Beside("pp"),
            });
        }
        Ok(rows)
    }

    fn lines(&self) -> Vec<Line> {
        let [qps, mrs] = self.counts;
        let mut lines = Vec::new();
        if let Some(opened) = &self.opened {
            let rate = qps as f64 / opened.took.as_secs_f64();
            let (value, met) = (format!("{rate:.0} QP/s"), Some(rate >= 20_000.0));
            lines.push(table::figure(SETUP, value, ">= 20000", met));
            let (value, met) =
                (format!("{:.0} B", opened.bytes_each), Some(opened.bytes_each <= 4096.0));
            lines.push(table::figure(IDLE_QP, value, "<= 4096", met));
        }
        if let Some(keys) = &self.keys {
            let rate = mrs as f64 / keys.took.as_secs_f64();
            lines.push(table::figure(MR_RATE, format!("{rate:.0} MR/s"), "", None));
            let value = format!("{:.0} B", keys.bytes_each);
            lines.push(table::figure(MR_BYTES, value, "", None));
        }
        lines.iter_mut().for_each(|line| line.note = format!("of {qps} QPs, {mrs} MRs"));
        let share = setup::idle(Duration::from_secs(3));
        let value = format!("{:.3} % CPU", share * 100.0);
        lines.push(table::figure(IDLE, value, "none", Some(share < 0.001)));
        lines
    }
}

/// What is measured apart from the windows.
fn apart_lines(cli: &Cli, pair: &Pair, wanted: &impl Fn(&str) -> bool) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (name, moderated) in
        [("completions an event", false), ("completions an event, moderated to 32", true)]
    {
        if wanted(name) {
            let each = apart::completions_an_event(pair, moderated)?;
            let least = f64::from(apart::MODERATED);
            let (goal, met) = if moderated { (">= 32", Some(each >= least)) } else { ("", None) };
            lines.push(table::figure(name, format!("{each:.1}"), goal, met));
        }
    }
    let name = "1 MB WRITEs of two QPs, two workers";
    if wanted(name) {
        let (mut one, mut two) = (TwoQps::new(pair, 1)?, TwoQps::new(pair, 2)?);
        let (mut times, mut ratios) = (Vec::new(), Vec::new());
        for round in 0..=cli.rounds {
            let alone = one.run(64)?.as_secs_f64();
            let both = two.run(64)?.as_secs_f64();
            if round > 0 {
                times.push(both * 1e9 / 128.0);
                ratios.push(alone / both);
            }
        }
        let line = table::figure(name, table::nanoseconds(table::quartiles(&times)[1]), "", None);
        lines.push(Line {
            ratio: Some(table::quartiles(&ratios)),
            of: "of one worker".to_owned(),
            note: "not alone on the CPUs; the driver sleeps".to_owned(),
            ..line
        });
    }
    Ok(lines)
}
