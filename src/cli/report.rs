//! What goes to standard error, and how the command ends.
//!
//! Every line of ours begins `seqpool: `. A job that was not done has exactly one line, `seqpool: job N: WHY`, with
//! control characters escaped; no other line contains `job N:`.

use super::output::Streams;
use crate::sys::{self, SignalsBlocked};
use crate::{Outcome, Stats};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Every job was done.
pub(crate) const EXIT_DONE: u8 = 0;
/// Some jobs were not done.
pub(crate) const EXIT_UNSUCCESSFUL: u8 = 1;
/// Usage, unknown handler, missing file, or the pool could not start or go on.
pub(crate) const EXIT_USAGE: u8 = 2;
/// Halted by `--halt`.
pub(crate) const EXIT_HALTED: u8 = 3;
/// Jobs were quarantined.
pub(crate) const EXIT_QUARANTINED: u8 = 5;
/// The deadline of the whole run has passed.
pub(crate) const EXIT_DEADLINE: u8 = 124;
/// Ended by a signal: this plus its number.
pub(crate) const EXIT_SIGNAL: u8 = 128;

const SIGPIPE: i32 = 13;

/// How often progress is shown where it is not drawn. Units: time.
const PLAIN_PROGRESS_PERIOD: Duration = Duration::from_secs(1);
/// How often progress is drawn on a terminal.
const BAR_PERIOD: Duration = Duration::from_millis(100);

/// How much of a file is written at once. Units: bytes.
const WRITE_SIZE: usize = 64 << 10;

/// Why the command cannot start or go on: exit code 2.
#[derive(Debug)]
pub(crate) struct Fatal(pub(crate) String);

/// Prints each line of `text` at once, as ours. For before the pool exists and after it is gone.
pub(crate) fn print_lines(text: &str) {
    let mut lines = String::new();
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        push_line(&mut lines, format_args!("{line}"));
    }
    // A closed standard error leaves nowhere to say so.
    let _ = std::io::stderr().write_all(lines.as_bytes());
}

fn push_line(into: &mut String, text: std::fmt::Arguments<'_>) {
    into.push_str("seqpool: ");
    // Writing to a string cannot fail.
    let _ = write!(Escaper(into), "{text}");
    into.push('\n');
}

/// Text with its control characters escaped.
pub(crate) fn escaped(text: std::fmt::Arguments<'_>) -> String {
    let mut line = String::new();
    // As above.
    let _ = write!(Escaper(&mut line), "{text}");
    line
}

/// Writes text with its control characters escaped, so that no message can forge a line or drive a terminal.
struct Escaper<'a>(&'a mut String);

impl std::fmt::Write for Escaper<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            match c {
                '\n' => self.0.push_str("\\n"),
                '\r' => self.0.push_str("\\r"),
                '\t' => self.0.push_str("\\t"),
                c if c.is_control() => {
                    let code = u32::from(c);
                    let _ =
                        if code < 0x80 { write!(self.0, "\\x{code:02x}") } else { write!(self.0, "\\u{{{code:x}}}") };
                }
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

/// How many jobs had which outcome.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Tally {
    pub(crate) jobs: u64,
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) crashed: u64,
    pub(crate) timed_out: u64,
    pub(crate) cancelled: u64,
    pub(crate) rejected: u64,
}

impl Tally {
    /// Counts one outcome.
    #[inline]
    pub(crate) fn count<B>(&mut self, outcome: &Outcome<B>) {
        let counter = match outcome {
            Outcome::Done(_) => &mut self.done,
            Outcome::Failed { .. } => &mut self.failed,
            Outcome::Crashed(_) => &mut self.crashed,
            Outcome::TimedOut { .. } => &mut self.timed_out,
            Outcome::Cancelled { .. } => &mut self.cancelled,
            Outcome::Rejected { .. } => &mut self.rejected,
        };
        *counter += 1;
    }

    /// Jobs that have an outcome and are not done.
    pub(crate) fn unsuccessful(&self) -> u64 {
        self.failed + self.crashed + self.timed_out + self.cancelled + self.rejected
    }
}

/// Lines on standard error, and progress.
pub(crate) struct Report {
    line: String,
    progress: Progress,
}

enum Progress {
    Off,
    Bar { bar: ProgressBar, started: Instant, next: Instant },
    Plain { started: Instant, next: Instant },
}

impl Report {
    pub(crate) fn new(show_progress: bool) -> Self {
        let now = Instant::now();
        let progress = if !show_progress {
            Progress::Off
        } else if std::io::stderr().is_terminal() && !std::io::stdout().is_terminal() {
            // Results on the same terminal would cut a moving line in two.
            Progress::Bar { bar: new_bar(), started: now, next: now }
        } else {
            Progress::Plain { started: now, next: now + PLAIN_PROGRESS_PERIOD }
        };
        Self { line: String::new(), progress }
    }

