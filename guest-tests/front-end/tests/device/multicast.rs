// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Multicast groups: members in several VMs, and what is refused.

use std::net::{Ipv4Addr, Ipv6Addr};

use front_end::abi::control::*;
use front_end::abi::ring::{CQE_GRH, WC_LOC_QP_OP_ERR, WC_SUCCESS};
use front_end::{Qp, QpEndpoint, QpOptions, RcOptions, SendWr, Status, Vm};

use crate::harness::{Bystander, LONG, Side, TestDaemon, TestResult, check, fill, refused};

const QKEY: u32 = 0x1111_2222;
const MULTICAST: u32 = 0xff_ffff;
const GRH: usize = 40;

fn group(last: u8) -> [u8; 16] {
    Ipv4Addr::new(230, 1, 2, last).to_ipv6_mapped().octets()
}

fn options(flags: u8) -> QpOptions {
    QpOptions { qp_type: QP_TYPE_UD, flags, ..QpOptions::default() }
}

/// A VM with the handle of a group, and of one that nobody is in.
struct Station {
    side: Side,
    ah: u32,
    nobody: u32,
}

impl Station {
    fn new(daemon: &TestDaemon, n: usize) -> TestResult<Self> {
        Self::of(daemon.vm(n)?)
    }

    /// With a new driver.
    fn of(vm: Vm) -> TestResult<Self> {
        let side = Side::new(vm, 65_536, 256)?;
        let ah = |gid| {
            let peer = QpEndpoint { gid, mac: [1, 0, 0x5e, 1, 2, 3], qpn: MULTICAST };
            side.driver.create_ah(&side.pd, &peer)
        };
        let (ah, nobody) = (ah(group(3))?, ah(group(99))?);
        Ok(Self { side, ah, nobody })
    }

    /// A QP in RTS.
    fn qp(&self, flags: u8) -> TestResult<Qp> {
        let mut qp = self.side.qp(&options(flags))?;
        qp.to_rts_datagram(QKEY, 1)?;
        Ok(qp)
    }

    /// A QP in RTS and in the group, with a receive WQE.
    fn member(&self, flags: u8) -> TestResult<Qp> {
        let mut qp = self.qp(flags)?;
        self.side.driver.attach_mcast(qp.number(), group(3))?;
        self.receive(&mut qp)?;
        Ok(qp)
    }

    fn receive(&self, qp: &mut Qp) -> TestResult {
        Ok(qp.post_recv(u64::from(qp.number()), &[self.side.mr.sge(4096, 2048)])?)
    }

    fn send(&mut self, qp: &mut Qp, dest: (u32, u32, u32)) -> TestResult<u8> {
        fill(&self.side.buffer, 0, 500, 5);
        qp.post_send(&SendWr::datagram(1, &[self.side.mr.sge(0, 500)], dest).signaled())?;
        Ok(self.side.send_cq.wait_one(LONG)?.status)
    }
}

#[test]
fn a_datagram_to_a_group_reaches_its_members_in_every_vm() -> TestResult {
    let daemon = TestDaemon::start(3)?;
    let mut stations = [0, 1, 2].map(|n| Station::new(&daemon, n));
    let [Ok(a), Ok(b), Ok(c)] = &mut stations else { return Err("no stations".into()) };
    let mut sender = a.member(0)?;
    let deaf = a.member(QP_FLAG_BLOCK_SELF_MCAST)?;
    let (in_b, mut not_in_c) = (b.member(0)?, c.qp(0)?);
    c.receive(&mut not_in_c)?;
    let dest = (a.ah, MULTICAST, QKEY);
    assert_eq!(a.send(&mut sender, dest)?, WC_SUCCESS);
    for (station, qps) in [(&mut *a, &[&sender, &deaf][..]), (b, &[&in_b])] {
        let wcs = station.side.recv_cq.poll_for(qps.len(), LONG)?;
        let mut heard: Vec<_> = wcs.iter().map(|wc| wc.qpn).collect();
        heard.sort_unstable();
        assert_eq!(heard, qps.iter().map(|qp| qp.number()).collect::<Vec<_>>());
        for wc in &wcs {
            let right = (WC_SUCCESS, sender.number(), GRH + 500);
            assert_eq!((wc.status, wc.src_qpn, wc.byte_len as usize), right);
            assert_ne!(wc.flags & CQE_GRH, 0);
        }
        check(&station.side.buffer, 4096 + GRH, 500, 5);
        assert_eq!(station.side.buffer.read(4096 + GRH - 4, 4), [230, 1, 2, 3], "the group");
    }
    // The one that does not want its own hears the others'; the sender has no receive WQE now.
    let mut deaf = deaf;
    a.receive(&mut deaf)?;
    assert_eq!(a.send(&mut deaf, dest)?, WC_SUCCESS);
    assert_eq!(a.send(&mut sender, dest)?, WC_SUCCESS);
    let wcs = a.side.recv_cq.poll_for(1, LONG)?;
    assert_eq!((wcs[0].qpn, wcs[0].src_qpn), (deaf.number(), sender.number()));
    assert_eq!(a.side.recv_cq.poll_one(), None);
    assert_eq!(c.side.recv_cq.poll_one(), None);
    Ok(())
}

