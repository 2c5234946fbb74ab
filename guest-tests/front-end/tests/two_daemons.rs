// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whole-device tests with the two VMs of each at two daemons, which a wire joins: Unix datagrams, and
//! for one test packet sockets on a veth pair. What `device` says of work requests holds there too; and
//! what was counted on the way is told.
#![allow(dead_code, reason = "a part of what the tests share is for others of them")]

#[path = "device/atomics.rs"]
mod atomics;
#[path = "device/bad_work.rs"]
mod bad_work;
#[path = "device/fast_reg.rs"]
mod fast_reg;
#[path = "device/harness.rs"]
mod harness;
#[path = "device/kinds.rs"]
mod kinds;
#[path = "device/placement.rs"]
mod placement;
#[path = "device/transfers.rs"]
mod transfers;
#[path = "device/windows.rs"]
mod windows;

use std::cell::Cell;
use std::path::Path;
use std::process::{Command, Stdio};

use front_end::SendWr;
use front_end::abi::ring::WC_SUCCESS;
use harness::{LONG, Pair, PairOptions, TestResult, Wire};
use vhost_rdma::{PortSpec, WireConfig};

fn hca() -> vhost_rdma::HcaSpec {
    vhost_rdma::HcaSpec::default()
}

/// Whether the VMs of a test are at two daemons.
const APART: bool = true;

thread_local! {
    /// What the daemons of this thread's test are joined by, if not by Unix datagrams without faults.
    static PORTS: Cell<Ports> = const { Cell::new(Ports::Dgram { loss: 0 }) };
}

#[derive(Clone, Copy)]
enum Ports {
    Dgram { loss: u32 },
    Veth,
}

fn wire(folder: &Path) -> Wire {
    let path = |n: u32| folder.join(format!("wire{n}")).display().to_string();
    let dgram =
        |n: u32, loss| format!("dgram:{},{},mtu=4200,loss={loss},seed={n}", path(n), path(1 - n));
    let (ports, prepare): ([String; 2], fn()) = match PORTS.get() {
        Ports::Dgram { loss } => ([dgram(0, loss), dgram(1, loss)], || {}),
        Ports::Veth => (["packet:wire0".to_owned(), "packet:wire1".to_owned()], || {
            assert!(own_veth_pair(), "it could be made before");
        }),
    };
    let config = |text: String| {
        let port: PortSpec = text.parse().expect("a port");
        WireConfig { ports: vec![port], pcap: None }
    };
    Wire { ports: ports.map(config).into(), prepare }
}

/// Gives the calling thread a network of its own, and a veth pair in it. False where it may not.
fn own_veth_pair() -> bool {
    // SAFETY: unshare touches no memory; it moves only this thread.
    let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    let ip = |arguments: &str| {
        let mut command = Command::new("ip");
        command.args(arguments.split(' ')).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    moved
        && ip("link add wire0 mtu 4200 type veth peer name wire1 mtu 4200")
        && ip("link set wire0 up")
        && ip("link set wire1 up")
}

#[test]
fn over_a_veth_pair_every_operation_moves_every_byte() -> TestResult {
    if !std::thread::spawn(own_veth_pair).join().unwrap_or(false) {
        eprintln!("not run: no network of its own, or no veth pair in it");
        return Ok(());
    }
    PORTS.set(Ports::Veth);
    transfers::every_operation_moves_every_byte_at_every_size_and_offset()?;
    atomics::atomics_give_the_old_value_and_store_the_new_one()
}

#[test]
fn what_got_lost_is_counted_for_the_guests_at_both_ends() -> TestResult {
    PORTS.set(Ports::Dgram { loss: 50_000 });
    let (_daemons, mut pair) = Pair::start(&PairOptions::default())?;
    let Pair { a, b, qa, qb } = &mut pair;
    for n in 0..40 {
        let sges = [a.mr.sge(0, 100_000)];
        qa.post_send(&SendWr::write(n, &sges, b.mr.remote(1000)).signaled())?;
        let wc = a.send_cq.wait_one(LONG)?;
        assert_eq!((wc.wr_id, wc.status), (n, WC_SUCCESS));
    }
    // Of 4,000,000 bytes in packets of 4,096 at the most some were lost, whatever the path MTU.
    let counters = b.driver.query_counters()?;
    assert!(counters.out_of_seq_request.get() > 0, "{counters:?}");
    let counters = a.driver.query_counters()?;
    assert_eq!(counters.retry_exceeded_err.get(), 0, "{counters:?}");
    assert!(counters.rcvd_seq_err.get() > 0, "{counters:?}");
    // The counts outlive the QPs.
    let before = b.driver.query_counters()?.out_of_seq_request;
    b.driver.destroy_qp(qb)?;
    assert!(b.driver.query_counters()?.out_of_seq_request.get() >= before.get());
    Ok(())
}
