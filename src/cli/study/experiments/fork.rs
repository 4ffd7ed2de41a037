//! What a fork costs from a process that has ever more memory.

use super::{Experiment, Row, Told, failed, median_us, room, tell, times};
use crate::cli::bench::bare::fork_exit_wait;
use crate::cli::figures::figure;
use crate::cli::machine::{Machine, kib};
use crate::cli::report::Fatal;
use crate::sys;
use serde::Serialize;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// What the process has beyond its own few MiB.
const RESIDENT_MIB: [u64; 4] = [0, 128, 512, 2048];
/// It takes at most one part in so many of what is available.
const SHARE: u64 = 2;
/// A sample is the median of so many forks,
const FORKS: usize = 20;
/// or of fewer, when they take longer.
const FORKS_TIME: Duration = Duration::from_millis(100);
/// Bytes of the smallest page on any machine: touching one in so many touches all.
const PAGE_SIZE: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Case {
    resident_mib: u64,
}

pub(super) struct Fork {
    available_mib: u64,
    /// Memory that has been touched: what each case has beyond the one before it.
    held: Vec<Vec<u8>>,
}

impl Fork {
    pub(super) fn new() -> Result<Self, Fatal> {
        // A huge page is one entry of a page table instead of 512: how many there are would be chance.
        sys::forbid_huge_pages().map_err(|e| failed("fork", e))?;
        Ok(Self { available_mib: room::available_mib(), held: Vec::new() })
    }

    fn most_mib(&self) -> u64 {
        self.available_mib / SHARE
    }

    fn held_mib(&self) -> u64 {
        self.held.iter().map(|memory| memory.capacity() as u64 >> 20).sum()
    }

    /// Holds so much memory, and sees that it is there.
    fn hold(&mut self, mib: u64) -> Result<(), Fatal> {
        while mib < self.held_mib() {
            self.held.pop();
        }
        let more = ((mib - self.held_mib()) << 20) as usize;
        if more > 0 {
            let mut memory = Vec::new();
            memory.try_reserve_exact(more).map_err(|e| failed("fork", format_args!("{mib} MiB of memory: {e}")))?;
            for page in memory.spare_capacity_mut().chunks_mut(PAGE_SIZE) {
                page[0].write(1);
            }
            // Nobody reads it: without this the compiler may leave all of it out.
            self.held.push(black_box(memory));
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        match kib(&status, "VmRSS") >> 10 {
            resident if resident >= mib => Ok(()),
            resident => {
                Err(failed("fork", format_args!("of {mib} MiB only {resident} stay in memory; free some of it")))
            }
        }
    }
}

impl Experiment for Fork {
    type Case = Case;
    const NAME: &'static str = "fork";
    // Touching 2 GiB takes seconds where a hypervisor has to find them first.
    const REPEAT: u32 = 3;
    const SUBJECT: &'static str = "fork, exit and wait, in pages of the smallest size";
    const LABELS: [&'static str; 2] = ["resident", ""];
    const UNITS: &'static [&'static str] = &["ms"];

    fn cases(&self) -> Vec<Case> {
        let mut cases: Vec<Case> =
            RESIDENT_MIB.into_iter().map(|mib| Case { resident_mib: mib.min(self.most_mib()) }).collect();
        cases.dedup();
        cases
    }

    fn note(&self) -> String {
        match RESIDENT_MIB.iter().max() {
            Some(&wanted) if wanted > self.most_mib() => format!(
                "at most {} MiB instead of {wanted}: half of the {} MiB that are available",
                self.most_mib(),
                self.available_mib
            ),
            _ => String::new(),
        }
    }

    fn measure(&mut self, case: &Case) -> Result<Vec<f64>, Fatal> {
        self.hold(case.resident_mib)?;
        let (mut times_ns, began) = (Vec::with_capacity(FORKS), Instant::now());
        while times_ns.is_empty() || (times_ns.len() < FORKS && began.elapsed() < FORKS_TIME) {
            let took = fork_exit_wait(1).map_err(|e| failed("fork", e))?;
            times_ns.push(took.as_nanos() as u64);
        }
        Ok(vec![median_us(&times_ns) / 1e3])
    }

