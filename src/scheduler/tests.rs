//! The policy, enumerated for small cases and simulated for larger ones.
//!
//! Both drive the scheduler as `pool/place.rs` does: [`Policy`] mirrors its `try_submit`, `fill` and `place_waiting`,
//! with numbers for jobs.

use super::*;
use crate::limits::RESULT_DELAY_NS;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};

const MS: u64 = 1_000_000;
const US: u64 = 1_000;

/// A job in some slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Held {
    job: usize,
    estimate_ns: u32,
    started: bool,
}

/// Where all jobs are, and the decisions as the engine takes them.
#[derive(Clone, Debug)]
struct Policy {
    scheduler: Scheduler,
    slots: Vec<VecDeque<Held>>,
    front: VecDeque<usize>,
    queue: VecDeque<usize>,
    /// Wants to look again after a window.
    steal: bool,
}

impl Policy {
    fn new(slots: usize, window_jobs_max: usize) -> Self {
        let mut scheduler = Scheduler::new(slots, window_jobs_max);
        for slot in 0..slots {
            scheduler.open(slot);
            scheduler.ready(slot);
        }
        let slots = vec![VecDeque::new(); slots];
        Self { scheduler, slots, front: VecDeque::new(), queue: VecDeque::new(), steal: false }
    }

    fn put(&mut self, slot: usize, job: usize, estimate_ns: u32) {
        self.scheduler.added(slot, estimate_ns);
        self.slots[slot].push_back(Held { job, estimate_ns, started: false });
    }

    fn submit(&mut self, job: usize, estimate_ns: u32) {
        let direct = if self.front.is_empty() && self.queue.is_empty() {
            self.scheduler.place(estimate_ns, |_| true)
        } else {
            None
        };
        match direct {
            Some(slot) => self.put(slot, job, estimate_ns),
            None => self.queue.push_back(job),
        }
    }

    /// The oldest job of this slot is settled.
    fn settle(&mut self, slot: usize) -> usize {
        let held = self.slots[slot].pop_front().expect("a job to settle");
        self.scheduler.removed(slot, held.estimate_ns);
        held.job
    }

    fn waiting(&self) -> Option<usize> {
        self.front.front().or(self.queue.front()).copied()
    }

    fn take_back(&mut self, slot: usize) {
        let first = self.slots[slot].iter().position(|held| !held.started).unwrap_or(self.slots[slot].len());
        let taken = self.slots[slot].split_off(first);
        for (i, held) in taken.into_iter().enumerate() {
            self.scheduler.removed(slot, held.estimate_ns);
            self.front.insert(i, held.job);
        }
    }

    fn fill(&mut self, estimate: &impl Fn(usize) -> u32, stuck: impl Fn(usize) -> bool) {
        self.place_waiting(estimate);
        for _ in 0..self.slots.len() {
            if self.scheduler.idle_ready_slot().is_none() || self.waiting().is_some() {
                return;
            }
            let Some(victim) = self.scheduler.victim(self.started(), &stuck, |_| false) else { break };
            self.take_back(victim);
            self.place_waiting(estimate);
        }
        self.steal |= self.scheduler.idle_ready_slot().is_some() && self.scheduler.has_unstarted(self.started());
    }

    /// What the claim words tell.
    fn started(&self) -> impl Fn(usize) -> usize {
        |slot| self.slots[slot].iter().filter(|held| held.started).count()
    }

    fn place_waiting(&mut self, estimate: &impl Fn(usize) -> u32) {
        let mut share: Option<(usize, usize)> = None;
        while let Some(job) = self.waiting() {
            let estimate_ns = estimate(job);
            let slot = if self.front.is_empty() {
                self.scheduler.place(estimate_ns, |_| true)
            } else {
                match share {
                    Some((slot, left)) if left > 0 && self.scheduler.has_room(slot, estimate_ns) => {
                        share = Some((slot, left - 1));
                        Some(slot)
                    }
                    _ => {
                        let found = self.scheduler.place_evenly(estimate_ns, |_| true);
                        share = found.map(|s| (s, self.scheduler.share(self.front.len()) - 1));
                        found.or_else(|| self.scheduler.place(estimate_ns, |_| true))
                    }
                }
            };
            let Some(slot) = slot else { return };
            if self.front.pop_front().is_none() {
                self.queue.pop_front();
            }
            self.put(slot, job, estimate_ns);
        }
    }

