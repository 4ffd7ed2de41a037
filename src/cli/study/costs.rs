//! What a machine adds to a plan: the time of calls and of wake-ups, measured by short runs of the real servers.
//!
//! Where the server works, as many workers as the study has compete with it for the cores. Where it waits, one worker has it
//! to itself, so that whatever it does between two sleeps belongs to one thing.

use super::plan::{Compute, Plan, Server, Supply, Transfer};
use super::servers::{Failure, measure};
use super::timeline::{Activity, Lane, Span, Timeline};
use std::time::Duration;

/// Jobs of each run, ...
const JOBS: u32 = 90;
/// ... but so many of each worker. All runs together take less than a second.
const ROUNDS_MIN: u32 = 2;
const ROUNDS_MAX: u32 = 30;
/// What share of the longest times is left out: what else the machine does only ever adds. A server that works keeps a core
/// for itself, and one woken there waits for a time slice, which is the run's own doing; where nobody works nobody has to wait.
const LEFT_OUT_BUSY: f64 = 0.02;
const LEFT_OUT_ALONE: f64 = 0.25;
/// What takes longer does not cost more. Units: nanoseconds.
const COMPUTE_NS_MAX: u64 = 2_000_000;
const MESSAGE_NS_MAX: u64 = 500_000;
const PARTS_MAX: u32 = 3;

/// Times that differ from one occasion to the next: what was seen, in order. Units: nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Latency(Vec<u64>);

impl Latency {
    /// Of all that was seen, without a share of the longest.
    pub(crate) fn new(mut seen_ns: Vec<u64>, left_out: f64) -> Self {
        seen_ns.sort_unstable();
        seen_ns.truncate((seen_ns.len() as f64 * (1.0 - left_out)).ceil() as usize);
        Self(seen_ns)
    }

    /// One of them, by a random number; 0 if there are none.
    pub(crate) fn draw_ns(&self, random: u64) -> u64 {
        match self.0.len() as u64 {
            0 => 0,
            count => self.0[(random % count) as usize],
        }
    }

    pub(crate) fn median_ns(&self) -> u64 {
        self.draw_ns(self.0.len() as u64 / 2)
    }
}

/// What comes on top of the times of a plan. All 0: the drawings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Costs {
    /// The server's time for an exchange, beside its parts: it accepts, registers, gives the go-ahead. Units: nanoseconds.
    pub(crate) exchange_ns: u64,
    /// The server's time for a part, beside the part's own: calls, epoll, records. Units: nanoseconds.
    pub(crate) part_ns: u64,
    /// From a worker's call until a server that slept has returned from its own.
    pub(crate) server_wake: Latency,
    /// From the end of a part until a worker that slept computes.
    pub(crate) worker_wake: Latency,
    /// How late a sleep by the clock ends.
    pub(crate) timer: Latency,
}

impl Costs {
    /// In the order of their fields, the median of what differs. Units: microseconds.
    pub(crate) fn us(&self) -> [f64; 5] {
        let wakes = [&self.server_wake, &self.worker_wake, &self.timer].map(Latency::median_ns);
        [self.exchange_ns, self.part_ns, wakes[0], wakes[1], wakes[2]].map(|ns| ns as f64 / 1e3)
    }
}

/// The costs of either server with either transfer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calibration {
    pub(crate) blocking: [Costs; 2],
    pub(crate) nonblocking: [Costs; 2],
}

impl Calibration {
    /// The costs of a server, with transfers that are its own work and with others.
    pub(crate) fn of(&self, server: Server, transfer: Transfer) -> &Costs {
        let [working, waiting] = match server {
            Server::Blocking => &self.blocking,
            Server::Nonblocking { .. } => &self.nonblocking,
        };
        if transfer == Transfer::Cpu { working } else { waiting }
    }

    /// Measures them. Forks: this process has one thread.
    pub(crate) fn measure(workers: u16, job: Duration, message: Duration, parts: u32) -> Result<Self, Failure> {
        let costs = |server, transfer| -> Result<Costs, Failure> {
            let workers = if transfer == Transfer::Cpu { workers } else { 1 };
            let plan = Plan {
                server,
                transfer,
                supply: Supply::Rounds,
                compute: Compute::Sleep,
                compute_ns: vec![COMPUTE_NS_MAX.min(job.as_nanos() as u64); workers.into()],
                message_ns: MESSAGE_NS_MAX.min(message.as_nanos() as u64),
                parts: parts.min(PARTS_MAX),
                rounds: (JOBS / u32::from(workers)).clamp(ROUNDS_MIN, ROUNDS_MAX),
            };
            // Whatever else the machine does seldom meets both.
            let both = [measure(&plan, &mut |_| {})?, measure(&plan, &mut |_| {})?].map(|measured| measured.timeline);
            let less_disturbed = both.iter().min_by_key(|timeline| timeline.makespan_ns);
            Ok(less_disturbed.map_or_else(Costs::default, |timeline| costs(&plan, timeline)))
        };
        let turns = Server::Nonblocking { parts_per_turn: None };
        let mut working = [costs(Server::Blocking, Transfer::Cpu)?, costs(turns, Transfer::Cpu)?];
        let mut waiting = [costs(Server::Blocking, Transfer::Wait)?, costs(turns, Transfer::Wait)?];
        // Workers do not know which server it is, and what is rare is seen better in more of them.
        let [worker_wake, timer] = [|c: &Costs| c.worker_wake.0.clone(), |c: &Costs| c.timer.0.clone()]
            .map(|of| Latency::new(working.iter().flat_map(of).collect(), 0.0));
        for costs in &mut working {
            (costs.worker_wake, costs.timer) = (worker_wake.clone(), timer.clone());
        }
        // Peers that know their deadlines are awake; those that are told of them wake up, and mostly find a core.
        for costs in &mut waiting {
            costs.worker_wake = Latency::new(worker_wake.0.clone(), LEFT_OUT_ALONE);
        }
        let ([blocking, nonblocking], [blocking_waiting, nonblocking_waiting]) = (working, waiting);
        Ok(Self { blocking: [blocking, blocking_waiting], nonblocking: [nonblocking, nonblocking_waiting] })
    }
}

