// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every kind of object: made, used, counted by what it depends on, ended; and what a verb answers
//! when it may not do what it is asked.

mod common;

use std::sync::Arc;

use common::{CAP, Kind, LedgerHca, Loopback, Stage, connect, memory, send};
use rdma_midlayer::attr::{AhAttr, GidEntry, QpAttr, QpAttrMask, QpCap};
use rdma_midlayer::driver::{FmrAttr, Notify};
use rdma_midlayer::types::{Access, Gid, LKey, MwType, QpState, QpType, Qpn, RKey};
use rdma_midlayer::work::{MwBind, RecvWr, SendData, Sge};
use rdma_midlayer::{ContextSpec, CqSpec, Error, MaySleep, QpSpec, Rereg, SrqSpec};

fn cq_spec() -> CqSpec {
    CqSpec { cqe: 16, ..CqSpec::default() }
}

#[test]
fn a_list_is_posted_up_to_the_wr_that_the_qp_does_not_take() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    let stage = Stage::new(&cx, hca.clone());
    let context = stage.device.alloc_context(&cx, ContextSpec::default()).unwrap();
    let pd = context.alloc_pd(&cx).unwrap();
    let cq = context.create_cq(&cx, cq_spec()).unwrap();
    let qp = pd.create_qp(&cx, QpSpec::new(QpType::Rc, &cq, CAP)).unwrap();
    let sges = vec![Sge::default(); CAP.max_send_sge as usize + 1];
    let good = send(1, SendData::Sges(&[]));
    assert_eq!(qp.post_send_list(&[good; 3]), Ok(()));
    let bad = qp.post_send_list(&[good, good, send(2, SendData::Sges(&sges)), good]);
    let bad = bad.unwrap_err();
    assert_eq!((bad.taken, bad.error), (2, Error::Invalid("too many SGEs")));
    qp.destroy(&cx).unwrap();
    assert_eq!(qp.post_send_list(&[good]).unwrap_err().error, Error::Gone);
    cq.destroy(&cx).unwrap();
    pd.dealloc(&cx).unwrap();
    context.dealloc(&cx).unwrap();
    stage.end(&cx);
}

