//! `seqpool bench`: the pool beside what the kernel allows, in one run.
//!
//! Each test measures the pool and its limits in turn, A B A B, with fresh processes for every sample, so that a change
//! of the machine's mood meets both alike; the median, least and greatest of all rounds are reported. The limits
//! (`bare`) make the same exchange with bare system calls and share no code with the pool.
//!
//! Every pool here has the same settings (`ready_pool`): two workers and the defaults, with the command's own handlers.
//! Only the workers' timer slack is set, so that jobs that sleep end when they should.
//!
//! This process has one thread throughout: it forks.

pub mod bare;
mod measures;
mod report;
mod rss;
mod uneven;

use super::args::BenchArgs;
use super::figures::{Summary, summary};
use super::handlers;
use super::machine::Machine;
use super::report::{Fatal, plain_error, print_measured, with_file};
use crate::sys::{self, OsResult};
use crate::{Pool, TransportKind};
use report::{Progress, Results, Row};
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

/// Workers of every pool and peers of every limit.
const WORKERS: usize = 2;
/// Rounds unless told otherwise; odd, so that the median is one of them.
const ROUNDS: u32 = 7;
const ROUNDS_QUICK: u32 = 3;
/// How long workers may take to start.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// The arguments of `bench`, checked.
struct Plan {
    /// Divides the sizes of the samples.
    shrink: u32,
    rounds: u32,
    pinned: Option<Vec<usize>>,
    json: Option<PathBuf>,
}

impl Plan {
    /// Checks the arguments; confines this process to its CPUs, and finds out whether the file can be written.
    fn build(args: BenchArgs) -> Result<Self, Fatal> {
        if let Some(cpus) = &args.pin {
            pin(&cpus.0)?;
        }
        if let Some(path) = &args.json {
            with_file("json", path, |file| {
                drop(file);
                Ok(())
            })?;
        }
        let (shrink, rounds) = if args.quick { (4, ROUNDS_QUICK) } else { (1, ROUNDS) };
        let rounds = args.repeat.unwrap_or(rounds);
        Ok(Self { shrink, rounds, pinned: args.pin.map(|cpus| cpus.0), json: args.json })
    }
}

fn pin(cpus: &[usize]) -> Result<(), Fatal> {
    let granted = sys::set_affinity(cpus).and_then(|()| sys::affinity());
    let missing: Vec<String> = match &granted {
        Ok(granted) => cpus.iter().filter(|cpu| !granted.contains(cpu)).map(usize::to_string).collect(),
        // None of them was granted, or a number is beyond what the call can name.
        Err(_) => cpus.iter().map(usize::to_string).collect(),
    };
    if missing.is_empty() {
        return Ok(());
    }
    let why = granted.err().map_or(String::new(), |e| format!(" ({})", plain_error(&e.into())));
    Err(Fatal(format!("--pin: CPU {} is not there, or this process may not run on it{why}", missing.join(", "))))
}

/// Measures everything, prints the table, writes the file. The exit code.
pub(super) fn run(args: BenchArgs) -> Result<u8, Fatal> {
    let plan = Plan::build(args)?;
    let machine = Machine::of_this_process(plan.pinned.clone());
    let mut bench = Bench { progress: Progress::new(TESTS.len() * TransportKind::ALL.len()), packing: None, plan };
    let rows = bench.measure();
    bench.progress.end();
    let results = Results { machine, results: rows? };
    // What was measured is shown even if the file cannot be written after all.
    let written = match &bench.plan.json {
        Some(path) => with_file("json", path, |file| file.write(&results)),
        None => Ok(()),
    };
    print_measured(&report::table(&results, bench.plan.rounds), written)
}

type Test = fn(&mut Bench, TransportKind) -> Result<Vec<Row>, Fatal>;

/// The tests in the order in which they run: what depends on the size of this process comes before what makes it grow.
const TESTS: [(&str, Test); 6] = [
    ("spawn", measures::spawn),
    ("rss", rss::rss),
    ("throughput", measures::throughput),
    ("latency", measures::latency),
    ("large", measures::large),
    ("uneven", uneven::uneven),
];
/// The first ones of these are reported last.
const REPORTED_LAST: usize = 2;

/// What the tests share.
struct Bench {
    plan: Plan,
    progress: Progress,
    /// What made the bare packed echo fastest; found once, by the first test that needs it.
    packing: Option<measures::Packing>,
}

impl Bench {
    /// Every test on every transport, in the order of the report.
    fn measure(&mut self) -> Result<Vec<Row>, Fatal> {
        let mut by_test: [Vec<Row>; TESTS.len()] = Default::default();
        for ((name, test), rows) in TESTS.iter().zip(&mut by_test) {
            for &transport in TransportKind::ALL {
                self.progress.begin(name, transport);
                rows.extend(test(self, transport)?);
            }
        }
        by_test.rotate_left(REPORTED_LAST);
        Ok(by_test.into_iter().flatten().collect())
    }

    /// A sample's size: `full`, or less in a quick run.
    fn size(&self, full: u32) -> u32 {
        (full / self.plan.shrink).max(1)
    }

    /// Takes samples of each side in turn, as many rounds as the plan says.
    fn interleave<T, const N: usize>(
        &mut self,
        mut sides: [&mut dyn FnMut() -> Result<T, Fatal>; N],
    ) -> Result<[Vec<T>; N], Fatal> {
        let mut samples = std::array::from_fn(|_| Vec::new());
        for round in 0..self.plan.rounds {
            self.progress.round(round, self.plan.rounds);
            for (side, samples) in sides.iter_mut().zip(&mut samples) {
                samples.push(side()?);
            }
        }
        Ok(samples)
    }
}

/// The pool that every test measures, its workers at work.
fn ready_pool(transport: TransportKind) -> Result<Pool, Fatal> {
    let mut pool = start_pool(transport)?;
    match pool.wait_ready(READY_TIMEOUT).map_err(|e| failed("starting workers", e))? {
        true => Ok(pool),
        false => Err(failed("starting workers", format_args!("not ready after {} s", READY_TIMEOUT.as_secs()))),
    }
}

/// The same, as soon as it can be given jobs.
fn start_pool(transport: TransportKind) -> Result<Pool, Fatal> {
    handlers::register(Pool::builder())
        .workers(WORKERS)
        .transport(transport)
        .on_start(|| Ok(sys::set_timer_slack(1)?))
        .spawn()
        .map_err(|e| failed("starting a pool", e))
}

fn failed(doing: &str, why: impl Display) -> Fatal {
    Fatal(format!("bench: {doing}: {why}"))
}

/// The result of a limit's measurement.
fn limit<T>(result: OsResult<T>) -> Result<T, Fatal> {
    result.map_err(|e| failed("measuring a limit", e))
}
