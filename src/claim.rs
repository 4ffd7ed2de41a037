//! The claim word: batches that can be taken back.
//!
//! One `AtomicU64` per slot in shared memory holds the id of the next frame that may start, `epoch << 32 | seq`. The
//! worker moves it from a frame's own id to the next before it starts that frame; the host adds one to the epoch to
//! take back all that has not started. One of the two comes first for each frame: a job is claimed by its worker or
//! reclaimed by the host, never both, never neither.
//!
//! # Worker's duties
//! - Claim every frame that is not void, even to refuse it, and in the order in which frames arrive.
//! - Publish a frame's result before it claims the next.
//! - On [`Claim::Void`] skip the frame; on [`Claim::Broken`] leave at once.
//!
//! # Host's duties
//! - Trust only [`started`], never the word itself: a worker can write anything there.
//! - Number new frames from the first frame taken back, under the new epoch.
//!
//! Both halves wrap; the sequence never carries into the epoch. Fewer than 2³¹ frames are in flight
//! ([`crate::limits::WINDOW_JOBS_MAX`]), so a difference modulo 2³² tells earlier from later.

use crate::sync::{AtomicU64, Ordering};

/// A frame's id on a slot's socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameId {
    /// How often the host has taken frames back.
    pub epoch: u32,
    /// The frame's number in its slot.
    pub seq: u32,
}

impl FrameId {
    /// The id as a frame carries it.
    #[inline]
    pub const fn to_bits(self) -> u64 {
        (self.epoch as u64) << 32 | self.seq as u64
    }

    /// The id that a frame carries.
    #[inline]
    pub const fn from_bits(bits: u64) -> Self {
        Self { epoch: (bits >> 32) as u32, seq: bits as u32 }
    }

    /// The id of the frame after this one.
    #[inline]
    pub const fn next(self) -> Self {
        Self { epoch: self.epoch, seq: self.seq.wrapping_add(1) }
    }
}

/// What a worker's claim came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The frame is this worker's to run.
    Claimed,
    /// The host has taken the frame back.
    Void,
    /// The frame is not the next one: somebody broke the protocol.
    Broken,
}

/// The word itself.
#[derive(Debug)]
#[repr(transparent)]
pub struct ClaimWord(AtomicU64);

#[cfg(not(all(test, seqpool_loom)))]
const _: () = assert!(size_of::<ClaimWord>() == 8);

impl ClaimWord {
    /// A word whose next frame is `id`.
    pub fn new(id: FrameId) -> Self {
        Self(AtomicU64::new(id.to_bits()))
    }

    /// Claims the frame `id` for its worker.
    #[inline]
    pub fn try_claim(&self, id: FrameId) -> Claim {
        // Release: pairs with the host's Acquire in `reclaim` and `load`, which then see that the result before this
        // claim is published. Acquire: a frame of a new epoch is run only after the host's reclaim.
        match self.0.compare_exchange(id.to_bits(), id.next().to_bits(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Claim::Claimed,
            Err(now) if FrameId::from_bits(now).epoch != id.epoch => Claim::Void,
            Err(_) => Claim::Broken,
        }
    }

    /// Takes back every frame that has not started; returns the word as it was, for [`started`].
    #[inline]
    pub fn reclaim(&self) -> FrameId {
        // AcqRel: pairs with the worker's claim, both ways.
        FrameId::from_bits(self.0.fetch_add(1 << 32, Ordering::AcqRel))
    }

    /// The word now.
    #[inline]
    pub fn load(&self) -> FrameId {
        // Acquire: pairs with the worker's claim.
        FrameId::from_bits(self.0.load(Ordering::Acquire))
    }

    /// Sets the word for a new worker, while nobody else has the memory.
    pub fn reset(&self, id: FrameId) {
        // Release: the nursery's packet that starts the worker comes after; the worker's first claim sees this.
        self.0.store(id.to_bits(), Ordering::Release);
    }
}

/// A claim word that no honest worker leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hostile;

/// How many of the frames `[received, sent)` have started, by a claim word that a worker may have scribbled over.
///
/// `epoch` is the host's own, `received` the first frame without a result, `sent` the first frame not sent.
///
/// # Errors
/// [`Hostile`] when the word's epoch is not the host's, or its number lies outside `[received, sent]`: then everything
/// sent counts as started, and nothing is run again.
#[inline]
pub fn started(word: FrameId, epoch: u32, received: u32, sent: u32) -> Result<u32, Hostile> {
    let count = word.seq.wrapping_sub(received);
    if word.epoch != epoch || count > sent.wrapping_sub(received) { Err(Hostile) } else { Ok(count) }
}

#[cfg(all(test, not(seqpool_loom)))]
mod tests {
    use super::*;

