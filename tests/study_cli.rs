//! `seqpool study` as a user meets it: every test drives the real program and holds it to `CLI.md`. How long things took
//! is nobody's business here; that predictions, spans and files fit together is.

use guard::{GONE_LIMIT, Guard, run};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

#[path = "support/guard.rs"]
mod guard;

const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGPIPE: i32 = 13;

/// The first fields of a run, in their order.
const FIELDS: [&str; 10] = [
    "server",
    "scenario",
    "transfer",
    "supply",
    "predicted_ms",
    "measured_ms",
    "busy_share",
    "blocked_share",
    "free_share",
    "cause",
];

fn study(args: &[&str]) -> Command {
    guard::seqpool("study", args)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn number(run: &Value, field: &str) -> f64 {
    run[field].as_f64().unwrap_or_else(|| panic!("{field}: {run}"))
}

fn check_run(run: &Value) {
    let shares = ["busy_share", "blocked_share", "free_share"].map(|field| number(run, field));
    assert!(shares.iter().all(|share| (0.0..=1.0001).contains(share)), "{run}");
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-3, "{run}");
    let [_, blocked, free] = shares;
    // By construction.
    match run["server"].as_str() {
        Some("blocking") => assert_eq!(free, 0.0, "{run}"),
        Some("nonblocking") => assert_eq!(blocked, 0.0, "{run}"),
        _ => panic!("{run}"),
    }
    let (predicted, measured) = (number(run, "predicted_ms"), number(run, "measured_ms"));
    assert!(number(run, "min_ms") <= measured && measured <= number(run, "max_ms"), "{run}");
    // Nobody computes, or moves a part, faster than he is asked to; workers that drift out of step may wait less, though.
    assert!(measured > 0.75 * number(run, "drawn_ms"), "{run}");
    // Far from the prediction, and no word why, or the reverse.
    assert_eq!((measured / predicted - 1.0).abs() > 0.15, run["cause"].is_string(), "{run}");
    assert!(number(run, "system_calls") > 0.0, "{run}");
}

