//! The study's servers and workers: real processes, of which nothing is left whatever happens.
//!
//! Times are asserted only where physics sets them: no run is shorter than its messages and computations, and shares of
//! the server's time are held to generous ranges, because the machine may have other things to do.

use seqpool::cli::study::trial::{Seen, Trial, run};
use std::num::NonZeroU32;
use std::time::Duration;

mod support;

fn main() {
    support::main(&support::cases![
        every_job_is_done_once_and_the_spans_add_up => 120,
        two_blocking_exchanges_never_overlap,
        a_budget_of_one_part_takes_turns,
        without_a_budget_it_is_first_come_first_served,
        slow_peers_overlap_only_without_blocking,
        what_the_server_works_moves_with_the_share_of_waiting,
        a_queue_gives_more_to_whoever_is_faster,
        many_workers_and_many_parts,
        a_killed_worker_ends_the_run,
        a_killed_server_ends_the_run,
        a_stopped_worker_does_not_hold_the_run_for_ever,
        nothing_outlives_its_killer,
        the_default_plan,
    ]);
}

const MS: u64 = 1_000_000;
/// Spans may be cut short where lanes meet, by what goes with a part.
const HANDLING_NS: u64 = 20_000;

/// The drawn plan, but fewer rounds.
fn drawn(nonblocking: bool, wait: bool) -> Trial {
    Trial {
        nonblocking,
        parts_per_turn: NonZeroU32::new(1),
        wait_permille: if wait { 1000 } else { 0 },
        queue: false,
        spin: false,
        compute_ns: vec![2 * MS; 3],
        message_ns: MS / 2,
        parts: 3,
        rounds: 3,
    }
}

fn done(trial: &Trial) -> Seen {
    run(trial, &mut |_| {}).expect("a run")
}

fn total(seen: &Seen, lane: Option<u16>, activity: &str) -> u64 {
    seen.spans.iter().filter(|s| s.0 == lane && s.1 == activity).map(|s| s.3 - s.2).sum()
}

fn share(seen: &Seen, activity: &str) -> f64 {
    total(seen, None, activity) as f64 / seen.makespan_ns as f64
}

/// Who was read from and written to, part by part, in the order of time.
fn transfers(seen: &Seen) -> Vec<(u16, &'static str, u64, u64)> {
    let moved = seen.spans.iter().filter(|s| matches!(s.1, "read" | "write"));
    let mut moved: Vec<_> = moved.filter_map(|s| Some((s.0?, s.1, s.2, s.3))).collect();
    moved.sort_by_key(|s| s.2);
    moved
}

/// Whether parts of two workers were on their way at the same time.
fn overlap(seen: &Seen) -> bool {
    !transfers(seen).is_sorted_by(|a, b| a.3 <= b.2 + HANDLING_NS)
}

/// Whether the server itself works next to nothing.
fn waits(trial: &Trial) -> bool {
    trial.wait_permille == 1000
}

