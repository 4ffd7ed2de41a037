//! What every transport owes, asked of each in the same words: each case runs once for every [`TransportKind`].
//!
//! The pool's interface is `tests/pool.rs`; here is what may differ from one way of carrying jobs to another: exactly
//! one outcome for each job, order, sizes, packing, fragments, death, backpressure, the counters' wrap.

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seqpool::limits::{FRAME_HEADER_SIZE, HEADER_BLOCK_SIZE_MAX, JOB_SIZE_MAX, PACKET_SIZE_MAX, RING_SIZE};
use seqpool::{Builder, Crash, CrashCause, Job, Outcome, Pool, Reason, TransportKind, TrySubmitError};
use std::time::{Duration, Instant};

mod support;

/// How long anything may take that takes no time on a machine with nothing else to do.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    support::main(&support::cases_on_each_transport![
        every_job_has_exactly_one_outcome,
        order_is_kept,
        jobs_are_packed,
        bodies_of_every_size_come_back => 240,
        bodies_around_every_boundary_come_back => 120,
        header_blocks_travel_with_bodies_of_every_size => 120,
        jobs_beyond_the_default_limit_are_rejected,
        jobs_beyond_a_smaller_limit_are_rejected,
        replies_of_every_size_come_back => 120,
        large_jobs_do_not_wait_behind_each_other => 120,
        a_death_blames_one_job,
        results_of_a_dead_worker_are_kept,
        an_idle_worker_may_die,
        a_worker_that_dies_while_a_large_job_arrives_is_replaced,
        a_job_that_no_worker_can_take_in_is_given_up,
        a_stopped_worker_between_jobs_is_replaced,
        a_stopped_worker_in_a_job_times_out,
        nobody_reads_and_memory_stays_bounded => 120,
        counters_cross_their_wrap,
        counters_cross_their_wrap_in_large_jobs => 120,
        large_results_wait_for_a_slow_reader => 120,
    ]);
}

// ---- the handlers of all cases ----

fn builder(kind: TransportKind) -> Builder {
    Pool::builder()
        .workers(2)
        .transport(kind)
        .handler("echo", |request, reply| {
            reply.extend_from_slice(request.body());
            Ok(())
        })
        // Headers, a blank line, the body.
        .handler("show", |request, reply| {
            for (key, value) in request.headers() {
                reply.extend_from_slice(key);
                reply.extend_from_slice(b"=");
                reply.extend_from_slice(value);
                reply.extend_from_slice(b"\n");
            }
            reply.extend_from_slice(b"\n");
            reply.extend_from_slice(request.body());
            Ok(())
        })
        // As many bytes as the body says.
        .handler("make", |request, reply| {
            let size: usize = std::str::from_utf8(request.body())?.parse()?;
            fill(reply.extend_by(size));
            Ok(())
        })
        .handler("fault", |request, reply| {
            let text = std::str::from_utf8(request.body())?;
            let (what, how) = text.split_once(' ').unwrap_or((text, ""));
            match what {
                "exit" => std::process::exit(how.parse()?),
                "signal" => die_by(how.parse()?),
                "abort" => std::process::abort(),
                "panic" => panic!("{how}"),
                "error" => return Err(how.into()),
                "sleep" => std::thread::sleep(Duration::from_millis(how.parse()?)),
                _ => {}
            }
            reply.extend_from_slice(request.body());
            Ok(())
        })
}

