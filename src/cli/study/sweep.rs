//! Where blocking stops being the better choice: both servers at ever more workers, and at transfers of which more and more is
//! waiting for the worker, predicted and measured.

use super::costs::Calibration;
use super::picture::{SweepPoint, TIE};
use super::plan::{Compute, PERMILLE, Plan, Server, Transfer};
use super::progress::Progress;
use super::servers::{self, Failure};
use super::{DURATION_MAX, model};
use std::fmt::Write;
use std::num::NonZeroU32;
use std::time::Duration;

const WORKERS: [u16; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Steps from a transfer that is all the server's work to one that is all waiting.
const STEPS: u64 = 10;
/// Jobs of a worker, at the most: a ratio needs no more.
const ROUNDS_MAX: u32 = 10;
/// Times that a point is measured at the most, ...
const REPEAT_MAX: u32 = 3;
/// ... but once from so many workers on: their jobs are many, and evenly out what happens to one of them.
const WORKERS_MANY: u16 = 32;
/// All measurements may take so long by their predictions; the rest is only predicted.
const LIMIT: Duration = Duration::from_secs(100);

/// Both servers at one place, and what the model says of them.
struct Place {
    plans: [Plan; 2],
    predicted: SweepPoint,
    repeat: u32,
}

impl Place {
    /// How long its measurement should take.
    fn cost(&self) -> Duration {
        let ms = self.predicted.blocking_ms + self.predicted.nonblocking_ms;
        Duration::from_secs_f64(f64::from(self.repeat) * ms / 1e3)
    }
}

/// Every place, row by row: synchronized workers of `job` each, the rest as in `plan`.
fn places(
    plan: &Plan,
    calibration: &Calibration,
    job: Duration,
    budget: Option<NonZeroU32>,
    repeat: u32,
) -> Vec<Place> {
    let mut places = Vec::new();
    for wait_permille in (0..=STEPS).map(|step| step * PERMILLE / STEPS) {
        for workers in WORKERS {
            let transfer = Transfer::waiting(wait_permille as u16);
            let plans = [Server::Blocking, Server::Nonblocking { parts_per_turn: budget }].map(|server| Plan {
                server,
                transfer,
                compute: Compute::Sleep,
                compute_ns: vec![job.min(DURATION_MAX).as_nanos() as u64; workers.into()],
                rounds: plan.rounds.min(ROUNDS_MAX),
                ..plan.clone()
            });
            let [blocking_ms, nonblocking_ms] = plans
                .each_ref()
                .map(|plan| model::predict(plan, calibration.of(plan.server, plan.transfer)).makespan_ns as f64 / 1e6);
            let wait_share = wait_permille as f64 / PERMILLE as f64;
            let predicted =
                SweepPoint { workers: workers.into(), wait_share, blocking_ms, nonblocking_ms, measured: false };
            let repeat = if workers < WORKERS_MANY { repeat.min(REPEAT_MAX) } else { 1 };
            places.push(Place { plans, predicted, repeat });
        }
    }
    places
}

/// Predicts every place, row by row, and measures as many as there is time for, those first that take the least. Predictions
/// come first.
pub(super) fn run(
    plan: &Plan,
    calibration: &Calibration,
    job: Duration,
    budget: Option<NonZeroU32>,
    repeat: u32,
) -> Result<Vec<SweepPoint>, (String, Failure)> {
    let places = places(plan, calibration, job, budget, repeat);
    let mut points: Vec<SweepPoint> = places.iter().map(|place| place.predicted).collect();
    let mut affordable: Vec<&Place> = places.iter().collect();
    affordable.sort_by_key(|place| place.cost());
    let mut left = LIMIT;
    affordable.retain(|place| {
        let rest = left.checked_sub(place.cost());
        left = rest.unwrap_or(Duration::ZERO);
        rest.is_some()
    });
    let steps = affordable.iter().map(|place| 2 * u64::from(place.repeat)).sum();
    let line = format!("measuring {} places of the sweep, some {} s", affordable.len(), (LIMIT - left).as_secs() + 1);
    let progress = Progress::new(steps, &line);
    for place in affordable {
        points.push(measure(place, &progress)?);
    }
    Ok(points)
}

/// The medians of both servers, measured in turn.
fn measure(place: &Place, progress: &Progress) -> Result<SweepPoint, (String, Failure)> {
    let name =
        || format!("sweep: {} workers, {:.0} % waiting", place.predicted.workers, 100.0 * place.predicted.wait_share);
    let mut makespans_ms = [Vec::new(), Vec::new()];
    for _ in 0..place.repeat {
        for (plan, makespans_ms) in place.plans.iter().zip(&mut makespans_ms) {
            progress.say(name);
            let measured = servers::measure(plan, &mut |_| progress.say(name)).map_err(|failure| (name(), failure))?;
            makespans_ms.push(measured.timeline.makespan_ns as f64 / 1e6);
            progress.step();
        }
    }
    let [blocking_ms, nonblocking_ms] = makespans_ms.map(|mut ms| {
        ms.sort_by(f64::total_cmp);
        ms[ms.len() / 2]
    });
    Ok(SweepPoint { blocking_ms, nonblocking_ms, measured: true, ..place.predicted })
}

/// The measured point at the place of a predicted one.
pub(super) fn measured_at<'p>(points: &'p [SweepPoint], predicted: &SweepPoint) -> Option<&'p SweepPoint> {
    let is_there = |p: &&SweepPoint| p.workers == predicted.workers && p.wait_share == predicted.wait_share;
    points.iter().filter(|p| p.measured).find(is_there)
}

