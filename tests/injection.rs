//! The pool over a kernel that fails on purpose: `seqpool::sys::Faulty`.
//!
//! Each case goes through several seeds and prints each before it is used: the last line of a failed case's output
//! names the run that failed. `SEQPOOL_SEEDS=N` sets how many, the feature `soak` twenty times as many; `SEQPOOL_SEED=N` the
//! first.
//!
//! What must hold, whatever fails: exactly one outcome a job; the right one; no job run twice; no hang. How often each
//! job was started is counted by its handler in memory that all processes share.

use seqpool::sys::{Fault, Faulty};
use seqpool::{Crash, CrashCause, Job, Outcome, Pool, Reason, Stats, TransportKind};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};
use support::{Random, rounds};

mod support;

fn main() {
    support::main(&support::cases![
        without_faults_nothing_is_injected,
        a_full_socket => rounds(60, 1200),
        no_kernel_memory => rounds(60, 1200),
        a_receive_that_finds_nothing => rounds(60, 1200),
        a_start_that_is_heard_late => rounds(60, 1200),
        a_reset_that_is_none => rounds(60, 1200),
        a_truncated_packet => rounds(60, 1200),
        a_spurious_event => rounds(60, 1200),
        a_stale_event => rounds(60, 1200),
        lost_events => rounds(60, 1200),
        a_lost_edge_costs_a_tenth_of_a_second => rounds(60, 1200),
        an_interrupted_wait => rounds(60, 1200),
        no_descriptor => rounds(60, 1200),
        everything_at_once => rounds(120, 1200),
        everything_at_once_with_cancels => rounds(120, 1200),
        everything_but_truncation => rounds(120, 1200),
        a_real_lack_of_descriptors_is_survived,
        the_count_of_starts_can_fail,
    ]);
}

// ---- what every run does ----

/// Starts of each job, counted by whoever starts it. Made before the pool, so that every worker has it.
struct Starts(&'static [AtomicU32]);

impl Starts {
    fn new(jobs: usize) -> Self {
        let size = jobs.max(1) * size_of::<AtomicU32>();
        // SAFETY: a new mapping at an address of the kernel's choice (mmap(2)): nothing existing is touched.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        // SAFETY: page-aligned, zeroed, large enough, never unmapped before `Drop`, and of atomics only.
        Self(unsafe { std::slice::from_raw_parts(base.cast(), jobs) })
    }
}

impl Drop for Starts {
    fn drop(&mut self) {
        let base = self.0.as_ptr().cast_mut().cast();
        // SAFETY: the mapping of `new`, whose size is rounded up in both calls alike; nobody borrows it any more.
        unsafe { libc::munmap(base, self.0.len().max(1) * size_of::<AtomicU32>()) };
    }
}

/// What a job does; its body begins with its number (u32) and this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Echo = 0,
    /// Replies with far more than a packet holds.
    Swell = 1,
    Fail = 2,
    Panic = 3,
    Die = 4,
    Hang = 5,
}

impl Deed {
    fn from_byte(byte: u8) -> Self {
        [Deed::Echo, Deed::Swell, Deed::Fail, Deed::Panic, Deed::Die, Deed::Hang][usize::from(byte)]
    }
}

const HANG_LIMIT: Duration = Duration::from_millis(60);
/// No run takes nearly as long.
const RUN_LIMIT: Duration = Duration::from_secs(20);
const SWOLLEN_SIZE: usize = 400_000;
/// More than a packet holds.
const LARGE_SIZE: usize = 250_000;

#[derive(Clone, Copy)]
struct Plan {
    jobs: usize,
    workers: usize,
    /// One job in so many dies; 0 is never.
    deaths: usize,
    hangs: usize,
    /// One body in so many is larger than a packet.
    large: usize,
    /// One reply in so many is larger than a packet.
    swells: usize,
    /// One ticket in so many is cancelled soon after.
    cancels: usize,
}

