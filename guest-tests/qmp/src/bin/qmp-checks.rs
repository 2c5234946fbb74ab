// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs the checks of QEMU's device by hand; the lab runs them as tests of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use qmp::{Env, checks};

/// Checks the device vhost-user-rdma-pci of a QEMU, with a daemon, without a guest.
#[derive(Parser)]
struct Options {
    /// The qemu-system-x86_64 that has the device.
    #[arg(long)]
    qemu: PathBuf,
    /// The daemon, called with --socket-path PATH.
    #[arg(long)]
    daemon: PathBuf,
    /// Only checks with this in their name.
    filter: Option<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let env = Env { qemu: options.qemu, daemon: options.daemon };
    let filter = options.filter.unwrap_or_default();
    let (mut passed, mut failed) = (0, 0);
    for check in checks().iter().filter(|check| check.name.contains(&filter)) {
        let start = Instant::now();
        let result = check.run(&env);
        let seconds = start.elapsed().as_secs_f32();
        match result {
            Ok(()) => {
                passed += 1;
                println!("ok      {} ({seconds:.1} s)", check.name);
            }
            Err(error) => {
                failed += 1;
                println!("FAILED  {} ({seconds:.1} s)\n{error}", check.name);
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
