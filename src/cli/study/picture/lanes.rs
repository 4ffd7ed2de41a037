//! The lanes of one run over time: predicted above measured, on one axis.

use super::super::timeline::{Lane, Span, Timeline};
use super::svg::{Anchor, Canvas, MARGIN_LEFT, MARGIN_RIGHT, Style, TEXT_SIZE};
use super::{MILLISECOND, Run, legend, ms};

/// With more workers than this, lanes are lower.
const TALL_WORKERS_MAX: usize = 16;
const TALL: Rows = Rows { height: 20.0, pitch: 24.0 };
const LOW: Rows = Rows { height: 13.0, pitch: 15.0 };
/// Least width of a part that bears a letter.
const LETTER_WIDTH_MIN: f64 = 10.0;
const LETTER_SIZE: f64 = 12.0;
/// Above a timeline's lanes: its name.
const HEAD_HEIGHT: f64 = 28.0;
/// Below all lanes: ticks and their labels.
const AXIS_HEIGHT: f64 = 30.0;
const TICK: f64 = 5.0;
/// Least distance of two ticks. Units: pixels.
const TICK_DISTANCE_MIN: f64 = 70.0;
/// What is drawn of a run that nothing is to be drawn of. Units: nanoseconds.
const WINDOW_NS_EMPTY: u64 = MILLISECOND;

/// How lanes lie below each other. Units: pixels.
#[derive(Clone, Copy)]
struct Rows {
    height: f64,
    pitch: f64,
}

/// The time that is drawn, and over what width. Units: nanoseconds, pixels.
#[derive(Clone, Copy)]
struct Axis {
    window_ns: u64,
    width: f64,
}

impl Axis {
    fn x(self, ns: u64) -> f64 {
        ns.min(self.window_ns) as f64 / self.window_ns as f64 * self.width
    }

    /// Times with round labels: 1, 2 or 5 and zeros.
    fn ticks(self) -> impl Iterator<Item = u64> {
        let least = TICK_DISTANCE_MIN / self.width * self.window_ns as f64;
        let steps = (0..19).flat_map(|zeros| [1, 2, 5].map(|digit| digit * 10u64.pow(zeros)));
        let step = steps.into_iter().find(|&step| step as f64 >= least).unwrap_or(self.window_ns);
        let window_ns = self.window_ns;
        (0..=window_ns / step).map(move |n| n * step)
    }
}

/// Draws both timelines of a run, below the origin. Returns the height.
pub(super) fn draw(canvas: &mut Canvas, run: &Run<'_>, width: f64) -> f64 {
    let window_ns = if run.window_ns == 0 { WINDOW_NS_EMPTY } else { run.window_ns };
    let axis = Axis { window_ns, width: width - MARGIN_LEFT - MARGIN_RIGHT };
    let lanes: Vec<Lane> = run.lanes().collect();
    let rows = if lanes.len() > TALL_WORKERS_MAX + 1 { LOW } else { TALL };
    let block = HEAD_HEIGHT + lanes.len() as f64 * rows.pitch;
    let bottom = 2.0 * block;
    for ns in axis.ticks() {
        let x = MARGIN_LEFT + axis.x(ns);
        for top in [HEAD_HEIGHT, block + HEAD_HEIGHT] {
            canvas.line("grid", (x, top - 4.0), (x, top - HEAD_HEIGHT + block));
        }
        canvas.line("axis", (x, bottom), (x, bottom + TICK));
        canvas.text(Style::PLAIN.at(Anchor::Middle), x, bottom + TICK + TEXT_SIZE + 1.0, &ms(ns));
    }
    canvas.line("axis", (MARGIN_LEFT, bottom), (MARGIN_LEFT + axis.width, bottom));
    let unit = Style::MUTED.at(Anchor::End);
    canvas.text(unit, MARGIN_LEFT - 12.0, bottom + TICK + TEXT_SIZE + 1.0, "time, ms");
    for (n, (name, timeline)) in run.timelines().into_iter().enumerate() {
        let top = n as f64 * block;
        canvas.text(Style::BOLD, MARGIN_LEFT, top + 0.68 * HEAD_HEIGHT, &head(name, timeline, axis));
        for (row, &lane) in lanes.iter().enumerate() {
            let lane_name = super::lane_name(lane);
            let y = top + HEAD_HEIGHT + row as f64 * rows.pitch;
            canvas.group(&format!("{name} {lane_name}"), (MARGIN_LEFT, y), |canvas| {
                let size = TEXT_SIZE.min(rows.height - 1.0);
                let label = Style { size, ..Style::PLAIN.at(Anchor::End) };
                canvas.text(label, -8.0, rows.height / 2.0 + 0.35 * size, &lane_name);
                for span in timeline.lane(lane).filter(|s| s.start_ns < window_ns) {
                    draw_span(canvas, span, axis, rows);
                }
            });
        }
    }
    bottom + AXIS_HEIGHT
}

fn head(name: &str, timeline: &Timeline, axis: Axis) -> String {
    if timeline.spans.is_empty() {
        return format!("{name}: no spans");
    }
    if timeline.makespan_ns <= axis.window_ns {
        return format!("{name}: all {} ms", ms(timeline.makespan_ns));
    }
    format!("{name}: the first {} of {} ms", ms(axis.window_ns), ms(timeline.makespan_ns))
}

fn draw_span(canvas: &mut Canvas, span: &Span, axis: Axis, rows: Rows) {
    let (x, end) = (axis.x(span.start_ns), axis.x(span.end_ns));
    let activity = span.activity.name();
    let title =
        format!("{activity}: {} ms, from {} to {} ms", ms(span.duration_ns()), ms(span.start_ns), ms(span.end_ns));
    canvas.titled_rect(activity, [x, 0.0, end - x, rows.height], &title);
    if let Some((letter, style)) = legend::letter(span.activity)
        && end - x >= LETTER_WIDTH_MIN
    {
        let style = Style { size: LETTER_SIZE, ..style.at(Anchor::Middle) };
        canvas.text(style, (x + end) / 2.0, rows.height / 2.0 + 0.3 * LETTER_SIZE, letter);
    }
}
