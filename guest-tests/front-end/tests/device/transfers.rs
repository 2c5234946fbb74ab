// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Data of SEND, WRITE and READ, every byte checked, at many sizes, offsets and splits.

use front_end::abi::ring::{
    CQE_WITH_IMM, Sge, WC_OP_RDMA_READ, WC_OP_RDMA_WRITE, WC_OP_RECV, WC_OP_RECV_RDMA_WITH_IMM,
    WC_OP_SEND, WC_SUCCESS,
};
use front_end::{Mr, QpOptions, SendWr, VmConfig, connect_rc};

use crate::harness::{
    LONG, Pair, PairOptions, Random, Side, TestDaemon, TestResult, check, fill, pattern,
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    Send,
    SendImm,
    Write,
    WriteImm,
    Read,
}

const OPS: [Op; 5] = [Op::Send, Op::SendImm, Op::Write, Op::WriteImm, Op::Read];

/// Bytes on each side of the destination that must stay as they are.
const GUARD: usize = 128;
const GUARD_BYTE: u8 = 0xe7;

/// A range of an MR as SGEs: `pieces` of unequal length, some of them empty.
fn split(mr: &Mr, offset: usize, len: usize, pieces: usize) -> Vec<Sge> {
    let mut sges = Vec::new();
    let mut at = 0;
    for n in 0..pieces {
        let left = len - at;
        let part = match n {
            _ if n + 1 == pieces => left,
            1 => 0,
            _ => (left / 2 + 3 * n).min(left),
        };
        sges.push(mr.sge((offset + at) as u64, part as u32));
        at += part;
    }
    sges
}

/// Moves `len` bytes by an operation and checks all that there is to see of it.
fn transfer(
    pair: &mut Pair,
    op: Op,
    len: usize,
    (from, to): (usize, usize),
    (from_pieces, to_pieces): (usize, usize),
) -> TestResult {
    let Pair { a, b, qa, qb } = pair;
    let seed = (len as u8) ^ (from as u8) ^ (op as u8) << 5;
    let imm = 0x0102_0304 + len as u32;
    let (source, target) =
        if op == Op::Read { (&b.buffer, &a.buffer) } else { (&a.buffer, &b.buffer) };
    fill(source, from, len, seed);
    target.write(to - GUARD, &vec![GUARD_BYTE; len + 2 * GUARD]);

    let local = if op == Op::Read { (to, to_pieces) } else { (from, from_pieces) };
    let sges = split(&a.mr, local.0, len, local.1);
    let landing = split(&b.mr, to, len, to_pieces);
    let wr = match op {
        Op::Send => SendWr::send(1, &sges),
        Op::SendImm => SendWr::send(1, &sges).with_imm(imm),
        Op::Write => SendWr::write(1, &sges, b.mr.remote(to as u64)),
        Op::WriteImm => SendWr::write(1, &sges, b.mr.remote(to as u64)).with_imm(imm),
        Op::Read => SendWr::read(1, &sges, b.mr.remote(from as u64)),
    };
    match op {
        Op::Send | Op::SendImm => qb.post_recv(2, &landing)?,
        Op::WriteImm => qb.post_recv(2, &[])?,
        Op::Write | Op::Read => {}
    }
    qa.post_send(&wr.signaled())?;

    let sent = a.send_cq.wait_one(LONG)?;
    assert_eq!((sent.wr_id, sent.status, sent.qpn), (1, WC_SUCCESS, qa.number()), "{op:?} {len}");
    assert!(sent.is_send());
    let opcode = match op {
        Op::Send | Op::SendImm => WC_OP_SEND,
        Op::Write | Op::WriteImm => WC_OP_RDMA_WRITE,
        Op::Read => WC_OP_RDMA_READ,
    };
    assert_eq!(sent.opcode, opcode);
    if op == Op::Read {
        assert_eq!(sent.byte_len as usize, len);
    }
    if matches!(op, Op::Send | Op::SendImm | Op::WriteImm) {
        let received = b.recv_cq.wait_one(LONG)?;
        let head = (received.wr_id, received.status, received.qpn);
        assert_eq!(head, (2, WC_SUCCESS, qb.number()), "{op:?} {len}");
        assert!(!received.is_send());
        assert_eq!(received.byte_len as usize, len);
        if op == Op::Send {
            assert_eq!(received.flags & CQE_WITH_IMM, 0);
        } else {
            assert_eq!((received.flags & CQE_WITH_IMM, received.imm), (CQE_WITH_IMM, imm));
        }
        let opcode = if op == Op::WriteImm { WC_OP_RECV_RDMA_WITH_IMM } else { WC_OP_RECV };
        assert_eq!(received.opcode, opcode);
    }

    check(target, to, len, seed);
    for guard in [to - GUARD, to + len] {
        let bytes = target.read(guard, GUARD);
        assert!(bytes.iter().all(|b| *b == GUARD_BYTE), "{op:?} of {len} wrote beside its place");
    }
    assert_eq!(a.send_cq.poll_one(), None);
    assert_eq!(b.recv_cq.poll_one(), None);
    Ok(())
}

