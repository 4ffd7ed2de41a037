//! The same again and again: chaos, kills at random moments, ends under load. A few rounds with the other tests, all of
//! them with the feature `soak`:
//!
//! ```text
//! cargo test --profile checks --features soak --test endurance -- --nocapture
//! ```

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seqpool::limits::{QUEUE_SIZE, RING_SIZE};
use seqpool::{Chaos, Crash, CrashCause, Fate, Job, Outcome, Pool, Reason};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};
use support::{Random, rounds};

mod support;

fn main() {
    support::main(&support::cases![
        chaos_of_kills => rounds(60, 300),
        chaos_of_kills_and_stalls => rounds(60, 300),
        minutes_of_chaos => rounds(60, 700),
        workers_killed_at_random_moments => rounds(60, 600),
        nurseries_killed_at_random_moments => rounds(60, 600),
        row_37_terminated_under_load => rounds(120, 1800),
    ]);
}

/// What a host may grow by: the allocator's pages, and what the kernel counts late. Units: bytes.
const GROWTH_MAX: u64 = 2 << 20;
/// What it has from its first to its second round through all of its rings: their pages count when they are first used, in
/// two slots an in-ring and an out-ring each, and the queue.
const RINGS_SIZE: u64 = 4 * RING_SIZE as u64 + QUEUE_SIZE as u64;
/// Jobs on their way at a time.
const AHEAD: usize = 4096;

/// How often each job was started.
fn starts(count: usize) -> &'static [AtomicU32] {
    static MEMORY: OnceLock<&'static [AtomicU32]> = OnceLock::new();
    let all = MEMORY.get_or_init(|| support::shared_words(1 << 20));
    all.iter().for_each(|word| word.store(0, Relaxed));
    &all[..count]
}

fn builder(starts: &'static [AtomicU32]) -> seqpool::Builder {
    Pool::builder().workers(2).handler("count", |request, reply| {
        let number = u32::from_le_bytes(request.body()[..4].try_into()?);
        starts[number as usize].fetch_add(1, Relaxed);
        if let [_, _, _, _, us] = request.body() {
            let end = Instant::now() + Duration::from_micros(u64::from(*us));
            while Instant::now() < end {
                std::hint::spin_loop();
            }
        }
        reply.extend_from_slice(&request.body()[..4]);
        Ok(())
    })
}

/// What one run of many jobs brought.
struct Ran {
    /// By number; 0 is none, 1 done, 2 killed, 3 timed out, 4 never started.
    ends: Vec<u8>,
    elapsed: Duration,
}

/// Everybody that a pool has started and that is not gone yet.
fn everybody() -> Vec<i32> {
    support::descendants(me())
}

fn me() -> i32 {
    std::process::id() as i32
}

fn fds() -> usize {
    support::open_fds(me()).len()
}

/// Submits jobs `0..count`, each of so many microseconds, and takes what becomes of them; `watch` is called now and then.
fn run(pool: &mut Pool, count: usize, us: u8, mut watch: impl FnMut(&Pool)) -> Ran {
    let (start, mut ends, mut next) = (Instant::now(), vec![0u8; count], 0usize);
    while next < count || pool.outstanding() > 0 {
        while next < count && pool.outstanding() < AHEAD {
            let body = [&(next as u32).to_le_bytes()[..], &[us][..usize::from(us > 0)]].concat();
            pool.submit(Job::new("count", &body).tag(next as u64)).expect("submit");
            next += 1;
        }
        let take = |completion: seqpool::Completion<'_>, _: &mut seqpool::Submitter<'_>| {
            let end = match &completion.outcome {
                Outcome::Done(body) if *body == (completion.tag as u32).to_le_bytes() => 1,
                Outcome::Crashed(Crash { cause: CrashCause::Signal(9), .. }) => 2,
                Outcome::TimedOut { .. } => 3,
                Outcome::Crashed(Crash { cause: CrashCause::NeverStarted, .. }) => 4,
                other => panic!("job {}: {other:?}", completion.tag),
            };
            let old = std::mem::replace(&mut ends[completion.tag as usize], end);
            assert_eq!(old, 0, "job {} has a second outcome", completion.tag);
        };
        pool.poll(Some(Duration::from_millis(100)), take).expect("poll");
        watch(pool);
    }
    Ran { ends, elapsed: start.elapsed() }
}

