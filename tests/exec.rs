//! Exec mode: pools whose nursery is this program, executed again. Its promises, and the rows of the fault table that are
//! different there.
//!
//! Host and workers share no memory by a fork, so job starts are counted in a memory file that workers are asked to keep.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seqpool::limits::{NURSERY_START_TIMEOUT, NURSERY_STARTS_MAX, NURSERY_TIMEOUT};
use seqpool::sys::{Fault, Faulty};
use seqpool::{Builder, Crash, CrashCause, ErrorKind, HandlerError, Job, Outcome, Pool, Reason, Reply, Request};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::{Random, wait_until};

mod support;

/// Runs this program as a host of its own: `--host NAME`.
const HOST: &str = "--host";
/// What the library sets for the program that it executes.
const MARK: &str = "SEQPOOL_NURSERY";
/// How this program misbehaves when it is executed as a nursery.
const NURSERY_DOES: &str = "EXEC_TEST_NURSERY_DOES";
/// The number of the descriptor in which starts are counted.
const STARTS_FD: &str = "EXEC_TEST_STARTS_FD";

fn main() {
    if std::env::var_os(MARK).is_some() {
        match std::env::var(NURSERY_DOES).as_deref() {
            Ok("exit") => std::process::exit(3),
            Ok("hang") => hang(),
            Ok("die") => kill(Pid::this(), Signal::SIGKILL).expect("kill"),
            Ok("threads") => drop(std::thread::spawn(|| hang())),
            _ => {}
        }
    }
    let arguments: Vec<String> = std::env::args().collect();
    let host = match arguments.as_slice() {
        [_, flag, name] if flag == HOST => Some(name.as_str()),
        _ => None,
    };
    if host != Some("without_init") {
        seqpool::init(handlers);
    }
    match host {
        None => {}
        Some("without_init") => return host_without_init(),
        Some("spinning") => return host_spinning(),
        Some("deleted") => return host_deleted(),
        Some("replaced") => return host_replaced(),
        Some(other) => panic!("no host {other}"),
    }
    support::main(&support::cases![
        a_host_with_threads_has_a_pool,
        handlers_do_not_see_the_mark,
        settings_reach_the_workers,
        errors_say_what_to_do,
        errors_of_an_executed_nursery_say_what_to_do,
        a_nursery_that_never_serves_is_ended,
        a_nursery_started_by_hand_says_so,
        a_deleted_program_is_still_executed,
        a_replaced_program_is_still_executed,
        two_pools_side_by_side,
        row_18_host_killed_in_exec_mode => 120,
        row_19_thread_that_spawned_the_pool_exits_in_exec_mode,
        row_21_nursery_killed_in_exec_mode,
        row_21_nursery_killed_again_and_again => 180,
        row_21_nursery_and_workers_killed_at_once,
        row_21_nursery_stopped_in_exec_mode,
        row_21_no_other_nursery_can_be_started,
        row_21_nursery_killed_under_a_failing_kernel => 120,
        row_22_busy_threads_in_exec_mode,
        row_24_descriptors_in_exec_mode,
    ]);
}

// ---- the handlers

fn handlers(pool: Builder) -> Builder {
    let name = match std::env::var(NURSERY_DOES).as_deref() {
        Ok("differ") => format!("do {}", std::process::id()),
        _ => "do".to_owned(),
    };
    pool.handler(&name, act).on_start(|| {
        starts_memory();
        Ok(())
    })
}

/// How often each job has started: words that host and workers share through a descriptor.
fn starts_memory() -> Option<&'static [AtomicU32]> {
    static MEMORY: OnceLock<Option<&'static [AtomicU32]>> = OnceLock::new();
    *MEMORY.get_or_init(|| {
        let fd = std::env::var(STARTS_FD).ok()?.parse().expect("a number");
        let (prot, size) = (libc::PROT_READ | libc::PROT_WRITE, WORDS * size_of::<AtomicU32>());
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), size, prot, libc::MAP_SHARED, fd, 0) };
        assert_ne!(base, libc::MAP_FAILED, "descriptor {fd}: {}", std::io::Error::last_os_error());
        // SAFETY: zeroed, aligned to a page, as long as the file, never unmapped, and accessed as atomics only.
        Some(unsafe { std::slice::from_raw_parts(base.cast(), WORDS) })
    })
}

const WORDS: usize = 1 << 16;

