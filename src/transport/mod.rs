//! Floor 3: how packets travel between the host and its workers. One interface, several ways.
//!
//! A transport owns the host's end of each slot's socket: it registers it, deregisters it before it closes it, sends
//! and receives whole packets, and decides how the host waits. It never looks into a packet and knows nothing of jobs.
//! The pool calls it; workers use plain blocking sockets whatever the transport.

mod blocking;
mod seqpacket;

use crate::limits::{PACKET_SIZE_MAX, PACKET_SIZE_MIN, SEND_BUFFER_SIZE};
use crate::reactor::{Reactor, Token};
use crate::sys::{Interest, OsError, OsResult, PollFd, Received, Sent, Sys, Wait};
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;

pub(crate) use blocking::Blocking;
pub(crate) use seqpacket::Seqpacket;

/// Which way jobs and results travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransportKind {
    /// One peer at a time, one job a packet, waiting in `recv` for each answer in turn: for study and comparison.
    Blocking,
    /// Packed frames through the kernel, edge-triggered, all workers at once.
    #[default]
    Seqpacket,
}

impl TransportKind {
    /// All of them.
    pub const ALL: &'static [TransportKind] = &[TransportKind::Blocking, TransportKind::Seqpacket];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            TransportKind::Blocking => "blocking",
            TransportKind::Seqpacket => "seqpacket",
        }
    }

    pub(crate) fn build<S: Sys>(self, sys: S, slots: usize) -> Box<dyn Transport<S>> {
        match self {
            TransportKind::Blocking => Box::new(Blocking::new(sys, slots)),
            TransportKind::Seqpacket => Box::new(Seqpacket::new(sys, slots)),
        }
    }
}

impl fmt::Display for TransportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TransportKind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().copied().find(|k| k.name() == s).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|k| k.name()).collect();
            format!("unknown transport '{s}', known are {}", names.join(", "))
        })
    }
}

/// The host's side of all its slots' sockets.
pub(crate) trait Transport<S: Sys>: Send {
    /// Most jobs that a slot may hold. `usize::MAX`: the scheduler alone decides.
    fn window_jobs_max(&self) -> usize;

    /// Takes the host's end of a new worker's socket.
    fn attach(&mut self, reactor: &mut Reactor<S>, slot: usize, socket: OwnedFd) -> OsResult<()>;

    /// Deregisters and closes a slot's socket; nothing to do when there is none.
    fn detach(&mut self, reactor: &mut Reactor<S>, slot: usize);

    /// Largest packet that this slot's socket takes. Units: bytes.
    fn packet_size_max(&self, slot: usize) -> usize;