/// The points as a table, blocking's makespan over that of taking turns; from where on it is the worse choice; and how far
/// that is to be trusted. Nothing if there are none.
pub(super) fn text(points: &[SweepPoint], cores: usize) -> String {
    let mut text = String::new();
    let predicted: Vec<&SweepPoint> = points.iter().filter(|p| !p.measured).collect();
    if predicted.is_empty() {
        return text;
    }
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\nMakespan of blocking over that of taking turns: below 1 blocking is the better choice");
    let head = |text: &mut String, label: &str, kind: &str| {
        let _ = write!(text, "{label:<9}{kind:<10}");
    };
    head(&mut text, "waiting", "  workers");
    for workers in WORKERS {
        let _ = write!(text, "{workers:>7}");
    }
    for row in predicted.chunks(WORKERS.len()) {
        text.push('\n');
        head(&mut text, &format!("{:>5.0} %", 100.0 * row[0].wait_share), "predicted");
        for point in row {
            let _ = write!(text, "{:>7.2}", point.ratio());
        }
        let measured: Vec<_> = row.iter().map(|point| measured_at(points, point)).collect();
        if measured.iter().any(Option::is_some) {
            text.push('\n');
            head(&mut text, "", "measured");
            for point in measured {
                let _ = write!(text, "{:>7}", point.map_or(String::new(), |p| format!("{:.2}", p.ratio())));
            }
        }
    }
    let _ = writeln!(text, "\nFrom so much waiting on blocking takes longer, by more than {:.0} %:", 100.0 * TIE);
    for (kind, measured) in [("predicted", false), ("measured", true)] {
        if points.iter().any(|p| p.measured == measured) {
            head(&mut text, "", kind);
            for workers in WORKERS {
                let own = points.iter().filter(|p| p.measured == measured && p.workers == u32::from(workers));
                let _ = write!(
                    text,
                    "{:>7}",
                    from_where(own).map_or("-".into(), |share| format!("{:.0} %", 100.0 * share))
                );
            }
            text.push('\n');
        }
    }
    text.push_str(&trust(points, cores));
    text
}

/// The least share of waiting from which on blocking takes longer at all shares.
fn from_where<'p>(points: impl Iterator<Item = &'p SweepPoint>) -> Option<f64> {
    let mut points: Vec<&SweepPoint> = points.collect();
    points.sort_by(|a, b| b.wait_share.total_cmp(&a.wait_share));
    let longer = points.iter().take_while(|p| p.is_nonblocking_better());
    longer.last().map(|p| p.wait_share)
}

