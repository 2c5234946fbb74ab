// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Deterministic simulation of the wire: two to eight HCAs under a virtual clock, over a network that
//! loses, doubles, reorders, damages, delays and marks frames, with random work of all kinds. Every
//! byte, every completion and its order is checked; nothing may hang.
//!
//! A seed that fails is named, and run alone by `WIRE_SIM_SEED=N cargo test -p hca-backend --test wire_sim`.

mod common;
mod net;

use std::collections::{BTreeMap, BTreeSet};

use common::{BASE, pattern};
use net::{Addresses, Conditions, Net, Rng, Station};
use rdma_midlayer::attr::QpAttr;
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

/// Bytes of a station's memory.
const MEMORY: usize = 96 << 10;
/// Bytes behind it, for messages of unreliable connections, which may take any WQE.
const ANYWHERE: u32 = 20_000;
/// A simulation that takes longer in its own time hangs.
const LONGEST: u64 = 600_000_000_000;
const QKEY: u32 = 0x1234;
/// Bytes that any datagram fits into, with what comes before its data.
const DATAGRAM: u64 = 40 + 1024;

/// A message of a flow, planned.
#[derive(Clone, Debug)]
struct Op {
    opcode: WrOpcode,
    /// In the sender's memory, and in the receiver's.
    here: u64,
    there: u64,
    len: u32,
    flags: u8,
    inline: bool,
    compare_add: u64,
    swap: u64,
    bad_key: bool,
}

impl Op {
    fn takes_wqe(&self) -> bool {
        use WrOpcode::{RdmaWriteWithImm, Send, SendWithImm};
        matches!(self.opcode, Send | SendWithImm | RdmaWriteWithImm)
    }

    fn is_send(&self) -> bool {
        matches!(self.opcode, WrOpcode::Send | WrOpcode::SendWithImm)
    }
}

/// Whether what a flow does is known beforehand.
fn is_reliable(qp_type: QpType) -> bool {
    matches!(qp_type, QpType::Rc | QpType::XrcIni)
}

/// Messages from one station to another.
struct Flow {
    from: usize,
    to: usize,
    qp_type: QpType,
    ops: Vec<Op>,
    posted: usize,
    /// Receive WQEs posted, of those that the messages take.
    received: usize,
}

struct Sim {
    net: Net,
    rng: Rng,
    stations: Vec<Station>,
    flows: Vec<Flow>,
    /// What each station's memory is to be in the end.
    expected: Vec<Vec<u8>>,
    /// Bytes of each station's memory that are planned.
    used: Vec<u64>,
    /// Posts that are due: when, and of which flow; true for receive WQEs.
    due: BTreeSet<(u64, usize, bool)>,
}

fn conditions(rng: &mut Rng) -> Conditions {
    let quiet = rng.permille(150);
    let some = |rng: &mut Rng, most: u64| if quiet { 0 } else { rng.below(most + 1) };
    Conditions {
        loss: if rng.permille(500) { some(rng, 60) } else { 0 },
        double: if rng.permille(400) { some(rng, 30) } else { 0 },
        damage: if rng.permille(300) { some(rng, 20) } else { 0 },
        delay: rng.between(500, 200_000),
        jitter: if rng.permille(400) { some(rng, 100_000) } else { 0 },
        byte_time: rng.pick(&[0, 1, 8, 80]),
        mark_above: rng.pick(&[0, 20_000, 500_000]),
    }
}

