// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a low-level driver implements, and what the midlayer hands to it (`struct ib_device`).
//!
//! Rules for every method (`core_locking`): it is fully reentrant, the midlayer serialises nothing;
//! it may sleep only if it takes a `MaySleep`; it calls no completion or event handler, but reports
//! through `CqEvents` and `EventSink`, which never sleep and never call back in the same call chain.
//! The midlayer checks arguments against the device's limits and the QP state table before it calls,
//! and calls `destroy` once, last, when nothing depends on the object any more.

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::attr::{AhAttr, DeviceAttr, GidEntry, PortAttr, QpAttr, QpAttrMask, QpCap};
use crate::context::MaySleep;
use crate::error::{Error, Result};
use crate::memory::{PageRange, UserMemory};
use crate::types::{Access, Cqn, Gid, LKey, MwType, QpType, Qpn, RKey, Srqn, WcOpcode};
use crate::work::{MwBind, RecvWqe, RecvWr, SendWr, ShortRecv, ShortWr, WorkCompletion};

mod extra;
pub use extra::*;

/// An HCA.
pub trait HcaDriver: Send + Sync + 'static {
    /// Its name, unique among registered devices: "soft0", "rxe0".
    fn name(&self) -> &str;

    /// Limits and capabilities. May sleep.
    fn query_device(&self, cx: &MaySleep) -> Result<DeviceAttr>;

    /// State of a port; ports count from 1. May sleep.
    fn query_port(&self, cx: &MaySleep, port: u8) -> Result<PortAttr>;

    /// A context: a tenant with numbers, keys and GIDs of its own (`ib_ucontext`). May sleep.
    fn alloc_context(&self, cx: &MaySleep, init: ContextInit) -> Result<Arc<dyn ContextDriver>>;

    /// The parts of the HCA that need CPU time: whoever runs the device polls each of them, one
    /// thread at a time. A driver with threads of its own has none.
    fn pollers(&self) -> Vec<Arc<dyn Poller>> {
        Vec::new()
    }

    /// Where to report the events of the device as a whole: ports, GID tables, device fatal. Called
    /// once, by `register_device`, before any consumer knows the device. Never sleeps.
    fn set_event_sink(&self, events: Arc<dyn EventSink>) {
        let _ = events;
    }
}

/// How to make a context.
pub struct ContextInit {
    /// The network that its GIDs belong to: peers are found within one network only.
    pub network: u64,
    /// Name of the tenant, for logs.
    pub name: String,
    /// Takes the events of the context's objects.
    pub events: Arc<dyn EventSink>,
}

/// A tenant of an HCA.
pub trait ContextDriver: Any + Send + Sync {
    /// Enters a GID. May sleep.
    ///
    /// # Errors
    /// `Busy` if another context of the network has the GID, `Invalid` for an index out of range.
    fn add_gid(&self, cx: &MaySleep, index: u32, entry: &GidEntry) -> Result<()>;

    /// Deletes a GID; a no-op if there is none. May sleep.
    fn del_gid(&self, cx: &MaySleep, index: u32) -> Result<()>;

    /// A protection domain. May sleep.
    fn alloc_pd(&self, cx: &MaySleep) -> Result<Arc<dyn PdDriver>>;

    /// A completion queue. May sleep.
    fn create_cq(&self, cx: &MaySleep, init: CqInit) -> Result<Arc<dyn CqDriver>>;

    /// An XRC domain. May sleep.
    fn alloc_xrcd(&self, _cx: &MaySleep) -> Result<Arc<dyn XrcdDriver>> {
        Err(Error::Unsupported("XRC"))
    }

    /// What `LKey::LOCAL_DMA` stands for in the work requests of privileged QPs: memory that appears
    /// at several places, or nothing. Returns when nothing touches what it stood for. May sleep.
    fn set_dma_memory(&self, _cx: &MaySleep, _memory: Option<UserMemory>) -> Result<()> {
        Err(Error::Unsupported("local_dma_lkey"))
    }

