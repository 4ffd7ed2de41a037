//! Spin first, sleep later: how long to look again before giving the core away.
//!
//! A spin lasts [`SPIN_NS_MAX`] at most. One that ends without work is followed by waits that do not spin at all, twice
//! as many each time, up to [`SPIN_SKIPS_MAX`]; one that ends in work forgives all that. So a busy pair of processes
//! meets without ever sleeping, and an idle one, or one whose gaps are long, spends next to nothing on trying.
//!
//! Every look is followed by `sched_yield`: a spinner that does not yield starves the very process that it waits for.

use crate::limits::{SPIN_NS_MAX, SPIN_ROUND, SPIN_SKIPS_MAX};
use crate::sys::Sys;

/// One waiter's memory of what spinning has brought.
#[derive(Debug, Default)]
pub struct Spin {
    /// Waits that will not spin.
    skip: u32,
    /// How many were skipped after the last spin that failed.
    penalty: u32,
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
        let end = sys.now_ns() + SPIN_NS_MAX.min(limit_ns);
        loop {
            for _ in 0..SPIN_ROUND {
                if let Some(found) = look() {
                    self.penalty = 0;
                    return Some(found);
                }
                sys.yield_now();
            }
            if sys.now_ns() >= end {
                break;
            }
        }
        self.penalty = (self.penalty * 2).clamp(1, SPIN_SKIPS_MAX);
        self.skip = self.penalty;
        None
    }
}
