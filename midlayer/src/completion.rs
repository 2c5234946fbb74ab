// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a completion to the call of the consumer's handler: arming, and scheduling.

use std::sync::Arc;

use crate::context::MaySleep;
use crate::driver::{CqEvents, Notify};
use crate::run_queue::{RunQueue, Task};
use crate::sync::{AtomicU8, Ordering, full_fence};

/// What a consumer gives to hear of completions: called with whether one of them was solicited.
///
/// Runs where the CQ's vector is drained, never twice at once, never inside a verb; must not sleep.
/// Of a CQ that the driver keeps: once for each `req_notify_cq`. Of a CQ in consumer memory: after each
/// burst, for it to look whether the guest has armed; it fences first.
pub type CompletionHandler = Box<dyn Fn(bool) + Send + Sync>;

const NOT_ARMED: u8 = 0;
const SOLICITED: u8 = 1;
const NEXT: u8 = 2;

/// What the driver is given to report completions of one CQ.
pub(crate) struct Notifier {
    task: Option<Arc<Task>>,
    /// Only what was asked for by `arm` gets through.
    gated: bool,
    armed: AtomicU8,
}

impl Notifier {
    pub(crate) fn new(
        handler: Option<CompletionHandler>,
        queue: &Arc<RunQueue>,
        gated: bool,
    ) -> Arc<Self> {
        let task = handler.map(|handler| Task::new(queue.clone(), handler));
        Arc::new(Self { task, gated, armed: AtomicU8::new(NOT_ARMED) })
    }

    /// Asks for one event. The caller looks for completions afterwards. Never sleeps.
    pub(crate) fn arm(&self, notify: Notify) {
        let level = match notify {
            Notify::Solicited => SOLICITED,
            Notify::Next => NEXT,
        };
        // A wish for any completion is not narrowed by one for a solicited one.
        self.armed.fetch_max(level, Ordering::AcqRel);
        // Pairs with the fence in `take_arm`: either it sees the wish, or the look that follows sees
        // the completion.
        full_fence();
    }

    /// Takes the wish away if this is what it is for.
    fn take_arm(&self, solicited: bool) -> bool {
        full_fence();
        let fits = |armed| match armed {
            NEXT => Some(NOT_ARMED),
            SOLICITED if solicited => Some(NOT_ARMED),
            _ => None,
        };
        self.armed.fetch_update(Ordering::AcqRel, Ordering::Relaxed, fits).is_ok()
    }

    /// Returns when the handler neither runs nor will run. May sleep.
    pub(crate) fn kill(&self, cx: &MaySleep) {
        if let Some(task) = &self.task {
            task.kill(cx);
        }
    }
}

impl CqEvents for Notifier {
    #[inline]
    fn completed(&self, solicited: bool) {
        if let Some(task) = &self.task
            && (!self.gated || self.take_arm(solicited))
        {
            task.schedule(solicited);
        }
    }

    fn wanted(&self) -> bool {
        if !self.gated {
            return self.task.is_some();
        }
        full_fence();
        self.task.is_some() && self.armed.load(Ordering::Relaxed) != NOT_ARMED
    }
}
