//! Floor 1: results that came out of order, put back in order within fixed bounds.
//!
//! A number is *admitted* while it lies less than `window` after the oldest one not yet delivered and the bytes kept
//! stay under a limit. The result of an admitted number is always accepted, whatever its size, so that nobody can
//! wait for room that only a later result would make. The oldest number itself is always admitted.
//!
//! A result that comes in order goes to the caller's sink without being copied. Others lie one after the other in an
//! arena; what was delivered leaves holes there, and when the holes outweigh the rest, the rest is moved together.
//! So the arena never exceeds twice what was kept at the peak, plus [`HOLES_MIN`], and the steady state allocates
//! nothing.
//!
//! Pure: no descriptor, no clock. Called by the ordered iterator of the pool and by `seqpool run -k`.

/// Holes smaller than this are not worth moving anything. Units: bytes.
const HOLES_MIN: usize = 64 << 10;
/// An arena larger than this is given back once it is empty. Units: bytes.
const ARENA_KEPT_MAX: usize = 4 << 20;

/// What `lens` holds for a number without a result yet.
const MISSING: usize = 0;
/// What `lens` holds for a number that gave no bytes at all: its job was not successful.
const NOTHING: usize = 1;
/// What `lens` adds to the size of a kept result.
const KEPT: usize = 2;

/// A bounded reorder buffer for results numbered from 0.
pub struct Reorder {
    /// Where in the arena each number's result begins, by number modulo their count, which is at least the window.
    offsets: Vec<usize>,
    /// State and size of each number's result: [`MISSING`], [`NOTHING`], or its size plus [`KEPT`].
    lens: Vec<usize>,
    window: u64,
    bytes_limit: usize,
    /// The oldest number not yet delivered.
    oldest: u64,
    /// One more than the highest number ever kept.
    end: u64,
    arena: Vec<u8>,
    /// Where the arena's contents move when the holes are closed.
    spare: Vec<u8>,
    /// Bytes of results kept; the arena's other bytes are holes.
    bytes_kept: usize,
    /// Numbers kept, with or without bytes.
    count_kept: usize,
}

impl Reorder {
    /// A buffer that admits `window` numbers at a time, and none beyond the oldest while `bytes_limit` bytes are kept.
    ///
    /// # Panics
    /// When `window` is 0.
    pub fn new(window: usize, bytes_limit: usize) -> Self {
        assert!(window > 0, "a window of at least one number");
        // A mask finds a number's place without a division.
        let places = window.next_power_of_two();
        Self {
            // All zero: the kernel gives the pages when they are first used.
            offsets: vec![0; places],
            lens: vec![MISSING; places],
            window: window as u64,
            bytes_limit,
            oldest: 0,
            end: 0,
            arena: Vec::new(),
            spare: Vec::new(),
            bytes_kept: 0,
            count_kept: 0,
        }
    }

    /// Whether number `n` may be started now.
    #[inline]
    pub fn admits(&self, n: u64) -> bool {
        n == self.oldest || (n < self.oldest + self.window && self.bytes_kept < self.bytes_limit)
    }

    /// Bytes of results that wait for an older number.
    #[cfg(test)]
    fn bytes_kept(&self) -> usize {
        self.bytes_kept
    }

