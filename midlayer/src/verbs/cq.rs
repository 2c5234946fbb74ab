// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Completion queues. How handlers get to run is in `completion` and `run_queue`.

use std::sync::Arc;

use super::Context;
use crate::completion::{CompletionHandler, Notifier};
use crate::context::MaySleep;
use crate::driver::{CqDriver, CqInit, CqMemory, Notify};
use crate::error::{Error, Result};
use crate::object::{self, Base, Object, release};
use crate::types::Cqn;
use crate::work::WorkCompletion;

/// What a consumer wants of a CQ.
#[derive(Default)]
pub struct CqSpec {
    /// Completions it must hold.
    pub cqe: u32,
    /// Completion vector: chooses the run queue.
    pub vector: u32,
    /// Memory of the consumer's own. Without it the driver keeps the completions, for `poll_cq`.
    pub memory: Option<Arc<dyn CqMemory>>,
    /// Hears of completions; see `CompletionHandler`.
    pub handler: Option<CompletionHandler>,
}

/// A completion queue.
pub struct Cq {
    base: Base,
    driver: Arc<dyn CqDriver>,
    notifier: Arc<Notifier>,
    in_consumer_memory: bool,
    context: Arc<Context>,
}

impl Cq {
    pub(super) fn create(cx: &MaySleep, context: &Arc<Context>, spec: CqSpec) -> Result<Arc<Self>> {
        let CqSpec { cqe, vector, memory, handler } = spec;
        check_cqe(context, cqe)?;
        let in_consumer_memory = memory.is_some();
        let notifier = Notifier::new(handler, context.run_queue(vector), !in_consumer_memory);
        let init = CqInit { cqe, vector, memory, events: notifier.clone() };
        object::create(
            cx,
            &context.base().device,
            &[context.base()],
            || context.driver().create_cq(cx, init),
            |driver| Self {
                base: context.base().child("CQ"),
                driver,
                notifier,
                in_consumer_memory,
                context: context.clone(),
            },
        )
    }

    pub(super) fn driver(&self) -> &Arc<dyn CqDriver> {
        &self.driver
    }

    pub(super) fn base(&self) -> &Base {
        &self.base
    }

    /// Its number.
    pub fn cqn(&self) -> Cqn {
        self.driver.cqn()
    }

    /// Completions it holds at the most: at least what was wanted.
    pub fn cqe(&self) -> u32 {
        self.driver.cqe()
    }

    /// Takes up to `max` completions out and adds them to `wcs`, oldest first; returns how many.
    /// Never sleeps; allocates only if `wcs` has no room. Two threads may poll at once: each
    /// completion goes to one of them, the order between the threads is not defined.
    ///
    /// # Errors
    /// `Unsupported` for a CQ in consumer memory.
    #[inline]
    pub fn poll_cq(&self, wcs: &mut Vec<WorkCompletion>, max: usize) -> Result<usize> {
        let _guard = self.base.fast()?;
        self.driver.poll_cq(wcs, max)
    }

    /// Asks for one call of the handler, at the next completion or the next solicited one. Returns
    /// whether there are completions to poll already: events that may have been missed
    /// (`IB_CQ_REPORT_MISSED_EVENTS`). Never sleeps.
    ///
    /// # Errors
    /// `Unsupported` for a CQ in consumer memory: its arm word is there.
    #[inline]
    pub fn req_notify_cq(&self, notify: Notify) -> Result<bool> {
        let _guard = self.base.fast()?;
        if self.in_consumer_memory {
            return Err(Error::Unsupported("req_notify_cq of a CQ in consumer memory"));
        }
        self.notifier.arm(notify);
        self.driver.req_notify_cq(notify)
    }

    /// Changes the size; a CQ in consumer memory moves to new memory, and nothing is written to the old
    /// after the return. Completions are kept. May sleep.
    ///
    /// # Errors
    /// `Limit` beyond `max_cqe`; `Invalid` for no CQE, for memory where there was none or none where
    /// there was some; the driver's own if there are more completions than that.
    pub fn resize_cq(
        &self,
        cx: &MaySleep,
        cqe: u32,
        memory: Option<Arc<dyn CqMemory>>,
    ) -> Result<()> {
        let _verb = self.base.verb(cx)?;
        check_cqe(&self.context, cqe)?;
        if memory.is_some() != self.in_consumer_memory {
            return Err(Error::Invalid("memory of a CQ"));
        }
        self.driver.resize(cx, cqe, memory)
    }

    /// Ends the CQ. Returns when its handler neither runs nor will run. May sleep.
    ///
    /// # Errors
    /// `Busy` while QPs or SRQs use it; `Gone` if it has ended before.
    pub fn destroy(&self, cx: &MaySleep) -> Result<()> {
        object::destroy(cx, self)
    }
}

fn check_cqe(context: &Context, cqe: u32) -> Result<()> {
    match cqe {
        0 => Err(Error::Invalid("a CQ without CQEs")),
        n if n > context.base().device.attr.max_cqe => Err(Error::Limit("max_cqe")),
        _ => Ok(()),
    }
}

impl Object for Cq {
    fn base(&self) -> &Base {
        &self.base
    }

    fn release_uses(&self) {
        release(&[self.context.base()]);
    }

    fn driver_destroy(&self, cx: &MaySleep) -> Result<()> {
        self.driver.destroy(cx)
    }

    fn quiesce(&self, cx: &MaySleep) {
        self.notifier.kill(cx);
        // No event of the CQ comes after its end.
        self.base.device.events.flush(cx);
    }
}