fn act(request: &Request<'_>, reply: &mut Reply<'_>) -> Result<(), HandlerError> {
    let text = std::str::from_utf8(request.body())?;
    let mut parts = text.splitn(3, ' ');
    let tag: usize = parts.next().unwrap_or_default().parse()?;
    if let Some(words) = starts_memory() {
        words[tag].fetch_add(1, SeqCst);
    }
    let (command, argument) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match command {
        "ok" => {}
        "abort" => std::process::abort(),
        "sleep" => std::thread::sleep(Duration::from_micros(argument.parse()?)),
        "spin" => {
            nix::sys::signal::SigSet::all().thread_block()?;
            loop {
                std::hint::spin_loop();
            }
        }
        "leak" => drop(Command::new("setsid").args(["sleep", "1000"]).spawn()?),
        "environment" => {
            let names: Vec<_> = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
            let child = Command::new("env").output()?;
            reply.extend_from_slice(format!("{names:?} {}", String::from_utf8_lossy(&child.stdout)).as_bytes());
            return Ok(());
        }
        "nice" => {
            // SAFETY: getpriority(2) takes two words.
            let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
            reply.extend_from_slice(nice.to_string().as_bytes());
            return Ok(());
        }
        "large" => {
            reply.extend_by(argument.parse()?);
            return Ok(());
        }
        "flags" => {
            // SAFETY: F_GETFD reads a flag of a descriptor number, open or not.
            let flags = unsafe { libc::fcntl(argument.parse()?, libc::F_GETFD) };
            reply.extend_from_slice(flags.to_string().as_bytes());
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

// ---- a run of a pool

/// A pool, its jobs, and what became of them.
struct Run {
    pool: Pool,
    outcomes: BTreeMap<u64, Outcome<Vec<u8>>>,
    next: u64,
    starts: OwnedFd,
}

impl Run {
    fn new(workers: usize) -> Self {
        Self::with(|builder| builder.workers(workers))
    }

    fn with(settings: impl FnOnce(Builder) -> Builder) -> Self {
        let file = nix::sys::memfd::memfd_create(c"starts", nix::sys::memfd::MFdFlags::empty()).expect("a memory file");
        nix::unistd::ftruncate(&file, (WORDS * size_of::<AtomicU32>()) as i64).expect("room");
        set_variable(STARTS_FD, &file.as_raw_fd().to_string());
        let builder = settings(Pool::exec_builder()).keep_fd(file.as_fd());
        let pool = builder.spawn().unwrap_or_else(|error| panic!("no pool: {error}"));
        let mut run = Self { pool, outcomes: BTreeMap::new(), next: 0, starts: file };
        assert!(run.pool.wait_ready(Duration::from_secs(20)).expect("poll"), "workers are ready");
        run
    }

    fn submit(&mut self, command: &str) -> u64 {
        self.submit_within(command, None)
    }

    fn submit_within(&mut self, command: &str, timeout: Option<Duration>) -> u64 {
        let tag = self.next;
        self.next += 1;
        let body = format!("{tag} {command}");
        let mut job = Job::new("do", body.as_bytes()).tag(tag);
        if let Some(timeout) = timeout {
            job = job.timeout(timeout);
        }
        self.pool.submit(job).expect("room for a job");
        tag
    }

    fn submit_many(&mut self, count: usize, command: &str) {
        for _ in 0..count {
            self.submit(command);
        }
    }

    fn poll(&mut self) {
        let outcomes = &mut self.outcomes;
        let take = |c: seqpool::Completion<'_>, _: &mut seqpool::Submitter<'_>| {
            let old = outcomes.insert(c.tag, c.outcome.map(<[u8]>::to_vec));
            assert!(old.is_none(), "job {} has two outcomes: {old:?} was the first", c.tag);
        };
        self.pool.poll(Some(Duration::from_millis(2)), take).expect("poll");
    }

    /// Polls until `done`, for 30 s at most.
    #[track_caller]
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done(self) {
            let missing: Vec<u64> = (0..self.next).filter(|tag| !self.outcomes.contains_key(tag)).take(20).collect();
            assert!(Instant::now() < deadline, "not within 30 s: {what}; {:?}, {missing:?}", self.pool.stats());
            self.poll();
        }
    }

    /// Polls until every job has its outcome, and looks how often each has started.
    #[track_caller]
    fn finish(&mut self) {
        self.until("an outcome for each job", |run| run.pool.outstanding() == 0);
        assert_eq!(self.outcomes.len() as u64, self.next, "one outcome each; {:?}", self.pool.stats());
        let mut counts = vec![0; WORDS * size_of::<AtomicU32>()];
        let file = File::from(self.starts.try_clone().expect("dup"));
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut counts, 0).expect("the counts");
        for (tag, outcome) in &self.outcomes {
            let at = *tag as usize * 4;
            let started = u32::from_le_bytes(counts[at..at + 4].try_into().expect("four bytes"));
            assert!(started <= 1, "job {tag} was started {started} times; {outcome:?}");
            assert!(started == 1 || !outcome.is_done(), "job {tag} is done and was never started");
        }
    }

    fn reply(&mut self, command: &str) -> String {
        let tag = self.submit(command);
        self.finish();
        match &self.outcomes[&tag] {
            Outcome::Done(body) => String::from_utf8_lossy(body).into_owned(),
            other => panic!("{command}: {other:?}"),
        }
    }

    /// The jobs that are not done, with their outcomes.
    fn undone(&self) -> Vec<(u64, &Outcome<Vec<u8>>)> {
        self.outcomes.iter().filter(|(_, outcome)| !outcome.is_done()).map(|(tag, outcome)| (*tag, outcome)).collect()
    }

    fn nursery(&self) -> i32 {
        self.pool.processes().0.expect("a nursery")
    }

    fn workers(&self) -> Vec<i32> {
        self.pool.processes().1
    }

    /// Waits until there is another nursery than `old`, and a worker in every slot.
    #[track_caller]
    fn renewed(&mut self, old: i32) {
        self.until("another nursery", |run| run.pool.processes().0.is_some_and(|pid| pid != old));
        self.until("a full pool", |run| run.workers().len() == run.pool.workers());
        assert!(self.pool.wait_ready(Duration::from_secs(20)).expect("poll"), "workers are ready");
    }
}

fn set_variable(name: &str, value: &str) {
    // SAFETY: no other thread of this process reads the environment meanwhile: each case sets it before it starts any.
    unsafe { std::env::set_var(name, value) };
}

fn signal(pid: i32, signal: Signal) {
    assert!(pid > 1);
    kill(Pid::from_raw(pid), signal).expect("kill");
}

fn crashed(cause: CrashCause) -> Outcome<Vec<u8>> {
    Outcome::Crashed(Crash { cause, oom: None })
}

/// Starts this program as a host of its own.
fn host(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("current_exe"));
    command.args([HOST, name]).process_group(0).stdin(Stdio::null());
    command
}

