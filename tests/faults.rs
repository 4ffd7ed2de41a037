//! The rows of the fault table, provoked in real processes: each case is named after its row.
//!
//! Every job's start is counted in memory that host and workers share, so that "no job is run twice" is seen and not
//! believed. After each case the harness looks for zombies, orphans, descriptors and files.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seqpool::frame::{self, FLAG_FRAGMENT, Header, Kind};
use seqpool::limits::{
    FRAME_HEADER_SIZE, JOB_SIZE_MAX, NURSERY_LATE_MAX, NURSERY_TIMEOUT, PACK_SIZE_MAX, PACKET_SIZE_MAX,
    PACKETS_PER_TURN, RING_SIZE, UNDELIVERED_SIZE_MAX,
};
use seqpool::sys::{Fault, Faulty, Forked, Linux, OsResult, Received, Sent, Sys, Wait};
use seqpool::{
    Builder, Crash, CrashCause, Error, ErrorKind, HandlerError, Job, Outcome, Pool, Reason, Reply, Request,
    TransportKind, TrySubmitError,
};
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::{Random, rounds, wait_until};

mod support;

/// Runs this program as a host of its own, which a case can kill: `--host NAME`.
const HOST: &str = "--host";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, name] = arguments.as_slice()
        && flag == HOST
    {
        match name.as_str() {
            "spinning" => host_spinning(),
            "slow_fork" => host_slow_fork(),
            "without_main_thread" => host_without_main_thread(),
            "stopped" => host_stopped(),
            "prints" => host_prints(),
            other => panic!("no host {other}"),
        }
        return;
    }
    support::main(&support::cases![
        row_01_idle_worker_killed,
        row_02_killed_in_mid_job,
        row_02_killed_from_outside,
        row_03_dies_between_receive_and_claim,
        row_04_dies_right_after_sending => 120,
        row_05_dies_in_a_batch,
        row_05_dies_between_jobs,
        row_06_dies_while_receiving_a_large_job,
        row_06_a_job_too_large_for_every_worker,
        row_07_every_end_is_named,
        row_09_all_workers_die_at_once,
        row_11_set_up_crashes_in_a_loop,
        row_12_hangs_before_it_is_ready,
        row_14_frozen_in_a_job,
        row_14_frozen_between_jobs,
        row_14_frozen_while_receiving_a_large_job,
        row_15_ignores_every_signal,
        row_15_has_left_its_process_group,
        row_16_grandchildren_go_with_their_worker,
        row_16_grandchildren_go_with_the_pool,
        row_17_result_and_deadline_race => rounds(180, 600),
        row_18_host_killed => rounds(120, 600),
        row_19_thread_that_spawned_the_pool_exits,
        row_20_host_dies_before_the_lifeline,
        row_21_nursery_killed,
        row_21_nursery_killed_and_worker_with_grandchild_dies,
        row_21_nursery_stopped,
        row_21_nursery_stopped_for_good,
        row_21_a_host_that_stood_still_forgives_its_nursery,
        row_22_busy_threads_in_the_host,
        row_23_fork_finds_no_process,
        row_24_descriptors_of_a_worker,
        row_25_fifty_deaths_at_once,
        row_26_children_of_the_host,
        row_27_stale_events,
        row_28_more_packets_than_a_turn_takes,
        row_30_consumer_never_reads,
        row_30_submit_without_taking,
        row_31_tiny_send_buffers,
        row_32_every_size => 120,
        row_33_hostile_peers => 120,
        row_33_hello_flood,
        row_33_result_before_hello,
        row_35_scribbles_over_its_slot => 180,
        row_35_says_that_it_waits_for_room,
        row_35_forks_and_returns_twice,
        row_41_host_stopped,
        row_42_prints,
    ]);
}

// ---- shared counters

/// Words that host and workers share.
const WORDS: usize = 1 << 17;
/// From here on words with a meaning of their own; before, how often each job has started.
const SPECIAL: usize = WORDS - 64;

/// From here on since when the worker of a job that sleeps could have claimed it, which comes before its handler runs, and
/// on a busy machine long before. Such jobs come among the first.
const STARTED_AT: usize = WORDS / 2;

/// Monotonic time, which wraps. Units: microseconds.
fn now_us() -> u32 {
    (Linux.now_ns() / 1000) as u32
}

fn words() -> &'static [AtomicU32] {
    static MEMORY: OnceLock<&'static [AtomicU32]> = OnceLock::new();
    MEMORY.get_or_init(|| support::shared_words(WORDS))
}

fn starts(tag: u64) -> u32 {
    assert!((tag as usize) < STARTED_AT);
    words()[tag as usize].load(SeqCst)
}

// ---- the handler

/// Set in each worker by its set-up.
static IN_WORKER: AtomicBool = AtomicBool::new(false);
/// In each worker: when it was set up, or its last job that slept ended. Units: as [`now_us`].
static FREE_SINCE: AtomicU32 = AtomicU32::new(0);

/// A job is `TAG COMMAND ARGUMENT`, and is answered with its own body unless its command says something else.
fn act(request: &Request<'_>, reply: &mut Reply<'_>) -> Result<(), HandlerError> {
    let text = std::str::from_utf8(request.body())?;
    let mut parts = text.splitn(3, ' ');
    let tag: usize = parts.next().unwrap_or_default().parse()?;
    words()[tag].fetch_add(1, SeqCst);
    let command = parts.next().unwrap_or_default();
    let argument = parts.next().unwrap_or_default();
    let number = || argument.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
    match command {
        "ok" => {}
        "signal" => {
            let signal = number() as i32;
            // SAFETY: SIG_DFL is a disposition for every signal.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            // SAFETY: raise(3) takes one word.
            unsafe { libc::raise(signal) };
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        "exit" => std::process::exit(number() as i32),
        // SAFETY: _exit(2) takes one word and does not return.
        "_exit" => unsafe { libc::_exit(number() as i32) },
        "abort" => std::process::abort(),
        "panic" => panic!("{argument}"),
        "error" => return Err(argument.into()),
        "stack-overflow" => drop(std::hint::black_box(overflow(1))),
        "sleep" => {
            words()[STARTED_AT + tag].store(FREE_SINCE.load(SeqCst).max(1), SeqCst);
            std::thread::sleep(Duration::from_micros(number()));
            FREE_SINCE.store(now_us(), SeqCst);
        }
        "hang" => hang(),
        "spin" => {
            nix::sys::signal::SigSet::all().thread_block()?;
            loop {
                std::hint::spin_loop();
            }
        }
        "leave-group" => {
            // The worker joins the group of a child of its own.
            let child = Command::new("sleep").arg("1000").process_group(0).spawn()?;
            nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(child.id() as i32))?;
            hang();
        }
        "leak" => {
            leak(argument)?;
        }
        "leak-and-die" => {
            leak(argument)?;
            std::process::abort();
        }
        "leak-and-spin" => {
            leak(argument)?;
            nix::sys::signal::SigSet::all().thread_block()?;
            loop {
                std::hint::spin_loop();
            }
        }
        "pid" => {
            reply.extend_from_slice(std::process::id().to_string().as_bytes());
            return Ok(());
        }
        "fds" => {
            let fds = support::open_fds(std::process::id() as i32);
            reply.extend_from_slice(format!("{fds:?}").as_bytes());
            return Ok(());
        }
        "print" => {
            println!("a line from Rust");
            // SAFETY: the string is live and ends with a zero.
            unsafe { libc::printf(c"a line from C, unflushed".as_ptr()) };
            let bytes = b"a line by write(2)\n";
            // SAFETY: the bytes are live for the call.
            unsafe { libc::write(1, bytes.as_ptr().cast(), bytes.len()) };
            Command::new("sh").args(["-c", "echo a line from echo; cat"]).status()?;
        }
        "attack" => attack(argument),
        "flip" => flip(argument),
        "waits-for-room" => {
            let phase = slot_base().wrapping_add(128).cast::<AtomicU32>();
            loop {
                // SAFETY: the phase word lies 128 bytes into the slot's mapping, aligned, and is an atomic everywhere.
                unsafe { &*phase }.store(1, SeqCst);
            }
        }
        // SAFETY: this process has one thread, so its child may do anything.
        "fork" => match unsafe { libc::fork() } {
            -1 => return Err("fork".into()),
            0 => {}
            pid => {
                // The other one returns first, and would have served some jobs by now if it could.
                wait_until(Duration::from_millis(20), || !support::is_alive(pid));
            }
        },
        "reply" => {
            // Not filled: it costs nothing, so that many are given at once.
            reply.extend_by(number() as usize);
            return Ok(());
        }
        other => return Err(format!("no command {other:?}").into()),
    }
    reply.extend_from_slice(request.body());
    Ok(())
}

fn hang() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

#[allow(unconditional_recursion)]
fn overflow(n: u64) -> u64 {
    let block = std::hint::black_box([n; 512]);
    overflow(block[7] + 1) + block[8]
}

