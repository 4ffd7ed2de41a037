//! Recycling: a worker that has done as many jobs as it may, is as old as it may be, or has grown as much as it may, is told to
//! leave and replaced. Nobody is blamed: it finishes the job in hand, and what it has not started runs elsewhere.

use super::engine::{Alarm, Engine};
use super::slot::{Doom, Life};
use super::supervise::nanos;
use crate::limits::{LEAVE_TIMEOUT, MEMORY_SAMPLE_PERIOD, WORKER_AGE_SPREAD};
use crate::reactor::TimerId;
use crate::sys::{self, Sys};

/// What wears one incarnation out.
#[derive(Debug, Default)]
pub(super) struct Wear {
    /// Fires when it is as old as it may be.
    pub(super) timer: Option<TimerId>,
    /// It is to leave once it has finished what it has started.
    pub(super) retiring: bool,
    /// Its memory after set-up, by its own word. Units: bytes.
    pub(super) memory: Option<u64>,
    /// When its memory was last looked at. Units: nanoseconds.
    pub(super) looked_at_ns: u64,
}

impl<S: Sys> Engine<S> {
    /// A result has come that is the first of its worker, or brings it nearer to its last.
    pub(super) fn on_watched_result(&mut self, slot: usize) {
        let jobs_per_worker = self.config.jobs_per_worker;
        let s = &mut self.slots[slot];
        s.proved = true;
        s.early_deaths = 0;
        s.trouble = None;
        let is_orphan = s.is_orphan;
        if let Some(renewal) = self.renewal.as_mut().filter(|_| !is_orphan) {
            renewal.starts = 0;
        }
        let s = &mut self.slots[slot];
        if s.wear.retiring {
            return self.leave_if_done(slot);
        }
        if jobs_per_worker == usize::MAX {
            s.watched = false;
            return;
        }
        // A slot never holds more jobs than this, so the worker starts no more than it may, whatever is taken back from
        // it meanwhile and sent again.
        s.jobs_left -= 1;
        let (jobs_left, life) = (s.jobs_left, s.life);
        self.scheduler.limit(slot, jobs_left);
        if jobs_left == 0 && life == Life::Running {
            self.recycle(slot);
        }
    }

    /// A worker that holds nothing is told to leave. Its exit report refills the slot.
    fn recycle(&mut self, slot: usize) {
        self.stats.recycled += 1;
        self.slots[slot].life = Life::Leaving;
        self.scheduler.close(slot);
        let deadline_ns = self.sys.now_ns() + nanos(LEAVE_TIMEOUT);
        self.set_slot_timer(slot, deadline_ns);
        if self.transport.shut_down(slot).is_err() {
            self.kill(slot, Doom::Stalled);
        }
        self.keep_ticking();
    }

    /// A worker is to be replaced: it is given nothing more, what it has not started is taken back, and it leaves when it
    /// has finished the rest.
    fn retire_worker(&mut self, slot: usize) {
        // Without a nursery there would be nobody in its place.
        if self.slots[slot].life != Life::Running || self.slots[slot].wear.retiring || self.nursery.is_none() {
            return;
        }
        self.scheduler.close(slot);
        let s = &mut self.slots[slot];
        (s.wear.retiring, s.watched) = (true, true);
        // `None`: it is hostile, and dies of that.
        if self.reclaim(slot).is_some() {
            self.leave_if_done(slot);
        }
    }

    fn leave_if_done(&mut self, slot: usize) {
        if self.slots[slot].life == Life::Running && self.scheduler.jobs(slot) == 0 {
            self.recycle(slot);
        }
    }

    // ---- age

    /// A worker is up: counts its age from here. Those that start together do not all leave together.
    pub(super) fn limit_age(&mut self, slot: usize, now_ns: u64) {
        let Some(age) = self.config.worker_age_max else { return };
        let early_ns = nanos(age) / WORKER_AGE_SPREAD / self.slots.len() as u64 * slot as u64;
        let at_ns = now_ns.saturating_add(nanos(age) - early_ns);
        self.clear_age_timer(slot);
        self.slots[slot].wear.timer = Some(self.reactor.set_timer(at_ns, Alarm::Age(slot).to_bits()));
    }

    /// A worker is as old as it may be. Where nobody would come in its place it stays, for as long again.
    pub(super) fn on_age(&mut self, slot: usize, now_ns: u64) {
        if self.nursery.is_some() {
            self.retire_worker(slot);
        } else if self.slots[slot].life == Life::Running {
            self.limit_age(slot, now_ns);
        }
    }

    pub(super) fn clear_age_timer(&mut self, slot: usize) {
        if let Some(timer) = self.slots[slot].wear.timer.take() {
            self.reactor.cancel_timer(timer);
        }
    }

    // ---- memory

    /// Looks at a worker's memory, if it has worked since the last look and that is long enough ago. A tick follows every
    /// job, so the last one counts too.
    pub(super) fn look_at_growth(&mut self, slot: usize, now_ns: u64) {
        let s = &mut self.slots[slot];
        let (Some(growth_max), Some(before), Some(pid)) = (self.config.growth_max, s.wear.memory, s.pid) else {
            return;
        };
        let has_worked = s.in_flight() || s.progress_ns >= s.wear.looked_at_ns;
        let is_due = now_ns.saturating_sub(s.wear.looked_at_ns) >= nanos(MEMORY_SAMPLE_PERIOD);
        if s.life != Life::Running || s.wear.retiring || !has_worked || !is_due {
            return;
        }
        s.wear.looked_at_ns = now_ns;
        // No answer (no descriptor is free, say) is no reason to replace anybody. If it is gone and its id is another's
        // already, the worst is that a dead worker is told to leave.
        if let Ok(now) = sys::memory_use(pid)
            && now.anonymous > before.saturating_add(growth_max)
        {
            self.retire_worker(slot);
        }
    }
}
