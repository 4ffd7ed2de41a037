//! From the steps of jobs to spans of time.
//!
//! Steps are read in the order in which the host noted them, and each span is given out as soon as its end is known: what
//! is held at any time is the jobs that are not over. The beginning may be missing, when a ring had no room for it; spans
//! whose start is not known are then left out. Spans of one kind in one slot that exclude each other by nature, those of
//! computing, never overlap here, whatever a worker's clock readings say.

use crate::limits::WORKERS_MAX;
use crate::pool::{Event, Step};
use std::collections::HashMap;

/// One step of one job, as it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Units: nanoseconds of the monotonic clock.
    pub(crate) at_ns: u64,
    /// The job's tag, which is its number.
    pub(crate) job: u64,
    /// [`NO_SLOT`]: outside any.
    slot: u16,
    pub(crate) step: Step,
}

const NO_SLOT: u16 = u16::MAX;
const _: () = assert!(size_of::<Mark>() == 24 && WORKERS_MAX < NO_SLOT as usize);

impl Mark {
    #[inline]
    pub(crate) fn new(step: Step, job: u64, slot: Option<usize>, at_ns: u64) -> Self {
        Self { at_ns, job, slot: slot.map_or(NO_SLOT, |slot| slot as u16), step }
    }

    fn slot(&self) -> Option<u16> {
        (self.slot != NO_SLOT).then_some(self.slot)
    }
}

impl From<&Event> for Mark {
    #[inline]
    fn from(event: &Event) -> Self {
        Self::new(event.step, event.tag, event.slot, event.at_ns)
    }
}

/// What a job did in a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// From its admission until its outcome was delivered.
    Life,
    /// From its admission, or from when it was taken back, until its packet left.
    Unsent,
    /// Sent, and not started.
    Waiting,
    /// Its handler ran, by its worker's clock.
    Compute,
    /// From its end until the host had its result.
    Returning,
}

/// How a span ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As such spans do.
    Usual,
    /// The job was taken back from its slot.
    TakenBack,
    /// The worker did not live to tell when the job started and ended: it started after the one before it at the earliest,
    /// and had ended when its outcome was delivered at the latest.
    WorkerGone,
    /// Nothing more is known.
    Unknown,
}

/// What one job did from `start_ns` to `end_ns`. Units: nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) job: u64,
    pub(crate) stage: Stage,
    /// Where; `None` in the host.
    pub(crate) slot: Option<u16>,
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) end: End,
}

/// What is found in the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Span(Span),
    /// A packet of so many jobs left for a slot.
    Pack {
        at_ns: u64,
        slot: u16,
        jobs: u32,
    },
    /// A job was taken back from a slot before it started.
    TakenBack {
        at_ns: u64,
        slot: u16,
        job: u64,
    },
}

/// What is known of a job that is not over. Units: nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Life {
    submitted_ns: Option<u64>,
    unsent_ns: Option<u64>,
    /// When, and to which slot.
    sent: Option<(u64, u16)>,
    started_ns: Option<u64>,
    ended_ns: Option<u64>,
}

/// The jobs that are not over, and when each slot was last known to compute.
#[derive(Debug, Default)]
pub(crate) struct Lives {
    open: HashMap<u64, Life>,
    /// By slot. Units: nanoseconds.
    free_ns: Vec<u64>,
    pack: Option<(u64, u16, u32)>,
    last_ns: u64,
}

impl Lives {
    pub(crate) fn new(slots: usize) -> Self {
        Self { free_ns: vec![0; slots], ..Self::default() }
    }

