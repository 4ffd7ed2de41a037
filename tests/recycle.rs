//! Row 13 of the fault table: workers that are replaced after so many jobs, with a backlog.
//!
//! Each worker draws a number for itself when it starts, for the kernel gives process ids out again; each job's start is
//! counted in memory that all processes share.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seqpool::limits::{LEAVE_TIMEOUT, RESPAWN_BACKOFF_MIN};
use seqpool::sys::{Fault, Faulty, Linux, Sys};
use seqpool::{Builder, Completion, CrashCause, ErrorKind, Job, Outcome, Pool, Reason, Submitter, TransportKind};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::Random;

mod support;

/// How long anything may take that takes no time on a machine with nothing else to do.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    support::main(&support::cases_on_each_transport![
        ten_thousand_jobs_in_order => 180,
        no_worker_runs_more_than_it_may => 180,
        large_jobs_and_replies => 120,
        crashes_timeouts_and_cancels_between => 180,
        a_planned_end_needs_no_backoff,
        a_worker_that_does_not_leave_is_killed,
        the_nursery_is_gone,
        a_failing_kernel => 180,
        an_idle_worker_stays,
        none_at_all_is_refused,
    ]);
}

// ---- workers and what they share

const JOBS_MAX: usize = 1 << 16;
/// Behind the starts: how many workers have started.
const WORKERS: usize = JOBS_MAX;

fn words() -> &'static [AtomicU32] {
    static MEMORY: OnceLock<&'static [AtomicU32]> = OnceLock::new();
    MEMORY.get_or_init(|| support::shared_words(JOBS_MAX + 1))
}

/// Set in each worker: which one it is.
static WORKER: AtomicU32 = AtomicU32::new(0);

/// A pool whose jobs begin with their number (u32) and a letter that says what to do: `e`cho, `w`ho runs this, `f`ail,
/// `d`ie, `h`ang, `s`tay when told to leave.
fn builder(workers: usize, transport: TransportKind, jobs_per_worker: usize) -> Builder {
    words().iter().for_each(|word| word.store(0, SeqCst));
    Pool::builder()
        .workers(workers)
        .transport(transport)
        .max_jobs_per_worker(jobs_per_worker)
        .on_start(|| {
            WORKER.store(words()[WORKERS].fetch_add(1, SeqCst), SeqCst);
            Ok(())
        })
        .handler("do", |request, reply| {
            let body = request.body();
            let number = u32::from_le_bytes(body[..4].try_into()?);
            words()[number as usize].fetch_add(1, SeqCst);
            match body[4] {
                b'e' => reply.extend_from_slice(body),
                b'w' => reply.extend_from_slice(&WORKER.load(SeqCst).to_le_bytes()),
                b'f' => return Err("as told".into()),
                b'd' => kill(Pid::this(), Signal::SIGKILL)?,
                b'h' => std::thread::sleep(Duration::from_secs(1000)),
                b's' => stay(),
                other => panic!("no command {other}"),
            }
            Ok(())
        })
}

/// Leaves bytes in a stream of the C library that can never be written: a worker that leaves flushes it, and waits.
fn stay() {
    let (reader, writer) = nix::unistd::pipe().expect("a pipe");
    let writer = std::os::fd::IntoRawFd::into_raw_fd(writer);
    std::mem::forget(reader);
    // SAFETY: F_GETPIPE_SZ takes no argument.
    let size = unsafe { libc::fcntl(writer, libc::F_GETPIPE_SZ) } as usize;
    let full = vec![b'x'; size];
    // SAFETY: the bytes are live for the call, and the pipe is empty: it takes all of them at once.
    let n = unsafe { libc::write(writer, full.as_ptr().cast(), size) };
    assert_eq!(n, size as isize);
    // SAFETY: the mode is a string that ends with a zero; the descriptor is the stream's from here on.
    let stream = unsafe { libc::fdopen(writer, c"w".as_ptr()) };
    assert!(!stream.is_null());
    // SAFETY: a live stream and a string that ends with a zero.
    assert!(unsafe { libc::fputs(c"more".as_ptr(), stream) } >= 0);
}

fn body(number: usize, letter: u8, size: usize) -> Vec<u8> {
    let mut body = (number as u32).to_le_bytes().to_vec();
    body.push(letter);
    body.extend((0..size).map(|i| (i * 31 + number) as u8));
    body
}

type Outcomes = BTreeMap<u64, Outcome<Vec<u8>>>;

fn poll<S: Sys>(pool: &mut Pool<S>, outcomes: &mut Outcomes, timeout: Duration) {
    let take = |c: Completion<'_>, _: &mut Submitter<'_, S>| {
        let old = outcomes.insert(c.tag, c.outcome.map(<[u8]>::to_vec));
        assert!(old.is_none(), "job {} has two outcomes, {old:?} was the first", c.tag);
    };
    pool.poll(Some(timeout), take).expect("poll");
}

