//! `--dry-run`: which jobs a run would have, and nothing else. No worker is started, and no file is written.
//!
//! A result is what would be run, handler and record, as a joblog's last column has it but unescaped.

use super::kept;
use super::resume::Resume;
use crate::cli::config::{Config, standard};
use crate::cli::input::{Input, Next};
use crate::cli::report::{EXIT_DONE, Fatal, plain_error};
use crate::sys;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};

/// How much is written at once while records are at hand. Units: bytes.
const WRITE_SIZE: usize = 128 << 10;

/// Prints the jobs.
pub(super) fn run(config: Config) -> Result<u8, Fatal> {
    let Config { handler, terminator, mut input, resume, is_tagged, .. } = config;
    let bad = |e: std::io::Error| Fatal(format!("standard output: {}", plain_error(&e)));
    let stdout = standard(std::io::stdout()).map_err(bad)?;
    let mut listing = Listing {
        out: BufWriter::with_capacity(WRITE_SIZE, stdout),
        handler,
        terminator,
        is_tagged,
        resume,
        job: Vec::new(),
        tagged: Vec::new(),
        number: 0,
    };
    match listing.list(&mut input) {
        Ok(()) => Ok(EXIT_DONE),
        Err(Ended::Output(error)) if error.kind() == ErrorKind::BrokenPipe => sys::die_by_signal(super::SIGPIPE),
        Err(Ended::Output(error)) => Err(bad(error)),
        Err(Ended::Input(fatal)) => Err(fatal),
    }
}

enum Ended {
    Output(std::io::Error),
    Input(Fatal),
}

struct Listing {
    out: BufWriter<File>,
    handler: String,
    terminator: u8,
    is_tagged: bool,
    resume: Option<Resume>,
    job: Vec<u8>,
    tagged: Vec<u8>,
    number: u64,
}

impl Listing {
    fn list(&mut self, input: &mut Input) -> Result<(), Ended> {
        loop {
            match input.peek() {
                Next::Record(record) => self.record(record)?,
                // Would be rejected; what it holds is gone.
                Next::TooLarge(size) => {
                    self.number += 1;
                    let limit = crate::limits::JOB_SIZE_MAX;
                    let number = self.number;
                    let why = format!("record {number} of {size} bytes is too large, the limit is {limit} bytes");
                    self.out.flush().map_err(Ended::Output)?;
                    crate::cli::report::print_lines(&why);
                }
                Next::Unknown => {
                    // Somebody may be waiting for what is known so far.
                    if !input.is_ready().map_err(Ended::Input)? {
                        self.out.flush().map_err(Ended::Output)?;
                    }
                    let read = |e: std::io::Error| Ended::Input(Fatal(format!("input: {}", plain_error(&e))));
                    if !input.fill().map_err(read)? {
                        input.wait().map_err(Ended::Input)?;
                    }
                    continue;
                }
                Next::End => break,
            }
            input.consume();
        }
        self.out.flush().map_err(Ended::Output)?;
        let end = self.resume.as_ref().map_or(Ok(()), |resume| resume.check_end(self.number));
        end.map_err(|refusal| Ended::Input(Fatal(refusal)))
    }

    fn record(&mut self, record: &[u8]) -> Result<(), Ended> {
        self.number += 1;
        if let Some(resume) = &mut self.resume {
            let skips = resume.skips(self.number, record, record.len() as u64);
            if skips.map_err(|refusal| Ended::Input(Fatal(refusal)))? {
                return Ok(());
            }
        }
        self.job.clear();
        self.job.extend_from_slice(self.handler.as_bytes());
        if !record.is_empty() {
            self.job.push(b' ');
            self.job.extend_from_slice(record);
        }
        let line = if self.is_tagged {
            kept::tag(record, &self.job, self.terminator, &mut self.tagged);
            &mut self.tagged
        } else {
            &mut self.job
        };
        line.push(self.terminator);
        self.out.write_all(line).map_err(Ended::Output)
    }
}
