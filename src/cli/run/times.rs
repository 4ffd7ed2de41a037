//! When each job ran, by the pool's timestamp hook.

use crate::cli::trace::{Found, Lives, Mark, Span, Stage};
use crate::pool::Event;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

/// From when to when a handler ran. Units: nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
}

/// The times of jobs that have ended and not been asked for.
pub(super) struct Clock(Arc<Mutex<HashMap<u64, Times>>>);

/// A hook for [`Builder::on_event`](crate::Builder::on_event), and what it learns. Where a worker did not live to tell, a
/// job counts from when it can have started at the earliest until its outcome was delivered.
pub(super) fn record(workers: usize) -> (impl FnMut(&Event) + Send + 'static, Clock) {
    let times: Arc<Mutex<HashMap<u64, Times>>> = Arc::default();
    let found = Arc::clone(&times);
    let mut lives = Lives::new(workers);
    let hook = move |event: &Event| {
        let Ok(()) = lives.take(&Mark::from(event), |what| {
            if let Found::Span(Span { job, stage: Stage::Compute, start_ns, end_ns, .. }) = what {
                lock(&found).insert(job, Times { start_ns, end_ns });
            }
            Ok::<(), Infallible>(())
        });
    };
    (hook, Clock(times))
}

impl Clock {
    /// When this job ran; `None`: it never started.
    pub(super) fn take(&self, job: u64) -> Option<Times> {
        lock(&self.0).remove(&job)
    }
}

/// One thread has both sides, so that it never waits.
fn lock(times: &Mutex<HashMap<u64, Times>>) -> std::sync::MutexGuard<'_, HashMap<u64, Times>> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}
