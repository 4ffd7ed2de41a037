//! Floor 1: a large body on its way in, fragment by fragment, each received straight to its place.
//!
//! The first fragment tells the total and is copied. From then on [`Assembly::parts`] names where the next packet goes:
//! a fragment's header and prefix to the packet buffer, its part to the end of what is there. [`Assembly::take`] looks
//! whether that is what came; if not, it puts the packet together in the packet buffer, as if it had been received there.
//!
//! Nothing that a peer says is believed before it is checked: memory is taken as fragments come, not by the total alone.

use crate::frame::{FLAG_FRAGMENT, Fragment, Header, frame_size};
use crate::limits::{FRAGMENT_PREFIX_SIZE, FRAME_HEADER_SIZE, PACKET_SIZE_MAX, SPARE_SIZE_MAX};
use std::collections::TryReserveError;
use std::io::IoSliceMut;

/// Bytes before a fragment's part, in a fragment without a header block: all but the first, and often the first.
const HEAD_SIZE: usize = FRAME_HEADER_SIZE + FRAGMENT_PREFIX_SIZE;

/// A body of which some fragments are here.
#[derive(Debug)]
pub(crate) struct Assembly {
    /// The first fragment's header.
    header: Header,
    /// Initialised beyond what is filled, as far as an earlier body or the next packet reaches.
    body: Vec<u8>,
    filled: usize,
    total: usize,
}

/// What a packet was that [`Assembly::parts`] had room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The next fragment; it is in its place.
    Fragment,
    /// Something else; it lies in the packet buffer.
    Other,
}

impl Assembly {
    /// Begins with a first fragment, whose total the caller has found to be allowed. `spare`: memory to be used again.
    ///
    /// # Errors
    /// When there is no memory for the total.
    pub(crate) fn begin(header: Header, fragment: &Fragment<'_>, spare: Vec<u8>) -> Result<Self, TryReserveError> {
        let total = usize::try_from(fragment.total).unwrap_or(usize::MAX);
        let mut body = spare;
        body.try_reserve_exact(total.saturating_sub(body.len()))?;
        let mut assembly = Self { header, body, filled: 0, total };
        assembly.push(fragment);
        Ok(assembly)
    }

    /// Appends a fragment that lies in a packet. `false`: it is not the next one.
    pub(crate) fn push(&mut self, fragment: &Fragment<'_>) -> bool {
        if fragment.total != self.total as u64 || fragment.offset != self.filled as u64 {
            return false;
        }
        self.make_room(fragment.part.len());
        self.body[self.filled..][..fragment.part.len()].copy_from_slice(fragment.part);
        self.filled += fragment.part.len();
        true
    }

    /// Initialises as much of the body as the next part needs.
    fn make_room(&mut self, size: usize) {
        if self.body.len() < self.filled + size {
            self.body.resize(self.filled + size, 0);
        }
    }

