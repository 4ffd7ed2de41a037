//! A slot's shared memory: the control page, and the out-ring that outlives a dead worker.
//!
//! # Shape
//! `[control page][out-ring]`, the ring mapped twice in a row. The control page holds the claim word, the out-ring's
//! published tail, the worker's phase and how far it has printed, each on a cache line of its own.
//!
//! The worker writes; the host reads each word once, checks it against its private bounds, and copies bytes before it
//! parses them. The host resets the page only while no worker has it.
#![allow(unsafe_code)]

use crate::claim::{ClaimWord, FrameId};
use crate::limits::{CONTROL_SIZE, RING_SIZE};
use crate::ring::{Publication, RingMemory};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys::{self, OsResult, Sharing, Sys};
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
    /// Dying because it could not have more memory.
    OutOfMemory = 2,
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
    printing: Line<Printing>,
}

/// Where the worker stands in the file that captures its output; unused when nothing is captured. Units: bytes.
#[derive(Debug)]
#[repr(C)]
pub struct Printing {
    /// Where the output of the job in hand, or of the next one, begins.
    began: AtomicU64,
    /// Everything before this has been shown.
    shown: AtomicU64,
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
const _: () = assert!(size_of::<Control>() == 256 && size_of::<Control>() <= CONTROL_SIZE);

impl Control {
    /// What the worker says it is doing.
    #[inline]
    pub fn phase(&self) -> Phase {
        // Relaxed: a hint that carries no data; a stale one is corrected a sampling period later.
        match self.phase.load(Ordering::Relaxed) {
            1 => Phase::WaitingForRoom,
            2 => Phase::OutOfMemory,
            _ => Phase::Working,
        }
    }

    /// Worker: says what it is doing.
    #[inline]
    pub fn set_phase(&self, phase: Phase) {
        // Relaxed: as in `phase`.
        self.phase.store(phase as u32, Ordering::Relaxed);
    }

    /// Host: where the output of the job in hand began, and up to where it has been shown, as a dead worker says. Take back
    /// its claim first.
    pub fn printing(&self) -> (u64, u64) {
        // Relaxed: both were stored before the claim of the job in hand, whose Release has brought them; and their
        // writer is dead, or not to be believed anyway.
        (self.printing.began.load(Ordering::Relaxed), self.printing.shown.load(Ordering::Relaxed))
    }

    /// Worker: the next job's output begins here. After the last result is published, before the next claim: so the host
    /// never takes an earlier job's output for that of the one in hand.
    pub fn set_print_began(&self, offset: u64) {
        // Relaxed: the claim that follows publishes it.
        self.printing.began.store(offset, Ordering::Relaxed);
    }

    /// Worker: what lies before this has been shown.
    pub fn set_print_shown(&self, offset: u64) {
        // Relaxed: read when this process is dead.
        self.printing.shown.store(offset, Ordering::Relaxed);
    }

    /// Host: makes the page ready for a new worker.
    pub fn reset(&self, next: FrameId) {
        self.claim.reset(next);
        self.out_tail.publish(0);
        self.set_phase(Phase::Working);
        self.set_print_began(0);
        self.set_print_shown(0);
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
        Ok(SlotMemory { ring: RingMemory::new(map, CONTROL_SIZE), is_marked: false })
    }
}

impl AsFd for SlotFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for SlotMemory {
    fn drop(&mut self) {
        if self.is_marked {
            sys::unmark_failed_allocations();
        }
    }
}

/// A mapped slot.
#[derive(Debug)]
pub struct SlotMemory {
    ring: RingMemory,
    /// Failed allocations of this process are marked here.
    is_marked: bool,
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

