//! Receipts: each outcome says where its job's time went and what it used.

use seqpool::{Builder, Completion, Job, Outcome, Pool, Receipt, TransportKind};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

mod support;

fn main() {
    support::main(&support::cases_on_each_transport![
        nobody_gets_one_unasked,
        computing_costs_cpu_time,
        sleeping_costs_waiting,
        memory_costs_faults,
        children_that_were_waited_for_count,
        waiting_for_a_worker_is_queue_wait,
        failures_and_large_replies_have_one,
        a_dead_worker_leaves_no_measurements,
        a_job_that_is_tried_again_has_one,
        thousands_have_one_each,
    ]);
}

/// Bytes of a large reply.
const LARGE: usize = 1 << 20;

fn builder(workers: usize, transport: TransportKind) -> Builder {
    Pool::builder().workers(workers).transport(transport).receipts(true).handler("do", |request, reply| {
        match request.body() {
            b"spin" => {
                let started = Instant::now();
                while started.elapsed() < Duration::from_millis(60) {
                    std::hint::spin_loop();
                }
            }
            b"sleep" => std::thread::sleep(Duration::from_millis(30)),
            b"touch" => {
                // The allocator maps such a size anew each time.
                let mut memory = vec![0u8; 64 << 20];
                memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
                std::hint::black_box(&memory);
            }
            b"child" => {
                let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
                std::process::Command::new("/bin/sh").args(["-c", script]).status()?;
            }
            b"fail" => return Err("as told".into()),
            b"large" => reply.extend_by(LARGE).fill(7),
            b"die" => nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL)?,
            other => reply.extend_from_slice(other),
        }
        Ok(())
    })
}

type Ends = BTreeMap<u64, (Outcome<usize>, Option<Receipt>)>;

fn run(pool: &mut Pool, jobs: &[&str]) -> Ends {
    for (number, job) in jobs.iter().enumerate() {
        pool.submit(Job::new("do", job.as_bytes()).tag(number as u64)).unwrap();
    }
    let mut ends = Ends::new();
    while pool.outstanding() > 0 {
        pool.poll(None, |completion: Completion<'_>, _| {
            let outcome = completion.outcome.clone().map(<[u8]>::len);
            assert!(ends.insert(completion.tag, (outcome, completion.receipt().copied())).is_none());
        })
        .unwrap();
    }
    ends
}

fn one(pool: &mut Pool, job: &str) -> Receipt {
    run(pool, &[job])[&0].1.unwrap_or_else(|| panic!("'{job}' has no receipt"))
}

fn ready(builder: Builder) -> Pool {
    let mut pool = builder.spawn().unwrap();
    assert!(pool.wait_ready(Duration::from_secs(20)).unwrap());
    pool
}

const MS: Duration = Duration::from_millis(1);

fn nobody_gets_one_unasked(transport: TransportKind) {
    let mut pool = ready(builder(1, transport).receipts(false));
    assert!(run(&mut pool, &["x", "fail", "large", "die"]).values().all(|(_, receipt)| receipt.is_none()));
}

fn computing_costs_cpu_time(transport: TransportKind) {
    let mut pool = ready(builder(1, transport));
    let receipt = one(&mut pool, "spin");
    let (run_time, usage) = (receipt.run_time.unwrap(), receipt.usage.unwrap());
    assert!(run_time >= 60 * MS, "{receipt:?}");
    // Others may have had the core for a part of it; the clock of CPU time ticks every few milliseconds.
    assert!(usage.user + usage.system >= 10 * MS && usage.user + usage.system <= run_time + 12 * MS, "{receipt:?}");
    assert!(usage.resident_max_kib > 500, "{receipt:?}");
    let stats = pool.stats();
    assert!(stats.run_us >= 60_000 && stats.cpu_us >= 10_000, "{stats:?}");
}

fn sleeping_costs_waiting(transport: TransportKind) {
    let mut pool = ready(builder(1, transport));
    let receipt = one(&mut pool, "sleep");
    let usage = receipt.usage.unwrap();
    assert!(receipt.run_time.unwrap() >= 30 * MS && usage.user + usage.system < 20 * MS, "{receipt:?}");
    assert!(usage.voluntary_switches >= 1, "{receipt:?}");
    assert!(receipt.started_ns.is_some() && receipt.transfer.is_some(), "{receipt:?}");
}

