//! Row 34 of the fault table, on the real kernel: the command is run again and again, and each time `strace` has another
//! of its system calls fail: with `EINTR`, or with what the call's manual page allows when something is short.
//!
//! strace counts the calls of each process by itself, so one run hits the nth call of the host, of the nursery and of
//! each worker. It is attached while the host waits for its input file, a FIFO, to be opened: the dynamic loader and the
//! runtime's own start, which are not ours, are over, and nothing of the pool has begun.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use support::wait_until;

mod support;

fn main() {
    support::main(&support::cases![every_call_of_every_process_may_fail => 300]);
}

/// More than one worker has its turn in each slot.
const JOBS: usize = 12;
const ARGS: [&str; 6] = ["run", "-j2", "-k", "--max-jobs-per-worker", "5", "upper"];
/// Runs at a time: they mostly wait for strace.
const RUNS_AT_A_TIME: usize = 3;
/// No run takes nearly as long.
const RUN_LIMIT: Duration = Duration::from_secs(20);
/// What one interruption may cost.
const DELAY_MAX: Duration = Duration::from_millis(100);
/// What two runs under strace, on a machine that does other things as well, may differ by.
const NOISE: Duration = Duration::from_millis(400);
/// Such a machine may hold up a run, but not this often at the same place.
const TRIES: usize = 4;
/// How long whom the host leaves behind may take to go.
const GRACE: Duration = Duration::from_secs(1);

/// These cannot fail, by their manual pages, and what they return is used as it is.
const NEVER_FAIL: [&str; 3] = ["getpid", "gettid", "set_robust_list"];
/// These do not return.
const NO_RETURN: [&str; 3] = ["exit_group", "rt_sigreturn", "execve"];
/// All signals in turn: these places alone, of 62.
const SIGNAL_CALL: (&str, [usize; 4]) = ("rt_sigaction", [1, 2, 31, 62]);
/// What the transports do differently; all else is swept under one of them.
const CARRYING: [&str; 9] =
    ["epoll_ctl", "epoll_pwait2", "epoll_wait", "ppoll", "recvmsg", "sendmsg", "sendto", "setsockopt", "shutdown"];
/// Fork's and wait's own calls, always traced: who is who, and when the pool is up.
const MARKS: &str = "?clone,?clone3,?fork,?vfork,?epoll_wait,?epoll_pwait,?epoll_pwait2";

/// What else these may fail with, by `send(2)`, `recv(2)`, `fork(2)`, `madvise(2)`. A blocking send or receive, such as a
/// worker's, may find no memory either, but gives `EAGAIN` only under a timeout.
const SHORTAGES: [(&str, &[&str]); 6] = [
    ("sendto", &["EAGAIN", "ENOBUFS", "ENOMEM"]),
    ("sendmsg", &["EAGAIN", "ENOBUFS", "ENOMEM"]),
    ("recvmsg", &["EAGAIN", "ENOMEM"]),
    ("read", &["EAGAIN"]),
    ("clone", &["EAGAIN", "ENOMEM"]),
    ("madvise", &["EAGAIN"]),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Host,
    Nursery,
    Worker,
}

/// One system call that strace saw begin.
#[derive(Debug)]
struct Seen {
    role: Role,
    pid: i32,
    name: String,
    injected: bool,
    /// Made by the host before it first waited for workers.
    starting: bool,
}

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    seen: Vec<Seen>,
    elapsed: Duration,
    left_behind: Vec<String>,
}

fn input() -> String {
    (1..=JOBS).map(|i| format!("line {i}\n")).collect()
}

/// Waits until the host waits for somebody to open its input file.
fn waits_for_input(host: i32) -> bool {
    let mut before = false;
    wait_until(Duration::from_secs(10), || {
        let call = std::fs::read_to_string(format!("/proc/{host}/syscall")).unwrap_or_default();
        let waits = support::proc_state(host) == Some('S') && call.starts_with(&format!("{} ", libc::SYS_openat));
        std::mem::replace(&mut before, waits) && waits
    })
}

