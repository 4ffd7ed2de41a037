//! Readiness: `epoll(7)` edge-triggered, `poll(2)`, event counters and timer descriptors.
//!
//! # Source
//! `epoll_ctl(2)`, `epoll_pwait2(2)` (called directly: glibc has it only since 2.35), `eventfd(2)`, `timerfd_create(2)`.

use super::clock::to_timespec;
use super::{OsError, OsResult, retry_interrupted, strike};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// What a caller wants to hear of. Always edge-triggered unless [`Interest::LEVEL`] is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest(u32);

impl Interest {
    /// Nothing but errors and hang-up, which the kernel always reports.
    pub const NONE: Interest = Interest(0);
    /// Input, and the peer's end of file.
    pub const READ: Interest = Interest(libc::EPOLLIN as u32 | libc::EPOLLRDHUP as u32);
    /// Room for output.
    pub const WRITE: Interest = Interest(libc::EPOLLOUT as u32);
    /// Level-triggered: reported again for as long as it holds.
    pub const LEVEL: Interest = Interest(1 << 31);

    /// Both interests.
    pub const fn and(self, other: Interest) -> Interest {
        Interest(self.0 | other.0)
    }

    /// Whether all of `other` is in here.
    pub const fn contains(self, other: Interest) -> bool {
        self.0 & other.0 == other.0
    }

    fn bits(self) -> u32 {
        const LEVEL: u32 = Interest::LEVEL.0;
        if self.0 & LEVEL != 0 { self.0 & !LEVEL } else { self.0 | libc::EPOLLET as u32 }
    }
}

/// What the kernel reported: a hint, which may be spurious.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Readiness(u32);

impl Readiness {
    /// Nothing.
    pub const NONE: Readiness = Readiness(0);
    /// A receive may find something, an end of file or an error included.
    pub const READ: Readiness = Readiness(1);
    /// A send may find room.
    pub const WRITE: Readiness = Readiness(2);

    fn from_bits(bits: u32) -> Self {
        let both = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
        let mut r = 0;
        if bits & ((libc::EPOLLIN | libc::EPOLLRDHUP) as u32 | both) != 0 {
            r |= 1;
        }
        if bits & (libc::EPOLLOUT as u32 | both) != 0 {
            r |= 2;
        }
        Readiness(r)
    }

    /// Both.
    pub const fn and(self, other: Readiness) -> Readiness {
        Readiness(self.0 | other.0)
    }

    /// This without the other.
    pub const fn without(self, other: Readiness) -> Readiness {
        Readiness(self.0 & !other.0)
    }