// ---- promises

fn a_host_with_threads_has_a_pool() {
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let theirs = stop.clone();
    let thread = std::thread::spawn(move || wait_until(Duration::from_secs(60), || theirs.load(SeqCst)));
    let mut run = Run::new(3);
    run.submit_many(5000, "ok");
    let bad = run.submit("abort");
    run.submit_many(100, "ok");
    run.finish();
    assert_eq!(run.undone(), [(bad, &crashed(CrashCause::Signal(6)))]);
    let nursery = run.nursery();
    assert_eq!(support::threads(nursery), 1);
    assert_eq!(support::process_group(nursery), Some(nursery));
    let title = std::fs::read_to_string(format!("/proc/{nursery}/cmdline")).expect("a title");
    let own = std::env::args().next().expect("a name");
    assert_eq!(title.trim_end_matches('\0'), format!("{own}: seqpool nursery"), "whose it is can be seen");
    stop.store(true, SeqCst);
    assert!(thread.join().expect("a thread"));
}

fn handlers_do_not_see_the_mark() {
    set_variable("EXEC_TEST_SEEN", "yes");
    let environment = Run::new(1).reply("environment");
    assert!(environment.contains("EXEC_TEST_SEEN=yes"), "{environment}");
    assert!(!environment.contains(MARK), "{environment}");
}

fn settings_reach_the_workers() {
    let mut run = Run::with(|builder| builder.workers(1).nice(7).job_size_max(1000));
    assert_eq!(run.reply("nice"), "7");
    assert_eq!(run.reply("large 1000").len(), 1000);
    let large = run.submit("large 1001");
    run.finish();
    assert!(matches!(&run.outcomes[&large], Outcome::Failed { .. } | Outcome::Rejected { .. }), "{:?}", run.undone());
}

fn refused(builder: Builder) -> (ErrorKind, String) {
    match builder.spawn() {
        Ok(_) => panic!("a pool"),
        Err(error) => (error.kind().clone(), error.to_string()),
    }
}

fn host_without_init() {
    let (kind, text) = refused(Pool::exec_builder().workers(1));
    assert!(matches!(kind, ErrorKind::Config(_)), "{kind:?}");
    println!("{text}");
}

