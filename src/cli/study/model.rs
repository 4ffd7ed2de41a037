//! What a run should look like: the servers, their workers and nothing else, event by event.
//!
//! Without [`Costs`] it is as drawn: handling costs nothing but the parts of messages themselves, and whoever sleeps is there
//! at once. With them the server also spends its time on calls, and sleepers are late; how late differs from one time to the
//! next, so they are drawn from what was measured, and the prediction is the median of several such runs.
//!
//! All arithmetic is exact: time is counted in fractions of a nanosecond of which every part of a message is a whole number,
//! so that two things that happen at once do so here.
//!
//! **Taking turns**, as the original draws it: a worker whose message has just become ready (a newcomer) is served before
//! all others, those by who has waited longest. A turn is one part, or as many as the budget allows; it ends early when the
//! next part is not there yet.

use super::costs::{Costs, Latency};
use super::plan::{Compute, HANDLING_NS_MAX, PERMILLE, Plan, Server, Supply};
use super::timeline::{Activity, Lane, Span, Timeline};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Runs of which a prediction is the median, ...
const DRAWS_MAX: u64 = 31;
/// ... but not so many that they have more parts than this in all: in a long run luck evens out, and three will do.
const PARTS_MAX: u64 = 6_000;
const DRAWS_MIN: u64 = 3;

/// The timeline that this plan would have if nothing had a cost: the drawings'.
pub(crate) fn draw(plan: &Plan) -> Timeline {
    simulate(plan, &Costs::default(), 0, &vec![0; plan.workers()], |worker, _| plan.compute_ns[worker])
}

/// The timeline that this plan should have: the one of the median makespan among several.
pub(crate) fn predict(plan: &Plan, costs: &Costs) -> Timeline {
    let run = |seed| simulate(plan, costs, seed, &vec![0; plan.workers()], |worker, _| plan.compute_ns[worker]);
    let parts = 2 * u64::from(plan.parts) * plan.jobs();
    let draws = match () {
        // All would be the same.
        () if *costs == Costs::default() => 1,
        () => (PARTS_MAX / parts.max(1)).clamp(DRAWS_MIN, DRAWS_MAX),
    };
    let mut runs: Vec<Timeline> = (0..draws).map(run).collect();
    runs.sort_by_key(|run| run.makespan_ns);
    runs.swap_remove(runs.len() / 2)
}

/// One run, each worker registering at a time of its own, and each job with a compute time of its own, by worker and by how
/// many it has had. Units: nanoseconds.
fn simulate(
    plan: &Plan,
    costs: &Costs,
    seed: u64,
    start_ns: &[u64],
    compute_ns: impl Fn(usize, u32) -> u64,
) -> Timeline {
    let mut model = Model::new(plan, costs, seed, start_ns);
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
    /// The server has accepted it.
    is_open: bool,
    /// Parts that are over.
    part: u32,
    /// When its next part could begin, if not before: the peer's gap counts from then.
    base: u64,
    /// When its next part is there.
    there: u64,
    /// Until when its worker's lane is drawn.
    drawn: u64,
    /// Jobs that this worker has had.
    jobs: u32,
    /// The job that it is being written.
    has_job: bool,
}

struct Model<'p> {
    plan: &'p Plan,
    costs: &'p Costs,
    random: u64,
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
    /// When the server last fell asleep and woke up, and until when it worked, or slept.
    asleep: u64,
    awake: u64,
    worked_until: u64,
    end: u64,
    spans: Vec<Span>,
}

impl<'p> Model<'p> {
    fn new(plan: &'p Plan, costs: &'p Costs, seed: u64, start_ns: &[u64]) -> Self {
        // A part takes message / parts.
        let scale = u64::from(plan.parts) * PERMILLE;
        let gap = plan.message_ns * plan.transfer.wait_permille();
        let mut model = Self {
            plan,
            costs,
            random: seed,
            gap,
            work: plan.message_ns * PERMILLE - gap,
            scale,
            exchanges: vec![Exchange::default(); plan.workers()],
            queue: plan.jobs(),
            events: BinaryHeap::new(),
            known: 0,
            now: 0,
            asleep: 0,
            awake: 0,
            worked_until: 0,
            end: 0,
            spans: Vec::new(),
        };
        for (worker, start_ns) in start_ns.iter().enumerate() {
            model.message_ready(worker, start_ns * scale);
        }
        model
    }

    fn draw(&mut self, latency: &Latency) -> u64 {
        // SplitMix64 (Steele, Lea and Flood, 2014).
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        latency.draw_ns((z ^ (z >> 31)) >> 1) * self.scale
    }

    /// A worker has a message for the server from `at` on.
    fn message_ready(&mut self, worker: usize, at: u64) {
        let exchange = &mut self.exchanges[worker];
        // The server may have learnt late of what came before.
        let drawn = at.max(exchange.drawn);
        *exchange = Exchange { drawn, jobs: exchange.jobs, ..Exchange::default() };
        self.push(worker, at);
    }

    fn push(&mut self, worker: usize, at: u64) {
        self.known += 1;
        self.events.push(Reverse((at, self.known, worker)));
    }

    /// A worker's time from where its lane ends to `until`.
    fn worker_span(&mut self, worker: usize, activity: Activity, until: u64) {
        let start = self.exchanges[worker].drawn;
        if until > start {
            self.exchanges[worker].drawn = until;
            let (start_ns, end_ns) = (start / self.scale, until / self.scale);
            self.spans.push(Span { lane: Lane::Worker(worker as u16), activity, start_ns, end_ns });
        }
    }

