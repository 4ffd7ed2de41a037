//! `SOCK_SEQPACKET` Unix sockets: whole packets, with descriptors where asked for.
//!
//! # Source
//! `unix(7)`, `sendmsg(2)`, `recvmsg(2)`, `cmsg(3)`, `accept(2)`.

use super::epoll::{self, PollFd};
use super::{Interest, OsResult, Received, Sent, Wait, retry_interrupted, retry_nix};
use nix::sys::socket as ns;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The most descriptors that one packet carries.
pub const FDS_MAX: usize = 8;

/// What the kernel keeps of the send buffer for itself, so that a packet of the rest still fits.
const SEND_BUFFER_OVERHEAD: usize = 32;

pub(super) fn pair() -> OsResult<(OwnedFd, OwnedFd)> {
    retry_nix("socketpair", || {
        ns::socketpair(ns::AddressFamily::Unix, ns::SockType::SeqPacket, None, ns::SockFlag::SOCK_CLOEXEC)
    })
}

/// Where a listening socket can be reached.
#[cfg(feature = "cli")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListenerAddress(ns::UnixAddr);

/// A listening `SOCK_SEQPACKET` socket at an abstract address of the kernel's choice, which no file stands for and which
/// goes when the last copy of the socket does. At most `backlog` connections wait in it, and further ones outside.
/// [`Wait::Never`]: it is non-blocking.
#[cfg(feature = "cli")]
pub(crate) fn listen(backlog: usize, wait: Wait) -> OsResult<(OwnedFd, ListenerAddress)> {
    let mut flags = ns::SockFlag::SOCK_CLOEXEC;
    flags.set(ns::SockFlag::SOCK_NONBLOCK, wait == Wait::Never);
    let socket = retry_nix("socket", || ns::socket(ns::AddressFamily::Unix, ns::SockType::SeqPacket, flags, None))?;
    // An address without a name is replaced by a free abstract one, `unix(7)`: autobind.
    retry_nix("bind", || ns::bind(socket.as_raw_fd(), &ns::UnixAddr::new_unnamed()))?;
    let address = retry_nix("getsockname", || ns::getsockname::<ns::UnixAddr>(socket.as_raw_fd()))?;
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    retry_nix("listen", || ns::listen(&socket, ns::Backlog::new(backlog)?))?;
    Ok((socket, ListenerAddress(address)))
}

/// A connection to a listening socket. Sleeps while too many others wait there; not until it is accepted.
#[cfg(feature = "cli")]
pub(crate) fn connect(to: &ListenerAddress) -> OsResult<OwnedFd> {
    let flags = ns::SockFlag::SOCK_CLOEXEC;
    let socket = retry_nix("socket", || ns::socket(ns::AddressFamily::Unix, ns::SockType::SeqPacket, flags, None))?;
    retry_nix("connect", || ns::connect(socket.as_raw_fd(), &to.0))?;
    Ok(socket)
}

pub(super) fn accept(listener: BorrowedFd<'_>) -> OsResult<Option<OwnedFd>> {
    let fd = retry_interrupted("accept4", || {
        // SAFETY: accept(2) allows a null address and then ignores its size.
        let fd = unsafe {
            libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
        };
        fd as isize
    });
    match fd {
        // SAFETY: the kernel just returned this descriptor to us and nobody else knows it.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })),
        Err(error) if error.errno == libc::EAGAIN => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn set_send_buffer(fd: BorrowedFd<'_>, size: usize) -> OsResult<()> {
    // The kernel gives twice what is asked for, up to its limit: asking for more may bring less than there was.
    let now = retry_nix("getsockopt", || ns::getsockopt(&fd, ns::sockopt::SndBuf))?;
    if 2 * size > now && 2 * size.min(send_buffer_max()) <= now {
        return Ok(());
    }
    retry_nix("setsockopt", || ns::setsockopt(&fd, ns::sockopt::SndBuf, &size))
}

/// The largest send buffer that may be asked for, `socket(7)`.
fn send_buffer_max() -> usize {
    static MAX: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *MAX.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap_or_default();
        text.trim().parse().unwrap_or(usize::MAX / 2)
    })
}

pub(super) fn packet_size_max(fd: BorrowedFd<'_>) -> OsResult<usize> {
    let size = retry_nix("getsockopt", || ns::getsockopt(&fd, ns::sockopt::SndBuf))?;
    Ok(size.saturating_sub(SEND_BUFFER_OVERHEAD))
}

pub(super) fn set_timeouts(fd: BorrowedFd<'_>, timeout_ns: u64) -> OsResult<()> {
    // All-zero means "for ever" to setsockopt(2), so the smallest timeout is one microsecond.
    let us = timeout_ns.div_ceil(1000).max(1) as i64;
    let value = nix::sys::time::TimeVal::new(us / 1_000_000, us % 1_000_000);
    retry_nix("setsockopt", || ns::setsockopt(&fd, ns::sockopt::ReceiveTimeout, &value))?;
    retry_nix("setsockopt", || ns::setsockopt(&fd, ns::sockopt::SendTimeout, &value))
}

