//! What the study says: text for people, JSON for programs, and what the pictures are drawn from.

use super::costs::{Calibration, Costs};
use super::diagram;
use super::picture::{self, Chart, Figure, SweepPoint, window_ns};
use super::plan::{Plan, Server, Supply, Transfer};
use super::servers::Measured;
use super::timeline::{Activity, Lane, Timeline};
use super::{Run, Scenario, sweep};
use crate::cli::machine::Machine;
use serde::Serialize;
use std::fmt::Write;

/// A measurement further from its prediction than this is explained.
pub(super) const TOLERANCE: f64 = 0.15;
/// What a run's picture shows: so many rounds of the longest, by the prediction.
const ROUNDS_SHOWN: usize = 2;
/// Makespans this close are called the same.
const SAME: f64 = 0.02;

/// What a run is called wherever it is named.
pub(super) fn name(scenario: Scenario, plan: &Plan) -> String {
    format!("{}, {}, {}", transfer_name(plan.transfer), scenario.name(), server_name(plan.server))
}

fn transfer_name(transfer: Transfer) -> &'static str {
    match transfer {
        Transfer::Cpu => "cpu",
        Transfer::Wait => "wait",
        Transfer::Mixed { .. } => "mixed",
    }
}

fn server_name(server: Server) -> String {
    match server {
        Server::Blocking => "blocking".to_owned(),
        Server::Nonblocking { parts_per_turn: Some(parts) } => format!("non-blocking, {parts} a turn"),
        Server::Nonblocking { parts_per_turn: None } => "non-blocking, until would-block".to_owned(),
    }
}

fn supply(plan: &Plan) -> String {
    match plan.supply {
        Supply::Rounds => format!("{} jobs each", plan.rounds),
        Supply::Queue => format!("{} jobs from one queue", plan.jobs()),
    }
}

/// Milliseconds.
fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

impl Run {
    fn name(&self) -> String {
        name(self.scenario, &self.plan)
    }

    /// Predicted and measured makespan. Units: milliseconds.
    fn makespans_ms(&self) -> (f64, f64) {
        (ms(self.predicted.makespan_ns), ms(self.median().timeline.makespan_ns))
    }

    /// The end of what is drawn. Units: nanoseconds.
    fn shown_ns(&self) -> u64 {
        window_ns(ROUNDS_SHOWN, &self.predicted, &self.median().timeline)
    }

    fn column_ns(&self) -> u64 {
        self.plan.part_end_ns(0).max(1)
    }

    /// Why a measurement is far from its prediction, with the evidence. `None`: it is not.
    fn cause(&self, machine: &Machine) -> Option<String> {
        if !disturbed(self) {
            return None;
        }
        let (predicted, measured) = self.makespans_ms();
        let off = measured / predicted - 1.0;
        let m = self.median();
        let waits = longest(&m.timeline);
        let best = self.measured.iter().map(|m| ms(m.timeline.makespan_ns)).fold(f64::INFINITY, f64::min);
        Some(format!(
            "{:+.0} % off; the best of {} took {best:.1} ms; the longest part took {waits:.2} ms where {:.2} ms were asked for; \
             the server lost its core {} times and the workers {} times; {} workers and a server on {} cores at load {:.1}",
            off * 100.0,
            self.measured.len(),
            ms(self.column_ns()),
            m.server_switches.involuntary,
            m.worker_switches.involuntary,
            self.plan.workers(),
            machine.usable,
            machine.load,
        ))
    }
}

/// The longest part of a message. Units: milliseconds.
fn longest(timeline: &Timeline) -> f64 {
    let parts = timeline.spans.iter().filter(|s| matches!(s.activity, Activity::Read | Activity::Write));
    ms(parts.map(super::timeline::Span::duration_ns).max().unwrap_or(0))
}

/// Everything for people.
pub(super) fn text(machine: &Machine, calibration: &Calibration, runs: &[Run], repeat: u32) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{machine}");
    if let Some(run) = runs.first() {
        let plan = &run.plan;
        let _ = writeln!(
            text,
            "{} workers, {}; a message takes {} ms by itself, in {} parts; measured: the median of {repeat}, in turn\n\
             r, w: the server reads a result, writes a job; . waits in vain, + waits and the server is free for other work",
            plan.workers(),
            supply(plan),
            ms(plan.message_ns),
            plan.parts,
        );
        text.push_str(&costs_text(calibration, runs));
    }
    for run in runs {
        let _ = writeln!(text, "\n{}", run.name());
        let (server, column, end) = (run.plan.server, run.column_ns(), run.shown_ns());
        let measured = &run.median().timeline;
        for (what, timeline) in [("predicted", &run.predicted), ("measured", measured)] {
            let _ = write!(text, "{what}\n{}", diagram::render(timeline, server, column, end));
        }
        let heads = figure("", "predicted", "measured");
        for Figure { label, predicted, measured } in [heads].into_iter().chain(figures(run)) {
            let _ = writeln!(text, "{label:<28}{predicted:>14}{measured:>20}");
        }
        if let Some(cause) = run.cause(machine) {
            let _ = writeln!(text, "cause: {cause}");
        }
    }
    let _ = writeln!(text, "\nWhat follows");
    for sentence in sentences(runs) {
        let _ = writeln!(text, "- {sentence}");
    }
    text
}

