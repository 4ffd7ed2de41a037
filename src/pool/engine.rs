//! The pool's state: it admits jobs, takes them back and finishes them, and turns.
//!
//! `Engine` owns the reactor, the transport, every slot and the job table. `place` gives jobs to slots, `send` sends them,
//! `receive` reads results, `supervise` deals with workers' lives and deadlines. One turn: resume, fill, send, wait, read,
//! timers, fill, send.

use super::Submitter;
use super::hook::{Event, Hook, Step};
use super::job::{Completion, Finished, HandlerRef, Job};
use super::journal::{Entering, Journal, State};
use super::quarantine::Quarantine;
use super::renew::Renewal;
use super::retry::RetryOn;
use super::send::LargeSource;
use super::slot::{Doom, Life, Slot};
use super::stats::Stats;
use super::table::{JobIndex, Label, Owned, Place, Table, Ticket};
use super::terms::Terms;
use crate::chaos::Chaos;
use crate::claim::{self, FrameId};
use crate::error::{Error, TrySubmitError};
use crate::frame::{self, FLAG_METERED, FLAG_TIMED, Header, Kind};
use crate::limits::{
    ASIDE_SIZE_MAX, LARGE_STORE_SIZE, PACKET_SIZE_MAX, SLEEP_MAX, UNDELIVERED_SIZE_MAX, WINDOW_JOBS_MAX,
};
use crate::nursery::Nursery;
use crate::outcome::{Outcome, Reason};
use crate::prints::{Printed, Prints};
use crate::reactor::{Reactor, TimerId, Token};
use crate::scheduler::{Scheduler, Service};
use crate::sys::{OsResult, Pages, Sys};
use crate::transport::Transport;
use crate::worker::MemoryLimitKind;
use std::collections::VecDeque;
use std::time::Duration;

/// Who takes completions: gets the engine back, to submit more.
pub(super) trait Sink<S: Sys> {
    fn take(&mut self, engine: &mut Engine<S>, completion: Completion<'_>);
}

impl<S: Sys, F: FnMut(&mut Engine<S>, Completion<'_>)> Sink<S> for F {
    fn take(&mut self, engine: &mut Engine<S>, completion: Completion<'_>) {
        self(engine, completion);
    }
}

/// A caller's own function as a sink.
pub(super) struct Caller<F> {
    pub(super) f: F,
    /// What it submits belongs to this batch.
    pub(super) batch: u32,
}

impl<S: Sys, F: FnMut(Completion<'_>, &mut Submitter<'_, S>)> Sink<S> for Caller<F> {
    // Always: what the function does not look at of a completion is then never made.
    #[inline(always)]
    fn take(&mut self, engine: &mut Engine<S>, completion: Completion<'_>) {
        (self.f)(completion, &mut Submitter { engine, batch: self.batch });
    }
}

/// Jobs that were submitted by themselves, not by an iterator.
pub(super) const BATCH_SINGLE: u32 = 0;
/// Nobody's batch: whoever takes it keeps everything.
pub(super) const BATCH_NONE: u32 = u32::MAX;

/// A packet that has been received and not wholly read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) slot: usize,
    pub(super) generation: u32,
    pub(super) start: usize,
    pub(super) end: usize,
    /// When it was received. Units: nanoseconds.
    pub(super) at_ns: u64,
}

/// What the builder decided.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) job_size_max: usize,
    pub(super) header_block_size_max: usize,
    pub(super) outstanding_max: usize,
    /// By handler.
    pub(super) terms: Box<[Terms]>,
    /// Wait before a job is tried for the second time.
    pub(super) retry_backoff: Duration,
    pub(super) chaos: Option<Chaos>,
    pub(super) receipts: bool,
    /// Every job that crashes its worker, not only those that were tried again in vain.
    pub(super) quarantines_all: bool,
    pub(super) stall_ns: u64,
    /// 0: none.
    pub(super) grace_ns: u64,
    pub(super) spawn_ns: u64,
    pub(super) receive_ns: u64,
    /// `usize::MAX`: workers are not recycled.
    pub(super) jobs_per_worker: usize,
    pub(super) prints: Prints,
    pub(super) worker_age_max: Option<Duration>,
    /// Units: bytes.
    pub(super) growth_max: Option<u64>,
    pub(super) memory_limit: Option<MemoryLimitKind>,
}

