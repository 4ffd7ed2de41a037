//! What a process does to itself and learns of its children.
//!
//! # Source
//! `setpgid(2)`, `setpriority(2)`, `close_range(2)`, `waitid(2)`, `wait4(2)`, `prctl(2)`, `fcntl(2)` (`F_SETOWN`).

use super::{OsResult, Pid, retry_interrupted, retry_nix};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// What a process had used when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    /// User time. Units: microseconds.
    pub user_us: u64,
    /// System time. Units: microseconds.
    pub system_us: u64,
    /// Peak resident memory. Units: KiB.
    pub resident_max_kib: u64,
}

/// A reaped child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitReport {
    /// How it ended.
    pub exit: Exit,
    /// What it used.
    pub usage: Usage,
}

pub(super) fn peek_exited_child() -> OsResult<Option<Pid>> {
    // SAFETY: siginfo_t is plain data, for which all-zero is valid; waitid(2) leaves si_pid 0 when nobody has ended.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let n = retry_interrupted("waitid", || {
        // SAFETY: `info` is live and writable for the call.
        unsafe { libc::waitid(libc::P_ALL, 0, &mut info, options) as isize }
    });
    match n {
        Ok(_) => {}
        Err(error) if error.errno == libc::ECHILD => return Ok(None),
        Err(error) => return Err(error),
    }
    // SAFETY: waitid(2) has filled the fields of a SIGCHLD, or left them zero.
    let pid = unsafe { info.si_pid() };
    Ok((pid != 0).then_some(pid))
}

pub(super) fn reap(pid: Pid) -> OsResult<Option<ExitReport>> {
    let mut status = 0;
    // SAFETY: rusage is plain data, for which all-zero is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let n = retry_interrupted("wait4", || {
        // SAFETY: `status` and `usage` are live and writable for the call.
        unsafe { libc::wait4(pid, &mut status, libc::WNOHANG, &mut usage) as isize }
    })?;
    if n == 0 {
        return Ok(None);
    }
    let exit = if libc::WIFSIGNALED(status) {
        Exit::Signal(libc::WTERMSIG(status))
    } else {
        Exit::Code(libc::WEXITSTATUS(status))
    };
    let micros = |t: libc::timeval| t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64;
    let usage = Usage {
        user_us: micros(usage.ru_utime),
        system_us: micros(usage.ru_stime),
        resident_max_kib: usage.ru_maxrss as u64,
    };
    Ok(Some(ExitReport { exit, usage }))
}

/// What this process, and the children that it has waited for, have used until now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UsageNow {
    pub(crate) user_us: u64,
    pub(crate) system_us: u64,
    pub(crate) resident_max_kib: u64,
    pub(crate) minor_faults: u64,
    pub(crate) major_faults: u64,
    pub(crate) voluntary_switches: u64,
    pub(crate) involuntary_switches: u64,
}

/// As `getrusage(2)` has it; nothing where it has none.
pub(crate) fn usage_now() -> UsageNow {
    use nix::sys::resource::{UsageWho, getrusage};
    let mut sum = UsageNow::default();
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let Ok(usage) = super::retry_nix("getrusage", || getrusage(who)) else { continue };
        let micros = |t: nix::sys::time::TimeVal| t.tv_sec() as u64 * 1_000_000 + t.tv_usec() as u64;
        sum.user_us += micros(usage.user_time());
        sum.system_us += micros(usage.system_time());
        sum.resident_max_kib = sum.resident_max_kib.max(usage.max_rss() as u64);
        sum.minor_faults += usage.minor_page_faults() as u64;
        sum.major_faults += usage.major_page_faults() as u64;
        sum.voluntary_switches += usage.voluntary_context_switches() as u64;
        sum.involuntary_switches += usage.involuntary_context_switches() as u64;
    }
    sum
}

/// This process's id.
pub(crate) fn own_pid() -> Pid {
    std::process::id() as Pid
}

/// Makes this process the leader of a new process group.
pub(crate) fn become_group_leader() -> OsResult<()> {
    set_group(0)
}

/// Makes a child the leader of its own process group. A child that is gone, or has exec'ed, is no error.
pub(crate) fn set_group(pid: Pid) -> OsResult<()> {
    // SAFETY: setpgid(2) takes two words.
    match retry_interrupted("setpgid", || unsafe { libc::setpgid(pid, pid) as isize }) {
        Err(e) if pid != 0 && matches!(e.errno, libc::ESRCH | libc::EACCES) => Ok(()),
        other => other.map(drop),
    }
}

/// Orphaned descendants become children of this process.
pub(crate) fn become_subreaper() -> OsResult<()> {
    retry_nix("prctl", || nix::sys::prctl::set_child_subreaper(true))
}

