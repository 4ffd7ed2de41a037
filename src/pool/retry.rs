//! Trying again: a job that has started and not succeeded is set aside with its bytes, waits, and stands at the end of
//! the front of the queue. And jobs that have waited too long for their first start.

use super::engine::{Alarm, Engine};
use super::hook::Step;
use super::journal::{Entry, Position};
use super::slot::Life;
use super::supervise::nanos;
use super::table::{JobIndex, Label, Place};
use crate::limits::{RETRY_BACKOFF_MAX, RETRY_BACKOFF_MIN};
use crate::outcome::{Outcome, Reason};
use crate::sys::Sys;
use std::time::Duration;

/// Says whether a job that ended so is to be tried again, if it may be.
pub(super) type RetryOn = Box<dyn FnMut(&Outcome<&[u8]>) -> bool + Send>;

impl<S: Sys> Engine<S> {
    /// Whether the job with this label, which has ended so, is to be tried again.
    pub(super) fn is_tried_again(&mut self, label: Label, outcome: &Outcome<&[u8]>) -> bool {
        // The record of a job without terms may be another's.
        if !self.table.is_filled(label.job) || self.table.get(label.job).terms.retries == 0 || !outcome.retryable() {
            return false;
        }
        // Nobody waits for it any more.
        if !self.is_wanted(label.batch) {
            return false;
        }
        self.retry_on.as_mut().is_none_or(|retry_on| retry_on(outcome))
    }

    /// Sets the job at `position`, which has started and is over, aside: it leaves its slot, is tried again after a
    /// while, and counts as outstanding meanwhile.
    pub(super) fn try_again(&mut self, slot: usize, position: Position) {
        let Entry { label, size, .. } = *self.slots[slot].journal.entry(position);
        if size != 0 {
            self.detach(slot, position);
        }
        self.leave_settled(slot, position);
        let job = label.job;
        let record = self.table.get_mut(job);
        record.terms.retries -= 1;
        record.attempts += 1;
        let attempts = record.attempts;
        if let Some(owned) = &mut record.owned {
            owned.header.extra = self.config.chaos.map_or(0, |chaos| chaos.order(label.tag, attempts));
            if !owned.large && !owned.aside {
                owned.aside = true;
                self.aside_size += owned.payload.len();
            }
        }
        self.stats.retries += 1;
        self.note(Step::Retried, label, Some(slot));
        let at_ns = self.sys.now_ns().saturating_add(nanos(self.retry_delay(attempts)));
        let timer = self.reactor.set_timer(at_ns, Alarm::Retry(job).to_bits());
        self.table.get_mut(job).retry_timer = Some(timer);
        self.table.set_place(job, Place::Aside);
    }

    /// How long a job waits that has been tried so often: doubles each time.
    fn retry_delay(&self, attempts: u32) -> Duration {
        let doubled = RETRY_BACKOFF_MIN.max(self.config.retry_backoff).saturating_mul(1 << (attempts - 1).min(16));
        doubled.min(RETRY_BACKOFF_MAX.max(self.config.retry_backoff))
    }

    /// A job's wait for its next attempt is over.
    pub(super) fn on_retry(&mut self, job: JobIndex) {
        self.table.get_mut(job).retry_timer = None;
        if let Some(reason) = self.hopeless.clone() {
            return self.finish(job, Outcome::Rejected { reason }, None);
        }
        self.table.set_place(job, Place::FrontOwned);
        self.front.push_back(job);
        self.unfilled = true;
    }

    /// Begins to count how long a job that has just been admitted waits for its start.
    #[cold]
    pub(super) fn limit_wait(&mut self, job: JobIndex, queue_ns: u64) {
        let at_ns = self.sys.now_ns().saturating_add(queue_ns);
        let timer = self.reactor.set_timer(at_ns, Alarm::Waited(job).to_bits());
        self.table.get_mut(job).queue_timer = Some(timer);
    }

    /// A job has waited as long as it may: if it has not started, it never will.
    pub(super) fn on_waited(&mut self, job: JobIndex) {
        let record = self.table.get_mut(job);
        record.queue_timer = None;
        let after = Duration::from_nanos(record.terms.queue_ns);
        if record.attempts > 0 {
            return;
        }
        if let Place::Slot(slot, _) = self.table.place(job) {
            let ticket = self.table.ticket(job);
            // In the slot of one that is to be killed there is only what has started. Else all that has not comes back, and
            // the others are sent again.
            let is_dying = self.slots[slot as usize].life == Life::Dying;
            if is_dying || self.reclaim(slot as usize).is_none() || self.table.find(ticket).is_none() {
                return;
            }
        }
        // In a slot still: it has started.
        self.finish_waiting(&[job], &Outcome::Rejected { reason: Reason::QueueTimeout { after } });
    }

    /// A job leaves the table: what was to happen with it later does not.
    pub(super) fn forget_timers(&mut self, job: JobIndex) {
        if !self.table.is_filled(job) {
            return;
        }
        let record = self.table.get_mut(job);
        for timer in [record.retry_timer.take(), record.queue_timer.take()].into_iter().flatten() {
            self.reactor.cancel_timer(timer);
        }
    }
}
