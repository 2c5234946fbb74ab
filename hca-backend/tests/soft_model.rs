// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random work on two connected QPs, against a model that carries out one work request after the
//! other in the plainest way: data, completions, their order, and flush must be the same.

mod common;

use std::collections::VecDeque;
use std::time::Duration;

use common::*;
use proptest::prelude::*;
use rdma_midlayer::driver::MrChange;
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

/// Each direction has this much of both memories to itself, so that it does not matter which of two
/// independent requests is first.
const AREA: u64 = 200_000;
/// What the HCA moves in one go.
const PIECE: usize = if FORCE_WIRE { 1024 } else { 65536 };
/// Most inline bytes (as in `Setup`).
const INLINE: u32 = 256;

#[derive(Clone, Debug)]
enum Action {
    /// Post send WRs at one end, before the pollers run: one by one, or as a list.
    Send { end: usize, burst: Vec<Send>, list: bool },
    /// Post a receive WR.
    Recv { end: usize, len: u32, at: u64 },
    /// Post a WR with a bad rkey.
    BadKey { end: usize },
    /// Modify to ERR.
    Fail { end: usize },
}

#[derive(Clone, Debug)]
struct Send {
    op: WrOpcode,
    len: u32,
    from: u64,
    to: u64,
    flags: u8,
    split: u32,
}

fn lengths() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..300u32, 1 => 4000..5000u32, 1 => 60_000..140_000u32]
}

fn actions() -> impl Strategy<Value = Action> {
    let op = prop::sample::select(vec![
        WrOpcode::Send,
        WrOpcode::Send,
        WrOpcode::SendWithImm,
        WrOpcode::RdmaWrite,
        WrOpcode::RdmaWriteWithImm,
        WrOpcode::RdmaRead,
        WrOpcode::AtomicCmpAndSwp,
        WrOpcode::AtomicFetchAndAdd,
        WrOpcode::AtomicWrite,
        WrOpcode::Flush,
    ]);
    let place = || 0..5000u64;
    let send = (op, lengths(), place(), place(), 0..16u8, any::<u32>())
        .prop_map(|(op, len, from, to, flags, split)| Send { op, len, from, to, flags, split });
    let send = (0..2usize, prop::collection::vec(send, 1..24), any::<bool>())
        .prop_map(|(end, burst, list)| Action::Send { end, burst, list });
    let recv = (0..2usize, prop_oneof![1 => lengths(), 4 => Just(190_000u32)], place())
        .prop_map(|(end, len, at)| Action::Recv { end, len, at });
    prop_oneof![
        14 => send,
        20 => recv,
        1 => (0..2usize).prop_map(|end| Action::BadKey { end }),
        1 => (0..2usize).prop_map(|end| Action::Fail { end }),
    ]
}

/// A send WR as the model keeps it.
#[derive(Clone, Debug)]
struct Wr {
    id: u64,
    op: WrOpcode,
    len: usize,
    from: usize,
    to: usize,
    signaled: bool,
    inline: Option<Vec<u8>>,
    bad_key: bool,
}

/// (wr_id, status, opcode, byte_len, imm): what a completion must say; for failures only the first two.
type Wc = (u64, WcStatus, Option<(WcOpcode, u32, u32)>);

#[derive(Default)]
struct ModelEnd {
    memory: Vec<u8>,
    failed: bool,
    sends: VecDeque<Wr>,
    recvs: VecDeque<(u64, usize, usize)>,
    send_wcs: Vec<Wc>,
    recv_wcs: Vec<Wc>,
}

impl ModelEnd {
    fn fail(&mut self) {
        self.failed = true;
        let flushed = self.sends.drain(..).map(|wr| (wr.id, WcStatus::WrFlushErr, None));
        self.send_wcs.extend(flushed);
        let flushed = self.recvs.drain(..).map(|(id, ..)| (id, WcStatus::WrFlushErr, None));
        self.recv_wcs.extend(flushed);
    }
}

/// Carries out what can be carried out.
fn model_run(ends: &mut [ModelEnd; 2]) {
    let mut progress = true;
    while progress {
        progress = false;
        for me in 0..2 {
            while step(ends, me) {
                progress = true;
            }
        }
    }
}

