//! What a process costs: fork, exit, wait, as `fork+exit+wait` of the C probe `lat`.

use crate::sys::{self, Forked, Linux, OsResult, Sys};
use std::time::Duration;

/// Forks `times` children, one after the other, each of which exits at once; how long all of it took.
///
/// The time grows with what this process has resident, because its page tables are copied.
///
/// # Errors
/// The kernel's, such as `EAGAIN` from `fork`.
pub fn fork_exit_wait(times: u32) -> OsResult<Duration> {
    let started_ns = Linux.now_ns();
    for _ in 0..times {
        match Linux.fork()? {
            Forked::Child => sys::exit_now(0),
            Forked::Parent(pid) => sys::wait_for_child(pid)?,
        }
    }
    Ok(Duration::from_nanos(Linux.now_ns() - started_ns))
}