    /// Whether a receive is worth a try.
    pub const fn is_readable(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether a send is worth a try.
    pub const fn is_writable(self) -> bool {
        self.0 & 2 != 0
    }

    /// Whether nothing is left.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// A fixed buffer of events, filled by `epoll_wait`.
pub struct EventBuffer {
    events: Box<[libc::epoll_event]>,
    len: usize,
}

impl EventBuffer {
    /// Room for `capacity` events a call, at least one.
    pub fn new(capacity: usize) -> Self {
        let empty = libc::epoll_event { events: 0, u64: 0 };
        Self { events: vec![empty; capacity.max(1)].into_boxed_slice(), len: 0 }
    }

    /// The events of the last wait: each descriptor's data and readiness.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Readiness)> + '_ {
        self.events[..self.len].iter().map(|e| (e.u64, Readiness::from_bits(e.events)))
    }

    /// How many events the last wait brought.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the last wait brought none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets the events of the last wait.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds an event that the kernel did not report; dropped when there is no room. For fault injection.
    pub fn inject(&mut self, data: u64, readiness: Readiness) {
        if self.len < self.events.len() {
            let mut events = 0;
            if readiness.is_readable() {
                events |= libc::EPOLLIN as u32;
            }
            if readiness.is_writable() {
                events |= libc::EPOLLOUT as u32;
            }
            self.events[self.len] = libc::epoll_event { events, u64: data };
            self.len += 1;
        }
    }
}

pub(super) fn create() -> OsResult<OwnedFd> {
    // SAFETY: epoll_create1(2) takes a flag word only.
    make("epoll_create1", || unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

/// Makes a call that returns a new descriptor.
fn make(call: &'static str, mut f: impl FnMut() -> i32) -> OsResult<OwnedFd> {
    let fd = retry_interrupted(call, || f() as isize)?;
    // SAFETY: the kernel just returned this descriptor to us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn control(epoll: BorrowedFd<'_>, op: i32, fd: BorrowedFd<'_>, interest: Interest, data: u64) -> OsResult<()> {
    let mut event = libc::epoll_event { events: interest.bits(), u64: data };
    let n = retry_interrupted("epoll_ctl", || {
        // SAFETY: both descriptors are borrowed, so open; `event` is live and epoll_ctl(2) only reads it.
        unsafe { libc::epoll_ctl(epoll.as_raw_fd(), op, fd.as_raw_fd(), &mut event) as isize }
    });
    n.map(drop)
}

pub(super) fn add(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>, interest: Interest, data: u64) -> OsResult<()> {
    control(epoll, libc::EPOLL_CTL_ADD, fd, interest, data)
}

pub(super) fn modify(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>, interest: Interest, data: u64) -> OsResult<()> {
    control(epoll, libc::EPOLL_CTL_MOD, fd, interest, data)
}

pub(super) fn delete(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> OsResult<()> {
    control(epoll, libc::EPOLL_CTL_DEL, fd, Interest::NONE, 0)
}

/// Set once the kernel has said that it has no `epoll_pwait2` (before Linux 5.11).
static NO_PWAIT2: AtomicBool = AtomicBool::new(false);

pub(super) fn wait(epoll: BorrowedFd<'_>, events: &mut EventBuffer, timeout_ns: Option<u64>) -> OsResult<()> {
    events.len = 0;
    match wait_once(epoll, events, timeout_ns) {
        Ok(n) => events.len = n,
        Err(e) if e.errno == libc::EINTR => {}
        Err(e) => return Err(e),
    }
    Ok(())
}

fn wait_once(epoll: BorrowedFd<'_>, events: &mut EventBuffer, timeout_ns: Option<u64>) -> OsResult<usize> {
    let capacity = events.events.len() as i32;
    // Relaxed: the flag carries no data; at worst one more call learns the same.
    if timeout_ns != Some(0) && timeout_ns.is_some() && !NO_PWAIT2.load(Ordering::Relaxed) {
        if let Some(errno) = strike::struck("epoll_pwait2") {
            return Err(OsError { call: "epoll_pwait2", errno });
        }
        let timeout = to_timespec(timeout_ns.unwrap_or(0));
        // SAFETY: the buffer is live for `capacity` events and the timespec for the call; a null signal mask is
        // allowed by epoll_pwait2(2).
        let n = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                epoll.as_raw_fd(),
                events.events.as_mut_ptr(),
                capacity,
                &timeout,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        if n >= 0 {
            return Ok(n as usize);
        }
        let error = OsError::last("epoll_pwait2");
        if error.errno != libc::ENOSYS {
            return Err(error);
        }
        NO_PWAIT2.store(true, Ordering::Relaxed);
    }
    if let Some(errno) = strike::struck("epoll_wait") {
        return Err(OsError { call: "epoll_wait", errno });
    }
    // Rounded up: a wait must never end before its timer is due.
    let timeout_ms = timeout_ns.map_or(-1, |ns| ns.div_ceil(1_000_000).min(i32::MAX as u64) as i32);
    // SAFETY: the buffer is live and writable for `capacity` events.
    let n = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.events.as_mut_ptr(), capacity, timeout_ms) };
    if n < 0 { Err(OsError::last("epoll_wait")) } else { Ok(n as usize) }
}

/// One descriptor to [`poll`](super::Sys::poll), and afterwards its readiness.
#[repr(transparent)]
pub struct PollFd<'a> {
    raw: libc::pollfd,
    fd: PhantomData<BorrowedFd<'a>>,
}

impl<'a> PollFd<'a> {
    /// Wants `interest` of `fd`; hang-up and errors are always reported.
    pub fn new(fd: BorrowedFd<'a>, interest: Interest) -> Self {
        let mut events = 0;
        if interest.contains(Interest::READ) {
            events |= libc::POLLIN;
        }
        if interest.contains(Interest::WRITE) {
            events |= libc::POLLOUT;
        }
        Self { raw: libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }, fd: PhantomData }
    }