/// Leaves processes behind, each in another way of hiding.
fn leak(how: &str) -> Result<(), HandlerError> {
    let script = match how {
        "plain" => "sleep 1000 & exec sleep 1000",
        "session" => "setsid sh -c 'sleep 1000 & exec sleep 1000' & exec setsid sleep 1000",
        "orphan" => "setsid sh -c 'trap \"\" TERM HUP INT; (sleep 1000 &) ; exec sleep 1000' & exit 0",
        "socket" => "exec setsid sleep 1000",
        other => return Err(format!("no way to leak {other:?}").into()),
    };
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null());
    if how == "socket" {
        let socket = own_socket();
        // SAFETY: F_SETFD takes a flag word; without FD_CLOEXEC the socket goes along.
        unsafe { libc::fcntl(socket, libc::F_SETFD, 0) };
    }
    let pid = command.spawn()?.id() as i32;
    let wanted: fn(&str) -> bool = if how == "orphan" { |_| true } else { |line| line.starts_with("sleep") };
    if !wait_until(Duration::from_secs(20), || !support::is_alive(pid) || wanted(&support::command_line(pid))) {
        return Err("the leak did not start".into());
    }
    if how == "socket" {
        // SAFETY: as above.
        unsafe { libc::fcntl(own_socket(), libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// The worker's own end of its slot's socket: the `SOCK_SEQPACKET` one that is not the lifeline.
fn own_socket() -> i32 {
    let fds = support::open_fds(std::process::id() as i32);
    let found = fds.into_keys().filter(|&fd| {
        let (mut kind, mut size) = (0i32, 4u32);
        let place = (&raw mut kind).cast();
        // SAFETY: both places are live and of the size that is told.
        let n = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, place, &mut size) };
        // SAFETY: F_GETFL takes no argument.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        n == 0 && kind == libc::SOCK_SEQPACKET && flags & libc::O_ASYNC == 0
    });
    found.max().expect("a worker has its socket")
}

/// Where this worker's slot is mapped.
fn slot_base() -> *mut u8 {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let line = maps.lines().find(|line| line.contains("memfd:seqpool-slot")).expect("a worker maps its slot");
    let base = line.split('-').next().and_then(|start| usize::from_str_radix(start, 16).ok()).expect("an address");
    std::ptr::with_exposed_provenance_mut(base)
}

/// The id of the job in hand: the one before the next that may start.
fn own_id() -> u64 {
    let claim = slot_base().cast::<AtomicU64>();
    // SAFETY: the claim word is the first of the slot's mapping, aligned, and an atomic in every process.
    let next = unsafe { &*claim }.load(SeqCst);
    next & !0xffff_ffff | u64::from((next as u32).wrapping_sub(1))
}

// ---- a run of a pool

/// A pool, its jobs, and what became of them.
struct Run<S: Sys = Linux> {
    pool: Pool<S>,
    outcomes: BTreeMap<u64, (Outcome<Vec<u8>>, Option<usize>)>,
    next: u64,
}

fn builder(workers: usize, transport: TransportKind) -> Builder {
    words();
    let on_start = || {
        IN_WORKER.store(true, SeqCst);
        FREE_SINCE.store(now_us(), SeqCst);
        Ok(())
    };
    Pool::builder().workers(workers).transport(transport).handler("do", act).on_start(on_start)
}

impl Run {
    fn new(workers: usize, transport: TransportKind) -> Self {
        Self::with(builder(workers, transport))
    }

    fn with(builder: Builder) -> Self {
        Self::over(builder, Linux)
    }
}

impl<S: Sys> Run<S> {
    fn over(builder: Builder, sys: S) -> Self {
        words()[..SPECIAL].iter().for_each(|word| word.store(0, SeqCst));
        let pool = builder.spawn_with(sys).expect("a pool");
        let mut run = Self { pool, outcomes: BTreeMap::new(), next: 0 };
        assert!(run.pool.wait_ready(Duration::from_secs(20)).expect("poll"), "workers are ready");
        run
    }

    fn submit(&mut self, command: impl AsRef<str>) -> u64 {
        self.submit_within(command, None)
    }

    fn submit_within(&mut self, command: impl AsRef<str>, timeout: Option<Duration>) -> u64 {
        let tag = self.next;
        self.next += 1;
        let body = format!("{tag} {}", command.as_ref());
        let job = Job::new("do", body.as_bytes()).tag(tag);
        let job = match timeout {
            Some(timeout) => job.timeout(timeout),
            None => job,
        };
        self.pool.submit(job).expect("room for a job");
        tag
    }

    fn submit_many(&mut self, count: usize, command: &str) {
        for _ in 0..count {
            self.submit(command);
        }
    }

    fn poll(&mut self, timeout: Duration) {
        let outcomes = &mut self.outcomes;
        let take = |c: seqpool::Completion<'_>, _: &mut seqpool::Submitter<'_, S>| {
            let worker = c.worker();
            if let Outcome::TimedOut { after } = &c.outcome {
                let started = words()[STARTED_AT + c.tag as usize].load(SeqCst);
                let ran = Duration::from_micros(now_us().wrapping_sub(started).into());
                assert!(started == 0 || ran >= *after, "job {} ran {ran:?} and not {after:?}", c.tag);
            }
            let old = outcomes.insert(c.tag, (c.outcome.map(<[u8]>::to_vec), worker));
            assert!(old.is_none(), "job {} has two outcomes: {old:?} was the first", c.tag);
        };
        self.pool.poll(Some(timeout), take).expect("poll");
    }

    /// Polls until `done`, for 30 s at most.
    #[track_caller]
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done(self) {
            assert!(Instant::now() < deadline, "not within 30 s: {what}; {}", self.state());
            self.poll(Duration::from_millis(2));
        }
    }

    fn state(&self) -> String {
        let missing: Vec<u64> = (0..self.next).filter(|tag| !self.outcomes.contains_key(tag)).take(20).collect();
        format!("{:?}, without outcome (first 20): {missing:?}", self.pool.stats())
    }

    /// Polls until every job has its outcome.
    #[track_caller]
    fn finish(&mut self) {
        self.until("an outcome for each job", |run| run.pool.outstanding() == 0);
        assert_eq!(self.outcomes.len() as u64, self.next, "one outcome each; {}", self.state());
        for (tag, (outcome, _)) in &self.outcomes {
            let started = starts(*tag);
            assert!(started <= 1, "job {tag} was started {started} times; {outcome:?}");
            if let Outcome::Done(_) = outcome {
                assert_eq!(started, 1, "job {tag} is done");
            }
        }
    }

    #[track_caller]
    fn outcome(&self, tag: u64) -> &Outcome<Vec<u8>> {
        &self.outcomes.get(&tag).unwrap_or_else(|| panic!("job {tag} has an outcome; {}", self.state())).0
    }

    /// The jobs that are not done, with their outcomes.
    fn undone(&self) -> Vec<(u64, &Outcome<Vec<u8>>)> {
        let undone = self.outcomes.iter().filter(|(_, (outcome, _))| !outcome.is_done());
        undone.map(|(tag, (outcome, _))| (*tag, outcome)).collect()
    }

    fn workers(&self) -> Vec<i32> {
        self.pool.processes().1
    }

    /// Waits until every slot has a worker again, none of them in `old`.
    #[track_caller]
    fn refilled(&mut self, old: &[i32]) {
        let count = self.pool.workers();
        self.until("a full pool", |run| {
            let now = run.workers();
            now.len() == count && now.iter().all(|pid| !old.contains(pid))
        });
        assert!(self.pool.wait_ready(Duration::from_secs(20)).expect("poll"), "workers are ready");
    }

    /// Waits until nobody but the nursery and the workers is there.
    #[track_caller]
    fn alone(&mut self) {
        let mut found = Vec::new();
        self.until("nobody but nursery and workers", |run| {
            let (nursery, workers) = run.pool.processes();
            found = support::descendants(std::process::id() as i32);
            found.retain(|pid| Some(*pid) != nursery && !workers.contains(pid));
            found.is_empty()
        });
    }

    /// The job has started.
    #[track_caller]
    fn started(&mut self, tag: u64) {
        self.until("the start of a job", |_| starts(tag) == 1);
    }

    /// Enough tiny jobs that the next ones are sent in one batch.
    fn warm_up(&mut self) {
        self.submit_many(2000, "ok");
        self.finish();
    }
}

fn signal(pid: i32, signal: Signal) {
    assert!(pid > 1);
    kill(Pid::from_raw(pid), signal).expect("a process of ours to signal");
}

fn both(case: impl Fn(TransportKind)) {
    for &transport in TransportKind::ALL {
        println!("transport {transport}");
        case(transport);
    }
}

fn crashed(cause: CrashCause) -> Outcome<Vec<u8>> {
    Outcome::Crashed(Crash { cause, oom: None })
}

// ---- a kernel that kills

/// Where a worker dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    AfterReceive,
    BeforeSend,
    AfterSend,
}

/// The kernel, except that one worker dies at one moment.
#[derive(Clone, Copy, Debug)]
struct Deadly(Moment);

impl Deadly {
    /// Calls until one worker dies; 0: none does.
    fn countdown() -> &'static AtomicU32 {
        &words()[SPECIAL]
    }

    /// How often the host has met `ECONNRESET`.
    fn resets() -> &'static AtomicU32 {
        &words()[SPECIAL + 2]
    }

    fn strike(self, moment: Moment) {
        let mine = self.0 == moment && IN_WORKER.load(SeqCst);
        if mine && Self::countdown().fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)) == Ok(1) {
            signal(std::process::id() as i32, Signal::SIGKILL);
            hang();
        }
    }
}

impl Sys for Deadly {
    fn send(&self, fd: BorrowedFd<'_>, parts: &[IoSlice<'_>], wait: Wait) -> OsResult<Sent> {
        self.strike(Moment::BeforeSend);
        let sent = Linux.send(fd, parts, wait)?;
        if sent == Sent::All {
            self.strike(Moment::AfterSend);
        }
        Ok(sent)
    }

    fn recv(&self, fd: BorrowedFd<'_>, parts: &mut [IoSliceMut<'_>], wait: Wait) -> OsResult<Received> {
        let received = Linux.recv(fd, parts, wait)?;
        match received {
            Received::Packet(_) => self.strike(Moment::AfterReceive),
            Received::Reset if !IN_WORKER.load(SeqCst) => drop(Self::resets().fetch_add(1, SeqCst)),
            _ => {}
        }
        Ok(received)
    }
}

// ---- rows 1 to 7

fn row_01_idle_worker_killed() {
    both(|transport| {
        let mut run = Run::new(2, transport);
        for round in 0..3 {
            let before = run.workers();
            signal(before[round % 2], Signal::SIGKILL);
            run.until("the death is seen", |run| run.pool.stats().respawns == round as u64 + 1);
            let after = run.workers();
            assert_eq!(after.len(), 2);
            assert_eq!(after.iter().filter(|pid| before.contains(pid)).count(), 1, "one new, one old");
            run.submit_many(50, "sleep 100");
            run.finish();
            assert_eq!(run.undone(), []);
        }
    });
}

