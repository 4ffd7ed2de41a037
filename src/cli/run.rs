//! The loop of `seqpool run`: records in, jobs through the pool, results out.
//!
//! One thread does it all; only the writing of pipes and terminals is left to another (see `output`). A turn submits
//! until the pool, the window or the input has no more, then takes what is done. It sleeps only when neither brought
//! anything, and then on everything at once: input, pool, signals and writers.

use super::config::{Config, standard};
use super::handlers;
use super::input::{Input, Next};
use super::output::Streams;
use super::report::{
    EXIT_DONE, EXIT_SIGNAL, EXIT_UNSUCCESSFUL, EXIT_USAGE, Fatal, Report, StatsFile, StatsJson, Tally, plain_error,
    print_lines,
};
use super::trace::{self, Recording, Written};
use crate::order::Reorder;
use crate::pool::Bulk;
use crate::sys::{self, Interest, Linux, OsError, PollFd, SignalFd, SignalSet, Sys};
use crate::{HandlerId, Outcome, Pool, Reason, TrySubmitError};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

// Their numbers are the same on every Linux.
const SIGINT: i32 = 2;
const SIGPIPE: i32 = 13;
const SIGTERM: i32 = 15;
const EMFILE: i32 = 24;

/// How often a busy loop looks for signals.
const SIGNAL_PERIOD: Duration = Duration::from_millis(5);
/// How long the pool may wait by itself, which it does better than we do, before we sleep on everything.
const POOL_WAIT: Duration = Duration::from_millis(2);
/// How long lines on standard error may take when standard output is closed already.
const LAST_LINES_WAIT: Duration = Duration::from_millis(200);

/// Unfinished jobs at most, so results held back by `-k` at most.
const UNFINISHED_MAX: usize = 64 << 10;
/// Unfinished jobs for each worker at least: one that runs, one that waits at it, and as many again to hand on.
const UNFINISHED_PER_WORKER: usize = 4;
/// Bytes of results that `-k` holds back before it begins no further job.
const REORDER_SIZE_MAX: usize = 4 << 20;

/// Runs the command. Returns its exit code.
pub(crate) fn run(config: Config) -> Result<u8, Fatal> {
    let started = Instant::now();
    // Blocked before the fork, so that none is lost between here and the loop.
    let signals = SignalFd::block_and_open(&SignalSet::of(&[SIGINT, SIGTERM])).map_err(fatal)?;
    let no_stream = |e: std::io::Error| Fatal(format!("standard streams: {}", plain_error(&e)));
    let stdout = standard(std::io::stdout()).map_err(no_stream)?;
    let stderr = standard(std::io::stderr()).map_err(no_stream)?;

    let mut builder = Pool::builder().workers(config.workers).transport(config.transport);
    if let Some(timeout) = config.timeout {
        builder = builder.timeout(timeout);
    }
    if let Some(jobs) = config.max_jobs_per_worker {
        builder = builder.max_jobs_per_worker(jobs);
    }
    if let Some(nice) = config.nice {
        builder = builder.nice(nice);
    }
    builder = builder.job_size_max(crate::limits::JOB_SIZE_MAX);
    let origin_ns = Linux.now_ns();
    let mut recording = None;
    if config.trace.is_some() {
        let (hook, found) = trace::record(trace::MARKS_MAX);
        builder = builder.on_event(hook);
        recording = Some(found);
    }
    let pool = handlers::register(builder).spawn().map_err(|e| no_pool(&e))?;
    let Some(handler) = pool.handler_id(&config.handler) else {
        return Err(Fatal(format!("the pool does not know its handler '{}'", config.handler)));
    };

    let sink = Sink {
        terminator: config.terminator,
        streams: Streams::new(stdout, stderr),
        report: Report::new(config.show_progress),
        order: config.keep_order.then(|| Reorder::new(UNFINISHED_MAX, REORDER_SIZE_MAX)),
        tally: Tally::default(),
        recording,
    };
    let mut run = Run {
        pool,
        handler,
        input: config.input,
        is_input_wanted: true,
        unfinished: 0,
        window: Window::new(config.workers, started),
        sink,
        signals,
        signal: None,
        next_signal_check: started,
        is_killed: false,
        has_trouble: false,
    };
    let end = run.work();
    let files = Files { stats: config.stats, trace: config.trace, handler: config.handler, origin_ns };
    run.finish(end, files, config.workers, started)
}

