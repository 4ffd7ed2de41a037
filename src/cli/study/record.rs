//! What a server records while it serves, and the [`Timeline`] that follows from it.
//!
//! Records go to memory that the process which measures shares, was made before the run and is touched before it: a record
//! costs a few stores, and nothing has to be sent when the run is over.

use super::message::Broken;
use super::plan::Plan;
use super::timeline::{Activity, Lane, Span, Timeline};
use crate::sys::{OsResult, SharedCounters};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What stands before the records. Word 0: results read. 1: records written. 2: system calls of the server's run. 3 and
/// 4: when the run began, and when the last result had been read.
const DONE: usize = 0;
const WRITTEN: usize = 1;
const SYSTEM_CALLS: usize = 2;
const STARTED_NS: usize = 3;
const ENDED_NS: usize = 4;
const FIRST_RECORD: usize = 5;

/// Words of a record: activity and lane and job in one, start, end.
const RECORD_SIZE: usize = 3;
/// The server's lane in a record.
const SERVER: u64 = u16::MAX as u64;
/// A part, whose two shares may stand apart.
const RECORDS_PER_PART: usize = 2;
/// Room for sleeps of the server, for each part that is to be moved. One is usual; a non-blocking server is also woken by
/// room that is no news, by end of file, and by what comes in two halves.
const SLEEPS_PER_PART: usize = 4;
/// Room beside that, for each exchange: the computation, and sleeps until somebody connects and until the peer closes.
const RECORDS_PER_EXCHANGE: usize = 8;

const ACTIVITIES: [Activity; 7] = [
    Activity::Read,
    Activity::Write,
    Activity::Wait,
    Activity::Compute,
    Activity::Busy,
    Activity::Blocked,
    Activity::Free,
];

/// One span, and for a worker which job it has to do with. Units: nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) lane: Lane,
    pub(super) activity: Activity,
    pub(super) job: u32,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
}

impl Record {
    fn encode(&self) -> [u64; RECORD_SIZE] {
        let lane = match self.lane {
            Lane::Worker(worker) => u64::from(worker),
            Lane::Server => SERVER,
        };
        let activity = ACTIVITIES.iter().position(|a| *a == self.activity).unwrap_or(0) as u64;
        [activity << 48 | lane << 32 | u64::from(self.job), self.start_ns, self.end_ns]
    }

    fn decode([head, start_ns, end_ns]: [u64; RECORD_SIZE]) -> Self {
        let lane = match head >> 32 & SERVER {
            SERVER => Lane::Server,
            worker => Lane::Worker(worker as u16),
        };
        let activity = ACTIVITIES[(head >> 48) as usize % ACTIVITIES.len()];
        Self { lane, activity, job: head as u32, start_ns, end_ns }
    }
}

/// The memory.
#[derive(Debug)]
pub(super) struct Records(SharedCounters);

impl Records {
    /// Room for every record of such a run.
    pub(super) fn new(plan: &Plan) -> OsResult<Self> {
        let exchanges = plan.jobs() as usize + plan.workers();
        let of_messages = exchanges * 2 * plan.parts as usize;
        let capacity = of_messages * (RECORDS_PER_PART + SLEEPS_PER_PART) + exchanges * RECORDS_PER_EXCHANGE;
        let words = SharedCounters::new(FIRST_RECORD + capacity * RECORD_SIZE)?;
        // Relaxed here and below: one process writes; the other reads the rest when that one has been reaped, and until
        // then only a count.
        words.words().iter().for_each(|word| word.store(0, Relaxed));
        Ok(Self(words))
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &self.0.words()[index]
    }

    /// How many results have been read so far.
    pub(super) fn done(&self) -> u64 {
        self.word(DONE).load(Relaxed)
    }

    pub(super) fn set_done(&self, done: u64) {
        self.word(DONE).store(done, Relaxed);
    }

    pub(super) fn system_calls(&self) -> u64 {
        self.word(SYSTEM_CALLS).load(Relaxed)
    }

    pub(super) fn set_system_calls(&self, calls: u64) {
        self.word(SYSTEM_CALLS).store(calls, Relaxed);
    }

    pub(super) fn set_started_ns(&self, at_ns: u64) {
        self.word(STARTED_NS).store(at_ns, Relaxed);
    }

    pub(super) fn set_ended_ns(&self, at_ns: u64) {
        self.word(ENDED_NS).store(at_ns, Relaxed);
    }

    /// When the run began and ended. Units: nanoseconds of the monotonic clock.
    pub(super) fn run_ns(&self) -> (u64, u64) {
        (self.word(STARTED_NS).load(Relaxed), self.word(ENDED_NS).load(Relaxed))
    }

    pub(super) fn push(&self, record: &Record) -> Result<(), Broken> {
        let written = self.word(WRITTEN).load(Relaxed);
        let first = FIRST_RECORD + written as usize * RECORD_SIZE;
        let room =
            self.0.words().get(first..first + RECORD_SIZE).ok_or(Broken::Rule("more records than there is room"))?;
        for (word, value) in room.iter().zip(record.encode()) {
            word.store(value, Relaxed);
        }
        self.word(WRITTEN).store(written + 1, Relaxed);
        Ok(())
    }

    /// All of them, in the order in which they were written.
    pub(super) fn all(&self) -> Vec<Record> {
        let written = self.word(WRITTEN).load(Relaxed) as usize;
        let words = &self.0.words()[FIRST_RECORD..FIRST_RECORD + written * RECORD_SIZE];
        let (records, _) = words.as_chunks::<RECORD_SIZE>();
        records.iter().map(|r| Record::decode([0, 1, 2].map(|i| r[i].load(Relaxed)))).collect()
    }
}