fn errors_say_what_to_do() {
    let output = support::run(&mut host("without_init"), "", Duration::from_secs(20));
    assert!(output.expect_code(0).text().contains("call seqpool::init first in main"), "{output}");
    let (_, text) = refused(Pool::exec_builder().handler("more", |_, _| Ok(())));
    assert!(text.contains("handler 'more'") && text.contains("seqpool::init"), "{text}");
    let (_, text) = refused(Pool::exec_builder().on_start(|| Ok(())));
    assert!(text.contains("on_start") && text.contains("seqpool::init"), "{text}");
    // SAFETY: never used but as a number, which is open nowhere.
    let closed = unsafe { std::os::fd::BorrowedFd::borrow_raw(900) };
    let (_, text) = refused(Pool::exec_builder().keep_fd(closed));
    assert!(text.contains("keep_fd of descriptor 900") && text.contains("Bad file descriptor"), "{text}");
    // A fork says that there is another way.
    let thread = std::thread::spawn(|| std::thread::sleep(Duration::from_millis(300)));
    let (kind, text) = refused(Pool::builder().handler("do", act));
    assert_eq!(kind, ErrorKind::OtherThreads { count: 2 });
    assert!(text.contains("Pool::exec_builder"), "{text}");
    thread.join().expect("a thread");
}

fn errors_of_an_executed_nursery_say_what_to_do() {
    for (does, expected) in [
        ("exit", "it ended with exit code 3 before it was ready; does seqpool::init stand first in main?"),
        ("die", "it ended by signal 9 before it was ready"),
        ("threads", "2 threads before it calls seqpool::init; let it stand first in main"),
        ("differ", "the handlers differ: executed again, this program has 1 and 1 set-up functions, or other names"),
    ] {
        set_variable(NURSERY_DOES, does);
        let (kind, text) = refused(Pool::exec_builder().workers(1));
        assert!(matches!(kind, ErrorKind::Nursery(_)), "{does}: {kind:?}");
        assert!(text.contains(expected), "{does}: {text}");
        assert!(support::children(std::process::id() as i32).is_empty(), "{does}: nobody is left");
    }
    // A process that is to be a nursery and goes on as a host would start others without end.
    set_variable(MARK, "1");
    let (_, text) = refused(Pool::exec_builder());
    assert!(text.contains("let seqpool::init stand first in main"), "{text}");
}

fn a_nursery_that_never_serves_is_ended() {
    set_variable(NURSERY_DOES, "hang");
    let start = Instant::now();
    let (_, text) = refused(Pool::exec_builder().workers(1));
    assert!(text.contains("not ready within 10 s"), "{text}");
    assert!(start.elapsed() >= NURSERY_START_TIMEOUT && start.elapsed() < NURSERY_START_TIMEOUT * 2);
}

fn a_nursery_started_by_hand_says_so() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let start = |stdin: Stdio| {
        let mut command = Command::new(std::env::current_exe().expect("current_exe"));
        let child = command.env(MARK, "1").stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        child.expect("a program")
    };
    let end = |child: std::process::Child| {
        let output = child.wait_with_output().expect("an end");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    let pair = |kind| socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).expect("a pair");
    let (code, text) = end(start(Stdio::null()));
    assert_eq!(code, Some(2));
    assert!(text.contains("started as a nursery (SEQPOOL_NURSERY is set), but standard input is no nursery's socket"));
    assert!(text.ends_with("unset SEQPOOL_NURSERY to run the program itself\n"), "{text}");
    let mut random = Random(21);
    for size in [1, 63, 64, 255, 256, 257, 4096] {
        let (mine, theirs) = pair(SockType::SeqPacket);
        let child = start(theirs.into());
        let bytes: Vec<u8> = (0..size).map(|_| random.next() as u8).collect();
        nix::sys::socket::send(mine.as_raw_fd(), &bytes, nix::sys::socket::MsgFlags::empty()).expect("send");
        let (code, text) = end(child);
        assert_eq!(code, Some(2), "{size}: {text}");
        // A packet that is larger than the first ever is, is no packet at all.
        assert!(text.contains("no opening of this version") || size > 256, "{size}: {text}");
    }
    // A host that dies first is nobody's mistake.
    let (mine, theirs) = pair(SockType::SeqPacket);
    let child = start(theirs.into());
    drop(mine);
    assert_eq!(end(child), (Some(73), String::new()));
}

/// A copy of this program that a case may delete or replace.
fn copied_program() -> std::path::PathBuf {
    let path = std::env::temp_dir().join("program");
    std::fs::copy(std::env::current_exe().expect("current_exe"), &path).expect("a copy");
    path
}

fn run_host_twice() {
    let mut run = Run::new(2);
    run.submit_many(100, "ok");
    run.finish();
    let nursery = run.nursery();
    signal(nursery, Signal::SIGKILL);
    run.submit_many(20, "ok");
    run.submit("abort");
    run.renewed(nursery);
    run.submit_many(100, "ok");
    run.finish();
    assert_eq!(run.undone().len(), 1);
    assert_eq!(run.pool.stats().nursery_respawns, 1);
    drop(run);
    println!("all is well");
}

fn host_deleted() {
    std::fs::remove_file(std::env::current_exe().expect("current_exe")).expect("deleted");
    run_host_twice();
}