#[test]
fn what_others_depend_on_is_busy_until_they_end_and_then_gone() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    let (stage, context, pd) = Stage::open(&cx, hca.clone());
    let cq = context.create_cq(&cx, cq_spec()).unwrap();
    let recv_cq = context.create_cq(&cx, cq_spec()).unwrap();
    let xrcd = context.alloc_xrcd(&cx).unwrap();
    let srq = pd.create_srq(&cx, SrqSpec { max_wr: 8, max_sge: 1, ..SrqSpec::default() }).unwrap();
    let xrc = Some((xrcd.clone(), cq.clone()));
    let xrc_srq =
        pd.create_srq(&cx, SrqSpec { max_wr: 8, max_sge: 1, xrc, ..SrqSpec::default() }).unwrap();
    let spec = QpSpec {
        recv_cq: recv_cq.clone(),
        srq: Some(srq.clone()),
        ..QpSpec::new(QpType::Ud, &cq, CAP)
    };
    let qp = pd.create_qp(&cx, spec).unwrap();
    let spec = QpSpec { xrcd: Some(xrcd.clone()), ..QpSpec::new(QpType::XrcTgt, &cq, CAP) };
    let target = pd.create_qp(&cx, spec).unwrap();
    let mr = pd.reg_mr(&cx, memory(0x1000, 64), Access::LOCAL_WRITE).unwrap();
    let mw = pd.alloc_mw(&cx, MwType::Type1).unwrap();
    let attr = FmrAttr { max_pages: 4, max_maps: 2, page_shift: 12 };
    let fmr = pd.alloc_fmr(&cx, attr, Access::LOCAL_WRITE).unwrap();
    let ah = pd.create_ah(&AhAttr::default()).unwrap();
    let group = Gid([0xff; 16]);
    qp.attach_mcast(&cx, &group, 0).unwrap();

    assert_eq!(context.dealloc(&cx), Err(Error::Busy("context")));
    assert_eq!(pd.dealloc(&cx), Err(Error::Busy("PD")));
    assert_eq!(cq.destroy(&cx), Err(Error::Busy("CQ")));
    assert_eq!(recv_cq.destroy(&cx), Err(Error::Busy("CQ")));
    assert_eq!(srq.destroy(&cx), Err(Error::Busy("SRQ")));
    assert_eq!(xrcd.dealloc(&cx), Err(Error::Busy("XRC domain")));
    assert_eq!(qp.destroy(&cx), Err(Error::Busy("QP")), "a group is attached");

    qp.detach_mcast(&cx, &group, 0).unwrap();
    qp.destroy(&cx).unwrap();
    srq.destroy(&cx).unwrap();
    recv_cq.destroy(&cx).unwrap();
    assert_eq!(cq.destroy(&cx), Err(Error::Busy("CQ")));
    xrc_srq.destroy(&cx).unwrap();
    assert_eq!(xrcd.dealloc(&cx), Err(Error::Busy("XRC domain")));
    target.destroy(&cx).unwrap();
    xrcd.dealloc(&cx).unwrap();
    cq.destroy(&cx).unwrap();
    mr.dereg(&cx).unwrap();
    mw.dealloc(&cx).unwrap();
    fmr.dealloc(&cx).unwrap();
    assert_eq!(pd.dealloc(&cx), Err(Error::Busy("PD")), "an AH is left");
    drop(ah);
    pd.dealloc(&cx).unwrap();
    context.dealloc(&cx).unwrap();

    assert_eq!(hca.ledger.all_live(), 0);
    assert_eq!(qp.destroy(&cx), Err(Error::Gone));
    assert_eq!(qp.post_send(&send(0, SendData::Sges(&[]))), Err(Error::Gone));
    assert_eq!(qp.query(&cx).err(), Some(Error::Gone));
    assert_eq!(cq.poll_cq(&mut Vec::new(), 1), Err(Error::Gone));
    assert_eq!(cq.req_notify_cq(Notify::Next), Err(Error::Gone));
    assert_eq!(srq.post_recv(&RecvWr { wr_id: 0, ticket: 0, sges: &[] }), Err(Error::Gone));
    assert_eq!(fmr.map_phys_fmr(Arc::new(memory(0, 8))), Err(Error::Gone));
    assert_eq!(pd.create_ah(&AhAttr::default()).err(), Some(Error::Gone));
    assert_eq!(pd.alloc_mr(&cx, 1).err(), Some(Error::Gone));
    assert_eq!(context.alloc_pd(&cx).err(), Some(Error::Gone));
    hca.ledger.assert_kept();
    stage.end(&cx);
}

#[test]
fn arguments_out_of_range_never_reach_the_driver() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    let (stage, context, pd) = Stage::open(&cx, hca.clone());
    let cq = context.create_cq(&cx, cq_spec()).unwrap();
    let before = hca.ledger.calls.load(std::sync::atomic::Ordering::SeqCst);

    let cqe = |cqe| CqSpec { cqe, ..CqSpec::default() };
    assert!(matches!(context.create_cq(&cx, cqe(0)).err(), Some(Error::Invalid(_))));
    assert!(matches!(context.create_cq(&cx, cqe(1025)).err(), Some(Error::Limit("max_cqe"))));
    assert!(matches!(cq.resize_cq(&cx, 1025, None), Err(Error::Limit("max_cqe"))));
    let entry = GidEntry { gid: Gid::default(), mac: [0; 6], vlan: None };
    assert_eq!(context.add_gid(&cx, 8, &entry), Err(Error::Invalid("GID index")));
    assert_eq!(context.del_gid(&cx, 8), Err(Error::Invalid("GID index")));
    let qp = |qp_type, cap| pd.create_qp(&cx, QpSpec::new(qp_type, &cq, cap)).err();
    for (cap, name) in [
        (QpCap { max_send_wr: 129, ..CAP }, "max_qp_wr"),
        (QpCap { max_recv_wr: 129, ..CAP }, "max_qp_wr"),
        (QpCap { max_send_sge: 5, ..CAP }, "max_send_sge"),
        (QpCap { max_recv_sge: 5, ..CAP }, "max_recv_sge"),
        (QpCap { max_inline: 65, ..CAP }, "max_inline"),
    ] {
        assert_eq!(qp(QpType::Rc, cap), Some(Error::Limit(name)));
    }
    assert!(matches!(qp(QpType::XrcTgt, CAP), Some(Error::Invalid(_))), "no XRC domain");
    let rights = Access::REMOTE_WRITE;
    assert!(matches!(pd.reg_mr(&cx, memory(0, 8), rights).err(), Some(Error::Invalid(_))));
    let two = vec![memory(0x1000, 64), memory(0x1020, 64)];
    assert!(matches!(pd.reg_dma_mr(&cx, two, Access::NONE).err(), Some(Error::Invalid(_))));
    assert!(matches!(pd.alloc_mr(&cx, 65).err(), Some(Error::Limit(_))));
    let srq = |max_wr, max_sge, limit| {
        pd.create_srq(&cx, SrqSpec { max_wr, max_sge, limit, ..SrqSpec::default() }).err()
    };
    assert!(matches!(srq(0, 1, 0), Some(Error::Invalid(_))));
    assert!(matches!(srq(8, 1, 9), Some(Error::Invalid(_))));
    assert_eq!(srq(129, 1, 0), Some(Error::Limit("max_srq_wr")));
    assert_eq!(srq(8, 5, 0), Some(Error::Limit("max_srq_sge")));
    let far = AhAttr { sgid_index: 8, ..AhAttr::default() };
    assert_eq!(pd.create_ah(&far).err(), Some(Error::Invalid("path")));
    let none = FmrAttr { max_pages: 0, max_maps: 1, page_shift: 12 };
    assert!(matches!(pd.alloc_fmr(&cx, none, Access::NONE).err(), Some(Error::Invalid(_))));

    let after = hca.ledger.calls.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(after, before);
    cq.destroy(&cx).unwrap();
    stage.close(&cx, context, pd);
}

