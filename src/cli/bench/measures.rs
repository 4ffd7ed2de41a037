//! The tests of exchange: throughput, latency, large bodies; and of starting.

use super::bare::{self, Packed, Waiting};
use super::report::{Better, Row, Subject};
use super::{Bench, Summary, WORKERS, failed, limit, ready_pool, start_pool, summary};
use crate::cli::report::Fatal;
use crate::limits::{PACKET_SIZE_MAX, SEND_BUFFER_SIZE};
use crate::sys;
use crate::{Job, Outcome, Pool, TransportKind};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes of a small job's body.
pub(super) const PAYLOAD: usize = 64;
/// Bytes of a large job's body.
const LARGE: usize = 1 << 20;

// ---- throughput ----

/// Frames in a packet and packets on their way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packing {
    frames: usize,
    window: usize,
    /// Messages on their way to and from each peer with one message a call.
    single_window: usize,
}

/// Frames in a packet that are tried; the most that fit 64 KiB is 744.
const FRAMES: [usize; 3] = [256, 512, 720];
/// Packets on their way that are tried.
const WINDOWS: [usize; 3] = [2, 3, 4];
/// The same for one message a call.
const SINGLE_WINDOWS: [usize; 4] = [1, 4, 16, 64];
/// Each is tried so often, and its best time counts.
const TRIES: u32 = 2;

/// What is fastest here and now.
fn find_packing(bench: &Bench) -> Result<Packing, Fatal> {
    let jobs = u64::from(bench.size(1_000_000));
    let mut tried = Vec::new();
    for frames in FRAMES {
        let mut echo = limit(Packed::start(WORKERS, frames))?;
        for window in WINDOWS {
            tried.push((best_time(&mut echo, window, jobs)?, (frames, window)));
        }
    }
    let mut tried_single = Vec::new();
    let mut echo = limit(Packed::start(WORKERS, 1))?;
    for window in SINGLE_WINDOWS {
        tried_single.push((best_time(&mut echo, window, jobs / 20)?, window));
    }
    let (_, (frames, window)) = tried.into_iter().min().expect("some were tried");
    let (_, single_window) = tried_single.into_iter().min().expect("some were tried");
    Ok(Packing { frames, window, single_window })
}

fn best_time(echo: &mut Packed, window: usize, jobs: u64) -> Result<Duration, Fatal> {
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        best = best.min(limit(echo.run(window, jobs))?);
    }
    Ok(best)
}

/// Jobs a second, 64 bytes upper-cased, each answer looked at in a callback.
pub(super) fn throughput(bench: &mut Bench, transport: TransportKind) -> Result<Vec<Row>, Fatal> {
    let packing = match bench.packing {
        Some(packing) => packing,
        None => find_packing(bench)?,
    };
    bench.packing = Some(packing);
    let Packing { frames, window, single_window } = packing;
    let pool_jobs = bench.size(if is_packing(transport) { 4_000_000 } else { 40_000 });
    let (packed_jobs, single_jobs) = (bench.size(4_000_000), bench.size(160_000));
    let rate = |jobs: u32, took: Duration| f64::from(jobs) / took.as_secs_f64();
    let [pool, packed, single] = bench.interleave([
        &mut || {
            let mut pool = ready_pool(transport)?;
            // The first jobs touch the rings, as the first packets of the limit touch its buffers.
            upper_all(&mut pool, pool_jobs / 10)?;
            upper_all(&mut pool, pool_jobs).map(|took| rate(pool_jobs, took))
        },
        &mut || limit(bare::packed(WORKERS, frames, window, packed_jobs.into())).map(|took| rate(packed_jobs, took)),
        &mut || limit(bare::packed(WORKERS, 1, single_window, single_jobs.into())).map(|took| rate(single_jobs, took)),
    ])?;
    let [pool, packed, single] = [pool, packed, single].map(|rates| summary(&rates, |rate| *rate));
    let subject = Subject { test: "throughput", transport, payload: PAYLOAD, unit: "jobs/s", better: Better::Higher };
    Ok(vec![
        subject
            .row(pool, packed, "bare packed echo")
            .with("frames_per_packet", frames as f64)
            .with("packets_in_flight", window as f64),
        subject
            .row(pool, single, "bare echo, one message a call")
            .variant("one-message-a-call")
            .with("packets_in_flight", single_window as f64),
    ])
}

/// Whether a transport sends many jobs in a packet; the others get fewer jobs, so that a sample takes as long.
pub(super) fn is_packing(transport: TransportKind) -> bool {
    transport != TransportKind::Blocking
}

