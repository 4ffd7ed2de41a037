//! What a run should look like: the servers, their workers and nothing else, event by event.
//!
//! Handling costs nothing but the parts of messages themselves. All arithmetic is exact: time is counted in fractions of a
//! nanosecond of which every part of a message is a whole number, so that two things that happen at once do so here.
//!
//! **Taking turns**, as the original draws it: a worker whose message has just become ready (a newcomer) is served before
//! all others, those by who has waited longest. A turn is one part, or as many as the budget allows; it ends early when the
//! next part is not there yet.

use super::plan::{Plan, Server, Supply, Transfer};
use super::timeline::{Activity, Lane, Span, Timeline};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Shares of a transfer are whole thousandths.
pub(crate) const PERMILLE: u64 = 1000;

/// The timeline that this plan should have.
pub(crate) fn predict(plan: &Plan) -> Timeline {
    let wait_permille = match plan.transfer {
        Transfer::Cpu => 0,
        Transfer::Wait => PERMILLE,
    };
    predict_mixed(plan, wait_permille)
}

/// As [`predict`], for transfers of which the peer takes so much of each part's time, and then the server works the rest.
/// Units: thousandths.
pub(crate) fn predict_mixed(plan: &Plan, wait_permille: u64) -> Timeline {
    simulate(plan, wait_permille, &vec![0; plan.workers()], |worker, _| plan.compute_ns[worker])
}

/// As [`predict`], each worker registering at a time of its own, and each job with a compute time of its own, by worker and
/// by how many it has had. Units: nanoseconds.
fn simulate(plan: &Plan, wait_permille: u64, start_ns: &[u64], compute_ns: impl Fn(usize, u32) -> u64) -> Timeline {
    let mut model = Model::new(plan, wait_permille, start_ns);
    match plan.server {
        Server::Blocking => model.serve_blocking(&compute_ns),
        Server::Nonblocking { parts_per_turn } => {
            model.serve_in_turns(parts_per_turn.map_or(u32::MAX, u32::from), &compute_ns);
        }
    }
    model.into_timeline()
}

/// A worker's exchange with the server: its message, then, if there is one, a job.
#[derive(Clone, Copy, Debug, Default)]
struct Exchange {
    /// Parts that are over.
    part: u32,
    /// When what happens next with it could: its next part is there, or its message.
    ready: u64,
    /// Jobs that this worker has had.
    jobs: u32,
    /// The job that it is being written.
    has_job: bool,
}

struct Model<'p> {
    plan: &'p Plan,
    /// Of a part: what is the peer's and what is the server's.
    gap: u64,
    work: u64,
    /// Units of time in a nanosecond.
    scale: u64,
    exchanges: Vec<Exchange>,
    /// Jobs that nobody has, from a shared queue.
    queue: u64,
    /// What becomes ready: when, in which order it was known, and whose.
    events: BinaryHeap<Reverse<(u64, u64, usize)>>,
    known: u64,
    now: u64,
    end: u64,
    spans: Vec<Span>,
}

impl<'p> Model<'p> {
    fn new(plan: &'p Plan, wait_permille: u64, start_ns: &[u64]) -> Self {
        // A part takes message / parts.
        let scale = u64::from(plan.parts) * PERMILLE;
        let gap = plan.message_ns * wait_permille.min(PERMILLE);
        let mut model = Self {
            plan,
            gap,
            work: plan.message_ns * PERMILLE - gap,
            scale,
            exchanges: vec![Exchange::default(); plan.workers()],
            queue: plan.jobs(),
            events: BinaryHeap::new(),
            known: 0,
            now: 0,
            end: 0,
            spans: Vec::new(),
        };
        for (worker, start_ns) in start_ns.iter().enumerate() {
            model.message_ready(worker, start_ns * scale);
        }
        model
    }

    /// A worker has a message for the server from `at` on.
    fn message_ready(&mut self, worker: usize, at: u64) {
        let exchange = &mut self.exchanges[worker];
        (exchange.part, exchange.ready, exchange.has_job) = (0, at, false);
        self.push(worker, at);
    }

    fn push(&mut self, worker: usize, at: u64) {
        self.known += 1;
        self.events.push(Reverse((at, self.known, worker)));
    }

    fn span(&mut self, lane: Lane, activity: Activity, start: u64, end: u64) {
        if start == end {
            return;
        }
        let (start_ns, end_ns) = (start / self.scale, end / self.scale);
        if lane == Lane::Server
            && let Some(last) = self.spans.iter_mut().rev().find(|s| s.lane == lane)
            && (last.activity, last.end_ns) == (activity, start_ns)
        {
            last.end_ns = end_ns;
            return;
        }
        self.spans.push(Span { lane, activity, start_ns, end_ns });
    }

