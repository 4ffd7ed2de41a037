//! `seqpool run` as a user meets it: every test drives the real program and holds it to `CLI.md`.
//!
//! A test ends only processes that it started, by their ids, and none waits longer than its limit.

use guard::gather;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

#[path = "support/guard.rs"]
mod guard;

/// No run takes longer, not even on a loaded machine.
const LIMIT: Duration = Duration::from_secs(60);
const TRANSPORTS: [&str; 2] = ["seqpacket", "blocking"];

fn seqpool(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seqpool"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A child that dies with its test, whatever becomes of that.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guard {
    fn spawn(mut command: Command) -> Self {
        Self(command.spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "seqpool still runs after {limit:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Lines as they come, elsewhere.
fn lines(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            if line.is_err() || send.send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    receive
}

struct Ran {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ran {
    fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("{}: {}", self.status, self.stderr))
    }

    fn sorted_lines(&self) -> Vec<&str> {
        let mut lines: Vec<&str> = std::str::from_utf8(&self.stdout).unwrap().lines().collect();
        lines.sort_unstable();
        lines
    }

    /// The lines about jobs, in the order of their numbers.
    fn job_lines(&self) -> Vec<(u64, &str)> {
        let mut jobs: Vec<(u64, &str)> = self
            .stderr
            .lines()
            .filter_map(|l| l.strip_prefix("seqpool: job ")?.split_once(": "))
            .map(|(n, why)| (n.parse().unwrap(), why))
            .collect();
        jobs.sort_unstable();
        jobs
    }
}

/// Runs to the end. That its pipes reach end of file says, too, that no process was left behind to hold them.
fn run_command(command: Command, input: &[u8]) -> Ran {
    let mut child = Guard::spawn(command);
    let (stdout, stderr) = (gather(child.0.stdout.take().unwrap()), gather(child.0.stderr.take().unwrap()));
    let mut stdin = child.0.stdin.take().unwrap();
    let input = input.to_vec();
    // The program may end without having read it all.
    thread::spawn(move || stdin.write_all(&input));
    let status = child.wait(LIMIT);
    let left_behind = "a process was left behind that holds our pipe";
    let stdout = stdout.recv_timeout(Duration::from_secs(5)).expect(left_behind);
    let stderr = stderr.recv_timeout(Duration::from_secs(5)).expect(left_behind);
    Ran { status, stdout, stderr: String::from_utf8(stderr).unwrap() }
}

fn run(args: &[&str], input: impl AsRef<[u8]>) -> Ran {
    run_command(seqpool(&[&["run"], args].concat()), input.as_ref())
}

/// Runs, and expects nothing but results.
fn results(args: &[&str], input: impl AsRef<[u8]>) -> Vec<u8> {
    let ran = run(args, input);
    assert_eq!((ran.code(), ran.stderr.as_str()), (0, ""), "{args:?}");
    ran.stdout
}

fn numbers(to: usize) -> String {
    (1..=to).map(|n| format!("{n}\n")).collect()
}

// ---- handlers

#[test]
fn echo_sleep_and_spin_return_the_body() {
    for transport in TRANSPORTS {
        for (handler, input) in [("echo", "b\na\n"), ("sleep", "2ms\n0.001\n1us\n"), ("spin", "2ms\n0\n1us 1ns\n")] {
            let out = results(&["-j2", "-k", "--transport", transport, handler], input);
            assert_eq!(String::from_utf8(out).unwrap(), input, "{handler}");
        }
    }
}

#[test]
fn upper_changes_ascii_letters_only() {
    let input = b"abc XYZ {} \xc3\xa9 \xff 123\nstra\xc3\x9fe\n";
    assert_eq!(results(&["-k", "upper"], input), input.to_ascii_uppercase());
}

#[test]
fn sha256_prints_what_sha256sum_prints() {
    let dir = tempfile::tempdir().unwrap();
    let names: [&[u8]; 7] = [b"plain", b"two words", b"back\\slash", b"new\nline", b"re\rturn", b"\xff\xfe", b"empty"];
    let mut input = Vec::new();
    let mut paths = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let path = dir.path().join(std::ffi::OsString::from_vec(name.to_vec()));
        // Sizes around the buffer's, and an empty file.
        let size = if *name == b"empty" { 0 } else { 131_071 + i };
        std::fs::write(&path, vec![i as u8; size]).unwrap();
        input.extend_from_slice(path.as_os_str().as_encoded_bytes());
        input.push(0);
        paths.push(path);
    }
    let want = Command::new("sha256sum").args(&paths).output().unwrap();
    assert!(want.status.success());
    let mut got = results(&["-j2", "-k", "-0", "sha256"], &input);
    got.iter_mut().filter(|b| **b == 0).for_each(|b| *b = b'\n');
    assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&want.stdout));
}

/// Adds the files under `dir`, in order of their names, up to so many.
fn add_files(dir: &std::path::Path, paths: &mut Vec<std::path::PathBuf>, count_max: usize) {
    let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap()).collect();
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            add_files(&entry.path(), paths, count_max);
        } else if kind.is_file() && paths.len() < count_max {
            paths.push(entry.path());
        }
    }
}

#[test]
fn sha256_of_a_whole_tree_is_what_sha256sum_prints() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = vec![root.join("Cargo.toml")];
    for dir in ["src", "tests"] {
        add_files(&root.join(dir), &mut paths, 1000);
    }
    let own_count = paths.len();
    assert!(own_count > 40, "the repository's own files: {own_count}");
    // A machine with a C compiler has it; the files made here are there on any.
    let headers = std::path::Path::new("/usr/include");
    if headers.is_dir() {
        add_files(headers, &mut paths, 3000);
    }
    let header_count = paths.len() - own_count;
    let dir = tempfile::tempdir().unwrap();
    for n in 0..500 {
        let name = match n % 6 {
            0 => format!("{n}\nline"),
            1 => format!("{n} space "),
            2 => format!("{n}\\back"),
            3 => format!("{n}\rreturn"),
            4 => format!("{n}\\\n\r all"),
            _ => format!("{n}\t\u{e9}*"),
        };
        std::fs::write(dir.path().join(name), "x".repeat(n * 7)).unwrap();
    }
    add_files(dir.path(), &mut paths, usize::MAX);
    assert_eq!(paths.len(), own_count + header_count + 500);
    println!("{own_count} files of the repository, {header_count} of /usr/include, 500 with awkward names");

    let want = Command::new("sha256sum").args(&paths).output().unwrap();
    assert!(want.status.success(), "{}", String::from_utf8_lossy(&want.stderr));
    let list = |terminator: u8, keep: &dyn Fn(&[u8]) -> bool| -> Vec<u8> {
        let names = paths.iter().map(|p| p.as_os_str().as_encoded_bytes()).filter(|p| keep(p));
        names.flat_map(|p| p.iter().copied().chain([terminator])).collect()
    };
    for transport in TRANSPORTS {
        let mut got = results(&["-j2", "-k", "-0", "--transport", transport, "sha256"], list(0, &|_| true));
        // The names are escaped, so that no newline is left but what ends a line.
        assert!(!got.contains(&b'\n'));
        got.iter_mut().filter(|b| **b == 0).for_each(|b| *b = b'\n');
        assert!(got == want.stdout, "{transport}, -0");
        // A name with a newline cannot be a line of input; all others can.
        let got = results(&["-j2", "-k", "--transport", transport, "sha256"], list(b'\n', &|p| !p.contains(&b'\n')));
        let mut lines = want.stdout.split_inclusive(|b| *b == b'\n');
        let without: Vec<u8> = paths
            .iter()
            .filter_map(|p| {
                let line = lines.next().unwrap();
                (!p.as_os_str().as_encoded_bytes().contains(&b'\n')).then_some(line)
            })
            .flatten()
            .copied()
            .collect();
        assert!(got == without, "{transport}, lines");
    }
}

