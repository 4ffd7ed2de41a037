//! How to wait for an answer.

use super::{Experiment, PAYLOAD, Row, SAMPLE_ROUNDS, SAMPLE_TIME, Told, failed, median_us, tell, times};
use crate::cli::bench::bare::{PingPong, Waiting};
use crate::cli::figures::figure;
use crate::cli::machine::Machine;
use crate::cli::report::Fatal;
use crate::sys;
use serde::Serialize;
use std::time::Duration;

/// How long to spin before sleeping: less than the longer pause, and more. Units: microseconds.
const SPINS_US: [u64; 2] = [100, 1000];
/// How long one side sleeps between two exchanges. Units: microseconds.
const PAUSES_US: [u64; 2] = [0, 200];

/// What both sides do until a message is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Wherever the kernel puts them.
    Sleep,
    SleepOnOneCpu,
    SleepOnTwoCpus,
    Spin {
        limit_us: u64,
        yields: bool,
    },
}

impl Way {
    fn waiting(self) -> Waiting {
        match self {
            Way::Sleep => Waiting::Sleep,
            Way::SleepOnOneCpu => Waiting::SleepTogether,
            Way::SleepOnTwoCpus => Waiting::SleepApart,
            Way::Spin { limit_us, yields } => Waiting::SpinFor { limit_ns: limit_us * 1000, yields },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Way::Sleep => "sleep",
            Way::SleepOnOneCpu => "sleep, on one CPU",
            Way::SleepOnTwoCpus => "sleep, on two CPUs",
            Way::Spin { yields: false, .. } => "spin",
            Way::Spin { yields: true, .. } => "spin with sched_yield",
        }
    }
}

/// A way of waiting, and a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "Fields")]
pub(super) struct Case {
    way: Way,
    pause_us: u64,
}

/// The same in JSON.
#[derive(Serialize)]
struct Fields {
    waiting: &'static str,
    /// At most, before sleeping; 0: no spin.
    spin_us: u64,
    pause_us: u64,
}

impl From<Case> for Fields {
    fn from(Case { way, pause_us }: Case) -> Self {
        let spin_us = if let Way::Spin { limit_us, .. } = way { limit_us } else { 0 };
        Self { waiting: way.name(), spin_us, pause_us }
    }
}

pub(super) struct Waits {
    has_two_cpus: bool,
}

impl Waits {
    pub(super) fn new() -> Result<Self, Fatal> {
        let cpus = sys::affinity().map_err(|e| failed("waits", e))?;
        Ok(Self { has_two_cpus: cpus.len() >= 2 })
    }
}

impl Experiment for Waits {
    type Case = Case;
    const NAME: &'static str = "waits";
    const SUBJECT: &'static str = "64 bytes there and back, both sides wait alike";
    const LABELS: [&'static str; 2] = ["waiting", "pause"];
    const UNITS: &'static [&'static str] = &["µs"];

    fn cases(&self) -> Vec<Case> {
        let mut ways = vec![Way::Sleep, Way::SleepOnOneCpu];
        ways.extend(self.has_two_cpus.then_some(Way::SleepOnTwoCpus));
        for limit_us in SPINS_US {
            ways.extend([false, true].map(|yields| Way::Spin { limit_us, yields }));
        }
        let with = |pause_us| ways.iter().map(move |&way| Case { way, pause_us });
        PAUSES_US.into_iter().flat_map(with).collect()
    }

    fn note(&self) -> String {
        match self.has_two_cpus {
            true => String::new(),
            false => "sleeping on two CPUs is left out: this process may use one only".to_owned(),
        }
    }

    fn measure(&mut self, case: &Case) -> Result<Vec<f64>, Fatal> {
        let exchange = PingPong {
            waiting: case.way.waiting(),
            peers: 1,
            idle: 0,
            payload: PAYLOAD,
            pause: Duration::from_micros(case.pause_us),
            rounds_max: SAMPLE_ROUNDS,
            time_max: SAMPLE_TIME,
        };
        let times_ns = exchange.run().map_err(|e| failed("waits", e))?;
        Ok(vec![median_us(&times_ns)])
    }

