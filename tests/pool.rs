//! The pool's interface on real processes. What may differ between transports runs on each of them; what each of them
//! owes on the way is in `tests/conformance.rs`.

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seqpool::pool::{Event, Step};
use seqpool::{
    Builder, CrashCause, ErrorKind, Job, Outcome, Pool, Reason, Stats, Ticket, TransportKind, TrySubmitError,
};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::Random;

mod support;

/// How long anything may take that takes no time on a machine with nothing else to do.
const PATIENCE: Duration = Duration::from_secs(20);
const MS: Duration = Duration::from_millis(1);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, program, transport] = arguments.as_slice()
        && flag == "--program"
    {
        let kind = transport.parse().unwrap();
        match program.as_str() {
            "prints" => return program_that_prints(kind),
            "exits" => return program_that_exits(kind),
            "killed" => return program_to_be_killed(kind),
            other => panic!("no program {other}"),
        }
    }
    let each = support::cases_on_each_transport![
        handlers_are_called_by_name_and_by_id,
        headers_arrive_as_they_were_given,
        headers_that_cannot_be_read_back_are_rejected,
        tags_and_tickets_come_back,
        a_slow_first_job_holds_only_the_order,
        a_hundred_thousand_jobs_in_order => 180,
        unordered_outcomes_carry_their_numbers,
        work_behind_a_long_job_moves_while_inputs_come,
        for_each_lends_bodies_and_takes_more_jobs,
        a_full_pool_gives_the_job_back,
        submit_says_when_only_taking_outcomes_helps,
        runs_beside_undelivered_outcomes_end,
        poll_waits_as_long_as_it_is_told,
        waiting_uses_no_processor_time,
        every_state_can_be_cancelled,
        everything_can_be_killed,
        a_draining_pool_takes_no_more,
        forgotten_iterators_leave_nothing,
        a_panicking_callback_loses_nothing,
        a_panicking_callback_in_a_packet_loses_nothing,
        callbacks_submit_jobs_that_submit_jobs,
        set_up_runs_in_each_worker,
        set_up_that_fails_is_named,
        set_up_that_panics_is_named,
        set_up_that_hangs_is_ended,
        a_timeout_ends_its_job_alone,
        a_job_may_have_its_own_timeout,
        waiting_for_a_worker_does_not_count,
        a_result_does_not_wait_for_a_job_that_never_ends,
        jobs_that_end_at_their_deadline_have_one_outcome => 120,
        nice_is_the_workers_alone,
        workers_have_only_their_descriptors,
        drop_under_load_leaves_nothing => 180,
        drop_in_a_forked_child_leaves_the_pool_alone,
        drop_beside_a_forked_child_that_keeps_the_pool_ends_it,
        a_pool_may_move_to_another_thread,
        workers_are_replaced_beside_busy_threads => 120,
        what_workers_print_is_whole => 120,
        handlers_may_exit => 120,
        counts_add_up,
        steps_come_in_order_and_in_time,
        steps_of_jobs_that_move_come_in_order,
        an_outer_poll_never_misses_anything => 180,
        an_outer_edge_triggered_epoll_never_misses_anything => 180,
        an_outer_loop_hears_of_refusals_and_deadlines,
        an_outer_loop_hears_of_what_a_panic_left,
        an_idle_pool_sleeps,
        ten_thousand_jobs_with_faults => 240,
        the_hosts_children_are_its_own,
        nobody_outlives_a_killed_host,
        leftovers_of_a_dead_worker_are_killed,
        a_handler_that_forks_runs_no_job_twice,
    ];
    let once = support::cases![
        a_salvaged_result_beats_a_timeout,
        a_stall_moves_jobs_without_blame,
        other_threads_are_refused,
        settings_that_cannot_work_are_refused,
        the_nursery_may_die,
    ];
    support::main(&[&each[..], &once[..]].concat());
}

// ---- the handlers of most cases ----

fn builder(kind: TransportKind) -> Builder {
    Pool::builder()
        .workers(2)
        .transport(kind)
        .handler("echo", |request, reply| {
            reply.extend_from_slice(request.body());
            Ok(())
        })
        .handler("upper", |request, reply| {
            reply.extend_from_slice(&request.body().to_ascii_uppercase());
            Ok(())
        })
        .handler("pid", |_, reply| Ok(write!(reply, "{}", std::process::id())?))
        .handler("fault", |request, reply| {
            fault(std::str::from_utf8(request.body())?)?;
            reply.extend_from_slice(request.body());
            Ok(())
        })
}

fn fault(text: &str) -> Result<(), Box<dyn std::error::Error>> {
    let (what, how) = text.split_once(' ').unwrap_or((text, ""));
    match what {
        "ok" => {}
        "exit" => std::process::exit(how.parse()?),
        "signal" => kill(Pid::this(), Signal::try_from(how.parse::<i32>()?)?)?,
        "panic" => panic!("{how}"),
        "error" => return Err(how.into()),
        "sleep" => std::thread::sleep(Duration::from_millis(how.parse()?)),
        "hang" => loop {
            std::thread::sleep(Duration::from_secs(1000));
        },
        other => return Err(format!("no fault {other}").into()),
    }
    Ok(())
}

/// A pipe by which handlers tell the host that they have started. Small writes are whole: `pipe(7)`.
struct Starts {
    read: std::fs::File,
    write: OwnedFd,
}

impl Starts {
    fn new() -> Self {
        let (read, write) = nix::unistd::pipe().unwrap();
        Self { read: read.into(), write }
    }

    /// A handler `name` that tells its body's first byte and the time, then does what the rest says.
    fn handler(&self, builder: Builder, name: &str) -> Builder {
        let fd = self.write.as_raw_fd();
        builder.keep_fd(self.write.as_fd()).handler(name, move |request, reply| {
            let body = request.body();
            let mut record = [0; 16];
            record[0] = body[0];
            record[8..].copy_from_slice(&now_ns().to_le_bytes());
            // SAFETY: write(2) reads 16 live bytes; the descriptor was kept open by `keep_fd`.
            assert_eq!(unsafe { libc::write(fd, record.as_ptr().cast(), 16) }, 16);
            fault(std::str::from_utf8(&body[1..])?)?;
            reply.extend_from_slice(body);
            Ok(())
        })
    }

    /// Waits for the next start: which job, and when.
    fn next(&mut self) -> (u8, u64) {
        let mut record = [0; 16];
        self.read.read_exact(&mut record).unwrap();
        (record[0], u64::from_le_bytes(record[8..].try_into().unwrap()))
    }
}

/// The monotonic clock, the same in all processes.
fn now_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one timespec, alive here.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) }, 0);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

fn me() -> i32 {
    std::process::id() as i32
}

type Outcomes = HashMap<Ticket, Outcome<Vec<u8>>>;

/// Polls until nothing is outstanding. Every outcome once.
#[track_caller]
fn take_all(pool: &mut Pool) -> Outcomes {
    let mut outcomes = Outcomes::new();
    let start = Instant::now();
    while pool.outstanding() > 0 {
        assert!(start.elapsed() < PATIENCE * 2, "{} outstanding", pool.outstanding());
        pool.poll(Some(PATIENCE), |done, _| {
            let twice = outcomes.insert(done.ticket, done.outcome.map(<[u8]>::to_vec));
            assert_eq!(twice, None);
        })
        .unwrap();
    }
    outcomes
}

#[track_caller]
fn ask(pool: &mut Pool, job: Job<'_>) -> Outcome<Vec<u8>> {
    let ticket = pool.submit(job).unwrap();
    let mut outcomes = take_all(pool);
    let outcome = outcomes.remove(&ticket).expect("an outcome");
    assert!(outcomes.is_empty(), "{outcomes:?}");
    outcome
}

fn done(body: &[u8]) -> Outcome<Vec<u8>> {
    Outcome::Done(body.to_vec())
}

/// Runs `f` without what a panic prints.
fn quietly<R>(f: impl FnOnce() -> R) -> std::thread::Result<R> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(f));
    std::panic::set_hook(hook);
    result
}

// ---- handlers, headers, tags ----

fn handlers_are_called_by_name_and_by_id(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    assert_eq!(pool.workers(), 2);
    let upper = pool.handler_id("upper").unwrap();
    assert_eq!(pool.handler_id("lower"), None);
    assert_eq!(ask(&mut pool, Job::new("echo", b"a")), done(b"a"));
    assert_eq!(ask(&mut pool, Job::new("upper", b"a")), done(b"A"));
    assert_eq!(ask(&mut pool, Job::new(upper, b"b")), done(b"B"));
    assert_eq!(ask(&mut pool, Job::new(&String::from("upper"), b"c")), done(b"C"));
    let unknown = ask(&mut pool, Job::new("lower", b"a"));
    assert_eq!(unknown, Outcome::Rejected { reason: Reason::UnknownHandler("lower".into()) });
    assert_eq!(unknown.to_string(), "rejected: unknown handler 'lower'");
    // An id of another pool, which has more handlers.
    let other = builder(kind).handler("more", |_, _| Ok(())).spawn().unwrap();
    let more = other.handler_id("more").unwrap();
    assert!(matches!(ask(&mut pool, Job::new(more, b"")), Outcome::Rejected { reason: Reason::UnknownHandler(_) }));
    assert_eq!(pool.map("lower", ["x", "y"]).filter(|o| matches!(o, Outcome::Rejected { .. })).count(), 2);
}

fn headers_arrive_as_they_were_given(kind: TransportKind) {
    let mut pool = Pool::builder()
        .workers(1)
        .transport(kind)
        .handler("show", |request, reply| {
            for (key, value) in request.headers() {
                write!(reply, "{}={};", String::from_utf8_lossy(key), String::from_utf8_lossy(value))?;
            }
            let get = |key| request.header(key).map(String::from_utf8_lossy);
            write!(reply, "|b:{:?} empty:{:?} none:{:?}|{}|", get("b"), get("empty"), get("none"), request.handler())?;
            reply.extend_from_slice(request.body());
            Ok(())
        })
        .spawn()
        .unwrap();
    let job = Job::new("show", b"body\nk:v\n")
        .header("b", "2")
        .header("a", "1")
        .header("empty", "")
        .header("b", "3")
        .header("url", "http://x:80/ ")
        .header("bytes", [0xff, 0, b'\r']);
    let expected = "b=2;a=1;empty=;b=3;url=http://x:80/ ;bytes=\u{fffd}\0\r;|b:Some(\"2\") empty:Some(\"\") none:None|show|body\nk:v\n";
    assert_eq!(ask(&mut pool, job).map(|b| String::from_utf8(b).unwrap()), Outcome::Done(expected.to_string()));
    // None at all, after a job that had some.
    let expected = "|b:None empty:None none:None|show|";
    assert_eq!(ask(&mut pool, Job::new("show", b"")), done(expected.as_bytes()));
}

