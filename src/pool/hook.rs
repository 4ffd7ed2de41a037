//! A timestamp at every step of a job's life; free when nobody asks.

use super::table::Ticket;

/// One step of a job's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The pool admitted it. At the same time as `Placed` where the two are one.
    Submitted,
    /// It was written into a slot's ring.
    Placed,
    /// Its packet left (a large job: its last fragment).
    Sent,
    /// Its handler started, by its worker's clock reading. Reported when the result arrives.
    Started,
    /// Its handler returned, by its worker's clock reading. Reported when the result arrives.
    Ended,
    /// Its result was received: the time of its packet, which may hold many.
    Received,
    /// Its outcome was delivered.
    Delivered,
    /// It was taken back from its slot before it started.
    Reclaimed,
    /// It has started and not succeeded, and is to be tried again.
    Retried,
}

/// When a step happened to which job, and in which slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub step: Step,
    /// To whom.
    pub ticket: Ticket,
    /// The job's tag.
    pub tag: u64,
    /// Where; `None` outside any slot.
    pub slot: Option<usize>,
    /// When. Units: nanoseconds of the monotonic clock, the same in host and workers.
    pub at_ns: u64,
}

/// Who is told.
pub(super) type Hook = Box<dyn FnMut(&Event) + Send>;