#[test]
fn datagrams_that_are_not_for_the_group_vanish_and_wrong_q_keys_are_counted() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let (mut a, mut b) = (Station::new(&daemon, 0)?, Station::new(&daemon, 1)?);
    let (mut sender, member) = (a.qp(0)?, b.member(0)?);
    let to_b = a.side.driver.create_ah(&a.side.pd, &member.endpoint())?;
    for (what, dest) in [
        ("a group without members", (a.nobody, MULTICAST, QKEY)),
        ("a member's number", (a.ah, member.number(), QKEY)),
        ("a member's address", (to_b, MULTICAST, QKEY)),
        ("another Q_Key", (a.ah, MULTICAST, QKEY + 1)),
    ] {
        assert_eq!(a.send(&mut sender, dest)?, WC_SUCCESS, "{what}");
        assert_eq!(b.side.recv_cq.poll_one(), None, "{what}");
    }
    let dest = (a.ah, MULTICAST, QKEY);
    assert_eq!(a.send(&mut sender, dest)?, WC_SUCCESS);
    assert_eq!(b.side.recv_cq.wait_one(LONG)?.status, WC_SUCCESS);
    assert_eq!(b.side.driver.query_counters()?.qkey_viol.get(), 1);
    assert_eq!(b.side.driver.query_port(1)?.qkey_viol_cntr.get(), 1);
    // They count from the device's start on, not from INIT.
    let again = b.side.vm.driver()?;
    assert_eq!(again.query_counters()?.qkey_viol.get(), 1);
    assert_eq!(a.side.driver.query_counters()?.qkey_viol.get(), 0);
    Ok(())
}

#[test]
fn what_is_no_group_or_no_datagram_qp_is_refused() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let (a, other) = (Station::new(&daemon, 0)?, Station::new(&daemon, 1)?);
    let driver = &a.side.driver;
    let (qp, rc) = (a.qp(0)?, a.side.qp(&QpOptions::default())?);
    let unicast = [
        "::",
        "fe80::1",
        "::ffff:10.0.0.1",
        "::ffff:223.255.255.255",
        "::ffff:240.0.0.1",
        "::230.1.2.3",
    ];
    for text in unicast {
        let gid = text.parse::<Ipv6Addr>()?.octets();
        refused(driver.attach_mcast(qp.number(), gid), Status::Invalid);
        refused(driver.detach_mcast(qp.number(), gid), Status::Invalid);
    }
    for number in [0, 1, rc.number() + 77, u32::MAX] {
        refused(driver.attach_mcast(number, group(1)), Status::NoObject);
        refused(driver.detach_mcast(number, group(1)), Status::NoObject);
    }
    let foreign = [other.qp(0)?, other.qp(0)?, other.qp(0)?];
    refused(driver.attach_mcast(foreign[2].number(), group(1)), Status::NoObject);
    refused(driver.attach_mcast(rc.number(), group(1)), Status::Invalid);
    refused(driver.detach_mcast(qp.number(), group(1)), Status::Invalid);
    for gid in [group(1), "ff0e::1".parse::<Ipv6Addr>()?.octets()] {
        driver.attach_mcast(qp.number(), gid)?;
        refused(driver.attach_mcast(qp.number(), gid), Status::Invalid);
        driver.detach_mcast(qp.number(), gid)?;
        refused(driver.detach_mcast(qp.number(), gid), Status::Invalid);
    }
    // The flag is for datagram QPs; a group is nobody's address, and no peer of a connection.
    let flagged = QpOptions { flags: QP_FLAG_BLOCK_SELF_MCAST, ..QpOptions::default() };
    let answer = driver.create_qp(&a.side.pd, &a.side.send_cq, &a.side.recv_cq, &flagged);
    refused(answer.map(|qp| qp.number()), Status::Invalid);
    for gid in [group(1), [0xff; 16]] {
        refused(
            driver.add_gid(front_end::GidEntry { index: 5, gid, ..driver.gid() }),
            Status::Invalid,
        );
        let mut qp = a.side.qp(&QpOptions::default())?;
        qp.to_init(&RcOptions::default())?;
        let peer = QpEndpoint { gid, ..rc.endpoint() };
        refused(qp.to_rtr(&peer, &RcOptions::default()), Status::Invalid);
    }
    bystander.check()
}

