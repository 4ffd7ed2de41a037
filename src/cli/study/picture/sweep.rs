//! The sweep as a map: how many times as long blocking takes, over workers and over the share of a transfer that is
//! waiting, and the line beyond which it is no longer the better choice.

use super::svg::{Anchor, Canvas, MARGIN_LEFT, MARGIN_RIGHT, Style, TEXT_SIZE, WIDTH};

/// Both servers at one place of the sweep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SweepPoint {
    pub(crate) workers: u32,
    /// From 0 to 1.
    pub(crate) wait_share: f64,
    pub(crate) blocking_ms: f64,
    pub(crate) nonblocking_ms: f64,
    /// Or else predicted.
    pub(crate) measured: bool,
}

/// Non-blocking is the better choice when blocking takes longer by more than this.
pub(crate) const TIE: f64 = 0.02;
const ROW_HEIGHT_MIN: f64 = 44.0;
const MAP_HEIGHT_MAX: f64 = 900.0;
/// The ratio, and its inverse, of the darkest and of the brightest shade.
const RATIO_SHADED_MAX: f64 = 4.0;
const LINE_HEIGHT: f64 = 17.0;

impl SweepPoint {
    /// How many times as long blocking takes.
    pub(crate) fn ratio(&self) -> f64 {
        self.blocking_ms / self.nonblocking_ms
    }

    pub(crate) fn is_nonblocking_better(&self) -> bool {
        is_nonblocking_better(self.ratio())
    }

    fn is_drawable(&self) -> bool {
        self.workers > 0 && self.wait_share.is_finite() && self.ratio().is_finite() && self.ratio() > 0.0
    }
}

fn is_nonblocking_better(ratio: f64) -> bool {
    ratio > 1.0 + TIE
}

/// What there is of one place.
#[derive(Clone, Copy, Default)]
struct Cell {
    predicted: Option<f64>,
    measured: Option<f64>,
}

impl Cell {
    /// What counts.
    fn ratio(self) -> Option<f64> {
        self.measured.or(self.predicted)
    }
}

/// Which of a cell's ratios.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Measured,
    Predicted,
}

impl Kind {
    const ALL: [Kind; 2] = [Kind::Measured, Kind::Predicted];

    fn of(self, cell: Cell) -> Option<f64> {
        match self {
            Kind::Measured => cell.measured,
            Kind::Predicted => cell.predicted,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Measured => "measured",
            Kind::Predicted => "predicted",
        }
    }

    /// Its line, solid or dotted: where both lie on each other both are seen.
    fn line(self) -> &'static str {
        match self {
            Kind::Measured => "border",
            Kind::Predicted => "border-predicted",
        }
    }
}

/// One direction of the map: its values, and where each one's cells begin and end. Units: pixels.
struct Scale {
    values: Vec<f64>,
    edges: Vec<f64>,
}

impl Scale {
    /// `at` says where a value lies, in any unit. Edges are half-way between values, and as far outside.
    fn new(mut values: Vec<f64>, at: impl Fn(f64) -> f64, (from, to): (f64, f64)) -> Self {
        values.sort_by(f64::total_cmp);
        values.dedup();
        let places: Vec<f64> = values.iter().map(|&v| at(v)).collect();
        let mut edges: Vec<f64> = places.windows(2).map(|pair| f64::midpoint(pair[0], pair[1])).collect();
        if let (Some(first), Some(last)) = (places.first(), places.last()) {
            let before = edges.first().map_or(0.5, |edge| edge - first);
            let after = edges.last().map_or(0.5, |edge| last - edge);
            edges.insert(0, first - before);
            edges.push(last + after);
            let (least, range) = (edges[0], edges[edges.len() - 1] - edges[0]);
            for edge in &mut edges {
                *edge = from + (*edge - least) / range * (to - from);
            }
        }
        Self { values, edges }
    }

    /// Where the cells of value `n` lie: their beginning, and their length, which is negative when the scale runs
    /// against the pixels.
    fn cell(&self, n: usize) -> (f64, f64) {
        (self.edges[n], self.edges[n + 1] - self.edges[n])
    }
}

struct Map {
    x: Scale,
    y: Scale,
    /// By column, then by row.
    cells: Vec<Vec<Cell>>,
}

