//! Lines through the command, beside the same lines through `tr`.
//!
//! `cargo bench --bench command [FILTER]` times ten million lines through `seqpool run -j2 upper` and through
//! `tr a-z A-Z`, from a pipe and from a file, one after the other in rounds, and prints medians with their spread.
//! `tr` is the limit: the same bytes through one process, and no line is a job. With `--test`, or run by `cargo test`,
//! it only checks the answers, on few lines.
//!
//! No criterion here: what is timed is other processes, from the first fork to the last exit.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::Instant;

const LINES: u64 = 10_000_000;
const LINES_IN_TEST: u64 = 100_000;
const ROUNDS: usize = 5;
const ROUNDS_IN_TEST: usize = 1;
/// What the command is to do on a machine that does nothing else. Units: lines a second.
const GOAL: f64 = 3e6;

/// One way through.
struct Case {
    name: &'static str,
    is_piped: bool,
    program: Program,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Program {
    Seqpool { keeps_order: bool },
    Tr,
}

const ANY: Program = Program::Seqpool { keeps_order: false };
const ORDERED: Program = Program::Seqpool { keeps_order: true };

const CASES: [Case; 6] = [
    Case { name: "pipe/any-order", is_piped: true, program: ANY },
    Case { name: "pipe/keep-order", is_piped: true, program: ORDERED },
    Case { name: "pipe/tr", is_piped: true, program: Program::Tr },
    Case { name: "file/any-order", is_piped: false, program: ANY },
    Case { name: "file/keep-order", is_piped: false, program: ORDERED },
    Case { name: "file/tr", is_piped: false, program: Program::Tr },
];

impl Program {
    fn command(self) -> Command {
        match self {
            Program::Seqpool { keeps_order } => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_seqpool"));
                command.args(["run", "-j2"]).args(keeps_order.then_some("-k")).arg("upper");
                command
            }
            Program::Tr => {
                let mut command = Command::new("tr");
                command.args(["a-z", "A-Z"]);
                command
            }
        }
    }
}

/// What `seq` is asked for. The lines that are timed are bare numbers, as in `seq 1 10000000`; those that are checked
/// have a letter to be changed.
fn seq(format: Option<&str>, lines: u64) -> Command {
    let mut command = Command::new("seq");
    command.args(format.map(|f| format!("--format={f}"))).args(["1", &lines.to_string()]);
    command
}

fn start(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

fn end(mut child: Child, name: &str) {
    let status = child.wait().unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(status.success(), "{name}: {status}");
}

/// A producer at work on a pipe.
fn start_producer(command: &mut Command) -> (Child, ChildStdout) {
    let mut child = start(command.stdout(Stdio::piped()));
    let stdout = child.stdout.take().expect("it was asked for");
    (child, stdout)
}

/// Seconds from the first fork to the last exit.
fn time(case: &Case, lines: u64, file: &std::path::Path) -> f64 {
    let mut command = case.program.command();
    command.stdout(Stdio::null());
    let began = Instant::now();
    if case.is_piped {
        let (producer, lines) = start_producer(&mut seq(None, lines));
        end(start(command.stdin(lines)), case.name);
        // The command still holds our end of the pipe, which nobody reads any more.
        drop(command);
        end(producer, "seq");
    } else {
        let input = File::open(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        end(start(command.stdin(input)), case.name);
    }
    began.elapsed().as_secs_f64()
}

/// Every line has its answer, once, and in order where that is promised.
fn check(program: Program, lines: u64) {
    let (producer, input) = start_producer(&mut seq(Some("line %.0f"), lines));
    let mut command = program.command();
    let (child, output) = start_producer(command.stdin(input));
    drop(command);
    let mut seen = vec![false; lines as usize];
    let mut count = 0;
    let mut previous = 0;
    for line in BufReader::with_capacity(1 << 20, output).split(b'\n') {
        let line = line.unwrap_or_else(|e| panic!("reading answers: {e}"));
        let text = String::from_utf8_lossy(&line);
        let number: u64 = text.strip_prefix("LINE ").and_then(|n| n.parse().ok()).unwrap_or(0);
        assert!((1..=lines).contains(&number), "a wrong answer: {text}");
        assert!(!std::mem::replace(&mut seen[number as usize - 1], true), "twice: {text}");
        if program != ANY {
            assert_eq!(number, previous + 1, "out of order");
        }
        previous = number;
        count += 1;
    }
    assert_eq!(count, lines, "answers");
    end(child, "the command");
    end(producer, "seq");
}

struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self { min: times[0], median: times[times.len() / 2], max: times[times.len() - 1] }
    }
}

fn main() -> ExitCode {
    let (mut is_bench, mut is_test, mut filter) = (false, false, None);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            // From cargo.
            "--bench" => is_bench = true,
            "--test" => is_test = true,
            option if option.starts_with('-') => {
                eprintln!("command: unknown option {option}: known are --bench and --test");
                return ExitCode::from(2);
            }
            name => filter = Some(name.to_owned()),
        }
    }
    let is_full = is_bench && !is_test;
    let (lines, rounds) = if is_full { (LINES, ROUNDS) } else { (LINES_IN_TEST, ROUNDS_IN_TEST) };
    let is_chosen = |case: &&Case| filter.as_ref().is_none_or(|f| case.name.contains(f.as_str()));
    let cases: Vec<&Case> = CASES.iter().filter(is_chosen).collect();

    let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("a directory for the input: {e}"));
    let file = dir.path().join("lines");
    if cases.iter().any(|case| !case.is_piped) {
        let into = File::create(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        end(start(seq(None, lines).stdout(into)), "seq");
    }
    for program in [ANY, ORDERED] {
        if cases.iter().any(|case| case.program == program) {
            check(program, lines);
        }
    }

    let mut times = vec![Vec::with_capacity(rounds); cases.len()];
    for _ in 0..rounds {
        for (case, times) in cases.iter().zip(&mut times) {
            times.push(time(case, lines, &file));
        }
    }
    let spreads: Vec<Spread> = times.into_iter().map(Spread::of).collect();

    println!("{lines} lines, {rounds} rounds; seconds; share: lines a second, of those of tr on the same input");
    println!("{:<16} {:>8} {:>8} {:>8} {:>11} {:>7}", "case", "min", "median", "max", "M lines/s", "share");
    for (case, spread) in cases.iter().zip(&spreads) {
        let limit = cases.iter().zip(&spreads).find(|(c, _)| c.program == Program::Tr && c.is_piped == case.is_piped);
        let share = limit.map_or_else(|| "-".to_owned(), |(_, limit)| format!("{:.3}", limit.median / spread.median));
        let Spread { min, median, max } = spread;
        let pace = lines as f64 / median / 1e6;
        println!("{:<16} {min:>8.3} {median:>8.3} {max:>8.3} {pace:>11.2} {share:>7}", case.name);
        if is_full && case.program == ANY && case.is_piped {
            let verdict = if lines as f64 / median >= GOAL { "reached" } else { "missed" };
            println!("{:<16} goal on a quiet machine: {:.0} M lines/s: {verdict}", "", GOAL / 1e6);
        }
    }
    ExitCode::SUCCESS
}
