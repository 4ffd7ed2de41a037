//! Placing: from the queue into the slots' journals, and taking work back for a worker that would idle.

use super::engine::{Alarm, Engine};
use super::hook::Step;
use super::journal::{Entering, Position, State};
use super::slot::Slot;
use super::table::{JobIndex, Label, Owned, Place};
use crate::frame::{self, Header};
use crate::limits::{STEAL_LATE_NS, WINDOW_NS};
use crate::sys::Sys;

impl<S: Sys> Engine<S> {
    /// A slot with room for a job: time by its estimate, and bytes. A large job goes to an idle slot only.
    #[inline(always)]
    pub(super) fn place(&mut self, estimate_ns: u32, size: usize, large: bool) -> Option<usize> {
        match self.scheduler.at_hand(estimate_ns) {
            Some(slot) if !large && self.slots[slot].journal.has_room(size) => Some(slot),
            _ => self.place_elsewhere(estimate_ns, size, large),
        }
    }

    fn place_elsewhere(&mut self, estimate_ns: u32, size: usize, large: bool) -> Option<usize> {
        let Self { scheduler, slots, .. } = self;
        let slot = if large {
            scheduler.idle_slot()
        } else {
            scheduler.place(estimate_ns, |s| slots[s].journal.could_make_room(size))
        }?;
        self.make_room(slot, size).then_some(slot)
    }

    /// Makes room in a slot's journal by copying out what keeps it from being freed. `false`: it is really full.
    pub(super) fn make_room(&mut self, slot: usize, size: usize) -> bool {
        if self.slots[slot].journal.has_room(size) {
            return true;
        }
        self.retire(slot);
        self.slots[slot].journal.has_room(size)
    }

