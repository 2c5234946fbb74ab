// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests in guests: scripts of `guest-tests/scripts` in both kinds of guest, and the lab's own
//! promises.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{Bench, Test};
use crate::demo;
use crate::fleet::{Job, Outcome, Parts, Shape};
use crate::guest::Kind;
use crate::kernels::Release;
use crate::programs;

/// How long a script may take once its guests are up.
const LIMIT: Duration = Duration::from_secs(400);
/// The same for guests inside of others, which a loaded host makes slower twice. It takes a minute.
const NESTED_LIMIT: Duration = Duration::from_secs(1500);

/// The tests of this module.
pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for kind in [Kind::Uml, Kind::Qemu] {
        let two = Shape::of_kind(kind);
        let lab = Shape { guests: 3, rdma: false, memory_mib: 512, ..two.clone() };
        tests.push(script(format!("vm_lab_{kind}"), lab, "lab.sh", &[]));
        for (name, file) in [
            ("devinfo", "devinfo.sh"),
            ("pingpong", "pingpong.sh"),
            ("verifier", "verify.sh"),
            ("perftest", "perftest.sh"),
            ("rdmacm_programs", "rdmacm-programs.sh"),
            ("polling_needs_no_kicks", "kicks.sh"),
            ("kernel_verbs", "kernel-verbs.sh"),
            ("a_hostile_process_is_refused", "hostile-process.sh"),
            ("unbind_with_an_open_context", "disassociate.sh"),
        ] {
            tests.push(script(format!("vm_{name}_{kind}"), two.clone(), file, &[]));
        }
        let one = Shape { guests: 1, ..two.clone() };
        let odp = script(format!("vm_on_demand_paging_{kind}"), one, "odp.py", &[]);
        tests.push(if kind == Kind::Qemu { odp.long() } else { odp });
        let programs = format!("vm_ibverbs_programs_{kind}");
        let programs = script(programs, two.clone(), "ibverbs-programs.sh", &[]);
        // Two minutes under emulation, and the same programs.
        tests.push(if kind == Kind::Qemu { programs.long() } else { programs });
        for (name, rounds, long) in [
            // Emulated guests take a minute for it.
            ("hca_removed_and_added_under_load", "2", kind == Kind::Qemu),
            ("hca_removed_and_added_20_times_under_load", "20", true),
        ] {
            let arguments = &["hca", rounds];
            let mut test =
                script(format!("vm_{name}_{kind}"), two.clone(), "hotplug.sh", arguments);
            test.long = long;
            tests.push(test);
        }
        let without = Shape { rdma: false, ..two.clone() };
        let rxe = &["rxe", "--max-length", "5000"];
        tests.push(script(format!("vm_verifier_rxe_{kind}"), without, "verify.sh", rxe).long());
        let shape = two.clone();
        let demo = move |bench: &Bench| match demo::run(&bench.cache, &shape)? {
            true => Ok(()),
            false => bail!("the demonstration failed"),
        };
        tests.push(Test::new(format!("demo_{kind}"), demo).long());
    }
    tests.extend(by_packets());
    tests.extend(interop());
    let with_file_systems =
        Shape { packages: vec!["e2fsprogs".to_owned()], ..Shape::of_kind(Kind::Qemu) };
    tests.push(script("vm_nvme_over_rdma_qemu".to_owned(), with_file_systems, "nvme.sh", &[]));
    tests.push(Test::new("vm_verbs_hca_on_rxe_uml", |bench| {
        verbs_hca_on_rxe(bench, &["verbs_rc", "verbs_objects", "verbs_failures"], 1024, "16")
    }));
    let gibibyte = |bench: &Bench| verbs_hca_on_rxe(bench, &["verbs_registration"], 2560, "1024");
    tests.push(Test::new("vm_verbs_hca_registers_a_gibibyte_uml", gibibyte).long());
    let plugged = Shape { hot_plug: true, ..Shape::of_kind(Kind::Qemu) };
    for (name, rounds, long) in [
        ("vm_device_unplugged_and_plugged_under_load", "1", false),
        ("vm_device_unplugged_and_plugged_10_times_under_load", "10", true),
    ] {
        let mut test = script(name.to_owned(), plugged.clone(), "hotplug.sh", &["pci", rounds]);
        test.long = long;
        tests.push(test);
    }
    for (name, release) in
        [("vm_pingpong_kernel_6_1", Release::V6_1), ("vm_pingpong_kernel_newest", Release::Newest)]
    {
        let shape = Shape { release, ..Shape::of_kind(Kind::Qemu) };
        tests.push(script(name.to_owned(), shape, "pingpong.sh", &[]));
    }
    tests.extend(nested());
    tests.push(Test::new("lab_says_when_a_script_fails", a_failing_script));
    tests.push(Test::new("lab_breaks_a_barrier_that_nobody_can_pass", a_broken_barrier));
    tests.push(Test::new("lab_ends_guests_at_the_time_out", a_time_out));
    tests
}

