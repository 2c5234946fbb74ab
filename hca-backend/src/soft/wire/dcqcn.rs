// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Congestion: the rate of a sender that is told of it (DCQCN: decrease by what the fraction of
//! marked packets says, fast recovery, additive and then hyper increase), and when a receiver tells.
//! All steps by time, reckoned when the sender next looks.

use std::time::{Duration, Instant};

/// Time of a step up, and of a step of alpha down.
const STEP: Duration = Duration::from_micros(55);
/// Steps half-way back to the rate before the decrease.
const FAST_STEPS: u32 = 5;
/// Steps of additive increase before the increase itself grows.
const ADDITIVE_STEPS: u32 = 5;
/// Of alpha, which is in 1/1024: weight of news is 1/16.
const ALPHA_ONE: u64 = 1024;
/// Steps reckoned one by one; after so many quiet ones the rate is the line's again.
const MAX_STEPS: u32 = 4096;
/// Least share of the line rate.
const FLOOR: u64 = 1000;
/// A receiver tells no more often.
const CNP_INTERVAL: Duration = Duration::from_micros(50);

/// The rate of one sender.
#[derive(Clone, Debug)]
pub struct Rate {
    line: u64,
    limited: Option<Limited>,
}

#[derive(Clone, Debug)]
struct Limited {
    /// Bytes a second.
    rate: u64,
    target: u64,
    alpha: u64,
    steps: u32,
    stepped: Instant,
    /// When the next packet may go.
    next: Instant,
}

impl Rate {
    /// Unlimited, on a line of so many bytes a second.
    pub fn new(line: u64) -> Self {
        Self { line: line.max(1), limited: None }
    }

    /// The rate now, if it is less than the line's: bytes a second.
    pub fn limit(&self) -> Option<u64> {
        self.limited.as_ref().map(|l| l.rate)
    }

    /// The peer told of congestion.
    pub fn congestion(&mut self, now: Instant) {
        self.advance(now);
        let line = self.line;
        let l = self.limited.get_or_insert(Limited {
            rate: line,
            target: line,
            alpha: ALPHA_ONE,
            steps: 0,
            stepped: now,
            next: now,
        });
        l.target = l.rate;
        l.rate = (l.rate - l.rate / 2 * l.alpha / ALPHA_ONE).max(line / FLOOR).max(1);
        l.alpha = (l.alpha * 15 + ALPHA_ONE) / 16;
        l.steps = 0;
        l.stepped = now;
    }

    /// When the next packet may go: `None` for at once.
    pub fn wait(&mut self, now: Instant) -> Option<Instant> {
        self.limited.as_ref()?;
        self.advance(now);
        self.limited.as_ref().map(|l| l.next).filter(|next| *next > now)
    }

    /// A packet went.
    pub fn sent(&mut self, now: Instant, bytes: usize) {
        if let Some(l) = &mut self.limited {
            let nanos = bytes as u64 * 1_000_000_000 / l.rate;
            l.next = l.next.max(now) + Duration::from_nanos(nanos);
        }
    }

    fn advance(&mut self, now: Instant) {
        let line = self.line;
        let Some(l) = &mut self.limited else { return };
        let mut quiet = 0;
        while now.saturating_duration_since(l.stepped) >= STEP {
            quiet += 1;
            if quiet > MAX_STEPS {
                self.limited = None;
                return;
            }
            l.stepped += STEP;
            l.steps += 1;
            l.alpha = l.alpha * 15 / 16;
            if l.steps > FAST_STEPS {
                let more = l.steps - FAST_STEPS;
                let hyper = u64::from(more.saturating_sub(ADDITIVE_STEPS)) + 1;
                l.target = (l.target + line / 256 * hyper).min(line);
            }
            l.rate = (l.rate + l.target).div_ceil(2);
            if l.rate >= line - line / 100 {
                self.limited = None;
                return;
            }
        }
    }
}

/// Whether a receiver has to tell its peer of congestion.
#[derive(Clone, Debug, Default)]
pub struct Notifier {
    last: Option<Instant>,
    due: bool,
}

impl Notifier {
    /// A packet came that had met congestion. Whether there is something to send now.
    pub fn marked(&mut self, now: Instant) -> bool {
        if self.last.is_none_or(|last| now.saturating_duration_since(last) >= CNP_INTERVAL) {
            self.last = Some(now);
            self.due = true;
        }
        self.due
    }

    /// Whether a notification is due; it is sent then.
    pub fn take(&mut self) -> bool {
        std::mem::take(&mut self.due)
    }

    /// Whether a notification is due.
    pub fn is_due(&self) -> bool {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_halves_at_the_first_notification_and_comes_back_when_none_follow() {
        let mut now = Instant::now();
        let mut rate = Rate::new(1_000_000_000);
        assert_eq!((rate.limit(), rate.wait(now)), (None, None));
        rate.congestion(now);
        assert_eq!(rate.limit(), Some(500_000_000));
        rate.sent(now, 1000);
        assert_eq!(rate.wait(now), Some(now + Duration::from_micros(2)));
        let mut last = 0;
        while let Some(limit) = rate.limit() {
            assert!(limit >= last, "it only grows");
            last = limit;
            now += STEP;
            let _ = rate.wait(now);
        }
        assert!(now.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn many_notifications_leave_a_rate_above_nothing() {
        let now = Instant::now();
        let mut rate = Rate::new(1_000_000);
        (0..1000).for_each(|_| rate.congestion(now));
        assert_eq!(rate.limit(), Some(1000));
    }

    #[test]
    fn a_receiver_tells_at_most_once_an_interval() {
        let now = Instant::now();
        let mut notifier = Notifier::default();
        let told = (0..100).filter(|i| {
            notifier.marked(now + Duration::from_micros(*i));
            notifier.take()
        });
        assert_eq!(told.count(), 2);
    }
}