    /// All that decides what can happen next, as numbers: jobs are told apart by their estimates alone.
    fn state(&self, estimate: &impl Fn(usize) -> u32, submitted: usize, deaths: usize) -> Vec<u32> {
        let mut state = vec![submitted as u32, deaths as u32, self.scheduler.cursor as u32, self.front.len() as u32];
        state.extend(self.front.iter().chain(&self.queue).map(|&job| estimate(job)));
        state.push(u32::MAX);
        state.extend(self.scheduler.idle.iter().map(|&slot| slot as u32));
        for (load, held) in self.scheduler.slots.iter().zip(&self.slots) {
            state.extend([u32::MAX, load.open.into(), load.ready.into()]);
            state.extend(held.iter().flat_map(|h| [h.estimate_ns, h.started.into()]));
        }
        state
    }

    /// What must hold after every step.
    fn check(&self) {
        for (slot, held) in self.slots.iter().enumerate() {
            let load = &self.scheduler.slots[slot];
            let work_ns: u64 = held.iter().map(|h| u64::from(h.estimate_ns)).sum();
            assert_eq!((load.jobs, load.work_ns), (held.len(), work_ns), "the books are right");
            assert!(load.jobs <= self.scheduler.window_jobs_max, "more jobs than the window allows: {self:?}");
            assert!(load.jobs <= 2 || load.work_ns <= WINDOW_NS, "more work than the window allows: {self:?}");
            let idle = load.open && load.jobs == 0;
            assert!(!idle || self.scheduler.idle.contains(&slot), "an idle slot that nobody knows of: {self:?}");
        }
        let mut idle = self.scheduler.idle.clone();
        idle.sort_unstable();
        idle.dedup();
        assert_eq!(idle.len(), self.scheduler.idle.len(), "no slot stands on the idle stack twice");
    }

    /// What must hold once the slots are filled.
    fn check_filled(&self, estimate: &impl Fn(usize) -> u32) {
        self.check();
        let open = |slot: &usize| self.scheduler.slots[*slot].open;
        if let Some(job) = self.waiting() {
            let least = self.scheduler.window_jobs_max.min(2);
            for slot in (0..self.slots.len()).filter(open) {
                assert!(self.slots[slot].len() >= least, "always one job more than is running: {self:?}");
                assert!(!self.scheduler.has_room(slot, estimate(job)), "room for a waiting job: {self:?}");
            }
        }
        let is_up = |slot: usize| self.scheduler.slots[slot].ready;
        if (0..self.slots.len()).filter(open).any(|slot| is_up(slot) && self.slots[slot].is_empty()) {
            for slot in (0..self.slots.len()).filter(open) {
                let held = &self.slots[slot];
                let started = held.iter().filter(|held| held.started).count();
                // A job that is on its way to a worker without any other is left to it.
                let unstarted = held.len() - started.max((is_up(slot) && !held.is_empty()).into());
                let work_ns: u64 = held.iter().map(|held| u64::from(held.estimate_ns)).sum();
                let unstarted_ns = work_ns / held.len().max(1) as u64 * unstarted as u64;
                assert!(
                    unstarted_ns <= STEAL_NS,
                    "a worker idles beside {unstarted_ns} ns of unstarted work: {self:?}"
                );
            }
        }
    }
}

// ---- every order of events ----

/// All that can happen to a pool of three workers with a few jobs, in every order: a job comes, a slot's oldest job
/// starts or is settled, the slots are filled (with or without a slot that is stuck), a worker dies, a worker comes.
struct Explorer {
    seen: HashSet<Vec<u32>>,
    estimates: [u32; 2],
    jobs: usize,
    deaths: usize,
}

