//! Looking at processes from outside, through `proc(5)`. A process that is gone has no children, threads or
//! descriptors; none of these functions fails because of it.

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// Looks every millisecond until `done` says yes. Returns whether it did in time.
pub fn wait_until(timeout: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The fields of `/proc/PID/stat` after the name: the state is the first, the parent's id the second.
fn stat(pid: i32) -> Option<Vec<String>> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = line.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(str::to_string).collect())
}

/// The process's state letter (`R`, `S`, `Z`, `T`, …), or `None` when it is gone.
pub fn proc_state(pid: i32) -> Option<char> {
    stat(pid)?.first()?.chars().next()
}

/// Whether the process is there and not a zombie.
pub fn is_alive(pid: i32) -> bool {
    !matches!(proc_state(pid), None | Some('Z' | 'X'))
}

/// The parent's process id.
pub fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// The process group's id.
pub fn process_group(pid: i32) -> Option<i32> {
    stat(pid)?.get(2)?.parse().ok()
}

/// Every process as (id, parent's id), in order of id.
fn processes() -> Vec<(i32, i32)> {
    let entries = fs::read_dir("/proc").expect("/proc");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut all: Vec<(i32, i32)> = pids.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    all.sort_unstable();
    all
}

/// The process's children, zombies included, in order of id.
pub fn children(pid: i32) -> Vec<i32> {
    processes().into_iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| child).collect()
}

/// The process's children, their children and so on, zombies included; parents before children.
pub fn descendants(pid: i32) -> Vec<i32> {
    let all = processes();
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let of = found[next];
        found.extend(all.iter().filter(|(_, parent)| *parent == of).map(|(child, _)| *child));
        next += 1;
    }
    found.remove(0);
    found
}

/// The members of a process group, zombies included, in order of id.
pub fn group_members(group: i32) -> Vec<i32> {
    processes().into_iter().map(|(pid, _)| pid).filter(|pid| process_group(*pid) == Some(group)).collect()
}

/// The command line with spaces between its arguments, or the name in brackets for a process without one (a zombie).
pub fn command_line(pid: i32) -> String {
    let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let arguments = read("cmdline");
    if arguments.is_empty() {
        return format!("[{}]", String::from_utf8_lossy(&read("comm")).trim_end());
    }
    let parts = arguments.split(|byte| *byte == 0).filter(|part| !part.is_empty());
    parts.map(String::from_utf8_lossy).collect::<Vec<_>>().join(" ")
}

/// One line about a process: id, state, the kernel function that it sleeps in, command line.
pub fn describe(pid: i32) -> String {
    let sleeps_in = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    let sleeps_in = if matches!(sleeps_in.as_str(), "" | "0") { String::new() } else { format!(" in {sleeps_in}") };
    format!("pid {pid}, state {}{sleeps_in}: {}", proc_state(pid).unwrap_or('-'), command_line(pid))
}

/// The open descriptors and what `readlink` says of each.
pub fn open_fds(pid: i32) -> BTreeMap<i32, String> {
    let folder = format!("/proc/{pid}/fd");
    let Ok(entries) = fs::read_dir(&folder) else { return BTreeMap::new() };
    let fds = entries.flatten().filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        Some((entry.file_name().to_str()?.parse().ok()?, target))
    });
    // Looking at oneself, the folder being read is open too.
    fds.filter(|(_, target)| *target != folder).collect()
}

/// Waits for the end of one child.
pub fn wait_for(child: i32) -> WaitStatus {
    waitpid(Pid::from_raw(child), None).expect("waitpid")
}

/// Reaps what has ended, adopted processes too. Returns whether nobody is left.
pub fn reaped() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return false,
            Ok(_) => {}
            Err(nix::errno::Errno::ECHILD) => return true,
            Err(error) => panic!("waitpid: {error}"),
        }
    }
}

/// How many threads the process has.
pub fn threads(pid: i32) -> usize {
    thread_ids(pid).len()
}

fn thread_ids(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// How often a process gave up a core, and how often one was taken from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContextSwitches {
    pub voluntary: u64,
    pub involuntary: u64,
}

/// The context switches of all threads that the process has now.
pub fn context_switches(pid: i32) -> ContextSwitches {
    let mut sum = ContextSwitches::default();
    for thread in thread_ids(pid) {
        let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).unwrap_or_default();
        sum.voluntary += number_after(&status, "voluntary_ctxt_switches:").unwrap_or(0);
        sum.involuntary += number_after(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
    }
    sum
}

/// The largest resident size so far (`VmHWM`); `None` when the process is gone or a zombie. Units: bytes.
pub fn vm_hwm(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(number_after(&status, "VmHWM:")? * 1024)
}

/// The resident size; `None` when the process is gone or a zombie. Units: bytes.
pub fn vm_rss(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(number_after(&status, "VmRSS:")? * 1024)
}

fn number_after(status: &str, key: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(key))?;
    value.split_whitespace().next()?.parse().ok()
}

/// User and system time used so far, in steps of the kernel's clock tick (usually 10 ms).
pub fn cpu_time(pid: i32) -> Option<Duration> {
    let stat = stat(pid)?;
    let ticks: u64 = stat.get(11)?.parse::<u64>().ok()? + stat.get(12)?.parse::<u64>().ok()?;
    // SAFETY: sysconf(3) takes a number and touches no memory of ours.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Some(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}
