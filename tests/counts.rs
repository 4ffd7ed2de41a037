//! What a job costs in system calls and heap allocations, in every process of a pool.
//!
//! System calls are counted by `seqpool::sys::Counting`, allocations by this binary's allocator; both count in memory that
//! all processes share. Counts, unlike times, hardly depend on what else the machine does. Each case prints what it
//! counted; `cargo test --release --test counts -- --nocapture` shows it.

use seqpool::sys::{Call, Counting, Counts, Role};
use seqpool::{Job, Outcome, Pool, TransportKind};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

mod support;

fn main() {
    let cases = [
        &support::cases![
            the_allocator_counts_in_every_process,
            an_idle_pool_makes_no_system_call,
            collecting_allocates_one_body_for_each_outcome => 120,
        ][..],
        &support::cases_on_each_transport![bulk => 240, one_at_a_time => 120],
    ];
    support::main(&cases.concat());
}

// ---- counting allocations ----

/// Counts the calls that obtain memory, those that move a block to a larger one included.
struct CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Counters for the host (with the nursery) and the workers; unset until a case wants them.
static ALLOCATIONS: OnceLock<&'static [AtomicU32]> = OnceLock::new();
/// Which of them this process counts in.
static ROW: AtomicUsize = AtomicUsize::new(HOST);
const HOST: usize = 0;
const WORKER: usize = 1;

