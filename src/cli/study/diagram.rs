//! A timeline in the letters of the original's drawings.

use super::plan::Server;
use super::timeline::{Activity, Lane, Span, Timeline};
use std::cmp::Reverse;
use std::fmt::Write;

/// Columns before the drawing itself.
const LABEL_WIDTH: usize = 10;
/// Columns between two numbers on the time line, at least, and beyond the numbers' own.
const TICK_COLUMNS: u64 = 5;
const TICK_BLANKS: u64 = 1;
const NS_PER_MS: u64 = 1_000_000;

/// Draws a timeline from `0` to `until_ns`, a column each `column_ns`; each column shows what took most of its time.
///
/// Rows derive from the spans alone: `r` and `w` are parts on their way, waiting is `.` where the server blocks and `+` where
/// it does not, as is the server's own idle time.
pub(crate) fn render(timeline: &Timeline, server: Server, column_ns: u64, until_ns: u64) -> String {
    let columns = until_ns.div_ceil(column_ns) as usize;
    let mut text = String::new();
    push_row(&mut text, "time:", &time_row(column_ns, columns));
    for worker in 0..timeline.workers {
        let row = row(timeline.lane(Lane::Worker(worker as u16)), server, column_ns, columns);
        push_row(&mut text, &format!("worker{}:", worker + 1), &row);
    }
    push_row(&mut text, "server:", &row(timeline.lane(Lane::Server), server, column_ns, columns));
    text
}

fn push_row(text: &mut String, label: &str, row: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}", format!("{label:<LABEL_WIDTH$}{row}").trim_end());
}

/// Milliseconds where they begin, as many as there is room for.
fn time_row(column_ns: u64, columns: usize) -> String {
    let steps_ms = (0..).flat_map(|exponent| [1, 2, 5].map(|digit| digit * 10u64.pow(exponent)));
    let last_ms = columns as u64 * column_ns / NS_PER_MS;
    let room = TICK_COLUMNS.max(last_ms.to_string().len() as u64 + TICK_BLANKS);
    let step_ms = steps_ms.into_iter().find(|ms| ms * NS_PER_MS >= room * column_ns).unwrap_or(1);
    let mut row = String::new();
    for ms in (0..).step_by(step_ms as usize) {
        let column = ((ms * NS_PER_MS + column_ns / 2) / column_ns) as usize;
        if column >= columns {
            break;
        }
        row.push_str(&" ".repeat(column.saturating_sub(row.len())));
        row.push_str(&ms.to_string());
    }
    row
}

fn row<'t>(spans: impl Iterator<Item = &'t Span>, server: Server, column_ns: u64, columns: usize) -> String {
    let idle = if server == Server::Blocking { '.' } else { '+' };
    // How much of each column each letter has.
    let letters = ['r', 'w', idle, ' '];
    let mut shares = vec![[0u64; 4]; columns];
    for span in spans {
        let letter = match span.activity {
            Activity::Read => 0,
            Activity::Write => 1,
            Activity::Wait | Activity::Blocked | Activity::Free => 2,
            Activity::Compute | Activity::Busy => 3,
        };
        let first = (span.start_ns / column_ns) as usize;
        for (column, shares) in shares.iter_mut().enumerate().skip(first) {
            let (start, end) = (column as u64 * column_ns, (column as u64 + 1) * column_ns);
            if start >= span.end_ns {
                break;
            }
            shares[letter] += span.end_ns.min(end).saturating_sub(span.start_ns.max(start));
        }
    }
    let most = |shares: &[u64; 4]| {
        let drawn: u64 = shares.iter().sum();
        // Where nothing is known there is nothing to be seen.
        let blank = shares[3] + (column_ns - drawn.min(column_ns));
        (0..3).max_by_key(|&i| (shares[i], Reverse(i))).filter(|&i| shares[i] > blank).map_or(' ', |i| letters[i])
    };
    shares.iter().map(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(lane: Lane, activity: Activity, start_us: u64, end_us: u64) -> Span {
        Span { lane, activity, start_ns: start_us * 1000, end_ns: end_us * 1000 }
    }

    #[test]
    fn a_column_shows_what_took_most_of_it() {
        let w = Lane::Worker(0);
        let spans = vec![
            span(w, Activity::Read, 10, 160),
            span(w, Activity::Wait, 160, 340),
            span(w, Activity::Write, 340, 460),
            span(w, Activity::Compute, 460, 700),
            span(Lane::Server, Activity::Busy, 0, 460),
            span(Lane::Server, Activity::Blocked, 460, 700),
        ];
        let timeline = Timeline { workers: 1, spans, makespan_ns: 700_000 };
        let drawn = render(&timeline, Server::Blocking, 100_000, 700_000);
        assert_eq!(drawn, "time:     0\nworker1:  rr.ww\nserver:        ..\n");
        let drawn = render(&timeline, Server::Nonblocking { parts_per_turn: None }, 100_000, 700_000);
        assert_eq!(drawn, "time:     0\nworker1:  rr+ww\nserver:        ++\n");
    }

    #[test]
    fn the_time_line_has_room_for_its_numbers() {
        assert_eq!(time_row(1_000_000_000 / 6000, 20), "0     1     2     3");
        assert_eq!(time_row(500_000, 21), "0         5         10");
        assert_eq!(time_row(1_000_000, 12), "0    5    10");
        for column_ns in [20_000, 333_333, 7_000_000, 1_000_000_000] {
            let row = time_row(column_ns, 200);
            let numbers: Vec<u64> = row.split_whitespace().map(|n| n.parse().unwrap()).collect();
            assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{column_ns}: {row}");
        }
    }
}
