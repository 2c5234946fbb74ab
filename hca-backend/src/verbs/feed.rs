// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Receive requests on their way from a consumer to the HCA. The HCA wants them before a message
//! comes, so whatever the consumer has posted is taken at once; the consumer is asked to ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crossbeam_queue::ArrayQueue;
use rdma_midlayer::driver::{MalformedWqe, RecvSource, Taken};
use rdma_midlayer::rcu;
use rdma_midlayer::work::{MAX_SGE, RecvWqe, RecvWr};
use rdma_midlayer::{Error, Result};

use super::cq::RECV;
use super::ffi::{ibv_recv_wr, ibv_sge};
use super::pd::Pd;
use super::queue::{Request, WorkQueue};
use crate::soft::spin::SpinLock;

/// Requests posted in one go.
const BATCH: usize = 8;

const IDLE: u8 = 0;
const BUSY: u8 = 1;
/// Busy, and asked to look once more.
const AGAIN: u8 = 2;

/// The receive requests of a QP or an SRQ.
pub(crate) struct Feed {
    pd: Arc<Pd>,
    queue: Arc<WorkQueue>,
    source: Arc<dyn RecvSource>,
    /// The source, if it is the driver's own: requests that came by `post_recv`.
    inbox: Option<Arc<Inbox>>,
    max_wr: u32,
    state: AtomicU8,
    /// A request whose memory is being pinned. Who pumps has it.
    parked: SpinLock<Option<RecvWqe>>,
}

/// Requests that came by `post_recv`.
struct Inbox(ArrayQueue<RecvWqe>);

impl RecvSource for Inbox {
    fn take(&self, wqe: &mut RecvWqe) -> std::result::Result<Taken, MalformedWqe> {
        match self.0.pop() {
            Some(found) => {
                *wqe = found;
                Ok(Taken::Wqe)
            }
            None => Ok(Taken::Empty),
        }
    }

    fn want_doorbell(&self, _wanted: bool) {}
}

impl Feed {
    pub(crate) fn new(
        pd: &Arc<Pd>,
        queue: Arc<WorkQueue>,
        source: Option<Arc<dyn RecvSource>>,
        max_wr: u32,
    ) -> Self {
        let inbox =
            source.is_none().then(|| Arc::new(Inbox(ArrayQueue::new(max_wr.max(1) as usize))));
        let own = inbox.clone().map(|inbox| inbox as Arc<dyn RecvSource>);
        let source = source.or(own).unwrap_or_else(|| Arc::new(Inbox(ArrayQueue::new(1))));
        Self {
            pd: pd.clone(),
            queue,
            source,
            inbox,
            max_wr,
            state: AtomicU8::new(IDLE),
            parked: SpinLock::new(None),
        }
    }

    pub(crate) fn queue(&self) -> &Arc<WorkQueue> {
        &self.queue
    }

    /// From here on the consumer rings when it posts.
    pub(crate) fn want_doorbell(&self) {
        self.source.want_doorbell(true);
    }

    /// Takes over a request of `post_recv`, which `pump` posts. Never sleeps.
    pub(crate) fn push(&self, wr: &RecvWr<'_>) -> Result<()> {
        let inbox = self.inbox.as_ref().ok_or(Error::Unsupported("post_recv beside a source"))?;
        if self.queue.outstanding() as usize + inbox.0.len() >= self.max_wr as usize {
            return Err(Error::QueueFull);
        }
        let mut wqe = RecvWqe::default();
        wqe.set(wr.wr_id, wr.ticket, wr.sges.iter().copied());
        inbox.0.push(wqe).map_err(|_| Error::QueueFull)
    }

    /// Forgets requests that the HCA does not have yet. Nobody posts meanwhile.
    pub(crate) fn reset(&self) {
        if let Some(inbox) = &self.inbox {
            while inbox.0.pop().is_some() {}
        }
        *self.parked.lock() = None;
        self.queue.reset();
    }

