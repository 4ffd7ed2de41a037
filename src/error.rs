//! Errors of the pool itself. What becomes of a job is an [`crate::Outcome`], not an error.

use crate::sys::OsError;
use std::fmt;

/// Why the pool could not do what it was asked.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// `spawn` in a process with other threads: a forked child would inherit their locks in whatever state they are.
    OtherThreads {
        /// How many threads the process has.
        count: usize,
    },
    /// A setting of the builder that cannot work.
    Config(String),
    /// This program, executed again by [`crate::Pool::exec_builder`], does not serve as a nursery: why.
    Nursery(String),
    /// A system call failed.
    Os {
        /// What the pool was doing.
        doing: &'static str,
        /// The call and its error.
        source: OsError,
    },
    /// The call would wait for outcomes that only its own caller can take; take them with `poll` first.
    Undelivered,
    /// The pool takes no more jobs.
    Draining,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self { kind }
    }

    pub(crate) fn os(doing: &'static str) -> impl FnOnce(OsError) -> Self {
        move |source| Self { kind: ErrorKind::Os { doing, source } }
    }

    /// What went wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            ErrorKind::OtherThreads { count } => write!(
                f,
                "cannot fork workers: this process has {count} threads; spawn the pool first, before any other thread starts, or use Pool::exec_builder"
            ),
            ErrorKind::Config(what) => f.write_str(what),
            ErrorKind::Nursery(why) => write!(f, "starting the nursery: {why}"),
            ErrorKind::Os { doing, source } => write!(f, "{doing}: {source}"),
            ErrorKind::Undelivered => f.write_str(
                "the pool is full of outcomes that nobody has taken; take them with poll, then submit again",
            ),
            ErrorKind::Draining => f.write_str("the pool is draining and takes no more jobs"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            ErrorKind::Os { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// A job that was not admitted, given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrySubmitError<J> {
    /// No room now: take outcomes with `poll`, then try again.
    Full(J),
    /// The pool takes no more jobs.
    Draining(J),
}

impl<J> TrySubmitError<J> {
    /// The job.
    pub fn into_job(self) -> J {
        match self {
            TrySubmitError::Full(job) | TrySubmitError::Draining(job) => job,
        }
    }
}

impl<J> fmt::Display for TrySubmitError<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySubmitError::Full(_) => "the pool is full",
            TrySubmitError::Draining(_) => "the pool is draining and takes no more jobs",
        })
    }
}

impl<J: fmt::Debug> std::error::Error for TrySubmitError<J> {}
