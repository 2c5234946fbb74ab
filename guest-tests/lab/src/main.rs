// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab: builds guests, starts them with the daemon, runs programs in them, compares and
//! tests. Called as `cargo lab …`; `cargo lab --help` tells more.

mod bench;
mod cache;
mod cli;
mod command;
mod cpio;
mod daemon;
mod demo;
mod fleet;
mod guest;
mod guest_root;
mod host;
mod host_side;
mod kernels;
mod nested;
mod network;
mod programs;
mod progress;
mod roots;
mod tests;
mod wire;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use crate::cache::Cache;
use crate::cli::{Cli, Command, RunArguments, ShellArguments};
use crate::fleet::{Job, Parts, Shape};

fn main() -> ExitCode {
    progress::elapsed();
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Run(arguments) => run(arguments),
        Command::Shell(arguments) => shell(arguments),
        Command::Demo(arguments) => open_cache().and_then(|cache| {
            let shape = Shape::of_kind(arguments.kind);
            demo::run(&cache, &shape)
        }),
        Command::Wire(arguments) => {
            open_cache().and_then(|cache| wire::run(&cache, arguments.kind, arguments.rounds))
        }
        Command::Test(arguments) => tests::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn open_cache() -> Result<Cache> {
    host::ensure_packages()?;
    Cache::open()
}

fn run(arguments: &RunArguments) -> Result<bool> {
    let script = if arguments.command {
        format!("#!/bin/bash\n{}\n", arguments.script).into_bytes()
    } else {
        std::fs::read(&arguments.script)
            .with_context(|| format!("reading the script {}", arguments.script))?
    };
    let guests = usize::from(arguments.guests);
    let shape = Shape { hosts: arguments.hosts.min(guests), ..arguments.guest.shape(guests) };
    let parts = Parts::prepare(&open_cache()?, &shape)?;
    let mut files = arguments.files.clone();
    files.extend(programs::shared_scripts());
    let job = Job { script, arguments: arguments.arguments.clone(), files };
    let outcome = parts.run(&job, Duration::from_secs(arguments.timeout), &mut print_line)?;
    for (index, status) in outcome.statuses.iter().enumerate().filter(|(_, status)| **status != 0) {
        progress::say(format_args!("guest{index}: the script failed with status {status}"));
    }
    Ok(outcome.success())
}

/// Prints a guest's line with its name. Who reads may have gone; the guests go on.
fn print_line(guest: usize, line: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "[guest{guest}] {line}");
    let _ = output.flush();
}

fn shell(arguments: &ShellArguments) -> Result<bool> {
    let parts =
        Parts::prepare(&open_cache()?, &arguments.guest.shape(usize::from(arguments.guests)))?;
    parts.shell()?;
    Ok(true)
}
