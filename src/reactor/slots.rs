//! Places for registered descriptors, and the ready list that is threaded through them.
//!
//! Owns which tokens are alive and what each is ready for. Makes no system call. Called by the reactor only.
//!
//! # Invariant
//! A place is linked into the ready list exactly when it is live and its readiness is not empty. The list is a queue:
//! whoever was served stands behind everybody who was not, so "the first has been served in this turn" means that the
//! turn is over.

use super::token::Token;
use crate::limits::REACTOR_TOKENS_MAX;
use crate::sys::{Interest, Readiness};
use std::os::fd::RawFd;

/// End of a list.
const NIL: u32 = u32::MAX;
const BOTH: Readiness = Readiness::READ.and(Readiness::WRITE);

struct Place {
    generation: u32,
    live: bool,
    /// For debug checks only: the number may be somebody else's once the descriptor is closed.
    fd: RawFd,
    interest: Interest,
    readiness: Readiness,
    /// The turn that last served it.
    served: u64,
    /// Neighbours on the ready list; `next` also links free places.
    prev: u32,
    next: u32,
}

pub(super) struct Slots {
    places: Vec<Place>,
    free: u32,
    live_count: usize,
    /// The ready list's ends.
    first: u32,
    last: u32,
    ready_count: usize,
    turn: u64,
    /// Which live place holds a descriptor number: finds a descriptor that was closed before it was deregistered.
    #[cfg(debug_assertions)]
    holders: std::collections::HashMap<RawFd, u32>,
}

impl Slots {
    pub(super) fn new(capacity: usize) -> Self {
        let capacity = capacity.min(REACTOR_TOKENS_MAX);
        Self {
            places: Vec::with_capacity(capacity),
            free: NIL,
            live_count: 0,
            first: NIL,
            last: NIL,
            ready_count: 0,
            // 0 is "never served".
            turn: 1,
            #[cfg(debug_assertions)]
            holders: std::collections::HashMap::with_capacity(capacity),
        }
    }

    pub(super) fn live_count(&self) -> usize {
        self.live_count
    }

    pub(super) fn ready_count(&self) -> usize {
        self.ready_count
    }

    /// A new token, or `None` when all places are taken.
    pub(super) fn insert(&mut self, fd: RawFd, interest: Interest) -> Option<Token> {
        let index = if self.free != NIL {
            let index = self.free;
            self.free = self.places[index as usize].next;
            index
        } else if self.places.len() < REACTOR_TOKENS_MAX {
            // Generation 1, so that an all-zero data word is nobody's token.
            self.places.push(Place {
                generation: 1,
                live: false,
                fd,
                interest,
                readiness: Readiness::NONE,
                served: 0,
                prev: NIL,
                next: NIL,
            });
            (self.places.len() - 1) as u32
        } else {
            return None;
        };
        let place = &mut self.places[index as usize];
        debug_assert!(!place.live && place.readiness.is_none());
        place.live = true;
        place.fd = fd;
        place.interest = interest;
        place.served = 0;
        place.next = NIL;
        self.live_count += 1;
        Some(Token::new(index, place.generation))
    }

    /// Notes that the kernel accepted `token`'s descriptor as a new one.
    ///
    /// # Panics
    /// In debug builds, when another live token has the same descriptor number: that one was closed too early.
    pub(super) fn note_holder(&mut self, token: Token) {
        #[cfg(debug_assertions)]
        {
            let index = token.index() as u32;
            let fd = self.places[token.index()].fd;
            if let Some(other) = self.holders.insert(fd, index) {
                panic!("descriptor {fd} of place {other} was closed before it was deregistered");
            }
        }
        #[cfg(not(debug_assertions))]
        let _ = token;
    }

    /// Ends a token: off the ready list, and no event with its generation is ever dispatched again.
    pub(super) fn remove(&mut self, token: Token) -> bool {
        let Some(index) = self.find(token) else { return false };
        self.set_readiness(index, Readiness::NONE);
        let place = &mut self.places[index as usize];
        place.live = false;
        place.generation = place.generation.wrapping_add(1);
        place.next = self.free;
        self.free = index;
        self.live_count -= 1;
        #[cfg(debug_assertions)]
        if self.holders.get(&place.fd) == Some(&index) {
            self.holders.remove(&place.fd);
        }
        true
    }

    fn find(&self, token: Token) -> Option<u32> {
        let place = self.places.get(token.index())?;
        (place.live && place.generation == token.generation()).then_some(token.index() as u32)
    }

    pub(super) fn is_live(&self, token: Token) -> bool {
        self.find(token).is_some()
    }

    /// The interest of a live token; `fd` is what the caller says it stands for.
    pub(super) fn interest(&self, token: Token, fd: RawFd) -> Option<Interest> {
        let place = &self.places[self.find(token)? as usize];
        debug_assert_eq!(place.fd, fd, "{token:?} stands for another descriptor");
        Some(place.interest)
    }

