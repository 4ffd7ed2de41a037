//! Floor 0: thin system-call wrappers; the only files that name `libc` or `nix`.
//!
//! # What a backend owes
//! - Every descriptor is created close-on-exec, in the call that creates it.
//! - A call interrupted by a signal before it did anything is repeated here; waits report an interruption as
//!   "nothing ready", so that the caller recomputes its timeout. A mere look with `poll` is no wait: it is repeated.
//! - Expected states are values ([`Sent`], [`Received`]), not errors. What is left is an [`OsError`] that names the call.
//! - No call on a socket raises `SIGPIPE`.
//! - Every flag that the kernel returns with a message is checked: a truncated message is never handed out.
//!
//! The pool runs over the [`Sys`] trait. [`Linux`] is the real kernel; [`Faulty`] is the same kernel behind a seeded
//! source of errors, truncation, spurious and stale events.
#![allow(unsafe_code)]

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd};

pub(crate) mod cgroup;
#[cfg(feature = "cli")]
mod cli;
mod clock;
mod count;
mod epoll;
mod exec;
mod fault;
mod fork;
mod memory;
mod pidfd;
mod print;
mod process;
mod resource;
mod role;
mod signal;
mod socket;
mod stdio;
mod strike;

pub use clock::TickClock;
pub use count::{Call, Counting, Counts};
pub use epoll::{EventBuffer, Interest, PollFd, Readiness};
pub use fault::{Fault, Faulty};
pub use fork::{Forked, Pid, thread_count};
pub use memory::{Mapping, Pages, Sharing};
pub use process::{Exit, ExitReport, Usage};
pub use resource::Resource;
pub use role::Role;
pub use signal::{SignalFd, SignalSet};
pub use socket::{FDS_MAX, Passed};
pub use strike::{Blow, Strike};

#[cfg(feature = "cli")]
pub(crate) use cli::*;
pub(crate) use exec::*;
#[cfg(feature = "cli")]
pub(crate) use memory::SharedCounters;
pub(crate) use print::*;
pub(crate) use process::*;
pub(crate) use resource::{
    affinity, memory_use, oom_score_adj, own_memory_use, rlimit, set_affinity, set_oom_score_adj, set_rlimit,
};
#[cfg(feature = "cli")]
pub(crate) use signal::{block_all, die_by_signal, stop_by};
pub(crate) use signal::{
    clear_errno, mark_failed_allocations, raise_default, reset_signals, signal_name, unblock_signals,
    unmark_failed_allocations,
};
#[cfg(feature = "cli")]
pub(crate) use socket::{ListenerAddress, connect, listen};
pub(crate) use stdio::*;

/// A system call that failed: which one, and the kernel's reason.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OsError {
    /// The call's name as its manual page spells it.
    pub call: &'static str,
    /// The error number.
    pub errno: i32,
}

/// Result of a system call.
pub type OsResult<T> = Result<T, OsError>;

impl OsError {
    /// The error of the call that just failed, from the thread's `errno`.
    pub(crate) fn last(call: &'static str) -> Self {
        Self { call, errno: nix::errno::Errno::last_raw() }
    }

    /// Whether the kernel was short of memory, descriptors or processes: worth another try later.
    pub fn is_shortage(&self) -> bool {
        matches!(self.errno, libc::EAGAIN | libc::ENOMEM | libc::ENOBUFS | libc::EMFILE | libc::ENFILE)
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, std::io::Error::from_raw_os_error(self.errno))
    }
}

impl fmt::Debug for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OsError({self})")
    }
}

impl std::error::Error for OsError {}

impl From<OsError> for std::io::Error {
    fn from(e: OsError) -> Self {
        std::io::Error::from_raw_os_error(e.errno)
    }
}

/// Whether a call may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Return at once with `WouldBlock`.
    Never,
    /// Sleep until the call can be done, or until the socket's own timeout has passed (then `WouldBlock`).
    UntilReady,
}

/// What became of a packet to be sent. A packet goes whole or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The whole packet is in the peer's queue.
    All,
    /// The queue is full.
    WouldBlock,
    /// The kernel has no memory for it now (`ENOBUFS`, `ENOMEM`); no readiness event will follow.
    NoMemory,
    /// The peer is gone (`EPIPE`, `ECONNRESET`, `ENOTCONN`).
    Closed,
}

