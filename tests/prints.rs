//! What handlers print: captured per job, bounded, attached to failures, shown, or passed through.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seqpool::frame::{self, FLAG_PRINTED, FLAG_TIMED, Header, Kind, Status};
use seqpool::limits::{PRINT_FILE_SIZE_MAX, PRINTED_SIZE_MAX};
use seqpool::sys::{Blow, Faulty, Role, Strike, Sys};
use seqpool::{Builder, Completion, CrashCause, HandlerError, Job, Outcome, Pool, Prints, Submitter, TransportKind};
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::Random;

mod support;

/// How long anything may take that takes no time on a machine with nothing else to do.
const PATIENCE: Duration = Duration::from_secs(40);
const CAPTURE: Prints = Prints::Capture { size_max: 8 << 10 };
const BOTH: Prints = Prints::Both { size_max: 8 << 10 };

fn main() {
    support::main(&support::cases_on_each_transport![
        whatever_prints_is_attached_to_whatever_fails => 120,
        half_a_line_is_attached_where_the_worker_lives,
        output_is_never_attached_to_another_job => 180,
        the_tail_is_the_last_bytes,
        a_gibibyte_takes_bounded_memory => 180,
        many_jobs_that_print_take_bounded_memory,
        both_shows_everything_once,
        capture_shows_nothing_and_set_up_is_never_captured,
        passing_through_is_as_it_was,
        a_closed_standard_error_costs_nobody,
        a_standard_error_that_nobody_reads_does_not_stop_the_host,
        a_scribbled_offset_is_not_believed => 120,
        forged_output_costs_its_worker,
        a_cut_file_is_read_from_its_beginning,
        recycled_workers_begin_anew,
        what_a_job_leaves_behind_prints_in_bounds => 120,
        the_last_attempt_counts,
        descriptors_are_not_leaked,
        output_survives_the_nursery,
        a_failing_kernel_costs_output_at_most => 240,
        sizes_out_of_range_are_refused,
    ]);
}

// ---- the handler

fn words() -> &'static [AtomicU32] {
    static MEMORY: OnceLock<&'static [AtomicU32]> = OnceLock::new();
    MEMORY.get_or_init(|| support::shared_words(16))
}

const WAYS: [&str; 8] = ["println", "eprintln", "puts", "child", "child-stderr", "write1", "write2", "background"];

unsafe extern "C" {
    /// C's standard output, `stdin(3)`.
    static stdout: *mut libc::FILE;
}

fn c_prints(text: &str) {
    let text = std::ffi::CString::new(text).expect("no zero in it");
    // SAFETY: `stdout` is set before main; the string ends with a zero.
    assert!(unsafe { libc::fputs(text.as_ptr(), stdout) } >= 0);
}

fn write(fd: i32, bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        // SAFETY: the bytes are live for the call.
        let n = unsafe { libc::write(fd, rest.as_ptr().cast(), rest.len()) };
        rest = &rest[usize::try_from(n).expect("written")..];
    }
}

fn print(how: &str, text: &str) -> Result<(), HandlerError> {
    match how {
        "nothing" => {}
        "println" => println!("{text}"),
        "eprintln" => eprintln!("{text}"),
        "print" => print!("{text}"),
        "printf" => c_prints(text),
        "puts" => c_prints(&format!("{text}\n")),
        "child" => drop(Command::new("echo").arg(text).status()?),
        "child-stderr" => drop(Command::new("sh").args(["-c", "echo \"$0\" >&2", text]).status()?),
        "background" => drop(Command::new("sh").args(["-c", "(echo \"$0\") & wait", text]).status()?),
        "write1" => write(1, format!("{text}\n").as_bytes()),
        "write2" => write(2, format!("{text}\n").as_bytes()),
        "reopen" => drop(Command::new("sh").args(["-c", "echo \"$0\" > /dev/stderr", text]).status()?),
        // TEXT is a size.
        "bytes" => write(2, &vec![b'x'; text.parse()?]),
        "flood" => {
            let piece = vec![b'x'; 1 << 20];
            (0..text.parse::<usize>()?).for_each(|_| write(1, &piece));
            write(1, b"the end");
        }
        "forge" => forge(text)?,
        "attempt" => println!("attempt {}", words()[0].fetch_add(1, SeqCst)),
        "leave-noise" => drop(Command::new("sh").args(["-c", "while :; do echo noise; done"]).spawn()?),
        "leave-flood" => drop(Command::new("cat").arg("/dev/zero").spawn()?),
        other => return Err(format!("no way to print {other}").into()),
    }
    Ok(())
}

