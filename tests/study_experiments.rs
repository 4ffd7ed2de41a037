//! The short experiments of `seqpool study` as a user meets them: every test drives the real program. What the figures
//! are is nobody's business here; that they are there, and fit together, is.

use guard::{GONE_LIMIT, Guard, run};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

#[path = "support/guard.rs"]
mod guard;

const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGPIPE: i32 = 13;

/// Held while `fork` is measured: it looks for half of the memory that is available, by itself.
static GROWN: Mutex<()> = Mutex::new(());

const EXPERIMENTS: [&str; 4] = ["waits", "packing", "fork", "oversubscribed"];

fn study(args: &[&str]) -> Command {
    guard::seqpool("study", args)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn number(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or_else(|| panic!("{field}: {row}"))
}

/// Makes an experiment twice over: what it printed, and the rows of its file.
fn measured(experiment: &str) -> (String, Vec<Value>, Value) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("found.json");
    let output = run(study(&[experiment, "--repeat", "2", "--json", path.to_str().unwrap()]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).starts_with("seqpool: measuring "), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr).lines().count(), 1, "no bar where there is no terminal");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file");
    let json = std::fs::read_to_string(&path).unwrap();
    let at = ["{\"machine\":{", "\"experiment\":", "\"rows\":["].map(|part| json.find(part).expect(part));
    assert!(at.is_sorted(), "{json}");
    let all: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(all["experiment"], experiment);
    assert!(number(&all["machine"], "cores") >= 1.0);
    let rows = all["rows"].as_array().unwrap().clone();
    for row in &rows {
        let (min, median, max) = (number(row, "min"), number(row, "median"), number(row, "max"));
        assert!(0.0 < min && min <= median && median <= max && max.is_finite(), "{row}");
        // The median of two is the upper one.
        assert_eq!(median, max, "{row}");
    }
    let printed = text(&output.stdout).to_owned();
    // The machine, what is measured, a head and a line for each row, and what follows.
    let machine = &all["machine"];
    assert!(printed.lines().next().unwrap().contains(machine["kernel"].as_str().unwrap()), "{printed}");
    let head = printed.lines().position(|line| line.ends_with("unit")).expect("a head");
    let table: Vec<&str> = printed.lines().skip(head + 1).take_while(|line| !line.is_empty()).collect();
    assert_eq!(table.len(), rows.len(), "{printed}");
    for (line, row) in table.iter().zip(&rows) {
        assert!(line.ends_with(row["unit"].as_str().unwrap()) && line.contains(" … "), "{line}");
    }
    let (_, follows) = printed.split_once("\nWhat follows\n").expect("what follows");
    assert!(!follows.is_empty() && follows.lines().all(|line| line.starts_with("- ")), "{printed}");
    (printed, rows, all)
}

/// CPUs that this process, and what it starts, may run on.
fn cpus() -> usize {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    (0..nix::sched::CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).count()
}

#[test]
fn waits() {
    let (_, rows, _) = measured("waits");
    let two = usize::from(cpus() >= 2);
    assert_eq!(rows.len(), 2 * (6 + two), "{rows:?}");
    for pause in [0, 200] {
        let of = |waiting: &str, spin: u64| {
            let mut found =
                rows.iter().filter(|r| r["waiting"] == waiting && r["spin_us"] == spin && r["pause_us"] == pause);
            let row = found.next().unwrap_or_else(|| panic!("{waiting}, {spin}, {pause}: {rows:?}"));
            assert!(found.next().is_none(), "{row}");
            row
        };
        let mut all = vec![of("sleep", 0), of("sleep, on one CPU", 0)];
        all.extend((two > 0).then(|| of("sleep, on two CPUs", 0)));
        for spin in [100, 1000] {
            all.extend([of("spin", spin), of("spin with sched_yield", spin)]);
        }
        // Two system calls on each side take time, even where everything is to hand.
        assert!(all.iter().all(|row| row["unit"] == "µs" && number(row, "min") > 0.2), "{all:?}");
    }
}

#[test]
fn packing() {
    let (printed, rows, _) = measured("packing");
    let of = |unit: &str| rows.iter().filter(|row| row["unit"] == unit).collect::<Vec<_>>();
    let (rates, calls) = (of("jobs/s"), of("system calls/job"));
    assert_eq!(rates.len() + calls.len(), rows.len());
    let frames: Vec<u64> = rates.iter().map(|row| row["frames"].as_u64().unwrap()).collect();
    assert!([1, 64, 256, 720, 1024].starts_with(&frames) && frames.len() >= 3, "{frames:?}");
    assert_eq!(frames.len() == 5, !printed.contains("left out"), "{printed}");
    assert_eq!(frames, calls.iter().map(|row| row["frames"].as_u64().unwrap()).collect::<Vec<_>>());
    for row in calls {
        let frames = number(row, "frames");
        assert_eq!(number(row, "packet_size"), 88.0 * frames);
        // A packet is sent and received; beside that there is at most a wait and a look in vain for each.
        let a_packet = [number(row, "min"), number(row, "max")].map(|calls| calls * frames);
        assert!(1.999 < a_packet[0] && a_packet[1] < 4.001, "{row}");
    }
}

#[test]
fn fork() {
    let _alone = GROWN.lock();
    let (printed, rows, _) = measured("fork");
    let sizes: Vec<u64> = rows.iter().map(|row| row["resident_mib"].as_u64().unwrap()).collect();
    let clamped = printed.contains("that are available");
    assert!(sizes[0] == 0 && sizes.is_sorted_by(|a, b| a < b) && sizes.len() <= 4, "{sizes:?}");
    assert_eq!(!clamped, sizes == [0, 128, 512, 2048], "{printed}");
    assert!(rows.iter().all(|row| row["unit"] == "ms"), "{rows:?}");
}