fn memory_costs_faults(transport: TransportKind) {
    let mut pool = ready(builder(1, transport));
    let usage = one(&mut pool, "touch").usage.unwrap();
    assert!(usage.resident_max_kib >= 64 << 10, "{usage:?}");
    // One for each page, or for each huge page.
    assert!(usage.minor_faults >= 32, "{usage:?}");
    let after = one(&mut pool, "x").usage.unwrap();
    assert!(after.minor_faults < usage.minor_faults && after.resident_max_kib >= 64 << 10, "{after:?}");
}

fn children_that_were_waited_for_count(transport: TransportKind) {
    let mut pool = ready(builder(1, transport));
    let receipt = one(&mut pool, "child");
    let usage = receipt.usage.unwrap();
    assert!(usage.user + usage.system >= 10 * MS, "{receipt:?}");
}

fn waiting_for_a_worker_is_queue_wait(transport: TransportKind) {
    let mut pool = ready(builder(1, transport));
    let start = Instant::now();
    let ends = run(&mut pool, &["sleep"; 8]);
    let took = start.elapsed();
    let receipts: Vec<_> = ends.values().map(|(_, receipt)| receipt.unwrap()).collect();
    let waited = |r: &Receipt| r.queue_wait + r.transfer.unwrap();
    // What this machine had to do besides held them up as well; what they ran is none of it.
    let held_up = took - receipts.iter().map(|r| r.run_time.unwrap()).sum::<Duration>();
    assert!(waited(&receipts[0]) <= held_up, "{:?}, and all of them {took:?}", receipts[0]);
    // Behind seven of 30 ms, in the queue or at its worker.
    assert!(waited(&receipts[7]) + held_up >= 210 * MS, "{:?}, and all of them {took:?}", receipts[7]);
    for pair in receipts.windows(2) {
        assert!(pair[0].started_ns < pair[1].started_ns, "{pair:?}");
    }
}

fn failures_and_large_replies_have_one(transport: TransportKind) {
    let mut pool = ready(builder(2, transport));
    let ends = run(&mut pool, &["fail", "large", "x"]);
    assert!(matches!(ends[&0].0, Outcome::Failed { .. }));
    assert_eq!((&ends[&1].0, &ends[&2].0), (&Outcome::Done(LARGE), &Outcome::Done(1)));
    for (number, (_, receipt)) in &ends {
        let receipt = receipt.unwrap_or_else(|| panic!("job {number}"));
        assert!(receipt.run_time.is_some() && receipt.usage.is_some(), "job {number}: {receipt:?}");
    }
}

fn a_dead_worker_leaves_no_measurements(transport: TransportKind) {
    let mut pool = ready(builder(1, transport));
    let ends = run(&mut pool, &["die", "x"]);
    assert!(matches!(ends[&0].0, Outcome::Crashed(_)));
    let receipt = ends[&0].1.unwrap();
    assert_eq!((receipt.run_time, receipt.usage, receipt.started_ns), (None, None, None));
    assert!(ends[&1].1.unwrap().usage.is_some());
}

fn a_job_that_is_tried_again_has_one(transport: TransportKind) {
    let mut pool = ready(builder(1, transport).retries(2).retry_backoff(20 * MS));
    let ends = run(&mut pool, &["fail"]);
    // The waits between the attempts are waits.
    let receipt = ends[&0].1.unwrap();
    assert!(receipt.queue_wait >= 60 * MS && receipt.usage.is_some(), "{receipt:?}");
}

fn thousands_have_one_each(transport: TransportKind) {
    let mut pool = ready(builder(2, transport));
    let bodies: Vec<_> = (0..5_000).map(|n| n.to_string()).collect();
    let mut seen = 0;
    pool.for_each("do", &bodies, |completion, _| {
        let receipt = completion.receipt().expect("a receipt");
        assert!(receipt.run_time.is_some() && receipt.usage.is_some(), "{receipt:?}");
        seen += 1;
    })
    .unwrap();
    assert_eq!(seen, 5_000);
}
