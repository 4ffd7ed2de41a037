//! Jobs that are tried again, that wait too long, that are told to end before they are killed, and workers that come to
//! grief by lot.
//!
//! Each start is counted in memory that all processes share, by the job's number.

use seqpool::TransportKind;
use seqpool::limits::GRACE;
use seqpool::{Builder, Chaos, Completion, CrashCause, ErrorKind, Fate, Job, JobLimits, Outcome, Pool, Prints, Reason};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

mod support;

fn main() {
    support::main(&support::cases_on_each_transport![
        a_job_is_tried_as_often_as_asked,
        a_job_that_succeeds_is_tried_no_more,
        nothing_is_tried_again_unasked,
        only_what_is_asked_for_is_tried_again,
        a_handler_and_a_job_have_bounds_of_their_own,
        large_jobs_are_tried_again,
        a_batch_is_tried_again_one_by_one,
        cancelling_ends_the_attempts,
        attempts_wait_ever_longer,
        the_longest_wait_is_no_error,
        a_run_that_is_over_tries_nothing_again,
        bytes_that_wait_are_bounded => 120,
        row_10_poison_job,
        a_job_that_waits_too_long_is_rejected,
        a_job_that_started_in_time_is_not,
        a_worker_is_told_before_it_is_killed,
        a_result_in_the_time_of_grace_counts,
        a_worker_that_does_not_listen_is_killed,
        chaos_strikes_exactly_those_drawn => 180,
        chaos_with_retries_loses_nothing => 180,
        what_crashes_in_spite_of_retries_is_quarantined,
        every_crash_is_quarantined_if_asked,
        what_never_started_is_quarantined_too,
        last_words_are_quarantined,
        a_job_runs_without_a_pool,
        nonsense_is_refused,
    ]);
}

const JOBS_MAX: usize = 1 << 16;

fn starts() -> &'static [AtomicU32] {
    static MEMORY: OnceLock<&'static [AtomicU32]> = OnceLock::new();
    MEMORY.get_or_init(|| support::shared_words(JOBS_MAX))
}

fn started(number: u64) -> u32 {
    starts()[number as usize].load(SeqCst)
}

/// A pool whose jobs begin with their number (u32) and what to do: a letter for each attempt, the last one for all that
/// follow: `e`cho, `f`ail, `p`anic, `d`ie, `h`ang, `t`idy up when told to end, `l`ate: ends properly when told to end,
/// `w`rites its last words and dies, `s`leep for 100 ms, `q`uit after as long, `i`gnore all signals.
fn builder(workers: usize, transport: TransportKind) -> Builder {
    starts().iter().for_each(|word| word.store(0, SeqCst));
    Pool::builder().workers(workers).transport(transport).retry_backoff(Duration::from_millis(1)).handler(
        "do",
        |request, reply| {
            let body = request.body();
            let number = u32::from_le_bytes(body[..4].try_into()?);
            let attempt = starts()[number as usize].fetch_add(1, SeqCst) as usize;
            let orders = body[4..].split(|b| *b == b' ').next().unwrap_or_default();
            match orders[attempt.min(orders.len() - 1)] {
                b'e' => reply.forward(..),
                b'f' => return Err(format!("attempt {attempt}").into()),
                b'p' => panic!("attempt {attempt}"),
                b'd' => nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL)?,
                b'h' => std::thread::sleep(Duration::from_secs(1000)),
                b'w' => {
                    println!("last words of attempt {attempt}");
                    std::process::abort();
                }
                b'q' => {
                    std::thread::sleep(Duration::from_millis(100));
                    return Err("late".into());
                }
                b's' => {
                    std::thread::sleep(Duration::from_millis(100));
                    reply.forward(..);
                }
                order @ (b't' | b'l') => {
                    wait_for_term()?;
                    if order == b't' {
                        starts()[JOBS_MAX - 1].fetch_add(1, SeqCst);
                        std::thread::sleep(Duration::from_secs(1000));
                    }
                    reply.forward(..);
                }
                b'i' => {
                    let all = nix::sys::signal::SigSet::all();
                    all.thread_block()?;
                    std::thread::sleep(Duration::from_secs(1000));
                }
                other => panic!("no order {other}"),
            }
            Ok(())
        },
    )
}

/// Sleeps until this process is told to end.
fn wait_for_term() -> nix::Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    let term: SigSet = [Signal::SIGTERM].into_iter().collect();
    term.thread_block()?;
    term.wait().map(drop)
}