fn row_02_killed_in_mid_job() {
    both(|transport| {
        let mut run = Run::new(2, transport);
        run.warm_up();
        run.submit_many(100, "ok");
        let mut bad = Vec::new();
        for _ in 0..20 {
            bad.push(run.submit("signal 9"));
            run.submit_many(50, "ok");
        }
        run.finish();
        let expected = crashed(CrashCause::Signal(9));
        assert_eq!(run.undone(), bad.iter().map(|tag| (*tag, &expected)).collect::<Vec<_>>());
        run.refilled(&[]);
        assert_eq!(run.pool.stats().respawns, 20);
    });
}

fn row_02_killed_from_outside() {
    both(|transport| {
        let mut run = Run::new(2, transport);
        let bad = run.submit("hang");
        run.started(bad);
        run.submit_many(50, "ok");
        let pid = *run.workers().iter().find(|pid| !idle(**pid, bad, &mut run.next)).expect("a busy worker");
        signal(pid, Signal::SIGKILL);
        run.finish();
        assert_eq!(run.undone(), [(bad, &crashed(CrashCause::Signal(9)))]);
        run.refilled(&[pid]);
    });

    /// A worker in `hang` sleeps in `nanosleep`; an idle one in a receive.
    fn idle(pid: i32, _: u64, _: &mut u64) -> bool {
        let call = || std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        let sleeping = format!("{} ", libc::SYS_clock_nanosleep);
        !wait_until(Duration::from_millis(200), || call().starts_with(&sleeping))
    }
}

fn row_03_dies_between_receive_and_claim() {
    both(|transport| {
        for when in [1, 2, 3, 5, 8, 13] {
            let mut run = Run::over(builder(2, transport), Deadly(Moment::AfterReceive));
            run.warm_up();
            Deadly::countdown().store(when, SeqCst);
            while Deadly::countdown().load(SeqCst) > 0 {
                run.submit_many(200, "ok");
                run.submit_many(10, "sleep 300");
                run.finish();
            }
            assert_eq!(run.undone(), [], "killed at receive {when}");
            run.refilled(&[]);
            assert_eq!(run.pool.stats().respawns, 1);
        }
    });
}

fn row_04_dies_right_after_sending() {
    both(|transport| {
        Deadly::resets().store(0, SeqCst);
        for moment in [Moment::AfterSend, Moment::BeforeSend] {
            for when in [1, 2, 3, 5, 8] {
                let mut run = Run::over(builder(2, transport), Deadly(moment));
                run.warm_up();
                Deadly::countdown().store(when, SeqCst);
                let padding = "x".repeat(20_000);
                for _ in 0..200 {
                    run.submit(format!("ok {padding}"));
                }
                run.finish();
                assert_eq!(Deadly::countdown().load(SeqCst), 0, "a worker has died");
                assert_eq!(run.undone(), [], "killed {moment:?} {when}");
            }
        }
        if transport == TransportKind::Seqpacket {
            assert_ne!(Deadly::resets().load(SeqCst), 0, "no death has left input unread");
        }
    });
}

fn row_05_dies_in_a_batch() {
    both(|transport| {
        for workers in [1, 2] {
            let mut salvaged = 0;
            for round in 0..10 {
                let mut run = Run::new(workers, transport);
                run.warm_up();
                let before = run.pool.stats();
                run.submit_many(49, "ok");
                let bad = run.submit(["signal 11", "exit 3", "abort"][round % 3]);
                run.submit_many(50, "ok");
                run.finish();
                assert_eq!(run.undone().len(), 1);
                assert!(matches!(run.outcome(bad), Outcome::Crashed(_)), "{:?}", run.outcome(bad));
                salvaged += run.pool.stats().salvaged - before.salvaged;
            }
            println!("{workers} workers: {salvaged} results salvaged");
            // With one job a packet nothing is left unsent, unless the worker had no time for it.
            assert!(salvaged > 0 || transport == TransportKind::Blocking, "no batch was ever cut short");
        }
    });
}

fn row_05_dies_between_jobs() {
    both(|transport| {
        for workers in [1, 2] {
            for when in [1, 2, 4] {
                let mut run = Run::over(builder(workers, transport), Deadly(Moment::BeforeSend));
                run.warm_up();
                Deadly::countdown().store(when, SeqCst);
                run.submit_many(100, "sleep 60");
                run.finish();
                assert_eq!(Deadly::countdown().load(SeqCst), 0, "a worker has died");
                assert_eq!(run.undone(), []);
                assert!(run.pool.stats().salvaged > 0, "what was published was not sent");
            }
        }
    });
}

fn row_06_dies_while_receiving_a_large_job() {
    both(|transport| {
        for when in [1, 2, 20, 41] {
            let mut run = Run::over(builder(2, transport), Deadly(Moment::AfterReceive));
            Deadly::countdown().store(when, SeqCst);
            let padding = "x".repeat(8 << 20);
            let large = run.submit(format!("ok {padding}"));
            run.submit_many(10, "ok");
            run.finish();
            assert_eq!(Deadly::countdown().load(SeqCst), 0, "a worker has died");
            assert_eq!(run.undone(), [], "killed at receive {when}");
            let Outcome::Done(body) = run.outcome(large) else { unreachable!("all are done") };
            assert!(body.ends_with(padding.as_bytes()) && body.len() > padding.len());
        }
    });
}

fn row_06_a_job_too_large_for_every_worker() {
    both(|transport| {
        let limit = || {
            let statm = std::fs::read_to_string("/proc/self/statm")?;
            let pages: u64 = statm.split(' ').next().unwrap_or_default().parse()?;
            let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_AS)?;
            let size = pages * 4096 + (16 << 20);
            nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_AS, size, hard)?;
            Ok(())
        };
        for size in [300 << 10, 40 << 20] {
            let mut run = Run::with(builder(2, transport).on_start(limit));
            run.submit_many(10, "ok");
            // A reply of this size needs about twice as much, so a small one is done.
            let large = run.submit(format!("ok {}", "x".repeat(size)));
            run.submit_many(10, "ok");
            run.finish();
            if size < 16 << 20 {
                assert_eq!(run.undone(), []);
            } else {
                assert_eq!(run.undone(), [(large, &crashed(CrashCause::NeverStarted))]);
                assert_eq!(starts(large), 0);
                run.refilled(&[]);
                assert!(run.pool.stats().respawns >= 3, "{}", run.state());
            }
            run.submit_many(10, "ok");
            run.finish();
        }
    });
}

fn row_07_every_end_is_named() {
    both(|transport| {
        let mut run = Run::new(2, transport);
        let code = |n| crashed(CrashCause::Code(n));
        let died = |n| crashed(CrashCause::Signal(n));
        let failed = |message: &str, panicked| Outcome::Failed { message: message.to_owned(), panicked };
        let ends = [
            ("exit 0", code(0)),
            ("exit 3", code(3)),
            ("_exit 0", code(0)),
            ("_exit 255", code(255)),
            ("abort", died(libc::SIGABRT)),
            ("signal 9", died(libc::SIGKILL)),
            ("signal 11", died(libc::SIGSEGV)),
            ("signal 15", died(libc::SIGTERM)),
            ("signal 1", died(libc::SIGHUP)),
            ("signal 2", died(libc::SIGINT)),
            ("stack-overflow", died(libc::SIGSEGV)),
            ("panic with this text", failed("with this text", true)),
            ("error of this kind", failed("of this kind", false)),
        ];
        let mut expected = Vec::new();
        for (command, outcome) in &ends {
            run.submit_many(5, "ok");
            expected.push((run.submit(command), outcome));
        }
        run.submit_many(20, "ok");
        run.finish();
        assert_eq!(run.undone(), expected);
    });
}

// ---- rows 9 to 15

fn row_09_all_workers_die_at_once() {
    both(|transport| {
        let mut run = Run::new(4, transport);
        let mut killed = 0;
        for _ in 0..5 {
            run.submit_many(100, "sleep 1000");
            run.until("some results", |run| run.outcomes.len() as u64 + 60 > run.next);
            let all = run.workers();
            all.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
            killed += all.len();
            run.refilled(&all);
        }
        run.finish();
        let expected = crashed(CrashCause::Signal(9));
        assert!(run.undone().iter().all(|(_, outcome)| **outcome == expected));
        assert!(run.undone().len() <= killed, "one job a worker at most: {:?}", run.undone().len());
        assert_eq!(run.pool.stats().respawns, killed as u64);
    });
}

fn row_11_set_up_crashes_in_a_loop() {
    let attempts = &words()[SPECIAL + 3];
    let crash = move || {
        if attempts.fetch_add(1, SeqCst) == 0 { Ok(()) } else { std::process::abort() }
    };
    let mut pool = builder(1, TransportKind::Seqpacket).on_start(crash).spawn().expect("a pool");
    assert!(pool.wait_ready(Duration::from_secs(20)).expect("poll"), "the first one is ready");
    pool.submit(Job::new("do", b"0 abort").tag(0)).expect("room");
    for tag in 1..5 {
        pool.submit(Job::new("do", format!("{tag} ok").as_bytes()).tag(tag)).expect("room");
    }
    let mut outcomes = BTreeMap::new();
    let cpu = support::cpu_time(std::process::id() as i32).expect("ours");
    let start = Instant::now();
    while pool.outstanding() > 0 && start.elapsed() < Duration::from_secs(30) {
        let take = |c: seqpool::Completion<'_>, _: &mut seqpool::Submitter<'_>| {
            assert!(outcomes.insert(c.tag, c.outcome.map(<[u8]>::to_vec)).is_none());
        };
        pool.poll(Some(Duration::from_secs(1)), take).expect("poll");
    }
    let cpu = support::cpu_time(std::process::id() as i32).expect("ours") - cpu;
    assert_eq!(outcomes.len(), 5);
    assert_eq!(outcomes[&0], crashed(CrashCause::Signal(6)));
    for tag in 1..5 {
        let Outcome::Rejected { reason: Reason::NoWorkers(why) } = &outcomes[&tag] else { panic!("{outcomes:?}") };
        assert!(why.contains("set-up") && why.contains('6'), "{why}");
    }
    assert!(attempts.load(SeqCst) <= 12, "{} attempts", attempts.load(SeqCst));
    assert!(cpu < Duration::from_millis(500), "the host spun: {cpu:?}");
}

