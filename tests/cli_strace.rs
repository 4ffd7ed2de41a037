//! What `seqpool run` really asks of the kernel, seen by `strace`.

mod support;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

const JOBS: usize = 100_000;
/// Calls that wait, or look whether there is anything to wait for: how many depends on the machine's load.
const WAITS: [&str; 8] =
    ["sched_yield", "epoll_p", "epoll_w", "poll(", "ppoll(", "recvmsg(", "futex(", "restart_syscall"];

fn main() {
    support::main(&support::cases![the_kernel_sees_what_the_name_promises => 120]);
}

fn the_kernel_sees_what_the_name_promises() {
    let dir = std::env::temp_dir();
    let trace = dir.join("trace");
    let input: String = (0..JOBS).map(|i| format!("line {i}\n")).collect();
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o"]).arg(&trace).arg(support::seqpool_bin()).args(["run", "-j2", "upper"]);
    let out = support::run(&mut command, input.as_bytes(), Duration::from_secs(100));
    let out = out.expect_code(0);
    assert_eq!(out.stdout.iter().filter(|&&b| b == b'\n').count(), JOBS);
    let text = std::fs::read_to_string(&trace).unwrap();
    std::fs::remove_file(&trace).unwrap();

    let calls: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(pid, call)| (pid, call.trim_start()))
        .filter(|(_, call)| !call.starts_with("<...") && !call.starts_with("---") && !call.starts_with("+++"))
        .collect();
    let count = |part: &str| calls.iter().filter(|(_, call)| call.contains(part)).count();
    assert!(count("socketpair(AF_UNIX, SOCK_SEQPACKET|SOCK_CLOEXEC") >= 3, "nursery, and a socket for each worker");
    let edges = calls.iter().filter(|(_, call)| call.starts_with("epoll_ctl(") && call.contains("EPOLLET")).count();
    assert!(edges >= 3, "nursery and workers are watched edge-triggered: {edges}");

    // Forks, not threads: the host forks the nursery, the nursery two workers.
    let forks: Vec<&str> = calls
        .iter()
        .filter(|(_, call)| (call.starts_with("clone") || call.starts_with("fork")) && !call.contains("CLONE_THREAD"))
        .map(|(pid, _)| *pid)
        .collect();
    let host = calls[0].0;
    assert_eq!(forks.iter().filter(|pid| **pid == host).count(), 1, "one nursery: {forks:?}");
    assert_eq!(forks.len(), 3, "and two workers: {forks:?}");
    let nursery = forks.iter().find(|pid| **pid != host).unwrap();
    assert_eq!(forks.iter().filter(|pid| *pid == nursery).count(), 2, "forked by the nursery: {forks:?}");

    // Every call in every process. On a loaded machine a wait may make more of those that find nothing, but looking is
    // bounded in time, and each call takes longer under strace: the bound leaves room for five times what is usual.
    let total = calls.len();
    let waits = calls.iter().filter(|(_, call)| WAITS.iter().any(|name| call.starts_with(name))).count();
    // What carries jobs and results does not depend on waiting: packets hold many of them.
    let sends = count("sendto(") + count("sendmsg(");
    let packets = text.lines().filter(|line| is_packet_received(line)).count();
    println!("{JOBS} jobs: {total} system calls, {waits} of them waits, {sends} sends, {packets} packets received");
    println!("{:?}", most_frequent(&calls));
    assert!(total < JOBS / 10, "{total} system calls for {JOBS} jobs");
    assert!(total - waits < JOBS / 20, "{total} system calls, {waits} of them waits, for {JOBS} jobs");
    assert!((1..JOBS / 50).contains(&sends), "{sends} sends for {JOBS} jobs");
    assert!((1..JOBS / 50).contains(&packets), "{packets} packets received for {JOBS} jobs");
}

/// The calls made most often, for messages: process, call, count.
fn most_frequent<'a>(calls: &[(&'a str, &'a str)]) -> Vec<(usize, &'a str, &'a str)> {
    let mut counts = BTreeMap::new();
    for (pid, call) in calls {
        *counts.entry((*pid, call.split('(').next().unwrap_or_default())).or_insert(0) += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().map(|((pid, name), count)| (count, pid, name)).collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    counts.truncate(10);
    counts
}

/// Whether a line of the trace ends a receive, perhaps one begun in an earlier line, that brought something.
fn is_packet_received(line: &str) -> bool {
    let is_receive = line.contains("recvmsg(") || line.contains("recvfrom(") || line.contains("<... recv");
    let result = line.rsplit_once(" = ").and_then(|(_, result)| result.split(' ').next()?.parse::<i64>().ok());
    is_receive && result.is_some_and(|size| size > 0)
}
