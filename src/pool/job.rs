//! What goes in and what comes out.

use super::receipt::Receipt;
use super::table::{Label, Ticket};
use super::terms::JobLimits;
use crate::frame::push_header;
use crate::outcome::{Outcome, Reason};
use crate::prints::Printed;
use crate::worker::{self, Handlers};
use std::time::Duration;

/// A registered handler; spares the look-up of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandlerId(pub(super) u32);

/// A handler by name or by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandlerRef<'a> {
    /// By name.
    Name(&'a str),
    /// By id, from the same pool.
    Id(HandlerId),
}

impl<'a> From<&'a str> for HandlerRef<'a> {
    fn from(name: &'a str) -> Self {
        HandlerRef::Name(name)
    }
}

impl<'a> From<&'a String> for HandlerRef<'a> {
    fn from(name: &'a String) -> Self {
        HandlerRef::Name(name)
    }
}

impl From<HandlerId> for HandlerRef<'_> {
    fn from(id: HandlerId) -> Self {
        HandlerRef::Id(id)
    }
}

/// A job to be submitted: a handler, optional headers, a body. The body is copied once, into a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job<'a> {
    pub(super) handler: HandlerRef<'a>,
    pub(super) body: &'a [u8],
    pub(super) header_block: Vec<u8>,
    pub(super) bad_header: bool,
    pub(super) tag: u64,
    pub(super) limits: JobLimits,
}

impl<'a> Job<'a> {
    /// A job for this handler with this body.
    #[inline]
    pub fn new(handler: impl Into<HandlerRef<'a>>, body: &'a [u8]) -> Self {
        let handler = handler.into();
        Self { handler, body, header_block: Vec::new(), bad_header: false, tag: 0, limits: JobLimits::new() }
    }

    /// Adds a header. One that cannot be read back (an empty key, a colon or newline in it, a newline in the value)
    /// makes the job end as [`Rejected`](Outcome::Rejected).
    pub fn header(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.bad_header |= push_header(&mut self.header_block, key.as_bytes(), value.as_ref()).is_err();
        self
    }

    /// A number that comes back with the outcome.
    #[inline]
    pub fn tag(mut self, tag: u64) -> Self {
        self.tag = tag;
        self
    }

    /// How long this job may run, instead of the pool's own timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.limits.timeout = Some(timeout);
        self
    }

    /// Bounds of its own, instead of its handler's or the pool's.
    pub fn limits(mut self, limits: JobLimits) -> Self {
        self.limits = limits;
        self
    }
}

impl Job<'_> {
    /// Runs it with these handlers, in this process.
    pub(super) fn run_here(&self, mut handlers: Handlers) -> Outcome<Vec<u8>> {
        let index = match self.handler {
            HandlerRef::Id(id) => Some(id.0 as usize),
            HandlerRef::Name(name) => handlers.by_id.iter().position(|(n, _)| n == name),
        };
        match index.filter(|&index| index < handlers.by_id.len()) {
            Some(index) => worker::run_here(&mut handlers, index, &self.header_block, self.body),
            None => {
                let name = match self.handler {
                    HandlerRef::Name(name) => name.to_owned(),
                    HandlerRef::Id(id) => format!("#{}", id.0),
                };
                Outcome::Rejected { reason: Reason::UnknownHandler(name) }
            }
        }
    }
}

/// A job that is over: which one, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion<'a> {
    /// What `submit` returned for it.
    pub ticket: Ticket,
    /// The job's tag.
    pub tag: u64,
    /// Its outcome; the body is borrowed and is gone when the callback returns.
    pub outcome: Outcome<&'a [u8]>,
    /// How often it has been tried before.
    pub(super) tried: u32,
    pub(super) worker: Option<usize>,
    pub(super) run_ns: Option<u64>,
    pub(super) receipt: Option<Box<Receipt>>,
    pub(super) quarantined: bool,
    pub(super) printed: Option<Printed<&'a [u8]>>,
}

impl<'a> Completion<'a> {
    /// Of a job that is done at its first attempt, and of which nobody wants to know more.
    // Always: a completion that is moved on its way is stored and loaded again.
    #[inline(always)]
    pub(super) fn plain(label: Label, slot: usize, run_ns: u32, body: &'a [u8]) -> Self {
        Self {
            ticket: label.ticket(),
            tag: label.tag,
            outcome: Outcome::Done(body),
            tried: 0,
            worker: Some(slot),
            run_ns: Some(run_ns.into()),
            receipt: None,
            quarantined: false,
            printed: None,
        }
    }

    /// The slot of the worker that ran it; `None` when it never started.
    pub fn worker(&self) -> Option<usize> {
        self.worker
    }

    /// How often it was started: more than once only if retries were asked for.
    pub fn attempts(&self) -> u32 {
        self.tried + u32::from(self.worker.is_some())
    }

    /// Whether it crashed its worker for the last time, and its [`Capsule`](crate::Capsule) was handed out, if anybody
    /// takes them.
    pub fn is_quarantined(&self) -> bool {
        self.quarantined
    }

    /// Where its time went and what it used, if the pool was told to keep [`receipts`](crate::Builder::receipts).
    pub fn receipt(&self) -> Option<&Receipt> {
        self.receipt.as_deref()
    }

    /// How long the handler ran, as its worker measured it, up to 4.29 s; `None` when it brought no result.
    pub fn run_time(&self) -> Option<Duration> {
        self.run_ns.map(Duration::from_nanos)
    }

    /// The end of what an unsuccessful job has printed, on standard output and standard error alike, if
    /// [`Builder::prints`](crate::Builder::prints) has it captured; `None` when there is nothing. Of a job that was tried
    /// several times, what the last attempt has printed.
    pub fn printed(&self) -> Option<&'a [u8]> {
        self.printed.map(|printed| printed.bytes)
    }

    /// How many bytes the job had printed before those that were kept. Units: bytes.
    pub fn printed_cut(&self) -> u64 {
        self.printed.map_or(0, |printed| printed.cut)
    }
}

/// A completion that waits to be delivered.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) ticket: Ticket,
    pub(super) tag: u64,
    pub(super) batch: u32,
    pub(super) outcome: Outcome<Vec<u8>>,
    pub(super) tried: u32,
    pub(super) worker: Option<usize>,
    pub(super) run_ns: Option<u64>,
    pub(super) receipt: Option<Box<Receipt>>,
    pub(super) quarantined: bool,
    pub(super) printed: Option<Printed<Vec<u8>>>,
}

impl Finished {
    pub(super) fn size(&self) -> usize {
        let printed = self.printed.as_ref().map_or(0, |printed| printed.bytes.len());
        match &self.outcome {
            Outcome::Done(body) => body.len(),
            Outcome::Failed { message, .. } => message.len() + printed,
            _ => printed,
        }
    }

    pub(super) fn as_completion(&self) -> Completion<'_> {
        let outcome = match &self.outcome {
            Outcome::Done(body) => Outcome::Done(body.as_slice()),
            other => other.clone().map(|_| &[][..]),
        };
        let Self { ticket, tag, tried, worker, run_ns, quarantined, .. } = *self;
        let receipt = self.receipt.clone();
        let printed = self.printed.as_ref().map(Printed::as_ref);
        Completion { ticket, tag, outcome, tried, worker, run_ns, receipt, quarantined, printed }
    }
}
