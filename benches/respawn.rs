//! What a worker's death costs, in hosts of different sizes, by fork mode and by exec mode, beside a bare fork.
//!
//! `cargo bench --bench respawn` kills a pool's only worker again and again, each time from `SIGKILL` until its successor
//! has answered a job, and prints medians with their spread: in a small host, in the same host when it has grown after
//! `spawn`, and in pools that are spawned only then. The limit is a fork of the grown host, exit and wait, which is less
//! than a worker needs. With `--test`, or run by `cargo test`, sizes and counts are small and nothing is judged.
//!
//! No criterion here: one process grows in the midst of it, and what is timed has to be provoked each time.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seqpool::cli::bench::bare::fork_exit_wait;
use seqpool::{Builder, Outcome, Pool};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
/// A small host's memory, and a grown one's.
const SIZES: [usize; 2] = [10 * MIB, 2048 * MIB];
const SIZES_IN_TEST: [usize; 2] = [10 * MIB, 64 * MIB];
const DEATHS: usize = 201;
const DEATHS_IN_TEST: usize = 5;
/// Where each takes long.
const FEW: usize = 21;
/// In the grown host a respawn takes at most so many times what it takes in the small one.
const GROWTH_MAX: f64 = 2.0;
/// And a fork of the grown host at least so many times what a respawn takes.
const GAIN_MIN: f64 = 20.0;

/// Handlers of every pool here.
fn handlers(pool: Builder) -> Builder {
    pool.workers(1).handler("echo", |request, reply| {
        reply.extend_from_slice(request.body());
        Ok(())
    })
}

fn answer(pool: &mut Pool) {
    let outcomes: Vec<_> = pool.map("echo", ["?"]).collect();
    assert_eq!(outcomes, [Outcome::Done(b"?".to_vec())]);
}

/// Kills the only worker; how long until its successor has answered.
fn death(pool: &mut Pool) -> Duration {
    // Its process id comes by another way than its answers.
    assert!(pool.wait_ready(Duration::from_secs(60)).expect("a pool"), "a worker");
    let before = pool.stats().respawns;
    let (_, workers) = pool.processes();
    let [worker] = workers[..] else { panic!("one worker: {workers:?}") };
    let began = Instant::now();
    kill(Pid::from_raw(worker), Signal::SIGKILL).expect("kill");
    answer(pool);
    let took = began.elapsed();
    assert_eq!(pool.stats().respawns, before + 1, "the successor has answered");
    took
}

/// Memory that is really there.
fn memory(bytes: usize) -> Vec<u8> {
    let mut memory = vec![0; bytes];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    memory
}

/// A process's resident memory. Units: MiB.
fn resident(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

struct Report {
    medians: Vec<(&'static str, f64)>,
}

impl Report {
    fn add(&mut self, name: &'static str, mut times: Vec<Duration>) {
        times.sort_unstable();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (min, median, max) = (ms(times[0]), ms(times[times.len() / 2]), ms(times[times.len() - 1]));
        println!("{name:<52} {:>4} {min:>8.3} {median:>8.3} {max:>8.3}", times.len());
        self.medians.push((name, median));
    }

    fn deaths(&mut self, name: &'static str, pool: &mut Pool, count: usize) {
        answer(pool);
        death(pool);
        self.add(name, (0..count).map(|_| death(pool)).collect());
    }

    fn median(&self, name: &str) -> f64 {
        self.medians.iter().find(|(n, _)| *n == name).expect("it was measured").1
    }
}

/// How long a pool takes until its worker has answered, several times. The last pool stays.
fn spawned(report: &mut Report, name: &'static str, builder: impl Fn() -> Builder, count: usize) -> Pool {
    let mut last = None;
    let times = (0..count).map(|_| {
        drop(last.take());
        let began = Instant::now();
        let mut pool = builder().spawn().unwrap_or_else(|error| panic!("a pool: {error}"));
        answer(&mut pool);
        let took = began.elapsed();
        last = Some(pool);
        took
    });
    let times = times.collect();
    report.add(name, times);
    last.expect("at least one")
}

fn main() -> ExitCode {
    seqpool::init(handlers);
    let (mut is_bench, mut is_test) = (false, false);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            // From cargo.
            "--bench" => is_bench = true,
            "--test" => is_test = true,
            option => {
                eprintln!("respawn: unknown argument {option}: known are --bench and --test");
                return ExitCode::from(2);
            }
        }
    }
    let is_full = is_bench && !is_test;
    let ([small, large], deaths) = if is_full { (SIZES, DEATHS) } else { (SIZES_IN_TEST, DEATHS_IN_TEST) };
    let few = FEW.min(deaths);
    let mut report = Report { medians: Vec::new() };
    println!("small host: {} MiB, grown host: {} MiB; milliseconds", small / MIB, large / MIB);
    println!("{:<52} {:>4} {:>8} {:>8} {:>8}", "", "n", "min", "median", "max");

    let forked = || handlers(Pool::builder());
    let mut held = vec![memory(small)];
    let mut early = spawned(&mut report, "start, small host, fork mode", forked, few);
    let mut early_exec = spawned(&mut report, "start, small host, exec mode", Pool::exec_builder, few);
    report.deaths(SMALL, &mut early, deaths);
    report.deaths("respawn, small host, exec mode", &mut early_exec, deaths);
    held.push(memory(large - small));
    report.deaths(GROWN, &mut early, deaths);
    report.deaths("respawn, grown after spawn, exec mode", &mut early_exec, deaths);
    let forks = |count| (0..count).map(|_| fork_exit_wait(1).expect("a fork")).collect();
    report.add(FORK, forks(few));
    let mut late_exec = spawned(&mut report, "start, grown host, exec mode", Pool::exec_builder, few);
    report.deaths("respawn, spawned when grown, exec mode", &mut late_exec, deaths);
    let mut late = spawned(&mut report, "start, grown host, fork mode", forked, few);
    report.deaths("respawn, spawned when grown, fork mode", &mut late, few);

    // What a nursery was forked with stays, whatever its host does.
    drop(held);
    println!("\nresident memory of the nursery, MiB");
    for (name, pool) in [
        ("fork mode, spawned in the small host", &early),
        ("exec mode, spawned in the small host", &early_exec),
        ("exec mode, spawned in the grown host", &late_exec),
        ("fork mode, spawned in the grown host", &late),
    ] {
        let nursery = pool.processes().0.expect("a nursery");
        println!("{name:<52} {:>8.1}", resident(nursery));
    }
    if is_full {
        let verdict = |reached: bool| if reached { "reached" } else { "missed" };
        let (growth, gain) = (report.median(GROWN) / report.median(SMALL), report.median(FORK) / report.median(GROWN));
        println!(
            "\nrespawn in the grown host, of that in the small one: {growth:.2}, at most {GROWTH_MAX}: {}",
            verdict(growth <= GROWTH_MAX)
        );
        println!("a fork of the grown host, of that: {gain:.1}, at least {GAIN_MIN}: {}", verdict(gain >= GAIN_MIN));
    }
    ExitCode::SUCCESS
}

const SMALL: &str = "respawn, small host, fork mode";
const GROWN: &str = "respawn, grown after spawn, fork mode";
const FORK: &str = "bare fork of the grown host, exit, wait";
