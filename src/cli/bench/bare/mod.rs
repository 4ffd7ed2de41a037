//! What the kernel allows: the same exchanges as the pool's, with bare system calls and nothing of the pool in between.
//!
//! These are the limits that `seqpool bench` and the criterion benches set beside the pool. They go through the thin
//! wrappers of [`crate::sys`] and share no other code with the pool: no frame module, no ring, no reactor, no scheduler.
//! Each checks its answers.
//!
//! A `Peer` is a forked process at the other end of a socket. It ends when that end is closed, so it cannot outlive
//! the process that measures.

mod fork;
mod fragments;
mod packed;
mod ping_pong;
mod sleeps;

pub use fork::fork_exit_wait;
pub use fragments::fragments;
pub use packed::{FRAME_SIZE, Packed, packed};
pub use ping_pong::{PingPong, Waiting, ping_pong};
pub use sleeps::{Slept, sleeps};

use crate::sys::{self, Forked, Linux, OsError, OsResult, Pid, Received, Sent, Sys, Wait};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Their numbers on every Linux that Rust knows.
const EAGAIN: i32 = 11;
const EINVAL: i32 = 22;
const EPIPE: i32 = 32;

/// A forked process that serves one end of a `SOCK_SEQPACKET` pair; this is the other end.
#[derive(Debug)]
pub(crate) struct Peer {
    socket: OwnedFd,
    pid: Pid,
}

impl Peer {
    /// Forks a process that runs `serve` on its end until that returns. `send_buffer` is asked for at both ends; `None`
    /// leaves the default.
    pub(crate) fn fork(send_buffer: Option<usize>, serve: impl FnOnce(&OwnedFd) -> OsResult<()>) -> OsResult<Self> {
        let (socket, theirs) = Linux.socketpair()?;
        for end in [&socket, &theirs] {
            if let Some(size) = send_buffer {
                Linux.set_send_buffer(end.as_fd(), size)?;
            }
        }
        match Linux.fork()? {
            Forked::Parent(pid) => Ok(Self { socket, pid }),
            Forked::Child => {
                sys::set_name(c"seqpool-bare");
                // Whatever happens, never back into the parent's code. Other peers' sockets are closed first: a copy
                // held here would keep their ends of file from them.
                let served = catch_unwind(AssertUnwindSafe(|| {
                    sys::close_all_except(&[theirs.as_raw_fd()])?;
                    serve(&theirs)
                }));
                sys::exit_now(i32::from(!matches!(served, Ok(Ok(())))))
            }
        }
    }

    /// Sends a packet, which the peer's queue must have room for unless `wait` says to wait for it.
    pub(crate) fn send(&self, packet: &[u8], wait: Wait) -> OsResult<()> {
        send(&self.socket, packet, wait)
    }

    /// The size of the next packet; `None`: nothing there.
    pub(crate) fn recv(&self, into: &mut [u8], wait: Wait) -> OsResult<Option<usize>> {
        match Linux.recv(self.socket.as_fd(), &mut [IoSliceMut::new(into)], wait)? {
            Received::Packet(size) => Ok(Some(size)),
            Received::WouldBlock => Ok(None),
            Received::Reset | Received::Closed | Received::Truncated => Err(gone()),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // End of file ends the peer; an error means that it has ended already.
        let _ = Linux.shutdown(self.socket.as_fd());
        let _ = sys::wait_for_child(self.pid);
    }
}

/// A peer that is gone before it was told to go.
fn gone() -> OsError {
    OsError { call: "bare peer", errno: EPIPE }
}

pub(crate) fn send(socket: &OwnedFd, packet: &[u8], wait: Wait) -> OsResult<()> {
    match Linux.send(socket.as_fd(), &[IoSlice::new(packet)], wait)? {
        Sent::All => Ok(()),
        Sent::WouldBlock | Sent::NoMemory => Err(OsError { call: "sendto", errno: EAGAIN }),
        Sent::Closed => Err(gone()),
    }
}

/// A peer's side: the size of the next packet, `None` at end of file. Sleeps until one is there.
fn next_packet(socket: &OwnedFd, into: &mut [u8]) -> OsResult<Option<usize>> {
    loop {
        match Linux.recv(socket.as_fd(), &mut [IoSliceMut::new(into)], Wait::UntilReady)? {
            Received::Packet(size) => return Ok(Some(size)),
            Received::WouldBlock => {}
            Received::Reset | Received::Closed | Received::Truncated => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_an_error_is_there() {
        assert_eq!(gone().to_string(), "bare peer: Broken pipe (os error 32)");
        assert_eq!(std::io::Error::from_raw_os_error(EAGAIN).kind(), std::io::ErrorKind::WouldBlock);
    }
}
