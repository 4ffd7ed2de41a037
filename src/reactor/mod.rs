//! Floor 2: a hand-written edge-triggered epoll reactor. Usable alone; see `examples/reactor_echo.rs`.
//!
//! Owns the epoll instance, the registrations ([`Token`]), the ready list and the [`Timers`]. It never owns, reads or
//! writes a registered descriptor, never calls back, and never decides what a turn does: its owner does all that.
//!
//! # A turn
//! ```text
//!   wait(timeout) ──► next_expired(now)* ──► next_ready()* ──► settle(work left)
//!    kernel events     due timers             each token        only if another loop
//!    → ready list                             once              watches the epoll descriptor
//! ```
//! The kernel reports an edge once: when something *becomes* ready. So a token that had an event stays on the **ready
//! list** until its owner has met would-block and says so with [`Reactor::exhausted`]; while anybody is on the list,
//! waits do not sleep. The owner may therefore stop early: it handles at most [`Reactor::budget`] parts of one token,
//! and then the next token has its turn. Nobody starves, and nothing is forgotten.
//!
//! # Invariants
//! - An event is dispatched only to the registration it was reported for. A descriptor number may be closed and come
//!   back within one batch of events; the generation in the [`Token`] tells the two apart.
//! - Every readiness is a hint. A spurious event costs one call that finds would-block.
//! - A lost edge is found again by [`Reactor::rearm`]: the kernel then reports the state that is already there.
//!
//! # Inside another loop
//! An epoll descriptor is itself readable while it has events, so another loop can watch it ([`Reactor::expose`]). What
//! lies on the ready list is no longer the kernel's to report, and an outer edge-triggered watcher hears nothing from a
//! state that merely lasts. Hence two descriptors inside: a *doorbell*, rung anew on every return that leaves work, and
//! a timer descriptor for the next deadline. [`Reactor::settle`] keeps both.
//!
//! Called by the pool and the server; single-threaded.
//!
//! ```
//! use seqpool::reactor::{Interest, Reactor, Readiness};
//! use std::io::{ErrorKind, Read, Write};
//! use std::os::fd::AsFd;
//! use std::os::unix::net::UnixStream;
//!
//! let (mut near, mut far) = UnixStream::pair()?;
//! near.set_nonblocking(true)?;
//! let mut reactor = Reactor::new()?;
//! let token = reactor.register(near.as_fd(), Interest::READ)?;
//! far.write_all(b"hello")?;
//!
//! reactor.wait(None)?;
//! assert_eq!(reactor.next_ready(), Some((token, Readiness::READ)));
//! let mut buffer = [0; 64];
//! assert_eq!(near.read(&mut buffer)?, 5);
//! assert_eq!(near.read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
//! reactor.exhausted(token, Readiness::READ);
//!
//! reactor.deregister(token, near.as_fd())?; // before it is closed
//! # Ok::<(), std::io::Error>(())
//! ```

mod slots;
mod timer;
mod token;

pub use crate::sys::{Interest, Linux, OsError, OsResult, Readiness, Sys};
pub use timer::{TimerId, Timers};
pub use token::Token;

use crate::limits::{REACTOR_BUDGET, REACTOR_EVENTS_PER_WAIT};
use crate::sys::EventBuffer;
use slots::Slots;
use std::cell::Cell;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `ENOENT`: what the kernel says of a descriptor that is not registered, said here of a token that is not alive.
const NOT_REGISTERED: OsError = OsError { call: "epoll_ctl", errno: 2 };
/// `ENOSPC`: what the kernel says when there are too many registrations.
const NO_SPACE: OsError = OsError { call: "epoll_ctl", errno: 28 };

/// What a reactor has seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReactorStats {
    /// Waits: turns begun.
    pub waits: u64,
    /// Waits that were allowed to sleep.
    pub sleeps: u64,
    /// Events of registered descriptors.
    pub events: u64,
    /// Events dropped because their token is no longer alive.
    pub stale_events: u64,
}

/// An edge-triggered epoll reactor. See the [module](self) for how a turn goes.
pub struct Reactor<S: Sys = Linux> {
    sys: S,
    epoll: OwnedFd,
    events: EventBuffer,
    slots: Slots,
    timers: Timers,
    budget: u32,
    stats: ReactorStats,
    /// The last wait filled the event buffer, so the kernel may hold more.
    batch_full: bool,
    inside: Option<Inside>,
    /// Somebody has been given the epoll descriptor. A cell, like the doorbell: [`AsFd`] has only `&self`.
    watched: Cell<bool>,
}

/// The descriptors that make the epoll descriptor tell the whole truth to another loop.
struct Inside {
    /// Event counter, level-triggered.
    doorbell: OwnedFd,
    rung: Cell<bool>,
    /// Timer descriptor, level-triggered.
    timer: OwnedFd,
    /// What it was last set to. May be earlier than the next deadline, never later once settled.
    armed_ns: Option<u64>,
}

