//! Fixed rings over memory that is mapped twice in a row.
//!
//! Positions are monotone byte counts that wrap at 2⁶⁴; a position's place is its remainder by the ring's size. Since
//! the memory is mapped twice, every run of at most one ring is a plain slice: no frame is ever split.
//!
//! [`ByteRing`] belongs to one process. [`Publication`] is the one word by which a writer tells another process how
//! far its bytes are complete.
#![allow(unsafe_code)]

use crate::sync::{AtomicU64, Ordering};
use crate::sys::Mapping;

/// Ring memory: `size` bytes after `prefix` bytes of a [`Mapping`].
#[derive(Debug)]
pub struct RingMemory {
    map: Mapping,
    prefix: usize,
    size: usize,
}

impl RingMemory {
    /// The ring behind the mapping's first `prefix` bytes.
    ///
    /// # Panics
    /// When what is left is not two copies of a power of two.
    pub fn new(map: Mapping, prefix: usize) -> Self {
        let size = (map.size() - prefix) / 2;
        assert!(size.is_power_of_two() && map.size() == prefix + 2 * size, "a ring that is mapped twice");
        Self { map, prefix, size }
    }

    /// Units: bytes.
    #[inline]
    pub fn size(&self) -> usize {
        self.size
    }

    /// First byte of the mapping's prefix.
    #[inline]
    pub fn prefix_ptr(&self) -> *mut u8 {
        self.map.as_ptr()
    }

    #[inline]
    fn at(&self, position: u64, len: usize) -> *mut u8 {
        assert!(len <= self.size, "no run is longer than the ring");
        let offset = (position as usize) & (self.size - 1);
        // offset < size and len <= size, so the run ends inside the second copy.
        self.map.as_ptr().wrapping_add(self.prefix + offset)
    }

    /// `len` bytes from `position` on.
    #[inline]
    pub fn slice(&self, position: u64, len: usize) -> &[u8] {
        // SAFETY: `at` keeps the run inside the live mapping; this process alone writes this memory, and only through
        // `&mut self`.
        unsafe { std::slice::from_raw_parts(self.at(position, len), len) }
    }

    /// `len` writable bytes from `position` on.
    #[inline]
    pub fn slice_mut(&mut self, position: u64, len: usize) -> &mut [u8] {
        // SAFETY: as in `slice`; `&mut self` makes this the only reference. The two copies of a byte are never both
        // inside one run, since a run is no longer than the ring.
        unsafe { std::slice::from_raw_parts_mut(self.at(position, len), len) }
    }

    /// Copies bytes out that another process may be writing to: what is copied is anything, but it is then ours.
    pub fn copy_out(&self, position: u64, into: &mut [u8]) {
        let from = self.at(position, into.len());
        // SAFETY: `at` keeps the source inside the live mapping; the target is an exclusive borrow and not shared memory.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) }
    }

    /// Copies `len` bytes from one position to another; the runs do not overlap.
    pub fn copy_within(&mut self, from: u64, to: u64, len: usize) {
        let distance = to.wrapping_sub(from) as usize;
        assert!(distance >= len && distance + len <= self.size, "two runs of one ring that do not overlap");
        let source = self.at(from, len);
        let target = self.at(to, len);
        // SAFETY: both runs lie inside the mapping and, by the assertion, share no byte of the ring.
        unsafe { std::ptr::copy_nonoverlapping(source, target, len) }
    }
}

/// A ring of bytes with one owner: append at the tail, free at the head.
#[derive(Debug)]
pub struct ByteRing {
    memory: RingMemory,
    head: u64,
    tail: u64,
}

impl ByteRing {
    /// An empty ring whose first position is `start`.
    pub fn new(memory: RingMemory, start: u64) -> Self {
        Self { memory, head: start, tail: start }
    }

    /// Position of the next byte to be appended.
    #[inline]
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Bytes that can be appended now.
    #[inline]
    pub fn room(&self) -> usize {
        self.memory.size() - self.tail.wrapping_sub(self.head) as usize
    }