#[test]
fn sha256_names_what_it_cannot_read() {
    let ran = run(&["-k", "sha256"], "/no/such/file\n/\n\n");
    assert_eq!((ran.code(), ran.stdout.len()), (1, 0));
    let want = [
        (1, "failed: /no/such/file: No such file or directory"),
        (2, "failed: /: Is a directory"),
        (3, "failed: : No such file or directory"),
    ];
    assert_eq!(ran.job_lines(), want);
}

/// What each instruction of `fault` comes to.
const FAULTS: [(&str, &str); 15] = [
    ("error it broke", "failed: it broke"),
    ("error a\x01\tb\x1b[1m\u{9b}", "failed: a\\x01\\tb\\x1b[1m\\u{9b}"),
    ("panic", "failed: panicked: the fault handler was told to panic"),
    ("exit 0", "crashed: exit code 0"),
    ("exit 3", "crashed: exit code 3"),
    ("signal 9", "crashed: signal 9 (SIGKILL)"),
    ("signal 11", "crashed: signal 11 (SIGSEGV)"),
    ("signal 15", "crashed: signal 15 (SIGTERM)"),
    // Ignored by default, so the abort that follows it ends the worker.
    ("signal 17", "crashed: signal 6 (SIGABRT)"),
    ("abort", "crashed: signal 6 (SIGABRT)"),
    ("stack-overflow", "crashed: signal 11 (SIGSEGV)"),
    ("hang", "timed out after 300ms"),
    ("ignore-term", "timed out after 300ms"),
    ("exit 256", "failed: '256' is not a number from 0 to 255"),
    ("sleep soon", "failed: 'soon' is not a duration such as 200ms: expected number at 0"),
];

#[test]
fn each_fault_is_named_and_the_others_do_not_notice() {
    for transport in TRANSPORTS {
        for (instruction, outcome) in FAULTS {
            let input = format!("ok\n{instruction}\nok\n");
            let ran = run(&["-j2", "--timeout", "300ms", "--transport", transport, "fault"], input);
            assert_eq!(ran.code(), 1, "{instruction}: {}", ran.stderr);
            assert_eq!(ran.stdout, b"ok\nok\n", "{instruction}: {}", ran.stderr);
            assert_eq!(ran.stderr, format!("seqpool: job 2: {outcome}\n"), "{transport}");
        }
    }
}

#[test]
fn faults_that_are_survived() {
    for instruction in ["ok", "sleep 1ms", "alloc 1MiB", "print hello"] {
        let ran = run(&["-j1", "fault"], format!("{instruction}\n"));
        assert_eq!((ran.code(), ran.stdout.as_slice()), (0, &b"ok\n"[..]), "{instruction}");
    }
}

#[test]
fn an_unknown_fault_lists_the_known_ones() {
    let ran = run(&["fault"], "oops\n");
    let line = &ran.job_lines()[0].1;
    for known in ["ok", "error MSG", "exit N", "stack-overflow", "ignore-term", "leak-child", "print TEXT"] {
        assert!(line.starts_with("failed: unknown fault 'oops': ") && line.contains(known), "{line}");
    }
}

#[test]
fn what_a_handler_prints_never_mixes_with_results() {
    let input: String = (0..200).map(|n| format!("print line {n} of mine\nok\nexit 0\n")).collect();
    let ran = run(&["-j2", "fault"], input);
    assert_eq!(ran.code(), 1);
    assert_eq!(ran.stdout, "ok\n".repeat(400).into_bytes());
    let mut printed: Vec<&str> = ran.stderr.lines().filter(|l| l.starts_with("line ")).collect();
    assert_eq!(printed.len(), 200, "none lost, none doubled");
    printed.sort_unstable();
    printed.dedup();
    assert_eq!(printed.len(), 200);
    assert_eq!(ran.job_lines().len(), 200);
    assert_eq!(ran.stderr.lines().count(), 400);
}

#[test]
fn what_a_job_leaves_behind_is_ended() {
    // All of it holds our standard error, so `run` would find its pipe still open.
    let started = Instant::now();
    for input in ["leak-child\n", "leak-child\nexit 1\nok\n", "leak-child\nleak-child\nsignal 9\nleak-child\n"] {
        run(&["-j2", "fault"], input);
    }
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_hundred_crashes_among_ten_thousand_jobs() {
    let count = 10_100;
    // Spread by a fixed stride that visits every residue once.
    let is_crash = |n: usize| (n * 7919) % count < 100;
    let input: String = (1..=count).map(|n| if is_crash(n) { "signal 11\n" } else { "ok\n" }).collect();
    let ran = run(&["-j2", "fault"], input);
    assert_eq!(ran.code(), 1);
    assert_eq!(ran.stdout.len(), 10_000 * 3);
    assert_eq!(ran.sorted_lines(), vec!["ok"; 10_000]);
    let want: Vec<_> =
        (1..=count).filter(|&n| is_crash(n)).map(|n| (n as u64, "crashed: signal 11 (SIGSEGV)")).collect();
    assert_eq!((want.len(), ran.job_lines()), (100, want));
}

// ---- records

#[test]
fn records_are_jobs_as_they_stand() {
    for transport in TRANSPORTS {
        let args = ["-j2", "-k", "--transport", transport, "echo"];
        for input in [&b""[..], b"\n", b"\n\n\n", b"a\r\n", b"\xff\xfe\n", b"a\0b\n", b"\0\n", b"a\n\nb\n"] {
            assert_eq!(results(&args, input), input);
        }
        assert_eq!(results(&args, "last one unterminated"), b"last one unterminated\n");
        assert_eq!(results(&args, "a\n\nb"), b"a\n\nb\n");
    }
}

#[test]
fn null_ends_records_and_results() {
    assert_eq!(results(&["-0k", "upper"], b"a\nb\0\0c"), b"A\nB\0\0C\0");
    assert_eq!(results(&["--null", "--keep-order", "upper"], b"x\0"), b"X\0");
}

#[test]
fn records_come_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("in");
    std::fs::write(&path, "a\nb").unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(results(&["-k", "-a", path, "upper"], "not read\n"), b"A\nB\n");
    assert_eq!(results(&["-k", "--arg-file", path, "upper"], ""), b"A\nB\n");
    assert_eq!(results(&["-a", "-", "upper"], "c\n"), b"C\n");
}

