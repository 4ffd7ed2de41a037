//! Whole runs: many inputs through one handler, in order, as completed, or borrowed.

use super::engine::{Caller, Engine, Sink};
use super::job::{Completion, HandlerId, HandlerRef, Job};
use super::lane::Lane;
use super::{Pool, Settling, Submitter};
use crate::error::{Error, TrySubmitError};
use crate::limits::{ORDER_WINDOW_JOBS, ORDER_WINDOW_SIZE};
use crate::outcome::{Outcome, Reason};
use crate::sys::{Linux, Sys};
use std::collections::VecDeque;

/// Inputs that come slower than this one by one leave one by one. Units: nanoseconds.
const SLOW_INPUT_NS: u64 = 20_000;
/// Most inputs that are taken between two looks at the workers.
const CHUNK_MAX: u32 = 4096;

/// The inputs of one run, on their way into the pool.
struct Feed<I: Iterator> {
    inputs: I,
    /// Taken from the inputs, and found no room.
    held: Option<I::Item>,
    handler: Target,
    batch: u32,
    /// Number of the next input to be submitted.
    next: u64,
    exhausted: bool,
    /// Inputs to take before what is packed is sent. Starts at one and doubles while inputs come quickly, so that a slow
    /// source does not hold back what it has brought.
    chunk: u32,
}

enum Target {
    Known(HandlerId),
    Unknown(String),
}

impl<I: Iterator<Item: AsRef<[u8]>>> Feed<I> {
    fn new<S: Sys>(engine: &mut Engine<S>, handler: HandlerRef<'_>, inputs: I) -> Self {
        let handler = match handler {
            HandlerRef::Id(id) => Target::Known(id),
            HandlerRef::Name(name) => match engine.handler_id(name) {
                Some(id) => Target::Known(id),
                None => Target::Unknown(name.to_owned()),
            },
        };
        Self { inputs, held: None, handler, batch: engine.begin_batch(), next: 0, exhausted: false, chunk: 1 }
    }

    fn take(&mut self) -> Option<I::Item> {
        let input = self.held.take().or_else(|| self.inputs.next());
        self.exhausted |= input.is_none();
        input
    }

    /// Submits inputs while there is room and `admits` their numbers, and sends them.
    fn pump<S: Sys>(&mut self, engine: &mut Engine<S>, admits: impl Fn(u64) -> bool) {
        let mut start_ns = engine.sys.now_ns();
        let mut taken = 0;
        // What cannot change while inputs are taken: whether a job of this run may go straight in.
        let known = match &self.handler {
            Target::Known(id) if !engine.draining && engine.hopeless.is_none() => Some(id.0),
            _ => None,
        };
        let size_max = engine.config.job_size_max;
        engine.more_inputs = false;
        engine.paused = false;
        while !self.exhausted && admits(self.next) {
            let Some(mut input) = self.take() else { return };
            if let Some(handler) = known
                && let Some(lane) = engine.open_lane(handler, self.batch, self.chunk - taken)
            {
                let (filled, left) = self.fill(engine, lane, input, &admits, size_max);
                taken += filled;
                if taken >= self.chunk {
                    self.held = left;
                    (start_ns, taken) = (self.look(engine, start_ns), 0);
                    if engine.paused {
                        return;
                    }
                    continue;
                }
                let Some(left) = left else { continue };
                input = left;
            }
            let handler = match &self.handler {
                Target::Known(id) => HandlerRef::Id(*id),
                Target::Unknown(name) => HandlerRef::Name(name),
            };
            let job = Job::new(handler, input.as_ref()).tag(self.next);
            let is_hopeless = |engine: &Engine<S>| engine.is_house_full() && engine.batch_outstanding == 0;
            // Straight into a slot: inputs that find no room wait in their iterator, not in the queue.
            let refused = match engine.try_submit(job, self.batch, false) {
                Ok(_) => None,
                Err(TrySubmitError::Draining(job)) => Some((job, Reason::Draining)),
                // Nothing of this run will ever make room.
                Err(TrySubmitError::Full(job)) if is_hopeless(engine) => Some((job, Reason::NoRoom)),
                Err(TrySubmitError::Full(_)) => {
                    self.held = Some(input);
                    engine.more_inputs = true;
                    return;
                }
            };
            self.next += 1;
            if let Some((job, reason)) = refused {
                // One at a time, so that they are taken as they come.
                engine.reject(&job, self.batch, reason);
                return;
            }
            taken += 1;
            if taken >= self.chunk {
                (start_ns, taken) = (self.look(engine, start_ns), 0);
                if engine.paused {
                    return;
                }
            }
        }
    }

