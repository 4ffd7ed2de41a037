//! Workers' lives: starting, deadlines, killing, what a death means for each job, starting again.

use super::engine::{Alarm, Ending, Engine};
use super::renew::NURSERY_GONE;
use super::slot::{Doom, Life};
use super::table::{JobIndex, Place};
use crate::claim;
use crate::limits::{
    CHARGES_MAX, DRAINS_MAX, EARLY_DEATHS_MAX, KILL_TIMEOUT, RESPAWN_BACKOFF_MAX, RESPAWN_BACKOFF_MIN, SAMPLE_MIN,
    SLEEP_MAX, SPAWN_FAILURES_MAX,
};
use crate::nursery::{Command, Heard, Nursery, Parcel, Report};
use crate::outcome::{Crash, CrashCause, Outcome, Reason};
use crate::prints::Printed;
use crate::slot::Phase;
use crate::sys::{self, Exit, Interest, OsError, OsResult, PollFd, Readiness, Sys};
use crate::worker::MemoryLimitKind;
use std::os::fd::AsFd;
use std::time::Duration;

const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const ESRCH: i32 = 3;

pub(super) fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl<S: Sys> Engine<S> {
    // ---- starting

    /// Asks the nursery for a worker; jobs may be sent to it from now on.
    pub(super) fn start_worker(&mut self, slot: usize) -> OsResult<()> {
        if self.slots[slot].life == Life::GivenUp {
            // The nursery died while it was asked for the first workers.
            return Ok(());
        }
        debug_assert_eq!(self.slots[slot].life, Life::Empty);
        if !self.nursery.as_ref().is_some_and(Nursery::is_ready) {
            // The next nursery begins with the empty slots.
            if !self.may_fork() {
                self.give_up(slot);
            }
            return Ok(());
        }
        if self.slots[slot].needs_memory {
            self.slots[slot].renew_memory(&self.sys)?;
        }
        let (socket, theirs) = self.sys.socketpair()?;
        let (lifeline, worker_lifeline) = self.sys.socketpair()?;
        let file = sys::duplicate(self.slots[slot].file.as_fd())?;
        let (print_file, their_print_file) = self.new_print_file()?.unzip();
        self.transport.attach(&mut self.reactor, slot, socket)?;
        let Some(nursery) = &mut self.nursery else { return Ok(()) };
        // Nothing can fail any more but the nursery itself.
        let now_ns = self.sys.now_ns();
        let s = &mut self.slots[slot];
        s.begin_incarnation(now_ns, self.config.jobs_per_worker);
        s.lifeline = Some(lifeline);
        s.prints = print_file;
        let command = Command::Spawn { slot: slot as u32, generation: s.generation };
        let parcel = Parcel { socket: theirs, file, lifeline: worker_lifeline, print_file: their_print_file };
        let sent = nursery.command(command, Some(parcel));
        self.scheduler.limit(slot, self.config.jobs_per_worker);
        self.scheduler.open(slot);
        self.set_slot_timer(slot, now_ns.saturating_add(self.config.spawn_ns));
        self.keep_ticking();
        self.watch_nursery();
        if !matches!(sent, Ok(true)) {
            self.nursery_lost(NURSERY_GONE);
        }
        Ok(())
    }

    /// Starts a worker now, or says when to try again.
    pub(super) fn refill(&mut self, slot: usize) {
        if let Err(error) = self.start_worker(slot) {
            self.on_spawn_failure(slot, error);
        }
    }

    /// The worker has said hello.
    pub(super) fn on_ready(&mut self, slot: usize) {
        self.clear_slot_timer(slot);
        let now_ns = self.sys.now_ns();
        let s = &mut self.slots[slot];
        s.life = Life::Running;
        s.ready = true;
        s.failed_starts = 0;
        (s.sampled_ns, s.progress_ns) = (now_ns, now_ns);
        self.scheduler.ready(slot);
        let s = &self.slots[slot];
        if s.generation > 1 {
            self.stats.respawns += 1;
        }
        self.limit_age(slot, now_ns);
    }

    pub(super) fn set_slot_timer(&mut self, slot: usize, deadline_ns: u64) {
        self.clear_slot_timer(slot);
        self.slots[slot].timer_at_ns = deadline_ns;
        self.slots[slot].timer = Some(self.reactor.set_timer(deadline_ns, Alarm::Slot(slot).to_bits()));
    }

    fn clear_slot_timer(&mut self, slot: usize) {
        if let Some(timer) = self.slots[slot].timer.take() {
            self.reactor.cancel_timer(timer);
        }
    }

    // ---- the nursery

    /// Takes the nursery's reports.
    pub(super) fn hear(&mut self) -> OsResult<()> {
        loop {
            let Some(nursery) = &mut self.nursery else { return Ok(()) };
            if !nursery.flush()? {
                self.nursery_lost(NURSERY_GONE);
                return Ok(());
            }
            match nursery.next_report()? {
                Heard::Report(report) => self.on_report(report),
                Heard::Again => {}
                Heard::Nothing => {
                    self.unwatch_nursery();
                    if let Some(token) = self.nursery_token {
                        self.reactor.exhausted(token, Readiness::READ.and(Readiness::WRITE));
                    }
                    return Ok(());
                }
                Heard::Gone => {
                    self.nursery_lost(NURSERY_GONE);
                    return Ok(());
                }
            }
        }
    }

    pub(super) fn on_report(&mut self, report: Report) {
        let (slot, generation) = match report {
            Report::Obeyed => return,
            Report::Ready => return self.nursery_ready(),
            Report::Refused(refusal) => {
                let why = format!("the nursery refused to start: {refusal}");
                // Among the last words of one that is lost already, this is why.
                self.start_error = Some(why.clone());
                return self.nursery_lost(&why);
            }
            Report::Spawned { slot, generation, .. }
            | Report::SpawnFailed { slot, generation, .. }
            | Report::Exited { slot, generation, .. } => (slot as usize, generation),
        };
        // A report about an incarnation that was given up.
        if self.slots.get(slot).is_none_or(|s| s.generation != generation || !s.is_occupied()) {
            return;
        }
        match report {
            Report::Obeyed | Report::Ready | Report::Refused(_) => {}
            Report::Spawned { pid, .. } => self.slots[slot].pid = Some(pid),
            Report::SpawnFailed { errno, .. } => {
                let error = OsError { call: "fork", errno };
                self.vacate(slot, None);
                self.on_spawn_failure(slot, error);
            }
            Report::Exited { report, oom, .. } => {
                self.slots[slot].exit_usage = Some(report.usage);
                self.slots[slot].oom = oom;
                self.on_exit(slot, Some(report.exit));
            }
        }
    }

    /// A worker could not be started: try later.
    pub(super) fn on_spawn_failure(&mut self, slot: usize, error: OsError) {
        self.start_error = Some(error.to_string());
        let s = &mut self.slots[slot];
        s.trouble = Some(error.to_string());
        s.spawn_failures += 1;
        if s.spawn_failures >= SPAWN_FAILURES_MAX {
            return self.give_up(slot);
        }
        let delay = backoff(s.spawn_failures);
        let at = self.sys.now_ns() + nanos(delay);
        self.set_slot_timer(slot, at);
    }

    /// An orphan's socket was closed: there is no nursery to say how it ended.
    pub(super) fn on_unreported_exit(&mut self, slot: usize) {
        if self.slots[slot].is_occupied() {
            // The packet that is being read, if there is one, was received before; there is nothing more to drain.
            self.on_exit(slot, None);
        }
    }

    /// Whether a slot's worker has ended, for when nobody reports it.
    fn has_vanished(&self, slot: usize) -> bool {
        let Some(pid) = self.slots[slot].pid else { return false };
        match self.sys.pidfd_open(pid) {
            Ok(fd) => {
                let mut poll = [PollFd::new(fd.as_fd(), Interest::READ)];
                self.sys.poll(&mut poll, Some(0)).is_ok() && poll[0].readiness().is_readable()
            }
            Err(error) => error.errno == ESRCH,
        }
    }

    // ---- killing

    /// Has a worker killed. What it means for its jobs is decided when its exit is reported.
    pub(super) fn kill(&mut self, slot: usize, doom: Doom) {
        let s = &mut self.slots[slot];
        if s.life == Life::Dying {
            // It is dying already; but nothing that it left is to be believed any more.
            if doom == Doom::Hostile {
                s.doom = Some(doom);
            }
            return;
        }
        if !s.is_occupied() {
            return;
        }
        if doom == Doom::Hostile {
            self.stats.hostile += 1;
        }
        // One that runs a job may want to tidy up. Nothing is to be gained from one that speaks nonsense or is not there yet.
        let has_grace = matches!(doom, Doom::TimedOut { .. } | Doom::Cancelled { .. }) && self.config.grace_ns > 0;
        s.doom = Some(doom);
        s.life = Life::Dying;
        self.scheduler.close(slot);
        if has_grace {
            self.slots[slot].has_grace = true;
            let deadline_ns = self.sys.now_ns().saturating_add(self.config.grace_ns);
            self.set_slot_timer(slot, deadline_ns);
            self.signal_worker(slot, SIGTERM);
        } else {
            self.kill_now(slot);
        }
    }

    /// Kills a worker that is to die, with its group.
    fn kill_now(&mut self, slot: usize) {
        self.slots[slot].has_grace = false;
        let deadline_ns = self.sys.now_ns() + nanos(KILL_TIMEOUT);
        self.set_slot_timer(slot, deadline_ns);
        self.signal_worker(slot, SIGKILL);
    }

    /// Sends a worker and its group a signal.
    pub(super) fn signal_worker(&mut self, slot: usize, signal: i32) {
        let s = &self.slots[slot];
        let command = Command::Signal { slot: slot as u32, generation: s.generation, signal };
        let (pid, is_orphan) = (s.pid, s.is_orphan);
        match (self.nursery.as_mut().filter(|_| !is_orphan), pid) {
            (Some(nursery), _) => {
                // An error here is the nursery's end, which its socket will tell.
                let _ = nursery.command(command, None);
                self.watch_nursery();
            }
            (None, _) if signal == SIGKILL => self.kill_orphan(slot),
            (None, Some(pid)) => {
                let _ = self.sys.kill(-pid, signal);
            }
            (None, None) => {}
        }
    }

    /// Kills a worker that has no nursery.
    pub(super) fn kill_orphan(&mut self, slot: usize) {
        if let Some(pid) = self.slots[slot].pid {
            let _ = self.sys.kill(-pid, SIGKILL);
        }
        // It may have left its group; this reaches it wherever it is.
        self.slots[slot].lifeline = None;
    }

    // ---- dying

    /// Reads all that a dead worker has sent, to the end of file. While a process that it left behind holds its socket,
    /// there is none: then one "nothing there" is as good as many, but no single one is believed.
    fn drain_dead(&mut self, slot: usize) {
        for _ in 0..DRAINS_MAX {
            if self.slots[slot].doom == Some(Doom::Hostile) || self.transport.has_hung_up(slot) {
                return;
            }
            self.drain_slot(slot);
        }
    }

    /// A worker has ended (`None`: nobody knows how): every job of its slot gets what it deserves.
    pub(super) fn on_exit(&mut self, slot: usize, exit: Option<Exit>) {
        if exit.is_some() {
            self.drain_dead(slot);
        }
        if self.slots[slot].doom != Some(Doom::Hostile) {
            self.salvage(slot);
        }
        let was_ready = self.slots[slot].ready;
        // One that was told to leave did as it was told, also if it had never been given a job.
        self.slots[slot].proved |= self.slots[slot].life == Life::Leaving;
        let blamed = self.vacate(slot, exit);
        let s = &mut self.slots[slot];
        if s.is_orphan {
            // Nobody has reaped it: it may still write to its memory.
            s.needs_memory = true;
            return if self.may_fork() { self.refill(slot) } else { self.give_up(slot) };
        }
        s.spawn_failures = 0;
        s.proved |= blamed;
        if s.proved {
            s.early_deaths = 0;
        } else {
            s.early_deaths += 1;
            self.note_early_death(slot, exit, was_ready);
        }
        let s = &mut self.slots[slot];
        if !was_ready {
            s.failed_starts += 1;
            let start_error = s.trouble.clone();
            self.start_error = self.start_error.take().or(start_error);
        }
        let s = &self.slots[slot];
        if s.failed_starts >= EARLY_DEATHS_MAX {
            return self.give_up(slot);
        }
        if s.early_deaths > 0 {
            let at = self.sys.now_ns() + nanos(backoff(s.early_deaths));
            self.set_slot_timer(slot, at);
        } else {
            self.refill(slot);
        }
    }

    /// Clears a slot of its dead worker: settles what started, takes back what did not. Returns whether a job was
    /// blamed.
    fn vacate(&mut self, slot: usize, exit: Option<Exit>) -> bool {
        self.transport.detach(&mut self.reactor, slot);
        self.scheduler.close(slot);
        self.clear_slot_timer(slot);
        self.clear_age_timer(slot);
        let s = &mut self.slots[slot];
        let was_ready = std::mem::take(&mut s.ready);
        s.lifeline = None;
        s.assembly = None;
        let sent = s.sent_seq.wrapping_sub(s.due_seq);
        // Taken back rather than looked at: when nobody reported this end, the worker may still be about to claim.
        let word = s.memory.control().claim.reclaim();
        let epoch = s.epoch;
        s.epoch = epoch.wrapping_add(1);
        let started = match s.doom {
            Some(Doom::Hostile) => sent,
            // An honest worker publishes a result before its next claim: after salvage one job at most is open.
            _ => match claim::started(word, epoch, s.due_seq, s.sent_seq) {
                Ok(n) if n <= 1 => n,
                _ => sent,
            },
        };
        let doom = s.doom.take();
        s.life = Life::Empty;
        let oom = s.oom.take().or_else(|| self.marked_oom(slot, exit));
        // Of several jobs that count as started nobody knows which has printed it.
        let mut printed = self.take_printed(slot, started == 1);
        for _ in 0..started {
            let outcome = match &doom {
                Some(Doom::TimedOut { after }) => Outcome::TimedOut { after: *after },
                Some(Doom::Cancelled { why }) => Outcome::Cancelled { why: why.clone() },
                Some(Doom::Stalled | Doom::Hostile) | None => Outcome::Crashed(Crash {
                    cause: match exit {
                        Some(Exit::Signal(n)) => CrashCause::Signal(n),
                        Some(Exit::Code(n)) => CrashCause::Code(n),
                        None => CrashCause::Unknown,
                    },
                    // What was killed by us, or lies, was not killed for that.
                    oom: if doom.is_none() { oom } else { None },
                }),
            };
            self.settle_started(slot, outcome, printed.take());
        }
        let s = &self.slots[slot];
        // A large job that was on its way in counts as sent: it may be what the worker died of.
        let unclaimed_sent = s.in_flight() || s.fragment_offset > 0;
        self.take_back(slot, 0);
        if started == 0 && unclaimed_sent && was_ready {
            self.charge_next();
        }
        started > 0
    }

    /// Whether a worker that has ended so left word that it could not have more memory.
    fn marked_oom(&self, slot: usize, exit: Option<Exit>) -> Option<bool> {
        let is_marked = self.config.memory_limit == Some(MemoryLimitKind::AddressSpace)
            && exit == Some(Exit::Signal(SIGABRT))
            && self.slots[slot].memory.control().phase() == Phase::OutOfMemory;
        is_marked.then_some(true)
    }

    /// The first job of this slot that has no result has this outcome.
    fn settle_started(&mut self, slot: usize, outcome: Outcome<Vec<u8>>, printed: Option<Printed<Vec<u8>>>) {
        let s = &self.slots[slot];
        let position = s.journal.next_live(s.due);
        debug_assert!(position < s.sent, "what started was sent");
        let label = s.journal.entry(position).label;
        if self.is_tried_again(label, &outcome.as_ref()) {
            return self.try_again(slot, position);
        }
        let usage = self.slots[slot].exit_usage;
        let tail = printed.as_ref().map(|p| &p.bytes[..]);
        let quarantined = self.quarantine(label, &outcome, Some(usage), tail);
        self.leave_settled(slot, position);
        self.table.recall(label);
        self.finish_as(label.job, Ending { outcome, worker: Some(slot), quarantined, printed });
    }

    /// A worker died, or had to be killed, with nothing running: the job that was next in line is charged with it.
    fn charge_next(&mut self) {
        let Some(&job) = self.front.front() else { return };
        let r = self.table.get_mut(job);
        r.charges += 1;
        if r.charges >= CHARGES_MAX {
            let outcome = Outcome::Crashed(Crash { cause: CrashCause::NeverStarted, oom: None });
            let quarantined = self.quarantine(self.table.label(job), &outcome, None, None);
            self.drop_front(job);
            self.finish_as(job, Ending { outcome, worker: None, quarantined, printed: None });
        }
    }

    /// Removes the first waiting job, and its bytes.
    fn drop_front(&mut self, job: JobIndex) {
        self.front.pop_front();
        if let Place::FrontInSlot(slot, position) = self.table.place(job) {
            self.slots[slot as usize].journal.void(position);
        }
    }

    pub(super) fn give_up(&mut self, slot: usize) {
        self.clear_slot_timer(slot);
        let s = &mut self.slots[slot];
        s.life = Life::GivenUp;
        if self.nursery.is_none() {
            s.trouble = Some(NURSERY_GONE.to_owned());
        }
        if self.slots.iter().any(|s| s.life != Life::GivenUp) {
            return;
        }
        let why = self.start_error.clone().unwrap_or_else(|| "every worker died".to_owned());
        let reason = Reason::NoWorkers(why);
        while let Some(&job) = self.front.front() {
            self.drop_front(job);
            self.finish(job, Outcome::Rejected { reason: reason.clone() }, None);
        }
        loop {
            let position = self.queue.next_live(self.queue.head());
            if position == self.queue.tail() {
                break;
            }
            let job = self.queue.entry(position).label.job;
            self.queue.void(position);
            self.finish(job, Outcome::Rejected { reason: reason.clone() }, None);
        }
        self.hopeless = Some(reason);
    }

    // ---- time

    pub(super) fn on_alarm(&mut self, alarm: Alarm, now_ns: u64) -> OsResult<()> {
        match alarm {
            Alarm::Tick => self.on_tick(now_ns),
            Alarm::Steal => {
                // The turn fills the slots after this anyway.
                self.steal = None;
                Ok(())
            }
            Alarm::Retry(job) => {
                self.on_retry(job);
                Ok(())
            }
            Alarm::Waited(job) => {
                self.on_waited(job);
                Ok(())
            }
            Alarm::Nursery => self.on_nursery_alarm(),
            Alarm::Prints => {
                self.on_print_alarm(now_ns);
                Ok(())
            }
            Alarm::Age(slot) => {
                self.slots[slot].wear.timer = None;
                self.on_age(slot, now_ns);
                Ok(())
            }
            Alarm::Slot(slot) => {
                self.slots[slot].timer = None;
                match self.slots[slot].life {
                    Life::Empty => self.refill(slot),
                    Life::Starting => {
                        let why = "set-up did not end in time".to_owned();
                        self.slots[slot].tell(&why);
                        self.start_error.get_or_insert(why);
                        self.kill(slot, Doom::Stalled);
                    }
                    Life::Leaving => self.kill(slot, Doom::Stalled),
                    Life::Dying if self.slots[slot].has_grace => self.kill_now(slot),
                    Life::Dying => self.abandon(slot),
                    Life::Running | Life::GivenUp => {}
                }
                Ok(())
            }
        }
    }

    /// A worker that cannot be killed keeps its memory for ever; the slot goes on with memory of its own.
    fn abandon(&mut self, slot: usize) {
        self.drain_slot(slot);
        if self.slots[slot].life != Life::Dying {
            return;
        }
        self.stats.abandoned += 1;
        let was_ready = self.slots[slot].ready;
        self.vacate(slot, Some(Exit::Signal(SIGKILL)));
        let s = &mut self.slots[slot];
        s.needs_memory = true;
        if !was_ready {
            s.failed_starts += 1;
        }
        if s.failed_starts >= EARLY_DEATHS_MAX {
            self.start_error.get_or_insert_with(|| "workers that cannot be killed during set-up".to_owned());
            return self.give_up(slot);
        }
        self.refill(slot);
    }

    /// Sees to it that deadlines and lost edges are looked at; by then, if this job's timeout asks for it.
    #[inline]
    pub(super) fn keep_ticking(&mut self) {
        if self.tick.is_none() {
            self.start_ticking();
        }
    }

    #[cold]
    fn start_ticking(&mut self) {
        let now_ns = self.sys.now_ns();
        self.set_tick(now_ns + self.period_ns());
        self.watch_prints(now_ns);
    }

    /// A job with a timeout has joined others that have none, or longer ones: the tick may have to come sooner.
    pub(super) fn hasten_tick(&mut self) {
        let at_ns = self.sys.now_ns() + self.period_ns();
        if self.tick.is_none() || at_ns < self.tick_at_ns {
            self.set_tick(at_ns);
        }
    }

    fn set_tick(&mut self, at_ns: u64) {
        if let Some(tick) = self.tick.take() {
            self.reactor.cancel_timer(tick);
        }
        self.tick_at_ns = at_ns;
        self.tick = Some(self.reactor.set_timer(at_ns, Alarm::Tick.to_bits()));
    }

    fn period_ns(&self) -> u64 {
        if self.timed_jobs() > 0 {
            (self.shortest_timeout_ns() / 100).clamp(nanos(SAMPLE_MIN), nanos(SLEEP_MAX))
        } else {
            nanos(SLEEP_MAX).min(self.config.stall_ns / 4).max(nanos(SAMPLE_MIN))
        }
    }

    fn on_tick(&mut self, now_ns: u64) -> OsResult<()> {
        self.tick = None;
        let mut soonest_ns = u64::MAX;
        for slot in 0..self.slots.len() {
            if self.config.growth_max.is_some() {
                self.look_at_growth(slot, now_ns);
            }
            let s = &self.slots[slot];
            if self.scheduler.jobs(slot) == 0 && !matches!(s.life, Life::Starting | Life::Leaving | Life::Dying) {
                continue;
            }
            if self.slots[slot].is_orphan && self.has_vanished(slot) {
                // What it left behind may hold its socket open for ever.
                self.drain_slot(slot);
                self.on_unreported_exit(slot);
                continue;
            }
            let s = &self.slots[slot];
            if s.sent != s.journal.tail() {
                self.mark_dirty(slot);
            }
            if let Some(expiry_ns) = self.sample(slot, now_ns) {
                soonest_ns = soonest_ns.min(expiry_ns);
            }
            if now_ns.saturating_sub(self.slots[slot].progress_ns) >= nanos(SLEEP_MAX) {
                self.transport.rearm(&mut self.reactor, slot)?;
                // Its results may wait behind a job that never ends.
                match self.slots[slot].life {
                    Life::Running => self.read_ahead(slot),
                    _ => self.drain_slot(slot),
                }
            }
        }
        // A lost edge of the nursery's socket costs a tick too, not the run.
        self.hear()?;
        let is_busy = |slot: usize| {
            let s = &self.slots[slot];
            // One that has said hello while nobody has said yet who it is: that word is on its way.
            let is_nameless = s.life == Life::Running && s.pid.is_none() && self.nursery.is_some();
            self.scheduler.jobs(slot) > 0
                || is_nameless
                || matches!(s.life, Life::Starting | Life::Leaving | Life::Dying)
        };
        if (0..self.slots.len()).any(is_busy) || self.nursery.as_ref().is_some_and(Nursery::is_behind) {
            let at_ns = (now_ns + self.period_ns()).min(soonest_ns.max(now_ns + 1));
            if self.tick.is_none() || at_ns < self.tick_at_ns {
                self.set_tick(at_ns);
            }
        }
        Ok(())
    }

    /// Looks at a slot's claim word. Returns when its job in hand is due to be killed.
    fn sample(&mut self, slot: usize, now_ns: u64) -> Option<u64> {
        let s = &mut self.slots[slot];
        if s.life != Life::Running {
            return None;
        }
        if s.memory.control().phase() == Phase::WaitingForRoom {
            // Its time stands still while results wait for us. One that says so and has sent none is not believed.
            let received = self.stats.packets_received;
            self.drain_slot(slot);
            let s = &mut self.slots[slot];
            if s.life != Life::Running {
                return None;
            }
            if self.stats.packets_received != received {
                s.sampled_ns = self.sys.now_ns();
            }
        }
        let s = &mut self.slots[slot];
        if !s.in_flight() {
            return self.watch_transfer(slot, now_ns);
        }
        let word = s.memory.control().claim.load();
        let Ok(started) = claim::started(word, s.epoch, s.due_seq, s.sent_seq) else {
            self.kill(slot, Doom::Hostile);
            return None;
        };
        // Time counts from when the claim was first seen, so never early. By a clock reading after the look: this process
        // may have stood still since the turn began, and the job not have run so long.
        if word.seq != s.sampled_seq {
            s.sampled_seq = word.seq;
            s.sampled_ns = self.sys.now_ns();
        }
        let limit_ns = if started == 0 {
            self.config.stall_ns
        } else {
            let s = &self.slots[slot];
            let mut position = s.journal.next_live(s.due);
            for _ in 1..started {
                position = s.journal.next_live(position + 1);
            }
            let entry = s.journal.entry(position);
            if entry.timed { self.table.get(entry.label.job).terms.timeout_ns } else { 0 }
        };
        if limit_ns == 0 {
            return None;
        }
        let expiry_ns = self.slots[slot].sampled_ns.saturating_add(limit_ns);
        if now_ns < expiry_ns {
            return Some(expiry_ns);
        }
        self.expire(slot, word.seq, started > 0, limit_ns);
        None
    }

    /// Nothing of this slot is in flight: at most a large job is on its way in. Returns when it must have moved on.
    fn watch_transfer(&mut self, slot: usize, now_ns: u64) -> Option<u64> {
        let s = &self.slots[slot];
        if !s.blocked {
            return None;
        }
        let expiry_ns = s.progress_ns.saturating_add(self.config.receive_ns);
        if now_ns < expiry_ns {
            return Some(expiry_ns);
        }
        if self.reclaim(slot).is_some() {
            self.kill(slot, Doom::Stalled);
            self.charge_next();
        }
        None
    }

    /// A deadline has passed: takes everything back, looks once more, and kills only if nothing has moved.
    fn expire(&mut self, slot: usize, seen_seq: u32, running: bool, limit_ns: u64) {
        self.drain_slot(slot);
        if self.slots[slot].life != Life::Running {
            return;
        }
        let Some(word) = self.reclaim(slot) else { return };
        let s = &mut self.slots[slot];
        let moved = word.seq != seen_seq || (running && !s.in_flight());
        if moved {
            s.sampled_seq = word.seq;
            s.sampled_ns = self.sys.now_ns();
        } else if running {
            self.kill(slot, Doom::TimedOut { after: Duration::from_nanos(limit_ns) });
        } else {
            self.kill(slot, Doom::Stalled);
            self.charge_next();
        }
    }
}

pub(super) fn backoff(failures: u32) -> Duration {
    RESPAWN_BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(RESPAWN_BACKOFF_MAX)
}