    /// Sends one packet.
    fn send(&mut self, slot: usize, parts: &[IoSlice<'_>]) -> OsResult<Sent>;

    /// Receives one packet if one is there.
    fn recv(&mut self, slot: usize, parts: &mut [IoSliceMut<'_>]) -> OsResult<Received>;

    /// Waits for something to happen, at most `timeout_ns`. `busy` tells whether a slot has a result to come.
    fn wait(
        &mut self,
        reactor: &mut Reactor<S>,
        timeout_ns: Option<u64>,
        busy: &mut dyn FnMut(usize) -> bool,
    ) -> OsResult<()>;

    /// The slot that this token stands for.
    fn slot_of(&self, token: Token) -> Option<usize>;

    /// A slot to receive from that the reactor does not know of.
    fn next_in_turn(&mut self) -> Option<usize>;

    /// The slot has been received from until nothing was left.
    fn exhausted(&mut self, reactor: &mut Reactor<S>, slot: usize);

    /// Ends the conversation with a slot's worker, which finds end of file once it has read what was sent.
    fn shut_down(&mut self, slot: usize) -> OsResult<()>;

    /// The slot's worker has closed its end: nothing more is to be reported of it.
    fn hung_up(&mut self, reactor: &mut Reactor<S>, slot: usize);

    /// Whether the end of what this slot's worker has sent has been seen.
    fn has_hung_up(&self, slot: usize) -> bool;

    /// Asks the kernel to report again whatever is there: a lost edge costs one sleep, not the run.
    fn rearm(&mut self, reactor: &mut Reactor<S>, slot: usize) -> OsResult<()>;

    /// Whether to report when the slot's socket has room again. Asked for only while a send is held back: every packet
    /// that a worker reads would be an event otherwise.
    fn want_write(&mut self, reactor: &mut Reactor<S>, slot: usize, want: bool) -> OsResult<()>;
}

/// One slot's socket in the reactor.
struct Link {
    socket: OwnedFd,
    token: Token,
    packet_size_max: usize,
    wants_write: bool,
    hung_up: bool,
}

/// The part that all transports share: a table of registered sockets.
struct Links<S: Sys> {
    sys: S,
    interest: Interest,
    by_slot: Box<[Option<Link>]>,
    /// Slot of each token index; grows with the reactor's table.
    by_token: Vec<usize>,
}

const NO_SLOT: usize = usize::MAX;

/// `ENOBUFS` on every Linux that Rust knows.
const ENOBUFS: i32 = 105;

impl<S: Sys> Links<S> {
    fn new(sys: S, slots: usize, interest: Interest) -> Self {
        Self { sys, interest, by_slot: (0..slots).map(|_| None).collect(), by_token: Vec::new() }
    }

    fn attach(&mut self, reactor: &mut Reactor<S>, slot: usize, socket: OwnedFd) -> OsResult<()> {
        debug_assert!(self.by_slot[slot].is_none(), "one socket a slot");
        self.sys.set_send_buffer(socket.as_fd(), SEND_BUFFER_SIZE)?;
        let packet_size_max = self.sys.packet_size_max(socket.as_fd())?.min(PACKET_SIZE_MAX);
        if packet_size_max < PACKET_SIZE_MIN {
            // net.core.wmem_max is absurdly small: no refusal would fit.
            return Err(OsError { call: "setsockopt(SO_SNDBUF)", errno: ENOBUFS });
        }
        let token = reactor.register(socket.as_fd(), self.interest)?;
        let index = token.index();
        if self.by_token.len() <= index {
            self.by_token.resize(index + 1, NO_SLOT);
        }
        self.by_token[index] = slot;
        self.by_slot[slot] = Some(Link { socket, token, packet_size_max, wants_write: false, hung_up: false });
        Ok(())
    }

    fn detach(&mut self, reactor: &mut Reactor<S>, slot: usize) {
        if let Some(link) = self.by_slot[slot].take() {
            self.by_token[link.token.index()] = NO_SLOT;
            // Fails only if the descriptor is not registered; then there is nothing to undo.
            let _ = reactor.deregister(link.token, link.socket.as_fd());
        }
    }

    fn want_write(&mut self, reactor: &mut Reactor<S>, slot: usize, want: bool) -> OsResult<()> {
        let interest = if want { self.interest.and(Interest::WRITE) } else { self.interest };
        match &mut self.by_slot[slot] {
            Some(link) if link.wants_write != want && !link.hung_up => {
                link.wants_write = want;
                reactor.modify(link.token, link.socket.as_fd(), interest)
            }
            _ => Ok(()),
        }
    }

    fn shut_down(&self, slot: usize) -> OsResult<()> {
        self.link(slot).map_or(Ok(()), |link| self.sys.shutdown(link.socket.as_fd()))
    }

    fn hung_up(&mut self, reactor: &mut Reactor<S>, slot: usize) {
        // Once: each change reports the hang-up again, so that one change an event would go round without a pause until
        // the exit report comes.
        if let Some(link) = &mut self.by_slot[slot]
            && !std::mem::replace(&mut link.hung_up, true)
        {
            // Edge-triggered, so that a hang-up, which cannot be masked, is not reported for ever. Fails only for a
            // descriptor that is not registered.
            let _ = reactor.modify(link.token, link.socket.as_fd(), Interest::NONE);
        }
    }

    fn has_hung_up(&self, slot: usize) -> bool {
        self.link(slot).is_some_and(|link| link.hung_up)
    }

    fn rearm(&mut self, reactor: &mut Reactor<S>, slot: usize) -> OsResult<()> {
        match &self.by_slot[slot] {
            Some(link) => reactor.rearm(link.token, link.socket.as_fd()),
            None => Ok(()),
        }
    }

    /// Receives one packet. An empty one, which looks like the end of the conversation, costs its sender as much as one
    /// that is too large: the other end is still open.
    fn recv(&self, slot: usize, parts: &mut [IoSliceMut<'_>], wait: Wait) -> OsResult<Received> {
        let Some(link) = self.link(slot) else { return Ok(Received::Closed) };
        let received = self.sys.recv(link.socket.as_fd(), parts, wait)?;
        if received == Received::Closed {
            let mut poll = [PollFd::new(link.socket.as_fd(), Interest::READ)];
            self.sys.poll(&mut poll, Some(0))?;
            if !poll[0].is_hung_up() {
                return Ok(Received::Truncated);
            }
        }
        Ok(received)
    }

    fn link(&self, slot: usize) -> Option<&Link> {
        self.by_slot[slot].as_ref()
    }

    fn slot_of(&self, token: Token) -> Option<usize> {
        let slot = *self.by_token.get(token.index())?;
        (slot != NO_SLOT && self.by_slot[slot].as_ref()?.token == token).then_some(slot)
    }
}
