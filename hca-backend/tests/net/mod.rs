// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network under a virtual clock: soft HCAs with a link each, and between them a wire that loses,
//! doubles, reorders, damages, delays and marks frames, all from one seed. No tests here.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hca_backend::soft::wire::frame::{FrameBatch, seal};
use hca_backend::soft::{Config, Limits, Link, LinkConfig, SoftHca};
use rdma_midlayer::MaySleep;
use rdma_midlayer::attr::{AhAttr, GidEntry, QpAttr, QpAttrMask, QpCap};
use rdma_midlayer::driver::*;
use rdma_midlayer::memory::{Mapping, UserMemory};
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

use crate::common::{BASE, CqSink, EventLog, INIT, REMOTE_ALL, RTR, RTS, Ram, window};

/// Bytes before and behind the memory of an MR.
const GUARD: usize = 4096;

/// Random numbers from a seed (splitmix64).
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True `n` times in a thousand.
    pub fn permille(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// What the wire does to frames.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// In a thousand.
    pub loss: u64,
    pub double: u64,
    pub damage: u64,
    /// Nanoseconds.
    pub delay: u64,
    pub jitter: u64,
    /// Nanoseconds a byte.
    pub byte_time: u64,
    /// A backlog of so many nanoseconds is marked, if ECN allows; twenty times as much is dropped.
    pub mark_above: u64,
}

/// One HCA at the wire.
pub struct Node {
    pub hca: Arc<SoftHca>,
    pub link: Arc<Link>,
    pub pollers: Vec<Arc<dyn Poller>>,
    pub context: Arc<dyn ContextDriver>,
    pub pd: Arc<dyn PdDriver>,
    pub events: Arc<EventLog>,
    pub gid: GidEntry,
    /// When what it has sent is gone.
    free_at: u64,
}

/// A QP with memory, CQs and an MR.
pub struct Station {
    pub node: usize,
    pub qp: Arc<dyn QpDriver>,
    /// Of an XRC target.
    pub srq: Option<Arc<dyn SrqDriver>>,
    pub send: Arc<CqSink>,
    pub recv: Arc<CqSink>,
    pub memory: UserMemory,
    ram: Arc<dyn Mapping>,
    pub mr: Arc<dyn MrDriver>,
    pub len: usize,
}

/// All of it.
pub struct Net {
    pub cx: MaySleep,
    pub rng: Rng,
    pub conditions: Conditions,
    pub nodes: Vec<Node>,
    /// Frames on their way: when, in which order they were sent, to which node.
    flying: BTreeMap<(u64, u64), (usize, Vec<u8>)>,
    sent: u64,
    epoch: Instant,
    pub time: u64,
    batch: FrameBatch,
    /// Sees every frame that is sent.
    pub tap: Option<Vec<Vec<u8>>>,
}

/// What the addresses of a network are like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    pub v6: bool,
    pub vlan: Option<u16>,
}

pub fn gid_entry(node: usize, like: Addresses) -> GidEntry {
    let last = node as u8 + 1;
    let gid = match like.v6 {
        true => Gid([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]),
        false => Gid(std::net::Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets()),
    };
    GidEntry { gid, mac: [2, 0, 0, 0, 0, last], vlan: like.vlan }
}

impl Net {
    pub fn new(seed: u64, nodes: usize, like: Addresses, conditions: Conditions) -> Self {
        let cx = MaySleep::claim().unwrap();
        let nodes = (0..nodes).map(|i| Node::new(&cx, gid_entry(i, like))).collect();
        Self {
            cx,
            rng: Rng(seed),
            conditions,
            nodes,
            flying: BTreeMap::new(),
            sent: 0,
            epoch: Instant::now(),
            time: 0,
            batch: FrameBatch::new(32),
            tap: None,
        }
    }