    /// Where the next packet is to be received: never more than `packet` would hold.
    pub(crate) fn parts<'a>(&'a mut self, packet: &'a mut [u8]) -> [IoSliceMut<'a>; 3] {
        let room = self.next_room();
        self.make_room(room);
        let (head, rest) = packet.split_at_mut(HEAD_SIZE);
        [
            IoSliceMut::new(head),
            IoSliceMut::new(&mut self.body[self.filled..][..room]),
            // Behind the place to which the part is moved if it is none.
            IoSliceMut::new(&mut rest[room..]),
        ]
    }

    fn next_room(&self) -> usize {
        (self.total - self.filled).min(PACKET_SIZE_MAX - HEAD_SIZE)
    }

    /// A packet of `size` bytes has been received into [`Assembly::parts`] of the same `packet`.
    pub(crate) fn take(&mut self, packet: &mut [u8], size: usize) -> Taken {
        let room = self.next_room();
        if let Some(part_size) = self.next_part_size(packet, size, room) {
            self.filled += part_size;
            return Taken::Fragment;
        }
        let stray = size.saturating_sub(HEAD_SIZE).min(room);
        packet[HEAD_SIZE..][..stray].copy_from_slice(&self.body[self.filled..][..stray]);
        Taken::Other
    }

    /// Size of the part, if the packet is the next fragment and nothing else.
    fn next_part_size(&self, packet: &[u8], size: usize, room: usize) -> Option<usize> {
        let (head, rest) = packet.split_first_chunk::<FRAME_HEADER_SIZE>()?;
        let (prefix, rest) = rest.split_first_chunk::<FRAGMENT_PREFIX_SIZE>()?;
        let header = Header::decode(head).ok()?;
        let part_size = (header.payload_size as usize).checked_sub(FRAGMENT_PREFIX_SIZE)?;
        let padding = &rest[room..][..size.checked_sub(HEAD_SIZE + part_size)?.min(rest.len() - room)];
        let is_next = header.kind == self.header.kind
            && header.flags == self.header.flags
            && header.flags & FLAG_FRAGMENT != 0
            && header.id == self.header.id
            && header.header_block_size == 0
            && frame_size(header.payload_size as usize) == size
            && (1..=room).contains(&part_size)
            // Padding that would lie in the body is not worth a look: only a last part needs any, and it ends at `room`.
            && HEAD_SIZE + part_size + padding.len() == size
            && (padding.is_empty() || part_size == room)
            && padding.iter().all(|&b| b == 0)
            && *prefix == crate::frame::fragment_prefix(self.total as u64, self.filled as u64);
        is_next.then_some(part_size)
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.filled == self.total
    }

    /// The first fragment's header.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// What is there of the body.
    pub(crate) fn body(&self) -> &[u8] {
        &self.body[..self.filled]
    }

    /// Gives its memory back, to be used again; not if it is so large that it should not be kept.
    pub(crate) fn into_spare(self) -> Vec<u8> {
        if self.body.capacity() <= SPARE_SIZE_MAX { self.body } else { Vec::new() }
    }
}

#[cfg(all(test, not(seqpool_loom)))]
mod tests {
    use super::*;
    use crate::frame::{Frames, Kind, encode, fragment_prefix};
    use proptest::prelude::*;

    const ID: u64 = 7 << 32 | 9;

    fn header(flags: u8, id: u64) -> Header {
        Header { payload_size: 0, header_block_size: 0, kind: Kind::Result, flags, id, code: 0, extra: 3 }
    }

    fn fragment(id: u64, total: usize, offset: usize, part: &[u8]) -> Vec<u8> {
        let payload = [&fragment_prefix(total as u64, offset as u64)[..], part].concat();
        let mut out = vec![0; frame_size(payload.len())];
        encode(&mut out, header(FLAG_FRAGMENT, id), &[], &payload);
        out
    }

    fn begin(packet: &[u8], spare: Vec<u8>) -> Assembly {
        let frame = Frames::new(packet).next().unwrap().unwrap();
        Assembly::begin(frame.header, &frame.fragment().unwrap(), spare).unwrap()
    }

