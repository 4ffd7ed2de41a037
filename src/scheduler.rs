//! Floor 3: which slot gets the next job, how much each is given ahead, and when work is taken back. Pure: no
//! descriptor, no clock, no job; sizes and times arrive as arguments.
//!
//! A slot's window is measured in *time*: about [`WINDOW_NS`] of work by a running estimate of service time, and always
//! one job more than is running, since it can be taken back. So long jobs go nearly one at a time and tiny ones in
//! thousands, with no knob.
//!
//! The pool calls [`Scheduler::place`] for each job, tells what it [`added`](Scheduler::added) and what was
//! [`removed`](Scheduler::removed), and asks for a [`victim`](Scheduler::victim) when a worker idles.

use crate::limits::{FILL_NS, STEAL_NS, WINDOW_JOBS_MAX, WINDOW_JOBS_MIN, WINDOW_NS};

/// Weight of a new run time in the estimate: one in 2^this.
const LEARN_SHIFT: u32 = 3;
/// A run counts at most so many times as much as the estimate, so that one outlier no more than triples it.
const OUTLIER_FACTOR: u64 = 16;
/// Below this no run is an outlier. Units: 1/256 nanosecond.
const OUTLIER_SCALED_MIN: u64 = 256 << 8;
/// What a job of unknown service time counts as: so much that a slot gets one ahead and no more.
const UNKNOWN_NS: u32 = WINDOW_NS as u32;

/// Running estimate of one handler's service time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Service {
    /// Units: 1/256 nanosecond, so that nanosecond jobs do not round to nothing. 0: unknown.
    scaled: u64,
}

impl Service {
    /// The estimate. Units: nanoseconds, at least one.
    #[inline]
    pub(crate) fn estimate_ns(self) -> u32 {
        if self.scaled == 0 { UNKNOWN_NS } else { u32::try_from(self.scaled >> 8).unwrap_or(u32::MAX).max(1) }
    }

    /// Takes one run into account. One that is far longer than the others may have had its core taken away: by itself it
    /// must not turn tiny jobs into long ones.
    #[inline]
    pub(crate) fn learn(&mut self, run_ns: u32) {
        let run = (u64::from(run_ns) << 8).max(1);
        self.scaled = match self.scaled {
            0 => run,
            old => {
                let run = run.min(old.saturating_mul(OUTLIER_FACTOR).max(OUTLIER_SCALED_MIN));
                (old - (old >> LEARN_SHIFT) + (run >> LEARN_SHIFT)).max(1)
            }
        };
    }
}

/// What a slot holds: sent or about to be sent, and not settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    open: bool,
    /// Its worker has said hello: what it holds may have started.
    ready: bool,
    jobs: usize,
    /// The most that it may hold.
    jobs_max: usize,
    /// Sum of the estimates under which its jobs were added.
    work_ns: u64,
    /// Whether it stands on the idle stack.
    listed: bool,
}

/// Loads of all slots.
#[derive(Clone, Debug)]
pub(crate) struct Scheduler {
    slots: Box<[Load]>,
    window_jobs_max: usize,
    /// Slots that were seen idle, latest last; entries that are not idle any more are dropped when met. The latest is
    /// given work first: its worker still spins and its caches are warm.
    idle: Vec<usize>,
    /// The slot that is being filled, so that its frames leave as one packet.
    cursor: usize,
}

impl Scheduler {
    /// `slots` closed slots, none of which ever holds more than `window_jobs_max` jobs.
    pub(crate) fn new(slots: usize, window_jobs_max: usize) -> Self {
        let window_jobs_max = window_jobs_max.clamp(1, WINDOW_JOBS_MAX);
        let load = Load { jobs_max: window_jobs_max, ..Load::default() };
        Self {
            slots: vec![load; slots].into_boxed_slice(),
            window_jobs_max,
            idle: Vec::with_capacity(slots),
            cursor: 0,
        }
    }

    /// The slot has a worker and may be given jobs.
    pub(crate) fn open(&mut self, slot: usize) {
        self.slots[slot].open = true;
        self.list_if_idle(slot);
    }

