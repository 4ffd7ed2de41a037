//! Spin first, sleep later: how long to look again before giving the core away.
//!
//! A spin lasts [`SPIN_NS_MAX`] at most. One that ends without work is followed by waits that do not spin at all, twice
//! as many each time, up to [`SPIN_SKIPS_MAX`]; one that ends in work forgives all that. So a busy pair of processes
//! meets without ever sleeping, and an idle one, or one whose gaps are long, spends next to nothing on trying.
//!
//! Every look is followed by `sched_yield`: a spinner that does not yield starves the very process that it waits for. On a
//! machine with other work, a yield may give the core away for milliseconds, where a sleeper would have been woken at once.
//! A spin that lasted far longer than it was meant to was *robbed*: whatever it found, very many waits after it sleep
//! at once, up to [`ROBBED_SKIPS_MAX`].

use crate::limits::{ROBBED_NS_MIN, ROBBED_SKIPS_MAX, SPIN_NS_MAX, SPIN_ROUND, SPIN_SKIPS_MAX};
use crate::sys::Sys;

/// One waiter's memory of what spinning has brought.
#[derive(Debug, Default)]
pub struct Spin {
    /// Waits that will not spin.
    skip: u32,
    /// How many were skipped after the last spin that found nothing.
    penalty: u32,
    /// How many were skipped after the last spin that was robbed.
    robbed: u32,
}

impl Spin {
    /// Calls `look` until it returns `Some` or the time is up. `None`: time to sleep.
    ///
    /// Units: `limit_ns` in nanoseconds; a shorter spin than [`SPIN_NS_MAX`].
    pub fn spin<S: Sys, T>(&mut self, sys: &S, limit_ns: u64, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let first = look();
        if first.is_some() {
            self.penalty = 0;
            return first;
        }
        let end_ns = sys.now_ns() + SPIN_NS_MAX.min(limit_ns);
        loop {
            for _ in 0..SPIN_ROUND {
                sys.yield_now();
                let found = look();
                if found.is_some() {
                    self.penalty = 0;
                    self.judge(sys.now_ns(), end_ns);
                    return found;
                }
            }
            let now_ns = sys.now_ns();
            if now_ns >= end_ns {
                self.penalty = (self.penalty * 2).clamp(1, SPIN_SKIPS_MAX);
                self.skip = self.penalty;
                self.judge(now_ns, end_ns);
                return None;
            }
        }
    }

    /// Whether the spin that has just ended was robbed.
    fn judge(&mut self, now_ns: u64, end_ns: u64) {
        if now_ns <= end_ns + ROBBED_NS_MIN {
            self.robbed = 0;
        } else {
            self.robbed = (self.robbed * 4).clamp(SPIN_SKIPS_MAX, ROBBED_SKIPS_MAX);
            self.skip = self.robbed;
        }
    }
}

#[cfg(all(test, not(seqpool_loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    /// A clock that moves with each yield only.
    #[derive(Clone)]
    struct Yields {
        now_ns: Arc<AtomicU64>,
        yield_ns: u64,
    }

    impl Sys for Yields {
        fn now_ns(&self) -> u64 {
            self.now_ns.load(Relaxed)
        }

        fn yield_now(&self) {
            self.now_ns.fetch_add(self.yield_ns, Relaxed);
        }
    }

    fn sys(yield_ns: u64) -> Yields {
        Yields { now_ns: Arc::default(), yield_ns }
    }

    /// Looks of one spin that finds something at the `nth` look; 0: never.
    fn looks(spin: &mut Spin, sys: &Yields, nth: u32) -> u32 {
        let mut looks = 0;
        spin.spin(sys, u64::MAX, || {
            looks += 1;
            (looks == nth).then_some(())
        });
        looks
    }

    #[test]
    fn waits_that_bring_nothing_are_not_spun_for() {
        let (mut spin, sys) = (Spin::default(), sys(1_000));
        for expected_skips in [1, 2, 4, 8, 16, 32, 64, 64] {
            assert!(looks(&mut spin, &sys, 0) > 40, "a whole spin");
            let skips = (0..).take_while(|_| looks(&mut spin, &sys, 1) == 0).count();
            assert_eq!(skips, expected_skips);
            // That look found something at once, and all is forgiven; find nothing as often again.
            spin.penalty = expected_skips as u32;
        }
        assert!(looks(&mut spin, &sys, 0) > 40);
    }

    #[test]
    fn work_that_comes_in_time_is_always_spun_for() {
        let (mut spin, sys) = (Spin::default(), sys(1_000));
        for _ in 0..1000 {
            assert_eq!(looks(&mut spin, &sys, 20), 20);
        }
    }

    #[test]
    fn a_spin_that_was_robbed_is_seldom_repeated() {
        let (mut spin, busy) = (Spin::default(), sys(3_000_000));
        for expected_skips in [64, 256, 1024, 4096, 4096] {
            assert_eq!(looks(&mut spin, &busy, 2), 2, "found, but three milliseconds late");
            let skips = (0..).take_while(|_| spin.skip > 0 && looks(&mut spin, &busy, 1) == 0).count();
            assert_eq!(skips, expected_skips);
        }
        // The others have gone: a spin in time forgives.
        let quiet = sys(1_000);
        assert_eq!(looks(&mut spin, &quiet, 2), 2);
        assert_eq!(looks(&mut spin, &quiet, 2), 2);
    }
}