impl Reactor<Linux> {
    /// A reactor on the real kernel.
    ///
    /// # Errors
    /// When the kernel is short of descriptors or memory.
    pub fn new() -> OsResult<Self> {
        Self::with_sys(Linux, 0)
    }
}

impl<S: Sys> Reactor<S> {
    /// A reactor over `sys`, with room for `capacity` descriptors and as many timers before it allocates again.
    ///
    /// # Errors
    /// When the kernel is short of descriptors or memory.
    pub fn with_sys(sys: S, capacity: usize) -> OsResult<Self> {
        let epoll = sys.epoll_create()?;
        Ok(Self {
            sys,
            epoll,
            events: EventBuffer::new(REACTOR_EVENTS_PER_WAIT),
            slots: Slots::new(capacity),
            timers: Timers::with_capacity(capacity),
            budget: REACTOR_BUDGET,
            stats: ReactorStats::default(),
            batch_full: false,
            inside: None,
            watched: Cell::new(false),
        })
    }

    /// The kernel that this reactor runs over.
    pub fn sys(&self) -> &S {
        &self.sys
    }

    // ---- registrations ----

    /// Watches `fd`. A state that is already there is reported by the next wait.
    ///
    /// The caller keeps the descriptor, and must [`deregister`](Self::deregister) it **before** it closes it.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`: `EEXIST` for a descriptor that is registered already, `EPERM` for a plain file,
    /// `ENOSPC` also at [`REACTOR_TOKENS_MAX`](crate::limits::REACTOR_TOKENS_MAX). Nothing is registered then.
    ///
    /// # Panics
    /// In debug builds, when `fd` has the number of a live token's descriptor: that one was closed too early.
    pub fn register(&mut self, fd: BorrowedFd<'_>, interest: Interest) -> OsResult<Token> {
        let token = self.slots.insert(fd.as_raw_fd(), interest).ok_or(NO_SPACE)?;
        if let Err(error) = self.sys.epoll_add(self.epoll.as_fd(), fd, interest, token.to_data()) {
            self.slots.remove(token);
            return Err(error);
        }
        // Afterwards, because the kernel itself answers a second registration with EEXIST.
        self.slots.note_holder(token);
        Ok(token)
    }

    /// Replaces the interest, and re-arms the edge: a state that is already there is reported by the next wait.
    /// Readiness outside the new interest leaves the ready list.
    ///
    /// # Errors
    /// `ENOENT` when the token is no longer alive; else those of `epoll_ctl(2)`, and nothing has changed.
    pub fn modify(&mut self, token: Token, fd: BorrowedFd<'_>, interest: Interest) -> OsResult<()> {
        self.slots.interest(token, fd.as_raw_fd()).ok_or(NOT_REGISTERED)?;
        self.sys.epoll_modify(self.epoll.as_fd(), fd, interest, token.to_data())?;
        self.slots.set_interest(token, interest);
        Ok(())
    }

    /// Re-arms the edge: a state that is already there is reported by the next wait, lost edge or not.
    ///
    /// # Errors
    /// `ENOENT` when the token is no longer alive; else those of `epoll_ctl(2)`.
    pub fn rearm(&mut self, token: Token, fd: BorrowedFd<'_>) -> OsResult<()> {
        let interest = self.slots.interest(token, fd.as_raw_fd()).ok_or(NOT_REGISTERED)?;
        self.sys.epoll_modify(self.epoll.as_fd(), fd, interest, token.to_data())
    }

    /// Stops watching. Whatever the answer, the token is dead: off the ready list, and its events are dropped.
    ///
    /// Call it **before** the descriptor is closed. The kernel ties a registration to the open file, not to the number:
    /// while a forked child holds a copy, a closed descriptor would go on reporting, and no call could remove it.
    ///
    /// # Errors
    /// `ENOENT` when the token was not alive; else those of `epoll_ctl(2)`.
    pub fn deregister(&mut self, token: Token, fd: BorrowedFd<'_>) -> OsResult<()> {
        self.slots.interest(token, fd.as_raw_fd()).ok_or(NOT_REGISTERED)?;
        self.slots.remove(token);
        self.sys.epoll_delete(self.epoll.as_fd(), fd)
    }

    /// Whether the token's registration still stands.
    pub fn is_live(&self, token: Token) -> bool {
        self.slots.is_live(token)
    }

    /// How many descriptors are registered.
    pub fn registered_count(&self) -> usize {
        self.slots.live_count()
    }

    // ---- the turn ----