    fn activity(&self, worker: usize) -> Activity {
        if self.exchanges[worker].part < self.plan.parts { Activity::Read } else { Activity::Write }
    }

    /// A part is over, now. Whether there is another one in this exchange.
    fn part_over(&mut self, worker: usize) -> bool {
        let parts = self.plan.parts;
        let exchange = &mut self.exchanges[worker];
        exchange.part += 1;
        if exchange.part == parts {
            // The result has been read: is there a job?
            exchange.has_job = match self.plan.supply {
                Supply::Rounds => exchange.jobs < self.plan.rounds,
                Supply::Queue => self.queue > 0,
            };
            if exchange.has_job {
                exchange.jobs += 1;
                self.queue = self.queue.saturating_sub(1);
            }
            self.end = self.end.max(self.now);
        }
        let exchange = &self.exchanges[worker];
        exchange.part < if exchange.has_job || exchange.part < parts { 2 * parts } else { parts }
    }

    /// An exchange is over, now: its worker computes, if it has a job.
    fn exchange_over(&mut self, worker: usize, compute_ns: &impl Fn(usize, u32) -> u64) {
        let exchange = self.exchanges[worker];
        if exchange.has_job {
            let ready = self.now + compute_ns(worker, exchange.jobs) * self.scale;
            self.span(Lane::Worker(worker as u16), Activity::Compute, self.now, ready);
            self.message_ready(worker, ready);
        }
    }

    fn serve_blocking(&mut self, compute_ns: &impl Fn(usize, u32) -> u64) {
        while let Some(Reverse((ready, _, worker))) = self.events.pop() {
            let lane = Lane::Worker(worker as u16);
            let start = self.now.max(ready);
            self.span(Lane::Server, Activity::Blocked, self.now, start);
            self.span(lane, Activity::Wait, ready, start);
            self.now = start;
            loop {
                let (start, there, over) = (self.now, self.now + self.gap, self.now + self.gap + self.work);
                self.span(lane, self.activity(worker), start, over);
                self.span(Lane::Server, Activity::Blocked, start, there);
                self.span(Lane::Server, Activity::Busy, there, over);
                self.now = over;
                if !self.part_over(worker) {
                    break;
                }
            }
            self.exchange_over(worker, compute_ns);
        }
    }

    fn serve_in_turns(&mut self, budget: u32, compute_ns: &impl Fn(usize, u32) -> u64) {
        let (mut newcomers, mut others) = (VecDeque::new(), VecDeque::new());
        loop {
            while let Some(&Reverse((at, _, worker))) = self.events.peek()
                && at <= self.now
            {
                self.events.pop();
                match self.exchanges[worker].part {
                    0 => newcomers.push_back(worker),
                    _ => others.push_back(worker),
                }
            }
            let Some(worker) = newcomers.pop_front().or_else(|| others.pop_front()) else {
                let Some(&Reverse((at, ..))) = self.events.peek() else { return };
                self.span(Lane::Server, Activity::Free, self.now, at);
                self.now = at;
                continue;
            };
            self.take_turn(worker, budget, compute_ns);
        }
    }

    fn take_turn(&mut self, worker: usize, budget: u32, compute_ns: &impl Fn(usize, u32) -> u64) {
        let lane = Lane::Worker(worker as u16);
        for taken in 1.. {
            // Everybody's gaps pass at the same time, whatever the server does.
            let there = self.exchanges[worker].ready + self.gap;
            if there > self.now {
                return self.push(worker, there);
            }
            let (ready, start) = (self.exchanges[worker].ready, self.now);
            let activity = self.activity(worker);
            self.span(lane, activity, ready, there);
            self.span(lane, Activity::Wait, there, start);
            self.now += self.work;
            self.span(lane, activity, start, self.now);
            self.span(Lane::Server, Activity::Busy, start, self.now);
            if !self.part_over(worker) {
                return self.exchange_over(worker, compute_ns);
            }
            self.exchanges[worker].ready = self.now;
            if taken >= budget {
                return self.push(worker, self.now + self.gap);
            }
        }
    }

    fn into_timeline(mut self) -> Timeline {
        self.spans.sort_by_key(|s| (s.lane, s.start_ns, s.end_ns));
        Timeline { workers: self.plan.workers(), spans: self.spans, makespan_ns: self.end / self.scale }
    }
}

#[cfg(test)]
mod tests;
