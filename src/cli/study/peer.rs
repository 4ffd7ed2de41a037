//! A worker: announces itself, sends, takes a job, computes, and so on until there is none.

use super::message::{Broken, Composer, PACKET_SIZE, Said, Stamps, ask, parse};
use super::plan::{Compute, Plan, Transfer};
use crate::frame::Kind;
use crate::sys::{self, Linux, ListenerAddress, Received, Sent, Sys, Wait};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};

/// Its sleeps end when they should. Units: nanoseconds.
const TIMER_SLACK_NS: u64 = 1;

/// Works until there is no job; `registered` is called once the server can know of this worker.
pub(super) fn work(
    plan: &Plan,
    worker: u16,
    server: &ListenerAddress,
    registered: impl FnOnce() -> Result<(), Broken>,
) -> Result<(), Broken> {
    sys::set_timer_slack(TIMER_SLACK_NS)?;
    let mut line = Line { plan, composer: Composer::new(plan.parts), packet: vec![0; PACKET_SIZE].into() };
    let mut registered = Some(registered);
    let mut stamps = Stamps { worker, ..Stamps::default() };
    let mut message = (Kind::Hello, 0);
    loop {
        let socket = sys::connect(server)?;
        if let Some(registered) = registered.take() {
            registered()?;
        }
        let Some(job) = line.exchange(&socket, message, &stamps)? else { return Ok(()) };
        // Before it computes: it is how the server learns that the job has been taken.
        drop(socket);
        stamps.started_ns = Linux.now_ns();
        let until_ns = stamps.started_ns + plan.compute_ns[usize::from(worker)];
        match plan.compute {
            Compute::Sleep => sys::sleep_until(until_ns)?,
            Compute::Spin => {
                while Linux.now_ns() < until_ns {
                    std::hint::spin_loop();
                }
            }
        }
        stamps.ended_ns = Linux.now_ns();
        message = (Kind::Result, job);
    }
}

/// One end of the exchanges.
struct Line<'a> {
    plan: &'a Plan,
    composer: Composer,
    packet: Box<[u8]>,
}

impl Line<'_> {
    /// Sends a message and takes the next job.
    fn exchange(&mut self, socket: &OwnedFd, message: (Kind, u64), stamps: &Stamps) -> Result<Option<u64>, Broken> {
        match self.plan.transfer {
            Transfer::Cpu => {
                for part in 0..self.plan.parts {
                    self.send(socket, message, part, stamps)?;
                }
                self.take(|line, _| line.recv(socket, Wait::UntilReady))
            }
            Transfer::Wait => {
                let Some(Said::Go { at_ns }) = self.recv(socket, Wait::UntilReady)? else {
                    return Err(Broken::Rule("the server sent something else than its go-ahead"));
                };
                for part in 0..self.plan.parts {
                    sys::sleep_until(at_ns + self.plan.part_end_ns(part))?;
                    self.send(socket, message, part, stamps)?;
                }
                // The job's parts are due from then on; one that comes late delays those behind it.
                let mut from_ns = at_ns + self.plan.message_ns;
                self.take(|line, part| {
                    let due_ns = from_ns + line.plan.part_end_ns(part);
                    sys::sleep_until(due_ns)?;
                    if let Some(said) = line.recv(socket, Wait::Never)? {
                        return Ok(Some(said));
                    }
                    let said = line.recv(socket, Wait::UntilReady)?;
                    from_ns += Linux.now_ns() - due_ns;
                    Ok(said)
                })
            }
            Transfer::Mixed { .. } => {
                for part in 0..self.plan.parts {
                    let Some(Said::Go { at_ns }) = self.recv(socket, Wait::UntilReady)? else {
                        return Err(Broken::Rule("the server sent something else than its go-ahead"));
                    };
                    sys::sleep_until(at_ns + self.plan.shares_ns(part).0)?;
                    self.send(socket, message, part, stamps)?;
                }
                self.take(|line, part| match line.recv(socket, Wait::UntilReady)? {
                    Some(Said::Go { at_ns }) => {
                        sys::sleep_until(at_ns + line.plan.shares_ns(part).0)?;
                        send(socket, &ask())?;
                        line.recv(socket, Wait::UntilReady)
                    }
                    said => Ok(said),
                })
            }
        }
    }

    fn send(&mut self, socket: &OwnedFd, message: (Kind, u64), part: u32, stamps: &Stamps) -> Result<(), Broken> {
        send(socket, self.composer.part(message.0, message.1, part, Some(stamps)))
    }

    /// The parts of a job, each from `next`.
    fn take(
        &mut self,
        mut next: impl FnMut(&mut Self, u32) -> Result<Option<Said>, Broken>,
    ) -> Result<Option<u64>, Broken> {
        let mut job = None;
        for expected in 0..self.plan.parts {
            match next(self, expected)? {
                Some(Said::NoJob) if expected == 0 => return Ok(None),
                Some(Said::Part { kind: Kind::Job, id, part, .. })
                    if part == expected && *job.get_or_insert(id) == id => {}
                _ => return Err(Broken::Rule("the server sent something else than a job")),
            }
        }
        Ok(job)
    }

    /// The next packet; `None` if there is none and `wait` says not to wait for it.
    fn recv(&mut self, socket: &OwnedFd, wait: Wait) -> Result<Option<Said>, Broken> {
        match Linux.recv(socket.as_fd(), &mut [IoSliceMut::new(&mut self.packet)], wait)? {
            Received::Packet(size) => parse(&self.packet[..size], self.plan.parts).map(Some),
            Received::WouldBlock => Ok(None),
            _ => Err(Broken::Rule("the server closed the connection")),
        }
    }
}

fn send(socket: &OwnedFd, packet: &[u8]) -> Result<(), Broken> {
    match Linux.send(socket.as_fd(), &[IoSlice::new(packet)], Wait::UntilReady)? {
        Sent::All => Ok(()),
        Sent::Closed => Err(Broken::Rule("the server closed the connection within a message")),
        Sent::WouldBlock | Sent::NoMemory => Err(Broken::Rule("the kernel has no memory for a packet")),
    }
}
