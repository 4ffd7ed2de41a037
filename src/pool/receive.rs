//! Results: from a packet to their completions, and what a dead worker left in its out-ring.
//!
//! A packet is read frame by frame, and the place is remembered before each completion is handed out: a callback that
//! panics has had its job, and the rest of the packet is still there for the next turn.

use super::engine::{Engine, Pending, Sink};
use super::hook::Step;
use super::job::{Completion, Finished};
use super::journal::{Entry, Position, State};
use super::receipt::Receipt;
use super::slot::{Doom, Life};
use super::table::{Label, Ticket};
use crate::assembly::{Assembly, Taken};
use crate::frame::{
    self, FLAG_FRAGMENT, FLAG_PRINTED, FLAG_TIMED, Frame, Frames, Header, Kind, Metering, RESULT_TIMES_SIZE, Status,
    frame_size, result_prefix_size,
};
use crate::limits::{DRAINS_MAX, PACKET_SIZE_MAX, PACKETS_PER_TURN, RING_SIZE};
use crate::outcome::{Outcome, Reason};
use crate::prints::Printed;
use crate::sync::{Ordering, fence};
use crate::sys::{Pages, Received, Sys};
use std::io::IoSliceMut;

/// The taker where there is none: every completion is kept.
type Keep<S> = fn(&mut Engine<S>, Completion<'_>);

/// Runs from this long on all count for the estimate of their handler. Units: nanoseconds.
const LEARN_ALWAYS_NS: u32 = 4096;

/// A job that has left its slot.
struct Over {
    slot: usize,
    label: Label,
    /// How often it has been tried before.
    tried: u32,
    run_ns: u32,
    receipt: Option<Box<Receipt>>,
}

fn u64_from_le(bytes: &[u8; 8]) -> u64 {
    bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
}

/// Whether a packet is one fragment of a large result: it has not come by way of the ring.
#[inline]
fn is_fragment(packet: &[u8]) -> bool {
    let header = packet.first_chunk().and_then(|head| Header::decode(head).ok());
    header.is_some_and(|h| h.flags & FLAG_FRAGMENT != 0 && frame_size(h.payload_size as usize) == packet.len())
}

/// A packet that is being read. However that ends, also by a callback's panic, the receive buffer goes back and what has
/// been settled is booked.
struct Reading<'e, S: Sys> {
    engine: &'e mut Engine<S>,
    rx: Pages,
    slot: usize,
    settled: Settled,
}

/// Plain results that have been handed out and whose slot does not know it yet. Their journal entries are void and their
/// records free; until the slot knows it seems fuller than it is, which hurts nobody.
#[derive(Clone, Copy, Default)]
struct Settled {
    /// Where the next result's entry is looked for.
    position: Position,
    count: u32,
    work_ns: u64,
    timed: usize,
}

impl<S: Sys> Drop for Reading<'_, S> {
    fn drop(&mut self) {
        self.engine.rx = std::mem::take(&mut self.rx);
        self.engine.book_settled(self.slot, &mut self.settled);
    }
}

impl<S: Sys> Engine<S> {
    /// Reads packets of one slot, as many as its turn allows. `is_open`: its worker had not closed its end.
    pub(super) fn receive(&mut self, slot: usize, is_open: bool, sink: &mut impl Sink<S>) {
        for _ in 0..PACKETS_PER_TURN {
            if !self.receive_packet(slot) {
                return;
            }
            self.resume(sink);
            if is_open && self.slots[slot].is_answered() {
                // Nothing more can come, so there is no need to ask until would-block. Whatever a worker sends unasked is
                // an edge of its own, or is met before its next result.
                return self.transport.exhausted(&mut self.reactor, slot);
            }
        }
        // Not exhausted: it stays on the ready list, and the others have their turn first.
    }

    /// Reads everything that this slot has sent; completions wait to be delivered.
    pub(super) fn drain_slot(&mut self, slot: usize) {
        self.read_pending(None::<&mut Keep<S>>);
        while self.receive_packet(slot) {
            self.read_pending(None::<&mut Keep<S>>);
        }
    }

