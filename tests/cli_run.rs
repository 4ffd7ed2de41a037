//! What ends, resumes, marks and logs a `seqpool run`, as a user meets it: every case drives the real program and holds
//! it to `CLI.md`. Rows 40 and 41 of the fault table are here.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use support::{Output, Random, descendants, proc_state, run_cli, wait_until};

mod support;

/// How long anything may take that takes no time on a machine with nothing else to do.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    support::main(&support::cases![
        halt_now_kills_what_runs,
        halt_soon_lets_what_runs_finish,
        halt_by_percentage_looks_at_finished_jobs,
        a_halt_that_is_not_reached_changes_nothing,
        a_deadline_ends_the_whole_run,
        a_deadline_ends_a_run_whose_input_stays_open,
        a_deadline_does_not_wait_for_a_stalled_reader,
        exit_codes_go_by_precedence,
        a_joblog_has_the_columns_of_gnu_parallel,
        a_joblog_of_json_lines_says_more,
        a_joblog_is_begun_anew_without_resume,
        a_joblog_line_follows_its_result,
        a_joblog_may_be_a_pipe,
        a_stopped_run_is_resumed_where_it_stopped,
        failed_jobs_are_resumed_on_request,
        a_run_that_was_killed_is_resumed => 120,
        a_joblog_that_was_cut_off_is_resumed,
        another_joblog_is_refused,
        a_large_joblog_is_resumed_in_order => 120,
        tags_stand_before_each_line,
        a_dry_run_starts_no_worker,
        a_dry_run_writes_no_files,
        nonsense_says_what_to_do,
        row_40_no_system_log,
        row_40_system_log_gets_worker_errors,
        row_40_system_log_that_nobody_reads,
        row_40_system_log_that_dies,
        row_40_full_device_for_the_joblog,
        row_40_full_disk_for_the_joblog,
        row_41_stopped_time_does_not_count,
        row_41_a_timeout_continues_where_it_stopped,
        row_41_stopped_between_jobs,
        row_41_stopped_without_a_nursery,
        row_41_stopped_again_and_again,
        row_41_host_stopped_by_force,
    ]);
}

// ---- tools

/// The program while it runs, its output in files. It leads a process group, as a shell would have it.
struct Live {
    child: Child,
    dir: tempfile::TempDir,
    started: Instant,
}

impl Live {
    fn start(args: &[&str], input: impl AsRef<[u8]>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("input");
        std::fs::write(&file, input).unwrap();
        Self::with_stdin(dir, args, Stdio::from(File::open(file).unwrap()))
    }