    /// Replaces the interest; readiness that it no longer covers leaves the ready list.
    pub(super) fn set_interest(&mut self, token: Token, interest: Interest) {
        if let Some(index) = self.find(token) {
            self.places[index as usize].interest = interest;
            let left = self.places[index as usize].readiness.without(BOTH.without(covered(interest)));
            self.set_readiness(index, left);
        }
    }

    /// Takes an event of the kernel. False: nobody's, dropped.
    pub(super) fn dispatch(&mut self, data: u64, readiness: Readiness) -> bool {
        let Some(index) = self.find(Token::from_data(data)) else { return false };
        let place = &self.places[index as usize];
        // A hang-up reports both directions; one that nobody asked for would never be exhausted.
        let wanted = readiness.without(BOTH.without(covered(place.interest)));
        self.set_readiness(index, place.readiness.and(wanted));
        true
    }

    pub(super) fn make_ready(&mut self, token: Token, readiness: Readiness) {
        if let Some(index) = self.find(token) {
            self.set_readiness(index, self.places[index as usize].readiness.and(readiness));
        }
    }

    pub(super) fn exhausted(&mut self, token: Token, readiness: Readiness) {
        if let Some(index) = self.find(token) {
            self.set_readiness(index, self.places[index as usize].readiness.without(readiness));
        }
    }

    pub(super) fn begin_turn(&mut self) {
        self.turn += 1;
    }

    /// The next token that this turn has not served, and puts it at the end of the list.
    pub(super) fn next_ready(&mut self) -> Option<(Token, Readiness)> {
        let index = self.first;
        if index == NIL || self.places[index as usize].served == self.turn {
            return None;
        }
        self.unlink(index);
        self.link_last(index);
        let place = &mut self.places[index as usize];
        place.served = self.turn;
        Some((Token::new(index, place.generation), place.readiness))
    }

    /// The one place where readiness changes, so that the invariant holds.
    fn set_readiness(&mut self, index: u32, readiness: Readiness) {
        let was_listed = !self.places[index as usize].readiness.is_none();
        self.places[index as usize].readiness = readiness;
        match (was_listed, !readiness.is_none()) {
            (false, true) => {
                self.ready_count += 1;
                self.link_last(index);
            }
            (true, false) => {
                self.ready_count -= 1;
                self.unlink(index);
            }
            _ => {}
        }
    }

    fn link_last(&mut self, index: u32) {
        let last = self.last;
        let place = &mut self.places[index as usize];
        place.prev = last;
        place.next = NIL;
        match last {
            NIL => self.first = index,
            _ => self.places[last as usize].next = index,
        }
        self.last = index;
    }

    fn unlink(&mut self, index: u32) {
        let Place { prev, next, .. } = self.places[index as usize];
        match prev {
            NIL => self.first = next,
            _ => self.places[prev as usize].next = next,
        }
        match next {
            NIL => self.last = prev,
            _ => self.places[next as usize].prev = prev,
        }
        let place = &mut self.places[index as usize];
        place.prev = NIL;
        place.next = NIL;
    }
}