/// What a receive found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// One packet of this many bytes, at least one.
    Packet(usize),
    /// Nothing there.
    WouldBlock,
    /// `ECONNRESET`: the peer died with input unread. Results may still follow; receive again.
    Reset,
    /// End of file, or an empty packet, which the protocol forbids.
    Closed,
    /// The packet was larger than the buffer, or carried descriptors that were not asked for; what was read is void.
    Truncated,
}

/// The kernel as seqpool sees it. Methods follow the manual page of the call that they are named after.
pub trait Sys: Clone + Send + 'static {
    /// Monotonic time. Units: nanoseconds; the same clock in every process of the machine.
    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }

    /// Lets another runnable process have this core.
    fn yield_now(&self) {
        clock::yield_now();
    }

    /// A new epoll instance.
    fn epoll_create(&self) -> OsResult<OwnedFd> {
        epoll::create()
    }

    /// Adds `fd`; `data` comes back with each of its events.
    fn epoll_add(&self, epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>, interest: Interest, data: u64) -> OsResult<()> {
        epoll::add(epoll, fd, interest, data)
    }

    /// Replaces the interest of `fd`, and re-arms it: a state that is already there is reported again.
    fn epoll_modify(&self, epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>, interest: Interest, data: u64) -> OsResult<()> {
        epoll::modify(epoll, fd, interest, data)
    }

    /// Removes `fd`.
    fn epoll_delete(&self, epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> OsResult<()> {
        epoll::delete(epoll, fd)
    }

    /// Waits for events, at most `timeout_ns` nanoseconds (`None`: for ever), and replaces the buffer's contents.
    /// An interrupted wait leaves the buffer empty.
    fn epoll_wait(&self, epoll: BorrowedFd<'_>, events: &mut EventBuffer, timeout_ns: Option<u64>) -> OsResult<()> {
        epoll::wait(epoll, events, timeout_ns)
    }

    /// Waits on a few descriptors; the slow path, where a process has only two or three.
    fn poll(&self, fds: &mut [PollFd<'_>], timeout_ns: Option<u64>) -> OsResult<usize> {
        epoll::poll(fds, timeout_ns)
    }

    /// A non-blocking event counter, 0 at first.
    fn eventfd(&self) -> OsResult<OwnedFd> {
        epoll::eventfd()
    }

    /// Adds one to an event counter: it becomes readable.
    fn eventfd_ring(&self, fd: BorrowedFd<'_>) -> OsResult<()> {
        epoll::eventfd_ring(fd)
    }

    /// Sets an event counter or an expired timer descriptor back: no longer readable.
    fn counter_clear(&self, fd: BorrowedFd<'_>) -> OsResult<()> {
        epoll::counter_clear(fd)
    }

    /// A non-blocking timer descriptor on the clock of [`Sys::now_ns`], disarmed.
    fn timerfd(&self) -> OsResult<OwnedFd> {
        epoll::timerfd()
    }

    /// Arms a timer descriptor for an absolute time (`None`: disarms it).
    fn timerfd_set(&self, fd: BorrowedFd<'_>, deadline_ns: Option<u64>) -> OsResult<()> {
        epoll::timerfd_set(fd, deadline_ns)
    }

    /// A connected pair of `SOCK_SEQPACKET` Unix sockets.
    fn socketpair(&self) -> OsResult<(OwnedFd, OwnedFd)> {
        socket::pair()
    }

    /// The connection that has waited longest at a listening socket. `None`: none has, and the socket is non-blocking.
    fn accept(&self, listener: BorrowedFd<'_>) -> OsResult<Option<OwnedFd>> {
        socket::accept(listener)
    }

    /// Asks for a send buffer of `size` bytes; the kernel may give less (`net.core.wmem_max`).
    fn set_send_buffer(&self, fd: BorrowedFd<'_>, size: usize) -> OsResult<()> {
        socket::set_send_buffer(fd, size)
    }

    /// The largest packet that this socket can send. Units: bytes.
    fn packet_size_max(&self, fd: BorrowedFd<'_>) -> OsResult<usize> {
        socket::packet_size_max(fd)
    }

    /// How long a blocking send or receive may sleep before it says `WouldBlock`.
    fn set_socket_timeouts(&self, fd: BorrowedFd<'_>, timeout_ns: u64) -> OsResult<()> {
        socket::set_timeouts(fd, timeout_ns)
    }

    /// Ends both directions of a socket, whoever else holds copies of it: its peer finds end of file.
    fn shutdown(&self, fd: BorrowedFd<'_>) -> OsResult<()> {
        socket::shutdown(fd)
    }

    /// Sends the parts as one packet. The parts must not all be empty.
    fn send(&self, fd: BorrowedFd<'_>, parts: &[IoSlice<'_>], wait: Wait) -> OsResult<Sent> {
        socket::send(fd, parts, wait)
    }

    /// Receives one packet into the parts, in order.
    fn recv(&self, fd: BorrowedFd<'_>, parts: &mut [IoSliceMut<'_>], wait: Wait) -> OsResult<Received> {
        socket::recv(fd, parts, wait)
    }

    /// Sends one packet with descriptors, at most [`FDS_MAX`].
    fn send_fds(&self, fd: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], wait: Wait) -> OsResult<Sent> {
        socket::send_fds(fd, bytes, fds, wait)
    }

    /// Receives one packet and the descriptors that came with it.
    fn recv_fds(&self, fd: BorrowedFd<'_>, buffer: &mut [u8], passed: &mut Passed, wait: Wait) -> OsResult<Received> {
        socket::recv_fds(fd, buffer, passed, wait)
    }

    /// A sealed memory file: its size can never change again, so that no peer can make a mapping of it fault.
    fn memfd(&self, name: &std::ffi::CStr, size: usize) -> OsResult<OwnedFd> {
        memory::memfd(name, size)
    }

    /// Maps `prefix` bytes of `fd` plainly, then `ring` bytes twice in a row (see [`Mapping`]).
    fn map_ring(&self, fd: BorrowedFd<'_>, prefix: usize, ring: usize, sharing: Sharing) -> OsResult<Mapping> {
        Mapping::map_ring(fd, prefix, ring, sharing)
    }

    /// Private zeroed memory (see [`Pages`]).
    fn map_pages(&self, size: usize) -> OsResult<Pages> {
        Pages::map(size)
    }

    /// A descriptor of a process; readable once that process has ended.
    fn pidfd_open(&self, pid: Pid) -> OsResult<OwnedFd> {
        pidfd::open(pid)
    }

    /// Forks. The caller is the process's only thread.
    fn fork(&self) -> OsResult<Forked> {
        fork::fork()
    }

    /// Sends a signal to one process (`pid > 0`) or to a group (`pid < -1`). A target that is gone is no error.
    fn kill(&self, pid: Pid, signal: i32) -> OsResult<()> {
        signal::kill(pid, signal)
    }

    /// The next child that has ended, left unreaped. `None`: none has.
    fn peek_exited_child(&self) -> OsResult<Option<Pid>> {
        process::peek_exited_child()
    }

    /// Reaps one ended child.
    fn reap(&self, pid: Pid) -> OsResult<Option<ExitReport>> {
        process::reap(pid)
    }
}

