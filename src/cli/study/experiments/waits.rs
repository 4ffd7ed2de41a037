//! How to wait for an answer.

use super::{Experiment, MOSTLY, PAYLOAD, Row, SAMPLE_ROUNDS, SAMPLE_TIME, Told, as_fast, failed, median_us, tell};
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
        let of =
            |way: Way, pause_us: u64| rows.iter().find(|row| row.case == Case { way, pause_us }).map(|row| row.summary);
        let [short_us, long_us] = SPINS_US.map(|limit_us| Way::Spin { limit_us, yields: true });
        let [no_pause_us, pause_us] = PAUSES_US;
        let (Some(sleep), Some(one), Some(spin)) =
            (of(Way::Sleep, no_pause_us), of(Way::SleepOnOneCpu, no_pause_us), of(short_us, no_pause_us))
        else {
            return Vec::new();
        };
        let two = of(Way::SleepOnTwoCpus, no_pause_us);
        let mut said = Vec::new();
        said.extend(two.map(|two| of_a_wake_up(one.median, two.median)));
        said.push(of_spinning(spin.median, sleep.median, two.map(|two| two.median)));
        said.push(of_yields(rows));
        if let (Some(short), Some(long)) = (of(short_us, pause_us), of(long_us, pause_us)) {
            said.push(of_a_long_spin(pause_us, short.median, long.median));
        }
        said
    }
}

fn of_a_wake_up(one: f64, two: f64) -> String {
    let figures = format!("Asleep, an exchange takes {} µs on two CPUs and {} on one", figure(two), figure(one));
    match tell(two, one) {
        Told::More if two > MOSTLY * one => format!("{figures}: most of it is waking a core that sleeps."),
        Told::More => format!("{figures}: waking a core that sleeps is the smaller part of it."),
        Told::Alike => format!("{figures}: waking another core costs next to nothing here."),
        Told::Less => format!("{figures}: here it is better to wake another core."),
    }
}

fn of_spinning(spin: f64, sleep: f64, two: Option<f64>) -> String {
    let two = two.map(|two| format!(", {} on two CPUs", as_fast(spin, two))).unwrap_or_default();
    format!(
        "Spinning with yields before sleeping ({} µs) is {} sleeping where the kernel puts both sides{two}.",
        figure(spin),
        as_fast(spin, sleep)
    )
}

/// Judged by the worst sample: the kernel may put both sides on one CPU in one sample and not in the next.
fn of_yields(rows: &[Row<Case>]) -> String {
    let with_yields = |case: &Case| match case.way {
        Way::Spin { limit_us, yields: false } => {
            let way = Way::Spin { limit_us, yields: true };
            rows.iter().find(|row| row.case == Case { way, ..*case }).map(|with| (limit_us, with.summary))
        }
        _ => None,
    };
    let pairs = rows.iter().filter_map(|row| {
        with_yields(&row.case).map(|(limit_us, with)| (limit_us, row.case.pause_us, row.summary, with))
    });
    let worst = pairs
        .max_by(|(_, _, a, a_with), (_, _, b, b_with)| f64::total_cmp(&(a.max / a_with.max), &(b.max / b_with.max)));
    let Some((limit_us, pause_us, without, with)) = worst else { return String::new() };
    let pauses = if pause_us == 0 { "no pauses".to_owned() } else { format!("pauses of {pause_us}") };
    let when = format!("{limit_us} µs of spinning and {pauses}");
    let figures = format!("{} µs at worst without sched_yield, {} with it", figure(without.max), figure(with.max));
    match tell(without.max, with.max) {
        Told::More if without.max > MOSTLY * with.max => {
            let often = if without.median > MOSTLY * with.median { "most" } else { "some" };
            format!(
                "A spin that does not yield starves the very process that it waits for, in {often} samples: {when} take \
                 {figures}."
            )
        }
        Told::More => format!("sched_yield helps a little: {when} take {figures}."),
        Told::Alike => {
            format!("sched_yield makes no difference in this run: {when} take {figures}, and others differ less.")
        }
        Told::Less => format!("sched_yield costs more than it brings in this run: {when} take {figures}."),
    }
}

