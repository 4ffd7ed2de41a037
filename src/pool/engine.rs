//! The pool's state, and the way of a job from `submit` to the socket.
//!
//! `Engine` owns the reactor, the transport, every slot and the job table. This file admits jobs, places them, sends
//! them, takes them back and finishes them; `receive` reads results, `supervise` deals with workers' lives and deadlines.
//! One turn: resume, fill, send, wait, read, timers, fill, send.

use super::hook::{Event, Hook, Step};
use super::job::{Completion, Finished, HandlerRef, Job};
use super::journal::{Journal, Position, State};
use super::slot::{Doom, Life, Slot};
use super::stats::Stats;
use super::table::{JobIndex, Owned, Place, Table, Ticket};
use crate::claim::{self, FrameId};
use crate::error::{Error, TrySubmitError};
use crate::frame::{self, FLAG_FRAGMENT, FLAG_TIMED, Header, Kind};
use crate::limits::{
    FRAGMENT_PREFIX_SIZE, FRAME_ALIGN, FRAME_HEADER_SIZE, LARGE_STORE_SIZE, PACK_SIZE_MAX, PACKET_SIZE_MAX, SLEEP_MAX,
    UNDELIVERED_SIZE_MAX, WINDOW_NS,
};
use crate::nursery::Nursery;
use crate::outcome::{Outcome, Reason};
use crate::reactor::{Reactor, TimerId, Token};
use crate::scheduler::{Scheduler, Service};
use crate::sys::{OsResult, Sent, Sys};
use crate::transport::Transport;
use std::collections::VecDeque;
use std::io::IoSlice;

/// Who takes completions: gets the engine back, to submit more.
pub(super) type Sink<'s, S> = &'s mut dyn FnMut(&mut Engine<S>, Completion<'_>);

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
}

/// What the builder decided.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) job_size_max: usize,
    pub(super) header_block_size_max: usize,
    pub(super) outstanding_max: usize,
    pub(super) timeout_ns: u64,
    pub(super) stall_ns: u64,
    pub(super) spawn_ns: u64,
    pub(super) receive_ns: u64,
}

pub(super) struct Engine<S: Sys> {
    pub(super) sys: S,
    pub(super) config: Config,
    pub(super) reactor: Reactor<S>,
    pub(super) transport: Box<dyn Transport<S>>,
    /// `None` once it is gone: then nobody is forked any more.
    pub(super) nursery: Option<Nursery<S>>,
    pub(super) nursery_token: Option<Token>,
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
    pub(super) rx: Box<[u8]>,
    pub(super) pending: Option<Pending>,
    /// Slots with frames to send.
    dirty: Vec<usize>,
    /// Bytes of jobs that are too large for a ring.
    large_size: usize,
    /// Jobs in slots that have a timeout.
    timed_jobs: usize,
    /// Shortest timeout seen. Units: nanoseconds.
    shortest_timeout_ns: u64,
    pub(super) tick: Option<TimerId>,
    /// When it fires. Units: nanoseconds.
    pub(super) tick_at_ns: u64,
    pub(super) steal: Option<TimerId>,
    pub(super) draining: bool,
    /// The batch whose jobs are delivered; those of earlier ones are dropped.
    batch: u32,
    /// Whether its run may still be going on.
    batch_open: bool,
    /// An outer loop has been told that there is work, and has not come yet.
    told: bool,
    /// Jobs were taken back and not placed again.
    unfilled: bool,
    /// Its jobs that are submitted and not delivered.
    pub(super) batch_outstanding: usize,
    /// The batch whose completions the present turn hands out; others are kept.
    pub(super) taker: u32,
    pub(super) start_error: Option<String>,
    pub(super) stats: Stats,
    pub(super) hook: Option<Hook>,
    /// Memory of the last large result, to be used again.
    pub(super) spare: Vec<u8>,
    /// Gone, and to be reaped with the pool.
    pub(super) lost_nursery: Option<Nursery<S>>,
    /// No worker is left and none will come: why.
    pub(super) hopeless: Option<Reason>,
}

/// Timers' data: what for, and for which slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    Tick,
    Steal,
    Slot(usize),
}