    /// Begins a turn: moves the kernel's events to the ready list.
    ///
    /// Sleeps until there is an event, a timer is due or the timeout has passed (`None`: for ever); not at all while
    /// the ready list is not empty. May return early with nothing: a signal, or an event that was nobody's. The
    /// doorbell does not cut it short, so an owner with work of its own passes `Some(0)`.
    ///
    /// Units: nanoseconds.
    ///
    /// # Errors
    /// Those of `epoll_wait(2)` other than an interruption. The turn has begun all the same.
    pub fn wait(&mut self, timeout_ns: Option<u64>) -> OsResult<()> {
        self.slots.begin_turn();
        self.stats.waits += 1;
        self.batch_full = false;
        let timeout_ns = self.shortened(timeout_ns);
        if timeout_ns != Some(0) {
            self.stats.sleeps += 1;
            self.silence()?;
        }
        self.sys.epoll_wait(self.epoll.as_fd(), &mut self.events, timeout_ns)?;
        self.batch_full = self.events.len() >= REACTOR_EVENTS_PER_WAIT;
        for (data, readiness) in self.events.iter() {
            if data == token::DOORBELL || data == token::TIMER {
                continue; // They only wake; `settle` looks after them.
            }
            match self.slots.dispatch(data, readiness) {
                true => self.stats.events += 1,
                false => self.stats.stale_events += 1,
            }
        }
        Ok(())
    }

    fn shortened(&self, timeout_ns: Option<u64>) -> Option<u64> {
        if self.has_ready() || timeout_ns == Some(0) {
            return Some(0);
        }
        let Some(deadline_ns) = self.timers.next_deadline() else { return timeout_ns };
        let left_ns = deadline_ns.saturating_sub(self.sys.now_ns());
        Some(timeout_ns.map_or(left_ns, |t| t.min(left_ns)))
    }

    /// Before a sleep of our own: what tells another loop to call us must not keep ourselves awake.
    fn silence(&mut self) -> OsResult<()> {
        let Some(inside) = &mut self.inside else { return Ok(()) };
        if inside.rung.get() {
            self.sys.counter_clear(inside.doorbell.as_fd())?;
            inside.rung.set(false);
        }
        if inside.armed_ns.is_some_and(|armed| armed <= self.sys.now_ns()) {
            inside.arm(&self.sys, self.timers.next_deadline())?;
        }
        Ok(())
    }

    /// The next token to look after, and what for. Each comes at most once a turn, in rotation; `None` ends the turn.
    ///
    /// The owner then handles at most [`budget`](Self::budget) parts, and calls [`exhausted`](Self::exhausted) if it
    /// met would-block. If it did not, the token comes again in the next turn.
    pub fn next_ready(&mut self) -> Option<(Token, Readiness)> {
        self.slots.next_ready()
    }

    /// The owner has met would-block: the token leaves the ready list for this readiness, until the next event.
    /// A dead token is ignored.
    pub fn exhausted(&mut self, token: Token, readiness: Readiness) {
        self.slots.exhausted(token, readiness);
    }

    /// Puts a token on the ready list although no event came, because its owner knows that there may be more.
    /// It comes at the latest in the next turn. A dead token is ignored.
    pub fn make_ready(&mut self, token: Token, readiness: Readiness) {
        self.slots.make_ready(token, readiness);
    }

    /// Whether anybody is on the ready list. A wait does not sleep then.
    pub fn has_ready(&self) -> bool {
        self.slots.ready_count() > 0
    }

    /// How many tokens are on the ready list.
    pub fn ready_count(&self) -> usize {
        self.slots.ready_count()
    }

    /// How many parts (packets, reads, accepts) one token may handle a turn. The owner counts.
    pub fn budget(&self) -> u32 {
        self.budget
    }

    /// Sets the budget.
    pub fn set_budget(&mut self, parts: NonZeroU32) {
        self.budget = parts.get();
    }

    /// What this reactor has seen so far.
    pub fn stats(&self) -> ReactorStats {
        self.stats
    }

    // ---- timers ----

    /// Sets a timer; `data` comes back from [`next_expired`](Self::next_expired) once the deadline has passed. O(log n).
    ///
    /// Units: nanoseconds on the clock of [`Sys::now_ns`].
    ///
    /// # Panics
    /// With [`REACTOR_TIMERS_MAX`](crate::limits::REACTOR_TIMERS_MAX) timers set.
    pub fn set_timer(&mut self, deadline_ns: u64, data: u64) -> TimerId {
        self.timers.set(deadline_ns, data)
    }

    /// Cancels a timer. False: it has expired or been cancelled before. O(log n).
    pub fn cancel_timer(&mut self, id: TimerId) -> bool {
        self.timers.cancel(id)
    }

    /// Moves every deadline, as if so much time had not passed. O(n).
    ///
    /// Units: nanoseconds.
    pub fn postpone_timers(&mut self, by_ns: u64) {
        self.timers.postpone(by_ns);
    }

