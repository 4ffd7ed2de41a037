//! Row 34 of the fault table without other programs: every system call that the pool itself makes is struck once, in the
//! host, in the nursery and in a worker, at each of its places, by `seqpool::sys::Faulty::striking`. It fails there, or its
//! process is killed.
//!
//! `tests/sweep_strace.rs` has the same on the real kernel, where also the calls of the libraries are struck.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seqpool::sys::{Blow, Faulty, Role, Strike};
use seqpool::{Crash, CrashCause, Error, Job, Outcome, Pool, Reason, Stats, TransportKind};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

mod support;

fn main() {
    support::main(&support::cases_on_each_transport![
        interrupted_calls_change_nothing => 240,
        shortages_change_nothing => 240,
        a_worker_killed_at_any_call => 240,
        a_nursery_killed_at_any_call => 240,
        a_host_killed_at_any_call => 240,
        a_strike_is_seen_where_it_is_planned,
    ]);
}

const JOBS: usize = 14;
/// This one dies, this one hangs, and this one's body travels in fragments.
const DIES: usize = 4;
const HANGS: usize = 7;
const LARGE: usize = 2;
const HANG_LIMIT: Duration = Duration::from_millis(20);
/// What a strike may cost.
const DELAY_MAX: Duration = Duration::from_millis(100);
/// What two runs may differ by.
const NOISE: Duration = Duration::from_millis(200);
/// A machine that does other things as well may hold up a run, but not this often at the same place.
const TRIES: usize = 4;
const RUN_LIMIT: Duration = Duration::from_secs(20);

fn starts() -> &'static [AtomicU32] {
    static MEMORY: OnceLock<&'static [AtomicU32]> = OnceLock::new();
    MEMORY.get_or_init(|| support::shared_words(JOBS))
}

fn body(number: usize) -> Vec<u8> {
    let size = if number == LARGE { 300_000 } else { 10 };
    let mut body = vec![number as u8];
    body.extend((0..size).map(|i| (i + number) as u8));
    body
}

fn reply_to(body: &[u8]) -> Vec<u8> {
    body.iter().take(8).map(|b| b ^ 0x5a).collect()
}

struct Ran {
    outcomes: Vec<Outcome<Vec<u8>>>,
    stats: Stats,
    elapsed: Duration,
}

/// One pool's whole life: start, large and small jobs, a death, a deadline, recycling, the end.
fn run(sys: &Faulty, transport: TransportKind) -> Result<Ran, Error> {
    starts().iter().for_each(|count| count.store(0, SeqCst));
    let start = Instant::now();
    let mut pool = Pool::builder()
        .workers(2)
        .transport(transport)
        .max_jobs_per_worker(4)
        .nice(19)
        .handler("do", |request, reply| {
            let body = request.body();
            let number = usize::from(body[0]);
            starts()[number].fetch_add(1, SeqCst);
            match number {
                DIES => kill(Pid::this(), Signal::SIGKILL)?,
                HANGS => std::thread::sleep(Duration::from_secs(1000)),
                _ => reply.extend_from_slice(&reply_to(body)),
            }
            Ok(())
        })
        .spawn_with(sys.clone())?;
    // From now on an outer loop is told what is left, which takes calls of its own.
    let _ = pool.as_fd();
    let mut outcomes: Vec<Option<Outcome<Vec<u8>>>> = vec![None; JOBS];
    for number in 0..JOBS {
        let body = body(number);
        let mut job = Job::new("do", &body).tag(number as u64);
        if number == HANGS {
            job = job.timeout(HANG_LIMIT);
        }
        pool.submit(job)?;
    }
    while pool.outstanding() > 0 {
        assert!(start.elapsed() < RUN_LIMIT, "no outcome: {outcomes:?}, {:?}", pool.stats());
        pool.poll(Some(Duration::from_millis(500)), |completion, _| {
            let old = outcomes[completion.tag as usize].replace(completion.outcome.map(<[u8]>::to_vec));
            assert!(old.is_none(), "job {} has two outcomes", completion.tag);
        })?;
    }
    // With nothing to do the host sleeps, which it may never have had to so far.
    pool.poll(Some(Duration::from_millis(1)), |_, _| unreachable!("nothing is outstanding"))?;
    let stats = pool.stats();
    drop(pool);
    let outcomes = outcomes.into_iter().map(|outcome| outcome.expect("nothing is outstanding")).collect();
    Ok(Ran { outcomes, stats, elapsed: start.elapsed() })
}