    pub fn now(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.time)
    }

    /// Delivers what has come by now, and lets all nodes do what they can.
    pub fn settle(&mut self) {
        loop {
            while let Some(first) = self.flying.first_entry().filter(|f| f.key().0 <= self.time) {
                let (node, frame) = first.remove();
                self.nodes[node].link.handle_frame(self.now(), &frame);
            }
            let worked = (0..self.nodes.len()).map(|i| self.turn(i)).fold(false, |a, b| a | b);
            let due = self.flying.first_key_value().is_some_and(|((at, _), _)| *at <= self.time);
            if !worked && !due {
                return;
            }
        }
    }

    /// When something happens next, if something does.
    pub fn next_time(&self) -> Option<u64> {
        let frames = self.flying.first_key_value().map(|((at, _), _)| *at);
        let timers = self.nodes.iter().flat_map(|node| {
            let pollers = node.pollers.iter().filter_map(|p| p.poll(self.now(), 0).deadline);
            pollers.chain(node.link.next_deadline())
        });
        let timers = timers.map(|at| at.saturating_duration_since(self.epoch).as_nanos() as u64);
        frames.into_iter().chain(timers).min().map(|at| at.max(self.time))
    }

    fn turn(&mut self, node: usize) -> bool {
        let now = self.now();
        let mut worked = self.nodes[node].pollers.iter().any(|p| p.poll(now, 16).worked);
        self.nodes[node].link.handle_timer(now);
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        worked |= self.nodes[node].link.transmit(now, &mut batch) > 0;
        batch.iter().for_each(|frame| self.fly(node, frame));
        self.batch = batch;
        worked
    }

    /// A frame leaves a node.
    fn fly(&mut self, from: usize, frame: &[u8]) {
        if let Some(tap) = &mut self.tap {
            tap.push(frame.to_vec());
        }
        let Conditions { loss, double, damage, delay, jitter, byte_time, mark_above } =
            self.conditions;
        let node = &mut self.nodes[from];
        let backlog = node.free_at.saturating_sub(self.time);
        if mark_above > 0 && backlog > 20 * mark_above {
            return;
        }
        node.free_at = node.free_at.max(self.time) + frame.len() as u64 * byte_time;
        let arrival = node.free_at + delay;
        let copies = 1 + u64::from(self.rng.permille(double));
        for _ in 0..copies {
            if self.rng.permille(loss) {
                continue;
            }
            let mut frame = frame.to_vec();
            if mark_above > 0 && backlog > mark_above {
                mark(&mut frame);
            }
            let to = match frame[0] & 1 {
                0 => usize::from(frame[5]).wrapping_sub(1)..usize::from(frame[5]),
                _ => 0..self.nodes.len(),
            };
            if self.rng.permille(damage) {
                let at = self.rng.below(frame.len() as u64) as usize;
                frame[at] ^= 1 << self.rng.below(8);
            }
            let arrival = arrival + self.rng.below(jitter + 1);
            for to in to.filter(|to| *to < self.nodes.len() && *to != from) {
                self.sent += 1;
                self.flying.insert((arrival, self.sent), (to, frame.clone()));
            }
        }
    }

    /// A QP in RESET with memory that is filled.
    pub fn station(&self, node: usize, qp_type: QpType, depth: u32, memory: &[u8]) -> Station {
        let n = &self.nodes[node];
        let sinks = [CqSink::new(1 << 20), CqSink::new(1 << 20)];
        let cqs = sinks.clone().map(|sink| {
            let init = CqInit { cqe: 1 << 20, vector: 0, memory: Some(sink.clone()), events: sink };
            n.context.create_cq(&self.cx, init).unwrap()
        });
        let ram: Arc<dyn Mapping> = Ram::mapping(memory.len() + 2 * GUARD);
        let whole = || window(&ram, BASE, GUARD, memory.len());
        whole().write(BASE, memory).unwrap();
        let mr = n.pd.reg_mr(&self.cx, whole(), ALL).unwrap();
        let xrcd = match qp_type {
            QpType::XrcTgt => Some(n.context.alloc_xrcd(&self.cx).unwrap()),
            _ => None,
        };
        let srq = xrcd.clone().map(|domain| {
            let xrc = Some(XrcTarget { domain, cq: cqs[1].clone() });
            let init = SrqInit { max_wr: 1024, max_sge: 4, limit: 0, recv_source: None, xrc };
            n.pd.create_srq(&self.cx, init).unwrap()
        });
        let init = QpInit {
            qp_type,
            send_cq: cqs[0].clone(),
            recv_cq: cqs[1].clone(),
            cap: QpCap {
                max_send_wr: depth,
                max_recv_wr: 1024,
                max_send_sge: 4,
                max_recv_sge: 4,
                max_inline: 256,
            },
            signal_all: false,
            privileged: false,
            poller: 0,
            recv_source: None,
            send_ready: None,
            srq: None,
            xrcd: xrcd.clone(),
            block_self_mcast: false,
        };
        let qp = n.pd.create_qp(&self.cx, init).unwrap();
        let [send, recv] = sinks;
        Station { node, qp, srq, send, recv, memory: whole(), ram, mr, len: memory.len() }
    }

    pub fn modify(&self, qp: &Arc<dyn QpDriver>, state: QpState, attr: QpAttr, mask: QpAttrMask) {
        let cur_state = qp.query(&self.cx).unwrap().state;
        let attr = QpAttr { state, cur_state, ..attr };
        qp.modify(&self.cx, &attr, mask | QpAttrMask::STATE).unwrap();
    }

    /// Brings a QP to RTS.
    pub fn connect(&self, a: &Station, b: &Station, attr: QpAttr) {
        self.connect_to(a, b, attr, QpState::Rts);
    }

    /// Brings a QP to INIT, RTR or RTS.
    pub fn connect_to(&self, a: &Station, b: &Station, attr: QpAttr, state: QpState) {
        let attr = QpAttr {
            dest_qpn: b.qp.qpn(),
            ah: AhAttr {
                dgid: self.nodes[b.node].gid.gid,
                dmac: self.nodes[b.node].gid.mac,
                hop_limit: 64,
                port: 1,
                ..attr.ah
            },
            ..attr
        };
        self.modify(&a.qp, QpState::Init, attr, INIT | QpAttrMask::QKEY);
        if state != QpState::Init {
            self.modify(&a.qp, QpState::Rtr, attr, RTR);
        }
        if state == QpState::Rts {
            self.modify(&a.qp, QpState::Rts, attr, RTS);
        }
    }

    /// An address handle at a node to another.
    pub fn ah(&self, from: usize, to: usize) -> Arc<dyn AhDriver> {
        let GidEntry { gid, mac, .. } = self.nodes[to].gid;
        let attr = AhAttr { dgid: gid, dmac: mac, hop_limit: 64, port: 1, ..AhAttr::default() };
        self.nodes[from].pd.create_ah(&attr).unwrap()
    }
}

