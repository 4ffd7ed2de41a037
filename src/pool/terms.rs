//! What a job may take: how long it may wait and run, and how often it is tried.

use std::time::Duration;

/// Bounds on the jobs of a handler, or on one job, where they differ from the pool's own.
///
/// ```
/// use seqpool::JobLimits;
/// use std::time::Duration;
///
/// let limits = JobLimits::new().timeout(Duration::from_secs(2)).retries(3);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobLimits {
    pub(super) timeout: Option<Duration>,
    pub(super) queue_timeout: Option<Duration>,
    pub(super) retries: Option<u32>,
}

impl JobLimits {
    /// None of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long a job may run before its worker is killed.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long a job may wait until it starts for the first time; then it is rejected.
    pub fn queue_timeout(mut self, timeout: Duration) -> Self {
        self.queue_timeout = Some(timeout);
        self
    }

    /// How often a job that has started and not succeeded is tried again: extra attempts, 0 means 0.
    pub fn retries(mut self, extra: u32) -> Self {
        self.retries = Some(extra);
        self
    }

    /// These where they say something, `base` elsewhere.
    pub(super) fn or(self, base: Terms) -> Terms {
        let or = |own: Option<Duration>, base| own.map_or(base, at_least_one_ns);
        Terms {
            timeout_ns: or(self.timeout, base.timeout_ns),
            queue_ns: or(self.queue_timeout, base.queue_ns),
            retries: self.retries.unwrap_or(base.retries),
        }
    }
}

/// A timeout of 0 is one that has passed, not none.
fn at_least_one_ns(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// [`JobLimits`] as a job has them. Units: nanoseconds; 0 is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Terms {
    /// How long it may run.
    pub(super) timeout_ns: u64,
    /// How long it may wait until its first start.
    pub(super) queue_ns: u64,
    /// How often it may still be tried again.
    pub(super) retries: u32,
}

impl Terms {
    /// Whether they ask for nothing, so that a job with these needs no record.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        (self.timeout_ns, self.queue_ns, self.retries) == (0, 0, 0)
    }
}

#[cfg(all(test, not(seqpool_loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_one_decides() {
        let pool = JobLimits::new().timeout(Duration::from_nanos(5)).retries(2).or(Terms::default());
        assert_eq!(pool, Terms { timeout_ns: 5, queue_ns: 0, retries: 2 });
        let job = JobLimits::new().retries(0).queue_timeout(Duration::ZERO).or(pool);
        assert_eq!(job, Terms { timeout_ns: 5, queue_ns: 1, retries: 0 });
        assert!(Terms::default().is_plain() && !job.is_plain());
    }
}
