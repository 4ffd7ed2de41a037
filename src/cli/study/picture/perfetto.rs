//! Runs as a trace in Chrome's trace event format, which ui.perfetto.dev opens.
//!
//! Each run is a process, and each lane a thread of it, predicted ones above measured ones. Spans are complete events
//! (`X`), from a run's own beginning.
//!
//! # Source
//! "Trace Event Format", Google, 2016.

use super::{Chart, Run};
use serde::{Serialize, Serializer};
use std::io::Write;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Trace<'a> {
    display_time_unit: &'static str,
    other_data: OtherData<'a>,
    trace_events: Events<'a>,
}

#[derive(Serialize)]
struct OtherData<'a> {
    title: &'a str,
    machine: &'a str,
}

/// Fields in the order of the format's own examples.
#[derive(Serialize)]
struct Event<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cat: Option<&'a str>,
    ph: char,
    /// Units: microseconds.
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    pid: usize,
    tid: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<Args>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Args {
    Name(String),
    SortIndex(usize),
}

struct Events<'a>(&'a [Run<'a>]);

impl Serialize for Events<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Unlike Chrome, Linux and Perfetto count threads over all processes, and a process's first thread has its
        // number. Theirs begin above all of the processes'.
        let mut tid = self.0.len();
        let numbered = self.0.iter().enumerate().map(|(n, run)| {
            let first = tid + 1;
            tid += run.timelines().len() * run.lanes().count();
            (n + 1, first, run)
        });
        serializer.collect_seq(numbered.flat_map(|(pid, first_tid, run)| events(pid, first_tid, run)))
    }
}

fn metadata(name: &'static str, pid: usize, tid: usize, args: Args) -> Event<'static> {
    Event { name, cat: None, ph: 'M', ts: 0.0, dur: None, pid, tid, args: Some(args) }
}

/// All events of a run: its names, then its spans lane by lane.
fn events<'a>(pid: usize, first_tid: usize, run: &'a Run<'a>) -> impl Iterator<Item = Event<'a>> {
    let process = [("process_name", Args::Name(run.name.clone())), ("process_sort_index", Args::SortIndex(pid))];
    let lanes = run.timelines().into_iter().flat_map(|(name, timeline)| run.lanes().map(move |l| (name, timeline, l)));
    let threads = lanes.enumerate().flat_map(move |(n, (name, timeline, lane))| {
        let tid = first_tid + n;
        let label = format!("{name} {}", super::lane_name(lane));
        let about = [("thread_name", Args::Name(label)), ("thread_sort_index", Args::SortIndex(n))];
        let spans = timeline.lane(lane).map(move |span| Event {
            name: span.activity.name(),
            cat: Some(name),
            ph: 'X',
            ts: us(span.start_ns),
            dur: Some(us(span.duration_ns())),
            pid,
            tid,
            args: None,
        });
        about.into_iter().map(move |(name, args)| metadata(name, pid, tid, args)).chain(spans)
    });
    process.into_iter().map(move |(name, args)| metadata(name, pid, first_tid, args)).chain(threads)
}

/// Nanoseconds as microseconds. Perfetto multiplies by 1000 and cuts off, which loses a nanosecond of 1.001 and lets
/// neighbours overlap: the next greater number then.
fn us(ns: u64) -> f64 {
    let us = ns as f64 / 1e3;
    if ((us * 1e3) as u64) < ns { us.next_up() } else { us }
}

/// Writes all runs, whole.
///
/// # Errors
/// What the writer says.
pub(crate) fn perfetto(chart: &Chart<'_>, mut out: impl Write) -> std::io::Result<()> {
    let trace = Trace {
        display_time_unit: "ms",
        other_data: OtherData { title: &chart.title, machine: &chart.machine },
        trace_events: Events(&chart.runs),
    };
    serde_json::to_writer(&mut out, &trace)?;
    out.write_all(b"\n")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::us;

    #[test]
    fn no_nanosecond_is_lost() {
        let long_runs = (0..100_000).map(|n| 40_000_000_000 + 7 * n);
        for ns in (0..100_000).chain(long_runs) {
            assert_eq!((us(ns) * 1000.0) as u64, ns, "as Perfetto reads it");
            assert_eq!((us(ns) * 1000.0).round() as u64, ns);
        }
        // 1.001 itself would be read as 1000.
        assert_eq!((1.001f64 * 1000.0) as u64, 1000);
    }
}
