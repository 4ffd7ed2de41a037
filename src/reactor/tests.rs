//! The reactor on real descriptors, and on a kernel that does what the test says.

use super::*;
use crate::sys::{Fault, Faulty, PollFd, Received, Sent, Wait};
use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex, PoisonError};

const SECOND: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;

/// As `std::cell::Cell`, but it may move to another thread, as a [`Sys`] must.
#[derive(Default)]
struct Cell<T>(Mutex<T>);

impl<T: Copy + Default> Cell<T> {
    fn get(&self) -> T {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, value: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }

    fn take(&self) -> T {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The real kernel, which can be told to lose waits, to add events, and which clock to show; and which counts.
#[derive(Clone, Default)]
struct Scripted(Arc<Script>);

#[derive(Default)]
struct Script {
    now_ns: Cell<Option<u64>>,
    lose_waits: Cell<u32>,
    add_event: Cell<Option<(u64, Readiness)>>,
    /// Answer at once instead of sleeping; the timeout that was asked for is in `timeout_ns`.
    no_sleep: Cell<bool>,
    timeout_ns: Cell<Option<u64>>,
    rings: Cell<u32>,
    clears: Cell<u32>,
    timer_sets: Cell<u32>,
}

impl Script {
    fn calls(&self) -> (u32, u32, u32) {
        (self.rings.get(), self.clears.get(), self.timer_sets.get())
    }
}

impl Sys for Scripted {
    fn now_ns(&self) -> u64 {
        self.0.now_ns.get().unwrap_or_else(|| Linux.now_ns())
    }

    fn epoll_wait(&self, epoll: BorrowedFd<'_>, events: &mut EventBuffer, timeout_ns: Option<u64>) -> OsResult<()> {
        self.0.timeout_ns.set(timeout_ns);
        Linux.epoll_wait(epoll, events, if self.0.no_sleep.get() { Some(0) } else { timeout_ns })?;
        if self.0.lose_waits.get() > 0 {
            self.0.lose_waits.set(self.0.lose_waits.get() - 1);
            events.clear();
        }
        if let Some((data, readiness)) = self.0.add_event.take() {
            events.inject(data, readiness);
        }
        Ok(())
    }

    fn eventfd_ring(&self, fd: BorrowedFd<'_>) -> OsResult<()> {
        self.0.rings.set(self.0.rings.get() + 1);
        Linux.eventfd_ring(fd)
    }

    fn counter_clear(&self, fd: BorrowedFd<'_>) -> OsResult<()> {
        self.0.clears.set(self.0.clears.get() + 1);
        Linux.counter_clear(fd)
    }

    fn timerfd_set(&self, fd: BorrowedFd<'_>, deadline_ns: Option<u64>) -> OsResult<()> {
        self.0.timer_sets.set(self.0.timer_sets.get() + 1);
        Linux.timerfd_set(fd, deadline_ns)
    }
}

fn scripted() -> (Scripted, Reactor<Scripted>) {
    let sys = Scripted::default();
    let reactor = Reactor::with_sys(sys.clone(), 8).expect("epoll");
    (sys, reactor)
}

fn pair() -> (OwnedFd, OwnedFd) {
    Linux.socketpair().expect("socketpair")
}

fn send(fd: &OwnedFd, bytes: &[u8]) {
    assert_eq!(Linux.send(fd.as_fd(), &[IoSlice::new(bytes)], Wait::Never), Ok(Sent::All));
}

/// One packet, or `None` at would-block.
fn recv(fd: &OwnedFd) -> Option<usize> {
    let mut buffer = [0; 64];
    match Linux.recv(fd.as_fd(), &mut [IoSliceMut::new(&mut buffer)], Wait::Never).expect("recv") {
        Received::Packet(size) => Some(size),
        Received::WouldBlock => None,
        other => panic!("{other:?}"),
    }
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    Linux.poll(&mut [PollFd::new(fd, Interest::READ)], Some(0)).expect("poll") == 1
}

/// A foreign loop that watches one descriptor edge-triggered, as tokio's `AsyncFd` does.
struct Outer(OwnedFd, EventBuffer);

impl Outer {
    fn watch(fd: BorrowedFd<'_>) -> Self {
        let epoll = Linux.epoll_create().expect("epoll");
        Linux.epoll_add(epoll.as_fd(), fd, Interest::READ, 0).expect("nested epoll");
        Self(epoll, EventBuffer::new(4))
    }

    fn edge(&mut self, timeout_ns: u64) -> bool {
        Linux.epoll_wait(self.0.as_fd(), &mut self.1, Some(timeout_ns)).expect("wait");
        !self.1.is_empty()
    }
}

#[test]
fn an_edge_stays_ready_until_exhausted() {
    let (sys, mut reactor) = scripted();
    let (a, b) = pair();
    let token = reactor.register(a.as_fd(), Interest::READ).expect("register");
    send(&b, b"1");
    send(&b, b"2");
    reactor.wait(Some(SECOND)).expect("wait");
    assert_eq!(reactor.next_ready(), Some((token, Readiness::READ)));
    assert_eq!(reactor.next_ready(), None, "once a turn");
    assert_eq!(recv(&a), Some(1));

    // The kernel has nothing new to say, yet the second packet is not forgotten, and no wait sleeps over it.
    reactor.wait(Some(SECOND)).expect("wait");
    assert_eq!(sys.0.timeout_ns.get(), Some(0));
    assert_eq!(reactor.next_ready(), Some((token, Readiness::READ)));
    assert_eq!(recv(&a), Some(1));
    assert_eq!(recv(&a), None);
    reactor.exhausted(token, Readiness::READ);

    reactor.wait(Some(MS)).expect("wait");
    assert_eq!(sys.0.timeout_ns.get(), Some(MS));
    assert_eq!(reactor.next_ready(), None);
    assert_eq!(reactor.stats().sleeps, 2);
    reactor.deregister(token, a.as_fd()).expect("deregister");
}

/// Row 27: closed and reused within one batch.
#[test]
fn a_stale_event_never_reaches_the_next_tenant() {
    let (sys, mut reactor) = scripted();
    let (killer, killer_far) = pair();
    let (victim, victim_far) = pair();
    let first = reactor.register(killer.as_fd(), Interest::READ).expect("register");
    let old = reactor.register(victim.as_fd(), Interest::READ).expect("register");
    send(&killer_far, b"x");
    send(&victim_far, b"x");
    reactor.wait(Some(SECOND)).expect("wait");
    assert_eq!(reactor.ready_count(), 2, "both in one batch");
    assert_eq!(reactor.next_ready().map(|(token, _)| token), Some(first));

    // Handling the first closes the second, and a new descriptor takes its number and its place.
    let number = victim.as_raw_fd();
    reactor.deregister(old, victim.as_fd()).expect("deregister");
    drop(victim);
    // Other tests open descriptors at the same time, so the number is asked for again until it comes.
    let mut others = Vec::new();
    let tenant = loop {
        let (a, b) = pair();
        if a.as_raw_fd() == number || others.len() > 64 {
            others.push(b);
            break a;
        }
        others.extend([a, b]);
    };
    let new = reactor.register(tenant.as_fd(), Interest::READ).expect("register");
    assert_eq!(new.index(), old.index(), "the place is reused, or this test shows nothing");
    assert_ne!(new, old);
    assert_eq!(reactor.next_ready(), None, "the batch held an event for the dead one");

    // The same from the kernel's side, in a later batch.
    sys.0.add_event.set(Some((old.to_data(), Readiness::READ)));
    reactor.exhausted(first, Readiness::READ);
    reactor.wait(Some(0)).expect("wait");
    assert_eq!(reactor.next_ready(), None);
    assert_eq!(reactor.stats().stale_events, 1);

    // And the dead token opens no door.
    reactor.make_ready(old, Readiness::READ);
    assert!(!reactor.has_ready() && !reactor.is_live(old) && reactor.is_live(new));
    assert_eq!(reactor.modify(old, tenant.as_fd(), Interest::NONE), Err(NOT_REGISTERED));
    assert_eq!(reactor.rearm(old, tenant.as_fd()), Err(NOT_REGISTERED));
    assert_eq!(reactor.deregister(old, tenant.as_fd()), Err(NOT_REGISTERED));

    send(others.last().expect("its other end"), b"x");
    reactor.wait(Some(SECOND)).expect("wait");
    assert_eq!(reactor.next_ready(), Some((new, Readiness::READ)), "the new tenant is watched all the same");
}

#[test]
fn an_event_for_nobody_is_counted_and_dropped() {
    let (sys, mut reactor) = scripted();
    for data in [0, 1 << 32, u64::MAX, Token::new(5, 1).to_data()] {
        sys.0.add_event.set(Some((data, Readiness::READ)));
        reactor.wait(Some(0)).expect("wait");
    }
    assert_eq!((reactor.has_ready(), reactor.stats().stale_events, reactor.stats().events), (false, 4, 0));
}

#[test]
fn after_deregister_the_kernel_is_silent_even_while_a_copy_is_open() {
    let mut reactor = Reactor::new().expect("epoll");
    let (a, b) = pair();
    let token = reactor.register(a.as_fd(), Interest::READ).expect("register");
    let copy = a.try_clone().expect("dup");
    reactor.deregister(token, a.as_fd()).expect("deregister");
    drop(a);
    send(&b, b"x");
    reactor.wait(Some(0)).expect("wait");
    assert_eq!((reactor.stats().stale_events, reactor.has_ready()), (0, false));
    drop(copy);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "was closed before it was deregistered")]
fn closing_before_deregistering_is_found_in_debug_builds() {
    let mut reactor = Reactor::new().expect("epoll");
    let mut kept = Vec::new();
    // Other tests may snatch the number; one of many tries meets it.
    for _ in 0..1000 {
        let (a, b) = pair();
        reactor.register(a.as_fd(), Interest::READ).expect("register");
        kept.push(b);
        drop(a);
    }
}

#[test]
fn registering_twice_is_refused_and_leaves_the_first_alone() {
    let mut reactor = Reactor::new().expect("epoll");
    let (a, b) = pair();
    let token = reactor.register(a.as_fd(), Interest::READ).expect("register");
    assert_eq!(reactor.register(a.as_fd(), Interest::READ), Err(OsError { call: "epoll_ctl", errno: 17 }));
    assert_eq!(reactor.registered_count(), 1);
    send(&b, b"x");
    reactor.wait(Some(SECOND)).expect("wait");
    assert_eq!(reactor.next_ready(), Some((token, Readiness::READ)));
}

#[test]
fn modify_rearms_and_replaces_the_interest() {
    let mut reactor = Reactor::new().expect("epoll");
    let (a, b) = pair();
    let token = reactor.register(a.as_fd(), Interest::READ).expect("register");
    send(&b, b"x");
    reactor.wait(Some(SECOND)).expect("wait");
    reactor.modify(token, a.as_fd(), Interest::WRITE).expect("modify");
    assert!(!reactor.has_ready(), "nobody asked for input any more");
    reactor.wait(Some(SECOND)).expect("wait");
    assert_eq!(reactor.next_ready(), Some((token, Readiness::WRITE)));
    reactor.exhausted(token, Readiness::WRITE);
    reactor.modify(token, a.as_fd(), Interest::READ.and(Interest::WRITE)).expect("modify");
    reactor.wait(Some(SECOND)).expect("wait");
    assert_eq!(reactor.next_ready(), Some((token, Readiness::READ.and(Readiness::WRITE))));
}

/// Row 28: stopping at the budget starves nobody and loses nothing.
#[test]
fn a_budget_shares_the_turn_and_stalls_nobody() {
    const BUDGET: u32 = 3;
    let mut reactor = Reactor::new().expect("epoll");
    reactor.set_budget(NonZeroU32::new(BUDGET).expect("not zero"));
    // One peer floods, three send a little. Everything is there before the first wait: one edge each, no more.
    let loads = [9usize, 1, 2, 1];
    let sockets: Vec<_> = loads
        .iter()
        .map(|&load| {
            let (a, b) = pair();
            (0..load).for_each(|_| send(&b, b"x"));
            let token = reactor.register(a.as_fd(), Interest::READ).expect("register");
            (a, b, token)
        })
        .collect();
    let mut got = [0usize; 4];
    for turn in 1..=4 {
        reactor.wait(Some(0)).expect("wait");
        let mut served = Vec::new();
        while let Some((token, _)) = reactor.next_ready() {
            let who = sockets.iter().position(|s| s.2 == token).expect("a known token");
            assert!(!served.contains(&who), "{who} twice in turn {turn}");
            served.push(who);
            for part in 0.. {
                if part == reactor.budget() {
                    break;
                }
                match recv(&sockets[who].0) {
                    Some(_) => got[who] += 1,
                    None => {
                        reactor.exhausted(token, Readiness::READ);
                        break;
                    }
                }
            }
        }
        let expected: Vec<_> = loads.iter().map(|&load| load.min(turn * BUDGET as usize)).collect();
        assert_eq!(&got[..], expected, "turn {turn}");
        assert_eq!(served.len(), if turn == 1 { 4 } else { 1 });
    }
    assert!(!reactor.has_ready());
    assert_eq!(reactor.stats().events, 4, "all from one edge each");
}

#[test]
fn an_owner_that_stops_early_goes_on_where_it_stopped() {
    let mut reactor = Reactor::new().expect("epoll");
    let sockets: Vec<_> = (0..4).map(|_| pair()).collect();
    let tokens: Vec<_> =
        sockets.iter().map(|(a, _)| reactor.register(a.as_fd(), Interest::READ).expect("register")).collect();
    tokens.iter().for_each(|&token| reactor.make_ready(token, Readiness::READ));
    let mut order = Vec::new();
    for _ in 0..8 {
        reactor.wait(Some(SECOND)).expect("wait");
        order.push(reactor.next_ready().expect("all stay ready").0);
    }
    assert_eq!(order, [&tokens[..], &tokens[..]].concat());
}

#[test]
fn waits_end_at_the_next_timer() {
    let (sys, mut reactor) = scripted();
    sys.0.no_sleep.set(true);
    sys.0.now_ns.set(Some(1000));
    let asked = |reactor: &mut Reactor<Scripted>, timeout| {
        reactor.wait(timeout).expect("wait");
        sys.0.timeout_ns.get()
    };
    assert_eq!(asked(&mut reactor, None), None);
    let late = reactor.set_timer(5000, 5);
    assert_eq!(asked(&mut reactor, None), Some(4000));
    assert_eq!(asked(&mut reactor, Some(300)), Some(300));
    assert_eq!(asked(&mut reactor, Some(9000)), Some(4000));
    reactor.set_timer(1500, 1);
    assert_eq!(asked(&mut reactor, None), Some(500));
    sys.0.now_ns.set(Some(1501));
    assert_eq!(asked(&mut reactor, None), Some(0), "one is overdue");
    assert_eq!(reactor.next_expired(1501), Some(1));
    assert_eq!(reactor.next_expired(1501), None);
    assert!(reactor.cancel_timer(late) && !reactor.cancel_timer(late));
    assert_eq!(asked(&mut reactor, None), None);
}

#[test]
fn a_timer_really_ends_a_sleep_and_never_early() {
    let mut reactor = Reactor::new().expect("epoll");
    let deadline_ns = reactor.now_ns() + 3 * MS;
    reactor.set_timer(deadline_ns, 7);
    let expired = loop {
        reactor.wait(Some(10 * SECOND)).expect("wait");
        if let Some(data) = reactor.next_expired(reactor.now_ns()) {
            break data;
        }
    };
    assert_eq!(expired, 7);
    let now_ns = reactor.now_ns();
    assert!((deadline_ns..deadline_ns + 5 * SECOND).contains(&now_ns));
}

#[test]
fn a_lost_edge_comes_back_by_rearming() {
    let (sys, mut reactor) = scripted();
    let (a, b) = pair();
    let token = reactor.register(a.as_fd(), Interest::READ).expect("register");
    send(&b, b"x");
    sys.0.lose_waits.set(1);
    reactor.wait(Some(SECOND)).expect("wait");
    reactor.wait(Some(MS)).expect("wait");
    assert!(!reactor.has_ready(), "the edge is really lost, or this test shows nothing");
    reactor.rearm(token, a.as_fd()).expect("rearm");
    reactor.wait(Some(SECOND)).expect("wait");
    assert_eq!(reactor.next_ready(), Some((token, Readiness::READ)));
}

/// Every packet arrives, whatever the kernel says or keeps to itself, when idle tokens are re-armed.
#[test]
fn a_lying_kernel_costs_time_and_nothing_else() {
    let fault = Fault { lost_events: 3, spurious_event: 3, stale_event: 3, interrupted_wait: 5, ..Fault::default() };
    for seed in 0..20 {
        let sys = Faulty::new(seed, fault);
        let mut reactor = Reactor::with_sys(sys.clone(), 4).expect("epoll");
        let mut sockets: Vec<_> = (0..4)
            .map(|_| {
                let (a, b) = pair();
                let token = reactor.register(a.as_fd(), Interest::READ).expect("register");
                (a, b, token)
            })
            .collect();
        let (mut sent, mut got) = (0, 0);
        for turn in 0..4000 {
            if sent < 400 {
                send(&sockets[turn * 7 % 4].1, b"x");
                sent += 1;
            } else if got == sent {
                break;
            }
            reactor.wait(Some(1000)).expect("wait");
            if !reactor.has_ready() {
                for (a, _, token) in &sockets {
                    reactor.rearm(*token, a.as_fd()).expect("rearm");
                }
            }
            while let Some((token, _)) = reactor.next_ready() {
                let (a, _, _) = sockets.iter().find(|s| s.2 == token).expect("only live tokens are dispatched");
                match recv(a) {
                    Some(_) => got += 1,
                    None => reactor.exhausted(token, Readiness::READ),
                }
            }
            // Now and then a descriptor is replaced, so that stale events have somebody to hit.
            if turn % 50 == 49 {
                let (a, b, token) = sockets.swap_remove(turn / 50 % 4);
                while recv(&a).is_some() {
                    got += 1;
                }
                reactor.deregister(token, a.as_fd()).expect("deregister");
                drop((a, b));
                let (a, b) = pair();
                let token = reactor.register(a.as_fd(), Interest::READ).expect("register");
                sockets.push((a, b, token));
            }
        }
        assert_eq!((sent, got), (400, 400), "seed {seed}");
        assert!(sys.injected() > 50, "seed {seed}: {} faults", sys.injected());
        assert!(reactor.stats().stale_events > 0, "seed {seed}");
    }
}

#[test]
fn without_exposure_settling_calls_nothing() {
    let (sys, mut reactor) = scripted();
    reactor.set_timer(1, 1);
    reactor.settle(true).expect("settle");
    reactor.make_exposable().expect("descriptors");
    reactor.settle(true).expect("settle");
    assert_eq!(sys.0.calls(), (0, 0, 0));
    assert!(!reactor.is_exposed());
}

/// `probes/nest.c`: what is left on the ready list is invisible from outside, but for the doorbell.
#[test]
fn work_left_is_visible_to_an_outer_level_triggered_loop() {
    let (sys, mut reactor) = scripted();
    let (a, b) = pair();
    let token = reactor.register(a.as_fd(), Interest::READ).expect("register");
    assert!(readable(reactor.expose().expect("expose")), "the first turn is always asked for");
    reactor.wait(Some(0)).expect("wait");
    reactor.settle(false).expect("settle");
    assert!(!readable(reactor.as_fd()), "nothing to do");

    send(&b, b"1");
    send(&b, b"2");
    assert!(readable(reactor.as_fd()));
    reactor.wait(Some(0)).expect("wait");
    assert_eq!(recv(&a), Some(1));
    assert!(!readable(reactor.as_fd()), "the kernel hides what was taken, or this test shows nothing");
    reactor.settle(false).expect("settle");
    assert!(readable(reactor.as_fd()), "a ready token rings");

    reactor.wait(Some(0)).expect("wait");
    assert_eq!((recv(&a), recv(&a)), (Some(1), None));
    reactor.exhausted(token, Readiness::READ);
    reactor.settle(true).expect("settle");
    assert!(readable(reactor.as_fd()), "the owner's own work rings");
    reactor.wait(Some(0)).expect("wait");
    assert!(readable(reactor.as_fd()), "and goes on, should a turn fail before it settles");
    reactor.settle(false).expect("settle");
    assert!(!readable(reactor.as_fd()));

    let calls = sys.0.calls();
    reactor.settle(false).expect("settle");
    assert_eq!(sys.0.calls(), calls, "nothing changed, nothing called");
    assert_eq!((reactor.stats().events, reactor.stats().stale_events), (1, 0), "the doorbell is no event");
}

#[test]
fn work_left_makes_a_new_edge_each_time() {
    let (_, mut reactor) = scripted();
    let mut outer = Outer::watch(reactor.expose().expect("expose"));
    assert!(outer.edge(0), "the first turn is always asked for");
    for _ in 0..3 {
        reactor.wait(Some(0)).expect("wait");
        assert!(!outer.edge(0), "a doorbell that is still set is no news, or this test shows nothing");
        reactor.settle(true).expect("settle");
        assert!(outer.edge(0));
    }
    reactor.wait(Some(0)).expect("wait");
    reactor.settle(false).expect("settle");
    assert!(!outer.edge(0));
}

#[test]
fn events_that_did_not_fit_the_batch_make_an_edge() {
    let (_, mut reactor) = scripted();
    let mut outer = Outer::watch(reactor.expose().expect("expose"));
    reactor.wait(Some(0)).expect("wait");
    reactor.settle(false).expect("settle");
    let sockets: Vec<_> = (0..REACTOR_EVENTS_PER_WAIT / 2 + 1).map(|_| pair()).collect();
    for (a, b) in &sockets {
        reactor.register(a.as_fd(), Interest::WRITE).expect("register");
        reactor.register(b.as_fd(), Interest::WRITE).expect("register");
    }
    outer.edge(0);
    reactor.wait(Some(0)).expect("wait");
    let mut seen = 0;
    while let Some((token, readiness)) = reactor.next_ready() {
        reactor.exhausted(token, readiness);
        seen += 1;
    }
    assert_eq!(seen, REACTOR_EVENTS_PER_WAIT, "a full batch, or this test shows nothing");
    reactor.settle(false).expect("settle");
    assert!(outer.edge(0));
    reactor.wait(Some(0)).expect("wait");
    assert_eq!(reactor.ready_count(), 2);
}

#[test]
fn timers_wake_an_outer_loop_of_either_kind() {
    let (sys, mut reactor) = scripted();
    let mut outer = Outer::watch(reactor.expose().expect("expose"));
    outer.edge(0);
    reactor.wait(Some(0)).expect("wait");
    reactor.set_timer(reactor.now_ns() + 2 * MS, 1);
    reactor.set_timer(reactor.now_ns() + 4 * MS, 2);
    reactor.settle(false).expect("settle");
    assert_eq!(sys.0.timer_sets.get(), 1);
    reactor.settle(false).expect("settle");
    for data in [1, 2] {
        assert!(outer.edge(5 * SECOND), "an edge for timer {data}");
        assert!(readable(reactor.as_fd()));
        reactor.wait(Some(0)).expect("wait");
        let now_ns = reactor.now_ns();
        assert_eq!(reactor.next_expired(now_ns), Some(data));
        reactor.settle(false).expect("settle");
        if reactor.next_deadline().is_some() {
            continue;
        }
        assert!(!readable(reactor.as_fd()), "an expired timer falls silent");
    }
    assert!(!outer.edge(0));
}

#[test]
fn a_due_timer_that_is_left_makes_a_new_edge() {
    let (_, mut reactor) = scripted();
    let mut outer = Outer::watch(reactor.expose().expect("expose"));
    outer.edge(0);
    reactor.wait(Some(0)).expect("wait");
    reactor.set_timer(1, 1);
    for _ in 0..3 {
        reactor.settle(false).expect("settle");
        assert!(outer.edge(5 * SECOND));
        reactor.wait(Some(0)).expect("wait");
        assert!(!outer.edge(0), "still readable is no news, or this test shows nothing");
    }
}

#[test]
fn the_timer_descriptor_is_set_only_when_it_must_be() {
    let (sys, mut reactor) = scripted();
    reactor.expose().expect("expose");
    let far = reactor.now_ns() + 1000 * SECOND;
    let sets = |reactor: &mut Reactor<Scripted>| {
        let before = sys.0.timer_sets.get();
        reactor.settle(false).expect("settle");
        sys.0.timer_sets.get() - before
    };
    assert_eq!(sets(&mut reactor), 0);
    let early = reactor.set_timer(far, 1);
    reactor.set_timer(far + 5, 2);
    assert_eq!(sets(&mut reactor), 1);
    assert_eq!(sets(&mut reactor), 0);
    reactor.cancel_timer(early);
    assert_eq!(sets(&mut reactor), 0, "set too early is good enough");
    reactor.set_timer(far + 1, 3);
    assert_eq!(sets(&mut reactor), 0);
    reactor.set_timer(far - 1, 4);
    assert_eq!(sets(&mut reactor), 1, "set too late is not");
}

#[test]
fn an_exposed_reactor_still_sleeps_in_its_own_waits() {
    let (sys, mut reactor) = scripted();
    reactor.expose().expect("expose");
    reactor.set_timer(1, 1);
    reactor.settle(true).expect("settle");
    assert!(readable(reactor.as_fd()));
    let now_ns = reactor.now_ns();
    assert_eq!(reactor.next_expired(now_ns), Some(1));
    // Doorbell and timer descriptor are both set now; neither may keep a sleep of our own awake.
    let before = Linux.now_ns();
    reactor.wait(Some(2 * MS)).expect("wait");
    assert!(Linux.now_ns() - before >= 2 * MS);
    assert_eq!(sys.0.timeout_ns.get(), Some(2 * MS));
    reactor.settle(true).expect("settle");
    assert!(readable(reactor.as_fd()), "and the doorbell can be rung again");
}

#[test]
fn exposing_short_of_descriptors_can_be_tried_again() {
    let sys = Faulty::new(3, Fault { no_descriptor: 2, ..Fault::default() });
    let mut failures = 0;
    for _ in 0..50 {
        let mut reactor = Reactor::with_sys(sys.clone(), 0).expect("epoll");
        while let Err(error) = reactor.expose() {
            assert!(error.is_shortage(), "{error}");
            failures += 1;
        }
        assert!(readable(reactor.as_fd()));
    }
    assert!(failures > 0);
}

#[test]
fn registrations_in_a_steady_state_take_turns_in_the_same_places() {
    let mut reactor = Reactor::with_sys(Linux, 2).expect("epoll");
    let (a, b) = pair();
    for _ in 0..100 {
        let one = reactor.register(a.as_fd(), Interest::READ).expect("register");
        let two = reactor.register(b.as_fd(), Interest::READ).expect("register");
        assert!(one.index() < 2 && two.index() < 2);
        reactor.deregister(one, a.as_fd()).expect("deregister");
        reactor.deregister(two, b.as_fd()).expect("deregister");
    }
    assert_eq!(reactor.registered_count(), 0);
}