    fn with_stdin(dir: tempfile::TempDir, args: &[&str], stdin: Stdio) -> Self {
        let create = |name: &str| Stdio::from(File::create(dir.path().join(name)).unwrap());
        let mut command = support::cli(&[&["run"], args].concat());
        command.stdin(stdin).stdout(create("stdout")).stderr(create("stderr")).process_group(0);
        let started = Instant::now();
        Self { child: command.spawn().unwrap(), started, dir }
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    fn stdout(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stdout")).unwrap()
    }

    fn stderr(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }

    fn workers(&self) -> Vec<i32> {
        self.descendants_named("seqpool-w")
    }

    fn descendants_named(&self, prefix: &str) -> Vec<i32> {
        let name = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        descendants(self.pid()).into_iter().filter(|pid| name(pid).starts_with(prefix)).collect()
    }

    #[track_caller]
    fn wait_for(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        assert!(wait_until(PATIENCE, || done(self)), "{what}\n{}{}", self.stdout(), self.stderr());
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        let is_over = wait_until(PATIENCE, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(is_over, "still runs\n{}{}", self.stdout(), self.stderr());
        status.unwrap()
    }

    #[track_caller]
    fn expect_code(&mut self, code: i32) {
        let status = self.wait();
        assert_eq!(status.code(), Some(code), "{status}\n{}{}", self.stdout(), self.stderr());
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(args: &[&str], input: impl AsRef<[u8]>) -> Output {
    run_cli(&[&["run"], args].concat(), input)
}

/// A folder of its own and the path of a file in it.
fn scratch(name: &str) -> (tempfile::TempDir, PathBuf, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    let text = path.to_str().unwrap().to_owned();
    (dir, path, text)
}

/// What standard error says of jobs, by their numbers, each at most once.
#[track_caller]
fn job_lines(stderr: &str) -> BTreeMap<u64, String> {
    let mut jobs = BTreeMap::new();
    for line in stderr.lines() {
        assert!(line.starts_with("seqpool: "), "{line}");
        if let Some((number, why)) = line.strip_prefix("seqpool: job ").and_then(|rest| rest.split_once(": ")) {
            assert_eq!(jobs.insert(number.parse().unwrap(), why.to_owned()), None, "{line}");
        }
    }
    jobs
}

/// The lines about no job.
fn other_lines(stderr: &str) -> Vec<&str> {
    stderr.lines().filter(|line| !line.starts_with("seqpool: job ")).collect()
}

/// A line of a joblog in columns.
#[derive(Clone, Debug)]
struct Logged {
    seq: u64,
    start_s: f64,
    run_s: f64,
    send: u64,
    receive: u64,
    exit: (i32, i32),
    command: String,
}

/// A joblog in columns: a header, and whole lines only.
#[track_caller]
fn joblog(path: &Path) -> Vec<Logged> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "whole lines: {text:?}");
    let mut lines = text.lines();
    let header = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand";
    assert!(lines.next().is_none_or(|line| line == header), "{text}");
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [seq, ":", start, run, send, receive, exitval, signal, command] = fields[..] else { panic!("{line:?}") };
        Logged {
            seq: seq.parse().unwrap(),
            start_s: start.parse().unwrap(),
            run_s: run.trim_start().parse().unwrap(),
            send: send.parse().unwrap(),
            receive: receive.parse().unwrap(),
            exit: (exitval.parse().unwrap(), signal.parse().unwrap()),
            command: command.to_owned(),
        }
    };
    lines.map(parse).collect()
}

/// The numbers in a joblog, each once.
#[track_caller]
fn logged_once(path: &Path) -> BTreeSet<u64> {
    let lines = joblog(path);
    let numbers: BTreeSet<u64> = lines.iter().map(|line| line.seq).collect();
    assert_eq!(numbers.len(), lines.len(), "each job once");
    numbers
}

// ---- ends before the end of the input

fn halt_now_kills_what_runs() {
    let mut input = String::from("hang\nsleep 0.3\nerror no\n");
    input.push_str(&"ok\n".repeat(100_000));
    let started = Instant::now();
    let ran = run(&["-j3", "--halt", "now,fail=1", "fault"], "hang\nsleep 50ms\nhang\nerror no\n");
    ran.expect_code(3);
    assert!(started.elapsed() < Duration::from_secs(20));
    let jobs = job_lines(&ran.stderr);
    assert_eq!(jobs[&4], "failed: no");
    for job in [1, 3] {
        assert_eq!(jobs[&job], "cancelled: halted by --halt now,fail=1");
    }
    assert_eq!(ran.stdout, b"ok\n", "{ran}");
    // A long input is not read to its end.
    let ran = run(&["-j3", "--halt", "now,fail=1", "fault"], input);
    ran.expect_code(3);
    assert!(job_lines(&ran.stderr).len() < 70_000, "what was not begun has no outcome");
}

fn halt_soon_lets_what_runs_finish() {
    // The third job fails while the first one runs, and with -j2 all others wait behind them.
    let input = format!("sleep 2\nsleep 0.5\nerror no\n{}", "sleep 0.25\n".repeat(5000));
    let ran = run(&["-j2", "--halt", "soon,fail=1", "fault"], &input);
    ran.expect_code(3);
    let jobs = job_lines(&ran.stderr);
    let done = ran.text().lines().count();
    assert!((2..=4).contains(&done), "what ran when job 3 failed, not all others: {ran}");
    assert!(!jobs.contains_key(&1), "it ran, and so finished: {ran}");
    assert_eq!(jobs[&3], "failed: no");
    let cancelled = jobs.values().filter(|why| *why == "cancelled: halted by --halt soon,fail=1").count();
    assert_eq!(cancelled + 1, jobs.len(), "{ran}");
    let last = jobs.keys().next_back().copied().unwrap();
    assert_eq!(done + jobs.len(), last as usize, "one outcome for each job that was begun: {ran}");
    assert!(other_lines(&ran.stderr)[0].starts_with("seqpool: --halt soon,fail=1: 1 of "), "{ran}");
}

fn halt_by_percentage_looks_at_finished_jobs() {
    // One worker, so that jobs finish in their order: after job 10, 3 of 10 have failed.
    let input = format!("{}error no\nerror no\nerror no\n{}", "ok\n".repeat(7), "sleep 0.1\n".repeat(1000));
    let ran = run(&["-j1", "--halt", "soon,fail=30%", "fault"], &input);
    ran.expect_code(3);
    let failed = job_lines(&ran.stderr).values().filter(|why| why.starts_with("failed")).count();
    assert_eq!(failed, 3);
    assert!(ran.text().lines().count() < 100, "{ran}");
    // Too few have failed to say anything about all.
    run(&["-j1", "--halt", "soon,fail=30%", "fault"], "error no\nerror no\nok\nok\nok\n").expect_code(1);
    // 3 of 10 are less than 31%.
    let input = format!("{}error no\nerror no\nerror no\nok\n", "ok\n".repeat(7));
    let ran = run(&["-j1", "--halt", "now,fail=31%", "fault"], &input);
    assert_eq!(ran.expect_code(1).text(), "ok\n".repeat(8));
}

fn a_halt_that_is_not_reached_changes_nothing() {
    let input = format!("error no\n{}", "ok\n".repeat(20_000));
    let ran = run(&["-j2", "--halt", "now,fail=2", "fault"], input);
    assert_eq!(ran.expect_code(1).text().lines().count(), 20_000);
    assert_eq!(ran.stderr, "seqpool: job 1: failed: no\n");
}

fn a_deadline_ends_the_whole_run() {
    let started = Instant::now();
    let ran = run(&["-j2", "--deadline", "500ms", "fault"], "ok\nignore-term\nhang\nok\n");
    ran.expect_code(124);
    let took = started.elapsed();
    assert!((Duration::from_millis(500)..Duration::from_secs(5)).contains(&took), "{took:?}");
    let jobs = job_lines(&ran.stderr);
    assert!(ran.text().starts_with("ok\n"), "{ran}");
    for job in [2, 3] {
        assert_eq!(jobs[&job], "cancelled: the deadline of 500ms for the whole run has passed");
    }
    assert_eq!(ran.text().lines().count() + jobs.len(), 4);
    // One that is not reached changes nothing.
    let ran = run(&["-j2", "--deadline", "1h", "fault"], "ok\n");
    assert_eq!((ran.expect_code(0).text(), ran.stderr.as_str()), ("ok\n", ""));
}

fn a_deadline_ends_a_run_whose_input_stays_open() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut live =
        Live::with_stdin(tempfile::tempdir().unwrap(), &["-j2", "--deadline", "300ms", "echo"], reader.into());
    live.expect_code(124);
    assert!(live.started.elapsed() >= Duration::from_millis(300));
    drop(writer);
}

