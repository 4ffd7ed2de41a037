//! The real kernel, with every call counted by name and by the role of the process that made it.
//!
//! The counts lie in memory that all processes of a pool share, so that the host reads the workers' as well as its own:
//!
//! ```standalone_crate
//! use seqpool::sys::{Counting, Role};
//! use seqpool::{Job, Pool};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let sys = Counting::new()?;
//! let echo = Pool::builder().workers(1).handler("echo", |request, reply| {
//!     reply.extend_from_slice(request.body());
//!     Ok(())
//! });
//! let mut pool = echo.spawn_with(sys.clone())?;
//! pool.wait_ready(std::time::Duration::from_secs(10))?;
//! let before = sys.counts();
//! pool.for_each("echo", ["a"; 1000], |_, _| ())?;
//! let made = sys.counts().since(&before);
//! println!("{made}");
//! assert!(made.total(Role::Host) < 1000 && made.total(Role::Nursery) == 0);
//! # Ok(())
//! # }
//! ```
//!
//! # What is counted
//! Each method of [`Sys`] once, whatever it found. Three kinds of call do more or less than one system call:
//! - [`Sys::now_ns`] is read in the process's own memory (`vdso(7)`) and is not counted.
//! - [`Call::Yield`] is what spinning costs a process that has nothing else to do. It is counted, but apart: see
//!   [`Counts::yields`].
//! - `memfd`, `map_ring`, `set_send_buffer`, `set_socket_timeouts` and `fork` make several calls. They are made when a
//!   process starts, never for a job.
//!
//! Not seen are calls that do not go through [`Sys`]: those of a process on its way in and out, what the nursery does
//! about a death beyond reaping, what handlers do, and the allocator's.