fn host_replaced() {
    let path = std::env::current_exe().expect("current_exe");
    let other = path.with_extension("new");
    std::fs::copy("/bin/false", &other).expect("a copy");
    std::fs::rename(&other, &path).expect("replaced");
    run_host_twice();
    std::fs::remove_file(path).expect("deleted");
}

fn a_program_is_executed_that_is(name: &str) {
    let mut command = Command::new(copied_program());
    let output = support::run(command.args([HOST, name]), "", Duration::from_secs(40));
    assert_eq!(output.expect_code(0).text(), "all is well\n", "{output}");
}

fn a_deleted_program_is_still_executed() {
    a_program_is_executed_that_is("deleted");
}

fn a_replaced_program_is_still_executed() {
    a_program_is_executed_that_is("replaced");
}

fn two_pools_side_by_side() {
    let mut first = Run::new(1);
    let thread = std::thread::spawn(|| std::thread::sleep(Duration::from_millis(500)));
    let mut second = Pool::exec_builder().workers(1).keep_fd(first.starts.as_fd()).spawn().expect("a pool");
    let done: Vec<_> = second.map("do", ["50000 ok"; 3]).collect();
    assert!(done.iter().all(Outcome::is_done), "{done:?}");
    let nursery = first.nursery();
    signal(nursery, Signal::SIGKILL);
    first.renewed(nursery);
    first.submit_many(10, "ok");
    first.finish();
    assert_eq!(first.undone(), []);
    drop(first);
    assert!(second.map("do", ["50000 ok"]).all(|outcome| outcome.is_done()));
    drop(second);
    thread.join().expect("a thread");
}

// ---- rows of the fault table

fn host_spinning() {
    let thread = std::thread::spawn(|| hang());
    let mut run = Run::new(2);
    run.submit("leak");
    run.submit("spin");
    run.submit("spin");
    while !thread.is_finished() {
        run.poll();
    }
}

// `support::reaped` waits for it, as for all that is adopted.
#[allow(clippy::zombie_processes)]
fn row_18_host_killed_in_exec_mode() {
    // Whoever is orphaned comes to this process.
    nix::sys::prctl::set_child_subreaper(true).expect("prctl");
    let mut random = Random(18);
    let mut most = 0;
    for round in 0..30 {
        let child = host("spinning").spawn().expect("a host");
        // Sooner or later: before, while and after the nursery is executed.
        let moment = Duration::from_micros(if round < 24 { random.below(40_000) } else { 300_000 });
        std::thread::sleep(moment);
        most = most.max(support::descendants(child.id() as i32).len());
        signal(child.id() as i32, Signal::SIGKILL);
        let gone = wait_until(Duration::from_secs(1), support::reaped);
        let left = support::descendants(std::process::id() as i32);
        let left: Vec<String> = left.into_iter().map(support::describe).collect();
        assert!(gone, "1 s after a death at {moment:?}: {left:#?}");
    }
    assert!(most >= 4, "{most}: nothing had been leaked yet");
}

fn row_19_thread_that_spawned_the_pool_exits_in_exec_mode() {
    let mut run = std::thread::spawn(|| Run::new(2)).join().expect("a thread");
    assert!(wait_until(Duration::from_secs(5), || support::threads(std::process::id() as i32) == 1));
    std::thread::sleep(Duration::from_millis(100));
    let nursery = run.nursery();
    run.submit_many(1000, "ok");
    let bad = run.submit("abort");
    run.submit_many(100, "ok");
    run.finish();
    assert_eq!(run.undone(), [(bad, &crashed(CrashCause::Signal(6)))]);
    assert_eq!((run.nursery(), run.pool.stats().nursery_respawns), (nursery, 0));
    // Another one is started by another thread.
    let (mut run, next) = std::thread::spawn(move || {
        signal(nursery, Signal::SIGKILL);
        run.renewed(nursery);
        let next = run.nursery();
        (run, next)
    })
    .join()
    .expect("a thread");
    run.submit_many(1000, "ok");
    run.submit("abort");
    run.finish();
    assert_eq!((run.nursery(), run.undone().len()), (next, 2));
}