/// What is written when all is done, and what is said there of the run.
struct Files {
    stats: Option<StatsFile>,
    trace: Option<StatsFile>,
    handler: String,
    /// When the run began. Units: nanoseconds of the monotonic clock.
    origin_ns: u64,
}

/// Where results go.
struct Sink {
    terminator: u8,
    streams: Streams,
    report: Report,
    order: Option<Reorder>,
    tally: Tally,
    /// Knows of jobs that are not done only what is told here.
    recording: Option<Recording>,
}

impl Sink {
    /// Takes the outcome of one job; numbers count from 1.
    #[inline]
    fn deliver(&mut self, number: u64, outcome: &Outcome<&[u8]>) {
        if let (Outcome::Done(body), None) = (outcome, &self.order) {
            self.tally.done += 1;
            self.streams.push_result(body, self.terminator);
        } else {
            self.deliver_with_care(number, outcome);
        }
    }

    /// As [`Sink::deliver`], for results that are to be put in order and jobs that were not done.
    #[inline(never)]
    fn deliver_with_care(&mut self, number: u64, outcome: &Outcome<&[u8]>) {
        self.tally.count(outcome);
        let body = match outcome {
            Outcome::Done(body) => Some(*body),
            _ => {
                if let Some(recording) = &mut self.recording {
                    recording.outcome(number, outcome);
                }
                self.report.unsuccessful(&mut self.streams, number, outcome);
                None
            }
        };
        if let Some(order) = &mut self.order {
            let (streams, terminator) = (&mut self.streams, self.terminator);
            order.insert(number - 1, body, |_, body| {
                if let Some(body) = body {
                    streams.push_result(body, terminator);
                }
            });
        } else if let Some(body) = body {
            self.streams.push_result(body, self.terminator);
        }
    }

    /// Submits one job, if its result may come now and the pool has room.
    #[inline]
    fn submit(&self, bulk: &mut Bulk<'_>, number: u64, body: &[u8]) -> Result<(), Fed> {
        if !self.admits(number) {
            return Err(Fed::Full);
        }
        match bulk.try_submit(body, number) {
            Ok(()) => Ok(()),
            Err(TrySubmitError::Full(_)) => Err(Fed::Full),
            // Nobody drains this pool before its input is over.
            Err(TrySubmitError::Draining(_)) => Err(Fed::Over),
        }
    }

    #[inline]
    fn admits(&self, number: u64) -> bool {
        self.order.as_ref().is_none_or(|order| order.admits(number - 1))
    }

    /// One line of ours.
    fn say(&mut self, text: std::fmt::Arguments<'_>) {
        self.report.say(&mut self.streams, text);
    }
}

/// How many jobs may be unfinished: about what gets done in a tenth of a second.
///
/// More would not be faster, and all of it has to be finished after a signal. The number doubles while a whole window
/// is done sooner and halves when it takes longer.
struct Window {
    limit: usize,
    limit_min: usize,
    done: usize,
    since: Instant,
}

impl Window {
    const FAST: Duration = Duration::from_millis(50);
    const SLOW: Duration = Duration::from_millis(200);

    fn new(workers: usize, now: Instant) -> Self {
        let limit_min = workers.saturating_mul(UNFINISHED_PER_WORKER).min(UNFINISHED_MAX);
        Self { limit: limit_min, limit_min, done: 0, since: now }
    }

    fn done(&mut self, count: usize, now: Instant) {
        self.done += count;
        if self.done < self.limit {
            return;
        }
        let took = now.duration_since(self.since);
        if took < Self::FAST {
            self.limit = (self.limit * 2).min(UNFINISHED_MAX);
        } else if took > Self::SLOW {
            self.limit = (self.limit / 2).max(self.limit_min);
        }
        self.done = 0;
        self.since = now;
    }
}