fn check(trial: &Trial, seen: &Seen) {
    let workers = trial.compute_ns.len();
    let jobs = workers as u64 * u64::from(trial.rounds);
    assert_eq!(seen.done_by.len() as u64, jobs, "every job once");
    let lanes = (0..workers as u16).map(Some).chain([None]);
    for lane in lanes {
        let mut at = 0;
        for span in seen.spans.iter().filter(|s| s.0 == lane) {
            assert!(span.2 >= at && span.3 > span.2 && span.3 <= seen.makespan_ns, "{lane:?}: {span:?} after {at}");
            assert!(span.2 == at, "{lane:?}: a gap before {span:?}");
            at = span.3;
        }
        if lane.is_none() {
            assert_eq!(at, seen.makespan_ns, "the server's spans cover the run");
        }
    }
    for (worker, &compute_ns) in (0..).zip(&trial.compute_ns) {
        let had = seen.done_by.iter().filter(|w| **w == worker).count() as u64;
        if !trial.queue {
            assert_eq!(had, u64::from(trial.rounds), "jobs of worker {worker}");
        }
        // Waiting parts lose what goes with them where the worker was first to know; working ones a moment at an end.
        let slack = HANDLING_NS * (had + 1) * u64::from(trial.parts);
        assert!(total(seen, Some(worker), "compute") >= had * compute_ns, "worker {worker} computed");
        let read = total(seen, Some(worker), "read");
        assert!(read + slack >= (had + 1) * trial.message_ns, "worker {worker}: read for {read}");
        let chain = had * (compute_ns + 2 * trial.message_ns) + trial.message_ns;
        assert!(seen.makespan_ns + slack >= chain, "{} is less than one worker needs", seen.makespan_ns);
    }
    let idle = if trial.nonblocking { "blocked" } else { "free" };
    assert_eq!(total(seen, None, idle), 0, "a blocking server is never free, the other never blocked");
    // Working messages cannot overlap, nor can any of a blocking server.
    if !waits(trial) || !trial.nonblocking {
        let least = (2 * jobs + workers as u64) * trial.message_ns;
        let moving = total(seen, None, if waits(trial) { "blocked" } else { "busy" });
        assert!(seen.makespan_ns + HANDLING_NS * jobs * 6 >= least, "{} is less than the messages", seen.makespan_ns);
        // Blocked while it waits for peers; a server from which its core is taken finds parts there.
        let part = if waits(trial) { least / 10 } else { least - least / 10 };
        assert!(moving >= part, "the server's time for messages: {moving} of {least}");
    }
    assert!(seen.system_calls > jobs * 2 * u64::from(trial.parts), "{} system calls", seen.system_calls);
}

fn every_job_is_done_once_and_the_spans_add_up() {
    for case in 0..32 {
        let on = |bit: u32| case >> bit & 1 == 1;
        let budget = if on(4) { None } else { NonZeroU32::new(1) };
        if !on(0) && on(4) {
            continue; // A blocking server has no budget.
        }
        let compute_ns = vec![3 * MS, 2 * MS, MS];
        let trial =
            Trial { queue: on(2), spin: on(3), parts_per_turn: budget, compute_ns, rounds: 2, ..drawn(on(0), on(1)) };
        println!("{trial:?}");
        let mut told = Vec::new();
        let seen = run(&trial, &mut |jobs| told.push(jobs)).expect("a run");
        println!("{seen:?}");
        check(&trial, &seen);
        assert!(told.is_sorted() && told.last() == Some(&6), "progress: {told:?}");
    }
}

fn two_blocking_exchanges_never_overlap() {
    for wait in [false, true] {
        let seen = done(&drawn(false, wait));
        let workers: Vec<u16> = transfers(&seen).iter().map(|t| t.0).collect();
        let mut runs = workers.clone();
        runs.dedup();
        // Registrations and first jobs, in the order of the workers.
        assert_eq!(runs[..3], [0, 1, 2]);
        assert!(workers.chunks(3).all(|message| message.iter().all(|w| *w == message[0])), "{workers:?}");
        assert!(!overlap(&seen));
    }
}

fn a_budget_of_one_part_takes_turns() {
    let seen = done(&drawn(true, false));
    let order: Vec<(u16, &str)> = transfers(&seen).iter().map(|t| (t.0, t.1)).take(16).collect();
    let drawn: Vec<(u16, &str)> =
        ["read", "write"].iter().flat_map(|what| (0..9).map(move |i| (i % 3, *what))).collect();
    // Then the first has its job, and on a busy machine may be back before the others have theirs.
    assert_eq!(order, drawn[..16], "as drawn: each worker has its turn for one part");
}

fn without_a_budget_it_is_first_come_first_served() {
    let seen = done(&Trial { parts_per_turn: None, ..drawn(true, false) });
    let order: Vec<u16> = transfers(&seen).iter().map(|t| t.0).take(18).collect();
    assert_eq!(order, [[0; 6], [1; 6], [2; 6]].concat());
}