/// What events of this interest can mean. Errors and hang-ups come even unasked, and then either call finds them.
fn covered(interest: Interest) -> Readiness {
    let mut readiness = Readiness::NONE;
    if interest.contains(Interest::READ) {
        readiness = readiness.and(Readiness::READ);
    }
    if interest.contains(Interest::WRITE) {
        readiness = readiness.and(Readiness::WRITE);
    }
    if readiness.is_none() { BOTH } else { readiness }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashSet, VecDeque};

    const BOTH_WAYS: Interest = Interest::READ.and(Interest::WRITE);

    #[derive(Clone, Debug)]
    enum Op {
        Insert,
        Remove(usize),
        Event(usize, u8),
        StaleEvent(usize),
        MakeReady(usize, u8),
        Exhausted(usize, u8),
        Next,
        Turn,
    }

    fn op() -> impl Strategy<Value = Op> {
        let which = 0usize..64;
        prop_oneof![
            3 => Just(Op::Insert),
            1 => which.clone().prop_map(Op::Remove),
            4 => (which.clone(), 1u8..4).prop_map(|(w, r)| Op::Event(w, r)),
            1 => which.clone().prop_map(Op::StaleEvent),
            2 => (which.clone(), 1u8..4).prop_map(|(w, r)| Op::MakeReady(w, r)),
            3 => (which, 1u8..4).prop_map(|(w, r)| Op::Exhausted(w, r)),
            8 => Just(Op::Next),
            3 => Just(Op::Turn),
        ]
    }

    fn readiness(bits: u8) -> Readiness {
        let mut r = Readiness::NONE;
        if bits & 1 != 0 {
            r = r.and(Readiness::READ);
        }
        if bits & 2 != 0 {
            r = r.and(Readiness::WRITE);
        }
        r
    }

    /// The obvious version: a queue of tokens with a set of who was served.
    #[derive(Default)]
    struct Naive {
        live: Vec<Token>,
        dead: Vec<Token>,
        queue: VecDeque<(Token, Readiness)>,
        served: HashSet<Token>,
    }

    impl Naive {
        fn add(&mut self, token: Token, r: Readiness) {
            match self.queue.iter_mut().find(|(t, _)| *t == token) {
                Some((_, old)) => *old = old.and(r),
                None => self.queue.push_back((token, r)),
            }
        }

        fn take(&mut self, token: Token, r: Readiness) {
            if let Some(at) = self.queue.iter().position(|(t, _)| *t == token) {
                self.queue[at].1 = self.queue[at].1.without(r);
                if self.queue[at].1.is_none() {
                    self.queue.remove(at);
                }
            }
        }

        fn next(&mut self) -> Option<(Token, Readiness)> {
            let &(token, r) = self.queue.front()?;
            if !self.served.insert(token) {
                return None;
            }
            self.queue.rotate_left(1);
            Some((token, r))
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_queue(ops in prop::collection::vec(op(), 1..300)) {
            let mut slots = Slots::new(4);
            let mut naive = Naive::default();
            let mut fd = 100;
            for op in ops {
                let pick = |w: usize| (!naive.live.is_empty()).then(|| naive.live[w % naive.live.len()]);
                match op {
                    Op::Insert => {
                        fd += 1;
                        let token = slots.insert(fd, BOTH_WAYS).expect("far below the limit");
                        slots.note_holder(token);
                        prop_assert!(!naive.live.contains(&token) && !naive.dead.contains(&token));
                        naive.live.push(token);
                    }
                    Op::Remove(w) => if let Some(token) = pick(w) {
                        prop_assert!(slots.remove(token));
                        prop_assert!(!slots.remove(token));
                        naive.live.retain(|t| *t != token);
                        naive.queue.retain(|(t, _)| *t != token);
                        naive.dead.push(token);
                    },
                    Op::Event(w, r) => if let Some(token) = pick(w) {
                        prop_assert!(slots.dispatch(token.to_data(), readiness(r)));
                        naive.add(token, readiness(r));
                    },
                    Op::StaleEvent(w) => if !naive.dead.is_empty() {
                        let token = naive.dead[w % naive.dead.len()];
                        prop_assert!(!slots.dispatch(token.to_data(), BOTH));
                        slots.make_ready(token, BOTH);
                        slots.exhausted(token, BOTH);
                    },
                    Op::MakeReady(w, r) => if let Some(token) = pick(w) {
                        slots.make_ready(token, readiness(r));
                        naive.add(token, readiness(r));
                    },
                    Op::Exhausted(w, r) => if let Some(token) = pick(w) {
                        slots.exhausted(token, readiness(r));
                        naive.take(token, readiness(r));
                    },
                    Op::Next => prop_assert_eq!(slots.next_ready(), naive.next()),
                    Op::Turn => {
                        slots.begin_turn();
                        naive.served.clear();
                    }
                }
                prop_assert_eq!(slots.ready_count(), naive.queue.len());
                prop_assert_eq!(slots.live_count(), naive.live.len());
            }
        }
    }

    #[test]
    fn the_generation_wraps_without_meeting_itself() {
        let mut slots = Slots::new(1);
        let first = slots.insert(3, BOTH_WAYS).expect("empty");
        slots.places[first.index()].generation = u32::MAX;
        let old = Token::new(first.index() as u32, u32::MAX);
        assert!(slots.remove(old));
        let new = slots.insert(3, BOTH_WAYS).expect("one free");
        assert_eq!((new.index(), new.generation()), (old.index(), 0));
        assert!(!slots.dispatch(old.to_data(), BOTH));
    }

    #[test]
    fn a_free_place_takes_no_event_even_with_its_own_generation() {
        let mut slots = Slots::new(1);
        let token = slots.insert(3, BOTH_WAYS).expect("empty");
        slots.remove(token);
        assert!(!slots.dispatch(Token::new(0, token.generation() + 1).to_data(), BOTH));
        assert!(!slots.dispatch(0, BOTH));
        assert_eq!(slots.ready_count(), 0);
    }

    #[test]
    fn a_hang_up_reports_only_what_somebody_exhausts() {
        let mut slots = Slots::new(2);
        let reader = slots.insert(3, Interest::READ).expect("empty");
        let idle = slots.insert(4, Interest::NONE).expect("empty");
        slots.dispatch(reader.to_data(), BOTH);
        slots.dispatch(idle.to_data(), BOTH);
        assert_eq!(slots.next_ready(), Some((reader, Readiness::READ)));
        assert_eq!(slots.next_ready(), Some((idle, BOTH)));
        slots.exhausted(reader, Readiness::READ);
        assert_eq!(slots.ready_count(), 1);
    }

    #[test]
    fn an_interest_that_ends_takes_its_readiness_along() {
        let mut slots = Slots::new(1);
        let token = slots.insert(3, BOTH_WAYS).expect("empty");
        slots.dispatch(token.to_data(), BOTH);
        slots.set_interest(token, Interest::WRITE);
        assert_eq!(slots.next_ready(), Some((token, Readiness::WRITE)));
    }
}