fn headers_that_cannot_be_read_back_are_rejected(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    for (key, value) in [("", "v"), ("a:b", "v"), ("a\nb", "v"), ("a", "v\nw")] {
        // A good one after it does not make it good.
        let outcome = ask(&mut pool, Job::new("echo", b"x").header(key, value).header("good", "1"));
        assert_eq!(outcome, Outcome::Rejected { reason: Reason::BadHeader }, "{key:?} {value:?}");
    }
    let limit = seqpool::limits::HEADER_BLOCK_SIZE_MAX;
    let fits = "v".repeat(limit - 3);
    assert_eq!(ask(&mut pool, Job::new("echo", b"x").header("k", &fits)), done(b"x"));
    let outcome = ask(&mut pool, Job::new("echo", b"x").header("kk", &fits));
    let reason = Reason::HeadersTooLarge { size: limit as u64 + 1, limit: limit as u64 };
    assert_eq!(outcome, Outcome::Rejected { reason });
}

fn tags_and_tickets_come_back(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    let mut expected = BTreeMap::new();
    let mut tickets = HashMap::new();
    for tag in [0, 7, 7, u64::MAX, 1] {
        let ticket = pool.submit(Job::new("echo", b"").tag(tag)).unwrap();
        assert_eq!(tickets.insert(ticket, tag), None, "tickets differ");
        *expected.entry(tag).or_insert(0) += 1;
    }
    assert_eq!(pool.outstanding(), 5);
    let mut found = BTreeMap::new();
    while pool.outstanding() > 0 {
        pool.poll(None, |done, _| {
            assert_eq!(tickets.remove(&done.ticket), Some(done.tag));
            assert!(done.worker().is_some_and(|w| w < 2));
            assert!(done.run_time().is_some_and(|t| t < PATIENCE));
            *found.entry(done.tag).or_insert(0) += 1;
        })
        .unwrap();
    }
    assert_eq!(found, expected);
}

// ---- whole runs ----

fn a_slow_first_job_holds_only_the_order(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    let inputs: Vec<_> = (0..2000).map(|i| if i == 0 { "sleep 300".to_owned() } else { format!("ok {i}") }).collect();
    let mut outcomes = pool.map("fault", &inputs);
    assert_eq!(outcomes.next(), Some(done(b"sleep 300")));
    let start = Instant::now();
    for input in &inputs[1..] {
        assert_eq!(outcomes.next(), Some(done(input.as_bytes())));
    }
    assert_eq!(outcomes.next(), None);
    assert_eq!(outcomes.next(), None, "and so on");
    drop(outcomes);
    if kind == TransportKind::Seqpacket {
        // They ran beside the first one.
        assert!(start.elapsed() < Duration::from_millis(250), "{:?}", start.elapsed());
    }
}

fn a_hundred_thousand_jobs_in_order(kind: TransportKind) {
    let count = if kind == TransportKind::Blocking { 10_000 } else { 100_000 };
    let mut pool = builder(kind).spawn().unwrap();
    let inputs = (0..count).map(|i| format!("job {i}"));
    let mut next = 0;
    for outcome in pool.map("upper", inputs) {
        assert_eq!(outcome, done(format!("JOB {next}").as_bytes()));
        next += 1;
    }
    assert_eq!(next, count);
    assert_eq!(pool.map("upper", [""; 0]).next(), None, "no input, no outcome");
}

fn unordered_outcomes_carry_their_numbers(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    let inputs: Vec<_> = (0..5000).map(|i| if i == 0 { "sleep 50".to_owned() } else { format!("ok {i}") }).collect();
    let mut seen = vec![0; inputs.len()];
    let mut first = None;
    for (number, outcome) in pool.unordered("fault", &inputs) {
        first.get_or_insert(number);
        assert_eq!(outcome, done(inputs[number as usize].as_bytes()));
        seen[number as usize] += 1;
    }
    assert!(seen.iter().all(|n| *n == 1));
    if kind == TransportKind::Seqpacket {
        assert_ne!(first, Some(0), "the slow one is not waited for");
    }
}

fn work_behind_a_long_job_moves_while_inputs_come(kind: TransportKind) {
    if kind == TransportKind::Blocking {
        // Its host waits for the long job.
        return;
    }
    let mut pool = builder(kind).spawn().unwrap();
    // Known to be quick, so that much is sent ahead.
    assert_eq!(pool.map("fault", (0..5000).map(|i| format!("ok {i}"))).filter(Outcome::is_done).count(), 5000);
    for pause in [0, 1] {
        let (mut done_before, long_ended) = (0, std::cell::Cell::new(false));
        // Inputs go on until the long job has ended.
        let mut number = 0u64;
        let inputs = std::iter::from_fn(|| {
            number += 1;
            if number > 400 {
                std::thread::sleep(pause * MS);
            }
            let text = if number == 1 { "sleep 1500".to_owned() } else { format!("ok {number}") };
            (!long_ended.get() || number <= 400).then_some(text)
        });
        pool.for_each("fault", inputs, |c, _| {
            assert!(c.outcome.is_done(), "{}", c.outcome);
            if c.tag == 0 {
                long_ended.set(true);
            }
            done_before += u64::from(c.tag < 400 && !long_ended.get());
        })
        .unwrap();
        assert_eq!(done_before, 399, "with a pause of {pause} ms");
    }
}

fn for_each_lends_bodies_and_takes_more_jobs(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    let mut sum = 0u64;
    let mut extra = 0;
    pool.for_each("echo", (0..1000u64).map(|i| i.to_le_bytes()), |done, submitter| {
        let Outcome::Done(body) = done.outcome else { panic!("{}", done.outcome) };
        if body.len() == 8 {
            assert_eq!(u64::from_le_bytes(body.try_into().unwrap()), done.tag);
            sum += done.tag;
            // What the callback submits comes back to it.
            submitter.try_submit(Job::new("upper", b"extra").tag(done.tag)).unwrap();
        } else {
            assert_eq!(body, b"EXTRA");
            extra += 1;
        }
    })
    .unwrap();
    assert_eq!((sum, extra), (999 * 1000 / 2, 1000));
    assert_eq!(pool.outstanding(), 0);
}

// ---- submit, try_submit, poll ----

fn a_full_pool_gives_the_job_back(kind: TransportKind) {
    let mut pool = builder(kind).queue_jobs_max(5).spawn().unwrap();
    for i in 0..5 {
        pool.try_submit(Job::new("fault", b"sleep 20").tag(i)).unwrap();
    }
    let job = || Job::new("upper", b"again").header("k", "v").tag(99).timeout(PATIENCE);
    let refused = pool.try_submit(job()).unwrap_err();
    assert_eq!(refused, TrySubmitError::Full(job()));
    assert_eq!(refused.into_job(), job());
    assert_eq!((pool.outstanding(), pool.stats().jobs), (5, 5), "a refused job does not count");
    assert!(pool.poll(None, |_, _| {}).unwrap() > 0);
    let ticket = pool.try_submit(job()).unwrap();
    assert_eq!(take_all(&mut pool)[&ticket], done(b"AGAIN"));
}

fn submit_says_when_only_taking_outcomes_helps(kind: TransportKind) {
    let mut pool = builder(kind).queue_jobs_max(3).spawn().unwrap();
    let tickets: Vec<_> = (0..3).map(|_| pool.submit(Job::new("fault", b"sleep 30")).unwrap()).collect();
    let error = pool.submit(Job::new("echo", b"one too many")).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Undelivered);
    assert!(error.to_string().contains("poll"), "{error}");
    let outcomes = take_all(&mut pool);
    assert_eq!(outcomes.len(), 3);
    assert!(tickets.iter().all(|t| outcomes[t] == done(b"sleep 30")));
    assert_eq!(ask(&mut pool, Job::new("echo", b"fits again")), done(b"fits again"));
}

/// Single jobs whose outcomes nobody takes must not make a run spin, hang, or lose inputs.
fn runs_beside_undelivered_outcomes_end(kind: TransportKind) {
    let mut pool = builder(kind).queue_jobs_max(8).spawn().unwrap();
    let tickets: Vec<_> = (0..4).map(|_| pool.submit(Job::new("echo", b"single")).unwrap()).collect();
    for round in 0..3 {
        let inputs: Vec<_> = (0..50).map(|i| format!("{round} {i}")).collect();
        let outcomes: Vec<_> = pool.map("echo", &inputs).collect();
        assert!(outcomes.iter().zip(&inputs).all(|(o, i)| *o == done(i.as_bytes())));
        assert_eq!(pool.unordered("echo", &inputs).count(), 50);
        let mut count = 0;
        pool.for_each("echo", &inputs, |_, _| count += 1).unwrap();
        assert_eq!((outcomes.len(), count), (50, 50));
    }
    let outcomes = take_all(&mut pool);
    assert_eq!(outcomes.len(), 4);
    assert!(tickets.iter().all(|t| outcomes[t] == done(b"single")));
    // Full of outcomes that only `poll` takes: a run cannot begin, and says so.
    let single = || Job::new("echo", b"single");
    assert!((0..8).all(|_| pool.submit(single()).is_ok()));
    let outcomes: Vec<_> = pool.map("echo", ["a", "b"]).collect();
    assert_eq!(outcomes.len(), 2, "every input has an outcome");
    let refused = Outcome::Rejected { reason: Reason::NoRoom };
    for outcome in outcomes {
        assert_eq!(outcome, refused);
        assert!(outcome.retryable());
    }
    assert_eq!(pool.unordered("echo", ["a", "b"]).filter(|(_, o)| *o == refused).count(), 2);
    let mut count = 0;
    pool.for_each("echo", ["a", "b"], |done, _| {
        assert_eq!(done.outcome, Outcome::Rejected { reason: Reason::NoRoom });
        count += 1;
    })
    .unwrap();
    assert_eq!(count, 2);
    assert_eq!(take_all(&mut pool).len(), 8);
    assert_eq!(pool.map("echo", ["a", "b"]).filter(Outcome::is_done).count(), 2);
}

