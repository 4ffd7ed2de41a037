//! Memory files and mappings; the ring that is mapped twice; counters that processes share.
//!
//! # Source
//! `memfd_create(2)`, `mmap(2)`, `madvise(2)`, `fcntl(2)` (seals).

use super::{OsError, OsResult, retry_interrupted, retry_nix};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

pub(super) fn memfd(name: &CStr, size: usize) -> OsResult<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = retry_nix("memfd_create", || memfd_create(name, flags))?;
    retry_nix("ftruncate", || nix::unistd::ftruncate(fd.as_fd(), size as i64))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    retry_nix("fcntl", || fcntl(fd.as_fd(), FcntlArg::F_ADD_SEALS(seals)))?;
    Ok(fd)
}

/// Maps, and repeats it when interrupted.
fn mmap(mut map: impl FnMut() -> *mut libc::c_void) -> OsResult<*mut libc::c_void> {
    let mut base = libc::MAP_FAILED;
    retry_interrupted("mmap", || {
        base = map();
        if base == libc::MAP_FAILED { -1 } else { 0 }
    })?;
    Ok(base)
}

/// Who else sees a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// A forked child inherits it.
    Inherited,
    /// A forked child does not have it (`MADV_DONTFORK`).
    NotInherited,
}

/// A shared mapping of a memory file: a plain prefix, then a ring that is mapped twice in a row.
///
/// Shape: `[prefix][ring][ring again]`. Byte `i` of the ring and byte `i + ring` are the same memory, so that any
/// run of at most `ring` bytes that starts in the first copy is contiguous, wherever it wraps.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    size: usize,
    /// The process that has it: in a fork of that process the range may be somebody else's by now.
    owner: super::Pid,
}

// SAFETY: a Mapping owns its address range, as a Box owns its memory; nothing in it is tied to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    pub(super) fn map_ring(fd: BorrowedFd<'_>, prefix: usize, ring: usize, sharing: Sharing) -> OsResult<Self> {
        let size = prefix + 2 * ring;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let base = mmap(|| {
            // SAFETY: a new anonymous range at an address of the kernel's choice: nothing existing is touched.
            unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0) }
        })?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(OsError { call: "mmap", errno: libc::EINVAL })?;
        // Owned from here on: an error below unmaps the whole range.
        let mapping = Self { base, size, owner: super::own_pid() };
        mapping.place(fd, 0, prefix + ring, 0)?;
        mapping.place(fd, prefix + ring, ring, prefix)?;
        if sharing == Sharing::NotInherited {
            retry_interrupted("madvise", || {
                // SAFETY: the range is ours, whole and page-aligned; MADV_DONTFORK changes nothing in this process.
                unsafe { libc::madvise(base.as_ptr().cast(), size, libc::MADV_DONTFORK) as isize }
            })?;
        }
        Ok(mapping)
    }

    /// Replaces `[at, at + size)` of the reserved range by the file's bytes from `offset` on.
    fn place(&self, fd: BorrowedFd<'_>, at: usize, size: usize, offset: usize) -> OsResult<()> {
        assert!(at + size <= self.size, "inside the reserved range");
        if size == 0 {
            return Ok(());
        }
        let address = self.base.as_ptr().wrapping_add(at);
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        let got = mmap(|| {
            // SAFETY: MAP_FIXED replaces only `[at, at + size)` of our own reservation (asserted above), to which no
            // reference exists yet.
            unsafe { libc::mmap(address.cast(), size, prot, flags, fd.as_raw_fd(), offset as libc::off_t) }
        });
        got.map(drop)
    }

    /// First byte of the mapping; page-aligned.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes from first to last, the second copy of the ring included.
    pub fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if super::own_pid() != self.owner {
            return;
        }
        // SAFETY: the range is ours alone, and whoever borrowed from it borrowed from `self`.
        let n = unsafe { libc::munmap(self.base.as_ptr().cast(), self.size) };
        debug_assert_eq!(n, 0, "munmap of our own range");
    }
}