#[test]
fn objects_of_two_devices_do_not_mix() {
    let cx = MaySleep::claim().unwrap();
    let (one, other) = (LedgerHca::new("one"), LedgerHca::new("other"));
    let (one, other) = (Stage::new(&cx, one), Stage::new(&cx, other));
    let context = one.device.alloc_context(&cx, ContextSpec::default()).unwrap();
    let foreign = other.device.alloc_context(&cx, ContextSpec::default()).unwrap();
    let pd = context.alloc_pd(&cx).unwrap();
    let cq = foreign.create_cq(&cx, cq_spec()).unwrap();
    let mixed = pd.create_qp(&cx, QpSpec::new(QpType::Rc, &cq, CAP)).err();
    assert_eq!(mixed, Some(Error::Invalid("an object of another device")));
    cq.destroy(&cx).unwrap();
    foreign.dealloc(&cx).unwrap();
    pd.dealloc(&cx).unwrap();
    context.dealloc(&cx).unwrap();
    one.end(&cx);
    other.end(&cx);
}

#[test]
fn a_destroy_that_the_driver_refuses_leaves_the_object_as_it_was() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    let stage = Stage::new(&cx, hca.clone());
    let context = stage.device.alloc_context(&cx, ContextSpec::default()).unwrap();
    let cq = context.create_cq(&cx, cq_spec()).unwrap();
    hca.ledger.fail_destroys.store(1, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(cq.destroy(&cx), Err(Error::Host(5)));
    assert_eq!(cq.poll_cq(&mut Vec::new(), 1), Ok(0));
    assert_eq!(context.dealloc(&cx), Err(Error::Busy("context")));
    cq.destroy(&cx).unwrap();
    context.dealloc(&cx).unwrap();
    stage.end(&cx);
}

