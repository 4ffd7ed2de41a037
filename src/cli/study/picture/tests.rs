//! What is seen in the pictures, read back from them.

use super::super::plan::{Compute, Plan, Server, Supply, Transfer};
use super::super::timeline::{Activity, Lane, Span, Timeline};
use super::*;
use roxmltree::{Document, Node, ParsingOptions};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

/// Columns of a drawing are a sixth of a millisecond. Units: nanoseconds.
fn column(n: usize) -> u64 {
    n as u64 * MILLISECOND / 6
}

/// A timeline as the original notes draw it: a line for each worker, then one for the server.
fn drawn(lines: &[&str]) -> Timeline {
    let (server, workers) = lines.split_last().unwrap();
    let columns = lines.iter().map(|line| line.len()).max().unwrap();
    let mut spans = Vec::new();
    for (n, line) in workers.iter().enumerate() {
        let begins = line.len() - line.trim_start().len();
        spans_of(&mut spans, Lane::Worker(n as u16), &line[begins..], begins, |c| match c {
            'r' => Activity::Read,
            'w' => Activity::Write,
            '.' | '+' => Activity::Wait,
            _ => Activity::Compute,
        });
    }
    spans_of(&mut spans, Lane::Server, &format!("{server:columns$}"), 0, |c| match c {
        '.' => Activity::Blocked,
        '+' => Activity::Free,
        _ => Activity::Busy,
    });
    Timeline { workers: workers.len(), spans, makespan_ns: column(columns) }
}

/// Letters for parts are spans of their own; the others last until something else comes.
fn spans_of(spans: &mut Vec<Span>, lane: Lane, line: &str, begins: usize, activity: impl Fn(char) -> Activity) {
    let first = spans.len();
    for (n, c) in line.chars().enumerate() {
        let (activity, end_ns) = (activity(c), column(begins + n + 1));
        match spans[first..].last_mut() {
            Some(last) if last.activity == activity && !matches!(c, 'r' | 'w') => last.end_ns = end_ns,
            _ => spans.push(Span { lane, activity, start_ns: column(begins + n), end_ns }),
        }
    }
}

fn blocking() -> Timeline {
    drawn(&[
        "rrrwww                  rrrwww",
        "......rrrwww            ......rrrwww",
        "............rrrwww      ............rrrwww",
        "                  ......",
    ])
}

fn nonblocking() -> Timeline {
    drawn(&[
        "r++r++r++w++w++w                  r+r+rwww",
        " r++r++r++w++w++w            r+rrw+w+w",
        "  r++r++r++w++w++w      rrrww+w",
        "                  ++++++",
    ])
}

fn plan(server: Server, workers: usize) -> Plan {
    Plan {
        server,
        transfer: Transfer::Cpu,
        supply: Supply::Rounds,
        compute: Compute::Sleep,
        compute_ns: [3, 2, 1].into_iter().cycle().take(workers).map(|n| n * MILLISECOND).collect(),
        message_ns: MILLISECOND / 2,
        parts: 3,
        rounds: 2,
    }
}

fn figure(label: &str, predicted: &str, measured: &str) -> Figure {
    Figure { label: label.into(), predicted: predicted.into(), measured: measured.into() }
}

fn run<'a>(plan: &'a Plan, predicted: &'a Timeline, measured: &'a Timeline) -> Run<'a> {
    Run {
        name: "blocking, unsynchronized, cpu, rounds".into(),
        plan,
        window_ns: 7 * MILLISECOND,
        predicted,
        measured,
        figures: vec![figure("makespan, ms", "7.00", "7.12"), figure("system calls", "", "1234")],
    }
}

fn chart<'a>(runs: Vec<Run<'a>>, sweep: &'a [SweepPoint]) -> Chart<'a> {
    Chart {
        title: "Blocking against non-blocking".into(),
        subtitle: "predicted and measured".into(),
        runs,
        sweep,
        sentences: vec!["Blocking beats turn-taking.".into()],
        machine: "A machine".into(),
    }
}

fn parse(text: &str) -> Document<'_> {
    // The page's document type says nothing; entities would be a mistake, and are one for the parser.
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).unwrap_or_else(|error| panic!("{error}"))
}

fn number(node: Node<'_, '_>, name: &str) -> f64 {
    let text = node.attribute(name).unwrap_or_else(|| panic!("no {name}: {node:?}"));
    text.parse().unwrap_or_else(|_| panic!("{name}={text}"))
}

