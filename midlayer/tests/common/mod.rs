// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests share: two HCAs (the example, and one that keeps a ledger), clients that write down
//! what happens to them, memory, and a quick way to a device.
#![allow(dead_code, unused_imports, reason = "each test uses a part")]

pub mod ledger;
#[path = "../../examples/loopback_hca.rs"]
mod loopback_hca;

pub use ledger::{Kind, Ledger, LedgerHca};
pub use loopback_hca::Loopback;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdma_midlayer::attr::{AhAttr, QpAttr, QpAttrMask, QpCap};
use rdma_midlayer::driver::HcaDriver;
use rdma_midlayer::memory::{Mapping, Run, UserMemory};
use rdma_midlayer::types::{Access, Mtu, Psn, QpState};
use rdma_midlayer::types::{RKey, WrOpcode};
use rdma_midlayer::work::{SendData, SendFlags, SendWr, Sge};
use rdma_midlayer::{
    Client, ClientRegistration, Context, ContextSpec, Device, MaySleep, Midlayer, Pd, Qp,
    Registration,
};

pub type Log = Arc<Mutex<Vec<String>>>;

pub struct Recorder {
    name: String,
    log: Log,
}

impl Client for Recorder {
    fn name(&self) -> &str {
        &self.name
    }

    fn add(&self, _cx: &MaySleep, device: &Device) {
        self.log.lock().unwrap().push(format!("+{}:{}", self.name, device.name()));
    }

    fn remove(&self, _cx: &MaySleep, device: &Device) {
        self.log.lock().unwrap().push(format!("-{}:{}", self.name, device.name()));
    }
}

/// A log, and a maker of clients that write into it.
pub fn recorder() -> (Log, impl Fn(&str) -> Arc<Recorder>) {
    let log = Log::default();
    let make = {
        let log = log.clone();
        move |name: &str| Arc::new(Recorder { name: name.to_owned(), log: log.clone() })
    };
    (log, make)
}

/// A client made of two closures.
pub struct Hooks<A, R> {
    pub name: &'static str,
    pub add: A,
    pub remove: R,
}

impl<A, R> Client for Hooks<A, R>
where
    A: Fn(&MaySleep, &Device) + Send + Sync + 'static,
    R: Fn(&MaySleep, &Device) + Send + Sync + 'static,
{
    fn name(&self) -> &str {
        self.name
    }

    fn add(&self, cx: &MaySleep, device: &Device) {
        (self.add)(cx, device);
    }

    fn remove(&self, cx: &MaySleep, device: &Device) {
        (self.remove)(cx, device);
    }
}

/// A client that keeps the devices it was told of.
#[derive(Default)]
pub struct Keeper(pub Mutex<Vec<Device>>);

impl Client for Keeper {
    fn name(&self) -> &str {
        "keeper"
    }

    fn add(&self, _cx: &MaySleep, device: &Device) {
        self.0.lock().unwrap().push(device.clone());
    }

    fn remove(&self, _cx: &MaySleep, device: &Device) {
        self.0.lock().unwrap().retain(|other| !other.same(device));
    }
}

/// A midlayer with one device and one client, and what is needed to end them.
pub struct Stage {
    pub midlayer: Midlayer,
    pub device: Device,
    registration: Registration,
    client: ClientRegistration,
}

impl Stage {
    pub fn new(cx: &MaySleep, driver: Arc<dyn HcaDriver>) -> Self {
        let midlayer = Midlayer::new();
        let keeper = Arc::new(Keeper::default());
        let client = midlayer.register_client(cx, keeper.clone()).unwrap();
        let registration = midlayer.register_device(cx, driver).unwrap();
        let device = keeper.0.lock().unwrap()[0].clone();
        Self { midlayer, device, registration, client }
    }

    /// The same with a context of the device and a PD in it.
    pub fn open(cx: &MaySleep, driver: Arc<dyn HcaDriver>) -> (Self, Arc<Context>, Arc<Pd>) {
        let stage = Self::new(cx, driver);
        let context = stage.device.alloc_context(cx, ContextSpec::default()).unwrap();
        let pd = context.alloc_pd(cx).unwrap();
        (stage, context, pd)
    }

    /// Ends what `open` made, of which nothing may be in use.
    pub fn close(self, cx: &MaySleep, context: Arc<Context>, pd: Arc<Pd>) {
        pd.dealloc(cx).unwrap();
        context.dealloc(cx).unwrap();
        self.end(cx);
    }

    /// Ends both; everything must be gone.
    pub fn end(self, cx: &MaySleep) {
        self.midlayer.unregister_device(cx, self.registration).unwrap();
        self.midlayer.unregister_client(cx, self.client).unwrap();
    }

    /// Ends the device, whatever is left.
    pub fn tear(self, cx: &MaySleep) -> String {
        let end = self.midlayer.unregister_device(cx, self.registration);
        self.midlayer.unregister_client(cx, self.client).unwrap();
        end.map_or_else(|e| e.to_string(), |()| String::new())
    }
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

/// Zeroed memory that appears at `start`; a multiple of 8 bytes.
pub fn memory(start: u64, bytes: usize) -> UserMemory {
    let mapping = Arc::new(Owned((0..bytes / 8).map(|_| AtomicU64::new(0)).collect()));
    let run = Run { mapping, offset: 0, len: bytes };
    UserMemory::new(start, bytes as u64, 0, None, [run]).unwrap()
}

pub const CAP: QpCap =
    QpCap { max_send_wr: 64, max_recv_wr: 64, max_send_sge: 1, max_recv_sge: 1, max_inline: 64 };

/// Takes an RC QP from RESET to RTS, connected to `peer`.
pub fn connect(cx: &MaySleep, qp: &Qp, peer: &Qp) {
    for (state, attr, mask) in path_to_rts(peer) {
        qp.modify(cx, &attr, mask).unwrap_or_else(|e| panic!("to {state:?}: {e}"));
    }
}

fn path_to_rts(peer: &Qp) -> [(QpState, QpAttr, QpAttrMask); 3] {
    use QpAttrMask as M;
    let attr = |state| QpAttr { state, dest_qpn: peer.qpn(), ..QpAttr::default() };
    [
        (
            QpState::Init,
            QpAttr { access: Access::LOCAL_WRITE, ..attr(QpState::Init) },
            M::STATE | M::PKEY_INDEX | M::PORT | M::ACCESS_FLAGS,
        ),
        (
            QpState::Rtr,
            attr(QpState::Rtr),
            M::STATE
                | M::AV
                | M::PATH_MTU
                | M::DEST_QPN
                | M::RQ_PSN
                | M::MAX_DEST_RD_ATOMIC
                | M::MIN_RNR_TIMER,
        ),
        (
            QpState::Rts,
            attr(QpState::Rts),
            M::STATE | M::SQ_PSN | M::TIMEOUT | M::RETRY_CNT | M::RNR_RETRY | M::MAX_QP_RD_ATOMIC,
        ),
    ]
}

/// A signalled SEND.
pub fn send(wr_id: u64, data: SendData<'_>) -> SendWr<'_> {
    SendWr {
        wr_id,
        ticket: 0,
        opcode: WrOpcode::Send,
        flags: SendFlags::SIGNALED,
        data,
        imm: 0,
        remote_addr: 0,
        rkey: RKey(0),
        compare_add: 0,
        swap: 0,
        ud: None,
        srqn: None,
    }
}

/// How long a test waits for what must come: long, for machines that are busy with VMs.
pub const LONG: Duration = Duration::from_secs(60);

/// Waits until something holds; [`LONG`] at the most.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