fn row_12_hangs_before_it_is_ready() {
    let attempts = &words()[SPECIAL + 3];
    let hang_once = move || {
        if attempts.fetch_add(1, SeqCst) == 0 {
            hang();
        }
        Ok(())
    };
    let builder = builder(1, TransportKind::Seqpacket).on_start(hang_once).spawn_timeout(Duration::from_millis(300));
    let mut run = Run::with(builder);
    assert_eq!(attempts.load(SeqCst), 2);
    run.submit_many(10, "ok");
    run.finish();
    assert_eq!(run.undone(), []);
}

fn row_14_frozen_in_a_job() {
    both(|transport| {
        let mut run = Run::new(1, transport);
        let timeout = Duration::from_millis(300);
        let frozen = run.submit_within("hang", Some(timeout));
        run.submit_many(20, "ok");
        run.started(frozen);
        let pid = run.workers()[0];
        signal(pid, Signal::SIGSTOP);
        run.finish();
        assert_eq!(run.undone(), [(frozen, &Outcome::TimedOut { after: timeout })]);
        assert!(!support::is_alive(pid));
    });
}

fn row_14_frozen_between_jobs() {
    both(|transport| {
        for workers in [1, 2] {
            let mut run = Run::with(builder(workers, transport).stall_timeout(Duration::from_millis(300)));
            run.submit_many(100, "ok");
            run.finish();
            let pids = run.workers();
            for pid in &pids {
                signal(*pid, Signal::SIGSTOP);
                assert!(wait_until(Duration::from_secs(5), || support::proc_state(*pid) == Some('T')));
            }
            run.submit_many(100, "ok");
            run.finish();
            assert_eq!(run.undone(), [], "none has started when its worker froze");
            run.refilled(&pids);
        }
    });
}

fn row_14_frozen_while_receiving_a_large_job() {
    both(|transport| {
        let builder = builder(1, transport).stall_timeout(Duration::from_millis(300));
        let mut run = Run::with(builder.receive_timeout(Duration::from_millis(300)));
        let pid = run.workers()[0];
        signal(pid, Signal::SIGSTOP);
        assert!(wait_until(Duration::from_secs(5), || support::proc_state(pid) == Some('T')));
        run.submit(format!("ok {}", "x".repeat(20 << 20)));
        run.submit("ok");
        run.finish();
        assert_eq!(run.undone(), []);
        run.refilled(&[pid]);
    });
}

fn row_15_ignores_every_signal() {
    let mut run = Run::new(2, TransportKind::Seqpacket);
    let timeout = Duration::from_millis(200);
    let bad = run.submit_within("spin", Some(timeout));
    run.submit_many(20, "ok");
    run.finish();
    assert_eq!(run.undone(), [(bad, &Outcome::TimedOut { after: timeout })]);
    // And one that is still spinning when the pool goes.
    let bad = run.submit("spin");
    run.started(bad);
    let pids = run.workers();
    drop(run);
    assert!(pids.iter().all(|pid| !support::is_alive(*pid)));
}

fn row_15_has_left_its_process_group() {
    let mut run = Run::new(1, TransportKind::Seqpacket);
    let timeout = Duration::from_millis(500);
    let bad = run.submit_within("leave-group", Some(timeout));
    run.submit_many(20, "ok");
    run.started(bad);
    let start = Instant::now();
    run.finish();
    assert_eq!(run.undone(), [(bad, &Outcome::TimedOut { after: timeout })]);
    assert_eq!(run.pool.stats().abandoned, 0);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    run.alone();
}

// ---- row 16

const WAYS_TO_LEAK: [&str; 4] = ["plain", "session", "orphan", "socket"];

fn row_16_grandchildren_go_with_their_worker() {
    both(|transport| {
        for how in WAYS_TO_LEAK {
            println!("{how}");
            let mut run = Run::new(2, transport);
            run.alone();
            let before = run.workers();
            // Both workers, the second after a job that is done.
            let leaked = run.submit(format!("leak {how}"));
            run.until("a leak", |run| run.outcomes.contains_key(&leaked));
            assert_eq!(run.undone(), []);
            assert!(support::descendants(std::process::id() as i32).len() > 3, "somebody was left");
            let bad = run.submit(format!("leak-and-die {how}"));
            run.submit_many(50, "ok");
            run.finish();
            assert_eq!(run.undone(), [(bad, &crashed(CrashCause::Signal(6)))]);
            before.iter().filter(|pid| run.workers().contains(pid)).for_each(|pid| signal(*pid, Signal::SIGKILL));
            run.refilled(&before);
            run.alone();
        }
    });
}

fn row_16_grandchildren_go_with_the_pool() {
    both(|transport| {
        for how in WAYS_TO_LEAK {
            println!("{how}");
            let mut run = Run::new(2, transport);
            for _ in 0..4 {
                run.submit(format!("leak {how}"));
            }
            run.finish();
            assert_eq!(run.undone(), []);
            let bad = run.submit(format!("leak-and-spin {how}"));
            run.started(bad);
            let pids = support::descendants(std::process::id() as i32);
            assert!(pids.len() > 6, "{pids:?}");
            let start = Instant::now();
            drop(run);
            assert!(pids.iter().all(|pid| !support::is_alive(*pid)));
            assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        }
    });
}

// ---- rows 17 to 21

fn row_17_result_and_deadline_race() {
    both(|transport| {
        let mut run = Run::new(4, transport);
        let mut random = Random(17);
        let timeout = Duration::from_millis(6);
        let count = if transport == TransportKind::Seqpacket { rounds(3000, 10_000) as usize } else { 600 };
        for _ in 0..count {
            // A job is killed up to a sampling period of 2.5 ms after its time, and later on a loaded machine.
            run.submit_within(format!("sleep {}", 5000 + random.below(7000)), Some(timeout));
            run.until("room", |run| run.pool.outstanding() < 64);
        }
        run.finish();
        let late = run.undone().len();
        let expected = Outcome::TimedOut { after: timeout };
        assert!(run.undone().iter().all(|(_, outcome)| **outcome == expected), "{:?}", run.undone());
        println!("{transport}: {late} of {count} timed out; {:?}", run.pool.stats());
        assert!(late > 0 && late < count, "no race: {late} of {count} timed out");
        let stats = run.pool.stats();
        assert_eq!((stats.done, stats.timed_out), ((count - late) as u64, late as u64));
    });
}

/// Starts this program as a host of its own, in a process group of its own.
fn host(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("current_exe"));
    command.args([HOST, name]).process_group(0).stdin(Stdio::null());
    command
}

fn host_spinning() {
    let mut run = Run::new(2, TransportKind::Seqpacket);
    for how in ["plain", "session", "orphan", "socket"] {
        run.submit(format!("leak {how}"));
    }
    run.submit("leak-and-spin session");
    run.submit("spin");
    loop {
        run.poll(Duration::from_secs(1));
    }
}

// `support::reaped` waits for it, as for all that is adopted.
#[allow(clippy::zombie_processes)]
fn row_18_host_killed() {
    // Whoever is orphaned comes to this process.
    nix::sys::prctl::set_child_subreaper(true).expect("prctl");
    let mut random = Random(18);
    let mut most = 0;
    for round in 0..rounds(20, 200) {
        let child = host("spinning").spawn().expect("a host");
        // Sooner or later: while it starts, while it forks, while all spin.
        let moment =
            Duration::from_micros(if round % 5 < 3 { random.below(80_000) } else { 200_000 + random.below(200_000) });
        std::thread::sleep(moment);
        most = most.max(support::descendants(child.id() as i32).len());
        signal(child.id() as i32, Signal::SIGKILL);
        let start = Instant::now();
        let gone = wait_until(Duration::from_secs(1), support::reaped);
        let left = support::descendants(std::process::id() as i32);
        let left: Vec<String> = left.into_iter().map(support::describe).collect();
        assert!(gone, "1 s after a death at {moment:?}: {left:#?}");
        println!("killed after {moment:?}, all gone {:?} later", start.elapsed());
    }
    assert!(most >= 8, "{most}: nothing had been leaked yet");
}

