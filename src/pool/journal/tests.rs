//! The journal against a list: what is live is intact, what is freed is free, and no room leaks.

use super::*;
use crate::pool::table::JobIndex;
use crate::sys::Linux;
use proptest::prelude::*;
use std::collections::VecDeque;

/// Small, so that both rings wrap many times.
const BYTES: usize = 4096;
const ENTRIES: usize = 16;

/// One entry as it should be. `None`: void.
#[derive(Clone, Debug)]
struct Item {
    live: Option<Live>,
    /// Bytes that it keeps from being freed.
    size: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Live {
    job: JobIndex,
    id: u64,
    estimate_ns: u32,
    state: State,
    bytes: Vec<u8>,
}

impl Live {
    fn entering(&self) -> Entering {
        let label = Label { tag: 1, job: self.job, generation: 2, handler: 3, batch: 4 };
        Entering {
            label,
            id: self.id,
            estimate_ns: self.estimate_ns,
            timed: self.job.0.is_multiple_of(2),
            bound: false,
        }
    }
}

struct Pair {
    journal: Journal,
    /// Entries from the head to the tail.
    items: VecDeque<Item>,
    head: Position,
    next_job: u32,
}

impl Pair {
    fn new() -> Self {
        let journal = Journal::create(&Linux, BYTES, ENTRIES).unwrap();
        Self { journal, items: VecDeque::new(), head: 0, next_job: 0 }
    }

    fn used(&self) -> usize {
        self.items.iter().map(|item| item.size).sum()
    }

    fn fits(&self, size: usize) -> bool {
        self.items.len() < ENTRIES && self.used() + size <= BYTES
    }

    fn live(&mut self, bytes: Vec<u8>) -> Live {
        self.next_job += 1;
        let n = self.next_job;
        Live { job: JobIndex(n), id: u64::from(n) << 32 | 7, estimate_ns: n * 3, state: State::Live, bytes }
    }

    fn append(&mut self, size: usize) {
        assert_eq!(self.journal.has_room(size), self.fits(size));
        if !self.fits(size) {
            return;
        }
        let bytes = (0..size).map(|i| (i as u8).wrapping_mul(11).wrapping_add(self.next_job as u8)).collect();
        let live = self.live(bytes);
        let (position, room) = self.journal.append(live.entering(), size);
        room.copy_from_slice(&live.bytes);
        assert_eq!(position, self.head + self.items.len() as u64);
        self.items.push_back(Item { live: Some(live), size });
    }

    /// The index of some entry that is not void.
    fn pick(&self, which: usize) -> Option<usize> {
        let picks: Vec<usize> = (0..self.items.len()).filter(|&i| self.items[i].live.is_some()).collect();
        (!picks.is_empty()).then(|| picks[which % picks.len()])
    }

    fn append_copy(&mut self, which: usize) {
        let Some(i) = self.pick(which) else { return };
        let Some(Live { bytes, .. }) = self.items[i].live.clone() else { return };
        let size = bytes.len();
        assert_eq!(self.journal.has_room(size), self.fits(size));
        if !self.fits(size) {
            return;
        }
        let live = self.live(bytes);
        let position = self.journal.append_copy(self.head + i as u64, live.entering());
        assert_eq!(position, self.head + self.items.len() as u64);
        self.items.push_back(Item { live: Some(live), size });
    }

    fn take_back(&mut self, which: usize) {
        let Some(i) = self.pick(which) else { return };
        self.journal.entry_mut(self.head + i as u64).state = State::TakenBack;
        self.items[i].live.as_mut().unwrap().state = State::TakenBack;
    }

    fn rewrite(&mut self, which: usize) {
        let Some(i) = self.pick(which) else { return };
        let bytes = &mut self.items[i].live.as_mut().unwrap().bytes;
        bytes.iter_mut().for_each(|b| *b = !*b);
        self.journal.frame_mut(self.head + i as u64).copy_from_slice(bytes);
    }

    fn void(&mut self, which: usize) {
        let Some(i) = self.pick(which) else { return };
        self.journal.void(self.head + i as u64);
        self.items[i].live = None;
        while self.items.front().is_some_and(|item| item.live.is_none()) {
            self.items.pop_front();
            self.head += 1;
        }
    }