impl Map {
    fn new(points: &[SweepPoint], width: f64, top: f64) -> Self {
        let points: Vec<_> = points.iter().filter(|p| p.is_drawable()).collect();
        let shares: Vec<f64> = points.iter().map(|p| p.wait_share).collect();
        let mut sorted = shares.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.dedup();
        let gaps = sorted.windows(2).map(|pair| pair[1] - pair[0]);
        let rows = match gaps.reduce(f64::min) {
            Some(least) => (sorted[sorted.len() - 1] - sorted[0]) / least + 1.0,
            None => 1.0,
        };
        let height = (rows * ROW_HEIGHT_MIN).min(MAP_HEIGHT_MAX);
        let workers = points.iter().map(|p| f64::from(p.workers)).collect();
        let x = Scale::new(workers, f64::log2, (MARGIN_LEFT, width - MARGIN_RIGHT));
        let y = Scale::new(shares, |share| share, (top + height, top));
        let mut cells = vec![vec![Cell::default(); y.values.len()]; x.values.len()];
        for point in points {
            let column = x.values.iter().position(|&v| v == f64::from(point.workers));
            let row = y.values.iter().position(|&v| v == point.wait_share);
            if let (Some(column), Some(row)) = (column, row) {
                let cell = &mut cells[column][row];
                *(if point.measured { &mut cell.measured } else { &mut cell.predicted }) = Some(point.ratio());
            }
        }
        Self { x, y, cells }
    }

    /// Every edge between a cell where non-blocking is the better choice and a neighbour where it is not.
    fn borders(&self, kind: Kind, mut draw: impl FnMut((f64, f64), (f64, f64))) {
        let side =
            |column: usize, row: usize| Some(is_nonblocking_better(kind.of(*self.cells.get(column)?.get(row)?)?));
        let differ = |one: Option<bool>, other: Option<bool>| one.zip(other).is_some_and(|(one, other)| one != other);
        for column in 0..self.x.values.len() {
            for row in 0..self.y.values.len() {
                let (x, y) = (&self.x.edges, &self.y.edges);
                if differ(side(column, row), side(column + 1, row)) {
                    draw((x[column + 1], y[row]), (x[column + 1], y[row + 1]));
                }
                if differ(side(column, row), side(column, row + 1)) {
                    draw((x[column], y[row + 1]), (x[column + 1], y[row + 1]));
                }
            }
        }
    }
}

/// From bright to dark: the more non-blocking is the better, the darker, in grey as in colour.
fn shade(ratio: f64) -> [u8; 3] {
    // Bright yellow, grey, dark blue, much as in the map "cividis", which looks alike to colour-blind eyes.
    const STOPS: [[f64; 3]; 3] = [[255.0, 233.0, 120.0], [186.0, 186.0, 186.0], [0.0, 40.0, 110.0]];
    let place = (ratio.ln() / RATIO_SHADED_MAX.ln()).clamp(-1.0, 1.0);
    let end = if place < 0.0 { STOPS[0] } else { STOPS[2] };
    std::array::from_fn(|n| (STOPS[1][n] + (end[n] - STOPS[1][n]) * place.abs()).round() as u8)
}

/// What can be read on a shade.
fn on(shade: [u8; 3]) -> &'static str {
    // Rec. 709's weights. Where the two are equally good, the contrast is still more than 4 to 1.
    let [r, g, b] = shade.map(f64::from);
    if 0.2126 * r + 0.7152 * g + 0.0722 * b > 120.0 { "on-bright" } else { "on-dark" }
}

fn ratio_text(ratio: f64) -> String {
    if ratio < 9.995 { format!("{ratio:.2}") } else { format!("{ratio:.0}") }
}

/// The map as a file.
pub(crate) fn svg_sweep(points: &[SweepPoint]) -> String {
    let mut canvas = Canvas::default();
    let mut y = 20.0;
    let title = Style { size: 20.0, ..Style::BOLD };
    y += canvas.paragraph(title, (MARGIN_RIGHT, y), WIDTH - 2.0 * MARGIN_RIGHT, TITLE);
    y += canvas.group("sweep", (0.0, y + 8.0), |canvas| draw(canvas, points, WIDTH));
    canvas.file(TITLE, WIDTH, y + 28.0)
}

pub(super) const TITLE: &str = "How many times as long blocking takes as non-blocking";

