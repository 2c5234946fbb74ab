// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The checks of QEMU's device, each with a name that is a sentence.

use std::time::Duration;

use serde_json::json;
use virtio_rdma_abi::config::{ABI_MAJOR, Config, DEVICE_ID, QUEUE_DOORBELL_FIRST};
use virtio_rdma_abi::control::{CMD_QUERY_DEVICE, STATUS_NOT_INITIALIZED, STATUS_OK};
use zerocopy::{FromZeros, IntoBytes};

use crate::bench::{MAC, Machine};
use crate::driver::{Driver, eventually};
use crate::error::{ensure, ensure_eq};
use crate::{Bench, Env, Error};

/// One check of the device.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// A sentence: what holds when it passes.
    pub name: &'static str,
    machine: Machine,
    run: fn(&mut Bench) -> Result<(), Error>,
}

impl Check {
    /// Runs the check with a daemon and a QEMU of its own, a few seconds in all. QEMU must still
    /// answer at the end of it, and end cleanly.
    ///
    /// # Errors
    /// What was found wrong, with the end of the logs of both programs.
    pub fn run(&self, env: &Env) -> Result<(), Error> {
        let mut bench = Bench::start(env, self.machine)?;
        (self.run)(&mut bench)
            .and_then(|()| bench.finish())
            .map_err(|error| Error::Check(format!("{error}\n{}", bench.logs())))
    }
}

const fn q35(name: &'static str, run: fn(&mut Bench) -> Result<(), Error>) -> Check {
    Check { name, machine: Machine::Q35, run }
}

/// All checks.
pub fn checks() -> &'static [Check] {
    const CHECKS: &[Check] = &[
        q35("the device shows its properties", properties),
        q35("properties out of range are refused with the range", bad_properties),
        q35("a daemon with too few queues is refused", too_few_queues),
        q35("every queue has a vector and a notify page", queues),
        q35("the configuration is the daemon's with the machine's MAC", config),
        q35("the driver cannot write the configuration", config_write),
        q35("commands are answered with an interrupt", commands),
        q35("a doorbell write reaches the daemon", doorbell),
        q35("a paused machine keeps the device's state", pause),
        q35("a reset by the driver drops the device's state", driver_reset),
        q35("a system reset drops the device's state", system_reset),
        q35("the device is unplugged and plugged in again", hotplug),
        q35("a restarted daemon resumes the rings", daemon_restart),
        q35("a daemon restarted ten times still serves", daemon_restarts),
        q35("a daemon lost before DRIVER_OK comes back", daemon_lost_early),
        q35("a daemon lost while paused comes back", daemon_lost_paused),
        q35("the driver resets while no daemon is there", reset_without_daemon),
        q35("the device is unplugged while no daemon is there", unplug_without_daemon),
        q35("the device is unplugged while QEMU connects", unplug_while_connecting),
        q35("a daemon that dies in any step does not harm QEMU", daemon_dies_in_steps),
        Check { name: "the device works on virtio-mmio", machine: Machine::Microvm, run: mmio },
    ];
    CHECKS
}

const QUERY: (&str, u16) = ("QUERY_DEVICE", CMD_QUERY_DEVICE);

fn properties(bench: &mut Bench) -> Result<(), Error> {
    for (device, wanted) in [
        ("vhost-user-rdma", &["chardev", "mac", "num-comp-vectors", "queue-size"][..]),
        (
            "vhost-user-rdma-pci",
            &["chardev", "mac", "num-comp-vectors", "queue-size", "page-per-vq", "vectors"],
        ),
    ] {
        let listed = bench.qmp.execute("device-list-properties", json!({"typename": device}))?;
        let listed = listed.as_array().ok_or_else(|| Error::Protocol(listed.to_string()))?;
        for name in wanted {
            let property = listed
                .iter()
                .find(|property| property["name"] == *name)
                .ok_or_else(|| Error::check(format!("{device} has no property {name}")))?;
            let default = &property["default-value"];
            match *name {
                "num-comp-vectors" => ensure_eq("its default", default, &json!(4))?,
                "queue-size" => ensure_eq("its default", default, &json!(256))?,
                _ => (),
            }
        }
    }
    Ok(())
}

