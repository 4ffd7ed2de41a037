//! Figures of measurements: summed up, written short, set in columns.

use serde::Serialize;
use std::fmt::Write;

/// One figure in every round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// Sums up one figure of the samples, of which there is at least one. The median of an even number is the upper one.
pub(crate) fn summary<T>(samples: &[T], figure: impl Fn(&T) -> f64) -> Summary {
    let mut figures: Vec<f64> = samples.iter().map(figure).collect();
    figures.sort_unstable_by(f64::total_cmp);
    let last = figures.len().checked_sub(1).expect("at least one round was measured");
    Summary { median: figures[figures.len() / 2], min: figures[0], max: figures[last] }
}

/// Three significant digits, more before the point, two of the smallest; millions and thousands as such.
pub(crate) fn figure(n: f64) -> String {
    let (n, suffix) = match n.abs() {
        a if a >= 1e6 => (n / 1e6, " M"),
        a if a >= 1e4 => (n / 1e3, " k"),
        _ => (n, ""),
    };
    let decimals = match n.abs() {
        a if a >= 99.95 => 0,
        a if a >= 9.995 => 1,
        a if (1e-9..0.0995).contains(&a) => (1.0 - a.log10().floor()) as usize,
        _ => 2,
    };
    format!("{n:.decimals$}{suffix}")
}

/// Lines of cells as text, each column as wide as its widest cell; those in `right` are set to the right.
pub(crate) fn columns<const N: usize>(lines: &[[String; N]], right: &[usize]) -> String {
    let width = |column: usize| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for cells in lines {
        let mut line = String::new();
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            // Writing to a string cannot fail.
            let _ = match right.contains(&column) {
                true => write!(line, "{cell:>width$}  "),
                false => write!(line, "{cell:<width$}  "),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries() {
        let of = |figures: &[f64]| summary(figures, |f| *f);
        assert_eq!(of(&[3.0, 1.0, 2.0]), Summary { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(of(&[5.0]), Summary { median: 5.0, min: 5.0, max: 5.0 });
        assert_eq!(of(&[4.0, 1.0]), Summary { median: 4.0, min: 1.0, max: 4.0 });
    }

    #[test]
    fn figures_are_short() {
        let all = [(0.0, "0.00"), (6.254, "6.25"), (9.999, "10.0"), (62.54, "62.5"), (99.99, "100"), (6254.2, "6254")];
        let more =
            [(62_540.0, "62.5 k"), (14_812_345.0, "14.8 M"), (-3.456, "-3.46"), (0.12, "0.12"), (0.0039, "0.0039")];
        for (n, want) in all.into_iter().chain(more) {
            assert_eq!(figure(n), want);
        }
    }
}