#[track_caller]
fn finish<S: Sys>(pool: &mut Pool<S>, outcomes: &mut Outcomes) {
    let deadline = Instant::now() + PATIENCE;
    while pool.outstanding() > 0 {
        assert!(Instant::now() < deadline, "no outcome within {PATIENCE:?}: {:?}", pool.stats());
        poll(pool, outcomes, Duration::from_millis(100));
    }
}

/// Every slot has its worker: counts of those that went and those that came are then alike.
#[track_caller]
fn settled<S: Sys>(pool: &mut Pool<S>) {
    assert!(pool.wait_ready(PATIENCE).expect("poll"), "{:?}", pool.stats());
}

#[track_caller]
fn started_once(jobs: usize) {
    for (job, starts) in words()[..jobs].iter().enumerate() {
        assert_eq!(starts.load(SeqCst), 1, "starts of job {job}");
    }
}

// ---- the cases

fn ten_thousand_jobs_in_order(transport: TransportKind) {
    const JOBS: usize = 10_000;
    let mut pool = builder(2, transport, 2).spawn().expect("a pool");
    let inputs: Vec<Vec<u8>> = (0..JOBS).map(|i| body(i, b'e', i % 50)).collect();
    let start = Instant::now();
    let mut next = 0;
    for outcome in pool.map("do", &inputs) {
        assert_eq!(outcome, Outcome::Done(inputs[next].clone()), "job {next}");
        next += 1;
    }
    let elapsed = start.elapsed();
    assert_eq!(next, JOBS);
    started_once(JOBS);
    settled(&mut pool);
    let stats = pool.stats();
    println!("{elapsed:?}, {stats:?}");
    assert_eq!((stats.jobs, stats.done), (JOBS as u64, JOBS as u64));
    // Two jobs each, but for the last one of each slot.
    assert!((4999..=5000).contains(&stats.recycled), "{stats:?}");
    assert_eq!(stats.respawns, stats.recycled, "{stats:?}");
    assert_eq!((stats.hostile, stats.abandoned), (0, 0), "{stats:?}");
    // With the shortest delay before each replacement, two slots would need 25 s.
    assert!(elapsed < RESPAWN_BACKOFF_MIN * 2500, "{elapsed:?}");
}

fn no_worker_runs_more_than_it_may(transport: TransportKind) {
    for (limit, workers, jobs) in [(1, 3, 600), (2, 2, 10_000), (3, 4, 1500), (100, 2, 10_000), (5000, 2, 20_000)] {
        let mut pool = builder(workers, transport, limit).spawn().expect("a pool");
        let inputs: Vec<Vec<u8>> = (0..jobs).map(|i| body(i, b'w', 3)).collect();
        let mut by_worker: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        let mut seen = vec![false; jobs];
        for (number, outcome) in pool.unordered("do", &inputs) {
            assert!(!std::mem::replace(&mut seen[number as usize], true), "job {number} has two outcomes");
            let Outcome::Done(worker) = outcome else { panic!("job {number}: {outcome:?}") };
            *by_worker.entry(worker).or_default() += 1;
        }
        assert!(seen.iter().all(|&seen| seen));
        started_once(jobs);
        settled(&mut pool);
        let stats = pool.stats();
        println!("{limit} jobs a worker: {} workers ran something, {stats:?}", by_worker.len());
        assert!(by_worker.values().all(|&count| count <= limit), "{by_worker:?}");
        // Who has run less is still there.
        assert!(by_worker.values().filter(|&&count| count < limit).count() <= workers, "{by_worker:?}");
        let full = by_worker.values().filter(|&&count| count == limit).count() as u64;
        assert_eq!((stats.recycled, stats.respawns), (full, full), "{stats:?}");
    }
}

fn large_jobs_and_replies(transport: TransportKind) {
    for limit in [1, 2, 3] {
        let mut pool = builder(2, transport, limit).spawn().expect("a pool");
        let mut random = Random(limit as u64);
        // Around a packet, several fragments, more than a ring, and small ones between.
        let sizes = [0, 100, 190 << 10, 200 << 10, 1 << 20, 3 << 20];
        let inputs: Vec<Vec<u8>> = (0..60).map(|i| body(i, b'e', sizes[random.below_usize(sizes.len())])).collect();
        for (number, outcome) in pool.map("do", &inputs).enumerate() {
            assert!(outcome == Outcome::Done(inputs[number].clone()), "job {number}");
        }
        started_once(inputs.len());
        settled(&mut pool);
        let stats = pool.stats();
        assert_eq!(stats.respawns, stats.recycled, "{stats:?}");
        let least = (inputs.len() / limit) as u64;
        assert!((least - 2..=least).contains(&stats.recycled), "{stats:?}");
    }
}