fn bad_properties(bench: &mut Bench) -> Result<(), Error> {
    for (property, value, reason) in [
        ("num-comp-vectors", 0, "between 1 and 31"),
        ("num-comp-vectors", 32, "between 1 and 31"),
        ("queue-size", 0, "power of 2 between 2 and 1024"),
        ("queue-size", 100, "power of 2 between 2 and 1024"),
        ("queue-size", 2048, "power of 2 between 2 and 1024"),
    ] {
        match bench.plug(json!({property: value})) {
            Err(Error::Refused { description, .. }) => {
                ensure(description.contains(reason), || {
                    format!("{property}={value} is refused with {description:?}")
                })?
            }
            Err(other) => return Err(other),
            Ok(()) => return Err(Error::check(format!("{property}={value} is accepted"))),
        }
    }
    bench.plug_and_start().map(drop)
}

fn too_few_queues(bench: &mut Bench) -> Result<(), Error> {
    bench.plug(json!({"num-comp-vectors": 1}))?;
    let driver = Driver::probe(&mut bench.qtest)?;
    let daemons = driver.config(&mut bench.qtest)?.num_comp_vectors.get();
    ensure_eq("num_comp_vectors with one vector", daemons, 1)?;
    bench.unplug()?;
    // The daemon's own number shows where the machine asks for more than it has.
    match bench.plug(json!({"num-comp-vectors": 31})) {
        Err(Error::Refused { description, .. }) => {
            ensure(description.contains("maximum number of queues"), || {
                format!("31 vectors are refused with {description:?}")
            })
        }
        Err(other) => Err(other),
        Ok(()) => {
            let driver = Driver::probe(&mut bench.qtest)?;
            ensure_eq("the number of queues", driver.num_queues(&mut bench.qtest)?, 64)?;
            let vectors = driver.config(&mut bench.qtest)?.num_comp_vectors.get();
            ensure((1..=31).contains(&vectors), || format!("{vectors} vectors"))
        }
    }
}

fn queues(bench: &mut Bench) -> Result<(), Error> {
    bench.plug(json!({"num-comp-vectors": 3, "queue-size": 128}))?;
    let id = bench.plugged_id()?;
    ensure_eq("vendor and device ID", id, (0x1040 + DEVICE_ID) << 16 | 0x1af4)?;
    let qtest = &mut bench.qtest;
    let mut driver = Driver::probe(qtest)?;
    ensure_eq("the number of queues", driver.num_queues(qtest)?, 8)?;
    ensure_eq("the number of vectors", driver.pci.vectors, 9)?;
    driver.start(qtest)?;
    // Some stable QEMUs before 11.1 give every queue of every device their maximum.
    ensure(matches!(driver.offered_size(), 128 | 1024), || {
        format!("the size of a queue is {}", driver.offered_size())
    })?;
    ensure_eq("the distance of notify addresses", driver.pci.notify_multiplier, 4096)?;
    let doorbell = driver.notify_offset(qtest, QUEUE_DOORBELL_FIRST)?;
    ensure_eq("the doorbell's place", doorbell, u64::from(QUEUE_DOORBELL_FIRST) * 4096)?;
    ensure(u64::from(driver.pci.notify.length) >= doorbell + 4096, || {
        "the doorbell's page is not in the notify region".to_owned()
    })?;

    let status = bench.virtio_status()?;
    ensure_eq("its name", &status["name"], &json!("virtio-rdma"))?;
    ensure_eq("its number of queues", &status["num-vqs"], &json!(8))?;
    ensure(!status["vhost-dev"].is_null(), || "the device has not started".to_owned())
}

