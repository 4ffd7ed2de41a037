//! Many jobs of one handler, submitted one after the other by a caller that has its own loop.

use super::Pool;
use super::engine::{BATCH_SINGLE, Engine, Work};
use super::job::{HandlerId, Job};
use super::lane::Lane;
use super::terms::Terms;
use crate::error::TrySubmitError;
use crate::sys::{Linux, Sys};

/// Jobs after which the workers are looked at for the first time: little, so that an idle one has something soon.
const LOOK_JOBS_MIN: u32 = 64;
/// Jobs between two later looks: enough for full packets.
const LOOK_JOBS_MAX: u32 = 2048;

/// Submits jobs as [`Pool::try_submit`] does, with what is the same for all of them done once: the checks at the
/// beginning, the looks at the workers every now and then and at the end.
///
/// Jobs go straight into the workers' rings and never into the queue: a caller that has its inputs at hand keeps them
/// where they are, and they are copied once.
pub(crate) struct Bulk<'p, S: Sys = Linux> {
    engine: &'p mut Engine<S>,
    handler: HandlerId,
    /// Whether a job within the limit needs no check.
    is_open: bool,
    size_max: usize,
    terms: Terms,
    /// Jobs until the next look, and between the next two.
    left: u32,
    between: u32,
    /// The slot that is being filled.
    lane: Option<Lane>,
}

impl<S: Sys> Pool<S> {
    /// Begins to submit jobs of this handler. They leave as after [`Pool::try_submit`].
    pub(crate) fn bulk(&mut self, handler: HandlerId) -> Bulk<'_, S> {
        let engine = self.engine_mut();
        engine.end_batch();
        engine.more_inputs = false;
        let is_known = (handler.0 as usize) < engine.handler_names.len();
        let is_open = is_known && !engine.draining && engine.hopeless.is_none();
        let size_max = engine.config.job_size_max;
        let terms = engine.config.terms.get(handler.0 as usize).copied().unwrap_or_default();
        Bulk { engine, handler, is_open, size_max, terms, left: LOOK_JOBS_MIN, between: LOOK_JOBS_MIN, lane: None }
    }
}

impl<S: Sys> Bulk<'_, S> {
    /// Submits a job if a worker's ring has room. A job that can never run is taken and ends as rejected.
    ///
    /// # Errors
    /// As [`Pool::try_submit`].
    #[inline]
    pub(crate) fn try_submit(&mut self, body: &[u8], tag: u64) -> Result<(), TrySubmitError<()>> {
        if let Some(lane) = &mut self.lane
            && body.len() <= self.size_max
            && self.engine.submit_through(lane, body, tag)
        {
            return Ok(());
        }
        self.try_submit_beside(body, tag)
    }

    /// Submits a job for which there is no lane yet.
    fn try_submit_beside(&mut self, body: &[u8], tag: u64) -> Result<(), TrySubmitError<()>> {
        self.close_lane();
        if self.left == 0 {
            self.look();
        }
        if self.is_open
            && body.len() <= self.size_max
            && let Some(mut lane) = self.engine.open_lane(self.handler.0, BATCH_SINGLE, self.left)
        {
            let is_submitted = self.engine.submit_through(&mut lane, body, tag);
            self.lane = Some(lane);
            if is_submitted {
                return Ok(());
            }
            self.close_lane();
        }
        if !self.is_open || body.len() > self.size_max {
            return self.try_submit_checked(body, tag);
        }
        let work = Work { handler: self.handler.0, header_block: &[], body, tag, terms: self.terms };
        if self.engine.admit(work, BATCH_SINGLE, false).is_none() {
            // Until a poll has brought results: what they leave room for is here already.
            self.engine.more_inputs = true;
            return Err(TrySubmitError::Full(()));
        }
        self.left -= 1;
        Ok(())
    }

    fn close_lane(&mut self) {
        if let Some(lane) = self.lane.take() {
            self.left -= lane.count();
            self.engine.close_lane(lane);
        }
    }

    #[cold]
    fn try_submit_checked(&mut self, body: &[u8], tag: u64) -> Result<(), TrySubmitError<()>> {
        match self.engine.try_submit(Job::new(self.handler, body).tag(tag), BATCH_SINGLE, false) {
            Ok(_) => Ok(()),
            Err(TrySubmitError::Full(_)) => Err(TrySubmitError::Full(())),
            Err(TrySubmitError::Draining(_)) => Err(TrySubmitError::Draining(())),
        }
    }

    #[cold]
    fn look(&mut self) {
        if self.between == LOOK_JOBS_MAX {
            self.engine.flush_ripe();
        } else {
            self.engine.kick();
            self.between = (self.between * 2).min(LOOK_JOBS_MAX);
        }
        self.left = self.between;
    }
}

impl<S: Sys> Drop for Bulk<'_, S> {
    fn drop(&mut self) {
        self.close_lane();
        self.engine.kick();
        self.engine.settle_submit();
    }
}
