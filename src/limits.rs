//! Every bound of the pool, with the assertions that tie them together.
//!
//! A queue, ring, retry, wait or restart without a limit here is a bug.

use std::time::Duration;

// ---- frames and packets

/// Bytes of a frame's header.
pub const FRAME_HEADER_SIZE: usize = 24;
/// Frames begin at multiples of this many bytes.
pub const FRAME_ALIGN: usize = 8;
/// Bytes before a fragment's part of the body: the body's total size and this part's offset.
pub const FRAGMENT_PREFIX_SIZE: usize = 16;
/// Largest packet, and so the largest frame that travels whole. Fits the default send buffer of 212,992 bytes.
pub const PACKET_SIZE_MAX: usize = 192 << 10;
/// Frames are packed up to this size. Two such packets fit a send buffer that could not be raised beyond the default.
pub const PACK_SIZE_MAX: usize = PACKET_SIZE_MAX;
/// Smallest packet size that a socket must allow.
pub const PACKET_SIZE_MIN: usize = 4 << 10;
/// Largest header block of a job.
pub const HEADER_BLOCK_SIZE_MAX: usize = 16 << 10;
/// Memory of a large body that is kept to be used again.
pub const SPARE_SIZE_MAX: usize = 4 << 20;
/// Default bound on a job's body, and on a result's.
pub const JOB_SIZE_MAX: usize = 64 << 20;
/// Largest body that a pool may be built for.
pub const JOB_SIZE_CEILING: usize = 1 << 40;
/// Bytes before the captured output in a failure's body: how many were cut, and how many follow.
pub const PRINTED_PREFIX_SIZE: usize = 16;
/// Bytes of a failure's message that are kept.
pub const MESSAGE_SIZE_MAX: usize = 2 << 10;

// ---- slots

/// Bytes of a slot's in-ring, and of its out-ring.
pub const RING_SIZE: usize = 1 << 20;
/// Bytes of a slot's control page.
pub const CONTROL_SIZE: usize = 4 << 10;
/// Jobs that one slot holds at most, sent or waiting to be sent.
pub const WINDOW_JOBS_MAX: usize = 4 << 10;
/// Work that one slot is given ahead. Units: nanoseconds.
pub const WINDOW_NS: u64 = 200_000;
/// Jobs that one slot is given whatever their service time: the one that runs, and one more, which can be taken back.
pub const WINDOW_JOBS_MIN: usize = 2;
/// Work that one slot is given before the next idle one has its turn: a pack of tiny jobs. Units: nanoseconds.
pub const FILL_NS: u64 = 50_000;
/// Unstarted work below this is not worth taking back from a slot. Units: nanoseconds.
pub const STEAL_NS: u64 = 20_000;
/// While a caller has inputs at hand, which idle workers are given first: how long a slot must have brought no result
/// until what waits behind its job is taken back. Units: nanoseconds.
pub const STEAL_LATE_NS: u64 = 100_000_000;
/// Send buffer asked for; the kernel may give less.
pub const SEND_BUFFER_SIZE: usize = 4 << 20;
/// Packets that are read from one slot a turn, before the others have theirs.
pub const PACKETS_PER_TURN: u32 = 16;
/// Times that a dead worker's socket is drained, for its end of file, or until what lies in its out-ring fits what came.
pub const DRAINS_MAX: u32 = 16;
/// Workers of a pool.
pub const WORKERS_MAX: usize = 4096;

// ---- the pool

/// Default bound on jobs that are submitted and not yet delivered, in a pool of up to 64 workers.
pub const OUTSTANDING_JOBS_MAX: usize = 64 << 10;
/// The same for each worker of a larger pool: a pack of tiny jobs for each, and a little more.
pub const OUTSTANDING_JOBS_PER_WORKER: usize = 1 << 10;
/// Bytes of the pool's queue, behind the slots' own rings.
pub const QUEUE_SIZE: usize = 2 << 20;
/// Entries of the pool's queue.
pub const QUEUE_JOBS_MAX: usize = 16 << 10;
/// Bytes of jobs too large for a ring that the pool holds at once; one is always admitted.
pub const LARGE_STORE_SIZE: usize = 256 << 20;
/// Bytes of results that wait for somebody to take them, beyond which nothing new is admitted.
pub const UNDELIVERED_SIZE_MAX: usize = 64 << 20;
/// Bytes of small jobs that wait to be tried again, beyond which nothing new is admitted.
pub const ASIDE_SIZE_MAX: usize = 64 << 20;
/// How far ordered output runs ahead of its oldest undelivered result. Units: jobs.
pub const ORDER_WINDOW_JOBS: usize = 32 << 10;
/// Bytes that ordered output holds back.
pub const ORDER_WINDOW_SIZE: usize = 8 << 20;
/// Handlers of a pool.
pub const HANDLERS_MAX: usize = 4096;
/// Descriptors that workers may be asked to keep.
pub const KEPT_FDS_MAX: usize = 256;
/// Least growth of memory after set-up that a worker may be limited to: it needs a packet's room and its stack. Units: bytes.
pub const MEMORY_LIMIT_MIN: u64 = 8 << 20;
/// Names that are tried for a pool's control group.
pub const GROUP_NAME_TRIES: u32 = 64;
/// Added to the host's own for its workers: how much likelier they are killed when the machine's memory is short.
pub const OOM_SCORE_RAISE: i32 = 300;
/// Bounds of it, by `proc_pid_oom_score_adj(5)`.
pub const OOM_SCORE_MIN: i32 = -1000;
/// As [`OOM_SCORE_MIN`].
pub const OOM_SCORE_MAX: i32 = 1000;
/// Times that a job may be next in line when a worker dies with nothing running, until it is called the cause.
pub const CHARGES_MAX: u8 = 3;