    /// How many packets and datagrams with a wrong key came for the tenant.
    fn violations(&self) -> Violations {
        Violations::default()
    }

    /// Stops the tenant: when it returns, no memory of the tenant's is read or written any more, by
    /// its own work requests or by a peer's, and none of its CQs or receive sources is called. Work
    /// stays queued; peers see packets lost (time-outs and retries as for a cut cable). May sleep.
    fn suspend(&self, cx: &MaySleep) -> Result<()>;

    /// Lets a stopped tenant go on. May sleep.
    fn resume(&self, cx: &MaySleep) -> Result<()>;

    /// Ends the context; its objects are gone already. May sleep.
    fn dealloc(&self, cx: &MaySleep) -> Result<()>;
}

/// What was not let in, since the context was made (IBA 14.2.5.6, PortInfo).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Violations {
    /// Packets with a P_Key that is not in the table.
    pub pkey: u64,
    /// Datagrams with another Q_Key than the QP's.
    pub qkey: u64,
}

/// A protection domain.
pub trait PdDriver: Any + Send + Sync {
    /// Registers memory; `memory.start()` is the address by which work requests name its first
    /// byte. May sleep.
    fn reg_mr(
        &self,
        cx: &MaySleep,
        memory: UserMemory,
        access: Access,
    ) -> Result<Arc<dyn MrDriver>>;

    /// A QP. May sleep.
    fn create_qp(&self, cx: &MaySleep, init: QpInit) -> Result<Arc<dyn QpDriver>>;

    /// An MR over all memory that the consumer can use for DMA: each of `regions` appears at its
    /// `start()`, with holes between them. May sleep.
    fn reg_dma_mr(
        &self,
        _cx: &MaySleep,
        _regions: Vec<UserMemory>,
        _access: Access,
    ) -> Result<Arc<dyn MrDriver>> {
        Err(Error::Unsupported("DMA MR"))
    }

    /// An MR without memory, for REG_MR work requests of up to `max_pages` pages. May sleep.
    fn alloc_mr(&self, _cx: &MaySleep, _max_pages: u32) -> Result<Arc<dyn MrDriver>> {
        Err(Error::Unsupported("fast registration"))
    }

    /// A memory window. May sleep.
    fn alloc_mw(&self, _cx: &MaySleep, _mw_type: MwType) -> Result<Arc<dyn MwDriver>> {
        Err(Error::Unsupported("memory windows"))
    }

    /// A fast memory region. May sleep.
    fn alloc_fmr(
        &self,
        _cx: &MaySleep,
        _attr: FmrAttr,
        _access: Access,
    ) -> Result<Arc<dyn FmrDriver>> {
        Err(Error::Unsupported("FMR"))
    }

    /// A shared receive queue. May sleep.
    fn create_srq(&self, _cx: &MaySleep, _init: SrqInit) -> Result<Arc<dyn SrqDriver>> {
        Err(Error::Unsupported("SRQ"))
    }

    /// An address handle. Never sleeps.
    fn create_ah(&self, _attr: &AhAttr) -> Result<Arc<dyn AhDriver>> {
        Err(Error::Unsupported("address handles"))
    }

    /// Ends the PD. May sleep.
    fn dealloc(&self, cx: &MaySleep) -> Result<()>;
}

/// A memory region.
pub trait MrDriver: Any + Send + Sync {
    /// Local key.
    fn lkey(&self) -> LKey;

    /// Remote key.
    fn rkey(&self) -> RKey;

    /// Puts other memory behind the keys, or none: then every access fails with a protection or
    /// access error. Returns when nothing touches the old memory any more. May sleep.
    fn replace_memory(&self, cx: &MaySleep, memory: Option<UserMemory>) -> Result<()>;

    /// Changes memory, rights or PD (`ibv_rereg_mr`); what is `None` stays. The keys may change.
    /// Returns when nothing touches the old memory any more. May sleep.
    fn rereg(&self, _cx: &MaySleep, _change: MrChange) -> Result<()> {
        Err(Error::Unsupported("re-registration"))
    }

