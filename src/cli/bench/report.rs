//! What the measurements become: JSON for programs, a table for people, and progress while they run.

use super::WORKERS;
use crate::TransportKind;
use crate::cli::figures::{Summary, columns, figure};
use crate::cli::machine::Machine;
use crate::cli::report::{measuring_bar, print_lines};
use indicatif::ProgressBar;
use serde::Serialize;
use std::fmt::Write;

/// All that a run found: the shape of the JSON file.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    pub(super) machine: Machine,
    pub(super) results: Vec<Row>,
}

/// Which way a value is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Better {
    Higher,
    Lower,
}

/// What a row's figures mean, whatever they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject {
    pub(super) test: &'static str,
    pub(super) transport: TransportKind,
    /// Bytes of a job's body.
    pub(super) payload: usize,
    pub(super) unit: &'static str,
    pub(super) better: Better,
}

/// One measurement beside its limit. Fields in the order of the JSON file.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    test: &'static str,
    transport: &'static str,
    workers: usize,
    payload: usize,
    value: f64,
    min: f64,
    max: f64,
    unit: &'static str,
    limit: f64,
    limit_name: &'static str,
    ratio: f64,
    better: Better,
    default: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'static str>,
    limit_min: f64,
    limit_max: f64,
    #[serde(flatten)]
    more: More,
}

/// Further figures of a row, by their names.
#[derive(Debug, Default)]
pub(super) struct More(Vec<(&'static str, f64)>);

impl Serialize for More {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

impl Subject {
    /// A row of these figures.
    pub(super) fn row(self, value: Summary, limit: Summary, limit_name: &'static str) -> Row {
        Row {
            test: self.test,
            transport: self.transport.name(),
            workers: WORKERS,
            payload: self.payload,
            value: value.median,
            min: value.min,
            max: value.max,
            unit: self.unit,
            limit: limit.median,
            limit_name,
            ratio: value.median / limit.median,
            better: self.better,
            default: self.transport == TransportKind::default(),
            variant: None,
            limit_min: limit.min,
            limit_max: limit.max,
            more: More::default(),
        }
    }
}

impl Row {
    /// The same for another limit than the test's first.
    pub(super) fn variant(mut self, name: &'static str) -> Self {
        self.variant = Some(name);
        self
    }

    /// Adds a figure.
    pub(super) fn with(mut self, name: &'static str, figure: f64) -> Self {
        self.more.0.push((name, figure));
        self
    }
}

/// The table, with a line about the machine above it.
pub(super) fn table(results: &Results, rounds: u32) -> String {
    let machine = &results.machine;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{machine}");
    let _ = writeln!(
        text,
        "{WORKERS} workers; median (least … greatest) of {rounds}, in turn with its limit; ratio = value / limit; \
         * = default\n"
    );
    let heads = ["test", "transport", "value", "", "unit", "limit", "ratio", "better", "limit is"];
    let mut lines = vec![heads.map(str::to_owned)];
    lines.extend(results.results.iter().map(cells));
    text.push_str(&columns(&lines, &[2, 5, 6]));
    text
}

fn cells(row: &Row) -> [String; 9] {
    let default = if row.default { " *" } else { "" };
    let better = match row.better {
        Better::Higher => "higher",
        Better::Lower => "lower",
    };
    let count = |n: f64| if n.fract() == 0.0 { n.to_string() } else { figure(n) };
    let more: String =
        row.more.0.iter().map(|(name, n)| format!("; {} {}", name.replace('_', " "), count(*n))).collect();
    [
        row.test.to_owned(),
        format!("{}{default}", row.transport),
        figure(row.value),
        format!("({} … {})", figure(row.min), figure(row.max)),
        row.unit.to_owned(),
        figure(row.limit),
        format!("{:.2}", row.ratio),
        better.to_owned(),
        format!("{}{more}", row.limit_name),
    ]
}

/// How far the run is, on standard error: a line that moves on a terminal, a line for each test elsewhere.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    test: String,
}

impl Progress {
    pub(super) fn new(tests: usize) -> Self {
        Self { bar: measuring_bar(tests as u64), test: String::new() }
    }

    /// A test begins.
    pub(super) fn begin(&mut self, test: &str, transport: TransportKind) {
        let is_first = self.test.is_empty();
        self.test = format!("{test}, {transport}");
        match &self.bar {
            Some(bar) if is_first => bar.set_position(0),
            Some(bar) => bar.inc(1),
            None => print_lines(&format!("measuring {}", self.test)),
        }
        self.show(String::new());
    }

    /// A round of it begins; counted from 0.
    pub(super) fn round(&self, round: u32, of: u32) {
        self.show(format!(": round {} of {of}", round + 1));
    }

    fn show(&self, what: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}{what}", self.test));
            bar.tick();
        }
    }

    /// Takes the moving line away.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let subject = Subject {
            test: "latency",
            transport: TransportKind::Seqpacket,
            payload: 64,
            unit: "µs",
            better: Better::Lower,
        };
        let value = Summary { median: 6.0, min: 5.0, max: 9.0 };
        let limit = Summary { median: 4.0, min: 3.0, max: 5.0 };
        subject.row(value, limit, "bare").with("p99", 12.25)
    }

    #[test]
    fn rows_keep_the_order_of_their_fields() {
        let text = serde_json::to_string(&row().variant("both-sleep")).unwrap();
        assert_eq!(
            text,
            "{\"test\":\"latency\",\"transport\":\"seqpacket\",\"workers\":2,\"payload\":64,\"value\":6.0,\"min\":5.0,\
             \"max\":9.0,\"unit\":\"µs\",\"limit\":4.0,\"limit_name\":\"bare\",\"ratio\":1.5,\"better\":\"lower\",\
             \"default\":true,\"variant\":\"both-sleep\",\"limit_min\":3.0,\"limit_max\":5.0,\"p99\":12.25}"
        );
        assert!(!serde_json::to_string(&row()).unwrap().contains("variant"));
    }

    #[test]
    fn columns_are_aligned() {
        let results = Results { machine: Machine::of_this_process(None), results: vec![row(), row()] };
        let text = table(&results, 7);
        let lines: Vec<&str> = text.lines().skip(3).collect();
        assert_eq!(lines.len(), 3, "{text}");
        let at = |line: &str, what: &str| line.find(what).map(|at| line[..at].chars().count());
        assert_eq!(at(lines[0], "limit is"), at(lines[1], "bare"), "{text}");
        assert!(lines[1].ends_with("1.50  lower   bare; p99 12.2"), "{text}");
    }
}
