//! Rows of the fault table that need `strace`: a worker is held in the kernel at one system call, and killed there.
//!
//! `tests/faults.rs` has the same rows over a `Sys` that kills; here it is the real kernel, and the worker is what users
//! run.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seqpool::{Job, Outcome, Pool, TransportKind};
use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::{proc_state, wait_until};

mod support;

fn main() {
    support::main(&support::cases![
        row_03_killed_between_receive_and_claim => 120,
        row_03_killed_on_its_way_into_a_receive => 120,
        row_04_killed_right_after_sending => 120,
    ]);
}

/// How often each job has started, in memory that host and workers share.
fn starts() -> &'static [AtomicU32] {
    static MEMORY: OnceLock<&'static [AtomicU32]> = OnceLock::new();
    MEMORY.get_or_init(|| support::shared_words(1 << 15))
}

struct Run {
    pool: Pool,
    outcomes: BTreeMap<u64, Outcome<Vec<u8>>>,
    next: u64,
}

impl Run {
    fn new(workers: usize, transport: TransportKind) -> Self {
        starts().iter().for_each(|word| word.store(0, SeqCst));
        let pool = Pool::builder()
            .workers(workers)
            .transport(transport)
            .on_start(|| {
                // SAFETY: prctl(2) takes words. Where only parents may trace (Yama), strace is allowed to all the same.
                unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
                Ok(())
            })
            .handler("echo", |request, reply| {
                let tag = request.body().split(|b| *b == b' ').next().unwrap_or_default();
                let tag: usize = std::str::from_utf8(tag)?.parse()?;
                starts()[tag].fetch_add(1, SeqCst);
                reply.extend_from_slice(request.body());
                Ok(())
            })
            .spawn()
            .expect("a pool");
        let mut run = Self { pool, outcomes: BTreeMap::new(), next: 0 };
        assert!(run.pool.wait_ready(Duration::from_secs(20)).expect("poll"), "workers are ready");
        run.submit(2000, 0);
        run.finish();
        run
    }

    /// Submits so many jobs, or as many as there is room for: a worker may be held with all that the pool can hold.
    fn submit(&mut self, count: usize, padding: usize) {
        for _ in 0..count {
            let body = format!("{} {}", self.next, "x".repeat(padding));
            if self.pool.try_submit(Job::new("echo", body.as_bytes()).tag(self.next)).is_err() {
                break;
            }
            self.next += 1;
        }
        self.pool.flush().expect("flush");
    }

    fn poll(&mut self, timeout: Duration) {
        let outcomes = &mut self.outcomes;
        let take = |c: seqpool::Completion<'_>, _: &mut seqpool::Submitter<'_>| {
            let old = outcomes.insert(c.tag, c.outcome.map(<[u8]>::to_vec));
            assert!(old.is_none(), "job {} has two outcomes, {old:?} was the first", c.tag);
        };
        self.pool.poll(Some(timeout), take).expect("poll");
    }

    /// Waits for a new worker in the place of the killed one.
    #[track_caller]
    fn refilled(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.pool.stats().respawns == 0 {
            assert!(Instant::now() < deadline, "no new worker within 20 s: {:?}", self.pool.stats());
            self.poll(Duration::from_millis(10));
        }
        assert_eq!(self.pool.stats().respawns, 1);
    }

    /// Every job is done, and was started once.
    #[track_caller]
    fn finish(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.pool.outstanding() > 0 {
            assert!(Instant::now() < deadline, "no outcome within 30 s: {:?}", self.pool.stats());
            self.poll(Duration::from_millis(10));
        }
        assert_eq!(self.outcomes.len() as u64, self.next);
        for (tag, outcome) in &self.outcomes {
            assert!(outcome.is_done(), "job {tag}: {outcome:?}");
            assert_eq!(starts()[*tag as usize].load(SeqCst), 1, "starts of job {tag}");
        }
    }
}

/// Has strace do something to a process at its system calls, and waits until it is attached.
fn strace(pid: i32, inject: &str) -> Child {
    let (call, _) = inject.split_once(':').expect("call:what");
    let mut command = Command::new("strace");
    command.args(["-qq", "-p", &pid.to_string(), "-e", &format!("trace={call}"), "-e", &format!("inject={inject}")]);
    let child = command.stdin(Stdio::null()).spawn().expect("strace: .ci/run installs it");
    let traced = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        // The call in which it waits may be the one that kills it.
        status.contains(&format!("TracerPid:\t{}\n", child.id())) || !support::is_alive(pid)
    };
    assert!(wait_until(Duration::from_secs(10), traced), "strace has attached");
    child
}

/// Waits until the process is held, not only stopped on its way into or out of a call.
fn held(pid: i32) -> bool {
    let mut seen = 0;
    wait_until(Duration::from_secs(20), || {
        seen = if proc_state(pid) == Some('t') { seen + 1 } else { 0 };
        seen == 100
    })
}

/// The `when`th of these calls of one worker is held after the kernel has done it, and the worker killed there.
fn killed_after(call: &str, when: u32, workers: usize, transport: TransportKind) {
    println!("{transport}, {workers} workers, {call} {when}");
    let mut run = Run::new(workers, transport);
    let pid = run.pool.processes().1[0];
    let mut strace = strace(pid, &format!("{call}:delay_exit=30000000:when={when}"));
    let deadline = Instant::now() + Duration::from_secs(20);
    // Until the worker has made that many calls, the answer to one packet being one packet.
    let mut last = 0;
    while last < 100 {
        assert!(Instant::now() < deadline, "the worker never made that call");
        run.submit(20, 2000);
        run.poll(Duration::from_millis(2));
        // The other worker alone would be through all jobs before strace has let this one go on.
        std::thread::sleep(Duration::from_millis(1));
        last = if proc_state(pid) == Some('t') { last + 1 } else { 0 };
        if run.next > 20_000 {
            break;
        }
    }
    assert!(held(pid), "{}", support::describe(pid));
    // More input, which it will never read.
    run.submit(100, 2000);
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a worker");
    // strace would keep the dying one until the delay is over.
    strace.kill().expect("strace");
    strace.wait().expect("strace");
    run.finish();
    run.submit(100, 0);
    run.finish();
    run.refilled();
}

fn row_03_killed_between_receive_and_claim() {
    for &transport in TransportKind::ALL {
        // The first is the one in which it was waiting, which strace did not see begin.
        for when in [1, 2, 3, 7] {
            killed_after("recvmsg", when, 2, transport);
        }
        killed_after("recvmsg", 2, 1, transport);
    }
}

fn row_04_killed_right_after_sending() {
    for &transport in TransportKind::ALL {
        for when in [1, 2, 3, 7] {
            killed_after("sendto", when, 2, transport);
        }
        killed_after("sendto", 2, 1, transport);
    }
}

fn row_03_killed_on_its_way_into_a_receive() {
    for &transport in TransportKind::ALL {
        for when in 1..=6 {
            println!("{transport}, receive {when}");
            let mut run = Run::new(2, transport);
            let pid = run.pool.processes().1[0];
            let mut strace = strace(pid, &format!("recvmsg:signal=KILL:when={when}"));
            let deadline = Instant::now() + Duration::from_secs(20);
            while support::is_alive(pid) && run.next < 20_000 {
                assert!(Instant::now() < deadline, "the worker was never killed");
                run.submit(20, 2000);
                run.poll(Duration::from_millis(2));
            }
            assert!(wait_until(Duration::from_secs(10), || !support::is_alive(pid)));
            run.finish();
            strace.wait().expect("strace ends with what it traces");
            run.refilled();
        }
    }
}