    /// Memory on demand: pages that are wanted, each time others, oldest first. `None` if there are none;
    /// the next one is then told of by an event (`AsyncEvent::PagesMissing`). Every fault that was taken
    /// is to be answered.
    fn take_page_fault(&self) -> Option<PageFault> {
        None
    }

    /// Memory on demand: pages have been put into the table (`Paging::map`), or, if `refused`, can't be
    /// had: then the work that waits for any of them fails.
    fn answer_page_faults(&self, _pages: PageRange, _refused: bool) {}

    /// Ends the MR. Returns when nothing touches its memory any more. May sleep.
    fn dereg(&self, cx: &MaySleep) -> Result<()>;
}

/// Pages of memory on demand that work waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The pages, some of which may be there.
    pub pages: PageRange,
    /// They are to be written.
    pub write: bool,
}

/// What `MrDriver::rereg` changes.
#[derive(Default)]
pub struct MrChange {
    /// New memory.
    pub memory: Option<UserMemory>,
    /// New rights.
    pub access: Option<Access>,
    /// New PD, of this driver.
    pub pd: Option<Arc<dyn PdDriver>>,
}

/// Where a consumer wants its completions: memory of its own, in a form of its own.
///
/// Called from inside verbs and pollers; it moves bytes and calls no verb. Never sleeps. The driver
/// makes no two calls at once for one CQ.
pub trait CqMemory: Send + Sync {
    /// Writes a completion where the consumer polls it.
    ///
    /// # Errors
    /// `Overflow` if there is no room: the driver puts the CQ into error and reports it.
    fn push(&self, wc: &WorkCompletion) -> std::result::Result<(), Overflow>;

    /// As `push` of `WorkCompletion::sent`: what is pushed most, in registers.
    ///
    /// # Errors
    /// As `push`.
    #[inline]
    fn push_sent(
        &self,
        wr_id: u64,
        ticket: u32,
        opcode: WcOpcode,
        qpn: Qpn,
        byte_len: u32,
    ) -> std::result::Result<(), Overflow> {
        self.push(&WorkCompletion::sent(wr_id, ticket, opcode, qpn, byte_len))
    }

    /// Whether the consumer may want to hear of what was pushed: false lets a driver spare the report. To
    /// be asked after the last `push`; fences. As exclusive as `push`.
    fn is_armed(&self) -> bool {
        true
    }

    /// The CQ has overflowed where the driver had it before it came to `push`. As exclusive as `push`.
    fn overflowed(&self) {}

    /// The CQ moves to other memory (`CqDriver::resize`): no `push` follows. As exclusive as `push`.
    fn moved(&self) {}
}

/// A CQ has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("completion queue overflow")]
pub struct Overflow;

/// Where a driver reports that a CQ has new completions.
///
/// Callable from any context; schedules the consumer's handler and never calls it in the same chain.
/// The midlayer keeps what `req_notify_cq` has asked for: a driver reports every burst of completions.
pub trait CqEvents: Send + Sync {
    /// At least one completion was added since the last call; `solicited` if one of them was a
    /// solicited one, or an error. To be called after the completion can be polled.
    fn completed(&self, solicited: bool);

    /// Whether a call would do anything: false lets a driver skip the call. To be asked after the
    /// completion can be polled.
    fn wanted(&self) -> bool {
        true
    }
}

/// How to make a CQ.
pub struct CqInit {
    /// Completions it must hold.
    pub cqe: u32,
    /// The completion vector.
    pub vector: u32,
    /// The consumer's memory. Without it the driver keeps the completions, for `poll_cq`.
    pub memory: Option<Arc<dyn CqMemory>>,
    /// Reports completions.
    pub events: Arc<dyn CqEvents>,
}

/// What `req_notify_cq` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// The next completion.
    Next,
    /// The next solicited completion, or one with an error.
    Solicited,
}

/// A completion queue.
pub trait CqDriver: Any + Send + Sync {
    /// Its number.
    fn cqn(&self) -> Cqn;

    /// Completions it holds at the most.
    fn cqe(&self) -> u32;