use super::memory::SharedCounters;
use super::{
    EventBuffer, ExitReport, Forked, Interest, Linux, Mapping, OsResult, Pages, Passed, Pid, PollFd, Received, Role,
    Sent, Sharing, Sys, Wait,
};
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Implements [`Sys`] by counting a call and then making it.
macro_rules! counted {
    ($($variant:ident $method:ident($($name:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        /// A method of [`Sys`] that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Call {
            $(#[doc = concat!("[`Sys::", stringify!($method), "`]")] $variant,)*
            /// [`Sys::yield_now`]
            Yield,
            /// [`Sys::fork`]
            Fork,
        }

        impl Call {
            /// Every call.
            pub const ALL: &[Call] = &[$(Call::$variant,)* Call::Yield, Call::Fork];

            /// The method's name.
            pub fn name(self) -> &'static str {
                [$(stringify!($method),)* "yield_now", "fork"][self as usize]
            }
        }

        impl Sys for Counting {
            // Not counted: no system call.
            #[inline]
            fn now_ns(&self) -> u64 {
                Linux.now_ns()
            }

            fn yield_now(&self) {
                self.count(Call::Yield);
                Linux.yield_now();
            }

            fn fork(&self) -> OsResult<Forked> {
                self.count(Call::Fork);
                let forked = Linux.fork()?;
                if forked == Forked::Child {
                    // This process's copy of the cell; the parent keeps its own.
                    self.role.store(self.role.load(Relaxed).saturating_add(1), Relaxed);
                }
                Ok(forked)
            }

            $(fn $method(&self, $($name: $type),*) $(-> $result)? {
                self.count(Call::$variant);
                Linux.$method($($name),*)
            })*
        }
    };
}

counted! {
    EpollCreate epoll_create() -> OsResult<OwnedFd>;
    EpollAdd epoll_add(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>, interest: Interest, data: u64) -> OsResult<()>;
    EpollModify epoll_modify(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>, interest: Interest, data: u64) -> OsResult<()>;
    EpollDelete epoll_delete(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> OsResult<()>;
    EpollWait epoll_wait(epoll: BorrowedFd<'_>, events: &mut EventBuffer, timeout_ns: Option<u64>) -> OsResult<()>;
    Poll poll(fds: &mut [PollFd<'_>], timeout_ns: Option<u64>) -> OsResult<usize>;
    Eventfd eventfd() -> OsResult<OwnedFd>;
    EventfdRing eventfd_ring(fd: BorrowedFd<'_>) -> OsResult<()>;
    CounterClear counter_clear(fd: BorrowedFd<'_>) -> OsResult<()>;
    Timerfd timerfd() -> OsResult<OwnedFd>;
    TimerfdSet timerfd_set(fd: BorrowedFd<'_>, deadline_ns: Option<u64>) -> OsResult<()>;
    Socketpair socketpair() -> OsResult<(OwnedFd, OwnedFd)>;
    Accept accept(listener: BorrowedFd<'_>) -> OsResult<Option<OwnedFd>>;
    SetSendBuffer set_send_buffer(fd: BorrowedFd<'_>, size: usize) -> OsResult<()>;
    PacketSizeMax packet_size_max(fd: BorrowedFd<'_>) -> OsResult<usize>;
    SetSocketTimeouts set_socket_timeouts(fd: BorrowedFd<'_>, timeout_ns: u64) -> OsResult<()>;
    Shutdown shutdown(fd: BorrowedFd<'_>) -> OsResult<()>;
    Send send(fd: BorrowedFd<'_>, parts: &[IoSlice<'_>], wait: Wait) -> OsResult<Sent>;
    Recv recv(fd: BorrowedFd<'_>, parts: &mut [IoSliceMut<'_>], wait: Wait) -> OsResult<Received>;
    SendFds send_fds(fd: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], wait: Wait) -> OsResult<Sent>;
    RecvFds recv_fds(fd: BorrowedFd<'_>, buffer: &mut [u8], passed: &mut Passed, wait: Wait) -> OsResult<Received>;
    Memfd memfd(name: &std::ffi::CStr, size: usize) -> OsResult<OwnedFd>;
    MapRing map_ring(fd: BorrowedFd<'_>, prefix: usize, ring: usize, sharing: Sharing) -> OsResult<Mapping>;
    MapPages map_pages(size: usize) -> OsResult<Pages>;
    PidfdOpen pidfd_open(pid: Pid) -> OsResult<OwnedFd>;
    Kill kill(pid: Pid, signal: i32) -> OsResult<()>;
    PeekExitedChild peek_exited_child() -> OsResult<Option<Pid>>;
    Reap reap(pid: Pid) -> OsResult<Option<ExitReport>>;
}

const CALLS: usize = Call::ALL.len();

/// [`Linux`], counting. Clones share the counts, those in forked processes too.
#[derive(Clone, Debug)]
pub struct Counting {
    /// Shape: one row of [`CALLS`] counters for each role.
    counters: Arc<SharedCounters>,
    /// Shared by the clones in one process; `fork` gives the child a copy of its own.
    role: Arc<AtomicU8>,
}

impl Counting {
    /// All counts 0; this process is the host.
    ///
    /// # Errors
    /// Of `mmap(2)`.
    pub fn new() -> OsResult<Self> {
        let counters = SharedCounters::new(CALLS * Role::ALL.len())?;
        Ok(Self { counters: Arc::new(counters), role: Arc::new(AtomicU8::new(0)) })
    }

    /// What this process counts as.
    pub fn role(&self) -> Role {
        Role::from_depth(self.role.load(Relaxed).into())
    }

    fn count(&self, call: Call) {
        // Relaxed: counters publish nothing.
        self.counters.words()[self.role() as usize * CALLS + call as usize].fetch_add(1, Relaxed);
    }

    /// All counts so far. Other processes may be counting: what they did before something that this process has seen
    /// of them (a result, say) is there.
    pub fn counts(&self) -> Counts {
        let word = |role: usize, call: usize| self.counters.words()[role * CALLS + call].load(Relaxed);
        Counts { calls: std::array::from_fn(|role| std::array::from_fn(|call| word(role, call))) }
    }
}

/// Counts at one moment, or between two ([`Counts::since`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    calls: [[u64; CALLS]; Role::ALL.len()],
}

impl Counts {
    /// How often a role made a call.
    pub fn of(&self, role: Role, call: Call) -> u64 {
        self.calls[role as usize][call as usize]
    }

    /// All calls of a role but [`Call::Yield`].
    pub fn total(&self, role: Role) -> u64 {
        self.calls[role as usize].iter().sum::<u64>() - self.yields(role)
    }

    /// How often a role gave its core away while it spun.
    pub fn yields(&self, role: Role) -> u64 {
        self.of(role, Call::Yield)
    }

    /// What was counted after `earlier`, an earlier value of the same [`Counting`].
    pub fn since(&self, earlier: &Counts) -> Counts {
        let difference = |role: usize, call: usize| self.calls[role][call] - earlier.calls[role][call];
        Counts { calls: std::array::from_fn(|role| std::array::from_fn(|call| difference(role, call))) }
    }
}

/// A line for each role: its total, its yields, and each call that it made.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for role in Role::ALL {
            write!(f, "{:<8}{:>10} calls {:>10} yields", role.name(), self.total(role), self.yields(role))?;
            for &call in Call::ALL {
                if call != Call::Yield && self.of(role, call) != 0 {
                    write!(f, "  {} {}", call.name(), self.of(role, call))?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_trait_is_counted() {
        // A method with a default body that is not forwarded here would go to the kernel uncounted.
        let source = include_str!("mod.rs");
        let start = source.find("pub trait Sys").expect("the trait");
        let body = &source[start..][..source[start..].find("\n}").expect("its end")];
        let methods: Vec<&str> =
            body.lines().filter_map(|line| line.strip_prefix("    fn ")?.split('(').next()).collect();
        assert!(methods.len() > 20, "the trait was found");
        for method in &methods {
            let counted = Call::ALL.iter().any(|call| call.name() == *method);
            assert_eq!(counted, *method != "now_ns", "{method}");
        }
        assert_eq!(Call::ALL.len(), methods.len() - 1);
    }

    #[test]
    fn counts_by_role_and_call() {
        let sys = Counting::new().unwrap();
        let clone = sys.clone();
        let before = sys.counts();
        clone.yield_now();
        sys.eventfd().unwrap();
        sys.role.store(2, Relaxed);
        assert_eq!(clone.role(), Role::Worker);
        clone.eventfd().unwrap();
        sys.role.store(200, Relaxed);
        assert_eq!(clone.role(), Role::Worker, "a worker's children are counted as workers");
        let made = sys.counts().since(&before);
        assert_eq!((made.total(Role::Host), made.yields(Role::Host)), (1, 1));
        assert_eq!((made.total(Role::Nursery), made.total(Role::Worker)), (0, 1));
        assert_eq!(made.of(Role::Worker, Call::Eventfd), 1);
        assert!(made.to_string().contains("worker           1 calls          0 yields  eventfd 1"), "{made}");
    }
}
