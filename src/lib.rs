//! A crash-proof process pool for Linux: forked workers, `SOCK_SEQPACKET` Unix sockets, an edge-triggered epoll reactor,
//! fixed rings, frames parsed in place.
//!
//! ```text
//! host process (yours)                 nursery                       worker i
//!   Pool ── reactor (epoll, ET)  ◄──►  one thread, small;    ──►     forked; loops over jobs;
//!    │      scheduler (pure)           forks, reaps, reports         never returns into your code
//!    │      slot i: socket + rings ◄────── SEQPACKET + shared slot ──────►
//! ```
//!
//! Every submitted job gets exactly one [`Outcome`], whatever dies. A job that never started when its worker died runs
//! elsewhere; one that started is not run again. Jobs are sent in batches and still timed, moved, cancelled and blamed
//! one by one (see [`claim`]).
//!
//! Begin with [`Pool::builder`]; spawn the pool first, before other threads start and while the process is small. A
//! program that cannot do that has [`init`] and [`Pool::exec_builder`].
//!
//! ```standalone_crate
//! use seqpool::{Outcome, Pool};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut pool = Pool::builder()
//!     .workers(2)
//!     .handler("add one", |request, reply| {
//!         let n: u64 = std::str::from_utf8(request.body())?.parse()?;
//!         reply.extend_from_slice((n + 1).to_string().as_bytes());
//!         Ok(())
//!     })
//!     .spawn()?;
//! let outcomes: Vec<_> = pool.map("add one", ["1", "x", "41"]).collect();
//! assert_eq!(outcomes[0], Outcome::Done(b"2".to_vec()));
//! assert_eq!(outcomes[1].to_string(), "failed: invalid digit found in string");
//! assert_eq!(outcomes[2], Outcome::Done(b"42".to_vec()));
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

mod assembly;
mod chaos;
pub mod claim;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod error;
pub mod frame;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod limits;
mod nursery;
#[cfg(feature = "cli")]
mod order;
mod outcome;
pub mod pool;
mod prints;
pub mod reactor;
pub mod ring;
mod scheduler;
pub mod slot;
mod spin;
mod sync;
pub mod sys;
mod transport;
mod worker;

pub use chaos::{Chaos, Fate};
pub use error::{Error, ErrorKind, TrySubmitError};
pub use outcome::{Crash, CrashCause, Outcome, Reason};
pub use pool::{
    Builder, Capsule, Completion, HandlerId, HandlerRef, Health, Job, JobLimits, JobUsage, Pool, Receipt, SlotHealth,
    SlotState, Stats, Submitter, Ticket, init,
};
pub use prints::Prints;
pub use sys::Resource;
pub use transport::TransportKind;
pub use worker::{HandlerError, MemoryLimitKind, Reply, Request, WorkerInfo};

/// The README's program runs as it stands.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// So does what is shown there.
#[cfg(doctest)]
#[doc = include_str!("../docs/fork-safety.md")]
struct ForkSafety;