#[test]
pub fn every_operation_moves_every_byte_at_every_size_and_offset() -> TestResult {
    let options = PairOptions { bytes: 1 << 20, ..PairOptions::default() };
    let (_daemon, mut pair) = Pair::start(&options)?;
    let sizes = [
        0, 1, 2, 7, 8, 9, 31, 32, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097,
        8191, 8192, 8193, 65_535, 65_536, 65_537, 300_001,
    ];
    let offsets = [(4096, 4096), (4096 + 1, 8192 + 3), (5000, 4097), (8191, 12_287), (4104, 4160)];
    for op in OPS {
        for len in sizes {
            for (n, places) in offsets.into_iter().enumerate() {
                transfer(&mut pair, op, len, places, (1, 1 + n % 2))?;
            }
        }
    }
    Ok(())
}

#[test]
fn scatter_and_gather_lists_join_without_a_seam() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions {
        bytes: 1 << 20,
        qp: QpOptions { max_send_sge: 30, max_recv_sge: 30, ..QpOptions::default() },
        ..PairOptions::default()
    })?;
    for op in OPS {
        for (from_pieces, to_pieces) in [(1, 4), (4, 1), (3, 4), (2, 2), (30, 7), (5, 30), (30, 30)]
        {
            for len in [0, 1, 40, 100, 4096, 10_007, 131_071] {
                transfer(&mut pair, op, len, (4099, 8195), (from_pieces, to_pieces))?;
            }
        }
    }
    Ok(())
}

#[test]
fn large_messages_arrive_whole() -> TestResult {
    const MIB: usize = 1 << 20;
    let (_daemon, mut pair) = Pair::start(&PairOptions {
        bytes: 20 * MIB,
        vm: VmConfig { memory: 128 << 20, ..VmConfig::default() },
        ..PairOptions::default()
    })?;
    for op in OPS {
        for len in [MIB - 1, MIB, MIB + 1, 7 * MIB + 12_345, 16 * MIB] {
            transfer(&mut pair, op, len, (4096 + 5, 8192 + 9), (2, 3))?;
        }
    }
    Ok(())
}

#[test]
fn random_transfers_in_one_vm_move_every_byte() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let mut side = Side::new(daemon.vm(0)?, 1 << 20, 64)?;
    let mut left = side.qp(&QpOptions::default())?;
    let mut right = side.qp(&QpOptions::default())?;
    connect_rc(&mut left, &mut right, &Default::default())?;
    let mut random = Random(0x5eed);
    for round in 0..400_u32 {
        let len = random.below(100_000);
        let (from, to) = (random.below(400_000), 500_000 + random.below(400_000));
        fill(&side.buffer, from, len, round as u8);
        let sges = [side.mr.sge(from as u64, len as u32)];
        right.post_recv(u64::from(round), &[side.mr.sge(to as u64, len as u32)])?;
        left.post_send(&SendWr::send(1, &sges).signaled())?;
        assert_eq!(side.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        assert_eq!(side.recv_cq.wait_one(LONG)?.byte_len as usize, len);
        check(&side.buffer, to, len, round as u8);
    }
    Ok(())
}

