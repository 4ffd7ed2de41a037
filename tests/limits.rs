//! What workers may use: recycling by age and growth, memory limits (row 8 of the fault table), resource limits, CPUs; and
//! what the pool says of its own health.
//!
//! Each job's start is counted in memory that all processes share. Where no control group can be made, the cases that need
//! one say so, and do nothing; `RLIMIT_AS` is tested everywhere.

use nix::sched::CpuSet;
use nix::sys::resource::{self, getrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seqpool::limits::{
    EARLY_DEATHS_MAX, GROUP_REMOVE_TIMEOUT, MEMORY_LIMIT_MIN, OOM_SCORE_RAISE, RESPAWN_BACKOFF_MAX, WORKER_AGE_MIN,
};
use seqpool::sys::{Blow, Faulty, Strike};
use seqpool::{
    Builder, Completion, Crash, CrashCause, ErrorKind, Job, MemoryLimitKind, Outcome, Pool, Reason, Resource,
    SlotState, Submitter, TransportKind,
};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::{Random, wait_until};

mod support;

/// How long anything may take that takes no time on a machine with nothing else to do.
const PATIENCE: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;
/// Runs this program as a host of its own, which a case can kill: `--host TRANSPORT`.
const HOST: &str = "--host";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [HOST, transport] => return host_with_groups(transport),
        // Said once, and where it is seen also when everything passes.
        [] => drop(group_kind().inspect_err(|why| eprintln!("SKIPPED: cases with control groups: {why}"))),
        _ => {}
    }
    support::main(&support::cases_on_each_transport![
        workers_leave_at_their_age => 120,
        idle_workers_leave_at_their_age,
        the_job_in_hand_is_finished_at_that_age,
        workers_that_grow_are_replaced => 120,
        workers_that_do_not_grow_stay => 120,
        row_08_killed_for_memory_in_a_control_group => 120,
        row_08_fails_to_allocate => 120,
        a_failed_allocation_is_its_own_job_s,
        memory_of_set_up_does_not_count,
        a_process_of_the_worker_is_killed_for_memory,
        control_groups_go_with_a_killed_host => 120,
        control_groups_go_without_a_nursery => 120,
        failing_calls_cost_no_job => 240,
        limits_that_cannot_work_are_refused,
        resource_limits_hold,
        a_limit_that_the_kernel_refuses_is_named,
        workers_have_their_cpus,
        workers_are_killed_before_their_host,
        generators_are_seeded_by_worker,
        health_is_told => 120,
        health_without_a_nursery,
    ]);
}

// ---- workers and what they share

const JOBS_MAX: usize = 1 << 12;
/// Behind the starts: words for a case's own use.
const SPECIAL: usize = JOBS_MAX;

fn words() -> &'static [AtomicU32] {
    static MEMORY: OnceLock<&'static [AtomicU32]> = OnceLock::new();
    MEMORY.get_or_init(|| support::shared_words(JOBS_MAX + 8))
}

/// A pool whose jobs are `NUMBER WHAT [ARGUMENT]`, see `run`.
fn builder(workers: usize, transport: TransportKind) -> Builder {
    words().iter().for_each(|word| word.store(0, SeqCst));
    let leaked = RefCell::new(Vec::new());
    Pool::builder().workers(workers).transport(transport).handler("do", move |request, reply| {
        let text = std::str::from_utf8(request.body())?;
        let (number, what) = text.split_once(' ').ok_or("no number")?;
        words()[number.parse::<usize>()?].fetch_add(1, SeqCst);
        let answer = run(what, &mut leaked.borrow_mut())?;
        reply.extend_from_slice(answer.as_bytes());
        Ok(())
    })
}

fn run(what: &str, leaked: &mut Vec<Vec<u8>>) -> Result<String, seqpool::HandlerError> {
    let (what, argument) = what.split_once(' ').unwrap_or((what, ""));
    let size = || argument.parse::<u64>().map(|mib| (mib * MIB) as usize);
    let read = |path: &str| std::fs::read_to_string(path);
    match what {
        "pid" => return Ok(std::process::id().to_string()),
        "sleep" => std::thread::sleep(Duration::from_millis(argument.parse()?)),
        "touch" => drop(std::hint::black_box(vec![1u8; size()?])),
        "leak" => leaked.push(vec![1u8; size()?]),
        "try" => {
            let mut room = Vec::<u8>::new();
            room.try_reserve_exact(size()?)?;
        }
        "abort" => std::process::abort(),
        "kill" => kill(Pid::this(), Signal::SIGKILL)?,
        "child" => {
            // SAFETY: the child does nothing but touch memory and leave.
            let child = match unsafe { nix::unistd::fork() }? {
                nix::unistd::ForkResult::Child => {
                    std::hint::black_box(vec![1u8; size()?]);
                    // SAFETY: _exit(2) does not return.
                    unsafe { libc::_exit(0) }
                }
                nix::unistd::ForkResult::Parent { child } => child,
            };
            return Ok(format!("{:?}", nix::sys::wait::waitpid(child, None)?));
        }
        "oom_score_adj" => return Ok(read("/proc/self/oom_score_adj")?.trim().to_owned()),
        "cpus" => {
            let set = nix::sched::sched_getaffinity(Pid::this())?;
            let cpus = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true));
            return Ok(cpus.map(|cpu| cpu.to_string()).collect::<Vec<_>>().join(","));
        }
        "limits" => {
            let all =
                [resource::Resource::RLIMIT_NOFILE, resource::Resource::RLIMIT_CPU, resource::Resource::RLIMIT_CORE];
            let all: Vec<_> = all.into_iter().map(getrlimit).collect::<Result<_, _>>()?;
            return Ok(format!("{all:?}"));
        }
        other => return Err(format!("no command {other}").into()),
    }
    Ok("ok".to_owned())
}

