// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whose turn it is with a worker: each VM has the same share of a round, and each of its busy queues
//! the same share of that. A queue that has had no news for a while is looked at now and then, so that
//! many of them don't hold up the others. Not here: what a turn does (`qp`).

use std::collections::VecDeque;

use crate::qp::Turn;

/// What a VM may cost in one round: a WQE costs one, and so does each `COST_BYTES` of it.
const VM_BUDGET: usize = 32;
/// What one of a VM's busy queues may cost before the next has its turn.
const QUEUE_BUDGET: usize = 16;
/// Busy queues of a VM that have a turn in one round.
const BUSY_VISITS: usize = 32;
/// Other queues of a VM that are looked at in one round.
const QUIET_VISITS: usize = 4;
/// While a VM's busy queues have work, its other ones are looked at once in so many rounds.
const BUSY_ROUNDS: u64 = 4;
/// Looks at busy queues between two rounds that find nothing: a round looks at more than those, and news
/// come there mostly.
const LOOKS_AGAIN: usize = 16;
/// Rounds without news after which a queue is no longer a busy one.
const BUSY_PATIENCE: u64 = 64;
/// Rounds without news after which a queue is no longer polled while others are.
const PATIENCE: u64 = 4096;
/// Empty shares that are kept for VMs that come back.
const SPARE: usize = 64;

/// Bytes that cost as much as a WQE.
pub const COST_BYTES: u64 = 8 << 10;

/// A queue that a worker takes turns with.
pub trait Queue {
    /// What a turn needs.
    type Room;

    /// Tells VMs apart.
    fn vm(&self) -> usize;

    /// Does work worth up to `budget`, or a little more.
    fn turn(&self, room: &mut Self::Room, budget: usize) -> Turn;

    /// From here on the queue asks for attention itself. False if it stays, since there is work all the
    /// same.
    fn arm(&self) -> bool;
}

/// The queues of one worker.
pub struct Shares<Q> {
    vms: Vec<Share<Q>>,
    round: u64,
}

struct Share<Q> {
    vm: usize,
    busy: VecDeque<Polled<Q>>,
    quiet: VecDeque<Polled<Q>>,
}

struct Polled<Q> {
    queue: Q,
    /// The round of the last news.
    news: u64,
}

impl<Q> Default for Shares<Q> {
    fn default() -> Self {
        Self { vms: Vec::new(), round: 0 }
    }
}

impl<Q: Queue> Shares<Q> {
    /// Takes a queue in.
    pub fn add(&mut self, queue: Q) {
        let polled = Polled { news: self.round, queue };
        let vm = polled.queue.vm();
        match self.vms.iter_mut().find(|share| share.vm == vm) {
            Some(share) => share.busy.push_back(polled),
            None => {
                if self.vms.len() >= SPARE {
                    self.vms.retain(|share| !share.is_empty());
                }
                let (busy, quiet) = (VecDeque::from([polled]), VecDeque::new());
                self.vms.push(Share { vm, busy, quiet });
            }
        }
    }

    /// A round: each VM has its share. Whether anything was done.
    #[inline]
    pub fn round(&mut self, room: &mut Q::Room) -> bool {
        self.round += 1;
        let mut worked = false;
        for share in &mut self.vms {
            let busy = share.busy_turns(room, self.round);
            worked |= busy;
            let look = !busy || self.round.is_multiple_of(BUSY_ROUNDS);
            if look && !share.quiet.is_empty() {
                worked |= share.quiet_turns(room, self.round);
            }
        }
        worked
    }

    /// After a round without news: looks a few times more at the busy queues, if they are few. Whether
    /// anything was done.
    #[inline]
    pub fn look_again(&mut self, room: &mut Q::Room) -> bool {
        let busy = self.vms.iter().map(|share| share.busy.len()).sum();
        let mut left = LOOKS_AGAIN;
        while busy > 0 && left >= busy {
            left -= busy;
            for share in &mut self.vms {
                if share.busy_turns(room, self.round) {
                    return true;
                }
            }
        }
        false
    }

    /// The number of the last round.
    pub fn now(&self) -> u64 {
        self.round
    }

    /// The queues that have had news after a round.
    pub fn busy_since(&self, round: u64) -> impl Iterator<Item = &Q> {
        let busy = self.vms.iter().flat_map(|share| &share.busy);
        busy.filter(move |polled| polled.news > round).map(|polled| &polled.queue)
    }

