// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A consumer to start from: a client that makes two connected QPs on every device that comes, sends
//! messages between them, hears of their completions in a handler, and leaves nothing behind when the
//! device goes. `cargo run -p rdma-midlayer --example consumer`

#[path = "loopback_hca.rs"]
mod loopback_hca;

use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock};

use rdma_midlayer::attr::{QpAttr, QpAttrMask, QpCap};
use rdma_midlayer::driver::Notify;
use rdma_midlayer::memory::{Mapping, Run, UserMemory};
use rdma_midlayer::types::{Access, QpState, QpType, RKey, WrOpcode};
use rdma_midlayer::work::{RecvWr, SendData, SendFlags, SendWr, Sge, WorkCompletion};
use rdma_midlayer::{
    Client, Context, ContextSpec, Cq, CqSpec, Device, MaySleep, Midlayer, Mr, Pd, Qp, QpSpec,
    Result,
};

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    // The one place where a thread gets the right to sleep: its entry point.
    let cx = MaySleep::claim().ok_or("this thread has a token already")?;
    for line in run(&cx)? {
        println!("{line}");
    }
    Ok(())
}

/// One device comes, is used, and goes; answers what happened.
pub fn run(cx: &MaySleep) -> std::result::Result<Vec<String>, Box<dyn std::error::Error>> {
    let midlayer = Midlayer::new();
    let pingers = Arc::new(Pingers::default());
    let client = midlayer.register_client(cx, pingers.clone())?;
    let device = midlayer.register_device(cx, loopback_hca::Loopback::new("loop0"))?;
    let lines = pingers.ping_all(3)?;
    midlayer.unregister_device(cx, device)?;
    midlayer.unregister_client(cx, client)?;
    Ok(lines)
}

/// The client: one pinger for each device.
#[derive(Default)]
pub struct Pingers(Mutex<Vec<(Device, Pinger)>>);

impl Pingers {
    /// Sends `count` messages on every device.
    pub fn ping_all(&self, count: u64) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let pingers = self.0.lock().unwrap_or_else(|e| e.into_inner());
        for (device, pinger) in pingers.iter() {
            for n in 0..count {
                let wc = pinger.ping(n)?;
                let (id, len, status) = (wc.wr_id, wc.byte_len, wc.status);
                lines.push(format!("{}: message {id}, {len} bytes: {status:?}", device.name()));
            }
        }
        Ok(lines)
    }
}

impl Client for Pingers {
    fn name(&self) -> &str {
        "pingers"
    }

    fn add(&self, cx: &MaySleep, device: &Device) {
        match Pinger::new(cx, device) {
            Ok(pinger) => {
                self.0.lock().unwrap_or_else(|e| e.into_inner()).push((device.clone(), pinger));
            }
            Err(error) => eprintln!("{}: {error}", device.name()),
        }
    }

    fn remove(&self, cx: &MaySleep, device: &Device) {
        let gone = {
            let mut pingers = self.0.lock().unwrap_or_else(|e| e.into_inner());
            let at = pingers.iter().position(|(d, _)| d.same(device));
            at.map(|at| pingers.remove(at).1)
        };
        // Our own lock is free again: ending objects may sleep.
        if let Some(Err(error)) = gone.map(|pinger| pinger.end(cx)) {
            eprintln!("{}: {error}", device.name());
        }
    }
}

/// Two connected QPs on one device.
struct Pinger {
    context: Arc<Context>,
    pd: Arc<Pd>,
    cq: Arc<Cq>,
    mr: Arc<Mr>,
    qps: [Arc<Qp>; 2],
    received: Receiver<WorkCompletion>,
    /// The handler finds its CQ here; weakly, or neither would ever be freed.
    _cell: Arc<OnceLock<Arc<Cq>>>,
}