    fn labels(case: &Case) -> [String; 2] {
        let waiting = match case.way {
            Way::Spin { limit_us, .. } => format!("{}, {limit_us} µs", case.way.name()),
            way => way.name().to_owned(),
        };
        [waiting, format!("{} µs", case.pause_us)]
    }

    fn follows(rows: &[Row<Case>], _: &Machine) -> Vec<String> {
        let of = |way: Way, pause_us: u64| {
            rows.iter().find(|row| row.case == Case { way, pause_us }).map(|row| row.summary.median)
        };
        let spin = |limit_us: u64, yields: bool, pause_us: u64| of(Way::Spin { limit_us, yields }, pause_us);
        let [short_us, long_us] = SPINS_US;
        let [no_pause_us, pause_us] = PAUSES_US;
        let mut said = Vec::new();
        if let (Some(one), Some(two)) = (of(Way::SleepOnOneCpu, no_pause_us), of(Way::SleepOnTwoCpus, no_pause_us)) {
            said.push(of_a_wake_up(one, two));
        }
        if let (Some(sleep), Some(spin)) = (of(Way::Sleep, no_pause_us), spin(short_us, true, no_pause_us)) {
            said.push(of_spinning(sleep, spin));
        }
        for pause_us in PAUSES_US {
            if let (Some(without), Some(with)) = (spin(short_us, false, pause_us), spin(short_us, true, pause_us)) {
                said.push(of_yields(pause_us, without, with));
            }
        }
        if let (Some(short), Some(long)) = (spin(short_us, true, pause_us), spin(long_us, true, pause_us)) {
            said.push(of_a_long_spin(pause_us, short, long));
        }
        said
    }
}

fn of_a_wake_up(one: f64, two: f64) -> String {
    let figures = format!("{} µs on two CPUs, {} on one", figure(two), figure(one));
    match tell(two, one) {
        // What is more on two CPUs is more than what is common to both.
        Told::More if two > 2.0 * one => {
            format!("Asleep, an exchange takes {figures}: most of it is waking a core that sleeps.")
        }
        Told::More => {
            format!("Asleep, an exchange takes {figures}: waking a core that sleeps is the smaller part of it.")
        }
        Told::Alike => format!("Asleep, an exchange takes {figures}: waking another core costs next to nothing here."),
        Told::Less => format!("Asleep, an exchange takes {figures}: here it is better to wake another core."),
    }
}

fn of_spinning(sleep: f64, spin: f64) -> String {
    let figures = format!("{} against {} µs", figure(spin), figure(sleep));
    match tell(spin, sleep) {
        Told::Less => format!("Spinning with yields before sleeping is {} as fast ({figures}).", times(sleep / spin)),
        Told::Alike => format!(
            "Spinning with yields before sleeping brings nothing ({figures}), where the kernel puts both sides as it does here."
        ),
        Told::More => {
            format!("Spinning with yields before sleeping is worse: {} as long ({figures}).", times(spin / sleep))
        }
    }
}

fn of_yields(pause_us: u64, without: f64, with: f64) -> String {
    let figures = format!("{} against {} µs", figure(without), figure(with));
    let when = match pause_us {
        0 => "Without pauses".to_owned(),
        _ => format!("With pauses of {pause_us} µs"),
    };
    match tell(without, with) {
        Told::More => format!(
            "{when}, a spin without sched_yield takes {} as long as one with it ({figures}): it starves the very process \
             that it waits for.",
            times(without / with)
        ),
        Told::Alike => format!("{when}, sched_yield in the spin makes no difference in this run ({figures})."),
        Told::Less => format!("{when}, sched_yield in the spin costs more than it brings in this run ({figures})."),
    }
}

