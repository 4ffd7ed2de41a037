//! The job table: one record for each job that is submitted and not yet settled, wherever its bytes are.

use super::journal::Position;
use crate::frame::Header;

/// A record's index.
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
    /// The record is free.
    Nowhere,
    /// In the pool's queue.
    Queue(Position),
    /// In front of the queue; its bytes are still in this slot's journal.
    FrontInSlot(u32, Position),
    /// In front of the queue; its bytes are in the record.
    FrontOwned,
    /// In a slot, sent or about to be.
    Slot(u32, Position),
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
}

/// One job.
#[derive(Debug)]
pub(super) struct Record {
    generation: u32,
    pub(super) handler: u32,
    pub(super) place: Place,
    pub(super) tag: u64,
    /// 0: none. Units: nanoseconds.
    pub(super) timeout_ns: u64,
    /// Which call's job it is; 0 for one that was submitted by itself.
    pub(super) batch: u32,
    /// How often a worker died with this job next in line.
    pub(super) charges: u8,
    pub(super) owned: Option<Box<Owned>>,
}

#[derive(Debug)]
pub(super) struct Table {
    records: Vec<Record>,
    /// Free records and the generations of their next jobs, so that taking one reads none of it.
    free: Vec<(JobIndex, u32)>,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { records: Vec::new(), free: Vec::new() }
    }

    /// Jobs in the table.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.records.len() - self.free.len()
    }

    /// Takes a free record. Grows only when more jobs are outstanding than ever before.
    #[inline]
    pub(super) fn insert(&mut self, handler: u32, tag: u64, timeout_ns: u64, batch: u32) -> Label {
        let (job, generation) = match self.free.pop() {
            Some(free) => free,
            None => self.grow(),
        };
        // Written and not read: nothing waits for memory.
        let r = &mut self.records[job.0 as usize];
        (r.generation, r.handler, r.place, r.tag) = (generation, handler, Place::Nowhere, tag);
        (r.timeout_ns, r.batch, r.charges) = (timeout_ns, batch, 0);
        Label { tag, job, generation, handler, batch }
    }

    #[cold]
    fn grow(&mut self) -> (JobIndex, u32) {
        let index = self.records.len() as u32;
        self.records.push(Record {
            generation: 0,
            handler: 0,
            place: Place::Nowhere,
            tag: 0,
            timeout_ns: 0,
            batch: 0,
            charges: 0,
            owned: None,
        });
        // Room for all of them to be free, so that giving one back never allocates.
        self.free.reserve(self.records.capacity());
        (JobIndex(index), 0)
    }

    /// Frees a record; its ticket is void from now on.
    pub(super) fn remove(&mut self, job: JobIndex) {
        let label = self.label(job);
        self.records[job.0 as usize].owned = None;
        self.remove_unowned(label);
    }

    /// As [`Table::remove`], for a job that owns no bytes: its record is written and not read.
    #[inline(always)]
    pub(super) fn remove_unowned(&mut self, label: Label) {
        let next = label.generation.wrapping_add(1);
        let r = &mut self.records[label.job.0 as usize];
        debug_assert!(r.owned.is_none() && r.generation == label.generation);
        r.generation = next;
        r.place = Place::Nowhere;
        self.free.push((label.job, next));
    }

    pub(super) fn label(&self, job: JobIndex) -> Label {
        let r = self.get(job);
        Label { tag: r.tag, job, generation: r.generation, handler: r.handler, batch: r.batch }
    }

    #[inline]
    pub(super) fn get(&self, job: JobIndex) -> &Record {
        &self.records[job.0 as usize]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, job: JobIndex) -> &mut Record {
        &mut self.records[job.0 as usize]
    }

    #[inline]
    pub(super) fn ticket(&self, job: JobIndex) -> Ticket {
        Ticket { index: job.0, generation: self.get(job).generation }
    }

    /// The job that a ticket names, if it is still there.
    pub(super) fn find(&self, ticket: Ticket) -> Option<JobIndex> {
        let r = self.records.get(ticket.index as usize)?;
        (r.generation == ticket.generation && r.place != Place::Nowhere).then_some(JobIndex(ticket.index))
    }

    /// Every job, for the rare walk over all of them.
    pub(super) fn jobs(&self) -> impl Iterator<Item = JobIndex> + '_ {
        self.records.iter().enumerate().filter(|(_, r)| r.place != Place::Nowhere).map(|(i, _)| JobIndex(i as u32))
    }
}

#[cfg(all(test, not(seqpool_loom)))]
mod tests;