fn poll_waits_as_long_as_it_is_told(kind: TransportKind) {
    let mut pool = builder(kind).workers(1).spawn().unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    // Nothing outstanding.
    let start = Instant::now();
    assert_eq!(pool.poll(None, |_, _| panic!("nothing was submitted")).unwrap(), 0);
    assert!(start.elapsed() < PATIENCE / 2);
    let start = Instant::now();
    assert_eq!(pool.poll(Some(50 * MS), |_, _| panic!("nothing was submitted")).unwrap(), 0);
    assert!(start.elapsed() >= 50 * MS, "never early: {:?}", start.elapsed());
    // A job in hand.
    pool.submit(Job::new("fault", b"sleep 700")).unwrap();
    let start = Instant::now();
    let before = support::context_switches(me()).voluntary;
    for _ in 0..100 {
        assert_eq!(pool.poll(Some(Duration::ZERO), |_, _| {}).unwrap(), 0);
    }
    let slept = support::context_switches(me()).voluntary - before;
    assert!(start.elapsed() >= 600 * MS || slept <= 5, "slept {slept} times in 100 polls of zero");
    let start = Instant::now();
    assert_eq!(pool.poll(Some(50 * MS), |_, _| {}).unwrap(), 0);
    assert!(start.elapsed() >= 50 * MS, "never early: {:?}", start.elapsed());
    // Returns with the outcome, not with the timeout.
    let start = Instant::now();
    assert_eq!(pool.poll(Some(PATIENCE * 100), |_, _| {}).unwrap(), 1);
    assert!(start.elapsed() < PATIENCE);
    assert_eq!(pool.poll(None, |_, _| {}).unwrap(), 0);
    // A time beyond all clocks.
    pool.submit(Job::new("echo", b"")).unwrap();
    assert_eq!(pool.poll(Some(Duration::MAX), |_, _| {}).unwrap(), 1);
}

fn waiting_uses_no_processor_time(kind: TransportKind) {
    let mut pool = builder(kind).queue_jobs_max(2).spawn().unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    // One outcome waits to be taken, one job runs: neither a submit nor a run may spin meanwhile.
    pool.submit(Job::new("echo", b"")).unwrap();
    pool.submit(Job::new("fault", b"sleep 1000")).unwrap();
    let (start, before) = (Instant::now(), support::cpu_time(me()).unwrap());
    assert_eq!(*pool.submit(Job::new("echo", b"")).unwrap_err().kind(), ErrorKind::Undelivered);
    let outcomes = take_all(&mut pool);
    assert_eq!(outcomes.len(), 2);
    assert!(start.elapsed() >= 900 * MS);
    let used = support::cpu_time(me()).unwrap() - before;
    assert!(used < 300 * MS, "used {used:?} while it waited");

    pool.submit(Job::new("echo", b"")).unwrap();
    let (start, before) = (Instant::now(), support::cpu_time(me()).unwrap());
    assert_eq!(pool.map("fault", ["sleep 500", "sleep 500"]).filter(Outcome::is_done).count(), 2);
    assert!(start.elapsed() >= 900 * MS);
    let used = support::cpu_time(me()).unwrap() - before;
    assert!(used < 300 * MS, "used {used:?} while it waited");
    assert_eq!(take_all(&mut pool).len(), 1);
}

// ---- cancel, drain, forget ----

fn every_state_can_be_cancelled(kind: TransportKind) {
    let mut starts = Starts::new();
    let mut pool = starts.handler(builder(kind).workers(1), "hang").spawn().unwrap();
    // Over and delivered.
    let finished = pool.submit(Job::new("echo", b"over")).unwrap();
    assert_eq!(take_all(&mut pool), Outcomes::from([(finished, done(b"over"))]));
    assert!(!pool.cancel(finished), "it is over");
    let running = pool.submit(Job::new("hang", b"1hang")).unwrap();
    let waiting: Vec<_> = (0..20).map(|_| pool.submit(Job::new("hang", b"2hang")).unwrap()).collect();
    let large_body = vec![0; 1 << 20];
    let large = pool.submit(Job::new("echo", &large_body)).unwrap();
    let last = pool.submit(Job::new("echo", b"last")).unwrap();
    pool.flush().unwrap();
    let mut outcomes = Outcomes::new();
    let mut take = |pool: &mut Pool, timeout| {
        pool.poll(timeout, |done, _| {
            let twice = outcomes.insert(done.ticket, done.outcome.map(<[u8]>::to_vec));
            assert_eq!(twice, None);
        })
        .unwrap()
    };
    assert_eq!(starts.next().0, b'1');
    // From the last to the first: queued, sent, large.
    for ticket in waiting.iter().rev().chain([&large]) {
        assert!(pool.cancel(*ticket));
        assert!(!pool.cancel(*ticket), "it is over");
    }
    assert_eq!(pool.outstanding(), 23, "their outcomes still come");
    while take(&mut pool, Some(Duration::ZERO)) > 0 {}
    assert_eq!(pool.outstanding(), 2);
    assert!(pool.cancel(running));
    assert!(!pool.cancel(running), "its worker is being killed already");
    while pool.outstanding() > 0 {
        take(&mut pool, None);
    }
    assert_eq!(outcomes.len(), 23);
    assert_eq!(outcomes[&last], done(b"last"), "the rest is unharmed");
    for ticket in waiting.iter().chain([&running, &large]) {
        assert!(matches!(outcomes[ticket], Outcome::Cancelled { .. }), "{}", outcomes[ticket]);
        assert!(!pool.cancel(*ticket));
    }
    let stats = pool.stats();
    assert_eq!((stats.cancelled, stats.done, stats.respawns), (22, 2, 1));
    // Nobody else started.
    drop(pool);
    drop(starts.write);
    let mut rest = Vec::new();
    starts.read.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{rest:?}");
}

fn everything_can_be_killed(kind: TransportKind) {
    let mut starts = Starts::new();
    let mut pool = starts.handler(builder(kind), "hang").spawn().unwrap();
    let tickets: Vec<_> = (0..200).map(|_| pool.submit(Job::new("hang", b"xhang")).unwrap()).collect();
    pool.flush().unwrap();
    starts.next();
    starts.next();
    let start = Instant::now();
    pool.kill_all();
    let outcomes = take_all(&mut pool);
    assert!(start.elapsed() < PATIENCE);
    assert_eq!(outcomes.len(), 200);
    assert!(tickets.iter().all(|t| matches!(&outcomes[t], Outcome::Cancelled { .. })));
    // The pool itself goes on.
    assert_eq!(ask(&mut pool, Job::new("echo", b"again")), done(b"again"));
    pool.kill_all();
    assert_eq!(pool.outstanding(), 0);
}

fn a_draining_pool_takes_no_more(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    for i in 0..100 {
        pool.submit(Job::new("echo", b"x").tag(i)).unwrap();
    }
    let mut count = 0;
    pool.drain(|done, submitter| {
        assert!(done.outcome.is_done());
        count += 1;
        let refused = submitter.try_submit(Job::new("echo", b"y").tag(done.tag));
        assert_eq!(refused, Err(TrySubmitError::Draining(Job::new("echo", b"y").tag(done.tag))));
    })
    .unwrap();
    assert_eq!((count, pool.outstanding()), (100, 0));
    assert_eq!(*pool.submit(Job::new("echo", b"z")).unwrap_err().kind(), ErrorKind::Draining);
    assert_eq!(pool.try_submit(Job::new("echo", b"z")), Err(TrySubmitError::Draining(Job::new("echo", b"z"))));
    let mut refused = 0;
    pool.for_each("echo", ["z"], |done, _| {
        assert_eq!(done.outcome, Outcome::Rejected { reason: Reason::Draining });
        refused += 1;
    })
    .unwrap();
    assert_eq!(refused, 1);
    // Every input of a run has its outcome, also here.
    let outcomes: Vec<_> = pool.map("echo", ["a", "b", "c"]).collect();
    assert_eq!(outcomes.len(), 3);
    for outcome in outcomes {
        assert_eq!(outcome, Outcome::Rejected { reason: Reason::Draining });
    }
    let mut numbers: Vec<_> = pool.unordered("echo", ["a", "b", "c"]).map(|(number, _)| number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2]);
    assert_eq!(pool.stats().done, 100);
    pool.drain(|_, _| panic!("nothing is left")).unwrap();
}

fn forgotten_iterators_leave_nothing(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    let single = pool.submit(Job::new("fault", b"sleep 5")).unwrap();
    for round in 0..10 {
        let inputs = (0..).map(|i| match i % 50 {
            0 => "signal 9".to_owned(),
            1 => "error here".to_owned(),
            _ => format!("ok {round}"),
        });
        let mut outcomes = pool.map("fault", inputs.clone());
        assert!(outcomes.next().is_some());
        assert!(outcomes.next().is_some());
        match round % 2 {
            0 => drop(outcomes),
            _ => std::mem::forget(outcomes),
        }
        let mut outcomes = pool.unordered("fault", inputs);
        assert!(outcomes.next().is_some());
        match round % 2 {
            1 => drop(outcomes),
            _ => std::mem::forget(outcomes),
        }
        // The next run sees its own and nothing else.
        let inputs: Vec<_> = (0..20).map(|i| format!("ok {round} {i}")).collect();
        let outcomes: Vec<_> = pool.map("fault", &inputs).collect();
        assert_eq!(outcomes.len(), 20);
        assert!(outcomes.iter().zip(&inputs).all(|(o, i)| *o == done(i.as_bytes())));
    }
    // Nor does poll: what was left of the last run is gone, what was submitted by itself is not.
    let mut outcomes = pool.map("fault", ["signal 9"; 40]);
    assert!(outcomes.next().is_some());
    drop(outcomes);
    let mine = pool.submit(Job::new("echo", b"mine")).unwrap();
    let outcomes = take_all(&mut pool);
    assert_eq!(outcomes, Outcomes::from([(single, done(b"sleep 5")), (mine, done(b"mine"))]));
    assert_eq!(pool.poll(None, |_, _| panic!("nothing is left")).unwrap(), 0);
    assert_eq!(pool.outstanding(), 0);
}

// ---- panicking callbacks, recursion ----

fn a_panicking_callback_loses_nothing(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    for i in 0..300 {
        // Some are over before they begin: those are delivered another way.
        let name = if i % 5 == 0 { "unknown" } else { "echo" };
        pool.submit(Job::new(name, b"x").tag(i)).unwrap();
    }
    let mut seen = [0; 300];
    let mut panics = 0;
    while pool.outstanding() > 0 {
        let result = quietly(|| {
            pool.poll(Some(PATIENCE), |done, _| {
                seen[done.tag as usize] += 1;
                assert!(done.tag % 3 != 0, "every third");
            })
        });
        panics += u32::from(result.is_err());
    }
    assert_eq!(seen, [1; 300], "each exactly once");
    assert_eq!(panics, 100);
    assert_eq!(ask(&mut pool, Job::new("echo", b"goes on")), done(b"goes on"));
}