fn body(number: u64, orders: &str) -> Vec<u8> {
    [&(number as u32).to_le_bytes()[..], orders.as_bytes()].concat()
}

#[derive(Debug, PartialEq, Eq)]
struct End {
    outcome: Outcome<usize>,
    attempts: u32,
}

/// Submits jobs by number and orders, and waits for all of them.
fn run(pool: &mut Pool, jobs: &[(u64, &str)]) -> BTreeMap<u64, End> {
    let mut ends = BTreeMap::new();
    for (number, orders) in jobs {
        pool.submit(Job::new("do", &body(*number, orders)).tag(*number)).expect("room");
    }
    take(pool, &mut ends);
    ends
}

fn take(pool: &mut Pool, ends: &mut BTreeMap<u64, End>) {
    while pool.outstanding() > 0 {
        pool.poll(None, |completion, _| note(ends, &completion)).expect("a pool");
    }
}

fn note(ends: &mut BTreeMap<u64, End>, completion: &Completion<'_>) {
    let outcome = completion.outcome.clone().map(<[u8]>::len);
    let end = End { outcome, attempts: completion.attempts() };
    assert!(ends.insert(completion.tag, end).is_none(), "job {} has two outcomes", completion.tag);
}

fn is_crash(outcome: &Outcome<usize>) -> bool {
    matches!(outcome, Outcome::Crashed(crash) if crash.cause == CrashCause::Signal(9))
}

// ---- retries

fn a_job_is_tried_as_often_as_asked(transport: TransportKind) {
    for retries in [0, 1, 3] {
        let limits = JobLimits::new().timeout(Duration::from_millis(50));
        let mut pool = builder(2, transport).retries(retries).handler_limits("do", limits).spawn().unwrap();
        let ends = run(&mut pool, &[(1, "f"), (2, "p"), (3, "d"), (4, "h"), (5, "e")]);
        for number in 1..=4 {
            assert_eq!((started(number), ends[&number].attempts), (retries + 1, retries + 1), "job {number}");
        }
        let last = format!("attempt {retries}");
        assert_eq!(ends[&1].outcome, Outcome::Failed { message: last.clone(), panicked: false });
        assert_eq!(ends[&2].outcome, Outcome::Failed { message: last, panicked: true });
        assert!(is_crash(&ends[&3].outcome), "{:?}", ends[&3]);
        assert_eq!(ends[&4].outcome, Outcome::TimedOut { after: Duration::from_millis(50) });
        assert_eq!(ends[&5], End { outcome: Outcome::Done(5), attempts: 1 });
        assert_eq!(pool.stats().retries, u64::from(4 * retries));
        let stats = pool.stats();
        assert_eq!((stats.done, stats.failed, stats.crashed, stats.timed_out), (1, 2, 1, 1));
    }
}

fn a_job_that_succeeds_is_tried_no_more(transport: TransportKind) {
    let limits = JobLimits::new().timeout(Duration::from_millis(50));
    let mut pool = builder(2, transport).retries(9).handler_limits("do", limits).spawn().unwrap();
    let ends = run(&mut pool, &[(1, "fe"), (2, "pde"), (3, "dhfe"), (4, "e")]);
    for (number, attempts) in [(1, 2), (2, 3), (3, 4), (4, 1)] {
        assert_eq!((started(number), ends[&number].attempts), (attempts, attempts), "job {number}");
        assert!(ends[&number].outcome.is_done(), "job {number}: {:?}", ends[&number]);
    }
}

fn nothing_is_tried_again_unasked(transport: TransportKind) {
    let mut pool = builder(2, transport).spawn().unwrap();
    let jobs: Vec<_> = (0..300).map(|n| (n, ["e", "f", "d"][n as usize % 3])).collect();
    let ends = run(&mut pool, &jobs);
    assert_eq!(ends.len(), 300);
    assert!((0..300).all(|n| started(n) == 1 && ends[&n].attempts == 1));
}

fn only_what_is_asked_for_is_tried_again(transport: TransportKind) {
    let only_crashes = |outcome: &Outcome<&[u8]>| matches!(outcome, Outcome::Crashed(_));
    let mut pool = builder(2, transport).retries(2).retry_on(only_crashes).spawn().unwrap();
    run(&mut pool, &[(1, "f"), (2, "d"), (3, "df")]);
    assert_eq!((started(1), started(2), started(3)), (1, 3, 2));
}

