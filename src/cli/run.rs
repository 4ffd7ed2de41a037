//! The loop of `seqpool run`: records in, jobs through the pool, results out.
//!
//! One thread does it all; only the writing of pipes and terminals is left to another (see `output`). A turn submits
//! until the pool, the window or the input has no more, then takes what is done. It sleeps only when neither brought
//! anything, and then on everything at once: input, pool, signals and writers.

mod dry_run;
mod halt;
mod joblog;
mod kept;
mod quarantine;
mod resume;
mod sink;
mod stop;
mod syslog;
mod times;
mod window;

pub(crate) use halt::Halt;
pub(crate) use joblog::JoblogFile;
pub(crate) use resume::Resume;

use super::capsule::Quarantine;
use super::config::{Config, standard};
use super::handlers;
use super::input::{Input, Next};
use super::output::Streams;
use super::report::{
    EXIT_DEADLINE, EXIT_DONE, EXIT_HALTED, EXIT_QUARANTINED, EXIT_SIGNAL, EXIT_UNSUCCESSFUL, EXIT_USAGE, Fatal, Report,
    StatsFile, StatsJson, Tally, plain_error, print_lines,
};
use super::trace::{self, Written};
use crate::order::Reorder;
use crate::sys::{self, Interest, Linux, OsError, PollFd, SignalFd, SignalSet, Sys};
use crate::{Builder, HandlerId, Pool, Prints};
use joblog::Joblog;
use kept::Kept;
use sink::{Begun, Sink};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use stop::{Deadline, settle, wait};
use syslog::Syslog;
use window::{UNFINISHED_MAX, Window};

// Their numbers are the same on every Linux.
const SIGINT: i32 = 2;
const SIGPIPE: i32 = 13;
const SIGTERM: i32 = 15;
const SIGTSTP: i32 = 20;
const EMFILE: i32 = 24;

/// How often a busy loop looks for signals.
const SIGNAL_PERIOD: Duration = Duration::from_millis(5);
/// How long the pool may wait by itself, which it does better than we do, before we sleep on everything.
const POOL_WAIT: Duration = Duration::from_millis(2);
/// How long lines on standard error may take when standard output is closed already.
const LAST_LINES_WAIT: Duration = Duration::from_millis(200);

/// How much of what a job printed goes into its capsule. Units: bytes.
const PRINTED_SIZE: usize = 4 << 10;
/// Bytes of results that `-k` holds back before it begins no further job.
const REORDER_SIZE_MAX: usize = 4 << 20;

/// Runs the command. Returns its exit code.
pub(crate) fn run(config: Config) -> Result<u8, Fatal> {
    if config.is_dry_run {
        return dry_run::run(config);
    }
    let started = Instant::now();
    // Blocked before the fork, so that none is lost between here and the loop.
    let signals = SignalFd::block_and_open(&SignalSet::of(&[SIGINT, SIGTERM, SIGTSTP])).map_err(fatal)?;
    let no_stream = |e: std::io::Error| Fatal(format!("standard streams: {}", plain_error(&e)));
    let stdout = standard(std::io::stdout()).map_err(no_stream)?;
    let stderr = standard(std::io::stderr()).map_err(no_stream)?;

    let origin_ns = Linux.now_ns();
    let (record, recording) = config.trace.as_ref().map(|_| trace::record(trace::MARKS_MAX)).unzip();
    let (note_times, clock) = config.joblog.as_ref().map(|_| times::record(config.workers)).unzip();
    let (keep, trouble) = config.quarantine.clone().map(quarantine::hook).unzip();
    let builder = |config: &Config| {
        let builder = builder(config);
        match keep {
            Some(keep) => {
                builder.on_quarantine(keep).quarantine_all(true).prints(Prints::Both { size_max: PRINTED_SIZE })
            }
            None => builder,
        }
    };
    let builder = match (record, note_times) {
        (Some(mut record), Some(mut note_times)) => builder(&config).on_event(move |event| {
            record(event);
            note_times(event);
        }),
        (Some(record), None) => builder(&config).on_event(record),
        (None, Some(note_times)) => builder(&config).on_event(note_times),
        (None, None) => builder(&config),
    };
    let pool = handlers::register(builder).spawn().map_err(|e| no_pool(&e))?;
    let Some(handler) = pool.handler_id(&config.handler) else {
        return Err(Fatal(format!("the pool does not know its handler '{}'", config.handler)));
    };

    let mut streams = Streams::new(stdout, stderr);
    let begin_log = |file| Joblog::begin(file, &config.handler, config.keep_order, &mut streams);
    let joblog = config.joblog.map(begin_log).transpose()?;
    let mut sink = Sink {
        terminator: config.terminator,
        streams,
        report: Report::new(config.show_progress),
        order: config.keep_order.then(|| Reorder::new(UNFINISHED_MAX, REORDER_SIZE_MAX)),
        tally: Tally::default(),
        recording,
        kept: (config.is_tagged || joblog.is_some()).then(|| Kept::new(config.is_tagged)),
        is_tagged: config.is_tagged,
        joblog: joblog.zip(clock),
        resume: config.resume,
        halt: config.halt,
        is_halt_due: false,
        syslog: None,
        trouble,
        skipped: 0,
        refusal: None,
        tagged: Vec::new(),
    };
    if config.has_syslog {
        let (syslog, problem) = Syslog::open();
        sink.syslog = Some(syslog);
        sink.tell(problem);
    }
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
        deadline: config.deadline.and_then(|after| Some(Deadline { at: started.checked_add(after)?, after })),
        is_halted: false,
        is_late: false,
        has_trouble: false,
    };
    let end = run.work();
    let files = Files {
        stats: config.stats,
        trace: config.trace,
        quarantine: config.quarantine,
        handler: config.handler,
        origin_ns,
    };
    run.finish(end, files, config.workers, started)
}