type Outcomes = BTreeMap<u64, Outcome<Vec<u8>>>;

fn submit(pool: &mut Pool, number: usize, what: &str) {
    pool.submit(Job::new("do", format!("{number} {what}").as_bytes()).tag(number as u64)).expect("room");
}

fn poll(pool: &mut Pool, outcomes: &mut Outcomes, timeout: Duration) {
    let take = |c: Completion<'_>, _: &mut Submitter<'_>| {
        let old = outcomes.insert(c.tag, c.outcome.map(<[u8]>::to_vec));
        assert!(old.is_none(), "job {} has two outcomes, {old:?} was the first", c.tag);
    };
    pool.poll(Some(timeout), take).expect("poll");
}

#[track_caller]
fn finish(pool: &mut Pool, outcomes: &mut Outcomes) {
    let deadline = Instant::now() + PATIENCE;
    while pool.outstanding() > 0 {
        assert!(Instant::now() < deadline, "no outcome within {PATIENCE:?}: {:?}, {}", pool.stats(), pool.health());
        poll(pool, outcomes, Duration::from_millis(50));
    }
}

/// One job's outcome.
#[track_caller]
fn one(pool: &mut Pool, number: usize, what: &str) -> Outcome<Vec<u8>> {
    submit(pool, number, what);
    let mut outcomes = Outcomes::new();
    finish(pool, &mut outcomes);
    outcomes.remove(&(number as u64)).expect("its outcome")
}

#[track_caller]
fn text(outcome: Outcome<Vec<u8>>) -> String {
    let Outcome::Done(body) = outcome else { panic!("{outcome:?}") };
    String::from_utf8(body).expect("text")
}

#[track_caller]
fn settled(pool: &mut Pool) {
    assert!(pool.wait_ready(PATIENCE).expect("poll"), "{}", pool.health());
}

/// Drives a pool without jobs.
fn idle(pool: &mut Pool, time: Duration) {
    let deadline = Instant::now() + time;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        poll(pool, &mut Outcomes::new(), left.max(Duration::from_millis(1)));
    }
}

#[track_caller]
fn started_once(jobs: usize) {
    for (job, starts) in words()[..jobs].iter().enumerate() {
        assert_eq!(starts.load(SeqCst), 1, "starts of job {job}");
    }
}

fn crashed(cause: CrashCause, oom: Option<bool>) -> Outcome<Vec<u8>> {
    Outcome::Crashed(Crash { cause, oom })
}

// ---- control groups

/// The kind that can be had here, or why there is none.
fn group_kind() -> Result<MemoryLimitKind, String> {
    let try_kind = |kind| {
        let builder = Pool::builder().workers(1).handler("do", |_, _| Ok(()));
        let pool = builder.memory_limit(64 * MIB).memory_limit_kind(kind).spawn().map_err(|e| e.to_string())?;
        assert_eq!(pool.memory_limit_kind(), Some(kind));
        Ok(kind)
    };
    let first: Result<_, String> = try_kind(MemoryLimitKind::CgroupV2);
    first.or_else(|v2| try_kind(MemoryLimitKind::CgroupV1).map_err(|v1: String| format!("{v2}; {v1}")))
}

/// The kind, or `None` after having said that the case is skipped.
fn group_kind_or_skip() -> Option<MemoryLimitKind> {
    group_kind().inspect_err(|why| println!("SKIPPED: {why}")).ok()
}

