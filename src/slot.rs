//! A slot's shared memory: the control page, and the out-ring that outlives a dead worker.
//!
//! # Shape
//! `[control page][out-ring]`, the ring mapped twice in a row. The control page holds the claim word, the out-ring's
//! published tail and the worker's phase, each on a cache line of its own.
//!
//! The worker writes; the host reads each word once, checks it against its private bounds, and copies bytes before it
//! parses them. The host resets the page only while no worker has it.
#![allow(unsafe_code)]

use crate::claim::{ClaimWord, FrameId};
use crate::limits::{CONTROL_SIZE, RING_SIZE};
use crate::ring::{Publication, RingMemory};
use crate::sync::{AtomicU32, Ordering};
use crate::sys::{OsResult, Sharing, Sys};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes of a slot's memory file.
pub const SLOT_FILE_SIZE: usize = CONTROL_SIZE + RING_SIZE;

/// What a worker says it is doing, so that its deadline can stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    /// Running or waiting for jobs.
    Working = 0,
    /// Waiting until the host takes results.
    WaitingForRoom = 1,
}

/// The control page's words.
#[derive(Debug)]
#[repr(C)]
pub struct Control {
    /// Next frame that may start.
    pub claim: Line<ClaimWord>,
    /// How far the out-ring's bytes are complete.
    pub out_tail: Line<Publication>,
    phase: Line<AtomicU32>,
}

/// One cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Line<T>(T);

impl<T> std::ops::Deref for Line<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

#[cfg(not(all(test, seqpool_loom)))]
const _: () = assert!(size_of::<Control>() == 192 && size_of::<Control>() <= CONTROL_SIZE);

impl Control {
    /// What the worker says it is doing.
    #[inline]
    pub fn phase(&self) -> Phase {
        // Relaxed: a hint that carries no data; a stale one is corrected a sampling period later.
        if self.phase.load(Ordering::Relaxed) == Phase::WaitingForRoom as u32 {
            Phase::WaitingForRoom
        } else {
            Phase::Working
        }
    }

    /// Worker: says what it is doing.
    #[inline]
    pub fn set_phase(&self, phase: Phase) {
        // Relaxed: as in `phase`.
        self.phase.store(phase as u32, Ordering::Relaxed);
    }

    /// Host: makes the page ready for a new worker.
    pub fn reset(&self, next: FrameId) {
        self.claim.reset(next);
        self.out_tail.publish(0);
        self.set_phase(Phase::Working);
    }
}

/// A slot's memory file, as a descriptor to pass on.
#[derive(Debug)]
pub struct SlotFile(OwnedFd);

impl SlotFile {
    /// A new file of zeros, sealed against resizing.
    ///
    /// # Errors
    /// The kernel's, such as `EMFILE`.
    pub fn create<S: Sys>(sys: &S) -> OsResult<Self> {
        sys.memfd(c"seqpool-slot", SLOT_FILE_SIZE).map(Self)
    }

    /// A file that was passed to this process.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Maps it; a forked child does not inherit the mapping.
    ///
    /// # Errors
    /// The kernel's.
    pub fn map<S: Sys>(&self, sys: &S) -> OsResult<SlotMemory> {
        let map = sys.map_ring(self.0.as_fd(), CONTROL_SIZE, RING_SIZE, Sharing::NotInherited)?;
        Ok(SlotMemory { ring: RingMemory::new(map, CONTROL_SIZE) })
    }
}

impl AsFd for SlotFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A mapped slot.
#[derive(Debug)]
pub struct SlotMemory {
    ring: RingMemory,
}

impl SlotMemory {
    /// The control page.
    #[inline]
    pub fn control(&self) -> &Control {
        let page = self.ring.prefix_ptr().cast::<Control>();
        // SAFETY: the mapping begins with the control page: aligned to a page, large enough (asserted above), and of
        // atomics only, for which every bit pattern is valid and which other processes may write at any time.
        unsafe { &*page }
    }

    /// The out-ring, for the worker that writes it.
    #[inline]
    pub fn out_ring_mut(&mut self) -> &mut RingMemory {
        &mut self.ring
    }

    /// The out-ring, for a host that copies from it.
    #[inline]
    pub fn out_ring(&self) -> &RingMemory {
        &self.ring
    }
}
