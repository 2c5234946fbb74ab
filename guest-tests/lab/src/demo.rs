// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo lab demo`: standard programs between two guests, over our device and over rxe, and the
//! table of both. The programs are run by `guest-tests/scripts/demo.sh`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::fleet::{Job, Parts, Shape};
use crate::print_line;
use crate::progress;

const LIMIT: Duration = Duration::from_secs(1500);

/// Which measurement: program, message length in bytes, polled or with events.
type Name = (String, u64, String);

/// What was measured for one name.
#[derive(Debug, Default, Clone, PartialEq)]
struct Row {
    ours: Figure,
    rxe: Figure,
    /// Over our device, both guests: send work requests, doorbell kicks, CQ interrupts.
    sent: u64,
    kicks: u64,
    interrupts: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Figure {
    /// Not measured.
    #[default]
    Missing,
    /// The program has no such mode.
    None,
    /// MiB/s or microseconds.
    Value(f64),
}

/// The measurements, in the order in which they came.
#[derive(Debug, Default)]
pub struct Measurements {
    names: Vec<Name>,
    rows: BTreeMap<Name, Row>,
}

/// Runs the demonstration and prints its table. False when a program failed.
///
/// # Errors
/// When something can't be built, or guests don't boot.
pub fn run(cache: &Cache, shape: &Shape) -> Result<bool> {
    let (success, measurements) = measure(cache, shape)?;
    Ok(success && measurements.complete())
}

/// As `run`, for others: whether the scripts succeeded, and what was measured.
///
/// # Errors
/// As `run`.
pub fn measure(cache: &Cache, shape: &Shape) -> Result<(bool, Measurements)> {
    let parts = Parts::prepare(cache, shape)?;
    let job = Job::of_script("demo.sh")?;
    let mut measurements = Measurements::default();
    let mut misread = None;
    let outcome = parts.run(&job, LIMIT, &mut |guest, line| match measurements.take(line) {
        Ok(true) => {}
        Ok(false) => match line.strip_prefix("STEP ") {
            Some(step) if guest == 1 => progress::say(step),
            Some(_) => {}
            None => print_line(guest, line),
        },
        Err(error) => misread = Some(error),
    })?;
    println!("\n{}", measurements.table(shape));
    if let Some(error) = misread {
        return Err(error);
    }
    Ok((outcome.success(), measurements))
}

impl Measurements {
    /// Program, bytes, mode, and the figures of ours and of rxe, for each that has one.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, u64, &str, Option<f64>, Option<f64>)> + '_ {
        let figure = |figure: Figure| match figure {
            Figure::Value(value) if value > 0.0 => Some(value),
            _ => None,
        };
        let has_mode = |row: &Row| row.ours != Figure::None && row.rxe != Figure::None;
        self.names
            .iter()
            .map(|name| (name, self.rows[name].clone()))
            .filter(move |(_, row)| has_mode(row))
            .map(move |((program, bytes, mode), row)| {
                (program.as_str(), *bytes, mode.as_str(), figure(row.ours), figure(row.rxe))
            })
    }

    /// Takes a RESULT or COUNT line; false if it is none.
    ///
    /// # Errors
    /// One that makes no sense.
    pub fn take(&mut self, line: &str) -> Result<bool> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["RESULT", side, program, bytes, mode, value] => {
                let figure = match *value {
                    "failed" => Figure::Missing,
                    "none" => Figure::None,
                    number => Figure::Value(number.parse().context(line.to_owned())?),
                };
                let row = self.row(program, bytes, mode)?;
                match *side {
                    "ours" => row.ours = figure,
                    _ => row.rxe = figure,
                }
            }
            ["COUNT", program, bytes, mode, sent, kicks, interrupts] => {
                let number = |text: &str| text.parse::<u64>().context(line.to_owned());
                let (sent, kicks) = (number(sent)?, number(kicks)?);
                let interrupts = number(interrupts)?;
                let row = self.row(program, bytes, mode)?;
                row.sent += sent;
                row.kicks += kicks;
                row.interrupts += interrupts;
            }
            ["RESULT" | "COUNT", ..] => bail!("the guests say: {line}"),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn row(&mut self, program: &str, bytes: &str, mode: &str) -> Result<&mut Row> {
        let bytes = bytes.parse().with_context(|| format!("a length in bytes: {bytes}"))?;
        let name = (program.to_owned(), bytes, mode.to_owned());
        if !self.rows.contains_key(&name) {
            self.names.push(name.clone());
        }
        Ok(self.rows.entry(name).or_default())
    }