/// Why a turn submits no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fed {
    /// Only the pool or a reader of ours can make room.
    Full,
    /// The input has nothing now.
    Starved,
    /// The input is over, or no longer wanted.
    Over,
}

/// How the loop ended.
enum End {
    /// Every job that was begun has its outcome.
    Complete,
    /// Our output can no longer be written.
    OutputClosed,
    /// The pool cannot go on.
    PoolFailed(String),
}

struct Run {
    pool: Pool,
    handler: HandlerId,
    input: Input,
    is_input_wanted: bool,
    unfinished: usize,
    window: Window,
    sink: Sink,
    signals: SignalFd,
    /// The last INT or TERM.
    signal: Option<i32>,
    next_signal_check: Instant,
    is_killed: bool,
    /// Whether the exit code is to be 2, though the loop went to its end.
    has_trouble: bool,
}

impl Run {
    fn work(&mut self) -> End {
        match self.turns() {
            Ok(end) => end,
            Err(Fatal(message)) => End::PoolFailed(message),
        }
    }

    fn turns(&mut self) -> Result<End, Fatal> {
        loop {
            let fed = self.feed()?;
            let mut delivered = self.take(Duration::ZERO)?;
            if delivered == 0 && fed != Fed::Starved && self.unfinished > 0 {
                self.sink.streams.flush();
                delivered = self.take(POOL_WAIT)?;
            }
            let now = Instant::now();
            self.window.done(delivered, now);
            let Sink { streams, report, tally, .. } = &mut self.sink;
            report.progress(streams, tally, now);
            if self.sink.streams.error().is_some() {
                return Ok(End::OutputClosed);
            }
            if fed == Fed::Over && self.unfinished == 0 {
                return Ok(End::Complete);
            }
            if now >= self.next_signal_check {
                self.next_signal_check = now + SIGNAL_PERIOD;
                if self.check_signals()? {
                    // What is wanted has changed: look again before any sleep.
                    continue;
                }
            }
            if delivered == 0 {
                self.sleep(fed)?;
            }
        }
    }

    /// Submits as many records as there is room for.
    fn feed(&mut self) -> Result<Fed, Fatal> {
        while self.is_input_wanted {
            // Nothing in the loop over records at hand changes these two.
            if self.unfinished >= self.window.limit || self.sink.streams.is_stalled() {
                return Ok(Fed::Full);
            }
            if let Some(fed) = self.submit_records() {
                return Ok(fed);
            }
            let number = self.sink.tally.jobs + 1;
            match self.input.peek() {
                // The last one, without a terminator, or one that was refused before.
                Next::Record(body) => match self.sink.submit(&mut self.pool.bulk(self.handler), number, body) {
                    Ok(()) => self.unfinished += 1,
                    Err(fed) => return Ok(fed),
                },
                Next::TooLarge(size) => {
                    if !self.sink.admits(number) {
                        return Ok(Fed::Full);
                    }
                    let limit = crate::limits::JOB_SIZE_MAX as u64;
                    let outcome = Outcome::Rejected { reason: Reason::TooLarge { size, limit } };
                    self.sink.deliver(number, &outcome);
                }
                Next::Unknown => {
                    if !self.read()? {
                        return Ok(Fed::Starved);
                    }
                    continue;
                }
                Next::End => {
                    self.is_input_wanted = false;
                    break;
                }
            }
            self.input.consume();
            self.sink.tally.jobs += 1;
        }
        Ok(Fed::Over)
    }

    /// Submits the whole records that are at hand. Returns why it stopped before their end.
    fn submit_records(&mut self) -> Option<Fed> {
        let Self { pool, handler, input, unfinished, window, sink, .. } = self;
        let mut bulk = pool.bulk(*handler);
        let first = sink.tally.jobs + 1;
        let end = first + (window.limit - *unfinished) as u64;
        let mut number = first;
        let mut stopped = None;
        input.take_records(|body| {
            stopped = if number == end { Some(Fed::Full) } else { sink.submit(&mut bulk, number, body).err() };
            number += u64::from(stopped.is_none());
            stopped.is_none()
        });
        let taken = number - first;
        sink.tally.jobs += taken;
        *unfinished += taken as usize;
        stopped
    }