fn a_handler_and_a_job_have_bounds_of_their_own(transport: TransportKind) {
    let never = JobLimits::new().retries(0);
    let builder = builder(2, transport).retries(5).handler_limits("do", JobLimits::new().retries(1));
    let mut pool = builder.spawn().unwrap();
    pool.submit(Job::new("do", &body(1, "f")).tag(1)).unwrap();
    pool.submit(Job::new("do", &body(2, "f")).tag(2).limits(never)).unwrap();
    pool.submit(Job::new("do", &body(3, "f")).tag(3).limits(JobLimits::new().retries(3))).unwrap();
    take(&mut pool, &mut BTreeMap::new());
    assert_eq!((started(1), started(2), started(3)), (2, 1, 4));
}

fn large_jobs_are_tried_again(transport: TransportKind) {
    let mut pool = builder(2, transport).retries(3).spawn().unwrap();
    let orders = |orders: &str| format!("{orders} {}", "x".repeat(3 << 20));
    let (first, second) = (orders("fde"), orders("d"));
    let ends = run(&mut pool, &[(1, &first), (2, &second), (3, "ddfe")]);
    assert_eq!(ends[&1], End { outcome: Outcome::Done(4 + first.len()), attempts: 3 });
    assert!(is_crash(&ends[&2].outcome) && ends[&2].attempts == 4);
    assert_eq!(ends[&3], End { outcome: Outcome::Done(8), attempts: 4 });
}

/// Jobs that are packed with others and tried again among them: each has its own attempts and its one outcome.
fn a_batch_is_tried_again_one_by_one(transport: TransportKind) {
    let mut pool = builder(2, transport).retries(2).spawn().unwrap();
    let orders = |n: u64| match n {
        n if n % 101 == 7 => "de",
        n if n % 53 == 5 => "ffe",
        n if n % 97 == 3 => "f",
        _ => "e",
    };
    let bodies: Vec<_> = (0..5_000).map(|n| body(n, orders(n))).collect();
    let (mut ends, mut order) = (BTreeMap::new(), Vec::new());
    pool.for_each("do", &bodies, |completion, _| {
        order.push(completion.tag);
        note(&mut ends, &completion);
    })
    .unwrap();
    assert_eq!(ends.len(), 5_000);
    for n in 0..5_000 {
        let attempts = match orders(n) {
            "e" => 1,
            "de" => 2,
            _ => 3,
        };
        assert_eq!((started(n), ends[&n].attempts), (attempts, attempts), "job {n}");
        assert_eq!(ends[&n].outcome.is_done(), orders(n) != "f", "job {n}");
    }
    // And in order, where a job that is tried again holds back the later ones.
    starts().iter().for_each(|word| word.store(0, SeqCst));
    let outcomes: Vec<_> = pool.map("do", &bodies).collect();
    assert_eq!(outcomes.len(), 5_000);
    for (n, outcome) in outcomes.into_iter().enumerate() {
        assert_eq!(outcome.done().is_some_and(|b| b == bodies[n]), orders(n as u64) != "f", "job {n}");
    }
}

fn cancelling_ends_the_attempts(transport: TransportKind) {
    let mut pool = builder(1, transport).retries(1000).retry_backoff(Duration::from_secs(100)).spawn().unwrap();
    let ticket = pool.submit(Job::new("do", &body(1, "f")).tag(1)).unwrap();
    let other = pool.submit(Job::new("do", &body(2, "d")).tag(2)).unwrap();
    assert!(support::wait_until(Duration::from_secs(20), || {
        pool.poll(Some(Duration::from_millis(1)), |_, _| panic!("nothing is over")).unwrap();
        pool.stats().retries == 2
    }));
    assert!(pool.cancel(ticket) && !pool.cancel(ticket));
    let mut ends = BTreeMap::new();
    pool.poll(None, |completion, _| note(&mut ends, &completion)).unwrap();
    assert!(matches!(ends[&1], End { outcome: Outcome::Cancelled { .. }, attempts: 1 }), "{ends:?}");
    pool.kill_all();
    take(&mut pool, &mut ends);
    assert!(matches!(ends[&2], End { outcome: Outcome::Cancelled { .. }, attempts: 1 }), "{ends:?}");
    assert!(!pool.cancel(other));
    assert_eq!((started(1), started(2)), (1, 1));
}