    /// Submits inputs through a lane until it is full, an input is not for it, or there are none. Returns how many, and the
    /// input that was taken and not submitted.
    #[inline]
    fn fill<S: Sys>(
        &mut self,
        engine: &mut Engine<S>,
        lane: Lane,
        first: I::Item,
        admits: impl Fn(u64) -> bool,
        size_max: usize,
    ) -> (u32, Option<I::Item>) {
        let mut open = OpenLane { engine, lane: Some(lane) };
        let OpenLane { engine, lane: Some(lane) } = &mut open else { return (0, Some(first)) };
        let mut input = first;
        let left = loop {
            let body = input.as_ref();
            if body.len() > size_max || !engine.submit_through(lane, body, self.next) {
                break Some(input);
            }
            self.next += 1;
            if lane.is_full() || !admits(self.next) {
                break None;
            }
            match self.take() {
                Some(next) => input = next,
                None => break None,
            }
        };
        (lane.count(), left)
    }

    /// A look at the workers between two chunks: sends what is packed, and pauses once inputs have had their time, so that
    /// results are taken too. Returns the time.
    fn look<S: Sys>(&mut self, engine: &mut Engine<S>, start_ns: u64) -> u64 {
        let now_ns = engine.sys.now_ns();
        let elapsed_ns = now_ns.saturating_sub(start_ns);
        self.chunk = if elapsed_ns < SLOW_INPUT_NS {
            (self.chunk * 2).min(CHUNK_MAX)
        } else {
            u32::try_from(u64::from(self.chunk) * SLOW_INPUT_NS / elapsed_ns).unwrap_or(1).max(1)
        };
        engine.paused = elapsed_ns >= SLOW_INPUT_NS;
        engine.flush_ripe();
        now_ns
    }
}

/// Closes its lane also when an input's own code panics.
struct OpenLane<'e, S: Sys> {
    engine: &'e mut Engine<S>,
    lane: Option<Lane>,
}

impl<S: Sys> Drop for OpenLane<'_, S> {
    fn drop(&mut self) {
        if let Some(lane) = self.lane.take() {
            self.engine.close_lane(lane);
        }
    }
}

impl<S: Sys> Engine<S> {
    pub(super) fn handler_id(&self, name: &str) -> Option<HandlerId> {
        self.handler_names.iter().position(|n| n == name).map(|i| HandlerId(i as u32))
    }
}

/// What an iterator yields when the pool itself fails, so that every input still has its outcome.
fn broken<B>(error: &Error) -> Outcome<B> {
    Outcome::Rejected { reason: Reason::NoWorkers(error.to_string()) }
}

/// Outcomes in the order of the inputs. See [`Pool::map`].
pub struct Map<'p, I: Iterator, S: Sys = Linux> {
    pool: &'p mut Pool<S>,
    feed: Feed<I>,
    /// Number of the next outcome to be yielded.
    next: u64,
    /// Outcomes from `next` on, where they are known.
    held: VecDeque<Option<Outcome<Vec<u8>>>>,
    held_size: usize,
    failed: Option<Error>,
}

