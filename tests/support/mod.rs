//! A small test harness for tests that fork, and the tools such tests share.
//!
//! Rust's own harness runs tests in threads, and a pool refuses to start beside another thread. A test binary with
//! `harness = false` calls [`main`] with its cases instead:
//!
//! ```ignore
//! mod support;
//!
//! fn answers() {
//!     let output = support::run_cli(&["run", "-j2", "upper"], b"a\n");
//!     assert_eq!(output.expect_code(0).stdout, b"A\n");
//! }
//!
//! fn main() {
//!     support::main(&support::cases![answers, slow => 120]);
//! }
//! ```
//!
//! Each case runs in a process of its own, which has one thread, a process group of its own, an empty `TMPDIR` and a
//! time limit. A case passes when its function returns and nothing is left behind:
//! - inside its process: no thread, no child (running or zombie), the same open descriptors as before;
//! - outside: no descendant, whatever it did to hide (the harness is the subreaper of all of them), after a grace of
//!   one second; no file in `TMPDIR`.
//!
//! What a case prints is shown only when it fails. The harness itself is tested in `tests/harness.rs`.
#![allow(dead_code, unused_imports, unused_macros)]

mod process;
mod program;
mod shared;

pub use process::*;
pub use program::*;
pub use shared::*;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus};
use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio, exit};
use std::time::{Duration, Instant};

/// How long what a case started may outlive it.
const GRACE: Duration = Duration::from_secs(1);
/// How long the harness tries to kill what is left.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How much of a failed case's output is shown. Units: bytes, the last ones.
const OUTPUT_SHOWN_MAX: usize = 256 * 1024;

/// Exit code of a case's process whose function returned. Not 0, so that a stray `exit(0)` does not pass for it.
const PASSED: i32 = 42;
/// Exit code of a case's process that left something behind.
const UNCLEAN: i32 = 43;
/// Exit code of a harness that found a failure, or was called wrongly, as with Rust's own.
const FAILED: i32 = 101;

/// One test.
#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub run: fn(),
    pub limit: Duration,
}

impl Case {
    /// A case with a limit of 60 s. `run` may be a closure that captures nothing, for cases that share a function.
    pub const fn new(name: &'static str, run: fn()) -> Self {
        Self { name, run, limit: Duration::from_secs(60) }
    }

    /// The same with another limit. Units: seconds.
    pub const fn limit_s(self, seconds: u64) -> Self {
        Self { limit: Duration::from_secs(seconds), ..self }
    }
}

/// An array of cases from function names; `name => SECONDS` sets a time limit.
macro_rules! cases {
    ($($name:ident $(=> $limit_s:expr)?),* $(,)?) => {
        [$($crate::support::Case::new(stringify!($name), $name)$(.limit_s($limit_s))?),*]
    };
}
pub(crate) use cases;

/// As [`cases`], each function on every transport: `name_blocking`, `name_seqpacket`.
macro_rules! cases_on_each_transport {
    ($($name:ident $(=> $limit_s:expr)?),* $(,)?) => {{
        use seqpool::TransportKind;
        assert_eq!(TransportKind::ALL.len(), 2, "a new transport joins `cases_on_each_transport`");
        [$(
            $crate::support::Case::new(concat!(stringify!($name), "_blocking"), || $name(TransportKind::Blocking))
                $(.limit_s($limit_s))?,
            $crate::support::Case::new(concat!(stringify!($name), "_seqpacket"), || $name(TransportKind::Seqpacket))
                $(.limit_s($limit_s))?,
        )*]
    }};
}
pub(crate) use cases_on_each_transport;