/// What predictions rest on, for each server and each kind of transfer that is there.
fn costs_text(calibration: &Calibration, runs: &[Run]) -> String {
    let mut text = String::from("a prediction counts what this machine adds, measured at the start (medians):\n");
    for transfer in [Transfer::Cpu, Transfer::Wait] {
        for (name, server) in
            [("blocking", Server::Blocking), ("non-blocking", Server::Nonblocking { parts_per_turn: None })]
        {
            if !runs.iter().any(|run| run.plan.transfer == transfer) {
                continue;
            }
            let us = calibration.of(server, transfer).us();
            let what =
                ["an exchange", "a part", "until the server is awake", "until a worker is", "sleeps end late by"];
            let items: Vec<String> = what
                .iter()
                .zip(us)
                .filter(|(_, us)| *us > 0.0)
                .map(|(what, us)| format!("{what} {us:.1} µs"))
                .collect();
            let _ = writeln!(text, "  {}, {name}: {}", transfer_name(transfer), items.join(", "));
        }
    }
    text
}

fn figure(label: &str, predicted: &str, measured: &str) -> Figure {
    Figure { label: label.to_owned(), predicted: predicted.to_owned(), measured: measured.to_owned() }
}

/// The table of a run.
fn figures(run: &Run) -> Vec<Figure> {
    let m = run.median();
    let (predicted, measured) = (&run.predicted, &m.timeline);
    let both = |label: &str, of: &dyn Fn(&Timeline) -> String| figure(label, &of(predicted), &of(measured));
    // The model says nothing about these.
    let only = |label: &str, measured: String| figure(label, "", &measured);
    let mut figures = vec![
        both("makespan", &|t| format!("{:.2} ms", ms(t.makespan_ns))),
        figure("  as drawn, without costs", &format!("{:.2} ms", ms(run.drawn.makespan_ns)), ""),
        both("a round", &|t| format!("{:.2} ms", ms(t.makespan_ns) / f64::from(run.plan.rounds))),
    ];
    for (label, activity) in
        [("server busy", Activity::Busy), ("server blocked", Activity::Blocked), ("server free", Activity::Free)]
    {
        figures.push(both(label, &|t| format!("{:.1} %", 100.0 * t.server_share(activity))));
    }
    for worker in 0..run.plan.workers() {
        let lane = Lane::Worker(worker as u16);
        let label = format!("worker {} waits", worker + 1);
        figures.push(both(&label, &|t| format!("{:.2} ms", ms(t.total_ns(lane, Activity::Wait)))));
    }
    figures
        .push(both("jobs a second", &|t| format!("{:.0}", run.plan.jobs() as f64 * 1e9 / t.makespan_ns.max(1) as f64)));
    let per_job = |n: u64| format!("{n} ({:.1} a job)", n as f64 / run.plan.jobs().max(1) as f64);
    figures.push(only("system calls, server", per_job(m.system_calls)));
    let switches = |s: crate::sys::ContextSwitches| format!("{} + {}", s.voluntary, s.involuntary);
    figures.push(only("context switches, server", switches(m.server_switches)));
    figures.push(only("  the same, workers", switches(m.worker_switches)));
    figures
}

/// What the runs show, in words, from their figures. All compare runs of the same transfer and scenario.
pub(super) fn sentences(runs: &[Run]) -> Vec<String> {
    let mut sentences = Vec::new();
    for transfer in [Transfer::Cpu, Transfer::Wait] {
        for scenario in Scenario::ALL {
            let find = |wanted: fn(Server) -> bool| {
                runs.iter().find(|r| r.plan.transfer == transfer && r.scenario == scenario && wanted(r.plan.server))
            };
            let blocking = find(|s| s == Server::Blocking);
            let turns = find(|s| matches!(s, Server::Nonblocking { parts_per_turn: Some(_) }));
            let unlimited = find(|s| s == Server::Nonblocking { parts_per_turn: None });
            if let (Some(blocking), Some(turns), Some(unlimited)) = (blocking, turns, unlimited) {
                sentences.push(compare(blocking, turns, unlimited));
            }
        }
    }
    sentences
}

/// Whether a measurement is too far from its prediction.
fn disturbed(run: &Run) -> bool {
    let (predicted, measured) = run.makespans_ms();
    (measured / predicted - 1.0).abs() > TOLERANCE
}