fn is_right(number: usize, outcome: &Outcome<Vec<u8>>) -> bool {
    match outcome {
        Outcome::Crashed(Crash { cause: CrashCause::Signal(9), .. }) => number == DIES,
        Outcome::TimedOut { after } => number == HANGS && *after == HANG_LIMIT,
        Outcome::Done(reply) => ![DIES, HANGS].contains(&number) && *reply == reply_to(&body(number)),
        _ => false,
    }
}

/// Whether nothing has started, and each job says that the nursery could not.
fn all_refused(ran: &Ran) -> bool {
    let says_so = |outcome: &Outcome<Vec<u8>>| match outcome {
        Outcome::Rejected { reason: Reason::NoWorkers(why) } => why.starts_with("the nursery refused to start: "),
        _ => false,
    };
    ran.outcomes.iter().all(says_so) && starts().iter().all(|count| count.load(SeqCst) == 0)
}

/// What every run must bring, struck or not.
fn judge(ran: &Ran) -> Result<(), String> {
    for (number, outcome) in ran.outcomes.iter().enumerate() {
        let starts = starts()[number].load(SeqCst);
        if !is_right(number, outcome) || starts != 1 {
            return Err(format!("job {number}, started {starts} times: {outcome:?}; {:?}", ran.stats));
        }
    }
    if ran.stats.hostile != 0 || ran.stats.abandoned != 0 {
        return Err(format!("{:?}", ran.stats));
    }
    Ok(())
}

/// What a run makes when nothing is struck: the calls of each role, and the time.
fn unstruck(transport: TransportKind) -> (BTreeMap<(Role, &'static str), u32>, Duration) {
    let (mut calls, mut slowest) = (BTreeMap::new(), Duration::ZERO);
    for _ in 0..3 {
        let sys = Faulty::striking(None);
        let ran = run(&sys, transport).expect("a pool");
        assert_eq!((judge(&ran), sys.injected()), (Ok(()), 0));
        slowest = slowest.max(ran.elapsed);
        for (role, call, count) in sys.calls() {
            let most = calls.entry((role, call)).or_insert(0);
            *most = count.max(*most);
        }
    }
    for (role, call) in [(Role::Host, "sendmsg"), (Role::Nursery, "waitid"), (Role::Worker, "recvmsg")] {
        assert!(calls.contains_key(&(role, call)), "{role:?} makes {call}: {calls:?}");
    }
    println!("{transport}, {slowest:?}, calls a process: {calls:?}");
    (calls, slowest)
}

/// Every place of a call that is made by its own occasion. One that is made in a loop (64 signals are reset; a process
/// looks again and again before it sleeps) is struck at the first of them and then here and there.
fn places(count: u32) -> impl Iterator<Item = u32> {
    const FIRST: u32 = 24;
    (1..=count.min(FIRST)).chain((FIRST + 1..=count).step_by(((count.max(FIRST) - FIRST) / 6).max(1) as usize))
}

/// Strikes each place with each error. A refusal to start is right where `may_refuse` says so and the call is named.
fn sweep(transport: TransportKind, errnos: impl Fn(&str) -> &'static [i32], may_refuse: bool) {
    let (calls, slowest) = unstruck(transport);
    let limit = slowest + DELAY_MAX + NOISE;
    let (mut runs, mut struck, mut refused, mut late, mut failures) = (0, 0, 0, 0, Vec::new());
    for ((role, call), count) in calls {
        let mut hit = 0;
        for errno in errnos(call) {
            for nth in places(count) {
                let strike = Strike { role, call, nth, blow: Blow::Errno(*errno) };
                let (mut tries, mut verdict) = (0, Err(String::new()));
                while tries < TRIES {
                    tries += 1;
                    let sys = Faulty::striking(Some(strike));
                    let ran = run(&sys, transport);
                    if tries == 1 {
                        hit += sys.injected();
                    }
                    let elapsed = ran.as_ref().map_or(Duration::ZERO, |ran| ran.elapsed);
                    verdict = match ran {
                        Ok(ran) if may_refuse && role == Role::Nursery && all_refused(&ran) => {
                            refused += 1;
                            Ok(())
                        }
                        Ok(ran) => judge(&ran),
                        Err(error) if may_refuse && role == Role::Host && error.to_string().contains(call) => {
                            refused += 1;
                            Ok(())
                        }
                        Err(error) => Err(error.to_string()),
                    };
                    if verdict.is_err() || elapsed <= limit {
                        break;
                    }
                    late += 1;
                    verdict = Err(format!("took {elapsed:?}, and more than {limit:?} each time"));
                }
                runs += 1;
                if let Err(why) = verdict {
                    failures.push(format!("{strike:?}: {why}"));
                }
            }
        }
        assert!(hit > 0 || errnos(call).is_empty(), "{role:?} {call} was never struck");
        struck += hit;
    }
    println!("{runs} runs, {struck} struck, {refused} refused to start, {late} held up and tried again");
    failures.iter().for_each(|failure| println!("{failure}"));
    assert!(failures.is_empty(), "{} of {runs} runs went wrong", failures.len());
    // How often a process looks before it sleeps differs from run to run.
    assert!(struck * 4 >= runs * 3, "only {struck} of {runs} were struck");
}

fn interrupted_calls_change_nothing(transport: TransportKind) {
    sweep(transport, |_| &[libc::EINTR], false);
}

/// `send(2)`, `recv(2)`, `fork(2)`, `mmap(2)`, `madvise(2)`, `unix(7)`, and those that make a descriptor.
fn shortages_change_nothing(transport: TransportKind) {
    let errnos = |call: &str| -> &'static [i32] {
        match call {
            "sendto" => &[libc::EAGAIN, libc::ENOBUFS, libc::ENOMEM],
            "sendmsg" => &[libc::EAGAIN, libc::ENOBUFS, libc::ENOMEM, libc::ETOOMANYREFS],
            "recvmsg" => &[libc::EAGAIN, libc::ENOMEM],
            "read" | "write" => &[libc::EAGAIN],
            "fork" | "mmap" | "madvise" => &[libc::EAGAIN, libc::ENOMEM],
            "epoll_create1"
            | "eventfd"
            | "fcntl(F_DUPFD_CLOEXEC)"
            | "memfd_create"
            | "pidfd_open"
            | "signalfd"
            | "socketpair"
            | "timerfd_create" => &[libc::EMFILE],
            _ => &[],
        }
    };
    sweep(transport, errnos, true);
}