#[test]
fn oversubscribed() {
    let (printed, rows, all) = measured("oversubscribed");
    let ways: Vec<&str> = match cpus() {
        1 => vec!["sleep", "spin with sched_yield"],
        _ => vec!["sleep", "sleep, host and workers on two CPUs", "spin with sched_yield"],
    };
    let expected: Vec<(u64, &str)> =
        [1, 2, 4].iter().flat_map(|&workers| ways.iter().map(move |way| (workers, *way))).collect();
    let found: Vec<(u64, &str)> =
        rows.iter().map(|row| (row["workers"].as_u64().unwrap(), row["waiting"].as_str().unwrap())).collect();
    assert_eq!(found, expected);
    for row in &rows {
        assert_eq!(row["spin_us"], if row["waiting"] == "spin with sched_yield" { 50 } else { 0 }, "{row}");
        assert_eq!(row["unit"], "µs");
    }
    let enough = number(&all["machine"], "usable") > 4.0;
    assert_eq!(printed.contains("Nothing follows for more processes"), enough, "{printed}");
}

#[test]
fn on_one_cpu_nothing_is_put_on_two() {
    let allowed = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let cpu: usize = list.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap();
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).unwrap();
    for experiment in ["waits", "oversubscribed"] {
        let set = set;
        // A thread of its own: what it forks inherits its CPUs.
        let spawn = move || {
            nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).unwrap();
            run(study(&[experiment, "--repeat", "1"]))
        };
        let output = thread::spawn(spawn).join().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let printed = text(&output.stdout);
        assert!(printed.contains("\nsleeping on two CPUs is left out: this process may use one only\n"), "{printed}");
        assert_eq!(printed.matches("two CPUs").count(), 1, "{printed}");
    }
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (directory, missing) = (path(""), path("missing/file"));
    let mut cases: Vec<(Vec<&str>, &str)> = vec![
        (vec!["nonsense"], "unrecognized subcommand 'nonsense'"),
        (vec!["--workers", "2", "waits"], "the subcommand 'waits' cannot be used with '--workers <N>'"),
        (vec!["--repeat", "2", "fork"], "the subcommand 'fork' cannot be used with '--repeat <N>'"),
        (vec!["waits", "fork"], "unexpected argument 'fork'"),
    ];
    for experiment in EXPERIMENTS {
        cases.push((vec![experiment, "--workers", "2"], "unexpected argument '--workers'"));
        cases.push((vec![experiment, "--repeat", "0"], "--repeat"));
        cases.push((vec![experiment, "--repeat", "1001"], "--repeat"));
        cases.push((vec![experiment, "--json", &missing], &missing));
        cases.push((vec![experiment, "--json", &directory], &directory));
    }
    for (args, why) in cases {
        let output = run(study(&args));
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(why), "{args:?}: {stderr}");
        assert!(stderr.lines().all(|line| line.starts_with("seqpool: ")), "{args:?}: {stderr}");
        assert!(!stderr.contains("measuring"), "{args:?}: {stderr}");
        assert_eq!(output.stdout, b"", "{args:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Ends an experiment by a signal in the midst of it: no process and no file may be left.
fn end_by(signal: i32, experiment: &str) {
    let _alone = (experiment == "fork").then(|| GROWN.lock());
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("found.json");
    let args = [experiment, "--repeat", "1000", "--json", json.to_str().unwrap()];
    let mut child = Guard(study(&args).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("seqpool: measuring")), "it gets there");
    // Into the midst of it, where processes are at work.
    thread::sleep(Duration::from_millis(250));
    let pid = nix::unistd::Pid::from_raw(child.0.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::try_from(signal).unwrap()).unwrap();
    assert_eq!(child.0.wait().unwrap().signal(), Some(signal));
    // Whoever was left would hold the pipe.
    let (send, ended) = mpsc::channel();
    thread::spawn(move || {
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        let _ = send.send(rest);
    });
    let rest = ended.recv_timeout(GONE_LIMIT).unwrap_or_else(|_| panic!("a process is left behind by {experiment}"));
    assert!(!rest.iter().any(|line| line.contains("panic")), "{rest:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no file, not even half of one");
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    EXPERIMENTS.iter().for_each(|experiment| end_by(SIGINT, experiment));
}

#[test]
fn a_kill_leaves_nothing_behind() {
    EXPERIMENTS.iter().for_each(|experiment| end_by(SIGKILL, experiment));
}

#[test]
fn without_a_reader_the_file_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("found.json");
    let mut command = study(&["packing", "--repeat", "1", "--json", path.to_str().unwrap()]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer);
    let output = run(command);
    assert_eq!(output.status.signal(), Some(SIGPIPE), "{}", text(&output.stderr));
    serde_json::from_str::<Value>(&std::fs::read_to_string(&path).unwrap()).unwrap();
}

#[test]
fn a_full_disk_is_reported() {
    let mut command = study(&["oversubscribed", "--repeat", "1"]);
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    let output = run(command);
    assert_eq!(output.status.code(), Some(2));
    let stderr = text(&output.stderr);
    assert!(stderr.ends_with("seqpool: standard output: No space left on device\n"), "{stderr}");
}

#[test]
fn help_names_them() {
    let output = run(study(&["--help"]));
    let help = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    assert!(EXPERIMENTS.iter().all(|experiment| help.contains(&format!("\n  {experiment} "))), "{help}");
    for experiment in EXPERIMENTS {
        let output = run(study(&[experiment, "--help"]));
        assert_eq!(output.status.code(), Some(0));
        let help = text(&output.stdout);
        assert!(help.contains("--repeat") && help.contains("--json") && !help.contains("--workers"), "{help}");
    }
}
