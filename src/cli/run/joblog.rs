//! `--joblog`: one line for each job that is over, in GNU parallel's columns or as JSON.
//!
//! A line is written after the result of its job has been: a run that is killed and resumed may write a result twice,
//! and loses none. Lines are written whole, many at once, and at once when no result is at hand. Jobs that were
//! cancelled, or that found no worker, have no line: a resumed run runs them.
//!
//! Shape: `Seq Host Starttime JobRuntime Send Receive Exitval Signal Command` with tabs between; `Host` is `:`, as GNU
//! parallel calls this machine. Units: seconds (of the epoch, and of running), bytes of record and result.

use super::kept::Record;
use super::resume::Resume;
use super::times::Times;
use crate::cli::output::Streams;
use crate::cli::report::{Fatal, plain_error};
use crate::limits::JOBLOG_WAITING_SIZE_MAX;
use crate::sys::{Linux, Sys};
use crate::{CrashCause, Outcome, Reason, Receipt};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The first line of a joblog in columns.
pub(super) const HEADER: &str = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand";
/// This machine, as GNU parallel calls it.
const HOST: &str = ":";
/// Lines are handed on at this size while results keep coming. Units: bytes.
const WRITE_SIZE: usize = 64 << 10;
/// Of jobs that left no exit code that would tell how they ended.
const EXIT_NONE: i32 = -1;

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// GNU parallel's columns, with a header.
    Columns,
    /// One JSON object a line, with GNU parallel's names in lower case.
    JsonLines,
}

/// A joblog that has been opened and not been touched.
#[derive(Debug)]
pub(crate) struct JoblogFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) form: Form,
    pub(super) is_regular: bool,
    /// How much of the file stays, in whole lines. Units: bytes.
    pub(super) kept_size: u64,
}

impl JoblogFile {
    /// Whether lines say what jobs cost.
    pub(crate) fn has_room_for_receipts(&self) -> bool {
        self.form == Form::JsonLines
    }

    /// Opens it, and leaves it as it is. What it knows is read if the run `is_resumed`. A dry run gets no joblog.
    pub(crate) fn open(
        path: &Path,
        is_resumed: bool,
        is_dry_run: bool,
        handler: &str,
        is_failed_again: bool,
    ) -> Result<(Option<Self>, Option<Resume>), Fatal> {
        let bad = |e: std::io::Error| Fatal(format!("--joblog: {}: {}", path.display(), plain_error(&e)));
        if is_dry_run && !(is_resumed && path.exists()) {
            return Ok((None, None));
        }
        let mut options = OpenOptions::new();
        let file = options.read(is_resumed).append(!is_dry_run).create(!is_dry_run).open(path).map_err(bad)?;
        let is_regular = file.metadata().map_err(bad)?.is_file();
        let is_json = path.extension().is_some_and(|extension| extension == "jsonl");
        let form = if is_json { Form::JsonLines } else { Form::Columns };
        let mut log = Self { path: path.to_path_buf(), file, form, is_regular, kept_size: 0 };
        let mut resume = None;
        if is_resumed {
            if !is_regular {
                let path = path.display();
                return Err(Fatal(format!(
                    "--resume: {path} is no regular file and cannot be read back: give one that is"
                )));
            }
            resume = Some(Resume::read(&mut log, handler, is_failed_again)?);
        }
        Ok(((!is_dry_run).then_some(log), resume))
    }
}

/// Lines on their way to the file.
pub(super) struct Joblog {
    path: PathBuf,
    form: Form,
    handler: String,
    /// The wall clock when the monotonic one was 0. Units: nanoseconds.
    epoch_ns: u64,
    /// The line of the last job, unless it has none or is held back.
    line: Vec<u8>,
    /// Lines of jobs whose results are held back to be put in order; `None`: results leave as they come.
    held: Option<HashMap<u64, Box<[u8]>>>,
    /// Lines whose results have been handed on.
    waiting: Vec<u8>,
    /// How much of `waiting` may be written when so many bytes of results have been.
    marks: VecDeque<(u64, usize)>,
    /// It could not be written.
    is_ended: bool,
}

impl Joblog {
    /// Begins or goes on with the file, which `streams` then write.
    pub(super) fn begin(
        file: JoblogFile,
        handler: &str,
        is_ordered: bool,
        streams: &mut Streams,
    ) -> Result<Self, Fatal> {
        let JoblogFile { path, file, form, is_regular, kept_size } = file;
        if is_regular {
            let cut = file.set_len(kept_size);
            cut.map_err(|e| Fatal(format!("--joblog: {}: {}", path.display(), plain_error(&e))))?;
        }
        streams.set_log(file);
        let wall_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let mut joblog = Self {
            path,
            form,
            handler: handler.to_owned(),
            epoch_ns: wall_ns.saturating_sub(Linux.now_ns()),
            line: Vec::new(),
            held: is_ordered.then(HashMap::new),
            waiting: Vec::new(),
            marks: VecDeque::new(),
            is_ended: false,
        };
        if form == Form::Columns && kept_size == 0 {
            joblog.waiting.extend_from_slice(HEADER.as_bytes());
            joblog.waiting.push(b'\n');
            joblog.marks.push_back((0, joblog.waiting.len()));
        }
        Ok(joblog)
    }

