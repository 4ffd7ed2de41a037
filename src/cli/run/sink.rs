//! Where the outcomes of a run go: results, lines on standard error, the joblog, the system's log.

use super::Fed;
use super::halt::Halt;
use super::joblog::Joblog;
use super::kept::{self, Kept};
use super::quarantine::Trouble;
use super::resume::Resume;
use super::syslog::Syslog;
use super::times::Clock;
use crate::cli::output::Streams;
use crate::cli::report::{Report, Tally};
use crate::cli::trace::Recording;
use crate::order::Reorder;
use crate::pool::Bulk;
use crate::{Completion, Outcome, Reason, TrySubmitError};

/// Memory of a tagged result that is kept for the next. Units: bytes.
const TAGGED_KEPT_MAX: usize = 1 << 20;

/// Where results go.
pub(super) struct Sink {
    pub(super) terminator: u8,
    pub(super) streams: Streams,
    pub(super) report: Report,
    pub(super) order: Option<Reorder>,
    pub(super) tally: Tally,
    /// Knows of jobs that are not done only what is told here.
    pub(super) recording: Option<Recording>,
    /// Records, for what needs them when their jobs are over.
    pub(super) kept: Option<Kept>,
    pub(super) is_tagged: bool,
    pub(super) joblog: Option<(Joblog, Clock)>,
    pub(super) resume: Option<Resume>,
    pub(super) halt: Option<Halt>,
    /// So much has failed that the run is to end; not yet told.
    pub(super) is_halt_due: bool,
    pub(super) syslog: Option<Syslog>,
    /// Capsules that could not be written.
    pub(super) trouble: Option<Trouble>,
    /// Records passed over.
    pub(super) skipped: u64,
    /// Why the input cannot be what it is said to be.
    pub(super) refusal: Option<String>,
    pub(super) tagged: Vec<u8>,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// It is a job.
    Started,
    /// An earlier run has done it.
    Skipped,
}

impl Sink {
    /// Takes the outcome of one job; numbers count from 1.
    #[inline]
    pub(super) fn deliver(&mut self, number: u64, completion: &Completion<'_>) {
        if let Outcome::Done(body) = &completion.outcome
            && self.has_plain_results()
        {
            self.tally.done += 1;
            self.streams.push_result(body, self.terminator);
        } else {
            self.deliver_with_care(number, &completion.outcome, Some(completion));
        }
    }

    /// Whether the result of a job that is done is all that has to be written of it, and now.
    #[inline]
    fn has_plain_results(&self) -> bool {
        self.order.is_none() && self.kept.is_none()
    }

    /// Whether records are jobs, and need not be remembered.
    pub(super) fn has_plain_records(&self) -> bool {
        self.kept.is_none() && self.resume.is_none()
    }

    /// As [`Sink::deliver`], for all that is not plain, and jobs that were not done.
    #[inline(never)]
    fn deliver_with_care(&mut self, number: u64, outcome: &Outcome<&[u8]>, completion: Option<&Completion<'_>>) {
        self.tally.count(outcome);
        let record = self.kept.as_mut().map(|kept| kept.take(number));
        if let (Some((joblog, clock)), Some(record)) = (&mut self.joblog, &record) {
            let (attempts, receipt) = completion.map_or((0, None), |c| (c.attempts(), c.receipt()));
            joblog.note(number, record, clock.take(number), outcome, attempts, receipt);
        }
        let Outcome::Done(body) = outcome else {
            self.not_done(number, outcome);
            return self.put(number, None);
        };
        let Some(record) = record.filter(|_| self.is_tagged) else { return self.put(number, Some(body)) };
        let mut tagged = std::mem::take(&mut self.tagged);
        kept::tag(&record.bytes, body, self.terminator, &mut tagged);
        self.put(number, Some(&tagged));
        if tagged.capacity() <= TAGGED_KEPT_MAX {
            self.tagged = tagged;
        }
    }

    fn not_done(&mut self, number: u64, outcome: &Outcome<&[u8]>) {
        if let Some(recording) = &mut self.recording {
            recording.outcome(number, outcome);
        }
        self.report.unsuccessful(&mut self.streams, number, outcome);
        let problem = self.syslog.as_mut().and_then(|syslog| syslog.log(number, outcome));
        self.tell(problem);
        let problem = self.trouble.as_ref().and_then(Trouble::take);
        self.tell(problem);
        // Only a failure can bring a percentage of failures about.
        self.is_halt_due |= self.halt.is_some_and(|halt| halt.is_reached(&self.tally));
    }

    /// Writes a result, if there is one, when it is its turn.
    fn put(&mut self, number: u64, body: Option<&[u8]>) {
        let Self { streams, order, joblog, terminator, .. } = self;
        let mut put = |number: u64, body: Option<&[u8]>| {
            if let Some(body) = body {
                streams.push_result(body, *terminator);
            }
            if let Some((joblog, _)) = joblog {
                joblog.release(number, streams.results_size());
            }
        };
        match order {
            Some(order) => order.insert(number - 1, body, |n, body| put(n + 1, body)),
            None => put(number, body),
        }
    }