fn a_deadline_does_not_wait_for_a_stalled_reader() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = support::cli(&["run", "-j2", "--deadline", "500ms", "echo"]);
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("input");
    let lines: Vec<u8> = format!("{}\n", "x".repeat(1000)).repeat(20_000).into_bytes();
    std::fs::write(&input, lines).unwrap();
    command.stdin(File::open(&input).unwrap()).stdout(writer).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut status = None;
    let is_over = wait_until(Duration::from_secs(10), || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    if !is_over {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    drop(reader);
    let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert_eq!(status.and_then(|s| s.code()), Some(124), "{stderr}");
    assert!(stderr.contains("did not take all results"), "{stderr}");
}

fn exit_codes_go_by_precedence() {
    // 124 before 3 before 1. The failure comes when the first job runs for sure.
    let input = "hang\nsleep 0.5\nerror no\n";
    run(&["-j2", "--deadline", "2s", "--halt", "soon,fail=1", "fault"], input).expect_code(124);
    run(&["-j2", "--halt", "soon,fail=1", "fault"], "error no\n").expect_code(3);
    // A signal before all.
    let mut live = Live::start(&["-j2", "--deadline", "3s", "--halt", "soon,fail=1", "fault"], input);
    live.wait_for("halted", |live| live.stderr().contains("--halt soon"));
    live.signal(Signal::SIGTERM);
    live.expect_code(128 + 15);
    assert!(live.stderr().contains("--deadline 3s: it has passed"), "{}", live.stderr());
}

// ---- joblog

fn a_joblog_has_the_columns_of_gnu_parallel() {
    for order in [&["-j2"][..], &["-j2", "-k"]] {
        let (_dir, path, name) = scratch("log");
        let long = "x".repeat(1000);
        let input = format!(
            "ok\nsleep 100ms\nexit 3\nexit 0\nsignal 9\nerror a\tb\npanic\nhang\nprint {long}\n\nabort\nerror \\"
        );
        let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let ran = run(&[order, &["--timeout", "500ms", "--joblog", &name, "fault"]].concat(), &input);
        ran.expect_code(1);
        let after = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let by_seq: BTreeMap<u64, Logged> = joblog(&path).into_iter().map(|line| (line.seq, line)).collect();
        let want = [
            (1, (0, 0), "fault ok".to_owned()),
            (2, (0, 0), "fault sleep 100ms".into()),
            (3, (3, 0), "fault exit 3".into()),
            (4, (-1, 0), "fault exit 0".into()),
            (5, (0, 9), "fault signal 9".into()),
            (6, (1, 0), "fault error a\\tb".into()),
            (7, (1, 0), "fault panic".into()),
            (8, (-1, 0), "fault hang".into()),
            (9, (0, 0), format!("fault print {}... (1006 bytes)", "x".repeat(250))),
            (10, (1, 0), "fault".into()),
            (11, (0, 6), "fault abort".into()),
            (12, (1, 0), "fault error \\\\".into()),
        ];
        assert_eq!(by_seq.len(), want.len());
        for (seq, exit, command) in want {
            let line = &by_seq[&seq];
            assert_eq!((line.exit, &line.command), (exit, &command), "job {seq}");
            // Printed in thousandths.
            assert!(line.start_s >= before - 0.002 && line.start_s + line.run_s <= after + 0.002, "{line:?}");
        }
        assert_eq!((by_seq[&1].send, by_seq[&1].receive), (2, 2));
        assert_eq!((by_seq[&9].send, by_seq[&9].receive), (1006, 2));
        assert!((0.1..0.4).contains(&by_seq[&2].run_s), "{:?}", by_seq[&2]);
        assert!((0.499..2.0).contains(&by_seq[&8].run_s), "{:?}", by_seq[&8]);
        if order.contains(&"-k") {
            assert!(joblog(&path).windows(2).all(|pair| pair[0].seq < pair[1].seq), "the order of the results");
        }
    }
}

fn a_joblog_of_json_lines_says_more() {
    let (_dir, path, name) = scratch("log.jsonl");
    run(&["-j1", "--joblog", &name, "fault"], "ok\nexit 0\nerror a\tb\n").expect_code(1);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.sort_by_key(|line| line["seq"].as_u64());
    let say = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap().to_owned();
    let outcomes: Vec<String> = lines.iter().map(|line| say(line, "outcome")).collect();
    assert_eq!(outcomes, ["done", "crashed: exit code 0", "failed: a\tb"]);
    assert_eq!(say(&lines[2], "command"), "fault error a\\tb");
    let names: BTreeSet<&str> = lines[0].as_object().unwrap().keys().map(String::as_str).collect();
    for name in ["seq", "host", "starttime", "jobruntime", "send", "receive", "exitval", "signal", "command"] {
        assert!(names.contains(name), "{name}");
    }
    let ran = run(&["-j1", "--joblog", &name, "--resume-failed", "fault"], "ok\nexit 0\nerror a\tb\nok\n");
    assert_eq!(ran.expect_code(1).text(), "ok\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 6);
}

fn a_joblog_is_begun_anew_without_resume() {
    let (_dir, path, name) = scratch("log");
    run(&["--joblog", &name, "echo"], "a\nb\nc\n").expect_code(0);
    run(&["--joblog", &name, "upper"], "x\n").expect_code(0);
    let lines = joblog(&path);
    assert_eq!((lines.len(), lines[0].command.as_str()), (1, "upper x"));
    // Not by a run that never was.
    let before = std::fs::read(&path).unwrap();
    run(&["--joblog", &name, "-j5000", "upper"], "x\n").expect_code(2);
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

fn a_joblog_line_follows_its_result() {
    let (dir, path, name) = scratch("log");
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut live = Live::with_stdin(dir, &["-j2", "--joblog", &name, "echo"], reader.into());
    // While the input stays open: a line is there soon after its result.
    for number in 1..=20 {
        writeln!(writer, "{number}").unwrap();
        live.wait_for("a result", |live| live.stdout().lines().count() == number);
        live.wait_for("its line", |_| joblog(&path).len() == number);
    }
    drop(writer);
    live.expect_code(0);

    // A reader that takes nothing: no line says that its result was written.
    let (reader, writer) = std::io::pipe().unwrap();
    let lines = format!("{}\n", "x".repeat(10_000)).repeat(200);
    let (dir, path, name) = scratch("log");
    let input = dir.path().join("input");
    std::fs::write(&input, lines).unwrap();
    let mut command = support::cli(&["run", "-j2", "-k", "--joblog", &name, "echo"]);
    command.stdin(File::open(&input).unwrap()).stdout(writer).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    drop(command);
    std::thread::sleep(Duration::from_millis(500));
    assert!(wait_until(PATIENCE, || path.exists()));
    let logged = joblog(&path).len();
    child.kill().unwrap();
    child.wait().unwrap();
    let taken = std::io::read_to_string(reader).unwrap().len();
    assert!(logged * 10_001 <= taken, "{logged} lines, and {taken} bytes of results");
}

fn a_joblog_may_be_a_pipe() {
    let (_dir, path, name) = scratch("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Opened for reading and writing, so that neither side waits for the other.
    let keeper = File::options().read(true).write(true).open(&path).unwrap();
    let ran = run(&["-j2", "--joblog", &name, "echo"], "a\nb\n");
    assert_eq!((ran.expect_code(0).text().len(), ran.stderr.as_str()), (4, ""));
    let mut bytes = [0; 4096];
    let size = std::io::Read::read(&mut &keeper, &mut bytes).unwrap();
    assert_eq!(bytes[..size].iter().filter(|byte| **byte == b'\n').count(), 3);
    run(&["-j2", "--joblog", &name, "--resume", "echo"], "a\nb\n").expect_code(2);
}

// ---- resume

fn a_stopped_run_is_resumed_where_it_stopped() {
    let (_dir, path, name) = scratch("log");
    let input = format!("{}error no\n{}", "ok\n".repeat(50), "sleep 0.2\n".repeat(20));
    let first = run(&["-j1", "--halt", "now,fail=1", "--joblog", &name, "fault"], &input);
    first.expect_code(3);
    let begun = logged_once(&path);
    assert!(begun.contains(&51) && begun.len() < 60, "jobs that were cancelled are not over: {begun:?}");
    let second =
        run(&["-j2", "-k", "--joblog", &name, "--resume", "--stats", &format!("{name}.json"), "fault"], &input);
    second.expect_code(0);
    assert_eq!(logged_once(&path), (1..=71).collect());
    assert_eq!(second.text().lines().count(), 71 - begun.len());
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(format!("{name}.json")).unwrap()).unwrap();
    let count = |key: &str| stats[key].as_u64().unwrap() as usize;
    assert_eq!((count("jobs"), count("done"), count("skipped")), (71 - begun.len(), 71 - begun.len(), begun.len()));
    // Nothing is left.
    let third = run(&["--joblog", &name, "--resume", "fault"], &input);
    assert_eq!((third.expect_code(0).text(), third.stderr.as_str()), ("", ""));
}

fn failed_jobs_are_resumed_on_request() {
    let (_dir, path, name) = scratch("log");
    let input = "ok\nexit 3\nerror no\nexit 0\nhang\nok\n";
    let log = ["--joblog", &name, "--timeout", "200ms", "fault"];
    let first = run(&[&["-j2"], &log[..]].concat(), input);
    first.expect_code(1);
    let again = run(&[&["-j2", "--resume"], &log[..]].concat(), input);
    assert_eq!((again.expect_code(0).text(), again.stderr.as_str()), ("", ""), "they were run, and so are over");
    let again = run(&[&["-j2", "--resume-failed"], &log[..]].concat(), input);
    again.expect_code(1);
    assert_eq!(job_lines(&again.stderr), job_lines(&first.stderr), "under the same numbers");
    assert_eq!((again.text(), joblog(&path).len()), ("", 10));
}

fn a_run_that_was_killed_is_resumed() {
    let (dir, path, name) = scratch("log");
    let count = 1500;
    let input: String = (1..=count).map(|n| format!("1ms {n}ns\n")).collect();
    let mut random = Random::from_environment();
    let mut results: Vec<String> = Vec::new();
    let mut kills = 0;
    for round in 0.. {
        assert!(round < 200, "each round gets further");
        let ordered: &[&str] = if round % 2 == 0 { &["-k"] } else { &[] };
        let args = [ordered, &["-j2", "--joblog", &name, "--resume", "sleep"]].concat();
        let mut live = Live::start(&args, &input);
        // Longer each time, so that a loaded machine gets there too.
        let patience = Duration::from_millis(20 + 10 * round + random.below(150));
        let is_over = wait_until(patience, || live.child.try_wait().unwrap().is_some());
        if !is_over {
            live.signal(Signal::SIGKILL);
            kills += 1;
        }
        let status = live.wait();
        results.extend(live.stdout().lines().map(str::to_owned));
        let logged = if path.exists() { logged_once(&path) } else { BTreeSet::new() };
        let written: BTreeSet<&str> = results.iter().map(String::as_str).collect();
        for number in &logged {
            assert!(written.contains(format!("1ms {number}ns").as_str()), "job {number} is logged and its result lost");
        }
        if status.code() == Some(0) {
            break;
        }
        assert_eq!(status.signal(), Some(9), "{status} {}", live.stderr());
    }
    println!("{kills} kills, {} results for {count} jobs", results.len());
    assert!(kills >= 3, "the point of it: {kills}");
    assert_eq!(logged_once(&path), (1..=count).collect());
    assert!(joblog(&path).iter().all(|line| line.exit == (0, 0)));
    drop(dir);
}

fn a_joblog_that_was_cut_off_is_resumed() {
    let (_dir, path, name) = scratch("log");
    let input = "a\nb\nc\n";
    run(&["-j1", "-k", "--joblog", &name, "upper"], input).expect_code(0);
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        if cut % 7 != 0 && cut + 3 < whole.len() {
            continue;
        }
        let ran = run(&["-j1", "-k", "--joblog", &name, "--resume", "upper"], input);
        ran.expect_code(0);
        let known = whole[..cut].iter().filter(|byte| **byte == b'\n').count().saturating_sub(1);
        assert_eq!(ran.text(), &"A\nB\nC\n"[2 * known..], "cut at {cut}");
        assert_eq!(logged_once(&path), (1..=3).collect(), "cut at {cut}");
    }
}

fn another_joblog_is_refused() {
    let (_dir, path, name) = scratch("log");
    run(&["-j1", "-k", "--joblog", &name, "upper"], "a\nb\nc\n").expect_code(0);
    let log = std::fs::read_to_string(&path).unwrap();
    let resume = |handler: &str, input: &str, why: &str| {
        let ran = run(&["-j1", "-k", "--joblog", &name, "--resume", handler], input);
        ran.expect_code(2);
        assert!(ran.stderr.starts_with("seqpool: --resume: ") && ran.stderr.contains(why), "{ran}");
        ran
    };
    resume("echo", "a\nb\nc\n", "of handler 'upper' (line 2), not of 'echo'");
    let ran = resume("upper", "a\nx\nc\nd\n", "of another input: record 2, 'upper x' here");
    assert_eq!(ran.text(), "", "nothing after it is run");
    resume("upper", "a\nb\n", "it knows record 3, and the last one here is 2");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), log, "it is left as it was");
    for (text, why) in [
        ("something else\n", "line 1: 'something else' is not the header"),
        (&format!("{log}nonsense\n"), "line 5: 'nonsense' is no line of a joblog"),
        (&"x".repeat(100_000), "is longer than any line"),
    ] {
        std::fs::write(&path, text).unwrap();
        resume("upper", "a\nb\nc\n", why);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "it is left as it was");
    }
}

