//! Both servers, and what they have in common: jobs, parts and records.
//!
//! # An exchange
//! A worker connects, which is how it says that it has something to say: the queue of connections is first come, first
//! served. The server accepts, reads the message, writes a job or says that there is none, and the connection is closed.
//!
//! - [`Transfer::Cpu`]: the parts are there as soon as the worker has connected, for they do not move by themselves; the
//!   server works on each that it reads, and before each that it writes.
//! - [`Transfer::Wait`]: the server says go, and from then on the peer delivers the parts in its own time. It takes the
//!   parts of a job likewise: one part fills the send buffer, so the next can be sent when the last has been taken; that
//!   the very last has been taken the peer says by closing. So a blocking server sleeps inside `send`, and a non-blocking
//!   one until there is room, as they do with a real slow peer; an acknowledgement would have both wait for input.
//! - [`Transfer::Mixed`]: before each part the server says go, the peer lets its share of the part's time pass, and sends the
//!   part or says that it is ready for one; then the server works. The peer's time counts from when the part before was
//!   over. Had the server slept for that one, it was over as long after it was due as the server's work takes: that wake-ups
//!   are late must not add up, as it does not with a message's absolute deadlines.

mod blocking;
mod nonblocking;

use super::message::{Broken, Composer, PACKET_SIZE, SEND_BUFFER_SIZE, Said, go, no_job, parse};
use super::plan::{HANDLING_NS_MAX, Plan, Server, Supply, Transfer};
use super::record::{Record, Records};
use super::timeline::{Activity, Lane};
use crate::frame::Kind;
use crate::sys::{Call, Counting, Received, Role, Sent, Sys, Wait};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};

/// Serves every worker until each has been told that there is no job. Runs in a process of its own.
pub(super) fn serve(plan: &Plan, listener: &OwnedFd, records: &Records) -> Result<(), Broken> {
    let mut desk = Desk::new(plan, records)?;
    let calls = desk.sys.counts();
    desk.start();
    match plan.server {
        Server::Blocking => blocking::serve(&mut desk, listener)?,
        Server::Nonblocking { parts_per_turn } => nonblocking::serve(&mut desk, listener, parts_per_turn)?,
    }
    let calls = desk.sys.counts().since(&calls);
    // Asking for a send buffer is two calls, and closing is none that is counted.
    let uncounted = calls.of(Role::Host, Call::SetSendBuffer) + desk.closed;
    records.set_system_calls(calls.total(Role::Host) + uncounted);
    Ok(())
}

/// One connection.
struct Exchange {
    socket: OwnedFd,
    /// Known when the first part has been read.
    worker: Option<u16>,
    read: u32,
    sent: u32,
    state: State,
    /// When the part that is on its way could begin, and, of a mixed transfer, when the peer's time for it is over. Units:
    /// nanoseconds.
    since_ns: u64,
    due_ns: u64,
}

/// Where the time of a part went.
struct Spent {
    /// What the peer took for itself, if that is not told apart.
    apart: Option<(u64, u64)>,
    start_ns: u64,
    end_ns: u64,
    /// When the next part could begin.
    over_ns: u64,
}

impl Exchange {
    fn worker(&self) -> Result<u16, Broken> {
        self.worker.ok_or(Broken::Rule("a job for nobody"))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    /// The job that is written.
    Writing(u32),
    /// All is sent; the peer will have taken it when it closes.
    Draining(u32),
    Over,
}

/// What became of an attempt to move an exchange by a part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Moved,
    WouldBlock,
}

/// What a worker is known to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Given {
    NotRegistered,
    Job(u32),
    Nothing,
}

struct Desk<'a> {
    plan: &'a Plan,
    sys: Counting,
    records: &'a Records,
    composer: Composer,
    packet: Box<[u8]>,
    given: Vec<Given>,
    /// Jobs that each worker has been given.
    rounds: Vec<u32>,
    next_job: u32,
    done: u64,
    /// Workers that have been told that there is no job.
    released: usize,
    closed: u64,
    /// When the server last had nothing to do, and until when it worked, or had nothing to do. Units: nanoseconds.
    idle_ns: (u64, u64),
    worked_until_ns: u64,
}

