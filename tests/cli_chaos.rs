//! `seqpool run` with retries, quarantine and chaos, and `seqpool replay`, as a user meets them.

use seqpool::{Chaos, Fate};
use std::fs;
use std::path::Path;

mod support;

fn main() {
    support::main(&support::cases![
        retries_are_counted_and_end,
        a_quarantined_job_can_be_replayed,
        every_end_is_replayed_as_it_was,
        files_that_are_no_capsules_are_named,
        a_full_quarantine_is_said_once,
        chaos_names_exactly_those_drawn => 120,
        chaos_under_order_and_retries => 120,
        receipts_stand_in_a_joblog_of_json,
        nonsense_is_refused,
    ]);
}

/// An empty directory of the case's own; the harness sees to it that it is gone in the end.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// Runs the command, which must end with this exit code.
fn run(arguments: &[&str], input: impl AsRef<[u8]>, code: i32) -> support::Output {
    let output = support::run_cli(arguments, input);
    output.expect_code(code);
    output
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ASCII")
}

fn retries_are_counted_and_end() {
    let folder = folder();
    let stats = folder.path().join("stats.json");
    let input = b"ok\nerror no\nsignal 9\npanic\nok\n";
    let output = run(&["run", "-j2", "--retries", "2", "--stats", text(&stats), "fault"], input, 5);
    assert_eq!(output.stdout, b"ok\nok\n");
    let mut lines: Vec<_> = output.stderr.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "seqpool: 1 job is quarantined: --quarantine DIR keeps what is needed to run them again",
            "seqpool: job 2: failed: no",
            "seqpool: job 3: crashed: signal 9 (SIGKILL)",
            "seqpool: job 4: failed: panicked: the fault handler was told to panic",
        ]
    );
    let stats: serde_json::Value = serde_json::from_slice(&fs::read(&stats).unwrap()).unwrap();
    for (name, count) in [("done", 2), ("failed", 2), ("crashed", 1), ("retries", 6), ("quarantined", 1)] {
        assert_eq!(stats[name], count, "{name}: {stats}");
    }
    // Without retries nothing is quarantined unless it is asked for.
    run(&["run", "-j2", "fault"], b"ok\nsignal 9\n", 1);
}

fn a_quarantined_job_can_be_replayed() {
    let folder = folder();
    let to = folder.path().join("new/quarantine");
    let input = b"ok\nsignal 11\nok\nexit 3\n";
    let output = run(&["run", "-j2", "--quarantine", text(&to), "fault"], input, 5);
    assert!(output.stderr.contains(&format!("seqpool: 2 jobs are quarantined in {}", text(&to))), "{}", output.stderr);
    let mut names: Vec<_> = fs::read_dir(&to).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["job-2.capsule", "job-4.capsule"]);
    let capsule = fs::read(to.join("job-2.capsule")).unwrap();
    let end = capsule.iter().position(|b| *b == b'\n').unwrap();
    let head: serde_json::Value = serde_json::from_slice(&capsule[..end]).unwrap();
    assert_eq!((&head["job"], &head["handler"], &head["attempts"]), (&2.into(), &"fault".into(), &1.into()), "{head}");
    assert_eq!((&head["signal"], &head["body_size"]), (&11.into(), &9.into()), "{head}");
    assert!(head["environment"].as_array().unwrap().iter().any(|name| name == "PATH"), "{head}");
    assert_eq!(&capsule[end + 1..], b"signal 11");
    let replayed = support::run_cli(&["replay", text(&to.join("job-2.capsule"))], b"");
    replayed.expect_signal(11);
    assert_eq!(replayed.stderr, "seqpool: replaying job 2 of 'fault', started once, crashed: signal 11 (SIGSEGV)\n");
    run(&["replay", text(&to.join("job-4.capsule"))], b"", 3);
}