/// All groups of pools of this host, wherever they lie.
fn groups_of(host: u32) -> Vec<PathBuf> {
    fn walk(folder: &Path, name: &str, depth: usize, found: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            if entry.file_name().to_string_lossy().starts_with(name) {
                found.push(entry.path());
            } else if depth > 0 {
                walk(&entry.path(), name, depth - 1, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), &format!("seqpool-{host}-"), 8, &mut found);
    found
}

fn own_groups() -> Vec<PathBuf> {
    groups_of(std::process::id())
}

// ---- recycling

fn workers_leave_at_their_age(transport: TransportKind) {
    const JOBS: usize = 300;
    let mut pool = builder(2, transport).max_worker_age(Duration::from_millis(200)).spawn().expect("a pool");
    settled(&mut pool);
    let inputs: Vec<String> = (0..JOBS).map(|i| format!("{i} sleep 10")).collect();
    let start = Instant::now();
    assert!(pool.map("do", &inputs).all(|outcome| outcome.is_done()));
    let elapsed = start.elapsed();
    started_once(JOBS);
    settled(&mut pool);
    let stats = pool.stats();
    println!("{elapsed:?}, {stats:?}");
    // 1.5 s of work for each of two workers, an age of at most 0.2 s and of at least seven eighths of it.
    assert!((10..=20).contains(&stats.recycled) || elapsed > Duration::from_secs(2), "{stats:?} in {elapsed:?}");
    assert_eq!((stats.respawns, stats.crashed, stats.hostile), (stats.recycled, 0, 0), "{stats:?}");
    assert!(!pool.health().is_degraded(), "{}", pool.health());
}

fn idle_workers_leave_at_their_age(transport: TransportKind) {
    let mut pool = builder(2, transport).max_worker_age(WORKER_AGE_MIN).spawn().expect("a pool");
    settled(&mut pool);
    let before: BTreeSet<_> = pool.processes().1.into_iter().collect();
    let start = Instant::now();
    while pool.stats().recycled < 12 {
        assert!(start.elapsed() < PATIENCE, "{:?}", pool.stats());
        idle(&mut pool, Duration::from_millis(20));
        // Never thought to be dying early, though none has ever finished a job.
        assert!(!pool.health().is_degraded(), "{}", pool.health());
    }
    assert!(start.elapsed() >= WORKER_AGE_MIN * 4, "{:?}", start.elapsed());
    settled(&mut pool);
    let after: BTreeSet<_> = pool.processes().1.into_iter().collect();
    assert!(before.is_disjoint(&after), "{before:?}, {after:?}");
    assert_eq!(one(&mut pool, 0, "touch 1"), Outcome::Done(b"ok".to_vec()));
}

fn the_job_in_hand_is_finished_at_that_age(transport: TransportKind) {
    let mut pool = builder(2, transport).max_worker_age(Duration::from_millis(200)).spawn().expect("a pool");
    settled(&mut pool);
    let mut outcomes = Outcomes::new();
    submit(&mut pool, 0, "sleep 1200");
    for number in 1..100 {
        submit(&mut pool, number, "sleep 5");
    }
    let start = Instant::now();
    let mut state_seen = false;
    while pool.outstanding() > 1 {
        assert!(start.elapsed() < PATIENCE, "{:?}", pool.stats());
        poll(&mut pool, &mut outcomes, Duration::from_millis(20));
        state_seen |= pool.health().slots.iter().any(|slot| slot.state == SlotState::Leaving);
    }
    // The other worker has done them, and its successors.
    assert!(!outcomes.contains_key(&0) || start.elapsed() > Duration::from_millis(1200), "{outcomes:?}");
    finish(&mut pool, &mut outcomes);
    assert!(outcomes.values().all(Outcome::is_done), "{outcomes:?}");
    assert!(state_seen, "a worker with a job in hand is leaving");
    started_once(100);
    settled(&mut pool);
    assert_eq!(pool.stats().respawns, pool.stats().recycled, "{:?}", pool.stats());
}

fn workers_that_grow_are_replaced(transport: TransportKind) {
    const JOBS: usize = 300;
    let mut pool = builder(2, transport).max_worker_growth(16 * MIB).spawn().expect("a pool");
    let mut outcomes = Outcomes::new();
    for number in 0..JOBS {
        submit(&mut pool, number, "leak 1");
        submit(&mut pool, JOBS + number, "sleep 5");
        poll(&mut pool, &mut outcomes, Duration::ZERO);
    }
    finish(&mut pool, &mut outcomes);
    assert!(outcomes.values().all(Outcome::is_done), "{outcomes:?}");
    started_once(2 * JOBS);
    idle(&mut pool, Duration::from_millis(300));
    settled(&mut pool);
    let stats = pool.stats();
    println!("{stats:?}");
    // A look every 100 ms, in which a worker leaks 20 MiB if it sleeps 5 ms for each.
    assert!((3..=JOBS as u64 / 17).contains(&stats.recycled), "{stats:?}");
    assert_eq!((stats.respawns, stats.crashed, stats.hostile), (stats.recycled, 0, 0), "{stats:?}");
    // The last of them have less than they may.
    let anonymous = |pid: &i32| {
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("a worker");
        let pages: Vec<u64> = statm.split_whitespace().map(|n| n.parse().expect("a number")).collect();
        (pages[1] - pages[2]) * 4096
    };
    let left: Vec<u64> = pool.processes().1.iter().map(anonymous).collect();
    assert!(left.iter().all(|&bytes| bytes < 24 * MIB), "{left:?}");
}

fn workers_that_do_not_grow_stay(transport: TransportKind) {
    let kept = RefCell::new(Vec::new());
    let mut pool = builder(2, transport)
        .max_worker_growth(16 * MIB)
        // What set-up takes is not growth.
        .on_start(move || {
            kept.borrow_mut().push(vec![1u8; 64 << 20]);
            Ok(())
        })
        .spawn()
        .expect("a pool");
    settled(&mut pool);
    let mut outcomes = Outcomes::new();
    let long = "x".repeat(200_000);
    for number in 0..1000 {
        // Round the rings, and memory that is given back.
        submit(&mut pool, number, if number % 4 == 0 { "touch 8" } else { "sleep 1" });
        if number % 10 == 0 {
            pool.submit(Job::new("do", format!("{} {long}", JOBS_MAX - 1).as_bytes()).tag(5000 + number as u64))
                .expect("room");
        }
        poll(&mut pool, &mut outcomes, Duration::ZERO);
    }
    finish(&mut pool, &mut outcomes);
    assert_eq!(outcomes.values().filter(|o| o.is_done()).count(), 1000);
    idle(&mut pool, Duration::from_millis(300));
    assert_eq!((pool.stats().recycled, pool.stats().respawns), (0, 0), "{:?}", pool.stats());
}

// ---- memory limits

fn row_08_killed_for_memory_in_a_control_group(transport: TransportKind) {
    let Some(kind) = group_kind_or_skip() else { return };
    let mut pool = builder(2, transport).memory_limit(64 * MIB).spawn().expect("a pool");
    assert_eq!(pool.memory_limit_kind(), Some(kind), "what can be had is taken");
    settled(&mut pool);
    assert_eq!(own_groups().len(), 1);
    let mut outcomes = Outcomes::new();
    for number in 0..60 {
        submit(&mut pool, number, ["touch 32", "sleep 1", "touch 200"][if number % 20 == 10 { 2 } else { number % 2 }]);
    }
    submit(&mut pool, 60, "kill");
    submit(&mut pool, 61, "abort");
    submit(&mut pool, 62, "touch 32");
    finish(&mut pool, &mut outcomes);
    started_once(63);
    for (&number, outcome) in &outcomes {
        let expected = match number {
            10 | 30 | 50 => crashed(CrashCause::Signal(9), Some(true)),
            60 => crashed(CrashCause::Signal(9), Some(false)),
            61 => crashed(CrashCause::Signal(6), Some(false)),
            _ => Outcome::Done(b"ok".to_vec()),
        };
        assert_eq!(*outcome, expected, "job {number}");
    }
    assert_eq!(outcomes[&10].to_string(), "crashed: out of memory");
    settled(&mut pool);
    assert_eq!((pool.stats().crashed, pool.stats().respawns), (5, 5), "{:?}", pool.stats());
    drop(pool);
    assert_eq!(own_groups(), [] as [PathBuf; 0]);
}

/// A backtrace makes calls of its own between the allocation that fails and the abort: then nobody knows.
fn without_backtraces() {
    // SAFETY: this process has one thread.
    unsafe { std::env::set_var("RUST_BACKTRACE", "0") };
}

fn row_08_fails_to_allocate(transport: TransportKind) {
    without_backtraces();
    let kind = MemoryLimitKind::AddressSpace;
    let mut pool = builder(2, transport).memory_limit(64 * MIB).memory_limit_kind(kind).spawn().expect("a pool");
    assert_eq!(pool.memory_limit_kind(), Some(kind));
    settled(&mut pool);
    assert_eq!(own_groups(), [] as [PathBuf; 0]);
    let mut outcomes = Outcomes::new();
    for number in 0..60 {
        submit(&mut pool, number, ["touch 32", "sleep 1", "touch 200"][if number % 20 == 10 { 2 } else { number % 2 }]);
    }
    submit(&mut pool, 60, "kill");
    submit(&mut pool, 61, "abort");
    submit(&mut pool, 62, "try 200");
    submit(&mut pool, 63, "touch 32");
    finish(&mut pool, &mut outcomes);
    started_once(64);
    for (&number, outcome) in &outcomes {
        let expected = match number {
            10 | 30 | 50 => crashed(CrashCause::Signal(6), Some(true)),
            // Nobody knows.
            60 => crashed(CrashCause::Signal(9), None),
            61 => crashed(CrashCause::Signal(6), None),
            62 => {
                // The handler survived it.
                assert!(matches!(outcome, Outcome::Failed { panicked: false, .. }), "{outcome:?}");
                continue;
            }
            _ => Outcome::Done(b"ok".to_vec()),
        };
        assert_eq!(*outcome, expected, "job {number}");
    }
    settled(&mut pool);
    assert_eq!((pool.stats().crashed, pool.stats().respawns), (5, 5), "{:?}", pool.stats());
}

fn a_failed_allocation_is_its_own_job_s(transport: TransportKind) {
    let mut pool = builder(1, transport)
        .memory_limit(64 * MIB)
        .memory_limit_kind(MemoryLimitKind::AddressSpace)
        .spawn()
        .expect("a pool");
    settled(&mut pool);
    for round in 0..20 {
        let mut outcomes = Outcomes::new();
        // In one pack: no call between them fails for another reason.
        for number in 3 * round..3 * round + 2 {
            submit(&mut pool, number, "try 200");
        }
        submit(&mut pool, 3 * round + 2, "abort");
        finish(&mut pool, &mut outcomes);
        let last = outcomes.remove(&(3 * round as u64 + 2)).expect("its outcome");
        assert_eq!(last, crashed(CrashCause::Signal(6), None));
        assert!(outcomes.values().all(|outcome| matches!(outcome, Outcome::Failed { .. })), "{outcomes:?}");
    }
    started_once(60);
}

fn memory_of_set_up_does_not_count(transport: TransportKind) {
    without_backtraces();
    let kinds = [Some(MemoryLimitKind::AddressSpace), group_kind_or_skip()];
    for kind in kinds.into_iter().flatten() {
        let kept = RefCell::new(Vec::new());
        let mut pool = builder(1, transport)
            .memory_limit(32 * MIB)
            .memory_limit_kind(kind)
            .on_start(move || {
                kept.borrow_mut().push(vec![1u8; 100 << 20]);
                Ok(())
            })
            .spawn()
            .expect("a pool");
        settled(&mut pool);
        for round in 0..3 {
            assert_eq!(one(&mut pool, 3 * round, "touch 16"), Outcome::Done(b"ok".to_vec()), "{kind:?}");
            let outcome = one(&mut pool, 3 * round + 1, "touch 64");
            assert!(matches!(outcome, Outcome::Crashed(Crash { oom: Some(true), .. })), "{kind:?}: {outcome:?}");
            // The next worker of the slot has as much again.
            assert_eq!(one(&mut pool, 3 * round + 2, "touch 16"), Outcome::Done(b"ok".to_vec()), "{kind:?}");
        }
        assert_eq!(pool.stats().respawns, 3, "{:?}", pool.stats());
    }
}

fn a_process_of_the_worker_is_killed_for_memory(transport: TransportKind) {
    let Some(kind) = group_kind_or_skip() else { return };
    let mut pool = builder(1, transport).memory_limit(64 * MIB).memory_limit_kind(kind).spawn().expect("a pool");
    settled(&mut pool);
    assert!(text(one(&mut pool, 0, "child 16")).contains("Exited("));
    assert!(text(one(&mut pool, 1, "child 200")).contains("SIGKILL"), "its child counts, and is the larger one");
    // The worker lives; that it is killed by somebody else is not mistaken for the same.
    assert_eq!(one(&mut pool, 2, "touch 16"), Outcome::Done(b"ok".to_vec()));
    assert_eq!(pool.stats().respawns, 0);
    let outcome = one(&mut pool, 3, "abort");
    assert_eq!(outcome, crashed(CrashCause::Signal(6), Some(false)));
}

fn host_with_groups(transport: &str) {
    let transport = *TransportKind::ALL.iter().find(|t| t.name() == transport).expect("a transport");
    let mut pool = builder(2, transport).memory_limit(64 * MIB).spawn().expect("a pool");
    settled(&mut pool);
    println!("{}", pool.processes().0.expect("a nursery"));
    for number in 0.. {
        submit(&mut pool, number % JOBS_MAX, "sleep 1");
        poll(&mut pool, &mut Outcomes::new(), Duration::from_millis(1));
    }
}

fn host(transport: TransportKind) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("current_exe"));
    command.args([HOST, transport.name()]).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// A host of its own, up, and its nursery.