/// The point of an element, with all groups around it counted, inside its picture.
fn origin(node: Node<'_, '_>) -> (f64, f64) {
    let groups = node.ancestors().take_while(|n| !n.has_tag_name("svg")).filter_map(|n| n.attribute("transform"));
    groups.fold((0.0, 0.0), |(x, y), transform| {
        let inner = transform.strip_prefix("translate(").and_then(|t| t.strip_suffix(')')).unwrap();
        let (dx, dy) = inner.split_once(' ').unwrap();
        (x + dx.parse::<f64>().unwrap(), y + dy.parse::<f64>().unwrap())
    })
}

/// Activity, left edge and width of all spans of a lane, in the first run or the only one.
fn drawn_spans(document: &Document<'_>, lane: &str) -> Vec<(String, f64, f64)> {
    let group = document.descendants().find(|n| n.attribute("data-name") == Some(lane)).unwrap();
    let rects = group.children().filter(|n| n.has_tag_name("rect"));
    rects.map(|n| (n.attribute("class").unwrap().to_owned(), number(n, "x"), number(n, "width"))).collect()
}

#[track_caller]
fn assert_near(found: f64, wanted: f64) {
    assert!((found - wanted).abs() < 0.02, "{found} is not {wanted}");
}

/// A box of a text, by a wide font: left, top, right, bottom.
fn text_box(node: Node<'_, '_>) -> [f64; 4] {
    let (size, (dx, dy)) = (number(node, "font-size"), origin(node));
    let letter = if node.attribute("font-weight").is_some() { 0.69 } else { 0.6 };
    let width = node.text().unwrap_or_default().chars().count() as f64 * letter * size;
    let (x, y) = (number(node, "x") + dx, number(node, "y") + dy);
    let left = match node.attribute("text-anchor") {
        None => x,
        Some("middle") => x - width / 2.0,
        Some(_) => x - width,
    };
    [left, y - 0.75 * size, left + width, y + 0.2 * size]
}

/// No text touches another or leaves its picture, and all are large enough.
#[track_caller]
fn assert_readable(text: &str) {
    let document = parse(text);
    for picture in document.descendants().filter(|n| n.has_tag_name("svg")) {
        let (width, height) = (number(picture, "width"), number(picture, "height"));
        let texts: Vec<_> = picture.descendants().filter(|n| n.has_tag_name("text")).collect();
        let boxes: Vec<_> = texts.iter().map(|&n| text_box(n)).collect();
        for (n, one) in boxes.iter().enumerate() {
            let what = texts[n].text().unwrap_or_default();
            assert!(number(texts[n], "font-size") >= 12.0, "{what} is small");
            let is_inside = one[0] >= 0.0 && one[1] >= 0.0 && one[2] <= width && one[3] <= height;
            assert!(is_inside, "{what} at {one:?} leaves {width} x {height}");
            for (m, other) in boxes.iter().enumerate().skip(n + 1) {
                let apart = one[2] <= other[0] || other[2] <= one[0] || one[3] <= other[1] || other[3] <= one[1];
                assert!(apart, "{what} at {one:?} overlaps {:?} at {other:?}", texts[m].text());
            }
        }
        for rect in picture
            .descendants()
            .filter(|n| n.has_tag_name("rect") && n.ancestors().all(|a| a.tag_name().name() != "defs"))
        {
            let ((dx, dy), x, y) = (origin(rect), number(rect, "x"), number(rect, "y"));
            assert!(x + dx >= 0.0 && x + dx + number(rect, "width") <= width + 0.02, "{rect:?}");
            assert!(y + dy >= 0.0 && y + dy + number(rect, "height") <= height + 0.02, "{rect:?}");
        }
    }
}

