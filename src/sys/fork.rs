//! `fork(2)`, and the check that makes it safe.

use super::{OsError, OsResult};

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
/// `proc(5)`: `/proc/self/task` has one directory for each.
pub fn thread_count() -> OsResult<usize> {
    let entries = std::fs::read_dir("/proc/self/task")
        .map_err(|e| OsError { call: "open /proc/self/task", errno: e.raw_os_error().unwrap_or(libc::ENOENT) })?;
    Ok(entries.count())
}

pub(super) fn fork() -> OsResult<Forked> {
    debug_assert_eq!(thread_count().unwrap_or(1), 1, "callers have refused other threads");
    // SAFETY: signal-safety(7) restricts the child of a multi-threaded process only; the caller is alone, by contract.
    match unsafe { libc::fork() } {
        -1 => Err(OsError::last("fork")),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}
