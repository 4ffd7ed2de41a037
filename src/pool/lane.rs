//! Many small jobs of one handler into one slot, one after the other: what is the same for all of them is looked up when
//! the lane is opened, and booked when it is closed.
//!
//! A lane is plain data beside the engine, so that its owner can look at inputs between two jobs. Until it is closed the
//! scheduler does not know of its jobs; nothing else may be submitted meanwhile.

use super::engine::{BATCH_SINGLE, Config, Engine};
use super::hook::Step;
use super::journal::Entering;
use super::table::{Place, Ticket};
use crate::frame::{self, Header, Kind};
use crate::limits::{ASIDE_SIZE_MAX, PACKET_SIZE_MAX};
use crate::sys::Sys;

/// A slot that is being filled.
#[derive(Debug)]
pub(super) struct Lane {
    slot: usize,
    handler: u32,
    batch: u32,
    estimate_ns: u32,
    /// Of each frame.
    flags: u8,
    /// Jobs that it may still be given, and that it has been given.
    left: u32,
    count: u32,
}

impl Lane {
    /// Whether another one must be opened for the next job.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.left == 0
    }

    /// Jobs submitted.
    pub(super) fn count(&self) -> u32 {
        self.count
    }
}

impl<S: Sys> Engine<S> {
    /// Opens a lane for at most `jobs_max` jobs of a handler without terms,
    /// when nobody's worker is to come to grief. `None`: the next job takes the ordinary way.
    pub(super) fn open_lane(&mut self, handler: u32, batch: u32, jobs_max: u32) -> Option<Lane> {
        let nobody_waits = self.front.is_empty() && self.queue.head() == self.queue.tail();
        let Config { terms, chaos, receipts, .. } = &self.config;
        let is_plain = terms[handler as usize].is_plain() && chaos.is_none() && !receipts;
        if !nobody_waits || !is_plain || self.is_house_full() || self.aside_size >= ASIDE_SIZE_MAX {
            return None;
        }
        let estimate_ns = self.services[handler as usize].estimate_ns();
        let slot = self.scheduler.at_hand(estimate_ns)?;
        let room = self.scheduler.room_at_hand(estimate_ns).min(self.config.outstanding_max - self.outstanding());
        let left = u32::try_from(room).unwrap_or(u32::MAX).min(jobs_max);
        if left == 0 {
            return None;
        }
        self.mark_dirty(slot);
        self.keep_ticking();
        let flags = self.plain_flags();
        Some(Lane { slot, handler, batch, estimate_ns, flags, left, count: 0 })
    }

    /// Submits a job through a lane. `false`: it is full, or the job is not for it; nothing has happened.
    #[inline(always)]
    pub(super) fn submit_through(&mut self, lane: &mut Lane, body: &[u8], tag: u64) -> bool {
        let size = frame::frame_size(body.len());
        let Self { slots, table, .. } = self;
        let s = &mut slots[lane.slot];
        if lane.left == 0 || size > PACKET_SIZE_MAX || !s.journal.has_room(size) {
            return false;
        }
        lane.left -= 1;
        lane.count += 1;
        let &mut Lane { slot, handler, batch, estimate_ns, flags, .. } = lane;
        let label = table.insert_unfilled(handler, tag, batch);
        let id = s.next_id();
        let (position, room) = s.journal.append(Entering { label, id, estimate_ns, timed: false, bound: false }, size);
        table.set_place(label.job, Place::Slot(slot as u32, position));
        let (payload_size, header_block_size) = (body.len() as u32, 0);
        let header = Header { payload_size, header_block_size, kind: Kind::Job, flags, id, code: handler, extra: 0 };
        frame::encode(room, header, &[], body);
        if flags != 0 {
            self.note_lane(label.ticket(), tag, slot);
        }
        true
    }

    /// A job was admitted and placed, which is one step here.
    ///
    /// Takes words: a label behind a pointer would be written to memory for every job, recorded or not, and the copy into
    /// its journal entry would wait for that.
    #[inline(never)]
    fn note_lane(&mut self, ticket: Ticket, tag: u64, slot: usize) {
        let at_ns = self.sys.now_ns();
        self.note_at(Step::Submitted, ticket, tag, None, at_ns);
        self.note_at(Step::Placed, ticket, tag, Some(slot), at_ns);
    }

    /// Books what a lane has been given.
    pub(super) fn close_lane(&mut self, lane: Lane) {
        self.scheduler.added_many(lane.slot, lane.count as usize, lane.estimate_ns);
        self.stats.jobs += u64::from(lane.count);
        if lane.batch != BATCH_SINGLE {
            self.batch_outstanding += lane.count as usize;
        }
    }
}