/// What must have become of a job.
fn judge(number: u64, letter: u8, cancelled: bool, outcome: &Outcome<Vec<u8>>, starts: u32) {
    assert!(starts <= 1, "job {number} was started {starts} times");
    if cancelled && matches!(outcome, Outcome::Cancelled { .. }) {
        return;
    }
    assert_eq!(starts, 1, "job {number}: {outcome:?}");
    let right = match (letter, outcome) {
        (b'e', Outcome::Done(reply)) => reply[4] == b'e' && reply[..4] == (number as u32).to_le_bytes(),
        (b'f', Outcome::Failed { message, panicked: false }) => message == "as told",
        (b'd', Outcome::Crashed(crash)) => crash.cause == CrashCause::Signal(9),
        (b'h', Outcome::TimedOut { .. }) => true,
        _ => false,
    };
    assert!(right, "job {number} ({}): {outcome:?}", letter as char);
}

fn crashes_timeouts_and_cancels_between(transport: TransportKind) {
    for limit in [1, 2, 3, 10] {
        let mut random = Random(limit as u64);
        let mut pool = builder(3, transport, limit).timeout(Duration::from_millis(100)).spawn().expect("a pool");
        let mut outcomes = Outcomes::new();
        let (mut letters, mut tickets, mut cancelled) = (Vec::new(), Vec::new(), Vec::new());
        const JOBS: usize = 600;
        for number in 0..JOBS {
            let letter = match random.below(60) {
                0..3 => b'd',
                3 => b'h',
                4..8 => b'f',
                _ => b'e',
            };
            // Hanging jobs come before the last worker of a slot has anything else to do.
            let size = if random.below(30) == 0 { 300 << 10 } else { 20 };
            let job = body(number, letter, size);
            tickets.push(pool.submit(Job::new("do", &job).tag(number as u64)).expect("room"));
            letters.push(letter);
            cancelled.push(false);
            if random.below(20) == 0 {
                let which = random.below_usize(number + 1);
                cancelled[which] |= pool.cancel(tickets[which]);
            }
            if random.below(10) == 0 {
                poll(&mut pool, &mut outcomes, Duration::from_micros(random.below(2000)));
            }
        }
        finish(&mut pool, &mut outcomes);
        settled(&mut pool);
        let stats = pool.stats();
        println!("{limit} jobs a worker: {stats:?}");
        assert_eq!(outcomes.len(), JOBS);
        for (&number, outcome) in &outcomes {
            let at = number as usize;
            judge(number, letters[at], cancelled[at], outcome, words()[at].load(SeqCst));
        }
        assert!(stats.crashed > 0 && stats.timed_out > 0 && stats.cancelled > 0 && stats.recycled > 0, "{stats:?}");
        assert_eq!((stats.hostile, stats.abandoned), (0, 0), "{stats:?}");
        // Each worker that went was recycled or ended one job: by its death, its deadline, or its cancelling.
        let killed_by_cancel = outcomes
            .iter()
            .filter(|(number, outcome)| {
                matches!(outcome, Outcome::Cancelled { .. }) && words()[**number as usize].load(SeqCst) == 1
            })
            .count() as u64;
        let died = stats.crashed + stats.timed_out + killed_by_cancel;
        assert_eq!(stats.respawns, stats.recycled + died, "{stats:?}, {killed_by_cancel} cancelled while running");
        // Never more than the results that there were.
        assert!(stats.recycled <= (stats.done + stats.failed) / limit as u64, "{stats:?}");
    }
}

fn a_planned_end_needs_no_backoff(transport: TransportKind) {
    const JOBS: usize = 500;
    let mut pool = builder(1, transport, 1).spawn().expect("a pool");
    settled(&mut pool);
    let inputs: Vec<Vec<u8>> = (0..JOBS).map(|i| body(i, b'e', 0)).collect();
    let start = Instant::now();
    assert!(pool.map("do", &inputs).all(|outcome| outcome.is_done()));
    let elapsed = start.elapsed();
    println!("{:?} for each worker", elapsed / JOBS as u32);
    assert!(elapsed < RESPAWN_BACKOFF_MIN * JOBS as u32 * 4 / 5, "{elapsed:?} for {JOBS} workers");
    settled(&mut pool);
    assert_eq!((pool.stats().recycled, pool.stats().respawns), (JOBS as u64, JOBS as u64));
}