/// One run under strace.
fn run(dir: &Path, transport: &str, trace: &str, inject: Option<&str>) -> Ran {
    let at = |name: &str| dir.join(name);
    let _ = std::fs::remove_file(at("input"));
    nix::unistd::mkfifo(&at("input"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let file = |name: &str| File::create(at(name)).expect("a file");
    let mut command = support::cli(&ARGS);
    command.args(["--transport", transport, "-a"]).arg(at("input"));
    let mut host =
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr")).spawn().expect("the command");
    let pid = host.id() as i32;
    assert!(waits_for_input(pid), "{}", support::describe(pid));
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o"]).arg(at("log")).args(["-p", &pid.to_string(), "-e", &format!("trace={trace}")]);
    if let Some(inject) = inject {
        command.args(["-e", &format!("inject={inject}")]);
    }
    // It may complain of stops that it has not seen; what it has done stands in its log.
    let mut strace =
        command.stdin(Stdio::null()).stderr(file("complaints")).spawn().expect("strace: .ci/run installs it");
    let tracer = format!("TracerPid:\t{}\n", strace.id());
    let traced = || std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|s| s.contains(&tracer));
    assert!(wait_until(Duration::from_secs(10), traced), "strace has attached");

    let start = Instant::now();
    let code = feed_and_wait(&mut host, &at("input"));
    let elapsed = start.elapsed();
    let log = std::fs::read_to_string(at("log")).expect("the log");
    let mut pids = BTreeSet::from([pid]);
    pids.extend(log.lines().filter_map(|line| line.split(' ').next()?.parse::<i32>().ok()));
    let mut left_behind = Vec::new();
    if !wait_until(GRACE, || pids.iter().all(|&pid| !support::is_alive(pid))) {
        left_behind = pids.iter().filter(|&&pid| support::is_alive(pid)).map(|&pid| support::describe(pid)).collect();
    }
    if code.is_none() || !left_behind.is_empty() {
        for &pid in &pids {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = host.wait();
        let _ = strace.kill();
    }
    strace.wait().expect("strace ends with what it traces");
    let log = std::fs::read_to_string(at("log")).expect("the log");
    let text = |name: &str| String::from_utf8_lossy(&std::fs::read(at(name)).expect("output")).into_owned();
    Ran { code, stdout: text("stdout"), stderr: text("stderr"), seen: read_log(&log, pid), elapsed, left_behind }
}

/// Writes the input once the host reads, and waits for its end. `None`: it did not end in time.
fn feed_and_wait(host: &mut Child, path: &Path) -> Option<i32> {
    let mut fed = false;
    let mut code = None;
    wait_until(RUN_LIMIT, || {
        if !fed {
            // Refused until somebody reads; one who has failed before never does.
            let opened = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path);
            if let Ok(mut file) = opened {
                let _ = file.write_all(input().as_bytes());
                fed = true;
            }
        }
        code = host.try_wait().expect("wait").map(|status| status.code().unwrap_or(-1));
        code.is_some()
    });
    code
}

fn read_log(log: &str, host: i32) -> Vec<Seen> {
    let mut roles = BTreeMap::from([(host, Role::Host)]);
    let mut seen: Vec<Seen> = Vec::new();
    let mut unfinished: BTreeMap<i32, usize> = BTreeMap::new();
    let mut starting = true;
    let is_fork = |name: &str| ["clone", "clone3", "fork", "vfork"].contains(&name);
    for line in log.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let (Ok(pid), rest) = (pid.parse::<i32>(), rest.trim_start()) else { continue };
        if rest.starts_with("---") || rest.starts_with("+++") {
            continue;
        }
        let index = if rest.starts_with("<...") {
            let Some(index) = unfinished.remove(&pid) else { continue };
            index
        } else {
            let Some((name, _)) = rest.split_once('(') else { continue };
            // A fork that strace has not seen return yet; its child is known by what is no other role.
            let role = *roles.entry(pid).or_insert(if seen.iter().any(|s| s.role == Role::Nursery) {
                Role::Worker
            } else {
                Role::Nursery
            });
            if role == Role::Host && name.starts_with("epoll_w") | name.starts_with("epoll_p") {
                starting = false;
            }
            let starting = starting && role == Role::Host;
            seen.push(Seen { role, pid, name: name.to_owned(), injected: false, starting });
            seen.len() - 1
        };
        if rest.ends_with("<unfinished ...>") {
            unfinished.insert(pid, index);
        }
        seen[index].injected |= rest.ends_with("(INJECTED)");
        if is_fork(&seen[index].name)
            && let Some((_, child)) = rest.rsplit_once(" = ")
            && let Ok(child) = child.trim().parse::<i32>()
        {
            let role = if seen[index].role == Role::Host { Role::Nursery } else { Role::Worker };
            roles.insert(child, role);
            seen.iter_mut().filter(|s| s.pid == child).for_each(|s| s.role = role);
        }
    }
    seen
}

