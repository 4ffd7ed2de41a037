//! `seqpool bench` as a user meets it: every test drives the real program and holds it to `CLI.md`. What the figures are
//! is nobody's business here; that they are there, and fit together, is.

use guard::{GONE_LIMIT, Guard, run};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

#[path = "support/guard.rs"]
mod guard;

const SIGKILL: i32 = 9;
const SIGPIPE: i32 = 13;
const SIGINT: i32 = 2;

const TESTS: [&str; 6] = ["throughput", "latency", "large", "uneven", "spawn", "rss"];
const TRANSPORTS: [&str; 2] = ["blocking", "seqpacket"];
/// The fields of a row, in their order.
const FIELDS: [&str; 13] = [
    "test",
    "transport",
    "workers",
    "payload",
    "value",
    "min",
    "max",
    "unit",
    "limit",
    "limit_name",
    "ratio",
    "better",
    "default",
];

fn bench(args: &[&str]) -> Command {
    guard::seqpool("bench", args)
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn results(path: &Path) -> (String, Value) {
    let text = std::fs::read_to_string(path).unwrap();
    let value = serde_json::from_str(&text).unwrap();
    (text, value)
}

/// The rows of a test, by transport and variant, each seen to be sound.
fn rows<'v>(all: &'v Value, test: &str, transport: &str) -> Vec<&'v Value> {
    all["results"].as_array().unwrap().iter().filter(|r| r["test"] == test && r["transport"] == transport).collect()
}

fn number(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or_else(|| panic!("{field} of {row}"))
}

fn check_row(row: &Value) {
    let [value, min, max, limit, ratio] = ["value", "min", "max", "limit", "ratio"].map(|field| number(row, field));
    assert!(0.0 < min && min <= value && value <= max, "{row}");
    assert!(0.0 < limit && number(row, "limit_min") <= limit && limit <= number(row, "limit_max"), "{row}");
    assert!((ratio - value / limit).abs() <= 1e-9 * ratio, "{row}");
    assert_eq!((&row["workers"], &row["default"]), (&2.into(), &(row["transport"] == "seqpacket").into()), "{row}");
    assert!(!row["limit_name"].as_str().unwrap().is_empty(), "{row}");
    let (payload, unit, better) = match row["test"].as_str().unwrap() {
        "throughput" => (64, "jobs/s", "higher"),
        "latency" => (64, "µs", "lower"),
        "large" => (1 << 20, "MiB/s", "higher"),
        "uneven" => (5, "makespan/ideal", "lower"),
        "spawn" => (64, "ms", "lower"),
        "rss" => (64, "MiB", "lower"),
        other => panic!("a test called {other}"),
    };
    assert_eq!((&row["payload"], &row["unit"], &row["better"]), (&payload.into(), &unit.into(), &better.into()));
}

#[test]
fn a_quick_run_reports_every_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bench.json");
    let output = run(bench(&["--quick", "--repeat", "1", "--json", path.to_str().unwrap()]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).lines().all(|line| line.starts_with("seqpool: measuring ")), "{}", stderr(&output));

    let (text, all) = results(&path);
    for row in all["results"].as_array().unwrap() {
        check_row(row);
    }
    let mut tests: Vec<&str> = all["results"].as_array().unwrap().iter().map(|r| r["test"].as_str().unwrap()).collect();
    tests.dedup();
    assert_eq!(tests, TESTS);
    for row in text.split("{\"test\":").skip(1) {
        let at: Vec<usize> = FIELDS[1..].iter().map(|f| row.find(&format!("\"{f}\":")).expect(f)).collect();
        assert!(at.is_sorted(), "{row}");
    }
    let two_cpus = all["machine"]["usable"].as_u64().unwrap() >= 2;
    for transport in TRANSPORTS {
        for test in TESTS {
            let variants: Vec<_> =
                rows(&all, test, transport).iter().map(|r| r.get("variant").and_then(Value::as_str)).collect();
            let expected = match test {
                "throughput" => vec![None, Some("one-message-a-call")],
                "latency" if two_cpus => vec![None, Some("both-sleep"), Some("both-sleep-apart")],
                "latency" => vec![None, Some("both-sleep")],
                _ => vec![None],
            };
            assert_eq!(variants, expected, "{test}, {transport}");
        }
        for row in rows(&all, "latency", transport) {
            assert!(number(row, "p99") >= number(row, "value"), "{row}");
        }
        let uneven = rows(&all, "uneven", transport)[0];
        assert_eq!(uneven["limit"], 1.0);
        // Not a matter of speed: no order of jobs beats half the work, and no sleep ends early.
        assert!(number(uneven, "inflation") >= 1.0 && number(uneven, "nominal") >= 1.0, "{uneven}");
        let rss = rows(&all, "rss", transport)[0];
        assert_eq!(number(rss, "limit"), number(rss, "bare_mib") + number(rss, "rings_mib"), "{rss}");
        assert!(number(rss, "rings_mib") > 0.0 && number(rss, "value") > number(rss, "bare_mib"), "{rss}");
    }
    let machine = &all["machine"];
    assert_eq!((&machine["seqpool"], &machine["pinned"]), (&env!("CARGO_PKG_VERSION").into(), &Value::Null));
    assert!(number(machine, "cores") >= 1.0 && number(machine, "memory_mib") > 0.0, "{machine}");
    assert!(!machine["kernel"].as_str().unwrap().is_empty(), "{machine}");

    let table = String::from_utf8(output.stdout).unwrap();
    for test in TESTS {
        let shown = table.lines().filter(|line| line.starts_with(test)).count();
        assert_eq!(shown, TRANSPORTS.iter().map(|t| rows(&all, test, t).len()).sum::<usize>(), "{table}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the file");
}