    /// Submits one job, if its result may come now and the pool has room.
    #[inline]
    pub(super) fn submit(&self, bulk: &mut Bulk<'_>, number: u64, body: &[u8]) -> Result<(), Fed> {
        if !self.admits(number) {
            return Err(Fed::Full);
        }
        match bulk.try_submit(body, number) {
            Ok(()) => Ok(()),
            Err(TrySubmitError::Full(_)) => Err(Fed::Full),
            // Nobody drains this pool before its input is over.
            Err(TrySubmitError::Draining(_)) => Err(Fed::Over),
        }
    }

    /// As [`Sink::submit`], for records that are not plain.
    pub(super) fn begin(&mut self, bulk: &mut Bulk<'_>, number: u64, body: &[u8]) -> Result<Begun, Fed> {
        if self.skips(number, body, body.len() as u64)? {
            return Ok(Begun::Skipped);
        }
        if self.kept.as_ref().is_some_and(|kept| !kept.has_room()) {
            return Err(Fed::Full);
        }
        self.submit(bulk, number, body)?;
        if let Some(kept) = &mut self.kept {
            kept.keep(number, body);
        }
        Ok(Begun::Started)
    }

    /// Whether an earlier run has done this record, which is then passed over.
    pub(super) fn skips(&mut self, number: u64, record: &[u8], size: u64) -> Result<bool, Fed> {
        if self.resume.is_none() {
            return Ok(false);
        }
        if !self.admits(number) {
            return Err(Fed::Full);
        }
        let Some(resume) = &mut self.resume else { return Ok(false) };
        match resume.skips(number, record, size) {
            Ok(false) => return Ok(false),
            Ok(true) => {}
            Err(refusal) => {
                self.refusal = Some(refusal);
                return Err(Fed::Over);
            }
        }
        self.skipped += 1;
        if self.order.is_some() {
            self.put(number, None);
        }
        Ok(true)
    }

    /// Takes a record over the limit, whose bytes are gone.
    pub(super) fn begin_too_large(&mut self, number: u64, size: u64) -> Result<(), Fed> {
        if self.skips(number, &[], size)? {
            return Ok(());
        }
        if !self.admits(number) {
            return Err(Fed::Full);
        }
        if let Some(kept) = &mut self.kept {
            kept.keep_size(number, size);
        }
        self.tally.jobs += 1;
        let limit = crate::limits::JOB_SIZE_MAX as u64;
        self.deliver_with_care(number, &Outcome::Rejected { reason: Reason::TooLarge { size, limit } }, None);
        Ok(())
    }

    /// The input is over.
    pub(super) fn check_end(&mut self) {
        let records = self.records();
        self.refusal = self.resume.as_ref().and_then(|resume| resume.check_end(records).err());
    }

    #[inline]
    pub(super) fn admits(&self, number: u64) -> bool {
        self.order.as_ref().is_none_or(|order| order.admits(number - 1))
    }

    /// How many records have been taken.
    #[inline]
    pub(super) fn records(&self) -> u64 {
        self.tally.jobs + self.skipped
    }

    /// One line of ours.
    pub(super) fn say(&mut self, text: std::fmt::Arguments<'_>) {
        self.report.say(&mut self.streams, text);
    }

    /// One line of ours about what a run can do without.
    pub(super) fn tell(&mut self, problem: Option<String>) {
        if let Some(problem) = problem {
            self.say(format_args!("{problem}"));
        }
    }

    /// Whether so much waits for a reader that no more should be made.
    #[inline]
    pub(super) fn is_stalled(&self) -> bool {
        self.streams.is_stalled() || self.joblog.as_ref().is_some_and(|(joblog, _)| joblog.is_stalled())
    }

    /// Sets off what has gathered.
    pub(super) fn flush(&mut self) {
        self.streams.flush();
        let Self { streams, joblog, syslog, .. } = self;
        let problem = joblog.as_mut().and_then(|(joblog, _)| joblog.pump(streams));
        let other = syslog.as_mut().and_then(Syslog::flush);
        self.tell(problem);
        self.tell(other);
    }

    /// Sets off what has gathered for the joblog while results keep coming.
    #[inline]
    pub(super) fn flush_if_due(&mut self) {
        if self.joblog.as_ref().is_some_and(|(joblog, _)| joblog.is_due()) {
            self.flush();
        }
    }

    /// Whether everything has been written, or never will be.
    pub(super) fn is_settled(&self) -> bool {
        let is_logged = || self.joblog.as_ref().is_none_or(|(joblog, _)| joblog.is_settled());
        self.streams.is_settled() && (self.streams.error().is_some() || is_logged())
    }
}