#[test]
fn many_records_in_order_and_in_any_order() {
    let input = numbers(200_000);
    for transport in TRANSPORTS {
        assert!(results(&["-j2", "-k", "--transport", transport, "upper"], &input) == input.as_bytes());
        let ran = run(&["--jobs", "3", "--transport", transport, "upper"], &input);
        let mut want: Vec<&str> = input.lines().collect();
        want.sort_unstable();
        assert!(ran.sorted_lines() == want);
    }
}

#[test]
fn order_is_kept_when_jobs_are_slow_and_fail() {
    let input: String = (0..300).map(|n| format!("{}ms\n", [0, 3, 1, 9, 0][n % 5])).collect();
    assert_eq!(results(&["-j4", "-k", "sleep"], &input), input.as_bytes());
    let ran = run(&["-j4", "-k", "sleep"], "5ms\nx\n1ms\n\n0\n");
    assert_eq!((ran.code(), ran.stdout.as_slice()), (1, &b"5ms\n1ms\n0\n"[..]));
    assert_eq!(ran.job_lines().iter().map(|j| j.0).collect::<Vec<_>>(), [2, 4]);
}

#[test]
fn a_record_over_the_limit_is_rejected_and_the_rest_unharmed() {
    let limit = 64 << 20;
    let mut input = vec![b'x'; limit + 1];
    input.extend_from_slice(b"\nafter\n");
    let ran = run(&["-j1", "-k", "echo"], &input);
    assert_eq!((ran.code(), ran.stdout.as_slice()), (1, &b"after\n"[..]));
    let (number, why) = ran.job_lines()[0];
    assert_eq!(number, 1);
    assert!(why.starts_with("rejected: ") && why.contains("67108865") && why.contains("67108864"), "{why}");
    // The largest that is allowed.
    let mut out = results(&["-j1", "echo"], &input[1..limit + 1]);
    assert_eq!(out.pop(), Some(b'\n'));
    assert!(out == input[..limit]);
}

/// A peak of the host's memory. Units: KiB.
fn peak_kib(pid: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Feeds `seq 1 COUNT`, checks the results as far as they say without being kept, and returns the host's peak when the
/// last result is out.
fn peak_after(args: &[&str], count: usize) -> u64 {
    let mut child = Guard::spawn(seqpool(args));
    let mut stdin = child.0.stdin.take().unwrap();
    let mut stdout = child.0.stdout.take().unwrap();
    let feeding = thread::spawn(move || {
        let mut block = Vec::new();
        for n in 1..=count {
            writeln!(block, "{n}").unwrap();
            if block.len() >= 1 << 16 || n == count {
                stdin.write_all(&block).unwrap();
                block.clear();
            }
        }
        stdin
    });
    // Lines of d digits are 9 * 10^(d-1) many, but for the last.
    let out_size: usize = (1..=9).map(|d| 10_usize.pow(d - 1)).filter(|n| *n <= count).map(|n| count + 1 - n).sum();
    let mut left = out_size + count;
    let mut line_count = 0;
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let n = stdout.read(&mut buffer).unwrap();
        assert!(n > 0, "ended {left} bytes early");
        left -= n;
        line_count += memchr::memchr_iter(b'\n', &buffer[..n]).count();
    }
    assert_eq!(line_count, count);
    let peak = peak_kib(child.pid());
    drop(feeding.join().unwrap());
    assert_eq!(child.wait(LIMIT).code(), Some(0));
    peak
}

#[test]
fn memory_does_not_grow_with_the_input() {
    // Ten million take a minute in a debug build; what grows would be seen there, too, with fewer.
    let (few, many) = if cfg!(debug_assertions) { (100_000, 400_000) } else { (1_000_000, 10_000_000) };
    for args in [&["run", "-j2", "upper"][..], &["run", "-j2", "-k", "upper"]] {
        let peaks = [few, many].map(|count| peak_after(args, count));
        println!("{args:?}: host peaks {peaks:?} KiB at {few} and {many} jobs");
        assert!(peaks[1] <= 32 << 10 && peaks[1] <= peaks[0] + (2 << 10), "{args:?}: {peaks:?} KiB");
    }
}

#[test]
fn an_endless_record_does_not_grow_the_host() {
    let block = vec![b'x'; 8 << 20];
    let mut child = Guard::spawn(seqpool(&["run", "-j1", "echo"]));
    let mut stdin = child.0.stdin.take().unwrap();
    let stderr = gather(child.0.stderr.take().unwrap());
    (0..32).for_each(|_| stdin.write_all(&block).unwrap());
    let peak = peak_kib(child.pid());
    drop(stdin);
    assert_eq!(child.wait(LIMIT).code(), Some(1));
    // The buffer doubles up to the limit, so for a moment there are a half and a whole.
    assert!(peak < 140 << 10, "{peak} KiB");
    let stderr = String::from_utf8(stderr.recv_timeout(LIMIT).unwrap()).unwrap();
    assert!(stderr.starts_with("seqpool: job 1: rejected: ") && stderr.contains("268435456"), "{stderr}");
}

#[test]
fn results_are_flushed_while_the_input_stays_open() {
    let mut child = Guard::spawn(seqpool(&["run", "-j2", "-k", "upper"]));
    let mut stdin = child.0.stdin.take().unwrap();
    let out = lines(child.0.stdout.take().unwrap());
    for word in ["one", "two", "three"] {
        stdin.write_all(format!("{word}\n").as_bytes()).unwrap();
        assert_eq!(out.recv_timeout(Duration::from_secs(10)).unwrap(), word.to_ascii_uppercase());
    }
    // Half a record is no job yet.
    stdin.write_all(b"fo").unwrap();
    assert!(out.recv_timeout(Duration::from_millis(100)).is_err());
    stdin.write_all(b"ur\n").unwrap();
    assert_eq!(out.recv_timeout(Duration::from_secs(10)).unwrap(), "FOUR");
    drop(stdin);
    assert_eq!(child.wait(LIMIT).code(), Some(0));
}

#[test]
fn an_idle_run_uses_no_cpu() {
    let mut child = Guard::spawn(seqpool(&["run", "-j2", "sleep"]));
    let mut stdin = child.0.stdin.take().unwrap();
    let out = lines(child.0.stdout.take().unwrap());
    stdin.write_all(b"1ms\n").unwrap();
    out.recv_timeout(LIMIT).unwrap();
    thread::sleep(Duration::from_millis(500));
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    thread::sleep(Duration::from_secs(1));
    assert!(ticks() - before <= 1, "busy while idle");
    drop(stdin);
    child.wait(LIMIT);
}