/// What is done or fails when it is run again says so.
fn every_end_is_replayed_as_it_was() {
    let folder = folder();
    let quarantine = text(folder.path());
    let chaos = ["run", "-j2", "--quarantine", quarantine, "--chaos", "kill=100%"];
    let input = b"ok\nerror no\npanic\n\xff\n";
    run(&[&chaos[..], &["fault"]].concat(), input, 5);
    let replay = |job: u32, code| run(&["replay", text(&folder.path().join(format!("job-{job}.capsule")))], b"", code);
    assert_eq!(replay(1, 0).stdout, b"ok\n");
    let failed = replay(2, 1);
    assert!(failed.stdout.is_empty() && failed.stderr.ends_with("seqpool: job 2: failed: no\n"), "{}", failed.stderr);
    assert!(replay(3, 1).stderr.contains("seqpool: job 3: failed: panicked: "));
    assert!(replay(4, 1).stderr.contains("seqpool: job 4: failed: "));
    run(&[&chaos[..], &["upper"]].concat(), b"a\xff\n", 5);
    assert_eq!(replay(1, 0).stdout, b"A\xff\n");
}

fn files_that_are_no_capsules_are_named() {
    let folder = folder();
    run(&["run", "--quarantine", text(folder.path()), "fault"], b"abort\n", 5);
    let good = fs::read(folder.path().join("job-1.capsule")).unwrap();
    let whole = String::from_utf8(good.clone()).unwrap();
    let wrong = [
        ("empty", Vec::new(), "not a capsule"),
        ("text", b"hello\n".to_vec(), "not a capsule"),
        ("short", good[..good.len() - 1].to_vec(), "4 bytes follow the first line, which speaks of 5"),
        ("long", [&good[..], b"x"].concat(), "6 bytes follow"),
        ("later", whole.replace("\"seqpool_capsule\":1", "\"seqpool_capsule\":2").into_bytes(), "format 2"),
        ("handler", whole.replace("\"fault\"", "\"faults\"").into_bytes(), "unknown handler 'faults'"),
        (
            "sizes",
            whole.replace("\"header_size\":0", "\"header_size\":18446744073709551615").into_bytes(),
            "bytes follow",
        ),
    ];
    for (name, bytes, word) in wrong {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let output = run(&["replay", text(&path)], b"", 2);
        assert!(output.stderr.contains(word) && output.stderr.contains(name), "{name}: {}", output.stderr);
    }
    let output = run(&["replay", text(&folder.path().join("none"))], b"", 2);
    assert!(output.stderr.contains("No such file"), "{}", output.stderr);
    run(&["replay"], b"", 2);
}

/// A directory that goes away in the midst of a run costs the capsules, not the jobs.
fn a_full_quarantine_is_said_once() {
    let folder = folder();
    let to = folder.path().join("gone");
    let script = format!("sleep 0.3; rmdir {}; printf 'abort\\nabort\\nabort\\nok\\n'", text(&to));
    let program = support::seqpool_bin();
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", &format!("({script}) | '{}' run -j2 --quarantine {} fault", text(program), text(&to))])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(5), &b"ok\n"[..]), "{stderr}");
    assert_eq!(stderr.matches("capsules are missing").count(), 1, "{stderr}");
    assert_eq!(stderr.matches("crashed: signal 6").count(), 3, "{stderr}");
    // One that cannot be made is known before any job runs.
    let output = run(&["run", "--quarantine", "/proc/none", "fault"], b"ok\n", 2);
    assert!(output.stderr.contains("--quarantine: /proc/none: ") && output.stdout.is_empty(), "{}", output.stderr);
}

fn numbers(from: u64, to: u64) -> Vec<u8> {
    (from..=to).flat_map(|n| format!("{n}\n").into_bytes()).collect()
}