fn start_host(transport: TransportKind) -> (std::process::Child, i32) {
    let mut child = host(transport).spawn().expect("a host");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    (child, line.trim().parse().expect("a process id"))
}

// `support::reaped` waits for it, as for all that is adopted.
#[allow(clippy::zombie_processes)]
fn control_groups_go_with_a_killed_host(transport: TransportKind) {
    if group_kind_or_skip().is_none() {
        return;
    }
    nix::sys::prctl::set_child_subreaper(true).expect("prctl");
    for round in 0..5 {
        let (host, _) = start_host(transport);
        assert_eq!(groups_of(host.id()).len(), 1);
        std::thread::sleep(Duration::from_millis(7 * round));
        kill(Pid::from_raw(host.id() as i32), Signal::SIGKILL).expect("kill");
        let start = Instant::now();
        assert!(wait_until(PATIENCE, support::reaped));
        assert_eq!(groups_of(host.id()), [] as [PathBuf; 0]);
        println!("all gone after {:?}", start.elapsed());
    }
    // While it starts: before its nursery is there, nobody can remove what it has made but the next pool.
    let mut random = Random::from_environment();
    for _ in 0..30 {
        let mut host = host(transport).spawn().expect("a host");
        std::thread::sleep(Duration::from_micros(random.below(15_000)));
        kill(Pid::from_raw(host.id() as i32), Signal::SIGKILL).expect("kill");
        assert!(wait_until(PATIENCE, support::reaped));
        if !groups_of(host.id()).is_empty() {
            group_kind().expect("a group");
        }
        assert_eq!(groups_of(host.id()), [] as [PathBuf; 0]);
        drop(host.stdout.take());
    }
}