/// Runs the same jobs in quiet and under chaos, and checks all that chaos may not touch.
fn chaos(count: usize, seed: u64, shares: Chaos, timeout: Option<Duration>) {
    let starts = starts(count);
    let builder = || match timeout {
        Some(timeout) => builder(starts).timeout(timeout),
        None => builder(starts),
    };
    let mut pool = builder().spawn().expect("a pool");
    let quiet = run(&mut pool, count, 0, |_| {}).elapsed;
    drop(pool);

    starts.iter().for_each(|word| word.store(0, Relaxed));
    let mut pool = builder().chaos(shares).spawn().expect("a pool");
    assert!(pool.wait_ready(Duration::from_secs(20)).expect("poll"));
    let look = || (support::vm_rss(me()).expect("a size"), fds());
    let first = look();
    let (mut most_processes, mut last_look) = (0, Instant::now());
    let ran = run(&mut pool, count, 0, |_| {
        if last_look.elapsed() > Duration::from_millis(50) {
            last_look = Instant::now();
            most_processes = most_processes.max(everybody().len());
        }
    });
    // A slot that is empty for the moment has no socket.
    assert!(pool.wait_ready(Duration::from_secs(20)).expect("poll"));
    let last = look();
    let mut named = 0;
    for (number, end) in ran.ends.iter().enumerate() {
        let drawn = match shares.draw(number as u64, 0) {
            Some(Fate::Kill) => 2,
            Some(Fate::Stall) => 3,
            Some(Fate::Exit) => unreachable!("not among the shares"),
            None => 1,
        };
        assert_eq!(*end, drawn, "job {number}: 1 is done, 2 killed, 3 timed out, 4 never started");
        named += usize::from(drawn > 1);
        // Who is drawn does not come to the handler.
        assert_eq!(starts[number].load(Relaxed), u32::from(drawn == 1), "starts of job {number}");
    }
    let stats = pool.stats();
    assert_eq!((stats.jobs, stats.done), (count as u64, (count - named) as u64), "{stats:?}");
    let share = 100.0 * quiet.as_secs_f64() / ran.elapsed.as_secs_f64();
    println!(
        "seed {seed}: {count} jobs, {named} named as drawn, {:?}, quiet {quiet:?} ({share:.1} % of its throughput); host {} KiB and {} \
         descriptors, then {} KiB and {}; at most {most_processes} processes",
        ran.elapsed,
        first.0 / 1024,
        first.1,
        last.0 / 1024,
        last.1
    );
    assert!(last.0 <= first.0 + RINGS_SIZE + GROWTH_MAX, "the host grew");
    assert_eq!(last.1, first.1, "descriptors");
    // The nursery, the workers, and one that is not reaped yet in each slot.
    assert!(most_processes <= 5, "zombies gather");
}

fn chaos_of_kills() {
    for seed in [1, 2] {
        chaos(rounds(50_000, 1_000_000) as usize, seed, Chaos::new(seed).kill(0.01), None);
    }
}

fn chaos_of_kills_and_stalls() {
    for seed in [1, 2] {
        let shares = Chaos::new(seed).kill(0.005).stall(0.0005);
        chaos(rounds(10_000, 100_000) as usize, seed, shares, Some(Duration::from_millis(50)));
    }
}

