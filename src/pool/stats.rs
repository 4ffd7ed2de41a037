//! Counts over the pool's life.

/// What the pool has done so far. Every submitted job is in exactly one of the outcome counts once it is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Jobs submitted.
    pub jobs: u64,
    /// Outcome `Done`.
    pub done: u64,
    /// Outcome `Failed`.
    pub failed: u64,
    /// Outcome `Crashed`.
    pub crashed: u64,
    /// Outcome `TimedOut`.
    pub timed_out: u64,
    /// Outcome `Cancelled`.
    pub cancelled: u64,
    /// Outcome `Rejected`.
    pub rejected: u64,
    /// Workers started in place of others.
    pub respawns: u64,
    /// Nurseries started in place of others.
    pub nursery_respawns: u64,
    /// Workers told to leave because they had done as many jobs as one may do, were as old, or had grown as much.
    pub recycled: u64,
    /// Times that unstarted jobs were taken back from a worker.
    pub reclaims: u64,
    /// Jobs taken back so.
    pub reclaimed_jobs: u64,
    /// Times that a job which had not succeeded was set aside to be tried again.
    pub retries: u64,
    /// Jobs that crashed their workers for the last time and were quarantined.
    pub quarantined: u64,
    /// How long handlers ran, of the jobs that have a receipt. Units: microseconds.
    pub run_us: u64,
    /// CPU time that they used. Units: microseconds.
    pub cpu_us: u64,
    /// Results found in a dead worker's out-ring.
    pub salvaged: u64,
    /// Packets sent to workers.
    pub packets_sent: u64,
    /// Packets received from workers.
    pub packets_received: u64,
    /// Workers that did not die of `SIGKILL`; their memory was given up.
    pub abandoned: u64,
    /// Workers killed because they broke the protocol.
    pub hostile: u64,
}