#[test]
fn every_span_of_the_window_is_drawn_once_where_it_belongs() {
    let (plan, predicted, measured) = (plan(Server::Blocking, 3), blocking(), nonblocking());
    // The second window ends amid spans, and leaves some out.
    for window_ns in [7 * MILLISECOND, 4_100_000] {
        let text = svg(&chart(vec![Run { window_ns, ..run(&plan, &predicted, &measured) }], &[]));
        let document = parse(&text);
        let lane_width = 1200.0 - 110.0 - 30.0;
        let x = |ns: u64| ns.min(window_ns) as f64 / window_ns as f64 * lane_width;
        let mut drawn = 0;
        for (name, timeline) in [("predicted", &predicted), ("measured", &measured)] {
            for lane in [Lane::Worker(0), Lane::Worker(1), Lane::Worker(2), Lane::Server] {
                let wanted: Vec<_> = timeline.lane(lane).filter(|s| s.start_ns < window_ns).collect();
                let found = drawn_spans(&document, &format!("{name} {}", lane_name(lane)));
                assert_eq!(found.len(), wanted.len());
                for ((class, left, width), span) in found.into_iter().zip(wanted) {
                    assert_eq!(class, span.activity.name());
                    assert_near(left, x(span.start_ns));
                    assert_near(width, x(span.end_ns) - x(span.start_ns));
                    drawn += 1;
                }
            }
        }
        let titled = document.descendants().filter(|n| n.has_tag_name("rect") && n.has_children());
        assert_eq!(titled.count(), drawn, "spans are drawn elsewhere too");
    }
}

#[test]
fn a_longer_compute_moves_what_follows() {
    let (plan, predicted) = (plan(Server::Blocking, 3), blocking());
    let mut longer = predicted.clone();
    for span in longer.spans.iter_mut().filter(|s| s.lane == Lane::Worker(0) && s.end_ns > MILLISECOND) {
        span.end_ns += 500_000;
        span.start_ns += if span.activity == Activity::Compute { 0 } else { 500_000 };
    }
    let text = svg(&chart(vec![run(&plan, &predicted, &longer)], &[]));
    let document = parse(&text);
    let [before, after] = ["predicted worker 1", "measured worker 1"].map(|lane| drawn_spans(&document, lane));
    let moved = 0.5 / 7.0 * (1200.0 - 110.0 - 30.0);
    let compute = before.iter().position(|(class, ..)| class == "compute").unwrap();
    assert_eq!(before[..compute], after[..compute]);
    assert_near(after[compute].1, before[compute].1);
    assert_near(after[compute].2, before[compute].2 + moved);
    assert_eq!(before[compute + 1..].len(), 6);
    for (before, after) in before[compute + 1..].iter().zip(&after[compute + 1..]) {
        assert_near(after.1, before.1 + moved);
    }
    assert_eq!(drawn_spans(&document, "predicted worker 2"), drawn_spans(&document, "measured worker 2"));
}