    /// Takes completions out, oldest first; returns how many. Never sleeps. Two threads may poll at
    /// once: each completion goes to one of them.
    ///
    /// # Errors
    /// `Unsupported` for a CQ in consumer memory.
    fn poll_cq(&self, wcs: &mut Vec<WorkCompletion>, max: usize) -> Result<usize>;

    /// Asks for one event. Returns whether there are completions to poll already, which may have
    /// come before the call. Never sleeps.
    fn req_notify_cq(&self, notify: Notify) -> Result<bool>;

    /// Changes the size, and the memory if the CQ lies in the consumer's: all that is pushed after
    /// the return goes to the new memory, nothing goes to the old. May sleep.
    fn resize(&self, _cx: &MaySleep, _cqe: u32, _memory: Option<Arc<dyn CqMemory>>) -> Result<()> {
        Err(Error::Unsupported("CQ resize"))
    }

    /// Ends the CQ. Returns when the driver no longer touches it. May sleep.
    fn destroy(&self, cx: &MaySleep) -> Result<()>;
}

/// Receive WQEs that lie in the consumer's own memory. The driver takes one when a message comes.
///
/// Called from inside verbs and pollers; it moves bytes and calls no verb. Never sleeps. The driver
/// makes no two calls at once for one source.
pub trait RecvSource: Send + Sync {
    /// Takes the oldest WQE out.
    ///
    /// # Errors
    /// `MalformedWqe` if the oldest one makes no sense; it is taken out.
    fn take(&self, wqe: &mut RecvWqe) -> std::result::Result<Taken, MalformedWqe>;

    /// Shows the oldest WQEs, in order, up to the first that is not there or is not of one SGE: how many
    /// are in `to`. Takes none out. A source that never shows any is right too.
    fn peek_short(&self, to: &mut [ShortRecv]) -> usize {
        let _ = to;
        0
    }

    /// Takes out some of those that the last `peek_short` showed.
    fn advance(&self, count: usize) {
        let _ = count;
    }

    /// Whether the driver wants `QpDriver::recv_posted` when new WQEs come: while a peer waits, or in
    /// ERR. After turning it on, the driver looks once more.
    fn want_doorbell(&self, wanted: bool);
}

/// What `RecvSource::take` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// A WQE.
    Wqe,
    /// Nothing.
    Empty,
}

/// Where a list of work requests was cut off (`bad_wr` of `ib_post_send`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadWr {
    /// Work requests taken: the number of the first that was not.
    pub taken: usize,
    /// Why it was not.
    pub error: Error,
}

/// A WQE that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedWqe {
    /// Its wr_id.
    pub wr_id: u64,
    /// Its ticket.
    pub ticket: u32,
}

/// How the driver says that a send queue that was full takes work again, to a consumer that keeps its
/// work requests in a ring of its own. Never sleeps, calls no verb.
pub trait SendReady: Send + Sync {
    /// `post_send` may succeed again.
    fn send_ready(&self);
}

/// How to make a QP.
pub struct QpInit {
    /// Transport.
    pub qp_type: QpType,
    /// CQ of the send queue, of this driver.
    pub send_cq: Arc<dyn CqDriver>,
    /// CQ of the receive queue.
    pub recv_cq: Arc<dyn CqDriver>,
    /// Wanted sizes.
    pub cap: QpCap,
    /// Every send WR makes a completion.
    pub signal_all: bool,
    /// Of the kernel of a guest, or of the host: may use what processes may not.
    pub privileged: bool,
    /// Which of the HCA's pollers works on this QP (modulo their number).
    pub poller: usize,
    /// The receive WQEs. Without it they come by `post_recv`.
    pub recv_source: Option<Arc<dyn RecvSource>>,
    /// If given, the consumer keeps the send WQEs in a ring of its own: `post_send` may answer
    /// `QueueFull` before `max_send_wr` is reached, and `send_ready` follows.
    pub send_ready: Option<Arc<dyn SendReady>>,
    /// Receive WQEs come from this SRQ, of this driver.
    pub srq: Option<Arc<dyn SrqDriver>>,
    /// XRC target: the domain, of this driver.
    pub xrcd: Option<Arc<dyn XrcdDriver>>,
    /// UD: what it sends to a multicast group does not come back to itself, though it is attached.
    pub block_self_mcast: bool,
}

