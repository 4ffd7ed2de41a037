//! Steps made up by hand: what becomes of them, and how it is written.

use super::*;
use crate::pool::Step::{self, *};

/// What is found in these steps of a pool of two workers.
fn found(steps: &[(Step, u64, Option<usize>, u64)]) -> Vec<Found> {
    let mut all = Vec::new();
    let mut lives = Lives::new(2);
    let mut give = |found| {
        all.push(found);
        Ok::<(), std::convert::Infallible>(())
    };
    for &(step, job, slot, at_ns) in steps {
        lives.take(&Mark::new(step, job, slot, at_ns), &mut give).unwrap();
    }
    lives.finish(&mut give).unwrap();
    all
}

/// The spans among them: job, stage, slot, start and end.
fn spans(found: &[Found]) -> Vec<(u64, Stage, Option<u16>, u64, u64, End)> {
    let span = |found: &Found| match found {
        Found::Span(s) => Some((s.job, s.stage, s.slot, s.start_ns, s.end_ns, s.end)),
        _ => None,
    };
    found.iter().filter_map(span).collect()
}

#[test]
fn a_whole_life() {
    let found = found(&[
        (Submitted, 1, None, 10),
        (Placed, 1, Some(0), 11),
        (Sent, 1, Some(0), 20),
        (Started, 1, Some(0), 30),
        (Ended, 1, Some(0), 40),
        (Received, 1, Some(0), 50),
        (Delivered, 1, Some(0), 60),
    ]);
    let want = [
        (1, Stage::Unsent, None, 10, 20, End::Usual),
        (1, Stage::Waiting, Some(0), 20, 30, End::Usual),
        (1, Stage::Compute, Some(0), 30, 40, End::Usual),
        (1, Stage::Returning, Some(0), 40, 50, End::Usual),
        (1, Stage::Life, None, 10, 60, End::Usual),
    ];
    assert_eq!(spans(&found), want);
    assert_eq!(found.last(), Some(&Found::Pack { at_ns: 20, slot: 0, jobs: 1 }));
}

#[test]
fn a_worker_that_lies_about_time_overlaps_nobody() {
    let mut steps = vec![];
    for (job, started_ns, ended_ns) in [(1, 5, 500), (2, 0, 0), (3, u64::MAX, 0), (4, 35, u64::MAX), (5, 1, 2)] {
        let at_ns = job * 100;
        steps.extend([
            (Sent, job, Some(1), 10),
            (Started, job, Some(1), started_ns),
            (Ended, job, Some(1), ended_ns),
            (Received, job, Some(1), at_ns),
        ]);
    }
    let mut computed: Vec<_> = spans(&found(&steps)).into_iter().filter(|s| s.1 == Stage::Compute).collect();
    assert_eq!(computed.len(), 5);
    computed.sort_by_key(|s| (s.3, s.4));
    assert!(computed.iter().all(|s| s.3 <= s.4));
    assert!(computed.windows(2).all(|pair| pair[0].4 <= pair[1].3), "{computed:?}");
}

#[test]
fn a_job_that_moves_waits_twice_and_runs_once() {
    let found = found(&[
        (Submitted, 7, None, 1),
        (Placed, 7, Some(0), 1),
        (Sent, 7, Some(0), 2),
        (Reclaimed, 7, Some(0), 5),
        (Placed, 7, Some(1), 6),
        // Not sent there, and taken back again.
        (Reclaimed, 7, Some(1), 7),
        (Placed, 7, Some(0), 8),
        (Sent, 7, Some(0), 9),
        (Started, 7, Some(0), 10),
        (Ended, 7, Some(0), 12),
        (Received, 7, Some(0), 13),
        (Delivered, 7, Some(0), 14),
    ]);
    let want = [
        (7, Stage::Unsent, None, 1, 2, End::Usual),
        (7, Stage::Waiting, Some(0), 2, 5, End::TakenBack),
        (7, Stage::Unsent, None, 5, 9, End::Usual),
        (7, Stage::Waiting, Some(0), 9, 10, End::Usual),
        (7, Stage::Compute, Some(0), 10, 12, End::Usual),
        (7, Stage::Returning, Some(0), 12, 13, End::Usual),
        (7, Stage::Life, None, 1, 14, End::Usual),
    ];
    assert_eq!(spans(&found), want);
    let taken_back = found.iter().filter(|f| matches!(f, Found::TakenBack { job: 7, .. })).count();
    assert_eq!(taken_back, 2);
}

