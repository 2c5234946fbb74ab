// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver that has every kind of object and does nothing with them but keep a ledger: what lives,
//! and whether the midlayer keeps its word (nothing is called after its destroy, or during it).

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use rdma_midlayer::attr::{AhAttr, DeviceAttr, GidEntry, PortAttr, QpAttr, QpAttrMask, QpCap};
use rdma_midlayer::driver::*;
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;
use rdma_midlayer::{Error, MaySleep, Result};

/// What the driver has seen.
#[derive(Default)]
pub struct Ledger {
    live: [AtomicI64; 10],
    next: AtomicU32,
    /// Broken promises.
    pub broken: Mutex<Vec<String>>,
    /// How many times each method spins, to be met inside.
    pub linger: AtomicUsize,
    /// While set, the next `alloc_pd` stays inside.
    pub hold_alloc_pd: AtomicBool,
    /// An `alloc_pd` is inside.
    pub in_alloc_pd: AtomicBool,
    /// Destroys that fail before one succeeds.
    pub fail_destroys: AtomicUsize,
    /// Calls of methods other than creations and destroys.
    pub calls: AtomicUsize,
    pub events: OnceLock<Arc<dyn EventSink>>,
    /// Where CQs report, for tests that complete something.
    pub cqs: Mutex<Vec<Arc<dyn CqEvents>>>,
}

/// Kinds, as indices of `Ledger::live`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Context,
    Pd,
    Mr,
    Cq,
    Qp,
    Srq,
    Ah,
    Mw,
    Fmr,
    Xrcd,
}

impl Ledger {
    pub fn live(&self, kind: Kind) -> i64 {
        self.live[kind as usize].load(Ordering::SeqCst)
    }

    pub fn all_live(&self) -> i64 {
        self.live.iter().map(|n| n.load(Ordering::SeqCst)).sum()
    }

    pub fn assert_kept(&self) {
        let broken = self.broken.lock().unwrap();
        assert!(broken.is_empty(), "{broken:?}");
    }

    fn broke(&self, what: String) {
        self.broken.lock().unwrap().push(what);
    }
}

/// The driver's end of an object.
struct Probe {
    ledger: Arc<Ledger>,
    kind: Kind,
    number: u32,
    inside: AtomicI64,
}

/// Added to `inside` by destroy.
const DESTROYED: i64 = 1 << 32;

impl Probe {
    fn new(ledger: &Arc<Ledger>, kind: Kind) -> Self {
        ledger.live[kind as usize].fetch_add(1, Ordering::SeqCst);
        let number = ledger.next.fetch_add(1, Ordering::SeqCst) + 1;
        Self { ledger: ledger.clone(), kind, number, inside: AtomicI64::new(0) }
    }

    fn call(&self) -> Call<'_> {
        self.ledger.calls.fetch_add(1, Ordering::Relaxed);
        if self.inside.fetch_add(1, Ordering::SeqCst) >= DESTROYED {
            self.ledger.broke(format!("{:?} called after its destroy", self.kind));
        }
        for _ in 0..self.ledger.linger.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
        Call(self)
    }

    fn destroy(&self) -> Result<()> {
        let less = |n: usize| n.checked_sub(1);
        let fails = &self.ledger.fail_destroys;
        if fails.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
            return Err(Error::Host(5));
        }
        match self.inside.fetch_add(DESTROYED, Ordering::SeqCst) {
            0 => {}
            n if n >= DESTROYED => self.ledger.broke(format!("{:?} destroyed twice", self.kind)),
            _ => self.ledger.broke(format!("{:?} destroyed while in use", self.kind)),
        }
        self.ledger.live[self.kind as usize].fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

struct Call<'a>(&'a Probe);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if self.0.inside.fetch_sub(1, Ordering::SeqCst) > DESTROYED {
            self.0.ledger.broke(format!("{:?} destroyed during a call", self.0.kind));
        }
    }
}

pub struct LedgerHca {
    name: String,
    pub ledger: Arc<Ledger>,
}