#[allow(clippy::zombie_processes)]
fn control_groups_go_without_a_nursery(transport: TransportKind) {
    let Some(kind) = group_kind_or_skip() else { return };
    // The host removes them,
    let mut pool = builder(2, transport).memory_limit(64 * MIB).spawn().expect("a pool");
    settled(&mut pool);
    let nursery = pool.processes().0.expect("a nursery");
    kill(Pid::from_raw(nursery), Signal::SIGKILL).expect("kill");
    assert_eq!(one(&mut pool, 0, "touch 16"), Outcome::Done(b"ok".to_vec()), "workers live on");
    let start = Instant::now();
    drop(pool);
    assert!(start.elapsed() < GROUP_REMOVE_TIMEOUT, "{:?}", start.elapsed());
    assert_eq!(own_groups(), [] as [PathBuf; 0]);
    // and if it is gone too, the next one that makes a group there.
    nix::sys::prctl::set_child_subreaper(true).expect("prctl");
    let (host, nursery) = start_host(transport);
    kill(Pid::from_raw(nursery), Signal::SIGKILL).expect("kill");
    kill(Pid::from_raw(host.id() as i32), Signal::SIGKILL).expect("kill");
    assert!(wait_until(PATIENCE, support::reaped));
    assert_eq!(groups_of(host.id()).len(), 1, "nobody was left to remove it");
    assert_eq!(group_kind(), Ok(kind));
    assert_eq!(groups_of(host.id()), [] as [PathBuf; 0]);
}