    fn complete(&self) -> bool {
        !self.rows.is_empty()
            && self
                .rows
                .values()
                .all(|row| row.ours != Figure::Missing && row.rxe != Figure::Missing)
    }

    fn table(&self, shape: &Shape) -> String {
        let mut text = format!(
            "Two {} guests, one daemon; rxe between the same two guests over their network.\n\
             Bandwidths are averages in MiB/s, latencies typical ones in µs (pingpong: round trip).\n\
             Better by: how many times as fast as rxe. Messages, kicks, interrupts: our device, \
             both guests.\n\n",
            shape.kind
        );
        let _ = writeln!(
            text,
            "{:<16} {:>6} {:<7} {:>14} {:>14} {:>9} {:>10} {:>9} {:>10}",
            "program",
            "bytes",
            "mode",
            "virtio-rdma",
            "rxe",
            "better by",
            "messages",
            "kicks",
            "interrupts"
        );
        for name in &self.names {
            let (program, bytes, mode) = name;
            let row = &self.rows[name];
            let bandwidth = program.ends_with("_bw");
            let unit = if bandwidth { "MiB/s" } else { "µs" };
            let ratio = match (row.ours, row.rxe) {
                (Figure::Value(ours), Figure::Value(rxe)) if ours > 0.0 && rxe > 0.0 => {
                    let ratio = if bandwidth { ours / rxe } else { rxe / ours };
                    format!("{ratio:.1} x")
                }
                _ => "-".to_owned(),
            };
            let _ = writeln!(
                text,
                "{program:<16} {bytes:>6} {mode:<7} {:>14} {:>14} {ratio:>9} {:>10} {:>9} {:>10}",
                row.ours.show(unit),
                row.rxe.show(unit),
                row.sent,
                row.kicks,
                row.interrupts
            );
        }
        if self.rows.values().any(|row| row.ours == Figure::None || row.rxe == Figure::None) {
            text.push_str("\n-: the program has no such mode\n");
        }
        text
    }
}

impl Figure {
    fn show(self, unit: &str) -> String {
        match self {
            Self::Missing => "failed".to_owned(),
            Self::None => "-".to_owned(),
            Self::Value(value) => format!("{value:.2} {unit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Kind;

    fn shape() -> Shape {
        Shape { processors: 1, memory_mib: 512, vectors: 1, ..Shape::of_kind(Kind::Uml) }
    }

    #[test]
    fn counts_of_both_guests_are_added_and_ratios_mean_better() {
        let mut seen = Measurements::default();
        for line in [
            "RESULT ours ib_write_bw 64 polled 10.0",
            "RESULT rxe ib_write_bw 64 polled 2.0",
            "COUNT ib_write_bw 64 polled 100 1 0",
            "COUNT ib_write_bw 64 polled 20 2 3",
            "RESULT ours ib_send_lat 2 polled 5.0",
            "RESULT rxe ib_send_lat 2 polled 50.0",
        ] {
            assert!(seen.take(line).unwrap());
        }
        assert!(!seen.take("hello").unwrap());
        assert!(seen.complete());
        let table = seen.table(&shape());
        let row = table.lines().find(|line| line.starts_with("ib_write_bw")).unwrap();
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words[7..], ["5.0", "x", "120", "3", "3"]);
        assert!(
            table.lines().any(|line| line.starts_with("ib_send_lat") && line.contains("10.0 x"))
        );
    }

    #[test]
    fn a_failed_program_makes_the_demonstration_incomplete() {
        let mut seen = Measurements::default();
        seen.take("RESULT ours ib_read_bw 64 events failed").unwrap();
        seen.take("RESULT rxe ib_read_bw 64 events 1.0").unwrap();
        assert!(!seen.complete());
        assert!(seen.table(&shape()).contains("failed"));
        assert!(seen.take("RESULT ours ib_read_bw x events 1.0").is_err());
    }
}
