// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a worker gives a QP to another one: how much each has to do, and who is to have what. It sees
//! times that it is given, and no clock. Not here: how a QP gets there (`seat`), whose turn it is with a
//! worker (`share`).

use std::time::{Duration, Instant};

/// A worker that works in so many thousandths of a period has as much as it can do.
const FULL: u32 = 900;
/// What a busy queue counts at a worker that has as much as it can do.
const QUEUE: u32 = 1000;
/// By how much the loads must differ: a move then makes the larger of the two smaller.
const GAP: u32 = QUEUE * 3 / 2;
/// Periods in a row that must ask for a move: a burst is no load.
const PATIENCE: u32 = 2;
/// Periods after a move without another, for its effect to show.
const REST: u32 = 4;

/// How much of its time a worker works: its turns with work, measured by those without. For the clock
/// is looked at once in many turns.
pub struct Meter {
    begun: Instant,
    last: Instant,
    busy: Duration,
    /// What a turn without work takes: the least that was seen in this period and the one before.
    idle_turn: [Duration; 2],
}

impl Meter {
    /// From now on.
    pub fn new(now: Instant) -> Self {
        Self { begun: now, last: now, busy: Duration::ZERO, idle_turn: [Duration::MAX; 2] }
    }

    /// A look at the clock, after `turns` of which `worked` had work.
    #[inline]
    pub fn look(&mut self, now: Instant, turns: u32, worked: u32) {
        let time = now.saturating_duration_since(self.last);
        self.last = now;
        if worked == 0 {
            let each = time / turns.max(1);
            self.idle_turn[0] = self.idle_turn[0].min(each);
            return;
        }
        let idle = self.idle_turn[0].min(self.idle_turn[1]);
        // Unknown: then nothing was ever idle.
        let idle = if idle == Duration::MAX { Duration::ZERO } else { idle };
        self.busy += time.saturating_sub(idle * turns.saturating_sub(worked));
    }

    /// The worker has slept until now.
    pub fn slept(&mut self, now: Instant) {
        self.last = now;
    }

    /// If a period has passed: the thousandths of it in which the worker worked. Then another one begins.
    #[inline]
    pub fn period(&mut self, now: Instant, period: Duration) -> Option<u32> {
        let time = now.saturating_duration_since(self.begun);
        if time < period {
            return None;
        }
        let share = self.busy.as_nanos() * 1000 / time.as_nanos().max(1);
        self.begun = now;
        self.busy = Duration::ZERO;
        self.idle_turn = [Duration::MAX, self.idle_turn[0].min(self.idle_turn[1])];
        Some(share.min(1000) as u32)
    }
}

/// Whether a worker has as much as it can do, by its share of a period in thousandths.
pub fn is_full(share: u32) -> bool {
    share >= FULL
}

/// A worker's load: if it has as much as it can do, what its busy queues count; else its share.
pub fn load(share: u32, busy: usize) -> u32 {
    if is_full(share) { (busy.clamp(1, 1 << 16) as u32) * QUEUE } else { share }
}

/// What a move changes the load of the worker that gets the queue by.
pub const MOVED: u32 = QUEUE;

/// Who is to have one of the queues of worker `own`, if somebody is.
fn receiver(own: usize, loads: &[u32]) -> Option<usize> {
    let others = loads.iter().enumerate().filter(|(n, _)| *n != own);
    let (to, least) = others.min_by_key(|(_, load)| **load)?;
    (*loads.get(own)? >= least.saturating_add(GAP)).then_some(to)
}

/// How often a worker gives: one queue in a period at the most, and only after others have passed.
#[derive(Default)]
pub struct Giver {
    asked: u32,
    rest: u32,
}