fn of_a_long_spin(pause_us: u64, short: f64, long: f64) -> String {
    let [short_us, long_us] = SPINS_US;
    let figures = format!("{} µs instead of {}", figure(long), figure(short));
    match tell(long, short) {
        Told::Less => format!(
            "A spin of {long_us} µs outlasts a pause of {pause_us} µs, one of {short_us} does not: the other side is still \
             awake, and answers in {figures}."
        ),
        _ => format!(
            "A spin of {long_us} µs outlasts a pause of {pause_us} µs, one of {short_us} does not; in this run that brings \
             nothing: {figures}."
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::figures::Summary;

    /// Rows of all cases, of which these have figures of their own.
    fn rows(of: &dyn Fn(&Case) -> f64) -> Vec<Row<Case>> {
        let row = |case: Case| {
            let median = of(&case);
            Row { case, summary: Summary { median, min: median, max: median }, unit: "µs" }
        };
        Waits { has_two_cpus: true }.cases().into_iter().map(row).collect()
    }

    fn said(of: &dyn Fn(&Case) -> f64) -> String {
        Waits::follows(&rows(of), &Machine::of_this_process(None)).join("\n")
    }

    #[test]
    fn the_expected_lesson() {
        let text = said(&|case| match (case.way, case.pause_us) {
            (Way::SleepOnOneCpu, _) => 8.0,
            (Way::Sleep | Way::SleepOnTwoCpus, _) => 44.0,
            (Way::Spin { yields: false, .. }, 200) => 216.0,
            (Way::Spin { limit_us: 100, yields: true }, 200) => 60.0,
            _ => 4.0,
        });
        for words in [
            "44.0 µs on two CPUs, 8.00 on one: most of it is waking a core that sleeps.",
            "Spinning with yields before sleeping is 11 times as fast (4.00 against 44.0 µs).",
            "Without pauses, sched_yield in the spin makes no difference in this run (4.00 against 4.00 µs).",
            "With pauses of 200 µs, a spin without sched_yield takes 3.6 times as long as one with it (216 against 60.0 µs)",
            "still awake, and answers in 4.00 µs instead of 60.0.",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        assert_eq!(text.lines().count(), 5, "{text}");
    }

    #[test]
    fn figures_that_contradict_it() {
        let text = said(&|case| match case.way {
            Way::SleepOnOneCpu => 10.0,
            Way::Spin { yields: true, .. } => 30.0,
            _ => 7.5,
        });
        for words in [
            "7.50 µs on two CPUs, 10.0 on one: here it is better to wake another core.",
            "Spinning with yields before sleeping is worse: 4.0 times as long (30.0 against 7.50 µs).",
            "With pauses of 200 µs, sched_yield in the spin costs more than it brings in this run (7.50 against 30.0 µs).",
            "in this run that brings nothing: 30.0 µs instead of 30.0.",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        let text = said(&|case| if case.way == Way::SleepOnTwoCpus { 15.0 } else { 10.0 });
        assert!(
            text.contains("15.0 µs on two CPUs, 10.0 on one: waking a core that sleeps is the smaller part"),
            "{text}"
        );
        assert!(text.contains("before sleeping brings nothing (10.0 against 10.0 µs)"), "{text}");
        assert!(said(&|_| 10.0).contains("waking another core costs next to nothing here."));
    }

    #[test]
    fn one_cpu_has_fewer_cases() {
        let one = Waits { has_two_cpus: false };
        assert_eq!(one.cases().len() + 2, Waits { has_two_cpus: true }.cases().len());
        assert!(one.note().contains("one only"));
        let rows: Vec<Row<Case>> = rows(&|_| 1.0).into_iter().filter(|r| r.case.way != Way::SleepOnTwoCpus).collect();
        assert!(!Waits::follows(&rows, &Machine::of_this_process(None)).join("").contains("two CPUs"));
    }
}