impl LedgerHca {
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(Self { name: name.to_owned(), ledger: Arc::default() })
    }
}

impl HcaDriver for LedgerHca {
    fn name(&self) -> &str {
        &self.name
    }

    fn query_device(&self, _cx: &MaySleep) -> Result<DeviceAttr> {
        Ok(DeviceAttr {
            max_mr_size: 1 << 30,
            max_qp_wr: 128,
            max_send_sge: 4,
            max_recv_sge: 4,
            max_inline: 64,
            max_cqe: 1024,
            max_srq_wr: 128,
            max_srq_sge: 4,
            max_qp_rd_atom: 16,
            max_qp_init_rd_atom: 16,
            max_fast_reg_page_list_len: 64,
            ..DeviceAttr::default()
        })
    }

    fn query_port(&self, _cx: &MaySleep, port: u8) -> Result<PortAttr> {
        if port > 2 {
            return Err(Error::Invalid("port"));
        }
        Ok(PortAttr {
            state: PortState::Active,
            max_mtu: Mtu::Mtu2048,
            active_mtu: Mtu::Mtu1024,
            max_msg_sz: 1 << 30,
            gid_tbl_len: 8,
            pkey_tbl_len: 1,
            active_width: 2,
            active_speed: 32,
        })
    }

    fn alloc_context(&self, _cx: &MaySleep, init: ContextInit) -> Result<Arc<dyn ContextDriver>> {
        let _ = self.ledger.events.set(init.events);
        Ok(Arc::new(Context(Probe::new(&self.ledger, Kind::Context))))
    }
}

struct Context(Probe);
struct Pd(Probe);
struct Mr(Probe);
struct Cq(Probe, AtomicU32);
struct Qp(Probe, QpCap, Mutex<QpAttr>);
struct Srq(Probe);
struct Ah(Probe, Mutex<AhAttr>);
struct Mw(Probe);
struct Fmr(Probe);
struct Xrcd(Probe);

impl ContextDriver for Context {
    fn add_gid(&self, _cx: &MaySleep, _index: u32, _entry: &GidEntry) -> Result<()> {
        drop(self.0.call());
        Ok(())
    }

    fn del_gid(&self, _cx: &MaySleep, _index: u32) -> Result<()> {
        drop(self.0.call());
        Ok(())
    }

    fn alloc_pd(&self, _cx: &MaySleep) -> Result<Arc<dyn PdDriver>> {
        let _call = self.0.call();
        let ledger = &self.0.ledger;
        while ledger.hold_alloc_pd.load(Ordering::SeqCst) {
            ledger.in_alloc_pd.store(true, Ordering::SeqCst);
            std::thread::yield_now();
        }
        Ok(Arc::new(Pd(Probe::new(ledger, Kind::Pd))))
    }

    fn create_cq(&self, _cx: &MaySleep, init: CqInit) -> Result<Arc<dyn CqDriver>> {
        let _call = self.0.call();
        self.0.ledger.cqs.lock().unwrap().push(init.events);
        Ok(Arc::new(Cq(Probe::new(&self.0.ledger, Kind::Cq), AtomicU32::new(init.cqe))))
    }

    fn alloc_xrcd(&self, _cx: &MaySleep) -> Result<Arc<dyn XrcdDriver>> {
        let _call = self.0.call();
        Ok(Arc::new(Xrcd(Probe::new(&self.0.ledger, Kind::Xrcd))))
    }

    fn suspend(&self, _cx: &MaySleep) -> Result<()> {
        drop(self.0.call());
        Ok(())
    }

    fn resume(&self, _cx: &MaySleep) -> Result<()> {
        drop(self.0.call());
        Ok(())
    }

    fn dealloc(&self, _cx: &MaySleep) -> Result<()> {
        self.0.destroy()
    }
}

impl PdDriver for Pd {
    fn reg_mr(&self, _cx: &MaySleep, _m: UserMemory, _a: Access) -> Result<Arc<dyn MrDriver>> {
        let _call = self.0.call();
        Ok(Arc::new(Mr(Probe::new(&self.0.ledger, Kind::Mr))))
    }