fn of_a_long_spin(pause_us: u64, short: f64, long: f64) -> String {
    let [short_us, long_us] = SPINS_US;
    let outlasts = format!("A spin of {long_us} µs outlasts a pause of {pause_us} µs, one of {short_us} does not");
    let figures = format!("{} µs instead of {}", figure(long), figure(short));
    match tell(long, short) {
        Told::Less => format!("{outlasts}: the other side is still awake, and answers in {figures}."),
        _ => format!("{outlasts}; in this run that brings nothing: {figures}."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::figures::Summary;

    /// Rows of all cases: median and greatest.
    fn rows(has_two_cpus: bool, of: &dyn Fn(&Case) -> (f64, f64)) -> Vec<Row<Case>> {
        let row = |case: Case| {
            let (median, max) = of(&case);
            Row { case, summary: Summary { median, min: median, max }, unit: "µs" }
        };
        Waits { has_two_cpus }.cases().into_iter().map(row).collect()
    }

    fn said(of: &dyn Fn(&Case) -> (f64, f64)) -> String {
        Waits::follows(&rows(true, of), &Machine::of_this_process(None)).join("\n")
    }

    #[test]
    fn the_expected_lesson() {
        let with = |starved: (f64, f64)| {
            said(&|case| match (case.way, case.pause_us) {
                (Way::SleepOnOneCpu, _) => (8.0, 9.0),
                (Way::Sleep, _) => (7.5, 9.0),
                (Way::SleepOnTwoCpus, _) => (44.0, 50.0),
                (Way::Spin { limit_us: 100, yields: false }, 200) => starved,
                (Way::Spin { limit_us: 100, yields: true }, 200) => (60.0, 70.0),
                _ => (4.0, 5.0),
            })
        };
        let text = with((216.0, 220.0));
        for words in [
            "takes 44.0 µs on two CPUs and 8.00 on one: most of it is waking a core that sleeps.",
            "(4.00 µs) is 1.9 times as fast as sleeping where the kernel puts both sides, 11 times as fast as on two CPUs.",
            "waits for, in most samples: 100 µs of spinning and pauses of 200 take 220 µs at worst without sched_yield, 70.0 ",
            "does not: the other side is still awake, and answers in 4.00 µs instead of 60.0.",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(
            with((61.0, 2000.0))
                .contains("waits for, in some samples: 100 µs of spinning and pauses of 200 take 2000 µs")
        );
        assert!(
            with((61.0, 100.0))
                .contains("sched_yield helps a little: 100 µs of spinning and pauses of 200 take 100 µs")
        );
    }

    #[test]
    fn figures_that_contradict_it() {
        let text = said(&|case| match case.way {
            Way::SleepOnOneCpu => (10.0, 10.0),
            Way::Spin { yields: true, .. } => (30.0, 30.0),
            _ => (7.5, 7.5),
        });
        for words in [
            "7.50 µs on two CPUs and 10.0 on one: here it is better to wake another core.",
            "(30.0 µs) is 4.0 times as slow as sleeping where the kernel puts both sides, 4.0 times as slow as on two CPUs.",
            "sched_yield costs more than it brings in this run: ",
            "in this run that brings nothing: 30.0 µs instead of 30.0.",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        let text = said(&|case| if case.way == Way::SleepOnTwoCpus { (15.0, 15.0) } else { (10.0, 10.0) });
        for words in [
            "15.0 µs on two CPUs and 10.0 on one: waking a core that sleeps is the smaller part of it.",
            "is no faster and no slower than sleeping where the kernel puts both sides, 1.5 times as fast as on two CPUs.",
            "sched_yield makes no difference in this run: ",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        assert!(said(&|_| (10.0, 10.0)).contains("waking another core costs next to nothing here."));
    }

    #[test]
    fn one_cpu_has_fewer_cases() {
        let one = Waits { has_two_cpus: false };
        assert_eq!(one.cases().len() + 2, Waits { has_two_cpus: true }.cases().len());
        assert!(one.note().contains("one only"));
        let text = Waits::follows(&rows(false, &|_| (1.0, 1.0)), &Machine::of_this_process(None)).join("\n");
        assert!(!text.contains("two CPUs") && text.lines().count() == 3, "{text}");
    }
}