    /// Reads once if that does not sleep. Returns whether it did.
    fn read(&mut self) -> Result<bool, Fatal> {
        if !self.input.is_ready()? {
            return Ok(false);
        }
        self.input.fill().or_else(|error| {
            // What was read so far is still run.
            self.sink.say(format_args!("input: {}", plain_error(&error)));
            self.has_trouble = true;
            Ok(true)
        })
    }

    /// Takes what the pool has done, waiting at most `wait` for the first.
    fn take(&mut self, wait: Duration) -> Result<usize, Fatal> {
        let sink = &mut self.sink;
        let delivered = self
            .pool
            .poll(Some(wait), |completion, _| sink.deliver(completion.tag, &completion.outcome))
            .map_err(|e| Fatal(format!("the pool cannot go on: {e}")))?;
        self.unfinished = self.unfinished.saturating_sub(delivered);
        Ok(delivered)
    }

    /// Obeys the signals that have come. Returns whether there were any.
    fn check_signals(&mut self) -> Result<bool, Fatal> {
        let mut has_any = false;
        while let Some(signal) = self.signals.next_signal().map_err(fatal)? {
            has_any = true;
            let name = sys::signal_name(signal).unwrap_or("signal");
            if self.signal.replace(signal).is_none() {
                self.is_input_wanted = false;
                self.sink.say(format_args!(
                    "{name}: no new jobs, {} to finish; the next one ends them at once",
                    self.unfinished
                ));
            } else if !self.is_killed {
                self.is_killed = true;
                self.pool.kill_all();
            }
        }
        Ok(has_any)
    }

    /// Sleeps until anything happens.
    fn sleep(&mut self, fed: Fed) -> Result<(), Fatal> {
        self.sink.streams.flush();
        let mut fds = Vec::with_capacity(5);
        fds.push(PollFd::new(self.pool.as_fd(), Interest::READ));
        if fed == Fed::Starved && self.is_input_wanted {
            fds.push(PollFd::new(self.input.fd(), Interest::READ));
        }
        wait(fds, &self.signals, &self.sink.streams, self.sink.report.progress_period()).map_err(fatal)?;
        // Whatever it was, it may have been a signal.
        self.next_signal_check = Instant::now();
        Ok(())
    }

    /// Ends the pool, writes what is left and says how it went.
    fn finish(mut self, end: End, files: Files, workers: usize, started: Instant) -> Result<u8, Fatal> {
        let Sink { streams, report, tally, .. } = &mut self.sink;
        report.finish_progress(streams, tally);
        if let End::PoolFailed(message) = &end {
            self.sink.say(format_args!("{message}; {} jobs have no outcome", self.unfinished));
            self.has_trouble = true;
        }
        let wall_s = started.elapsed().as_secs_f64();
        let numbers = StatsJson {
            tally: self.sink.tally,
            pool: self.pool.stats().into(),
            workers,
            wall_s,
            jobs_per_s: if wall_s > 0.0 { self.sink.tally.jobs as f64 / wall_s } else { 0.0 },
        };
        if let Some(Err(error)) = files.stats.map(|file| file.write(&numbers)) {
            self.sink.say(format_args!("--stats: {}", plain_error(&error)));
            self.has_trouble = true;
        }
        // The last results go out while the children end. They end before we do, however we do.
        self.sink.streams.flush();
        drop(self.pool);
        if let (Some(file), Some(recording)) = (files.trace, self.sink.recording.take()) {
            let title = format!("seqpool run {}", files.handler);
            match file.write_with(|out| recording.write(out, &title, workers, files.origin_ns)) {
                Ok(Written { dropped_steps: 0, .. }) => {}
                Ok(Written { recorded_steps, dropped_steps }) => self.sink.say(format_args!(
                    "--trace: the first {dropped_steps} of {recorded_steps} steps found no room; the file begins after them"
                )),
                Err(error) => {
                    self.sink.say(format_args!("--trace: {}", plain_error(&error)));
                    self.has_trouble = true;
                }
            }
        }

        let signal = settle(&mut self.sink.streams, &self.signals, self.signal, self.is_killed)?;
        if let Some(error) = self.sink.streams.error() {
            if error.kind() == ErrorKind::BrokenPipe {
                sys::die_by_signal(SIGPIPE);
            }
            print_lines(&format!("standard output: {}", plain_error(error)));
            self.has_trouble = true;
        }
        Ok(match signal {
            Some(signal) => EXIT_SIGNAL + signal as u8,
            None if self.has_trouble => EXIT_USAGE,
            None if self.sink.tally.unsuccessful() > 0 => EXIT_UNSUCCESSFUL,
            None => EXIT_DONE,
        })
    }
}

