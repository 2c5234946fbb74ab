// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Many things at once, and doorbells at the worst moments.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use front_end::abi::control::{
    CMD_ADD_GID, CMD_INIT, QP_ATTR_EN_SQD_ASYNC_NOTIFY, QP_ATTR_STATE, QP_STATE_SQD, QpAttr,
};
use front_end::abi::event::{EVENT_COMM_EST, EVENT_SQ_DRAINED};
use front_end::abi::ring::WC_SUCCESS;
use front_end::{Qp, QpOptions, RcOptions, SendWr, access, connect_rc};
use zerocopy::IntoBytes;

use crate::harness::{
    Bystander, LONG, Pair, PairOptions, Random, Side, TestDaemon, TestResult, check, fill,
};

fn spin(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

#[test]
fn no_post_is_missed_however_long_the_queue_was_idle() -> TestResult {
    let (_daemon, mut pair) = Pair::start(&PairOptions::default())?;
    let Pair { a, b, qa, qb } = &mut pair;
    let mut qps: Vec<(Qp, Qp)> = Vec::new();
    for _ in 0..5 {
        let (mut left, mut right) = (a.qp(&QpOptions::default())?, b.qp(&QpOptions::default())?);
        connect_rc(&mut left, &mut right, &RcOptions::default())?;
        qps.push((left, right));
    }
    let mut random = Random(0xd00b);
    let mut kicks = 0;
    for n in 0..12_000_u64 {
        // Round the time after which a worker disarms a queue and falls asleep.
        spin(Duration::from_nanos(random.next() % 130_000));
        let (left, right) = &mut qps[(random.next() % 5) as usize];
        let wr = SendWr::write(n, &[], b.mr.remote(0)).signaled();
        if n % 4 == 0 {
            right.post_recv(n, &[])?;
            left.post_send(&wr.with_imm(n as u32))?;
            assert_eq!(b.recv_cq.wait_one(LONG)?.imm, n as u32);
        } else {
            left.post_send(&wr)?;
        }
        assert_eq!(a.send_cq.wait_one(LONG)?.wr_id, n);
        kicks = kicks.max(left.kicks().0);
    }
    assert!(kicks > 0, "a worker slept now and then");
    // And both ways between the first two, so that neither waits for the other's doorbell.
    qa.post_recv(1, &[])?;
    qb.post_recv(1, &[])?;
    qa.post_send(&SendWr::send(1, &[]))?;
    qb.post_send(&SendWr::send(1, &[]))?;
    a.recv_cq.wait_one(LONG)?;
    b.recv_cq.wait_one(LONG)?;
    Ok(())
}

#[test]
fn a_receive_wqe_that_a_peer_waits_for_is_seen_at_once() -> TestResult {
    // The RNR timer is 655 ms: a receive WQE that is not heard of costs that.
    let options = PairOptions {
        rc: RcOptions { min_rnr_timer: 0, ..RcOptions::default() },
        ..PairOptions::default()
    };
    let (_daemon, mut pair) = Pair::start(&options)?;
    let Pair { a, b, qa, qb } = &mut pair;
    let mut random = Random(0x4e12);
    let began = Instant::now();
    for n in 0..200 {
        qa.post_send(&SendWr::send(n, &[]).signaled())?;
        spin(Duration::from_nanos(random.next() % 200_000));
        qb.post_recv(n, &[])?;
        assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
        assert_eq!(b.recv_cq.wait_one(LONG)?.wr_id, n);
    }
    // 131 s, if all of them were missed.
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
    Ok(())
}

/// Makes one of each, uses them, destroys them with work in flight or without, and over again.
fn churn(side: &Side, peer: &Side, seed: u64, stop: &AtomicBool, rounds: &AtomicU64) -> TestResult {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        let mut cq = side.driver.create_cq(64, random.next() as u32 % 2)?;
        let pd = side.driver.alloc_pd()?;
        let bytes = 1 + random.below(200_000);
        let buffer = side.vm.memory().alloc_scattered(bytes)?;
        let mr = side.driver.reg_mr(&pd, &buffer, access::ALL)?;
        let mut qp = side.driver.create_qp(&pd, &cq, &cq, &QpOptions::default())?;
        let mut other = peer.qp(&QpOptions::default())?;
        connect_rc(&mut qp, &mut other, &RcOptions::default())?;
        for wr_id in 0..4 {
            let sges = [mr.sge(0, bytes as u32)];
            let wr = SendWr::write(wr_id, &sges, peer.mr.remote(0)).signaled();
            qp.post_send(&wr)?;
        }
        if random.next() & 1 == 0 {
            for wc in cq.poll_for(4, LONG)? {
                assert_eq!(wc.status, WC_SUCCESS);
            }
        }
        side.driver.destroy_qp(&qp)?;
        peer.driver.destroy_qp(&other)?;
        side.driver.dereg_mr(&mr)?;
        side.driver.destroy_cq(&cq)?;
        side.driver.dealloc_pd(&pd)?;
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[test]
fn objects_come_and_go_while_others_work() -> TestResult {
    let daemon = TestDaemon::start(4)?;
    let mut bystander = Bystander::new(&daemon, 2)?;
    let pair = Pair::new(&daemon, 0, &PairOptions::default())?;
    let stop = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    std::thread::scope(|scope| -> TestResult {
        let (a, b) = (&pair.a, &pair.b);
        let (stop, rounds) = (&stop, &rounds);
        let threads = [
            scope.spawn(move || churn(a, b, 1, stop, rounds)),
            scope.spawn(move || churn(b, a, 2, stop, rounds)),
        ];
        let until = Instant::now() + Duration::from_secs(3);
        let mut result = Ok(());
        // Some rounds there must be, however slow the machine.
        let going = || threads.iter().all(|thread| !thread.is_finished());
        while (Instant::now() < until || rounds.load(Ordering::Relaxed) < 10)
            && going()
            && result.is_ok()
        {
            result = bystander.check();
        }
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        result
    })?;
    Ok(())
}

#[test]
fn random_commands_are_answered_and_leave_the_device_whole() -> TestResult {
    let daemon = TestDaemon::start(3)?;
    let mut bystander = Bystander::new(&daemon, 1)?;
    let vm = daemon.vm(0)?;
    let driver = vm.driver()?;
    let mut random = Random(0xc0de);
    let page = vm.memory().alloc_contiguous(65_536)?;
    let commands: Vec<u16> = (0..0x90).filter(|n| ![CMD_INIT, CMD_ADD_GID].contains(n)).collect();
    for round in 0..30_000 {
        let command = commands[random.below(commands.len())];
        // Words that are often small, sometimes addresses of memory, sometimes anything.
        let mut request = Vec::new();
        for _ in 0..20 {
            let word = match random.below(6) {
                0 => random.next(),
                1 => page.guest_address(4096 * random.below(16)),
                2 => 1 << random.below(64),
                3 => 0x0c_0000_0001,
                _ => (random.next() % 8) | ((random.next() % 8) << 32),
            };
            request.extend(word.to_le_bytes());
        }
        let header = driver.next_header(command);
        let bytes = [header.as_bytes(), &request].concat();
        let answer = driver.command_raw(&bytes, 512)?;
        assert!(answer.len() >= 8, "round {round}: command {command:#x}");
        assert_eq!(answer[4..8], header.as_bytes()[4..8], "round {round}: the sequence number");
        if round % 3000 == 0 {
            bystander.check()?;
        }
    }
    bystander.check()?;
    // It works as ever.
    vm.reboot()?;
    let mut side = Side::new(vm, 65_536, 64)?;
    let mut qp = side.qp(&QpOptions::default())?;
    let own = qp.endpoint();
    qp.connect(&own, &RcOptions::default())?;
    fill(&side.buffer, 0, 1000, 1);
    qp.post_send(&SendWr::write(1, &[side.mr.sge(0, 1000)], side.mr.remote(4096)).signaled())?;
    assert_eq!(side.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    check(&side.buffer, 4096, 1000, 1);
    Ok(())
}

#[test]
fn the_first_message_in_rtr_and_a_drained_queue_are_events() -> TestResult {
    let daemon = TestDaemon::start(2)?;
    let mut a = Side::new(daemon.vm(0)?, 65_536, 64)?;
    let b = Side::new(daemon.vm(1)?, 65_536, 64)?;
    let (mut qa, mut qb) = (a.qp(&QpOptions::default())?, b.qp(&QpOptions::default())?);
    let options = RcOptions::default();
    qb.to_init(&options)?;
    qb.to_rtr(&qa.endpoint(), &options)?;
    qa.connect(&qb.endpoint(), &options)?;
    qa.post_send(&SendWr::write(1, &[a.mr.sge(0, 8)], b.mr.remote(0)).signaled())?;
    assert_eq!(a.send_cq.wait_one(LONG)?.status, WC_SUCCESS);
    let event = b.driver.next_async_event(LONG)?.ok_or("no event")?;
    assert_eq!((event.event.get(), event.number.get()), (EVENT_COMM_EST, qb.number()));

    let attr = QpAttr { qp_state: QP_STATE_SQD, sq_draining: 1, ..QpAttr::default() };
    qa.modify(QP_ATTR_STATE | QP_ATTR_EN_SQD_ASYNC_NOTIFY, &attr)?;
    let event = a.driver.next_async_event(LONG)?.ok_or("no event")?;
    assert_eq!((event.event.get(), event.number.get()), (EVENT_SQ_DRAINED, qa.number()));
    Ok(())
}

/// One VM of several that all talk to all: its QPs by peer.
struct Node {
    side: Side,
    qps: Vec<Option<Qp>>,
}

/// Bytes of a message at the most, and receive WQEs of a QP.
const MESSAGE: usize = 20_000;
const DEPTH: usize = 8;

impl Node {
    /// Where in the buffer the receive WQE `n` of the QP to `peer` lies.
    fn landing(&self, peer: usize, n: usize) -> usize {
        MESSAGE * (1 + peer * DEPTH + n)
    }

    fn post_landing(&mut self, peer: usize, n: usize) -> TestResult {
        let sges = [self.side.mr.sge(self.landing(peer, n) as u64, MESSAGE as u32)];
        let qp = self.qps[peer].as_mut().ok_or("no QP")?;
        Ok(qp.post_recv((peer * DEPTH + n) as u64, &sges)?)
    }

    /// Takes what has come, checks it and gives the receive WQEs back; counts the last words.
    fn listen(&mut self, me: usize, received: &mut [u32]) -> TestResult<usize> {
        let mut last_words = 0;
        let mut bytes = vec![0; MESSAGE];
        while let Some(wc) = self.side.recv_cq.poll_one() {
            assert_eq!(wc.status, WC_SUCCESS);
            let (peer, n) = (wc.wr_id as usize / DEPTH, wc.wr_id as usize % DEPTH);
            let len = wc.byte_len as usize;
            self.side.buffer.read_into(self.landing(peer, n), &mut bytes[..len]);
            let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
            assert_eq!(word(0), received[peer], "in order from {peer}");
            let seed = (peer * 16 + me) as u8 ^ received[peer] as u8;
            assert!((8..len).all(|at| bytes[at] == crate::harness::pattern(seed, at)));
            last_words += word(4) as usize;
            received[peer] += 1;
            self.post_landing(peer, n)?;
        }
        Ok(last_words)
    }

    /// Sends `count` messages to random peers, the last ones marked so, and listens until every peer
    /// has said its last word.
    fn talk(&mut self, me: usize, count: usize) -> TestResult {
        let peers: Vec<usize> = (0..self.qps.len()).filter(|peer| *peer != me).collect();
        let mut random = Random(0x7a1c + me as u64 * 77);
        let mut sent = vec![0_u32; self.qps.len()];
        let mut received = vec![0_u32; self.qps.len()];
        let mut last_words = 0;
        let deadline = Instant::now() + 3 * LONG;
        for posted in 0..count {
            let last = count - posted <= peers.len();
            let peer =
                if last { peers[count - posted - 1] } else { peers[random.below(peers.len())] };
            let len = 16 + random.below(MESSAGE - 16);
            let seed = (me * 16 + peer) as u8 ^ sent[peer] as u8;
            fill(&self.side.buffer, 0, len, seed);
            // The head: number of the message, whether it is the last one.
            self.side.buffer.store_u32(0, sent[peer]);
            self.side.buffer.store_u32(4, last.into());
            let sges = [self.side.mr.sge(0, len as u32)];
            let qp = self.qps[peer].as_mut().ok_or("no QP")?;
            qp.post_send(&SendWr::send(9, &sges).signaled())?;
            sent[peer] += 1;
            // It listens while it waits, or all could wait for one another.
            let wc = loop {
                last_words += self.listen(me, &mut received)?;
                if let Some(wc) = self.side.send_cq.poll_one() {
                    break wc;
                }
                assert!(Instant::now() < deadline, "{me}: sent {sent:?}, received {received:?}");
                std::thread::yield_now();
            };
            assert_eq!(wc.status, WC_SUCCESS);
        }
        while last_words < peers.len() {
            last_words += self.listen(me, &mut received)?;
            assert!(Instant::now() < deadline, "{me}: sent {sent:?}, received {received:?}");
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }
}

#[test]
fn four_vms_that_all_talk_at_once_understand_each_other() -> TestResult {
    const VMS: usize = 4;
    let daemon = TestDaemon::start(VMS)?;
    let mut nodes = Vec::new();
    for n in 0..VMS {
        let side = Side::new(daemon.vm(n)?, MESSAGE * (1 + VMS * DEPTH), 1024)?;
        nodes.push(Node { side, qps: (0..VMS).map(|_| None).collect() });
    }
    for left in 0..VMS {
        for right in left + 1..VMS {
            let mut a = nodes[left].side.qp(&QpOptions::default())?;
            let mut b = nodes[right].side.qp(&QpOptions::default())?;
            connect_rc(&mut a, &mut b, &RcOptions::default())?;
            nodes[left].qps[right] = Some(a);
            nodes[right].qps[left] = Some(b);
            for n in 0..DEPTH {
                nodes[left].post_landing(right, n)?;
                nodes[right].post_landing(left, n)?;
            }
        }
    }
    std::thread::scope(|scope| -> TestResult {
        let threads: Vec<_> = nodes
            .iter_mut()
            .enumerate()
            .map(|(me, node)| scope.spawn(move || node.talk(me, 500)))
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a VM panicked")??;
        }
        Ok(())
    })
}
