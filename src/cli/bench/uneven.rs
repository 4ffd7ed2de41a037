//! Jobs of uneven length: how near the pool comes to the ideal.
//!
//! The jobs sleep, so that what is measured is the order and the gaps, not the cores. The ideal is list scheduling: each
//! job, in the order of submission, goes to whoever is free first.
//!
//! - `value`: the makespan over the ideal of the run times that the workers measured. Its limit is 1.
//! - `nominal`: the makespan over the ideal of the times that the jobs asked for.
//! - `inflation`: the sum of the run times over the sum of the times asked for, which shows a pool that looks good
//!   because it slows its jobs down. A sleep ends late without a pool, too: `bare_nominal` and `bare_inflation` are the
//!   same figures of bare peers that are given one job at a time.

use super::bare::{self, Slept};
use super::report::{Better, Row, Subject};
use super::{Bench, Summary, WORKERS, failed, limit, ready_pool, summary};
use crate::cli::report::Fatal;
use crate::{Outcome, TransportKind};
use std::time::{Duration, Instant};

const JOBS: usize = 400;
/// One in so many is long.
const LONG_EVERY: usize = 10;
const SHORT: Duration = Duration::from_micros(500);
const LONG: Duration = Duration::from_millis(10);
/// The two as bodies of the handler `sleep`, of the same size.
const SHORT_BODY: &[u8] = b"500us";
const LONG_BODY: &[u8] = b" 10ms";

struct Sample {
    value: f64,
    nominal: f64,
    inflation: f64,
}

impl Sample {
    fn of(slept: &Slept, asked: &[Duration]) -> Self {
        let sum = |times: &[Duration]| times.iter().sum::<Duration>();
        let over = |ideal: Duration| slept.makespan.as_secs_f64() / ideal.as_secs_f64();
        Self {
            value: over(list_schedule(&slept.run_times)),
            nominal: over(list_schedule(asked)),
            inflation: sum(&slept.run_times).as_secs_f64() / sum(asked).as_secs_f64(),
        }
    }
}

pub(super) fn uneven(bench: &mut Bench, transport: TransportKind) -> Result<Vec<Row>, Fatal> {
    let asked = durations();
    let [pool, peers] = bench
        .interleave([&mut || sleep_in_pool(transport, &asked).map(|slept| Sample::of(&slept, &asked)), &mut || {
            limit(bare::sleeps(WORKERS, &asked)).map(|slept| Sample::of(&slept, &asked))
        }])?;
    let subject =
        Subject { test: "uneven", transport, payload: SHORT_BODY.len(), unit: "makespan/ideal", better: Better::Lower };
    let one = Summary { median: 1.0, min: 1.0, max: 1.0 };
    let row = subject
        .row(summary(&pool, |s| s.value), one, "ideal list scheduling of the measured run times")
        .with("nominal", summary(&pool, |s| s.nominal).median)
        .with("inflation", summary(&pool, |s| s.inflation).median)
        .with("bare_value", summary(&peers, |s| s.value).median)
        .with("bare_nominal", summary(&peers, |s| s.nominal).median)
        .with("bare_inflation", summary(&peers, |s| s.inflation).median);
    Ok(vec![row])
}

/// What the jobs ask for: one in ten is long, shuffled, in every run the same.
fn durations() -> Vec<Duration> {
    let mut durations: Vec<Duration> =
        (0..JOBS).map(|i| if i.is_multiple_of(LONG_EVERY) { LONG } else { SHORT }).collect();
    let mut state = 1u64;
    for i in (1..durations.len()).rev() {
        // Knuth's MMIX generator; its upper bits.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        durations.swap(i, (state >> 33) as usize % (i + 1));
    }
    durations
}

/// When the last job ends if each, in this order, goes to the worker that is free first.
fn list_schedule(run_times: &[Duration]) -> Duration {
    let mut busy_until = [Duration::ZERO; WORKERS];
    for &run_time in run_times {
        let first = busy_until.iter_mut().min().expect("there are workers");
        *first += run_time;
    }
    busy_until.into_iter().max().expect("there are workers")
}

fn sleep_in_pool(transport: TransportKind, asked: &[Duration]) -> Result<Slept, Fatal> {
    let mut pool = ready_pool(transport)?;
    let bodies = asked.iter().map(|&d| if d == LONG { LONG_BODY } else { SHORT_BODY });
    let mut run_times = vec![None; asked.len()];
    let mut right = true;
    let started = Instant::now();
    pool.for_each("sleep", bodies, |completion, _| {
        right &= matches!(completion.outcome, Outcome::Done(_));
        run_times[completion.tag as usize] = completion.run_time();
    })
    .map_err(|e| failed("running jobs", e))?;
    let makespan = started.elapsed();
    let run_times: Vec<Duration> = run_times.into_iter().flatten().collect();
    match right && run_times.len() == asked.len() {
        true => Ok(Slept { makespan, run_times }),
        false => Err(failed("running jobs", "a job that sleeps was not done")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_ten_is_long_and_they_are_mixed() {
        let durations = durations();
        let long = |part: &[Duration]| part.iter().filter(|d| **d == LONG).count();
        assert_eq!((durations.len(), long(&durations)), (400, 40));
        assert!(durations.chunks(100).all(|part| (4..=20).contains(&long(part))), "{durations:?}");
    }

    #[test]
    fn bodies_ask_for_what_they_should() {
        for (body, duration) in [(SHORT_BODY, SHORT), (LONG_BODY, LONG)] {
            let text = std::str::from_utf8(body).unwrap();
            assert_eq!(crate::cli::args::parse_duration(text), Ok(duration));
        }
    }

    #[test]
    fn list_scheduling_by_hand() {
        let ms = Duration::from_millis;
        assert_eq!(list_schedule(&[ms(5), ms(1), ms(1), ms(1), ms(4)]), ms(7));
        assert_eq!(list_schedule(&[]), ms(0));
        let slept = Slept { makespan: ms(14), run_times: [10, 2, 2, 2, 8].map(ms).to_vec() };
        let sample = Sample::of(&slept, &[5, 1, 1, 1, 4].map(ms));
        assert_eq!((sample.value, sample.nominal, sample.inflation), (1.0, 2.0, 2.0));
    }
}
