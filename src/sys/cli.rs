//! What only the command needs of the kernel.
//!
//! # Source
//! `setsid(2)`, `fcntl(2)` (`F_SETPIPE_SZ`), `pipe(7)`, `waitpid(2)`, `prctl(2)` (`PR_SET_TIMERSLACK`),
//! `sched_setaffinity(2)`, `sigprocmask(2)`.

use super::{OsResult, Pid, retry_interrupted, retry_nix};
use nix::sched::CpuSet;
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

/// How late this process's sleeps may end so that they can share a wake-up; forked children inherit it. The kernel's
/// default is 50,000. Units: nanoseconds, at least one.
pub(crate) fn set_timer_slack(ns: u64) -> OsResult<()> {
    // Zero would set the default back.
    retry_nix("prctl", || nix::sys::prctl::set_timerslack(ns.max(1)))
}

/// The CPUs that this process may run on.
pub(crate) fn affinity() -> OsResult<Vec<usize>> {
    let set = retry_nix("sched_getaffinity", || nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).collect())
}

/// Confines this process and what it forks to these CPUs. The kernel passes over those that it does not grant, unless
/// it grants none.
pub(crate) fn set_affinity(cpus: &[usize]) -> OsResult<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        // A number that no set can hold.
        retry_nix("sched_setaffinity", || set.set(cpu))?;
    }
    retry_nix("sched_setaffinity", || nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set))
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
