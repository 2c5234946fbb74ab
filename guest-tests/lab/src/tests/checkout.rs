// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the checkout that need no guests: style, lints, unit tests, the generated header,
//! builds of the C parts, and QEMU's device with the daemon.

use std::path::PathBuf;

use anyhow::Result;

use super::{Bench, Test};
use crate::cache::{Cache, Key};
use crate::command::{output_of, run_logged};
use crate::kernels::Release;
use crate::programs::{self, ModuleFor, cargo};
use crate::roots::{BuildRoot, SOURCE, WORK};

const HEADER: &str = "guest-driver/include/virtio_rdma_abi.h";

/// The tests of this module.
pub fn tests() -> Vec<Test> {
    let mut tests = vec![
        Test::new("lint_fmt", |bench| bench.cargo(&["fmt", "--all", "--check"])),
        Test::new("lint_clippy", |bench| {
            bench.cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
        }),
        Test::new("unit_nextest", unit_nextest),
        Test::new("unit_doc", |bench| bench.cargo(&["test", "--workspace", "--doc"])),
        Test::new("instructions_post_to_cqe", |bench| {
            let program = ["run", "--release", "-q", "-p", "benches", "--bin", "instructions"];
            bench.cargo(&program)
        }),
        Test::new("abi_header_is_current", |bench| {
            let generator = ["run", "-q", "-p", "virtio-rdma-abi", "--bin", "gen-header", "--"];
            bench.cargo(&[&generator[..], &["--check", HEADER]].concat())
        }),
        Test::new("provider_builds_and_passes_its_tests", |bench| {
            programs::provider(&bench.cache).map(drop)
        }),
        Test::new("provider_rings_lose_no_doorbell", provider_rings),
    ];
    tests.push(
        Test::new("wire_simulation_of_ten_thousand_networks", |bench| {
            let wire = ["test", "-p", "hca-backend", "--test", "wire_sim", "--"];
            bench.cargo(&[&wire[..], &["--include-ignored"]].concat())
        })
        .long(),
    );
    tests.push(Test::new("wire_fuzz_for_minutes", wire_fuzz).long());
    tests.push(
        Test::new("device_with_all_objects_that_it_may_have", |bench| {
            let device = ["test", "-p", "front-end", "--test", "device", "--"];
            bench.cargo(&[&device[..], &["--ignored", "scale::"]].concat())
        })
        .long(),
    );
    for (name, module) in [
        ("module_builds_6_1", ModuleFor::Debian(Release::V6_1)),
        ("module_builds_6_12", ModuleFor::Debian(Release::V6_12)),
        ("module_builds_newest", ModuleFor::Debian(Release::Newest)),
        ("module_builds_uml", ModuleFor::Uml),
    ] {
        tests.push(Test::new(name, move |bench| programs::module(&bench.cache, module).map(drop)));
    }
    for check in qmp::checks() {
        let name = format!("qmp_{}", check.name.replace([' ', ','], "_").replace("__", "_"));
        tests.push(Test::new(name, move |bench| {
            let env = qmp::Env { qemu: programs::qemu(&bench.cache)?, daemon: programs::daemon()? };
            Ok(check.run(&env)?)
        }));
    }
    tests
}

impl Bench {
    /// Runs cargo in the checkout, its output in the test's log.
    fn cargo(&self, arguments: &[&str]) -> Result<()> {
        run_logged(cargo().args(arguments), &self.log)
    }
}

/// Packets that should not have been sent, two minutes each.
fn wire_fuzz(bench: &Bench) -> Result<()> {
    let mut command = cargo();
    command.env("WIRE_FUZZ_SECONDS", "120");
    command.args(["test", "-p", "hca-backend", "--test", "wire_fuzz"]);
    run_logged(&mut command, &bench.log)
}

fn unit_nextest(bench: &Bench) -> Result<()> {
    let mut command = cargo();
    if output_of(cargo().args(["nextest", "--version"])).is_err() {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", nextest(&bench.cache)?.display()));
    }
    command.env("WIRE_FUZZ_SECONDS", "40");
    run_logged(command.args(["nextest", "run", "--workspace", "--no-fail-fast"]), &bench.log)
}

/// The folder of a cargo-nextest of the lab's own, for hosts that have none.
fn nextest(cache: &Cache) -> Result<PathBuf> {
    let place = cache.entry("cargo-nextest", Key::of("nextest 1"), |place, log| {
        let mut command = cargo();
        command.args(["install", "--locked", "--root"]).arg(place).arg("cargo-nextest");
        run_logged(&mut command, log)
    })?;
    Ok(place.join("bin"))
}

/// The provider's ring and doorbell code against a device in a thread, as it is, under
/// sanitizers, and broken on purpose, which must be noticed.
fn provider_rings(bench: &Bench) -> Result<()> {
    let root = BuildRoot::trixie(&bench.cache)?;
    let driver = programs::checkout().join("guest-driver");
    let work = tempfile::tempdir()?;
    let script = format!("make -C {SOURCE}/provider BUILD={WORK}/build check");
    let binds = [(work.path(), WORK), (driver.as_path(), SOURCE)];
    root.run(&binds, &script, &bench.log)
}
