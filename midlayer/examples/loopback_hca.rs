// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A small HCA to start a driver from: RC QPs of one context that are connected to each other; SEND
//! moves the bytes inside `post_send`. Read `docs/midlayer.md` beside it.
//!
//! What it shows: objects found by number without a lock that sleeps, completions made inside a verb
//! and reported through `CqEvents`, destroys that wait until nothing is in use. Not here: packets,
//! retries, timers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use rdma_midlayer::attr::{DeviceAttr, GidEntry, PortAttr, QpAttr, QpAttrMask, QpCap};
use rdma_midlayer::driver::*;
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::rcu::{self, Table};
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;
use rdma_midlayer::{Error, MaySleep, Result};

/// Numbers of QPs, CQs and MRs are below this.
const MAX: usize = 1024;

/// Locks by spinning: nothing sleeps while it holds one of these, so that waiting is short, and verbs
/// that may not sleep can do it.
fn spin<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    loop {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(_) => std::hint::spin_loop(),
        }
    }
}

/// Puts an object at the first free number of a table.
fn publish<T>(
    table: &Table<T>,
    next: &AtomicUsize,
    make: impl Fn(u32) -> Arc<T>,
) -> Result<Arc<T>> {
    for _ in 0..MAX {
        let n = next.fetch_add(1, Ordering::Relaxed) % MAX;
        let object = make(n as u32);
        if n > 0 && table.insert(n, object.clone()).is_ok() {
            return Ok(object);
        }
    }
    Err(Error::Limit("objects of this kind"))
}

/// The HCA.
pub struct Loopback {
    name: String,
    /// Where it reports events of the device as a whole.
    pub events: OnceLock<Arc<dyn EventSink>>,
}

impl Loopback {
    /// One with this name.
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(Self { name: name.to_owned(), events: OnceLock::new() })
    }
}

impl HcaDriver for Loopback {
    fn name(&self) -> &str {
        &self.name
    }

    fn query_device(&self, _cx: &MaySleep) -> Result<DeviceAttr> {
        Ok(DeviceAttr {
            max_mr_size: 1 << 31,
            max_qp: MAX as u32,
            max_qp_wr: 4096,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline: 256,
            max_cq: MAX as u32,
            max_cqe: 1 << 16,
            max_mr: MAX as u32,
            max_pd: MAX as u32,
            ..DeviceAttr::default()
        })
    }

    fn query_port(&self, _cx: &MaySleep, port: u8) -> Result<PortAttr> {
        if port != 1 {
            return Err(Error::Invalid("port"));
        }
        Ok(PortAttr {
            state: PortState::Active,
            max_mtu: Mtu::Mtu4096,
            active_mtu: Mtu::Mtu4096,
            max_msg_sz: 1 << 31,
            gid_tbl_len: 16,
            pkey_tbl_len: 1,
            active_width: 2,
            active_speed: 32,
        })
    }

    fn alloc_context(&self, _cx: &MaySleep, init: ContextInit) -> Result<Arc<dyn ContextDriver>> {
        let next = || AtomicUsize::new(1);
        Ok(Arc::new(LoopContext(Arc::new(Tables {
            events: init.events,
            qps: Table::new(MAX),
            cqs: Table::new(MAX),
            mrs: Table::new(MAX),
            next: [next(), next(), next()],
        }))))
    }

    fn set_event_sink(&self, events: Arc<dyn EventSink>) {
        let _ = self.events.set(events);
    }
}

/// What the objects of a context share.
struct Tables {
    events: Arc<dyn EventSink>,
    qps: Table<LoopQp>,
    cqs: Table<LoopCq>,
    mrs: Table<LoopMr>,
    next: [AtomicUsize; 3],
}

struct LoopContext(Arc<Tables>);

impl ContextDriver for LoopContext {
    fn add_gid(&self, _cx: &MaySleep, _index: u32, _entry: &GidEntry) -> Result<()> {
        Ok(())
    }

    fn del_gid(&self, _cx: &MaySleep, _index: u32) -> Result<()> {
        Ok(())
    }

    fn alloc_pd(&self, _cx: &MaySleep) -> Result<Arc<dyn PdDriver>> {
        Ok(Arc::new(LoopPd(self.0.clone())))
    }

    fn create_cq(&self, _cx: &MaySleep, init: CqInit) -> Result<Arc<dyn CqDriver>> {
        let (memory, events) = (init.memory, init.events);
        Ok(publish(&self.0.cqs, &self.0.next[1], |n| {
            Arc::new(LoopCq {
                cqn: Cqn(n),
                cqe: init.cqe,
                memory: memory.clone(),
                events: events.clone(),
                wcs: Mutex::new(VecDeque::with_capacity(init.cqe as usize)),
                of: self.0.clone(),
            })
        })?)
    }

    fn suspend(&self, _cx: &MaySleep) -> Result<()> {
        Err(Error::Unsupported("suspend"))
    }

    fn resume(&self, _cx: &MaySleep) -> Result<()> {
        Err(Error::Unsupported("resume"))
    }

