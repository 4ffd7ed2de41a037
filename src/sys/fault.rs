//! A kernel that fails on purpose, from a printed seed.

use super::strike::{self, Strike};
use super::{EventBuffer, Linux, OsError, OsResult, Readiness, Received, Role, Sent, Sys, Wait};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How often each fault is injected. Units: one in so many calls; 0 is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// A send finds the queue full.
    pub send_would_block: u32,
    /// A send finds no kernel memory.
    pub send_no_memory: u32,
    /// A receive finds nothing although something is there. The next turn must find it.
    pub recv_would_block: u32,
    /// A receive reports a reset that is none.
    pub recv_reset: u32,
    /// A receive reports a truncated packet (the packet is lost: it costs that peer its connection).
    pub recv_truncated: u32,
    /// A wait reports readiness of something that is not ready.
    pub spurious_event: u32,
    /// A wait reports an event of an earlier wait again, whose descriptor may be closed by now.
    pub stale_event: u32,
    /// A wait loses all its events. A lost edge may cost 100 ms, never the run.
    pub lost_events: u32,
    /// A wait is interrupted.
    pub interrupted_wait: u32,
    /// A call that makes a descriptor fails with `EMFILE`.
    pub no_descriptor: u32,
}

/// [`Linux`], with faults drawn from a seed. Clones share the source.
#[derive(Clone, Debug)]
pub struct Faulty {
    state: Arc<State>,
    fault: Fault,
}

#[derive(Debug)]
struct State {
    // Relaxed throughout: counters of one process, which is driven by one thread at a time.
    random: AtomicU64,
    /// Injected so far, so that a test can see that its faults really happened.
    injected: AtomicU64,
    /// Data of an earlier event; `u64::MAX` before the first.
    last_event: AtomicU64,
    /// Whether this kernel has a strike to carry out, or only counts.
    watches: bool,
}

impl Drop for State {
    fn drop(&mut self) {
        if self.watches {
            strike::unwatch();
        }
    }
}

impl Faulty {
    /// Faults as given, in an order that depends on the seed alone.
    pub fn new(seed: u64, fault: Fault) -> Self {
        let random = AtomicU64::new(seed ^ 0x9e37_79b9_7f4a_7c15);
        let state = State { random, injected: AtomicU64::new(0), last_event: AtomicU64::new(u64::MAX), watches: false };
        Self { state: Arc::new(state), fault }
    }

    /// No fault but this one, if any, below the trait: where a signal, a shortage or a death really strikes. Calls are counted in
    /// all processes of the pool until the last clone in this process is dropped. One such kernel at a time.
    pub fn striking(strike: Option<Strike>) -> Self {
        strike::watch(strike);
        let mut faulty = Self::new(0, Fault::default());
        if let Some(state) = Arc::get_mut(&mut faulty.state) {
            state.watches = true;
        }
        faulty
    }

    /// The most calls of each name that one process of each role has made; for [`Faulty::striking`].
    pub fn calls(&self) -> Vec<(Role, &'static str, u32)> {
        if self.state.watches { strike::calls() } else { Vec::new() }
    }

    /// How many faults have been injected so far in this process; a strike counts wherever it was.
    pub fn injected(&self) -> u64 {
        self.state.injected.load(Relaxed) + u64::from(self.state.watches && strike::has_struck())
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014).
    fn random(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.state.random.fetch_add(STEP, Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn strikes(&self, one_in: u32) -> bool {
        let hit = one_in != 0 && self.random().is_multiple_of(u64::from(one_in));
        if hit {
            self.state.injected.fetch_add(1, Relaxed);
        }
        hit
    }

    fn descriptor<T>(&self, call: &'static str, make: impl FnOnce() -> OsResult<T>) -> OsResult<T> {
        if self.strikes(self.fault.no_descriptor) { Err(OsError { call, errno: libc::EMFILE }) } else { make() }
    }
}

impl Sys for Faulty {
    fn epoll_wait(&self, epoll: BorrowedFd<'_>, events: &mut EventBuffer, timeout_ns: Option<u64>) -> OsResult<()> {
        if self.strikes(self.fault.interrupted_wait) {
            events.clear();
            return Ok(());
        }
        Linux.epoll_wait(epoll, events, timeout_ns)?;
        let first = events.iter().next();
        if self.strikes(self.fault.lost_events) {
            events.clear();
        }
        let stale = self.state.last_event.load(Relaxed);
        if stale != u64::MAX && self.strikes(self.fault.stale_event) {
            events.inject(stale, Readiness::READ.and(Readiness::WRITE));
        }
        if self.strikes(self.fault.spurious_event) {
            events.inject(self.random(), Readiness::READ);
        }
        if let Some((data, _)) = first {
            self.state.last_event.store(data, Relaxed);
        }
        Ok(())
    }

    fn eventfd(&self) -> OsResult<OwnedFd> {
        self.descriptor("eventfd", || Linux.eventfd())
    }

    fn socketpair(&self) -> OsResult<(OwnedFd, OwnedFd)> {
        self.descriptor("socketpair", || Linux.socketpair())
    }

    fn memfd(&self, name: &std::ffi::CStr, size: usize) -> OsResult<OwnedFd> {
        self.descriptor("memfd_create", || Linux.memfd(name, size))
    }

    fn send(&self, fd: BorrowedFd<'_>, parts: &[IoSlice<'_>], wait: Wait) -> OsResult<Sent> {
        if wait == Wait::Never && self.strikes(self.fault.send_would_block) {
            return Ok(Sent::WouldBlock);
        }
        if self.strikes(self.fault.send_no_memory) {
            return Ok(Sent::NoMemory);
        }
        Linux.send(fd, parts, wait)
    }

    fn recv(&self, fd: BorrowedFd<'_>, parts: &mut [IoSliceMut<'_>], wait: Wait) -> OsResult<Received> {
        if wait == Wait::Never && self.strikes(self.fault.recv_would_block) {
            return Ok(Received::WouldBlock);
        }
        if self.strikes(self.fault.recv_reset) {
            return Ok(Received::Reset);
        }
        let received = Linux.recv(fd, parts, wait)?;
        if matches!(received, Received::Packet(_)) && self.strikes(self.fault.recv_truncated) {
            return Ok(Received::Truncated);
        }
        Ok(received)
    }
}
