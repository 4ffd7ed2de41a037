//! The model against the original's drawings, and against what must hold of any run.

use super::*;
use crate::cli::study::diagram;
use crate::cli::study::plan::Compute;
use proptest::prelude::*;
use std::num::NonZeroU32;

const MS: u64 = 1_000_000;
const TURNS: Server = Server::Nonblocking { parts_per_turn: NonZeroU32::new(1) };
const UNLIMITED: Server = Server::Nonblocking { parts_per_turn: None };

fn plan(server: Server, transfer: Transfer, compute_ms: &[u64]) -> Plan {
    Plan {
        server,
        transfer,
        supply: Supply::Rounds,
        compute: Compute::Sleep,
        compute_ns: compute_ms.iter().map(|ms| ms * MS).collect(),
        message_ns: MS / 2,
        parts: 3,
        rounds: 10,
    }
}

/// The first two rounds, as drawn: nobody comes a third time.
fn two_rounds(server: Server, compute_ms: &[u64], start_ns: &[u64]) -> String {
    let plan = plan(server, Transfer::Cpu, compute_ms);
    let late = 1000 * MS;
    let timeline = simulate(&plan, 0, start_ns, |worker, job| if job < 2 { plan.compute_ns[worker] } else { late });
    let last = timeline.spans.iter().filter(|s| s.activity == Activity::Write && s.end_ns < late);
    let end = last.map(|s| s.end_ns).max().expect("jobs were written");
    // The drawings' time lines all end at 7.
    let drawn = diagram::render(&timeline, server, MS / 6, end.max(7 * MS + 1));
    // After its last job the server is idle, which is not drawn.
    let mut lines: Vec<String> = drawn.lines().map(str::to_owned).collect();
    let server_row = lines.last_mut().expect("a row of the server");
    let (label, row) = server_row.split_at(10);
    let drawn_to = (end * 6).div_ceil(MS) as usize;
    *server_row = format!("{label}{}", &row[..row.len().min(drawn_to)]).trim_end().to_owned();
    lines.join("\n")
}

const PART: u64 = MS / 6;

#[test]
fn drawing_blocking_synchronized() {
    // Perfectly synchronized: each comes when the one before has been served.
    assert_eq!(
        two_rounds(Server::Blocking, &[2, 2, 2], &[0, MS, 2 * MS]),
        "\
time:     0     1     2     3     4     5     6     7
worker1:  rrrwww            rrrwww
worker2:        rrrwww            rrrwww
worker3:              rrrwww            rrrwww
server:"
    );
}

#[test]
fn drawing_blocking_unsynchronized() {
    assert_eq!(
        two_rounds(Server::Blocking, &[3, 2, 1], &[0, 0, 0]),
        "\
time:     0     1     2     3     4     5     6     7
worker1:  rrrwww                  rrrwww
worker2:  ......rrrwww            ......rrrwww
worker3:  ............rrrwww      ............rrrwww
server:                     ......"
    );
}

#[test]
fn drawing_nonblocking_synchronized() {
    assert_eq!(
        two_rounds(TURNS, &[2, 2, 2], &[0, PART, 2 * PART]),
        "\
time:     0     1     2     3     4     5     6     7
worker1:  r++r++r++w++w++w            r++r++r++w++w++w
worker2:   r++r++r++w++w++w            r++r++r++w++w++w
worker3:    r++r++r++w++w++w            r++r++r++w++w++w
server:                     ++++++++++"
    );
}

#[test]
fn drawing_nonblocking_unsynchronized() {
    assert_eq!(
        two_rounds(TURNS, &[3, 2, 1], &[0, PART, 2 * PART]),
        "\
time:     0     1     2     3     4     5     6     7
worker1:  r++r++r++w++w++w                  r+r+rwww
worker2:   r++r++r++w++w++w            r+rrw+w+w
worker3:    r++r++r++w++w++w      rrrww+w
server:                     ++++++"
    );
}

#[test]
fn rows_move_with_the_time_to_compute() {
    let at = |compute_ms: u64| {
        let drawn = two_rounds(Server::Blocking, &[compute_ms, 2, 2], &[0, MS, 2 * MS]);
        let row = drawn.lines().nth(1).expect("worker 1").to_owned();
        row.rfind("rrr").expect("a second result")
    };
    // Six columns are a millisecond.
    assert_eq!((at(2), at(3), at(4)), (28, 34, 40));
}

fn makespan(plan: &Plan) -> u64 {
    predict(plan).makespan_ns
}

#[test]
fn blocking_beats_taking_turns_when_the_transfer_is_the_servers_work() {
    for compute_ms in [[2, 2, 2], [3, 2, 1]] {
        let of = |server| makespan(&plan(server, Transfer::Cpu, &compute_ms));
        assert!(of(Server::Blocking) < of(TURNS), "{compute_ms:?}: {} {}", of(Server::Blocking), of(TURNS));
    }
}

