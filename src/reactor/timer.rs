//! Timers: an indexed binary heap. No clock; time arrives as an argument.
//!
//! Owns deadlines and one word of data for each. Never calls back, never makes a system call.
//!
//! The heap orders nodes by deadline, then by the order in which they were set. Each node names its entry in a slab,
//! and the entry knows where in the heap its node is, so that cancelling finds the node at once and repairs the heap
//! along one path.
//!
//! # Invariant
//! For every `p`: `slab[heap[p].entry].at == p`. An entry that no node names is on the free list, and its generation
//! has moved on, so that an old [`TimerId`] cancels nothing.
//!
//! Called by the reactor, and by whoever wants timers without one.

use crate::limits::REACTOR_TIMERS_MAX;

const NIL: u32 = u32::MAX;

/// Names one timer. Means nothing any more once that timer has expired or been cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerId {
    entry: u32,
    generation: u32,
}

#[derive(Clone, Copy)]
struct Node {
    deadline_ns: u64,
    /// Breaks ties: equal deadlines expire in the order in which they were set.
    order: u64,
    entry: u32,
}

impl Node {
    fn key(&self) -> (u64, u64) {
        (self.deadline_ns, self.order)
    }
}

struct Entry {
    data: u64,
    generation: u32,
    /// Where its node is, or the next free entry.
    at: u32,
}

/// A set of deadlines. Setting, cancelling and expiring cost O(log n), looking at the earliest O(1); no allocation
/// unless there are more timers at a time than ever before.
#[derive(Default)]
pub struct Timers {
    heap: Vec<Node>,
    slab: Vec<Entry>,
    /// First free entry plus one; 0 is none.
    free: u32,
    order: u64,
}