/// The calls that limits need, each of the first ones failing once in each process.
const CALLS: [&str; 13] = [
    "mkdir",
    "rmdir",
    "getrlimit",
    "setrlimit",
    "sched_getaffinity",
    "sched_setaffinity",
    "read /proc/PID/statm",
    "read /proc/self/oom_score_adj",
    "read memory events",
    "read memory usage",
    "write /proc/self/oom_score_adj",
    "write cgroup.procs",
    "write memory limit",
];

fn failing_calls_cost_no_job(transport: TransportKind) {
    let kinds = [Some(MemoryLimitKind::AddressSpace), group_kind_or_skip()];
    let run = |kind: Option<MemoryLimitKind>, sys: &Faulty| {
        let mut builder = builder(2, transport).memory_limit(64 * MIB);
        if kind == Some(MemoryLimitKind::AddressSpace) {
            builder = builder.memory_limit_kind(MemoryLimitKind::AddressSpace);
        }
        let builder = builder.max_worker_growth(32 * MIB).rlimit(Resource::CpuTime, 1000, 1000).pin_workers();
        let mut pool = builder.spawn_with(sys.clone())?;
        // One is so long that memory is looked at.
        let whats = ["touch 1", "kill", "sleep 110", "touch 1", "kill", "sleep 1"];
        let outcomes: Vec<_> = pool.map("do", (0..6).map(|i| format!("{i} {}", whats[i]))).collect();
        drop(pool);
        started_once(6);
        assert_eq!(own_groups(), [] as [PathBuf; 0]);
        for (number, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Outcome::Done(_) if whats[number] != "kill" => {}
                Outcome::Crashed(Crash { cause: CrashCause::Signal(9), oom: Some(false) | None })
                    if whats[number] == "kill" => {}
                other => panic!("job {number}: {other:?}"),
            }
        }
        Ok::<_, seqpool::Error>(())
    };
    for kind in kinds.into_iter().filter(Option::is_some) {
        let sys = Faulty::striking(None);
        run(kind, &sys).expect("nothing fails");
        let calls = sys.calls();
        drop(sys);
        let calls: Vec<_> = calls.into_iter().filter(|(_, call, _)| CALLS.contains(call)).collect();
        println!("{kind:?}: {calls:?}");
        let (mut struck, mut runs) = (0, 0);
        for (role, call, count) in calls {
            for nth in 1..=count.min(4) {
                for errno in [libc::EINTR, libc::ENOMEM, libc::EACCES] {
                    let strike = Strike { role, call, nth, blow: Blow::Errno(errno) };
                    println!("{strike:?}");
                    let sys = Faulty::striking(Some(strike));
                    match run(kind, &sys) {
                        Ok(()) => {}
                        Err(error) if errno != libc::EINTR && error.to_string().contains(call) => {
                            assert_eq!(call, "sched_getaffinity", "{error}");
                        }
                        Err(error) => panic!("{error}"),
                    }
                    struck += sys.injected();
                    runs += 1;
                }
            }
        }
        assert!(struck * 10 >= runs * 8, "only {struck} of {runs} were struck");
    }
}

