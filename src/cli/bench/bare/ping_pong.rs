//! One small message there and back, as `pp` and `ppe` of the C probe `lat`.

use super::{EINVAL, Peer, next_packet, send};
use crate::limits::{SPIN_NS_MAX, SPIN_ROUND};
use crate::sys::{self, EventBuffer, Interest, Linux, OsError, OsResult, Received, Sys, Wait};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};

/// How the two sides wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Both look again and again, giving the core away after every look, for at most [`SPIN_NS_MAX`], and then sleep:
    /// this side in `epoll_wait`, the peer in `recv`. The pool's own policy.
    Spin,
    /// This side sleeps in `recv`; the peer spins before it sleeps. The policy of the `blocking` transport.
    SleepInRecv,
    /// Both sleep: this side in `epoll_wait` (edge-triggered), the peer in `recv`. Where they run is the kernel's
    /// choice; it often puts both on one core, where a wake-up is cheap.
    Sleep,
    /// The same, each side on a CPU of its own, as they are when the peer has something to compute: every message
    /// wakes a sleeping core. Needs two CPUs that this process may use.
    SleepApart,
}

impl Waiting {
    fn spins(self) -> bool {
        matches!(self, Waiting::Spin | Waiting::SleepInRecv)
    }
}

/// Sends `payload` bytes and takes them back, `rounds` times, while `idle` further peers have nothing to do; how long
/// each round took. Units: nanoseconds.
///
/// # Errors
/// The kernel's; `EINVAL` from `sched_setaffinity` for [`Waiting::SleepApart`] on one CPU.
///
/// # Panics
/// When an answer differs from what was sent.
pub fn ping_pong(waiting: Waiting, idle: usize, rounds: usize, payload: usize) -> OsResult<Vec<u64>> {
    assert!(payload > 0, "an empty packet is an end of file");
    let apart = if waiting == Waiting::SleepApart { Some(two_cpus()?) } else { None };
    let peer = Peer::fork(None, |socket| {
        if let Some((_, theirs)) = apart {
            sys::set_affinity(&[theirs])?;
        }
        echo(socket, payload, waiting.spins())
    })?;
    let _idle = (0..idle)
        .map(|_| Peer::fork(None, |socket| echo(socket, payload, waiting.spins())))
        .collect::<OsResult<Vec<Peer>>>()?;
    let _pinned = apart.map(|(ours, _)| Pinned::to(ours)).transpose()?;
    let epoll = Linux.epoll_create()?;
    Linux.epoll_add(epoll.as_fd(), peer.socket.as_fd(), Interest::READ, 0)?;
    let mut events = EventBuffer::new(1);
    let (mut there, mut back) = (vec![0; payload], vec![0; payload]);
    let mut times_ns = Vec::with_capacity(rounds);
    for round in 0..rounds {
        for (byte, stamp) in there.iter_mut().zip(round.to_le_bytes()) {
            *byte = stamp;
        }
        let started_ns = Linux.now_ns();
        peer.send(&there, Wait::Never)?;
        let size = loop {
            match waiting {
                Waiting::Spin => wait_spinning(&epoll, &mut events)?,
                Waiting::Sleep | Waiting::SleepApart => Linux.epoll_wait(epoll.as_fd(), &mut events, None)?,
                Waiting::SleepInRecv => {}
            }
            let wait = if waiting == Waiting::SleepInRecv { Wait::UntilReady } else { Wait::Never };
            if let Some(size) = peer.recv(&mut back, wait)? {
                break size;
            }
        };
        times_ns.push(Linux.now_ns() - started_ns);
        assert_eq!(back[..size], there, "the answer of round {round}");
    }
    Ok(times_ns)
}

/// The first and the last CPU that this process may use.
fn two_cpus() -> OsResult<(usize, usize)> {
    match sys::affinity()?[..] {
        [first, .., last] => Ok((first, last)),
        _ => Err(OsError { call: "sched_setaffinity", errno: EINVAL }),
    }
}

/// This process on one CPU, until it is dropped.
struct Pinned {
    before: Vec<usize>,
}

impl Pinned {
    fn to(cpu: usize) -> OsResult<Self> {
        let before = sys::affinity()?;
        sys::set_affinity(&[cpu]).map(|()| Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // They were granted before.
        let _ = sys::set_affinity(&self.before);
    }
}

fn wait_spinning(epoll: &OwnedFd, events: &mut EventBuffer) -> OsResult<()> {
    let found = spin(|| match Linux.epoll_wait(epoll.as_fd(), events, Some(0)) {
        Ok(()) if events.is_empty() => None,
        other => Some(other),
    });
    found.unwrap_or_else(|| Linux.epoll_wait(epoll.as_fd(), events, None))
}

/// Looks until something is found or [`SPIN_NS_MAX`] have passed.
fn spin<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end_ns = Linux.now_ns() + SPIN_NS_MAX;
    loop {
        for _ in 0..SPIN_ROUND {
            if let Some(found) = look() {
                return Some(found);
            }
            Linux.yield_now();
        }
        if Linux.now_ns() >= end_ns {
            return None;
        }
    }
}

/// A peer: sends back what comes.
fn echo(socket: &OwnedFd, payload: usize, spins: bool) -> OsResult<()> {
    let mut packet = vec![0; payload];
    loop {
        let look = |packet: &mut [u8]| match Linux.recv(socket.as_fd(), &mut [IoSliceMut::new(packet)], Wait::Never) {
            Ok(Received::Packet(size)) => Some(size),
            // The end and errors are met again by the receive that sleeps.
            _ => None,
        };
        let spun = if spins { spin(|| look(&mut packet)) } else { None };
        let size = match spun {
            Some(size) => size,
            None => match next_packet(socket, &mut packet)? {
                Some(size) => size,
                None => return Ok(()),
            },
        };
        send(socket, &packet[..size], Wait::UntilReady)?;
    }
}