impl Sim {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x1_0000_0001).wrapping_add(7));
        let conditions = conditions(&mut rng);
        let nodes = rng.between(2, 8) as usize;
        let vlan = if rng.permille(200) { Some(rng.between(1, 4094) as u16) } else { None };
        let like = Addresses { v6: rng.permille(300), vlan };
        let net = Net::new(rng.next(), nodes, like, conditions);
        let mut sim = Self {
            net,
            rng,
            stations: Vec::new(),
            flows: Vec::new(),
            expected: Vec::new(),
            used: Vec::new(),
            due: BTreeSet::new(),
        };
        let pairs = sim.rng.between(1, 4);
        (0..pairs).for_each(|_| sim.add_pair());
        sim
    }

    /// Two stations of different nodes, connected, and flows between them.
    fn add_pair(&mut self) {
        use QpType::{Rc, Uc, Ud, XrcIni};
        let nodes = self.net.nodes.len() as u64;
        let a = self.rng.below(nodes);
        let b = (a + self.rng.between(1, nodes - 1)) % nodes;
        let qp_type = self.rng.pick(&[Rc, Rc, Rc, Rc, XrcIni, Uc, Ud]);
        let depth = self.rng.pick(&[4, 16, 64]);
        let first = self.stations.len();
        for (node, first) in [(a, true), (b, false)] {
            let memory = pattern(self.rng.next(), MEMORY + ANYWHERE as usize);
            let half = if qp_type == XrcIni && !first { QpType::XrcTgt } else { qp_type };
            self.stations.push(self.net.station(node as usize, half, depth, &memory));
            self.expected.push(memory);
            self.used.push(0);
        }
        let psns = [0, 1].map(|_| {
            let near_the_end = 0x00ff_ffff - self.rng.below(20) as u32;
            Psn::new(if self.rng.permille(300) { near_the_end } else { self.rng.next() as u32 })
        });
        let attr = QpAttr {
            access: net::ALL,
            path_mtu: Mtu::from_code(self.rng.between(1, 5) as u8).unwrap(),
            timeout: self.rng.between(10, 14) as u8,
            retry_cnt: 7,
            rnr_retry: 7,
            min_rnr_timer: self.rng.between(1, 14) as u8,
            max_rd_atomic: self.rng.between(1, 8) as u8,
            max_dest_rd_atomic: 8,
            qkey: QKEY,
            ..QpAttr::default()
        };
        let (one, two) = (&self.stations[first], &self.stations[first + 1]);
        self.net.connect(one, two, QpAttr { sq_psn: psns[0], rq_psn: psns[1], ..attr });
        self.net.connect(two, one, QpAttr { sq_psn: psns[1], rq_psn: psns[0], ..attr });
        // A flow that is to fail takes its peer's QP along.
        let fails = is_reliable(qp_type) && self.rng.permille(120);
        self.add_flow(first, first + 1, qp_type, attr.path_mtu.bytes(), fails);
        if !fails && qp_type != XrcIni && self.rng.permille(600) {
            self.add_flow(first + 1, first, qp_type, attr.path_mtu.bytes(), false);
        }
    }

    fn add_flow(&mut self, from: usize, to: usize, qp_type: QpType, mtu: usize, fails: bool) {
        let count = self.rng.between(1, 40);
        let mut flow = Flow { from, to, qp_type, ops: Vec::new(), posted: 0, received: 0 };
        // A word at the receiver for all atomics of the flow.
        let Some(word) = self.place(to, 8) else { return };
        for _ in 0..count {
            if let Some(op) = self.plan(&flow, mtu, word) {
                flow.ops.push(op);
            }
        }
        if fails {
            let opcode = self.rng.pick(&[WrOpcode::RdmaWrite, WrOpcode::RdmaRead]);
            let bad = |bad_key| Op {
                opcode,
                here: 0,
                there: 0,
                len: 8,
                flags: 2,
                inline: false,
                compare_add: 0,
                swap: 0,
                bad_key,
            };
            flow.ops.extend([bad(true), bad(false), bad(false)]);
        }
        let index = self.flows.len();
        self.due.insert((self.rng.below(1_000_000), index, false));
        self.due.insert((self.rng.below(2_000_000), index, true));
        self.flows.push(flow);
    }

    /// Bytes of a station's memory that nobody else uses, on a word.
    fn place(&mut self, station: usize, len: u64) -> Option<u64> {
        let at = self.used[station];
        let end = at + len.next_multiple_of(8);
        if end > MEMORY as u64 {
            return None;
        }
        self.used[station] = end;
        Some(at)
    }

    fn plan(&mut self, flow: &Flow, mtu: usize, word: u64) -> Option<Op> {
        use WrOpcode::{Flush as RdmaFlush, *};
        let of_transport: &[WrOpcode] = match flow.qp_type {
            QpType::Rc | QpType::XrcIni => &[
                Send,
                Send,
                SendWithImm,
                RdmaWrite,
                RdmaWrite,
                RdmaWriteWithImm,
                RdmaRead,
                RdmaRead,
                AtomicCmpAndSwp,
                AtomicFetchAndAdd,
                AtomicWrite,
                RdmaFlush,
            ],
            // What arrives must say what it is.
            QpType::Uc => &[SendWithImm, SendWithImm, RdmaWriteWithImm],
            _ => &[SendWithImm],
        };
        let opcode = self.rng.pick(of_transport);
        let atomic = matches!(opcode, AtomicCmpAndSwp | AtomicFetchAndAdd);
        let reads = atomic || opcode == RdmaRead;
        let mtu = mtu as u64;
        let len = match self.rng.below(10) {
            _ if atomic || opcode == AtomicWrite => 8,
            _ if flow.qp_type == QpType::Ud => self.rng.below(1025),
            0 => 0,
            1..5 => self.rng.below(200),
            5..8 => self.rng.between(mtu - 1, 2 * mtu + 1),
            8 => self.rng.below(4 * mtu),
            _ => self.rng.below(20_000),
        };
        let room = if flow.qp_type == QpType::Ud { DATAGRAM } else { len };
        let here = self.place(flow.from, len)?;
        let there = if atomic { word } else { self.place(flow.to, room)? };
        let inline = !reads && opcode != RdmaFlush && len <= 256 && self.rng.permille(300);
        let compare_add = match opcode {
            // Half of them find what they look for.
            AtomicCmpAndSwp if self.rng.permille(500) => {
                u64::from_ne_bytes(self.expected[flow.to][word as usize..][..8].try_into().unwrap())
            }
            _ => self.rng.next(),
        };
        let (len, swap, flags) = (len as u32, self.rng.next(), self.rng.below(8) as u8);
        let op = Op { opcode, here, there, len, flags, inline, compare_add, swap, bad_key: false };
        if is_reliable(flow.qp_type) {
            self.foresee(flow, &op);
        }
        Some(op)
    }

    /// What a message does to the memories. No two messages use the same bytes but atomics, which go in
    /// order.
    fn foresee(&mut self, flow: &Flow, op: &Op) {
        let len = op.len as usize;
        let here = op.here as usize..op.here as usize + len;
        let there = op.there as usize..op.there as usize + len;
        match op.opcode {
            WrOpcode::RdmaRead => {
                let bytes = self.expected[flow.to][there].to_vec();
                self.expected[flow.from][here].copy_from_slice(&bytes);
            }
            WrOpcode::AtomicCmpAndSwp | WrOpcode::AtomicFetchAndAdd => {
                let word = &mut self.expected[flow.to][there];
                let old = u64::from_ne_bytes(word.try_into().unwrap());
                let new = match op.opcode {
                    WrOpcode::AtomicFetchAndAdd => old.wrapping_add(op.compare_add),
                    _ if old == op.compare_add => op.swap,
                    _ => old,
                };
                word.copy_from_slice(&new.to_ne_bytes());
                self.expected[flow.from][here].copy_from_slice(&old.to_ne_bytes());
            }
            WrOpcode::Flush => {}
            _ => {
                let bytes = self.expected[flow.from][here].to_vec();
                self.expected[flow.to][there].copy_from_slice(&bytes);
            }
        }
    }

    /// Posts some of what a flow still has to post.
    fn post(&mut self, index: usize, receive: bool) {
        let burst = self.rng.between(1, 12);
        for _ in 0..burst {
            let more = if receive { self.post_recv(index) } else { self.post_send(index) };
            if !more {
                break;
            }
        }
        let flow = &self.flows[index];
        let left = if receive {
            flow.received < flow.ops.iter().filter(|op| op.takes_wqe()).count()
        } else {
            flow.posted < flow.ops.len()
        };
        if left {
            let longest = self.rng.pick(&[1000, 100_000, 3_000_000]);
            let at = self.net.time + 1 + self.rng.below(longest);
            self.due.insert((at, index, receive));
        }
    }

    fn post_recv(&mut self, index: usize) -> bool {
        let flow = &mut self.flows[index];
        let nth = flow.received;
        let Some((id, op)) = flow.ops.iter().enumerate().filter(|(_, op)| op.takes_wqe()).nth(nth)
        else {
            return false;
        };
        let station = &self.stations[flow.to];
        // Unreliable messages may be taken by any WQE.
        let len = match flow.qp_type {
            QpType::Uc => ANYWHERE,
            QpType::Ud => DATAGRAM as u32,
            _ => op.len,
        };
        let at = if flow.qp_type == QpType::Uc { MEMORY as u64 } else { op.there };
        let cut = self.rng.below(u64::from(len) + 1) as u32;
        let mut sges = vec![station.sge(at, cut), station.sge(at + u64::from(cut), len - cut)];
        if !op.is_send() {
            // Immediate data alone takes no bytes.
            sges.clear();
        }
        if flow.qp_type == QpType::Uc {
            sges = vec![station.sge(at, len)];
        }
        let wr = RecvWr { wr_id: id as u64, ticket: id as u32, sges: &sges };
        station.post_recv(&wr);
        flow.received += 1;
        true
    }

    fn post_send(&mut self, index: usize) -> bool {
        let flow = &mut self.flows[index];
        let id = flow.posted;
        let Some(op) = flow.ops.get(id) else { return false };
        let (from, to) = (&self.stations[flow.from], &self.stations[flow.to]);
        let ah = self.net.ah(from.node, to.node);
        let cut = self.rng.below(u64::from(op.len) + 1) as u32;
        let sges = [from.sge(op.here, cut), from.sge(op.here + u64::from(cut), op.len - cut)];
        let bytes = &self.expected[flow.from][op.here as usize..][..op.len as usize];
        let rkey = to.mr.rkey();
        let wr = SendWr {
            wr_id: id as u64,
            ticket: id as u32,
            opcode: op.opcode,
            flags: SendFlags(op.flags),
            data: match op.opcode {
                WrOpcode::Flush => SendData::Flush(Flush {
                    length: op.len.into(),
                    placement: Access::FLUSH_GLOBAL,
                    whole_mr: op.swap & 1 != 0,
                }),
                _ if op.inline => SendData::Inline(bytes),
                _ => SendData::Sges(&sges),
            },
            imm: id as u32,
            remote_addr: BASE + op.there,
            rkey: if op.bad_key { RKey(rkey.0 ^ 1) } else { rkey },
            compare_add: op.compare_add,
            swap: op.swap,
            srqn: to.srqn(),
            ud: (flow.qp_type == QpType::Ud).then(|| UdDest {
                ah: &*ah,
                qpn: to.qp.qpn(),
                qkey: QKEY,
            }),
        };
        match from.qp.post_send(&wr) {
            Ok(()) => flow.posted += 1,
            Err(rdma_midlayer::Error::QueueFull) => return false,
            Err(e) => panic!("{e}"),
        }
        true
    }

    fn run(&mut self) {
        loop {
            while let Some((at, index, receive)) = self.due.first().copied()
                && at <= self.net.time
            {
                self.due.pop_first();
                self.post(index, receive);
            }
            self.net.settle();
            let due = self.due.first().map(|(at, ..)| *at);
            let Some(next) = due.into_iter().chain(self.net.next_time()).min() else { break };
            assert!(next < LONGEST, "it hangs: {:?}", self.state());
            self.net.time = next.max(self.net.time + 1);
        }
    }

    fn state(&self) -> Vec<String> {
        if std::env::var_os("WIRE_SIM_SEED").is_some() {
            eprintln!("{:?}", self.net.conditions);
            for flow in &self.flows {
                eprintln!("{:?} {} to {}", flow.qp_type, flow.from, flow.to);
                flow.ops.iter().enumerate().for_each(|op| eprintln!("  {op:?}"));
            }
        }
        let state = |flow: &Flow| {
            let (from, to) = (&self.stations[flow.from], &self.stations[flow.to]);
            format!(
                "{:?} posted {} of {}, completed {}, received {}",
                flow.qp_type,
                flow.posted,
                flow.ops.len(),
                from.send.len(),
                to.recv.len()
            )
        };
        self.flows.iter().map(state).collect()
    }

    fn check(&mut self) {
        let mut broken = BTreeSet::new();
        for flow in &self.flows {
            assert_eq!(flow.posted, flow.ops.len(), "all is posted");
            let wcs = self.stations[flow.from].send.drain();
            let received = self.stations[flow.to].recv.drain();
            match flow.qp_type {
                QpType::Rc | QpType::XrcIni => {
                    if !check_reliable(flow, &wcs, &received, &self.net.conditions) {
                        broken.extend([flow.from, flow.to]);
                    }
                }
                _ => self.check_unreliable(flow, &wcs, &received),
            }
        }
        for (index, station) in self.stations.iter().enumerate() {
            let unreliable = self.flows.iter().any(|f| f.to == index && !is_reliable(f.qp_type));
            if !broken.contains(&index) && !unreliable {
                let bytes = station.bytes();
                let differs = bytes.iter().zip(&self.expected[index]).position(|(a, b)| a != b);
                assert_eq!(differs, None, "memory of station {index} differs: {:?}", self.state());
            }
        }
        for node in &self.net.nodes {
            assert_eq!(node.count("send_err"), 0);
            if self.net.conditions.damage == 0 {
                assert_eq!(node.count("icrc_err") + node.count("malformed"), 0);
            }
        }
    }

    fn check_unreliable(&self, flow: &Flow, wcs: &[WorkCompletion], received: &[WorkCompletion]) {
        let signaled = flow.ops.iter().enumerate().filter(|(_, op)| op.flags & 2 != 0);
        let expected: Vec<_> = signaled.map(|(id, _)| (id as u64, WcStatus::Success)).collect();
        let got: Vec<_> = wcs.iter().map(|wc| (wc.wr_id, wc.status)).collect();
        assert_eq!(got, expected, "sends of an unreliable flow end in order");
        let (from, to) = (&self.expected[flow.from], self.stations[flow.to].bytes());
        let mut last = None;
        let mut taken: BTreeMap<u64, u32> = BTreeMap::new();
        for wc in received {
            assert_eq!(wc.status, WcStatus::Success);
            assert!(taken.insert(wc.wr_id, wc.imm).is_none(), "a WQE is taken once");
            let op = &flow.ops[wc.imm as usize];
            let len = op.len as usize;
            let sent = &from[op.here as usize..][..len];
            if flow.qp_type == QpType::Uc {
                assert_eq!(wc.byte_len, op.len);
                // A message that comes late, or twice, begins anew (IBA 9.8.2.2).
                let in_order = self.net.conditions.jitter + self.net.conditions.double == 0;
                let ok = last.is_none_or(|last| last < wc.imm);
                assert!(ok || !in_order, "order of a connection");
                last = Some(wc.imm);
                if op.opcode == WrOpcode::RdmaWriteWithImm {
                    let got = &to[op.there as usize..][..len];
                    assert!(got == sent, "message {} differs", wc.imm);
                }
                continue;
            }
            // The datagram lies where the WQE says that it took.
            assert_eq!(wc.byte_len, op.len + 40);
            let place = flow.ops[wc.wr_id as usize].there as usize;
            assert!(&to[place + 40..][..len] == sent, "datagram {} differs", wc.imm);
        }
        if self.net.conditions.is_kind() && flow.qp_type == QpType::Ud {
            // Only those that came before their WQEs are lost.
            assert!(received.len() <= flow.ops.len());
        }
    }
}