    fn create_qp(&self, _cx: &MaySleep, init: QpInit) -> Result<Arc<dyn QpDriver>> {
        let _call = self.0.call();
        let probe = Probe::new(&self.0.ledger, Kind::Qp);
        Ok(Arc::new(Qp(probe, init.cap, Mutex::new(QpAttr::default()))))
    }

    fn reg_dma_mr(
        &self,
        _cx: &MaySleep,
        _regions: Vec<UserMemory>,
        _access: Access,
    ) -> Result<Arc<dyn MrDriver>> {
        let _call = self.0.call();
        Ok(Arc::new(Mr(Probe::new(&self.0.ledger, Kind::Mr))))
    }

    fn alloc_mr(&self, _cx: &MaySleep, _max_pages: u32) -> Result<Arc<dyn MrDriver>> {
        let _call = self.0.call();
        Ok(Arc::new(Mr(Probe::new(&self.0.ledger, Kind::Mr))))
    }

    fn alloc_mw(&self, _cx: &MaySleep, _mw_type: MwType) -> Result<Arc<dyn MwDriver>> {
        let _call = self.0.call();
        Ok(Arc::new(Mw(Probe::new(&self.0.ledger, Kind::Mw))))
    }

    fn alloc_fmr(&self, _cx: &MaySleep, _f: FmrAttr, _a: Access) -> Result<Arc<dyn FmrDriver>> {
        let _call = self.0.call();
        Ok(Arc::new(Fmr(Probe::new(&self.0.ledger, Kind::Fmr))))
    }

    fn create_srq(&self, _cx: &MaySleep, _init: SrqInit) -> Result<Arc<dyn SrqDriver>> {
        let _call = self.0.call();
        Ok(Arc::new(Srq(Probe::new(&self.0.ledger, Kind::Srq))))
    }

    fn create_ah(&self, attr: &AhAttr) -> Result<Arc<dyn AhDriver>> {
        let _call = self.0.call();
        Ok(Arc::new(Ah(Probe::new(&self.0.ledger, Kind::Ah), Mutex::new(*attr))))
    }

    fn dealloc(&self, _cx: &MaySleep) -> Result<()> {
        self.0.destroy()
    }
}

impl MrDriver for Mr {
    fn lkey(&self) -> LKey {
        LKey(self.0.number << 8)
    }

    fn rkey(&self) -> RKey {
        RKey(self.0.number << 8)
    }

    fn replace_memory(&self, _cx: &MaySleep, _memory: Option<UserMemory>) -> Result<()> {
        drop(self.0.call());
        Ok(())
    }

    fn rereg(&self, _cx: &MaySleep, _change: MrChange) -> Result<()> {
        drop(self.0.call());
        Ok(())
    }

    fn dereg(&self, _cx: &MaySleep) -> Result<()> {
        self.0.destroy()
    }
}

impl CqDriver for Cq {
    fn cqn(&self) -> Cqn {
        Cqn(self.0.number)
    }

    fn cqe(&self) -> u32 {
        self.1.load(Ordering::Relaxed)
    }

    fn poll_cq(&self, _wcs: &mut Vec<WorkCompletion>, _max: usize) -> Result<usize> {
        drop(self.0.call());
        Ok(0)
    }

    fn req_notify_cq(&self, _notify: Notify) -> Result<bool> {
        drop(self.0.call());
        Ok(false)
    }

    fn resize(&self, _cx: &MaySleep, cqe: u32, _m: Option<Arc<dyn CqMemory>>) -> Result<()> {
        let _call = self.0.call();
        self.1.store(cqe, Ordering::Relaxed);
        Ok(())
    }

    fn destroy(&self, _cx: &MaySleep) -> Result<()> {
        self.0.destroy()
    }
}

impl QpDriver for Qp {
    fn qpn(&self) -> Qpn {
        Qpn(self.0.number)
    }

    fn cap(&self) -> QpCap {
        self.1
    }

