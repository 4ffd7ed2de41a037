//! A run: its processes are started, watched until the last is done, and what they recorded is handed out.
//!
//! The process that measures takes no part. It sleeps, so that it does not disturb them, and ends everything when one of
//! them fails or the run takes longer than it may.

use super::peer;
use super::plan::{Compute, Plan, Server};
use super::processes::{Child, Ended, Who};
use super::record::{Records, timeline};
use super::serve;
use super::timeline::{Activity, Lane, Timeline};
use crate::sys::{self, ContextSwitches, Exit, Interest, Linux, OsError, OsResult, PollFd, Sys, Wait, signal_name};
use std::fmt;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// A run may take so many times as long as its messages and computations one after the other, ...
const LIMIT_TIMES: u64 = 20;
/// ... and this long besides: processes have to start, and the machine may have other things to do. Units: nanoseconds.
const LIMIT_BASE_NS: u64 = 10_000_000_000;
/// How often progress is told. Units: nanoseconds.
const PROGRESS_NS: u64 = 50_000_000;
/// How long the cause of a failure may take to show: a killed process's connections are closed a moment before it has
/// ended, so that others fail first. Units: nanoseconds.
const CAUSE_NS: u64 = 100_000_000;

/// A worker's word when it has connected.
const REGISTERED: &str = "registered";

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    pub(crate) timeline: Timeline,
    /// The server's, while it served.
    pub(crate) system_calls: u64,
    /// The server's, from its start to its end.
    pub(crate) server_switches: ContextSwitches,
    /// The workers' together, likewise.
    pub(crate) worker_switches: ContextSwitches,
    /// Who did each job, in the order in which jobs were handed out.
    pub(crate) done_by: Vec<u16>,
}

/// Why a run came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Os(OsError),
    /// A process that should not have ended, and what it said.
    Ended {
        who: Who,
        exit: Exit,
        words: Option<String>,
    },
    TooLong {
        limit: Duration,
    },
    /// The records are not those of such a run.
    Records(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Os(error) => error.fmt(f),
            Failure::Ended { who, words: Some(words), .. } => write!(f, "{who} gave up: {words}"),
            Failure::Ended { who, exit: Exit::Code(code), .. } => write!(f, "{who} ended with exit code {code}"),
            Failure::Ended { who, exit: Exit::Signal(signal), .. } => {
                write!(f, "{who} was ended by signal {signal} ({})", signal_name(*signal).unwrap_or("no name"))
            }
            Failure::TooLong { limit } => {
                write!(f, "the run was not over after {} and was ended", humantime::format_duration(*limit))
            }
            Failure::Records(what) => write!(f, "the records of the run do not fit it: {what}"),
        }
    }
}

impl From<OsError> for Failure {
    fn from(error: OsError) -> Self {
        Failure::Os(error)
    }
}

/// How long a run may take.
fn limit(plan: &Plan) -> Duration {
    let messages = 2 * (plan.jobs() + plan.workers() as u64) * plan.message_ns;
    let longest = plan.compute_ns.iter().max().copied().unwrap_or(0);
    // Those that sleep do so at the same time; those that spin share the cores.
    let computed = match plan.compute {
        Compute::Sleep => u64::from(plan.rounds) * longest,
        Compute::Spin => plan.jobs() * longest,
    };
    Duration::from_nanos(LIMIT_BASE_NS + LIMIT_TIMES * (messages + computed))
}

/// Carries a plan out. `progress` is told now and then how many jobs are done; what it does takes no time from the
/// server's process.
///
/// Forks: this process has one thread.
pub(crate) fn measure(plan: &Plan, progress: &mut dyn FnMut(u64)) -> Result<Measured, Failure> {
    let limit = limit(plan);
    let deadline_ns = Linux.now_ns() + limit.as_nanos() as u64;
    let blocks = match plan.server {
        Server::Blocking => Wait::UntilReady,
        Server::Nonblocking { .. } => Wait::Never,
    };
    let (listener, address) = sys::listen(plan.workers(), blocks)?;
    let records = Records::new(plan)?;
    let mut run = Run { children: Vec::with_capacity(plan.workers() + 1), deadline_ns, limit };
    for worker in 0..plan.workers() as u16 {
        let who = Who::Worker(worker);
        let child = Child::fork(who, &[], |report| peer::work(plan, worker, &address, || report.say(REGISTERED)))?;
        run.children.push(child);
        // One after the other: they are served in the order in which they connect.
        run.wait_for_registration()?;
    }
    let keep = [listener.as_raw_fd()];
    run.children.push(Child::fork(Who::Server, &keep, |_| serve::serve(plan, &listener, &records))?);
    // Else workers would find it open after the server has ended.
    drop(listener);
    run.watch(|| progress(records.done()))?;
    progress(records.done());
    run.measured(plan, &records)
}

/// The processes of a run; dropped, they are ended and reaped.
struct Run {
    children: Vec<Child>,
    deadline_ns: u64,
    limit: Duration,
}