    /// Whether no result waits for an older number.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.count_kept == 0
    }

    /// Takes the result of an admitted number, `None` if it has none, and hands all that is now in order to `sink`.
    ///
    /// # Panics
    /// When `n` has a result already or lies outside the window: it was not admitted.
    #[inline]
    pub fn insert(&mut self, n: u64, result: Option<&[u8]>, mut sink: impl FnMut(u64, Option<&[u8]>)) {
        if n != self.oldest {
            self.keep(n, result);
            return;
        }
        self.oldest += 1;
        sink(n, result);
        while let Some((n, result)) = self.pop() {
            sink(n, result);
        }
    }

    /// The next result in order, if it is here.
    #[inline]
    pub fn pop(&mut self) -> Option<(u64, Option<&[u8]>)> {
        if self.count_kept == 0 {
            return None;
        }
        let n = self.oldest;
        let index = self.index(n);
        let len = std::mem::replace(&mut self.lens[index], MISSING);
        let result = match len {
            MISSING => return None,
            NOTHING => None,
            // It lies nowhere: the arena may have been cleared since.
            KEPT => Some([].as_slice()),
            len => {
                let (offset, size) = (self.offsets[index], len - KEPT);
                self.bytes_kept -= size;
                // Its bytes are a hole from now on; they stay until the next result is kept.
                Some(&self.arena[offset..offset + size])
            }
        };
        self.oldest += 1;
        self.count_kept -= 1;
        Some((n, result))
    }

    /// Takes the result of an admitted number without delivering anything; [`Reorder::pop`] does that.
    ///
    /// # Panics
    /// As [`Reorder::insert`].
    pub fn keep(&mut self, n: u64, result: Option<&[u8]>) {
        assert!(n >= self.oldest && n < self.oldest + self.window, "number {n} was not admitted");
        let index = self.index(n);
        assert!(self.lens[index] == MISSING, "number {n} has a result already");
        self.close_holes();
        self.lens[index] = match result {
            None => NOTHING,
            Some(bytes) => {
                self.offsets[index] = self.arena.len();
                self.arena.extend_from_slice(bytes);
                self.bytes_kept += bytes.len();
                bytes.len() + KEPT
            }
        };
        self.count_kept += 1;
        self.end = self.end.max(n + 1);
    }

    #[inline]
    fn index(&self, n: u64) -> usize {
        n as usize & (self.lens.len() - 1)
    }

    /// Moves what is kept together when the holes outweigh it. Each byte moved, and each number looked at, was paid
    /// for by a byte delivered.
    fn close_holes(&mut self) {
        if self.bytes_kept == 0 {
            self.arena.clear();
            if self.arena.capacity() > ARENA_KEPT_MAX {
                self.arena = Vec::new();
                self.spare = Vec::new();
            }
            return;
        }
        let holes = self.arena.len() - self.bytes_kept;
        if holes < HOLES_MIN.max(self.bytes_kept) {
            return;
        }
        self.spare.clear();
        for n in self.oldest..self.end {
            let index = self.index(n);
            if let Some(size) = self.lens[index].checked_sub(KEPT) {
                let offset = self.offsets[index];
                self.offsets[index] = self.spare.len();
                self.spare.extend_from_slice(&self.arena[offset..offset + size]);
            }
        }
        std::mem::swap(&mut self.arena, &mut self.spare);
        debug_assert_eq!(self.arena.len(), self.bytes_kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn collect(order: &mut Reorder, n: u64, result: Option<&[u8]>) -> Vec<(u64, Option<Vec<u8>>)> {
        let mut out = Vec::new();
        order.insert(n, result, |n, r| out.push((n, r.map(<[u8]>::to_vec))));
        out
    }

    #[test]
    fn in_order_results_are_never_kept() {
        let mut order = Reorder::new(4, 100);
        for n in 0..100 {
            assert!(order.admits(n));
            assert_eq!(collect(&mut order, n, Some(b"x")), [(n, Some(b"x".to_vec()))]);
            assert!(order.is_empty() && order.arena.capacity() == 0);
        }
    }

    #[test]
    fn a_gap_holds_back_what_follows() {
        let mut order = Reorder::new(4, 100);
        assert_eq!(collect(&mut order, 2, None), []);
        assert_eq!(collect(&mut order, 1, Some(b"")), []);
        assert!(order.admits(3) && !order.admits(4));
        let out = collect(&mut order, 0, Some(b"a"));
        assert_eq!(out, [(0, Some(b"a".to_vec())), (1, Some(vec![])), (2, None)]);
        assert!(order.admits(6) && !order.admits(7));
    }

    #[test]
    fn the_byte_limit_holds_back_admission_but_never_a_result() {
        let mut order = Reorder::new(8, 4);
        order.keep(1, Some(b"abcdef"));
        assert!(!order.admits(2), "over the limit");
        assert!(order.admits(0), "the oldest is always admitted");
        order.keep(2, Some(b"accepted all the same"));
        assert_eq!(order.bytes_kept(), 27);
        assert_eq!(collect(&mut order, 0, None).len(), 3);
        assert!(order.admits(5));
    }

    #[test]
    #[should_panic(expected = "was not admitted")]
    fn a_number_beyond_the_window_is_our_bug() {
        Reorder::new(4, 4).keep(4, None);
    }

    #[test]
    #[should_panic(expected = "has a result already")]
    fn a_second_result_is_our_bug() {
        let mut order = Reorder::new(4, 4);
        order.keep(1, None);
        order.keep(1, None);
    }

    #[test]
    fn the_arena_stays_bounded_when_it_never_empties() {
        let mut order = Reorder::new(1 << 10, usize::MAX);
        let body = |n: u64| [n as u8; 100];
        (0..10).for_each(|n| order.keep(n, Some(&body(n))));
        for n in 0..100_000 {
            assert_eq!(order.pop(), Some((n, Some(&body(n)[..]))));
            order.keep(n + 10, Some(&body(n + 10)));
            assert!(order.arena.len() <= 1000 + HOLES_MIN + 100, "{}", order.arena.len());
        }
    }

    /// One number of a run: its result, and how long the job takes.
    fn jobs() -> impl Strategy<Value = Vec<(Option<Vec<u8>>, u8)>> {
        let body = prop_oneof![
            1 => Just(None),
            4 => (0usize..40, any::<u8>()).prop_map(|(size, byte)| Some(vec![byte; size])),
            1 => (30_000usize..70_000, any::<u8>()).prop_map(|(size, byte)| Some(vec![byte; size])),
        ];
        prop::collection::vec((body, any::<u8>()), 0..200)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever the window, the limit and the order of completion: every number once, in order, with its bytes.
        #[test]
        fn delivers_everything_once_and_in_order(jobs in jobs(), window in 1usize..40, limit in 0usize..100_000) {
            let mut order = Reorder::new(window, limit);
            let mut running: Vec<u64> = Vec::new();
            let mut next = 0u64;
            let mut peak = 0;
            let mut out: Vec<(u64, Option<Vec<u8>>)> = Vec::new();
            loop {
                while next < jobs.len() as u64 && order.admits(next) {
                    running.push(next);
                    next += 1;
                }
                // The one that takes least time ends first.
                let Some(at) = (0..running.len()).min_by_key(|&i| jobs[running[i] as usize].1) else { break };
                let n = running.swap_remove(at);
                order.insert(n, jobs[n as usize].0.as_deref(), |n, r| out.push((n, r.map(<[u8]>::to_vec))));
                peak = peak.max(order.bytes_kept());
                prop_assert!(order.arena.len() <= 2 * peak + HOLES_MIN);
            }
            prop_assert!(order.is_empty());
            prop_assert_eq!(out.len(), jobs.len());
            for (i, (n, result)) in out.into_iter().enumerate() {
                prop_assert_eq!(n, i as u64);
                prop_assert_eq!(&result, &jobs[i].0);
            }
        }
    }
}