// ---- time

/// Longest sleep while jobs are in flight: what a lost edge costs at most.
pub const SLEEP_MAX: Duration = Duration::from_millis(100);
/// Results wait for company at most this long, plus the job in hand. Units: nanoseconds.
pub const RESULT_DELAY_NS: u64 = 50_000;
/// Jobs that run for less have Rust's standard output flushed with their pack of results, not by themselves: that lock
/// would cost more than the job. Units: nanoseconds.
pub const PRINTING_NS_MIN: u64 = 1_000;
/// Deadlines are sampled at least this far apart.
pub const SAMPLE_MIN: Duration = Duration::from_micros(2500);
/// A worker that has unstarted jobs and starts none for this long is killed, unless the pool is told otherwise.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A worker that has not said hello for this long is killed.
pub const SPAWN_TIMEOUT: Duration = Duration::from_secs(60);
/// A large job that makes no progress on its way for this long costs its worker.
pub const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Default of how long a worker whose job is timed out or cancelled has between `SIGTERM` and `SIGKILL`.
pub const GRACE: Duration = Duration::from_millis(100);
/// After `SIGKILL`, how long until a worker is reported as impossible to kill and its memory given up; or, of a nursery,
/// until no other takes its place.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often, at most, one worker's memory is looked at while it has jobs. Units: one `read` of `/proc/PID/statm` each.
pub const MEMORY_SAMPLE_PERIOD: Duration = Duration::from_millis(100);
/// Least age that workers may be replaced at.
pub const WORKER_AGE_MIN: Duration = Duration::from_millis(100);
/// Workers that started together are replaced one after the other, over this part of their age: one over so much.
pub const WORKER_AGE_SPREAD: u64 = 8;
/// How long the processes in a control group that is to be removed are waited for.
pub const GROUP_REMOVE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a worker that has done the last job that it may do has to leave, then it is killed.
pub const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long `Drop` waits for the nursery to end everything; then it kills the nursery.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// A nursery that owes an answer to a command and gives none for this long is killed: it hangs.
pub const NURSERY_TIMEOUT: Duration = Duration::from_secs(4);
/// A nursery that is executed has this long to build its handlers and say that it serves.
pub const NURSERY_START_TIMEOUT: Duration = Duration::from_secs(10);
/// Nurseries that are started in a row in place of a lost one, until one has brought a result or grown old enough; then
/// the pool does without.
pub const NURSERY_STARTS_MAX: u32 = 8;
/// A nursery that has lived so long had no bad start.
pub const NURSERY_PROVED_AGE: Duration = Duration::from_secs(2);
/// A host that looks for an overdue answer this much too late has stood still itself, and so may its nursery.
pub const NURSERY_LATE_MAX: Duration = Duration::from_secs(1);
/// Delay before a slot whose worker died before its first finished job is filled again; doubles each time.
pub const RESPAWN_BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest such delay.
pub const RESPAWN_BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Wait before a job is tried for the second time, at least; doubles each time.
pub const RETRY_BACKOFF_MIN: Duration = Duration::from_millis(1);
/// Default of that wait.
pub const RETRY_BACKOFF: Duration = Duration::from_millis(10);
/// Longest such wait, unless a longer first one is asked for.
pub const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Extra attempts that may be asked for.
pub const RETRIES_MAX: u32 = 1000;
/// Bytes of a job's printed output that may be asked to be kept, its last ones.
pub const PRINTED_SIZE_MAX: usize = 64 << 10;
/// Memory that a worker's captured output may take; beyond, all but the last bytes are given back.
pub const PRINT_FILE_SIZE_MAX: usize = 4 << 20;
/// How often that is looked at while jobs are in flight; a tenth as often otherwise.
pub const PRINT_SAMPLE: Duration = Duration::from_millis(10);
/// How often whoever gives that memory back looks again, as long as there is much to be given back.
pub const PRINT_FREE_PAUSE: Duration = Duration::from_millis(1);
/// Looks in a row that find little, after which it is done.
pub const PRINT_FREE_LOOKS: u32 = 50;
/// Deaths in a row during set-up, after which a slot is given up.
pub const EARLY_DEATHS_MAX: u32 = 8;
/// Failed forks in a row, after which a slot is given up.
pub const SPAWN_FAILURES_MAX: u32 = 64;
/// How long one blocking receive of the `blocking` transport may keep the host from everything else.
pub const BLOCKING_SLICE: Duration = Duration::from_millis(2);

// ---- waiting