#[test]
fn inherited_streams_stay_blocking() {
    let (input_read, mut input_write) = std::io::pipe().unwrap();
    let (output_read, output_write) = std::io::pipe().unwrap();
    let (error_read, error_write) = std::io::pipe().unwrap();
    let ours: [OwnedFd; 3] = [
        input_read.try_clone().unwrap().into(),
        output_write.try_clone().unwrap().into(),
        error_write.try_clone().unwrap().into(),
    ];
    let is_blocking = || {
        ours.iter().all(|fd| {
            !OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK)
        })
    };
    let mut command = seqpool(&["run", "-j2", "fault"]);
    command.stdin(input_read).stdout(output_write).stderr(error_write);
    let mut child = Guard::spawn(command);
    let out = lines(output_read);
    for _ in 0..3 {
        input_write.write_all(b"ok\n").unwrap();
        out.recv_timeout(LIMIT).unwrap();
        assert!(is_blocking());
    }
    input_write.write_all(b"exit 3\n").unwrap();
    drop(input_write);
    assert_eq!(child.wait(LIMIT).code(), Some(1));
    assert!(is_blocking());
    drop(error_read);
}

#[test]
fn results_and_lines_in_one_pipe_do_not_cut_each_other() {
    let (mut read, write) = std::io::pipe().unwrap();
    let mut command = seqpool(&["run", "-j2", "fault"]);
    command.stdout(write.try_clone().unwrap()).stderr(write);
    let mut child = Guard::spawn(command);
    // The command holds our copies of the writing end until it is dropped, which `spawn` has done.
    let mut stdin = child.0.stdin.take().unwrap();
    let input = "ok\nok\nok\nerror it broke\n".repeat(50_000);
    thread::spawn(move || stdin.write_all(input.as_bytes()));
    thread::sleep(Duration::from_millis(300));
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait(LIMIT).code(), Some(1));
    assert_eq!(text.lines().filter(|l| *l == "ok").count(), 150_000);
    assert_eq!(
        text.lines().filter(|l| l.starts_with("seqpool: job ") && l.ends_with(": failed: it broke")).count(),
        50_000
    );
}

// ---- readers that stall or leave

#[test]
fn a_stalled_reader_does_not_stop_deadlines() {
    let count = 300_000;
    let input = "hang\n".to_owned() + &"ok\n".repeat(count);
    let mut child = Guard::spawn(seqpool(&["run", "-j2", "--timeout", "500ms", "fault"]));
    let errors = lines(child.0.stderr.take().unwrap());
    let mut stdin = child.0.stdin.take().unwrap();
    thread::spawn(move || stdin.write_all(input.as_bytes()));
    // Nobody reads standard output yet.
    let line = errors.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(line, "seqpool: job 1: timed out after 500ms");
    thread::sleep(Duration::from_millis(200));
    assert!(child.0.try_wait().unwrap().is_none());
    assert!(peak_kib(child.pid()) <= 32 << 10, "bounded while nobody reads");
    let stdout = gather(child.0.stdout.take().unwrap());
    assert_eq!(child.wait(LIMIT).code(), Some(1));
    assert_eq!(stdout.recv_timeout(LIMIT).unwrap().len(), 3 * count);
}

#[test]
fn a_closed_standard_output_ends_it_by_sigpipe() {
    for handler in ["echo", "fault"] {
        let mut child = Guard::spawn(seqpool(&["run", "-j2", handler]));
        let stderr = gather(child.0.stderr.take().unwrap());
        let mut stdin = child.0.stdin.take().unwrap();
        let mut stdout = child.0.stdout.take().unwrap();
        let writing = thread::spawn(move || while stdin.write_all(b"ok\n").is_ok() {});
        stdout.read_exact(&mut [0; 3]).unwrap();
        drop(stdout);
        assert_eq!(child.wait(LIMIT).signal(), Some(13), "{handler}");
        writing.join().unwrap();
        // End of file: no child is left that holds it.
        assert_eq!(stderr.recv_timeout(Duration::from_secs(5)).unwrap(), b"", "quietly");
    }
}

#[test]
fn a_closed_standard_error_is_no_trouble() {
    let mut child = Guard::spawn(seqpool(&["run", "-j2", "fault"]));
    drop(child.0.stderr.take());
    let stdout = gather(child.0.stdout.take().unwrap());
    let mut stdin = child.0.stdin.take().unwrap();
    let input = "exit 1\nok\nerror x\nok\n".repeat(5);
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    assert_eq!(child.wait(LIMIT).code(), Some(1));
    assert_eq!(stdout.recv_timeout(LIMIT).unwrap().len(), 30);
}

#[test]
fn a_full_device_is_reported() {
    let Ok(full) = File::options().write(true).open("/dev/full") else { return };
    let mut command = seqpool(&["run", "echo"]);
    command.stdout(full);
    let mut child = Guard::spawn(command);
    let stderr = gather(child.0.stderr.take().unwrap());
    child.0.stdin.take().unwrap().write_all(b"x\n").unwrap();
    assert_eq!(child.wait(LIMIT).code(), Some(2));
    assert_eq!(stderr.recv_timeout(LIMIT).unwrap(), b"seqpool: standard output: No space left on device\n");
}

// ---- signals

/// Starts jobs, and waits until the first result shows that the run is under way.
fn under_way(command: Command, first: &str, rest: &str) -> (Guard, std::process::ChildStdin, mpsc::Receiver<String>) {
    let mut child = Guard::spawn(command);
    let mut stdin = child.0.stdin.take().unwrap();
    let out = lines(child.0.stdout.take().unwrap());
    stdin.write_all(format!("{first}\n").as_bytes()).unwrap();
    out.recv_timeout(LIMIT).unwrap();
    stdin.write_all(rest.as_bytes()).unwrap();
    // Time for the jobs to be started, not needed for any of them to be right.
    thread::sleep(Duration::from_millis(150));
    (child, stdin, out)
}

#[test]
fn the_first_signal_drains() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (mut child, _stdin, out) = under_way(seqpool(&["run", "-j2", "sleep"]), "1ms", "600ms\n601ms\n");
        child.signal(signal);
        let status = child.wait(LIMIT);
        assert_eq!(status.code(), Some(128 + signal as i32), "though its input is still open");
        let mut got: Vec<String> = out.iter().collect();
        got.sort_unstable();
        assert_eq!(got, ["600ms", "601ms"], "what was in flight is finished");
    }
}

#[test]
fn a_drain_does_not_run_the_whole_input() {
    let rest = "200ms\n".repeat(1000);
    let (mut child, _stdin, out) = under_way(seqpool(&["run", "-j2", "sleep"]), "1ms", &rest);
    let started = Instant::now();
    child.signal(Signal::SIGINT);
    assert_eq!(child.wait(LIMIT).code(), Some(130));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(out.iter().count() < 100);
}