/// Draws the map with its axes and legend, below the origin. Returns the height.
pub(super) fn draw(canvas: &mut Canvas, points: &[SweepPoint], width: f64) -> f64 {
    let top = LINE_HEIGHT + 10.0;
    let map = Map::new(points, width, top);
    let (left, right) = (MARGIN_LEFT, width - MARGIN_RIGHT);
    canvas.text(Style::MUTED, MARGIN_RIGHT, LINE_HEIGHT, "share of a transfer that is waiting, %");
    let Some(&bottom) = map.y.edges.first() else {
        canvas.text(Style::PLAIN, left, 2.0 * LINE_HEIGHT + 10.0, "no points");
        return 2.0 * LINE_HEIGHT + 10.0;
    };
    let columns = 0..map.x.values.len();
    let rows = 0..map.y.values.len();
    for column in columns.clone() {
        for row in rows.clone() {
            let ((x, w), (y, h)) = (map.x.cell(column), map.y.cell(row));
            draw_cell(canvas, map.cells[column][row], [x, y + h, w, -h]);
        }
    }
    for kind in Kind::ALL {
        map.borders(kind, |from, to| canvas.line("border-casing", from, to));
    }
    for kind in Kind::ALL {
        map.borders(kind, |from, to| canvas.line(kind.line(), from, to));
    }
    for (column, &workers) in map.x.values.iter().enumerate() {
        let (x, w) = map.x.cell(column);
        let label = workers.to_string();
        canvas.line("axis", (x + w / 2.0, bottom), (x + w / 2.0, bottom + 5.0));
        if Style::PLAIN.width(&label) < w {
            canvas.text(Style::PLAIN.at(Anchor::Middle), x + w / 2.0, bottom + 20.0, &label);
        }
    }
    for (row, &share) in map.y.values.iter().enumerate() {
        let (y, h) = map.y.cell(row);
        canvas.line("axis", (left - 5.0, y + h / 2.0), (left, y + h / 2.0));
        if -h > LINE_HEIGHT {
            let label = format!("{} %", (share * 1e4).round() / 1e2);
            canvas.text(Style::PLAIN.at(Anchor::End), left - 10.0, y + h / 2.0 + 0.35 * TEXT_SIZE, &label);
        }
    }
    canvas.line("axis", (left, bottom), (right, bottom));
    canvas.line("axis", (left, top), (left, bottom));
    let title = Style::MUTED.at(Anchor::Middle);
    canvas.text(title, f64::midpoint(left, right), bottom + 42.0, "workers (logarithmic)");
    let y = bottom + 66.0;
    y + canvas.group("legend", (left, y), |canvas| draw_legend(canvas, &map, right - left))
}

/// The ratio in its shade: the measured one bold, the predicted one plain, or below it in brackets.
fn draw_cell(canvas: &mut Canvas, cell: Cell, [x, y, w, h]: [f64; 4]) {
    let Some(ratio) = cell.ratio() else { return };
    let shade = shade(ratio);
    canvas.shaded_rect(shade, [x, y, w, h]);
    let style = |style: Style| Style { class: on(shade), ..style.at(Anchor::Middle) };
    let lines: Vec<(Style, String)> = match (cell.measured, cell.predicted) {
        (Some(measured), Some(predicted)) => vec![
            (style(Style::BOLD), ratio_text(measured)),
            (style(Style::PLAIN), format!("({})", ratio_text(predicted))),
        ],
        (Some(measured), None) => vec![(style(Style::BOLD), ratio_text(measured))],
        _ => vec![(style(Style::PLAIN), ratio_text(ratio))],
    };
    let fitting = lines.iter().filter(|(style, text)| style.width(text) < w).count();
    let fitting = fitting.min((h / LINE_HEIGHT) as usize);
    let first = y + h / 2.0 - (fitting as f64 - 1.0) / 2.0 * LINE_HEIGHT + 0.35 * TEXT_SIZE;
    for (n, (style, text)) in lines.iter().take(fitting).enumerate() {
        canvas.text(*style, x + w / 2.0, first + n as f64 * LINE_HEIGHT, text);
    }
}