#[test]
fn all_eight_runs_are_predicted_measured_and_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let files = ["json", "svg", "html", "perfetto", "sweep"].map(|name| (format!("--{name}"), path(name)));
    let mut args = vec!["--rounds", "3", "--repeat", "1"];
    files.iter().for_each(|(option, path)| args.extend([option.as_str(), path.as_str()]));
    let output = run(study(&args));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();

    let json = read("json");
    let all: Value = serde_json::from_str(&json).unwrap();
    let mut seen = Vec::new();
    for run in all["runs"].as_array().unwrap() {
        let fields: Vec<usize> = FIELDS.iter().map(|f| json.find(&format!("\"{f}\":")).unwrap()).collect();
        assert!(fields.is_sorted(), "{json}");
        check_run(run);
        seen.push(["server", "scenario", "transfer", "supply"].map(|f| run[f].as_str().unwrap().to_owned()));
    }
    seen.sort();
    let mut expected = Vec::new();
    for server in ["blocking", "nonblocking"] {
        for scenario in ["synchronized", "unsynchronized"] {
            for transfer in ["cpu", "wait"] {
                expected.push([server, scenario, transfer, "rounds"].map(str::to_owned));
            }
        }
    }
    assert_eq!(seen, expected);
    all["unlimited_runs"].as_array().unwrap().iter().for_each(check_run);
    assert_eq!(all["unlimited_runs"].as_array().unwrap().len(), 4);
    let sweep = all["sweep"].as_array().unwrap();
    assert_eq!(sweep.len(), 77);
    for point in sweep {
        // Three jobs of 2 ms, seven messages; of a blocking server one after the other.
        let (alone_ms, workers) = (3.0 * 2.0 + 7.0 * 0.5_f64, number(point, "workers"));
        let in_turn_ms = workers * 7.0 * 0.5;
        for (server, least_ms) in [("blocking", alone_ms.max(in_turn_ms)), ("nonblocking", alone_ms)] {
            for field in [format!("{server}_ms"), format!("measured_{server}_ms")] {
                // What goes with a message may begin before it.
                assert!(number(point, &field) > 0.9 * least_ms, "{field}: {point}");
            }
        }
    }
    assert!(number(&all["machine"], "cores") >= 1.0);
    for server in ["blocking", "nonblocking"] {
        let costs = &all["costs_us"][server];
        for (transfer, fields) in [("cpu", &["worker_wake", "timer"][..]), ("wait", &["exchange", "part", "timer"])] {
            assert!(fields.iter().all(|f| number(&costs[transfer], f) > 0.0), "{server}, {transfer}: {costs}");
        }
    }
    assert!(text(&output.stdout).contains("\n  wait, non-blocking: an exchange "), "{}", text(&output.stdout));

    // What is drawn, in the original's letters. What the machine adds shifts a prediction by a column now and then.
    let stdout = text(&output.stdout);
    let (_, run) =
        stdout.split_once("\ncpu, synchronized, non-blocking, 1 a turn\npredicted\n").expect("a run's title");
    let rows: Vec<&str> = run.lines().take(5).collect();
    let drawn = [
        "time:     0     1     2     3     4     5     6     7",
        "worker1:  r++r++r++w++w",
        "worker2:  +r++r++r++w++w",
        "worker3:  ++r++r++r++w++w",
        "server:                     ",
    ];
    for (row, drawn) in rows.iter().zip(drawn) {
        assert!(row.starts_with(drawn), "{row}\n{drawn}");
    }
    assert_eq!(rows.len(), drawn.len());
    assert_eq!(stdout.matches("\npredicted\ntime:").count(), 12, "{stdout}");
    assert_eq!(stdout.matches("\nmeasured\ntime:").count(), 12, "{stdout}");
    assert!(stdout.contains("What follows\n- cpu, synchronized: "), "{stdout}");

    for name in ["svg", "sweep"] {
        assert!(read(name).starts_with("<svg") || read(name).starts_with("<?xml"), "{name}");
    }
    assert!(read("html").starts_with("<!DOCTYPE html>") || read("html").starts_with("<!doctype html>"));
    let trace: Value = serde_json::from_str(&read("perfetto")).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let of = |what: &str| events.iter().filter(|e| e["ph"] == "X" && e["name"] == what).count();
    // 12 runs, 3 workers, 4 messages and 3 jobs of 3 parts each; predicted, and measured. A slow peer's part that was there
    // already when a busy machine let the server look took no time, and is not drawn.
    for (what, parts) in [("read", 12 * 3 * 4 * 3), ("write", 12 * 3 * 3 * 3)] {
        assert!((parts + parts / 2..=2 * parts).contains(&of(what)), "{what}: {}, predicted {parts}", of(what));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 5, "no temporary file");
}

