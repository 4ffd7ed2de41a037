//! The host's resident memory at its peak.
//!
//! The peak is a process's own and never falls, so each sample is a forked process: one that runs a pool, one that does
//! nothing. The pool is first given jobs as in the throughput test, and then as many at once as it takes, so that its
//! queue is used too. The limit is what the process that does nothing has, plus the bytes of the pool's rings and
//! control pages as they are mapped: rings are mapped twice in a row, and resident memory counts a page once for each
//! mapping through which it was touched.

use super::bare::Peer;
use super::measures::{PAYLOAD, is_packing, upper_all};
use super::report::{Better, Row, Subject};
use super::{Bench, failed, limit, ready_pool, summary};
use crate::cli::machine::kib;
use crate::cli::report::Fatal;
use crate::sys;
use crate::{Job, Outcome, Pool, TransportKind};
use std::os::fd::AsFd;

/// A process's memory. Units: MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Memory {
    peak: f64,
    /// Mappings of the pool's memory files.
    rings: f64,
}

pub(super) fn rss(bench: &mut Bench, transport: TransportKind) -> Result<Vec<Row>, Fatal> {
    // Enough for the bytes of every ring to have been used, in a quick run too.
    let jobs = bench.size(if is_packing(transport) { 2_000_000 } else { 160_000 });
    let [pool, nothing] = bench.interleave([
        &mut || {
            in_a_process(|| {
                let mut pool = ready_pool(transport)?;
                upper_all(&mut pool, jobs)?;
                upper_at_once(&mut pool)?;
                Ok(Some(pool))
            })
        },
        &mut || in_a_process(|| Ok(None)),
    ])?;
    let rings = summary(&pool, |m| m.rings).median;
    let bare = summary(&nothing, |m| m.peak);
    let limit = super::Summary { median: bare.median + rings, min: bare.min + rings, max: bare.max + rings };
    let subject = Subject { test: "rss", transport, payload: PAYLOAD, unit: "MiB", better: Better::Lower };
    let row = subject
        .row(summary(&pool, |m| m.peak), limit, "a bare process and the rings as mapped")
        .with("bare_mib", bare.median)
        .with("rings_mib", rings);
    Ok(vec![row])
}

/// Submits jobs until the pool takes no more, then takes all their results.
fn upper_at_once(pool: &mut Pool) -> Result<(), Fatal> {
    let (mut submitted, mut right) = (0usize, 0usize);
    while pool.try_submit(Job::new("upper", &[b'a'; PAYLOAD])).is_ok() {
        submitted += 1;
    }
    while pool.outstanding() > 0 {
        pool.poll(None, |completion, _| {
            right += usize::from(matches!(completion.outcome, Outcome::Done(b) if b == [b'A'; PAYLOAD]));
        })
        .map_err(|e| failed("waiting for jobs", e))?;
    }
    match submitted > 0 && right == submitted {
        true => Ok(()),
        false => Err(failed("running jobs", format_args!("{right} of {submitted} answered rightly"))),
    }
}

/// Does `work` in a forked process, and reports that process's memory while it still has what `work` returned.
fn in_a_process(work: impl FnOnce() -> Result<Option<Pool>, Fatal>) -> Result<Memory, Fatal> {
    let peer = Peer::fork(None, |socket| {
        // Nothing is ever sent to this process, so the only event at its socket is the end of the one that measures. It
        // must not outlive that, whatever it is doing.
        if !sys::arm_lifeline(socket.as_fd())? {
            return Ok(());
        }
        let answer = match work() {
            Ok(pool) => {
                let memory = own_memory();
                drop(pool);
                let [peak, rings] = [memory.peak, memory.rings].map(f64::to_le_bytes);
                [&[0], &peak[..], &rings[..]].concat()
            }
            Err(Fatal(why)) => [&[1], why.as_bytes()].concat(),
        };
        super::bare::send(socket, &answer, sys::Wait::UntilReady)
    });
    let peer = limit(peer)?;
    let mut answer = [0; 4096];
    let size = limit(peer.recv(&mut answer, sys::Wait::UntilReady))?.unwrap_or(0);
    match answer[..size].split_first() {
        Some((0, memory)) if memory.len() == 16 => {
            let figure = |at: usize| f64::from_bits(u64::from_le_bytes(std::array::from_fn(|i| memory[at + i])));
            Ok(Memory { peak: figure(0), rings: figure(8) })
        }
        Some((1, why)) => Err(Fatal(String::from_utf8_lossy(why).into_owned())),
        _ => Err(failed("measuring memory", "no answer")),
    }
}

fn own_memory() -> Memory {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Memory {
        peak: mib(kib(&read("/proc/self/status"), "VmHWM") << 10),
        rings: mib(read("/proc/self/maps").lines().filter_map(ring_size).sum()),
    }
}

/// Bytes of a mapping, if a line of `/proc/self/maps` is one of the pool's memory files.
fn ring_size(line: &str) -> Option<u64> {
    let (range, rest) = line.split_once(' ')?;
    let (from, to) = range.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    rest.contains("/memfd:seqpool-").then_some(())?;
    address(to)?.checked_sub(address(from)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_rings_are_told_from_others() {
        let ring = "7f0000001000-7f0000101000 rw-s 00001000 00:01 1036   /memfd:seqpool-slot (deleted)";
        assert_eq!(ring_size(ring), Some(1 << 20));
        assert_eq!(ring_size("7f0000001000-7f0000101000 rw-p 00000000 00:00 0   [heap]"), None);
        assert_eq!(ring_size(""), None);
    }

    #[test]
    fn this_process_has_memory_and_no_rings() {
        let memory = own_memory();
        assert!(memory.peak > 0.1, "{memory:?}");
        assert_eq!(memory.rings, 0.0);
    }
}
