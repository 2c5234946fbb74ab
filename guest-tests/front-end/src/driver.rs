// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver: INIT and every control command, typed, and in raw bytes for bad input.
//!
//! Posting and polling are in `qp.rs` and `cq.rs`.

mod cq;
mod dm;
mod keys;
mod mcast;
mod on_demand;
mod srq;

pub use keys::{FastMr, Mw, bind_args};

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtio_rdma_abi::config::{ABI_MAJOR, ABI_MINOR, Config};
use virtio_rdma_abi::control::{self, *};
use virtio_rdma_abi::event::{AsyncEvent, CompEvent};
use virtio_rdma_abi::ring::{
    QP_RINGS_OFFSET, Sge, WQE_RECV_DATA, WQE_SEND_DATA, WQE_STRIDE_SHIFT_MIN, XrcArgs,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::command::COMMAND_TIMEOUT;
use crate::cq::Cq;
use crate::error::{CommandError, Error};
use crate::memory::{Buffer, GuestMemory, PAGE};
use crate::pages::PageTables;
use crate::qp::{Qp, QpOptions};
use crate::queues::Queues;
use crate::ring::WorkRing;
use crate::uar::{Doorbell, QpTable, Uar};

/// The answer of a command that has none.
type Nothing = [u8; 0];

/// A protection domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pd {
    /// Its number.
    pub number: u32,
}

/// A memory region. It does not own its memory; but pages that are registered are not given to
/// others before `Driver::dereg_mr`, even if their buffer is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mr {
    /// Its number, for DEREG_MR.
    pub number: u32,
    /// Local key.
    pub lkey: u32,
    /// Remote key.
    pub rkey: u32,
    /// Address of the first byte, as work requests name it.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
}

impl Mr {
    /// An SGE of a part of it. Whether it lies inside is for the device to say.
    pub fn sge(&self, offset: u64, length: u32) -> Sge {
        Sge {
            addr: self.iova.wrapping_add(offset).into(),
            length: length.into(),
            lkey: self.lkey.into(),
        }
    }

    /// Address and rkey of a byte of it, for a peer.
    pub fn remote(&self, offset: u64) -> (u64, u32) {
        (self.iova.wrapping_add(offset), self.rkey)
    }
}

/// An entry of the GID table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GidEntry {
    /// Where in the table.
    pub index: u32,
    /// The GID.
    pub gid: [u8; 16],
    /// MAC of the network device that has it.
    pub mac: [u8; 6],
}

/// What CREATE_CQ will say, and the memory it says it of: change what you like and hand it to
/// `Driver::create_cq_from`.
#[derive(Debug)]
pub struct CqBuffer {
    /// The request.
    pub request: CreateCqRequest,
    /// The CQ's memory.
    pub buffer: Buffer,
    /// The page list's tables.
    pub tables: PageTables,
}

/// What CREATE_QP will say, and the memory it says it of.
#[derive(Debug)]
pub struct QpBuffer {
    /// The request.
    pub request: CreateQpRequest,
    /// The QP's memory.
    pub buffer: Buffer,
    /// The page list's tables.
    pub tables: PageTables,
    uar: Uar,
    /// The slot that was taken for it, whatever the request says by now.
    slot: u32,
}

/// A driver that has done INIT. Cheap to clone; commands may come from several threads.
#[derive(Clone, Debug)]
pub struct Driver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    memory: Arc<GuestMemory>,
    queues: Arc<Queues>,
    config: Config,
    init: InitAnswer,
    status_page: Arc<Buffer>,
    qps: Arc<QpTable>,
    /// By the number of an MR, the users of the pages under it.
    registered: Mutex<HashMap<u32, Arc<AtomicU32>>>,
    own_uar: Mutex<Option<Uar>>,
    /// The table of address handles, and how many are in use.
    ahs: Mutex<Option<(Buffer, usize)>>,
    gid: Mutex<GidEntry>,
}

impl Driver {
    /// Does INIT.
    pub(crate) fn init(
        memory: Arc<GuestMemory>,
        queues: Arc<Queues>,
        config: Config,
    ) -> Result<Self, CommandError> {
        let status_page = memory.alloc_contiguous_in(0, PAGE)?;
        let request = InitRequest {
            abi_major: (ABI_MAJOR as u16).into(),
            abi_minor: (ABI_MINOR as u16).into(),
            num_comp_vectors: queues.vectors().into(),
            status_page: status_page.guest_address(0).into(),
            capabilities: u64::MAX.into(),
        };
        let init = queues.control().command(CMD_INIT, request.as_bytes())?;
        status_page.set_with_device(true);
        Ok(Self::new(memory, queues, config, init, status_page))
    }