    fn labels(case: &Case) -> [String; 2] {
        [format!("{} MiB", case.resident_mib), String::new()]
    }

    fn follows(rows: &[Row<Case>], _: &Machine) -> Vec<String> {
        let (Some(small), Some(large)) = (rows.first(), rows.last()) else { return Vec::new() };
        let (small_ms, large_ms) = (small.summary.median, large.summary.median);
        let mib = large.case.resident_mib;
        if rows.len() == 1 {
            return vec!["Nothing follows: there is no memory to grow into.".to_owned()];
        }
        let figures = format!("{} ms at {mib} MiB, {} with next to nothing", figure(large_ms), figure(small_ms));
        vec![match tell(large_ms, small_ms) {
            Told::More => format!(
                "A fork copies page tables: {} µs for each MiB ({figures}). From {mib} MiB a fork costs {} what it costs from a \
                 small process: let a small one fork.",
                figure((large_ms - small_ms) * 1e3 / mib as f64),
                times(large_ms / small_ms)
            ),
            _ => format!("In this run a fork costs no more from a large process: {figures}."),
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::figures::Summary;

    fn said(cases: &[(u64, f64)]) -> String {
        let row = |&(resident_mib, median): &(u64, f64)| Row {
            case: Case { resident_mib },
            summary: Summary { median, min: median, max: median },
            unit: "ms",
        };
        let rows: Vec<Row<Case>> = cases.iter().map(row).collect();
        Fork::follows(&rows, &Machine::of_this_process(None)).join("\n")
    }

    #[test]
    fn the_expected_lesson() {
        assert_eq!(
            said(&[(0, 0.2), (128, 3.9), (512, 15.5), (2048, 65.6)]),
            "A fork copies page tables: 31.9 µs for each MiB (65.6 ms at 2048 MiB, 0.20 with next to nothing). From 2048 MiB a \
             fork costs 328 times what it costs from a small process: let a small one fork."
        );
    }

    #[test]
    fn figures_that_contradict_it() {
        let words =
            "In this run a fork costs no more from a large process: 0.21 ms at 2048 MiB, 0.20 with next to nothing.";
        assert_eq!(said(&[(0, 0.2), (2048, 0.21)]), words);
        assert!(said(&[(0, 0.2), (2048, 0.05)]).starts_with("In this run a fork costs no more"));
        assert!(said(&[(0, 0.2)]).starts_with("Nothing follows"));
    }

    #[test]
    fn no_more_memory_than_there_is() {
        let of = |available_mib| Fork { available_mib, held: Vec::new() };
        let sizes = |fork: &Fork| fork.cases().iter().map(|case| case.resident_mib).collect::<Vec<u64>>();
        assert_eq!((sizes(&of(8192)), of(8192).note()), (RESIDENT_MIB.to_vec(), String::new()));
        assert_eq!(sizes(&of(2000)), [0, 128, 512, 1000]);
        assert_eq!(of(2000).note(), "at most 1000 MiB instead of 2048: half of the 2000 MiB that are available");
        assert_eq!(sizes(&of(300)), [0, 128, 150]);
        assert_eq!(sizes(&of(1)), [0]);
    }

    #[test]
    fn memory_that_is_held_is_there() {
        let mut fork = Fork { available_mib: 512, held: Vec::new() };
        let resident = || kib(&std::fs::read_to_string("/proc/self/status").unwrap(), "RssAnon") >> 10;
        let before = resident();
        for mib in [8, 40, 0, 8] {
            fork.hold(mib).unwrap();
            assert_eq!(fork.held_mib(), mib);
        }
        // Other tests' memory comes and goes meanwhile.
        fork.hold(256).unwrap();
        assert!(resident() >= before + 128, "{} {before}", resident());
        assert!(matches!(fork.hold(1 << 40), Err(Fatal(why)) if why.contains("of memory: ")));
    }
}
