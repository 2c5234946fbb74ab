// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo lab bench`: rows that need guests are measured first, and given to the program that measures
//! all others and prints the one table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::cli::BenchArguments;
use crate::command::output_of;
use crate::demo::{self, Measurements};
use crate::fleet::{Job, Parts, Shape};
use crate::guest::Kind;
use crate::{host, open_cache, print_line, programs, progress};

const LIMIT: Duration = Duration::from_secs(600);

/// Programs of UML guests: the row, the native row that it is held against, and the program.
const UML: &[(&str, &str, &str)] = &[
    ("UML guests, ib_read_lat, 64 B", "as perftest: 64 B READ, 1 outstanding", "ib_read_lat"),
    ("UML guests, ib_write_bw, 64 KB", "as perftest: 64 KB WRITE, window 128", "ib_write_bw"),
    ("UML guests, ib_read_bw, 64 KB", "as perftest: 64 KB READ, window 128", "ib_read_bw"),
];
/// Times as long as native that these may take.
const UML_GOAL: f64 = 1.2;

/// Measures, and prints the table. False when the program failed.
///
/// # Errors
/// When something can't be built or started.
pub fn run(arguments: &BenchArguments) -> Result<bool> {
    let asks = |option: &str| arguments.options.iter().any(|word| word.starts_with(option));
    let rows = match asks("--only") || asks("--help") || asks("-h") {
        true => None,
        false => Some(of_guests(arguments)?),
    };
    let mut command = program();
    if !asks("--json") {
        command.arg("--json").arg(programs::target_directory().join("bench.json"));
    }
    if let Some(rows) = &rows {
        command.arg("--beside").arg(rows);
    }
    let status = command.args(&arguments.options).status().context("starting cargo")?;
    Ok(status.success())
}

/// The measuring program.
fn program() -> Command {
    let mut command = programs::cargo();
    command.args(["run", "--release", "--quiet", "-p", "benches", "--bin", "bench", "--"]);
    command
}

/// Native figures of what the guests do: nanoseconds of an operation, by the row's name.
fn native() -> Result<BTreeMap<String, f64>> {
    let json = tempfile::NamedTempFile::new()?;
    let mut command = program();
    command.args(["--only", "as perftest", "--rounds", "15", "--qps", "0", "--mrs", "0", "--json"]);
    output_of(command.arg(json.path()))?;
    let table: serde_json::Value = serde_json::from_slice(&std::fs::read(json.path())?)?;
    let rows = table["rows"].as_array().context("rows in the table")?;
    let figure = |row: &serde_json::Value| {
        Some((row["name"].as_str()?.to_owned(), row["nanoseconds"].as_f64()?))
    };
    Ok(rows.iter().filter_map(figure).collect())
}

/// Runs something, and what it starts, before others of the machine as far as that goes.
fn before_others<R>(work: impl FnOnce() -> R) -> R {
    const GROUP: &str = "/proc/self/autogroup";
    // Where the system schedules by sessions first, a thread's own priority counts within its session.
    let group = std::fs::read_to_string(GROUP).unwrap_or_default();
    let group_then = group.split_whitespace().last().unwrap_or("0");
    let nice = |own: i32, group: &str| {
        // SAFETY: no pointers; it may fail without more rights, and then nothing changes.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, own) };
        let _ = std::fs::write(GROUP, group);
    };
    // SAFETY: as above.
    let then = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    nice(-15, "-15");
    let result = work();
    nice(then, group_then);
    result
}