impl Giver {
    /// A period has passed with these loads of all workers: who is to have a queue of `own`'s.
    pub fn period(&mut self, own: usize, loads: &[u32]) -> Option<usize> {
        let to = receiver(own, loads);
        self.rest = self.rest.saturating_sub(1);
        self.asked = if to.is_some() { self.asked + 1 } else { 0 };
        to.filter(|_| self.asked >= PATIENCE && self.rest == 0)
    }

    /// It got one.
    pub fn gave(&mut self) {
        (self.asked, self.rest) = (0, REST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// The share of a period in which, of each ten turns, `worked` take 5 us and the others 0.1.
    fn share(worked: u32) -> u32 {
        let mut now = Instant::now();
        let mut meter = Meter::new(now);
        // Idle at first: so it learns what that takes.
        now += US;
        meter.look(now, 10, 0);
        loop {
            now += US * 5 * worked + US / 10 * (10 - worked);
            meter.look(now, 10, worked);
            if let Some(share) = meter.period(now, Duration::from_millis(10)) {
                return share;
            }
        }
    }

    #[test]
    fn few_long_turns_among_many_empty_ones_are_work() {
        assert_eq!(share(0), 0);
        assert!((830..870).contains(&share(1)), "{}", share(1));
        assert!(share(10) >= 999);
        assert!(is_full(share(5)) && !is_full(share(1)));
    }

    #[test]
    fn sleep_is_no_work() {
        let begin = Instant::now();
        let mut meter = Meter::new(begin);
        meter.slept(begin + US * 900);
        meter.look(begin + US * 1000, 1, 1);
        assert_eq!(meter.period(begin + US * 1000, US * 1000), Some(100));
    }

    /// What comes of so many equal queues, all at the first of the workers, in `periods`: how many each
    /// worker has in the end, and the moves.
    fn settle(workers: usize, queues: usize, periods: usize) -> (Vec<usize>, usize) {
        let mut at = vec![0; workers];
        at[0] = queues;
        let mut givers: Vec<Giver> = (0..workers).map(|_| Giver::default()).collect();
        let mut moves = 0;
        for _ in 0..periods {
            let mut loads: Vec<u32> =
                at.iter().map(|n| load(if *n > 0 { 1000 } else { 0 }, *n)).collect();
            for (own, giver) in givers.iter_mut().enumerate() {
                if let Some(to) = giver.period(own, &loads) {
                    giver.gave();
                    loads[to] += MOVED;
                    at[own] -= 1;
                    at[to] += 1;
                    moves += 1;
                }
            }
        }
        (at, moves)
    }

    #[test]
    fn queues_of_one_worker_spread_over_all_and_then_stay() {
        assert_eq!(settle(2, 2, 1000), (vec![1, 1], 1));
        assert_eq!(settle(2, 3, 1000), (vec![2, 1], 1));
        assert_eq!(settle(4, 16, 1000), (vec![4, 4, 4, 4], 12));
        let (at, moves) = settle(3, 7, 1000);
        assert!(at.iter().all(|n| *n >= 2) && moves == 4, "{at:?} after {moves}");
    }

    #[test]
    fn one_busy_queue_stays_where_it_is() {
        assert_eq!(settle(4, 1, 1000), (vec![1, 0, 0, 0], 0));
    }

    #[test]
    fn moves_have_a_bounded_rate() {
        assert_eq!(settle(2, 1000, 1).1, 0, "a burst is no load");
        let (_, moves) = settle(2, 1000, 400);
        assert!((50..=100).contains(&moves), "{moves}");
    }

    #[test]
    fn a_worker_with_time_left_gives_nothing() {
        let mut giver = Giver::default();
        let loads = [load(800, 1000), 0];
        assert!((0..100).all(|_| giver.period(0, &loads).is_none()));
    }

    #[test]
    fn a_load_that_evens_out_by_itself_moves_nothing() {
        let mut giver = Giver::default();
        for n in 0..100 {
            let loads = [load(1000, 2), if n % 2 == 0 { 0 } else { 2000 }];
            assert_eq!(giver.period(0, &loads), None);
        }
    }
}