/// Sends a result for the job in hand that no honest worker sends.
fn forge(how: &str) -> Result<(), HandlerError> {
    let number = |n: u64| n.to_le_bytes();
    let text = [b'x'; 1001];
    let (status, flags, body) = match how {
        "of a job that is done" => (Status::Done, FLAG_PRINTED, [&number(0)[..], &number(1), b"xreply"].concat()),
        "more than is there" => (Status::Failed, FLAG_PRINTED, [&number(0)[..], &number(5), b"xxxx"].concat()),
        "absurdly much" => (Status::Failed, FLAG_PRINTED, [&number(0)[..], &number(u64::MAX), b"xxxx"].concat()),
        "more than is kept" => (Status::Failed, FLAG_PRINTED, [&number(0)[..], &number(1001), &text].concat()),
        "half a number" => (Status::Panicked, FLAG_PRINTED, number(0)[..7].to_vec()),
        "no body" => (Status::Panicked, FLAG_PRINTED, Vec::new()),
        "no times" => (Status::Panicked, FLAG_PRINTED | FLAG_TIMED, number(0).repeat(3)),
        other => return Err(format!("no forgery {other}").into()),
    };
    // SAFETY: the claim word is the first of the slot's mapping, aligned, and an atomic in every process.
    let next = unsafe { &*slot_base().cast::<AtomicU64>() }.load(SeqCst);
    let id = next & !0xffff_ffff | u64::from((next as u32).wrapping_sub(1));
    let mut packet = vec![0; frame::frame_size(body.len())];
    let (kind, code) = (Kind::Result, status as u32);
    let header = Header { payload_size: 0, header_block_size: 0, kind, flags, id, code, extra: 1 };
    frame::encode(&mut packet, header, &[], &body);
    // Of its two sockets the one that raises no signal; the other is its lifeline.
    let fds = support::open_fds(std::process::id() as i32);
    for fd in fds.iter().filter(|(_, target)| target.contains("socket:")).map(|(fd, _)| *fd) {
        // SAFETY: F_GETFL takes no argument.
        if unsafe { libc::fcntl(fd, libc::F_GETFL) } & libc::O_ASYNC == 0 {
            // SAFETY: the packet is live for the call.
            let n = unsafe { libc::send(fd, packet.as_ptr().cast(), packet.len(), libc::MSG_NOSIGNAL) };
            assert_eq!(n, packet.len() as isize);
        }
    }
    Ok(())
}

fn end(how: &str) -> Result<(), HandlerError> {
    match how {
        "done" => Ok(()),
        "error" => Err("as told".into()),
        "panic" => panic!("as told"),
        "kill" => {
            kill(Pid::this(), Signal::SIGKILL)?;
            unreachable!()
        }
        "abort" => std::process::abort(),
        "exit" => std::process::exit(3),
        "hang" => {
            std::thread::sleep(Duration::from_secs(1000));
            Ok(())
        }
        other => {
            // SAFETY: the page is mapped shared by host and worker; the word is aligned, and an atomic in both.
            let began = unsafe { &*slot_base().wrapping_add(192).cast::<AtomicU64>() };
            began.store(other.parse()?, SeqCst);
            kill(Pid::this(), Signal::SIGKILL)?;
            unreachable!()
        }
    }
}

/// Where this worker's slot is mapped.
fn slot_base() -> *mut u8 {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let line = maps.lines().find(|line| line.contains("memfd:seqpool-slot")).expect("a worker maps its slot");
    let base = line.split('-').next().and_then(|start| usize::from_str_radix(start, 16).ok()).expect("an address");
    std::ptr::with_exposed_provenance_mut(base)
}

/// A pool whose jobs are `HOW|TEXT|END`.
fn builder(workers: usize, transport: TransportKind, prints: Prints) -> Builder {
    words().iter().for_each(|word| word.store(0, SeqCst));
    Pool::builder().workers(workers).transport(transport).prints(prints).handler("do", |request, reply| {
        let text = std::str::from_utf8(request.body())?;
        let parts: Vec<&str> = text.split('|').collect();
        let [how, text, ending] = parts[..] else { return Err("not HOW|TEXT|END".into()) };
        print(how, text)?;
        reply.extend_from_slice(text.as_bytes());
        end(ending)
    })
}

// ---- running it

#[derive(Debug)]
struct Ended {
    outcome: Outcome<Vec<u8>>,
    printed: Option<Vec<u8>>,
    cut: u64,
}

impl Ended {
    fn text(&self) -> Option<String> {
        self.printed.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }
}

type All = BTreeMap<u64, Ended>;

fn poll<S: Sys>(pool: &mut Pool<S>, all: &mut All, timeout: Duration) {
    let take = |c: Completion<'_>, _: &mut Submitter<'_, S>| {
        let (printed, cut) = (c.printed().map(<[u8]>::to_vec), c.printed_cut());
        let old = all.insert(c.tag, Ended { outcome: c.outcome.map(<[u8]>::to_vec), printed, cut });
        assert!(old.is_none(), "job {} has two outcomes", c.tag);
    };
    pool.poll(Some(timeout), take).expect("poll");
}