    /// Takes a queue out, if it is here.
    pub fn take_out(&mut self, is: impl Fn(&Q) -> bool) -> Option<Q> {
        self.vms.iter_mut().flat_map(|share| [&mut share.busy, &mut share.quiet]).find_map(|list| {
            let at = list.iter().position(|polled| is(&polled.queue))?;
            list.remove(at).map(|polled| polled.queue)
        })
    }

    /// Lets go of all queues that have no work. Whether none is left.
    pub fn arm_all(&mut self) -> bool {
        for share in &mut self.vms {
            share.busy.append(&mut share.quiet);
            share.busy.retain(|polled| !polled.queue.arm());
        }
        self.vms.iter().all(Share::is_empty)
    }
}

impl<Q: Queue> Share<Q> {
    fn is_empty(&self) -> bool {
        self.busy.is_empty() && self.quiet.is_empty()
    }

    #[inline]
    fn busy_turns(&mut self, room: &mut Q::Room, round: u64) -> bool {
        let visits = self.busy.len().min(BUSY_VISITS);
        let each = if self.busy.len() == 1 { VM_BUDGET } else { QUEUE_BUDGET };
        let (mut left, mut worked) = (VM_BUDGET, false);
        for _ in 0..visits {
            let Some(mut polled) = self.busy.pop_front() else { break };
            match polled.queue.turn(room, each.min(left)) {
                Turn::Worked(cost) => {
                    worked = true;
                    polled.news = round;
                    self.busy.push_back(polled);
                    left = left.saturating_sub(cost);
                }
                Turn::Idle if round - polled.news > BUSY_PATIENCE => self.quiet.push_back(polled),
                Turn::Idle => self.busy.push_back(polled),
                Turn::Left => {}
            }
            if left == 0 {
                break;
            }
        }
        worked
    }