/// Private memory, zero at first, in pages of its own: what is not touched costs nothing.
///
/// Not what `calloc(3)` gives: that is memory used before, and cleared by hand, once the allocator has seen such a size freed.
#[derive(Debug)]
pub struct Pages {
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: Pages own their range, as a Box owns its memory; nothing in it is tied to a thread.
unsafe impl Send for Pages {}

impl Pages {
    pub(super) fn map(size: usize) -> OsResult<Self> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let base = mmap(|| {
            // SAFETY: a new range at an address of the kernel's choice: nothing existing is touched.
            unsafe { libc::mmap(std::ptr::null_mut(), size, prot, flags, -1, 0) }
        })?;
        let base = NonNull::new(base.cast()).ok_or(OsError { call: "mmap", errno: libc::EINVAL })?;
        Ok(Self { base, size })
    }
}

/// None at all.
impl Default for Pages {
    fn default() -> Self {
        Self { base: NonNull::dangling(), size: 0 }
    }
}

impl std::ops::Deref for Pages {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: mapped for `size` bytes until `drop`, or empty; zeroed by the kernel; borrowed as `self` is.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.size) }
    }
}

impl std::ops::DerefMut for Pages {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.size) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.size == 0 {
            return;
        }
        // SAFETY: the range of `map`, whole; whoever borrowed from it borrowed from `self`. A fork has a copy of its own.
        let n = unsafe { libc::munmap(self.base.as_ptr().cast(), self.size) };
        debug_assert_eq!(n, 0, "munmap of our own range");
    }
}

/// Zeroed counters in memory that every process forked from now on shares.
#[derive(Debug)]
pub(crate) struct SharedCounters {
    base: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the mapping is this value's own, as a Box's memory is; nothing in it is tied to a thread.
unsafe impl Send for SharedCounters {}
// SAFETY: a shared reference gives out shared references to atomics only.
unsafe impl Sync for SharedCounters {}

impl SharedCounters {
    pub(crate) fn new(count: usize) -> OsResult<Self> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new range at an address of the kernel's choice: nothing existing is touched.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), count * size_of::<AtomicU64>(), prot, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(OsError::last("mmap"));
        }
        let base = NonNull::new(base.cast()).ok_or(OsError { call: "mmap", errno: libc::EINVAL })?;
        Ok(Self { base, count })
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped for `count` words until `drop`, page-aligned, zeroed by the kernel, and accessed as atomics only.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.count) }
    }
}

impl Drop for SharedCounters {
    fn drop(&mut self) {
        // SAFETY: the range of `new`, whole; whoever borrowed from it borrowed from `self`. Other processes keep theirs.
        let n = unsafe { libc::munmap(self.base.as_ptr().cast(), self.count * size_of::<AtomicU64>()) };
        debug_assert_eq!(n, 0, "munmap of our own range");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zero_and_can_be_written() {
        let mut pages = Pages::map(10_000).unwrap();
        assert!(pages.len() == 10_000 && pages.iter().all(|&b| b == 0));
        pages[9_999] = 7;
        let moved = std::mem::take(&mut pages);
        assert!(pages.is_empty() && moved[9_999] == 7);
    }

    #[test]
    fn a_ring_is_contiguous_across_its_end_and_its_file_cannot_shrink() {
        let fd = memfd(c"test", 4096 + 8192).unwrap();
        let map = Mapping::map_ring(fd.as_fd(), 4096, 8192, Sharing::NotInherited).unwrap();
        assert_eq!(map.size(), 4096 + 2 * 8192);
        let last = map.as_ptr().wrapping_add(4096 + 8191);
        // SAFETY: two bytes that both lie inside the mapping.
        unsafe { std::ptr::copy_nonoverlapping([7u8, 9].as_ptr(), last, 2) };
        // SAFETY: the first byte of the ring lies inside the mapping.
        assert_eq!(unsafe { map.as_ptr().wrapping_add(4096).read() }, 9);
        assert!(nix::unistd::ftruncate(fd.as_fd(), 0).is_err(), "sealed");
    }
}
