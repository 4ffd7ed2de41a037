//! Floor 4: the pool: submit, completion, supervision, shutdown.
//!
//! [`Pool`] is the front; `engine` holds the state, `place` and `send` the way of a job to its worker, `receive` the way
//! of its result back, `supervise` what happens when workers hang or die. Nothing here names a system call.

mod builder;
#[cfg(feature = "cli")]
mod bulk;
mod engine;
mod exec;
mod health;
mod hook;
mod iter;
mod job;
mod journal;
mod lane;
mod pause;
mod place;
mod prints;
mod quarantine;
mod receipt;
mod receive;
mod recycle;
mod renew;
mod retry;
mod send;
mod slot;
mod stats;
mod supervise;
mod table;
mod terms;
mod worker_settings;

use crate::error::{Error, ErrorKind, TrySubmitError};
use crate::sys::cgroup::OwnedGroup;
use crate::sys::{self, Linux, Pid, Sys};
use crate::worker::MemoryLimitKind;
use engine::{BATCH_NONE, BATCH_SINGLE, Engine};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

pub use builder::{Builder, default_workers};
#[cfg(feature = "cli")]
pub(crate) use bulk::Bulk;
pub use exec::init;
pub use health::{Health, SlotHealth, SlotState};
pub use hook::{Event, Step};
pub use iter::{Map, Unordered};
pub use job::{Completion, HandlerId, HandlerRef, Job};
pub use quarantine::Capsule;
pub use receipt::{JobUsage, Receipt};
pub use stats::Stats;
pub use table::Ticket;
pub use terms::JobLimits;

/// Worker processes, and the jobs that they compute.
///
/// A pool is `Send` and not `Sync`: it may move to another thread, and one thread at a time drives it. Its processes
/// belong to the process that spawned it, not to a thread. In a fork of that process, dropping a copy only closes
/// descriptors.
///
/// Nothing happens behind the caller's back: jobs leave and outcomes arrive while the caller is in one of its methods,
/// or in an outer loop that polls its descriptor ([`AsFd`]) and then calls [`Pool::poll`].
pub struct Pool<S: Sys = Linux> {
    engine: Box<Engine<S>>,
    owner: Pid,
    /// Removed after the engine has ended everything.
    _group: Option<OwnedGroup>,
}

const _: () = {
    const fn assert_send<T: Send>() {}
    assert_send::<Pool>();
};

impl Pool {
    /// Settings of a new pool.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

impl<S: Sys> Pool<S> {
    fn from_engine(engine: Engine<S>, group: Option<OwnedGroup>) -> Self {
        Self { engine: Box::new(engine), owner: sys::own_pid(), _group: group }
    }

    fn engine_mut(&mut self) -> &mut Engine<S> {
        &mut self.engine
    }

    /// The handler with this name; a job built from it needs no look-up.
    pub fn handler_id(&self, name: &str) -> Option<HandlerId> {
        self.engine.handler_id(name)
    }

    /// How many workers the pool keeps.
    pub fn workers(&self) -> usize {
        self.engine.slots.len()
    }