    /// The slot's worker runs so many more jobs and no more, counting those that it holds.
    pub(crate) fn limit(&mut self, slot: usize, jobs: usize) {
        self.slots[slot].jobs_max = self.window_jobs_max.min(jobs);
    }

    /// The slot's worker is up.
    pub(crate) fn ready(&mut self, slot: usize) {
        self.slots[slot].ready = true;
    }

    /// The slot is given no more jobs.
    pub(crate) fn close(&mut self, slot: usize) {
        self.slots[slot].open = false;
        self.slots[slot].ready = false;
    }

    /// How many slots are open.
    pub(crate) fn open_slots(&self) -> usize {
        self.slots.iter().filter(|s| s.open).count()
    }

    /// Jobs that the slot holds.
    #[inline]
    pub(crate) fn jobs(&self, slot: usize) -> usize {
        self.slots[slot].jobs
    }

    fn list_if_idle(&mut self, slot: usize) {
        let load = &mut self.slots[slot];
        if load.open && load.jobs == 0 && !load.listed {
            load.listed = true;
            self.idle.push(slot);
        }
    }

    /// An idle slot: the one that has been busy last, of those whose worker is up; else any.
    #[inline]
    pub(crate) fn idle_slot(&mut self) -> Option<usize> {
        while let Some(&slot) = self.idle.last() {
            if self.is_idle(slot) {
                return if self.slots[slot].ready { Some(slot) } else { self.idle_ready_slot().or(Some(slot)) };
            }
            self.slots[slot].listed = false;
            self.idle.pop();
        }
        None
    }

    /// An idle slot whose worker is up.
    pub(crate) fn idle_ready_slot(&self) -> Option<usize> {
        self.idle.iter().rev().copied().find(|&s| self.is_idle(s) && self.slots[s].ready)
    }

    #[inline]
    fn is_idle(&self, slot: usize) -> bool {
        self.slots[slot].open && self.slots[slot].jobs == 0
    }

    /// Whether the slot's window has room for a job of this estimate.
    #[inline]
    pub(crate) fn has_room(&self, slot: usize, estimate_ns: u32) -> bool {
        let load = &self.slots[slot];
        load.open
            && load.jobs < load.jobs_max
            && (load.jobs < WINDOW_JOBS_MIN || load.work_ns + u64::from(estimate_ns) <= WINDOW_NS)
    }

    /// What [`Scheduler::place`] finds first: the slot that is being filled, unless another one idles and would gain by
    /// being given the job.
    #[inline]
    pub(crate) fn at_hand(&self, estimate_ns: u32) -> Option<usize> {
        let load = &self.slots[self.cursor];
        let is_best =
            self.idle.is_empty() || (load.jobs > 0 && load.ready && load.work_ns + u64::from(estimate_ns) <= FILL_NS);
        (is_best && self.has_room(self.cursor, estimate_ns)).then_some(self.cursor)
    }

    /// The slot for a job of this estimate: the one that is being filled, as long as it holds next to nothing, so that tiny
    /// jobs leave in packs; else an idle one, which is filled from now on; else the one that is
    /// being filled up to its window; else the next with room. `fits` tells whether the job's bytes fit a slot that is not
    /// idle.
    pub(crate) fn place(&mut self, estimate_ns: u32, fits: impl Fn(usize) -> bool) -> Option<usize> {
        if let Some(slot) = self.at_hand(estimate_ns)
            && fits(slot)
        {
            return Some(slot);
        }
        if let Some(slot) = self.idle_slot() {
            self.cursor = slot;
            return Some(slot);
        }
        for _ in 0..self.slots.len() {
            if self.has_room(self.cursor, estimate_ns) && fits(self.cursor) {
                return Some(self.cursor);
            }
            self.cursor = (self.cursor + 1) % self.slots.len();
        }
        None
    }

    /// The least loaded slot with room, for work that is to be shared out evenly.
    pub(crate) fn place_evenly(&mut self, estimate_ns: u32, fits: impl Fn(usize) -> bool) -> Option<usize> {
        (0..self.slots.len())
            .filter(|&s| self.has_room(s, estimate_ns) && fits(s))
            .min_by_key(|&s| (self.slots[s].work_ns, self.slots[s].jobs, !self.slots[s].ready))
    }