/// What a QP's transport has met with; names are those of Linux' `hw_counters`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransportCounts {
    /// Requests that came again.
    pub duplicate_request: u64,
    /// Requests that came before one that was lost.
    pub out_of_seq_request: u64,
    /// NAKs for such ones received.
    pub rcvd_seq_err: u64,
    /// Times that the peer had no receive WQE.
    pub rcvd_rnr_err: u64,
    /// WRs that ended because nobody answered.
    pub retry_exceeded_err: u64,
    /// WRs that ended because the peer was never ready.
    pub retry_rnr_exceeded_err: u64,
    /// SENDs that ended well.
    pub rdma_sends: u64,
    /// Messages that a receive WQE was completed for.
    pub rdma_recvs: u64,
}

/// A queue pair.
pub trait QpDriver: Any + Send + Sync {
    /// Its number.
    fn qpn(&self) -> Qpn;

    /// Sizes given: at least what was wanted.
    fn cap(&self) -> QpCap;

    /// Changes attributes. The midlayer has checked the transition and the mask (IBA 10.3.1, 11.2.4.2)
    /// against the state that it puts into `attr.cur_state`; a QP that has left that state by itself
    /// since then answers `BadState`. May sleep.
    fn modify(&self, cx: &MaySleep, attr: &QpAttr, mask: QpAttrMask) -> Result<()>;

    /// The attributes as they are. May sleep.
    fn query(&self, cx: &MaySleep) -> Result<QpAttr>;

    /// What its transport has met with since it was made, whatever became of it since. Never sleeps.
    fn counts(&self) -> TransportCounts {
        TransportCounts::default()
    }

    /// Ends the QP. Outstanding work makes no completions; returns when the driver no longer touches
    /// the consumer's memory for it. May sleep.
    fn destroy(&self, cx: &MaySleep) -> Result<()>;