    /// Worker: when an allocation of this process fails and that ends it, the page says [`Phase::OutOfMemory`].
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn mark_failed_allocations(&mut self) -> OsResult<()> {
        self.is_marked = true;
        let word = (&raw const self.control().phase).cast_mut().cast::<u32>();
        // SAFETY: a word of the control page, which is written through shared references and atomically everywhere. It stays
        // mapped until `self` is dropped, which ends the marking.
        unsafe { sys::mark_failed_allocations(word, Phase::OutOfMemory as u32) }
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

#[cfg(all(test, seqpool_loom))]
mod loom_tests {
    use super::*;
    use crate::claim::{self, Claim};
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    const FIRST: FrameId = FrameId { epoch: u32::MAX, seq: u32::MAX - 1 };
    const JOBS: u32 = 3;

    struct Shared {
        control: Control,
        out_ring: [UnsafeCell<u32>; JOBS as usize],
    }

    // SAFETY: as in shared memory: a result is written before it is published and read only afterwards, which is what
    // the models check; loom reports any access that is not ordered.
    unsafe impl Sync for Shared {}

    fn frame(n: u32) -> FrameId {
        FrameId { epoch: FIRST.epoch, seq: FIRST.seq.wrapping_add(n) }
    }

    /// The worker runs its frames while the host looks at the word, then judges the worker as if it had died: `look`
    /// is how the host looks, `try_claim` how the worker claims, `publish` how it publishes.
    fn run_and_judge(
        look: fn(&ClaimWord) -> FrameId,
        try_claim: fn(&ClaimWord, FrameId) -> Claim,
        publish: fn(&Publication, u64),
    ) {
        let control = Control {
            claim: Line(ClaimWord::new(FIRST)),
            out_tail: Line(Publication::new(0)),
            phase: Line(AtomicU32::new(0)),
            printing: Line(Printing { began: AtomicU64::new(0), shown: AtomicU64::new(0) }),
        };
        let shared = Arc::new(Shared { control, out_ring: std::array::from_fn(|_| UnsafeCell::new(0)) });
        let theirs = Arc::clone(&shared);
        let worker = thread::spawn(move || {
            for n in 0..JOBS {
                if try_claim(&theirs.control.claim, frame(n)) != Claim::Claimed {
                    return n;
                }
                // SAFETY: the cell is alive; loom checks that nobody else has it now.
                theirs.out_ring[n as usize].with_mut(|p| unsafe { *p = 100 + n });
                publish(&theirs.control.out_tail, u64::from(n) + 1);
                // Each job prints one byte.
                theirs.control.set_print_began(u64::from(n) + 1);
            }
            JOBS
        });
        let word = look(&shared.control.claim);
        let (print_began, _) = shared.control.printing();
        let sent = FIRST.seq.wrapping_add(JOBS);
        let started = claim::started(word, FIRST.epoch, FIRST.seq, sent).expect("an honest worker");
        let results = shared.control.out_tail.observe();
        let read = |n: usize| {
            // SAFETY: as above.
            shared.out_ring[n].with(|p| unsafe { *p })
        };
        let bodies: Vec<u32> = (0..results as usize).map(read).collect();
        let ran = worker.join().unwrap();
        // Judged only now: loom does not bear a panic while a thread is running.
        assert!(u64::from(started) <= results + 1, "at most one job is open");
        assert!(bodies.iter().zip(100..).all(|(&body, right)| body == right), "what is published is complete");
        assert!(started <= ran, "what had started has run");
        assert!(
            print_began + 1 >= u64::from(started),
            "no earlier job's output is taken for that of the last to start"
        );
        assert_eq!(shared.control.out_tail.observe(), u64::from(ran), "and its result is there");
    }

    /// A host that sees claim k+1 sees result k: so at most one job is blamed for a death.
    #[test]
    fn a_result_is_published_before_the_next_claim() {
        loom::model(|| run_and_judge(ClaimWord::load, ClaimWord::try_claim, Publication::publish));
    }

    #[test]
    fn after_a_reclaim_too() {
        loom::model(|| run_and_judge(ClaimWord::reclaim, ClaimWord::try_claim, Publication::publish));
    }

    /// The model bites: a claim without Release may be seen before the result that it follows.
    #[test]
    #[should_panic = "at most one job is open"]
    fn a_relaxed_claim_is_seen() {
        use crate::sync::AtomicU64;
        loom::model(|| {
            // `ClaimWord` is a transparent AtomicU64; its own methods allow no weaker ordering.
            let relaxed = |word: &ClaimWord, id: FrameId| {
                // SAFETY: `repr(transparent)`, and the reference lives as long.
                let word = unsafe { &*std::ptr::from_ref(word).cast::<AtomicU64>() };
                let (from, to) = (id.to_bits(), id.next().to_bits());
                match word.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => Claim::Claimed,
                    Err(_) => Claim::Void,
                }
            };
            run_and_judge(ClaimWord::load, relaxed, Publication::publish);
        });
    }

    /// The model bites: a host that looks without Acquire may miss the result.
    #[test]
    #[should_panic = "at most one job is open"]
    fn a_relaxed_look_is_seen() {
        use crate::sync::AtomicU64;
        loom::model(|| {
            let relaxed = |word: &ClaimWord| {
                // SAFETY: `repr(transparent)`, and the reference lives as long.
                let word = unsafe { &*std::ptr::from_ref(word).cast::<AtomicU64>() };
                FrameId::from_bits(word.load(Ordering::Relaxed))
            };
            run_and_judge(relaxed, ClaimWord::try_claim, Publication::publish);
        });
    }
}