/// Whether a run went as it must: as without injection; or, when a call failed before the pool was up, refused in one
/// line that names the call.
fn judge(ran: &Ran, want: &str) -> Result<bool, String> {
    let shown = || {
        let hit: Vec<_> = ran.seen.iter().filter(|s| s.injected).map(|s| (s.role, s.starting)).collect();
        let told = ran.stderr.lines().take(3).collect::<Vec<_>>().join(" | ");
        format!("exit code {:?} after {:?}, {hit:?} hit, {} bytes: {told}", ran.code, ran.elapsed, ran.stdout.len())
    };
    if !ran.left_behind.is_empty() {
        return Err(format!("left behind {:?}; {}", ran.left_behind, shown()));
    }
    if ran.code == Some(0) && ran.stdout == want && ran.stderr.is_empty() {
        return Ok(true);
    }
    let first = ran.seen.iter().find(|s| s.injected);
    let lines: Vec<_> = ran.stderr.lines().collect();
    match (first, lines.as_slice()) {
        (Some(call), [line])
            if call.starting && ran.code == Some(2) && ran.stdout.is_empty() && names(line, &call.name) =>
        {
            Ok(false)
        }
        _ => Err(shown()),
    }
}

/// Whether a message names this call, by the name that its manual page has.
fn names(line: &str, call: &str) -> bool {
    let page = match call {
        "clone" => "fork",
        "openat" => "open",
        "signalfd4" => "signalfd",
        "eventfd2" => "eventfd",
        "rt_sigprocmask" => "sigprocmask",
        "statx" | "newfstatat" | "fstat" => "stat",
        other => other,
    };
    line.starts_with("seqpool: ") && line.contains(page)
}

/// How often each call is made by the process of each role that makes it most.
fn counts(seen: &[Seen]) -> BTreeMap<(String, Role), usize> {
    let mut by_process: BTreeMap<(&str, Role, i32), usize> = BTreeMap::new();
    for s in seen {
        *by_process.entry((&s.name, s.role, s.pid)).or_default() += 1;
    }
    let mut counts = BTreeMap::new();
    for ((name, role, _), count) in by_process {
        let most = counts.entry((name.to_owned(), role)).or_insert(0);
        *most = count.max(*most);
    }
    counts
}