    /// Bytes between head and tail.
    #[inline]
    pub fn used(&self) -> usize {
        self.tail.wrapping_sub(self.head) as usize
    }

    /// Appends `len` bytes, to be filled by the caller. `None` when there is no room.
    #[inline]
    pub fn append(&mut self, len: usize) -> Option<&mut [u8]> {
        if len > self.room() {
            return None;
        }
        let at = self.tail;
        self.tail = self.tail.wrapping_add(len as u64);
        Some(self.memory.slice_mut(at, len))
    }

    /// Appends a copy of bytes that are already in this ring. `false` when there is no room.
    pub fn append_from_self(&mut self, position: u64, len: usize) -> bool {
        if len > self.room() {
            return false;
        }
        self.memory.copy_within(position, self.tail, len);
        self.tail = self.tail.wrapping_add(len as u64);
        true
    }

    /// `len` bytes from `position` on, which lie between head and tail.
    #[inline]
    pub fn bytes(&self, position: u64, len: usize) -> &[u8] {
        debug_assert!(self.holds(position, len));
        self.memory.slice(position, len)
    }

    /// As [`ByteRing::bytes`], writable.
    #[inline]
    pub fn bytes_mut(&mut self, position: u64, len: usize) -> &mut [u8] {
        debug_assert!(self.holds(position, len));
        self.memory.slice_mut(position, len)
    }

    fn holds(&self, position: u64, len: usize) -> bool {
        position.wrapping_sub(self.head) as usize + len <= self.used()
    }

    /// Frees everything before `position`. The head never moves back.
    #[inline]
    pub fn free_to(&mut self, position: u64) {
        debug_assert!(position.wrapping_sub(self.head) as usize <= self.used());
        self.head = position;
    }
}

/// How far a writer's bytes are complete, for a reader in another process.
///
/// The writer stores the tail after the bytes; a reader that loads it sees them. A reader that does not trust the
/// writer checks the distance itself.
#[derive(Debug)]
#[repr(transparent)]
pub struct Publication(AtomicU64);

#[cfg(not(all(test, seqpool_loom)))]
const _: () = assert!(size_of::<Publication>() == 8);

impl Publication {
    /// Nothing published beyond `start`.
    pub fn new(start: u64) -> Self {
        Self(AtomicU64::new(start))
    }

    /// Everything before `tail` is complete.
    #[inline]
    pub fn publish(&self, tail: u64) {
        // Release: pairs with the Acquire in `observe`; the bytes come before the word.
        self.0.store(tail, Ordering::Release);
    }

    /// How far the bytes are complete.
    #[inline]
    pub fn observe(&self) -> u64 {
        // Acquire: pairs with the Release in `publish`.
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(all(test, not(seqpool_loom)))]
mod tests {
    use super::*;
    use crate::sys::{Linux, Sharing, Sys};
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::os::fd::AsFd;

    /// The smallest ring: one page.
    const SIZE: usize = 4096;

    fn memory(prefix: usize) -> RingMemory {
        let fd = Linux.memfd(c"test", prefix + SIZE).unwrap();
        RingMemory::new(Linux.map_ring(fd.as_fd(), prefix, SIZE, Sharing::NotInherited).unwrap(), prefix)
    }