impl<'a> Desk<'a> {
    fn new(plan: &'a Plan, records: &'a Records) -> Result<Self, Broken> {
        Ok(Self {
            plan,
            sys: Counting::new()?,
            records,
            composer: Composer::new(plan.parts),
            packet: vec![0; PACKET_SIZE].into(),
            given: vec![Given::NotRegistered; plan.workers()],
            rounds: vec![0; plan.workers()],
            next_job: 0,
            done: 0,
            released: 0,
            closed: 0,
            idle_ns: (0, 0),
            worked_until_ns: 0,
        })
    }

    fn now_ns(&self) -> u64 {
        self.sys.now_ns()
    }

    /// The run begins.
    fn start(&mut self) {
        self.worked_until_ns = self.now_ns();
        self.records.set_started_ns(self.worked_until_ns);
    }

    /// Whether every worker has been told that there is nothing more to do.
    fn is_over(&self) -> bool {
        self.released == self.plan.workers()
    }

    /// Notes that the server was inside a call that blocks, from `start_ns` until now.
    fn blocked(&mut self, start_ns: u64) -> Result<(), Broken> {
        let works = self.plan.transfer != Transfer::Wait;
        if works && self.now_ns() - start_ns <= HANDLING_NS_MAX {
            Ok(())
        } else {
            self.idle(Activity::Blocked, start_ns)
        }
    }

    /// Notes that the server had nothing to do, from `start_ns` until now.
    fn idle(&mut self, activity: Activity, start_ns: u64) -> Result<(), Broken> {
        let end_ns = self.now_ns();
        (self.idle_ns, self.worked_until_ns) = ((start_ns, end_ns), end_ns);
        self.records.push(&Record { lane: Lane::Server, activity, job: 0, start_ns, end_ns })
    }

    /// Begins an exchange on a connection that has just been accepted.
    fn open(&mut self, socket: OwnedFd) -> Result<Exchange, Broken> {
        if self.plan.transfer == Transfer::Wait {
            self.sys.set_send_buffer(socket.as_fd(), SEND_BUFFER_SIZE)?;
        }
        let now_ns = self.now_ns();
        let mut exchange = Exchange {
            socket,
            worker: None,
            read: 0,
            sent: 0,
            state: State::Reading,
            since_ns: now_ns,
            due_ns: now_ns,
        };
        if self.plan.transfer != Transfer::Cpu {
            // The peer's deadlines count from here, whenever it wakes up.
            self.go_ahead(&mut exchange, 0, now_ns)?;
        }
        Ok(exchange)
    }

    /// Tells the peer since when part `part` is awaited.
    fn go_ahead(&self, exchange: &mut Exchange, part: u32, at_ns: u64) -> Result<(), Broken> {
        (exchange.since_ns, exchange.due_ns) = (at_ns, at_ns + self.plan.shares_ns(part).0);
        self.send_bare(&exchange.socket, &go(at_ns))
    }

    fn is_mixed(&self) -> bool {
        matches!(self.plan.transfer, Transfer::Mixed { .. })
    }

    fn send_bare(&self, socket: &OwnedFd, frame: &[u8]) -> Result<(), Broken> {
        match self.sys.send(socket.as_fd(), &[IoSlice::new(frame)], Wait::Never)? {
            Sent::All => Ok(()),
            Sent::Closed => Err(Broken::Rule("a worker closed its connection before it was served")),
            Sent::WouldBlock | Sent::NoMemory => Err(Broken::Rule("no room for a frame in an empty send buffer")),
        }
    }

    /// Moves an exchange by a part. [`Wait::UntilReady`]: sleeps for it, and notes that.
    fn step(&mut self, exchange: &mut Exchange, wait: Wait) -> Result<Step, Broken> {
        match exchange.state {
            State::Reading => self.read(exchange, wait),
            State::Writing(job) => self.write(exchange, job, wait),
            State::Draining(job) => self.drain(exchange, job, wait),
            State::Over => Ok(Step::Moved),
        }
    }