fn every_call_of_every_process_may_fail() {
    let dir = std::env::temp_dir();
    let want = input().to_uppercase();
    let start = Instant::now();
    let mut unstruck = Duration::ZERO;
    let mut plan = Vec::new();
    let mut pairs = BTreeSet::new();
    for &transport in seqpool::TransportKind::ALL {
        let folder = dir.join(transport.name());
        std::fs::create_dir(&folder).expect("a folder");
        // How often a process looks before it sleeps differs from run to run.
        let mut most: BTreeMap<(String, Role), usize> = BTreeMap::new();
        for _ in 0..3 {
            let ran = run(&folder, transport.name(), "all", None);
            assert_eq!(judge(&ran, &want), Ok(true));
            unstruck = unstruck.max(ran.elapsed);
            assert!(ran.seen.iter().any(|s| s.role == Role::Worker), "the log tells workers from the others");
            for (key, count) in counts(&ran.seen) {
                let most = most.entry(key).or_insert(0);
                *most = count.max(*most);
            }
        }
        std::fs::remove_dir_all(&folder).expect("remove");
        most.retain(|(name, _), _| !NO_RETURN.contains(&name.as_str()));
        println!("{transport}, calls a process: {:?}", table(&most));
        let mut by_name: BTreeMap<String, usize> = BTreeMap::new();
        for ((name, role), &count) in &most {
            let is_swept = transport == Default::default() || CARRYING.contains(&name.as_str());
            if is_swept && !NEVER_FAIL.contains(&name.as_str()) {
                let n = by_name.entry(name.clone()).or_insert(0);
                *n = count.max(*n);
                pairs.insert((transport.name(), name.clone(), *role));
            }
        }
        for (name, &count) in &by_name {
            let mut add = |errno: &str, when: String| {
                plan.push((transport.name(), name.clone(), format!("{name}:error={errno}:when={when}")));
            };
            let is_sampled = |n: &usize| *name != SIGNAL_CALL.0 || SIGNAL_CALL.1.contains(n);
            (1..=count).filter(is_sampled).for_each(|n| add("EINTR", n.to_string()));
            // Several in a row, and every other one.
            add("EINTR", "1..4".to_owned());
            add("EINTR", "2+2".to_owned());
            for (_, errnos) in SHORTAGES.iter().filter(|(call, _)| call == name) {
                for errno in *errnos {
                    (1..=count).for_each(|n| add(errno, n.to_string()));
                }
            }
        }
    }

    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let (hit, refused, missed) = (Mutex::new(BTreeSet::new()), Mutex::new(BTreeSet::new()), AtomicUsize::new(0));
    let (limit, late) = (unstruck + DELAY_MAX + NOISE, AtomicUsize::new(0));
    let slowest = Mutex::new((Duration::ZERO, String::new()));
    std::thread::scope(|scope| {
        for thread in 0..RUNS_AT_A_TIME {
            let (plan, next, failures, hit, refused, missed, slowest, late, want, dir) =
                (&plan, &next, &failures, &hit, &refused, &missed, &slowest, &late, &want, &dir);
            scope.spawn(move || {
                let folder = dir.join(thread.to_string());
                std::fs::create_dir(&folder).expect("a folder");
                while let Some((transport, name, inject)) = plan.get(next.fetch_add(1, Relaxed)) {
                    let trace = format!("{name},{MARKS}");
                    let mut ran = run(&folder, transport, &trace, Some(inject));
                    for _ in 1..TRIES {
                        if ran.elapsed <= limit || judge(&ran, want).is_err() {
                            break;
                        }
                        late.fetch_add(1, Relaxed);
                        ran = run(&folder, transport, &trace, Some(inject));
                    }
                    let what = format!("{transport}, {inject}");
                    let roles: BTreeSet<_> = ran.seen.iter().filter(|s| s.injected).map(|s| s.role).collect();
                    if roles.is_empty() {
                        missed.fetch_add(1, Relaxed);
                    }
                    if inject.contains("EINTR") {
                        hit.lock().expect("lock").extend(roles.iter().map(|&role| (*transport, name.clone(), role)));
                    }
                    let mut slowest = slowest.lock().expect("lock");
                    if ran.elapsed > slowest.0 {
                        *slowest = (ran.elapsed, what.clone());
                    }
                    match judge(&ran, want) {
                        Ok(true) => {}
                        Ok(false) => drop(refused.lock().expect("lock").insert((what, ran.stderr.clone()))),
                        Err(why) => failures.lock().expect("lock").push(format!("{what}: {why}")),
                    }
                }
                std::fs::remove_dir_all(&folder).expect("remove");
            });
        }
    });
    let (hit, refused) = (hit.into_inner().expect("lock"), refused.into_inner().expect("lock"));
    let missed = missed.into_inner();
    println!("{} runs in {:?}, {missed} of them over before that call", plan.len(), start.elapsed());
    let late = late.into_inner();
    let slowest = slowest.into_inner().expect("lock");
    println!("slowest: {slowest:?}; without injection: {unstruck:?}; {late:?} held up and tried again");
    refused.iter().for_each(|(what, line)| println!("refused: {what}: {}", line.trim_end()));
    let failures = failures.into_inner().expect("lock");
    failures.iter().for_each(|failure| println!("{failure}"));
    let forgotten: Vec<_> = pairs.difference(&hit).collect();
    println!("never interrupted: {forgotten:?}");
    assert!(failures.is_empty(), "{} runs went wrong", failures.len());
    assert!(forgotten.is_empty(), "calls that were never interrupted: {forgotten:?}");
    assert!(slowest.0 <= limit, "{slowest:?}, without injection {unstruck:?}");
    assert!(missed * 5 < plan.len(), "{missed} of {} runs came to nothing", plan.len());
}

/// For people: each call with the most that one process of each role makes of it.
fn table(most: &BTreeMap<(String, Role), usize>) -> BTreeMap<&str, Vec<(Role, usize)>> {
    let mut table: BTreeMap<&str, Vec<(Role, usize)>> = BTreeMap::new();
    for ((name, role), &count) in most {
        table.entry(name).or_default().push((*role, count));
    }
    table
}