#[test]
fn a_qp_takes_only_the_transitions_and_ranges_that_iba_has() {
    let cx = MaySleep::claim().unwrap();
    let (stage, context, pd) = Stage::open(&cx, LedgerHca::new("hca"));
    let cq = context.create_cq(&cx, cq_spec()).unwrap();
    let qp = pd.create_qp(&cx, QpSpec::new(QpType::Rc, &cq, CAP)).unwrap();
    use QpAttrMask as M;
    let to = |state| QpAttr { state, ..QpAttr::default() };
    let init = M::STATE | M::PKEY_INDEX | M::PORT | M::ACCESS_FLAGS;

    let modify = |attr: QpAttr, mask| qp.modify(&cx, &attr, mask);
    assert!(matches!(modify(to(QpState::Rts), M::STATE), Err(Error::BadState(_))));
    assert!(matches!(modify(to(QpState::Init), M::STATE), Err(Error::Invalid(_))));
    let port = |port| QpAttr { port, ..to(QpState::Init) };
    assert_eq!(modify(port(0), init), Err(Error::Invalid("port")));
    assert_eq!(modify(port(3), init), Err(Error::Invalid("port")));
    let key = QpAttr { pkey_index: 1, ..to(QpState::Init) };
    assert_eq!(modify(key, init), Err(Error::Invalid("P_Key index")));
    assert_eq!(qp.query(&cx).unwrap().state, QpState::Reset, "nothing has changed");
    modify(port(2), init).unwrap();

    let rtr = M::STATE
        | M::AV
        | M::PATH_MTU
        | M::DEST_QPN
        | M::RQ_PSN
        | M::MAX_DEST_RD_ATOMIC
        | M::MIN_RNR_TIMER;
    let base = to(QpState::Rtr);
    let wrong = [
        (QpAttr { path_mtu: rdma_midlayer::types::Mtu::Mtu4096, ..base }, "path MTU"),
        (QpAttr { dest_qpn: Qpn(1 << 24), ..base }, "QPN"),
        (QpAttr { min_rnr_timer: 32, ..base }, "min_rnr_timer"),
        (QpAttr { max_dest_rd_atomic: 17, ..base }, "max_dest_rd_atomic"),
        (QpAttr { ah: AhAttr { flow_label: 1 << 20, ..AhAttr::default() }, ..base }, "path"),
        (QpAttr { ah: AhAttr { dgid: Gid([0xff; 16]), ..AhAttr::default() }, ..base }, "path"),
    ];
    for (attr, name) in wrong {
        assert_eq!(modify(attr, rtr), Err(Error::Invalid(name)));
    }
    assert!(matches!(modify(base, rtr | M::ALT_PATH), Err(Error::Unsupported(_))));
    modify(base, rtr).unwrap();

    let rts = M::STATE | M::SQ_PSN | M::TIMEOUT | M::RETRY_CNT | M::RNR_RETRY | M::MAX_QP_RD_ATOMIC;
    let base = to(QpState::Rts);
    let wrong = [
        (QpAttr { timeout: 32, ..base }, "timeout"),
        (QpAttr { retry_cnt: 8, ..base }, "retry_cnt"),
        (QpAttr { rnr_retry: 8, ..base }, "rnr_retry"),
        (QpAttr { max_rd_atomic: 17, ..base }, "max_rd_atomic"),
    ];
    for (attr, name) in wrong {
        assert_eq!(modify(attr, rts), Err(Error::Invalid(name)));
    }
    let believed = QpAttr { cur_state: QpState::Sqd, ..base };
    assert!(matches!(modify(believed, rts | M::CUR_STATE), Err(Error::BadState(_))));
    let believed = QpAttr { cur_state: QpState::Rtr, ..base };
    modify(believed, rts | M::CUR_STATE).unwrap();
    // Without STATE it stays where it is.
    modify(to(QpState::Reset), M::ACCESS_FLAGS).unwrap();
    assert_eq!(qp.query(&cx).unwrap().state, QpState::Rts);

    let sges = [Sge::default(); 2];
    assert!(matches!(qp.post_send(&send(1, SendData::Sges(&sges))), Err(Error::Invalid(_))));
    assert!(matches!(qp.post_send(&send(1, SendData::Inline(&[0; 65]))), Err(Error::Invalid(_))));
    let recv = RecvWr { wr_id: 1, ticket: 0, sges: &sges };
    assert!(matches!(qp.post_recv(&recv), Err(Error::Invalid(_))));
    assert!(matches!(qp.attach_mcast(&cx, &Gid([0xff; 16]), 0), Err(Error::Invalid(_))), "RC");
    let spec = QpSpec { block_self_mcast: true, ..QpSpec::new(QpType::Rc, &cq, CAP) };
    assert!(matches!(pd.create_qp(&cx, spec), Err(Error::Invalid(_))), "RC has no groups");

    qp.destroy(&cx).unwrap();
    cq.destroy(&cx).unwrap();
    stage.close(&cx, context, pd);
}