pub(super) fn shutdown(fd: BorrowedFd<'_>) -> OsResult<()> {
    match retry_nix("shutdown", || ns::shutdown(fd.as_raw_fd(), ns::Shutdown::Both)) {
        Err(error) if error.errno != libc::ENOTCONN => Err(error),
        _ => Ok(()),
    }
}

fn empty_header() -> libc::msghdr {
    // SAFETY: msghdr is plain data, for which all-zero is a valid value (no name, no parts, no control block).
    unsafe { std::mem::zeroed() }
}

fn sent(result: OsResult<usize>, size: usize) -> OsResult<Sent> {
    match result {
        Ok(n) => {
            debug_assert_eq!(n, size, "a SEQPACKET packet goes whole");
            Ok(Sent::All)
        }
        Err(e) => match e.errno {
            libc::EAGAIN => Ok(Sent::WouldBlock),
            // ETOOMANYREFS: too many descriptors are on their way already, unix(7).
            libc::ENOBUFS | libc::ENOMEM | libc::ETOOMANYREFS => Ok(Sent::NoMemory),
            libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN | libc::ECONNREFUSED => Ok(Sent::Closed),
            _ => Err(e),
        },
    }
}

fn flags(wait: Wait) -> i32 {
    match wait {
        Wait::Never => libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        Wait::UntilReady => libc::MSG_NOSIGNAL,
    }
}

fn send_message(fd: BorrowedFd<'_>, header: &libc::msghdr, wait: Wait) -> OsResult<usize> {
    // SAFETY: every pointer in the header was set by our callers from live borrows that outlast this call.
    retry_interrupted("sendmsg", || unsafe { libc::sendmsg(fd.as_raw_fd(), header, flags(wait)) })
}

pub(super) fn send(fd: BorrowedFd<'_>, parts: &[IoSlice<'_>], wait: Wait) -> OsResult<Sent> {
    let size = parts.iter().map(|p| p.len()).sum();
    debug_assert!(size > 0, "an empty packet is never sent: it would read as end of file");
    let result = if let [one] = parts {
        retry_interrupted("sendto", || {
            // SAFETY: the part is a live borrow of `size` readable bytes.
            unsafe { libc::send(fd.as_raw_fd(), one.as_ptr().cast(), size, flags(wait)) }
        })
    } else {
        let mut header = empty_header();
        // IoSlice is ABI-compatible with iovec on Unix, by its documentation.
        header.msg_iov = parts.as_ptr().cast_mut().cast();
        header.msg_iovlen = parts.len();
        send_message(fd, &header, wait)
    };
    sent(result, size)
}

fn receive_message(fd: BorrowedFd<'_>, header: &mut libc::msghdr, wait: Wait) -> OsResult<Received> {
    let control_size = header.msg_controllen;
    match receive_once(fd, header, wait)? {
        Received::Closed => {
            header.msg_controllen = control_size;
            receive_at_the_end(fd, header, wait)
        }
        received => Ok(received),
    }
}

/// The kernel looks for a packet and then for the end, and the peer may have sent its last and closed in between: such an
/// end comes before the packet. From then on nothing can be added, so the second answer is final.
#[cold]
fn receive_at_the_end(fd: BorrowedFd<'_>, header: &mut libc::msghdr, wait: Wait) -> OsResult<Received> {
    if has_hung_up(fd)? { receive_once(fd, header, wait) } else { Ok(Received::Closed) }
}

fn has_hung_up(fd: BorrowedFd<'_>) -> OsResult<bool> {
    let mut poll = [PollFd::new(fd, Interest::READ)];
    epoll::poll(&mut poll, Some(0))?;
    Ok(poll[0].is_hung_up())
}

fn receive_once(fd: BorrowedFd<'_>, header: &mut libc::msghdr, wait: Wait) -> OsResult<Received> {
    let flags = if wait == Wait::Never { libc::MSG_DONTWAIT } else { 0 } | libc::MSG_CMSG_CLOEXEC;
    let n = retry_interrupted("recvmsg", || {
        // SAFETY: every pointer in the header was set by our callers from live exclusive borrows that outlast this call.
        unsafe { libc::recvmsg(fd.as_raw_fd(), header, flags) }
    });
    match n {
        Ok(_) if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 => Ok(Received::Truncated),
        Ok(0) => Ok(Received::Closed),
        Ok(n) => Ok(Received::Packet(n)),
        Err(e) => match e.errno {
            // A shortage of memory passes; the next look finds the packet where it is.
            libc::EAGAIN | libc::ENOMEM | libc::ENOBUFS => Ok(Received::WouldBlock),
            libc::ECONNRESET => Ok(Received::Reset),
            libc::ENOTCONN => Ok(Received::Closed),
            _ => Err(e),
        },
    }
}

pub(super) fn recv(fd: BorrowedFd<'_>, parts: &mut [IoSliceMut<'_>], wait: Wait) -> OsResult<Received> {
    let mut header = empty_header();
    // IoSliceMut is ABI-compatible with iovec on Unix, by its documentation.
    header.msg_iov = parts.as_mut_ptr().cast();
    header.msg_iovlen = parts.len();
    receive_message(fd, &mut header, wait)
}

