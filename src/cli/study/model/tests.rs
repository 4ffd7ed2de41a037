//! The model against the original's drawings, and against what must hold of any run.

use super::*;
use crate::cli::study::diagram;
use crate::cli::study::plan::{Compute, Transfer};
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
    let timeline = {
        let compute_ns = |worker: usize, job| if job < 2 { plan.compute_ns[worker] } else { late };
        simulate(&plan, &Costs::default(), 0, start_ns, compute_ns)
    };
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
    draw(plan).makespan_ns
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
            let timeline = draw(&plan(server, Transfer::Cpu, compute_ms));
            timeline.spans.into_iter().filter(|s| s.lane != Lane::Server).collect::<Vec<_>>()
        };
        assert_eq!(spans(Server::Blocking), spans(UNLIMITED));
    }
}

/// Costs that are always the same. Units: microseconds.
fn fixed(exchange: u64, part: u64, server_wake: u64, worker_wake: u64, timer: u64) -> Costs {
    let always = |us: u64| Latency::new(vec![us * 1000], 0.0);
    Costs {
        exchange_ns: exchange * 1000,
        part_ns: part * 1000,
        server_wake: always(server_wake),
        worker_wake: always(worker_wake),
        timer: always(timer),
    }
}

/// What was measured on two idle cores; a tenth of the wake-ups have to wait for a time slice.
fn typical() -> Costs {
    let spread = |most_us: u64| {
        let usual = (0..18).map(|n| 8_000 + n * (most_us - 8) * 1000 / 18);
        Latency::new(usual.chain([350_000, 700_000]).collect(), 0.0)
    };
    Costs { server_wake: spread(40), worker_wake: spread(30), timer: spread(40), ..Costs::default() }
}

#[test]
fn without_costs_a_prediction_is_the_drawing() {
    for transfer in [Transfer::Cpu, Transfer::Wait, Transfer::waiting(400)] {
        let plan = plan(TURNS, transfer, &[3, 2, 1]);
        assert_eq!(predict(&plan, &Costs::default()), draw(&plan));
    }
}

#[test]
fn costs_of_slow_peers_add_up() {
    let costs = fixed(10, 1, 5, 7, 2);
    for server in [Server::Blocking, TURNS, UNLIMITED] {
        let one = Plan { rounds: 1, ..plan(server, Transfer::Wait, &[2]) };
        let timeline = predict(&one, &costs);
        // Accepted at 10; the last part of the job is due a millisecond later and taken 2 late; so is the end of computing.
        // Then the server wakes up 5 later, accepts for 10, waits for half a millisecond, and is woken again, 2 + 5 late.
        let computed = (10 + 1000 + 2, 10 + 1000 + 2 + 2000 + 2);
        let span = timeline.lane(Lane::Worker(0)).find(|s| s.activity == Activity::Compute).expect("it computes");
        assert_eq!((span.start_ns / 1000, span.end_ns / 1000), computed);
        assert_eq!(timeline.makespan_ns / 1000, computed.1 + 5 + 10 + 500 + 2 + 5 + 1);
        // Two exchanges and nine parts.
        assert_eq!(timeline.total_ns(Lane::Server, Activity::Busy) / 1000, 2 * 10 + 9);
    }
}

#[test]
fn costs_of_the_servers_own_work_add_up() {
    let costs = fixed(30, 0, 5, 7, 2);
    for server in [Server::Blocking, TURNS, UNLIMITED] {
        let one = Plan { rounds: 1, ..plan(server, Transfer::Cpu, &[2]) };
        let timeline = predict(&one, &costs);
        let computed = (30 + 1000 + 7, 30 + 1000 + 7 + 2000 + 2);
        assert_eq!(timeline.makespan_ns / 1000, computed.1 + 5 + 30 + 500);
        // Whoever spins needs nobody to wake him up.
        let spinning = predict(&Plan { compute: Compute::Spin, ..one }, &costs);
        assert_eq!(spinning.makespan_ns + 2000, timeline.makespan_ns);
    }
}

#[test]
fn lateness_of_a_mixed_transfer_does_not_add_up_within_a_message() {
    let late = fixed(0, 0, 20, 0, 30);
    let of = |costs: &Costs| {
        let one = Plan { rounds: 1, ..plan(TURNS, Transfer::waiting(500), &[2]) };
        predict(&one, costs).makespan_ns / 1000
    };
    // Each exchange is 50 late, not each of nine parts; and so are computing, and the server after that.
    assert_eq!(of(&late) - of(&Costs::default()), 3 * 50);
}