fn count_allocation() {
    if let Some(counters) = ALLOCATIONS.get() {
        counters[ROW.load(Relaxed)].fetch_add(1, Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting itself allocates nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_allocation();
        // SAFETY: the caller's promises are those of this method.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count_allocation();
        // SAFETY: the caller's promises are those of this method.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count_allocation();
        // SAFETY: the caller's promises are those of this method; the block came from the system's allocator.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those of this method; the block came from the system's allocator.
        unsafe { System.dealloc(block, layout) }
    }
}

fn allocations() -> [u32; 2] {
    let counters = ALLOCATIONS.get().expect("made with the pool");
    [HOST, WORKER].map(|row| counters[row].load(Relaxed))
}

// ---- what a run costs ----

const BODY_SIZE: usize = 64;
const WORKERS: usize = 2;
const WARM_UP_JOBS: u32 = 100_000;
/// Blocks that the host takes at most in a run of any length: lists of what happens rarely, such as jobs taken back from
/// a slot, grow by doubling up to the pool's bounds (16 times for 65,536 jobs). When that happens is a matter of timing,
/// so that the warm-up may not bring it. One block a packet would be over a thousand.
const GROWTHS_MAX: u32 = 32;
/// Calls that one job takes at most in one process when it comes alone: a send and a receive on each side, and the looks
/// of a short spin. Seen: 3 to 6.
const CALLS_ALONE_MAX: f64 = 50.0;
/// Calls that a host makes at most that waits once, in a pool that has nothing to do; most are the looks of one spin.
const CALLS_IDLE_MAX: u64 = 1000;

fn pool(transport: TransportKind) -> (Pool<Counting>, Counting) {
    ALLOCATIONS.get_or_init(|| support::shared_words(2));
    let sys = Counting::new().unwrap();
    let pool = Pool::builder().workers(WORKERS).transport(transport);
    let pool = pool.on_start(|| {
        ROW.store(WORKER, Relaxed);
        Ok(())
    });
    let pool = pool.handler("upper", |request, reply| {
        let room = reply.extend_by(request.body().len());
        for (to, from) in room.iter_mut().zip(request.body()) {
            *to = from.to_ascii_uppercase();
        }
        Ok(())
    });
    let pool = pool.handler("allocate", |request, _| {
        std::hint::black_box(request.body().to_vec());
        Ok(())
    });
    let mut pool = pool.spawn_with(sys.clone()).unwrap();
    assert!(pool.wait_ready(Duration::from_secs(20)).unwrap());
    (pool, sys)
}

struct Cost {
    jobs: u32,
    calls: Counts,
    allocations: [u32; 2],
}

impl Cost {
    fn of(jobs: u32, pool: &mut Pool<Counting>, sys: &Counting, run: fn(&mut Pool<Counting>, u32)) -> Self {
        let (calls, before, start) = (sys.counts(), allocations(), Instant::now());
        run(pool, jobs);
        let (after, calls) = (allocations(), sys.counts().since(&calls));
        let cost = Self { jobs, calls, allocations: [HOST, WORKER].map(|row| after[row] - before[row]) };
        println!(
            "{jobs} jobs in {:.2?}; allocations: host {}, workers {}",
            start.elapsed(),
            cost.allocations[HOST],
            cost.allocations[WORKER]
        );
        for role in Role::ALL {
            let yields = cost.calls.yields(role) as f64 / f64::from(jobs);
            println!("  {}: {:.5} calls and {yields:.5} yields a job", role.name(), cost.calls_per_job(role));
        }
        print!("{}", cost.calls);
        cost
    }

    fn calls_per_job(&self, role: Role) -> f64 {
        self.calls.total(role) as f64 / f64::from(self.jobs)
    }
}

fn run_bulk(pool: &mut Pool<Counting>, jobs: u32) {
    let (body, mut right) = ([b'a'; BODY_SIZE], 0);
    pool.for_each("upper", (0..jobs).map(|_| &body), |done, _| {
        right += u32::from(matches!(done.outcome, Outcome::Done(b) if b == [b'A'; BODY_SIZE]));
    })
    .unwrap();
    assert_eq!(right, jobs);
}

fn run_one_at_a_time(pool: &mut Pool<Counting>, jobs: u32) {
    let mut right = 0;
    for _ in 0..jobs {
        pool.submit(Job::new("upper", &[b'a'; BODY_SIZE])).unwrap();
        let delivered = pool.poll(None, |done, _| {
            right += u32::from(matches!(done.outcome, Outcome::Done(b) if b == [b'A'; BODY_SIZE]));
        });
        assert_eq!(delivered.unwrap(), 1);
    }
    assert_eq!(right, jobs);
}

// ---- cases ----

fn bulk(transport: TransportKind) {
    // One packet a job is what the `blocking` transport is there to show. And a host that is not optimised is slower than
    // its workers, which then wait for each job: what is promised holds for release builds.
    let (jobs, calls_max) = match transport {
        TransportKind::Blocking => (50_000, CALLS_ALONE_MAX),
        _ if cfg!(debug_assertions) => (1_000_000, CALLS_ALONE_MAX),
        _ => (1_000_000, 0.05),
    };
    let (mut pool, sys) = pool(transport);
    // More jobs than a pool holds at once: after that, its tables have all the room that they will ever need.
    Cost::of(WARM_UP_JOBS, &mut pool, &sys, run_bulk);
    for jobs in [jobs, 4 * jobs] {
        let cost = Cost::of(jobs, &mut pool, &sys, run_bulk);
        for role in [Role::Host, Role::Worker] {
            let calls = cost.calls_per_job(role);
            assert!(calls <= calls_max, "{calls} system calls a job in the {}", role.name());
        }
        assert_eq!(cost.calls.total(Role::Nursery), 0);
        assert_eq!(cost.allocations[WORKER], 0);
        assert!(cost.allocations[HOST] <= GROWTHS_MAX, "{} allocations in the host", cost.allocations[HOST]);
    }
}

fn one_at_a_time(transport: TransportKind) {
    let (mut pool, sys) = pool(transport);
    Cost::of(5_000, &mut pool, &sys, run_one_at_a_time);
    let cost = Cost::of(20_000, &mut pool, &sys, run_one_at_a_time);
    assert_eq!(cost.allocations, [0, 0], "host, workers");
    for role in [Role::Host, Role::Worker] {
        assert_eq!(cost.calls.of(role, Call::Send), u64::from(cost.jobs), "packets sent by the {}", role.name());
        assert!(cost.calls_per_job(role) <= CALLS_ALONE_MAX, "{}", role.name());
    }
    assert_eq!(cost.calls.total(Role::Nursery), 0);
}

fn an_idle_pool_makes_no_system_call() {
    let (mut pool, sys) = pool(TransportKind::default());
    run_bulk(&mut pool, 10_000);
    // Whoever still looked for more has gone to sleep by then.
    std::thread::sleep(Duration::from_secs(1));
    let before = sys.counts();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(sys.counts(), before, "{}", sys.counts().since(&before));
    // A host that waits in the pool sleeps, too.
    pool.poll(Some(Duration::from_secs(1)), |_, _| {}).unwrap();
    let made = sys.counts().since(&before);
    println!("{made}");
    assert!(made.total(Role::Host) + made.yields(Role::Host) <= CALLS_IDLE_MAX);
    for role in [Role::Worker, Role::Nursery] {
        assert_eq!(made.total(role) + made.yields(role), 0, "{}", role.name());
    }
}

/// `map` gives each outcome's body away, so each is one block; and the counter is seen to count in bulk.
fn collecting_allocates_one_body_for_each_outcome() {
    let (mut pool, _) = pool(TransportKind::default());
    let mut run = |jobs: u32| {
        let before = allocations();
        let body = [b'a'; BODY_SIZE];
        let outcomes = pool.map("upper", (0..jobs).map(|_| &body)).filter(|o| matches!(o, Outcome::Done(_))).count();
        assert_eq!(outcomes, jobs as usize);
        let after = allocations();
        [HOST, WORKER].map(|row| after[row] - before[row])
    };
    run(100_000);
    let (once, four_times) = (run(100_000), run(400_000));
    println!("map: host and workers {once:?} for 100,000 jobs, {four_times:?} for 400,000");
    assert!((100_000..100_100).contains(&once[HOST]), "{once:?}");
    assert!((400_000..400_100).contains(&four_times[HOST]), "{four_times:?}");
    assert_eq!([once[WORKER], four_times[WORKER]], [0, 0]);
}

fn the_allocator_counts_in_every_process() {
    let (mut pool, _) = pool(TransportKind::default());
    pool.for_each("allocate", [[1u8; 8]; 20_000], |done, _| assert!(matches!(done.outcome, Outcome::Done(_)))).unwrap();
    // By now both workers have what they take once.
    let before = allocations();
    drop(std::hint::black_box(vec![0u8; 10]));
    pool.for_each("allocate", [[1u8; 8]; 500], |done, _| assert!(matches!(done.outcome, Outcome::Done(_)))).unwrap();
    let after = allocations();
    assert!((1..=1 + GROWTHS_MAX).contains(&(after[HOST] - before[HOST])), "{}", after[HOST] - before[HOST]);
    assert_eq!(after[WORKER] - before[WORKER], 500);
}