    fn receive(&mut self, exchange: &Exchange, wait: Wait) -> Result<Received, Broken> {
        let start_ns = self.now_ns();
        let received = self.sys.recv(exchange.socket.as_fd(), &mut [IoSliceMut::new(&mut self.packet)], wait)?;
        if wait == Wait::UntilReady {
            self.blocked(start_ns)?;
        }
        Ok(received)
    }

    fn read(&mut self, exchange: &mut Exchange, wait: Wait) -> Result<Step, Broken> {
        let size = match self.receive(exchange, wait)? {
            Received::Packet(size) => size,
            Received::WouldBlock => return Ok(Step::WouldBlock),
            _ => return Err(Broken::Rule("a worker closed its connection within a message")),
        };
        let Said::Part { kind, id, part, stamps } = parse(&self.packet[..size], self.plan.parts)? else {
            return Err(Broken::Rule("a worker sent something else than a message"));
        };
        if part != exchange.read {
            return Err(Broken::Rule("parts out of order"));
        }
        if let Some(stamps) = stamps {
            exchange.worker = Some(stamps.worker);
        }
        let worker = exchange.worker.ok_or(Broken::Rule("a message from nobody"))?;
        let given = *self.given.get(usize::from(worker)).ok_or(Broken::Rule("a message from an unknown worker"))?;
        match (kind, given) {
            (Kind::Hello, Given::NotRegistered) => {}
            (Kind::Result, Given::Job(job)) if id == u64::from(job) => {}
            _ => return Err(Broken::Rule("a message that is not this worker's turn")),
        }
        if let (Some(stamps), Given::Job(job)) = (stamps, given) {
            let (start_ns, end_ns) = (stamps.started_ns, stamps.ended_ns);
            self.note(worker, Activity::Compute, job, start_ns, end_ns)?;
        }
        let spent = self.spend(exchange, part);
        let job = if let Given::Job(job) = given { job } else { 0 };
        self.note_spent(worker, Activity::Read, job, &spent)?;
        exchange.since_ns = spent.end_ns;
        exchange.read += 1;
        if exchange.read == self.plan.parts {
            self.answer(exchange, worker, given, spent.end_ns)?;
        }
        if self.is_mixed() && exchange.state != State::Over {
            self.go_ahead(exchange, exchange.read % self.plan.parts, spent.over_ns)?;
        }
        Ok(Step::Moved)
    }

    fn note_spent(&mut self, worker: u16, activity: Activity, job: u32, spent: &Spent) -> Result<(), Broken> {
        if let Some((start_ns, end_ns)) = spent.apart {
            self.note(worker, activity, job, start_ns, end_ns)?;
        }
        self.note(worker, activity, job, spent.start_ns, spent.end_ns)
    }

    fn note(&mut self, worker: u16, activity: Activity, job: u32, start_ns: u64, end_ns: u64) -> Result<(), Broken> {
        self.records.push(&Record { lane: Lane::Worker(worker), activity, job, start_ns, end_ns })
    }

    /// When the part that has come, or is to be sent, began and ended; the server works on it first if that is its kind
    /// of transfer.
    fn spend(&mut self, exchange: &Exchange, part: u32) -> Spent {
        let now_ns = self.now_ns();
        let Exchange { since_ns, due_ns, .. } = *exchange;
        if self.plan.transfer == Transfer::Wait {
            return Spent { apart: None, start_ns: since_ns, end_ns: now_ns, over_ns: now_ns };
        }
        let (until_ns, (_, work_ns)) = (self.worked_until_ns, self.plan.shares_ns(part));
        let slept = (self.idle_ns.0..=self.idle_ns.1).contains(&due_ns) && self.idle_ns.1 == until_ns;
        let start_ns = if now_ns.saturating_sub(until_ns) <= HANDLING_NS_MAX { until_ns } else { now_ns };
        let end_ns = start_ns + work_ns;
        while self.now_ns() < end_ns {
            std::hint::spin_loop();
        }
        self.worked_until_ns = end_ns;
        match self.is_mixed() {
            false => Spent { apart: None, start_ns, end_ns, over_ns: end_ns },
            true if slept => Spent { apart: None, start_ns: since_ns, end_ns, over_ns: due_ns + work_ns },
            true => Spent { apart: Some((since_ns, due_ns)), start_ns, end_ns, over_ns: end_ns },
        }
    }