fn slow_peers_overlap_only_without_blocking() {
    let trial = Trial { compute_ns: vec![MS; 6], ..drawn(true, true) };
    let (nonblocking, blocking) = (done(&trial), done(&Trial { nonblocking: false, ..trial.clone() }));
    check(&trial, &nonblocking);
    assert!(overlap(&nonblocking) && !overlap(&blocking));
    // While all deliver their first messages, at the least.
    assert!(total(&nonblocking, None, "free") > 0);
}

fn what_the_server_works_moves_with_the_share_of_waiting() {
    let slow = |nonblocking, wait_permille| Trial {
        wait_permille,
        compute_ns: vec![MS; 3],
        message_ns: 6 * MS,
        rounds: 4,
        ..drawn(nonblocking, false)
    };
    for nonblocking in [false, true] {
        let mut busy = Vec::new();
        for wait_permille in [200, 500, 800] {
            let trial = slow(nonblocking, wait_permille);
            let seen = done(&trial);
            println!("{wait_permille}: {seen:?}");
            let rounds = u64::from(trial.rounds);
            assert_eq!(seen.done_by.len() as u64, 3 * rounds, "every job once");
            let messages = 3 * (2 * rounds + 1);
            let slack = HANDLING_NS * 3 * messages;
            let work_ns = messages * trial.message_ns * (1000 - u64::from(wait_permille)) / 1000;
            let busy_ns = total(&seen, None, "busy");
            assert!(busy_ns + slack >= work_ns, "busy for {busy_ns} of {work_ns}");
            // Nobody's messages are quicker than the peer and the server together.
            let chain = rounds * (MS + 2 * trial.message_ns) + trial.message_ns;
            assert!(seen.makespan_ns + slack >= chain, "{} of {chain}", seen.makespan_ns);
            assert!(nonblocking || !overlap(&seen), "one worker at a time");
            busy.push(busy_ns);
        }
        // Four times as much work; a lost core counts as busy, too.
        assert!(busy[0] > busy[2], "{busy:?}");
    }
    // The others' own time passes while one is served.
    let (nonblocking, blocking) = (done(&slow(true, 800)), done(&slow(false, 800)));
    assert!(overlap(&nonblocking), "{nonblocking:?}");
    assert!(nonblocking.makespan_ns < blocking.makespan_ns, "{} {}", nonblocking.makespan_ns, blocking.makespan_ns);
}

fn a_queue_gives_more_to_whoever_is_faster() {
    for nonblocking in [false, true] {
        let trial = Trial { queue: true, compute_ns: vec![60 * MS, MS], rounds: 5, ..drawn(nonblocking, true) };
        let seen = done(&trial);
        check(&trial, &seen);
        let fast = seen.done_by.iter().filter(|w| **w == 1).count();
        assert!(fast > 5, "{:?}", seen.done_by);
    }
}

fn many_workers_and_many_parts() {
    for (nonblocking, wait) in [(false, false), (true, false), (false, true), (true, true)] {
        let compute_ns = vec![MS; 48];
        let trial = Trial { compute_ns, message_ns: MS / 2, parts: 12, rounds: 1, ..drawn(nonblocking, wait) };
        let seen = done(&trial);
        check(&trial, &seen);
    }
}

/// The children of this process with this name.
fn named(name: &str) -> Vec<i32> {
    let is = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
    support::children(std::process::id() as i32).into_iter().filter(is).collect()
}

fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("kill");
}

/// A run that would take at least a second, and what becomes of it when one process of this name is sent a signal.
fn struck(nonblocking: bool, wait: bool, name: &str, with: nix::sys::signal::Signal) -> String {
    let trial = Trial { rounds: 200, ..drawn(nonblocking, wait) };
    let mut struck = false;
    let failure = run(&trial, &mut |done| {
        if !struck && done > 0 {
            signal(*named(name).last().expect("one is running"), with);
            struck = true;
        }
    });
    assert!(struck);
    failure.expect_err("a failure")
}

