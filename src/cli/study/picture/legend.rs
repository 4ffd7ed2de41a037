//! How each activity looks, and the legend that says so.

use super::super::timeline::{Activity, Lane};
use super::svg::{Canvas, Style, TEXT_SIZE};

/// The patterns, once a document. Lanes have their own origin, so that a pattern lies alike in each.
pub(super) const PATTERNS: &str = concat!(
    r#"<defs>"#,
    r#"<pattern id="write" width="6" height="6" patternUnits="userSpaceOnUse">"#,
    r#"<rect class="write-base" width="6" height="6"/>"#,
    r#"<path class="write-line" d="M-1 1L1 -1M-1 7L7 -1M5 7L7 5"/></pattern>"#,
    r#"<pattern id="wait" width="6" height="5" patternUnits="userSpaceOnUse">"#,
    r#"<rect class="wait-base" width="6" height="5"/>"#,
    r#"<circle class="wait-dot" cx="3" cy="2.5" r="0.9"/></pattern>"#,
    r#"<pattern id="blocked" width="5" height="5" patternUnits="userSpaceOnUse">"#,
    r#"<rect class="blocked-base" width="5" height="5"/>"#,
    r#"<path class="blocked-line" d="M0 0L5 5M5 0L0 5"/></pattern>"#,
    r#"<pattern id="free" width="10" height="10" patternUnits="userSpaceOnUse">"#,
    r#"<rect class="free-base" width="10" height="10"/>"#,
    r#"<path class="free-plus" d="M5 2.25V7.75M2.25 5H7.75"/></pattern>"#,
    r#"</defs>"#,
);

/// For light paper, and for files.
pub(super) const LIGHT: &str = "
.paper{fill:#fff}.ink{fill:#1a1a1a}.muted{fill:#555}
.grid{stroke:#ccc}.axis{stroke:#555}
.border{stroke:#000;stroke-width:3;stroke-linecap:square}
.border-casing{stroke:#fff;stroke-width:6;stroke-linecap:square}
.border-predicted{stroke:#000;stroke-width:6;stroke-dasharray:3 7}
.on-bright{fill:#000}.on-dark{fill:#fff}
.read{fill:#00538a}.on-read{fill:#fff}
.write{fill:url(#write)}.write-base{fill:#f3b229}.write-line{fill:none;stroke:#c07f00}.on-write{fill:#000}
.wait{fill:url(#wait)}.wait-base{fill:#fff}.wait-dot{fill:#444}
.compute{fill:#dcdcdc}
.busy{fill:#333}
.blocked{fill:url(#blocked)}.blocked-base{fill:#fff}.blocked-line{fill:none;stroke:#7a2d00;stroke-width:.9}
.free{fill:url(#free)}.free-base{fill:#e3f5ee}.free-plus{fill:none;stroke:#00694c;stroke-width:1.3}
.edge{fill:none;stroke:#555}
";

/// For dark pages: as above, with bright and dark exchanged.
pub(super) const DARK: &str = "
.paper{fill:#16191d}.ink{fill:#ececec}.muted{fill:#b0b5ba}
.grid{stroke:#3d434a}.axis{stroke:#b0b5ba}
.read{fill:#7cc8f5}.on-read{fill:#000}
.write-base{fill:#7a5000}.write-line{stroke:#c08a2e}.on-write{fill:#fff}
.wait-base{fill:#16191d}.wait-dot{fill:#c8c8c8}
.compute{fill:#41474e}
.busy{fill:#d6d6d6}
.blocked-base{fill:#16191d}.blocked-line{stroke:#ff9d66}
.free-base{fill:#0c2f26}.free-plus{stroke:#5fe0b8}
.edge{stroke:#b0b5ba}
";

/// Letters of the original drawings, and what they mean, for workers and for the server.
pub(super) const WORKER: [(Activity, &str); 4] = [
    (Activity::Read, "a part of its message is read"),
    (Activity::Write, "a part of a job is written to it"),
    (Activity::Wait, "it waits for the server"),
    (Activity::Compute, "it computes"),
];
pub(super) const SERVER: [(Activity, &str); 3] = [
    (Activity::Busy, "busy"),
    (Activity::Blocked, "blocked: idle, and nobody can use the time"),
    (Activity::Free, "free: idle, for other work"),
];

/// Size of a sample in the legend.
pub(super) const SAMPLE: (f64, f64) = (30.0, 20.0);
const SAMPLE_GAP: f64 = 8.0;
const ITEM_GAP: f64 = 22.0;
const ROW_HEIGHT: f64 = SAMPLE.1 + 8.0;
/// Room for the name of a lane.
const NAME_WIDTH: f64 = 70.0;

/// The letter that stands on a part, and the style that it has there.
pub(super) fn letter(activity: Activity) -> Option<(&'static str, Style)> {
    let style = |class| Style { class, ..Style::BOLD };
    match activity {
        Activity::Read => Some(("r", style("on-read"))),
        Activity::Write => Some(("w", style("on-write"))),
        _ => None,
    }
}

/// A sample of an activity, at the origin.
pub(super) fn sample(canvas: &mut Canvas, activity: Activity) {
    let (width, height) = SAMPLE;
    canvas.rect(activity.name(), 0.0, 0.0, width, height);
    canvas.rect("edge", 0.5, 0.5, width - 1.0, height - 1.0);
    if let Some((letter, style)) = letter(activity) {
        let style = style.at(super::svg::Anchor::Middle);
        canvas.text(style, width / 2.0, height / 2.0 + 0.35 * TEXT_SIZE, letter);
    }
}

/// The whole legend. Returns its height.
pub(super) fn draw(canvas: &mut Canvas, width: f64) -> f64 {
    let mut y = 0.0;
    for (lane, items) in [(Lane::Worker(0), &WORKER[..]), (Lane::Server, &SERVER[..])] {
        let name = match lane {
            Lane::Worker(_) => "worker",
            Lane::Server => "server",
        };
        let baseline = SAMPLE.1 / 2.0 + 0.35 * TEXT_SIZE;
        canvas.text(Style::BOLD, 0.0, y + baseline, name);
        let mut x = NAME_WIDTH;
        for &(activity, meaning) in items {
            let item = SAMPLE.0 + SAMPLE_GAP + Style::PLAIN.width(meaning);
            if x > NAME_WIDTH && x + item > width {
                (x, y) = (NAME_WIDTH, y + ROW_HEIGHT);
            }
            canvas.group("sample", (x, y), |canvas| sample(canvas, activity));
            canvas.text(Style::PLAIN, x + SAMPLE.0 + SAMPLE_GAP, y + baseline, meaning);
            x += item + ITEM_GAP;
        }
        y += ROW_HEIGHT;
    }
    y
}
