//! The nursery's own life: it is watched, and when it dies or hangs, another takes its place, in exec mode.
//!
//! Its workers outlive it as *orphans*: they finish what they have, the host kills them itself where it must, and their
//! ends are seen by their sockets. The host never forks: where no other nursery can be executed, slots are given up as
//! their workers end.

use super::engine::{Alarm, Engine};
use super::slot::Life;
use super::supervise::{backoff, nanos};
use crate::limits::{
    KILL_TIMEOUT, NURSERY_LATE_MAX, NURSERY_PROVED_AGE, NURSERY_STARTS_MAX, NURSERY_TIMEOUT, RESPAWN_BACKOFF_MIN,
};
use crate::nursery::{Heard, Nursery, exec::Plan};
use crate::sys::{Interest, OsResult, Sys};

pub(super) const NURSERY_GONE: &str = "the nursery process is gone";

/// How another nursery is started.
pub(super) struct Renewal {
    pub(super) plan: Plan,
    /// Started in a row, and none of them has proved itself.
    pub(super) starts: u32,
    /// When the last one was lost. Units: nanoseconds.
    lost_ns: u64,
}

impl Renewal {
    pub(super) fn new(plan: Plan) -> Self {
        Self { plan, starts: 0, lost_ns: 0 }
    }
}

impl<S: Sys> Engine<S> {
    /// Whether there is a nursery, or will be one.
    pub(super) fn may_fork(&self) -> bool {
        self.nursery.is_some() || self.renewal.is_some()
    }

    /// Sees to it that a nursery that owes an answer is looked at in time.
    pub(super) fn watch_nursery(&mut self) {
        if self.nursery_timer.is_none()
            && let Some(at_ns) = self.nursery.as_ref().and_then(Nursery::answer_due_ns)
        {
            self.set_nursery_timer(at_ns);
        }
    }

    /// As long as it owes none, nothing has to be looked at.
    pub(super) fn unwatch_nursery(&mut self) {
        if self.nursery.as_ref().is_some_and(|nursery| nursery.answer_due_ns().is_none()) {
            self.clear_nursery_timer();
        }
    }

    fn set_nursery_timer(&mut self, at_ns: u64) {
        self.clear_nursery_timer();
        self.nursery_timer = Some(self.reactor.set_timer(at_ns, Alarm::Nursery.to_bits()));
    }

    fn clear_nursery_timer(&mut self) {
        if let Some(timer) = self.nursery_timer.take() {
            self.reactor.cancel_timer(timer);
        }
    }

    pub(super) fn on_nursery_alarm(&mut self) -> OsResult<()> {
        self.nursery_timer = None;
        if self.nursery.is_none() {
            self.renew_nursery();
            return Ok(());
        }
        // What it has said counts, however late it is read.
        self.hear()?;
        let now_ns = self.sys.now_ns();
        let Some(nursery) = &mut self.nursery else { return Ok(()) };
        let Some(due_ns) = nursery.answer_due_ns() else { return Ok(()) };
        if now_ns >= due_ns {
            if now_ns - due_ns <= nanos(NURSERY_LATE_MAX) {
                let within = NURSERY_TIMEOUT.as_secs();
                let why = match nursery.is_ready() {
                    true => format!("the nursery process did not answer within {within} s and was killed"),
                    false => "the nursery process was not ready in time and was killed".to_owned(),
                };
                self.nursery_lost(&why);
                return Ok(());
            }
            nursery.grant_time();
        }
        self.watch_nursery();
        Ok(())
    }

