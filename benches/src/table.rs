// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Windows of many measurements taken in turn, their medians and ratios, and how they are printed.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::stage::{Stage, WINDOW};

/// So many operations; how long they took.
pub type Run<'r> = Box<dyn FnMut(u64) -> Result<Duration> + 'r>;

/// Something that is measured in windows.
pub struct Measure<'r> {
    run: Run<'r>,
    /// Operations in a window; 0: not known yet.
    ops: u64,
    /// Operations of one window at the most.
    most: u64,
    /// Operations before those that count, at the least.
    warm: u64,
}

impl<'r> Measure<'r> {
    /// As many operations a window as fit into it.
    pub fn new(run: impl FnMut(u64) -> Result<Duration> + 'r) -> Self {
        Self { run: Box::new(run), ops: 0, most: 1 << 16, warm: 1 }
    }

    /// No more than `most` operations a window.
    pub fn at_most(mut self, most: u64) -> Self {
        self.most = most;
        self
    }

    /// At least so many operations before those that count.
    pub fn after(mut self, warm: u64) -> Self {
        self.warm = warm;
        self
    }

    /// One window: nanoseconds an operation.
    fn window(&mut self, stage: &Stage) -> Result<f64> {
        stage.window(|| {
            if self.ops == 0 {
                self.ops = self.fit()?;
            }
            // The first ones wake the worker and warm the caches.
            (self.run)((self.ops / 8).max(1).max(self.warm))?;
            Ok((self.run)(self.ops)?.as_nanos() as f64 / self.ops as f64)
        })
    }

    /// How many operations a window holds. Few tell little of many: the first ones wake the worker, and
    /// find caches cold.
    fn fit(&mut self) -> Result<u64> {
        let mut ops = 32.clamp(1, self.most).max(self.warm);
        loop {
            let took = (self.run)(ops)?;
            if took >= WINDOW / 8 || ops >= self.most {
                let fit = WINDOW.as_nanos() * u128::from(ops) / took.as_nanos().max(1);
                return Ok((fit as u64).clamp(1, self.most));
            }
            ops = (ops * 4).min(self.most);
        }
    }
}