fn row_21_nursery_killed_in_exec_mode() {
    let mut run = Run::new(2);
    let (nursery, workers) = (run.nursery(), run.workers());
    run.submit_many(100, "sleep 5000");
    run.until("a result", |run| !run.outcomes.is_empty());
    signal(nursery, Signal::SIGKILL);
    run.finish();
    assert_eq!(run.undone(), [], "those who live go on");
    run.renewed(nursery);
    assert_eq!(run.workers(), workers, "and stay when there is another nursery");
    assert!(support::children(run.nursery()).is_empty());
    // One of them dies, and is replaced by a child of the new nursery.
    let bad = run.submit("abort");
    run.submit_many(100, "ok");
    run.finish();
    assert_eq!(run.undone(), [(bad, &crashed(CrashCause::Unknown))], "nobody saw how it ended");
    run.renewed(nursery);
    let children = support::children(run.nursery());
    assert_eq!(children.len(), 1);
    assert!(run.workers().contains(&children[0]));
    // The other one hangs: the host itself ends it.
    let timeout = Duration::from_millis(100);
    let spins = [run.submit_within("spin", Some(timeout)), run.submit_within("spin", Some(timeout))];
    run.submit_many(100, "ok");
    run.finish();
    let late = Outcome::TimedOut { after: timeout };
    assert_eq!(run.undone()[1..], [(spins[0], &late), (spins[1], &late)]);
    run.renewed(nursery);
    assert_eq!(support::children(run.nursery()).len(), 2);
    assert_eq!(run.pool.stats().nursery_respawns, 1);
}

fn row_21_nursery_killed_again_and_again() {
    let mut run = Run::new(3);
    let mut random = Random(210);
    let mut bad = Vec::new();
    for round in 0..60 {
        // The last death may have been noticed just now.
        run.until("a nursery", |run| run.pool.processes().0.is_some());
        let nursery = run.nursery();
        run.submit_many(20, "sleep 500");
        bad.push(run.submit("abort"));
        run.submit_many(20, "ok");
        let (moment, start) = (Duration::from_micros(random.below(8000)), Instant::now());
        run.until("a moment", |_| start.elapsed() >= moment);
        signal(nursery, Signal::SIGKILL);
        // Now and then the next one dies while it starts.
        if round % 4 == 3 {
            run.until("another", |run| run.pool.processes().0.is_some_and(|pid| pid != nursery));
            std::thread::sleep(Duration::from_micros(random.below(3000)));
            signal(run.nursery(), Signal::SIGKILL);
        }
        run.until("another", |run| run.pool.processes().0.is_some_and(|pid| pid != nursery));
        if round % 3 != 2 {
            continue;
        }
        // Only so many die in a row before the pool does without: this one proves itself, by workers of its own.
        run.finish();
        run.until("a nursery", |run| run.pool.processes().0.is_some());
        let workers = run.workers();
        workers.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
        run.submit_many(20, "ok");
        run.finish();
        run.until("other workers", |run| run.workers().iter().all(|pid| !workers.contains(pid)));
    }
    run.finish();
    for (tag, outcome) in run.undone() {
        let Outcome::Crashed(Crash { cause: CrashCause::Signal(6) | CrashCause::Unknown, .. }) = outcome else {
            panic!("job {tag}: {outcome:?}");
        };
        assert!(bad.contains(&tag), "job {tag}: {outcome:?}");
    }
    assert_eq!(run.undone().len(), bad.len());
    run.until("a nursery", |run| run.pool.processes().0.is_some());
    let nursery = run.nursery();
    signal(nursery, Signal::SIGKILL);
    run.renewed(nursery);
    println!("{:?}", run.pool.stats());
    assert!(run.pool.stats().nursery_respawns >= 61);
}

fn row_21_nursery_and_workers_killed_at_once() {
    let mut run = Run::new(3);
    for _ in 0..10 {
        let (nursery, workers) = (run.nursery(), run.workers());
        signal(nursery, Signal::SIGSTOP);
        workers.iter().chain([&nursery]).for_each(|pid| signal(*pid, Signal::SIGKILL));
        run.submit_many(50, "ok");
        run.finish();
        assert_eq!(run.undone(), [], "nothing was running, and all found other workers");
        run.renewed(nursery);
    }
}

fn row_21_nursery_stopped_in_exec_mode() {
    let mut run = Run::new(2);
    let nursery = run.nursery();
    signal(nursery, Signal::SIGSTOP);
    // Nobody needs it as long as nobody has to be started or killed.
    run.submit_many(100, "sleep 1000");
    run.finish();
    assert_eq!((run.undone(), run.nursery()), (vec![], nursery));
    let timeout = Duration::from_millis(100);
    let start = Instant::now();
    let spins = run.submit_within("spin", Some(timeout));
    run.submit_many(100, "ok");
    run.finish();
    assert_eq!(run.undone(), [(spins, &Outcome::TimedOut { after: timeout })]);
    let took = start.elapsed();
    assert!(took >= NURSERY_TIMEOUT && took < NURSERY_TIMEOUT + Duration::from_secs(2), "{took:?}");
    let is_dead = wait_until(Duration::from_secs(1), || !support::is_alive(nursery));
    assert!(is_dead, "it cannot wake up again");
    run.renewed(nursery);
    assert_eq!((run.pool.stats().nursery_respawns, run.pool.stats().abandoned), (1, 0));
    // One that is stopped while it starts.
    let nursery = run.nursery();
    signal(nursery, Signal::SIGKILL);
    run.until("another", |run| run.pool.processes().0.is_some_and(|pid| pid != nursery));
    signal(run.nursery(), Signal::SIGSTOP);
    run.submit_many(100, "ok");
    run.finish();
    let nursery = run.nursery();
    let workers = run.workers();
    workers.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
    run.submit_many(100, "ok");
    run.finish();
    assert_eq!(run.undone().len(), 1);
    run.renewed(nursery);
}