#[test]
fn a_ud_qp_takes_groups_of_ipv6_and_ipv4_each_once_and_no_other_addresses() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    let stage = Stage::new(&cx, hca.clone());
    let context = stage.device.alloc_context(&cx, ContextSpec::default()).unwrap();
    let pd = context.alloc_pd(&cx).unwrap();
    let cq = context.create_cq(&cx, cq_spec()).unwrap();
    let qp = pd.create_qp(&cx, QpSpec::new(QpType::Ud, &cq, CAP)).unwrap();
    let gid = |text: &str| Gid(text.parse::<std::net::Ipv6Addr>().unwrap().octets());

    let groups = ["ff0e::1", "ff02::1:2", "::ffff:224.0.0.1", "::ffff:239.255.255.255"].map(gid);
    for group in &groups {
        qp.attach_mcast(&cx, group, 0).unwrap();
        assert!(matches!(qp.attach_mcast(&cx, group, 0), Err(Error::Invalid(_))), "{group} twice");
    }
    assert_eq!(qp.mcast_groups().len(), groups.len());
    // An IPv4 address that is not mapped is one of IPv6.
    for other in ["::ffff:223.0.0.1", "::ffff:240.0.0.1", "::224.0.0.1", "fe80::1", "::"] {
        assert!(matches!(qp.attach_mcast(&cx, &gid(other), 0), Err(Error::Invalid(_))), "{other}");
        assert!(matches!(qp.detach_mcast(&cx, &gid(other), 0), Err(Error::Invalid(_))), "{other}");
    }
    for group in &groups {
        assert_eq!(qp.destroy(&cx), Err(Error::Busy("QP")));
        qp.detach_mcast(&cx, group, 0).unwrap();
        assert!(matches!(qp.detach_mcast(&cx, group, 0), Err(Error::Invalid(_))), "{group} twice");
    }
    qp.destroy(&cx).unwrap();
    assert_eq!(qp.detach_mcast(&cx, &groups[0], 0), Err(Error::Gone));
    cq.destroy(&cx).unwrap();
    stage.close(&cx, context, pd);
}

#[test]
fn rereg_moves_an_mr_from_one_pd_to_another() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    let stage = Stage::new(&cx, hca.clone());
    let context = stage.device.alloc_context(&cx, ContextSpec::default()).unwrap();
    let (one, other) = (context.alloc_pd(&cx).unwrap(), context.alloc_pd(&cx).unwrap());
    let mr = one.reg_mr(&cx, memory(0, 64), Access::NONE).unwrap();
    let bad = Rereg { access: Some(Access::REMOTE_ATOMIC), ..Rereg::default() };
    assert!(matches!(mr.rereg(&cx, bad), Err(Error::Invalid(_))));
    mr.rereg(&cx, Rereg { pd: Some(other.clone()), ..Rereg::default() }).unwrap();
    one.dealloc(&cx).unwrap();
    assert_eq!(other.dealloc(&cx), Err(Error::Busy("PD")));
    let gone = Rereg { pd: Some(one), ..Rereg::default() };
    assert_eq!(mr.rereg(&cx, gone), Err(Error::Gone));
    mr.dereg(&cx).unwrap();
    other.dealloc(&cx).unwrap();
    context.dealloc(&cx).unwrap();
    stage.end(&cx);
}

#[test]
fn windows_and_fast_regions_check_what_they_are_given() {
    let cx = MaySleep::claim().unwrap();
    let stage = Stage::new(&cx, LedgerHca::new("hca"));
    let context = stage.device.alloc_context(&cx, ContextSpec::default()).unwrap();
    let (pd, other) = (context.alloc_pd(&cx).unwrap(), context.alloc_pd(&cx).unwrap());
    let cq = context.create_cq(&cx, cq_spec()).unwrap();
    let qp = pd.create_qp(&cx, QpSpec::new(QpType::Rc, &cq, CAP)).unwrap();
    let bind = |access| MwBind { rkey: RKey(0), lkey: LKey(0), addr: 0, length: 8, access };
    let (one, two) = (MwType::Type1, MwType::Type2);
    let windows = [one, two].map(|mw_type| pd.alloc_mw(&cx, mw_type).unwrap());
    let foreign = other.alloc_mw(&cx, one).unwrap();
    let read = bind(Access::REMOTE_READ);
    assert_ne!(windows[0].bind_mw(&qp, 1, 0, &read).unwrap(), windows[0].rkey());
    assert!(matches!(windows[1].bind_mw(&qp, 1, 0, &read), Err(Error::Invalid(_))));
    assert!(matches!(foreign.bind_mw(&qp, 1, 0, &read), Err(Error::Invalid(_))));
    let local = bind(Access::LOCAL_WRITE);
    assert!(matches!(windows[0].bind_mw(&qp, 1, 0, &local), Err(Error::Invalid(_))));
    let attr = FmrAttr { max_pages: 1, max_maps: 2, page_shift: 12 };
    let fmr = pd.alloc_fmr(&cx, attr, Access::NONE).unwrap();
    fmr.map_phys_fmr(Arc::new(memory(0, 4096))).unwrap();
    assert!(matches!(fmr.map_phys_fmr(Arc::new(memory(0, 4104))), Err(Error::Limit(_))));
    fmr.unmap_fmr(&cx).unwrap();
    fmr.dealloc(&cx).unwrap();
    windows.iter().for_each(|mw| mw.dealloc(&cx).unwrap());
    foreign.dealloc(&cx).unwrap();
    qp.destroy(&cx).unwrap();
    cq.destroy(&cx).unwrap();
    pd.dealloc(&cx).unwrap();
    other.dealloc(&cx).unwrap();
    context.dealloc(&cx).unwrap();
    stage.end(&cx);
}