fn a_large_joblog_is_resumed_in_order() {
    let (_dir, path, name) = scratch("log");
    let count = 20_000;
    let input: String = (1..=count).map(|n| format!("{n}\n")).collect();
    run(&["-j2", "--joblog", &name, "echo"], &input).expect_code(0);
    // Every third job, and a long gap, is to be run again.
    let is_wanted = |n: u64| n.is_multiple_of(3) || (8000..12_000).contains(&n);
    let text = std::fs::read_to_string(&path).unwrap();
    let seq = |line: &str| line.split('\t').next().unwrap().parse::<u64>().ok();
    let kept: String = text.split_inclusive('\n').filter(|line| !seq(line).is_some_and(is_wanted)).collect();
    std::fs::write(&path, kept).unwrap();
    let ran = run(&["-j2", "-k", "--joblog", &name, "--resume", "echo"], &input);
    let want: String = (1..=count).filter(|n| is_wanted(*n)).map(|n| format!("{n}\n")).collect();
    assert!(ran.expect_code(0).text() == want);
    assert_eq!(logged_once(&path), (1..=count).collect());
}

// ---- tags and dry runs

fn tags_stand_before_each_line() {
    let ran = run(&["-j2", "-k", "--tag", "upper"], "a b\n\nc\td\n");
    assert_eq!(ran.expect_code(0).text(), "a b\tA B\n\t\nc\td\tC\tD\n");
    // Unordered, and with failures, which have no line.
    let ran = run(&["-j2", "--tag", "fault"], "ok\nerror no\nsleep 1ms\n");
    let mut lines: Vec<&str> = ran.expect_code(1).text().lines().collect();
    lines.sort_unstable();
    assert_eq!((lines, ran.stderr.as_str()), (vec!["ok\tok", "sleep 1ms\tok"], "seqpool: job 2: failed: no\n"));
    // With -0 a result is one unit, whatever is in it.
    let ran = run(&["-j2", "-k", "-0", "--tag", "echo"], b"x\ny\0z\0");
    assert_eq!(ran.expect_code(0).text(), "x\ny\tx\ny\0z\tz\0");
    // Many, and larger than any packet.
    let records: Vec<String> = (0..300).map(|n| format!("{n}").repeat(1 + n * 13 % 3000)).collect();
    let ran = run(&["-j2", "-k", "--tag", "upper"], format!("{}\n", records.join("\n")));
    let want: String = records.iter().map(|record| format!("{record}\t{record}\n")).collect();
    assert!(ran.expect_code(0).text() == want);
}

