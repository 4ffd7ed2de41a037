//! One failure at a chosen place: the nth call of one name in one kind of process, swept by tests over every place.
//!
//! Every wrapper of this floor asks [`struck`] before it makes its call. In a program that does not test, nobody watches:
//! then the answer is one load of a flag that never changes. While somebody does, each process counts its own calls, and
//! what the processes have in common stands in a page that they share: the plan, whether it has been carried out, and the
//! most calls that any one process has made.
//!
//! # Source
//! `mmap(2)` (`MAP_SHARED | MAP_ANONYMOUS`: a forked child has the same page).

use super::Role;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

/// The `nth` call of this name, counted from 1 in each process by itself, is struck and does not reach the kernel: in the
/// first process of this role that comes so far, and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strike {
    /// In which processes.
    pub role: Role,
    /// As an [`OsError`](super::OsError) names it; one of [`Strike::CALLS`].
    pub call: &'static str,
    /// Which of them.
    pub nth: u32,
    /// What happens instead.
    pub blow: Blow,
}

/// What a [`Strike`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// The call fails with this error.
    Errno(i32),
    /// The process dies by `SIGKILL`, before the call.
    Kill,
}

impl Blow {
    /// As in the shared page: no error has the number 0.
    fn to_bits(self) -> u32 {
        match self {
            Blow::Errno(errno) => errno as u32,
            Blow::Kill => 0,
        }
    }
}

impl Strike {
    /// The calls that can be struck: all that the pool makes itself. Those that the standard and the C library make for it
    /// (files of `/proc`, closing, memory) are not among them.
    pub const CALLS: &'static [&'static str] = &[
        "accept4",
        "bind",
        "close_range",
        "connect",
        "dup2",
        "dup3",
        "epoll_create1",
        "epoll_ctl",
        "epoll_pwait2",
        "epoll_wait",
        "eventfd",
        "fallocate",
        "fcntl",
        "fcntl(F_DUPFD_CLOEXEC)",
        "fork",
        "fstat",
        "ftruncate",
        "getrlimit",
        "getrusage",
        "getsockname",
        "getsockopt",
        "kill",
        "listen",
        "lseek",
        "madvise",
        "memfd_create",
        "mkdir",
        "mmap",
        "openat",
        "pidfd_open",
        "posix_spawn",
        "ppoll",
        "prctl",
        "pread64",
        "read",
        "read /proc/PID/statm",
        "read /proc/self/oom_score_adj",
        "read memory events",
        "read memory usage",
        "recvmsg",
        "rmdir",
        "sched_getaffinity",
        "sched_setaffinity",
        "sendmsg",
        "sendto",
        "setpgid",
        "setpriority",
        "setrlimit",
        "setsid",
        "setsockopt",
        "shutdown",
        "sigaction",
        "signalfd",
        "sigprocmask",
        "socket",
        "socketpair",
        "stat /proc/self/task",
        "statx",
        "timerfd_create",
        "timerfd_settime",
        "wait4",
        "waitid",
        "waitpid",
        "write",
        "write /proc/self/oom_score_adj",
        "write cgroup.procs",
        "write cgroup.subtree_control",
        "write memory limit",
        "write memory swap limit",
    ];
}

const CALLS: usize = Strike::CALLS.len();
const NOBODY: u32 = u32::MAX;

/// What all processes share. Relaxed throughout: counters, and a plan that is made before any of them is forked.
struct Page {
    /// The plan: role and call by their indices. `NOBODY`: only counting.
    role: AtomicU32,
    call: AtomicU32,
    nth: AtomicU32,
    /// As [`Blow::to_bits`].
    blow: AtomicU32,
    struck: AtomicBool,
    /// The most calls of each name that one process of each role has made.
    most: [[AtomicU32; CALLS]; Role::ALL.len()],
}