fn config(bench: &mut Bench) -> Result<(), Error> {
    bench.plug(json!({"num-comp-vectors": 2}))?;
    let driver = Driver::probe(&mut bench.qtest)?;
    let config = driver.config(&mut bench.qtest)?;
    ensure_eq("abi_major", u32::from(config.abi_major.get()), ABI_MAJOR)?;
    ensure_eq("mac", config.mac, MAC)?;
    ensure_eq("num_comp_vectors", config.num_comp_vectors.get(), 2)?;
    ensure_eq("hca_present", config.hca_present, 1)?;
    ensure_eq("max_mtu", config.max_mtu, 5)?;
    ensure_eq("what is reserved", config.reserved, [0; 44])?;
    bench.unplug()?;

    bench.plug(json!({"mac": "00:00:00:00:00:00"}))?;
    let driver = Driver::probe(&mut bench.qtest)?;
    let own = driver.config(&mut bench.qtest)?;
    ensure(own.mac != MAC, || "the daemon has the MAC of the device before".to_owned())?;

    // Asked at every read: a daemon that is gone is missed at once, and its last words stand in.
    bench.kill_daemon()?;
    let last = driver.config(&mut bench.qtest)?;
    ensure(last.as_bytes() == own.as_bytes(), || format!("{last:?} is not {own:?}"))
}

fn config_write(bench: &mut Bench) -> Result<(), Error> {
    let mut driver = bench.plug_and_start()?;
    let before = driver.config(&mut bench.qtest)?;
    for at in 0..64 {
        driver.write_config(&mut bench.qtest, at, 0xa5)?;
    }
    let after = driver.config(&mut bench.qtest)?;
    ensure(after.as_bytes() == before.as_bytes(), || format!("{before:?} became {after:?}"))?;
    driver.must(&mut bench.qtest, QUERY.0, QUERY.1, &[]).map(drop)
}

fn commands(bench: &mut Bench) -> Result<(), Error> {
    let mut driver = bench.plug_and_start()?;
    let qtest = &mut bench.qtest;
    // More than the ring has entries. Notifications without a cause come at the start: only one
    // after the command counts.
    for _ in 0..150 {
        driver.take_interrupt(qtest, 1)?;
        driver.must(qtest, QUERY.0, QUERY.1, &[])?;
        eventually("interrupt of the control queue", || driver.take_interrupt(qtest, 1))?;
    }
    Ok(())
}

fn doorbell(bench: &mut Bench) -> Result<(), Error> {
    let mut driver = bench.plug_and_start()?;
    let qtest = &mut bench.qtest;
    let before = driver.doorbell_kicks(qtest)?;
    driver.ring_doorbell(qtest)?;
    eventually("doorbell counted by the daemon", || Ok(driver.doorbell_kicks(qtest)? > before))
}

fn pause(bench: &mut Bench) -> Result<(), Error> {
    let mut driver = bench.plug_and_start()?;
    let pdn = driver.alloc_pd(&mut bench.qtest)?;
    for _ in 0..3 {
        bench.qmp.execute("stop", json!({}))?;
        ensure(bench.virtio_status()?["vhost-dev"].is_null(), || {
            "the device still runs in a paused machine".to_owned()
        })?;
        // A kick in the pause must not be lost.
        driver.submit(&mut bench.qtest, QUERY.1, &[])?;
        bench.qmp.execute("cont", json!({}))?;
        ensure_eq(
            "the status of QUERY_DEVICE",
            driver.answer(&mut bench.qtest)?.status,
            STATUS_OK,
        )?;
    }
    let status = driver.dealloc_pd(&mut bench.qtest, pdn)?;
    ensure_eq("the status of DEALLOC_PD after pauses", status, STATUS_OK)
}

fn driver_reset(bench: &mut Bench) -> Result<(), Error> {
    let mut driver = bench.plug_and_start()?;
    for _ in 0..3 {
        driver.alloc_pd(&mut bench.qtest)?;
        driver.start(&mut bench.qtest)?;
        is_not_initialized(bench, &mut driver)?;
        driver.init(&mut bench.qtest)?;
    }
    Ok(())
}

