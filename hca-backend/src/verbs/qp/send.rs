// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a QP's send requests get to the HCA: at once, in bursts, or over the stage and the driver's
//! thread.

use super::*;

impl Qp {
    /// A WR that must fail, for one that makes no sense.
    pub(super) fn poison(&self, sges: &mut [ibv_sge; HOST_SGE]) -> ibv_send_wr {
        sges[0] = self.context.hca().poison.sge();
        let mut wr = empty_wr();
        wr.send_flags = SEND_SIGNALED;
        if self.qp_type == QpType::Ud {
            let ah = lock(&self.nowhere).as_ref().map_or(std::ptr::null_mut(), HostAh::as_ptr);
            wr.wr.ud = wr_ud { ah, remote_qpn: self.qpn.0, remote_qkey: 0 };
        }
        wr
    }

    pub(super) fn refuse(&self, errno: i32) -> Error {
        match errno {
            // Room comes with the next completion.
            libc::ENOMEM => Error::QueueFull,
            errno => self.context.hca().host.error(errno),
        }
    }

    /// Posts one request at once; `again` says whether it is a second try.
    pub(super) fn post_now(
        &self,
        request: Request,
        wr: &mut ibv_send_wr,
        sges: &mut [ibv_sge],
        num_sge: usize,
    ) -> Result<()> {
        wr.sg_list = sges.as_mut_ptr();
        wr.num_sge = num_sge as i32;
        let host = self.fast.lock();
        let host = host.as_ref().ok_or(Error::Gone)?;
        let mut name = self.send.reserve(request);
        if name.is_none() {
            self.send.block();
            name = self.send.reserve(request);
        }
        wr.wr_id = name.ok_or(Error::QueueFull)?;
        host.post_send(std::slice::from_mut(wr)).map_err(|(_, errno)| {
            self.send.take_back(wr.wr_id);
            if errno == libc::ENOMEM {
                self.send.block();
            }
            self.refuse(errno)
        })
    }

    /// Posts a bind at once. One that makes no sense, or that the HCA refuses, fails in its turn.
    pub(super) fn post_bind(
        &self,
        request: Request,
        wr: &mut ibv_send_wr,
        bind: &MwBind,
    ) -> Result<()> {
        let mut sges = [ibv_sge::default(); HOST_SGE];
        if let Ok(_bound) = resolve_bind(&self.pd, wr, bind) {
            match self.post_now(request, wr, &mut sges, 0) {
                Err(e) if !matches!(e, Error::QueueFull | Error::Gone) => {
                    log::debug!("QP {}: the HCA refuses a bind: {e}", self.qpn);
                }
                posted => return posted,
            }
        }
        let mut wr = self.poison(&mut sges);
        self.post_now(Request { malformed: true, ..request }, &mut wr, &mut sges, 1)
    }