#[track_caller]
fn finish<S: Sys>(pool: &mut Pool<S>, all: &mut All) {
    let deadline = Instant::now() + PATIENCE;
    while pool.outstanding() > 0 {
        assert!(Instant::now() < deadline, "no outcome within {PATIENCE:?}: {:?}", pool.stats());
        poll(pool, all, Duration::from_millis(100));
    }
}

/// Runs these jobs, one at a time or all at once.
#[track_caller]
fn run<S: Sys>(pool: &mut Pool<S>, jobs: &[&str]) -> Vec<Ended> {
    let mut all = All::new();
    for (number, job) in jobs.iter().enumerate() {
        pool.submit(Job::new("do", job.as_bytes()).tag(number as u64)).expect("room");
    }
    finish(pool, &mut all);
    assert_eq!(all.len(), jobs.len());
    all.into_values().collect()
}

#[track_caller]
fn run_one<S: Sys>(pool: &mut Pool<S>, job: &str) -> Ended {
    run(pool, &[job]).pop().expect("one")
}

/// Whether an outcome is what an ending deserves.
fn is_right(ending: &str, outcome: &Outcome<Vec<u8>>) -> bool {
    match (ending, outcome) {
        ("done", Outcome::Done(_)) | ("hang", Outcome::TimedOut { .. }) => true,
        ("error", Outcome::Failed { message, panicked: false }) => message == "as told",
        ("panic", Outcome::Failed { message, panicked: true }) => message == "as told",
        ("kill", Outcome::Crashed(crash)) => crash.cause == CrashCause::Signal(9),
        ("abort", Outcome::Crashed(crash)) => crash.cause == CrashCause::Signal(6),
        ("exit", Outcome::Crashed(crash)) => crash.cause == CrashCause::Code(3),
        _ => false,
    }
}

/// The files that this process has of what its workers print: memory in bytes.
fn print_files() -> Vec<u64> {
    let fds = support::open_fds(std::process::id() as i32);
    let files = fds.iter().filter(|(_, target)| target.contains("memfd:seqpool-prints"));
    files.filter_map(|(fd, _)| Some(std::fs::metadata(format!("/proc/self/fd/{fd}")).ok()?.blocks() * 512)).collect()
}

/// Standard error goes elsewhere while this lives.
struct Redirected(OwnedFd);

impl Redirected {
    fn to(fd: impl AsFd) -> Self {
        let old = std::io::stderr().as_fd().try_clone_to_owned().expect("dup");
        Self::set(fd.as_fd().as_raw_fd());
        Self(old)
    }

    fn set(fd: i32) {
        // SAFETY: dup2(2) takes two words; number 2 stays open.
        assert_eq!(unsafe { libc::dup2(fd, 2) }, 2);
    }
}

impl Drop for Redirected {
    fn drop(&mut self) {
        Self::set(self.0.as_raw_fd());
    }
}

/// What comes to standard error while `f` runs.
fn with_stderr<T>(f: impl FnOnce() -> T) -> (T, String) {
    let mut file = tempfile::tempfile().expect("a file");
    // Whoever inherits it appends.
    let fd = file.as_raw_fd();
    // SAFETY: F_SETFL takes a flag word.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_APPEND) }, 0);
    let redirected = Redirected::to(&file);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
    drop(redirected);
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).expect("seek");
    file.read_to_string(&mut text).expect("text");
    match result {
        Ok(result) => (result, text),
        Err(panic) => {
            eprintln!("on standard error: {text}");
            std::panic::resume_unwind(panic)
        }
    }
}

// ---- the cases

fn whatever_prints_is_attached_to_whatever_fails(transport: TransportKind) {
    let mut pool = builder(2, transport, CAPTURE).timeout(Duration::from_secs(1)).spawn().expect("a pool");
    let mut jobs = Vec::new();
    for how in WAYS {
        for ending in ["done", "error", "panic", "kill", "abort", "exit"] {
            jobs.push((how, ending));
        }
    }
    jobs.extend([("println", "hang"), ("puts", "hang"), ("child", "hang"), ("nothing", "error"), ("nothing", "kill")]);
    let bodies: Vec<String> =
        jobs.iter().enumerate().map(|(n, (how, ending))| format!("{how}|job {n} by {how}|{ending}")).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    for (n, ended) in run(&mut pool, &bodies).into_iter().enumerate() {
        let (how, ending) = jobs[n];
        assert!(is_right(ending, &ended.outcome), "{}: {:?}", bodies[n], ended.outcome);
        let expected = (ending != "done" && how != "nothing").then(|| format!("job {n} by {how}\n"));
        assert_eq!((ended.text(), ended.cut), (expected, 0), "{}", bodies[n]);
    }
    assert_eq!(pool.stats().hostile, 0);
}