fn attempts_wait_ever_longer(transport: TransportKind) {
    let mut pool = builder(1, transport).retries(4).retry_backoff(Duration::from_millis(20)).spawn().unwrap();
    let start = Instant::now();
    run(&mut pool, &[(1, "f")]);
    // 20, 40, 80 and 160 ms.
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    assert_eq!(started(1), 5);
}

fn the_longest_wait_is_no_error(transport: TransportKind) {
    let mut pool = builder(1, transport).retries(2).retry_backoff(Duration::MAX).spawn().unwrap();
    pool.submit(Job::new("do", &body(1, "f")).tag(1)).unwrap();
    assert!(support::wait_until(Duration::from_secs(20), || {
        pool.poll(Some(Duration::from_millis(1)), |_, _| panic!("nothing is over")).unwrap();
        pool.stats().retries == 1
    }));
    // It waits, and for long: neither is it tried at once.
    pool.poll(Some(Duration::from_millis(50)), |_, _| panic!("nothing is over")).unwrap();
    assert_eq!(started(1), 1);
    pool.kill_all();
    let mut ends = BTreeMap::new();
    take(&mut pool, &mut ends);
    assert!(matches!(ends[&1].outcome, Outcome::Cancelled { .. }), "{ends:?}");
}

fn a_run_that_is_over_tries_nothing_again(transport: TransportKind) {
    let mut pool = builder(2, transport).retries(1000).spawn().unwrap();
    let bodies: Vec<_> = (0..10).map(|n| body(n, if n == 0 { "e" } else { "f" })).collect();
    let first = pool.unordered("do", &bodies).next();
    assert!(first.is_some_and(|(_, outcome)| outcome.is_done()));
    // The iterator is gone, and what it began with it.
    let ends = run(&mut pool, &[(20, "e")]);
    assert_eq!(ends.len(), 1);
    let before: Vec<_> = (0..10).map(started).collect();
    std::thread::sleep(Duration::from_millis(100));
    run(&mut pool, &[(21, "e")]);
    assert_eq!((0..10).map(started).collect::<Vec<_>>(), before);
}

/// Jobs that fail again and again while others are submitted: their bytes do not fill the host.
fn bytes_that_wait_are_bounded(transport: TransportKind) {
    let mut pool = builder(2, transport).retries(1).retry_backoff(Duration::from_millis(500)).spawn().unwrap();
    let orders = format!("f {}", "x".repeat(100_000));
    let mut ends = BTreeMap::new();
    for number in 0..2_000 {
        pool.submit(Job::new("do", &body(number, &orders)).tag(number)).unwrap();
        pool.poll(Some(Duration::ZERO), |completion, _| note(&mut ends, &completion)).unwrap();
    }
    take(&mut pool, &mut ends);
    assert!(ends.len() == 2_000 && (0..2_000).all(|n| started(n) == 2));
    // 64 MiB that wait, and what rings and queue hold; all 2,000 would be 200 MB.
    let peak = support::vm_hwm(std::process::id() as i32).unwrap();
    assert!(peak < 150 << 20, "{peak} B");
}

fn row_10_poison_job(transport: TransportKind) {
    let mut pool = builder(2, transport).retries(3).spawn().unwrap();
    let mut jobs = vec![(0, "d")];
    jobs.extend((1..500).map(|n| (n, "e")));
    let ends = run(&mut pool, &jobs);
    assert!(is_crash(&ends[&0].outcome) && ends[&0].attempts == 4 && started(0) == 4);
    assert!((1..500).all(|n| started(n) == 1 && ends[&n].outcome.is_done()));
}

// ---- waiting for a start

fn a_job_that_waits_too_long_is_rejected(transport: TransportKind) {
    let after = Duration::from_millis(50);
    let limits = JobLimits::new().queue_timeout(after);
    let mut pool = builder(1, transport).timeout(Duration::from_millis(1500)).spawn().unwrap();
    pool.submit(Job::new("do", &body(1, "h")).tag(1)).unwrap();
    let begun = Instant::now();
    // One behind the running job in its slot, and one in the queue if the window is that small.
    for number in 2..5 {
        pool.submit(Job::new("do", &body(number, "e")).tag(number).limits(limits)).unwrap();
    }
    pool.submit(Job::new("do", &body(5, "e")).tag(5)).unwrap();
    let mut ends = BTreeMap::new();
    while ends.len() < 3 {
        pool.poll(None, |completion, _| note(&mut ends, &completion)).unwrap();
    }
    let took = begun.elapsed();
    assert!(took >= after && took < Duration::from_millis(1200), "{took:?}");
    for number in 2..5 {
        let outcome = Outcome::Rejected { reason: Reason::QueueTimeout { after } };
        assert_eq!(ends[&number], End { outcome, attempts: 0 });
    }
    take(&mut pool, &mut ends);
    assert!(matches!(ends[&1].outcome, Outcome::TimedOut { .. }) && ends[&5].outcome.is_done());
    assert_eq!([1, 2, 3, 4, 5].map(started), [1, 0, 0, 0, 1]);
}

