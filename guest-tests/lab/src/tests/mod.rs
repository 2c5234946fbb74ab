// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo lab test`: the list of named tests, and how they are run. What they do is in the
//! modules below: `checkout` needs no guests, `guests` and `suites` boot them.

mod checkout;
mod guests;
mod suites;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::cli::TestArguments;
use crate::command::{TAIL_LINES, tail};
use crate::programs;

/// What a test does.
type Action = Box<dyn Fn(&Bench) -> Result<()>>;

/// One test. Its name says what holds when it passes.
pub struct Test {
    name: String,
    /// Whether it only runs with `--full`.
    long: bool,
    run: Action,
}

impl Test {
    fn new(name: impl Into<String>, run: impl Fn(&Bench) -> Result<()> + 'static) -> Self {
        Self { name: name.into(), long: false, run: Box::new(run) }
    }

    /// The same as one that takes long.
    fn long(mut self) -> Self {
        self.long = true;
        self
    }
}

/// What a test works with.
pub struct Bench {
    cache: Cache,
    /// The test's own log file.
    log: PathBuf,
}

fn all() -> Vec<Test> {
    let mut tests = checkout::tests();
    tests.extend(guests::tests());
    tests.extend(suites::tests());
    tests
}

/// Runs, or lists, the tests that `arguments` ask for. False when one failed.
///
/// # Errors
/// When there is no such test, or the lab itself can't work.
pub fn run(arguments: &TestArguments) -> Result<bool> {
    let filter = arguments.filter.as_deref().unwrap_or_default();
    let chosen: Vec<Test> = all()
        .into_iter()
        .filter(|test| test.name.contains(filter))
        // A test that is asked for by its whole name is run, long or not.
        .filter(|test| arguments.full || arguments.list || !test.long || test.name == filter)
        .collect();
    if chosen.is_empty() {
        bail!("no test has {filter:?} in its name; `cargo lab test --list` names them");
    }
    if arguments.list {
        for test in &chosen {
            println!("{}{}", test.name, if test.long { "  (only with --full)" } else { "" });
        }
        return Ok(true);
    }
    let cache = crate::open_cache()?;
    let logs = programs::target_directory().join("lab-tests");
    fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    let (mut passed, mut failed) = (0, Vec::new());
    for test in &chosen {
        if run_one(test, &cache, &logs)? {
            passed += 1;
        } else {
            failed.push(test.name.as_str());
        }
    }
    if !failed.is_empty() {
        println!("\nfailed, with logs in {}:", logs.display());
        for name in &failed {
            println!("  {name}");
        }
    }
    println!("\n{passed} passed, {} failed", failed.len());
    Ok(failed.is_empty())
}

fn run_one(test: &Test, cache: &Cache, logs: &Path) -> Result<bool> {
    let file: String = test.name.chars().map(|c| if c == '/' { '-' } else { c }).collect();
    let log = logs.join(format!("{file}.log"));
    fs::write(&log, "")?;
    let bench = Bench { cache: cache.clone(), log: log.clone() };
    let begun = Instant::now();
    let result = (test.run)(&bench);
    let seconds = begun.elapsed().as_secs_f64();
    match result {
        Ok(()) => {
            println!("ok      {} ({seconds:.1} s)", test.name);
            Ok(true)
        }
        Err(error) => {
            println!("FAILED  {} ({seconds:.1} s): {error:#}", test.name);
            println!("  the end of {}:\n{}", log.display(), tail(&log, TAIL_LINES));
            Ok(false)
        }
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_of_tests_are_unique_and_without_spaces() {
        let names: Vec<String> = all().into_iter().map(|test| test.name).collect();
        let unique: BTreeSet<&String> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        assert!(names.iter().all(|name| !name.contains(char::is_whitespace)));
    }
}
