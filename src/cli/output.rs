//! Results and lines on their way out, without ever blocking the main loop.
//!
//! A regular file is written in place: it cannot stall. A pipe, a terminal or a socket may, for as long as its reader
//! likes, and must stay in blocking mode because it is shared with other processes. So a thread of its own, started
//! with the first bytes and so after the pool has forked, writes one buffer while the main loop fills the other.
//! A slow reader thereby makes writes larger, and a stalled one stops the input (see [`Streams::is_stalled`]) and
//! nothing else. The pipe itself is left as it is: more room in it measured no faster, and what is in it when a reader
//! leaves was computed for nobody.

use crate::sys::{Interest, Linux, OsResult, PollFd, Sys};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that are worth a write while more is to come.
const WRITE_SIZE: usize = 128 << 10;
/// Bytes waiting, beyond which no further job is begun.
const STALLED_SIZE: usize = 512 << 10;
/// A buffer larger than this is not kept.
const BUFFER_KEPT_MAX: usize = 1 << 20;
/// Device number of `/dev/null`, the one character device that never stalls.
const NULL_DEVICE: u64 = 0x103;
/// Stack of the writing thread: it does nothing but write.
const STACK_SIZE: usize = 64 << 10;

/// Standard output and standard error.
///
/// When both are the same pipe or terminal (`2>&1`), one writer serves both: two would cut each other's lines in two.
pub(crate) struct Streams {
    results: Output,
    /// `None`: lines go where the results go.
    lines: Option<Output>,
    /// The joblog, if there is one.
    log: Option<Output>,
}

impl Streams {
    /// Writes results to one file and lines for people to the other. Starts no thread yet.
    pub(crate) fn new(results: File, lines: File) -> Self {
        let identity = |file: &File| file.metadata().map(|m| (m.dev(), m.ino())).ok();
        let is_same = identity(&results).is_some_and(|id| Some(id) == identity(&lines));
        Self { results: Output::new(results), lines: (!is_same).then(|| Output::new(lines)), log: None }
    }

    /// Writes the joblog to this file.
    pub(crate) fn set_log(&mut self, log: File) {
        self.log = Some(Output::new(log));
    }

    /// Adds whole lines of the joblog.
    pub(crate) fn push_log(&mut self, lines: &[u8]) {
        if let Some(log) = &mut self.log {
            log.push_all(lines);
        }
    }

    /// Sets off what has gathered of the joblog. Returns why it can no longer be written.
    pub(crate) fn flush_log(&mut self) -> Option<&std::io::Error> {
        let log = self.log.as_mut()?;
        log.flush();
        log.error.as_ref()
    }

    /// Adds a result and its terminator.
    #[inline]
    pub(crate) fn push_result(&mut self, body: &[u8], terminator: u8) {
        self.results.push(body, terminator);
    }

    /// Adds a line, its newline included.
    pub(crate) fn push_line(&mut self, line: &str) {
        self.lines.as_mut().unwrap_or(&mut self.results).push_all(line.as_bytes());
    }

    fn all(&self) -> impl Iterator<Item = &Output> {
        std::iter::once(&self.results).chain(&self.lines).chain(&self.log)
    }

    /// How many bytes of results there have been.
    pub(crate) fn results_size(&self) -> u64 {
        self.results.given + self.results.buffer.len() as u64
    }

    /// How many of them were written when it was last flushed.
    pub(crate) fn results_written(&self) -> u64 {
        self.results.written
    }

    /// Whether so much waits for a reader that no more should be made.
    #[inline]
    pub(crate) fn is_stalled(&self) -> bool {
        self.all().any(Output::is_stalled)
    }

    /// Sets off what has gathered; what cannot go yet stays for the next call. Picks up errors.
    pub(crate) fn flush(&mut self) {
        self.results.flush();
        self.lines.iter_mut().for_each(Output::flush);
    }

    /// Whether everything has been written, or never will be.
    pub(crate) fn is_settled(&self) -> bool {
        self.all().all(Output::is_settled)
    }