impl Conditions {
    fn is_kind(&self) -> bool {
        self.loss + self.damage + self.double + self.jitter == 0
    }
}

/// Completions of a reliable flow. False if it broke, which only a network that loses much may do.
fn check_reliable(
    flow: &Flow,
    wcs: &[WorkCompletion],
    received: &[WorkCompletion],
    conditions: &Conditions,
) -> bool {
    let gave_up = wcs.iter().find(|wc| wc.status == WcStatus::RetryExcErr);
    let Conditions { loss, damage, jitter, mark_above, .. } = *conditions;
    // A responder that has failed answers nothing: if its last words are lost, or come in the wrong
    // order, nobody says why.
    let fails = flow.ops.iter().any(|op| op.bad_key);
    if gave_up.is_some() && (loss > 20 || fails && loss + damage + jitter + mark_above > 0) {
        let ids: Vec<_> = wcs.iter().map(|wc| wc.wr_id).collect();
        assert!(ids.is_sorted(), "in order: {ids:?}");
        return false;
    }
    let mut failed = false;
    let mut expected = Vec::new();
    for (id, op) in flow.ops.iter().enumerate() {
        let status = match (failed, op.bad_key) {
            (true, _) => WcStatus::WrFlushErr,
            (false, true) => WcStatus::RemAccessErr,
            (false, false) => WcStatus::Success,
        };
        failed |= op.bad_key;
        if status != WcStatus::Success || op.flags & 2 != 0 {
            expected.push((id as u64, status));
        }
    }
    let got: Vec<_> = wcs.iter().map(|wc| (wc.wr_id, wc.status)).collect();
    assert_eq!(got, expected, "sends of a reliable flow");
    for wc in wcs.iter().filter(|wc| wc.status == WcStatus::Success) {
        let op = &flow.ops[wc.wr_id as usize];
        assert_eq!(wc.opcode, WcOpcode::from(op.opcode));
        let reads = matches!(
            op.opcode,
            WrOpcode::RdmaRead | WrOpcode::AtomicCmpAndSwp | WrOpcode::AtomicFetchAndAdd
        );
        assert_eq!(wc.byte_len, if reads { op.len } else { 0 });
    }
    let takes = flow.ops.iter().enumerate().filter(|(_, op)| op.takes_wqe());
    let expected: Vec<_> = takes
        .map(|(id, op)| {
            let write = op.opcode == WrOpcode::RdmaWriteWithImm;
            let imm = op.opcode != WrOpcode::Send;
            let opcode = if write { WcOpcode::RecvRdmaWithImm } else { WcOpcode::Recv };
            (id as u64, WcStatus::Success, opcode, op.len, if imm { id as u32 } else { 0 })
        })
        .collect();
    let got: Vec<_> =
        received.iter().map(|wc| (wc.wr_id, wc.status, wc.opcode, wc.byte_len, wc.imm)).collect();
    assert_eq!(got, expected, "messages of a reliable flow");
    true
}

/// One simulation. Names the seed if it fails.
fn simulate(seed: u64) {
    let run = move || {
        let mut sim = Sim::new(seed);
        sim.run();
        sim.check();
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        eprintln!(
            "seed {seed} fails: WIRE_SIM_SEED={seed} cargo test -p hca-backend --test wire_sim"
        );
        std::panic::resume_unwind(panic);
    }
}

/// Seeds from `first` on, or the one that the environment names.
fn simulate_all(first: u64, count: u64) {
    if let Ok(seed) = std::env::var("WIRE_SIM_SEED") {
        return simulate(seed.parse().expect("WIRE_SIM_SEED is a number"));
    }
    std::thread::scope(|scope| {
        for half in 0..2 {
            scope.spawn(move || (first + half..first + count).step_by(2).for_each(simulate));
        }
    });
}

#[test]
fn five_hundred_networks_lose_reorder_and_damage_and_no_byte_is_wrong() {
    simulate_all(0, 500);
}

#[test]
#[ignore = "takes minutes: cargo lab test --full"]
fn ten_thousand_networks_lose_reorder_and_damage_and_no_byte_is_wrong() {
    simulate_all(500, 9_500);
}