fn row_21_no_other_nursery_can_be_started() {
    let mut run = Run::new(2);
    let nursery = run.nursery();
    set_variable(NURSERY_DOES, "exit");
    run.submit_many(100, "sleep 1000");
    signal(nursery, Signal::SIGKILL);
    run.finish();
    assert_eq!(run.undone(), [], "those who live go on");
    let bad = [run.submit("abort"), run.submit("abort")];
    run.submit_many(3, "ok");
    run.finish();
    // Neither for ever nor at once.
    let stats = run.pool.stats();
    assert_eq!(stats.nursery_respawns, u64::from(NURSERY_STARTS_MAX), "{stats:?}");
    let undone = run.undone();
    let crashes = undone.iter().filter(|(tag, outcome)| bad.contains(tag) && **outcome == crashed(CrashCause::Unknown));
    assert_eq!(crashes.count(), 2, "{undone:?}");
    let last = run.submit("ok");
    run.finish();
    let Outcome::Rejected { reason: Reason::NoWorkers(why) } = &run.outcomes[&last] else {
        panic!("{:?}", run.outcomes[&last]);
    };
    assert!(why.contains("nursery"), "{why}");
}

fn row_21_nursery_killed_under_a_failing_kernel() {
    let fault = Fault {
        send_would_block: 10,
        send_no_memory: 10,
        recv_would_block: 5,
        recv_reset: 10,
        spurious_event: 5,
        stale_event: 5,
        lost_events: 10,
        interrupted_wait: 5,
        no_descriptor: 20,
        ..Fault::default()
    };
    let first: u64 = std::env::var("SEQPOOL_SEED").map_or(0, |seed| seed.parse().expect("a number"));
    let mut injected = 0;
    for seed in first..first + 8 {
        println!("SEQPOOL_SEED={seed}");
        let sys = Faulty::new(seed, fault);
        let mut random = Random(seed);
        // A pool that finds no descriptor at its start says so, and leaves nothing.
        let started = (0..100).find_map(|_| Pool::exec_builder().workers(2).spawn_with(sys.clone()).ok());
        let mut pool = started.expect("a pool in the end");
        let start = Instant::now();
        for round in 0..3 {
            let (mut outcomes, mut next) = (0, 0);
            let nursery = pool.processes().0;
            let (aborts_at, kill_at) = (random.below(300), random.below(300));
            while next < 300 || pool.outstanding() > 0 {
                assert!(start.elapsed() < Duration::from_secs(60), "seed {seed}: {:?}", pool.stats());
                if next < 300 {
                    let body = if next == aborts_at { "0 abort" } else { "0 sleep 50" };
                    pool.submit(Job::new("do", body.as_bytes()).tag(next)).expect("room for a job");
                    next += 1;
                }
                if next == kill_at
                    && let Some(nursery) = nursery
                {
                    signal(nursery, Signal::SIGKILL);
                }
                pool.poll(Some(Duration::from_micros(100)), |c, _| {
                    let right = match &c.outcome {
                        Outcome::Done(_) => c.tag != aborts_at,
                        Outcome::Crashed(_) => c.tag == aborts_at,
                        _ => false,
                    };
                    assert!(right, "seed {seed}, round {round}, job {}: {:?}", c.tag, c.outcome);
                    outcomes += 1;
                })
                .expect("poll");
            }
            assert_eq!(outcomes, 300);
            while pool.processes().0.is_none_or(|pid| Some(pid) == nursery) && kill_at > 0 {
                assert!(start.elapsed() < Duration::from_secs(60), "seed {seed}: {:?}", pool.stats());
                pool.poll(Some(Duration::from_millis(1)), |_, _| {}).expect("poll");
            }
            assert!(pool.wait_ready(Duration::from_secs(20)).expect("poll"), "seed {seed}: {:?}", pool.stats());
        }
        injected += sys.injected();
    }
    assert!(injected > 200, "{injected}");
}

