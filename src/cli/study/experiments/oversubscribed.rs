//! Whether spinning pays when there are more processes than CPUs.

use super::{Experiment, PAYLOAD, Row, SAMPLE_ROUNDS, SAMPLE_TIME, Told, failed, median_us, tell, times};
use crate::cli::bench::bare::{PingPong, Waiting};
use crate::cli::figures::figure;
use crate::cli::machine::Machine;
use crate::cli::report::Fatal;
use crate::limits::SPIN_NS_MAX;
use serde::Serialize;
use std::time::Duration;

const WORKERS: [usize; 3] = [1, 2, 4];
/// How long all spin, if they do: as the pool does. Units: microseconds.
const SPIN_US: u64 = SPIN_NS_MAX / 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Case {
    workers: usize,
    /// At most, before sleeping; 0: no spin.
    spin_us: u64,
}

pub(super) struct Oversubscribed;

impl Experiment for Oversubscribed {
    type Case = Case;
    const NAME: &'static str = "oversubscribed";
    const SUBJECT: &'static str = "64 bytes to one worker after the other and back, one at a time";
    const LABELS: [&'static str; 2] = ["workers", "waiting, workers and host"];
    const UNITS: &'static [&'static str] = &["µs"];

    fn cases(&self) -> Vec<Case> {
        WORKERS.into_iter().flat_map(|workers| [0, SPIN_US].map(|spin_us| Case { workers, spin_us })).collect()
    }

    fn measure(&mut self, case: &Case) -> Result<Vec<f64>, Fatal> {
        let exchange = PingPong {
            waiting: match case.spin_us {
                0 => Waiting::Sleep,
                _ => Waiting::Spin,
            },
            peers: case.workers,
            idle: 0,
            payload: PAYLOAD,
            pause: Duration::ZERO,
            rounds_max: SAMPLE_ROUNDS,
            time_max: SAMPLE_TIME,
        };
        let times_ns = exchange.run().map_err(|e| failed("oversubscribed", e))?;
        Ok(vec![median_us(&times_ns)])
    }

    fn labels(case: &Case) -> [String; 2] {
        let waiting = match case.spin_us {
            0 => "sleep".to_owned(),
            us => format!("spin with sched_yield, {us} µs"),
        };
        [case.workers.to_string(), waiting]
    }

    fn follows(rows: &[Row<Case>], machine: &Machine) -> Vec<String> {
        let of = |workers: usize, spin_us: u64| {
            rows.iter().find(|row| row.case == Case { workers, spin_us }).map(|row| row.summary.median)
        };
        let pairs: Vec<(usize, f64, f64)> =
            WORKERS.into_iter().filter_map(|workers| Some((workers, of(workers, 0)?, of(workers, SPIN_US)?))).collect();
        // The host is a process too.
        let (over, under): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(workers, ..)| workers + 1 > machine.usable);
        let mut said = Vec::new();
        if !under.is_empty() {
            said.push(format!("With no more processes than CPUs ({}), {}.", machine.usable, verdict(&under)));
        }
        said.push(match over.is_empty() {
            false => format!("With more processes than CPUs ({}), {}.", machine.usable, verdict(&over)),
            true => format!(
                "Nothing follows for more processes than CPUs: there are {} here; `taskset -c 0,1` takes all but two away.",
                machine.usable
            ),
        });
        said
    }
}

/// Of pairs of figures, asleep and spinning, by workers.
fn verdict(pairs: &[(usize, f64, f64)]) -> String {
    let told: Vec<Told> = pairs.iter().map(|&(_, sleep, spin)| tell(spin, sleep)).collect();
    let each: Vec<String> = pairs
        .iter()
        .map(|&(workers, sleep, spin)| {
            let many = if workers == 1 { "worker" } else { "workers" };
            format!("{workers} {many}: {} against {} µs asleep", figure(spin), figure(sleep))
        })
        .collect();
    let each = each.join("; ");
    let least = pairs.iter().map(|(_, sleep, spin)| sleep / spin).fold(f64::INFINITY, f64::min);
    if told.iter().all(|told| *told == Told::Less) {
        return format!("spinning with yields pays, at least {} ({each})", times(least));
    }
    if told.contains(&Told::More) {
        return format!("spinning with yields costs more than it brings, in part or always ({each})");
    }
    format!("spinning with yields does not pay throughout in this run ({each})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::figures::Summary;

    fn said(usable: usize, spin: impl Fn(usize) -> f64) -> String {
        let row = |case: Case| {
            let median = if case.spin_us == 0 { 50.0 } else { spin(case.workers) };
            Row { case, summary: Summary { median, min: median, max: median }, unit: "µs" }
        };
        let rows: Vec<Row<Case>> = Oversubscribed.cases().into_iter().map(row).collect();
        let machine = Machine { usable, ..Machine::of_this_process(None) };
        Oversubscribed::follows(&rows, &machine).join("\n")
    }

    #[test]
    fn the_expected_lesson() {
        let text = said(2, |workers| 5.0 * workers as f64);
        let under =
            "With no more processes than CPUs (2), spinning with yields pays, at least 10 times (1 worker: 5.00 ";
        let over = "With more processes than CPUs (2), spinning with yields pays, at least 2.5 times (2 workers: 10.0 against \
                    50.0 µs asleep; 4 workers: 20.0 against 50.0 µs asleep).";
        assert!(text.starts_with(under) && text.ends_with(over), "{text}");
    }

    #[test]
    fn figures_that_contradict_it() {
        let text = said(2, |workers| if workers == 4 { 80.0 } else { 5.0 });
        assert!(
            text.contains("With more processes than CPUs (2), spinning with yields costs more than it brings"),
            "{text}"
        );
        let text = said(1, |_| 50.0);
        assert!(
            text.starts_with("With more processes than CPUs (1), spinning with yields does not pay through"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
        let text = said(64, |_| 5.0);
        assert!(text.contains("Nothing follows for more processes than CPUs: there are 64 here"), "{text}");
    }
}