fn limits_that_cannot_work_are_refused(transport: TransportKind) {
    let refused = |builder: Builder, word: &str| {
        let error = builder.spawn().err().expect("no pool");
        assert!(matches!(error.kind(), ErrorKind::Config(text) if text.contains(word)), "{error}");
    };
    let any = || builder(1, transport);
    refused(any().memory_limit(MEMORY_LIMIT_MIN - 1), "memory_limit");
    refused(any().memory_limit_kind(MemoryLimitKind::AddressSpace), "memory_limit");
    refused(any().max_worker_age(WORKER_AGE_MIN - Duration::from_nanos(1)), "max_worker_age");
    refused(any().rlimit(Resource::OpenFiles, 10, 9), "RLIMIT_NOFILE");
    refused(any().oom_score_adj(1001), "oom_score_adj");
    refused(any().affinity(|_| Vec::new()), "affinity");
    if group_kind() != Ok(MemoryLimitKind::CgroupV2) {
        refused(any().memory_limit(64 * MIB).memory_limit_kind(MemoryLimitKind::CgroupV2), "CgroupV2");
    }
    let longest = any().max_worker_age(Duration::MAX).max_worker_growth(u64::MAX).memory_limit(u64::MAX);
    let mut pool = longest.spawn().expect("a pool");
    assert_eq!(one(&mut pool, 0, "touch 1"), Outcome::Done(b"ok".to_vec()));
    drop(pool);
    assert_eq!(own_groups(), [] as [PathBuf; 0]);
}

// ---- the other limits

fn resource_limits_hold(transport: TransportKind) {
    let mut pool = builder(2, transport)
        .rlimit(Resource::OpenFiles, 50, 60)
        .rlimit(Resource::CpuTime, 1000, 2000)
        .rlimit(Resource::CoreFile, 0, 0)
        .spawn()
        .expect("a pool");
    let outcomes = pool.map("do", (0..2).map(|i| format!("{i} limits"))).collect::<Vec<_>>();
    let expected = format!("{:?}", [(50u64, 60u64), (1000, 2000), (0, 0)]);
    assert!(outcomes.into_iter().all(|outcome| text(outcome) == expected));
    let own = getrlimit(resource::Resource::RLIMIT_CPU).expect("getrlimit");
    assert_ne!(own, (1000, 2000), "the host's own is untouched");
}

fn a_limit_that_the_kernel_refuses_is_named(transport: TransportKind) {
    // More than any process may have, whoever it is.
    let mut pool = builder(1, transport).rlimit(Resource::OpenFiles, u64::MAX, u64::MAX).spawn().expect("a pool");
    let outcome = one(&mut pool, 0, "limits");
    let Outcome::Rejected { reason: Reason::NoWorkers(why) } = &outcome else { panic!("{outcome:?}") };
    assert!(why.contains("RLIMIT_NOFILE") && why.contains("setrlimit"), "{why}");
    let SlotState::GivenUp { why } = &pool.health().slots[0].state else { panic!("{}", pool.health()) };
    assert!(why.contains("RLIMIT_NOFILE"), "{why}");
    let mut pool = builder(1, transport).affinity(|_| vec![CpuSet::count() - 1]).spawn().expect("a pool");
    let outcome = one(&mut pool, 0, "cpus");
    assert!(outcome.to_string().contains("affinity of worker 0"), "{outcome}");
}

fn workers_have_their_cpus(transport: TransportKind) {
    let own = run("cpus", &mut Vec::new()).expect("ours");
    let cpus: Vec<usize> = own.split(',').map(|cpu| cpu.parse().expect("a number")).collect();
    let mut pool = builder(3, transport).pin_workers().spawn().expect("a pool");
    settled(&mut pool);
    let mut seen = BTreeSet::new();
    let inputs: Vec<String> = (0..60).map(|i| format!("{i} cpus")).collect();
    let mut job = 0;
    while seen.len() < cpus.len().min(3) {
        assert!(job < 60, "{seen:?}");
        seen.extend(pool.map("do", &inputs[job..job + 3]).map(text));
        job += 3;
    }
    assert!(seen.iter().all(|cpu| cpus.iter().any(|c| c.to_string() == *cpu)), "one each: {seen:?} of {cpus:?}");
    let last = *cpus.last().expect("one");
    let mut pool = builder(2, transport).affinity(move |_| vec![last]).spawn().expect("a pool");
    assert_eq!(text(one(&mut pool, 0, "cpus")), last.to_string());
    assert_eq!(run("cpus", &mut Vec::new()).expect("ours"), own, "the host's own are untouched");
}