// ---- deaths at each call

/// Kills one process of this role at each place of each of its calls. `judge` looks at what the run brought.
fn kill_everywhere(transport: TransportKind, role: Role, judge: impl Fn(Strike, &Faulty) -> Result<(), String>) {
    let (calls, _) = unstruck(transport);
    let (mut runs, mut struck, mut failures) = (0, 0, Vec::new());
    for ((_, call), count) in calls.into_iter().filter(|((r, _), _)| *r == role) {
        let mut hit = 0;
        for nth in places(count) {
            let strike = Strike { role, call, nth, blow: Blow::Kill };
            let sys = Faulty::striking(Some(strike));
            let verdict = judge(strike, &sys);
            hit += sys.injected();
            runs += 1;
            if let Err(why) = verdict {
                failures.push(format!("{strike:?}: {why}"));
            }
        }
        assert!(hit > 0, "{role:?} {call} was never struck");
        struck += hit;
    }
    println!("{transport}: {runs} runs, {struck} deaths");
    failures.iter().for_each(|failure| println!("{failure}"));
    assert!(failures.is_empty(), "{} of {runs} runs went wrong", failures.len());
    assert!(struck * 4 >= runs * 3, "only {struck} of {runs} were struck");
}

/// What a run with a death must bring: right outcomes, and besides at most `more` that `excuse` accepts, by outcome and starts.
fn judge_with_a_death(
    ran: &Ran,
    more: usize,
    excuse: impl Fn(usize, &Outcome<Vec<u8>>, u32) -> bool,
) -> Result<(), String> {
    let mut excused = 0;
    for (number, outcome) in ran.outcomes.iter().enumerate() {
        let starts = starts()[number].load(SeqCst);
        let is_right = is_right(number, outcome) && starts == 1;
        if !is_right && (starts > 1 || !excuse(number, outcome, starts)) {
            return Err(format!("job {number}, started {starts} times: {outcome:?}; {:?}", ran.stats));
        }
        excused += usize::from(!is_right);
    }
    if excused > more || ran.stats.hostile != 0 {
        return Err(format!("{excused} jobs suffered; {:?}", ran.stats));
    }
    Ok(())
}

