//! The test harness of `tests/support`, tested: every kind of leak and failure is reported as one.
//!
//! The program holds two tables. The good one runs; its cases run this program again with the bad table and read what
//! it reports.

use std::io::Write;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;
use support::{Case, Output};

mod support;

const BAD_TABLE: &str = "SEQPOOL_HARNESS_BAD_TABLE";

fn main() {
    if std::env::var_os(BAD_TABLE).is_some() {
        support::main(&BAD);
    }
    support::main(&support::cases![
        a_clean_case_passes,
        output_is_shown_only_on_failure,
        a_panic_fails,
        death_by_a_signal_fails,
        an_early_exit_fails,
        a_hang_is_killed_with_all_that_it_started,
        an_orphan_fails_and_is_killed,
        a_daemon_fails_and_is_killed,
        an_orphan_that_ends_in_time_passes,
        a_zombie_fails,
        a_thread_fails,
        a_leaked_descriptor_fails,
        a_closed_descriptor_fails,
        a_file_fails,
        a_fork_that_returns_fails,
        cases_are_listed_and_filtered,
        unknown_options_are_errors,
        an_interrupted_harness_leaves_nothing,
        a_killed_harness_takes_its_case_along,
        programs_are_fed_and_read,
        a_program_that_hangs_is_killed,
        a_program_that_leaves_its_output_open_is_named,
        processes_are_described,
    ]);
}

// ---- the bad table ----

const BAD: [Case; 16] = support::cases![
    passes,
    prints_and_passes,
    panics,
    dies,
    exits,
    hangs => 1,
    hangs_for_long,
    orphans,
    daemonizes,
    orphans_briefly,
    zombies,
    threads,
    opens,
    closes,
    writes,
    escapes,
];

fn passes() {}

fn prints_and_passes() {
    println!("to standard output");
    eprintln!("to standard error");
}

fn panics() {
    println!("to standard output");
    assert_eq!(1 + 1, 3, "as it should");
}

fn dies() {
    nix::sys::signal::raise(nix::sys::signal::SIGKILL).unwrap();
}

fn exits() {
    std::process::exit(0);
}

fn hangs() {
    drop(shell("setsid sleep 1001 & sleep 1002").spawn());
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

fn hangs_for_long() {
    hangs();
}

fn orphans() {
    shell("sleep 1003 &").status().unwrap();
}

fn daemonizes() {
    shell("trap '' TERM HUP; setsid sh -c 'sleep 1004 & sleep 1005' >/dev/null 2>&1 &").status().unwrap();
}

fn orphans_briefly() {
    shell("sleep 0.3 &").status().unwrap();
}

fn zombies() {
    let pid = shell("exit 0").spawn().unwrap().id() as i32;
    assert!(support::wait_until(Duration::from_secs(5), || support::proc_state(pid) == Some('Z')));
}

fn threads() {
    std::thread::spawn(|| std::thread::sleep(Duration::from_secs(1000)));
}

fn opens() {
    let _ = std::fs::File::open("/dev/zero").unwrap().into_raw_fd();
}

fn closes() {
    // SAFETY: nothing in this process owns descriptor 0 as a Rust object.
    drop(unsafe { OwnedFd::from_raw_fd(0) });
}

fn writes() {
    std::fs::write(std::env::temp_dir().join("left-over"), "x").unwrap();
}

fn escapes() {
    // SAFETY: this process has one thread, so its child may do anything (signal-safety(7)).
    if let nix::unistd::ForkResult::Parent { child } = unsafe { nix::unistd::fork() }.unwrap() {
        nix::sys::wait::waitpid(child, None).unwrap();
    }
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null());
    command
}

// ---- the good table ----

/// This program with the bad table.
fn bad(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(args).env(BAD_TABLE, "1").env_remove("RUST_BACKTRACE");
    command
}

fn run_bad(args: &[&str]) -> Output {
    support::run(&mut bad(args), "", Duration::from_secs(40))
}

/// Runs one bad case, which must fail and be the only one to; returns what was reported.
#[track_caller]
fn failing(name: &str, reasons: &[&str]) -> Output {
    let output = run_bad(&["--exact", name]);
    output.expect_code(101);
    let text = output.text();
    assert!(text.contains(&format!("\ntest {name} ... FAILED\n")), "{output}");
    assert!(text.contains(&format!("\nfailures:\n    {name}\n\n")), "{output}");
    assert!(
        text.contains(
            "\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 15 filtered out; finished in "
        ),
        "{output}"
    );
    for reason in reasons {
        assert!(text.contains(&format!("{name}: {reason}")), "no reason `{reason}` in:\n{output}");
    }
    output
}