    /// Posts a send WR. Never sleeps.
    ///
    /// # Errors
    /// `QueueFull`; `BadState` in RESET, INIT and RTR; `Invalid` for a WR that the transport does not
    /// have. In ERR it is taken and flushed.
    fn post_send(&self, wr: &SendWr<'_>) -> Result<()>;

    /// Posts send WRs in order, as one call of `post_send` for each would. Never sleeps.
    ///
    /// # Errors
    /// Those of `post_send`, of the first WR that is not taken; none after it is.
    fn post_send_list(&self, wrs: &[SendWr<'_>]) -> std::result::Result<(), BadWr> {
        wrs.iter()
            .enumerate()
            .try_for_each(|(taken, wr)| self.post_send(wr).map_err(|error| BadWr { taken, error }))
    }

    /// As `post_send_list`, of requests in their short form.
    fn post_short_list(&self, wrs: &[ShortWr]) -> std::result::Result<(), BadWr> {
        wrs.iter().enumerate().try_for_each(|(taken, wr)| {
            self.post_send(&wr.wr()).map_err(|error| BadWr { taken, error })
        })
    }

    /// Completes with an error a WR that the consumer found malformed in its ring, in order behind
    /// those posted before, and puts the QP into ERR. Never sleeps.
    fn post_malformed_send(&self, wqe: MalformedWqe) -> Result<()>;

    /// Posts a receive WR. Never sleeps.
    ///
    /// # Errors
    /// `QueueFull`; `BadState` in RESET; `Unsupported` for a QP with a `RecvSource` or an SRQ.
    fn post_recv(&self, wr: &RecvWr<'_>) -> Result<()>;

    /// The `RecvSource` has new WQEs (only if it was told that this is wanted). Never sleeps.
    fn recv_posted(&self);

    /// Another one of the HCA's pollers is to work on this QP (modulo their number). What has begun may
    /// end where it is. Never sleeps.
    fn set_poller(&self, _poller: usize) {}

    /// Binds a memory window of type 1 (those of type 2 are bound by a work request); answers its new
    /// key. The completion comes as of a work request with `wr_id` and `ticket`. Never sleeps.
    fn bind_mw(
        &self,
        _mw: &Arc<dyn MwDriver>,
        _wr_id: u64,
        _ticket: u32,
        _bind: &MwBind,
    ) -> Result<RKey> {
        Err(Error::Unsupported("memory windows"))
    }

    /// UD: receives what is sent to a multicast group, in any state that receives. May sleep.
    ///
    /// # Errors
    /// `Limit` for one of the device's three limits.
    fn attach_mcast(&self, _cx: &MaySleep, _gid: &Gid, _lid: u16) -> Result<()> {
        Err(Error::Unsupported("multicast"))
    }

    /// Undoes `attach_mcast`. May sleep.
    fn detach_mcast(&self, _cx: &MaySleep, _gid: &Gid, _lid: u16) -> Result<()> {
        Err(Error::Unsupported("multicast"))
    }
}

/// A part of an HCA that needs CPU time. One thread at a time polls it.
pub trait Poller: Send + Sync {
    /// Does a bounded amount of work: about `budget` packets or pieces. Never sleeps.
    fn poll(&self, now: Instant, budget: usize) -> Turn;

    /// Where to say that there is work while nobody polls.
    fn set_waker(&self, waker: Arc<dyn Waker>);

    /// To be called before whoever polls sleeps: arms what will wake it. False if there is work: then
    /// it polls again instead. No verb; may make system calls, none of which waits.
    fn before_sleep(&self) -> bool {
        true
    }

    /// A descriptor that becomes readable when there is work, beside the waker; the same for as long
    /// as the poller lives.
    fn sleep_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// To be called after a sleep, before the next poll. As `before_sleep`.
    fn after_sleep(&self) {}
}

/// What a turn of a poller did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Something was done: poll again soon.
    pub worked: bool,
    /// When to poll at the latest, if nothing wakes the poller before.
    pub deadline: Option<Instant>,
}

/// Wakes whoever polls. Callable from any context; never sleeps.
pub trait Waker: Send + Sync {
    /// Poll soon.
    fn wake(&self);
}

/// Where drivers report asynchronous events (`ib_dispatch_event`): callable from any context, never
/// sleeps, handlers run later and elsewhere, in the order of the calls.
pub trait EventSink: Send + Sync {
    /// Reports an event.
    fn dispatch(&self, event: AsyncEvent);
}

/// An asynchronous event (IBA 11.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEvent {
    /// The CQ overflowed or can't be written.
    CqErr(Cqn),
    /// The QP failed for a reason of the device's own.
    QpFatal(Qpn),
    /// The QP's responder saw an invalid request.
    QpReqErr(Qpn),
    /// The QP's responder saw an access that is not allowed.
    QpAccessErr(Qpn),
    /// First message in RTR.
    CommEst(Qpn),
    /// The send queue is drained (SQD).
    SqDrained(Qpn),
    /// The QP has taken its last WQE of an SRQ.
    LastWqeReached(Qpn),
    /// The SRQ failed.
    SrqErr(Srqn),
    /// The SRQ's limit was reached.
    SrqLimitReached(Srqn),
    /// The port is active.
    PortActive(u8),
    /// The port is down.
    PortErr(u8),
    /// The port's GID table changed.
    GidChange(u8),
    /// Work waits for pages of memory on demand; the number of its `Paging`.
    PagesMissing(u32),
    /// The device failed.
    DeviceFatal,
}

/// The driver's own form of an object that a consumer hands back to it.
///
/// # Errors
/// `Invalid` if it belongs to another driver.
pub fn own<T: Any + Send + Sync>(object: Arc<dyn CqDriver>) -> Result<Arc<T>> {
    let any: Arc<dyn Any + Send + Sync> = object;
    any.downcast().map_err(|_| Error::Invalid("a CQ of another driver"))
}