impl Pinger {
    fn new(cx: &MaySleep, device: &Device) -> Result<Self> {
        let context = device.alloc_context(cx, ContextSpec::default())?;
        let pd = context.alloc_pd(cx)?;
        let mr = pd.reg_mr(cx, buffer(0x1000, 4096), Access::LOCAL_WRITE)?;
        // The handler polls its own CQ, which there is only after it: hence the cell.
        let cell: Arc<OnceLock<Arc<Cq>>> = Arc::default();
        let (sender, received) = channel();
        let handler = {
            let (cell, sender) = (Arc::downgrade(&cell), Mutex::new(sender));
            move |_solicited| {
                let Some(cell) = cell.upgrade() else { return };
                let Some(cq) = cell.get() else { return };
                let sender = sender.lock().unwrap_or_else(|e| e.into_inner());
                drain(cq, |wc| {
                    let _ = sender.send(wc);
                });
            }
        };
        let cap = QpCap {
            max_send_wr: 16,
            max_recv_wr: 16,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline: 64,
        };
        let spec = CqSpec { cqe: 64, handler: Some(Box::new(handler)), ..CqSpec::default() };
        let cq = context.create_cq(cx, spec)?;
        let _ = cell.set(cq.clone());
        let make = || pd.create_qp(cx, QpSpec::new(QpType::Rc, &cq, cap));
        let qps = [make()?, make()?];
        connect(cx, &qps[0], &qps[1])?;
        connect(cx, &qps[1], &qps[0])?;
        cq.req_notify_cq(Notify::Next)?;
        Ok(Self { context, pd, cq, mr, qps, received, _cell: cell })
    }

    fn ping(&self, wr_id: u64) -> Result<WorkCompletion> {
        let sge = Sge { addr: 0x1000, length: 64, lkey: self.mr.lkey() };
        self.qps[1].post_recv(&RecvWr { wr_id, ticket: 0, sges: &[sge] })?;
        self.qps[0].post_send(&SendWr {
            wr_id,
            ticket: 0,
            opcode: WrOpcode::Send,
            flags: SendFlags::default(),
            data: SendData::Inline(b"ping"),
            imm: 0,
            remote_addr: 0,
            rkey: RKey(0),
            compare_add: 0,
            swap: 0,
            ud: None,
            srqn: None,
        })?;
        self.received.recv().map_err(|_| rdma_midlayer::Error::Gone)
    }

    /// Ends everything, dependents first.
    fn end(self, cx: &MaySleep) -> Result<()> {
        self.qps.iter().try_for_each(|qp| qp.destroy(cx))?;
        self.cq.destroy(cx)?;
        self.mr.dereg(cx)?;
        self.pd.dealloc(cx)?;
        self.context.dealloc(cx)
    }
}

/// What every completion handler does: poll, arm, and poll again if something came in between.
fn drain(cq: &Cq, each: impl Fn(WorkCompletion)) {
    let mut wcs = Vec::with_capacity(16);
    loop {
        wcs.clear();
        // `Gone`: the CQ is being destroyed, nobody waits for its completions.
        let Ok(polled) = cq.poll_cq(&mut wcs, 16) else { return };
        wcs.iter().for_each(|wc| each(*wc));
        if polled == 0 && cq.req_notify_cq(Notify::Next) != Ok(true) {
            return;
        }
    }
}

fn connect(cx: &MaySleep, qp: &Qp, peer: &Qp) -> Result<()> {
    use QpAttrMask as M;
    let attr = |state| QpAttr { state, dest_qpn: peer.qpn(), ..QpAttr::default() };
    qp.modify(cx, &attr(QpState::Init), M::STATE | M::PKEY_INDEX | M::PORT | M::ACCESS_FLAGS)?;
    let path = M::AV | M::PATH_MTU | M::DEST_QPN | M::RQ_PSN;
    let rtr = M::STATE | path | M::MAX_DEST_RD_ATOMIC | M::MIN_RNR_TIMER;
    qp.modify(cx, &attr(QpState::Rtr), rtr)?;
    let retry = M::TIMEOUT | M::RETRY_CNT | M::RNR_RETRY | M::MAX_QP_RD_ATOMIC;
    qp.modify(cx, &attr(QpState::Rts), M::STATE | M::SQ_PSN | retry)
}

struct Owned(Box<[AtomicU64]>);

// SAFETY: the box lives as long as the value; atomics allow writes through a shared pointer.
unsafe impl Mapping for Owned {
    fn base(&self) -> *mut u8 {
        self.0.as_ptr().cast_mut().cast()
    }

    fn len(&self) -> usize {
        self.0.len() * 8
    }
}

fn buffer(start: u64, bytes: usize) -> UserMemory {
    let mapping = Arc::new(Owned((0..bytes / 8).map(|_| AtomicU64::new(0)).collect()));
    let run = Run { mapping, offset: 0, len: bytes };
    UserMemory::new(start, bytes as u64, 0, None, [run]).expect("one run of that length")
}
