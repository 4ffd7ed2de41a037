//! Process descriptors.
//!
//! # Source
//! `pidfd_open(2)`.

use super::{OsResult, Pid, retry_interrupted};
use std::os::fd::{FromRawFd, OwnedFd};

pub(super) fn open(pid: Pid) -> OsResult<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two words; the descriptor is close-on-exec by definition.
    let fd = retry_interrupted("pidfd_open", || unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) as isize })?;
    // SAFETY: the kernel just returned this descriptor to us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
