//! Packed frames through the kernel: edge-triggered, non-blocking, all workers at once.

use super::{Links, Transport};
use crate::reactor::{Reactor, Token};
use crate::spin::Spin;
use crate::sys::{Interest, OsResult, Readiness, Received, Sent, Sys, Wait};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};

pub(crate) struct Seqpacket<S: Sys> {
    links: Links<S>,
    spin: Spin,
}

impl<S: Sys> Seqpacket<S> {
    pub(crate) fn new(sys: S, slots: usize) -> Self {
        Self { links: Links::new(sys, slots, Interest::READ), spin: Spin::default() }
    }
}

impl<S: Sys> Transport<S> for Seqpacket<S> {
    fn window_jobs_max(&self) -> usize {
        usize::MAX
    }

    fn attach(&mut self, reactor: &mut Reactor<S>, slot: usize, socket: OwnedFd) -> OsResult<()> {
        self.links.attach(reactor, slot, socket)
    }

    fn detach(&mut self, reactor: &mut Reactor<S>, slot: usize) {
        self.links.detach(reactor, slot);
    }

    fn packet_size_max(&self, slot: usize) -> usize {
        self.links.link(slot).map_or(crate::limits::PACKET_SIZE_MIN, |l| l.packet_size_max)
    }

    fn send(&mut self, slot: usize, parts: &[IoSlice<'_>]) -> OsResult<Sent> {
        match self.links.link(slot) {
            Some(link) => self.links.sys.send(link.socket.as_fd(), parts, Wait::Never),
            None => Ok(Sent::Closed),
        }
    }

    fn recv(&mut self, slot: usize, parts: &mut [IoSliceMut<'_>]) -> OsResult<Received> {
        self.links.recv(slot, parts, Wait::Never)
    }

    fn wait(
        &mut self,
        reactor: &mut Reactor<S>,
        timeout_ns: Option<u64>,
        busy: &mut dyn FnMut(usize) -> bool,
    ) -> OsResult<()> {
        // Spin only while an answer can come: an idle pool uses no CPU.
        if timeout_ns != Some(0) && !reactor.has_ready() && (0..self.links.by_slot.len()).any(busy) {
            let sys = self.links.sys.clone();
            let looked = self.spin.spin(&sys, timeout_ns.unwrap_or(u64::MAX), || match reactor.wait(Some(0)) {
                Ok(()) if reactor.has_ready() => Some(Ok(())),
                Ok(()) => None,
                Err(e) => Some(Err(e)),
            });
            if let Some(found) = looked {
                return found;
            }
        }
        reactor.wait(timeout_ns)
    }

    fn slot_of(&self, token: Token) -> Option<usize> {
        self.links.slot_of(token)
    }

    fn next_in_turn(&mut self) -> Option<usize> {
        None
    }

    fn exhausted(&mut self, reactor: &mut Reactor<S>, slot: usize) {
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
