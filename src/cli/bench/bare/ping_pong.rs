//! One small message there and back, as `pp` and `ppe` of the C probe `lat`, and with several peers as in `over`.

use super::{EINVAL, Peer, next_packet, send};
use crate::limits::{SPIN_NS_MAX, SPIN_ROUND};
use crate::sys::{self, EventBuffer, Interest, Linux, OsError, OsResult, Received, Sys, Wait};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// How the two sides wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Both look again and again, giving the core away after every look, for at most [`SPIN_NS_MAX`], and then sleep:
    /// this side in `epoll_wait`, the peer in `recv`. The pool's own policy.
    Spin,
    /// The same, but for `limit_ns`, and giving the core away only if it `yields`.
    SpinFor {
        /// Units: nanoseconds.
        limit_ns: u64,
        /// Whether each look is followed by `sched_yield`.
        yields: bool,
    },
    /// This side sleeps in `recv`; the peer spins before it sleeps. The policy of the `blocking` transport.
    SleepInRecv,
    /// Both sleep: this side in `epoll_wait` (edge-triggered), the peer in `recv`. Where they run is the kernel's
    /// choice; it often puts both on one core, where a wake-up is cheap.
    Sleep,
    /// The same, each side on a CPU of its own, as they are when the peer has something to compute: every message
    /// wakes a sleeping core. Needs two CPUs that this process may use.
    SleepApart,
    /// The same, both sides on one CPU: no wake-up has to reach another core.
    SleepTogether,
}

/// How long to look again before sleeping. Units: nanoseconds; and whether each look is followed by a yield.
#[derive(Clone, Copy, Debug)]
struct Looking {
    limit_ns: u64,
    yields: bool,
}

impl Waiting {
    const POOL: Looking = Looking { limit_ns: SPIN_NS_MAX, yields: true };

    /// How this side looks before it sleeps. `None`: it does not.
    fn here(self) -> Option<Looking> {
        match self {
            Waiting::Spin => Some(Self::POOL),
            Waiting::SpinFor { limit_ns, yields } => Some(Looking { limit_ns, yields }),
            Waiting::SleepInRecv | Waiting::Sleep | Waiting::SleepApart | Waiting::SleepTogether => None,
        }
    }

    /// The same of the peer.
    fn there(self) -> Option<Looking> {
        if self == Waiting::SleepInRecv { Some(Self::POOL) } else { self.here() }
    }

    /// The CPUs of this side and of the peers. `None`: wherever the kernel puts them.
    fn cpus(self) -> OsResult<Option<(usize, usize)>> {
        match (self, &sys::affinity()?[..]) {
            (Waiting::SleepApart, &[first, .., last]) => Ok(Some((first, last))),
            (Waiting::SleepTogether, &[first, ..]) => Ok(Some((first, first))),
            (Waiting::SleepApart | Waiting::SleepTogether, _) => {
                Err(OsError { call: "sched_setaffinity", errno: EINVAL })
            }
            _ => Ok(None),
        }
    }
}

/// Messages there and back, one at a time.
#[derive(Clone, Copy, Debug)]
pub struct PingPong {
    /// How all sides wait.
    pub waiting: Waiting,
    /// Peers that have their turn one after the other, at least one.
    pub peers: usize,
    /// Further peers, which have nothing to do.
    pub idle: usize,
    /// Bytes of a message, at least one.
    pub payload: usize,
    /// How long this side sleeps before each message; zero: it does not.
    pub pause: Duration,
    /// It ends after so many messages,
    pub rounds_max: usize,
    /// or with the first one, if this is sooner, that ends so late.
    pub time_max: Duration,
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
    let (pause, time_max) = (Duration::ZERO, Duration::MAX);
    PingPong { waiting, peers: 1, idle, payload, pause, rounds_max: rounds, time_max }.run()
}