/// The pool's settings.
fn builder(config: &Config) -> Builder {
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
    if let Some(retries) = config.retries {
        builder = builder.retries(retries);
    }
    if let Some(size) = config.mem_limit {
        builder = builder.memory_limit(size);
    }
    if let Some(chaos) = config.chaos {
        builder = builder.chaos(chaos);
    }
    // What a job cost stands in a joblog that has room for it.
    builder = builder.receipts(config.joblog.as_ref().is_some_and(JoblogFile::has_room_for_receipts));
    builder.job_size_max(crate::limits::JOB_SIZE_MAX)
}

/// What is written when all is done, and what is said there of the run.
struct Files {
    stats: Option<StatsFile>,
    trace: Option<StatsFile>,
    quarantine: Option<Quarantine>,
    handler: String,
    /// When the run began. Units: nanoseconds of the monotonic clock.
    origin_ns: u64,
}

/// Why a turn submits no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fed {
    /// Only the pool or a reader of ours can make room.
    Full,
    /// The input has nothing now.
    Starved,
    /// The input has more, but others have their turn first.
    More,
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
    /// Of the whole run.
    deadline: Option<Deadline>,
    is_halted: bool,
    /// Whether the deadline has passed.
    is_late: bool,
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
            if delivered == 0 && matches!(fed, Fed::Full | Fed::Over) && self.unfinished > 0 {
                self.sink.flush();
                delivered = self.take(POOL_WAIT)?;
            }
            self.sink.flush_if_due();
            let now = Instant::now();
            self.window.done(delivered, now);
            let Sink { streams, report, tally, .. } = &mut self.sink;
            report.progress(streams, tally, now);
            if self.sink.streams.error().is_some() {
                return Ok(End::OutputClosed);
            }
            if self.check_failures() {
                // What is wanted has changed: look again before any sleep.
                continue;
            }
            if fed == Fed::Over && self.unfinished == 0 {
                return Ok(End::Complete);
            }
            if now >= self.next_signal_check {
                self.next_signal_check = now + SIGNAL_PERIOD;
                if self.check_signals()? {
                    continue;
                }
            }
            if self.check_deadline(now) {
                continue;
            }
            if delivered == 0 && fed != Fed::More {
                self.sleep(fed)?;
            }
        }
    }

    /// Submits as many records as there is room for.
    fn feed(&mut self) -> Result<Fed, Fatal> {
        while self.is_input_wanted {
            // Nothing in the loop over records at hand changes these two.
            if self.unfinished >= self.window.limit || self.sink.is_stalled() {
                return Ok(Fed::Full);
            }
            if let Some(fed) = self.submit_records() {
                return Ok(fed);
            }
            let number = self.sink.records() + 1;
            match self.input.peek() {
                // The last one, without a terminator, or one that was refused before.
                Next::Record(body) => match self.sink.begin(&mut self.pool.bulk(self.handler), number, body) {
                    Ok(Begun::Started) => {
                        self.unfinished += 1;
                        self.sink.tally.jobs += 1;
                    }
                    Ok(Begun::Skipped) => {}
                    Err(fed) => return Ok(fed),
                },
                Next::TooLarge(size) => match self.sink.begin_too_large(number, size) {
                    Ok(()) => {}
                    Err(fed) => return Ok(fed),
                },
                Next::Unknown => {
                    if !self.read()? {
                        return Ok(Fed::Starved);
                    }
                    if self.sink.resume.is_some() {
                        // Records that are passed over fill no window: nothing else would end this loop.
                        return Ok(Fed::More);
                    }
                    continue;
                }
                Next::End => {
                    self.is_input_wanted = false;
                    self.sink.check_end();
                    break;
                }
            }
            self.input.consume();
        }
        Ok(Fed::Over)
    }

    /// Submits the whole records that are at hand. Returns why it stopped before their end.
    fn submit_records(&mut self) -> Option<Fed> {
        if !self.sink.has_plain_records() {
            return self.submit_records_with_care();
        }
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

    /// As [`Run::submit_records`], for records that are not plain.
    fn submit_records_with_care(&mut self) -> Option<Fed> {
        let Self { pool, handler, input, unfinished, window, sink, .. } = self;
        let mut bulk = pool.bulk(*handler);
        let mut stopped = None;
        input.take_records(|body| {
            let begun = match *unfinished < window.limit {
                true => sink.begin(&mut bulk, sink.records() + 1, body),
                false => Err(Fed::Full),
            };
            match begun {
                Ok(Begun::Started) => {
                    sink.tally.jobs += 1;
                    *unfinished += 1;
                }
                Ok(Begun::Skipped) => {}
                Err(fed) => stopped = Some(fed),
            }
            stopped.is_none()
        });
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
            .poll(Some(wait), |completion, _| sink.deliver(completion.tag, &completion))
            .map_err(|e| Fatal(format!("the pool cannot go on: {e}")))?;
        self.unfinished = self.unfinished.saturating_sub(delivered);
        Ok(delivered)
    }

    /// Obeys the signals that have come. Returns whether there were any.
    fn check_signals(&mut self) -> Result<bool, Fatal> {
        let mut has_any = false;
        while let Some(signal) = self.signals.next_signal().map_err(fatal)? {
            has_any = true;
            if signal == SIGTSTP {
                self.suspend()?;
                continue;
            }
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
        let was_stalled = self.sink.is_stalled();
        self.sink.flush();
        if was_stalled && !self.sink.is_stalled() && fed == Fed::Full {
            // There is room again, and nothing more has to happen.
            return Ok(());
        }
        let mut fds = Vec::with_capacity(5);
        fds.push(PollFd::new(self.pool.as_fd(), Interest::READ));
        if fed == Fed::Starved && self.is_input_wanted {
            fds.push(PollFd::new(self.input.fd(), Interest::READ));
        }
        let until_deadline = self.deadline.map(|deadline| deadline.at.saturating_duration_since(Instant::now()));
        let timeout = self.sink.report.progress_period().into_iter().chain(until_deadline).min();
        wait(fds, &self.signals, &self.sink, timeout).map_err(fatal)?;
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
        let quarantined = self.pool.stats().quarantined;
        if quarantined > 0 {
            let jobs = if quarantined == 1 { "1 job is".to_owned() } else { format!("{quarantined} jobs are") };
            match &files.quarantine {
                Some(to) => self.sink.say(format_args!("{jobs} quarantined in {}: see seqpool replay", to.folder())),
                None => self
                    .sink
                    .say(format_args!("{jobs} quarantined: --quarantine DIR keeps what is needed to run them again")),
            }
        }
        let wall_s = started.elapsed().as_secs_f64();
        let numbers = StatsJson {
            tally: self.sink.tally,
            pool: self.pool.stats().into(),
            skipped: self.sink.skipped,
            workers,
            wall_s,
            jobs_per_s: if wall_s > 0.0 { self.sink.tally.jobs as f64 / wall_s } else { 0.0 },
        };
        if let Some(Err(error)) = files.stats.map(|file| file.write(&numbers)) {
            self.sink.say(format_args!("--stats: {}", plain_error(&error)));
            self.has_trouble = true;
        }
        // The last results go out while the children end. They end before we do, however we do.
        self.sink.flush();
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

        let signal = settle(&mut self.sink, &self.signals, self.signal, self.is_killed || self.is_late)?;
        if self.is_late && !self.sink.is_settled() {
            print_lines("the reader of standard output did not take all results before the deadline");
        }
        if let Some(error) = self.sink.streams.error() {
            if error.kind() == ErrorKind::BrokenPipe {
                sys::die_by_signal(SIGPIPE);
            }
            print_lines(&format!("standard output: {}", plain_error(error)));
            self.has_trouble = true;
        }
        Ok(match signal {
            Some(signal) => EXIT_SIGNAL + signal as u8,
            None if self.is_late => EXIT_DEADLINE,
            None if self.is_halted => EXIT_HALTED,
            None if self.has_trouble => EXIT_USAGE,
            None if quarantined > 0 => EXIT_QUARANTINED,
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