#[test]
fn a_device_without_a_kind_answers_unsupported() {
    let cx = MaySleep::claim().unwrap();
    let (stage, context, pd) = Stage::open(&cx, Loopback::new("hca"));
    let cq = context.create_cq(&cx, cq_spec()).unwrap();
    assert_eq!(context.alloc_xrcd(&cx).err(), Some(Error::Unsupported("XRC")));
    assert!(matches!(pd.alloc_mw(&cx, MwType::Type1).err(), Some(Error::Unsupported(_))));
    let attr = FmrAttr { max_pages: 1, max_maps: 1, page_shift: 12 };
    assert!(matches!(pd.alloc_fmr(&cx, attr, Access::NONE).err(), Some(Error::Unsupported(_))));
    assert!(matches!(pd.create_ah(&AhAttr::default()).err(), Some(Error::Unsupported(_))));
    assert!(matches!(cq.resize_cq(&cx, 8, None), Err(Error::Unsupported(_))));
    cq.destroy(&cx).unwrap();
    stage.close(&cx, context, pd);
}

#[test]
fn a_message_goes_from_one_qp_to_another() {
    let cx = MaySleep::claim().unwrap();
    let (stage, context, pd) = Stage::open(&cx, Loopback::new("hca"));
    let cq = context.create_cq(&cx, cq_spec()).unwrap();
    let [a, b] = [0, 1].map(|_| pd.create_qp(&cx, QpSpec::new(QpType::Rc, &cq, CAP)).unwrap());
    connect(&cx, &a, &b);
    connect(&cx, &b, &a);
    let mr = pd.reg_mr(&cx, memory(0x1000, 64), Access::LOCAL_WRITE).unwrap();
    let sge = Sge { addr: 0x1000, length: 64, lkey: mr.lkey() };
    b.post_recv(&RecvWr { wr_id: 7, ticket: 0, sges: &[sge] }).unwrap();
    a.post_send(&send(6, SendData::Inline(b"hello"))).unwrap();
    let mut wcs = Vec::new();
    assert_eq!(cq.poll_cq(&mut wcs, 9), Ok(2));
    assert_eq!(wcs.iter().map(|wc| (wc.wr_id, wc.byte_len)).collect::<Vec<_>>(), [(7, 5), (6, 0)]);
    a.destroy(&cx).unwrap();
    b.destroy(&cx).unwrap();
    mr.dereg(&cx).unwrap();
    cq.destroy(&cx).unwrap();
    stage.close(&cx, context, pd);
}

#[test]
fn an_address_handle_ends_once_and_with_its_last_handle() {
    let cx = MaySleep::claim().unwrap();
    let hca = LedgerHca::new("hca");
    let (stage, context, pd) = Stage::open(&cx, hca.clone());
    let attr = AhAttr { hop_limit: 9, ..AhAttr::default() };
    let ah = pd.create_ah(&attr).unwrap();
    assert_eq!(ah.query(), Ok(attr));
    ah.modify(&AhAttr { hop_limit: 8, ..attr }).unwrap();
    assert_eq!(ah.query().unwrap().hop_limit, 8);
    assert_eq!(ah.dest(Qpn(5), 1).unwrap().qpn, Qpn(5));
    ah.destroy().unwrap();
    assert_eq!(ah.destroy(), Err(Error::Gone));
    assert_eq!(ah.dest(Qpn(5), 1).err(), Some(Error::Gone));
    drop((ah, pd.create_ah(&attr).unwrap()));
    assert_eq!(hca.ledger.live(Kind::Ah), 0);
    pd.dealloc(&cx).unwrap();
    context.dealloc(&cx).unwrap();
    hca.ledger.assert_kept();
    stage.end(&cx);
}