fn step(ends: &mut [ModelEnd; 2], me: usize) -> bool {
    let [first, second] = ends;
    let (a, b) = if me == 0 { (first, second) } else { (second, first) };
    let Some(wr) = a.sends.front().cloned() else { return false };
    if a.failed || b.failed {
        return false;
    }
    let (from, to) = (wr.from..wr.from + wr.len, wr.to..wr.to + wr.len);
    let needs_recv =
        matches!(wr.op, WrOpcode::Send | WrOpcode::SendWithImm | WrOpcode::RdmaWriteWithImm);
    if wr.bad_key {
        a.sends.pop_front();
        a.send_wcs.push((wr.id, WcStatus::RemAccessErr, None));
        a.fail();
        b.fail();
        return true;
    }
    let data = wr.inline.clone().unwrap_or_else(|| a.memory[from.clone()].to_vec());
    let imm = 0x1000 + wr.id as u32;
    if needs_recv {
        let Some((id, at, room)) = b.recvs.front().copied() else {
            // The receive WQE is the last packet's affair: what comes before it is written already.
            if wr.op == WrOpcode::RdmaWriteWithImm && wr.len > 0 {
                let written = (wr.len - 1) / PIECE * PIECE;
                b.memory[wr.to..wr.to + written].copy_from_slice(&data[..written]);
            }
            return false;
        };
        b.recvs.pop_front();
        let write = wr.op == WrOpcode::RdmaWriteWithImm;
        if !write && wr.len > room {
            // The packets that fit are there already.
            let fits = if FORCE_WIRE { room / PIECE * PIECE } else { 0 };
            b.memory[at..at + fits].copy_from_slice(&data[..fits]);
            b.recv_wcs.push((id, WcStatus::LocLenErr, None));
            a.sends.pop_front();
            a.send_wcs.push((wr.id, WcStatus::RemInvReqErr, None));
            a.fail();
            b.fail();
            return true;
        }
        let (opcode, imm) = match wr.op {
            WrOpcode::Send => (WcOpcode::Recv, 0),
            WrOpcode::SendWithImm => (WcOpcode::Recv, imm),
            _ => (WcOpcode::RecvRdmaWithImm, imm),
        };
        if !write {
            b.memory[at..at + wr.len].copy_from_slice(&data);
        }
        b.recv_wcs.push((id, WcStatus::Success, Some((opcode, wr.len as u32, imm))));
    }
    let word = |memory: &[u8]| u64::from_ne_bytes(memory.try_into().unwrap());
    match wr.op {
        WrOpcode::RdmaWrite | WrOpcode::RdmaWriteWithImm | WrOpcode::AtomicWrite => {
            b.memory[to].copy_from_slice(&data)
        }
        WrOpcode::RdmaRead => {
            let read = b.memory[to].to_vec();
            a.memory[from].copy_from_slice(&read);
        }
        WrOpcode::AtomicCmpAndSwp | WrOpcode::AtomicFetchAndAdd => {
            let old = word(&b.memory[to.clone()]);
            let new = match wr.op {
                WrOpcode::AtomicFetchAndAdd => old.wrapping_add(wr.id),
                _ if old == wr.id => !wr.id,
                _ => old,
            };
            b.memory[to].copy_from_slice(&new.to_ne_bytes());
            a.memory[from].copy_from_slice(&old.to_ne_bytes());
        }
        _ => {}
    }
    a.sends.pop_front();
    if wr.signaled {
        let opcode = WcOpcode::from(wr.op);
        let reads = matches!(opcode, WcOpcode::RdmaRead | WcOpcode::CompSwap | WcOpcode::FetchAdd);
        let len = if reads { wr.len as u32 } else { 0 };
        a.send_wcs.push((wr.id, WcStatus::Success, Some((opcode, len, 0))));
    }
    true
}

/// A WR to be posted, and as the model has it.
struct Prepared {
    sges: Vec<Sge>,
    flush: Flush,
    flags: SendFlags,
    model: Wr,
}

impl Prepared {
    fn wr(&self, peer: &End) -> SendWr<'_> {
        let Wr { id, op, to, inline, .. } = &self.model;
        SendWr {
            wr_id: *id,
            ticket: *id as u32,
            opcode: *op,
            flags: self.flags,
            data: match inline {
                _ if *op == WrOpcode::Flush => SendData::Flush(self.flush),
                Some(bytes) => SendData::Inline(bytes),
                None => SendData::Sges(&self.sges),
            },
            imm: 0x1000 + *id as u32,
            remote_addr: BASE + *to as u64,
            rkey: peer.mr.rkey(),
            compare_add: *id,
            swap: !*id,
            ud: None,
            srqn: None,
        }
    }
}

fn wcs(sink: &CqSink) -> Vec<Wc> {
    let said = |wc: &WorkCompletion| (wc.opcode, wc.byte_len, wc.imm);
    let wc = |wc: WorkCompletion| {
        (wc.wr_id, wc.status, (wc.status == WcStatus::Success).then(|| said(&wc)))
    };
    sink.drain().into_iter().map(wc).collect()
}

struct World {
    lab: Lab,
    ends: [End; 2],
    model: [ModelEnd; 2],
    next_id: u64,
}

