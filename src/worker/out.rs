//! The worker's side of the out-ring: results are written in place, published, packed and sent.
//!
//! Invariant: `sent <= published`, what lies between is one packet, and the socket has carried exactly the bytes
//! before `sent`. The host reads the rest from the ring when this process dies.

use super::JobFrame;
use super::meter::{self, Prefix};
use super::reply::{Reply, Spilled};
use crate::frame::{self, FLAG_FRAGMENT, FLAG_PRINTED, Header, Kind, RESULT_PREFIX_SIZE_MAX, Status};
use crate::limits::{
    FRAGMENT_PREFIX_SIZE, FRAME_ALIGN, FRAME_HEADER_SIZE, MESSAGE_SIZE_MAX, PACK_SIZE_MAX, PACKET_SIZE_MAX,
    PRINTED_PREFIX_SIZE, SPARE_SIZE_MAX,
};
use crate::slot::{Control, Phase, SlotMemory};
use crate::sys::{self, OsError, OsResult, Sent, Sys, Wait};
use std::io::IoSlice;
use std::os::fd::BorrowedFd;

pub(super) struct Out<S: Sys> {
    sys: S,
    memory: SlotMemory,
    /// Bytes complete, as published.
    published: u64,
    /// Bytes that the socket has carried.
    sent: u64,
    /// When the oldest unsent result was finished.
    oldest_ns: u64,
    /// Largest packet that the socket takes.
    packet_size_max: usize,
    /// A reply that outgrew its place; kept so that its memory is used again.
    spill: Vec<u8>,
    /// What the failed job in hand has printed, as it stands in its result; empty if nothing.
    attached: Vec<u8>,
}

impl<S: Sys> Out<S> {
    pub(super) fn new(sys: S, memory: SlotMemory) -> Self {
        let packet_size_max = PACKET_SIZE_MAX;
        let (spill, attached) = (Vec::new(), Vec::new());
        Self { sys, memory, published: 0, sent: 0, oldest_ns: 0, packet_size_max, spill, attached }
    }

    pub(super) fn set_packet_size_max(&mut self, size: usize) {
        // Frames end at multiples of this, whatever the kernel's limit is.
        self.packet_size_max = size.min(PACKET_SIZE_MAX) & !(FRAME_ALIGN - 1);
    }

    /// The slot's memory, before anything is written there.
    pub(super) fn memory(&mut self) -> &mut SlotMemory {
        &mut self.memory
    }

    #[inline]
    pub(super) fn control(&self) -> &Control {
        self.memory.control()
    }

    /// Room for what the next failure is to bring along.
    pub(super) fn attached_mut(&mut self) -> (&mut Vec<u8>, &Control) {
        (&mut self.attached, self.memory.control())
    }

    /// Printed bytes that fit one packet with any failure.
    pub(super) fn attached_size_max(&self) -> usize {
        self.packet_size_max - FRAME_HEADER_SIZE - RESULT_PREFIX_SIZE_MAX - PRINTED_PREFIX_SIZE - MESSAGE_SIZE_MAX
    }

    fn unsent(&self) -> usize {
        self.published.wrapping_sub(self.sent) as usize
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.published == self.sent
    }

    /// Whether the oldest unsent result has waited longer than `delay_ns`, or the pack is full.
    #[inline]
    pub(super) fn is_stale(&self, now_ns: u64, delay_ns: u64) -> bool {
        let unsent = self.unsent();
        unsent != 0 && (unsent >= PACK_SIZE_MAX || now_ns.saturating_sub(self.oldest_ns) >= delay_ns)
    }

    /// Begins a reply in place, behind the header that [`Out::commit`] writes.
    #[inline]
    pub(super) fn begin<'a>(&'a mut self, prefix_size: usize, body: &'a [u8]) -> Reply<'a> {
        let skip = FRAME_HEADER_SIZE + prefix_size;
        let room = self.memory.out_ring_mut().slice_mut(self.published, self.packet_size_max);
        self.spill.clear();
        Reply::new(&mut room[skip..], &mut self.spill, body)
    }

    /// Completes a reply: in place, or in fragments when it outgrew its place.
    #[inline]
    pub(super) fn commit(
        &mut self,
        socket: BorrowedFd<'_>,
        job: &JobFrame<'_>,
        extra: u32,
        reply: Spilled,
        prefix: &Option<Prefix>,
        now_ns: u64,
    ) -> OsResult<()> {
        let (prefix, flags) = meter::parts(prefix);
        let header = |payload_size: usize, flags: u8| Header {
            payload_size: payload_size as u32,
            header_block_size: 0,
            kind: Kind::Result,
            flags,
            id: job.id,
            code: Status::Done as u32,
            extra,
        };
        match reply {
            Spilled::InPlace(body_size) => {
                let payload_size = prefix.len() + body_size;
                let size = frame::frame_size(payload_size);
                let room = self.memory.out_ring_mut().slice_mut(self.published, size);
                room[..FRAME_HEADER_SIZE].copy_from_slice(&header(payload_size, flags).encode());
                if !prefix.is_empty() {
                    room[FRAME_HEADER_SIZE..][..prefix.len()].copy_from_slice(prefix);
                }
                let padding = &mut room[FRAME_HEADER_SIZE + payload_size..];
                if !padding.is_empty() {
                    padding.fill(0);
                }
                self.publish(size, now_ns);
                // A pack that has grown beyond one packet by this frame leaves in two.
                if self.unsent() > PACK_SIZE_MAX {
                    self.flush(socket)?;
                }
                Ok(())
            }
            Spilled::Outside(_) => {
                let body = std::mem::take(&mut self.spill);
                let result = self.send_fragments(socket, &body, (prefix, flags), header);
                if body.capacity() <= SPARE_SIZE_MAX {
                    self.spill = body;
                }
                result
            }
            Spilled::Forwarded(range) => self.send_fragments(socket, &job.body[range], (prefix, flags), header),
        }
    }

