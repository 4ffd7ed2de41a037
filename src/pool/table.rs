//! The job table: one record for each job that is submitted and not yet settled, wherever its bytes are.

use super::journal::Position;
use crate::frame::Header;

/// A record's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JobIndex(pub(super) u32);

impl JobIndex {
    pub(super) const NONE: JobIndex = JobIndex(u32::MAX);
}

/// Names a submitted job; never names another one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub(super) index: u32,
    pub(super) generation: u32,
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
    /// Next free record.
    next_free: u32,
}

#[derive(Debug)]
pub(super) struct Table {
    records: Vec<Record>,
    first_free: u32,
    len: usize,
}

const END: u32 = u32::MAX;

impl Table {
    pub(super) fn new() -> Self {
        Self { records: Vec::new(), first_free: END, len: 0 }
    }

    /// Jobs in the table.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Takes a free record. Grows only when more jobs are outstanding than ever before.
    #[inline]
    pub(super) fn insert(&mut self, handler: u32, tag: u64, timeout_ns: u64, batch: u32) -> JobIndex {
        self.len += 1;
        if self.first_free == END {
            let index = self.records.len() as u32;
            self.records.push(Record {
                generation: 0,
                handler,
                place: Place::Nowhere,
                tag,
                timeout_ns,
                batch,
                charges: 0,
                owned: None,
                next_free: END,
            });
            return JobIndex(index);
        }
        let index = self.first_free;
        let r = &mut self.records[index as usize];
        self.first_free = r.next_free;
        (r.handler, r.tag, r.timeout_ns, r.batch, r.charges) = (handler, tag, timeout_ns, batch, 0);
        JobIndex(index)
    }

    /// Frees a record; its ticket is void from now on.
    #[inline]
    pub(super) fn remove(&mut self, job: JobIndex) {
        let r = &mut self.records[job.0 as usize];
        r.generation = r.generation.wrapping_add(1);
        r.place = Place::Nowhere;
        r.owned = None;
        r.next_free = self.first_free;
        self.first_free = job.0;
        self.len -= 1;
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