    fn modify(&self, _cx: &MaySleep, attr: &QpAttr, _mask: QpAttrMask) -> Result<()> {
        let _call = self.0.call();
        self.2.lock().unwrap().state = attr.state;
        Ok(())
    }

    fn query(&self, _cx: &MaySleep) -> Result<QpAttr> {
        let _call = self.0.call();
        Ok(*self.2.lock().unwrap())
    }

    fn destroy(&self, _cx: &MaySleep) -> Result<()> {
        self.0.destroy()
    }

    fn post_send(&self, _wr: &SendWr<'_>) -> Result<()> {
        drop(self.0.call());
        Ok(())
    }

    fn post_malformed_send(&self, _wqe: MalformedWqe) -> Result<()> {
        drop(self.0.call());
        Ok(())
    }

    fn post_recv(&self, _wr: &RecvWr<'_>) -> Result<()> {
        drop(self.0.call());
        Ok(())
    }

    fn recv_posted(&self) {
        drop(self.0.call());
    }

    fn bind_mw(&self, mw: &Arc<dyn MwDriver>, _i: u64, _t: u32, _b: &MwBind) -> Result<RKey> {
        drop(self.0.call());
        Ok(RKey(mw.rkey().0 + 1))
    }

    fn attach_mcast(&self, _cx: &MaySleep, _gid: &Gid, _lid: u16) -> Result<()> {
        drop(self.0.call());
        Ok(())
    }

    fn detach_mcast(&self, _cx: &MaySleep, _gid: &Gid, _lid: u16) -> Result<()> {
        drop(self.0.call());
        Ok(())
    }
}

impl SrqDriver for Srq {
    fn srqn(&self) -> Srqn {
        Srqn(self.0.number)
    }

    fn arm_limit(&self, _cx: &MaySleep, _limit: u32) -> Result<()> {
        drop(self.0.call());
        Ok(())
    }

    fn query(&self, _cx: &MaySleep) -> Result<SrqAttr> {
        drop(self.0.call());
        Ok(SrqAttr::default())
    }

    fn post_recv(&self, _wr: &RecvWr<'_>) -> Result<()> {
        drop(self.0.call());
        Ok(())
    }

    fn recv_posted(&self) {
        drop(self.0.call());
    }

    fn destroy(&self, _cx: &MaySleep) -> Result<()> {
        self.0.destroy()
    }
}

impl AhDriver for Ah {
    fn modify(&self, attr: &AhAttr) -> Result<()> {
        let _call = self.0.call();
        // Contended for an instant only; whoever holds it never sleeps.
        while let Err(_busy) = self.1.try_lock().map(|mut now| *now = *attr) {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn query(&self) -> Result<AhAttr> {
        let _call = self.0.call();
        loop {
            if let Ok(attr) = self.1.try_lock() {
                return Ok(*attr);
            }
            std::hint::spin_loop();
        }
    }

    fn destroy(&self) -> Result<()> {
        self.0.destroy()
    }
}

impl MwDriver for Mw {
    fn rkey(&self) -> RKey {
        RKey(self.0.number << 8)
    }

    fn dealloc(&self, _cx: &MaySleep) -> Result<()> {
        self.0.destroy()
    }
}

impl FmrDriver for Fmr {
    fn lkey(&self) -> LKey {
        LKey(self.0.number << 8)
    }

    fn rkey(&self) -> RKey {
        RKey(self.0.number << 8)
    }

    fn map_phys_fmr(&self, _memory: Arc<UserMemory>) -> Result<()> {
        drop(self.0.call());
        Ok(())
    }

    fn unmap(&self, _cx: &MaySleep) -> Result<()> {
        drop(self.0.call());
        Ok(())
    }

    fn dealloc(&self, _cx: &MaySleep) -> Result<()> {
        self.0.destroy()
    }
}

impl XrcdDriver for Xrcd {
    fn dealloc(&self, _cx: &MaySleep) -> Result<()> {
        self.0.destroy()
    }
}