    /// Receives one packet. `false`: nothing more for now.
    fn receive_packet(&mut self, slot: usize) -> bool {
        debug_assert!(self.pending.is_none(), "one packet at a time");
        loop {
            let Self { transport, slots, rx, .. } = self;
            let received = match &mut slots[slot].assembly {
                Some(assembly) => transport.recv(slot, &mut assembly.parts(rx)),
                None => transport.recv(slot, &mut [IoSliceMut::new(rx)]),
            };
            match received.unwrap_or(Received::Truncated) {
                Received::Packet(size) => {
                    let now_ns = self.sys.now_ns();
                    let s = &mut self.slots[slot];
                    s.progress_ns = now_ns;
                    self.stats.packets_received += 1;
                    let taken = s.assembly.as_mut().map(|a| a.take(&mut self.rx, size));
                    let start = if taken == Some(Taken::Fragment) {
                        size
                    } else if is_fragment(&self.rx[..size]) {
                        0
                    } else {
                        // What was read from the ring comes once more through the socket.
                        let start = s.read.wrapping_sub(s.received).min(size as u64) as usize;
                        s.received = s.received.wrapping_add(size as u64);
                        s.read = s.read.wrapping_add((size - start) as u64);
                        start
                    };
                    self.pending = Some(Pending { slot, generation: s.generation, start, end: size, at_ns: now_ns });
                    if s.blocked {
                        self.mark_dirty(slot);
                    }
                    return true;
                }
                // Results may still follow.
                Received::Reset => {}
                Received::WouldBlock => {
                    self.transport.exhausted(&mut self.reactor, slot);
                    return false;
                }
                Received::Closed => {
                    self.transport.hung_up(&mut self.reactor, slot);
                    // Not a death: that is what the exit report says. Unless nobody is left to report.
                    if self.slots[slot].is_orphan {
                        self.on_unreported_exit(slot);
                    }
                    return false;
                }
                // Or an error of its socket, which is as much its own.
                Received::Truncated => {
                    self.kill(slot, Doom::Hostile);
                    self.transport.exhausted(&mut self.reactor, slot);
                    return false;
                }
            }
        }
    }

    /// Reads on in a packet that was interrupted.
    pub(super) fn resume(&mut self, sink: &mut impl Sink<S>) {
        self.read_pending(Some(sink));
    }

    fn read_pending<F: Sink<S>>(&mut self, mut sink: Option<&mut F>) {
        let Some(Pending { slot, generation, mut start, end, at_ns }) = self.pending else { return };
        if start == end {
            // The whole packet was a fragment, and is in its place.
            self.pending = None;
            return self.settle_assembly(slot, sink);
        }
        let settled = Settled { position: self.slots[slot].due, ..Settled::default() };
        let mut reading = Reading { rx: std::mem::take(&mut self.rx), engine: self, slot, settled };
        let Reading { engine, rx, settled, .. } = &mut reading;
        // Whether plain results go to the sink without a detour, and whether with their steps: nothing in this packet changes
        // that.
        let is_plain = engine.hook.is_none() && engine.is_wanted(engine.taker);
        let is_recorded = engine.hook.is_some() && engine.is_wanted(engine.taker);
        loop {
            let s = &engine.slots[slot];
            if start == end || s.generation != generation || s.doom == Some(Doom::Hostile) {
                engine.pending = None;
                return;
            }
            let mut frames = Frames::new(&rx[start..end]);
            let Some(Ok(frame)) = frames.next() else {
                engine.kill(slot, Doom::Hostile);
                continue;
            };
            start = end - frames.rest().len();
            if let Some(p) = &mut engine.pending {
                p.start = start;
            }
            if is_plain
                && let Some(sink) = sink.as_deref_mut()
                && let Some(label) = engine.settle_plain::<0>(slot, &frame.header, settled)
            {
                engine.delivered(label.batch);
                // Made where it is taken: a completion that is moved on its way is stored and loaded again.
                sink.take(engine, Completion::plain(label, slot, frame.header.extra, frame.body()));
                continue;
            }
            if is_recorded
                && let Some(sink) = sink.as_deref_mut()
                && let Some((times, body)) = frame.body().split_first_chunk()
                && let Some(label) = engine.settle_plain::<FLAG_TIMED>(slot, &frame.header, settled)
            {
                engine.delivered(label.batch);
                engine.note_plain(slot, label, times, at_ns);
                sink.take(engine, Completion::plain(label, slot, frame.header.extra, body));
                continue;
            }
            engine.book_settled(slot, settled);
            engine.on_frame(slot, frame, sink.as_deref_mut());
            settled.position = engine.slots[slot].due;
        }
    }