fn a_job_that_started_in_time_is_not(transport: TransportKind) {
    let limits = JobLimits::new().queue_timeout(Duration::from_millis(50)).retries(1);
    let mut pool = builder(1, transport).handler_limits("do", limits).spawn().unwrap();
    assert!(pool.wait_ready(Duration::from_secs(20)).unwrap());
    // Runs for longer than it may wait; the second is tried again when it would have waited too long.
    let ends = run(&mut pool, &[(1, "s")]);
    assert_eq!(ends[&1], End { outcome: Outcome::Done(5), attempts: 1 });
    let ends = run(&mut pool, &[(2, "qe")]);
    assert_eq!(ends[&2], End { outcome: Outcome::Done(6), attempts: 2 });
    // What is over has no timer any more.
    let ends = run(&mut pool, &(3..1_000).map(|n| (n, "e")).collect::<Vec<_>>());
    std::thread::sleep(Duration::from_millis(60));
    pool.poll(Some(Duration::ZERO), |completion, _| panic!("{completion:?}")).unwrap();
    assert!(ends.len() == 997 && ends.values().all(|end| end.outcome.is_done()));
}

// ---- told before killed

fn a_worker_is_told_before_it_is_killed(transport: TransportKind) {
    let timeout = Duration::from_millis(50);
    let mut pool = builder(1, transport).timeout(timeout).spawn().unwrap();
    let ends = run(&mut pool, &[(1, "t"), (2, "e")]);
    assert_eq!(ends[&1].outcome, Outcome::TimedOut { after: timeout });
    assert_eq!((started((JOBS_MAX - 1) as u64), started(2)), (1, 1), "it has tidied up");
}

fn a_result_in_the_time_of_grace_counts(transport: TransportKind) {
    let builder = builder(1, transport).timeout(Duration::from_millis(50)).grace(Duration::from_secs(20));
    let mut pool = builder.spawn().unwrap();
    let begun = Instant::now();
    pool.submit(Job::new("do", &body(1, "l")).tag(1)).unwrap();
    let mut ends = BTreeMap::new();
    pool.poll(None, |completion, _| note(&mut ends, &completion)).unwrap();
    assert_eq!(ends[&1], End { outcome: Outcome::Done(5), attempts: 1 });
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

fn a_worker_that_does_not_listen_is_killed(transport: TransportKind) {
    let timeout = Duration::from_millis(50);
    for grace in [Duration::ZERO, GRACE, Duration::from_millis(300)] {
        let mut pool = builder(1, transport).timeout(timeout).grace(grace).spawn().unwrap();
        assert!(pool.wait_ready(Duration::from_secs(20)).unwrap());
        let begun = Instant::now();
        let ends = run(&mut pool, &[(1, "i")]);
        let took = begun.elapsed();
        assert_eq!(ends[&1].outcome, Outcome::TimedOut { after: timeout });
        assert!(took >= timeout + grace && took < timeout + grace + Duration::from_secs(2), "{grace:?}: {took:?}");
    }
}

// ---- chaos

fn chaos_strikes_exactly_those_drawn(transport: TransportKind) {
    let jobs = 20_000;
    for seed in [1, 2] {
        let timeout = Duration::from_millis(200);
        let chaos = Chaos::new(seed).kill(0.004).exit(0.003).stall(0.0005);
        let builder = builder(2, transport).timeout(timeout).chaos(chaos);
        let mut pool = builder.spawn().unwrap();
        let bodies: Vec<_> = (0..jobs).map(|n| body(n, "e")).collect();
        let mut ends = BTreeMap::new();
        pool.for_each("do", &bodies, |completion, _| note(&mut ends, &completion)).unwrap();
        assert_eq!(ends.len() as u64, jobs, "seed {seed}");
        for n in 0..jobs {
            let end = &ends[&n];
            match chaos.draw(n, 0) {
                None => assert_eq!((started(n), end.outcome.is_done()), (1, true), "seed {seed}, job {n}: {end:?}"),
                Some(fate) => {
                    let is_right = match (fate, &end.outcome) {
                        (Fate::Kill, outcome) => is_crash(outcome),
                        (Fate::Exit, Outcome::Crashed(crash)) => crash.cause == CrashCause::Code(74),
                        (Fate::Stall, outcome) => *outcome == Outcome::TimedOut { after: timeout },
                        _ => false,
                    };
                    assert!(is_right && started(n) == 0, "seed {seed}, job {n}: {fate:?}, but {end:?}");
                }
            }
        }
    }
}

fn chaos_with_retries_loses_nothing(transport: TransportKind) {
    let jobs = 5_000;
    let chaos = Chaos::new(5).kill(0.05);
    let mut pool = builder(2, transport).retries(20).chaos(chaos).spawn().unwrap();
    let bodies: Vec<_> = (0..jobs).map(|n| body(n, "e")).collect();
    let mut ends = BTreeMap::new();
    pool.for_each("do", &bodies, |completion, _| note(&mut ends, &completion)).unwrap();
    for n in 0..jobs {
        let tries = 1 + (0..).take_while(|&tried| chaos.draw(n, tried).is_some()).count() as u32;
        assert_eq!((ends[&n].attempts, started(n)), (tries, 1), "job {n}");
        assert!(ends[&n].outcome.is_done());
    }
}

// ---- quarantine

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    tag: u64,
    handler: String,
    headers: Vec<(Vec<u8>, Vec<u8>)>,
    body: Vec<u8>,
    attempts: u32,
    signal: Option<i32>,
    has_usage: bool,
}

