//! The job table: a seat for each job that is submitted and not yet settled, wherever its bytes are, and a record for
//! those that need more.

use super::journal::Position;
use super::receipt::Stamps;
use super::terms::Terms;
use crate::frame::Header;
use crate::limits::WORKERS_MAX;
use crate::reactor::TimerId;

/// A seat's index, and that of the record beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JobIndex(pub(super) u32);

/// Names a submitted job; never names another one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// What of a job its result needs at once. A journal keeps it beside the job's bytes, where it is read in order: the
/// records of many thousand jobs in flight lie in no cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) tag: u64,
    pub(super) job: JobIndex,
    pub(super) generation: u32,
    pub(super) handler: u32,
    /// Which call's job it is; 0 for one that was submitted by itself.
    pub(super) batch: u32,
}

impl Label {
    #[inline]
    pub(super) fn ticket(self) -> Ticket {
        Ticket { index: self.job.0, generation: self.generation }
    }
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The seat is free.
    Nowhere,
    /// In the pool's queue.
    Queue(Position),
    /// In front of the queue; its bytes are still in this slot's journal.
    FrontInSlot(u32, Position),
    /// In front of the queue; its bytes are in the record.
    FrontOwned,
    /// In a slot, sent or about to be.
    Slot(u32, Position),
    /// Set aside until it is tried again; its bytes are in the record.
    Aside,
    /// Nowhere any more, and its outcome is about to be booked.
    Ending,
}

/// A job's bytes outside any ring: too large for one, or moved out to make room.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) header: Header,
    /// Header block, then body.
    pub(super) payload: Box<[u8]>,
    /// Too large for a packet: travels in fragments.
    pub(super) large: bool,
    /// Waits to be tried again, or has not been placed since: counted as such.
    pub(super) aside: bool,
}

/// Where a job is and which one it is: all that a job in a slot needs here, and small, so that those of many thousand jobs
/// lie in a cache.
#[derive(Clone, Copy, Debug)]
struct Seat {
    position: Position,
    generation: u32,
    slot: u16,
    kind: Kind,
    /// Whether the record beside it is this job's.
    filled: bool,
}

const _: () = assert!(size_of::<Seat>() == 16 && WORKERS_MAX <= u16::MAX as usize);

/// [`Place`] without what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nowhere,
    Queue,
    FrontInSlot,
    FrontOwned,
    Slot,
    Aside,
    Ending,
}

/// What else there is to know of a job. That of a small job without terms is not written while the job is in a slot:
/// the slot's journal has its label.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) tag: u64,
    pub(super) terms: Terms,
    pub(super) handler: u32,
    /// Which call's job it is; 0 for one that was submitted by itself.
    pub(super) batch: u32,
    /// How often a worker died with this job next in line.
    pub(super) charges: u8,
    /// How often it has started and is to be tried again.
    pub(super) attempts: u32,
    pub(super) retry_timer: Option<TimerId>,
    pub(super) queue_timer: Option<TimerId>,
    pub(super) stamps: Stamps,
    pub(super) owned: Option<Box<Owned>>,
}