fn half_a_line_is_attached_where_the_worker_lives(transport: TransportKind) {
    let mut pool = builder(1, transport, CAPTURE).spawn().expect("a pool");
    for how in ["print", "printf"] {
        // A worker that is killed takes with it what its own libraries hold back, which is half a line at most.
        for ending in ["error", "panic", "exit"] {
            let ended = run_one(&mut pool, &format!("{how}|half|{ending}"));
            assert!(is_right(ending, &ended.outcome), "{ended:?}");
            assert_eq!(ended.text().as_deref(), Some("half"), "{how} {ending}");
        }
    }
}

fn output_is_never_attached_to_another_job(transport: TransportKind) {
    const JOBS: usize = 6000;
    let mut random = Random::from_environment();
    for (workers, prints) in [(1, CAPTURE), (3, CAPTURE), (3, Prints::Capture { size_max: PRINTED_SIZE_MAX })] {
        let mut pool = builder(workers, transport, prints).timeout(Duration::from_secs(2)).spawn().expect("a pool");
        let (mut all, mut jobs) = (All::new(), Vec::new());
        for n in 0..JOBS {
            let how = ["nothing", "nothing", "println", "eprintln", "puts", "printf", "print", "write1"]
                [random.below_usize(8)];
            let ending = match random.below(200) {
                0 => "kill",
                1 => "abort",
                2 => "exit",
                3..40 => "error",
                40..50 => "panic",
                _ => "done",
            };
            // What is cut short by a death is half a line.
            let how = if matches!(ending, "kill" | "abort") && how.starts_with("print") { "println" } else { how };
            let text = format!("job {n}");
            // Some of several pages, some larger than a packet.
            let long = if random.below(50) == 0 { random.below_usize(6000) } else { 0 };
            let text = text + &" ".repeat(long);
            let body = format!("{how}|{text}|{ending}");
            pool.submit(Job::new("do", body.as_bytes()).tag(n as u64)).expect("room");
            jobs.push((how, text, ending));
            if random.below(100) == 0 {
                poll(&mut pool, &mut all, Duration::from_micros(random.below(500)));
            }
        }
        finish(&mut pool, &mut all);
        assert_eq!(all.len(), JOBS);
        let mut attached = 0;
        for (n, ended) in &all {
            let (how, text, ending) = &jobs[*n as usize];
            assert!(is_right(ending, &ended.outcome), "job {n}, {ending}: {:?}", ended.outcome);
            let line = if matches!(*how, "print" | "printf") { text.clone() } else { format!("{text}\n") };
            let expected = (*ending != "done" && *how != "nothing").then_some(line);
            attached += usize::from(expected.is_some());
            assert_eq!(ended.text(), expected, "job {n}, {how}, {ending}");
        }
        println!("{workers} workers: {attached} of {JOBS} with output, {:?}", pool.stats());
        assert!(attached > JOBS / 10 && pool.stats().crashed > 20);
    }
}

fn the_tail_is_the_last_bytes(transport: TransportKind) {
    for size_max in [1, 100, 5000, PRINTED_SIZE_MAX] {
        let mut pool = builder(1, transport, Prints::Capture { size_max }).spawn().expect("a pool");
        let text: String = (0..30_000).map(|n| format!("{n} ")).collect();
        let whole = format!("{text}\n");
        for ending in ["error", "kill", "exit", "panic"] {
            let ended = run_one(&mut pool, &format!("write2|{text}|{ending}"));
            assert!(is_right(ending, &ended.outcome), "{:?}", ended.outcome);
            let kept = ended.text().expect("output");
            assert_eq!(kept, whole[whole.len() - size_max..], "{ending}");
            assert_eq!(ended.cut, (whole.len() - size_max) as u64);
        }
        // Exactly as much as is kept, and one more.
        for (size, cut) in [(size_max, 0), (size_max + 1, 1)] {
            let ended = run_one(&mut pool, &format!("bytes|{size}|error"));
            assert_eq!((ended.printed, ended.cut), (Some(vec![b'x'; size_max]), cut));
        }
        // More than a ring of failures.
        for ended in run(&mut pool, &["bytes|70000|error"; 100]) {
            assert_eq!((ended.printed, ended.cut), (Some(vec![b'x'; size_max]), (70_000 - size_max) as u64));
        }
        assert_eq!(pool.stats().hostile, 0);
    }
}