#[test]
fn on_one_cpu_and_without_a_reader_the_file_is_whole() {
    let allowed = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let cpu: String = list.chars().take_while(char::is_ascii_digit).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bench.json");
    std::fs::write(&path, "old").unwrap();
    let mut command = bench(&["--quick", "--repeat", "1", "--pin", &cpu, "--json", path.to_str().unwrap()]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer);
    let output = run(command);
    assert_eq!(output.status.signal(), Some(SIGPIPE), "{:?} {}", output.status, stderr(&output));
    assert!(!stderr(&output).contains("panic"), "{}", stderr(&output));
    let (_, all) = results(&path);
    let machine = &all["machine"];
    assert_eq!((&machine["pinned"][0], &machine["usable"]), (&cpu.parse::<u64>().unwrap().into(), &1.into()));
    assert_eq!(rows(&all, "latency", "seqpacket").len(), 2, "two sides on two CPUs cannot be measured on one");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the file");
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (directory, missing) = (path(""), path("missing/bench.json"));
    File::create(path("file")).unwrap();
    let under_a_file = path("file/bench.json");
    let cases: [(&[&str], &str); 12] = [
        (&["--json", &missing], &missing),
        (&["--json", &directory], &directory),
        (&["--json", &under_a_file], &under_a_file),
        (&["--json", ""], "--json"),
        (&["--repeat", "0"], "--repeat"),
        (&["--repeat", "x"], "--repeat"),
        (&["--pin", ""], "--pin"),
        (&["--pin", "x"], "--pin"),
        (&["--pin", "1-0"], "--pin"),
        (&["--pin", "1023"], "CPU 1023 is not there"),
        (&["--pin", "0,65000"], "65000 is not there"),
        (&["upper"], "upper"),
    ];
    for (args, why) in cases {
        let output = run(bench(args));
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(why), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).lines().all(|line| line.starts_with("seqpool: ")), "{args:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("measuring"), "{args:?}: {}", stderr(&output));
        assert_eq!(output.stdout, b"", "{args:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only what was there");
}

/// Ends a run by a signal as soon as it measures `test` on `transport`: no process and no file may be left.
fn end_during(test: &str, transport: &str, signal: i32) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bench.json");
    let mut child = Guard(bench(&["--quick", "--json", path.to_str().unwrap()]).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
    let begins = format!("seqpool: measuring {test}, {transport}");
    assert!(lines.any(|line| line.unwrap() == begins), "the run gets to {test}");
    // Into the midst of it, where processes are at work.
    thread::sleep(Duration::from_millis(30));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.0.id() as i32),
        nix::sys::signal::Signal::try_from(signal).unwrap(),
    )
    .unwrap();
    assert_eq!(child.0.wait().unwrap().signal(), Some(signal));
    // Whoever was left would hold the pipe.
    let (send, ended) = mpsc::channel();
    thread::spawn(move || {
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        let _ = send.send(rest);
    });
    let rest = ended.recv_timeout(GONE_LIMIT).unwrap_or_else(|_| panic!("a process is left behind by {test}"));
    assert!(!rest.iter().any(|line| line.contains("panic")), "{rest:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no file, not even half of one");
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    // The first throughput begins with limits, whose peers work then; the second begins with its pool.
    end_during("throughput", "blocking", SIGINT);
    end_during("throughput", "seqpacket", SIGINT);
}

#[test]
fn a_kill_leaves_nothing_behind() {
    end_during("throughput", "blocking", SIGKILL);
    end_during("throughput", "seqpacket", SIGKILL);
    end_during("rss", "seqpacket", SIGKILL);
}

#[test]
fn help_says_what_is_measured() {
    let output = run(bench(&["--help"]));
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    for word in TESTS.iter().chain(&["--quick", "--repeat", "--pin", "--json", "Examples:", "Exit codes:"]) {
        assert!(help.contains(word), "{word}: {help}");
    }
}