    /// Takes the next step.
    pub(crate) fn take<E>(&mut self, mark: &Mark, mut give: impl FnMut(Found) -> Result<(), E>) -> Result<(), E> {
        let &Mark { at_ns, job, .. } = mark;
        self.last_ns = self.last_ns.max(at_ns);
        let life = self.open.entry(job).or_default();
        let span = |stage, slot, start_ns, end_ns: u64, end| {
            Found::Span(Span { job, stage, slot, start_ns, end_ns: end_ns.max(start_ns), end })
        };
        match (mark.step, mark.slot()) {
            (Step::Submitted, _) => {
                // A number that is used again is another job.
                *life = Life { submitted_ns: Some(at_ns), unsent_ns: Some(at_ns), ..Life::default() };
            }
            (Step::Sent, Some(slot)) => {
                life.sent = Some((at_ns, slot));
                if let Some(unsent_ns) = life.unsent_ns.take() {
                    give(span(Stage::Unsent, None, unsent_ns, at_ns, End::Usual))?;
                }
                match &mut self.pack {
                    Some((pack_ns, to, jobs)) if (*pack_ns, *to) == (at_ns, slot) => *jobs += 1,
                    pack => {
                        if let Some((at_ns, slot, jobs)) = pack.replace((at_ns, slot, 1)) {
                            give(Found::Pack { at_ns, slot, jobs })?;
                        }
                    }
                }
            }
            // The two times are a worker's word: they lie between what the host knows.
            (Step::Started, Some(slot)) => {
                let earliest_ns = self.free_ns[usize::from(slot)].max(life.sent.map_or(0, |(sent_ns, _)| sent_ns));
                let started_ns = at_ns.max(earliest_ns);
                life.started_ns = Some(started_ns);
                if let Some((sent_ns, _)) = life.sent {
                    give(span(Stage::Waiting, Some(slot), sent_ns, started_ns, End::Usual))?;
                }
            }
            (Step::Ended, Some(_)) => life.ended_ns = Some(at_ns),
            (Step::Received, Some(slot)) => {
                if let (Some(started_ns), Some(ended_ns)) = (life.started_ns, life.ended_ns) {
                    let ended_ns = ended_ns.min(at_ns).max(started_ns);
                    self.free_ns[usize::from(slot)] = ended_ns;
                    give(span(Stage::Compute, Some(slot), started_ns, ended_ns, End::Usual))?;
                    give(span(Stage::Returning, Some(slot), ended_ns, at_ns, End::Usual))?;
                }
                // It has left the slot.
                life.sent = None;
            }
            (Step::Reclaimed, Some(slot)) => {
                if let Some((sent_ns, _)) = life.sent.take() {
                    give(span(Stage::Waiting, Some(slot), sent_ns, at_ns, End::TakenBack))?;
                    life.unsent_ns = Some(at_ns);
                }
                give(Found::TakenBack { at_ns, slot, job })?;
            }
            (Step::Retried, Some(slot)) => {
                if let Some((sent_ns, _)) = life.sent.take() {
                    // Its worker is gone, and nobody has said when it started.
                    let free_ns = &mut self.free_ns[usize::from(slot)];
                    let start_ns = sent_ns.max(*free_ns);
                    *free_ns = at_ns.max(start_ns);
                    give(span(Stage::Waiting, Some(slot), sent_ns, start_ns, End::Usual))?;
                    give(span(Stage::Compute, Some(slot), start_ns, at_ns, End::WorkerGone))?;
                }
                // It waits again, as at first.
                (life.started_ns, life.ended_ns, life.unsent_ns) = (None, None, Some(at_ns));
            }
            (Step::Delivered, slot) => {
                let Life { submitted_ns, unsent_ns, sent, .. } = std::mem::take(life);
                self.open.remove(&job);
                if let (Some((sent_ns, _)), Some(slot)) = (sent, slot) {
                    let free_ns = &mut self.free_ns[usize::from(slot)];
                    let start_ns = sent_ns.max(*free_ns);
                    *free_ns = at_ns.max(start_ns);
                    give(span(Stage::Waiting, Some(slot), sent_ns, start_ns, End::Usual))?;
                    give(span(Stage::Compute, Some(slot), start_ns, at_ns, End::WorkerGone))?;
                } else if let Some(unsent_ns) = unsent_ns {
                    give(span(Stage::Unsent, None, unsent_ns, at_ns, End::Unknown))?;
                }
                if let Some(submitted_ns) = submitted_ns {
                    give(span(Stage::Life, None, submitted_ns, at_ns, End::Usual))?;
                }
            }
            // Placed: nothing has moved yet, see Sent. Whatever else comes says nothing of time spent.
            _ => {}
        }
        Ok(())
    }

    /// No more steps: gives out what is left, the jobs that are not over.
    pub(crate) fn finish<E>(self, mut give: impl FnMut(Found) -> Result<(), E>) -> Result<(), E> {
        let Self { open, pack, last_ns, .. } = self;
        if let Some((at_ns, slot, jobs)) = pack {
            give(Found::Pack { at_ns, slot, jobs })?;
        }
        let mut open: Vec<_> = open.into_iter().collect();
        open.sort_unstable_by_key(|&(job, _)| job);
        for (job, life) in open {
            let mut left = |stage, slot, start_ns: Option<u64>| match start_ns {
                Some(start_ns) => {
                    give(Found::Span(Span { job, stage, slot, start_ns, end_ns: last_ns, end: End::Unknown }))
                }
                None => Ok(()),
            };
            left(Stage::Unsent, None, life.unsent_ns)?;
            left(Stage::Waiting, life.sent.map(|(_, slot)| slot), life.sent.map(|(sent_ns, _)| sent_ns))?;
            left(Stage::Life, None, life.submitted_ns)?;
        }
        Ok(())
    }
}