fn a_gibibyte_takes_bounded_memory(transport: TransportKind) {
    let mut pool = builder(2, transport, CAPTURE).spawn().expect("a pool");
    assert!(pool.wait_ready(PATIENCE).expect("poll"));
    for ending in ["error", "kill"] {
        let own = std::process::id() as i32;
        let own_before = support::vm_hwm(own).expect("ours");
        let (mut all, start, mut most) = (All::new(), Instant::now(), 0);
        pool.submit(Job::new("do", format!("flood|1024|{ending}").as_bytes())).expect("room");
        while pool.outstanding() > 0 {
            assert!(start.elapsed() < PATIENCE, "{:?}", pool.stats());
            poll(&mut pool, &mut all, Duration::from_millis(2));
            most = most.max(print_files().iter().sum());
        }
        let elapsed = start.elapsed();
        let grown = support::vm_hwm(own).expect("ours") - own_before;
        println!("1 GiB, then {ending}: {elapsed:?}, {} MiB at most, the host grew by {grown} B", most >> 20);
        let ended = all.remove(&0).expect("an outcome");
        assert!(is_right(ending, &ended.outcome), "{:?}", ended.outcome);
        let printed = ended.printed.expect("output");
        assert!(printed.ends_with(b"xxthe end"), "the last bytes");
        assert_eq!(ended.cut + printed.len() as u64, (1 << 30) + 7);
        assert!(most < 300 << 20, "{most} bytes of memory for what is printed");
        assert!(grown < 8 << 20, "the host grew by {grown} bytes");
        assert!(elapsed < PATIENCE / 2, "{elapsed:?}");
    }
    // What is left after that is little, too.
    assert!(run_one(&mut pool, "nothing||done").outcome.is_done());
    let left: u64 = print_files().iter().sum();
    assert!(left < 2 * (PRINT_FILE_SIZE_MAX as u64 + (1 << 20)), "{left}");
}

fn many_jobs_that_print_take_bounded_memory(transport: TransportKind) {
    let mut pool = builder(2, transport, CAPTURE).spawn().expect("a pool");
    let mut most = 0;
    for _ in 0..20 {
        let jobs = ["bytes|1048576|done"; 20];
        assert!(run(&mut pool, &jobs).iter().all(|ended| ended.outcome.is_done() && ended.printed.is_none()));
        most = print_files().into_iter().max().unwrap_or(0).max(most);
    }
    println!("400 MiB in 400 jobs: {most} bytes at most");
    assert!(most <= PRINT_FILE_SIZE_MAX as u64 + (4 << 20), "{most}");
    assert_eq!(run_one(&mut pool, "println|small|error").text().as_deref(), Some("small\n"));
}

fn both_shows_everything_once(transport: TransportKind) {
    let endings = ["done", "error", "panic", "kill", "abort", "exit", "hang"];
    let ((), shown) = with_stderr(|| {
        let builder = builder(2, transport, BOTH).timeout(Duration::from_millis(300)).on_start(|| {
            println!("set-up");
            Ok(())
        });
        let mut pool = builder.spawn().expect("a pool");
        let bodies: Vec<String> = (0..70)
            .map(|n| format!("{}|line {n} of output|{}", WAYS[n % WAYS.len()], endings[n % endings.len()]))
            .collect();
        let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
        for (n, ended) in run(&mut pool, &bodies).into_iter().enumerate() {
            let ending = endings[n % endings.len()];
            assert!(is_right(ending, &ended.outcome), "{}: {:?}", bodies[n], ended.outcome);
            let expected = (ending != "done").then(|| format!("line {n} of output\n"));
            assert_eq!(ended.text(), expected, "{}", bodies[n]);
        }
        let ended = run_one(&mut pool, "bytes|10000|error");
        assert_eq!((ended.printed, ended.cut), (Some(vec![b'x'; 8192]), 10_000 - 8192));
        // Still running when the pool is dropped.
        pool.submit(Job::new("do", b"println|cut short|hang")).expect("room");
        poll(&mut pool, &mut All::new(), Duration::from_millis(100));
    });
    for n in 0..70 {
        assert_eq!(shown.matches(&format!("line {n} of output\n")).count(), 1, "{n} in {shown}");
    }
    assert_eq!(shown.matches("cut short\n").count(), 1, "{shown}");
    assert!(shown.matches("set-up\n").count() >= 2, "{shown}");
    assert_eq!(shown.matches("seqpool: 1808 bytes of output left out\n").count(), 1, "{shown}");
    assert_eq!(shown.matches('x').count(), 8192 + "exit".matches('x').count() * shown.matches("exit").count());
}

fn capture_shows_nothing_and_set_up_is_never_captured(transport: TransportKind) {
    let ((), shown) = with_stderr(|| {
        let builder = builder(1, transport, CAPTURE).on_start(|| {
            println!("set-up");
            c_prints("set-up in C");
            Ok(())
        });
        let mut pool = builder.spawn().expect("a pool");
        for (how, ending) in [("println", "done"), ("puts", "done"), ("child", "error"), ("println", "panic")] {
            let ended = run_one(&mut pool, &format!("{how}|quiet|{ending}"));
            assert_eq!(ended.text().as_deref(), (ending != "done").then_some("quiet\n"));
        }
    });
    let mut lines: Vec<&str> = shown.split_inclusive('\n').collect();
    lines.sort_unstable();
    assert_eq!(lines, ["set-up\n", "set-up in C"]);
}