impl Node {
    fn new(cx: &MaySleep, gid: GidEntry) -> Self {
        let limits =
            Limits { max_qp: 256, max_cq: 512, max_mr: 256, max_srq: 16, ..Limits::default() };
        let name = format!("soft{}", gid.mac[5]);
        let config = Config { name: name.clone(), pollers: 1, limits, force_wire: false };
        let hca = Arc::new(SoftHca::new(config));
        let link = Link::new(LinkConfig { name, mtu: Mtu::Mtu4096, rate: 1_250_000_000 });
        hca.set_link(1, link.clone());
        let events = Arc::new(EventLog::default());
        let init = ContextInit { network: 1, name: "tenant".into(), events: events.clone() };
        let context = hca.alloc_context(cx, init).unwrap();
        context.add_gid(cx, 0, &gid).unwrap();
        let pd = context.alloc_pd(cx).unwrap();
        let pollers = hca.pollers();
        Self { hca, link, pollers, context, pd, events, gid, free_at: 0 }
    }

    /// What was counted of its packets.
    pub fn count(&self, name: &str) -> u64 {
        let found = self.link.counters().into_iter().find(|(n, _)| *n == name);
        found.unwrap_or_else(|| panic!("no counter {name}")).1
    }
}

impl Station {
    /// Nothing has changed what lies before and behind the MR.
    pub fn check_guards(&self) {
        for at in [0, GUARD + self.len] {
            let mut bytes = [0; GUARD];
            window(&self.ram, 0, at, GUARD).read(0, &mut bytes).unwrap();
            assert!(bytes == [0; GUARD], "outside of the MR");
        }
    }