    /// Settles a plain result: a small one with these flags, of a job that is done and whose taker is there, from a worker
    /// in good standing. `None`: it is something else, and nothing has happened.
    #[inline(always)]
    fn settle_plain<const FLAGS: u8>(&mut self, slot: usize, header: &Header, settled: &mut Settled) -> Option<Label> {
        if header.kind != Kind::Result || header.flags != FLAGS || header.code != Status::Done as u32 {
            return None;
        }
        let s = &mut self.slots[slot];
        if s.watched || !s.ready {
            return None;
        }
        let position = s.journal.next_live(settled.position);
        if position >= s.sent {
            return None;
        }
        let entry = s.journal.entry_mut(position);
        let label = entry.label;
        if entry.id != header.id || entry.size == 0 || entry.bound || label.batch != self.taker {
            return None;
        }
        entry.state = State::Void;
        settled.position = position + 1;
        settled.count += 1;
        settled.work_ns += u64::from(entry.estimate_ns);
        settled.timed += usize::from(entry.timed);
        self.table.remove_unowned(label);
        self.learn(label, header.extra);
        Some(label)
    }

    /// The steps of a plain result that was received at `at_ns` with the others of its packet, and is handed out now.
    #[inline(never)]
    fn note_plain(&mut self, slot: usize, label: Label, times: &[u8; RESULT_TIMES_SIZE], at_ns: u64) {
        let (ticket, tag, worker) = (label.ticket(), label.tag, Some(slot));
        self.note_run(ticket, tag, slot, &Metering::decode(times));
        self.note_at(Step::Received, ticket, tag, worker, at_ns);
        self.note_ticket(Step::Delivered, ticket, tag, worker);
    }

    /// When a job ran, as its worker says.
    fn note_run(&mut self, ticket: Ticket, tag: u64, slot: usize, metering: &Metering) {
        self.note_at(Step::Started, ticket, tag, Some(slot), metering.start_ns);
        self.note_at(Step::Ended, ticket, tag, Some(slot), metering.end_ns);
    }

    /// Lets the slot know what has been settled.
    fn book_settled(&mut self, slot: usize, settled: &mut Settled) {
        let Settled { position, count, work_ns, timed } = std::mem::take(settled);
        if count == 0 {
            return;
        }
        let s = &mut self.slots[slot];
        s.due = position;
        s.due_seq = s.due_seq.wrapping_add(count);
        s.journal.pass();
        self.scheduler.removed_many(slot, count as usize, work_ns);
        self.timed_jobs -= timed;
        self.stats.done += u64::from(count);
    }

    /// Takes a run time into account. A short run is one among very many: one in eight of them tells enough.
    #[inline(always)]
    fn learn(&mut self, label: Label, run_ns: u32) {
        if run_ns >= LEARN_ALWAYS_NS || label.job.0.is_multiple_of(8) {
            self.services[label.handler as usize].learn(run_ns);
        }
    }

    fn on_frame<F: Sink<S>>(&mut self, slot: usize, frame: Frame<'_>, sink: Option<&mut F>) {
        match frame.header.kind {
            Kind::Result => self.on_result(slot, frame, sink),
            Kind::Hello => self.on_hello(slot, frame),
            Kind::Job => self.kill(slot, Doom::Hostile),
        }
    }