#[test]
fn letters_stand_on_parts_that_have_room() {
    let (plan, timeline) = (plan(Server::Blocking, 3), blocking());
    let letters = |window_ns| {
        let text = svg(&chart(vec![Run { window_ns, ..run(&plan, &timeline, &timeline) }], &[]));
        let document = parse(&text);
        let lanes = document.descendants().filter(|n| n.attribute("data-name").is_some_and(|d| d.contains("worker ")));
        let texts: Vec<_> = lanes.flat_map(|n| n.descendants()).filter(|n| n.has_tag_name("text")).collect();
        texts.iter().filter_map(|n| n.text()).filter(|t| matches!(*t, "r" | "w")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(letters(7 * MILLISECOND).concat(), "rrrwwwrrrwww".repeat(6));
    assert!(letters(70 * MILLISECOND).is_empty());
}

/// Two runs as in a report, with long names and many figures.
fn long_runs<'a>(plan: &'a Plan, timeline: &'a Timeline) -> Vec<Run<'a>> {
    let mut first = run(plan, timeline, timeline);
    first.name = "a long name of a run, which needs more than a line ".repeat(6) + &"W".repeat(300);
    first.figures = (0..25).map(|n| figure(&format!("figure {n}, ms"), &"1".repeat(n), &"2".repeat(2 * n))).collect();
    vec![first, run(plan, timeline, timeline)]
}

#[test]
fn nothing_overlaps_or_is_cut_off() {
    let lines: Vec<String> = (0..64).map(|n| format!("{}r++r++r++w++w++w  ", " ".repeat(n))).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).chain(["  ++++"]).collect();
    let turns = Server::Nonblocking { parts_per_turn: NonZeroU32::new(1) };
    for (plan, timeline) in [(plan(Server::Blocking, 3), nonblocking()), (plan(turns, 64), drawn(&lines))] {
        let points = [(1, 0.0, 0.9), (64, 1.0, 3.0), (7, 0.35, 12.0), (64, 0.0, 1.0)].map(point);
        let mut chart = chart(long_runs(&plan, &timeline), &points);
        chart.machine = "a machine ".repeat(40);
        chart.runs[0].window_ns = timeline.makespan_ns;
        assert_readable(&svg(&chart));
        assert_readable(&html(&chart));
        let document = svg(&chart);
        let document = parse(&document);
        assert!(!drawn_spans(&document, &format!("measured worker {}", plan.workers())).is_empty());
    }
    for window_ns in [0, 1, 999, 7_123_456, 86_400_000 * MILLISECOND] {
        let (plan, timeline) = (plan(Server::Blocking, 3), blocking());
        assert_readable(&svg(&chart(vec![Run { window_ns, ..run(&plan, &timeline, &timeline) }], &[])));
    }
}

#[test]
fn ticks_are_round_and_have_a_unit() {
    let (plan, timeline) = (plan(Server::Blocking, 3), blocking());
    for (window_ns, wanted) in [
        (7 * MILLISECOND, "0 0.5 1 1.5 2 2.5 3 3.5 4 4.5 5 5.5 6 6.5 7"),
        (8 * MILLISECOND, "0 1 2 3 4 5 6 7 8"),
        (30 * MILLISECOND, "0 2 4 6 8 10 12 14 16 18 20 22 24 26 28 30"),
        (550_000, "0 0.05 0.1 0.15 0.2 0.25 0.3 0.35 0.4 0.45 0.5 0.55"),
    ] {
        let text = svg(&chart(vec![Run { window_ns, ..run(&plan, &timeline, &timeline) }], &[]));
        let document = parse(&text);
        let texts: Vec<_> = document.descendants().filter(|n| n.has_tag_name("text")).collect();
        let axis = texts.iter().find(|n| n.text() == Some("time, ms")).unwrap();
        let ticks = texts.iter().filter(|n| n.attribute("y") == axis.attribute("y") && *n != axis);
        let ticks: Vec<_> = ticks.filter(|n| n.parent() == axis.parent()).filter_map(|n| n.text()).collect();
        assert_eq!(ticks.join(" "), wanted);
    }
}

#[test]
fn nothing_to_draw_is_drawn_as_such() {
    let nothing = Timeline::default();
    let no_workers = plan(Server::Blocking, 0);
    let run = Run { window_ns: 0, figures: Vec::new(), ..run(&no_workers, &nothing, &nothing) };
    for runs in [Vec::new(), vec![run]] {
        let chart = chart(runs, &[]);
        assert_readable(&svg(&chart));
        assert_readable(&html(&chart));
        assert_eq!(svg(&chart).matches("no spans").count(), 2 * chart.runs.len());
    }
    assert_readable(&svg_sweep(&[]));
    assert!(svg_sweep(&[]).contains("no points"));
}

#[test]
fn texts_are_escaped() {
    let awkward = "<b>&amp; \"quoted\" 'too' ]]> \u{1}\u{7f}\u{ffff}";
    let shown = "<b>&amp; \"quoted\" 'too' ]]> \u{fffd}\u{fffd}\u{fffd}";
    let (plan, timeline) = (plan(Server::Blocking, 3), blocking());
    let mut run = run(&plan, &timeline, &timeline);
    run.name = awkward.into();
    run.figures = vec![figure(awkward, awkward, awkward)];
    let mut chart = chart(vec![run], &[]);
    (chart.title, chart.subtitle, chart.machine) = (awkward.into(), awkward.into(), awkward.into());
    chart.sentences = vec![awkward.into()];
    for (text, times) in [(svg(&chart), 7), (html(&chart), 9)] {
        let document = parse(&text);
        let found = document.descendants().filter(|n| n.is_text() && n.text() == Some(shown)).count();
        assert_eq!(found, times, "{text}");
        let names = document.descendants().filter_map(|n| n.attribute("aria-label"));
        assert!(names.filter(|name| *name == shown).count() >= 1);
        assert!(!document.descendants().any(|n| n.has_tag_name("b")));
    }
}

/// Every class of an element has a style, and every reference something to refer to.
#[track_caller]
fn assert_styled(text: &str) {
    let document = parse(text);
    let style: String = document.descendants().filter(|n| n.has_tag_name("style")).filter_map(|n| n.text()).collect();
    let drawn = document.descendants().filter(|n| n.ancestors().any(|a| a.has_tag_name("svg")));
    for class in drawn.filter_map(|n| n.attribute("class")).collect::<BTreeSet<_>>() {
        assert!(style.contains(&format!(".{class}{{")), "{class} has no style");
    }
    let ids: Vec<_> = document.descendants().filter_map(|n| n.attribute("id")).collect();
    assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len(), "{ids:?}");
    for reference in style.split("url(#").skip(1) {
        let id = reference.split(')').next().unwrap();
        assert!(ids.contains(&id), "nothing is called {id}");
    }
}