const PLAN: Plan = Plan { jobs: 300, workers: 3, deaths: 60, hangs: 150, large: 40, swells: 40, cancels: 0 };

fn deed(plan: &Plan, random: &mut Random) -> Deed {
    let mut one_in = |n: usize| n != 0 && random.below_usize(n) == 0;
    if one_in(plan.deaths) {
        Deed::Die
    } else if one_in(plan.hangs) {
        Deed::Hang
    } else if one_in(plan.swells) {
        Deed::Swell
    } else if one_in(10) {
        Deed::Fail
    } else if one_in(20) {
        Deed::Panic
    } else {
        Deed::Echo
    }
}

fn reply_to(body: &[u8]) -> Vec<u8> {
    body.iter().rev().map(|b| b ^ 0x5a).collect()
}

fn swollen(index: usize) -> Vec<u8> {
    (0..SWOLLEN_SIZE + index).map(|i| (i * 7 + index) as u8).collect()
}

struct Report {
    stats: Stats,
    injected: u64,
    elapsed: Duration,
}

/// A pool whose handler does deeds. A spawn that a fault prevented is tried again.
fn spawn(sys: &Faulty, workers: usize, transport: TransportKind, starts: &'static [AtomicU32]) -> Pool<Faulty> {
    for _ in 0..1000 {
        let pool = Pool::builder()
            .workers(workers)
            .transport(transport)
            .first_seq(u32::MAX - 20)
            .handler("deed", move |request, reply| {
                let body = request.body();
                let index = u32::from_le_bytes(body[..4].try_into()?) as usize;
                starts[index].fetch_add(1, Relaxed);
                match Deed::from_byte(body[4]) {
                    Deed::Echo => reply.extend_from_slice(&reply_to(body)),
                    Deed::Swell => reply.extend_from_slice(&swollen(index)),
                    Deed::Fail => return Err(format!("as told, {index}").into()),
                    Deed::Panic => panic!("as told, {index}"),
                    Deed::Die => {
                        // SAFETY: kill(2) and getpid(2) take and return numbers only.
                        let me = unsafe { libc::getpid() };
                        // SAFETY: as above.
                        unsafe { libc::kill(me, libc::SIGKILL) };
                    }
                    Deed::Hang => std::thread::sleep(Duration::from_secs(1000)),
                }
                Ok(())
            })
            .spawn_with(sys.clone());
        match pool {
            Ok(pool) => return pool,
            Err(error) => assert!(error.to_string().contains("open files"), "spawn: {error}"),
        }
    }
    panic!("no pool after 1000 tries");
}

