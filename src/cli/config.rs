//! Arguments checked: what can be wrong is found here, before any process is forked.

use super::args::RunArgs;
use super::capsule::Quarantine;
use super::handlers;
use super::input::Input;
use super::report::{Fatal, StatsFile, plain_error};
use super::run::{Halt, JoblogFile, Resume};
use crate::pool::default_workers;
use crate::sys;
use crate::{Chaos, TransportKind};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// All that a run needs, known to be good.
pub(crate) struct Config {
    pub(crate) handler: String,
    pub(crate) workers: usize,
    pub(crate) keep_order: bool,
    /// The byte that ends a record and a result.
    pub(crate) terminator: u8,
    pub(crate) input: Input,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retries: Option<u32>,
    pub(crate) quarantine: Option<Quarantine>,
    pub(crate) chaos: Option<Chaos>,
    /// Units: bytes.
    pub(crate) mem_limit: Option<u64>,
    pub(crate) max_jobs_per_worker: Option<usize>,
    pub(crate) nice: Option<i32>,
    pub(crate) transport: TransportKind,
    pub(crate) stats: Option<StatsFile>,
    pub(crate) trace: Option<StatsFile>,
    pub(crate) show_progress: bool,
    pub(crate) halt: Option<Halt>,
    /// Of the whole run.
    pub(crate) deadline: Option<Duration>,
    pub(crate) joblog: Option<JoblogFile>,
    pub(crate) resume: Option<Resume>,
    pub(crate) is_tagged: bool,
    pub(crate) is_dry_run: bool,
    pub(crate) has_syslog: bool,
}

impl Config {
    /// Checks the arguments and opens the files that they name.
    pub(crate) fn build(args: RunArgs) -> Result<Self, Fatal> {
        if !handlers::NAMES.contains(&args.handler.as_str()) {
            let known = handlers::NAMES.join(", ");
            return Err(Fatal(format!("unknown handler '{}': known are {known}", args.handler)));
        }
        let workers = args.jobs.unwrap_or_else(default_workers);
        if workers == 0 {
            let usual = default_workers();
            return Err(Fatal(format!(
                "-j0: a pool needs at least one worker: give -j1 or more, or leave -j out for one on each CPU ({usual} here)"
            )));
        }
        if args.timeout == Some(Duration::ZERO) {
            return Err(Fatal("--timeout 0: no job could finish: give a longer time, or leave it out for none".into()));
        }
        if args.chaos.is_some_and(|shares| shares.stalls()) && args.timeout.is_none() {
            return Err(Fatal(
                "--chaos stall: a job that hangs ends by its timeout only: give --timeout DUR too".into(),
            ));
        }
        if args.max_jobs_per_worker == Some(0) {
            return Err(Fatal(
                "--max-jobs-per-worker 0: no job could run: give 1 or more, or leave it out to keep workers".into(),
            ));
        }
        if args.deadline == Some(Duration::ZERO) {
            return Err(Fatal("--deadline 0: no job could start: give a longer time, or leave it out for none".into()));
        }
        if let Some(nice) = args.nice {
            check_nice(nice)?;
        }
        let terminator = if args.null { 0 } else { b'\n' };
        let input = match &args.arg_file {
            // As in GNU tools; a file of that name is `./-`.
            Some(path) if path.as_os_str() != "-" => {
                open_input(path).map_err(|e| Fatal(format!("{}: {}", path.display(), plain_error(&e))))?
            }
            _ => standard(std::io::stdin()).map_err(|e| Fatal(format!("standard input: {}", plain_error(&e))))?,
        };
        // A dry run writes no files.
        let report = |path: Option<PathBuf>| path.filter(|_| !args.dry_run);
        let stats = open_report("--stats", report(args.stats).as_deref())?;
        let trace = open_report("--trace", report(args.trace).as_deref())?;
        if let (Some(stats), Some(trace)) = (&stats, &trace)
            && stats.replaces_same(trace)
        {
            return Err(Fatal("--stats and --trace: one file cannot be both: give two names".into()));
        }
        let (joblog, resume) = match &args.joblog {
            Some(path) => {
                check_joblog(path, &input, [&stats, &trace])?;
                let is_resumed = args.resume || args.resume_failed;
                JoblogFile::open(path, is_resumed, args.dry_run, &args.handler, args.resume_failed)?
            }
            None if args.resume || args.resume_failed => {
                let option = if args.resume { "--resume" } else { "--resume-failed" };
                return Err(Fatal(format!(
                    "{option}: what is done stands in a joblog: name the earlier run's with --joblog FILE"
                )));
            }
            None => (None, None),
        };
        Ok(Self {
            handler: args.handler,
            workers,
            keep_order: args.keep_order,
            terminator,
            input: Input::new(input, terminator, crate::limits::JOB_SIZE_MAX),
            timeout: args.timeout,
            retries: args.retries,
            // Like all other files: none by a dry run.
            quarantine: args.quarantine.filter(|_| !args.dry_run).map(Quarantine::open).transpose()?,
            mem_limit: args.mem_limit.map(|size| size as u64),
            chaos: args.chaos.map(|shares| shares.with_seed(args.seed)),
            max_jobs_per_worker: args.max_jobs_per_worker,
            nice: args.nice,
            transport: args.transport,
            stats,
            trace,
            show_progress: args.bar,
            halt: args.halt,
            deadline: args.deadline,
            joblog,
            resume,
            is_tagged: args.tag,
            is_dry_run: args.dry_run,
            has_syslog: args.syslog,
        })
    }
}

