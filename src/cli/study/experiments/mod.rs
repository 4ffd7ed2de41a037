//! Short experiments: facts that the pool's design rests on, each measured in a few seconds.
//!
//! They make exchanges with bare system calls (`bench::bare`), nothing of the pool in between. An experiment is a list of
//! cases; all are measured in turn, as often as asked, forth and back (A B B A), so that a change of the machine's mood
//! meets all alike. What follows is said in words that are chosen by the figures: where they do not bear out the lesson, the words say so.

mod fork;
mod oversubscribed;
mod packing;
mod room;
mod waits;

use crate::cli::args::{self, ExperimentArgs};
use crate::cli::figures::{Summary, columns, figure, summary};
use crate::cli::machine::Machine;
use crate::cli::report::{Fatal, measuring_bar, print_lines, print_measured, with_file};
use serde::Serialize;
use std::fmt::{Display, Write};
use std::time::Duration;

/// Bytes of a small message.
const PAYLOAD: usize = 64;
/// A sample of exchanges ends with the first one after this time,
const SAMPLE_TIME: Duration = Duration::from_millis(100);
/// or after so many.
const SAMPLE_ROUNDS: usize = 5000;
/// Figures within this factor of each other are called alike: the same thing measured twice on a machine that others use
/// too differs as much.
const ALIKE: f64 = 1.25;
/// From this factor on, the larger of two figures is mostly what it has beyond the other.
const MOSTLY: f64 = 2.0;

/// A short experiment.
trait Experiment {
    /// One thing that is measured, by its labels; its fields in JSON.
    type Case: Clone + Serialize;
    const NAME: &'static str;
    /// How often everything is measured unless told otherwise; odd, so that the median is a sample.
    const REPEAT: u32 = 5;
    /// What is measured, in the line above the table.
    const SUBJECT: &'static str;
    /// Heads of the columns that tell the cases apart.
    const LABELS: [&'static str; 2];
    /// Units of the figures of a case, in their order.
    const UNITS: &'static [&'static str];

    /// In the order in which they are measured and shown.
    fn cases(&self) -> Vec<Self::Case>;

    /// What a reader must know of the cases before the figures. Empty: nothing.
    fn note(&self) -> String {
        String::new()
    }

    /// One sample: a figure for each unit.
    fn measure(&mut self, case: &Self::Case) -> Result<Vec<f64>, Fatal>;

    /// The cells that tell a case apart.
    fn labels(case: &Self::Case) -> [String; 2];

    /// What follows from all rows, a sentence or two each.
    fn follows(rows: &[Row<Self::Case>], machine: &Machine) -> Vec<String>;
}

/// One figure of one case. Fields in the order of the JSON file.
#[derive(Clone, Debug, Serialize)]
struct Row<C> {
    #[serde(flatten)]
    case: C,
    #[serde(flatten)]
    summary: Summary,
    unit: &'static str,
}

/// The JSON file.
#[derive(Serialize)]
struct Found<'a, C> {
    machine: &'a Machine,
    experiment: &'static str,
    rows: &'a [Row<C>],
}

/// Makes an experiment. The exit code.
pub(super) fn run(experiment: args::Experiment) -> Result<u8, Fatal> {
    match experiment {
        args::Experiment::Waits(args) => make(waits::Waits::new()?, &args),
        args::Experiment::Packing(args) => make(packing::Packing::new()?, &args),
        args::Experiment::Fork(args) => make(fork::Fork::new()?, &args),
        args::Experiment::Oversubscribed(args) => make(oversubscribed::Oversubscribed::new()?, &args),
    }
}

fn make<E: Experiment>(mut experiment: E, args: &ExperimentArgs) -> Result<u8, Fatal> {
    if let Some(path) = &args.json {
        // So that a bad path is known before anything is measured.
        with_file("json", path, |file| {
            drop(file);
            Ok(())
        })?;
    }
    let machine = Machine::of_this_process(None);
    let repeat = args.repeat.unwrap_or(E::REPEAT);
    let rows = measure(&mut experiment, repeat)?;
    // What was measured is shown even if the file cannot be written after all.
    let written = match &args.json {
        Some(path) => {
            let found = Found { machine: &machine, experiment: E::NAME, rows: &rows };
            with_file("json", path, |file| file.write(&found))
        }
        None => Ok(()),
    };
    print_measured(&text::<E>(&machine, &experiment.note(), &rows, repeat), written)
}

