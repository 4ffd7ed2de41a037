//! What only the command needs of the kernel.
//!
//! # Source
//! `setsid(2)`, `fcntl(2)` (`F_SETPIPE_SZ`), `pipe(7)`.

use super::{OsError, OsResult};
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
    let n = unsafe { libc::setsid() };
    if n < 0 { Err(OsError::last("setsid")) } else { Ok(()) }
}