/// What no other RoCE in software speaks, or guests can't ask of it, between devices that reach each other by packets only.
fn by_packets() -> Vec<Test> {
    let shape = Shape { packets: true, ..Shape::of_kind(Kind::Uml) };
    let programs = &["XRC", "xsrq", "srq"];
    vec![
        script(
            "vm_xrc_and_srq_by_packets_uml".into(),
            shape.clone(),
            "ibverbs-programs.sh",
            programs,
        ),
        script("vm_kernel_verbs_by_packets_uml".into(), shape, "kernel-verbs.sh", &[]),
    ]
}

/// Guests inside of others, which are their hosts. With SVM under emulation they take many minutes on a host
/// that has other work, so every change is tried with hosts of UML.
fn nested() -> Vec<Test> {
    let of = |name: &str, kind, hosts, inside, arguments: &[&str]| {
        let shape = Shape { hosts, guests: hosts + inside, ..Shape::of_kind(kind) };
        script(format!("nested_{name}_{kind}"), shape, "nested.sh", arguments)
    };
    let (uml, qemu) = (Kind::Uml, Kind::Qemu);
    let all = &["verbs", "replug=20", "kill", "long", "programs"];
    vec![
        of("verbs_hca", uml, 2, 2, &["verbs", "programs", "replug=1", "kill"]),
        of("verbs_hca_long", uml, 2, 2, all).long(),
        of("verbs_hca_long", qemu, 2, 2, all).long(),
        of("verbs_hca_measured", qemu, 1, 1, &["verbs", "touched", "measure=5"]).long(),
        of("soft_hca", qemu, 1, 2, &["soft", "long", "programs", "kill"]).long(),
    ]
}

/// rxe in a guest outside of the daemon, and our device in another one, or rxe there too.
fn interop() -> Vec<Test> {
    let both = Shape { outside: 1, ..Shape::of_kind(Kind::Uml) };
    let rxe_alone = Shape { outside: 2, ..both.clone() };
    let lossy = Shape { loss: 20_000, ..both.clone() };
    let emulated = Shape { kind: Kind::Qemu, ..both.clone() };
    let of = |name: &str, shape: &Shape, arguments: &[&str]| {
        script(name.to_owned(), shape.clone(), "interop.sh", arguments)
    };
    vec![
        // What the ports do to rxe is nothing that our device has to answer for.
        of("interop_rxe_finds_the_ports_right_uml", &rxe_alone, &["programs"]).long(),
        of("interop_programs_with_rxe_uml", &both, &["programs"]),
        of("interop_verifier_with_rxe_uml", &both, &["verifier"]),
        script(
            "interop_atomic_write_with_rxe_uml".into(),
            both.clone(),
            "interop-placement.py",
            &[],
        )
        .long(),
        of("interop_connection_manager_with_rxe_uml", &both, &["cm"]),
        of("interop_perftest_by_the_connection_manager_uml", &both, &["cm-perftest"]).long(),
        of("interop_with_rxe_and_some_lost_frames_uml", &lossy, &["loss", "12"]),
        of("interop_with_rxe_and_lost_frames_uml", &lossy, &["loss"]).long(),
        of("interop_programs_with_rxe_qemu", &emulated, &["programs"]).long(),
        of("interop_verifier_with_rxe_qemu", &emulated, &["verifier"]).long(),
        of("interop_connection_manager_with_rxe_qemu", &emulated, &["cm"]).long(),
    ]
}