fn passing_through_is_as_it_was(transport: TransportKind) {
    let ((), shown) = with_stderr(|| {
        let mut pool = builder(2, transport, Prints::PassThrough).spawn().expect("a pool");
        for (n, how) in WAYS.into_iter().enumerate() {
            for ending in ["done", "error", "exit"] {
                let ended = run_one(&mut pool, &format!("{how}|line {n} {ending}|{ending}"));
                assert!(is_right(ending, &ended.outcome) && ended.printed.is_none() && ended.cut == 0, "{ended:?}");
            }
        }
        assert!(print_files().is_empty());
    });
    for n in 0..WAYS.len() {
        for ending in ["done", "error", "exit"] {
            assert_eq!(shown.matches(&format!("line {n} {ending}\n")).count(), 1, "{n} {ending}: {shown}");
        }
    }
}

fn a_closed_standard_error_costs_nobody(transport: TransportKind) {
    let (reader, writer) = nix::unistd::pipe().expect("a pipe");
    let redirected = Redirected::to(&writer);
    drop(writer);
    let mut pool = builder(2, transport, BOTH).spawn().expect("a pool");
    assert!(pool.wait_ready(PATIENCE).expect("poll"));
    drop(reader);
    let ended = run(&mut pool, &["println|a|error", "println|b|kill", "println|c|done", "println|d|exit"]);
    drop(pool);
    drop(redirected);
    for (ended, (ending, text)) in
        ended.iter().zip([("error", Some("a\n")), ("kill", Some("b\n")), ("done", None), ("exit", Some("d\n"))])
    {
        assert!(is_right(ending, &ended.outcome), "{ended:?}");
        assert_eq!(ended.text().as_deref(), text);
    }
}

fn a_standard_error_that_nobody_reads_does_not_stop_the_host(transport: TransportKind) {
    let (reader, writer) = nix::unistd::pipe().expect("a pipe");
    let redirected = Redirected::to(&writer);
    // SAFETY: F_GETPIPE_SZ takes no argument.
    let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_GETPIPE_SZ) } as usize;
    let full = vec![b'.'; size];
    write(writer.as_raw_fd(), &full);
    let mut pool = builder(1, transport, BOTH).timeout(Duration::from_millis(200)).spawn().expect("a pool");
    // Its worker has nothing to show; the host would have.
    let ended = run_one(&mut pool, "println|unread|kill");
    assert!(is_right("kill", &ended.outcome), "{ended:?}");
    assert_eq!(ended.text().as_deref(), Some("unread\n"));
    // A worker that waits for its reader is bound by its job's timeout.
    let ended = run_one(&mut pool, "println|unread as well|done");
    assert!(is_right("hang", &ended.outcome), "{ended:?}");
    assert_eq!(ended.text().as_deref(), Some("unread as well\n"));
    drop(pool);
    drop((redirected, writer, reader));
}

fn a_scribbled_offset_is_not_believed(transport: TransportKind) {
    let mut pool = builder(1, transport, Prints::Capture { size_max: 1000 }).spawn().expect("a pool");
    let mut random = Random::from_environment();
    let mut offsets = vec![0, 1, 7, 4096, u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) - 1, 1 << 32];
    offsets.extend((0..20).map(|_| random.next()));
    for offset in offsets {
        let ended = run(&mut pool, &["println|before|error", &format!("bytes|500|{offset}")]);
        assert_eq!(ended[0].text().as_deref(), Some("before\n"));
        assert!(is_right("kill", &ended[1].outcome), "{:?}", ended[1].outcome);
        let printed = ended[1].printed.clone().unwrap_or_default();
        assert!(
            printed.len() <= 1000 && printed.iter().all(|b| b"before after\nx".contains(b)),
            "{offset}: {printed:?}"
        );
        // Another worker's output is its own.
        assert_eq!(run_one(&mut pool, "println|after|error").text().as_deref(), Some("after\n"));
    }
}

fn forged_output_costs_its_worker(transport: TransportKind) {
    let forgeries = [
        "of a job that is done",
        "more than is there",
        "absurdly much",
        "more than is kept",
        "half a number",
        "no body",
        "no times",
    ];
    for prints in [Prints::Capture { size_max: 1000 }, Prints::PassThrough] {
        let mut pool = builder(1, transport, prints).timeout(Duration::from_secs(20)).spawn().expect("a pool");
        for (n, how) in forgeries.into_iter().enumerate() {
            let ended = run_one(&mut pool, &format!("forge|{how}|hang"));
            assert!(is_right("kill", &ended.outcome), "{how}: {:?}", ended.outcome);
            assert_eq!(pool.stats().hostile, n as u64 + 1, "{how}");
            assert!(run_one(&mut pool, "nothing||done").outcome.is_done());
        }
    }
}

