//! The reactor beside bare `epoll_wait` and `recv`: one byte comes on each of many sockets, and each is taken.
//!
//! What is measured begins when all bytes are there. Edge-triggered, a socket is read until it says would-block; the limit
//! is the cheapest that is right without that: level-triggered, one receive for each event.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use seqpool::reactor::Reactor;
use seqpool::sys::{EventBuffer, Interest, Linux, Readiness, Received, Sent, Sys, Wait};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};

mod support;

const COUNTS: [usize; 3] = [1, 16, 256];

type Pair = (OwnedFd, OwnedFd);

fn pairs(count: usize) -> Vec<Pair> {
    (0..count).map(|_| Linux.socketpair().expect("socketpair")).collect()
}

fn send_to_all(pairs: &[Pair]) {
    for (_, far) in pairs {
        assert_eq!(Linux.send(far.as_fd(), &[IoSlice::new(b"x")], Wait::Never), Ok(Sent::All));
    }
}

fn receive(fd: &OwnedFd) -> Received {
    let mut byte = [0];
    let received = Linux.recv(fd.as_fd(), &mut [IoSliceMut::new(&mut byte)], Wait::Never).expect("recv");
    assert!(received != Received::Packet(1) || byte == *b"x");
    received
}

fn dispatch(c: &mut Criterion) {
    for count in COUNTS {
        let mut group = c.benchmark_group("reactor");
        group.throughput(Throughput::Elements(count as u64));

        let pairs = pairs(count);
        let mut reactor = Reactor::new().expect("a reactor");
        let tokens: Vec<_> =
            pairs.iter().map(|(near, _)| reactor.register(near.as_fd(), Interest::READ).expect("register")).collect();
        let mut owners = vec![None; count];
        for (owner, token) in tokens.iter().enumerate() {
            owners[token.index()] = Some(owner);
        }
        group.bench_function(BenchmarkId::new("wait and dispatch", count), |b| {
            let turn = |()| {
                let mut received = 0;
                while received < count {
                    reactor.wait(None).expect("wait");
                    while let Some((token, _)) = reactor.next_ready() {
                        let near = &pairs[owners[token.index()].expect("a registered token")].0;
                        while receive(near) == Received::Packet(1) {
                            received += 1;
                        }
                        reactor.exhausted(token, Readiness::READ);
                    }
                }
                assert_eq!(received, count);
            };
            b.iter_batched(|| send_to_all(&pairs), turn, BatchSize::PerIteration);
        });
        for (token, (near, _)) in tokens.into_iter().zip(&pairs) {
            reactor.deregister(token, near.as_fd()).expect("deregister");
        }

        let epoll = Linux.epoll_create().expect("epoll");
        for (data, (near, _)) in pairs.iter().enumerate() {
            Linux
                .epoll_add(epoll.as_fd(), near.as_fd(), Interest::READ.and(Interest::LEVEL), data as u64)
                .expect("epoll_ctl");
        }
        let mut events = EventBuffer::new(256);
        group.bench_function(BenchmarkId::new("limit: epoll_wait and recv", count), |b| {
            let turn = |()| {
                let mut received = 0;
                while received < count {
                    Linux.epoll_wait(epoll.as_fd(), &mut events, None).expect("epoll_wait");
                    for (data, _) in events.iter() {
                        assert_eq!(receive(&pairs[data as usize].0), Received::Packet(1));
                        received += 1;
                    }
                }
                assert_eq!(received, count);
            };
            b.iter_batched(|| send_to_all(&pairs), turn, BatchSize::PerIteration);
        });
    }
}

criterion_group! { name = benches; config = support::criterion(); targets = dispatch }
criterion_main!(benches);
