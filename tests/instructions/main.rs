//! How many instructions the hot paths take, counted by callgrind and compared with `benches/instructions.json`.
//!
//! Instructions, unlike times, hardly depend on what else the machine does: what this finds is a change of the program (or
//! of the compiler, or of the C library's `memcpy`). The record is updated by
//!
//! ```text
//! SEQPOOL_RECORD=1 cargo test --release --features external-tools --test instructions
//! ```
//!
//! What is measured stands in `drivers`: this program runs itself under valgrind as one driver after the other. A pool
//! works there, too, though its clock has to be slowed down.

#[path = "../support/mod.rs"]
mod support;

mod drivers;
mod record;

use drivers::Driver;
use record::{Path, Record};
use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.json");
const UPDATE: &str = "SEQPOOL_RECORD=1 cargo test --release --features external-tools --test instructions";
/// How long a driver's processes may be in ending after the driver itself.
const END_LIMIT: Duration = Duration::from_secs(20);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, count] = arguments.as_slice()
        && flag == drivers::FLAG
    {
        return drivers::run(name, count.parse().expect("a count"));
    }
    support::main(&support::cases![
        the_hot_paths_take_as_many_instructions_as_recorded => 400,
        the_comparison_bites,
        a_record_survives_the_trip_to_its_file,
    ]);
}

fn the_hot_paths_take_as_many_instructions_as_recorded() {
    if cfg!(debug_assertions) {
        panic!("the record is of an optimised build: run with --release");
    }
    let measured = measure_all();
    for (name, instructions) in &measured {
        println!("{name}: {instructions:.2} instructions");
    }
    if std::env::var_os("SEQPOOL_RECORD").is_some() {
        let record = Record::new(rustc_version(), &measured);
        return std::fs::write(RECORD, record.to_json()).expect("the record");
    }
    let text = std::fs::read_to_string(RECORD).unwrap_or_else(|e| panic!("{RECORD}: {e}; make it: {UPDATE}"));
    let record = Record::from_json(&text).unwrap_or_else(|e| panic!("{RECORD}: {e}; make it anew: {UPDATE}"));
    let problems = record.compare(&measured);
    if !problems.is_empty() {
        let (then, now) = (&record.rustc, rustc_version());
        let compiler =
            if *then == now { String::new() } else { format!("\nThe record was made with {then}; this is {now}.") };
        panic!(
            "{}{compiler}\nWhere the change is meant, update benches/instructions.json:\n{UPDATE}",
            problems.join("\n")
        );
    }
}

fn rustc_version() -> String {
    let output = Command::new("rustc").arg("--version").output().expect("rustc");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

// ---- counting ----

/// Instructions for each unit of every path.
fn measure_all() -> BTreeMap<String, f64> {
    let mut measured = BTreeMap::new();
    for driver in drivers::ALL {
        match *driver {
            Driver::Phase { name, phase, units, .. } => {
                let host = count(name, units, Some(phase)).host();
                measured.insert(name.to_owned(), host as f64 / f64::from(units));
            }
            // Start and end cancel out.
            Driver::Whole { name, fewer, more, .. } => {
                let (few, many) = (count(name, fewer, None), count(name, more, None));
                let units = f64::from(more - fewer);
                measured.insert(format!("host.{name}"), (many.host() - few.host()) as f64 / units);
                measured.insert(format!("worker.{name}"), (many.worker() - few.worker()) as f64 / units);
            }
        }
    }
    measured
}

/// What callgrind wrote about the processes of one driver.
struct Profile {
    folder: tempfile::TempDir,
    /// By role.
    pids: BTreeMap<String, String>,
}

impl Profile {
    fn host(&self) -> u64 {
        self.total("host")
    }

    fn worker(&self) -> u64 {
        self.total("worker")
    }

    /// The sum of one process's file.
    fn total(&self, role: &str) -> u64 {
        let path = self.folder.path().join(format!("callgrind.{}", self.pids[role]));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let line = text.lines().find_map(|line| line.strip_prefix("summary: "));
        let total = line.expect("a process that ended by itself").trim().parse().expect("a number");
        assert!(total > 0, "nothing was counted in the {role}; is the phase still a function of its own?");
        total
    }
}

/// Runs a driver under callgrind; `phase` is the only function that counts, with all that it calls.
fn count(name: &str, units: u32, phase: Option<&str>) -> Profile {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--vgdb=no", "--tool=callgrind"]);
    command.arg(format!("--callgrind-out-file={}", folder.path().join("callgrind.%p").display()));
    // Both as the symbol stands in the program and as valgrind prints it.
    command.args(phase.map(|phase| format!("--toggle-collect=*{phase}*")));
    command.arg(std::env::current_exe().expect("current_exe")).args([drivers::FLAG, name, &units.to_string()]);
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("valgrind, which .ci/run installs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "driver {name} {units}: {}\n{stdout}{stderr}", output.status);
    let pids: BTreeMap<_, _> = stdout.split_whitespace().filter_map(|word| word.split_once('=')).collect();
    println!("{:?} {name}: {pids:?}", start.elapsed());
    // The nursery ends when it sees that the host has; what it writes then is not needed.
    if let Some(nursery) = pids.get("nursery") {
        let end = Instant::now() + END_LIMIT;
        while FilePath::new("/proc").join(nursery).exists() {
            assert!(Instant::now() < end, "the nursery outlives its host");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let pids = pids.into_iter().map(|(role, pid)| (role.to_owned(), pid.to_owned())).collect();
    Profile { folder, pids }
}

// ---- the comparison ----

fn the_comparison_bites() {
    let path = |instructions, tolerance| Path { instructions, tolerance };
    let paths = [("a.b".to_owned(), path(100.0, 0.05)), ("c.d".to_owned(), path(10.0, 0.2))].into();
    let record = Record { rustc: "rustc 1".to_owned(), paths };
    let compare = |a: f64, c: f64| record.compare(&[("a.b".to_owned(), a), ("c.d".to_owned(), c)].into());
    assert_eq!(compare(100.0, 10.0), Vec::<String>::new());
    assert_eq!(compare(104.9, 11.9), Vec::<String>::new());
    assert_eq!(compare(95.1, 8.1), Vec::<String>::new());
    assert_eq!(
        compare(105.1, 10.0),
        ["a.b: recorded 100.00 instructions, measured 105.10 (+5.1 %, the tolerance is ±5 %)"]
    );
    assert_eq!(compare(94.9, 7.0).len(), 2, "fewer instructions are news as well: else they creep back unseen");
    let missing = record.compare(&[("a.b".to_owned(), 100.0)].into());
    assert_eq!(missing, ["c.d: recorded 10.00 instructions, not measured any more"]);
    let added = record.compare(&[("a.b".to_owned(), 100.0), ("c.d".to_owned(), 10.0), ("e".to_owned(), 1.0)].into());
    assert_eq!(added, ["e: measured 1.00 instructions, not recorded"]);
}

fn a_record_survives_the_trip_to_its_file() {
    let measured: BTreeMap<String, f64> = [("host.bulk".to_owned(), 123.456), ("frame.encode".to_owned(), 7.0)].into();
    let record = Record::new("rustc 1".to_owned(), &measured);
    let read = Record::from_json(&record.to_json()).expect("what was written can be read");
    assert_eq!(read, record);
    assert_eq!(read.compare(&measured), Vec::<String>::new());
    assert!(Record::from_json("{\"rustc\": \"rustc 1\", \"paths\": {\"a\": {\"instructions\": 1}}}").is_err());
}