fn a_panicking_callback_in_a_packet_loses_nothing(kind: TransportKind) {
    let mut pool = builder(kind).workers(1).spawn().unwrap();
    assert_eq!(pool.map("fault", (0..1000).map(|i| format!("ok {i}"))).filter(Outcome::is_done).count(), 1000);
    // Small and known to be quick: their results come in one packet.
    pool.submit(Job::new("fault", b"sleep 30").tag(100)).unwrap();
    for i in 0..100 {
        pool.submit(Job::new("fault", b"ok").tag(i)).unwrap();
    }
    let before = pool.stats().packets_received;
    let mut seen = [0; 101];
    while pool.outstanding() > 0 {
        let result = quietly(|| {
            pool.poll(Some(PATIENCE), |done, _| {
                seen[done.tag as usize] += 1;
                panic!("each time");
            })
        });
        assert!(result.is_err());
    }
    assert_eq!(seen, [1; 101], "each exactly once");
    let packets = pool.stats().packets_received - before;
    if kind == TransportKind::Seqpacket {
        assert!(packets < 50, "{packets} packets");
    }
    // In a run: the panic ends it, and nothing of it is left.
    let result = quietly(|| pool.for_each("fault", ["ok"; 100], |_, _| panic!("at the first")));
    assert!(result.is_err());
    let mut count = 0;
    pool.for_each("echo", ["mine"; 100], |done, _| {
        assert_eq!(done.outcome, Outcome::Done(&b"mine"[..]));
        count += 1;
    })
    .unwrap();
    assert_eq!((count, pool.outstanding()), (100, 0));
}

fn callbacks_submit_jobs_that_submit_jobs(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    pool.submit(Job::new("echo", b"tree").tag(12)).unwrap();
    let mut count = 0u32;
    while pool.outstanding() > 0 {
        pool.poll(None, |done, submitter| {
            assert_eq!(done.outcome, Outcome::Done(&b"tree"[..]));
            count += 1;
            for _ in 0..2 * u32::from(done.tag > 0) {
                submitter.try_submit(Job::new("echo", b"tree").tag(done.tag - 1)).unwrap();
            }
        })
        .unwrap();
    }
    assert_eq!(count, (1 << 13) - 1, "a binary tree of jobs");
    // Refusals are delivered as well, and one that answers each with another does not keep poll for ever.
    pool.submit(Job::new("unknown", b"")).unwrap();
    let mut refusals = 0;
    for _ in 0..10 {
        pool.poll(None, |done, submitter| {
            assert!(matches!(done.outcome, Outcome::Rejected { .. }));
            refusals += 1;
            submitter.try_submit(Job::new("unknown", b"")).unwrap();
        })
        .unwrap();
    }
    assert!(refusals >= 10);
    assert_eq!(pool.outstanding(), 1);
    take_all(&mut pool);
}

// ---- set-up ----

fn set_up_runs_in_each_worker(kind: TransportKind) {
    static PREPARED: AtomicU32 = AtomicU32::new(0);
    let host = me();
    let mut pool = Pool::builder()
        .workers(3)
        .transport(kind)
        .on_start(move || {
            assert_ne!(me(), host);
            PREPARED.store(6, Ordering::Relaxed);
            Ok(())
        })
        .on_start(|| {
            PREPARED.store(PREPARED.load(Ordering::Relaxed) * 7, Ordering::Relaxed);
            Ok(())
        })
        .handler("get", |request, reply| {
            let text = std::str::from_utf8(request.body())?;
            fault(text)?;
            Ok(write!(reply, "{}", PREPARED.load(Ordering::Relaxed))?)
        })
        .spawn()
        .unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    assert_eq!(pool.processes().1.len(), 3);
    // In those that come later too.
    for _ in 0..5 {
        assert!(pool.map("get", ["sleep 5"; 6]).all(|o| o == done(b"42")));
        assert!(pool.map("get", ["signal 9"; 3]).all(|o| matches!(o, Outcome::Crashed(_))));
    }
    assert_eq!(PREPARED.load(Ordering::Relaxed), 0, "not in the host");
}

#[track_caller]
fn check_failing_set_up(builder: Builder, texts: &[&str]) {
    let start = Instant::now();
    let mut pool = builder.spawn().unwrap();
    // Submitted before anybody can know.
    let large = vec![0; 1 << 20];
    let mut tickets: Vec<_> = (0..50).map(|_| pool.submit(Job::new("echo", b"x")).unwrap()).collect();
    tickets.push(pool.submit(Job::new("echo", &large)).unwrap());
    let outcomes = take_all(&mut pool);
    assert_eq!(outcomes.len(), 51);
    let check = |outcome: &Outcome<Vec<u8>>| {
        let Outcome::Rejected { reason: Reason::NoWorkers(why) } = outcome else { panic!("{outcome}") };
        assert!(texts.iter().all(|text| why.contains(text)), "{why}");
        assert!(outcome.retryable());
    };
    tickets.iter().for_each(|ticket| check(&outcomes[ticket]));
    // And after.
    check(&ask(&mut pool, Job::new("echo", b"late")));
    pool.map("echo", ["late"]).for_each(|outcome| check(&outcome));
    assert!(!pool.wait_ready(PATIENCE).unwrap());
    assert_eq!(pool.processes().1, [0; 0]);
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    assert_eq!(pool.stats().done, 0);
}

fn set_up_that_fails_is_named(kind: TransportKind) {
    check_failing_set_up(builder(kind).on_start(|| Err("no licence key".into())), &["no licence key"]);
}

fn set_up_that_panics_is_named(kind: TransportKind) {
    check_failing_set_up(builder(kind).on_start(|| panic!("boiler exploded")), &["panicked", "boiler exploded"]);
}

fn set_up_that_hangs_is_ended(kind: TransportKind) {
    let hangs = builder(kind).workers(1).on_start(|| fault("hang")).spawn_timeout(100 * MS);
    check_failing_set_up(hangs, &["set-up"]);
}

// ---- time ----

/// Late at most by this, on a machine whose cores are shared.
const LATE: Duration = Duration::from_secs(3);

fn a_timeout_ends_its_job_alone(kind: TransportKind) {
    let timeout = 250 * MS;
    let mut starts = Starts::new();
    let mut pool = starts.handler(builder(kind).timeout(timeout), "do").spawn().unwrap();
    let inputs: Vec<_> = (0..60).map(|i| if i % 20 == 7 { "!hang".to_owned() } else { format!(".ok {i}") }).collect();
    let tickets: Vec<_> = inputs.iter().map(|i| pool.submit(Job::new("do", i.as_bytes())).unwrap()).collect();
    let mut outcomes = HashMap::new();
    while pool.outstanding() > 0 {
        pool.poll(Some(PATIENCE), |done, _| {
            outcomes.insert(done.ticket, (done.outcome.map(<[u8]>::to_vec), now_ns()));
        })
        .unwrap();
    }
    let mut hung: Vec<u64> = Vec::new();
    for (ticket, input) in tickets.iter().zip(&inputs) {
        match (&outcomes[ticket], input.as_str()) {
            ((Outcome::TimedOut { after }, at_ns), "!hang") => {
                assert_eq!(*after, timeout);
                hung.push(*at_ns);
            }
            ((outcome, _), _) => assert_eq!(*outcome, done(input.as_bytes())),
        }
    }
    // Each start belongs to the next kill: two workers, so the n-th start ends by the n-th or a later kill.
    let begun: Vec<u64> = (0..60).map(|_| starts.next()).filter(|(job, _)| *job == b'!').map(|(_, at)| at).collect();
    assert_eq!((begun.len(), hung.len()), (3, 3));
    let (first, last) = (*begun.iter().min().unwrap(), *hung.iter().max().unwrap());
    hung.sort_unstable();
    assert!(hung[0] - first >= timeout.as_nanos() as u64, "never early");
    assert!(last - begun.iter().max().unwrap() < (timeout + LATE).as_nanos() as u64, "late by a bounded time");
    let stats = pool.stats();
    assert_eq!((stats.timed_out, stats.done, stats.crashed), (3, 57, 0));
    assert_eq!(outcomes[&tickets[7]].0.to_string(), "timed out after 250ms");
}

fn a_job_may_have_its_own_timeout(kind: TransportKind) {
    let mut starts = Starts::new();
    let mut pool = starts.handler(builder(kind).workers(1).timeout(Duration::from_secs(100)), "do").spawn().unwrap();
    for timeout in [5 * MS, 60 * MS, 200 * MS] {
        let outcome = ask(&mut pool, Job::new("do", b"!hang").timeout(timeout));
        let took = now_ns() - starts.next().1;
        assert_eq!(outcome, Outcome::TimedOut { after: timeout });
        assert!(took >= timeout.as_nanos() as u64, "never early: {took} ns for {timeout:?}");
        assert!(took < (timeout + LATE).as_nanos() as u64, "late by a bounded time: {took} ns for {timeout:?}");
    }
    // A longer one than the pool's.
    let mut pool = builder(kind).timeout(100 * MS).spawn().unwrap();
    assert_eq!(ask(&mut pool, Job::new("fault", b"sleep 400").timeout(PATIENCE)), done(b"sleep 400"));
    assert_eq!(ask(&mut pool, Job::new("fault", b"hang")), Outcome::TimedOut { after: 100 * MS });
    // A large job's deadline begins with its run.
    let body = [b"sleep 1".as_slice(), &vec![b' '; 1 << 20]].concat();
    let outcome = ask(&mut pool, Job::new("echo", &body).timeout(PATIENCE));
    assert!(outcome == done(&body));
}

fn waiting_for_a_worker_does_not_count(kind: TransportKind) {
    let mut pool = builder(kind).workers(1).timeout(Duration::from_millis(1500)).spawn().unwrap();
    // 3 s in all, 100 ms each.
    let outcomes: Vec<_> = pool.map("fault", ["sleep 100"; 30]).collect();
    assert_eq!(outcomes, vec![done(b"sleep 100"); 30]);
    assert_eq!(pool.stats().respawns, 0);
}

fn jobs_that_end_at_their_deadline_have_one_outcome(kind: TransportKind) {
    let mut random = Random::from_environment();
    let mut pool = builder(kind).workers(4).timeout(10 * MS).spawn().unwrap();
    let inputs: Vec<_> = (0..400).map(|_| format!("sleep {}", 9 + random.below(4))).collect();
    let mut seen = vec![0; inputs.len()];
    pool.for_each("fault", &inputs, |done, _| {
        seen[done.tag as usize] += 1;
        match done.outcome {
            Outcome::Done(body) => assert_eq!(body, inputs[done.tag as usize].as_bytes()),
            Outcome::TimedOut { after } => assert_eq!(after, 10 * MS),
            other => panic!("{other}"),
        }
    })
    .unwrap();
    assert!(seen.iter().all(|n| *n == 1));
    let stats = pool.stats();
    assert_eq!(stats.done + stats.timed_out, 400);
    println!("{} done, {} timed out, {} salvaged", stats.done, stats.timed_out, stats.salvaged);
}

