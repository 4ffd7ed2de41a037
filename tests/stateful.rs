//! The whole pool against a model: random sequences of what a caller and the world can do, with whatever they do to
//! each job known beforehand. Failures are shrunk to a short sequence.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use seqpool::{Completion, CrashCause, Job, JobLimits, Outcome, Pool, Ticket, TransportKind};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

mod support;

fn main() {
    support::main(&support::cases_on_each_transport![whatever_happens_each_job_has_its_one_outcome => 280]);
}

/// Sequences that are tried.
const CASES: u32 = 60;
/// Longest run of any job before its worker is killed.
const TIMEOUT: Duration = Duration::from_millis(60);

const JOBS_MAX: usize = 1 << 12;

fn starts() -> &'static [AtomicU32] {
    static MEMORY: OnceLock<&'static [AtomicU32]> = OnceLock::new();
    MEMORY.get_or_init(|| support::shared_words(JOBS_MAX))
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Echo,
    Fail,
    Panic,
    Die,
    Hang,
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// A job of this size, to be tried again so often.
    Submit {
        order: Order,
        size: usize,
        retries: u32,
    },
    /// Many small jobs at once, of which some fail or die.
    Batch {
        jobs: u8,
        order: Order,
        every: u8,
    },
    /// The same as an iterator that is dropped in the middle.
    Dropped {
        jobs: u8,
        taken: u8,
    },
    Poll {
        ms: u64,
    },
    Cancel(usize),
    KillWorker(usize),
    StopWorker(usize),
    KillAll,
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        8 => Just(Order::Echo),
        2 => Just(Order::Fail),
        1 => Just(Order::Panic),
        2 => Just(Order::Die),
        1 => Just(Order::Hang),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![6 => 5usize..200, 2 => 5usize..100_000, 1 => 200_000usize..1_500_000];
    prop_oneof![
        10 => (order(), size, 0u32..3).prop_map(|(order, size, retries)| Step::Submit { order, size, retries }),
        3 => (1u8..100, order(), 1u8..50).prop_map(|(jobs, order, every)| Step::Batch { jobs, order, every }),
        1 => (1u8..100, 0u8..100).prop_map(|(jobs, taken)| Step::Dropped { jobs, taken }),
        5 => (0u64..5).prop_map(|ms| Step::Poll { ms }),
        3 => any::<usize>().prop_map(Step::Cancel),
        2 => any::<usize>().prop_map(Step::KillWorker),
        1 => any::<usize>().prop_map(Step::StopWorker),
        1 => Just(Step::KillAll),
    ]
}

#[derive(Debug)]
struct Known {
    order: Order,
    size: usize,
    retries: u32,
    ticket: Option<Ticket>,
    /// Whether the pool has said that it is, or will be, cancelled.
    cancelled: bool,
    /// Its iterator is gone: no outcome comes.
    is_dropped: bool,
}

struct World {
    pool: Pool,
    jobs: Vec<Known>,
    ends: BTreeMap<u64, (Outcome<Vec<u8>>, u32)>,
    /// Somebody killed or stopped a worker from outside: any job may have been in it.
    is_violent: bool,
}

fn body(number: usize, order: Order, size: usize) -> Vec<u8> {
    let mut body = (number as u32).to_le_bytes().to_vec();
    body.push(order as u8);
    body.resize(size.max(5), number as u8);
    body
}

impl World {
    fn new(transport: TransportKind) -> Self {
        starts().iter().for_each(|word| word.store(0, SeqCst));
        let pool = Pool::builder()
            .workers(2)
            .transport(transport)
            .timeout(TIMEOUT)
            .stall_timeout(TIMEOUT)
            .retry_backoff(Duration::from_millis(1))
            .grace(Duration::from_millis(5))
            .handler("do", |request, reply| {
                let body = request.body();
                starts()[u32::from_le_bytes(body[..4].try_into()?) as usize].fetch_add(1, SeqCst);
                match body[4] {
                    b if b == Order::Echo as u8 => reply.forward(..),
                    b if b == Order::Fail as u8 => return Err("as told".into()),
                    b if b == Order::Panic as u8 => panic!("as told"),
                    b if b == Order::Die as u8 => kill(Pid::this(), Signal::SIGKILL)?,
                    _ => std::thread::sleep(Duration::from_secs(1000)),
                }
                Ok(())
            })
            .spawn()
            .expect("a pool");
        Self { pool, jobs: Vec::new(), ends: BTreeMap::new(), is_violent: false }
    }

    fn know(&mut self, order: Order, size: usize, retries: u32) -> usize {
        self.jobs.push(Known { order, size, retries, ticket: None, cancelled: false, is_dropped: false });
        self.jobs.len() - 1
    }

