// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Numbers of a context's objects. Each kind has a pool of its own per context, so that a tenant's
//! numbers depend on that tenant alone.

/// Which free number comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// The lowest: tables stay small.
    Early,
    /// The one that was free the longest way round: a late packet or a stale name finds nothing.
    Late,
}

/// Free and used numbers from `first` on.
pub(crate) struct NumberPool {
    first: u32,
    count: u32,
    reuse: Reuse,
    /// One bit a number that is in use; grows with the numbers.
    used: Vec<u64>,
    in_use: u32,
    /// Where to look first (counted from `first`).
    next: u32,
}

impl NumberPool {
    pub(crate) fn new(first: u32, count: u32, reuse: Reuse) -> Self {
        Self { first, count, reuse, used: Vec::new(), in_use: 0, next: 0 }
    }

    /// A number that is not in use.
    pub(crate) fn take(&mut self) -> Option<u32> {
        if self.in_use == self.count {
            return None;
        }
        let at = self.free_from(self.next).or_else(|| self.free_from(0))?;
        let word = (at / 64) as usize;
        if word >= self.used.len() {
            self.used.resize(word + 1, 0);
        }
        self.used[word] |= 1 << (at % 64);
        self.in_use += 1;
        self.next = (at + 1) % self.count;
        Some(self.first + at)
    }

    /// Gives a number back.
    pub(crate) fn give_back(&mut self, number: u32) {
        let Some(at) = number.checked_sub(self.first) else { return };
        let Some(word) = self.used.get_mut((at / 64) as usize) else { return };
        let bit = 1 << (at % 64);
        if *word & bit == 0 {
            return;
        }
        *word &= !bit;
        self.in_use -= 1;
        if self.reuse == Reuse::Early {
            self.next = self.next.min(at);
        }
    }

    fn free_from(&self, start: u32) -> Option<u32> {
        let mut at = start;
        while at < self.count {
            let word = self.used.get((at / 64) as usize).copied().unwrap_or(0);
            let free = !word >> (at % 64);
            if free != 0 {
                at += free.trailing_zeros();
                return (at < self.count).then_some(at);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_once_and_then_none() {
        for reuse in [Reuse::Early, Reuse::Late] {
            let mut pool = NumberPool::new(16, 130, reuse);
            let all: std::collections::BTreeSet<_> =
                (0..130).map(|_| pool.take().unwrap()).collect();
            assert_eq!(all.into_iter().collect::<Vec<_>>(), (16..146).collect::<Vec<_>>());
            assert_eq!(pool.take(), None);
            pool.give_back(77);
            assert_eq!(pool.take(), Some(77));
        }
    }

    #[test]
    fn early_reuse_takes_the_lowest_and_late_reuse_goes_round() {
        let mut early = NumberPool::new(0, 10, Reuse::Early);
        let mut late = NumberPool::new(0, 10, Reuse::Late);
        for pool in [&mut early, &mut late] {
            (0..3).for_each(|n| assert_eq!(pool.take(), Some(n)));
            pool.give_back(1);
        }
        assert_eq!(early.take(), Some(1));
        assert_eq!(late.take(), Some(3));
    }

    #[test]
    fn giving_back_what_is_not_in_use_changes_nothing() {
        let mut pool = NumberPool::new(5, 2, Reuse::Early);
        pool.give_back(5);
        pool.give_back(4);
        pool.give_back(1000);
        assert_eq!((pool.take(), pool.take(), pool.take()), (Some(5), Some(6), None));
    }
}