    /// Copies out the jobs at the head that are taken back, and one that is still running, so that the settled frames
    /// behind them are freed.
    #[cold]
    pub(super) fn retire(&mut self, slot: usize) {
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
                    self.table.set_place(entry.label.job, Place::FrontOwned);
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
                    self.table.set_place(entry.label.job, Place::Slot(slot as u32, moved));
                    return;
                }
            }
        }
    }

    /// Copies a job's bytes from a slot's journal into its record.
    pub(super) fn detach(&mut self, slot: usize, position: Position) {
        let s = &self.slots[slot];
        let label = s.journal.entry(position).label;
        let Some(Ok(f)) = frame::Frames::new(s.journal.frame(position)).next() else {
            unreachable!("a frame that this process encoded");
        };
        let payload = [f.headers().as_block(), f.body()].concat().into_boxed_slice();
        self.table.recall(label);
        self.table.get_mut(label.job).owned =
            Some(Box::new(Owned { header: f.header, payload, large: false, aside: false }));
    }

    /// A frame that this slot's socket takes in no packet: it travels in fragments, from its record.
    #[cold]
    pub(super) fn make_large(&mut self, slot: usize, position: Position) {
        self.detach(slot, position);
        let entry = self.slots[slot].journal.entry_mut(position);
        entry.size = 0;
        if let Some(owned) = &mut self.table.get_mut(entry.label.job).owned {
            owned.large = true;
            self.large_size += owned.payload.len();
        }
    }

    /// Books a job that has just been appended to a slot's journal.
    #[inline(always)]
    pub(super) fn placed(&mut self, label: Label, slot: usize, position: Position, estimate_ns: u32, timeout_ns: u64) {
        self.table.set_place(label.job, Place::Slot(slot as u32, position));
        self.scheduler.added(slot, estimate_ns);
        self.note(Step::Placed, label, Some(slot));
        self.mark_dirty(slot);
        if timeout_ns != 0 {
            self.placed_timed(timeout_ns);
        }
        self.keep_ticking();
    }

    fn placed_timed(&mut self, timeout_ns: u64) {
        self.timed_jobs += 1;
        if self.timed_jobs == 1 || timeout_ns < self.shortest_timeout_ns {
            self.shortest_timeout_ns = self.shortest_timeout_ns.min(timeout_ns);
            self.hasten_tick();
        }
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
    pub(super) fn next_waiting(&mut self) -> Option<JobIndex> {
        if let Some(&job) = self.front.front() {
            return Some(job);
        }
        let position = self.queue.next_live(self.queue.head());
        (position != self.queue.tail()).then(|| self.queue.entry(position).label.job)
    }

    /// Whether any job waits for a slot.
    pub(super) fn has_waiting(&mut self) -> bool {
        self.next_waiting().is_some()
    }

    /// Gives waiting jobs to slots with room; takes work back for a worker that would idle.
    pub(super) fn fill(&mut self) {
        self.place_waiting();
        self.unfilled = false;
        // Inputs that are about to come are for the idle ones. Only what waits behind a job that does not end is moved then:
        // its turn may be long after theirs.
        let (stuck_ns, inputs_come) =
            if self.more_inputs || self.paused { (STEAL_LATE_NS, true) } else { (WINDOW_NS, false) };
        // A worker that is not up yet gains nothing from work that another will have done by then. One that is up is
        // given something by each round.
        for _ in 0..self.slots.len() {
            if self.scheduler.idle_ready_slot().is_none() || self.has_waiting() {
                return;
            }
            let now_ns = self.sys.now_ns();
            let Self { scheduler, slots, .. } = self;
            let stuck = |s: usize| now_ns.saturating_sub(slots[s].progress_ns) >= stuck_ns;
            let started = |s: usize| if inputs_come && !stuck(s) { usize::MAX } else { slots[s].started() };
            let busy_taking = |s: usize| slots[s].fragment_offset > 0;
            match scheduler.victim(started, stuck, busy_taking) {
                Some(victim) => {
                    self.reclaim(victim);
                    self.place_waiting();
                    self.unfilled = false;
                }
                None if !inputs_come && self.steal.is_none() && scheduler.has_unstarted(started) => {
                    let timer = self.reactor.set_timer(now_ns + WINDOW_NS, Alarm::Steal.to_bits());
                    self.steal = Some(timer);
                    return;
                }
                None => return,
            }
        }
    }

    pub(super) fn place_waiting(&mut self) {
        // Jobs that were taken back are shared out: a run of them to the least loaded slot, then to the next.
        let mut share: Option<(usize, usize)> = None;
        while let Some(job) = self.next_waiting() {
            let r = self.table.get(job);
            let (handler, place) = (r.handler, self.table.place(job));
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
    pub(super) fn move_to(&mut self, job: JobIndex, slot: usize, size: usize, estimate_ns: u32) {
        let (place, label, record) = (self.table.place(job), self.table.label(job), self.table.get(job));
        let timeout_ns = record.terms.timeout_ns;
        let bound = record.queue_timer.is_some() || record.attempts > 0;
        // Making room may have moved its bytes into its record.
        let id = self.slots[slot].next_id();
        let entering = Entering { label, id, estimate_ns, timed: timeout_ns != 0, bound };
        let position = match place {
            Place::FrontInSlot(from, at) if from as usize == slot => {
                let j = &mut self.slots[slot].journal;
                let position = j.append_copy(at, entering);
                frame::set_id(j.frame_mut(position), id);
                j.void(at);
                position
            }
            Place::FrontInSlot(from, at) => {
                let (source, target) = two(&mut self.slots, from as usize, slot);
                let (position, room) = target.journal.append(entering, size);
                room.copy_from_slice(source.journal.frame(at));
                frame::set_id(room, id);
                source.journal.void(at);
                position
            }
            Place::Queue(at) => {
                let (position, room) = self.slots[slot].journal.append(entering, size);
                if size != 0 {
                    room.copy_from_slice(self.queue.frame(at));
                    frame::set_id(room, id);
                }
                self.queue.void(at);
                position
            }
            Place::FrontOwned => {
                let (position, room) = self.slots[slot].journal.append(entering, size);
                let r = self.table.get_mut(job);
                if size != 0
                    && let Some(o) = r.owned.take()
                {
                    if o.aside {
                        self.aside_size -= o.payload.len();
                    }
                    let (block, body) = o.payload.split_at(usize::from(o.header.header_block_size));
                    frame::encode(room, Header { id, ..o.header }, block, body);
                }
                position
            }
            Place::Nowhere | Place::Slot(..) | Place::Aside | Place::Ending => {
                unreachable!("a waiting job waits somewhere")
            }
        };
        if !matches!(place, Place::Queue(_)) {
            self.front.pop_front();
        }
        self.placed(label, slot, position, estimate_ns, timeout_ns);
    }
}

/// Two different slots at once.
fn two(slots: &mut [Slot], a: usize, b: usize) -> (&mut Slot, &mut Slot) {
    debug_assert!(a != b);
    let (low, high) = slots.split_at_mut(a.max(b));
    if a < b { (&mut low[a], &mut high[0]) } else { (&mut high[0], &mut low[b]) }
}