fn host_without_main_thread() {
    let run = Run::new(2, TransportKind::Seqpacket);
    let main = std::process::id() as i32;
    std::thread::spawn(move || {
        let mut run = run;
        let zombie =
            || std::fs::read_to_string(format!("/proc/self/task/{main}/stat")).is_ok_and(|s| s.contains(") Z "));
        assert!(wait_until(Duration::from_secs(10), zombie), "the main thread has exited");
        std::thread::sleep(Duration::from_millis(100));
        run.submit_many(1000, "ok");
        let bad = run.submit("abort");
        run.submit_many(100, "ok");
        run.finish();
        assert_eq!(run.undone(), [(bad, &crashed(CrashCause::Signal(6)))]);
        run.refilled(&[]);
        run.submit_many(100, "ok");
        run.finish();
        drop(run);
        println!("all is well");
        std::process::exit(0);
    });
    // SAFETY: exit(2), not exit(3): it ends this thread alone, whose stack nobody else uses.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

fn row_19_thread_that_spawned_the_pool_exits() {
    let output = support::run(&mut host("without_main_thread"), "", Duration::from_secs(40));
    assert_eq!(output.expect_code(0).text(), "all is well\n", "{output}");
}

/// Workers are slow from the fork to the lifeline.
#[derive(Clone, Copy, Debug)]
struct SlowFork {
    host: i32,
}

impl Sys for SlowFork {
    fn fork(&self) -> OsResult<Forked> {
        let forked = Linux.fork()?;
        if forked == Forked::Child && std::os::unix::process::parent_id() as i32 != self.host {
            std::thread::sleep(Duration::from_millis(700));
        }
        Ok(forked)
    }
}

fn host_slow_fork() {
    let sys = SlowFork { host: std::process::id() as i32 };
    // Set-up that never looks at its socket.
    let _pool = builder(2, TransportKind::Seqpacket).on_start(|| hang()).spawn_with(sys).expect("a pool");
    hang();
}

// `support::reaped` waits for it, as for all that is adopted.
#[allow(clippy::zombie_processes)]
fn row_20_host_dies_before_the_lifeline() {
    nix::sys::prctl::set_child_subreaper(true).expect("prctl");
    let child = host("slow_fork").spawn().expect("a host");
    let host = child.id() as i32;
    let mut found = Vec::new();
    assert!(wait_until(Duration::from_secs(10), || {
        found = support::descendants(host);
        found.len() == 3
    }));
    let nursery = found[0];
    // The nursery would kill them: it must not be what does it here.
    signal(nursery, Signal::SIGSTOP);
    signal(host, Signal::SIGKILL);
    let (start, workers) = (Instant::now(), &found[1..]);
    assert!(workers.iter().all(|pid| support::is_alive(*pid)), "they are slow");
    let gone = wait_until(Duration::from_secs(3), || workers.iter().all(|pid| !support::is_alive(*pid)));
    assert!(gone, "{:?}", workers.iter().map(|pid| support::describe(*pid)).collect::<Vec<_>>());
    println!("gone after {:?}", start.elapsed());
    signal(nursery, Signal::SIGCONT);
    assert!(wait_until(Duration::from_secs(1), support::reaped));
}

fn row_21_nursery_killed() {
    both(|transport| {
        let mut run = Run::new(2, transport);
        let nursery = run.pool.processes().0.expect("a nursery");
        run.submit_many(100, "sleep 5000");
        run.until("a result", |run| !run.outcomes.is_empty());
        signal(nursery, Signal::SIGKILL);
        run.finish();
        assert_eq!(run.undone(), [], "those who live go on");
        // No new worker comes: what cannot be run any more says so.
        let mut bad = vec![run.submit("abort")];
        run.submit_many(20, "sleep 100");
        bad.push(run.submit("signal 9"));
        run.submit_many(20, "ok");
        run.finish();
        let mut rejected = 0;
        for (tag, outcome) in run.undone() {
            match outcome {
                Outcome::Rejected { reason: Reason::NoWorkers(why) } => {
                    assert!(why.contains("nursery"), "{why}");
                    rejected += 1;
                }
                outcome => assert_eq!((outcome, bad.contains(&tag)), (&crashed(CrashCause::Unknown), true)),
            }
        }
        println!("{rejected} were rejected");
        let last = run.submit("ok");
        run.finish();
        assert!(matches!(run.outcome(last), Outcome::Rejected { reason: Reason::NoWorkers(_) }));
    });
}

fn row_21_nursery_killed_and_worker_with_grandchild_dies() {
    // Whoever is orphaned comes to this process.
    nix::sys::prctl::set_child_subreaper(true).expect("prctl");
    let mut run = Run::new(1, TransportKind::Seqpacket);
    let leak = run.submit("leak socket");
    run.finish();
    assert_eq!(run.undone(), []);
    signal(run.pool.processes().0.expect("a nursery"), Signal::SIGKILL);
    let bad = run.submit("abort");
    run.finish();
    assert_eq!(run.undone(), [(bad, &crashed(CrashCause::Unknown))]);
    assert_ne!(leak, bad);
    drop(run);
    // The grandchild has nobody to kill it now.
    for pid in support::descendants(std::process::id() as i32) {
        signal(pid, Signal::SIGKILL);
    }
    assert!(wait_until(Duration::from_secs(5), support::reaped));
}

fn row_21_nursery_stopped() {
    let mut run = Run::new(2, TransportKind::Seqpacket);
    let nursery = run.pool.processes().0.expect("a nursery");
    run.submit_many(50, "sleep 1000");
    signal(nursery, Signal::SIGSTOP);
    // Nobody needs it as long as nobody has to be started or killed.
    run.submit_many(50, "sleep 1000");
    run.finish();
    assert_eq!(run.undone(), []);
    // A while is forgiven.
    let timeout = Duration::from_millis(200);
    let bad = run.submit_within("spin", Some(timeout));
    run.submit_many(20, "ok");
    let start = Instant::now();
    run.until("a while", |_| start.elapsed() >= NURSERY_TIMEOUT / 2);
    assert_eq!(run.pool.outstanding(), 1, "nobody kills it");
    signal(nursery, Signal::SIGCONT);
    run.finish();
    assert_eq!(run.undone(), [(bad, &Outcome::TimedOut { after: timeout })]);
    run.refilled(&[]);
    run.submit_many(50, "ok");
    run.finish();
    signal(nursery, Signal::SIGSTOP);
    let start = Instant::now();
    let workers = run.workers();
    drop(run);
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    assert!(wait_until(Duration::from_secs(1), || workers.iter().all(|pid| !support::is_alive(*pid))));
}

fn row_21_nursery_stopped_for_good() {
    both(|transport| {
        let mut run = Run::new(2, transport);
        let (nursery, workers) = (run.pool.processes().0.expect("a nursery"), run.workers());
        signal(nursery, Signal::SIGSTOP);
        let timeout = Duration::from_millis(100);
        let first = run.submit_within("spin", Some(timeout));
        run.submit_many(100, "ok");
        let start = Instant::now();
        run.finish();
        let took = start.elapsed();
        assert!(took >= NURSERY_TIMEOUT && took < NURSERY_TIMEOUT + Duration::from_secs(2), "{took:?}");
        assert_eq!(run.undone(), [(first, &Outcome::TimedOut { after: timeout })]);
        let is_dead = wait_until(Duration::from_secs(1), || !support::is_alive(nursery));
        assert!(is_dead, "it is killed, and cannot wake up again");
        assert_eq!(run.pool.processes().0, None);
        // The other worker goes on, until it dies too.
        let second = run.submit_within("spin", Some(timeout));
        run.finish();
        assert_eq!(run.undone()[1], (second, &Outcome::TimedOut { after: timeout }));
        assert!(wait_until(Duration::from_secs(1), || workers.iter().all(|pid| !support::is_alive(*pid))));
        let last = run.submit("ok");
        run.finish();
        let Outcome::Rejected { reason: Reason::NoWorkers(why) } = run.outcome(last) else {
            panic!("{:?}", run.outcome(last));
        };
        assert!(why.contains("the nursery process did not answer within 4 s"), "{why}");
        assert_eq!((run.pool.stats().abandoned, run.pool.stats().respawns), (0, 0));
    });
}

fn row_21_a_host_that_stood_still_forgives_its_nursery() {
    let mut run = Run::new(2, TransportKind::Seqpacket);
    let nursery = run.pool.processes().0.expect("a nursery");
    signal(nursery, Signal::SIGSTOP);
    let timeout = Duration::from_millis(100);
    let bad = run.submit_within("spin", Some(timeout));
    let start = Instant::now();
    run.until("a kill", |_| start.elapsed() >= timeout * 2);
    // As when the whole machine, or a container, is frozen.
    std::thread::sleep(NURSERY_TIMEOUT + NURSERY_LATE_MAX + Duration::from_millis(200));
    run.poll(Duration::ZERO);
    signal(nursery, Signal::SIGCONT);
    run.finish();
    assert_eq!(run.undone(), [(bad, &Outcome::TimedOut { after: timeout })]);
    run.refilled(&[]);
    assert_eq!(run.pool.processes().0, Some(nursery));
}

// ---- rows 22 to 28

fn row_22_busy_threads_in_the_host() {
    both(|transport| {
        static STOP: AtomicBool = AtomicBool::new(false);
        static LOCK: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());
        STOP.store(false, SeqCst);
        let mut run = Run::new(2, transport);
        let work = || {
            while !STOP.load(SeqCst) {
                for size in [1, 100, 10_000, 1_000_000] {
                    drop(std::hint::black_box(vec![1u8; size]));
                }
                *LOCK.lock().expect("not poisoned") = vec![2; 1000];
                eprint!("");
            }
        };
        let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(work)).collect();
        let mut bad = 0;
        for round in 0..40 {
            run.submit_many(20, "ok");
            if round % 2 == 0 {
                run.submit("abort");
                bad += 1;
            }
        }
        run.finish();
        assert_eq!(run.undone().len(), bad);
        run.refilled(&[]);
        assert_eq!(run.pool.stats().respawns, bad as u64);
        let refused = match builder(1, transport).spawn() {
            Err(error) => error,
            Ok(_) => panic!("a second pool was forked beside other threads"),
        };
        assert_eq!(refused.kind(), &ErrorKind::OtherThreads { count: 9 });
        STOP.store(true, SeqCst);
        threads.into_iter().for_each(|thread| thread.join().expect("a thread"));
    });
}

fn row_23_fork_finds_no_process() {
    // SAFETY: geteuid(2) takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        println!("SKIPPED: only root can become a user who has no other process");
        return;
    }
    // Nobody else runs as this user.
    let user = 60_000 + std::process::id() % 5_000;
    // SAFETY: setgid(2) takes one word; this process has one thread.
    assert_eq!(unsafe { libc::setgid(user) }, 0);
    // SAFETY: setuid(2) takes one word; this process has one thread.
    assert_eq!(unsafe { libc::setuid(user) }, 0);
    // The harness looks at this process's descriptors afterwards.
    nix::sys::prctl::set_dumpable(true).expect("prctl");
    let resource = nix::sys::resource::Resource::RLIMIT_NPROC;
    let (_, hard) = nix::sys::resource::getrlimit(resource).expect("getrlimit");
    // This process, the nursery, and two workers of four.
    nix::sys::resource::setrlimit(resource, 4, hard).expect("setrlimit");
    let mut pool = builder(4, TransportKind::Seqpacket).spawn().expect("a pool");
    assert!(!pool.wait_ready(Duration::from_millis(500)).expect("poll"), "two cannot be forked");
    let mut run = Run { pool, outcomes: BTreeMap::new(), next: 0 };
    assert_eq!(run.workers().len(), 2);
    run.submit_many(500, "sleep 100");
    let bad = run.submit("abort");
    run.submit_many(500, "ok");
    run.finish();
    assert_eq!(run.undone(), [(bad, &crashed(CrashCause::Signal(6)))]);
    let limit = libc::rlimit { rlim_cur: hard, rlim_max: hard };
    let nursery = run.pool.processes().0.expect("a nursery");
    // SAFETY: the new limit is live for the call; the old one is not asked for.
    let n = unsafe { libc::prlimit(nursery, libc::RLIMIT_NPROC, &limit, std::ptr::null_mut()) };
    assert_eq!(n, 0);
    run.refilled(&[]);
    run.submit_many(500, "ok");
    run.finish();
    assert_eq!(run.workers().len(), 4);
}