impl World {
    fn new() -> Self {
        let lab = Lab::new();
        let mut setup = Setup { memory: 2 * AREA as usize, ..Setup::default() };
        setup.cap.max_send_wr = 10_000;
        setup.cap.max_recv_wr = 10_000;
        // Lost requests wait for ever, as in the model.
        setup.attr.timeout = 0;
        if FORCE_WIRE {
            // Longer than it takes to make the packets again.
            setup.attr.min_rnr_timer = 0;
        }
        let access = REMOTE_ALL | Access::FLUSH_GLOBAL;
        setup.attr.access = access;
        let (a, b) = lab.pair_with(&setup, &setup);
        for end in [&a, &b] {
            let rights = MrChange { access: Some(access), ..MrChange::default() };
            end.mr.rereg(&lab.cx, rights).unwrap();
        }
        let model = [(&a, 1), (&b, 2)].map(|(end, seed)| {
            let memory = pattern(seed, 2 * AREA as usize);
            end.fill(0, &memory);
            ModelEnd { memory, ..ModelEnd::default() }
        });
        Self { lab, ends: [a, b], model, next_id: 1 }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send { end, burst, list } => {
                let burst: Vec<_> = burst.into_iter().map(|send| self.prepare(end, send)).collect();
                let wrs: Vec<_> = burst.iter().map(|p| p.wr(&self.ends[1 - end])).collect();
                let qp = &self.ends[end].qp;
                if list {
                    qp.post_send_list(&wrs).unwrap();
                } else {
                    wrs.iter().for_each(|wr| qp.post_send(wr).unwrap());
                }
                burst.into_iter().for_each(|p| self.post(end, p.model));
            }
            Action::Recv { end, len, at } => {
                // Messages of the peer land in the peer's area.
                let at = (1 - end as u64) * AREA + at;
                let id = self.id();
                self.ends[end].post_recv(id, &[self.ends[end].sge(at, len)]);
                let model = &mut self.model[end];
                if model.failed {
                    model.recv_wcs.push((id, WcStatus::WrFlushErr, None));
                } else {
                    model.recvs.push_back((id, at as usize, len as usize));
                }
            }
            Action::BadKey { end } => {
                let id = self.id();
                let (me, peer) = (&self.ends[end], &self.ends[1 - end]);
                let sges = [me.sge(0, 8)];
                let wr = me.wr(id, WrOpcode::RdmaWrite, &sges, peer, 0);
                me.qp.post_send(&SendWr { rkey: RKey(1), ..wr }).unwrap();
                let op = WrOpcode::RdmaWrite;
                self.post(
                    end,
                    Wr {
                        id,
                        op,
                        len: 8,
                        from: 0,
                        to: 0,
                        signaled: true,
                        inline: None,
                        bad_key: true,
                    },
                );
            }
            Action::Fail { end } => {
                self.lab.move_to(&self.ends[end], QpState::Err);
                self.model[end].fail();
            }
        }
        self.settle();
    }

    fn prepare(&mut self, end: usize, send: Send) -> Prepared {
        let Send { op, len, from, to, flags, split } = send;
        let atomic = matches!(op, WrOpcode::AtomicCmpAndSwp | WrOpcode::AtomicFetchAndAdd);
        let one_word = atomic || op == WrOpcode::AtomicWrite;
        let (len, to) = if one_word { (8, to & !7) } else { (len, to) };
        let (from, to) = (end as u64 * AREA + from, end as u64 * AREA + to);
        let reads = atomic || op == WrOpcode::RdmaRead;
        let inline = flags & 8 != 0 && len <= INLINE && !reads && op != WrOpcode::Flush;
        let whole_mr = flags & 8 != 0;
        let flush = Flush { length: len.into(), placement: Access::FLUSH_GLOBAL, whole_mr };
        let id = self.id();
        let me = &self.ends[end];
        let cut = split % (len + 1);
        let sges = if split.is_multiple_of(3) {
            vec![me.sge(from, cut), me.sge(from + u64::from(cut), len - cut)]
        } else {
            vec![me.sge(from, len)]
        };
        // Packets of a SEND are made before a READ that came before it is done, unless it waits.
        let flags = SendFlags(flags & 7 | u8::from(FORCE_WIRE));
        let signaled = flags.contains(SendFlags::SIGNALED);
        let (len, from, to) = (len as usize, from as usize, to as usize);
        // A value of its own: what is in memory belongs to the WRs before.
        let inline = inline.then(|| pattern(id, len));
        Prepared {
            sges,
            flush,
            flags,
            model: Wr { id, op, len, from, to, signaled, inline, bad_key: false },
        }
    }

    fn post(&mut self, end: usize, wr: Wr) {
        let model = &mut self.model[end];
        if model.failed {
            model.send_wcs.push((wr.id, WcStatus::WrFlushErr, None));
        } else {
            model.sends.push_back(wr);
        }
    }

    fn settle(&mut self) {
        // A peer that was not ready is asked again only after a while.
        self.lab.run_for(Duration::from_millis(if FORCE_WIRE { 1400 } else { 0 }));
        model_run(&mut self.model);
    }

    fn check(&mut self) {
        for (end, model) in self.ends.iter().zip(&mut self.model) {
            let (sent, received) = (wcs(&end.send), wcs(&end.recv));
            assert_eq!(sent, std::mem::take(&mut model.send_wcs));
            assert_eq!(received, std::mem::take(&mut model.recv_wcs));
            assert!(end.bytes(0, 2 * AREA as usize) == model.memory, "memory differs");
        }
    }
}

fn run(actions: Vec<Action>) {
    std::thread::spawn(move || {
        let mut world = World::new();
        for action in actions {
            world.act(action);
        }
        world.settle();
        world.check();
        for end in [0, 1] {
            world.act(Action::Fail { end });
        }
        world.check();
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if FORCE_WIRE { 30 } else { 150 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_work_does_what_the_model_does(actions in prop::collection::vec(actions(), 1..60)) {
        run(actions);
    }
}