impl Alarm {
    pub(super) fn to_bits(self) -> u64 {
        match self {
            Alarm::Tick => 0,
            Alarm::Steal => 1,
            Alarm::Slot(slot) => 2 + slot as u64,
        }
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        match bits {
            0 => Alarm::Tick,
            1 => Alarm::Steal,
            slot => Alarm::Slot((slot - 2) as usize),
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
    pub(super) handler_names: Box<[String]>,
    pub(super) slots: Box<[Slot]>,
    pub(super) queue: Journal,
    pub(super) hook: Option<Hook>,
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
            handler_names: parts.handler_names,
            slots: parts.slots,
            table: Table::new(),
            queue: parts.queue,
            front: VecDeque::new(),
            finished: VecDeque::new(),
            finished_size: 0,
            rx: vec![0; PACKET_SIZE_MAX].into_boxed_slice(),
            pending: None,
            dirty: Vec::with_capacity(slots),
            large_size: 0,
            timed_jobs: 0,
            shortest_timeout_ns: u64::MAX,
            tick: None,
            tick_at_ns: 0,
            steal: None,
            draining: false,
            batch: BATCH_SINGLE + 1,
            batch_open: false,
            told: false,
            unfilled: false,
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
        let left: Vec<_> = self.table.jobs().filter(|&j| self.table.get(j).batch == ended).collect();
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

    /// Admits a job: into a slot if one has room, else into the queue.
    #[inline]
    pub(super) fn try_submit<'j>(&mut self, job: Job<'j>, batch: u32) -> Result<Ticket, TrySubmitError<Job<'j>>> {
        if self.draining {
            return Err(TrySubmitError::Draining(job));
        }
        if self.is_house_full() {
            return Err(TrySubmitError::Full(job));
        }
        let handler = match self.check(&job) {
            Ok(handler) => handler,
            Err(reason) => return Ok(self.reject(&job, batch, reason)),
        };
        let payload_size = job.header_block.len() + job.body.len();
        let size = frame::frame_size(payload_size);
        let large = size > PACKET_SIZE_MAX;
        if large && self.large_size != 0 && self.large_size + payload_size > LARGE_STORE_SIZE {
            return Err(TrySubmitError::Full(job));
        }
        let ring_size = if large { 0 } else { size };
        let estimate_ns = self.services[handler as usize].estimate_ns();
        let direct = if self.front.is_empty() && self.queue.head() == self.queue.tail() {
            self.place(estimate_ns, ring_size, large)
        } else {
            None
        };
        if direct.is_none() && !self.queue.has_room(ring_size) {
            return Err(TrySubmitError::Full(job));
        }
        let timeout_ns =
            job.timeout.map_or(self.config.timeout_ns, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX).max(1));
        let index = self.insert(handler, job.tag, timeout_ns, batch);
        self.note(Step::Submitted, index, None);
        let header = Header {
            payload_size: payload_size as u32,
            header_block_size: job.header_block.len() as u16,
            kind: Kind::Job,
            flags: if self.hook.is_some() { FLAG_TIMED } else { 0 },
            id: 0,
            code: handler,
            extra: 0,
        };
        if large {
            let payload = [&job.header_block[..], job.body].concat().into_boxed_slice();
            self.large_size += payload_size;
            self.table.get_mut(index).owned = Some(Box::new(Owned { header, payload, large: true }));
        }
        match direct {
            Some(slot) => {
                let id = self.number(slot);
                let s = &mut self.slots[slot];
                let (position, room) = s.journal.append(index, id, ring_size, estimate_ns);
                if !large {
                    frame::encode(room, Header { id, ..header }, &job.header_block, job.body);
                }
                self.placed(index, slot, position, estimate_ns);
            }
            None => {
                let (position, room) = self.queue.append(index, 0, ring_size, 0);
                if !large {
                    frame::encode(room, header, &job.header_block, job.body);
                }
                self.table.get_mut(index).place = Place::Queue(position);
            }
        }
        Ok(self.table.ticket(index))
    }

    #[inline]
    fn insert(&mut self, handler: u32, tag: u64, timeout_ns: u64, batch: u32) -> JobIndex {
        self.stats.jobs += 1;
        if batch != BATCH_SINGLE {
            self.batch_outstanding += 1;
        }
        self.table.insert(handler, tag, timeout_ns, batch)
    }

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
        let index = self.insert(0, job.tag, 0, batch);
        let ticket = self.table.ticket(index);
        self.note(Step::Submitted, index, None);
        self.finish(index, Outcome::Rejected { reason }, None);
        ticket
    }

    // ---- placing

    /// A slot with room for a job: time by its estimate, and bytes. A large job goes to an idle slot only.
    #[inline]
    fn place(&mut self, estimate_ns: u32, size: usize, large: bool) -> Option<usize> {
        let Self { scheduler, slots, .. } = self;
        let slot = if large {
            scheduler.idle_slot()
        } else {
            scheduler.place(estimate_ns, |s| slots[s].journal.could_make_room(size))
        }?;
        self.make_room(slot, size).then_some(slot)
    }

    /// Makes room in a slot's journal by copying out what keeps it from being freed. `false`: it is really full.
    #[inline]
    fn make_room(&mut self, slot: usize, size: usize) -> bool {
        if self.slots[slot].journal.has_room(size) {
            return true;
        }
        self.retire(slot);
        self.slots[slot].journal.has_room(size)
    }

    /// Copies out the jobs at the head that are taken back, and one that is still running, so that the settled frames
    /// behind them are freed.
    #[cold]
    fn retire(&mut self, slot: usize) {
        loop {
            let s = &mut self.slots[slot];
            let head = s.journal.head();
            if head == s.journal.tail() {
                return;
            }
            let entry = *s.journal.entry(head);
            match entry.state {
                State::Void => return,
                State::TakenBack => {
                    self.detach(slot, head);
                    self.slots[slot].journal.void(head);
                    self.table.get_mut(entry.job).place = Place::FrontOwned;
                }
                // Not sent yet: it moves by itself.
                State::Live if head >= s.sent => return,
                State::Live => {
                    if entry.size != 0 {
                        self.detach(slot, head);
                    }
                    let s = &mut self.slots[slot];
                    let moved = s.journal.retire_head();
                    s.due = s.due.max(moved);
                    s.sent = s.sent.max(moved + 1);
                    self.table.get_mut(entry.job).place = Place::Slot(slot as u32, moved);
                    return;
                }
            }
        }
    }

    /// Copies a job's bytes from a slot's journal into its record.
    fn detach(&mut self, slot: usize, position: Position) {
        let s = &self.slots[slot];
        let job = s.journal.entry(position).job;
        let Some(Ok(f)) = frame::Frames::new(s.journal.frame(position)).next() else {
            unreachable!("a frame that this process encoded");
        };
        let payload = [f.headers().as_block(), f.body()].concat().into_boxed_slice();
        self.table.get_mut(job).owned = Some(Box::new(Owned { header: f.header, payload, large: false }));
    }

    /// A frame that this slot's socket takes in no packet: it travels in fragments, from its record.
    #[cold]
    fn make_large(&mut self, slot: usize, position: Position) {
        self.detach(slot, position);
        let entry = self.slots[slot].journal.entry_mut(position);
        entry.size = 0;
        if let Some(owned) = &mut self.table.get_mut(entry.job).owned {
            owned.large = true;
            self.large_size += owned.payload.len();
        }
    }

    /// The id of the next frame of this slot.
    #[inline]
    fn number(&mut self, slot: usize) -> u64 {
        let s = &mut self.slots[slot];
        let id = FrameId { epoch: s.epoch, seq: s.next_seq };
        s.next_seq = s.next_seq.wrapping_add(1);
        id.to_bits()
    }

    /// Books a job that has just been appended to a slot's journal.
    #[inline]
    fn placed(&mut self, job: JobIndex, slot: usize, position: Position, estimate_ns: u32) {
        let r = self.table.get_mut(job);
        r.place = Place::Slot(slot as u32, position);
        let timeout_ns = r.timeout_ns;
        self.scheduler.added(slot, estimate_ns);
        self.note(Step::Placed, job, Some(slot));
        self.mark_dirty(slot);
        if timeout_ns != 0 {
            self.timed_jobs += 1;
            if self.timed_jobs == 1 || timeout_ns < self.shortest_timeout_ns {
                self.shortest_timeout_ns = self.shortest_timeout_ns.min(timeout_ns);
                self.hasten_tick();
            }
        }
        self.keep_ticking();
    }

    #[inline]
    pub(super) fn mark_dirty(&mut self, slot: usize) {
        let s = &mut self.slots[slot];
        if !s.dirty {
            s.dirty = true;
            self.dirty.push(slot);
        }
    }

    /// The next waiting job: those taken back first.
    fn next_waiting(&mut self) -> Option<JobIndex> {
        if let Some(&job) = self.front.front() {
            return Some(job);
        }
        let position = self.queue.next_live(self.queue.head());
        (position != self.queue.tail()).then(|| self.queue.entry(position).job)
    }

    /// Whether any job waits for a slot.
    fn has_waiting(&mut self) -> bool {
        self.next_waiting().is_some()
    }

    /// Gives waiting jobs to slots with room; takes work back for a worker that would idle.
    pub(super) fn fill(&mut self) {
        self.place_waiting();
        self.unfilled = false;
        // A worker that is not up yet gains nothing from work that another will have done by then. One that is up is
        // given something by each round.
        for _ in 0..self.slots.len() {
            if self.scheduler.idle_ready_slot().is_none() || self.has_waiting() {
                return;
            }
            let now_ns = self.sys.now_ns();
            let Self { scheduler, slots, .. } = self;
            let started = |s: usize| slots[s].started();
            let stuck = |s: usize| now_ns.saturating_sub(slots[s].progress_ns) >= WINDOW_NS;
            let busy_taking = |s: usize| slots[s].fragment_offset > 0;
            match scheduler.victim(started, stuck, busy_taking) {
                Some(victim) => {
                    self.reclaim(victim);
                    self.place_waiting();
                    self.unfilled = false;
                }
                None if self.steal.is_none() && scheduler.has_unstarted(started) => {
                    let timer = self.reactor.set_timer(now_ns + WINDOW_NS, Alarm::Steal.to_bits());
                    self.steal = Some(timer);
                    return;
                }
                None => return,
            }
        }
    }

    fn place_waiting(&mut self) {
        // Jobs that were taken back are shared out: a run of them to the least loaded slot, then to the next.
        let mut share: Option<(usize, usize)> = None;
        while let Some(job) = self.next_waiting() {
            let r = self.table.get(job);
            let (handler, place) = (r.handler, r.place);
            let large = r.owned.as_ref().is_some_and(|o| o.large);
            let size = match place {
                Place::Queue(p) => self.queue.entry(p).size as usize,
                Place::FrontInSlot(s, p) => self.slots[s as usize].journal.entry(p).size as usize,
                _ if large => 0,
                _ => r.owned.as_ref().map_or(0, |o| frame::frame_size(o.payload.len())),
            };
            let estimate_ns = self.services[handler as usize].estimate_ns();
            let slot = if large || self.front.is_empty() {
                self.place(estimate_ns, size, large)
            } else {
                match share {
                    Some((slot, left))
                        if left > 0
                            && self.scheduler.has_room(slot, estimate_ns)
                            && self.slots[slot].journal.has_room(size) =>
                    {
                        share = Some((slot, left - 1));
                        Some(slot)
                    }
                    _ => {
                        let Self { scheduler, slots, front, .. } = self;
                        let found = scheduler.place_evenly(estimate_ns, |s| slots[s].journal.has_room(size));
                        share = found.map(|s| (s, scheduler.share(front.len()) - 1));
                        found.or_else(|| self.place(estimate_ns, size, large))
                    }
                }
            };
            let Some(slot) = slot else { return };
            self.move_to(job, slot, size, estimate_ns);
        }
    }

    /// Moves a waiting job into a slot's journal, which has room for it.
    fn move_to(&mut self, job: JobIndex, slot: usize, size: usize, estimate_ns: u32) {
        let place = self.table.get(job).place;
        // Making room may have moved its bytes into its record.
        let id = self.number(slot);
        let position = match place {
            Place::FrontInSlot(from, at) if from as usize == slot => {
                let j = &mut self.slots[slot].journal;
                let position = j.append_copy(at, job, id, estimate_ns);
                frame::set_id(j.frame_mut(position), id);
                j.void(at);
                position
            }
            Place::FrontInSlot(from, at) => {
                let (source, target) = two(&mut self.slots, from as usize, slot);
                let (position, room) = target.journal.append(job, id, size, estimate_ns);
                room.copy_from_slice(source.journal.frame(at));
                frame::set_id(room, id);
                source.journal.void(at);
                position
            }
            Place::Queue(at) => {
                let (position, room) = self.slots[slot].journal.append(job, id, size, estimate_ns);
                if size != 0 {
                    room.copy_from_slice(self.queue.frame(at));
                    frame::set_id(room, id);
                }
                self.queue.void(at);
                position
            }
            Place::FrontOwned => {
                let (position, room) = self.slots[slot].journal.append(job, id, size, estimate_ns);
                let r = self.table.get_mut(job);
                if size != 0
                    && let Some(o) = r.owned.take()
                {
                    let (block, body) = o.payload.split_at(usize::from(o.header.header_block_size));
                    frame::encode(room, Header { id, ..o.header }, block, body);
                }
                position
            }
            Place::Nowhere | Place::Slot(..) | Place::Ending => unreachable!("a waiting job waits somewhere"),
        };
        if !matches!(place, Place::Queue(_)) {
            self.front.pop_front();
        }
        self.placed(job, slot, position, estimate_ns);
    }

    // ---- sending

    /// Sends what is placed and not sent, as far as the sockets take it. A socket that fails costs its own worker.
    pub(super) fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for &slot in &dirty {
            self.slots[slot].dirty = false;
        }
        for slot in dirty.drain(..) {
            if self.flush_slot(slot).is_err() {
                self.kill(slot, Doom::Stalled);
            }
        }
        // Slots that asked to be looked at again are on the new list; keep the old one's memory.
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    fn flush_slot(&mut self, slot: usize) -> OsResult<()> {
        if !matches!(self.slots[slot].life, Life::Starting | Life::Running) {
            return Ok(());
        }
        loop {
            let s = &mut self.slots[slot];
            let first = s.journal.next_live(s.sent);
            s.sent = first;
            if first == s.journal.tail() {
                return self.unblock(slot);
            }
            if !s.in_flight() && !s.blocked && s.fragment_offset == 0 {
                s.progress_ns = self.sys.now_ns();
                s.sampled_ns = s.progress_ns;
            }
            if s.journal.entry(first).size as usize > self.transport.packet_size_max(slot) {
                self.make_large(slot, first);
            }
            let s = &self.slots[slot];
            let sent = if s.journal.entry(first).size == 0 {
                // A large job is not sent behind a running one, which may take any time: it could not be moved.
                if s.in_flight() {
                    // A result makes way, as it makes room in the socket.
                    self.slots[slot].blocked = true;
                    return Ok(());
                }
                self.send_fragment(slot, first)?
            } else {
                self.send_pack(slot, first)?
            };
            match sent {
                Sent::All => {}
                Sent::WouldBlock => {
                    self.slots[slot].blocked = true;
                    return self.transport.want_write(&mut self.reactor, slot, true);
                }
                Sent::NoMemory => {
                    // No event will tell when there is memory again: the tick tries.
                    self.slots[slot].blocked = true;
                    return Ok(());
                }
                // Its exit report is on the way.
                Sent::Closed => return Ok(()),
            }
        }
    }

    fn unblock(&mut self, slot: usize) -> OsResult<()> {
        if std::mem::take(&mut self.slots[slot].blocked) {
            self.transport.want_write(&mut self.reactor, slot, false)?;
        }
        Ok(())
    }

    /// Sends the frames from `first` on that are contiguous and fit one packet.
    fn send_pack(&mut self, slot: usize, first: Position) -> OsResult<Sent> {
        let s = &mut self.slots[slot];
        let pack_max = PACK_SIZE_MAX.min(self.transport.packet_size_max(slot));
        let (mut end, mut size) = (first, 0);
        while end != s.journal.tail() {
            let e = s.journal.entry(end);
            if e.state != State::Live || e.size == 0 || (size != 0 && size + e.size as usize > pack_max) {
                break;
            }
            size += e.size as usize;
            end += 1;
        }
        // Before they leave: their worker may start them before the call returns.
        let sent_ns = if self.hook.is_some() { self.sys.now_ns() } else { 0 };
        let sent = self.transport.send(slot, &[IoSlice::new(s.journal.run(first, size))])?;
        if sent == Sent::All {
            s.sent = end;
            s.sent_seq = s.sent_seq.wrapping_add((end - first) as u32);
            self.stats.packets_sent += 1;
            if self.hook.is_some() {
                for position in first..end {
                    let job = self.slots[slot].journal.entry(position).job;
                    let (ticket, tag) = (self.table.ticket(job), self.table.get(job).tag);
                    self.note_at(Step::Sent, ticket, tag, Some(slot), sent_ns);
                }
            }
        }
        Ok(sent)
    }

    /// Sends the next part of a large job.
    fn send_fragment(&mut self, slot: usize, position: Position) -> OsResult<Sent> {
        let s = &mut self.slots[slot];
        let entry = *s.journal.entry(position);
        let Some(owned) = &self.table.get(entry.job).owned else {
            unreachable!("an entry without bytes belongs to a job that owns them");
        };
        let (block, body) = owned.payload.split_at(usize::from(owned.header.header_block_size));
        let offset = s.fragment_offset;
        let block = if offset == 0 { block } else { &[] };
        let room = self.transport.packet_size_max(slot) & !(FRAME_ALIGN - 1);
        let part = (room - FRAME_HEADER_SIZE - FRAGMENT_PREFIX_SIZE - block.len()).min(body.len() - offset);
        let payload_size = block.len() + FRAGMENT_PREFIX_SIZE + part;
        let header = Header {
            payload_size: payload_size as u32,
            header_block_size: block.len() as u16,
            id: entry.id,
            flags: owned.header.flags | FLAG_FRAGMENT,
            ..owned.header
        };
        let padding = frame::frame_size(payload_size) - FRAME_HEADER_SIZE - payload_size;
        let head = header.encode();
        let prefix = frame::fragment_prefix(body.len() as u64, offset as u64);
        let parts = [
            IoSlice::new(&head),
            IoSlice::new(block),
            IoSlice::new(&prefix),
            IoSlice::new(&body[offset..offset + part]),
            IoSlice::new(&[0; FRAME_ALIGN][..padding]),
        ];
        let sent_ns = self.sys.now_ns();
        let sent = self.transport.send(slot, &parts)?;
        if sent == Sent::All {
            self.stats.packets_sent += 1;
            // Every part that leaves is progress: a worker that takes none is noticed.
            s.progress_ns = self.sys.now_ns();
            s.sampled_ns = s.progress_ns;
            s.fragment_offset = offset + part;
            if s.fragment_offset == body.len() {
                s.fragment_offset = 0;
                s.sent = position + 1;
                s.sent_seq = s.sent_seq.wrapping_add(1);
                let (ticket, tag) = (self.table.ticket(entry.job), self.table.get(entry.job).tag);
                self.note_at(Step::Sent, ticket, tag, Some(slot), sent_ns);
            }
        }
        Ok(sent)
    }

    /// Whether a worker that has nothing in flight has something to be sent.
    #[inline]
    pub(super) fn has_idle_dirty(&self) -> bool {
        self.dirty.last().is_some_and(|&slot| !self.slots[slot].in_flight())
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
            if entry.size == 0 {
                s.journal.void(position);
                self.table.get_mut(entry.job).place = Place::FrontOwned;
            } else {
                s.journal.entry_mut(position).state = State::TakenBack;
                self.table.get_mut(entry.job).place = Place::FrontInSlot(slot as u32, position);
            }
            self.leave_slot(slot, entry.job, entry.estimate_ns);
            self.note(Step::Reclaimed, entry.job, Some(slot));
            self.front.push_back(entry.job);
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
    pub(super) fn leave_slot(&mut self, slot: usize, job: JobIndex, estimate_ns: u32) {
        self.scheduler.removed(slot, estimate_ns);
        if self.table.get(job).timeout_ns != 0 {
            self.timed_jobs -= 1;
        }
    }

    // ---- finishing

    /// A job that is in no slot and no queue any more has this outcome.
    pub(super) fn finish(&mut self, job: JobIndex, outcome: Outcome<Vec<u8>>, worker: Option<usize>) {
        self.finish_timed(job, outcome, worker, None);
    }

    pub(super) fn finish_timed(
        &mut self,
        job: JobIndex,
        outcome: Outcome<Vec<u8>>,
        worker: Option<usize>,
        run_ns: Option<u64>,
    ) {
        self.count(&outcome);
        let r = self.table.get(job);
        let (tag, batch, ticket) = (r.tag, r.batch, self.table.ticket(job));
        self.forget(job);
        if self.is_wanted(batch) {
            let finished = Finished { ticket, tag, batch, outcome, worker, run_ns };
            self.finished_size += finished.size();
            self.finished.push_back(finished);
        }
    }

    /// Removes a job from the table.
    #[inline]
    pub(super) fn forget(&mut self, job: JobIndex) {
        if let Some(o) = &self.table.get(job).owned
            && o.large
        {
            self.large_size -= o.payload.len();
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
        if let Place::Slot(slot, _) = self.table.get(job).place {
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
            if let Place::Slot(_, position) = self.table.get(job).place {
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
            match self.table.get(job).place {
                Place::Queue(position) => self.queue.void(position),
                Place::FrontInSlot(slot, position) => self.slots[slot as usize].journal.void(position),
                Place::FrontOwned => {}
                Place::Nowhere | Place::Slot(..) | Place::Ending => continue,
            }
            self.table.get_mut(job).place = Place::Ending;
        }
        let Self { front, table, .. } = self;
        front.retain(|&job| table.get(job).place != Place::Ending);
        for &job in jobs {
            if self.table.get(job).place == Place::Ending {
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
        let all: Vec<_> = self.table.jobs().collect();
        self.finish_waiting(&all, &Outcome::Cancelled { why: why.to_owned() });
    }

    // ---- the turn

    /// One turn: sends, waits at most `timeout_ns`, reads, serves timers. Completions of the batch `taker` go to `sink`,
    /// others are kept.
    pub(super) fn turn(&mut self, timeout_ns: Option<u64>, taker: u32, sink: Sink<'_, S>) -> OsResult<()> {
        self.told = false;
        self.taker = taker;
        let (before, interrupted) = (self.finished.len(), self.pending.is_some());
        self.resume(sink);
        self.fill();
        self.flush();
        let busy = self.table.len() != 0;
        let timeout_ns = match timeout_ns {
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
                self.receive(slot, sink);
            } else {
                // Deregistered since; the reactor has dropped it too.
                self.reactor.exhausted(token, readiness);
            }
        }
        if let Some(slot) = self.transport.next_in_turn() {
            self.receive(slot, sink);
        }
        self.fill();
        self.flush();
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
        }
    }

    pub(super) fn timed_jobs(&self) -> usize {
        self.timed_jobs
    }

    pub(super) fn shortest_timeout_ns(&self) -> u64 {
        self.shortest_timeout_ns
    }

    // ---- timestamps

    #[inline]
    pub(super) fn note(&mut self, step: Step, job: JobIndex, slot: Option<usize>) {
        if self.hook.is_some() {
            let (ticket, tag) = (self.table.ticket(job), self.table.get(job).tag);
            self.note_ticket(step, ticket, tag, slot);
        }
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

/// Two different slots at once.
fn two(slots: &mut [Slot], a: usize, b: usize) -> (&mut Slot, &mut Slot) {
    debug_assert!(a != b);
    let (low, high) = slots.split_at_mut(a.max(b));
    if a < b { (&mut low[a], &mut high[0]) } else { (&mut high[0], &mut low[b]) }
}