#[test]
fn predictions_follow_the_options() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("study.json");
    let predicted = |args: &[&str]| {
        let mut all = vec!["--repeat", "1", "--rounds", "2", "--json", path.to_str().unwrap()];
        all.extend(args);
        let output = run(study(&all));
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let all: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let runs = all["runs"].as_array().unwrap().clone();
        runs.iter().for_each(check_run);
        // What the machine adds only ever adds.
        let alone = args.ends_with(&["--workers", "1"]);
        assert!(!alone || runs.iter().all(|r| number(r, "predicted_ms") > number(r, "drawn_ms")), "{runs:?}");
        runs.iter().map(|run| number(run, "drawn_ms")).collect::<Vec<_>>()
    };
    // As drawn: blocking, then non-blocking, of synchronized workers: registering and being written take 1 ms each in turn, a job 2 ms,
    // and a last result half a millisecond.
    let wait = predicted(&["--transfer", "wait", "--workers", "1"]);
    assert_eq!(wait[..2], [2.0 * 3.0 + 0.5; 2]);
    let longer =
        predicted(&["--transfer", "wait", "--workers", "1", "--job", "5ms", "--message", "1ms", "--parts", "2"]);
    assert_eq!(longer[..2], [2.0 * 7.0 + 1.0; 2]);
    let queue =
        predicted(&["--transfer", "cpu", "--supply", "queue", "--compute", "spin", "--budget", "2", "--workers", "2"]);
    assert_eq!(queue.len(), 4);
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (directory, missing) = (path(""), path("missing/file"));
    File::create(path("file")).unwrap();
    let under_a_file = path("file/study.json");
    let cases: [(&[&str], &str); 20] = [
        (&["--json", &missing], &missing),
        (&["--svg", &missing], &missing),
        (&["--html", &directory], &directory),
        (&["--perfetto", &under_a_file], &under_a_file),
        (&["--sweep", &missing], &missing),
        (&["--workers", "0"], "--workers"),
        (&["--workers", "65"], "--workers"),
        (&["--workers", "x"], "--workers"),
        (&["--rounds", "1"], "--rounds"),
        (&["--message=-1ms"], "-1ms"),
        (&["--message", "0"], "--message"),
        (&["--message", "50us"], "too short"),
        (&["--message", "2s"], "too long"),
        (&["--job", "2s"], "too long"),
        (&["--parts", "0"], "--parts"),
        (&["--budget", "0"], "--budget"),
        (&["--repeat", "0"], "--repeat"),
        (&["--transfer", "both"], "--transfer"),
        (&["--supply", "x"], "--supply"),
        (&["upper"], "upper"),
    ];
    for (args, why) in cases {
        let output = run(study(args));
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(why), "{args:?}: {stderr}");
        assert!(stderr.lines().all(|line| line.starts_with("seqpool: ")), "{args:?}: {stderr}");
        assert!(!stderr.contains("measuring"), "{args:?}: {stderr}");
        assert_eq!(output.stdout, b"", "{args:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only what was there");
}

/// Ends a run by a signal in the midst of it: no process and no file may be left.
fn end_by(signal: i32, transfer: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (json, svg) = (path("json"), path("svg"));
    let args = ["--rounds", "1000", "--transfer", transfer, "--json", &json, "--svg", &svg];
    let mut child = Guard(study(&args).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("seqpool: measuring")), "it gets there");
    // Into the midst of it, where processes are at work.
    thread::sleep(Duration::from_millis(200));
    let pid = nix::unistd::Pid::from_raw(child.0.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::try_from(signal).unwrap()).unwrap();
    assert_eq!(child.0.wait().unwrap().signal(), Some(signal));
    // Whoever was left would hold the pipe.
    let (send, ended) = mpsc::channel();
    thread::spawn(move || {
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        let _ = send.send(rest);
    });
    let rest = ended.recv_timeout(GONE_LIMIT).unwrap_or_else(|_| panic!("a process is left behind by {transfer}"));
    assert!(!rest.iter().any(|line| line.contains("panic")), "{rest:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no file, not even half of one");
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    end_by(SIGINT, "cpu");
    end_by(SIGINT, "wait");
}

#[test]
fn a_kill_leaves_nothing_behind() {
    end_by(SIGKILL, "cpu");
    end_by(SIGKILL, "wait");
}

#[test]
fn without_a_reader_the_files_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("study.json");
    let mut command = study(&["--rounds", "2", "--repeat", "1", "--json", path.to_str().unwrap()]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer);
    let output = run(command);
    assert_eq!(output.status.signal(), Some(SIGPIPE), "{}", text(&output.stderr));
    serde_json::from_str::<Value>(&std::fs::read_to_string(&path).unwrap()).unwrap();
}

#[test]
fn help_says_what_is_compared() {
    let output = run(study(&["--help"]));
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for word in ["--transfer", "--supply", "--sweep", "--perfetto", "Letters:", "Examples:", "Exit codes:", "128+n"] {
        assert!(help.contains(word), "{word}: {help}");
    }
}
