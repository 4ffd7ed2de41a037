//! What only the command needs of the kernel.
//!
//! # Source
//! `setsid(2)`, `fcntl(2)` (`F_SETPIPE_SZ`), `pipe(7)`, `waitpid(2)`, `prctl(2)` (`PR_SET_TIMERSLACK`, `PR_SET_THP_DISABLE`),
//! `sigprocmask(2)`, `clock_nanosleep(2)`, `wait4(2)`, `getrusage(2)`.

use super::{Exit, OsError, OsResult, Pid, clock, retry_interrupted, retry_nix};
use nix::sys::signal as ns;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What pipes are enlarged to: the most that the kernel gives anybody unless its administrator has said otherwise.
const PIPE_SIZE: i32 = 1 << 20;

/// Gives a pipe more room than the usual 64 KiB, so that the process at its other end has to be woken less often.
/// Touches neither its flags nor what is in it, and never makes it smaller. A pipe that the kernel leaves as it is,
/// for a limit or because it is no pipe, does as well.
pub(crate) fn enlarge_pipe(pipe: BorrowedFd<'_>) {
    let raw = pipe.as_raw_fd();
    // SAFETY: F_GETPIPE_SZ takes no argument.
    let size = unsafe { libc::fcntl(raw, libc::F_GETPIPE_SZ) };
    if (0..PIPE_SIZE).contains(&size) {
        // SAFETY: F_SETPIPE_SZ takes a size.
        unsafe { libc::fcntl(raw, libc::F_SETPIPE_SZ, PIPE_SIZE) };
    }
}

/// Moves this process into a new session and process group. The caller leads no group.
pub(crate) fn become_session_leader() -> OsResult<()> {
    // SAFETY: setsid(2) takes no argument.
    retry_interrupted("setsid", || unsafe { libc::setsid() as isize }).map(drop)
}

/// Waits until a child of this process has ended, and reaps it.
pub(crate) fn wait_for_child(pid: Pid) -> OsResult<()> {
    retry_interrupted("waitpid", || {
        // SAFETY: waitpid(2) allows a null status.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) as isize }
    })
    .map(drop)
}

/// How often a process gave up its core, and how often it was taken from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContextSwitches {
    pub(crate) voluntary: u64,
    pub(crate) involuntary: u64,
}

/// As [`wait_for_child`]: how it ended, and its context switches.
pub(crate) fn reap_child(pid: Pid) -> OsResult<(Exit, ContextSwitches)> {
    let mut status = 0;
    // SAFETY: rusage is plain data, for which all-zero is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    retry_interrupted("wait4", || {
        // SAFETY: `status` and `usage` are live and writable for the call.
        unsafe { libc::wait4(pid, &mut status, 0, &mut usage) as isize }
    })?;
    let exit = if libc::WIFSIGNALED(status) {
        Exit::Signal(libc::WTERMSIG(status))
    } else {
        Exit::Code(libc::WEXITSTATUS(status))
    };
    let switches = ContextSwitches { voluntary: usage.ru_nvcsw as u64, involuntary: usage.ru_nivcsw as u64 };
    Ok((exit, switches))
}

/// Sleeps until an absolute time on the clock of [`Sys::now_ns`](super::Sys::now_ns); not at all when it has passed.
pub(crate) fn sleep_until(deadline_ns: u64) -> OsResult<()> {
    let deadline = clock::to_timespec(deadline_ns);
    loop {
        let flags = libc::TIMER_ABSTIME;
        // SAFETY: `deadline` is live for the call; an absolute sleep leaves no rest, so null is allowed.
        let errno = unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, flags, &deadline, std::ptr::null_mut()) };
        match errno {
            0 => return Ok(()),
            libc::EINTR => {}
            errno => return Err(OsError { call: "clock_nanosleep", errno }),
        }
    }
}

/// How late this process's sleeps may end so that they can share a wake-up; forked children inherit it. The kernel's
/// default is 50,000. Units: nanoseconds, at least one.
pub(crate) fn set_timer_slack(ns: u64) -> OsResult<()> {
    // Zero would set the default back.
    retry_nix("prctl", || nix::sys::prctl::set_timerslack(ns.max(1)))
}

/// From now on this process's memory, and that of children forked from now on, is in pages of the smallest size only.
pub(crate) fn forbid_huge_pages() -> OsResult<()> {
    retry_nix("prctl", || nix::sys::prctl::set_thp_disable(true))
}

/// While it lives, no signal that can be blocked ends this process; what arrives is dealt with afterwards.
pub(crate) struct SignalsBlocked(ns::SigSet);

impl SignalsBlocked {
    pub(crate) fn new() -> OsResult<Self> {
        retry_nix("sigprocmask", || ns::SigSet::all().thread_swap_mask(ns::SigmaskHow::SIG_BLOCK)).map(Self)
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // Fails only for an unknown `how`.
        let _ = self.0.thread_set_mask();
    }
}
