//! What only the command needs of the kernel.
//!
//! # Source
//! `setsid(2)`.

use super::{OsError, OsResult};

/// Moves this process into a new session and process group. The caller leads no group.
pub(crate) fn become_session_leader() -> OsResult<()> {
    // SAFETY: setsid(2) takes no argument.
    let n = unsafe { libc::setsid() };
    if n < 0 { Err(OsError::last("setsid")) } else { Ok(()) }
}
