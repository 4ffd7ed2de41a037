//! The edge-triggered server: newcomers first, then whoever has waited longest, each for a stated number of parts.
//!
//! The drawings decide anew after every turn of a connection who is next. So the server asks the reactor between any two
//! turns, and keeps its own queue of those that the reactor has reported: a token that was served stands behind all others
//! there, while newcomers have a queue of their own. Nothing sleeps while either holds anybody.

use super::{Desk, Exchange, State, Step};
use crate::cli::study::message::Broken;
use crate::cli::study::plan::Transfer;
use crate::cli::study::timeline::Activity;
use crate::reactor::{Interest, Reactor, Readiness, Token};
use crate::sys::{Counting, Sys, Wait};
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};

const BOTH: Readiness = Readiness::READ.and(Readiness::WRITE);

pub(super) fn serve(desk: &mut Desk<'_>, listener: &OwnedFd, budget: Option<NonZeroU32>) -> Result<(), Broken> {
    // The listener beside a connection for each worker.
    let mut reactor = Reactor::with_sys(desk.sys.clone(), desk.plan.workers() + 1)?;
    let door = reactor.register(listener.as_fd(), Interest::READ)?;
    let budget = budget.map_or(u32::MAX, NonZeroU32::get);
    let mut hall = Hall { reactor, connections: Vec::new(), newcomers: VecDeque::new(), waiting: VecDeque::new() };
    while !desk.is_over() {
        hall.look(desk, door, listener)?;
        if let Some(token) = hall.newcomers.pop_front().or_else(|| hall.waiting.pop_front()) {
            hall.turn(desk, token, budget)?;
        }
    }
    hall.reactor.deregister(door, listener.as_fd())?;
    Ok(())
}

/// One place for each token's index.
struct Connection {
    token: Token,
    exchange: Exchange,
    /// In one of the two queues.
    queued: bool,
}

struct Hall {
    reactor: Reactor<Counting>,
    connections: Vec<Option<Connection>>,
    newcomers: VecDeque<Token>,
    waiting: VecDeque<Token>,
}

impl Hall {
    /// Takes in what the kernel has to report; sleeps for it if there is nothing else to do.
    fn look(&mut self, desk: &mut Desk<'_>, door: Token, listener: &OwnedFd) -> Result<(), Broken> {
        if self.newcomers.is_empty() && self.waiting.is_empty() {
            let start_ns = desk.now_ns();
            self.reactor.wait(None)?;
            desk.idle(Activity::Free, start_ns)?;
        } else {
            self.reactor.wait(Some(0))?;
        }
        while let Some((token, readiness)) = self.reactor.next_ready() {
            if token == door {
                while let Some(socket) = desk.sys.accept(listener.as_fd())? {
                    self.admit(desk, socket)?;
                }
                self.reactor.exhausted(door, BOTH);
            } else {
                self.enqueue(desk, token, readiness);
            }
        }
        Ok(())
    }

    fn admit(&mut self, desk: &mut Desk<'_>, socket: OwnedFd) -> Result<(), Broken> {
        let exchange = desk.open(socket)?;
        let token = self.reactor.register(exchange.socket.as_fd(), Interest::READ)?;
        // With slow peers nothing has come yet, and the reactor will say when it has.
        let queued = desk.plan.transfer == Transfer::Cpu;
        if queued {
            self.newcomers.push_back(token);
        }
        if self.connections.len() <= token.index() {
            self.connections.resize_with(token.index() + 1, || None);
        }
        self.connections[token.index()] = Some(Connection { token, exchange, queued });
        Ok(())
    }

    /// Queues a connection that is ready for what it does next; what it is ready for besides is no news.
    fn enqueue(&mut self, desk: &Desk<'_>, token: Token, readiness: Readiness) {
        let Some(Some(connection)) = self.connections.get_mut(token.index()) else { return };
        let wanted = match connection.exchange.state {
            State::Writing(_) if desk.plan.transfer == Transfer::Wait => Readiness::WRITE,
            _ => Readiness::READ,
        };
        let idle = readiness.without(wanted);
        if !idle.is_none() {
            self.reactor.exhausted(token, idle);
        }
        if readiness != idle && !connection.queued {
            connection.queued = true;
            match connection.exchange.read {
                0 => self.newcomers.push_back(token),
                _ => self.waiting.push_back(token),
            }
        }
    }

    /// One connection's turn: at most `budget` parts.
    fn turn(&mut self, desk: &mut Desk<'_>, token: Token, budget: u32) -> Result<(), Broken> {
        let place = &mut self.connections[token.index()];
        let connection = place.as_mut().filter(|c| c.token == token).ok_or(Broken::Rule("a turn for nobody"))?;
        connection.queued = false;
        for _ in 0..budget {
            let exchange = &mut connection.exchange;
            let before = exchange.state;
            if desk.step(exchange, Wait::Never)? == Step::WouldBlock {
                self.reactor.exhausted(token, BOTH);
                return Ok(());
            }
            match (before, exchange.state) {
                (_, State::Over) => {
                    self.reactor.deregister(token, exchange.socket.as_fd())?;
                    if let Some(connection) = place.take() {
                        desk.close(connection.exchange);
                    }
                    return Ok(());
                }
                (State::Reading, State::Writing(_)) if desk.plan.transfer == Transfer::Wait => {
                    self.reactor.modify(token, exchange.socket.as_fd(), Interest::READ.and(Interest::WRITE))?;
                }
                _ => {}
            }
        }
        // It met no would-block, so it may have more, and waits for its next turn behind all others.
        connection.queued = true;
        self.waiting.push_back(token);
        Ok(())
    }
}