pub(super) struct Engine<S: Sys> {
    pub(super) sys: S,
    pub(super) config: Config,
    pub(super) reactor: Reactor<S>,
    pub(super) transport: Box<dyn Transport<S>>,
    /// `None` once it is gone: then nobody is forked, until there is another.
    pub(super) nursery: Option<Nursery<S>>,
    pub(super) nursery_token: Option<Token>,
    /// While there is a nursery: when it must have answered. Else when another is started.
    pub(super) nursery_timer: Option<TimerId>,
    /// How another nursery is started. `None`: not at all.
    pub(super) renewal: Option<Renewal>,
    pub(super) scheduler: Scheduler,
    /// By handler.
    pub(super) services: Box<[Service]>,
    pub(super) handler_names: Box<[String]>,
    pub(super) slots: Box<[Slot]>,
    pub(super) table: Table,
    /// Jobs that no slot has room for yet.
    pub(super) queue: Journal,
    /// Jobs that were taken back; ahead of the queue. By reference, so always admitted.
    pub(super) front: VecDeque<JobIndex>,
    /// Completions that nobody has taken.
    pub(super) finished: VecDeque<Finished>,
    pub(super) finished_size: usize,
    /// Packets are received here.
    pub(super) rx: Pages,
    pub(super) pending: Option<Pending>,
    /// Slots with frames to send.
    pub(super) dirty: Vec<usize>,
    /// Bytes of jobs that are too large for a ring.
    pub(super) large_size: usize,
    /// Bytes of small jobs that are set aside, or were and are not placed again.
    pub(super) aside_size: usize,
    pub(super) retry_on: Option<RetryOn>,
    pub(super) on_quarantine: Option<Quarantine>,
    /// Jobs in slots that have a timeout.
    pub(super) timed_jobs: usize,
    /// Shortest timeout seen. Units: nanoseconds.
    pub(super) shortest_timeout_ns: u64,
    pub(super) tick: Option<TimerId>,
    /// When it fires. Units: nanoseconds.
    pub(super) tick_at_ns: u64,
    pub(super) steal: Option<TimerId>,
    /// When what workers print is looked at.
    pub(super) print_timer: Option<TimerId>,
    pub(super) draining: bool,
    /// The batch whose jobs are delivered; those of earlier ones are dropped.
    pub(super) batch: u32,
    /// Whether its run may still be going on.
    pub(super) batch_open: bool,
    /// An outer loop has been told that there is work, and has not come yet.
    pub(super) told: bool,
    /// Jobs were taken back and not placed again.
    pub(super) unfilled: bool,
    /// The present run has an input in hand that found no room: no worker idles for want of work.
    pub(super) more_inputs: bool,
    /// The present run takes inputs again as soon as results have been looked for.
    pub(super) paused: bool,
    /// Its jobs that are submitted and not delivered.
    pub(super) batch_outstanding: usize,
    /// The batch whose completions the present turn hands out; others are kept.
    pub(super) taker: u32,
    pub(super) start_error: Option<String>,
    pub(super) stats: Stats,
    pub(super) hook: Option<Hook>,
    /// Memory of the last large result, to be used again.
    pub(super) spare: Vec<u8>,
    /// Gone, and to be reaped before there is another, or with the pool.
    pub(super) lost_nursery: Option<Nursery<S>>,
    /// No worker is left and none will come: why.
    pub(super) hopeless: Option<Reason>,
}

/// Timers' data: what for, and for which slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    Tick,
    Steal,
    Nursery,
    Slot(usize),
    /// A job is to be tried again.
    Retry(JobIndex),
    /// A job has waited long enough for its start.
    Waited(JobIndex),
    /// Workers may have printed much.
    Prints,
    /// A slot's worker is as old as it may be.
    Age(usize),
}

impl Alarm {
    const RETRY: u64 = 1 << 63;
    const WAITED: u64 = 1 << 62;
    const PRINTS: u64 = 1 << 61;
    const AGE: u64 = 1 << 60;

