//! Monotonic time, and giving way.
//!
//! # Source
//! `clock_gettime(2)`, `sched_yield(2)`.

/// Monotonic time in nanoseconds.
pub(super) fn now_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a live, writable timespec, all that clock_gettime(2) asks for; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

pub(super) fn yield_now() {
    // SAFETY: sched_yield(2) takes no argument and touches no memory of ours.
    unsafe { libc::sched_yield() };
}

pub(super) fn to_timespec(ns: u64) -> libc::timespec {
    libc::timespec { tv_sec: (ns / 1_000_000_000) as libc::time_t, tv_nsec: (ns % 1_000_000_000) as libc::c_long }
}