    /// Sends a large reply in fragments, each a packet of its own, beside the ring: salvage has no use for a part of a
    /// result, and a whole one is in the socket.
    fn send_fragments(
        &mut self,
        socket: BorrowedFd<'_>,
        body: &[u8],
        (lead, flags): (&[u8], u8),
        header: impl Fn(usize, u8) -> Header,
    ) -> OsResult<()> {
        self.flush(socket)?;
        sys::flush_rust_stdout();
        let total = lead.len() + body.len();
        let flags = FLAG_FRAGMENT | flags;
        let part_max = self.packet_size_max - FRAME_HEADER_SIZE - FRAGMENT_PREFIX_SIZE;
        let mut offset = 0;
        while offset < total {
            let part = part_max.min(total - offset);
            let payload_size = FRAGMENT_PREFIX_SIZE + part;
            let padding = frame::frame_size(payload_size) - FRAME_HEADER_SIZE - payload_size;
            let from_lead = lead.len().saturating_sub(offset).min(part);
            let from = offset + from_lead - lead.len();
            self.send(
                socket,
                &[
                    IoSlice::new(&header(payload_size, flags).encode()),
                    IoSlice::new(&frame::fragment_prefix(total as u64, offset as u64)),
                    IoSlice::new(&lead[offset.min(lead.len())..][..from_lead]),
                    IoSlice::new(&body[from..from + part - from_lead]),
                    IoSlice::new(&[0; FRAME_ALIGN][..padding]),
                ],
            )?;
            offset += part;
        }
        Ok(())
    }

    /// Writes a short frame of its own: a failure, a refusal, a hello. Long text is cut.
    pub(super) fn message(&mut self, kind: Kind, id: u64, status: Status, text: &[u8], extra: u32, now_ns: u64) {
        let text = &text[..text.len().min(MESSAGE_SIZE_MAX)];
        let size = frame::frame_size(text.len());
        let header = Header { payload_size: 0, header_block_size: 0, kind, flags: 0, id, code: status as u32, extra };
        frame::encode(self.memory.out_ring_mut().slice_mut(self.published, size), header, &[], text);
        self.publish(size, now_ns);
    }

    /// Writes how a job failed, behind what is asked for of it and what is attached. Long text is cut.
    pub(super) fn failure(
        &mut self,
        id: u64,
        status: Status,
        text: &[u8],
        extra: u32,
        prefix: &Option<Prefix>,
        end_ns: u64,
    ) {
        let text = &text[..text.len().min(MESSAGE_SIZE_MAX)];
        let (prefix, mut flags) = meter::parts(prefix);
        if !self.attached.is_empty() {
            flags |= FLAG_PRINTED;
        }
        let body = [prefix, &self.attached, text].concat();
        self.attached.clear();
        let size = frame::frame_size(body.len());
        let (kind, code) = (Kind::Result, status as u32);
        let header = Header { payload_size: 0, header_block_size: 0, kind, flags, id, code, extra };
        frame::encode(self.memory.out_ring_mut().slice_mut(self.published, size), header, &[], &body);
        self.publish(size, end_ns);
    }

    #[inline]
    fn publish(&mut self, size: usize, now_ns: u64) {
        if self.is_empty() {
            self.oldest_ns = now_ns;
        }
        self.published = self.published.wrapping_add(size as u64);
        self.memory.control().out_tail.publish(self.published);
    }

    /// Sends what is unsent, in packets of whole frames; waits until the host has taken it. What its jobs have printed
    /// leaves first.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>) -> OsResult<()> {
        if !self.is_empty() {
            sys::flush_rust_stdout();
        }
        while !self.is_empty() {
            let size = self.next_packet_size();
            self.send(socket, &[IoSlice::new(self.memory.out_ring().slice(self.sent, size))])?;
            self.sent = self.sent.wrapping_add(size as u64);
        }
        Ok(())
    }

    /// Sends one packet; waits until the host has room for it, and says so.
    fn send(&self, socket: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> OsResult<()> {
        loop {
            let mut sent = self.sys.send(socket, parts, Wait::Never)?;
            if sent == Sent::WouldBlock {
                self.control().set_phase(Phase::WaitingForRoom);
                let result = self.sys.send(socket, parts, Wait::UntilReady);
                self.control().set_phase(Phase::Working);
                sent = result?;
            }
            match sent {
                Sent::All => return Ok(()),
                Sent::WouldBlock => {}
                // No event will tell when memory is back.
                Sent::NoMemory => self.sys.yield_now(),
                Sent::Closed => return Err(OsError { call: "sendmsg", errno: EPIPE }),
            }
        }
    }

    /// The whole frames that fit the next packet: at least one.
    fn next_packet_size(&self) -> usize {
        let unsent = self.unsent();
        if unsent <= self.packet_size_max {
            return unsent;
        }
        let bytes = self.memory.out_ring().slice(self.sent, unsent);
        let mut size = 0;
        for f in frame::Frames::new(bytes).flatten() {
            let next = size + frame::frame_size(f.header.payload_size as usize);
            if next > self.packet_size_max && size > 0 {
                break;
            }
            size = next;
        }
        size
    }
}

const EPIPE: i32 = 32;