fn a_salvaged_result_beats_a_timeout() {
    // Shorter than it takes until results are read out of a living worker's ring.
    let timeout = 80 * MS;
    let mut pool = builder(TransportKind::Seqpacket).workers(1).timeout(timeout).spawn().unwrap();
    // Known to be quick, so that what follows is sent ahead and the quick one's result is kept for company.
    assert_eq!(pool.map("fault", (0..1000).map(|i| format!("ok {i}"))).filter(Outcome::is_done).count(), 1000);
    let salvaged = (0..20).any(|_| {
        let before = pool.stats().salvaged;
        pool.submit(Job::new("fault", b"sleep 20")).unwrap();
        let quick = pool.submit(Job::new("fault", b"ok quick")).unwrap();
        let hung = pool.submit(Job::new("fault", b"hang")).unwrap();
        let outcomes = take_all(&mut pool);
        assert_eq!(outcomes[&quick], done(b"ok quick"), "finished long before the worker was killed");
        assert_eq!(outcomes[&hung], Outcome::TimedOut { after: timeout });
        // The estimate is small again.
        assert_eq!(pool.map("fault", ["ok"; 200]).filter(Outcome::is_done).count(), 200);
        pool.stats().salvaged > before
    });
    assert!(salvaged, "no result was found in the dead worker's ring");
}

fn a_result_does_not_wait_for_a_job_that_never_ends(kind: TransportKind) {
    let mut pool = builder(kind).workers(1).spawn().unwrap();
    // Known to be quick, so that what follows is sent ahead and the quick one's result is kept for company.
    assert_eq!(pool.map("fault", (0..1000).map(|i| format!("ok {i}"))).filter(Outcome::is_done).count(), 1000);
    for _ in 0..5 {
        pool.submit(Job::new("fault", b"sleep 20")).unwrap();
        let quick = pool.submit(Job::new("fault", b"ok quick")).unwrap();
        let hung = pool.submit(Job::new("fault", b"hang")).unwrap();
        let after = pool.submit(Job::new("fault", b"ok after")).unwrap();
        let mut outcomes = HashMap::new();
        let start = Instant::now();
        while !outcomes.contains_key(&quick) {
            assert!(start.elapsed() < PATIENCE, "it is finished, and lies in the ring");
            pool.poll(Some(PATIENCE), |c, _| drop(outcomes.insert(c.ticket, c.outcome.map(<[u8]>::to_vec)))).unwrap();
        }
        assert_eq!(outcomes[&quick], done(b"ok quick"));
        assert!(pool.cancel(hung));
        let rest = take_all(&mut pool);
        assert!(matches!(rest[&hung], Outcome::Cancelled { .. }), "{}", rest[&hung]);
        assert_eq!(rest[&after], done(b"ok after"));
        // And what was read from the ring is not read again when it comes through the socket.
        assert_eq!(pool.map("fault", ["ok"; 200]).filter(Outcome::is_done).count(), 200);
    }
    // The job in hand goes on: its own result, and those before it that were read ahead, come through the socket.
    for _ in 0..3 {
        pool.submit(Job::new("fault", b"sleep 20")).unwrap();
        let quick = pool.submit(Job::new("fault", b"ok quick")).unwrap();
        let slow = pool.submit(Job::new("fault", b"sleep 500")).unwrap();
        let last = pool.submit(Job::new("fault", b"ok last")).unwrap();
        let outcomes = take_all(&mut pool);
        assert_eq!(outcomes[&quick], done(b"ok quick"));
        assert_eq!(outcomes[&slow], done(b"sleep 500"));
        assert_eq!(outcomes[&last], done(b"ok last"));
        assert_eq!(pool.map("fault", ["ok"; 200]).filter(Outcome::is_done).count(), 200);
    }
    assert_eq!(pool.stats().hostile, 0);
}

fn a_stall_moves_jobs_without_blame() {
    let stall = 300 * MS;
    let mut pool = builder(TransportKind::Seqpacket).stall_timeout(stall).spawn().unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    let (_, workers) = pool.processes();
    for worker in &workers {
        kill(Pid::from_raw(*worker), Signal::SIGSTOP).unwrap();
    }
    let start = Instant::now();
    let outcomes: Vec<_> = pool.map("echo", (0..100).map(|i| i.to_string())).collect();
    assert!(start.elapsed() >= stall, "never early: {:?}", start.elapsed());
    assert!(start.elapsed() < stall + LATE, "{:?}", start.elapsed());
    assert!(outcomes.iter().enumerate().all(|(i, o)| *o == done(i.to_string().as_bytes())));
    assert!(workers.iter().all(|worker| !support::is_alive(*worker)));
    assert_eq!(pool.stats().crashed, 0);
}

// ---- what workers are ----

/// `nice` in `/proc/PID/stat`.
fn nice_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(16).unwrap().parse().unwrap()
}

fn nice_is_the_workers_alone(kind: TransportKind) {
    let own = nice_of(me());
    let mut pool = builder(kind).nice(5).spawn().unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    let (nursery, workers) = pool.processes();
    let nursery = nursery.unwrap();
    assert_eq!(workers.len(), 2);
    assert!(workers.iter().all(|worker| nice_of(*worker) == 5));
    assert_eq!((nice_of(me()), nice_of(nursery)), (own, own));
    // Void in a session of their own, where autogroup counts: each leads a group, none a session.
    let session = |pid| nix::unistd::getsid(Some(Pid::from_raw(pid))).unwrap();
    for worker in workers {
        assert_eq!(support::process_group(worker), Some(worker));
        assert_eq!(session(worker), session(me()));
        assert_eq!(support::parent(worker), Some(nursery));
    }
    let mut pool = builder(kind).spawn().unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    assert!(pool.processes().1.iter().all(|worker| nice_of(*worker) == own));
}

/// What kinds of descriptors a process has, sorted; those that it was told to keep by number.
fn descriptors(pid: i32, kept: &[RawFd]) -> Vec<String> {
    let kinds = support::open_fds(pid).into_iter().map(|(fd, target)| match fd {
        0..=2 => format!("{fd} {}", if target == "/dev/null" { "null" } else { "stderr" }),
        _ if kept.contains(&fd) => "kept".to_owned(),
        _ => target.split([':', ' ', '(']).next().unwrap_or_default().to_owned(),
    });
    let mut kinds: Vec<String> = kinds.collect();
    kinds.sort();
    kinds
}

fn workers_have_only_their_descriptors(kind: TransportKind) {
    // All kinds of things that an unlucky host has open, without close-on-exec.
    let file = std::fs::File::open("/proc/self/status").unwrap();
    let (read, write) = nix::unistd::pipe().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let secret = nix::unistd::dup(&file).unwrap();
    let first = builder(kind).spawn().unwrap();
    let mut pool = builder(kind).workers(3).keep_fd(write.as_fd()).keep_fd(file.as_fd()).spawn().unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    // Those who replace others as well.
    assert_eq!(pool.map("fault", ["signal 9"; 6]).count(), 6);
    let deadline = Instant::now() + PATIENCE;
    while !pool.wait_ready(10 * MS).unwrap() || pool.processes().1.len() < 3 {
        assert!(Instant::now() < deadline);
        pool.poll(Some(MS), |_, _| {}).unwrap();
    }
    let (nursery, workers) = pool.processes();
    let kept = [write.as_raw_fd(), file.as_raw_fd()];
    let expected = ["0 null", "1 stderr", "2 stderr", "kept", "kept", "socket", "socket"];
    assert_eq!(workers.len(), 3);
    for worker in workers {
        assert_eq!(descriptors(worker, &kept), expected, "{:?}", support::open_fds(worker));
        let fds = support::open_fds(worker);
        assert_eq!(fds[&1], fds[&2]);
        assert_eq!(fds[&kept[1]], support::open_fds(me())[&kept[1]], "the same file under the same number");
    }
    let nursery = nursery.unwrap();
    let expected = ["0 null", "1 stderr", "2 stderr", "anon_inode", "anon_inode", "kept", "kept", "socket"];
    // It lets go of what it has given to a worker a moment after that worker's first word.
    let only_these = || descriptors(nursery, &kept) == expected;
    assert!(support::wait_until(PATIENCE, only_these), "{:?}", support::open_fds(nursery));
    drop((first, read, listener, secret));
}

// ---- the end ----

fn drop_under_load_leaves_nothing(kind: TransportKind) {
    let mut random = Random::from_environment();
    for round in 0..25 {
        let mut pool = builder(kind).workers(3).spawn().unwrap();
        let jobs = ["hang", "ok", "signal 9", "sleep 3", "panic x", "error x", "exit 1"];
        for _ in 0..random.below(400) {
            let job = jobs[random.below(jobs.len() as u64) as usize];
            drop(pool.try_submit(Job::new("fault", job.as_bytes())));
        }
        for _ in 0..random.below(6) {
            pool.poll(Some(MS), |_, _| {}).unwrap();
        }
        let start = Instant::now();
        drop(pool);
        assert!(start.elapsed() < Duration::from_secs(4), "round {round}: {:?}", start.elapsed());
        assert_eq!(support::descendants(me()), [0; 0], "round {round}");
    }
}

fn drop_in_a_forked_child_leaves_the_pool_alone(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    let single = pool.submit(Job::new("fault", b"sleep 100")).unwrap();
    for _ in 0..3 {
        // SAFETY: this process has one thread, so its child may do anything (signal-safety(7)).
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                // What the child maps after the fork may lie where the pool's memory does in the parent.
                let blocks: Vec<Vec<u8>> = (0..64).map(|i| vec![i; 1 << 20]).collect();
                drop(pool);
                let whole = blocks.iter().enumerate().all(|(i, b)| b.iter().all(|byte| *byte as usize == i));
                let left = support::open_fds(me()).values().filter(|t| t.starts_with("socket")).count();
                // SAFETY: _exit(2) takes one word.
                unsafe { libc::_exit(if whole && left == 0 { 0 } else { 1 }) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                let status = nix::sys::wait::waitpid(child, None).unwrap();
                assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
        assert_eq!(pool.map("echo", (0..500).map(|i| i.to_string())).filter(Outcome::is_done).count(), 500);
    }
    assert_eq!(take_all(&mut pool), Outcomes::from([(single, done(b"sleep 100"))]));
    assert_eq!(pool.stats().respawns, 0);
}

fn drop_beside_a_forked_child_that_keeps_the_pool_ends_it(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    let (nursery, workers) = pool.processes();
    // SAFETY: this process has one thread, so its child may do anything (signal-safety(7)).
    let child = match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => loop {
            nix::unistd::pause();
        },
        nix::unistd::ForkResult::Parent { child } => child,
    };
    let start = Instant::now();
    drop(pool);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(nursery.iter().chain(&workers).all(|pid| !support::is_alive(*pid)));
    kill(child, Signal::SIGKILL).unwrap();
    nix::sys::wait::waitpid(child, None).unwrap();
}

fn a_pool_may_move_to_another_thread(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    assert_eq!(ask(&mut pool, Job::new("echo", b"here")), done(b"here"));
    // Started here, used there, back again after that thread is gone, dropped in a third.
    let mut pool = std::thread::spawn(move || {
        assert_eq!(pool.map("upper", ["there"; 500]).filter(|o| *o == done(b"THERE")).count(), 500);
        pool
    })
    .join()
    .unwrap();
    assert!(pool.map("fault", ["signal 9"; 4]).all(|o| matches!(o, Outcome::Crashed(_))));
    assert_eq!(ask(&mut pool, Job::new("echo", b"back")), done(b"back"));
    std::thread::spawn(move || drop(pool)).join().unwrap();
    assert_eq!(support::descendants(me()), [0; 0]);
}

