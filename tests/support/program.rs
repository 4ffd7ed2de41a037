//! Driving other programs, `seqpool` first of all, from a process with one thread.

use super::{descendants, describe, group_members};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeSet;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long [`run_cli`] lets the program run: less than a case's own limit, so that the output seen so far is shown.
pub const RUN_LIMIT: Duration = Duration::from_secs(50);

/// How long a program's output may stay open after its end, held by something it left behind.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);

/// The `seqpool` program, built by Cargo for this test. It exists only with the feature `cli`: such a test says
/// `required-features = ["cli"]` in Cargo.toml.
pub fn seqpool_bin() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seqpool"))
}

/// A command that runs `seqpool` with these arguments.
pub fn cli(args: &[&str]) -> Command {
    let mut command = Command::new(seqpool_bin());
    command.args(args);
    command
}

/// Runs `seqpool` to its end. `stdin` is all of its standard input.
pub fn run_cli(args: &[&str], stdin: impl AsRef<[u8]>) -> Output {
    run(&mut cli(args), stdin, RUN_LIMIT)
}

/// Runs a shell script with `$SEQPOOL` set to the program, for pipelines.
pub fn run_shell(script: &str, stdin: impl AsRef<[u8]>) -> Output {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).env("SEQPOOL", seqpool_bin());
    run(&mut command, stdin, RUN_LIMIT)
}

/// What became of a program.
#[derive(Clone)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub elapsed: Duration,
}

impl Output {
    /// Checks the exit code; shows everything if it is another.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert_eq!((self.code, self.signal), (Some(code), None), "exit code {code} was expected\n{self}");
        self
    }

    /// Checks that this signal ended it; shows everything if not.
    #[track_caller]
    pub fn expect_signal(&self, signal: i32) -> &Self {
        assert_eq!((self.code, self.signal), (None, Some(signal)), "death by signal {signal} was expected\n{self}");
        self
    }

    /// Standard output as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("standard output is UTF-8")
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]).into_owned();
        write!(f, "{}\nended after {:?}: ", self.command, self.elapsed)?;
        match (self.code, self.signal) {
            (Some(code), _) => writeln!(f, "exit code {code}")?,
            (None, Some(signal)) => writeln!(f, "signal {signal}")?,
            (None, None) => writeln!(f, "still running, killed")?,
        }
        writeln!(f, "-- stdout, {} bytes --\n{}", self.stdout.len(), shown(&self.stdout))?;
        writeln!(f, "-- stderr, {} bytes --\n{}", self.stderr.len(), shown(self.stderr.as_bytes()))
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Runs a command to its end, in a process group of its own, feeding it `stdin` through a pipe while its output is
/// read.
///
/// # Panics
/// When the command cannot be started, runs longer than `limit` (its group is killed then), or leaves something behind
/// that holds its output open (which the harness kills, as the case has failed).
#[track_caller]
pub fn run(command: &mut Command, stdin: impl AsRef<[u8]>, limit: Duration) -> Output {
    let shown = format!("{command:?}");
    let start = Instant::now();
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn();
    let mut child = spawned.unwrap_or_else(|error| panic!("{shown}: {error}"));
    let mut pump = Pump::new(&mut child, stdin.as_ref());
    let mut status: Option<(ExitStatus, Instant)> = None;
    let problem = loop {
        if pump.is_done() && status.is_some() {
            break None;
        }
        if start.elapsed() > limit {
            break Some(format!("ran longer than {limit:?}"));
        }
        if status.is_some_and(|(_, ended)| ended.elapsed() > OUTPUT_GRACE) {
            break Some(format!("its output was still open {OUTPUT_GRACE:?} after its end"));
        }
        pump.turn();
        if status.is_none() {
            status = child.try_wait().expect("waitpid").map(|status| (status, Instant::now()));
        }
    };
    let running: String = match problem {
        None => String::new(),
        Some(_) => running_with(child.id() as i32),
    };
    if problem.is_some() && status.is_none() {
        // The child is not reaped yet, so the group's id is still its own.
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGKILL);
        let _ = child.wait();
    }
    let output = Output {
        command: shown,
        code: status.and_then(|(status, _)| status.code()),
        signal: status.and_then(|(status, _)| status.signal()),
        stdout: pump.stdout.bytes,
        stderr: String::from_utf8_lossy(&pump.stderr.bytes).into_owned(),
        elapsed: start.elapsed(),
    };
    if let Some(problem) = problem {
        panic!("{problem}\n{output}{running}");
    }
    output
}

/// One line for each process of the group that `pid` leads, and for each of its descendants.
fn running_with(pid: i32) -> String {
    let pids: BTreeSet<i32> = group_members(pid).into_iter().chain(descendants(pid)).collect();
    pids.into_iter().map(|pid| format!("was running: {}\n", describe(pid))).collect()
}

/// Moves bytes to and from a child without threads.
struct Pump<'a> {
    stdin: Option<std::process::ChildStdin>,
    left: &'a [u8],
    stdout: Stream<std::process::ChildStdout>,
    stderr: Stream<std::process::ChildStderr>,
}

struct Stream<R> {
    pipe: Option<R>,
    bytes: Vec<u8>,
}

impl<R: Read + AsFd> Stream<R> {
    fn new(pipe: Option<R>) -> Self {
        let pipe = pipe.expect("piped");
        set_nonblocking(&pipe);
        Self { pipe: Some(pipe), bytes: Vec::new() }
    }

    /// Reads what is there.
    fn fill(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        match pipe.read_to_end(&mut self.bytes) {
            Ok(_) => self.pipe = None,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("read from a pipe: {error}"),
        }
    }
}

/// Our end only: the two ends of a pipe have flags of their own.
fn set_nonblocking(fd: &impl AsFd) {
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("fcntl");
}

impl<'a> Pump<'a> {
    fn new(child: &mut Child, stdin: &'a [u8]) -> Self {
        let pipe = child.stdin.take().expect("piped");
        set_nonblocking(&pipe);
        let stdin_pipe = if stdin.is_empty() { None } else { Some(pipe) };
        let (stdout, stderr) = (Stream::new(child.stdout.take()), Stream::new(child.stderr.take()));
        Self { stdin: stdin_pipe, left: stdin, stdout, stderr }
    }

    fn is_done(&self) -> bool {
        self.stdout.pipe.is_none() && self.stderr.pipe.is_none()
    }

    /// Waits for something to move, 10 ms at most, and moves it.
    fn turn(&mut self) {
        let mut fds = Vec::new();
        fds.extend(self.stdin.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
        fds.extend(self.stdout.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.stderr.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::from(10u8)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
        self.feed();
        self.stdout.fill();
        self.stderr.fill();
    }

    /// Writes what fits. A reader that is gone is no error: what it did not want is dropped.
    fn feed(&mut self) {
        while let Some(pipe) = &mut self.stdin {
            match pipe.write(self.left) {
                Ok(count) => self.left = &self.left[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::BrokenPipe => self.stdin = None,
                Err(error) => panic!("write to a pipe: {error}"),
            }
            if self.left.is_empty() {
                self.stdin = None;
            }
        }
    }
}