    fn on_hello(&mut self, slot: usize, frame: Frame<'_>) {
        if self.slots[slot].ready {
            // Once is enough: what nobody waits for could come for ever.
            return self.kill(slot, Doom::Hostile);
        }
        if frame.header.code == Status::Done as u32 {
            if self.slots[slot].life == Life::Starting {
                self.on_ready(slot);
            }
            let s = &mut self.slots[slot];
            s.ready = true;
            s.wear.memory = frame.body().first_chunk().map(u64_from_le);
        } else {
            let why = String::from_utf8_lossy(frame.body()).into_owned();
            self.slots[slot].tell(&why);
            self.start_error = Some(why);
        }
    }

    fn on_result<F: Sink<S>>(&mut self, slot: usize, frame: Frame<'_>, sink: Option<&mut F>) {
        let s = &mut self.slots[slot];
        if !s.ready {
            // Nothing is believed before hello: set-up may have failed, or not be over.
            return self.kill(slot, Doom::Hostile);
        }
        let position = s.journal.next_live(s.due);
        s.due = position;
        // Results come in the order of the claims, each for a frame that was sent.
        if position >= s.sent || s.journal.entry(position).id != frame.header.id {
            return self.kill(slot, Doom::Hostile);
        }
        if frame.header.flags & FLAG_FRAGMENT == 0 {
            // A job that failed with half of its reply sent: there is no more to come of that.
            self.slots[slot].assembly = None;
            return self.settle_result(slot, position, &frame.header, frame.body(), sink);
        }
        let Ok(fragment) = frame.fragment() else { return self.kill(slot, Doom::Hostile) };
        let limit = self.config.job_size_max + result_prefix_size(frame.header.flags);
        if fragment.total > limit as u64 {
            return self.kill(slot, Doom::Hostile);
        }
        let s = &mut self.slots[slot];
        let is_next = if fragment.offset == 0 {
            // The size is a worker's word: a host without that much memory must not end by it.
            s.assembly = Assembly::begin(frame.header, &fragment, std::mem::take(&mut self.spare)).ok();
            s.assembly.is_some()
        } else {
            s.assembly.as_mut().is_some_and(|a| a.push(&fragment))
        };
        if !is_next {
            return self.kill(slot, Doom::Hostile);
        }
        self.settle_assembly(slot, sink);
    }

    /// A fragment has been added to a large result: settles it if it is whole.
    fn settle_assembly<F: Sink<S>>(&mut self, slot: usize, sink: Option<&mut F>) {
        let s = &mut self.slots[slot];
        let Some(assembly) = s.assembly.take_if(|a| a.is_whole()) else { return };
        // No frame can have come between its fragments: the first one was for the job that is due.
        let position = s.journal.next_live(s.due);
        if position >= s.sent || s.journal.entry(position).id != assembly.header().id {
            return self.kill(slot, Doom::Hostile);
        }
        self.settle_result(slot, position, assembly.header(), assembly.body(), sink);
        self.spare = assembly.into_spare();
    }