/// Measures all cases in turn.
fn measure<E: Experiment>(experiment: &mut E, repeat: u32) -> Result<Vec<Row<E::Case>>, Fatal> {
    let cases = experiment.cases();
    let bar = measuring_bar(u64::from(repeat) * cases.len() as u64);
    if bar.is_none() {
        print_lines(&format!("measuring {} cases {repeat} times", cases.len()));
    }
    let mut samples = vec![Vec::new(); cases.len()];
    for round in 1..=repeat {
        let mut order: Vec<usize> = (0..cases.len()).collect();
        if round.is_multiple_of(2) {
            order.reverse();
        }
        for index in order {
            let case = &cases[index];
            if let Some(bar) = &bar {
                bar.set_message(format!("{}, round {round} of {repeat}", E::labels(case).join(", ")));
                bar.tick();
            }
            samples[index].push(experiment.measure(case)?);
            if let Some(bar) = &bar {
                bar.inc(1);
            }
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let mut rows = Vec::new();
    for (index, &unit) in E::UNITS.iter().enumerate() {
        for (case, samples) in cases.iter().zip(&samples) {
            rows.push(Row { case: case.clone(), summary: summary(samples, |figures| figures[index]), unit });
        }
    }
    Ok(rows)
}

fn text<E: Experiment>(machine: &Machine, note: &str, rows: &[Row<E::Case>], repeat: u32) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{machine}");
    let _ = writeln!(text, "{}", E::SUBJECT);
    let _ = writeln!(text, "median (least … greatest) of {repeat}, in turn");
    if !note.is_empty() {
        let _ = writeln!(text, "{note}");
    }
    let [first, second] = E::LABELS;
    let mut lines = vec![[first, second, "median", "", "unit"].map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        let Summary { median, min, max } = row.summary;
        let [first, second] = E::labels(&row.case);
        [first, second, figure(median), format!("({} … {})", figure(min), figure(max)), row.unit.to_owned()]
    }));
    let _ = write!(text, "\n{}\nWhat follows\n", columns(&lines, &[2]));
    for sentence in E::follows(rows, machine) {
        let _ = writeln!(text, "- {sentence}");
    }
    text
}

/// How one figure stands to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Less,
    Alike,
    More,
}

fn tell(a: f64, than: f64) -> Told {
    match a / than {
        ratio if ratio > ALIKE => Told::More,
        ratio if ratio < 1.0 / ALIKE => Told::Less,
        _ => Told::Alike,
    }
}

/// A number of times, in as many digits as it is worth.
fn times(ratio: f64) -> String {
    match ratio {
        r if r >= 9.95 => format!("{r:.0} times"),
        r => format!("{r:.1} times"),
    }
}

/// How fast something is that takes `a`, beside something that takes `than`.
fn as_fast(a: f64, than: f64) -> String {
    match tell(a, than) {
        Told::Less => format!("{} as fast as", times(than / a)),
        Told::Alike => "no faster and no slower than".to_owned(),
        Told::More => format!("{} as slow as", times(a / than)),
    }
}

/// Nothing could be measured.
fn failed(doing: &str, why: impl Display) -> Fatal {
    Fatal(format!("study: {doing}: {why}"))
}

/// The median of the times of a sample, of which there is at least one. Units: nanoseconds; the result in microseconds.
fn median_us(times_ns: &[u64]) -> f64 {
    summary(times_ns, |&ns| ns as f64 / 1e3).median
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_told_apart() {
        for (a, than, told) in
            [(1.0, 1.0, Told::Alike), (1.2, 1.0, Told::Alike), (1.3, 1.0, Told::More), (1.0, 1.3, Told::Less)]
        {
            assert_eq!(tell(a, than), told, "{a} {than}");
        }
        assert_eq!(
            (times(1.26), times(9.94), times(9.96)),
            ("1.3 times".into(), "9.9 times".into(), "10 times".into())
        );
        assert_eq!(median_us(&[3000, 1000, 2000]), 2.0);
    }
}