    #[test]
    fn claims_go_by_number_and_wrap_without_carrying() {
        let first = FrameId { epoch: u32::MAX, seq: u32::MAX - 1 };
        let word = ClaimWord::new(first);
        assert_eq!(word.try_claim(first), Claim::Claimed);
        assert_eq!(word.try_claim(first), Claim::Broken, "the same frame twice");
        assert_eq!(word.try_claim(first.next()), Claim::Claimed);
        assert_eq!(word.load(), FrameId { epoch: u32::MAX, seq: 0 });
        let old = word.reclaim();
        assert_eq!(started(old, u32::MAX, u32::MAX - 1, 3), Ok(2));
        assert_eq!(word.load(), FrameId { epoch: 0, seq: 0 });
        assert_eq!(word.try_claim(old), Claim::Void);
        assert_eq!(word.try_claim(FrameId { epoch: 0, seq: 0 }), Claim::Claimed);
    }

    #[test]
    fn a_scribbled_word_is_seen() {
        let word = |epoch, seq| FrameId { epoch, seq };
        assert_eq!(started(word(1, 5), 1, 3, 8), Ok(2));
        assert_eq!(started(word(1, 3), 1, 3, 8), Ok(0));
        assert_eq!(started(word(1, 8), 1, 3, 8), Ok(5));
        assert_eq!(started(word(1, 9), 1, 3, 8), Err(Hostile));
        assert_eq!(started(word(1, 2), 1, 3, 8), Err(Hostile));
        assert_eq!(started(word(2, 5), 1, 3, 8), Err(Hostile));
        assert_eq!(started(word(0, 1), 0, u32::MAX - 1, 2), Ok(3));
    }
}

#[cfg(all(test, seqpool_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    const EPOCH: u32 = u32::MAX;
    /// The counters wrap in every model.
    const FIRST: u32 = u32::MAX - 1;

    fn id(epoch: u32, n: u32) -> FrameId {
        FrameId { epoch, seq: FIRST.wrapping_add(n) }
    }

    /// The worker's loop over one packet: which frames it ran, by number. An honest worker never sees `Broken`.
    fn work(word: &ClaimWord, epoch: u32, frames: std::ops::Range<u32>) -> Vec<u32> {
        frames
            .filter(|&n| {
                let claim = word.try_claim(id(epoch, n));
                assert_ne!(claim, Claim::Broken);
                claim == Claim::Claimed
            })
            .collect()
    }

    #[test]
    fn every_frame_is_claimed_or_reclaimed() {
        loom::model(|| {
            let word = Arc::new(ClaimWord::new(id(EPOCH, 0)));
            let theirs = Arc::clone(&word);
            let worker = thread::spawn(move || work(&theirs, EPOCH, 0..3));
            let count = started(word.reclaim(), EPOCH, FIRST, FIRST.wrapping_add(3)).expect("an honest worker");
            // Those that had started are run, the rest is void: a prefix, and what the host was told.
            assert_eq!(worker.join().unwrap(), (0..count).collect::<Vec<_>>());
            assert_eq!(word.load(), id(EPOCH.wrapping_add(1), count));
        });
    }

    /// What is taken back is sent again under the new epoch, and taken back once more.
    #[test]
    fn every_job_is_run_once_over_several_epochs() {
        loom::model(|| {
            let word = Arc::new(ClaimWord::new(id(EPOCH, 0)));
            let (socket, theirs_socket) = loom::sync::mpsc::channel::<(u32, std::ops::Range<u32>)>();
            let theirs = Arc::clone(&word);
            let worker = thread::spawn(move || {
                let mut ran = work(&theirs, EPOCH, 0..2);
                for _ in 0..2 {
                    let (epoch, frames) = theirs_socket.recv().unwrap();
                    ran.extend(work(&theirs, epoch, frames));
                }
                ran
            });
            let (mut epoch, mut settled) = (EPOCH, 0);
            for _ in 0..2 {
                let received = FIRST.wrapping_add(settled);
                settled += started(word.reclaim(), epoch, received, FIRST.wrapping_add(2)).expect("an honest worker");
                epoch = epoch.wrapping_add(1);
                socket.send((epoch, settled..2)).unwrap();
            }
            assert_eq!(worker.join().unwrap(), [0, 1]);
            assert_eq!(word.load(), id(EPOCH.wrapping_add(2), 2));
        });
    }