impl Explorer {
    fn explore(&mut self, policy: &Policy, submitted: &[u32], deaths: usize) {
        let of = |job: usize| submitted[job];
        if !self.seen.insert(policy.state(&of, submitted.len(), deaths)) {
            return;
        }
        let after = |this: &mut Self, change: &dyn Fn(&mut Policy), filled: bool, submitted: &[u32], deaths: usize| {
            let mut next = policy.clone();
            change(&mut next);
            if filled {
                next.check_filled(&|job| submitted[job])
            } else {
                next.check()
            }
            this.explore(&next, submitted, deaths);
        };
        if submitted.len() < self.jobs {
            let [first, second] = self.estimates;
            for estimate_ns in [first, second].into_iter().take(if first == second { 1 } else { 2 }) {
                let more = [submitted, &[estimate_ns]].concat();
                after(self, &|p| p.submit(submitted.len(), estimate_ns), false, &more, deaths);
            }
        }
        after(self, &|p| p.fill(&of, |_| false), true, submitted, deaths);
        for slot in 0..policy.slots.len() {
            let open = policy.scheduler.slots[slot].open;
            if policy.slots[slot].len() >= 2 {
                after(self, &|p| p.fill(&of, |s| s == slot), true, submitted, deaths);
            }
            let load = policy.scheduler.slots[slot];
            let held = &policy.slots[slot];
            if let Some(next) = held.iter().position(|held| !held.started)
                && load.ready
            {
                // The one before it, if any, has ended, and its result is on its way.
                after(self, &|p| p.slots[slot][next].started = true, false, submitted, deaths);
            }
            if held.front().is_some_and(|held| held.started) {
                let settle = |p: &mut Policy| {
                    p.settle(slot);
                };
                after(self, &settle, false, submitted, deaths);
            }
            if open && deaths < self.deaths {
                // As in `vacate`: what has started is blamed, the rest is taken back.
                let die = |p: &mut Policy| {
                    p.scheduler.close(slot);
                    while p.slots[slot].front().is_some_and(|held| held.started) {
                        p.settle(slot);
                    }
                    p.take_back(slot);
                };
                after(self, &die, false, submitted, deaths + 1);
            }
            if !open {
                after(self, &|p| p.scheduler.open(slot), false, submitted, deaths);
            } else if !load.ready {
                after(self, &|p| p.scheduler.ready(slot), false, submitted, deaths);
            }
        }
    }
}

#[test]
fn every_order_of_events_keeps_the_rules() {
    for (window_jobs_max, estimates, jobs, deaths) in [
        (1, [150_000, 10_000], 4, 2),
        (2, [150_000, 10_000], 5, 1),
        (2, [150_000, 150_000], 6, 2),
        (usize::MAX, [150_000, 30_000], 6, 0),
        (usize::MAX, [30_000, 30_000], 6, 1),
        (usize::MAX, [1, 10 * MS as u32], 6, 0),
    ] {
        let mut explorer = Explorer { seen: HashSet::new(), estimates, jobs, deaths };
        explorer.explore(&Policy::new(3, window_jobs_max), &[], 0);
        assert!(explorer.seen.len() > 1000, "only {} states", explorer.seen.len());
    }
}

// ---- in simulated time ----

/// Three of the things that take time; what a host does takes none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A packet of jobs reaches a worker.
    Jobs(usize, usize),
    /// A worker's job ends.
    End(usize),
    /// So many results reach the host.
    Results(usize, usize),
    Steal,
}

/// Workers that take the time they are told, packets that take `latency_ns`, and the policy.
struct Simulation<'a> {
    run_ns: &'a [u64],
    /// Each job's handler.
    handler: &'a [usize],
    latency_ns: u64,
    policy: Policy,
    services: Vec<Service>,
    now_ns: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
    /// By slot: jobs that the packets have brought, which may have been taken back meanwhile.
    arrived: Vec<HashSet<usize>>,
    running: Vec<bool>,
    /// Results that the worker keeps for company, and since when.
    unsent: Vec<(usize, u64)>,
    sent: HashSet<(usize, usize)>,
    progress_ns: Vec<u64>,
    steal_set: bool,
    settled: Vec<usize>,
    steals: usize,
    last_end_ns: u64,
}

