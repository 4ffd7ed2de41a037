//! `seqpool run --trace`: what each job and worker did, and when.
//!
//! A recorder on the pool's timestamp hook puts every step into a ring of fixed size (`Ring`); nothing else happens
//! while jobs run. When the pool is gone the ring is read once: steps become spans (`Lives`), and those go to a file as
//! trace events (`TraceWriter`), one at a time.
//!
//! In the picture the host and each worker are a process. A worker's own track shows what it computed; jobs that wait in its
//! slot, and results that are on their way, overlap, and so do all spans of the host: they are async events.

mod chrome;
mod lives;
mod ring;
#[cfg(test)]
mod tests;

pub(crate) use chrome::{TraceWriter, Track};
pub(crate) use lives::{End, Found, Lives, Mark, Span, Stage};
pub(crate) use ring::Ring;

use crate::pool::Event;
use crate::{Crash, Outcome};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Steps of jobs that are kept: those of about 150,000 jobs. 24 MiB, touched as it is used.
pub const MARKS_MAX: usize = 1 << 20;
/// Jobs that were not done and whose outcome is kept.
const VERDICTS_MAX: usize = MARKS_MAX / 4;

/// The hook's side: owns the ring while the pool lives, and hands it over when the pool drops the hook.
struct Recorder {
    ring: Ring<Mark>,
    to: Arc<Mutex<Option<Ring<Mark>>>>,
}

impl Recorder {
    #[inline]
    fn note(&mut self, event: &Event) {
        self.ring.push(Mark::from(event));
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Without a lock for each step: the two sides never have the ring at once.
        let ring = std::mem::replace(&mut self.ring, Ring::new(1));
        *self.to.lock().unwrap_or_else(PoisonError::into_inner) = Some(ring);
    }
}

/// Records the steps of a pool's jobs.
pub struct Recording {
    from: Arc<Mutex<Option<Ring<Mark>>>>,
    /// What became of jobs that were not done.
    verdicts: Ring<(u64, Verdict)>,
}

/// A hook for [`Builder::on_event`](crate::Builder::on_event) that keeps the last `marks_max` steps, a power of two, and
/// where to find them.
pub fn record(marks_max: usize) -> (impl FnMut(&Event) + Send + 'static, Recording) {
    let from = Arc::new(Mutex::new(None));
    let mut recorder = Recorder { ring: Ring::new(marks_max), to: from.clone() };
    let hook = move |event: &Event| recorder.note(event);
    (hook, Recording { from, verdicts: Ring::new(VERDICTS_MAX) })
}

/// How complete a written trace is. Units: steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Written {
    pub(crate) recorded_steps: u64,
    /// The earliest ones, for which the ring had no room.
    pub(crate) dropped_steps: u64,
}

impl Recording {
    /// Notes how a job ended, unless it was done.
    pub(crate) fn outcome<B>(&mut self, job: u64, outcome: &Outcome<B>) {
        if let Some(verdict) = Verdict::of(outcome) {
            self.verdicts.push((job, verdict));
        }
    }

    /// Writes what was recorded, with `origin_ns` as time 0. The pool must be gone: it owns the ring.
    pub(crate) fn write(self, out: impl Write, title: &str, workers: usize, origin_ns: u64) -> io::Result<Written> {
        let ring = self.from.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ring = ring.ok_or_else(|| io::Error::other("the pool still records"))?;
        let verdicts: HashMap<u64, Verdict> = self.verdicts.iter().copied().collect();
        let mut picture = Picture { writer: TraceWriter::new(out, origin_ns)?, verdicts };
        picture.name_tracks(title, workers)?;
        let mut lives = Lives::new(workers);
        for mark in ring.iter() {
            lives.take(mark, |found| picture.draw(&found))?;
        }
        lives.finish(|found| picture.draw(&found))?;
        let written = Written { recorded_steps: ring.count(), dropped_steps: ring.dropped() };
        picture.writer.finish(written)?;
        Ok(written)
    }
}

