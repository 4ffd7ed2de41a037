//! What handlers print: where it goes, and the file in which it is captured.
//!
//! # Shape
//! Each worker has a memory file of its own, to which every write appends; it is the worker's standard output and
//! standard error once set-up is over, and those of all that its handlers start. Offsets only grow: memory is given back
//! by holes from the beginning, the file is never cut. In the slot's control page the worker says where in the file its
//! job in hand began, so that the host finds the job's output when the worker is dead.

use crate::limits::{PRINT_FILE_SIZE_MAX, PRINT_FREE_LOOKS, PRINT_FREE_PAUSE};
use crate::sys::{self, OsResult};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What becomes of that which handlers print: on standard output and standard error, by whatever means, also by programs
/// that they start. What set-up prints always passes through.
///
/// Captured output lies in memory of the worker's, of which more than a few MiB are given back while somebody drives the
/// pool. It counts as a file's size where workers have a limit on that (`RLIMIT_FSIZE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prints {
    /// It goes to the host's standard error.
    #[default]
    PassThrough,
    /// It is captured, and attached to its job if that is unsuccessful ([`Completion::printed`](crate::Completion::printed)).
    Capture {
        /// How much of a job's output is kept, its last bytes. Units: bytes, from 1 to 65,536.
        size_max: usize,
    },
    /// It is captured and attached, and the same bytes go to the host's standard error when the job is over.
    Both {
        /// As in [`Prints::Capture`].
        size_max: usize,
    },
}

impl Prints {
    /// How much of a job's output is kept; 0 when nothing is captured. Units: bytes.
    pub(crate) fn size_max(self) -> usize {
        match self {
            Prints::PassThrough => 0,
            Prints::Capture { size_max } | Prints::Both { size_max } => size_max,
        }
    }

    /// As a word of a record.
    pub(crate) fn to_word(self) -> u64 {
        let kind = match self {
            Prints::PassThrough => 0,
            Prints::Capture { .. } => 1,
            Prints::Both { .. } => 2,
        };
        kind << 32 | self.size_max() as u64
    }

    /// What such a word says.
    pub(crate) fn from_word(word: u64) -> Option<Self> {
        let size_max = (word & 0xffff_ffff) as usize;
        match word >> 32 {
            0 if size_max == 0 => Some(Prints::PassThrough),
            1 => Some(Prints::Capture { size_max }),
            2 => Some(Prints::Both { size_max }),
            _ => None,
        }
    }

    pub(crate) fn is_captured(self) -> bool {
        self != Prints::PassThrough
    }

    /// Whether what is captured is shown as well.
    pub(crate) fn is_shown(self) -> bool {
        matches!(self, Prints::Both { .. })
    }
}

/// The end of what a job has printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Printed<B> {
    /// Its last bytes.
    pub(crate) bytes: B,
    /// How many bytes came before them and were not kept.
    pub(crate) cut: u64,
}

impl Printed<Vec<u8>> {
    pub(crate) fn as_ref(&self) -> Printed<&[u8]> {
        Printed { bytes: &self.bytes, cut: self.cut }
    }

    /// Writes it to somebody's standard error; see [`sys::write_when_ready`].
    pub(crate) fn show(&self, fd: BorrowedFd<'_>, timeout_ns: Option<u64>) {
        if self.cut > 0 {
            let note = format!("seqpool: {} bytes of output left out\n", self.cut);
            sys::write_when_ready(fd, note.as_bytes(), timeout_ns);
        }
        sys::write_when_ready(fd, &self.bytes, timeout_ns);
    }
}

/// A worker's captured output.
#[derive(Debug)]
pub(crate) struct PrintFile(OwnedFd);

/// In place of an offset: it could not be found out, so nothing can be told of what came after it.
pub(crate) const UNKNOWN: u64 = u64::MAX;

/// Memory is given back in pieces of whole pages, whatever their size.
const FREE_ALIGN: u64 = 64 << 10;

impl PrintFile {
    pub(crate) fn create() -> OsResult<Self> {
        sys::append_file(c"seqpool-prints").map(Self)
    }

    /// A file that was passed to this process.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Bytes printed so far. `None`: the kernel does not say, and nothing can be told of what was printed.
    pub(crate) fn size(&self) -> Option<u64> {
        sys::file_size(self.0.as_fd()).ok().map(|(size, _)| size)
    }