impl<'a> Simulation<'a> {
    fn new(workers: usize, run_ns: &'a [u64], handler: &'a [usize], services: Vec<Service>, latency_ns: u64) -> Self {
        Self {
            run_ns,
            handler,
            latency_ns,
            policy: Policy::new(workers, usize::MAX),
            services,
            now_ns: 0,
            events: BinaryHeap::new(),
            count: 0,
            arrived: vec![HashSet::new(); workers],
            running: vec![false; workers],
            unsent: vec![(0, 0); workers],
            sent: HashSet::new(),
            progress_ns: vec![0; workers],
            steal_set: false,
            settled: Vec::new(),
            steals: 0,
            last_end_ns: 0,
        }
    }

    fn at(&mut self, delay_ns: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((self.now_ns + delay_ns, self.count, event)));
    }

    /// Submits everything at once, and runs until all is settled. Returns when the last result was there.
    fn run(mut self) -> (u64, Vec<usize>, usize) {
        for job in 0..self.run_ns.len() {
            let estimate_ns = self.services[self.handler[job]].estimate_ns();
            self.policy.submit(job, estimate_ns);
            self.policy.check();
        }
        self.turn();
        while self.settled.len() < self.run_ns.len() {
            let Some(Reverse((at_ns, _, event))) = self.events.pop() else {
                panic!("nothing more happens, and jobs are left: {:?}", self.policy);
            };
            self.now_ns = at_ns;
            match event {
                Event::Jobs(slot, job) => {
                    self.arrived[slot].insert(job);
                    self.start(slot);
                }
                Event::End(slot) => {
                    self.running[slot] = false;
                    let (count, since_ns) = self.unsent[slot];
                    self.unsent[slot] = (count + 1, if count == 0 { at_ns } else { since_ns });
                    self.start(slot);
                }
                Event::Results(slot, count) => {
                    for _ in 0..count {
                        let job = self.policy.settle(slot);
                        self.sent.remove(&(slot, job));
                        self.services[self.handler[job]].learn(self.run_ns[job] as u32);
                        self.settled.push(job);
                    }
                    self.progress_ns[slot] = at_ns;
                    self.last_end_ns = at_ns;
                    self.turn();
                }
                Event::Steal => {
                    self.steal_set = false;
                    self.turn();
                }
            }
        }
        self.settled.sort_unstable();
        (self.last_end_ns, self.settled, self.steals)
    }

    /// A worker without a running job: results leave if they have waited too long or no next job is at hand.
    fn start(&mut self, slot: usize) {
        if self.running[slot] {
            return;
        }
        let arrived = &self.arrived[slot];
        let next = self.policy.slots[slot].iter_mut().find(|held| !held.started).filter(|h| arrived.contains(&h.job));
        let job = next.map(|held| {
            held.started = true;
            held.job
        });
        let (count, since_ns) = self.unsent[slot];
        if count > 0 && (job.is_none() || self.now_ns - since_ns >= RESULT_DELAY_NS) {
            self.unsent[slot].0 = 0;
            self.at(self.latency_ns, Event::Results(slot, count));
        }
        if let Some(job) = job {
            self.running[slot] = true;
            self.at(self.run_ns[job], Event::End(slot));
        }
    }

    /// What the host does whenever it wakes.
    fn turn(&mut self) {
        let Self { policy, services, handler, progress_ns, now_ns, .. } = self;
        let estimate = |job: usize| services[handler[job]].estimate_ns();
        let before = policy.slots.iter().map(VecDeque::len).sum::<usize>();
        // Once at the end of a turn and once at the start of the next.
        for _ in 0..2 {
            policy.fill(&estimate, |slot| *now_ns - progress_ns[slot] >= WINDOW_NS);
            policy.check_filled(&estimate);
        }
        debug_assert!(policy.slots.iter().map(VecDeque::len).sum::<usize>() >= before);
        // Sends what is placed and not sent; a job that has left a slot and come back is sent anew.
        for slot in 0..self.policy.slots.len() {
            let idle = self.policy.slots[slot].iter().all(|held| !self.sent.contains(&(slot, held.job)));
            let held: Vec<usize> = self.policy.slots[slot].iter().map(|held| held.job).collect();
            for &(was_in, job) in &self.sent.clone() {
                if was_in == slot && !held.contains(&job) {
                    self.steals += 1;
                    self.sent.remove(&(was_in, job));
                    self.arrived[slot].remove(&job);
                }
            }
            for job in held {
                if self.sent.insert((slot, job)) {
                    if idle {
                        self.progress_ns[slot] = self.now_ns;
                    }
                    self.at(self.latency_ns, Event::Jobs(slot, job));
                }
            }
        }
        if std::mem::take(&mut self.policy.steal) && !self.steal_set {
            self.steal_set = true;
            self.at(WINDOW_NS, Event::Steal);
        }
    }
}

