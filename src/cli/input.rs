//! Records, read lazily: large reads, borrowed records, bounded memory.
//!
//! Owns the input and one buffer. Never reads ahead of what is asked for, and never sleeps in a read of a pipe or a
//! terminal as long as the caller asks [`Input::is_ready`] first. The buffer is [`BUFFER_SIZE`] as a rule; one long
//! record makes it grow, at most to the record limit, and it shrinks afterwards. What is longer than the limit is
//! counted as it is thrown away. A pipe is given more room, so that its writer is not woken for each 64 KiB.

use super::report::Fatal;
use crate::sys::{self, Interest, Linux, PollFd, Sys};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;

/// Bytes that are asked for at once.
const BUFFER_SIZE: usize = 512 << 10;
/// Less room than this behind a partial record, and the record moves to the front.
const READ_SIZE_MIN: usize = 128 << 10;

/// What comes next in the input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<'a> {
    /// A whole record, without its terminator.
    Record(&'a [u8]),
    /// A record of this many bytes, over the limit; its bytes are gone.
    TooLarge(u64),
    /// Nothing until more is read.
    Unknown,
    /// No further record.
    End,
}

/// What [`Input::peek`] has found and [`Input::consume`] takes.
#[derive(Clone, Copy, Debug)]
enum Found {
    Nothing,
    /// A record of this size, and whether a terminator follows.
    Record {
        size: usize,
        is_terminated: bool,
    },
    TooLarge(u64),
}

/// The records of one file or stream.
pub(crate) struct Input<R = File> {
    source: R,
    terminator: u8,
    record_size_max: usize,
    buffer: Vec<u8>,
    /// What is read and not consumed lies in `start..end`.
    start: usize,
    end: usize,
    /// No terminator lies in `start..scanned`.
    scanned: usize,
    found: Found,
    /// Bytes thrown away of a record over the limit that has not ended.
    skipped: Option<u64>,
    is_at_end: bool,
    /// Whether reads never sleep: a regular file.
    is_always_ready: bool,
}

impl Input<File> {
    /// Reads records of at most `record_size_max` bytes from `file`.
    pub(crate) fn new(file: File, terminator: u8, record_size_max: usize) -> Self {
        let kind = file.metadata().map(|m| m.file_type());
        let is_always_ready = kind.as_ref().is_ok_and(|k| k.is_file());
        if kind.is_ok_and(|k| k.is_fifo()) {
            sys::enlarge_pipe(file.as_fd());
        }
        Self { is_always_ready, ..Self::over(file, terminator, record_size_max) }
    }

    /// Whether a read would find something, an end or an error included, without sleeping.
    pub(crate) fn is_ready(&self) -> Result<bool, Fatal> {
        if self.is_always_ready {
            return Ok(true);
        }
        let mut fds = [PollFd::new(self.source.as_fd(), Interest::READ)];
        Linux.poll(&mut fds, Some(0)).map_err(|e| Fatal(e.to_string()))?;
        Ok(fds[0].readiness().is_readable())
    }

    /// Sleeps until a read would find something.
    pub(crate) fn wait(&self) -> Result<(), Fatal> {
        let mut fds = [PollFd::new(self.source.as_fd(), Interest::READ)];
        Linux.poll(&mut fds, None).map(drop).map_err(|e| Fatal(e.to_string()))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }
}

impl<R: Read> Input<R> {
    fn over(source: R, terminator: u8, record_size_max: usize) -> Self {
        Self {
            source,
            terminator,
            record_size_max,
            // All zero: the kernel gives the pages when they are first used.
            buffer: vec![0; BUFFER_SIZE],
            start: 0,
            end: 0,
            scanned: 0,
            found: Found::Nothing,
            skipped: None,
            is_at_end: false,
            is_always_ready: false,
        }
    }