/// Whether this process and those that it forks are watched.
static WATCHED: AtomicBool = AtomicBool::new(false);
/// How many forks this process is away from the one that watches.
static DEPTH: AtomicU32 = AtomicU32::new(0);
/// This process's own calls.
static OWN: [AtomicU32; CALLS] = [const { AtomicU32::new(0) }; CALLS];

/// The page; never given back, for a forked process may still use it.
fn page() -> &'static Page {
    static PAGE: OnceLock<&'static Page> = OnceLock::new();
    PAGE.get_or_init(|| {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice: nothing existing is touched.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Page>(), prot, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "memory for one page of counters");
        // SAFETY: zeroed, page-aligned, large enough, never unmapped, and of atomics only, for which zero is a value.
        unsafe { &*base.cast::<Page>() }
    })
}

/// Watches from now on, with or without a plan. Counts begin at zero.
pub(super) fn watch(plan: Option<Strike>) {
    let page = page();
    let index = |found: Option<usize>| found.map_or(NOBODY, |i| i as u32);
    page.role.store(index(plan.and_then(|p| Role::ALL.iter().position(|r| *r == p.role))), Relaxed);
    let call = plan.map(|p| index_of(p.call));
    page.call.store(index(call), Relaxed);
    page.nth.store(plan.map_or(0, |p| p.nth), Relaxed);
    page.blow.store(plan.map_or(0, |p| p.blow.to_bits()), Relaxed);
    page.struck.store(false, Relaxed);
    page.most.iter().flatten().chain(&OWN).for_each(|count| count.store(0, Relaxed));
    WATCHED.store(true, Relaxed);
}

/// Watches no more.
pub(super) fn unwatch() {
    WATCHED.store(false, Relaxed);
}

/// Whether the plan has been carried out.
pub(super) fn has_struck() -> bool {
    page().struck.load(Relaxed)
}

/// The most calls of each name that one process of each role has made since the watch began.
pub(super) fn calls() -> Vec<(Role, &'static str, u32)> {
    let mut calls = Vec::new();
    for (role, counts) in Role::ALL.iter().zip(&page().most) {
        let made = Strike::CALLS.iter().zip(counts).map(|(call, count)| (*role, *call, count.load(Relaxed)));
        calls.extend(made.filter(|(_, _, count)| *count > 0));
    }
    calls
}

/// This process has just been forked.
pub(super) fn forked() {
    DEPTH.fetch_add(1, Relaxed);
    OWN.iter().for_each(|count| count.store(0, Relaxed));
}

fn index_of(call: &str) -> usize {
    let index = Strike::CALLS.iter().position(|known| *known == call);
    index.unwrap_or_else(|| panic!("{call} is not in the list of calls that can be struck"))
}

/// Whether the call of this name that is about to be made has to fail, and with what. May not return.
#[inline]
pub(super) fn struck(call: &'static str) -> Option<i32> {
    if WATCHED.load(Relaxed) { count(call) } else { None }
}

#[cold]
fn count(call: &'static str) -> Option<i32> {
    let (page, call) = (page(), index_of(call));
    let role = Role::from_depth(DEPTH.load(Relaxed) as usize) as usize;
    let nth = OWN[call].fetch_add(1, Relaxed) + 1;
    page.most[role][call].fetch_max(nth, Relaxed);
    let is_planned =
        (page.role.load(Relaxed), page.call.load(Relaxed), page.nth.load(Relaxed)) == (role as u32, call as u32, nth);
    if !is_planned || page.struck.swap(true, Relaxed) {
        return None;
    }
    match page.blow.load(Relaxed) {
        0 => die(),
        errno => Some(errno as i32),
    }
}

fn die() -> ! {
    // SAFETY: getpid(2) takes nothing.
    let me = unsafe { libc::getpid() };
    loop {
        // SAFETY: kill(2) takes numbers. Not by the wrapper, which would count it.
        unsafe { libc::kill(me, libc::SIGKILL) };
    }
}