/// `/dev/stderr` that is opened anew, as by a redirection in a shell, is cut.
fn a_cut_file_is_read_from_its_beginning(transport: TransportKind) {
    let mut pool = builder(1, transport, CAPTURE).spawn().expect("a pool");
    for ending in ["error", "kill", "error"] {
        assert!(run_one(&mut pool, &format!("println|{}|done", "long ".repeat(100))).outcome.is_done());
        assert_eq!(run_one(&mut pool, &format!("reopen|anew|{ending}")).text().as_deref(), Some("anew\n"), "{ending}");
        assert_eq!(run_one(&mut pool, "println|later|error").text().as_deref(), Some("later\n"));
    }
}

fn recycled_workers_begin_anew(transport: TransportKind) {
    for jobs_per_worker in [1, 3] {
        let mut pool = builder(2, transport, CAPTURE).max_jobs_per_worker(jobs_per_worker).spawn().expect("a pool");
        let bodies: Vec<String> =
            (0..200).map(|n| format!("println|job {n}|{}", ["error", "done", "done", "kill"][n % 4])).collect();
        let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
        for (n, ended) in run(&mut pool, &bodies).iter().enumerate() {
            let expected = (n % 4 % 3 == 0).then(|| format!("job {n}\n"));
            assert_eq!(ended.text(), expected);
        }
        assert!(pool.wait_ready(PATIENCE).expect("poll"));
        assert!(pool.stats().recycled > 10 && pool.stats().hostile == 0, "{:?}", pool.stats());
        assert_eq!(print_files().len(), 2);
    }
}

fn what_a_job_leaves_behind_prints_in_bounds(transport: TransportKind) {
    for how in ["leave-noise", "leave-flood"] {
        let mut pool = builder(1, transport, CAPTURE).spawn().expect("a pool");
        assert!(run_one(&mut pool, &format!("{how}||done")).outcome.is_done());
        // With jobs, and with none.
        let (mut most, start) = (0, Instant::now());
        while start.elapsed() < Duration::from_secs(2) {
            if start.elapsed() < Duration::from_secs(1) {
                let ended = run_one(&mut pool, "println|my own|error");
                assert!(ended.printed.expect("output").len() <= 8 << 10);
            } else {
                poll(&mut pool, &mut All::new(), Duration::from_millis(5));
            }
            most = print_files().into_iter().max().unwrap_or(0).max(most);
        }
        println!("{how}: {} MiB at most", most >> 20);
        // What `cat` writes in a tenth of a second.
        assert!(most < 1 << 30, "{most}");
        // It goes with its worker, and the next worker's output is its own.
        assert!(is_right("kill", &run_one(&mut pool, "nothing||kill").outcome));
        for n in 0..20 {
            assert_eq!(run_one(&mut pool, &format!("println|{n}|error")).text(), Some(format!("{n}\n")));
        }
    }
}

fn the_last_attempt_counts(transport: TransportKind) {
    let mut pool = builder(1, transport, CAPTURE).retries(2).spawn().expect("a pool");
    for (n, ending) in ["error", "kill"].into_iter().enumerate() {
        let ended = run_one(&mut pool, &format!("attempt||{ending}"));
        assert!(is_right(ending, &ended.outcome), "{ended:?}");
        assert_eq!(ended.text(), Some(format!("attempt {}\n", n * 3 + 2)));
    }
}

fn descriptors_are_not_leaked(transport: TransportKind) {
    let own = std::process::id() as i32;
    let mut pool = builder(3, transport, BOTH).spawn().expect("a pool");
    let ready = |pool: &mut Pool| {
        assert!(pool.wait_ready(PATIENCE).expect("poll"));
        let (nursery, workers) = pool.processes();
        let count = |pid| support::open_fds(pid).len();
        (count(own), count(nursery.expect("a nursery")), workers.into_iter().map(count).max())
    };
    let before = ready(&mut pool);
    for _ in 0..30 {
        let jobs = ["println|a|kill", "println|b|exit", "println|c|abort", "println|d|done"];
        assert_eq!(run(&mut pool, &jobs).len(), 4);
    }
    assert_eq!(ready(&mut pool), before);
    assert_eq!(print_files().len(), 3);
    let workers = pool.processes().1;
    for worker in workers {
        let fds = support::open_fds(worker);
        let prints = fds.iter().filter(|(_, target)| target.contains("seqpool-prints")).map(|(fd, _)| *fd);
        assert_eq!(prints.collect::<Vec<_>>()[..2], [1, 2], "{fds:?}");
        // Three streams, and: socket, lifeline, its own copy of the file, standard error.
        assert_eq!(fds.len(), 7, "{fds:?}");
    }
}