const KINDS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

fn a_killed_worker_ends_the_run() {
    for (nonblocking, wait) in KINDS {
        let failure = struck(nonblocking, wait, "study-worker", nix::sys::signal::Signal::SIGKILL);
        assert_eq!(failure, "worker 3 was ended by signal 9 (SIGKILL)");
    }
}

fn a_killed_server_ends_the_run() {
    for (nonblocking, wait) in KINDS {
        let failure = struck(nonblocking, wait, "study-server", nix::sys::signal::Signal::SIGTERM);
        assert_eq!(failure, "the server was ended by signal 15 (SIGTERM)");
    }
}

fn a_stopped_worker_does_not_hold_the_run_for_ever() {
    let trial = Trial { rounds: 40, compute_ns: vec![2 * MS; 2], ..drawn(false, true) };
    let mut stopped = false;
    let failure = run(&trial, &mut |done| {
        if !stopped && done > 0 {
            signal(*named("study-worker").last().expect("one is running"), nix::sys::signal::Signal::SIGSTOP);
            stopped = true;
        }
    });
    let failure = failure.expect_err("a failure");
    assert!(failure.starts_with("the run was not over after ") && failure.ends_with(" and was ended"), "{failure}");
}

fn nothing_outlives_its_killer() {
    // SAFETY: this process has one thread; the child runs on as a copy of it and leaves by `_exit` or is killed.
    let forked = unsafe { nix::unistd::fork() }.expect("fork");
    let nix::unistd::ForkResult::Parent { child } = forked else {
        let _ = run(&Trial { rounds: 5000, ..drawn(false, true) }, &mut |_| {});
        // SAFETY: `_exit` takes one word and does not return.
        unsafe { libc::_exit(0) }
    };
    let own = child.as_raw();
    assert!(support::wait_until(Duration::from_secs(20), || support::children(own).len() == 4));
    let children = support::children(own);
    signal(own, nix::sys::signal::Signal::SIGKILL);
    nix::sys::wait::waitpid(child, None).expect("waitpid");
    let gone = || children.iter().all(|pid| !support::is_alive(*pid));
    assert!(support::wait_until(Duration::from_secs(5), gone), "{children:?}");
}

/// Prints what the study will: `cargo test --test study -- --nocapture the_default_plan`.
fn the_default_plan() {
    for (scenario, compute_ns) in [("synchronized", vec![2 * MS; 3]), ("unsynchronized", vec![3 * MS, 2 * MS, MS])] {
        for (wait, queue) in [(false, false), (false, true), (true, false), (true, true)] {
            for (server, nonblocking, parts_per_turn) in [
                ("blocking", false, None),
                ("nonblocking, 1 part a turn", true, NonZeroU32::new(1)),
                ("nonblocking, no budget", true, None),
            ] {
                let compute_ns = compute_ns.clone();
                let trial = Trial { queue, parts_per_turn, compute_ns, rounds: 10, ..drawn(nonblocking, wait) };
                let seen = done(&trial);
                println!(
                    "{scenario:<15} {:<5}{:<7}{server:<27}{:>8.2} ms  busy {:>5.1} %  blocked {:>5.1} %  free {:>5.1} %  \
                     {} system calls, switches {:?} and {:?}",
                    if wait { "wait" } else { "cpu" },
                    if queue { "queue" } else { "rounds" },
                    seen.makespan_ns as f64 / 1e6,
                    100.0 * share(&seen, "busy"),
                    100.0 * share(&seen, "blocked"),
                    100.0 * share(&seen, "free"),
                    seen.system_calls,
                    seen.server_switches,
                    seen.worker_switches,
                );
                check(&trial, &seen);
            }
        }
    }
}