    /// The same file, for the worker that prints into it and asks for its size after each job.
    pub(crate) fn reopen(fd: OwnedFd) -> Self {
        // Without a position of its own, looking for the end waits at worst while what a job has left behind is printing.
        Self(sys::reopen(fd.as_fd()).unwrap_or(fd))
    }

    /// As [`PrintFile::size`], of a file that was opened anew.
    pub(crate) fn end(&self) -> Option<u64> {
        sys::seek_end(self.0.as_fd()).ok()
    }

    /// Whether it takes more memory than it may, of which the last `keep` bytes do not count.
    pub(crate) fn is_too_large(&self, keep: usize) -> bool {
        let limit = (PRINT_FILE_SIZE_MAX + keep) as u64;
        sys::file_size(self.0.as_fd()).is_ok_and(|(_, memory)| memory > limit)
    }

    /// Gives back the memory of all but the last `keep` bytes. Waits while somebody is in the midst of printing: for that
    /// reason nobody does it on whom others wait.
    pub(crate) fn free(&self, keep: usize) {
        let end = self.size().unwrap_or(0).saturating_sub(keep as u64) / FREE_ALIGN * FREE_ALIGN;
        if end > 0 {
            // An error costs memory, no more.
            let _ = sys::free_before(self.0.as_fd(), end);
        }
    }

    /// As [`PrintFile::free`], again and again, as long as much is printed.
    pub(crate) fn free_in_flood(&self, keep: usize) {
        let mut looks = 0;
        while looks < PRINT_FREE_LOOKS {
            looks += 1;
            if self.is_too_large(keep) {
                self.free(keep);
                looks = 0;
            }
            std::thread::sleep(PRINT_FREE_PAUSE);
        }
    }

    /// The last bytes, at most `size_max`, of what was printed from `began` to `end`. `None`: nothing was.
    ///
    /// Whatever `began` is; a worker may have scribbled over it.
    pub(crate) fn tail(&self, began: u64, end: u64, size_max: usize) -> Option<Printed<Vec<u8>>> {
        if began == UNKNOWN {
            return None;
        }
        // The file has shrunk: something has opened `/dev/stderr` anew and cut it. What is there was printed after that.
        let began = if began > end { 0 } else { began };
        let start = began.max(end.saturating_sub(size_max as u64));
        if start == end {
            return None;
        }
        let mut bytes = vec![0; (end - start) as usize];
        let size = sys::read_at(self.0.as_fd(), &mut bytes, start).ok()?;
        bytes.truncate(size);
        Some(Printed { bytes, cut: start - began })
    }
}

impl AsFd for PrintFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(all(test, not(seqpool_loom)))]
mod tests {
    use super::*;
    use std::io::Write;

    fn print(file: &PrintFile, bytes: &[u8]) {
        std::fs::File::from(sys::duplicate(file.as_fd()).unwrap()).write_all(bytes).unwrap();
    }

    #[test]
    fn the_tail_is_the_end_whatever_the_beginning_is_said_to_be() {
        let file = PrintFile::create().unwrap();
        print(&file, b"earlier, then this");
        let tail = |began, size_max| file.tail(began, 18, size_max).map(|p| (p.bytes, p.cut));
        assert_eq!(tail(9, 100), Some((b"then this".to_vec(), 0)));
        assert_eq!(tail(9, 4), Some((b"this".to_vec(), 5)));
        assert_eq!(tail(18, 4), None);
        assert_eq!(tail(UNKNOWN, 4), None);
        for nonsense in [19, 1 << 40, u64::MAX - 1] {
            assert_eq!(tail(nonsense, 4), Some((b"this".to_vec(), 14)));
        }
        // Cut while it is read.
        assert_eq!(file.tail(9, 1000, 995).map(|p| (p.bytes, p.cut)), Some((b"then this".to_vec(), 0)));
    }

    #[test]
    fn memory_is_given_back_but_for_the_end() {
        let file = PrintFile::create().unwrap();
        print(&file, &vec![b'x'; PRINT_FILE_SIZE_MAX + 70_000]);
        print(&file, b"the end");
        assert!(file.is_too_large(1000));
        file.free(1000);
        assert!(!file.is_too_large(1000));
        let (size, memory) = sys::file_size(file.as_fd()).unwrap();
        assert!(size > PRINT_FILE_SIZE_MAX as u64 && memory < 1000 + 2 * FREE_ALIGN, "{memory}");
        assert_eq!(file.tail(0, size, 8).unwrap().bytes, b"xthe end");
    }
}
