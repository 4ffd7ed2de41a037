//! The same work through pools of 1 to 256 workers, by each interface, beside the bare packed echo with as many peers.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use seqpool::TransportKind;
use seqpool::cli::bench::bare::Packed;
use seqpool::frame::frame_size;
use seqpool::limits::PACK_SIZE_MAX;

mod support;

const WORKERS: [usize; 6] = [1, 2, 4, 16, 64, 256];
/// Jobs of one iteration, at every number of workers; far more than are on their way at once.
const JOBS: u32 = 1_000_000;
const BODY_SIZE: usize = 64;
/// Packets on their way to and from each bare peer.
const BARE_WINDOW: usize = 2;

fn bulk(c: &mut Criterion) {
    let (body, reply) = ([b'a'; BODY_SIZE], [b'A'; BODY_SIZE]);
    let inputs = || (0..JOBS).map(|_| &body);
    for workers in WORKERS {
        let mut group = c.benchmark_group("pool");
        group.throughput(Throughput::Elements(JOBS.into()));
        let mut pool = support::upper_pool(workers, TransportKind::default());
        group.bench_function(BenchmarkId::new("for_each", workers), |b| {
            b.iter(|| {
                let mut right = 0;
                let count = |done: seqpool::Completion<'_>, _: &mut seqpool::Submitter<'_>| {
                    right += u32::from(support::is_done(&done.outcome, &reply));
                };
                pool.for_each("upper", inputs(), count).expect("a pool");
                assert_eq!(right, JOBS);
            });
        });
        group.bench_function(BenchmarkId::new("map", workers), |b| {
            b.iter(|| {
                let right = pool.map("upper", inputs()).filter(|o| support::is_done(o, &reply)).count();
                assert_eq!(right, JOBS as usize);
            });
        });
        group.bench_function(BenchmarkId::new("unordered", workers), |b| {
            b.iter(|| {
                let outcomes = pool.unordered("upper", inputs());
                assert_eq!(outcomes.filter(|(_, o)| support::is_done(o, &reply)).count(), JOBS as usize);
            });
        });
        drop(pool);
        let mut echo = Packed::start(workers, PACK_SIZE_MAX / frame_size(BODY_SIZE)).expect("bare peers");
        group.bench_function(BenchmarkId::new("limit: bare packed echo", workers), |b| {
            b.iter_custom(|iterations| {
                (0..iterations).map(|_| echo.run(BARE_WINDOW, JOBS.into()).expect("an echo")).sum()
            });
        });
    }
}

criterion_group! { name = benches; config = support::criterion(); targets = bulk }
criterion_main!(benches);