/// Whether the workers may have this nice value. They would find out only when jobs wait for them already.
///
/// To be nicer is always allowed, so the attempt can be taken back.
fn check_nice(nice: i32) -> Result<(), Fatal> {
    let Some(own) = own_nice().filter(|own| nice < *own) else { return Ok(()) };
    sys::set_nice(nice).and_then(|()| sys::set_nice(own)).map_err(|e| {
        let why = plain_error(&e.into());
        Fatal(format!("--nice {nice}: {why}: less than {own} needs root's privileges: give {own} or more"))
    })
}

/// This process's nice value: field 19 of proc_pid_stat(5), the 17th after the name.
fn own_nice() -> Option<i32> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(16)?.parse().ok()
}

fn open_report(option: &str, path: Option<&Path>) -> Result<Option<StatsFile>, Fatal> {
    let create = |path: &Path| {
        StatsFile::create(path).map_err(|e| Fatal(format!("{option}: {}: {}", path.display(), plain_error(&e))))
    };
    path.map(create).transpose()
}

/// Whether a joblog would be read as input, or be replaced by a report.
fn check_joblog(path: &Path, input: &File, reports: [&Option<StatsFile>; 2]) -> Result<(), Fatal> {
    let shown = path.display();
    let identity = |metadata: std::fs::Metadata| (metadata.is_file(), metadata.dev(), metadata.ino());
    if let (Ok(log), Ok(input)) = (path.metadata().map(identity), input.metadata().map(identity))
        && log == input
        && log.0
    {
        return Err(Fatal(format!("--joblog: {shown} is the input too: give another name")));
    }
    if reports.into_iter().flatten().any(|report| report.replaces(path)) {
        return Err(Fatal(format!("--joblog: {shown} cannot be --stats or --trace too: give another name")));
    }
    Ok(())
}

fn open_input(path: &Path) -> std::io::Result<File> {
    let file = File::open(path)?;
    if sys::retry_io("statx", || file.metadata())?.is_dir() {
        return Err(std::io::ErrorKind::IsADirectory.into());
    }
    Ok(file)
}

/// A standard stream without the buffer and the lock of the standard library; its flags stay as they are.
pub(crate) fn standard(stream: impl AsFd) -> std::io::Result<File> {
    Ok(File::from(sys::duplicate(stream.as_fd())?))
}