    /// The server's time until `until`, which is now from here on.
    fn server_span(&mut self, activity: Activity, until: u64) {
        let start = self.now;
        if until <= start {
            return;
        }
        self.now = until;
        let (start_ns, end_ns) = (start / self.scale, until / self.scale);
        let mut own = self.spans.iter_mut().rev().filter(|s| s.lane == Lane::Server);
        match own.next() {
            Some(last) if (last.activity, last.end_ns) == (activity, start_ns) => last.end_ns = end_ns,
            _ => self.spans.push(Span { lane: Lane::Server, activity, start_ns, end_ns }),
        }
    }

    /// The server sleeps until it is woken at `at`.
    fn sleep(&mut self, activity: Activity, at: u64) {
        if at > self.now {
            self.asleep = self.now;
            let costs = self.costs;
            let late = self.draw(&costs.server_wake);
            self.server_span(activity, at + late);
            (self.awake, self.worked_until) = (self.now, self.now);
        }
    }

    fn handle(&mut self, cost_ns: u64) {
        self.server_span(Activity::Busy, self.now + cost_ns * self.scale);
    }

    /// The server accepts a worker's connection.
    fn open(&mut self, worker: usize) {
        self.handle(self.costs.exchange_ns);
        self.exchanges[worker].is_open = true;
        self.begin_part(worker, self.now);
    }

    /// The next part's gap begins.
    fn begin_part(&mut self, worker: usize, base: u64) {
        let costs = self.costs;
        let mut there = base + self.gap;
        if self.gap > 0 {
            there += self.draw(&costs.timer);
            // A peer knows that its time for a part has begun when it has been told so, unless it knows all deadlines.
            if self.work > 0 {
                there = there.max(self.now + self.draw(&costs.worker_wake));
            }
        }
        let exchange = &mut self.exchanges[worker];
        (exchange.base, exchange.there) = (base, there);
    }

    /// The server takes the next part, which is there. Whether there is another one in this exchange.
    fn take_part(&mut self, worker: usize) -> bool {
        let parts = self.plan.parts;
        let Exchange { part, base, there, .. } = self.exchanges[worker];
        let activity = if part < parts { Activity::Read } else { Activity::Write };
        let due = base + self.gap;
        // As the server does: what it slept for is on time, and with a part's work goes its handling.
        let slept = (self.asleep..=self.awake).contains(&due) && self.worked_until == self.awake;
        self.handle(self.costs.part_ns);
        let mut start = self.now;
        if self.work > 0 {
            if self.now - self.worked_until <= HANDLING_NS_MAX * self.scale {
                start = self.worked_until;
            }
            let over = start + self.work;
            self.server_span(Activity::Busy, over);
            self.worked_until = self.now;
        }
        if self.gap > 0 {
            self.worker_span(worker, Activity::Wait, base);
            let is_last = part + 1 == 2 * parts && self.work == 0;
            let until = match () {
                // It goes on at once, whenever the server learns of it.
                () if is_last => there,
                () if slept || self.work == 0 => self.now,
                () => due,
            };
            self.worker_span(worker, activity, until);
        }
        if self.work > 0 {
            self.worker_span(worker, Activity::Wait, start);
            self.worker_span(worker, activity, self.now);
        }
        let is_more = self.part_over(worker);
        if is_more {
            self.begin_part(worker, if slept || self.work == 0 { due + self.work } else { self.now });
        }
        is_more
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
        if !exchange.has_job {
            return;
        }
        let costs = self.costs;
        // A slow peer is awake when it takes its last part.
        let start = if self.work == 0 { exchange.there } else { self.now + self.draw(&costs.worker_wake) };
        let late = if self.plan.compute == Compute::Sleep { self.draw(&costs.timer) } else { 0 };
        let ready = start + compute_ns(worker, exchange.jobs) * self.scale + late;
        self.worker_span(worker, Activity::Wait, start);
        self.worker_span(worker, Activity::Compute, ready);
        self.message_ready(worker, ready);
    }

    fn serve_blocking(&mut self, compute_ns: &impl Fn(usize, u32) -> u64) {
        while let Some(Reverse((ready, _, worker))) = self.events.pop() {
            self.sleep(Activity::Blocked, ready);
            self.open(worker);
            loop {
                self.sleep(Activity::Blocked, self.exchanges[worker].there);
                if !self.take_part(worker) {
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
                if !self.exchanges[worker].is_open {
                    self.open(worker);
                    if self.gap > 0 {
                        self.push(worker, self.exchanges[worker].there);
                        continue;
                    }
                }
                match self.exchanges[worker].part {
                    0 => newcomers.push_back(worker),
                    _ => others.push_back(worker),
                }
            }
            let Some(worker) = newcomers.pop_front().or_else(|| others.pop_front()) else {
                let Some(&Reverse((at, ..))) = self.events.peek() else { return };
                self.sleep(Activity::Free, at);
                continue;
            };
            self.take_turn(worker, budget, compute_ns);
        }
    }

    fn take_turn(&mut self, worker: usize, budget: u32, compute_ns: &impl Fn(usize, u32) -> u64) {
        for _ in 0..budget {
            if self.exchanges[worker].there > self.now {
                break;
            }
            if !self.take_part(worker) {
                return self.exchange_over(worker, compute_ns);
            }
        }
        // Everybody's gaps pass at the same time, whatever the server does.
        self.push(worker, self.exchanges[worker].there.max(self.now));
    }

    fn into_timeline(mut self) -> Timeline {
        self.spans.sort_by_key(|s| (s.lane, s.start_ns, s.end_ns));
        Timeline { workers: self.plan.workers(), spans: self.spans, makespan_ns: self.end / self.scale }
    }
}

#[cfg(test)]
mod tests;