#[test]
fn a_handle_that_is_none_fails_where_it_is_posted_to_a_group_too() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let mut a = Station::new(&daemon, 0)?;
    let mut qp = a.member(0)?;
    assert_eq!(a.send(&mut qp, (4000, MULTICAST, QKEY))?, WC_LOC_QP_OP_ERR);
    // In ERR it receives nothing more, and stays in the group.
    assert_eq!(a.side.driver.query_qp(qp.number())?.qp_state, QP_STATE_ERR);
    refused(a.side.driver.attach_mcast(qp.number(), group(3)), Status::Invalid);
    Ok(())
}

#[test]
fn groups_have_limits_and_a_qp_that_ends_leaves_all_of_its() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let (a, other) = (Station::new(&daemon, 0)?, Station::new(&daemon, 1)?);
    let driver = &a.side.driver;
    let attr = driver.query_device()?;
    let (most, groups) = (attr.max_mcast_qp_attach.get(), attr.max_mcast_grp.get());
    assert!(most > 0 && attr.max_total_mcast_qp_attach.get() >= most);
    let qps: Vec<_> = (0..=most).map(|_| a.side.qp(&options(0))).collect::<Result<_, _>>()?;
    let (last, rest) = qps.split_last().ok_or("no QPs")?;
    for qp in rest {
        driver.attach_mcast(qp.number(), group(1))?;
    }
    refused(driver.attach_mcast(last.number(), group(1)), Status::NoResources);
    // Another VM has limits of its own.
    let theirs = other.qp(0)?;
    other.side.driver.attach_mcast(theirs.number(), group(1))?;
    // In as many groups as there may be.
    let gid = |n: u32| {
        let [.., a, b] = n.to_be_bytes();
        Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, u16::from_be_bytes([a, b])).octets()
    };
    for n in 1..groups {
        driver.attach_mcast(last.number(), gid(n))?;
    }
    refused(driver.attach_mcast(last.number(), gid(groups)), Status::NoResources);
    driver.destroy_qp(last)?;
    for qp in &rest[1..] {
        driver.destroy_qp(qp)?;
    }
    let next = a.qp(0)?;
    driver.attach_mcast(next.number(), group(1))?;
    driver.attach_mcast(next.number(), gid(groups))?;
    Ok(())
}

#[test]
fn members_end_with_init_with_the_vm_and_with_the_hca() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let (mut a, mut vm) = (Station::new(&daemon, 0)?, daemon.vm(1)?);
    let mut sender = a.qp(0)?;
    let dest = (a.ah, MULTICAST, QKEY);
    for way in ["INIT", "reset", "reboot"] {
        let b = Station::of(vm)?;
        let member = b.member(0)?;
        match way {
            "INIT" => drop(b.side.vm.driver()?),
            "reset" => b.side.vm.reset_device()?,
            _ => b.side.vm.reboot()?,
        }
        b.side.buffer.fill(0x77);
        assert_eq!(a.send(&mut sender, dest)?, WC_SUCCESS, "{way}");
        assert_eq!(b.side.buffer.read(4096, 2048), [0x77; 2048], "{way}: written after its end");
        drop(member);
        vm = b.side.vm;
    }
    let b = Station::of(vm)?;
    let member = b.member(0)?;
    daemon.remove_hca()?;
    refused(b.side.driver.detach_mcast(member.number(), group(3)), Status::NoHca);
    daemon.add_hca()?;
    let (mut a, mut b) = (Station::of(a.side.vm)?, Station::of(b.side.vm)?);
    let (mut sender, _member) = (a.qp(0)?, b.member(0)?);
    let dest = (a.ah, MULTICAST, QKEY);
    assert_eq!(a.send(&mut sender, dest)?, WC_SUCCESS);
    assert_eq!(b.side.recv_cq.wait_one(LONG)?.status, WC_SUCCESS);
    Ok(())
}
