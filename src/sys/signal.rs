//! Signals: reset, block, read as descriptors, send.
//!
//! # Source
//! `sigaction(2)`, `sigprocmask(2)`, `signalfd(2)`, `kill(2)`, `fcntl(2)` (`F_SETSIG`).

use super::{OsResult, Pid, retry_interrupted, retry_nix};
use nix::sys::signal as ns;
use nix::sys::signalfd as sfd;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};

pub(super) fn kill(pid: Pid, signal: i32) -> OsResult<()> {
    assert!(!(-1..=0).contains(&pid), "never everybody, never our own group");
    // SAFETY: kill(2) takes two words.
    match retry_interrupted("kill", || unsafe { libc::kill(pid, signal) as isize }) {
        Err(error) if error.errno != libc::ESRCH => Err(error),
        _ => Ok(()),
    }
}

/// Every signal to its default, none blocked: what a fresh program expects.
pub(crate) fn reset_signals() {
    // SAFETY: sigaction is plain data, for which all-zero is SIG_DFL with an empty mask and no flags.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    for signal in 1..=libc::SIGRTMAX() {
        // Signals that cannot be changed answer EINVAL, which is fine.
        let _ = retry_interrupted("sigaction", || {
            // SAFETY: `default` is live for the call; a null old action is allowed by sigaction(2).
            unsafe { libc::sigaction(signal, &default, std::ptr::null_mut()) as isize }
        });
    }
    unblock_signals();
}

/// None blocked.
pub(crate) fn unblock_signals() {
    // Fails only for an unknown `how`.
    let set = || ns::sigprocmask(ns::SigmaskHow::SIG_SETMASK, Some(&ns::SigSet::empty()), None);
    let _ = retry_nix("sigprocmask", set);
}

/// Ends this process by `signal` as if no handler and no mask had ever been set; by `SIGABRT` if that does not end it.
pub(crate) fn raise_default(signal: i32) -> ! {
    reset_signals();
    // SAFETY: raise(3) takes one word; the disposition is the default one.
    unsafe { libc::raise(signal) };
    std::process::abort()
}

/// Where [`mark_failed_allocations`] stores what, and in which process: a forked child may not have that memory.
static MARK: AtomicPtr<u32> = AtomicPtr::new(std::ptr::null_mut());
static MARK_VALUE: AtomicU32 = AtomicU32::new(0);
static MARK_OWNER: AtomicI32 = AtomicI32::new(0);

/// From now on, when this process aborts after a call that found no memory (`errno` is still `ENOMEM`), `value` is stored
/// at `at` before it dies: what Rust does when an allocation fails, and C++ when nobody catches `bad_alloc`.
///
/// # Safety
/// `at` is a word that all who have it access atomically, in memory that stays mapped until [`unmark_failed_allocations`].
pub(crate) unsafe fn mark_failed_allocations(at: *mut u32, value: u32) -> OsResult<()> {
    extern "C" fn on_abort(signal: i32) {
        let mark = MARK.load(Ordering::Relaxed);
        let is_ours = !mark.is_null() && MARK_OWNER.load(Ordering::Relaxed) == super::own_pid();
        if is_ours && nix::errno::Errno::last_raw() == libc::ENOMEM {
            // SAFETY: mapped, and always accessed atomically, by the contract of the function around.
            let word = unsafe { AtomicU32::from_ptr(mark) };
            word.store(MARK_VALUE.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        // SAFETY: raise(3) is async-signal-safe; the disposition is the default one again (SA_RESETHAND), and the signal
        // is not blocked here (SA_NODEFER).
        unsafe { libc::raise(signal) };
    }
    MARK_VALUE.store(value, Ordering::Relaxed);
    MARK_OWNER.store(super::own_pid(), Ordering::Relaxed);
    MARK.store(at, Ordering::Relaxed);
    let flags = ns::SaFlags::SA_RESETHAND | ns::SaFlags::SA_NODEFER | ns::SaFlags::SA_ONSTACK;
    let action = ns::SigAction::new(ns::SigHandler::Handler(on_abort), flags, ns::SigSet::empty());
    retry_nix("sigaction", || {
        // SAFETY: the handler only reads errno, stores a word and raises, all of which signal-safety(7) allows.
        unsafe { ns::sigaction(ns::Signal::SIGABRT, &action) }
    })
    .map(drop)
}

/// Forgets why an earlier call failed, so that the next one to be judged by it is judged alone.
pub(crate) fn clear_errno() {
    nix::errno::Errno::clear();
}

/// Nothing is stored any more.
pub(crate) fn unmark_failed_allocations() {
    MARK.store(std::ptr::null_mut(), Ordering::Relaxed);
}

/// A signal's name, such as `SIGKILL`; `None` for numbers without one.
pub(crate) fn signal_name(signal: i32) -> Option<&'static str> {
    ns::Signal::try_from(signal).ok().map(ns::Signal::as_str)
}

/// Signals to be read from a descriptor instead of being handled.
pub struct SignalSet(ns::SigSet);

impl SignalSet {
    /// A set of signal numbers; numbers that are no standard signal are left out.
    pub fn of(signals: &[i32]) -> Self {
        let mut set = ns::SigSet::empty();
        for s in signals.iter().filter_map(|&s| ns::Signal::try_from(s).ok()) {
            set.add(s);
        }
        Self(set)
    }
}

/// A readable descriptor for a set of blocked signals.
pub struct SignalFd(sfd::SignalFd);

impl SignalFd {
    /// Blocks the signals in this thread and opens a descriptor for them.
    pub fn block_and_open(set: &SignalSet) -> OsResult<Self> {
        retry_nix("sigprocmask", || set.0.thread_block())?;
        let flags = sfd::SfdFlags::SFD_NONBLOCK | sfd::SfdFlags::SFD_CLOEXEC;
        retry_nix("signalfd", || sfd::SignalFd::with_flags(&set.0, flags)).map(Self)
    }

    /// The next pending signal's number, if there is one.
    pub fn next_signal(&self) -> OsResult<Option<i32>> {
        match retry_nix("read", || self.0.read_signal()) {
            Ok(info) => Ok(info.map(|i| i.ssi_signo as i32)),
            Err(error) if error.errno == libc::EAGAIN => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Blocks every signal that can be blocked.
#[cfg(feature = "cli")]
pub(crate) fn block_all() {
    let _ = ns::SigSet::all().thread_block();
}

/// Stops this process as `signal`, one of those for it, does by default, and returns when it has been continued. At once
/// where the kernel discards such signals: in a process group without a shell that could continue it.
///
/// The calling thread, like all others, blocks the signal before and after.
#[cfg(feature = "cli")]
pub(crate) fn stop_by(signal: i32) -> OsResult<()> {
    let set = SignalSet::of(&[signal]);
    kill(super::own_pid(), signal)?;
    retry_nix("sigprocmask", || set.0.thread_unblock())?;
    retry_nix("sigprocmask", || set.0.thread_block())
}

/// Ends this process by `signal`, flushing nothing: what a shell reports as 128 + n.
#[cfg(feature = "cli")]
pub(crate) fn die_by_signal(signal: i32) -> ! {
    reset_signals();
    // SAFETY: kill(2) takes two words; the target is this process.
    unsafe { libc::kill(super::own_pid(), signal) };
    // Only a signal whose default is not to end gets here.
    std::process::exit(128 + signal)
}