/// One run: submits, cancels, takes all outcomes, and judges them.
fn run(seed: u64, fault: Fault, transport: TransportKind, plan: Plan) -> Report {
    // A receive that finds nothing when a worker has just died finds nothing for good: the pool believes it, as it may,
    // and looks into the worker's ring, which no longer holds what the socket has carried before the last megabyte.
    assert!(fault.recv_would_block == 0 || plan.swells == 0, "large replies could be lost");
    println!("seed {seed}, {transport}, {fault:?}");
    let starts = Starts::new(plan.jobs);
    let sys = Faulty::new(seed, fault);
    let mut random = Random(seed);
    let mut pool = spawn(&sys, plan.workers, transport, starts.0);
    let deed_id = pool.handler_id("deed").unwrap();
    let start = Instant::now();
    let mut outcomes: Vec<Option<Outcome<Vec<u8>>>> = vec![None; plan.jobs];
    let mut deeds = Vec::new();
    let mut bodies = Vec::new();
    let mut tickets = Vec::new();
    let mut cancelled = vec![false; plan.jobs];
    let mut step = |pool: &mut Pool<Faulty>, timeout: Duration| {
        let taken = pool.poll(Some(timeout), |completion, _| {
            let room = &mut outcomes[completion.tag as usize];
            assert!(room.is_none(), "job {} has a second outcome: {:?}", completion.tag, completion.outcome);
            *room = Some(completion.outcome.map(<[u8]>::to_vec));
        });
        // A fault must never come out of the pool as an error.
        taken.unwrap_or_else(|error| panic!("poll: {error}"));
        if start.elapsed() > RUN_LIMIT {
            let missing: Vec<_> = (0..plan.jobs).filter(|&i| outcomes[i].is_none()).collect();
            panic!("no outcome after {RUN_LIMIT:?} for jobs {missing:?}; {:?}", pool.stats());
        }
    };
    for index in 0..plan.jobs {
        let deed = deed(&plan, &mut random);
        let size =
            if plan.large != 0 && random.below_usize(plan.large) == 0 { LARGE_SIZE } else { random.below_usize(600) };
        let mut body = (index as u32).to_le_bytes().to_vec();
        body.push(deed as u8);
        body.extend((0..size).map(|i| (i * 13 + index) as u8));
        let mut job = Job::new(deed_id, &body).tag(index as u64).header("k", "v");
        if deed == Deed::Hang {
            job = job.timeout(HANG_LIMIT);
        }
        tickets.push(pool.submit(job).unwrap_or_else(|error| panic!("submit: {error}")));
        deeds.push(deed);
        bodies.push(body);
        if random.below_usize(8) == 0 {
            step(&mut pool, Duration::from_micros(random.below_usize(300) as u64));
        }
        if plan.cancels != 0 && random.below_usize(plan.cancels) == 0 {
            let which = random.below_usize(index + 1);
            cancelled[which] |= pool.cancel(tickets[which]);
        }
    }
    while pool.outstanding() > 0 {
        step(&mut pool, Duration::from_millis(200));
    }
    let elapsed = start.elapsed();
    let stats = pool.stats();
    println!("{elapsed:?}, {} injected, {stats:?}", sys.injected());
    drop(pool);
    for (index, outcome) in outcomes.iter().enumerate() {
        let outcome = outcome.as_ref().unwrap_or_else(|| panic!("job {index} has no outcome; {stats:?}"));
        let starts = starts.0[index].load(Relaxed);
        judge(index, deeds[index], &bodies[index], outcome, starts, cancelled[index], fault);
    }
    let counted = stats.done + stats.failed + stats.crashed + stats.timed_out + stats.cancelled + stats.rejected;
    assert_eq!((stats.jobs, counted), (plan.jobs as u64, plan.jobs as u64), "{stats:?}");
    Report { stats, injected: sys.injected(), elapsed }
}

fn judge(
    index: usize,
    deed: Deed,
    body: &[u8],
    outcome: &Outcome<Vec<u8>>,
    starts: u32,
    cancelled: bool,
    fault: Fault,
) {
    let shown = || match outcome {
        Outcome::Done(body) => format!("done, {} bytes", body.len()),
        other => format!("{other:?}"),
    };
    assert!(starts <= 1, "job {index} ({deed:?}) was started {starts} times; {}", shown());
    // A truncated packet costs its sender: whatever was sent to that worker may end with it, or, when the packet was
    // the nursery's, all that cannot be run any more.
    let lost = fault.recv_truncated != 0
        && match outcome {
            Outcome::Crashed(_) => true,
            Outcome::Rejected { reason: Reason::NoWorkers(_) } => starts == 0,
            _ => false,
        };
    if lost || (cancelled && matches!(outcome, Outcome::Cancelled { .. })) {
        return;
    }
    assert_eq!(starts, 1, "job {index} ({deed:?}) ended without a start: {}", shown());
    let right = match (deed, outcome) {
        (Deed::Echo, Outcome::Done(reply)) => *reply == reply_to(body),
        (Deed::Swell, Outcome::Done(reply)) => *reply == swollen(index),
        (Deed::Fail, Outcome::Failed { message, panicked: false })
        | (Deed::Panic, Outcome::Failed { message, panicked: true }) => *message == format!("as told, {index}"),
        (Deed::Die, Outcome::Crashed(Crash { cause: CrashCause::Signal(9), .. })) => true,
        (Deed::Hang, Outcome::TimedOut { after }) => *after == HANG_LIMIT,
        _ => false,
    };
    assert!(right, "job {index} ({deed:?}): {}", shown());
}

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text}: a number is wanted")),
        Err(_) => default,
    }
}