fn chaos_names_exactly_those_drawn() {
    let jobs = 30_000;
    for seed in [0, 7] {
        let seed_text = seed.to_string();
        let share = "kill=0.5%,stall=0.03%,exit=0.2%";
        let arguments = ["run", "-j2", "--timeout", "100ms", "--chaos", share, "--seed", &seed_text, "upper"];
        let output = run(&arguments, numbers(1, jobs), 1);
        let chaos = Chaos::new(seed).kill(0.005).stall(0.0003).exit(0.002);
        let drawn: Vec<_> = (1..=jobs).filter_map(|n| Some((n, chaos.draw(n, 0)?))).collect();
        let mut expected: Vec<_> = drawn
            .iter()
            .map(|(n, fate)| match fate {
                Fate::Kill => format!("seqpool: job {n}: crashed: signal 9 (SIGKILL)"),
                Fate::Stall => format!("seqpool: job {n}: timed out after 100ms"),
                Fate::Exit => format!("seqpool: job {n}: crashed: exit code 74"),
            })
            .collect();
        let mut found: Vec<_> = output.stderr.lines().map(str::to_owned).collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected, "seed {seed}");
        let mut results: Vec<u64> =
            String::from_utf8(output.stdout).unwrap().lines().map(|l| l.parse().unwrap()).collect();
        results.sort_unstable();
        let survivors: Vec<_> = (1..=jobs).filter(|n| chaos.draw(*n, 0).is_none()).collect();
        assert!(results == survivors, "seed {seed}: {} results, {} survivors", results.len(), survivors.len());
    }
}

fn chaos_under_order_and_retries() {
    let input = numbers(1, 10_000);
    let arguments = ["run", "-j2", "-k", "--retries", "30", "--chaos", "kill=3%", "--seed", "5", "upper"];
    let output = run(&arguments, &input, 0);
    assert!(output.stdout == input && output.stderr.is_empty(), "{}", output.stderr);
}

fn receipts_stand_in_a_joblog_of_json() {
    let folder = folder();
    let (log, stats) = (folder.path().join("log.jsonl"), folder.path().join("stats"));
    let arguments = ["run", "-j1", "--retries", "1", "--joblog", text(&log), "--stats", text(&stats), "fault"];
    run(&arguments, b"sleep 20ms\nerror x\nsignal 9\n", 5);
    let lines: Vec<serde_json::Value> =
        fs::read_to_string(&log).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let line = |seq: u64| lines.iter().find(|l| l["seq"] == seq).unwrap_or_else(|| panic!("job {seq}"));
    assert!(line(1)["jobruntime"].as_f64().unwrap() >= 0.02 && line(1)["voluntary_switches"].as_u64().unwrap() >= 1);
    assert!(line(1)["max_rss_kib"].as_u64().unwrap() > 100 && line(1)["queue_wait"].as_f64().is_some());
    assert_eq!([1, 2, 3].map(|seq| line(seq)["attempts"].as_u64().unwrap()), [1, 2, 2]);
    assert!(line(3)["user"].is_null() && line(2)["user"].as_f64().is_some());
    let stats: serde_json::Value = serde_json::from_slice(&fs::read(&stats).unwrap()).unwrap();
    assert!(stats["run_s"].as_f64().unwrap() >= 0.02, "{stats}");
}

fn nonsense_is_refused() {
    for (arguments, word) in [
        (&["--chaos", "kill=1"][..], "'kill=1' is not a share"),
        (&["--chaos", "maim=1%"], "'maim=1%'"),
        (&["--chaos", "kill=101%"], "from 0% to 100%"),
        (&["--chaos", "kill=60%,exit=60%"], "add up to 120 %"),
        (&["--chaos", "stall=1%"], "give --timeout"),
        (&["--seed", "1"], "--chaos"),
        (&["--retries", "x"], "--retries"),
        (&["--retries", "1001"], "1001"),
    ] {
        let output = run(&[&["run"], arguments, &["upper"]].concat(), b"a\n", 2);
        assert!(output.stderr.contains(word) && output.stdout.is_empty(), "{arguments:?}: {}", output.stderr);
    }
}
