//! What is measured: programs that run under callgrind, each driving one hot path.
//!
//! A phase is a function that is never inlined, so that callgrind can be told to count nothing else. The host's phases
//! are laid out so that they never wait: all jobs are placed and sent in one, all results have come before the other.

use seqpool::claim::{Claim, ClaimWord, FrameId};
use seqpool::cli::trace;
use seqpool::frame::{self, Frames, Header, Kind};
use seqpool::limits::PACK_SIZE_MAX;
use seqpool::pool::Event;
use seqpool::ring::{ByteRing, RingMemory};
use seqpool::sys::{EventBuffer, Linux, OsResult, Pid, PollFd, Sharing, Sys};
use seqpool::{Builder, Job, Outcome, Pool};
use std::hint::black_box;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Makes this program a driver.
pub const FLAG: &str = "--drive";

/// A driver, and how its counts become instructions for each unit.
#[derive(Clone, Copy)]
pub enum Driver {
    /// Only `phase` counts, and only in the host. The name is the path's own.
    Phase { name: &'static str, phase: &'static str, units: u32, run: fn(u32) },
    /// Two runs whose difference counts, in host and worker.
    Whole { name: &'static str, fewer: u32, more: u32, run: fn(u32) },
}

macro_rules! phase {
    ($name:literal, $phase:ident, $units:expr, $run:expr) => {
        Driver::Phase { name: $name, phase: stringify!($phase), units: $units, run: $run }
    };
}

/// Bytes of each body.
const BODY_SIZE: usize = 64;
const FRAME_SIZE: usize = frame::frame_size(BODY_SIZE);
const FRAMES: usize = PACK_SIZE_MAX / FRAME_SIZE;
/// Jobs that are submitted and delivered together: they fit one slot, and their results fit its socket.
const ROUND_JOBS: u32 = 1_500;
const ROUNDS: u32 = 20;
/// Steps of a job that is never taken back.
const STEPS: u32 = 7;

/// Every driver.
pub const ALL: &[Driver] = &[
    phase!("frame.encode", phase_encode, 100_000, |n| {
        let mut packet = vec![0; FRAMES * FRAME_SIZE];
        phase_encode(n, &mut packet);
        assert_eq!(Frames::new(&packet).filter(|f| f.as_ref().is_ok_and(|f| f.body() == BODY)).count(), FRAMES);
    }),
    phase!("frame.decode", phase_decode, 100_000, |n| {
        let mut packet = vec![0; FRAMES * FRAME_SIZE];
        phase_encode(FRAMES as u32, &mut packet);
        assert_eq!(phase_decode(n, &packet), n as usize * BODY_SIZE);
    }),
    phase!("ring.append_and_free", phase_append_and_free, 100_000, |n| {
        let size = 1 << 20;
        let fd = Linux.memfd(c"ring", size).expect("memfd");
        let map = Linux.map_ring(fd.as_fd(), 0, size, Sharing::NotInherited).expect("map_ring");
        let mut ring = ByteRing::new(RingMemory::new(map, 0), 0);
        phase_append_and_free(n, &mut ring);
        assert_eq!((ring.used(), ring.tail()), (0, u64::from(n) * FRAME_SIZE as u64));
    }),
    phase!("claim.try_claim", phase_claim, 100_000, |n| {
        let first = FrameId { epoch: 1, seq: u32::MAX - 10 };
        let word = ClaimWord::new(first);
        assert_eq!(phase_claim(n, &word, first), n);
    }),
    phase!("host.submit", phase_submit, ROUNDS * ROUND_JOBS, |n| rounds(pool(|b| b), n)),
    phase!("host.deliver", phase_deliver, ROUNDS * ROUND_JOBS, |n| rounds(pool(|b| b), n)),
    phase!("trace.record", phase_record, ROUNDS * ROUND_JOBS * STEPS, |n| {
        let (mut hook, _recording) = trace::record(trace::MARKS_MAX);
        rounds(pool(|b| b.on_event(move |event| phase_record(&mut hook, event))), n / STEPS);
    }),
    Driver::Whole { name: "bulk", fewer: 20_000, more: 220_000, run: |n| bulk(pool(|b| b), n) },
    Driver::Whole {
        name: "recorded",
        fewer: 20_000,
        more: 220_000,
        run: |n| {
            let (hook, _recording) = trace::record(trace::MARKS_MAX);
            bulk(pool(|b| b.on_event(hook)), n);
        },
    },
];

/// By how much a path may differ from its record: well above the spread of seven runs, some beside three busy loops.
pub fn tolerance(path: &str) -> f64 {
    match path {
        // One process that waits for nobody: no spread at all.
        _ if ["frame.", "ring.", "claim.", "trace."].iter().any(|prefix| path.starts_with(prefix)) => 0.01,
        // Packets are the larger the longer they wait. Spread: 0.3 %.
        _ if path.ends_with(".bulk") || path.ends_with(".recorded") => 0.03,
        // Few jobs, so that one wait more or less is seen. Spread: 4.5 %.
        _ => 0.10,
    }
}

/// Runs the driver called `name`, and prints its processes.
pub fn run(name: &str, units: u32) {
    let run = ALL.iter().find_map(|driver| match driver {
        Driver::Phase { name: own, run, .. } | Driver::Whole { name: own, run, .. } => (*own == name).then_some(run),
    });
    println!("host={}", std::process::id());
    run.expect("a driver of this name")(units);
}

// ---- parts ----

const BODY: [u8; BODY_SIZE] = [b'a'; BODY_SIZE];

fn header(id: u64) -> Header {
    Header { payload_size: 0, header_block_size: 0, kind: Kind::Job, flags: 0, id, code: 1, extra: 0 }
}

#[inline(never)]
fn phase_encode(n: u32, packet: &mut [u8]) {
    let mut id = 0;
    while id < u64::from(n) {
        for room in packet.chunks_exact_mut(FRAME_SIZE).take((u64::from(n) - id) as usize) {
            frame::encode(room, header(id), &[], black_box(&BODY));
            id += 1;
        }
        black_box(&mut *packet);
    }
}

#[inline(never)]
fn phase_decode(n: u32, packet: &[u8]) -> usize {
    let (mut left, mut size) = (n, 0);
    while left > 0 {
        for frame in Frames::new(black_box(packet)).take(left as usize) {
            size += black_box(frame.expect("what was encoded")).body().len();
            left -= 1;
        }
    }
    size
}

#[inline(never)]
fn phase_append_and_free(n: u32, ring: &mut ByteRing) {
    let frame = black_box([7u8; FRAME_SIZE]);
    for _ in 0..n {
        ring.append(FRAME_SIZE).expect("room").copy_from_slice(&frame);
        ring.free_to(black_box(ring.tail()));
    }
}

#[inline(never)]
fn phase_claim(n: u32, word: &ClaimWord, first: FrameId) -> u32 {
    let (mut id, mut claimed) = (first, 0);
    for _ in 0..n {
        claimed += u32::from(word.try_claim(black_box(id)) == Claim::Claimed);
        id = id.next();
    }
    claimed
}

// ---- a pool ----

/// Valgrind makes programs slower by about this factor.
const SLOWDOWN: u64 = 32;

/// [`Linux`] as valgrind lets a pool see it.
///
/// The clock is as much slower as the program is, so that what the pool measures of its jobs, and so how it packs them, is
/// near what it would be outside. Who spins sleeps between two looks: how often it looks says nothing here. The valgrind
/// of today has no `pidfd_open(2)`: the descriptors are event counters that never ring.
#[derive(Clone)]
struct Slowed {
    start_ns: u64,
}

impl Slowed {
    fn real_ns(&self, own_ns: u64) -> u64 {
        self.start_ns + own_ns.saturating_sub(self.start_ns).saturating_mul(SLOWDOWN)
    }
}

impl Sys for Slowed {
    fn now_ns(&self) -> u64 {
        self.start_ns + (Linux.now_ns() - self.start_ns) / SLOWDOWN
    }