/// The timeline of a run that began and ended then. What a worker did not spend with computing or a transfer it waited;
/// what the server did not sleep it was busy.
pub(super) fn timeline(workers: usize, (start_ns, end_ns): (u64, u64), records: &[Record]) -> Timeline {
    let mut spans = Vec::with_capacity(2 * records.len());
    for worker in 0..workers {
        lane(Lane::Worker(worker as u16), Activity::Wait, (start_ns, end_ns), records, &mut spans);
    }
    let last_end_ns = lane(Lane::Server, Activity::Busy, (start_ns, end_ns), records, &mut spans);
    let makespan_ns = end_ns.saturating_sub(start_ns);
    push(&mut spans, Lane::Server, Activity::Busy, last_end_ns, makespan_ns);
    Timeline { workers, spans, makespan_ns }
}

/// Adds one lane's records in the order of time, and `between` for the time between them. Where the last ends; units:
/// nanoseconds since the run began.
fn lane(lane: Lane, between: Activity, run_ns: (u64, u64), records: &[Record], spans: &mut Vec<Span>) -> u64 {
    let mut own: Vec<&Record> = records.iter().filter(|r| r.lane == lane).collect();
    own.sort_by_key(|r| r.start_ns);
    let since = |ns: u64| ns.clamp(run_ns.0, run_ns.1.max(run_ns.0)) - run_ns.0;
    let mut at_ns = 0;
    for (index, record) in own.iter().enumerate() {
        let mut end_ns = record.end_ns;
        // The server learns that a part has been taken a wake-up after the worker has begun to compute.
        if let Some(next) = own.get(index + 1).filter(|next| next.activity == Activity::Compute) {
            end_ns = end_ns.min(next.start_ns);
        }
        let start_ns = since(record.start_ns).max(at_ns);
        let end_ns = since(end_ns).max(start_ns);
        push(spans, lane, between, at_ns, start_ns);
        push(spans, lane, record.activity, start_ns, end_ns);
        at_ns = end_ns;
    }
    at_ns
}

fn push(spans: &mut Vec<Span>, lane: Lane, activity: Activity, start_ns: u64, end_ns: u64) {
    if start_ns < end_ns {
        spans.push(Span { lane, activity, start_ns, end_ns });
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Compute, Server, Supply, Transfer};
    use super::*;

    fn record(lane: Lane, activity: Activity, start_ns: u64, end_ns: u64) -> Record {
        Record { lane, activity, job: 0, start_ns, end_ns }
    }

    fn drawn(timeline: &Timeline, lane: Lane) -> Vec<(Activity, u64, u64)> {
        timeline.lane(lane).map(|s| (s.activity, s.start_ns, s.end_ns)).collect()
    }

    #[test]
    fn what_is_not_recorded_is_waiting_or_work() {
        use Activity::*;
        let worker = Lane::Worker(0);
        let records = [
            record(worker, Read, 110, 120),
            record(Lane::Server, Blocked, 140, 190),
            record(worker, Write, 130, 140),
            // Sent with the result, so written after the job that it began with.
            record(worker, Compute, 138, 185),
            record(worker, Read, 190, 200),
        ];
        let timeline = timeline(1, (100, 200), &records);
        let expected = [
            (Wait, 0, 10),
            (Read, 10, 20),
            (Wait, 20, 30),
            (Write, 30, 38),
            (Compute, 38, 85),
            (Wait, 85, 90),
            (Read, 90, 100),
        ];
        assert_eq!(drawn(&timeline, worker), expected);
        assert_eq!(drawn(&timeline, Lane::Server), [(Busy, 0, 40), (Blocked, 40, 90), (Busy, 90, 100)]);
        assert_eq!(timeline.makespan_ns, 100);
        assert_eq!(timeline.total_ns(worker, Wait), 25);
        assert_eq!(timeline.server_share(Blocked), 0.5);
    }

    #[test]
    fn spans_neither_overlap_nor_leave_the_run() {
        use Activity::*;
        let worker = Lane::Worker(0);
        let records = [
            record(worker, Read, 90, 120),
            // The server's time for a part may begin a moment before a computation has ended.
            record(worker, Compute, 120, 150),
            record(worker, Read, 145, 160),
            record(Lane::Server, Free, 195, 230),
        ];
        let timeline = timeline(2, (100, 200), &records);
        assert_eq!(drawn(&timeline, worker), [(Read, 0, 20), (Compute, 20, 50), (Read, 50, 60)]);
        assert_eq!(drawn(&timeline, Lane::Worker(1)), []);
        assert_eq!(drawn(&timeline, Lane::Server), [(Busy, 0, 95), (Free, 95, 100)]);
    }

    #[test]
    fn records_come_back_as_they_were_and_room_ends() {
        let plan = Plan {
            server: Server::Blocking,
            transfer: Transfer::Cpu,
            supply: Supply::Rounds,
            compute: Compute::Sleep,
            compute_ns: vec![1; 2],
            message_ns: 1,
            parts: 3,
            rounds: 1,
        };
        let records = Records::new(&plan).unwrap();
        let lanes = [Lane::Server, Lane::Worker(0), Lane::Worker(u16::MAX - 1)];
        let mut pushed = Vec::new();
        for (index, activity) in ACTIVITIES.into_iter().enumerate() {
            let lane = lanes[index % lanes.len()];
            let record = Record { lane, activity, job: u32::MAX - index as u32, start_ns: u64::MAX, end_ns: 9 };
            records.push(&record).unwrap();
            pushed.push(record);
        }
        assert_eq!(records.all(), pushed);
        let full = (0..1000).find_map(|_| records.push(&pushed[0]).err());
        assert_eq!(full, Some(Broken::Rule("more records than there is room")));
    }
}
