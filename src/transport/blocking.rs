//! One peer at a time, as in the first algorithm of the original job server: give a worker its job, wait in `recv` for
//! its result, give it the next, turn to the next worker. For study and comparison.
//!
//! A blocking receive lasts [`BLOCKING_SLICE`] at most, so that deadlines, deaths and other events are still served;
//! after it the host waits for the same peer again, whoever else has finished.

use super::{Links, Transport};
use crate::limits::BLOCKING_SLICE;
use crate::reactor::{Reactor, Token};
use crate::sys::{Interest, OsResult, Readiness, Received, Sent, Sys, Wait};
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};

pub(crate) struct Blocking<S: Sys> {
    links: Links<S>,
    /// Slots in the order in which they got their jobs; the first one's result is waited for.
    order: VecDeque<usize>,
    /// Whether the next receive may block, and on whom.
    turn: Option<usize>,
    may_block: bool,
}

impl<S: Sys> Blocking<S> {
    pub(crate) fn new(sys: S, slots: usize) -> Self {
        // Level-triggered and for an outer loop only: an embedding program must see that the pool has something to do.
        let links = Links::new(sys, slots, Interest::READ.and(Interest::LEVEL));
        Self { links, order: VecDeque::with_capacity(slots), turn: None, may_block: false }
    }
}

impl<S: Sys> Transport<S> for Blocking<S> {
    fn window_jobs_max(&self) -> usize {
        1
    }

    fn attach(&mut self, reactor: &mut Reactor<S>, slot: usize, socket: OwnedFd) -> OsResult<()> {
        self.links.sys.set_socket_timeouts(socket.as_fd(), BLOCKING_SLICE.as_nanos() as u64)?;
        self.links.attach(reactor, slot, socket)
    }

    fn detach(&mut self, reactor: &mut Reactor<S>, slot: usize) {
        self.order.retain(|&s| s != slot);
        self.links.detach(reactor, slot);
    }

    fn packet_size_max(&self, slot: usize) -> usize {
        self.links.link(slot).map_or(crate::limits::PACKET_SIZE_MIN, |l| l.packet_size_max)
    }

    fn send(&mut self, slot: usize, parts: &[IoSlice<'_>]) -> OsResult<Sent> {
        let Some(link) = self.links.link(slot) else { return Ok(Sent::Closed) };
        let sent = self.links.sys.send(link.socket.as_fd(), parts, Wait::UntilReady)?;
        if sent == Sent::All && !self.order.contains(&slot) {
            self.order.push_back(slot);
        }
        Ok(sent)
    }

    fn recv(&mut self, slot: usize, parts: &mut [IoSliceMut<'_>]) -> OsResult<Received> {
        // One blocking receive a turn; what else is there is taken without waiting.
        let wait =
            if std::mem::take(&mut self.may_block) && self.turn == Some(slot) { Wait::UntilReady } else { Wait::Never };
        self.links.recv(slot, parts, wait)
    }

    fn wait(
        &mut self,
        reactor: &mut Reactor<S>,
        timeout_ns: Option<u64>,
        busy: &mut dyn FnMut(usize) -> bool,
    ) -> OsResult<()> {
        // One that has hung up has nothing more to say: its exit report comes through the reactor.
        while self.order.front().is_some_and(|&slot| !busy(slot) || self.links.has_hung_up(slot)) {
            self.order.pop_front();
        }
        self.turn = self.order.front().copied();
        self.may_block = self.turn.is_some() && timeout_ns != Some(0);
        // The blocking receive that follows is the wait; without a peer to wait for, the reactor's is.
        reactor.wait(if self.may_block { Some(0) } else { timeout_ns })
    }

    fn slot_of(&self, token: Token) -> Option<usize> {
        self.links.slot_of(token)
    }

    fn next_in_turn(&mut self) -> Option<usize> {
        self.turn
    }

    fn exhausted(&mut self, reactor: &mut Reactor<S>, slot: usize) {
        if self.turn == Some(slot) {
            self.turn = None;
        }
        if let Some(link) = self.links.link(slot) {
            reactor.exhausted(link.token, Readiness::READ.and(Readiness::WRITE));
        }
    }

    fn shut_down(&mut self, slot: usize) -> OsResult<()> {
        self.links.shut_down(slot)
    }

    fn hung_up(&mut self, reactor: &mut Reactor<S>, slot: usize) {
        self.exhausted(reactor, slot);
        self.links.hung_up(reactor, slot);
    }

    fn has_hung_up(&self, slot: usize) -> bool {
        self.links.has_hung_up(slot)
    }

    fn rearm(&mut self, reactor: &mut Reactor<S>, slot: usize) -> OsResult<()> {
        self.links.rearm(reactor, slot)
    }

    fn want_write(&mut self, reactor: &mut Reactor<S>, slot: usize, want: bool) -> OsResult<()> {
        self.links.want_write(reactor, slot, want)
    }
}