    /// The whole message has been read: books it, and finds the worker its next job.
    fn answer(&mut self, exchange: &mut Exchange, worker: u16, given: Given, now_ns: u64) -> Result<(), Broken> {
        if given != Given::NotRegistered {
            self.done += 1;
            self.records.set_done(self.done);
            if self.done == self.plan.jobs() {
                self.records.set_ended_ns(now_ns);
            }
        }
        let worker = usize::from(worker);
        let left = match self.plan.supply {
            Supply::Rounds => self.rounds[worker] < self.plan.rounds,
            Supply::Queue => u64::from(self.next_job) < self.plan.jobs(),
        };
        if left {
            self.given[worker] = Given::Job(self.next_job);
            self.rounds[worker] += 1;
            exchange.state = State::Writing(self.next_job);
            self.next_job += 1;
        } else {
            self.given[worker] = Given::Nothing;
            self.released += 1;
            exchange.state = State::Over;
            self.send_bare(&exchange.socket, &no_job())?;
        }
        Ok(())
    }

    fn write(&mut self, exchange: &mut Exchange, job: u32, wait: Wait) -> Result<Step, Broken> {
        let part = exchange.sent;
        if self.is_mixed() {
            match self.receive(exchange, wait)? {
                Received::Packet(size) if matches!(parse(&self.packet[..size], self.plan.parts)?, Said::Go { .. }) => {}
                Received::WouldBlock => return Ok(Step::WouldBlock),
                _ => return Err(Broken::Rule("a worker did not ask for its job")),
            }
        }
        let works = self.plan.transfer != Transfer::Wait;
        let spent = if works { Some(self.spend(exchange, part)) } else { None };
        let packet = self.composer.part(Kind::Job, job.into(), part, None);
        let start_ns = self.sys.now_ns();
        let sent = self.sys.send(exchange.socket.as_fd(), &[IoSlice::new(packet)], wait)?;
        if wait == Wait::UntilReady {
            self.blocked(start_ns)?;
        }
        match sent {
            Sent::All => {}
            // Work would be done twice.
            Sent::WouldBlock if works => return Err(Broken::Rule("no room for a job in the send buffer")),
            Sent::WouldBlock => return Ok(Step::WouldBlock),
            Sent::NoMemory => return Err(Broken::Rule("the kernel has no memory for a packet")),
            Sent::Closed => return Err(Broken::Rule("a worker closed its connection before it had its job")),
        }
        exchange.sent += 1;
        let all_sent = exchange.sent == self.plan.parts;
        if let Some(spent) = spent {
            self.note_spent(exchange.worker()?, Activity::Write, job, &spent)?;
            exchange.state = if all_sent { State::Over } else { exchange.state };
            if self.is_mixed() && !all_sent {
                self.go_ahead(exchange, exchange.sent, spent.over_ns)?;
            }
            return Ok(Step::Moved);
        }
        // There was room for this part because the one before it has been taken.
        if part > 0 {
            let now_ns = self.now_ns();
            self.note_written(exchange, job, exchange.since_ns, now_ns)?;
            exchange.since_ns = now_ns;
        }
        exchange.state = if all_sent { State::Draining(job) } else { exchange.state };
        Ok(Step::Moved)
    }

    fn note_written(&mut self, exchange: &Exchange, job: u32, start_ns: u64, end_ns: u64) -> Result<(), Broken> {
        self.note(exchange.worker()?, Activity::Write, job, start_ns, end_ns)
    }

    fn drain(&mut self, exchange: &mut Exchange, job: u32, wait: Wait) -> Result<Step, Broken> {
        match self.receive(exchange, wait)? {
            Received::WouldBlock => return Ok(Step::WouldBlock),
            Received::Closed => {}
            _ => return Err(Broken::Rule("a worker did not take its job")),
        }
        let now_ns = self.now_ns();
        self.note_written(exchange, job, exchange.since_ns, now_ns)?;
        exchange.state = State::Over;
        Ok(Step::Moved)
    }

    fn close(&mut self, exchange: Exchange) {
        drop(exchange);
        self.closed += 1;
    }
}
