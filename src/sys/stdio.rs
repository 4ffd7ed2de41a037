//! Standard streams around a fork.
//!
//! # Source
//! `fflush(3)`, `on_exit(3)`, `_exit(2)`.

use std::io::Write;

/// Writes out what Rust's and C's standard streams still hold, so that no copy of it is left to be written twice.
pub(crate) fn flush_stdio() {
    // A stream that cannot be written has nowhere to report that to.
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    flush_c_stdio();
}

fn flush_c_stdio() {
    // SAFETY: fflush(3): null flushes all open output streams.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

unsafe extern "C" {
    /// `on_exit(3)`; glibc and musl-compat name, absent from the `libc` crate.
    fn on_exit(f: extern "C" fn(i32, *mut libc::c_void), argument: *mut libc::c_void) -> i32;
}

extern "C" fn leave_at_once(code: i32, _: *mut libc::c_void) {
    let _ = std::panic::catch_unwind(flush_stdio);
    super::exit_now(code)
}

/// Turns a later `exit` of this process into a flush of its own output and `_exit`.
///
/// Exit handlers run last registered first, so those that the host registered before the fork never run here.
pub(crate) fn guard_exit() {
    // SAFETY: the function pointer has the type that on_exit(3) asks for, and lives as long as the program.
    unsafe { on_exit(leave_at_once, std::ptr::null_mut()) };
}

/// Writes out what Rust's standard output still holds: the beginning of a line, since whole lines are never held back.
pub(crate) fn flush_rust_stdout() {
    // As in `flush_stdio`.
    let _ = std::io::stdout().flush();
}

/// As [`flush_c_stdio`], cheap when there is nothing to write: it runs after every job.
#[inline]
pub(crate) fn flush_c_stdio_if_any() {
    // SAFETY: `stdout` is a C global that is set before main and that we only read.
    let stream = unsafe { stdout };
    // SAFETY: `stream` is the C library's own open stream.
    if unsafe { __fpending(stream) } != 0 {
        flush_c_stdio();
    }
}

/// From now on C's standard output is written line by line, as to a terminal: a process that is killed has said its last
/// whole line.
///
/// # Source
/// `setvbuf(3)`
pub(crate) fn line_buffer_c_stdout() {
    // SAFETY: `stdout` is a C global that is set before main and that we only read.
    let stream = unsafe { stdout };
    // SAFETY: `stream` is the C library's own open stream; a null buffer leaves it the one that it has.
    unsafe { libc::setvbuf(stream, std::ptr::null_mut(), libc::_IOLBF, 0) };
}

unsafe extern "C" {
    /// C's standard output, `stdin(3)`.
    static stdout: *mut libc::FILE;
    /// Bytes that a stream still holds, `stdio_ext(3)`.
    fn __fpending(stream: *mut libc::FILE) -> libc::size_t;
}

/// Standard input becomes `/dev/null`, and standard output a copy of standard error, so that nothing that is printed
/// here can mix with the host's own output. Without a standard error, both are `/dev/null`.
pub(crate) fn detach_stdio() -> super::OsResult<()> {
    use std::os::fd::AsFd;
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|e| super::OsError { call: "open /dev/null", errno: e.raw_os_error().unwrap_or(libc::EIO) })?;
    super::replace_fd(null.as_fd(), 0)?;
    if !super::has_stderr() {
        super::replace_fd(null.as_fd(), 2)?;
    }
    super::replace_fd(std::io::stderr().as_fd(), 1)
}