fn die_by(signal: i32) -> ! {
    // SAFETY: raise(3) takes one word; this process has one thread.
    unsafe { libc::raise(signal) };
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Bytes that are easy to check and differ from one place to another.
fn fill(bytes: &mut [u8]) {
    for (i, word) in bytes.chunks_mut(8).enumerate() {
        let value = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        word.copy_from_slice(&value[..word.len()]);
    }
}

fn filled(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    fill(&mut bytes);
    bytes
}

/// Submits one job and waits for its outcome.
#[track_caller]
fn ask(pool: &mut Pool, job: Job<'_>) -> Outcome<Vec<u8>> {
    let ticket = pool.submit(job).unwrap();
    let start = Instant::now();
    let mut outcome = None;
    while outcome.is_none() {
        assert!(start.elapsed() < PATIENCE * 2, "no outcome");
        pool.poll(Some(PATIENCE), |done, _| {
            assert_eq!(done.ticket, ticket);
            outcome = Some(done.outcome.map(<[u8]>::to_vec));
        })
        .unwrap();
    }
    outcome.unwrap()
}

/// `assert_eq!` on large bodies, without printing megabytes.
#[track_caller]
fn assert_body(outcome: &Outcome<Vec<u8>>, expected: &[u8], what: &str) {
    match outcome {
        Outcome::Done(body) => {
            assert_eq!(body.len(), expected.len(), "{what}");
            let differs = body.iter().zip(expected).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{what}");
        }
        other => panic!("{what}: {other}"),
    }
}

// ---- outcomes, order, packing ----

fn every_job_has_exactly_one_outcome(kind: TransportKind) {
    let mut pool = builder(kind).workers(3).spawn().unwrap();
    let mut seen = vec![0u8; 20_000];
    let inputs = (0..seen.len()).map(|i| i.to_string());
    pool.for_each("echo", inputs, |done, _| {
        seen[done.tag as usize] += 1;
        assert_eq!(done.outcome, Outcome::Done(done.tag.to_string().as_bytes()));
    })
    .unwrap();
    assert!(seen.iter().all(|n| *n == 1));
    assert_eq!(pool.outstanding(), 0);
    let stats = pool.stats();
    assert_eq!((stats.jobs, stats.done), (20_000, 20_000));
}

fn order_is_kept(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    // Every 500th job takes 2 ms, so that results overtake each other.
    let inputs: Vec<_> = (0..10_000).map(|i| if i % 500 == 0 { "sleep 2".into() } else { format!("ok {i}") }).collect();
    let mut count = 0;
    for (outcome, input) in pool.map("fault", &inputs).zip(&inputs) {
        assert_eq!(outcome, Outcome::Done(input.clone().into_bytes()));
        count += 1;
    }
    assert_eq!(count, inputs.len());
}

fn jobs_are_packed(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    let count = 20_000;
    pool.for_each("echo", (0..count).map(|i| i.to_string()), |_, _| {}).unwrap();
    let stats = pool.stats();
    assert_eq!(stats.done, count);
    match kind {
        TransportKind::Blocking => {
            assert_eq!(stats.packets_sent, count, "one job a packet");
            // And two workers' hellos.
            assert_eq!(stats.packets_received, count + 2, "one result a packet");
        }
        _ => {
            assert!(stats.packets_sent * 10 < count, "{} packets for {count} jobs", stats.packets_sent);
            assert!(stats.packets_received * 10 < count, "{} packets for {count} results", stats.packets_received);
        }
    }
}

// ---- sizes and fragments ----

fn bodies_of_every_size_come_back(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    let half = RING_SIZE / 2;
    let sizes = [0, 1, 212_960, 212_961, half - 1, half, half + 1, RING_SIZE - 1, RING_SIZE, RING_SIZE + 1, 64 << 20];
    assert_eq!(*sizes.last().unwrap(), JOB_SIZE_MAX, "the default limit itself");
    for size in sizes {
        let body = filled(size);
        assert_body(&ask(&mut pool, Job::new("echo", &body)), &body, &format!("{size} bytes"));
    }
    // All at once and in order, small ones among large ones.
    let bodies: Vec<_> = sizes[..10].iter().flat_map(|size| [filled(*size), b"small".to_vec()]).collect();
    let outcomes: Vec<_> = pool.map("echo", &bodies).collect();
    assert_eq!(outcomes.len(), bodies.len());
    for (outcome, body) in outcomes.iter().zip(&bodies) {
        assert_body(outcome, body, &format!("{} bytes among others", body.len()));
    }
    assert_eq!(pool.stats().respawns, 0);
}

/// Where a frame, a packet, a fragment or a multiple of them ends.
fn bodies_around_every_boundary_come_back(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    let whole = PACKET_SIZE_MAX - FRAME_HEADER_SIZE;
    let part = whole - 16;
    let boundaries = [8, 16, (64 << 10) - 64 - FRAME_HEADER_SIZE, 64 << 10, whole, part, 2 * part, 3 * part, 5 * whole];
    let sizes = boundaries.iter().flat_map(|b| (b.saturating_sub(9)..=b + 9).step_by(1));
    let sizes: Vec<usize> = sizes.collect();
    let mut count = 0;
    for (outcome, size) in pool.map("echo", sizes.iter().map(|size| filled(*size))).zip(&sizes) {
        assert_body(&outcome, &filled(*size), &format!("{size} bytes"));
        count += 1;
    }
    assert_eq!(count, sizes.len());
    assert_eq!(pool.stats().respawns, 0);
}

fn header_blocks_travel_with_bodies_of_every_size(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    let long = "v".repeat(1000);
    let mut headers: Vec<(String, &str)> = (0..15).map(|i| (format!("key{i}"), long.as_str())).collect();
    headers.push(("empty".into(), ""));
    let size: usize = headers.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
    assert!(size > HEADER_BLOCK_SIZE_MAX - 2000 && size <= HEADER_BLOCK_SIZE_MAX);
    let shown: String = headers.iter().map(|(k, v)| format!("{k}={v}\n")).collect();
    let whole = PACKET_SIZE_MAX - FRAME_HEADER_SIZE;
    for size in [0, 1, whole - size - 1, whole - size, whole - size + 1, 212_960, RING_SIZE + 1, 8 << 20] {
        let body = filled(size);
        let job = headers.iter().fold(Job::new("show", &body), |job, (k, v)| job.header(k, v));
        let expected = [shown.as_bytes(), b"\n", &body].concat();
        assert_body(&ask(&mut pool, job), &expected, &format!("{size} bytes with headers"));
    }
}

/// A body one beyond the limit, which nobody reads: its pages are never touched.
#[track_caller]
fn check_limit(pool: &mut Pool, limit: usize) {
    let body = vec![0; limit + 1];
    let outcome = ask(pool, Job::new("echo", &body).header("key", "value"));
    let reason = Reason::TooLarge { size: limit as u64 + 1, limit: limit as u64 };
    assert_eq!(outcome, Outcome::Rejected { reason });
    let text = outcome.to_string();
    assert!(text.contains(&limit.to_string()) && text.contains(&(limit + 1).to_string()), "{text}");
    assert!(!outcome.retryable());
    // The rest is unharmed, the limit itself is allowed, and headers do not count.
    let body = filled(limit.min(1 << 20));
    assert_body(&ask(pool, Job::new("echo", &body).header("key", "value")), &body, "at the limit");
    let stats = pool.stats();
    assert_eq!((stats.rejected, stats.done, stats.respawns), (1, 1, 0));
}

fn jobs_beyond_the_default_limit_are_rejected(kind: TransportKind) {
    check_limit(&mut builder(kind).spawn().unwrap(), JOB_SIZE_MAX);
}

fn jobs_beyond_a_smaller_limit_are_rejected(kind: TransportKind) {
    for limit in [0, 1, 1000, 300_000] {
        check_limit(&mut builder(kind).job_size_max(limit).spawn().unwrap(), limit);
    }
}

fn replies_of_every_size_come_back(kind: TransportKind) {
    let mut pool = builder(kind).job_size_max(3 << 20).spawn().unwrap();
    let whole = PACKET_SIZE_MAX - FRAME_HEADER_SIZE;
    let edges = [0, 1, whole - 1, whole, whole + 1, 212_961, RING_SIZE - 1, RING_SIZE, RING_SIZE + 1, 3 << 20];
    for size in edges {
        assert_body(&ask(&mut pool, Job::new("make", size.to_string().as_bytes())), &filled(size), "a reply");
    }
    for size in [(3 << 20) + 1, 20 << 20] {
        let outcome = ask(&mut pool, Job::new("make", size.to_string().as_bytes()));
        match &outcome {
            Outcome::Failed { message, panicked: false } => {
                assert_eq!(*message, format!("reply of {size} bytes is too large, the limit is {} bytes", 3 << 20));
            }
            other => panic!("{other}"),
        }
    }
    assert_body(&ask(&mut pool, Job::new("make", b"10")), &filled(10), "after that");
    assert_eq!(pool.stats().respawns, 0, "the worker lives on");
}

fn large_jobs_do_not_wait_behind_each_other(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    let large = filled(3 << 20);
    for i in 0..40u64 {
        let size = if i % 3 == 0 { large.len() } else { (i * 7919 % 50_000) as usize };
        pool.submit(Job::new("echo", &large[..size]).tag(i)).unwrap();
    }
    let mut seen = [0; 40];
    pool.drain(|done, _| {
        let i = done.tag;
        let size = if i % 3 == 0 { large.len() } else { (i * 7919 % 50_000) as usize };
        assert!(done.outcome == Outcome::Done(&large[..size]), "job {i}");
        seen[i as usize] += 1;
    })
    .unwrap();
    assert_eq!(seen, [1; 40]);
}

// ---- death ----

fn a_death_blames_one_job(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    let crash = |cause| Outcome::Crashed(Crash { cause, oom: None });
    let faults = [
        ("signal 9", crash(CrashCause::Signal(9))),
        ("exit 0", crash(CrashCause::Code(0))),
        ("exit 3", crash(CrashCause::Code(3))),
        ("abort", crash(CrashCause::Signal(6))),
        ("panic at the disco", Outcome::Failed { message: "at the disco".into(), panicked: true }),
        ("error of mine", Outcome::Failed { message: "of mine".into(), panicked: false }),
    ];
    // Each fault in the midst of 100 jobs that are well.
    let inputs: Vec<String> = (0..faults.len() * 100)
        .map(|i| if i % 100 == 50 { faults[i / 100].0.to_owned() } else { format!("ok {i}") })
        .collect();
    let outcomes: Vec<_> = pool.map("fault", &inputs).collect();
    assert_eq!(outcomes.len(), inputs.len());
    for (i, outcome) in outcomes.iter().enumerate() {
        if i % 100 == 50 {
            assert_eq!(outcome.clone().map(|_| ()), faults[i / 100].1.clone(), "{}", inputs[i]);
        } else {
            assert_eq!(*outcome, Outcome::Done(inputs[i].clone().into_bytes()), "job {i}");
        }
    }
    let stats = pool.stats();
    assert_eq!((stats.crashed, stats.failed, stats.hostile), (4, 2, 0));
}

fn results_of_a_dead_worker_are_kept(kind: TransportKind) {
    let mut pool = builder(kind).workers(1).spawn().unwrap();
    // Makes the estimate small, so that all of a batch goes to the worker at once.
    assert!(pool.map("fault", (0..2000).map(|i| format!("ok {i}"))).all(|o| o.is_done()));
    let before = pool.stats();
    // The worker sleeps first: the others are in its hands when it dies at the fiftieth.
    let name = |i: u64| match i {
        0 => "sleep 100".to_owned(),
        50 => "signal 9".to_owned(),
        _ => format!("ok {i}"),
    };
    for i in 0..100 {
        pool.submit(Job::new("fault", name(i).as_bytes()).tag(i)).unwrap();
    }
    let mut seen = [0; 100];
    pool.drain(|done, _| {
        seen[done.tag as usize] += 1;
        match done.tag {
            50 => assert_eq!(done.outcome.to_string(), "crashed: signal 9 (SIGKILL)"),
            i => assert_eq!(done.outcome, Outcome::Done(name(i).as_bytes())),
        }
    })
    .unwrap();
    assert_eq!(seen, [1; 100]);
    let stats = pool.stats();
    assert_eq!((stats.crashed, stats.done - before.done), (1, 99));
    if kind == TransportKind::Seqpacket {
        assert!(stats.salvaged > 0, "49 quick results had not been sent: {stats:?}");
    }
}

fn an_idle_worker_may_die(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    for _ in 0..5 {
        let (_, workers) = pool.processes();
        for worker in workers {
            kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        }
        // At once: the jobs may be sent to workers that are dead already.
        let outcomes: Vec<_> = pool.map("echo", (0..20).map(|i| i.to_string())).collect();
        assert_eq!(outcomes.len(), 20);
        for (i, outcome) in outcomes.into_iter().enumerate() {
            assert_eq!(outcome, Outcome::Done(i.to_string().into_bytes()));
        }
        let deadline = Instant::now() + PATIENCE;
        while pool.processes().1.len() < 2 {
            assert!(Instant::now() < deadline, "the pool refills");
            pool.poll(Some(Duration::from_millis(10)), |_, _| {}).unwrap();
        }
        assert!(pool.wait_ready(PATIENCE).unwrap());
    }
    assert_eq!(pool.stats().crashed, 0);
}

fn a_worker_that_dies_while_a_large_job_arrives_is_replaced(kind: TransportKind) {
    let mut pool = builder(kind).workers(1).spawn().unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    let (_, workers) = pool.processes();
    // Stopped, it takes in no part; 32 MiB are more than its socket holds.
    kill(Pid::from_raw(workers[0]), Signal::SIGSTOP).unwrap();
    let body = filled(32 << 20);
    pool.submit(Job::new("echo", &body)).unwrap();
    let sent = pool.stats().packets_sent;
    assert_eq!(pool.poll(Some(Duration::from_millis(50)), |_, _| {}).unwrap(), 0);
    assert!(sent > 0 && pool.stats().packets_sent < 100, "{:?}", pool.stats());
    kill(Pid::from_raw(workers[0]), Signal::SIGKILL).unwrap();
    let mut count = 0;
    pool.drain(|done, _| {
        assert!(done.outcome == Outcome::Done(&body[..]), "{}", done.outcome);
        count += 1;
    })
    .unwrap();
    assert_eq!((count, pool.stats().respawns), (1, 1));
}

fn a_job_that_no_worker_can_take_in_is_given_up(kind: TransportKind) {
    let limited = builder(kind).workers(1).on_start(|| {
        let used = std::fs::read_to_string("/proc/self/statm")?;
        let pages: u64 = used.split(' ').next().ok_or("statm")?.parse()?;
        let limit = pages * 4096 + (24 << 20);
        Ok(setrlimit(Resource::RLIMIT_AS, limit, limit)?)
    });
    let mut pool = limited.spawn().unwrap();
    let small = ask(&mut pool, Job::new("echo", b"fits"));
    assert_body(&small, b"fits", "a small one");
    // The worker's memory has no room for it: the third death gives it up.
    let body = vec![0; 40 << 20];
    let outcome = ask(&mut pool, Job::new("echo", &body));
    assert_eq!(outcome, Outcome::Crashed(Crash { cause: CrashCause::NeverStarted, oom: None }));
    assert_body(&ask(&mut pool, Job::new("echo", b"fits")), b"fits", "a small one afterwards");
    assert_eq!(pool.stats().crashed, 1);
}

fn a_stopped_worker_between_jobs_is_replaced(kind: TransportKind) {
    let mut pool = builder(kind).workers(1).stall_timeout(Duration::from_millis(300)).spawn().unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    let (_, workers) = pool.processes();
    kill(Pid::from_raw(workers[0]), Signal::SIGSTOP).unwrap();
    let start = Instant::now();
    assert_body(&ask(&mut pool, Job::new("echo", b"moved")), b"moved", "a job that never started");
    assert!(start.elapsed() >= Duration::from_millis(300), "never early: {:?}", start.elapsed());
    assert!(!support::is_alive(workers[0]));
    assert_eq!(pool.stats().respawns, 1);
}

fn a_stopped_worker_in_a_job_times_out(kind: TransportKind) {
    let timeout = Duration::from_millis(300);
    let mut pool = builder(kind).workers(1).timeout(timeout).spawn().unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    let (_, workers) = pool.processes();
    let start = Instant::now();
    let stop = format!("signal {}", libc::SIGSTOP);
    assert_eq!(ask(&mut pool, Job::new("fault", stop.as_bytes())), Outcome::TimedOut { after: timeout });
    assert!(start.elapsed() >= timeout, "never early: {:?}", start.elapsed());
    assert!(!support::is_alive(workers[0]));
    assert_body(&ask(&mut pool, Job::new("echo", b"next")), b"next", "the next job");
}

// ---- backpressure ----

fn nobody_reads_and_memory_stays_bounded(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    let body = filled(100_000);
    // Submitted and never taken: the pool must stop admitting, long before it holds 4 GB.
    let (mut count, mut refused) = (0u64, 0);
    let deadline = Instant::now() + PATIENCE;
    while refused < 200 && Instant::now() < deadline {
        match pool.try_submit(Job::new("echo", &body).tag(count)) {
            Ok(_) => (count, refused) = (count + 1, 0),
            Err(TrySubmitError::Full(job)) => {
                assert_eq!(job, Job::new("echo", &body).tag(count), "the job comes back");
                refused += 1;
                pool.flush().unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(refused, 200, "the pool is full");
    assert!(count < 2000, "{count} jobs of 100 kB");
    let held = support::vm_hwm(std::process::id() as i32).unwrap();
    assert!(held < 200 << 20, "{held} bytes");
    // Workers wait for room and are not killed for it; everything is there once somebody reads.
    let mut seen = vec![0u8; count as usize];
    pool.drain(|done, _| {
        assert!(done.outcome == Outcome::Done(&body[..]), "{}", done.outcome);
        seen[done.tag as usize] += 1;
    })
    .unwrap();
    assert!(seen.iter().all(|n| *n == 1));
    assert_eq!(pool.stats().respawns, 0);
}

/// A worker that waits for room is not idle, stalled or late: its deadline stands still.
fn large_results_wait_for_a_slow_reader(kind: TransportKind) {
    let limit = Duration::from_millis(500);
    let mut pool = builder(kind).workers(1).timeout(limit).stall_timeout(limit).spawn().unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    for i in 0..4 {
        pool.submit(Job::new("make", (20 << 20).to_string().as_bytes()).tag(i)).unwrap();
    }
    let mut count = 0;
    while count < 4 {
        // Nobody looks for much longer than every deadline.
        std::thread::sleep(limit * 2);
        pool.poll(Some(PATIENCE), |done, _| {
            match done.outcome {
                Outcome::Done(body) => assert_eq!(body.len(), 20 << 20),
                other => panic!("{other}"),
            }
            count += 1;
        })
        .unwrap();
    }
    assert_eq!(pool.stats().respawns, 0);
}

// ---- the wrap ----

fn counters_cross_their_wrap(kind: TransportKind) {
    for first in [u32::MAX - 1, u32::MAX, u32::MAX - 37] {
        let mut pool = builder(kind).first_seq(first).timeout(Duration::from_secs(30)).spawn().unwrap();
        // The number wraps with the jobs; deaths and recalls move the epoch across.
        let inputs: Vec<String> =
            (0..3000).map(|i| if i % 300 == 299 { "signal 9".into() } else { format!("ok {i}") }).collect();
        let outcomes: Vec<_> = pool.map("fault", &inputs).collect();
        assert_eq!(outcomes.len(), inputs.len());
        for (i, outcome) in outcomes.into_iter().enumerate() {
            match i % 300 {
                299 => assert_eq!(outcome.to_string(), "crashed: signal 9 (SIGKILL)", "job {i}"),
                _ => assert_eq!(outcome, Outcome::Done(inputs[i].clone().into_bytes()), "job {i}"),
            }
        }
        // Each cancellation takes a batch back, and so moves the epoch.
        for _ in 0..100 {
            let tickets: Vec<_> = (0..5).map(|_| pool.submit(Job::new("fault", b"ok")).unwrap()).collect();
            let cancelled = tickets.into_iter().filter(|t| pool.cancel(*t)).count();
            let mut seen = 0;
            while pool.outstanding() > 0 {
                pool.poll(Some(PATIENCE), |done, _| seen += usize::from(!done.outcome.is_done())).unwrap();
            }
            // Of those that ran when they were cancelled, some had finished.
            assert!(seen <= cancelled, "{seen} of {cancelled}");
        }
        assert_eq!(pool.stats().hostile, 0);
    }
}

fn counters_cross_their_wrap_in_large_jobs(kind: TransportKind) {
    let mut pool = builder(kind).workers(1).first_seq(u32::MAX - 2).spawn().unwrap();
    for i in 0..8 {
        let body = filled(400_000 + i);
        assert_body(&ask(&mut pool, Job::new("echo", &body)), &body, "across the wrap");
    }
    let stats = pool.stats();
    assert_eq!((stats.done, stats.respawns, stats.hostile), (8, 0, 0));
}
