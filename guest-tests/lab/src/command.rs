// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Running host programs: their output goes to a log file, and its tail into the error when they
//! fail. Long-running children (guests, the daemon) are not started here.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How many lines of a log an error shows.
pub const TAIL_LINES: usize = 40;

/// Runs `command` to its end with both outputs appended to `log`.
///
/// # Errors
/// When the program can't be started, or ends with anything but success; the message carries the
/// end of the log.
pub fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening the log {}", log.display()))?;
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("starting {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status}); the end of its output:\n{}", tail(log, TAIL_LINES));
    }
    Ok(())
}

/// Runs `command` to its end and returns what it wrote to standard output.
///
/// # Errors
/// When the program can't be started or fails; the message carries what it wrote.
pub fn output_of(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        bail!(
            "{name} failed ({}): {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The last `lines` lines of a text file; says so when it can't be read or is empty.
pub fn tail(path: &Path, lines: usize) -> String {
    let Ok(bytes) = std::fs::read(path) else {
        return format!("  ({} can't be read)", path.display());
    };
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if all.is_empty() {
        return "  (no output)".to_owned();
    }
    let from = all.len().saturating_sub(lines);
    all[from..].iter().map(|line| format!("  | {line}\n")).collect()
}