    /// What the kernel does with a packet and three parts.
    fn scatter(bytes: &[u8], parts: &mut [IoSliceMut<'_>]) {
        let mut rest = bytes;
        for part in parts {
            let size = rest.len().min(part.len());
            part[..size].copy_from_slice(&rest[..size]);
            rest = &rest[size..];
        }
        assert!(rest.is_empty(), "no packet is truncated");
    }

    fn receive(assembly: &mut Assembly, buffer: &mut [u8], bytes: &[u8]) -> Taken {
        scatter(bytes, &mut assembly.parts(buffer));
        assembly.take(buffer, bytes.len())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever the parts' sizes and the memory used again, the body comes together.
        #[test]
        fn bodies_come_together(
            total in 2usize..600_000,
            cuts in proptest::collection::vec(1usize..PACKET_SIZE_MAX - HEAD_SIZE, 1..6),
            spare in 0usize..700_000,
        ) {
            let body: Vec<u8> = (0..total).map(|i| (i * 31 + i / 251) as u8).collect();
            let mut cuts = cuts.iter().cycle().map(|&n| n.next_multiple_of(8).min(PACKET_SIZE_MAX - HEAD_SIZE));
            let mut buffer = vec![0xaa; PACKET_SIZE_MAX];
            let first = cuts.next().unwrap().min(total - 1);
            let mut assembly = begin(&fragment(ID, total, 0, &body[..first]), vec![0x55; spare]);
            let mut offset = first;
            while offset < total {
                prop_assert!(!assembly.is_whole());
                let part = cuts.next().unwrap().min(total - offset);
                let packet = fragment(ID, total, offset, &body[offset..offset + part]);
                prop_assert_eq!(receive(&mut assembly, &mut buffer, &packet), Taken::Fragment);
                offset += part;
            }
            prop_assert!(assembly.is_whole());
            prop_assert_eq!(assembly.body(), &body[..]);
        }

        /// Anything that is not the next fragment is found in the packet buffer as it was sent, and changes nothing.
        #[test]
        fn others_are_put_together(
            total in 100usize..400_000,
            bytes in proptest::collection::vec(any::<u8>(), 1..5_000),
            repeat in 1usize..40,
        ) {
            let body = vec![7; total];
            let mut assembly = begin(&fragment(ID, total, 0, &body[..64]), Vec::new());
            let mut bytes = bytes.repeat(repeat);
            bytes.truncate(PACKET_SIZE_MAX);
            let mut buffer = vec![0xaa; PACKET_SIZE_MAX];
            prop_assert_eq!(receive(&mut assembly, &mut buffer, &bytes), Taken::Other);
            prop_assert_eq!(&buffer[..bytes.len()], &bytes[..]);
            prop_assert_eq!(assembly.body(), &body[..64]);
        }
    }

    #[test]
    fn only_the_next_fragment_is_taken() {
        let total = 1000;
        let part = [1u8; 80];
        let next = fragment(ID, total, 64, &part);
        let with = |at: usize, byte: u8| {
            let mut packet = next.clone();
            packet[at] = byte;
            packet
        };
        let strange: [(&str, Vec<u8>); 9] = [
            ("another id", fragment(ID + 1, total, 64, &part)),
            ("another total", fragment(ID, total + 1, 64, &part)),
            ("an offset behind", fragment(ID, total, 0, &part)),
            ("an offset ahead", fragment(ID, total, 72, &part)),
            ("another kind", with(6, Kind::Job as u8)),
            ("a header block", with(4, 8)),
            ("no fragment", with(7, 0)),
            ("two frames", [&next[..], &next[..]].concat()),
            ("half a frame", next[..next.len() - 8].to_vec()),
        ];
        let mut buffer = vec![0; PACKET_SIZE_MAX];
        for (what, packet) in strange {
            let mut assembly = begin(&fragment(ID, total, 0, &[9; 64]), Vec::new());
            assert_eq!(receive(&mut assembly, &mut buffer, &packet), Taken::Other, "{what}");
            assert_eq!(&buffer[..packet.len()], &packet[..], "{what}");
            assert_eq!(receive(&mut assembly, &mut buffer, &next), Taken::Fragment, "after {what}");
        }
        // The last part: whole with clean padding only.
        let last = fragment(ID, 64 + 77, 64, &[5; 77]);
        let mut dirty = last.clone();
        *dirty.last_mut().unwrap() = 1;
        let mut assembly = begin(&fragment(ID, 64 + 77, 0, &[9; 64]), Vec::new());
        assert_eq!(receive(&mut assembly, &mut buffer, &dirty), Taken::Other);
        assert_eq!(receive(&mut assembly, &mut buffer, &last), Taken::Fragment);
        assert!(assembly.is_whole());
    }

    #[test]
    fn large_memory_is_not_kept() {
        let small = begin(&fragment(ID, 64, 0, &[1; 64]), Vec::with_capacity(100));
        assert!(small.into_spare().capacity() >= 100);
        let large = begin(&fragment(ID, 64, 0, &[1; 64]), Vec::with_capacity(SPARE_SIZE_MAX + 1));
        assert_eq!(large.into_spare().capacity(), 0);
    }
}