/// When the last job ends if each job in turn goes to the worker that is free first.
fn list_scheduling_ns(workers: usize, run_ns: &[u64]) -> u64 {
    let mut free: BinaryHeap<Reverse<u64>> = (0..workers).map(|_| Reverse(0)).collect();
    let mut last = 0;
    for run in run_ns {
        let Reverse(at) = free.pop().expect("a worker");
        last = last.max(at + run);
        free.push(Reverse(at + run));
    }
    last
}

fn learnt(run_ns: u32) -> Service {
    let mut service = Service::default();
    service.learn(run_ns);
    service
}

#[test]
fn small_cases_end_within_one_job_of_list_scheduling() {
    const TIMES: [u64; 4] = [US, 30 * US, 300 * US, 5 * MS];
    for jobs in 1..=6u32 {
        for case in 0..4usize.pow(jobs) {
            let run_ns: Vec<u64> = (0..jobs).map(|i| TIMES[case / 4usize.pow(i) % 4]).collect();
            let handler = vec![0; run_ns.len()];
            let longest_ns = *run_ns.iter().max().expect("a job");
            // Nothing known, known to be tiny (wrong for most), known to be long.
            for service in [Service::default(), learnt(500), learnt(5 * MS as u32)] {
                for latency_ns in [0, 20 * US] {
                    let simulation = Simulation::new(3, &run_ns, &handler, vec![service], latency_ns);
                    let (end_ns, settled, _) = simulation.run();
                    assert!(settled.into_iter().eq(0..run_ns.len()), "every job once");
                    // A wrong estimate costs a window until the slot counts as stuck, and another until somebody looks.
                    let limit_ns =
                        list_scheduling_ns(3, &run_ns) + longest_ns + 2 * WINDOW_NS + 2 * STEAL_NS + 8 * latency_ns;
                    assert!(end_ns <= limit_ns, "{end_ns} > {limit_ns} ns for {run_ns:?}, {service:?}");
                }
            }
        }
    }
}

/// SplitMix64.
fn shuffle<T>(seed: u64, items: &mut [T]) {
    let mut state = seed;
    for i in (1..items.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        items.swap(i, ((z ^ (z >> 31)) % (i as u64 + 1)) as usize);
    }
}

/// 400 jobs, 90 % of 0.5 ms and 10 % of 10 ms, shuffled; the worst ratio to list scheduling over many seeds.
fn worst_ratio(workers: usize, handlers: usize, latency_ns: u64, seeds: std::ops::Range<u64>) -> f64 {
    seeds
        .map(|seed| {
            let mut run_ns: Vec<u64> = (0..400).map(|i| if i % 10 == 0 { 10 * MS } else { MS / 2 }).collect();
            shuffle(seed, &mut run_ns);
            let handler: Vec<usize> =
                run_ns.iter().map(|&run| if handlers == 2 { (run > MS).into() } else { 0 }).collect();
            let services = vec![Service::default(); handlers];
            let (end_ns, settled, _) = Simulation::new(workers, &run_ns, &handler, services, latency_ns).run();
            assert_eq!(settled.len(), 400);
            end_ns as f64 / list_scheduling_ns(workers, &run_ns) as f64
        })
        .fold(0.0, f64::max)
}