#[test]
fn the_second_signal_kills() {
    for (handler, rest) in [("fault", "hang\nignore-term\nhang\n"), ("fault", "leak-child\nhang\nhang\n")] {
        let (mut child, _stdin, _out) = under_way(seqpool(&["run", "-j2", handler]), "ok", rest);
        let errors = lines(child.0.stderr.take().unwrap());
        child.signal(Signal::SIGINT);
        let first = errors.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(first.starts_with("seqpool: SIGINT: "), "{first}");
        assert!(child.0.try_wait().unwrap().is_none());
        let started = Instant::now();
        child.signal(Signal::SIGINT);
        assert_eq!(child.wait(LIMIT).code(), Some(130));
        assert!(started.elapsed() < Duration::from_secs(8));
        // To end of file: nobody is left. One line a job that was cut off.
        let mut cancelled = 0;
        loop {
            match errors.recv_timeout(Duration::from_secs(5)) {
                Ok(line) if line.contains("cancelled: ") => cancelled += 1,
                Ok(line) => assert!(line.starts_with("seqpool: "), "{line}"),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("somebody still holds standard error"),
            }
        }
        assert!(cancelled >= 1, "{cancelled}");
    }
}

#[test]
fn ctrl_c_reaches_the_whole_group_and_still_drains() {
    let mut command = seqpool(&["run", "-j2", "sleep"]);
    command.process_group(0);
    let (mut child, _stdin, out) = under_way(command, "1ms", "500ms\n");
    killpg(child.pid(), Signal::SIGINT).unwrap();
    assert_eq!(child.wait(LIMIT).code(), Some(130));
    assert_eq!(out.iter().collect::<Vec<_>>(), ["500ms"]);
}

// ---- options and usage

#[test]
fn usage_errors_say_what_to_do_and_exit_2() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let missing = format!("{dir}/missing");
    let nowhere = format!("{dir}/missing/stats");
    for (args, said) in [
        (&["-j0", "echo"][..], "-j"),
        (&["-jx", "echo"], "'x' for '--jobs <N>': not a whole number such as 4"),
        (&["-j-1", "echo"], "'-1' for '--jobs <N>': not a whole number such as 4"),
        (&["-j", "", "echo"], "--jobs <N>"),
        (&["-j99999", "echo"], "from 1 to 4096"),
        (&["--keep-odrer", "echo"], "tip: a similar argument exists: '--keep-order'"),
        (&["nope"], "echo, fault, sha256, sleep, spin, upper"),
        (&[], "<HANDLER>"),
        (&["echo", "extra"], "'extra'"),
        (&["-a", &missing, "echo"], "No such file or directory"),
        (&["-a", dir, "echo"], "directory"),
        (&["--timeout", "soon", "echo"], "duration"),
        (&["--timeout", "0", "echo"], "--timeout"),
        (&["--max-jobs-per-worker", "0", "echo"], "--max-jobs-per-worker 0: no job could run"),
        (&["--max-jobs-per-worker", "few", "echo"], "'few' for '--max-jobs-per-worker <N>'"),
        (&["--nice", "20", "echo"], "20"),
        (&["--nice=-21", "echo"], "-20..=19"),
        (&["--transport", "pigeon", "echo"], "blocking, seqpacket"),
        (&["--stats", &nowhere, "echo"], "No such file or directory"),
        (&["--stats", dir, "echo"], "directory"),
        (&["--trace", &nowhere, "echo"], "--trace: /"),
        (&["--trace", &nowhere, "echo"], "No such file or directory"),
        (&["--trace", dir, "echo"], "directory"),
        (&["--stats", &missing, "--trace", &missing, "echo"], "--stats and --trace: one file cannot be both"),
    ] {
        let ran = run(args, "x\n");
        assert_eq!((ran.code(), ran.stdout.len()), (2, 0), "{args:?}");
        assert!(ran.stderr.contains(said), "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.lines().all(|l| l.starts_with("seqpool: ")), "{args:?}: {}", ran.stderr);
    }
    for args in [&[][..], &["frobnicate"]] {
        let ran = run_command(seqpool(args), b"");
        assert_eq!(ran.code(), 2);
        assert!(!ran.stderr.is_empty() && ran.stderr.lines().all(|l| l.starts_with("seqpool: ")), "{}", ran.stderr);
    }
}

#[test]
fn an_unknown_option_is_not_proposed_as_a_handler() {
    let ran = run(&["--prefetch", "3", "upper"], "");
    assert_eq!(ran.code(), 2);
    assert!(ran.stderr.starts_with("seqpool: unexpected argument '--prefetch' found\n"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("-- --prefetch"), "{}", ran.stderr);
}

#[test]
fn the_last_of_equal_options_counts() {
    // So that an alias with options of its own can be overridden.
    let args = ["-j0", "--timeout", "1ms", "-k", "-j2", "--timeout", "1m", "-k", "sleep"];
    assert_eq!(results(&args, "50ms\n0\n"), b"50ms\n0\n");
}

#[test]
fn too_few_descriptors_for_the_workers_says_what_to_do() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 20; exec \"$0\" run -j64 echo", env!("CARGO_BIN_EXE_seqpool")]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = run_command(command, b"x\n");
    assert_eq!((ran.code(), ran.stdout.len()), (2, 0));
    assert!(ran.stderr.starts_with("seqpool: the pool could not start: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("fewer workers with -j") && ran.stderr.contains("ulimit -n"), "{}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 1);
}

#[test]
fn options_that_do_not_work_yet_do_not_exist() {
    let later = ["--framing=lines", "--prefetch=1", "--each"];
    for option in later {
        let ran = run(&[option, "echo"], "");
        assert_eq!(ran.code(), 2, "{option}");
        assert!(ran.stderr.starts_with("seqpool: unexpected argument '--"), "{option}: {}", ran.stderr);
    }
    for command in [&["serve"][..], &["submit"], &["status"], &["study", "nonsense"]] {
        assert_eq!(run_command(seqpool(command), b"").code(), 2, "{command:?}");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for (args, said) in [
        (&["--help"][..], "Examples:"),
        (&["run", "--help"], "leak-child"),
        (&["run", "-h"], "--keep-order"),
        (&["--version"], concat!("seqpool ", env!("CARGO_PKG_VERSION"))),
        (&["bench", "--help"], "--repeat"),
        (&["run", "-V"], concat!("seqpool ", env!("CARGO_PKG_VERSION"))),
    ] {
        let ran = run_command(seqpool(args), b"");
        assert_eq!((ran.code(), ran.stderr.as_str()), (0, ""), "{args:?}");
        assert!(String::from_utf8(ran.stdout).unwrap().contains(said), "{args:?}");
    }
}

#[test]
fn help_that_cannot_be_written_is_reported() {
    let mut command = seqpool(&["run", "--help"]);
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    let mut child = Guard::spawn(command);
    let stderr = gather(child.0.stderr.take().unwrap());
    assert_eq!(child.wait(LIMIT).code(), Some(2));
    assert_eq!(stderr.recv_timeout(LIMIT).unwrap(), b"seqpool: standard output: No space left on device\n");
}

#[test]
fn timeouts_are_neither_early_nor_lost() {
    let started = Instant::now();
    let ran = run(&["-j2", "--timeout", "0.3", "fault"], "hang\nok\nhang\nsleep 1ms\n");
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert_eq!((ran.code(), ran.stdout.as_slice()), (1, &b"ok\nok\n"[..]));
    assert_eq!(ran.job_lines(), [(1, "timed out after 300ms"), (3, "timed out after 300ms")]);
}

#[test]
fn nice_is_accepted() {
    assert_eq!(results(&["--nice", "5", "echo"], "x\n"), b"x\n");
}

#[test]
fn a_nice_value_that_needs_privileges_is_a_usage_error() {
    // Root may do anything, so as root this is another user, who must be able to reach the program.
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("seqpool");
    std::fs::copy(env!("CARGO_BIN_EXE_seqpool"), &program).unwrap();
    let mut command = Command::new("nice");
    command.args(["-n", "9"]).arg(&program).args(["run", "--nice", "3", "echo"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.uid(65534);
    }
    let mut child = Guard::spawn(command);
    let stderr = gather(child.0.stderr.take().unwrap());
    assert_eq!(child.wait(LIMIT).code(), Some(2));
    let stderr = String::from_utf8(stderr.recv_timeout(LIMIT).unwrap()).unwrap();
    let want = "seqpool: --nice 3: Permission denied: less than 9 needs root's privileges: give 9 or more\n";
    assert_eq!(stderr, want);
}

#[test]
fn stats_count_every_job_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stats.json");
    let input = "ok\nok\nerror x\npanic\nsignal 9\nhang\n";
    let ran = run(&["-j2", "--timeout", "200ms", "--stats", path.to_str().unwrap(), "fault"], input);
    assert_eq!(ran.code(), 1);
    let text = std::fs::read_to_string(&path).unwrap();
    let number = |key: &str| -> f64 {
        let (_, rest) = text.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("{key}: {text}"));
        rest[..rest.find([',', '}']).unwrap()].parse().unwrap()
    };
    for (key, want) in [
        ("jobs", 6.0),
        ("done", 2.0),
        ("failed", 2.0),
        ("crashed", 1.0),
        ("timed_out", 1.0),
        ("cancelled", 0.0),
        ("rejected", 0.0),
    ] {
        assert_eq!(number(key), want, "{key}");
    }
    assert!(number("respawns") >= 1.0 && number("wall_s") >= 0.2, "{text}");
    assert_eq!(number("recycled"), 0.0, "{text}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file left");
}

