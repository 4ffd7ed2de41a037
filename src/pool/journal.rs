//! A ring of encoded jobs that stay until their outcome is known: the journal from which a job is sent again.
//!
//! Two fixed rings in step: the frames' bytes, and one [`Entry`] for each frame. Entries are appended at the tail and
//! freed at the head; one that is settled in between is void and is freed when the head passes it. The tail never
//! moves back. Each slot has a journal, and so has the pool's queue.

use super::table::Label;
use crate::limits::FRAME_ALIGN;
use crate::ring::{ByteRing, RingMemory};
use crate::sys::{OsResult, Sharing, Sys};
use std::os::fd::AsFd;

/// What an entry is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// To be sent, or sent and not settled.
    Live,
    /// Taken back: the job waits elsewhere, its bytes are still here.
    TakenBack,
    /// Nothing; freed when the head passes it.
    Void,
}

/// One frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Position of its bytes.
    pub(super) at: u64,
    /// Its id on the slot's socket.
    pub(super) id: u64,
    pub(super) label: Label,
    /// Bytes here; 0 for a job whose bytes are in the job table.
    pub(super) size: u32,
    /// The estimate under which it was placed.
    pub(super) estimate_ns: u32,
    pub(super) state: State,
    /// Whether its job has a timeout.
    pub(super) timed: bool,
    /// Whether its job's record has more to say when the job is over: timers, earlier attempts.
    pub(super) bound: bool,
}

const _: () = assert!(size_of::<Entry>() <= 56, "many of them are in flight");

/// A job that is to be appended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entering {
    pub(super) label: Label,
    pub(super) id: u64,
    pub(super) estimate_ns: u32,
    pub(super) timed: bool,
    pub(super) bound: bool,
}

impl Entering {
    #[inline]
    fn at(self, at: u64, size: u32) -> Entry {
        let Entering { label, id, estimate_ns, timed, bound } = self;
        Entry { at, id, label, size, estimate_ns, state: State::Live, timed, bound }
    }
}

/// Position of an entry: a count that never comes down.
pub(super) type Position = u64;

#[derive(Debug)]
pub(super) struct Journal {
    bytes: ByteRing,
    /// Grows to its capacity on the first lap, so that a short life touches little memory; never beyond.
    entries: Vec<Entry>,
    mask: usize,
    head: Position,
    tail: Position,
}

impl Journal {
    /// An empty journal with room for so many bytes and entries, both powers of two.
    pub(super) fn create<S: Sys>(sys: &S, bytes: usize, entries: usize) -> OsResult<Self> {
        assert!(entries.is_power_of_two(), "positions are masked");
        let fd = sys.memfd(c"seqpool-journal", bytes)?;
        let map = sys.map_ring(fd.as_fd(), 0, bytes, Sharing::NotInherited)?;
        Ok(Self {
            bytes: ByteRing::new(RingMemory::new(map, 0), 0),
            entries: Vec::with_capacity(entries),
            mask: entries - 1,
            head: 0,
            tail: 0,
        })
    }

    #[inline]
    pub(super) fn head(&self) -> Position {
        self.head
    }

    #[inline]
    pub(super) fn tail(&self) -> Position {
        self.tail
    }

    #[inline]
    fn index(&self, position: Position) -> usize {
        position as usize & self.mask
    }

    #[inline]
    pub(super) fn entry(&self, position: Position) -> &Entry {
        debug_assert!(self.holds(position));
        &self.entries[self.index(position)]
    }

    #[inline]
    pub(super) fn entry_mut(&mut self, position: Position) -> &mut Entry {
        debug_assert!(self.holds(position));
        let i = self.index(position);
        &mut self.entries[i]
    }

    fn holds(&self, position: Position) -> bool {
        position.wrapping_sub(self.head) < self.tail.wrapping_sub(self.head)
    }

    /// Whether a frame of this size can be appended.
    #[inline]
    pub(super) fn has_room(&self, size: usize) -> bool {
        self.bytes.room() >= size && self.tail.wrapping_sub(self.head) <= self.mask as u64
    }