/// The verbs HCA's own tests, in a guest where rxe is the host's device; `mib` is for those that register
/// much memory.
fn verbs_hca_on_rxe(bench: &Bench, names: &[&str], memory_mib: u32, mib: &str) -> Result<()> {
    let shape = Shape { guests: 1, rdma: false, memory_mib, ..Shape::of_kind(Kind::Uml) };
    let mut job = Job::of_script("verbs-hca.sh")?;
    job.arguments = [mib].iter().chain(names).map(|word| (*word).to_owned()).collect();
    for name in names {
        job.files.push(programs::test_program("hca-backend", name)?);
    }
    let outcome = bench.in_guests(&shape, &job, LIMIT)?;
    if !outcome.success() {
        bail!("the tests ended with {:?} in the guest", outcome.statuses);
    }
    Ok(())
}

/// A script of the project in guests of a shape.
fn script(name: String, shape: Shape, file: &'static str, arguments: &[&str]) -> Test {
    let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
    Test::new(name, move |bench| {
        let job = Job { arguments: arguments.clone(), ..Job::of_script(file)? };
        let limit = if shape.hosts > 0 { NESTED_LIMIT } else { LIMIT };
        let outcome = bench.in_guests(&shape, &job, limit)?;
        if !outcome.success() {
            bail!("{file} ended with {:?} in the guests", outcome.statuses);
        }
        Ok(())
    })
}

impl Bench {
    /// Runs a job in guests, their output in the test's log.
    pub(super) fn in_guests(&self, shape: &Shape, job: &Job, limit: Duration) -> Result<Outcome> {
        let parts = Parts::prepare(&self.cache, shape)?;
        let mut log = File::options().append(true).open(&self.log)?;
        parts.run(job, limit, &mut |guest, line| {
            let _ = writeln!(log, "[guest{guest}] {line}");
        })
    }
}

fn quick_pair() -> Shape {
    Shape { rdma: false, memory_mib: 512, ..Shape::of_kind(Kind::Uml) }
}

fn job(commands: &str) -> Job {
    Job { script: format!("#!/bin/bash\n{commands}\n").into_bytes(), ..Job::default() }
}

fn a_failing_script(bench: &Bench) -> Result<()> {
    let job = job("echo guest $GUEST_INDEX; exit $((GUEST_INDEX * 7))");
    let outcome = bench.in_guests(&quick_pair(), &job, LIMIT)?;
    if outcome.statuses != [0, 7] || outcome.success() {
        bail!("the statuses are {:?}", outcome.statuses);
    }
    if outcome.lines != [["guest 0"], ["guest 1"]] {
        bail!("the output is {:?}", outcome.lines);
    }
    Ok(())
}

fn a_broken_barrier(bench: &Bench) -> Result<()> {
    let job = job("[[ $GUEST_INDEX == 1 ]] || lab-barrier never");
    let outcome = bench.in_guests(&quick_pair(), &job, LIMIT)?;
    if outcome.statuses != [1, 0] {
        bail!("the statuses are {:?}", outcome.statuses);
    }
    Ok(())
}

fn a_time_out(bench: &Bench) -> Result<()> {
    let job = job("sleep 600");
    match bench.in_guests(&quick_pair(), &job, Duration::from_secs(2)) {
        Err(error) if format!("{error:#}").contains("time-out") => Ok(()),
        Err(error) => Err(error.context("another error than the time-out")),
        Ok(outcome) => bail!("no time-out, but {:?}", outcome.statuses),
    }
}