/// What became of a job that was not done, in a few words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Failed,
    Panicked,
    Crashed(Crash),
    TimedOut,
    Cancelled,
    Rejected,
}

impl Verdict {
    fn of<B>(outcome: &Outcome<B>) -> Option<Self> {
        Some(match outcome {
            Outcome::Done(_) => return None,
            Outcome::Failed { panicked: false, .. } => Self::Failed,
            Outcome::Failed { panicked: true, .. } => Self::Panicked,
            Outcome::Crashed(crash) => Self::Crashed(*crash),
            Outcome::TimedOut { .. } => Self::TimedOut,
            Outcome::Cancelled { .. } => Self::Cancelled,
            Outcome::Rejected { .. } => Self::Rejected,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed => f.write_str("failed"),
            Self::Panicked => f.write_str("panicked"),
            Self::Crashed(crash) => write!(f, "crashed: {crash}"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Rejected => f.write_str("rejected"),
        }
    }
}

impl Serialize for Verdict {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

const HOST: Track = Track { pid: 1, tid: 1 };

/// Slots count from 0, as everywhere.
fn worker(slot: u16) -> Track {
    Track { pid: HOST.pid + 1 + u32::from(slot), tid: 1 }
}

/// What is said of one job's span.
#[derive(Serialize)]
struct JobArgs {
    job: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Verdict>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

#[derive(Serialize)]
struct PackArgs {
    worker: u16,
    jobs: u32,
}

struct Picture<W> {
    writer: TraceWriter<W>,
    /// Of jobs that were not done.
    verdicts: HashMap<u64, Verdict>,
}

impl<W: Write> Picture<W> {
    fn name_tracks(&mut self, title: &str, workers: usize) -> io::Result<()> {
        self.writer.name_process(HOST.pid, &format!("host: {title}"))?;
        self.writer.name_thread(HOST, "packets")?;
        for slot in 0..workers {
            let track = worker(slot as u16);
            self.writer.name_process(track.pid, &format!("worker {slot}"))?;
            self.writer.name_thread(track, "compute")?;
        }
        Ok(())
    }

    fn draw(&mut self, found: &Found) -> io::Result<()> {
        match *found {
            Found::Span(ref span) => self.draw_span(span),
            Found::Pack { at_ns, slot, jobs } => {
                let args = PackArgs { worker: slot, jobs };
                self.writer.instant(HOST, "packet", format_args!("sent"), at_ns, args)
            }
            Found::TakenBack { at_ns, slot, job } => {
                let args = JobArgs { job, outcome: None, note: None };
                self.writer.instant(worker(slot), "job", format_args!("job {job} taken back"), at_ns, args)
            }
        }
    }

    fn draw_span(&mut self, span: &Span) -> io::Result<()> {
        let &Span { job, stage, slot, start_ns, end_ns, end } = span;
        let verdict = self.verdicts.get(&job).copied();
        let note = match end {
            End::Usual => None,
            End::TakenBack => Some("taken back"),
            End::WorkerGone => Some("its worker did not live to time it: as seen from outside"),
            End::Unknown => Some("never got further"),
        };
        let outcome = verdict.filter(|_| matches!(stage, Stage::Life | Stage::Compute));
        let (track, when, args) = (slot.map_or(HOST, worker), (start_ns, end_ns), JobArgs { job, outcome, note });
        let name = match stage {
            Stage::Compute => {
                return match verdict {
                    Some(verdict) => {
                        self.writer.complete(track, "compute", format_args!("job {job}: {verdict}"), when, args)
                    }
                    None => self.writer.complete(track, "compute", format_args!("job {job}"), when, args),
                };
            }
            Stage::Life => "job",
            Stage::Unsent => "unsent",
            Stage::Waiting => "waiting",
            Stage::Returning => "returning",
        };
        self.writer.overlapping(track, name, format_args!("{name}"), when, args)
    }
}
