//! `--resume` and `--resume-failed`: what an earlier run has done, read from its joblog.
//!
//! Jobs are known by their numbers. What a joblog says of the handler and of the first [`RESUME_RECORDS_MAX`] records is
//! compared with what is run now, so that the joblog of something else does not pass for this one's. Memory: a little for
//! each gap between finished jobs, whatever their number, and for each record compared.

use super::joblog::{Form, HEADER, JoblogFile, command};
use super::kept::shown;
use crate::cli::report::{Fatal, plain_error};
use crate::limits::{JOBLOG_LINE_SIZE_MAX, RESUME_RECORDS_MAX};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

/// What need not be run again.
#[derive(Debug)]
pub(crate) struct Resume {
    path: PathBuf,
    handler: String,
    over: Ranges,
    /// Hashes of records by their numbers.
    records: HashMap<u64, u64>,
    /// The highest number in the joblog.
    last: u64,
}

/// One line of a joblog.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Line {
    seq: u64,
    send: u64,
    exitval: i64,
    signal: i64,
    command: String,
}

impl Line {
    /// `None`: it is no such line.
    fn parse(form: Form, line: &[u8]) -> Option<Self> {
        let found: Self = match form {
            Form::JsonLines => serde_json::from_slice(line).ok()?,
            Form::Columns => {
                let mut fields = std::str::from_utf8(line).ok()?.splitn(HEADER.split('\t').count(), '\t');
                let mut field = || fields.next();
                let seq = field()?.parse().ok()?;
                let [_host, _start, _run, send, _receive, exitval, signal, command] =
                    [field()?, field()?, field()?, field()?, field()?, field()?, field()?, field()?];
                Self {
                    seq,
                    send: send.parse().ok()?,
                    exitval: exitval.parse().ok()?,
                    signal: signal.parse().ok()?,
                    command: command.to_owned(),
                }
            }
        };
        (found.seq > 0).then_some(found)
    }

    fn is_done(&self) -> bool {
        (self.exitval, self.signal) == (0, 0)
    }
}

impl Resume {
    /// Reads a joblog, and notes where its last whole line ends.
    ///
    /// `is_failed_again`: jobs that were not done are to be run again.
    pub(crate) fn read(log: &mut JoblogFile, handler: &str, is_failed_again: bool) -> Result<Self, Fatal> {
        let path = log.path.display();
        let mut resume = Self {
            path: log.path.clone(),
            handler: handler.to_owned(),
            over: Ranges::default(),
            records: HashMap::new(),
            last: 0,
        };
        let mut reader = BufReader::with_capacity(JOBLOG_LINE_SIZE_MAX, &log.file);
        let mut line = Vec::new();
        let mut at = 0_u64;
        loop {
            line.clear();
            let size = (&mut reader)
                .take(JOBLOG_LINE_SIZE_MAX as u64)
                .read_until(b'\n', &mut line)
                .map_err(|e| Fatal(format!("--joblog: {path}: {}", plain_error(&e))))?;
            at += 1;
            let bad = |what: &str| {
                let shown = String::from_utf8_lossy(&line[..line.len().min(60)]);
                let shown = shown.trim_end().escape_debug();
                Fatal(format!(
                    "--resume: {path}, line {at}: '{shown}' {what}: give the joblog of the run that is to go on"
                ))
            };
            let Some(line) = line.strip_suffix(b"\n") else {
                if size == JOBLOG_LINE_SIZE_MAX {
                    return Err(bad("is longer than any line of a joblog"));
                }
                // The end, or a line that its writer did not live to end: its job is run again.
                return Ok(resume);
            };
            if log.form == Form::Columns && at == 1 {
                if line != HEADER.as_bytes() {
                    return Err(bad("is not the header of a joblog"));
                }
            } else {
                let Some(found) = Line::parse(log.form, line) else { return Err(bad("is no line of a joblog")) };
                resume.take(&found, is_failed_again).map_err(|other| {
                    Fatal(format!(
                        "--resume: {path} is of handler '{other}' (line {at}), not of '{handler}': give that handler its \
                         own joblog"
                    ))
                })?;
            }
            log.kept_size += size as u64;
        }
    }

    /// Takes one line into account; later lines about a job count. `Err`: another handler's name.
    fn take(&mut self, line: &Line, is_failed_again: bool) -> Result<(), String> {
        let handler = line.command.split(' ').next().unwrap_or_default();
        if handler != self.handler {
            return Err(handler.to_owned());
        }
        self.last = self.last.max(line.seq);
        if is_failed_again && !line.is_done() {
            self.over.remove(line.seq);
        } else {
            self.over.insert(line.seq);
        }
        if self.records.len() < RESUME_RECORDS_MAX {
            self.records.insert(line.seq, hash(&line.command, line.send));
        }
        Ok(())
    }