impl<I: Iterator<Item: AsRef<[u8]>>, S: Sys> Map<'_, I, S> {
    fn turn(&mut self) -> Result<(), Error> {
        let Self { pool, feed, next, held, held_size, .. } = self;
        let engine = pool.engine_mut();
        // Ahead of the oldest undelivered outcome, but not without bound; the oldest itself is always admitted.
        let (oldest, full) = (*next, *held_size >= ORDER_WINDOW_SIZE);
        feed.pump(engine, |n| n < oldest + ORDER_WINDOW_JOBS as u64 && (!full || n == oldest));
        if feed.exhausted && *next == feed.next {
            return Ok(());
        }
        let mut insert = |tag: u64, outcome: Outcome<Vec<u8>>| {
            let at = (tag - oldest) as usize;
            while held.len() <= at {
                held.push_back(None);
            }
            if let Outcome::Done(body) = &outcome {
                *held_size += body.len();
            }
            held[at] = Some(outcome);
        };
        let batch = feed.batch;
        engine.collect(batch, &mut |c| insert(c.tag, c.outcome.map(<[u8]>::to_vec)))
    }
}

impl<I: Iterator<Item: AsRef<[u8]>>, S: Sys> Iterator for Map<'_, I, S> {
    type Item = Outcome<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(Some(_)) = self.held.front() {
                let outcome = self.held.pop_front().flatten()?;
                if let Outcome::Done(body) = &outcome {
                    self.held_size -= body.len();
                }
                self.next += 1;
                return Some(outcome);
            }
            if let Some(error) = &self.failed {
                if self.next == self.feed.next {
                    self.feed.take()?;
                    self.feed.next += 1;
                }
                self.next += 1;
                self.held.pop_front();
                return Some(broken(error));
            }
            if self.feed.exhausted && self.next == self.feed.next {
                return None;
            }
            if let Err(error) = self.turn() {
                self.failed = Some(error);
            }
        }
    }
}

impl<I: Iterator, S: Sys> Drop for Map<'_, I, S> {
    fn drop(&mut self) {
        self.pool.end_run();
    }
}

/// Outcomes as they come, each with the number of its input. See [`Pool::unordered`].
pub struct Unordered<'p, I: Iterator, S: Sys = Linux> {
    pool: &'p mut Pool<S>,
    feed: Feed<I>,
    ready: VecDeque<(u64, Outcome<Vec<u8>>)>,
    yielded: u64,
    failed: Option<Error>,
}

impl<I: Iterator<Item: AsRef<[u8]>>, S: Sys> Iterator for Unordered<'_, I, S> {
    type Item = (u64, Outcome<Vec<u8>>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                self.yielded += 1;
                return Some(item);
            }
            if let Some(error) = &self.failed {
                self.feed.take()?;
                self.feed.next += 1;
                self.yielded += 1;
                return Some((self.feed.next - 1, broken(error)));
            }
            let Self { pool, feed, ready, .. } = self;
            let (engine, batch) = (pool.engine_mut(), feed.batch);
            feed.pump(engine, |_| true);
            if feed.exhausted && feed.next == self.yielded {
                return None;
            }
            let turn = engine.collect(batch, &mut |c| ready.push_back((c.tag, c.outcome.map(<[u8]>::to_vec))));
            if let Err(error) = turn {
                // What was submitted and not answered has no other way to end.
                ready.extend(engine.tags_left(batch).into_iter().map(|tag| (tag, broken(&error))));
                engine.end_batch();
                self.failed = Some(error);
            }
        }
    }
}

impl<I: Iterator, S: Sys> Drop for Unordered<'_, I, S> {
    fn drop(&mut self) {
        self.pool.end_run();
    }
}

impl<S: Sys> Pool<S> {
    /// An iterator is gone: so is what it has not taken.
    fn end_run(&mut self) {
        let engine = self.engine_mut();
        engine.end_batch();
        // An error here comes back from the next call that can return it.
        let _ = engine.settle();
    }
}