fn row_24_descriptors_of_a_worker() {
    both(|transport| {
        // What a host has open, with and without close-on-exec.
        let secret = std::fs::File::open("/proc/self/status").expect("a file");
        let (pipe, _writer) = nix::unistd::pipe().expect("a pipe");
        let (stray, other) = nix::sys::socket::socketpair(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::SeqPacket,
            None,
            nix::sys::socket::SockFlag::empty(),
        )
        .expect("a pair");
        let kept = std::fs::File::open("/dev/zero").expect("a file");
        let number = std::os::fd::AsRawFd::as_raw_fd(&kept);
        let mut run = Run::with(builder(3, transport).keep_fd(std::os::fd::AsFd::as_fd(&kept)));
        run.submit_many(30, "sleep 100");
        let abort = run.submit("abort");
        run.finish();
        run.refilled(&[]);
        assert!(matches!(run.outcome(abort), Outcome::Crashed(_)));
        let stderr = std::fs::read_link("/proc/self/fd/2").expect("a standard error").to_string_lossy().into_owned();
        for pid in run.workers() {
            let mut fds = support::open_fds(pid);
            assert_eq!(fds.remove(&0).as_deref(), Some("/dev/null"));
            assert_eq!(fds.remove(&1).as_ref(), Some(&stderr));
            assert_eq!(fds.remove(&2).as_ref(), Some(&stderr));
            assert_eq!(fds.remove(&number).as_deref(), Some("/dev/zero"));
            // Its own socket and its lifeline, which nobody else of the workers has.
            assert_eq!(fds.len(), 2, "{fds:?}");
            assert!(fds.values().all(|target| target.starts_with("socket:")), "{fds:?}");
            for other in run.workers().iter().filter(|other| **other != pid) {
                let theirs = support::open_fds(*other);
                assert!(fds.values().all(|target| theirs.values().all(|t| t != target)), "{fds:?} {theirs:?}");
            }
        }
        let nursery = run.pool.processes().0.expect("a nursery");
        // It lets go of what it has given to a worker a moment after that worker's first word.
        wait_until(Duration::from_secs(1), || support::open_fds(nursery).len() == 7);
        let mut fds = support::open_fds(nursery);
        assert_eq!(fds.remove(&0).as_deref(), Some("/dev/null"));
        assert_eq!((fds.remove(&1).as_ref(), fds.remove(&2).as_ref()), (Some(&stderr), Some(&stderr)));
        assert_eq!(fds.remove(&number).as_deref(), Some("/dev/zero"));
        let mut kinds: Vec<_> = fds.values().map(|target| target.split('[').next().unwrap_or_default()).collect();
        kinds.sort_unstable();
        assert_eq!(kinds.len(), 3, "a socket, the host's pidfd, a signalfd: {fds:?}");
        assert_eq!(kinds.iter().filter(|kind| kind.starts_with("socket")).count(), 1, "{fds:?}");
        drop((secret, pipe, stray, other));
    });
}

fn row_25_fifty_deaths_at_once() {
    let mut run = Run::new(50, TransportKind::Seqpacket);
    for _ in 0..3 {
        run.submit_many(500, "ok");
        run.finish();
        let all = run.workers();
        assert_eq!(all.len(), 50);
        // So that they end as one: a stopped nursery sees them all together.
        let nursery = run.pool.processes().0.expect("a nursery");
        signal(nursery, Signal::SIGSTOP);
        all.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
        let dead = wait_until(Duration::from_secs(10), || all.iter().all(|pid| !support::is_alive(*pid)));
        assert!(dead);
        signal(nursery, Signal::SIGCONT);
        run.refilled(&all);
        assert!(all.iter().all(|pid| support::proc_state(*pid).is_none()), "all reaped");
    }
    assert_eq!(run.undone(), []);
    assert_eq!(run.pool.stats().respawns, 150);
}

fn row_26_children_of_the_host() {
    both(|transport| {
        let sh = |script: &str| Command::new("sh").args(["-c", script]).spawn().expect("sh");
        let mut early: Vec<_> = (0..5).map(|n| sh(&format!("exit {n}"))).collect();
        let mut run = Run::new(2, transport);
        let mut late: Vec<_> = (0..5).map(|n| sh(&format!("exit {n}"))).collect();
        for _ in 0..10 {
            run.submit("abort");
            run.submit_many(20, "ok");
        }
        run.finish();
        run.refilled(&[]);
        let mut during: Vec<_> = (0..5).map(|n| sh(&format!("exit {n}"))).collect();
        assert!(wait_until(Duration::from_secs(5), || during.iter().all(|c| !support::is_alive(c.id() as i32))));
        run.submit_many(20, "ok");
        run.finish();
        let pids = run.workers();
        drop(run);
        assert!(pids.iter().all(|pid| support::proc_state(*pid).is_none()));
        for child in [&mut early, &mut late, &mut during] {
            for (n, child) in child.iter_mut().enumerate() {
                assert_eq!(child.wait().expect("still ours").code(), Some(n as i32));
            }
        }
    });
}

fn row_27_stale_events() {
    for &transport in TransportKind::ALL {
        for seed in 0..6 {
            println!("transport {transport}, seed {seed}");
            let fault = Fault { stale_event: 3, spurious_event: 5, ..Fault::default() };
            let sys = Faulty::new(seed, fault);
            let mut run = Run::over(builder(4, transport), sys.clone());
            let mut bad = 0;
            for round in 0..30 {
                run.submit_many(30, "ok");
                if round % 3 == 0 {
                    // Sockets are closed and come back under the same numbers.
                    run.submit("abort");
                    bad += 1;
                }
                run.poll(Duration::ZERO);
            }
            run.finish();
            assert_eq!(run.undone().len(), bad);
            assert_eq!(run.pool.stats().hostile, 0);
            assert_ne!(sys.injected(), 0);
        }
    }
}

fn row_28_more_packets_than_a_turn_takes() {
    let (mut quickest, mut most) = (Duration::MAX, 0);
    for _ in 0..8 {
        let mut run = Run::new(1, TransportKind::Seqpacket);
        // So that all of the next ones are thought to be as short, and are sent at once.
        run.warm_up();
        let before = run.pool.stats().packets_received;
        // Each reply is a packet of its own, and the socket holds them all.
        run.submit_many(40, "reply 100000");
        run.pool.flush().expect("flush");
        // All are there before the first is read: no further edge comes.
        std::thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        run.finish();
        quickest = quickest.min(start.elapsed());
        most = most.max(run.pool.stats().packets_received - before);
        assert_eq!(run.undone(), []);
    }
    assert!(most > 2 * u64::from(PACKETS_PER_TURN), "{most} packets");
    // What is left over is on the ready list: it does not wait for the sleep of 100 ms.
    assert!(quickest < Duration::from_millis(60), "{quickest:?}");
}

// ---- rows 30 to 32