    fn bytes(seed: u8, len: usize) -> Vec<u8> {
        (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
    }

    /// A ring and what it should hold.
    struct Pair {
        ring: ByteRing,
        model: VecDeque<u8>,
        head: u64,
    }

    impl Pair {
        fn new(start: u64) -> Self {
            Self { ring: ByteRing::new(memory(0), start), model: VecDeque::new(), head: start }
        }

        fn append(&mut self, seed: u8, len: usize) {
            let fits = self.model.len() + len <= SIZE;
            match self.ring.append(len) {
                Some(room) => {
                    assert!(fits);
                    room.copy_from_slice(&bytes(seed, len));
                    self.model.extend(bytes(seed, len));
                }
                None => assert!(!fits),
            }
        }

        /// A copy of `len` bytes that begin `offset` after the head.
        fn append_from_self(&mut self, offset: usize, len: usize) {
            let fits = self.model.len() + len <= SIZE;
            let copied = self.ring.append_from_self(self.head.wrapping_add(offset as u64), len);
            assert_eq!(copied, fits);
            if fits {
                let copy: Vec<u8> = self.model.range(offset..offset + len).copied().collect();
                self.model.extend(copy);
            }
        }

        fn overwrite(&mut self, offset: usize, seed: u8, len: usize) {
            let position = self.head.wrapping_add(offset as u64);
            self.ring.bytes_mut(position, len).copy_from_slice(&bytes(seed, len));
            self.model.range_mut(offset..offset + len).zip(bytes(seed, len)).for_each(|(old, new)| *old = new);
        }

        fn free(&mut self, len: usize) {
            self.head = self.head.wrapping_add(len as u64);
            self.ring.free_to(self.head);
            self.model.drain(..len);
        }

        fn check(&self) {
            assert_eq!((self.ring.used(), self.ring.room()), (self.model.len(), SIZE - self.model.len()));
            assert_eq!(self.ring.tail(), self.head.wrapping_add(self.model.len() as u64));
            // One slice, wherever it wraps.
            assert_eq!(self.model, self.ring.bytes(self.head, self.model.len()));
        }
    }

    #[test]
    fn a_full_ring_is_whole_at_every_wrap_offset() {
        for start in [0, u64::MAX - 2 * SIZE as u64] {
            let mut pair = Pair::new(start);
            for offset in 0..SIZE {
                pair.append(offset as u8, SIZE);
                assert!(pair.ring.append(1).is_none() && pair.ring.append(0).is_some());
                pair.check();
                pair.free(SIZE);
                // The next round begins one byte further on.
                pair.append(0, 1);
                pair.free(1);
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Append(u8, usize),
        Copy(usize, usize),
        Overwrite(usize, u8, usize),
        Free(usize),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let len = || prop_oneof![0usize..64, 0usize..=SIZE];
        prop_oneof![
            3 => (any::<u8>(), len()).prop_map(|(seed, len)| Step::Append(seed, len)),
            1 => (any::<usize>(), len()).prop_map(|(offset, len)| Step::Copy(offset, len)),
            1 => (any::<usize>(), any::<u8>(), len()).prop_map(|(offset, seed, len)| Step::Overwrite(offset, seed, len)),
            2 => len().prop_map(Step::Free),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn agrees_with_a_deque(
            start in prop_oneof![0..10_000u64, u64::MAX - 10_000..=u64::MAX],
            steps in prop::collection::vec(any_step(), 1..100),
        ) {
            let mut pair = Pair::new(start);
            for step in steps {
                let used = pair.model.len();
                // A run of the ring: some offset, and what is there from it on.
                let run = |offset: usize, len: usize| {
                    let offset = offset % (used + 1);
                    (offset, len.min(used - offset))
                };
                match step {
                    Step::Append(seed, len) => pair.append(seed, len),
                    Step::Copy(offset, len) => {
                        let (offset, len) = run(offset, len);
                        pair.append_from_self(offset, len);
                    }
                    Step::Overwrite(offset, seed, len) => {
                        let (offset, len) = run(offset, len);
                        pair.overwrite(offset, seed, len);
                    }
                    Step::Free(len) => pair.free(len.min(used)),
                }
                pair.check();
            }
        }

        #[test]
        fn copies_out_what_a_slice_shows(position: u64, len in 0usize..=SIZE, seed: u8) {
            let mut memory = memory(4096);
            memory.slice_mut(position, len).copy_from_slice(&bytes(seed, len));
            let mut copy = vec![0; len];
            memory.copy_out(position, &mut copy);
            prop_assert_eq!(&copy, &bytes(seed, len));
            prop_assert_eq!(memory.slice(position, len), copy);
            // The prefix is not part of the ring.
            memory.slice_mut(position, SIZE).fill(0xff);
            let prefix = memory.prefix_ptr();
            // SAFETY: the mapping begins with 4096 bytes of prefix, which nobody writes.
            let prefix = unsafe { std::slice::from_raw_parts(prefix, 4096) };
            prop_assert!(prefix.iter().all(|&b| b == 0));
        }
    }

    #[test]
    #[should_panic = "no run is longer than the ring"]
    fn a_run_longer_than_the_ring_is_refused() {
        memory(0).slice(0, SIZE + 1);
    }

    #[test]
    #[should_panic = "do not overlap"]
    fn runs_that_overlap_are_refused() {
        memory(0).copy_within(u64::MAX - 4, 3, 9);
    }

    #[test]
    #[should_panic = "do not overlap"]
    fn runs_that_overlap_around_the_ring_are_refused() {
        memory(0).copy_within(0, SIZE as u64 - 8, 9);
    }

    #[test]
    fn runs_that_only_touch_are_copied() {
        let mut memory = memory(0);
        memory.slice_mut(u64::MAX - 7, 8).copy_from_slice(&bytes(1, 8));
        memory.copy_within(u64::MAX - 7, 0, 8);
        assert_eq!(memory.slice(0, 8), bytes(1, 8));
    }
}

#[cfg(all(test, seqpool_loom))]
mod loom_tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    /// Positions wrap in every model.
    const START: u64 = u64::MAX;
    const BYTES: usize = 3;

    struct Shared {
        tail: Publication,
        bytes: [UnsafeCell<u8>; BYTES],
    }

    // SAFETY: as in shared memory: the cells are written before they are published and read only afterwards, which is
    // what the models check; loom reports any access that is not ordered.
    unsafe impl Sync for Shared {}

    fn value(i: usize) -> u8 {
        7 + i as u8
    }

    /// A writer publishes byte by byte; a reader reads as far as it was told.
    fn write_and_read(publish: fn(&Publication, u64), observe: fn(&Publication) -> u64) {
        let shared =
            Arc::new(Shared { tail: Publication::new(START), bytes: std::array::from_fn(|_| UnsafeCell::new(0)) });
        let theirs = Arc::clone(&shared);
        let writer = thread::spawn(move || {
            for (i, byte) in theirs.bytes.iter().enumerate() {
                // SAFETY: the cell is alive; loom checks that nobody else has it now.
                byte.with_mut(|p| unsafe { *p = value(i) });
                publish(&theirs.tail, START.wrapping_add(i as u64 + 1));
            }
        });
        let mut seen = Vec::new();
        for _ in 0..2 {
            let complete = observe(&shared.tail).wrapping_sub(START) as usize;
            // SAFETY: as above.
            seen.push(shared.bytes[..complete].iter().map(|byte| byte.with(|p| unsafe { *p })).collect::<Vec<_>>());
        }
        writer.join().unwrap();
        assert_eq!(observe(&shared.tail), START.wrapping_add(BYTES as u64));
        // Judged only now: loom does not bear a panic while a thread is running.
        let bytes: Vec<u8> = (0..BYTES).map(value).collect();
        assert!(seen.iter().all(|seen| bytes.starts_with(seen)), "what is published is complete");
        assert!(seen[0].len() <= seen[1].len(), "the tail never moves back");
    }

    #[test]
    fn published_bytes_are_visible() {
        loom::model(|| write_and_read(Publication::publish, Publication::observe));
    }

    /// The model bites: a tail that is stored without Release may overtake its bytes.
    #[test]
    #[should_panic = "Causality violation"]
    fn a_relaxed_store_is_seen() {
        loom::model(|| write_and_read(|p, tail| p.0.store(tail, Ordering::Relaxed), Publication::observe));
    }

    /// The model bites: a tail that is loaded without Acquire may be seen before its bytes.
    #[test]
    #[should_panic = "Causality violation"]
    fn a_relaxed_load_is_seen() {
        loom::model(|| write_and_read(Publication::publish, |p| p.0.load(Ordering::Relaxed)));
    }
}
