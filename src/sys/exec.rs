//! This program, executed again, and the descriptors and the environment that such a process finds.
//!
//! # Source
//! `posix_spawn(3)`, `proc_pid_exe(5)`, `fcntl(2)` (`F_DUPFD_CLOEXEC`, `F_GETFD`), `dup(2)`.

use super::{OsResult, Pid, retry_interrupted, retry_io};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Starts this process's own program in a new process and process group, with `input` as its standard input and one
/// variable more in its environment. `title` is its only argument, the zeroth.
///
/// The standard library makes it by `posix_spawn`, which copies no memory, so it costs a large process no more than a
/// small one, and other threads may run. The program is the one that runs now, also if its file has been replaced or
/// deleted since.
pub(crate) fn start_self(title: &OsStr, marker: &str, input: BorrowedFd<'_>) -> OsResult<Pid> {
    let child = retry_io("posix_spawn", || {
        let mut command = Command::new("/proc/self/exe");
        command.arg0(title).env(marker, "1").process_group(0).stdin(Stdio::from(input.try_clone_to_owned()?));
        command.spawn()
    })?;
    Ok(child.id() as Pid)
}

/// What this process was called by whoever started it.
pub(crate) fn own_title() -> OsString {
    std::env::args_os().next().unwrap_or_default()
}

/// Whether the environment holds this variable.
pub(crate) fn has_variable(name: &str) -> bool {
    std::env::var_os(name).is_some()
}

/// Removes a variable from the environment. The caller is the process's only thread.
pub(crate) fn remove_variable(name: &str) {
    debug_assert_eq!(super::thread_count().unwrap_or(1), 1, "callers have refused other threads");
    // SAFETY: no other thread reads the environment: there is none, by contract.
    unsafe { std::env::remove_var(name) };
}

/// A copy of standard input under a number of its own.
pub(crate) fn copy_of_stdin() -> OsResult<OwnedFd> {
    super::duplicate(std::io::stdin().as_fd())
}

/// A copy of the descriptor with this number, and whether the original is closed on exec.
///
/// # Errors
/// `EBADF` when it is not open.
pub(crate) fn duplicate_number(fd: RawFd) -> OsResult<(OwnedFd, bool)> {
    // SAFETY: F_GETFD reads a flag of a descriptor number, open or not.
    let flags = retry_interrupted("fcntl", || unsafe { libc::fcntl(fd, libc::F_GETFD) as isize })?;
    Ok((duplicate_from(fd, 3)?, flags as i32 & libc::FD_CLOEXEC != 0))
}

/// A copy of a descriptor under the first free number from `least` on, closed on exec.
fn duplicate_from(fd: RawFd, least: RawFd) -> OsResult<OwnedFd> {
    let copy = retry_interrupted("fcntl(F_DUPFD_CLOEXEC)", || {
        // SAFETY: F_DUPFD_CLOEXEC takes a number; whatever is open under it is not changed.
        unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least) as isize }
    })?;
    // SAFETY: the kernel just returned this descriptor to us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy as RawFd) })
}

/// A copy of a descriptor under a number that is none of `reserved`. `None`: its own is none of them.
pub(crate) fn copy_beside(fd: BorrowedFd<'_>, reserved: &[RawFd]) -> OsResult<Option<OwnedFd>> {
    if !reserved.contains(&fd.as_raw_fd()) {
        return Ok(None);
    }
    let mut least = 3;
    loop {
        let copy = duplicate_from(fd.as_raw_fd(), least)?;
        if !reserved.contains(&copy.as_raw_fd()) {
            return Ok(Some(copy));
        }
        least = copy.as_raw_fd() + 1;
    }
}

/// Gives a descriptor this number for the rest of the process's life. What was open under it is closed: the caller knows
/// that nobody in this process uses it.
pub(crate) fn place_fd(fd: OwnedFd, number: RawFd, close_on_exec: bool) -> OsResult<()> {
    debug_assert_ne!(fd.as_raw_fd(), number, "copied beside the numbers that are asked for");
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: dup3(2) takes three words; nobody in this process owns `number`, by contract.
    retry_interrupted("dup3", || unsafe { libc::dup3(fd.as_raw_fd(), number, flags) as isize }).map(drop)
}