#[test]
fn uneven_jobs_end_within_five_per_cent_of_list_scheduling() {
    for handlers in [1, 2] {
        for (workers, latency_ns) in [(2, 0), (3, 0), (2, 10 * US), (3, 10 * US), (2, 30 * US)] {
            let ratio = worst_ratio(workers, handlers, latency_ns, 0..200);
            println!("{workers} workers, {handlers} handlers, {latency_ns} ns: {ratio:.4}");
            assert!(ratio <= 1.05, "{ratio:.4} with {workers} workers, {handlers} handlers, {latency_ns} ns");
        }
    }
}

#[test]
fn tiny_jobs_are_packed_and_long_ones_go_nearly_one_at_a_time() {
    let ahead = |estimate_ns: u32| {
        let mut policy = Policy::new(2, usize::MAX);
        (0..20_000).for_each(|job| policy.submit(job, estimate_ns));
        policy.check();
        policy.slots.iter().map(VecDeque::len).collect::<Vec<_>>()
    };
    assert_eq!(ahead(20), [WINDOW_JOBS_MAX; 2]);
    assert_eq!(ahead(100), [2000; 2]);
    assert_eq!(ahead(100_000), [2; 2]);
    assert_eq!(ahead(u32::MAX), [2; 2]);
    assert_eq!(ahead(Service::default().estimate_ns()), [2; 2], "an unknown job counts as a long one");
}

// ---- the parts ----

#[test]
fn estimates_converge_from_anywhere() {
    for run_ns in [0u32, 1, 3, 50, 1000, 77_777, 10_000_000, u32::MAX] {
        for first in [0u32, 1, 1_000_000, u32::MAX] {
            let mut service = learnt(first);
            assert_eq!(service.estimate_ns(), first.max(1), "the first run is taken as it is");
            (0..250).for_each(|_| service.learn(run_ns));
            let (got, want) = (f64::from(service.estimate_ns()), f64::from(run_ns.max(1)));
            assert!((got - want).abs() <= 1.0 + want * 0.001, "{got} instead of {want}, from {first}");
        }
    }
    // A mixture: near its mean, though the latest runs weigh most.
    let mut service = Service::default();
    let mut sum = 0.0;
    for i in 0..10_000 {
        service.learn(if i % 10 == 0 { 10_000_000 } else { 500_000 });
        sum += f64::from(service.estimate_ns());
    }
    assert!((sum / 10_000.0 / 1_450_000.0 - 1.0).abs() < 0.02, "{}", sum / 10_000.0);
}

#[test]
fn the_victim_is_the_one_with_most_unstarted_work() {
    let mut scheduler = Scheduler::new(4, usize::MAX);
    for slot in 0..4 {
        scheduler.open(slot);
        scheduler.ready(slot);
    }
    let mut add = |slot: usize, estimates: &[u32]| estimates.iter().for_each(|&e| scheduler.added(slot, e));
    add(0, &[500_000]);
    add(1, &[30_000, 30_000]);
    add(2, &[40_000, 40_000]);
    let victim = |s: &Scheduler, started: [usize; 4], stuck: &[usize]| {
        s.victim(|slot| started[slot], |slot| stuck.contains(&slot), |_| false)
    };
    assert_eq!(victim(&scheduler, [1; 4], &[]), Some(2), "slot 0 has the most work, but runs it");
    assert_eq!(victim(&scheduler, [0; 4], &[]), Some(2), "or is about to");
    assert_eq!(victim(&scheduler, [1, 1, 2, 0], &[]), Some(1), "slot 2 has started all that it has");
    assert_eq!(scheduler.victim(|_| 1, |_| false, |slot| slot == 2), Some(1), "slot 2 is taking a large job");
    scheduler.close(2);
    assert_eq!(victim(&scheduler, [1; 4], &[]), Some(1));
    scheduler.removed(1, 30_000);
    assert_eq!(victim(&scheduler, [1; 4], &[0, 1, 2, 3]), None, "one job is running: nothing to take");
    scheduler.added(1, 10_000);
    scheduler.removed(1, 30_000);
    scheduler.added(1, 10_000);
    assert_eq!(victim(&scheduler, [1; 4], &[]), None, "not worth it");
    assert_eq!(victim(&scheduler, [1; 4], &[1]), Some(1), "but the estimate cannot be trusted");
    // Before hello nothing has started, however few there are.
    scheduler.open(3);
    scheduler.close(3);
    scheduler.open(3);
    scheduler.added(3, 30_000);
    assert_eq!(victim(&scheduler, [1, 1, 0, 0], &[]), Some(3));
    scheduler.ready(3);
    assert_eq!(victim(&scheduler, [1, 1, 0, 0], &[]), None);
}

