// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an operation costs from post_send to the completion in the consumer's memory, in one thread:
//! beside it the bare copy of the same bytes, and a mock that copies and completes without a check.
//!
//! `cargo bench -p hca-backend --bench soft_path`. Medians of many short windows, in nanoseconds.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use hca_backend::soft::{Config, SoftHca};
use rdma_midlayer::attr::{AhAttr, GidEntry, QpAttr, QpAttrMask, QpCap};
use rdma_midlayer::driver::*;
use rdma_midlayer::memory::{Mapping, Run, UserMemory};
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;
use rdma_midlayer::{MaySleep, rcu};

/// Operations in a window.
const OPS: u64 = 256;

/// CQEs of a ring.
const CQES: usize = 1024;

struct Ram(Box<[AtomicU64]>);

// SAFETY: the words live as long as the value and are atomics, so writes through a shared pointer are
// allowed.
unsafe impl Mapping for Ram {
    fn base(&self) -> *mut u8 {
        self.0.as_ptr().cast_mut().cast()
    }
    fn len(&self) -> usize {
        self.0.len() * 8
    }
}

fn memory(start: u64, len: usize) -> UserMemory {
    let ram: Arc<dyn Mapping> = Arc::new(Ram((0..len / 8).map(|_| AtomicU64::new(0)).collect()));
    UserMemory::new(start, len as u64, 0, None, [Run { mapping: ram, offset: 0, len }]).unwrap()
}

/// The same, of 4 KiB pages that lie in disorder, as a guest's user memory does.
fn pages(start: u64, len: usize) -> UserMemory {
    let ram: Arc<dyn Mapping> = Arc::new(Ram((0..len / 8).map(|_| AtomicU64::new(0)).collect()));
    let count = len / 4096;
    let run = |i| Run { mapping: ram.clone(), offset: i * 389 % count * 4096, len: 4096 };
    UserMemory::new(start, len as u64, 0, Some(12), (0..count).map(run)).unwrap()
}

/// A ring of 64-byte CQEs, as a guest's.
struct Ring {
    slots: Box<[[AtomicU64; 8]; CQES]>,
    next: AtomicUsize,
}

impl Ring {
    fn new() -> Arc<Self> {
        let slots = Box::new([const { [const { AtomicU64::new(0) }; 8] }; CQES]);
        Arc::new(Self { slots, next: AtomicUsize::new(0) })
    }

    #[inline]
    fn put(&self, wc: &WorkCompletion) {
        let at = self.next.load(Ordering::Relaxed);
        self.next.store(at + 1, Ordering::Relaxed);
        let slot = &self.slots[at % CQES];
        slot[0].store(wc.wr_id, Ordering::Relaxed);
        slot[1].store(u64::from(wc.byte_len) << 32 | u64::from(wc.imm), Ordering::Relaxed);
        slot[2].store(u64::from(wc.qpn.0) << 32 | u64::from(wc.ticket), Ordering::Relaxed);
        let word = u64::from(wc.status.code()) << 16 | u64::from(wc.opcode.code()) << 8;
        slot[7].store(word | (at / CQES) as u64 & 1, Ordering::Release);
    }
}

impl CqMemory for Ring {
    fn push(&self, wc: &WorkCompletion) -> Result<(), Overflow> {
        self.put(wc);
        Ok(())
    }
}

impl CqEvents for Ring {
    fn completed(&self, _solicited: bool) {}
    fn wanted(&self) -> bool {
        false
    }
}

/// Receive WQEs without end, all alike.
struct Endless {
    sge: Sge,
}

impl RecvSource for Endless {
    fn take(&self, wqe: &mut RecvWqe) -> Result<Taken, MalformedWqe> {
        wqe.set(1, 1, std::iter::once(self.sge));
        Ok(Taken::Wqe)
    }
    fn want_doorbell(&self, _wanted: bool) {}
}

struct Nobody;

impl EventSink for Nobody {
    fn dispatch(&self, event: AsyncEvent) {
        println!("event: {event:?}");
    }
}

impl SendReady for Nobody {
    fn send_ready(&self) {}
}

struct End {
    context: Arc<dyn ContextDriver>,
    pd: Arc<dyn PdDriver>,
    mr: Arc<dyn MrDriver>,
    qp: Arc<dyn QpDriver>,
    gid: Gid,
}

