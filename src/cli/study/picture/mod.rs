//! Runs drawn: as SVG, as an HTML page, as a trace for Perfetto, and the sweep as a map.
//!
//! Everything is drawn from the spans of two timelines, the predicted and the measured one, by the same code. Only the
//! words around them come from the caller. Texts are Unicode and are escaped here.
//!
//! Pictures do without colour: each activity has a brightness or a pattern of its own, and parts of messages bear the
//! letters of the original drawings where there is room. The colours are apart for colour-blind eyes too (Okabe and
//! Ito, "Color Universal Design", 2008).

mod html;
mod lanes;
mod legend;
mod perfetto;
mod svg;
mod sweep;
#[cfg(test)]
mod tests;

use super::plan::{Compute, Plan, Server, Supply, Transfer};
use super::timeline::{Activity, Lane, Timeline};

pub(crate) use html::html;
pub(crate) use perfetto::perfetto;
pub(crate) use svg::svg;
pub(crate) use sweep::{SweepPoint, TIE, svg_sweep};

/// Units: nanoseconds.
const MILLISECOND: u64 = 1_000_000;
/// However long a measured run was held up, no window is longer than so many predicted ones.
const WINDOW_STRETCH_MAX: u64 = 2;
/// Above so many workers, what each computes is given by its range.
const COMPUTE_LISTED_MAX: usize = 8;

/// What is drawn.
pub(crate) struct Chart<'a> {
    pub(crate) title: String,
    pub(crate) subtitle: String,
    pub(crate) runs: Vec<Run<'a>>,
    /// May be empty. Only the HTML page draws it with the runs.
    pub(crate) sweep: &'a [SweepPoint],
    /// What follows from the runs, in words. Only the HTML page has them.
    pub(crate) sentences: Vec<String>,
    /// What it was measured on.
    pub(crate) machine: String,
}

/// One run, predicted and measured.
pub(crate) struct Run<'a> {
    /// Server, scenario, transfer and supply, in words.
    pub(crate) name: String,
    pub(crate) plan: &'a Plan,
    /// How much is drawn, from the beginning: see [`window_ns`]. Traces have all of it.
    pub(crate) window_ns: u64,
    pub(crate) predicted: &'a Timeline,
    pub(crate) measured: &'a Timeline,
    pub(crate) figures: Vec<Figure>,
}

/// A line of a run's table, with units in the label. A figure that there is not is empty.
pub(crate) struct Figure {
    pub(crate) label: String,
    pub(crate) predicted: String,
    pub(crate) measured: String,
}

impl Run<'_> {
    /// Both timelines and their names, in the order in which they are drawn.
    fn timelines(&self) -> [(&'static str, &Timeline); 2] {
        [("predicted", self.predicted), ("measured", self.measured)]
    }

    /// Workers 1 to n, then the server; the same for both timelines.
    fn lanes(&self) -> impl Iterator<Item = Lane> {
        let workers = self.plan.workers().max(self.predicted.workers).max(self.measured.workers);
        (0..=u16::MAX).take(workers).map(Lane::Worker).chain([Lane::Server])
    }
}

/// How much of a run to draw for its first `rounds` rounds: until each worker has been written so many jobs, in whole
/// milliseconds; all of it if no worker has. Units: nanoseconds.
pub(crate) fn window_ns(rounds: usize, predicted: &Timeline, measured: &Timeline) -> u64 {
    // A worker computes as soon as it has a job.
    let written = |timeline: &Timeline| {
        let of = |worker| {
            let mut computes = timeline.lane(worker).filter(|s| s.activity == Activity::Compute);
            computes.nth(rounds.saturating_sub(1)).map(|s| s.start_ns)
        };
        let last = (0..=u16::MAX).take(timeline.workers).filter_map(|n| of(Lane::Worker(n))).max();
        last.unwrap_or(timeline.makespan_ns)
    };
    let predicted_ns = written(predicted);
    let window = predicted_ns.max(written(measured).min(WINDOW_STRETCH_MAX * predicted_ns));
    window.next_multiple_of(MILLISECOND)
}

fn lane_name(lane: Lane) -> String {
    match lane {
        Lane::Worker(n) => format!("worker {}", u32::from(n) + 1),
        Lane::Server => "server".to_owned(),
    }
}

/// Nanoseconds as milliseconds, with at most three decimals.
fn ms(ns: u64) -> String {
    let text = format!("{:.3}", ns as f64 / MILLISECOND as f64);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn plural(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A plan in words.
fn plan_text(plan: &Plan) -> String {
    let mut computing: Vec<u64> = plan.compute_ns.clone();
    if plan.workers() > COMPUTE_LISTED_MAX {
        computing = [computing.iter().min(), computing.iter().max()].into_iter().flatten().copied().collect();
    }
    let separator = if plan.workers() > COMPUTE_LISTED_MAX { " to " } else { ", " };
    if computing.iter().all(|ns| Some(ns) == computing.first()) {
        computing.truncate(1);
    }
    let computing: Vec<String> = computing.into_iter().map(ms).collect();
    let server = match plan.server {
        Server::Blocking => "one worker at a time".to_owned(),
        Server::Nonblocking { parts_per_turn: Some(n) } => format!("{} a turn", plural(n.get().into(), "part")),
        Server::Nonblocking { parts_per_turn: None } => "as many parts a turn as there are".to_owned(),
    };
    format!(
        "{server}; {}, computing {} ms ({}); messages of {} ms in {}, {}; {}",
        plural(plan.workers() as u64, "worker"),
        computing.join(separator),
        match plan.compute {
            Compute::Sleep => "asleep",
            Compute::Spin => "spinning",
        },
        ms(plan.message_ns),
        plural(plan.parts.into(), "part"),
        match plan.transfer {
            Transfer::Cpu => "each the server's own work",
            Transfer::Wait => "each with a wait for the peer",
            Transfer::Mixed { .. } => "each with a wait for the peer and work of the server",
        },
        match plan.supply {
            Supply::Rounds => format!("{} each", plural(plan.rounds.into(), "job")),
            Supply::Queue => format!("{} from a shared queue", plural(plan.jobs(), "job")),
        },
    )
}