    /// The job at `position` has its result: books it and hands it on.
    fn settle_result<F: Sink<S>>(
        &mut self,
        slot: usize,
        position: Position,
        header: &Header,
        body: &[u8],
        sink: Option<&mut F>,
    ) {
        let Some((prefix, body)) = body.split_at_checked(result_prefix_size(header.flags)) else {
            return self.kill(slot, Doom::Hostile);
        };
        let metering = if prefix.is_empty() { None } else { Some(Metering::decode(prefix)) };
        let (printed, body) = if header.flags & FLAG_PRINTED != 0 {
            match frame::split_printed(body) {
                Some((cut, bytes, body)) if self.may_bring(header, bytes) => (Some(Printed { bytes, cut }), body),
                _ => return self.kill(slot, Doom::Hostile),
            }
        } else {
            (None, body)
        };
        let Some(status) = Status::from_code(header.code) else { return self.kill(slot, Doom::Hostile) };
        let label = self.slots[slot].journal.entry(position).label;
        if self.hook.is_some() {
            let (tag, ticket) = (label.tag, label.ticket());
            if let Some(m) = &metering {
                self.note_run(ticket, tag, slot, m);
            }
            self.note_ticket(Step::Received, ticket, tag, Some(slot));
        }
        let text = || String::from_utf8_lossy(body).into_owned();
        let outcome = match status {
            Status::Done => Outcome::Done(body),
            Status::Failed => Outcome::Failed { message: text(), panicked: false },
            Status::Panicked => Outcome::Failed { message: text(), panicked: true },
            Status::UnknownHandler => {
                let name = self.handler_names[label.handler as usize].clone();
                Outcome::Rejected { reason: Reason::UnknownHandler(name) }
            }
            Status::ReplyTooLarge => {
                let size = body.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
                let limit = self.config.job_size_max;
                let message = format!("reply of {size} bytes is too large, the limit is {limit} bytes");
                Outcome::Failed { message, panicked: false }
            }
        };
        if !outcome.is_done() && self.is_tried_again(label, &outcome) {
            self.learn(label, header.extra);
            self.try_again(slot, position);
            if self.slots[slot].watched {
                self.on_watched_result(slot);
            }
            return;
        }
        let receipt = self.receipt(label, metering.as_ref());
        let over = Over { receipt, ..self.book_result(slot, position, header.extra) };
        self.count(&outcome);
        self.hand_over(over, outcome, printed, sink);
    }

    /// Whether an honest worker's result brings these bytes that its job has printed.
    fn may_bring(&self, header: &Header, printed: &[u8]) -> bool {
        header.code != Status::Done as u32 && printed.len() <= self.config.prints.size_max()
    }

    /// The job at `position` has started and is over, or this attempt is: it leaves its slot.
    pub(super) fn leave_settled(&mut self, slot: usize, position: Position) -> Entry {
        let s = &mut self.slots[slot];
        let entry = *s.journal.entry(position);
        s.journal.void(position);
        s.due = position + 1;
        s.due_seq = s.due_seq.wrapping_add(1);
        self.leave_slot(slot, entry.estimate_ns, entry.timed);
        entry
    }

    /// The job at `position` has its result: it leaves its slot and the table.
    fn book_result(&mut self, slot: usize, position: Position, run_ns: u32) -> Over {
        let Entry { label, size, bound, .. } = self.leave_settled(slot, position);
        if self.slots[slot].watched {
            self.on_watched_result(slot);
        }
        self.learn(label, run_ns);
        let mut tried = 0;
        if size != 0 && !bound {
            self.table.remove_unowned(label);
        } else {
            tried = self.table.get(label.job).attempts;
            self.forget(label.job);
        }
        Over { slot, label, tried, run_ns, receipt: None }
    }

    /// Hands a result to its taker, or keeps it.
    fn hand_over<F: Sink<S>>(
        &mut self,
        over: Over,
        outcome: Outcome<&[u8]>,
        printed: Option<Printed<&[u8]>>,
        sink: Option<&mut F>,
    ) {
        let Over { slot, label, tried, run_ns, receipt } = over;
        let (tag, batch, ticket) = (label.tag, label.batch, label.ticket());
        if !self.is_wanted(batch) {
            return;
        }
        let (worker, run_ns) = (Some(slot), Some(u64::from(run_ns)));
        match sink {
            Some(sink) if batch == self.taker => {
                self.delivered(batch);
                self.note_ticket(Step::Delivered, ticket, tag, worker);
                sink.take(
                    self,
                    Completion { ticket, tag, outcome, tried, worker, run_ns, receipt, quarantined: false, printed },
                );
            }
            _ => {
                let outcome = outcome.map(<[u8]>::to_vec);
                let printed = printed.map(|p| Printed { bytes: p.bytes.to_vec(), cut: p.cut });
                let quarantined = false;
                self.keep(Finished {
                    ticket,
                    tag,
                    batch,
                    outcome,
                    tried,
                    worker,
                    run_ns,
                    receipt,
                    quarantined,
                    printed,
                });
            }
        }
    }

