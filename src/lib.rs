//! A crash-proof process pool for Linux.
#![deny(unsafe_code)]

pub mod claim;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod error;
pub mod frame;
pub mod limits;
mod nursery;
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
mod order;
mod outcome;
pub mod pool;
pub mod reactor;
pub mod ring;
mod scheduler;
pub mod slot;
mod spin;
mod sync;
pub mod sys;
mod transport;
mod worker;

pub use error::{Error, ErrorKind, TrySubmitError};
pub use outcome::{Crash, CrashCause, Outcome, Reason};
pub use pool::{Builder, Completion, HandlerId, HandlerRef, Job, Pool, Stats, Submitter, Ticket};
pub use transport::TransportKind;
pub use worker::{HandlerError, Reply, Request};