/// Where capsules are kept.
type Shelf = std::sync::Arc<std::sync::Mutex<Vec<Kept>>>;

fn keep_capsules(builder: Builder) -> (Builder, Shelf) {
    let shelf = Shelf::default();
    let kept = shelf.clone();
    let builder = builder.on_quarantine(move |capsule| {
        kept.lock().unwrap().push(Kept {
            tag: capsule.tag,
            handler: capsule.handler.to_owned(),
            headers: capsule.headers().map(|(k, v)| (k.to_vec(), v.to_vec())).collect(),
            body: capsule.body.to_vec(),
            attempts: capsule.attempts,
            signal: match capsule.crash.cause {
                CrashCause::Signal(n) => Some(n),
                _ => None,
            },
            has_usage: capsule.usage.is_some_and(|u| u.resident_max_kib > 0),
        });
    });
    (builder, shelf)
}

/// Small, large and packed jobs; those that crashed at last after retries have a capsule with all of their input, and no
/// others.
fn what_crashes_in_spite_of_retries_is_quarantined(transport: TransportKind) {
    let (builder, shelf) = keep_capsules(builder(2, transport).retries(1));
    let mut pool = builder.spawn().unwrap();
    let large = format!("d {}", "x".repeat(2 << 20));
    let orders = ["d", "e", "f", "de", "fd", "df", &large];
    for (number, orders) in orders.iter().enumerate() {
        let body = body(number as u64, orders);
        pool.submit(Job::new("do", &body).header("key", "value").tag(number as u64)).unwrap();
    }
    let mut quarantined = Vec::new();
    while pool.outstanding() > 0 {
        pool.poll(None, |completion, _| {
            if completion.is_quarantined() {
                quarantined.push(completion.tag);
            }
        })
        .unwrap();
    }
    quarantined.sort_unstable();
    assert_eq!(quarantined, [0, 4, 6]);
    assert_eq!(pool.stats().quarantined, 3);
    let mut kept = shelf.lock().unwrap().clone();
    kept.sort_by_key(|k| k.tag);
    let expected = |tag: u64| Kept {
        tag,
        handler: "do".to_owned(),
        headers: vec![(b"key".to_vec(), b"value".to_vec())],
        body: body(tag, orders[tag as usize]),
        attempts: 2,
        signal: Some(9),
        has_usage: true,
    };
    assert!(kept == [0, 4, 6].map(expected), "{:?}", kept.iter().map(|k| (k.tag, k.attempts)).collect::<Vec<_>>());
}