/// Longest spin before a sleep. Units: nanoseconds.
pub const SPIN_NS_MAX: u64 = 50_000;
/// Waits that do not spin after a spin that failed; at most.
pub const SPIN_SKIPS_MAX: u32 = 64;
/// A spin that ends so long after its time had the core taken away. Units: nanoseconds.
pub const ROBBED_NS_MIN: u64 = 200_000;
/// Waits that do not spin after spins during which others had the core; at most.
pub const ROBBED_SKIPS_MAX: u32 = 4096;
/// Receives tried between two looks at the clock while spinning.
pub const SPIN_ROUND: u32 = 4;

// ---- the command

/// Bytes of a record that a joblog shows; more are counted and not shown.
pub const JOBLOG_RECORD_SIZE_MAX: usize = 256;
/// Bytes of a joblog that wait until the results of their jobs are written, beyond which no further job is begun.
pub const JOBLOG_WAITING_SIZE_MAX: usize = 1 << 20;
/// Longest line of a joblog that is read back.
pub const JOBLOG_LINE_SIZE_MAX: usize = 64 << 10;
/// Records of an earlier run that are compared with the input when it is resumed, the first ones in its joblog.
pub const RESUME_RECORDS_MAX: usize = 64 << 10;
/// Bytes of records that are kept until their jobs are over, for tags and joblogs; one is always kept.
pub const KEPT_RECORDS_SIZE_MAX: usize = 64 << 20;
/// Lines that wait for the system's log; further ones are lost.
pub const SYSLOG_LINES_MAX: usize = 1024;
/// A percentage of failed jobs ends a run only when at least so many have failed.
pub const HALT_FAILED_MIN: u64 = 3;

const _: () = {
    assert!(RING_SIZE.is_power_of_two() && RING_SIZE.is_multiple_of(4096));
    assert!(QUEUE_SIZE.is_power_of_two() && QUEUE_JOBS_MAX.is_power_of_two());
    assert!(PACKET_SIZE_MAX <= RING_SIZE / 4, "several of the largest frames fit a ring");
    assert!(PACKET_SIZE_MAX <= QUEUE_SIZE / 4);
    assert!(PACK_SIZE_MAX <= PACKET_SIZE_MAX && PACKET_SIZE_MIN <= PACK_SIZE_MAX);
    assert!(PACKET_SIZE_MAX.is_multiple_of(FRAME_ALIGN) && PACKET_SIZE_MIN.is_multiple_of(FRAME_ALIGN));
    assert!(
        WINDOW_JOBS_MAX.is_power_of_two() && WINDOW_JOBS_MAX < 1 << 31,
        "sequence numbers are compared modulo 2^32"
    );
    assert!(HEADER_BLOCK_SIZE_MAX <= u16::MAX as usize);
    assert!(MESSAGE_SIZE_MAX + FRAME_HEADER_SIZE <= PACKET_SIZE_MIN, "a refusal always fits");
    assert!(
        FRAME_HEADER_SIZE + 72 + PRINTED_PREFIX_SIZE + PRINTED_SIZE_MAX + MESSAGE_SIZE_MAX <= PACKET_SIZE_MAX,
        "a failure with its output is one frame"
    );
    assert!(FRAME_HEADER_SIZE + 72 + PRINTED_PREFIX_SIZE + MESSAGE_SIZE_MAX < PACKET_SIZE_MIN);
    assert!(PRINTED_SIZE_MAX <= PRINT_FILE_SIZE_MAX);
    assert!(WINDOW_NS < STEAL_LATE_NS && STEAL_LATE_NS as u128 <= SLEEP_MAX.as_nanos(), "looked at in time");
    assert!(WINDOW_JOBS_MIN >= 2, "always one more than is running");
    assert!(JOBLOG_RECORD_SIZE_MAX * 16 <= JOBLOG_LINE_SIZE_MAX, "a line that was written can be read, also escaped");
    assert!(
        NURSERY_TIMEOUT.as_nanos() < KILL_TIMEOUT.as_nanos(),
        "no worker is called unkillable for its nursery's fault"
    );
};

// ---- reactor (floor 2) ----------------------------------------------------------------------------------------------

/// Descriptors that one reactor can hold at a time. Units: count.
pub const REACTOR_TOKENS_MAX: usize = 1 << 20;
/// Timers that one reactor can hold at a time. Units: count.
pub const REACTOR_TIMERS_MAX: usize = 1 << 26;
/// Events that one wait takes from the kernel; what is left over comes with the next. Units: count.
pub const REACTOR_EVENTS_PER_WAIT: usize = 256;
/// How many parts (packets, reads, accepts) one token may handle a turn before the next token has its turn, unless the
/// owner sets another. Units: count.
pub const REACTOR_BUDGET: u32 = 64;

// The highest index is the mark of the reactor's own descriptors.
const _: () = assert!(REACTOR_TOKENS_MAX < u32::MAX as usize);
const _: () = assert!(REACTOR_TIMERS_MAX < u32::MAX as usize);
// The reactor's own two descriptors must leave room for others in every batch.
const _: () = assert!(REACTOR_EVENTS_PER_WAIT > 2);
const _: () = assert!(REACTOR_BUDGET > 0);