#[derive(Debug)]
pub(super) struct Table {
    /// A seat and a record for each job.
    seats: Vec<Seat>,
    records: Vec<Record>,
    /// Free seats and the generations of their next jobs, so that taking one reads none of it.
    free: Vec<(JobIndex, u32)>,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { seats: Vec::new(), records: Vec::new(), free: Vec::new() }
    }

    /// Jobs in the table.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.seats.len() - self.free.len()
    }

    /// Takes a free seat and fills its record. Grows only when more jobs are outstanding than ever before.
    pub(super) fn insert(&mut self, handler: u32, tag: u64, terms: Terms, batch: u32) -> Label {
        let label = self.insert_unfilled(handler, tag, batch);
        self.fill(label, terms);
        label
    }

    /// As [`Table::insert`], for a job whose label stands in a slot's journal: its record is not touched. Without terms.
    #[inline(always)]
    pub(super) fn insert_unfilled(&mut self, handler: u32, tag: u64, batch: u32) -> Label {
        let (job, generation) = match self.free.pop() {
            Some(free) => free,
            None => self.grow(),
        };
        // Written and not read: nothing waits for memory.
        self.seats[job.0 as usize] = Seat { position: 0, generation, slot: 0, kind: Kind::Nowhere, filled: false };
        Label { tag, job, generation, handler, batch }
    }

    #[cold]
    fn grow(&mut self) -> (JobIndex, u32) {
        let index = self.seats.len() as u32;
        self.seats.push(Seat { position: 0, generation: 0, slot: 0, kind: Kind::Nowhere, filled: false });
        self.records.push(Record::default());
        // Room for all of them to be free, so that giving one back never allocates.
        self.free.reserve(self.seats.capacity());
        (JobIndex(index), 0)
    }

    /// A job leaves its slot otherwise than by its result: its record is filled from its label, unless it is already.
    pub(super) fn recall(&mut self, label: Label) {
        if !self.seats[label.job.0 as usize].filled {
            self.fill(label, Terms::default());
        }
    }

    fn fill(&mut self, label: Label, terms: Terms) {
        let Label { tag, job, generation, handler, batch } = label;
        let seat = &mut self.seats[job.0 as usize];
        debug_assert!(seat.generation == generation);
        seat.filled = true;
        self.records[job.0 as usize] = Record { tag, terms, handler, batch, ..Record::default() };
    }

    /// Frees a job's seat and what it owns; its ticket is void from now on.
    pub(super) fn remove(&mut self, job: JobIndex) {
        let label = self.label(job);
        self.records[job.0 as usize].owned = None;
        self.remove_unowned(label);
    }

    /// As [`Table::remove`], for a job that owns no bytes: its record is not touched.
    #[inline(always)]
    pub(super) fn remove_unowned(&mut self, label: Label) {
        let next = label.generation.wrapping_add(1);
        debug_assert!(self.records[label.job.0 as usize].owned.is_none());
        let seat = &mut self.seats[label.job.0 as usize];
        debug_assert!(seat.generation == label.generation);
        (seat.generation, seat.kind, seat.filled) = (next, Kind::Nowhere, false);
        self.free.push((label.job, next));
    }

    /// The label of a job whose record is filled.
    pub(super) fn label(&self, job: JobIndex) -> Label {
        let r = self.get(job);
        let generation = self.seats[job.0 as usize].generation;
        Label { tag: r.tag, job, generation, handler: r.handler, batch: r.batch }
    }

    /// Whether a job's record is its own.
    #[inline]
    pub(super) fn is_filled(&self, job: JobIndex) -> bool {
        self.seats[job.0 as usize].filled
    }

    /// The record of a job, which is filled.
    #[inline]
    pub(super) fn get(&self, job: JobIndex) -> &Record {
        debug_assert!(self.seats[job.0 as usize].filled, "a record of this job");
        &self.records[job.0 as usize]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, job: JobIndex) -> &mut Record {
        debug_assert!(self.seats[job.0 as usize].filled, "a record of this job");
        &mut self.records[job.0 as usize]
    }

    #[inline]
    pub(super) fn place(&self, job: JobIndex) -> Place {
        let Seat { kind, slot, position, .. } = self.seats[job.0 as usize];
        match kind {
            Kind::Nowhere => Place::Nowhere,
            Kind::Queue => Place::Queue(position),
            Kind::FrontInSlot => Place::FrontInSlot(slot.into(), position),
            Kind::FrontOwned => Place::FrontOwned,
            Kind::Slot => Place::Slot(slot.into(), position),
            Kind::Aside => Place::Aside,
            Kind::Ending => Place::Ending,
        }
    }

    #[inline(always)]
    pub(super) fn set_place(&mut self, job: JobIndex, place: Place) {
        let (kind, slot, position) = match place {
            Place::Nowhere => (Kind::Nowhere, 0, 0),
            Place::Queue(position) => (Kind::Queue, 0, position),
            Place::FrontInSlot(slot, position) => (Kind::FrontInSlot, slot, position),
            Place::FrontOwned => (Kind::FrontOwned, 0, 0),
            Place::Slot(slot, position) => (Kind::Slot, slot, position),
            Place::Aside => (Kind::Aside, 0, 0),
            Place::Ending => (Kind::Ending, 0, 0),
        };
        let seat = &mut self.seats[job.0 as usize];
        (seat.kind, seat.slot, seat.position) = (kind, slot as u16, position);
        debug_assert!(seat.filled || kind == Kind::Slot, "only a journal has the label of a job without a record");
    }

    #[inline]
    pub(super) fn ticket(&self, job: JobIndex) -> Ticket {
        Ticket { index: job.0, generation: self.seats[job.0 as usize].generation }
    }

    /// The job that a ticket names, if it is still there.
    pub(super) fn find(&self, ticket: Ticket) -> Option<JobIndex> {
        let seat = self.seats.get(ticket.index as usize)?;
        (seat.generation == ticket.generation && seat.kind != Kind::Nowhere).then_some(JobIndex(ticket.index))
    }

    /// Every job, for the rare walk over all of them.
    pub(super) fn jobs(&self) -> impl Iterator<Item = JobIndex> + '_ {
        self.seats.iter().enumerate().filter(|(_, s)| s.kind != Kind::Nowhere).map(|(i, _)| JobIndex(i as u32))
    }
}

#[cfg(all(test, not(seqpool_loom)))]
mod tests;
