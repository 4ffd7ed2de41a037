//! How many jobs may be unfinished at a time.

use std::time::{Duration, Instant};

/// Unfinished jobs at most, so results held back by `-k` at most.
pub(super) const UNFINISHED_MAX: usize = 64 << 10;
/// Unfinished jobs for each worker at least: one that runs, one that waits at it, and as many again to hand on.
const UNFINISHED_PER_WORKER: usize = 4;

/// How many jobs may be unfinished: about what gets done in a tenth of a second.
///
/// More would not be faster, and all of it has to be finished after a signal. The number doubles while a whole window
/// is done sooner and halves when it takes longer.
pub(super) struct Window {
    pub(super) limit: usize,
    limit_min: usize,
    done: usize,
    since: Instant,
}

impl Window {
    const FAST: Duration = Duration::from_millis(50);
    const SLOW: Duration = Duration::from_millis(200);

    pub(super) fn new(workers: usize, now: Instant) -> Self {
        let limit_min = workers.saturating_mul(UNFINISHED_PER_WORKER).min(UNFINISHED_MAX);
        Self { limit: limit_min, limit_min, done: 0, since: now }
    }

    pub(super) fn done(&mut self, count: usize, now: Instant) {
        self.done += count;
        if self.done < self.limit {
            return;
        }
        let took = now.duration_since(self.since);
        if took < Self::FAST {
            self.limit = (self.limit * 2).min(UNFINISHED_MAX);
        } else if took > Self::SLOW {
            self.limit = (self.limit / 2).max(self.limit_min);
        }
        self.done = 0;
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_follows_the_pace() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut window = Window::new(2, start);
        assert_eq!(window.limit, 8);
        // Nothing is decided before a whole window is done.
        window.done(7, at(1));
        assert_eq!(window.limit, 8);
        window.done(1, at(1));
        assert_eq!(window.limit, 16, "a whole window within a millisecond");
        window.done(16, at(101));
        assert_eq!(window.limit, 16, "about a tenth of a second: right");
        window.done(16, at(1000));
        assert_eq!(window.limit, 8);
        window.done(8, at(9000));
        assert_eq!(window.limit, 8, "never below what keeps the workers busy");
        for _ in 0..100 {
            window.done(window.limit, at(9000));
        }
        assert_eq!(window.limit, UNFINISHED_MAX);
    }
}
