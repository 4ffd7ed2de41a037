//! Whether spinning pays when there are more processes than CPUs.

use super::{Experiment, PAYLOAD, Row, SAMPLE_ROUNDS, SAMPLE_TIME, as_fast, failed, median_us};
use crate::cli::bench::bare::{PingPong, Waiting};
use crate::cli::figures::figure;
use crate::cli::machine::Machine;
use crate::cli::report::Fatal;
use crate::limits::SPIN_NS_MAX;
use crate::sys;
use serde::Serialize;
use std::time::Duration;

const WORKERS: [usize; 3] = [1, 2, 4];

/// What all sides do until a message is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Way {
    /// Wherever the kernel puts them.
    #[serde(rename = "sleep")]
    Sleep,
    /// As they are while workers compute.
    #[serde(rename = "sleep, host and workers on two CPUs")]
    SleepApart,
    /// As the pool does.
    #[serde(rename = "spin with sched_yield")]
    Spin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Case {
    workers: usize,
    waiting: Way,
    /// At most, before sleeping; 0: no spin.
    spin_us: u64,
}

impl Case {
    fn of(workers: usize, waiting: Way) -> Self {
        let spin_us = if waiting == Way::Spin { SPIN_NS_MAX / 1000 } else { 0 };
        Self { workers, waiting, spin_us }
    }
}

pub(super) struct Oversubscribed {
    has_two_cpus: bool,
}

impl Oversubscribed {
    pub(super) fn new() -> Result<Self, Fatal> {
        let cpus = sys::affinity().map_err(|e| failed("oversubscribed", e))?;
        Ok(Self { has_two_cpus: cpus.len() >= 2 })
    }
}

impl Experiment for Oversubscribed {
    type Case = Case;
    const NAME: &'static str = "oversubscribed";
    const SUBJECT: &'static str = "64 bytes to one worker after the other and back, one at a time; all wait alike";
    const LABELS: [&'static str; 2] = ["workers", "waiting"];
    const UNITS: &'static [&'static str] = &["µs"];

    fn cases(&self) -> Vec<Case> {
        let mut ways = vec![Way::Sleep, Way::Spin];
        if self.has_two_cpus {
            ways.insert(1, Way::SleepApart);
        }
        WORKERS.into_iter().flat_map(|workers| ways.iter().map(move |&way| Case::of(workers, way))).collect()
    }

    fn note(&self) -> String {
        match self.has_two_cpus {
            true => String::new(),
            false => "sleeping on two CPUs is left out: this process may use one only".to_owned(),
        }
    }

    fn measure(&mut self, case: &Case) -> Result<Vec<f64>, Fatal> {
        let exchange = PingPong {
            waiting: match case.waiting {
                Way::Sleep => Waiting::Sleep,
                Way::SleepApart => Waiting::SleepApart,
                Way::Spin => Waiting::Spin,
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
        let waiting = match case.waiting {
            Way::Sleep => "sleep".to_owned(),
            Way::SleepApart => "sleep, host and workers on two CPUs".to_owned(),
            Way::Spin => format!("spin with sched_yield, {} µs", case.spin_us),
        };
        [case.workers.to_string(), waiting]
    }

    fn follows(rows: &[Row<Case>], machine: &Machine) -> Vec<String> {
        let of = |workers, way| {
            let case = Case::of(workers, way);
            rows.iter().find(|row| row.case == case).map(|row| row.summary.median)
        };
        let mut said = Vec::new();
        for workers in WORKERS {
            let (Some(spin), Some(sleep)) = (of(workers, Way::Spin), of(workers, Way::Sleep)) else { continue };
            let apart = of(workers, Way::SleepApart);
            let apart = apart.map(|apart| format!(", {} on two CPUs", as_fast(spin, apart))).unwrap_or_default();
            said.push(format!(
                "{workers} {} and a host on {}: spinning with yields ({} µs) is {} sleeping where the kernel puts \
                 them{apart}.",
                if workers == 1 { "worker" } else { "workers" },
                if machine.usable == 1 { "1 CPU".to_owned() } else { format!("{} CPUs", machine.usable) },
                figure(spin),
                as_fast(spin, sleep)
            ));
        }
        // The host is a process too.
        if WORKERS.iter().all(|workers| *workers < machine.usable) {
            said.push(
                "Nothing follows for more processes than CPUs: `taskset -c 0,1` takes all but two away.".to_owned(),
            );
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::figures::Summary;

    fn said(usable: usize, spin: impl Fn(usize) -> f64) -> String {
        let row = |case: Case| {
            let median = match case.waiting {
                Way::Sleep => 10.0,
                Way::SleepApart => 50.0,
                Way::Spin => spin(case.workers),
            };
            Row { case, summary: Summary { median, min: median, max: median }, unit: "µs" }
        };
        let rows: Vec<Row<Case>> = Oversubscribed { has_two_cpus: usable > 1 }.cases().into_iter().map(row).collect();
        let machine = Machine { usable, ..Machine::of_this_process(None) };
        Oversubscribed::follows(&rows, &machine).join("\n")
    }

    #[test]
    fn the_expected_lesson() {
        assert_eq!(
            said(2, |workers| 2.5 * workers as f64),
            "1 worker and a host on 2 CPUs: spinning with yields (2.50 µs) is 4.0 times as fast as sleeping where \
             the kernel puts them, 20 times as fast as on two CPUs.\n\
             2 workers and a host on 2 CPUs: spinning with yields (5.00 µs) is 2.0 times as fast as sleeping where \
             the kernel puts them, 10 times as fast as on two CPUs.\n\
             4 workers and a host on 2 CPUs: spinning with yields (10.0 µs) is no faster and no slower than sleeping \
             where the kernel puts them, 5.0 times as fast as on two CPUs."
        );
    }

    #[test]
    fn figures_that_contradict_it() {
        let text = said(2, |_| 80.0);
        let words = "4 workers and a host on 2 CPUs: spinning with yields (80.0 µs) is 8.0 times as slow as sleeping \
                     where the kernel puts them, 1.6 times as slow as on two CPUs.";
        assert!(text.ends_with(words), "{text}");
        let text = said(1, |_| 10.0);
        assert!(text.starts_with("1 worker and a host on 1 CPU: spinning with yields (10.0 µs) is no fas"), "{text}");
        assert!(!text.contains("two CPUs"), "{text}");
    }

    #[test]
    fn enough_cpus_teach_nothing() {
        let text = said(64, |_| 5.0);
        assert!(text.contains("\nNothing follows for more processes than CPUs: "), "{text}");
        assert!(!said(4, |_| 5.0).contains("Nothing follows"));
    }
}
