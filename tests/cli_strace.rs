//! What `seqpool run` really asks of the kernel, seen by `strace`.

mod support;

use std::process::Command;
use std::time::Duration;

const JOBS: usize = 100_000;

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

    // Giving way while nothing is there is no work done; everything else counts, in all processes.
    let total = calls.iter().filter(|(_, call)| !call.starts_with("sched_yield")).count();
    let sends = count("sendto(") + count("sendmsg(");
    println!("{JOBS} jobs: {total} system calls, {sends} sends");
    assert!(total < JOBS / 5, "{total} system calls for {JOBS} jobs");
    assert!(sends < JOBS / 20, "{sends} sends for {JOBS} jobs");
}
