// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the lab tells the person who waits: one line a step on standard error, with the time
//! since the lab began. Guests' output is not printed here.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

static START: OnceLock<Instant> = OnceLock::new();

/// The time since the lab began (since the first call of any function here).
pub fn elapsed() -> Duration {
    START.get_or_init(Instant::now).elapsed()
}

/// Prints one line of progress.
pub fn say(what: impl std::fmt::Display) {
    eprintln!("[{:>7.1}s] {what}", elapsed().as_secs_f64());
}

/// Runs `work`, saying before it what it is and after it how long it took.
///
/// # Errors
/// Those of `work`, unchanged.
pub fn step<T>(
    what: impl std::fmt::Display,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    say(format_args!("{what} …"));
    let begun = Instant::now();
    let result = work();
    let verdict = if result.is_ok() { "done" } else { "FAILED" };
    say(format_args!("{what}: {verdict} in {:.1} s", begun.elapsed().as_secs_f64()));
    result
}
