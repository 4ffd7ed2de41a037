//! Pools of hosts that have threads or have grown: their nursery is this program, executed again.

use super::renew::Renewal;
use super::{Builder, Pool};
use crate::error::{Error, ErrorKind};
use crate::nursery::exec::{self, Plan, StartError};
use crate::nursery::{Nursery, Setup};
use crate::sys::Sys;
use crate::worker::Handlers;
use std::sync::OnceLock;

/// What [`init`] was given.
static SETUP: OnceLock<fn(Builder) -> Builder> = OnceLock::new();

/// Lets this program be its own nursery: call it first in `main`, then use [`Pool::exec_builder`] anywhere.
///
/// `setup` adds the handlers, and may make other settings. In the program as it was started, `init` only remembers it
/// and returns at once. When a pool executes the program again, `init` does not return: that process builds the handlers
/// and serves as the pool's nursery until the pool ends. Whatever stands before `init` in `main` runs there too.
///
/// `setup` runs in both, once for each [`Pool::exec_builder`] and once in each nursery, and must add the same handlers
/// every time. It captures nothing, so what a handler needs it finds by itself: in the environment, in files, through
/// a descriptor kept with [`Builder::keep_fd`], or in its jobs.
///
/// The first call counts.
///
/// ```standalone_crate
/// use seqpool::{Builder, Outcome, Pool};
///
/// fn handlers(pool: Builder) -> Builder {
///     pool.handler("shout", |request, reply| {
///         reply.extend_from_slice(&request.body().to_ascii_uppercase());
///         Ok(())
///     })
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     seqpool::init(handlers);
///     // Threads may run by now, and memory may be in use.
///     let busy = std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_millis(200)));
///     let mut pool = Pool::exec_builder().workers(2).spawn()?;
///     let outcomes: Vec<_> = pool.map("shout", ["a", "b"]).collect();
///     assert_eq!(outcomes, [Outcome::Done(b"A".to_vec()), Outcome::Done(b"B".to_vec())]);
///     busy.join().expect("it only sleeps");
///     Ok(())
/// }
/// ```
pub fn init(setup: fn(Builder) -> Builder) {
    let _ = SETUP.set(setup);
    if exec::is_marked() {
        exec::serve(|| {
            let Builder { handlers, on_start, job_size_max, .. } = setup(Builder::default());
            Handlers {
                by_id: handlers,
                on_start,
                job_size_max,
                prints: crate::prints::Prints::default(),
                limits: Default::default(),
            }
        });
    }
}

/// What an [`Pool::exec_builder`] has from [`init`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// So many handlers and set-up functions.
    Init { handlers: usize, on_start: usize },
    /// Nothing: it was not called.
    NoInit,
}

impl Pool {
    /// Settings of a pool in *exec mode*: its nursery is not a fork of this process, but this program, executed again,
    /// with the handlers that were given to [`init`]. So it may be spawned at any time: beside other threads, which a
    /// fork would catch in the midst of what they do, and however large this process is.
    ///
    /// All settings may be made but handlers and [`Builder::on_start`], which stand in `init`. A nursery that dies or
    /// hangs is replaced. With [`Builder::spawn_with`] only this process is run over the other kernel.
    ///
    /// The program is the file that this process was started from, also if that has been replaced or deleted since.
    pub fn exec_builder() -> Builder {
        let mut builder = Builder::default();
        builder.origin = Some(match SETUP.get() {
            Some(setup) => {
                builder = setup(builder);
                Origin::Init { handlers: builder.handlers.len(), on_start: builder.on_start.len() }
            }
            None => Origin::NoInit,
        });
        builder
    }
}

/// Executes the nursery of a new pool, and waits until it serves.
pub(super) fn start<S: Sys>(sys: &S, setup: Setup) -> Result<(Nursery<S>, Renewal), Error> {
    let plan = Plan::new(setup).map_err(|(fd, error)| {
        let what = format!("keep_fd of descriptor {fd}: {error}");
        Error::new(if error.is_shortage() { ErrorKind::Nursery(what) } else { ErrorKind::Config(what) })
    })?;
    let nursery = Nursery::exec(sys, &plan).map_err(Error::os("starting the nursery"))?;
    let nursery = nursery.await_ready().map_err(|error| match error {
        StartError::Os(source) => Error::os("waiting for the nursery")(source),
        other => Error::new(ErrorKind::Nursery(other.to_string())),
    })?;
    Ok((nursery, Renewal::new(plan)))
}

/// Finds what keeps a pool from being executed.
pub(super) fn check(builder: &Builder) -> Result<(), Error> {
    let config = |what: String| Err(Error::new(ErrorKind::Config(what)));
    if exec::is_marked() {
        return config(
            "this process was executed as a pool's nursery: let seqpool::init stand first in main".to_owned(),
        );
    }
    match builder.origin {
        Some(Origin::NoInit) => config(
            "exec mode without handlers: call seqpool::init first in main, with a function that adds them".to_owned(),
        ),
        Some(Origin::Init { handlers, .. }) if builder.handlers.len() > handlers => config(format!(
            "handler '{}' was added to Pool::exec_builder: the nursery cannot have it; add it in the function given to \
             seqpool::init",
            builder.handlers[handlers].0
        )),
        Some(Origin::Init { on_start, .. }) if builder.on_start.len() > on_start => config(
            "on_start was called on Pool::exec_builder: the nursery cannot have that; call it in the function given to \
             seqpool::init"
                .to_owned(),
        ),
        Some(Origin::Init { .. }) | None => Ok(()),
    }
}