    /// A driver that has not done INIT: for tests of what a device answers to such a one.
    pub(crate) fn without_init(
        memory: Arc<GuestMemory>,
        queues: Arc<Queues>,
        config: Config,
    ) -> Result<Self, Error> {
        let status_page = memory.alloc_contiguous_in(0, PAGE)?;
        Ok(Self::new(memory, queues, config, InitAnswer::default(), status_page))
    }

    fn new(
        memory: Arc<GuestMemory>,
        queues: Arc<Queues>,
        config: Config,
        init: InitAnswer,
        status_page: Buffer,
    ) -> Self {
        Self(Arc::new(Inner {
            memory,
            queues,
            config,
            init,
            status_page: Arc::new(status_page),
            qps: Arc::new(QpTable::new()),
            registered: Mutex::default(),
            own_uar: Mutex::new(None),
            ahs: Mutex::new(None),
            gid: Mutex::new(GidEntry { index: 0, gid: [0; 16], mac: [0; 6] }),
        }))
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.0.memory
    }

    /// The virtqueues, for hostile tests.
    pub fn queues(&self) -> &Queues {
        &self.0.queues
    }

    /// Config space as it was when the driver started.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// The answer to INIT.
    pub fn init_answer(&self) -> &InitAnswer {
        &self.0.init
    }

    /// The status page, for hostile tests.
    pub fn status_page(&self) -> &Buffer {
        &self.0.status_page
    }

    /// A command by its number: `request` without the header, and an answer without the status.
    pub fn command<A: FromBytes>(&self, number: u16, request: &[u8]) -> Result<A, CommandError> {
        self.0.queues.control().command(number, request)
    }

    /// Any bytes at all into the control virtqueue, and what comes back.
    pub fn command_raw(&self, readable: &[u8], writable: usize) -> Result<Vec<u8>, CommandError> {
        Ok(self.0.queues.control().transact(readable, writable)?)
    }

    /// The header of the next command, with its sequence number, for `command_raw`.
    pub fn next_header(&self, number: u16) -> ControlHeader {
        self.0.queues.control().next_header(number)
    }

    /// Several raw commands in the ring at once; the answers in the order of the requests, and the
    /// order in which they came, as positions in `requests`.
    pub fn commands_at_once(
        &self,
        requests: &[(Vec<u8>, usize)],
    ) -> Result<(Vec<Vec<u8>>, Vec<usize>), CommandError> {
        let mut control = self.0.queues.control();
        let tokens = control.submit_all(requests)?;
        let order = control.wait_all(&tokens, COMMAND_TIMEOUT)?;
        let mut answers = Vec::new();
        for token in tokens {
            answers.push(control.wait(token, COMMAND_TIMEOUT)?);
        }
        Ok((answers, order))
    }

    /// QUERY_DEVICE.
    pub fn query_device(&self) -> Result<DeviceAttr, CommandError> {
        self.command(CMD_QUERY_DEVICE, &[])
    }

    /// QUERY_PORT.
    pub fn query_port(&self, port: u32) -> Result<PortAttr, CommandError> {
        self.command(CMD_QUERY_PORT, number(port).as_bytes())
    }

    /// QUERY_COUNTERS.
    pub fn query_counters(&self) -> Result<Counters, CommandError> {
        self.command(CMD_QUERY_COUNTERS, &[])
    }

    /// ADD_GID. The driver takes it as the address of its QPs from here on.
    pub fn add_gid(&self, entry: GidEntry) -> Result<(), CommandError> {
        let request = AddGidRequest {
            index: entry.index.into(),
            gid_type: GID_TYPE_ROCE_V2,
            reserved: 0,
            vlan: 0xffff.into(),
            gid: entry.gid,
            mac: entry.mac,
            reserved1: 0.into(),
        };
        let _: Nothing = self.command(CMD_ADD_GID, request.as_bytes())?;
        *self.0.gid.lock().unwrap_or_else(PoisonError::into_inner) = entry;
        Ok(())
    }