/// Runs the cases that the command line selects, prints what Rust's harness would, and exits.
pub fn main(cases: &[Case]) -> ! {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name] = arguments.as_slice()
        && flag == "--case"
    {
        let case = cases.iter().find(|case| case.name == name);
        run_here(case.expect("the harness passes a name of this table"));
    }
    let options = Options::parse(&arguments).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        exit(FAILED);
    });
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len(), "two cases have the same name");
    let selected: Vec<&Case> = cases.iter().filter(|case| options.selects(case.name)).collect();
    if options.list {
        selected.iter().for_each(|case| println!("{}: test", case.name));
        if !options.terse {
            println!("\n{} tests, 0 benchmarks", selected.len());
        }
        exit(0);
    }
    if let Some(shards) = shards().filter(|&shards| selected.len() >= 2 * shards) {
        exit(if run_in_shards(shards, &arguments) { 0 } else { FAILED });
    }
    let selected: Vec<&Case> = selected.into_iter().enumerate().filter(|(i, _)| is_mine(*i)).map(|(_, c)| c).collect();
    exit(if run_all(&selected, cases.len() - selected.len(), &options) { 0 } else { FAILED });
}

/// In how many processes the cases are run at a time: most of them wait most of the time. Each is the subreaper of its own.
const SHARDS: &str = "SEQPOOL_TEST_SHARDS";
/// Which of them this is, such as `0/2`.
const SHARD: &str = "SEQPOOL_TEST_SHARD";

fn shards() -> Option<usize> {
    let shards = std::env::var(SHARDS).ok()?.parse().expect("SEQPOOL_TEST_SHARDS is a number");
    (shards > 1).then_some(shards)
}

/// Whether the case at this place of the selection is this process's.
fn is_mine(index: usize) -> bool {
    let Ok(shard) = std::env::var(SHARD) else { return true };
    let (number, of) = shard.split_once('/').expect("SEQPOOL_TEST_SHARD is such as 0/2");
    let [number, of] = [number, of].map(|n| n.parse::<usize>().expect("a number"));
    index % of == number
}

/// Runs the selection in so many processes at once; what each prints is shown when it has ended.
fn run_in_shards(shards: usize, arguments: &[String]) -> bool {
    let start = |shard: usize| {
        Command::new(std::env::current_exe().expect("this program"))
            .args(arguments)
            .env_remove(SHARDS)
            .env(SHARD, format!("{shard}/{shards}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("a shard")
    };
    let children: Vec<_> = (0..shards).map(start).collect();
    // Each has a reader of its own: a shard whose pipe is full would wait for the one before it.
    let readers: Vec<_> = children
        .into_iter()
        .map(|child| std::thread::spawn(move || child.wait_with_output().expect("its output")))
        .collect();
    let mut all_passed = true;
    for reader in readers {
        let output = reader.join().expect("a reader does not panic");
        std::io::stdout().write_all(&output.stdout).expect("standard output");
        all_passed &= output.status.success();
    }
    all_passed
}

#[derive(Default)]
struct Options {
    list: bool,
    terse: bool,
    exact: bool,
    nocapture: bool,
    ignored: bool,
    filters: Vec<String>,
    skip: Vec<String>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let (flag, mut inline) = match argument.split_once('=') {
                Some((flag, value)) if flag.starts_with("--") => (flag, Some(value.to_string())),
                _ => (argument.as_str(), None),
            };
            let mut value = || {
                inline.take().or_else(|| rest.next().cloned()).ok_or_else(|| format!("option `{flag}` wants a value"))
            };
            match flag {
                "--list" => options.list = true,
                "--exact" => options.exact = true,
                "--nocapture" | "--no-capture" => options.nocapture = true,
                // No case is ever ignored.
                "--ignored" => options.ignored = true,
                "--include-ignored" | "--show-output" | "-q" | "--quiet" => {}
                // Cases run one after the other: they share the cores with the workers that they start.
                "--test-threads" | "--color" => drop(value()?),
                "--format" => options.terse = value()? == "terse",
                "--skip" => options.skip.push(value()?),
                _ if flag.starts_with('-') => return Err(format!("unknown option `{flag}`")),
                _ => options.filters.push(argument.clone()),
            }
            if inline.is_some() {
                return Err(format!("option `{flag}` takes no value"));
            }
        }
        Ok(options)
    }

    fn selects(&self, name: &str) -> bool {
        let matches = |filter: &String| if self.exact { name == filter } else { name.contains(filter.as_str()) };
        let wanted = self.filters.is_empty() || self.filters.iter().any(matches);
        wanted && !self.skip.iter().any(matches) && !self.ignored
    }
}