    pub(super) fn to_bits(self) -> u64 {
        match self {
            Alarm::Tick => 0,
            Alarm::Steal => 1,
            Alarm::Nursery => 2,
            Alarm::Slot(slot) => 3 + slot as u64,
            Alarm::Retry(job) => Self::RETRY | u64::from(job.0),
            Alarm::Waited(job) => Self::WAITED | u64::from(job.0),
            Alarm::Prints => Self::PRINTS,
            Alarm::Age(slot) => Self::AGE | slot as u64,
        }
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        match bits {
            0 => Alarm::Tick,
            1 => Alarm::Steal,
            2 => Alarm::Nursery,
            Self::PRINTS => Alarm::Prints,
            bits if bits & Self::RETRY != 0 => Alarm::Retry(JobIndex(bits as u32)),
            bits if bits & Self::WAITED != 0 => Alarm::Waited(JobIndex(bits as u32)),
            bits if bits & Self::AGE != 0 => Alarm::Age((bits & !Self::AGE) as usize),
            slot => Alarm::Slot((slot - 3) as usize),
        }
    }
}

/// The parts that the builder has made.
pub(super) struct Parts<S: Sys> {
    pub(super) sys: S,
    pub(super) config: Config,
    pub(super) reactor: Reactor<S>,
    pub(super) transport: Box<dyn Transport<S>>,
    pub(super) nursery: Nursery<S>,
    pub(super) nursery_token: Token,
    pub(super) renewal: Option<Renewal>,
    pub(super) handler_names: Box<[String]>,
    pub(super) slots: Box<[Slot]>,
    pub(super) queue: Journal,
    pub(super) rx: Pages,
    pub(super) hook: Option<Hook>,
    pub(super) retry_on: Option<RetryOn>,
    pub(super) on_quarantine: Option<Quarantine>,
}

/// How a job ends.
pub(super) struct Ending {
    pub(super) outcome: Outcome<Vec<u8>>,
    pub(super) worker: Option<usize>,
    pub(super) quarantined: bool,
    /// What it has printed, if that was captured.
    pub(super) printed: Option<Printed<Vec<u8>>>,
}

/// A job that has been checked.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    pub(super) handler: u32,
    pub(super) header_block: &'a [u8],
    pub(super) body: &'a [u8],
    pub(super) tag: u64,
    pub(super) terms: Terms,
}

impl<S: Sys> Engine<S> {
    pub(super) fn new(parts: Parts<S>) -> Self {
        let slots = parts.slots.len();
        Self {
            scheduler: Scheduler::new(slots, parts.transport.window_jobs_max()),
            services: vec![Service::default(); parts.handler_names.len()].into_boxed_slice(),
            sys: parts.sys,
            config: parts.config,
            reactor: parts.reactor,
            transport: parts.transport,
            nursery: Some(parts.nursery),
            nursery_token: Some(parts.nursery_token),
            nursery_timer: None,
            renewal: parts.renewal,
            handler_names: parts.handler_names,
            slots: parts.slots,
            table: Table::new(),
            queue: parts.queue,
            // What is taken back from one slot needs no memory.
            front: VecDeque::with_capacity(WINDOW_JOBS_MAX),
            finished: VecDeque::new(),
            finished_size: 0,
            rx: parts.rx,
            pending: None,
            dirty: Vec::with_capacity(slots),
            large_size: 0,
            aside_size: 0,
            retry_on: parts.retry_on,
            on_quarantine: parts.on_quarantine,
            timed_jobs: 0,
            shortest_timeout_ns: u64::MAX,
            tick: None,
            tick_at_ns: 0,
            steal: None,
            print_timer: None,
            draining: false,
            batch: BATCH_SINGLE + 1,
            batch_open: false,
            told: false,
            unfilled: false,
            more_inputs: false,
            paused: false,
            batch_outstanding: 0,
            taker: BATCH_NONE,
            start_error: None,
            stats: Stats::default(),
            hook: parts.hook,
            spare: Vec::new(),
            lost_nursery: None,
            hopeless: None,
        }
    }

    // ---- admission

    /// Jobs submitted and not yet delivered.
    pub(super) fn outstanding(&self) -> usize {
        self.table.len() + self.finished.len()
    }

    /// Whether only taking outcomes makes room.
    pub(super) fn is_house_full(&self) -> bool {
        self.outstanding() >= self.config.outstanding_max || self.finished_size >= UNDELIVERED_SIZE_MAX
    }