/// Names this process for `ps` and `top`; the kernel keeps 15 bytes.
pub(crate) fn set_name(name: &std::ffi::CStr) {
    let _ = retry_nix("prctl", || nix::sys::prctl::set_name(name));
}

/// Sets the nice value, from -20 to 19.
pub(crate) fn set_nice(nice: i32) -> OsResult<()> {
    // SAFETY: setpriority(2) takes three words.
    let set = || unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) as isize };
    retry_interrupted("setpriority", set).map(drop)
}

/// No core file when this process crashes.
pub(crate) fn forbid_core_files() -> OsResult<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = retry_nix("getrlimit", || getrlimit(Resource::RLIMIT_CORE))?;
    retry_nix("setrlimit", || setrlimit(Resource::RLIMIT_CORE, 0, hard))
}

/// Closes every descriptor above 2 except those in `keep`.
pub(crate) fn close_all_except(keep: &[RawFd]) -> OsResult<()> {
    let mut keep: Vec<u32> = keep.iter().map(|&fd| fd as u32).filter(|&fd| fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3u32;
    for fd in keep.into_iter().map(Some).chain([None]) {
        let last = fd.map_or(u32::MAX, |fd| fd - 1);
        if first <= last {
            // Closing all of a range twice is closing it once.
            retry_interrupted("close_range", || {
                // SAFETY: close_range(2) takes three words. Whoever owned these descriptors in the old process never runs
                // in this freshly forked one.
                unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) as isize }
            })?;
        }
        first = fd.map_or(u32::MAX, |fd| fd + 1);
    }
    Ok(())
}

/// Makes descriptor `to` a copy of `from`, kept across exec as standard streams are.
pub(crate) fn replace_fd(from: BorrowedFd<'_>, to: RawFd) -> OsResult<()> {
    // SAFETY: dup2(2) takes two words; `to` is one of the three standard streams, which nobody in this process owns.
    retry_interrupted("dup2", || unsafe { libc::dup2(from.as_raw_fd(), to) as isize }).map(drop)
}

/// Whether descriptor 2 is open.
pub(crate) fn has_stderr() -> bool {
    // SAFETY: F_GETFD reads a flag of a descriptor number, open or not.
    retry_interrupted("fcntl", || unsafe { libc::fcntl(2, libc::F_GETFD) as isize }).is_ok()
}

/// Arms a lifeline: when the last copy of the other end is closed, the kernel kills this process, whatever it blocks.
///
/// Returns whether the other end is still open: a host that died before the arming raised no signal.
pub(crate) fn arm_lifeline(fd: BorrowedFd<'_>) -> OsResult<bool> {
    let raw = fd.as_raw_fd();
    // SAFETY: F_SETOWN takes a process id.
    retry_interrupted("fcntl", || unsafe { libc::fcntl(raw, libc::F_SETOWN, own_pid()) as isize })?;
    // SAFETY: F_SETSIG takes a signal number. Not in libc for every target, so by its number (`fcntl(2)`: 10).
    retry_interrupted("fcntl", || unsafe { libc::fcntl(raw, F_SETSIG, libc::SIGKILL) as isize })?;
    // SAFETY: F_GETFL takes no argument.
    let flags = retry_interrupted("fcntl", || unsafe { libc::fcntl(raw, libc::F_GETFL) as isize })? as i32;
    // SAFETY: F_SETFL takes a flag word.
    retry_interrupted("fcntl", || unsafe { libc::fcntl(raw, libc::F_SETFL, flags | libc::O_ASYNC) as isize })?;
    let mut poll = [super::PollFd::new(fd.as_fd(), super::Interest::READ)];
    super::epoll::poll(&mut poll, Some(0))?;
    Ok(!poll[0].is_hung_up())
}

const F_SETSIG: i32 = 10;

/// Ends this process at once: no destructor, no exit handler.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes one word and does not return.
    unsafe { libc::_exit(code) }
}

/// The children of this process, adopted ones included.
///
/// # Source
/// `proc(5)`: `/proc/self/task/TID/children`; without it, the parent field of every `/proc/PID/stat`.
pub(crate) fn children(into: &mut Vec<Pid>) {
    into.clear();
    let own = own_pid();
    if let Ok(list) = std::fs::read_to_string(format!("/proc/self/task/{own}/children")) {
        into.extend(list.split_ascii_whitespace().filter_map(|p| p.parse::<Pid>().ok()));
        return;
    }
    let Ok(processes) = std::fs::read_dir("/proc") else { return };
    for entry in processes.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<Pid>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The command's name may hold anything; the fields follow its last parenthesis: state, then parent.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1)?.parse().ok());
        if parent == Some(own) {
            into.push(pid);
        }
    }
}