    fn dealloc(&self, _cx: &MaySleep) -> Result<()> {
        Ok(())
    }
}

struct LoopPd(Arc<Tables>);

impl PdDriver for LoopPd {
    fn reg_mr(
        &self,
        _cx: &MaySleep,
        memory: UserMemory,
        _access: Access,
    ) -> Result<Arc<dyn MrDriver>> {
        let memory = Mutex::new(Some(Arc::new(memory)));
        let memory = Arc::new(memory);
        Ok(publish(&self.0.mrs, &self.0.next[2], |n| {
            Arc::new(LoopMr { key: n, memory: memory.clone(), of: self.0.clone() })
        })?)
    }

    fn create_qp(&self, _cx: &MaySleep, init: QpInit) -> Result<Arc<dyn QpDriver>> {
        if init.qp_type != QpType::Rc {
            return Err(Error::Unsupported("QPs other than RC"));
        }
        let (send_cq, recv_cq) = (own::<LoopCq>(init.send_cq)?, own::<LoopCq>(init.recv_cq)?);
        Ok(publish(&self.0.qps, &self.0.next[0], |n| {
            Arc::new(LoopQp {
                qpn: Qpn(n),
                cap: init.cap,
                signal_all: init.signal_all,
                send_cq: send_cq.clone(),
                recv_cq: recv_cq.clone(),
                attr: Mutex::new(QpAttr::default()),
                recvs: Mutex::new(VecDeque::with_capacity(init.cap.max_recv_wr as usize)),
                of: self.0.clone(),
            })
        })?)
    }

    fn dealloc(&self, _cx: &MaySleep) -> Result<()> {
        Ok(())
    }
}

struct LoopMr {
    key: u32,
    memory: Arc<Mutex<Option<Arc<UserMemory>>>>,
    of: Arc<Tables>,
}

impl MrDriver for LoopMr {
    fn lkey(&self) -> LKey {
        LKey(self.key)
    }

    fn rkey(&self) -> RKey {
        RKey(self.key)
    }

    fn replace_memory(&self, cx: &MaySleep, memory: Option<UserMemory>) -> Result<()> {
        let old = std::mem::replace(&mut *spin(&self.memory), memory.map(Arc::new));
        // Whoever uses the old memory is inside a guard.
        rcu::synchronize(cx);
        drop(old);
        Ok(())
    }

    fn dereg(&self, cx: &MaySleep) -> Result<()> {
        self.of.mrs.remove(cx, self.key as usize);
        Ok(())
    }
}

struct LoopCq {
    cqn: Cqn,
    cqe: u32,
    memory: Option<Arc<dyn CqMemory>>,
    events: Arc<dyn CqEvents>,
    /// Held while the consumer's memory is written too: no two calls of `push` at once.
    wcs: Mutex<VecDeque<WorkCompletion>>,
    of: Arc<Tables>,
}

impl LoopCq {
    fn push(&self, wc: &WorkCompletion, solicited: bool) {
        let mut wcs = spin(&self.wcs);
        let pushed = match &self.memory {
            Some(memory) => memory.push(wc),
            None if wcs.len() < self.cqe as usize => {
                wcs.push_back(*wc);
                Ok(())
            }
            None => Err(Overflow),
        };
        drop(wcs);
        match pushed {
            Ok(()) => self.events.completed(solicited || wc.status != WcStatus::Success),
            Err(Overflow) => self.of.events.dispatch(AsyncEvent::CqErr(self.cqn)),
        }
    }
}

impl CqDriver for LoopCq {
    fn cqn(&self) -> Cqn {
        self.cqn
    }

    fn cqe(&self) -> u32 {
        self.cqe
    }

    fn poll_cq(&self, to: &mut Vec<WorkCompletion>, max: usize) -> Result<usize> {
        if self.memory.is_some() {
            return Err(Error::Unsupported("poll_cq of a CQ in consumer memory"));
        }
        let mut wcs = spin(&self.wcs);
        let n = max.min(wcs.len());
        to.extend(wcs.drain(..n));
        Ok(n)
    }

    fn req_notify_cq(&self, _notify: Notify) -> Result<bool> {
        // What is asked for the midlayer keeps; here is only the answer.
        Ok(!spin(&self.wcs).is_empty())
    }

    fn destroy(&self, cx: &MaySleep) -> Result<()> {
        self.of.cqs.remove(cx, self.cqn.0 as usize);
        Ok(())
    }
}

struct LoopQp {
    qpn: Qpn,
    cap: QpCap,
    signal_all: bool,
    send_cq: Arc<LoopCq>,
    recv_cq: Arc<LoopCq>,
    attr: Mutex<QpAttr>,
    recvs: Mutex<VecDeque<(u64, u32, Sge)>>,
    of: Arc<Tables>,
}

impl LoopQp {
    fn completion(&self, wr_id: u64, ticket: u32, opcode: WcOpcode) -> WorkCompletion {
        WorkCompletion {
            wr_id,
            ticket,
            status: WcStatus::Success,
            opcode,
            flags: WcFlags::default(),
            qpn: self.qpn,
            byte_len: 0,
            imm: 0,
            src_qpn: Qpn(0),
            vendor_err: 0,
            vlan: 0,
            sl: 0,
        }
    }