/// One pool through all of it; what it has at the end is what it had at the start.
fn minutes_of_chaos() {
    const JOBS: usize = 20_000;
    let limit = Duration::from_secs(rounds(3, 600));
    let starts = starts(JOBS);
    let shares = Chaos::new(3).kill(0.01).stall(0.0005).exit(0.002);
    let mut pool = builder(starts).timeout(Duration::from_millis(50)).chaos(shares).spawn().expect("a pool");
    let round = |pool: &mut Pool, number: u64| {
        let mut done = vec![false; JOBS];
        let mut next = 0usize;
        while next < JOBS || pool.outstanding() > 0 {
            while next < JOBS && pool.outstanding() < AHEAD {
                // Drawn by their tags: other jobs each time.
                let tag = number * JOBS as u64 + next as u64;
                pool.submit(Job::new("count", &(next as u32).to_le_bytes()).tag(tag)).expect("submit");
                next += 1;
            }
            let take = |completion: seqpool::Completion<'_>, _: &mut seqpool::Submitter<'_>| {
                let right = match (&completion.outcome, shares.draw(completion.tag, 0)) {
                    (Outcome::Done(_), None) => true,
                    (Outcome::Crashed(crash), Some(Fate::Kill)) => crash.cause == CrashCause::Signal(9),
                    (Outcome::Crashed(crash), Some(Fate::Exit)) => matches!(crash.cause, CrashCause::Code(_)),
                    (Outcome::TimedOut { .. }, Some(Fate::Stall)) => true,
                    _ => false,
                };
                assert!(right, "job {}: {:?}", completion.tag, completion.outcome);
                let seen = &mut done[(completion.tag % JOBS as u64) as usize];
                assert!(!std::mem::replace(seen, true), "job {} has a second outcome", completion.tag);
            };
            pool.poll(Some(Duration::from_millis(100)), take).expect("poll");
        }
        assert!(done.iter().all(|done| *done));
    };
    let look = |pool: &Pool| {
        let (nursery, _) = pool.processes();
        let nursery = nursery.expect("a nursery");
        let size = |pid| support::vm_rss(pid).expect("a size");
        [size(me()), fds() as u64, size(nursery), support::open_fds(nursery).len() as u64]
    };
    // By then the rings' pages have all been used.
    const WARM_UP: u64 = 10;
    (0..WARM_UP).for_each(|number| round(&mut pool, number));
    assert!(pool.wait_ready(Duration::from_secs(20)).expect("poll"));
    let (first, start) = (look(&pool), Instant::now());
    let mut number = WARM_UP;
    while start.elapsed() < limit {
        round(&mut pool, number);
        number += 1;
    }
    assert!(pool.wait_ready(Duration::from_secs(20)).expect("poll"));
    let last = look(&pool);
    let stats = pool.stats();
    println!("{:?}, {number} rounds of {JOBS} jobs, {stats:?}", start.elapsed());
    for (when, [host, host_fds, nursery, nursery_fds]) in [("start", first), ("end", last)] {
        println!(
            "{when}: host {} KiB, {host_fds} descriptors; nursery {} KiB, {nursery_fds} descriptors; {} processes",
            host / 1024,
            nursery / 1024,
            everybody().len()
        );
    }
    assert!(last[0] <= first[0] + GROWTH_MAX && last[2] <= first[2] + GROWTH_MAX, "memory grew");
    assert_eq!((first[1], first[3]), (last[1], last[3]), "descriptors");
    assert_eq!(everybody().len(), 3, "the nursery and its workers");
}

/// From outside, so that it strikes between any two instructions of the worker.
fn workers_killed_at_random_moments() {
    const JOBS: usize = 3000;
    let mut random = Random::from_environment();
    let (mut crashed, mut kills) = (0, 0);
    let target = rounds(20, 200);
    while kills < target {
        let starts = starts(JOBS);
        let mut pool = builder(starts).spawn().expect("a pool");
        let mut at = Instant::now() + Duration::from_micros(random.below(3000));
        let ran = run(&mut pool, JOBS, 10, |pool| {
            if Instant::now() >= at && kills < target {
                let (_, workers) = pool.processes();
                if let Some(victim) = workers.first() {
                    // It is the nursery's to reap, which may have happened: then the number is nobody's yet.
                    kills += u64::from(kill(Pid::from_raw(*victim), Signal::SIGKILL).is_ok());
                }
                at = Instant::now() + Duration::from_micros(random.below(3000));
            }
        });
        for (number, end) in ran.ends.iter().enumerate() {
            let count = starts[number].load(Relaxed);
            // Killed between its claim and its first instruction, a job has not counted itself.
            assert!(count <= 1 && (*end != 1 || count == 1), "job {number}, started {count} times: {end}");
            // Three may die between jobs while the same one is next in line, which is charged with that.
            assert!(matches!(end, 1 | 2) || (*end == 4 && count == 0), "job {number}, started {count} times: {end}");
        }
        crashed += ran.ends.iter().filter(|end| **end != 1).count();
    }
    println!("{kills} kills, {crashed} jobs blamed");
    assert!((1..=kills).contains(&(crashed as u64)), "none in a job, or more jobs than kills");
}