const BASE: u64 = 0x10_0000;
const SIZE: usize = 4 << 20;

fn end(cx: &MaySleep, hca: &SoftHca, last: u8) -> End {
    let init = ContextInit { network: 1, name: String::new(), events: Arc::new(Nobody) };
    let context = hca.alloc_context(cx, init).unwrap();
    let gid = Gid(std::net::Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets());
    context.add_gid(cx, 0, &GidEntry { gid, mac: [2; 6], vlan: None }).unwrap();
    let pd = context.alloc_pd(cx).unwrap();
    let access = Access(0xf);
    let mr = pd.reg_mr(cx, memory(BASE, SIZE), access).unwrap();
    let cq = || {
        let ring = Ring::new();
        let init = CqInit { cqe: 1024, vector: 0, memory: Some(ring.clone()), events: ring };
        context.create_cq(cx, init).unwrap()
    };
    let init = QpInit {
        qp_type: QpType::Rc,
        send_cq: cq(),
        recv_cq: cq(),
        cap: QpCap {
            max_send_wr: 64,
            max_recv_wr: 64,
            max_send_sge: 4,
            max_recv_sge: 4,
            max_inline: 256,
        },
        signal_all: false,
        privileged: false,
        poller: 0,
        recv_source: Some(Arc::new(Endless {
            sge: Sge { addr: BASE, length: 1 << 20, lkey: mr.lkey() },
        })),
        send_ready: Some(Arc::new(Nobody)),
        srq: None,
        xrcd: None,
        block_self_mcast: false,
    };
    let qp = pd.create_qp(cx, init).unwrap();
    End { context, pd, mr, qp, gid }
}

fn connect(cx: &MaySleep, a: &End, b: &End) {
    let mut attr = QpAttr {
        access: Access(0xf),
        dest_qpn: b.qp.qpn(),
        ah: AhAttr { dgid: b.gid, port: 1, ..AhAttr::default() },
        path_mtu: Mtu::Mtu4096,
        timeout: 14,
        retry_cnt: 7,
        rnr_retry: 7,
        max_rd_atomic: 16,
        max_dest_rd_atomic: 16,
        ..QpAttr::default()
    };
    for state in [QpState::Init, QpState::Rtr, QpState::Rts] {
        attr.cur_state = std::mem::replace(&mut attr.state, state);
        a.qp.modify(cx, &attr, QpAttrMask(0x1f_ffff & !QpAttrMask::EN_SQD_ASYNC_NOTIFY.0)).unwrap();
    }
}