// ---- in the harness process ----

struct Failure {
    reasons: Vec<String>,
    output: Vec<u8>,
}

fn run_all(cases: &[&Case], filtered_out: usize, options: &Options) -> bool {
    nix::sys::prctl::set_child_subreaper(true).expect("PR_SET_CHILD_SUBREAPER");
    awaited_signals().thread_block().expect("sigprocmask");
    let start = Instant::now();
    println!("\nrunning {} test{}", cases.len(), if cases.len() == 1 { "" } else { "s" });
    let mut failures = Vec::new();
    for case in cases {
        print!("test {} ... ", case.name);
        std::io::stdout().flush().expect("standard output");
        match run_apart(case, options.nocapture) {
            Ok(()) => println!("ok"),
            Err(failure) => {
                println!("FAILED");
                failures.push((case.name, failure));
            }
        }
    }
    if !failures.is_empty() {
        println!("\nfailures:\n");
        for (name, failure) in &failures {
            println!("---- {name} ----");
            print!("{}", String::from_utf8_lossy(&failure.output));
            failure.reasons.iter().for_each(|reason| println!("{name}: {reason}"));
            println!();
        }
        println!("\nfailures:");
        failures.iter().for_each(|(name, _)| println!("    {name}"));
    }
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; {filtered_out} filtered out; finished in {:.2}s\n",
        if failures.is_empty() { "ok" } else { "FAILED" },
        cases.len() - failures.len(),
        failures.len(),
        start.elapsed().as_secs_f64(),
    );
    failures.is_empty()
}

/// Runs one case in a process of its own.
fn run_apart(case: &Case, nocapture: bool) -> Result<(), Failure> {
    let folder = tempfile::Builder::new().prefix("seqpool-").tempdir().expect("a temporary folder");
    let mut output = tempfile::tempfile().expect("a temporary file");
    let mut command = Command::new(std::env::current_exe().expect("current_exe"));
    command
        .args(["--case", case.name])
        .env("TMPDIR", folder.path())
        .env_remove(SHARD)
        .stdin(Stdio::null())
        .process_group(0);
    if !nocapture {
        // A file, not a pipe: nothing blocks when it is full, nor when an orphan keeps it open.
        command.stdout(output.try_clone().expect("dup"));
        command.stderr(output.try_clone().expect("dup"));
    }
    let pid = command.spawn().expect("a process for the case").id() as i32;

    let mut reasons = Vec::new();
    let deadline = Instant::now() + case.limit;
    let mut status = None;
    while status.is_none() && Instant::now() < deadline {
        // What the case orphaned is reaped at once, so that a case sees it go.
        status = reap_ended(pid);
        if status.is_none()
            && let Some(signal) = next_signal(deadline)
        {
            kill_all();
            drop(folder);
            die_by(signal);
        }
    }
    match status {
        Some(WaitStatus::Exited(_, PASSED)) => {}
        Some(WaitStatus::Exited(_, UNCLEAN)) => reasons.push("was not clean at its end (see above)".into()),
        Some(WaitStatus::Exited(_, 101)) => reasons.push("panicked".into()),
        Some(WaitStatus::Exited(_, code)) => reasons.push(format!("its process exited early, with code {code}")),
        Some(WaitStatus::Signaled(_, signal, _)) => reasons.push(format!("its process died by {signal}")),
        Some(other) => reasons.push(format!("its process ended as {other:?}")),
        None => {
            reasons.push(format!("ran longer than its limit of {} s and was killed", case.limit.as_secs()));
            reasons.extend(descendants(me()).into_iter().map(|pid| format!("was running: {}", describe(pid))));
        }
    }
    if status.is_some() {
        let grace = Instant::now() + GRACE;
        while !children(me()).is_empty() && Instant::now() < grace {
            reap_ended(pid);
            std::thread::sleep(Duration::from_millis(1));
        }
        reasons.extend(descendants(me()).into_iter().map(|pid| format!("left a process behind: {}", describe(pid))));
    }
    if !kill_all() {
        reasons.push(format!("what it left could not be killed within {} s", KILL_LIMIT.as_secs()));
    }
    reasons.extend(files_in(folder.path()).into_iter().map(|file| format!("left a file behind: $TMPDIR/{file}")));
    if let Err(error) = folder.close() {
        reasons.push(format!("its temporary folder cannot be removed: {error}"));
    }
    if reasons.is_empty() {
        return Ok(());
    }
    let mut bytes = Vec::new();
    output.seek(SeekFrom::Start(0)).expect("seek");
    output.read_to_end(&mut bytes).expect("read");
    bytes.drain(..bytes.len().saturating_sub(OUTPUT_SHOWN_MAX));
    Err(Failure { reasons, output: bytes })
}