    /// A new batch.
    pub(super) fn begin_batch(&mut self) -> u32 {
        self.end_batch();
        self.batch_open = true;
        self.batch
    }

    /// The run of the present batch is over, finished or not, forgotten or dropped: nothing of it is delivered any
    /// more, and what has not started is dropped.
    pub(super) fn end_batch(&mut self) {
        if !std::mem::take(&mut self.batch_open) {
            return;
        }
        self.more_inputs = false;
        self.paused = false;
        let ended = self.batch;
        let is_over = self.batch_outstanding == 0;
        self.batch = match self.batch.wrapping_add(1) {
            BATCH_SINGLE | BATCH_NONE => BATCH_SINGLE + 1,
            next => next,
        };
        self.batch_outstanding = 0;
        if is_over {
            return;
        }
        self.finished.retain(|f| f.batch != ended);
        self.finished_size = self.finished.iter().map(Finished::size).sum();
        self.reclaim_all();
        let left: Vec<_> = self.table.jobs().filter(|&j| self.label(j).batch == ended).collect();
        self.finish_waiting(&left, &Outcome::Cancelled { why: "its run is over".to_owned() });
    }

    /// Whether anybody still wants this batch's completions.
    pub(super) fn is_wanted(&self, batch: u32) -> bool {
        batch == BATCH_SINGLE || (batch == self.batch && self.batch_open)
    }

    fn resolve(&self, handler: HandlerRef<'_>) -> Option<u32> {
        match handler {
            HandlerRef::Id(id) => ((id.0 as usize) < self.handler_names.len()).then_some(id.0),
            HandlerRef::Name(name) => self.handler_names.iter().position(|n| n == name).map(|i| i as u32),
        }
    }