/// How far measurements are from predictions.
fn trust(points: &[SweepPoint], cores: usize) -> String {
    let pairs: Vec<_> =
        points.iter().filter(|p| !p.measured).filter_map(|p| Some((p, measured_at(points, p)?))).collect();
    let off = |(predicted, measured): &(&SweepPoint, &SweepPoint)| measured.ratio() / predicted.ratio() - 1.0;
    let Some(worst) = pairs.iter().max_by(|a, b| off(a).abs().total_cmp(&off(b).abs())) else {
        return String::new();
    };
    let far = pairs.iter().filter(|pair| off(pair).abs() > super::report::TOLERANCE).count();
    let (predicted, measured) = worst;
    let crowd = if predicted.workers as usize >= cores && off(worst).abs() > super::report::TOLERANCE {
        format!(
            " In the model each worker wakes up by itself; here {} and a server share {cores} cores.",
            predicted.workers
        )
    } else {
        String::new()
    };
    format!(
        "{} of {} measured ratios are more than {:.0} % from their predictions; the furthest at {} workers and {:.0} % waiting: \
         blocking {:.1} ms (predicted {:.1}), taking turns {:.1} ms ({:.1}).{crowd}\n",
        far,
        pairs.len(),
        100.0 * super::report::TOLERANCE,
        predicted.workers,
        100.0 * predicted.wait_share,
        measured.blocking_ms,
        predicted.blocking_ms,
        measured.nonblocking_ms,
        predicted.nonblocking_ms,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::study::plan::Supply;

    fn predicted() -> Vec<SweepPoint> {
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
        let calibration = Calibration::default();
        let places = places(&plan, &calibration, Duration::from_millis(2), NonZeroU32::new(1), 5);
        assert_eq!(places.len(), 77);
        assert!(places.iter().all(|place| place.repeat == if place.predicted.workers < 32 { 3 } else { 1 }));
        places.iter().map(|place| place.predicted).collect()
    }

    #[test]
    fn waiting_and_workers_speak_for_nonblocking() {
        let points = predicted();
        let ratio = |workers: u32, wait_share: f64| {
            let point = points.iter().find(|p| p.workers == workers && p.wait_share == wait_share).expect("a point");
            point.ratio()
        };
        // One worker is alike for both; work is best done in one go; waiting is wasted on one peer at a time.
        assert_eq!((ratio(1, 0.0), ratio(1, 1.0)), (1.0, 1.0));
        assert!(ratio(4, 0.0) < 0.9 && ratio(64, 1.0) > 10.0, "{} {}", ratio(4, 0.0), ratio(64, 1.0));
        let text = text(&points, 2);
        assert_eq!(text.lines().count(), 2 + 1 + 11 + 2, "{text}");
        assert!(!text.contains("measured"), "{text}");
    }

    #[test]
    fn measurements_stand_below_their_predictions() {
        let mut points = predicted();
        let find = |workers: u32, wait_share: f64| {
            *points.iter().find(|p| p.workers == workers && p.wait_share == wait_share).expect("a point")
        };
        // As predicted; 3 % longer from 60 % on; half as long again as predicted.
        let as_predicted = SweepPoint { measured: true, ..find(1, 0.6) };
        let mut measured = vec![as_predicted];
        for percent in [50, 60, 70, 80, 90, 100] {
            let blocking_ms = if percent < 60 { 1.0 } else { 1.03 };
            let wait_share = f64::from(percent) / 100.0;
            measured.push(SweepPoint { workers: 2, wait_share, blocking_ms, nonblocking_ms: 1.0, measured: true });
        }
        let far = find(64, 1.0);
        measured.push(SweepPoint { blocking_ms: 1.5 * far.blocking_ms, measured: true, ..far });
        points.extend(measured);
        let text = text(&points, 2);
        let lines: Vec<&str> = text.lines().collect();
        let row = lines.iter().position(|l| l.starts_with("   60 %")).expect("a row");
        assert_eq!(lines[row + 1].split_whitespace().collect::<Vec<_>>(), ["measured", "1.00", "1.03"], "{text}");
        let border = lines.iter().position(|l| l.starts_with("From so much")).expect("a border");
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(lines[border + 2])[..4], ["measured", "-", "60", "%"].map(str::to_owned), "{text}");
        assert!(lines[border + 1].starts_with("         predicted       -   50 %"), "{text}");
        let last = lines.last().expect("a line");
        assert!(last.starts_with("1 of 8 measured ratios are more than 15 %"), "{text}");
        assert!(last.contains("at 64 workers and 100 % waiting"), "{text}");
        assert!(last.ends_with("here 64 and a server share 2 cores."), "{text}");
    }
}