fn compare(blocking: &Run, turns: &Run, unlimited: &Run) -> String {
    let [(pb, b), (pt, t), (pu, u)] = [blocking, turns, unlimited].map(Run::makespans_ms);
    let free = |run: &Run| 100.0 * run.median().timeline.server_share(Activity::Free);
    let what = format!("{}, {}", transfer_name(blocking.plan.transfer), blocking.scenario.name());
    let close = |x: f64, y: f64| (x / y - 1.0).abs() <= SAME;
    let figures = format!(
        "blocking {b:.1} ms (predicted {pb:.1}), taking turns {t:.1} ms ({pt:.1}), until would-block {u:.1} ms ({pu:.1})"
    );
    // Which comes first is what there is to learn.
    let order = |x: f64, y: f64| if close(x, y) { std::cmp::Ordering::Equal } else { x.total_cmp(&y) };
    if order(t, b) != order(pt, pb) && (disturbed(blocking) || disturbed(turns)) {
        return format!("{what}: {figures}: the machine was too busy to tell, see the causes.");
    }
    let lesson = match blocking.plan.transfer {
        Transfer::Cpu => {
            let turns_lesson = if close(t, b) {
                "taking turns makes no difference to when all is done".to_owned()
            } else if t > b {
                format!(
                    "taking turns is {:.0} % later: the transfer is the server's own work, so that it only delays everybody's next job",
                    100.0 * (t / b - 1.0)
                )
            } else {
                format!(
                    "taking turns is {:.0} % sooner: whoever is quick comes back for the next job while others are served",
                    100.0 * (1.0 - t / b)
                )
            };
            let unlimited_lesson = if close(u, b) {
                "a non-blocking server that reads until it would block is first come first served, as the blocking one"
            } else {
                "a non-blocking server that reads until it would block serves in the same order as the blocking one"
            };
            format!(
                "{turns_lesson}; {unlimited_lesson}; what non-blocking gains is that its idle time can be used \
                 ({:.0} % free, where blocking has none)",
                free(turns)
            )
        }
        Transfer::Wait if close(t, b) => {
            format!(
                "computing hides that the blocking server waits for one peer at a time; with more workers it would not; \
                 the non-blocking server is free for {:.0} % of the time",
                free(turns)
            )
        }
        Transfer::Wait if t < b => format!(
            "the blocking server waits for one peer while the others wait for it; non-blocking needs {:.0} % of its time \
             and is free for {:.0} % of that",
            100.0 * t / b,
            free(turns)
        ),
        Transfer::Wait | Transfer::Mixed { .. } => {
            format!("non-blocking is {:.0} % later here, which the model does not say", 100.0 * (t / b - 1.0))
        }
    };
    format!("{what}: {figures}: {lesson}.")
}

/// What the pictures are drawn from.
pub(super) fn chart<'r>(machine: &Machine, runs: &'r [Run], sweep: &'r [SweepPoint]) -> Chart<'r> {
    let subtitle = runs.first().map_or(String::new(), |run| {
        format!("{} workers, {}; a prediction knows the plan alone", run.plan.workers(), supply(&run.plan))
    });
    let drawn = |run: &'r Run| picture::Run {
        name: run.name(),
        plan: &run.plan,
        window_ns: run.shown_ns(),
        predicted: &run.predicted,
        measured: &run.median().timeline,
        figures: figures(run),
    };
    Chart {
        title: "Blocking against non-blocking".to_owned(),
        subtitle,
        runs: runs.iter().map(drawn).collect(),
        sweep,
        sentences: sentences(runs),
        machine: machine.to_string(),
    }
}

/// The shape of the JSON file.
#[derive(Serialize)]
pub(super) struct Json<'a> {
    machine: &'a Machine,
    costs_us: JsonCalibration,
    runs: Vec<JsonRun>,
    /// The third server: as `runs`, with an unlimited budget.
    unlimited_runs: Vec<JsonRun>,
    sentences: Vec<String>,
    /// Empty unless asked for.
    sweep: Vec<JsonPoint>,
}

/// Medians of what the predictions rest on. Units: microseconds.
#[derive(Serialize)]
struct JsonCalibration {
    blocking: JsonTransfers,
    nonblocking: JsonTransfers,
}

#[derive(Serialize)]
struct JsonTransfers {
    cpu: JsonCosts,
    wait: JsonCosts,
}

impl JsonTransfers {
    fn of([cpu, wait]: &[Costs; 2]) -> Self {
        Self { cpu: JsonCosts::of(cpu), wait: JsonCosts::of(wait) }
    }
}

#[derive(Serialize)]
struct JsonCosts {
    exchange: f64,
    part: f64,
    server_wake: f64,
    worker_wake: f64,
    timer: f64,
}