    #[cold]
    pub(super) fn keep(&mut self, finished: Finished) {
        self.finished_size += finished.size();
        self.finished.push_back(finished);
    }

    /// Reads the results that a dead worker had published and not sent. The slot's socket has been drained.
    pub(super) fn salvage(&mut self, slot: usize) {
        let before = self.slots[slot].due_seq;
        // Read once; checked against what the socket has brought, which the worker cannot change.
        let tail = self.slots[slot].memory.control().out_tail.observe();
        let mut bytes = Vec::new();
        for _ in 0..DRAINS_MAX {
            let s = &self.slots[slot];
            let (beyond_received, beyond_read) = (tail.wrapping_sub(s.received), tail.wrapping_sub(s.read));
            // Below what was read already: only a worker that takes back what it published.
            if beyond_received > RING_SIZE as u64 || beyond_read > RING_SIZE as u64 {
                return self.kill(slot, Doom::Hostile);
            }
            bytes = self.copy_out_ring(slot, tail);
            if self.is_next(slot, &bytes) {
                break;
            }
            // A large result, which travels beside the ring, is still in the socket: the drain found no memory for it.
            self.drain_slot(slot);
        }
        self.read_copy(slot, tail, &bytes);
        let found = self.slots[slot].due_seq.wrapping_sub(before);
        self.stats.salvaged += u64::from(found);
    }

    /// Reads the results that a living worker has published and holds back behind a long job.
    pub(super) fn read_ahead(&mut self, slot: usize) {
        // Read once, as in `salvage`.
        let tail = self.slots[slot].memory.control().out_tail.observe();
        // A large result, which travels beside the ring, was sent before this tail was published: it comes first.
        self.drain_slot(slot);
        let s = &self.slots[slot];
        // What the drain has brought meanwhile may lie beyond the tail.
        let is_ahead = tail.wrapping_sub(s.read).wrapping_sub(1) < u64::MAX / 2;
        if s.life != Life::Running || !is_ahead {
            return;
        }
        if tail.wrapping_sub(s.received) > RING_SIZE as u64 {
            return self.kill(slot, Doom::Hostile);
        }
        let from = s.read;
        let bytes = self.copy_out_ring(slot, tail);
        // Before the copy is believed: forbids that the worker had meanwhile sent these bytes and come round the ring to
        // write over them; it writes at most one packet beyond its tail. Pairs with the Release in `publish`.
        fence(Ordering::Acquire);
        let s = &self.slots[slot];
        let now = s.memory.control().out_tail.observe();
        if now.wrapping_sub(from) > (RING_SIZE - PACKET_SIZE_MAX) as u64 || !self.is_next(slot, &bytes) {
            return;
        }
        self.read_copy(slot, tail, &bytes);
    }

    /// The out-ring's bytes from what has been read to `tail`, at most the ring's size.
    fn copy_out_ring(&self, slot: usize, tail: u64) -> Vec<u8> {
        let s = &self.slots[slot];
        let mut bytes = vec![0; tail.wrapping_sub(s.read) as usize];
        s.memory.out_ring().copy_out(s.read, &mut bytes);
        bytes
    }

    /// Whether these bytes of an out-ring do not begin beyond the result that is due.
    fn is_next(&self, slot: usize, bytes: &[u8]) -> bool {
        let journal = &self.slots[slot].journal;
        let due = journal.next_live(self.slots[slot].due);
        match Frames::new(bytes).next() {
            Some(Ok(frame)) if frame.header.kind == Kind::Result && due != journal.tail() => {
                frame.header.id == journal.entry(due).id
            }
            _ => true,
        }
    }

    fn read_copy(&mut self, slot: usize, tail: u64, bytes: &[u8]) {
        self.slots[slot].read = tail;
        for frame in Frames::new(bytes) {
            match frame {
                Ok(frame) => self.on_frame(slot, frame, None::<&mut Keep<S>>),
                Err(_) => self.kill(slot, Doom::Hostile),
            }
            if self.slots[slot].doom == Some(Doom::Hostile) {
                return;
            }
        }
    }
}
