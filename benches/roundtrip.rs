//! One job at a time through each transport, beside the bare exchange of as many bytes: a ping-pong with the transport's
//! own way of waiting, or, where a job is larger than a packet, its fragments.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use seqpool::cli::bench::bare::{Waiting, fragments, ping_pong};
use seqpool::limits::{PACKET_SIZE_MAX, SEND_BUFFER_SIZE};
use seqpool::{Job, TransportKind};
use std::time::Duration;

mod support;

const BODY_SIZES: [usize; 3] = [64, 4 << 10, 1 << 20];

fn roundtrip(c: &mut Criterion) {
    for &transport in TransportKind::ALL {
        let mut group = c.benchmark_group(format!("roundtrip {transport}"));
        for size in BODY_SIZES {
            // There and back.
            group.throughput(Throughput::Bytes(2 * size as u64));
            let (body, reply) = (vec![b'a'; size], vec![b'A'; size]);
            let mut pool = support::upper_pool(1, transport);
            let upper = pool.handler_id("upper").expect("this pool's handler");
            group.bench_function(BenchmarkId::new("pool", size), |b| {
                b.iter(|| {
                    pool.submit(Job::new(upper, &body)).expect("a pool");
                    let mut right = false;
                    pool.poll(None, |done, _| right = support::is_done(&done.outcome, &reply)).expect("a pool");
                    assert!(right);
                });
            });
            drop(pool);
            // Both check what comes back.
            group.bench_function(BenchmarkId::new("limit: bare", size), |b| {
                b.iter_custom(|rounds| {
                    if size > PACKET_SIZE_MAX {
                        let rounds = u32::try_from(rounds).expect("large messages are slow");
                        return fragments(size, PACKET_SIZE_MAX, SEND_BUFFER_SIZE, 2, rounds).expect("a bare exchange");
                    }
                    let waiting = match transport {
                        TransportKind::Blocking => Waiting::SleepInRecv,
                        _ => Waiting::Spin,
                    };
                    let rounds = usize::try_from(rounds).expect("rounds");
                    let times_ns = ping_pong(waiting, 0, rounds, size).expect("a bare exchange");
                    Duration::from_nanos(times_ns.iter().sum())
                });
            });
        }
    }
}

criterion_group! { name = benches; config = support::criterion(); targets = roundtrip }
criterion_main!(benches);
