//! Writes trace events as ui.perfetto.dev and chrome://tracing read them, one after the other: nothing is held.
//!
//! # Source
//! "Trace Event Format" (Google, the JSON object format): complete events `X`, nestable async events `b` and `e`, instant
//! events `i`, metadata events `M`. Times are in microseconds.

use serde::Serialize;
use std::fmt::Arguments;
use std::io::{self, Write};

/// Where an event is shown: a named thread of a named process, neither of which need exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Track {
    pub(crate) pid: u32,
    pub(crate) tid: u32,
}

/// A JSON object with a list of events, complete once [`TraceWriter::finish`] has returned.
pub(crate) struct TraceWriter<W> {
    out: W,
    /// What is shown as time 0. Units: nanoseconds.
    origin_ns: u64,
    has_events: bool,
    /// Of the next async span.
    next_id: u64,
}

#[derive(Serialize)]
struct TraceEvent<'a, A> {
    ph: char,
    pid: u32,
    tid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Id>,
    /// Scope of an instant event: its thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<char>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cat: Option<&'a str>,
    name: Arguments<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<A>,
}

/// A number that is written as a string: numbers as they stand lose digits in JavaScript.
struct Id(u64);

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

#[derive(Serialize)]
struct NameArgs<'a> {
    name: &'a str,
}

#[derive(Serialize)]
struct SortArgs {
    sort_index: u32,
}

impl<W: Write> TraceWriter<W> {
    pub(crate) fn new(mut out: W, origin_ns: u64) -> io::Result<Self> {
        out.write_all(b"{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
        Ok(Self { out, origin_ns, has_events: false, next_id: 1 })
    }

    /// Names a process; processes are shown in the order of their numbers.
    pub(crate) fn name_process(&mut self, pid: u32, name: &str) -> io::Result<()> {
        let track = Track { pid, tid: 0 };
        self.event('M', track, format_args!("process_name"), |e| e.args = Some(NameArgs { name }))?;
        self.event('M', track, format_args!("process_sort_index"), |e| e.args = Some(SortArgs { sort_index: pid }))
    }

    pub(crate) fn name_thread(&mut self, track: Track, name: &str) -> io::Result<()> {
        self.event('M', track, format_args!("thread_name"), |e| e.args = Some(NameArgs { name }))
    }

    /// A span on a thread's own track. The spans of one track must not overlap, unless one holds the other.
    pub(crate) fn complete(
        &mut self,
        track: Track,
        cat: &str,
        name: Arguments<'_>,
        (start_ns, end_ns): (u64, u64),
        args: impl Serialize,
    ) -> io::Result<()> {
        let (start, duration) = (self.time(start_ns), micros(end_ns.saturating_sub(start_ns)));
        self.event('X', track, name, |e| {
            (e.ts, e.dur, e.cat, e.args) = (Some(start), Some(duration), Some(cat), Some(args));
        })
    }

    /// A span that may overlap others of its name and process.
    pub(crate) fn overlapping(
        &mut self,
        track: Track,
        cat: &str,
        name: Arguments<'_>,
        (start_ns, end_ns): (u64, u64),
        args: impl Serialize,
    ) -> io::Result<()> {
        let (start, end) = (self.time(start_ns), self.time(end_ns));
        let id = self.next_id;
        self.next_id += 1;
        self.event('b', track, name, |e| {
            (e.ts, e.id, e.cat, e.args) = (Some(start), Some(Id(id)), Some(cat), Some(args));
        })?;
        self.event('e', track, name, |e: &mut TraceEvent<'_, ()>| {
            (e.ts, e.id, e.cat) = (Some(end), Some(Id(id)), Some(cat));
        })
    }

    /// A moment on a thread's own track.
    pub(crate) fn instant(
        &mut self,
        track: Track,
        cat: &str,
        name: Arguments<'_>,
        at_ns: u64,
        args: impl Serialize,
    ) -> io::Result<()> {
        let at = self.time(at_ns);
        self.event('i', track, name, |e| {
            (e.ts, e.s, e.cat, e.args) = (Some(at), Some('t'), Some(cat), Some(args));
        })
    }

    /// Ends the object with whatever else is to be said.
    pub(crate) fn finish(mut self, other: impl Serialize) -> io::Result<()> {
        self.out.write_all(b"\n],\"otherData\":")?;
        serde_json::to_writer(&mut self.out, &other)?;
        self.out.write_all(b"}\n")?;
        self.out.flush()
    }

    fn time(&self, at_ns: u64) -> f64 {
        micros(at_ns.saturating_sub(self.origin_ns))
    }

    fn event<'a, A: Serialize>(
        &mut self,
        ph: char,
        Track { pid, tid }: Track,
        name: Arguments<'a>,
        fill: impl FnOnce(&mut TraceEvent<'a, A>),
    ) -> io::Result<()> {
        let mut event =
            TraceEvent { ph, pid, tid, ts: None, dur: None, id: None, s: None, cat: None, name, args: None };
        fill(&mut event);
        self.out.write_all(if self.has_events { b",\n" } else { b"\n" })?;
        self.has_events = true;
        Ok(serde_json::to_writer(&mut self.out, &event)?)
    }
}

/// Exact to the nanosecond for the first hundred days: the shortest decimal number that is this value is written.
fn micros(ns: u64) -> f64 {
    ns as f64 / 1000.0
}