/// Median nanoseconds of one operation; 0 if there are no windows.
fn measure(windows: usize, mut op: impl FnMut(u64)) -> f64 {
    if windows == 0 {
        return 0.0;
    }
    (0..OPS).for_each(&mut op);
    let mut times: Vec<f64> = (0..windows)
        .map(|_| {
            let start = Instant::now();
            (0..OPS).for_each(&mut op);
            start.elapsed().as_nanos() as f64 / OPS as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[windows / 2]
}

fn main() {
    // Under `cargo test` it only shows that it runs.
    let windows = if std::env::args().any(|arg| arg == "--bench") { 4000 } else { 5 };
    let cx = MaySleep::claim().unwrap();
    let config = Config { name: "soft0".into(), pollers: 1, ..Config::default() };
    let hca = SoftHca::new(config);
    let (a, b) = (end(&cx, &hca, 1), end(&cx, &hca, 2));
    connect(&cx, &a, &b);
    connect(&cx, &b, &a);
    let others: Vec<_> =
        (0..1023).map(|_| b.pd.reg_mr(&cx, memory(BASE, 4096), Access(0xf)).unwrap()).collect();
    let keys: Vec<RKey> = others.iter().map(|mr| mr.rkey()).collect();

    let (from, to) = (memory(BASE, SIZE), memory(BASE, SIZE));
    let ring = Ring::new();
    let mut wc = WorkCompletion {
        wr_id: 0,
        ticket: 0,
        status: WcStatus::Success,
        opcode: WcOpcode::RdmaWrite,
        flags: WcFlags::default(),
        qpn: Qpn(16),
        byte_len: 64,
        imm: 0,
        src_qpn: Qpn(0),
        vendor_err: 0,
        vlan: 0,
        sl: 0,
    };
    println!(
        "{:>8} {:>8} {:>8}  ns (median of {windows} windows of {OPS})",
        "bytes", "copy", "mock"
    );
    for len in [64u64, 4096, 65536] {
        let spread = (SIZE as u64 / 2 / len).min(16);
        let copy = measure(windows, |i| {
            let at = BASE + i % spread * len;
            to.copy_from(black_box(at), &from, black_box(at), black_box(len)).unwrap();
        });
        let mock = measure(windows, |i| {
            let at = BASE + i % spread * len;
            to.copy_from(black_box(at), &from, black_box(at), black_box(len)).unwrap();
            wc.wr_id = i;
            ring.put(black_box(&wc));
        });
        println!("{len:>8} {copy:>8.1} {mock:>8.1}");
    }

    println!("\n{:<44} {:>8}", "soft HCA, post_send to CQE", "ns");
    let row = |name: &str, ns: f64| println!("{name:<44} {ns:>8.1}");
    let post = |wr: &SendWr<'_>| a.qp.post_send(black_box(wr)).unwrap();
    let request = |opcode, flags| SendWr {
        wr_id: 1,
        ticket: 1,
        opcode,
        flags,
        data: SendData::Sges(&[]),
        imm: 0,
        remote_addr: BASE,
        rkey: b.mr.rkey(),
        compare_add: 1,
        swap: 0,
        ud: None,
        srqn: None,
    };
    let lkey = a.mr.lkey();
    let run = |opcode, flags, len: u32| {
        let wr = request(opcode, flags);
        let spread = (SIZE as u64 / 2 / u64::from(len)).min(16);
        measure(windows, |i| {
            let addr = BASE + i % spread * u64::from(len);
            let sges = [Sge { addr, length: len, lkey }];
            post(&SendWr { data: SendData::Sges(&sges), remote_addr: addr, ..wr });
        })
    };
    let signaled = SendFlags::SIGNALED;
    row("64 B WRITE, entering RCU each time", run(WrOpcode::RdmaWrite, signaled, 64));
    // As a worker does: inside for a whole turn.
    let turn = rcu::enter();
    row("64 B WRITE", run(WrOpcode::RdmaWrite, signaled, 64));
    row("64 B WRITE, unsignalled", run(WrOpcode::RdmaWrite, SendFlags::default(), 64));
    let wr = request(WrOpcode::RdmaWrite, signaled);
    let inline = [7; 64];
    row(
        "64 B WRITE, inline",
        measure(windows, |_| post(&SendWr { data: SendData::Inline(&inline), ..wr })),
    );
    let sges = [Sge { addr: BASE, length: 64, lkey }];
    row(
        "64 B WRITE, 1,023 rkeys in turn",
        measure(windows, |i| {
            let rkey = keys[(i * 389 % 1023) as usize];
            post(&SendWr { data: SendData::Sges(&sges), rkey, ..wr });
        }),
    );
    row("64 B READ", run(WrOpcode::RdmaRead, signaled, 64));
    row("64 B SEND (two CQEs)", run(WrOpcode::Send, signaled, 64));
    row("8 B FETCH_ADD", run(WrOpcode::AtomicFetchAndAdd, signaled, 8));
    row("4 KiB WRITE", run(WrOpcode::RdmaWrite, signaled, 4096));
    row("64 KiB WRITE", run(WrOpcode::RdmaWrite, signaled, 65536));
    drop(turn);
    a.mr.replace_memory(&cx, Some(pages(BASE, SIZE))).unwrap();
    b.mr.replace_memory(&cx, Some(pages(BASE, SIZE))).unwrap();
    let _turn = rcu::enter();
    row("pages in disorder: 64 B WRITE", run(WrOpcode::RdmaWrite, signaled, 64));
    row("pages in disorder: 4 KiB WRITE", run(WrOpcode::RdmaWrite, signaled, 4096));
    row("pages in disorder: 64 KiB WRITE", run(WrOpcode::RdmaWrite, signaled, 65536));
    let poller = hca.pollers().remove(0);
    let now = Instant::now();
    row(
        "an idle turn of the poller",
        measure(windows, |_| {
            black_box(poller.poll(now, 16));
        }),
    );
    black_box(&a.context);
}