    /// Copies a message into the oldest receive WR of the peer; what comes of it for both sides.
    fn deliver(&self, wr: &SendWr<'_>) -> WcStatus {
        let guard = rcu::enter();
        let dest = spin(&self.attr).dest_qpn;
        let peer = self.of.qps.get(dest.0 as usize, &guard);
        let Some((peer, (wr_id, ticket, sge))) =
            peer.and_then(|peer| Some((peer, spin(&peer.recvs).pop_front()?)))
        else {
            return WcStatus::RnrRetryExcErr;
        };
        let memory = |key: LKey| {
            let mr = self.of.mrs.get(key.0 as usize, &guard)?;
            spin(&mr.memory).clone()
        };
        let (copied, len) = match wr.data {
            SendData::Inline(data) => {
                let to = memory(sge.lkey).filter(|_| data.len() <= sge.length as usize);
                (to.is_some_and(|to| to.write(sge.addr, data).is_ok()), data.len() as u32)
            }
            SendData::Sges([from]) if from.length <= sge.length => {
                let both = memory(from.lkey).zip(memory(sge.lkey));
                let len = u64::from(from.length);
                let copy = |(source, to): (Arc<UserMemory>, Arc<UserMemory>)| {
                    to.copy_from(sge.addr, &source, from.addr, len)
                };
                (both.is_some_and(|both| copy(both).is_ok()), from.length)
            }
            SendData::Sges([]) => (true, 0),
            _ => (false, 0),
        };
        let mut wc = peer.completion(wr_id, ticket, WcOpcode::Recv);
        wc.byte_len = len;
        if !copied {
            wc.status = WcStatus::LocProtErr;
        }
        peer.recv_cq.push(&wc, wr.flags.contains(SendFlags::SOLICITED));
        if copied { WcStatus::Success } else { WcStatus::RemOpErr }
    }
}

impl QpDriver for LoopQp {
    fn qpn(&self) -> Qpn {
        self.qpn
    }

    fn cap(&self) -> QpCap {
        self.cap
    }

    fn modify(&self, _cx: &MaySleep, attr: &QpAttr, mask: QpAttrMask) -> Result<()> {
        let mut now = spin(&self.attr);
        if now.state != attr.cur_state {
            return Err(Error::BadState("another state than the one that was checked"));
        }
        now.state = attr.state;
        if mask.contains(QpAttrMask::DEST_QPN) {
            now.dest_qpn = attr.dest_qpn;
        }
        if now.state == QpState::Reset {
            spin(&self.recvs).clear();
        }
        if now.state == QpState::Err {
            for (wr_id, ticket, _) in spin(&self.recvs).drain(..) {
                let mut wc = self.completion(wr_id, ticket, WcOpcode::Recv);
                wc.status = WcStatus::WrFlushErr;
                self.recv_cq.push(&wc, true);
            }
        }
        Ok(())
    }

    fn query(&self, _cx: &MaySleep) -> Result<QpAttr> {
        Ok(*spin(&self.attr))
    }

    fn destroy(&self, cx: &MaySleep) -> Result<()> {
        // After this no peer finds it.
        self.of.qps.remove(cx, self.qpn.0 as usize);
        Ok(())
    }

    fn post_send(&self, wr: &SendWr<'_>) -> Result<()> {
        let state = spin(&self.attr).state;
        let status = match state {
            QpState::Reset | QpState::Init | QpState::Rtr => {
                return Err(Error::BadState("post_send needs RTS"));
            }
            QpState::Err => WcStatus::WrFlushErr,
            _ if wr.opcode != WrOpcode::Send => return Err(Error::Invalid("only SEND")),
            _ => self.deliver(wr),
        };
        let signaled = self.signal_all || wr.flags.contains(SendFlags::SIGNALED);
        if signaled || status != WcStatus::Success {
            let mut wc = self.completion(wr.wr_id, wr.ticket, WcOpcode::Send);
            wc.status = status;
            self.send_cq.push(&wc, false);
        }
        Ok(())
    }

    fn post_malformed_send(&self, wqe: MalformedWqe) -> Result<()> {
        let mut wc = self.completion(wqe.wr_id, wqe.ticket, WcOpcode::Send);
        wc.status = WcStatus::LocQpOpErr;
        spin(&self.attr).state = QpState::Err;
        self.send_cq.push(&wc, false);
        Ok(())
    }

    fn post_recv(&self, wr: &RecvWr<'_>) -> Result<()> {
        if spin(&self.attr).state == QpState::Reset {
            return Err(Error::BadState("post_recv needs INIT"));
        }
        let mut recvs = spin(&self.recvs);
        if recvs.len() >= self.cap.max_recv_wr as usize {
            return Err(Error::QueueFull);
        }
        recvs.push_back((wr.wr_id, wr.ticket, wr.sges.first().copied().unwrap_or_default()));
        Ok(())
    }

    fn recv_posted(&self) {}
}
