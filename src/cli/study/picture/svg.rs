//! One SVG of all runs, and the small writer that all pictures are written with.

use super::lanes;
use super::legend;
use super::{Chart, Figure, Run};
use std::fmt::{self, Write as _};

/// Units: pixels, as all sizes here. A user unit is a CSS pixel as long as nothing scales the picture.
pub(super) const WIDTH: f64 = 1200.0;
/// Left of the lanes: their names.
pub(super) const MARGIN_LEFT: f64 = 110.0;
/// Right of the lanes: half of the last tick's label.
pub(super) const MARGIN_RIGHT: f64 = 30.0;
pub(super) const TEXT_SIZE: f64 = 13.0;
const NAME_SIZE: f64 = 16.0;
const TITLE_SIZE: f64 = 22.0;
const LINE_HEIGHT: f64 = 1.4;
const RUN_GAP: f64 = 36.0;
/// Between two columns of figures.
const COLUMN_GAP: f64 = 22.0;

/// A width that a letter does not exceed on the average, in font sizes: that of DejaVu Sans, which is a wide font.
const LETTER_WIDTH: f64 = 0.62;
const BOLD_LETTER_WIDTH: f64 = 0.71;

const FONTS: &str = "'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif";

/// Text with what XML gives a meaning escaped, and what it has no place for replaced.
pub(super) struct Escaped<'t>(pub(super) &'t str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\t' | '\n' | '\r' => f.write_char(' ')?,
                // XML 1.0, production 2 (Char): no reference may name these either. C1 controls are allowed, but HTML
                // parsers complain of them.
                '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A length, to a hundredth of a pixel.
struct Px(f64);

impl fmt::Display for Px {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", (self.0 * 100.0).round() / 100.0 + 0.0)
    }
}

/// Where a text's point lies in it.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// How a text looks; its class says in which colour.
#[derive(Clone, Copy)]
pub(super) struct Style {
    pub(super) class: &'static str,
    pub(super) size: f64,
    pub(super) is_bold: bool,
    pub(super) anchor: Anchor,
}

impl Style {
    pub(super) const PLAIN: Self = Self { class: "ink", size: TEXT_SIZE, is_bold: false, anchor: Anchor::Start };
    pub(super) const MUTED: Self = Self { class: "muted", ..Self::PLAIN };
    pub(super) const BOLD: Self = Self { is_bold: true, ..Self::PLAIN };

    pub(super) const fn at(self, anchor: Anchor) -> Self {
        Self { anchor, ..self }
    }

    /// At most as wide as the text will be.
    pub(super) fn width(self, text: &str) -> f64 {
        let letter = if self.is_bold { BOLD_LETTER_WIDTH } else { LETTER_WIDTH };
        text.chars().count() as f64 * letter * self.size
    }

    fn line_height(self) -> f64 {
        (self.size * LINE_HEIGHT).ceil()
    }
}

/// Elements of a picture. Each call writes whole elements, so that the text is well-formed at any time.
#[derive(Default)]
pub(super) struct Canvas {
    text: String,
}

impl Canvas {
    // Writing to a string cannot fail.
    fn push(&mut self, what: fmt::Arguments<'_>) {
        let _ = self.text.write_fmt(what);
    }

    pub(super) fn rect(&mut self, class: &str, x: f64, y: f64, width: f64, height: f64) {
        let (x, y, width, height) = (Px(x), Px(y), Px(width), Px(height));
        self.push(format_args!(r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}"/>"#));
    }

    /// A rectangle that says what it is when pointed at.
    pub(super) fn titled_rect(&mut self, class: &str, [x, y, width, height]: [f64; 4], title: &str) {
        let (x, y, width, height, title) = (Px(x), Px(y), Px(width), Px(height), Escaped(title));
        self.push(format_args!(
            r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}"><title>{title}</title></rect>"#
        ));
    }