    /// The one line of a job that was not done.
    pub(crate) fn unsuccessful<B>(&mut self, streams: &mut Streams, number: u64, outcome: &Outcome<B>)
    where
        Outcome<B>: std::fmt::Display,
    {
        self.say(streams, format_args!("job {number}: {outcome}"));
    }

    /// One line of ours.
    pub(crate) fn say(&mut self, streams: &mut Streams, text: std::fmt::Arguments<'_>) {
        self.line.clear();
        push_line(&mut self.line, text);
        if let Progress::Bar { bar, .. } = &self.progress {
            bar.println(self.line.trim_end_matches('\n'));
        } else {
            streams.push_line(&self.line);
        }
    }

    /// Whether progress is shown, and so whether a clock is needed.
    pub(crate) fn progress_period(&self) -> Option<Duration> {
        match self.progress {
            Progress::Off => None,
            Progress::Bar { .. } => Some(BAR_PERIOD),
            Progress::Plain { .. } => Some(PLAIN_PROGRESS_PERIOD),
        }
    }

    /// Shows progress when it is time to.
    pub(crate) fn progress(&mut self, streams: &mut Streams, tally: &Tally, now: Instant) {
        match &mut self.progress {
            Progress::Bar { bar, next, .. } if now >= *next => {
                *next = now + BAR_PERIOD;
                show(bar, tally);
            }
            Progress::Plain { next, .. } if now >= *next => {
                *next = now + PLAIN_PROGRESS_PERIOD;
                self.plain_progress(streams, tally, now);
            }
            _ => {}
        }
    }

    fn plain_progress(&mut self, streams: &mut Streams, tally: &Tally, now: Instant) {
        let Progress::Plain { started, .. } = self.progress else { return };
        let elapsed_s = now.duration_since(started).as_secs_f64();
        self.say(streams, format_args!("{} done, {} not, {elapsed_s:.1} s", tally.done, tally.unsuccessful()));
    }

    /// The last state of the progress, a line that stays.
    pub(crate) fn finish_progress(&mut self, streams: &mut Streams, tally: &Tally) {
        if let Progress::Bar { bar, started, .. } = &self.progress {
            bar.finish_and_clear();
            self.progress = Progress::Plain { started: *started, next: *started };
        }
        self.plain_progress(streams, tally, Instant::now());
        self.progress = Progress::Off;
    }
}

/// A bar that draws only when told to: a ticking thread would forbid the fork.
fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) =
        ProgressStyle::with_template("seqpool: {spinner} {human_pos} jobs  {rate}/s  {elapsed_precise}{msg}")
    {
        let rate = |state: &ProgressState, text: &mut dyn std::fmt::Write| {
            // Nobody reads ten thousandths of a job.
            let _ = write!(text, "{}", HumanCount(state.per_sec().round() as u64));
        };
        bar.set_style(style.with_key("rate", rate));
    }
    bar
}

fn show(bar: &ProgressBar, tally: &Tally) {
    let unsuccessful = tally.unsuccessful();
    if unsuccessful > 0 {
        bar.set_message(format!("  {unsuccessful} not done"));
    }
    bar.set_position(tally.done + unsuccessful);
    bar.tick();
}

/// What the pool counts about itself.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct PoolJson {
    respawns: u64,
    recycled: u64,
    reclaims: u64,
    reclaimed_jobs: u64,
    salvaged: u64,
    retries: u64,
    quarantined: u64,
    /// How long handlers ran, and what CPU time they used, where jobs have receipts.
    #[serde(skip_serializing_if = "Option::is_none")]
    run_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_s: Option<f64>,
    packets_sent: u64,
    packets_received: u64,
    hostile: u64,
}

impl From<Stats> for PoolJson {
    fn from(stats: Stats) -> Self {
        Self {
            respawns: stats.respawns,
            recycled: stats.recycled,
            reclaims: stats.reclaims,
            reclaimed_jobs: stats.reclaimed_jobs,
            salvaged: stats.salvaged,
            retries: stats.retries,
            quarantined: stats.quarantined,
            run_s: (stats.run_us > 0).then_some(stats.run_us as f64 / 1e6),
            cpu_s: (stats.run_us > 0).then_some(stats.cpu_us as f64 / 1e6),
            packets_sent: stats.packets_sent,
            packets_received: stats.packets_received,
            hostile: stats.hostile,
        }
    }
}

/// The numbers of `--stats`.
#[derive(Debug, Serialize)]
pub(crate) struct StatsJson {
    #[serde(flatten)]
    pub(crate) tally: Tally,
    #[serde(flatten)]
    pub(crate) pool: PoolJson,
    /// Records whose jobs an earlier run had finished.
    pub(crate) skipped: u64,
    pub(crate) workers: usize,
    pub(crate) wall_s: f64,
    pub(crate) jobs_per_s: f64,
}

/// The file of `--stats`, `--trace`, and of `bench` and `study`: opened at the start, so that a bad path is known before
/// any job runs, and complete or absent.
#[derive(Debug)]
pub(crate) struct StatsFile {
    file: File,
    /// Where the file is and where it goes. `None`: a device or pipe, written in place.
    rename: Option<(PathBuf, PathBuf)>,
}