fn row_22_busy_threads_in_exec_mode() {
    static STOP: AtomicBool = AtomicBool::new(false);
    static LOCK: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());
    let file = File::open("/dev/zero").expect("a file");
    set_variable("EXEC_TEST_SEEN", "yes");
    let work = || {
        while !STOP.load(SeqCst) {
            for size in [1, 100, 10_000, 1_000_000] {
                drop(std::hint::black_box(vec![1u8; size]));
            }
            *LOCK.lock().expect("not poisoned") = vec![2; 1000];
            eprint!("");
            std::hint::black_box(std::env::var_os("EXEC_TEST_SEEN"));
        }
    };
    // The variable in which starts are counted is set while nobody reads the environment.
    let mut run = Run::new(2);
    let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(work)).collect();
    let mut bad = 0;
    for round in 0..40 {
        run.submit_many(20, "ok");
        if round % 2 == 0 {
            run.submit("abort");
            bad += 1;
        }
        if round % 10 == 9 {
            let nursery = run.nursery();
            signal(nursery, Signal::SIGKILL);
            run.renewed(nursery);
        }
        // And pools that are spawned and dropped meanwhile.
        if round % 10 == 5 {
            let mut other = Pool::exec_builder().workers(2).keep_fd(run.starts.as_fd()).spawn().expect("a pool");
            assert!(other.map("do", ["60000 ok"; 20]).all(|outcome| outcome.is_done()));
        }
    }
    run.finish();
    assert_eq!(run.undone().len(), bad);
    assert_eq!(run.pool.stats().nursery_respawns, 4);
    STOP.store(true, SeqCst);
    threads.into_iter().for_each(|thread| thread.join().expect("a thread"));
    drop(file);
}

/// A descriptor under this number.
fn open_as(path: &str, number: i32, flags: i32) -> OwnedFd {
    let file = File::open(path).expect("a file");
    // SAFETY: dup3(2) takes three words; the number is free.
    let fd = unsafe { libc::dup3(file.as_raw_fd(), number, flags) };
    assert_eq!(fd, number);
    // SAFETY: just opened, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn row_24_descriptors_in_exec_mode() {
    // What a host has open, with and without close-on-exec.
    let secret = File::open("/proc/self/status").expect("a file");
    let stray = open_as("/proc/self/status", 50, 0);
    // Every number that the nursery's own descriptors would have, one that is far away, and more than one packet holds.
    let kept: Vec<OwnedFd> =
        (20..40).map(|n| open_as("/dev/zero", n, if n % 2 == 0 { libc::O_CLOEXEC } else { 0 })).collect();
    let low: Vec<OwnedFd> =
        std::iter::repeat_with(|| OwnedFd::from(File::open("/dev/full").expect("a file"))).take(6).collect();
    let far = open_as("/dev/full", 700, 0);
    let all: Vec<&OwnedFd> = kept.iter().chain(&low).chain([&far]).collect();
    let mut run = Run::with(|builder| all.iter().fold(builder.workers(2), |builder, fd| builder.keep_fd(fd.as_fd())));
    for (fd, flags) in [(20, "1"), (21, "0"), (38, "1"), (39, "0"), (700, "0"), (low[0].as_raw_fd(), "1")] {
        assert_eq!(run.reply(&format!("flags {fd}")), flags, "descriptor {fd}");
    }
    let nursery = run.nursery();
    for again in [false, true] {
        if again {
            signal(nursery, Signal::SIGKILL);
            run.renewed(nursery);
            run.workers().iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
            run.until("others", |run| support::children(run.nursery()).len() == 2);
            run.renewed(nursery);
        }
        let stderr = std::fs::read_link("/proc/self/fd/2").expect("a standard error").to_string_lossy().into_owned();
        for (pid, own) in run.workers().into_iter().map(|pid| (pid, 2)).chain([(run.nursery(), 3)]) {
            // The nursery lets go of what it has given to a worker a moment after that worker's first word.
            let count = 3 + all.len() + 1 + own;
            wait_until(Duration::from_secs(1), || support::open_fds(pid).len() == count);
            let mut fds = support::open_fds(pid);
            assert_eq!(fds.remove(&0).as_deref(), Some("/dev/null"));
            assert_eq!((fds.remove(&1).as_ref(), fds.remove(&2).as_ref()), (Some(&stderr), Some(&stderr)));
            for fd in &kept {
                assert_eq!(fds.remove(&fd.as_raw_fd()).as_deref(), Some("/dev/zero"));
            }
            for fd in low.iter().chain([&far]) {
                assert_eq!(fds.remove(&fd.as_raw_fd()).as_deref(), Some("/dev/full"));
            }
            let starts = fds.remove(&run.starts.as_raw_fd());
            assert!(starts.is_some_and(|target| target.starts_with("/memfd:starts")));
            // A worker's socket and lifeline; the nursery's socket, the host's pidfd and a signalfd.
            assert_eq!(fds.len(), own, "{fds:?}");
        }
    }
    drop((secret, stray));
}