    /// A rectangle of its own colour.
    pub(super) fn shaded_rect(&mut self, shade: [u8; 3], [x, y, width, height]: [f64; 4]) {
        let ([r, g, b], x, y, width, height) = (shade, Px(x), Px(y), Px(width), Px(height));
        self.push(format_args!(
            r##"<rect fill="#{r:02x}{g:02x}{b:02x}" x="{x}" y="{y}" width="{width}" height="{height}"/>"##
        ));
    }

    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let (x1, y1, x2, y2) = (Px(from.0), Px(from.1), Px(to.0), Px(to.1));
        self.push(format_args!(r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>"#));
    }

    pub(super) fn text(&mut self, style: Style, x: f64, y: f64, text: &str) {
        let (x, y, size) = (Px(x), Px(y), Px(style.size));
        let anchor = match style.anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        let weight = if style.is_bold { r#" font-weight="bold""# } else { "" };
        let (class, text) = (style.class, Escaped(text));
        self.push(format_args!(
            r#"<text class="{class}" x="{x}" y="{y}" font-size="{size}"{weight}{anchor}>{text}</text>"#
        ));
    }

    /// A text in as many lines as it needs, from a point at its top left. Returns its height.
    pub(super) fn paragraph(&mut self, style: Style, (x, top): (f64, f64), width: f64, text: &str) -> f64 {
        let mut y = top;
        for line in wrapped(text, |line| style.width(line) <= width) {
            y += style.line_height();
            self.text(style, x, y - (style.line_height() - style.size) / 2.0 - 0.2 * style.size, &line);
        }
        y - top
    }

    /// Elements that belong together, moved by (x, y).
    pub(super) fn group<R>(&mut self, label: &str, (x, y): (f64, f64), draw: impl FnOnce(&mut Self) -> R) -> R {
        let (x, y, label) = (Px(x), Px(y), Escaped(label));
        self.push(format_args!(r#"<g data-name="{label}" transform="translate({x} {y})">"#));
        let drawn = draw(self);
        self.push(format_args!("</g>\n"));
        drawn
    }

    /// The elements as a picture, inside a page that has the styles and patterns.
    pub(super) fn inline(self, label: &str, width: f64, height: f64) -> String {
        let (w, h, label, fonts) = (Px(width), Px(height), Escaped(label), Escaped(FONTS));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" role=\"img\" \
             aria-label=\"{label}\" font-family=\"{fonts}\">\n{}</svg>\n",
            self.text
        )
    }

    /// The elements as a file.
    pub(super) fn file(self, label: &str, width: f64, height: f64) -> String {
        let mut whole = Self::default();
        whole.push(format_args!("<style>{}</style>\n{}\n", legend::LIGHT, legend::PATTERNS));
        whole.rect("paper", 0.0, 0.0, width, height);
        whole.text.push('\n');
        whole.text.push_str(&self.text);
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}", whole.inline(label, width, height))
    }
}

/// Lines of whole words that each fit; a word that alone does not is cut.
pub(super) fn wrapped(text: &str, fits: impl Fn(&str) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
        if fits(&longer) {
            line = longer;
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        for c in word.chars() {
            line.push(c);
            if !fits(&line) && line.chars().nth(1).is_some() {
                line.pop();
                lines.push(std::mem::replace(&mut line, c.into()));
            }
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// All runs, one below the other: for each its name, the predicted lanes above the measured ones, and its figures.
pub(crate) fn svg(chart: &Chart<'_>) -> String {
    let mut canvas = Canvas::default();
    let width = WIDTH - 2.0 * MARGIN_RIGHT;
    let mut y = RUN_GAP / 2.0;
    let title = Style { size: TITLE_SIZE, ..Style::BOLD };
    y += canvas.paragraph(title, (MARGIN_RIGHT, y), width, &chart.title);
    y += canvas.paragraph(Style { size: NAME_SIZE, ..Style::MUTED }, (MARGIN_RIGHT, y + 4.0), width, &chart.subtitle);
    y += 16.0;
    y += canvas.group("legend", (MARGIN_RIGHT, y), |canvas| legend::draw(canvas, width));
    for run in &chart.runs {
        y += RUN_GAP / 2.0;
        canvas.line("grid", (MARGIN_RIGHT, y), (WIDTH - MARGIN_RIGHT, y));
        y += RUN_GAP / 2.0;
        let name = Style { size: NAME_SIZE, ..Style::BOLD };
        y += canvas.paragraph(name, (MARGIN_RIGHT, y), width, &run.name);
        y += canvas.paragraph(Style::MUTED, (MARGIN_RIGHT, y), width, &super::plan_text(run.plan));
        y += canvas.group(&run.name, (0.0, y), |canvas| lanes::draw(canvas, run, WIDTH));
        y += canvas.group("figures", (0.0, y), |canvas| figures(canvas, run, WIDTH));
    }
    y += RUN_GAP / 2.0;
    y += canvas.paragraph(Style::MUTED, (MARGIN_RIGHT, y), width, &chart.machine);
    canvas.file(&chart.title, WIDTH, y + RUN_GAP / 2.0)
}

/// The figures in columns, in as many rows of them as are needed. Returns their height.
fn figures(canvas: &mut Canvas, run: &Run<'_>, width: f64) -> f64 {
    let column_width = |figure: &Figure| {
        let plain = [&figure.predicted, &figure.measured].map(|text| Style::PLAIN.width(text));
        plain.into_iter().fold(Style::MUTED.width(&figure.label), f64::max)
    };
    let line = Style::PLAIN.line_height();
    let (mut x, mut y) = (f64::INFINITY, -3.0 * line);
    for figure in &run.figures {
        let column = column_width(figure);
        if x + column > width - MARGIN_RIGHT {
            (x, y) = (MARGIN_LEFT, y + 3.0 * line + 10.0);
            for (row, (name, _)) in run.timelines().into_iter().enumerate() {
                let y = y + (row + 2) as f64 * line;
                canvas.text(Style::MUTED.at(Anchor::End), MARGIN_LEFT - 8.0, y, name);
            }
        }
        canvas.text(Style::MUTED, x, y + line, &figure.label);
        for (row, text) in [&figure.predicted, &figure.measured].into_iter().enumerate() {
            canvas.text(Style::PLAIN, x, y + (row + 2) as f64 * line, if text.is_empty() { "–" } else { text });
        }
        x += column + COLUMN_GAP;
    }
    (y + 3.0 * line + 6.0).max(0.0)
}