    /// Hands out the whole records that are at hand, one after the other, until `take` refuses one, which stays. Says
    /// nothing about why it ended: [`Input::peek`] does.
    ///
    /// The same as `peek` and [`Input::consume`] in turn, for the records that need no thought: all of a run's state
    /// but the buffer stays in registers.
    #[inline]
    pub(crate) fn take_records(&mut self, mut take: impl FnMut(&[u8]) -> bool) {
        if self.skipped.is_some() || !matches!(self.found, Found::Nothing) {
            return;
        }
        let bytes = &self.buffer[..self.end];
        let (mut start, mut scanned) = (self.start, self.scanned);
        loop {
            let Some(at) = find(self.terminator, &bytes[scanned..]) else {
                scanned = bytes.len();
                break;
            };
            let size = scanned + at - start;
            if size > self.record_size_max {
                break;
            }
            if !take(&bytes[start..start + size]) {
                self.found = Found::Record { size, is_terminated: true };
                break;
            }
            start += size + 1;
            scanned = start;
        }
        (self.start, self.scanned) = (start, scanned);
    }

    /// The next record. The same one, without another search, until it is consumed.
    #[inline]
    pub(crate) fn peek(&mut self) -> Next<'_> {
        if let Found::Nothing = self.found {
            self.search();
        }
        match self.found {
            Found::Record { size, .. } => Next::Record(&self.buffer[self.start..self.start + size]),
            Found::TooLarge(size) => Next::TooLarge(size),
            Found::Nothing if self.is_at_end => Next::End,
            Found::Nothing => Next::Unknown,
        }
    }

    /// Goes past the record that was peeked at.
    #[inline]
    pub(crate) fn consume(&mut self) {
        if let Found::Record { size, is_terminated } = self.found {
            self.start += size + usize::from(is_terminated);
            self.scanned = self.start;
        }
        self.found = Found::Nothing;
    }

    fn search(&mut self) {
        let terminator_at = find(self.terminator, &self.buffer[self.scanned..self.end]);
        let size = terminator_at.map_or(self.end, |at| self.scanned + at) - self.start;
        if let Some(skipped) = self.skipped {
            // Everything up to the terminator belongs to the record that is being thrown away.
            let skipped = skipped + size as u64;
            self.start += size + usize::from(terminator_at.is_some());
            self.scanned = self.start;
            if terminator_at.is_some() || self.is_at_end {
                self.skipped = None;
                self.found = Found::TooLarge(skipped);
            } else {
                self.skipped = Some(skipped);
            }
        } else if size > self.record_size_max {
            self.skipped = Some(0);
            self.scanned = terminator_at.map_or(self.end, |_| self.start + size);
            self.search();
        } else if terminator_at.is_some() {
            self.found = Found::Record { size, is_terminated: true };
        } else if self.is_at_end && size > 0 {
            self.found = Found::Record { size, is_terminated: false };
        } else {
            self.scanned = self.end;
        }
    }

    /// Reads once. Returns whether anything changed: `false` if the stream has nothing now.
    ///
    /// To be called when [`Input::peek`] says [`Next::Unknown`].
    pub(crate) fn fill(&mut self) -> std::io::Result<bool> {
        self.make_room();
        loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => {
                    self.is_at_end = true;
                    return Ok(true);
                }
                Ok(n) => {
                    self.end += n;
                    return Ok(true);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // Somebody else made this stream non-blocking; readiness will tell.
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => {
                    self.is_at_end = true;
                    return Err(e);
                }
            }
        }
    }

    /// Leaves room for a read behind the partial record.
    fn make_room(&mut self) {
        let partial = self.end - self.start;
        if partial == 0 {
            (self.start, self.end, self.scanned) = (0, 0, 0);
        }
        if self.buffer.len() > BUFFER_SIZE && partial <= BUFFER_SIZE / 2 {
            // The long record is behind us: give its memory back.
            self.replace_buffer(BUFFER_SIZE);
        } else if self.buffer.len() - self.end < READ_SIZE_MIN {
            if self.buffer.len() - partial >= READ_SIZE_MIN {
                self.buffer.copy_within(self.start..self.end, 0);
                self.moved_to_front();
            } else {
                // One byte over the limit is enough to know that a record is over it.
                let size_max = self.record_size_max + 1 + READ_SIZE_MIN;
                self.replace_buffer((self.buffer.len() * 2).min(size_max.max(BUFFER_SIZE)));
            }
        }
    }

    fn replace_buffer(&mut self, size: usize) {
        let mut buffer = vec![0; size];
        buffer[..self.end - self.start].copy_from_slice(&self.buffer[self.start..self.end]);
        self.buffer = buffer;
        self.moved_to_front();
    }

    fn moved_to_front(&mut self) {
        self.scanned -= self.start;
        self.end -= self.start;
        self.start = 0;
    }
}