impl PingPong {
    /// Forks the peers and exchanges messages with them; how long each took, pauses apart. Units: nanoseconds.
    ///
    /// # Errors
    /// As [`ping_pong`].
    ///
    /// # Panics
    /// When an answer differs from what was sent.
    pub fn run(&self) -> OsResult<Vec<u64>> {
        let &Self { waiting, payload, .. } = self;
        assert!(payload > 0, "an empty packet is an end of file");
        assert!(self.peers > 0, "somebody answers");
        let cpus = waiting.cpus()?;
        let fork = |_| {
            Peer::fork(None, |socket| {
                if let Some((_, theirs)) = cpus {
                    sys::set_affinity(&[theirs])?;
                }
                echo(socket, payload, waiting.there())
            })
        };
        let peers = (0..self.peers).map(fork).collect::<OsResult<Vec<Peer>>>()?;
        let _idle = (0..self.idle).map(fork).collect::<OsResult<Vec<Peer>>>()?;
        let _pinned = cpus.map(|(ours, _)| Pinned::to(ours)).transpose()?;
        let epoll = Linux.epoll_create()?;
        for (index, peer) in peers.iter().enumerate() {
            Linux.epoll_add(epoll.as_fd(), peer.socket.as_fd(), Interest::READ, index as u64)?;
        }
        let mut events = EventBuffer::new(1);
        let (mut there, mut back) = (vec![0; payload], vec![0; payload]);
        let mut times_ns = Vec::with_capacity(self.rounds_max);
        let began_ns = Linux.now_ns();
        for (round, peer) in (0..self.rounds_max).zip(peers.iter().cycle()) {
            for (byte, stamp) in there.iter_mut().zip(round.to_le_bytes()) {
                *byte = stamp;
            }
            if !self.pause.is_zero() {
                std::thread::sleep(self.pause);
            }
            let started_ns = Linux.now_ns();
            peer.send(&there, Wait::Never)?;
            let size = loop {
                match waiting.here() {
                    Some(looking) => wait_spinning(&epoll, &mut events, looking)?,
                    None if waiting == Waiting::SleepInRecv => {}
                    None => Linux.epoll_wait(epoll.as_fd(), &mut events, None)?,
                }
                let wait = if waiting == Waiting::SleepInRecv { Wait::UntilReady } else { Wait::Never };
                if let Some(size) = peer.recv(&mut back, wait)? {
                    break size;
                }
            };
            let ended_ns = Linux.now_ns();
            times_ns.push(ended_ns - started_ns);
            assert_eq!(back[..size], there, "the answer of round {round}");
            if u128::from(ended_ns - began_ns) >= self.time_max.as_nanos() {
                break;
            }
        }
        Ok(times_ns)
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

fn wait_spinning(epoll: &OwnedFd, events: &mut EventBuffer, looking: Looking) -> OsResult<()> {
    let found = spin(looking, || match Linux.epoll_wait(epoll.as_fd(), events, Some(0)) {
        Ok(()) if events.is_empty() => None,
        other => Some(other),
    });
    found.unwrap_or_else(|| Linux.epoll_wait(epoll.as_fd(), events, None))
}

/// Looks until something is found or the time is up.
fn spin<T>(looking: Looking, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end_ns = Linux.now_ns() + looking.limit_ns;
    loop {
        for _ in 0..SPIN_ROUND {
            if let Some(found) = look() {
                return Some(found);
            }
            if looking.yields {
                Linux.yield_now();
            }
        }
        if Linux.now_ns() >= end_ns {
            return None;
        }
    }
}

/// A peer: sends back what comes.
fn echo(socket: &OwnedFd, payload: usize, looking: Option<Looking>) -> OsResult<()> {
    let mut packet = vec![0; payload];
    loop {
        let look = |packet: &mut [u8]| match Linux.recv(socket.as_fd(), &mut [IoSliceMut::new(packet)], Wait::Never) {
            Ok(Received::Packet(size)) => Some(size),
            // The end and errors are met again by the receive that sleeps.
            _ => None,
        };
        let size = match looking.and_then(|looking| spin(looking, || look(&mut packet))) {
            Some(size) => size,
            None => match next_packet(socket, &mut packet)? {
                Some(size) => size,
                None => return Ok(()),
            },
        };
        send(socket, &packet[..size], Wait::UntilReady)?;
    }
}