impl JsonCosts {
    fn of(costs: &Costs) -> Self {
        let [exchange, part, server_wake, worker_wake, timer] = costs.us();
        Self { exchange, part, server_wake, worker_wake, timer }
    }
}

#[derive(Serialize)]
struct JsonPoint {
    workers: u32,
    wait_share: f64,
    blocking_ms: f64,
    nonblocking_ms: f64,
    measured_blocking_ms: Option<f64>,
    measured_nonblocking_ms: Option<f64>,
}

#[derive(Serialize)]
struct JsonRun {
    server: &'static str,
    scenario: &'static str,
    transfer: &'static str,
    supply: &'static str,
    predicted_ms: f64,
    measured_ms: f64,
    busy_share: f64,
    blocked_share: f64,
    free_share: f64,
    cause: Option<String>,
    parts_per_turn: Option<u32>,
    workers: usize,
    rounds: u32,
    drawn_ms: f64,
    min_ms: f64,
    max_ms: f64,
    predicted_busy_share: f64,
    predicted_blocked_share: f64,
    predicted_free_share: f64,
    predicted_wait_ms: Vec<f64>,
    measured_wait_ms: Vec<f64>,
    system_calls: u64,
    server_context_switches: u64,
    worker_context_switches: u64,
}

pub(super) fn json<'a>(
    machine: &'a Machine,
    calibration: &Calibration,
    runs: &[Run],
    sweep: &[SweepPoint],
) -> Json<'a> {
    let is_unlimited = |run: &&Run| run.plan.server == Server::Nonblocking { parts_per_turn: None };
    let json_run = |run: &Run| JsonRun::of(run, machine);
    Json {
        machine,
        costs_us: JsonCalibration {
            blocking: JsonTransfers::of(&calibration.blocking),
            nonblocking: JsonTransfers::of(&calibration.nonblocking),
        },
        runs: runs.iter().filter(|r| !is_unlimited(r)).map(json_run).collect(),
        unlimited_runs: runs.iter().filter(is_unlimited).map(json_run).collect(),
        sentences: sentences(runs),
        sweep: sweep.iter().filter(|p| !p.measured).map(|p| json_point(p, sweep)).collect(),
    }
}

fn json_point(predicted: &SweepPoint, all: &[SweepPoint]) -> JsonPoint {
    let measured = sweep::measured_at(all, predicted);
    JsonPoint {
        workers: predicted.workers,
        wait_share: predicted.wait_share,
        blocking_ms: predicted.blocking_ms,
        nonblocking_ms: predicted.nonblocking_ms,
        measured_blocking_ms: measured.map(|p| p.blocking_ms),
        measured_nonblocking_ms: measured.map(|p| p.nonblocking_ms),
    }
}

impl JsonRun {
    fn of(run: &Run, machine: &Machine) -> Self {
        let m: &Measured = run.median();
        let (predicted_ms, measured_ms) = run.makespans_ms();
        let all = run.measured.iter().map(|m| ms(m.timeline.makespan_ns));
        let waits = |t: &Timeline| {
            (0..run.plan.workers()).map(|w| ms(t.total_ns(Lane::Worker(w as u16), Activity::Wait))).collect()
        };
        let (server, parts_per_turn) = match run.plan.server {
            Server::Blocking => ("blocking", None),
            Server::Nonblocking { parts_per_turn } => ("nonblocking", parts_per_turn.map(u32::from)),
        };
        Self {
            server,
            scenario: run.scenario.name(),
            transfer: transfer_name(run.plan.transfer),
            supply: match run.plan.supply {
                Supply::Rounds => "rounds",
                Supply::Queue => "queue",
            },
            predicted_ms,
            measured_ms,
            busy_share: m.timeline.server_share(Activity::Busy),
            blocked_share: m.timeline.server_share(Activity::Blocked),
            free_share: m.timeline.server_share(Activity::Free),
            cause: run.cause(machine),
            parts_per_turn,
            workers: run.plan.workers(),
            rounds: run.plan.rounds,
            drawn_ms: ms(run.drawn.makespan_ns),
            min_ms: all.clone().fold(f64::INFINITY, f64::min),
            max_ms: all.fold(0.0, f64::max),
            predicted_busy_share: run.predicted.server_share(Activity::Busy),
            predicted_blocked_share: run.predicted.server_share(Activity::Blocked),
            predicted_free_share: run.predicted.server_share(Activity::Free),
            predicted_wait_ms: waits(&run.predicted),
            measured_wait_ms: waits(&m.timeline),
            system_calls: m.system_calls,
            server_context_switches: m.server_switches.voluntary + m.server_switches.involuntary,
            worker_context_switches: m.worker_switches.voluntary + m.worker_switches.involuntary,
        }
    }
}