    /// Whether it could, once what stands at the head is copied out.
    pub(super) fn could_make_room(&self, size: usize) -> bool {
        if self.has_room(size) {
            return true;
        }
        let mut next = self.head;
        while next != self.tail && (next == self.head || self.entry(next).state == State::Void) {
            next += 1;
        }
        let end = if next == self.tail { self.bytes.tail() } else { self.entry(next).at };
        let gained = end.wrapping_sub(self.entry(self.head).at) as usize;
        let gains_entry = next - self.head >= 2 || self.entry(self.head).state == State::TakenBack;
        gains_entry && self.bytes.room() + gained >= size
    }

    /// Appends an entry and `size` bytes for the caller to fill. The caller has asked for room.
    #[inline]
    pub(super) fn append(&mut self, entering: Entering, size: usize) -> (Position, &mut [u8]) {
        debug_assert!(self.has_room(size) && size.is_multiple_of(FRAME_ALIGN));
        let position = self.tail;
        let at = self.bytes.tail();
        self.put(position, entering.at(at, size as u32));
        self.tail += 1;
        (position, self.bytes.append(size).unwrap_or_default())
    }

    #[inline(always)]
    fn put(&mut self, position: Position, entry: Entry) {
        let i = self.index(position);
        match self.entries.get_mut(i) {
            Some(room) => *room = entry,
            None => self.entries.push(entry),
        }
    }

    /// Appends a copy of a frame that is in this journal already.
    pub(super) fn append_copy(&mut self, from: Position, entering: Entering) -> Position {
        let Entry { at: source, size, .. } = *self.entry(from);
        debug_assert!(self.has_room(size as usize));
        let position = self.tail;
        let at = self.bytes.tail();
        self.put(position, entering.at(at, size));
        self.tail += 1;
        let copied = self.bytes.append_from_self(source, size as usize);
        debug_assert!(copied, "room was asked for");
        position
    }

    /// The bytes of one frame.
    #[inline]
    pub(super) fn frame(&self, position: Position) -> &[u8] {
        let e = self.entry(position);
        self.bytes.bytes(e.at, e.size as usize)
    }

    /// As [`Journal::frame`], writable.
    #[inline]
    pub(super) fn frame_mut(&mut self, position: Position) -> &mut [u8] {
        let Entry { at, size, .. } = *self.entry(position);
        self.bytes.bytes_mut(at, size as usize)
    }

    /// `size` bytes from a frame's first byte on: frames that were appended one after the other are contiguous.
    #[inline]
    pub(super) fn run(&self, first: Position, size: usize) -> &[u8] {
        self.bytes.bytes(self.entry(first).at, size)
    }

    /// Bytes from this entry's on.
    pub(super) fn size_from(&self, position: Position) -> usize {
        self.bytes.tail().wrapping_sub(self.entry(position).at) as usize
    }

    /// Voids an entry, and frees what the head can pass.
    #[inline]
    pub(super) fn void(&mut self, position: Position) {
        self.entry_mut(position).state = State::Void;
        if position == self.head {
            self.pass();
        }
    }

    /// Frees what is void at the head.
    #[inline]
    pub(super) fn pass(&mut self) {
        while self.head != self.tail && self.entries[self.index(self.head)].state == State::Void {
            self.head += 1;
        }
        let free_to = if self.head == self.tail { self.bytes.tail() } else { self.entries[self.index(self.head)].at };
        self.bytes.free_to(free_to);
    }

    /// The first live entry at or after `position`, which may have been passed by the head meanwhile.
    #[inline]
    pub(super) fn next_live(&self, position: Position) -> Position {
        let mut position = position.max(self.head);
        while position != self.tail && self.entry(position).state != State::Live {
            position += 1;
        }
        position
    }

    /// Moves the entry at the head behind the void ones that follow it, without its bytes, which the caller has copied
    /// out; frees what it kept from being freed. Returns its new position.
    pub(super) fn retire_head(&mut self) -> Position {
        let old = self.head;
        let mut next = old + 1;
        while next != self.tail && self.entry(next).state == State::Void {
            next += 1;
        }
        let moved = next - 1;
        let at = if next == self.tail { self.bytes.tail() } else { self.entry(next).at };
        let mut entry = *self.entry(old);
        entry.at = at;
        entry.size = 0;
        self.head = moved;
        let i = self.index(moved);
        self.entries[i] = entry;
        self.bytes.free_to(at);
        moved
    }
}

#[cfg(all(test, not(seqpool_loom)))]
mod tests;