#[test]
fn workers_are_recycled_and_nobody_notices() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stats.json");
    let input: String = (0..1001).map(|i| format!("line {i}\n")).collect();
    let args = ["-j2", "-k", "--max-jobs-per-worker", "10", "--stats", path.to_str().unwrap(), "echo"];
    assert_eq!(results(&args, &input), input.as_bytes());
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(stats["done"], 1001, "{stats}");
    assert!((99..=100).contains(&stats["recycled"].as_u64().unwrap()), "{stats}");
}

#[test]
fn stats_go_to_a_pipe_or_device_in_place() {
    assert_eq!(results(&["--stats", "/dev/null", "echo"], "x\n"), b"x\n");
    let link_and_file = tempfile::tempdir().unwrap();
    let (link, file) = (link_and_file.path().join("link"), link_and_file.path().join("file"));
    std::fs::write(&file, "old").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    results(&["--stats", link.to_str().unwrap(), "echo"], "x\n");
    assert!(link.is_symlink() && std::fs::read_to_string(&file).unwrap().contains("\"jobs\":1"));
}

// ---- traces

/// One event, as the trace format has it.
#[derive(Clone, Debug, serde::Deserialize)]
struct TraceEvent {
    ph: char,
    pid: u64,
    tid: u64,
    /// Units: microseconds, as `dur`.
    ts: Option<f64>,
    dur: Option<f64>,
    id: Option<String>,
    cat: Option<String>,
    name: String,
    #[serde(default)]
    args: serde_json::Map<String, serde_json::Value>,
}

impl TraceEvent {
    fn job(&self) -> u64 {
        self.args["job"].as_u64().unwrap()
    }

    fn ts(&self) -> f64 {
        self.ts.unwrap()
    }

    /// Of a complete event.
    fn end(&self) -> f64 {
        self.ts() + self.dur.unwrap()
    }
}

/// Rounding of a sum of two times. Units: microseconds.
const ROUNDING: f64 = 0.002;

/// Runs with a trace, whose file is checked against the format: names of all tracks, ends for all beginnings, no time
/// before 0, and nothing on a thread's track that overlaps.
fn traced(args: &[&str], input: impl AsRef<[u8]>) -> (Ran, Vec<TraceEvent>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace.json");
    let ran = run(&[&["--trace", path.to_str().unwrap()], args].concat(), input);
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file left");
    assert_eq!(trace["otherData"]["dropped_steps"], 0);
    let events: Vec<TraceEvent> = serde_json::from_value(trace["traceEvents"].clone()).unwrap();
    let named = |of: &str, e: &TraceEvent| {
        let same =
            |n: &&TraceEvent| n.ph == 'M' && n.name == of && n.pid == e.pid && (of != "thread_name" || n.tid == e.tid);
        events.iter().filter(same).count()
    };
    let mut begun = std::collections::HashMap::new();
    for event in &events {
        assert!("MXbei".contains(event.ph), "{event:?}");
        assert_eq!(named("process_name", event), 1, "{event:?}");
        if event.ph == 'M' {
            continue;
        }
        assert_eq!(named("thread_name", event), 1, "{event:?}");
        assert!(event.ts() >= 0.0 && event.cat.is_some(), "{event:?}");
        match event.ph {
            'b' => assert!(begun.insert(event.id.clone().unwrap(), event).is_none(), "{event:?}"),
            'e' => {
                let begin = begun.remove(event.id.as_ref().unwrap()).unwrap();
                assert!(begin.ts() <= event.ts(), "{begin:?} {event:?}");
                let key = |e: &TraceEvent| (e.pid, e.tid, e.cat.clone(), e.name.clone());
                assert_eq!(key(begin), key(event));
            }
            _ => {}
        }
    }
    assert!(begun.is_empty(), "{begun:?}");
    let mut spans: Vec<&TraceEvent> = events.iter().filter(|e| e.ph == 'X').collect();
    spans.sort_by(|a, b| (a.pid, a.ts()).partial_cmp(&(b.pid, b.ts())).unwrap());
    for pair in spans.windows(2).filter(|pair| pair[0].pid == pair[1].pid) {
        assert!(pair[0].end() <= pair[1].ts() + ROUNDING, "{pair:?}");
    }
    (ran, events)
}

/// The spans of this name that are not on a thread's own track: job, process, beginning and end.
fn async_spans(events: &[TraceEvent], name: &str) -> Vec<(u64, u64, f64, f64)> {
    let end = |id: &Option<String>| events.iter().find(|e| e.ph == 'e' && e.id == *id).unwrap().ts();
    let begins = events.iter().filter(|e| e.ph == 'b' && e.name == name);
    begins.map(|e| (e.job(), e.pid, e.ts(), end(&e.id))).collect()
}