    pub fn post_recv(&self, wr: &RecvWr<'_>) {
        let posted = match &self.srq {
            Some(srq) => srq.post_recv(wr),
            None => self.qp.post_recv(wr),
        };
        posted.unwrap();
    }

    /// The SRQ that requests to it name.
    pub fn srqn(&self) -> Option<Srqn> {
        self.srq.as_ref().map(|srq| srq.srqn())
    }

    pub fn sge(&self, offset: u64, length: u32) -> Sge {
        Sge { addr: BASE + offset, length, lkey: self.mr.lkey() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.memory.read(BASE, &mut bytes).unwrap();
        bytes
    }
}

/// A switch that is congested marks what may be marked.
fn mark(frame: &mut [u8]) {
    let untagged = if frame[12..14] == [0x81, 0] { 16 } else { 12 };
    let (kind, ip) = frame[untagged..].split_at_mut(2);
    match *kind {
        [8, 0] if ip[1] & 3 != 0 => {
            ip[1] |= 3;
            ip[10..12].fill(0);
            let words = ip[..20].as_chunks::<2>().0;
            let mut sum: u32 = words.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum();
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            ip[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        }
        [0x86, 0xdd] if ip[1] & 0x30 != 0 => ip[1] |= 0x30,
        _ => {}
    }
}

/// A frame over IPv4 whose transport part (BTH to padding) is `transport`, with a right ICRC.
pub fn frame(from: &GidEntry, to: &GidEntry, transport: &[u8]) -> Vec<u8> {
    let udp = 8 + transport.len() + 4;
    let mut frame = Vec::new();
    frame.extend(to.mac);
    frame.extend(from.mac);
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(((20 + udp) as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(&from.gid.0[12..]);
    frame.extend(&to.gid.0[12..]);
    let words = frame[14..34].as_chunks::<2>().0;
    let sum: u32 = words.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    frame.extend([0xc0, 0, 0x12, 0xb7]);
    frame.extend((udp as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(transport);
    frame.extend([0; 4]);
    seal(&mut frame);
    frame
}

/// All that memory can be used for.
pub const ALL: Access = Access(REMOTE_ALL.0 | Access::FLUSH_GLOBAL.0);

/// BTH with the default P_Key, and what follows it, padded.
pub fn transport(opcode: u8, qpn: Qpn, psn: Psn, ack_req: bool, rest: &[u8]) -> Vec<u8> {
    let pad = rest.len().wrapping_neg() & 3;
    let mut bytes = vec![opcode, 0x40 | (pad as u8) << 4, 0xff, 0xff, 0];
    bytes.extend(&qpn.0.to_be_bytes()[1..]);
    bytes.push(u8::from(ack_req) << 7);
    bytes.extend(&psn.get().to_be_bytes()[1..]);
    bytes.extend(rest);
    bytes.resize(bytes.len() + pad, 0);
    bytes
}

/// A FETH and an RETH.
pub fn feth_reth(placement: u8, selectivity: u8, reth: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, selectivity << 4 | placement], reth].concat()
}

/// An RETH.
pub fn reth(addr: u64, rkey: RKey, len: u32) -> Vec<u8> {
    [&addr.to_be_bytes()[..], &rkey.0.to_be_bytes(), &len.to_be_bytes()].concat()
}