/// What a row is held against.
pub enum Goal {
    /// So many times the yardstick at the most: its name, and the number.
    AtMost(&'static str, f64),
    /// So many operations in the time of the yardstick at the least.
    AtLeast(&'static str, f64),
    /// For comparison only.
    Beside(&'static str),
}

/// A row of the table to come.
pub struct Row<'r> {
    /// What is done.
    pub name: String,
    /// The work.
    pub measure: Measure<'r>,
    /// Another one that is measured in the same round, instead of the ping-pong.
    pub yardstick: Option<Measure<'r>>,
    /// The goal.
    pub goal: Goal,
}

/// A row that has been measured.
#[derive(Clone, Debug)]
pub struct Line {
    /// What was done.
    pub name: String,
    /// The median, as text with a unit.
    pub value: String,
    /// The same in nanoseconds an operation, of a row that was measured in windows.
    pub nanoseconds: Option<f64>,
    /// The median ratio to the yardstick, and its quartiles; or a figure by itself.
    pub ratio: Option<[f64; 3]>,
    /// What the ratio is of.
    pub of: String,
    /// The goal as text.
    pub goal: String,
    /// Whether it is met; `None` if there is none.
    pub met: Option<bool>,
    /// How it was measured, if otherwise than the rest; or why it was not.
    pub note: String,
}

impl Line {
    /// One that was not measured, and why.
    pub fn missing(name: &str, why: &str) -> Self {
        Self { note: why.to_owned(), ..figure(name, "-".to_owned(), "", None) }
    }
}

/// The quartiles, the median in the middle.
pub fn quartiles(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |part: usize| sorted.get(sorted.len() * part / 4).or(sorted.last());
    [1, 2, 3].map(|part| at(part).copied().unwrap_or(f64::NAN))
}

/// Measures rows in turn, `rounds` times, each beside its yardstick. Also returns the quartiles of
/// the one-way ping-pong in nanoseconds.
///
/// # Errors
/// The first of any row.
pub fn measure(
    stage: &Stage,
    rounds: usize,
    mut ping_pong: Measure<'_>,
    rows: Vec<Row<'_>>,
    show: impl Fn(usize),
) -> Result<(Vec<Line>, [f64; 3])> {
    let mut rows = rows;
    let mut values: Vec<(Vec<f64>, Vec<f64>)> = rows.iter().map(|_| Default::default()).collect();
    let mut all_pp = Vec::new();
    for round in 0..=rounds {
        show(round);
        // For the regime, whatever the rows are held against.
        let pp = ping_pong.window(stage)? / 2.0;
        if round > 0 {
            all_pp.push(pp);
        }
        for (row, (taken, ratios)) in rows.iter_mut().zip(&mut values) {
            let name = &row.name;
            let yardstick = match &mut row.yardstick {
                Some(yardstick) => {
                    yardstick.window(stage).with_context(|| format!("yardstick of {name}"))?
                }
                None => ping_pong.window(stage)? / 2.0,
            };
            let value = row.measure.window(stage).with_context(|| name.clone())?;
            // The first round finds out how many operations a window holds.
            if round == 0 {
                continue;
            }
            taken.push(value);
            ratios.push(value / yardstick);
        }
    }
    let lines = rows.iter().zip(&values).map(|(row, (taken, ratios))| line(row, taken, ratios));
    Ok((lines.collect(), quartiles(&all_pp)))
}

fn line(row: &Row<'_>, taken: &[f64], ratios: &[f64]) -> Line {
    let [low, mid, high] = quartiles(ratios);
    let (ratio, of, goal, met) = match &row.goal {
        Goal::AtMost(unit, goal) => {
            ([low, mid, high], format!("x {unit}"), format!("<= {goal}"), Some(mid <= *goal))
        }
        Goal::AtLeast(unit, goal) => (
            [1.0 / high, 1.0 / mid, 1.0 / low],
            if *unit == "pp" { "ops per pp".to_owned() } else { format!("of {unit}") },
            format!(">= {goal}"),
            Some(1.0 / mid >= *goal),
        ),
        Goal::Beside(unit) => ([low, mid, high], format!("x {unit}"), String::new(), None),
    };
    let median = quartiles(taken)[1];
    Line {
        name: row.name.clone(),
        value: nanoseconds(median),
        nanoseconds: Some(median),
        ratio: Some(ratio),
        of,
        goal,
        met,
        note: String::new(),
    }
}

/// A time as people read it.
pub fn nanoseconds(ns: f64) -> String {
    match ns {
        ns if ns < 1e4 => format!("{ns:.0} ns"),
        ns if ns < 1e7 => format!("{:.1} us", ns / 1e3),
        ns => format!("{:.1} ms", ns / 1e6),
    }
}

/// A figure that stands for itself, beside its goal.
pub fn figure(name: &str, value: String, goal: &str, met: Option<bool>) -> Line {
    Line {
        name: name.to_owned(),
        value,
        nanoseconds: None,
        ratio: None,
        of: String::new(),
        goal: goal.to_owned(),
        met,
        note: String::new(),
    }
}

/// The table for people.
pub fn print(regime: &str, lines: &[Line]) -> String {
    let width = lines.iter().map(|l| l.name.len()).max().unwrap_or(0);
    let mut out = format!("{regime}\n\n");
    let _ = writeln!(
        out,
        "{:width$} {:>11} {:>9} {:15} {:>17} {:>9} ",
        "work", "median", "ratio", "", "quartiles", "goal"
    );
    for line in lines {
        let (ratio, spread) = match line.ratio {
            Some([low, mid, high]) => (format!("{mid:.2}"), format!("{low:.2} to {high:.2}")),
            None => Default::default(),
        };
        let met = match line.met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        let _ = writeln!(
            out,
            "{:width$} {:>11} {ratio:>9} {:15} {spread:>17} {:>9} {met:6} {}",
            line.name, line.value, line.of, line.goal, line.note
        );
    }
    out
}

/// The table for programs.
pub fn json(regime: &str, lines: &[Line]) -> String {
    let text = |s: &str| format!("\"{}\"", s.replace('\\', "\\\\").replace('"', "\\\""));
    let rows: Vec<String> = lines
        .iter()
        .map(|l| {
            let ratio = match l.ratio {
                Some([low, mid, high]) => format!("[{low:.4}, {mid:.4}, {high:.4}]"),
                None => "null".to_owned(),
            };
            let met = l.met.map_or("null".to_owned(), |met| met.to_string());
            let ns = l.nanoseconds.map_or("null".to_owned(), |ns| format!("{ns:.1}"));
            format!(
                "    {{\"name\": {}, \"median\": {}, \"nanoseconds\": {ns}, \
                 \"ratio_quartiles\": {ratio}, \"of\": {}, \
                 \"goal\": {}, \"met\": {met}, \"note\": {}}}",
                text(&l.name),
                text(&l.value),
                text(&l.of),
                text(&l.goal),
                text(&l.note)
            )
        })
        .collect();
    format!("{{\n  \"regime\": {},\n  \"rows\": [\n{}\n  ]\n}}\n", text(regime), rows.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_those_of_the_sorted_values() {
        let values: Vec<f64> = [5, 1, 4, 2, 3, 8, 7, 6].map(f64::from).to_vec();
        assert_eq!(quartiles(&values), [3.0, 5.0, 7.0]);
        assert_eq!(quartiles(&[2.0]), [2.0; 3]);
        assert!(quartiles(&[])[1].is_nan());
    }

    #[test]
    fn the_json_escapes_what_it_quotes() {
        let text = json("a \"b\"", &[figure("x\\y", "1".to_owned(), "", None)]);
        assert!(text.contains(r#""a \"b\"""#) && text.contains(r#""x\\y""#), "{text}");
    }
}