#[test]
fn a_trace_shows_each_job_from_its_admission_to_its_outcome() {
    const JOBS: u64 = 12;
    for transport in TRANSPORTS {
        let (ran, events) = traced(&["-j2", "-k", "--transport", transport, "sleep"], "10ms\n".repeat(JOBS as usize));
        assert_eq!((ran.code(), ran.stderr.as_str()), (0, ""));
        let computed: Vec<&TraceEvent> = events.iter().filter(|e| e.ph == 'X').collect();
        assert_eq!(computed.len(), JOBS as usize);
        let (first, last) =
            computed.iter().fold((f64::MAX, 0f64), |(first, last), e| (first.min(e.ts()), last.max(e.end())));
        let total: f64 = computed.iter().map(|e| e.dur.unwrap()).sum();
        // Together with no overlap on either track: each is on its own worker's.
        assert!(last - first < 0.8 * total, "two workers side by side: {first} to {last} µs for {total} µs");
        for job in 1..=JOBS {
            let one = |name: &str| {
                let found: Vec<_> = async_spans(&events, name).into_iter().filter(|s| s.0 == job).collect();
                assert!(!found.is_empty(), "{name} of job {job}");
                *found.last().unwrap()
            };
            let compute: Vec<_> = computed.iter().filter(|e| e.job() == job).collect();
            assert_eq!(compute.len(), 1, "job {job}");
            let compute = compute[0];
            assert_eq!(compute.name, format!("job {job}"));
            assert!((10_000.0..1_000_000.0).contains(&compute.dur.unwrap()), "{compute:?}");
            let (life, unsent, waiting, returning) = (one("job"), one("unsent"), one("waiting"), one("returning"));
            assert_eq!((waiting.1, returning.1), (compute.pid, compute.pid), "in the worker's slot");
            assert_ne!((life.1, unsent.1), (compute.pid, compute.pid));
            let times = [
                life.2,
                unsent.2,
                unsent.3,
                waiting.2,
                waiting.3,
                compute.ts(),
                compute.end() - ROUNDING,
                returning.2,
                returning.3,
                life.3,
            ];
            assert!(times.windows(2).all(|pair| pair[0] <= pair[1] + 2.0 * ROUNDING), "job {job}: {times:?}");
        }
        let sent: u64 = events.iter().filter(|e| e.name == "sent").map(|e| e.args["jobs"].as_u64().unwrap()).sum();
        assert!(sent >= JOBS);
    }
}

#[test]
fn a_trace_names_what_was_not_done() {
    let input = "ok\nsignal 9\nerror x\npanic\nhang\nok\n";
    let (ran, events) = traced(&["-j2", "--timeout", "100ms", "fault"], input);
    assert_eq!(ran.code(), 1);
    let computed = |job: u64| {
        let found: Vec<_> = events.iter().filter(|e| e.ph == 'X' && e.job() == job).collect();
        assert_eq!(found.len(), 1, "job {job}: {found:?}");
        found[0]
    };
    for (job, outcome) in [(2, "crashed: signal 9 (SIGKILL)"), (3, "failed"), (4, "panicked"), (5, "timed out")] {
        let event = computed(job);
        assert_eq!((event.name.as_str(), &event.args["outcome"]), (&*format!("job {job}: {outcome}"), &outcome.into()));
        // Who dies tells no times.
        assert_eq!(event.args.contains_key("note"), [2, 5].contains(&job), "{event:?}");
        let life = events.iter().find(|e| e.ph == 'b' && e.name == "job" && e.job() == job).unwrap();
        assert_eq!(life.args["outcome"], outcome);
    }
    for job in [1, 6] {
        assert_eq!(computed(job).name, format!("job {job}"));
        assert!(!computed(job).args.contains_key("outcome"));
    }
    let hung_us = computed(5).dur.unwrap();
    assert!((90_000.0..1_000_000.0).contains(&hung_us), "{hung_us} µs of a job that is killed after 100 ms");
}

#[test]
fn a_trace_shows_jobs_that_were_moved() {
    let dir = tempfile::tempdir().unwrap();
    let stats = dir.path().join("stats.json");
    let input = format!("{}sleep 300ms\n{}", "ok\n".repeat(200), "ok\n".repeat(200));
    let (ran, events) = traced(&["-j2", "--stats", stats.to_str().unwrap(), "fault"], input);
    assert_eq!((ran.code(), ran.stderr.as_str()), (0, ""));
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&stats).unwrap()).unwrap();
    let moved: Vec<&TraceEvent> = events.iter().filter(|e| e.name.ends_with(" taken back")).collect();
    assert!(!moved.is_empty(), "what waits behind the sleeper goes to the other worker");
    assert_eq!(stats["reclaimed_jobs"], moved.len());
    for event in &moved {
        assert_eq!((event.ph, &event.name), ('i', &format!("job {} taken back", event.job())));
        let computed = events.iter().find(|e| e.ph == 'X' && e.job() == event.job()).unwrap();
        assert!(event.ts() <= computed.ts() + ROUNDING, "{event:?} {computed:?}");
    }
    assert!(moved.iter().any(|e| events.iter().any(|c| c.ph == 'X' && c.job() == e.job() && c.pid != e.pid)));
    assert_eq!(events.iter().filter(|e| e.ph == 'X').count(), 401, "each ran once");
}

#[test]
fn a_trace_without_room_for_all_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace.json");
    // Seven steps each, and room for 2^20.
    let ran = run(&["-j2", "--trace", path.to_str().unwrap(), "echo"], numbers(150_000));
    assert_eq!(ran.code(), 0, "{}", ran.stderr);
    let (dropped, all) = ran
        .stderr
        .strip_prefix("seqpool: --trace: the first ")
        .and_then(|l| l.strip_suffix(" steps found no room; the file begins after them\n"))
        .and_then(|l| l.split_once(" of "))
        .unwrap_or_else(|| panic!("{}", ran.stderr));
    let (dropped, all): (u64, u64) = (dropped.parse().unwrap(), all.parse().unwrap());
    assert!(all >= 7 * 150_000 && all - dropped == 1 << 20, "{}", ran.stderr);
    let mut file = File::open(&path).unwrap();
    let mut end = String::new();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(-80)).unwrap();
    file.read_to_string(&mut end).unwrap();
    let said = format!("\n],\"otherData\":{{\"recorded_steps\":{all},\"dropped_steps\":{dropped}}}}}\n");
    assert!(end.ends_with(&said), "{end}");
}

#[test]
fn a_trace_is_complete_or_absent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace.json");
    std::fs::write(&path, "old").unwrap();
    let only_old = || {
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file left");
        std::fs::read_to_string(&path).unwrap()
    };
    let trace = path.to_str().unwrap();
    for args in [&["--trace", trace, "--nice", "20", "echo"][..], &["--trace", trace, "-j99999", "echo"]] {
        assert_eq!(run(args, "x\n").code(), 2, "{args:?}");
        assert_eq!(only_old(), "old", "{args:?}");
    }
    assert_eq!(results(&["--trace", "/dev/null", "echo"], "x\n"), b"x\n");
    let ran = run(&["--trace", "/dev/full", "echo"], "x\n");
    assert_eq!((ran.code(), ran.stdout.as_slice()), (2, &b"x\n"[..]));
    assert_eq!(ran.stderr, "seqpool: --trace: No space left on device\n");

    let command = seqpool(&["run", "-j2", "--trace", trace, "fault"]);
    let (mut child, _stdin, stdout) = under_way(command, "ok", &"sleep 50ms\n".repeat(1000));
    child.signal(Signal::SIGINT);
    assert_eq!(child.wait(LIMIT).code(), Some(130));
    let done = 1 + stdout.iter().count();
    let trace: serde_json::Value = serde_json::from_str(&only_old()).unwrap();
    let computed = trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "X").count();
    assert_eq!(computed, done, "what was begun was finished");
}