    /// Notes how a job ended; its line is written once its result is.
    pub(super) fn note(
        &mut self,
        seq: u64,
        record: &Record,
        times: Option<Times>,
        outcome: &Outcome<&[u8]>,
        attempts: u32,
        receipt: Option<&Receipt>,
    ) {
        self.line.clear();
        let Some((exitval, signal)) = exit_of(outcome).filter(|_| !self.is_ended) else { return };
        let now_ns = Linux.now_ns();
        let Times { start_ns, end_ns } = times.unwrap_or(Times { start_ns: now_ns, end_ns: now_ns });
        let line = Line {
            seq,
            host: HOST,
            starttime: (self.epoch_ns + start_ns) as f64 / 1e9,
            jobruntime: end_ns.saturating_sub(start_ns) as f64 / 1e9,
            send: record.size,
            receive: if let Outcome::Done(body) = outcome { body.len() as u64 } else { 0 },
            exitval,
            signal,
            command: command(&self.handler, &record.bytes, record.size),
            outcome,
            attempts,
            receipt: receipt.map(Cost::of),
        };
        line.write(self.form, &mut self.line);
        if let Some(held) = &mut self.held {
            held.insert(seq, self.line.as_slice().into());
        }
    }

    /// The result of this job, if it has one, has been handed on, and ends at this byte of all results.
    pub(super) fn release(&mut self, seq: u64, results_size: u64) {
        let from_order = self.held.as_mut().map(|held| held.remove(&seq).unwrap_or_default());
        let line = from_order.as_deref().unwrap_or(&self.line);
        self.waiting.extend_from_slice(line);
        match self.marks.back_mut() {
            Some((position, size)) if *position == results_size => *size += line.len(),
            _ => self.marks.push_back((results_size, line.len())),
        }
    }

    /// Whether enough has gathered to be worth a write.
    pub(super) fn is_due(&self) -> bool {
        self.waiting.len() >= WRITE_SIZE
    }

    /// Whether so much waits for results to be written that no further job should be begun.
    pub(super) fn is_stalled(&self) -> bool {
        self.waiting.len() >= JOBLOG_WAITING_SIZE_MAX
    }

    /// Whether nothing waits.
    pub(super) fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Writes the lines whose results have been written. Returns what to tell the user, if anything.
    pub(super) fn pump(&mut self, streams: &mut Streams) -> Option<String> {
        let written = streams.results_written();
        let mut size = 0;
        while let Some(&(position, more)) = self.marks.front()
            && position <= written
        {
            self.marks.pop_front();
            size += more;
        }
        streams.push_log(&self.waiting[..size]);
        self.waiting.drain(..size);
        let error = streams.flush_log()?;
        let is_news = !std::mem::replace(&mut self.is_ended, true);
        // Nothing more is written, so that what is there are the lines of an unbroken time.
        (self.waiting, self.marks, self.held) = (Vec::new(), VecDeque::new(), self.held.take().map(|_| HashMap::new()));
        let path = self.path.display();
        is_news.then(|| format!("--joblog: {path}: {}: it ends here, jobs go on", plain_error(error)))
    }
}

/// What a line says of one job. JSON has what the columns have no room for; further fields may follow.
#[derive(Serialize)]
struct Line<'a> {
    seq: u64,
    host: &'static str,
    starttime: f64,
    jobruntime: f64,
    send: u64,
    receive: u64,
    exitval: i32,
    signal: i32,
    command: String,
    #[serde(serialize_with = "as_text")]
    outcome: &'a Outcome<&'a [u8]>,
    attempts: u32,
    #[serde(flatten)]
    receipt: Option<Cost>,
}

/// A receipt as it stands in a line. Units: seconds, KiB.
#[derive(Serialize)]
struct Cost {
    queue_wait: f64,
    transfer: Option<f64>,
    user: Option<f64>,
    system: Option<f64>,
    /// The worker's peak so far.
    max_rss_kib: Option<u64>,
    minor_faults: Option<u64>,
    major_faults: Option<u64>,
    voluntary_switches: Option<u64>,
    involuntary_switches: Option<u64>,
}

impl Cost {
    fn of(receipt: &Receipt) -> Self {
        let usage = receipt.usage;
        Self {
            queue_wait: receipt.queue_wait.as_secs_f64(),
            transfer: receipt.transfer.map(|t| t.as_secs_f64()),
            user: usage.map(|u| u.user.as_secs_f64()),
            system: usage.map(|u| u.system.as_secs_f64()),
            max_rss_kib: usage.map(|u| u.resident_max_kib),
            minor_faults: usage.map(|u| u.minor_faults),
            major_faults: usage.map(|u| u.major_faults),
            voluntary_switches: usage.map(|u| u.voluntary_switches),
            involuntary_switches: usage.map(|u| u.involuntary_switches),
        }
    }
}