    /// Posts what the consumer has, by `post`, which answers how many were taken and why not more;
    /// those that the HCA refuses go to `refused`. Whoever comes while another is at it leaves it to
    /// that one. Whether any were posted. Never sleeps, if `post` does not.
    pub(crate) fn pump(
        &self,
        post: impl Fn(&mut [ibv_recv_wr]) -> std::result::Result<(), (usize, i32)>,
        refused: impl Fn(Request),
    ) -> bool {
        if self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |s| {
            Some(if s == IDLE { BUSY } else { AGAIN })
        }) != Ok(IDLE)
        {
            return false;
        }
        let mut posted = false;
        loop {
            loop {
                let count = self.some(&post, &refused);
                posted |= count > 0;
                if count < BATCH {
                    break;
                }
            }
            // What was asked for meanwhile is looked at once more.
            if self.state.compare_exchange(BUSY, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok()
            {
                return posted;
            }
            self.state.store(BUSY, Ordering::Release);
        }
    }

    /// Posts a batch; how many, and if it was a whole one there may be more.
    fn some(
        &self,
        post: &impl Fn(&mut [ibv_recv_wr]) -> std::result::Result<(), (usize, i32)>,
        refused: &impl Fn(Request),
    ) -> usize {
        let mut sges = [[ibv_sge::default(); MAX_SGE]; BATCH];
        let empty = ibv_recv_wr {
            wr_id: 0,
            next: std::ptr::null_mut(),
            sg_list: std::ptr::null_mut(),
            num_sge: 0,
        };
        let mut wrs = [empty; BATCH];
        let mut count = 0;
        {
            let guard = rcu::enter();
            if self.pd.context().is_suspended() {
                return 0;
            }
            let mut wqe = RecvWqe::default();
            while count < BATCH {
                if !self.queue.has_room() {
                    // The next completion makes room, and calls again.
                    self.queue.block();
                    if !self.queue.has_room() {
                        break;
                    }
                }
                let list = &mut sges[count];
                let parked = self.parked.lock().take();
                let taken = match parked {
                    Some(parked) => {
                        wqe = parked;
                        Ok(Taken::Wqe)
                    }
                    None => self.source.take(&mut wqe),
                };
                let (request, translated) = match taken {
                    Ok(Taken::Empty) => break,
                    Ok(Taken::Wqe) => {
                        let request = Request {
                            wr_id: wqe.wr_id,
                            ticket: wqe.ticket,
                            opcode: RECV,
                            malformed: false,
                        };
                        match self.pd.translate(wqe.sges(), list, &self.queue, &guard) {
                            Ok(translated) => (request, translated),
                            // Whoever pins the memory calls again.
                            Err(_) => {
                                *self.parked.lock() = Some(wqe);
                                break;
                            }
                        }
                    }
                    Err(MalformedWqe { wr_id, ticket }) => {
                        (Request { wr_id, ticket, opcode: RECV, malformed: true }, None)
                    }
                };
                let num_sge = translated.unwrap_or_else(|| {
                    list[0] = self.pd.context().hca().poison.sge();
                    1
                });
                // There was room, and nobody else reserves.
                let Some(name) = self.queue.reserve(request) else { break };
                wrs[count] = ibv_recv_wr {
                    wr_id: name,
                    sg_list: list.as_mut_ptr(),
                    num_sge: num_sge as i32,
                    ..empty
                };
                count += 1;
            }
        }
        if count == 0 {
            return 0;
        }
        if let Err((taken, errno)) = post(&mut wrs[..count]) {
            log::debug!("receive requests refused: errno {errno}");
            for wr in wrs[taken..count].iter().rev() {
                let name = super::queue::Name::decode(wr.wr_id);
                let request = self.queue.peek(name);
                self.queue.take_back(wr.wr_id);
                refused(request);
            }
            return taken.min(BATCH - 1);
        }
        count
    }
}
