// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packets that are wrong in every way, into QPs of every transport in every state: nothing panics,
//! nothing outside of an MR changes, what is sent in answer is bounded, and the HCA still works
//! afterwards. Random work against an oracle, too, for as long as is asked for.
//!
//! `WIRE_FUZZ_SECONDS` says how long each test takes (2), `WIRE_FUZZ_SEED` where it begins. The corpus
//! is in `tests/corpus/wire`: one frame a file, written by `WIRE_FUZZ_WRITE=1` from a simulation.

mod common;
mod net;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{BASE, pattern};
use hca_backend::soft::wire::frame::{FrameBatch, seal};
use net::{Addresses, Conditions, Net, Rng, Station};
use rdma_midlayer::attr::QpAttr;
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;

const MEMORY: usize = 16 << 10;
/// Frames that a node may send in answer to one: all READs that a QP takes, of all of its memory.
const MOST: usize = 8 * MEMORY / 256 + 64;

fn seconds() -> Duration {
    let text = std::env::var("WIRE_FUZZ_SECONDS").unwrap_or_default();
    Duration::from_secs(text.parse().unwrap_or(2))
}

fn first_seed() -> u64 {
    std::env::var("WIRE_FUZZ_SEED").unwrap_or_default().parse().unwrap_or(1)
}

fn corpus_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/wire")
}