#[test]
fn from_a_shared_queue_the_unsynchronized_order_turns_round() {
    let of = |server| makespan(&Plan { supply: Supply::Queue, ..plan(server, Transfer::Cpu, &[3, 2, 1]) });
    assert!(of(TURNS) < of(Server::Blocking), "{} {}", of(TURNS), of(Server::Blocking));
}

#[test]
fn waiting_for_slow_peers_costs_a_blocking_server_half_its_time() {
    let of = |server, workers: usize| makespan(&plan(server, Transfer::Wait, &vec![2; workers]));
    let share = of(TURNS, 6) as f64 / of(Server::Blocking, 6) as f64;
    assert!((0.45..0.55).contains(&share), "{share}");
    // Three workers' computing hides it.
    let share = of(TURNS, 3) as f64 / of(Server::Blocking, 3) as f64;
    assert!(share > 0.9, "{share}");
}

#[test]
fn without_a_budget_it_is_first_come_first_served_again() {
    for compute_ms in [&[2, 2, 2][..], &[3, 2, 1], &[1, 5, 2, 2, 4]] {
        let spans = |server| {
            let timeline = predict(&plan(server, Transfer::Cpu, compute_ms));
            timeline.spans.into_iter().filter(|s| s.lane != Lane::Server).collect::<Vec<_>>()
        };
        assert_eq!(spans(Server::Blocking), spans(UNLIMITED));
    }
}

/// When each worker registers, and the rest.
fn plans() -> impl Strategy<Value = (Vec<u64>, Plan)> {
    let servers = prop_oneof![
        Just(Server::Blocking),
        Just(UNLIMITED),
        (1u32..5).prop_map(|n| Server::Nonblocking { parts_per_turn: NonZeroU32::new(n) }),
    ];
    let supplies = prop_oneof![Just(Supply::Rounds), Just(Supply::Queue)];
    let workers = prop::collection::vec((0u64..5_000_000, 0u64..3_000_000), 1..8);
    (servers, supplies, workers, 1u64..3000, 1u32..6, 1u32..6).prop_map(
        |(server, supply, workers, message, parts, rounds)| {
            (
                workers.iter().map(|w| w.1).collect(),
                Plan {
                    server,
                    transfer: Transfer::Cpu,
                    supply,
                    compute: Compute::Sleep,
                    compute_ns: workers.iter().map(|w| w.0).collect(),
                    message_ns: message * 1000,
                    parts,
                    rounds,
                },
            )
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_run_is_sound((start_ns, plan) in plans(), wait_permille in prop_oneof![Just(0), Just(1000), 0u64..=1000]) {
        let timeline = simulate(&plan, wait_permille, &start_ns, |worker, _| plan.compute_ns[worker]);
        let lanes = (0..plan.workers()).map(|w| Lane::Worker(w as u16)).chain([Lane::Server]);
        for lane in lanes {
            let spans: Vec<&Span> = timeline.lane(lane).collect();
            for pair in spans.windows(2) {
                prop_assert!(pair[0].end_ns <= pair[1].start_ns, "{:?} overlap", pair);
            }
        }
        // The server is accounted for from the beginning to the end.
        let server: Vec<&Span> = timeline.lane(Lane::Server).collect();
        prop_assert!(server.windows(2).all(|pair| pair[0].end_ns == pair[1].start_ns));
        prop_assert_eq!(server.first().map_or(0, |s| s.start_ns), 0);
        prop_assert_eq!(server.last().map_or(timeline.makespan_ns, |s| s.end_ns), timeline.makespan_ns);
        // Every message is read and every job written, once. Each span may lose a nanosecond to rounding.
        let total = |activity| timeline.spans.iter().filter(|s| s.activity == activity).map(Span::duration_ns).sum::<u64>();
        let messages = plan.jobs() + plan.workers() as u64;
        let slack = 4 * u64::from(plan.parts) * messages;
        prop_assert!(total(Activity::Read).abs_diff(messages * plan.message_ns) <= slack);
        prop_assert!(total(Activity::Write).abs_diff(plan.jobs() * plan.message_ns) <= slack);
        // Nobody is faster than the server's work, or than a worker with nobody beside it.
        let work = (messages + plan.jobs()) * plan.message_ns * (1000 - wait_permille) / 1000;
        prop_assert!(timeline.makespan_ns + slack >= work);
        if plan.supply == Supply::Rounds {
            let alone = |w: usize| {
                let rounds = u64::from(plan.rounds);
                start_ns[w] + rounds * plan.compute_ns[w] + (2 * rounds + 1) * plan.message_ns
            };
            let slowest = (0..plan.workers()).map(alone).max().unwrap_or(0);
            prop_assert!(timeline.makespan_ns + slack >= slowest, "{} {slowest}", timeline.makespan_ns);
        }
    }
}
