//! A way to run the study's servers by themselves, for tests that fork: those are binaries of their own.

use super::plan::{Compute, Plan, Server, Supply, Transfer};
use super::servers::measure;
use super::timeline::Lane;
use std::num::NonZeroU32;

/// A run, in plain words. Units: nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// Else the blocking server.
    pub nonblocking: bool,
    /// Budget of the non-blocking server; `None`: until would-block.
    pub parts_per_turn: Option<NonZeroU32>,
    /// How much of a transfer the peers take for themselves; the rest is the server's work. Units: thousandths.
    pub wait_permille: u16,
    /// Jobs come from a shared queue; else each worker has its rounds.
    pub queue: bool,
    /// Workers spin; else they sleep.
    pub spin: bool,
    /// How long each worker computes.
    pub compute_ns: Vec<u64>,
    /// How long a message takes.
    pub message_ns: u64,
    /// Parts of a message.
    pub parts: u32,
    /// Jobs a worker.
    pub rounds: u32,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Until the last result had been read. Units: nanoseconds.
    pub makespan_ns: u64,
    /// Lane (`None`: the server), activity, start and end in nanoseconds, in the order of time in each lane.
    pub spans: Vec<(Option<u16>, &'static str, u64, u64)>,
    /// System calls of the server.
    pub system_calls: u64,
    /// Voluntary and involuntary context switches of the server.
    pub server_switches: (u64, u64),
    /// The same of the workers.
    pub worker_switches: (u64, u64),
    /// Who did each job.
    pub done_by: Vec<u16>,
}

/// Runs a trial; `progress` is told how many jobs are done.
///
/// # Errors
/// What went wrong, in words.
pub fn run(trial: &Trial, progress: &mut dyn FnMut(u64)) -> Result<Seen, String> {
    let server = match trial.nonblocking {
        false => Server::Blocking,
        true => Server::Nonblocking { parts_per_turn: trial.parts_per_turn },
    };
    let plan = Plan {
        server,
        transfer: Transfer::waiting(trial.wait_permille),
        supply: if trial.queue { Supply::Queue } else { Supply::Rounds },
        compute: if trial.spin { Compute::Spin } else { Compute::Sleep },
        compute_ns: trial.compute_ns.clone(),
        message_ns: trial.message_ns,
        parts: trial.parts,
        rounds: trial.rounds,
    };
    let measured = measure(&plan, progress).map_err(|failure| failure.to_string())?;
    let spans = measured.timeline.spans.iter().map(|span| {
        let lane = match span.lane {
            Lane::Worker(worker) => Some(worker),
            Lane::Server => None,
        };
        (lane, span.activity.name(), span.start_ns, span.end_ns)
    });
    Ok(Seen {
        makespan_ns: measured.timeline.makespan_ns,
        spans: spans.collect(),
        system_calls: measured.system_calls,
        server_switches: (measured.server_switches.voluntary, measured.server_switches.involuntary),
        worker_switches: (measured.worker_switches.voluntary, measured.worker_switches.involuntary),
        done_by: measured.done_by,
    })
}