fn corpus() -> Vec<Vec<u8>> {
    let mut files: Vec<_> =
        std::fs::read_dir(corpus_dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Of node 1, which gets the packets.
const TYPES: [QpType; 4] = [QpType::Rc, QpType::Uc, QpType::Ud, QpType::XrcTgt];
const STATES: [QpState; 8] = [
    QpState::Rts,
    QpState::Rts,
    QpState::Reset,
    QpState::Init,
    QpState::Rtr,
    QpState::Rts,
    QpState::Sqd,
    QpState::Err,
];

fn attr(rng: &mut Rng) -> QpAttr {
    QpAttr {
        access: net::ALL,
        path_mtu: rng.pick(&[Mtu::Mtu256, Mtu::Mtu1024, Mtu::Mtu4096]),
        timeout: 10,
        retry_cnt: 2,
        rnr_retry: 2,
        min_rnr_timer: 1,
        max_rd_atomic: 4,
        max_dest_rd_atomic: 4,
        qkey: 5,
        rq_psn: Psn::new(rng.next() as u32),
        sq_psn: Psn::new(rng.next() as u32),
        ..QpAttr::default()
    }
}

/// A QP of each transport in a state, some with work.
fn stations(net: &Net, rng: &mut Rng) -> Vec<Station> {
    let memory = pattern(1, MEMORY);
    let mut stations = Vec::new();
    for qp_type in TYPES {
        let peers = if qp_type == QpType::XrcTgt { QpType::XrcIni } else { qp_type };
        let [a, b] =
            [(0, peers), (1, qp_type)].map(|(node, kind)| net.station(node, kind, 16, &memory));
        let state = rng.pick(&STATES);
        let attr = attr(rng);
        match state {
            QpState::Reset => {}
            QpState::Init | QpState::Rtr => net.connect_to(&b, &a, attr, state),
            _ => {
                net.connect(&b, &a, attr);
                net.connect(&a, &b, QpAttr { sq_psn: attr.rq_psn, rq_psn: attr.sq_psn, ..attr });
                if state != QpState::Rts {
                    net.modify(&b.qp, state, attr, rdma_midlayer::attr::QpAttrMask::STATE);
                }
            }
        }
        if state != QpState::Reset {
            for id in 0..rng.below(4) {
                let sges = [b.sge(rng.below(4000), rng.below(4000) as u32)];
                b.post_recv(&RecvWr { wr_id: id, ticket: 0, sges: &sges });
            }
        }
        if state == QpState::Rts && qp_type == QpType::Rc {
            for _ in 0..rng.below(5) {
                post(&b, &a, rng);
            }
        }
        stations.extend([a, b]);
    }
    stations
}

fn post(from: &Station, to: &Station, rng: &mut Rng) {
    use WrOpcode::*;
    let opcode = rng.pick(&[Send, RdmaWrite, RdmaRead, AtomicFetchAndAdd, RdmaWriteWithImm]);
    let len = if opcode == AtomicFetchAndAdd { 8 } else { rng.below(5000) as u32 };
    let sges = [from.sge(8 * rng.below(1000), len)];
    let wr = SendWr {
        wr_id: 1,
        ticket: 1,
        opcode,
        flags: SendFlags::SIGNALED,
        data: SendData::Sges(&sges),
        imm: 3,
        remote_addr: BASE + 8 * rng.below(1000),
        rkey: to.mr.rkey(),
        compare_add: 1,
        swap: 2,
        ud: None,
        srqn: None,
    };
    // The queue may be full.
    let _ = from.qp.post_send(&wr);
}

/// A frame of the corpus, changed. Where it has a BTH (IPv4 without a tag) the fields are mostly ones
/// that get far.
fn mutate(corpus: &[Vec<u8>], stations: &[Station], net: &Net, rng: &mut Rng) -> Vec<u8> {
    let mut frame = corpus[rng.below(corpus.len() as u64) as usize].clone();
    const BTH: usize = 42;
    // To node 1, from node 0.
    frame[5] = 2;
    frame[11] = 1;
    if frame.len() >= BTH + 12 + 4 {
        frame[29] = 1;
        frame[33] = 2;
        let behind = BTH + 12 + renew(&mut frame, BTH, stations, rng);
        let of_transport = match frame[BTH] >> 5 {
            0 => 0,
            1 => 1,
            3 => 2,
            5 => 3,
            _ => rng.below(4) as usize,
        };
        let any = rng.below(4) as usize;
        let station = &stations[2 * if rng.permille(900) { of_transport } else { any } + 1];
        if rng.permille(950) {
            frame[BTH + 5..BTH + 8].copy_from_slice(&station.qp.qpn().0.to_be_bytes()[1..]);
        }
        let now = station.qp.query(&net.cx).unwrap();
        if rng.permille(800) {
            let base = if frame[BTH] & 0x1f >= 0x0d && frame[BTH] & 0x1f <= 0x12 {
                now.sq_psn.plus(0xff_fffe)
            } else {
                now.rq_psn
            };
            let psn = base.plus(rng.pick(&[0, 0, 0, 0, 1, 2, 0xff_ffff, 0xff_fff0]));
            frame[BTH + 9..BTH + 12].copy_from_slice(&psn.get().to_be_bytes()[1..]);
        }
        if rng.permille(200) {
            frame[BTH] = rng.next() as u8;
        }
        if frame[BTH] == 0x11 && rng.permille(500) {
            frame[BTH + 12] = rng.pick(&[0x1f, 0x2c, 0x60, 0x61, 0x62, 0x63, 0x64, 0x80]);
        }
        if rng.permille(600) && frame.len() >= behind + 16 + 4 {
            let addr = BASE + 8 * rng.below(MEMORY as u64 / 8 + 2);
            frame[behind..behind + 8].copy_from_slice(&addr.to_be_bytes());
            let rkey = station.mr.rkey().0;
            frame[behind + 8..behind + 12].copy_from_slice(&rkey.to_be_bytes());
        }
    }
    match rng.below(6) {
        0 => {
            let at = rng.below(frame.len() as u64) as usize;
            frame[at] = rng.next() as u8;
        }
        1 => {
            let len = rng.below(frame.len() as u64 + 1) as usize;
            frame.truncate(len);
        }
        2 => {
            // Longer or shorter, and saying so.
            let len = (frame.len() as i64 + 4 * (rng.below(21) as i64 - 10)).max(62) as usize;
            frame.resize(len, 0xa5);
            set_lengths(&mut frame);
        }
        _ => {}
    }
    if frame.len() >= 34 && rng.permille(900) {
        frame[24..26].fill(0);
        let words = frame[14..34].as_chunks::<2>().0;
        let mut sum: u32 = words.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        seal(&mut frame);
    }
    frame
}

/// Makes some frames of the corpus into ones of opcodes that are younger than it; bytes that were added
/// between BTH and RETH.
fn renew(frame: &mut Vec<u8>, bth: usize, stations: &[Station], rng: &mut Rng) -> usize {
    let mut added = Vec::new();
    if rng.permille(250) {
        match frame[bth] {
            // A READ, a WRITE.
            0x0c => {
                frame[bth] = 0x1c;
                added = vec![0, 0, 0, rng.below(64) as u8];
            }
            0x0a => frame[bth] = 0x1d,
            _ => {}
        }
    }
    if frame[bth] >> 5 == 0 && rng.permille(250) {
        frame[bth] |= 0xa0;
        let answer = (0xad..=0xb2).contains(&frame[bth]);
        let srqn = stations[7].srqn().map_or(0, |srqn| srqn.0) ^ u32::from(rng.permille(100));
        if !answer {
            added.splice(0..0, srqn.to_be_bytes());
        }
    }
    let count = added.len();
    frame.splice(bth + 12..bth + 12, added);
    set_lengths(frame);
    count
}

/// The lengths of IPv4 and UDP are what they are.
fn set_lengths(frame: &mut [u8]) {
    if frame.len() > 42 {
        let udp = (frame.len() - 34) as u16;
        frame[16..18].copy_from_slice(&(udp + 20).to_be_bytes());
        frame[38..40].copy_from_slice(&udp.to_be_bytes());
    }
}

/// One HCA, many packets; what it counted.
fn round(seed: u64, corpus: &[Vec<u8>]) -> Vec<(&'static str, u64)> {
    let mut rng = Rng(seed);
    let conditions = Conditions { delay: 1000, ..Conditions::default() };
    let mut net = Net::new(seed, 2, Addresses::default(), conditions);
    let stations = stations(&net, &mut rng);
    net.settle();
    for _ in 0..60 {
        let (a, b) = (&stations[0], &stations[1]);
        let works = |s: &Station| s.qp.query(&net.cx).unwrap().state == QpState::Rts;
        if rng.permille(300) && works(b) && works(a) {
            post(b, a, &mut rng);
            net.nodes[1].link.transmit(net.now(), &mut FrameBatch::new(64));
        }
        let frame = mutate(corpus, &stations, &net, &mut rng);
        let now = net.now();
        net.nodes[1].link.handle_frame(now, &frame);
        net.tap = Some(Vec::new());
        net.settle();
        let answers = net.tap.take().unwrap().len();
        assert!(answers <= MOST, "{answers} frames in answer to one");
        net.time += 1 + rng.below(100_000);
    }
    stations.iter().for_each(Station::check_guards);
    still_works(&mut net);
    net.nodes[1].link.counters()
}

/// A new pair of QPs exchanges a message.
fn still_works(net: &mut Net) {
    let memory = pattern(2, 4096);
    let [a, b] = [0, 1].map(|node| net.station(node, QpType::Rc, 4, &memory));
    let attr = QpAttr {
        access: common::REMOTE_ALL,
        timeout: 14,
        retry_cnt: 7,
        rnr_retry: 7,
        max_rd_atomic: 1,
        max_dest_rd_atomic: 1,
        ..QpAttr::default()
    };
    net.connect(&a, &b, attr);
    net.connect(&b, &a, attr);
    let sges = [a.sge(0, 1500)];
    let wr = SendWr {
        wr_id: 4,
        ticket: 4,
        opcode: WrOpcode::RdmaWrite,
        flags: SendFlags::SIGNALED,
        data: SendData::Sges(&sges),
        imm: 0,
        remote_addr: BASE + 2000,
        rkey: b.mr.rkey(),
        compare_add: 0,
        swap: 0,
        ud: None,
        srqn: None,
    };
    a.qp.post_send(&wr).unwrap();
    for _ in 0..1000 {
        net.settle();
        if a.send.len() > 0 {
            break;
        }
        net.time = net.next_time().expect("it hangs").max(net.time + 1);
    }
    assert_eq!(a.send.statuses(), [(4, WcStatus::Success)]);
    assert!(b.bytes()[2000..3500] == memory[..1500]);
}

#[test]
fn wrong_packets_in_every_state_harm_nothing() {
    let corpus = corpus();
    assert!(corpus.len() >= 20, "the corpus is there");
    let end = Instant::now() + seconds();
    let mut seed = first_seed();
    let mut total = BTreeMap::new();
    while Instant::now() < end || seed < first_seed() + 400 {
        let corpus = corpus.clone();
        let run = std::thread::spawn(move || round(seed, &corpus));
        match run.join() {
            Ok(counts) => {
                counts.into_iter().for_each(|(name, n)| *total.entry(name).or_insert(0) += n);
            }
            Err(panic) => {
                eprintln!("seed {seed} fails: WIRE_FUZZ_SEED={seed} begins with it");
                std::panic::resume_unwind(panic);
            }
        }
        seed += 1;
    }
    eprintln!("{} rounds: {total:?}", seed - first_seed());
    // They got far enough to be refused for each reason.
    for name in [
        "duplicate_request",
        "out_of_seq_request",
        "send_rnr_err",
        "send_seq_err",
        "send_nak",
        "icrc_err",
        "pkey_err",
        "qkey_err",
        "unknown_qp",
        "malformed",
        "rcvd_cnp",
    ] {
        assert!(total[name] > 0, "{name}: {total:?}");
    }
}

#[test]
fn noise_harms_nothing() {
    let end = Instant::now() + seconds() / 2;
    let mut rng = Rng(first_seed());
    let net = Net::new(1, 1, Addresses::default(), Conditions::default());
    let mut batch = FrameBatch::new(8);
    while Instant::now() < end {
        for _ in 0..1000 {
            let mut noise: Vec<u8> = (0..rng.below(200)).map(|_| rng.next() as u8).collect();
            if noise.len() > 40 && rng.permille(700) {
                noise[12..14].copy_from_slice(&rng.pick(&[[8, 0], [0x86, 0xdd], [0x81, 0]]));
                noise[14] = rng.pick(&[0x45, 0x60]);
            }
            net.nodes[0].link.handle_frame(net.now(), &noise);
        }
        assert_eq!(net.nodes[0].link.transmit(net.now(), &mut batch), 0);
    }
}

/// Writes the corpus: a frame of each opcode that occurs between two HCAs.
#[test]
#[ignore = "writes into the source tree"]
fn write_the_corpus() {
    if std::env::var_os("WIRE_FUZZ_WRITE").is_none() {
        return;
    }
    let mut seen = BTreeMap::new();
    for seed in 0..20 {
        let frames = std::thread::spawn(move || {
            let mut rng = Rng(seed);
            let conditions = Conditions { delay: 1000, loss: 30, ..Conditions::default() };
            let mut net = Net::new(seed, 2, Addresses::default(), conditions);
            net.tap = Some(Vec::new());
            for qp_type in TYPES {
                talk(&mut net, qp_type, &mut rng);
            }
            net.tap.take().unwrap()
        });
        for frame in frames.join().unwrap() {
            let syndrome = if frame[42] == 0x11 { frame[54] & 0x60 } else { 0 };
            seen.entry((frame[42], syndrome)).or_insert(frame);
        }
    }
    std::fs::create_dir_all(corpus_dir()).unwrap();
    for ((opcode, syndrome), frame) in seen {
        std::fs::write(corpus_dir().join(format!("{opcode:02x}-{syndrome:02x}.bin")), frame)
            .unwrap();
    }
}

/// Messages of all kinds from one QP to another.
fn talk(net: &mut Net, qp_type: QpType, rng: &mut Rng) {
    let memory = pattern(2, MEMORY);
    let [a, b] = [0, 1].map(|node| net.station(node, qp_type, 64, &memory));
    let attr = QpAttr { path_mtu: Mtu::Mtu256, retry_cnt: 7, rnr_retry: 7, ..attr(rng) };
    net.connect(&a, &b, attr);
    net.connect(&b, &a, QpAttr { sq_psn: attr.rq_psn, rq_psn: attr.sq_psn, ..attr });
    let ah = net.ah(0, 1);
    use WrOpcode::*;
    let kinds = [
        Send,
        SendWithImm,
        RdmaWrite,
        RdmaWriteWithImm,
        RdmaRead,
        AtomicCmpAndSwp,
        AtomicFetchAndAdd,
    ];
    let count = match qp_type {
        QpType::Rc => 7,
        QpType::Uc => 4,
        _ => 2,
    };
    for (i, opcode) in kinds[..count].iter().cycle().take(2 * count).enumerate() {
        // The first one waits.
        if i > 0 {
            let sges = [b.sge(0, 4096)];
            b.qp.post_recv(&RecvWr { wr_id: 0, ticket: 0, sges: &sges }).unwrap();
        }
        let len = match opcode {
            AtomicCmpAndSwp | AtomicFetchAndAdd => 8,
            _ if qp_type == QpType::Ud => 100,
            _ => {
                if i < count {
                    700
                } else {
                    99
                }
            }
        };
        let sges = [a.sge(0, len)];
        let wr = SendWr {
            wr_id: 1,
            ticket: 1,
            opcode: *opcode,
            flags: SendFlags::SIGNALED,
            data: SendData::Sges(&sges),
            imm: 3,
            remote_addr: BASE + 4096,
            rkey: b.mr.rkey(),
            compare_add: 1,
            swap: 2,
            srqn: None,
            ud: (qp_type == QpType::Ud).then(|| UdDest { ah: &*ah, qpn: b.qp.qpn(), qkey: 5 }),
        };
        let _ = a.qp.post_send(&wr);
        for step in 0..200 {
            if i == 0 && step == 20 {
                let sges = [b.sge(0, 4096)];
                b.qp.post_recv(&RecvWr { wr_id: 0, ticket: 0, sges: &sges }).unwrap();
            }
            net.settle();
            let Some(next) = net.next_time() else { break };
            net.time = next.max(net.time + 1);
        }
    }
}