    /// DEL_GID.
    pub fn del_gid(&self, index: u32) -> Result<(), CommandError> {
        self.destroy(CMD_DEL_GID, index)
    }

    /// The GID that peers find this driver's QPs by.
    pub fn gid(&self) -> GidEntry {
        *self.0.gid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// CREATE_UAR of so many bytes.
    pub fn create_uar(&self, bytes: usize) -> Result<Uar, CommandError> {
        let buffer = self.0.memory.alloc_scattered(bytes)?;
        let tables = PageTables::of_buffer(&self.0.memory, &buffer)?;
        let request = CreateUarRequest { pages: tables.list };
        let answer: NumberAnswer = self.command(CMD_CREATE_UAR, request.as_bytes())?;
        buffer.set_with_device(true);
        Ok(Uar::new(answer.number.get(), buffer))
    }

    /// DESTROY_UAR.
    pub fn destroy_uar(&self, uar: &Uar) -> Result<(), CommandError> {
        self.destroy(CMD_DESTROY_UAR, uar.number())?;
        uar.buffer().set_with_device(false);
        Ok(())
    }

    /// The driver's own UAR, made when it is first asked for: 32,256 slots.
    pub fn own_uar(&self) -> Result<Uar, CommandError> {
        let mut own = self.0.own_uar.lock().unwrap_or_else(PoisonError::into_inner);
        match &*own {
            Some(uar) => Ok(uar.clone()),
            None => Ok(own.insert(self.create_uar(PAGE)?).clone()),
        }
    }

    /// ALLOC_PD.
    pub fn alloc_pd(&self) -> Result<Pd, CommandError> {
        let answer: NumberAnswer = self.command(CMD_ALLOC_PD, &[])?;
        Ok(Pd { number: answer.number.get() })
    }

    /// DEALLOC_PD.
    pub fn dealloc_pd(&self, pd: &Pd) -> Result<(), CommandError> {
        self.destroy(CMD_DEALLOC_PD, pd.number)
    }

    /// REG_MR of a whole buffer, at its address in this process.
    pub fn reg_mr(&self, pd: &Pd, buffer: &Buffer, access: u32) -> Result<Mr, CommandError> {
        self.reg_mr_part(pd, buffer, 0..buffer.len(), buffer.address(), access)
    }

    /// REG_MR of a range of a buffer, at an address of the caller's choice.
    pub fn reg_mr_part(
        &self,
        pd: &Pd,
        buffer: &Buffer,
        range: std::ops::Range<usize>,
        iova: u64,
        access: u32,
    ) -> Result<Mr, CommandError> {
        let pages = buffer.pages();
        let pages = pages.get(range.start / PAGE..range.end.div_ceil(PAGE)).unwrap_or(&[]);
        let tables = PageTables::new(&self.0.memory, pages, 12)?;
        let mr = self.reg_mr_request(&RegMrRequest {
            pdn: pd.number.into(),
            access: access.into(),
            iova: iova.into(),
            length: (range.len() as u64).into(),
            offset: ((range.start % PAGE) as u64).into(),
            pages: tables.list,
        })?;
        buffer.users().fetch_add(1, Ordering::AcqRel);
        self.registered().insert(mr.number, Arc::clone(buffer.users()));
        Ok(mr)
    }

    fn registered(&self) -> MutexGuard<'_, HashMap<u32, Arc<AtomicU32>>> {
        self.0.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// REG_MR with a request of the caller's.
    pub fn reg_mr_request(&self, request: &RegMrRequest) -> Result<Mr, CommandError> {
        let answer: MrAnswer = self.command(CMD_REG_MR, request.as_bytes())?;
        Ok(mr(&answer, request.iova.get(), request.length.get()))
    }

    /// GET_DMA_MR: all guest-physical memory.
    pub fn get_dma_mr(&self, pd: &Pd, access: u32) -> Result<Mr, CommandError> {
        let request = GetDmaMrRequest { pdn: pd.number.into(), access: access.into() };
        let answer: MrAnswer = self.command(CMD_GET_DMA_MR, request.as_bytes())?;
        Ok(mr(&answer, 0, u64::MAX))
    }

    /// DEREG_MR.
    pub fn dereg_mr(&self, mr: &Mr) -> Result<(), CommandError> {
        self.destroy(CMD_DEREG_MR, mr.number)?;
        if let Some(users) = self.registered().remove(&mr.number) {
            users.fetch_sub(1, Ordering::AcqRel);
        }
        Ok(())
    }

    /// CREATE_CQ on scattered pages.
    pub fn create_cq(&self, entries: u32, vector: u32) -> Result<Cq, CommandError> {
        self.create_cq_from(self.prepare_cq(entries, vector)?)
    }

    /// The memory and the request of a CQ, not yet sent.
    pub fn prepare_cq(&self, entries: u32, vector: u32) -> Result<CqBuffer, CommandError> {
        let buffer = self.0.memory.alloc_scattered(Cq::bytes(entries))?;
        let tables = PageTables::of_buffer(&self.0.memory, &buffer)?;
        let request = CreateCqRequest {
            entries: entries.into(),
            vector: vector.into(),
            pages: tables.list,
            ..Default::default()
        };
        Ok(CqBuffer { request, buffer, tables })
    }

    /// CREATE_CQ as prepared.
    pub fn create_cq_from(&self, prepared: CqBuffer) -> Result<Cq, CommandError> {
        let CqBuffer { request, buffer, .. } = prepared;
        let answer: NumberAnswer = self.command(CMD_CREATE_CQ, request.as_bytes())?;
        Ok(Cq::new(
            answer.number.get(),
            request.vector.get(),
            request.entries.get(),
            buffer,
            Arc::clone(&self.0.qps),
            Arc::clone(&self.0.queues),
        ))
    }

    /// DESTROY_CQ. The memory is free when `cq` is dropped after that.
    pub fn destroy_cq(&self, cq: &Cq) -> Result<(), CommandError> {
        self.destroy(CMD_DESTROY_CQ, cq.number())?;
        cq.buffer().set_with_device(false);
        Ok(())
    }

    /// CREATE_QP.
    pub fn create_qp(
        &self,
        pd: &Pd,
        send_cq: &Cq,
        recv_cq: &Cq,
        options: &QpOptions,
    ) -> Result<Qp, CommandError> {
        self.create_qp_from(self.prepare_qp(pd, send_cq, recv_cq, options)?)
    }

    /// The memory and the request of a QP, not yet sent.
    pub fn prepare_qp(
        &self,
        pd: &Pd,
        send_cq: &Cq,
        recv_cq: &Cq,
        options: &QpOptions,
    ) -> Result<QpBuffer, CommandError> {
        let uar = match &options.uar {
            Some(uar) => uar.clone(),
            None => self.own_uar()?,
        };
        let slot = uar.take_slot().ok_or(Error::OutOfGuestMemory { wanted: 1 })?;
        let rq_entries = if options.srqn.is_some() { 0 } else { options.rq_entries };
        let sge = size_of::<Sge>() as u32;
        let xrc_bytes = match options.qp_type {
            QP_TYPE_XRC_INI => size_of::<XrcArgs>() as u32,
            _ => 0,
        };
        let send_stride = stride_shift(
            WQE_SEND_DATA + (options.max_send_sge * sge).max(options.max_inline) + xrc_bytes,
        );
        let recv_stride = stride_shift(WQE_RECV_DATA + options.max_recv_sge * sge);
        let sq_offset = QP_RINGS_OFFSET;
        let rq_offset = sq_offset + (options.sq_entries << send_stride);
        let bytes = (rq_offset + (rq_entries << recv_stride)) as usize;
        let buffer = if options.contiguous {
            self.0.memory.alloc_contiguous(bytes)?
        } else {
            self.0.memory.alloc_scattered(bytes)?
        };
        let tables = PageTables::of_buffer(&self.0.memory, &buffer)?;
        let request = CreateQpRequest {
            pdn: pd.number.into(),
            send_cqn: send_cq.number().into(),
            recv_cqn: recv_cq.number().into(),
            srqn: options.srqn.unwrap_or(NO_SRQ).into(),
            uarn: uar.number().into(),
            slot: slot.into(),
            qp_type: options.qp_type,
            flags: options.flags,
            sq_stride_shift: send_stride,
            rq_stride_shift: recv_stride,
            sq_entries: options.sq_entries.into(),
            rq_entries: rq_entries.into(),
            sq_offset: sq_offset.into(),
            rq_offset: rq_offset.into(),
            max_send_sge: options.max_send_sge.into(),
            max_recv_sge: options.max_recv_sge.into(),
            max_inline: options.max_inline.into(),
            pages: tables.list,
            xrcdn: options.xrcdn.into(),
            reserved: 0.into(),
        };
        Ok(QpBuffer { request, buffer, tables, uar, slot })
    }

    /// CREATE_QP as prepared.
    pub fn create_qp_from(&self, prepared: QpBuffer) -> Result<Qp, CommandError> {
        let QpBuffer { request, buffer, uar, slot: taken, .. } = prepared;
        let slot = request.slot.get();
        let answer: Result<NumberAnswer, _> = self.command(CMD_CREATE_QP, request.as_bytes());
        if answer.is_err() || slot != taken {
            uar.free_slot(taken);
        }
        let answer = answer?;
        let qpn = answer.number.get();
        self.0.qps.start(qpn).ok_or(CommandError::Malformed("a QPN of more than 24 bits"))?;
        let send = WorkRing::new(
            request.sq_offset.get() as usize,
            request.sq_stride_shift,
            request.sq_entries.get(),
            request.max_send_sge.get(),
            request.max_inline.get(),
        );
        let recv = WorkRing::new(
            request.rq_offset.get() as usize,
            request.rq_stride_shift,
            request.rq_entries.get(),
            request.max_recv_sge.get(),
            0,
        );
        let doorbell = self.doorbell(uar, slot);
        let name = (qpn, request.qp_type);
        Ok(Qp::new(self, name, buffer, (send, recv), doorbell, Arc::clone(&self.0.qps)))
    }

    fn doorbell(&self, uar: Uar, slot: u32) -> Doorbell {
        Doorbell {
            uar,
            slot,
            status_page: Arc::clone(&self.0.status_page),
            queues: Arc::clone(&self.0.queues),
        }
    }

    /// MODIFY_QP by number (`Qp::modify` also keeps the driver's side in step).
    pub fn modify_qp(&self, qpn: u32, mask: u32, attr: &QpAttr) -> Result<(), CommandError> {
        let request = ModifyQpRequest { qpn: qpn.into(), attr_mask: mask.into(), attr: *attr };
        let _: Nothing = self.command(CMD_MODIFY_QP, request.as_bytes())?;
        Ok(())
    }

    /// QUERY_QP.
    pub fn query_qp(&self, qpn: u32) -> Result<QpAttr, CommandError> {
        self.command(CMD_QUERY_QP, number(qpn).as_bytes())
    }

    /// DESTROY_QP. The memory is free when `qp` is dropped after that.
    pub fn destroy_qp(&self, qp: &Qp) -> Result<(), CommandError> {
        self.destroy(CMD_DESTROY_QP, qp.number())?;
        qp.buffer().set_with_device(false);
        let (uar, slot) = qp.uar_slot();
        uar.free_slot(slot);
        Ok(())
    }

    /// A command whose request is one number and which has no answer.
    pub fn destroy(&self, command: u16, object: u32) -> Result<(), CommandError> {
        let _: Nothing = self.command(command, number(object).as_bytes())?;
        Ok(())
    }

    /// The next asynchronous event; `None` at the time-out.
    pub fn next_async_event(&self, timeout: Duration) -> Result<Option<AsyncEvent>, Error> {
        self.0.queues.next_async_event(timeout)
    }

    /// The next completion event of a vector, whatever its CQ; `None` at the time-out.
    pub fn next_comp_event(
        &self,
        vector: u32,
        timeout: Duration,
    ) -> Result<Option<CompEvent>, Error> {
        self.0.queues.next_comp_event(vector, timeout, |_| true)
    }

    /// While `starve` is true, used buffers of a vector's completion virtqueue are not given back
    /// to the device; then all are.
    pub fn starve_comp_queue(&self, vector: u32, starve: bool) -> Result<(), Error> {
        self.0.queues.starve_comp(vector, starve)
    }
}

fn number(number: u32) -> NumberRequest {
    NumberRequest { number: number.into(), reserved: 0.into() }
}

fn mr(answer: &control::MrAnswer, iova: u64, length: u64) -> Mr {
    Mr { number: answer.mrn.get(), lkey: answer.lkey.get(), rkey: answer.rkey.get(), iova, length }
}

fn stride_shift(bytes: u32) -> u8 {
    (bytes.next_power_of_two().trailing_zeros() as u8).max(WQE_STRIDE_SHIFT_MIN as u8)
}