impl StatsFile {
    /// Makes a temporary file beside `path`.
    pub(crate) fn create(path: &Path) -> std::io::Result<Self> {
        // A symbolic link stays, its target is replaced.
        let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        match std::fs::metadata(&target) {
            Ok(found) if found.is_dir() => return Err(std::io::ErrorKind::IsADirectory.into()),
            // Renaming over a device would replace it.
            Ok(found) if !found.is_file() => {
                let file = OpenOptions::new().write(true).open(&target)?;
                return Ok(Self { file, rename: None });
            }
            _ => {}
        }
        let Some(name) = target.file_name() else { return Err(std::io::ErrorKind::InvalidFilename.into()) };
        let mut temporary_name = std::ffi::OsString::from(".");
        temporary_name.push(name);
        temporary_name.push(format!(".{}.tmp", std::process::id()));
        let temporary = target.with_file_name(temporary_name);
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
        Ok(Self { file, rename: Some((temporary, target)) })
    }

    /// Whether the two would be put in the same place.
    pub(crate) fn replaces_same(&self, other: &Self) -> bool {
        self.rename.is_some() && self.rename == other.rename
    }

    /// Whether it would be put in this place.
    pub(crate) fn replaces(&self, path: &Path) -> bool {
        let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        self.rename.as_ref().is_some_and(|(_, to)| *to == target)
    }

    /// Writes the numbers and puts the file in its place.
    pub(crate) fn write(self, stats: &impl Serialize) -> std::io::Result<()> {
        self.write_with(|file| {
            serde_json::to_writer(&mut *file, stats)?;
            file.write_all(b"\n")
        })
    }

    /// Lets `write` write, however much, and puts the file in its place if that succeeds.
    pub(crate) fn write_with<T>(
        mut self,
        write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<T>,
    ) -> std::io::Result<T> {
        let mut buffered = BufWriter::with_capacity(WRITE_SIZE, &self.file);
        let written = write(&mut buffered)?;
        buffered.flush()?;
        drop(buffered);
        if let Some((from, to)) = &self.rename {
            std::fs::rename(from, to)?;
            self.rename = None;
        }
        Ok(written)
    }
}

impl Drop for StatsFile {
    fn drop(&mut self) {
        if let Some((temporary, _)) = &self.rename {
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// Opens an option's file for `then`, which no signal interrupts: a temporary file must not stay behind.
pub(crate) fn with_file(
    option: &str,
    path: &Path,
    then: impl FnOnce(StatsFile) -> std::io::Result<()>,
) -> Result<(), Fatal> {
    let fatal = |e: std::io::Error| Fatal(format!("--{option}: {}: {}", path.display(), plain_error(&e)));
    let _blocked = SignalsBlocked::new().map_err(|e| fatal(e.into()))?;
    StatsFile::create(path).and_then(then).map_err(fatal)
}

/// Prints what was measured, after the files have been `written`, or not. The exit code.
pub(crate) fn print_measured(text: &str, written: Result<(), Fatal>) -> Result<u8, Fatal> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::BrokenPipe && written.is_ok() => sys::die_by_signal(SIGPIPE),
        Err(e) => {
            print_lines(&format!("standard output: {}", plain_error(&e)));
            return written.map(|()| EXIT_USAGE);
        }
    }
    written.map(|()| EXIT_DONE)
}

/// How far a measurement is, if standard error is a terminal. Drawn only when told to: a ticking thread would forbid the
/// forks.
pub(crate) fn measuring_bar(steps: u64) -> Option<ProgressBar> {
    std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("seqpool: {bar:24} {pos}/{len}  {elapsed_precise}  {msg}") {
            bar.set_style(style);
        }
        bar
    })
}

/// The kernel's words for an error, without Rust's note of its number.
pub(crate) fn plain_error(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        let mut line = String::new();
        push_line(&mut line, format_args!("a\nb\r\t\x1b[31m\0\u{9b}é\\"));
        assert_eq!(line, "seqpool: a\\nb\\r\\t\\x1b[31m\\x00\\u{9b}é\\\n");
    }

    #[test]
    fn errors_are_plain() {
        assert_eq!(plain_error(&std::io::Error::from_raw_os_error(2)), "No such file or directory");
    }

    #[test]
    fn stats_are_complete_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats.json");
        drop(StatsFile::create(&path).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing left behind");
        let tally = Tally { jobs: 3, done: 2, failed: 1, ..Tally::default() };
        let stats =
            StatsJson { tally, pool: PoolJson::default(), skipped: 0, workers: 2, wall_s: 0.5, jobs_per_s: 6.0 };
        StatsFile::create(&path).unwrap().write(&stats).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!((&value["jobs"], &value["done"], &value["timed_out"]), (&3.into(), &2.into(), &0.into()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(StatsFile::create(dir.path()).is_err());
    }
}
