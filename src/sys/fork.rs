//! `fork(2)`, and the check that makes it safe.

use super::{OsError, OsResult, retry_interrupted, retry_io, strike};
use std::os::unix::fs::MetadataExt;

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
/// `proc_pid_task(5)`: each thread has a directory there, and a directory of `n` others has `n + 2` links. One call, an
/// eighth of what reading `/proc/self/status` costs.
pub fn thread_count() -> OsResult<usize> {
    const TASK: &str = "/proc/self/task";
    let task = retry_io("stat /proc/self/task", || std::fs::metadata(TASK))?;
    let count = usize::try_from(task.nlink()).ok().and_then(|links| links.checked_sub(2)).filter(|&count| count > 0);
    count.ok_or(OsError { call: "stat /proc/self/task", errno: libc::EPROTO })
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