#[test]
fn all_that_is_drawn_has_a_style() {
    let (plan, timeline) = (plan(Server::Blocking, 3), blocking());
    let points = [(1, 0.0, 0.9), (2, 0.0, 4.0)].map(point);
    let chart = chart(long_runs(&plan, &timeline), &points);
    for text in [svg(&chart), html(&chart), svg_sweep(&points)] {
        assert_styled(&text);
    }
}

#[test]
fn a_page_stands_alone() {
    let (plan, timeline) = (plan(Server::Blocking, 3), blocking());
    let points = [(1, 0.0, 0.9), (2, 0.0, 4.0)].map(point);
    let text = html(&chart(long_runs(&plan, &timeline), &points));
    let document = parse(&text);
    for node in document.descendants() {
        assert!(!["script", "img", "iframe", "object", "image", "use"].contains(&node.tag_name().name()), "{node:?}");
        for attribute in node.attributes().filter(|a| ["href", "src", "style"].contains(&a.name())) {
            assert_eq!(attribute.value(), "data:,", "{node:?}");
        }
    }
    let without_names = text.replace("http://www.w3.org/2000/svg", "");
    assert!(!["http:", "https:", "//", "@import"].iter().any(|part| without_names.contains(part)));
    assert!(text.contains("@media (prefers-color-scheme: dark)"));
    let texts: Vec<_> = document.descendants().filter(|n| n.is_text()).filter_map(|n| n.text()).collect();
    for wanted in ["Blocking beats turn-taking.", "A machine", "makespan, ms", "7.12", "–", sweep::TITLE] {
        assert!(texts.contains(&wanted), "{wanted} is not there");
    }
    // What is wide is in a box of its own.
    for picture in document.descendants().filter(|n| n.has_tag_name("svg") && number(*n, "width") > 300.0) {
        assert_eq!(picture.parent().and_then(|n| n.attribute("class")), Some("box"));
    }
}

