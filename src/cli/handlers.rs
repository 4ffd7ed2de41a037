//! The built-in handlers. They run in the workers, one job at a time.

use super::args::{parse_duration, parse_size};
use super::report::plain_error;
use crate::sys::{self, Forked, Linux, Sys};
use crate::{Builder, HandlerError, Reply, Request};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Every built-in handler.
pub(crate) const NAMES: &[&str] = &["echo", "fault", "sha256", "sleep", "spin", "upper"];

const FAULTS: &str = "ok, error MSG, panic, exit N, signal N, abort, stack-overflow, hang, ignore-term, sleep DUR, \
                      alloc SIZE, leak-child, print TEXT";

/// How much of a file is read at once.
const FILE_CHUNK_SIZE: usize = 128 << 10;
/// How long a process that `leak-child` leaves behind lives on its own.
const LEAKED_CHILD_LIFE: Duration = Duration::from_secs(1000);

type Result<T = ()> = std::result::Result<T, HandlerError>;

/// Registers them all.
pub(crate) fn register(builder: Builder) -> Builder {
    let mut file_buffer: Vec<u8> = Vec::new();
    builder
        .handler("echo", |_request, reply| {
            reply.forward(..);
            Ok(())
        })
        .handler("fault", fault)
        .handler("sha256", move |request, reply| sha256(request.body(), &mut file_buffer, reply))
        .handler("sleep", |request, reply| {
            std::thread::sleep(duration(request.body())?);
            reply.forward(..);
            Ok(())
        })
        .handler("spin", |request, reply| {
            let started = Instant::now();
            let duration = duration(request.body())?;
            while started.elapsed() < duration {
                std::hint::spin_loop();
            }
            reply.forward(..);
            Ok(())
        })
        .handler("upper", |request, reply| {
            let body = request.body();
            upper(body, reply.extend_by(body.len()));
            Ok(())
        })
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| format!("'{}' is not text", String::from_utf8_lossy(bytes)).into())
}

fn duration(bytes: &[u8]) -> Result<Duration> {
    Ok(parse_duration(text(bytes)?)?)
}

/// Fills `reply` with `body` in upper case.
///
/// One pass from one slice to the other: the compiler makes vector instructions of it, also for short bodies, and it
/// measured faster there than a copy followed by `make_ascii_uppercase`, or than whole vectors over a padded copy.
#[inline]
pub(super) fn upper(body: &[u8], reply: &mut [u8]) {
    for (to, from) in reply.iter_mut().zip(body) {
        *to = from.to_ascii_uppercase();
    }
}

/// The line that sha256sum prints for this path.
fn sha256(path: &[u8], buffer: &mut Vec<u8>, reply: &mut Reply<'_>) -> Result {
    let path_of = Path::new(OsStr::from_bytes(path));
    let digest =
        digest(path_of, buffer).map_err(|e| format!("{}: {}", String::from_utf8_lossy(path), plain_error(&e)))?;
    // The names that would break a line are escaped, and a backslash in front of the line says so.
    let is_escaped = path.iter().any(|b| matches!(b, b'\\' | b'\n' | b'\r'));
    let mut head = Vec::with_capacity(1 + 2 * digest.len() + 2);
    if is_escaped {
        head.push(b'\\');
    }
    for byte in digest {
        write!(head, "{byte:02x}")?;
    }
    head.extend_from_slice(b"  ");
    reply.extend_from_slice(&head);
    if !is_escaped {
        reply.extend_from_slice(path);
        return Ok(());
    }
    for byte in path {
        match byte {
            b'\\' => reply.extend_from_slice(b"\\\\"),
            b'\n' => reply.extend_from_slice(b"\\n"),
            b'\r' => reply.extend_from_slice(b"\\r"),
            other => reply.extend_from_slice(&[*other]),
        }
    }
    Ok(())
}