/// Runs jobs through the pool, judging each answer by its size and first byte, as the limit does.
pub(super) fn upper_all(pool: &mut Pool, jobs: u32) -> Result<Duration, Fatal> {
    let body = black_box([b'a'; PAYLOAD]);
    let (mut done, mut wrong) = (0u32, 0u32);
    let started = Instant::now();
    pool.for_each("upper", (0..jobs).map(|_| &body), |completion, _| {
        done += 1;
        wrong += u32::from(!matches!(completion.outcome, Outcome::Done(b) if b.len() == PAYLOAD && b[0] == b'A'));
    })
    .map_err(|e| failed("running jobs", e))?;
    let took = started.elapsed();
    match (done == jobs, wrong) {
        (true, 0) => Ok(took),
        _ => Err(failed("running jobs", format_args!("{done} of {jobs} answered, {wrong} wrongly"))),
    }
}

// ---- latency ----

/// A sample of latencies. Units: microseconds.
struct Latency {
    p50: f64,
    p99: f64,
}

impl Latency {
    fn of(mut times_ns: Vec<u64>) -> Self {
        times_ns.sort_unstable();
        let at = |percent: usize| times_ns[(times_ns.len() - 1) * percent / 100] as f64 / 1e3;
        Self { p50: at(50), p99: at(99) }
    }
}

/// One job at a time, from before its submission until its result has been delivered, while the other workers idle.
pub(super) fn latency(bench: &mut Bench, transport: TransportKind) -> Result<Vec<Row>, Fatal> {
    let rounds = bench.size(10_000);
    let sleep_rounds = bench.size(4_000);
    let (waiting, waiting_name) = match transport {
        TransportKind::Blocking => (Waiting::SleepInRecv, "bare ping-pong, host sleeps in recv, worker spins first"),
        _ => (Waiting::Spin, "bare ping-pong, both spin first"),
    };
    let ping_pong = |waiting, rounds: u32| limit(bare::ping_pong(waiting, WORKERS - 1, rounds as usize, PAYLOAD));
    // Without a second CPU there is no such limit, and no such row.
    let has_two_cpus = limit(sys::affinity())?.len() >= 2;
    let [pool, same, sleep, apart] = bench.interleave([
        &mut || {
            let mut pool = ready_pool(transport)?;
            one_by_one(&mut pool, &[b'a'; PAYLOAD], rounds / 10)?;
            one_by_one(&mut pool, &[b'a'; PAYLOAD], rounds).map(Some)
        },
        &mut || ping_pong(waiting, rounds).map(Some),
        &mut || ping_pong(Waiting::Sleep, sleep_rounds).map(Some),
        &mut || has_two_cpus.then(|| ping_pong(Waiting::SleepApart, sleep_rounds)).transpose(),
    ])?;
    let [pool, same, sleep, apart] = [pool, same, sleep, apart].map(|times| {
        let latencies: Vec<Latency> = times.into_iter().flatten().map(Latency::of).collect();
        latencies
    });
    let p50 = |samples: &[Latency]| summary(samples, |s| s.p50);
    let p99 = |samples: &[Latency]| summary(samples, |s| s.p99).median;
    let subject = Subject { test: "latency", transport, payload: PAYLOAD, unit: "µs", better: Better::Lower };
    let row = |limit: &[Latency], name| {
        subject.row(p50(&pool), p50(limit), name).with("p99", p99(&pool)).with("limit_p99", p99(limit))
    };
    let mut rows = vec![row(&same, waiting_name), row(&sleep, "bare ping-pong, both sleep").variant("both-sleep")];
    if has_two_cpus {
        let name = "bare ping-pong, both sleep, on two CPUs";
        rows.push(row(&apart, name).variant("both-sleep-apart"));
    }
    Ok(rows)
}

/// Submits a job and waits for its answer, again and again; how long each took. Units: nanoseconds.
fn one_by_one(pool: &mut Pool, body: &[u8], rounds: u32) -> Result<Vec<u64>, Fatal> {
    let handler = pool.handler_id("echo").ok_or_else(|| failed("running jobs", "no handler 'echo'"))?;
    let mut times_ns = Vec::with_capacity(rounds as usize);
    for round in 0..rounds {
        let mut right = false;
        let started = Instant::now();
        pool.submit(Job::new(handler, body)).map_err(|e| failed("submitting a job", e))?;
        let delivered = pool
            .poll(None, |completion, _| right = matches!(completion.outcome, Outcome::Done(b) if b == body))
            .map_err(|e| failed("waiting for a job", e))?;
        times_ns.push(started.elapsed().as_nanos() as u64);
        if (delivered, right) != (1, true) {
            return Err(failed("running jobs", format_args!("job {} came back wrong", round + 1)));
        }
    }
    Ok(times_ns)
}