    /// Admits a job: into a slot if one has room, else, if `may_queue`, into the queue.
    #[inline]
    pub(super) fn try_submit<'j>(
        &mut self,
        job: Job<'j>,
        batch: u32,
        may_queue: bool,
    ) -> Result<Ticket, TrySubmitError<Job<'j>>> {
        if self.draining {
            return Err(TrySubmitError::Draining(job));
        }
        let handler = match self.check(&job) {
            Ok(handler) => handler,
            Err(_) if self.is_house_full() => return Err(TrySubmitError::Full(job)),
            Err(reason) => return Ok(self.reject(&job, batch, reason)),
        };
        let terms = job.limits.or(self.config.terms[handler as usize]);
        let (header_block, body) = (&job.header_block[..], job.body);
        match self.admit(Work { handler, header_block, body, tag: job.tag, terms }, batch, may_queue) {
            Some(ticket) => Ok(ticket),
            None => Err(TrySubmitError::Full(job)),
        }
    }

    /// Admits work that has been checked: into a slot if one has room, else, if `may_queue`, into the queue. `None`: full.
    #[inline(always)]
    pub(super) fn admit(&mut self, work: Work<'_>, batch: u32, may_queue: bool) -> Option<Ticket> {
        let Work { handler, header_block, body, tag, terms } = work;
        if self.is_house_full() || self.aside_size >= ASIDE_SIZE_MAX {
            return None;
        }
        let payload_size = header_block.len() + body.len();
        let size = frame::frame_size(payload_size);
        let large = size > PACKET_SIZE_MAX;
        if large && self.large_size != 0 && self.large_size + payload_size > LARGE_STORE_SIZE {
            return None;
        }
        let ring_size = if large { 0 } else { size };
        let estimate_ns = self.services[handler as usize].estimate_ns();
        let direct = if self.front.is_empty() && self.queue.head() == self.queue.tail() {
            self.place(estimate_ns, ring_size, large)
        } else {
            None
        };
        if direct.is_none() && !(may_queue && self.queue.has_room(ring_size)) {
            return None;
        }
        let timed = terms.timeout_ns != 0;
        let label = if direct.is_some() && !large && terms.is_plain() && !self.config.receipts {
            self.count_in(batch);
            self.table.insert_unfilled(handler, tag, batch)
        } else {
            self.insert(handler, tag, terms, batch)
        };
        let index = label.job;
        self.note(Step::Submitted, label, None);
        let bound = terms.queue_ns != 0;
        if bound {
            self.limit_wait(index, terms.queue_ns);
        }
        if self.config.receipts {
            self.stamp_submitted(label);
        }
        let header = Header {
            payload_size: payload_size as u32,
            header_block_size: header_block.len() as u16,
            kind: Kind::Job,
            flags: self.plain_flags(),
            id: 0,
            code: handler,
            extra: self.config.chaos.map_or(0, |chaos| chaos.order(tag, 0)),
        };
        if large {
            self.large_size += payload_size;
        }
        let own = |payload: [&[u8]; 2]| {
            Box::new(Owned { header, payload: payload.concat().into(), large: true, aside: false })
        };
        match direct {
            Some(slot) if large => {
                let id = self.slots[slot].next_id();
                let (position, _) =
                    self.slots[slot].journal.append(Entering { label, id, estimate_ns, timed, bound }, 0);
                self.placed(label, slot, position, estimate_ns, terms.timeout_ns);
                // It is on its way before it is copied: the copy is made while the worker receives.
                let sent = self.send_large(slot, position, Some(LargeSource { header, header_block, body }));
                self.table.get_mut(index).owned = Some(own([header_block, body]));
                if sent.is_err() {
                    self.kill(slot, Doom::Stalled);
                }
            }
            Some(slot) => {
                let id = self.slots[slot].next_id();
                let s = &mut self.slots[slot];
                let (position, room) = s.journal.append(Entering { label, id, estimate_ns, timed, bound }, ring_size);
                frame::encode(room, Header { id, ..header }, header_block, body);
                self.placed(label, slot, position, estimate_ns, terms.timeout_ns);
            }
            None => {
                let (position, room) =
                    self.queue.append(Entering { label, id: 0, estimate_ns, timed, bound }, ring_size);
                if large {
                    self.table.get_mut(index).owned = Some(own([header_block, body]));
                } else {
                    frame::encode(room, header, header_block, body);
                }
                self.table.set_place(index, Place::Queue(position));
            }
        }
        Some(label.ticket())
    }

    fn insert(&mut self, handler: u32, tag: u64, terms: Terms, batch: u32) -> Label {
        self.count_in(batch);
        self.table.insert(handler, tag, terms, batch)
    }

    #[inline]
    fn count_in(&mut self, batch: u32) {
        self.stats.jobs += 1;
        if batch != BATCH_SINGLE {
            self.batch_outstanding += 1;
        }
    }

    /// A job's label, wherever it is.
    pub(super) fn label(&self, job: JobIndex) -> Label {
        match self.table.place(job) {
            Place::Slot(slot, position) => self.slots[slot as usize].journal.entry(position).label,
            _ => self.table.label(job),
        }
    }

    #[inline]
    fn check(&self, job: &Job<'_>) -> Result<u32, Reason> {
        if let Some(reason) = &self.hopeless {
            return Err(reason.clone());
        }
        let Some(handler) = self.resolve(job.handler) else {
            let name = match job.handler {
                HandlerRef::Name(name) => name.to_owned(),
                HandlerRef::Id(id) => format!("#{}", id.0),
            };
            return Err(Reason::UnknownHandler(name));
        };
        let (size, limit) = (job.body.len(), self.config.job_size_max);
        if size > limit {
            return Err(Reason::TooLarge { size: size as u64, limit: limit as u64 });
        }
        if job.bad_header {
            return Err(Reason::BadHeader);
        }
        let (size, limit) = (job.header_block.len(), self.config.header_block_size_max);
        if size > limit {
            return Err(Reason::HeadersTooLarge { size: size as u64, limit: limit as u64 });
        }
        Ok(handler)
    }

    /// A job that is not run: its outcome waits.
    #[cold]
    pub(super) fn reject(&mut self, job: &Job<'_>, batch: u32, reason: Reason) -> Ticket {
        let label = self.insert(0, job.tag, Terms::default(), batch);
        let (index, ticket) = (label.job, label.ticket());
        self.note(Step::Submitted, label, None);
        self.finish(index, Outcome::Rejected { reason }, None);
        ticket
    }

    // ---- taking back

    /// Takes back every job of this slot that has not started; they go to the front of the queue.
    ///
    /// Returns the claim word as it was. `None`: no honest worker leaves such a word; it is killed, and everything sent
    /// counts as started.
    pub(super) fn reclaim(&mut self, slot: usize) -> Option<FrameId> {
        let s = &mut self.slots[slot];
        let old = s.memory.control().claim.reclaim();
        let epoch = s.epoch;
        s.epoch = epoch.wrapping_add(1);
        match claim::started(old, epoch, s.due_seq, s.sent_seq) {
            Ok(started) => {
                let taken = self.take_back(slot, started);
                self.stats.reclaims += 1;
                self.stats.reclaimed_jobs += taken as u64;
                Some(old)
            }
            Err(claim::Hostile) => {
                self.kill(slot, Doom::Hostile);
                None
            }
        }
    }

    /// Moves all but the first `started` live jobs of this slot to the front of the queue. Returns how many.
    pub(super) fn take_back(&mut self, slot: usize, started: u32) -> usize {
        let s = &mut self.slots[slot];
        let mut position = s.journal.next_live(s.due);
        for _ in 0..started {
            position = s.journal.next_live(position + 1);
        }
        let first_seq = s.due_seq.wrapping_add(started);
        let before = self.front.len();
        loop {
            let s = &mut self.slots[slot];
            if position == s.journal.tail() {
                break;
            }
            let entry = *s.journal.entry(position);
            self.table.recall(entry.label);
            if entry.size == 0 {
                s.journal.void(position);
                self.table.set_place(entry.label.job, Place::FrontOwned);
            } else {
                s.journal.entry_mut(position).state = State::TakenBack;
                self.table.set_place(entry.label.job, Place::FrontInSlot(slot as u32, position));
            }
            self.leave_slot(slot, entry.estimate_ns, entry.timed);
            self.note(Step::Reclaimed, entry.label, Some(slot));
            self.front.push_back(entry.label.job);
            position = self.slots[slot].journal.next_live(position + 1);
        }
        let taken = self.front.len() - before;
        self.front.rotate_right(taken);
        self.unfilled |= taken > 0;
        let s = &mut self.slots[slot];
        s.sent = s.journal.tail();
        s.next_seq = first_seq;
        s.fragment_offset = 0;
        // Unsent frames may have been among the started ones only if the worker lied.
        s.sent_seq = first_seq;
        taken
    }

    /// A job is in this slot no more.
    #[inline]
    pub(super) fn leave_slot(&mut self, slot: usize, estimate_ns: u32, timed: bool) {
        self.scheduler.removed(slot, estimate_ns);
        self.timed_jobs -= usize::from(timed);
    }

    // ---- finishing

    /// A job that is in no slot and no queue any more has this outcome.
    pub(super) fn finish(&mut self, job: JobIndex, outcome: Outcome<Vec<u8>>, worker: Option<usize>) {
        self.finish_as(job, Ending { outcome, worker, quarantined: false, printed: None });
    }

    /// As [`Engine::finish`].
    pub(super) fn finish_as(&mut self, job: JobIndex, ending: Ending) {
        let Ending { outcome, worker, quarantined, printed } = ending;
        self.count(&outcome);
        let r = self.table.get(job);
        let (tag, batch, tried, ticket) = (r.tag, r.batch, r.attempts, self.table.ticket(job));
        let label = self.table.label(job);
        let receipt = self.receipt(label, None);
        self.forget(job);
        if self.is_wanted(batch) {
            let run_ns = None;
            self.keep(Finished { ticket, tag, batch, outcome, tried, worker, run_ns, receipt, quarantined, printed });
        }
    }

    /// Removes a job from the table.
    #[inline]
    pub(super) fn forget(&mut self, job: JobIndex) {
        self.forget_timers(job);
        if let Some(o) = &self.table.get(job).owned {
            if o.large {
                self.large_size -= o.payload.len();
            }
            if o.aside {
                self.aside_size -= o.payload.len();
            }
        }
        self.table.remove(job);
    }

    #[inline]
    pub(super) fn count<B>(&mut self, outcome: &Outcome<B>) {
        let s = &mut self.stats;
        *match outcome {
            Outcome::Done(_) => &mut s.done,
            Outcome::Failed { .. } => &mut s.failed,
            Outcome::Crashed(_) => &mut s.crashed,
            Outcome::TimedOut { .. } => &mut s.timed_out,
            Outcome::Cancelled { .. } => &mut s.cancelled,
            Outcome::Rejected { .. } => &mut s.rejected,
        } += 1;
    }

    /// A completion of this batch is handed to its taker.
    #[inline]
    pub(super) fn delivered(&mut self, batch: u32) {
        if batch != BATCH_SINGLE {
            self.batch_outstanding -= 1;
        }
    }

    /// Hands out a completion that waits. It counts as delivered from here on.
    pub(super) fn take_finished(&mut self, at: usize) -> Option<Finished> {
        let finished = self.finished.remove(at)?;
        self.finished_size -= finished.size();
        self.delivered(finished.batch);
        self.note_ticket(Step::Delivered, finished.ticket, finished.tag, finished.worker);
        Some(finished)
    }

    /// Cancels a job wherever it is. `false`: it is over already, or about to be.
    pub(super) fn cancel(&mut self, ticket: Ticket, why: &str) -> bool {
        let Some(job) = self.table.find(ticket) else { return false };
        if let Place::Slot(slot, _) = self.table.place(job) {
            let slot = slot as usize;
            if self.slots[slot].life == Life::Dying {
                // What has not started was taken back when that was decided; nothing else may run again.
                return false;
            }
            let word = self.reclaim(slot);
            // What has started may be finished by now.
            self.drain_slot(slot);
            if self.table.find(ticket).is_none() {
                return false;
            }
            if let Place::Slot(_, position) = self.table.place(job) {
                // A worker publishes a result before its next claim: only the last job that started can be running.
                let seq = FrameId::from_bits(self.slots[slot].journal.entry(position).id).seq;
                if word.is_none_or(|w| seq.wrapping_add(1) != w.seq) {
                    return false;
                }
                // Only its worker's death ends it.
                self.kill(slot, Doom::Cancelled { why: why.to_owned() });
                return true;
            }
        }
        self.finish_waiting(&[job], &Outcome::Cancelled { why: why.to_owned() });
        true
    }

    /// Takes back what has not started, everywhere.
    pub(super) fn reclaim_all(&mut self) {
        for slot in 0..self.slots.len() {
            if self.scheduler.jobs(slot) > 0 && self.slots[slot].life != Life::Dying {
                self.reclaim(slot);
            }
        }
    }

    /// Those of these jobs that wait for a slot have this outcome.
    pub(super) fn finish_waiting(&mut self, jobs: &[JobIndex], outcome: &Outcome<Vec<u8>>) {
        for &job in jobs {
            match self.table.place(job) {
                Place::Queue(position) => self.queue.void(position),
                Place::FrontInSlot(slot, position) => self.slots[slot as usize].journal.void(position),
                Place::FrontOwned | Place::Aside => {}
                Place::Nowhere | Place::Slot(..) | Place::Ending => continue,
            }
            self.table.set_place(job, Place::Ending);
        }
        let Self { front, table, .. } = self;
        front.retain(|&job| table.place(job) != Place::Ending);
        for &job in jobs {
            if self.table.place(job) == Place::Ending {
                self.finish(job, outcome.clone(), None);
            }
        }
    }

    /// Cancels everything.
    pub(super) fn cancel_all(&mut self, why: &str) {
        self.reclaim_all();
        for slot in 0..self.slots.len() {
            if self.scheduler.jobs(slot) > 0 && self.slots[slot].life != Life::Dying {
                self.drain_slot(slot);
                if self.slots[slot].in_flight() {
                    self.kill(slot, Doom::Cancelled { why: why.to_owned() });
                }
            }
        }
        self.cancel_waiting(why);
    }

    /// Cancels what has not started, wherever it is.
    pub(super) fn cancel_unstarted(&mut self, why: &str) {
        self.reclaim_all();
        self.cancel_waiting(why);
    }

    fn cancel_waiting(&mut self, why: &str) {
        let all: Vec<_> = self.table.jobs().collect();
        self.finish_waiting(&all, &Outcome::Cancelled { why: why.to_owned() });
    }

    // ---- the turn

    /// One turn: sends, waits at most `timeout_ns`, reads, serves timers. Completions of the batch `taker` go to `sink`,
    /// others are kept.
    ///
    /// Generic, so that a result reaches its taker's code without being moved on the way.
    pub(super) fn turn(&mut self, timeout_ns: Option<u64>, taker: u32, sink: &mut impl Sink<S>) -> OsResult<()> {
        self.told = false;
        self.taker = taker;
        let (before, interrupted) = (self.finished.len(), self.pending.is_some());
        self.resume(sink);
        self.fill();
        if self.paused {
            self.flush_ripe();
        } else {
            self.flush();
        }
        let busy = self.table.len() != 0;
        let timeout_ns = match timeout_ns {
            _ if self.paused => Some(0),
            // Something has come that the caller wants to know.
            _ if interrupted || self.finished.len() > before => Some(0),
            Some(t) if busy => Some(t.min(SLEEP_MAX.as_nanos() as u64)),
            None if busy => Some(SLEEP_MAX.as_nanos() as u64),
            other => other,
        };
        {
            let Self { transport, reactor, slots, .. } = self;
            transport.wait(reactor, timeout_ns, &mut |slot| slots[slot].in_flight())?;
        }
        let now_ns = self.sys.now_ns();
        while let Some(data) = self.reactor.next_expired(now_ns) {
            self.on_alarm(Alarm::from_bits(data), now_ns)?;
        }
        while let Some((token, readiness)) = self.reactor.next_ready() {
            if Some(token) == self.nursery_token {
                self.hear()?;
            } else if let Some(slot) = self.transport.slot_of(token) {
                if readiness.is_writable() {
                    self.mark_dirty(slot);
                }
                // A hang-up is reported as both.
                self.receive(slot, !readiness.is_writable(), sink);
            } else {
                // Deregistered since; the reactor has dropped it too.
                self.reactor.exhausted(token, readiness);
            }
        }
        if let Some(slot) = self.transport.next_in_turn() {
            self.receive(slot, true, sink);
        }
        self.fill();
        if self.paused || self.more_inputs {
            self.flush_ripe();
        } else {
            self.flush();
        }
        Ok(())
    }

    /// Ends every call from outside: tells an outer loop, if there is one, what is left.
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        let left = !self.finished.is_empty() || self.pending.is_some() || !self.dirty.is_empty() || self.unfilled;
        self.told = left;
        self.reactor.settle(left).map_err(Error::os("telling the outer loop"))
    }

    /// As [`Engine::settle`], after a submit: once told, the outer loop comes, and that turn ends with another settling.
    #[inline]
    pub(super) fn settle_submit(&mut self) {
        if self.reactor.is_exposed() && !self.told {
            // An error here comes back from the next call that can return it.
            let _ = self.settle();
            // A timer that is due has told it as well. Set anew with each job, it would cost a system call each.
            let due = self.reactor.next_deadline();
            self.told |= due.is_some_and(|due| due <= self.reactor.now_ns());
        }
    }

    pub(super) fn timed_jobs(&self) -> usize {
        self.timed_jobs
    }

    pub(super) fn shortest_timeout_ns(&self) -> u64 {
        self.shortest_timeout_ns
    }

    // ---- timestamps

    /// Flags of a small job's frame, and of a plain result: with times, if anybody wants to know.
    #[inline]
    pub(super) fn plain_flags(&self) -> u8 {
        match (self.config.receipts, self.hook.is_some()) {
            (true, _) => FLAG_TIMED | FLAG_METERED,
            (false, true) => FLAG_TIMED,
            (false, false) => 0,
        }
    }

    #[inline]
    pub(super) fn note(&mut self, step: Step, label: Label, slot: Option<usize>) {
        self.note_ticket(step, label.ticket(), label.tag, slot);
    }

    #[inline]
    pub(super) fn note_ticket(&mut self, step: Step, ticket: Ticket, tag: u64, slot: Option<usize>) {
        if self.hook.is_some() {
            let at_ns = self.sys.now_ns();
            self.note_at(step, ticket, tag, slot, at_ns);
        }
    }

    pub(super) fn note_at(&mut self, step: Step, ticket: Ticket, tag: u64, slot: Option<usize>, at_ns: u64) {
        if let Some(hook) = &mut self.hook {
            hook(&Event { step, ticket, tag, slot, at_ns });
        }
    }
}