    /// How many of `waiting` jobs the least loaded slot gets before the next one has its turn.
    pub(crate) fn share(&self, waiting: usize) -> usize {
        (waiting / (2 * self.open_slots().max(1))).max(1)
    }

    /// How many jobs of this estimate the slot at hand may be given, one after the other, as [`Scheduler::at_hand`] says.
    pub(crate) fn room_at_hand(&self, estimate_ns: u32) -> usize {
        let load = &self.slots[self.cursor];
        let limit_ns = if self.idle.is_empty() { WINDOW_NS } else { FILL_NS };
        let by_work = limit_ns.saturating_sub(load.work_ns) / u64::from(estimate_ns.max(1));
        let by_work = usize::try_from(by_work).unwrap_or(usize::MAX);
        if self.at_hand(estimate_ns).is_some() { by_work.min(load.jobs_max - load.jobs) } else { 0 }
    }

    /// The slot has been given a job of this estimate.
    #[inline]
    pub(crate) fn added(&mut self, slot: usize, estimate_ns: u32) {
        self.added_many(slot, 1, estimate_ns);
    }

    /// The slot has been given so many jobs of this estimate.
    #[inline]
    pub(crate) fn added_many(&mut self, slot: usize, count: usize, estimate_ns: u32) {
        let load = &mut self.slots[slot];
        load.jobs += count;
        load.work_ns += count as u64 * u64::from(estimate_ns);
    }

    /// A job that was added under this estimate is settled or taken back.
    #[inline]
    pub(crate) fn removed(&mut self, slot: usize, estimate_ns: u32) {
        self.removed_many(slot, 1, estimate_ns.into());
    }

    /// So many jobs, which were added under estimates of this sum, are settled.
    pub(crate) fn removed_many(&mut self, slot: usize, count: usize, work_ns: u64) {
        let load = &mut self.slots[slot];
        debug_assert!(load.jobs >= count && load.work_ns >= work_ns, "removed what was added");
        load.jobs -= count;
        load.work_ns -= work_ns;
        if load.jobs == 0 {
            self.list_if_idle(slot);
        }
    }

    /// Jobs of a slot that have not started: `started` tells how many have, by the claim word. One that is on its way to
    /// a worker that is up, and has nothing else, counts as started.
    fn unstarted(&self, slot: usize, started: impl Fn(usize) -> usize) -> usize {
        let load = &self.slots[slot];
        let running = usize::from(load.ready);
        if load.open && load.jobs > running { load.jobs.saturating_sub(started(slot).max(running)) } else { 0 }
    }

    /// The slot from which unstarted work is worth taking back for an idle one: the one with most of it. `started` tells
    /// how many of a slot's jobs have started; `stuck` tells of slots that have brought no result for a whole window:
    /// their estimate cannot be trusted; `busy_taking` of slots with a large job on its way in, which would have to begin
    /// again.
    pub(crate) fn victim(
        &self,
        started: impl Fn(usize) -> usize,
        stuck: impl Fn(usize) -> bool,
        busy_taking: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        (0..self.slots.len())
            .filter_map(|slot| {
                let load = &self.slots[slot];
                let unstarted = self.unstarted(slot, &started) as u64;
                (unstarted > 0).then(|| (slot, load.work_ns / load.jobs as u64 * unstarted))
            })
            .filter(|&(slot, unstarted_ns)| stuck(slot) || (unstarted_ns > STEAL_NS && !busy_taking(slot)))
            .max_by_key(|&(_, unstarted_ns)| unstarted_ns)
            .map(|(slot, _)| slot)
    }

    /// Whether any open slot holds a job that has not started; `started` as for [`Scheduler::victim`].
    pub(crate) fn has_unstarted(&self, started: impl Fn(usize) -> usize) -> bool {
        (0..self.slots.len()).any(|slot| self.unstarted(slot, &started) > 0)
    }
}

#[cfg(all(test, not(seqpool_loom)))]
mod tests;
