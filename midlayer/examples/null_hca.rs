// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The smallest HCA: it drops what is sent and completes it. The skeleton of a driver, from
//! `register_device` to a completion polled; `loopback_hca.rs` shows how bytes move.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use rdma_midlayer::attr::{DeviceAttr, GidEntry, PortAttr, QpAttr, QpAttrMask, QpCap};
use rdma_midlayer::driver::*;
use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::types::*;
use rdma_midlayer::work::*;
use rdma_midlayer::{ContextSpec, CqSpec, Error, MaySleep, Midlayer, QpSpec, Result};

const NO_MEMORY: Error = Error::Unsupported("memory regions");

struct NullHca;
struct NullContext;
struct NullPd;
struct NullCq(Arc<dyn CqEvents>, Mutex<VecDeque<WorkCompletion>>);
struct NullQp(Arc<NullCq>, Mutex<QpAttr>);

impl HcaDriver for NullHca {
    fn name(&self) -> &str {
        "null0"
    }
    fn query_device(&self, _cx: &MaySleep) -> Result<DeviceAttr> {
        let (max_qp, max_qp_wr, max_cq, max_cqe, max_pd) = (16, 16, 16, 256, 16);
        Ok(DeviceAttr { max_qp, max_qp_wr, max_cq, max_cqe, max_pd, ..DeviceAttr::default() })
    }
    fn query_port(&self, _cx: &MaySleep, port: u8) -> Result<PortAttr> {
        let mtu = Mtu::Mtu4096;
        let attr = PortAttr {
            state: PortState::Active,
            max_mtu: mtu,
            active_mtu: mtu,
            max_msg_sz: 1 << 31,
            gid_tbl_len: 1,
            pkey_tbl_len: 1,
            active_width: 1,
            active_speed: 1,
        };
        if port == 1 { Ok(attr) } else { Err(Error::Invalid("there is one port")) }
    }
    fn alloc_context(&self, _cx: &MaySleep, _init: ContextInit) -> Result<Arc<dyn ContextDriver>> {
        Ok(Arc::new(NullContext))
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
        Ok(Arc::new(NullPd))
    }
    fn create_cq(&self, _cx: &MaySleep, init: CqInit) -> Result<Arc<dyn CqDriver>> {
        Ok(Arc::new(NullCq(init.events, Mutex::default())))
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
    fn reg_mr(&self, _: &MaySleep, _: UserMemory, _: Access) -> Result<Arc<dyn MrDriver>> {
        Err(NO_MEMORY)
    }
    fn create_qp(&self, _cx: &MaySleep, init: QpInit) -> Result<Arc<dyn QpDriver>> {
        Ok(Arc::new(NullQp(own(init.send_cq)?, Mutex::default())))
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
        256
    }
    fn poll_cq(&self, to: &mut Vec<WorkCompletion>, max: usize) -> Result<usize> {
        // A real driver spins for this lock: a verb that never sleeps may not wait in the kernel.
        let Ok(mut ring) = self.1.try_lock() else { return Ok(0) };
        let count = max.min(ring.len());
        to.extend(ring.drain(..count));
        Ok(count)
    }
    fn req_notify_cq(&self, _notify: Notify) -> Result<bool> {
        Ok(self.1.try_lock().is_ok_and(|ring| !ring.is_empty()))
    }
    fn destroy(&self, _cx: &MaySleep) -> Result<()> {
        Ok(())
    }
}

impl QpDriver for NullQp {
    fn qpn(&self) -> Qpn {
        Qpn(2)
    }
    fn cap(&self) -> QpCap {
        QpCap { max_send_wr: 16, max_recv_wr: 16, ..QpCap::default() }
    }
    fn modify(&self, _cx: &MaySleep, attr: &QpAttr, _mask: QpAttrMask) -> Result<()> {
        self.1.lock().map(|mut now| *now = *attr).map_err(|_| Error::Gone)
    }
    fn query(&self, _cx: &MaySleep) -> Result<QpAttr> {
        self.1.lock().map(|now| *now).map_err(|_| Error::Gone)
    }
    fn destroy(&self, _cx: &MaySleep) -> Result<()> {
        Ok(())
    }
    fn post_send(&self, wr: &SendWr<'_>) -> Result<()> {
        let wc = WorkCompletion {
            wr_id: wr.wr_id,
            ticket: wr.ticket,
            status: WcStatus::Success,
            opcode: WcOpcode::from(wr.opcode),
            flags: WcFlags::default(),
            qpn: self.qpn(),
            byte_len: 0,
            imm: 0,
            src_qpn: self.qpn(),
            vendor_err: 0,
            vlan: 0,
            sl: 0,
        };
        self.0.1.try_lock().map_err(|_| Error::QueueFull)?.push_back(wc);
        // The midlayer calls the consumer's handler later and elsewhere, if it asked for that.
        self.0.0.completed(false);
        Ok(())
    }
    fn post_malformed_send(&self, _wqe: MalformedWqe) -> Result<()> {
        Err(Error::Unsupported("malformed work requests"))
    }
    fn post_recv(&self, _wr: &RecvWr<'_>) -> Result<()> {
        Err(Error::Unsupported("receiving"))
    }
    fn recv_posted(&self) {}
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let cx = MaySleep::claim().ok_or("the entry point of a thread claims its token once")?;
    let midlayer = Midlayer::new();
    let registration = midlayer.register_device(&cx, Arc::new(NullHca))?;
    // A consumer would meet the device in its client's `add`; see `consumer.rs`.
    struct Once;
    impl rdma_midlayer::Client for Once {
        fn name(&self) -> &str {
            "once"
        }
        fn add(&self, cx: &MaySleep, device: &rdma_midlayer::Device) {
            println!("{}: {:?}", device.name(), send_one(cx, device));
        }
        fn remove(&self, _cx: &MaySleep, _device: &rdma_midlayer::Device) {}
    }
    let client = midlayer.register_client(&cx, Arc::new(Once))?;
    midlayer.unregister_client(&cx, client).map_err(|e| e.error)?;
    midlayer.unregister_device(&cx, registration)?;
    Ok(())
}

fn send_one(cx: &MaySleep, device: &rdma_midlayer::Device) -> Result<Vec<WorkCompletion>> {
    let context = device.alloc_context(cx, ContextSpec::default())?;
    let pd = context.alloc_pd(cx)?;
    let cq = context.create_cq(cx, CqSpec { cqe: 16, vector: 0, memory: None, handler: None })?;
    let cap = QpCap { max_send_wr: 16, max_recv_wr: 16, ..QpCap::default() };
    let qp = pd.create_qp(cx, QpSpec::new(QpType::Rc, &cq, cap))?;
    let wr = SendWr {
        wr_id: 7,
        ticket: 0,
        opcode: WrOpcode::Send,
        flags: SendFlags::SIGNALED,
        data: SendData::Sges(&[]),
        imm: 0,
        remote_addr: 0,
        rkey: RKey(0),
        compare_add: 0,
        swap: 0,
        ud: None,
        srqn: None,
    };
    qp.post_send(&wr)?;
    let mut wcs = Vec::new();
    cq.poll_cq(&mut wcs, 16)?;
    qp.destroy(cx)?;
    cq.destroy(cx)?;
    pd.dealloc(cx)?;
    context.dealloc(cx)?;
    Ok(wcs)
}