    /// The nursery is gone, or as good as gone. Its workers go on.
    pub(super) fn nursery_lost(&mut self, why: &str) {
        let Some(mut nursery) = self.nursery.take() else { return };
        if let Some(token) = self.nursery_token.take() {
            // Fails only for a token that is not registered.
            let _ = self.reactor.deregister(token, nursery.socket());
        }
        self.clear_nursery_timer();
        // One that hangs must not wake up again, between a worker and another nursery's.
        nursery.kill();
        if let Some(renewal) = &mut self.renewal
            && nursery.is_ready()
            && nursery.age_ns() >= nanos(NURSERY_PROVED_AGE)
        {
            renewal.starts = 0;
        }
        self.start_error = Some(why.to_owned());
        if let Some(renewal) = &mut self.renewal {
            renewal.lost_ns = self.sys.now_ns();
        }
        self.plan_renewal();
        // Its last words: who has been forked, and who has ended.
        while let Ok(heard @ (Heard::Report(_) | Heard::Again)) = nursery.next_report() {
            if let Heard::Report(report) = heard {
                self.on_report(report);
            }
        }
        self.lost_nursery = Some(nursery);
        for slot in 0..self.slots.len() {
            self.slots[slot].is_orphan = self.slots[slot].is_occupied();
            match self.slots[slot].life {
                Life::Empty if self.may_fork() => {}
                Life::Empty => self.give_up(slot),
                // One that has not announced itself has taken no job, and never will: its lifeline is cut. One that has
                // died is found by its closed socket.
                Life::Starting | Life::Running | Life::Leaving | Life::Dying => {
                    self.drain_slot(slot);
                    if !self.slots[slot].is_occupied() {
                        continue;
                    }
                    if self.slots[slot].pid.is_none() {
                        self.on_exit(slot, None);
                    } else if self.slots[slot].life == Life::Dying {
                        // The nursery may not have come to it.
                        self.kill_orphan(slot);
                    }
                }
                Life::GivenUp => {}
            }
        }
    }

    /// Says when another nursery is started, if one may be; else there will be none.
    fn plan_renewal(&mut self) {
        let Some(renewal) = &mut self.renewal else { return };
        renewal.starts += 1;
        if renewal.starts > NURSERY_STARTS_MAX {
            self.renewal = None;
            return;
        }
        let at_ns = self.sys.now_ns() + nanos(backoff(renewal.starts));
        self.set_nursery_timer(at_ns);
    }

    /// Executes another nursery. Slots are filled when it says that it serves.
    fn renew_nursery(&mut self) {
        let Some(renewal) = &self.renewal else { return };
        if self.lost_nursery.as_ref().is_some_and(|lost| !lost.is_reaped()) {
            // Never two at a time. `SIGKILL` takes a moment, which is no failure to start.
            let now_ns = self.sys.now_ns();
            if now_ns.saturating_sub(renewal.lost_ns) < nanos(KILL_TIMEOUT) {
                return self.set_nursery_timer(now_ns + nanos(RESPAWN_BACKOFF_MIN));
            }
            self.renewal = None;
            return self.renewal_over("the last nursery process cannot be killed".to_owned());
        }
        self.lost_nursery = None;
        let started = Nursery::exec(&self.sys, &renewal.plan).and_then(|nursery| {
            match self.reactor.register(nursery.socket(), Interest::READ.and(Interest::WRITE)) {
                Ok(token) => Ok((nursery, token)),
                Err(error) => {
                    nursery.discard();
                    Err(error)
                }
            }
        });
        match started {
            Ok((nursery, token)) => {
                self.stats.nursery_respawns += 1;
                (self.nursery, self.nursery_token) = (Some(nursery), Some(token));
                self.watch_nursery();
                self.keep_ticking();
            }
            Err(error) => self.renewal_failed(format!("starting another nursery: {error}")),
        }
    }

    fn renewal_failed(&mut self, why: String) {
        self.plan_renewal();
        match self.renewal {
            Some(_) => self.start_error = Some(why),
            None => self.renewal_over(why),
        }
    }

    /// There will be no other nursery.
    fn renewal_over(&mut self, why: String) {
        self.start_error = Some(why);
        for slot in 0..self.slots.len() {
            if self.slots[slot].life == Life::Empty {
                self.give_up(slot);
            }
        }
    }

    /// Another nursery serves: every slot without a worker has one asked for, those that were given up too.
    pub(super) fn nursery_ready(&mut self) {
        self.start_error = None;
        self.hopeless = None;
        for slot in 0..self.slots.len() {
            let s = &mut self.slots[slot];
            match s.life {
                Life::Empty if s.timer.is_none() => self.refill(slot),
                Life::GivenUp => {
                    s.life = Life::Empty;
                    (s.spawn_failures, s.failed_starts, s.early_deaths) = (0, 0, 0);
                    self.refill(slot);
                }
                _ => {}
            }
        }
    }
}