fn a_worker_that_does_not_leave_is_killed(transport: TransportKind) {
    let mut pool = builder(1, transport, 2).spawn().expect("a pool");
    settled(&mut pool);
    let mut outcomes = Outcomes::new();
    for (number, letter) in [b's', b'f', b'w'].into_iter().enumerate() {
        pool.submit(Job::new("do", &body(number, letter, 0)).tag(number as u64)).expect("room");
    }
    let cpu = || support::cpu_time(std::process::id() as i32).expect("ours");
    let (start, cpu_before) = (Instant::now(), cpu());
    finish(&mut pool, &mut outcomes);
    let (elapsed, cpu) = (start.elapsed(), cpu() - cpu_before);
    // Its socket has hung up all the while, which must not keep the host busy.
    assert!(cpu < LEAVE_TIMEOUT / 4, "the host has used {cpu:?} in {elapsed:?}");
    assert_eq!(outcomes[&0], Outcome::Done(Vec::new()));
    assert!(matches!(outcomes[&1], Outcome::Failed { .. }));
    assert_eq!(outcomes[&2], Outcome::Done(1u32.to_le_bytes().to_vec()), "the second worker's");
    assert!(elapsed >= LEAVE_TIMEOUT && elapsed < LEAVE_TIMEOUT + Duration::from_secs(3), "{elapsed:?}");
    settled(&mut pool);
    let stats = pool.stats();
    assert_eq!((stats.recycled, stats.respawns, stats.crashed, stats.abandoned), (1, 1, 0, 0), "{stats:?}");
}

fn the_nursery_is_gone(transport: TransportKind) {
    let mut pool = builder(2, transport, 5).spawn().expect("a pool");
    settled(&mut pool);
    let nursery = pool.processes().0.expect("a nursery");
    kill(Pid::from_raw(nursery), Signal::SIGKILL).expect("kill");
    let mut outcomes = Outcomes::new();
    for number in 0..50 {
        pool.submit(Job::new("do", &body(number, b'e', 0)).tag(number as u64)).expect("room");
    }
    finish(&mut pool, &mut outcomes);
    let done = outcomes.values().filter(|outcome| outcome.is_done()).count();
    let refused = |outcome: &&Outcome<Vec<u8>>| matches!(outcome, Outcome::Rejected { reason: Reason::NoWorkers(_) });
    assert_eq!(outcomes.values().filter(refused).count(), 50 - done, "{outcomes:?}");
    // Nobody replaces those who have done what they may: five jobs each.
    assert_eq!(done, 10, "{:?}", pool.stats());
    let starts: u32 = words()[..50].iter().map(|word| word.load(SeqCst)).sum();
    assert_eq!(starts, 10);
}

fn a_failing_kernel(transport: TransportKind) {
    let fault = Fault {
        send_would_block: 20,
        send_no_memory: 50,
        recv_would_block: 20,
        recv_reset: 20,
        spurious_event: 10,
        stale_event: 10,
        lost_events: 50,
        interrupted_wait: 20,
        ..Fault::default()
    };
    for seed in 1..=3 {
        println!("seed {seed}");
        let sys = Faulty::new(seed, fault);
        let mut pool = builder(3, transport, 2).spawn_with(sys.clone()).expect("a pool");
        let inputs: Vec<Vec<u8>> = (0..400).map(|i| body(i, b'e', i % 700)).collect();
        for (number, outcome) in pool.map("do", &inputs).enumerate() {
            assert_eq!(outcome, Outcome::Done(inputs[number].clone()), "job {number}");
        }
        started_once(inputs.len());
        assert!(sys.injected() > 0);
        settled(&mut pool);
        let stats = pool.stats();
        assert_eq!((stats.respawns, stats.hostile, stats.crashed), (stats.recycled, 0, 0), "{stats:?}");
        assert!((198..=200).contains(&stats.recycled), "{stats:?}");
    }
}

fn an_idle_worker_stays(transport: TransportKind) {
    let mut pool = builder(1, transport, 3).spawn_with(Linux).expect("a pool");
    settled(&mut pool);
    let first = pool.processes().1;
    let mut outcomes = Outcomes::new();
    for number in 0..2 {
        pool.submit(Job::new("do", &body(number, b'e', 0)).tag(number as u64)).expect("room");
        finish(&mut pool, &mut outcomes);
    }
    poll(&mut pool, &mut outcomes, LEAVE_TIMEOUT * 2);
    assert_eq!((pool.processes().1, pool.stats().recycled), (first.clone(), 0));
    pool.submit(Job::new("do", &body(2, b'e', 0)).tag(2)).expect("room");
    finish(&mut pool, &mut outcomes);
    settled(&mut pool);
    assert_eq!(pool.stats().recycled, 1);
    assert_ne!(pool.processes().1, first);
}

fn none_at_all_is_refused(transport: TransportKind) {
    let error = builder(1, transport, 0).spawn().err().expect("no pool");
    assert!(matches!(error.kind(), ErrorKind::Config(text) if text.contains("max_jobs_per_worker")), "{error}");
}
