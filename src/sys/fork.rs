//! `fork(2)`, and the check that makes it safe.

use super::{OsError, OsResult, retry_interrupted, retry_io, strike};

/// A process id, or, negative, a process group.
pub type Pid = i32;

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The old process; the child's id.
    Parent(Pid),
    /// The new process.
    Child,
}

/// How many threads this process has.
///
/// # Source
/// `proc_pid_status(5)`: `Threads`. Not the entries of `/proc/self/task`: a listing that is interrupted must begin anew,
/// while a file is read on.
pub fn thread_count() -> OsResult<usize> {
    let status = retry_io("read /proc/self/status", || std::fs::read_to_string("/proc/self/status"))?;
    let count = status.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok());
    count.ok_or(OsError { call: "read /proc/self/status", errno: libc::EPROTO })
}

pub(super) fn fork() -> OsResult<Forked> {
    debug_assert_eq!(thread_count().unwrap_or(1), 1, "callers have refused other threads");
    let pid = retry_interrupted("fork", || {
        // SAFETY: signal-safety(7) restricts the child of a multi-threaded process only; the caller is alone, by contract.
        unsafe { libc::fork() as isize }
    })?;
    if pid == 0 {
        strike::forked();
        return Ok(Forked::Child);
    }
    Ok(Forked::Parent(pid as Pid))
}