fn seeds(default_count: u64) -> Range<u64> {
    let first = number("SEQPOOL_SEED", 1);
    first..first + number("SEQPOOL_SEEDS", rounds(default_count, 20 * default_count))
}

/// Runs the plan under one fault on both transports and several seeds; the fault must really have happened.
fn alone(fault: Fault, plan: Plan) {
    for transport in TransportKind::ALL {
        let mut injected = 0;
        for seed in seeds(4) {
            injected += run(seed, fault, *transport, plan).injected;
        }
        assert!(injected > 0, "no fault happened on {transport}");
    }
}

// ---- the cases ----

fn without_faults_nothing_is_injected() {
    for transport in TransportKind::ALL {
        let report = run(1, Fault::default(), *transport, PLAN);
        assert_eq!((report.injected, report.stats.hostile), (0, 0));
        assert!(report.stats.crashed > 0 && report.stats.timed_out > 0 && report.stats.respawns > 0);
    }
}

fn a_full_socket() {
    alone(Fault { send_would_block: 3, ..Fault::default() }, PLAN);
}

fn no_kernel_memory() {
    alone(Fault { send_no_memory: 5, ..Fault::default() }, PLAN);
}

fn a_receive_that_finds_nothing() {
    alone(Fault { recv_would_block: 5, ..Fault::default() }, Plan { swells: 0, ..PLAN });
}

/// A worker's first word to its host may be found before the nursery's about it, and that one only at a later look.
fn a_start_that_is_heard_late() {
    for transport in TransportKind::ALL {
        for seed in seeds(8) {
            println!("seed {seed}, {transport}");
            let sys = Faulty::new(seed, Fault { recv_would_block: 2, lost_events: 4, ..Fault::default() });
            let mut pool = spawn(&sys, 3, *transport, &[]);
            assert!(pool.wait_ready(Duration::from_secs(10)).expect("poll"), "{}", pool.health());
        }
    }
}

fn a_reset_that_is_none() {
    alone(Fault { recv_reset: 3, ..Fault::default() }, PLAN);
}

fn a_truncated_packet() {
    alone(Fault { recv_truncated: 40, ..Fault::default() }, PLAN);
}

fn a_spurious_event() {
    alone(Fault { spurious_event: 2, ..Fault::default() }, PLAN);
}

fn a_stale_event() {
    alone(Fault { stale_event: 2, ..Fault::default() }, PLAN);
}

fn lost_events() {
    alone(Fault { lost_events: 10, ..Fault::default() }, PLAN);
}

fn a_lost_edge_costs_a_tenth_of_a_second() {
    for transport in TransportKind::ALL {
        for seed in seeds(4) {
            let plan = Plan { jobs: 200, deaths: 0, hangs: 0, ..PLAN };
            let report = run(seed, Fault { lost_events: 20, ..Fault::default() }, *transport, plan);
            // Not every wait that loses its events had any, so this is generous.
            let limit = Duration::from_millis(130) * report.injected as u32 + Duration::from_millis(500);
            assert!(report.elapsed < limit, "{:?} with {} lost waits", report.elapsed, report.injected);
        }
    }
}

fn an_interrupted_wait() {
    alone(Fault { interrupted_wait: 2, ..Fault::default() }, PLAN);
}

fn no_descriptor() {
    alone(Fault { no_descriptor: 8, ..Fault::default() }, Plan { deaths: 15, ..PLAN });
}

const EVERYTHING_BUT_TRUNCATION: Fault = Fault {
    send_would_block: 20,
    send_no_memory: 50,
    recv_would_block: 20,
    recv_reset: 20,
    recv_truncated: 0,
    spurious_event: 10,
    stale_event: 10,
    lost_events: 50,
    interrupted_wait: 20,
    no_descriptor: 20,
};