    /// Frames that the host never sent, or took back, run nothing and leave the word alone.
    #[test]
    fn forged_and_old_epochs_are_void() {
        loom::model(|| {
            let word = Arc::new(ClaimWord::new(id(EPOCH, 0)));
            let theirs = Arc::clone(&word);
            let forger = thread::spawn(move || {
                let forged = [id(EPOCH.wrapping_add(2), 0), id(EPOCH.wrapping_sub(1), 0)].map(|f| theirs.try_claim(f));
                assert_eq!(forged, [Claim::Void; 2]);
                // A number out of turn: `Broken` while the epoch stands, `Void` afterwards.
                assert_ne!(theirs.try_claim(id(EPOCH, 1)), Claim::Claimed);
            });
            assert_eq!(word.reclaim(), id(EPOCH, 0));
            assert_eq!(word.try_claim(id(EPOCH, 0)), Claim::Void);
            forger.join().unwrap();
            assert_eq!(word.load(), id(EPOCH.wrapping_add(1), 0));
        });
    }

    /// Two processes return from a fork inside the handler of frame 0 and go on with the same packet, each until it
    /// meets `Broken` or `Void`. `claim` is how they claim. Returns what each ran.
    fn return_twice(claim: fn(&ClaimWord, FrameId) -> Claim) -> [Vec<u32>; 2] {
        let word = Arc::new(ClaimWord::new(id(EPOCH, 0)));
        assert_eq!(word.try_claim(id(EPOCH, 0)), Claim::Claimed);
        let go_on = move |word: &ClaimWord| {
            (1..3).take_while(|&n| claim(word, id(EPOCH, n)) == Claim::Claimed).collect::<Vec<_>>()
        };
        let theirs = Arc::clone(&word);
        let child = thread::spawn(move || go_on(&theirs));
        let parent = go_on(&word);
        [parent, child.join().unwrap()]
    }

    #[test]
    fn a_fork_in_a_handler_runs_nothing_twice() {
        loom::model(|| {
            let mut ran = return_twice(ClaimWord::try_claim).concat();
            ran.sort_unstable();
            assert_eq!(ran, [1, 2], "each frame once");
        });
    }

    /// The model bites: claiming by "load, then add one" runs a frame twice.
    #[test]
    #[should_panic = "each frame once"]
    fn a_fork_in_a_handler_is_seen_when_claims_load_and_add() {
        loom::model(|| {
            let load_and_add = |word: &ClaimWord, id: FrameId| {
                let now = FrameId::from_bits(word.0.load(Ordering::Acquire));
                if now.epoch != id.epoch {
                    return Claim::Void;
                }
                word.0.store(now.next().to_bits(), Ordering::Release);
                Claim::Claimed
            };
            let mut ran = return_twice(load_and_add).concat();
            ran.sort_unstable();
            assert_eq!(ran, [1, 2], "each frame once");
        });
    }

    /// The model bites: a host that loads and stores instead of adding takes back what has started meanwhile.
    #[test]
    #[should_panic = "what the host was told"]
    fn a_reclaim_that_loads_and_stores_is_seen() {
        loom::model(|| {
            let word = Arc::new(ClaimWord::new(id(EPOCH, 0)));
            let theirs = Arc::clone(&word);
            let worker = thread::spawn(move || {
                (0..2).filter(|&n| theirs.try_claim(id(EPOCH, n)) == Claim::Claimed).count() as u32
            });
            let old = word.load();
            word.0.store(FrameId { epoch: EPOCH.wrapping_add(1), seq: old.seq }.to_bits(), Ordering::Release);
            let count = started(old, EPOCH, FIRST, FIRST.wrapping_add(2)).expect("an honest worker");
            assert_eq!(worker.join().unwrap(), count, "what the host was told");
        });
    }
}