// ---- large ----

/// Large bodies there and back, one at a time. A body that goes and comes counts once: one way.
pub(super) fn large(bench: &mut Bench, transport: TransportKind) -> Result<Vec<Row>, Fatal> {
    let rounds = bench.size(400);
    let warm_up = bench.size(40);
    let speed = |took: Duration| f64::from(rounds) * (LARGE >> 20) as f64 / took.as_secs_f64();
    let [pool, fragments] = bench.interleave([
        &mut || {
            let mut pool = ready_pool(transport)?;
            echo_large(&mut pool, warm_up, rounds).map(speed)
        },
        &mut || limit(bare::fragments(LARGE, PACKET_SIZE_MAX, SEND_BUFFER_SIZE, warm_up, rounds)).map(speed),
    ])?;
    let [pool, fragments] = [pool, fragments].map(|speeds| summary(&speeds, |speed| *speed));
    let subject = Subject { test: "large", transport, payload: LARGE, unit: "MiB/s", better: Better::Higher };
    Ok(vec![subject.row(pool, fragments, "bare fragments")])
}

/// Sends a large body through the pool; each answer is judged by its size and the round's number in it, the last one
/// whole, as the limit's are.
fn echo_large(pool: &mut Pool, warm_up: u32, rounds: u32) -> Result<Duration, Fatal> {
    let mut body: Vec<u8> = (0..LARGE).map(|i| (i * 7 % 251) as u8).collect();
    let mut echo = |pool: &mut Pool, round: u32, whole: bool| -> Result<(), Fatal> {
        body[..4].copy_from_slice(&round.to_le_bytes());
        let mut right = false;
        pool.submit(Job::new("echo", &body)).map_err(|e| failed("submitting a job", e))?;
        pool.poll(None, |completion, _| {
            right = matches!(completion.outcome, Outcome::Done(b)
                if b.len() == LARGE && b[..4] == body[..4] && (!whole || b == body));
        })
        .map_err(|e| failed("waiting for a job", e))?;
        if right { Ok(()) } else { Err(failed("running jobs", "a large body came back wrong")) }
    };
    for round in 0..warm_up {
        echo(pool, round, false)?;
    }
    let started = Instant::now();
    for round in 0..rounds {
        echo(pool, round, false)?;
    }
    let took = started.elapsed();
    echo(pool, rounds, true)?;
    Ok(took)
}

// ---- spawn ----

/// From the start of a pool until each of its workers has answered a job. Units: milliseconds.
pub(super) fn spawn(bench: &mut Bench, transport: TransportKind) -> Result<Vec<Row>, Fatal> {
    let (starts, forks) = (bench.size(12), bench.size(40));
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let [pool, forked] = bench.interleave([
        &mut || {
            let mut times = Vec::new();
            for _ in 0..starts {
                times.push(ms(first_results(transport)?));
            }
            Ok(median_of(&times))
        },
        &mut || {
            let mut times = Vec::new();
            for _ in 0..forks {
                times.push(ms(limit(bare::fork_exit_wait(WORKERS as u32))?));
            }
            Ok(median_of(&times))
        },
    ])?;
    let [pool, forked] = [pool, forked].map(|times| summary(&times, |ms| *ms));
    let subject = Subject { test: "spawn", transport, payload: PAYLOAD, unit: "ms", better: Better::Lower };
    Ok(vec![subject.row(pool, forked, "a bare fork, exit and wait for each worker")])
}

fn median_of(figures: &[f64]) -> f64 {
    let Summary { median, .. } = summary(figures, |f| *f);
    median
}

fn first_results(transport: TransportKind) -> Result<Duration, Fatal> {
    let body = [b'a'; PAYLOAD];
    let started = Instant::now();
    let mut pool = start_pool(transport)?;
    let mut answered = [false; WORKERS];
    while answered.contains(&false) {
        // More than one job a worker: one that is ready first must not leave the other without.
        while pool.outstanding() < 2 * WORKERS {
            pool.submit(Job::new("upper", &body)).map_err(|e| failed("submitting a job", e))?;
        }
        pool.poll(None, |completion, _| {
            if let (Outcome::Done(_), Some(worker)) = (&completion.outcome, completion.worker()) {
                answered[worker] = true;
            }
        })
        .map_err(|e| failed("waiting for a job", e))?;
    }
    Ok(started.elapsed())
}