impl Line<'_> {
    fn write(&self, form: Form, into: &mut Vec<u8>) {
        let Self { seq, host, starttime, jobruntime, send, receive, exitval, signal, command, .. } = self;
        // Writing to memory cannot fail, and nothing here has no form in JSON.
        let _ = match form {
            Form::Columns => writeln!(
                into,
                "{seq}\t{host}\t{starttime:.3}\t{jobruntime:10.3}\t{send}\t{receive}\t{exitval}\t{signal}\t{command}"
            ),
            Form::JsonLines => {
                serde_json::to_writer(&mut *into, self).map_err(Into::into).and_then(|()| writeln!(into))
            }
        };
    }
}

fn as_text<S: serde::Serializer>(outcome: &&Outcome<&[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(outcome)
}

/// What stands in `Exitval` and `Signal`; both are 0 for a job that is done, and for no other. `None`: a job that is not
/// over, and which a resumed run is to run.
fn exit_of(outcome: &Outcome<&[u8]>) -> Option<(i32, i32)> {
    Some(match outcome {
        Outcome::Done(_) => (0, 0),
        Outcome::Failed { .. } => (1, 0),
        Outcome::Crashed(crash) => match crash.cause {
            CrashCause::Signal(signal) => (0, signal),
            // A worker that ended with exit code 0 has done nothing for its job.
            CrashCause::Code(0) | CrashCause::NeverStarted | CrashCause::Unknown => (EXIT_NONE, 0),
            CrashCause::Code(code) => (code, 0),
        },
        Outcome::TimedOut { .. } => (EXIT_NONE, 0),
        Outcome::Rejected { reason: Reason::NoWorkers(_) | Reason::Draining | Reason::NoRoom } => return None,
        Outcome::Rejected { .. } => (EXIT_NONE, 0),
        Outcome::Cancelled { .. } => return None,
    })
}

/// A job as a command: the handler and the record, on one line whatever it holds. Of a long record the beginning, and
/// how long it is.
pub(super) fn command(handler: &str, shown: &[u8], size: u64) -> String {
    let mut text = handler.to_owned();
    if size > 0 {
        text.push(' ');
    }
    for chunk in shown.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                c if c.is_control() => {
                    let _ = write!(text, "\\u{{{:x}}}", u32::from(c));
                }
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    if size > shown.len() as u64 {
        let _ = write!(text, "... ({size} bytes)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Crash;
    use std::time::Duration;

    #[test]
    fn a_command_is_one_line() {
        assert_eq!(command("upper", b"a b", 3), "upper a b");
        assert_eq!(command("upper", b"", 0), "upper");
        assert_eq!(command("upper", b"", 9), "upper ... (9 bytes)");
        assert_eq!(command("echo", b"\\\n\t\r\x1b\xff\xc3\xa9", 8), "echo \\\\\\n\\t\\r\\u{1b}\\xff\u{e9}");
        assert_eq!(command("echo", b"xx", 300), "echo xx... (300 bytes)");
    }

    #[test]
    fn exit_values_tell_done_from_not() {
        let crash = |cause| Outcome::Crashed(Crash { cause, oom: None });
        let failed = |panicked| Outcome::Failed { message: String::new(), panicked };
        for (outcome, want) in [
            (Outcome::Done(&b"x"[..]), Some((0, 0))),
            (failed(false), Some((1, 0))),
            (failed(true), Some((1, 0))),
            (crash(CrashCause::Code(3)), Some((3, 0))),
            (crash(CrashCause::Code(0)), Some((-1, 0))),
            (crash(CrashCause::Signal(9)), Some((0, 9))),
            (crash(CrashCause::NeverStarted), Some((-1, 0))),
            (Outcome::TimedOut { after: Duration::from_secs(1) }, Some((-1, 0))),
            (Outcome::Rejected { reason: Reason::TooLarge { size: 2, limit: 1 } }, Some((-1, 0))),
            (Outcome::Rejected { reason: Reason::NoWorkers(String::new()) }, None),
            (Outcome::Cancelled { why: String::new() }, None),
        ] {
            assert_eq!(exit_of(&outcome), want, "{outcome}");
        }
    }

    #[test]
    fn lines_wait_for_their_results() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let open = |name: &str| File::create(dir.path().join(name)).unwrap();
        let mut streams = Streams::new(open("results"), open("lines"));
        let (file, _) = JoblogFile::open(&path, false, false, "echo", false).unwrap();
        let mut joblog = Joblog::begin(file.unwrap(), "echo", false, &mut streams).unwrap();
        let lines = || std::fs::read_to_string(&path).unwrap().lines().count();
        for seq in 1..=3 {
            joblog.note(seq, &Record::default(), None, &Outcome::Done(b"xy"), 1, None);
            streams.push_result(b"xy", b'\n');
            joblog.release(seq, streams.results_size());
        }
        assert_eq!(joblog.pump(&mut streams), None);
        assert_eq!(lines(), 1, "the header alone");
        streams.flush();
        assert_eq!(joblog.pump(&mut streams), None);
        assert_eq!((lines(), joblog.is_settled()), (4, true));
    }
}