#[test]
fn a_trace_keeps_the_rules_of_its_format() {
    let (plan, predicted, mut measured) = (plan(Server::Blocking, 3), blocking(), nonblocking());
    // Odd nanoseconds, which microseconds as binary fractions do not hold exactly.
    for span in &mut measured.spans {
        (span.start_ns, span.end_ns) = (span.start_ns / 997 * 1001, span.end_ns / 997 * 1001);
    }
    let chart = chart(vec![run(&plan, &predicted, &measured), run(&plan, &measured, &predicted)], &[]);
    let mut text = Vec::new();
    perfetto(&chart, &mut text).unwrap();
    let trace: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(trace["displayTimeUnit"], "ms");
    assert!(trace["otherData"].as_object().unwrap().values().all(Value::is_string));

    // Names of processes; names and places of threads; spans, by thread.
    let mut processes = BTreeMap::new();
    let mut threads: BTreeMap<u64, (u64, String)> = BTreeMap::new();
    let mut places = BTreeMap::new();
    let mut spans: BTreeMap<u64, Vec<(String, u64, u64)>> = BTreeMap::new();
    for event in trace["traceEvents"].as_array().unwrap() {
        let name = event["name"].as_str().unwrap();
        let (pid, tid) = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
        assert!(pid > 0 && tid > 0 && event["ts"].is_number(), "{event}");
        match event["ph"].as_str().unwrap() {
            "M" => match name {
                "process_name" => {
                    let name = event["args"]["name"].as_str().unwrap();
                    assert_eq!(processes.insert(pid, name.to_owned()), None);
                }
                "process_sort_index" => assert_eq!(event["args"]["sort_index"].as_u64(), Some(pid)),
                "thread_name" => {
                    let name = event["args"]["name"].as_str().unwrap();
                    assert_eq!(threads.insert(tid, (pid, name.to_owned())), None, "a thread in two processes");
                }
                "thread_sort_index" => {
                    let place = event["args"]["sort_index"].as_u64().unwrap();
                    assert_eq!(places.insert((pid, place), tid), None);
                }
                _ => panic!("{event}"),
            },
            "X" => {
                assert_eq!(threads[&tid].0, pid);
                assert!(threads[&tid].1.starts_with(event["cat"].as_str().unwrap()));
                // As Perfetto reads them.
                let ns = |field: &str| (event[field].as_f64().unwrap() * 1000.0) as u64;
                spans.entry(tid).or_default().push((name.to_owned(), ns("ts"), ns("ts") + ns("dur")));
            }
            _ => panic!("{event}"),
        }
    }
    assert_eq!(processes.len(), 2);
    assert!(threads.keys().all(|tid| !processes.contains_key(tid)), "a thread that Perfetto takes for a main thread");
    assert_eq!(threads.len(), 2 * 2 * 4);
    assert_eq!(places.values().copied().collect::<Vec<_>>(), threads.keys().copied().collect::<Vec<_>>());
    let timelines = [&predicted, &measured, &measured, &predicted];
    let lanes = [Lane::Worker(0), Lane::Worker(1), Lane::Worker(2), Lane::Server];
    let wanted = timelines.into_iter().flat_map(|timeline| lanes.map(|lane| (timeline, lane)));
    for ((tid, found), (timeline, lane)) in spans.iter().zip(wanted) {
        assert!(threads[tid].1.ends_with(&lane_name(lane)));
        let wanted = timeline.lane(lane).map(|s| (s.activity.name().to_owned(), s.start_ns, s.end_ns));
        assert_eq!(*found, wanted.collect::<Vec<_>>());
        assert!(found.windows(2).all(|pair| pair[0].2 <= pair[1].1), "spans overlap in {}", threads[tid].1);
    }
}

#[test]
fn a_trace_that_cannot_be_written_is_an_error() {
    let (plan, timeline) = (plan(Server::Blocking, 3), blocking());
    let mut room = [0u8; 300];
    let error = perfetto(&chart(vec![run(&plan, &timeline, &timeline)], &[]), &mut room[..]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WriteZero);
}

#[test]
fn a_window_holds_the_rounds_that_it_is_to() {
    let (short, long) = (blocking(), drawn(&["rrrwww            rrrwww      ", "      "]));
    // Written a second time after 4 ms; nobody is so in the other.
    assert_eq!(window_ns(2, &long, &long), 4 * MILLISECOND);
    assert_eq!(window_ns(1, &short, &short), 3 * MILLISECOND);
    assert_eq!(window_ns(2, &short, &short), 7 * MILLISECOND);
    assert_eq!(window_ns(1, &short, &long), 3 * MILLISECOND);
    assert_eq!(window_ns(1, &long, &short), 2 * MILLISECOND, "three times as long as predicted");
    assert_eq!(window_ns(2, &Timeline::default(), &Timeline::default()), 0);
}

#[test]
fn plans_in_words() {
    let mut plan = plan(Server::Blocking, 3);
    assert_eq!(
        plan_text(&plan),
        "one worker at a time; 3 workers, computing 3, 2, 1 ms (asleep); messages of 0.5 ms in 3 parts, each the \
         server's own work; 2 jobs each"
    );
    plan = Plan { compute_ns: vec![2_500_000; 6], supply: Supply::Queue, compute: Compute::Spin, ..plan };
    plan = Plan { server: Server::Nonblocking { parts_per_turn: None }, transfer: Transfer::Wait, ..plan };
    assert_eq!(
        plan_text(&plan),
        "as many parts a turn as there are; 6 workers, computing 2.5 ms (spinning); messages of 0.5 ms in 3 parts, \
         each with a wait for the peer; 12 jobs from a shared queue"
    );
    plan.compute_ns = (1..=64).map(|n| n * MILLISECOND).collect();
    assert!(plan_text(&plan).contains("64 workers, computing 1 to 64 ms"));
}

/// Workers, share of waiting, ratio; predicted.
fn point((workers, wait_share, ratio): (u32, f64, f64)) -> SweepPoint {
    SweepPoint { workers, wait_share, blocking_ms: 2.0 * ratio, nonblocking_ms: 2.0, measured: false }
}