    /// Readable when a write has ended.
    pub(crate) fn wake_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.all().filter_map(Output::wake_fd)
    }

    /// Forgets the writes that have ended.
    pub(crate) fn clear_wakes(&self) -> OsResult<()> {
        self.all().try_for_each(Output::clear_wake)
    }

    /// Why no result can be written any more. Lines for people that cannot be written are dropped.
    #[inline]
    pub(crate) fn error(&self) -> Option<&std::io::Error> {
        self.results.error.as_ref()
    }
}

/// One of our output streams.
struct Output {
    file: Arc<File>,
    buffer: Vec<u8>,
    /// Whether writes cannot stall.
    is_direct: bool,
    writer: Option<Arc<Writer>>,
    error: Option<std::io::Error>,
    /// Bytes that have left the buffer, and those known to have been written.
    given: u64,
    written: u64,
}

impl Output {
    /// Writes to `file`. Starts no thread yet.
    fn new(file: File) -> Self {
        let is_direct =
            file.metadata().is_ok_and(|m| m.is_file() || (m.file_type().is_char_device() && m.rdev() == NULL_DEVICE));
        Self { file: Arc::new(file), buffer: Vec::new(), is_direct, writer: None, error: None, given: 0, written: 0 }
    }

    /// Adds a result and its terminator.
    #[inline]
    fn push(&mut self, body: &[u8], terminator: u8) {
        // Asked once for both, so that neither has to ask again.
        if self.buffer.capacity() - self.buffer.len() <= body.len() {
            self.buffer.reserve((body.len() + 1).max(WRITE_SIZE));
        }
        self.buffer.extend_from_slice(body);
        self.buffer.push(terminator);
        if self.buffer.len() >= WRITE_SIZE {
            self.flush();
        }
    }

    /// Adds bytes as they are.
    fn push_all(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE_SIZE {
            self.flush();
        }
    }

    /// Whether so much waits for the reader that no more should be made.
    #[inline]
    fn is_stalled(&self) -> bool {
        self.buffer.len() >= STALLED_SIZE
    }

    /// Sets off what has gathered, unless the last part is still being written: then it stays for the next call.
    fn flush(&mut self) {
        if self.error.is_some() {
            self.buffer.clear();
            return;
        }
        if self.is_direct {
            let result = write_all(&self.file, &self.buffer);
            self.error = result.err();
            if self.error.is_none() {
                self.given += self.buffer.len() as u64;
                self.written = self.given;
            }
            self.buffer.clear();
            return;
        }
        match &self.writer {
            Some(writer) => {
                let (was_busy, size) = (writer.is_busy(), self.buffer.len());
                self.error = writer.exchange(&mut self.buffer);
                if self.error.is_some() {
                    self.buffer.clear();
                    return;
                }
                if !was_busy {
                    self.written = self.given;
                }
                // All of it or nothing.
                self.given += (size - self.buffer.len()) as u64;
            }
            None if self.buffer.is_empty() => {}
            None => self.start_writer(),
        }
    }

    fn start_writer(&mut self) {
        match Writer::start(Arc::clone(&self.file)) {
            Ok(writer) => self.writer = Some(writer),
            // Better a stalled loop than no output.
            Err(_) => self.is_direct = true,
        }
        self.flush();
    }

    /// Whether everything has been written, or never will be.
    fn is_settled(&self) -> bool {
        self.buffer.is_empty() && self.writer.as_ref().is_none_or(|w| !w.is_busy())
    }

    /// Readable when a write has ended. `None`: none ever will.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.writer.as_ref().map(|w| w.wake.as_fd())
    }

    fn clear_wake(&self) -> OsResult<()> {
        self.writer.as_ref().map_or(Ok(()), |w| Linux.counter_clear(w.wake.as_fd()))
    }
}