fn workers_are_killed_before_their_host(transport: TransportKind) {
    let score = |pid: String| -> i32 {
        std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))
            .expect("a process")
            .trim()
            .parse()
            .expect("a number")
    };
    let own = score("self".into());
    let mut pool = builder(1, transport).spawn().expect("a pool");
    settled(&mut pool);
    let told = |pool: &mut Pool| text(one(pool, 0, "oom_score_adj")).parse::<i32>().expect("a number");
    assert_eq!(told(&mut pool), (own + OOM_SCORE_RAISE).min(1000));
    let nursery = pool.processes().0.expect("a nursery");
    assert_eq!((score("self".into()), score(nursery.to_string())), (own, own));
    let mut pool = builder(1, transport).oom_score_adj(1000).spawn().expect("a pool");
    assert_eq!(told(&mut pool), 1000);
}

fn generators_are_seeded_by_worker(transport: TransportKind) {
    // What every worker begins with.
    let state = Rc::new(Cell::new(1u64));
    let next = move |state: &Cell<u64>| {
        state.set(state.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        state.get()
    };
    let drawn = |seeded: bool| {
        let (of_hook, of_handler) = (state.clone(), state.clone());
        let mut pool = Pool::builder()
            .workers(4)
            .transport(transport)
            .max_jobs_per_worker(1)
            .on_start_with(move |worker| {
                assert!(worker.slot < 4 && worker.generation >= 1, "{worker:?}");
                if seeded {
                    of_hook.set(worker.number());
                }
                Ok(())
            })
            .handler("draw", move |_, reply| {
                reply.extend_from_slice(&next(&of_handler).to_le_bytes());
                Ok(())
            })
            .spawn()
            .expect("a pool");
        // Each job in a worker of its own.
        pool.map("draw", vec![b""; 40]).map(|o| o.done().expect("a number")).collect::<BTreeSet<_>>().len()
    };
    assert_eq!(drawn(false), 1, "without it all draw the same: that is what the hook is for");
    assert_eq!(drawn(true), 40);
}

// ---- health

fn health_is_told(transport: TransportKind) {
    let attempts = &words()[SPECIAL];
    let crash_but_once = move || if attempts.fetch_add(1, SeqCst) < 2 { Ok(()) } else { Err("no licence".into()) };
    let mut pool = builder(2, transport).on_start(crash_but_once).spawn().expect("a pool");
    settled(&mut pool);
    let health = pool.health();
    assert_eq!((health.running(), health.is_degraded()), (2, false), "{health}");
    assert_eq!(health.to_string(), "2 of 2 workers run");
    assert!(health.slots.iter().all(|slot| slot.pid.is_some() && slot.generation == 1), "{health:?}");
    // One worker goes. That it cannot be replaced is said while the other one serves.
    let victim = health.slots[1].pid.expect("a process");
    kill(Pid::from_raw(victim), Signal::SIGKILL).expect("kill");
    let (start, mut most, mut longest) = (Instant::now(), 0, Duration::ZERO);
    let mut number = 0;
    let why = loop {
        assert!(start.elapsed() < PATIENCE, "{}", pool.health());
        assert_eq!(one(&mut pool, number, "sleep 2"), Outcome::Done(b"ok".to_vec()));
        number += 1;
        let health = pool.health();
        match &health.slots[1].state {
            SlotState::BackingOff { left, failures, why } => {
                assert!(health.is_degraded() && health.running() == 1, "{health}");
                assert!(*failures >= most && *failures <= EARLY_DEATHS_MAX, "{health}");
                assert!(why == "no licence" || why.contains("signal 9"), "{health}");
                assert!(health.to_string().contains("slot 1 waits for"), "{health}");
                most = *failures;
                longest = longest.max(*left);
            }
            SlotState::GivenUp { why } => break why.clone(),
            _ => {}
        }
    };
    println!("given up after {:?} and {most} failures, waits of up to {longest:?}", start.elapsed());
    assert_eq!(why, "no licence");
    assert!(most >= 5 && longest <= RESPAWN_BACKOFF_MAX && longest > RESPAWN_BACKOFF_MAX / 8, "{most}, {longest:?}");
    let health = pool.health();
    assert!(health.is_degraded(), "{health}");
    assert_eq!(health.to_string(), "1 of 2 workers run; slot 1 is given up: no licence");
    assert!(health.slots[1].pid.is_none());
    assert_eq!(one(&mut pool, number, "sleep 1"), Outcome::Done(b"ok".to_vec()), "the other one serves");
}

fn health_without_a_nursery(transport: TransportKind) {
    let mut pool = builder(2, transport).spawn().expect("a pool");
    settled(&mut pool);
    let nursery = pool.processes().0.expect("a nursery");
    kill(Pid::from_raw(nursery), Signal::SIGKILL).expect("kill");
    assert_eq!(one(&mut pool, 0, "sleep 1"), Outcome::Done(b"ok".to_vec()));
    let start = Instant::now();
    while pool.health().can_respawn {
        assert!(start.elapsed() < PATIENCE, "{}", pool.health());
        idle(&mut pool, Duration::from_millis(10));
    }
    let health = pool.health();
    assert_eq!((health.running(), health.is_degraded()), (2, true), "{health}");
    assert!(health.to_string().contains("nobody can be replaced"), "{health}");
}