#[test]
fn a_job_whose_worker_died_ran_after_the_one_before_it() {
    let found = found(&[
        (Sent, 1, Some(0), 2),
        (Sent, 2, Some(0), 2),
        (Started, 1, Some(0), 3),
        (Ended, 1, Some(0), 10),
        (Received, 1, Some(0), 30),
        (Delivered, 1, Some(0), 31),
        (Delivered, 2, Some(0), 40),
        // The next worker in that slot.
        (Sent, 3, Some(0), 39),
        (Started, 3, Some(0), 41),
        (Ended, 3, Some(0), 42),
        (Received, 3, Some(0), 43),
    ]);
    let computed: Vec<_> = spans(&found).into_iter().filter(|s| s.1 == Stage::Compute).collect();
    let want = [
        (1, Stage::Compute, Some(0), 3, 10, End::Usual),
        (2, Stage::Compute, Some(0), 10, 40, End::WorkerGone),
        (3, Stage::Compute, Some(0), 41, 42, End::Usual),
    ];
    assert_eq!(computed, want);
    assert!(found.contains(&Found::Pack { at_ns: 2, slot: 0, jobs: 2 }), "one packet: {found:?}");
}

#[test]
fn a_beginning_that_is_missing_makes_no_span_and_no_crash() {
    let whole = [
        (Submitted, 1, None, 10),
        (Placed, 1, Some(0), 11),
        (Sent, 1, Some(0), 20),
        (Started, 1, Some(0), 30),
        (Ended, 1, Some(0), 40),
        (Received, 1, Some(0), 50),
        (Delivered, 1, Some(0), 60),
    ];
    let all = spans(&found(&whole));
    for missing in 1..=whole.len() {
        let some = spans(&found(&whole[missing..]));
        assert!(some.len() < all.len() && some.iter().all(|span| all.contains(span)), "without {missing}: {some:?}");
    }
    // The end is missing when the pool fails.
    let stages = |steps: usize| spans(&found(&whole[..steps])).iter().map(|s| (s.1, s.5)).collect::<Vec<_>>();
    assert_eq!(stages(2), [(Stage::Unsent, End::Unknown), (Stage::Life, End::Unknown)]);
    assert_eq!(stages(3), [(Stage::Unsent, End::Usual), (Stage::Waiting, End::Unknown), (Stage::Life, End::Unknown)]);
}

#[test]
fn names_are_escaped_and_times_are_microseconds() {
    let mut out = Vec::new();
    let mut writer = TraceWriter::new(&mut out, 1_000).unwrap();
    let track = Track { pid: 3, tid: 4 };
    writer.name_process(3, "a \"quoted\"\nname").unwrap();
    writer.complete(track, "c", format_args!("\\"), (1_001, 2_501), ()).unwrap();
    writer.overlapping(track, "d", format_args!("wait"), (2_000, 3_000), ()).unwrap();
    writer.instant(track, "i", format_args!("now"), 0, ()).unwrap();
    writer.finish(()).unwrap();
    let trace: serde_json::Value = serde_json::from_slice(&out).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert_eq!(events[0]["args"]["name"], "a \"quoted\"\nname");
    let field = |key: &str| events[2..].iter().map(|e| e[key].clone()).collect::<Vec<_>>();
    assert_eq!(field("ts"), [0.001, 1.0, 2.0, 0.0]);
    assert_eq!(field("ph"), ["X", "b", "e", "i"]);
    assert_eq!(events[2]["dur"], 1.5);
    assert_eq!((&events[3]["id"], &events[4]["id"]), (&"0x1".into(), &"0x1".into()));
    assert!(events[2..].iter().all(|e| e["pid"] == 3 && e["tid"] == 4));
}