/// Room for `FDS_MAX` descriptors in a control block, aligned as `cmsg(3)` demands.
#[repr(C, align(8))]
struct Control([u8; CONTROL_SIZE]);
const CONTROL_SIZE: usize = 16 + FDS_MAX * size_of::<RawFd>();
const CMSG_HEADER_SIZE: usize = size_of::<libc::cmsghdr>();
const _: () = assert!(CMSG_HEADER_SIZE == 16, "cmsghdr is two words on 64-bit Linux");

/// Descriptors that came with a packet, in the order in which they were sent.
#[derive(Debug, Default)]
pub struct Passed {
    fds: [Option<OwnedFd>; FDS_MAX],
    len: usize,
}

impl Passed {
    /// How many came.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none came.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the `index`th; `None` when there is none or it is taken.
    pub fn take(&mut self, index: usize) -> Option<OwnedFd> {
        self.fds.get_mut(index)?.take()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

pub(super) fn send_fds(fd: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], wait: Wait) -> OsResult<Sent> {
    assert!(!fds.is_empty() && fds.len() <= FDS_MAX, "between one and {FDS_MAX} descriptors");
    let mut control = Control([0; CONTROL_SIZE]);
    let size = CMSG_HEADER_SIZE + size_of_val(fds);
    control.0[..8].copy_from_slice(&size.to_ne_bytes());
    control.0[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    control.0[12..16].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
    for (room, fd) in control.0[16..].chunks_exact_mut(4).zip(fds) {
        room.copy_from_slice(&fd.as_raw_fd().to_ne_bytes());
    }
    let parts = [IoSlice::new(bytes)];
    let mut header = empty_header();
    header.msg_iov = parts.as_ptr().cast_mut().cast();
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = size.next_multiple_of(8);
    sent(send_message(fd, &header, wait), bytes.len())
}

pub(super) fn recv_fds(fd: BorrowedFd<'_>, buffer: &mut [u8], passed: &mut Passed, wait: Wait) -> OsResult<Received> {
    passed.clear();
    let mut control = Control([0; CONTROL_SIZE]);
    let mut parts = [IoSliceMut::new(buffer)];
    let mut header = empty_header();
    header.msg_iov = parts.as_mut_ptr().cast();
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_SIZE;
    let received = receive_message(fd, &mut header, wait)?;
    // Even a truncated message may have installed descriptors: take them all, then let `passed` close them.
    let filled = header.msg_controllen.min(CONTROL_SIZE);
    let word = |at: usize| i32::from_ne_bytes([control.0[at], control.0[at + 1], control.0[at + 2], control.0[at + 3]]);
    if filled >= CMSG_HEADER_SIZE && word(8) == libc::SOL_SOCKET && word(12) == libc::SCM_RIGHTS {
        let mut size = [0; 8];
        size.copy_from_slice(&control.0[..8]);
        let end = usize::from_ne_bytes(size).min(filled);
        for at in (CMSG_HEADER_SIZE..end.saturating_sub(3)).step_by(4) {
            // SAFETY: unix(7): the kernel installed this descriptor in our table for this message; nobody else knows it.
            let owned = unsafe { OwnedFd::from_raw_fd(word(at)) };
            passed.fds[passed.len] = Some(owned);
            passed.len += 1;
        }
    }
    if received == Received::Truncated {
        passed.clear();
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    /// A peer that sends its last packet and closes at once: one in about ten thousand times the kernel says "end" first.
    #[test]
    fn the_end_never_overtakes_the_last_packet() {
        const ROUNDS: usize = 50_000;
        let (peer, round) = (Mutex::new(None::<OwnedFd>), AtomicUsize::new(0));
        let play = || {
            for n in 1..=ROUNDS {
                // Both sides start at the same moment, or they never meet.
                while round.load(SeqCst) < n {
                    std::hint::spin_loop();
                }
                let peer = peer.lock().unwrap().take().unwrap();
                assert_eq!(send(peer.as_fd(), &[IoSlice::new(b"last")], Wait::Never), Ok(Sent::All));
            }
        };
        let mut room = [0; 8];
        let mut next = |socket: &OwnedFd| loop {
            match recv(socket.as_fd(), &mut [IoSliceMut::new(&mut room)], Wait::Never) {
                Ok(Received::WouldBlock) => {}
                received => break received,
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(play);
            for n in 1..=ROUNDS {
                let (ours, theirs) = pair().unwrap();
                *peer.lock().unwrap() = Some(theirs);
                round.store(n, SeqCst);
                let seen = [next(&ours), next(&ours)];
                if seen != [Ok(Received::Packet(4)), Ok(Received::Closed)] {
                    // The other thread must not wait for the next one: it panics without a peer.
                    round.store(usize::MAX, SeqCst);
                    panic!("round {n}: {seen:?}");
                }
            }
        });
    }
}