/// The rows of guests, or why there are none, in a file as `benches::beside` reads it.
fn of_guests(arguments: &BenchArguments) -> Result<PathBuf> {
    let mut rows = String::new();
    let cache = if arguments.no_guests && !arguments.vms { None } else { Some(open_cache()?) };
    host::try_packages(&["ucx-utils", "libfabric-bin"]);
    match &cache {
        Some(cache) if !arguments.no_guests => uml(cache, &mut rows)?,
        _ => UML.iter().for_each(|(name, ..)| missing(&mut rows, name, "--no-guests")),
    }
    match &cache {
        Some(cache) if arguments.vms => vms(cache, &mut rows)?,
        _ => missing(&mut rows, "QEMU guests beside rxe", "ten minutes more: --vms measures it"),
    }
    let file = programs::target_directory().join("bench-guests.txt");
    std::fs::write(&file, rows).with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

fn missing(rows: &mut String, name: &str, why: &str) {
    let _ = writeln!(rows, "missing\t{name}\t{why}");
}

fn uml(cache: &Cache, rows: &mut String) -> Result<()> {
    let parts = Parts::prepare(cache, &Shape::of_kind(Kind::Uml))?;
    let job = Job::of_script("bench.sh")?;
    let mut figures: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut misread = None;
    // The machine's regime changes: natively before, and after.
    let before = native()?;
    let outcome = before_others(|| {
        parts.run(&job, LIMIT, &mut |guest, line| match line.split_whitespace().collect::<Vec<_>>()
            [..]
        {
            ["FIGURE", program, time] => match time.parse() {
                Ok(time) => figures.entry(program.to_owned()).or_default().push(time),
                Err(_) => misread = Some(line.to_owned()),
            },
            _ => print_line(guest, line),
        })
    })?;
    let after = native()?;
    if let Some(line) = misread {
        bail!("the guests say: {line}");
    }
    for (name, native, program) in UML {
        let times = figures.get_mut(*program).filter(|_| outcome.success());
        match (times, before.get(*native), after.get(*native)) {
            (Some(times), Some(before), Some(after)) => {
                times.sort_by(f64::total_cmp);
                let time = times[times.len() / 2];
                let ratio = time / ((before + after) / 2.0);
                let note = format!("native: {before:.0} ns before, {after:.0} ns after");
                let _ = writeln!(
                    rows,
                    "ready\t{name}\t{time:.0} ns\t{ratio:.3}\tx native\t<= {UML_GOAL}\t{}\t{note}",
                    ratio <= UML_GOAL
                );
            }
            _ => missing(rows, name, "a program failed"),
        }
    }
    Ok(())
}

/// The goals of two QEMU guests: bandwidths at 64 KB, and latencies at 2 bytes.
fn vms(cache: &Cache, rows: &mut String) -> Result<()> {
    progress::say("two QEMU guests, beside rxe in the same guests");
    let (_, measured) = demo::measure(cache, &Shape::of_kind(Kind::Qemu))?;
    rows.push_str(&of_demonstration(&measured));
    Ok(())
}

fn of_demonstration(measured: &Measurements) -> String {
    let mut rows = String::new();
    for (program, bytes, mode, ours, rxe) in measured.pairs() {
        let bandwidth = program.ends_with("_bw");
        let name = format!("QEMU guests, {program}, {bytes} B, {mode}");
        let (Some(ours), Some(rxe)) = (ours, rxe) else {
            missing(&mut rows, &name, "no figure of one of the two");
            continue;
        };
        let (better, unit) = if bandwidth { (ours / rxe, "MiB/s") } else { (rxe / ours, "us") };
        let goal = match (bandwidth, bytes) {
            (true, 65_536) => Some(20.0),
            (false, 2) => Some(5.0),
            _ => None,
        };
        let met = goal.map_or(String::new(), |goal| (better >= goal).to_string());
        let goal = goal.map_or(String::new(), |goal| format!(">= {goal}"));
        let note = format!("rxe: {rxe:.2} {unit}");
        let _ = writeln!(
            rows,
            "ready\t{name}\t{ours:.1} {unit}\t{better:.1}\ttimes rxe\t{goal}\t{met}\t{note}"
        );
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_demonstration_become_rows_with_their_goals() {
        let mut measured = Measurements::default();
        for line in [
            "RESULT ours ib_write_bw 65536 polled 4000",
            "RESULT rxe ib_write_bw 65536 polled 100",
            "RESULT ours ib_read_lat 2 polled 50",
            "RESULT rxe ib_read_lat 2 polled 100",
            "RESULT ours ib_send_bw 64 polled failed",
            "RESULT rxe ib_send_bw 64 polled 1",
        ] {
            assert!(measured.take(line).unwrap());
        }
        let text = of_demonstration(&measured);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
        assert_eq!(lines[0][3..7], ["40.0", "times rxe", ">= 20", "true"]);
        assert_eq!(lines[1][3..7], ["2.0", "times rxe", ">= 5", "false"]);
        assert_eq!(lines[2][0], "missing");
    }
}