/// Writes it all, also to a stream that somebody else made non-blocking.
fn write_all(mut file: &File, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                Linux.poll(&mut [PollFd::new(file.as_fd(), Interest::WRITE)], None)?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The main loop's half of the writing thread.
struct Writer {
    state: Mutex<State>,
    /// Signalled when `state.full` was filled.
    filled: Condvar,
    /// Rung when a write has ended.
    wake: OwnedFd,
    /// Whether a buffer is being written. Set by the main loop, reset by the thread: Release there and Acquire in
    /// [`Writer::is_busy`], so that who sees it reset sees the spare buffer and the error too.
    is_busy: AtomicBool,
}

#[derive(Default)]
struct State {
    /// To be written.
    full: Option<Vec<u8>>,
    /// Written, to be filled again.
    spare: Vec<u8>,
    error: Option<std::io::Error>,
}

impl Writer {
    fn start(file: Arc<File>) -> std::io::Result<Arc<Self>> {
        let writer = Arc::new(Self {
            state: Mutex::default(),
            filled: Condvar::new(),
            wake: Linux.eventfd()?,
            is_busy: AtomicBool::new(false),
        });
        let thread = Arc::clone(&writer);
        let builder = std::thread::Builder::new().name("seqpool-write".into()).stack_size(STACK_SIZE);
        // Never joined: it may sit in a write for ever.
        builder.spawn(move || thread.run(&file))?;
        Ok(writer)
    }

    fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Acquire)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and the state would still be sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a full buffer away for an empty one, unless the thread is busy. Returns the error of an earlier write.
    fn exchange(&self, buffer: &mut Vec<u8>) -> Option<std::io::Error> {
        if self.is_busy() {
            return None;
        }
        let mut state = self.state();
        if state.error.is_some() {
            return state.error.take();
        }
        if !buffer.is_empty() {
            let spare = std::mem::take(&mut state.spare);
            state.full = Some(std::mem::replace(buffer, spare));
            // Relaxed: the lock publishes it to the thread.
            self.is_busy.store(true, Ordering::Relaxed);
            drop(state);
            self.filled.notify_one();
        }
        None
    }

    fn run(&self, file: &File) {
        loop {
            let mut state = self.state();
            let mut bytes = loop {
                match state.full.take() {
                    Some(bytes) => break bytes,
                    None => state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(state);
            let result = write_all(file, &bytes);
            bytes.clear();
            let mut state = self.state();
            if bytes.capacity() <= BUFFER_KEPT_MAX {
                state.spare = bytes;
            }
            let is_over = result.is_err();
            state.error = result.err();
            drop(state);
            // Pairs with the Acquire in `is_busy`.
            self.is_busy.store(false, Ordering::Release);
            // Ringing fails only for a closed descriptor, and this one is ours.
            let _ = Linux.eventfd_ring(self.wake.as_fd());
            if is_over {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    fn settle(output: &mut Output) {
        while !output.is_settled() {
            output.flush();
            std::thread::yield_now();
        }
        // Picks up the error of the last write.
        output.flush();
    }

    #[test]
    fn a_file_gets_every_byte_in_place() {
        let mut file = tempfile::tempfile().unwrap();
        let mut output = Output::new(file.try_clone().unwrap());
        output.push(b"ab", b'\n');
        output.flush();
        assert!(output.is_settled() && output.wake_fd().is_none());
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ab\n");
    }

    #[test]
    fn a_pipe_that_nobody_reads_stalls_nobody() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut output = Output::new(File::from(OwnedFd::from(writer)));
        let line = [b'x'; 999];
        let mut sent = 0;
        while !output.is_stalled() {
            output.push(&line, b'\n');
            sent += 1000;
        }
        assert!(sent >= STALLED_SIZE && !output.is_settled());
        let reading = std::thread::spawn(move || reader.read_exact(&mut vec![0; sent]).is_ok());
        assert!(output.written < sent as u64, "nobody has read it all");
        settle(&mut output);
        assert!(output.error.is_none() && reading.join().unwrap());
        assert_eq!((output.given, output.written), (sent as u64, sent as u64));
    }

    #[test]
    fn a_closed_pipe_is_an_error_once() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut output = Output::new(File::from(OwnedFd::from(writer)));
        output.push(b"lost", b'\n');
        output.flush();
        settle(&mut output);
        assert_eq!(output.error.as_ref().unwrap().kind(), ErrorKind::BrokenPipe);
        output.push(b"dropped", b'\n');
        output.flush();
        assert!(output.is_settled());
    }
}