fn system_reset(bench: &mut Bench) -> Result<(), Error> {
    let mut driver = bench.plug_and_start()?;
    for _ in 0..3 {
        driver.alloc_pd(&mut bench.qtest)?;
        bench.qmp.execute("system_reset", json!({}))?;
        bench.qmp.wait_event("RESET", crate::driver::COMMAND_TIME)?;
        bench.root_port()?;
        driver = Driver::probe(&mut bench.qtest)?;
        driver.start(&mut bench.qtest)?;
        is_not_initialized(bench, &mut driver)?;
        driver.init(&mut bench.qtest)?;
    }
    Ok(())
}

fn hotplug(bench: &mut Bench) -> Result<(), Error> {
    for _ in 0..5 {
        let mut driver = bench.plug_and_start()?;
        driver.alloc_pd(&mut bench.qtest)?;
        bench.unplug()?;
        ensure_eq("the ID of an empty slot", bench.plugged_id()?, u32::MAX)?;
    }
    bench.plug(json!({}))?;
    let mut driver = Driver::probe(&mut bench.qtest)?;
    driver.start(&mut bench.qtest)?;
    is_not_initialized(bench, &mut driver)
}

fn daemon_restart(bench: &mut Bench) -> Result<(), Error> {
    let mut driver = bench.plug_and_start()?;
    driver.must(&mut bench.qtest, QUERY.0, QUERY.1, &[])?;
    bench.kill_daemon()?;
    driver.config(&mut bench.qtest)?;
    // The kick for this one falls into the gap.
    driver.submit(&mut bench.qtest, QUERY.1, &[])?;
    bench.restart_daemon()?;
    let answer = driver.answer(&mut bench.qtest)?;
    ensure(matches!(answer.status, STATUS_OK | STATUS_NOT_INITIALIZED), || {
        format!("the command in the gap has status {}", answer.status)
    })?;
    driver.init(&mut bench.qtest)?;
    driver.must(&mut bench.qtest, QUERY.0, QUERY.1, &[]).map(drop)
}

fn daemon_restarts(bench: &mut Bench) -> Result<(), Error> {
    let mut driver = bench.plug_and_start()?;
    for _ in 0..10 {
        driver.submit(&mut bench.qtest, QUERY.1, &[])?;
        bench.kill_daemon()?;
        bench.restart_daemon()?;
        driver.answer(&mut bench.qtest)?;
        driver.init(&mut bench.qtest)?;
    }
    driver.must(&mut bench.qtest, QUERY.0, QUERY.1, &[]).map(drop)
}

fn daemon_lost_early(bench: &mut Bench) -> Result<(), Error> {
    bench.plug(json!({}))?;
    let mut driver = Driver::probe(&mut bench.qtest)?;
    bench.kill_daemon()?;
    // DRIVER_OK while there is no daemon: it starts when one comes.
    driver.start(&mut bench.qtest)?;
    driver.submit(&mut bench.qtest, QUERY.1, &[])?;
    bench.restart_daemon()?;
    let status = driver.answer(&mut bench.qtest)?.status;
    ensure_eq("the status of the first command", status, STATUS_NOT_INITIALIZED)?;
    driver.init(&mut bench.qtest)
}

fn daemon_lost_paused(bench: &mut Bench) -> Result<(), Error> {
    let mut driver = bench.plug_and_start()?;
    bench.qmp.execute("stop", json!({}))?;
    bench.kill_daemon()?;
    driver.submit(&mut bench.qtest, QUERY.1, &[])?;
    bench.restart_daemon()?;
    bench.qmp.execute("cont", json!({}))?;
    driver.answer(&mut bench.qtest)?;
    driver.init(&mut bench.qtest)
}

fn reset_without_daemon(bench: &mut Bench) -> Result<(), Error> {
    let mut driver = bench.plug_and_start()?;
    bench.kill_daemon()?;
    driver.start(&mut bench.qtest)?;
    driver.start(&mut bench.qtest)?;
    bench.restart_daemon()?;
    is_not_initialized(bench, &mut driver)?;
    driver.init(&mut bench.qtest)
}