/// The process ids in the lines that say `what`.
fn pids(output: &Output, what: &str) -> Vec<i32> {
    let after = output.text().lines().filter_map(|line| line.split_once(what));
    after.filter_map(|(_, rest)| rest.split_once("pid ")?.1.split(',').next()?.parse().ok()).collect()
}

fn a_clean_case_passes() {
    let output = run_bad(&["--exact", "passes"]);
    output.expect_code(0);
    assert!(output.text().starts_with("\nrunning 1 test\ntest passes ... ok\n\ntest result: ok. 1 passed; 0 failed; "));
}

fn output_is_shown_only_on_failure() {
    let output = run_bad(&["--exact", "prints_and_passes"]);
    assert!(!output.expect_code(0).text().contains("to standard"), "{output}");
    let output = run_bad(&["--exact", "--nocapture", "prints_and_passes"]);
    assert!(output.expect_code(0).text().contains("to standard output\n"), "{output}");
    assert!(output.stderr.contains("to standard error\n"), "{output}");
}

fn a_panic_fails() {
    let output = failing("panics", &["panicked"]);
    assert!(output.text().contains("to standard output\n"), "{output}");
    assert!(output.text().contains("as it should"), "{output}");
}

fn death_by_a_signal_fails() {
    failing("dies", &["its process died by SIGKILL"]);
}

fn an_early_exit_fails() {
    failing("exits", &["its process exited early, with code 0"]);
}

fn a_hang_is_killed_with_all_that_it_started() {
    let output = failing("hangs", &["ran longer than its limit of 1 s and was killed", "was running: pid "]);
    assert!(output.text().contains(": sleep 1001\n") && output.text().contains(": sleep 1002\n"), "{output}");
    let pids = pids(&output, "was running: ");
    assert!(pids.len() >= 3, "{output}");
    assert!(pids.iter().all(|pid| support::proc_state(*pid).is_none()), "{output}");
    assert!(output.elapsed < Duration::from_secs(5), "{output}");
}

fn an_orphan_fails_and_is_killed() {
    let output = failing("orphans", &["left a process behind: pid "]);
    assert!(output.text().contains(": sleep 1003\n"), "{output}");
    assert!(pids(&output, "left a process behind: ").iter().all(|pid| support::proc_state(*pid).is_none()));
}

fn a_daemon_fails_and_is_killed() {
    let output = failing("daemonizes", &["left a process behind: pid "]);
    assert!(output.text().contains(": sleep 1004\n") && output.text().contains(": sleep 1005\n"), "{output}");
    assert!(pids(&output, "left a process behind: ").iter().all(|pid| support::proc_state(*pid).is_none()));
}

fn an_orphan_that_ends_in_time_passes() {
    run_bad(&["--exact", "orphans_briefly"]).expect_code(0);
}

fn a_zombie_fails() {
    let output = failing("zombies", &["left a child unreaped: pid ", "was not clean at its end"]);
    assert!(output.text().contains(", state Z"), "{output}");
}

fn a_thread_fails() {
    failing("threads", &["left 1 threads running"]);
}

fn a_leaked_descriptor_fails() {
    let output = failing("opens", &["leaked descriptor "]);
    assert!(output.text().contains(" -> /dev/zero\n"), "{output}");
}

fn a_closed_descriptor_fails() {
    failing("closes", &["closed descriptor 0 -> /dev/null, which it had not opened"]);
}

fn a_file_fails() {
    failing("writes", &["left a file behind: $TMPDIR/left-over"]);
}

fn a_fork_that_returns_fails() {
    failing("escapes", &["left a file behind: $TMPDIR/process-"]);
}

fn cases_are_listed_and_filtered() {
    let listed = |args: &[&str]| run_bad(args).expect_code(0).text().to_string();
    let names: String = BAD.iter().map(|case| format!("{}: test\n", case.name)).collect();
    assert_eq!(listed(&["--list"]), format!("{names}\n16 tests, 0 benchmarks\n"));
    assert_eq!(listed(&["--list", "--format", "terse"]), names);
    let expected = "passes: test\nprints_and_passes: test\n\n2 tests, 0 benchmarks\n";
    assert_eq!(listed(&["passes", "--list"]), expected);
    assert_eq!(listed(&["--list", "passes", "--exact"]), "passes: test\n\n1 tests, 0 benchmarks\n");
    assert_eq!(listed(&["--list", "passes", "--skip=prints"]), "passes: test\n\n1 tests, 0 benchmarks\n");
    let text = listed(&["--test-threads=1", "--color", "never", "-q", "passes"]);
    assert!(text.contains("\nrunning 2 tests\n"), "{text}");
    assert!(text.contains("test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 14 filtered out; "), "{text}");
    let text = listed(&["no such case"]);
    assert!(text.contains("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 16 filtered out; "), "{text}");
}