/// The job in hand is blamed, whether its handler had begun or not: its claim counts. All others do not notice.
fn a_worker_killed_at_any_call(transport: TransportKind) {
    kill_everywhere(transport, Role::Worker, |_, sys| {
        let ran = run(sys, transport).map_err(|error| error.to_string())?;
        judge_with_a_death(&ran, 1, |_, outcome, _| {
            matches!(outcome, Outcome::Crashed(Crash { cause: CrashCause::Signal(9), .. }))
        })
    });
}

/// Jobs that run finish. Nobody says any more how a worker died, and nobody forks another: then what has not started is
/// refused. Or there is no pool at all.
fn a_nursery_killed_at_any_call(transport: TransportKind) {
    kill_everywhere(transport, Role::Nursery, |_, sys| {
        let Ok(ran) = run(sys, transport) else { return Ok(()) };
        judge_with_a_death(&ran, JOBS, |number, outcome, starts| match outcome {
            Outcome::Rejected { reason: Reason::NoWorkers(_) } => starts == 0,
            Outcome::Crashed(Crash { cause: CrashCause::Unknown, .. }) => number == DIES,
            _ => false,
        })
    });
}

/// Whatever moment it is, everybody is gone within a second, and no job has run twice.
fn a_host_killed_at_any_call(transport: TransportKind) {
    // Whom it leaves behind comes to this process.
    nix::sys::prctl::set_child_subreaper(true).expect("prctl");
    kill_everywhere(transport, Role::Host, |strike, sys| {
        // Not by the floor of system calls: it is to be the host, and not the nursery.
        // SAFETY: this process has one thread, so its child may do anything.
        let host = match unsafe { libc::fork() } {
            0 => {
                let code = i32::from(run(sys, transport).is_err());
                // SAFETY: _exit(2) takes one word and does not return.
                unsafe { libc::_exit(code) }
            }
            host => host,
        };
        assert!(host > 0, "fork");
        let status = support::wait_for(host);
        let died = status == nix::sys::wait::WaitStatus::Signaled(Pid::from_raw(host), Signal::SIGKILL, false);
        if died != (sys.injected() > 0) {
            return Err(format!("{status:?}, struck: {}", sys.injected()));
        }
        let start = Instant::now();
        if !support::wait_until(Duration::from_secs(1), support::reaped) {
            let left = support::descendants(std::process::id() as i32);
            return Err(format!("left behind: {:?}", left.into_iter().map(support::describe).collect::<Vec<_>>()));
        }
        println!("{strike:?}: gone {:?} later", start.elapsed());
        match (0..JOBS).find(|job| starts()[*job].load(SeqCst) > 1) {
            Some(job) => Err(format!("job {job} was run again")),
            None => Ok(()),
        }
    });
}

fn a_strike_is_seen_where_it_is_planned(transport: TransportKind) {
    let refusal = |role, call, nth, errno| {
        let sys = Faulty::striking(Some(Strike { role, call, nth, blow: Blow::Errno(errno) }));
        let ran = run(&sys, transport);
        (sys.injected(), ran.map(|ran| judge(&ran)).map_err(|error| error.to_string()))
    };
    for (nth, what) in [(1, "asking for socket buffers: socketpair"), (2, "starting the nursery: socketpair")] {
        let (injected, error) = refusal(Role::Host, "socketpair", nth, libc::EMFILE);
        assert_eq!(injected, 1);
        let error = error.expect_err("no pool without a socket");
        assert!(error.contains(what), "{error}");
    }
    // Never made so often.
    assert_eq!(refusal(Role::Host, "socketpair", 10_000, libc::EMFILE), (0, Ok(Ok(()))));
    // What kills a nursery is seen in the outcomes: the judge bites.
    let (injected, verdict) = refusal(Role::Nursery, "ppoll", 1, libc::EFAULT);
    assert_eq!(injected, 1);
    assert!(!matches!(verdict, Ok(Ok(()))), "{verdict:?}");
}