#[test]
fn with_costs_the_quick_worker_gets_more_of_a_blocking_servers_jobs() {
    let of = |server, transfer, costs: &Costs| {
        let plan = Plan { supply: Supply::Queue, ..plan(server, transfer, &[3, 2, 1]) };
        predict(&plan, costs).makespan_ns
    };
    let (none, some) = (Costs::default(), typical());
    // As drawn all come back at once and the slowest is first.
    assert!(of(TURNS, Transfer::Cpu, &none) < of(Server::Blocking, Transfer::Cpu, &none));
    assert!(of(TURNS, Transfer::Cpu, &some) > of(Server::Blocking, Transfer::Cpu, &some));
    // Waiting is wasted either way.
    assert!(of(TURNS, Transfer::Wait, &some) * 4 < of(Server::Blocking, Transfer::Wait, &some) * 3);
}

/// Spans of one lane neither overlap nor come out of order, and the server's cover the run.
fn check_lanes(timeline: &Timeline) -> Result<(), TestCaseError> {
    let lanes = (0..timeline.workers).map(|w| Lane::Worker(w as u16)).chain([Lane::Server]);
    for lane in lanes {
        let spans: Vec<&Span> = timeline.lane(lane).collect();
        for pair in spans.windows(2) {
            prop_assert!(pair[0].end_ns <= pair[1].start_ns, "{:?} overlap", pair);
        }
    }
    let server: Vec<&Span> = timeline.lane(Lane::Server).collect();
    prop_assert!(server.windows(2).all(|pair| pair[0].end_ns == pair[1].start_ns));
    prop_assert_eq!(server.first().map_or(0, |s| s.start_ns), 0);
    prop_assert_eq!(server.last().map_or(timeline.makespan_ns, |s| s.end_ns), timeline.makespan_ns);
    Ok(())
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
    fn every_run_is_sound((start_ns, plan) in plans(), wait_permille in prop_oneof![Just(0), Just(1000), 0u16..=1000]) {
        let plan = Plan { transfer: Transfer::waiting(wait_permille), ..plan };
        let timeline = simulate(&plan, &Costs::default(), 0, &start_ns, |worker, _| plan.compute_ns[worker]);
        check_lanes(&timeline)?;
        // Every message is read and every job written, once. Each span may lose a nanosecond to rounding.
        let total = |activity| timeline.spans.iter().filter(|s| s.activity == activity).map(Span::duration_ns).sum::<u64>();
        let messages = plan.jobs() + plan.workers() as u64;
        let slack = 4 * u64::from(plan.parts) * messages;
        prop_assert!(total(Activity::Read).abs_diff(messages * plan.message_ns) <= slack);
        prop_assert!(total(Activity::Write).abs_diff(plan.jobs() * plan.message_ns) <= slack);
        // Nobody is faster than the server's work, or than a worker with nobody beside it.
        let work = (messages + plan.jobs()) * plan.message_ns * (1000 - u64::from(wait_permille)) / 1000;
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

    #[test]
    fn every_run_with_costs_is_sound(
        (start_ns, plan) in plans(),
        wait_permille in prop_oneof![Just(0), Just(1000), 0u16..=1000],
        costs in (0u64..60, 0u64..30, 0u64..400, 0u64..400, 0u64..400),
    ) {
        let plan = Plan { transfer: Transfer::waiting(wait_permille), ..plan };
        let costs = fixed(costs.0, costs.1, costs.2, costs.3, costs.4);
        let timeline = simulate(&plan, &costs, 0, &start_ns, |worker, _| plan.compute_ns[worker]);
        check_lanes(&timeline)?;
        let computed = timeline.spans.iter().filter(|s| s.activity == Activity::Compute).count();
        prop_assert!(computed as u64 <= plan.jobs());
        // All the work is done, however late.
        let messages = 2 * plan.jobs() + plan.workers() as u64;
        let work_ns = messages * plan.message_ns * (1000 - u64::from(wait_permille)) / 1000;
        let busy_ns = timeline.total_ns(Lane::Server, Activity::Busy);
        prop_assert!(busy_ns + 2 * u64::from(plan.parts) * messages >= work_ns, "{} of {}", busy_ns, work_ns);
    }
}