fn unknown_options_are_errors() {
    for args in [&["--unknown"][..], &["-x"], &["--list=yes"], &["--skip"]] {
        let output = run_bad(args);
        assert!(output.expect_code(101).stderr.starts_with("error: "), "{output}");
        assert!(output.stdout.is_empty(), "{output}");
    }
}

/// Starts the bad table on a case that hangs, and waits until what it starts is there.
fn start_hanging() -> (std::process::Child, Vec<i32>) {
    let child = bad(&["--exact", "hangs_for_long"]).stdout(Stdio::null()).spawn().unwrap();
    let mut found = Vec::new();
    assert!(support::wait_until(Duration::from_secs(10), || {
        found = support::descendants(child.id() as i32);
        found.iter().filter(|pid| support::command_line(**pid).starts_with("sleep 100")).count() == 2
    }));
    (child, found)
}

fn an_interrupted_harness_leaves_nothing() {
    for signal in [nix::sys::signal::SIGINT, nix::sys::signal::SIGTERM] {
        let (mut child, pids) = start_hanging();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(signal as i32));
        assert!(pids.iter().all(|pid| support::proc_state(*pid).is_none()));
    }
}

fn a_killed_harness_takes_its_case_along() {
    let (mut child, pids) = start_hanging();
    let folder = std::env::temp_dir();
    child.kill().unwrap();
    child.wait().unwrap();
    let case = pids[0];
    assert!(support::wait_until(Duration::from_secs(5), || !support::is_alive(case)));
    // What the case had started is orphaned: nobody was left to kill it, except whoever adopted it.
    for pid in pids.into_iter().filter(|pid| support::command_line(*pid).starts_with("sleep 100")) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    }
    for entry in std::fs::read_dir(folder).unwrap() {
        std::fs::remove_dir(entry.unwrap().path()).unwrap();
    }
}

fn programs_are_fed_and_read() {
    // More than a pipe holds, both ways at once, with something on standard error.
    let input: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
    let output = support::run(&mut shell_on_stdin("cat; echo done >&2; exit 3"), &input, Duration::from_secs(30));
    assert_eq!(output.expect_code(3).stdout, input);
    assert_eq!(output.stderr, "done\n");
    // A program that does not read its input.
    support::run(&mut shell_on_stdin("exit 0"), &input, Duration::from_secs(30)).expect_code(0);
    support::run(&mut shell_on_stdin("kill -9 $$"), "", Duration::from_secs(30)).expect_signal(9);
}

fn shell_on_stdin(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// The message with which `support::run` gives up on a script.
fn giving_up(script: &str, limit: Duration) -> String {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = std::panic::catch_unwind(|| support::run(&mut shell_on_stdin(script), "", limit));
    std::panic::set_hook(hook);
    *result.unwrap_err().downcast::<String>().unwrap()
}

fn a_program_that_hangs_is_killed() {
    let message = giving_up("echo begun; sleep 1006; echo more", Duration::from_millis(300));
    assert!(message.starts_with("ran longer than 300ms\n"), "{message}");
    assert!(message.contains("begun\n") && message.contains(": sleep 1006\n"), "{message}");
}

fn a_program_that_leaves_its_output_open_is_named() {
    let message = giving_up("sleep 5 & exit 0", Duration::from_secs(30));
    assert!(message.starts_with("its output was still open 2s after its end\n"), "{message}");
    assert!(message.contains("exit code 0\n") && message.contains(": sleep 5\n"), "{message}");
    // It ends by itself before the harness looks for what is left.
    std::thread::sleep(Duration::from_secs(3));
}

fn processes_are_described() {
    let mut child = Command::new("sleep").arg("1007").stdin(Stdio::piped()).spawn().unwrap();
    let (me, pid) = (std::process::id() as i32, child.id() as i32);
    assert!(support::wait_until(Duration::from_secs(5), || support::proc_state(pid) == Some('S')));
    assert_eq!(support::children(me), [pid]);
    assert_eq!(support::descendants(me), [pid]);
    assert_eq!(support::parent(pid), Some(me));
    assert_eq!(support::command_line(pid), "sleep 1007");
    assert_eq!(support::threads(pid), 1);
    assert!(support::open_fds(pid)[&0].starts_with("pipe:["));
    assert!(support::context_switches(pid).voluntary > 0);
    assert!(support::vm_hwm(pid).unwrap() > 100_000);
    assert!(support::cpu_time(pid).unwrap() < Duration::from_secs(1));
    child.stdin.take().unwrap().flush().unwrap();
    child.kill().unwrap();
    assert!(support::wait_until(Duration::from_secs(5), || support::proc_state(pid) == Some('Z')));
    assert!(!support::is_alive(pid));
    child.wait().unwrap();
    assert_eq!(support::proc_state(pid), None);
    assert_eq!((support::vm_hwm(pid), support::threads(pid)), (None, 0));
}