#[test]
fn a_qp_may_be_connected_to_itself() -> TestResult {
    let daemon = TestDaemon::start(1)?;
    let mut side = Side::new(daemon.vm(0)?, 65_536, 64)?;
    let mut qp = side.qp(&QpOptions::default())?;
    let own = qp.endpoint();
    qp.connect(&own, &Default::default())?;
    fill(&side.buffer, 0, 5000, 3);
    qp.post_recv(1, &[side.mr.sge(20_000, 5000)])?;
    qp.post_send(&SendWr::send(2, &[side.mr.sge(0, 5000)]).signaled())?;
    assert_eq!(side.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    assert_eq!(side.recv_cq.wait_one(LONG)?.status, WC_SUCCESS);
    check(&side.buffer, 20_000, 5000, 3);
    Ok(())
}

#[test]
fn inline_data_is_taken_from_the_wqe() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions {
        qp: QpOptions { max_inline: 1024, ..QpOptions::default() },
        ..PairOptions::default()
    })?;
    let Pair { a, b, qa, qb } = &mut pair;
    for len in [0, 1, 8, 31, 32, 33, 64, 100, 512, 1023, 1024] {
        let bytes: Vec<u8> = (0..len).map(|n| pattern(len as u8, n)).collect();
        qb.post_recv(1, &[b.mr.sge(64, 2048)])?;
        qa.post_send(&SendWr::send(2, &[]).inline(&bytes).signaled())?;
        let wr = SendWr::write(3, &[], b.mr.remote(8192)).inline(&bytes).signaled();
        qa.post_send(&wr)?;
        for wr_id in [2, 3] {
            let wc = a.send_cq.wait_one(LONG)?;
            assert_eq!((wc.wr_id, wc.status), (wr_id, WC_SUCCESS), "{len} bytes");
        }
        assert_eq!(b.recv_cq.wait_one(LONG)?.byte_len as usize, len);
        check(&b.buffer, 64, len, len as u8);
        check(&b.buffer, 8192, len, len as u8);
    }
    assert!(qa.post_send(&SendWr::send(1, &[]).inline(&[0; 1025])).is_err());
    Ok(())
}

#[test]
fn writes_and_reads_of_one_qp_are_seen_in_order() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let Pair { a, b, qa, qb } = &mut pair;
    for round in 0..200_u8 {
        // A WRITE, a READ of what it wrote, another WRITE, and a SEND that tells of them.
        fill(&a.buffer, 0, 6000, round);
        fill(&a.buffer, 8192, 6000, round ^ 0x80);
        qb.post_recv(9, &[b.mr.sge(60_000, 8)])?;
        let (first, second) = ([a.mr.sge(0, 6000)], [a.mr.sge(8192, 6000)]);
        let (back, note) = ([a.mr.sge(20_000, 6000)], [a.mr.sge(0, 8)]);
        qa.post_sends(&[
            SendWr::write(1, &first, b.mr.remote(0)),
            SendWr::read(2, &back, b.mr.remote(0)),
            SendWr::write(3, &second, b.mr.remote(0)).fenced(),
            SendWr::send(4, &note).signaled(),
        ])?;
        assert_eq!(b.recv_cq.wait_one(LONG)?.status, WC_SUCCESS);
        check(&b.buffer, 0, 6000, round ^ 0x80);
        let wc = a.send_cq.wait_one(LONG)?;
        assert_eq!((wc.wr_id, wc.status), (4, WC_SUCCESS));
        check(&a.buffer, 20_000, 6000, round);
    }
    Ok(())
}

#[test]
fn the_last_bytes_of_a_write_appear_last() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let Pair { a, b, qa, qb: _ } = &mut pair;
    for round in 1..=2000_u64 {
        let len = 64 + (round as usize * 8) % 4000;
        a.buffer.write(0, &vec![round as u8; len]);
        a.buffer.store_u64(len.next_multiple_of(8), round);
        let total = len.next_multiple_of(8) + 8;
        let sges = [a.mr.sge(0, total as u32)];
        qa.post_send(&SendWr::write(1, &sges, b.mr.remote(0)).signaled())?;
        // The peer polls the last word of the message, as perftest's write_lat does.
        let deadline = std::time::Instant::now() + LONG;
        while b.buffer.load_u64(total - 8) != round {
            assert!(std::time::Instant::now() < deadline, "round {round}");
            std::hint::spin_loop();
        }
        assert_eq!(b.buffer.read(0, len), vec![round as u8; len], "round {round}");
        assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        b.buffer.store_u64(total - 8, 0);
    }
    Ok(())
}