fn me() -> i32 {
    std::process::id() as i32
}

/// Reaps every ended child, adopted ones too; the status of `pid` if it is among them.
fn reap_ended(pid: i32) -> Option<WaitStatus> {
    let mut found = None;
    while let Ok(status) = nix::sys::wait::waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        match status.pid() {
            None => break, // Children, but none has ended.
            Some(ended) if ended.as_raw() == pid => found = Some(status),
            Some(_) => {}
        }
    }
    found
}

/// Kills all descendants. Only children are signalled: a child keeps its id until it is reaped here, and the children
/// of a killed one come to this process, their subreaper. Returns whether none is left.
fn kill_all() -> bool {
    let deadline = Instant::now() + KILL_LIMIT;
    loop {
        let children = children(me());
        if children.is_empty() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        for child in children {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), Signal::SIGKILL);
        }
        reap_ended(0);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn awaited_signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

/// Sleeps until a child ends, the deadline passes (both: `None`), or the harness itself is told to stop.
fn next_signal(deadline: Instant) -> Option<Signal> {
    let set = awaited_signals();
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout =
        libc::timespec { tv_sec: left.as_secs() as libc::time_t, tv_nsec: left.subsec_nanos() as libc::c_long };
    // SAFETY: sigtimedwait(2) reads the set and the timespec, both alive here; a null siginfo pointer is allowed.
    let signal = unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), &timeout) };
    Signal::try_from(signal).ok().filter(|signal| *signal != Signal::SIGCHLD)
}

fn die_by(signal: Signal) -> ! {
    let _ = nix::sys::signal::raise(signal);
    let _ = awaited_signals().thread_unblock();
    exit(128 + signal as i32);
}

fn files_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return vec!["(the folder itself is gone)".into()];
    };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

// ---- in a case's process ----

fn run_here(case: &Case) -> ! {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // A harness that is killed takes the case with it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("PR_SET_PDEATHSIG");
    nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).expect("sigprocmask");
    // Crashes are provoked here; none needs a core file. The hard limit stays, for tests that look at limits.
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE).expect("getrlimit");
    setrlimit(Resource::RLIMIT_CORE, 0, hard).expect("setrlimit");

    let pid = me();
    let fds_before = open_fds(pid);
    (case.run)();
    if me() != pid {
        // Seen from outside as a file left behind, even if this process is cleaned up by those who forked it.
        eprintln!("process {} was forked by the case and returned from it", me());
        let _ = std::fs::write(std::env::temp_dir().join(format!("process-{}-escaped", me())), "");
        exit(UNCLEAN);
    }
    let mut found = Vec::new();
    // A joined thread is listed for a moment longer.
    if !wait_until(GRACE, || threads(pid) == 1) {
        found.push(format!("left {} threads running", threads(pid) - 1));
    }
    for child in children(pid) {
        found.push(format!("left a child unreaped: {}", describe(child)));
    }
    let fds_after = open_fds(pid);
    for (fd, target) in fds_after.iter().filter(|(fd, target)| fds_before.get(fd) != Some(target)) {
        found.push(format!("leaked descriptor {fd} -> {target}"));
    }
    for (fd, target) in fds_before.iter().filter(|(fd, target)| fds_after.get(fd) != Some(target)) {
        found.push(format!("closed descriptor {fd} -> {target}, which it had not opened"));
    }
    found.iter().for_each(|what| eprintln!("{}: {what}", case.name));
    exit(if found.is_empty() { PASSED } else { UNCLEAN });
}