fn a_dry_run_starts_no_worker() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut live = Live::with_stdin(tempfile::tempdir().unwrap(), &["-j4", "--dry-run", "fault"], reader.into());
    writer.write_all(b"exit 3\n\nhang\n").unwrap();
    live.wait_for("the jobs", |live| live.stdout() == "fault exit 3\nfault\nfault hang\n");
    assert_eq!(descendants(live.pid()), Vec::<i32>::new(), "nobody was started");
    writer.write_all(b"unfinished").unwrap();
    drop(writer);
    live.expect_code(0);
    assert_eq!((live.stdout().lines().last(), live.stderr().as_str()), (Some("fault unfinished"), ""));

    let ran = run(&["--dry-run", "--tag", "-0", "upper"], b"a\0b\n\0");
    assert_eq!(ran.expect_code(0).text(), "a\tupper a\0b\n\tupper b\n\0");
    run(&["--dry-run", "nobody"], "a\n").expect_code(2);
    support::run_shell("yes | $SEQPOOL run --dry-run upper | head -2; exit ${PIPESTATUS[1]}", "").expect_code(141);
}

fn a_dry_run_writes_no_files() {
    let (dir, path, name) = scratch("log");
    let others = [format!("{name}.stats"), format!("{name}.trace")];
    let args = ["--joblog", &name, "--stats", &others[0], "--trace", &others[1]];
    run(&[&["--dry-run"], &args[..], &["--resume", "upper"]].concat(), "a\n").expect_code(0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    // What it would skip is skipped.
    run(&["-j1", "--joblog", &name, "fault"], "ok\nerror no\n").expect_code(1);
    let log = std::fs::read(&path).unwrap();
    let input = "ok\nerror no\nok\n";
    let ran = run(&["--dry-run", "--joblog", &name, "--resume", "fault"], input);
    assert_eq!(ran.expect_code(0).text(), "fault ok\n");
    let ran = run(&["--dry-run", "--joblog", &name, "--resume-failed", "fault"], input);
    assert_eq!(ran.expect_code(0).text(), "fault error no\nfault ok\n");
    run(&["--dry-run", "--joblog", &name, "--resume", "fault"], "hang\n").expect_code(2);
    run(&["--dry-run", "--joblog", &name, "fault"], "hang\n").expect_code(0);
    assert_eq!(std::fs::read(&path).unwrap(), log);
}

fn nonsense_says_what_to_do() {
    let (dir, path, name) = scratch("file");
    std::fs::write(&path, "a\n").unwrap();
    let folder = dir.path().to_str().unwrap();
    let absent = format!("{folder}/none/log");
    for (args, why) in [
        (
            &["--halt", "later"][..],
            "'later' is neither now (kill what runs) nor soon (let it finish): such as now,fail=1",
        ),
        (&["--halt", "now,fail=0"], "fail=0 would end the run before its first job: give 1 or more"),
        (&["--halt", "now,fail=101%"], "no more than 100% of the jobs can fail"),
        (&["--halt", "now,fail=x"], "'x' is not a number of jobs or a percentage: such as"),
        (&["--halt", "now,done=3"], "'now,done=3' does not say after how many failed jobs: such as"),
        (&["--resume"], "--resume: what is done stands in a joblog: name the earlier run's with --joblog FILE"),
        (&["--resume-failed"], "--resume-failed: what is done stands in a joblog"),
        (&["--deadline", "0"], "--deadline 0: no job could start: give a longer time"),
        (&["--deadline", "soon"], "'soon' is not a duration such as 200ms"),
        (&["--joblog", folder], "Is a directory"),
        (&["--joblog", &absent], "No such file or directory"),
        (&["--joblog", &name, "-a", &name], "is the input too: give another name"),
        (&["--joblog", &name, "--stats", &name], "cannot be --stats or --trace too: give another name"),
        (&["--joblog", "/dev/null", "--resume"], "/dev/null is no regular file and cannot be read back"),
    ] {
        let ran = run(&[args, &["echo"]].concat(), "x\n");
        ran.expect_code(2);
        assert!(ran.stderr.starts_with("seqpool: ") && ran.stderr.contains(why), "{args:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, b"");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a\n", "no file was touched");
}

// ---- row 40: log targets that are gone or full

/// The program where `/run` is `dir`, so that a system log listens only at `dir/syslog`. `None`: this user may not have
/// mounts of his own.
fn where_run_is(dir: &Path, args: &[&str], input: &str) -> Option<Output> {
    // A machine's own log listens elsewhere, too; an empty folder in its place is no socket.
    let script = "mount --bind \"$1\" /run; if [ -e /dev/log ]; then mount --bind /dev/null /dev/log; \
                  if [ -e \"$1/syslog\" ]; then mount --bind \"$1/syslog\" /dev/log; fi; fi; shift; exec \"$@\"";
    in_own_mounts(script, dir, args, input)
}

fn in_own_mounts(script: &str, dir: &Path, args: &[&str], input: &str) -> Option<Output> {
    let own_mounts = |command: &mut Command| {
        // SAFETY: geteuid(2) takes nothing.
        let is_root = unsafe { libc::geteuid() } == 0;
        command.args(if is_root { &["-m"][..] } else { &["-rm"] });
    };
    let mut probe = Command::new("unshare");
    own_mounts(&mut probe);
    let probed = probe.args(["sh", "-c", "mount -t tmpfs none /mnt"]).output().expect("unshare, of util-linux");
    if !probed.status.success() {
        println!("SKIPPED: no mounts of one's own: {}", String::from_utf8_lossy(&probed.stderr));
        return None;
    }
    let mut command = Command::new("unshare");
    own_mounts(&mut command);
    command.args(["sh", "-ec", script, "sh"]).arg(dir).arg(support::seqpool_bin()).arg("run").args(args);
    Some(support::run(&mut command, input, support::RUN_LIMIT))
}

/// The lines that a log has now.
fn datagrams(socket: &UnixDatagram) -> Vec<String> {
    socket.set_nonblocking(true).unwrap();
    let mut bytes = [0; 8192];
    let mut lines = Vec::new();
    while let Ok(size) = socket.recv(&mut bytes) {
        lines.push(String::from_utf8(bytes[..size].to_vec()).unwrap());
    }
    lines
}

/// Many failures among jobs that are done.
fn half_failed(count: usize) -> String {
    "ok\nerror it broke\n".repeat(count)
}

#[track_caller]
fn expect_half_failed(ran: &Output, count: usize, warning: &str) {
    ran.expect_code(1);
    assert_eq!(ran.text(), "ok\n".repeat(count));
    assert_eq!(job_lines(&ran.stderr).len(), count);
    let others = other_lines(&ran.stderr);
    assert!(others.len() == 1 && others[0].contains(warning), "one warning: {others:?}");
}

fn row_40_no_system_log() {
    let dir = tempfile::tempdir().unwrap();
    let Some(ran) = where_run_is(dir.path(), &["-j2", "--syslog", "fault"], &half_failed(2000)) else { return };
    expect_half_failed(&ran, 2000, "seqpool: --syslog: no system log listens: ");
    assert!(ran.stderr.contains("lines are lost there, jobs go on"), "{ran}");
}

fn row_40_system_log_gets_worker_errors() {
    let dir = tempfile::tempdir().unwrap();
    let log = UnixDatagram::bind(dir.path().join("syslog")).unwrap();
    let input = "ok\nerror a\tb\nsignal 9\nhang\n";
    let args = ["-j2", "--syslog", "--timeout", "200ms", "fault"];
    let Some(ran) = where_run_is(dir.path(), &args, input) else { return };
    ran.expect_code(1);
    assert_eq!(other_lines(&ran.stderr), Vec::<&str>::new());
    let mut lines = datagrams(&log);
    lines.sort_by_key(|line| line.find("job ").map(|at| line[at..].to_owned()));
    let want = ["job 2: failed: a\\tb", "job 3: crashed: signal 9 (SIGKILL)", "job 4: timed out after 200ms"];
    assert_eq!(lines.len(), want.len(), "{lines:?}");
    for (line, want) in lines.iter().zip(want) {
        // Facility user (1), severity error (3).
        assert!(line.starts_with("<11>") && line.contains(" seqpool[") && line.ends_with(want), "{line}");
    }
}

fn row_40_system_log_that_nobody_reads() {
    let dir = tempfile::tempdir().unwrap();
    let log = UnixDatagram::bind(dir.path().join("syslog")).unwrap();
    let count = 3000;
    let started = Instant::now();
    let Some(ran) = where_run_is(dir.path(), &["-j2", "--syslog", "fault"], &half_failed(count)) else { return };
    assert!(started.elapsed() < Duration::from_secs(20), "jobs do not wait for it");
    expect_half_failed(&ran, count, "seqpool: --syslog: it does not take lines as fast as they come");
    let lines = datagrams(&log);
    assert!(!lines.is_empty() && lines.len() < count && lines[0].ends_with("failed: it broke"), "{}", lines.len());
}

fn row_40_system_log_that_dies() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("syslog");
    // A socket whose owner is gone.
    drop(UnixDatagram::bind(&path).unwrap());
    let Some(ran) = where_run_is(dir.path(), &["-j2", "--syslog", "fault"], &half_failed(500)) else { return };
    expect_half_failed(&ran, 500, "seqpool: --syslog: no system log listens: Connection refused");
}

fn row_40_full_device_for_the_joblog() {
    let input: String = (0..20_000).map(|n| format!("{n}\n")).collect();
    let ran = run(&["-j2", "-k", "--joblog", "/dev/full", "echo"], &input);
    assert!(ran.expect_code(0).text() == input);
    assert_eq!(ran.stderr, "seqpool: --joblog: /dev/full: No space left on device: it ends here, jobs go on\n");
}

fn row_40_full_disk_for_the_joblog() {
    let (dir, path, name) = scratch("input");
    let input: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
    std::fs::write(&path, &input).unwrap();
    let disk = tempfile::tempdir().unwrap();
    // What was not written is resumed once there is room.
    let script = "mount -t tmpfs -o size=64k none \"$1\"; cd \"$1\"; shift; \"$@\"; echo full; \
                  mount -o remount,size=64m .; \"$@\" --resume; echo resumed; wc -l < log";
    let args = ["-j2", "-k", "-a", &name, "--joblog", "log", "echo"];
    let Some(ran) = in_own_mounts(script, disk.path(), &args, "") else { return };
    ran.expect_code(0);
    assert_eq!(ran.stderr, "seqpool: --joblog: log: No space left on device: it ends here, jobs go on\n");
    let (first, rest) = ran.text().split_once("full\n").unwrap();
    assert!(first == input, "jobs are unaffected");
    let (second, lines) = rest.split_once("resumed\n").unwrap();
    assert!(!second.is_empty() && input.ends_with(second), "what the joblog has no room for is run again");
    assert_eq!(lines.trim(), "20001", "a header, and each job once");
    drop(dir);
}

// ---- row 41: Ctrl-Z

/// Presses Ctrl-Z, as far as a terminal would: the whole process group is told. Waits until host and workers stand still.
#[track_caller]
fn suspend(live: &Live) -> Vec<i32> {
    let workers = live.workers();
    suspend_all(live, &workers);
    workers
}

#[track_caller]
fn suspend_all(live: &Live, workers: &[i32]) {
    kill(Pid::from_raw(-live.pid()), Signal::SIGTSTP).unwrap();
    live.wait_for("all stopped", |live| workers.iter().chain(&[live.pid()]).all(|&pid| proc_state(pid) == Some('T')));
}

/// As a shell's `fg`.
#[track_caller]
fn go_on(live: &Live, workers: &[i32]) {
    kill(Pid::from_raw(-live.pid()), Signal::SIGCONT).unwrap();
    live.wait_for("none stopped", |live| workers.iter().chain(&[live.pid()]).all(|&pid| proc_state(pid) != Some('T')));
}

fn row_41_stopped_time_does_not_count() {
    // A job of one second of its own time, stopped for two in its midst, with a timeout of one and a half.
    let args = ["-j2", "--timeout", "1.5s", "--deadline", "3s", "fault"];
    let mut live = Live::start(&args, "sleep 1\nsleep 1\n");
    live.wait_for("workers", |live| live.workers().len() == 2);
    std::thread::sleep(Duration::from_millis(400));
    let workers = suspend(&live);
    assert_eq!(workers.len(), 2);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(live.stdout(), "", "nothing happens meanwhile");
    go_on(&live, &workers);
    live.expect_code(0);
    assert_eq!((live.stdout().as_str(), live.stderr().as_str()), ("ok\nok\n", ""));
}

fn row_41_a_timeout_continues_where_it_stopped() {
    // Both times would be over at the end of the stop, if it counted.
    let (limit, stop) = (Duration::from_secs(3), Duration::from_millis(3500));
    for (option, code) in [("--timeout", 1), ("--deadline", 124)] {
        let mut live = Live::start(&["-j1", option, "3s", "fault"], "hang\n");
        live.wait_for("a worker", |live| live.workers().len() == 1);
        std::thread::sleep(Duration::from_millis(300));
        let workers = suspend(&live);
        std::thread::sleep(stop);
        go_on(&live, &workers);
        live.expect_code(code);
        let took = live.started.elapsed();
        assert!((limit + stop..limit + stop + PATIENCE).contains(&took), "{option}: {took:?}");
        assert_eq!(job_lines(&live.stderr()).len(), 1, "{}", live.stderr());
    }
}

fn row_41_stopped_between_jobs() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let args = ["-j2", "--timeout", "500ms", "echo"];
    let mut live = Live::with_stdin(tempfile::tempdir().unwrap(), &args, reader.into());
    writer.write_all(b"a\n").unwrap();
    live.wait_for("a result", |live| live.stdout() == "a\n");
    let workers = suspend(&live);
    writer.write_all(b"b\n").unwrap();
    std::thread::sleep(Duration::from_millis(1000));
    assert_eq!(live.stdout(), "a\n");
    go_on(&live, &workers);
    live.wait_for("the next result", |live| live.stdout() == "a\nb\n");
    assert_eq!(live.workers(), workers, "the same workers");
    drop(writer);
    live.expect_code(0);
    assert_eq!(live.stderr(), "");
}