fn output_survives_the_nursery(transport: TransportKind) {
    let mut pool = builder(2, transport, CAPTURE).spawn().expect("a pool");
    assert!(pool.wait_ready(PATIENCE).expect("poll"));
    kill(Pid::from_raw(pool.processes().0.expect("a nursery")), Signal::SIGKILL).expect("kill");
    let ended = run_one(&mut pool, "println|alive|error");
    assert_eq!(ended.text().as_deref(), Some("alive\n"));
    let ended = run_one(&mut pool, "println|last words|kill");
    assert!(matches!(&ended.outcome, Outcome::Crashed(crash) if crash.cause == CrashCause::Unknown), "{ended:?}");
    assert_eq!(ended.text().as_deref(), Some("last words\n"));
}

fn a_failing_kernel_costs_output_at_most(transport: TransportKind) {
    let jobs = [
        "println|a|error",
        "println|b|kill",
        "bytes|6000000|done",
        "println|c|panic",
        "flood|12|error",
        "println|d|exit",
        "println|e|done",
    ];
    let run_struck = |strike| {
        let sys = Faulty::striking(strike);
        let mut pool = builder(1, transport, BOTH).timeout(Duration::from_secs(5)).spawn_with(sys.clone());
        let ended = pool.as_mut().map(|pool| run(pool, &jobs)).map_err(|error| error.to_string());
        drop(pool);
        (sys, ended)
    };
    let ((), _) = with_stderr(|| {
        let (sys, ended) = run_struck(None);
        let whole = ended.expect("a pool");
        let calls: Vec<_> = sys.calls();
        let made = |role, call| calls.iter().find(|c| (c.0, c.1) == (role, call)).map_or(0, |c| c.2);
        assert!(made(Role::Host, "fstat") > 0 && made(Role::Worker, "lseek") > 0, "{calls:?}");
        assert!(made(Role::Worker, "pread64") > 0 && made(Role::Worker, "fallocate") > 0, "{calls:?}");
        let (mut runs, mut struck, mut missing) = (0, 0, 0);
        for (role, call) in [
            (Role::Host, "memfd_create"),
            (Role::Host, "fcntl"),
            (Role::Host, "fstat"),
            (Role::Host, "pread64"),
            (Role::Host, "write"),
            (Role::Nursery, "fork"),
            (Role::Worker, "dup2"),
            (Role::Worker, "fcntl(F_DUPFD_CLOEXEC)"),
            (Role::Worker, "openat"),
            (Role::Worker, "lseek"),
            (Role::Worker, "pread64"),
            (Role::Worker, "fallocate"),
            (Role::Worker, "write"),
        ] {
            for errno in [libc::EINTR, libc::ENOMEM] {
                for nth in 1..=made(role, call).min(6) {
                    let (sys, ended) = run_struck(Some(Strike { role, call, nth, blow: Blow::Errno(errno) }));
                    runs += 1;
                    struck += sys.injected();
                    let ended = match ended {
                        Ok(ended) => ended,
                        Err(error) => {
                            assert!(role == Role::Host && errno != libc::EINTR && error.contains(call), "{error}");
                            continue;
                        }
                    };
                    for (n, ended) in ended.iter().enumerate() {
                        let ending = jobs[n].rsplit('|').next().expect("an ending");
                        assert!(is_right(ending, &ended.outcome), "{call} {nth}, {}: {ended:?}", jobs[n]);
                        // Never somebody else's; at worst none, after a failure that is none of EINTR.
                        let is_whole = ended.text() == whole[n].text();
                        missing += usize::from(!is_whole);
                        assert!(is_whole || errno != libc::EINTR, "{role:?} {call} {nth}, {}: {ended:?}", jobs[n]);
                        let whole = whole[n].text().unwrap_or_default();
                        assert!(whole.ends_with(&ended.text().unwrap_or_default()), "{call} {nth}: {ended:?}");
                    }
                }
            }
        }
        println!("{runs} runs, {struck} struck, {missing} outputs missing");
        assert!(struck as usize * 4 >= runs * 3, "only {struck} of {runs} were struck");
    });
}

fn sizes_out_of_range_are_refused(transport: TransportKind) {
    for size_max in [0, PRINTED_SIZE_MAX + 1, usize::MAX] {
        for prints in [Prints::Capture { size_max }, Prints::Both { size_max }] {
            let error = builder(1, transport, prints).spawn().err().expect("refused").to_string();
            assert!(error.contains(&format!("prints of {size_max} bytes: from 1 to 65536")), "{error}");
        }
    }
}
