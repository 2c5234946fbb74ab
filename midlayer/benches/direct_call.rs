// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the midlayer adds to a call of the driver: post_send and poll_cq through the handles, against
//! the same calls on the driver's object. `cargo bench -p rdma-midlayer`
//!
//! The two are timed in turns, in rounds of ten thousand; the fastest round of each counts, since all
//! that disturbs makes slower. Ends with an error if more than 5 ns are added.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use rdma_midlayer::attr::{DeviceAttr, GidEntry, PortAttr, QpAttr, QpAttrMask, QpCap};
use rdma_midlayer::driver::*;
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;
use rdma_midlayer::{
    Client, Context, ContextSpec, CqSpec, Device, Error, MaySleep, Midlayer, QpSpec, Result, rcu,
};

const CALLS: u32 = 10_000;
const ROUNDS: usize = 300;
const LIMIT_NS: f64 = 5.0;

fn main() -> ExitCode {
    let Some(cx) = MaySleep::claim() else { return ExitCode::FAILURE };
    let midlayer = Midlayer::new();
    let holder = Arc::new(Holder::default());
    let null = Arc::new(Null::default());
    let registered = midlayer
        .register_client(&cx, holder.clone())
        .and_then(|client| Ok((client, midlayer.register_device(&cx, null.clone())?)));
    let Ok((client, device)) = registered else { return ExitCode::FAILURE };
    let ok = measure(&cx, &null, &holder).unwrap_or(false);
    let _ = midlayer.unregister_device(&cx, device);
    let _ = midlayer.unregister_client(&cx, client);
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(cx: &MaySleep, null: &Null, holder: &Holder) -> Option<bool> {
    let context: Arc<Context> = holder.0.get()?.alloc_context(cx, ContextSpec::default()).ok()?;
    let pd = context.alloc_pd(cx).ok()?;
    let cq = context.create_cq(cx, CqSpec { cqe: 16, ..CqSpec::default() }).ok()?;
    let cap = QpCap { max_send_wr: 8, max_send_sge: 1, ..QpCap::default() };
    let qp = pd.create_qp(cx, QpSpec::new(QpType::Rc, &cq, cap)).ok()?;
    // RCU has made its readers' fences cheap from the first writer on, which there is in any process
    // that has ever destroyed something.
    rcu::synchronize(cx);

    let objects = null.made.lock().ok()?.take()?;
    let (direct_qp, direct_cq) = (objects.0 as Arc<dyn QpDriver>, objects.1 as Arc<dyn CqDriver>);
    let wr = SendWr {
        wr_id: 1,
        ticket: 0,
        opcode: WrOpcode::Send,
        flags: SendFlags::default(),
        data: SendData::Sges(&[]),
        imm: 0,
        remote_addr: 0,
        rkey: RKey(0),
        compare_add: 0,
        swap: 0,
        ud: None,
        srqn: None,
    };
    let mut wcs = Vec::with_capacity(16);
    let mut fine = true;
    for inside in [false, true] {
        let guard = inside.then(rcu::enter);
        let turn = if inside { "inside a worker's turn" } else { "on its own" };
        let post = compare(
            || sink(black_box(&direct_qp).post_send(black_box(&wr))),
            || sink(black_box(&qp).post_send(black_box(&wr))),
        );
        fine &= report(&format!("post_send, {turn}"), post);
        let wcs = std::cell::RefCell::new(&mut wcs);
        let poll = compare(
            || sink(black_box(&direct_cq).poll_cq(&mut wcs.borrow_mut(), 16)),
            || sink(black_box(&cq).poll_cq(&mut wcs.borrow_mut(), 16)),
        );
        fine &= report(&format!("poll_cq, {turn}"), poll);
        drop(guard);
    }
    qp.destroy(cx).ok()?;
    cq.destroy(cx).ok()?;
    pd.dealloc(cx).ok()?;
    context.dealloc(cx).ok()?;
    Some(fine)
}

/// Keeps the compiler from leaving the call out.
#[inline]
fn sink<T>(answer: T) {
    let _ = black_box(answer);
}

/// Nanoseconds a call, of each.
fn compare(mut direct: impl FnMut(), mut through: impl FnMut()) -> [f64; 2] {
    let mut best = [f64::MAX; 2];
    for _ in 0..ROUNDS {
        best[0] = best[0].min(round(&mut direct));
        best[1] = best[1].min(round(&mut through));
    }
    best
}

fn round(call: &mut impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..CALLS {
        call();
    }
    start.elapsed().as_nanos() as f64 / f64::from(CALLS)
}

fn report(what: &str, [direct, through]: [f64; 2]) -> bool {
    let added = through - direct;
    println!("{what:38} driver {direct:5.1} ns, midlayer {through:5.1} ns: {added:+.1} ns");
    added <= LIMIT_NS
}

#[derive(Default)]
struct Holder(OnceLock<Device>);

impl Client for Holder {
    fn name(&self) -> &str {
        "bench"
    }

    fn add(&self, _cx: &MaySleep, device: &Device) {
        let _ = self.0.set(device.clone());
    }

    fn remove(&self, _cx: &MaySleep, _device: &Device) {}
}

type Made = Mutex<Option<(Arc<NullQp>, Arc<NullCq>)>>;

/// An HCA that does nothing, as fast as possible.
#[derive(Default)]
struct Null {
    made: Arc<Made>,
}

struct NullContext(Arc<Made>);
struct NullPd(Arc<Made>);
struct NullCq;
struct NullQp;

impl HcaDriver for Null {
    fn name(&self) -> &str {
        "null"
    }

    fn query_device(&self, _cx: &MaySleep) -> Result<DeviceAttr> {
        Ok(DeviceAttr { max_cqe: 16, max_qp_wr: 8, max_send_sge: 1, ..DeviceAttr::default() })
    }

    fn query_port(&self, _cx: &MaySleep, port: u8) -> Result<PortAttr> {
        if port > 1 {
            return Err(Error::Invalid("port"));
        }
        Ok(PortAttr {
            state: PortState::Active,
            max_mtu: Mtu::Mtu4096,
            active_mtu: Mtu::Mtu4096,
            max_msg_sz: 1,
            gid_tbl_len: 1,
            pkey_tbl_len: 1,
            active_width: 1,
            active_speed: 1,
        })
    }

    fn alloc_context(&self, _cx: &MaySleep, _init: ContextInit) -> Result<Arc<dyn ContextDriver>> {
        Ok(Arc::new(NullContext(self.made.clone())))
    }
}

impl ContextDriver for NullContext {
    fn add_gid(&self, _cx: &MaySleep, _index: u32, _entry: &GidEntry) -> Result<()> {
        Ok(())
    }

    fn del_gid(&self, _cx: &MaySleep, _index: u32) -> Result<()> {
        Ok(())
    }

    fn alloc_pd(&self, _cx: &MaySleep) -> Result<Arc<dyn PdDriver>> {
        Ok(Arc::new(NullPd(self.0.clone())))
    }

    fn create_cq(&self, _cx: &MaySleep, _init: CqInit) -> Result<Arc<dyn CqDriver>> {
        Ok(Arc::new(NullCq))
    }

    fn suspend(&self, _cx: &MaySleep) -> Result<()> {
        Ok(())
    }

    fn resume(&self, _cx: &MaySleep) -> Result<()> {
        Ok(())
    }

    fn dealloc(&self, _cx: &MaySleep) -> Result<()> {
        Ok(())
    }
}

impl PdDriver for NullPd {
    fn reg_mr(&self, _cx: &MaySleep, _m: UserMemory, _a: Access) -> Result<Arc<dyn MrDriver>> {
        Err(Error::Unsupported("MRs"))
    }

    fn create_qp(&self, _cx: &MaySleep, init: QpInit) -> Result<Arc<dyn QpDriver>> {
        let qp = Arc::new(NullQp);
        if let Ok(mut made) = self.0.lock() {
            *made = Some((qp.clone(), own(init.send_cq)?));
        }
        Ok(qp)
    }

    fn dealloc(&self, _cx: &MaySleep) -> Result<()> {
        Ok(())
    }
}

impl CqDriver for NullCq {
    fn cqn(&self) -> Cqn {
        Cqn(1)
    }

    fn cqe(&self) -> u32 {
        16
    }

    fn poll_cq(&self, _wcs: &mut Vec<WorkCompletion>, max: usize) -> Result<usize> {
        Ok(black_box(max) - max)
    }

    fn req_notify_cq(&self, _notify: Notify) -> Result<bool> {
        Ok(false)
    }

    fn destroy(&self, _cx: &MaySleep) -> Result<()> {
        Ok(())
    }
}

impl QpDriver for NullQp {
    fn qpn(&self) -> Qpn {
        Qpn(1)
    }

    fn cap(&self) -> QpCap {
        QpCap { max_send_wr: 8, max_send_sge: 1, ..QpCap::default() }
    }

    fn modify(&self, _cx: &MaySleep, _attr: &QpAttr, _mask: QpAttrMask) -> Result<()> {
        Ok(())
    }

    fn query(&self, _cx: &MaySleep) -> Result<QpAttr> {
        Ok(QpAttr::default())
    }

    fn destroy(&self, _cx: &MaySleep) -> Result<()> {
        Ok(())
    }

    fn post_send(&self, wr: &SendWr<'_>) -> Result<()> {
        black_box(wr.wr_id);
        Ok(())
    }

    fn post_malformed_send(&self, _wqe: MalformedWqe) -> Result<()> {
        Ok(())
    }

    fn post_recv(&self, _wr: &RecvWr<'_>) -> Result<()> {
        Ok(())
    }

    fn recv_posted(&self) {}
}