/// What a run cost: of several workers with the server's own work, or of one with other transfers.
fn costs(plan: &Plan, timeline: &Timeline) -> Costs {
    let left_out = if plan.transfer == Transfer::Cpu { LEFT_OUT_BUSY } else { LEFT_OUT_ALONE };
    let latency = |seen_ns| Latency::new(seen_ns, left_out);
    // What goes with an exchange or a part that is worked on is a share of its time.
    let (exchange, part) = match plan.transfer {
        Transfer::Cpu => Default::default(),
        _ => handling(timeline, plan.parts),
    };
    let (mut worker_wake, mut timer) = (Vec::new(), Vec::new());
    for worker in 0..timeline.workers {
        let own: Vec<&Span> =
            timeline.lane(Lane::Worker(worker as u16)).filter(|s| s.activity != Activity::Wait).collect();
        for pair in own.windows(2).filter(|pair| pair[1].activity == Activity::Compute) {
            worker_wake.push(pair[1].start_ns - pair[0].end_ns);
            timer.push(pair[1].duration_ns().saturating_sub(plan.compute_ns[worker]));
        }
    }
    Costs {
        exchange_ns: latency(exchange).median_ns(),
        part_ns: latency(part).median_ns(),
        server_wake: latency(server_wakes(timeline, plan.transfer)),
        worker_wake: latency(worker_wake),
        timer: latency(timer),
    }
}

/// How long after the end of a computation the server was awake that had slept until then. One that works has to begin with
/// it, too: it may have to sleep again before there is a part. Units: nanoseconds.
fn server_wakes(timeline: &Timeline, transfer: Transfer) -> Vec<u64> {
    let all = |activity| timeline.spans.iter().filter(move |s| s.activity == activity && s.lane != Lane::Server);
    let wake = |slept: &Span| {
        let ends = all(Activity::Compute).map(|s| s.end_ns).filter(|end| (slept.start_ns..slept.end_ns).contains(end));
        let parts = all(Activity::Read).map(|s| s.start_ns).filter(|start| *start >= slept.end_ns);
        let awake_ns = if transfer == Transfer::Cpu { parts.min()? } else { slept.end_ns };
        Some(awake_ns - ends.min()?)
    };
    timeline.lane(Lane::Server).filter(|s| s.activity != Activity::Busy).filter_map(wake).collect()
}

/// The server's times for an exchange and for a part, from a run where it sleeps before each: between two computations it is
/// first woken by the connection, then by parts alone. Units: nanoseconds.
fn handling(timeline: &Timeline, parts: u32) -> (Vec<u64>, Vec<u64>) {
    let computed: Vec<&Span> = timeline.lane(Lane::Worker(0)).filter(|s| s.activity == Activity::Compute).collect();
    let (mut exchange, mut part) = (Vec::new(), Vec::new());
    for pair in computed.windows(2) {
        let within = |s: &&Span| pair[0].end_ns <= s.start_ns && s.end_ns <= pair[1].end_ns;
        let mut busy = timeline.lane(Lane::Server).filter(|s| s.activity == Activity::Busy).filter(within);
        exchange.extend(busy.next().map(Span::duration_ns));
        // A message, then a job; with the last part goes that the connection is closed.
        part.push(busy.map(Span::duration_ns).sum::<u64>() / u64::from(2 * parts));
    }
    (exchange, part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::study::model;

    fn always(us: u64) -> Latency {
        Latency(vec![us * 1000])
    }

    #[test]
    fn what_a_run_cost_is_found_in_its_spans() {
        for server in [Server::Blocking, Server::Nonblocking { parts_per_turn: None }] {
            for (transfer, workers, exchange_ns, part_ns, worker_us) in
                [(Transfer::Cpu, 1, 0, 0, 7), (Transfer::Cpu, 3, 0, 0, 7), (Transfer::Wait, 1, 10_000, 1_500, 0)]
            {
                let plan = Plan {
                    server,
                    transfer,
                    supply: Supply::Rounds,
                    compute: Compute::Sleep,
                    compute_ns: vec![2_000_000; workers],
                    message_ns: 500_000,
                    parts: 3,
                    rounds: 5,
                };
                let put_in = Costs {
                    exchange_ns,
                    part_ns,
                    server_wake: always(5),
                    worker_wake: always(worker_us),
                    timer: always(2),
                };
                let found = costs(&plan, &model::predict(&plan, &put_in));
                assert_eq!(found.us(), put_in.us(), "{server:?} {transfer:?} {workers}");
            }
        }
    }

    #[test]
    fn the_longest_times_are_left_out() {
        let seen = Latency::new(vec![9, 1, 5, 1000], LEFT_OUT_ALONE);
        assert_eq!(seen, Latency(vec![1, 5, 9]));
        assert_eq!((seen.median_ns(), seen.draw_ns(0), seen.draw_ns(5)), (5, 1, 9));
        assert_eq!(Latency::new(Vec::new(), LEFT_OUT_ALONE).median_ns(), 0);
    }
}
