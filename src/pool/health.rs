//! Whether the pool is at full strength, and if not, why.

use super::engine::Engine;
use super::slot::Life;
use crate::sys::{Exit, Pid, Sys};
use std::fmt;
use std::time::Duration;

/// The pool's slots as they are now; [`Pool::health`](super::Pool::health) tells.
///
/// Printed, it is one line: how many workers run, and what is wrong with the others.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// By slot.
    pub slots: Vec<SlotHealth>,
    /// Whether workers that end can be replaced: the nursery is there.
    pub can_respawn: bool,
}

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotHealth {
    /// Where it stands.
    pub state: SlotState,
    /// Its worker's process id, once the nursery has told.
    pub pid: Option<Pid>,
    /// How many workers it has had, or has asked for.
    pub generation: u32,
}

/// Where a slot stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotState {
    /// Its worker is being forked, or in its set-up.
    Starting,
    /// Its worker takes jobs.
    Running,
    /// Its worker is about to be replaced, as planned.
    Leaving,
    /// Its worker is being killed.
    Dying,
    /// It has no worker, because several in a row died before they had finished a job, or could not be started: the next
    /// one is asked for later.
    BackingOff {
        /// In how long; zero: as soon as somebody drives the pool.
        left: Duration,
        /// Deaths, or failed starts, in a row.
        failures: u32,
        /// What became of the last one.
        why: String,
    },
    /// It has no worker and will have none.
    GivenUp {
        /// Why.
        why: String,
    },
}

impl Health {
    /// Slots whose worker takes jobs.
    pub fn running(&self) -> usize {
        self.slots.iter().filter(|slot| slot.state == SlotState::Running).count()
    }

    /// Whether something is wrong: a slot waits because its workers do not last, or is given up, or nobody could be
    /// replaced. Workers that start, or are replaced as planned, are nothing wrong.
    pub fn is_degraded(&self) -> bool {
        let is_wrong =
            |slot: &SlotHealth| matches!(slot.state, SlotState::BackingOff { .. } | SlotState::GivenUp { .. });
        !self.can_respawn || self.slots.iter().any(is_wrong)
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} workers run", self.running(), self.slots.len())?;
        for (index, slot) in self.slots.iter().enumerate() {
            match &slot.state {
                SlotState::BackingOff { left, failures, why } => {
                    write!(f, "; slot {index} waits for {left:?} after {failures} failures in a row: {why}")?;
                }
                SlotState::GivenUp { why } => write!(f, "; slot {index} is given up: {why}")?,
                _ => {}
            }
        }
        if !self.can_respawn {
            f.write_str("; nobody can be replaced: the nursery process is gone")?;
        }
        Ok(())
    }
}

impl<S: Sys> Engine<S> {
    pub(super) fn health(&self) -> Health {
        let now_ns = self.sys.now_ns();
        let slots = self.slots.iter().map(|s| {
            let why = || s.trouble.clone().unwrap_or_else(|| "unknown".to_owned());
            let state = match s.life {
                Life::Empty => SlotState::BackingOff {
                    left: Duration::from_nanos(s.timer_at_ns.saturating_sub(now_ns)),
                    failures: s.spawn_failures.max(s.early_deaths),
                    why: why(),
                },
                Life::Starting => SlotState::Starting,
                Life::Running if s.wear.retiring => SlotState::Leaving,
                Life::Running => SlotState::Running,
                Life::Leaving => SlotState::Leaving,
                Life::Dying => SlotState::Dying,
                Life::GivenUp => SlotState::GivenUp { why: why() },
            };
            SlotHealth { state, pid: s.pid.filter(|_| s.is_occupied()), generation: s.generation }
        });
        Health { slots: slots.collect(), can_respawn: self.nursery.is_some() }
    }

    /// A worker has ended before it had finished a job: remembers how, unless it has told why itself.
    pub(super) fn note_early_death(&mut self, slot: usize, exit: Option<Exit>, was_ready: bool) {
        let what = if was_ready { "a worker without a finished job" } else { "set-up" };
        let text = match exit {
            Some(Exit::Code(n)) => format!("{what} ended with exit code {n}"),
            Some(Exit::Signal(n)) => format!("{what} ended by signal {n}"),
            None => format!("{what} ended"),
        };
        let s = &mut self.slots[slot];
        if was_ready || !s.has_told {
            s.trouble = Some(text);
        }
    }
}