fn row_41_stopped_without_a_nursery() {
    // Nobody is left to stop the workers but the host itself.
    let mut live = Live::start(&["-j2", "--timeout", "3s", "fault"], "sleep 1.5\nsleep 1.5\n");
    live.wait_for("workers", |live| live.workers().len() == 2);
    std::thread::sleep(Duration::from_millis(300));
    let workers = live.workers();
    let nursery = live.descendants_named("seqpool-nursery")[0];
    kill(Pid::from_raw(nursery), Signal::SIGKILL).unwrap();
    live.wait_for("the nursery is gone", |_| !support::is_alive(nursery));
    std::thread::sleep(Duration::from_millis(200));
    suspend_all(&live, &workers);
    std::thread::sleep(Duration::from_secs(3));
    go_on(&live, &workers);
    live.expect_code(0);
    assert_eq!((live.stdout().as_str(), live.stderr().as_str()), ("ok\nok\n", ""));
}

fn row_41_stopped_again_and_again() {
    let (_dir, path, name) = scratch("log");
    let count = 3000;
    let input: String = (1..=count).map(|n| format!("1ms {n}ns\n")).collect();
    let mut live = Live::start(&["-j2", "--timeout", "300ms", "--joblog", &name, "sleep"], &input);
    live.wait_for("workers", |live| live.workers().len() == 2);
    let mut random = Random::from_environment();
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(random.below(100)));
        let workers = suspend(&live);
        std::thread::sleep(Duration::from_millis(random.below(500)));
        go_on(&live, &workers);
    }
    live.expect_code(0);
    assert_eq!(live.stderr(), "");
    assert_eq!(live.stdout().lines().collect::<BTreeSet<_>>().len(), count as usize);
    assert_eq!(logged_once(&path), (1..=count).collect());
}

fn row_41_host_stopped_by_force() {
    // Nobody can tell: workers go on, and time counts. Each job has one outcome all the same, and those that were done in
    // time are done.
    let (_dir, path, name) = scratch("log");
    let input = format!("sleep 0.5\nhang\n{}", "ok\n".repeat(200));
    let mut live = Live::start(&["-j2", "--timeout", "1s", "--joblog", &name, "fault"], input);
    live.wait_for("workers", |live| live.workers().len() == 2);
    std::thread::sleep(Duration::from_millis(200));
    live.signal(Signal::SIGSTOP);
    live.wait_for("it stopped", |live| proc_state(live.pid()) == Some('T'));
    assert!(live.workers().iter().all(|&pid| proc_state(pid) != Some('T')), "workers are not stopped");
    std::thread::sleep(Duration::from_secs(2));
    live.signal(Signal::SIGCONT);
    live.expect_code(1);
    assert_eq!(job_lines(&live.stderr()), BTreeMap::from([(2, "timed out after 1s".to_owned())]));
    assert_eq!(live.stdout(), "ok\n".repeat(201));
    assert_eq!(logged_once(&path), (1..=202).collect());
}