    fn quiet_turns(&mut self, room: &mut Q::Room, round: u64) -> bool {
        let mut worked = false;
        for _ in 0..self.quiet.len().min(QUIET_VISITS) {
            let Some(mut polled) = self.quiet.pop_front() else { break };
            match polled.queue.turn(room, QUEUE_BUDGET) {
                Turn::Worked(_) => {
                    worked = true;
                    polled.news = round;
                    self.busy.push_back(polled);
                }
                Turn::Idle if round - polled.news > PATIENCE => {
                    if !polled.queue.arm() {
                        self.busy.push_back(polled);
                    }
                }
                Turn::Idle => self.quiet.push_back(polled),
                Turn::Left => {}
            }
        }
        worked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    /// A queue of so many WQEs of one size.
    struct Fake {
        vm: usize,
        cost: usize,
        waiting: Cell<usize>,
        done: Cell<usize>,
        looked_at: Cell<usize>,
    }

    impl Queue for Rc<Fake> {
        type Room = ();
        fn vm(&self) -> usize {
            self.vm
        }
        fn turn(&self, (): &mut (), budget: usize) -> Turn {
            self.looked_at.set(self.looked_at.get() + 1);
            let count = budget.div_ceil(self.cost).min(self.waiting.get());
            self.waiting.set(self.waiting.get() - count);
            self.done.set(self.done.get() + count * self.cost);
            if count == 0 { Turn::Idle } else { Turn::Worked(count * self.cost) }
        }
        fn arm(&self) -> bool {
            self.waiting.get() == 0
        }
    }

    fn fake(vm: usize, cost: usize, waiting: usize) -> Rc<Fake> {
        let zero = || Cell::new(0);
        Rc::new(Fake { vm, cost, waiting: Cell::new(waiting), done: zero(), looked_at: zero() })
    }

    fn rounds(shares: &mut Shares<Rc<Fake>>, count: usize) {
        (0..count).for_each(|_| {
            shares.round(&mut ());
        });
    }

    const MANY: usize = 1 << 30;

    #[test]
    fn a_vm_with_a_thousand_deep_queues_gets_no_more_than_one_with_a_single_queue() {
        let mut shares = Shares::default();
        let single = fake(2, 1, MANY);
        let many: Vec<_> = (0..1000).map(|_| fake(1, 1, MANY)).collect();
        many.iter().for_each(|queue| shares.add(queue.clone()));
        shares.add(single.clone());
        rounds(&mut shares, 10_000);
        let all: usize = many.iter().map(|queue| queue.done.get()).sum();
        assert_eq!((single.done.get(), all), (32 * 10_000, 32 * 10_000));
        let least = many.iter().map(|queue| queue.done.get()).min();
        let most = many.iter().map(|queue| queue.done.get()).max();
        assert!(most.unwrap() - least.unwrap() <= 16, "{least:?} to {most:?}");
    }

    #[test]
    fn a_queue_of_large_transfers_does_not_hold_up_one_of_small_ones() {
        let mut shares = Shares::default();
        let (large, small) = (fake(1, 9, MANY), fake(1, 1, MANY));
        shares.add(large.clone());
        shares.add(small.clone());
        rounds(&mut shares, 1000);
        let (large, small) = (large.done.get(), small.done.get());
        assert!(large <= small * 3 / 2 && small <= large * 3 / 2, "{large} against {small}");
    }

    #[test]
    fn queues_without_news_cost_a_bounded_number_of_looks_and_are_let_go_in_the_end() {
        let mut shares = Shares::default();
        let quiet: Vec<_> = (0..1000).map(|_| fake(1, 1, 0)).collect();
        quiet.iter().for_each(|queue| shares.add(queue.clone()));
        let looks = || quiet.iter().map(|queue| queue.looked_at.get()).sum::<usize>();
        rounds(&mut shares, 20_000);
        let before = looks();
        assert!(before <= 20_000 * (BUSY_VISITS + QUIET_VISITS));
        rounds(&mut shares, 100);
        assert_eq!(looks(), before, "all are armed");
    }

    #[test]
    fn a_queue_that_has_news_again_is_found_within_a_bounded_number_of_rounds() {
        let mut shares = Shares::default();
        let queues: Vec<_> = (0..100).map(|_| fake(1, 1, 0)).collect();
        queues.iter().for_each(|queue| shares.add(queue.clone()));
        rounds(&mut shares, 1000);
        queues[37].waiting.set(3);
        rounds(&mut shares, 100 / QUIET_VISITS + 1);
        assert_eq!(queues[37].done.get(), 3);
    }

    #[test]
    fn busy_queues_are_looked_at_again_if_they_are_few_and_quiet_ones_beside_them_not_forgotten() {
        let mut shares = Shares::default();
        let (busy, quiet) = (fake(1, 1, 0), fake(1, 1, 0));
        shares.add(quiet.clone());
        rounds(&mut shares, 100);
        shares.add(busy.clone());
        let looks = || (busy.looked_at.get(), quiet.looked_at.get());
        let before = looks();
        assert!(!shares.look_again(&mut ()));
        assert_eq!(looks(), (before.0 + LOOKS_AGAIN, before.1));
        busy.waiting.set(MANY);
        assert!(shares.look_again(&mut ()));
        assert_eq!(looks(), (before.0 + LOOKS_AGAIN + 1, before.1));
        quiet.waiting.set(1);
        rounds(&mut shares, BUSY_ROUNDS as usize);
        assert_eq!(quiet.done.get(), 1);
        let many: Vec<_> = (0..LOOKS_AGAIN).map(|_| fake(2, 1, 0)).collect();
        many.iter().for_each(|queue| shares.add(queue.clone()));
        let before = looks();
        assert!(!shares.look_again(&mut ()) && looks() == before);
    }

    #[test]
    fn a_queue_that_is_taken_out_has_no_further_turn_and_the_others_go_on() {
        let mut shares = Shares::default();
        let queues = [fake(1, 1, MANY), fake(1, 1, MANY), fake(2, 1, 0)];
        queues.iter().for_each(|queue| shares.add(queue.clone()));
        rounds(&mut shares, 10);
        let since = shares.now();
        assert_eq!(shares.busy_since(since).count(), 0);
        rounds(&mut shares, 10);
        assert_eq!(shares.busy_since(since).count(), 2, "one has had no news");
        let out = shares.take_out(|queue| Rc::ptr_eq(queue, &queues[0])).unwrap();
        assert!(Rc::ptr_eq(&out, &queues[0]));
        assert!(shares.take_out(|queue| Rc::ptr_eq(queue, &queues[0])).is_none());
        let (then, other) = (out.done.get(), queues[1].done.get());
        rounds(&mut shares, 10);
        assert_eq!(out.done.get(), then);
        assert_eq!(queues[1].done.get(), other + 10 * VM_BUDGET);
    }

    #[test]
    fn all_but_those_with_work_are_armed_before_sleep() {
        let mut shares = Shares::default();
        let work = fake(1, 1, 1);
        shares.add(fake(1, 1, 0));
        shares.add(work.clone());
        shares.add(fake(2, 1, 0));
        assert!(!shares.arm_all());
        rounds(&mut shares, 1);
        assert_eq!(work.done.get(), 1);
        assert!(shares.arm_all());
    }
}