fn nurseries_killed_at_random_moments() {
    const JOBS: usize = 3000;
    let mut random = Random::from_environment();
    let mut refused = 0;
    for round in 0..rounds(10, 200) {
        let starts = starts(JOBS);
        let shares = Chaos::new(round).kill(0.01);
        let mut pool = builder(starts).chaos(shares).spawn().expect("a pool");
        let nursery = pool.processes().0.expect("a nursery");
        let at = Instant::now() + Duration::from_micros(random.below(20_000));
        let (mut ends, mut killed) = (vec![false; JOBS], false);
        for number in 0..JOBS as u32 {
            pool.submit(Job::new("count", &number.to_le_bytes()).tag(number.into())).expect("submit");
        }
        while pool.outstanding() > 0 {
            if !killed && Instant::now() >= at {
                kill(Pid::from_raw(nursery), Signal::SIGKILL).expect("it is not reaped");
                killed = true;
            }
            let take = |completion: seqpool::Completion<'_>, _: &mut seqpool::Submitter<'_>| {
                let (tag, drawn) = (completion.tag, shares.draw(completion.tag, 0).is_some());
                let count = starts[tag as usize].load(Relaxed);
                let right = match &completion.outcome {
                    Outcome::Done(_) => !drawn && count == 1,
                    Outcome::Crashed(_) => drawn && count == 0,
                    Outcome::Rejected { reason: Reason::NoWorkers(_) } => {
                        refused += 1;
                        count == 0
                    }
                    _ => false,
                };
                assert!(right, "round {round}, job {tag}, started {count} times: {:?}", completion.outcome);
                assert!(!std::mem::replace(&mut ends[tag as usize], true), "job {tag} has a second outcome");
            };
            pool.poll(Some(Duration::from_millis(1)), take).expect("poll");
        }
        assert!(ends.iter().all(|end| *end), "round {round}");
        drop(pool);
    }
    println!("{refused} jobs refused");
}

/// `TERM` at any moment: what is printed is a beginning of the input, whole lines, in bounded time.
fn row_37_terminated_under_load() {
    let mut random = Random::from_environment();
    let input: Vec<u8> = (0..200_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    let expected: Vec<u8> = input.to_ascii_uppercase();
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&input).expect("a file");
    let (mut slowest, mut cut, mut early) = (Duration::ZERO, 0, 0);
    for round in 0..rounds(30, 1000) {
        use std::io::Seek;
        file.rewind().expect("a file");
        let mut command = support::cli(&["run", "-j2", "-k", "upper"]);
        command.stdin(file.try_clone().expect("a copy")).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().expect("the program");
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        let told = Instant::now();
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("it is not reaped");
        let (mut printed, mut said) = (Vec::new(), String::new());
        // The pipe holds little: the program waits for this reader, and drains only then.
        child.stdout.take().expect("piped").read_to_end(&mut printed).expect("read");
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("read");
        let status = child.wait().expect("waitpid");
        slowest = slowest.max(told.elapsed());
        assert!(told.elapsed() < Duration::from_secs(5), "round {round}: {:?}", told.elapsed());
        let is_beginning = expected.starts_with(&printed) && (printed.is_empty() || printed.ends_with(b"\n"));
        assert!(is_beginning, "round {round}: {} bytes are no beginning", printed.len());
        match (status.code(), status.signal()) {
            (Some(0), None) => assert_eq!(printed.len(), expected.len(), "round {round}"),
            (Some(143), None) => cut += 1,
            // Before it had asked to be told.
            (None, Some(15)) => early += 1,
            _ => panic!("round {round}: {status}: {said}"),
        }
    }
    println!("{cut} cut short, {early} before they listened, the slowest took {slowest:?}");
    assert!(cut > 0, "no signal came in the midst of a run");
}