#[test]
fn progress_off_a_terminal_is_plain_lines() {
    let ran = run(&["-j2", "--bar", "sleep"], "1200ms\n1ms\n");
    assert_eq!(ran.code(), 0);
    assert!(ran.stderr.lines().count() >= 2 && !ran.stderr.contains('\x1b'), "{}", ran.stderr);
    for line in ran.stderr.lines() {
        assert!(line.starts_with("seqpool: ") && !line.contains("job "), "{line}");
    }
}

// ---- on a terminal

/// A terminal with a program of ours in its foreground.
struct Terminal {
    child: Guard,
    ours: File,
    shown: mpsc::Receiver<Vec<u8>>,
    text: String,
}

impl Terminal {
    /// Starts `command` with this terminal as the standard streams that it names.
    fn start(mut command: Command, is_stdin: bool, is_stdout: bool) -> Self {
        let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = nix::pty::openpty(Some(&size), None).unwrap();
        let theirs = || Stdio::from(pair.slave.try_clone().unwrap());
        command.stderr(theirs());
        if is_stdin {
            command.stdin(theirs());
        }
        if is_stdout {
            command.stdout(theirs());
        }
        // SAFETY: between fork and exec, system calls on numbers only.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                control_terminal()
            });
        }
        let child = Guard::spawn(command);
        let ours = File::from(pair.master);
        let mut reading = ours.try_clone().unwrap();
        let (send, shown) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error is the end: nobody holds the other side any more.
            while let Ok(n @ 1..) = reading.read(&mut buffer) {
                if send.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, ours, shown, text: String::new() }
    }

    fn keys(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads until the terminal has shown this.
    fn expect(&mut self, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.text.contains(what) {
            let left = deadline.saturating_duration_since(Instant::now());
            let bytes = self.shown.recv_timeout(left).unwrap_or_else(|e| panic!("{what:?}: {e}: {:?}", self.text));
            self.text.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// All that it has shown when nobody holds it any more.
    fn end(mut self) -> (ExitStatus, String) {
        let status = self.child.wait(LIMIT);
        while let Ok(bytes) = self.shown.recv_timeout(Duration::from_secs(5)) {
            self.text.push_str(&String::from_utf8_lossy(&bytes));
        }
        (status, self.text)
    }
}

/// Makes standard error this session's terminal.
fn control_terminal() -> std::io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number.
    let result = unsafe { libc::ioctl(2, libc::TIOCSCTTY, 0) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn control_c_typed_in_a_terminal_drains() {
    let mut terminal = Terminal::start(seqpool(&["run", "-j2", "upper"]), true, true);
    terminal.keys("abc\n");
    terminal.expect("ABC\r\n");
    terminal.keys("\x03");
    let (status, text) = terminal.end();
    assert_eq!(status.code(), Some(130), "{text:?}");
    assert!(
        text.ends_with("seqpool: SIGINT: no new jobs, 0 to finish; the next one ends them at once\r\n"),
        "{text:?}"
    );
}

#[test]
fn control_c_typed_twice_in_a_terminal_kills() {
    let mut terminal = Terminal::start(seqpool(&["run", "-j2", "fault"]), true, true);
    terminal.keys("ok\nhang\nignore-term\n");
    terminal.expect("\r\nok\r\n");
    thread::sleep(Duration::from_millis(150));
    terminal.keys("\x03");
    terminal.expect("seqpool: SIGINT: no new jobs, 2 to finish");
    terminal.keys("\x03");
    let (status, text) = terminal.end();
    assert_eq!(status.code(), Some(130), "{text:?}");
    assert_eq!(text.matches("cancelled: ").count(), 2, "{text:?}");
}

#[test]
fn the_end_of_input_typed_in_a_terminal_ends_it() {
    let mut terminal = Terminal::start(seqpool(&["run", "-j2", "-k", "upper"]), true, true);
    terminal.keys("abc\n");
    terminal.expect("ABC\r\n");
    terminal.keys("d\n\x04");
    let (status, text) = terminal.end();
    assert_eq!((status.code(), text.ends_with("D\r\n")), (Some(0), true), "{text:?}");
}

#[test]
fn progress_on_a_terminal_moves_and_leaves_one_line() {
    let mut terminal = Terminal::start(seqpool(&["run", "-j2", "--bar", "fault"]), false, false);
    let stdout = gather(terminal.child.0.stdout.take().unwrap());
    let mut stdin = terminal.child.0.stdin.take().unwrap();
    stdin.write_all("ok\nerror x\nsleep 400ms\n".as_bytes()).unwrap();
    drop(stdin);
    let (status, text) = terminal.end();
    assert_eq!(status.code(), Some(1), "{text:?}");
    assert!(text.contains("\x1b[2K") && text.contains("seqpool: job 2: failed: x"), "{text:?}");
    let has_fraction = text.split("/s").any(|before| {
        let rate = before.rsplit(' ').next().unwrap();
        rate.contains('.') && rate.bytes().any(|b| b.is_ascii_digit())
    });
    assert!(!has_fraction, "whole jobs: {text:?}");
    // The moving line is gone, and what stays ends with a newline.
    let last = text.rsplit(['\r', '\n']).find(|line| !line.is_empty()).unwrap().trim_start_matches("\x1b[2K");
    assert!(last.starts_with("seqpool: 2 done, 1 not, ") && text.ends_with(" s\r\n"), "{text:?}");
    assert_eq!(stdout.recv_timeout(LIMIT).unwrap(), b"ok\nok\n");
}

#[test]
fn progress_and_results_on_one_terminal_do_not_cut_each_other() {
    let mut terminal = Terminal::start(seqpool(&["run", "-j2", "-k", "--bar", "sleep"]), false, true);
    let mut stdin = terminal.child.0.stdin.take().unwrap();
    stdin.write_all(b"1ms\n1200ms\n2ms\n").unwrap();
    drop(stdin);
    let (status, text) = terminal.end();
    assert_eq!(status.code(), Some(0), "{text:?}");
    let (ours, results): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("seqpool: "));
    assert_eq!(results, ["1ms", "1200ms", "2ms"], "{text:?}");
    assert!(ours.len() >= 2 && !text.contains('\x1b'), "{text:?}");
}

#[test]
fn no_input_is_no_trouble() {
    assert_eq!(results(&["echo"], ""), b"");
    let mut command = seqpool(&["run", "-k", "echo"]);
    command.stdin(Stdio::null());
    let mut child = Guard::spawn(command);
    assert_eq!(child.wait(LIMIT).code(), Some(0));
}