    /// What the last poll found.
    pub fn readiness(&self) -> Readiness {
        let mut r = Readiness::NONE;
        if self.raw.revents & (libc::POLLIN | libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 {
            r = r.and(Readiness::READ);
        }
        if self.raw.revents & (libc::POLLOUT | libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 {
            r = r.and(Readiness::WRITE);
        }
        r
    }

    /// Whether the last poll found the other end closed.
    pub fn is_hung_up(&self) -> bool {
        self.raw.revents & (libc::POLLHUP | libc::POLLERR) != 0
    }
}

pub(super) fn poll(fds: &mut [PollFd<'_>], timeout_ns: Option<u64>) -> OsResult<usize> {
    let timeout = timeout_ns.map(to_timespec);
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let error = loop {
        let error = match strike::struck("ppoll") {
            Some(errno) => OsError { call: "ppoll", errno },
            None => {
                // SAFETY: PollFd is a transparent pollfd, so the slice is an array of them; ppoll(2) allows null for no
                // timeout and for no signal mask.
                let n = unsafe {
                    libc::ppoll(fds.as_mut_ptr().cast(), fds.len() as libc::nfds_t, timeout, std::ptr::null())
                };
                if n >= 0 {
                    return Ok(n as usize);
                }
                OsError::last("ppoll")
            }
        };
        // A mere look is repeated: its caller takes "nothing" for an answer.
        if error.errno != libc::EINTR || timeout_ns != Some(0) {
            break error;
        }
    };
    if error.errno != libc::EINTR {
        return Err(error);
    }
    for fd in fds {
        fd.raw.revents = 0;
    }
    Ok(0)
}

pub(super) fn eventfd() -> OsResult<OwnedFd> {
    // SAFETY: eventfd(2) takes two words.
    make("eventfd", || unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

pub(super) fn eventfd_ring(fd: BorrowedFd<'_>) -> OsResult<()> {
    let one = 1u64.to_ne_bytes();
    // SAFETY: eight readable bytes, as eventfd(2) demands.
    let n = retry_interrupted("write", || unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) });
    match n {
        // EAGAIN: the counter is at its maximum, so it is readable, which is all that ringing is for.
        Err(e) if e.errno != libc::EAGAIN => Err(e),
        _ => Ok(()),
    }
}

pub(super) fn counter_clear(fd: BorrowedFd<'_>) -> OsResult<()> {
    let mut count = [0u8; 8];
    // SAFETY: eight writable bytes, as eventfd(2) and timerfd_create(2) demand.
    let n = retry_interrupted("read", || unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), 8) });
    match n {
        Err(e) if e.errno != libc::EAGAIN => Err(e),
        _ => Ok(()),
    }
}

pub(super) fn timerfd() -> OsResult<OwnedFd> {
    let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
    // SAFETY: timerfd_create(2) takes two words.
    make("timerfd_create", || unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })
}

pub(super) fn timerfd_set(fd: BorrowedFd<'_>, deadline_ns: Option<u64>) -> OsResult<()> {
    // An all-zero value disarms, so a deadline in the first nanosecond is moved by one.
    let value = to_timespec(deadline_ns.map_or(0, |d| d.max(1)));
    let spec = libc::itimerspec { it_interval: to_timespec(0), it_value: value };
    let n = retry_interrupted("timerfd_settime", || {
        let flags = libc::TFD_TIMER_ABSTIME;
        // SAFETY: `spec` is live for the call; a null old value is allowed by timerfd_settime(2).
        unsafe { libc::timerfd_settime(fd.as_raw_fd(), flags, &spec, std::ptr::null_mut()) as isize }
    });
    n.map(drop)
}
