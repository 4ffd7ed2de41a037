//! A pause: every worker's process group stopped, and all time stood still.
//!
//! It is one call with a closure in it, so that nobody can drive the pool meanwhile: no deadline is looked at and no
//! worker started. Workers are stopped by the nursery, whose children they are and which alone knows that an id is still
//! theirs; only without a nursery the host does it itself.

use super::Pool;
use super::engine::Engine;
use super::slot::Life;
use crate::sys::Sys;

const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;

impl<S: Sys> Pool<S> {
    /// Stops every worker's process group (`SIGSTOP`) while `f` runs, and then lets them go on (`SIGCONT`).
    ///
    /// Deadlines of all kinds stand still meanwhile: for a host that is about to stop itself, as Ctrl-Z asks for. A worker
    /// may run on for the moment that the signal needs. What workers have moved into other process groups is not reached.
    pub fn pause_while<T>(&mut self, f: impl FnOnce() -> T) -> T {
        let engine = self.engine_mut();
        let since_ns = engine.sys.now_ns();
        engine.signal_workers(SIGSTOP);
        // Goes on also when `f` panics.
        let _paused = Paused { engine, since_ns };
        f()
    }
}

struct Paused<'e, S: Sys> {
    engine: &'e mut Engine<S>,
    since_ns: u64,
}

impl<S: Sys> Drop for Paused<'_, S> {
    fn drop(&mut self) {
        // Before the workers go on, so that no deadline counts what they could not use.
        let paused_ns = self.engine.sys.now_ns().saturating_sub(self.since_ns);
        self.engine.postpone(paused_ns);
        self.engine.signal_workers(SIGCONT);
        // An error here comes back from the next call that can return it.
        let _ = self.engine.settle();
    }
}

impl<S: Sys> Engine<S> {
    fn signal_workers(&mut self, signal: i32) {
        for slot in 0..self.slots.len() {
            if !matches!(self.slots[slot].life, Life::Starting | Life::Running | Life::Leaving) {
                // One that dies is dealt with by `SIGKILL`, which a stop does not hold up.
                continue;
            }
            self.signal_worker(slot, signal);
        }
    }

    /// Moves everything that was to happen, and since when things are counted, as if so much time had not passed.
    fn postpone(&mut self, by_ns: u64) {
        self.reactor.postpone_timers(by_ns);
        self.tick_at_ns = self.tick_at_ns.saturating_add(by_ns);
        for s in &mut self.slots {
            s.sampled_ns = s.sampled_ns.saturating_add(by_ns);
            s.progress_ns = s.progress_ns.saturating_add(by_ns);
        }
    }
}