/// The kernel itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

impl Sys for Linux {}

/// Makes a call that returns a negative number when it fails, and repeats it when a signal interrupted it before it did
/// anything. Most calls are never interrupted, by their manual pages; a tracer or a filter may make any of them say so,
/// and it is as true then.
pub(crate) fn retry_interrupted(call: &'static str, mut f: impl FnMut() -> isize) -> OsResult<usize> {
    loop {
        let errno = match strike::struck(call) {
            Some(errno) => errno,
            None => {
                let n = f();
                if n >= 0 {
                    return Ok(n as usize);
                }
                nix::errno::Errno::last_raw()
            }
        };
        if errno != libc::EINTR {
            return Err(OsError { call, errno });
        }
    }
}

/// As [`retry_interrupted`], for a call of the `nix` crate.
pub(crate) fn retry_nix<T>(call: &'static str, mut f: impl FnMut() -> nix::Result<T>) -> OsResult<T> {
    loop {
        let errno = match strike::struck(call) {
            Some(errno) => errno,
            None => match f() {
                Ok(value) => return Ok(value),
                Err(errno) => errno as i32,
            },
        };
        if errno != libc::EINTR {
            return Err(OsError { call, errno });
        }
    }
}

/// As [`retry_interrupted`], for what the standard library does in one call, and does not repeat itself.
pub(crate) fn retry_io<T>(call: &'static str, mut f: impl FnMut() -> std::io::Result<T>) -> OsResult<T> {
    retry_nix(call, || f().map_err(|e| nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))))
}

/// A copy of a descriptor under another number, closed on exec.
pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> OsResult<OwnedFd> {
    retry_io("fcntl(F_DUPFD_CLOEXEC)", || fd.try_clone_to_owned())
}