impl Run {
    fn left_ns(&self) -> Result<u64, Failure> {
        match self.deadline_ns.saturating_sub(Linux.now_ns()) {
            0 => Err(Failure::TooLong { limit: self.limit }),
            left_ns => Ok(left_ns),
        }
    }

    /// Waits until the child that was forked last has said that it is registered.
    fn wait_for_registration(&mut self) -> Result<(), Failure> {
        loop {
            let left_ns = self.left_ns()?;
            let Some(child) = self.children.last_mut() else { return Ok(()) };
            if Linux.poll(&mut [PollFd::new(child.report(), Interest::READ)], Some(left_ns))? == 0 {
                continue;
            }
            return match child.words()? {
                Some(words) if words == REGISTERED => Ok(()),
                // It says what is wrong, or has closed its end without a word: either way it ends.
                words => Err(Failure::Ended { who: child.who, exit: child.reap()?.exit, words }),
            };
        }
    }

    /// Waits until all have ended as they should.
    fn watch(&mut self, mut tell: impl FnMut()) -> Result<(), Failure> {
        loop {
            let wait_ns = self.left_ns()?.min(PROGRESS_NS);
            self.reap_ended(wait_ns)?;
            tell();
            if self.children.iter().any(|c| c.ended().is_some_and(failed)) {
                return Err(self.cause()?);
            }
            if self.children.iter().all(|c| c.ended().is_some()) {
                return Ok(());
            }
        }
    }

    /// Reaps whoever has ended, or does within `wait_ns`.
    fn reap_ended(&mut self, wait_ns: u64) -> OsResult<()> {
        let running: Vec<usize> = (0..self.children.len()).filter(|&i| self.children[i].ended().is_none()).collect();
        let mut fds: Vec<PollFd<'_>> =
            running.iter().map(|&i| PollFd::new(self.children[i].pidfd(), Interest::READ)).collect();
        Linux.poll(&mut fds, Some(wait_ns))?;
        let ended: Vec<bool> = fds.iter().map(|fd| fd.readiness().is_readable()).collect();
        for (index, _) in running.into_iter().zip(ended).filter(|(_, ended)| *ended) {
            self.children[index].reap()?;
        }
        Ok(())
    }

    /// The first cause among failures that bring each other about: a signal, else what the server says, else the rest.
    fn cause(&mut self) -> OsResult<Failure> {
        let until_ns = Linux.now_ns() + CAUSE_NS;
        let by_signal = |c: &Child| matches!(c.ended(), Some(Ended { exit: Exit::Signal(_), .. }));
        while !self.children.iter().any(by_signal) {
            let left_ns = until_ns.saturating_sub(Linux.now_ns());
            if left_ns == 0 || self.children.iter().all(|c| c.ended().is_some()) {
                break;
            }
            self.reap_ended(left_ns)?;
        }
        let rank = |c: &&Child| (!by_signal(c), c.who != Who::Server);
        let ended = self.children.iter().filter(|c| c.ended().is_some_and(failed)).min_by_key(rank);
        Ok(match ended.and_then(|child| Some((child.who, child.ended()?))) {
            Some((who, ended)) => Failure::Ended { who, exit: ended.exit, words: ended.words.clone() },
            None => Failure::Records("nobody failed".into()),
        })
    }

    fn measured(&self, plan: &Plan, records: &Records) -> Result<Measured, Failure> {
        let all = records.all();
        let mut done_by = vec![None; plan.jobs() as usize];
        for record in all.iter().filter(|r| r.activity == Activity::Compute) {
            let Lane::Worker(worker) = record.lane else { continue };
            match done_by.get_mut(record.job as usize) {
                Some(place @ None) => *place = Some(worker),
                Some(_) => return Err(Failure::Records(format!("job {} was done twice", record.job))),
                None => return Err(Failure::Records(format!("there is no job {}", record.job))),
            }
        }
        let count = done_by.len();
        let done_by: Vec<u16> = done_by.into_iter().flatten().collect();
        if done_by.len() != count {
            return Err(Failure::Records(format!("{} of {count} jobs were done", done_by.len())));
        }
        let switches = |of: fn(Who) -> bool| {
            let ended = self.children.iter().filter(|c| of(c.who)).filter_map(Child::ended);
            ended.fold(ContextSwitches::default(), |sum, ended| ContextSwitches {
                voluntary: sum.voluntary + ended.switches.voluntary,
                involuntary: sum.involuntary + ended.switches.involuntary,
            })
        };
        Ok(Measured {
            timeline: timeline(plan.workers(), records.run_ns(), &all),
            system_calls: records.system_calls(),
            server_switches: switches(|who| who == Who::Server),
            worker_switches: switches(|who| who != Who::Server),
            done_by,
        })
    }
}

fn failed(ended: &Ended) -> bool {
    ended.exit != Exit::Code(0)
}