#[test]
fn the_latest_idle_slot_is_served_first_and_dead_ones_never() {
    let mut scheduler = Scheduler::new(3, usize::MAX);
    assert_eq!(scheduler.place(1, |_| true), None, "nobody is there");
    for slot in 0..3 {
        scheduler.open(slot);
        scheduler.ready(slot);
    }
    assert_eq!(scheduler.place(1, |_| true), Some(2));
    scheduler.close(2);
    assert_eq!((scheduler.place(1, |_| true), scheduler.open_slots()), (Some(1), 2));
    scheduler.added(1, 10);
    scheduler.added(0, 10);
    assert_eq!(scheduler.idle_slot(), None);
    scheduler.removed(0, 10);
    scheduler.removed(1, 10);
    assert_eq!(scheduler.idle_slot(), Some(1), "warm");
    scheduler.open(2);
    scheduler.open(2);
    assert_eq!(scheduler.idle, [0, 1, 2]);
    assert_eq!(scheduler.idle_slot(), Some(1), "one whose worker is up goes before one that starts");
    assert_eq!(scheduler.place_evenly(1, |_| true), Some(0), "and so when work is shared out");
    scheduler.added(0, 10);
    scheduler.added(1, 10);
    assert_eq!((scheduler.idle_slot(), scheduler.idle_ready_slot()), (Some(2), None));
}

#[test]
fn a_slot_is_filled_before_the_next_unless_its_bytes_do_not_fit() {
    let mut scheduler = Scheduler::new(2, usize::MAX);
    (0..2).for_each(|slot| scheduler.open(slot));
    (0..2).for_each(|slot| scheduler.added(slot, 1000));
    let mut placed = Vec::new();
    for _ in 0..10 {
        let slot = scheduler.place(1000, |_| true).expect("room");
        scheduler.added(slot, 1000);
        placed.push(slot);
    }
    assert!(placed.windows(2).all(|pair| pair[0] == pair[1]), "one packet: {placed:?}");
    let other = 1 - placed[0];
    assert_eq!(scheduler.place(1000, |slot| slot == other), Some(other));
    assert_eq!(scheduler.place(1000, |_| false), None);
    assert_eq!(scheduler.place_evenly(1000, |_| true), Some(other), "the least loaded");
}

#[test]
fn a_slot_never_holds_more_than_its_worker_may_still_run() {
    for window_jobs_max in [1, 3, usize::MAX] {
        let mut s = Scheduler::new(2, window_jobs_max);
        for slot in 0..2 {
            s.limit(slot, 5);
            s.open(slot);
            s.ready(slot);
        }
        let mut held = [0; 2];
        while let Some(slot) = s.place(1, |_| true) {
            s.added(slot, 1);
            held[slot] += 1;
        }
        assert_eq!(held, [window_jobs_max.min(5); 2]);
        assert_eq!((s.at_hand(1), s.place_evenly(1, |_| true)), (None, None));
        // Each that is done leaves room for no other, unless the window was the narrower.
        for left in (0..5).rev() {
            s.removed(0, 1);
            held[0] -= 1;
            s.limit(0, left);
            while s.has_room(0, 1) {
                s.added(0, 1);
                held[0] += 1;
            }
            assert_eq!(held[0], window_jobs_max.min(left));
        }
        // The next worker begins anew.
        s.limit(0, 5);
        assert_eq!(s.place(1, |_| true), Some(0));
    }
}