    /// Submits a job if there is room.
    ///
    /// A job that can never run (too large, an unknown handler) is taken and ends as
    /// [`Rejected`](crate::Outcome::Rejected). Jobs are packed: one may leave only with the next [`Pool::poll`] or
    /// [`Pool::flush`], except that an idle worker gets its job at once.
    ///
    /// # Errors
    /// [`TrySubmitError::Full`] and [`TrySubmitError::Draining`] give the job back.
    #[inline]
    pub fn try_submit<'j>(&mut self, job: Job<'j>) -> Result<Ticket, TrySubmitError<Job<'j>>> {
        self.engine.end_batch();
        let ticket = self.engine.try_submit(job, BATCH_SINGLE, true)?;
        self.engine.kick();
        self.engine.settle_submit();
        Ok(ticket)
    }

    /// Submits a job, waiting for room. Outcomes that arrive meanwhile are kept for [`Pool::poll`].
    ///
    /// # Errors
    /// [`ErrorKind::Undelivered`] when only taking outcomes would make room, [`ErrorKind::Draining`], or the kernel's.
    pub fn submit(&mut self, job: Job<'_>) -> Result<Ticket, Error> {
        let engine = self.engine_mut();
        engine.end_batch();
        let mut job = job;
        loop {
            match engine.try_submit(job, BATCH_SINGLE, true) {
                Ok(ticket) => {
                    engine.kick();
                    engine.settle()?;
                    return Ok(ticket);
                }
                Err(TrySubmitError::Draining(_)) => return Err(Error::new(ErrorKind::Draining)),
                Err(TrySubmitError::Full(back)) => job = back,
            }
            // A job that ends here becomes an outcome that waits: no room is made by waiting.
            if engine.is_house_full() {
                engine.settle()?;
                return Err(Error::new(ErrorKind::Undelivered));
            }
            engine.turn_keeping(None)?;
        }
    }

    /// Delivers outcomes to `f`, each exactly once, and returns how many.
    ///
    /// Waits until one is there, up to `timeout`; `Some(Duration::ZERO)` never sleeps, `None` waits until something is
    /// delivered or nothing is outstanding. The body is borrowed; the [`Submitter`] lets `f` submit more. An outcome
    /// counts as delivered when `f` is entered: if `f` panics, the others are still there afterwards.
    ///
    /// # Errors
    /// When the kernel fails the reactor.
    pub fn poll(
        &mut self,
        timeout: Option<Duration>,
        mut f: impl FnMut(Completion<'_>, &mut Submitter<'_, S>),
    ) -> Result<usize, Error> {
        let settling = Settling(self.engine_mut());
        let engine = &mut *settling.0;
        engine.end_batch();
        let deadline_ns =
            timeout.map(|t| engine.sys.now_ns().saturating_add(u64::try_from(t.as_nanos()).unwrap_or(u64::MAX)));
        let mut delivered = 0;
        loop {
            delivered += engine.deliver_finished(&mut f);
            let left_ns = match deadline_ns {
                _ if delivered > 0 => Some(0),
                Some(_) if timeout == Some(Duration::ZERO) => Some(0),
                Some(deadline_ns) => Some(deadline_ns.saturating_sub(engine.sys.now_ns())),
                None => None,
            };
            if delivered == 0 && engine.outstanding() == 0 && deadline_ns.is_none() {
                break;
            }
            engine
                .turn(left_ns, BATCH_SINGLE, &mut |engine: &mut Engine<S>, completion: Completion<'_>| {
                    delivered += 1;
                    f(completion, &mut Submitter { engine, batch: BATCH_SINGLE });
                })
                .map_err(Error::os("waiting for workers"))?;
            delivered += engine.deliver_finished(&mut f);
            if delivered > 0 || left_ns == Some(0) {
                break;
            }
        }
        // There is room again, which the caller fills, or else has nothing to fill it with.
        engine.more_inputs &= delivered == 0;
        settling.finish()?;
        Ok(delivered)
    }

    /// Sends the jobs that are packed and not sent. [`Pool::poll`] does it too.
    ///
    /// # Errors
    /// When an outer loop cannot be told that something is left.
    pub fn flush(&mut self) -> Result<(), Error> {
        let engine = self.engine_mut();
        engine.fill();
        engine.flush();
        engine.settle()
    }

    /// Cancels a job, wherever it is: queued, sent, or running (then its worker is killed). Its outcome still comes, and
    /// is [`Cancelled`](crate::Outcome::Cancelled) unless the result was there first. `false`: it is over already, or its worker
    /// is being killed anyway.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let engine = self.engine_mut();
        let cancelled = engine.cancel(ticket, "on request");
        // An error here comes back from the next call that can return it.
        let _ = engine.settle();
        cancelled
    }

    /// Cancels every outstanding job; workers in the midst of one are killed. The outcomes still come.
    pub fn kill_all(&mut self) {
        self.cancel_all("the pool was told to stop");
    }

    /// As [`Pool::kill_all`]; `why` stands in the outcomes.
    pub fn cancel_all(&mut self, why: &str) {
        let engine = self.engine_mut();
        engine.cancel_all(why);
        // As in `cancel`.
        let _ = engine.settle();
    }

    /// Cancels every outstanding job that has not started; those that run go on. The outcomes still come.
    pub fn cancel_unstarted(&mut self, why: &str) {
        let engine = self.engine_mut();
        engine.cancel_unstarted(why);
        // As in `cancel`.
        let _ = engine.settle();
    }

    /// Jobs that are submitted and whose outcome is not yet delivered.
    pub fn outstanding(&self) -> usize {
        self.engine.outstanding()
    }

    /// Takes no more jobs from now on, and delivers the outcomes of all that it has.
    ///
    /// # Errors
    /// As [`Pool::poll`].
    pub fn drain(&mut self, mut f: impl FnMut(Completion<'_>, &mut Submitter<'_, S>)) -> Result<(), Error> {
        self.engine_mut().end_batch();
        self.engine_mut().draining = true;
        while self.outstanding() > 0 {
            self.poll(None, &mut f)?;
        }
        Ok(())
    }

    /// Counts so far.
    pub fn stats(&self) -> Stats {
        self.engine.stats
    }

    /// Whether the pool is at full strength, and if not, why: as it was seen last, which is when the pool was last driven.
    pub fn health(&self) -> Health {
        self.engine.health()
    }

    /// How the pool's [memory limit](Builder::memory_limit) is kept; `None`: it has none.
    pub fn memory_limit_kind(&self) -> Option<MemoryLimitKind> {
        self.engine.config.memory_limit
    }

    /// The process ids of the nursery and of the workers that live now, for those who watch.
    pub fn processes(&self) -> (Option<Pid>, Vec<Pid>) {
        let workers = self.engine.slots.iter().filter(|s| s.is_occupied()).filter_map(|s| s.pid).collect();
        (self.engine.nursery.as_ref().map(|n| n.pid()), workers)
    }

    /// Waits until every worker has said hello, at most `timeout`. `false`: some have not.
    ///
    /// # Errors
    /// As [`Pool::poll`].
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<bool, Error> {
        let engine = self.engine_mut();
        let deadline_ns = engine.sys.now_ns().saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
        loop {
            // The nursery's word, which brings the process id, may come after the worker's own.
            if engine.slots.iter().all(|s| s.ready && s.pid.is_some() && s.life != slot::Life::Leaving) {
                return engine.settle().map(|()| true);
            }
            let left_ns = deadline_ns.saturating_sub(engine.sys.now_ns());
            if left_ns == 0 || engine.slots.iter().any(|s| s.life == slot::Life::GivenUp) {
                return engine.settle().map(|()| false);
            }
            engine.turn_keeping(Some(left_ns))?;
        }
    }
}