    /// Posts as many requests as go into one post, at once; how many, and why not the next.
    pub(super) fn post_burst(
        &self,
        wrs: &[SendWr<'_>],
        guard: &rcu::Guard,
    ) -> (usize, Option<Error>) {
        if let Err(error) = self.may_send() {
            return (0, Some(error));
        }
        let mut sges = [ibv_sge::default(); 2 * HOST_SGE];
        let mut free = &mut sges[..];
        let mut chain = [empty_wr(); CHAIN];
        let (mut count, mut error) = (0, None);
        let host = self.fast.lock();
        let Some(host) = host.as_ref() else { return (0, Some(Error::Gone)) };
        for (wr, place) in wrs.iter().zip(&mut chain) {
            // A bind holds on to its objects during its post: it goes alone.
            if free.len() < HOST_SGE || matches!(wr.data, SendData::Bind(_)) {
                break;
            }
            let request = Request {
                wr_id: wr.wr_id,
                ticket: wr.ticket,
                opcode: wr.opcode.code(),
                malformed: false,
            };
            let made = prepare(&self.pd, self.qp_type, &self.send, wr, free, self.host_sge, guard);
            let mut prepared = match made {
                Ok(prepared) => prepared,
                Err(e) => {
                    error = Some(e);
                    break;
                }
            };
            match resolve(&mut prepared, self.send_ready.as_ref()) {
                Some(Ok(())) => {}
                Some(Err(e)) => error = Some(e),
                None => error = Some(Error::QueueFull),
            }
            if error.is_some() {
                break;
            }
            let mut name = self.send.reserve(request);
            if name.is_none() {
                self.send.block();
                name = self.send.reserve(request);
            }
            let Some(name) = name else {
                error = Some(Error::QueueFull);
                break;
            };
            let (list, rest) = std::mem::take(&mut free).split_at_mut(prepared.num_sge);
            free = rest;
            *place = ibv_send_wr {
                wr_id: name,
                sg_list: list.as_mut_ptr(),
                num_sge: prepared.num_sge as i32,
                ..prepared.wr
            };
            count += 1;
        }
        if count > 0
            && let Err((taken, errno)) = host.post_send(&mut chain[..count])
        {
            chain[taken..count].iter().rev().for_each(|wr| self.send.take_back(wr.wr_id));
            if errno == libc::ENOMEM {
                self.send.block();
            }
            return (taken, Some(self.refuse(errno)));
        }
        (count, error)
    }

    /// Puts a request on the stage.
    pub(super) fn stage(
        &self,
        stage: &Stage,
        request: Request,
        mut staged: Box<Staged>,
    ) -> Result<()> {
        let posting = self.fast.lock();
        let mut name = self.send.reserve(request);
        if name.is_none() {
            self.send.block();
            name = self.send.reserve(request);
        }
        let Some(name) = name else {
            drop(posting);
            stage.give_back(staged);
            return Err(Error::QueueFull);
        };
        staged.prepared.wr.wr_id = name;
        stage.push(staged);
        drop(posting);
        self.call_thread();
        Ok(())
    }

    pub(super) fn place(&self, stage: &Stage) -> Result<Box<Staged>> {
        if let Some(place) = stage.place() {
            return Ok(place);
        }
        self.send.block();
        stage.place().ok_or(Error::QueueFull)
    }

    /// The driver's thread: posts what is on the stage, and receive requests.
    pub(crate) fn post_staged(&self, cx: &MaySleep) {
        self.queued.swap(false, Ordering::AcqRel);
        // Held so that `destroy` and RESET wait.
        let mut held = lock(&self.held);
        let Ok(host) = self.host() else { return };
        let Some(stage) = &self.stage else { return };
        let before = held.len();
        while let Some(staged) = stage.pop() {
            held.push_back(staged);
        }
        // What was there to receive before these were staged is there before they are sent.
        self.context.hca().engine.post_receives();
        let had = held.len() > before || before > 0;
        while !held.is_empty() {
            let count = held.len().min(CHAIN);
            let mut chain = [empty_wr(); CHAIN];
            let mut bound = Vec::new();
            for (wr, staged) in chain.iter_mut().zip(held.iter_mut()) {
                *wr = self.chained(cx, staged, &mut bound);
            }
            let result = host.post_send(&mut chain[..count]);
            drop(bound);
            let (taken, errno) = match result {
                Ok(()) => (count, 0),
                Err(refused) => refused,
            };
            held.drain(..taken).for_each(|staged| stage.give_back(staged));
            match errno {
                0 => {}
                // The next completion makes room, and calls again.
                libc::ENOMEM if self.send.outstanding() as usize > held.len() => break,
                errno => {
                    if let Some(staged) = held.pop_front() {
                        self.replace_refused(&host, &staged, errno);
                        stage.give_back(staged);
                    }
                }
            }
        }
        let left = !held.is_empty() || stage.has_ready();
        drop(held);
        if had {
            self.send.unblock();
        }
        if left {
            self.call_thread();
        }
    }

    /// A staged request, ready for the chain; `bound` keeps what it names during the post.
    fn chained(&self, cx: &MaySleep, staged: &mut Staged, bound: &mut Vec<Bound>) -> ibv_send_wr {
        if let Some(path) = &staged.prepared.path {
            path.make(cx);
        }
        let Staged { prepared, sges, inline } = staged;
        let name = prepared.wr.wr_id;
        let mut resolved = matches!(resolve(prepared, None), Some(Ok(())));
        if let Some(bind) = &prepared.bind {
            match resolve_bind(&self.pd, &mut prepared.wr, bind) {
                Ok(named) => bound.push(named),
                Err(_) => resolved = false,
            }
        }
        if !resolved {
            self.send.mark_malformed(name);
            prepared.wr = ibv_send_wr { wr_id: name, ..self.poison(sges) };
            prepared.num_sge = 1;
            prepared.path = None;
            prepared.bind = None;
        }
        if prepared.wr.send_flags & SEND_INLINE != 0 {
            sges[0] =
                ibv_sge { addr: inline.as_ptr() as u64, length: inline.len() as u32, lkey: 0 };
        }
        prepared.wr.sg_list = sges.as_mut_ptr();
        prepared.wr.num_sge = prepared.num_sge as i32;
        prepared.wr
    }

    /// In place of a request that the HCA refuses comes one that fails in its turn; if that is refused
    /// too, the QP ends in ERR and the completion is the driver's own.
    fn replace_refused(&self, host: &HostQp, staged: &Staged, errno: i32) {
        let name = staged.prepared.wr.wr_id;
        log::debug!("QP {}: the HCA refuses a request: errno {errno}", self.qpn);
        self.send.mark_malformed(name);
        let mut sges = staged.sges;
        let mut wr = self.poison(&mut sges);
        wr.wr_id = name;
        wr.sg_list = sges.as_mut_ptr();
        wr.num_sge = 1;
        if host.post_send(std::slice::from_mut(&mut wr)).is_ok() {
            return;
        }
        if let Some(request) = self.send.complete(Name::decode(name)) {
            self.complete_here(&self.send_cq, request);
        }
        if let Some(this) = self.this.upgrade() {
            self.context.hca().engine.submit(Job::Fail(this));
        }
    }
}
