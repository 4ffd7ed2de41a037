//! The program run to its end, for tests under Rust's own harness: what it leaves behind is noticed by its pipes.
#![allow(dead_code)]

use std::io::Read;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// No run takes longer, not even of a program that is not optimized on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(120);
/// How long after the end of a run its processes may be there.
pub const GONE_LIMIT: Duration = Duration::from_secs(5);

/// A subcommand of the program, its output in pipes.
pub fn seqpool(command: &str, args: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_seqpool"));
    program.arg(command).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    program
}

/// A child that dies with its test, whatever becomes of that.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads to the end of file, elsewhere.
pub fn gather(mut from: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        let _ = send.send(all);
    });
    receive
}

/// Runs to the end. That its pipes reach end of file says that it left no process behind.
pub fn run(mut command: Command) -> Output {
    let mut child = Guard(command.spawn().unwrap());
    let stdout = child.0.stdout.take().map(gather);
    let stderr = gather(child.0.stderr.take().unwrap());
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "still runs after {LIMIT:?}");
        thread::sleep(Duration::from_millis(5));
    };
    let stdout = stdout.map_or(Vec::new(), |out| out.recv_timeout(GONE_LIMIT).expect("nobody is left behind"));
    let stderr = stderr.recv_timeout(GONE_LIMIT).expect("nobody is left behind");
    Output { status, stdout, stderr }
}