/// Where the terminator is.
///
/// Short records are the rule, and for them a call of `memchr` costs more than the search: the first 16 bytes are looked
/// at here, eight at a time.
#[inline]
fn find(terminator: u8, bytes: &[u8]) -> Option<usize> {
    const LOW: u64 = u64::MAX / 0xff;
    const HIGH: u64 = LOW << 7;
    let pattern = LOW * u64::from(terminator);
    let mut rest = bytes;
    for at in [0, 8] {
        let Some((word, after)) = rest.split_first_chunk::<8>() else { break };
        // A byte that is the terminator becomes zero, and a borrow out of it marks it; the lowest mark is always true.
        let differences = u64::from_le_bytes(*word) ^ pattern;
        let marks = differences.wrapping_sub(LOW) & !differences & HIGH;
        if marks != 0 {
            return Some(at + marks.trailing_zeros() as usize / 8);
        }
        rest = after;
    }
    memchr::memchr(terminator, rest).map(|at| bytes.len() - rest.len() + at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::os::fd::OwnedFd;

    /// Gives its bytes in pieces of the sizes given, over and over.
    struct Pieces {
        bytes: Vec<u8>,
        at: usize,
        sizes: Vec<usize>,
        turn: usize,
    }

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let size = self.sizes[self.turn % self.sizes.len()].clamp(1, buffer.len());
            self.turn += 1;
            let n = size.min(self.bytes.len() - self.at);
            buffer[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
            self.at += n;
            Ok(n)
        }
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Got {
        Record(Vec<u8>),
        TooLarge(u64),
    }

    /// Reads everything; `taken_max` records at a time are taken from [`Input::take_records`] between two peeks.
    fn read_all_by(bytes: &[u8], sizes: &[usize], limit: usize, taken_max: usize) -> (Vec<Got>, usize) {
        let pieces = Pieces { bytes: bytes.to_vec(), at: 0, sizes: sizes.to_vec(), turn: 0 };
        let mut input = Input::over(pieces, b'\n', limit);
        let mut got = Vec::new();
        let mut largest = 0;
        loop {
            let mut left = taken_max;
            input.take_records(|r| {
                let is_taken = left > 0;
                if is_taken {
                    got.push(Got::Record(r.to_vec()));
                    left -= 1;
                }
                is_taken
            });
            match input.peek() {
                Next::Record(r) => got.push(Got::Record(r.to_vec())),
                Next::TooLarge(n) => got.push(Got::TooLarge(n)),
                Next::Unknown => {
                    assert!(input.fill().unwrap());
                    largest = largest.max(input.buffer.len());
                    continue;
                }
                Next::End => return (got, largest),
            }
            input.consume();
        }
    }

    fn read_all(bytes: &[u8], sizes: &[usize], limit: usize) -> (Vec<Got>, usize) {
        read_all_by(bytes, sizes, limit, 0)
    }

    /// The same, naively.
    fn split(bytes: &[u8], limit: usize) -> Vec<Got> {
        let mut parts: Vec<&[u8]> = bytes.split(|&b| b == b'\n').collect();
        if parts.last().is_some_and(|p| p.is_empty()) {
            parts.pop();
        }
        let got = |p: &[u8]| if p.len() > limit { Got::TooLarge(p.len() as u64) } else { Got::Record(p.to_vec()) };
        parts.into_iter().map(got).collect()
    }

    #[test]
    fn every_kind_of_record() {
        for bytes in ["", "\n", "a", "a\n", "\n\na\r\n\nb", "\0\u{e9}\n"] {
            assert_eq!(read_all(bytes.as_bytes(), &[1], 10).0, split(bytes.as_bytes(), 10), "{bytes:?}");
        }
    }

    #[test]
    fn a_peeked_record_stays() {
        let pieces = Pieces { bytes: b"a\nb\n".to_vec(), at: 0, sizes: vec![9], turn: 0 };
        let mut input = Input::over(pieces, b'\n', 10);
        assert!(input.fill().unwrap());
        assert_eq!(input.peek(), Next::Record(b"a"));
        assert_eq!(input.peek(), Next::Record(b"a"));
        input.consume();
        assert_eq!(input.peek(), Next::Record(b"b"));
    }

    #[test]
    fn a_refused_record_stays() {
        let pieces = Pieces { bytes: b"a\nb\nc\n".to_vec(), at: 0, sizes: vec![9], turn: 0 };
        let mut input = Input::over(pieces, b'\n', 10);
        assert!(input.fill().unwrap());
        let mut seen = Vec::new();
        input.take_records(|r| {
            seen.push(r.to_vec());
            r != b"b"
        });
        assert_eq!(seen, [b"a", b"b"]);
        // It has been found and is not looked for again.
        assert!(matches!(input.found, Found::Record { size: 1, is_terminated: true }));
        input.take_records(|_| panic!("a record waits to be consumed"));
        assert_eq!(input.peek(), Next::Record(b"b"));
        input.consume();
        assert_eq!(input.peek(), Next::Record(b"c"));
    }

    #[test]
    fn the_terminator_is_found_wherever_it_is() {
        // Neighbours that differ in one bit are what a search by words may take for it.
        for terminator in [0, b'\n', 0x7f, 0x80, 0xff] {
            for other in [terminator ^ 1, terminator.wrapping_add(1), terminator ^ 0x80] {
                for size in 0..40 {
                    let mut bytes = vec![other; size];
                    assert_eq!(find(terminator, &bytes), None);
                    for at in 0..size {
                        bytes.fill(other);
                        bytes[at] = terminator;
                        assert_eq!(find(terminator, &bytes), Some(at));
                        bytes[at..].fill(terminator);
                        assert_eq!(find(terminator, &bytes), Some(at));
                    }
                }
            }
        }
    }

    #[test]
    fn long_records_grow_the_buffer_to_the_limit_and_no_further() {
        let limit = 3 << 20;
        for size in [limit - 1, limit, limit + 1, 20 << 20] {
            let mut bytes = vec![b'x'; size];
            bytes.extend_from_slice(b"\nshort\n");
            for sizes in [&[65536][..], &[usize::MAX]] {
                let (got, largest) = read_all(&bytes, sizes, limit);
                assert!(got == split(&bytes, limit), "{size}");
                assert!(largest <= limit + 1 + READ_SIZE_MIN, "{largest}");
            }
            // Unterminated.
            assert!(read_all(&bytes[..size], &[65536], limit).0 == split(&bytes[..size], limit));
        }
    }

    #[test]
    fn a_pipe_gets_room_and_keeps_what_is_in_it() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"a\n").unwrap();
        // Bytes that fit before a writer would sleep.
        let room = |mut pipe: &std::io::PipeWriter| {
            let mut size = 0;
            while Linux.poll(&mut [PollFd::new(pipe.as_fd(), Interest::WRITE)], Some(0)).unwrap() > 0 {
                size += pipe.write(&[b'x'; 4096]).unwrap();
            }
            size
        };
        let file = || File::from(OwnedFd::from(reader.try_clone().unwrap()));
        let mut input = Input::new(file(), b'\n', 10);
        let limit = std::fs::read_to_string("/proc/sys/fs/pipe-max-size").unwrap();
        // The first page has two bytes in it.
        assert_eq!(room(&writer), limit.trim().parse::<usize>().unwrap().min(1 << 20) - 4096);
        drop(Input::new(file(), b'\n', 10));
        assert_eq!(room(&writer), 0, "enlarged once");
        assert!(input.fill().unwrap());
        assert_eq!(input.peek(), Next::Record(b"a"));
        // No pipe: nothing happens.
        sys::enlarge_pipe(tempfile::tempfile().unwrap().as_fd());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_same_as_a_naive_split(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'a'), any::<u8>()], 0..300),
            sizes in prop::collection::vec(1usize..40, 1..5),
            limit in 0usize..20,
            taken_max in 0usize..10,
        ) {
            prop_assert_eq!(read_all_by(&bytes, &sizes, limit, taken_max).0, split(&bytes, limit));
        }
    }
}
