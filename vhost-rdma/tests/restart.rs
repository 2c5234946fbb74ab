// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program with front ends: killed with work in flight and started again, and with each way of
//! polling.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use front_end::abi::event::{EVENT_HCA_ADDED, EVENT_HCA_REMOVED};
use front_end::abi::ring::WC_SUCCESS;
use front_end::{
    Cq, Driver, QpOptions, RcOptions, SendWr, Status, Vm, VmConfig, access, connect_rc,
};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

const LONG: Duration = Duration::from_secs(60);

/// A daemon that is killed when dropped.
struct Program(Child);

impl Program {
    fn start(sockets: &[PathBuf], more: &[&str]) -> TestResult<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-rdma"));
        for socket in sockets {
            command.arg("--socket-path").arg(socket);
        }
        Ok(Self(command.args(more).stdin(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SIGKILL: nothing is put in order.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn vm(socket: &Path) -> TestResult<Vm> {
    Ok(Vm::connect(socket, VmConfig { memory: 32 << 20, ..VmConfig::default() })?)
}

/// Some SENDs from one driver to the other, every byte checked.
fn transfer(from: &Driver, to: &Driver, seed: u8) -> TestResult {
    let (pd_a, pd_b) = (from.alloc_pd()?, to.alloc_pd()?);
    let (mut cq_a, mut cq_b): (Cq, Cq) = (from.create_cq(64, 0)?, to.create_cq(64, 1)?);
    let mut qa = from.create_qp(&pd_a, &cq_a, &cq_a, &QpOptions::default())?;
    let mut qb = to.create_qp(&pd_b, &cq_b, &cq_b, &QpOptions::default())?;
    connect_rc(&mut qa, &mut qb, &RcOptions::default())?;
    let (a, b) = (from.memory().alloc_scattered(50_000)?, to.memory().alloc_scattered(50_000)?);
    let mr_a = from.reg_mr(&pd_a, &a, access::ALL)?;
    let mr_b = to.reg_mr(&pd_b, &b, access::ALL)?;
    for round in 0..20_u8 {
        a.fill(seed ^ round);
        cq_b.arm(false);
        qb.post_recv(1, &[mr_b.sge(0, 50_000)])?;
        qa.post_send(&SendWr::send(2, &[mr_a.sge(0, 50_000)]).signaled())?;
        assert!(cq_b.wait_event(LONG)?.is_some());
        assert_eq!(cq_b.wait_one(LONG)?.status, WC_SUCCESS);
        assert_eq!(cq_a.wait_one(LONG)?.status, WC_SUCCESS);
        assert!(b.read(0, 50_000).iter().all(|byte| *byte == seed ^ round));
    }
    // Left in flight.
    for _ in 0..20 {
        qa.post_send(&SendWr::write(3, &[mr_a.sge(0, 50_000)], mr_b.remote(0)))?;
    }
    Ok(())
}

#[test]
fn a_daemon_that_is_killed_comes_back_to_drivers_that_begin_anew() -> TestResult {
    let folder = tempfile::tempdir()?;
    let sockets = [folder.path().join("a.sock"), folder.path().join("b.sock")];
    let mut program = Program::start(&sockets, &[])?;
    let (a, b) = (vm(&sockets[0])?, vm(&sockets[1])?);
    let mut drivers = (a.driver()?, b.driver()?);
    for life in 0..3 {
        transfer(&drivers.0, &drivers.1, life)?;
        drop(program);
        program = Program::start(&sockets, &[])?;
        for (vm, driver) in [(&a, &drivers.0), (&b, &drivers.1)] {
            vm.reconnect()?;
            // The rings go on, and by them the driver hears that all it had is gone.
            for kind in [EVENT_HCA_REMOVED, EVENT_HCA_ADDED] {
                let event = driver.next_async_event(LONG)?.ok_or("no event")?;
                assert_eq!(event.event.get(), kind);
            }
            let answer = driver.alloc_pd();
            assert_eq!(answer.err().and_then(|error| error.status()), Some(Status::NotInitialized));
        }
        drivers = (a.driver()?, b.driver()?);
    }
    transfer(&drivers.0, &drivers.1, 99)
}

#[test]
fn every_way_of_polling_moves_the_same_bytes() -> TestResult {
    let folder = tempfile::tempdir()?;
    for (n, options) in [
        ["--workers", "1", "--poll-us", "0"],
        ["--workers", "3", "--poll-us", "0"],
        ["--workers", "1", "--poll-us", "1000"],
        ["--workers", "4", "--poll-us", "20"],
    ]
    .into_iter()
    .enumerate()
    {
        let socket = |name: &str| folder.path().join(format!("{name}{n}.sock"));
        let sockets = [socket("a"), socket("b")];
        let _program = Program::start(&sockets, &options)?;
        let (a, b) = (vm(&sockets[0])?, vm(&sockets[1])?);
        let (from, to) = (a.driver()?, b.driver()?);
        transfer(&from, &to, n as u8)?;
        transfer(&to, &from, !(n as u8))?;
    }
    Ok(())
}

#[test]
fn networks_keep_vms_apart() -> TestResult {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let mut with_net = Vec::new();
    for (name, net) in [("a", 1), ("b", 2)] {
        with_net.push(PathBuf::from(format!("{},net={net}", path(name).display())));
    }
    let _program = Program::start(&with_net, &[])?;
    let gid = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 9, 8, 7];
    let config = VmConfig { memory: 32 << 20, gid: Some(gid), ..VmConfig::default() };
    // The same address in two networks is no conflict, and no connection.
    let (a, b) = (Vm::connect(path("a"), config.clone())?, Vm::connect(path("b"), config)?);
    let (from, to) = (a.driver()?, b.driver()?);
    let (pd_a, pd_b) = (from.alloc_pd()?, to.alloc_pd()?);
    let (mut cq_a, cq_b) = (from.create_cq(64, 0)?, to.create_cq(64, 0)?);
    let mut qa = from.create_qp(&pd_a, &cq_a, &cq_a, &QpOptions::default())?;
    // Another number than its peer's, or it would be connected to itself.
    let _other = to.create_qp(&pd_b, &cq_b, &cq_b, &QpOptions::default())?;
    let mut qb = to.create_qp(&pd_b, &cq_b, &cq_b, &QpOptions::default())?;
    let options = RcOptions { timeout: 8, retry_cnt: 2, ..RcOptions::default() };
    connect_rc(&mut qa, &mut qb, &options)?;
    qa.post_send(&SendWr::write(1, &[], (0, 0)).signaled())?;
    assert_ne!(cq_a.wait_one(LONG)?.status, WC_SUCCESS);
    Ok(())
}