/// Why there is no pool, and what to do about the one cause that many workers meet.
fn no_pool(error: &crate::Error) -> Fatal {
    let hint = match error.kind() {
        crate::ErrorKind::Os { source, .. } if source.errno == EMFILE => {
            ": give fewer workers with -j, or allow more open files with `ulimit -n`"
        }
        _ => "",
    };
    Fatal(format!("the pool could not start: {error}{hint}"))
}

fn fatal(error: OsError) -> Fatal {
    Fatal(error.to_string())
}

/// Sleeps until one of these descriptors, a signal or a writer of ours has something.
fn wait<'a>(
    mut fds: Vec<PollFd<'a>>,
    signals: &'a SignalFd,
    streams: &'a Streams,
    timeout: Option<Duration>,
) -> Result<(), OsError> {
    fds.push(PollFd::new(signals.as_fd(), Interest::READ));
    fds.extend(streams.wake_fds().map(|fd| PollFd::new(fd, Interest::READ)));
    Linux.poll(&mut fds, timeout.map(|t| t.as_nanos() as u64))?;
    // A write that ends after this wakes the next wait; one that ended before is seen by the flush before that wait.
    streams.clear_wakes()
}

/// Waits until all that can be written is written. Returns the last signal.
///
/// A reader may take its time, but not against a second signal. Lines for people do not hold up an end by a closed
/// pipe or a kill.
fn settle(
    streams: &mut Streams,
    signals: &SignalFd,
    mut signal: Option<i32>,
    is_killed: bool,
) -> Result<Option<i32>, Fatal> {
    let is_hurried = is_killed || streams.error().is_some();
    let give_up = is_hurried.then(|| Instant::now() + LAST_LINES_WAIT);
    loop {
        let was_settled = streams.is_settled();
        // Also picks up the error of the last write.
        streams.flush();
        if was_settled {
            return Ok(signal);
        }
        // The last write ended just now, and its wake may have been taken before: nothing would end a wait.
        if streams.is_settled() {
            continue;
        }
        let left = give_up.map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok(signal);
        }
        wait(Vec::with_capacity(3), signals, streams, left).map_err(fatal)?;
        while let Some(next) = signals.next_signal().map_err(fatal)? {
            if signal.replace(next).is_some() {
                return Ok(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_follows_the_pace() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut window = Window::new(2, start);
        assert_eq!(window.limit, 8);
        // Nothing is decided before a whole window is done.
        window.done(7, at(1));
        assert_eq!(window.limit, 8);
        window.done(1, at(1));
        assert_eq!(window.limit, 16, "a whole window within a millisecond");
        window.done(16, at(101));
        assert_eq!(window.limit, 16, "about a tenth of a second: right");
        window.done(16, at(1000));
        assert_eq!(window.limit, 8);
        window.done(8, at(9000));
        assert_eq!(window.limit, 8, "never below what keeps the workers busy");
        for _ in 0..100 {
            window.done(window.limit, at(9000));
        }
        assert_eq!(window.limit, UNFINISHED_MAX);
    }
}