impl<S: Sys> Engine<S> {
    /// One turn for a run: its completions go to `take`, those of single jobs are kept for whoever polls.
    fn collect(&mut self, batch: u32, take: &mut dyn FnMut(Completion<'_>)) -> Result<(), Error> {
        let any = self.deliver_batch(batch, &mut |_: &mut Self, c: Completion<'_>| take(c)) > 0;
        let timeout_ns = if any { Some(0) } else { None };
        let mut take = |_: &mut Self, c: Completion<'_>| take(c);
        self.turn(timeout_ns, batch, &mut take).map_err(Error::os("waiting for workers"))
    }

    /// Hands out the finished completions of one batch. Returns how many.
    fn deliver_batch(&mut self, batch: u32, sink: &mut impl Sink<S>) -> usize {
        // Only those that are here now, as in `deliver_finished`; those of single jobs stay where they are.
        let (mut at, mut delivered) = (0, 0);
        for _ in 0..self.finished.len() {
            if self.finished.get(at).is_some_and(|f| f.batch != batch) {
                at += 1;
            } else if let Some(finished) = self.take_finished(at) {
                delivered += 1;
                sink.take(self, finished.as_completion());
            }
        }
        delivered
    }

    /// The tags of a batch's jobs that have no outcome.
    fn tags_left(&self, batch: u32) -> Vec<u64> {
        self.table.jobs().map(|job| self.label(job)).filter(|l| l.batch == batch).map(|l| l.tag).collect()
    }
}

impl<S: Sys> Pool<S> {
    /// Runs every input through a handler and yields the outcomes in the order of the inputs.
    ///
    /// Inputs are taken as there is room for them, never all at once. Dropping the iterator forgets the rest.
    pub fn map<'p, 'h, I>(&'p mut self, handler: impl Into<HandlerRef<'h>>, inputs: I) -> Map<'p, I::IntoIter, S>
    where
        I: IntoIterator<Item: AsRef<[u8]>>,
    {
        let feed = Feed::new(self.engine_mut(), handler.into(), inputs.into_iter());
        Map { pool: self, feed, next: 0, held: VecDeque::new(), held_size: 0, failed: None }
    }

    /// Runs every input through a handler and yields each outcome as it comes, with the number of its input.
    pub fn unordered<'p, 'h, I>(
        &'p mut self,
        handler: impl Into<HandlerRef<'h>>,
        inputs: I,
    ) -> Unordered<'p, I::IntoIter, S>
    where
        I: IntoIterator<Item: AsRef<[u8]>>,
    {
        let feed = Feed::new(self.engine_mut(), handler.into(), inputs.into_iter());
        Unordered { pool: self, feed, ready: VecDeque::new(), yielded: 0, failed: None }
    }

    /// Runs every input through a handler and hands each completion to `f` as it comes, its body borrowed: nothing is
    /// copied and nothing allocated on the way. The completion's tag is the number of the input. Jobs that `f` submits
    /// come back to `f` too.
    ///
    /// # Errors
    /// When the kernel fails the reactor.
    pub fn for_each<'h, I>(
        &mut self,
        handler: impl Into<HandlerRef<'h>>,
        inputs: I,
        f: impl FnMut(Completion<'_>, &mut Submitter<'_, S>),
    ) -> Result<(), Error>
    where
        I: IntoIterator<Item: AsRef<[u8]>>,
    {
        let settling = Settling(self.engine_mut());
        let engine = &mut *settling.0;
        let mut feed = Feed::new(engine, handler.into(), inputs.into_iter());
        let batch = feed.batch;
        let mut caller = Caller { f, batch };
        loop {
            feed.pump(engine, |_| true);
            let any = engine.deliver_batch(batch, &mut caller) > 0;
            if feed.exhausted && !any && engine.batch_outstanding == 0 {
                engine.end_batch();
                return settling.finish();
            }
            let timeout_ns = if any { Some(0) } else { None };
            engine.turn(timeout_ns, batch, &mut caller).map_err(Error::os("waiting for workers"))?;
        }
    }
}
