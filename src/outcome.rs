//! What becomes of a job: exactly one [`Outcome`] each.

use crate::sys::signal_name;
use std::fmt;
use std::time::Duration;

/// The one outcome of a job; `B` is the body: borrowed in a callback, owned from an iterator.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome<B> {
    /// The handler's reply.
    Done(B),
    /// The handler returned an error, or panicked. The worker lives on.
    Failed {
        /// The error's or the panic's text.
        message: String,
        /// Whether it was a panic.
        panicked: bool,
    },
    /// The worker died while it ran this job.
    Crashed(Crash),
    /// The job ran longer than its deadline and its worker was killed.
    TimedOut {
        /// The deadline that it broke.
        after: Duration,
    },
    /// Somebody asked for this.
    Cancelled {
        /// Who, in words.
        why: String,
    },
    /// The job was never run and never will be.
    Rejected {
        /// Why not.
        reason: Reason,
    },
}

/// How a worker died under a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// What ended it.
    pub cause: CrashCause,
    /// Whether it was the kernel's answer to a lack of memory; `None` when nobody can tell.
    pub oom: Option<bool>,
}

/// What ended a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CrashCause {
    /// A signal.
    Signal(i32),
    /// It exited with this code.
    Code(i32),
    /// Several workers in a row died with this job next in line, before it could start.
    NeverStarted,
    /// The worker is gone and the process that would know how is gone too.
    Unknown,
}

/// Why a job was not run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The body is larger than the pool's limit. Units: bytes.
    TooLarge {
        /// The body's size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The header lines are larger than the limit. Units: bytes.
    HeadersTooLarge {
        /// The block's size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A header line that could not be read back: an empty key, a colon or newline in it, a newline in the value.
    BadHeader,
    /// No handler has this name.
    UnknownHandler(String),
    /// The pool takes no more jobs.
    Draining,
    /// The pool is full of outcomes that nobody has taken.
    NoRoom,
    /// It had waited as long as it may, and not started.
    QueueTimeout {
        /// How long it was allowed to wait.
        after: std::time::Duration,
    },
    /// No worker is left and none can be started; why.
    NoWorkers(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::TooLarge { size, limit } => {
                write!(f, "job of {size} bytes is too large, the limit is {limit} bytes")
            }
            Reason::HeadersTooLarge { size, limit } => {
                write!(f, "headers of {size} bytes are too large, the limit is {limit} bytes")
            }
            Reason::BadHeader => {
                f.write_str("a header's key is empty or holds a colon or newline, or its value a newline")
            }
            Reason::UnknownHandler(name) => write!(f, "unknown handler '{name}'"),
            Reason::Draining => f.write_str("the pool is draining"),
            Reason::NoRoom => f.write_str("the pool is full of outcomes that nobody has taken"),
            Reason::QueueTimeout { after } => write!(f, "not started within {after:?}"),
            Reason::NoWorkers(why) => write!(f, "no workers: {why}"),
        }
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oom == Some(true) {
            return f.write_str("out of memory");
        }
        match self.cause {
            CrashCause::Signal(n) => write!(f, "signal {n} ({})", signal_name(n).unwrap_or("unnamed")),
            CrashCause::Code(n) => write!(f, "exit code {n}"),
            CrashCause::NeverStarted => f.write_str("never started"),
            CrashCause::Unknown => f.write_str("cause unknown"),
        }
    }
}

impl<B> Outcome<B> {
    /// Whether the handler's reply is here.
    pub fn is_done(&self) -> bool {
        matches!(self, Outcome::Done(_))
    }

    /// Whether another try could end otherwise.
    pub fn retryable(&self) -> bool {
        match self {
            Outcome::Failed { .. } | Outcome::Crashed(_) | Outcome::TimedOut { .. } => true,
            Outcome::Rejected { reason } => {
                matches!(reason, Reason::NoWorkers(_) | Reason::Draining | Reason::NoRoom | Reason::QueueTimeout { .. })
            }
            Outcome::Done(_) | Outcome::Cancelled { .. } => false,
        }
    }

    /// The reply, if there is one.
    pub fn done(self) -> Option<B> {
        match self {
            Outcome::Done(body) => Some(body),
            _ => None,
        }
    }

    /// The same outcome, its body borrowed.
    pub(crate) fn as_ref(&self) -> Outcome<&[u8]>
    where
        B: AsRef<[u8]>,
    {
        match self {
            Outcome::Done(body) => Outcome::Done(body.as_ref()),
            Outcome::Failed { message, panicked } => Outcome::Failed { message: message.clone(), panicked: *panicked },
            Outcome::Crashed(crash) => Outcome::Crashed(*crash),
            Outcome::TimedOut { after } => Outcome::TimedOut { after: *after },
            Outcome::Cancelled { why } => Outcome::Cancelled { why: why.clone() },
            Outcome::Rejected { reason } => Outcome::Rejected { reason: reason.clone() },
        }
    }

    /// The same outcome with another form of body.
    pub fn map<C>(self, f: impl FnOnce(B) -> C) -> Outcome<C> {
        match self {
            Outcome::Done(body) => Outcome::Done(f(body)),
            Outcome::Failed { message, panicked } => Outcome::Failed { message, panicked },
            Outcome::Crashed(crash) => Outcome::Crashed(crash),
            Outcome::TimedOut { after } => Outcome::TimedOut { after },
            Outcome::Cancelled { why } => Outcome::Cancelled { why },
            Outcome::Rejected { reason } => Outcome::Rejected { reason },
        }
    }
}

/// In words; for an unsuccessful job what stands after its number in `seqpool run`'s report.
impl<B> fmt::Display for Outcome<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done(_) => f.write_str("done"),
            Outcome::Failed { message, panicked: false } => write!(f, "failed: {message}"),
            Outcome::Failed { message, panicked: true } => write!(f, "failed: panicked: {message}"),
            Outcome::Crashed(crash) => write!(f, "crashed: {crash}"),
            Outcome::TimedOut { after } => write!(f, "timed out after {after:?}"),
            Outcome::Cancelled { why } => write!(f, "cancelled: {why}"),
            Outcome::Rejected { reason } => write!(f, "rejected: {reason}"),
        }
    }
}
