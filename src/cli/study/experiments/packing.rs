//! How many frames to put in a packet.

use super::{Experiment, Row, SAMPLE_TIME, Told, failed, tell, times};
use crate::cli::bench::bare::{FRAME_SIZE, Packed};
use crate::cli::figures::figure;
use crate::cli::machine::Machine;
use crate::cli::report::Fatal;
use crate::limits::SEND_BUFFER_SIZE;
use crate::sys::{Linux, OsResult, Sys};
use serde::Serialize;
use std::os::fd::AsFd;
use std::time::Duration;

const WORKERS: usize = 2;
/// Packets on their way to and from each worker.
const WINDOW: usize = 4;
const FRAMES: [usize; 5] = [1, 64, 256, 720, 1024];
/// Packets before the clock starts; they also tell how many jobs a sample takes.
const WARM_UP_PACKETS: usize = 200;

const JOBS_PER_S: &str = "jobs/s";
const CALLS_PER_JOB: &str = "system calls/job";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Case {
    frames: usize,
    packet_size: usize,
}

impl Case {
    fn of(frames: usize) -> Self {
        Self { frames, packet_size: frames * FRAME_SIZE }
    }
}

pub(super) struct Packing {
    /// Bytes that a socket holds.
    send_buffer: usize,
}

impl Packing {
    pub(super) fn new() -> Result<Self, Fatal> {
        let send_buffer = || {
            let (socket, _peer) = Linux.socketpair()?;
            Linux.set_send_buffer(socket.as_fd(), SEND_BUFFER_SIZE)?;
            Linux.packet_size_max(socket.as_fd())
        };
        Ok(Self { send_buffer: send_buffer().map_err(|e| failed("packing", e))? })
    }

    /// Whether a worker's window fits a socket.
    fn fits(&self, case: &Case) -> bool {
        WINDOW * case.packet_size <= self.send_buffer
    }
}

impl Experiment for Packing {
    type Case = Case;
    const NAME: &'static str = "packing";
    const SUBJECT: &'static str = "frames with 64 bytes, upper-cased by 2 workers; 4 packets on their way to and from each; calls \
                                   are the host's";
    const LABELS: [&'static str; 2] = ["frames a packet", "its size"];
    const UNITS: &'static [&'static str] = &[JOBS_PER_S, CALLS_PER_JOB];

    fn cases(&self) -> Vec<Case> {
        FRAMES.into_iter().map(Case::of).filter(|case| self.fits(case)).collect()
    }

    fn note(&self) -> String {
        let left_out: Vec<String> =
            FRAMES.into_iter().filter(|&frames| !self.fits(&Case::of(frames))).map(|n| n.to_string()).collect();
        match left_out.is_empty() {
            true => String::new(),
            false => format!(
                "{} frames a packet are left out: {WINDOW} such packets do not fit a socket's {} bytes (net.core.wmem_max)",
                left_out.join(" and "),
                self.send_buffer
            ),
        }
    }

    fn measure(&mut self, case: &Case) -> Result<Vec<f64>, Fatal> {
        sample(case.frames).map_err(|e| failed("packing", e))
    }

    fn labels(case: &Case) -> [String; 2] {
        [case.frames.to_string(), format!("{} bytes", case.packet_size)]
    }