/// A call from outside that runs a callback: tells an outer loop what is left when it ends, also by a panic.
struct Settling<'e, S: Sys>(&'e mut Engine<S>);

impl<S: Sys> Settling<'_, S> {
    /// The regular end.
    fn finish(self) -> Result<(), Error> {
        // Nothing is left to drop but the reference.
        std::mem::ManuallyDrop::new(self).0.settle()
    }
}

impl<S: Sys> Drop for Settling<'_, S> {
    fn drop(&mut self) {
        // An error here comes back from the next call that can return it.
        let _ = self.0.settle();
    }
}

impl<S: Sys> Engine<S> {
    /// Sends at once to a worker that has nothing to do.
    #[inline]
    fn kick(&mut self) {
        if self.has_idle_dirty() {
            self.flush();
        }
    }

    /// A turn whose completions are kept.
    fn turn_keeping(&mut self, timeout_ns: Option<u64>) -> Result<(), Error> {
        self.turn(timeout_ns, BATCH_NONE, &mut |_: &mut Self, _: Completion<'_>| {})
            .map_err(Error::os("waiting for workers"))
    }

    fn deliver_finished(&mut self, f: &mut impl FnMut(Completion<'_>, &mut Submitter<'_, S>)) -> usize {
        // Only those that are here now: a callback that is rejected again and again must not keep us for ever.
        let mut delivered = 0;
        for _ in 0..self.finished.len() {
            let Some(finished) = self.take_finished(0) else { break };
            delivered += 1;
            f(finished.as_completion(), &mut Submitter { engine: self, batch: BATCH_SINGLE });
        }
        delivered
    }

    /// Ends everything.
    fn shut_down(&mut self) {
        for slot in 0..self.slots.len() {
            self.transport.detach(&mut self.reactor, slot);
        }
        if let Some(token) = self.nursery_token.take()
            && let Some(nursery) = &self.nursery
        {
            let _ = self.reactor.deregister(token, nursery.socket());
        }
        if let Some(nursery) = self.nursery.take() {
            nursery.shut_down();
        }
        // Whoever is left without a nursery dies with its lifeline.
        for slot in &mut self.slots {
            slot.lifeline = None;
        }
        if let Some(nursery) = self.lost_nursery.take() {
            nursery.shut_down();
        }
        for slot in 0..self.slots.len() {
            self.take_printed(slot, false);
        }
    }
}

/// The pool's epoll descriptor: readable when [`Pool::poll`] has something to do.
impl<S: Sys> AsFd for Pool<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.engine.reactor.as_fd()
    }
}

/// Kills the workers and the nursery and waits until they are gone, a bounded time. In a process other than the one that
/// spawned the pool, only closes descriptors.
impl<S: Sys> Drop for Pool<S> {
    fn drop(&mut self) {
        if sys::own_pid() == self.owner {
            self.engine.shut_down();
        }
    }
}

/// Lets a callback submit more jobs. It never waits, so there is nothing that a callback could block on.
pub struct Submitter<'e, S: Sys = Linux> {
    engine: &'e mut Engine<S>,
    batch: u32,
}

impl<S: Sys> Submitter<'_, S> {
    /// As [`Pool::try_submit`].
    ///
    /// # Errors
    /// As [`Pool::try_submit`].
    #[inline]
    pub fn try_submit<'j>(&mut self, job: Job<'j>) -> Result<Ticket, TrySubmitError<Job<'j>>> {
        self.engine.try_submit(job, self.batch, true)
    }
}