    fn retire_head(&mut self) {
        if self.items.is_empty() {
            return;
        }
        let mut first = self.items.pop_front().unwrap();
        let void = self.items.iter().take_while(|item| item.live.is_none()).count();
        self.items.drain(..void);
        self.head += void as u64;
        first.live.as_mut().unwrap().bytes.clear();
        first.size = 0;
        self.items.push_front(first);
        assert_eq!(self.journal.retire_head(), self.head);
    }

    fn check(&self) {
        let j = &self.journal;
        assert_eq!((j.head(), j.tail()), (self.head, self.head + self.items.len() as u64));
        assert_eq!(j.bytes.used(), self.used(), "no room leaks");
        for size in [0, 8, BYTES - self.used(), BYTES - self.used() + 8, BYTES] {
            assert_eq!(j.has_room(size), self.fits(size));
        }
        let mut next_live = j.tail();
        for (i, item) in self.items.iter().enumerate().rev() {
            let position = self.head + i as u64;
            let e = j.entry(position);
            match &item.live {
                None => assert_eq!(e.state, State::Void),
                Some(live) => {
                    let is = Live {
                        job: e.label.job,
                        id: e.id,
                        estimate_ns: e.estimate_ns,
                        state: e.state,
                        bytes: j.frame(position).to_vec(),
                    };
                    assert_eq!(&is, live);
                    if live.state == State::Live {
                        next_live = position;
                    }
                }
            }
            assert_eq!(j.next_live(position), next_live);
        }
        // Entries in a row whose bytes are all there are one run.
        let whole: Vec<&Live> = self.items.iter().map_while(|item| item.live.as_ref()).collect();
        if !whole.is_empty() {
            let bytes: Vec<u8> = whole.iter().flat_map(|live| live.bytes.clone()).collect();
            assert_eq!(j.run(self.head, bytes.len()), bytes);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    AppendCopy(usize),
    TakeBack(usize),
    Rewrite(usize),
    Void(usize),
    RetireHead,
}

fn any_step() -> impl Strategy<Value = Step> {
    let units = prop_oneof![4 => 0usize..20, 1 => 0usize..=BYTES / 8 + 1];
    prop_oneof![
        5 => units.prop_map(|units| Step::Append(units * 8)),
        1 => any::<usize>().prop_map(Step::AppendCopy),
        1 => any::<usize>().prop_map(Step::TakeBack),
        1 => any::<usize>().prop_map(Step::Rewrite),
        5 => any::<usize>().prop_map(Step::Void),
        1 => Just(Step::RetireHead),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_list(steps in prop::collection::vec(any_step(), 1..150), order in any::<usize>()) {
        let mut pair = Pair::new();
        for step in steps {
            match step {
                Step::Append(size) => pair.append(size),
                Step::AppendCopy(which) => pair.append_copy(which),
                Step::TakeBack(which) => pair.take_back(which),
                Step::Rewrite(which) => pair.rewrite(which),
                Step::Void(which) => pair.void(which),
                Step::RetireHead => pair.retire_head(),
            }
            pair.check();
        }
        // Voided in any order, everything is free again.
        while !pair.items.is_empty() {
            pair.void(order);
            pair.check();
        }
        prop_assert_eq!(pair.journal.head(), pair.journal.tail());
        prop_assert!(pair.journal.has_room(BYTES) && pair.journal.bytes.used() == 0);
        // Both rings can be filled to the last place.
        pair.append(BYTES);
        pair.void(0);
        (0..ENTRIES).for_each(|_| pair.append(BYTES / ENTRIES));
        prop_assert_eq!((pair.items.len(), pair.used()), (ENTRIES, BYTES));
        pair.check();
    }
}

/// One slow job at the head, later ones settled as they come: retiring it keeps the slot useful for ever.
#[test]
fn a_slow_head_stops_nobody() {
    let mut pair = Pair::new();
    pair.append(64);
    for _ in 0..10 * ENTRIES * BYTES / 512 {
        if !pair.journal.has_room(512) {
            pair.retire_head();
        }
        pair.append(512);
        pair.void(1);
        pair.check();
    }
    assert_eq!(pair.journal.entry(pair.head).label.job, JobIndex(1), "still the first job");
}