    fn follows(rows: &[Row<Case>], _: &Machine) -> Vec<String> {
        let of = |unit: &'static str| {
            let all = rows.iter().filter(move |row| row.unit == unit);
            all.map(|row| (row.case.frames, row.summary.median)).collect::<Vec<(usize, f64)>>()
        };
        let (rates, calls) = (of(JOBS_PER_S), of(CALLS_PER_JOB));
        let best = rates.iter().copied().max_by(|(_, a), (_, b)| a.total_cmp(b));
        let (Some(&(1, single)), Some(&(1, single_calls)), Some((frames, rate))) = (rates.first(), calls.first(), best)
        else {
            return Vec::new();
        };
        let calls_at = |frames: usize| calls.iter().find(|(n, _)| *n == frames).map_or(0.0, |(_, calls)| *calls);
        if frames == 1 || tell(rate, single) != Told::More {
            return vec![format!(
                "Packing does not pay in this run: {} jobs a second is the most, with {} the packet; one makes {}.",
                figure(rate),
                if frames == 1 { "one frame to".to_owned() } else { format!("{frames} frames to") },
                figure(single)
            )];
        }
        let mut said = vec![format!(
            "{frames} frames a packet do {} the jobs of one ({} against {} a second), at {} system calls a job instead of {}.",
            times(rate / single),
            figure(rate),
            figure(single),
            figure(calls_at(frames)),
            figure(single_calls)
        )];
        let enough = rates.iter().find(|(_, other)| tell(*other, rate) == Told::Alike);
        if let Some(&(enough, rate)) = enough
            && enough != frames
        {
            said.push(format!("{enough} come near it already ({}).", figure(rate)));
        }
        said
    }
}

/// Jobs a second, and system calls a job.
fn sample(frames: usize) -> OsResult<Vec<f64>> {
    let mut echo = Packed::start(WORKERS, frames)?;
    let warm_up = (WARM_UP_PACKETS * frames) as u64;
    let took = echo.run(WINDOW, warm_up)?.max(Duration::from_nanos(1));
    let packets = WARM_UP_PACKETS as f64 * SAMPLE_TIME.as_secs_f64() / took.as_secs_f64();
    // Whole packets, and each window is filled.
    let jobs = (packets as u64).max((WORKERS * WINDOW) as u64) * frames as u64;
    let calls_before = echo.calls();
    let took = echo.run(WINDOW, jobs)?;
    let calls = echo.calls() - calls_before;
    Ok(vec![jobs as f64 / took.as_secs_f64(), calls as f64 / jobs as f64])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::figures::Summary;

    fn said(rate: impl Fn(usize) -> f64) -> String {
        let mut rows = Vec::new();
        for unit in Packing::UNITS {
            for frames in FRAMES {
                let median = if *unit == JOBS_PER_S { rate(frames) } else { 3.0 / frames as f64 };
                rows.push(Row { case: Case::of(frames), summary: Summary { median, min: median, max: median }, unit });
            }
        }
        Packing::follows(&rows, &Machine::of_this_process(None)).join("\n")
    }

    #[test]
    fn the_expected_lesson() {
        let text = said(|frames| 400_000.0 * (frames as f64).powf(0.7));
        assert!(
            text.starts_with("1024 frames a packet do 128 times the jobs of one (51.2 M against 400 k a"),
            "{text}"
        );
        assert!(text.ends_with(" a second), at 0.0029 system calls a job instead of 3.00."), "{text}");
        let text = said(|frames| if frames > 64 { 40e6 + frames as f64 } else { 1e6 });
        assert!(text.contains("\n256 come near it already (40.0 M)."), "{text}");
    }

    #[test]
    fn figures_that_contradict_it() {
        let text = said(|frames| 400_000.0 / frames as f64);
        let words = "Packing does not pay in this run: 400 k jobs a second is the most, with one frame to the packet; one makes";
        assert!(text.starts_with(words), "{text}");
        assert!(said(|frames| if frames == 64 { 1.1e6 } else { 1e6 }).starts_with("Packing does not pay"));
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let small = Packing { send_buffer: 212_960 };
        assert_eq!(small.cases().last(), Some(&Case::of(256)));
        assert!(
            small.note().starts_with("720 and 1024 frames a packet are left out: 4 such packets"),
            "{}",
            small.note()
        );
        let large = Packing { send_buffer: SEND_BUFFER_SIZE };
        assert_eq!((large.cases().len(), large.note().as_str()), (FRAMES.len(), ""));
    }
}
