//! Monotonic time, a cheaper reading of it, and giving way.
//!
//! # Source
//! `clock_gettime(2)`, `sched_yield(2)`; the x86 time stamp counter: Intel SDM volume 3, "Time-Stamp Counter".

/// Monotonic time in nanoseconds.
pub(super) fn now_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a live, writable timespec, all that clock_gettime(2) asks for; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// The same time from the processor's own counter: less than half the price of a clock reading, so that each of many tiny
/// jobs can be timed.
///
/// The counter's pace is learnt from the clock: every [`TickClock::set`] pairs a reading of both. Until the first pace is
/// known, and on processors without a counter of constant pace, a reading is the clock's own.
#[derive(Clone, Copy, Debug)]
pub struct TickClock {
    /// Where the pace is measured from.
    first: Pair,
    /// Where readings are measured from.
    last: Pair,
    /// Nanoseconds a tick, times 2^32. 0: not known.
    pace: u64,
}

#[derive(Clone, Copy, Debug)]
struct Pair {
    ticks: u64,
    ns: u64,
}

/// Shortest time over which the pace is measured. Units: nanoseconds.
const PACE_NS_MIN: u64 = 1_000_000;
/// Longest time between two readings of the clock; beyond it a reading of the counter is not extrapolated.
const READING_NS_MAX: u64 = 1 << 40;

impl TickClock {
    /// A clock that knows no pace yet.
    pub fn new(now_ns: u64) -> Self {
        let now = Pair { ticks: ticks().unwrap_or(0), ns: now_ns };
        Self { first: now, last: now, pace: 0 }
    }

    /// Tells the clock's reading, which has just been taken.
    #[inline]
    pub fn set(&mut self, now_ns: u64) {
        let Some(ticks) = ticks() else { return };
        self.last = Pair { ticks, ns: now_ns };
        let elapsed_ns = now_ns.saturating_sub(self.first.ns);
        if self.pace == 0 && elapsed_ns >= PACE_NS_MIN {
            self.learn(elapsed_ns);
        }
    }

    #[cold]
    fn learn(&mut self, elapsed_ns: u64) {
        let elapsed_ticks = self.last.ticks.wrapping_sub(self.first.ticks).max(1);
        let pace = (u128::from(elapsed_ns) << 32) / u128::from(elapsed_ticks);
        self.pace = u64::try_from(pace).unwrap_or(0);
    }

    /// The time now, never before the last [`TickClock::set`]. `None`: read the clock itself.
    #[inline]
    pub fn now_ns(&self) -> Option<u64> {
        if self.pace == 0 {
            return None;
        }
        let elapsed_ticks = ticks()?.wrapping_sub(self.last.ticks);
        // A counter that ran backwards, as between cores that are out of step, has wrapped here.
        let elapsed_ns = (u128::from(elapsed_ticks) * u128::from(self.pace)) >> 32;
        (elapsed_ns < u128::from(READING_NS_MAX)).then(|| self.last.ns + elapsed_ns as u64)
    }
}

/// The processor's counter, if it has one that keeps its pace.
#[cfg(target_arch = "x86_64")]
#[inline]
fn ticks() -> Option<u64> {
    use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
    /// 0: not asked yet. 1: no. 2: yes. Relaxed: every process and thread would find the same.
    static KEEPS_PACE: AtomicU8 = AtomicU8::new(0);
    #[cold]
    fn ask() -> u8 {
        use std::arch::x86_64::__cpuid;
        // Leaf 8000_0007h, EDX bit 8: the counter keeps its pace in all states of the processor.
        let keeps_pace = __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & (1 << 8) != 0;
        1 + u8::from(keeps_pace)
    }
    let mut answer = KEEPS_PACE.load(Relaxed);
    if answer == 0 {
        answer = ask();
        KEEPS_PACE.store(answer, Relaxed);
    }
    // SAFETY: every x86-64 processor has RDTSC; a kernel that forbids it (`PR_SET_TSC`) is asked for by the program itself.
    (answer == 2).then(|| unsafe { std::arch::x86_64::_rdtsc() })
}

/// The processor's counter, if it has one that keeps its pace.
#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> Option<u64> {
    None
}

pub(super) fn yield_now() {
    // SAFETY: sched_yield(2) takes no argument and touches no memory of ours.
    unsafe { libc::sched_yield() };
}

pub(super) fn to_timespec(ns: u64) -> libc::timespec {
    libc::timespec { tv_sec: (ns / 1_000_000_000) as libc::time_t, tv_nsec: (ns % 1_000_000_000) as libc::c_long }
}

#[cfg(all(test, not(seqpool_loom)))]
mod tests {
    use super::*;

    #[test]
    fn ticks_keep_to_the_clock() {
        let mut clock = TickClock::new(now_ns());
        assert_eq!(clock.now_ns(), None, "no pace is known at first");
        std::thread::sleep(std::time::Duration::from_millis(20));
        clock.set(now_ns());
        if ticks().is_none() {
            assert_eq!(clock.now_ns(), None);
            return;
        }
        let mut last_ns = 0;
        for _ in 0..100 {
            let (before, by_ticks, after) = (now_ns(), clock.now_ns().expect("a pace"), now_ns());
            // The pace was learnt over 20 ms, with readings that may be a moment apart.
            assert!(by_ticks + 200_000 >= before && by_ticks <= after + 200_000, "{before} {by_ticks} {after}");
            assert!(by_ticks >= last_ns);
            last_ns = by_ticks;
        }
    }

    #[test]
    fn a_counter_that_ran_backwards_is_not_believed() {
        let now = Pair { ticks: u64::MAX, ns: 5 };
        let clock = TickClock { first: now, last: now, pace: 1 << 31 };
        assert_eq!(clock.now_ns().filter(|&ns| ns > 5 + READING_NS_MAX), None);
        let ahead = Pair { ticks: ticks().unwrap_or(0).wrapping_add(1 << 50), ns: 5 };
        assert_eq!(TickClock { first: now, last: ahead, pace: 1 << 31 }.now_ns(), None);
    }
}