fn row_30_consumer_never_reads() {
    both(|transport| {
        let mut run = Run::new(2, transport);
        run.warm_up();
        let before = support::vm_hwm(std::process::id() as i32).expect("ours");
        let mut waits = 0;
        let padding = "x".repeat(500);
        // Until nothing moves any more: nobody takes a result.
        while waits < 50 {
            let tag = run.next;
            let body = format!("{tag} ok {padding}");
            match run.pool.try_submit(Job::new("do", body.as_bytes()).tag(tag)) {
                Ok(_) => run.next += 1,
                Err(TrySubmitError::Full(job)) => {
                    assert_eq!(job, Job::new("do", body.as_bytes()).tag(tag), "given back");
                    waits += 1;
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(other) => panic!("{other}"),
            }
        }
        let grown = support::vm_hwm(std::process::id() as i32).expect("ours") - before;
        println!("{transport}: {} submitted, {grown} bytes grown", run.next);
        assert!(run.next < STARTED_AT as u64);
        // The queue of 2 MiB, two rings of 1 MiB for each worker, and some records: no more than is promised.
        assert!(grown < 16 << 20, "{grown} bytes");
        run.finish();
        assert_eq!(run.undone(), [], "nothing is lost");
    });
}

fn row_30_submit_without_taking() {
    let mut run = Run::with(builder(2, TransportKind::Seqpacket).queue_jobs_max(2000));
    run.warm_up();
    let mut refused: Option<Error> = None;
    while refused.is_none() {
        let tag = run.next;
        match run.pool.submit(Job::new("do", format!("{tag} reply 1000").as_bytes()).tag(tag)) {
            Ok(_) => run.next += 1,
            Err(error) => refused = Some(error),
        }
    }
    assert_eq!(refused.map(|error| error.kind().clone()), Some(ErrorKind::Undelivered));
    assert_eq!(run.next, 4000);
    run.finish();
    assert_eq!(run.undone(), []);
    // By bytes: the queue is full of large jobs, and as soon as 64 MiB of results wait, only taking them makes room.
    let mut run = Run::new(2, TransportKind::Seqpacket);
    let before = support::vm_hwm(std::process::id() as i32).expect("ours");
    let padding = "x".repeat(100_000);
    let refused = loop {
        let tag = run.next;
        match run.pool.submit(Job::new("do", format!("{tag} reply 1000000 {padding}").as_bytes()).tag(tag)) {
            Ok(_) => run.next += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), &ErrorKind::Undelivered);
    let grown = support::vm_hwm(std::process::id() as i32).expect("ours") - before;
    println!("{} jobs, {grown} bytes grown", run.next);
    assert!(run.next < 200, "{} jobs", run.next);
    assert!(grown < UNDELIVERED_SIZE_MAX as u64 + (32 << 20), "{grown} bytes");
    run.finish();
    assert_eq!(run.undone(), []);
}

/// Send buffers of a size of our choice, on both sides.
#[derive(Clone, Copy, Debug)]
struct Tiny(usize);

impl Sys for Tiny {
    fn set_send_buffer(&self, fd: BorrowedFd<'_>, _: usize) -> OsResult<()> {
        Linux.set_send_buffer(fd, self.0)
    }
}

fn row_31_tiny_send_buffers() {
    both(|transport| {
        // The kernel doubles what it is asked for; one of them is no multiple of 8.
        for size in [2304, 4097, 9001, 40_001] {
            println!("buffers of {size}");
            let mut run = Run::over(builder(2, transport), Tiny(size));
            for length in [0, 1, 100, 4000, 4500, 4550, 8100, 8170, 9000, 17_900, 18_000, 60_000, 80_000, 100_000] {
                run.submit(format!("ok {}", "x".repeat(length)));
            }
            run.submit(format!("ok {}", "x".repeat(3 << 20)));
            run.submit_many(3000, "ok");
            run.finish();
            assert_eq!(run.undone(), []);
            for (tag, (outcome, _)) in &run.outcomes {
                let Outcome::Done(body) = outcome else { unreachable!("all are done") };
                assert!(body.starts_with(format!("{tag} ok").as_bytes()));
            }
        }
        // A job that must be cut into parts waits behind one that runs.
        let mut run = Run::over(builder(1, transport), Tiny(2304));
        let slow = run.submit("sleep 50000");
        run.started(slow);
        run.submit(format!("ok {}", "x".repeat(60_000)));
        run.submit_many(10, "ok");
        run.finish();
        assert_eq!(run.undone(), []);
        drop(run);
        // A worker that reads nothing for a second: the host waits, and does not spin.
        let mut run = Run::over(builder(1, transport), Tiny(2304));
        run.warm_up();
        let slow = run.submit("sleep 1000000");
        run.started(slow);
        run.submit_many(1000, &format!("ok {}", "x".repeat(1000)));
        let cpu = support::cpu_time(std::process::id() as i32).expect("ours");
        run.until("the slow one", |run| run.outcomes.contains_key(&slow));
        let cpu = support::cpu_time(std::process::id() as i32).expect("ours") - cpu;
        assert!(cpu < Duration::from_millis(300), "the host spun: {cpu:?}");
        run.finish();
        assert_eq!(run.undone(), []);
    });
}

fn row_32_every_size() {
    both(|transport| {
        let echo = |request: &Request<'_>, reply: &mut Reply<'_>| {
            reply.extend_from_slice(request.body());
            Ok(())
        };
        let mut pool = builder(2, transport).handler("echo", echo).spawn().expect("a pool");
        let header = frame::frame_size(0);
        let mut sizes = vec![0, 1, 7, 8, 9, 212_960, 212_961, JOB_SIZE_MAX - 1, JOB_SIZE_MAX];
        for edge in [PACK_SIZE_MAX, PACKET_SIZE_MAX, RING_SIZE / 2, RING_SIZE] {
            for size in [edge, edge - header, edge - header - 16, edge - header - 40] {
                sizes.extend([size - 1, size, size + 1]);
            }
        }
        let body = |size: usize| -> Vec<u8> { (0..size).map(|i| (i * 31 + i / 251 + size) as u8).collect() };
        let mut seen = BTreeMap::new();
        for (tag, &size) in sizes.iter().enumerate() {
            let headers = if tag % 3 == 0 { 0 } else { 100 };
            let body = body(size);
            let mut job = Job::new("echo", &body).tag(tag as u64);
            for n in 0..headers {
                job = job.header(&format!("key{n}"), "value");
            }
            pool.submit(job).expect("room");
            while pool.outstanding() > 4 {
                pool.poll(None, |c, _| take(&mut seen, &c)).expect("poll");
            }
        }
        while pool.outstanding() > 0 {
            pool.poll(None, |c, _| take(&mut seen, &c)).expect("poll");
        }
        for (tag, &size) in sizes.iter().enumerate() {
            let sum = checksum(&body(size));
            assert_eq!(seen.get(&(tag as u64)), Some(&Ok((size, sum))), "{size} bytes");
        }
        // One more than the limit is refused at once; the rest is unharmed.
        seen.clear();
        let large = vec![0; JOB_SIZE_MAX + 1];
        pool.submit(Job::new("echo", &large).tag(0)).expect("taken");
        pool.submit(Job::new("do", b"1 reply 67108864").tag(1)).expect("room");
        pool.submit(Job::new("do", b"2 reply 67108865").tag(2)).expect("room");
        pool.submit(Job::new("do", b"3 ok").tag(3)).expect("room");
        pool.submit(Job::new("do", b"4 ok").tag(4).header("key", vec![b'v'; 20_000])).expect("taken");
        while pool.outstanding() > 0 {
            pool.poll(None, |c, _| take(&mut seen, &c)).expect("poll");
        }
        assert!(seen[&0].as_ref().is_err_and(|e| e.contains("rejected") && e.contains("67108864")), "{:?}", seen[&0]);
        assert_eq!(seen[&1].as_ref().map(|(size, _)| *size), Ok(JOB_SIZE_MAX));
        assert!(seen[&2].as_ref().is_err_and(|e| e.contains("67108864")), "{:?}", seen[&2]);
        assert_eq!(seen[&3].as_ref().map(|(size, _)| *size), Ok(4));
        assert!(seen[&4].as_ref().is_err_and(|e| e.contains("headers")), "{:?}", seen[&4]);
        assert_eq!(pool.stats().respawns, 0);
    });

    type Seen = BTreeMap<u64, Result<(usize, u64), String>>;

    fn take(seen: &mut Seen, c: &seqpool::Completion<'_>) {
        let what = match &c.outcome {
            Outcome::Done(body) => Ok((body.len(), checksum(body))),
            other => Err(other.to_string()),
        };
        assert!(seen.insert(c.tag, what).is_none(), "job {} has two outcomes", c.tag);
    }

    fn checksum(body: &[u8]) -> u64 {
        body.chunks(8).fold(0xcbf2_9ce4_8422_2325, |sum: u64, part| {
            let word = part.iter().fold(1u64, |n, &b| n << 8 | u64::from(b));
            (sum ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(7)
        })
    }
}

// ---- row 33

const ATTACKS: [&str; 19] = [
    "empty",
    "empty-then-more",
    "oversized",
    "short",
    "garbage",
    "wrong-epoch",
    "wrong-order",
    "never-sent",
    "absurd-length",
    "absurd-total",
    "total-beyond-limit",
    "fragment-from-the-middle",
    "fragment-of-two-sizes",
    "duplicate",
    "job",
    "bad-status",
    "dirty-padding",
    "short-times",
    "descriptors",
];

/// Sends to the host what no worker may.
fn attack(how: &str) {
    let socket = own_socket();
    let send = |packet: &[u8]| {
        // SAFETY: the packet is live for the call; an empty one is sent as such.
        let n = unsafe { libc::send(socket, packet.as_ptr().cast(), packet.len(), libc::MSG_NOSIGNAL) };
        assert_eq!(n, packet.len() as isize, "{}", std::io::Error::last_os_error());
    };
    let id = own_id();
    let result = |id: u64, kind: Kind, flags: u8, code: u32, body: &[u8]| {
        let header = Header { payload_size: 0, header_block_size: 0, kind, flags, id, code, extra: 1 };
        let mut packet = vec![0; frame::frame_size(body.len())];
        frame::encode(&mut packet, header, &[], body);
        packet
    };
    let forged = |id: u64| result(id, Kind::Result, 0, 0, b"forged");
    let fragment = |total: u64, offset: u64, size: usize| {
        let body = [&frame::fragment_prefix(total, offset)[..], &vec![1; size]].concat();
        result(id, Kind::Result, FLAG_FRAGMENT, 0, &body)
    };
    match how {
        "empty" => send(b""),
        "empty-then-more" => {
            send(b"");
            send(b"");
            send(&forged(id + 1));
        }
        "oversized" => send(&vec![0; PACKET_SIZE_MAX + 8]),
        "short" => send(b"short"),
        "garbage" => {
            let mut random = Random(33);
            send(&(0..4096).map(|_| random.next() as u8).collect::<Vec<u8>>());
        }
        "wrong-epoch" => send(&forged(id + (1 << 32))),
        "wrong-order" => send(&forged(id + 1)),
        "never-sent" => send(&forged(id + 1_000_000)),
        "absurd-length" => {
            let mut packet = forged(id);
            packet[..4].copy_from_slice(&0xffff_fff8u32.to_le_bytes());
            send(&packet);
        }
        "absurd-total" => send(&fragment(u64::MAX, 0, 100)),
        "total-beyond-limit" => send(&fragment(JOB_SIZE_MAX as u64 + 17, 0, 100)),
        "fragment-from-the-middle" => send(&fragment(1000, 100, 100)),
        "fragment-of-two-sizes" => {
            send(&fragment(1000, 0, 100));
            send(&fragment(1001, 100, 100));
        }
        "duplicate" => {
            send(&forged(id));
            send(&forged(id));
        }
        "job" => send(&result(id, Kind::Job, 0, 0, b"0 ok")),
        "bad-status" => send(&result(id, Kind::Result, 0, 99, b"")),
        "dirty-padding" => {
            let mut packet = forged(id);
            *packet.last_mut().expect("padding") = 1;
            send(&packet);
        }
        "short-times" => send(&result(id, Kind::Result, 2, 0, b"short")),
        "descriptors" => {
            use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
            let (packet, fds) = (forged(id), [0, 1]);
            let parts = [IoSlice::new(&packet)];
            sendmsg::<()>(socket, &parts, &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None)
                .expect("sendmsg");
        }
        "hello-flood" => loop {
            send(&result(0, Kind::Hello, 0, 0, b""));
        },
        other => panic!("no attack {other:?}"),
    }
    hang();
}

fn row_33_hostile_peers() {
    both(|transport| {
        let mut run = Run::new(2, transport);
        run.warm_up();
        let before = support::vm_hwm(std::process::id() as i32).expect("ours");
        for (round, how) in ATTACKS.iter().enumerate() {
            println!("{how}");
            let pids = run.workers();
            run.submit_many(20, "ok");
            let bad = run.submit(format!("attack {how}"));
            run.submit_many(20, "sleep 200");
            run.finish();
            let by = run.outcomes[&bad].1;
            match run.outcome(bad) {
                Outcome::Done(body) if *how == "duplicate" => assert_eq!(body, b"forged"),
                outcome => assert_eq!(outcome, &crashed(CrashCause::Signal(9)), "{how}"),
            }
            // Whatever the attacker had been sent counts as started; nobody else's job suffers.
            let mut lost = 0;
            for (tag, (outcome, worker)) in run.outcomes.range(bad - 20..) {
                if *tag != bad && !outcome.is_done() {
                    assert_eq!((outcome, *worker), (&crashed(CrashCause::Signal(9)), by), "{how}: job {tag}");
                    lost += 1;
                }
            }
            println!("{how}: {lost} others lost");
            run.until("a kill and a new worker", |run| run.pool.stats().respawns == round as u64 + 1);
            assert_eq!(run.pool.stats().hostile, round as u64 + 1, "{how}");
            assert_eq!(run.workers().iter().filter(|pid| pids.contains(pid)).count(), 1, "only that worker dies");
        }
        let grown = support::vm_hwm(std::process::id() as i32).expect("ours") - before;
        assert!(grown < 8 << 20, "{grown} bytes");
    });
}

fn row_33_hello_flood() {
    both(|transport| {
        let mut run = Run::with(builder(2, transport).timeout(Duration::from_millis(1000)));
        let bad = run.submit("attack hello-flood");
        run.started(bad);
        run.submit_many(50, "sleep 100");
        run.finish();
        let timed_out = Outcome::TimedOut { after: Duration::from_millis(1000) };
        let outcome = run.outcome(bad);
        assert!(*outcome == timed_out || *outcome == crashed(CrashCause::Signal(9)), "{outcome:?}");
        run.submit_many(50, "ok");
        run.finish();
    });
}

fn row_33_result_before_hello() {
    both(|transport| {
        let forger = &words()[SPECIAL + 3];
        forger.store(0, SeqCst);
        words()[..SPECIAL].iter().for_each(|word| word.store(0, SeqCst));
        let forge = || {
            if forger.fetch_add(1, SeqCst) != 0 {
                return Ok(());
            }
            // Until a job is there.
            let mut head = [0; FRAME_HEADER_SIZE];
            // SAFETY: the place is live for the call; MSG_PEEK leaves the packet where it is.
            let n = unsafe { libc::recv(own_socket(), head.as_mut_ptr().cast(), head.len(), libc::MSG_PEEK) };
            assert_eq!(n, head.len() as isize);
            let job = Header::decode(&head).expect("a job's frame");
            let mut packet = vec![0; frame::frame_size(6)];
            frame::encode(&mut packet, Header { kind: Kind::Result, code: 0, extra: 1, ..job }, &[], b"forged");
            // SAFETY: the packet is live for the call.
            let n = unsafe { libc::send(own_socket(), packet.as_ptr().cast(), packet.len(), libc::MSG_NOSIGNAL) };
            assert_eq!(n, packet.len() as isize);
            hang();
        };
        let pool = builder(1, transport).on_start(forge).spawn().expect("a pool");
        let mut run = Run { pool, outcomes: BTreeMap::new(), next: 0 };
        run.submit_many(100, "ok");
        run.finish();
        // What it had been sent counts as started, and nothing that it said is an outcome.
        for (tag, (outcome, _)) in &run.outcomes {
            let expected =
                if starts(*tag) == 1 { outcome.is_done() } else { *outcome == crashed(CrashCause::Signal(9)) };
            assert!(expected && *outcome != Outcome::Done(b"forged".to_vec()), "job {tag}: {outcome:?}");
        }
        assert!(run.undone().len() < 3, "{:?}", run.undone());
        assert_eq!(run.pool.stats().hostile, 1);
    });
}

// ---- row 35

/// Starts a thread that writes random values over a part of this worker's slot for as long as the worker lives.
fn flip(what: &str) {
    let base = slot_base();
    let mut random = Random(u64::from(std::process::id()));
    // Offsets of eight-byte words.
    let choose: fn(&mut Random) -> usize = match what {
        "claim" => |_| 0,
        "tail" => |_| 64,
        "phase" => |_| 128,
        "ring" => |random| 4096 + random.below(RING_SIZE as u64 / 8) as usize * 8,
        "head-of-ring" => |random| 4096 + random.below(1024) as usize * 8,
        "all" => |random| match random.below(4) {
            0 => 0,
            1 => 64,
            2 => 128,
            _ => 4096 + random.below(8192) as usize * 8,
        },
        other => panic!("no part {other:?}"),
    };
    let address = base.expose_provenance();
    std::thread::spawn(move || {
        let base: *mut u8 = std::ptr::with_exposed_provenance_mut(address);
        loop {
            let word = base.wrapping_add(choose(&mut random)).cast::<AtomicU64>();
            // SAFETY: an aligned word inside the slot's mapping, which is never unmapped while the worker lives.
            unsafe { &*word }.store(random.next(), SeqCst);
        }
    });
    std::thread::sleep(Duration::from_micros(500));
}

fn row_35_scribbles_over_its_slot() {
    both(|transport| {
        for what in ["claim", "tail", "phase", "ring", "head-of-ring", "all"] {
            for (round, end) in ["ok", "sleep 3000", "abort", "exit 1", "signal 9"].iter().enumerate() {
                println!("{what}, then {end}");
                let mut run = Run::with(builder(2, transport).stall_timeout(Duration::from_millis(500)));
                if round % 2 == 0 {
                    run.warm_up();
                }
                run.submit_many(30, "ok");
                let bad = run.submit(format!("flip {what}"));
                run.submit_many(100, "ok");
                run.submit_many(10, "sleep 500");
                let last = run.submit(end);
                run.submit_many(100, "ok");
                run.finish();
                let by = run.outcomes[&bad].1;
                for (tag, (outcome, worker)) in &run.outcomes {
                    let expected = *worker == by || *tag == last || outcome.is_done();
                    assert!(expected, "job {tag} of another worker: {outcome:?}, {worker:?}");
                }
                println!("{} undone, {:?}", run.undone().len(), run.pool.stats());
                // The pool goes on.
                let pids = run.workers();
                for pid in &pids {
                    // It may have died meanwhile.
                    let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                }
                run.refilled(&pids);
                let first = run.next;
                run.submit_many(50, "ok");
                run.finish();
                assert!(run.outcomes.range(first..).all(|(_, (outcome, _))| outcome.is_done()));
            }
        }
    });
}

fn row_35_says_that_it_waits_for_room() {
    both(|transport| {
        // Its deadline would stand still if the host had results to take; it has none.
        let timeout = Duration::from_millis(300);
        let mut run = Run::with(builder(2, transport).timeout(timeout));
        let bad = run.submit("waits-for-room");
        run.submit_many(50, "ok");
        run.finish();
        assert_eq!(run.undone(), [(bad, &Outcome::TimedOut { after: timeout })]);
    });
}

fn row_35_forks_and_returns_twice() {
    both(|transport| {
        for workers in [1, 2] {
            let mut run = Run::new(workers, transport);
            run.warm_up();
            for _ in 0..10 {
                run.submit("fork");
                run.submit_many(50, "ok");
                run.finish();
                // By now both have returned.
                std::thread::sleep(Duration::from_millis(30));
                run.submit_many(50, "ok");
            }
            run.finish();
            assert_eq!(run.undone(), [], "the copy has no slot and dies");
            assert_eq!(run.pool.stats().hostile, 0);
        }
    });
}

// ---- rows 41 and 42

fn host_stopped() {
    let timeout = Duration::from_millis(600);
    let mut run = Run::with(builder(2, TransportKind::Seqpacket).timeout(timeout).stall_timeout(timeout));
    println!("ready");
    let start = Instant::now();
    let mut bad = Vec::new();
    while start.elapsed() < Duration::from_secs(4) {
        run.submit_many(4, "sleep 20000");
        if start.elapsed() > Duration::from_millis(200) && bad.is_empty() {
            bad.push(run.submit("hang"));
        }
        run.until("room", |run| run.pool.outstanding() < 4);
    }
    run.finish();
    let expected = Outcome::TimedOut { after: timeout };
    assert_eq!(run.undone(), bad.iter().map(|tag| (*tag, &expected)).collect::<Vec<_>>());
    assert_eq!(run.pool.stats().respawns, 1, "{}", run.state());
    println!("all is well");
}

fn row_41_host_stopped() {
    let mut child = host("stopped").stdout(Stdio::piped()).spawn().expect("a host");
    let mut output = std::io::BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut output, &mut line).expect("a line");
    assert_eq!(line, "ready\n");
    std::thread::sleep(Duration::from_millis(500));
    signal(child.id() as i32, Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(2));
    signal(child.id() as i32, Signal::SIGCONT);
    line.clear();
    std::io::BufRead::read_line(&mut output, &mut line).expect("a line");
    assert_eq!((child.wait().expect("a status").code(), line.as_str()), (Some(0), "all is well\n"));
}

fn host_prints() {
    // What the host had printed and not flushed comes once, and before all else.
    print!("host before; ");
    // SAFETY: the string is live and ends with a zero.
    unsafe { libc::printf(c"C before; ".as_ptr()) };
    let mut run = Run::new(2, TransportKind::Seqpacket);
    for _ in 0..20 {
        run.submit("print");
        run.submit("ok");
    }
    let dies = run.submit("print");
    run.submit("exit 0");
    run.finish();
    assert!(run.outcome(dies).is_done());
    for (tag, (outcome, _)) in run.outcomes.range(..=dies) {
        let expected = format!("{tag} {}", if tag % 2 == 0 { "print" } else { "ok" });
        assert_eq!(outcome, &Outcome::Done(expected.into_bytes()));
    }
    drop(run);
    println!("host after");
    std::io::stdout().flush().expect("stdout");
}

fn row_42_prints() {
    let output = support::run(&mut host("prints"), "", Duration::from_secs(40));
    output.expect_code(0);
    assert_eq!(output.text(), "host before; C before; host after\n", "{output}");
    for line in ["a line from Rust", "a line from C, unflushed", "a line by write(2)", "a line from echo"] {
        assert_eq!(output.stderr.matches(line).count(), 21, "{line}\n{output}");
    }
}