    fn yield_now(&self) {
        std::thread::sleep(Duration::from_micros(500));
    }

    fn epoll_wait(&self, epoll: BorrowedFd<'_>, events: &mut EventBuffer, timeout_ns: Option<u64>) -> OsResult<()> {
        Linux.epoll_wait(epoll, events, timeout_ns.map(|ns| ns.saturating_mul(SLOWDOWN)))
    }

    fn poll(&self, fds: &mut [PollFd<'_>], timeout_ns: Option<u64>) -> OsResult<usize> {
        Linux.poll(fds, timeout_ns.map(|ns| ns.saturating_mul(SLOWDOWN)))
    }

    fn timerfd_set(&self, fd: BorrowedFd<'_>, deadline_ns: Option<u64>) -> OsResult<()> {
        Linux.timerfd_set(fd, deadline_ns.map(|ns| self.real_ns(ns)))
    }

    fn pidfd_open(&self, _pid: Pid) -> OsResult<OwnedFd> {
        Linux.eventfd()
    }
}

/// A pool of one worker, which has said hello; more would share the jobs as it happens. It is never dropped: that would
/// wait for a descriptor that never becomes readable here. The nursery ends when its host has.
fn pool(adapt: impl FnOnce(Builder) -> Builder) -> &'static mut Pool<Slowed> {
    let upper = |request: &seqpool::Request<'_>, reply: &mut seqpool::Reply<'_>| {
        let room = reply.extend_by(request.body().len());
        for (to, from) in room.iter_mut().zip(request.body()) {
            *to = from.to_ascii_uppercase();
        }
        Ok(())
    };
    let pool = Pool::builder().workers(1).handler("upper", upper);
    // Callgrind writes its counts when a process ends by itself, which a worker that is shut down does not.
    let pool = pool.handler("leave", |_, _| {
        // SAFETY: `_exit(2)` touches no memory of ours.
        unsafe { libc::_exit(0) }
    });
    let mut pool = adapt(pool).spawn_with(Slowed { start_ns: Linux.now_ns() }).expect("a pool");
    assert!(pool.wait_ready(Duration::from_secs(60)).expect("a pool"), "the worker says hello");
    let (nursery, workers) = pool.processes();
    println!("nursery={} worker={}", nursery.expect("a nursery"), workers[0]);
    Box::leak(Box::new(pool))
}

fn is_right(outcome: &Outcome<&[u8]>) -> bool {
    matches!(outcome, Outcome::Done(body) if *body == [b'A'; BODY_SIZE])
}

/// Jobs in rounds: submit a few, let the worker do them all, deliver them.
fn rounds(pool: &mut Pool<Slowed>, jobs: u32) {
    let mut right = 0;
    for _ in 0..jobs / ROUND_JOBS {
        phase_submit(pool);
        std::thread::sleep(Duration::from_millis(100));
        right += phase_deliver(pool);
    }
    assert_eq!(right, jobs);
}

#[inline(never)]
fn phase_submit(pool: &mut Pool<Slowed>) {
    let upper = pool.handler_id("upper").expect("this pool's handler");
    for tag in 0..ROUND_JOBS {
        let job = Job::new(upper, black_box(&BODY)).tag(u64::from(tag));
        assert!(pool.try_submit(job).is_ok(), "one round fits");
    }
    pool.flush().expect("a pool");
}

#[inline(never)]
fn phase_deliver(pool: &mut Pool<Slowed>) -> u32 {
    let mut right = 0;
    while pool.outstanding() > 0 {
        pool.poll(None, |done, _| right += u32::from(is_right(&done.outcome))).expect("a pool");
    }
    right
}

#[inline(never)]
fn phase_record(hook: &mut dyn FnMut(&Event), event: &Event) {
    hook(event);
}

fn bulk(pool: &mut Pool<Slowed>, jobs: u32) {
    let mut right = 0;
    pool.for_each("upper", (0..jobs).map(|_| &BODY), |done, _| right += u32::from(is_right(&done.outcome)))
        .expect("a pool");
    assert_eq!(right, jobs);
    let leave = pool.submit(Job::new("leave", b"")).expect("a pool");
    let crashed = pool.poll(None, |done, _| {
        assert!(done.ticket == leave && matches!(done.outcome, Outcome::Crashed(_)), "{done:?}");
    });
    assert_eq!(crashed.expect("a pool"), 1);
}
