//! Sending: packs of frames, and large jobs in fragments, as far as each slot's socket takes them.

use super::engine::Engine;
use super::hook::Step;
use super::journal::{Position, State};
use super::slot::{Doom, Life};
use crate::frame::{self, FLAG_FRAGMENT, Header};
use crate::limits::{FRAGMENT_PREFIX_SIZE, FRAME_ALIGN, FRAME_HEADER_SIZE, PACK_SIZE_MAX, STEAL_NS};
use crate::sys::{OsResult, Sent, Sys};
use std::io::IoSlice;

/// A large job's parts, wherever they lie.
#[derive(Clone, Copy)]
pub(super) struct LargeSource<'a> {
    pub(super) header: Header,
    pub(super) header_block: &'a [u8],
    pub(super) body: &'a [u8],
}

impl<S: Sys> Engine<S> {
    /// Sends what is placed and not sent, as far as the sockets take it. A socket that fails costs its own worker.
    pub(super) fn flush(&mut self) {
        self.flush_slots(false);
    }

    /// As [`Engine::flush`], for a caller that goes on submitting: a busy worker's pack may still grow.
    pub(super) fn flush_ripe(&mut self) {
        self.flush_slots(true);
    }

    fn flush_slots(&mut self, ripe_only: bool) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|&slot| {
            if ripe_only && self.can_grow(slot) {
                return true;
            }
            self.slots[slot].dirty = false;
            if self.flush_slot(slot).is_err() {
                self.kill(slot, Doom::Stalled);
            }
            false
        });
        // Slots that asked to be looked at again are on the new list; keep the old one's memory.
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    /// Whether what this slot has to send is less than a pack, and its worker has enough to do meanwhile.
    fn can_grow(&self, slot: usize) -> bool {
        let s = &self.slots[slot];
        let first = s.journal.next_live(s.sent);
        if first == s.journal.tail() || s.blocked {
            return false;
        }
        let entry = s.journal.entry(first);
        let in_flight = u64::from(s.sent_seq.wrapping_sub(s.due_seq));
        entry.size != 0
            && s.journal.size_from(first) < PACK_SIZE_MAX
            && in_flight * u64::from(entry.estimate_ns) >= STEAL_NS
    }

    pub(super) fn flush_slot(&mut self, slot: usize) -> OsResult<()> {
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
                self.send_fragment(slot, first, None)?
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

    pub(super) fn unblock(&mut self, slot: usize) -> OsResult<()> {
        if std::mem::take(&mut self.slots[slot].blocked) {
            self.transport.want_write(&mut self.reactor, slot, false)?;
        }
        Ok(())
    }

    /// Sends the frames from `first` on that are contiguous and fit one packet.
    pub(super) fn send_pack(&mut self, slot: usize, first: Position) -> OsResult<Sent> {
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
        let is_stamped = self.hook.is_some() || self.config.receipts;
        let sent_ns = if is_stamped { self.sys.now_ns() } else { 0 };
        let sent = self.transport.send(slot, &[IoSlice::new(s.journal.run(first, size))])?;
        if sent == Sent::All {
            s.sent = end;
            s.sent_seq = s.sent_seq.wrapping_add((end - first) as u32);
            self.stats.packets_sent += 1;
            if is_stamped {
                for position in first..end {
                    let label = self.slots[slot].journal.entry(position).label;
                    self.stamp_sent(label, sent_ns);
                    self.note_at(Step::Sent, label.ticket(), label.tag, Some(slot), sent_ns);
                }
            }
        }
        Ok(sent)
    }

    /// Sends a large job that has just been placed, as far as the socket takes it, if it is the next to be sent.
    pub(super) fn send_large(
        &mut self,
        slot: usize,
        position: Position,
        source: Option<LargeSource<'_>>,
    ) -> OsResult<()> {
        let s = &mut self.slots[slot];
        let is_next = s.journal.next_live(s.sent) == position && !s.in_flight() && s.fragment_offset == 0;
        if !is_next || s.blocked || !matches!(s.life, Life::Starting | Life::Running) {
            return Ok(());
        }
        s.progress_ns = self.sys.now_ns();
        s.sampled_ns = s.progress_ns;
        s.sent = position;
        while self.slots[slot].sent == position && self.send_fragment(slot, position, source)? == Sent::All {}
        Ok(())
    }

    /// Sends the next part of a large job: from `source`, or from the job's own record.
    fn send_fragment(&mut self, slot: usize, position: Position, source: Option<LargeSource<'_>>) -> OsResult<Sent> {
        let s = &mut self.slots[slot];
        let entry = *s.journal.entry(position);
        let LargeSource { header, header_block, body } = match (source, &self.table.get(entry.label.job).owned) {
            (Some(source), _) => source,
            (None, Some(owned)) => {
                let (header_block, body) = owned.payload.split_at(usize::from(owned.header.header_block_size));
                LargeSource { header: owned.header, header_block, body }
            }
            (None, None) => unreachable!("an entry without bytes belongs to a job that owns them"),
        };
        let offset = s.fragment_offset;
        let block = if offset == 0 { header_block } else { &[] };
        let room = self.transport.packet_size_max(slot) & !(FRAME_ALIGN - 1);
        let part = (room - FRAME_HEADER_SIZE - FRAGMENT_PREFIX_SIZE - block.len()).min(body.len() - offset);
        let payload_size = block.len() + FRAGMENT_PREFIX_SIZE + part;
        let header = Header {
            payload_size: payload_size as u32,
            header_block_size: block.len() as u16,
            id: entry.id,
            flags: header.flags | FLAG_FRAGMENT,
            ..header
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
                self.stamp_sent(entry.label, sent_ns);
                self.note_at(Step::Sent, entry.label.ticket(), entry.label.tag, Some(slot), sent_ns);
            }
        }
        Ok(sent)
    }

    /// Whether a worker that has nothing in flight has something to be sent.
    #[inline]
    pub(super) fn has_idle_dirty(&self) -> bool {
        self.dirty.last().is_some_and(|&slot| !self.slots[slot].in_flight())
    }
}
