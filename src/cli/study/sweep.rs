//! Where blocking stops being the better choice: the model at ever more workers, and at transfers of which more and more is
//! waiting for the worker.

use super::model::{PERMILLE, predict_mixed};
use super::picture::SweepPoint;
use super::plan::{Plan, Server};
use std::fmt::Write;
use std::num::NonZeroU32;
use std::time::Duration;

const WORKERS: [u16; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Steps from a transfer that is all the server's work to one that is all waiting.
const STEPS: u64 = 10;

/// Every point, synchronized workers of `job` each, the rest as in `plan`.
pub(super) fn predict(plan: &Plan, job: Duration, budget: Option<NonZeroU32>) -> Vec<SweepPoint> {
    let mut points = Vec::new();
    for step in 0..=STEPS {
        let wait_permille = step * PERMILLE / STEPS;
        for workers in WORKERS {
            let makespan_ms = |server| {
                let compute_ns = vec![job.as_nanos() as u64; workers.into()];
                let plan = Plan { server, compute_ns, ..plan.clone() };
                predict_mixed(&plan, wait_permille).makespan_ns as f64 / 1e6
            };
            points.push(SweepPoint {
                workers: workers.into(),
                wait_share: wait_permille as f64 / PERMILLE as f64,
                blocking_ms: makespan_ms(Server::Blocking),
                nonblocking_ms: makespan_ms(Server::Nonblocking { parts_per_turn: budget }),
                measured: false,
            });
        }
    }
    points
}

/// The points as a table: blocking's makespan over that of taking turns. Nothing if there are none.
pub(super) fn text(points: &[SweepPoint]) -> String {
    let mut text = String::new();
    if points.is_empty() {
        return text;
    }
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "\nPredicted makespan of blocking over that of taking turns: below 1 blocking is the better choice"
    );
    let _ = write!(text, "waiting    workers");
    for workers in WORKERS {
        let _ = write!(text, "{workers:>6}");
    }
    for row in points.chunks(WORKERS.len()) {
        let _ = write!(text, "\n{:>6.0} %          ", 100.0 * row[0].wait_share);
        for point in row {
            let _ = write!(text, "{:>6.2}", point.blocking_ms / point.nonblocking_ms);
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::study::plan::{Compute, Supply, Transfer};

    #[test]
    fn waiting_and_workers_speak_for_nonblocking() {
        let plan = Plan {
            server: Server::Blocking,
            transfer: Transfer::Cpu,
            supply: Supply::Rounds,
            compute: Compute::Sleep,
            compute_ns: vec![2_000_000; 3],
            message_ns: 500_000,
            parts: 3,
            rounds: 10,
        };
        let points = predict(&plan, Duration::from_millis(2), NonZeroU32::new(1));
        assert_eq!(points.len(), 77);
        let ratio = |workers: u32, wait_share: f64| {
            let point = points.iter().find(|p| p.workers == workers && p.wait_share == wait_share).expect("a point");
            point.blocking_ms / point.nonblocking_ms
        };
        // One worker is alike for both; work is best done in one go; waiting is wasted on one peer at a time.
        assert_eq!((ratio(1, 0.0), ratio(1, 1.0)), (1.0, 1.0));
        assert!(ratio(4, 0.0) < 0.9 && ratio(64, 1.0) > 10.0, "{} {}", ratio(4, 0.0), ratio(64, 1.0));
        let text = text(&points);
        assert_eq!(text.lines().count(), 2 + 1 + 11, "{text}");
    }
}
