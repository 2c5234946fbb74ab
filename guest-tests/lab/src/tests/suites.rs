// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Other people's test suites against the device. How each is run and judged in a guest is in
//! `guest-tests/scripts`.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Bench, Test};
use crate::fleet::{Job, Shape};
use crate::guest::Kind;
use crate::programs;

/// How long rdma-core's tests may take: 30 seconds in UML, and some five times that under emulation.
const PYVERBS_LIMIT: Duration = Duration::from_secs(900);

/// The tests of this module.
pub fn tests() -> Vec<Test> {
    [Kind::Uml, Kind::Qemu]
        .map(|kind| {
            let test = Test::new(format!("vm_pyverbs_{kind}"), move |bench| pyverbs(bench, kind));
            if kind == Kind::Qemu { test.long() } else { test }
        })
        .into()
}

fn pyverbs(bench: &Bench, kind: Kind) -> Result<()> {
    let mut job = Job::of_script("pyverbs.py")?;
    job.files.push(programs::checkout().join("guest-tests/scripts/pyverbs.table"));
    let shape = Shape { guests: 1, ..Shape::of_kind(kind) };
    let outcome = bench.in_guests(&shape, &job, PYVERBS_LIMIT)?;
    let mut lines = outcome.lines.iter().flatten();
    let summary = lines.find(|line| line.starts_with("pyverbs: "));
    println!("        {}", summary.context("the suite did not come to its end")?);
    if !outcome.success() {
        bail!("the results are not those of pyverbs.table");
    }
    Ok(())
}