fn unplug_without_daemon(bench: &mut Bench) -> Result<(), Error> {
    bench.plug_and_start()?;
    bench.kill_daemon()?;
    bench.unplug()?;
    bench.restart_daemon()?;
    bench.plug_and_start().map(drop)
}

fn unplug_while_connecting(bench: &mut Bench) -> Result<(), Error> {
    bench.plug_and_start()?;
    bench.kill_daemon()?;
    let stall = bench.stall()?;
    // Several times as long as QEMU waits before it tries again.
    std::thread::sleep(Duration::from_millis(500));
    bench.unplug()?;
    drop(stall);
    bench.restart_daemon()?;
    bench.plug_and_start().map(drop)
}

fn daemon_dies_in_steps(bench: &mut Bench) -> Result<(), Error> {
    type Step = fn(&mut Bench, &mut Driver) -> Result<(), Error>;
    let steps: [Step; 8] = [
        |bench, driver| driver.submit(&mut bench.qtest, QUERY.1, &[]),
        |bench, driver| driver.config(&mut bench.qtest).map(drop),
        |bench, driver| driver.reset(&mut bench.qtest),
        |bench, driver| driver.start(&mut bench.qtest),
        |bench, _| bench.qmp.execute("stop", json!({})).map(drop),
        |bench, _| bench.qmp.execute("cont", json!({})).map(drop),
        |bench, _| bench.virtio_status().map(drop),
        |bench, _| bench.unplug(),
    ];
    for step in steps {
        // Nothing waits here until QEMU has noticed, so the step itself may be what finds out.
        let mut driver = bench.plug_and_start()?;
        bench.kill_daemon_unnoticed();
        step(bench, &mut driver)?;
        bench.qmp.execute("cont", json!({}))?;
        bench.restart_daemon()?;
        if bench.plugged_id()? != u32::MAX {
            driver.start(&mut bench.qtest)?;
            driver.init(&mut bench.qtest)?;
            bench.unplug()?;
        }
    }
    Ok(())
}

fn mmio(bench: &mut Bench) -> Result<(), Error> {
    const FIRST: u64 = 0xfeb0_0000;
    const STEP: u64 = 0x200;
    const DEVICE_ID_REGISTER: u64 = 0x8;
    const QUEUE_SELECT: u64 = 0x30;
    const QUEUE_SIZE_MAX: u64 = 0x34;
    const CONFIG: u64 = 0x100;

    let mut place = None;
    for slot in 0..24 {
        let at = FIRST + slot * STEP;
        if bench.qtest.load(at + DEVICE_ID_REGISTER, 4)? == u64::from(DEVICE_ID) {
            place = Some(at);
        }
    }
    let at = place.ok_or_else(|| Error::check("there is no RDMA device on virtio-mmio"))?;
    let qtest = &mut bench.qtest;
    ensure_eq("the version of the transport", qtest.load(at + 4, 4)?, 2)?;
    for queue in 0..7 {
        qtest.store(at + QUEUE_SELECT, 4, queue)?;
        let size = qtest.load(at + QUEUE_SIZE_MAX, 4)?;
        ensure_eq("that the queue exists", size > 0, queue < 6)?;
    }
    let mut config = Config::new_zeroed();
    for (offset, byte) in (0u64..).zip(config.as_mut_bytes()) {
        *byte = qtest.load(at + CONFIG + offset, 1)? as u8;
    }
    ensure_eq("abi_major", u32::from(config.abi_major.get()), ABI_MAJOR)?;
    ensure_eq("num_comp_vectors", config.num_comp_vectors.get(), 2)?;
    bench.kill_daemon()?;
    bench.restart_daemon()?;
    let status = bench.virtio_mmio_status()?;
    ensure_eq("its number of queues", &status["num-vqs"], &json!(6))
}

fn is_not_initialized(bench: &mut Bench, driver: &mut Driver) -> Result<(), Error> {
    let status = driver.execute(&mut bench.qtest, QUERY.1, &[])?.status;
    ensure_eq("the status of a command before INIT", status, STATUS_NOT_INITIALIZED)
}