/// Shades with their ratios, then what the line and the two kinds of figures mean. Returns the height.
fn draw_legend(canvas: &mut Canvas, map: &Map, width: f64) -> f64 {
    const RATIOS: [f64; 7] = [0.25, 0.5, 0.71, 1.0, 1.41, 2.0, 4.0];
    const STEP: f64 = 64.0;
    let ends = ["blocking is quicker", "non-blocking is quicker"];
    let bar = Style::PLAIN.width(ends[0]) + 10.0;
    canvas.text(Style::PLAIN, 0.0, 18.0, ends[0]);
    for (n, ratio) in RATIOS.into_iter().enumerate() {
        let cell = Cell { predicted: Some(ratio), measured: None };
        draw_cell(canvas, cell, [bar + n as f64 * STEP, 0.0, STEP, 26.0]);
    }
    canvas.text(Style::PLAIN, bar + RATIOS.len() as f64 * STEP + 10.0, 18.0, ends[1]);
    let percent = TIE * 100.0;
    let mut words = format!("Time of blocking / time of non-blocking. Measured in bold, predicted ({}) plain.", {
        let both = map.cells.iter().flatten().any(|c| c.measured.is_some() && c.predicted.is_some());
        if both { "in brackets where there are both" } else { "where nothing was measured" }
    });
    let mut top = 36.0;
    for kind in Kind::ALL {
        let mut ratios = map.cells.iter().flatten().filter_map(|cell| kind.of(*cell)).peekable();
        if ratios.peek().is_none() {
            continue;
        }
        let mut has_border = false;
        map.borders(kind, |_, _| has_border = true);
        if has_border {
            for border in ["border-casing", kind.line()] {
                canvas.line(border, (0.0, top + 9.0), (40.0, top + 9.0));
            }
            let line = format!(
                "Where blocking stops being the better choice, {}: beyond it takes longer by more than {percent} %.",
                kind.name()
            );
            top += canvas.paragraph(Style::PLAIN, (50.0, top), width - 50.0, &line);
        } else {
            let where_to = if ratios.any(is_nonblocking_better) { "everywhere" } else { "nowhere" };
            words += &format!(" Blocking takes longer by more than {percent} % {where_to}, {}.", kind.name());
        }
    }
    top + canvas.paragraph(Style::MUTED, (0.0, top + 4.0), width, &words) + 4.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use roxmltree::{Document, Node};

    fn points(ratio: impl Fn(u32, u32) -> f64) -> Vec<SweepPoint> {
        let mut points = Vec::new();
        for workers in [1, 2, 4, 8, 16, 32, 64] {
            for percent in [0, 25, 50, 75, 100] {
                let blocking_ms = ratio(workers, percent) * 3.0;
                let wait_share = f64::from(percent) / 100.0;
                points.push(SweepPoint { workers, wait_share, blocking_ms, nonblocking_ms: 3.0, measured: false });
            }
        }
        points
    }

    fn numbers<const N: usize>(node: Node<'_, '_>, names: [&str; N]) -> [f64; N] {
        names.map(|name| node.attribute(name).unwrap().parse().unwrap())
    }

    /// Left, top, right and bottom of each cell, by its ratio as written; without those of the legend.
    fn cells(document: &Document<'_>) -> Vec<(String, [f64; 4])> {
        let map = document.descendants().find(|n| n.attribute("data-name") == Some("sweep")).unwrap();
        let texts = || map.children().filter(|n| n.has_tag_name("text"));
        let rects = map.children().filter(|n| n.has_tag_name("rect"));
        rects
            .map(|rect| {
                let [x, y, w, h] = numbers(rect, ["x", "y", "width", "height"]);
                let is_inside = |n: &Node<'_, '_>| {
                    let [tx, ty] = numbers(*n, ["x", "y"]);
                    x < tx && tx < x + w && y < ty && ty < y + h
                };
                let inside: Vec<_> = texts().filter(is_inside).filter_map(|n| n.text()).collect();
                (inside.join(" "), [x, y, x + w, y + h])
            })
            .collect()
    }

    /// Ends of all pieces of a line.
    fn border(document: &Document<'_>, kind: Kind) -> Vec<[f64; 4]> {
        let map = document.descendants().find(|n| n.attribute("data-name") == Some("sweep")).unwrap();
        let lines = map.children().filter(|n| n.attribute("class") == Some(kind.line()));
        lines.map(|n| numbers(n, ["x1", "y1", "x2", "y2"])).collect()
    }

    #[test]
    fn each_cell_has_its_ratio_and_its_place() {
        let text = svg_sweep(&points(|workers, percent| f64::from(workers) / 8.0 + f64::from(percent) / 1000.0));
        let document = Document::parse(&text).unwrap();
        let cells = cells(&document);
        assert_eq!(cells.len(), 35);
        let at = |ratio: &str| cells.iter().find(|(text, _)| text == ratio).unwrap_or_else(|| panic!("no {ratio}")).1;
        let (first, right, above) = (at("0.12"), at("0.25"), at("0.15"));
        assert_eq!(first[2], right[0], "workers grow to the right");
        assert_eq!(first[1], right[1]);
        assert_eq!(above[3], first[1], "and the share upwards");
        assert_eq!(above[0], first[0]);
        let widths: Vec<_> =
            ["0.12", "0.25", "0.50", "1.00", "2.00", "4.00", "8.00"].map(|r| at(r)[2] - at(r)[0]).into();
        assert!(widths.iter().all(|w| (w - widths[0]).abs() < 0.02), "not logarithmic: {widths:?}");
    }

    #[test]
    fn the_line_is_where_blocking_stops_being_the_better_choice() {
        // From 4 workers on, and there from half on.
        let better = |workers: u32, percent: u32| workers >= 4 && percent >= 50;
        let text = svg_sweep(&points(|workers, percent| if better(workers, percent) { 1.5 } else { 1.01 }));
        let document = Document::parse(&text).unwrap();
        let (cells, border) = (cells(&document), border(&document, Kind::Predicted));
        let behind: Vec<_> = cells.iter().filter(|(text, _)| text == "1.50").map(|(_, at)| at).collect();
        assert_eq!(behind.len(), 5 * 3);
        let left = behind.iter().map(|at| at[0]).fold(f64::INFINITY, f64::min);
        let bottom = behind.iter().map(|at| at[3]).fold(0.0, f64::max);
        let (upright, level): (Vec<[f64; 4]>, Vec<_>) = border.into_iter().partition(|[x1, _, x2, _]| x1 == x2);
        assert_eq!((upright.len(), level.len()), (3, 5));
        assert!(upright.iter().all(|at| (at[0] - left).abs() < 0.02));
        assert!(level.iter().all(|at| (at[1] - bottom).abs() < 0.02 && (at[3] - bottom).abs() < 0.02));
    }

    #[test]
    fn one_side_alone_has_no_line() {
        for (ratio, words) in [(1.01, "2 % nowhere"), (1.5, "2 % everywhere")] {
            let text = svg_sweep(&points(|_, _| ratio));
            let document = Document::parse(&text).unwrap();
            assert!(border(&document, Kind::Predicted).is_empty() && text.contains(words), "{text}");
        }
    }

    #[test]
    fn measurements_stand_before_predictions() {
        let mut points = points(|_, _| 0.9);
        let measured = SweepPoint { blocking_ms: 3.6, measured: true, ..points[0] };
        points.extend([measured, SweepPoint { blocking_ms: 2.7, measured: true, ..points[1] }]);
        let text = svg_sweep(&points);
        let document = Document::parse(&text).unwrap();
        assert!(cells(&document).iter().any(|(text, _)| text == "1.20 (0.90)"));
        assert_eq!(border(&document, Kind::Measured).len(), 1, "between the two that were measured");
        assert_eq!(border(&document, Kind::Predicted).len(), 0, "nowhere, it was said");
        assert!(document.descendants().any(|n| n.text() == Some("1.20") && n.attribute("font-weight").is_some()));
    }

    #[test]
    fn what_has_no_place_or_ratio_is_left_out() {
        let [good] =
            [SweepPoint { workers: 3, wait_share: 0.5, blocking_ms: 1.0, nonblocking_ms: 2.0, measured: true }];
        let points = [
            good,
            SweepPoint { workers: 0, ..good },
            SweepPoint { nonblocking_ms: 0.0, workers: 4, ..good },
            SweepPoint { blocking_ms: f64::NAN, workers: 5, ..good },
            SweepPoint { wait_share: f64::NAN, workers: 6, ..good },
        ];
        let text = svg_sweep(&points);
        let cells = cells(&Document::parse(&text).unwrap());
        assert_eq!(cells.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>(), ["0.50"]);
    }

    #[test]
    fn shades_grow_darker_and_their_figures_stay_readable() {
        let linear = |c: u8| (f64::from(c) / 255.0).powf(2.2);
        let light = |[r, g, b]: [u8; 3]| 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
        let mut last = f64::INFINITY;
        for step in -40..=40 {
            let shade = shade(f64::from(step).mul_add(0.04, 0.0).exp());
            assert!(light(shade) <= last, "{step}");
            last = light(shade);
            let contrast = if on(shade) == "on-bright" { (last + 0.05) / 0.05 } else { 1.05 / (last + 0.05) };
            assert!(contrast > 4.0, "{step}: {contrast}");
        }
    }
}