    /// Whether the job of this record is not to be run. `Err`: the joblog is of other records.
    pub(super) fn skips(&mut self, number: u64, record: &[u8], size: u64) -> Result<bool, String> {
        if number > self.last {
            return Ok(false);
        }
        if let Some(known) = self.records.remove(&number) {
            let command = command(&self.handler, shown(record), size);
            if hash(&command, size) != known {
                let path = self.path.display();
                return Err(format!(
                    "--resume: {path} is of another input: record {number}, '{command}' here, is something else there: \
                     give the same input in the same order, or a new joblog"
                ));
            }
        }
        Ok(self.over.contains(number))
    }

    /// Whether the input, which ended after so many records, can be the one of the joblog.
    pub(super) fn check_end(&self, records: u64) -> Result<(), String> {
        if records >= self.last {
            return Ok(());
        }
        let path = self.path.display();
        Err(format!(
            "--resume: {path} is of another input: it knows record {}, and the last one here is {records}",
            self.last
        ))
    }
}

fn hash(command: &str, size: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (command, size).hash(&mut hasher);
    hasher.finish()
}

/// A set of numbers that lie close together.
#[derive(Debug, Default)]
struct Ranges {
    /// First number to last, both in it; ranges neither overlap nor touch.
    ranges: BTreeMap<u64, u64>,
}

impl Ranges {
    /// The range that holds `n`.
    fn find(&self, n: u64) -> Option<(u64, u64)> {
        self.ranges.range(..=n).next_back().map(|(&first, &last)| (first, last)).filter(|&(_, last)| last >= n)
    }

    fn contains(&self, n: u64) -> bool {
        self.find(n).is_some()
    }

    fn insert(&mut self, n: u64) {
        if self.contains(n) {
            return;
        }
        let first = n.checked_sub(1).and_then(|before| self.find(before)).map_or(n, |(first, _)| first);
        let last = n.checked_add(1).and_then(|after| self.ranges.remove(&after)).unwrap_or(n);
        self.ranges.insert(first, last);
    }

    fn remove(&mut self, n: u64) {
        let Some((first, last)) = self.find(n) else { return };
        self.ranges.remove(&first);
        if first < n {
            self.ranges.insert(first, n - 1);
        }
        if n < last {
            self.ranges.insert(n + 1, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_agree_with_a_naive_set(ops in prop::collection::vec((0u64..40, any::<bool>()), 0..200)) {
            let (mut ranges, mut naive) = (Ranges::default(), BTreeSet::new());
            for (n, is_insert) in ops {
                if is_insert {
                    ranges.insert(n);
                    naive.insert(n);
                } else {
                    ranges.remove(n);
                    naive.remove(&n);
                }
                for n in 0..40 {
                    prop_assert_eq!(ranges.contains(n), naive.contains(&n));
                }
                let gaps = naive.iter().filter(|n| **n == 0 || !naive.contains(&(**n - 1))).count();
                prop_assert_eq!(ranges.ranges.len(), gaps, "one range for each run of numbers");
            }
        }
    }

    #[test]
    fn ranges_reach_the_end_of_numbers() {
        let mut ranges = Ranges::default();
        for n in [u64::MAX, 0, u64::MAX - 1] {
            ranges.insert(n);
        }
        assert!(ranges.contains(u64::MAX) && ranges.contains(0) && !ranges.contains(1));
        ranges.remove(u64::MAX);
        assert!(!ranges.contains(u64::MAX) && ranges.contains(u64::MAX - 1));
    }

    #[test]
    fn lines_of_both_forms() {
        let want = Line { seq: 3, send: 5, exitval: -1, signal: 0, command: "fault a\\tb".to_owned() };
        let columns = b"3\t:\t1.000\t     0.010\t5\t2\t-1\t0\tfault a\\tb";
        assert_eq!(Line::parse(Form::Columns, columns).as_ref(), Some(&want));
        let json = br#"{"seq":3,"host":":","send":5,"exitval":-1,"signal":0,"command":"fault a\\tb","more":1}"#;
        assert_eq!(Line::parse(Form::JsonLines, json), Some(want));
        for bad in [&b"3\t:\t1\t0\t5\t2\t0\t0"[..], b"0\t:\t1\t0\t5\t2\t0\t0\tx", b"", b"x", b"{}"] {
            assert_eq!(Line::parse(Form::Columns, bad), None);
            assert_eq!(Line::parse(Form::JsonLines, bad), None);
        }
    }
}