fn digest(path: &Path, buffer: &mut Vec<u8>) -> std::io::Result<[u8; 32]> {
    // Allocated in the worker by its first job: the host and the other handlers do without.
    buffer.resize(FILE_CHUNK_SIZE, 0);
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(n) => hash.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Does what the body says.
fn fault(request: &Request<'_>, reply: &mut Reply<'_>) -> Result {
    let body = request.body();
    let (word, rest) = match memchr::memchr(b' ', body) {
        Some(at) => (&body[..at], &body[at + 1..]),
        None => (body, &[][..]),
    };
    match (word, rest.is_empty()) {
        (b"ok", true) => {}
        (b"error", true) => return Err("told to fail".into()),
        (b"error", false) => return Err(String::from_utf8_lossy(rest).into()),
        (b"panic", true) => panic!("the fault handler was told to panic"),
        (b"exit", false) => std::process::exit(number(rest, 0, 255)?),
        (b"signal", false) => sys::raise_default(number(rest, 1, SIGNAL_MAX)?),
        (b"abort", true) => std::process::abort(),
        (b"stack-overflow", true) => {
            std::hint::black_box(overflow_stack(0));
        }
        (b"hang", true) => loop {
            std::thread::sleep(LEAKED_CHILD_LIFE);
        },
        (b"ignore-term", true) => {
            sys::block_all();
            loop {
                std::hint::spin_loop();
            }
        }
        (b"sleep", false) => std::thread::sleep(duration(rest)?),
        (b"alloc", false) => allocate(parse_size(text(rest)?)?),
        (b"leak-child", true) => leak_children()?,
        (b"print", _) => {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(rest)?;
            stdout.write_all(b"\n")?;
        }
        _ => return Err(unknown_fault(body)),
    }
    reply.extend_from_slice(b"ok");
    Ok(())
}

fn unknown_fault(body: &[u8]) -> HandlerError {
    format!("unknown fault '{}': known are {FAULTS}", String::from_utf8_lossy(body)).into()
}

/// The highest signal number of Linux.
const SIGNAL_MAX: i32 = 64;

fn number(bytes: &[u8], min: i32, max: i32) -> Result<i32> {
    match text(bytes)?.trim().parse() {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        _ => Err(format!("'{}' is not a number from {min} to {max}", String::from_utf8_lossy(bytes)).into()),
    }
}

#[inline(never)]
fn overflow_stack(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 128]);
    if frame[0] == u64::MAX {
        return 0;
    }
    overflow_stack(depth + 1) + std::hint::black_box(&frame)[127]
}

/// Allocates and touches every page.
fn allocate(size: usize) {
    let mut block = vec![0u8; size];
    for page in block.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(&block);
}

/// Leaves three processes behind: one in the worker's group without its descriptors, one in its group that holds all
/// of them, the worker's socket too, and one that holds them in a session of its own.
fn leak_children() -> Result {
    leak_child(|| {
        let _ = sys::close_all_except(&[]);
    })?;
    leak_child(|| {})?;
    leak_child(|| {
        let _ = sys::become_session_leader();
    })?;
    // The session leader must be one before the job is over, or the test of it would test nothing.
    std::thread::sleep(Duration::from_millis(1));
    Ok(())
}

fn leak_child(prepare: impl FnOnce()) -> Result {
    if Linux.fork()? == Forked::Child {
        // Never back into the worker's loop: that would be a second worker on the same socket.
        prepare();
        std::thread::sleep(LEAKED_CHILD_LIFE);
        sys::exit_now(0)
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_is_ascii_upper_case_at_every_size() {
        let body: Vec<u8> = (0..300u32).map(|i| (i * 7 % 256) as u8).collect();
        for size in 0..body.len() {
            let mut reply = vec![b'x'; size];
            upper(&body[..size], &mut reply);
            assert_eq!(reply, body[..size].to_ascii_uppercase(), "{size}");
        }
    }

    #[test]
    fn numbers_are_checked() {
        assert_eq!(number(b"9", 1, 64).unwrap(), 9);
        for bad in [&b""[..], b"0", b"65", b"nine", b"\xff"] {
            assert!(number(bad, 1, 64).is_err());
        }
    }
}
