//! Blocking against non-blocking: the study's two servers, with its scenarios and transfers, and the pool's two transports
//! with plain messages of several sizes to ever more workers. What each takes is in its name; both answer the same.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use seqpool::cli::study::trial::{Trial, run};
use seqpool::{Job, TransportKind};
use std::num::NonZeroU32;
use std::time::Duration;

mod support;

const MS: u64 = 1_000_000;
/// Jobs of each worker in one run of the servers.
const ROUNDS: u32 = 4;
const SCENARIOS: [(&str, [u64; 3]); 2] = [("synchronized", [2 * MS; 3]), ("unsynchronized", [3 * MS, 2 * MS, MS])];
/// The blocking server, turns of one part as drawn, and until would-block.
const SERVERS: [(&str, bool, Option<NonZeroU32>); 3] =
    [("blocking", false, None), ("turns of 1 part", true, NonZeroU32::new(1)), ("until would-block", true, None)];

fn servers(c: &mut Criterion) {
    for (transfer, wait_permille) in [("cpu", 0), ("wait", 1000)] {
        for (scenario, compute_ns) in SCENARIOS {
            let mut group = c.benchmark_group(format!("servers, {transfer}, {scenario}"));
            // A run takes some 20 ms, however often it is repeated.
            group.sample_size(10);
            for (server, nonblocking, parts_per_turn) in SERVERS {
                let trial = Trial {
                    nonblocking,
                    parts_per_turn,
                    wait_permille,
                    queue: false,
                    spin: false,
                    compute_ns: compute_ns.to_vec(),
                    message_ns: MS / 2,
                    parts: 3,
                    rounds: ROUNDS,
                };
                let jobs = compute_ns.len() * ROUNDS as usize;
                group.throughput(Throughput::Elements(jobs as u64));
                group.bench_function(server, |b| {
                    b.iter_custom(|runs| {
                        let makespan = |_| {
                            let seen = run(&trial, &mut |_| {}).expect("a run");
                            assert_eq!(seen.done_by.len(), jobs, "every job is done once");
                            Duration::from_nanos(seen.makespan_ns)
                        };
                        (0..runs).map(makespan).sum()
                    });
                });
            }
        }
    }
}

const BODY_SIZES: [usize; 3] = [64, 4 << 10, 1 << 20];
const WORKERS: [usize; 4] = [1, 2, 8, 32];
/// Messages to each worker in an iteration; large ones are few.
const MESSAGES_SMALL: usize = 64;
const MESSAGES_LARGE: usize = 2;

fn messages(c: &mut Criterion) {
    for size in BODY_SIZES {
        let mut group = c.benchmark_group(format!("messages of {size} bytes"));
        group.sample_size(10);
        let (body, reply) = (vec![b'a'; size], vec![b'A'; size]);
        for workers in WORKERS {
            let jobs = workers * if size >= 1 << 20 { MESSAGES_LARGE } else { MESSAGES_SMALL };
            group.throughput(Throughput::Elements(jobs as u64));
            for &transport in TransportKind::ALL {
                let mut pool = support::upper_pool(workers, transport);
                let upper = pool.handler_id("upper").expect("this pool's handler");
                group.bench_function(BenchmarkId::new(transport.to_string(), workers), |b| {
                    b.iter(|| {
                        let mut right = 0;
                        for _ in 0..jobs {
                            pool.submit(Job::new(upper, &body)).expect("a pool");
                        }
                        while pool.outstanding() > 0 {
                            pool.poll(None, |done, _| right += usize::from(support::is_done(&done.outcome, &reply)))
                                .expect("a pool");
                        }
                        assert_eq!(right, jobs);
                    });
                });
            }
        }
    }
}

criterion_group! { name = benches; config = support::criterion(); targets = servers, messages }
criterion_main!(benches);