fn every_crash_is_quarantined_if_asked(transport: TransportKind) {
    let (builder, shelf) = keep_capsules(builder(2, transport).quarantine_all(true));
    let limits = JobLimits::new().timeout(Duration::from_millis(100));
    let mut pool = builder.handler_limits("do", limits).spawn().unwrap();
    let bodies: Vec<_> = (0..3_000).map(|n| body(n, if n % 500 == 77 { "d" } else { "e" })).collect();
    pool.for_each("do", &bodies, |completion, _| {
        assert_eq!(completion.is_quarantined(), !completion.outcome.is_done(), "{}", completion.tag);
    })
    .unwrap();
    // Neither what fails nor what is killed for its deadline has crashed.
    let ends = run(&mut pool, &[(3_001, "f"), (3_002, "h")]);
    assert!(!ends.values().any(|end| end.outcome.is_done()));
    let mut tags: Vec<_> = shelf.lock().unwrap().iter().map(|k| (k.tag, k.attempts, k.body.len())).collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..6).map(|n| (n * 500 + 77, 1, 5)).collect::<Vec<_>>());
}

/// A job that is too large for every worker: the third that dies with it next in line makes it the cause.
fn what_never_started_is_quarantined_too(transport: TransportKind) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (builder, shelf) = keep_capsules(builder(1, transport).quarantine_all(true));
    let limit = || {
        let statm = std::fs::read_to_string("/proc/self/statm")?;
        let pages: u64 = statm.split(' ').next().unwrap_or_default().parse()?;
        let (_, hard) = getrlimit(Resource::RLIMIT_AS)?;
        setrlimit(Resource::RLIMIT_AS, pages * 4096 + (16 << 20), hard)?;
        Ok(())
    };
    let mut pool = builder.on_start(limit).spawn().unwrap();
    let large = format!("e {}", "x".repeat(40 << 20));
    let ends = run(&mut pool, &[(1, &large), (2, "e")]);
    assert!(
        matches!(&ends[&1].outcome, Outcome::Crashed(crash) if crash.cause == CrashCause::NeverStarted),
        "{ends:?}"
    );
    assert!(ends[&2].outcome.is_done());
    let kept = shelf.lock().unwrap();
    let [only] = &kept[..] else { panic!("{} capsules", kept.len()) };
    assert!(only.tag == 1 && only.attempts == 0 && only.body == body(1, &large) && started(1) == 0);
}

fn last_words_are_quarantined(transport: TransportKind) {
    let shelf = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = shelf.clone();
    let builder = builder(2, transport).retries(1).prints(Prints::Capture { size_max: 100 });
    let builder = builder.on_quarantine(move |capsule| {
        kept.lock().unwrap().push((capsule.tag, capsule.printed.map(<[u8]>::to_vec)));
    });
    let mut pool = builder.spawn().unwrap();
    run(&mut pool, &[(1, "w"), (2, "e")]);
    let words = b"last words of attempt 1\n".to_vec();
    assert_eq!(*shelf.lock().unwrap(), [(1, Some(words))]);
}

fn a_job_runs_without_a_pool(transport: TransportKind) {
    let here = |orders: &str| builder(1, transport).run_here(&Job::new("do", &body(1, orders))).unwrap();
    assert_eq!(here("e"), Outcome::Done(body(1, "e")));
    assert_eq!(here("f"), Outcome::Failed { message: "attempt 0".to_owned(), panicked: false });
    assert_eq!(here("p"), Outcome::Failed { message: "attempt 0".to_owned(), panicked: true });
    let unknown = builder(1, transport).run_here(&Job::new("dont", b"")).unwrap();
    assert_eq!(unknown, Outcome::Rejected { reason: Reason::UnknownHandler("dont".to_owned()) });
}

fn nonsense_is_refused(transport: TransportKind) {
    let refused = |builder: Builder, word: &str| match builder.spawn().map(drop) {
        Err(error) if matches!(error.kind(), ErrorKind::Config(_)) => {
            assert!(error.to_string().contains(word), "{error}");
        }
        other => panic!("{word}: {other:?}"),
    };
    refused(builder(1, transport).retries(1001), "1001 retries");
    refused(builder(1, transport).handler_limits("dont", JobLimits::new()), "'dont'");
    refused(builder(1, transport).chaos(Chaos::new(0).kill(2.0)), "kill=200%");
    refused(builder(1, transport).chaos(Chaos::new(0).stall(0.1)), "timeout");
}
