// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo lab wire`: perftest between two guests that a wire joins, with rxe and our device at either
//! end, and the table of all four. The programs are run by `guest-tests/scripts/wire.sh`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::fleet::{Job, Parts, Shape};
use crate::guest::Kind;
use crate::print_line;
use crate::progress;

const LIMIT: Duration = Duration::from_secs(900);

/// Who is at the two ends, client first: how it is called, the shape, the guest that serves.
fn pairs(kind: Kind) -> [(&'static str, Shape, &'static str); 4] {
    let both = Shape::of_kind(kind);
    let mixed = Shape { outside: 1, ..both.clone() };
    [
        ("rxe-rxe", Shape { rdma: false, ..both.clone() }, "0"),
        ("ours-rxe", mixed.clone(), "0"),
        ("rxe-ours", mixed, "1"),
        ("ours-ours", Shape { apart: true, ..both }, "0"),
    ]
}

/// Figures of one program and length, by pair.
type Figures = BTreeMap<&'static str, Vec<f64>>;

/// Measures and prints the table. False when a program failed.
///
/// # Errors
/// When something can't be built, or guests don't boot.
pub fn run(cache: &Cache, kind: Kind, rounds: u32) -> Result<bool> {
    let pairs = pairs(kind);
    let mut prepared = Vec::new();
    for (name, shape, server) in &pairs {
        let mut job = Job::of_script("wire.sh")?;
        job.arguments = vec![(*server).to_owned()];
        prepared.push((*name, Parts::prepare(cache, shape)?, job));
    }
    let mut rows: Vec<(String, Figures)> = Vec::new();
    let mut whole = true;
    for round in 1..=rounds {
        for (pair, parts, job) in &prepared {
            progress::say(format_args!("round {round}, {pair}"));
            let outcome = parts.run(job, LIMIT, &mut |guest, line| {
                if !line.starts_with("RESULT ") {
                    print_line(guest, line);
                }
            })?;
            whole &= outcome.success();
            for line in outcome.lines.iter().flatten() {
                let Some(result) = line.strip_prefix("RESULT ") else { continue };
                let (name, value) = result.rsplit_once(' ').context("a result without a value")?;
                let value = value.parse().with_context(|| format!("the guests say: {line}"))?;
                let place = rows.iter().position(|(row, _)| row == name).unwrap_or_else(|| {
                    rows.push((name.to_owned(), Figures::new()));
                    rows.len() - 1
                });
                rows[place].1.entry(pair).or_default().push(value);
            }
        }
    }
    println!(
        "\nTwo {kind} guests joined by Unix datagrams, MTU 9000, path MTU 4096; client-server.\n\
         Medians of {rounds}: MiB/s on average, or µs, typically, there (and not back).\n"
    );
    print!("{:<14} {:>6}", "program", "bytes");
    prepared.iter().for_each(|(pair, ..)| print!(" {pair:>12}"));
    println!();
    for (name, figures) in &rows {
        let (program, bytes) = name.split_once(' ').unwrap_or((name, ""));
        print!("{program:<14} {bytes:>6}");
        for (pair, ..) in &prepared {
            match figures.get(pair).and_then(|values| median(values)) {
                Some(value) => print!(" {value:>12.2}"),
                None => print!(" {:>12}", "-"),
            }
        }
        println!();
    }
    Ok(whole && !rows.is_empty())
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod unit_tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[]), None);
    }
}