fn other_threads_are_refused() {
    let stop = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(MS);
            }
        }
    });
    let Err(error) = builder(TransportKind::Seqpacket).spawn() else { panic!("beside another thread") };
    assert_eq!(*error.kind(), ErrorKind::OtherThreads { count: 2 });
    let text = error.to_string();
    assert!(text.contains("2 threads") && text.contains("spawn the pool first"), "{text}");
    assert_eq!(support::children(me()), [0; 0], "nothing was forked");
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    assert!(support::wait_until(PATIENCE, || support::threads(me()) == 1));
    drop(builder(TransportKind::Seqpacket).spawn().unwrap());
}

fn settings_that_cannot_work_are_refused() {
    let base = || builder(TransportKind::Seqpacket);
    let many = |n: usize| (0..n).fold(Pool::builder(), |b, i| b.handler(&i.to_string(), |_, _| Ok(())));
    let bad: Vec<(Builder, &str)> = vec![
        (Pool::builder(), "no handler"),
        (base().workers(0), "0 workers"),
        (base().workers(5000), "5000 workers"),
        (base().handler("echo", |_, _| Ok(())), "two handlers have the name 'echo'"),
        (base().timeout(Duration::ZERO), "timeout of zero"),
        (base().stall_timeout(Duration::ZERO), "stall_timeout of zero"),
        (base().spawn_timeout(Duration::ZERO), "spawn_timeout of zero"),
        (base().nice(20), "nice of 20"),
        (base().nice(-21), "nice of -21"),
        (base().queue_jobs_max(0), "queue_jobs_max of 0"),
        (base().job_size_max(usize::MAX), "job_size_max"),
        (many(5000), "5000 handlers"),
    ];
    for (builder, text) in bad {
        let Err(error) = builder.spawn() else { panic!("{text}") };
        assert!(matches!(error.kind(), ErrorKind::Config(_)), "{error:?}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

fn workers_are_replaced_beside_busy_threads(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let shared = Arc::new(Mutex::new(Vec::<String>::new()));
    let threads: Vec<_> = (0..8)
        .map(|i| {
            let (stop, shared) = (stop.clone(), shared.clone());
            std::thread::spawn(move || {
                let mut n = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let mut list = shared.lock().unwrap();
                    list.push(format!("thread {i} allocates {n}"));
                    if list.len() > 100 {
                        list.clear();
                    }
                    drop(list);
                    // The standard streams' locks are held most of the time too.
                    let mut out = std::io::stderr().lock();
                    let _ = out.write_all(b"");
                    n += 1;
                }
            })
        })
        .collect();
    let mut crashed = 0;
    for round in 0..15 {
        let job = |i: u32| if i % 10 == 5 { "signal 9".to_owned() } else { format!("ok {round} {i}") };
        for (i, outcome) in pool.map("fault", (0..40).map(job)).enumerate() {
            match outcome {
                Outcome::Crashed(_) => crashed += 1,
                other => assert_eq!(other, done(job(i as u32).as_bytes())),
            }
        }
    }
    assert_eq!(crashed, 60);
    assert!(pool.stats().respawns >= 58, "{:?}", pool.stats());
    // The pool ends beside them too.
    drop(pool);
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|t| t.join().unwrap());
}

// ---- output ----

/// This program again, as one of the programs below.
fn run_program(name: &str, kind: TransportKind) -> support::Output {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--program", name, kind.name()]);
    support::run(&mut command, "", Duration::from_secs(100))
}

const PRINTED_JOBS: usize = 300;

unsafe extern "C" {
    /// C's formatted output, which is buffered apart from Rust's.
    fn printf(format: *const libc::c_char, ...) -> libc::c_int;
}

/// Prints through C's buffer, without a newline's flush when it is no terminal.
fn print_by_c(text: &str) {
    let text = std::ffi::CString::new(text).unwrap();
    // SAFETY: printf(3) with "%s" reads one C string, alive here.
    unsafe { printf(c"%s".as_ptr(), text.as_ptr()) };
}

fn program_that_prints(kind: TransportKind) {
    // Unflushed in both buffers when the workers are forked.
    print!("host begins");
    print_by_c("host begins in C");
    eprint!("host errs");
    let mut pool = Pool::builder()
        .workers(3)
        .transport(kind)
        .handler("print", |request, reply| {
            let number = std::str::from_utf8(request.body())?;
            print!("rust {number} ");
            println!("one line");
            // In one piece: standard error has no buffer.
            std::io::stderr().write_all(format!("error {number}\n").as_bytes())?;
            print_by_c(&format!("c {number} one line\n"));
            // Without its newline: written all the same, before its result is known.
            print!("tail {number};");
            if number.ends_with('7') {
                kill(Pid::this(), Signal::SIGKILL)?;
            }
            reply.extend_from_slice(b"result ");
            reply.extend_from_slice(request.body());
            Ok(())
        })
        .spawn()
        .unwrap();
    println!();
    for (i, outcome) in pool.map("print", (0..PRINTED_JOBS).map(|i| i.to_string())).enumerate() {
        match outcome {
            Outcome::Done(body) => println!("{}", String::from_utf8(body).unwrap()),
            other => println!("job {i}: {other}"),
        }
    }
    print!("host ends");
}

fn what_workers_print_is_whole(kind: TransportKind) {
    let output = run_program("prints", kind);
    output.expect_code(0);
    // Standard output is the host's alone, and holds each text once.
    let mut expected = String::new();
    for i in 0..PRINTED_JOBS {
        match i % 10 {
            7 => expected += &format!("job {i}: crashed: signal 9 (SIGKILL)\n"),
            _ => expected += &format!("result {i}\n"),
        }
    }
    let text = output.text();
    assert!(text.contains("host begins") && text.matches("host begins in C").count() == 1, "{output}");
    let rest = text.replacen("host begins in C", "", 1).replacen("host begins", "", 1);
    assert_eq!(rest, format!("\n{expected}host ends"), "{output}");
    // Standard error holds every whole line of every worker once.
    let errors = &output.stderr;
    assert_eq!(errors.matches("host errs").count(), 1);
    for i in 0..PRINTED_JOBS {
        let times = |what: String| errors.matches(&what).count();
        assert_eq!(times(format!("rust {i} one line\n")), 1, "{i}");
        assert_eq!(times(format!("error {i}\n")), 1, "{i}");
        // Those whose worker was killed in the midst had not been flushed.
        let flushed = usize::from(i % 10 != 7);
        assert_eq!(times(format!("c {i} one line\n")), flushed, "{i}");
        assert_eq!(times(format!("tail {i};")), flushed, "{i}");
    }
    let known = |line: &str| {
        let mut rest = line.replacen("host errs", "", 1);
        while let Some((before, after)) = rest.split_once("tail ") {
            let Some((_, after)) = after.split_once(';') else { break };
            rest = format!("{before}{after}");
        }
        let words: Vec<_> = rest.split(' ').collect();
        matches!(words[..], ["rust", _, "one", "line"] | ["error", _] | ["c", _, "one", "line"] | [""])
    };
    for line in errors.lines() {
        assert!(known(line), "mixed: {line:?}");
    }
}

fn program_that_exits(kind: TransportKind) {
    extern "C" fn at_exit() {
        println!("the host's exit handler");
    }
    // SAFETY: atexit(3) keeps a function pointer, which lives as long as the program.
    assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
    print!("before spawn;");
    print_by_c("before spawn in C;");
    let mut pool = builder(kind)
        .handler("exit", |request, _| {
            let number = std::str::from_utf8(request.body())?;
            print!("rust {number};");
            print_by_c(&format!("c {number};"));
            match number.ends_with('1') {
                // SAFETY: exit(3) takes one word; this process has one thread.
                true => unsafe { libc::exit(7) },
                false => std::process::exit(7),
            }
        })
        .spawn()
        .unwrap();
    println!();
    for (i, outcome) in pool.map("exit", (0..20).map(|i| i.to_string())).enumerate() {
        println!("job {i}: {outcome}");
    }
}

fn handlers_may_exit(kind: TransportKind) {
    let output = run_program("exits", kind);
    output.expect_code(0);
    let outcomes: String = (0..20).map(|i| format!("job {i}: crashed: exit code 7\n")).collect();
    let text = output.text();
    assert_eq!(text.matches("before spawn;").count(), 1, "{output}");
    let rest = text.replacen("before spawn;", "", 1).replacen("before spawn in C;", "", 1);
    assert_eq!(rest, format!("\n{outcomes}the host's exit handler\n"), "{output}");
    for i in 0..20 {
        for way in ["rust", "c"] {
            assert_eq!(output.stderr.matches(&format!("{way} {i};")).count(), 1, "{output}");
        }
    }
    assert!(!output.stderr.contains("exit handler") && !output.stderr.contains("spawn"), "{output}");
}

// ---- counts and steps ----

fn outcomes_counted(stats: &Stats) -> u64 {
    stats.done + stats.failed + stats.crashed + stats.timed_out + stats.cancelled + stats.rejected
}

fn counts_add_up(kind: TransportKind) {
    let mut pool = builder(kind).timeout(200 * MS).spawn().unwrap();
    let inputs = ["ok", "error x", "panic x", "signal 9", "exit 1", "hang", "ok", "ok"];
    assert_eq!(pool.map("fault", inputs).count(), 8);
    let tickets: Vec<_> = (0..5).map(|_| pool.submit(Job::new("fault", b"sleep 100")).unwrap()).collect();
    assert!(pool.cancel(tickets[4]));
    pool.submit(Job::new("unknown", b"")).unwrap();
    // Counted when it is over, delivered or not.
    assert_eq!(take_all(&mut pool).len(), 6);
    let stats = pool.stats();
    let counts =
        (stats.jobs, stats.done, stats.failed, stats.crashed, stats.timed_out, stats.cancelled, stats.rejected);
    assert_eq!(counts, (14, 7, 2, 2, 1, 1, 1));
    assert_eq!(outcomes_counted(&stats), stats.jobs);
    assert_eq!((stats.hostile, stats.abandoned), (0, 0));
    assert!(stats.respawns <= 3, "{stats:?}");
    assert!(pool.wait_ready(PATIENCE).unwrap());
    assert_eq!(pool.stats().respawns, 3, "one for each death");
    // The dropped rest of a run is counted too.
    let mut run = pool.map("fault", ["ok"; 100]);
    run.next();
    drop(run);
    assert_eq!(take_all(&mut pool).len(), 0);
    let stats = pool.stats();
    assert_eq!(outcomes_counted(&stats), stats.jobs);
}

type Lives = HashMap<Ticket, Vec<Event>>;

fn recorded(builder: Builder) -> (Builder, Arc<Mutex<Lives>>) {
    let lives = Arc::new(Mutex::new(Lives::new()));
    let hook = lives.clone();
    let builder = builder.on_event(move |event| hook.lock().unwrap().entry(event.ticket).or_default().push(*event));
    (builder, lives)
}

#[track_caller]
fn check_times(events: &[Event]) {
    assert!(events.windows(2).all(|pair| pair[0].at_ns <= pair[1].at_ns), "time runs backwards: {events:#?}");
    assert!(events.iter().all(|event| event.tag == events[0].tag));
}

fn steps(events: &[Event]) -> Vec<Step> {
    events.iter().map(|event| event.step).collect()
}

const WHOLE_LIFE: [Step; 7] =
    [Step::Submitted, Step::Placed, Step::Sent, Step::Started, Step::Ended, Step::Received, Step::Delivered];

fn steps_come_in_order_and_in_time(kind: TransportKind) {
    let (builder, lives) = recorded(builder(kind));
    let mut pool = builder.spawn().unwrap();
    let before = now_ns();
    let large = vec![b'x'; 1 << 20];
    let mut expected = HashMap::new();
    for i in 0..2000u64 {
        let body = if i % 500 == 0 { &large[..] } else { b"small" };
        // Waiting for room keeps outcomes: each is delivered once all the same.
        expected.insert(pool.submit(Job::new("echo", body).tag(i)).unwrap(), i);
    }
    let sleeper = pool.submit(Job::new("fault", b"sleep 20").tag(2000)).unwrap();
    expected.insert(sleeper, 2000);
    take_all(&mut pool);
    assert_eq!(pool.map("echo", ["a"; 50]).count(), 50);
    let mut lives = lives.lock().unwrap();
    let slept = lives[&sleeper].clone();
    let at = |step| slept.iter().find(|event| event.step == step).expect("a whole life").at_ns;
    let ran_ns = at(Step::Ended) - at(Step::Started);
    assert!((20_000_000..2_000_000_000).contains(&ran_ns), "{ran_ns} ns");
    for (ticket, tag) in expected {
        let events = lives.remove(&ticket).unwrap();
        // A ticket's record is used again for other jobs under another generation, so these are all of one job.
        let mut life = events.clone();
        life.retain(|e| e.step != Step::Reclaimed);
        if life.len() == events.len() {
            assert_eq!(steps(&events), WHOLE_LIFE, "job {tag}");
        }
        check_times(&events);
        assert_eq!(events[0].tag, tag);
        assert!(events[0].at_ns >= before && events.last().unwrap().at_ns <= now_ns());
        assert_eq!(events[0].slot, None);
        assert!(events[1..].iter().all(|event| event.slot.is_some_and(|slot| slot < 2)), "{events:#?}");
    }
    assert_eq!(lives.len(), 50, "the run's jobs");
    lives.values().for_each(|events| check_times(events));
}

/// Checks one job's steps against what can happen to it: rounds of placed, sent, reclaimed; then an end.
#[track_caller]
fn check_life(events: &[Event]) {
    check_times(events);
    let all = steps(events);
    let mut rest = &all[..];
    let mut next = |step: Step| {
        let found = rest.first() == Some(&step);
        if found {
            rest = &rest[1..];
        }
        found
    };
    assert!(next(Step::Submitted), "{all:?}");
    loop {
        let placed = next(Step::Placed);
        let sent = placed && next(Step::Sent);
        if placed && next(Step::Reclaimed) {
            continue;
        }
        if sent && next(Step::Started) {
            assert!(next(Step::Ended) && next(Step::Received), "{all:?}");
        }
        break;
    }
    assert!(next(Step::Delivered), "{all:?}");
    assert!(rest.is_empty(), "{all:?}");
}

fn steps_of_jobs_that_move_come_in_order(kind: TransportKind) {
    let (builder, lives) = recorded(builder(kind).workers(3).timeout(150 * MS));
    let mut pool = builder.spawn().unwrap();
    let mut random = Random::from_environment();
    let mut tickets = Vec::new();
    for i in 0..1500u64 {
        let job = match random.below(60) {
            0 => "signal 9",
            1 => "hang",
            2 => "sleep 5",
            3 => "error x",
            _ => "ok",
        };
        let name = if random.below(100) == 0 { "unknown" } else { "fault" };
        let ticket = pool.submit(Job::new(name, job.as_bytes()).tag(i)).unwrap();
        if random.below(40) == 0 {
            pool.cancel(ticket);
        }
        tickets.push((ticket, job));
    }
    let outcomes = take_all(&mut pool);
    assert_eq!(outcomes.len(), 1500);
    let lives = lives.lock().unwrap();
    assert_eq!(lives.len(), 1500);
    let mut reclaimed = 0;
    for (ticket, _) in &tickets {
        let events = &lives[ticket];
        check_life(events);
        let has = |step| events.iter().any(|event| event.step == step);
        reclaimed += events.iter().filter(|event| event.step == Step::Reclaimed).count();
        assert_eq!(has(Step::Ended), matches!(outcomes[ticket], Outcome::Done(_) | Outcome::Failed { .. }));
    }
    // The counts name those that were taken back from living workers; others moved because theirs died.
    assert!(reclaimed as u64 >= pool.stats().reclaimed_jobs);
    if kind == TransportKind::Seqpacket {
        assert!(reclaimed > 0);
    }
}

// ---- inside another loop ----

/// Rounds of jobs driven by an outer loop, which polls the pool only when `ready` says so, and once each time.
#[track_caller]
fn drive(kind: TransportKind, rounds: u32, mut ready: impl FnMut(&Pool) -> bool) {
    let mut pool = builder(kind).spawn().unwrap();
    let mut random = Random::from_environment();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    let mut slow = 0;
    for round in 0..rounds {
        let start = Instant::now();
        let count = 1 + random.below(if round % 10 == 0 { 2000 } else { 20 });
        let mut expected = 0;
        for i in 0..count {
            let job = match random.below(200) {
                0 => Job::new("unknown", b""),
                1 => Job::new("fault", b"sleep 1"),
                2 => Job::new("fault", b"panic x"),
                _ => Job::new("echo", b"body"),
            };
            expected += 1;
            pool.try_submit(job.tag(i)).unwrap();
        }
        let (mut seen, mut extra) = (0, random.below(10));
        while seen < expected {
            assert!(ready(&pool), "round {round}: a lost wake-up with {} outstanding", expected - seen);
            pool.poll(Some(Duration::ZERO), |_, submitter| {
                seen += 1;
                if extra > 0 {
                    extra -= 1;
                    expected += 1;
                    submitter.try_submit(Job::new("echo", b"extra")).unwrap();
                }
            })
            .unwrap();
        }
        assert_eq!((seen, pool.outstanding()), (expected, 0));
        slow += u32::from(start.elapsed() >= 90 * MS);
    }
    // What is repaired by the tick is 100 ms late each time.
    assert!(slow <= rounds / 10, "{slow} of {rounds} rounds were late");
}

fn an_outer_poll_never_misses_anything(kind: TransportKind) {
    drive(kind, 400, |pool| {
        let mut fds = [PollFd::new(pool.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, PollTimeout::from(10_000u16)).unwrap() == 1
    });
}

fn an_outer_edge_triggered_epoll_never_misses_anything(kind: TransportKind) {
    let outer = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let mut added = false;
    drive(kind, 400, |pool| {
        if !added {
            outer.add(pool, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0)).unwrap();
            added = true;
        }
        let mut events = [EpollEvent::empty()];
        outer.wait(&mut events, EpollTimeout::from(10_000u16)).unwrap() == 1
    });
}

/// Waits until the pool's descriptor is readable.
#[track_caller]
fn wait_readable(pool: &Pool, what: &str) {
    let mut fds = [PollFd::new(pool.as_fd(), PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut fds, PollTimeout::from(10_000u16)).unwrap(), 1, "a lost wake-up: {what}");
}

/// Polls whenever the descriptor is readable, until something is delivered.
#[track_caller]
fn next_outcome(pool: &mut Pool, what: &str) -> Outcome<Vec<u8>> {
    let mut outcome = None;
    while outcome.is_none() {
        wait_readable(pool, what);
        pool.poll(Some(Duration::ZERO), |done, _| {
            assert!(outcome.is_none());
            outcome = Some(done.outcome.map(<[u8]>::to_vec));
        })
        .unwrap();
    }
    outcome.unwrap()
}

fn an_outer_loop_hears_of_refusals_and_deadlines(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    // From here on the outer loop watches; it comes back only when it is told to.
    let settle = |pool: &mut Pool| {
        for _ in 0..20 {
            pool.poll(Some(Duration::ZERO), |_, _| {}).unwrap();
        }
    };
    wait_readable(&pool, "the first time");
    settle(&mut pool);
    pool.try_submit(Job::new("unknown", b"")).unwrap();
    assert!(matches!(next_outcome(&mut pool, "a refusal at submission"), Outcome::Rejected { .. }));
    settle(&mut pool);
    pool.submit(Job::new("fault", b"hang").timeout(100 * MS)).unwrap();
    assert_eq!(next_outcome(&mut pool, "a deadline"), Outcome::TimedOut { after: 100 * MS });
    settle(&mut pool);
    pool.try_submit(Job::new("fault", b"hang").timeout(100 * MS)).unwrap();
    assert_eq!(next_outcome(&mut pool, "a deadline"), Outcome::TimedOut { after: 100 * MS });
    settle(&mut pool);
    pool.try_submit(Job::new("fault", b"signal 9")).unwrap();
    assert!(matches!(next_outcome(&mut pool, "a death"), Outcome::Crashed(_)));
    settle(&mut pool);
    let ticket = pool.try_submit(Job::new("fault", b"hang")).unwrap();
    assert!(pool.cancel(ticket));
    assert!(matches!(next_outcome(&mut pool, "a cancellation"), Outcome::Cancelled { .. }));
    settle(&mut pool);
    pool.submit(Job::new("fault", b"hang")).unwrap();
    pool.kill_all();
    assert!(matches!(next_outcome(&mut pool, "an end of all"), Outcome::Cancelled { .. }));
    settle(&mut pool);
    // A run that is dropped in its midst, and a single job beside it.
    let single = pool.submit(Job::new("fault", b"sleep 20")).unwrap();
    let mut run = pool.map("echo", ["x"; 5000]);
    run.next();
    drop(run);
    let mut found = None;
    while found.is_none() {
        wait_readable(&pool, "a job beside a dropped run");
        pool.poll(Some(Duration::ZERO), |done, _| found = Some(done.ticket)).unwrap();
    }
    assert_eq!(found, Some(single));
}

fn an_outer_loop_hears_of_what_a_panic_left(kind: TransportKind) {
    let outer = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let mut pool = builder(kind).workers(1).spawn().unwrap();
    assert_eq!(pool.map("echo", ["x"; 1000]).filter(Outcome::is_done).count(), 1000);
    outer.add(&pool, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0)).unwrap();
    let start = Instant::now();
    for _ in 0..10 {
        for _ in 0..20 {
            pool.try_submit(Job::new("echo", b"x")).unwrap();
        }
        pool.flush().unwrap();
        while pool.outstanding() > 0 {
            let mut events = [EpollEvent::empty()];
            assert_eq!(outer.wait(&mut events, EpollTimeout::from(10_000u16)).unwrap(), 1, "a lost wake-up");
            let _ = quietly(|| pool.poll(Some(Duration::ZERO), |_, _| panic!("each time")));
        }
    }
    // The tick would repair it 100 ms later, each time.
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

fn an_idle_pool_sleeps(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    assert_eq!(pool.map("echo", ["x"; 1000]).count(), 1000);
    let _ = pool.as_fd();
    assert_eq!(pool.poll(Some(Duration::from_secs(1)), |_, _| {}).unwrap(), 0);
    let (nursery, mut all) = pool.processes();
    all.extend(nursery);
    assert_eq!(all.len(), 3);
    let before: Vec<_> = all.iter().map(|pid| support::context_switches(*pid)).collect();
    let host = (support::context_switches(me()).voluntary, support::cpu_time(me()).unwrap());
    assert_eq!(pool.poll(Some(Duration::from_secs(1)), |_, _| {}).unwrap(), 0);
    let after: Vec<_> = all.iter().map(|pid| support::context_switches(*pid)).collect();
    assert_eq!(before, after, "nobody woke up");
    let woken = support::context_switches(me()).voluntary - host.0;
    assert!(woken <= 3, "the host slept once, not {woken} times");
    assert!(support::cpu_time(me()).unwrap() - host.1 <= 20 * MS);
}

// ---- everything at once ----

fn ten_thousand_jobs_with_faults(kind: TransportKind) {
    let mut random = Random::from_environment();
    let mut pool = builder(kind).workers(4).timeout(400 * MS).spawn().unwrap();
    let jobs: Vec<String> = (0..10_000)
        .map(|i| match random.below(1000) {
            0..10 => "signal 9".into(),
            10..20 => "exit 3".into(),
            20..34 => "panic at once".into(),
            34..48 => "error of sorts".into(),
            48..50 => "hang".into(),
            _ => format!("ok {i}"),
        })
        .collect();
    let mut seen = vec![0u8; jobs.len()];
    pool.for_each("fault", &jobs, |done, _| {
        let job = &jobs[done.tag as usize];
        seen[done.tag as usize] += 1;
        let right = match job.split(' ').next().unwrap() {
            "signal" => matches!(&done.outcome, Outcome::Crashed(c) if c.cause == CrashCause::Signal(9)),
            "exit" => matches!(&done.outcome, Outcome::Crashed(c) if c.cause == CrashCause::Code(3)),
            "panic" => matches!(&done.outcome, Outcome::Failed { message, panicked: true } if message == "at once"),
            "error" => matches!(&done.outcome, Outcome::Failed { message, panicked: false } if message == "of sorts"),
            "hang" => done.outcome == Outcome::TimedOut { after: 400 * MS },
            _ => done.outcome == Outcome::Done(job.as_bytes()),
        };
        assert!(right, "job {} `{job}`: {}", done.tag, done.outcome);
    })
    .unwrap();
    assert!(seen.iter().all(|n| *n == 1), "each exactly one");
    let stats = pool.stats();
    assert_eq!((stats.jobs, outcomes_counted(&stats), stats.hostile), (10_000, 10_000, 0));
    println!("{stats:?}");
}

fn the_hosts_children_are_its_own(kind: TransportKind) {
    let mut pool = builder(kind).spawn().unwrap();
    let mut child = std::process::Command::new("sh").args(["-c", "exit 9"]).spawn().unwrap();
    assert!(support::wait_until(PATIENCE, || support::proc_state(child.id() as i32) == Some('Z')));
    for _ in 0..5 {
        assert_eq!(pool.map("fault", ["signal 9"; 4]).count(), 4);
        assert_eq!(pool.map("echo", ["x"; 100]).filter(Outcome::is_done).count(), 100);
    }
    drop(pool);
    assert_eq!(child.wait().unwrap().code(), Some(9), "nobody else reaped it");
}

/// Says who works for it, on standard output, and waits to be killed.
fn program_to_be_killed(kind: TransportKind) {
    let mut pool = builder(kind)
        .workers(3)
        .handler("spin", |_, _| {
            nix::sys::signal::SigSet::all().thread_block()?;
            // One of them leaves a child in a session of its own as well.
            // SAFETY: this process has one thread, so its child may do anything (signal-safety(7)).
            if let nix::unistd::ForkResult::Child = unsafe { nix::unistd::fork() }? {
                nix::unistd::setsid()?;
            }
            loop {
                std::hint::spin_loop();
            }
        })
        .spawn()
        .unwrap();
    for _ in 0..2 {
        pool.submit(Job::new("spin", b"")).unwrap();
    }
    pool.flush().unwrap();
    assert!(support::wait_until(PATIENCE, || support::descendants(me()).len() == 6));
    let all = support::descendants(me());
    println!("{all:?}");
    loop {
        std::thread::sleep(PATIENCE);
    }
}

fn nobody_outlives_a_killed_host(kind: TransportKind) {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--program", "killed", kind.name()]).stdout(std::process::Stdio::piped());
    let mut host = command.spawn().unwrap();
    let mut line = String::new();
    let mut out = std::io::BufReader::new(host.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    let all: Vec<i32> = line.trim().trim_matches(['[', ']']).split(", ").map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(all.len(), 6, "a nursery, three workers, two grandchildren");
    assert!(all.iter().all(|pid| support::is_alive(*pid)));
    host.kill().unwrap();
    host.wait().unwrap();
    let start = Instant::now();
    let gone = support::wait_until(PATIENCE, || all.iter().all(|pid| !support::is_alive(*pid)));
    let left: Vec<_> = all.iter().filter(|pid| support::is_alive(**pid)).map(|pid| support::describe(*pid)).collect();
    assert!(gone, "{left:?}");
    // One second is the promise; spinning processes leave this one little time to look.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

fn leftovers_of_a_dead_worker_are_killed(kind: TransportKind) {
    let mut pool = builder(kind)
        .handler("leave", |request, reply| {
            // Holds the worker's socket, ignores what can be ignored, hides in a session of its own.
            // SAFETY: this process has one thread, so its child may do anything (signal-safety(7)).
            match unsafe { nix::unistd::fork() }? {
                nix::unistd::ForkResult::Child => {
                    nix::unistd::setsid()?;
                    nix::sys::signal::SigSet::all().thread_block()?;
                    loop {
                        std::thread::sleep(PATIENCE);
                    }
                }
                nix::unistd::ForkResult::Parent { child } => {
                    write!(reply, "{child}")?;
                    fault(std::str::from_utf8(request.body())?)
                }
            }
        })
        .spawn()
        .unwrap();
    // The dying job's child is seen only in the process table.
    assert!(matches!(ask(&mut pool, Job::new("leave", b"signal 9")), Outcome::Crashed(_)));
    assert!(matches!(ask(&mut pool, Job::new("leave", b"exit 0")), Outcome::Crashed(_)));
    let Outcome::Done(body) = ask(&mut pool, Job::new("leave", b"ok")) else { panic!("the job is well") };
    let child: i32 = String::from_utf8(body).unwrap().parse().unwrap();
    assert!(support::is_alive(child), "its worker lives");
    assert_eq!(pool.map("fault", ["signal 9"; 8]).count(), 8);
    assert!(pool.wait_ready(PATIENCE).unwrap());
    let settled = support::wait_until(PATIENCE, || support::descendants(me()).len() == 3);
    assert!(settled, "{:?}", support::descendants(me()).into_iter().map(support::describe).collect::<Vec<_>>());
    assert!(!support::is_alive(child));
    assert_eq!(ask(&mut pool, Job::new("echo", b"on")), done(b"on"));
}

fn a_handler_that_forks_runs_no_job_twice(kind: TransportKind) {
    let mut starts = Starts::new();
    let builder = builder(kind).workers(1).handler("fork", |_, _| {
        // SAFETY: this process has one thread, so its child may do anything (signal-safety(7)).
        unsafe { nix::unistd::fork() }?;
        Ok(())
    });
    let mut pool = starts.handler(builder, "note").spawn().unwrap();
    let mut outcomes = Vec::new();
    for i in 0..60u8 {
        let body = [&[i], &b"ok"[..]].concat();
        match i % 20 {
            10 => drop(pool.submit(Job::new("fork", b"")).unwrap()),
            _ => drop(pool.submit(Job::new("note", &body).tag(u64::from(i))).unwrap()),
        }
    }
    while pool.outstanding() > 0 {
        pool.poll(Some(PATIENCE), |done, _| outcomes.push(done.outcome.map(<[u8]>::to_vec))).unwrap();
    }
    assert_eq!(outcomes.len(), 60);
    drop(pool);
    drop(starts.write);
    let mut records = Vec::new();
    starts.read.read_to_end(&mut records).unwrap();
    let mut ran = [0; 60];
    records.chunks(16).for_each(|record| ran[record[0] as usize] += 1);
    assert!(ran.iter().all(|n| *n <= 1), "{ran:?}");
}

fn the_nursery_may_die() {
    let mut pool = builder(TransportKind::Seqpacket).spawn().unwrap();
    assert!(pool.wait_ready(PATIENCE).unwrap());
    let slow = pool.submit(Job::new("fault", b"sleep 300")).unwrap();
    pool.flush().unwrap();
    let (nursery, workers) = pool.processes();
    kill(Pid::from_raw(nursery.unwrap()), Signal::SIGKILL).unwrap();
    // What runs is finished, and so is what comes.
    let outcomes = take_all(&mut pool);
    assert_eq!(outcomes[&slow], done(b"sleep 300"));
    assert_eq!(ask(&mut pool, Job::new("echo", b"goes on")), done(b"goes on"));
    // Nobody forks replacements: in the end there is nobody, and that is said.
    let outcomes: Vec<_> = pool.map("fault", ["signal 9"; 10]).collect();
    assert_eq!(outcomes.len(), 10);
    assert_eq!(outcomes.iter().filter(|o| matches!(o, Outcome::Crashed(_))).count(), 2);
    let last = outcomes.iter().rev().find(|o| matches!(o, Outcome::Rejected { .. })).unwrap();
    assert!(last.to_string().contains("nursery"), "{last}");
    drop(pool);
    // Without a nursery a death is known by the closed socket, which comes a moment before the process is gone.
    assert!(support::wait_until(Duration::from_secs(1), || workers.iter().all(|w| !support::is_alive(*w))));
}