fn everything_at_once() {
    alone(Fault { recv_truncated: 200, ..EVERYTHING_BUT_TRUNCATION }, Plan { swells: 0, ..PLAN });
}

fn everything_at_once_with_cancels() {
    alone(Fault { recv_truncated: 200, ..EVERYTHING_BUT_TRUNCATION }, Plan { cancels: 10, swells: 0, ..PLAN });
}

fn everything_but_truncation() {
    alone(EVERYTHING_BUT_TRUNCATION, Plan { cancels: 20, swells: 0, ..PLAN });
    alone(Fault { recv_would_block: 0, ..EVERYTHING_BUT_TRUNCATION }, Plan { cancels: 20, ..PLAN });
}

/// The real limit, not an injected error: a worker dies while the host can open nothing, and is replaced once it can.
fn a_real_lack_of_descriptors_is_survived() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    for transport in TransportKind::ALL {
        let starts = Starts::new(200);
        let sys = Faulty::new(1, Fault::default());
        let mut pool = spawn(&sys, 2, *transport, starts.0);
        assert!(pool.wait_ready(Duration::from_secs(10)).unwrap());
        let mut outcomes = [const { None }; 200];
        let mut submit = |pool: &mut Pool<Faulty>, jobs: Range<usize>, deed: Deed| {
            for index in jobs {
                let body = [&(index as u32).to_le_bytes()[..], &[deed as u8]].concat();
                pool.submit(Job::new("deed", &body).tag(index as u64)).unwrap();
            }
            while pool.outstanding() > 0 {
                pool.poll(None, |completion, _| {
                    let outcome = completion.outcome.map(<[u8]>::to_vec);
                    assert!(outcomes[completion.tag as usize].replace(outcome).is_none());
                })
                .unwrap();
            }
        };
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
        submit(&mut pool, 0..1, Deed::Die);
        // The other worker goes on alone.
        submit(&mut pool, 1..100, Deed::Echo);
        assert_eq!(pool.stats().respawns, 0, "no worker can be started yet");
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        assert!(pool.wait_ready(Duration::from_secs(10)).unwrap(), "a new worker once there are descriptors");
        assert_eq!(pool.stats().respawns, 1);
        submit(&mut pool, 100..200, Deed::Echo);
        assert!(matches!(outcomes[0], Some(Outcome::Crashed(_))));
        assert!(outcomes[1..].iter().all(|outcome| matches!(outcome, Some(Outcome::Done(_)))));
        assert!(starts.0.iter().all(|count| count.load(Relaxed) == 1));
    }
}

/// The judge bites: a job that was started twice, or whose reply is another's, is seen.
fn the_count_of_starts_can_fail() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let refused = |deed: Deed, body: &[u8], outcome: Outcome<Vec<u8>>, starts: u32| {
        let (body, fault) = (body.to_vec(), Fault::default());
        std::panic::catch_unwind(move || judge(7, deed, &body, &outcome, starts, false, fault)).is_err()
    };
    let body = b"\x07\0\0\0\0body";
    assert!(!refused(Deed::Echo, body, Outcome::Done(reply_to(body)), 1));
    assert!(refused(Deed::Echo, body, Outcome::Done(reply_to(body)), 2));
    assert!(refused(Deed::Echo, body, Outcome::Done(reply_to(body)), 0));
    assert!(refused(Deed::Echo, body, Outcome::Done(body.to_vec()), 1));
    assert!(refused(Deed::Swell, body, Outcome::Done(swollen(8)), 1));
    assert!(refused(Deed::Fail, body, Outcome::Done(Vec::new()), 1));
    let crashed = Outcome::Crashed(Crash { cause: CrashCause::Signal(9), oom: None });
    assert!(!refused(Deed::Die, body, crashed.clone(), 1));
    assert!(refused(Deed::Echo, body, crashed, 1));
    std::panic::set_hook(hook);
}