impl Timers {
    /// No timers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Room for `capacity` timers without allocation.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { heap: Vec::with_capacity(capacity), slab: Vec::with_capacity(capacity), free: 0, order: 0 }
    }

    /// How many are set.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Sets a timer; `data` comes back when it expires.
    ///
    /// Units: nanoseconds, on whatever clock [`Timers::next_expired`] is given.
    ///
    /// # Panics
    /// With [`REACTOR_TIMERS_MAX`] timers set.
    pub fn set(&mut self, deadline_ns: u64, data: u64) -> TimerId {
        assert!(self.heap.len() < REACTOR_TIMERS_MAX, "more than {REACTOR_TIMERS_MAX} timers");
        let entry = if self.free == 0 {
            self.slab.push(Entry { data, generation: 0, at: NIL });
            (self.slab.len() - 1) as u32
        } else {
            let entry = self.free - 1;
            self.free = self.slab[entry as usize].at;
            self.slab[entry as usize].data = data;
            entry
        };
        let order = self.order;
        self.order += 1;
        let at = self.heap.len();
        self.heap.push(Node { deadline_ns, order, entry });
        self.sift_up(at);
        TimerId { entry, generation: self.slab[entry as usize].generation }
    }

    /// Cancels a timer. False: it has expired or been cancelled before.
    pub fn cancel(&mut self, id: TimerId) -> bool {
        match self.slab.get(id.entry as usize) {
            Some(entry) if entry.generation == id.generation => {
                self.remove(entry.at as usize);
                true
            }
            _ => false,
        }
    }

    /// Takes the earliest timer whose deadline has come, and gives its data.
    ///
    /// Units: nanoseconds.
    pub fn next_expired(&mut self, now_ns: u64) -> Option<u64> {
        let first = self.heap.first()?;
        if first.deadline_ns > now_ns {
            return None;
        }
        let data = self.slab[first.entry as usize].data;
        self.remove(0);
        Some(data)
    }

    /// Moves every deadline, as if so much time had not passed. O(n).
    ///
    /// Units: nanoseconds.
    pub fn postpone(&mut self, by_ns: u64) {
        // All by the same, so that the order stays. Those that reach the end of time never expire anyway.
        for node in &mut self.heap {
            node.deadline_ns = node.deadline_ns.saturating_add(by_ns);
        }
    }

    /// The earliest deadline.
    ///
    /// Units: nanoseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        self.heap.first().map(|node| node.deadline_ns)
    }

    fn remove(&mut self, at: usize) {
        let entry = self.heap.swap_remove(at).entry;
        if at < self.heap.len() {
            // The node that took the place came from the end of another branch: it may belong further up or down.
            let at = self.sift_up(at);
            self.sift_down(at);
        }
        let freed = &mut self.slab[entry as usize];
        // Wraps after 2³² timers in one entry: an id kept for that long may cancel another timer.
        freed.generation = freed.generation.wrapping_add(1);
        freed.at = self.free;
        self.free = entry + 1;
    }

    fn place(&mut self, at: usize, node: Node) {
        self.heap[at] = node;
        self.slab[node.entry as usize].at = at as u32;
    }

    /// Moves the node at `at` towards the root; returns where it stopped.
    fn sift_up(&mut self, mut at: usize) -> usize {
        let node = self.heap[at];
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.heap[parent].key() <= node.key() {
                break;
            }
            self.place(at, self.heap[parent]);
            at = parent;
        }
        self.place(at, node);
        at
    }

    fn sift_down(&mut self, mut at: usize) {
        let node = self.heap[at];
        loop {
            let mut child = 2 * at + 1;
            if child >= self.heap.len() {
                break;
            }
            if child + 1 < self.heap.len() && self.heap[child + 1].key() < self.heap[child].key() {
                child += 1;
            }
            if node.key() <= self.heap[child].key() {
                break;
            }
            self.place(at, self.heap[child]);
            at = child;
        }
        self.place(at, node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Set(u64),
        Cancel(usize),
        Expire(u64),
        Postpone(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            // A narrow range makes equal deadlines common.
            5 => (0u64..40).prop_map(Op::Set),
            3 => (0usize..1000).prop_map(Op::Cancel),
            2 => (0u64..45).prop_map(Op::Expire),
            1 => (0u64..20).prop_map(Op::Postpone),
        ]
    }

    fn check(timers: &Timers) {
        for (at, node) in timers.heap.iter().enumerate() {
            assert_eq!(timers.slab[node.entry as usize].at as usize, at);
            assert!(at == 0 || timers.heap[(at - 1) / 2].key() < node.key());
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_list(ops in prop::collection::vec(op(), 1..400)) {
            let mut timers = Timers::new();
            // In the order of setting; never removed from `ids`, so that dead ids are cancelled too.
            let mut naive: Vec<(u64, u64)> = Vec::new();
            let mut ids: Vec<(TimerId, u64)> = Vec::new();
            let mut data = 0;
            for op in ops {
                match op {
                    Op::Set(deadline) => {
                        data += 1;
                        let id = timers.set(deadline, data);
                        prop_assert!(ids.iter().all(|(other, _)| *other != id));
                        ids.push((id, data));
                        naive.push((deadline, data));
                    }
                    Op::Cancel(which) => if !ids.is_empty() {
                        let (id, data) = ids[which % ids.len()];
                        let at = naive.iter().position(|n| n.1 == data);
                        prop_assert_eq!(timers.cancel(id), at.is_some());
                        at.map(|at| naive.remove(at));
                    },
                    Op::Postpone(by) => {
                        timers.postpone(by);
                        naive.iter_mut().for_each(|(deadline, _)| *deadline += by);
                    }
                    Op::Expire(now) => loop {
                        // min_by_key gives the first of equals: the one set first.
                        let at = (0..naive.len()).filter(|&i| naive[i].0 <= now).min_by_key(|&i| naive[i].0);
                        let expected = at.map(|at| naive.remove(at).1);
                        let got = timers.next_expired(now);
                        prop_assert_eq!(got, expected);
                        if got.is_none() {
                            break;
                        }
                    },
                }
                check(&timers);
                prop_assert_eq!(timers.next_deadline(), naive.iter().map(|n| n.0).min());
                prop_assert_eq!(timers.len(), naive.len());
            }
        }
    }

    #[test]
    fn an_old_id_does_not_cancel_the_next_tenant() {
        let mut timers = Timers::new();
        let old = timers.set(1, 10);
        assert_eq!(timers.next_expired(1), Some(10));
        let new = timers.set(2, 20);
        assert_eq!(old.entry, new.entry, "the entry is reused, or this test shows nothing");
        assert!(!timers.cancel(old));
        assert_eq!(timers.next_deadline(), Some(2));
        assert!(timers.cancel(new));
        assert!(timers.is_empty());
    }

    #[test]
    fn a_steady_state_needs_no_more_room() {
        let mut timers = Timers::with_capacity(64);
        let room = (timers.heap.capacity(), timers.slab.capacity());
        let mut ids: Vec<_> = (0..64).map(|i| timers.set(i, i)).collect();
        for i in 0..10_000usize {
            assert!(timers.cancel(ids[i * 7 % 64]));
            ids[i * 7 % 64] = timers.set((i as u64).wrapping_mul(2654435761) % 1000, 0);
        }
        assert_eq!((timers.heap.capacity(), timers.slab.capacity()), room);
    }
}