    fn has_room(&self, jobs: usize) -> bool {
        self.jobs.len() + jobs <= JOBS_MAX
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Submit { order, size, retries } => {
                if !self.has_room(1) {
                    return;
                }
                let number = self.know(order, size, retries);
                let body = body(number, order, size);
                let job = Job::new("do", &body).tag(number as u64).limits(JobLimits::new().retries(retries));
                self.jobs[number].ticket = Some(self.pool.submit(job).expect("room"));
            }
            Step::Batch { jobs, order, every } => self.batch(jobs.into(), order, every.into()),
            Step::Dropped { jobs, taken } => self.dropped(jobs.into(), taken.into()),
            Step::Poll { ms } => self.poll(Some(Duration::from_millis(ms))),
            Step::Cancel(which) => {
                let waiting: Vec<_> = (0..self.jobs.len()).filter(|n| self.is_outstanding(*n)).collect();
                if let Some(&number) = waiting.get(which % waiting.len().max(1))
                    && let Some(ticket) = self.jobs[number].ticket
                {
                    self.jobs[number].cancelled |= self.pool.cancel(ticket);
                }
            }
            Step::KillWorker(which) => self.signal(which, Signal::SIGKILL),
            Step::StopWorker(which) => self.signal(which, Signal::SIGSTOP),
            Step::KillAll => {
                self.pool.kill_all();
                for number in 0..self.jobs.len() {
                    self.jobs[number].cancelled |= self.is_outstanding(number);
                }
            }
        }
    }

    fn is_outstanding(&self, number: usize) -> bool {
        !self.jobs[number].is_dropped && !self.ends.contains_key(&(number as u64))
    }

    fn signal(&mut self, which: usize, signal: Signal) {
        let workers = self.pool.processes().1;
        if let Some(&pid) = workers.get(which % workers.len().max(1)) {
            // It may have ended meanwhile; the nursery has not reaped it before the pool knows, or its id is still its own.
            let _ = kill(Pid::from_raw(pid), signal);
            self.is_violent = true;
        }
    }

    fn poll(&mut self, timeout: Option<Duration>) {
        let ends = &mut self.ends;
        self.pool.poll(timeout, |completion, _| note(ends, &completion)).expect("a pool");
    }

    /// Jobs of a run of their own. Outcomes of single jobs are kept meanwhile.
    fn batch(&mut self, jobs: usize, order: Order, every: usize) {
        if !self.has_room(jobs) {
            return;
        }
        let first = self.jobs.len();
        let bodies: Vec<_> = (0..jobs)
            .map(|i| {
                let order = if i % every == 0 { order } else { Order::Echo };
                let number = self.know(order, 40, 0);
                body(number, order, 40)
            })
            .collect();
        let ends = &mut self.ends;
        self.pool
            .for_each("do", &bodies, |mut completion, _| {
                completion.tag += first as u64;
                note(ends, &completion);
            })
            .expect("a pool");
        for number in first..first + jobs {
            assert!(!self.is_outstanding(number), "job {number} of a run that is over");
        }
    }

    fn dropped(&mut self, jobs: usize, taken: usize) {
        if !self.has_room(jobs) {
            return;
        }
        let first = self.jobs.len();
        let bodies: Vec<_> = (0..jobs)
            .map(|_| {
                let number = self.know(Order::Echo, 40, 0);
                body(number, Order::Echo, 40)
            })
            .collect();
        let mut done = 0;
        for (index, outcome) in self.pool.unordered("do", &bodies).take(taken) {
            let number = first as u64 + index;
            assert!(self.ends.insert(number, (outcome, 1)).is_none(), "job {number} has two outcomes");
            done += 1;
        }
        assert_eq!(done, taken.min(jobs));
        for number in first..first + jobs {
            self.jobs[number].is_dropped = self.is_outstanding(number);
        }
    }

    /// Everything must have come to its end, and to one that the model allows.
    fn finish(mut self) {
        while self.pool.outstanding() > 0 {
            self.poll(None);
        }
        let mut undone = 0;
        for (number, known) in self.jobs.iter().enumerate() {
            let started = starts()[number].load(SeqCst);
            let Some((outcome, attempts)) = self.ends.get(&(number as u64)) else {
                assert!(known.is_dropped && started <= 1, "job {number} has no outcome: {known:?}");
                continue;
            };
            self.check(number, known, outcome, started);
            // A worker that dies between its claim and the handler's first word has started the job.
            assert!(started <= 1 + known.retries, "job {number} started {started} times: {known:?}");
            assert!(known.is_dropped || *attempts >= started, "job {number}: {attempts} attempts, {started} starts");
            undone += usize::from(!outcome.is_done());
        }
        let stats = self.pool.stats();
        let others = stats.failed + stats.crashed + stats.timed_out + stats.cancelled + stats.rejected;
        assert_eq!(stats.jobs, stats.done + others, "{stats:?}");
        assert!(others >= undone as u64, "{stats:?}");
    }

    fn check(&self, number: usize, known: &Known, outcome: &Outcome<Vec<u8>>, started: u32) {
        let is_allowed = match outcome {
            Outcome::Done(reply) => {
                known.order == Order::Echo && started >= 1 && *reply == body(number, known.order, known.size)
            }
            Outcome::Failed { panicked, .. } => {
                started >= 1 && known.order == if *panicked { Order::Panic } else { Order::Fail }
            }
            Outcome::Crashed(crash) => match crash.cause {
                CrashCause::Signal(9) => known.order == Order::Die || self.is_violent,
                // Next in line when three workers in a row were killed between jobs.
                CrashCause::NeverStarted => self.is_violent && started <= known.retries,
                _ => false,
            },
            // Stopped in the midst of it.
            Outcome::TimedOut { after } => *after == TIMEOUT && (known.order == Order::Hang || self.is_violent),
            Outcome::Cancelled { .. } => known.cancelled,
            _ => false,
        };
        assert!(is_allowed, "job {number}: {known:?}, started {started} times, ended as {outcome:?}");
    }
}

fn note(ends: &mut BTreeMap<u64, (Outcome<Vec<u8>>, u32)>, completion: &Completion<'_>) {
    let end = (completion.outcome.clone().map(<[u8]>::to_vec), completion.attempts());
    assert!(ends.insert(completion.tag, end).is_none(), "job {} has two outcomes", completion.tag);
}

fn whatever_happens_each_job_has_its_one_outcome(transport: TransportKind) {
    let config = Config { cases: CASES, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let steps = proptest::collection::vec(step(), 1..60);
    let result = runner.run(&steps, |steps| {
        let mut world = World::new(transport);
        for step in &steps {
            world.step(step);
        }
        world.finish();
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
