//! Files that workers print into, and standard error as others may write it too.
//!
//! # Source
//! `memfd_create(2)`, `fcntl(2)` (`O_APPEND`), `fstat(2)`, `lseek(2)`, `proc_pid_fd(5)`, `pread(2)`, `fallocate(2)`
//! (`FALLOC_FL_PUNCH_HOLE`), `pipe(7)` (`PIPE_BUF`).

use super::{Interest, OsResult, PollFd, retry_interrupted, retry_io, retry_nix};
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A memory file to which every write appends, whoever has inherited it. It takes no seals: no holder can forbid writing.
pub(crate) fn append_file(name: &CStr) -> OsResult<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let fd = retry_nix("memfd_create", || memfd_create(name, MFdFlags::MFD_CLOEXEC))?;
    retry_nix("fcntl", || fcntl(fd.as_fd(), FcntlArg::F_SETFL(OFlag::O_APPEND)))?;
    Ok(fd)
}

/// A file's size, and the memory that it takes. Units: bytes.
///
/// Never waits for a write.
pub(crate) fn file_size(fd: BorrowedFd<'_>) -> OsResult<(u64, u64)> {
    let stat = retry_nix("fstat", || nix::sys::stat::fstat(fd))?;
    Ok((stat.st_size as u64, stat.st_blocks as u64 * 512))
}

/// The same file with a position of its own.
pub(crate) fn reopen(fd: BorrowedFd<'_>) -> OsResult<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    // Closed on exec, as all that the standard library opens.
    retry_io("openat", || std::fs::OpenOptions::new().read(true).write(true).open(&path)).map(OwnedFd::from)
}

/// A file's size, in half the time that `fstat(2)` takes. Waits while somebody who has the same position is in the midst of a
/// write.
pub(crate) fn seek_end(fd: BorrowedFd<'_>) -> OsResult<u64> {
    retry_nix("lseek", || nix::unistd::lseek(fd, 0, nix::unistd::Whence::SeekEnd)).map(|end| end as u64)
}

/// Reads what lies at `offset`; fewer bytes than asked for when the file ends.
pub(crate) fn read_at(fd: BorrowedFd<'_>, into: &mut [u8], offset: u64) -> OsResult<usize> {
    let mut read = 0;
    while read < into.len() {
        let rest = &mut into[read..];
        let at = (offset + read as u64) as libc::off_t;
        let n = retry_interrupted("pread64", || {
            // SAFETY: `rest` is live and writable for its length.
            unsafe { libc::pread(fd.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), at) }
        })?;
        if n == 0 {
            break;
        }
        read += n;
    }
    Ok(read)
}

/// Gives back the memory of a file's bytes before `end`; its size stays. Waits while somebody is in the midst of a write.
pub(crate) fn free_before(fd: BorrowedFd<'_>, end: u64) -> OsResult<()> {
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    retry_nix("fallocate", || fallocate(fd, how, 0, end as libc::off_t))
}

/// Bytes that a pipe takes without blocking when it is writable: `PIPE_BUF`.
const PIECE_SIZE: usize = libc::PIPE_BUF;

/// Writes to somebody else's descriptor, of which nothing is known: waits `timeout_ns` at most for each piece to be taken
/// (`None`: as long as it takes), then leaves out the rest. One whose reader is gone is not written to.
pub(crate) fn write_when_ready(fd: BorrowedFd<'_>, mut bytes: &[u8], timeout_ns: Option<u64>) {
    while !bytes.is_empty() {
        let mut poll = [PollFd::new(fd, Interest::WRITE)];
        match super::epoll::poll(&mut poll, timeout_ns) {
            // An interrupted wait, or the time is over.
            Ok(0) if timeout_ns.is_none() => continue,
            Ok(n) if n > 0 && !poll[0].is_hung_up() => {}
            _ => return,
        }
        let piece = &bytes[..bytes.len().min(PIECE_SIZE)];
        let written = retry_interrupted("write", || {
            // SAFETY: `piece` is live for its length.
            unsafe { libc::write(fd.as_raw_fd(), piece.as_ptr().cast(), piece.len()) }
        });
        match written {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.errno == libc::EAGAIN => {}
            Err(_) => return,
        }
    }
}

/// The descriptor that is standard error now, open or not.
pub(crate) fn standard_error() -> BorrowedFd<'static> {
    // SAFETY: number 2 is nobody's to close while this process runs; a call on one that is closed fails with EBADF.
    unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appended_bytes_are_read_back_and_freed() {
        let file = append_file(c"test").unwrap();
        let mut other = std::fs::File::from(file.try_clone().unwrap());
        for _ in 0..3 {
            std::io::Seek::seek(&mut other, std::io::SeekFrom::Start(0)).unwrap();
            std::io::Write::write_all(&mut other, &[7; 100_000]).unwrap();
        }
        let (size, memory) = file_size(file.as_fd()).unwrap();
        assert!(size == 300_000 && memory >= size, "{memory}");
        free_before(file.as_fd(), 262_144).unwrap();
        let (size, memory) = file_size(file.as_fd()).unwrap();
        assert!(size == 300_000 && memory <= 300_000 - 262_144 + 65_536, "{memory}");
        assert_eq!(seek_end(reopen(file.as_fd()).unwrap().as_fd()), Ok(300_000));
        let mut bytes = [1; 20];
        assert_eq!(read_at(file.as_fd(), &mut bytes, 300_000 - 10), Ok(10));
        assert_eq!(bytes, [[7; 10], [1; 10]].concat()[..]);
        assert!(fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(nix::fcntl::SealFlag::F_SEAL_WRITE)).is_err());
    }

    #[test]
    fn a_full_pipe_holds_nobody_up_and_a_closed_one_kills_nobody() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        write_when_ready(writer.as_fd(), &vec![1; 10 << 20], Some(0));
        let mut bytes = [0; 4096];
        assert_eq!(nix::unistd::read(&reader, &mut bytes), Ok(4096));
        drop(reader);
        write_when_ready(writer.as_fd(), b"more", None);
    }
}