    /// Takes the earliest timer that is due, and gives its data. O(log n).
    ///
    /// Units: nanoseconds.
    pub fn next_expired(&mut self, now_ns: u64) -> Option<u64> {
        self.timers.next_expired(now_ns)
    }

    /// The earliest deadline set. O(1).
    ///
    /// Units: nanoseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.next_deadline()
    }

    /// The time that timers go by.
    ///
    /// Units: nanoseconds.
    pub fn now_ns(&self) -> u64 {
        self.sys.now_ns()
    }

    // ---- inside another loop ----

    /// Creates the doorbell and the timer descriptor, once, so that [`AsFd`] tells the whole truth from then on.
    /// Until the epoll descriptor is handed out, they cost two descriptors and no system call.
    ///
    /// # Errors
    /// When the kernel is short of descriptors or memory; another try is allowed.
    pub fn make_exposable(&mut self) -> OsResult<()> {
        if self.inside.is_some() {
            return Ok(());
        }
        let (doorbell, timer) = (self.sys.eventfd()?, self.sys.timerfd()?);
        let level = Interest::READ.and(Interest::LEVEL);
        // On failure both are closed here, nobody else holds them, and so the kernel forgets them.
        self.sys.epoll_add(self.epoll.as_fd(), doorbell.as_fd(), level, token::DOORBELL)?;
        self.sys.epoll_add(self.epoll.as_fd(), timer.as_fd(), level, token::TIMER)?;
        let inside = self.inside.insert(Inside { doorbell, rung: Cell::new(false), timer, armed_ns: None });
        if self.watched.get() {
            inside.ring(&self.sys)?;
        }
        Ok(())
    }

    /// The epoll descriptor, for another loop to watch for readability; level- or edge-triggered. When it is readable,
    /// the owner takes a turn with `wait(Some(0))`, and every turn ends with [`settle`](Self::settle).
    ///
    /// The first time it is readable at once, so that the first turn finds whatever was left before.
    ///
    /// # Errors
    /// When the kernel is short of descriptors or memory; another try is allowed.
    pub fn expose(&mut self) -> OsResult<BorrowedFd<'_>> {
        self.make_exposable()?;
        Ok(Self::as_fd(self))
    }

    /// Whether another loop may be watching: the epoll descriptor has been handed out.
    pub fn is_exposed(&self) -> bool {
        self.watched.get()
    }

    /// Ends a turn for an outer loop; every return to it must come through here. Free of system calls before
    /// [`expose`](Self::expose).
    ///
    /// Rings the doorbell when a token is ready, the kernel may hold more events, or the owner has `work_left` of its
    /// own: each time, because an outer edge-triggered watcher takes a doorbell that is still set for old news. Else
    /// clears it. Sets the timer descriptor when the next deadline is earlier than what it is set to; one that is set
    /// too early costs one empty turn, which is cheaper than a system call for each cancelled timer.
    ///
    /// # Errors
    /// Those of `write(2)`, `read(2)` and `timerfd_settime(2)`; none is known to happen.
    pub fn settle(&mut self, work_left: bool) -> OsResult<()> {
        let work_left = work_left || self.has_ready() || self.batch_full;
        let Some(inside) = &mut self.inside else { return Ok(()) };
        if !self.watched.get() {
            return Ok(());
        }
        if work_left {
            inside.ring(&self.sys)?;
        } else if inside.rung.get() {
            self.sys.counter_clear(inside.doorbell.as_fd())?;
            inside.rung.set(false);
        }
        let next = self.timers.next_deadline();
        let renew = match (inside.armed_ns, next) {
            (None, next) => next.is_some(),
            // It has fired, or is about to: set anew it falls silent, or makes a new edge if the next one is due too.
            (Some(armed), next) => next.is_some_and(|next| next < armed) || armed <= self.sys.now_ns(),
        };
        if renew { inside.arm(&self.sys, next) } else { Ok(()) }
    }
}

impl Inside {
    fn ring<S: Sys>(&self, sys: &S) -> OsResult<()> {
        sys.eventfd_ring(self.doorbell.as_fd())?;
        self.rung.set(true);
        Ok(())
    }

    /// Sets the timer descriptor; that also takes back an expiry which nobody has read.
    fn arm<S: Sys>(&mut self, sys: &S, deadline_ns: Option<u64>) -> OsResult<()> {
        sys.timerfd_set(self.timer.as_fd(), deadline_ns)?;
        self.armed_ns = deadline_ns;
        Ok(())
    }
}

/// The epoll descriptor, as from [`Reactor::expose`]; but [`Reactor::make_exposable`] must have been called before, or
/// it tells of kernel events only.
impl<S: Sys> AsFd for Reactor<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let first = !self.watched.replace(true);
        if let (true, Some(inside)) = (first, &self.inside) {
            // No error can be reported from here. The next `settle` rings again if there is a reason to.
            let _ = inside.ring(&self.sys);
        }
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests;
